"""Several processes of one run, on one machine or on many, joined by `jax.distributed`.

Every process runs the same program, and has a part of each batch on its devices; what they are not told to share, such
as Ctrl-C or a clock, they have to agree on (`of_all`, `gather`). The first one writes and prints. Each of them is
supervised by the one that the user has started (`supervisor.py`).
"""

import contextlib
import json
import os
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
from typing import Any, NoReturn

import jax
import jax.extend
import numpy as np
from jax.experimental import multihost_utils

from supervisor import JOIN_SECONDS, NOTE, PLACE, SUPERVISED, Place, command_of

SILENT_SECONDS = 20  # after which a process that gives no sign of life counts as dead

_pressed: list[bool] = []  # filled by Ctrl-C
_joined: list[Place] = []  # filled once this process is one of several


def join(place: Place) -> None:
    """Make this process one of those of a run; before JAX's backends start.

    Raises:
        ValueError: no cluster is found, or the port of the coordinator is taken.
    """
    if SUPERVISED in os.environ:
        threading.Thread(target=_end_with_supervisor, daemon=True).start()
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
    _keep_stdout()
    if SUPERVISED in os.environ:
        _note(process=jax.process_index(), n=jax.process_count())


def _keep_stdout() -> None:
    """Leave standard output to Python in the first process, and to nobody in the others; gloo writes to it too."""
    sys.stdout.flush()
    ours, nobody = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nobody, 1)
    sys.stdout = os.fdopen(ours if is_first() else nobody, "w", buffering=1)


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
        time.sleep(SILENT_SECONDS + 5)
    sys.stderr.write(error)
    end(1)


class Ended(Exception):
    """The process that this one supervises has ended, with a status."""

    def __init__(self, status: int):
        self.status = status
        super().__init__(status)


def supervise(script: Path, argv: Sequence[str], place: Place) -> NoReturn:
    """Run the script in a process that is supervised by this one, which becomes its supervisor if it runs the script.

    So that it does not hold devices, which brainpy has started when it was imported.

    Raises:
        Ended: with the status, where this process runs something else.
    """
    command = command_of(script, place, argv)
    sys.stdout.flush()
    sys.stderr.flush()
    if Path(sys.argv[0]).resolve() == script.resolve():
        os.execv(command[0], command)
    raise Ended(subprocess.run(command, check=False).returncode)
