"""Recordings as models see them: which part is fitted and which held out, the spikes in them, and their noise.

Currents are in nA, potentials in mV and times in ms; arrays have the shape (T, n_trace). Sample k is at time k dt:
potentials are those before the current of the same sample acts.
"""

import argparse
import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import runs
from runs import BadInput, number

import brainunit as u
import jax
import matplotlib.pyplot as plt
import numpy as np
from jax.typing import ArrayLike

import reading
import stimuli
from file_formats import CURRENT_UNITS, VOLTAGE_UNITS
from reading import Files, Sweeps
from spike_trains import SpikeLevel, away_from_spikes, detect_spikes, find_level, peak, sample_noise

T_START = 256.0  # ms, the most from which the potential at the start is taken
PEAKS = -30.0, 80.0  # mV, of action potentials
HOLD_OUT = 1000.0  # ms; of longer recordings a part is held out


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Recording:
    """Traces of a neuron, or of a model, under currents; as a pytree, all but dt are arrays (T, n_trace).

    Args:
        current: (nA).
        V: potentials (mV), unless they are still to be simulated; finite, also where nothing was recorded.
        spikes: 1 in the step in which a spike begins, else 0.
        mask: 1 where the error of the potentials counts, else 0.
        observed: 1 where it is known whether there is a spike, else 0.
        V_start: (n_trace,) potentials at which the cell has been held before (mV); without them models start as they
            do in the paper.
        V_start_error: (n_trace,) their standard errors (mV).
        dt: time between samples (ms).
    """

    current: ArrayLike
    V: ArrayLike | None = None
    spikes: ArrayLike | None = None
    mask: ArrayLike | None = None
    observed: ArrayLike | None = None
    V_start: ArrayLike | None = None
    V_start_error: ArrayLike | None = None
    dt: float = dataclasses.field(default=0.1, metadata=dict(static=True))


# (parameters, recording) -> V (mV) and spikes of a model that runs freely, each (T, n_trace).
FreeRun = Callable[[dict[str, u.Quantity], Recording], tuple[np.ndarray, np.ndarray]]


# ---- Noise, repeats and steps ---------------------------------------------------------------------------------------


def repeats_of(recording: Recording) -> list[list[int]]:
    """Indices of the traces under the same current, for each current that comes more than once."""
    groups = stimuli.groups_of(list(np.asarray(recording.current).T), recording.dt)
    return [group for group in groups if len(group) > 1]


def repeat_noise(recording: Recording, t_around: tuple[float, float] = (5.0, 20.0)) -> float | None:
    """Root mean square of what repeats of a current differ from their mean (mV), away from spikes; None without.

    Args:
        t_around: time before and after a spike of any repeat that is left out (ms).
    """
    squares = []
    for group in repeats_of(recording):
        quiet = away_from_spikes(recording.spikes[:, group].max(1, keepdims=True), recording.dt, t_around)
        use = (quiet[:, 0] > 0) & (recording.mask[:, group] > 0).all(1)
        squares.append(np.var(recording.V[use][:, group], axis=1, ddof=1))
    squares = np.concatenate(squares) if squares else np.zeros(0)
    return float(np.sqrt(squares.mean())) if len(squares) else None


def noise_of(recording: Recording) -> float:
    """The noise that no model of the recording can predict (mV): of repeats, or where there are none of samples."""
    noise = repeat_noise(recording)
    return sample_noise(np.asarray(recording.V)) if noise is None else noise


def steps_of(recording: Recording) -> dict[int, stimuli.Step]:
    """{trace: its step} of those that are steps of one family, of three heights or more; else none."""
    traces = zip(np.asarray(recording.current).T, observed_in(recording).T, strict=True)
    return stimuli.family_among([current[: len(seen) - np.argmax(seen[::-1])] for current, seen in traces])


# ---- Files, and which part of them ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Part:
    """Which sweeps (as 0:16:2 or 0,3,5), and which part of each (ms from its start); None is all."""

    sweeps: str | None = None
    t_start: float | None = None
    t_stop: float | None = None

    @property
    def given(self) -> bool:
        return self != Part()


