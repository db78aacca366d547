"""The network that does a task, by its settings: who its neurons are, how they are connected, its initial weights."""

import argparse
import contextlib
import csv
import dataclasses
import functools
import math
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import runs
from runs import BadInput, setting

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

import connectome
import fitted_neurons
import utils
from connectome import EdgeColumns, Wiring
from fitted_neurons import FittedNeuron
from utils import GIF, Connections, EINetwork, Weights

# Connections of a block of weights, from which on the online rules, which need no derivatives of what is sent, have it
# event by event: at 10 Hz 6 times as fast at 1.3 million (4000 neurons), 57 times at 32 million, as full matrices.
EVENT_DRIVEN = 200_000

# ---- Settings -------------------------------------------------------------------------------------------------------


def name_or_file(text: str) -> str:
    """argparse type: one of `utils.CONN_METHODS`, or a file."""
    if text not in utils.CONN_METHODS and not Path(text).is_file():
        names = ", ".join(utils.CONN_METHODS)
        raise argparse.ArgumentTypeError(f"found {text!r}, expected {names}, or a file that lists connections")
    return text


@dataclasses.dataclass(frozen=True)
class NetworkSettings:
    """Constants of the E/I network, its connections and its initial weights; times in ms."""

    conn_method: str = setting(
        "dense",
        "dense: all to all; rand: each neuron has 0.1 n_rec random targets; gaussian: excitatory connections by "
        "distance on a ring of n_rec neurons (s.d. 20 neurons), inhibitory ones as in rand; FILE: a connectome, a "
        "table of connections as CSV, NPZ, Parquet or Feather, whose weights are the initial ones up to a scale",
        parse=name_or_file,
        metavar="{dense,gaussian,rand,FILE}",
    )
    shuffle_connections: bool = setting(
        False,
        "rewire the connections; each neuron keeps how many it has to others, and from each population (a control)",
    )
    n_rec: int = setting(
        200, "recurrent neurons, of which one in five is inhibitory; a connectome brings its own", low=5
    )
    ff_scale: float = setting(1.0, "variance of the input weights, times the number of inputs to a neuron", low=0)
    rec_scale: float = setting(
        0.5, "variance of the excitatory weights, times the number of excitatory inputs to a neuron", low=0
    )
    w_ei_ratio: float = setting(4.0, "factor on rec_scale for the inhibitory weights", low=0)
    tau_neu: float = setting(100.0, "time constant of the membrane (ms)", above=0)
    tau_syn: float = setting(10.0, "time constant of the synaptic conductances (ms)", above=0)
    tau_out: float = setting(10.0, "time constant of the readout (ms)", above=0)
    tau_a: float = setting(
        1000.0, "time constant of adaptation (ms): that of each neuron is uniform in 0.5 to 1.5 of it", above=0
    )
    beta: float = setting(1.0, "adaptation current of a spike; it excites if negative (threshold is 1)")
    E_exc: float = setting(3.0, "excitatory reversal potential (threshold is 1)")
    E_inh: float = setting(-3.0, "inhibitory reversal potential (threshold is 1)")
    exc_neuron: Sequence[Path] = setting(
        (),
        "excitatory neurons that were fitted to recordings: run folders of fits of the GIF neuron, with all that was "
        "fitted but the electrode and the escape noise; a folder given twice counts twice",
        nargs="+",
        kind=Path,
        metavar="RUN",
    )
    inh_neuron: Sequence[Path] = setting((), "the same for the inhibitory neurons", nargs="+", kind=Path, metavar="RUN")
    neuron_draw: str = setting(
        "even",
        "which of several fitted neurons each is: even: as many of each as can be; random: any",
        choices=fitted_neurons.DRAWS,
    )
    E_exc_mV: float = setting(0.0, "excitatory reversal potential of fitted neurons (mV)")
    E_inh_mV: float = setting(-80.0, "inhibitory reversal potential of fitted neurons (mV)")
    no_spike_currents: bool = setting(
        False, "fitted neurons without their spike-triggered currents and conductance (a control)"
    )
    columns: EdgeColumns = dataclasses.field(default_factory=EdgeColumns)  # of a connectome
    conn_seed: int = 0  # of the connections, of which neuron is which, and of time constants of adaptation
    weight_seed: int = 0

    @property
    def is_connectome(self) -> bool:
        return self.conn_method not in utils.CONN_METHODS

    @property
    def neuron_runs(self) -> dict[str, Sequence[Path]]:
        """{population: run folders of its neurons}."""
        return dict(exc=self.exc_neuron, inh=self.inh_neuron)


