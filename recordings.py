"""Recordings as files have them, the spikes in them, and how well a model predicts both.

Currents are in nA, potentials in mV and times in ms; arrays have the shape (T, n_trace). Sample k is at time k dt:
potentials are those before the current of the same sample acts.
"""

import csv
import dataclasses
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import runs
from runs import BadInput, number

import brainunit as u
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.typing import ArrayLike

CURRENT_UNITS = {"A": 1e9, "uA": 1e3, "nA": 1.0, "pA": 1e-3}  # in nA
VOLTAGE_UNITS = {"V": 1e3, "mV": 1.0}  # in mV


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Recording:
    """Traces of a neuron, or of a model, under currents; as a pytree, all but dt are arrays.

    Args:
        current: (nA).
        V: potentials (mV), unless they are still to be simulated.
        spikes: 1 in the step in which a spike begins, else 0.
        mask: 1 where the error of the potentials counts, else 0.
        dt: time between samples (ms).
    """

    current: ArrayLike
    V: ArrayLike | None = None
    spikes: ArrayLike | None = None
    mask: ArrayLike | None = None
    dt: float = dataclasses.field(default=0.1, metadata=dict(static=True))


FreeRun = Callable[[dict[str, u.Quantity], ArrayLike], tuple[np.ndarray, np.ndarray]]


# ---- Spike trains ---------------------------------------------------------------------------------------------------


def detect_spikes(V: np.ndarray, level: float, rearm: float = 10.0) -> np.ndarray:
    """Upward crossings of a level by recorded potentials.

    The next one counts once V has been `rearm` below the level: noise does not make one spike several.

    Args:
        V: shape (T, n_trace) (mV).
        level, rearm: (mV).

    Returns:
        Array (T, n_trace) of 0 and 1; as in `utils.simulate`, entry k is for a crossing between samples k and k + 1.
    """
    sample = np.arange(len(V))[:, None]
    last_above = np.maximum.accumulate(np.where(level <= V, sample, -1))
    last_below = np.maximum.accumulate(np.where(level - rearm > V, sample, -1))
    armed = (last_below > last_above) | (last_above < 0)
    return np.append(armed[:-1] & (level <= V[1:]), np.zeros_like(armed[:1]), axis=0).astype(float)


def van_rossum_distance(model: ArrayLike, data: ArrayLike, dt: u.Quantity, tau: u.Quantity) -> jax.Array:
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


def coincidence_factor(model: np.ndarray, data: np.ndarray, dt: u.Quantity, delta: u.Quantity = 4.0 * u.ms) -> float:
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


@dataclasses.dataclass(frozen=True)
class Score:
    """How well a model that runs freely predicts a recording; lists have a number a trace.

    Args:
        rmse: root mean square error of the potentials (mV).
        gamma: coincidence factors.
        n_spikes, n_spikes_model, n_spikes_same_step: spikes of the recording, of the model, and of both in one step.
    """

    rmse: float
    gamma: list[float]
    n_spikes: list[int]
    n_spikes_model: list[int]
    n_spikes_same_step: list[int]


def score(recording: Recording, V: np.ndarray, spikes: np.ndarray, delta: u.Quantity = 4.0 * u.ms) -> Score:
    """The score of potentials V (mV) and spikes of a model, with a coincidence window of delta (ms) to either side."""
    trains = zip(spikes.T, recording.spikes.T, strict=True)
    return Score(
        rmse=float(np.sqrt(np.mean((V - recording.V) ** 2))),
        gamma=[coincidence_factor(*pair, recording.dt * u.ms, delta) for pair in trains],
        n_spikes=recording.spikes.sum(0).astype(int).tolist(),
        n_spikes_model=spikes.sum(0).astype(int).tolist(),
        n_spikes_same_step=(spikes * recording.spikes).sum(0).astype(int).tolist(),
    )


# ---- Files ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the traces come from: the arguments of `add_data_arguments`."""

    target: str
    dt: float
    current: Path | None = None
    voltage: Path | None = None
    validation_current: Path | None = None
    validation_voltage: Path | None = None
    current_unit: str = "A"
    voltage_unit: str = "mV"
    noise_std: float = 0.0
    spike_jitter: float = 0.0
    spike_level: float = 0.0

    @property
    def own(self) -> bool:
        """Whether there are files of the user's to fit."""
        return bool(self.current or self.voltage)