@dataclasses.dataclass(frozen=True)
class Source:
    """Where the traces come from, and what is made of them: the arguments of `add_data_arguments`.

    Args:
        target: 'recorded' or 'simulated'.
        files, part: what is fitted.
        validation_files, validation_part: what is held out; `hold_out`: whether anything may be.
        exclude: windows that are left out (ms from the start of a sweep).
        spike_level: (mV), or None where it is found.
        initial: 'recorded' or 'paper': how models start.
        dt_sim: the longest step of a simulation (ms).
        noise_std, spike_jitter: what is added to the traces that are fitted (mV, ms).
    """

    target: str = "recorded"
    files: Files = dataclasses.field(default_factory=Files)
    part: Part = dataclasses.field(default_factory=Part)
    validation_files: Files = dataclasses.field(default_factory=Files)
    validation_part: Part = dataclasses.field(default_factory=Part)
    hold_out: bool = True
    exclude: Sequence[tuple[float, float]] = ()
    spike_level: float | None = None
    initial: str = "recorded"
    dt_sim: float = 0.1
    noise_std: float = 0.0
    spike_jitter: float = 0.0

    @property
    def own(self) -> bool:
        """Whether there are files of the user's to fit."""
        return self.files.given


@dataclasses.dataclass(frozen=True)
class Data:
    """{"fit" or "validation": recording}, the level of their spikes, and what to say of them, line by line."""

    recordings: dict[str, Recording]
    spike_level: SpikeLevel = dataclasses.field(default_factory=SpikeLevel)
    report: tuple[str, ...] = ()

    @property
    def checksum(self) -> int:
        """CRC-32 of arrays and sampling in single precision, by which other data are told from the same."""
        arrays = [*jax.tree.leaves(self.recordings), *(recording.dt for recording in self.recordings.values())]
        return zlib.crc32(b"".join(np.asarray(x, np.float32).tobytes() for x in arrays))


def window(text: str) -> tuple[float, float]:
    """argparse type: T0:T1 as two times (ms)."""
    ends = [runs.to_number(end) for end in text.split(":")]
    if len(ends) != 2 or not 0 <= ends[0] < ends[1] < math.inf:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected T0:T1 with times 0 <= T0 < T1 (ms)")
    return ends[0], ends[1]


def sweeps_named(text: str) -> str:
    """argparse type: which sweeps, from 0: indices and FIRST:END:STEP, joined by commas."""
    slices(text)
    return text


def slices(text: str) -> tuple[slice, ...]:
    """Which sweeps `sweeps_named` names."""
    chosen = []
    for piece in text.split(","):
        numbers = [
            int(x) if x.strip().lstrip("-").isdigit() else None if not x.strip() else x for x in piece.split(":")
        ]
        if not piece.strip() or len(numbers) > 3 or any(isinstance(x, str) for x in numbers) or numbers[2:] == [0]:
            expected = "expected sweeps from 0, as 0:16:2 or 0,3,5"
            raise argparse.ArgumentTypeError(f"found {text!r}, {expected}")
        first = numbers[0]
        chosen.append(slice(*numbers) if len(numbers) > 1 else slice(first, first + 1 or None))
    return tuple(chosen)