def refuse_unused(settings: NetworkSettings, given: Collection[str]) -> None:
    """Refuse, of the arguments that are given, one that no neuron or connection of the network has.

    Raises:
        BadInput: it is.
    """
    fitted = [bool(runs) for runs in settings.neuron_runs.values()]
    of_fitted, of_paper = ("E_exc_mV", "E_inh_mV", "neuron_draw"), ("tau_neu", "tau_a", "beta", "E_exc", "E_inh")
    columns = [field.name for field in dataclasses.fields(EdgeColumns)]
    unused = {} if settings.is_connectome else dict.fromkeys(columns, "--conn_method FILE, whose columns it names")
    if not any(fitted):
        unused |= dict.fromkeys(of_fitted, "--exc_neuron or --inh_neuron, whose neurons it is about")
        unused["no_spike_currents"] = "--exc_neuron or --inh_neuron; --beta 0 for the neurons of the paper"
        if not settings.beta:
            unused |= dict.fromkeys(("tau_a", "etrace_stretches"), "--beta other than 0, as nothing adapts")
    if all(fitted):
        unused |= dict.fromkeys(of_paper, "it without --exc_neuron or --inh_neuron: all neurons are fitted")
    if settings.is_connectome and {"n_rec", "w_ei_ratio"} & set(given):
        wiring = wiring_of(dataclasses.replace(settings, shuffle_connections=False))
        if (n_rec := wiring.n_exc + wiring.n_inh) != settings.n_rec:
            unused["n_rec"] = f"it without --n_rec: {settings.conn_method} has {n_rec} neurons"
        if wiring.weights is not None:
            unused["w_ei_ratio"] = "--rec_scale alone: the others are the weights of the file"
    for name, expected in unused.items():
        if name in given:
            raise BadInput(f"argument --{name}: found it where it belongs to nothing, expected {expected}")


# ---- Neurons --------------------------------------------------------------------------------------------------------


CONSTANTS = ("V_rest", "R", "A_g", *fitted_neurons.POTENTIALS, *fitted_neurons.DIFFERENCES, *fitted_neurons.CURRENTS)
CONSTANTS += fitted_neurons.OTHERS


def paper_neurons(settings: NetworkSettings, tau_a: np.ndarray) -> dict[str, Any]:
    r"""Constants of the neurons of Wang et al. (2024), App. F, with V -> V - V_th and I_2 -> I_2 - beta at a spike.

    .. math:: \tau_{neu} \dot V = -V + g_E (E_{exc} - V) + g_I (E_{inh} - V) + I_2, \quad \tau_{a,j} \dot I_2 = -I_2

    Args:
        tau_a: of each neuron (ms).
    """
    constants = dict(V_rest=0.0, V_reset=0.0, V_th_inf=1.0, V_th_reset=1.0, R=1.0, A1=0.0, A2=-settings.beta, A3=0.0)
    constants |= dict(a=0.0, b=0.0, A_th=0.0, A_th2=0.0, b2=0.01, V_i=0.0, k_i=0.0, t_ref=0.0, k1=0.2, k3=0.05)
    constants |= dict(A_g=0.0, k_g=0.05, E_g=0.0)
    return constants | dict(R1=1.0, R2=1.0, tau=settings.tau_neu, k2=1 / tau_a)


def fitted(settings: NetworkSettings) -> dict[str, list[FittedNeuron]]:
    """{population: the fitted neurons that it draws from}, none where it has the paper's.

    Raises:
        BadInput: one of the folders has none.
    """
    return {
        name: [fitted_neurons.read_neuron(Path(run), f"{name}_neuron") for run in folders]
        for name, folders in settings.neuron_runs.items()
    }


