"""Fit a generalised integrate-and-fire neuron to membrane potentials or spike trains.

The neuron is that of Mihalas & Niebur (2009). The gradient of a simulation that spikes by itself is a surrogate, and a
poor guide. With --objective likelihood the recorded spikes drive the reset instead, and the parameters are those that
make these spikes the most likely: the gradient is true, and leads from any start to the parameters behind the data. A
recording of your own is read as it is (ABF, NWB, IBW, NPZ, CSV and others); a part of it is held out, and predicted.
Its neuron is refractory, fires by chance, and has a threshold that follows V and jumps at spikes, by more parameters
where Akaike's criterion asks for them; all is fitted, in bounds that come from the recording. Without arguments the
target is that of the paper's release, five currents of one second, for which the rates a, b of the threshold and k1, k2
of spike-triggered currents are fitted.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import runs
from runs import BadInput

import brainstate
import braintools
import brainunit as u
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.typing import ArrayLike

import comparing
import fit_arguments
import fitting
import recordings
import reports
import scoring
import solvers
import spike_trains
import studies
import teacher_forcing
import utils
from comparing import PaperResult
from identifiability import Box, Parameters, Prediction, Predictions
from recordings import Data, Recording
from spike_trains import SpikeLevel

SCRIPT = Path(__file__).stem

# Wang et al. (2024): the first four are fitted, in these bounds. The other bounds are ours.
PER_MS = u.ms**-1
RANGES = {
    "a": u.Quantity([0.0, 0.1], unit=PER_MS),
    "b": u.Quantity([0.0, 0.1], unit=PER_MS),
    "k1": u.Quantity([0.1, 1.0], unit=PER_MS),
    "k2": u.Quantity([0.01, 0.1], unit=PER_MS),
    "A1": u.Quantity([-10.0, 10.0], unit=u.nA),
    "A2": u.Quantity([-1.0, 1.0], unit=u.nA),
    "R1": u.Quantity([0.0, 1.0], unit=u.UNITLESS),
    "R2": u.Quantity([0.0, 1.0], unit=u.UNITLESS),
    "R": u.Quantity([5.0, 50.0], unit=u.Mohm),
    "tau": u.Quantity([5.0, 50.0], unit=u.ms),
    "V_rest": u.Quantity([-80.0, -60.0], unit=u.mV),
    "V_reset": u.Quantity([-80.0, -60.0], unit=u.mV),
    "V_th_inf": u.Quantity([-60.0, -40.0], unit=u.mV),
    "V_th_reset": u.Quantity([-70.0, -50.0], unit=u.mV),
    "R_s": u.Quantity([-20.0, 40.0], unit=u.Mohm),
    "tau_s": u.Quantity([0.02, 2.0], unit=u.ms),
    "A_th": u.Quantity([-10.0, 60.0], unit=u.mV),
    "A_th2": u.Quantity([-5.0, 20.0], unit=u.mV),
    "b2": u.Quantity([0.001, 0.1], unit=PER_MS),
    "V_i": u.Quantity([-60.0, -30.0], unit=u.mV),
    "k_i": u.Quantity([0.2, 10.0], unit=u.mV),
    "width": u.Quantity([0.05, 10.0], unit=u.mV),
    "A3": u.Quantity([-1.0, 1.0], unit=u.nA),
    "k3": u.Quantity([0.0003, 0.005], unit=PER_MS),
    "A_g": u.Quantity([0.0, 0.1], unit=u.uS),
    "k_g": u.Quantity([0.005, 0.5], unit=PER_MS),
    "E_g": u.Quantity([-100.0, -50.0], unit=u.mV),
    "lapse": u.Quantity([1e-6, 0.01], unit=PER_MS),
}
UNITS = {name: limits.unit for name, limits in RANGES.items()} | {"t_ref": u.ms}
FITTED = ["a", "b", "k1", "k2"]
# Of a recording, by the exponential escape rate: the bounds of these, where `teacher_forcing` says no others.
WIDE = {"a": (0.0, 3.0), "b": (0.001, 2.0), "k1": (0.05, 1.0), "k2": (0.001, 0.05)}
MEMBRANE = ["R", "tau", "V_rest", "V_reset", "A1", "k1", "A2", "k2", "R_s", "tau_s"]
THRESHOLD = ["V_th_inf", "a", "b", "A_th", "width"]
# What may be added to that neuron, whose threshold is linear, and the parameters of each.
TERMS = {"tau_s": ["tau_s"], "non_linear": ["V_i", "k_i"], "A_th2": ["A_th2", "b2"], "I3": ["A3", "k3"]}
# E_g stays at rest: where k_g is near k2, a current says the same as another reversal potential.
TERMS |= {"g": ["A_g", "k_g"], "lapse": ["lapse"]}
ABSENT = {"tau_s": 0.0, "V_i": -np.inf, "A_th2": 0.0, "A3": 0.0, "A_g": 0.0, "lapse": 0.0}
DEFAULT_TERMS = ("tau_s", "non_linear", "A_th2")
NOT_OF_SPIKES = {"R", "V_rest", "R_s", "tau_s"}  # without potentials there is no scale of V
OF_SILENCE = {"R", "tau", "V_rest", "R_s", "tau_s"}  # of recordings without spikes
# Of what is not fitted, where regression says nothing.
WITHOUT = {"a": 0.0, "b": 0.1, "k1": 0.2, "k2": 0.02, "A1": 0.0, "A2": 0.0, "R1": 1.0, "R2": 1.0, "A_th": 0.0}
WITHOUT |= {"A_th2": 0.0, "b2": 0.01, "V_i": -50.0, "k_i": 0.0, "width": 1.0, "tau_s": 0.0, "A3": 0.0, "k3": 0.005}
WITHOUT |= {"A_g": 0.0, "k_g": 0.05, "E_g": -80.0, "lapse": 0.0, "t_ref": 0.0}
NEEDED = {"V_i": "k_i", "k_g": "A_g", "E_g": "A_g", "b2": "A_th2", "k3": "A3", "tau_s": "R_s"}  # else without effect
TARGETS = {
    "potential": "spikes and potentials by their likelihood, or mean squared error of the latter in a simulation",
    "spike": "the likelihood of the spikes, or their van Rossum distance in a simulation",
}
# The neuron behind a simulated target, and the constants of every fit.
PAPER_PARAMETERS = {"a": 0.005, "b": 0.01, "k1": 0.2, "k2": 0.02, "A1": 0.0, "A2": 0.0, "R1": 0.0, "R2": 1.0, "R": 20.0}
PAPER_PARAMETERS |= {"tau": 20.0, "V_rest": -70.0, "V_reset": -70.0, "V_th_inf": -50.0, "V_th_reset": -60.0, "R_s": 0.0}
ESCAPES = ("exponential", "threshold")
# {how spikes count: (what has no effect there, where it has one)}.
IDLE = {"exponential": (["width_floor"], "--escape threshold"), "threshold": (["tau_noise"], "--escape exponential")}
IDLE["simulation"] = ["escape", "model_terms", "tau_noise", "t_blank", "width_floor"], "--objective likelihood"
PROTOCOLS = {"paper": PAPER_PARAMETERS, "identifiable": PAPER_PARAMETERS | {"A1": 1.0, "A2": -0.1}}
# Table S2 (loss in mV^2, of 100 points of a trace); 100 starts of L-BFGS-B.
PAPER_STARTS, PAPER_POINTS = 100, 100
PAPER_RESULTS = {
    "L-BFGS-B": PaperResult(6.799, 4.623, 5.404, 0.294),
    "DE": PaperResult(9.966, 2.281, 1.172, 0.09),
    "PSO": PaperResult(14.034, 2.857, 1.151, 0.150),
    "TwoPointsDE": PaperResult(9.702, 5.115, 1.161, 0.172),
    "bayesian": PaperResult(3.511, 1.741, 62.330, 10.917),
}
# The paper's currents: (nA, ms), one after the other, one second in all.
PAPER_CURRENTS = [
    [(2.0, 200), (0.0, 800)],
    [(1.5, 500), (0.0, 500)],
    [(1.5, 100), (0.0, 500), (0.5, 100), (1.0, 100), (1.5, 100), (0.0, 100)],
    [(1.5, 20), (0.0, 180), (-1.5, 20), (0.0, 20), (1.5, 20), (0.0, 740)],
    [(0.0, 50), (-3.5, 750), (0.0, 200)],
]
WIDTHS = (5.0, 2.0, 0.7, 0.2, 0.07, 0.02, 0.007, 0.002)  # mV
RISE_FLOOR = 1e-3  # of (V - V_th) / width in a step with a spike, which stays possible where V falls
DT = 0.1  # ms
T_BLANK = 0.5  # ms
MISFIT = 3.0, 0.5  # as in `studies.largest_error`: clusters allow for errors that depend on each other
N_RUN, N_COUNT = 200, 20  # runs with escape noise, for the scores of repeats, or where there are none, for rates


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    examples = (
        "--protocol identifiable --noise_std 0.5 --spike_jitter 0.1",
        "--objective simulation --n_sample 100 --n_point 100",
    )
    parser = runs.Parser(SCRIPT, __doc__, examples)
    add = parser.add_argument_group("spiking model").add_argument
    objective = (
        "likelihood: of the recorded spikes, which drive the reset, and with --fit_target potential of the potentials "
        "too; simulation: the loss of the model that runs freely, with its surrogate gradient, as in the paper; "
        "without this argument, likelihood, but for simulated targets without spikes"
    )
    add("--objective", choices=("simulation", "likelihood"), help=objective)
    protocol = (
        "simulated target: currents and neuron of the paper, in which A1 = A2 = 0 leaves k1 and k2 without effect, or "
        "five noisy currents and non-zero A1 and A2, so that every fitted parameter matters; but for --escape "
        "exponential, also the values of the parameters that are neither fitted nor given by --constants"
    )
    add("--protocol", choices=PROTOCOLS, default="paper", help=protocol)
    escape = (
        "how the neuron of the likelihood fires: exponential: exp((V - V_th) / width) per ms, for recordings; "
        "threshold: only where V - V_th rises, for targets without noise; without this argument, exponential for your "
        f"recorded potentials and threshold for all others. It is maximised by {solvers.GAUSS_NEWTON} and then "
        "L-BFGS-B, or by the latter alone"
    )
    add("--escape", choices=ESCAPES, help=escape)
    width = (
        "narrowest width of --escape threshold: L-BFGS-B fits it, from 5 mV downwards, others have this one (mV); with "
        "exponential it is a parameter"
    )
    add("--width_floor", type=runs.number(float, above=0), default=WIDTHS[-1], help=width)
    terms = (
        "with --escape exponential, what is fitted beyond R, tau, V_rest, V_reset, R_s, two currents after spikes and "
        "a threshold linear in V. tau_s: of the electrode; non_linear: a threshold that follows V non-linearly; A_th2: "
        "a second jump of it; I3: a third current; g: a conductance after spikes, E_g at rest or by --constants; "
        "lapse: a constant rate of spikes; or none; or auto: each of these that lowers Akaike's criterion of the "
        f"data that are fitted, with a table; without this argument and --fit_parameters, {' '.join(DEFAULT_TERMS)}, "
        "or with --mode fit none where all three together do not lower it"
    )
    add("--model_terms", nargs="+", choices=(*TERMS, "none", "auto"), metavar="TERM", help=terms)
    tau_noise = (
        "with --escape exponential one potential every so often is taken for independent of the others (ms); without "
        "this argument, from the autocorrelation of the residuals of a regression"
    )
    add("--tau_noise", type=runs.number(float, above=0), metavar="MS", help=tau_noise)
    blank = (
        "the likelihood leaves out the potentials within this time of a recorded spike, and those within t_ref after "
        f"it (ms); without this argument, {T_BLANK:g}, or {teacher_forcing.T_BEFORE:g} with --escape exponential"
    )
    add("--t_blank", type=runs.number(float, low=0), metavar="MS", help=blank)
    fitted = f"{' '.join(FITTED)}, or with --escape exponential those of --model_terms"
    fit_arguments.add_fit_arguments(parser, RANGES, fitted, TARGETS)
    comparing.add_compare_arguments(parser)
    recordings.add_data_arguments(parser)
    runs.add_run_arguments(parser)
    parser.set_defaults(dt_sim=0.1, precision=64, method=None)  # in float32, one start in three ends early
    args = fit_arguments.parse_fit_arguments(parser, argv, shipped=False)
    terms = args.model_terms or []
    if len(terms) > 1 and {"auto", "none"} & set(terms):
        parser.error(f"argument --model_terms: found {' '.join(terms)}, expected auto or none alone")
    if "auto" in terms and args.mode != "fit":
        parser.error(f"argument --model_terms: found auto with --mode {args.mode}, expected --mode fit")
    return args


@dataclasses.dataclass(frozen=True)
class Settings(studies.FitSettings):
    """Besides, what only this neuron has; the arguments of the same names."""

    fit_parameters: Sequence[str] | None = None
    protocol: str = "paper"
    objective: str | None = None
    escape: str | None = None
    width_floor: float = WIDTHS[-1]
    model_terms: Sequence[str] | None = None
    tau_noise: float | None = None
    t_blank: float | None = None


# ---- Model ----------------------------------------------------------------------------------------------------------

# What a neuron predicts besides: (prediction, parameters, recording, width, seed) -> the prediction with it.
More = Callable[[scoring.Prediction, Parameters, Recording, float, int], scoring.Prediction]
# What becomes of a carry in a step: (carry, V, V - V_th, row of the recording) -> carry, output.
Observer = Callable[[Any, jax.Array, jax.Array, Recording], tuple[Any, Any]]


def teacher_forced(
    constants: Parameters,
    dt_sim: float,
    observe: Observer,
    start: Callable[[jax.Array, jax.Array], Any] = lambda V, distance: None,
) -> Callable[[Parameters, Recording], tuple[Any, Any]]:
    """The neuron whose reset the recorded spikes drive, as a function (parameters, recording) -> (carry, outputs).

    A spike resets it in the first of the steps of the simulation between two samples.

    Args:
        constants: {name: value with unit} of the parameters that are not fitted.
        dt_sim: longest step of the simulation (ms).
        observe: a sample: V as an electrode records it, and V - V_th of the neuron (mV), both before a spike resets
            them, each (n_trace,).
        start: (V, distance) -> carry, before the first step.
    """

    def run(parameters: Parameters, recording: Recording) -> tuple[Any, Any]:
        parameters, electrode = studies.behind_electrode(constants | parameters, recording)
        cell, n_substep = utils.GIF(recording.current.shape[1:], **parameters), studies.substeps(recording.dt, dt_sim)

        def potentials(electrode):
            V = cell.V.value.to_decimal(u.mV)
            return V + electrode, (cell.V.value - cell.threshold).to_decimal(u.mV)

        def step(carry, rows):
            row, electrode = rows
            carry, output = observe(carry, *potentials(electrode), row)
            cell.update(row.current * u.nA, row.spikes)
            for _ in range(n_substep - 1):
                cell.update(row.current * u.nA, jnp.zeros_like(row.spikes))
            return carry, output

        electrode = electrode + jnp.zeros_like(recording.current)
        with brainstate.environ.context(dt=recording.dt / n_substep * u.ms):
            studies.start_at(cell, studies.held_at(recording, electrode))
            rows = dataclasses.replace(recording, V_start=None, V_start_error=None), electrode
            return brainstate.transform.scan(step, start(*potentials(electrode[0])), rows)

    return run


def make_trajectories(constants: Parameters, dt_sim: float) -> studies.Model:
    """Teacher-forced potentials: (parameters, recording) -> V and V - V_th (mV), each (T, n_trace)."""
    run = teacher_forced(constants, dt_sim, lambda _, V, distance, row: (None, dict(V=V, distance=distance)))
    return lambda parameters, recording, level=0.0: run(parameters, recording)[1]


def make_costs(constants: Parameters, dt_sim: float) -> studies.Model:
    """Costs of traces: (parameters, recording, width) -> `spike_cost` and squared errors, summed over time, (n_trace,).

    They are summed as the neuron runs: storing potentials and their derivatives would take three times as long.
    """

    def model(parameters: Parameters, recording: Recording, width: ArrayLike) -> dict[str, jax.Array]:
        def observe(carry, V, distance, row):
            spike_costs, errors, before = carry
            spike_costs += row.observed * spike_cost(distance, before, row.spikes, width)
            return (spike_costs, errors + row.mask * (V - row.V) ** 2, distance), None

        def start(V, distance):
            return 0 * V, 0 * V, distance

        (spike_costs, errors, _), _ = teacher_forced(constants, dt_sim, observe, start)(parameters, recording)
        return dict(spike_cost=spike_costs, error=errors)

    return model


def with_escape_noise(
    parameters: Parameters, recording: Recording, width: float, dt_sim: float, key: jax.Array
) -> jax.Array:
    """Spikes (T, n_trace) of the neuron that fires by chance, with the probability that `spike_cost` is the cost of.

    Args:
        width: of the escape noise (mV).
        key: of the random numbers.
    """
    parameters, electrode = studies.behind_electrode(parameters, recording)
    cell, n_substep = utils.GIF(recording.current.shape[1:], **parameters), studies.substeps(recording.dt, dt_sim)

    def distance():
        return (cell.V.value - cell.threshold).to_decimal(u.mV)

    def step(before, row):
        current, key = row
        now = distance()
        p = 1 - jnp.exp(-spike_cost(now, before, jnp.zeros_like(now), width))
        spikes = (jax.random.uniform(key, now.shape) < p).astype(now.dtype)
        cell.update(current * u.nA, spikes)
        for _ in range(n_substep - 1):
            cell.update(current * u.nA, jnp.zeros_like(spikes))
        return now, spikes.astype(jnp.uint8)

    with brainstate.environ.context(dt=recording.dt / n_substep * u.ms):
        studies.start_at(cell, studies.held_at(recording, electrode))
        rows = recording.current, jax.random.split(key, len(recording.current))
        return brainstate.transform.scan(step, distance(), rows)[1]


# ---- Losses ---------------------------------------------------------------------------------------------------------


def spike_cost(distance: ArrayLike, before: ArrayLike, spike: ArrayLike, width: ArrayLike) -> jax.Array:
    r"""Negative log-probability of a spike, or of none, in a step of an escape-noise neuron.

    With x = (V - V_th) / width, which the step takes from x_0 to x, the neuron fires with probability

    .. math:: p = 1 - \exp(-[\Lambda(x) - \Lambda(x_0)]_+), \quad \Lambda(x) = \log(1 + e^x)

    so that on a rising potential the first spike is where x exceeds a logistic random number: early and late spikes
    cost the same. (With p = 1 / (1 + exp(-x)) in every step it is early, the more so the slower V rises.) As the width
    goes to 0, spikes are where V reaches V_th. For hazards that grow with the slope of V see Plesser & Gerstner (2000).

    Args:
        distance, before: V - V_th at the start of this step, where spike belongs, and of the one before (mV).
        spike: recorded, 0 or 1, of the same shape.
        width: (mV).
    """
    x, rise = distance / width, (distance - before) / width
    cumulative = jax.nn.softplus(x)
    silent = jax.nn.relu(cumulative - jax.nn.softplus(before / width))
    # p = (1 - exp(-rise)) / (1 + exp(-x)).
    fired = cumulative - x - jnp.log(1 - jnp.exp(-jnp.maximum(rise, RISE_FLOOR)))
    return jnp.where(spike > 0, fired, silent)


def likelihood_loss(settings: Settings, trajectories: studies.Model) -> studies.Loss:
    """Negative log-likelihood of the spikes and, for --fit_target potential, of the potentials, from `make_costs`.

    That of n potentials is Gaussian, maximised over the noise level: n / 2 log(1 + mean squared error / s^2) with s the
    resolution of a recording.
    """
    with_potentials = settings.fit_target == "potential"

    def loss(costs: Mapping[str, jax.Array], recording: Recording) -> jax.Array:
        n = with_potentials * jnp.sum(recording.mask)
        mse = jnp.sum(costs["error"]) / jnp.maximum(n, 1)
        return jnp.sum(costs["spike_cost"]) + n / 2 * jnp.log1p(mse / studies.V_RESOLUTION**2)

    return studies.Loss(loss, "negative log-likelihood", make_predictions(settings, trajectories), is_log=True)


def simulation_loss(settings: Settings, trajectories: studies.Model) -> studies.Loss:
    """The paper's loss of the model that runs freely: potentials as they are, spikes with their surrogate gradient."""
    tau, predictions = settings.tau_rossum * u.ms, make_predictions(settings, trajectories)

    def van_rossum(output: Mapping[str, jax.Array], recording: Recording) -> jax.Array:
        model, data = output["spikes"] * recording.observed, recording.spikes * recording.observed
        return spike_trains.van_rossum_distance(model, data, recording.dt * u.ms, tau)

    if settings.fit_target == "potential":
        return dataclasses.replace(studies.SQUARED_ERROR, predictions=predictions)
    return studies.Loss(van_rossum, "van Rossum distance of the spikes", predictions)


