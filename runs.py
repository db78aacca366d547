"""What every run needs: command line, run folder, devices, plot style, and what goes wrong told in one line."""

import _thread
import argparse
import contextlib
import contextvars
import csv
import dataclasses
import datetime
import errno
import functools
import importlib.metadata
import inspect
import io
import json
import math
import os
import platform
import re
import shlex
import signal
import sys
import tempfile
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

# The one environment variable that is set here for others: XLA calls each program from the compilation cache an error,
# by a logger of its own, which reads this when JAX is imported and leaves no other way. Errors come as exceptions.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import brainstate
import jax
import jax.extend
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import threadpoolctl
from tqdm import tqdm

import processes
from supervisor import PLACE, SUPERVISED, Place

N_CORE: int = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
WIDTH = 7.0  # inches of a page; a column has half of it
AGAIN_SECONDS = 0.05  # from a Ctrl-C that was lost until it is repeated
PROGRESS_SECONDS = 30.0  # between lines of progress where there is no terminal
# Those whose versions config.json gives.
PACKAGES = """brainevent brainpy brainscale brainstate braintools braintrace brainunit jax jaxlib nevergrad numba numpy
    optax orbax-checkpoint scikit-optimize scipy""".split()  # noqa: SIM905 (a list of literals takes a line each)

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EPIPE)  # full, or read by nobody

Settings = TypeVar("Settings")


class BadInput(ValueError):
    """Input that cannot be used. The message names the argument or file, what was found and what was expected."""


class CannotSave(Exception):
    """A file or folder that cannot be written, as on a full disk. The message names it and says why."""


# The run of the command in progress, which tells what is kept when the disk is full or Ctrl-C comes.
_run: contextvars.ContextVar["RunFolder | None"] = contextvars.ContextVar("run", default=None)


# ---- Command line ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def deferred_ctrl_c() -> Iterator[list[bool]]:
    """A list that is empty until Ctrl-C is pressed, which then lets the update or save in progress come to its end."""
    pressed: list[bool] = []
    if processes.is_several():  # where it waits for all of them
        yield pressed
        return
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


def command_line(main: Callable[[list[str]], int]) -> Callable[..., int]:
    """Make of main(argv) a main(argv=None): the exit status, with what went wrong told in one line on stderr.

    Bad input has status 2, what cannot be saved 1, and Ctrl-C 130. Of the last two the line says what is kept, and the
    run folder is the last line of stdout as ever.
    """
    script = Path(inspect.getfile(main)).name

    @functools.wraps(main)
    def run(argv: Sequence[Any] | None = None) -> int:
        _run.set(None)
        with _ctrl_c_again():
            status = attempt(sys.argv[1:] if argv is None else list(map(str, argv)))
        if status not in (0, 130):
            processes.end(status)
        return status

    def attempt(argv):
        told = False  # whether the script itself has printed the folder
        try:
            status = main(argv)
            sys.stdout.flush()
            if status != 130:
                return status
            what, told = "interrupted", True
        except processes.Ended as ended:
            return ended.status
        except BadInput as error:
            sys.stderr.write(f"{script}: error: {error}\n")
            return 2
        except CannotSave as error:
            status, what = 1, f"error: {error}"
        except KeyboardInterrupt:
            status, what = 130, "interrupted"
        except OSError as error:
            if error.errno not in FULL:
                processes.end_by_error()
                raise
            status, what = 1, f"error: {error.filename or 'standard output'}: {reason_of(error)}"
            if not error.filename:  # Python would try to write the rest of the buffer at its end
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except Exception:
            processes.end_by_error()
            raise
        folder = _run.get()
        if kept := folder.kept() if folder else []:
            what += f"; kept in {folder.path}: {', '.join(kept)}"
            if not told:
                print(folder.path)
        else:
            what += " before there was anything to keep" if status == 130 else "; nothing of this run is kept"
        sys.stderr.write(f"{script}: {what}\n")
        return status

    return run


