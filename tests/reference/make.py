"""Make the results that are kept in this folder again, each by one command.

    python tests/reference/make.py training            every run behind it, then training.csv, .json, .md and .png here
    python tests/reference/make.py all --laptop        small variants of all, in minutes, into laptop/
    python tests/reference/make.py readme              only README.md, from the tables that are here

With --coordinator, --num_processes and --process_id, as the scripts have them, each run is that of several processes,
which share its folder: trainings split their batches, and comparisons their repeats.

The items, with the figures and tables of Wang et al. (2024) that they answer:

    fits          both neurons, fitted by gradients (L-BFGS-B's rows of Tables S2 and S3)
    recording     both neurons, fitted to the recording of data/ by the README's commands
    hh_length     the HH cell, driven by the recording or not, against the length of the recording
    hh_methods    the HH cell by every method (Figures 2 and S8, Table S3)
    gif_methods   the GIF neuron by every method (Figure S7, Table S2)
    equal_budget  both neurons by every method, each with as many simulations
    as_typed      the E/I network by the three commands of the paper's README, three seeds
    training      the E/I network: three methods, three networks, three seeds
    groups        gradients of expsm_diag by its groups of states and stretches of the trial, beside diag's
    figure3       activity and weights of the network at the paper's setting (Figure 3)
    behaviour     what the trained networks decide, and what they need for it
    multi_scale   networks of fitted neurons, wired as a table says: rules, controls, and what they need
    memory        memory and time of an update against the length of a trial (Figure S6)
    processes     several processes: weights beside those of one, what updates cost, and on more hosts by that

For each there are the numbers of every run (CSV), what made them (JSON: commands with seeds, dates, devices, versions),
a table (Markdown) and figures. README.md shows these between the lines `<!-- ITEM: written by make.py -->` and
`<!-- end -->`, which are written again with the item; the rest of it is written by hand. The runs themselves are in
results/reference/, whose whole ones are not run again.
"""

import argparse
import csv
import dataclasses
import datetime
import itertools
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.extend([str(ROOT), str(HERE.parent / "benchmarks")])

import runs

import bench_ei_online
import bench_hh_length
import bench_processes
import expsm_cosines
import jax
import matplotlib.pyplot as plt
import numpy as np
from common import in_turns, multi_scale_network
from PIL import Image
from workloads import network

from decisions import wilson_interval
from learning_rules import RULES
from supervisor import Place

HH, GIF, TASK = "neuron_fitting_of_hh_model.py", "neuron_fitting_of_gif_model.py", "task-coba-ei-rsnn.py"
SEEDS = (0, 1, 2)
STYLES = dict(zip(RULES, itertools.cycle(("C0o-", "C1s--", "C3^:", "C2v-.")), strict=False))
PERIODS = ("cues", "delay", "recall")
Row = dict[str, Any]

# Read off Figure 3 (E and I; 12 800 and 3200 weights).
FIGURE_3 = {
    **{("rate_Hz", "cues", "exc"): 1.31, ("rate_Hz", "delay", "exc"): 0.0, ("rate_Hz", "recall", "exc"): 13.6},
    **{("rate_Hz", "cues", "inh"): 4.40, ("rate_Hz", "delay", "inh"): 0.0, ("rate_Hz", "recall", "inh"): 0.0},
}
SAME_ACCURACY = 0.85  # to which both optimisers come
MOMENTS = ("mean", "median", "sd", "skew", "max")
FIGURE_3_WEIGHTS = {
    ("before", "exc"): (0.1025, 0.089, 0.071, 0.57, 0.284),
    ("after", "exc"): (0.0473, 0.020, 0.057, 1.60, 0.362),
    ("before", "inh"): (0.414, 0.367, 0.279, 0.53, 1.132),
    ("after", "inh"): (0.660, 0.609, 0.285, 0.54, 1.455),
}


# Figures, and what README.md says below each.
FIGURES = {
    "recording_hh.png": "Held out: the recording (black), and the HH cell (orange) that was fitted to what precedes.",
    "recording_gif.png": "The same by the GIF neuron, running freely and with the recorded spikes.",
    "fits_hh.png": "Black: the cell in data/. Orange: the fitted cell, under currents that the fit has not seen.",
    "hh_methods_figure_2.png": "Figures 2 and S8: the target (black) and the best of ten fits by each method (orange).",
    "gif_methods_methods.png": "Figure S7: the same for the GIF neuron.",
    "equal_budget_hh.png": "HH: best loss so far, median and quartiles of ten repeats.",
    "as_typed.png": "Accuracy in validation against updates, by the commands of the paper; a line a seed.",
    "training.png": "Accuracy in validation against updates; a line a seed.",
    "figure3_activity.png": "Adam, seed 0: inputs, spikes, potentials and readout in a trial, after training.",
    "figure3_weights.png": "The same network: weights before and after, with three laws fitted to them.",
    "behaviour.png": "bptt, seed 0: choices, cue weights (± standard error, if there is one), accuracies (95 %).",
    "behaviour_activity.png": "A trial of that network: inputs, spikes, potentials and readout.",
    "memory.png": "Peak memory and time against the steps of a trial.",
}


