"""What data determine of the parameters of a model: Fisher information in a box of bounds, and standard errors."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

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
    """Numbers that a model predicts: function of x -> y (n,), target (n,), and the smallest noise there can be."""

    function: Callable[[jax.Array], jax.Array]
    target: np.ndarray
    smallest_noise: float


# How well a fit is determined is asked of these, and of the cluster of each number where they depend on each other.
Predictions = tuple[dict[str, Prediction], np.ndarray | None]


@dataclasses.dataclass(frozen=True)
class Identifiability:
    """What `identifiability` says; standard errors in units of the parameters, direction_errors in those of the box.

    An eigenvector is a row of eigenvectors. `undetermined` names the directions of which the bounds say more.
    """

    noise: dict[str, float]
    standard_errors: dict[str, float]
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray
    direction_errors: np.ndarray
    undetermined: list[str]


def identifiability(
    box: Box, x: np.ndarray, predictions: Mapping[str, Prediction], clusters: np.ndarray | None = None
) -> Identifiability:
    """What the data determine at x: Fisher information, standard errors, undetermined directions.

    In the coordinates x of the box, with J = (dy / dx) / s the derivatives of the predictions y in units of their noise
    s, and residuals r = y - target, whose root mean square is taken for s:

        F = J^T J  (Gauss-Newton),  H = F + 12,  covariance H^-1,  or with clusters  H^-1 (12 + C / (C - k) G^T G) H^-1

    where 12 is what the box itself says, the precision of a uniform density, and row c of G is the sum of J r / s over
    cluster c of C: within one, residuals may depend on each other (Liang & Zeger 1986). An eigenvector of F with an
    eigenvalue below 12 is not determined: the data say less of it than the bounds.

    Args:
        clusters: cluster of every prediction, from 0, in the order of `predictions`.
    """
    J, r, noise, at = [], [], {}, jnp.asarray(x)
    for name, (predict, target, smallest) in predictions.items():
        y, jacobian = jax.jit(lambda x, f=predict: (f(x), jax.jacfwd(f)(x)))(at)
        residual = np.asarray(y, np.float64) - target
        noise[name] = max(float(np.sqrt(np.mean(residual**2))), smallest) if len(target) else smallest
        J.append(np.asarray(jacobian, np.float64) / noise[name])
        r.append(residual / noise[name])
    J, r = np.concatenate(J), np.concatenate(r)
    eigenvalues, vectors = np.linalg.eigh(J.T @ J)
    prior = 12 * np.eye(len(x))
    covariance = np.linalg.inv(J.T @ J + prior)
    n_cluster = 0 if clusters is None else 1 + max(clusters)
    if n_cluster > len(x):
        G = np.zeros((n_cluster, len(x)))
        np.add.at(G, clusters, J * r[:, None])
        covariance = covariance @ (G.T @ G * n_cluster / (n_cluster - len(x)) + prior) @ covariance
    errors = np.sqrt(np.diag(covariance)) * (box.high - box.low)
    return Identifiability(
        noise=noise,
        standard_errors=dict(zip(box.units, errors.tolist(), strict=True)),
        eigenvalues=eigenvalues,
        eigenvectors=vectors.T,
        direction_errors=1 / np.sqrt(np.maximum(eigenvalues, 0) + 12),
        undetermined=_name_directions(vectors[:, eigenvalues < 12], list(box.units)),
    )


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
    left.set(yscale="log", xticks=index, xlabel="eigenvector", ylabel="standard error (units of the bounds)")
    left.set_title("dashed: what the bounds alone say; orange: the data say less")
    size = np.abs(information.eigenvectors).T
    image = right.imshow(size, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    right.set(xlabel="eigenvector", xticks=index, yticks=index, yticklabels=names)
    figure.colorbar(image, ax=right, label="size of the component")
    return figure
