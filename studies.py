"""What is fitted: a model with its parameters, its loss, and the recordings.

A neuron class becomes a `Model` by `simulation`; a model, a `Loss`, bounds and recordings are a `Study`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from runs import BadInput

import brainpy.state
import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

import recordings
import scoring
import spike_trains
from identifiability import Box, Likelihood, Parameters, Prediction, Predictions
from numerics import Number, exponential_filter, is_zero
from recordings import Recording
from spike_trains import SpikeLevel

V_RESOLUTION = 0.01  # mV; no recording is taken to be more exact
DESCRIBED = 1.3  # times their noise: errors of potentials that a model still describes

# ---- Models and losses ----------------------------------------------------------------------------------------------


class Model(Protocol):
    """What is simulated: parameters and a recording give an array (..., n_trace), or a pytree of them, such as V (mV).

    `level` is where an annealed fit stands (see `Annealing`); most models do not look at it.
    """

    def __call__(self, parameters: Parameters, recording: Recording, level: ArrayLike) -> Any: ...


# (x -> parameters, x (k,), what is fitted) -> (k + 1, k + 1): in its last column half the gradient, and then the loss;
# the rest is half of what stands for the second derivatives, as of a sum of squares the Gram matrix of J and residuals.
Gram = Callable[[Callable[[jax.Array], Parameters], jax.Array, Any], jax.Array]


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss: (output of the model, recording) -> scalar; its name with unit; and what `identifiability` asks.

    One that `is_log` is compared by differences. One with `residuals`, (output, recording) -> (T, n_trace), is the sum
    of their squares by that of the mask of the recording; `least_squares` makes it.
    """

    function: Callable[[Any, Any], jax.Array]
    name: str
    predictions: Callable[["Study", Box, np.ndarray], Predictions | Likelihood]
    is_log: bool = False
    residuals: Callable[[Any, Any], jax.Array] | None = None


def least_squares(residuals: Callable[[Any, Any], jax.Array], name: str, predictions: Any) -> Loss:
    """The mean of squared residuals, of the samples that count."""

    def mean_square(output: Any, recording: Any) -> jax.Array:
        return jnp.sum(residuals(output, recording) ** 2) / jnp.sum(recording.mask)

    return Loss(mean_square, name, predictions, residuals=residuals)


@dataclasses.dataclass(frozen=True)
class Released:
    """What a cell does that the recording no longer drives: mean squared error (mV^2), Gamma, spikes of both.

    `rmse_away` is the root mean square error (mV) away from spikes of either.
    """

    loss: float
    gamma: float | None
    n_spikes: int
    n_spikes_model: int
    rmse_away: float

    @property
    def follows(self) -> bool:
        """Whether it has at least half of the spikes that chance would not give it, if there are any."""
        return math.isfinite(self.loss) and (not self.n_spikes or (self.gamma or 0.0) >= 0.5)

    @property
    def text(self) -> str:
        spikes = f"{self.n_spikes_model} spikes for {self.n_spikes}"
        return spikes if self.gamma is None else f"{spikes}, Gamma {self.gamma:.2f}"


@dataclasses.dataclass(frozen=True)
class Annealing:
    """What changes in stages while a fit runs, such as the width of a likelihood: its name, unit and values in order.

    Every start is minimised at each level in turn, from where the last one ended, and then fully at one level, which is
    thereby fitted too: that of the lowest loss, or where the study says what the model does when it is `released`, the
    one of the best Gamma at which the starts agree. Methods without gradients have the last level alone.

    Args:
        n_first: traces on which the first level is fitted, evenly taken, where there are more than twice as many; it
            is then not one to end at.
    """

    name: str
    unit: str
    levels: tuple[float, ...]
    n_first: int | None = None

    @property
    def label(self) -> str:
        """Name and unit, as a name of numbers."""
        return f"{self.name}_{self.unit}"