@dataclasses.dataclass
class Item:
    """One item while it is made: its runs, and its files in a folder, each written whole.

    Args:
        name: that of the function which makes it.
        laptop: whether it is the small variant.
        folder: of its files.
        run_folder: of the folders of its runs.
        place: of this process among several, which have each run together; the first one has the files.
        commands: the runs so far, and what made them.
    """

    name: str
    laptop: bool
    folder: Path
    run_folder: Path
    place: Place = dataclasses.field(default_factory=Place)
    commands: list[Row] = dataclasses.field(default_factory=list)

    def run(self, name: str, script: str, *arguments: Any) -> Path:
        """Folder of a run of a script; what is there and whole is not run again."""
        folder, command = self.run_folder / name, [script, *map(str, arguments)]
        first = not self.place.process_id
        if not folder.exists():
            part = folder.with_name(f"{folder.name}.part")  # renamed when it is whole
            if first:
                shutil.rmtree(part, ignore_errors=True)
            print(f"{self.name}: {shlex.join(command)}", flush=True)
            status = start([*command, "--output", str(part), *(self.place.arguments if self.place.several else [])])
            if status:
                sys.exit(f"{name}: ended with status {status}, expected 0")
            if first:
                part.rename(folder)
            while not folder.exists():
                time.sleep(0.1)
        config = read_json(folder / "config.json")
        made_by = shlex.split(config["command"])
        if made_by[1 : made_by.index("--output")] != command[1:]:
            sys.exit(f"{folder}: found the run of another command, expected {shlex.join(command)}; remove it")
        made = {name: config[name] for name in ("date", "devices", "python", "packages")}
        self.commands.append(dict(command=shlex.join(["python", *command])) | made)
        return folder

    def write(
        self,
        rows: Sequence[Row],
        table: str,
        figures: Mapping[str, plt.Figure | Path] | None = None,
        **more: Sequence[Row],
    ) -> None:
        """Save the rows, those of `more`, the table, and figures, {name: figure or the file of one}."""
        if self.place.process_id:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        command = f"python tests/reference/make.py {self.name}{' --laptop' if self.laptop else ''}"
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        here = dict(python=platform.python_version(), machine=platform.machine(), cores=runs.N_CORE)
        here["packages"] = {name: runs.version_of(name) for name in runs.PACKAGES}
        made = [{name: x for name, x in run.items() if here.get(name) != x} for run in self.commands]
        files = {f"{self.name}.csv": rows, f"{self.name}.md": table, **({} if self.laptop else figures or {})}
        files |= {f"{self.name}_{name}.csv": more_rows for name, more_rows in more.items()}
        files[f"{self.name}.json"] = dict(command=command, date=date) | here | dict(runs=made)
        for name, content in files.items():
            if isinstance(content, Path):
                shutil.copyfile(content, self.folder / name)
            else:
                runs.save(self.folder / name, content)
            if name.endswith(".png"):
                shrink(self.folder / name)
        print(table, end="")


def start(command: Sequence[str]) -> int:
    """The exit status of a script, in a process of its own."""
    return subprocess.run([sys.executable, *command], cwd=ROOT, stdout=subprocess.DEVNULL).returncode


def shrink(path: Path) -> None:
    """Write a figure again with the 256 colours that it needs most, in a third of the bytes."""
    with Image.open(path) as image:
        few = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    few.save(path, optimize=True)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def read_rows(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV file, as text."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def markdown(columns: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown."""
    grid = [columns, ["---"] * len(columns), *lines]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in grid) + "\n"


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± s.d., to so many decimals; of one value, itself."""
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean


def listed(values: Sequence[float | None], form: str = "{:g}") -> str:
    """The values of the seeds, joined; a dash where there is none."""
    return ", ".join("-" if value is None else form.format(value) for value in values)


def grouped_by(rows: Sequence[Row], *names: str) -> dict[tuple, list[Row]]:
    """{values of the columns `names`: rows that have them}, in order."""
    grouped: dict[tuple, list[Row]] = {}
    for row in rows:
        grouped.setdefault(tuple(row[name] for name in names), []).append(row)
    return grouped


# ---- Fits -----------------------------------------------------------------------------------------------------------


def fits(item: Item) -> None:
    """Both neurons by gradients, as the scripts do without arguments, and the HH cell by the paper's protocol."""
    cases = {
        "HH, recorded traces": (HH, []),
        "HH, the paper's protocol": (HH, ["--target", "simulated", "--n_point", 10]),
        "GIF, by likelihood": (GIF, []),
    }
    cases = {name: cases[name] for name in list(cases)[::2]} if item.laptop else cases
    rows, figures = [], {}
    for name, (script, arguments) in cases.items():
        for seed in SEEDS[:1] if item.laptop else SEEDS:
            folder = item.run(f"fits/{name.replace(' ', '_')}_seed{seed}", script, *arguments, "--seed", seed)
            result = read_json(folder / "result.json")
            known = {key: x for key, x in result["known_parameters"].items() if key not in ("k1", "k2")}  # no effect
            errors = [abs(result["parameters"][key] / x - 1) for key, x in known.items()]
            near = sum(start["loss"] <= 1.1 * result["loss"] + 1e-3 for start in result["starts"])
            row = dict(fit=name, seed=seed, loss=result["loss"], worst_error=max(errors), starts_found=near)
            rows.append(row | dict(seconds=result["seconds"]["run"]))
            if name == "HH, recorded traces" and seed == 0:
                figures["fits_hh.png"] = folder / "traces_validation.png"
    lines = [
        [
            name,
            listed([row["loss"] for row in of_case], "{:.2g}"),
            listed([100 * row["worst_error"] for row in of_case], "{:.2g}"),
            listed([row["starts_found"] for row in of_case]),
            spread([row["seconds"] for row in of_case], 1),
        ]
        for (name,), of_case in grouped_by(rows, "fit").items()
    ]
    columns = ["fit", "loss (seeds in order)", "worst error of a parameter, %", "starts at the best", "seconds"]
    item.write(rows, markdown(columns, lines), figures)


