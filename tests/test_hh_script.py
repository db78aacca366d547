"""neuron_fitting_of_hh_model.py from end to end: what it finds, what it writes, and how it refuses bad input."""

import csv
import dataclasses
import gc
import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import runs

import jax
import numpy as np
import pytest
import scripts
from scripts import result_of, write_traces

import comparing
import fitting
import neuron_fitting_of_hh_model as hh
import recordings
import studies
import utils
from identifiability import Box, autocorrelation_time
from recordings import Recording

SCRIPT = Path(hh.__file__)
GOAL = {"gL": 0.012, "gNa": 22.0, "gK": 5.2, "V_T": -56.0}


run = scripts.here(hh)


@pytest.fixture
def tiny(tmp_path):
    """Two traces of 6 ms, one with a spike, as the arguments of the script."""
    current = np.zeros((2, 600))
    current[:, 200:] = [[3.0], [0.3]]
    truth = {n: x * b.unit for (n, b), x in zip(hh.RANGES.items(), GOAL.values(), strict=False)}
    V = studies.simulation(utils.HH)(truth, Recording(current.T, dt=0.01))["V"]
    assert np.max(V) > 20
    files = write_traces(tmp_path / "I.csv", current * 1e-9), write_traces(tmp_path / "V.csv", np.asarray(V).T)
    return ["--current", files[0], "--voltage", files[1], "--dt", 0.01, "--initial", "paper", "--n_sample", 3]


def test_the_fit_that_benchmarks_time_is_that_of_the_script(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPT.parent / "tests" / "benchmarks")
    problem = importlib.import_module("workloads").hh_problem(2)
    truth = (np.array(list(GOAL.values())) - problem.box.low) / (problem.box.high - problem.box.low)
    best, other = problem.evaluate(np.stack([truth, 0.5 + 0 * truth]))
    assert best < 1e-3 < 1 < other


# ---- What it finds --------------------------------------------------------------------------------------------------


@pytest.mark.newest
@pytest.mark.parametrize(("arguments", "tolerance"), [(["--seed", 1], 0.01), (["--noise_std", 1], 0.1)])
def test_default_fit_recovers_the_parameters(arguments, tolerance, run, tmp_path):
    """The first one is started as a user does."""
    done = scripts.run(hh, *arguments, cwd=tmp_path) if "--seed" in arguments else run(*arguments, cwd=tmp_path)
    result, folder = result_of(done, tmp_path)
    for name, value in GOAL.items():
        assert result["parameters"][name] == pytest.approx(value, rel=tolerance)
        low, high = hh.RANGES[name].mantissa
        assert low <= result["parameters"][name] <= high
    assert result["validation"]["rmse"] < 0.5
    assert result["identifiability"]["undetermined"] == []
    assert result["gamma"] == [None, 1.0, 1.0, None, 1.0]
    names = {path.name for path in folder.iterdir()}
    figures = {"traces_fit.png", "traces_validation.png", "losses.png", "identifiability.png"}
    figures |= {
        "window_fit.png",
        "window_validation.png",
        "prediction_fit.npz",
        "prediction_validation.npz",
        "f_I_fit.png",
    }
    assert names == figures | {"config.json", "result.json", "history.csv"}


def test_paper_protocol_reaches_the_papers_loss(run, tmp_path):
    result, _ = result_of(run("--target", "simulated", "--n_point", 10, cwd=tmp_path), tmp_path)
    assert result["loss"] <= 1e-8
    assert result["known_parameters"] == hh.PAPER_PARAMETERS
    assert len(result["starts"]) == 20


def test_spike_target_puts_every_spike_in_its_place(run, tmp_path):
    result, _ = result_of(run("--fit_target", "spike", cwd=tmp_path), tmp_path)
    assert result["gamma"] == [None, 1.0, 1.0, None, 1.0]
    assert result["loss"] < 0.01
    assert result["loss_name"] == "van Rossum distance of the spikes"
    assert result["identifiability"]["undetermined"] == ["gK"]
    few = "3 numbers are too few for 4 parameters and their noise"
    assert set(result["identifiability"]["without_error"].values()) == {few}