@dataclasses.dataclass(frozen=True)
class FitSettings:
    """What is fitted of a neuron, and how; the arguments of the same names, with potentials in mV and times in ms."""

    fit_target: str = "potential"
    fit_parameters: Sequence[str] = ()
    bounds: Sequence[tuple[str, list[float]]] = ()
    n_point: int | None = None
    tau_rossum: float = 5.0
    delta: float = 4.0
    constants: Sequence[tuple[str, float]] = ()
    method: str | None = None


@dataclasses.dataclass(frozen=True)
class Study:
    """A model, what is fitted of it, and to what.

    Args:
        model, loss, bounds: see `Model`, `Loss` and `Box`.
        recordings: "fit", and where there is one "validation".
        free_run: (parameters, recording) -> V (mV) and spikes of the model when it runs freely, each (T, n_trace).
        constants: {name: value} of the parameters that are not fitted.
        known: {name: value} of the parameters behind the target, where they are.
        delta: coincidence window of the scores, to either side (ms).
        annealing: where a fit goes by stages.
        trajectories: as model, each array (T, n_trace), where the model does not return these itself: to find NaN.
        finer: the model with half the step, of a scheme of second order, where the target knows nothing of the step.
        more: (prediction, parameters, recording, level, seed) -> the prediction with what the model says besides.
        windows: what model and loss are given in place of recordings["fit"]; a pytree of arrays (..., n_trace), of
            which the first is (T, n_trace).
        released: (parameters) -> what the model does that is not driven, where it is while it is fitted.
        kept: (parameters, level) -> which of the windows (n_trace,) count in the end, where the errors of some are no
            noise; these have only(kept).
        further: (study, parameters, what the model does) -> the study that tells more where a fit has ended there, or
            None.
        objective: what result.json says of it besides.
        starts: (n, seed) -> random starts (n, k) in the box; without it they are uniform there.
        absent: {name: value} of parameters at which their term is absent, or as little there as the box has it.
        held: those of the constants that could be others, {name: value with unit}.
        gram: that of a likelihood. The model is then given one set of parameters at a time, scalars, and gradients
            are in reverse mode.
    """

    model: Model
    loss: Loss
    bounds: Mapping[str, u.Quantity]
    recordings: Mapping[str, Recording]
    free_run: recordings.FreeRun
    constants: Mapping[str, float] = dataclasses.field(default_factory=dict)
    known: Mapping[str, float] | None = None
    delta: float = 4.0
    annealing: Annealing | None = None
    trajectories: Model | None = None
    finer: Model | None = None
    more: Callable[[scoring.Prediction, Parameters, Recording, float, int], scoring.Prediction] | None = None
    windows: Any = None
    released: Callable[[Parameters], Released] | None = None
    kept: Callable[[Parameters, float], np.ndarray] | None = None
    further: Callable[["Study", Parameters, Released], "Study | None"] | None = None
    objective: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    starts: Callable[[int, int], np.ndarray] | None = None
    absent: Mapping[str, float] = dataclasses.field(default_factory=dict)
    held: Mapping[str, u.Quantity] = dataclasses.field(default_factory=dict)
    gram: Gram | None = None

    @property
    def fitted(self) -> Any:
        """What model and loss are given."""
        return self.recordings["fit"] if self.windows is None else self.windows

    def at(self, level: float) -> "Study":
        """The study at one level of its annealing."""
        return dataclasses.replace(self, annealing=dataclasses.replace(self.annealing, levels=(level,)))

    def predict(self, parameters: Parameters, recording: Recording, level: float, seed: int) -> scoring.Prediction:
        """What the model says of a recording when it runs freely; the level and the seed are those of its noise."""
        prediction = scoring.Prediction(*self.free_run(parameters, recording))
        return self.more(prediction, parameters, recording, level, seed) if self.more else prediction

    @property
    def last_level(self) -> float:
        """The level of what is not annealed: methods without gradients, a look before a fit, the cost of a gradient."""
        return self.annealing.levels[-1] if self.annealing else 0.0