SMALL_SWEEPS = ["--recording", "data/recording.nwb", "--sweeps", "0:2", "--t_stop", 1500, "--n_sample", 2]
LINEAR = ["--model_terms", "none"]


def recording(item: Item) -> None:
    """Both neurons fitted to a recording of a cell with more in it than either, and scored on its last third."""
    parameters = "gL gNa gK V_T EL C gM tau_max phi R_s".split()  # noqa: SIM905 (as the README has it)
    sweeps = SMALL_SWEEPS if item.laptop else ["--recording", "data/recording.nwb", "--sweeps", "0:5", "--n_sample", 8]
    cases = {
        "GIF": (GIF, LINEAR if item.laptop else []),
        "HH": (HH, ["--fit_parameters", *parameters, *(["--n_iter", 1] if item.laptop else [])]),
    }
    rows, figures = [], {}
    for neuron, (script, arguments) in cases.items():
        folder = item.run(f"recording/{neuron.lower()}", script, *sweeps, *arguments)
        result = read_json(folder / "result.json")
        losses = np.array([start["loss"] for start in result["starts"]])
        # As the scripts say of starts that end together: to 1 of a log-likelihood, to 10 % of squared errors.
        within = losses.min() + 1 if neuron == "GIF" else 1.1 * losses.min() + 1e-3
        row = dict(neuron=neuron, starts_found=int(np.sum(losses <= within)), n_start=len(losses))
        held_out = result["validation"]
        repeats = held_out["repeats"][0]
        row |= {name: repeats[name] for name in repeats if name.startswith("md_star")}
        row |= {name: held_out[name] for name in ("variance_explained", "variance_explained_forced")}
        rows.append(row | dict(gamma=np.mean(held_out["gamma"]), seconds=result["seconds"]["run"]))
        figures[f"recording_{neuron.lower()}.png"] = folder / "window_validation.png"
    lines = [
        [
            row["neuron"],
            ", ".join(f"{row[name]:.2f} ± {row[f'{name}_error']:.2f}" for name in ("md_star_4ms", "md_star_2ms")),
            f"{row['gamma']:.2f}",
            percent(row["variance_explained"]),
            percent(row["variance_explained_forced"]),
            f"{row['starts_found']} of {row['n_start']}",
            f"{row['seconds']:.0f}",
        ]
        for row in rows
    ]
    columns = ["neuron", "Md* 4 ms, 2 ms", "Gamma", "variance of V, free", "with the recorded spikes"]
    item.write(rows, markdown([*columns, "starts at the best", "seconds"], lines), figures)


def hh_length(item: Item) -> None:
    """How many starts find the HH cell, by three fits, against the length of the recording."""
    lengths, sizes = ((15, 50), (4, 0)) if item.laptop else (bench_hh_length.LENGTHS, (20, 5))
    rows = []
    for length in lengths:
        rows += bench_hh_length.compare(length, *sizes, seed=0)
        print(f"{item.name}: {length} ms", flush=True)
    fits = {
        "synchronised": "driven by the recording",
        "simulation": "the paper's loss, same starts",
        bench_hh_length.PEER: "brian2modelfitting 0.4, by DE, ten times the seconds of the first",
    }

    def cell(row):
        return f"{row['found']} of {row['n']}, {row['seconds']:.{int(row['seconds'] < 10)}f} s"

    lines = [[fits[fit], *map(cell, of_fit)] for (fit,), of_fit in grouped_by(rows, "fit").items()]
    columns = [f"{row['length_ms']:g} ms, {row['spikes']}" for row in rows if row["fit"] == "synchronised"]
    item.write(rows, markdown(["recording, spikes in it", *columns], lines))


def percent(fraction: float | None) -> str:
    """In percent; nothing where there is none."""
    return "" if fraction is None else f"{100 * fraction:.1f} %"


def methods(item: Item, script: str, arguments: Sequence[Any], figure: str) -> None:
    """A neuron by every method, with the paper's budgets, and that figure of the comparison."""
    small = ["--repeats", 1, "--methods", "L-BFGS-B", "DE", "random"] if item.laptop else []
    arguments = ["--mode", "compare", *arguments, "--protocol_budget", "paper", *small]
    folder = item.run(item.name, script, *arguments)
    figures = {f"{item.name}_{figure}": folder / figure}
    item.write(read_rows(folder / "comparison.csv"), (folder / "comparison.md").read_text(), figures)


def hh_methods(item: Item) -> None:
    """The HH cell, to the paper's protocol."""
    methods(item, HH, ["--target", "simulated", "--n_point", 10], "figure_2.png")


def gif_methods(item: Item) -> None:
    """The GIF neuron, by the paper's loss."""
    methods(item, GIF, ["--objective", "simulation", "--n_point", 100], "methods.png")


