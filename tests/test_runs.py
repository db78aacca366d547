"""What every run needs: progress without a terminal, and what is kept where a disk is full, Ctrl-C comes or a kill."""

import argparse
import csv
import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import runs

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats
import scripts

import comparing
import reports
import scoring
from recordings import Recording

hh = scripts.import_script("neuron_fitting_of_hh_model")
ONE_PARAMETER = ["--fit_parameters", "V_T", "--bounds", "V_T=-58:-54", "--output", "out"]
COMPARE = [*ONE_PARAMETER, "--mode", "compare", "--methods", "L-BFGS-B", "random", "--repeats", 2, "--n_sample", 2]


def test_progress_without_a_terminal_is_lines(monkeypatch, capsys):
    """None at once, and then one each time that the seconds between them are over."""
    for _ in runs.progress(range(3), desc="fast"):
        pass
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(runs, "PROGRESS_SECONDS", 1e-9)
    with runs.progress(total=4, desc="L-BFGS-B", unit=" simulations") as bar:
        for _ in range(4):
            bar.set_postfix(best_loss="1.2", refresh=False)
            bar.update()
    output, errors = capsys.readouterr()
    assert errors == ""
    lines = output.splitlines()
    assert len(lines) >= 3
    assert all(line.startswith("L-BFGS-B:") and "best_loss=1.2" in line for line in lines[1:])
    assert re.search(r"4/4 \[", lines[-1])


def test_progress_on_a_terminal_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for _ in runs.progress(range(3), desc="fast"):
        pass
    output, errors = capsys.readouterr()
    assert output == ""
    assert "fast:" in errors


# ---- Files ----------------------------------------------------------------------------------------------------------


def some_figure():
    return plt.subplots()[0]


CONTENTS = {
    "figure.png": some_figure,
    "table.csv": lambda: [{"x": 1, "y": None}],
    "text.md": lambda: "±",
    "result.json": lambda: dict(x=np.nan),
    "arrays.npz": lambda: dict(x=np.arange(3), y=2.5),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_file_is_saved_whole_or_not_at_all(name, tmp_path, monkeypatch):
    """What was there before stays, with no trace of the attempt."""
    write = Path.write_bytes

    def full_disk(self, data):
        write(self, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))

    path, left_open = tmp_path / "run" / name, plt.get_fignums()  # by other tests
    runs.save(path, CONTENTS[name]())
    before = scripts.contents(tmp_path)
    assert list(before) == [path.parent, path]
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full_disk)
        with pytest.raises(runs.CannotSave, match=f"^{re.escape(str(path))}: No space left on device$"):
            runs.save(path, CONTENTS[name]())
    assert scripts.contents(tmp_path) == before
    assert plt.get_fignums() == left_open


def test_arrays_are_saved_for_numpy(tmp_path):
    runs.save(tmp_path / "x.npz", CONTENTS["arrays.npz"]())
    with np.load(tmp_path / "x.npz") as file:
        assert set(file) == {"x", "y"}
        np.testing.assert_array_equal(file["x"], [0, 1, 2])
        assert file["y"] == 2.5


