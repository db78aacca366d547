"""Gradients a second of the HH fit against jaxley, for a batch of 100 parameter sets on the traces in data/.

    python tests/benchmarks/bench_jaxley.py [--n_sample 100]

The same single-compartment cell (jaxley's Pospischil channels; 0.2 nF, gates at 0), loss, step (0.01 ms), precision
(float32) and devices. jaxley is run with its default solver, backward Euler (version 0.14.0 cannot do exponential Euler
with a single compartment), in reverse and in forward mode, as one compiled vmap over sets and traces, its batch split
over the same devices; the better of the two counts. Jaxley gets an environment of its own, where peer_jaxley.py runs.
The last line is the ratio. Two minutes on two cores; run nothing else meanwhile.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

import runs

import numpy as np
from common import run_peer, seconds_of
from workloads import hh_parameters, hh_problem

import fitting

REQUIREMENTS = ["jaxley==0.14.0", "jax==0.10.2"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_sample", type=int, default=100, help="parameter sets in the batch")
    args = parser.parse_args(argv)
    problem = hh_problem(args.n_sample)
    X, data, box, known = fitting.random_starts(problem, 0), problem.data, problem.box, hh_parameters()
    X[0] = (np.array([known[name] for name in box.units]) - box.low) / (box.high - box.low)
    rmse = float(np.sqrt(problem.evaluate(X)[0]))
    rate = args.n_sample / seconds_of(lambda: problem.evaluate(X, "gradients"), repeats=5)
    version = runs.version_of("jax")
    print(f"ours, jax {version}: {rate:.0f} gradients a second; {rmse:.2g} mV from Brian2 at its parameters")

    sets = box.low + X * (box.high - box.low)
    arrays = dict(current=data.current, V=data.V, sets=sets, dt=data.dt)
    result = run_peer("peer_jaxley.py", REQUIREMENTS, **arrays)
    for name, value in result["rates"].items():
        distance = result["rmse"][name.split(",")[0]]
        print(f"{result['versions']}, {name}: {value:.1f} gradients a second; {distance:.2g} mV from Brian2")
    print(f"ratio of gradients a second, ours / jaxley's best: {rate / max(result['rates'].values()):.1f}")


if __name__ == "__main__":
    main()
