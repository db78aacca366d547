"""The formats of files: each is read into signals, with their units and sampling as far as the file says them.

A file format is one function, path -> signals, in `READERS`. What is ambiguous is refused, not guessed.
"""

import contextlib
import dataclasses
import io
import logging
import math
import re
import struct
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import runs
from runs import BadInput, to_number

import numpy as np
import scipy.io

CURRENT_UNITS = {"A": 1e9, "mA": 1e6, "uA": 1e3, "nA": 1.0, "pA": 1e-3}  # in nA
VOLTAGE_UNITS = {"V": 1e3, "mV": 1.0, "uV": 1e-3}  # in mV
TIME_UNITS = {"s": 1e3, "sec": 1e3, "ms": 1.0, "msec": 1.0, "us": 1e-3}  # in ms
UNITS = {"current": CURRENT_UNITS, "voltage": VOLTAGE_UNITS, "time": TIME_UNITS}
DEFAULTS = {"current": "A", "voltage": "mV"}  # of files that do not say
QUANTITY = {"current": "currents", "voltage": "potentials"}
WORDS = {
    "current": {"i", "im", "iinj", "icmd", "current", "stimulus", "command"},
    "voltage": {"v", "vm", "vmem", "voltage", "potential"},
    "time": {"t", "dt", "time"},
}
ANY_UNIT = "|".join(unit for units in UNITS.values() for unit in units)
DECIMAL_COMMA = r"[-+]?\d+(,\d+)?(e[-+]?\d+)?"

EXAMPLE = "a header such as t (ms),I (nA),V (mV)"
HEADER = "expected a header of sample numbers (,0,1,2,...) and then an index and a trace a line"
MULTICLAMP = 24  # in ABF files
OF_SAMPLING = r"(^|[^a-z])(dt|si|delta_?t|time_?step|sampl[a-z]*)([^a-z]|$)"  # of numbers that are times
COMMAND = "command DAC"  # in names of signals that were commanded and not recorded
LONGER = "traces longer than they are many (are samples in lines?)"


@dataclasses.dataclass(frozen=True)
class Signal:
    """One channel of a file, all its sweeps.

    Args:
        kind: "current" or "voltage", or None where neither unit nor name says it.
        unit: a key of `CURRENT_UNITS` or `VOLTAGE_UNITS`, or None where the file does not say.
        dt: (ms), or None where the file does not say.
        values: an array (T,) a sweep, in the unit of the file.
        start: what the file calls the time of the first sample (ms).
        notes: what else is to be said of the file.
    """

    name: str
    kind: str | None
    unit: str | None
    dt: float | None
    values: list[np.ndarray]
    start: float = 0.0
    notes: tuple[str, ...] = ()


def bad(where: Path | str, found: str, expected: str) -> BadInput:
    """The refusal of a file or an argument, in one line whatever names a file contains."""
    return BadInput("".join(c for c in f"{where}: found {found}, expected {expected}" if c.isprintable()))


def listed(names: Sequence[str]) -> str:
    """Names joined by commas, the first twenty of them."""
    return ", ".join(name[:200] for name in names[:20]) + ", ..." * (len(names) > 20)


@contextlib.contextmanager
def foreign(path: Path, format: str) -> Iterator[None]:
    """What goes wrong in a parser of others as `BadInput`; what it prints, logs and warns of is dropped."""
    off = io.StringIO()
    try:
        logging.disable(logging.CRITICAL)
        with warnings.catch_warnings(action="ignore"), contextlib.redirect_stdout(off), contextlib.redirect_stderr(off):
            yield
    except BadInput:
        raise
    except ImportError as error:
        package = (error.name or str(error)).split(".")[0]
        raise bad(path, f"that {package} is not installed", f"it to read {format} (pip install {package})") from None
    except Exception as error:
        reason = "".join(c for c in runs.reason_of(error) if c.isprintable())
        raise BadInput(f"{path}: cannot be read as {format} ({reason}); expected a whole file of it") from None
    finally:
        logging.disable(logging.NOTSET)


def kind_of(text: str) -> str | None:
    """What the words of a name say: the first one, or one of the longer ones."""
    words = re.findall("[a-z]+", text.lower())
    said = {*words[:1], *(word for word in words if len(word) > 3)}
    return next((kind for kind in WORDS if said & WORDS[kind]), None)