def test_another_loss_is_a_function_and_its_help(tiny, run, tmp_path, monkeypatch):
    """As EXTENDING.md says; what a recording drives is not made for it."""
    monkeypatch.setitem(hh.LOSSES, "square", hh.LOSSES["potential"])
    monkeypatch.setitem(hh.TARGETS, "square", "the same by another name")
    found = [result_of(run(*tiny, "--fit_target", name, cwd=tmp_path), tmp_path)[0] for name in ("potential", "square")]
    assert found[0]["parameters"] == found[1]["parameters"]
    assert found[1]["objective"] == "simulation"
    arguments = [*tiny, "--fit_target", "square", "--objective", "synchronised"]
    assert "found synchronised with --fit_target square" in run(*arguments, cwd=tmp_path).stderr


def test_lags_of_spikes_are_in_the_order_in_which_they_depend_on_each_other(x64):
    """The k-th spikes of all traces one after the other, by which those that are late together count as one."""
    recording = Recording(np.repeat([[1.0, 2.0, 0.0]], 6000, axis=0), dt=0.01)
    V, spikes = hh.make_free_run(utils.HH, hh.DEFAULTS, 0.01, hh.SpikeLevel())(hh.with_units(GOAL), recording)
    assert np.ptp(spikes.sum(0)) > 2
    late = dataclasses.replace(recording, V=V, spikes=0 * spikes)
    for trace in range(3):  # the more, the more of them there have been
        steps = np.flatnonzero(spikes[:, trace])
        late.spikes[steps + 20 + 5 * np.arange(len(steps)), trace] = 1
    study = hh.make_study(
        studies.FitSettings(fit_target="spike", fit_parameters=list(GOAL)),
        recordings.Data({"fit": dataclasses.replace(late, mask=np.ones_like(V), observed=np.ones_like(V))}),
        recordings.Source(target="recorded", dt_sim=0.01),
    )
    box = Box(study.bounds)
    x = (np.array(list(GOAL.values())) - box.low) / (box.high - box.low)
    prediction = study.loss.predictions(study, box, x)[0]["spike_times_ms"]
    times = np.full(prediction.counts.shape, np.nan)
    times[prediction.counts] = prediction.target
    for i, trace in enumerate(times.T):
        np.testing.assert_allclose(trace[~np.isnan(trace)], 0.01 * (np.flatnonzero(late.spikes[:, i]) + 0.5))
    lags = np.zeros(times.shape)
    lags[prediction.counts] = prediction.target - prediction.function(x, *prediction.data)
    expected = 0.2 + 0.05 * np.repeat(np.arange(len(lags))[:, None], 3, axis=1)
    np.testing.assert_allclose(lags[prediction.counts], expected[prediction.counts], atol=0.01)
    assert autocorrelation_time(lags.T, prediction.counts.T) > 5


def test_what_held_constants_move_is_what_other_fits_find(x64, tmp_path):
    """ENa higher by 0.1 mV, C by 0.1 %, R_s by 0.1 Mohm, a tenth of the steps, from where the script ends."""
    done = scripts.run(hh, "--n_sample", 4, cwd=tmp_path)
    result, _ = result_of(done, tmp_path)
    by_held, here = result["identifiability"]["by_held"], result["parameters"]
    assert set(by_held) == {"EL", "ENa", "EK", "C", "tau_max", "phi", "R_s"}
    assert not any(by_held["tau_max"].values()), "of a current that is not there"
    found = {}
    for held in ("ENa=50", "ENa=50.1", "C=0.2002", "R_s=0.1"):
        args = hh.parse_args(["--constants", held])
        source, settings = recordings.source_of(args), runs.pick(studies.FitSettings, args, fit_target="potential")
        data = recordings.read_data(source, hh.SHIPPED)
        study = hh.make_study(settings, data, source, hh.known_parameters(source))
        problem = fitting.FitProblem(study, 1, jax.devices())
        x = (np.array(list(here.values())) - problem.box.low) / (problem.box.high - problem.box.low)
        found[held] = problem.box.values(fitting.multistart(problem, x[None]).best.x)
    for held in ("ENa=50.1", "C=0.2002", "R_s=0.1"):
        for name, change in by_held[held.split("=")[0]].items():
            assert found[held][name] - found["ENa=50"][name] == pytest.approx(change / 10, rel=0.1), (held, name)
    lines = [line for line in done.stdout.splitlines() if "of which no error above knows" in line]
    assert [line.split()[0] for line in lines] == ["C", "EK", "EL", "ENa", "R_s", "phi"]
    assert f"moves, to first order: gL {by_held['EL']['gL']:+.2g} uS, gNa {by_held['EL']['gNa']:+.2g} uS" in lines[2]


