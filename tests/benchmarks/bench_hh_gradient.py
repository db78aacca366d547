"""Time of a gradient in forward mode of HH cells, by the partial derivatives of gates.py and through their rates.

    python tests/benchmarks/bench_hh_gradient.py

100 cells of 240 ms under noise at steps of 0.01 ms, with M current, staggered, float32, 10 parameters; in turns.
"""

import functools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import runs  # noqa: F401, before JAX

import brainunit as u
import common
import jax
import jax.numpy as jnp
import numpy as np

import gates
import studies
import utils

N_CELL, N_STEP, DT = 100, 24000, 0.01
FITTED = dict(gL=0.012 * u.uS, gNa=22.0 * u.uS, gK=5.2 * u.uS, V_T=-56.0 * u.mV, EL=-65.0 * u.mV, C=0.2 * u.nF)
FITTED |= dict(gM=0.03 * u.uS, tau_max=300.0 * u.ms, phi=1.2, ENa=50.0 * u.mV)


def programs(current, steps):
    """The mean of V^2 and its gradient, compiled with these steps of gates."""

    def loss(factors):
        parameters = {name: x * value for x, (name, value) in zip(factors, FITTED.items(), strict=True)}
        cell = functools.partial(utils.HH, scheme="staggered")
        V, _ = studies.simulate(cell, parameters, current * u.nA, DT * u.ms, V_start=np.full(N_CELL, -65.0) * u.mV)
        return jnp.mean(V.to_decimal(u.mV) ** 2)

    own, utils.STEPS = utils.STEPS, steps
    x = jnp.ones(len(FITTED))
    try:
        compiled = [jax.jit(function).lower(x).compile() for function in (loss, jax.jacfwd(loss))]
    finally:
        utils.STEPS = own
    return [functools.partial(lambda program: program(x).block_until_ready(), program) for program in compiled]


def main() -> None:
    noise = np.random.default_rng(0).standard_normal((N_STEP // 300, N_CELL))
    current = (0.4 + 0.5 * noise).repeat(300, axis=0).astype(np.float32)
    plain = {gate: functools.partial(gates.relaxed, rates) for gate, rates in gates.RATES.items()}
    ours, autodiff = programs(current, gates.STEPS), programs(current, plain)
    apart = np.abs(ours[1]() / autodiff[1]() - 1).max()
    seconds = np.min(common.in_turns(*ours, *autodiff, repeats=25), axis=0)  # of a machine that others use
    print(f"largest relative difference of the gradients: {apart:.1e}")
    for name, loss, gradient in (("gates.py", *seconds[:2]), ("through the rates", *seconds[2:])):
        per_parameter = (gradient - loss) / len(FITTED) / loss
        print(f"{name}: loss {loss:.3f} s, gradient {gradient:.3f} s, {per_parameter:.2f} simulations a parameter")
    print(f"ratio of the gradients: {seconds[3] / seconds[1]:.2f}")


if __name__ == "__main__":
    main()
