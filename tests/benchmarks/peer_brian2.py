"""The part of bench_ei_peers.py that runs in an environment with Brian2: one trial by C++ standalone with OpenMP.

    python peer_brian2.py FILE.npz THREADS

The last line is JSON: seconds of the simulation, seconds to build it, and spikes of excitatory and inhibitory neurons.
"""

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence

import brian2 as b2
import numpy as np

EQUATIONS = """
dV/dt = (-V + g_exc*(E_exc - V) + g_inh*(E_inh - V) + I2)/tau_neu : 1
dI2/dt = -I2/tau_a : 1
dg_exc/dt = -g_exc/tau_syn : 1
dg_inh/dt = -g_inh/tau_syn : 1
tau_a : second (constant)
"""


def main(argv: Sequence[str]) -> None:
    data, folder, begin = dict(np.load(argv[0])), tempfile.mkdtemp(), time.perf_counter()
    b2.set_device("cpp_standalone", directory=folder, build_on_run=False)
    b2.prefs.devices.cpp_standalone.openmp_threads = int(argv[1])
    ms, number = b2.ms, {name: float(data[name]) for name in ("dt", "tau_neu", "tau_syn", "E_exc", "E_inh", "beta")}
    b2.defaultclock.dt = number["dt"] * ms
    constants = {name: number[name] * ms for name in ("tau_neu", "tau_syn")}
    constants |= {name: number[name] for name in ("E_exc", "E_inh", "beta")}
    reset = "V -= 1; I2 -= beta"
    n_rec, n_exc = len(data["tau_a"]), len(data["exc_indptr"]) - 1
    options = dict(threshold="V >= 1", reset=reset, method="exponential_euler", namespace=constants)
    neurons = b2.NeuronGroup(n_rec, EQUATIONS, **options)
    neurons.tau_a = data["tau_a"] * ms
    step, source = np.nonzero(data["inputs"])
    inputs = b2.SpikeGeneratorGroup(data["inputs"].shape[1], source, step * number["dt"] * ms)
    objects = [neurons, inputs]

    def connect(sources, pre, post, w, target):
        synapses = b2.Synapses(sources, neurons, "w : 1", on_pre=f"{target}_post += w")
        synapses.connect(i=pre, j=post)
        synapses.w = w
        objects.append(synapses)

    n_in = data["in"].shape[0]
    connect(inputs, np.repeat(np.arange(n_in), n_rec), np.tile(np.arange(n_rec), n_in), data["in"].ravel(), "g_exc")
    for name, group, target in (("exc", neurons[:n_exc], "g_exc"), ("inh", neurons[n_exc:], "g_inh")):
        indptr = data[f"{name}_indptr"]
        pre = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        connect(group, pre, data[f"{name}_indices"], data[name], target)
    spikes = b2.SpikeMonitor(neurons, record=False)
    network = b2.Network(*objects, spikes)
    network.run(len(data["inputs"]) * number["dt"] * ms)
    b2.device.build(directory=folder, compile=True, run=True)
    whole = time.perf_counter() - begin
    counts, seconds = np.asarray(spikes.count), b2.device._last_run_time
    shutil.rmtree(folder)
    found = [int(counts[:n_exc].sum()), int(counts[n_exc:].sum())]
    print(json.dumps(dict(seconds=seconds, build=whole - seconds, spikes=found)))


if __name__ == "__main__":
    main(sys.argv[1:])