@pytest.mark.parametrize("delta", [4, 0.005])
def test_spikes_that_are_further_off_than_those_that_count_as_one_tell_nothing(delta, run, tmp_path):
    """gL is to make up for too high a gNa, and brings the spikes as near as some steps of 0.01 ms."""
    arguments = ["--fit_target", "spike", "--fit_parameters", "gL", "--constants", "gNa=30", "--n_sample", 4]
    result, _ = result_of(run(*arguments, "--delta", delta, cwd=tmp_path), tmp_path)
    information = result["identifiability"]
    off = "ms off in root mean square, more than --delta, " in information["without_error"].get("gL", "")
    assert off == (information["standard_errors"]["gL"] is None) == (delta < 1)
    assert off or abs(information["by_held"]["V_T"]["gL"]) > information["standard_errors"]["gL"]


def test_the_papers_numbers_stand_beside_its_own_protocol_alone():
    paper = ["--target", "simulated", "--mode", "compare", "--n_point", "10"]
    assert hh.make_plan(hh.parse_args([*paper, "--fit_parameters", *hh.FITTED])).paper
    others = "--bounds gL=0.001:0.1", "--fit_parameters gL gNa", "--scheme staggered", "--noise_std 1", "--n_point 50"
    for other in others:
        assert not hh.make_plan(hh.parse_args([*paper, *other.split(" ")])).paper


def test_without_potentials_there_is_no_free_running_error():
    recording = Recording(np.zeros((9, 1)), V=np.zeros((9, 1)), mask=np.zeros((9, 1)), observed=np.ones((9, 1)))
    study = studies.Study(None, None, {}, {"fit": recording}, free_run=None)
    assert comparing.free_running_mse(study, {}) is None
    known = dataclasses.replace(recording, mask=np.ones((9, 1)))
    study = studies.Study(None, None, {}, {"fit": known}, free_run=lambda *_: (np.full((9, 1), 2.0), None))
    assert comparing.free_running_mse(study, {}) == 4


# ---- What it writes -------------------------------------------------------------------------------------------------


def test_result_and_history_are_complete(tiny, run, tmp_path):
    arguments = [*tiny, "--precision", 64, "--devices", 0, "--output", "out"]
    result, folder = result_of(run(*arguments, cwd=tmp_path), tmp_path)
    assert folder == tmp_path / "out"
    assert result["units"] == {"gL": "uS", "gNa": "uS", "gK": "uS", "V_T": "mV"}
    assert (result["seed"], result["validation"], result["known_parameters"]) == (0, None, None)
    assert set(result["seconds"]) == {"compile", "run"}
    assert result["seconds"]["run"] > 0
    assert len(result["starts"]) == 3
    assert sum(start["n_gradients"] for start in result["starts"]) == result["n_gradients"] == result["n_simulations"]
    for start in result["starts"]:
        assert set(start) >= {"initial", "parameters", "loss", "n_gradients", "status"}
        assert start["loss"] >= result["loss"]
    best = min(result["starts"], key=lambda start: start["loss"])
    assert best["parameters"] == result["parameters"]

    config = json.loads((folder / "config.json").read_text())
    assert config["arguments"]["precision"] == 64
    assert len(config["devices"]) == 1
    assert config["packages"]["jax"]
    assert "--devices 0" in config["command"]
    with open(folder / "history.csv") as file:
        history = list(csv.DictReader(file))
    assert int(history[-1]["n_simulations"]) == result["n_simulations"]
    assert float(history[-1]["best_loss"]) == result["loss"]


def test_a_second_run_has_a_folder_of_its_own_and_the_same_numbers(tiny, run, tmp_path):
    first, folder = result_of(run(*tiny, cwd=tmp_path), tmp_path)
    second, other = result_of(scripts.run(hh, *tiny, cwd=tmp_path), tmp_path)
    assert folder.name == "fit_recorded_potential_L-BFGS-B_seed0"
    assert other.name == folder.name + "-2"
    for timing in (first, second):
        del timing["seconds"]
    assert first == second


