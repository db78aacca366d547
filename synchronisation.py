r"""A recording that drives the model while it is fitted, so that both spike together: prediction errors.

The squared error of a cell that runs freely is a landscape of cliffs as soon as there are several spikes: a spike too
early or too late costs as much as none. Here the model is told at each sample what was recorded, and is drawn there:

.. math:: V \leftarrow V + K (V_{rec} - V), \quad K = 1 - e^{-c \, dt}, \quad loss = mean (V_{rec} - V)^2

with the error e taken before V is drawn. The coupling c (per ms) is annealed to 0, where the cell is the released one.
Model and recording spike together whatever the parameters, and the loss is smooth in them. It is a sum of squares, and
`solvers.gauss_newton` needs tens of evaluations a start where L-BFGS-B needs hundreds.

.. math:: loss = mean (s \, arcsinh (w e / s))^2, \quad w = (1 + (T_{jitter} \, dV/dt / noise)^2)^{-1/2}

An error weighs less by w where T_JITTER makes as much of it: else the upstrokes of spikes have nearly all of the loss,
and where the model's have another shape it does best to be silent. Beyond s = LARGE it grows slowly: else one spike too
few outweighs the windows in which all is predicted, and moves parameters.

In the end, few windows with squared errors above OUTLIER times those of the others are left out and the rest is
minimised again (least trimmed squares, Rousseeuw 1984), unless the released cell is then further from the recording. In
them noise has moved a spike, or made one, as that of the potentials does where the cell is let go close to its
threshold. One such window of thirty moved gNa by 10 %.

Where the released cell then is that of the recording, to noise, it is fitted once more as such (`from_best_starts`):
the recording has drawn it to its noise, which is in the state with which counting begins. There V is shifted by what
makes the errors of the window least, and T_JITTER is no more than these errors tell.

The sum of these one-sample predictions is what a Kalman filter of constant gain minimises (Ljung 1999, chapter 7), and
differs from a current g (V_rec - V) in the cell (Abarbanel, Creveling, Farsian & Kostuk 2009; Voss, Timmer & Kurths
2004; generalised teacher forcing, Hess, Monfared, Brenner & Durstewitz 2023) in two things: where the parameters are
true there is no error at any coupling, and a sample is compared with what was known before it. A current that contains
the noise of the very sample rewards cells that follow noise: with 1 mV of it, C ended at its lower bound.

When to prefer it: whenever there are more than a few spikes, and potentials are recorded at all of their samples.
Where there are no spikes, the plain loss is as good. Of the couplings whose released cell has the best Gamma with the
spikes of the fitted data (to 0.02), the fit ends at one at which the starts agree and the released cell has the lowest
mean squared error (to 10 %): a weak one, where the model is the cell. Where they differ by no more, it lacks something,
and a spike too few moves parameters the more, the weaker the coupling is: then the best one-sample predictions count.
Potentials and spikes may ask for different cells: `--fit_target spike` goes on from here, by the spikes alone, and
`both` by them and the potentials between them. Without that argument, and where the released cell has not the spikes of
the recording, `both` are fitted to what precedes the last third of its spikes, and if they predict that third better by
more than a standard error, to all. It is the counted spikes of the released cell that are fitted, T_FREE at a time, by
CMA (Hansen & Ostermeier 2001), whose first steps are those that change the driven loss alike: it says where to search,
in which directions. One run in three ends in a minimum of its own: there are three, and one more from the best of them.

Recordings are cut into windows that run side by side. Each begins with a driven warm-up that is not counted; the gate p
of the M current, which forgets too slowly for that, first follows the potentials recorded before the window.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import brainpy.state
import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import scipy.interpolate
from jax.typing import ArrayLike

import processes
import recordings
import scoring
import spike_trains
import studies
import utils
from identifiability import Box, Parameters, Prediction, Predictions, Undetermined
from recordings import Recording
from spike_trains import SpikeLevel
from studies import Study

Release = Callable[[Parameters], studies.Released]

COUPLINGS = (10.0, 2.5, 1.0, 0.25, 0.1, 0.025, 0.0)  # per ms
N_FIRST = 16  # windows at the first of them
T_WINDOW = 200.0  # ms
T_WARM = 40.0  # ms
T_REST = 5.0  # ms
T_JITTER = 0.05  # ms
LARGE = 5.0  # mV
S_NOISE = 0.5  # mV
SAME_SPIKES = 0.95  # Gamma of a released cell that is said to be the one of the recording
OUTLIER, MOST_OUTLIERS, N_SPIKING = 3.0, 0.25, 8
N_WEIGHTED = 2
N_DRAW = 16
N_MEMORY = 5.0
STEEP, N_PART = 1.0, 4  # mV a sample, from which a sample is taken in parts
N_SHIFT, SMALLEST = 6, 1e-12
T_FREE = 1000.0  # ms of a window, where spikes are fitted
T_HISTORY = 2000.0  # ms of potentials that p follows before a window

# ---- Windows --------------------------------------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of a recording, as many traces.

    Args:
        recording: (T, n_window) currents, potentials, and a mask that is 0 in the warm-up; `observed` is where the
            potentials are known, and may draw the model.
        n_warm: samples of the warm-up (n_window,).
        weight: of the errors (T, n_window), see `weights_of`; 0 where nothing counts.
        before_V, before_current, before_dt: what was recorded before each window (n_stretch, n_window): potentials
            (mV) and currents (nA), means over stretches of these durations (ms), in which they hardly change.
        shift: of V (n_window,) (mV), where counting begins, unless that is where an exactly known start is.
    """

    recording: Recording
    n_warm: ArrayLike
    weight: ArrayLike
    before_V: ArrayLike | None = None
    before_current: ArrayLike | None = None
    before_dt: ArrayLike | None = None
    shift: ArrayLike | None = None

    @property
    def mask(self) -> ArrayLike:
        """Of the samples that count."""
        return self.recording.mask

    def only(self, kept: np.ndarray) -> "Windows":
        """These windows, of which those that are not kept (n_window,) do not count."""
        recording = dataclasses.replace(self.recording, mask=self.mask * kept)
        return dataclasses.replace(self, recording=recording, weight=self.weight * kept)