def make_predictions(settings: Settings, trajectories: studies.Model) -> Callable[..., Predictions]:
    """What `identifiability` asks how well it is determined, and the clusters of these numbers.

    They are the teacher-forced potentials, and V - V_th half a step before each recorded spike, where it should be 0. A
    cluster is the time between two spikes: a spike recorded late is one for all potentials that follow.
    """

    def predictions(study: studies.Study, box: Box, x: np.ndarray) -> Predictions:
        recording = study.fitted
        spikes = recording.spikes * recording.observed > 0
        interval = np.cumsum(spikes, axis=0) - spikes
        interval += np.concatenate([[0], np.cumsum(interval.max(0) + 1)[:-1]])
        counts = recording.mask > 0 if settings.fit_target == "potential" else np.zeros_like(spikes)

        def output(x, recording):
            return trajectories(box.parameters(x), recording, 0.0)

        def at_spikes(x, recording):
            distance = output(x, recording)["distance"]
            return ((distance + jnp.concatenate([distance[:1], distance[:-1]])) / 2)[spikes]

        noise = dict(largest_noise=studies.largest_error(recording, *MISFIT), data=(recording,), counts=counts)
        V = recording.V[counts]
        potentials = Prediction(lambda x, r: output(x, r)["V"][counts], V, studies.V_RESOLUTION, **noise)
        distances = Prediction(at_spikes, np.zeros(spikes.sum()), studies.V_RESOLUTION, data=(recording,))
        clusters = np.concatenate([interval[counts], interval[spikes]]).astype(int)
        return {"V_mV": potentials, "distance_at_spikes_mV": distances}, clusters

    return predictions