def equal_budget(item: Item) -> None:
    """Both neurons by every method, each with as many simulations: HH to the paper's protocol, GIF by likelihood."""
    cases = {
        "HH": (HH, "by the mean squared error of the potential", ["--target", "simulated", "--n_point", 10]),
        "GIF": (GIF, "by likelihood", []),
    }
    if item.laptop:
        # What a gradient costs is given, not timed, so that the numbers do not depend on the machine.
        small = ["--repeats", 1, "--methods", "L-BFGS-B", "DE", "random", "--gradient_cost", 3]
        cases = {"HH": (*cases["HH"][:2], [*cases["HH"][2], *small])}
    rows, tables, figures = [], [], {}
    for neuron, (script, loss, arguments) in cases.items():
        name = f"{item.name}_{neuron.lower()}"
        folder = item.run(name, script, "--mode", "compare", *arguments)
        rows += [dict(neuron=neuron) | row for row in read_rows(folder / "comparison.csv")]
        tables.append(f"**{neuron}, {loss}**\n\n{(folder / 'comparison.md').read_text()}")
        figures |= {f"{name}.png": folder / "comparison.png"} if neuron == "HH" else {}
    item.write(rows, "\n".join(tables), figures)


# ---- The network ----------------------------------------------------------------------------------------------------

NETWORKS = (("dense", 200), ("rand", 200), ("rand", 400))
SMALL_NETWORKS = (("dense", 100),)
SMALL = ["--batch_size", 32, "--n_heldout", 256, "--t_delay", 200]
FEW = ["--epochs", 6, "--eval_every", 3]
LEARNS = ["--lr", "5e-3", "--schedule", "cosine", "--tau_a", 10000, "--rec_scale", 0.1, "--ff_scale", 10, "--beta", 0.5]


def train(item: Item, method: str, conn_method: str, n_rec: int, seed: int) -> Path:
    """Folder of a training with the arguments of the README, the same for every method."""
    length = [*SMALL, "--epochs", 20, "--eval_every", 10] if item.laptop else ["--epochs", 200, "--batch_size", 64]
    arguments = [*LEARNS, *length, "--method", method, "--conn_method", conn_method, "--n_rec", n_rec, "--seed", seed]
    return item.run(f"training/{method}_{conn_method}_{n_rec}_seed{seed}", TASK, *arguments)


def learned(result: Row) -> Row:
    """What result.json says of a training, in a row."""
    row = {name: result[name] for name in ("heldout_accuracy", "n_heldout", "updates")}
    row |= dict(zip(("low", "high"), result["heldout_interval"], strict=True))
    for level in ("0.9", "0.99"):
        first = result["first_at"][level]
        row[f"updates_to_{level}"] = first and first["update"]
        row[f"minutes_to_{level}"] = first and first["seconds"] / 60
    for period in PERIODS:
        for population, rate in result["heldout_rates_Hz"][period].items():
            row[f"{period}_{population}_Hz"] = rate
    return row


def accuracies_of(rows: Sequence[Row]) -> str:
    """Those on held-out trials, with their intervals, of rows as by `learned`."""
    return "; ".join(f"{row['heldout_accuracy']:.3f} ({row['low']:.3f} to {row['high']:.3f})" for row in rows)


def learning_curve(folder: Path) -> list[Row]:
    """The evaluations of a training."""
    columns = ("update", "validation_accuracy", "seconds")
    history = [line for line in read_rows(folder / "metrics.csv") if line["validation_accuracy"]]
    return [{column: float(line[column]) for column in columns} for line in history]


def as_typed(item: Item) -> None:
    """The network and task of the paper by the three commands of its README, trained by the script's defaults."""
    commands = {"bptt": [], "expsm_diag": ["--etrace_decay", 0.98], "diag": []}
    small = ["--n_rec", 100, *SMALL, *FEW] if item.laptop else []
    rows, curves = [], []
    for method, given in list(commands.items())[: 1 if item.laptop else None]:
        for seed in SEEDS[:1] if item.laptop else SEEDS:
            arguments = ["--method", method, *given, "--seed", seed, *small]
            folder = item.run(f"as_typed/{method}_seed{seed}", TASK, *arguments)
            result, made_of = read_json(folder / "result.json"), read_json(folder / "config.json")["arguments"]
            name = {column: made_of[column] for column in ("method", "conn_method", "n_rec", "seed")}
            row = name | learned(result) | dict(minutes=sum(result["seconds"].values()) / 60)
            for memory, fading in zip(("mean", "slowest"), result["fading"], strict=True):
                row[f"{memory}_memory"] = fading["accuracy"]
            rows.append(row)
            curves += [name | row for row in learning_curve(folder)]
    lines = []
    for (method,), of_rule in grouped_by(rows, "method").items():
        line = [shlex.join(["--method", method, *map(str, commands[method])])]
        line.append(accuracies_of(of_rule))
        line += [listed([row[name] for row in of_rule]) for name in ("updates", "updates_to_0.9")]
        line.append(listed([row["minutes"] for row in of_rule], "{:.1f}"))
        for period in PERIODS:
            line.append(listed([row[f"{period}_exc_Hz"] for row in of_rule], "{:.1f}"))
        lines.append(line)
    for memory in ("mean", "slowest"):
        accuracies = [f"{row[f'{memory}_memory']:.3f}" for row in rows if row["method"] == "bptt"]
        lines.append([f"cues that fade as adaptation does, the {memory}", "; ".join(accuracies), *[""] * 6])
    columns = ["arguments", "held-out accuracy (95 %), seeds in order", "updates", "to 0.9", "minutes"]
    columns += ["E in cues, Hz", "delay", "recall"]
    item.write(rows, markdown(columns, lines), {"as_typed.png": plot_training(curves)}, curves=curves)