def add_data_arguments(parser: runs.Parser) -> None:
    """Arguments that say what is fitted: files, their units and parts, and what is added to a simulated target."""
    add = parser.add_argument_group("data").add_argument
    target = "fit recorded traces (so without this argument if --recording, --voltage or --spike_times is given, and "
    target += "for the HH cell always), or the model's own response to the currents at the paper's parameters"
    add("--target", choices=("recorded", "simulated"), help=target)
    for prefix, what in (("", ""), ("validation_", ", held out")):
        files = dict(type=Path, nargs="+", metavar="FILE", default=())
        recording = (
            "files that have both currents and potentials (ABF, NWB, what neo reads, NPZ, CSV); each adds sweeps"
        )
        add(f"--{prefix}recording", help=recording + what, **files)
        add(f"--{prefix}current", help=f"files of currents alone{what}; one sweep serves all potentials", **files)
        add(f"--{prefix}voltage", help=f"files of the potentials that belong to --{prefix}current{what}", **files)
        spike_times = "text file of the spike times where they are known: a line a sweep (ms)"
        add(f"--{prefix}spike_times", type=Path, metavar="FILE", help=spike_times + what)
        sweeps = f"sweeps to use{what}, from 0, as 0:16:2 or 0,3,5; all without this argument"
        add(f"--{prefix}sweeps", type=sweeps_named, metavar="SWEEPS", help=sweeps)
        for end in ("start", "stop"):
            help = f"{end} of the part of each sweep to use{what}, from its beginning (ms); all without this argument"
            add(f"--{prefix}t_{end}", type=number(float, low=0), metavar="MS", help=help)
    validation = (
        "auto: without any --validation_ argument, hold out a part of your recordings if they are longer than a "
        "second, every third height of a step family and the last third of the time of others; none: fit all"
    )
    add("--validation", choices=("auto", "none"), default="auto", help=validation)
    exclude = "windows to leave out of every recorded sweep, such as artefacts (ms)"
    add("--exclude", type=window, nargs="+", metavar="T0:T1", default=(), help=exclude)
    add("--dt", type=number(float, above=0), metavar="MS", help="time between samples, of files that do not say (ms)")
    unit = "unit of {}, of files that do not say; {} without this argument"
    add("--current_unit", choices=CURRENT_UNITS, help=unit.format("currents", "A"))
    add("--voltage_unit", choices=VOLTAGE_UNITS, help=unit.format("potentials", "mV"))
    for kind in ("current", "voltage"):
        add(f"--{kind}_channel", metavar="NAME", help=f"channel of the {kind}, where a file has several of them")
    level = "a spike of recorded potentials is an upward crossing of it (mV); found from them without this argument"
    add("--spike_level", type=number(float), metavar="MV", help=level)
    initial = (
        "how the model starts: held at the recorded potential, with all else at its steady state there, or as in the "
        "paper; without this argument, recorded for your files and paper for all others"
    )
    add("--initial", choices=("recorded", "paper"), help=initial)
    add("--noise_std", type=number(float, low=0), default=0.0, help="s.d. of white noise added to the target (mV)")
    jitter = "s.d. of a normal jitter added to the spike times of the target, rounded to steps (ms)"
    add("--spike_jitter", type=number(float, low=0), default=0.0, help=jitter)


def source_of(args: argparse.Namespace) -> Source:
    """The source that the arguments of `add_data_arguments` name."""

    def files(prefix):
        named = {name: [Path(p) for p in getattr(args, prefix + name)] for name in ("recording", "current", "voltage")}
        times = getattr(args, f"{prefix}spike_times")
        return runs.pick(Files, args, **named, spike_times=times and Path(times), prefix=prefix)

    def part(prefix):
        return Part(*(getattr(args, prefix + name) for name in ("sweeps", "t_start", "t_stop")))

    source = runs.pick(
        Source,
        args,
        files=files(""),
        part=part(""),
        validation_files=files("validation_"),
        validation_part=part("validation_"),
        hold_out=args.validation == "auto",
        initial=args.initial,
    )
    if args.validation == "none" and (source.validation_files.given or source.validation_part.given):
        raise BadInput("argument --validation: found none with other arguments of what is held out, expected either")
    return dataclasses.replace(source, initial=args.initial or ("recorded" if source.own else "paper"))


def read_data(source: Source, shipped: Mapping[str, Files]) -> Data:
    """The recordings of the files that the source names, or else of those in `shipped`.

    Where a target is simulated, currents are enough, and potentials are not used.
    """
    own = {"fit": source.files, "validation": source.validation_files}
    files = own if source.own else {**shipped, **{name: f for name, f in own.items() if f.given}}
    if source.target == "recorded" and not files.get("fit", Files()).given:
        raise BadInput(
            "argument --target: found recorded without a recording, expected --recording, or --current and --voltage"
        )
    sweeps = {}
    for name, chosen in files.items():
        if chosen.given:
            chosen = dataclasses.replace(chosen, voltage=()) if source.target == "simulated" else chosen
            sweeps[name] = read_sweeps(chosen, source)
    if source.target == "simulated" or "fit" not in sweeps:
        said = tuple(sweeps["fit"].said) if "fit" in sweeps else ()
        return Data(simulated(sweeps, source), report=said)
    return recordings_of(sweeps, source, hold_out=source.own and source.hold_out)


def read_to_predict(source: Source, level: SpikeLevel) -> Data:
    """Currents to which a fitted model is to respond ("fit"), and where there are any the potentials under them."""
    sweeps = reading.read(source.files)
    refuse_idle_windows(sweeps, source)
    sweeps = plausible(sweeps, source)
    if sweeps.V is not None and source.spike_level is not None:
        level = find_level([filled(V) for V in sweeps.V], sweeps.dt, source.spike_level)
    recording = assemble(sweeps, from_the_start(pieces_of(sweeps, source.part)), level, source.exclude)
    return Data({"fit": recording if sweeps.V is None else with_start(recording)}, level, tuple(sweeps.said))


