"""Several processes of one run, on the loopback address: the numbers of one, and an end when one of them dies."""

import json
import os
import shutil
import signal
import socket
import time

import runs

import many
import numpy as np
import pytest
import scripts

import supervisor
from supervisor import Heard, Place

TRAIN = "--batch_size 4 --n_heldout 8 --eval_every 2 --save_every 2 --precision 64"
TRAIN = (*scripts.SMALL_NETWORK, *TRAIN.split(" "))
ENDLESS = ("--epochs", 100000, "--schedule", "constant", "--threshold", 1, "--lr", 1e-9)  # it learns nothing
COMPARE = "--mode compare --repeats 3 --n_sample 2 --gradient_cost 3 --methods L-BFGS-B random"
ei, hh = scripts.import_script("task-coba-ei-rsnn"), scripts.import_script("neuron_fitting_of_hh_model")


def weights_of(folder):
    with np.load(folder / "weights.npz") as arrays:
        return dict(arrays)


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, w in ours.items():
        np.testing.assert_allclose(w, theirs[name], rtol=1e-12, err_msg=name)


def alone(script, folder, *arguments):
    """The exit status of a run by one process, this one, which has two devices."""
    done = scripts.done_alone(script, folder, *arguments)
    assert done.stderr == ""
    return done.returncode


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with run "one", by a process with two devices, and "two", by two processes with one each."""
    folder = tmp_path_factory.mktemp("trained")
    arguments = (*TRAIN, "--schedule", "constant", "--epochs", 4, "--output")
    assert alone(ei, folder, *arguments, "one", "--devices", "0,1") == 0
    first, second = many.run(2, "task-coba-ei-rsnn", (*arguments, "two"), folder)
    for run in (first, second):
        assert (run.status, run.errors) == (0, "")
    return folder, first, second


def test_two_processes_train_as_one_with_two_devices(trained):
    folder, *_ = trained
    assert_equal(weights_of(folder / "one"), weights_of(folder / "two"))
    one, two = (json.loads((folder / name / "result.json").read_text()) for name in ("one", "two"))
    for name in ("heldout_accuracy", "updates"):
        assert one[name] == two[name]
    assert one["simulation"]["rates_Hz"]["cues"]["exc"] > 0
    for period, rates in one["simulation"]["rates_Hz"].items():
        assert rates == pytest.approx(two["simulation"]["rates_Hz"][period], rel=1e-12)
    assert len(json.loads((folder / "two" / "config.json").read_text())["devices"]) == 2


def test_the_first_process_writes_and_prints(trained):
    folder, first, second = trained
    assert first.output.splitlines()[-1] == "two"
    assert second.output == ""
    assert {path.name for path in (folder / "one").iterdir()} == {path.name for path in (folder / "two").iterdir()}
    assert not [path for path in folder.rglob("*-2")]


def test_what_two_processes_have_saved_one_goes_on_with(trained, tmp_path):
    """And what one has saved, two go on with, to the same numbers."""
    for name in ("one", "two"):
        shutil.copytree(trained[0] / name, tmp_path / name)
    ended = many.run(2, "task-coba-ei-rsnn", ("--resume", "one", "--epochs", 6), tmp_path)
    assert [run.status for run in ended] == [0, 0], [run.errors for run in ended]
    assert alone(ei, tmp_path, "--resume", "two", "--epochs", 6, "--devices", "0,1") == 0
    for name in ("one", "two"):
        assert json.loads((tmp_path / name / "result.json").read_text())["updates"] == 6
    assert_equal(weights_of(tmp_path / "one"), weights_of(tmp_path / "two"))


def test_two_processes_fit_as_one(tmp_path):
    """As SLURM would start them."""
    arguments = ("--n_sample", 4)
    assert alone(hh, tmp_path, *arguments, "--output", "one", "--devices", "0,1") == 0
    first, second = many.run(2, "neuron_fitting_of_hh_model", (*arguments, "--output", "two"), tmp_path, slurm=True)
    assert (first.status, second.status, first.errors, second.errors) == (0, 0, "", "")
    one, two = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two"))
    assert one["loss"] < 1e-6
    for name in ("loss", "parameters", "n_gradients"):
        assert one[name] == two[name]


def test_two_processes_split_the_repeats_of_a_comparison(tmp_path):
    arguments = COMPARE.split(" ")
    assert alone(hh, tmp_path, *arguments, "--output", "one", "--devices", "0") == 0
    first, second = many.run(2, "neuron_fitting_of_hh_model", (*arguments, "--output", "two"), tmp_path)
    assert (first.status, second.status, first.errors, second.errors) == (0, 0, "", "")
    names = [f"{method}_{repeat}.json" for method in ("L-BFGS-B", "random") for repeat in range(3)]
    for name in names:
        one, two = (json.loads((tmp_path / run / "repeats" / name).read_text()) for run in ("one", "two"))
        assert (one["loss"], one["seed"]) == (two["loss"], two["seed"])


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.parametrize("victim", [0, 1])
def test_where_one_dies_all_end_and_say_so(victim, tmp_path):
    """Within a minute, with the checkpoint and the command to go on; which does, from there."""
    arguments = (*TRAIN, *ENDLESS, "--output", "run")
    with many.started(2, "task-coba-ei-rsnn", arguments, tmp_path) as both:
        wait_for((tmp_path / "run" / "checkpoints" / "2").exists)
        (worker,) = many.children(both[victim].pid)
        both[victim].kill()
        start = time.monotonic()
        other = many.ended([both[1 - victim]])[0]
        assert time.monotonic() - start < 60
        wait_for(lambda: not many.is_alive(worker), 10)
    last = max(supervisor.saved_updates(tmp_path / "run"))
    assert other.status == 1
    (line,) = other.errors.splitlines()
    assert f"process {victim} has died" in line
    assert f"checkpoint of update {last} is kept" in line
    command = line.split("go on with: ")[1].split()
    assert command[:3] == ["python", "task-coba-ei-rsnn.py", "--resume"]
    changed = ("--epochs", last + 2, "--devices", "0,1")
    (resumed,) = many.run(1, "task-coba-ei-rsnn", (*command[2:4], *changed), tmp_path)
    assert resumed.status == 0, resumed.errors
    assert json.loads((tmp_path / "run" / "result.json").read_text())["updates"] == last + 2


def test_ctrl_c_in_one_ends_all_at_the_same_update(tmp_path):
    arguments = (*TRAIN, *ENDLESS, "--output", "run")
    with many.started(2, "task-coba-ei-rsnn", arguments, tmp_path) as both:
        wait_for((tmp_path / "run" / "checkpoints" / "2").exists)
        os.killpg(both[1].pid, signal.SIGINT)  # as a terminal does, to a process and its supervisor
        ended = many.ended(both)
    assert [run.status for run in ended] == [130, 130], [run.errors for run in ended]
    assert "interrupted; kept in" in ended[0].errors
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["stopped"] == "interrupted"


def test_processes_with_other_arguments_are_refused(tmp_path):
    address = many.free_address()
    arguments = (*TRAIN, "--epochs", 2, "--output", "run")
    place = ("--coordinator", address, "--num_processes", 2, "--process_id")
    first = many.started(1, "task-coba-ei-rsnn", (*arguments, "--lr", 0.1, *place, 0), tmp_path)
    second = many.started(1, "task-coba-ei-rsnn", (*arguments, "--lr", 0.2, *place, 1), tmp_path)
    with first as one, second as other:
        ended = many.ended([*one, *other])
    assert [run.status for run in ended] == [2, 2]
    for i, run in enumerate(ended):
        (line,) = run.errors.splitlines()
        assert "argument --lr: found" in line
        assert f"in process {i}" in line
    assert not (tmp_path / "run").exists()


def test_a_port_that_is_taken_is_refused(tmp_path):
    with socket.create_server(("", 0)) as server:
        place = ("--coordinator", f"127.0.0.1:{server.getsockname()[1]}", "--num_processes", 2, "--process_id", 0)
        (run,) = many.run(1, "task-coba-ei-rsnn", (*TRAIN, *place), tmp_path)
    assert run.status == 2
    (line,) = run.errors.splitlines()
    assert "where process 0 cannot listen (" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--coordinator 127.0.0.1:1", "--coordinator: found no --num_processes and no --process_id"),
        ("--process_id 1", "--process_id: found no --coordinator and no --num_processes"),
        ("--coordinator here --num_processes 2 --process_id 0", "--coordinator: found 'here', expected HOST:PORT"),
        ("--coordinator a:1 --num_processes 2 --process_id 2", "--process_id: found 2, expected less than the 2"),
        ("--coordinator a:1 --num_processes 2 --process_id -1", "--process_id: found '-1', expected an integer >= 0"),
    ],
)
def test_a_place_that_is_none_is_refused(arguments, message, monkeypatch, capsys, tmp_path):
    assert message in scripts.refused(ei, monkeypatch, capsys, tmp_path, arguments.split())


def test_without_a_cluster_it_takes_an_address(tmp_path):
    (run,) = many.run(1, "task-coba-ei-rsnn", (*TRAIN, "--distributed"), tmp_path)
    assert run.status == 2
    (line,) = run.errors.splitlines()
    assert "--distributed: found no cluster" in line
    assert "or --coordinator" in line


def test_devices_are_split_evenly_among_processes():
    class Device:
        def __init__(self, process_index):
            self.process_index = process_index

    devices = [Device(i) for i in (0, 0, 0, 0, 1, 1, 1)]
    assert [d.process_index for d in runs.split_devices(8, devices, named=False)] == [0, 0, 1, 1]
    assert [d.process_index for d in runs.split_devices(18, devices, named=False)] == [0, 0, 0, 1, 1, 1]
    with pytest.raises(runs.BadInput, match="found 7, expected a multiple of the 2 processes"):
        runs.split_devices(7, devices, named=False)


REGISTER = "F1127 02:35:53.9 client.h:80] Terminating: DEADLINE_EXCEEDED: Deadline Exceeded\nRPC: RegisterTask\n"
SILENT = (
    "F1127 02:36:44.0 client.h:80] tasks are unhealthy (stopped sending heartbeats):\n1\n12\nThe tasks have crashed."
)


@pytest.mark.parametrize(
    ("heard", "status", "words"),
    [
        (Heard(fatal=[REGISTER]), 2, "--coordinator: found not all of 2 processes at a:1 within 40 s"),
        (Heard(0, 3, fatal=[SILENT]), 1, "processes 1 and 12 have died; process 0 of 3 cannot go on"),
        (
            Heard(1, 3, fatal=["F1127 02:36:44.0 x] Failed to send RPC to coordination service."]),
            1,
            "process 0 has died",
        ),
        (Heard(1, 3), 1, "process 1 of 3 was ended by SIGKILL"),
    ],
)
def test_why_a_process_was_ended_is_said_in_a_line(heard, status, words):
    found, line = supervisor.verdict(heard, Place(False, "a:1", 2, 0), signal.SIGKILL, "x.py")
    assert found == status
    assert words in line
    assert "\n" not in line