def training(item: Item) -> None:
    """The E/I network, by every method on every network."""
    rows, curves = [], []
    for conn_method, n_rec in SMALL_NETWORKS if item.laptop else NETWORKS:
        for method in RULES:
            for seed in SEEDS[:1] if item.laptop else SEEDS:
                folder = train(item, method, conn_method, n_rec, seed)
                result = read_json(folder / "result.json")
                name = dict(method=method, conn_method=conn_method, n_rec=n_rec, seed=seed)
                seconds = dict(seconds_per_update=result["seconds_per_update"])
                rows.append(name | learned(result) | seconds | dict(seconds_compile=result["seconds"]["compile"]))
                curves += [name | row for row in learning_curve(folder)]
    lines = []
    for (conn_method, n_rec, method), of_rule in grouped_by(rows, "conn_method", "n_rec", "method").items():
        n, p = (sum(row["n_heldout"] for row in of_rule), np.mean([row["heldout_accuracy"] for row in of_rule]))
        low, high = wilson_interval(round(n * p), n)
        line = [method, f"{conn_method}, {n_rec}"]
        for level in ("0.9", "0.99"):
            line.append(listed([row[f"updates_to_{level}"] for row in of_rule]))
        line.append(f"{spread([row['heldout_accuracy'] for row in of_rule])} ({low:.3f} to {high:.3f})")
        for period in PERIODS:
            rates = [np.mean([row[f"{period}_{population}_Hz"] for row in of_rule]) for population in ("exc", "inh")]
            line.append(f"{rates[0]:.1f}, {rates[1]:.1f}")
        lines.append(line)
    columns = ["method", "network", "updates to 0.9", "to 0.99", "held-out accuracy (95 %)"]
    columns += ["E, I in cues, Hz", "delay", "recall"]
    item.write(rows, markdown(columns, lines), {"training.png": plot_training(curves)}, curves=curves)


def plot_training(curves: Sequence[Row]) -> plt.Figure:
    """Accuracy in validation against updates: a panel a network, a line a seed."""
    panels = grouped_by(curves, "conn_method", "n_rec")
    figure, axes = plt.subplots(
        1, len(panels), figsize=(runs.WIDTH, 2.3), sharey=True, layout="constrained", squeeze=False
    )
    for axis, ((conn_method, n_rec), of_network) in zip(axes[0], panels.items(), strict=True):
        for (method, seed), curve in grouped_by(of_network, "method", "seed").items():
            x, y = [row["update"] for row in curve], [row["validation_accuracy"] for row in curve]
            axis.plot(x, y, STYLES[method], lw=1, ms=2.5, label=method if seed == 0 else None)
        axis.axhline(0.99, color="0.5", lw=0.6, ls=":")
        axis.set(xlabel="update", title=f"{conn_method}, n_rec {n_rec}", xlim=(0, None))
    axes[0, 0].set_ylabel("accuracy in validation")
    axes[0, 0].legend(loc="lower right")
    return figure


def groups(item: Item) -> None:
    """How near the gradients of expsm_diag are to those of diag, of untrained networks."""
    variants, networks, small = expsm_cosines.VARIANTS, expsm_cosines.NETWORKS, []
    if item.laptop:
        variants = {name: variants[name] for name in ("one group", "two groups, stretches 4")}
        networks, small = {"the paper's": networks["the paper's"]}, ["--n_rec", 60, "--n_cue", 3, "--t_delay", 200]
    keys, rules = jax.random.split(jax.random.key(0), 8 if item.laptop else 32), expsm_cosines.rules_of(variants)
    rows = []
    for constants, arguments in networks.items():
        found = expsm_cosines.cosines(rules, network(*arguments, *small).model, keys)
        rows += [dict(constants=constants, variant=variant) | of_blocks for variant, of_blocks in found.items()]
    blocks = ("in", "cue inputs", "exc", "inh")
    lines = [
        [variant, *(listed([row[block] for block in blocks], "{:.3f}") for row in of_variant)]
        for (variant,), of_variant in grouped_by(rows, "variant").items()
    ]
    columns = [f"{name} constants: inputs, cue inputs alone, E, I" for name in networks]
    item.write(rows, markdown(["", *columns], lines))


def simulate(item: Item, folder: Path) -> tuple[Row, Path]:
    """result.json of a simulation of the network of a training in a folder, and the folder of the simulation."""
    load = os.path.relpath(folder, ROOT)
    batch = ["--batch_size", 32, "--n_heldout", 128] if item.laptop else ["--batch_size", 128]
    name = f"simulated/{folder.parent.name}_{folder.name}"
    simulation = item.run(name, TASK, "--mode", "sim", "--load", load, *batch)
    return read_json(simulation / "result.json"), simulation


