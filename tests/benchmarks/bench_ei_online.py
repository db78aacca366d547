"""Online learning on the E/I network: time and memory of its rules against BPTT, and against those of other packages.

    python tests/benchmarks/bench_ei_online.py

The network and task are the script's defaults (n_rec 200, T 2200), with 128 trials. All programs are compiled in one
process and take turns. The packages are brainscale and braintrace, as far as they can be imported; their diag, of which
a batch takes minutes, has 16 trials and fewer turns, as has ours beside it. Memory is that of the compiled program, and
the peak of a process of its own during one gradient, above what it had with the program compiled; both with one device,
as with several the runtime of XLA on a CPU takes memory that grows with the number of steps, beside that of the program
(in diag, 3 kB a step). The ratios come last.
"""

import argparse
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from common import in_turns, memory_above, run_again
from workloads import Compiled, network, network_gradient, task_script

import engines
import learning_rules

LENGTHS = (2200, 8800)


def gradient(method: str, *arguments: Any, engine: str = "native", n_step: int = 2200) -> Compiled:
    """The gradient by a rule of that name and engine, in trials of n_step."""
    return network_gradient(
        lambda args: engines.choose_rule(method, engine, args), "--batch_size", 128, *arguments, n_step=n_step
    )


def memory(method: str, n_step: int, *arguments: Any) -> tuple[float, float]:
    """Peak memory (MB) of one gradient in a new process with one device, and that of its program."""
    process, program = run_again(__file__, "--memory", method, n_step, *arguments, JAX_NUM_CPU_DEVICES="1")
    return process, program


def print_memory(method: str, n_step: str, *arguments: str) -> None:
    """Print what `memory` returns."""
    compiled = gradient(method, *arguments, n_step=int(n_step))
    print(json.dumps([memory_above(compiled.run), task_script.memory_of(compiled.program)]))


def trace_bytes(conn_method: str, n_rec: int) -> int:
    """Bytes of the traces of one trial, of V and I2 for every weight but those of the readout."""
    weights = network("--conn_method", conn_method, "--n_rec", n_rec).model.weights
    return sum(2 * weights[name].nbytes for name in learning_rules.CONDUCTANCE)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.memory:
        print_memory(*args.memory)
        return

    packages = [package for package in engines.PACKAGES if engines.why_not(package) is None]
    names = [("bptt", "native"), ("diag", "native"), ("expsm_diag", "native")]
    names += [("expsm_diag", package) for package in packages]
    compiled = {name: gradient(name[0], engine=name[1]) for name in names}
    turns = in_turns(*(program.run for program in compiled.values()))
    seconds = dict(zip(names, turns.T, strict=True))
    for (method, engine), of_rule in seconds.items():
        to_compile = compiled[method, engine].seconds
        print(f"{method}, {engine}, batch 128: {np.median(of_rule):.3f} s ({to_compile:.1f} s to compile)", flush=True)
    with_ours = ["native", *packages]
    small = [gradient("diag", "--batch_size", 16, engine=engine).run for engine in with_ours]
    of_16 = dict(zip(with_ours, np.median(in_turns(*small, repeats=2), axis=0), strict=True))
    listed = ", ".join(f"{engine} {of_engine:.3f} s" for engine, of_engine in of_16.items())
    print(f"diag, batch 16: {listed}", flush=True)
    peaks = {(method, n): memory(method, n) for method in ("bptt", "diag", "expsm_diag") for n in LENGTHS}
    for (method, n_step), (process, program) in peaks.items():
        print(f"memory of {method}, T = {n_step}: process {process:.0f} MB, program {program:.2f} MB")
    sparse = {conn: memory("diag", 2200, "--n_rec", 400, "--conn_method", conn) for conn in ("dense", "rand")}
    for conn, (process, program) in sparse.items():
        traces = trace_bytes(conn, 400)
        print(f"memory of diag, {conn}, n_rec 400: process {process:.0f} MB, program {program:.1f} MB", end=", ")
        print(f"traces {traces / 1e6:.2f} MB a trial")
    for method in ("diag", "expsm_diag"):
        for i, what in enumerate(("process", "program")):
            ratio = peaks[method, LENGTHS[1]][i] / peaks[method, LENGTHS[0]][i]
            print(f"memory ({what}) of {method} at T = {LENGTHS[1]}: {ratio:.3f} times that at {LENGTHS[0]}")
    print(f"traces of rand: {trace_bytes('rand', 400) / trace_bytes('dense', 400):.3f} times those of dense")
    bptt, diag, expsm = (seconds[name] for name in names[:3])
    ratios = {"time of diag: {} times that of bptt": diag / bptt}
    ratios["time of expsm_diag: {} times that of bptt"] = expsm / bptt
    for package in packages:
        ratios[f"time of {package}'s expsm_diag: {{}} times that of ours"] = seconds["expsm_diag", package] / expsm
    for text, ratio in ratios.items():
        low, middle, high = np.quantile(ratio, (0, 0.5, 1))
        print(text.format(f"{middle:.2f} ({low:.2f} to {high:.2f})"))
    for package in packages:
        ratio = of_16[package] / of_16["native"]
        print(f"time a trial of {package}'s diag (batch 16): {ratio:.0f} times that of ours at batch 16", end=", ")
        print(f"{of_16[package] / 16 / (np.median(diag) / 128):.0f} times that of ours at batch 128")


if __name__ == "__main__":
    main()
