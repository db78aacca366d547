"""The part of bench_gif_cell.py that runs in an environment with brian2modelfitting: its fit of spikes by DE.

    python peer_gif_brian2modelfitting.py FILE.npz SECONDS

The GIF neuron with a linear threshold and without noise, by SpikeFitter, its GammaFactor and Nevergrad's DE: parameters
NAME of the file have this value, those with bounds_NAME are fitted. As many rounds of n_sample simulations as begin in
SECONDS after the first. The last line is JSON: seconds and best error after each round, and the best parameters.
"""

import json
import sys
import time
from collections.abc import Sequence

import numpy as np

np.float, np.int, np.bool = float, int, bool  # aliases that nevergrad 0.3.0 still uses  # noqa: NPY001
import brian2 as b2  # noqa: E402
import brian2modelfitting as fitting  # noqa: E402

OF = {"ohm": b2.Mohm, "amp": b2.nA, "Hz": 1 / b2.ms, "second": b2.ms, "volt": b2.mV}  # units of the file
KINDS = {"R": "ohm", "tau": "second", "V_rest": "volt", "V_reset": "volt", "V_th_inf": "volt", "A_th": "volt"}
KINDS |= {"A1": "amp", "A2": "amp", "k1": "Hz", "k2": "Hz", "a": "Hz", "b": "Hz", "t_ref": "second"}
EQUATIONS = """
dv/dt = (V_rest - v + R*(I + I1 + I2))/tau : volt (unless refractory)
dI1/dt = -k1*I1 : amp
dI2/dt = -k2*I2 : amp
dV_th/dt = a*(v - V_rest) - b*(V_th - V_th_inf) : volt
"""
# A_j is added as t_ref ends, until when V is held and I_j acts on nothing.
RESET = "v = {V_reset}*mV; V_th += A_th; I1 += A1*exp(k1*{t_ref}*ms); I2 += A2*exp(k2*{t_ref}*ms)"


def main(argv: Sequence[str]) -> None:
    data, most, log, begin = np.load(argv[0]), float(argv[1]), [], time.perf_counter()
    b2.prefs.codegen.target = "cython"
    dt, current = float(data["dt"]) * b2.ms, data["current"].T * b2.nA
    units = {name: OF[kind] for name, kind in KINDS.items()}
    constants = {name: float(data[name]) for name in KINDS if name in data}
    with_units = {name: value * units[name] for name, value in constants.items()}
    fitted = {name: list(data[f"bounds_{name}"] * units[name]) for name in KINDS if f"bounds_{name}" in data}
    fitter = fitting.SpikeFitter(
        model=b2.Equations(
            EQUATIONS + "".join(f"{name} : {KINDS[name]} (constant)\n" for name in fitted),
            **{name: x for name, x in with_units.items() if name in EQUATIONS},
        ),
        input_var="I",
        input=current,
        output=[np.flatnonzero(train) * dt for train in data["spikes"].T],
        dt=dt,
        n_samples=int(data["n_sample"]),
        threshold="v > V_th",
        reset=RESET.format(**constants),
        refractory=with_units["t_ref"],
        method="exponential_euler",
        param_init={"v": with_units["V_rest"], "V_th": "V_th_inf"},
    )

    def log_round(params, errors, best_params, best_error, *rest):
        log.append((time.perf_counter() - begin, float(best_error)))
        return log[-1][0] - log[0][0] > most

    metric = fitting.GammaFactor(delta=float(data["delta"]) * b2.ms, time=len(data["spikes"]) * dt)
    optimizer = fitting.NevergradOptimizer(method="DE")
    best, _ = fitter.fit(n_rounds=10**6, optimizer=optimizer, metric=metric, callback=log_round, **fitted)
    parameters = {name: float(best[name] / units[name]) for name in fitted}
    print(json.dumps(dict(log=[(seconds - log[0][0], error) for seconds, error in log], parameters=parameters)))


if __name__ == "__main__":
    main(sys.argv[1:])
