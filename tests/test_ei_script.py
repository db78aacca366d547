"""task-coba-ei-rsnn.py from end to end: what it writes, how it stops and goes on, and how it refuses bad input."""

import argparse
import contextlib
import csv
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import runs

import brainstate
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import plain
import pytest
import scripts
from plain import needs
from scripts import result_of

import engines
import models
from decisions import logistic_fit, wilson_interval

script = scripts.import_script("task-coba-ei-rsnn")
TRAINING = "--batch_size 8 --n_heldout 32 --eval_every 2 --save_every 3 --epochs 8 --lr 0.01 --schedule constant"
TINY = [*scripts.SMALL_NETWORK, *TRAINING.split(" ")]
FIGURES = {"activity.png", "weights.png", "weight_matrix.png"}


def run(*arguments, cwd):
    return scripts.run(script, *arguments, cwd=cwd)


def metrics_of(folder):
    """Rows of metrics.csv without the seconds."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(float(row.pop("seconds")) > 0 for row in rows)
    return rows


def weights_of(folder, which="last"):
    """Weights of the last or of the best checkpoint, and which connections they are of."""
    checkpoints = script.Checkpoints.of(folder, "load")
    state, _ = checkpoints.restore(getattr(checkpoints, which))
    checkpoints.close()
    weights = {name: np.asarray(w) for name, w in state["weights"].items()}
    return weights | {f"{name} {i}": x for name, pair in state["connections"].items() for i, x in enumerate(pair)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder of an uninterrupted training."""
    folder = tmp_path_factory.mktemp("trained")
    return result_of(run(*TINY, "--output", "run", cwd=folder), folder)


# ---- What it writes -------------------------------------------------------------------------------------------------


@pytest.mark.newest
def test_training_writes_all_that_it_promises(trained):
    result, folder = trained
    names = {path.name for path in folder.iterdir()}
    files = {"config.json", "result.json", "metrics.csv", "learning_curve.png", "checkpoints", "weights.npz"}
    assert names == FIGURES | files
    rows = metrics_of(folder)
    columns = ["update", "loss", "accuracy", "validation_accuracy", "rate_exc", "rate_inh"]
    assert [list(row) for row in rows] == [columns] * 8
    assert [row["update"] for row in rows] == [str(n) for n in range(1, 9)]
    assert [bool(row["validation_accuracy"]) for row in rows] == [False, True] * 4
    assert all(float(row["rate_exc"]) > 1 for row in rows)
    assert len({row["loss"] for row in rows}) == 8
    assert result["updates"] == 8
    assert result["stopped"] == "epochs"
    low, high = result["heldout_interval"]
    assert low < result["heldout_accuracy"] < high
    assert result["best"]["validation_accuracy"] == max(float(row["validation_accuracy"] or 0) for row in rows)
    assert set(result["heldout_rates_Hz"]) == {"cues", "delay", "recall"}
    weights = result["simulation"]["weights"]
    assert weights["before"]["exc"]["mean"] != weights["after"]["exc"]["mean"]
    config = json.loads((folder / "config.json").read_text())
    assert {"conn_seed", "weight_seed", "tau_a", "method"} <= config["arguments"].keys()
    assert {"orbax-checkpoint", "optax", "brainevent"} <= config["packages"].keys()


def test_the_limit_is_that_of_all_sequences_of_cues():
    """Of each of 2^7 sequences, by its probability; without adaptation there is none."""
    model = script.make_model(plain.arguments("--n_cue", 7, "--tau_a", 40))
    tau_a = plain.tau_a_of(model.network)
    cues = np.array(list(itertools.product((-1, 1), repeat=7)))
    left = (cues == -1).sum(axis=1)
    p = (0.7 ** (7 - left) * 0.3**left + 0.3 ** (7 - left) * 0.7**left) / 2
    _, evidence = model.task.trials(jax.random.split(jax.random.key(0), 20000))
    rows = models.fading(model, np.asarray(evidence))
    assert [row["tau_a"] for row in rows] == pytest.approx([np.mean(tau_a), np.max(tau_a)])
    for row in rows:
        ages = (6 - np.arange(7)) * (model.task.t_cue + model.task.t_interval)
        sums = (cues * np.exp(-ages / row["tau_a"])).sum(axis=1)
        expected = p[np.sign(sums) == np.sign(cues.sum(axis=1))].sum()
        assert 0.6 < expected < 0.99
        assert row["accuracy"] == pytest.approx(expected, abs=0.01)
    assert models.fading(script.make_model(plain.arguments("--beta", 0)), np.asarray(evidence)) == []