def study_of(
    settings: Settings,
    targets: Mapping[str, Recording],
    source: recordings.Source,
    known: Mapping[str, float] | None = None,
    spike_level: SpikeLevel | None = None,
) -> studies.Study:
    """The study of the neuron on targets that have potentials or spikes.

    Args:
        targets: {"fit" or "validation": recording}.
        source: of the targets.
        known: {name: value} of the neuron behind the targets, where there is one.
        spike_level: of the targets.

    Raises:
        BadInput: settings that these targets do not have what it takes for.
    """
    target = recordings.every(targets["fit"], settings.n_point)
    if settings.fit_target == "spike":
        recordings.require_spikes(target, spike_level or SpikeLevel())
    else:
        recordings.require_potentials(target)
    targets = {**targets, "fit": target}
    recorded = source.own and source.target == "recorded"
    objective = settings.objective or ("likelihood" if target.spikes.any() or recorded else "simulation")
    if escape_of(settings, objective, target, source) == "exponential":
        return escaping_study(settings, targets)
    settings = dataclasses.replace(settings, fit_parameters=settings.fit_parameters or FITTED)
    if idle := [name for name in settings.fit_parameters if name in ("width", "lapse")]:
        found = f"found {' '.join(idle)} without --escape exponential, where they have no effect"
        raise BadInput(f"argument --fit_parameters: {found}, expected others")
    values = values_of(settings)
    constants, dt_sim = with_units(values), source.dt_sim
    model, trajectories = studies.simulation(utils.GIF, constants, dt_sim), make_trajectories(constants, dt_sim)
    study = studies.Study(
        model=model,
        loss=simulation_loss(settings, trajectories),
        bounds=studies.select_bounds(settings.fit_parameters, RANGES, settings.bounds),
        recordings=targets,
        free_run=studies.free_run_of(model),
        constants={name: value for name, value in values.items() if name not in settings.fit_parameters},
        known=known,
        delta=settings.delta,
    )
    if objective == "simulation":
        return study
    t_blank = T_BLANK if settings.t_blank is None else settings.t_blank
    target = recordings.without_spikes(target, t_blank, t_blank)
    if settings.fit_target == "potential" and not target.mask.any():
        expected = "expected less: no potential is left to fit"
        raise BadInput(f"argument --t_blank: found {t_blank:g}, {expected}")
    widths = (*(width for width in WIDTHS if width > settings.width_floor), settings.width_floor)
    return dataclasses.replace(
        study,
        model=make_costs(constants, dt_sim),
        loss=likelihood_loss(settings, trajectories),
        windows=target,
        annealing=studies.Annealing("width", "mV", widths),
        objective=dict(escape="threshold"),
        trajectories=trajectories,
        more=more_by_threshold(constants, dt_sim),
    )