def named(name: str) -> tuple[str | None, str | None]:
    """(kind, unit) that the name of a column or array says, such as 'Vm [mV]', 'I_nA', 'current/pA' or 't (ms)'.

    It is ("other", None) where brackets have a unit of something else, such as mV/ms.
    """
    text = name.strip().replace("\xb5", "u").replace("\u03bc", "u")
    if re.search(rf"[(\[]\s*({ANY_UNIT})\s*[/*^]", text):
        return "other", None
    brackets = re.fullmatch(rf"(.*?)\s*[(\[/]\s*({ANY_UNIT})\s*[)\]]?(\W.*|\d*)", text)
    match = brackets or re.fullmatch(rf"(.*?)[\s_]({ANY_UNIT})([\s_].*)?", text)
    kind, unit = kind_of(match[1]) if match else None, match[2] if match else text
    # V, A and s alone, or behind a word that is none of ours, are letters and not units.
    if unit not in ANY_UNIT.split("|") or not (brackets or kind or len(unit) > 1):
        return kind_of(text), None
    return next(kind for kind, units in UNITS.items() if unit in units), unit


def unit_of(text: str) -> tuple[str | None, str | None]:
    """(kind, unit) of what a file gives as a unit: ("other", None) for one of something else, (None, None) for none."""
    unit = text.strip().replace("\xb5", "u").replace("\u03bc", "u")
    if unit in ("", "?", "dimensionless"):
        return None, None
    return next(((kind, unit) for kind in QUANTITY if unit in UNITS[kind]), ("other", None))


def step_of(t: np.ndarray) -> float | None:
    """The step of times that rise in equal steps (to a thousandth, or to what seven digits leave), else None."""
    if len(t) < 2 or not np.isfinite(t).all():
        return None
    step = (t[-1] - t[0]) / (len(t) - 1)
    tolerance = min(1e-3 * step + 1e-6 * np.abs(t).max(), 0.4 * step)  # where a sample is missing it is half a step
    even = step > 0 and np.abs(t - t[0] - step * np.arange(len(t))).max() <= tolerance
    return float(step) if even else None


def sampling(path: Path, what: str, t: np.ndarray, unit: str | None = None) -> float:
    """The time between samples (ms) of times (T,), in ms or s by the size of their steps where no unit is given."""
    step = step_of(t)
    if step is None:
        raise bad(path, f"unequal steps in {what}", f"times in equal steps, or if they are something else {EXAMPLE}")
    if not unit and not (4e-6 < step < 1e-3 or 0.004 < step < 1):
        raise bad(path, f"times in steps of {step:g}", "their unit, as in t (ms), t (s) or t (us)")
    return float(f"{step * TIME_UNITS[unit or ('ms' if step > 0.002 else 's')]:.9g}")


def one_sampling(where: Path | str, dts: Sequence[float]) -> float:
    """The one dt (ms) of several that are equal to a thousandth."""
    if max(dts) > 1.001 * min(dts):
        raise bad(where, f"samples every {min(dts):g} and every {max(dts):g} ms", "one sampling")
    return float(f"{dts[0]:.9g}")


# ---- CSV ------------------------------------------------------------------------------------------------------------


