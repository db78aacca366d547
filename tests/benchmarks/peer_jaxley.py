"""The part of bench_jaxley.py that runs in an environment with jaxley: its gradients of the HH fit.

    python peer_jaxley.py FILE.npz

The last line is JSON: gradients a second by each solver and mode, and the RMSE (mV) of the first parameter set.
"""

import json
import os
import sys
from collections.abc import Sequence

os.environ["JAX_NUM_CPU_DEVICES"] = str(len(os.sched_getaffinity(0)))  # JAX reads it when it is imported

import jax
import jax.numpy as jnp
import jaxley as jx
import numpy as np
from common import seconds_of
from jaxley.channels.pospischil import K, Leak, Na

AREA = 2e-4  # cm^2: 0.2 nF at 1 uF / cm^2
NAMES = ("Leak_gLeak", "Na_gNa", "K_gK", "vt")


def make_cell() -> jx.Compartment:
    """The cell of the fit, whose four parameters can be set."""
    cell = jx.Compartment()
    for channel in (Leak(), Na(), K()):
        cell.insert(channel)
    radius = 10.0  # um
    constants = dict(radius=radius, length=AREA * 1e8 / (2 * np.pi * radius), capacitance=1.0, v=-65.0)
    constants |= dict(Leak_eLeak=-65.0, eNa=50.0, eK=-90.0, Na_m=0.0, Na_h=0.0, K_n=0.0)
    for name, value in constants.items():
        cell.set(name, value)
    cell.record("v", verbose=False)
    for name in NAMES:
        cell.make_trainable(name, verbose=False)
    return cell


def main(argv: Sequence[str]) -> None:
    data, cell = np.load(argv[0]), make_cell()
    current, V, sets, dt = (jnp.asarray(data[name], jnp.float32) for name in ("current", "V", "sets", "dt"))

    def potentials(x, solver):
        values = jnp.append(x[:3] * 1e-6 / AREA, x[3])  # uS to S / cm^2
        params = [{name: value[None]} for name, value in zip(NAMES, values, strict=True)]

        def trace(I):
            stimuli = cell.data_stimulate(I)
            return jx.integrate(cell, params=params, data_stimuli=stimuli, delta_t=float(dt), solver=solver)[0]

        return jax.vmap(trace)(current.T)[:, : len(current)].T

    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("batch",))
    sets = jax.device_put(sets, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("batch")))
    result = dict(versions=f"jaxley {jx.__version__}, jax {jax.__version__}", rates={}, rmse={})
    for solver in ("bwd_euler",):

        def loss(x, solver=solver):
            return jnp.mean((potentials(x, solver) - V) ** 2)

        result["rmse"][solver] = float(jnp.sqrt(loss(sets[0])))
        modes = {"reverse": jax.value_and_grad(loss), "forward": lambda x, loss=loss: (loss(x), jax.jacfwd(loss)(x))}
        for mode, function in modes.items():
            compiled = jax.jit(jax.vmap(function)).lower(sets).compile()
            seconds = seconds_of(lambda compiled=compiled: jax.block_until_ready(compiled(sets)), repeats=5)
            result["rates"][f"{solver}, {mode}"] = len(sets) / seconds
    print(json.dumps(result))


if __name__ == "__main__":
    main(sys.argv[1:])
