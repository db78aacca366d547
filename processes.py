"""Several processes of one run, on one machine or on many, joined by `jax.distributed`.

Every process runs the same program, and has a part of each batch on its devices; what they are not told to share, such
as Ctrl-C or a clock, they have to agree on (`of_all`, `gather`). The first one writes and prints.

A process that another waits for may die, and JAX then aborts those that are left, from threads of its own. Each process
is therefore supervised by the one that the user has started: that one does nothing but pass on what the other prints
and say in a line what has ended it.
"""

import contextlib
import dataclasses
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn, TextIO

import jax
import jax.extend
import numpy as np
from jax.experimental import multihost_utils

SUPERVISED = "DIFFERENTIABLE_BRAIN_MODELING_SUPERVISED"  # in the environment of a process that has a supervisor
JOIN_SECONDS = 40  # in which all processes have to begin, so that none waits for long where another dies before
SILENT_SECONDS = 20  # after which a process that gives no sign of life counts as dead
NOTE = "\0"  # begins a line to the supervisor
FATAL = re.compile(r"F\d{4} \d\d:\d\d")  # begins what XLA says before it aborts
CHATTER = "[Gloo] "  # begins lines of XLA's that are of no use


@dataclasses.dataclass(frozen=True)
class Place:
    """The place of a process among those of a run, by the arguments of the same names."""

    distributed: bool = False
    coordinator: str | None = None
    num_processes: int | None = None
    process_id: int | None = None

    def __post_init__(self):
        given = {name: getattr(self, name) for name in ("coordinator", "num_processes", "process_id")}
        missing = [f"--{name}" for name, value in given.items() if value is None]
        if 0 < len(missing) < len(given):
            first = next(name for name, value in given.items() if value is not None)
            raise ValueError(f"argument --{first}: found no {' and no '.join(missing)}, expected all three or none")
        if self.process_id is not None and self.process_id >= self.num_processes:
            expected = f"less than the {self.num_processes} of --num_processes"
            raise ValueError(f"argument --process_id: found {self.process_id}, expected {expected}")
        if self.coordinator and not re.fullmatch(r".+:\d{1,5}", self.coordinator):
            raise ValueError(f"argument --coordinator: found {self.coordinator!r}, expected HOST:PORT")

    @property
    def several(self) -> bool:
        return self.distributed or self.coordinator is not None

    @property
    def arguments(self) -> list[str]:
        if self.coordinator is None:
            return ["--distributed"]
        names = ("coordinator", "num_processes", "process_id")
        return [text for name in names for text in (f"--{name}", str(getattr(self, name)))]


PLACE = tuple(field.name for field in dataclasses.fields(Place))


# ---- A process of several -------------------------------------------------------------------------------------------

_pressed: list[bool] = []  # filled by Ctrl-C
_joined: list[Place] = []  # filled once this process is one of several


def join(place: Place) -> None:
    """Make this process one of those of a run; before JAX's backends start.

    Raises:
        ValueError: no cluster is found, or the port of the coordinator is taken.
    """
    config = dict(jax_cpu_collectives_implementation="gloo", jax_enable_preemption_service=False)
    for name, value in config.items():
        jax.config.update(name, value)
    jax.extend.backend.clear_backends()
    if place.process_id == 0:
        _try_port(place.coordinator)
    own = dict(coordinator_address=place.coordinator, num_processes=place.num_processes, process_id=place.process_id)
    seconds = dict(initialization_timeout=JOIN_SECONDS, heartbeat_timeout_seconds=SILENT_SECONDS)
    try:
        jax.distributed.initialize(**own, **seconds)
    except ValueError:
        known = "found no cluster (SLURM, Open MPI, Kubernetes) that jax.distributed knows"
        expected = "expected one, or --coordinator, --num_processes and --process_id"
        raise ValueError(f"argument --distributed: {known}, {expected}") from None
    _joined.append(place)
    signal.signal(signal.SIGINT, _press)
    if SUPERVISED in os.environ:
        _note(process=jax.process_index(), n=jax.process_count())
        threading.Thread(target=_end_with_supervisor, daemon=True).start()
    if not is_first():
        sys.stdout = io.TextIOWrapper(open(os.devnull, "wb"))  # noqa: SIM115 (to the end of the process)


