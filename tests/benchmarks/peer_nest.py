"""The part of bench_ei_peers.py that runs in an environment with NEST: one trial.

    python peer_nest.py FILE.npz THREADS

The neuron that is nearest is aeif_cond_exp without exponential and subthreshold adaptation, which is solved adaptively
and resets V to 0 where ours subtracts 1; 1 mV is its threshold above rest, and 1 nS its leak. The last line is JSON:
seconds of the simulation, seconds to build it, and spikes of excitatory and inhibitory neurons.
"""

import json
import sys
import time
from collections.abc import Sequence

import nest
import numpy as np


def main(argv: Sequence[str]) -> None:
    data, begin = dict(np.load(argv[0])), time.perf_counter()
    nest.set_verbosity("M_ERROR")
    dt = float(data["dt"])
    nest.set(resolution=dt, local_num_threads=int(argv[1]))
    n_rec, n_exc, tau_syn = len(data["tau_a"]), len(data["exc_indptr"]) - 1, float(data["tau_syn"])
    constants = dict(
        C_m=float(data["tau_neu"]), g_L=1.0, E_L=0.0, V_m=0.0, V_th=1.0, V_peak=1.0, V_reset=0.0, Delta_T=0.0
    )
    constants |= dict(a=0.0, b=float(data["beta"]), E_ex=float(data["E_exc"]), E_in=float(data["E_inh"]), t_ref=0.0)
    neurons = nest.Create("aeif_cond_exp", n_rec, constants | dict(tau_syn_ex=tau_syn, tau_syn_in=tau_syn))
    neurons.tau_w = data["tau_a"].tolist()
    times = [(np.flatnonzero(x) + 1) * dt for x in data["inputs"].T]
    inputs = nest.Create("spike_generator", len(times), params=[dict(spike_times=t) for t in times])
    nest.Connect(inputs, neurons, "all_to_all", dict(weight=data["in"].T, delay=dt))
    for name, first, sign in (("exc", 0, 1), ("inh", n_exc, -1)):
        indptr = data[f"{name}_indptr"]
        pre = first + 1 + np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        for part in np.array_split(np.arange(len(pre)), max(1, len(pre) // 4_000_000)):
            of = dict(weight=sign * data[name][part].astype(float), delay=np.full(len(part), dt))
            nest.Connect(
                pre[part], data[f"{name}_indices"][part] + 1, "one_to_one", of | dict(synapse_model="static_synapse")
            )
    recorder = nest.Create("spike_recorder")
    nest.Connect(neurons, recorder)
    nest.Prepare()
    built = time.perf_counter()
    nest.Run(len(data["inputs"]) * dt)
    seconds = time.perf_counter() - built
    senders = np.asarray(recorder.events["senders"])
    found = [int((senders <= n_exc).sum()), int((senders > n_exc).sum())]
    print(json.dumps(dict(seconds=seconds, build=built - begin, spikes=found)))


if __name__ == "__main__":
    main(sys.argv[1:])
