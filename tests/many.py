"""Starting a script as several processes on the loopback address, one device each, for tests and benchmarks."""

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Ended:
    """Of a process that has ended: its status, and what it has printed."""

    status: int
    output: str
    errors: str


def free_address() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{server.getsockname()[1]}"


@contextlib.contextmanager
def started(n: int, script: str, arguments: Sequence, cwd: Path, address: str = "") -> Iterator[list[subprocess.Popen]]:
    """The n processes of a run, which none outlives; with one, those of `--devices` are as they are given."""
    place = ["--coordinator", address or free_address(), "--num_processes", n, "--devices", 0, "--process_id"]
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}  # of JAX here
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    pipes |= dict(cwd=cwd, env=environment, start_new_session=True)
    places = [[*place, i] for i in range(n)] if n > 1 else [[]]
    commands = [[sys.executable, ROOT / f"{script}.py", *arguments, *own] for own in places]
    processes = [subprocess.Popen([str(word) for word in command], **pipes) for command in commands]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def ended(processes: Sequence[subprocess.Popen], seconds: float = 300) -> list[Ended]:
    """What came of the processes, which have to end in so many seconds."""
    texts = [process.communicate(timeout=seconds) for process in processes]
    return [Ended(process.returncode, *text) for process, text in zip(processes, texts, strict=True)]


def run(n: int, script: str, arguments: Sequence, cwd: Path) -> list[Ended]:
    """The same of a run that is let go on to its end."""
    with started(n, script, arguments, cwd) as processes:
        return ended(processes)


def children(pid: int) -> list[int]:
    """Processes that a process has started, by Linux."""
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in tasks for child in path.read_text().split()]


def is_alive(pid: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False
