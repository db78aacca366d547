"""Simulation of the E/I network: event-driven sparse connections against all to all, time and memory.

    python tests/benchmarks/bench_ei_sim.py [--large]

n_rec 4000, 16 trials of 2200 ms; each simulation runs in a process of its own, on one device and on all of them. For
time the faster counts, and for memory that on one device. `--large` adds rand at n_rec 20000. Memory is that of the
arrays, which are the weights and what the program holds on a device (|W|, connections, states, records); and the peak
of the process above what it had after simulating 40 neurons, which has more. The ratios come last.
"""

import json
import subprocess
import sys

from common import memory_above, network_script


def simulate(conn_method, n_rec, devices):
    command = [sys.executable, __file__, "--simulate", conn_method, str(n_rec), devices]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    print(f"{conn_method}, n_rec {n_rec}, devices {devices}: {result['run']:.2f} s", end=" ")
    print(f"({result['run'] / 2.2:.2f} s per simulated second), {result['compile']:.1f} s to compile", end=", ")
    print(f"E {result['rates'][0]:.2f} Hz, I {result['rates'][1]:.2f} Hz", end=", ")
    print(f"arrays {result['arrays']:.0f} MB, process {result['process']:.0f} MB", flush=True)
    return result


def print_simulation(conn_method, n_rec, devices):
    arguments = "--mode", "sim", "--conn_method", conn_method, "--batch_size", 16, "--devices", devices
    script, args, mesh = network_script(*arguments)
    import jax

    result = {}

    def run(n_rec):
        args.n_rec = n_rec
        task, network, weights, connections = script.make_model(args)
        keys = jax.random.split(jax.random.key(0), args.batch_size)
        activity, cost = script.record(task, network, weights, connections, keys, mesh)
        arrays = cost["memory_MB"] + sum(w.nbytes for w in weights.values()) / 1e6
        rates = (activity["rates"].mean(axis=0) * 1000).tolist()
        result.update(cost["seconds"] | dict(rates=rates, arrays=arrays))

    run(40)
    result["process"] = memory_above(lambda: run(int(n_rec)))
    print(json.dumps(result))


def main():
    one, best = {}, {}
    for conn_method in ("rand", "dense"):
        one[conn_method], every = (simulate(conn_method, 4000, devices) for devices in ("0", "all"))
        best[conn_method] = min(one[conn_method]["run"], every["run"])
    if "--large" in sys.argv:
        simulate("rand", 20000, "all")
    for what in ("process", "arrays"):
        print(f"memory ({what}) of dense: {one['dense'][what] / one['rand'][what]:.1f} times that of rand")
    print(f"time of dense: {best['dense'] / best['rand']:.1f} times that of rand")


if __name__ == "__main__":
    if "--simulate" in sys.argv:
        print_simulation(*sys.argv[2:5])
    else:
        main()
