"""BPTT on the E/I network: time in checkpointed chunks against one plain scan, and memory against the trial's length.

    python tests/benchmarks/bench_ei_bptt.py

The network and task are the script's defaults (n_rec 200, T 2200), with 128 trials, on the same devices for both. In
one process both programs are compiled, and then take turns; each memory is the peak of a process of its own during one
update, above what it had with the program compiled. The arithmetic limit is that of the products of spikes and weights:
one to run the trials, one to run them again, and two in the backward pass, at the rate of one large product. The ratios
come last.
"""

import argparse
import functools
import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import in_turns, memory_above, run_again, seconds_of
from workloads import Compiled, network_gradient

import learning_rules

LENGTHS = (1100, 2200, 4400, 8800)


def gradient(n_step: int, plain: bool, *arguments: Any) -> Compiled:
    """BPTT in trials of n_step, in chunks or in one plain scan; a T other than that of the defaults has three cues."""

    def make_rule(args):
        return functools.partial(learning_rules.bptt, chunk=n_step if plain else None)

    cues = [] if n_step == 2200 else ["--n_cue", 3]
    return network_gradient(make_rule, "--batch_size", 128, *cues, *arguments, n_step=n_step)


def memory(n_step: int, plain: bool) -> float:
    """Peak memory (MB) of one gradient, in a new process."""
    return run_again(__file__, "--memory", n_step, int(plain))


def rate_of_products(n: int = 2048) -> float:
    """Arithmetic operations a second in the product of two matrices (n, n), on all cores; the best of several."""
    x = jnp.ones((n, n))
    program = jax.jit(jnp.matmul).lower(x, x).compile()
    return 2 * n**3 / seconds_of(lambda: jax.block_until_ready(program(x, x)), min)


def operations(n_step: int = 2200, n_trial: int = 128, n_rec: int = 200, n_in: int = 100) -> int:
    """Arithmetic operations of the products of matrices in one gradient, in chunks."""
    of_inputs, recurrent = 2 * n_in * n_rec, 2 * n_rec * n_rec
    return n_trial * n_step * (3 * (of_inputs + recurrent) + recurrent)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", nargs=2, type=int, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.memory:
        n_step, plain = args.memory
        print(json.dumps(memory_above(gradient(n_step, bool(plain)).run)))
        return

    chunked, plain = gradient(2200, False), gradient(2200, True)
    seconds = in_turns(chunked.run, plain.run)
    of_chunked, of_plain = np.median(seconds, axis=0)
    print(f"one update: chunks {of_chunked:.2f} s ({chunked.seconds:.1f} s to compile)", end=", ")
    print(f"plain scan {of_plain:.2f} s ({plain.seconds:.1f} s to compile)")
    low, high = np.quantile(seconds[:, 1] / seconds[:, 0], (0, 1))
    chunks = {n_step: memory(n_step, False) for n_step in LENGTHS}
    whole = memory(2200, True)
    for n_step, megabytes in chunks.items():
        print(f"peak memory, chunks, T = {n_step}: {megabytes:.0f} MB")
    print(f"peak memory, plain scan, T = 2200: {whole:.0f} MB")
    limit, taken = operations() / rate_of_products(), np.median(seconds[:, 0])
    print(f"arithmetic limit: {limit:.2f} s, {limit / taken:.0%} of the time of chunks")
    print(f"memory from T = 1100 to 8800: {chunks[8800] / chunks[1100]:.2f} times")
    print(f"memory of the plain scan: {whole / chunks[2200]:.1f} times that of chunks")
    print(f"time of the plain scan: {of_plain / of_chunked:.2f} times that of chunks ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