def read_sweeps(files: Files, source: Source) -> Sweeps:
    """The sweeps of files, without what is excluded, and plausible."""
    prefix = f"--{files.prefix}"
    if files.current and not (files.voltage or files.spike_times) and source.target == "recorded":
        expected = f"expected {prefix}current and {prefix}voltage, or {prefix}spike_times"
        raise BadInput(f"argument {prefix}current: found it alone, {expected}")
    sweeps = reading.read(files)
    if not files.prefix:
        refuse_idle_windows(sweeps, source)
    return plausible(sweeps, source)


def refuse_idle_windows(sweeps: Sweeps, source: Source) -> None:
    """Refuse a window to exclude in which no sweep has a sample, as of another clock."""
    for start, stop in source.exclude:
        if round(start / sweeps.dt) >= min(round(stop / sweeps.dt), max(map(len, sweeps.current))):
            found = f"found {start:g}:{stop:g}, in which no sweep has a sample"
            raise BadInput(f"argument --exclude: {found}, expected ms from the beginning of a sweep")


def plausible(sweeps: Sweeps, source: Source) -> Sweeps:
    """The sweeps without what is excluded, if a neuron can have them."""
    if sweeps.V is not None:
        V = [without_windows(trace, source.exclude, sweeps.dt) for trace in sweeps.V]
        sweeps = dataclasses.replace(sweeps, V=V)
    reading.check(sweeps)
    return sweeps


def without_windows(V: np.ndarray, exclude: Sequence[tuple[float, float]], dt: float) -> np.ndarray:
    """Potentials (T,) with NaN from each T0 to T1 (ms)."""
    V = V.copy()
    for start, stop in exclude:
        V[round(start / dt) : round(stop / dt)] = np.nan
    return V


def simulated(sweeps: Mapping[str, Sweeps], source: Source) -> dict[str, Recording]:
    """{"fit" or "validation": currents alone}, each with its part of its files, or of those that are fitted."""
    found = {}
    for name, part, prefix in (("fit", source.part, ""), ("validation", source.validation_part, "validation_")):
        of_name = sweeps.get(name) or (sweeps.get("fit") if part.given else None)
        if part.given and of_name is None:
            options = f"--{prefix}sweeps, --{prefix}t_start or --{prefix}t_stop"
            raise BadInput(f"argument {options}: found a part without files, expected --{prefix}current, or neither")
        if of_name:
            alone = dataclasses.replace(of_name, V=None, spike_times=None)
            found[name] = assemble(alone, pieces_of(alone, part, prefix), SpikeLevel())
    return found


# ---- Sweeps to recordings -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, order=True)
class Piece:
    """A piece of a sweep: simulated from sample `begin`, and counted from `first` to before `last`."""

    sweep: int
    begin: int
    first: int
    last: int


def pieces_of(sweeps: Sweeps, part: Part, prefix: str = "") -> list[Piece]:
    """The pieces that a part takes of the sweeps, each simulated from where it begins."""
    chosen = range(len(sweeps.current))
    if part.sweeps is not None:
        each = [list(range(*piece.indices(len(sweeps.current)))) for piece in slices(part.sweeps)]
        chosen = [i for of_piece in each for i in of_piece]
        expected = f"expected some of the {len(sweeps.current)} sweeps, from 0, each once"
        if not all(each):
            found = f"found none of the sweeps of {sweeps.names[0]} in {part.sweeps.split(',')[each.index([])]}"
            raise BadInput(f"argument --{prefix}sweeps: {found}, {expected}")
        if len(set(chosen)) < len(chosen):
            raise BadInput(f"argument --{prefix}sweeps: found a sweep twice in {part.sweeps}, {expected}")
    pieces = []
    for i in chosen:
        first = round((part.t_start or 0) / sweeps.dt)
        last = len(sweeps.current[i])
        if part.t_stop is not None:
            last = min(last, round(part.t_stop / sweeps.dt))
        if last - first < 2:
            duration = len(sweeps.current[i]) * sweeps.dt
            end = "t_start" if part.t_start else "t_stop"
            expected = f"expected a part of its {duration:g} ms"
            raise BadInput(f"argument --{prefix}{end}: found nothing left of {sweeps.names[i]}, {expected}")
        pieces.append(Piece(i, first, first, last))
    return pieces


