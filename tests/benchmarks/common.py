"""What the benchmarks share: the HH fit, the E/I network, time and memory, and peers in environments of their own."""

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "differentiable-brain-modeling")


def hh_problem(n_sample):
    """The HH fit of the script without arguments as a FitProblem with programs for n_sample parameter sets."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    import neuron_fitting_of_hh_model as script

    sys.argv = ["benchmark"]
    args = script.parse_args()
    devices = runs.setup_jax(args)
    data = recordings.make_targets(args, recordings.read_recordings(args, script.SHIPPED), None, None, 0)["fit"]
    loss, _ = script.make_loss(args, len(data["V"]))
    bounds = fitting.select_bounds(args, script.RANGES)
    return fitting.FitProblem(script.make_model(args.dt), loss, bounds, data, n_sample, devices)


def seconds_of(function, summary=np.median, repeats=15):
    """Summary of the seconds that repeated calls of function take, after a first one that does not count."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(summary(times))


def python_with(requirements):
    """The interpreter of a virtual environment with these requirements, made if it is not there."""
    folder = CACHE / "-".join(text.replace("/", "_") for text in requirements)
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"installing {', '.join(requirements)} in {folder}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "-q", *requirements], check=True)
        (folder / "complete").touch()
    return python


def run_peer(script, requirements, *arguments, **arrays):
    """Run `script --peer FILE` there: it reads the arrays and `arguments` and prints, as its last line, JSON."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arrays.npz"
        np.savez(path, **arrays)
        command = [str(python_with(requirements)), script, "--peer", str(path), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def network_script(*arguments):
    """The module of task-coba-ei-rsnn.py, its arguments and a mesh of the devices they split a batch over."""
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    import brainstate
    import brainunit as u
    import jax

    script = importlib.import_module("task-coba-ei-rsnn")
    sys.argv = [script.__file__, *map(str, arguments)]
    args = script.parse_args()
    devices = script.split_devices(args, runs.setup_jax(args))
    brainstate.environ.set(dt=args.dt * u.ms)
    return script, args, jax.sharding.Mesh(np.array(devices), ("batch",))


def network_gradient(make_rule, *arguments, n_step=2200):
    """A function that computes the gradient of a batch, its compiled program, and the seconds to compile it.

    The network, task and batch are those of the script's arguments, with a delay that makes trials of n_step, by the
    rule make_rule(script, args).
    """
    script, args, mesh = network_script(*arguments)
    import jax

    args.t_delay += (n_step - script.make_model(args)[0].n_step) * args.dt
    task, network, weights, connections = script.make_model(args)
    assert task.n_step == n_step
    keys = jax.random.split(jax.random.key(0), args.batch_size)
    start = time.perf_counter()
    gradient = script.make_gradient(make_rule(script, args), task, network, mesh)
    program = jax.jit(gradient).lower(weights, connections, keys).compile()
    seconds = time.perf_counter() - start
    return lambda: jax.block_until_ready(program(weights, connections, keys)), program, seconds


def in_turns(*functions, repeats=7):
    """Seconds (repeats, number of functions) of calls in turns, after a first one of each that does not count."""
    seconds = np.zeros((repeats + 1, len(functions)))
    for row in seconds:
        for i, function in enumerate(functions):
            start = time.perf_counter()
            function()
            row[i] = time.perf_counter() - start
    return seconds[1:]


def memory_above(function):
    """Peak memory (MB) of this process in a call of function, above what it has before it. On Linux."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak

    def status(name):
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) / 1024

    before = status("VmRSS")
    function()
    return status("VmHWM") - before
