"""The part of bench_brian2modelfitting.py that runs in an environment with brian2modelfitting: its fit by DE.

    python peer_brian2modelfitting.py FILE.npz ROUNDS [SECONDS]

The last line is JSON: seconds and best loss (mV^2) after each round, of which there are ROUNDS, or as many as begin in
these seconds after the first; the seconds that the simulations of one take; and the best parameters (uS, mV).
"""

import json
import sys
import time
from collections.abc import Sequence

import numpy as np

np.float, np.int, np.bool = float, int, bool  # aliases that nevergrad 0.3.0 still uses  # noqa: NPY001
import brian2 as b2  # noqa: E402
import brian2modelfitting as fitting  # noqa: E402

EQUATIONS = """
dv/dt = (gL*(EL - v) - gNa*m**3*h*(v - ENa) - gK*n**4*(v - EK) + I)/C : volt
dm/dt = (1.28/exprel((13*mV - v + V_T)/(4*mV))*(1 - m) - 1.4/exprel((v - V_T - 40*mV)/(5*mV))*m)/ms : 1
dh/dt = (0.128*exp((17*mV - v + V_T)/(18*mV))*(1 - h) - 4/(1 + exp((40*mV - v + V_T)/(5*mV)))*h)/ms : 1
dn/dt = (0.16/exprel((15*mV - v + V_T)/(5*mV))*(1 - n) - 0.5*exp((10*mV - v + V_T)/(40*mV))*n)/ms : 1
gL : siemens (constant)
gNa : siemens (constant)
gK : siemens (constant)
V_T : volt (constant)
"""


def main(argv: Sequence[str]) -> None:
    data, rounds, log, begin = np.load(argv[0]), int(argv[1]), [], time.perf_counter()
    most = float(argv[2]) if len(argv) > 2 else np.inf
    b2.prefs.codegen.target = "cython"
    constants = dict(C=0.2 * b2.nF, EL=-65 * b2.mV, EK=-90 * b2.mV, ENa=50 * b2.mV)
    fitter = fitting.TraceFitter(
        model=b2.Equations(EQUATIONS, **constants),
        input_var="I",
        output_var="v",
        input=data["current"].T * b2.nA,
        output=data["V"].T * b2.mV,
        dt=float(data["dt"]) * b2.ms,
        n_samples=int(data["n_sample"]),
        method="exponential_euler",
        param_init={"v": -65 * b2.mV},
    )

    simulate, simulating = fitting.simulator.RuntimeSimulator.run, []

    def timed(*args, **kwargs):
        start = time.perf_counter()
        simulate(*args, **kwargs)
        simulating.append(time.perf_counter() - start)

    fitting.simulator.RuntimeSimulator.run = timed

    def log_round(params, errors, best_params, best_error, *rest):
        log.append((time.perf_counter() - begin, float(best_error) * 1e6))  # V^2 to mV^2
        return log[-1][0] - log[0][0] > most

    units = dict(gL=b2.uS, gNa=b2.uS, gK=b2.uS, V_T=b2.mV)
    bounds = {name: list(data[f"bounds_{name}"] * unit) for name, unit in units.items()}
    optimizer = fitting.NevergradOptimizer(method="DE")
    best, _ = fitter.fit(n_rounds=rounds, optimizer=optimizer, metric=fitting.MSEMetric(), callback=log_round, **bounds)
    parameters = {name: float(best[name] / unit) for name, unit in units.items()}
    log = [(seconds - log[0][0], loss) for seconds, loss in log]
    seconds = float(np.median(simulating[1:])) if len(log) > 1 else None
    print(json.dumps(dict(log=log, seconds_a_round=seconds, parameters=parameters)))


if __name__ == "__main__":
    main(sys.argv[1:])