def lines_of(path: Path) -> list[str]:
    """Lines of a text file that are neither empty nor comments."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise BadInput(f"{path}: not CSV (bytes that are no text); expected a CSV file of traces")
    lines = (line.strip(" \r\n") for line in text.splitlines())
    return [line for line in lines if line and not line.isspace() and line[0] not in "#%"]


def separated(path: Path, lines: list[str]) -> tuple[list[str], str | None]:
    """The lines, with decimal points, and what separates their cells; None is blanks."""
    sample = [line[:2000].rsplit(" ", 1)[0] if len(line) > 2000 else line for line in lines[1:][-50:] or lines]
    separator = next((c for c in ";\t," if c in sample[-1]), None)
    cells = [line.split() for line in sample]
    if separator == "," and all(re.fullmatch(DECIMAL_COMMA, cell, re.I) for row in cells for cell in row):
        has_names = not all(map(is_number, lines[0].split(",")))
        first = [to_number(row[0].split(",")[0]) for row in cells]
        if max(map(len, cells)) > 1 or (has_names and "," not in lines[0]):
            separator = None
        elif not has_names and lines[0].count(",") == 1 and set(np.diff(first)) != {1}:
            found = f"{sample[-1]!r} in a line, a decimal comma or two numbers"
            raise bad(path, found, "decimal points, or ; between columns")
    if separator != "," and any("," in line for line in lines):
        lines = [line.replace(",", ".") for line in lines]
    return lines, separator


def is_number(text: str) -> bool:
    """Whether a cell holds a number or is empty."""
    return not math.isnan(to_number(text)) or text.strip().lower() in ("", "nan")


def fast_table(lines: Sequence[str], separator: str | None, n_column: int) -> np.ndarray | None:
    """Numbers (n_line, n_column), or None where cells have to be looked at one by one."""
    counts = {line.count(separator) + 1 if separator else len(line.split()) for line in lines}
    text = (separator or " ").join(lines)
    if separator:
        text = text.replace(f"{separator} ", separator)
        while 2 * separator in text:  # NumPy makes numbers of empty cells
            text = text.replace(2 * separator, f"{separator}nan{separator}")
        text = "nan" * text.startswith(separator) + text + "nan" * text.endswith(separator)
    if counts != {n_column} or '"' in text or (separator and any(c in text for c in " \t" if c != separator)):
        return None
    try:
        with warnings.catch_warnings(action="error"):
            values = np.fromstring(text, sep=separator or " ")
    except (ValueError, DeprecationWarning):
        return None
    whole = values.size == len(lines) * n_column and not np.isinf(values).any()
    return values.reshape(len(lines), n_column) if whole else None


def table_of(path: Path, lines: Sequence[str], separator: str | None, n_column: int, released: bool) -> np.ndarray:
    """Numbers (n_line, n_column), NaN in empty cells; released: of the layout that `HEADER` says, for the messages."""
    table = fast_table(lines, separator, n_column)
    if table is not None:
        return table
    rows = [[cell.strip(' "') for cell in line.split(separator)] for line in lines]
    row_name, cell_name = ("trace", "sample") if released else ("row", "column")
    note = ", where blanks separate too" * (separator is None)
    for i, row in enumerate(rows):
        if len(row) != n_column:
            expected = f"{n_column - released} as in the header{note}"
            raise bad(path, f"{len(row) - released} {cell_name}s in {row_name} {i}", expected)
    for i, row in enumerate(rows):
        for j, text in enumerate(row[released:]):
            if not is_number(text) or math.isinf(to_number(text)):
                raise bad(path, f"{text[:40]!r} at {cell_name} {j} of {row_name} {i}", "a finite number")
    return np.array([[to_number(text) for text in row] for row in rows])


def read_csv(path: Path) -> list[Signal]:
    """Signals of a text file: the layout of the paper's release, or traces in lines, or samples in lines."""
    lines = lines_of(path)
    if not lines:
        raise BadInput(f"{path}: {HEADER}; found no numbers")
    lines, separator = separated(path, lines)
    # Blanks that separate columns may stand before units, too.
    header = lines[0] if separator else re.sub(r"\s+(?=[(\[])", "", lines[0])
    names = [cell.strip(' "') for cell in header.split(separator)]
    n_column, has_names = len(names), not all(map(is_number, names)) or numbers_columns(path, names, lines, separator)
    if names[1:] == [str(k) for k in range(n_column - 1)] and n_column > 1 and math.isnan(to_number(names[0])):
        table = table_of(path, lines[1:], separator, n_column, released=True) if lines[1:] else np.zeros((0, 0))
        if len(table) in (0, n_column - 1):
            raise BadInput(f"{path}: {HEADER}; found {len(table)} lines below {n_column - 1} sample numbers")
        if len(table) < n_column - 1:
            return [Signal("traces", None, None, None, list(table[:, 1:]))]
    elif not names[0].strip() and n_column > 2 and all(name.isdigit() for name in names[1:]):
        raise BadInput(f"{path}: {HEADER}; found {names[1][:20]!r}, {names[2][:20]!r} behind an empty cell")
    elif not lines[has_names:]:
        raise bad(path, "no numbers below the header", LONGER)
    else:
        table = table_of(path, lines[has_names:], separator, n_column, released=False)
        table = table if has_names else samples_in_lines(path, table)
    return signals_of(path, names if has_names else [""] * table.shape[1], table)


def numbers_columns(path: Path, names: Sequence[str], lines: Sequence[str], separator: str | None) -> bool:
    """Whether the first line, 0, 1, 2, ..., numbers the columns, as pandas does: no number below it is an integer.

    Raises:
        BadInput: it is a 0 alone, which may be a sample.
    """
    below = (cell.strip(' "') for line in lines[1:] for cell in line.split(separator))
    if names != [str(k) for k in range(len(names))] or len(lines) < 2:
        return False
    if any(re.fullmatch(r"[-+]?\d+", cell) for cell in below):
        return False
    if len(names) == 1:
        raise bad(path, "0 above numbers with decimals, a header or a sample", f"0.0, or {EXAMPLE}")
    return True


def samples_in_lines(path: Path, table: np.ndarray) -> np.ndarray:
    """Numbers without a header as (T, n): traces are longer than they are many."""
    (n_line, n_column), first = table.shape, table[0, 0]
    if n_line == n_column:
        found = f"{n_line} lines of {n_column} numbers without a header"
        raise bad(path, found, f"traces longer than they are many, or {EXAMPLE}")
    jumps = n_line > 1 or np.ptp(table[0, 1:]) < abs(table[0, 1:2] - first)
    if n_line < n_column and jumps and first in (0, 1) and np.array_equal(table[:, 0], first + np.arange(n_line)):
        raise BadInput(f"{path}: {HEADER}; found an index and no header")
    return table if n_line > n_column else table.T