def simulate(
    neuron: Callable[..., brainpy.state.Neuron],
    parameters: Mapping[str, Number],
    current: Number,
    dt: u.Quantity,
    n_substep: int = 1,
    V_start: Number | None = None,
) -> tuple[Number, jax.Array]:
    """Response of single cells to currents, as one compiled scan.

    Args:
        neuron: class of the cell, called as `neuron(n_trace, **parameters)`.
        parameters: {name: value with unit}. Under `jax.vmap` over this pytree many parameter sets are one program, and
            `jax.jacfwd` or `jax.grad` differentiate with respect to it.
        current: shape (T, n_trace) (nA), one cell a trace, constant for dt.
        dt: time between samples (ms).
        n_substep: steps of the simulation in dt.
        V_start: shape (n_trace,) (mV), the potential at which the cells have been held before: they `settle` there, or
            V alone is set where they have no such method. Without it, they start as `init_state` has it.

    Returns:
        V (mV) and spikes, each (T, n_trace): V[k] at time k dt, before current[k] acts; spikes[k] of dt from there.
    """
    cell = neuron(current.shape[1:], **parameters)

    def sample(x):
        V = cell.V.value
        return V, advance(cell, x, n_substep)

    with brainstate.environ.context(dt=dt / n_substep):
        start_at(cell, V_start)
        return brainstate.transform.for_loop(sample, current)


def advance(cell: brainpy.state.Neuron, x: Number, n_step: int) -> jax.Array:
    """Spikes of n_step steps of cells under x (nA), added up; one step is compiled, however many there are."""
    if n_step == 1:
        return cell.update(x)
    return brainstate.transform.for_loop(lambda _: cell.update(x), jnp.arange(n_step)).sum(0)


def start_at(cell: brainpy.state.Neuron, V_start: Number | None) -> None:
    """Initialise the states of cells that have been held at V_start (mV), or as `init_state` has it."""
    cell.init_state()
    if V_start is not None and hasattr(cell, "settle"):
        cell.settle(V_start)
    elif V_start is not None:
        cell.V.value = V_start + u.math.zeros_like(cell.V.value)


def simulation(
    neuron: Callable[..., brainpy.state.Neuron], constants: Parameters | None = None, dt_sim: float = math.inf
) -> Model:
    """A neuron that runs freely, as a model with the output {"V": (mV), "spikes": ...}, each (T, n_trace).

    V is what an electrode records, with the parameter R_s (Mohm) the potential of the neuron plus R_s I.

    Args:
        neuron: its class, as in `simulate`.
        constants: {name: value with unit} of parameters that are not fitted; without it, those of the class.
        dt_sim: the longest step of the simulation (ms).
    """

    def model(parameters: Parameters, recording: Recording, level: ArrayLike = 0.0) -> dict[str, jax.Array]:
        parameters, electrode = behind_electrode((constants or {}) | parameters, recording)
        n_substep, V_start = substeps(recording.dt, dt_sim), held_at(recording, electrode)
        currents = recording.current * u.nA, recording.dt * u.ms
        V, spikes = simulate(neuron, parameters, *currents, n_substep, V_start)
        return dict(V=V.to_decimal(u.mV) + electrode, spikes=spikes)

    return model


def behind_electrode(parameters: Parameters, recording: Recording) -> tuple[Parameters, ArrayLike]:
    """The parameters without R_s and tau_s, and what the electrode adds to the potential (T, n_trace) (mV)."""
    others = {name: value for name, value in parameters.items() if name not in ("R_s", "tau_s")}
    return others, electrode_potential(parameters, recording)


def electrode_potential(parameters: Parameters, recording: Recording) -> ArrayLike:
    """What an electrode adds to the potential, R_s times the current, slowed by tau_s: (T, n_trace) (mV), or 0.0.

    E[k] = e E[k - 1] + (1 - e) R_s I[k] with e = exp(-dt / tau_s); before the recording the current was the first.
    """
    if "R_s" not in parameters:
        return 0.0
    R_s, tau_s = parameters["R_s"].to_decimal(u.Mohm), parameters.get("tau_s", 0.0 * u.ms).to_decimal(u.ms)
    if is_zero(tau_s):
        return R_s * recording.current
    current, rate = jnp.asarray(recording.current), recording.dt / tau_s
    charging = (1 - jnp.exp(-rate)) * jnp.concatenate([current[1:], current[:1]])
    return R_s * exponential_filter(charging.T, rate, current[0]).T


