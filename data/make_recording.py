"""Make the recordings of this folder with Brian2: cells that no model here contains, recorded as a lab would.

Run by hand, from any folder, with Brian2 and pynwb installed (the versions used are in README.md), for one or both:

    python data/make_recording.py recording recording_fast_spiking

The cells have more currents than the models fitted to them, and noise of their own; the electrode adds what a real one
adds. A fit of these files therefore cannot be exact, and the repeats of one current say how well it can be predicted.
Scheme: fourth-order Runge-Kutta at 0.01 ms, in each step of which the noise is constant.
"""

import datetime
import importlib.metadata
import json
import platform
import sys
import time
from pathlib import Path

import brian2 as b2
import numpy as np
from pynwb import NWBHDF5IO, H5DataIO, NWBFile
from pynwb.icephys import CurrentClampSeries, CurrentClampStimulusSeries

FOLDER = Path(__file__).resolve().parent
DT_MS = 0.01
SAMPLE_MS = 0.05  # 20 kHz; the current is held for as long, as by a D/A converter
REST_MS = 2000.0  # before each sweep, not recorded: the slowest gate (p) has 130 ms there
GAP_S = 10.0  # from the start of a sweep to that of the next
SEEDS = {"current": 0, "cell": 1, "amplifier": 2}

# A regular-spiking cell of cortex.
CELL = {
    "C": 0.2,  # nF
    "gL": 0.006,  # uS
    "EL": -75.0,  # mV
    "gNa": 5.0,  # uS
    "ENa": 50.0,  # mV
    "gK": 2.0,  # uS
    "EK": -90.0,  # mV
    "V_T": -58.0,  # mV
    "gM": 0.025,  # uS
    "tau_max": 800.0,  # ms
    "gh": 0.005,  # uS
    "Eh": -45.0,  # mV
    "ge": 0.0008,  # uS, mean
    "ge_sd": 0.00025,  # uS
    "Ee": 0.0,  # mV
    "tau_e": 3.0,  # ms
    "gi": 0.0016,  # uS, mean
    "gi_sd": 0.0007,  # uS
    "Ei": -75.0,  # mV
    "tau_i": 10.0,  # ms
}
# A fast-spiking one, which does not adapt: smaller, without M and h currents. What differs, the other is as above.
FAST_SPIKING = {"C": 0.06, "EL": -72.0, "gNa": 3.0, "gK": 1.5, "gM": 0.0, "gh": 0.0}
UNITS = {"C": b2.nF, "g": b2.uS, "E": b2.mV, "V": b2.mV, "t": b2.ms}  # by the first letter of a name

ELECTRODE = {"R_s": 6.0, "noise_sd": 0.1}  # Mohm, which no bridge takes away; mV
RESOLUTION = {"V": 1e-5, "I": 1e-12}  # V and A in one bit

NOISE = {"repeats": 5, "zero_ms": 200.0, "duration_ms": 5000.0, "tau_ms": 3.0, "mean": 0.16, "sd": 0.2}  # nA
NOISE |= {"modulation": 0.5, "modulation_hz": 0.2}  # of the s.d., as in Pozzorini et al. (2015)
STEPS = {"n": 11, "first": -0.1, "increment": 0.06, "zero_ms": 100.0, "step_ms": 500.0, "after_ms": 200.0}  # nA
# What each file has: a cell, and its currents.
RECORDINGS = {
    "recording": ("regular", CELL, NOISE, STEPS),
    "recording_fast_spiking": ("fast", CELL | FAST_SPIKING, NOISE | {"repeats": 3, "mean": 0.08}, STEPS | {"n": 0}),
}

