"""Make the traces of the generalised integrate-and-fire neuron of this folder with Brian2.

Run by hand, from any folder, with Brian2 installed (the versions used are in README.md):

    python data/make_gif_traces.py

Nothing is shared with `utils.py`, which is tested against the traces.
"""

import json

import brian2 as b2
import numpy as np
from make_hh_traces import FOLDER, write_traces

DT_MS, N_STEP = 0.1, 5000
COMMON = {"b": 0.01, "k1": 0.2, "k2": 0.02, "V_rest": -70.0, "V_reset": -70.0, "V_th_inf": -50.0, "V_th_reset": -60.0}
COMMON |= {"R": 20.0, "tau": 20.0, "R1": 0.0, "R2": 1.0}  # rates per ms, mV, Mohm, ms

# Mihalas & Niebur (2009), table 1; their I / C, A1 / C, A2 / C in V/s are numbers of nA here, as C = tau / R = 1 nF.
NEURONS = [
    {"name": "regular spiking", "a": 0.0, "A1": 0.0, "A2": 0.0, "I": 1.5},
    {"name": "spike frequency adaptation", "a": 0.005, "A1": 0.0, "A2": 0.0, "I": 2.0},
    {"name": "tonic bursting", "a": 0.005, "A1": 10.0, "A2": -0.6, "I": 2.0},
    {"name": "mixed mode", "a": 0.005, "A1": 5.0, "A2": -0.3, "I": 2.0},
]
# The first two again, with spike-triggered currents that leave them regular and adapting.
NEURONS.append(NEURONS[0] | {"name": "regular spiking with currents", "A1": 2.0, "A2": -0.1})
NEURONS.append(NEURONS[1] | {"name": "spike frequency adaptation with currents", "A1": -1.0, "A2": -0.05})

EQUATIONS = """
dV/dt = (-(V - V_rest) + R*(I_ext(t, i) + I1 + I2)) / tau : volt
dV_th/dt = a*(V - V_rest) - b*(V_th - V_th_inf) : volt
dI1/dt = -k1*I1 : amp
dI2/dt = -k2*I2 : amp
a : Hz
A1 : amp
A2 : amp
"""


def simulate(current):
    """Potentials (T, n) in mV and the steps of all spikes of the neurons, under currents (T, n) in nA."""
    b2.prefs.codegen.target = "numpy"
    b2.defaultclock.dt = DT_MS * b2.ms
    units = {"b": 1 / b2.ms, "k1": 1 / b2.ms, "k2": 1 / b2.ms, "R": b2.Mohm, "tau": b2.ms, "R1": 1, "R2": 1}
    constants = {name: value * units.get(name, b2.mV) for name, value in COMMON.items()}
    constants["I_ext"] = b2.TimedArray(current * b2.nA, dt=DT_MS * b2.ms)
    reset = "V = V_reset; I1 = R1*I1 + A1; I2 = R2*I2 + A2"
    group = b2.NeuronGroup(
        len(NEURONS), EQUATIONS, threshold="V >= V_th", reset=reset, method="exponential_euler", namespace=constants
    )
    group.a = [neuron["a"] for neuron in NEURONS] / b2.ms
    group.A1, group.A2 = ([neuron[name] for neuron in NEURONS] * b2.nA for name in ("A1", "A2"))
    group.V, group.V_th = constants["V_rest"], constants["V_th_inf"]
    group.run_regularly("V_th = clip(V_th, V_th_reset, inf*volt)", when="after_resets")
    states, spikes = b2.StateMonitor(group, "V", record=True, when="start"), b2.SpikeMonitor(group)
    network = b2.Network(group, group.contained_objects, states, spikes)
    network.schedule = ["start", "thresholds", "resets", "groups", "synapses", "end"]  # the paper's order of a step
    network.run(len(current) * DT_MS * b2.ms)
    trains = spikes.spike_trains()
    steps = [np.round(np.asarray(trains[i] / b2.ms) / DT_MS).astype(int).tolist() for i in range(len(NEURONS))]
    return np.asarray(states.V / b2.mV).T, steps


def main():
    current = np.zeros((N_STEP, len(NEURONS)))
    current[500:4500] = [neuron["I"] for neuron in NEURONS]
    V, steps = simulate(current)
    write_traces("input_traces_gif.csv", current * 1e-9)
    write_traces("output_traces_gif.csv", V)
    neurons = [
        COMMON | neuron | {"spike_steps": spike_steps} for neuron, spike_steps in zip(NEURONS, steps, strict=True)
    ]
    facts = {"neurons": neurons, "dt_ms": DT_MS, "simulator": f"Brian2 {b2.__version__}"}
    (FOLDER / "parameters_gif.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
