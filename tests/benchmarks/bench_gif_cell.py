"""The GIF fit of a recorded neuron beside the published method, by terms of the model, and by length of the recording.

    python tests/benchmarks/bench_gif_cell.py FOLDER [--rows default linear R_s simulation ...] [--seeds N]

FOLDER has a cell of Pozzorini et al. (2015) as published with their GIF toolbox: repeats of one current of 20 s,
Test_ch3_*.ibw and their potentials Test_ch2_*.ibw, and a recording below threshold, Elec_ch3_*.ibw and Elec_ch2_*.ibw.
The first 10 s are fitted and the last 10 s scored, but in `half`: every other repeat is fitted whole, and the others
scored. `10 s`, `20 s` and `40 s` fit 1, 2 and 4 repeats, and `simulation` and brian2modelfitting 1; the latter has 450
seconds, eight times those of our default. The published method (`published_gif.py`) takes the electrode from the second
recording; our rows fit R_s and tau_s, or R_s alone. Each row: held-out Md* at 4 and 2 ms, variance of the held-out
potentials with the spikes forced, starts within 0.5 of the best loss, parameters, and seconds, compilation apart. Half
an hour on two cores; run nothing else meanwhile. The last line is the ratio of Md* at 4 ms of the first row to that of
the published method.
"""

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

import runs

import jax
import numpy as np
import published_gif
from common import BRIAN2MODELFITTING, run_peer

import neuron_fitting_of_gif_model as gif
import recordings
import scoring
import studies
import teacher_forcing
import utils
from reading import Files
from recordings import Part, Recording, Source

HALF = 10_000.0  # ms
PARTS = "--t_stop 10000 --validation_t_start 10000"
ROWS = {
    "default": PARTS,
    "linear": f"{PARTS} --model_terms tau_s",
    "R_s": f"{PARTS} --model_terms non_linear A_th2",
    "linear, R_s": f"{PARTS} --model_terms none",
    "all terms": f"{PARTS} --model_terms tau_s non_linear A_th2 I3 lapse",
    "conductance, 10 s": f"{PARTS} --model_terms tau_s non_linear A_th2 g --sweeps 0 --validation_sweeps 0:9",
    "auto, 10 s": f"{PARTS} --model_terms auto --sweeps 0 --validation_sweeps 0:9",
    "half": "--sweeps 0:9:2 --validation_sweeps 1:9:2",
    "10 s": f"{PARTS} --sweeps 0 --validation_sweeps 0:9",
    "20 s": f"{PARTS} --sweeps 0,4 --validation_sweeps 0:9",
    "40 s": f"{PARTS} --sweeps 0,2,4,6 --validation_sweeps 0:9",
    "simulation": f"{PARTS} --sweeps 0 --validation_sweeps 0:9 --objective simulation",
}
N_RUN, N_START, WITHIN = 200, 8, 0.5
SIMULATED, PEER = "simulation", "brian2modelfitting"
FITTED_TO_SPIKES = ("V_th_inf", "a", "b", "A_th", "A1", "k1", "A2", "k2")
DELTA, N_SET, SECONDS = 4.0, 100, 450.0  # ms; sets a round; eight times what our default takes


def files_of(folder: Path, kind: str) -> Files:
    """The files of currents and potentials."""
    current, voltage = (sorted(folder.glob(f"{kind}_{channel}_*.ibw")) for channel in ("ch3", "ch2"))
    if not current or len(current) != len(voltage):
        found = f"found {len(current)} files {kind}_ch3_*.ibw and {len(voltage)} {kind}_ch2_*.ibw"
        sys.exit(f"FOLDER {folder}: {found}, expected as many of both")
    return Files(current=current, voltage=voltage)


def line(name: str, explained: float, repeats: Mapping[str, float], more: str) -> float:
    """Print a row; Md* at 4 ms."""
    numbers = f"Md* {repeats['md_star_4ms']:.3f}, {repeats['md_star_2ms']:.3f}; {explained:.1%}"
    print(f"{name}: {numbers}; {more}", flush=True)
    return repeats["md_star_4ms"]


def ours(folder: Path, name: str, seed: int) -> float:
    """A row by the script, as a user would run it."""
    files = files_of(folder, "Test")
    command = [sys.executable, gif.__file__, "--current", *files.current, "--voltage", *files.voltage]
    command += [*ROWS[name].split(), "--n_sample", N_START, "--seed", seed]
    command += arguments_of_simulation(folder) if name == SIMULATED else []
    with tempfile.TemporaryDirectory() as path:
        output = Path(path) / "run"
        subprocess.run([*map(str, command), "--output", str(output)], check=True, stdout=subprocess.DEVNULL)
        result = json.loads((output / "result.json").read_text())
    losses = np.array([start["loss"] for start in result["starts"]])
    agree, seconds = int(np.sum(losses <= losses.min() + WITHIN)), result["seconds"]
    more = f"{agree} of {N_START} starts; {len(result['parameters'])} parameters; "
    more += f"{seconds['run']:.0f} s, {seconds['compile']:.0f} s to compile"
    more += f"; width {result['parameters']['width']:.2f} mV" if "width" in result["parameters"] else ""
    held_out = result["validation"]
    explained = held_out["variance_explained_forced"]
    return line(f"{name}, seed {seed}", np.nan if explained is None else explained, held_out["repeats"][0], more)


