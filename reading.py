"""Sweeps from the files of a lab: currents, potentials and spike times that belong together, and whether they can be.

What is ambiguous is refused, not guessed.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import runs
from runs import BadInput, to_number

import numpy as np

from file_formats import COMMAND, DEFAULTS, EXAMPLE, LONGER, QUANTITY, UNITS, Signal, bad, listed, read_signals

Sweep = tuple[str, np.ndarray, str, np.ndarray | None]  # current and potentials (nA, mV), each behind its name


@dataclasses.dataclass(frozen=True)
class Files:
    """The arguments that name files, and what is in those that do not say.

    Args:
        recording: files that have both; each adds sweeps, as those of current and voltage do.
        dt: (ms); like the units, of files that do not say.
        current_channel, voltage_channel: names of signals, where a file has several of a kind.
        prefix: "validation_" or nothing, for the names of arguments in messages.
    """

    recording: Sequence[Path] = ()
    current: Sequence[Path] = ()
    voltage: Sequence[Path] = ()
    spike_times: Path | None = None
    dt: float | None = None
    current_unit: str | None = None
    voltage_unit: str | None = None
    current_channel: str | None = None
    voltage_channel: str | None = None
    prefix: str = ""

    @property
    def given(self) -> bool:
        """Whether any file is named."""
        return bool(self.recording or self.current or self.voltage or self.spike_times)


@dataclasses.dataclass(frozen=True)
class Sweeps:
    """Currents (nA) and potentials (mV, NaN where missing), an array (T_i,) a sweep, every dt (ms).

    Args:
        spike_times: (ms from the start of the sweep).
        names: "FILE" or "FILE, sweep 3", from 0.
        said: who says what of units and sampling, line by line.
    """

    current: list[np.ndarray]
    V: list[np.ndarray] | None
    spike_times: list[np.ndarray] | None
    dt: float
    names: list[str]
    said: list[str]


# ---- Sweeps ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Traces:
    """What one file adds of one kind: (name, values in nA or mV) of every sweep, dt (ms), and who says the unit.

    Args:
        start: what the file calls the time of the first sample (ms).
        notes: what else is to be said of it.
    """

    path: Path
    sweeps: list[tuple[str, np.ndarray]]
    dt: float | None
    said: tuple[str, str]  # what, and who says it
    start: float = 0.0
    notes: tuple[str, ...] = ()


def chosen_signal(path: Path, signals: Sequence[Signal], kind: str, files: Files, alone: bool) -> Signal:
    """The signal of a kind, by its name if one is given; alone: the file is said to have this kind only."""
    name, other = getattr(files, f"{kind}_channel"), next(k for k in QUANTITY if k != kind)
    of_kind = [s for s in signals if s.kind == kind] or [s for s in signals if s.kind is None and (alone or name)]
    both = f"--{files.prefix}current and --{files.prefix}voltage"
    if not of_kind and alone:
        found = f"{QUANTITY[other]} ({signals[0].unit or signals[0].name})"
        raise bad(path, found, f"{QUANTITY[kind]} for --{files.prefix}{kind} (are {both} swapped?)")
    if not of_kind:
        found = f"no {QUANTITY[kind]} among {listed([s.name for s in signals])}"
        raise bad(path, found, f"both, in text by {EXAMPLE}, else {both}")
    chosen = [s for s in of_kind if name is None or s.name == name]
    if len(chosen) != 1:
        expected = f"one of the {QUANTITY[kind]} of {path}: {listed([s.name for s in of_kind])}"
        raise bad(f"argument --{kind}_channel", name or "nothing", expected)
    return chosen[0]


def traces_of(path: Path, signals: Sequence[Signal], kind: str, files: Files, alone: bool) -> Traces:
    """The traces of a kind in nA or mV, by the unit that the file, the argument or the default says."""
    path, given = Path(path), getattr(files, f"{kind}_unit")
    signal = chosen_signal(path, signals, kind, files, alone)
    if signal.unit and given and given != signal.unit:
        raise bad(f"argument --{kind}_unit", given, f"nothing, for {path} says {signal.unit}; leave it out")
    unit = signal.unit or given or DEFAULTS[kind]
    said = (f"{kind}: {unit}", path.name if signal.unit else f"--{kind}_unit" + " has it by default" * (not given))
    if signal.name.startswith(COMMAND):
        said = (f"{kind}: the command waveform ({unit}), for there is no current channel", path.name)
    values = [np.asarray(x, float) * UNITS[kind][unit] for x in signal.values]
    names = [f"{path}, sweep {i}" for i in range(len(values))] if len(values) > 1 else [str(path)]
    return Traces(path, list(zip(names, values, strict=True)), signal.dt, said, signal.start, signal.notes)


def reported(said: Sequence[tuple[str, str]]) -> list[str]:
    """Lines on what is said, and by whom."""
    lines = []
    for what in dict.fromkeys(what for what, _ in said):
        who = list(dict.fromkeys(by for text, by in said if text == what))
        others = f" and {len(who) - 1} more files say" if len(who) > 1 else " says" * (not who[0].endswith("default"))
        lines.append(f"{what}, as {who[0]}{others}")
    return lines


def paired(currents: Sequence[Traces], voltages: Sequence[Traces]) -> list[Sweep]:
    """The sweeps of files that belong together; one current serves all potentials."""
    I, V = ([sweep for traces in each for sweep in traces.sweeps] for each in (currents, voltages))
    if not V:
        return [(name, current, name, None) for name, current in I]
    I = I * len(V) if len(I) == 1 else I
    if len(I) != len(V):
        theirs, ours = (listed([f"{traces.path}" for traces in each]) for each in (currents, voltages))
        raise bad(ours, f"{len(V)} sweep{'s' * (len(V) > 1)}", f"{len(I)} as in {theirs}, or one current for all")
    sweeps = [(*i, *v) for i, v in zip(I, V, strict=True)]
    for name_I, current, name_V, trace in sweeps:
        if len(current) != len(trace):
            raise bad(name_V, f"{len(trace)} samples", f"{len(current)} as in {name_I}")
    return sweeps


def files_of_sweeps(currents: Sequence[Traces], voltages: Sequence[Traces]) -> list[tuple[Traces, Traces]]:
    """Where current and potential of each sweep of `paired` come from; that of the current, where there are none."""
    I, V = ([traces for traces in each for _ in traces.sweeps] for each in (currents, voltages or currents))
    return list(zip(I * len(V) if len(I) == 1 else I, V, strict=True))


def until_the_end(sweep: Sweep) -> tuple[np.ndarray, np.ndarray | None]:
    """A sweep up to its last current; potentials may be missing in it, but not all of them."""
    name_I, current, name_V, V = sweep
    for name, x in ((name_I, current), (name_V, current if V is None else V)):
        if np.isinf(x).any():
            raise bad(name, f"inf at sample {np.argmax(np.isinf(x))}", "finite numbers")
        if np.isnan(x).all():
            raise bad(name, f"{len(x)} samples and no number", "finite numbers")
    last = len(current) - int(np.argmax(np.isfinite(current[::-1])))
    current, V = current[:last], None if V is None else V[:last]
    if np.isnan(current).any():
        found = f"no current at sample {np.argmax(np.isnan(current))}"
        raise bad(name_I, found, "gaps in potentials only, or at the end of a sweep")
    if V is not None and np.isnan(V).all():
        raise bad(name_V, "no potential while there is a current", "some")
    return current, V


def sampling_of(all_traces: Sequence[Traces], files: Files) -> tuple[float, str]:
    """The time between samples (ms) on which all agree that say it, and who says it."""
    known = [traces for traces in all_traces if traces.dt is not None]
    for traces in known:
        if files.dt is not None and abs(files.dt / traces.dt - 1) > 1e-3:
            raise BadInput(f"argument --dt: found {files.dt:g}, but {traces.path} says {traces.dt:g} ms; leave it out")
        if abs(traces.dt / known[0].dt - 1) > 1e-3:
            found, expected = f"samples every {traces.dt:g} ms", f"every {known[0].dt:g} ms as in {known[0].path}"
            raise bad(traces.path, found, expected)
    if not known and files.dt is None:
        raise bad("argument --dt", "nothing", f"the time between samples (ms), which {all_traces[0].path} does not say")
    return (known[0].dt, known[0].path.name) if known else (files.dt, "--dt")


def starts_of(pairs: Sequence[tuple[Traces, Traces]], files: Files) -> list[str]:
    """A line where the times of files of currents and potentials do not begin at 0.

    Raises:
        BadInput: they begin apart, or beside spike times, which may be of the same clock or from the first sample.
    """
    lines = []
    for current, voltage in pairs:
        known = [traces for traces in (current, voltage) if traces.dt is not None]
        late = known[-1].start - known[0].start if known else 0.0
        if known and abs(late) > known[0].dt / 2:
            raise bad(voltage.path, f"times that begin {late:g} ms after those of {current.path}", "the same start")
        if known and abs(known[0].start) > known[0].dt / 2:
            begin = f"times of {known[0].path} begin at {known[0].start:g} ms"
            lines.append(f"{begin}; those of arguments and results count from there")
            if files.spike_times:
                raise bad(known[0].path, f"times from {known[0].start:g} ms beside spike times", "times from 0 in both")
    return lines[:1]


def read_spike_times(path: Path, names: Sequence[str], durations: Sequence[float]) -> list[np.ndarray]:
    """Spike times (ms), an array a sweep, of a text file with a line a sweep; blanks, commas or ; are between them."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = runs.reason_of(error) if isinstance(error, OSError) else "not text"
        raise BadInput(f"{path}: {reason}; expected a text file of spike times") from None
    rows = cells_of(path, text)
    if len(rows) != len(names):
        raise bad(path, f"{len(rows)} lines", f"{len(names)}, one line per sweep")
    times = [np.array([to_number(cell) for cell in row]) for row in rows]
    for i, (t, duration) in enumerate(zip(times, durations, strict=True)):
        wrong = [cell for cell, x in zip(rows[i], t, strict=True) if not 0 <= x < duration]
        if wrong or (np.diff(t) < 0).any():
            found = f"{wrong[0][:40]!r}" if wrong else "times that fall"
            raise bad(path, f"{found} in line {i}", f"times from 0 to {duration:g} ms in ascending order ({names[i]})")
    early = [x / duration for t, duration in zip(times, durations, strict=True) for x in t]
    if len(early) > 2 and max(early) < 0.01:
        raise bad(path, "all spikes in the first hundredth of their sweeps", "times in ms (are they in s?)")
    return times