@contextlib.contextmanager
def _ctrl_c_again() -> Iterator[None]:
    """Repeat a Ctrl-C that came where Python can raise nothing, such as JAX's callback of the garbage collection."""
    before = sys.unraisablehook

    def hook(lost):
        if issubclass(lost.exc_type, KeyboardInterrupt):
            threading.Timer(AGAIN_SECONDS, _thread.interrupt_main).start()
        else:
            before(lost)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


class Parser(argparse.ArgumentParser):
    """Prints defaults, keeps the layout of the text around the arguments, and raises `BadInput` for a wrong one."""

    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        def _get_help_string(self, action):
            if isinstance(action.default, list | tuple) and action.default:
                return f"{action.help} (default: {' '.join(action.default)})"
            return super()._get_help_string(action) if action.default not in (None, [], ()) else action.help

    def __init__(self, script: str, description: str, examples: Sequence[str]):
        epilog = "examples:\n" + "\n".join(f"  python {script}.py {example}".rstrip() for example in examples)
        super().__init__(f"{script}.py", description=description, epilog=epilog, formatter_class=self.Formatter)

    def parse_args(self, argv: Sequence[str] | None = None) -> argparse.Namespace:  # type: ignore[override]
        """The arguments; with `--resume`, those of that run are the defaults."""
        args = super().parse_args(argv)
        if getattr(args, "resume", None):
            saved = saved_arguments(args.resume, "resume", self.prog)
            names = vars(args).keys() - {"resume", "output", *PLACE}
            self.set_defaults(**{name: saved[name] for name in names & saved.keys()})
            args = super().parse_args(argv)
            for name in sorted(names - saved.keys()):  # arguments that are newer than the run
                if (value := getattr(args, name)) != self.get_default(name):
                    self.error(
                        f"argument --{name}: found {value}, which {args.resume} has not, expected none to resume"
                    )
        return args

    def given(self, argv: Sequence[str] | None = None) -> set[str]:
        """Names of the arguments that are there, and not left at their defaults."""
        absent = object()
        names = [action.dest for action in self._actions]
        found = super().parse_args(argv, argparse.Namespace(**dict.fromkeys(names, absent)))
        return {name for name in names if getattr(found, name, absent) is not absent}

    def error(self, message: str) -> NoReturn:
        raise BadInput(message)


def to_number(text: str, kind: type = float) -> float:
    """kind(text), and NaN for what is not such a number."""
    try:
        return kind(text)
    except ValueError:
        return math.nan


def number(
    kind: type, low: float = -math.inf, above: float = -math.inf, high: float = math.inf
) -> Callable[[str], float]:
    """argparse type: a finite int or float, from `low` to `high` and greater than `above`."""

    def parse(text: str) -> float:
        value = to_number(text, kind)
        if not (math.isfinite(value) and low <= value <= high and value > above):
            limit = f" >= {low}" if math.isfinite(low) else f" > {above}" if math.isfinite(above) else ""
            limit += f" and <= {high}" if math.isfinite(high) else ""
            noun = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"found {text!r}, expected {noun}{limit}")
        return value

    return parse


def setting(default: Any, help: str, **metadata: Any) -> Any:
    """A field of a dataclass that is an argument too: its default, meaning, and limits `low`, `above`, `high`."""
    return dataclasses.field(default=default, metadata=dict(help=help, **metadata))


def add_setting(add: Callable, name: str, field: dataclasses.Field) -> None:
    """An argument --name with what the metadata of a field say: help, limits of `number` or `parse`, and others."""
    options = dict(field.metadata)
    default = options.pop("default", field.default)
    if isinstance(default, bool):
        add(f"--{name}", action="store_true", **options)
        return
    limits = {limit: options.pop(limit) for limit in ("low", "above", "high") if limit in options}
    kind = options.pop("kind", type(default))
    parse = options.pop("parse", None) or (number(kind, **limits) if kind in (int, float) else kind)
    add(f"--{name}", type=parse, default=default, **options)


