"""Spikes in recorded potentials, and how far spike trains agree.

Potentials are in mV and times in ms. A train is an array of 0 and 1, (T,) or (T, n_trace): 1 in the step in which a
spike begins.
"""

import dataclasses
import math
import warnings
from collections.abc import Sequence

import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import scipy.signal
from jax.typing import ArrayLike

REARM = 10.0  # mV
N_BLOCK, T_BLOCK, TINY = 20, 50.0, 1e-12  # parts of the time, of so many ms or more, of which an error is told
T_PEAK = 3.0  # ms after the crossing of the level, in which a spike has its peak


# ---- Spikes in potentials -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class SpikeLevel:
    """A spike is an upward crossing of `level` (mV); the next one counts once V was `rearm` (mV) below it."""

    level: float = 0.0
    rearm: float = REARM


def detect_spikes(V: ArrayLike, level: float, rearm: float = REARM) -> ArrayLike:
    """Upward crossings of a level by recorded potentials, or by those of a model, which may be traced.

    The next one counts once V has been `rearm` below the level: noise does not make one spike several.

    Args:
        V: shape (T, n_trace) (mV).
        level, rearm: (mV).

    Returns:
        Array (T, n_trace) of 0 and 1; as in `studies.simulate`, entry k is for a crossing between samples k and k + 1.
    """
    xp, last = (jnp, jax.lax.cummax) if isinstance(V, jax.Array) else (np, np.maximum.accumulate)
    sample = xp.arange(len(V))[:, None]
    last_above = last(xp.where(level <= V, sample, -1))
    last_below = last(xp.where(level - rearm > V, sample, -1))
    armed = (last_below > last_above) | (last_above < 0)
    return xp.append(armed[:-1] & (level <= V[1:]), xp.zeros_like(armed[:1]), axis=0).astype(float)


def find_level(potentials: Sequence[np.ndarray], dt: float, level: float | None = None) -> SpikeLevel:
    """The level that spikes of a recording cross, and how far V falls between two of them.

    Spikes are peaks narrower than 10 ms that stand out from 10 ms to either side of them by far more than all other
    peaks do: twice at the least, and twice 3 mV or 8 times the noise of samples. The level lies in the middle between
    where the highest of them begins and the lowest peak, or at 0 mV where that is well between. `rearm` is half of what
    the level lies above where spikes begin (without spikes, above the median), and at most REARM. Without spikes the
    level is 0 mV.

    Args:
        potentials: (T,) each, finite (mV).
        dt: (ms).
        level: (mV), where it is given.
    """
    prominences, peaks = [], []
    smallest = max([3.0, *(8 * sample_noise(V[:, None]) for V in potentials)])
    for V in potentials:
        shape = dict(prominence=smallest, wlen=2 * round(10 / dt) + 1, width=(None, 10 / dt), rel_height=0.5)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "some peaks have a prominence of 0")  # with a plateau as wide as wlen
            index, found = scipy.signal.find_peaks(V, **shape)
        prominences.extend(found["prominences"])
        peaks.extend(V[index])
    order = np.argsort(prominences)[::-1]
    prominence, peak = np.array(prominences)[order], np.array(peaks)[order]
    ratios = prominence / np.append(prominence[1:], smallest)[: len(order)]
    n_spike = 1 + int(np.argmax(ratios)) if len(order) else 0
    if not n_spike or ratios[n_spike - 1] < 2:
        base = float(np.median(np.concatenate(list(potentials))))
        return SpikeLevel() if level is None else SpikeLevel(level, rearm_of(level, base))
    starts, peak = (peak - prominence)[:n_spike], peak[:n_spike]
    base, top = np.max(starts), np.min(peak)
    if base >= top:  # spikes of very different heights: nearly all of them
        base, top = np.quantile(starts, 0.9), np.quantile(peak, 0.1)
    if level is not None and base >= level:  # some begin above a level that is given
        base = np.median(starts)
    if level is None:
        middle = base + (top - base) * np.array([0.25, 0.75])
        level = 0.0 if middle[0] < 0 < middle[1] else float(base + top) / 2
    return SpikeLevel(level, rearm_of(level, float(base)))


def rearm_of(level: float, base: float) -> float:
    """Half of what the level lies above the base (mV), between 0.1 mV and REARM."""
    return min(REARM, max(0.1, (level - base) / 2))