def test_a_run_says_what_limits_it_and_what_gets_further(monkeypatch, tmp_path, capsys):
    arguments = ["--epochs", 1, "--batch_size", 2, "--n_heldout", 4, "--output", "run", "--t_delay", 10]
    assert scripts.exit_status(script, monkeypatch, tmp_path, arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["best"]["update"] == 1  # the last one, where none is due
    limit = next(line for line in lines if line.startswith("cues that fade"))
    assert f"{result['fading'][1]['accuracy']:.3f} ({result['fading'][1]['tau_a']:.0f} ms)" in limit
    args = script.parse_args(["--method", "diag"])
    result["fading"] = [dict(tau_a=1000.0, accuracy=0.95), dict(tau_a=1500.0, accuracy=0.98)]
    for interval, texts in (
        ([0.1, 0.2], ["below both", "diag leaves out"]),
        ([0.9, 0.999], ["memory is the limit"]),
        ([0.981, 0.989], ["another memory", "above both"]),
    ):
        script.print_limit(result | dict(heldout_accuracy=0.9, heldout_interval=interval), args)
        limit, *command = capsys.readouterr().out.splitlines()
        assert all(text in limit for text in texts)
        further = f"0.99 of this task, by slower adaptation: python {script.SCRIPT}.py {script.LEARNS}"
        assert command == ([further] if "memory is the limit" in limit else [])
    script.print_limit(result | dict(heldout_accuracy=0.99), args)
    script.print_limit(result | dict(heldout_accuracy=0.9, best=dict(validation_accuracy=0.99)), args)
    assert capsys.readouterr().out == ""
    assert script.parse_args(script.LEARNS.split()).tau_a == 10000


def test_the_settings_of_the_released_code_are_one_argument():
    args = script.parse_args(["--released", "--lr", "4e-3"])
    assert (args.lr, args.batch_size, args.schedule, args.grad_clip) == (4e-3, 128, "constant", None)
    assert (args.epochs, args.etrace_decay, args.etrace_groups) == (10_000, 0.9, 1)
    assert script.parse_args(["--released"]).lr == 1e-3
    assert script.parse_args([]).schedule != "constant"


def test_the_last_and_the_best_checkpoint_are_kept(trained):
    result, folder = trained
    assert {int(path.name) for path in (folder / "checkpoints").iterdir()} == {8, result["best"]["update"]}
    assert result["best"]["update"] < 8  # else the tests of what is loaded show little
    assert not np.array_equal(weights_of(folder)["in"], weights_of(folder, "best")["in"])
    after = result["simulation"]["weights"]["after"]["in"]["mean"]
    assert after == np.abs(weights_of(folder, "best")["in"].astype(float)).mean()


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1])
def test_no_trial_of_validation_is_held_out(seed):
    """The keys of the trials, and what is derived from them: other cues in other numbers."""
    seeds = script.evaluation_seeds(script.TrainingSettings(heldout_seed=seed))
    keys = [jax.random.split(jax.random.key(s), 1024) for s in seeds]
    words = [{tuple(word) for word in np.asarray(jax.random.key_data(k))} for k in keys]
    assert len(words[0] | words[1]) == 2048
    task = script.EvidenceAccumulation()
    assert not np.array_equal(*(task.trials(k)[1] for k in keys))


PLAIN = """
import sys
import numpy as np

weights, given = np.load(sys.argv[1]), np.load("given.npz")

def strengths(name):
    w = abs(weights[name])
    if name + "_indptr" not in weights:
        return w
    matrix = np.zeros((len(weights[name + "_indptr"]) - 1, len(weights["tau_a"])))
    for i, row in enumerate(matrix):
        of_neuron = slice(*weights[name + "_indptr"][i : i + 2])
        row[weights[name + "_indices"][of_neuron]] = w[of_neuron]
    return matrix

n_exc = len(strengths("exc"))
exc = given["x"] @ strengths("in") + given["spikes"][:, :n_exc] @ strengths("exc")
inh = given["spikes"][:, n_exc:] @ strengths("inh")
assert "jax" not in sys.modules
np.savez("found.npz", exc=exc, inh=inh, out=given["spikes"] @ weights["out"])
"""


def check_plain_weights(folder, cwd):
    """weights.npz has the arrays of the best checkpoint, which NumPy alone uses as the network does."""
    with np.load(folder / "weights.npz") as file:
        arrays = dict(file)
    assert arrays.pop("update") == script.Checkpoints.of(folder, "load").best
    model, _ = script.load_network(folder, script.make_model(script.parse_args(["--load", str(folder)])))
    tau_a = (1 / np.asarray(model.network.neurons.k2.mantissa)).astype(np.float32)
    np.testing.assert_allclose(arrays.pop("tau_a"), tau_a, rtol=1e-6)
    theirs = weights_of(folder, "best")
    assert arrays.keys() == {name.replace(" 0", "_indptr").replace(" 1", "_indices") for name in theirs}
    for name, w in theirs.items():
        np.testing.assert_array_equal(arrays[name.replace(" 0", "_indptr").replace(" 1", "_indices")], w)

    rng, n = np.random.default_rng(0), model.network.n_rec
    x, spikes = ((rng.random((3, size)) < 0.5).astype(np.float32) for size in (model.network.n_in, n))
    np.savez(cwd / "given.npz", x=x, spikes=spikes)
    subprocess.run([sys.executable, "-c", PLAIN, folder / "weights.npz"], cwd=cwd, check=True)
    found = np.load(cwd / "found.npz")
    exc, inh = model.network.receive(model.synapses(), x, spikes)
    assert found["exc"].shape == found["inh"].shape == (3, n)
    np.testing.assert_allclose(found["exc"], exc, rtol=1e-5)
    np.testing.assert_allclose(found["inh"], inh, rtol=1e-5)
    np.testing.assert_allclose(found["out"], spikes @ model.synapses()["out"], rtol=1e-4, atol=1e-6)


def test_the_best_weights_are_there_for_numpy(trained, tmp_path):
    check_plain_weights(trained[1], tmp_path)


def test_same_seed_same_numbers_and_other_seed_others(trained, monkeypatch, tmp_path, capsys):
    _, folder = trained
    assert scripts.exit_status(script, monkeypatch, tmp_path, [*TINY, "--output", "same"]) == 0
    assert scripts.exit_status(script, monkeypatch, tmp_path, [*TINY, "--seed", 1, "--output", "other"]) == 0
    assert metrics_of(tmp_path / "same") == metrics_of(folder)
    assert metrics_of(tmp_path / "other")[0]["loss"] != metrics_of(folder)[0]["loss"]