def held_at(recording: Recording, electrode: ArrayLike = 0.0) -> u.Quantity | None:
    """The potential (n_trace,) of the neuron at the start, less what the electrode adds; None where it is not known."""
    first = electrode if isinstance(electrode, float) else electrode[0]
    return None if recording.V_start is None else (recording.V_start - first) * u.mV


def substeps(dt: float, dt_sim: float) -> int:
    """Steps of a simulation, of dt_sim (ms) at most, between samples that are dt (ms) apart."""
    return max(1, math.ceil(dt / dt_sim - 1e-6))


def free_run_of(model: Model, level: SpikeLevel | None = None) -> recordings.FreeRun:
    """(parameters, recording) -> V (mV) and spikes of a `simulation`, as one program.

    Spikes are those of the model, or with a level its crossings, as in a recording.
    """
    compiled = jax.jit(model)

    def free_run(parameters: Parameters, recording: Recording) -> tuple[np.ndarray, np.ndarray]:
        driven = Recording(np.asarray(recording.current), V_start=recording.V_start, dt=recording.dt)
        output = compiled(parameters, driven, 0.0)
        V = np.asarray(output["V"], np.float64)
        if level:
            return V, spike_trains.detect_spikes(V, level.level, level.rearm)
        return V, np.asarray(output["spikes"], np.float64)

    return free_run


def potential_errors(output: Mapping[str, jax.Array], recording: Recording) -> jax.Array:
    """Errors of the potentials that count (mV), (T, n_trace)."""
    return recording.mask * (output["V"] - recording.V)


STEPS_OF_ONE = (u.mV, u.Mohm)


def step_of(value: u.Quantity) -> u.Quantity:
    """How far off a constant that is held may well be: 1 mV of a potential, 1 Mohm of R_s, and 1 % of others."""
    unit = u.get_unit(value)
    return 1 * unit if unit in STEPS_OF_ONE else 0.01 * value


def stepped(study: Study, steps: Mapping[str, ArrayLike] | None) -> Parameters:
    """{name: value with unit} of the constants that are held, each higher by as many of its steps, or none at all."""
    return {name: study.held[name] + n * step_of(study.held[name]) for name, n in (steps or {}).items()}


def predicted_potentials(study: Study, box: Box, x: np.ndarray) -> Predictions:
    """The potentials that count, for SQUARED_ERROR."""
    recording = study.recordings["fit"]
    counts = np.asarray(recording.mask) > 0

    def potentials(x, recording, model=study.model, steps=None):
        return model(box.parameters(x) | stepped(study, steps), recording, 0.0)["V"][counts]

    def nuisances(x, V, recording):
        """The error of the integration, and what V would be if each trace had started a standard error higher."""
        columns = []
        if study.finer:
            columns.append(4 / 3 * (potentials(x, recording, study.finer) - V))
        if recording.V_start_error is not None:
            higher = dataclasses.replace(recording, V_start=recording.V_start + recording.V_start_error)
            trace, change = np.nonzero(counts)[1], potentials(x, higher) - V
            columns += [jnp.where(trace == i, change, 0) for i in range(counts.shape[1])]
        return jnp.stack(columns, axis=1)

    known = study.finer is None and recording.V_start_error is None
    noise, moved = (V_RESOLUTION, largest_error(recording)), None if known else nuisances
    held = tuple(study.held)
    return {"V_mV": Prediction(potentials, recording.V[counts], *noise, moved, (recording,), counts, held)}, None


def largest_error(recording: Recording, factor: float = DESCRIBED, floor: float = 0.1) -> float:
    """Root mean square error of potentials (mV) above which a model does not describe them: `factor` times their noise.

    What is below `floor` (mV) is not held against a model. Small misfits matter: with reversal potentials off by 5 mV
    the errors are 1.7 times the noise, and gNa is off by 75 %.
    """
    return max(floor, factor * recordings.noise_of(recording))


