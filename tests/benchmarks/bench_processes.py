"""Several processes of one training: whether the numbers are those of one, whether all end where one dies, and costs.

    python tests/benchmarks/bench_processes.py [--what equal kills costs] [--kills 10]

equal: weights after 20 updates by 2 and 4 processes of one device each, against one process with as many devices, in
64 and 32 bits; the largest difference, relative to the largest weight of its block. Five minutes.

kills: one of two processes has SIGKILL at a random time after its start; seconds until both have ended, and whether the
training goes on from the last checkpoint. Ten minutes.

costs: seconds of an update by one process, for batches of several sizes, and of the sum of a gradient over 2 and 4
processes on the loopback address, for gradients of several sizes. By least squares, of the relative errors, a law each:
compute = c0 + c1 batch, and sum = 2 (N - 1) (latency + bytes / N / bandwidth), that of a ring. Updates measured with 2
and 4 processes stand beside what the laws say. Then, with the latency and bandwidth of a network, the time of an update
on N hosts of one such core, for one network and one that has more neurons with more hosts. Four minutes.
"""

import argparse
import dataclasses
import json
import os
import random
import shutil
import sys
import tempfile
import time
import unittest.mock
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from common import linear_law, seconds_of
from jax.sharding import Mesh, PartitionSpec
from workloads import ROOT, runs, task_script

import processes
from supervisor import Place, saved_updates

sys.path.append(str(ROOT / "tests"))
import many

SCRIPT = "task-coba-ei-rsnn"
HOSTS = (1, 4, 16, 64, 256, 1024)
PRODUCTS = 0.4  # of c1 at n_rec 200, which grow with n_rec^2; the rest grows with n_rec
LATENCY, BITS = 25e-6, (1e10, 1e11)  # s a message by TCP between nodes of a cluster; bits a second
WHAT = ("equal", "kills", "costs")


def weights_of(folder: Path) -> dict[str, np.ndarray]:
    with np.load(folder / "weights.npz") as arrays:
        return {name: arrays[name] for name in ("in", "exc", "inh", "out")}


def train(n: int, arguments: Sequence, folder: Path) -> Path:
    """The run folder of a training by n processes."""
    path = Path(tempfile.mkdtemp(dir=folder)) / "run"
    for run in many.run(n, SCRIPT, (*arguments, "--output", path), folder):
        if run.status:
            sys.exit(run.errors)
    return path


SMALL = ["--n_rec", 100, "--batch_size", 16, "--n_heldout", 64, "--t_delay", 200]


def equal(folder: Path, numbers: Sequence[int] = (2, 4), precisions: Sequence[int] = (64, 32), updates: int = 20):
    """Rows: by how much weights after so many updates differ, relative to the largest of their block."""
    rows = []
    for n in numbers:
        for precision in precisions:
            arguments = [*SMALL, "--epochs", updates, "--eval_every", updates, "--precision", precision]
            several = weights_of(train(n, arguments, folder))
            with unittest.mock.patch.dict(os.environ, JAX_NUM_CPU_DEVICES=str(n)):  # also of fewer cores
                one = weights_of(train(1, [*arguments, "--devices", ",".join(map(str, range(n)))], folder))
            off = max(np.abs(w - one[name]).max() / np.abs(one[name]).max() for name, w in several.items())
            rows.append(dict(n_processes=n, quantity=f"off, {precision} bits", at=updates, value=float(off)))
            print(f"{n} processes against one with {n} devices, {precision} bits, {updates} updates: off by {off:.1e}")
    return rows


def kill(folder: Path, rng: random.Random) -> float:
    """Seconds until both of two processes have ended after one has SIGKILL; the training then goes on."""
    options = "--n_rec 20 --batch_size 4 --n_heldout 8 --eval_every 2 --save_every 2 --epochs 100000 --threshold 1"
    path, after, victim = folder / "killed", rng.uniform(1, 30), rng.randrange(2)
    shutil.rmtree(path, ignore_errors=True)
    arguments = (*options.split(" "), "--t_delay", 50, "--schedule", "constant", "--lr", 1e-9, "--output", path)
    with many.started(2, SCRIPT, arguments, folder) as both:
        time.sleep(after)
        kept = saved_updates(path)
        both[victim].kill()
        start = time.monotonic()
        ended = many.ended(both, 120)[1 - victim]
        seconds = time.monotonic() - start
    last = saved_updates(path)
    print(f"process {victim} killed after {after:.1f} s, all ended {seconds:.1f} s later: {ended.errors.strip()}")
    assert max(last, default=0) >= max(kept, default=0)
    if last:
        (resumed,) = many.run(1, SCRIPT, ("--resume", path, "--epochs", max(last) + 2), folder)
        assert resumed.status == 0, resumed.errors
        result = json.loads((path / "result.json").read_text())
        print(f"  gone on from update {max(last)} to {result['updates']}")
    return seconds