def from_the_start(pieces: Sequence[Piece]) -> list[Piece]:
    """The pieces, simulated from the start of their sweeps: the state of a cell that is not at rest is unknown."""
    return [dataclasses.replace(piece, begin=0) for piece in pieces]


def held_out(sweeps: Sweeps, pieces: Sequence[Piece]) -> tuple[list[Piece], list[Piece], list[str]]:
    """Pieces to fit, pieces to hold out, and what to say: a third of recordings that are longer than HOLD_OUT.

    Of a step family every third height; of others, and of repeats of one current, the last third of the time.
    """
    if sum(piece.last - piece.first for piece in pieces) * sweeps.dt <= HOLD_OUT:
        return list(pieces), [], []
    currents = [sweeps.current[piece.sweep][piece.first : piece.last] for piece in pieces]
    groups = stimuli.groups_of(currents, sweeps.dt)
    heights = [groups[i] for i in stimuli.family_among([currents[group[0]] for group in groups])]
    family, out = (sorted(i for group in of for i in group) for of in (heights, heights[2::3]))
    fit, validation = [pieces[i] for i in family if i not in out], [pieces[i] for i in out]
    split = [i for i in range(len(pieces)) if i not in family]
    for i in split:
        piece = pieces[i]
        border = piece.last - (piece.last - piece.first) // 3
        fit.append(dataclasses.replace(piece, last=border))
        validation.append(dataclasses.replace(piece, first=border))
    names = ["the last third of the time of " + listed([pieces[i].sweep for i in split])] if split else []
    names += [f"{listed([pieces[i].sweep for i in out])} of the step family"] if out else []
    return sorted(fit), sorted(validation), [f"held out: {'; '.join(names)}"]


def listed(sweeps: Sequence[int]) -> str:
    """Sweep numbers as text, ranges as 0-4."""
    pieces, numbers = [], sorted(sweeps)
    for i in numbers:
        if pieces and pieces[-1][1] == i - 1:
            pieces[-1][1] = i
        else:
            pieces.append([i, i])
    text = ", ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in pieces)
    return f"sweep{'s' * (len(numbers) > 1)} {text}"


def recordings_of(sweeps: Mapping[str, Sweeps], source: Source, hold_out: bool) -> Data:
    """The recordings to fit and to hold out, with their spikes, from the sweeps of "fit" and "validation"."""
    fitted, report = sweeps["fit"], list(sweeps["fit"].said)
    pieces = {"fit": pieces_of(fitted, source.part)}
    from_files = {"fit": fitted, "validation": sweeps.get("validation", fitted)}
    if "validation" in sweeps or source.validation_part.given:
        chosen = pieces_of(from_files["validation"], source.validation_part, "validation_")
        pieces["validation"] = from_the_start(chosen)
        report += overlap(pieces, from_files, source)
    elif hold_out:
        fit, validation, said = held_out(fitted, pieces["fit"])
        pieces |= {"fit": fit} | ({"validation": validation} if validation else {})
        report += said
    level = SpikeLevel(source.spike_level or 0.0)
    with_V = next((of_name for of_name in (fitted, from_files["validation"]) if of_name.V is not None), None)
    if with_V is not None:
        level = find_level([filled(V) for V in with_V.V], with_V.dt, source.spike_level)
        if with_V is not fitted:
            report.append(f"spikes held out are crossings of {level.level:.4g} mV, and so are those of the model")
    recordings = {}
    for name, chosen in pieces.items():
        recordings[name] = assemble(from_files[name], chosen, level, source.exclude)
        if source.initial == "recorded" and from_files[name].V is not None:
            recordings[name] = with_start(recordings[name])
    return Data(recordings, level, (*report, *describe(recordings, fitted, level)))


