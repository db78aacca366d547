"""Methods that go from a point to a minimum by derivatives of a loss, which they ask for one point after the other."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import scipy.optimize

GAUSS_NEWTON = "Gauss-Newton"  # of sums of squares alone, and not compared with the others
SCALED = "scaled L-BFGS-B"  # to refine what Gauss-Newton has found of a likelihood
# Tolerances below what float32 resolves: a start ends where its line search finds nothing lower.
LBFGSB_OPTIONS = {"maxiter": 1000, "maxfun": 20000, "ftol": 1e-12, "gtol": 1e-8}
COARSE_OPTIONS = LBFGSB_OPTIONS | {"ftol": 1e-6}  # of the stages of an annealed fit before the last
NEWTON_OPTIONS = {"ftol": 1e-7, "xtol": 1e-6, "gtol": 1e-10, "max_nfev": 100}
COARSE_NEWTON_OPTIONS = NEWTON_OPTIONS | {"ftol": 1e-6, "xtol": 1e-4, "max_nfev": 40}
# Of L-BFGS-B, by what derivatives, from a random point to where Gauss-Newton is safe: of a likelihood, whose second
# derivatives cost ten times the first, as far as it goes fast.
APPROACH_OPTIONS = {"grams": LBFGSB_OPTIONS | {"maxiter": 20}, "gradients": LBFGSB_OPTIONS | {"maxiter": 150}}
SCALED_OPTIONS = LBFGSB_OPTIONS | {"ftol": 1e-9, "maxcor": 20}

Evaluate = Callable[[np.ndarray, str], tuple[float, np.ndarray]]  # of x: loss and what is asked for besides


@dataclasses.dataclass(frozen=True)
class Solver:
    """A method that goes from a point to a minimum by derivatives of the loss.

    Args:
        solve: (function of x -> loss, derivatives; x; options; how to get near a minimum) -> why it ended. The last is
            what derivatives L-BFGS-B is to go there by, as `FitProblem.evaluate` names them, or "" where x is near.
        options, coarse_options: of SciPy; the latter in the stages of an annealed fit before the last.
    """

    solve: Callable[[Evaluate, np.ndarray, Mapping[str, float], str], str]
    options: Mapping[str, float]
    coarse_options: Mapping[str, float]


def lbfgsb(function: Evaluate, x: np.ndarray, options: Mapping[str, float], approach: str) -> str:
    """SciPy's L-BFGS-B in the box."""
    return _lbfgsb(lambda x: function(x, "gradients"), x, options).message


def _lbfgsb(function, x, options, high=1.0):
    box = scipy.optimize.Bounds(0.0 * x, high + 0.0 * x)
    return scipy.optimize.minimize(function, x, jac=True, method="L-BFGS-B", bounds=box, options=dict(options))


def gauss_newton(function: Evaluate, x: np.ndarray, options: Mapping[str, float], approach: str) -> str:
    """SciPy's `least_squares` in the box, from a random point after a few steps of L-BFGS-B.

    A square root of the Gram matrix [J r]^T [J r] stands for J and r: the steps depend on nothing else of them.
    """

    def loss_and_gradient(x):
        loss, derivatives = function(x, approach)
        return loss, derivatives if derivatives.ndim == 1 else 2 * derivatives[:-1, -1]

    x = _lbfgsb(loss_and_gradient, x, APPROACH_OPTIONS[approach]).x if approach else x
    at: dict[bytes, np.ndarray] = {}

    def root(x):
        if x.tobytes() not in at:
            at.clear()
            values, vectors = np.linalg.eigh(function(x, "grams")[1])
            at[x.tobytes()] = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T
        return at[x.tobytes()]

    problem = dict(fun=lambda x: root(x)[:, -1], x0=x, jac=lambda x: root(x)[:, :-1])
    return scipy.optimize.least_squares(**problem, bounds=(0.0, 1.0), x_scale="jac", method="dogbox", **options).message


def scaled_lbfgsb(function: Evaluate, x: np.ndarray, options: Mapping[str, float], approach: str) -> str:
    """L-BFGS-B from near a minimum, with each parameter in units of how far the second derivatives there let it go.

    Where data hardly determine some parameters, Gauss-Newton goes on in ever smaller steps along a valley, each with
    second derivatives that cost ten times a gradient; this ends lower (by 2.5 of a log-likelihood where the GIF neuron
    is fitted to data/recording.nwb) in a third of the time.
    """
    _, gram = function(x, "grams")
    curvature = np.diag(gram)[:-1]
    unit = 1 / np.sqrt(curvature + 1e-9 * curvature.max())

    def scaled(y):
        loss, gradient = function(y * unit, "gradients")
        return loss, gradient * unit

    return _lbfgsb(scaled, x / unit, options, 1 / unit).message


SOLVERS = {
    "L-BFGS-B": Solver(lbfgsb, LBFGSB_OPTIONS, COARSE_OPTIONS),
    GAUSS_NEWTON: Solver(gauss_newton, NEWTON_OPTIONS, COARSE_NEWTON_OPTIONS),
    SCALED: Solver(scaled_lbfgsb, SCALED_OPTIONS, SCALED_OPTIONS),
}
