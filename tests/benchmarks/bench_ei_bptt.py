"""BPTT on the E/I network: time in checkpointed chunks against one plain scan, and memory against the trial's length.

    python tests/benchmarks/bench_ei_bptt.py

The network, task and batch are the script's defaults (n_rec 200, T 2200, batch 128), on the same devices for both. In
one process both programs are compiled, and then take turns; each memory is the peak of a process of its own during one
update, above what it had with the program compiled. The ratios come last.
"""

import functools
import json
import subprocess
import sys

import numpy as np
from common import in_turns, memory_above, network_gradient

LENGTHS = (1100, 2200, 4400, 8800)


def gradient(n_step, plain):
    def make_rule(script, args):
        return functools.partial(learning_rules.bptt, chunk=n_step if plain else None)

    return network_gradient(make_rule, *([] if n_step == 2200 else ["--n_cue", 3]), n_step=n_step)


def memory(n_step, plain):
    """Peak memory (MB) of one gradient, measured in a new process."""
    command = [sys.executable, __file__, "--memory", str(n_step), str(int(plain))]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_memory(n_step, plain):
    print(json.dumps(memory_above(gradient(n_step, plain)[0])))


def main():
    (chunked, _, compile_chunked), (plain, _, compile_plain) = gradient(2200, False), gradient(2200, True)
    seconds = in_turns(chunked, plain)
    chunked, plain = np.median(seconds, axis=0)
    print(f"one update: chunks {chunked:.2f} s ({compile_chunked:.1f} s to compile)", end=", ")
    print(f"plain scan {plain:.2f} s ({compile_plain:.1f} s to compile)")
    low, high = np.quantile(seconds[:, 1] / seconds[:, 0], (0, 1))
    chunks = {n_step: memory(n_step, False) for n_step in LENGTHS}
    whole = memory(2200, True)
    for n_step, megabytes in chunks.items():
        print(f"peak memory, chunks, T = {n_step}: {megabytes:.0f} MB")
    print(f"peak memory, plain scan, T = 2200: {whole:.0f} MB")
    print(f"memory from T = 1100 to 8800: {chunks[8800] / chunks[1100]:.2f} times")
    print(f"memory of the plain scan: {whole / chunks[2200]:.1f} times that of chunks")
    print(f"time of the plain scan: {plain / chunked:.2f} times that of chunks ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    if "--memory" in sys.argv:
        print_memory(*map(int, sys.argv[2:4]))
    else:
        main()
