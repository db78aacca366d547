"""Make the results that are kept in this folder again, each by one command.

    python tests/reference/make.py training            every run behind it, then training.csv, .json, .md and .png here
    python tests/reference/make.py all --laptop        small variants of all, in minutes, into laptop/

The items, with the figures and tables of Wang et al. (2024) that they answer:

    fits         both neurons, fitted by gradients (L-BFGS-B's rows of Tables S2 and S3)
    hh_methods   the HH cell by every method (Figures 2 and S8, Table S3)
    gif_methods  the GIF neuron by every method (Figure S7, Table S2)
    training     the E/I network: three methods, three networks, three seeds
    figure3      activity and weights of the network at the paper's setting (Figure 3)
    behaviour    what the trained networks decide, and what they need for it
    memory       memory and time of an update against the length of a trial (Figure S6)

For each there are the numbers of every run (CSV), what made them (JSON: commands with seeds, dates, devices, versions),
a table (Markdown, as in the README) and the figures that the README shows. The runs themselves are in
results/reference/, whose whole ones are not run again.
"""

import argparse
import csv
import datetime
import importlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(HERE.parent / "benchmarks")]


import bench_ei_online
import matplotlib.pyplot as plt
import numpy as np
from common import in_turns

task = importlib.import_module("task-coba-ei-rsnn")
HH, GIF, TASK = "neuron_fitting_of_hh_model.py", "neuron_fitting_of_gif_model.py", "task-coba-ei-rsnn.py"
SEEDS = (0, 1, 2)
STYLES = dict(zip(task.METHODS, ("C0o-", "C1s--", "C3^:"), strict=True))
PERIODS = ("cues", "delay", "recall")

# Read off Figure 3 (E and I; 12 800 and 3200 weights), and off Figure S6 (GB and seconds; DVS Gesture, 3 x 512 neurons,
# batch 128, on a GPU).
FIGURE_3 = {
    **{("rate_Hz", "cues", "exc"): 1.31, ("rate_Hz", "delay", "exc"): 0.0, ("rate_Hz", "recall", "exc"): 13.6},
    **{("rate_Hz", "cues", "inh"): 4.40, ("rate_Hz", "delay", "inh"): 0.0, ("rate_Hz", "recall", "inh"): 0.0},
}
MOMENTS = ("mean", "median", "sd", "skew", "max")
FIGURE_3_WEIGHTS = {
    ("before", "exc"): (0.1025, 0.089, 0.071, 0.57, 0.284),
    ("after", "exc"): (0.0473, 0.020, 0.057, 1.60, 0.362),
    ("before", "inh"): (0.414, 0.367, 0.279, 0.53, 1.132),
    ("after", "inh"): (0.660, 0.609, 0.285, 0.54, 1.455),
}