def cells_of(path: Path, text: str) -> list[list[str]]:
    """The cells of each line but for a header; without decimal points, commas and other separators are ambiguous."""
    lines = [re.sub(r",\s+|\s+,", " ", line).strip(" \t,;") for line in text.splitlines()]
    rows = [re.split(r"[,;\s]+", line) if line else [] for line in lines]
    if rows and rows[0] and all(math.isnan(to_number(cell)) for cell in rows[0]):
        lines, rows = lines[1:], rows[1:]
    comma = next((line for line in lines if re.search(r"\d,\d", line)), None)
    others, points = (any(re.search(x, line) for line in lines) for x in (r"\d[;\s]+[-.\d]", r"\."))
    if comma and others and not points:
        raise bad(path, f"{comma[:40]!r}, a decimal comma or two times", "decimal points, or one kind of separator")
    return rows


@np.errstate(all="ignore")
def read(files: Files) -> Sweeps:
    """The sweeps of files.

    Raises:
        BadInput: a file cannot be read, is ambiguous, or does not fit to the others or to the arguments.
    """
    p, together = f"--{files.prefix}", files.current or files.recording
    both = f"{p}current and {p}voltage"
    for wrong, argument, found, expected in (
        (files.voltage and not files.current, "voltage", "it alone", both),
        (files.spike_times and not together, "spike_times", "it alone", f"{p}current and {p}spike_times"),
        (files.recording and files.current and not files.voltage, "current", "it beside a recording", both),
        (not together, "recording", "no files", f"{p}recording, or {both}"),
    ):
        if wrong:
            raise bad(f"argument {p}{argument}", found, expected)
    groups = []
    for path in files.recording:
        signals = read_signals(path)
        groups.append([[traces_of(path, signals, kind, files, alone=False)] for kind in ("current", "voltage")])
    groups.append(
        [
            [traces_of(path, read_signals(path), kind, files, alone=True) for path in paths]
            for kind, paths in (("current", files.current), ("voltage", files.voltage))
        ]
    )
    I, V = (list(itertools.chain(*each)) for each in zip(*groups, strict=True))
    sweeps = [sweep for group in groups for sweep in paired(*group)]
    dt, who = sampling_of(I + V, files)
    starts = [pair for group in groups for pair in files_of_sweeps(*group)]
    notes = [*starts_of(starts, files), *dict.fromkeys(note for traces in I + V for note in traces.notes)]
    current, potentials = (list(each) for each in zip(*map(until_the_end, sweeps), strict=True))
    names, times = [sweep[2] for sweep in sweeps], None
    if files.spike_times:
        times = read_spike_times(files.spike_times, names, [len(x) * dt for x in current])
    said = reported([*(traces.said for traces in I + V), (f"sampling: {dt:g} ms", who)])
    return Sweeps(current, potentials if V else None, times, dt, names, [*said, *notes])