@pytest.mark.parametrize("conn_method", ["gaussian", "rand"])
def test_sparse_networks_train_and_simulate(conn_method, monkeypatch, tmp_path, capsys):
    arguments = [*TINY, "--conn_method", conn_method, "--n_rec", 40, "--epochs", 2, "--opt", "sgd", "--weight_L1", 0.1]
    result, folder = scripts.run_here(script, monkeypatch, capsys, tmp_path, *arguments, "--output", "run")
    listed = result["simulation"]["weights"]["after"]
    assert listed["inh"]["n"] == 8 * 4
    assert listed["exc"]["n"] < 32 * 39
    check_plain_weights(folder, tmp_path)
    monkeypatch.setattr(script, "DELAYS", ())
    arguments = ["--mode", "sim", "--load", folder, "--batch_size", 4, "--figure_format", "pdf"]
    result, loaded = scripts.run_here(script, monkeypatch, capsys, tmp_path, *arguments)
    figures = FIGURES | {"behaviour.png"}
    vectors = {name.replace(".png", ".pdf") for name in figures}
    assert {path.name for path in loaded.iterdir()} == figures | vectors | {"config.json", "result.json"}
    assert all((loaded / name).read_bytes().startswith(b"%PDF") for name in vectors)
    assert result["weights"]["after"] == listed
    assert result["n_trials"] == 4
    assert result["rates_Hz"]["cues"]["exc"] > 1


def test_simulation_of_an_untrained_network(monkeypatch, tmp_path, capsys):
    arguments = [*scripts.SMALL_NETWORK, "--mode", "sim", "--output", "sim"]
    assert scripts.exit_status(script, monkeypatch, tmp_path, arguments) == 0
    output = capsys.readouterr().out
    result = json.loads((tmp_path / "sim" / "result.json").read_text())
    assert f"{result['rates_Hz']['recall']['inh']:.2f} Hz" in output
    assert set(result["weights"]) == {"before"}
    assert output.splitlines()[-1] == "sim"


def test_loaded_network_is_the_trained_one(trained, monkeypatch, tmp_path, capsys):
    """The best checkpoint, with the task and constants of its run unless others are given."""
    result, folder = trained
    arguments = ["--mode", "sim", "--load", folder, "--batch_size", 32, "--seed", 5, "--t_delay", 60, "--output", "sim"]
    monkeypatch.setattr(script, "DELAYS", ())
    assert scripts.exit_status(script, monkeypatch, tmp_path, arguments) == 0
    saved = json.loads((tmp_path / "sim" / "config.json").read_text())["arguments"]
    assert saved["tau_a"] == 1000
    assert saved["n_rec"] == 20
    assert saved["t_delay"] == 60
    weights = json.loads((tmp_path / "sim" / "result.json").read_text())["weights"]
    assert weights["before"] == result["simulation"]["weights"]["before"]
    for name, w in weights_of(folder, "best").items():
        assert name == "out" or weights["after"][name]["mean"] == np.abs(w.astype(float)).mean()


def test_a_network_trained_in_float32_is_loaded_in_float64(trained, monkeypatch, capsys, tmp_path):
    arguments = ["--mode", "sim", "--load", trained[1], "--batch_size", 4, "--n_heldout", 32, "--precision", 64]
    result, _ = scripts.run_here(script, monkeypatch, capsys, tmp_path, *arguments, "--output", "sim")
    after = trained[0]["simulation"]["weights"]["before"]["in"]["mean"]
    assert result["weights"]["before"]["in"]["mean"] == pytest.approx(after, rel=1e-6)
    accuracy = {row["t_delay"]: row["accuracy"] for row in result["behaviour"]["delays"]}[30]
    assert accuracy == pytest.approx(trained[0]["heldout_accuracy"], abs=0.1)


def test_behaviour_of_a_trained_network(trained, monkeypatch, tmp_path, capsys):
    """As the training and a simulation of the same trials have it, which has other code and kernels."""
    result, folder = trained
    arguments = ["--mode", "sim", "--load", folder, "--n_heldout", 32, "--output", "sim"]
    assert scripts.exit_status(script, monkeypatch, tmp_path, arguments) == 0
    simulated = json.loads((tmp_path / "sim" / "result.json").read_text())
    assert 0.5 < simulated["within_reversal_potentials"]["exc"] <= 1
    decisions = simulated["behaviour"]
    delays = {row["t_delay"]: row["accuracy"] for row in decisions["delays"]}
    silenced = {name: row["accuracy"] for name, row in decisions["silenced"].items()}
    assert delays.keys() == {30, *script.DELAYS}
    erased, with_V = "adaptation as recall begins", "adaptation and V as recall begins"
    assert silenced.keys() == {"nothing", "adaptation", erased, with_V, "recurrent exc", "recurrent inh"}
    assert delays[30] == silenced["nothing"] == result["heldout_accuracy"]
    psychometric = decisions["psychometric"]
    assert sum(row["n"] for row in psychometric) == decisions["n_trials"] == 32
    right = [row["right"] if row["difference"] > 0 else 1 - row["right"] for row in psychometric]
    assert np.average(right, weights=[row["n"] for row in psychometric]) == pytest.approx(delays[30])

    args = script.parse_args(["--load", str(folder), "--n_heldout", "32", "--devices", "0"])
    mesh = script.setup(args, [])
    keys = jax.random.split(jax.random.key(script.evaluation_seeds(args)[1]), 32)
    for change, accuracy in (({"t_delay": 250.0}, delays[250]), ({"beta": 0.0}, silenced["adaptation"])):
        model = script.make_model(argparse.Namespace(**vars(args) | change))
        model, _ = script.load_network(folder, model)
        activity = script.simulate(model, keys, mesh)
        assert activity.rates.sum() > 0
        assert activity.correct.mean() == accuracy
    whole, without, at_recall = (decisions["silenced"][name]["rates_Hz"] for name in ("nothing", "adaptation", erased))
    assert without["cues"] != whole["cues"]
    assert at_recall["recall"] != whole["recall"]
    assert all(at_recall[period] == whole[period] for period in ("cues", "delay"))
    model, _ = script.load_network(folder, script.make_model(args))
    by_hand = {name: accuracy_with_adaptation_erased(model, keys, name == with_V) for name in (erased, with_V)}
    assert by_hand == {name: silenced[name] for name in by_hand}
    at_rest = decisions["silenced"][with_V]["rates_Hz"]
    assert at_rest["delay"] == whole["delay"]
    assert at_rest["recall"] != at_recall["recall"]


