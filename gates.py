"""The gates of the Hodgkin-Huxley cell: rates alpha, beta (per ms) as functions of a potential (mV), and steps."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from numerics import inverse_exprel


def rates_of_p(V: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(alpha, beta) of the gate of the M current, times tau_max, at potential V (mV)."""
    z = jnp.exp((V + 35) / 20)
    rate = 3.3 * z + 1 / z
    return rate * (z**2 / (1 + z**2)), rate / (1 + z**2)


# Of m, h and n at V - V_T, of p at V. exp in beta of n is the published rate; the paper's code has exprel there.
RATES = {
    "m": lambda v: (1.28 * inverse_exprel((13 - v) / 4), 1.4 * inverse_exprel((v - 40) / 5)),
    "h": lambda v: (0.128 * jnp.exp((17 - v) / 18), 4 * jax.nn.sigmoid((v - 40) / 5)),
    "n": lambda v: (0.16 * inverse_exprel((15 - v) / 5), 0.5 * jnp.exp((10 - v) / 40)),
    "p": rates_of_p,
}


Rates = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


def relaxed(rates: Rates, x: jax.Array, v: jax.Array, scale: ArrayLike) -> jax.Array:
    """The exponential Euler step of a gate x, dx/dt = alpha (1 - x) - beta x.

    Args:
        rates: (alpha, beta) at v.
        scale: what both are taken times, and the step.
    """
    alpha, beta = rates(v)
    x_inf = alpha / (alpha + beta)
    return x_inf + (x - x_inf) * jnp.exp(-(alpha + beta) * scale)


def gate_step(rates: Rates) -> Callable[..., jax.Array]:
    """The step of a gate, (x, v, scale) -> x as in `relaxed`, with its partial derivatives in closed form.

    They are computed once, however many directions there are: a gradient costs three quarters of what it does through
    the rates (`tests/benchmarks/bench_hh_gradient.py`).
    """
    step = jax.custom_jvp(functools.partial(relaxed, rates))

    def jvp(primals, tangents):
        (x, v, scale), (dx, dv, dscale) = primals, tangents
        (alpha, beta), (dalpha, dbeta) = jax.jvp(rates, (v,), (jnp.ones_like(v),))
        rate, drate = alpha + beta, dalpha + dbeta
        x_inf, left = alpha / rate, jnp.exp(-rate * scale)
        # A quotient: XLA computes anew what is cheap, for every direction, and a quotient once.
        slope = ((dalpha - x_inf * drate) * (1 - left) - (x - x_inf) * left * scale * rate * drate) / rate
        tangent = left * dx + slope * dv + (x_inf - x) * left * rate * dscale
        return relaxed(rates, x, v, scale), tangent

    step.defjvp(jvp)
    return step


STEPS = {gate: gate_step(rates) for gate, rates in RATES.items()}
