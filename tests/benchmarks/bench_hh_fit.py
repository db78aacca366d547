"""How fast the HH fit is: all starts batched against one at a time, and simulations a second.

    python tests/benchmarks/bench_hh_fit.py [--n_sample 100] [--seed 0]

1. Multi-start L-BFGS-B on the recorded traces, batched (forward-mode gradients, all devices) against a serial SciPy
   loop over a reverse-mode gradient of one parameter set, as the paper's release has it. Same starts, same options,
   both compiled beforehand.
2. Simulations a second (5 traces x 1497 steps each) at a batch of n_sample, and the share of the arithmetic limit that
   they reach: XLA's count of operations in a step over the rates of a matrix product and of exponentials here.

The last line is the ratio of the wall times of 1. Two minutes on two cores; run nothing else meanwhile.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

import runs

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from common import seconds_of
from workloads import hh_problem

import fitting
import solvers
import utils


def serial_fit(
    problem: fitting.FitProblem, x0: np.ndarray, options: Mapping[str, float]
) -> tuple[np.ndarray, int, float]:
    """SciPy's L-BFGS-B from each start in turn, over a compiled reverse-mode gradient of one parameter set.

    Returns:
        losses (n,), the number of gradients, and the seconds.
    """
    study, data = problem.study, jax.tree.map(lambda x: jnp.asarray(x, float), problem.data)

    def loss(x, data):
        return study.loss.function(study.model(problem.box.parameters(x), data, 0.0), data)

    gradient = jax.jit(jax.value_and_grad(loss))
    jax.block_until_ready(gradient(jnp.asarray(x0[0], float), data))  # compile
    n_gradients = 0

    def loss_and_grad(x):
        nonlocal n_gradients
        n_gradients += 1
        loss, grad = gradient(jnp.asarray(x, float), data)
        return float(loss), np.asarray(grad, np.float64)

    box = [(0.0, 1.0)] * x0.shape[1]
    start = time.perf_counter()
    arguments = dict(jac=True, method="L-BFGS-B", bounds=box, options=options)
    losses = [scipy.optimize.minimize(loss_and_grad, x, **arguments).fun for x in x0]
    return np.array(losses), n_gradients, time.perf_counter() - start


def peak_rates() -> tuple[float, float]:
    """Floating-point operations and exponentials a second that this machine does in float32, on all cores."""
    n, n_step = 2048, 1000
    matrix, x = jnp.ones((n, n), jnp.float32), jnp.ones((len(jax.devices()), 2000), jnp.float32)
    square = jax.jit(lambda a: a @ a)
    exponentials = jax.pmap(lambda x: jax.lax.fori_loop(0, n_step, lambda _, x: jnp.exp(-x), x))
    seconds = [
        seconds_of(lambda run=run, x=x: run(x).block_until_ready(), np.min)
        for run, x in ((square, matrix), (exponentials, x))
    ]
    return 2 * n**3 / seconds[0], n_step * x.size / seconds[1]


def operations_a_step() -> tuple[float, float]:
    """XLA's count of operations and exponentials in one step of one cell."""

    def step(V, m, h, n, I):
        cell = utils.HH(1)
        cell.init_state()
        cell.V.value, cell.m.value, cell.h.value, cell.n.value = V * u.mV, m, h, n
        cell.update(I * u.nA)
        return cell.V.value.to_decimal(u.mV), cell.m.value, cell.h.value, cell.n.value

    with brainstate.environ.context(dt=0.01 * u.ms):
        cost = jax.jit(step).lower(*[jnp.ones(1)] * 5).compile().cost_analysis()
    return cost["flops"], cost["transcendentals"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_sample", type=int, default=100, help="starts, and batch of the simulations")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    problem = hh_problem(args.n_sample)
    x0 = fitting.random_starts(problem, args.seed)
    for n in (1, args.n_sample):  # compile both block sizes
        problem.evaluate(x0[:n], "gradients")
    print(f"{args.n_sample} starts on {problem.mesh.size} devices, jax {runs.version_of('jax')}", end="; ")
    print(f"compiled in {problem.seconds['compile']:.1f} s")

    start, before = time.perf_counter(), problem.n_gradients
    starts = fitting.multistart(problem, x0).starts
    seconds, n_gradients = time.perf_counter() - start, problem.n_gradients - before
    batched = np.array([start.loss for start in starts])
    print(f"batched: {seconds:.1f} s, {n_gradients} gradients, {n_gradients / seconds:.0f} a second")

    rate = args.n_sample / seconds_of(lambda: problem.evaluate(x0))
    (flops, exps), (peak_flops, peak_exps) = operations_a_step(), peak_rates()
    limit = 1 / (problem.data.V.size * (flops / peak_flops + exps / peak_exps))
    print(f"simulations: {rate:.0f} a second at batch {args.n_sample}, {rate / limit:.0%} of the arithmetic limit")
    print(f"  limit {limit:.0f}: {flops:.0f} operations and {exps:.0f} exponentials a step and cell, at")
    print(f"  {peak_flops / 1e9:.0f} GFLOP/s (matrix product) and {peak_exps / 1e9:.2f} billion exp/s")

    serial, n_serial, serial_seconds = serial_fit(problem, x0, solvers.LBFGSB_OPTIONS)
    print(f"serial: {serial_seconds:.1f} s, {n_serial} gradients, {n_serial / serial_seconds:.0f} a second")
    print(f"best loss: batched {batched.min():.3g}, serial {serial.min():.3g}")
    print(f"starts below 1e-3 mV^2: batched {np.mean(batched < 1e-3):.2f}, serial {np.mean(serial < 1e-3):.2f}")
    close = np.isclose(batched, serial, rtol=0.01, atol=1e-6)
    print(f"starts with the same final loss (1 % or 1e-6 mV^2): {close.mean():.2f}")
    print(f"ratio of wall times, serial / batched: {serial_seconds / seconds:.1f}")


if __name__ == "__main__":
    main()
