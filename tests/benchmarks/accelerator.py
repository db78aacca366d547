"""What a GPU or TPU does here: the same gradients as a CPU, all three scripts, and how fast networks train on it.

    python tests/benchmarks/accelerator.py [--batch_size 32 128 512 2048] [--n_rec 200 800 3200]

One command for whoever has one; with JAX_PLATFORMS=cpu it compares the CPU with itself. First the gradient of a batch
by each rule, on the accelerator and on a CPU of the same process, in both precisions: the relative error of each block
of weights, which is marked where it is above 1e-5 in 32 and 1e-8 in 64 bits. Then each script, with its defaults but
fewer updates of the network. Then, by each rule, milliseconds and memory of a gradient of the paper's network and task
(2200 steps) against the size of the batch, and of 128 trials against the number of neurons. Compilation is reported
apart, and trials whose traces the online rules have at a time are all of a batch that 16 GB have room for.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

import runs  # noqa: F401 - before JAX

import jax
import numpy as np
from common import seconds_of
from workloads import ROOT, network, network_gradient, task_script

import engines
import learning_rules

TOLERANCE = {32: 1e-5, 64: 1e-8}
SMALL = ("--n_rec", 40, "--n_cue", 3, "--t_delay", 100, "--ff_scale", 5, "--batch_size", 8)
SCRIPTS: Mapping[str, Sequence[str]] = {
    "neuron_fitting_of_hh_model": (),
    "neuron_fitting_of_gif_model": ("--protocol", "identifiable"),
    "task-coba-ei-rsnn": ("--epochs", "20"),
}
TRACE_BYTES = 16e9


def gradients_on(device: jax.Device, precision: int) -> dict[str, dict[str, np.ndarray]]:
    """{rule: gradient} of a small network, computed on a device."""
    with jax.default_device(device):
        of_network = network(*SMALL, "--precision", precision)
        model, keys = jax.device_put((of_network.model, of_network.keys()), device)
        rules = {method: engines.choose_rule(method, arguments=of_network.args) for method in learning_rules.RULES}
        return {method: jax.device_get(jax.jit(rule)(model, keys).gradient) for method, rule in rules.items()}


def print_errors(precision: int) -> None:
    """How far the gradients of the accelerator are from those of the CPU."""
    ours, cpu = (gradients_on(device, precision) for device in (jax.devices()[0], jax.devices("cpu")[0]))
    for method, gradient in ours.items():
        errors = {n: np.linalg.norm(g - cpu[method][n]) / np.linalg.norm(cpu[method][n]) for n, g in gradient.items()}
        worst = max(errors.values())
        marked = "" if worst <= TOLERANCE[precision] else f"  ABOVE {TOLERANCE[precision]:g}"
        print(f"{precision} bits, {method:10}", *(f"{name} {e:.1e}" for name, e in errors.items()), marked, flush=True)


def print_scripts() -> None:
    """Seconds of each script, as it says them itself."""
    with tempfile.TemporaryDirectory() as folder:
        for script, arguments in SCRIPTS.items():
            output, start = Path(folder, script), time.perf_counter()
            command = [sys.executable, ROOT / f"{script}.py", *arguments, "--output", output]
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
            wall = time.perf_counter() - start
            if done.returncode:
                print(f"{script}: FAILED: {done.stderr[-300:]}", flush=True)
                continue
            result = json.loads((output / "result.json").read_text())
            seconds = "{run:.1f} s to run, {compile:.1f} s to compile".format(**result["seconds"])
            loss = result.get("loss", result.get("heldout_accuracy"))
            print(f"{script} {' '.join(arguments)}: {seconds}, {wall:.1f} s in all; {loss:.4g}", flush=True)


def at_a_time(method: str, n_rec: int, batch_size: int) -> dict[str, int]:
    """The argument of an online rule that says how many trials it has at a time."""
    arguments = {"diag": ("trace_batch", 8 * n_rec * (n_rec + 100)), "expsm_diag": ("etrace_batch", 5000 * n_rec)}
    if method not in arguments:
        return {}
    name, trial_bytes = arguments[method]
    return {name: int(min(batch_size, TRACE_BYTES / trial_bytes))}


def print_cost(method: str, n_rec: int, batch_size: int) -> None:
    """Milliseconds and MB of a gradient."""

    def make_rule(args):
        return engines.choose_rule(method, arguments=args | at_a_time(method, n_rec, batch_size))

    try:
        compiled = network_gradient(make_rule, "--batch_size", batch_size, "--n_rec", n_rec, "--devices", 0)
        seconds = seconds_of(compiled.run, min, repeats=2)
    except jax.errors.JaxRuntimeError as error:
        print(f"| {method} | {n_rec} | {batch_size} | {str(error).splitlines()[0][:80]} | | | |", flush=True)
        return
    memory = task_script.memory_of(compiled.program)
    row = f"{1000 * seconds:.0f} | {batch_size / seconds:.0f} | {memory:.0f} | {compiled.seconds:.0f}"
    print(f"| {method} | {n_rec} | {batch_size} | {row} |", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", nargs="+", type=int, default=[32, 128, 512, 2048])
    parser.add_argument("--n_rec", nargs="+", type=int, default=[200, 800, 3200])
    args = parser.parse_args(argv)
    device = jax.devices()[0]
    print(f"{device} ({device.device_kind}), JAX {jax.__version__}", flush=True)
    for precision in TOLERANCE:
        print_errors(precision)
    print_scripts()
    print("| rule | n_rec | trials | ms | trials a second | MB | s to compile |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for method in learning_rules.RULES:
        for batch_size in args.batch_size:
            print_cost(method, 200, batch_size)
        for n_rec in args.n_rec:
            if n_rec != 200:
                print_cost(method, n_rec, 128)


if __name__ == "__main__":
    main()