def figure3(item: Item) -> None:
    """Networks trained at the paper's setting (rand, 400 neurons, rec_scale 0.5, w_ei_ratio 4), by Adam and by SGD.

    Of both those, too, that have come as far as the other: to SAME_ACCURACY in validation.
    """
    arguments = ["--method", "bptt", "--conn_method", "rand", "--n_rec", 100 if item.laptop else 400]
    arguments += [*SMALL, *FEW] if item.laptop else ["--batch_size", 64]
    adam, same = ["--lr", "5e-3", "--schedule", "cosine"], ["--threshold", SAME_ACCURACY]
    sgd = ["--opt", "sgd", "--lr", 10, "--grad_clip", 0.1, "--schedule", "constant"]
    updates, more = ([], []) if item.laptop else (["--epochs", 200], ["--epochs", 400])
    trainings = {
        "Adam": ("adam", [*updates, *adam]),
        f"Adam, to {SAME_ACCURACY}": ("adam_same", [*updates, *adam, *same]),
        f"SGD, to {SAME_ACCURACY}": ("sgd_same", [*more, *sgd, *same]),
    }
    if item.laptop:  # in which neither comes so far
        del trainings[f"Adam, to {SAME_ACCURACY}"]
    rows, figures = [], {}
    for name, (label, optimiser) in trainings.items():
        for seed in SEEDS[:1] if item.laptop else SEEDS:
            folder = item.run(f"figure3/{label}_seed{seed}", TASK, *arguments, *optimiser, "--seed", seed)
            result = read_json(folder / "result.json")
            values = {("accuracy", "", ""): result["heldout_accuracy"], ("updates", "", ""): result["updates"]}
            values["validation", "", ""] = result["best"]["validation_accuracy"]
            values |= activity_and_weights(result["simulation"])
            for (quantity, when, population), value in values.items():
                rows.append(dict(run=name, seed=seed, quantity=quantity, when=when, population=population, value=value))
            if (label, seed) == ("adam", 0):
                figures = {f"figure3_{panel}.png": folder / f"{panel}.png" for panel in ("activity", "weights")}
    item.write(rows, figure3_table(rows), figures)


def activity_and_weights(simulated: Row) -> dict[tuple[str, str, str], float]:
    """{(quantity, when, population): value} of a network, as in Figure 3."""
    values = {}
    for period, rates in simulated["rates_Hz"].items():
        values |= {("rate_Hz", period, population): rate for population, rate in rates.items()}
    for population, fraction in simulated["within_reversal_potentials"].items():
        values["within", "", population] = fraction
    for stage, blocks in simulated["weights"].items():
        for population in ("exc", "inh"):
            w = blocks[population]
            values |= {(moment, stage, population): w[moment] for moment in MOMENTS}
            best = min(law["AIC"] for law in w["laws"].values())
            values |= {(f"AIC {law}", stage, population): v["AIC"] - best for law, v in w["laws"].items()}
    return values


def figure3_table(rows: Sequence[Row]) -> str:
    """The values of each run beside the paper's."""
    names = [name for (name,) in grouped_by(rows, "run")]
    values = grouped_by(rows, "run", "quantity", "when", "population")

    def line(title, key, paper="", digits=2):
        cells = [spread([row["value"] for row in values[name, *key]], digits) for name in names]
        return [title, paper, *cells]

    lines = [
        line("held-out accuracy", ("accuracy", "", ""), "not given", 3),
        line("in validation", ("validation", "", ""), "", 3),
        line("updates", ("updates", "", ""), "not given", 0),
    ]
    for population, letter in (("exc", "E"), ("inh", "I")):
        for period in PERIODS:
            key = ("rate_Hz", period, population)
            lines.append(line(f"{letter} neurons, {period}, Hz", key, FIGURE_3[key]))
        lines.append(line(f"{letter}, V within the reversal potentials", ("within", "", population), "", 3))
    for population, letter in (("exc", "E"), ("inh", "I")):
        for stage in ("before", "after"):
            papers = dict(zip(MOMENTS, FIGURE_3_WEIGHTS[stage, population], strict=True))
            for moment in MOMENTS:
                lines.append(
                    line(f"{letter} weights {stage}, {moment}", (moment, stage, population), papers[moment], 3)
                )
        for law in ("half-normal", "gamma", "log-normal"):
            key = (f"AIC {law}", "after", population)
            lines.append(line(f"{letter} weights after, AIC of {law} above the best", key, "", 0))
    return markdown(["", "paper", *names], lines)


def behaviour(item: Item) -> None:
    """What the networks of `training` decide (dense), and what they need for it."""
    rows, figures = [], {}
    for method in ("bptt",) if item.laptop else RULES:
        for seed in SEEDS[:1] if item.laptop else SEEDS:
            folder = train(item, method, "dense", 100 if item.laptop else 200, seed)
            result, simulation = simulate(item, folder)
            decisions = result["behaviour"]
            values = {("slope", ""): decisions["fit"]["slopes"][0], ("bias", ""): decisions["fit"]["bias"]}
            values |= {("psychometric", row["difference"]): row["right"] for row in decisions["psychometric"]}
            values |= {("cue weight", 1 + i): w for i, w in enumerate(decisions["cue_weights"]["slopes"])}
            values |= {("delay", row["t_delay"]): row["accuracy"] for row in decisions["delays"]}
            values |= {("silenced", name): row["accuracy"] for name, row in decisions["silenced"].items()}
            name = dict(method=method, seed=seed)
            rows += [name | dict(quantity=quantity, at=at, value=value) for (quantity, at), value in values.items()]
            if (method, seed) == ("bptt", 0):
                figures["behaviour.png"] = simulation / "behaviour.png"
                figures["behaviour_activity.png"] = simulation / "activity.png"
    values, of_method = grouped_by(rows, "quantity", "at", "method"), grouped_by(rows, "method")
    titles = {"slope": "log odds a cue", "bias": "bias, log odds", "cue weight": "weight of cue {}, log odds"}
    titles |= {"delay": "accuracy, delay {:g} ms", "silenced": "accuracy without {}"}
    lines = []
    for quantity, at in grouped_by(rows, "quantity", "at"):
        if quantity in titles:
            digits = 3 if quantity in ("delay", "silenced") else 2
            cells = [spread([row["value"] for row in values[quantity, at, method]], digits) for (method,) in of_method]
            lines.append([titles[quantity].format(at).replace("without nothing", "of the whole network"), *cells])
    item.write(rows, markdown(["", *(method for (method,) in of_method)], lines), figures)