def add_data_arguments(parser: runs.Parser) -> None:
    """Arguments that say what is fitted: files, their units, and what is added to a simulated target."""
    add = parser.add_argument_group("data").add_argument
    target = "fit recorded traces (so if --voltage is given), or the model's own response to the currents at the "
    target += "paper's parameters"
    add("--target", choices=("recorded", "simulated"), help=target)
    add("--current", type=Path, metavar="CSV", help="currents: a header of sample numbers, an index and a trace a line")
    add("--voltage", type=Path, metavar="CSV", help="recorded potentials, in the same layout")
    for kind in ("current", "voltage"):
        help = f"{kind} traces for validation only; without this argument, those that belong to the default target"
        add(f"--validation_{kind}", type=Path, metavar="CSV", help=help)
    add("--dt", type=number(float, above=0), help="time between samples, and step of the simulation (ms)")
    add("--current_unit", choices=CURRENT_UNITS, default="A", help="unit of the current files")
    add("--voltage_unit", choices=VOLTAGE_UNITS, default="mV", help="unit of the voltage files")
    add("--noise_std", type=number(float, low=0), default=0.0, help="s.d. of white noise added to the target (mV)")
    jitter = "s.d. of a normal jitter added to the spike times of the target, rounded to steps (ms)"
    add("--spike_jitter", type=number(float, low=0), default=0.0, help=jitter)
    spike_level = "a spike of recorded potentials is an upward crossing of it (mV)"
    add("--spike_level", type=number(float), default=0.0, help=spike_level)


def read_csv(path: Path) -> np.ndarray:
    """Numbers (T, n_trace) of a CSV file: a header of sample numbers, then a line a trace behind an index column."""
    try:
        with open(path, newline="") as file:
            header, *rows = [row for row in csv.reader(file) if row] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path}: {getattr(error, 'strerror', 'not CSV')}; expected a CSV file of traces") from None
    if not rows or len(header) < 2 or header[1:] != [str(k) for k in range(len(header) - 1)]:
        raise BadInput(f"{path}: expected a header of sample numbers (,0,1,2,...) and then an index and a trace a line")
    for i, row in enumerate(rows):
        if len(row) != len(header):
            expected = f"expected {len(header) - 1} as in the header"
            raise BadInput(f"{path}: found {len(row) - 1} samples in trace {i}, {expected}")
    values = np.array([[runs.to_number(text) for text in row[1:]] for row in rows]).T
    for sample, trace in np.argwhere(~np.isfinite(values)):
        text = rows[trace][sample + 1]
        raise BadInput(f"{path}: found {text!r} at sample {sample} of trace {trace}, expected a finite number")
    return values


# {ending: path -> numbers (T, n_trace)}: a file format is one function here. Other endings are read as CSV.
READERS: dict[str, Callable[[Path], np.ndarray]] = {".csv": read_csv}


def read_traces(path: Path) -> np.ndarray:
    """Numbers (T, n_trace) of a file of traces, by the reader of its ending."""
    return READERS.get(Path(path).suffix.lower(), read_csv)(path)


def read_recording(source: Source, current_path: Path, voltage_path: Path | None = None) -> Recording:
    """The recording of one file of currents and one of potentials, in the units of the source; V may be missing."""
    current = read_traces(current_path) * CURRENT_UNITS[source.current_unit]
    if voltage_path is None:
        return Recording(current, dt=source.dt)
    V = read_traces(voltage_path) * VOLTAGE_UNITS[source.voltage_unit]
    if current.shape != V.shape:
        ours, expected = (f"{x.shape[1]} traces of {x.shape[0]} samples" for x in (V, current))
        raise BadInput(f"{voltage_path}: found {ours}, expected {expected} as in {current_path}")
    if not 1 < np.abs(V).max() < 500:
        raise BadInput(
            f"{voltage_path}: found potentials up to {np.abs(V).max():.3g} mV, read in {source.voltage_unit}; expected "
            "1 to 500 mV, as neurons have (is --voltage_unit right?)"
        )
    return Recording(current, V, dt=source.dt)


