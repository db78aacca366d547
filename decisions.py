"""Statistics of decisions: accuracies with their intervals, and a logistic fit of choices."""

import math
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats


def wilson_interval(n_correct: int, n: int) -> list[float]:
    """95 % interval of a probability of which n_correct of n trials were seen (Wilson 1927)."""
    return list(scipy.stats.binomtest(int(n_correct), n).proportion_ci(method="wilson"))


def accuracy_of(correct: np.ndarray) -> dict[str, Any]:
    """Accuracy of trials, with its interval."""
    return dict(accuracy=float(correct.mean()), interval=wilson_interval(correct.sum(), len(correct)))


def logistic_fit(x: np.ndarray, chosen: np.ndarray) -> dict[str, Any] | None:
    """P(chosen) = 1 / (1 + exp(-(bias + slopes . x))), fitted to choices (n,) at x (n, k).

    The likelihood is multiplied by the root of the determinant of the Fisher information (Firth 1993), so that the
    estimate is finite also where x separates the choices, as a perfect network does. Its size is then that of this
    factor and of n, not of what chose, and has no standard error.

    Returns:
        bias, slopes (k,), the standard errors bias_se, slopes_se, NaN where choices are `separated`, as a linear
        program finds (Konis 2007); None where x does not determine them.
    """
    design = np.column_stack([np.ones(len(x)), x])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return None

    def information(b):
        p = scipy.special.expit(design @ b)
        return (design.T * (p * (1 - p))) @ design

    def objective(b):
        log_likelihood = chosen @ design @ b - np.logaddexp(0, design @ b).sum()
        return -log_likelihood - 0.5 * np.linalg.slogdet(information(b))[1]

    b = scipy.optimize.minimize(objective, np.zeros(design.shape[1]), method="BFGS").x
    rows = np.where(chosen, 1, -1)[:, None] * design
    separation = scipy.optimize.linprog(-rows.sum(axis=0), -rows, np.zeros(len(rows)), bounds=(-1, 1))
    separated = bool(separation.fun < -1e-6)
    se = np.full(len(b), math.nan) if separated else np.sqrt(np.diag(np.linalg.pinv(information(b))))
    return dict(bias=b[0], slopes=b[1:].tolist(), bias_se=se[0], slopes_se=se[1:].tolist(), separated=separated)