# Na and K: as in make_hh_traces.py. M: Pospischil et al. (2008). h: Kole et al. (2006). Noise of the synapses:
# Destexhe et al. (2001), two Ornstein-Uhlenbeck conductances, here weak: 0.6 mV s.d. at rest.
EQUATIONS = """
dV/dt = (I(t, i) - I_L - I_Na - I_K - I_M - I_h - I_syn) / C : volt
I_L = gL*(V - EL) : amp
I_Na = gNa*m**3*h*(V - ENa) : amp
I_K = gK*n**4*(V - EK) : amp
I_M = gM*p*(V - EK) : amp
I_h = gh*q*(V - Eh) : amp
I_syn = clip(ge + ge_sd*x_e, 0*nS, inf*nS)*(V - Ee) + clip(gi + gi_sd*x_i, 0*nS, inf*nS)*(V - Ei) : amp
dm/dt = (0.32*4/exprel((13 - v)/4)*(1 - m) - 0.28*5/exprel((v - 40)/5)*m) / ms : 1
dh/dt = (0.128*exp((17 - v)/18)*(1 - h) - 4/(1 + exp((40 - v)/5))*h) / ms : 1
dn/dt = (0.032*5/exprel((15 - v)/5)*(1 - n) - 0.5*exp((10 - v)/40)*n) / ms : 1
dp/dt = (1/(1 + exp(-(w + 35)/10)) - p) * (3.3*exp((w + 35)/20) + exp(-(w + 35)/20)) / tau_max : 1
dq/dt = (0.00643*11.9/exprel((w + 154.9)/11.9)*(1 - q) - 0.193*exp(w/33.1)*q) / ms : 1
x_e : 1
x_i : 1
v = (V - V_T)/mV : 1
w = V/mV : 1
"""
# Exact, with unit variance. Not by xi in the equations: Brian2's schemes for noise take the drift by Euler, which moves
# spikes of the steps by up to 6 ms at this dt.
NOISE_OF_SYNAPSES = """
x_e = exp(-dt/tau_e)*x_e + sqrt(1 - exp(-2*dt/tau_e))*randn()
x_i = exp(-dt/tau_i)*x_i + sqrt(1 - exp(-2*dt/tau_i))*randn()
"""


# ---- The currents (nA), one sweep a column, in whole pA: the file has exactly what the cell was given ---------------


def samples(duration_ms):
    return round(duration_ms / SAMPLE_MS)


def noise_current(noise):
    """One Ornstein-Uhlenbeck current for all repeats (T, repeats), whose s.d. rises and falls slowly."""
    rng = np.random.default_rng(SEEDS["current"])
    n_zero, n_sample = samples(noise["zero_ms"]), samples(noise["duration_ms"])
    decay = np.exp(-SAMPLE_MS / noise["tau_ms"])
    kicks = np.sqrt(1 - decay**2) * rng.standard_normal(n_sample)
    ou = np.zeros(n_sample)
    for k in range(n_zero + 1, n_sample):
        ou[k] = decay * ou[k - 1] + kicks[k]
    t = (np.arange(n_sample) - n_zero) * SAMPLE_MS * 1e-3
    sd = noise["sd"] * (1 + noise["modulation"] * np.sin(2 * np.pi * noise["modulation_hz"] * t))
    current = np.where(t >= 0, noise["mean"] + sd * ou, 0.0)
    return np.repeat(np.round(current, 3)[:, None], noise["repeats"], axis=1)


def step_currents(steps):
    """Steps in equal increments (T, n), from one that hyperpolarises."""
    start, stop = samples(steps["zero_ms"]), samples(steps["zero_ms"] + steps["step_ms"])
    current = np.zeros((stop + samples(steps["after_ms"]), steps["n"]))
    current[start:stop] = steps["first"] + steps["increment"] * np.arange(steps["n"])
    return np.round(current, 3)


# ---- The cell and its electrode -------------------------------------------------------------------------------------


def simulate(current, cell):
    """Potentials (T, n_sweep) in mV of a cell, by its constants, under currents (nA).

    Each sweep starts at rest and has noise of its own; sample k is the potential before current k acts.
    """
    n_rest = samples(REST_MS)
    injected = np.concatenate([np.zeros((n_rest, current.shape[1])), current])
    constants = {name: value * UNITS[name[0]] for name, value in cell.items()}
    constants["I"] = b2.TimedArray(injected * b2.nA, dt=SAMPLE_MS * b2.ms)
    b2.defaultclock.dt = DT_MS * b2.ms
    group = b2.NeuronGroup(current.shape[1], EQUATIONS, method="rk4", namespace=constants)
    group.run_regularly(NOISE_OF_SYNAPSES, dt=DT_MS * b2.ms)
    group.V = -70 * b2.mV
    group.h, group.p = 1, 0.03  # the other gates are closed at rest
    monitor = b2.StateMonitor(group, "V", record=True, dt=SAMPLE_MS * b2.ms, when="start")
    b2.Network(group, monitor).run(len(injected) * SAMPLE_MS * b2.ms)
    return np.asarray(monitor.V / b2.mV).T[n_rest:]


