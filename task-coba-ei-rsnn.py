"""Train a conductance-based spiking network on evidence accumulation, or simulate it.

Cues on the left and right, a delay of one second, and then a decision for the side that had more. The network has
excitatory and inhibitory neurons with adaptation (4 : 1), obeys Dale's law and is trained by gradients of its
simulation: those of backpropagation through time, or of one of two online rules whose memory does not grow with the
trial. Its neurons are the paper's, or those of fits to recordings (--exc_neuron, --inh_neuron); they are connected by a
rule, or as a connectome says (--conn_method FILE). `--mode train` leaves checkpoints, a learning curve and pictures of
what the network does; `--mode sim` makes the pictures alone, of an untrained network or of that of an earlier run, and
of the latter also what it has learned.

A training has its best network also for NumPy, in weights.npz: the strengths abs(in) (n_in, n_rec), abs(exc) (n_exc,
n_rec) and abs(inh) (n_inh, n_rec) of connections from rows to columns, excitatory neurons first; out (n_rec, 2); tau_a
(n_rec,) in ms, and where neurons are fitted all of their constants, as neuron_...; and "update", after which these
were. Of sparse connections, those of excitatory neuron i are exc[exc_indptr[i] : exc_indptr[i + 1]], to the neurons
exc_indices[...] of the same range; inh likewise. neurons.csv has the ids of a connectome's neurons, in that order.
"""

import argparse
import contextlib
import dataclasses
import functools
import logging
import math
import sys
import textwrap
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import runs
from runs import BadInput, setting

import absl.logging
import brainstate
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import scipy.special
import scipy.stats
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

import engines
import learning_rules
import models
import processes
from checkpoints import Checkpoints
from connectome import EdgeColumns, Wiring
from decisions import accuracy_of, logistic_fit, wilson_interval
from learning_rules import RULES, BatchGradient
from models import Model, NetworkSettings
from utils import Connections, EvidenceAccumulation, Weights

SCRIPT = Path(__file__).stem
TASK = EvidenceAccumulation
# The arguments that a network that is loaded brings along; the last of them cannot be others.
TASK_ARGUMENTS = tuple(field.name for field in dataclasses.fields(TASK))
COLUMNS = tuple(field.name for field in dataclasses.fields(EdgeColumns))
NETWORK_ARGUMENTS = (*COLUMNS, *{field.name for field in dataclasses.fields(NetworkSettings)} - {"columns"})
NEURONS = ("exc_neuron", "inh_neuron", "neuron_draw", "no_spike_currents")
INITIAL_ARGUMENTS = ("conn_method", "n_rec", "n_in", "conn_seed", "weight_seed", "ff_scale", "rec_scale", "w_ei_ratio")
INITIAL_ARGUMENTS += ("shuffle_connections", *COLUMNS, *NEURONS)
SATURATED = 200.0  # Hz; a population that fires more in the mean carries no information in single spikes
EVALUATED_BLOCK = 64  # trials of an evaluation at a time on each device
LEVELS = (0.9, 0.95, 0.99)  # the updates after which the accuracy first reached these are reported
DELAYS = (250.0, 500.0, 1000.0, 2000.0, 4000.0)  # ms; a trained network is tried with each
POPULATIONS = ("exc", "inh")
SEPARATED = "but for ties, the two choices do not overlap"
# What the released code of the paper has; explicit arguments go before.
RELEASED = dict(lr=1e-3, schedule="constant", batch_size=128, epochs=10000, etrace_decay=0.9, etrace_groups=1)
# With slow adaptation, which the paper's constants do not have, the default task is learned to 0.99 by BPTT.
LEARNS = "--lr 5e-3 --epochs 200 --batch_size 64 --tau_a 10000 --rec_scale 0.1 --ff_scale 10 --beta 0.5"

Rule = Callable[[Model, jax.Array], BatchGradient]


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """How the network is trained and tested; the arguments of the same names."""

    epochs: int = setting(300, "updates, at most", low=1)
    batch_size: int = setting(128, "trials of an update; in the other mode, trials to simulate", low=1)
    opt: str = setting("adam", "optimiser of the weights, by optax", choices=("adam", "sgd"))
    lr: float = setting(2e-3, "learning rate", above=0)
    schedule: str = setting(
        "cosine",
        "cosine: the learning rate falls to 0 over --epochs along half a cosine",
        choices=("constant", "cosine"),
    )
    weight_L1: float = setting(0.0, "factor of the mean |W| in the loss, summed over W", low=0)
    weight_L2: float = setting(0.0, "factor of the mean W^2 in the loss, summed over W", low=0)
    grad_clip: float | None = setting(
        None, "norm to which larger gradients are scaled; unlimited without it", kind=float, above=0, metavar="NORM"
    )
    eval_every: int = setting(
        20, "updates between evaluations on trials for validation, the last of all is one: the best is kept", low=1
    )
    n_heldout: int = setting(1024, "trials for validation, and as many others held out to the end of training", low=1)
    heldout_seed: int = setting(1, "seed of both, the same for every --seed", low=0, high=2**32 - 1)
    threshold: float = setting(0.99, "accuracy in validation at which training ends", above=0, high=1)
    save_every: int = setting(20, "updates between checkpoints", low=1)


IDLE_IN_SIM = {field.name for field in dataclasses.fields(TrainingSettings)}
IDLE_IN_SIM -= {"batch_size", "n_heldout", "heldout_seed"}
IDLE_IN_SIM |= {"method", "engine", "released", *(name for rule in RULES.values() for name in rule.arguments)}


class Seeds(NamedTuple):
    """Seeds of the connections, the initial weights, the training and the simulation."""

    conn: int
    weight: int
    train: int
    sim: int


def split_seed(seed: int) -> Seeds:
    """All seeds, from one."""
    return Seeds(*np.random.SeedSequence(seed).generate_state(4).tolist())


def add_model_arguments(parser: runs.Parser) -> None:
    """Arguments of the rules, the network and the task."""
    add = parser.add_argument_group("rules").add_argument
    for name, field in {name: field for rule in RULES.values() for name, field in rule.arguments.items()}.items():
        runs.add_setting(add, name, field)
    add = parser.add_argument_group("network").add_argument
    runs.add_settings(add, NetworkSettings)
    seed, seed_number = "seed of the {}, derived from --seed without this argument", runs.number(int, 0, high=2**32 - 1)
    add("--conn_seed", type=seed_number, help=seed.format("connections and time constants of adaptation"))
    add("--weight_seed", type=seed_number, help=seed.format("initial weights"))
    runs.add_settings(parser.add_argument_group("connectome").add_argument, EdgeColumns)
    runs.add_settings(parser.add_argument_group("task").add_argument, TASK)