def signals_of(path: Path, names: Sequence[str], table: np.ndarray) -> list[Signal]:
    """Signals of columns (T, n), of which some may be times or an index."""
    what, first = [named(name) for name in names], table[:, 0]
    times = [i for i, (kind, _) in enumerate(what) if kind == "time"]
    dts = [sampling(path, names[i].strip(), table[:, i], what[i][1]) for i in times]
    starts = [table[0, i] * dt / step_of(table[:, i]) for i, dt in zip(times, dts, strict=True)]
    if len(names) > 1 and what[0][0] is None and len(first) > 2 and (np.diff(first) > 0).all():
        times.append(0)
        # Samples that are numbered do not say how far they are from each other.
        if not dts and not (step_of(first) == 1 and first[0] in (0, 1)):
            dts = [sampling(path, "the first column", first)]
            starts = [first[0] * dts[0] / step_of(first)]
    columns = [i for i in range(len(names)) if i not in times]
    if not 0 < len(columns) < len(table):
        raise bad(path, f"{len(columns)} sweeps of {len(table)} samples", LONGER)
    signals, dt, start = [], one_sampling(path, dts) if dts else None, float(starts[0]) if starts else 0.0
    for kind in (*QUANTITY, None):
        chosen = [i for i in columns if what[i][0] == kind]
        if len({what[i][1] for i in chosen}) > 1:
            raise bad(path, f"columns {listed([repr(names[i]) for i in chosen])}", f"one unit in all of a {kind}")
        alone = [chosen] if chosen == columns else [[i] for i in chosen]
        for sweeps in sweeps_of(names, chosen) if kind else alone:
            if sweeps:
                name, unit = names[sweeps[0]].strip() or "traces", what[sweeps[0]][1]
                values = list(np.ascontiguousarray(table[:, sweeps].T))
                taken = f"{path}: {name} to {names[sweeps[-1]].strip()} are taken for sweeps of one cell"
                notes = (taken,) * (len(sweeps) > 1 and kind == "voltage")
                signals.append(Signal(name, kind, unit, dt, values, start, notes))
    return signals


def sweeps_of(names: Sequence[str], columns: Sequence[int]) -> list[list[int]]:
    """Columns of one kind, signal by signal: names that differ in their numbers alone are sweeps of one signal."""
    signals: dict[str, list[int]] = {}
    for i in columns:
        signals.setdefault(re.sub(r"[\d.]+", "", names[i]).strip(), []).append(i)
    return list(signals.values())


# ---- Formats of arrays, and those that packages read ----------------------------------------------------------------


def read_npz(path: Path) -> list[Signal]:
    """Signals of a file that NumPy has written; what has another name may be anything, and is not looked at."""
    with foreign(path, "NPZ"), open(path, "rb") as binary, np.load(binary, allow_pickle=False) as file:
        arrays = {name: file[name] if named(name)[0] in UNITS else None for name in file.files}
    return signals_of_arrays(path, arrays)


def read_mat(path: Path) -> list[Signal]:
    """Signals of a file that MATLAB has written, also of version 7.3, or neo in its format.

    What a workspace has besides is not looked at: text, structs, what is empty, and numbers that are no times.
    """
    with foreign(path, "MAT"):
        arrays = arrays_of_mat(path)
    if "block" in arrays:
        return read_neo(path)
    kept: dict[str, np.ndarray | None] = dict.fromkeys(arrays)
    for name, x in arrays.items():
        kind = named(name)[0]
        if kind in UNITS and np.issubdtype(x.dtype, np.number) and x.size > (kind != "time"):
            kept[name] = x
    return signals_of_arrays(path, kept)


def arrays_of_mat(path: Path) -> dict[str, np.ndarray]:
    """{name: array} of a MAT file; of version 7.3, with an object for what is not numbers or empty."""
    import h5py

    if not h5py.is_hdf5(path):
        return {name: np.asarray(x) for name, x in scipy.io.loadmat(path).items() if not name.startswith("__")}

    def array(x):
        is_text = str(np.array(x.attrs.get("MATLAB_class", ""), "U")) in ("char", "cell")
        whole = isinstance(x, h5py.Dataset) and not is_text and "MATLAB_empty" not in x.attrs
        return np.asarray(x[()] if whole else None)

    with h5py.File(path) as file:
        return {name: array(x) for name, x in file.items()}