def add_settings(add: Callable, cls: type) -> None:
    """An argument for every field of a dataclass that has metadata."""
    for field in dataclasses.fields(cls):
        if field.metadata:
            add_setting(add, field.name, field)


def pick(cls: type[Settings], args: argparse.Namespace, **others: Any) -> Settings:
    """The dataclass cls with the arguments that have the names of its fields, and with the others."""
    names = {field.name for field in dataclasses.fields(cls)} & vars(args).keys() - others.keys()
    return cls(**{name: getattr(args, name) for name in names}, **others)


def add_run_arguments(parser: Parser) -> None:
    """Arguments that every script has."""
    add = parser.add_argument_group("run").add_argument
    add("--seed", type=number(int, low=0), default=0, help="seed of all that is random and has no other")
    add("--precision", type=int, choices=(32, 64), default=32, help="bits of the floating-point numbers")
    add("--devices", default="all", help="indices into jax.devices(), such as 0,1; each core of a CPU is a device")
    add("--output", type=Path, metavar="DIR", help="run folder; without it, a new one in results/")
    figure_format = "pdf: every figure also as vector graphics, beside the PNG"
    add("--figure_format", choices=("png", "pdf"), default="png", help=figure_format)
    add = parser.add_argument_group("several processes").add_argument
    distributed = (
        "one of several processes, which SLURM, Open MPI or Kubernetes has started; --devices, the same in all, are "
        "of those that each process sees, so that each of one machine with several GPUs has its CUDA_VISIBLE_DEVICES"
    )
    add("--distributed", action="store_true", help=distributed)
    coordinator = "address of process 0, by which the others find it; with the next two, where nothing else tells"
    add("--coordinator", metavar="HOST:PORT", help=coordinator)
    add("--num_processes", type=number(int, low=1), metavar="N", help="how many they are")
    add("--process_id", type=number(int, low=0), metavar="I", help="which this one is, from 0")


class _Lines:
    """A file that gets what tqdm draws over itself as lines."""

    def write(self, text: str) -> None:
        text = text.replace("\x1b[A", "").strip("\r\n ")  # a bar below another one moves up a line
        if text:
            with contextlib.suppress(OSError):  # as in tell
                print(text, flush=True)

    def flush(self) -> None:
        sys.stdout.flush()


def progress(iterable: Iterable | None = None, **options: Any) -> tqdm:
    """A progress bar of tqdm on a terminal; elsewhere, such as in a log file, a line every PROGRESS_SECONDS."""
    if not sys.stderr.isatty():
        options |= dict(file=_Lines(), delay=PROGRESS_SECONDS, mininterval=PROGRESS_SECONDS, miniters=1, ncols=100)
    return tqdm(iterable, leave=False, **options)


def tell(text: str) -> None:
    """Print a line above the progress bar. A full disk with the log on it is no reason to stop."""
    with contextlib.suppress(OSError):
        tqdm.write(text)


# ---- Devices and plot style -----------------------------------------------------------------------------------------


def setup(args: argparse.Namespace, script: str, argv: Sequence[str]) -> list[jax.Device]:
    """What the arguments of every script ask for: `setup_jax`, with the devices of all processes, if there are several.

    Raises:
        BadInput: the processes do not find each other, or have different arguments.
        processes.Ended: this one has supervised one of several, which has ended.
    """
    use_plot_style()
    try:
        place = pick(Place, args)
        if place.several and SUPERVISED not in os.environ:
            processes.supervise(Path(__file__).with_name(f"{script}.py"), argv, place)
        if place.several:
            cores_as_devices()
            processes.join(place)
            processes.check_equal(to_json(vars(args)))
    except ValueError as error:
        raise BadInput(str(error)) from None
    return setup_jax(args.precision, args.devices)


