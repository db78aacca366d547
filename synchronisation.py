r"""A recording that drives the model while it is fitted, so that both spike together: prediction errors.

The squared error of a cell that runs freely is a landscape of cliffs as soon as there are several spikes: a spike too
early or too late costs as much as none. Here the model is told at each sample what was recorded, and is drawn there:

.. math:: V \leftarrow V + K (V_{rec} - V), \quad K = 1 - e^{-c \, dt}, \quad loss = mean (V_{rec} - V)^2

with the error taken before V is drawn. The coupling c (per ms) is annealed to 0, where the loss is that of the released
cell. Model and recording spike together whatever the parameters, and the loss is smooth in them.

The sum of these one-sample predictions is what a Kalman filter of constant gain minimises (Ljung 1999, chapter 7), and
differs from a current g (V_rec - V) in the cell (Abarbanel, Creveling, Farsian & Kostuk 2009; Voss, Timmer & Kurths
2004; generalised teacher forcing, Hess, Monfared, Brenner & Durstewitz 2023) in two things: where the parameters are
true there is no error at any coupling, and a sample is compared with what was known before it. A current that contains
the noise of the very sample rewards cells that follow noise: with 1 mV of it, C ended at its lower bound.

When to prefer it: whenever there are more than a few spikes, and potentials are recorded at all of their samples. When
the cell has noise of its own, or currents that the model lacks, a fit at coupling 0 loses it: the fit ends at the
coupling whose released cell best predicts the spikes of the fitted data, and says which it was. A model that is right,
of a cell without noise, ends at 0. Where there are no spikes, the plain loss is as good.

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
from jax.typing import ArrayLike

import recordings
import scoring
import spike_trains
import studies
import utils
from identifiability import Box, Parameters, Prediction, Predictions, Undetermined
from recordings import Recording
from spike_trains import SpikeLevel
from studies import Study

COUPLINGS = (10.0, 2.5, 1.0, 0.25, 0.1, 0.025, 0.0)  # per ms
N_FIRST = 16  # windows at the first of them
T_WINDOW = 200.0  # ms
T_WARM = 40.0  # ms
T_REST = 5.0  # ms
N_DRAW = 16
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
        before_V, before_current, before_dt: what was recorded before each window (n_stretch, n_window): potentials
            (mV) and currents (nA), means over stretches of these durations (ms), in which they hardly change.
    """

    recording: Recording
    n_warm: ArrayLike
    before_V: ArrayLike | None = None
    before_current: ArrayLike | None = None
    before_dt: ArrayLike | None = None


