"""What every run needs: command line, run folder, devices, plot style, and bad input in one line."""

import argparse
import csv
import datetime
import importlib.metadata
import json
import math
import os
import platform
import shlex
import sys
from pathlib import Path

# Read by the libraries when they are imported. JAX spreads a batch over its devices: on a CPU, each core is made one.
N_CORE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(N_CORE))
# SciPy's matrices are tiny here, and the idle threads of its BLAS spin on the cores that simulate.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Errors come as exceptions; XLA's own log would call each program from the compilation cache one.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import brainstate
import jax
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# A page is 7 inches wide, a column half of it, and text 7 or 8 points at that size; the colours differ for the
# colour-blind too. Text in a PDF stays text.
WIDTH = 7.0
plt.style.use("tableau-colorblind10")
plt.rcParams.update({"font.size": 8, "axes.titlesize": 8, "legend.fontsize": 7, "xtick.labelsize": 7})
plt.rcParams.update({"ytick.labelsize": 7, "axes.linewidth": 0.6, "legend.frameon": False, "savefig.dpi": 200})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "pdf.fonttype": 42})

# ---- Bad input ------------------------------------------------------------------------------------------------------


class BadInput(ValueError):
    """Input that cannot be used. The message names the argument or file, what was found and what was expected."""


def to_number(text, kind=float):
    """kind(text), and NaN for what is not such a number."""
    try:
        return kind(text)
    except ValueError:
        return math.nan


# ---- Command line and run folder ------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Prints defaults, keeps the layout of the text around the arguments, and reports an error in one line."""

    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        def _get_help_string(self, action):
            if isinstance(action.default, list) and action.default:
                return f"{action.help} (default: {' '.join(action.default)})"
            return super()._get_help_string(action) if action.default not in (None, []) else action.help

    def __init__(self, **kwargs):
        super().__init__(formatter_class=self.Formatter, **kwargs)

    def parse_args(self):
        """The arguments; with `--resume`, those of that run are the defaults."""
        args = super().parse_args()
        if getattr(args, "resume", None):
            saved = saved_arguments(args.resume, "resume", vars(args))
            self.set_defaults(**{name: saved[name] for name in vars(args).keys() - {"resume", "output"}})
            args = super().parse_args()
        return args

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


def number(kind, low=-math.inf, above=-math.inf, high=math.inf):
    """argparse type: a finite int or float, from `low` to `high` and greater than `above`."""

    def parse(text):
        value = to_number(text, kind)
        if not (math.isfinite(value) and low <= value <= high and value > above):
            limit = f" >= {low}" if math.isfinite(low) else f" > {above}" if math.isfinite(above) else ""
            limit += f" and <= {high}" if math.isfinite(high) else ""
            noun = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"found {text!r}, expected {noun}{limit}")
        return value

    return parse


def add_run_arguments(parser):
    """Arguments that every script has."""
    add = parser.add_argument_group("run").add_argument
    add("--seed", type=number(int, low=0), default=0, help="the one seed of all that is random")
    add("--precision", type=int, choices=(32, 64), default=32, help="bits of the floating-point numbers")
    add("--devices", default="all", help="indices into jax.devices(), such as 0,1; each core of a CPU is a device")
    add("--output", type=Path, metavar="DIR", help="run folder; without it, a new one in results/")
    figure_format = "pdf: every figure also as vector graphics, beside the PNG"
    add("--figure_format", choices=("png", "pdf"), default="png", help=figure_format)


