"""Recordings as files have them, their spikes, and how well a model predicts them."""

import runs  # isort: skip  (first: it configures JAX)

import csv
import math

import brainunit as u
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

# ---- Spike trains ---------------------------------------------------------------------------------------------------


def detect_spikes(V, level, rearm=10.0):
    """Upward crossings of a level by recorded potentials.

    The next one counts once V has been `rearm` below the level: noise does not make one spike several.

    Args:
        V: shape (T, n_trace) (mV).
        level, rearm: (mV).

    Returns:
        Array (T, n_trace) of 0 and 1; as in `simulate`, entry k is for a crossing between samples k and k + 1.
    """
    sample = np.arange(len(V))[:, None]
    last_above = np.maximum.accumulate(np.where(level <= V, sample, -1))
    last_below = np.maximum.accumulate(np.where(level - rearm > V, sample, -1))
    armed = (last_below > last_above) | (last_above < 0)
    return np.append(armed[:-1] & (level <= V[1:]), np.zeros_like(armed[:1]), axis=0).astype(float)


def van_rossum_distance(model, data, dt, tau):
    """Squared distance of spike trains (van Rossum 2001), the mean over traces of (1 / tau) sum_t (f - g)^2 dt.

    f and g are the trains filtered with exp(-t / tau). A spike against none costs 1/2, less what the end cuts off.

    Args:
        model, data: spike trains, shape (T, n_trace); those of the model may be soft.
        dt, tau: time step and time constant (ms).

    Returns:
        A scalar, differentiable in both trains.
    """
    ratio = dt.to_decimal(u.ms) / tau.to_decimal(u.ms)
    decay = math.exp(-ratio)

    def step(filtered, x):
        filtered = decay * filtered + x
        return filtered, filtered

    _, filtered = jax.lax.scan(step, jnp.zeros_like(model[0] - data[0]), model - data)
    return ratio * jnp.mean(jnp.sum(filtered**2, axis=0))


def coincidence_factor(model, data, dt, delta=4.0 * u.ms):
    """Coincidence factor Gamma of Jolivet et al. (2008) between two spike trains.

    Gamma = (N_coinc - 2 r_model delta N_data) / (N_data + N_model) * 2 / (1 - 2 r_model delta)

    is 1 for trains that agree within delta, 0 for what a Poisson train of the model's rate r_model would reach by
    chance, and negative below. A spike takes part in at most one coincidence.

    Args:
        model, data: spike trains, shape (T,), 0 or 1.
        dt, delta: time step and one side of the coincidence window (ms).

    Returns:
        A float; NaN where Gamma is undefined: no spike in either train, or 2 r_model delta >= 1.
    """
    window = delta.to_decimal(u.ms) / dt.to_decimal(u.ms)
    t_model, t_data = np.flatnonzero(model), np.flatnonzero(data)
    chance = 2 * window * len(t_model) / len(model)
    if len(t_model) + len(t_data) == 0 or chance >= 1:
        return math.nan
    n_coinc = i = j = 0
    while i < len(t_model) and j < len(t_data):
        lag = t_model[i] - t_data[j]
        match = abs(lag) <= window + 1e-6
        n_coinc, i, j = n_coinc + match, i + (match or lag < 0), j + (match or lag > 0)
    return float((n_coinc - chance * len(t_data)) / (len(t_model) + len(t_data)) * 2 / (1 - chance))


# ---- Files ----------------------------------------------------------------------------------------------------------

CURRENT_UNITS = {"A": 1e9, "uA": 1e3, "nA": 1.0, "pA": 1e-3}  # in nA

VOLTAGE_UNITS = {"V": 1e3, "mV": 1.0}  # in mV


def read_traces(path):
    """Numbers (T, n_trace) of a CSV file: a header of sample numbers, then a line a trace behind an index column."""
    try:
        with open(path, newline="") as file:
            header, *rows = [row for row in csv.reader(file) if row] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise runs.BadInput(f"{path}: {getattr(error, 'strerror', 'not CSV')}; expected a CSV file of traces") from None
    if not rows or len(header) < 2 or header[1:] != [str(k) for k in range(len(header) - 1)]:
        raise runs.BadInput(
            f"{path}: expected a header of sample numbers (,0,1,2,...) and then an index and a trace a line"
        )
    for i, row in enumerate(rows):
        if len(row) != len(header):
            raise runs.BadInput(
                f"{path}: found {len(row) - 1} samples in trace {i}, expected {len(header) - 1} as in the header"
            )
    values = np.array([[runs.to_number(text) for text in row[1:]] for row in rows]).T
    for sample, trace in np.argwhere(~np.isfinite(values)):
        found = rows[trace][sample + 1]
        raise runs.BadInput(
            f"{path}: found {found!r} at sample {sample} of trace {trace}, expected a finite runs.number"
        )
    return values