def signals_of_arrays(path: Path, arrays: Mapping[str, np.ndarray | None]) -> list[Signal]:
    """Signals of arrays with names such as current_nA, V_mV and dt_ms, of shape (T,), (T, n) or (n, T).

    None stands for what is not looked at. A number that is a time is the sampling if `OF_SAMPLING` says so; of others
    it is said that they are not.
    """
    dts, start, signals, others = [], 0.0, [], []
    for name, array in arrays.items():
        if array is None:
            continue
        (kind, unit), array = named(name), np.squeeze(array)
        found, n = f"{name} of {array.dtype} and shape {array.shape}", array.ndim
        if not (np.issubdtype(array.dtype, np.integer) or np.issubdtype(array.dtype, np.floating)):
            raise bad(path, found, "real numbers")
        if kind == "time" and n == 0 and not re.search(OF_SAMPLING, name.lower()):
            others.append(name)
        elif kind == "time" and n == 0:
            dts.append(sampling(path, name, np.arange(2) * array, unit))
        elif kind == "time" and n == 1:
            dts.append(sampling(path, name, array, unit))
            start = float(array[0] * dts[-1] / step_of(array))
        elif n not in (1, 2) or len(set(array.shape)) < n or array.size < 2 or kind == "time":
            raise bad(path, found, "(T,), (T, n) or (n, T) with T > n, or for dt a number")
        else:
            traces = array if n == 1 or array.shape[0] < array.shape[1] else array.T
            signals.append((name, kind, unit, list(np.atleast_2d(traces).astype(float))))
    if not signals:
        in_struct = " (not in a struct)" * (path.suffix.lower() == ".mat")
        raise bad(path, f"arrays {listed(list(arrays))}", f"names such as current_nA, V_mV and dt_ms{in_struct}")
    dt, notes = one_sampling(path, dts) if dts else None, (f"{path}: not taken for the sampling: {listed(others)}",)
    notes *= bool(others)
    return [Signal(name, kind, unit, dt, values, start, notes) for name, kind, unit, values in signals]