def record(V, current, rng):
    """What the amplifier shows (mV): the drop over the electrode is in it, and white noise."""
    return V + ELECTRODE["R_s"] * current + ELECTRODE["noise_sd"] * rng.standard_normal(V.shape)


# ---- What it does ---------------------------------------------------------------------------------------------------


def spike_times(V, level=0.0, rearm=10.0):
    """Times (ms) of the upward crossings of a level by one trace; the next counts once V was `rearm` mV below it."""
    times, armed = [], True
    for k, value in enumerate(V):
        if armed and value >= level:
            times.append(k * SAMPLE_MS)
        armed = value < level and (armed or value < level - rearm)
    return np.array(times)


def coincidences(a, b, window):
    """Pairs of a spike of each train that are at most `window` (ms) apart; each spike is in one pair at most."""
    i = j = pairs = 0
    while i < len(a) and j < len(b):
        if abs(a[i] - b[j]) <= window:
            i, j, pairs = i + 1, j + 1, pairs + 1
        elif a[i] < b[j]:
            i += 1
        else:
            j += 1
    return pairs


def reliability(trains, window):
    """Mean over pairs of repeats of their coincidences / their mean spike count; 1 where they agree."""
    pairs = [(a, b) for k, a in enumerate(trains) for b in trains[k + 1 :]]
    return float(np.mean([2 * coincidences(a, b, window) / (len(a) + len(b)) for a, b in pairs]))


def rates(times):
    """Rates (Hz) in the first two intervals between spikes and in the last two: their fall is the adaptation."""
    intervals = np.diff(times)
    return [round(1e3 / float(part.mean()), 1) for part in (intervals[:2], intervals[-2:])]


def passive(cell):
    """Rest (mV), input resistance at the end of 500 ms and at its peak (Mohm), membrane time constant (ms).

    By a step of -10 pA and without the noise. The time constant is the time to 1 - 1/e of the peak: later the h and
    M currents pull the potential back.
    """
    current = np.zeros((samples(600.0), 1))
    current[samples(100.0) :] = -0.01
    V = simulate(current, cell | {"ge_sd": 0.0, "gi_sd": 0.0})[:, 0]
    drop = V[samples(100.0)] - V[samples(100.0) :]
    return {
        "rest_mV": round(float(V[samples(100.0)]), 2),
        "input_resistance_Mohm": round(float(drop[-1] / 0.01), 1),
        "peak_resistance_Mohm": round(float(drop.max() / 0.01), 1),
        "time_constant_ms": round(float(np.argmax(drop >= (1 - np.exp(-1)) * drop.max()) * SAMPLE_MS), 2),
    }


def measured(noise, steps, cell, driven_s):
    """What the recorded potentials (T, n_sweep) show, and the cell without noise and electrode."""
    repeats, family = ([spike_times(trace) for trace in V.T] for V in (noise, steps))
    return passive(cell) | {
        "spikes_noise": [len(times) for times in repeats],
        "spikes_steps": [len(times) for times in family],
        "rate_noise_Hz": round(float(np.mean([len(times) for times in repeats])) / driven_s, 2),
        "reliability_4ms": round(reliability(repeats, 4.0), 3),
        "reliability_2ms": round(reliability(repeats, 2.0), 3),
        "rates_last_step_Hz": rates(family[-1]) if family else [],
    }


# ---- The file -------------------------------------------------------------------------------------------------------


def stored(values, unit):
    """Whole multiples of the resolution as int16, compressed."""
    data = np.round(values / RESOLUTION[unit]).astype(np.int16)
    return H5DataIO(data, compression="gzip", compression_opts=9, shuffle=True)


def named(currents, potentials):
    """The sweeps in the order of the file: name, what it is, current (nA), potential (mV)."""
    sweeps = []
    for k in range(currents["noise"].shape[1]):
        what = "frozen noise: the same Ornstein-Uhlenbeck current in every repeat"
        sweeps.append((f"noise_{k}", what, currents["noise"][:, k], potentials["noise"][:, k]))
    for k in range(currents["step"].shape[1]):
        amplitude = STEPS["first"] + k * STEPS["increment"]
        what = f"step of {amplitude:.2f} nA for {STEPS['step_ms']:g} ms"
        sweeps.append((f"step_{k:02}", what, currents["step"][:, k], potentials["step"][:, k]))
    return sweeps