class Item:
    """One item while it is made: its runs, and its files in a folder, each written whole."""

    def __init__(self, name, laptop, folder, runs):
        self.name, self.laptop, self.folder, self.runs = name, laptop, folder, runs
        self.commands = []

    def run(self, name, script, *arguments):
        """Folder of a run of a script; what is there and whole is not run again."""
        folder, command = self.runs / name, [script, *map(str, arguments)]
        if not folder.exists():
            part = folder.with_name(f"{folder.name}.part")  # renamed when it is whole
            shutil.rmtree(part, ignore_errors=True)
            print(f"{self.name}: {shlex.join(command)}", flush=True)
            done = subprocess.run(
                [sys.executable, *command, "--output", str(part)], cwd=ROOT, stdout=subprocess.DEVNULL
            )
            if done.returncode:
                sys.exit(f"{name}: ended with status {done.returncode}, expected 0")
            part.rename(folder)
        config = json.loads((folder / "config.json").read_text())
        if shlex.split(config["command"])[1:-2] != command[1:]:
            sys.exit(f"{folder}: found the run of another command, expected {shlex.join(command)}; remove it")
        made = {name: config[name] for name in ("date", "devices", "python", "packages")}
        self.commands.append(dict(command=shlex.join(["python", *command])) | made)
        return folder

    def write(self, rows, table, figures=(), **more):
        """Save the rows, those of `more`, the table, and figures: (name, figure or the file of one)."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = f"python tests/reference/make.py {self.name}{' --laptop' if self.laptop else ''}"
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        here = dict(python=platform.python_version(), machine=platform.machine(), cores=runs.N_CORE)
        here["packages"] = {name: runs.version_of(name) for name in runs.PACKAGES}
        runs = [{name: x for name, x in run.items() if here.get(name) != x} for run in self.commands]
        files = {f"{self.name}.csv": rows, f"{self.name}.md": table, **dict(() if self.laptop else figures)}
        files |= {f"{self.name}_{name}.csv": more_rows for name, more_rows in more.items()}
        files[f"{self.name}.json"] = dict(command=command, date=date) | here | dict(runs=runs)
        for name, content in files.items():
            if isinstance(content, Path):
                shutil.copyfile(content, self.folder / name)
            else:
                runs.save(self.folder / name, content)
        print(table, end="")


def markdown(columns, lines):
    grid = [columns, ["---"] * len(columns), *lines]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in grid) + "\n"


def spread(values, digits=3):
    """Mean ± s.d., to so many decimals; of one value, itself."""
    mean = f"{np.mean(values):.{digits}f}"
    return f"{mean} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else mean


def listed(values, form="{:g}"):
    """The values of the seeds, joined; a dash where there is none."""
    return ", ".join("-" if value is None else form.format(value) for value in values)


def groups(rows, *names):
    """{values of the columns `names`: rows that have them}, in order."""
    found = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in names), []).append(row)
    return found


# ---- Fits -----------------------------------------------------------------------------------------------------------


def fits(item):
    """Both neurons by gradients, as the scripts do without arguments, and the HH cell by the paper's protocol."""
    cases = {
        "HH, recorded traces": (HH, []),
        "HH, the paper's protocol": (HH, ["--target", "simulated", "--n_point", 10]),
        "GIF, by likelihood": (GIF, []),
    }
    cases = {name: cases[name] for name in list(cases)[::2]} if item.laptop else cases
    rows, figures = [], []
    for name, (script, arguments) in cases.items():
        for seed in SEEDS[:1] if item.laptop else SEEDS:
            folder = item.run(f"fits/{name.replace(' ', '_')}_seed{seed}", script, *arguments, "--seed", seed)
            result = json.loads((folder / "result.json").read_text())
            known = {key: x for key, x in result["known_parameters"].items() if key not in ("k1", "k2")}  # no effect
            errors = [abs(result["parameters"][key] / x - 1) for key, x in known.items()]
            found = sum(start["loss"] <= 1.1 * result["loss"] + 1e-3 for start in result["starts"])
            row = dict(fit=name, seed=seed, loss=result["loss"], worst_error=max(errors), starts_found=found)
            rows.append(row | dict(seconds=result["seconds"]["run"]))
            if name == "HH, recorded traces" and seed == 0:
                figures.append(("fits_hh.png", folder / "traces_validation.png"))
    lines = [
        [
            name,
            listed([row["loss"] for row in of_case], "{:.2g}"),
            listed([100 * row["worst_error"] for row in of_case], "{:.2g}"),
            listed([row["starts_found"] for row in of_case]),
            spread([row["seconds"] for row in of_case], 1),
        ]
        for (name,), of_case in groups(rows, "fit").items()
    ]
    columns = ["fit", "loss (seeds in order)", "worst error of a parameter, %", "starts at the best", "seconds"]
    item.write(rows, markdown(columns, lines), figures)