def cores_as_devices() -> None:
    """Make each core of a CPU a device.

    JAX wants that said before its backends start, and brainpy 2.8 starts them when it is imported: they start again.
    """
    if jax.default_backend() == "cpu" and jax.config.jax_num_cpu_devices < 1:
        jax.extend.backend.clear_backends()
        jax.config.update("jax_num_cpu_devices", N_CORE)


def setup_jax(precision: int, devices: str = "all") -> list[jax.Device]:
    """Set precision, devices and compilation cache of this process; the devices of which `devices` has the indices.

    Of several processes, each has its own devices of these indices, and those of all are given.
    """
    cores_as_devices()
    # SciPy's matrices are tiny here, and the idle threads of its BLAS spin on the cores that simulate.
    threadpoolctl.threadpool_limits(1, user_api="blas")
    jax.config.update("jax_enable_x64", precision == 64)
    brainstate.environ.set(precision=precision)
    # A GPU would round the factors of a product to 10 bits: gradients were off by 2e-4. No other number changes.
    jax.config.update("jax_default_matmul_precision", "highest")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "differentiable-brain-modeling")
    jax.config.update("jax_compilation_cache_dir", jax.config.jax_compilation_cache_dir or str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    # A cache that cannot be written, as on a full disk, costs time and no numbers.
    warnings.filterwarnings("ignore", message="Error writing persistent compilation cache entry")
    existing = jax.local_devices()
    indices = range(len(existing)) if devices == "all" else [to_number(i, int) for i in devices.split(",")]
    if len(set(indices)) < len(indices) or not set(indices) <= set(range(len(existing))):
        expected = f"different indices from 0 to {len(existing) - 1}, joined by commas"
        raise BadInput(f"argument --devices: found {devices!r}, expected {expected}")
    jax.config.update("jax_default_device", existing[indices[0]])
    return [jax.local_devices(i)[j] for i in range(jax.process_count()) for j in indices]


def split_devices(batch_size: int, devices: Sequence[jax.Device], named: bool) -> list[jax.Device]:
    """The devices over which a batch is split: as many of each process as divide it, or all if they are named."""
    of_process: dict[int, list[jax.Device]] = {}
    for device in devices:
        of_process.setdefault(device.process_index, []).append(device)
    n_process, n_own = len(of_process), min(map(len, of_process.values()))
    possible = (n_own,) if named else range(n_own, 0, -1)
    n = next((n for n in possible if batch_size % (n * n_process) == 0), None)
    if n is None:
        number = n_process if n_process > 1 and not named else len(devices)
        what = "processes" if n_process > 1 and not named else "devices of --devices"
        expected = f"a multiple of the {number} {what}, each of which gets as many trials"
        raise BadInput(f"argument --batch_size: found {batch_size}, expected {expected}")
    return [device for own in of_process.values() for device in own[:n]]


def use_plot_style() -> None:
    """Figures without a screen, 7 inches wide with text of 7 or 8 points, in colours for the colour-blind too."""
    matplotlib.use("Agg")
    plt.style.use("tableau-colorblind10")
    plt.rcParams.update({"font.size": 8, "axes.titlesize": 8, "legend.fontsize": 7, "xtick.labelsize": 7})
    plt.rcParams.update({"ytick.labelsize": 7, "axes.linewidth": 0.6, "legend.frameon": False, "savefig.dpi": 200})
    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.formatter.useoffset": False})
    plt.rcParams["pdf.fonttype"] = 42  # text in a PDF stays text


# ---- Run folder -----------------------------------------------------------------------------------------------------


class RunFolder:
    """The folder of one run: `--output`, or results/SCRIPT/NAME, with -2, -3, ... added where that is taken.

    The folder is made with its first file, and every file is written whole. With `--resume` it is that of an earlier
    run, which must have had the same arguments but for those that may change, and the same data: `checksum` is theirs.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        script: str,
        name: str,
        may_change: Collection[str] = (),
        checksum: int | None = None,
    ):
        resume = getattr(args, "resume", None)
        self.args, self.script, self.checksum = args, script, checksum
        self.resumed = self.made = bool(resume)
        self.path: Path = resume or args.output or Path("results", script, name)
        self.earlier: list[dict[str, Any]] = []
        _run.set(self)
        if resume:
            self._check_arguments({"resume", "output", "figure_format", "devices", *PLACE, *may_change})
        if processes.is_first():
            self._check_place(args, resume)
        if processes.is_several():
            self._share()

    def _check_place(self, args, resume):
        try:
            if args.output and not resume:
                self._refuse_another_run()
            # Another run may have the name in results/, but not the folder around it.
            try_folder(self.path if resume or args.output else self.path.parent)
        except OSError as error:
            found = f"found that nothing can be saved in {self.path} ({reason_of(error)})"
            raise BadInput(f"argument --{'resume' if resume else 'output'}: {found}, expected another place") from None

    def _refuse_another_run(self) -> None:
        if holds_files(self.path):
            raise BadInput(f"argument --output: {self.path} holds another run, expected a new or empty folder")

    def _share(self) -> None:
        """The folder of several processes is that of the first one, which makes it now."""
        if processes.is_first():
            with saving(self.path):
                self._make()
        try:
            self.path, self.made = processes.share_folder(self.path), True
        except ValueError as error:
            raise BadInput(str(error)) from None

    def _check_arguments(self, may_change: set[str]) -> None:
        ours, earlier = to_json(vars(self.args)), saved_arguments(self.path, "resume", f"{self.script}.py")
        config = load_json(self.path / "config.json")
        last = {name: config[name] for name in ("command", "date", "devices", "python", "packages") if name in config}
        self.earlier = [*config.get("earlier", []), last]
        for name in sorted((ours.keys() & earlier.keys()) - may_change):
            if ours[name] != earlier[name]:
                difference = f"found {ours[name]} here and {earlier[name]} in {self.path}"
                raise BadInput(f"argument --{name}: {difference}, expected the same to resume")
        if self.checksum != (kept := config.get("checksum")):
            found = "other numbers in the files of data than those of" if kept else "a run of an earlier version in"
            raise BadInput(f"argument --resume: found {found} {self.path}, expected the same")

    def _make(self) -> None:
        first, copy = self.path, 1
        while not self.made:
            try:
                self.path.mkdir(parents=True, exist_ok=bool(self.args.output))
                self._refuse_another_run()  # which has begun since
                self.made = True
            except FileExistsError:
                copy += 1
                self.path = first.with_name(f"{first.name}-{copy}")

    def kept(self) -> list[str]:
        """Names of what has been saved of this run so far, but for its configuration and folders that are empty."""
        paths = self.path.iterdir() if self.made and self.path.is_dir() else ()
        return sorted(path.name for path in paths if path.name != "config.json" and holds_files(path))

    def save(self, name: str, content: Any) -> None:
        """Save content in a file of this run, as `save` does; of several processes the first one does."""
        if not processes.is_first():
            plt.close(content) if isinstance(content, plt.Figure) else None
            return
        with saving(self.path):
            self._make()
        save(self.path / name, content, self.args.figure_format)

    def load(self, name: str) -> Any:
        """Content of a JSON file of this run, or None where there is none."""
        return load_json(self.path / name) if self.made else None

    def save_config(self, argv: Sequence[str], devices: Sequence[jax.Device]) -> None:
        """Save in config.json what this run is: command, date, arguments, devices, versions, and those it resumed."""
        names = [f"{device} ({device.device_kind})" for device in devices]
        versions = {name: version_of(name) for name in PACKAGES}
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        config = dict(command=shlex.join([f"{self.script}.py", *argv]), date=date, arguments=vars(self.args))
        config |= {} if self.checksum is None else dict(checksum=self.checksum)
        config |= dict(earlier=self.earlier) if self.earlier else {}
        self.save("config.json", config | dict(devices=names, python=platform.python_version(), packages=versions))


def saved_arguments(folder: Path, argument: str, script: str) -> dict[str, Any]:
    """{name: value} of the run of a script, such as x.py, in a folder, which `argument` names."""
    saved = load_json(folder / "config.json")
    if not isinstance(saved, dict) or not isinstance(saved.get("arguments"), dict):
        raise BadInput(f"argument --{argument}: found no config.json of a run in {folder}, expected the folder of one")
    if not str(saved.get("command")).startswith(script):
        other = f"found a run of another script in {folder}"
        raise BadInput(f"argument --{argument}: {other}, expected one of this script to {argument}")
    return saved["arguments"]


def load_json(path: Path) -> Any:
    """Content of a JSON file, or None where there is none."""
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError:
        raise BadInput(f"{path}: found something else than JSON, expected what an earlier run has saved") from None


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file that an earlier run has saved."""
    try:
        with np.load(path) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path}: found a file that cannot be read ({reason_of(error)}), expected a whole one") from None