def overlap(pieces: Mapping[str, Sequence[Piece]], sweeps: Mapping[str, Sweeps], source: Source) -> list[str]:
    """A line where what is held out is fitted too, of the same file: of potentials, or else of spike times."""
    other = source.validation_files if source.validation_files.given else source.files

    def place(name, i):
        files = source.files if name == "fit" else other
        times = files.spike_times if sweeps[name].V is None else None
        return Path(sweeps[name].names[i]).resolve(), times and Path(times).resolve()

    for fit in pieces["fit"]:
        for held in pieces["validation"]:
            same = place("fit", fit.sweep) == place("validation", held.sweep)
            if same and max(fit.first, held.first) < min(fit.last, held.last):
                return [f"WARNING: sweep {fit.sweep} is fitted where it is held out: these scores are not of new data"]
    return []


def assemble(
    sweeps: Sweeps, pieces: Sequence[Piece], level: SpikeLevel, exclude: Sequence[tuple[float, float]] = ()
) -> Recording:
    """The recording of pieces of sweeps, which end where they end: what is beyond does not count.

    Of `exclude`, windows as in `Source`, potentials are NaN already; spikes that are known by their times do not count.
    """
    n_step = max(piece.last - piece.begin for piece in pieces)
    shape = (n_step, len(pieces))
    current, V, spikes, mask, observed = (np.zeros(shape) for _ in range(5))
    for trace, piece in enumerate(pieces):
        n, first = piece.last - piece.begin, piece.first - piece.begin
        inside = slice(piece.begin, piece.last)
        current[:n, trace] = sweeps.current[piece.sweep][inside]
        observed[first:n, trace] = 1
        if sweeps.V is not None:
            recorded, known = filled(sweeps.V[piece.sweep][inside]), np.isfinite(sweeps.V[piece.sweep][inside])
            V[:n, trace], V[n:, trace] = recorded, recorded[-1]
            if not known.any():
                raise BadInput(f"{sweeps.names[piece.sweep]}: found no potential in the part to use, expected some")
            mask[first:n, trace] = known[first:]
            spikes[:n, trace] = detect_spikes(recorded[:, None], level.level, level.rearm)[:, 0]
        if sweeps.spike_times is not None:
            step = np.floor(np.asarray(sweeps.spike_times[piece.sweep]) / sweeps.dt + 1e-6).astype(int) - piece.begin
            spikes[:, trace] = 0
            spikes[step[(step >= 0) & (step < n)], trace] = 1
            left = np.isfinite(without_windows(np.zeros(piece.last), exclude, sweeps.dt))
            observed[first:n, trace] = left[piece.first :]
        if sweeps.V is not None:
            observed[:n, trace] *= known  # what draws a model is where potentials are known
    if sweeps.V is None and sweeps.spike_times is None:
        return Recording(current, observed=observed, dt=sweeps.dt)
    if sweeps.V is not None:
        reading.check_each(sweeps, dict.fromkeys(piece.sweep for piece in pieces))
    if sweeps.V is not None and not mask.any():
        raise BadInput(f"{sweeps.names[pieces[0].sweep]}: found no potential in the part to use, expected some")
    # Before the part that counts, spikes are kept where they are known: they drive a model that is told of them.
    return Recording(current, V, spikes, mask, observed, dt=sweeps.dt)


def filled(V: np.ndarray) -> np.ndarray:
    """Potentials (T,) with the last number before each gap, or the first one of all, in place of NaN."""
    known = np.isfinite(V)
    if known.all():
        return V
    last = np.maximum.accumulate(np.where(known, np.arange(len(V)), -1))
    return np.where(last >= 0, V[last], V[np.argmax(known)])


def with_start(recording: Recording) -> Recording:
    """The recording with the potentials at which its traces start, each by `start_of`."""
    traces = range(recording.V.shape[1])
    starts = [start_of(recording.V[:, i], recording.current[:, i], recording.dt) for i in traces]
    V_start, error = np.array(starts).T
    return dataclasses.replace(recording, V_start=V_start, V_start_error=error)


def start_of(V: np.ndarray, current: np.ndarray, dt: float) -> tuple[float, float]:
    """The potential at which a trace starts, and its standard error (mV): the first sample, freed of noise if possible.

    It is the mean of the longest of the first 0.5, 1, 2, ... ms, at most T_START, in which the current is constant, V
    has no slope, and deviates from its mean by no more than noise from sample to sample. Where there is none, the error
    is that of the first sample.

    Args:
        V, current: (T,) (mV, nA).
        dt: (ms).
    """
    noise = sample_noise(V[:, None])
    start, error = float(V[0]), noise
    same = np.abs(current - current[0]) <= 1e-3 * np.ptp(current)
    n_same = len(same) if same.all() else int(np.argmin(same))
    t = 0.5
    while t <= T_START and round(t / dt) <= n_same:
        n = max(4, round(t / dt))
        first = V[:n]
        slope = np.polyfit(np.arange(n), first, 1)[0] * n
        if np.std(first) > 1.3 * noise + 1e-3 or abs(slope) > 3 * noise * math.sqrt(12 / n) + 1e-3:
            break
        start, error, t = float(first.mean()), noise / math.sqrt(n), 2 * t
    return start, error