def seconds_of_sum(sizes: Sequence[int], place: Place) -> list[float]:
    """Seconds of the mean of so many numbers over the processes, of which this is one."""
    runs.cores_as_devices()
    processes.join(place)
    runs.setup_jax(32, "0")
    mesh, copied = Mesh(np.array(jax.devices()[:: jax.local_device_count()]), ("batch",)), PartitionSpec()
    found = []
    for size in sizes:
        mean = jax.shard_map(
            lambda x: jax.lax.pmean(x, "batch"), mesh=mesh, in_specs=copied, out_specs=copied, check_vma=False
        )
        x = jax.device_put(np.ones(size, np.float32), jax.sharding.NamedSharding(mesh, copied))
        program = jax.jit(mean)
        found.append(seconds_of(lambda program=program, x=x: program(x).block_until_ready(), repeats=15))
    return found


def measured_sums(n: int, sizes: Sequence[int], folder: Path) -> list[float]:
    """The same of n processes that are started for it."""
    worker = "tests/benchmarks/bench_processes"
    with many.started(n, worker, ("--sizes", *sizes), folder) as started:
        first = many.ended(started)[0]
    if first.status:
        sys.exit(first.errors)
    return json.loads(next(line for line in reversed(first.output.splitlines()) if line.startswith("[")))


@dataclasses.dataclass(frozen=True)
class Costs:
    """The laws of an update: c0 + c1 batch on one core, and of a sum; with their largest relative errors.

    Args:
        c0, c1: seconds, at n_rec 200, where there are n_weight weights; `off` is the error.
        latency: seconds a message, and per_byte seconds a byte, on the loopback address; `off_sum` is the error.
        rows: what was measured: seconds of updates (at a batch), of sums (at a size), and of 64 trials by the law.
    """

    c0: float
    c1: float
    off: float
    n_weight: int
    latency: float
    per_byte: float
    off_sum: float
    rows: list[dict]

    def seconds(self, n: int, batch: int) -> float:
        """An update by n processes of this machine, which share its cores."""
        sent = 2 * (n - 1) * (self.latency + 4 * self.n_weight / n * self.per_byte)
        return max(1.0, n / runs.N_CORE) * (self.c0 + self.c1 * batch / n) + sent


def costs(folder: Path) -> Costs:
    """Measure what an update and a sum of gradients take, and fit the laws."""

    def update(n, batch, devices=()):
        options = "--epochs 12 --n_heldout 2 --eval_every 12 --threshold 1 --schedule constant"
        path = train(n, (*options.split(" "), "--batch_size", batch, *devices), folder)
        return json.loads((path / "result.json").read_text())["seconds_per_update"]

    batches, one, n_processes = np.array([8, 32, 128]), ("--devices", "0"), (2, 4)
    measured = np.array([update(1, batch, one) for batch in batches])
    rows = [
        dict(n_processes=1, quantity="update, s", at=int(batch), value=value)
        for batch, value in zip(batches, measured.tolist(), strict=True)
    ]
    (c0, c1), off = linear_law(np.stack([np.ones(3), batches], axis=1), measured)
    sizes = [10**4, 10**5, 10**6, 10**7]
    sums = np.array([measured_sums(n, sizes, folder) for n in n_processes])
    for n, of_n in zip(n_processes, sums.tolist(), strict=True):
        for size, value in zip(sizes, of_n, strict=True):
            rows.append(dict(n_processes=n, quantity="sum, s", at=size, value=value))
    hops = np.array([[2 * (n - 1)] * len(sizes) for n in n_processes]).ravel()
    bytes_sent = np.array([[2 * (n - 1) / n * 4 * size for size in sizes] for n in n_processes]).ravel()
    (latency, per_byte), off_sum = linear_law(np.stack([hops, bytes_sent], axis=1), sums.ravel())
    model = task_script.make_model(task_script.parse_args([]))
    n_weight = sum(w.size for w in model.weights.values())
    found = Costs(*map(float, (c0, c1, off)), n_weight, *map(float, (latency, per_byte, off_sum)), rows)
    for n in n_processes:
        rows.append(dict(n_processes=n, quantity="update, s", at=64, value=update(n, 64)))
        rows.append(dict(n_processes=n, quantity="by the law, s", at=64, value=found.seconds(n, 64)))
    return found


