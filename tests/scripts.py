"""Running a script as a user does, for the tests of all of them."""

import contextlib
import csv
import importlib
import io
import json
import re
import resource
import subprocess
import sys
import warnings

import brainstate
import jax
import numpy as np
import pytest

import fitting

# Arguments of task-coba-ei-rsnn.py: a small network that spikes, and a short trial.
SMALL_NETWORK = "--n_rec 20 --n_in 12 --n_cue 3 --t_cue 20 --t_interval 5 --t_delay 30 --t_recall 15 --ff_scale 8"
SMALL_NETWORK = (*SMALL_NETWORK.split(" "), "--rate_cue", "150")


def import_script(name):
    """The module of a script whose name has hyphens."""
    return importlib.import_module(name)


def run(script, *arguments, cwd):
    command = [sys.executable, script.__file__, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


def result_of(done, cwd):
    """result.json and the folder of a run that ended well."""
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    folder = cwd / done.stdout.splitlines()[-1]
    return json.loads((folder / "result.json").read_text()), folder


def exit_status(script, monkeypatch, folder, arguments):
    """Exit status of a script, run in this process in a folder; what it sets of JAX is as it was after it."""
    monkeypatch.chdir(folder)
    names = ("jax_enable_x64", "jax_default_device", "jax_default_matmul_precision")
    before, precision = {name: getattr(jax.config, name) for name in names}, brainstate.environ.get_precision()
    try:
        return script.main(arguments)
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        brainstate.environ.set(precision=precision)


def done_alone(script, folder, *arguments):
    """What `run` says, of a run in this process, which needs no fixture of a test."""
    output, errors, patches = io.StringIO(), io.StringIO(), pytest.MonkeyPatch.context()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), patches as monkeypatch:
        status = exit_status(script, monkeypatch, folder, list(map(str, arguments)))
    return subprocess.CompletedProcess(arguments, status, output.getvalue(), errors.getvalue())


def done_here(script, monkeypatch, capsys, cwd, *arguments):
    """What `run` says, of a run in this process, which saves the start of another one."""
    capsys.readouterr()
    with warnings.catch_warnings(record=True) as caught:
        status = exit_status(script, monkeypatch, cwd, list(map(str, arguments)))
    output, errors = capsys.readouterr()
    errors += "".join(f"{each.category.__name__}: {each.message}\n" for each in caught)
    return subprocess.CompletedProcess(arguments, status, output, errors)


def here(script):
    """A fixture: `run` of that script by `done_here`."""

    @pytest.fixture
    def run(monkeypatch, capsys):
        return lambda *arguments, cwd: done_here(script, monkeypatch, capsys, cwd, *arguments)

    return run


def run_here(script, monkeypatch, capsys, cwd, *arguments):
    """`result_of` what is `done_here`."""
    return result_of(done_here(script, monkeypatch, capsys, cwd, *arguments), cwd)


def interrupt(monkeypatch, when, error=KeyboardInterrupt):
    """Ctrl-C, or another error, before the evaluation where when(level, number before it); returns what undoes it."""
    evaluate, n_before = fitting.FitProblem.evaluate, [0]

    def interrupted(self, X, what="losses", level=0.0):
        if when(level, n_before[0]):
            raise error
        n_before[0] += 1
        return evaluate(self, X, what, level)

    monkeypatch.setattr(fitting.FitProblem, "evaluate", interrupted)
    return lambda: monkeypatch.setattr(fitting.FitProblem, "evaluate", evaluate)


@contextlib.contextmanager
def full_disk(module, name, call, limit):
    """No file gets larger than `limit` bytes from the call-th call of module.name on, and no compilation is cached."""
    function, calls, before = getattr(module, name), [], resource.getrlimit(resource.RLIMIT_FSIZE)
    key = "jax_persistent_cache_min_compile_time_secs"
    seconds = getattr(jax.config, key)

    def limited(*arguments, **kwargs):
        calls.append(0)
        if len(calls) == call:
            jax.config.update(key, 1e9)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        return function(*arguments, **kwargs)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(module, name, limited)
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            jax.config.update(key, seconds)
    assert len(calls) >= call


def contents(folder):
    """{path: bytes} of all files and folders."""
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refused(script, monkeypatch, capsys, folder, arguments):
    """The one line on stderr of a script that refuses its arguments, run in this process."""
    before = contents(folder)
    assert exit_status(script, monkeypatch, folder, arguments) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    assert len(errors.splitlines()) == 1
    assert contents(folder) == before
    return errors


def write_traces(path, values):
    """values (n_trace, T) in the layout of the released files."""
    lines = [",".join(["", *(str(k) for k in range(len(values[0])))])]
    lines += [",".join([str(i), *(str(x) for x in row)]) for i, row in enumerate(values)]
    path.write_text("\n".join(lines) + "\n")
    return path


def read_traces(path):
    """Numbers (n_trace, T) of a file in that layout."""
    with open(path) as file:
        return np.array([[float(x) for x in row[1:]] for row in list(csv.reader(file))[1:]])


def check_help(script, capsys):
    """Every argument has an explanation and its default, and two examples stand at the end."""
    defaults = vars(script.parse_args([]))
    with pytest.raises(SystemExit) as stop:
        script.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for argument, value in defaults.items():
        explanation = " ".join(re.split(rf"\n  --{argument}\s", text)[1].split("\n  --")[0].split())
        assert len(explanation.split()) > 4
        if value and argument != "target" and "without this argument" not in explanation:
            value = " ".join(value) if isinstance(value, list) else value
            assert f"(default: {value})" in explanation
    assert text.count(f"python {script.SCRIPT}.py") == 2
    assert "None" not in text