def describe(recordings: Mapping[str, Recording], sweeps: Sweeps, level: SpikeLevel) -> list[str]:
    """Lines on what there is: sweeps, sampling, rest, noise, spikes and the level of which they are crossings."""
    lines = []
    for name, recording in recordings.items():
        counted = recording.observed.sum() * recording.dt / 1000
        line = f"{name}: {recording.current.shape[1]} sweeps, {counted:.4g} s"
        line += f", {int((recording.spikes * recording.observed).sum())} spikes"
        repeats, currents = repeats_of(recording), np.asarray(recording.current).T
        if repeats:
            line += f", {' + '.join(str(len(group)) for group in repeats)} of them repeats of one current"
            exact = all(stimuli.are_equal(currents[i], currents[group[0]]) for group in repeats for i in group)
            line += "" if exact else ", but for the noise with which it was measured"
        lines.append(line)
    fit = recordings["fit"]
    if sweeps.V is None:
        return lines
    known = fit.V[fit.mask > 0]
    span = f"potentials from {known.min():.1f} to {known.max():.1f} mV, median {np.median(known):.1f} mV"
    if fit.V_start is not None:
        span += f"; sweeps begin at {np.mean(fit.V_start):.1f} mV (s.d. {np.std(fit.V_start):.2g} mV)"
    noise, between = f"noise from sample to sample {sample_noise(fit.V):.2g} mV", repeat_noise(fit)
    lines += [span, noise + ("" if between is None else f", of repeats {between:.2g} mV")]
    if sweeps.spike_times is not None or fit.spikes.any():
        where = " where their times are not given" * (sweeps.spike_times is not None)
        crossings = f"crossings of {level.level:.4g} mV (again after a fall by {level.rearm:.3g} mV)"
        lines.append(f"spikes are {crossings}{where}")
        top = peak(fit.V, fit.spikes * fit.observed, fit.dt)
        if (top < PEAKS[0] or top > PEAKS[1]) and not where:
            usual = "{:g} to {:g} mV".format(*PEAKS)
            says = "if they are postsynaptic potentials or artefacts, --spike_level or --exclude says so"
            lines.append(f"WARNING: spikes reach {top:.3g} mV, in the median, where most reach {usual}: {says}")
    else:
        hint = "if there are spikes, --spike_level or --spike_times says where"
        lines.append(f"WARNING: no spike found: V goes up to {known.max():.4g} mV ({hint})")
    return lines


def recorded(current: np.ndarray, V: np.ndarray, dt: float, spike_level: float | None = None) -> Recording:
    """The recording of currents (nA) and potentials (mV), each (T, n_trace), every dt (ms), all of which count.

    Spikes are upward crossings of spike_level (mV), or of the level that `find_level` finds.
    """
    level = find_level(list(V.T), dt, spike_level)
    spikes, ones = detect_spikes(V, level.level, level.rearm), np.ones_like(V)
    return with_start(Recording(current, V, spikes, ones, ones, dt=dt))


# ---- Targets --------------------------------------------------------------------------------------------------------


