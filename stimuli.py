"""Currents of a protocol (nA): which sweeps are repeats of one of them, and which are the steps of a family."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.ndimage

EQUAL = 1e-3  # of the range
N_PART = 32  # of a sweep, in which noise is as large
FLUCTUATIONS, SLOW, PROPORTIONAL = 0.2, 0.02, 0.01  # of the standard deviation: what noise of a measurement may be
NEARLY, FLAT = 0.1, 0.03  # of the largest step of a family; the latter a standard deviation
N_SMOOTH = 15  # samples of a median that has the edges of a step where they are


# ---- Repeats --------------------------------------------------------------------------------------------------------


def groups_of(currents: Sequence[np.ndarray], dt: float) -> list[list[int]]:
    """Indices of the sweeps under the same current, group by group; samples are dt (ms) apart."""
    groups: list[list[int]] = []
    for i, current in enumerate(currents):
        for group in groups:
            other = currents[group[0]]
            if may_be_equal(current, other) and (are_equal(current, other) or differ_by_noise(current, other, dt)):
                group.append(i)
                break
        else:
            groups.append([i])
    return groups


def may_be_equal(current: np.ndarray, other: np.ndarray) -> bool:
    """Whether a thousand samples do not tell currents apart, as they do most of a long protocol."""
    if len(current) != len(other):
        return False
    few = slice(None, None, max(1, len(current) // 1000))
    difference = other[few] - current[few]
    size, close = np.std(current[few]), 2 * FLUCTUATIONS
    return not (np.std(difference) > close * size > 0 or is_in_proportion(difference, current[few]))


def is_in_proportion(difference: np.ndarray, current: np.ndarray) -> bool:
    """Whether a difference of currents grows with the current, by more than PROPORTIONAL and than chance."""
    signal, rest = current - current.mean(), difference - difference.mean()
    power = np.sum(signal**2)
    return bool(np.abs(np.sum(rest * signal)) > PROPORTIONAL * power + 5 * np.std(rest) * np.sqrt(power))


def are_equal(current: np.ndarray, other: np.ndarray) -> bool:
    """Whether currents (T,) are the same to a thousandth of their range."""
    return bool(np.abs(other - current).max() <= EQUAL * np.ptp(current) + 1e-9)


def differ_by_noise(current: np.ndarray, other: np.ndarray, dt: float) -> bool:
    """Whether currents (T,) are one current but for the noise with which it has been measured.

    Their difference, less an offset, is small beside them (FLUCTUATIONS), as large in every part of the sweep, and
    not in proportion to them. Of its means over 1 ms and longer, n ms times the mean square does not grow, as where
    errors are independent, but for slow ones (SLOW). So a step or a pulse of another height or time, and other frozen
    noise that a membrane would follow, are other currents; of less than 256 ms, all are.
    """
    size, n_block = np.std(current), max(1, round(1 / dt))
    n = len(current) // n_block
    difference = (other - current).astype(float)
    offset = difference.mean()
    difference -= offset
    if n < 256 or not (np.std(difference) <= FLUCTUATIONS * size and abs(offset) <= SLOW * size):
        return False
    parts = np.array([np.mean(np.square(part)) for part in np.array_split(difference, N_PART)])
    if parts.max() > 3 * np.median(parts) or parts.min() < np.median(parts) / 3:
        return False
    means, signal = (x[: n * n_block].reshape(n, n_block).mean(axis=1) for x in (difference, current))
    if is_in_proportion(means, signal):
        return False
    lengths = [1 << k for k in range(n.bit_length()) if 16 << k <= n]
    squares = [np.mean(means[: n // k * k].reshape(-1, k).mean(axis=1) ** 2) for k in lengths]
    return all(k * x <= 3 * squares[0] + k * (SLOW * size) ** 2 for k, x in zip(lengths, squares, strict=True))


# ---- Steps ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of current: its height above what was before (nA), and the samples from `first` to before `last`."""

    height: float
    first: int
    last: int


def step_of(current: np.ndarray, scale: float) -> Step | None:
    """The one step of a current (T,), or None where it is something else.

    Nine in ten of the samples that differ from the first ones do so by nearly the same: to NEARLY of the scale (nA).
    """
    little = NEARLY * scale
    changed = np.flatnonzero(np.abs(current - np.median(current[: max(len(current) // 1000, 1)])) > little)
    if not len(changed):
        return None
    same = np.abs(current[changed] - np.median(current[changed])) <= little
    whole = len(changed) > 0.9 * (changed[-1] + 1 - changed[0])
    return step_in(current, int(changed[0]), int(changed[-1]) + 1) if same.mean() >= 0.9 and whole else None


def step_in(current: np.ndarray, first: int, last: int) -> Step:
    """The step of a current (T,) from `first` to `last`: how much higher it is there than elsewhere."""
    inside = np.zeros(len(current), bool)
    inside[first:last] = True
    elsewhere = current[~inside] if not inside.all() else current[:1]
    return Step(float(np.median(current[inside]) - np.median(elsewhere)), first, last)


def are_alike(step: Step, other: Step) -> bool:
    """Whether steps begin and end at the same times, to a tenth of their duration."""
    little = NEARLY * (step.last - step.first)
    return abs(step.first - other.first) <= little and abs(step.last - other.last) <= little


def has_nothing_else(current: np.ndarray, step: Step, scale: float) -> bool:
    """Whether a current (T,) is flat, beside the scale (nA), but for a step, which may have a height of 0."""
    rest = current - np.median(current)
    rest[step.first : step.last] -= step.height
    return bool(np.std(rest) < FLAT * scale)


def family_among(currents: Sequence[np.ndarray]) -> dict[int, Step]:
    """{index: step} of the currents that are steps of one family: three or more heights, or else none.

    The most steps that begin and end alike are the family, with those that are small and may be hidden by noise. Where
    all sweeps were cut within the step, and so begin at other levels and end at one, it is what is before that end.
    """
    smooth = [
        scipy.ndimage.median_filter(np.asarray(x, float), min(N_SMOOTH, len(x)), mode="nearest") for x in currents
    ]
    steps = {i: step for i, x in enumerate(smooth) if (step := step_of(x, np.ptp(x))) is not None}
    alike = [[i for i, other in steps.items() if are_alike(step, other)] for step in steps.values()]
    if not alike:
        return {}
    members = max(alike, key=lambda of: (len(of), steps[of[0]].last - steps[of[0]].first))
    largest = max((steps[i] for i in members), key=lambda step: abs(step.height))
    window, scale = (largest.first, largest.last), abs(largest.height)
    if all(steps[i].last == len(smooth[i]) for i in members):
        ends = np.array([(smooth[i][0], smooth[i][-1]) for i in members])
        window = (0, largest.first) if np.ptp(ends[:, 0]) > np.ptp(ends[:, 1]) else window
    reaching = {i: step_in(x, *window) for i, x in enumerate(smooth) if len(x) > window[0]}
    family = {i: step for i, step in reaching.items() if i in members or has_nothing_else(smooth[i], step, scale)}
    heights = {round(step.height / abs(largest.height), 2) for step in family.values()}
    return family if len(heights) >= 3 else {}