def make_network(settings: NetworkSettings, n_exc: int, n_inh: int, n_in: int, n_out: int) -> EINetwork:
    """A network whose neurons differ: time constants of the paper's adaptation are uniform in 0.5 to 1.5 tau_a."""
    seeds = np.random.SeedSequence(settings.conn_seed).spawn(3)
    tau_a = np.random.default_rng(seeds[1]).uniform(0.5, 1.5, n_exc + n_inh) * settings.tau_a
    rng, parts = np.random.default_rng(seeds[2]), []
    for kinds, tau_a_part in zip(fitted(settings).values(), (tau_a[:n_exc], tau_a[n_exc:]), strict=True):
        n = len(tau_a_part)
        if kinds:
            which = fitted_neurons.draw(len(kinds), n, rng, settings.neuron_draw)
            part = fitted_neurons.constants_of(kinds, which, not settings.no_spike_currents)
            for E in ("E_exc", "E_inh"):
                part[E] = np.array([kind.potential(getattr(settings, f"{E}_mV")) for kind in kinds])[which]
        else:
            part = paper_neurons(settings, tau_a_part) | dict(E_exc=settings.E_exc, E_inh=settings.E_inh)
        part = dict(part, spk_reset="hard" if kinds else "soft")
        parts.append({key: np.broadcast_to(value, n) for key, value in part.items()})
    # One number for all is a number: a constant of the compiled program.
    constants = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    constants = {key: x[0].item() if (x == x[0]).all() else x for key, x in constants.items()}
    reversals = [constants.pop(E) for E in ("E_exc", "E_inh")]
    units = dict.fromkeys(("a", "b", "b2", "k1", "k2", "k3", "k_g"), 1 / u.ms) | dict.fromkeys(("tau", "t_ref"), u.ms)
    neurons = GIF(n_exc + n_inh, **{key: in_unit(x, units.get(key)) for key, x in constants.items()})
    times = settings.tau_syn * u.ms, settings.tau_out * u.ms
    return EINetwork(neurons, n_exc, n_in, n_out, *map(in_unit, reversals), *times)


def in_unit(x: Any, unit: Any = None) -> Any:
    """Numbers, at the precision that is set, with a unit; a number alone, and text, as it is."""
    x = x.astype(jnp.result_type(float)) if isinstance(x, np.ndarray) and x.dtype.kind == "f" else x
    return x if unit is None else x * unit


# ---- Connections and weights ----------------------------------------------------------------------------------------


def wiring_of(settings: NetworkSettings) -> Wiring:
    """Who projects to whom: by a rule or as a connectome says, and shuffled where asked.

    Raises:
        BadInput: a file that lists no connections, or connections that cannot be shuffled.
    """
    if settings.is_connectome:
        wiring = connectome.read_wiring(Path(settings.conn_method), settings.columns)
    else:
        n_inh = round(settings.n_rec / 5)
        n_exc, seed = settings.n_rec - n_inh, np.random.SeedSequence(settings.conn_seed).spawn(1)[0]
        wiring = Wiring(n_exc, n_inh, utils.connect(settings.conn_method, n_exc, n_inh, seed))
    if not settings.shuffle_connections:
        return wiring
    if settings.conn_method == "dense":
        expected = "connections that are listed: rand, gaussian or a file"
        raise BadInput(f"argument --shuffle_connections: found it with --conn_method dense, expected {expected}")
    return connectome.shuffled(wiring, settings.conn_seed)