def read_recording(current_path, voltage_path, args):
    """Currents (nA) and potentials (mV) of a recording, each (T, n_trace); no potentials without a path to them."""
    current = read_traces(current_path) * CURRENT_UNITS[args.current_unit]
    if voltage_path is None:
        return current, None
    V = read_traces(voltage_path) * VOLTAGE_UNITS[args.voltage_unit]
    if current.shape != V.shape:
        found, expected = (f"{x.shape[1]} traces of {x.shape[0]} samples" for x in (V, current))
        raise runs.BadInput(f"{voltage_path}: found {found}, expected {expected} as in {current_path}")
    if not 1 < np.abs(V).max() < 500:
        raise runs.BadInput(
            f"{voltage_path}: found potentials up to {np.abs(V).max():.3g} mV, read in {args.voltage_unit}; expected "
            "1 to 500 mV, as neurons have (is --voltage_unit right?)"
        )
    return current, V


def read_recordings(args, shipped):
    """{"fit" or "validation": (current, V)} of the files that the arguments name, or else of those in `shipped`.

    Where a target is simulated, currents are enough and V is None.
    """
    own = {"fit": [args.current, args.voltage], "validation": [args.validation_current, args.validation_voltage]}
    paths = own if any(own["fit"]) else shipped | {name: pair for name, pair in own.items() if any(pair)}
    for name, (current, voltage) in paths.items():
        prefix = "validation_" * (name == "validation")
        if (voltage and not current) or (current and not voltage and args.target == "recorded"):
            found = "voltage" if voltage else "current"
            raise runs.BadInput(
                f"argument --{prefix}{found}: found it alone, expected --{prefix}current and --{prefix}voltage"
            )
    if args.target == "recorded" and "fit" not in paths:
        raise runs.BadInput("argument --target: found recorded without a recording, expected --current and --voltage")
    if args.target == "simulated":
        paths = {name: [current, None] for name, (current, _) in paths.items()}
    return {name: read_recording(*pair, args) for name, pair in paths.items() if any(pair)}


def make_targets(args, traces, free_run, known, seed):
    """{"fit" or "validation": dict of current (nA), V (mV) and spikes}, each (T, n_trace).

    Args:
        traces: {name: (current, V)}; where V is None, it and the spikes are those of free_run(known, current).
        seed: of the noise and the spike jitter, which the traces of the fit get.
    """
    targets, rng = {}, np.random.default_rng(seed)
    for name, (current, V) in traces.items():
        V, spikes = free_run(known, current) if V is None else (V, None)
        if name == "fit":
            V = V + args.noise_std * rng.standard_normal(V.shape)
        spikes = detect_spikes(V, args.spike_level) if spikes is None else spikes
        if name == "fit" and args.spike_jitter:
            step, trace = np.nonzero(spikes)
            shift = np.rint(rng.normal(0, args.spike_jitter / args.dt, len(step))).astype(int)
            spikes = np.zeros_like(spikes)
            spikes[np.clip(step + shift, 0, len(spikes) - 1), trace] = 1
        targets[name] = dict(current=current, V=V, spikes=spikes)
    n_step, highest = len(targets["fit"]["V"]), targets["fit"]["V"].max()
    if (args.n_point or 0) > n_step:
        raise runs.BadInput(
            f"argument --n_point: found {args.n_point}, expected at most the {n_step} samples of a trace"
        )
    if args.fit_target == "spike" and not targets["fit"]["spikes"].any():
        found = f"spike and potentials up to {highest:.3g} mV, spikes being crossings of {args.spike_level:g} mV"
        raise runs.BadInput(f"argument --fit_target: found {found} (--spike_level), expected spikes")
    return targets


# ---- Figures --------------------------------------------------------------------------------------------------------


def plot_traces(current, dt, **potentials):
    """Currents (nA) over potentials (mV), all (T, n_trace): the first black, the second orange; the first 20 traces."""
    t, n_trace = np.arange(len(current)) * dt, min(20, current.shape[1])
    layout = dict(sharex=True, sharey="row", squeeze=False, height_ratios=(1, 3), layout="constrained")
    figure, axes = plt.subplots(2, n_trace, figsize=(1 + (runs.WIDTH - 1) / 5 * n_trace, 2.8), **layout)
    for trace, (top, bottom) in enumerate(axes.T):
        top.plot(t, current[:, trace], color="0.4", lw=1)
        top.set_title(f"trace {trace}")
        for (label, V), style in zip(potentials.items(), ("k-", "C1--"), strict=False):
            bottom.plot(t, V[:, trace], style, lw=1, label=label)
        bottom.set_xlabel("t (ms)")
    axes[0, 0].set_ylabel("I (nA)")
    axes[1, 0].set_ylabel("V (mV)")
    figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower right", ncols=2)
    return figure