def peak(V: np.ndarray, spikes: np.ndarray, dt: float) -> float:
    """The median (mV) of the highest V (T, n_trace) within T_PEAK of the spikes; NaN without any."""
    window = max(1, round(T_PEAK / dt))
    highest = [V[i : i + window + 1, trace].max() for i, trace in np.argwhere(spikes)]
    return float(np.median(highest)) if highest else math.nan


def sample_noise(V: np.ndarray) -> float:
    """Standard deviation of what is independent from sample to sample (mV): of second differences, robustly."""
    differences = np.abs(np.diff(V, n=2, axis=0))
    differences = differences[differences > 0]
    return float(np.median(differences)) / (0.6745 * math.sqrt(6)) if len(differences) else 0.0


def away_from_spikes(spikes: np.ndarray, dt: float, t_around: tuple[float, float]) -> np.ndarray:
    """1 where no spike is within t_around[0] after the sample nor t_around[1] before it (ms), else 0; (T, n_trace)."""
    before, after = (round(t / dt) for t in t_around)
    quiet = np.ones_like(spikes)
    for step, trace in np.argwhere(spikes):
        quiet[max(step - before, 0) : step + after + 2, trace] = 0
    return quiet


# ---- How far trains agree -------------------------------------------------------------------------------------------


def van_rossum_distance(model: ArrayLike, data: ArrayLike, dt: u.Quantity, tau: u.Quantity) -> jax.Array:
    """Squared distance of spike trains (van Rossum 2001), the mean over traces of (1 / tau) sum_t (f - g)^2 dt.

    f and g are the trains filtered with exp(-t / tau). A spike against none costs 1/2, less what the end cuts off.

    Args:
        model, data: spike trains, shape (T, n_trace); those of the model may be soft.
        dt, tau: time step and time constant (ms).

    Returns:
        A scalar, differentiable in both trains.
    """
    ratio = dt.to_decimal(u.ms) / tau.to_decimal(u.ms)
    decay = math.exp(-ratio)

    def step(filtered, x):
        filtered = decay * filtered + x
        return filtered, filtered

    _, filtered = jax.lax.scan(step, jnp.zeros_like(model[0] - data[0]), model - data)
    return ratio * jnp.mean(jnp.sum(filtered**2, axis=0))


def coincidence_factor(
    model: np.ndarray,
    data: np.ndarray,
    dt: u.Quantity,
    delta: u.Quantity = 4.0 * u.ms,
    observed: np.ndarray | None = None,
) -> float:
    """Coincidence factor Gamma of Jolivet et al. (2008) between two spike trains.

    Gamma = (N_coinc - 2 r_model delta N_data) / (N_data + N_model) * 2 / (1 - 2 r_model delta)

    is 1 for trains that agree within delta, 0 for what a Poisson train of the model's rate r_model would reach by
    chance at a low rate, and negative below. A spike takes part in at most one coincidence, and chance, which knows
    nothing of it, is overrated where 2 r_model delta is not small: Poisson trains of 40 Hz have -0.1, of 100 Hz -1.7.
    It is underrated where spikes are together, as in a step between silence: what has the rate alone is above 0 then.

    Args:
        model, data: spike trains, shape (T,), 0 or 1.
        dt, delta: time step and one side of the coincidence window (ms).
        observed: 1 in the steps that count, shape (T,); without it, all of them.

    Returns:
        A float; NaN where Gamma is undefined: no spike in either train, or 2 r_model delta >= 1.
    """
    window = delta.to_decimal(u.ms) / dt.to_decimal(u.ms)
    n_step = len(model) if observed is None else np.count_nonzero(observed)
    t_model, t_data = (np.flatnonzero(x if observed is None else x * observed) for x in (model, data))
    chance = 2 * window * len(t_model) / max(n_step, 1)
    if len(t_model) + len(t_data) == 0 or chance >= 1:
        return math.nan
    n_coinc = i = j = 0
    while i < len(t_model) and j < len(t_data):
        lag = t_model[i] - t_data[j]
        match = abs(lag) <= window + 1e-6
        n_coinc, i, j = n_coinc + match, i + (match or lag < 0), j + (match or lag > 0)
    return float((n_coinc - chance * len(t_data)) / (len(t_model) + len(t_data)) * 2 / (1 - chance))