def accuracy_with_adaptation_erased(model, keys, with_V):
    """By hand: all steps before recall, then I2 = 0, and V = V_rest (0) if so, then those of recall."""
    task, network = model.task, model.network
    labels, evidence = task.trials(keys)

    @jax.jit
    def run(synapses):
        def step(k):
            network.update(synapses, task.spikes(keys, evidence, k))
            return network.r.value

        network.init_state(len(keys))
        start, stop = task.periods["recall"].start, task.periods["recall"].stop
        with model.clock():
            brainstate.transform.for_loop(step, jnp.arange(start))
            left = network.neurons.I2.value
            network.neurons.I2.value = jnp.zeros_like(left)
            if with_V:
                network.neurons.V.value = jnp.zeros_like(network.neurons.V.value)
            r = brainstate.transform.for_loop(step, jnp.arange(start, stop))
        return abs(left).max(), r.sum(axis=0).argmax(axis=-1) == labels

    left, correct = run(model.synapses())
    assert left > 0.01
    return correct.mean()


# ---- How it stops and goes on ---------------------------------------------------------------------------------------

PATCHED = """
import importlib, os, signal, sys
sys.path.insert(0, {root!r})
import checkpoints
script = importlib.import_module("task-coba-ei-rsnn")
{patch}
sys.exit(script.main())
"""
# In the 5th update; or when a checkpoint after the first has its arrays but not yet all.
MIDDLE_OF_TRAINING = """
diagnose, calls = script.diagnose, []
def killed(*rates):
    calls.append(0)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return diagnose(*rates)
script.diagnose = killed
"""
MIDDLE_OF_SAVE = """
handler = checkpoints.ocp.JsonCheckpointHandler
save, calls = handler.async_save, []
async def killed(self, directory, *args, **kwargs):
    calls.append(0)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return await save(self, directory, *args, **kwargs)
handler.async_save = killed
"""


@pytest.mark.newest
@pytest.mark.parametrize("patch", [MIDDLE_OF_TRAINING, MIDDLE_OF_SAVE])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(patch, trained, monkeypatch, tmp_path, capsys):
    root = script.Path(script.__file__).parent
    code = PATCHED.format(root=str(root), patch=patch)
    command = [sys.executable, "-c", code, *TINY, "--output", "run"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    interrupted = metrics_of(tmp_path / "run")
    assert 0 < len(interrupted) < 8
    if patch == MIDDLE_OF_SAVE:
        unfinished = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir() if not path.name.isdigit()]
        assert [path.name for path in (tmp_path / "run" / "checkpoints" / unfinished[0]).iterdir() if path.is_dir()]
    assert not (tmp_path / "run" / "result.json").exists()
    assert scripts.exit_status(script, monkeypatch, tmp_path, ["--resume", "run"]) == 0
    _, folder = trained
    assert metrics_of(tmp_path / "run") == metrics_of(folder)
    ours, theirs = weights_of(tmp_path / "run"), weights_of(folder)
    assert ours.keys() == theirs.keys()
    for name, w in theirs.items():
        np.testing.assert_array_equal(w, ours[name])
    if patch == MIDDLE_OF_SAVE:
        assert all(path.name.isdigit() for path in (tmp_path / "run" / "checkpoints").iterdir())


