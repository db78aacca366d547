"""Gradients a second of the HH fit against jaxley, for a batch of 100 parameter sets on the traces in data/.

    python tests/benchmarks/bench_jaxley.py [--n_sample 100]

The same single-compartment cell (jaxley's Pospischil channels; 0.2 nF, gates at 0), loss, step (0.01 ms), precision
(float32) and devices. jaxley is run with its default solver, backward Euler (version 0.14.0 cannot do exponential Euler
with a single compartment), in reverse and in forward mode, as one compiled vmap over sets and traces, its batch split
over the same devices; the better of the two counts. Jaxley gets an environment of its own. The last line is the ratio.
Two minutes on two cores; run nothing else meanwhile.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from common import hh_problem, run_peer, seconds_of

REQUIREMENTS = ["jaxley==0.14.0", "jax==0.10.2"]
AREA = 2e-4  # cm^2: 0.2 nF at 1 uF / cm^2
NAMES = ("Leak_gLeak", "Na_gNa", "K_gK", "vt")


# ---- jaxley, in its own environment ---------------------------------------------------------------------------------


def peer(path):
    import os

    os.environ["JAX_NUM_CPU_DEVICES"] = str(len(os.sched_getaffinity(0)))
    import jax
    import jax.numpy as jnp
    import jaxley as jx
    from jaxley.channels.pospischil import K, Leak, Na

    data = np.load(path)
    current, V, sets, dt = (jnp.asarray(data[name], jnp.float32) for name in ("current", "V", "sets", "dt"))
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


# ---- ours -----------------------------------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_sample", type=int, default=100, help="parameter sets in the batch")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    ours = parser.parse_args()
    if ours.peer:
        return peer(ours.peer)

    problem = hh_problem(ours.n_sample)
    import jax

    import utils

    X, data = fitting.random_starts(problem, 0), problem.data
    known = json.loads((Path(utils.__file__).parent / "data" / "parameters_hh.json").read_text())["parameters"]
    X[0] = (np.array([known[name] for name in problem.units]) - problem.low) / (problem.high - problem.low)
    rmse = float(np.sqrt(problem.evaluate(X)[0]))
    rate = ours.n_sample / seconds_of(lambda: problem.evaluate(X, gradient=True), repeats=5)
    print(f"ours, jax {jax.__version__}: {rate:.0f} gradients a second; {rmse:.2g} mV from Brian2 at its parameters")

    sets = problem.low + X * (problem.high - problem.low)
    result = run_peer(__file__, REQUIREMENTS, current=data["current"], V=data["V"], sets=sets, dt=0.01)
    for name, value in result["rates"].items():
        distance = result["rmse"][name.split(",")[0]]
        print(f"{result['versions']}, {name}: {value:.1f} gradients a second; {distance:.2g} mV from Brian2")
    print(f"ratio of gradients a second, ours / jaxley's best: {rate / max(result['rates'].values()):.1f}")
    return 0


if __name__ == "__main__":
    main()