def escape_of(settings: Settings, objective: str, target: Recording, source: recordings.Source) -> str | None:
    """One of ESCAPES, or None where the model runs freely.

    Raises:
        BadInput: what is asked for has no such neuron.
    """
    if objective == "simulation":
        where = "--objective simulation" if settings.objective else "a target without spikes, which is simulated"
        fit_arguments.refuse_idle(settings, where, *IDLE["simulation"])
        return None
    has_V = np.any(target.mask)
    if settings.escape == "exponential" and not has_V:
        raise BadInput("argument --escape: found exponential without potentials, expected threshold")
    escape = settings.escape or ("exponential" if source.own and source.target == "recorded" and has_V else "threshold")
    given = {*(settings.fit_parameters or ()), *dict(settings.constants)}
    if settings.model_terms and (escape == "threshold" or settings.fit_parameters):
        found = "--escape threshold" if escape == "threshold" else "--fit_parameters"
        raise BadInput(f"argument --model_terms: found it with {found}, expected one of them alone")
    if escape == "exponential" and "V_th_reset" in given:
        expected = "expected A_th, the jump of a threshold without floor, or --escape threshold"
        raise BadInput(f"argument --fit_parameters or --constants: found V_th_reset, {expected}")
    if escape == "exponential" and settings.n_point:
        expected = "expected none: its likelihood takes all potentials, by --tau_noise"
        raise BadInput(f"argument --n_point: found {settings.n_point} with --escape exponential, {expected}")
    fit_arguments.refuse_idle(settings, f"--escape {escape}", *IDLE[escape])
    return escape


