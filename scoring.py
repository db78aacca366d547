"""How well a model predicts a recording that it was not fitted to, in numbers and figures.

Currents are in nA, potentials in mV and times in ms; arrays have the shape (T, n_trace), as in `recordings`.
"""

import dataclasses
import math
from collections.abc import Mapping

import runs

import brainunit as u
import matplotlib.pyplot as plt
import numpy as np
import scipy.ndimage

import recordings
import stimuli
from recordings import Recording
from spike_trains import away_from_spikes, coincidence_factor, md_star, reliability

T_AROUND = (5.0, 20.0)  # ms before and after a spike that are not away from it
T_PSTH = 10.0  # ms, standard deviation of the Gaussian that smooths rates
T_WINDOW = 500.0  # ms of a recording that a look at the potentials shows
DATA, MODEL, FORCED = "black", "C1", "C0"

# ---- Numbers --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Of one recording, by a model that runs freely.

    Args:
        V: potentials (mV), shape (T, n_trace).
        spikes: 1 in the step in which a spike begins, else 0.
        stochastic: spike trains of runs with the model's own noise, (T, n_trace, n_run); best as uint8 or bool.
        V_forced: potentials (mV) of the model whose resets the recorded spikes drive.
    """

    V: np.ndarray
    spikes: np.ndarray
    stochastic: np.ndarray | None = None
    V_forced: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class RepeatScore:
    """How well a model predicts the spikes of repeats of one current; None where that is undefined.

    Args:
        traces: which traces these repeats are.
        md_star_4ms, md_star_2ms: Md* (Naud et al. 2011), which divides the repeats' own variability out, and
        md_star_4ms_error, md_star_2ms_error: their standard errors, by the jackknife over parts of the time.
        reliability_4ms, reliability_2ms: coincidences of two different repeats, over those of a repeat with itself.
        n_run: trains of the model; 1 of a deterministic one.
    """

    traces: list[int]
    md_star_4ms: float | None
    md_star_4ms_error: float | None
    md_star_2ms: float | None
    md_star_2ms_error: float | None
    reliability_4ms: float | None
    reliability_2ms: float | None
    n_run: int


@dataclasses.dataclass(frozen=True)
class Score:
    """How well a model predicts a recording; lists have a number a trace, and None stands for what is undefined.

    variance_explained = 1 - <(V_model - V)^2> / <(V - <V>)^2>, both over the samples away from spikes (Pozzorini et al.
    2015): 1 is exact, 0 what the mean potential would reach. Potentials count where the mask is 1, spikes where they
    are observed.

    Args:
        rmse: root mean square error of the potentials (mV).
        rmse_away, variance_explained: away from spikes of the recording and of the model, by T_AROUND.
        variance_explained_forced: of the model that the recorded spikes drive, away from these.
        gamma: coincidence factors (Jolivet et al. 2008).
        n_spikes, n_spikes_model, n_spikes_same_step: spikes of the recording, of the model, and of both in one step.
        n_spikes_noise: the mean of runs with the model's own noise; None where it has none.
        rate, rate_model, rate_noise: spikes of the recording, of the model, and the mean of runs with the model's own
            noise, if there are any, over the observed time (Hz).
        repeats: of every current that comes more than once.
    """

    rmse: float | None
    rmse_away: float | None
    variance_explained: float | None
    variance_explained_forced: float | None
    gamma: list[float | None]
    n_spikes: list[int]
    n_spikes_model: list[int]
    n_spikes_same_step: list[int]
    n_spikes_noise: list[float] | None
    rate: float | None
    rate_model: float | None
    rate_noise: float | None
    repeats: list[RepeatScore]


def score(recording: Recording, prediction: Prediction, delta: float = 4.0) -> Score:
    """The score of a prediction, with a coincidence window of Gamma of delta (ms) to either side."""
    observed, dt = recordings.observed_in(recording), recording.dt * u.ms
    data, model = np.asarray(recording.spikes) * observed, np.asarray(prediction.spikes) * observed
    trains = zip(model.T, data.T, observed.T, strict=True)
    gamma = [defined(coincidence_factor(x, y, dt, delta * u.ms, seen)) for x, y, seen in trains]
    seconds = observed.sum() * recording.dt / 1000
    rate, rate_model = (float(x.sum() / seconds) if seconds else None for x in (data, model))
    counts = [x.sum(0).astype(int).tolist() for x in (data, model, data * model)]
    groups = recordings.repeats_of(recording)
    repeats = [score_repeats(recording, prediction, group) for group in groups]
    noisy = counts_with_noise(prediction, observed)
    rates = rate, rate_model, sum(noisy) / seconds if noisy and seconds else None
    return Score(*score_potentials(recording, prediction), gamma, *counts, noisy, *rates, repeats)


def counts_with_noise(prediction: Prediction, observed: np.ndarray) -> list[float] | None:
    """Spikes of every trace while it is observed (T, n_trace), the mean of the runs with noise, if there are any."""
    if prediction.stochastic is None:
        return None
    runs_of_traces = zip(np.moveaxis(prediction.stochastic, 1, 0), np.asarray(observed).T > 0, strict=True)
    return [float(trains[seen].sum(0).mean()) for trains, seen in runs_of_traces]


def defined(value: float) -> float | None:
    """The number as a float, or None where it is none."""
    return float(value) if math.isfinite(value) else None


def score_potentials(
    recording: Recording, prediction: Prediction
) -> tuple[float | None, float | None, float | None, float | None]:
    """RMSE (mV), RMSE away from spikes (mV), and the variance explained there by the free and by the forced model."""
    if recording.V is None or not np.any(recording.mask):
        return None, None, None, None
    counts, spikes = np.asarray(recording.mask) > 0, np.asarray(recording.spikes)
    quiet_data, quiet_model = (
        away_from_spikes(x, recording.dt, T_AROUND) > 0 for x in (spikes, np.asarray(prediction.spikes))
    )
    rmse, _ = potential_error(recording, prediction.V, counts)
    rmse_away, explained = potential_error(recording, prediction.V, counts & quiet_data & quiet_model)
    if prediction.V_forced is None:
        return rmse, rmse_away, explained, None
    return rmse, rmse_away, explained, potential_error(recording, prediction.V_forced, counts & quiet_data)[1]


def potential_error(recording: Recording, V: np.ndarray, use: np.ndarray) -> tuple[float | None, float | None]:
    """RMSE of potentials (mV) over the samples that are used, and the part of the recorded variance they explain."""
    if not use.any():
        return None, None
    recorded = np.asarray(recording.V)[use]
    mse = float(np.mean((np.asarray(V)[use] - recorded) ** 2))
    variance = float(np.var(recorded)) if np.ptp(recorded) > 0 else math.nan
    return defined(math.sqrt(mse)), defined(1 - mse / variance)


def score_repeats(recording: Recording, prediction: Prediction, group: list[int]) -> RepeatScore:
    """The score of repeats, the traces of a group, as far as all of them are observed."""
    data, model = repeats_and_runs(recording, prediction, group)
    dt, windows, seen = recording.dt * u.ms, (4.0 * u.ms, 2.0 * u.ms), observed_together(recording, group)
    numbers = [x for delta in windows for x in md_star(data, model, dt, delta, seen[:, 0])]
    numbers += [reliability(data, dt, delta) for delta in windows]
    return RepeatScore(group, *map(defined, numbers), n_run=model.shape[1])


def observed_together(recording: Recording, group: list[int]) -> np.ndarray:
    """Whether all traces of a group are observed, (T, 1)."""
    return recordings.observed_in(recording)[:, group].all(1, keepdims=True)


def repeats_and_runs(recording: Recording, prediction: Prediction, group: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Trains of the repeats and of the model under their current, (T, n) each, 0 where a repeat is not observed.

    All runs with noise of the model are pooled; of a deterministic model, one train is all there is.
    """
    together = observed_together(recording, group)
    data = np.asarray(recording.spikes)[:, group] * together
    if prediction.stochastic is None:
        return data, np.asarray(prediction.spikes)[:, group[:1]] * together
    # These may be the largest array of a fit: copied once, as it is.
    model = np.take(np.asarray(prediction.stochastic), group, axis=1).reshape(len(together), -1)
    model *= together.astype(model.dtype)
    return data, model