@np.errstate(all="ignore")
def check(sweeps: Sweeps) -> None:
    """Raise `BadInput` where no neuron has such currents and potentials, as in another unit or layout."""
    name, shortest = sweeps.names[0], min(map(len, sweeps.current))
    if shortest < 2 or len(sweeps.current) > shortest:
        raise bad(name, f"{len(sweeps.current)} sweeps of {shortest} samples", LONGER)
    if not 0.001 <= sweeps.dt <= 1:
        raise bad("argument --dt", f"{sweeps.dt:g} ms for {name}", "0.001 to 1 ms")
    highest, unit = max(np.abs(x).max() for x in sweeps.current), "(is --current_unit right?)"
    if highest > 1000:
        raise bad(name, f"currents up to {highest:.3g} nA", f"at most 1000 nA {unit}")
    if sweeps.V is not None:
        span_V = check_potentials(name, sweeps.V)
        span_I = np.ptp([extreme(x) for x in sweeps.current for extreme in (np.min, np.max)])
        if span_I > 0 and not 1 <= span_V / span_I <= 20000:
            found = f"currents up to {highest:.3g} nA for potentials that span {span_V:.3g} mV"
            raise bad(name, f"{found} ({span_V / span_I:.2g} Mohm)", f"1 to 20000 Mohm {unit}")


