"""Simulation of the E/I network beside Brian2 (C++ standalone, OpenMP) and NEST, on the same cores.

    python tests/benchmarks/bench_ei_peers.py [--n_rec 4000 20000] [--peers Brian2 NEST]

The paper's network with `--conn_method rand`, of the same neurons, connections, weights and input spikes: one trial of
2200 ms by each, and 16 trials at once by ours; the others have one trial at a time. Building and compiling is apart.
NEST's neuron is not quite the same (`peer_nest.py`). The ratios come last. Four minutes, and 8 GB at 20000.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import interpreter, run_peer
from workloads import network, runs, task_script

import models

PEERS = {
    "Brian2": ("peer_brian2.py", ["brian2==2.11.0", "setuptools<81"], "python3.13"),
    "NEST": ("peer_nest.py", ["nest-simulator==3.10.0"], "python3.11"),
}
N_TRIAL = 16


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_rec", type=int, nargs="+", default=[4000, 20000])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    args, ratios = parser.parse_args(argv), []
    for n_rec in args.n_rec:
        ours = {}
        for n_trial in (1, N_TRIAL):
            options = ("--mode", "sim", "--conn_method", "rand", "--n_rec", n_rec, "--batch_size", n_trial)
            start = time.perf_counter()
            simulated = network(*options)
            built = time.perf_counter() - start
            keys = simulated.keys()
            found = [task_script.simulate(simulated.model, keys, simulated.mesh) for _ in range(2)]
            activity = min(found, key=lambda activity: activity.seconds["run"])
            ours[n_trial] = activity.seconds["run"]
            built += found[0].seconds["compile"]  # the second takes it from the cache
            print(f"n_rec {n_rec}, ours, {n_trial} trials: {ours[n_trial] / 2.2:.2f} s per simulated second", end="")
            print(f" ({ours[n_trial] / 2.2 / n_trial:.3f} a trial), {built:.1f} s to build and compile", flush=True)
            if n_trial == 1:
                arrays, spikes = arrays_of(simulated.model, keys, simulated.args), activity.spikes
                n_exc = simulated.model.network.n_exc
                print(f"  spikes: E {spikes[:, :n_exc].sum()}, I {spikes[:, n_exc:].sum()}")
        for name in args.peers:
            script, requirements, python = PEERS[name]
            peer = run_peer(script, requirements, runs.N_CORE, python=interpreter(python), **arrays)
            print(f"n_rec {n_rec}, {name}: {peer['seconds'] / 2.2:.2f} s per simulated second", end=", ")
            print(f"{peer['build']:.0f} s to build; spikes: E {peer['spikes'][0]}, I {peer['spikes'][1]}", flush=True)
            ratios += [(n_rec, name, n, peer["seconds"] * n / seconds) for n, seconds in ours.items()]
    for n_rec, name, n_trial, ratio in ratios:
        print(f"n_rec {n_rec}, {n_trial} trials: {name} takes {ratio:.1f} times as long as ours")


def arrays_of(model: models.Model, keys: jax.Array, args: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Constants, weights, connections, and the input spikes of the first trial."""
    task, arrays = model.task, {name: np.abs(model.weights[name]) for name in ("in", "exc", "inh")}
    for name, (indptr, indices) in model.connections.items():
        arrays |= {f"{name}_indptr": np.asarray(indptr), f"{name}_indices": np.asarray(indices)}
    _, evidence = task.trials(keys)
    inputs = np.asarray(task.inputs(keys, evidence, jnp.arange(task.n_step)))[:, 0]
    names = ("tau_neu", "tau_syn", "E_exc", "E_inh", "beta")
    arrays |= {name: np.asarray(args[name], float) for name in names}
    return arrays | dict(inputs=inputs, dt=np.asarray(task.dt)) | models.neuron_arrays(model.network)


if __name__ == "__main__":
    main()
