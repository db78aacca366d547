"""The HH fit against brian2modelfitting's TraceFitter with Nevergrad's DE, on the traces in data/.

    python tests/benchmarks/bench_brian2modelfitting.py [--n_sample 100] [--rounds 100]

Same cell, bounds, traces, loss (mean squared error of all samples), step and scheme (exponential Euler, 0.01 ms), and
n_sample simulations a round on either side; Brian2 runs its Cython code, in float64 and on one core. The simulations
are timed alone, and with what DE takes to choose them. All clocks start after compilation. brian2modelfitting 0.4 gets
an environment of its own, with the old packages that it needs (Python 3.11 or 3.12). The last line is the ratio of
simulations a second. One minute on two cores; run nothing else meanwhile.
"""

import argparse
import json
import time

from common import hh_problem, run_peer, seconds_of

REQUIREMENTS = ["brian2modelfitting==0.4", "brian2==2.9.0", "nevergrad==0.3.0", "bayesian-optimization==1.4.3"]
REQUIREMENTS += ["numpy==1.26.4", "setuptools<81"]
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

# ---- brian2modelfitting, in its own environment ---------------------------------------------------------------------


def peer(path, rounds):
    import numpy as np

    np.float, np.int, np.bool = float, int, bool  # aliases of nevergrad 0.3.0  # noqa: NPY001
    import brian2 as b2
    import brian2modelfitting as fitting

    b2.prefs.codegen.target = "cython"
    data, log, begin = np.load(path), [], time.perf_counter()
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

    def record(params, errors, best_params, best_error, *rest):
        log.append((time.perf_counter() - begin, float(best_error) * 1e6))  # V^2 to mV^2

    units = dict(gL=b2.uS, gNa=b2.uS, gK=b2.uS, V_T=b2.mV)
    bounds = {name: list(data[f"bounds_{name}"] * unit) for name, unit in units.items()}
    optimizer = fitting.NevergradOptimizer(method="DE")
    fitter.fit(n_rounds=rounds, optimizer=optimizer, metric=fitting.MSEMetric(), callback=record, **bounds)
    log = [(seconds - log[0][0], loss) for seconds, loss in log]
    print(json.dumps(dict(log=log, seconds_a_round=float(np.median(simulating[1:])))))


# ---- ours -----------------------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_sample", type=int, default=100, help="simulations a round")
    parser.add_argument("--rounds", type=int, default=100, help="rounds of brian2modelfitting")
    parser.add_argument("--peer", nargs=2, help=argparse.SUPPRESS)
    ours = parser.parse_args()
    if ours.peer:
        return peer(ours.peer[0], int(ours.peer[1]))

    problem = hh_problem(ours.n_sample)
    import jax
    import nevergrad


    fitting.minimise(problem, "DE", 1, 0)
    problem.reset()
    fitting.minimise(problem, "DE", ours.rounds, 0)
    rate = problem.n_simulations / problem.seconds["run"]
    print(
        f"ours, jax {jax.__version__}, float32, DE of nevergrad {nevergrad.__version__}: {rate:.0f} simulations a",
        end="",
    )
    print(f" second; {problem.best_loss:.3g} mV^2 after {problem.seconds['run']:.1f} s")
    X = fitting.random_starts(problem, 0)
    alone = ours.n_sample / seconds_of(lambda: problem.evaluate(X))
    print(f"ours, simulations alone: {alone:.0f} a second")
    fit = hh_problem(20)
    fitting.minimise(fit, "L-BFGS-B", 1, 0)
    seconds = fit.seconds["run"]
    print(f"ours, 20 starts of L-BFGS-B: {fit.best_loss:.2g} mV^2 after {seconds:.1f} s")

    arrays = {f"bounds_{name}": bound.mantissa for name, bound in problem.bounds.items()}
    arrays |= dict(current=problem.data["current"], V=problem.data["V"], dt=0.01, n_sample=ours.n_sample)
    result = run_peer(__file__, REQUIREMENTS, ours.rounds, **arrays)
    log, their_alone = result["log"], ours.n_sample / result["seconds_a_round"]
    theirs = (len(log) - 1) * ours.n_sample / log[-1][0]
    then = [best for t, best in log if t <= seconds][-1]
    print(f"{', '.join(REQUIREMENTS[:3])}: {theirs:.0f} simulations a second;", end=" ")
    print(f"{then:.3g} mV^2 after {seconds:.1f} s, {log[-1][1]:.3g} mV^2 after {log[-1][0]:.1f} s")
    print(f"{REQUIREMENTS[0]}, simulations alone: {their_alone:.0f} a second")
    print(f"ratio of simulations a second within DE, ours / theirs: {rate / theirs:.1f}")
    print(f"ratio of losses in equal wall time, theirs / ours: {then / fit.best_loss:.3g}")
    print(f"ratio of simulations a second, ours / theirs: {alone / their_alone:.1f}")
    return 0


if __name__ == "__main__":
    main()
