"""What the user has started of one of several processes: it runs the script in a process of its own, and looks on.

    python supervisor.py SCRIPT PLACE ARGUMENT...

JAX aborts the processes that are left where one has died, from threads of its own. The supervisor passes on what its
process prints, and says in a line what has ended it. It has nothing but the standard library: a few MB, and no device.
"""

import contextlib
import dataclasses
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

SUPERVISED = "DIFFERENTIABLE_BRAIN_MODELING_SUPERVISED"  # in the environment of a process that has a supervisor
JOIN_SECONDS = 40  # in which all processes have to begin, so that none waits for long where another dies before
NOTE = "\0"  # begins a line to the supervisor
FATAL = re.compile(r"F\d{4} \d\d:\d\d")  # begins what XLA says before it aborts


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


def command_of(script: Path, place: Place, argv: Sequence[str]) -> list[str]:
    """The command that runs the script under a supervisor."""
    return [sys.executable, __file__, str(script), json.dumps(dataclasses.asdict(place)), *argv]


@dataclasses.dataclass
class Heard:
    """What the supervised process has told: its number, of how many, its run folder, and XLA's last words."""

    process: int | None = None
    n: int | None = None
    run: str | None = None
    fatal: list[str] = dataclasses.field(default_factory=list)


def main(argv: Sequence[str]) -> int:
    """Status of the script, after a line on stderr where it did not say what ended it."""
    script, place = Path(argv[0]), Place(**json.loads(argv[1]))
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace")
    environment, heard = os.environ | {SUPERVISED: "1", "PYTHONUNBUFFERED": "1"}, Heard()
    signal.signal(signal.SIGINT, lambda *_: None)  # the script has Ctrl-C from the terminal, too
    child = subprocess.Popen([sys.executable, str(script), *argv[2:]], env=environment, **pipes)
    streams = ((child.stdout, sys.stdout), (child.stderr, sys.stderr))
    threads = [threading.Thread(target=_relay, args=(*stream, heard)) for stream in streams]
    for thread in threads:
        thread.start()
    status = child.wait()
    for thread in threads:
        thread.join()
    if status >= 0:
        return status
    status, line = verdict(heard, place, -status, script.name)
    sys.stderr.write(f"{script.name}: {line}\n")
    return status


def _relay(source: TextIO, to: TextIO, heard: Heard) -> None:
    """Pass lines on, but for notes to the supervisor and what XLA says when it aborts."""
    for line in source:
        if line.startswith(NOTE):
            vars(heard).update(json.loads(line[len(NOTE) :]))
        elif heard.fatal or FATAL.match(line):
            heard.fatal.append(line)
        else:
            with contextlib.suppress(OSError):
                to.write(line)
                to.flush()


def verdict(heard: Heard, place: Place, number: int, script: str) -> tuple[int, str]:
    """Status, and a line on why a process has ended by a signal of that number."""
    fatal = "".join(heard.fatal)
    if heard.process is None and "DEADLINE_EXCEEDED" in fatal:
        where = f"--coordinator: found not all of {place.num_processes} processes at {place.coordinator}"
        where = where if place.coordinator else "--distributed: found not all of the processes"
        expected = "expected all to be started, with the address of process 0, which the others reach"
        return 2, f"error: argument {where} within {JOIN_SECONDS} s, {expected}"
    who = "this process" if heard.process is None else f"process {heard.process} of {heard.n}"
    if unhealthy := re.search(r"stopped sending heartbeats\):\s*((?:\S*\d\s+)+)", fatal):
        dead = re.findall(r"(\d+)\s", unhealthy[1])
        died = f"process {dead[0]} has died" if len(dead) == 1 else f"processes {' and '.join(dead)} have died"
        what = f"{died}; {who} cannot go on"
    elif "coordination service" in fatal or "PollForError" in fatal:
        what = f"process 0 has died, or the way to it; {who} cannot go on"
    else:
        what = f"{who} was ended by {signal.Signals(number).name}" + (f" ({fatal.strip()[:300]})" if fatal else "")
    return 1, f"error: {what}; {_kept(heard.run, place, script)}"


def saved_updates(run: Path) -> list[int]:
    """The updates of a training of which its run folder has whole checkpoints."""
    return [int(path.name) for path in run.glob("checkpoints/*") if path.name.isdigit()]


def _kept(run: str | None, place: Place, script: str) -> str:
    """What there is to go on from, and the command to do so."""
    folder = Path(run) if run else None
    updates = saved_updates(folder) if folder else []
    what = f"the checkpoint of update {max(updates)}" if updates else None
    if folder and (folder / "evaluations.npz").exists():
        what = "the evaluations so far"
    if not what:
        return "nothing of this run is kept"
    command = shlex.join(["python", script, "--resume", run, *place.arguments])
    return f"{what} is kept in {run}; in each process, go on with: {command}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
