"""Make the Hodgkin-Huxley traces of this folder with Brian2.

Run by hand, from any folder, with Brian2 installed (the versions used are in README.md):

    python data/make_hh_traces.py

Brian2 generates its own code from the equations below; nothing is shared with `utils.py`, which is tested
against the traces. Scheme: exponential Euler at 0.01 ms, as in the paper's release.
"""

import csv
import json
from pathlib import Path

import brian2 as b2
import numpy as np

FOLDER = Path(__file__).resolve().parent
DT_MS = 0.01

# The cell that the fits should find again: inside the paper's bounds, away from their centre.
PARAMETERS = {"gL": 0.012, "gNa": 22.0, "gK": 5.2, "V_T": -56.0}  # uS, uS, uS, mV

EQUATIONS = """
dV/dt = (-gNa*m**3*h*(V - 50*mV) - gK*n**4*(V + 90*mV) - gL*(V + 65*mV) + I(t, i)) / (0.2*nF) : volt
dm/dt = (0.32*4/exprel((13 - v)/4)*(1 - m) - 0.28*5/exprel((v - 40)/5)*m) / ms : 1
dh/dt = (0.128*exp((17 - v)/18)*(1 - h) - 4/(1 + exp((40 - v)/5))*h) / ms : 1
dn/dt = (0.032*5/exprel((15 - v)/5)*(1 - n) - 0.5*exp((10 - v)/40)*n) / ms : 1
v = (V - V_T)/mV : 1
"""


def training_currents():
    """Five traces of 14.97 ms (nA): pulses that leave at most one spike in each, one that hyperpolarises."""
    current = np.zeros((1497, 5))
    for trace, (start, stop, value) in enumerate(
        [(499, 998, 0.3), (499, 998, 1.0), (499, 998, 2.0), (499, 998, -1.0), (499, 600, 8.0)]
    ):
        current[start:stop, trace] = value
    return current


def validation_currents(seed=0):
    """Four traces of 120 ms (nA), none like those of training: ramp, Ornstein-Uhlenbeck, two long steps."""
    n_step = 12000
    t = np.arange(n_step) * DT_MS
    rng = np.random.default_rng(seed)
    tau, mean, std = 3.0, 0.4, 0.6  # ms, nA, nA
    decay = np.exp(-DT_MS / tau)
    noise = std * np.sqrt(1 - decay**2) * rng.standard_normal(n_step)
    ou = np.empty(n_step)
    ou[0] = mean
    for k in range(1, n_step):
        ou[k] = mean + decay * (ou[k - 1] - mean) + noise[k]
    ramp = np.clip((t - 10) / 100, 0, 1) * 1.5
    steps = [np.where((t >= 10) & (t < 100), value, 0.0) for value in (0.6, 3.0)]
    return np.round(np.stack([ramp, ou, *steps], axis=1), 6)


def simulate(current):
    """Potentials (T, n_trace) in mV at times 0, dt, 2 dt, ... for currents (T, n_trace) in nA."""
    b2.prefs.codegen.target = "numpy"
    b2.defaultclock.dt = DT_MS * b2.ms
    constants = {
        "gL": PARAMETERS["gL"] * b2.uS,
        "gNa": PARAMETERS["gNa"] * b2.uS,
        "gK": PARAMETERS["gK"] * b2.uS,
        "V_T": PARAMETERS["V_T"] * b2.mV,
        "I": b2.TimedArray(current * b2.nA, dt=DT_MS * b2.ms),
    }
    cell = b2.NeuronGroup(current.shape[1], EQUATIONS, method="exponential_euler", namespace=constants)
    cell.V = -65 * b2.mV  # m = h = n = 0
    monitor = b2.StateMonitor(cell, "V", record=True, when="start")
    b2.Network(cell, monitor).run(len(current) * DT_MS * b2.ms)
    return np.asarray(monitor.V / b2.mV).T


def write_traces(name, values):
    """The released files' layout: one trace a row, an index column, a header of sample numbers."""
    with open(FOLDER / name, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["", *range(len(values))])
        for index, trace in enumerate(values.T):
            writer.writerow([index, *(f"{value:.9g}" for value in trace)])


def main():
    for suffix, current in (("", training_currents()), ("_validation", validation_currents())):
        write_traces(f"input_traces_hh{suffix}.csv", current * 1e-9)
        write_traces(f"output_traces_hh{suffix}.csv", simulate(current))
    facts = {"parameters": PARAMETERS, "dt_ms": DT_MS, "simulator": f"Brian2 {b2.__version__}"}
    (FOLDER / "parameters_hh.json").write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