def folder_of(output):
    return runs.RunFolder(argparse.Namespace(output=Path(output), figure_format="png"), "script", "name")


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("x" * 300, "File name too long"),
        ("new/" + "x" * 300, "File name too long"),
        ("/proc/run", "No such file or directory"),
        ("dangling", "dangling links to nothing"),
        ("dangling/run", "dangling links to nothing"),
        ("loop/run", "loop links to nothing"),
        ("file/run", "file is not a folder that can be written"),
        ("/dev/null/run", "null is not a folder that can be written"),
        ("full/run", "No space left on device"),
    ],
)
def test_an_output_where_nothing_can_be_saved_is_refused_at_once(output, reason, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").touch()
    Path("full").mkdir()
    Path("dangling").symlink_to("nowhere")
    Path("loop").symlink_to("loop")
    if output.startswith("full"):

        def full_disk(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, "write_bytes", full_disk)
    before = scripts.contents(tmp_path)
    with pytest.raises(runs.BadInput) as refusal:
        folder_of(output)
    assert str(refusal.value).startswith(f"argument --output: found that nothing can be saved in {output} (")
    assert f"{reason})" in str(refusal.value)
    assert scripts.contents(tmp_path) == before


@pytest.mark.parametrize("output", ["new", "new/er", "empty", "link/run", "a/../b", "a/../../b"])
def test_trying_an_output_leaves_nothing_behind(output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("link").symlink_to("empty")
    before, siblings = scripts.contents(tmp_path), sorted(tmp_path.parent.iterdir())
    run = folder_of(output)
    assert scripts.contents(tmp_path) == before
    assert sorted(tmp_path.parent.iterdir()) == siblings
    if ".." not in output:
        run.save("text.md", "saved")
        assert Path(output, "text.md").read_text() == "saved"


@pytest.mark.parametrize("output", ["x" * 300, "/proc/run"])
def test_a_script_refuses_such_an_output_before_it_fits(output, tmp_path, monkeypatch, capsys):
    errors = scripts.refused(hh, monkeypatch, capsys, tmp_path, ["--output", output])
    assert errors.startswith("neuron_fitting_of_hh_model.py: error: argument --output: found that nothing can be saved")


# ---- What is kept ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(errno.ENOSPC, "full"), runs.CannotSave("x.png: full")])
@pytest.mark.parametrize("n_file", [0, 1])
def test_a_run_that_breaks_off_says_what_is_kept(n_file, error, tmp_path, monkeypatch, capsys):
    @runs.command_line
    def main(argv):
        run = folder_of("out")
        run.save_config(argv, [])
        if n_file:
            run.save("text.md", "saved")
        raise error

    monkeypatch.chdir(tmp_path)
    # An error of standard output, which is that of the tests.
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    monkeypatch.setattr(sys.stdout, "fileno", lambda: -1)
    status = main([])
    output, errors = capsys.readouterr()
    assert status == (130 if error is KeyboardInterrupt else 1)
    what = {KeyboardInterrupt: "interrupted"}.get(error, f"error: {error}")
    what = what.replace("[Errno 28] full", "standard output: full")
    if n_file:
        assert (output, errors) == ("out\n", f"test_runs.py: {what}; kept in out: text.md\n")
    else:
        nothing = " before there was anything to keep" if status == 130 else "; nothing of this run is kept"
        assert (output, errors) == ("", f"test_runs.py: {what}{nothing}\n")


@pytest.mark.parametrize(("limit", "kept"), [(10, False), (20_000, True)])
def test_a_fit_whose_disk_fills_up(limit, kept, tmp_path, monkeypatch, capsys):
    arguments = [*ONE_PARAMETER, "--method", "random", "--n_iter", "1", "--n_sample", "3"]
    with scripts.full_disk(runs, "save", 1, limit):
        done = scripts.done_here(hh, monkeypatch, capsys, tmp_path, *arguments)
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert re.match(r"neuron_fitting_of_hh_model.py: error: out/\S+: File too large; ", line)
    assert ("; kept in out: " in line) == kept
    paths = list((tmp_path / "out").rglob("*"))
    assert not [path for path in paths if path.name.startswith(".") or path.stat().st_size == limit]
    if kept:
        assert "result.json" in line
        assert json.loads((tmp_path / "out" / "result.json").read_text())["parameters"]
        assert done.stdout.splitlines()[-1] == "out"


# ---- Comparisons that break off -------------------------------------------------------------------------------------


def in_process(monkeypatch, folder, arguments):
    return scripts.exit_status(hh, monkeypatch, folder, arguments)


def losses_of(folder):
    with open(folder / "out" / "repeats.csv") as file:
        return [(row["method"], row["loss"], row["n_simulations"], row["V_T"]) for row in csv.DictReader(file)]


KILLED = """
import os, signal, sys
sys.path.insert(0, {root!r})
import comparing, {module} as script
run_repeat, calls = comparing.run_repeat, []
def killed(*arguments):
    calls.append(0)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return run_repeat(*arguments)
comparing.run_repeat = killed
sys.exit(script.main())
"""


def test_a_killed_comparison_resumes_to_the_same_numbers(tmp_path, monkeypatch, capsys):
    (tmp_path / "whole").mkdir()
    arguments = [*COMPARE, "--gradient_cost", 3]
    assert in_process(monkeypatch, tmp_path / "whole", arguments) == 0
    code = KILLED.format(root=str(Path(hh.__file__).parent), module=hh.SCRIPT)
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list((tmp_path / "out" / "repeats").iterdir())) == 2
    assert in_process(monkeypatch, tmp_path, ["--resume", "out"]) == 0
    assert losses_of(tmp_path) == losses_of(tmp_path / "whole")


def test_ctrl_c_outside_the_repeats_of_a_comparison(tmp_path, monkeypatch, capsys):
    """While the cost of a gradient is measured, and while results are drawn."""

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(comparing, "measured_gradient_cost", interrupted)
        assert in_process(monkeypatch, tmp_path, COMPARE) == 130
        assert capsys.readouterr().err.endswith("interrupted before there was anything to keep\n")
    with monkeypatch.context() as patch:
        patch.setattr(comparing, "plot_comparison", interrupted)
        assert in_process(monkeypatch, tmp_path, ["--resume", "out"]) == 130
        output, errors = capsys.readouterr()
        kept = "budget.json, comparison.csv, comparison.md, repeats, repeats.csv, result.json"
        assert errors.endswith(f"interrupted; kept in out: {kept}\n")
        assert output.splitlines()[-1] == "out"
    losses = losses_of(tmp_path)
    (tmp_path / "out" / "budget.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(comparing, "measured_gradient_cost", interrupted)
        assert in_process(monkeypatch, tmp_path, ["--resume", "out"]) == 130
        output, errors = capsys.readouterr()
        assert errors.endswith(f"interrupted; kept in out: {kept.replace('budget.json, ', '')}\n")
        assert output.splitlines()[-1] == "out"
    assert in_process(monkeypatch, tmp_path, ["--resume", "out"]) == 0
    assert losses_of(tmp_path) == losses
    assert (tmp_path / "out" / "comparison.png").exists()


@pytest.mark.parametrize(("method", "paper"), [("random", False), ("DE", True)])
def test_the_papers_columns_are_there_where_it_has_a_compared_method(method, paper):
    plan = comparing.Plan(methods=(method, "PSO"), paper={"DE": comparing.PaperResult(1.0, 2.0, 3.0, 4.0)})
    numbers = dict(
        loss=1.0, loss_equal_time=1.0, free_running_mse=1.0, recovered=None, seconds=1.0, seconds_compile=1.0
    )
    numbers |= dict(repeat=0, seed=0, n_start=1, n_simulations=1, n_gradients=0, level=0.0, parameters={}, curve=[])
    repeats = [comparing.Repeat(method=name, **numbers) for name in plan.methods]
    table = comparing.table_of(plan, comparing.Comparison(repeats, {}, 1.0))
    assert [row["method"] for row in table] == list(plan.methods)
    assert table[0].keys() == table[1].keys()
    assert [row.get("paper_loss") for row in table] == ([1.0, None] if paper else [None, None])
    assert ("paper_seconds_sd" in table[0]) == paper


def test_the_table_of_a_comparison_has_the_statistics_of_its_repeats(tmp_path):
    """Tested in pairs, repeat by repeat, and in the order in which they are kept."""
    rng = np.random.default_rng(0)
    losses = {name: rng.random(9) + shift for name, shift in (("L-BFGS-B", 0.0), ("DE", 0.3))}
    numbers = dict(free_running_mse=1.0, recovered=True, seconds=1.0, seconds_compile=1.0, seed=0, n_start=1)
    numbers |= dict(n_simulations=1, n_gradients=0, level=0.0, parameters={}, curve=[])
    repeats = [
        comparing.Repeat(method=name, repeat=i, loss=loss, loss_equal_time=2 * loss, **numbers)
        for name, of_method in losses.items()
        for i, loss in enumerate(of_method)
    ]
    plan = comparing.Plan(methods=tuple(losses))
    table = {row["method"]: row for row in comparing.table_of(plan, comparing.Comparison(repeats, {}, 1.0))}
    for name, of_method in losses.items():
        found = [table[name][key] for key in ("loss", "loss_sd", "loss_median", "loss_equal_time_median")]
        medians = np.median([of_method, 2 * of_method], axis=1)
        assert found == pytest.approx([of_method.mean(), of_method.std(ddof=1), *medians])
    assert table["L-BFGS-B"]["p"] is None
    assert table["DE"]["p"] == pytest.approx(scipy.stats.wilcoxon(losses["DE"], losses["L-BFGS-B"]).pvalue)
    assert table["DE"]["p"] < 0.2
    of_paper = comparing.table_of(comparing.Plan(protocol_budget="paper"), comparing.Comparison(repeats, {}, 1.0))
    assert not [name for row in of_paper for name in row if "equal_time" in name]


def test_the_last_round_within_a_limit_is_the_first_if_none_is():
    rounds = [SimpleNamespace(n=n, seconds=s, best_loss=x) for n, s, x in ((1, 5, 9.0), (2, 6, 8.0), (3, 20, 7.0))]
    assert comparing.last_within(rounds, lambda row: row.n, 3).best_loss == 7.0
    assert comparing.last_within(rounds, lambda row: row.seconds, 19.9).best_loss == 8.0
    assert comparing.last_within(rounds, lambda row: row.seconds, 1).best_loss == 9.0


def test_arrays_that_are_not_whole_are_said_to_be(tmp_path):
    path = tmp_path / "evaluations.npz"
    for content in (b"", b"PK\x03\x04abc"):
        path.write_bytes(content)
        with pytest.raises(
            runs.BadInput, match=r"evaluations.npz: found a file that cannot be read .*expected a whole"
        ):
            runs.load_arrays(path)
    runs.save(path, dict(x=np.arange(3)))
    assert runs.load_arrays(path)["x"].tolist() == [0, 1, 2]


def test_of_two_runs_in_one_folder_the_second_to_begin_is_refused(tmp_path):
    """Both are asked for before either has saved anything."""
    args = [argparse.Namespace(output=tmp_path / "out", resume=None, seed=seed, figure_format="png") for seed in (1, 2)]
    first, second = (runs.RunFolder(given, "x", "x") for given in args)
    first.save("config.json", dict(seed=1))
    with pytest.raises(runs.BadInput, match=r"--output: .*out holds another run"):
        second.save("config.json", dict(seed=2))
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == dict(seed=1)
    first.save("result.json", {})


def test_the_table_of_a_response_is_blank_where_a_trace_has_ended(tmp_path):
    observed = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], float)
    recording = Recording(np.array([[1, 1], [1, 1], [1, 0], [1, 0]], float), observed=observed, dt=0.5)
    prediction = scoring.Prediction(np.full((4, 2), -65.0), np.zeros((4, 2)))
    args = argparse.Namespace(output=tmp_path / "out", resume=None, figure_format="png")
    reports.save_response(runs.RunFolder(args, "x", "x"), recording, prediction, None, {})
    rows = (tmp_path / "out" / "prediction.csv").read_text().split()
    assert rows[:3] == ["t_ms,I0_nA,I1_nA,V0_mV,V1_mV", "0.0,1.0,1.0,-65.0,-65.0", "0.5,1.0,1.0,-65.0,-65.0"]
    assert rows[3:] == ["1.0,1.0,,-65.0,", "1.5,1.0,,-65.0,"]
