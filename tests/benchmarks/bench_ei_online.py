"""Online learning on the E/I network: time and memory of its rules against BPTT, and against those of brainscale.

    python tests/benchmarks/bench_ei_online.py

The network, task and batch are the script's defaults (n_rec 200, T 2200, batch 128). All programs are compiled in one
process and take turns; brainscale's diag, of which a batch takes minutes, has 16 trials and fewer turns, as has ours
beside it. Memory is that of the compiled program, and the peak of a process of its own during one gradient, above what
it had with the program compiled; both with one device, as with several the runtime of XLA on a CPU takes memory that
grows with the number of steps, beside that of the program (in diag, 3 kB a step). The ratios come last.
"""

import json
import os
import subprocess
import sys

import numpy as np
from common import in_turns, memory_above, network_gradient, network_script

LENGTHS = (2200, 8800)


def gradient(method, *arguments, engine="native", n_step=2200):
    return network_gradient(lambda script, args: script.choose_rule(args, method, engine), *arguments, n_step=n_step)


def memory(method, n_step, *arguments):
    """Peak memory (MB) of one gradient in a new process with one device, and that of its program."""
    command = [sys.executable, __file__, "--memory", method, str(n_step), *map(str, arguments)]
    environment = dict(os.environ, JAX_NUM_CPU_DEVICES="1")
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def print_memory(method, n_step, *arguments):
    function, program, _ = gradient(method, *arguments, n_step=int(n_step))
    from importlib import import_module

    print(json.dumps([memory_above(function), import_module("task-coba-ei-rsnn").memory_of(program)]))


def trace_bytes(conn_method, n_rec):
    """Bytes of the traces of one trial, of V and I2 for every weight but those of the readout."""
    script, args, _ = network_script("--conn_method", conn_method, "--n_rec", n_rec)
    weights = script.make_model(args)[2]
    return sum(2 * weights[name].nbytes for name in learning_rules.CONDUCTANCE)


def main():
    names = [("bptt", "native"), ("diag", "native"), ("expsm_diag", "native"), ("expsm_diag", "brainscale")]
    functions, _, compiled = zip(*(gradient(method, engine=engine) for method, engine in names), strict=True)
    seconds = in_turns(*functions)
    for (method, engine), of_rule, to_compile in zip(names, seconds.T, compiled, strict=True):
        print(f"{method}, {engine}, batch 128: {np.median(of_rule):.3f} s ({to_compile:.1f} s to compile)", flush=True)
    small = [gradient("diag", "--batch_size", 16, engine=engine)[0] for engine in ("native", "brainscale")]
    of_16 = np.median(in_turns(*small, repeats=2), axis=0)
    print(f"diag, batch 16: native {of_16[0]:.3f} s, brainscale {of_16[1]:.1f} s", flush=True)
    found = {(method, n): memory(method, n) for method in ("bptt", "diag", "expsm_diag") for n in LENGTHS}
    for (method, n_step), (process, program) in found.items():
        print(f"memory of {method}, T = {n_step}: process {process:.0f} MB, program {program:.2f} MB")
    sparse = {conn: memory("diag", 2200, "--n_rec", 400, "--conn_method", conn) for conn in ("dense", "rand")}
    for conn, (process, program) in sparse.items():
        traces = trace_bytes(conn, 400)
        print(f"memory of diag, {conn}, n_rec 400: process {process:.0f} MB, program {program:.1f} MB", end=", ")
        print(f"traces {traces / 1e6:.2f} MB a trial")
    for method in ("diag", "expsm_diag"):
        for i, what in enumerate(("process", "program")):
            ratio = found[method, LENGTHS[1]][i] / found[method, LENGTHS[0]][i]
            print(f"memory ({what}) of {method} at T = {LENGTHS[1]}: {ratio:.3f} times that at {LENGTHS[0]}")
    print(f"traces of rand: {trace_bytes('rand', 400) / trace_bytes('dense', 400):.3f} times those of dense")
    bptt, diag, expsm, their_expsm = seconds.T
    for what, one, other in (
        ("time of diag: {} times that of bptt", diag, bptt),
        ("time of expsm_diag: {} times that of bptt", expsm, bptt),
        ("time of brainscale's expsm_diag: {} times that of ours", their_expsm, expsm),
    ):
        low, middle, high = np.quantile(one / other, (0, 0.5, 1))
        print(what.format(f"{middle:.2f} ({low:.2f} to {high:.2f})"))
    print(
        f"time a trial of brainscale's diag (batch 16): {of_16[1] / of_16[0]:.0f} times that of ours at batch 16",
        end=", ",
    )
    print(f"{of_16[1] / 16 / (np.median(diag) / 128):.0f} times that of ours at batch 128")


if __name__ == "__main__":
    if "--memory" in sys.argv:
        print_memory(*sys.argv[2:])
    else:
        main()
