"""Writers of small files in the formats of labs, for the tests of `reading`.

The binary layouts are those that the readers of pyabf, neo and igor2 document; only fields that a reader needs are set.
"""

import datetime
import struct

import numpy as np

DT = 0.05  # ms
LSB_V, LSB_I = 1 / 128, 1 / 8  # mV and pA of one bit of a converter: what is written is read exactly


def example(n_sweep=3, n_sample=400):
    """Currents (pA) and potentials (mV) of a leaky cell with spikes painted on, (n_sweep, n_sample), in whole bits."""
    step = np.arange(n_sample)
    current = np.where((step > n_sample // 8) & (step < n_sample // 2), 100.0, 0.0) * (1 + np.arange(n_sweep))[:, None]
    V = np.full((n_sweep, n_sample), -70.0)
    for k in range(1, n_sample):
        V[:, k] = V[:, k - 1] + 0.02 * (-70 - V[:, k - 1] + 0.1 * current[:, k - 1])
    V[-1, n_sample // 4 : n_sample // 4 + 5] = [-20, 10, 30, 0, -40]
    return current, np.round(V / LSB_V) * LSB_V


# ---- Text -----------------------------------------------------------------------------------------------------------


def released(path, traces):
    """The layout of the paper's release."""
    rows = [",".join(["", *map(str, range(len(traces[0])))])]
    rows += [",".join([str(i), *map(repr, map(float, trace))]) for i, trace in enumerate(traces)]
    path.write_text("\n".join(rows) + "\n")
    return path


def columns(path, names, traces, separator=",", comma=False):
    """Samples in lines, below a header if there are names."""
    rows = [separator.join(names)] if names else []
    rows += [separator.join(map(repr, map(float, row))) for row in zip(*traces, strict=True)]
    text = "\n".join(rows) + "\n"
    path.write_text(text.replace(".", ",") if comma else text)
    return path


# ---- NWB ------------------------------------------------------------------------------------------------------------


def nwb(path, current, V, table=True, timestamps=False, numbers=False, series="CurrentClamp", late=0.0, bias=0.0):
    """Sweeps in one file, potentials in mV with a conversion; by their names, currents are in the reverse order.

    Args:
        table: of the intracellular recordings; timestamps: instead of a rate; numbers: of the sweeps.
        series: type of the series; late: by how much currents start later (ms); bias: beside the stimulus (A).
    """
    from pynwb import NWBHDF5IO, NWBFile, icephys

    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    file = NWBFile(session_description="test", identifier="test", session_start_time=start)
    device = file.create_device(name="amplifier")
    electrode = file.create_icephys_electrode(name="electrode", description="test", device=device)
    for i, y in enumerate(V):
        common = dict(electrode=electrode, gain=1.0, sweep_number=np.uint32(i) if numbers else None)
        starts = [dict(rate=1e3 / DT, starting_time=10.0 * i + delay) for delay in (0.0, late * 1e-3)]
        if timestamps:
            starts = [dict(timestamps=10.0 * i + np.arange(len(y)) * DT * 1e-3)] * 2
        how = dict(data=y + 5.0, conversion=1e-3, offset=-5e-3) | (dict(bias_current=bias) if bias else {})
        response = getattr(icephys, f"{series}Series")(name=f"V{i}", **how, **common, **starts[0])
        file.add_acquisition(response)
        if i < len(current):
            kind = "VoltageClamp" if series == "VoltageClamp" else "CurrentClamp"
            how = dict(data=current[i], conversion=1e-12)
            stimulus = getattr(icephys, f"{kind}StimulusSeries")(name=f"I{9 - i}", **how, **common, **starts[1])
            file.add_stimulus(stimulus)
            if table:
                file.add_intracellular_recording(electrode=electrode, stimulus=stimulus, response=response)
    with NWBHDF5IO(str(path), "w") as out:
        out.write(file)
    return path


# ---- Igor -----------------------------------------------------------------------------------------------------------


def ibw(path, trace, unit, version=2):
    """A wave of 64-bit numbers (T,) or, of version 5, (T, n), in an SI unit, with its sampling in s."""
    data, unit = np.asarray(trace, "<f8").tobytes(order="F"), unit.encode().ljust(4, b"\0")
    if version == 2:
        wave = struct.pack("<hi20shhi4s4si", 4, 0, b"wave", 0, 0, 0, unit, b"s\0\0\0", len(trace))
        wave += struct.pack("<hddhhhddbbiiI2sIi", 0, DT * 1e-3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, b"", 0, 0)
        head = struct.pack("<hiiih", 2, len(wave) + len(data) + 16, 0, 0, 0)
        path.write_bytes(head + wave + data + bytes(16))
        return path
    shape = (*np.shape(trace), 0, 0, 0)[:4]
    wave = struct.pack("<iIIihh6sh32sii", 0, 0, 0, np.size(trace), 4, 0, b"", 1, b"wave", 0, 0)
    wave += struct.pack("<4i4d4d", *shape, DT * 1e-3, 1, 1, 1, 0, 0, 0, 0) + unit + b"s".ljust(16, b"\0")
    wave = wave.ljust(320, b"\0")
    head = struct.pack("<hhiiii4i4iiii", 5, 0, len(wave) + len(data), *[0] * 14)
    path.write_bytes(head + wave + data)
    return path


# ---- ABF ------------------------------------------------------------------------------------------------------------


def scale_of(lsb):
    """fInstrumentScaleFactor that makes a bit of a 16-bit converter of 10 V so large."""
    return 10 / 32768 / lsb


def interleaved(channels):
    """Channels [(name, unit, bit, (n_sweep, T))] as the bits of a file."""
    bits = [np.round(np.asarray(values) / lsb).astype("<i2").ravel() for _, _, lsb, values in channels]
    return np.stack(bits, 1).tobytes(), len(bits) * len(bits[0]), len(channels[0][3])


def put(header, offset, layout, *values):
    struct.pack_into("<" + layout, header, offset, *values)


def abf1(path, channels, epochs=(), holding=0.0, blocks=12, telegraphed=()):
    """ABF 1.83; epochs [(type, level, increment, duration, increment)] are those of the first output, in pA.

    telegraphed: [(enabled, instrument, mode)] of the channels.
    """
    data, n_point, n_sweep = interleaved(channels)
    header = bytearray(6144)
    put(header, 0, "4sfhihi", b"ABF ", 1.83, 5, n_point, 0, n_sweep)
    put(header, 20, "i", 20200101)
    put(header, 40, "i", blocks)
    put(header, 92, "ii", blocks + -(-len(data) // 512), n_sweep)
    put(header, 120, "hf", len(channels), DT * 1e3 / len(channels))
    put(header, 138, "i", n_point // n_sweep)
    put(header, 244, "ffii", 10, 10, 32768, 32768)
    put(header, 378, "16h", *range(16))
    put(header, 410, "16h", *range(len(channels)), *[-1] * (16 - len(channels)))
    for i in range(16):
        name, unit, lsb, _ = channels[min(i, len(channels) - 1)]
        put(header, 442 + 10 * i, "10s", name.encode().ljust(10))
        put(header, 602 + 8 * i, "8s", unit.encode().ljust(8))
        put(header, 922 + 4 * i, "f", scale_of(lsb))
        for offset in (730, 1050, 4576):
            put(header, offset + 4 * i, "f", 1)
    for i in range(4):
        put(header, 1306 + 10 * i, "10s", f"Cmd {i}".encode().ljust(10))
        put(header, 1346 + 8 * i, "8s", (b"pA" if i == 0 else b"mV").ljust(8))
    put(header, 1378, "4f", holding, 0, 0, 0)
    put(header, 2296, "2h2h2h", bool(epochs), 0, bool(epochs), 0, 0, 0)
    for i, (kind, level, by, duration, longer) in enumerate(epochs):
        for offset, size, layout, value in zip(
            (2308, 2348, 2428, 2508, 2588), (2, 4, 4, 4, 4), "hffii", (kind, level, by, duration, longer), strict=True
        ):
            put(header, offset + size * i, layout, value)
    for i, fields in enumerate(telegraphed):
        for offset, field in zip((4512, 4544, 4768), fields, strict=True):
            put(header, offset + 2 * i, "h", field)
    each = n_point // n_sweep
    synch = b"".join(struct.pack("<ii", i * each, each) for i in range(n_sweep))
    path.write_bytes(bytes(header[: 512 * blocks]) + data.ljust(-(-len(data) // 512) * 512, b"\0") + synch)
    return path


def abf2(
    path, channels, epochs=(), holding=0.0, mode=5, lengths=None, dac_unit="pA", keep_level=False, telegraphed=(), **dac
):
    """ABF 2.9; epochs as in `abf1`, with the period and width of pulses behind those of pulses, and so `telegraphed`.

    Args:
        mode: 5 is episodic, 3 gap-free, 1 of variable length; lengths: of the sweeps, then.
        dac: fields of the output: nWaveformEnable, nWaveformSource.
    """
    data, n_point, n_sweep = interleaved(channels)
    if lengths:
        n_sweep = len(lengths)
    words = ["clampex", "test.pro", "Cmd 0", dac_unit, *(word for name, unit, *_ in channels for word in (name, unit))]
    strings = b"SSCH" + bytes(40) + b"".join(b"\0" + word.encode("latin-1") for word in words) + b"\0"
    protocol = bytearray(512)
    put(protocol, 0, "hf", mode, DT * 1e3)
    put(protocol, 22, "i", n_point // n_sweep)
    put(protocol, 110, "ffii", 10, 10, 32768, 32768)
    adc = bytearray(128 * len(channels))
    for i, (_, _, lsb, _) in enumerate(channels):
        put(adc, 128 * i, "h", i)
        put(adc, 128 * i + 24, "hhf", i, i, 1)
        put(adc, 128 * i + 40, "ffff", scale_of(lsb), 0, 1, 0)
        put(adc, 128 * i + 74, "ii", 5 + 2 * i, 6 + 2 * i)
    for i, (enabled, instrument, clamp) in enumerate(telegraphed):
        put(adc, 128 * i + 2, "hhf8xh", enabled, instrument, 1.0, clamp)
    output = bytearray(256)
    put(output, 8, "fff", 1, holding, 1)
    put(output, 24, "ii", 3, 4)
    put(output, 40, "hhh", dac.get("nWaveformEnable", bool(epochs)), dac.get("nWaveformSource", 1), keep_level)
    per_dac, digital = bytearray(48 * len(epochs)), bytearray(48 * len(epochs))
    for i, epoch in enumerate(epochs):
        put(per_dac, 48 * i, "hhhffiiii", i, 0, *epoch, *[0] * (7 - len(epoch)))
        put(digital, 48 * i, "h", i)
    lengths = [n * len(channels) for n in lengths] if lengths else [n_point // n_sweep] * n_sweep
    synch = b"".join(struct.pack("<ii", sum(lengths[:i]), n) for i, n in enumerate(lengths)) if mode != 3 else b""
    sections = {  # {position in the header: content and size of an entry}
        76: (bytes(protocol), 512),
        92: (bytes(adc), 128),
        108: (bytes(output), 256),
        124: (bytes(digital), 48),
        156: (bytes(per_dac), 48),
        220: (strings, len(strings)),
        236: (data, 2),
        316: (synch, 8),
    }
    header, body = bytearray(512), b""
    put(header, 0, "4s4BIIII", b"ABF2", 0, 0, 0, 2, 512, n_sweep, 20200101, 0)
    put(header, 28, "hh", 1, 0)
    put(header, 60, "I", 1)
    put(header, 72, "I", 2)
    for position, (content, size) in sections.items():
        put(header, position, "IIq", 1 + len(body) // 512 if content else 0, size, len(content) // size)
        body += content.ljust(-(-len(content) // 512) * 512, b"\0")
    path.write_bytes(bytes(header) + body)
    return path