def recordings_of(files: Files, half: bool) -> dict[str, Recording]:
    """{"fit" or "validation": recording}: halves of every sweep, or all of it to fit."""
    parts = (Part(t_stop=HALF), Part(t_start=HALF)) if half else (Part(), Part())
    source = Source(files=files, part=parts[0], validation_part=parts[1])
    return recordings.read_data(source, {}).recordings


def published(folder: Path) -> float:
    """The row of the published method."""
    electrode = recordings_of(files_of(folder, "Elec"), half=False)
    current, V = (
        np.concatenate([getattr(part, name)[:, 0] for part in electrode.values()]) for name in ("current", "V")
    )
    data = recordings_of(files_of(folder, "Test"), half=True)
    seconds = []
    for _ in range(2):  # the first one compiles
        start = time.perf_counter()
        kernel = published_gif.electrode_kernel(current, V, data["fit"].dt)
        neuron = published_gif.extract(data["fit"], kernel)
        seconds.append(time.perf_counter() - start)
    held_out = data["validation"]
    n_run = published_gif.repeats_per_trace(held_out, N_RUN)
    score = scoring.score(held_out, published_gif.predict(neuron, held_out, n_run, seed=0))
    more = f"{neuron.n_parameters} parameters, electrode of {kernel.sum():.1f} Mohm; {seconds[1]:.0f} s; "
    numbers = score.variance_explained_forced, dataclasses.asdict(score.repeats[0])
    return line("published method", *numbers, more + f"width {neuron.Delta_V:.2f} mV")


def first_repeat(repeats: Recording) -> tuple[Recording, teacher_forcing.Estimates, dict[str, np.ndarray]]:
    """The first of the repeats, its regression, and the bounds that follow, {name: (low, high)}."""
    fitted = jax.tree.map(lambda x: x[..., :1], repeats)
    estimates = teacher_forcing.first_estimates(fitted)
    ranges = {name: limits.mantissa for name, limits in gif.RANGES.items()} | gif.WIDE | estimates.bounds
    return fitted, estimates, {name: np.array(limits) for name, limits in ranges.items()}


def arguments_of_simulation(folder: Path) -> list[str]:
    """What the simulation objective, which has the paper's neuron and bounds, is told of a recording."""
    _, estimates, bounds = first_repeat(recordings_of(files_of(folder, "Test"), half=True)["fit"])
    fitted = ("R", "tau", "V_rest", "V_reset", *FITTED_TO_SPIKES)
    limits = ["{}={:g}:{:g}".format(name, *bounds[name]) for name in fitted]
    constants = ["R1=1", "R2=1", f"R_s={estimates.values['R_s']:g}", "V_th_reset=-1000"]
    return ["--fit_parameters", *fitted, "--bounds", *limits, "--constants", *constants]


def by_brian2modelfitting(folder: Path, seconds: float) -> float:
    """The row of brian2modelfitting's SpikeFitter, which has one repeat and these seconds.

    It fits what spikes tell of a neuron with a linear threshold, in our bounds; its membrane is that of our regression.
    """
    data = recordings_of(files_of(folder, "Test"), half=True)
    fitted, estimates, bounds = first_repeat(data["fit"])
    arrays = {name: estimates.values[name] for name in ("R", "tau", "V_rest", "V_reset", "t_ref")}
    arrays |= {f"bounds_{name}": bounds[name] for name in FITTED_TO_SPIKES}
    arrays |= dict(current=fitted.current, spikes=fitted.spikes, dt=fitted.dt, delta=DELTA, n_sample=N_SET)
    found = run_peer("peer_gif_brian2modelfitting.py", BRIAN2MODELFITTING, seconds, **arrays)
    values = gif.with_units(gif.WITHOUT | estimates.values | found["parameters"])
    model = studies.simulation(utils.GIF, values | {"V_th_reset": teacher_forcing.NO_FLOOR})
    noise = teacher_forcing.Noise(estimates.tau_noise, True)
    neuron = teacher_forcing.Escaping(values, noise, teacher_forcing.T_BEFORE)
    held_out = data["validation"]
    V, spikes = studies.free_run_of(model)({}, held_out)
    forced = np.asarray(neuron.forced({}, held_out), np.float64)
    score = scoring.score(held_out, scoring.Prediction(V, spikes, spikes[:, :, None], forced))
    (took, error), n_round = found["log"][-1], len(found["log"])
    more = f"{len(FITTED_TO_SPIKES)} parameters; {n_round} rounds of {N_SET} in {took:.0f} s, to 1 - Gamma {error:.3f}"
    numbers = score.variance_explained_forced, dataclasses.asdict(score.repeats[0])
    return line(f"{PEER}, 10 s", *numbers, more)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    rows = [*ROWS, PEER]
    parser.add_argument("--rows", nargs="+", choices=rows, default=rows, metavar="ROW", help=f"default: all; {rows}")
    parser.add_argument("--seeds", type=int, default=1, help="number of seeds of our rows, 0, 1, ...")
    args = parser.parse_args(argv)
    runs.setup_jax(64)
    theirs = published(args.folder)
    if PEER in args.rows:
        by_brian2modelfitting(args.folder, SECONDS)
    names = [name for name in args.rows if name != PEER]
    rows = {name: [ours(args.folder, name, seed) for seed in range(args.seeds)] for name in names}
    if not rows:
        return
    name, values = next(iter(rows.items()))
    print(f"ratio of Md* (4 ms), {name} / published: {np.mean(values) / theirs:.3f}")


if __name__ == "__main__":
    main()