def checked_header(path: Path) -> bytes:
    """The header of an ABF file or Igor wave, if its sizes fit: pyabf and igor2 make lists as long as it says."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        header = file.read(6144)
    padded = header.ljust(6144, b"\0")
    if path.suffix.lower() == ".ibw":
        order = ">" if header[:1] == b"\0" else "<"
        layout = {1: "2xi", 2: "2x3i", 3: "2x4i", 5: "4x12i"}.get(*struct.unpack_from(f"{order}h", padded))
        sizes = struct.unpack_from(order + layout, padded) if layout else (-1,)
    elif header[:4] == b"ABF2":
        positions = (76, 92, 108, 124, 156, 172, 220, 236, 252, 316)  # of block, length and number of what pyabf reads
        sections = [struct.unpack_from("<3I", padded, position) for position in positions]
        sizes = [x for block, length, n in sections for x in (n, n and 512 * block + length * n)]
        sizes += struct.unpack_from("<I", padded, 12)
    else:
        (n_point, n_sweep), (n_channel,) = (
            struct.unpack_from("<i2xi", padded, 10),
            struct.unpack_from("<h", padded, 120),
        )
        block, tag_block, n_tag = struct.unpack_from("<3i", padded, 40)
        sizes = [n_sweep, n_point - n_sweep, block, 512 * block + 2 * n_point, n_channel - 1, 16 - n_channel]
        sizes += [n_tag, n_tag and 512 * tag_block + 64 * n_tag]
    if len(header) < 128 or not all(0 <= n <= size for n in sizes):
        raise ValueError("the sizes in its header do not fit")
    return header


def read_abf(path: Path) -> list[Signal]:
    """Signals of an Axon Binary File: its channels, and the command waveform where none of them is a current."""
    with foreign(path, "ABF"):
        import pyabf

        header = checked_header(path)
        abf = pyabf.ABF(str(path))
        old, variable = abf.abfVersion["major"] == 1, abf.nOperationMode == 1
        # abf.dataRate is rounded to whole hertz.
        dt = abf._headerV1.fADCSampleInterval * abf.channelCount if old else abf._protocolSection.fADCSequenceInterval
        dt, lengths = float(f"{dt * 1e-3:.7g}"), [abf.sweepPointCount] * abf.sweepCount
        if variable and not old:
            lengths = [n // abf.channelCount for n in abf._synchArraySection.lLength]
        # What is beyond a header of 2048 bytes, pyabf takes from the data.
        short = old and 512 * abf._headerV1.lDataSectionPtr < 6144
        odd = old and (variable or abf._headerV1.nNumPointsIgnored or (short and 1 in abf._headerV1.nTelegraphEnable))
        if odd or (variable and sum(lengths) != abf.data.shape[1]):
            raise ValueError("an old kind of ABF, or sweeps of variable length, that pyabf does not read")
        refuse_voltage_clamp(path, abf, short)
        units = [unit_of(unit) for unit in abf.adcUnits]
        commands = [] if short or "current" in dict(units) else commands_of(abf, header, dt)
        values = [np.split(channel.astype(float), np.cumsum(lengths))[: len(lengths)] for channel in abf.data]
    channels = zip(abf.adcNames, units, values, strict=True)
    return [
        Signal(name.strip("\0 "), *unit, dt, sweeps) for name, unit, sweeps in channels if unit[0] != "other"
    ] + commands


def refuse_voltage_clamp(path: Path, abf: Any, short: bool) -> None:
    """Raise `BadInput` where the amplifier says of all its channels, as a MultiClamp 700 does, that it clamps V."""
    of_channels = abf._headerV1 if abf.abfVersion["major"] == 1 else abf._adcSection
    fields = ("nTelegraphEnable", "nTelegraphInstrument", "nTelegraphMode")
    told = [] if short else [row for row in zip(*(getattr(of_channels, name) for name in fields), strict=True)]
    modes = {mode for enabled, amplifier, mode in told if enabled and amplifier == MULTICLAMP}
    if modes == {0}:
        raise bad(path, "a recording in voltage clamp, as its amplifier says", "one in current clamp")


def commands_of(abf: Any, header: bytes, dt: float) -> list[Signal]:
    """Waveforms (T,) that an amplifier was commanded in ampere, of the epochs that pyabf makes right.

    neo's `read_protocol` makes a step of every epoch, whether it is enabled or not. pyabf knows ramps and the level
    between sweeps, but of ABF1 it takes the first epoch for the holding level. Its waveforms are constant, wrong or not
    sure where the command is a file, a user list, pulses, sweeps that alternate, or no episodes: these are left out.
    """
    import pyabf.waveform

    old = abf.abfVersion["major"] == 1
    section, commands = abf._headerV1 if old else abf._dacSection, []
    if old:
        varied = any(struct.unpack_from("<4h", header, 3360))
        abf.holdingCommand, units = list(struct.unpack_from("<4f", header, 1378)), abf.dacUnits[:2]
    else:
        varied = any(abf.userListEnable) or abf._protocolSection.nAlternateDACOutputState
        units = [abf._stringsSection._indexedStrings[i] for i in section.lDACChannelUnitsIndex]
    for dac, unit in enumerate(units):
        # pyabf makes 0 of what is below 1e-6, in whatever unit.
        usable = unit in ("nA", "pA") and section.nWaveformEnable[dac] == section.nWaveformSource[dac] == 1
        if varied or abf.nOperationMode != 5 or not usable:
            continue
        table = pyabf.waveform.EpochTable(abf, dac)
        times = [[e.duration + e.durationDelta * k for e in table.epochs] for k in abf.sweepList]
        inside = all(min(d, default=0) >= 0 and 64 * sum(d) <= 63 * abf.sweepPointCount for d in times)
        if inside and {epoch.epochType for epoch in table.epochs} <= {1, 2}:
            values = [sweep.getWaveform().astype(float) for sweep in table.epochWaveformsBySweep]
            if np.isfinite(values).all():
                commands.append(Signal(f"{COMMAND}{dac}", "current", unit, dt, values))
    return commands


@dataclasses.dataclass(frozen=True)
class Series:
    """A time series of an NWB file: values (T,) (V or A) from start (ms) every dt (ms), or none but zeros."""

    kind: str
    electrode: str
    number: int | None
    start: float
    dt: float
    values: np.ndarray
    is_zero: bool


Pair = tuple[Series | None, Series | None]  # potentials and current of a sweep


def read_nwb(path: Path) -> list[Signal]:
    """Signals of the current clamp series of an NWB file: a current and a voltage for each electrode."""
    with foreign(path, "NWB"):
        from pynwb import NWBHDF5IO
        from pynwb.icephys import CurrentClampSeries, CurrentClampStimulusSeries

        with NWBHDF5IO(str(path), "r") as file:
            nwb = file.read()
            found = sorted([*nwb.acquisition.values(), *nwb.stimulus.values()], key=lambda x: in_order(x.name))
            types = CurrentClampSeries | CurrentClampStimulusSeries
            series = {x.object_id: series_of(path, x) for x in found if isinstance(x, types)}
            biases = [
                1e9 * np.nan_to_num(getattr(x, "bias_current", None) or 0.0) for x in found if isinstance(x, types)
            ]
            rows, table = [], nwb.intracellular_recordings
            for i in range(len(table) if table is not None else 0):
                pair = []
                for category, column in (("responses", "response"), ("stimuli", "stimulus")):
                    first, count, x = table.category_tables[category][column][i]
                    part, values = series.get(x.object_id) if first >= 0 else None, slice(first, first + count)
                    cut = part and dict(start=part.start + first * part.dt, values=part.values[values])
                    pair.append(part and dataclasses.replace(part, **cut))
                rows.append(tuple(pair))
    if not series:
        names = listed(sorted({type(x).__name__ for x in found})) or "no series"
        raise bad(path, names, "CurrentClampSeries and CurrentClampStimulusSeries")
    pairs = pairs_of(path, list(series.values()), rows)
    notes = []
    if bias := max(biases, key=abs):
        held = f"beside its stimuli {path} names a bias current of {bias:.3g} nA"
        notes.append(f"WARNING: {held}, which is not added: what holds the cell is in its rest (EL, V_rest) then")
    n_response, n_pair = sum(s.kind == "voltage" for s in series.values()), sum(all(pair) for pair in pairs)
    if n_pair and n_response > n_pair:
        notes.append(f"{path}: {n_response - n_pair} potentials without a current are left out, and not numbered")
    return [dataclasses.replace(signal, notes=tuple(notes)) for signal in signals_of_pairs(path, pairs)]


def in_order(name: str) -> list[tuple[str, int]]:
    """A key that sorts names by the numbers in them: sweep_2 before sweep_10."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]