def check_each(sweeps: Sweeps, chosen: Iterable[int]) -> None:
    """Raise `BadInput` where one of the sweeps that are chosen, all of which have potentials, is not of a neuron."""
    much, expected = 0.01 * max(map(np.ptp, sweeps.current)), "those of a neuron, or that it is left out (--sweeps)"
    for i in chosen:
        V = sweeps.V[i][np.isfinite(sweeps.V[i])]
        if not -200 <= (low := np.percentile(V, 1)) <= -20:
            raise bad(sweeps.names[i], f"potentials from {low:.3g} mV (1st percentile)", expected)
        if np.ptp(V) < 0.01 and np.ptp(sweeps.current[i]) > much:
            raise bad(sweeps.names[i], f"potentials that stay at {V[0]:.4g} mV while the current changes", expected)


def check_potentials(name: str, potentials: Sequence[np.ndarray]) -> float:
    """The range of potentials (mV), if a neuron can have them."""
    V, unit = np.concatenate(potentials), "is --voltage_unit right?"
    V = V[np.isfinite(V)]
    if not len(V):
        raise bad(name, "no potential that is left", "some (is --exclude right?)")
    largest, (low, high) = np.abs(V).max(), np.percentile(V, [1, 99])
    up_to = f"potentials up to {largest:.3g} mV"
    between = f"potentials from {low:.3g} to {high:.3g} mV (1st and 99th percentile)"
    for wrong, found, expected in (
        (largest > 300, up_to, f"-300 to 300 mV ({unit} artefacts can be left out by --exclude)"),
        (largest < 1, up_to, f"1 to 300 mV, as neurons have ({unit})"),
        (np.ptp(V) < 0.01, f"potentials that stay at {V[0]:.4g} mV", "a response to the current"),
        (not -200 <= low <= -20 or high > 100, between, f"those of a neuron, such as -80 to 40 mV ({unit})"),
    ):
        if wrong:
            raise bad(name, found, expected)
    return float(np.ptp(V))