@pytest.mark.parametrize("method", ["DE", "bayesian"])
def test_derivative_free_methods_and_units(method, tiny, run, tmp_path):
    for name, factor in (("I.csv", 1e12), ("V.csv", 1e-3)):  # now in pA and V
        write_traces(tmp_path / name, scripts.read_traces(tmp_path / name) * factor)
    units = ["--current_unit", "pA", "--voltage_unit", "V"]
    result, _ = result_of(run(*tiny, *units, "--method", method, "--n_iter", 4, cwd=tmp_path), tmp_path)
    assert (result["n_simulations"], result["n_gradients"]) == (12, 0)
    assert 0 < result["loss"] < 2000
    assert result["starts"][0]["initial"] is None


def test_other_parameters_and_bounds(tiny, run, tmp_path):
    chosen = ["--fit_parameters", "gL", "C", "--bounds", "C=0.1:0.15", "--method", "random"]
    result, _ = result_of(run(*tiny, *chosen, cwd=tmp_path), tmp_path)
    assert list(result["parameters"]) == ["gL", "C"]
    assert 0.1 <= result["parameters"]["C"] <= 0.15
    assert result["units"]["C"] == "nF"


COMPARE = ["--mode", "compare", "--methods", "L-BFGS-B", "DE", "random", "--repeats", 2, "--gradient_cost", 3]


def in_process(monkeypatch, folder, arguments):
    return scripts.exit_status(hh, monkeypatch, folder, arguments)


def repeats_of(folder):
    """The rows of a comparison without what depends on time."""
    with open(folder / "repeats.csv") as file:
        rows = list(csv.DictReader(file))
    timed = ("seconds", "seconds_compile", "loss_equal_time")
    return [{name: value for name, value in row.items() if name not in timed} for row in rows]


def test_compare_gives_every_method_the_same_budget(tiny, tmp_path, monkeypatch):
    assert in_process(monkeypatch, tmp_path, [*tiny, *COMPARE, "--output", "out"]) == 0
    rows = repeats_of(tmp_path / "out")
    assert [row["method"] for row in rows] == ["L-BFGS-B", "DE", "random"] * 2
    stored = [json.loads(path.read_text()) for path in (tmp_path / "out" / "repeats").iterdir()]
    seconds = {row["repeat"]: row["seconds"] for row in stored if row["method"] == "L-BFGS-B"}
    assert all(row["curve"][-1][1] >= seconds[row["repeat"]] for row in stored)  # the time is used up too
    for repeat in range(2):
        gradient, *others = rows[3 * repeat : 3 * repeat + 3]
        budget = 3 * int(gradient["n_gradients"])
        assert int(gradient["n_gradients"]) == int(gradient["n_simulations"]) > 10
        for row in others:
            assert budget - 3 < int(row["n_simulations"]) <= budget
            assert float(row["loss"]) > float(gradient["loss"])
    assert rows[0]["loss"] != rows[3]["loss"]
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "| DE |" in text
    assert "A gradient counts as 3.00 simulations" in text
    for name in ("comparison.png", "methods.png", "figure_2.png", "comparison.csv"):
        assert (tmp_path / "out" / name).exists()
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert [row["method"] for row in result["table"]] == ["L-BFGS-B", "DE", "random"]
    assert result["gradient_cost"] == 3
    assert result["constants"]["EL"] == -65
    assert result["table"][0]["loss"] == pytest.approx(np.mean([float(rows[i]["loss"]) for i in (0, 3)]))
    assert in_process(monkeypatch, tmp_path, ["--load", "out", *tiny[:2], "--dt", 0.01]) == 2, "it is no fit"


def test_compare_with_the_papers_budget(tiny, tmp_path, monkeypatch):
    budget = ["--protocol_budget", "paper", "--n_iter", 2, "--output", "out"]
    assert in_process(monkeypatch, tmp_path, [*tiny, *COMPARE, *budget, "--repeats", 1]) == 0
    gradient, *others = repeats_of(tmp_path / "out")
    assert int(gradient["n_start"]) == hh.PAPER_STARTS
    assert [int(row["n_simulations"]) for row in others] == [6, 6]