def windows_of(
    recording: Recording, t_window: float = T_WINDOW, t_history: float = 0.0, by_spikes: bool = False
) -> Windows:
    """Windows of t_window (ms) of all traces, one after the other; a trace that is not much longer stays whole.

    The start of a recording is exactly known where V_start is None, as in the paper; then a whole trace has no warm-up.
    A window in which nothing counts is left out.

    Args:
        t_history: what is kept of the potentials before each window (ms), for a cell that asks for it.
        by_spikes: whether what is observed of the spikes counts, too, and not the potentials of the mask alone.
    """
    dt, (n_step, n_trace) = recording.dt, recording.V.shape
    n_cut = max(1, round((n_step * dt - T_WARM) / t_window))
    n_warm = warm_up_of(recording, n_cut)
    n_window = (n_step - n_warm) // n_cut
    starts = n_window * np.arange(n_cut)

    def cut(x):
        return np.concatenate([np.asarray(x)[start : start + n_warm + n_window] for start in starts], axis=1)

    mask = cut(recording.mask)
    mask[:n_warm] = 0
    V = cut(recording.V)
    spikes = None if recording.spikes is None else cut(recording.spikes)
    observed, V_start = cut(recordings.observed_in(recording)), V[0] if n_warm else None
    pieces = Recording(cut(recording.current), V, spikes, mask, observed, V_start=V_start, dt=dt)
    before = before_windows(recording, starts, t_history) if t_history else (None, None, None)
    weight = mask * cut(weights_of(recording))
    counted = (mask + by_spikes * observed)[n_warm:].any(0)
    return jax.tree.map(
        lambda x: x[..., counted], Windows(pieces, np.full(len(starts) * n_trace, n_warm), weight, *before)
    )