def _try_port(address: str) -> None:
    """Refuse a port that is taken, of which JAX dies."""
    try:
        socket.create_server(("", int(address.rsplit(":")[-1]))).close()
    except (OSError, OverflowError) as error:
        found = f"found {address}, where process 0 cannot listen ({error})"
        raise ValueError(f"argument --coordinator: {found}, expected a free port") from None


def _press(*_: Any) -> None:
    """Ctrl-C, which the processes act on where they agree; if it is pressed again, at once."""
    if _pressed:
        raise KeyboardInterrupt
    _pressed.append(True)


def _end_with_supervisor() -> None:
    sys.stdin.buffer.raw.read()  # to its end, which is that of the supervisor
    os._exit(1)


def _note(**content: Any) -> None:
    sys.stderr.write(f"{NOTE}{json.dumps(content)}\n")
    sys.stderr.flush()


def is_several() -> bool:
    """Whether this process is one of several."""
    return bool(_joined)


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return not _joined or jax.process_index() == 0


def of_all(*values: float) -> np.ndarray:
    """(n_process, k), the k numbers that each process has here."""
    if not is_several():
        return np.array([values], float)
    sent = np.frombuffer(np.array(values, float).tobytes(), np.uint8)  # as bytes: JAX would round to 32 bits
    return np.frombuffer(multihost_utils.process_allgather(sent).tobytes(), float).reshape(-1, len(values))


def gather(content: Any) -> list[Any]:
    """What each process has here, in the types of JSON."""
    if not is_several():
        return [content]
    data = np.frombuffer(json.dumps(content).encode(), np.uint8)
    longest = int(of_all(len(data)).max())
    padded = np.full(longest, ord(" "), np.uint8)
    padded[: len(data)] = data
    return [json.loads(row.tobytes()) for row in multihost_utils.process_allgather(padded)]


def interrupted() -> bool:
    """Whether Ctrl-C was pressed for any of several processes; each of them has to ask."""
    return is_several() and bool(of_all(len(_pressed)).any())


def check_round(asked: np.ndarray, shared: bool) -> None:
    """Before a round of evaluations of one of several processes; `shared`, if all of them take part in it.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed, for any of those that take part.
        RuntimeError: they do not ask for the same numbers.
    """
    if not is_several():
        return
    rows = of_all(len(_pressed), zlib.crc32(asked.tobytes())) if shared else np.array([[len(_pressed), 0.0]])
    if rows[:, 0].any():
        raise KeyboardInterrupt
    if np.ptp(rows[:, 1]):
        raise RuntimeError("the processes have come to different numbers: their machines do not round in the same way")


def check_equal(arguments: dict[str, Any]) -> None:
    """The same arguments in all processes, but for their places.

    Raises:
        ValueError: one differs.
    """
    ours = {name: value for name, value in arguments.items() if name not in PLACE}
    for i, theirs in enumerate(gather(ours)):
        if theirs != ours:
            name = next(name for name in ours if theirs[name] != ours[name])
            found = f"found {ours[name]} in process {jax.process_index()} and {theirs[name]} in process {i}"
            raise ValueError(f"argument --{name}: {found}, expected the same in all")


def share_folder(path: Path) -> Path:
    """The run folder of the first process, for all of them.

    Raises:
        ValueError: it is not there for one of them.
    """
    shared = Path(gather(str(path.absolute()))[0])
    here = gather(shared.is_dir())
    if not all(here):
        found = f"found {shared}, which process 0 has made, not in process {here.index(False)}"
        raise ValueError(f"argument --output: {found}, expected a folder that all processes share")
    _note(run=str(shared))
    return path if is_first() else shared


def end(status: int) -> None:
    """End one of several processes that cannot go on; the others find out. A process alone goes on."""
    if not is_several():
        return
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    if is_first():
        time.sleep(3)  # others that have come to the same end are aborted by that of the first one
    os._exit(status)