@pytest.mark.newest
@pytest.mark.parametrize(
    ("call", "limit", "what"),
    [(0, 10, "checkpoints/"), (0, 1000, "checkpoints/"), (5, 1000, "weights.npz"), (1, 13_000, "learning_curve.png")],
)
def test_a_training_whose_disk_fills_up_resumes_to_the_same_numbers(
    call, limit, what, trained, monkeypatch, tmp_path, capsys
):
    """From the second checkpoint or the call-th other file on: it tells its numbers, and leaves nothing half."""
    _, folder = trained
    of = (runs, "save", call) if call else (script.Checkpoints, "save", 2)
    with scripts.full_disk(*of, limit):
        done = scripts.done_here(script, monkeypatch, capsys, tmp_path, *TINY, "--output", "run")
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        f"task-coba-ei-rsnn.py: error: run/{what}" if call else f"task-coba-ei-rsnn.py: error: {tmp_path}"
    )
    assert f"run/{what}" in line
    assert ": File too large; kept in run: checkpoints, " in line
    assert "held-out accuracy" in done.stdout
    assert done.stdout.splitlines()[-1] == "run"
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.startswith(".")]
    assert all(path.name.isdigit() for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert np.load(tmp_path / "run" / "weights.npz")["in"].shape == (12, 20)

    assert scripts.exit_status(script, monkeypatch, tmp_path, ["--resume", "run"]) == 0
    assert metrics_of(tmp_path / "run") == metrics_of(folder)
    for name, w in weights_of(folder).items():
        np.testing.assert_array_equal(w, weights_of(tmp_path / "run")[name])
    check_plain_weights(tmp_path / "run", tmp_path)


def test_of_several_processes_one_that_cannot_save_evaluates_no_more(monkeypatch, tmp_path):
    """The others train on, so that a sum over all would wait for ever."""

    class Full:
        def __init__(self, *arguments):
            pass

        def go_on(self):
            raise runs.CannotSave("checkpoints: No space left on device")

        def result(self):
            raise AssertionError("evaluated")

    monkeypatch.setattr(script, "Training", Full)
    monkeypatch.setattr(script.processes, "is_several", lambda: True)
    args = script.parse_args(["--output", str(tmp_path)])
    with pytest.raises(runs.CannotSave, match="No space"):
        script.train(args, [], SimpleNamespace(save_config=print), SimpleNamespace(devices=np.array([])), None)


def test_ctrl_c_saves_and_the_run_goes_on(trained, tmp_path, monkeypatch, capsys):
    diagnose, calls = script.diagnose, []

    def interrupted(*rates):
        calls.append(0)
        if len(calls) == 5:
            signal.raise_signal(signal.SIGINT)
        return diagnose(*rates)

    monkeypatch.setattr(script, "diagnose", interrupted)
    assert scripts.exit_status(script, monkeypatch, tmp_path, [*TINY, "--output", "run"]) == 130
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["stopped"] == "interrupted"
    assert result["updates"] == 5
    assert scripts.exit_status(script, monkeypatch, tmp_path, ["--resume", "run"]) == 0
    assert metrics_of(tmp_path / "run") == metrics_of(trained[1])


def test_training_goes_on_from_a_loaded_network_and_resumes(trained, tmp_path, monkeypatch, capsys):
    """With other constants than those of the run that is loaded, which the resumed run has too."""
    _, folder = trained
    arguments = ["--load", folder, *scripts.SMALL_NETWORK, "--tau_a", 500, "--batch_size", 8, "--n_heldout", 32]
    arguments += ["--eval_every", 2, "--lr", 1e-9, "--schedule", "constant"]
    assert scripts.exit_status(script, monkeypatch, tmp_path, [*arguments, "--epochs", 2, "--output", "run"]) == 0
    assert scripts.exit_status(script, monkeypatch, tmp_path, ["--resume", "run", "--epochs", 4]) == 0
    assert scripts.exit_status(script, monkeypatch, tmp_path, [*arguments, "--epochs", 4, "--output", "whole"]) == 0
    assert metrics_of(tmp_path / "run") == metrics_of(tmp_path / "whole")
    assert json.loads((tmp_path / "run" / "config.json").read_text())["arguments"]["tau_a"] == 500
    loaded = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("run", "whole")]
    assert loaded[0]["loaded_validation_accuracy"] == loaded[1]["loaded_validation_accuracy"] > 0
    assert "update 0: accuracy in validation" in capsys.readouterr().out
    kept = [script.Checkpoints.of(path, "load") for path in (folder, tmp_path / "whole")]
    keys = [checkpoints.restore(checkpoints.best)[0]["key"] for checkpoints in kept]
    assert (keys[0] != keys[1]).any(), "of the same seed, and other trials"


def test_a_network_that_is_better_before_its_training_is_said_to_be(trained, tmp_path, monkeypatch, capsys):
    arguments = ["--load", trained[1], "--n_heldout", 256, "--epochs", 1, "--lr", 10, "--opt", "sgd", "--output", "run"]
    assert scripts.exit_status(script, monkeypatch, tmp_path, arguments) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    before, after = result["loaded_validation_accuracy"], result["best"]["validation_accuracy"]
    assert before > after
    text = f"better in validation than the network of --load: {after:.4f} here, {before:.4f} there, of 256 trials"
    assert text in result["warnings"][-1]


def test_other_number_of_devices(trained, tmp_path):
    """A training of two devices is loaded where there is one."""
    environment = dict(os.environ, JAX_NUM_CPU_DEVICES="1")
    code = PATCHED.format(root=str(script.Path(script.__file__).parent), patch="script.DELAYS = ()")
    command = [sys.executable, "-c", code, "--mode", "sim", "--load", trained[1], "--output", "sim"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, env=environment)
    result, _ = result_of(done, tmp_path)
    assert result["weights"]["before"] == trained[0]["simulation"]["weights"]["before"]


def test_cosine_schedule_cannot_be_prolonged(monkeypatch, tmp_path, capsys):
    arguments = [*TINY, "--schedule", "cosine", "--epochs", 2, "--output", "run"]
    assert scripts.exit_status(script, monkeypatch, tmp_path, arguments) == 0
    capsys.readouterr()
    errors = scripts.refused(script, monkeypatch, capsys, tmp_path, ["--resume", "run", "--epochs", 4])
    assert "--epochs: found 4 here and 2 in run" in errors