def series_of(path: Path, x: Any) -> Series:
    """A CurrentClampSeries or CurrentClampStimulusSeries of pynwb."""
    # A damaged header may ask for any memory; compression makes data at most 1032 times smaller.
    if x.data.ndim != 1 or x.data.size * x.data.dtype.itemsize > 1100 * path.stat().st_size:
        raise ValueError(f"{x.name} has the shape {x.data.shape}")
    t = x.starting_time + np.arange(2) / x.rate if x.rate else np.asarray(x.timestamps[:], float)
    values = x.data[:] * float(x.conversion) + float(x.offset)
    kind = "current" if type(x).__name__.endswith("StimulusSeries") else "voltage"
    number = None if x.sweep_number is None else int(x.sweep_number)
    dt = 1e3 / x.rate if x.rate else sampling(path, f"the timestamps of {x.name}", t, "s")
    return Series(kind, x.electrode.name, number, 1e3 * t[0], dt, values, type(x).__name__ == "IZeroClampSeries")


def pairs_of(path: Path, series: Sequence[Series], rows: Sequence[Pair]) -> list[Pair]:
    """Pairs by the table of recordings, else by sweep number, else in the order of time."""
    responses, stimuli = ([s for s in series if s.kind == kind] for kind in ("voltage", "current"))
    pairs: list[Pair] = list(rows)
    if not rows and (not responses or not stimuli):
        pairs = [(r, None) for r in responses] + [(None, s) for s in stimuli]
    elif not rows and all(s.number is not None for s in series):
        numbered = {(s.electrode, s.number): s for s in stimuli}
        pairs = [(r, numbered.get((r.electrode, r.number))) for r in sorted(responses, key=lambda s: s.number)]
    elif not rows:
        responses, stimuli = (sorted(each, key=lambda s: (s.electrode, s.start)) for each in (responses, stimuli))
        if [s.electrode for s in responses] != [s.electrode for s in stimuli]:
            found = f"{len(responses)} potentials and {len(stimuli)} currents"
            raise bad(path, found, "equal numbers, sweep numbers, or a table of intracellular recordings")
        pairs = list(zip(responses, stimuli, strict=True))
    zeros = [r and r.is_zero and dataclasses.replace(r, values=np.zeros_like(r.values)) for r, _ in pairs]
    pairs = [(r, s or zero or None) for (r, s), zero in zip(pairs, zeros, strict=True)]
    # Without their currents, potentials can still belong to a file of currents.
    whole, of_potentials = [p for p in pairs if all(p)], [(r, None) for r, _ in pairs if r]
    return whole or of_potentials or [p for p in pairs if any(p)]


def signals_of_pairs(path: Path, pairs: Sequence[Pair]) -> list[Signal]:
    """A voltage and a current signal for each electrode."""
    groups: dict[str, list[Pair]] = {}
    for pair in pairs:
        known = [series for series in pair if series]
        late = known[-1].start - known[0].start
        # Further apart than a sweep is long, they have different clocks.
        if known[0].dt / 2 < abs(late) < known[0].dt * len(known[0].values):
            raise bad(path, f"a current that starts {late:g} ms after its potential", "pairs that start together")
        groups.setdefault(known[0].electrode, []).append(pair)
    signals = []
    for electrode, group in groups.items():
        dt = one_sampling(path, [series.dt for pair in group for series in pair if series])
        for kind, unit, column in zip(("voltage", "current"), "VA", zip(*group, strict=True), strict=True):
            signals.append(Signal(electrode, kind, unit, dt, [series.values for series in column if series]))
    return signals