# ---- Fitted neurons, wired as a table says --------------------------------------------------------------------------

NEEDED = ("adaptation", "adaptation and V as recall begins", "recurrent exc", "recurrent inh")


def fitted_cells(item: Item) -> list[str]:
    """Arguments that take a regular-spiking and a fast-spiking cell, each fitted to its recording."""
    if item.laptop:  # one cell, that of `recording`, for both
        regular = fast = item.run("recording/gif", GIF, *SMALL_SWEEPS, *LINEAR)
    else:
        sweeps = {"regular": ["data/recording.nwb", "--sweeps", "0:5"], "fast": ["data/recording_fast_spiking.nwb"]}
        regular, fast = (
            item.run(f"multi_scale/{cell}", GIF, "--recording", *sweeps[cell], *LINEAR, "--n_sample", 2)
            for cell in ("regular", "fast")
        )
    return ["--exc_neuron", os.path.relpath(regular, ROOT), "--inh_neuron", os.path.relpath(fast, ROOT)]


def multi_scale(item: Item) -> None:
    """Networks of fitted neurons by every rule, and by bptt without their currents, on other wiring, or of others."""
    cells, no_currents, rewired = fitted_cells(item), ["--no_spike_currents"], ["--shuffle_connections"]
    length = [*SMALL[:-2], *FEW] if item.laptop else ["--batch_size", 64, "--epochs", 200]
    cases = {("fitted neurons", method): (cells, SEEDS) for method in RULES}
    cases |= {
        ("without currents after spikes", "bptt"): ([*cells, *no_currents], SEEDS[:1]),
        ("rewired", "bptt"): ([*cells, *rewired], SEEDS[:1]),
        ("without these currents, rewired", "bptt"): ([*cells, *no_currents, *rewired], SEEDS[:1]),
        ("the paper's neurons", "bptt"): ([], SEEDS[:1]),
    }
    rows = []
    for (variant, method), (given, seeds) in list(cases.items())[: 1 if item.laptop else None]:
        for seed in seeds[:1] if item.laptop else seeds:
            name = f"multi_scale/{method}_{re.sub(r'[^a-z]+', '_', variant)}_seed{seed}"
            arguments = [*multi_scale_network().split(), *length, *given, "--method", method, "--seed", seed]
            folder = item.run(name, TASK, *arguments)
            result = read_json(folder / "result.json")
            row = dict(variant=variant, method=method, seed=seed) | learned(result)
            row["fading"] = result["fading"][0]["accuracy"] if result["fading"] else None
            if (variant, method) == ("fitted neurons", "bptt"):
                decisions = simulate(item, folder)[0]["behaviour"]
                row |= {f"delay_of_{of['t_delay']:g}_ms": of["accuracy"] for of in decisions["delays"]}
                row |= {f"without_{part}": decisions["silenced"][part]["accuracy"] for part in NEEDED}
            rows.append(row)
    item.write(rows, multi_scale_table(rows))


def multi_scale_table(rows: Sequence[Row]) -> str:
    """What they have learned, and what those by bptt need, seeds in order."""
    lines = []
    for (variant, method), of_case in grouped_by(rows, "variant", "method").items():
        line = [f"{variant}, {method}"]
        line.append(accuracies_of(of_case))
        line.append(listed([row["updates"] for row in of_case]))
        for population in ("exc", "inh"):
            line.append(listed([row[f"delay_{population}_Hz"] for row in of_case], "{:.1f}"))
        lines.append([*line, listed([row["fading"] for row in of_case], "{:.3f}")])
    columns = ["network", "held-out accuracy (95 %), seeds in order", "updates", "E in the delay, Hz", "I"]
    learned_table = markdown([*columns, "cues that fade as adaptation does"], lines)
    tested = [row for row in rows if "without_adaptation" in row]
    needs = [name for name in tested[0] if name.startswith(("delay_of_", "without_"))]
    cells = [listed([row[name] for row in tested], "{:.3f}") for name in needs]
    tests = markdown(["", *(name.replace("_", " ") for name in needs)], [["fitted neurons, bptt", *cells]])
    return f"{learned_table}\n{tests}"


# ---- Memory and time ------------------------------------------------------------------------------------------------


def memory(item: Item) -> None:
    """Peak memory of a process with one device, and seconds of an update with all, against the steps of a trial."""
    lengths = (550, 1100) if item.laptop else (550, 1100, 2200, 4400, 8800, 17600)
    rules, arguments = (("bptt", "diag"), ["--n_rec", 100, "--batch_size", 16]) if item.laptop else (RULES, [])
    rows = []
    for n_step in lengths:
        gradients = [bench_ei_online.gradient(method, *arguments, n_step=n_step) for method in rules]
        seconds = np.median(in_turns(*(gradient.run for gradient in gradients), repeats=3), axis=0)
        for method, gradient, of_rule in zip(rules, gradients, seconds, strict=True):
            process, program = bench_ei_online.memory(method, n_step, *arguments)
            row = dict(method=method, n_step=n_step, process_MB=process, program_MB=program)
            rows.append(row | dict(seconds=of_rule, seconds_compile=gradient.seconds))
            print(rows[-1], flush=True)
    values = grouped_by(rows, "method", "n_step")
    lines = []
    for method in rules:
        for quantity, form in (("process_MB", "{:.0f}"), ("seconds", "{:.2f}")):
            cells = [form.format(values[method, n_step][0][quantity]) for n_step in lengths]
            lines.append([f"{method}, {'MB' if quantity == 'process_MB' else 'seconds'}", *cells])
    table = markdown(["", *(f"T = {n_step}" for n_step in lengths)], lines)
    item.write(rows, table, {"memory.png": plot_memory(rows)})