def escaping_study(settings: Settings, targets: Mapping[str, Recording]) -> studies.Study:
    """The study of the neuron with an exponential escape rate on a recording, from which its bounds come."""
    estimates = teacher_forcing.first_estimates(targets["fit"], dict(settings.constants).get("t_ref"))
    with_potentials, has_spikes = settings.fit_target == "potential", bool(targets["fit"].spikes.any())
    beyond = [name for names in TERMS.values() for name in names]
    tried = TERMS if settings.model_terms == ["auto"] else settings.model_terms or DEFAULT_TERMS
    terms = {name for term in tried for name in TERMS.get(term, [])}
    fitted = settings.fit_parameters or [
        name
        for name in dict.fromkeys((*MEMBRANE, *THRESHOLD, *beyond))
        if (name not in beyond or name in terms)
        and (with_potentials or name not in NOT_OF_SPIKES)
        and (has_spikes or name in OF_SILENCE)
    ]
    values = studies.select_constants(WITHOUT | estimates.values, settings.constants, fitted)
    studies.require_effect(values, fitted, NEEDED)
    ranges = RANGES | {name: u.Quantity(limits, unit=UNITS[name]) for name, limits in (WIDE | estimates.bounds).items()}
    constants = {name: value * UNITS[name] for name, value in values.items() if name not in fitted}
    noise = teacher_forcing.Noise(settings.tau_noise or estimates.tau_noise, with_potentials)
    t_blank = teacher_forcing.T_BEFORE if settings.t_blank is None else settings.t_blank
    neuron = teacher_forcing.Escaping(constants, noise, t_blank)
    model = studies.simulation(utils.GIF, constants | {"V_th_reset": teacher_forcing.NO_FLOOR})
    bounds = studies.select_bounds(fitted, ranges, settings.bounds)
    study = studies.Study(
        model=model,
        loss=simulation_loss(settings, model),
        bounds=bounds,
        recordings=targets,
        free_run=studies.free_run_of(model),
        constants={name: value for name, value in values.items() if name not in fitted},
        delta=settings.delta,
        more=more_by_escape(neuron),
        objective=dict(escape="exponential", tau_noise_ms=noise.tau_noise),
        starts=teacher_forcing.starts_of(bounds, estimates.values),
        absent=ABSENT,
    )
    return neuron.study(study)