def windows_of(recording: Recording, t_window: float = T_WINDOW, t_history: float = 0.0) -> Windows:
    """Windows of t_window (ms) of all traces, one after the other; a trace that is not much longer stays whole.

    The start of a recording is exactly known where V_start is None, as in the paper; then a whole trace has no warm-up.

    Args:
        t_history: what is kept of the potentials before each window (ms), for a cell that asks for it.
    """
    dt, (n_step, n_trace) = recording.dt, recording.V.shape
    n_cut = max(1, round((n_step * dt - T_WARM) / t_window))
    exact = n_cut == 1 and recording.V_start is None
    n_warm = 0 if exact else min(round(T_WARM / dt), n_step // 4)
    n_window = (n_step - n_warm) // n_cut
    starts = n_window * np.arange(n_cut)

    def cut(x):
        return np.concatenate([np.asarray(x)[start : start + n_warm + n_window] for start in starts], axis=1)

    mask = cut(recording.mask)
    mask[:n_warm] = 0
    V = cut(recording.V)
    pieces = Recording(cut(recording.current), V, mask=mask, observed=cut(recordings.observed_in(recording)), dt=dt)
    pieces = dataclasses.replace(pieces, V_start=None if exact else V[0])
    before = before_windows(recording, starts, t_history) if t_history else (None, None, None)
    counted = mask.any(0)  # a window with nothing to count costs time and no more
    return jax.tree.map(lambda x: x[..., counted], Windows(pieces, np.full(len(starts) * n_trace, n_warm), *before))


def before_windows(recording: Recording, starts: np.ndarray, t_history: float) -> tuple[np.ndarray, ...]:
    """Mean potentials and currents in stretches before each window and their durations, (n_stretch, n_window) each.

    A stretch is a millisecond, or a sample around a spike. Before the recording it is taken to have been as after its
    start, in reverse; unless its current is constant for T_REST, where the cell is taken to have been at rest.
    """
    dt, n_step = recording.dt, len(recording.V)
    n_coarse, n_history = max(1, round(1.0 / dt)), min(round(t_history / dt), n_step - 1)
    columns = []
    for V, current, spikes in zip(
        *(np.asarray(x).T for x in (recording.V, recording.current, recording.spikes)), strict=True
    ):
        at_rest = np.ptp(current[: round(T_REST / dt)]) <= 1e-3 * np.ptp(current)
        reverse = np.zeros(n_history, int) if at_rest else np.arange(n_history, 0, -1)
        samples = np.append(reverse, np.arange(n_step))
        near = spike_trains.away_from_spikes(spikes[samples][:, None], dt, (1.0, 3.0))[:, 0] == 0
        middle = (V[samples] + V[np.minimum(samples + 1, n_step - 1)]) / 2
        for start in starts:
            first, last = start, start + n_history
            edges = np.union1d(
                np.arange(first, max(last, first + 1), n_coarse), first + np.flatnonzero(near[first:last])
            )
            size = np.diff(edges, append=last)
            means = [np.add.reduceat(x[:last], edges) / size for x in (middle, current[samples])]
            columns.append((*means, size * dt))
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


def driven(neuron: Callable[..., brainpy.state.Neuron], constants: Parameters, dt_sim: float, whole: bool) -> Any:
    """The driven cell as a model (parameters, windows, coupling per ms) -> {"V": (T, n_window)} (mV), if `whole`.

    Else {"error": (n_window,)}, squared errors summed as the cell runs, (mV^2): storing V and its derivatives would
    take longer, and memory.
    """

    def model(parameters: Parameters, windows: Windows, coupling: ArrayLike = 0.0) -> dict[str, jax.Array]:
        parameters, recording = constants | parameters, windows.recording
        own, electrode = studies.behind_electrode(parameters, recording)
        cell, n_substep = neuron(recording.current.shape[1:], **own), studies.substeps(recording.dt, dt_sim)

        def step(carry, row):
            k, total = carry
            current, V_rec, mask, known, electrode = row
            V = cell.V.value.to_decimal(u.mV)
            error = V_rec - electrode - V
            cell.V.value = (V + gain(k, windows, coupling) * known * error) * u.mV
            for _ in range(n_substep):
                cell.update(current * u.nA)
            return (k + 1, total + mask * error**2), V + electrode if whole else None

        with brainstate.environ.context(dt=recording.dt / n_substep * u.ms):
            studies.start_at(cell, studies.held_at(recording, electrode))
            if windows.before_V is not None and "p" in getattr(cell, "gates", ""):
                follow(cell, windows, parameters)
            rows = recording.current, recording.V, recording.mask, recording.observed
            rows = *rows, electrode + jnp.zeros_like(recording.current)
            start = jnp.zeros(()), 0 * cell.V.value.to_decimal(u.mV)
            (_, error), V = brainstate.transform.scan(step, start, rows)
        return dict(V=V) if whole else dict(error=error)

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


def mean_error(output: dict[str, jax.Array], windows: Windows) -> jax.Array:
    """Mean squared error of the potentials that count (mV^2)."""
    return jnp.sum(output["error"]) / jnp.sum(windows.recording.mask)


def releaser(
    model: studies.Model, recording: Recording, level: SpikeLevel, delta: float
) -> Callable[[Parameters], studies.Released]:
    """(parameters) -> what the released cell does over a whole recording, after its warm-up.

    Args:
        model: `driven`, whole.
        level, delta: of the spikes, and of Gamma (ms).
    """
    windows = windows_of(recording, math.inf)
    pieces, n_warm = windows.recording, int(np.max(windows.n_warm))
    traces = np.asarray(recording.mask).any(0)
    spikes, observed = (np.asarray(x)[: len(pieces.V), traces] for x in (recording.spikes, recording.observed))
    counted = observed * (np.arange(len(pieces.V)) >= n_warm)[:, None]
    target = dataclasses.replace(pieces, spikes=spikes, observed=counted)
    compiled = jax.jit(model)

    def release(parameters: Parameters) -> studies.Released:
        V = np.asarray(compiled(parameters, windows, 0.0)["V"], np.float64)
        prediction = scoring.Prediction(V, spike_trains.detect_spikes(V, level.level, level.rearm))
        score = scoring.score(target, prediction, delta)
        gamma = [value for value in score.gamma if value is not None]
        loss = float(np.sum(pieces.mask * (V - pieces.V) ** 2) / np.sum(pieces.mask))
        return studies.Released(
            loss, float(np.mean(gamma)) if gamma else None, sum(score.n_spikes), sum(score.n_spikes_model)
        )

    return release


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
    errors, whole = (driven(neuron, constants, dt_sim, keep) for keep in (False, True))
    finer = driven(neuron, constants, recording.dt / studies.substeps(recording.dt, dt_sim) / 2, True)
    release = releaser(whole, recording, level, study.delta)
    predictions = predicted(whole, finer if study.finer else None, release)
    return dataclasses.replace(
        study,
        model=errors,
        loss=studies.Loss(mean_error, studies.SQUARED_ERROR.name, predictions),
        annealing=studies.Annealing("coupling", "per_ms", COUPLINGS, N_FIRST),
        trajectories=whole,
        windows=windows_of(recording, t_history=T_HISTORY if slow else 0.0),
        released=release,
    )


def predicted(
    whole: studies.Model, finer: studies.Model | None, release: Callable[[Parameters], studies.Released]
) -> Any:
    """What `identifiability` asks of a driven cell: its potentials; windows are the clusters.

    The noise that draws the cell, where counting begins if not later, is drawn anew N_DRAW times to see what it moves.
    Nothing is said where the released cell is off by more than noise, whatever the driven one does: a cell that is
    drawn to the recording at every sample is never off by much.
    """

    def predictions(study: Study, box: Box, x: np.ndarray) -> Predictions:
        windows, coupling, recording = study.windows, study.last_level, study.recordings["fit"]
        counts = np.asarray(windows.recording.mask) > 0
        released, largest = release(box.parameters(x)).loss ** 0.5, studies.largest_error(recording)
        if not released <= largest:
            off = f"released, V is off by {released:.3g} mV where its noise allows {largest:.3g}"
            raise Undetermined(f"this model does not describe these data: {off}")
        n_window, recorded = counts.shape[1], windows.recording
        noise_V = spike_trains.sample_noise(np.asarray(recording.V))
        if coupling and n_window < 2 * len(x):
            raise Undetermined(f"{n_window} windows are too few for errors that depend on each other")

        def potentials(x, model=whole, drawn_by=windows):
            return model(box.parameters(x), drawn_by, coupling)["V"][counts]

        def nuisances(x):
            def redrawn(key):
                V = recorded.V + noise_V * jax.random.normal(key, recorded.V.shape)
                drawn_by = dataclasses.replace(windows, recording=dataclasses.replace(recorded, V=V))
                return (potentials(x, drawn_by=drawn_by) - now) / math.sqrt(N_DRAW)

            now = potentials(x)
            columns = jax.lax.map(redrawn, jax.random.split(jax.random.key(0), N_DRAW)).T
            if finer is None:
                return columns
            return jnp.append(columns, 4 / 3 * (potentials(x, finer) - now)[:, None], axis=1)

        noise = studies.V_RESOLUTION, largest
        prediction = Prediction(potentials, recorded.V[counts], *noise, nuisances)
        return {"V_mV": prediction}, np.nonzero(counts)[1] if n_window >= 2 * len(x) else None

    return predictions