def in_words(found: Costs) -> str:
    """The laws, and what was measured beside them."""
    lines = [
        f"An update of n_rec 200, 2200 steps, one core: {found.c0:.3g} + {found.c1:.3g} batch s (off by "
        f"{found.off:.0%} at 8, 32 and 128 trials). On the loopback address {1e6 * found.latency:.0f} us a message, "
        f"{1e-9 / found.per_byte:.2g} GB/s (off by up to {found.off_sum:.0%})."
    ]
    values = {(row["n_processes"], row["quantity"], row["at"]): row["value"] for row in found.rows}
    for n in (2, 4):
        measured, law = values[n, "update, s", 64], values[n, "by the law, s", 64]
        lines.append(f"64 trials by {n} processes on {runs.N_CORE} cores: {measured:.3g} s, by the law {law:.3g} s.")
    return "\n".join(lines) + "\n"


def on_paper(found: Costs) -> tuple[list[str], list[list[str]]]:
    """Columns and lines: an update on N hosts of one such core, batch and network fixed or growing, by the laws."""
    n_other = found.n_weight / 200 - 200  # weights of a neuron with inputs and outputs

    def cell(n, per_host, n_rec, bits):
        r = n_rec / 200
        compute = found.c0 + found.c1 * ((1 - PRODUCTS) * r + PRODUCTS * r**2) * per_host
        sent = 2 * (n - 1) * (LATENCY + 4 * (n_rec + n_other) * n_rec / n * 8 / bits)
        return f"{compute + sent:.3g} ({compute / (compute + sent):.0%})"

    cases = {
        "n_rec 200; 1024 trials": lambda n: (1024 / n, 200),
        "n_rec 200; 128 trials a host": lambda n: (128, 200),
        "n_rec 4000; 1024 trials": lambda n: (1024 / n, 4000),
        "n_rec 4000; 128 trials a host": lambda n: (128, 4000),
        "n_rec 200 √hosts; 1024 trials": lambda n: (1024 / n, 200 * n**0.5),
        "n_rec 200 √hosts; 128 trials a host": lambda n: (128, 200 * n**0.5),
    }
    lines = [
        [f"{name}; {bits / 1e9:.0f} Gbit/s", *(cell(n, *sizes(n), bits) for n in HOSTS)]
        for name, sizes in cases.items()
        for bits in BITS
    ]
    return ["s, and the share that is computation", *(f"{n} hosts" if n > 1 else "1 host" for n in HOSTS)], lines


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--what", nargs="+", choices=WHAT, default=WHAT)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--sizes", nargs="+", type=int, help=argparse.SUPPRESS)  # of a process that is started here
    parser.add_argument("--devices", help=argparse.SUPPRESS)
    for name, kind in (("coordinator", str), ("num_processes", int), ("process_id", int)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.sizes:
        place = Place(False, args.coordinator, args.num_processes, args.process_id)
        print(json.dumps(seconds_of_sum(args.sizes, place)), flush=True)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "equal" in args.what:
            equal(folder)
        if "kills" in args.what:
            rng = random.Random(0)
            seconds = [kill(folder, rng) for _ in range(args.kills)]
            print(f"{len(seconds)} kills: all ended within {max(seconds):.1f} s")
        if "costs" in args.what:
            found = costs(folder)
            columns, lines = on_paper(found)
            print(in_words(found), *(" | ".join(line) for line in [columns, *lines]), sep="\n")


if __name__ == "__main__":
    main()
