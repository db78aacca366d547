"""The HH fit against brian2modelfitting's TraceFitter with Nevergrad's DE, on the traces in data/.

    python tests/benchmarks/bench_brian2modelfitting.py [--n_sample 100] [--rounds 100]

Same cell, bounds, traces, loss (mean squared error of all samples), step and scheme (exponential Euler, 0.01 ms), and
n_sample simulations a round on either side; Brian2 runs its Cython code, in float64 and on one core. The simulations
are timed alone, and with what DE takes to choose them. All clocks start after compilation. brian2modelfitting 0.4 gets
an environment of its own, with the old packages that it needs (Python 3.11 or 3.12), where peer_brian2modelfitting.py
runs. The last line is the ratio of simulations a second. One minute on two cores; run nothing else meanwhile.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

import runs

from common import BRIAN2MODELFITTING, run_peer, seconds_of
from workloads import hh_problem

import fitting


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_sample", type=int, default=100, help="simulations a round")
    parser.add_argument("--rounds", type=int, default=100, help="rounds of brian2modelfitting")
    args = parser.parse_args(argv)
    problem = hh_problem(args.n_sample)
    fitting.minimise(problem, fitting.Search("DE", args.n_sample, n_iter=1))
    problem.reset()
    minimum = fitting.minimise(problem, fitting.Search("DE", args.n_sample, n_iter=args.rounds))
    rate = problem.n_simulations / problem.seconds["run"]
    versions = f"jax {runs.version_of('jax')}, float32, DE of nevergrad {runs.version_of('nevergrad')}"
    print(f"ours, {versions}: {rate:.0f} simulations a second;", end=" ")
    print(f"{minimum.best.loss:.3g} mV^2 after {problem.seconds['run']:.1f} s")
    X = fitting.random_starts(problem, 0)
    alone = args.n_sample / seconds_of(lambda: problem.evaluate(X))
    print(f"ours, simulations alone: {alone:.0f} a second")
    fit = hh_problem(20)
    lowest = fitting.minimise(fit, fitting.Search()).best.loss
    seconds = fit.seconds["run"]
    print(f"ours, 20 starts of L-BFGS-B: {lowest:.2g} mV^2 after {seconds:.1f} s")

    data, bounds = problem.data, problem.study.bounds
    arrays = {f"bounds_{name}": bound.mantissa for name, bound in bounds.items()}
    arrays |= dict(current=data.current, V=data.V, dt=data.dt, n_sample=args.n_sample)
    result = run_peer("peer_brian2modelfitting.py", BRIAN2MODELFITTING, args.rounds, **arrays)
    log, their_alone = result["log"], args.n_sample / result["seconds_a_round"]
    theirs = (len(log) - 1) * args.n_sample / log[-1][0]
    then = [best for t, best in log if t <= seconds][-1]
    print(f"{', '.join(BRIAN2MODELFITTING[:3])}: {theirs:.0f} simulations a second;", end=" ")
    print(f"{then:.3g} mV^2 after {seconds:.1f} s, {log[-1][1]:.3g} mV^2 after {log[-1][0]:.1f} s")
    print(f"{BRIAN2MODELFITTING[0]}, simulations alone: {their_alone:.0f} a second")
    print(f"ratio of simulations a second within DE, ours / theirs: {rate / theirs:.1f}")
    print(f"ratio of losses in equal wall time, theirs / ours: {then / lowest:.3g}")
    print(f"ratio of simulations a second, ours / theirs: {alone / their_alone:.1f}")


if __name__ == "__main__":
    main()