def plot_memory(rows: Sequence[Row]) -> plt.Figure:
    """Peak memory of the process and seconds of a gradient against the steps of a trial, by every rule."""
    figure, axes = plt.subplots(1, 2, figsize=(runs.WIDTH, 2.4), layout="constrained")
    for (method,), of_rule in grouped_by(rows, "method").items():
        n_step = [row["n_step"] for row in of_rule]
        for axis, quantity in zip(axes, ("process_MB", "seconds"), strict=True):
            axis.plot(n_step, [row[quantity] for row in of_rule], STYLES[method], lw=1, ms=3, label=method)
    for axis, label in zip(axes, ("peak memory of the process (MB)", "seconds an update"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="steps of a trial, T", ylabel=label)
        axis.set_xticks(n_step, list(map(str, n_step)))
        axis.minorticks_off()
        low, high = axis.get_ylim()
        axis.set_ylim(10 ** np.floor(np.log10(low)), 10 ** np.ceil(np.log10(high)))
    axes[0].legend()
    return figure


def processes(item: Item) -> None:
    """Several processes: weights beside those of one, what an update and a sum cost, and on more hosts by that."""
    with tempfile.TemporaryDirectory() as name:
        if item.laptop:
            equal, costs = bench_processes.equal(Path(name), (2,), (64,), 4), None
        else:
            equal, costs = bench_processes.equal(Path(name)), bench_processes.costs(Path(name))
    weights = {key: [f"{row['value']:.1e}" for row in of] for (key,), of in grouped_by(equal, "n_processes").items()}
    columns = ["processes", *dict.fromkeys(row["quantity"] for row in equal)]
    table = markdown(columns, [[n, *off] for n, off in weights.items()])
    if costs:
        table += f"\n{bench_processes.in_words(costs)}\n{markdown(*bench_processes.on_paper(costs))}"
    item.write([*equal, *(costs.rows if costs else [])], table)


# ---- Main -----------------------------------------------------------------------------------------------------------

MAKERS = (fits, recording, hh_length, hh_methods, gif_methods, equal_budget)
MAKERS += (as_typed, training, groups, figure3, behaviour, multi_scale, memory, processes)
ITEMS: dict[str, Callable[[Item], None]] = {make.__name__: make for make in MAKERS}


def block_of(name: str, folder: Path) -> str:
    """What README.md shows of an item in a folder: its table, and its figures with what is said of them."""
    figures = [figure for figure in FIGURES if figure.startswith(name) and (folder / figure).exists()]
    shown = [f"![{Path(figure).stem}]({figure})\n\n*{FIGURES[figure]}*\n" for figure in figures]
    return "\n".join([(folder / f"{name}.md").read_text(), *shown])


def write_readme(folder: Path) -> None:
    """Write the blocks of README.md in a folder again, of all items whose tables are there; the rest stays as it is."""
    text = (folder / "README.md").read_text()
    for name in ITEMS:
        if (folder / f"{name}.md").exists():
            block, pattern = block_of(name, folder), rf"(<!-- {name}: written by make\.py -->\n).*?(<!-- end -->\n)"
            text, n = re.subn(pattern, lambda match, block=block: f"{match[1]}\n{block}\n{match[2]}", text, flags=re.S)
            if n != 1:
                sys.exit(f"{folder / 'README.md'}: found {n} blocks `<!-- {name}: written by make.py -->`, expected 1")
    runs.save(folder / "README.md", text)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("item", choices=(*ITEMS, "all", "readme"))
    parser.add_argument("--laptop", action="store_true", help="the small variant, which the tests compare")
    parser.add_argument("--output", type=Path, help="folder of the files; this one, or laptop/ in it, without it")
    parser.add_argument("--runs", type=Path, help="folder of the runs; results/reference/ without it")
    several = "of several processes, which have each run together, as the scripts' argument"
    for name, kind in (("coordinator", str), ("num_processes", int), ("process_id", int)):
        parser.add_argument(f"--{name}", type=kind, help=several)
    args = parser.parse_args(argv)
    try:
        place = runs.pick(Place, args)
    except ValueError as error:
        parser.error(str(error))
    if args.laptop and args.item == "readme":
        parser.error("argument --laptop: found with readme, expected it with an item")
    variant = "laptop" if args.laptop else ""
    folder = (args.output or HERE / variant).absolute()
    run_folder = (args.runs or ROOT / "results" / "reference" / variant).absolute()
    runs.use_plot_style()
    for name in ITEMS if args.item == "all" else {args.item} - {"readme"}:
        if name in ("hh_length", "groups", "memory", "processes") and place.process_id:
            continue  # which have no runs, in the first process
        ITEMS[name](Item(name, args.laptop, folder, run_folder, place))
        if not args.laptop and not place.process_id and (folder / "README.md").exists():
            write_readme(folder)
    if args.item == "readme" and not place.process_id:
        write_readme(folder)


if __name__ == "__main__":
    main()