SQUARED_ERROR = least_squares(potential_errors, "mean squared error of the potential (mV^2)", predicted_potentials)


def simulation_study(
    neuron: type[brainpy.state.Neuron],
    bounds: Mapping[str, u.Quantity],
    targets: Mapping[str, Recording],
    constants: Parameters | None = None,
) -> Study:
    """The study of a neuron class by the mean squared error of its potentials: all that a new neuron needs."""
    model = simulation(neuron, constants)
    return Study(model, SQUARED_ERROR, bounds, targets, free_run_of(model))


# ---- Traces a part at a time ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Traces to be simulated at a time: the first of each chunk, and which of a chunk are not in the one before."""

    firsts: np.ndarray
    is_new: np.ndarray

    def of(self, data: Any, first: jax.Array) -> Any:
        """The chunk of data that begins with a trace."""
        width = self.is_new.shape[1]
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, width, axis=-1), data)

    def part(self, i: jax.Array, n_part: int) -> tuple[jax.Array, jax.Array]:
        """`firsts` and `is_new` of the i-th of so many parts, all as long: the last end in chunks with nothing new."""
        n_chunk = -(-len(self.firsts) // n_part)
        missing = (0, n_chunk * n_part - len(self.firsts))
        rows = np.pad(self.firsts, missing), np.pad(self.is_new, (missing, (0, 0)))
        first, is_new = (jax.lax.dynamic_slice_in_dim(x, i * n_chunk, n_chunk) for x in map(jnp.asarray, rows))
        return first, is_new


def chunks_of(n_trace: int, n_at_most: int) -> Chunks:
    """Chunks of at most so many traces; the last overlaps the one before it, so that all have one shape."""
    n_chunk = -(-n_trace // max(1, n_at_most))
    width = -(-n_trace // n_chunk)
    firsts = np.minimum(width * np.arange(n_chunk), n_trace - width)
    return Chunks(firsts, firsts[:, None] + np.arange(width) >= width * np.arange(n_chunk)[:, None])


def n_traces(data: Any) -> int:
    """The traces in what a study is fitted to."""
    return jax.tree.leaves(data)[0].shape[1]


# ---- Parameters -----------------------------------------------------------------------------------------------------


def unit_name(unit: u.Unit) -> str:
    """The unit as text, empty for a number without."""
    return "" if unit == u.UNITLESS else str(unit).replace(" ", "")


def select_constants(
    values: Mapping[str, float], own: Sequence[tuple[str, float]], fitted: Sequence[str]
) -> dict[str, float]:
    """{name: value} of all parameters: `values`, where `--constants` has no others."""
    for name, _ in own:
        if name not in values or name in fitted:
            what = "which is fitted" if name in fitted else "which is none"
            expected = f"expected one of {', '.join(sorted(values.keys() - set(fitted)))}"
            raise BadInput(f"argument --constants: found {name!r}, {what}; {expected}")
    return {**values, **dict(own)}


def require_effect(values: Mapping[str, float], fitted: Sequence[str], needed: Mapping[str, str]) -> None:
    """Raise `BadInput` where a parameter is fitted that has no effect: the one that it needs is held at 0."""
    for name, other in needed.items():
        if name in fitted and other not in fitted and not values.get(other):
            expected = f"expected both, or another value by --constants {other}=..."
            raise BadInput(f"argument --fit_parameters: found {name} without {other}, which is held at 0; {expected}")


def select_bounds(
    names: Sequence[str], ranges: Mapping[str, u.Quantity], own: Sequence[tuple[str, list[float]]]
) -> dict[str, u.Quantity]:
    """{name: Quantity [low, high]} of the parameters to fit: `ranges`, where `--bounds` has no others."""
    bounds, own = {name: ranges[name] for name in names}, dict(own)
    if unknown := own.keys() - bounds.keys():
        raise BadInput(f"argument --bounds: found {unknown.pop()!r}, expected one of {', '.join(bounds)}")
    return bounds | {name: u.Quantity(limits, unit=bounds[name].unit) for name, limits in own.items()}