def complete(parser: runs.Parser, args: argparse.Namespace) -> argparse.Namespace:
    """The arguments with the seeds that follow from --seed, checked for what is wrong with the task."""
    try:
        runs.pick(TASK, args)
    except ValueError as error:
        parser.error(f"argument --{error}")
    seeds = dict(zip(("conn_seed", "weight_seed"), split_seed(args.seed)[:2], strict=True))
    given = {name: getattr(args, name) for name in seeds if getattr(args, name) is not None}
    return argparse.Namespace(**vars(args) | seeds | given)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    examples = (LEARNS, f"--mode sim --load results/{SCRIPT}/train_bptt_dense_200_seed0 --t_delay 2000")
    parser = runs.Parser(SCRIPT, __doc__, examples)
    add = parser.add_argument_group("what to do").add_argument
    mode = "train the network; or only simulate it, and with --load also test what it has learned"
    add("--mode", choices=("train", "sim"), default="train", help=mode)
    load = "run folder whose best network is the one to start from, on other trials; its network and task are defaults"
    add("--load", type=Path, metavar="RUN", help=load)
    resume = "run folder of an interrupted training to go on with; its arguments are the defaults then"
    add("--resume", type=Path, metavar="RUN", help=resume)
    add = parser.add_argument_group("gradient").add_argument
    method = "; ".join(f"{name}: {rule.help}" for name, rule in RULES.items())
    add("--method", choices=RULES, default="bptt", help=method)
    engine = (
        "native: the rules of this project; brainscale, braintrace: diag and expsm_diag (of one group) by these "
        "packages, which are slower; brainscale, as in the paper, has a diag that is wrong here"
    )
    add("--engine", choices=engines.ENGINES, default="native", help=engine)
    add_model_arguments(parser)
    add = parser.add_argument_group("training").add_argument
    settings = ", ".join(f"--{name} {value}" for name, value in RELEASED.items())
    add("--released", action="store_true", help=f"defaults of the paper's released code: {settings}")
    runs.add_settings(add, TrainingSettings)
    runs.add_run_arguments(parser)

    args = parser.parse_args(argv)
    if args.released and not args.resume:
        parser.set_defaults(**RELEASED)
        args = parser.parse_args(argv)
    if args.load and not args.resume:
        trials = ("heldout_seed", "n_heldout", "precision") if args.mode == "sim" else ()  # those of its accuracy
        saved = runs.saved_arguments(args.load, "load", parser.prog)
        brought = saved.keys() & {*NETWORK_ARGUMENTS, *TASK_ARGUMENTS, *trials}
        parser.set_defaults(**{name: saved[name] for name in brought})
        args = parser.parse_args(argv)
        for name in INITIAL_ARGUMENTS:
            ours, theirs = (runs.to_json(x) for x in (getattr(args, name), parser.get_default(name)))
            if ours != theirs:
                difference = f"found {ours} here and {theirs} in {args.load}"
                parser.error(f"argument --{name}: {difference}, expected the same to load it")
    if args.resume and (args.mode != "train" or args.output):
        parser.error(f"argument --resume: found it with --mode {args.mode} or --output, expected neither")
    given = parser.given(argv)
    idle = given & (IDLE_IN_SIM if args.load else IDLE_IN_SIM | {"n_heldout", "heldout_seed"})
    if args.mode == "sim" and idle:
        parser.error(f"argument --{min(idle)}: found it with --mode sim, where it has no effect, expected --mode train")
    if args.engine != "native":
        if args.method not in engines.PACKAGE_RULES:
            expected = " or ".join(engines.PACKAGE_RULES)
            parser.error(f"argument --engine: found {args.engine} with --method {args.method}, expected {expected}")
        if args.exc_neuron or args.inh_neuron:
            parser.error(f"argument --engine: found {args.engine} with fitted neurons, expected native")
        if reason := engines.why_not(args.engine):
            parser.error(f"argument --engine: {args.engine}: {reason}")
    models.refuse_unused(network_settings(args), given)
    engines.refuse_unused(args.method, args.engine, args.etrace_groups, given)
    if args.engine != "native" and not args.resume:
        args.etrace_groups = 1
    return complete(parser, args)


def network_settings(args: argparse.Namespace) -> NetworkSettings:
    return runs.pick(NetworkSettings, args, columns=runs.pick(EdgeColumns, args))


def make_model(args: argparse.Namespace, wiring: Wiring | None = None) -> Model:
    """The untrained network, with its task, that the arguments ask for; with connections, or those made of them."""
    return models.make_model(runs.pick(TASK, args), network_settings(args), wiring)


def make_rule(args: argparse.Namespace) -> Rule:
    """The rule that the arguments ask for."""
    return engines.choose_rule(args.method, args.engine, vars(args))


# ---- Over devices ---------------------------------------------------------------------------------------------------

COPIED, SPLIT = PartitionSpec(), PartitionSpec("batch")


def over_devices(function: Callable, mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable:
    """The function of a batch, run on each device with its part of what is SPLIT and all of what is COPIED."""
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def memory_of(program: jax.stages.Compiled) -> float:
    """Memory (MB) of a compiled program on each device: its arguments, its results, and what it holds on the way."""
    memory = program.memory_analysis()
    return (memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes) / 1e6


def make_gradient(rule: Rule, mesh: Mesh) -> Callable[[Model, jax.Array], BatchGradient]:
    """(model, keys) -> what the rule gives of a batch that is split over the devices."""

    def on_device(model, keys):
        return jax.lax.pmean(rule(model, keys), "batch")

    return over_devices(on_device, mesh, (COPIED, SPLIT), COPIED)


# ---- Loss and updates -----------------------------------------------------------------------------------------------


def penalty(weights: Weights, weight_L1: float, weight_L2: float) -> jax.Array:
    """weight_L1 sum_W mean |W| + weight_L2 sum_W mean W^2."""
    leaves = jax.tree.leaves(weights)
    return sum(weight_L1 * jnp.abs(w).mean() + weight_L2 * (w**2).mean() for w in leaves)


def make_optimiser(settings: TrainingSettings) -> optax.GradientTransformation:
    cosine = settings.schedule == "cosine"
    lr = optax.cosine_decay_schedule(settings.lr, settings.epochs) if cosine else settings.lr
    optimiser = {"adam": optax.adam, "sgd": optax.sgd}[settings.opt](lr)
    return optax.chain(optax.clip_by_global_norm(settings.grad_clip), optimiser) if settings.grad_clip else optimiser


def batch_keys(key: ArrayLike, n: ArrayLike, batch_size: int) -> jax.Array:
    """Keys of the trials of the n-th update, from the data of the key of the training."""
    return jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(key), n), batch_size)


def make_update(
    settings: TrainingSettings, rule: Rule, optimiser: optax.GradientTransformation, mesh: Mesh
) -> Callable:
    """The update (model, state of the optimiser, key, number of the update) -> model and state after it, metrics."""
    gradient = make_gradient(rule, mesh)

    def update(model, optimiser_state, key, n):
        weights = model.weights
        loss, grads, accuracy, rates = gradient(model, batch_keys(key, n, settings.batch_size))
        if settings.weight_L1 or settings.weight_L2:
            extra, extra_grads = jax.value_and_grad(penalty)(weights, settings.weight_L1, settings.weight_L2)
            loss, grads = loss + extra, jax.tree.map(jnp.add, grads, extra_grads)
        steps, optimiser_state = optimiser.update(grads, optimiser_state, weights)
        new_weights = optax.apply_updates(weights, steps)
        both = jax.tree.map(lambda grad, w: jnp.isfinite(grad).all() & jnp.isfinite(w).all(), grads, new_weights)
        finite = {name: ok & jnp.isfinite(loss) for name, ok in both.items()}
        metrics = dict(loss=loss, accuracy=accuracy, rates_Hz=rates.mean(axis=0) * 1000 / model.task.dt, finite=finite)
        return dataclasses.replace(model, weights=new_weights), optimiser_state, metrics

    return update


