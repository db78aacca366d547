"""BPTT on the E/I network: time in checkpointed chunks against one plain scan, and memory against the trial's length.

    python tests/benchmarks/bench_ei_bptt.py

The network, task and batch are the script's defaults (n_rec 200, T 2200, batch 128), on the same devices for both. In
one process both programs are compiled, and then take turns; each memory is the peak of a process of its own during one
update, above what it had with the program compiled. The ratios come last.
"""

import argparse
import functools
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from common import in_turns, memory_above, run_again
from workloads import Compiled, network_gradient

import learning_rules

LENGTHS = (1100, 2200, 4400, 8800)


def gradient(n_step: int, plain: bool, *arguments: Any) -> Compiled:
    """BPTT in trials of n_step, in chunks or in one plain scan; a T other than that of the defaults has three cues."""

    def make_rule(args):
        return functools.partial(learning_rules.bptt, chunk=n_step if plain else None)

    cues = [] if n_step == 2200 else ["--n_cue", 3]
    return network_gradient(make_rule, *cues, *arguments, n_step=n_step)


def memory(n_step: int, plain: bool) -> float:
    """Peak memory (MB) of one gradient, in a new process."""
    return run_again(__file__, "--memory", n_step, int(plain))


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
    print(f"memory from T = 1100 to 8800: {chunks[8800] / chunks[1100]:.2f} times")
    print(f"memory of the plain scan: {whole / chunks[2200]:.1f} times that of chunks")
    print(f"time of the plain scan: {of_plain / of_chunked:.2f} times that of chunks ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