def initial_weights(network: EINetwork, wiring: Wiring, settings: NetworkSettings) -> Weights:
    """Weights {"in", "exc", "inh", "out"}: normal, cut at 2 s.d., of variance scale / number of inputs to a neuron.

    The scale is ff_scale for "in", rec_scale for "exc", w_ei_ratio rec_scale for "inh" and 2 for "out" (Kaiming). The
    shapes are (n_pre, n_post) or, where the wiring lists them, the number of connections. The weights of a connectome
    are its own, with one factor for all by which the mean square of "exc" is that of the rule.
    """
    n_rec, weights = network.n_rec, {}
    shapes = {"in": (network.n_in, n_rec), "exc": (network.n_exc, n_rec), "inh": (network.n_inh, n_rec)}
    shapes["out"] = (n_rec, network.n_out)
    scales = {"in": settings.ff_scale, "exc": settings.rec_scale, "out": 2.0}
    scales["inh"] = settings.w_ei_ratio * settings.rec_scale
    keys = jax.random.split(jax.random.key(settings.weight_seed), 4)
    for name, key in zip(shapes, keys, strict=True):
        listed = wiring.connections.get(name)
        shape = shapes[name] if listed is None else listed[1].shape
        unit_variance = jax.random.truncated_normal(key, -2, 2, shape) / scipy.stats.truncnorm.std(-2, 2)
        n_input = math.prod(shape) / shapes[name][1]
        weights[name] = unit_variance * math.sqrt(scales[name] / n_input)
    if wiring.weights is None:
        return weights
    own, n_input = wiring.weights, len(wiring.weights["exc"]) / n_rec
    factor = math.sqrt(settings.rec_scale / n_input / np.mean(own["exc"] ** 2))
    return weights | {name: jnp.asarray(factor * w, weights[name].dtype) for name, w in own.items()}


# ---- Model ----------------------------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Model:
    """A network that does a task, with its weights and connections, which are the leaves of the model as a pytree.

    `buffers` are those of event-driven products, of the blocks of weights that are large.

    A task has, as `EvidenceAccumulation`: dt, n_in, n_out, n_step, periods with "recall", in which the network answers,
    trials(keys) and spikes(keys, evidence, step).
    """

    task: Any = dataclasses.field(metadata=dict(static=True))
    network: EINetwork = dataclasses.field(metadata=dict(static=True))
    weights: Weights
    connections: Connections
    buffers: dict[str, Any] = dataclasses.field(default_factory=dict)

    def clock(self) -> contextlib.AbstractContextManager:
        """The context in which the states of the network advance by the time step of the task."""
        return brainstate.environ.context(dt=self.task.dt * u.ms)

    def synapses(self, event_driven: bool = False) -> dict[str, Any]:
        """Those of the network; event-driven, without gradients, where there are buffers for it."""
        return self.network.synapses(self.weights, self.connections, self.buffers if event_driven else None)


def make_model(task: Any, settings: NetworkSettings, wiring: Wiring | None = None) -> Model:
    """The network of the settings, untrained, with a task; with connections that have been made of them, or are now."""
    wiring = wiring or wiring_of(settings)
    network = make_network(settings, wiring.n_exc, wiring.n_inh, task.n_in, task.n_out)
    buffers = network.buffers(wiring.connections, EVENT_DRIVEN)
    return Model(task, network, initial_weights(network, wiring, settings), wiring.connections, buffers)


def fading(model: Model, evidence: np.ndarray) -> list[dict[str, float]]:
    """How often the sum of cues that fade with adaptation is right, without noise; evidence is (n, n_cue).

    A cue that ended t before the last one counts exp(-t / tau_a), with the mean tau_a of the neurons and with the
    longest: what a leaky memory of that time constant, read out perfectly, makes of these trials. Neurons of several
    time constants can be weighted against each other, at the cost of noise. Of a neuron with several kinds of
    adaptation the slowest counts. Nothing, where neurons do not adapt.
    """
    taus = [tau for name, tau in model.network.neurons.time_constants.items() if name != "V"]
    taus = [tau for tau in taus if np.isfinite(tau).any()]
    if not taus:
        return []
    task, tau_a = model.task, functools.reduce(np.fmax, taus)
    age = (task.t_interval + task.t_cue) * np.arange(task.n_cue - 1, -1, -1)
    right = evidence.sum(axis=1) > 0
    taus = (float(np.nanmean(tau_a)), float(np.nanmax(tau_a)))
    return [dict(tau_a=tau, accuracy=float(np.mean((evidence @ np.exp(-age / tau) > 0) == right))) for tau in taus]


