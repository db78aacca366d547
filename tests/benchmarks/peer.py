"""Another simulator in a virtual environment of its own, for the benchmarks that compare with it."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "differentiable-brain-modeling")


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


def run(script, requirements, *arguments, **arrays):
    """Run `script --peer FILE` there: it reads the arrays and `arguments` and prints, as its last line, JSON."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arrays.npz"
        np.savez(path, **arrays)
        command = [str(python_with(requirements)), script, "--peer", str(path), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])