def warm_up_of(recording: Recording, n_cut: int = 1) -> int:
    """Samples of the warm-up of a trace in n_cut windows; none of a whole one that starts as is exactly known."""
    exact = n_cut == 1 and recording.V_start is None
    return 0 if exact else min(round(T_WARM / recording.dt), len(recording.current) // 4)


def counted_in(recording: Recording) -> Recording:
    """The recording of which the warm-up of its whole traces does not count."""
    return recordings.counted_from(recording, warm_up_of(recording))


def weights_of(recording: Recording, t_jitter: float = T_JITTER) -> np.ndarray:
    """Weights (T, n_trace) of errors: 1, and less where V is so steep that t_jitter moves it by more than the noise.

    w = 1 / sqrt(1 + (t_jitter dV/dt / s)^2) with the noise s of the samples, at least S_NOISE. Otherwise the upstrokes
    of spikes, where 0.1 ms is 30 mV, have nearly all of the loss, and a cell of another shape does best to be silent.
    """
    return 1 / np.sqrt(1 + squared_slopes(recording) * (t_jitter / noise_of(recording)) ** 2)


def noise_of(recording: Recording) -> float:
    """The noise of the samples (mV) by which errors are weighed, at least S_NOISE."""
    return max(spike_trains.sample_noise(np.asarray(recording.V)), S_NOISE)


def squared_slopes(recording: Recording) -> np.ndarray:
    """(dV/dt)^2 (T, n_trace) (mV^2 / ms^2) of the recorded potentials over T_JITTER, without what noise makes of it."""
    V, dt = np.asarray(recording.V, np.float64), recording.dt
    n_step = max(1, round(T_JITTER / dt))
    padded = np.pad(V, ((n_step, n_step), (0, 0)), mode="edge")
    slope = (padded[2 * n_step :] - padded[: -2 * n_step]) / (2 * n_step * dt)
    return np.maximum(0, slope**2 - 2 * (spike_trains.sample_noise(V) / (2 * n_step * dt)) ** 2)


def before_windows(recording: Recording, starts: np.ndarray, t_history: float) -> tuple[np.ndarray, ...]:
    """Mean potentials and currents in stretches before each window and their durations, (n_stretch, n_window) each.

    A stretch is a millisecond, or a sample around a spike, or a part of one where V is steep, from a cubic spline:
    rates are exponentials of V, and most of what p gains is gained at the peaks. Before the recording it is taken to
    have been as after its start, in reverse; unless its current is constant for T_REST, where the cell is taken to have
    been at rest.
    """
    dt, n_step = recording.dt, len(recording.V)
    n_coarse, n_history = max(1, round(1.0 / dt)), min(round(t_history / dt), n_step - 1)
    V_start, columns = np.asarray(recording.V[0] if recording.V_start is None else recording.V_start), []
    for V, current, spikes, V_held in zip(
        *(np.asarray(x).T for x in (recording.V, recording.current, recording.spikes, V_start)), strict=True
    ):
        at_rest = np.ptp(current[: round(T_REST / dt)]) <= 1e-3 * np.ptp(current)
        reverse = np.zeros(n_history, int) if at_rest else np.arange(n_history, 0, -1)
        samples = np.append(reverse, np.arange(n_step))
        V_then = np.append(np.full(n_history, V_held) if at_rest else V[reverse], V)
        near = spike_trains.away_from_spikes(spikes[samples][:, None], dt, (1.0, 3.0))[:, 0] == 0
        parts = np.arange(N_PART * len(samples)).reshape(-1, N_PART)
        between = scipy.interpolate.CubicSpline(np.arange(len(samples)), V_then)((parts + 0.5) / N_PART).ravel()
        steep = np.abs(np.diff(V_then, append=V[-1])) > STEEP
        alone = (steep[:, None] | (near[:, None] & (parts % N_PART == 0))).ravel()
        values = between, np.repeat(current[samples], N_PART)
        for start in starts:
            first, last = N_PART * start, N_PART * (start + n_history)
            coarse = np.arange(first, max(last, first + 1), N_PART * n_coarse)
            edges = np.union1d(coarse, first + np.flatnonzero(alone[first:last]))
            size = np.diff(edges, append=last)
            means = [np.add.reduceat(x[:last], edges) / size for x in values]
            columns.append((*means, size * dt / N_PART))
    longest = max(len(column[0]) for column in columns)
    padded = [[np.pad(x, (longest - len(x), 0), mode="edge") for x in column[:2]] for column in columns]
    durations = [np.pad(column[2], (longest - len(column[2]), 0)) for column in columns]
    order = np.arange(len(columns)).reshape(-1, len(starts)).T.ravel()
    V, current = (np.stack([padded[i][k] for i in order], axis=1) for k in range(2))
    return V, current, np.stack([durations[i] for i in order], axis=1)


# ---- Model ----------------------------------------------------------------------------------------------------------


def gain(step: ArrayLike, windows: Windows, coupling: ArrayLike) -> jax.Array:
    """K at a step: that of the coupling, and in the warm-up of more, if that is less than it takes.

    1 per ms while the gates find their values; in the second half 1 / t, a running mean, so that little noise of the
    recording is left in V where counting begins.
    """
    n_warm, dt = jnp.asarray(windows.n_warm), windows.recording.dt
    rate = 1 / jnp.maximum(1.0, 1.0 + (step - n_warm / 2) * dt)
    return 1 - jnp.exp(-jnp.where(step < n_warm, jnp.maximum(coupling, rate), coupling) * dt)


def driven(neuron: Callable[..., brainpy.state.Neuron], constants: Parameters, dt_sim: float) -> studies.Model:
    """The driven cell as a model (parameters, windows, coupling per ms) -> {"V": (T, n_window)} (mV).

    V is what is predicted of each sample, before the cell is drawn to it.
    """

    def model(parameters: Parameters, windows: Windows, coupling: ArrayLike = 0.0) -> dict[str, jax.Array]:
        parameters, recording = constants | parameters, windows.recording
        own, electrode = studies.behind_electrode(parameters, recording)
        cell, n_substep = neuron(recording.current.shape[1:], **own), studies.substeps(recording.dt, dt_sim)

        def step(k, row):
            current, V_rec, known, electrode = row
            V = cell.V.value.to_decimal(u.mV)
            if windows.shift is not None:
                V += windows.shift * ((k == windows.n_warm) & (windows.n_warm > 0))
            cell.V.value = (V + gain(k, windows, coupling) * known * (V_rec - electrode - V)) * u.mV
            studies.advance(cell, current * u.nA, n_substep)
            return k + 1, V + electrode

        with brainstate.environ.context(dt=recording.dt / n_substep * u.ms):
            studies.start_at(cell, studies.held_at(recording, electrode))
            if windows.before_V is not None and "p" in getattr(cell, "gates", ""):
                follow(cell, windows, parameters)
            rows = recording.current, recording.V, recording.observed, electrode + jnp.zeros_like(recording.current)
            _, V = brainstate.transform.scan(step, jnp.zeros(()), rows)
        return dict(V=V)

    return model


def follow(cell: utils.HH, windows: Windows, parameters: Parameters) -> None:
    """Set the gate p of a cell to what it is after the potentials before each window."""
    R_s = parameters["R_s"].to_decimal(u.Mohm) if "R_s" in parameters else 0.0

    def rates(V, current):
        """Steady state of p and the rate towards it."""
        alpha, beta = cell.rates((V - R_s * current) * u.mV)[-1]
        return alpha / (alpha + beta), alpha + beta

    def stretch(p, row):
        V, current, duration = row
        p_inf, rate = rates(V, current)
        return p_inf + (p - p_inf) * u.math.exp(-rate * duration * u.ms), None

    first, _ = rates(windows.before_V[0], windows.before_current[0])
    rows = windows.before_V, windows.before_current, windows.before_dt
    cell.p.value, _ = jax.lax.scan(stretch, first + 0 * cell.p.value, rows)


# ---- Study ----------------------------------------------------------------------------------------------------------


def weighted_errors(output: dict[str, jax.Array], windows: Windows) -> jax.Array:
    """Prediction errors e (mV) with their weights w, (T, n_window): s arcsinh(w e / s), which is w e below s = LARGE.

    Where a spike is missing, or is one too many, the errors of some ms would outweigh those of all that is predicted.
    """
    errors = LARGE * jnp.arcsinh(windows.weight * (output["V"] - windows.recording.V) / LARGE)
    if "along" not in output:
        return errors
    along = output["along"]
    return errors - along * jnp.sum(along * errors, axis=0) / jnp.maximum(jnp.sum(along**2, axis=0), SMALLEST)


def from_any_start(model: studies.Model) -> studies.Model:
    """The driven cell, which begins every window where the errors of that window are least, whatever noise says.

    V is shifted where counting begins, by the d of the least sum of squares of the errors e(x, d), found in N_SHIFT
    steps of Levenberg and Marquardt. `weighted_errors` then have no part along de/dd: their derivatives by the
    parameters x are those at the best d of every x (variable projection, Kaufman 1975). The other states follow V
    within a few ms.
    """

    def best(parameters: Parameters, windows: Windows, coupling: ArrayLike = 0.0) -> dict[str, jax.Array]:
        fixed, none = jax.lax.stop_gradient(parameters), jnp.zeros_like(windows.recording.current[0])

        def errors(shift):
            return weighted_errors(model(fixed, dataclasses.replace(windows, shift=shift), coupling), windows)

        def step(found, _):
            shift = jnp.clip(found["shift"] - found["change"] / found["damping"], -LARGE, LARGE)
            e, along = jax.jvp(errors, (shift,), (jnp.ones_like(shift),))
            change = jnp.sum(along * e, axis=0) / jnp.maximum(jnp.sum(along**2, axis=0), SMALLEST)
            now = dict(shift=shift, cost=jnp.sum(e**2, axis=0), along=along, change=change)
            lower = now["cost"] < found["cost"]
            found = {name: jnp.where(lower, value, found[name]) for name, value in now.items()} | dict(
                damping=jnp.where(lower, jnp.maximum(found["damping"] / 4, 1.0), 4 * found["damping"])
            )
            return found, None

        start = dict(shift=none, cost=none + jnp.inf, along=jnp.zeros_like(windows.weight), change=none)
        found, _ = jax.lax.scan(step, start | dict(damping=none + 1), length=N_SHIFT)
        shift, along = jax.lax.stop_gradient((found["shift"], found["along"]))
        return dict(model(parameters, dataclasses.replace(windows, shift=shift), coupling), along=along)

    return best


def releaser(model: studies.Model, recording: Recording, level: SpikeLevel, delta: float) -> Release:
    """(parameters) -> what the released cell does over a whole recording, after its warm-up.

    Args:
        model: `driven`.
        level, delta: of the spikes, and of Gamma (ms), which is here at most a quarter of the mean interval of the
            trace with the most spikes: of two trains of a rate of 1 / (2 delta) all coincide by chance.
    """
    windows, late = windows_of(recording, math.inf), counted_in(recording)
    pieces, traces = windows.recording, np.any(late.mask, axis=0)
    spikes, counted = (np.asarray(x)[: len(pieces.V), traces] for x in (late.spikes, late.observed))
    target = dataclasses.replace(pieces, spikes=spikes, observed=counted)
    n_spikes = (spikes * counted).sum(0)
    intervals = counted.sum(0)[n_spikes > 0] * recording.dt / n_spikes[n_spikes > 0]
    delta = min([delta, *(intervals / 4).tolist()])
    compiled = jax.jit(model)

    def release(parameters: Parameters) -> studies.Released:
        V = np.asarray(compiled(parameters, windows, 0.0)["V"], np.float64)
        prediction = scoring.Prediction(V, spike_trains.detect_spikes(V, level.level, level.rearm))
        score = scoring.score(target, prediction, delta)
        # Where it is undefined though there are spikes, the model has twice those of the recording, or more.
        n_both = np.add(score.n_spikes, score.n_spikes_model)
        gamma = [value or 0.0 for value, n in zip(score.gamma, n_both, strict=True) if n]
        loss = float(np.sum(pieces.mask * (V - pieces.V) ** 2) / np.sum(pieces.mask))
        gamma = float(np.mean(gamma)) if gamma else None
        rmse_away = math.nan if score.rmse_away is None else score.rmse_away  # no sample is away from spikes
        return studies.Released(loss, gamma, sum(score.n_spikes), sum(score.n_spikes_model), rmse_away)

    return release


def keeper(
    model: studies.Model, windows: Windows, level: SpikeLevel
) -> Callable[[Parameters, float], np.ndarray] | None:
    """(parameters, coupling) -> which windows (n_window,) are kept: `near_of` their mean squared errors.

    None where fewer than N_SPIKING windows have spikes.

    Args:
        model: `driven`.
        level: of the spikes.
    """
    compiled, n_sample, spiking = jax.jit(model), np.sum(windows.mask, axis=0), spiking_in(windows, level)

    def kept(parameters: Parameters, coupling: float) -> np.ndarray:
        errors = np.asarray(weighted_errors(compiled(parameters, windows, coupling), windows), np.float64)
        return near_of(np.sum(errors**2, axis=0) / n_sample, spiking, OUTLIER)

    return kept if np.sum(spiking) >= N_SPIKING else None


def spiking_in(windows: Windows, level: SpikeLevel) -> np.ndarray:
    """Which windows (n_window,) have recorded spikes that count."""
    V = np.asarray(windows.recording.V, np.float64)
    return np.any(spike_trains.detect_spikes(V, level.level, level.rearm) * windows.mask, axis=0)


def near_of(square: np.ndarray, spiking: np.ndarray, factor: float) -> np.ndarray:
    """Which windows have mean squared errors (n_window,) that are no outliers among those with spikes.

    Outliers have more than `factor` times the median. Where they are more than MOST_OUTLIERS, it is the model that is
    off, and all are kept; and where fewer than N_SPIKING windows have spikes.
    """
    if np.sum(spiking) < N_SPIKING:
        return np.ones_like(spiking)
    near = square <= factor * max(np.median(square[spiking]), studies.V_RESOLUTION**2)
    return near if np.sum(~near) <= MOST_OUTLIERS * np.sum(spiking) else np.ones_like(near)


def synchronised(
    study: Study, neuron: Callable[..., brainpy.state.Neuron], constants: Parameters, dt_sim: float, level: SpikeLevel
) -> Study:
    """The study of a neuron by its squared error, with the recording that drives it.

    Args:
        neuron, constants: {name: value with unit} of the parameters that are not fitted, as in `studies.simulation`.
        dt_sim: longest step (ms).
        level: of the spikes of the recording.
    """
    recording, slow = study.recordings["fit"], "gM" in study.bounds or bool(study.constants.get("gM"))
    model = driven(neuron, constants, dt_sim)
    finer = driven(neuron, constants, recording.dt / studies.substeps(recording.dt, dt_sim) / 2)
    release = releaser(model, recording, level, study.delta)
    models = model, finer if study.finer else None
    windows = windows_of(recording, t_history=T_HISTORY if slow else 0.0)
    return dataclasses.replace(
        study,
        model=model,
        loss=of_predictions("weighted squared error of predictions (mV^2)", *models, release),
        annealing=studies.Annealing("coupling", "per_ms", COUPLINGS, N_FIRST),
        windows=windows,
        released=release,
        kept=keeper(model, windows, level),
        further=from_best_starts(models, release, windows, level),
    )


def of_predictions(name: str, model: studies.Model, finer: studies.Model | None, release: Release) -> studies.Loss:
    """The loss of the errors of a driven cell."""
    return studies.least_squares(weighted_errors, name, predicted(model, finer, release))


def from_best_starts(
    models: tuple[studies.Model, studies.Model | None], release: Release, windows: Windows, level: SpikeLevel
) -> Callable[[Study, Parameters, studies.Released], Study | None]:
    """(study, parameters, released) -> the study of the released cell `from_any_start`, or None where it is not right.

    The recording draws a cell to its noise, which is then in the state with which counting begins, and in all that
    follows; and weights by T_JITTER leave little of the spikes, which say most. Where the released cell describes the
    recording neither is needed: of the traces of data/ with 1 mV of noise, gNa and gK have standard errors of 0.26 % by
    this, and of 1.1 % by predictions (tests/benchmarks/hh_recovery.py).

    Args:
        models: the driven one, and with half the step.
        windows: all of the recording.
        level: of its spikes.
    """
    model, finer = (x and jax.jit(from_any_start(x)) for x in models)
    loss = of_predictions(
        "squared error of V released from the best start of each window (mV^2)", model, finer, release
    )

    def further(study: Study, parameters: Parameters, released: studies.Released) -> Study | None:
        if not describes(released, study.recordings["fit"]):
            return None
        errors = np.asarray(model(parameters, windows)["V"], np.float64) - windows.recording.V
        weighted = weighted_by(errors, windows, level)
        return dataclasses.replace(study.at(0.0), model=model, loss=loss, windows=weighted)

    return further


def weighted_by(errors: np.ndarray, windows: Windows, level: SpikeLevel) -> Windows:
    """The windows with weights by the errors (T, n_window) (mV), without those whose errors are more than others have.

    The t_jitter of `weights_of` is that of mean e^2 = s^2 + mean (t_jitter dV/dt)^2 where V is steep, at most T_JITTER.
    What is kept has at most `studies.DESCRIBED` of the median error of the windows.
    """
    recording, n_sample, spiking = windows.recording, np.sum(windows.mask, axis=0), spiking_in(windows, level)
    square, noise = squared_slopes(recording), noise_of(recording)
    steep, kept = (square * T_JITTER**2 > noise**2) * windows.mask, np.ones(errors.shape[1], bool)
    for _ in range(N_WEIGHTED):
        excess = np.sum(kept * steep * (errors**2 - noise**2)) / max(np.sum(kept * steep * square), SMALLEST)
        t_jitter = processes.of_all(min(math.sqrt(max(excess, 0.0)), T_JITTER))[0, 0]  # of the first of several
        weight = windows.mask * weights_of(recording, t_jitter)
        near = near_of(np.sum((weight * errors) ** 2, axis=0) / n_sample, spiking, studies.DESCRIBED**2)
        kept = processes.of_all(*near)[0] > 0
    return dataclasses.replace(windows, weight=weight).only(kept)


def in_windows(study: Study, driven: Study, recording: Recording) -> Study:
    """The study of a loss of the released cell, in windows of T_FREE, each after a driven warm-up.

    They run side by side, in a third of the time that the whole takes one step after the other; and what a cell has
    wrong at first does not reach what comes seconds later.

    Args:
        study: of spikes and potentials.
        driven: the one of the driven cell.
        recording: what is cut.
    """
    t_history = 0.0 if driven.windows.before_V is None else T_HISTORY
    windows = windows_of(recording, T_FREE, t_history, by_spikes=True)

    def loss(output: dict[str, jax.Array], windows: Windows) -> jax.Array:
        pieces = windows.recording
        counted = jnp.arange(len(pieces.V))[:, None] >= windows.n_warm
        return study.loss.function(output, dataclasses.replace(pieces, observed=pieces.observed * counted))

    name = f"{study.loss.name}, {T_FREE:g} ms at a time"
    by_windows = dataclasses.replace(study.loss, function=loss, name=name)
    return dataclasses.replace(study, model=driven.model, loss=by_windows, windows=windows)


def describes(released: studies.Released, recording: Recording) -> bool:
    """Whether a released cell has the spikes of the recording, and is off by no more than noise away from them.

    It has to have half of them or more after the warm-up: what it does before it is not known.
    """
    near = released.rmse_away <= studies.largest_error(recording)
    same = same_spikes(released) or not released.n_spikes
    return bool(near and same and half_count(released.n_spikes, recording))


def half_count(n_counted: int, recording: Recording) -> bool:
    """Whether half of the spikes of the recording count, or more, where n_counted do."""
    return 2 * n_counted >= np.sum(np.asarray(recording.spikes) * recordings.observed_in(recording))


def same_spikes(released: studies.Released) -> bool:
    """Whether a released cell is said to have the spikes of the recording."""
    return (released.gamma or 0.0) >= SAME_SPIKES


def predicted(model: studies.Model, finer: studies.Model | None, release: Release) -> Any:
    """What `identifiability` asks of a driven cell: its potentials; windows are the clusters, or parts of few windows.

    The noise that draws the cell, where counting begins if not later, and the noise of the potentials that p follows,
    are drawn anew N_DRAW times to see what they move. Nothing is said where the released cell is off by more than noise
    or has other spikes, whatever the driven one does: a cell that is drawn to the recording at every sample is never
    off by much.
    """

    def predictions(study: Study, box: Box, x: np.ndarray) -> Predictions:
        windows, coupling, recording = study.windows, study.last_level, study.recordings["fit"]
        counts = np.asarray(windows.mask) > 0
        released, largest = release(box.parameters(x)), studies.largest_error(recording)
        if not describes(released, recording):
            off = f"released, V is off by {released.rmse_away:.3g} mV away from spikes ({released.text})"
            allowed = f"where noise allows {largest:.3g}, and Gamma {SAME_SPIKES:g}"
            if not half_count(released.n_spikes, recording):
                allowed += f"; most spikes are in the first {T_WARM:g} ms of a sweep, where nothing is compared"
            raise Undetermined(f"this model does not describe these data: {off} {allowed}")
        n_window, recorded = counts.shape[1], windows.recording
        noise_V = spike_trains.sample_noise(np.asarray(recording.V))
        clusters = clusters_of(counts, recorded.dt, coupling if n_window < 2 * len(x) else 0.0)
        if coupling and 1 + max(clusters) < 2 * len(x):
            raise Undetermined(f"{1 + max(clusters)} windows are too few for errors that depend on each other")

        def errors(x, windows, drawn_by=None, model=model, steps=None):
            output = model(box.parameters(x) | studies.stepped(study, steps), drawn_by or windows, coupling)
            return weighted_errors(output, windows)[counts]

        def nuisances(x, now, windows):
            recorded = windows.recording

            def redrawn(key):
                key, key_before = jax.random.split(key)
                V = recorded.V + noise_V * jax.random.normal(key, recorded.V.shape)
                drawn_by = dataclasses.replace(windows, recording=dataclasses.replace(recorded, V=V))
                if windows.before_V is not None:
                    of_mean = noise_V * jnp.sqrt(recorded.dt / jnp.maximum(windows.before_dt, recorded.dt))
                    before_V = windows.before_V + of_mean * jax.random.normal(key_before, windows.before_V.shape)
                    drawn_by = dataclasses.replace(drawn_by, before_V=before_V)
                return (errors(x, windows, drawn_by) - now) / math.sqrt(N_DRAW)

            columns = jax.lax.map(redrawn, jax.random.split(jax.random.key(0), N_DRAW)).T
            if finer is None:
                return columns
            return jnp.append(columns, 4 / 3 * (errors(x, windows, model=finer) - now)[:, None], axis=1)

        noise, few = (studies.V_RESOLUTION, largest), 1 + max(clusters) < 2 * len(x)
        at = counts if few else None
        held, target = tuple(study.held), np.zeros(counts.sum())
        return {"V_mV": Prediction(errors, target, *noise, nuisances, (windows,), at, held)}, None if few else clusters

    return predictions


def clusters_of(counts: np.ndarray, dt: float, coupling: float = 0.0) -> np.ndarray:
    """Clusters, from 0, of the samples that count (T, n_window): their windows.

    With a coupling (per ms), parts of windows of N_MEMORY times the time in which a driven cell forgets an error.
    """
    step, window = np.nonzero(counts)
    part = (step * dt * coupling / N_MEMORY).astype(int)
    return np.unique(part * counts.shape[1] + window, return_inverse=True)[1]
