"""Starting a script as several processes on the loopback address, one device each, for tests and benchmarks."""

import contextlib
import dataclasses
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from supervisor import Place, command_of

ROOT = Path(__file__).resolve().parents[1]


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


def slurm_job() -> str:
    """A number of a job of SLURM, of which JAX makes a port that is free."""
    for job in range(os.getpid(), os.getpid() + 4096):
        with contextlib.suppress(OSError), socket.create_server(("", 61440 + job % 4096)):
            return str(job)
    raise OSError("no port is free")


@contextlib.contextmanager
def started(
    n: int, script: str, arguments: Sequence, cwd: Path, slurm: bool = False
) -> Iterator[list[subprocess.Popen]]:
    """The n processes of a run, which none outlives; with one, those of `--devices` are as they are given.

    Those of several begin as what a script becomes when it finds that it is one of them, a supervisor, which saves
    importing everything twice.

    Args:
        slurm: whether they find each other by what SLURM has in the environment; they begin as the script.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}  # of JAX here
    own = [environment for _ in range(n)]
    script, words, address = ROOT / f"{script}.py", [str(word) for word in arguments], free_address()
    commands = [[sys.executable, str(script), *words]]
    if n > 1:
        places = [Place(coordinator=address, num_processes=n, process_id=i) for i in range(n)]
        commands = [command_of(script, place, [*words, "--devices", "0", *place.arguments]) for place in places]
    if slurm:
        job = dict(SLURM_JOB_ID=slurm_job(), SLURM_STEP_NODELIST="localhost", SLURM_NTASKS=str(n))
        own = [environment | job | dict(SLURM_PROCID=str(i), SLURM_LOCALID=str(i)) for i in range(n)]
        commands = [[sys.executable, str(script), *words, "--distributed", "--devices", "0"]] * n
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, start_new_session=True)
    processes = []
    for command, variables in zip(commands, own, strict=True):
        processes.append(subprocess.Popen(command, env=variables, **pipes))
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


def run(n: int, script: str, arguments: Sequence, cwd: Path, slurm: bool = False) -> list[Ended]:
    """The same of a run that is let go on to its end."""
    with started(n, script, arguments, cwd, slurm) as processes:
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
