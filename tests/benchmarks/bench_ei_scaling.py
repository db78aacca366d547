r"""What a gradient of the E/I network costs, by each rule: against the number of neurons, and the length of a trial.

    python tests/benchmarks/bench_ei_scaling.py [--n_rec 100 200 400 800 1600 3200] [--n_step 550 1100 2200 4400 8800]
    python tests/benchmarks/bench_ei_scaling.py --methods expsm_diag --connections rand --n_trial 4 --n_step \
        --n_rec 2000 4000 8000 16000

Seconds of computation for a second of a trial, of 16 trials at a time of 550 steps of 1 ms, all to all and with a tenth
of the connections (`--conn_method rand`); and then, with 200 neurons, against the number of steps. Memory is that of
the compiled program on each device. A law is fitted to each column, by non-negative least squares of the relative
errors: a + b n + c n^2 in neurons, and a + b T^(1/2) + c T in steps; the largest relative error of the law is beside
it. Compilation does not count. A quarter of an hour on two cores.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from common import linear_law, seconds_of
from workloads import network_gradient, task_script

import engines
import learning_rules

N_STEP = 550
BY_NEURONS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "": np.ones_like,
    "n": lambda n: n,
    "n^2": lambda n: n**2,
}
BY_STEPS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {"": np.ones_like, "T^(1/2)": np.sqrt, "T": lambda T: T}


class Cost(NamedTuple):
    """Seconds for a second of a trial, and MB for the trials of a batch."""

    seconds: float
    memory: float


def cost(method: str, conn_method: str, n_rec: int, n_step: int, n_trial: int) -> Cost:
    """Of a gradient of n_trial trials; the fewest seconds of two."""

    def make_rule(args):
        return engines.choose_rule(method, arguments=args)

    arguments = ("--batch_size", n_trial, "--conn_method", conn_method, "--n_rec", n_rec, "--n_cue", 3)
    compiled = network_gradient(make_rule, *arguments, n_step=n_step)
    seconds = seconds_of(compiled.run, min, repeats=2)
    return Cost(seconds / (n_trial * n_step / 1000), task_script.memory_of(compiled.program))


def law(x: Sequence[float], y: Sequence[float], terms: Mapping[str, Callable[[np.ndarray], np.ndarray]]) -> str:
    """The law of y, as text, with its largest relative error."""
    x, y = np.asarray(x, float), np.asarray(y, float)
    factors, error = linear_law(np.stack([term(x) for term in terms.values()], axis=1), y)
    parts = [f"{factor:.2g} {name}".strip() for name, factor in zip(terms, factors, strict=True) if factor]
    return f"{' + '.join(parts)} ({error:.0%})"


def print_costs(name: str, costs: Mapping[int, Cost], terms: Mapping[str, Callable[[np.ndarray], np.ndarray]]) -> None:
    """A column of costs with its laws."""
    for x, (seconds, memory) in costs.items():
        print(f"{name}, {x}: {seconds:.3g} s for a second of a trial, {memory:.3g} MB")
    for i, what in enumerate(Cost._fields):
        print(f"{name}: {what} = {law(list(costs), [row[i] for row in costs.values()], terms)}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_rec", nargs="+", type=int, default=[100, 200, 400, 800, 1600, 3200])
    parser.add_argument("--n_step", nargs="*", type=int, default=[550, 1100, 2200, 4400, 8800])
    parser.add_argument("--methods", nargs="+", choices=learning_rules.RULES, default=list(learning_rules.RULES))
    parser.add_argument("--connections", nargs="+", choices=("dense", "rand"), default=["dense", "rand"])
    parser.add_argument("--n_trial", type=int, default=16)
    args = parser.parse_args(argv)
    for method in args.methods:
        for conn_method in args.connections:
            costs = {n_rec: cost(method, conn_method, n_rec, N_STEP, args.n_trial) for n_rec in args.n_rec}
            print_costs(f"{method}, {conn_method}, n_rec", costs, BY_NEURONS)
        if args.n_step:
            costs = {n_step: cost(method, "dense", 200, n_step, args.n_trial) for n_step in args.n_step}
            print_costs(f"{method}, dense, T", costs, BY_STEPS)


if __name__ == "__main__":
    main()