def read_neo(path: Path) -> list[Signal]:
    """Signals of a file that neo reads: segments are sweeps. Files of endings that it does not know are CSV."""
    with foreign(path, f"a {path.suffix} file"):
        import neo.io

        # These run what is in a file, or take anything for numbers.
        unwanted = {"AsciiSignalIO", "AsciiSpikeTrainIO", "PickleIO", "RawBinarySignalIO"}
        readers = neo.io.io_by_extension.get(path.suffix[1:].lower(), [])
        readers = [cls for cls in readers if cls.__name__ not in unwanted]
    if not readers:
        return read_csv(path)
    for reader in readers:
        channels: dict[tuple[Any, ...], list[tuple[float, float, np.ndarray]]] = {}
        try:
            with foreign(path, f"{path.suffix} by neo's {reader.__name__}"):
                if path.suffix == ".ibw":
                    checked_header(path)
                segments = [segment for block in reader(str(path)).read() for segment in block.segments]
                for segment in segments:
                    starts = [float(signal.t_start.rescale("ms")) for signal in segment.analogsignals]
                    if starts and np.ptp(starts) > float(segment.analogsignals[0].sampling_period.rescale("ms")) / 2:
                        raise bad(path, f"channels that start {np.ptp(starts):g} ms apart", "those that start together")
                    add_channels(channels, segment.analogsignals)
            break
        except BadInput:
            if reader is readers[-1]:
                raise
    found, ours = [], {key: sweeps for key, sweeps in channels.items() if unit_of(key[-1])[0] != "other"}
    missing = [f"{name} ({len(sweeps)})" for (*_, name, _), sweeps in ours.items() if len(sweeps) < len(segments)]
    left_out = f"left out is what is not in all of its {len(segments)} sweeps: {listed(missing)}"
    notes = (f"{path}: {left_out}",) * bool(missing)
    for (*_, name, unit), sweeps in ours.items():
        if len(sweeps) >= len(segments):
            starts, dts, values = (list(each) for each in zip(*sweeps, strict=True))
            dt = one_sampling(f"{path}, {name}", dts)
            found.append(Signal(name, *unit_of(unit), dt, values, starts[0], notes))
    if missing and not found:
        raise bad(path, left_out, "channels that all sweeps have")
    return found


def add_channels(
    channels: dict[tuple[Any, ...], list[tuple[float, float, np.ndarray]]], signals: Sequence[Any]
) -> None:
    """Add {(position, channel, name, unit): [(start, dt, values)]} (ms) of neo; columns without names are sweeps."""
    for position, signal in enumerate(signals):
        unit = signal.units.dimensionality.string
        for known in ("pA", "mV") if unit_of(unit)[0] == "other" else ():
            with contextlib.suppress(ValueError):
                signal, unit = signal.rescale(known), known
        names, dt = signal.array_annotations.get("channel_names", []), float(signal.sampling_period.rescale("ms"))
        for k, values in enumerate(np.asarray(signal.magnitude, float).T):
            key = (position, k, str(names[k]), unit) if len(names) else (position, 0, signal.name or "channel", unit)
            channels.setdefault(key, []).append((float(signal.t_start.rescale("ms")), dt, values))


READERS: dict[str, Callable[[Path], list[Signal]]] = dict.fromkeys((".csv", ".tsv", ".txt"), read_csv)
READERS |= {".abf": read_abf, ".npz": read_npz, ".nwb": read_nwb, ".mat": read_mat}


@np.errstate(all="ignore")
def read_signals(path: Path) -> list[Signal]:
    """Signals of a file, by the reader of its ending; of other endings by neo if it has one for them, else as CSV."""
    path = Path(path)
    try:
        with open(path, "rb") as file:
            start = file.read(4096)
    except OSError as error:
        raise BadInput(f"{path}: {runs.reason_of(error)}; expected a file of traces") from None
    is_text = path.suffix.lower() in ("", ".dat") and b"\0" not in start
    reader = READERS.get(path.suffix.lower(), read_csv if is_text else read_neo)
    signals = [signal for signal in reader(path) if signal.values]
    wrong = [signal.dt for signal in signals if signal.dt is not None and not 0 < signal.dt < math.inf]
    if wrong or not signals:
        raise bad(path, f"samples every {wrong[0]:g} ms" if wrong else "no current and no potential", "some")
    return signals