def test_ctrl_c_from_the_keyboard(tmp_path):
    command = [sys.executable, script.__file__, *TINY, "--epochs", "100000", "--output", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120  # it comes during an update or a save, as it happens
    while not (tmp_path / "run" / "metrics.csv").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    assert output.splitlines()[-1] == "run"
    assert "stopped by: interrupted" in output
    assert "Traceback" not in errors


def test_training_ends_at_the_threshold(monkeypatch, tmp_path, capsys):
    arguments = [*TINY, "--threshold", 0.01, "--output", "run"]
    assert scripts.exit_status(script, monkeypatch, tmp_path, arguments) == 0
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["stopped"] == "threshold"
    assert result["updates"] == 2


@pytest.mark.newest
@pytest.mark.parametrize("method", ["diag", "expsm_diag"])
def test_online_learning_stops_and_goes_on(method, trained, monkeypatch, tmp_path, capsys):
    """As any training does: a resumed run equals the whole one, and is another one than that by BPTT."""
    arguments = [*TINY, "--method", method, "--trace_chunk", 20]
    for more in (["--epochs", 2, "--output", "run"], ["--epochs", 4, "--output", "whole"]):
        assert scripts.exit_status(script, monkeypatch, tmp_path, [*arguments, *more]) == 0
    assert scripts.exit_status(script, monkeypatch, tmp_path, ["--resume", "run", "--epochs", 4]) == 0
    rows = metrics_of(tmp_path / "run")
    assert rows == metrics_of(tmp_path / "whole")
    bptt_rows = metrics_of(trained[1])
    assert float(rows[0]["loss"]) == pytest.approx(float(bptt_rows[0]["loss"]), rel=1e-5)
    assert abs(float(rows[3]["loss"]) / float(bptt_rows[3]["loss"]) - 1) > 1e-4
    assert json.loads((tmp_path / "run" / "result.json").read_text())["method"] == method


@pytest.mark.parametrize(
    ("engine", "method"),
    [
        pytest.param("brainscale", "expsm_diag", marks=needs("brainscale")),
        pytest.param("braintrace", "diag", marks=[needs("braintrace"), pytest.mark.newest]),
    ],
)
def test_training_by_another_package(engine, method, monkeypatch, tmp_path, capsys):
    """It is ours, update by update, where the rule of the package is."""
    monkeypatch.chdir(tmp_path)
    for chosen in ("native", engine):
        arguments = [*TINY, "--method", method, "--epochs", 3, "--engine", chosen]
        arguments += ["--etrace_groups", 1] if (chosen, method) == ("native", "expsm_diag") else []
        assert scripts.exit_status(script, monkeypatch, tmp_path, arguments) == 0
    folders = sorted(path.name for path in (tmp_path / "results" / script.SCRIPT).iterdir())
    assert folders == sorted([f"train_{method}_{engine}_dense_20_seed0", f"train_{method}_dense_20_seed0"])
    rows = [metrics_of(tmp_path / "results" / script.SCRIPT / name) for name in folders]
    for row, other in zip(*rows, strict=True):
        assert float(row["loss"]) == pytest.approx(float(other["loss"]), rel=1e-4)


# ---- What it refuses and warns of -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--n_rec", 4], ["--n_rec", "4", ">= 5"]),
        (["--n_in", 10], ["--n_in", "10", "multiple of 4"]),
        (["--n_cue", 4], ["--n_cue", "4", "odd"]),
        (["--rate_cue", 1500], ["--rate_cue", "1500", "1000 Hz"]),
        (["--t_recall", 0.2], ["--t_recall", "0.2", "step"]),
        (["--dt", 20, "--t_interval", 10], ["--t_interval", "10", "whole steps of 20"]),
        (["--p_bias", 1.5], ["--p_bias", "1.5", "<= 1"]),
        (["--lr", 0], ["--lr", "'0'", "> 0"]),
        (["--conn_method", "smallworld"], ["--conn_method", "smallworld"]),
        (["--devices", "0,9"], ["--devices", "0,9"]),
        (["--devices", "0,1", "--batch_size", 3], ["--batch_size", "3", "multiple of the 2 devices"]),
        (["--resume", "nowhere"], ["--resume", "nowhere", "config.json"]),
        (["--load", "nowhere"], ["--load", "nowhere", "config.json"]),
        (["--load", "other"], ["--load", "other", "another script"]),
        (["--resume", "other"], ["--resume", "other", "another script", "to resume"]),
        (["--output", "."], ["--output"]),
        (["--method", "rtrl"], ["--method", "rtrl"]),
        (["--etrace_decay", 0], ["--etrace_decay", "'0'", "between 0 and 1"]),
        (["--etrace_decay", 1.5], ["--etrace_decay", "1.5", "rank"]),
        (["--etrace_decay", "slow"], ["--etrace_decay", "slow"]),
        (["--etrace_groups", 3], ["--etrace_groups", "3", "<= 2"]),
        (["--trace_chunk", 0], ["--trace_chunk", "0", ">= 1"]),
        (["--engine", "brainscale"], ["--engine", "--method bptt", "diag"]),
        (["--etrace_decay", 0.9], ["--etrace_decay", "--method bptt", "no effect", "--method expsm_diag"]),
        (["--method", "diag", "--etrace_groups", 1], ["--etrace_groups", "--method diag", "--method expsm_diag"]),
        (["--method", "expsm_diag", "--trace_batch", 1], ["--trace_batch", "--method expsm_diag", "--method diag"]),
        (
            ["--method", "expsm_diag", "--etrace_groups", 1, "--etrace_stretches", 2],
            ["--etrace_stretches", "--etrace_groups 1", "expected 2 of them"],
        ),
        (["--method", "expsm_diag", "--beta", 0, "--etrace_stretches", 2], ["--etrace_stretches", "--beta other than"]),
        (["--beta", 0, "--tau_a", 500], ["--tau_a", "--beta other than 0, as nothing adapts"]),
    ],
)
def test_bad_arguments_get_one_line(arguments, texts, monkeypatch, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"arguments": {"seed": 0}}')
    errors = scripts.refused(script, monkeypatch, capsys, tmp_path, arguments)
    assert all(text in errors for text in texts)