@pytest.mark.parametrize("n_round", [1, 120])
def test_an_interrupted_comparison_resumes_to_the_same_numbers(n_round, tiny, tmp_path, monkeypatch, capsys):
    assert in_process(monkeypatch, tmp_path, [*tiny, *COMPARE, "--output", "whole"]) == 0
    whole = repeats_of(tmp_path / "whole")

    undo = scripts.interrupt(monkeypatch, lambda level, n_before: n_before >= n_round)
    assert in_process(monkeypatch, tmp_path, [*tiny, *COMPARE, "--output", "part"]) == 130
    done = {path.name for path in (tmp_path / "part").glob("repeats/*")}
    assert len(done) < 6
    assert done or n_round == 1
    undo()

    capsys.readouterr()
    for name, ours, theirs in (("seed", 1, 0), ("gradient_cost", 9.0, 3.0)):
        other = [*tiny, *COMPARE, "--resume", "part", f"--{name}", f"{ours:g}"]
        assert in_process(monkeypatch, tmp_path, other) == 2
        found = f"argument --{name}: found {ours} here and {theirs} in part, expected the same to resume"
        assert found in capsys.readouterr().err
    assert in_process(monkeypatch, tmp_path, ["--resume", "part", "--mode", "fit"]) == 2
    assert "argument --mode: found fit here and compare in part, expected the same to resume" in capsys.readouterr().err
    same = [*tiny, *COMPARE, "--methods", "random", "L-BFGS-B", "DE"]
    again = ["--resume", "part", *(same if n_round == 1 else [])]  # the arguments need not be repeated
    assert in_process(monkeypatch, tmp_path, again) == 0
    assert repeats_of(tmp_path / "part") == whole


def test_parameters_that_are_not_fitted_are_those_behind_the_target(run, tmp_path):
    chosen = ["--fit_parameters", "gNa", "EK", "C", "--n_sample", 4]
    result, _ = result_of(run(*chosen, cwd=tmp_path), tmp_path)
    assert result["parameters"] == pytest.approx({"gNa": 22.0, "EK": -90.0, "C": 0.2}, rel=1e-3)


def test_one_start_of_one_parameter(tiny, run, tmp_path):
    one = ["--n_sample", 1, "--fit_parameters", "V_T", "--bounds", "V_T=-58:-54"]
    result, _ = result_of(run(*tiny, *one, cwd=tmp_path), tmp_path)
    assert len(result["starts"]) == 1


def test_visualize_draws_without_fitting(tiny, run, tmp_path):
    result, folder = result_of(run(*tiny, "--mode", "visualize", cwd=tmp_path), tmp_path)
    assert result["n_spikes"] == [1, 0]
    assert len(result["losses"]) == 3
    assert (folder / "target.png").stat().st_size > 10_000


def test_a_validation_recording_of_the_user(tiny, run, tmp_path):
    own = ["--validation_current", tmp_path / "I.csv", "--validation_voltage", tmp_path / "V.csv"]
    result, folder = result_of(run(*tiny, *own, cwd=tmp_path), tmp_path)
    assert result["validation"]["rmse"] == pytest.approx(result["rmse"])
    assert (folder / "traces_validation.png").exists()


@pytest.mark.parametrize("n_round", [0, 4])
def test_ctrl_c_keeps_what_was_done(n_round, tiny, tmp_path, monkeypatch, capsys):
    scripts.interrupt(monkeypatch, lambda level, n_before: n_before >= n_round)
    assert in_process(monkeypatch, tmp_path, [*tiny, "--output", "out"]) == 130
    output, errors = capsys.readouterr()
    if n_round == 0:
        assert "interrupted before there was anything to keep" in errors
        assert not (tmp_path / "out").exists()
        return
    assert output.splitlines()[-1] == "out"
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["interrupted"]
    assert {start["status"] for start in result["starts"]} == {"interrupted"}
    assert result["n_gradients"] == 12