def steps_of(settings: Settings, study: studies.Study) -> list[Sequence[str]]:
    """Terms that are tried together, step by step; none where --model_terms or --fit_parameters has what is fitted."""
    if not study.gram or settings.fit_parameters or settings.model_terms not in (None, ["auto"]):
        return []
    return [[term] for term in TERMS] if settings.model_terms else [DEFAULT_TERMS]


def with_terms(settings: Settings, terms: Sequence[str]) -> Settings:
    """The settings of a fit with these terms, or ["none"]: bounds of parameters that only others have are left out."""
    absent = {name for term, names in TERMS.items() if term not in terms for name in names}
    bounds = [(name, limits) for name, limits in settings.bounds if name not in absent]
    return dataclasses.replace(settings, model_terms=terms, bounds=bounds)


def more_by_threshold(constants: Parameters, dt_sim: float) -> More:
    """What the neuron of --escape threshold predicts besides, as `make_more` has it."""
    trajectories = make_trajectories(constants, dt_sim)
    forced = jax.jit(lambda parameters, recording: trajectories(parameters, recording)["V"])
    noisy = jax.jit(with_escape_noise, static_argnums=3)
    return make_more(forced, lambda parameters, *others: noisy(constants | parameters, *others[:2], dt_sim, others[2]))


def more_by_escape(neuron: teacher_forcing.Escaping) -> More:
    """What the neuron with an exponential escape rate predicts besides; its width is one of its parameters."""
    return make_more(neuron.forced, lambda parameters, recording, width, key: neuron.noisy(parameters, recording, key))