def end_by_error() -> None:
    """In an `except` clause: end one of several processes by whatever it is.

    Where another has died, what failed is a sum over all, and JAX says within SILENT_SECONDS which it was by an abort.
    """
    if not is_several():
        return
    error = traceback.format_exc()
    if any(word in error for word in ("Gloo", "NCCL", "JaxRuntimeError")):
        time.sleep(2 * SILENT_SECONDS)
    sys.stderr.write(error)
    end(1)


# ---- Its supervisor -------------------------------------------------------------------------------------------------


class Ended(Exception):
    """The process that this one supervises has ended, with a status."""

    def __init__(self, status: int):
        self.status = status
        super().__init__(status)


@dataclasses.dataclass
class Heard:
    """What the supervised process has told: its number, of how many, its run folder, and XLA's last words."""

    process: int | None = None
    n: int | None = None
    run: str | None = None
    fatal: list[str] = dataclasses.field(default_factory=list)


def supervise(script: Path, argv: Sequence[str], place: Place) -> NoReturn:
    """Run the script in a process that is supervised by this one.

    Raises:
        Ended: always, with the status of that process, after a line on stderr where it did not say why.
    """
    environment = os.environ | {SUPERVISED: "1", "PYTHONUNBUFFERED": "1"}
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    heard = Heard()
    text = dict(text=True, errors="replace", env=environment)
    child = subprocess.Popen([sys.executable, str(script), *argv], **pipes, **text)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # it has Ctrl-C from the terminal, too
    try:
        streams = ((child.stdout, sys.stdout), (child.stderr, sys.stderr))
        threads = [threading.Thread(target=_relay, args=(*stream, heard)) for stream in streams]
        for thread in threads:
            thread.start()
        status = child.wait()
        for thread in threads:
            thread.join()
    finally:
        signal.signal(signal.SIGINT, before)
    if status < 0:
        status, line = _verdict(heard, place, -status, script.name)
        sys.stderr.write(f"{script.name}: {line}\n")
    raise Ended(status)


def _relay(source: TextIO, to: TextIO, heard: Heard) -> None:
    """Pass lines on, but for notes to the supervisor, chatter, and what XLA says when it aborts."""
    for line in source:
        if line.startswith(NOTE):
            vars(heard).update(json.loads(line[len(NOTE) :]))
        elif heard.fatal or FATAL.match(line):
            heard.fatal.append(line)
        elif not line.startswith(CHATTER):
            with contextlib.suppress(OSError):
                to.write(line)
                to.flush()


def _verdict(heard: Heard, place: Place, number: int, script: str) -> tuple[int, str]:
    """Status, and a line on why a process has ended by a signal of that number."""
    fatal = "".join(heard.fatal)
    if heard.process is None and "DEADLINE_EXCEEDED" in fatal:
        where = f"--coordinator: found not all of {place.num_processes} processes at {place.coordinator}"
        where = where if place.coordinator else "--distributed: found not all of the processes"
        expected = "expected all to be started, with the address of process 0, which the others reach"
        return 2, f"error: argument {where} within {JOIN_SECONDS} s, {expected}"
    who = "this process" if heard.process is None else f"process {heard.process} of {heard.n}"
    if unhealthy := re.search(r"stopped sending heartbeats\):\s*((?:\S*\d\s+)+)", fatal):
        dead = " and ".join(re.findall(r"(\d+)\s", unhealthy[1]))
        what = f"process {dead} has died; {who} cannot go on"
    elif "coordination service" in fatal or "PollForError" in fatal:
        what = f"process 0 has died, or the way to it; {who} cannot go on"
    else:
        what = f"{who} was ended by {signal.Signals(number).name}" + (f" ({fatal.strip()[:300]})" if fatal else "")
    return 1, f"error: {what}; {_kept(heard.run, place, script)}"


def _kept(run: str | None, place: Place, script: str) -> str:
    """What there is to go on from, and the command to do so."""
    folder = Path(run) if run else None
    updates = [int(path.name) for path in folder.glob("checkpoints/*") if path.name.isdigit()] if folder else []
    what = f"the checkpoint of update {max(updates)}" if updates else None
    if folder and (folder / "evaluations.npz").exists():
        what = "the evaluations so far"
    if not what:
        return "nothing of this run is kept"
    command = shlex.join(["python", script, "--resume", run, *place.arguments])
    return f"{what} is kept in {run}; in each process, go on with: {command}"