def read_recordings(source: Source, shipped: Mapping[str, tuple[Path, Path]]) -> dict[str, Recording]:
    """{"fit" or "validation": recording} of the files that the source names, or else of those in `shipped`.

    Where a target is simulated, currents are enough and potentials are not read.
    """
    own = {"fit": (source.current, source.voltage)}
    own["validation"] = (source.validation_current, source.validation_voltage)
    paths = own if source.own else {**shipped, **{name: pair for name, pair in own.items() if any(pair)}}
    for name, (current, voltage) in paths.items():
        prefix = "validation_" * (name == "validation")
        if (voltage and not current) or (current and not voltage and source.target == "recorded"):
            given = "voltage" if voltage else "current"
            raise BadInput(
                f"argument --{prefix}{given}: found it alone, expected --{prefix}current and --{prefix}voltage"
            )
    if source.target == "recorded" and "fit" not in paths:
        raise BadInput("argument --target: found recorded without a recording, expected --current and --voltage")
    if source.target == "simulated":
        paths = {name: (current, None) for name, (current, _) in paths.items()}
    return {name: read_recording(source, *pair) for name, pair in paths.items() if any(pair)}


def recorded(current: np.ndarray, V: np.ndarray, dt: float, spike_level: float = 0.0) -> Recording:
    """The recording of currents (nA) and potentials (mV), each (T, n_trace), every dt (ms), all of which count.

    Spikes are upward crossings of spike_level (mV).
    """
    return Recording(current, V, detect_spikes(V, spike_level), np.ones_like(V), dt=dt)


# ---- Targets --------------------------------------------------------------------------------------------------------


def make_targets(
    source: Source, traces: Mapping[str, Recording], free_run: FreeRun, known: dict[str, u.Quantity], seed: int
) -> dict[str, Recording]:
    """{"fit" or "validation": recording with potentials and spikes}.

    Args:
        traces: those that are read; where V is None, it and the spikes are those of free_run(known, current).
        free_run: (parameters, current) -> V (mV) and spikes.
        seed: of the noise and the spike jitter, which the traces of the fit get.
    """
    targets, rng = {}, np.random.default_rng(seed)
    for name, recording in traces.items():
        V, spikes = (recording.V, None) if recording.V is not None else free_run(known, recording.current)
        if name == "fit":
            V = V + source.noise_std * rng.standard_normal(V.shape)
        spikes = detect_spikes(V, source.spike_level) if spikes is None else spikes
        if name == "fit" and source.spike_jitter:
            step, trace = np.nonzero(spikes)
            shift = np.rint(rng.normal(0, source.spike_jitter / recording.dt, len(step))).astype(int)
            spikes = np.zeros_like(spikes)
            spikes[np.clip(step + shift, 0, len(spikes) - 1), trace] = 1
        targets[name] = dataclasses.replace(recording, V=V, spikes=spikes, mask=np.ones_like(V))
    return targets


def every(recording: Recording, n_point: int | None) -> Recording:
    """The recording with only every (T // n_point)-th of its T samples left to count."""
    n_step = len(recording.V)
    if (n_point or 0) > n_step:
        raise BadInput(f"argument --n_point: found {n_point}, expected at most the {n_step} samples of a trace")
    mask = np.zeros_like(recording.V)
    mask[:: n_step // (n_point or n_step)] = 1
    return dataclasses.replace(recording, mask=recording.mask * mask)


def without_spikes(recording: Recording, t_blank: float) -> Recording:
    """The recording with no sample left to count within t_blank (ms) of a spike."""
    n_blank, mask = round(t_blank / recording.dt), recording.mask.copy()
    for step, trace in np.argwhere(recording.spikes):
        mask[max(step - n_blank, 0) : step + n_blank + 2, trace] = 0
    return dataclasses.replace(recording, mask=mask)


def require_spikes(recording: Recording, spike_level: float) -> None:
    """Raise `BadInput` where there are none, for a fit of spikes."""
    if not recording.spikes.any():
        highest = f"spike and potentials up to {recording.V.max():.3g} mV, spikes being crossings of {spike_level:g} mV"
        raise BadInput(f"argument --fit_target: found {highest} (--spike_level), expected spikes")


# ---- Figures --------------------------------------------------------------------------------------------------------


def plot_traces(recording: Recording, **potentials: np.ndarray) -> plt.Figure:
    """Currents over potentials (mV), all (T, n_trace): the first black, the second orange; the first 20 traces."""
    current, dt = recording.current, recording.dt
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