def methods(item, script, arguments, figures):
    """A neuron by every method, with the paper's budgets."""
    small = ["--repeats", 1, "--methods", "L-BFGS-B", "DE", "random"] if item.laptop else []
    arguments = ["--mode", "compare", *arguments, "--protocol_budget", "paper", *small]
    folder = item.run(item.name, script, *arguments)
    with open(folder / "comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    figures = [(f"{item.name}_{name}", folder / name) for name in figures]
    item.write(rows, (folder / "comparison.md").read_text(), figures)


def hh_methods(item):
    methods(item, HH, ["--target", "simulated", "--n_point", 10], ["figure_2.png"])


def gif_methods(item):
    methods(item, GIF, ["--objective", "simulation", "--n_point", 100], ["methods.png"])


# ---- The network ----------------------------------------------------------------------------------------------------

NETWORKS = (("dense", 200), ("rand", 200), ("rand", 400))
SMALL_NETWORKS = (("dense", 100),)
SMALL = ["--epochs", 20, "--batch_size", 32, "--eval_every", 10, "--n_heldout", 256, "--t_delay", 200]
LEARNS = {
    "bptt": ["--ff_scale", 10, "--beta", 0.5],
    "diag": ["--ff_scale", 10, "--beta", 0.5],
    "expsm_diag": ["--ff_scale", 4, "--beta", -0.05, "--etrace_decay", 0.999],
}


def train(item, method, conn_method, n_rec, seed):
    """Folder of a training with the arguments that learn best."""
    length = SMALL if item.laptop else ["--epochs", 100 if n_rec == 400 else 200, "--batch_size", 64]
    arguments = ["--lr", "5e-3", "--schedule", "cosine", *length]
    arguments += ["--tau_a", 10000, "--rec_scale", 0.1, "--method", method, *LEARNS[method]]
    arguments += ["--conn_method", conn_method, "--n_rec", n_rec, "--seed", seed]
    return item.run(f"training/{method}_{conn_method}_{n_rec}_seed{seed}", TASK, *arguments)


def training(item):
    rows, curves = [], []
    for conn_method, n_rec in SMALL_NETWORKS if item.laptop else NETWORKS:
        for method in task.METHODS:
            for seed in SEEDS[:1] if item.laptop else SEEDS:
                folder = train(item, method, conn_method, n_rec, seed)
                result = json.loads((folder / "result.json").read_text())
                name = dict(method=method, conn_method=conn_method, n_rec=n_rec, seed=seed)
                row = name | dict(heldout_accuracy=result["heldout_accuracy"])
                row |= dict(zip(("low", "high"), result["heldout_interval"], strict=True))
                row |= dict(n_heldout=result["n_heldout"], updates=result["updates"])
                for level in ("0.9", "0.99"):
                    first = result["first_at"][level]
                    row[f"updates_to_{level}"] = first and first["update"]
                    row[f"minutes_to_{level}"] = first and first["seconds"] / 60
                for period in PERIODS:
                    for population, rate in result["heldout_rates_Hz"][period].items():
                        row[f"{period}_{population}_Hz"] = rate
                seconds = dict(seconds_per_update=result["seconds_per_update"])
                rows.append(row | seconds | dict(seconds_compile=result["seconds"]["compile"]))
                with open(folder / "metrics.csv", newline="") as file:
                    history = [line for line in csv.DictReader(file) if line["heldout_accuracy"]]
                kept = ("update", "heldout_accuracy", "seconds")
                curves += [name | {column: float(line[column]) for column in kept} for line in history]
    lines = []
    for (conn_method, n_rec, method), of_rule in groups(rows, "conn_method", "n_rec", "method").items():
        n, p = (sum(row["n_heldout"] for row in of_rule), np.mean([row["heldout_accuracy"] for row in of_rule]))
        low, high = task.wilson_interval(round(n * p), n)
        line = [method, f"{conn_method}, {n_rec}"]
        for level in ("0.9", "0.99"):
            line.append(listed([row[f"updates_to_{level}"] for row in of_rule]))
            line.append(listed([row[f"minutes_to_{level}"] for row in of_rule], "{:.1f}"))
        line.append(f"{spread([row['heldout_accuracy'] for row in of_rule])} ({low:.3f} to {high:.3f})")
        for period in PERIODS:
            rates = [np.mean([row[f"{period}_{population}_Hz"] for row in of_rule]) for population in ("exc", "inh")]
            line.append(f"{rates[0]:.1f}, {rates[1]:.1f}")
        lines.append(line)
    columns = ["method", "network", "updates to 0.9", "minutes", "updates to 0.99", "minutes"]
    columns += ["final accuracy (95 %)", "E, I in cues, Hz", "delay", "recall"]
    item.write(rows, markdown(columns, lines), [("training.png", plot_training(curves))], curves=curves)


def plot_training(curves):
    """Held-out accuracy against updates: a panel a network, a line a seed."""
    panels = groups(curves, "conn_method", "n_rec")
    figure, axes = plt.subplots(
        1, len(panels), figsize=(runs.WIDTH, 2.3), sharey=True, layout="constrained", squeeze=False
    )
    for axis, ((conn_method, n_rec), of_network) in zip(axes[0], panels.items(), strict=True):
        for (method, seed), curve in groups(of_network, "method", "seed").items():
            x, y = [row["update"] for row in curve], [row["heldout_accuracy"] for row in curve]
            axis.plot(x, y, STYLES[method], lw=1, ms=2.5, label=method if seed == 0 else None)
        axis.axhline(0.99, color="0.5", lw=0.6, ls=":")
        axis.set(xlabel="update", title=f"{conn_method}, n_rec {n_rec}", xlim=(0, None))
    axes[0, 0].set_ylabel("held-out accuracy")
    axes[0, 0].legend(loc="lower right")
    return figure


def simulate(item, folder):
    """result.json of a simulation of the network of a training, and its folder."""
    load = os.path.relpath(folder, ROOT)
    small = ["--batch_size", 32] if item.laptop else []
    simulation = item.run(
        f"simulated/{folder.parent.name}_{folder.name}", TASK, "--mode", "sim", "--load", load, *small
    )
    return json.loads((simulation / "result.json").read_text()), simulation


def figure3(item):
    """Networks trained at the paper's setting (rand, 400 neurons, rec_scale 0.5, w_ei_ratio 4), by Adam and by SGD."""
    arguments = ["--method", "bptt", "--conn_method", "rand", "--n_rec", 100 if item.laptop else 400]
    arguments += SMALL if item.laptop else ["--batch_size", 64]
    runs = {
        "Adam, lr 0.005": ("adam5", ["--epochs", 200, "--schedule", "cosine"], ["--lr", "5e-3"]),
        "Adam, lr 0.001": ("adam", ["--epochs", 300], []),
        "SGD, lr 10": ("sgd", ["--epochs", 100], ["--opt", "sgd", "--lr", 10, "--grad_clip", 0.1]),
    }
    if item.laptop:
        runs = {name: (run[0], [], run[2]) for name, run in runs.items() if name != "Adam, lr 0.001"}
    rows, figures = [], []
    for name, (label, length, optimiser) in runs.items():
        folder = item.run(f"figure3/{label}_seed0", TASK, *arguments, *length, "--seed", 0, *optimiser)
        trained = json.loads((folder / "result.json").read_text())
        result, simulation = simulate(item, folder)
        found = {("accuracy", "", ""): trained["best"]["heldout_accuracy"], ("updates", "", ""): trained["updates"]}
        for period, rates in result["rates_Hz"].items():
            found |= {("rate_Hz", period, population): rate for population, rate in rates.items()}
        for population, share in result["within_reversal_potentials"].items():
            found["within", "", population] = share
        for stage, blocks in result["weights"].items():
            for population in ("exc", "inh"):
                w = blocks[population]
                found |= {(moment, stage, population): w[moment] for moment in MOMENTS}
                best = min(law["AIC"] for law in w["laws"].values())
                found |= {(f"AIC {law}", stage, population): v["AIC"] - best for law, v in w["laws"].items()}
        keys = ("quantity", "when", "population")
        rows += [
            dict(run=name, seed=0) | dict(zip(keys, key, strict=True), value=value) for key, value in found.items()
        ]
        if label == "adam5":
            figures = [(f"figure3_{panel}.png", simulation / f"{panel}.png") for panel in ("activity", "weights")]
    item.write(rows, figure3_table(rows), figures)


def figure3_table(rows):
    runs = list(groups(rows, "run"))
    values = groups(rows, "run", "quantity", "when", "population")

    def line(name, key, paper="", digits=2):
        cells = [spread([row["value"] for row in values[*run, *key]], digits) for run in runs]
        return [name, paper, *cells]

    lines = [
        line("held-out accuracy", ("accuracy", "", ""), "not given", 3),
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
    return markdown(["", "paper", *(run for (run,) in runs)], lines)


def behaviour(item):
    """What the networks of `training` decide (dense), and what they need for it."""
    rows, figures = [], []
    for method in task.METHODS[::2] if item.laptop else task.METHODS:
        for seed in SEEDS[:1] if item.laptop else SEEDS:
            folder = train(item, method, "dense", 100 if item.laptop else 200, seed)
            result, simulation = simulate(item, folder)
            found = result["behaviour"]
            values = {("slope", ""): found["fit"]["slopes"][0], ("bias", ""): found["fit"]["bias"]}
            values |= {("psychometric", row["difference"]): row["right"] for row in found["psychometric"]}
            values |= {("cue weight", 1 + i): w for i, w in enumerate(found["cue_weights"]["slopes"])}
            values |= {("delay", row["t_delay"]): row["accuracy"] for row in found["delays"]}
            values |= {("silenced", name): row["accuracy"] for name, row in found["silenced"].items()}
            name = dict(method=method, seed=seed)
            rows += [name | dict(quantity=quantity, at=at, value=value) for (quantity, at), value in values.items()]
            if (method, seed) == ("bptt", 0):
                figures = [
                    ("behaviour.png", simulation / "behaviour.png"),
                    ("behaviour_activity.png", simulation / "activity.png"),
                ]
    values, of_method = groups(rows, "quantity", "at", "method"), groups(rows, "method")
    words = {"slope": "log odds a cue", "bias": "bias, log odds", "cue weight": "weight of cue {}, log odds"}
    words |= {"delay": "accuracy, delay {:g} ms", "silenced": "accuracy without {}"}
    lines = []
    for quantity, at in groups(rows, "quantity", "at"):
        if quantity in words:
            digits = 3 if quantity in ("delay", "silenced") else 2
            cells = [spread([row["value"] for row in values[quantity, at, method]], digits) for (method,) in of_method]
            lines.append([words[quantity].format(at).replace("without nothing", "of the whole network"), *cells])
    item.write(rows, markdown(["", *(method for (method,) in of_method)], lines), figures)


# ---- Memory and time ------------------------------------------------------------------------------------------------


def memory(item):
    """Peak memory of a process with one device, and seconds of an update with all, against the steps of a trial."""
    lengths = (550, 1100) if item.laptop else (550, 1100, 2200, 4400, 8800, 17600)
    arguments = ["--n_rec", 100, "--batch_size", 16] if item.laptop else []
    rows = []
    for n_step in lengths:
        functions, _, compiled = zip(
            *(bench_ei_online.gradient(method, *arguments, n_step=n_step) for method in task.METHODS), strict=True
        )
        seconds = np.median(in_turns(*functions, repeats=3), axis=0)
        for method, of_rule, to_compile in zip(task.METHODS, seconds, compiled, strict=True):
            process, program = bench_ei_online.memory(method, n_step, *arguments)
            row = dict(method=method, n_step=n_step, process_MB=process, program_MB=program)
            rows.append(row | dict(seconds=of_rule, seconds_compile=to_compile))
            print(rows[-1], flush=True)
    values = groups(rows, "method", "n_step")
    lines = []
    for method in task.METHODS:
        for quantity, form in (("process_MB", "{:.0f}"), ("seconds", "{:.2f}")):
            cells = [form.format(values[method, n_step][0][quantity]) for n_step in lengths]
            lines.append([f"{method}, {'MB' if quantity == 'process_MB' else 'seconds'}", *cells])
    table = markdown(["", *(f"T = {n_step}" for n_step in lengths)], lines)
    item.write(rows, table, [("memory.png", plot_memory(rows))])


def plot_memory(rows):
    figure, axes = plt.subplots(1, 2, figsize=(runs.WIDTH, 2.4), layout="constrained")
    for (method,), of_rule in groups(rows, "method").items():
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


# ---- Main -----------------------------------------------------------------------------------------------------------

ITEMS = {f.__name__: f for f in (fits, hh_methods, gif_methods, training, figure3, behaviour, memory)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("item", choices=(*ITEMS, "all"))
    parser.add_argument("--laptop", action="store_true", help="the small variant, which the tests compare")
    parser.add_argument("--output", type=Path, help="folder of the files; this one, or laptop/ in it, without it")
    parser.add_argument("--runs", type=Path, help="folder of the runs; results/reference/ without it")
    args = parser.parse_args()
    variant = "laptop" if args.laptop else ""
    folder, runs = args.output or HERE / variant, args.runs or ROOT / "results" / "reference" / variant
    for name in ITEMS if args.item == "all" else [args.item]:
        ITEMS[name](Item(name, args.laptop, folder.absolute(), runs.absolute()))


if __name__ == "__main__":
    main()