def setup_jax(args):
    """Set precision and compilation cache; the JAX devices that `--devices` names."""
    jax.config.update("jax_enable_x64", args.precision == 64)
    brainstate.environ.set(precision=args.precision)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "differentiable-brain-modeling")
    jax.config.update("jax_compilation_cache_dir", jax.config.jax_compilation_cache_dir or str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    devices = jax.devices()
    indices = range(len(devices)) if args.devices == "all" else [to_number(i, int) for i in args.devices.split(",")]
    if len(set(indices)) < len(indices) or not set(indices) <= set(range(len(devices))):
        expected = f"different indices from 0 to {len(devices) - 1}, joined by commas"
        raise BadInput(f"argument --devices: found {args.devices!r}, expected {expected}")
    jax.config.update("jax_default_device", devices[indices[0]])
    return [devices[i] for i in indices]


def saved_arguments(folder, argument, names=()):
    """{name: value} of the run in a folder, which `argument` names; a run of this script has those of the names."""
    saved = load_json(folder / "config.json")
    if not isinstance(saved, dict) or not isinstance(saved.get("arguments"), dict):
        raise BadInput(f"argument --{argument}: found no config.json of a run in {folder}, expected the folder of one")
    if not saved["arguments"].keys() >= set(names):
        found = f"found a run of another script in {folder}"
        raise BadInput(f"argument --{argument}: {found}, expected one of this script to {argument}")
    return saved["arguments"]


def load_json(path):
    """Content of a JSON file, or None where there is none."""
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError:
        raise BadInput(f"{path}: found something else than JSON, expected what an earlier run has saved") from None


# Those whose versions config.json gives.
PACKAGES = """brainevent brainpy brainscale brainstate braintools brainunit jax jaxlib nevergrad numba numpy optax
    orbax-checkpoint scikit-optimize scipy""".split()  # noqa: SIM905 (a list of literals takes a line each)


def version_of(package):
    """Its version, or None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


class RunFolder:
    """The folder of one run: `--output`, or results/SCRIPT/NAME, with -2, -3, ... added where that is taken.

    The folder is made with its first file, and every file is written whole. With `--resume` it is that of an earlier
    run, which must have had the same arguments.
    """

    def __init__(self, args, devices, script, name, may_change=()):
        self.args, self.devices, self.made = args, devices, bool(args.resume)
        self.path = args.resume or args.output or Path("results", script, name)
        if args.resume:
            self._check_arguments({"resume", "output", "figure_format", *may_change})
            return
        if args.output and args.output.exists() and (args.output.is_file() or any(args.output.iterdir())):
            raise BadInput(f"argument --output: {args.output} holds another run, expected a new or empty folder")
        parent = next(path for path in (self.path.absolute(), *self.path.absolute().parents) if path.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise BadInput(f"argument --output: {parent} is not a folder that can be written, expected one")

    def _check_arguments(self, may_change):
        ours, earlier = to_json(vars(self.args)), saved_arguments(self.path, "resume")
        for name in sorted(ours.keys() - may_change):
            if ours[name] != earlier.get(name):
                found = f"found {ours[name]} here and {earlier.get(name)} in {self.path}"
                raise BadInput(f"argument --{name}: {found}, expected the same to resume")

    def _make(self):
        first, copy = self.path, 1
        while not self.made:
            try:
                self.path.mkdir(parents=True, exist_ok=bool(self.args.output))
                self.made = True
            except FileExistsError:
                copy += 1
                self.path = first.with_name(f"{first.name}-{copy}")

    def save(self, name, content):
        """Save content in a file of this run, as `save` does."""
        self._make()
        save(self.path / name, content, self.args.figure_format)

    def load(self, name):
        """Content of a JSON file of this run, or None where there is none."""
        return load_json(self.path / name) if self.made else None

    def config(self):
        """What this run was: command, date, arguments, devices and versions."""
        devices = [f"{device} ({device.device_kind})" for device in self.devices]
        versions = {name: version_of(name) for name in PACKAGES}
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        config = dict(command=shlex.join(sys.argv), date=date, arguments=vars(self.args), devices=devices)
        return config | dict(python=platform.python_version(), packages=versions)


def save(path, content, figure_format="png"):
    """Save a figure as PNG (and PDF), a list of dicts as CSV, text as it is, or anything else as JSON; whole or not."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    if isinstance(content, plt.Figure):
        for suffix in {".png", f".{figure_format}"}:
            content.savefig(temporary, format=suffix[1:])
            temporary.replace(path.with_suffix(suffix))
        plt.close(content)
        return
    if path.suffix == ".csv":
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, content[0])
            writer.writeheader()
            writer.writerows(content)
    else:
        temporary.write_text(content if isinstance(content, str) else json.dumps(to_json(content), indent=2) + "\n")
    temporary.replace(path)


def to_json(content):
    """Content in the types of JSON: arrays as lists, paths as text, and null for numbers that are not finite."""
    content = content.tolist() if hasattr(content, "tolist") else content
    if isinstance(content, dict):
        return {key: to_json(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [to_json(value) for value in content]
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    return content if isinstance(content, int | str | None) else str(content)


def run_script(main):
    """Run main(): its result is the exit status, and bad input one line on stderr and exit status 2."""
    try:
        sys.exit(main())
    except BadInput as error:
        sys.stderr.write(f"{Path(sys.argv[0]).name}: error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write(f"{Path(sys.argv[0]).name}: interrupted before there was anything to keep\n")
        sys.exit(130)