def version_of(package: str) -> str | None:
    """Its version, or None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def reason_of(error: Exception) -> str:
    """Why something failed, in a line: the words of the system, or else the beginning of the message."""
    if code := re.search(r"os_error_code='(\d+)'", str(error)):  # as tensorstore has it
        return os.strerror(int(code[1]))
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0][:200]


def holds_files(path: Path) -> bool:
    """Whether the path is a file or a folder that is not empty."""
    return path.is_file() or (path.is_dir() and any(path.iterdir()))


def try_folder(path: Path) -> None:
    """Make the folder, as far as it is missing, and a file in it, all of it elsewhere in the folder that exists.

    Nothing of it stays, and other runs that make the same folder at this moment are not disturbed.

    Raises:
        OSError: the folder cannot be made, or nothing can be written in it.
    """
    for folder in (path.absolute(), *path.absolute().parents):
        if folder.is_symlink() and not folder.exists():
            raise FileNotFoundError(errno.ENOENT, f"{folder} links to nothing")
    path = path.resolve()
    parent = next(folder for folder in (path, *path.parents) if folder.exists())
    if not parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, f"{parent} is not a folder that can be written")
    with tempfile.TemporaryDirectory(dir=parent, prefix=".", ignore_cleanup_errors=True) as trial:
        folder = Path(trial, path.relative_to(parent))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_bytes(b"{}")


@contextlib.contextmanager
def saving(path: Path) -> Iterator[None]:
    """What the system refuses while a path is written, as `CannotSave`."""
    try:
        yield
    except OSError as error:
        raise CannotSave(f"{path}: {reason_of(error)}") from None


def save(path: Path, content: Any, figure_format: str = "png") -> None:
    """Save content in a file, whole or not at all.

    A figure is saved as PNG (and PDF), a list of dicts as .csv, a dict of arrays as .npz, text as it is, and anything
    else as JSON.

    Raises:
        CannotSave: the disk is full, or another reason of the system.
    """
    figure = isinstance(content, plt.Figure)
    suffixes = sorted({".png", f".{figure_format}"}, reverse=True) if figure else [path.suffix]
    temporary = path.with_name(f".{path.name}")
    try:
        for suffix in suffixes:
            data = to_bytes(content, suffix)
            with saving(path.with_suffix(suffix)):
                path.parent.mkdir(exist_ok=True)
                temporary.write_bytes(data)
                temporary.replace(path.with_suffix(suffix))
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if figure:
            plt.close(content)


def to_bytes(content: Any, suffix: str) -> bytes:
    """What a file with this suffix holds of the content, as `save` says."""
    if isinstance(content, str):
        return content.encode()
    buffer = io.BytesIO()
    if isinstance(content, plt.Figure):
        content.savefig(buffer, format=suffix[1:])
    elif suffix == ".npz":
        np.savez(buffer, **content)
    elif suffix == ".csv":
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, content[0])
        writer.writeheader()
        writer.writerows(content)
        return text.getvalue().encode()
    else:
        return (json.dumps(to_json(content), indent=2) + "\n").encode()
    return buffer.getvalue()


def to_json(content: Any) -> Any:
    """Content in the types of JSON: arrays as lists, paths as text, and null for numbers that are not finite."""
    content = content.tolist() if hasattr(content, "tolist") else content
    content = dataclasses.asdict(content) if dataclasses.is_dataclass(content) else content
    if isinstance(content, dict):
        return {key: to_json(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [to_json(value) for value in content]
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    return content if isinstance(content, int | str | None) else str(content)


class Journal:
    """The evaluations of a fit, kept in its run folder: one that is killed goes on from there to the same numbers.

    All methods are functions of the losses and gradients that they asked for. A fit that begins again and finds these
    here comes to where it was, without a simulation.

    Args:
        run: whose file evaluations.npz it is; it holds the points, the losses and what was asked
            for besides, row by row, and the seconds that the fit had run by then.
        save_config: called before the first file is saved.
    """

    FILE, SECONDS = "evaluations.npz", PROGRESS_SECONDS  # the latter between two saves

    def __init__(self, run: RunFolder, save_config: Callable[[], None]):
        self.run, self.save_config = run, save_config
        self.rounds: list[np.ndarray] = []
        self.seconds: list[float] = []
        self.n_recalled, self.saved = 0, time.perf_counter()
        path, result = run.path / self.FILE, run.load("result.json")
        if result and not result.get("interrupted") and not path.exists():
            raise BadInput(f"argument --resume: found a fit that is finished in {run.path}, expected one that is not")
        if run.made and path.exists():
            file = load_arrays(path)
            n_column = file["n_column"]
            rounds = np.split(file["values"], np.cumsum(file["n_row"] * n_column)[:-1])
            self.rounds = [rows.reshape(-1, n) for rows, n in zip(rounds, n_column, strict=True)]
            self.seconds = file["seconds"].tolist()
        self.earlier = len(self.rounds)

    def recall(self, asked: np.ndarray, n_value: int) -> tuple[np.ndarray, float] | None:
        """The n_value numbers that answered these rows, and after how many seconds, if they come next; or else None."""
        if self.n_recalled >= self.earlier:
            return None
        rows, n_asked = self.rounds[self.n_recalled], asked.shape[1]
        if rows.shape != (len(asked), n_asked + n_value) or not np.array_equal(rows[:, :n_asked], asked):
            raise BadInput(f"{self.run.path / self.FILE}: found the evaluations of another fit, expected those of this")
        self.n_recalled += 1
        return rows[:, n_asked:], self.seconds[self.n_recalled - 1]

    def add(self, asked: np.ndarray, values: np.ndarray, seconds: float) -> None:
        """Keep an evaluation: what was asked, the answer, row by row, and when. A disk that is full ends no fit."""
        self.rounds.append(np.hstack([asked, values]))
        self.seconds.append(seconds)
        if time.perf_counter() - self.saved > self.SECONDS:
            with contextlib.suppress(CannotSave):
                self.save()

    def discard(self) -> None:
        """Remove the file, of a fit whose result is saved."""
        if processes.is_first():
            (self.run.path / self.FILE).unlink(missing_ok=True)

    def save(self) -> None:
        """Save what is kept."""
        if not self.rounds:
            return
        if not (self.run.path / "config.json").exists():
            self.save_config()
        n_row, n_column = np.array([rows.shape for rows in self.rounds]).T
        values = np.concatenate([rows.ravel() for rows in self.rounds])
        self.run.save(self.FILE, dict(values=values, n_row=n_row, n_column=n_column, seconds=np.array(self.seconds)))
        self.saved = time.perf_counter()
