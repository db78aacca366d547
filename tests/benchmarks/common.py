"""What the benchmarks and their peers share: time and memory of calls, and peers in environments of their own."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "differentiable-brain-modeling")
BRIAN2MODELFITTING = ["brian2modelfitting==0.4", "brian2==2.9.0", "nevergrad==0.3.0", "bayesian-optimization==1.4.3"]
BRIAN2MODELFITTING += ["numpy==1.26.4", "setuptools<81"]


def seconds_of(
    function: Callable[[], Any], summary: Callable[[list[float]], float] = np.median, repeats: int = 15
) -> float:
    """Summary of the seconds that repeated calls of function take, after a first one that does not count."""
    function()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return float(summary(times))


def fit(script: str, arguments: str, seed: int, folder: Path) -> dict[str, Any]:
    """result.json of a fit by a script, run as a user would from the root of the repository."""
    command = [sys.executable, script, *arguments.split(), "--seed", str(seed), "--output", str(folder)]
    subprocess.run(command, cwd=Path(__file__).resolve().parents[2], check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "result.json").read_text())


def multi_scale_network(tau_syn: float = 200, larger: float = 1.0) -> str:
    """Arguments of the README's multi-scale network, but for its neurons and how long it is trained.

    Its synapses decay in tau_syn (ms), and its weights may be so many times larger.
    """
    network = f"--conn_method data/connectome.csv --t_delay 250 --tau_syn {tau_syn:g} --ff_scale {larger * 0.005:g}"
    return f"{network} --rec_scale {larger * 0.0005:g} --lr 1e-3 --grad_clip 1"


def in_turns(*functions: Callable[[], Any], repeats: int = 7) -> np.ndarray:
    """Seconds (repeats, number of functions) of calls in turns, after a first one of each that does not count."""
    seconds = np.zeros((repeats + 1, len(functions)))
    for row in seconds:
        for i, function in enumerate(functions):
            start = time.perf_counter()
            function()
            row[i] = time.perf_counter() - start
    return seconds[1:]


def linear_law(columns: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """Factors of the columns, none negative, by least squares of the relative errors of y; and the largest of these."""
    factors, _ = scipy.optimize.nnls(columns / y[:, None], np.ones(len(y)))
    return factors, float(np.max(np.abs(columns @ factors / y - 1)))


def memory_above(function: Callable[[], Any]) -> float:
    """Peak memory (MB) of this process in a call of function, above what it has before it. On Linux."""
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak

    def status(name):
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
        return int(line.split()[1]) / 1024

    before = status("VmRSS")
    function()
    return status("VmHWM") - before


def last_line(command: Sequence[Any], **options: Any) -> Any:
    """What a command prints as its last line, JSON; options are those of `subprocess.run`."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, **options)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def run_again(script: str, *arguments: Any, **environment: str) -> Any:
    """What a script prints as its last line, JSON, when it runs in a new process with these arguments."""
    return last_line([sys.executable, script, *arguments], env=os.environ | environment)


def interpreter(name: str) -> str:
    """The path of python3.11 or another, which pyenv may keep out of the way."""
    versions = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    found = [*sorted(versions.glob(f"{name[6:]}.*/bin/{name}")), shutil.which(name)]
    return str(found[0] or sys.exit(f"found no {name}, expected it on the PATH"))


def python_with(requirements: Sequence[str], python: str = sys.executable) -> Path:
    """The interpreter of a virtual environment with these requirements, made by `python` if it is not there."""
    folder = CACHE / "-".join(text.replace("/", "_") for text in requirements)
    own = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"installing {', '.join(requirements)} in {folder}", flush=True)
        subprocess.run([python, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(own), "-m", "pip", "install", "-q", *requirements], check=True)
        (folder / "complete").touch()
    return own


def run_peer(
    script: str, requirements: Sequence[str], *arguments: Any, python: str = sys.executable, **arrays: np.ndarray
) -> Any:
    """Run a script of this folder there, with a file of the arrays and the arguments; its last line is JSON."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arrays.npz"
        np.savez(path, **arrays)
        return last_line(
            [python_with(requirements, python), Path(__file__).with_name(script), path, *arguments], cwd=folder
        )