def test_ctrl_c_while_garbage_is_collected(tiny, tmp_path, monkeypatch, capsys):
    # Python drops what is raised in these callbacks, of which JAX has one.
    lost, collected, evaluate = [], [], fitting.FitProblem.evaluate

    def callback(phase, info):
        if not lost:
            lost.append(phase)
            signal.raise_signal(signal.SIGINT)

    def collecting(self, *args, **kwargs):
        if len(collected) == 2:
            gc.callbacks.append(callback)
            gc.collect()
            time.sleep(0.5)  # in which it comes again
        collected.append(0)
        return evaluate(self, *args, **kwargs)

    monkeypatch.setattr(fitting.FitProblem, "evaluate", collecting)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # which a background job ignores
    try:
        assert in_process(monkeypatch, tmp_path, [*tiny, "--output", "out"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
        gc.callbacks.remove(callback)
    assert lost
    assert len(collected) == 2
    output, errors = capsys.readouterr()
    assert output.splitlines()[-1] == "out"
    assert "Exception ignored" not in errors


def test_a_signal_ends_a_running_fit(tmp_path):
    # Children of a background job ignore SIGINT unless it is reset before they start.
    heed = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", heed, sys.executable, "-u", str(SCRIPT), "--n_sample", "1500", "--output", "out"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while "crossings" not in process.stdout.readline():  # the last that is said before the fit
        assert process.poll() is None
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors


# ---- Bad input ------------------------------------------------------------------------------------------------------


def damage(change):
    """Replace V.csv by what change makes of its lines."""

    def apply(folder):
        path = folder / "V.csv"
        path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")

    return apply


def in_volt(folder):
    write_traces(folder / "V.csv", scripts.read_traces(folder / "V.csv") * 1e-3)


def without_a_trace(folder):
    write_traces(folder / "V.csv", scripts.read_traces(folder / "V.csv")[:1])


def other_run(folder):
    (folder / "out").mkdir()
    (folder / "out" / "result.json").write_text("{}")


def replaced(lines, text):
    cells = lines[2].split(",")
    cells[5] = text
    return [*lines[:2], ",".join(cells)]


BAD_FILES = {
    "missing": (lambda folder: (folder / "V.csv").unlink(), "V.csv: No such file or directory"),
    "empty": (damage(lambda lines: []), "V.csv: expected a header"),
    "no header": (damage(lambda lines: lines[1:]), "V.csv: expected a header"),
    "ragged": (damage(lambda lines: [*lines[:2], lines[2].rsplit(",", 1)[0]]), "found 599 samples in trace 1"),
    "not numeric": (damage(lambda lines: replaced(lines, "spike")), "found 'spike' at sample 4 of trace 1"),
    "infinite": (damage(lambda lines: replaced(lines, "inf")), "found 'inf' at sample 4 of trace 1"),
    "unequal shape": (without_a_trace, "V.csv: found 1 sweep, expected 2 as in"),
    "in V": (in_volt, "mV, expected 1 to 300 mV, as neurons have (is --voltage_unit right?)"),
    "a binary file": (lambda folder: (folder / "V.csv").write_bytes(bytes(range(128, 256))), "V.csv: not CSV"),
}
BAD_ARGUMENTS = {
    "--exclude 5000:6000": "--exclude: found 5000:6000, in which no sweep has a sample",
    "--target simulated --exclude 0:5": "--exclude: found it with a simulated target",
    "--dt 0": "argument --dt: found '0', expected a number > 0",
    "--dt -0.1": "argument --dt: found '-0.1', expected a number > 0",
    "--dt inf": "argument --dt: found 'inf'",
    "--method SGD": "argument --method: invalid choice: 'SGD'",
    "--n_sample 0": "argument --n_sample: found '0', expected an integer >= 1",
    "--n_sample 2.5": "argument --n_sample: found '2.5', expected an integer >= 1",
    "--n_point 601": "argument --n_point: found 601, expected at most the 600 samples",
    "--noise_std -1": "argument --noise_std: found '-1', expected a number >= 0",
    "--seed x": "argument --seed: found 'x', expected an integer >= 0",
    "--devices 99": "argument --devices: found '99', expected different indices from 0 to",
    "--devices 0,0": "argument --devices: found '0,0'",
    "--devices gpu": "argument --devices: found 'gpu'",
    "--fit_target spike --spike_level 90": "argument --fit_target: found no spike: potentials go up to ",
    "--validation_current I.csv": "argument --validation_current: found it alone",
    "--voltage nowhere.csv": "nowhere.csv: No such file",
    "--output I.csv": "argument --output: I.csv holds another run",
    "--output I.csv/run": "I.csv is not a folder that can be written",
    "--fit_parameters gL gCa": "argument --fit_parameters: invalid choice: 'gCa'",
    "--bounds gL": "argument --bounds: found 'gL', expected NAME=LOW:HIGH with numbers LOW < HIGH",
    "--bounds gL=0.2:0.1": "argument --bounds: found 'gL=0.2:0.1', expected NAME=LOW:HIGH",
    "--bounds gL=0:nan": "argument --bounds: found 'gL=0:nan'",
    "--bounds C=0.1:0.2": "argument --bounds: found 'C', expected one of gL, gNa, gK, V_T",
    "--repeats 0": "argument --repeats: found '0', expected an integer >= 1",
    "--mode compare --methods Adam": "argument --methods: invalid choice: 'Adam'",
    "--mode compare --objective synchronised": "argument --objective: found synchronised with --mode compare, expected",
    "--mode compare --methods DE PSO": "argument --methods: found no L-BFGS-B, expected it",
    "--resume nowhere": "argument --resume: found no config.json of a run in nowhere",
    "--method CMA --fit_parameters gL": "argument --method: found CMA with one parameter to fit",
    "--mode compare --resume nowhere": "argument --resume: found no config.json of a run in nowhere",
    "--gate h": "unrecognized arguments: --gate h",
    "--methods DE": "argument --methods: found it with --mode fit, expected --mode compare",
    "--mode visualize --repeats 2": "argument --repeats: found it with --mode visualize, expected --mode compare",
    "--mode compare --method DE": "argument --method: found it with --mode compare, expected --methods",
}


def refused(monkeypatch, capsys, folder, arguments):
    return scripts.refused(hh, monkeypatch, capsys, folder, arguments)


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(case, tiny, tmp_path, monkeypatch, capsys):
    spoil, message = BAD_FILES[case]
    spoil(tmp_path)
    assert message in refused(monkeypatch, capsys, tmp_path, tiny)


@pytest.mark.parametrize("arguments", BAD_ARGUMENTS)
def test_bad_arguments(arguments, tiny, tmp_path, monkeypatch, capsys):
    message = BAD_ARGUMENTS[arguments]
    assert message in refused(monkeypatch, capsys, tmp_path, [*tiny, *arguments.split()])


def test_a_folder_that_holds_another_run_is_left_alone(tiny, tmp_path, monkeypatch, capsys):
    other_run(tmp_path)
    errors = refused(monkeypatch, capsys, tmp_path, [*tiny, "--output", "out"])
    assert "argument --output: out holds another run, expected a new or empty folder" in errors


def test_a_simulation_that_ends_in_nan_everywhere_is_named(tiny, tmp_path, monkeypatch, capsys):
    negative = [*tiny, "--fit_parameters", "C", "--bounds", "C=-0.02:-0.01"]
    assert in_process(monkeypatch, tmp_path, negative) == 2
    errors = capsys.readouterr().err
    assert len(errors.splitlines()) == 1
    assert "no start has a finite loss; start 0: NaN at time step" in errors
    assert "C = -0.01" in errors
    assert not (tmp_path / "results").exists()


def test_bad_input_of_the_command_line():
    done = scripts.run(hh, "--n_sample", 0, cwd=".")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_current_without_its_voltage_is_refused(tiny, tmp_path, monkeypatch, capsys):
    errors = refused(monkeypatch, capsys, tmp_path, tiny[:2])
    assert "argument --current: found it alone, expected --current and --voltage" in errors


def test_a_simulated_target_needs_currents_alone(tiny, run, tmp_path):
    arguments = [*tiny[:2], *tiny[4:], "--target", "simulated", "--validation_current", tmp_path / "I.csv"]
    result, _ = result_of(run(*arguments, cwd=tmp_path), tmp_path)
    assert result["known_parameters"] == hh.PAPER_PARAMETERS
    assert result["validation"]["rmse"] == pytest.approx(result["rmse"], rel=1e-3)


def test_help_explains_every_argument(capsys):
    scripts.check_help(hh, capsys)


def test_spikes_that_hardly_reach_the_level_that_counts_them_are_said_to_be_low():
    level, recorded = hh.SpikeLevel(0.0, 10.0), dict(spike_peak_recorded_mV=30.0)
    (line,) = hh.lines_of_low_spikes(dict(recorded, spike_peak_mV=3.0), level)
    assert line.startswith("WARNING: spikes of the model peak at 3 mV, those recorded at 30")
    assert "0 mV (--spike_level)" in line
    assert hh.lines_of_low_spikes(dict(recorded, spike_peak_mV=16.0), level) == []
    assert hh.lines_of_low_spikes({}, level) == []