@pytest.mark.parametrize(
    ("method", "groups", "given", "text"),
    [
        ("expsm_diag", 1, {"etrace_groups", "etrace_decay"}, None),
        ("diag", 2, set(), None),
        ("expsm_diag", 2, {"etrace_groups"}, "--etrace_groups: found it with --engine braintrace, which has one group"),
        ("diag", 2, {"trace_batch"}, "--trace_batch: found it with --engine braintrace"),
        ("diag", 2, {"etrace_decay"}, "--etrace_decay: found it with --method diag, where it has no effect, expected"),
    ],
)
def test_what_a_package_does_not_have_is_refused(method, groups, given, text):
    with contextlib.nullcontext() if text is None else pytest.raises(runs.BadInput, match=text):
        engines.refuse_unused(method, "braintrace", groups, given)


@pytest.mark.parametrize("package", ["brainscale", "braintrace"])
def test_without_the_package_of_an_engine(package, monkeypatch, tmp_path, capsys):
    """Its engine says how to install it."""
    monkeypatch.setitem(sys.modules, package, None)
    arguments = ["--method", "diag", "--engine", package]
    errors = scripts.refused(script, monkeypatch, capsys, tmp_path, arguments)
    assert engines.PACKAGES[package] in errors


@pytest.fixture
def copied(trained, tmp_path):
    shutil.copytree(trained[1], tmp_path / "run")
    return tmp_path


def test_arguments_of_training_are_refused_in_a_simulation(monkeypatch, capsys, tmp_path):
    for argument in (
        "--lr 1e-3",
        "--method diag",
        "--etrace_decay 0.9",
        "--released",
        "--engine braintrace",
        "--n_heldout 9",
    ):
        error = scripts.refused(script, monkeypatch, capsys, tmp_path, ["--mode", "sim", *argument.split(" ")])
        assert f"argument {argument.split(' ')[0]}: found it with --mode sim, where it has no effect" in error


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--load", "run", "--n_rec", 25], ["--n_rec", "25", "20"]),
        (["--load", "run", "--conn_method", "rand"], ["--conn_method", "rand", "dense"]),
        (["--load", "run", "--ff_scale", 3], ["--ff_scale", "3", "8"]),
        (["--resume", "run", "--n_rec", 25], ["--n_rec", "25", "20"]),
        (["--resume", "run", "--lr", 1], ["--lr", "1", "0.01"]),
        (["--resume", "run", "--mode", "sim"], ["--resume"]),
    ],
)
def test_other_sizes_than_those_of_the_run_are_refused(arguments, texts, copied, monkeypatch, capsys):
    errors = scripts.refused(script, monkeypatch, capsys, copied, arguments)
    assert all(text in errors for text in texts)


def remove_all(folder):
    shutil.rmtree(folder / "checkpoints")


def empty(folder):
    for path in (folder / "checkpoints").iterdir():
        shutil.rmtree(path)


def damage_arrays(folder):
    for path in (folder / "checkpoints").rglob("state/**/*"):
        if path.is_file():
            path.write_bytes(b"damaged")


def damage_metrics(folder):
    for path in (folder / "checkpoints").rglob("metrics/*"):
        path.write_bytes(b"{damaged")


def damage_history(folder):
    for path in (folder / "checkpoints").rglob("history/*"):
        path.write_bytes(b"{damaged")


@pytest.mark.parametrize("damage", [remove_all, empty, damage_arrays, damage_history, damage_metrics])
@pytest.mark.parametrize("arguments", [["--resume", "run"], ["--mode", "sim", "--load", "run"]])
def test_missing_or_damaged_checkpoints_are_named(damage, arguments, copied, monkeypatch, capsys):
    damage(copied / "run")
    errors = scripts.refused(script, monkeypatch, capsys, copied, arguments)
    assert "run" in errors
    assert "checkpoint" in errors


def test_a_training_of_an_earlier_version_is_loaded_and_not_resumed(copied, monkeypatch, capsys):
    """One that had chosen its weights by the trials of its accuracy, which other names tell."""
    best = script.Checkpoints.of(copied / "run", "load").best
    for path in (copied / "run" / "checkpoints").rglob("*"):
        if path.is_file() and path.parent.name in ("history", "metrics"):
            path.write_bytes(path.read_bytes().replace(b"validation_accuracy", b"heldout_accuracy"))
    errors = scripts.refused(script, monkeypatch, capsys, copied, ["--resume", "run"])
    assert "earlier version" in errors
    assert script.Checkpoints.of(copied / "run", "load").best == best < 8


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--ff_scale", 0], ["silent", "--ff_scale"]),
        (["--E_exc", 1], ["silent", "--E_exc above 1"]),
        (["--rate_cue", 0, "--rate_recall", 0, "--rate_noise", 0], ["silent", "--rate_cue"]),
        (["--ff_scale", 2000, "--rec_scale", 50, "--beta", 0], ["saturates", "Hz"]),
    ],
)
def test_silent_and_saturated_networks_are_named(arguments, texts, monkeypatch, tmp_path, capsys):
    arguments = [*TINY, *arguments, "--epochs", 2, "--output", "run"]
    assert scripts.exit_status(script, monkeypatch, tmp_path, arguments) == 0
    output = capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert len(result["warnings"]) == 1
    assert all(text in result["warnings"][0] for text in texts)
    assert result["warnings"][0] in output


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--lr", 1e38], "is not finite at time step"),  # of the simulation after an update that is finite
        (["--lr", 1e38, "--opt", "sgd", "--ff_scale", 9, "--weight_L2", 1e3], "the weights"),
    ],
)
def test_nan_is_caught_and_named(arguments, texts, monkeypatch, tmp_path, capsys):
    arguments = [*TINY, *arguments, "--epochs", 5, "--output", "run"]
    assert scripts.exit_status(script, monkeypatch, tmp_path, arguments) == 1
    output = capsys.readouterr().out
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert texts in result["stopped"]
    assert result["stopped"] in output
    assert "--lr" in result["stopped"]
    assert result["updates"] < 5