def make_more(
    forced: Callable[[Parameters, Recording], ArrayLike],
    noisy: Callable[[Parameters, Recording, float, jax.Array], ArrayLike],
) -> More:
    """What the neuron predicts besides: potentials with its spikes forced, and its spikes with escape noise.

    The latter are N_RUN runs, or a few more, for every current that comes more than once, or else N_COUNT a current.

    Args:
        forced: (parameters, recording) -> V (T, n_trace).
        noisy: (parameters, recording, width, key) -> spikes (T, n_trace).
    """

    def more(
        prediction: scoring.Prediction, parameters: Parameters, recording: Recording, width: float, seed: int
    ) -> scoring.Prediction:
        V_forced = np.asarray(forced(parameters, recording), np.float64)
        n_trace, groups = recording.current.shape[1], recordings.repeats_of(recording)
        n_run = -(-N_RUN // min(map(len, groups))) if groups else N_COUNT
        traces = np.repeat(np.arange(n_trace), n_run)
        V_start = None if recording.V_start is None else recording.V_start[traces]
        driven = Recording(recording.current[:, traces], V_start=V_start, dt=recording.dt)
        spikes = np.asarray(noisy(parameters, driven, width, jax.random.key(seed)), np.uint8)
        stochastic = spikes.reshape(len(spikes), n_trace, n_run)
        return dataclasses.replace(prediction, V_forced=V_forced, stochastic=stochastic)

    return more


def values_of(settings: Settings) -> dict[str, float]:
    """{name: value} of the protocol's neuron, where --constants has no others: those not fitted keep these.

    What that neuron does not have is there if it is fitted or given, or belongs to what is.
    """
    asked = {*settings.fit_parameters, *dict(settings.constants)}
    groups = ["A_th"], ["t_ref"], ["A_g", "k_g", "E_g"], *(TERMS[term] for term in TERMS if term not in ("g", "lapse"))
    beyond = {name for group in groups if asked.intersection(group) for name in group}
    values = {name: x for name, x in WITHOUT.items() if name in beyond} | PROTOCOLS[settings.protocol]
    values = studies.select_constants(values, settings.constants, settings.fit_parameters)
    studies.require_effect(values, settings.fit_parameters, NEEDED)
    return values


def with_units(values: Mapping[str, float]) -> Parameters:
    """{name: value with unit}."""
    return {name: value * UNITS[name] for name, value in values.items()}


def make_study(settings: Settings, data: Data, source: recordings.Source, seed: int = 0) -> studies.Study:
    """The study of the neuron on data.

    Args:
        data: recordings; potentials that are missing are simulated by the neuron of the protocol.
        source: of the data, with what is added to them.
        seed: of noise that is added.
    """
    truth = with_units(PROTOCOLS[settings.protocol])
    free_run = studies.free_run_of(studies.simulation(utils.GIF, truth, source.dt_sim))
    targets = recordings.make_targets(source, data, free_run, {}, seed)
    known = PROTOCOLS[settings.protocol] if source.target == "simulated" else None
    return study_of(settings, targets, source, known, data.spike_level)


# ---- Data -----------------------------------------------------------------------------------------------------------


def protocol_currents(protocol: str, dt: float) -> dict[str, np.ndarray]:
    """{"fit" or "validation": currents (T, 5) in nA} of one second, in steps of dt (ms).

    The currents other than the paper's are Ornstein-Uhlenbeck: mean 1.5 nA, s.d. 0.7 nA, time constant 30 ms.
    """
    n_step, rng, decay = round(1000 / dt), np.random.default_rng(0), np.exp(-dt / 30)
    noisy = rng.standard_normal((n_step, 10))
    for k in range(1, n_step):
        noisy[k] = decay * noisy[k - 1] + np.sqrt(1 - decay**2) * noisy[k]
    noisy = 1.5 + 0.7 * noisy
    if protocol == "identifiable":
        return {"fit": noisy[:, :5], "validation": noisy[:, 5:]}
    t, steps = np.arange(n_step) * dt, np.zeros((n_step, 5))
    for trace, pieces in enumerate(PAPER_CURRENTS):
        levels, durations = zip(*pieces, strict=True)
        steps[:, trace] = np.take(levels, np.searchsorted(np.cumsum(durations), t + 1e-9, side="right"))
    return {"fit": steps, "validation": noisy[:, 5:]}


def read_data(source: recordings.Source, protocol: str) -> Data:
    """The user's recordings, or else the currents of the protocol, whose potentials are still to be simulated."""
    data = recordings.read_data(source, {})
    if "fit" in data.recordings:
        return data
    dt = source.files.dt or DT
    currents = {name: Recording(current, dt=dt) for name, current in protocol_currents(protocol, dt).items()}
    return Data(currents | data.recordings)


# ---- Figure S4 ------------------------------------------------------------------------------------------------------


def plot_surrogates() -> plt.Figure:
    """The surrogates of `braintools.surrogate` at their defaults: gradient (orange) and the function (black).

    The last panel is the one of this neuron. Some surrogates are defined by the gradient alone.
    """
    module = braintools.surrogate
    classes = [getattr(module, name) for name in module.__all__]
    surrogates = {c.__name__: c() for c in classes if isinstance(c, type) and c is not module.Surrogate}
    surrogates["this neuron's ReluGrad"] = utils.SURROGATE
    x = jnp.linspace(-3, 3, 601)
    layout, n_row = dict(sharex=True, squeeze=False, layout="constrained"), -(-len(surrogates) // 5)
    figure, axes = plt.subplots(n_row, 5, figsize=(runs.WIDTH, 1.3 * n_row), **layout)
    for axis, (name, surrogate) in zip(axes.flat, surrogates.items(), strict=False):
        if type(surrogate).surrogate_fun is not module.Surrogate.surrogate_fun:
            axis.plot(x, surrogate.surrogate_fun(x), "k-", lw=1)
        axis.plot(x, surrogate.surrogate_grad(x), "C1-", lw=1)
        axis.set_title(name)
    for axis in axes.flat[len(surrogates) :]:
        axis.set_axis_off()
    figure.supxlabel("distance from threshold x", fontsize=8)
    return figure


# ---- Main -----------------------------------------------------------------------------------------------------------


def random_search(study: studies.Study, fit: fitting.Fit, seed: int, devices: Sequence[jax.Device]) -> fitting.Minimum:
    """Random parameter sets, as many as a fit has simulated: what gradients have to beat."""
    n_sample = len(fit.minimum.starts)
    search = fitting.Search("random", n_sample, n_iter=-(-fit.n_simulations // n_sample), seed=seed)
    return fitting.minimise(fitting.FitProblem(study, n_sample, devices), search)


def make_plan(args: argparse.Namespace, study: studies.Study) -> comparing.Plan:
    """The comparison that the arguments ask for."""
    without_currents = args.protocol == "paper" and not {"A1", "A2"} & set(study.bounds)
    names = [name for name in study.bounds if not (without_currents and name in ("k1", "k2", "R1", "R2"))]
    own = study.annealing or args.current or args.recording or args.noise_std or args.constants or args.bounds
    own = own or args.fit_parameters or args.fit_target != "potential" or args.protocol != "paper"
    paper = {} if own or args.n_point != PAPER_POINTS else PAPER_RESULTS
    n_start = PAPER_STARTS if args.protocol_budget == "paper" else args.n_sample
    return runs.pick(comparing.Plan, args, n_start=n_start, names=names, paper=paper)


def responder(result: Mapping[str, Any], source: recordings.Source, seed: int) -> reports.Responder:
    """The neuron that a fit has found, by its result.json."""
    parameters, width = with_units(result["constants"] | result["parameters"]), result.get("width_mV")
    if result.get("escape") == "exponential":
        more = more_by_escape(teacher_forcing.Escaping(parameters, teacher_forcing.Noise(result["tau_noise_ms"])))
        free_run = studies.free_run_of(
            studies.simulation(utils.GIF, parameters | {"V_th_reset": teacher_forcing.NO_FLOOR})
        )
        parameters, dt = {}, result.get("dt_ms")
    else:
        more = more_by_threshold({}, source.dt_sim) if width else None
        free_run, dt = studies.free_run_of(studies.simulation(utils.GIF, {}, source.dt_sim)), None

    def complete(prediction: scoring.Prediction, recording: Recording) -> scoring.Prediction:
        return more(prediction, parameters, recording, width, seed) if more else prediction

    return reports.Responder(functools.partial(free_run, parameters), complete, dt)


@runs.command_line
def main(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    devices = runs.setup(args, SCRIPT, argv)
    if args.load:
        print(reports.predict(args, argv, devices, SCRIPT, responder).path)
        return 0
    seeds = (int(child.generate_state(1)[0]) for child in np.random.SeedSequence(args.seed).spawn(3))
    noise_seed, fit_seed, random_seed = seeds
    source, settings = recordings.source_of(args), runs.pick(Settings, args)
    data = read_data(source, args.protocol)
    study = make_study(settings, data, source, noise_seed)
    objective = "likelihood" if study.annealing else "simulation"
    args.method = args.method or (solvers.GAUSS_NEWTON if study.gram else "L-BFGS-B")
    budget = args.protocol_budget if args.mode == "compare" else args.method
    name = f"{args.mode}_{args.protocol}_{objective}_{args.fit_target}_{budget}_seed{args.seed}"
    run = runs.RunFolder(args, SCRIPT, name, {"repeats"}, data.checksum)
    print(*data.report, sep="\n", end="\n" * bool(data.report))
    search, interrupted, choice = runs.pick(fitting.Search, args, seed=fit_seed), False, None
    if args.mode == "compare":
        plan = make_plan(args, study)
        run.save_config(argv, devices)  # first: a comparison that is killed is resumed by it
        uniform = dataclasses.replace(study, starts=None)  # as all other methods begin
        comparison = comparing.compare(uniform, plan, devices, run)
        interrupted = comparison.interrupted
        if not interrupted:
            print(comparing.markdown_of(study, plan, comparison), end="")
            comparing.save_comparison(run, study, plan, comparison, data)
    elif args.mode == "visualize":
        preview = reports.visualize(study, search, devices)
        reports.print_preview(study, preview)
        run.save_config(argv, devices)
        reports.save_preview(run, study, data, preview)
        run.save("surrogates.png", plot_surrogates())
    else:
        journal = runs.Journal(run, functools.partial(run.save_config, argv, devices))
        if steps := steps_of(settings, study):

            def study_with(terms):
                return make_study(with_terms(settings, terms), data, source, noise_seed)

            choice = comparing.choose_terms(study_with, steps, search, devices, journal)
            print(*comparing.candidate_lines(choice.rows, args.method), sep="\n")
            study = choice.problem.study
        fit = choice.fit(search.seed) if choice else fitting.fit(study, search, devices, journal)
        interrupted, extra = fit.minimum.interrupted, dict(script=SCRIPT, objective=objective) | study.objective
        if objective == "likelihood":
            extra |= {} if study.gram else {study.annealing.label: fit.minimum.level}
        elif args.method == "L-BFGS-B" and not interrupted:
            random = random_search(study, fit, random_seed, devices)
            interrupted = random.interrupted
            fit = dataclasses.replace(fit, minimum=dataclasses.replace(fit.minimum, interrupted=interrupted))
            extra |= {} if interrupted else {"random_search_loss": random.best.loss}
        reports.print_fit(study, fit, extra)
        run.save_config(argv, devices)
        reports.save_fit(run, study, data, fit, extra)
        if choice:
            run.save("model_terms.csv", [dataclasses.asdict(row) for row in choice.rows])
        if not interrupted:
            journal.discard()
    print(run.path)
    return 130 if interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