def make_targets(
    source: Source, data: Data, free_run: FreeRun, known: dict[str, u.Quantity], seed: int
) -> dict[str, Recording]:
    """{"fit" or "validation": recording with potentials and spikes}.

    Args:
        data: what is read; where V is None, it and the spikes are those of free_run(known, recording).
        free_run: (parameters, recording) -> V (mV) and spikes.
        seed: of the noise and the spike jitter, which the traces of the fit get.
    """
    targets, rng = {}, np.random.default_rng(seed)
    for name, recording in data.recordings.items():
        if recording.V is None:
            V, spikes = free_run(known, recording)
            counted = observed_in(recording).astype(float)
            recording = dataclasses.replace(recording, V=V, spikes=spikes, mask=counted, observed=counted)
        if name == "fit" and source.noise_std:
            V = recording.V + source.noise_std * rng.standard_normal(recording.V.shape)
            spikes = recording.spikes
            if data.recordings[name].V is not None and source.files.spike_times is None:
                spikes = detect_spikes(V, data.spike_level.level, data.spike_level.rearm)
            recording = dataclasses.replace(recording, V=V, spikes=spikes)
        if name == "fit" and source.spike_jitter:
            step, trace = np.nonzero(recording.spikes)
            shift = np.rint(rng.normal(0, source.spike_jitter / recording.dt, len(step))).astype(int)
            spikes = np.zeros_like(recording.spikes)
            spikes[np.clip(step + shift, 0, len(spikes) - 1), trace] = 1
            recording = dataclasses.replace(recording, spikes=spikes)
        targets[name] = recording
    return targets


def every(recording: Recording, n_point: int | None) -> Recording:
    """The recording with only every (T // n_point)-th of its T samples left to count."""
    n_step = len(recording.V)
    if (n_point or 0) > n_step:
        raise BadInput(f"argument --n_point: found {n_point}, expected at most the {n_step} samples of a trace")
    mask = np.zeros_like(recording.V)
    mask[:: n_step // (n_point or n_step)] = 1
    return dataclasses.replace(recording, mask=recording.mask * mask)


def steps_before(recording: Recording, n_spike: int) -> int:
    """Samples that precede the last third of the spikes that are known; 0 where that has fewer than n_spike."""
    steps = np.nonzero(np.asarray(recording.spikes) * observed_in(recording))[0]
    first = len(steps) - len(steps) // 3
    return int(steps[first]) if len(steps) // 3 >= n_spike else 0


def first_part(recording: Recording, n_step: int) -> Recording:
    """The first n_step samples of a recording."""
    arrays = {name: getattr(recording, name)[:n_step] for name in ("current", "V", "spikes", "mask", "observed")}
    return dataclasses.replace(recording, **arrays)


def counted_from(recording: Recording, n_step: int) -> Recording:
    """The recording of which what precedes sample n_step does not count."""
    late = np.arange(len(recording.V))[:, None] >= n_step
    return dataclasses.replace(recording, mask=recording.mask * late, observed=recording.observed * late)


def without_spikes(recording: Recording, t_before: float, t_after: float) -> Recording:
    """The recording with no sample left to count from t_before before to t_after (ms) after a spike."""
    quiet = away_from_spikes(np.asarray(recording.spikes), recording.dt, (t_before, t_after))
    return dataclasses.replace(recording, mask=recording.mask * quiet)


def require_spikes(recording: Recording, level: SpikeLevel) -> None:
    """Raise `BadInput` where there are none, for a fit of spikes."""
    if not recording.spikes.any():
        highest = f"no spike: potentials go up to {recording.V.max():.3g} mV, and spikes cross {level.level:g} mV"
        raise BadInput(f"argument --fit_target: found {highest}, expected spikes (--spike_level, --spike_times)")


def require_potentials(recording: Recording) -> None:
    """Raise `BadInput` where there are none, for a fit of potentials."""
    if not np.any(recording.mask):
        raise BadInput("argument --fit_target: found potential without potentials, expected spike, or --voltage")


# ---- Figures --------------------------------------------------------------------------------------------------------


def observed_in(recording: Recording) -> np.ndarray:
    """Where it is known whether there is a spike (T, n_trace); everywhere, unless the recording says so."""
    known = np.ones(np.shape(recording.current)) if recording.observed is None else recording.observed
    return np.asarray(known) > 0


def known_potentials(recording: Recording, trace: int) -> np.ndarray:
    """Recorded potentials (T,) of a trace, and NaN where none are known (mV)."""
    if recording.V is None or not np.any(recording.mask):
        return np.full(len(recording.current), np.nan)
    return np.where(observed_in(recording)[:, trace], np.asarray(recording.V)[:, trace], np.nan)


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
            shown = known_potentials(recording, trace) if V is recording.V else V[:, trace]
            bottom.plot(t, shown, style, lw=1, label=label)
        bottom.set_xlabel("t (ms)")
    axes[0, 0].set_ylabel("I (nA)")
    axes[1, 0].set_ylabel("V (mV)")
    figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower right", ncols=2)
    return figure