def test_help_explains_every_argument(capsys):
    scripts.check_help(script, capsys)


# ---- Statistics -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_correct", "n"), [(0, 10), (5, 10), (1000, 1024), (1024, 1024)])
def test_wilson_interval_is_where_the_score_test_rejects(n_correct, n):
    """Its ends are the probabilities p at which |p_hat - p| = z sqrt(p (1 - p) / n)."""
    for p in wilson_interval(n_correct, n):
        assert abs(n_correct / n - p) == pytest.approx(1.959964 * math.sqrt(p * (1 - p) / n), abs=1e-6)


@pytest.mark.parametrize("law", script.WEIGHT_LAWS)
def test_the_law_that_weights_have_fits_them_best(law):
    shape = {"half-normal": (), "gamma": (3.0,), "log-normal": (0.8,)}[law]
    w = script.WEIGHT_LAWS[law].rvs(*shape, scale=0.2, size=5000, random_state=0)
    statistics = script.weight_statistics(w * np.random.default_rng(0).choice([-1, 1], 5000))
    laws = statistics["laws"]
    assert min(laws, key=lambda name: laws[name]["AIC"]) == law
    *fitted, location, scale = laws[law]["parameters"]
    assert location == 0
    assert scale == pytest.approx(0.2, rel=0.1)
    assert fitted == pytest.approx(shape, rel=0.1)
    assert statistics["mean"] == pytest.approx(w.mean())


@pytest.mark.parametrize(("k", "n"), [((3, 9), (10, 10)), ((0, 12), (8, 12)), ((1, 1), (20, 4))])
def test_logistic_fit_has_the_log_odds_of_two_groups(k, n):
    """With the prior of Jeffreys, which is Firth's factor, those are log((k + 1/2) / (n - k + 1/2)), also at k = 0."""
    x = np.repeat([0.0, 1.0], n)[:, None]
    chosen = np.concatenate([np.arange(size) < count for count, size in zip(k, n, strict=True)])
    fit = logistic_fit(x, chosen)
    log_odds = [math.log((count + 0.5) / (size - count + 0.5)) for count, size in zip(k, n, strict=True)]
    assert fit["bias"] == pytest.approx(log_odds[0], abs=1e-4)
    assert fit["slopes"] == pytest.approx([log_odds[1] - log_odds[0]], abs=1e-4)


def test_logistic_fit_finds_the_weights_behind_choices():
    rng, true = np.random.default_rng(0), np.array([0.5, 1.0, -0.7, 0.0])
    x = rng.choice([-1, 1], (4000, 3))
    chosen = rng.random(4000) < 1 / (1 + np.exp(-(true[0] + x @ true[1:])))
    fit = logistic_fit(x, chosen)
    z = (np.array([fit["bias"], *fit["slopes"]]) - true) / [fit["bias_se"], *fit["slopes_se"]]
    assert np.abs(z).max() < 3
    assert 0.02 < max(fit["slopes_se"]) < 0.1
    assert not fit["separated"]
    assert logistic_fit(np.ones((10, 1)), np.arange(10) > 3) is None


@pytest.mark.parametrize(
    ("x", "chosen", "separated"),
    [
        ([-2, -1, 1, 2], [0, 0, 1, 1], True),
        ([-2, 0, 0, 2], [0, 0, 1, 1], True),  # but for a tie
        ([-2, 1, -1, 2], [0, 0, 1, 1], False),
        ([-2, -1, 1, 2], [1, 1, 1, 1], True),
    ],
)
def test_choices_without_an_error_have_no_standard_error(x, chosen, separated):
    """With ten times as many of them its size goes on growing, if they are separated, and hardly if not."""
    x, chosen = np.array(x, float)[:, None], np.array(chosen, bool)
    fit, more = (logistic_fit(np.tile(x, (n, 1)), np.tile(chosen, n)) for n in (10, 100))
    assert fit["separated"] is more["separated"] is separated
    assert np.isnan(fit["slopes_se"] + [fit["bias_se"]]).all() == separated
    growth = np.hypot(more["bias"], more["slopes"][0]) / np.hypot(fit["bias"], fit["slopes"][0])
    assert (growth > 1.3) == separated


def test_behaviour_without_a_delay_is_drawn(trained, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(script, "DELAYS", (250.0,))
    arguments = ["--mode", "sim", "--load", trained[1], "--n_heldout", 8, "--batch_size", 4, "--t_delay", 0]
    result, _ = scripts.run_here(script, monkeypatch, capsys, tmp_path, *arguments)
    assert [row["t_delay"] for row in result["behaviour"]["delays"]] == [0, 250]
    task = script.make_model(script.parse_args(list(map(str, arguments)))).task
    figure = script.plot_behaviour(task, result["behaviour"])
    low, high = figure.axes[2].get_xlim()
    assert low <= 0 < 250 < high
    assert [label.get_text() for label in figure.axes[2].get_xticklabels()] == ["0", "250"]
    plt.close(figure)
