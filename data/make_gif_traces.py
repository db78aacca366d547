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
KINDS = {  # of parameters: {as Brian2 writes it: (unit, names)}
    "hertz": (1 / b2.ms, ("a", "b", "b2", "k1", "k2", "k3", "k_g")),
    "second": (b2.ms, ("tau", "t_ref")),
    "volt": (b2.mV, ("V_rest", "V_reset", "V_th_inf", "V_th_reset", "A_th", "A_th2", "V_i", "k_i", "E_g")),
    "amp": (b2.nA, ("A1", "A2", "A3")),
    "siemens": (b2.uS, ("A_g",)),
    "ohm": (b2.Mohm, ("R",)),
    "1": (1, ("R1", "R2")),
}
PAPER = {"b": 0.01, "k1": 0.2, "k2": 0.02, "V_rest": -70.0, "V_reset": -70.0, "V_th_inf": -50.0, "V_th_reset": -60.0}
PAPER |= {"R": 20.0, "tau": 20.0, "R1": 0.0, "R2": 1.0}  # rates per ms, mV, Mohm, ms
# What the paper's neuron has not.
PAPER |= {"t_ref": 0.0, "A_th": 0.0, "A_th2": 0.0, "b2": 0.01, "V_i": -50.0, "k_i": 0.0, "A3": 0.0, "k3": 0.05}
PAPER |= {"A_g": 0.0, "k_g": 0.05, "E_g": -80.0}

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
NEURONS = [PAPER | neuron for neuron in NEURONS]
# As fits of recordings have it: refractory, with a threshold that jumps; and with all else that they may have.
RECORDED = {"name": "of a recording", "R": 100.0, "V_rest": -65.0, "V_th_inf": -48.0, "V_th_reset": -1000.0, "a": 0.05}
RECORDED |= {"b": 0.1, "A1": -0.3, "k1": 0.1, "A2": -0.03, "k2": 0.01, "R1": 1.0, "t_ref": 4.0, "A_th": 12.0, "I": 0.5}
NEURONS.append(PAPER | RECORDED | {"V_reset": -50.0})
ALL = {"name": "of a recording, all terms", "A_th2": 2.0, "k_i": 3.0, "A3": -0.01, "k3": 0.002, "A_g": 0.004, "R1": 0.5}
NEURONS.append(NEURONS[-1] | ALL | {"k_g": 0.03, "E_g": -75.0})

EQUATIONS = """
dV/dt = (-(V - V_rest) + R*(I_ext(t, i) + I1 + I2 + I3 - g*(V - E_g))) / tau : volt (unless refractory)
dV_th/dt = a*f - b*(V_th - V_th_inf) : volt
dV_th2/dt = -b2*V_th2 : volt
dI1/dt = -k1*I1 : amp
dI2/dt = -k2*I2 : amp
dI3/dt = -k3*I3 : amp
dg/dt = -k_g*g : siemens
soft = k_i + volt*int(k_i == 0*volt) : volt
f = (V - V_rest)*int(k_i == 0*volt) + k_i*log(1 + exp((V - V_i)/soft)) : volt
waits : boolean
"""
AFTER = (
    "I1 = R1*I1 + A1; I2 = R2*I2 + A2; I3 += A3; g += A_g; waits = False"  # what a spike leaves, at the end of t_ref
)


def simulate(current):
    """Potentials (T, n) in mV and the steps of all spikes of the neurons, under currents (T, n) in nA."""
    b2.prefs.codegen.target = "numpy"
    b2.defaultclock.dt = DT_MS * b2.ms
    parameters = [f"{name} : {kind} (constant)" for kind, (_, names) in KINDS.items() for name in names]
    group = b2.NeuronGroup(
        len(NEURONS),
        EQUATIONS + "\n".join(parameters),
        threshold="V >= V_th + V_th2",
        reset="V = V_reset; V_th += A_th; V_th2 += A_th2; waits = True",
        refractory="t_ref",
        events={"release": "waits and timestep(t - lastspike, dt) >= timestep(t_ref, dt)"},
        method="exponential_euler",
        namespace={"I_ext": b2.TimedArray(current * b2.nA, dt=DT_MS * b2.ms)},
    )
    for unit, names in KINDS.values():
        for name in names:
            setattr(group, name, [neuron[name] for neuron in NEURONS] * unit)
    group.V, group.V_th = group.V_rest, group.V_th_inf
    group.run_on_event("release", AFTER, when="before_groups")
    group.thresholder["release"].when = "after_resets"
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
    neurons = [neuron | {"spike_steps": spike_steps} for neuron, spike_steps in zip(NEURONS, steps, strict=True)]
    facts = {"neurons": neurons, "dt_ms": DT_MS, "simulator": f"Brian2 {b2.__version__}"}
    (FOLDER / "parameters_gif.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