def coincidences(first: np.ndarray, second: np.ndarray, window: int) -> np.ndarray:
    """Pairs of a spike of the first and a spike of the second train, (T,) or sums of trains, at most `window` steps
    apart, (T,) by the step of the second: the product of trains of which one is filtered with a rectangle (Naud et al.
    2011).
    """
    cumulative = np.concatenate([np.zeros(window + 1), np.cumsum(first)])
    cumulative = np.append(cumulative, np.full(window, cumulative[-1]))
    return (cumulative[2 * window + 1 :] - cumulative[: len(first)]) * second


def md_star(
    data: np.ndarray, model: np.ndarray, dt: u.Quantity, delta: u.Quantity, observed: np.ndarray | None = None
) -> tuple[float, float]:
    """Md* of Naud et al. (2011), as in Pozzorini et al. (2015): how well a model predicts the spikes of repeats.

    Md* = 2 <d, m> / (<d, d> + <m, m>), with <x, y> the mean number of `coincidences` within delta of a train of x and
    one of y, and of <d, d> and <m, m> over pairs of different trains: the repeats' own variability is divided out, and
    1 is what they tell of each other; by chance, few spikes may tell more. A model of which there is one train has no
    variability.

    Args:
        data, model: trains of the repeats and of runs of the model, each (T, n).
        dt, delta: time step and one side of the coincidence window (ms).
        observed: 1 in the steps that count, shape (T,), with no spike in others; without it, all of them.

    Returns:
        Md* and its standard error, by the jackknife over N_BLOCK parts of the time (of 50 ms or more), each left out of
        all trains: what is left of spikes that repeats have in common, and of their number. Md* is NaN where spikes of
        different repeats never coincide, or there are less than two; its error also where there is one part.
    """
    window, seen = steps_within(delta, dt), np.cumsum(np.ones(len(data)) if observed is None else observed)
    if data.shape[1] < 2 or not seen[-1]:
        return math.nan, math.nan
    n_block = int(np.clip(seen[-1] * dt.to_decimal(u.ms) // T_BLOCK, 1, N_BLOCK))
    starts = np.searchsorted(seen, np.arange(n_block) * seen[-1] // n_block, "right")
    starts[0] = 0
    between = np.add.reduceat(coincidences(data.sum(1), model.sum(1), window), starts)
    between /= data.shape[1] * model.shape[1]
    own = pair_means(data, window, starts)
    norms = own + pair_means(model, window, starts)
    if not own.sum() > 0:
        return math.nan, math.nan
    without = 2 * (between.sum() - between) / np.maximum(norms.sum() - norms, TINY)
    error = math.sqrt((n_block - 1) * np.var(without)) if n_block > 1 else math.nan
    return float(2 * between.sum() / norms.sum()), error


def pair_means(trains: np.ndarray, window: int, starts: np.ndarray) -> np.ndarray:
    """Mean `coincidences` over pairs of different trains (T, n), or of the one train with itself, part by part."""
    n, own = trains.shape[1], own_coincidences(trains, window, starts)
    both = trains.sum(1)
    return own if n == 1 else (np.add.reduceat(coincidences(both, both, window), starts) - own) / (n * (n - 1))


def own_coincidences(trains: np.ndarray, window: int, starts: np.ndarray) -> np.ndarray:
    """The sum over trains (T, n) of their `coincidences` with themselves, in parts of the time that begin at `starts`.

    By the times of spikes, which are few.
    """
    step, train = np.nonzero(trains)
    # One axis for all trains, with gaps between them that no window bridges.
    length = len(trains) + window
    at = np.sort(train * length + step)
    number = np.searchsorted(at, at + window, "right") - np.searchsorted(at, at - window, "left")
    part = np.searchsorted(starts, at % length, "right") - 1
    return np.bincount(part, number, minlength=len(starts))


def steps_within(delta: u.Quantity, dt: u.Quantity) -> int:
    """Whole steps that a lag of at most delta has."""
    return math.floor(delta.to_decimal(u.ms) / dt.to_decimal(u.ms) + 1e-6)


def reliability(data: np.ndarray, dt: u.Quantity, delta: u.Quantity) -> float:
    """Mean coincidences of two different repeats (T, n) over those of a repeat with itself: 1 if all are the same."""
    window, whole = steps_within(delta, dt), np.zeros(1, int)
    (own,), (pairs,) = (of(data, window, whole) for of in (own_coincidences, pair_means))
    return pairs / own * data.shape[1] if own and data.shape[1] > 1 else math.nan
