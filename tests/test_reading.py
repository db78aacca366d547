"""What reading.py makes of the files of labs, and of files that are damaged or not what they seem."""

import contextlib
import dataclasses
import warnings
from pathlib import Path

from runs import BadInput

import formats
import h5py
import numpy as np
import pytest
import scipy.io
from formats import DT, LSB_I, LSB_V

import file_formats
import reading
from reading import Files, Sweeps
from recordings import Piece, Source, overlap

ROOT = Path(__file__).resolve().parents[1]
CELL = ROOT.parent / "shared" / "recordings" / "cell3"
REFERENCE = ROOT.parent / "shared" / "hh_reference"
CURRENT, V = formats.example()  # pA and mV, (3, 400)
I = CURRENT * 1e-3  # nA


def two_channels(V=V, current=CURRENT):
    return [("Vm", "mV", LSB_V, V), ("Im", "pA", LSB_I, current)]


def write_pair(folder):
    """I.csv and V.csv in the layout of the paper's release, in the units that are the default."""
    return [formats.released(folder / "I.csv", I * 1e-9)], [formats.released(folder / "V.csv", V)]


def assert_example(sweeps, dt=DT):
    reading.check(sweeps)
    np.testing.assert_allclose(sweeps.current, I, rtol=1e-12)
    np.testing.assert_allclose(sweeps.V, V, rtol=1e-12)
    assert sweeps.dt == pytest.approx(dt, rel=1e-9)


def refusal(files):
    """The one line with which files are refused."""
    with pytest.raises(BadInput) as refused:
        reading.check(reading.read(files))
    text = str(refused.value)
    assert len(text.splitlines()) == 1
    assert text.isprintable()
    assert "expected" in text or "leave it out" in text
    return text


# ---- The same sweeps in every format --------------------------------------------------------------------------------

TIME = np.arange(V.shape[1]) * DT
NAMES = ["t (ms)", "I1 (nA)", "I2 (nA)", "I3 (nA)", "V1 (mV)", "V2 (mV)", "V3 (mV)"]


def npz(path, **arrays):
    np.savez(path, **arrays)
    return path


def csv_recording(path, names=NAMES, time=TIME, **how):
    return formats.columns(path, names, [time, *I, *V], **how)


def mat(path, **arrays):
    scipy.io.savemat(path, arrays)
    return path