class Evaluated(NamedTuple):
    """Of the trials of an evaluation, whether they are `correct` and their evidence; and rates (n_step, 2).

    The rates are also of the trials that fill up the last block.
    """

    correct: jax.Array
    evidence: jax.Array
    rates: jax.Array


def evaluation_seeds(settings: TrainingSettings) -> tuple[np.uint32, np.uint32]:
    """Seeds of the trials for validation, which choose weights and end a training, and of those held out from that."""
    return np.uint32(settings.heldout_seed), np.random.SeedSequence(settings.heldout_seed).generate_state(1)[0]


def make_evaluation(
    settings: TrainingSettings, mesh: Mesh, erase_at: int | None = None, erase_V: bool = False
) -> Callable[[Model, np.uint32], Evaluated]:
    """The evaluation of a model on trials of a seed; erase_at and erase_V are those of `learning_rules.run_trials`."""
    n_block = mesh.size * min(EVALUATED_BLOCK, -(-settings.n_heldout // mesh.size))
    n_padded = -(-settings.n_heldout // n_block) * n_block

    def block(model, keys):
        _, correct, rates = learning_rules.run_trials(model, keys, None, True, erase_at, erase_V)
        return Evaluated(correct, model.task.trials(keys)[1], jax.lax.pmean(rates, "batch"))

    on_devices = over_devices(block, mesh, (COPIED, SPLIT), Evaluated(SPLIT, SPLIT, COPIED))

    def evaluate(model, seed):
        keys = jax.random.split(jax.random.key(seed), n_padded)
        blocks = jax.lax.map(lambda k: on_devices(model, k), keys.reshape(-1, n_block))
        correct, evidence = (x.reshape(n_padded, *x.shape[2:])[: settings.n_heldout] for x in blocks[:2])
        return Evaluated(correct, evidence, blocks.rates.mean(axis=0))

    return evaluate


def period_rates(task: EvidenceAccumulation, rates: np.ndarray) -> dict[str, dict[str, float]]:
    """{period: {"exc": Hz, "inh": Hz}} of rates (n_step, 2) in spikes a step, for periods that have steps."""
    periods = {name: rates[period] for name, period in task.periods.items() if period.stop > period.start}
    means = {name: (np.mean(rows, axis=0) * 1000 / task.dt).tolist() for name, rows in periods.items()}
    return {name: dict(zip(POPULATIONS, mean, strict=True)) for name, mean in means.items()}


# ---- Networks of earlier runs ---------------------------------------------------------------------------------------


def listed(connections: Connections) -> Connections:
    """The connections without those that are all to all, which checkpoints do not hold."""
    return {name: pair for name, pair in connections.items() if pair}


def load_network(folder: Path, model: Model, settings: NetworkSettings | None = None) -> tuple[Model, Weights]:
    """The best network of a run, whose shapes must be those of the model, as a model; and its initial weights.

    Args:
        settings: of the model, which may have other reversal potentials than the run.
    """
    checkpoints = Checkpoints.of(folder, "load")
    state, _ = checkpoints.restore(checkpoints.best)
    checkpoints.close()
    if settings:
        models.require_same_connections(model.connections, state["connections"], settings, folder)
    ours = model.weights, listed(model.connections)
    shapes = [[np.shape(x) for x in jax.tree.leaves(tree)] for tree in ((state["weights"], state["connections"]), ours)]
    if shapes[0] != shapes[1]:
        raise BadInput(f"{folder}: found weights and connections of shapes {shapes[0]}, expected {shapes[1]}")
    models.require_same_neurons(model.network, folder, settings)
    connections = {name: jax.tree.map(jnp.asarray, state["connections"].get(name)) for name in model.connections}
    weights, initial = (
        {name: jnp.asarray(w, model.weights[name].dtype) for name, w in state[key].items()}
        for key in ("weights", "initial")
    )
    return dataclasses.replace(model, weights=weights, connections=connections), initial


# ---- Training -------------------------------------------------------------------------------------------------------


def name_nan(model: Model, keys: jax.Array, finite: Mapping[str, bool]) -> str:
    """Where an update that is not finite stops being so, as text: the simulation, or the gradient of what."""
    task, network = model.task, model.network
    _, evidence = task.trials(keys)

    @jax.jit
    def simulate(model):
        synapses = model.synapses(event_driven=True)
        network.init_state(len(keys))
        states = dict(V=network.neurons.V, g_exc=network.g_exc, g_inh=network.g_inh, r=network.r)

        def step(k):
            network.update(synapses, task.spikes(keys, evidence, k))
            return {name: jnp.isfinite(state.value).all(axis=1) for name, state in states.items()}

        with model.clock():
            return brainstate.transform.for_loop(step, jnp.arange(task.n_step))

    bad = {name: np.argwhere(~np.asarray(x)) for name, x in simulate(model).items()}
    first = min(((*where[0], name) for name, where in bad.items() if len(where)), default=None)
    if first:
        return f"{first[2]} is not finite at time step {first[0]} of trial {first[1]}"
    return f"the weights {', '.join(name for name, ok in finite.items() if not ok)}, or their gradients, are not finite"


def diagnose(model: Model, rate_exc: float, rate_inh: float) -> str | None:
    """What is wrong with the activity of a batch (Hz), and the argument to change; None if nothing is."""
    of_paper = model.network.neurons.soft * np.ones(model.network.n_rec, bool)
    if rate_exc == 0:
        no_input = not (model.task.rate_cue or model.task.rate_recall or model.task.rate_noise)
        argument = "rate_cue" if no_input else "ff_scale"
        if np.max(model.network.E_exc) <= 1:
            fitted = not of_paper[: model.network.n_exc].any()
            argument = "E_exc_mV above the threshold" if fitted else "E_exc above 1, the threshold"
        return f"the network is silent: no excitatory neuron fires; raise --{argument}"
    for name, rate, argument in (("excitatory", rate_exc, "rec_scale"), ("inhibitory", rate_inh, "ff_scale")):
        if rate > SATURATED:
            limit = f"{name} neurons fire at more than {SATURATED:g} Hz"
            return f"the network saturates: {limit}; lower --{argument}{' or raise --beta' * bool(of_paper.any())}"
    return None


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of metrics.csv: an update, of the training batch but for the accuracy in validation, and seconds so far."""

    update: int
    loss: float
    accuracy: float
    validation_accuracy: float | None
    rate_exc: float
    rate_inh: float
    seconds: float


class Training:
    """A training that can be stopped and resumed: its model, its compiled programs, and its history, a row an update.

    A checkpoint holds the history, the state {"weights", "optimiser", "key"}, and what stays fixed: the connections and
    the initial weights.

    Args:
        model: to start from.
        rule: that gives the gradient.
        run: the folder, of a new training or, with `--resume`, of one to go on with.
        seed: of the training batches.
    """

    def __init__(
        self, model: Model, settings: TrainingSettings, rule: Rule, run: runs.RunFolder, mesh: Mesh, seed: int
    ):
        self.settings, self.run = settings, run
        copied, optimiser = NamedSharding(mesh, COPIED), make_optimiser(settings)
        loaded, key = run.args.load, jax.random.key(seed)
        if loaded:  # not the trials again that it was trained on
            key = jax.random.fold_in(key, zlib.crc32(np.asarray(model.weights["in"])))
        start = (model, optimiser.init(model.weights), jax.random.key_data(key), model.weights)
        self.model, self.optimiser_state, self.key, self.initial = jax.device_put(start, copied)
        self.history: list[Row] = []
        self.best: tuple[Row, Weights] | None = None  # in validation, of equal ones the latest
        self.seed_validation, self.seed_heldout = evaluation_seeds(settings)
        self.stopped, self.warnings, self.exported = "epochs", [], None
        self.checkpoints = self._restored(mesh) if run.resumed else None
        start = time.perf_counter()
        compiled = dict(in_shardings=copied, out_shardings=copied)
        update = jax.jit(make_update(settings, rule, optimiser, mesh), **compiled)
        evaluate = jax.jit(make_evaluation(settings, mesh), **compiled)
        self.update = update.lower(self.model, self.optimiser_state, self.key, 0).compile()
        self.evaluate = evaluate.lower(self.model, self.seed_validation).compile()
        spent = self.history[-1].seconds if self.history else 0.0
        self.seconds = dict(compile=time.perf_counter() - start, run=spent)
        # A network that was trained before may be better than what it comes to.
        self.loaded = self.in_validation(dataclasses.replace(self.model, weights=self.initial)) if loaded else None

    def in_validation(self, model: Model, update: int = 0) -> float:
        """The accuracy of a model in validation, which it tells."""
        accuracy, (low, high) = accuracy_of(jax.device_get(self.evaluate(model, self.seed_validation).correct)).values()
        runs.tell(f"update {update}: accuracy in validation {accuracy:.4f} (95 %: {low:.4f} to {high:.4f})")
        return accuracy

    @property
    def trained(self) -> Model:
        """The model with the best weights, or the last ones where none were evaluated."""
        return dataclasses.replace(self.model, weights=self.best[1]) if self.best else self.model

    @property
    def state(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        state = dict(weights=self.model.weights, optimiser=self.optimiser_state, key=self.key)
        return state | dict(initial=self.initial, connections=listed(self.model.connections))

    def _restored(self, mesh: Mesh) -> Checkpoints:
        models.require_same_neurons(self.model.network, self.run.path)
        checkpoints = Checkpoints.of(self.run.path, "resume")
        like, copied = jax.device_get(self.state), NamedSharding(mesh, COPIED)
        state, history = checkpoints.restore(checkpoints.last, like)
        state, best = jax.device_put((state, checkpoints.restore(checkpoints.best, like)[0]["weights"]), copied)
        connections = {name: state["connections"].get(name) for name in self.model.connections}
        settings = network_settings(self.run.args)
        models.require_same_connections(self.model.connections, connections, settings, self.run.path)
        self.model = dataclasses.replace(self.model, weights=state["weights"], connections=connections)
        self.optimiser_state, self.key, self.initial = state["optimiser"], state["key"], state["initial"]
        try:
            self.history = [Row(**row) for row in history]
        except TypeError:
            raise BadInput(f"{self.run.path}: found a training of an earlier version, expected one of this") from None
        if (row := self.history[checkpoints.best - 1]).validation_accuracy is not None:
            self.best = row, best
        for row in self.history:
            self._warn(diagnose(self.model, row.rate_exc, row.rate_inh))
        if (before := len(self.run.load("config.json")["devices"])) != mesh.size:
            self._warn(f"{mesh.size} devices instead of {before}: numbers differ by rounding from here on")
        return checkpoints

    def _warn(self, warning: str | None) -> None:
        if warning and warning not in self.warnings:
            self.warnings.append(warning)
            runs.tell(f"update {len(self.history)}: {warning}")

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [dataclasses.asdict(row) for row in self.history]

    def reached(self) -> bool:
        return bool(self.history) and (self.history[-1].validation_accuracy or 0) >= self.settings.threshold

    def save(self) -> None:
        if not processes.is_first():
            return
        last = self.history[-1]
        if self.checkpoints.last != last.update:
            self.checkpoints.save(last.update, self.state, self.rows, last.validation_accuracy)
        self.run.save("metrics.csv", self.rows)
        update = self.best[0].update if self.best else last.update
        if update != self.exported:
            arrays = dict(self.trained.weights, update=update) | models.neuron_arrays(self.model.network)
            for name, (indptr, indices) in listed(self.model.connections).items():
                arrays |= {f"{name}_indptr": indptr, f"{name}_indices": indices}
            self.run.save("weights.npz", arrays)
            self.exported = update

    def step(self) -> bool:
        """One update with, when it is due, the evaluation; False, and nothing changed, where it is not finite."""
        n, start, in_validation = len(self.history) + 1, time.perf_counter(), None
        model, optimiser_state, metrics = self.update(self.model, self.optimiser_state, self.key, n)
        metrics = jax.device_get(metrics)
        if not all(metrics["finite"].values()):
            where = name_nan(self.model, batch_keys(self.key, n, self.settings.batch_size), metrics["finite"])
            self.stopped = f"update {n}: {where}; lower --lr, or set --grad_clip"
            return False
        if n % self.settings.eval_every == 0 or n == self.settings.epochs:
            in_validation = self.in_validation(model, n)
        self.seconds["run"] += time.perf_counter() - start
        self.model, self.optimiser_state = model, optimiser_state
        loss, accuracy = float(metrics["loss"]), float(metrics["accuracy"])
        rates = metrics["rates_Hz"].tolist()
        self.history.append(Row(n, loss, accuracy, in_validation, *rates, self.seconds["run"]))
        if in_validation is not None and (not self.best or in_validation >= self.best[0].validation_accuracy):
            self.best = self.history[-1], model.weights
        self._warn(diagnose(model, *rates))
        return True

    def go_on(self) -> None:
        """Train until the threshold, --epochs, Ctrl-C or a number that is not finite, saving on the way."""
        epochs, save_every = self.settings.epochs, self.settings.save_every
        self.checkpoints = self.checkpoints or Checkpoints(self.run.path)
        bar = runs.progress(total=epochs, initial=len(self.history), unit=" updates")
        with runs.deferred_ctrl_c() as pressed, contextlib.closing(self.checkpoints), contextlib.closing(bar):
            while len(self.history) < epochs and not self.reached():
                if pressed or processes.interrupted():
                    self.stopped = "interrupted"
                    break
                if not self.step():
                    break
                row = self.history[-1]
                if row.update % save_every == 0 or (self.best and self.best[0] is row):
                    self.save()
                shown = dict(loss=f"{row.loss:.3f}", accuracy=f"{row.accuracy:.2f}")
                bar.set_postfix(shown | dict(exc=f"{row.rate_exc:.1f} Hz", inh=f"{row.rate_inh:.1f} Hz"), refresh=False)
                bar.update()
            if self.history:
                self.save()
            elif self.stopped == "interrupted":
                raise KeyboardInterrupt
        self.stopped = "threshold" if self.reached() else self.stopped

    def result(self) -> dict[str, Any]:
        """What result.json says of the training, with an evaluation of its best weights on the held-out trials."""
        correct, evidence, rates = jax.device_get(self.evaluate(self.trained, self.seed_heldout))
        heldout_accuracy, heldout_interval = accuracy_of(correct).values()
        evaluated, best = [row for row in self.history if row.validation_accuracy is not None], self.best
        first_at = {f"{x:g}": next((row for row in evaluated if row.validation_accuracy >= x), None) for x in LEVELS}
        seconds = np.diff([0.0] + [row.seconds for row in self.history])
        if self.loaded is not None and (not best or best[0].validation_accuracy < self.loaded):
            here = f"{best[0].validation_accuracy:.4f}" if best else "not evaluated"
            values = f"{here} here, {self.loaded:.4f} there, of {self.settings.n_heldout} trials"
            self._warn(f"nothing of this training is better in validation than the network of --load: {values}")
        return dict(
            mode="train",
            method=self.run.args.method,
            updates=len(self.history),
            stopped=self.stopped,
            heldout_accuracy=heldout_accuracy,
            heldout_interval=heldout_interval,
            n_heldout=len(correct),
            best=best and dict(update=best[0].update, validation_accuracy=best[0].validation_accuracy),
            loaded_validation_accuracy=self.loaded,
            first_at=first_at,
            fading=models.fading(self.model, evidence),
            heldout_rates_Hz=period_rates(self.model.task, rates),
            warnings=self.warnings,
            seconds=self.seconds,
            seconds_per_update=float(np.median(seconds)) if len(seconds) else None,
        )


# ---- Simulation -----------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Activity:
    """What a network does in trials.

    Args:
        rates: (n_step, 2), mean spikes of an excitatory and an inhibitory neuron in a step, over all trials.
        within: (2,), the fraction of time that their potentials are between the reversal potentials.
        correct: (batch,).
        evidence, label, inputs, spikes, r: of the first trial: (n_step, n_in), (n_step, n_rec) and (n_step, n_out).
        V: {population: (n_step, n_trace)} of the first trial, of neurons that are evenly spread.
        seconds, memory_MB: what it took, to compile and to run, and the memory of the program on each device.
    """

    rates: np.ndarray
    within: np.ndarray
    correct: np.ndarray
    evidence: np.ndarray
    label: int
    inputs: np.ndarray
    spikes: np.ndarray
    r: np.ndarray
    V: dict[str, np.ndarray]
    seconds: dict[str, float]
    memory_MB: float


def simulate(model: Model, keys: jax.Array, mesh: Mesh, n_trace: int = 5) -> Activity:
    """Simulate the trials of the given keys, event by event where connections are sparse."""
    task, network = model.task, model.network
    traced = {name: np.linspace(0, n - 1, min(n, n_trace)).astype(int) for name, n in network.sizes.items()}
    traced["inh"] += network.n_exc
    start = time.perf_counter()
    model = dataclasses.replace(model, buffers=network.buffers(model.connections))
    synapses = model.synapses(event_driven=True)

    def on_device(synapses, key_data):
        keys = jax.random.wrap_key_data(key_data)
        labels, evidence = task.trials(keys)
        network.init_state(len(keys))

        def step(k):
            x, V = task.spikes(keys, evidence, k), network.neurons.V.value
            within = ((network.E_inh <= V) & (network.E_exc >= V)).astype(V.dtype)
            spikes = network.update(synapses, x)
            r = network.r.value
            first = dict(inputs=x[0], spikes=jnp.packbits(spikes[0] > 0), r=r[0])
            first["V"] = {name: V[0, neurons] for name, neurons in traced.items()}
            means = network.mean_of_populations(spikes), network.mean_of_populations(within)
            return jnp.where(k >= task.periods["recall"].start, r, 0.0), means, first

        with model.clock():
            r, (rates, within), first = brainstate.transform.for_loop(step, jnp.arange(task.n_step))
        correct = r.sum(axis=0).argmax(axis=-1) == labels
        first |= dict(evidence=evidence[0], label=labels[0])
        means = jax.lax.pmean(dict(rates=rates, within=within.mean(axis=0)), "batch")
        return means, correct, jax.tree.map(lambda x: x[None], first)

    copied = NamedSharding(mesh, COPIED)
    of_batch = over_devices(on_device, mesh, (COPIED, SPLIT), (COPIED, SPLIT, SPLIT))
    arguments = jax.device_put((synapses, jax.random.key_data(keys)), copied)
    program = jax.jit(of_batch, out_shardings=copied).lower(*arguments).compile()
    compiled = time.perf_counter()
    means, correct, first = jax.device_get(program(*arguments))
    seconds = dict(compile=compiled - start, run=time.perf_counter() - compiled)
    first = jax.tree.map(lambda x: x[0], first)
    first["spikes"] = np.unpackbits(first["spikes"], axis=1)[:, : network.n_rec]
    return Activity(correct=correct, **means, **first, seconds=seconds, memory_MB=memory_of(program))


WEIGHT_LAWS = {"half-normal": scipy.stats.halfnorm, "gamma": scipy.stats.gamma, "log-normal": scipy.stats.lognorm}


def weight_statistics(w: ArrayLike) -> dict[str, Any]:
    """Moments of |w|, and the maximum-likelihood half-normal, gamma and log-normal laws with their AIC.

    The laws are of weights greater than 0, and there are none where fewer than two different ones are.
    """
    w = np.abs(np.asarray(w, np.float64)).ravel()
    statistics = dict(n=len(w), mean=w.mean(), median=np.median(w), sd=w.std(), skew=scipy.stats.skew(w), max=w.max())
    statistics["laws"], w = {}, w[w > 0]
    for name, law in WEIGHT_LAWS.items() if len(np.unique(w)) > 1 else ():
        parameters = law.fit(w, floc=0)
        log_likelihood = law.logpdf(w, *parameters).sum()
        aic = 2 * (len(parameters) - 1) - 2 * log_likelihood  # the location is fixed
        statistics["laws"][name] = dict(parameters=parameters, AIC=aic)
    return statistics


def result_of(model: Model, stages: Mapping[str, Weights], activity: Activity) -> dict[str, Any]:
    """What result.json says of activity and of the weights at the stages {"before": ..., "after" training: ...}."""
    task, correct, names = model.task, activity.correct, ("in", "exc", "inh")
    statistics = {stage: {name: weight_statistics(w[name]) for name in names} for stage, w in stages.items()}
    accuracy, interval = accuracy_of(correct).values()
    result = dict(n_trials=len(correct), accuracy=accuracy, accuracy_interval=interval)
    result |= dict(rates_Hz=period_rates(task, activity.rates), weights=statistics)
    result |= dict(seconds=activity.seconds, memory_MB=activity.memory_MB)
    result["within_reversal_potentials"] = dict(zip(POPULATIONS, activity.within.tolist(), strict=True))
    warning = diagnose(model, *(activity.rates.mean(axis=0) * 1000 / task.dt))
    result["warnings"] = [warning] if warning else []
    result["seconds_per_simulated_second"] = activity.seconds["run"] / (task.n_step * task.dt / 1000)
    return result


# ---- What it has learned --------------------------------------------------------------------------------------------


def behaviour(
    model: Model, network_settings: NetworkSettings, settings: TrainingSettings, mesh: Mesh
) -> dict[str, Any]:
    """What a trained network decides, in the held-out trials, as it is and with a part of it silenced.

    Returns:
        psychometric: fraction of choices "right" against right minus left cues, with a logistic `fit`; cue_weights: the
        slopes of a logistic fit of the choice on all cues, in order; delays: accuracy with each of DELAYS that is whole
        steps, and that of the task, without training for it; silenced: accuracy and rates with the adaptation currents
        (beta = 0, or all after spikes; thresholds of fitted neurons still move), all recurrent excitatory or all
        inhibitory weights at 0 throughout, and with the currents that earlier spikes have left erased as recall begins,
        which leaves cues and delay as they are; and with potentials set to rest then, which have followed these
        currents for a time constant.
    """
    task, copied, (_, seed) = model.task, NamedSharding(mesh, COPIED), evaluation_seeds(settings)

    @functools.cache
    def program(*erase):
        return jax.jit(make_evaluation(settings, mesh, *erase), in_shardings=copied, out_shardings=copied)

    def evaluate(*erase, **changes):
        return jax.device_get(program(*erase)(dataclasses.replace(model, **changes), seed))

    heldout = evaluate()
    difference = heldout.evidence.sum(axis=1)
    right = (difference > 0) == heldout.correct
    psychometric = [
        dict(difference=int(d), n=int((difference == d).sum()), right=float(right[difference == d].mean()))
        for d in np.unique(difference)
    ]
    delays, whole = [], [t_delay for t_delay in DELAYS if (t_delay / task.dt).is_integer()]
    for t_delay in runs.progress(sorted({*whole, task.t_delay}), unit=" delays"):
        longer = t_delay != task.t_delay
        delayed = evaluate(task=dataclasses.replace(task, t_delay=t_delay)) if longer else heldout
        delays.append(dict(t_delay=t_delay) | accuracy_of(delayed.correct))
    without, sizes = dataclasses.replace(network_settings, beta=0.0, no_spike_currents=True), model.network.sizes
    unadapted = models.make_network(without, *sizes.values(), task.n_in, task.n_out)
    silenced = {"nothing": heldout, "adaptation": evaluate(network=unadapted)}
    recall = task.periods["recall"].start
    silenced["adaptation as recall begins"] = evaluate(recall)
    silenced["adaptation and V as recall begins"] = evaluate(recall, True)
    for name in POPULATIONS:
        silenced[f"recurrent {name}"] = evaluate(weights=model.weights | {name: jnp.zeros_like(model.weights[name])})
    return dict(
        n_trials=len(heldout.correct),
        psychometric=psychometric,
        fit=logistic_fit(difference[:, None], right),
        cue_weights=logistic_fit(heldout.evidence, right),
        delays=delays,
        silenced={
            name: accuracy_of(part.correct) | dict(rates_Hz=period_rates(task, part.rates))
            for name, part in silenced.items()
        },
    )


# ---- Figures --------------------------------------------------------------------------------------------------------

COLORS = {"exc": "C5", "inh": "C0"}


def plot_learning(history: Sequence[Row], settings: TrainingSettings) -> plt.Figure:
    """Loss, accuracy and rates against updates."""
    updates = [row.update for row in history]
    figure, axes = plt.subplots(1, 3, figsize=(runs.WIDTH, 2.2), layout="constrained")
    axes[0].plot(updates, [row.loss for row in history], color="0.4", lw=1)
    axes[0].set_ylabel("loss (nats)")
    axes[1].plot(updates, [row.accuracy for row in history], color="0.75", lw=1, label="training batch")
    evaluated = [row for row in history if row.validation_accuracy is not None]
    if evaluated:
        p, n = np.array([row.validation_accuracy for row in evaluated]), settings.n_heldout
        low, high = np.transpose([wilson_interval(round(x * n), n) for x in p])
        x = [row.update for row in evaluated]
        axes[1].errorbar(x, p, (p - low, high - p), fmt="k.-", lw=1, label="validation, 95 %")
    axes[1].axhline(settings.threshold, color="k", lw=0.6, ls=":")
    axes[1].set(ylabel="accuracy", ylim=(0.4, 1.01))
    axes[1].legend(loc="lower right")
    for name, color in COLORS.items():
        axes[2].plot(updates, [getattr(row, f"rate_{name}") for row in history], color=color, lw=1, label=name)
    axes[2].set(ylabel="rate (Hz)", ylim=(0, None))
    axes[2].legend()
    for axis in axes:
        axis.set_xlabel("update")
    return figure


def plot_raster(axis: plt.Axes, spikes: np.ndarray, dt: float, color: str, offset: int = 0) -> None:
    step, neuron = np.nonzero(spikes)
    axis.plot(step * dt, neuron + offset, "|" if spikes.shape[1] <= 100 else ".", color=color, ms=2, mew=0.6)


def plot_activity(model: Model, activity: Activity) -> plt.Figure:
    """One trial: inputs, recurrent spikes, potentials with the reversal potentials, and readout."""
    task, network = model.task, model.network
    t, n_group = np.arange(task.n_step) * task.dt, task.n_in // len(task.groups)
    layout = dict(sharex=True, layout="constrained", height_ratios=(1.3, 2, 1.4, 1.4, 1))
    figure, axes = plt.subplots(5, 1, figsize=(runs.WIDTH, 7.5), **layout)
    plot_raster(axes[0], activity.inputs, task.dt, "k")
    centres = (np.arange(len(task.groups)) + 0.5) * n_group
    axes[0].set(yticks=centres, yticklabels=task.groups, ylim=(0, task.n_in), ylabel="inputs")
    sides = "".join("LR"[int(x > 0)] for x in activity.evidence)
    axes[0].set_title(f"cues {sides}, correct choice {'LR'[int(activity.label)]}")
    plot_raster(axes[1], activity.spikes[:, : network.n_exc], task.dt, COLORS["exc"])
    plot_raster(axes[1], activity.spikes[:, network.n_exc :], task.dt, COLORS["inh"], network.n_exc)
    axes[1].axhline(network.n_exc - 0.5, color="k", lw=0.6)
    axes[1].set(ylim=(0, network.n_rec), ylabel="neuron\n(excitatory below)")
    n_trace = max(V.shape[1] for V in activity.V.values())
    for axis, (name, color) in zip(axes[2:4], COLORS.items(), strict=True):
        for i, V in enumerate(activity.V[name].T):
            axis.plot(t, V, color=color, lw=0.7, alpha=1 - 0.7 * i / n_trace)
        own = slice(network.n_exc) if name == "exc" else slice(network.n_exc, None)
        for level in np.unique([np.broadcast_to(E, network.n_rec)[own] for E in (network.E_exc, network.E_inh)]):
            axis.axhline(level, color="0.5", lw=0.8, ls="--")
        axis.axhline(1, color="0.5", lw=0.6, ls=":")
        axis.set_ylabel(f"V, {name}.\n(threshold 1)")
    for i, (label, color) in enumerate(zip(task.choices, ("C1", "C3"), strict=True)):
        axes[4].plot(t, activity.r[:, i], color=color, lw=1, label=label)
    axes[4].set(xlabel="t (ms)", ylabel="readout", xlim=(0, t[-1]))
    axes[4].legend(loc="lower right", bbox_to_anchor=(1, 0.95), ncols=2)
    for axis in axes:
        for period in list(task.periods.values())[1:]:
            axis.axvline(period.start * task.dt, color="0.7", lw=0.6)
    return figure


def plot_matrix(model: Model, n_pixel: int = 400) -> plt.Figure:
    """|W| from presynaptic (rows) to postsynaptic neurons, those of inhibitory neurons negative; means over pixels."""
    n_rec = model.network.n_rec
    n_bin = min(n_rec, n_pixel)
    image, first = np.zeros((n_bin, n_bin)), 0
    connections = {name: pair and [np.asarray(x) for x in pair] for name, pair in model.connections.items()}
    for name, sign in zip(POPULATIONS, (1, -1), strict=True):
        w, n_pre = sign * np.abs(np.asarray(model.weights[name])), model.network.sizes[name]
        for i in range(n_pre):
            row = slice(None) if connections[name] is None else slice(*connections[name][0][i : i + 2])
            post = np.arange(n_rec) if connections[name] is None else connections[name][1][row]
            values = w[i] if connections[name] is None else w[row]
            np.add.at(image[(first + i) * n_bin // n_rec], post * n_bin // n_rec, values)
        first += n_pre
    image *= (n_bin / n_rec) ** 2
    limit = np.quantile(np.abs(image[image != 0]), 0.99) if image.any() else 1.0
    figure, axis = plt.subplots(figsize=(runs.WIDTH / 2, 2.9), layout="constrained")
    shown = axis.imshow(
        image, cmap="RdBu_r", vmin=-limit, vmax=limit, extent=(0, n_rec, n_rec, 0), interpolation="nearest"
    )
    axis.set(xlabel="postsynaptic neuron", ylabel="presynaptic neuron")
    figure.colorbar(shown, ax=axis, label="weight (inhibitory: negative)")
    return figure


def plot_weights(stages: Mapping[str, Weights], statistics: Mapping[str, Any]) -> plt.Figure:
    """Histograms of |W| with the fitted laws: a row a stage, a column a kind of connection."""
    layout = dict(squeeze=False, layout="constrained", sharex="col")
    figure, axes = plt.subplots(len(stages), 3, figsize=(runs.WIDTH, 0.6 + 1.9 * len(stages)), **layout)
    titles = {"in": "input to all", "exc": "excitatory to all", "inh": "inhibitory to all"}
    for row, (stage, weights) in zip(axes, stages.items(), strict=True):
        for axis, (name, title) in zip(row, titles.items(), strict=True):
            w = np.abs(np.asarray(weights[name])).ravel()
            x = np.linspace(0, np.quantile(w, 0.999) or 1.0, 200)[1:]
            axis.hist(w, bins=60, range=(0, x[-1]), density=True, color="0.8")
            top = axis.get_ylim()[1]
            laws = statistics[stage][name]["laws"]
            for (law, fitted), style in zip(laws.items(), ("-", "--", ":"), strict=False):
                axis.plot(x, WEIGHT_LAWS[law].pdf(x, *fitted["parameters"]), "k" + style, lw=1, label=law)
            axis.set_ylim(0, top * 1.1)
            best = min(laws, key=lambda law: laws[law]["AIC"], default="-")
            axis.set_title(f"{title}, {stage}\nlowest AIC: {best}")
    for axis in axes[-1]:
        axis.set_xlabel("|W|")
    for axis in axes[:, 0]:
        axis.set_ylabel("density")
    if axes[0, 0].get_legend_handles_labels()[0]:
        axes[0, 0].legend()
    return figure


def plot_behaviour(task: EvidenceAccumulation, decisions: Mapping[str, Any]) -> plt.Figure:
    """Choices against the difference of the cues, the weight of each cue, accuracy by delay and with parts at 0."""
    figure, axes = plt.subplots(2, 2, figsize=(runs.WIDTH, 4.6), layout="constrained")
    choice, cue, delay, part = axes.flat

    def points(axis, x, rows, style):
        p = np.array([row["accuracy"] for row in rows])
        low, high = np.transpose([row["interval"] for row in rows])
        axis.errorbar(x, p, (p - low, high - p), fmt=style, lw=1, ms=3)

    d = np.array([row["difference"] for row in decisions["psychometric"]])
    choice.plot(d, [row["right"] for row in decisions["psychometric"]], "k.", label=f"{decisions['n_trials']} trials")
    if fit := decisions["fit"]:
        x = np.linspace(d.min(), d.max(), 200)
        curve = scipy.special.expit(fit["bias"] + fit["slopes"][0] * x)
        label = "logistic fit" + " (its slope these trials do not tell)" * fit["separated"]
        choice.plot(x, curve, "C1-", lw=1, label=label, zorder=0)
    choice.set(xlabel="right minus left cues", ylabel='share of choices "right"', ylim=(-0.05, 1.05))
    choice.legend(loc="upper left")
    if weights := decisions["cue_weights"]:
        x = 1 + np.arange(task.n_cue)
        cue.errorbar(x, weights["slopes"], weights["slopes_se"], fmt="k.-", lw=1)
        cue.axhline(0, color="0.5", lw=0.6, ls=":")
        cue.xaxis.get_major_locator().set_params(integer=True)
    cue.set(xlabel="cue", ylabel="weight in the choice (log odds)")
    points(delay, [row["t_delay"] for row in decisions["delays"]], decisions["delays"], "k.-")
    delay.axvline(task.t_delay, color="C1", lw=1, zorder=0)
    delay.axhline(0.5, color="0.5", lw=0.6, ls=":")
    ticks = [row["t_delay"] for row in decisions["delays"]]
    scale = dict(value="log") if min(ticks) else dict(value="symlog", linthresh=DELAYS[0])
    delay.set_xscale(**scale)
    delay.set(xlabel="delay (ms; line: --t_delay)", ylabel="accuracy", ylim=(0, 1.02))
    delay.set_xticks(ticks, [f"{t:g}" for t in ticks])
    delay.minorticks_off()
    names = list(decisions["silenced"])
    points(part, range(len(names)), list(decisions["silenced"].values()), "ks")
    part.axhline(0.5, color="0.5", lw=0.6, ls=":")
    labels = [textwrap.fill(name.replace("exc", "E").replace("inh", "I"), 10) for name in names]
    part.set(xlabel="silenced", ylabel="accuracy", ylim=(0, 1.02), xlim=(-0.5, len(names) - 0.5))
    part.set_xticks(range(len(names)), labels, fontsize="x-small")
    return figure


# ---- Main -----------------------------------------------------------------------------------------------------------


def print_rates(rates: Mapping[str, Mapping[str, float]]) -> None:
    for name, rate in rates.items():
        print(f"{name:>6}: excitatory neurons {rate['exc']:.2f} Hz, inhibitory {rate['inh']:.2f} Hz")


def print_training(result: Mapping[str, Any]) -> None:
    low, high = result["heldout_interval"]
    print(f"held-out accuracy {result['heldout_accuracy']:.4f} (95 %: {low:.4f} to {high:.4f})", end=" ")
    update = result["best"]["update"] if result["best"] else result["updates"]
    print(f"by the weights of update {update} of {result['updates']}, stopped by: {result['stopped']}")
    for level, row in result["first_at"].items():
        if row:
            print(f"first {level} or more after {row.update} updates and {row.seconds / 60:.1f} minutes")
    for warning in result["warnings"]:
        print(f"WARNING: {warning}")
    print_rates(result["heldout_rates_Hz"])
    print("{run:.1f} s to run and {compile:.1f} s to compile".format(**result["seconds"]), end=", ")
    print(f"{result['seconds_per_update'] or math.nan:.2f} s an update")


def print_limit(result: Mapping[str, Any], args: argparse.Namespace) -> None:
    """What limits the accuracy, where it is below the highest of LEVELS, and the command that reaches it."""
    reached = max(result["heldout_accuracy"], result["best"]["validation_accuracy"] if result["best"] else 0.0)
    if reached >= LEVELS[-1] or not result["fading"]:
        return
    sums = " and ".join(f"{row['accuracy']:.3f} ({row['tau_a']:.0f} ms)" for row in result["fading"])
    (low, high), memories = result["heldout_interval"], [row["accuracy"] for row in result["fading"]]
    training = (
        "its training" if args.method == "bptt" else f"its training, or what {args.method} leaves out of the gradient"
    )
    below, above = high < memories[0], low > max(memories)
    limit = f"this network is below both, by {training}" if below else "the memory is the limit"
    limit = "this network has another memory, too, as it is above both" if above else limit
    print(f"cues that fade as adaptation does, the mean and the slowest, add up to a right choice in {sums}: {limit}")
    network, task = network_settings(args), runs.pick(TASK, args)
    same = dict(tau_a=network.tau_a, rec_scale=network.rec_scale, ff_scale=network.ff_scale, beta=network.beta)
    seeds = dict(conn_seed=network.conn_seed, weight_seed=network.weight_seed)
    at_limit = not below and not above
    if at_limit and task == TASK() and network == dataclasses.replace(NetworkSettings(), **same | seeds):
        print(f"{LEVELS[-1]} of this task, by slower adaptation: python {SCRIPT}.py {LEARNS}")


def print_simulation(result: Mapping[str, Any]) -> None:
    print(f"accuracy {result['accuracy']:.3f} in {result['n_trials']} trials")
    print_rates(result["rates_Hz"])
    for name, fraction in result["within_reversal_potentials"].items():
        print(f"potentials within the reversal potentials, {name}.: {fraction:.2%} of time")
    for warning in result["warnings"]:
        print(f"WARNING: {warning}")
    print("{run:.1f} s to run and {compile:.1f} s to compile".format(**result["seconds"]))


def print_behaviour(decisions: Mapping[str, Any]) -> None:
    print(f"in {decisions['n_trials']} held-out trials:")
    if fit := decisions["fit"]:
        slope, se = fit["slopes"][0], fit["slopes_se"][0]
        odds = f"{slope:.2f} ± {se:.2f} a cue, bias {fit['bias']:.2f} ± {fit['bias_se']:.2f}"
        if fit["separated"]:
            odds = f"{slope:.2f} a cue, bias {fit['bias']:.2f}, sizes that these trials do not tell: {SEPARATED}"
        print(f"  log odds of the choice: {odds}")
    if weights := decisions["cue_weights"]:
        size = f" (sizes that these trials do not tell: {SEPARATED})" if weights["separated"] else ""
        print(f"  weights of the cues, in order: {' '.join(f'{w:.2f}' for w in weights['slopes'])}{size}")
    delays = ", ".join(f"{row['accuracy']:.3f} ({row['t_delay']:g} ms)" for row in decisions["delays"])
    print(f"  accuracy with a delay: {delays}")
    silenced = ", ".join(f"{row['accuracy']:.3f} ({name})" for name, row in decisions["silenced"].items())
    print(f"  accuracy with a part silenced: {silenced}")


def setup(args: argparse.Namespace, argv: Sequence[str]) -> Mesh:
    """Set plot style, precision, processes and devices; the mesh of those over which a batch is split."""
    # orbax warns of checkpoints without metrics, which are intended, and logs what it raises, as does asyncio.
    absl.logging.set_verbosity(absl.logging.FATAL)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    devices = runs.setup(args, SCRIPT, argv)
    return Mesh(np.array(runs.split_devices(args.batch_size, devices, named=args.devices != "all")), ("batch",))


def train(args: argparse.Namespace, argv: Sequence[str], run: runs.RunFolder, mesh: Mesh, model: Model) -> int:
    """Train, and print and save what came of it."""
    seeds, settings = split_seed(args.seed), runs.pick(TrainingSettings, args)
    if args.load and not args.resume:
        model, _ = load_network(args.load, model, network_settings(args))
    training = Training(model, settings, make_rule(args), run, mesh, seeds.train)
    run.save_config(argv, list(mesh.devices))
    failure = None
    try:
        training.go_on()
    except runs.CannotSave as error:
        if processes.is_several():  # the others go on, and wait for this one until it ends
            raise
        failure, training.stopped = error, str(error)
    result = training.result()
    print_training(result)  # before anything is saved, which a full disk may prevent
    if failure:
        raise failure
    run.save("result.json", result)  # before the figures, which may be interrupted
    if training.history:
        run.save("learning_curve.png", plot_learning(training.history, settings))
    model = training.trained
    activity = simulate(model, jax.random.split(jax.random.key(seeds.sim), args.batch_size), mesh)
    stages = {"before": training.initial, "after": model.weights}
    simulation = result_of(model, stages, activity)
    run.save("result.json", result | dict(simulation=simulation))
    run.save("activity.png", plot_activity(model, activity))
    run.save("weight_matrix.png", plot_matrix(model))
    run.save("weights.png", plot_weights(stages, simulation["weights"]))
    print_limit(result, args)
    return {"interrupted": 130, "epochs": 0, "threshold": 0}.get(training.stopped, 1)


def sim(args: argparse.Namespace, argv: Sequence[str], run: runs.RunFolder, mesh: Mesh, model: Model) -> int:
    """Simulate, and where a network is loaded test what it has learned; print and save what came of it."""
    stages = {"before": model.weights}
    if args.load:
        model, initial = load_network(args.load, model, network_settings(args))
        stages = {"before": initial, "after": model.weights}
    run.save_config(argv, list(mesh.devices))
    activity = simulate(model, jax.random.split(jax.random.key(split_seed(args.seed).sim), args.batch_size), mesh)
    result = dict(mode="sim") | result_of(model, stages, activity)
    print_simulation(result)
    run.save("result.json", result)  # before what takes longer, and may be interrupted
    run.save("activity.png", plot_activity(model, activity))
    run.save("weight_matrix.png", plot_matrix(model))
    run.save("weights.png", plot_weights(stages, result["weights"]))
    if args.load:
        decisions = behaviour(model, network_settings(args), runs.pick(TrainingSettings, args), mesh)
        print_behaviour(decisions)
        run.save("result.json", result | dict(behaviour=decisions))
        run.save("behaviour.png", plot_behaviour(model.task, decisions))
    return 0


@runs.command_line
def main(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    mesh = setup(args, argv)
    settings = network_settings(args)
    wiring = models.wiring_of(settings)
    args.n_rec = wiring.n_exc + wiring.n_inh
    for folder in filter(None, (args.load, args.resume)):
        models.require_same_ids(wiring, folder)
    model = make_model(args, wiring)
    print(*(lines := models.lines_of(settings, wiring, args.dt)), sep="\n", end="\n" * bool(lines))
    rule = f"{args.method}_" + f"{args.engine}_" * (args.engine != "native") if args.mode == "train" else ""
    name = f"{args.mode}_{rule}{Path(args.conn_method).stem}_{args.n_rec}_seed{args.seed}"
    may_change = {"threshold"} if args.schedule == "cosine" else {"threshold", "epochs"}
    run = runs.RunFolder(args, SCRIPT, name, may_change=may_change)
    status = (train if args.mode == "train" else sim)(args, argv, run, mesh, model)
    if wiring.ids is not None:
        sides = np.repeat(POPULATIONS, (wiring.n_exc, wiring.n_inh)).tolist()
        rows = zip(np.asarray(wiring.ids).tolist(), sides, strict=True)
        run.save("neurons.csv", [dict(row=i, id=name, population=side) for i, (name, side) in enumerate(rows)])
    print(run.path)
    return status


if __name__ == "__main__":
    sys.exit(main())