def lines_of(name: str, score: Score) -> list[str]:
    """What is printed of the score of a recording with a name."""
    potentials = "" if score.rmse is None else f"RMSE {score.rmse:.4g} mV"
    if score.rmse_away is not None:
        free, forced = (percent(x) for x in (score.variance_explained, score.variance_explained_forced))
        explained = [f"{free} of the variance"] * bool(free) + [f"{forced} with the recorded spikes"] * bool(forced)
        potentials += f", away from spikes {score.rmse_away:.3g} mV" + f" ({'; '.join(explained)})" * bool(explained)
    same = f"{sum(score.n_spikes_same_step)} of {sum(score.n_spikes)} spikes at the same step"
    rates = "" if score.rate is None else f"{score.rate_model:.3g} Hz for {score.rate:.3g} Hz"
    if score.rate_noise is not None:
        rates += f" ({score.rate_noise:.3g} Hz with its escape noise)"
    silent = [not (n or n_model) for n, n_model in zip(score.n_spikes, score.n_spikes_model, strict=True)]
    pieces = (potentials, rates, f"Gamma {listed(score.gamma, silent)}", same)
    lines = [f"{name}, free-running: {', '.join(filter(None, pieces))}"]
    for repeats in score.repeats:
        traces = ", ".join(map(str, repeats.traces))
        if len(repeats.traces) > 2 and repeats.traces[-1] - repeats.traces[0] == len(repeats.traces) - 1:
            traces = f"{repeats.traces[0]}-{repeats.traces[-1]}"
        lines.append(f"repeats of traces {traces}: {repeat_text(repeats)}")
    return lines