def write(path, sweeps, kind):
    """One NWB file of the sweeps of `named`; a table in it says which current belongs to which potential."""
    begin = datetime.datetime(2025, 1, 1, tzinfo=datetime.UTC)
    file = NWBFile(
        session_description=f"Simulated: a {kind}-spiking cell of cortex with noise of its own, current clamp",
        identifier=f"simulated-{kind}-spiking-cell-1",
        session_start_time=begin,
        file_create_date=begin,
        experiment_description="No animal: made by data/make_recording.py with Brian2; its constants are in "
        f"{path.stem}.json",
        keywords=["simulated", "intracellular", "current clamp"],
    )
    device = file.create_device(name="amplifier", description="Simulated: white noise of 0.1 mV s.d., no filter")
    electrode = file.create_icephys_electrode(
        name="electrode",
        device=device,
        description="Simulated: a resistance that is not compensated (bridge balance off)",
        resistance=f"{ELECTRODE['R_s']:g} Mohm",
    )
    for number, (name, what, current, V) in enumerate(sweeps):
        common = {"electrode": electrode, "starting_time": number * GAP_S, "rate": 1e3 / SAMPLE_MS}
        common |= {"sweep_number": np.uint32(number), "stimulus_description": what, "gain": 1.0}
        stimulus = CurrentClampStimulusSeries(
            name=f"{name}_current",
            description="Simulated: the current through the electrode",
            data=stored(current * 1e-9, "I"),
            conversion=RESOLUTION["I"],
            **common,
        )
        response = CurrentClampSeries(
            name=name,
            description="Simulated: potential that the amplifier shows, with the drop over the electrode and noise",
            data=stored(V * 1e-3, "V"),
            conversion=RESOLUTION["V"],
            resolution=RESOLUTION["V"],
            bias_current=0.0,
            bridge_balance=0.0,
            capacitance_compensation=0.0,
            **common,
        )
        file.add_intracellular_recording(electrode=electrode, stimulus=stimulus, response=response, id=number)
    with NWBHDF5IO(path, "w") as io:
        io.write(file)


def make(name):
    """One of RECORDINGS, with a file of what it is; returns what it shows."""
    began, (kind, cell, noise, steps) = time.perf_counter(), RECORDINGS[name]
    b2.seed(SEEDS["cell"])
    rng = np.random.default_rng(SEEDS["amplifier"])
    currents = {"noise": noise_current(noise)} | ({"step": step_currents(steps)} if steps["n"] else {})
    potentials = {what: record(simulate(current, cell), current, rng) for what, current in currents.items()}
    for arrays in (currents, potentials):
        arrays.setdefault("step", np.zeros((1, 0)))
    path = FOLDER / f"{name}.nwb"
    write(path, named(currents, potentials), kind)
    driven_s = (noise["duration_ms"] - noise["zero_ms"]) * 1e-3
    currents_of = "Traub Na and K, leak, M and h currents" if kind == "regular" else "Traub Na and K, leak"
    facts = {
        "what": f"simulated {kind}-spiking cell of cortex: {currents_of}, synaptic noise",
        "units": "nF, uS, mV, ms, nA, Mohm",
        "cell": cell,
        "electrode": ELECTRODE,
        "noise": noise,
        "steps": steps,
        "dt_ms": DT_MS,
        "sample_ms": SAMPLE_MS,
        "rest_before_ms": REST_MS,
        "resolution_V_A": RESOLUTION,
        "seeds": SEEDS,
        "measured": measured(potentials["noise"], potentials["step"], cell, driven_s),
        "versions": {name: importlib.metadata.version(name) for name in ("brian2", "cython", "numpy", "pynwb", "h5py")}
        | {"python": platform.python_version()},
    }
    path.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")
    print(json.dumps(facts["measured"], indent=2))
    print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB, made in {time.perf_counter() - began:.0f} s")


def main():
    b2.prefs.codegen.target = "cython"  # seconds, where numpy takes an hour and draws other noise
    for name in sys.argv[1:]:
        make(name)


if __name__ == "__main__":
    main()