def mat_of_hdf5(path, **arrays):
    """As MATLAB's version 7.3, which has columns for rows."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, x in arrays.items():
            file[name] = np.atleast_2d(x).T
            file[name].attrs["MATLAB_class"] = np.bytes_("double")
        file["V_unit"] = np.array([[109], [86]], np.uint16)
        file["V_unit"].attrs["MATLAB_class"] = np.bytes_("char")
        file.create_group("cell")["V_mV"] = 1.0
    return path


RECORDINGS = {
    "csv": lambda folder: csv_recording(folder / "r.csv"),
    "csv, time in s": lambda folder: csv_recording(folder / "r.csv", ["time/s", *NAMES[1:]], TIME * 1e-3),
    "csv, time by its steps": lambda folder: csv_recording(folder / "r.csv", ["", *NAMES[1:]], TIME * 1e-3 + 2),
    "txt, tabs": lambda folder: csv_recording(folder / "r.txt", separator="\t"),
    "dat, blanks": lambda folder: csv_recording(folder / "r.dat", separator="  "),
    "csv, ; and decimal commas": lambda folder: csv_recording(folder / "r.csv", separator=";", comma=True),
    "npz": lambda folder: npz(folder / "r.npz", current_nA=I, V_mV=V, dt_ms=DT),
    "npz, other names": lambda folder: npz(folder / "r.npz", I_pA=CURRENT.T, Vm_V=V.T * 1e-3, dt_s=DT * 1e-3),
    "npz, a time, and other numbers": lambda folder: npz(
        folder / "r.npz", I_nA=I, V_mV=V, t_ms=TIME, t_stop_ms=0.5, dt_ms=DT, t_pulse=0.1, x=np.array("a")
    ),
    "npz, sampling interval": lambda folder: npz(folder / "r.npz", I_nA=I, V_mV=V, sampling_interval_us=DT * 1e3),
    "mat": lambda folder: mat(
        folder / "r.mat", current_nA=I, V_mV=V, dt_ms=DT, V_unit="mV", V_rest_mV=-70.0, t_ms=[], cell=dict(V_mV=1.0)
    ),
    "mat 7.3": lambda folder: mat_of_hdf5(folder / "r.mat", I_pA=CURRENT, Vm_V=V * 1e-3, dt_s=DT * 1e-3),
    "nwb": lambda folder: formats.nwb(folder / "r.nwb", CURRENT, V),
    "nwb, by time": lambda folder: formats.nwb(folder / "r.nwb", CURRENT, V, table=False),
    "nwb, by sweep number": lambda folder: formats.nwb(folder / "r.nwb", CURRENT, V, table=False, numbers=True),
    "nwb, timestamps": lambda folder: formats.nwb(folder / "r.nwb", CURRENT, V, timestamps=True),
    "abf1": lambda folder: formats.abf1(folder / "r.abf", two_channels()),
    "abf2": lambda folder: formats.abf2(folder / "r.abf", two_channels()),
}


@pytest.mark.newest
@pytest.mark.parametrize("name", RECORDINGS)
def test_a_recording_is_the_same_in_every_format(name, tmp_path):
    path = RECORDINGS[name](tmp_path)
    sweeps = reading.read(Files(recording=[path]))
    assert_example(sweeps)
    assert sweeps.names == [f"{path}, sweep {i}" for i in range(3)]
    unit = sweeps.said[0].split(",")[0].removeprefix("current: ")
    assert sweeps.said[0] == f"current: {unit}, as {path.name} says"
    assert sweeps.said[2] == f"sampling: 0.05 ms, as {path.name} says"
    # The file knows better than the arguments, which may repeat it.
    assert_example(reading.read(Files(recording=[path], dt=DT * 1.0005, current_unit=unit)))


@pytest.mark.parametrize("version", [2, 5])
def test_igor_waves_are_sweeps_of_a_current_and_a_voltage(version, tmp_path):
    current = [formats.ibw(tmp_path / f"I{i}.ibw", x * 1e-9, "A", version) for i, x in enumerate(I)]
    voltage = [formats.ibw(tmp_path / f"V{i}.ibw", x * 1e-3, "V", version) for i, x in enumerate(V)]
    sweeps = reading.read(Files(current=current, voltage=voltage))
    assert_example(sweeps)
    assert sweeps.said[0] == "current: A, as I0.ibw and 2 more files say"
    if version == 5:
        matrix = [
            formats.ibw(tmp_path / f"{unit}.ibw", x, unit, 5) for unit, x in (("A", I.T * 1e-9), ("V", V.T * 1e-3))
        ]
        assert_example(reading.read(Files(current=matrix[:1], voltage=matrix[1:])))


def test_igor2_and_neo_agree_on_the_waves_written_here(tmp_path):
    import igor2.binarywave
    from neo.io import IgorIO

    for version in (2, 5):
        path = formats.ibw(tmp_path / "V.ibw", V[0] * 1e-3, "V", version)
        np.testing.assert_array_equal(igor2.binarywave.load(str(path))["wave"]["wData"], V[0] * 1e-3)
        signal = IgorIO(str(path)).read_analogsignal()
        np.testing.assert_array_equal(signal.magnitude[:, 0], V[0] * 1e-3)
        assert str(signal.units.dimensionality) == "V"
        assert float(signal.sampling_period.rescale("ms")) == pytest.approx(DT)


@pytest.mark.parametrize("write", [formats.abf1, formats.abf2])
def test_pyabf_and_neo_agree_on_the_files_written_here(write, tmp_path):
    import pyabf
    from neo.io import AxonIO

    path = write(tmp_path / "r.abf", two_channels())
    abf, segments = pyabf.ABF(str(path)), AxonIO(str(path)).read()[0].segments
    assert abf.sweepCount == len(segments) == 3
    for i, segment in enumerate(segments):
        for channel, (signal, expected) in enumerate(zip(segment.analogsignals, (V, CURRENT), strict=True)):
            abf.setSweep(i, channel)
            np.testing.assert_array_equal(abf.sweepY, expected[i])
            np.testing.assert_array_equal(signal.magnitude[:, 0], expected[i])
            assert str(signal.units.dimensionality) == abf.sweepUnitsY == ("mV", "pA")[channel]
            assert float(signal.sampling_period.rescale("ms")) == pytest.approx(DT)
    assert abf.dataRate == 1e3 / DT


def test_segments_of_neo_are_sweeps(tmp_path):
    import neo
    import quantities

    block = neo.Block()
    for current, trace in zip(CURRENT, V * 1e-3, strict=True):
        signals = [(trace, "V", "Vm"), (current, "pA", "Im"), (trace, "degC", "bath")]
        block.segments.append(neo.Segment())
        for values, units, name in signals:
            how = dict(units=units, sampling_rate=1 / DT * quantities.kHz, name=name)
            block.segments[-1].analogsignals.append(neo.AnalogSignal(values[:, None], **how))
    neo.io.NeoMatlabIO(str(tmp_path / "r.mat")).write_block(block)
    assert_example(reading.read(Files(recording=[tmp_path / "r.mat"])))
    # A channel of some of them is none, and that is said.
    extra = neo.AnalogSignal(V[0][:, None], units="mV", sampling_rate=1 / DT * quantities.kHz, name="V2")
    block.segments[1].analogsignals.append(extra)
    neo.io.NeoMatlabIO(str(tmp_path / "s.mat")).write_block(block)
    sweeps = reading.read(Files(recording=[tmp_path / "s.mat"]))
    assert_example(sweeps)
    assert sweeps.said[3:] == [f"{tmp_path / 's.mat'}: left out is what is not in all of its 3 sweeps: V2 (1)"]


def test_files_of_neo_that_begin_apart_are_refused(tmp_path):
    import neo
    import quantities

    files = []
    for name, x, units, start in (("I", CURRENT[0], "pA", 0), ("V", V[0], "mV", 200)):
        how = dict(units=units, sampling_rate=1 / DT * quantities.kHz, t_start=start * quantities.ms)
        segment, block = neo.Segment(), neo.Block()
        segment.analogsignals.append(neo.AnalogSignal(x[:, None], name=name, **how))
        block.segments.append(segment)
        files.append(tmp_path / f"{name}.mat")
        neo.io.NeoMatlabIO(str(files[-1])).write_block(block)
    text = refusal(Files(current=files[:1], voltage=files[1:]))
    assert text == f"{files[1]}: found times that begin 200 ms after those of {files[0]}, expected the same start"


@pytest.mark.skipif(not CELL.is_dir(), reason="the recording is not here")
def test_a_recording_of_a_lab():
    files = Files(current=sorted(CELL.glob("Test_ch3_*.ibw")), voltage=sorted(CELL.glob("Test_ch2_*.ibw")))
    sweeps = reading.read(files)
    reading.check(sweeps)
    assert [len(x) for x in sweeps.current] == [len(x) for x in sweeps.V] == [200000] * 9
    assert sweeps.dt == 0.1
    assert sweeps.said[:2] == [
        f"{k}, as Test_ch{c}_1009.ibw and 8 more files say" for k, c in (("current: A", 3), ("voltage: V", 2))
    ]
    for x, V in zip(sweeps.current, sweeps.V, strict=True):
        assert np.abs(x - sweeps.current[0]).max() < 2e-3
        assert -75 < np.percentile(V, 1) < -55
        assert 220 <= np.sum((V[:-1] < -10) & (V[1:] >= -10)) <= 236


@pytest.mark.parametrize("folder", [REFERENCE, ROOT / "data"])
@pytest.mark.parametrize(("name", "dt"), [("hh", 0.01), ("hh_validation", 0.01), ("gif", 0.1)])
def test_the_traces_of_the_paper_and_of_the_project_are_plausible(folder, name, dt):
    current, voltage = (folder / f"{kind}_traces_{name}.csv" for kind in ("input", "output"))
    if not current.exists():
        pytest.skip("the traces are not here")
    sweeps = reading.read(Files(current=[current], voltage=[voltage], dt=dt))
    reading.check(sweeps)
    for path, traces, unit in ((current, sweeps.current, 1e9), (voltage, sweeps.V, 1)):
        expected = np.loadtxt(path, delimiter=",", skiprows=1)[:, 1:] * unit
        np.testing.assert_allclose(traces, expected, rtol=1e-12)
    assert sweeps.said == [
        "current: A, as --current_unit has it by default",
        "voltage: mV, as --voltage_unit has it by default",
        f"sampling: {dt} ms, as --dt says",
    ]


# ---- Text files -----------------------------------------------------------------------------------------------------


def only_traces(path, **how):
    formats.columns(path, [], how.pop("traces", V), **how)
    return path


TEXTS = {
    "released": lambda path: formats.released(path, V),
    "released, transposed": lambda path: path.write_text(
        ",0,1,2\n" + "".join(f"{k},{','.join(map(str, row))}\n" for k, row in enumerate(V.T))
    ),
    "columns": only_traces,
    "columns behind times": lambda path: only_traces(path, traces=[TIME, *V]),
    "columns behind an index": lambda path: only_traces(path, traces=[np.arange(1, 401), *V]),
    "columns of names that say nothing": lambda path: formats.columns(path, ["cell 1", "cell 2", "cell 3"], V),
    "columns below their numbers": lambda path: formats.columns(path, ["0", "1", "2"], V),
    "lines": lambda path: path.write_text("\n".join(",".join(map(str, trace)) for trace in V)),
    "lines below times": lambda path: path.write_text("\n".join(",".join(map(str, t)) for t in [TIME, *V])),
    "; and decimal commas": lambda path: only_traces(path, separator=";", comma=True),
    "blanks and decimal commas": lambda path: only_traces(path, separator="  ", comma=True),
    ", and blanks": lambda path: only_traces(path, separator=", "),
    "tabs": lambda path: only_traces(path, separator="\t"),
    "quotes": lambda path: path.write_text("".join(",".join(f'"{x}"' for x in row) + "\n" for row in V.T)),
    "a byte order mark and comments": lambda path: path.write_bytes(
        b"\xef\xbb\xbf# of a lab\r\n% units: mV\r\n" + only_traces(path).read_bytes().replace(b"\n", b"\r\n") + b"\r\n"
    ),
    "UTF-16": lambda path: path.write_text(only_traces(path).read_text(), encoding="utf-16"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_layouts_of_text(name, tmp_path):
    current = [formats.released(tmp_path / "I.csv", I * 1e-9)]
    TEXTS[name](tmp_path / "V.csv")
    dt = None if "times" in name else DT
    sweeps = reading.read(Files(current=current, voltage=[tmp_path / "V.csv"], dt=dt))
    assert_example(sweeps)
    assert sweeps.said[2] == f"sampling: 0.05 ms, as {'--dt' if dt else 'V.csv'} says"


@pytest.mark.parametrize("separator", [",", "; ", "\t"])
@pytest.mark.parametrize("missing", ["", "nan", "NaN"])
def test_missing_cells_are_nan(separator, missing, tmp_path):
    """A parser of NumPy makes -1 of ' ,1'."""
    rows = [[str(x) for x in row] for row in V.T]
    rows[0][0] = rows[7][1] = rows[8][2] = rows[9][2] = rows[399][2] = missing
    (tmp_path / "V.csv").write_text("\n".join(separator.join(row) for row in rows))
    expected = V.copy()
    expected[0, 0] = expected[1, 7] = expected[2, [8, 9, 399]] = np.nan
    values = file_formats.read_signals(tmp_path / "V.csv")[0].values
    np.testing.assert_array_equal(values, expected)


def test_a_line_of_one_trace(tmp_path):
    (tmp_path / "V.csv").write_text(" ".join(map(str, V[0])))
    np.testing.assert_array_equal(file_formats.read_signals(tmp_path / "V.csv")[0].values, V[:1])
    formats.columns(tmp_path / "V.csv", ["V (mV)"], V[:1], comma=True)
    signal = file_formats.read_signals(tmp_path / "V.csv")[0]
    assert (signal.kind, signal.unit) == ("voltage", "mV")
    np.testing.assert_array_equal(signal.values, V[:1])


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "V": ("voltage", None),
        "dV/dt (mV/ms)": ("other", None),
        "gain [mV/pA]": ("other", None),
        "I (pA/pF)": ("other", None),
        "Vm [mV]": ("voltage", "mV"),
        "V_mV": ("voltage", "mV"),
        "V_V": ("voltage", "V"),
        "V 2": ("voltage", None),
        "Membrane potential (\xb5V)": ("voltage", "uV"),
        "mV": ("voltage", "mV"),
        "I (nA)": ("current", "nA"),
        "I_inj_nA": ("current", "nA"),
        "I (pA) sweep 2": ("current", "pA"),
        "current/pA": ("current", "pA"),
        "I_A": ("current", "A"),
        "t (ms)": ("time", "ms"),
        "time_us": ("time", "us"),
        "t": ("time", None),
        "trace A": (None, None),
        "sweep_V": (None, None),
        "trigger": (None, None),
        "0": (None, None),
        "": (None, None),
    }.items(),
)
def test_what_names_say(name, expected):
    assert file_formats.named(name) == expected


def lines(*rows):
    return "\n".join(rows) + "\n"


def with_cell(text, row, column, traces=V):
    rows = [[str(x) for x in row] for row in traces.T]
    rows[row][column] = text
    return lines(*(",".join(cells) for cells in rows))


TIMED = "\n".join(f"{{}},{x}" for x in V[0])
RELEASED = [",0,1,2,3", "0,-65,-65,-64,-63", "1,-65,-65,-64,-63"]
UNEVEN = TIME + 0.3 * (np.arange(400) > 200) * DT
BAD_TEXTS = {
    "": "expected a header of sample numbers (,0,1,2,...) and then an index and a trace a line; found no numbers",
    lines("# nothing"): "found no numbers",
    ",0,1,2,3\n": "found 0 lines below 4 sample numbers",
    lines(",0,1,3", *RELEASED[1:]): "expected a header of sample numbers (,0,1,2,...)",
    lines(*RELEASED[:2], "1,-65,-65,-64"): "found 3 samples in trace 1, expected 4 as in the header",
    lines(*RELEASED[:2], "1,-65,spike,-64,-63"): "found 'spike' at sample 1 of trace 1, expected a finite number",
    lines(*RELEASED[:2], "1,-65,inf,-64,-63"): "found 'inf' at sample 1 of trace 1, expected a finite number",
    lines(",0,1", "0,-65,-64", "1,-65,-64"): "found 2 lines below 2 sample numbers",
    lines(*RELEASED[1:]): "found an index and no header",
    lines("1,2,3", "4,5,6", "7,8,8"): "found 3 lines of 3 numbers without a header",
    with_cell("x", 7, 1): "found 'x' at column 1 of row 7, expected a finite number",
    with_cell("inf", 7, 1): "found 'inf' at column 1 of row 7",
    with_cell("1,2", 7, 1): "found 4 columns in row 7, expected 3 as in the header",
    lines(
        "I Vm of cell 3", *(f"0.1 {x}" for x in V[0])
    ): "found 2 columns in row 0, expected 5 as in the header, where blanks separate too",
    lines(
        "I (nA),I2 (pA)", *(f"0.1,{x}" for x in V[0])
    ): "found columns 'I (nA)', 'I2 (pA)', expected one unit in all of a current",
    lines("V1,V2,V3", "-65,-64,-63", "-65,-64,-62"): "found 3 sweeps of 2 samples, expected traces longer",
    lines("V (mV)"): "found no numbers below the header",
    lines("0", *map(str, V[0])): "found 0 above numbers with decimals, a header or a sample, expected 0.0, or a header",
    lines("t (ms)", *map(str, TIME)): "found 0 sweeps of 400 samples",
    lines(
        "t,V", *(f"{t},{x}" for t, x in zip(UNEVEN, V[0], strict=True))
    ): "found unequal steps in t, expected times in",
    lines(*(f"{t},{x}" for t, x in zip(UNEVEN, V[0], strict=True))): "found unequal steps in the first column",
    lines("t,V", *(f"{2 * k},{x}" for k, x in enumerate(V[0]))): "found times in steps of 2, expected their unit",
    lines(*(f"{0.002 * k},{x}" for k, x in enumerate(V[0]))): "found times in steps of 0.002, expected their unit",
    lines(
        "t (ms),time (s),V", *(f"{0.1 * k},{0.2 * k},-65" for k in range(400))
    ): "found samples every 0.1 and every 200 ms",
    lines(*(f"{x:.2f}".replace(".", ",") for x in V[0])): "a decimal comma or two numbers, expected decimal points",
    b"\x80\x81\xff" * 100: "not CSV (bytes that are no text)",
    b"-65,-64\n\0\0\0": "not CSV (bytes that are no text)",
}


@pytest.mark.parametrize(("text", "message"), BAD_TEXTS.items(), ids=range(len(BAD_TEXTS)))
def test_text_that_is_refused(text, message, tmp_path):
    path = tmp_path / "V.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput) as refused:
        file_formats.read_signals(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert message in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


# ---- Other formats --------------------------------------------------------------------------------------------------

BAD_ARRAYS = {
    "no names": (dict(x=V), "found arrays x, expected names such as current_nA, V_mV and dt_ms"),
    "square": (
        dict(V_mV=V[:, :3]),
        "found V_mV of float64 and shape (3, 3), expected (T,), (T, n) or (n, T) with T > n",
    ),
    "three axes": (dict(V_mV=np.zeros((2, 3, 4))), "and shape (2, 3, 4), expected"),
    "text": (dict(V_mV=np.array(["a", "b"])), "expected real numbers"),
    "complex": (dict(V_mV=V * 1j), "expected real numbers"),
    "objects": (dict(V_mV=np.array([None, 1.0])), "cannot be read as NPZ (Object arrays cannot be loaded"),
    "dt of two axes": (dict(V_mV=V, dt_ms=V), "found dt_ms of float64 and shape (3, 400)"),
    "dt without unit": (dict(V_mV=V, dt=3.0), "found times in steps of 3, expected their unit"),
    "negative dt": (dict(V_mV=V, dt_ms=-0.1), "found unequal steps in dt_ms"),
    "times of another dt": (dict(V_mV=V, t_ms=TIME, dt_ms=0.1), "found samples every 0.05 and every 0.1 ms"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_arrays_that_are_refused(name, tmp_path):
    arrays, message = BAD_ARRAYS[name]
    np.savez(tmp_path / "V.npz", **arrays)
    assert message in refusal(Files(current=[tmp_path / "V.npz"], dt=DT))


def test_a_time_that_is_no_sampling(tmp_path):
    path = npz(tmp_path / "r.npz", I_nA=I, V_mV=V, t_pulse_ms=0.5)
    assert "argument --dt: found nothing, expected the time between samples (ms)" in refusal(Files(recording=[path]))
    sweeps = reading.read(Files(recording=[path], dt=DT))
    assert_example(sweeps)
    assert sweeps.said[3:] == [f"{path}: not taken for the sampling: t_pulse_ms"]
    path = mat(tmp_path / "s.mat", data=dict(current_nA=I, V_mV=V))
    assert "found arrays data, expected names such as current_nA, V_mV and dt_ms (not in a struct)" in refusal(
        Files(recording=[path])
    )


EPOCHS = [(1, 50.0, 25.0, 100, 10), (2, 200.0, 0.0, 60, 0), (1, -25.0, 0.0, 30, 0)]


def commanded(holding=8.0, keep=False):
    """The waveforms (pA) of EPOCHS, by what an amplifier does: a step, a ramp, a step, and what was before or stays."""
    waveforms = np.full((3, 400), holding)
    for k, x in enumerate(waveforms):
        start, length = 400 // 64, 100 + 10 * k
        x[:start] = -25 if keep and k else holding
        x[start : start + length] = 50 + 25 * k
        x[start + length : start + length + 60] = np.linspace(50 + 25 * k, 200, 60)
        x[start + length + 60 : start + length + 90] = -25
        x[start + length + 90 :] = -25 if keep else holding
    return waveforms


@pytest.mark.parametrize("keep", [False, True])
def test_the_command_of_abf2_is_the_current_where_none_is_recorded(keep, tmp_path):
    path = formats.abf2(tmp_path / "r.abf", two_channels()[:1], EPOCHS, holding=8.0, keep_level=keep)
    sweeps = reading.read(Files(recording=[path]))
    np.testing.assert_allclose(sweeps.current, commanded(keep=keep) * 1e-3, rtol=1e-6)
    np.testing.assert_array_equal(sweeps.V, V)
    assert sweeps.said[0] == "current: the command waveform (pA), for there is no current channel, as r.abf says"


def test_the_command_of_abf1_begins_at_the_holding_level(tmp_path):
    """pyabf begins it at the level of the first epoch."""
    path = formats.abf1(tmp_path / "r.abf", two_channels()[:1], EPOCHS, holding=8.0)
    sweeps = reading.read(Files(recording=[path]))
    np.testing.assert_allclose(sweeps.current, commanded() * 1e-3, rtol=1e-6)


def test_a_recorded_current_goes_before_the_command(tmp_path):
    assert_example(reading.read(Files(recording=[formats.abf2(tmp_path / "r.abf", two_channels(), EPOCHS)])))


UNUSABLE = {
    "not enabled": dict(nWaveformEnable=0),
    "a file": dict(nWaveformSource=2),
    "gap-free": dict(mode=3),
    "in mV": dict(dac_unit="mV"),
    "a cosine": dict(epochs=[(5, 50.0, 0.0, 100, 0, 10, 0)]),
    "pulses": dict(epochs=[*EPOCHS, (3, 70.0, 0.0, 40, 0, 10, 3)]),
    "longer than the sweep": dict(epochs=[(1, 50.0, 0.0, 10**9, 0)]),
    "shorter than nothing": dict(epochs=[(1, 50.0, 0.0, 50, -30)]),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_commands_that_pyabf_gets_wrong_are_no_currents(name, tmp_path):
    path = formats.abf2(tmp_path / "r.abf", two_channels()[:1], **{"epochs": EPOCHS, **UNUSABLE[name]})
    assert "found no currents among Vm, expected both" in refusal(Files(recording=[path]))
    assert len(file_formats.read_signals(path)) == 1


def test_sweeps_of_variable_length(tmp_path):
    lengths = [500, 300, 400]
    path = formats.abf2(tmp_path / "r.abf", two_channels(), mode=1, lengths=lengths)
    sweeps = reading.read(Files(recording=[path]))
    assert list(map(len, sweeps.V)) == list(map(len, sweeps.current)) == lengths
    np.testing.assert_array_equal(np.concatenate(sweeps.V), V.ravel())


def test_gap_free_is_one_sweep(tmp_path):
    sweeps = reading.read(Files(recording=[formats.abf2(tmp_path / "r.abf", two_channels(), mode=3)]))
    np.testing.assert_array_equal(sweeps.V, [V.ravel()])
    assert sweeps.names == [str(tmp_path / "r.abf")]


@pytest.mark.parametrize("table", [True, False])
def test_voltage_clamp_is_refused(table, tmp_path):
    path = formats.nwb(tmp_path / "r.nwb", CURRENT, V, table, series="VoltageClamp")
    message = "found VoltageClampSeries, VoltageClampStimulusSeries, expected CurrentClampSeries"
    assert message in refusal(Files(recording=[path]))


def test_no_current_is_a_current_of_zero(tmp_path):
    path = formats.nwb(tmp_path / "r.nwb", CURRENT[:0], V, table=False, series="IZeroClamp")
    sweeps = reading.read(Files(recording=[path]))
    np.testing.assert_allclose(sweeps.V, V, rtol=1e-12)
    assert not np.any(sweeps.current)


@pytest.mark.parametrize("late", [0.2, 10.0])
def test_a_current_that_begins_later_is_refused(late, tmp_path):
    path = formats.nwb(tmp_path / "r.nwb", CURRENT, V, late=late)
    assert f"found a current that starts {late:g} ms after its potential" in refusal(Files(recording=[path]))


def test_sweeps_of_nwb_are_in_the_order_of_their_numbers_and_what_is_left_out_is_said(tmp_path):
    many = V[0] + np.arange(12)[:, None] / 10
    path = formats.nwb(tmp_path / "r.nwb", CURRENT[[0] * 12], many, table=False, numbers=True)
    sweeps = reading.read(Files(recording=[path]))
    np.testing.assert_allclose(sweeps.V, many, rtol=1e-12)
    assert len(sweeps.said) == 3
    path = formats.nwb(tmp_path / "less.nwb", CURRENT[:2], V, table=False, numbers=True)
    sweeps = reading.read(Files(recording=[path]))
    np.testing.assert_allclose(sweeps.V, V[:2], rtol=1e-12)
    assert sweeps.said[-1] == f"{path}: 1 potentials without a current are left out, and not numbered"


def test_a_bias_current_is_said(tmp_path):
    path = formats.nwb(tmp_path / "r.nwb", CURRENT, V, bias=-5e-11)
    sweeps = reading.read(Files(recording=[path]))
    assert_example(sweeps)
    assert sweeps.said[-1].startswith(
        f"WARNING: beside its stimuli {path} names a bias current of -0.05 nA, which is not"
    )


def test_series_that_nothing_pairs_are_refused(tmp_path):
    path = formats.nwb(tmp_path / "r.nwb", CURRENT[:2], V, table=False)
    assert "found 3 potentials and 2 currents, expected equal numbers" in refusal(Files(recording=[path]))


@pytest.mark.parametrize("package", ["pyabf", "pynwb", "neo"])
def test_a_package_that_is_missing_is_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    path = tmp_path / {"pyabf": "r.abf", "pynwb": "r.nwb", "neo": "r.ibw"}[package]
    formats.abf2(path, two_channels())
    message = f"found that {package} is not installed, expected it to read"
    assert f"{message} " in (text := refusal(Files(recording=[path])))
    assert f"(pip install {package})" in text


# ---- Files that belong together -------------------------------------------------------------------------------------


def test_one_current_serves_all_potentials(tmp_path):
    current, voltage = write_pair(tmp_path)
    formats.released(current[0], I[:1] * 1e-9)
    sweeps = reading.read(Files(current=current, voltage=voltage, dt=DT))
    np.testing.assert_allclose(sweeps.current, I[[0, 0, 0]])


def test_sweeps_may_differ_in_length_and_end_where_the_current_ends(tmp_path):
    current, trace = I.copy() * 1e-9, V.copy()
    current[0, 300:] = np.nan
    trace[0, 290:] = trace[1, 10:20] = trace[2, 390:] = np.nan
    files = [formats.released(tmp_path / "I.csv", current)], [formats.released(tmp_path / "V.csv", trace)]
    sweeps = reading.read(Files(current=files[0], voltage=files[1], dt=DT))
    reading.check(sweeps)
    assert list(map(len, sweeps.current)) == list(map(len, sweeps.V)) == [300, 400, 400]
    for i in range(3):
        np.testing.assert_allclose(sweeps.current[i], I[i, : len(sweeps.current[i])])
        np.testing.assert_array_equal(sweeps.V[i], trace[i, : len(sweeps.V[i])])


def test_files_add_sweeps(tmp_path):
    current, voltage = write_pair(tmp_path)
    path = formats.abf2(tmp_path / "r.abf", two_channels())
    sweeps = reading.read(Files(recording=[path, path], current=current, voltage=voltage))
    np.testing.assert_allclose(sweeps.V, [*V, *V, *V])
    assert sweeps.names[2:4] == [f"{path}, sweep 2", f"{path}, sweep 0"]
    assert sweeps.said[0] == "current: pA, as r.abf says"
    assert sweeps.said[1] == "current: A, as --current_unit has it by default"


def test_currents_alone(tmp_path):
    current, _ = write_pair(tmp_path)
    sweeps = reading.read(Files(current=current, dt=DT, current_unit="mA"))
    reading.check(sweeps)
    assert sweeps.V is None
    assert sweeps.said[0] == "current: mA, as --current_unit says"
    np.testing.assert_allclose(sweeps.current, I * 1e-3)


def test_times_that_do_not_begin_at_0(tmp_path):
    """They are said; beside spike times, or of currents and potentials apart, nobody knows what belongs together."""
    path = csv_recording(tmp_path / "r.csv", time=TIME + 100)
    sweeps = reading.read(Files(recording=[path]))
    assert_example(sweeps)
    assert sweeps.said[3] == f"times of {path} begin at 100 ms; those of arguments and results count from there"
    (tmp_path / "spikes.txt").write_text("1\n2\n3\n")
    text = refusal(Files(recording=[path], spike_times=tmp_path / "spikes.txt"))
    assert text == f"{path}: found times from 100 ms beside spike times, expected times from 0 in both"
    of_I, of_V = ([name for name in NAMES if name[0] in letters] for letters in ("tI", "tV"))
    current = formats.columns(tmp_path / "I.csv", of_I, [TIME, *I])
    voltage = formats.columns(tmp_path / "V.csv", of_V, [TIME + 37.5, *V])
    text = refusal(Files(current=[current], voltage=[voltage]))
    assert text == f"{voltage}: found times that begin 37.5 ms after those of {current}, expected the same start"
    alone = formats.columns(tmp_path / "one.csv", ["time (ms)", "I (nA)"], [TIME, I[0]])
    pair = [formats.columns(tmp_path / f"V{i}.csv", ["time (ms)", "V (mV)"], [TIME + 60 * i, V[i]]) for i in (0, 1)]
    late = f"{pair[1]}: found times that begin 60 ms after those of {alone}, expected the same start"
    assert refusal(Files(current=[alone], voltage=pair)) == refusal(Files(current=[alone], voltage=pair[1:])) == late
    for start in (0.0, 37.5):
        npz(tmp_path / "r.npz", current_nA=I, V_mV=V, t_ms=TIME + start)
        assert len(reading.read(Files(recording=[tmp_path / "r.npz"])).said) == 3 + (start > 0)


def test_columns_of_several_signals_are_no_sweeps(tmp_path):
    names = ["t (ms)", "I (nA)", "V_soma (mV)", "V_dend (mV)", "dV/dt (mV/ms)"]
    path = formats.columns(tmp_path / "r.csv", names, [TIME, I[0], V[0], V[1], 30 * V[2]])
    text = refusal(Files(recording=[path]))
    expected = f"one of the potentials of {path}: V_soma (mV), V_dend (mV)"
    assert text == f"argument --voltage_channel: found nothing, expected {expected}"
    sweeps = reading.read(Files(recording=[path], voltage_channel="V_dend (mV)"))
    np.testing.assert_allclose(sweeps.V, V[1:2])
    np.testing.assert_allclose(sweeps.current, I[:1])


def test_columns_that_are_taken_for_sweeps_are_said(tmp_path):
    names = ["t (ms)", "I (nA)", "Vm1 (mV)", "Vm2 (mV)"]
    path = formats.columns(tmp_path / "r.csv", names, [TIME, I[0], V[0], V[1]])
    said = reading.read(Files(recording=[path])).said
    assert said[3:] == [f"{path}: Vm1 (mV) to Vm2 (mV) are taken for sweeps of one cell"]


@pytest.mark.parametrize("write", [formats.abf1, formats.abf2])
def test_an_amplifier_in_voltage_clamp_is_refused(write, tmp_path):
    """Where it says so: only that of an instrument 24, a MultiClamp, is its mode."""
    for telegraphed, refused in ((((1, 24, 0),) * 2, True), (((1, 24, 1),) * 2, False), (((1, 15, 0),) * 2, False)):
        path = write(tmp_path / "r.abf", two_channels(), telegraphed=telegraphed)
        if refused:
            assert "found a recording in voltage clamp, as its amplifier says" in refusal(Files(recording=[path]))
        else:
            assert_example(reading.read(Files(recording=[path])))


def test_a_channel_is_chosen_by_its_name(tmp_path):
    channels = [*two_channels(), ("V2", "mV", LSB_V, V + 10), ("I2", "pA", LSB_I, CURRENT * 2)]
    path = formats.abf2(tmp_path / "r.abf", channels)
    assert_example(reading.read(Files(recording=[path], current_channel="Im", voltage_channel="Vm")))
    text = refusal(Files(recording=[path], current_channel="Im"))
    assert text == f"argument --voltage_channel: found nothing, expected one of the potentials of {path}: Vm, V2"
    text = refusal(Files(recording=[path], current_channel="Vm"))
    assert text == f"argument --current_channel: found Vm, expected one of the currents of {path}: Im, I2"
    assert "found Im, expected" in refusal(Files(recording=[path], current_channel="Im", voltage_channel="Im"))


def test_spike_times(tmp_path):
    current, _ = write_pair(tmp_path)
    path = tmp_path / "spikes.txt"
    for text in ("1, 2.5\n\n3;4 5\n", "times (ms)\n1\t2.5\n\n3 4,5", "1,2.5\n\n3,4,5\n", "t;\n1,\t2.5\t\n\n3;4,5;\n"):
        path.write_text(text)
        sweeps = reading.read(Files(current=current, spike_times=path, dt=DT))
        assert [t.tolist() for t in sweeps.spike_times] == [[1, 2.5], [], [3, 4, 5]]


def test_what_is_held_out_is_of_the_fit_where_its_spike_times_are(tmp_path, monkeypatch):
    """Trials of one current are other data; the same file by another path is not."""
    monkeypatch.chdir(tmp_path)
    pieces, sweeps = [Piece(0, 0, 0, 9)], Sweeps([I[0]], None, [np.ones(1)], DT, ["I.csv"], [])
    for spikes, said in ((tmp_path / "fit.txt", 1), (Path("held.txt"), 0)):
        held = Files(current=["I.csv"], spike_times=spikes, prefix="validation_")
        source = Source(files=Files(current=["I.csv"], spike_times=Path("fit.txt")), validation_files=held)
        parts = dict(fit=pieces, validation=pieces), dict(fit=sweeps, validation=sweeps)
        assert len(overlap(*parts, source)) == said


BAD_SPIKES = {
    "1\n2\n": "found 2 lines, expected 3, one line per sweep",
    "1\n2\n3\n4\n": "found 4 lines, expected 3",
    "1\nspike\n3\n": "found 'spike' in line 1, expected times from 0 to 20 ms in ascending order",
    "1\nnan\n3\n": "found 'nan' in line 1",
    "1\n20.1\n3\n": "found '20.1' in line 1",
    "-1\n2\n3\n": "found '-1' in line 0",
    "1\n2,5 3\n4\n": "found '2,5 3', a decimal comma or two times, expected decimal points, or one kind of separator",
    "1;2,5\n\n3;4;5,0\n": "found '1;2,5', a decimal comma or two times",
    "1,2\n\n3;4\n": "found '1,2', a decimal comma or two times",
    "1\n3 2\n3\n": "found times that fall in line 1",
    None: "No such file or directory; expected a text file of spike times",
    b"\xff\xfe\x80": "not text; expected a text file of spike times",
}


@pytest.mark.parametrize(("text", "message"), BAD_SPIKES.items(), ids=range(len(BAD_SPIKES)))
def test_spike_times_that_are_refused(text, message, tmp_path):
    current, _ = write_pair(tmp_path)
    path = tmp_path / "spikes.txt"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert message in refusal(Files(current=current, spike_times=path, dt=DT))


def with_files(change=None, **arguments):
    """Files of I.csv and V.csv, after change(folder)."""

    def files(folder):
        current, voltage = write_pair(folder)
        if change:
            change(folder)
        given = dict(current=current, voltage=voltage, dt=DT) | arguments
        return Files(**{name: value(folder) if callable(value) else value for name, value in given.items()})

    return files


def rewrite(name, traces):
    return lambda folder: formats.released(folder / name, traces)


def put(traces, where, value):
    traces = traces.copy()
    traces[where] = value
    return traces


def in_folder(*names):
    return lambda folder: [folder / name for name in names]


def abf(channels, **how):
    return lambda folder: [formats.abf2(folder / "r.abf", channels, **how)]


def recording(write, **arguments):
    return lambda folder: Files(recording=[write(folder)], **arguments)


BAD_FILES = {
    "V alone": (with_files(current=()), "argument --voltage: found it alone, expected --current and --voltage"),
    "V alone, held out": (
        with_files(current=(), prefix="validation_"),
        "argument --validation_voltage: found it alone, expected --validation_current and --validation_voltage",
    ),
    "spikes alone": (lambda folder: Files(spike_times=folder / "s"), "argument --spike_times: found it alone"),
    "nothing": (lambda folder: Files(), "argument --recording: found no files"),
    "half": (with_files(recording=in_folder("r.abf"), voltage=()), "argument --current: found it beside a recording"),
    "missing": (with_files(voltage=in_folder("no.csv")), "no.csv: No such file or directory; expected"),
    "folder": (with_files(voltage=lambda folder: [folder]), ": Is a directory; expected"),
    "fewer sweeps": (with_files(rewrite("V.csv", V[:2])), "V.csv: found 2 sweeps, expected 3 as in"),
    "one sweep": (with_files(rewrite("V.csv", V[:1])), "V.csv: found 1 sweep, expected 3 as in"),
    "shorter": (with_files(rewrite("V.csv", V[:, 1:])), "V.csv, sweep 0: found 399 samples, expected 400 as in"),
    "gap": (with_files(rewrite("I.csv", put(I, (1, 7), np.nan))), "I.csv, sweep 1: found no current at sample 7"),
    "no current": (with_files(rewrite("I.csv", put(I, 1, np.nan))), "I.csv, sweep 1: found 400 samples and no number"),
    "no potential": (
        with_files(rewrite("V.csv", put(V, 2, np.nan))),
        "V.csv, sweep 2: found 400 samples and no number",
    ),
    "potential too late": (
        with_files(
            lambda folder: (
                formats.released(folder / "I.csv", put(I * 1e-9, (slice(None), slice(200, None)), np.nan)),
                formats.released(folder / "V.csv", put(V, (0, slice(0, 200)), np.nan)),
            )
        ),
        "V.csv, sweep 0: found no potential while there is a current",
    ),
    "inf": (
        recording(lambda folder: npz(folder / "r.npz", I_nA=I, V_mV=put(V, (1, 7), np.inf), dt_ms=DT)),
        "r.npz, sweep 1: found inf at sample 7, expected finite numbers",
    ),
    "no dt": (with_files(dt=None), "argument --dt: found nothing, expected the time between samples (ms), which"),
    "other dt": (recording(RECORDINGS["abf2"], dt=0.1), "argument --dt: found 0.1, but"),
    "other unit": (
        recording(RECORDINGS["abf2"], current_unit="nA"),
        "argument --current_unit: found nA, expected nothing",
    ),
    "two samplings": (
        with_files(
            lambda folder: only_traces(folder / "V.csv", traces=[2 * TIME, *V]),
            dt=None,
            current=lambda folder: [only_traces(folder / "I.csv", traces=[TIME, *I])],
        ),
        "V.csv: found samples every 0.1 ms, expected every 0.05 ms as in",
    ),
    "swapped": (
        with_files(current=lambda folder: [formats.ibw(folder / "V.ibw", V[0], "V")]),
        "V.ibw: found potentials (V), expected currents for --current (are --current and --voltage swapped?)",
    ),
    "swapped, held out": (
        with_files(voltage=lambda folder: [formats.ibw(folder / "I.ibw", V[0], "A")], prefix="validation_"),
        "(are --validation_current and --validation_voltage swapped?)",
    ),
    "a csv without names": (
        recording(lambda folder: only_traces(folder / "r.csv")),
        "r.csv: found no currents among traces, expected both, in text by a header such as t (ms),I (nA),V (mV)",
    ),
    "no potential in a recording": (
        recording(lambda folder: abf(two_channels()[1:])(folder)[0]),
        "found no potentials among Im, expected both",
    ),
    "another quantity": (
        recording(lambda folder: abf([("T", "degC", LSB_V, V)])(folder)[0]),
        "found no current and no potential, expected some",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_do_not_fit_are_refused(name, tmp_path):
    files, message = BAD_FILES[name]
    assert message in refusal(files(tmp_path))


# ---- Plausibility ---------------------------------------------------------------------------------------------------


def sweeps_of(current=I, V=V, dt=DT):
    return Sweeps(list(current), None if V is None else list(V), None, dt, [f"r.abf, sweep {i}" for i in range(9)], [])


IMPLAUSIBLE = {
    "pA read as nA": (
        dict(current=CURRENT),
        "currents up to 300 nA for potentials that span",
        "is --current_unit right?",
    ),
    "uA": (
        dict(current=I * 1e4),
        "r.abf, sweep 0: found currents up to 3e+03 nA, expected at most 1000 nA",
        "current_unit",
    ),
    "uA, alone": (dict(current=I * 1e4, V=None), "found currents up to 3e+03 nA", "is --current_unit right?"),
    "mA": (dict(current=I * 1e-6), "for potentials that span", "is --current_unit right?"),
    "uV": (dict(V=V * 1e3), "found potentials up to 7e+04 mV, expected -300 to 300 mV", "is --voltage_unit right?"),
    "V": (dict(V=V * 1e-3), "found potentials up to 0.07 mV, expected 1 to 300 mV", "is --voltage_unit right?"),
    "artefact": (dict(V=put(V, (1, 3), 400)), "found potentials up to 400 mV", "left out by --exclude"),
    "no rest": (dict(V=V + 70), "found potentials from ", "1st and 99th percentile"),
    "too high": (
        dict(V=put(V, (slice(None), slice(380, None)), 120)),
        "found potentials from ",
        "is --voltage_unit right?",
    ),
    "constant": (dict(V=0 * V - 65), "found potentials that stay at -65 mV", "expected a response to the current"),
    "nothing left": (dict(V=V * np.nan), "found no potential that is left", "is --exclude right?"),
    "turned": (dict(current=I.T, V=V.T), "found 400 sweeps of 3 samples", "(are samples in lines?)"),
    "one sample": (dict(current=I[:1, :1], V=V[:1, :1]), "found 1 sweeps of 1 samples", "longer than they are many"),
    "dt in s": (dict(dt=DT * 1e-3), "argument --dt: found 5e-05 ms", "expected 0.001 to 1 ms"),
    "dt in us": (dict(dt=DT * 1e3), "argument --dt: found 50 ms", "expected 0.001 to 1 ms"),
}


@pytest.mark.parametrize("name", IMPLAUSIBLE)
def test_what_no_neuron_has_is_refused(name):
    change, *messages = IMPLAUSIBLE[name]
    sweeps = sweeps_of(**change)
    names = [f"r.abf, sweep {i}" for i in range(len(sweeps.current))]
    with pytest.raises(BadInput) as refused:
        reading.check(dataclasses.replace(sweeps, names=names))
    text = str(refused.value)
    assert len(text.splitlines()) == 1
    assert all(message in text for message in messages), text


@pytest.mark.parametrize(
    "change", [dict(), dict(current=0 * I), dict(V=None), dict(V=put(V, (0, 3), np.nan)), dict(V=V - 20)]
)
def test_what_neurons_have_is_not(change):
    reading.check(sweeps_of(**change))


# ---- Damage ---------------------------------------------------------------------------------------------------------


def truncated(data, rng):
    return data[: rng.integers(0, len(data))]


def flipped(data, rng):
    data = bytearray(data)
    for k in rng.integers(0, len(data), rng.integers(1, 20)):
        data[k] = rng.integers(256)
    return bytes(data)


def flipped_header(data, rng):
    n = min(6144 if rng.integers(2) else 512, len(data))
    return flipped(data[:n], rng) + data[n:]


def large_numbers(data, rng):
    """A field of a header asks for a lot, or for less than nothing."""
    k = 2 * rng.integers(0, min(2048, len(data) // 2))
    number = [2**31 - 1, -1, 10**9, -(2**31)][rng.integers(4)]
    return data[:k] + int(number).to_bytes(4, "little", signed=True) + data[k + 4 :]


def swapped_blocks(data, rng):
    size = max(1, len(data) // rng.integers(2, 20))
    blocks = [data[k : k + size] for k in range(0, len(data), size)]
    return b"".join(blocks[k] for k in rng.permutation(len(blocks)))


def nothing_or_noise(data, rng):
    return rng.bytes(rng.integers(0, 3000)) if rng.integers(2) else b""


def beheaded(data, rng):
    return data[rng.integers(1, 600) :]


DAMAGES = [truncated, flipped, flipped_header, large_numbers, swapped_blocks, nothing_or_noise, beheaded]


def as_text(change):
    """A damage of the cells of a text file."""

    def damage(data, rng):
        rows = [line.split(",") for line in data.decode().splitlines()]
        return "\n".join(",".join(row) for row in change(rows, rng)).encode()

    return damage


def other_units(rows, rng):
    factor, column = 10.0 ** rng.integers(-6, 7), rng.integers(len(rows[0]))
    return rows[:1] + [[*r[:column], str(float(r[column]) * factor), *r[column + 1 :]] for r in rows[1:]]


def columns_swapped(rows, rng):
    order = rng.permutation(len(rows[0]))
    return rows[:1] + [[row[k] for k in order] for row in rows[1:]]


def without_a_cell(rows, rng):
    k = rng.integers(len(rows))
    return [*rows[:k], rows[k][:-1], *rows[k + 1 :]]


def turned(rows, rng):
    return list(map(list, zip(*rows, strict=True)))


def without_header(rows, rng):
    return rows[rng.integers(1, len(rows)) :]


DAMAGES_OF_TEXT = [*DAMAGES, *map(as_text, (other_units, columns_swapped, without_a_cell, turned, without_header))]


def current_of(folder, **unit):
    """A current for files that have potentials only."""
    return [formats.released(folder / "I.csv", I[:1] * 1e-9)]


# {format: folder -> its file and the other arguments}
WHOLE = {
    "csv": lambda folder: (csv_recording(folder / "r.csv"), {}),
    "npz": lambda folder: (RECORDINGS["npz"](folder), {}),
    "nwb": lambda folder: (formats.nwb(folder / "r.nwb", CURRENT[:2], V[:2]), {}),
    "abf1": lambda folder: (RECORDINGS["abf1"](folder), {}),
    "abf2": lambda folder: (formats.abf2(folder / "r.abf", two_channels()[:1], EPOCHS), {}),
    "ibw": lambda folder: (formats.ibw(folder / "V.ibw", V[0] * 1e-3, "V"), dict(current=current_of(folder))),
    "ibw5": lambda folder: (formats.ibw(folder / "V.ibw", V.T * 1e-3, "V", 5), dict(current=current_of(folder))),
}


def assert_plausible(sweeps):
    assert sweeps.current
    assert len(sweeps.current) == len(sweeps.V) == len(sweeps.names)
    for current, trace in zip(sweeps.current, sweeps.V, strict=True):
        assert current.ndim == trace.ndim == 1
        assert len(current) == len(trace) >= 2
        assert np.isfinite(current).all()
        assert np.isfinite(trace).any()
        assert not np.isinf(trace).any()
        assert not (np.abs(trace) > 300).any()
        assert np.abs(current).max() <= 1000
    assert 0.001 <= sweeps.dt <= 1


def refusal_or_plausible(files):
    """The line with which files are refused; nothing where what is read of them is plausible."""
    with contextlib.suppress(BadInput):
        sweeps = reading.read(files)
        reading.check(sweeps)
        assert_plausible(sweeps)
        return ""
    return refusal(files)


@pytest.mark.parametrize("name", WHOLE)
def test_damaged_files_are_refused_in_a_line_or_plausible(name, tmp_path, capfd):
    path, others = WHOLE[name](tmp_path)
    data, rng = path.read_bytes(), np.random.default_rng(0)
    files = Files(voltage=[path], **others) if others else Files(recording=[path])
    reading.check(reading.read(files))
    damages = DAMAGES_OF_TEXT if name == "csv" else DAMAGES
    n_refused = 0
    for k in range(200):
        damaged = damages[k % len(damages)](data, rng)
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            text = refusal_or_plausible(files)
        n_refused += text != ""
        assert text.startswith((str(tmp_path), "argument --")) or not text
    assert 60 <= n_refused < 200
    assert capfd.readouterr() == ("", "")
