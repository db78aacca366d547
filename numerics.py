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
    return jnp.where(jnp.abs(x) < 0.5, _exprel_series(x, 0), (jnp.exp(x) - 1) / jnp.where(x == 0, 1, x))


def _exprel_jvp(tangent, value, x):
    slope = (jnp.exp(x) - value) / jnp.where(x == 0, 1, x)
    return tangent * jnp.where(jnp.abs(x) < 0.5, _exprel_series(x, 1), slope)


exprel.defjvps(_exprel_jvp)


def _exprel_series(x, derivative):
    k = np.arange(8 if x.dtype == jnp.float32 else 14, -1, -1)  # the next term is below the rounding error
    return jnp.polyval(jnp.asarray((k + 1.0) ** derivative / scipy.special.factorial(k + 1 + derivative), x.dtype), x)


def inverse_exprel(x: ArrayLike) -> jax.Array:
    """x / (exp(x) - 1), the reciprocal of `exprel`, whose value and derivative overflow nowhere."""
    size = jnp.abs(x)
    return jnp.exp(-size) / exprel(-size) + jax.nn.relu(-x)


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
    return not isinstance(u.get_magnitude(x), jax.core.Tracer) and not np.any(u.get_magnitude(x))