def lines_of(settings: NetworkSettings, wiring: Wiring, dt: float) -> list[str]:
    """What is printed of a connectome, and of fitted neurons, at a time step of dt (ms)."""
    neurons = [f"{name}: {kind.told(dt)}" for name, kinds in fitted(settings).items() for kind in kinds]
    return [*wiring.report, *neurons]


def require_same_neurons(network: EINetwork, run: Path, settings: NetworkSettings | None = None) -> None:
    """Refuse a run whose fitted neurons, as its weights.npz has them, are others than those of the network.

    Args:
        settings: of the network; where E_exc_mV or E_inh_mV is not that of the run, E_exc or E_inh may be another.

    Raises:
        BadInput: they are, as the fits in their folders are others now.
    """
    path, here = run / "weights.npz", neuron_arrays(network)
    if not path.is_file() or "neuron_soft_reset" not in here:
        return
    given = (runs.load_json(run / "config.json") or {}).get("arguments", {})
    as_there = {E: settings is None or given.get(f"{E}_mV") == getattr(settings, f"{E}_mV") for E in ("E_exc", "E_inh")}
    names = (*CONSTANTS, *(E for E, same in as_there.items() if same))  # E tell of V_rest and the threshold in mV
    saved = runs.load_arrays(path)
    for name in (f"neuron_{constant}" for constant in names if f"neuron_{constant}" in saved):
        ours, theirs = here[name], saved[name]
        other = np.flatnonzero(~(here["neuron_soft_reset"] | np.isclose(ours, theirs, rtol=1e-4, atol=1e-6)))
        if len(other):
            i, constant = other[0], name.removeprefix("neuron_")
            found = f"{constant} {theirs[i]:.4g} of neuron {i}, and in the folders of the fits {ours[i]:.4g}"
            raise BadInput(f"{path}: found {found}, expected the same: the fits there are others now")


def require_same_connections(ours: Connections, theirs: Connections, settings: NetworkSettings, run: Path) -> None:
    """Refuse a run of a connectome whose connections are others than those here.

    Raises:
        BadInput: they are, as the table is another now.
    """
    for name in ("exc", "inh") if settings.is_connectome else ():
        if not all(map(np.array_equal, ours[name], theirs[name])):
            found = f"found other connections of {name}. neurons than {settings.conn_method} has now"
            raise BadInput(f"{run}: {found}, expected the same")


def require_same_ids(wiring: Wiring, run: Path) -> None:
    """Refuse a run in whose neurons.csv, if it has one, are other neurons than in the table of a connectome.

    Raises:
        BadInput: they are, as the table is another now.
    """
    path = run / "neurons.csv"
    if wiring.ids is None or not path.is_file():
        return
    with open(path, newline="") as file:
        ids = [row["id"] for row in csv.DictReader(file)]
    if ids != list(map(str, np.asarray(wiring.ids).tolist())):
        raise BadInput(f"{path}: found other neurons than --conn_method has now, expected the same")


def neuron_arrays(network: EINetwork) -> dict[str, np.ndarray]:
    """What weights.npz has of the neurons: tau_a (ms), and of a network with fitted ones all constants.

    These are neuron_NAME, (n_rec,), of `utils.GIF`, dimensionless or in ms and 1/ms, and E_exc, E_inh and soft_reset.
    """
    neurons, n_rec = network.neurons, network.n_rec
    arrays = dict(tau_a=np.broadcast_to((1 / neurons.k2).to_decimal(u.ms), n_rec))
    if neurons.soft.all():
        return arrays
    constants = {name: u.get_magnitude(getattr(neurons, name)) for name in CONSTANTS}
    constants |= dict(E_exc=network.E_exc, E_inh=network.E_inh, soft_reset=neurons.soft)
    return arrays | {f"neuron_{name}": np.broadcast_to(x, n_rec) for name, x in constants.items()}
