"""Simulation of the E/I network: event-driven sparse connections against all to all, time and memory.

    python tests/benchmarks/bench_ei_sim.py [--large]

n_rec 4000, 16 trials of 2200 ms; each simulation runs in a process of its own, on one device and on all of them. For
time the faster counts, and for memory that on one device. `--large` adds rand at n_rec 20000. Memory is that of the
arrays, which are the weights and what the program holds on a device (|W|, connections, states, activity); and the peak
of the process above what it had after simulating 40 neurons, which has more. The ratios come last.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from common import memory_above, run_again
from workloads import network, task_script


def simulate(conn_method: str, n_rec: int, devices: str) -> dict[str, Any]:
    """Seconds, rates (Hz) and memory (MB) of a simulation in a new process, which are printed too."""
    result = run_again(__file__, "--simulate", conn_method, n_rec, devices)
    print(f"{conn_method}, n_rec {n_rec}, devices {devices}: {result['run']:.2f} s", end=" ")
    print(f"({result['run'] / 2.2:.2f} s per simulated second), {result['compile']:.1f} s to compile", end=", ")
    print(f"E {result['rates'][0]:.2f} Hz, I {result['rates'][1]:.2f} Hz", end=", ")
    print(f"arrays {result['arrays']:.0f} MB, process {result['process']:.0f} MB", flush=True)
    return result


def print_simulation(conn_method: str, n_rec: str, devices: str) -> None:
    """Simulate, after 40 neurons, the network of n_rec neurons, and print what `simulate` returns."""
    arguments = "--mode", "sim", "--conn_method", conn_method, "--batch_size", 16, "--devices", devices
    result = {}

    def run(n_rec):
        simulated = network(*arguments, "--n_rec", n_rec)
        activity = task_script.simulate(simulated.model, simulated.keys(), simulated.mesh)
        arrays = activity.memory_MB + sum(w.nbytes for w in simulated.model.weights.values()) / 1e6
        rates = (activity.rates.mean(axis=0) * 1000 / simulated.model.task.dt).tolist()
        result.update(activity.seconds | dict(rates=rates, arrays=arrays))

    run(40)
    result["process"] = memory_above(lambda: run(n_rec))
    print(json.dumps(result))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--large", action="store_true", help="also rand at n_rec 20000")
    parser.add_argument("--simulate", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.simulate:
        print_simulation(*args.simulate)
        return

    one, best = {}, {}
    for conn_method in ("rand", "dense"):
        one[conn_method], every = (simulate(conn_method, 4000, devices) for devices in ("0", "all"))
        best[conn_method] = min(one[conn_method]["run"], every["run"])
    if args.large:
        simulate("rand", 20000, "all")
    for what in ("process", "arrays"):
        print(f"memory ({what}) of dense: {one['dense'][what] / one['rand'][what]:.1f} times that of rand")
    print(f"time of dense: {best['dense'] / best['rand']:.1f} times that of rand")


if __name__ == "__main__":
    main()
