"""What the benchmarks time: the HH fit and the E/I network, as their scripts have them without arguments."""

import dataclasses
import importlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

sys.path.append(str(Path(__file__).resolve().parents[2]))

import runs

import jax
from jax.sharding import Mesh

import fitting
import models
import neuron_fitting_of_hh_model as hh
import recordings
import studies

task_script = importlib.import_module("task-coba-ei-rsnn")
ROOT = Path(hh.__file__).resolve().parent

# (arguments of the task script, whole) -> the rule that the gradient is made of.
MakeRule = Callable[[dict[str, Any]], task_script.Rule]


class Compiled(NamedTuple):
    """A call of a compiled program, which waits for its end; the program; and the seconds to compile it."""

    run: Callable[[], Any]
    program: jax.stages.Compiled
    seconds: float


def hh_problem(n_sample: int) -> fitting.FitProblem:
    """The HH fit to the traces in data/, with programs for n_sample parameter sets."""
    args = hh.parse_args([])
    devices = runs.setup_jax(args.precision, args.devices)
    source = recordings.source_of(args)
    data = recordings.read_data(source, hh.SHIPPED)
    study = hh.make_study(
        runs.pick(studies.FitSettings, args, fit_target="potential"), data, source, hh.known_parameters(source)
    )
    return fitting.FitProblem(study, n_sample, devices)


def hh_parameters() -> dict[str, float]:
    """{name: value} of the cell behind the traces in data/ (uS, mV)."""
    return json.loads((ROOT / "data" / "parameters_hh.json").read_text())["parameters"]


class Network(NamedTuple):
    """An untrained E/I network, the arguments it is made of, and a mesh of the devices that split a batch."""

    model: models.Model
    args: dict[str, Any]
    mesh: Mesh

    def keys(self) -> jax.Array:
        """Keys of the trials of a batch."""
        return jax.random.split(jax.random.key(0), self.args["batch_size"])


def network(*arguments: Any, n_step: int | None = None) -> Network:
    """The network, task and batch of these arguments of the task script.

    With n_step, the delay is what makes a trial that long. It is negative where the cues alone are longer: recall
    begins before they end then, which costs as much.
    """
    args = task_script.parse_args(list(map(str, arguments)))
    mesh = task_script.setup(args, [])
    model = task_script.make_model(args)
    if n_step is not None:
        t_delay = model.task.t_delay + (n_step - model.task.n_step) * model.task.dt
        model = dataclasses.replace(model, task=dataclasses.replace(model.task, t_delay=t_delay))
        assert model.task.n_step == n_step
    return Network(model, vars(args), mesh)


def network_gradient(make_rule: MakeRule, *arguments: Any, n_step: int = 2200) -> Compiled:
    """The gradient of a batch, in trials of n_step, by the rule make_rule(arguments), as a compiled program."""
    model, args, mesh = of_network = network(*arguments, n_step=n_step)
    keys, start = of_network.keys(), time.perf_counter()
    program = jax.jit(task_script.make_gradient(make_rule(args), mesh)).lower(model, keys).compile()
    seconds = time.perf_counter() - start
    return Compiled(lambda: jax.block_until_ready(program(model, keys)), program, seconds)
