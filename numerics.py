"""Functions of Hodgkin-Huxley rates that overflow nowhere, and steps of exponential Euler."""

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jax.typing import ArrayLike

Number = u.Quantity | ArrayLike


@jax.custom_jvp
def exprel(x: ArrayLike) -> jax.Array:
    """(exp(x) - 1) / x, and 1 at 0; value and derivative are accurate to a few units in the last place.

    A series where |x| < 1/2, else exp(x) - 1. A simulation is four times faster than with `brainunit.math.exprel`,
    whose expm1 XLA does not vectorise on a CPU.
    """
    x = jnp.asarray(x)
    return _by_series(x, 0, jnp.exp(x) - 1)


def _exprel_jvp(tangent, value, x):
    return tangent * _by_series(x, 1, jnp.exp(x) - value)


exprel.defjvps(_exprel_jvp)


def _by_series(x, derivative, far):
    """A derivative of exprel: its series, or far / x.

    The division is last: XLA computes anew what is cheap, for every direction of a derivative, and a quotient once.
    """
    near = jnp.abs(x) < 0.5
    return jnp.where(near, _exprel_series(x, derivative), far) / jnp.where(near, 1, x)


def _exprel_series(x, derivative):
    k = np.arange(8 if x.dtype == jnp.float32 else 14, -1, -1)  # the next term is below the rounding error
    return jnp.polyval(jnp.asarray((k + 1.0) ** derivative / scipy.special.factorial(k + 1 + derivative), x.dtype), x)


@jax.custom_jvp
def inverse_exprel(x: ArrayLike) -> jax.Array:
    """x / (exp(x) - 1), the reciprocal of `exprel`, whose value and derivative overflow nowhere.

    A series where |x| < 1/2; f(-x) = f(x) + x, and f' = f (1 - f - x) / x.
    """
    x = jnp.asarray(x)
    return _positive_inverse(jnp.abs(x)) + jax.nn.relu(-x)


def _inverse_exprel_jvp(tangent, value, x):
    size = jnp.abs(x)
    f, near = _positive_inverse(size), size < 0.5
    slope = jnp.where(near, _bernoulli_series(size, 1), f * (1 - f - size)) / jnp.where(near, 1, size)
    return tangent * jnp.where(x < 0, -1 - slope, slope)


inverse_exprel.defjvps(_inverse_exprel_jvp)


def _positive_inverse(x):
    near = x < 0.5
    return jnp.where(near, _bernoulli_series(x, 0), x) / jnp.where(near, 1, jnp.exp(x) - 1)


def _bernoulli_series(x, derivative):
    """A derivative of sum_k B_k x^k / k!, in which all odd numbers B_k but the first are 0."""
    k = np.arange(8 if x.dtype == jnp.float32 else 16, -1, -1)
    terms = scipy.special.bernoulli(k[0])[k] / scipy.special.factorial(k)
    return jnp.polyval(jnp.asarray(np.polyder(terms, derivative), x.dtype), x)


def exp_euler(x: Number, drift: Number, rate: u.Quantity) -> Number:
    """Exponential Euler step of dx/dt = drift, with rate = -d(drift)/dx: x + dt drift exprel(-rate dt).

    Exact while all else in drift is constant. The step dt is brainstate's.
    """
    dt = brainstate.environ.get_dt()
    return x + dt * drift * exprel(u.Quantity(-rate * dt).to_decimal())


def relax(x: Number, x_inf: Number, rate: u.Quantity) -> Number:
    """Exponential Euler step of dx/dt = -rate (x - x_inf): `exp_euler` where the steady state x_inf is of order 1."""
    return x_inf + (x - x_inf) * u.math.exp(-rate * brainstate.environ.get_dt())


def is_zero(x: Number) -> bool:
    """Whether x is known to be 0, which it is not while a gradient or a batch is traced through it."""
    return not isinstance(u.get_magnitude(x), jax.core.Tracer) and not np.any(np.asarray(u.get_magnitude(x)))


BLOCK = 32  # samples that a triangular matrix filters at once


@jax.custom_jvp
def exponential_filter(x: jax.Array, rate: ArrayLike, start: ArrayLike) -> jax.Array:
    """y (n, T) with y[0] = start and y[k + 1] = exp(-rate) y[k] + x[k], in parallel over time.

    Blocks of BLOCK samples are products with a triangular matrix, and what each leaves to the next is such a filter
    again; with a rate that changes, it is an associative scan, at several times the cost. Derivatives are filters too,
    of x' - rate' exp(-rate) y, in both modes.

    Args:
        x: shape (n, T).
        rate: of the decay, per sample; a scalar, or of each sample (n, T).
        start: shape (n,).
    """
    if jnp.ndim(rate):
        return _changing_filter(x, rate, start)
    n, T = x.shape
    n_block = -(-T // BLOCK)
    blocks = jnp.pad(x, ((0, 0), (0, n_block * BLOCK - T))).reshape(n, n_block, BLOCK)
    k = np.arange(BLOCK)
    lag = k - k[:, None]  # from sample i, the row, to sample j, the column
    within = jnp.exp(-rate * np.maximum(lag - 1, 0)) * (lag > 0)
    left = jnp.exp(-rate * (BLOCK - 1 - k))  # of each sample, at the end of its block
    carried = start[:, None] if n_block == 1 else exponential_filter(blocks @ left, rate * BLOCK, start)
    return (blocks @ within + carried[:, :, None] * jnp.exp(-rate * k)).reshape(n, -1)[:, :T]


def _changing_filter(x, rate, start):
    def after(first, then):
        return first[0] * then[0], then[0] * first[1] + then[1]

    left, added = jax.lax.associative_scan(after, (jnp.exp(-rate), x), axis=1)
    return jnp.concatenate([start[:, None], (left * start[:, None] + added)[:, :-1]], axis=1)


@exponential_filter.defjvp
def _exponential_filter_jvp(primals, tangents):
    x, rate, start = primals
    x_dot, rate_dot, start_dot = tangents
    y = exponential_filter(x, rate, start)
    return y, exponential_filter(x_dot - rate_dot * jnp.exp(-rate) * y, rate, start_dot)
