"""What data determine of the parameters of a model: Fisher information in a box of bounds, and standard errors."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import runs

import brainunit as u
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.typing import ArrayLike

Parameters = dict[str, u.Quantity]


class Box:
    """The parameters of a fit between their bounds: x in [0, 1]^k stands for low + x (high - low).

    Args:
        bounds: {name: Quantity [low, high]}.
    """

    def __init__(self, bounds: Mapping[str, u.Quantity]):
        self.units = {name: bound.unit for name, bound in bounds.items()}
        self.low, self.high = np.array([bound.mantissa for bound in bounds.values()], dtype=np.float64).T

    def values(self, x: ArrayLike) -> dict[str, float]:
        """{name: value in the unit of its bounds} at x, never outside the bounds."""
        values = np.clip(self.low + np.asarray(x, np.float64) * (self.high - self.low), self.low, self.high)
        return dict(zip(self.units, values.tolist(), strict=True))

    def parameters(self, X: ArrayLike) -> Parameters:
        """{name: values with unit} at the rows of X (n, k), or at one x (k,), which may be traced."""
        values = jnp.asarray(self.low) + X * jnp.asarray(self.high - self.low)
        return {name: value * unit for (name, unit), value in zip(self.units.items(), values.T, strict=True)}


class Prediction(NamedTuple):
    """Numbers that a model predicts: function of x, data -> y (n,), target (n,), and the smallest noise there can be.

    Where their errors are beyond `largest_noise`, the model does not describe the data. `nuisances`, a function of x, y
    and data, are the changes (n, m) of y by what is not known besides: a column each, by one standard error of it.
    Arrays of a recording are in `data`, as XLA takes GB to compile a program that has long ones for constants. `counts`
    (T, n_trace) is where among samples the numbers are, in order, if they may depend on each other. `held` are names of
    constants that are not fitted: the function takes by how many steps each is higher, as `steps`, {name: number}.
    """

    function: Callable[..., jax.Array]
    target: np.ndarray
    smallest_noise: float
    largest_noise: float = math.inf
    nuisances: Callable[..., jax.Array] | None = None
    data: tuple[Any, ...] = ()
    counts: np.ndarray | None = None
    held: tuple[str, ...] = ()


# How well a fit is determined is asked of these, and of the cluster of each number where they depend on each other.
Predictions = tuple[dict[str, Prediction], np.ndarray | None]


class Likelihood(NamedTuple):
    """A negative log-likelihood as a function of x and data -> its sum over each cluster, (n,), which are independent.

    `noise` is of potentials (mV), and `misfits` say why the model does not describe the data, if it does not.
    """

    costs: Callable[..., jax.Array]
    noise: dict[str, float]
    misfits: list[str]
    data: tuple[Any, ...] = ()


AT_BOUND = 1e-6  # of the range of a parameter
LITTLE = 0.05  # of an autocorrelation
# A fit is not at an optimum where the linearised data would move a parameter by more than so many standard errors and
# more than this share of its range.
FAR, FAR_IN_BOX = 3.0, 0.002
ROUNDING = 1e-5  # of a second derivative in float32, relative to the largest


class Undetermined(ValueError):
    """The reason why nothing can be said of how well a fit is determined."""


@dataclasses.dataclass(frozen=True)
class Identifiability:
    """What `identifiability` says; standard errors in units of the parameters, direction_errors in those of the box.

    An eigenvector is a row of eigenvectors. `undetermined` names the directions of which the bounds say more. A
    standard error that would be false is NaN, and `without_error` says why: {parameter: reason}. By how much each
    parameter would be another if a constant that is held were higher by a step is {constant: {parameter: change}}.
    """

    noise: dict[str, float]
    standard_errors: dict[str, float]
    without_error: dict[str, str]
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray
    direction_errors: np.ndarray
    undetermined: list[str]
    by_held: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)


def identifiability(
    box: Box, x: np.ndarray, predictions: Mapping[str, Prediction], clusters: np.ndarray | None = None
) -> Identifiability:
    """What the data determine at x: Fisher information, standard errors, undetermined directions.

    In the coordinates x of the box, with J = (dy / dx) / s the derivatives of the predictions y in units of their noise
    s, and residuals r = y - target, whose mean square, times n / (n - k) for n numbers and k parameters, and times
    how many count as one where they are correlated (`autocorrelation_time`), is taken for s^2:

        F = J^T J  (Gauss-Newton),  H = F + 12,  covariance H^-1,  or with clusters  H^-1 (12 + C / (C - k) G^T G) H^-1

    where 12 is what the box itself says, the precision of a uniform density, and row c of G is the sum of J r / s over
    cluster c of C: within one, residuals may depend on each other (Liang & Zeger 1986); of k clusters or fewer it is
    H^-1. An eigenvector of F with an eigenvalue below 12 is not determined: the data say less of it than the bounds.

    Added in quadrature are what each of the nuisances N moves the parameters by, H^-1 J^T N / s, such as the step of
    the simulation, of which data know nothing, and the Gauss-Newton step H^-1 J^T r that is left, by which a fit that
    ended early is off. What is held is taken to be true: no error contains it, and residuals need not tell. A step of
    it, which changes y by N, moves those parameters that are not at bounds by -H^-1 J^T N / s, to first order.

    There is no standard error of any parameter where the step that is left is too long to be true (FAR), where the
    model does not describe the data, or where these are no more numbers than parameters; nor of one that is at its
    bound.

    Args:
        clusters: cluster of every prediction, from 0, in the order of `predictions`.

    Raises:
        Undetermined: the derivatives are not finite.
    """
    n, k = sum(len(prediction.target) for prediction in predictions.values()), len(x)
    few = [f"{n} numbers are too few for {k} parameters and their noise"] if n <= k else []
    J, r, alone, noise, at, misfits, moved, by_held = [], [], [], {}, jnp.asarray(x), few, np.zeros(len(x)), {}
    for name, (predict, target, smallest, largest, nuisances, data, counts, held) in predictions.items():
        y, jacobian, changes = with_derivatives(predict, held, at, data)
        residual = np.asarray(y, np.float64) - target
        rms = float(np.sqrt(np.mean(residual**2))) if len(target) else 0.0
        if rms > largest:
            misfits.append(misfit(name, rms, largest))
        noise[name] = max(rms * math.sqrt(n / max(n - k, 1)), smallest)
        size = noise[name] * math.sqrt(_correlated(residual, counts) if rms > smallest else 1.0)
        J.append(np.asarray(jacobian, np.float64) / size)
        r.append(residual / size)
        alone.append(np.full(len(target), size / noise[name]))
        if nuisances:
            moved = moved + np.square(_solve(J[-1], np.asarray(jax.jit(nuisances)(at, y, *data)) / size)).sum(1)
        if held:
            free, steps = _free(x), np.zeros((len(x), len(held)))
            steps[free] = -_solve(J[-1][:, free], np.stack(list(changes.values()), axis=1) / size)
            for constant, step in zip(changes, (steps.T * (box.high - box.low)).tolist(), strict=True):
                by_held[constant] = dict(zip(box.units, step, strict=True))
    J, r, alone = np.concatenate(J), np.concatenate(r), np.concatenate(alone)
    steps = np.array([list(steps.values()) for steps in by_held.values()])
    if not all(np.isfinite(x).all() for x in (J, r, moved, steps)):
        raise Undetermined("the derivatives of the predictions are not finite")
    scores = None
    if clusters is not None:
        clusters = np.unique(clusters, return_inverse=True)[1]  # one that is empty would count in C
        scores = np.zeros((1 + max(clusters), len(x)))
        np.add.at(scores, clusters, J * r[:, None])
    information = Information(J.T @ J, J.T @ r, scores, moved)
    # What is left to the optimum would pass for errors that depend on each other.
    J, r = J * alone[:, None], r * alone
    independent = information if scores is not None else Information(J.T @ J, J.T @ r, None, moved)
    return dataclasses.replace(_concluded(box, x, information, noise, misfits, independent), by_held=by_held)


def with_derivatives(
    predict: Callable[..., jax.Array], held: Sequence[str], x: jax.Array, data: tuple[Any, ...]
) -> tuple[jax.Array, jax.Array, dict[str, jax.Array]]:
    """y (n,), dy / dx (n, k) and {constant: change (n,) of y by a step of it}, by one simulation in forward mode."""

    def predicted(x, steps, *data):
        y = predict(x, *data, steps=steps) if held else predict(x, *data)
        return y, y

    program = jax.jit(jax.jacfwd(predicted, argnums=(0, 1), has_aux=True))
    (jacobian, changes), y = program(x, dict.fromkeys(held, 0.0), *data)
    return y, jacobian, changes


def of_likelihood(box: Box, x: np.ndarray, likelihood: Likelihood) -> Identifiability:
    """As `identifiability`, with the second derivatives of a negative log-likelihood for F and its scores for G.

    Raises:
        Undetermined: the derivatives are not finite.
    """

    def derivatives(x, *data):
        def total(x):
            costs = likelihood.costs(x, *data)
            return jnp.sum(costs), costs

        # One program has them all: that each direction has the gradient again costs less than to compile it apart.
        along = lambda v: jax.jvp(jax.grad(total, has_aux=True), (x,), (v,))  # noqa: E731
        (gradient, _), (F, scores) = jax.lax.map(along, jnp.eye(len(x)))
        return F, gradient[0], scores

    derived = jax.jit(derivatives)(jnp.asarray(x), *likelihood.data)
    F, gradient, scores = (np.asarray(y, np.float64) for y in derived)
    if not (np.isfinite(F).all() and np.isfinite(scores).all()):
        raise Undetermined("the derivatives of the likelihood are not finite")
    information = Information((F + F.T) / 2, gradient, scores.T, np.zeros(len(x)))
    return _concluded(box, x, information, likelihood.noise, likelihood.misfits, information)


def autocorrelation_time(x: np.ndarray, mask: np.ndarray) -> float:
    """1 + 2 sum of the autocorrelation of x (n_trace, T), which is 0 where the mask is, as far as it exceeds LITTLE.

    In samples that the mask counts: lags that no two of them have, as where every tenth counts, are none.
    """
    n = x.shape[1]

    def products(y):
        return np.fft.irfft(np.sum(np.abs(np.fft.rfft(y, 2 * n, axis=1)) ** 2, axis=0))[:n]

    pairs = products(mask.astype(float))
    lags = np.flatnonzero(pairs > 0.5)
    correlation = products(x)[lags] / pairs[lags]
    if not (len(lags) and correlation[0] > 0):
        return 1.0
    correlation = correlation / correlation[0]
    small = np.flatnonzero(correlation < LITTLE)
    return float(1 + 2 * np.sum(correlation[1 : small[0] if len(small) else n]))


def _correlated(residual: np.ndarray, counts: np.ndarray | None) -> float:
    """How many of the residuals, which are where `counts` is among samples, count as one."""
    if counts is None:
        return 1.0
    samples = np.zeros(counts.shape)
    samples[counts] = residual
    return autocorrelation_time(samples.T, counts.T)


class Information(NamedTuple):
    """F (k, k), the gradient (k,), G (n, k) or None, and squares of what nuisances move x by, of `identifiability`."""

    F: np.ndarray
    gradient: np.ndarray
    scores: np.ndarray | None
    moved: np.ndarray


def _concluded(box, x, information, noise, misfits, independent):
    """What follows from the information, and whether this is an optimum by that of independent errors."""
    eigenvalues, vectors = np.linalg.eigh(information.F)
    errors, least = (np.sqrt(np.diag(_covariance(each)) + each.moved) for each in (information, independent))
    step = _step_left(x, independent)
    far = np.where(np.abs(step) > FAR_IN_BOX, np.abs(step) / least, 0)
    reasons = _reasons(box, x, far, [*misfits, *_downhill(box, x, information.F)])
    errors = np.sqrt(errors**2 + step**2) * (box.high - box.low)
    return Identifiability(
        noise=noise,
        standard_errors={
            name: math.nan if name in reasons else float(error) for name, error in zip(box.units, errors, strict=True)
        },
        without_error=reasons,
        eigenvalues=eigenvalues,
        eigenvectors=vectors.T,
        direction_errors=1 / np.sqrt(np.maximum(eigenvalues, 0) + 12),
        undetermined=_name_directions(vectors[:, eigenvalues < 12], list(box.units)),
    )


def misfit(name: str, rms: float, largest: float) -> str:
    """Why a model does not describe data."""
    return f"this model does not describe these data: {name} off by {rms:.3g} where their noise allows {largest:.3g}"


def unknown(box: Box, x: np.ndarray, reason: str) -> Identifiability:
    """What is said where there is no error analysis: why, and what is at its bound."""
    k = len(box.low)
    nothing, names = np.full(k, np.nan), list(box.units)
    reasons = dict.fromkeys(names, reason) | at_bounds(box, x)
    return Identifiability({}, dict.fromkeys(names, math.nan), reasons, nothing, np.full((k, k), np.nan), nothing, [])


def at_bounds(box: Box, x: np.ndarray) -> dict[str, str]:
    """{parameter: that it is at its bound}, of those that are."""
    ends = np.where(x < 0.5, box.low, box.high)
    is_at = (x < AT_BOUND) | (x > 1 - AT_BOUND)
    return {
        name: f"at its bound, {end:g} (--bounds)" for name, end, at in zip(box.units, ends, is_at, strict=True) if at
    }


def _covariance(information: Information) -> np.ndarray:
    """The covariance (k, k) of `identifiability`; where F has negative eigenvalues, 0 stands for them."""
    G, k = information.scores, len(information.F)
    prior, (values, vectors) = 12 * np.eye(k), np.linalg.eigh(information.F)
    covariance = (vectors / (np.maximum(values, 0) + 12)) @ vectors.T
    if G is not None and len(G) > k:
        covariance = covariance @ (G.T @ G * len(G) / (len(G) - k) + prior) @ covariance
    return covariance


def _solve(J: np.ndarray, y: np.ndarray) -> np.ndarray:
    """H^-1 J^T y."""
    return np.linalg.solve(J.T @ J + 12 * np.eye(J.shape[1]), J.T @ y)


def _free(x: np.ndarray) -> np.ndarray:
    """Which parameters are not at their bounds."""
    return np.flatnonzero((x >= AT_BOUND) & (x <= 1 - AT_BOUND))


def _step_left(x: np.ndarray, information: Information) -> np.ndarray:
    """The Gauss-Newton step within the bounds, of the parameters that are not at theirs."""
    step, free = np.zeros(len(x)), _free(x)
    if len(free):
        H = information.F[np.ix_(free, free)] + 12 * np.eye(len(free))
        step[free] = np.clip(x[free] - np.linalg.solve(H, information.gradient[free]), 0, 1) - x[free]
    return step


def _downhill(box: Box, x: np.ndarray, F: np.ndarray) -> list[str]:
    """Why this is no minimum, if it is none: F curves down, by more than the bounds say, and than rounding."""
    names, free = np.array(list(box.units)), _free(x)
    values, vectors = np.linalg.eigh(F[np.ix_(free, free)])
    if not len(free) or values[0] > -max(12, ROUNDING * values[-1]):
        return []
    (direction,) = _name_directions(vectors[:, :1], names[free])
    return [f"not at a minimum: the loss falls both ways along {direction}"]


def _reasons(box: Box, x: np.ndarray, far: np.ndarray, misfits: Sequence[str]) -> dict[str, str]:
    """{parameter: why it has no standard error}; `far` is the step that is left in standard errors."""
    names = list(box.units)
    first = int(np.argmax(far))
    if far[first] > FAR:
        away = f"not at an optimum: the data move {names[first]} by {far[first]:.2g} standard errors"
        away += " (a local minimum? --precision 64, more --n_sample, or tighter --bounds)"
        misfits = [*misfits, away]
    reasons = dict.fromkeys(names, misfits[0]) if misfits else {}
    return reasons | at_bounds(box, x)


def _name_directions(vectors: np.ndarray, names: list[str]) -> list[str]:
    """Directions (k, m) as text: the parameters that they contain whole, and what remains as sums of parameters."""
    alone = (vectors**2).sum(1) > 0.99
    directions = [name for name, is_alone in zip(names, alone, strict=True) if is_alone]
    for vector in vectors.T[np.square(vectors[~alone]).sum(0) > 0.5]:
        terms = [f"{value:+.2f} {name}" for name, value in zip(names, vector, strict=True) if abs(value) > 0.05]
        directions.append(" ".join(terms) + " (each in units of its bounds)")
    return directions


def plot_identifiability(information: Identifiability) -> plt.Figure:
    """Left, the standard error along each eigenvector of the Fisher matrix, in units of the box; right, the vectors."""
    names, eigenvalues = list(information.standard_errors), information.eigenvalues
    index = np.arange(len(names))
    figure, (left, right) = plt.subplots(1, 2, figsize=(runs.WIDTH, 2.8), layout="constrained")
    left.bar(index, information.direction_errors, color=np.where(eigenvalues < 12, "C1", "0.4"))
    left.axhline(12**-0.5, color="k", lw=0.8, ls="--")
    left.set(yscale="log", xticks=index, xlabel="eigenvector", ylabel="error by Fisher matrix (units of bounds)")
    left.set_title("dashed: what the bounds alone say; orange: the data say less")
    size = np.abs(information.eigenvectors).T
    image = right.imshow(size, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    right.set(xlabel="eigenvector", xticks=index, yticks=index, yticklabels=names)
    figure.colorbar(image, ax=right, label="size of the component")
    return figure