def percent(explained: float | None) -> str:
    return "" if explained is None else f"{100 * explained:.3g} %"


def decimals(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def listed(gamma: list[float | None], silent: list[bool]) -> str:
    """Up to 8 numbers as they are; of more the mean and range, and how many traces are left out as they are silent.

    Where Gamma is undefined as the model fires throughout, it counts as 0.
    """
    numbers = [value or 0.0 for value, none in zip(gamma, silent, strict=True) if not none]
    if not numbers or len(gamma) <= 8:
        return " ".join(map(decimals, gamma)) if numbers else "-"
    others = f"; {len(gamma) - len(numbers)} of {len(gamma)} without a spike" * any(silent)
    return f"{np.mean(numbers):.2f} ({min(numbers):.2f} to {max(numbers):.2f}{others})"


def repeat_text(repeats: RepeatScore) -> str:
    """Md* and reliability in words."""
    trains = "one run" if repeats.n_run == 1 else f"{repeats.n_run} runs"
    pairs = (repeats.md_star_4ms, repeats.md_star_4ms_error), (repeats.md_star_2ms, repeats.md_star_2ms_error)
    of_4ms, of_2ms = (decimals(x) + ("" if error is None else f" ± {error:.2f}") for x, error in pairs)
    text = f"Md* {of_4ms} (4 ms), {of_2ms} (2 ms) from {trains}"
    own = f"{decimals(repeats.reliability_4ms)}, {decimals(repeats.reliability_2ms)}"
    return f"{text}; the repeats' own reliability {own}"


# ---- Figures --------------------------------------------------------------------------------------------------------


def save_scores(run: runs.RunFolder, name: str, recording: Recording, prediction: Prediction, score: Score) -> None:
    """Save the figures that apply: window_NAME.png, and of repeats raster_NAME.png, of step families f_I_NAME.png."""
    run.save(f"window_{name}.png", plot_window(recording, prediction))
    for i, repeats in enumerate(score.repeats):
        if repeats.md_star_4ms is not None or any(score.n_spikes[trace] for trace in repeats.traces):
            figure = plot_raster(recording, prediction, repeats)
            run.save(f"raster_{name}.png" if i == 0 else f"raster_{name}_{i + 1}.png", figure)
    if steps := recordings.steps_of(recording):
        run.save(f"f_I_{name}.png", plot_f_I(recording, prediction, steps))


def plot_raster(recording: Recording, prediction: Prediction, repeats: RepeatScore) -> plt.Figure:
    """The current of repeats, their spikes and those of as many runs of the model, and the rates of both (Hz)."""
    group = repeats.traces
    data, model = repeats_and_runs(recording, prediction, group)
    together, dt = recordings.observed_in(recording)[:, group].all(1), recording.dt
    shown = np.flatnonzero(together) if together.any() else np.arange(len(together))
    t = np.arange(len(together)) * dt
    n_row = len(group) + min(model.shape[1], len(group))
    size, layout = (runs.WIDTH, 2.6 + 0.09 * n_row), dict(sharex=True, layout="constrained")
    figure, axes = plt.subplots(3, 1, figsize=size, height_ratios=(1, 0.5 + 0.12 * n_row, 1.3), **layout)
    axes[0].plot(t, np.asarray(recording.current)[:, group[0]], color="0.4", lw=0.6)
    axes[0].set(ylabel="I (nA)", title=repeat_text(repeats))
    trains = [*data.T, *model.T[: len(group)]]
    colors = [DATA] * len(group) + [MODEL] * (n_row - len(group))
    style = dict(colors=colors, lineoffsets=-np.arange(n_row), linelengths=0.8, linewidths=0.7)
    axes[1].eventplot([np.flatnonzero(train) * dt for train in trains], **style)
    middle = [-(len(group) - 1) / 2, -(len(group) + n_row - 1) / 2]
    axes[1].set(yticks=middle, yticklabels=["recorded", "model"], ylim=(0.3 - n_row, 0.7))
    axes[1].tick_params(axis="y", length=0)
    for x, color, width, label in zip((data, model), (DATA, MODEL), (1.6, 0.8), axes[1].get_yticklabels(), strict=True):
        label.set_color(color)
        axes[2].plot(t, rate_of(x, together, dt), color=color, lw=width)
    axes[2].set(xlabel="t (ms)", ylabel="rate (Hz)", xlim=(t[shown[0]], t[shown[-1]] + dt))
    axes[2].set_ylim(0, max(1, axes[2].get_ylim()[1]))
    return figure


def rate_of(trains: np.ndarray, observed: np.ndarray, dt: float) -> np.ndarray:
    """Rate (T,) of trains (T, n) in Hz, smoothed with a Gaussian of T_PSTH; NaN where nothing is observed (T,)."""
    smooth = dict(sigma=T_PSTH / dt, mode="constant")
    rate = scipy.ndimage.gaussian_filter1d(trains.mean(1) / (dt / 1000), **smooth)
    weight = scipy.ndimage.gaussian_filter1d(observed.astype(float), **smooth)
    return np.divide(rate, weight, out=np.full(len(rate), np.nan), where=observed)


def plot_window(recording: Recording, prediction: Prediction) -> plt.Figure:
    """Currents over recorded and predicted potentials, where there is most to see; ticks above are the spikes."""
    traces = different_traces(recording)
    inside = window_of(recording, traces)
    t = np.arange(inside.start, inside.stop) * recording.dt
    layout = dict(sharex=True, height_ratios=(1, 3) * len(traces), layout="constrained")
    figure, axes = plt.subplots(2 * len(traces), 1, figsize=(runs.WIDTH, 0.5 + 1.8 * len(traces)), **layout)
    for trace, top, bottom in zip(traces, axes[::2], axes[1::2], strict=True):
        top.plot(t, np.asarray(recording.current)[inside, trace], color="0.4", lw=0.8)
        top.set(ylabel="I (nA)", title=f"trace {trace}")
        for V, style in potentials_of(recording, prediction, trace):
            bottom.plot(t, V[inside], **style)
        low, high = bottom.get_ylim()
        bottom.set(ylabel="V (mV)", ylim=(low, high + 0.25 * (high - low)))
        for spikes, color, y in ((recording.spikes, DATA, 0.93), (prediction.spikes, MODEL, 0.84)):
            times = t[np.flatnonzero(np.asarray(spikes)[inside, trace])]
            bottom.vlines(times, y, y + 0.07, color, lw=0.8, transform=bottom.get_xaxis_transform())
    axes[-1].set(xlabel="t (ms)", xlim=(t[0], t[-1]))
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower right", ncols=3)
    return figure


def potentials_of(recording: Recording, prediction: Prediction, trace: int) -> list[tuple[np.ndarray, dict]]:
    """Potentials (T,) of a trace with their styles; those recorded are NaN where nothing is known."""
    drawn = [(recordings.known_potentials(recording, trace), dict(color=DATA, lw=1, label="recorded"))]
    drawn.append((np.asarray(prediction.V)[:, trace], dict(color=MODEL, ls="--", lw=1, label="model")))
    if prediction.V_forced is not None:
        style = dict(color=FORCED, lw=0.6, label="model, with the recorded spikes")
        drawn.append((np.asarray(prediction.V_forced)[:, trace], style))
    return drawn


def different_traces(recording: Recording, n: int = 3) -> list[int]:
    """Up to n traces that have different currents, among them those with the fewest and the most spikes."""
    firsts = np.array([group[0] for group in stimuli.groups_of(list(np.asarray(recording.current).T), recording.dt)])
    n_spikes = (np.asarray(recording.spikes) * recordings.observed_in(recording)).sum(0)[firsts]
    order = firsts[np.argsort(n_spikes, kind="stable")]
    return sorted(order[np.unique(np.linspace(0, len(order) - 1, n).round().astype(int))[-n:]].tolist())


def window_of(recording: Recording, traces: list[int]) -> slice:
    """The samples of T_WINDOW with the most observed spikes of the traces, or changes of their currents."""
    observed = recordings.observed_in(recording)[:, traces]
    interest = np.asarray(recording.spikes)[:, traces] * observed
    if not interest.any():
        interest = np.abs(np.diff(np.asarray(recording.current)[:, traces], axis=0, prepend=np.nan)) * observed
        interest = np.nan_to_num(interest)
    n_step, n = len(observed), min(len(observed), round(T_WINDOW / recording.dt))
    if n == n_step:
        return slice(0, n_step)
    cumulative = np.append(0, np.cumsum(interest.sum(1)))
    inside = cumulative[n:] - cumulative[:-n]
    best = np.flatnonzero(inside >= inside.max() - 1e-9 * cumulative[-1])
    # Of windows that hold the same, the middle one of the first that follow each other.
    last = np.flatnonzero(np.diff(best, append=n_step + 2) > 1)[0]
    first = int(best[last // 2])
    return slice(first, first + n)


def plot_f_I(recording: Recording, prediction: Prediction, steps: Mapping[int, stimuli.Step]) -> plt.Figure:
    """Rates (Hz) during the steps of a family against their height (nA); of a model with noise, those of its runs."""
    figure, axis = plt.subplots(figsize=(runs.WIDTH / 2, 2.8), layout="constrained")
    observed = recordings.observed_in(recording)
    noisy = prediction.stochastic
    model = prediction.spikes if noisy is None else np.mean(noisy, axis=2, dtype=np.float32)
    heights, rates = [], []
    for trace, step in steps.items():
        seen = observed[step.first : step.last, trace]
        trains = (np.asarray(x)[step.first : step.last, trace] for x in (recording.spikes, model))
        if seen.any():
            heights.append(step.height)
            rates.append([1000 * np.sum(train * seen) / (seen.sum() * recording.dt) for train in trains])
    order = np.argsort(heights)
    if len(order):
        x, (data, model) = np.array(heights)[order], np.array(rates)[order].T
        axis.plot(x, data, "o", color=DATA, ms=4, label="recorded")
        axis.plot(
            x, model, "x-", color=MODEL, ms=5, lw=0.8, label="model" if noisy is None else "model, with its noise"
        )
        axis.legend(loc="upper left")
    axis.set(xlabel="step of current (nA)", ylabel="rate (Hz)")
    axis.set_ylim(bottom=min(0, axis.get_ylim()[0]))
    return figure
