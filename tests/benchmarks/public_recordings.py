"""Both neurons fitted to public recordings that cannot be shipped, as a user would fit them, in one table.

    python tests/benchmarks/public_recordings.py FOLDER [--neurons GIF HH] [--arguments "--sweeps 0:5"]

FOLDER has recordings, each a file that the scripts read (NWB, ABF, NPZ, ...), or a folder of a cell of Pozzorini et
al. (2015), PLoS Comput. Biol. 11, e1004275, as published with their GIF toolbox: Test_ch3_*.ibw, repeats of a current
of 20 s, and their potentials Test_ch2_*.ibw. Of such a cell the first 10 s are fitted, the last 10 s scored (GIF: all
repeats, HH: two); of a file the last third of what --arguments select is held out, as the scripts do. Each row is one
run with 8 starts: held-out Md* at 4 and 2 ms beside the reliability of the repeats at 4 ms, the mean of Gamma over
traces, and the variance of V in a free run and with the recorded spikes; a dash where the recording has no repeats or
the neuron no such number. What a script refuses is told as it says it. Ten minutes a cell on two cores; each row's
command is printed below the table.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

import numpy as np
from bench_gif_cell import PARTS, files_of

import neuron_fitting_of_gif_model as gif
import neuron_fitting_of_hh_model as hh

SCRIPTS = {
    "GIF": (gif, []),
    "HH": (hh, ["--fit_parameters", *"gL gNa gK V_T EL C gM tau_max phi R_s".split()]),  # noqa: SIM905
}
COLUMNS = ("recording", "neuron", "Md* 4, 2 ms", "reliability", "Gamma", "variance", "spikes forced", "seconds")


def selection_of(path: Path, neuron: str, more: Sequence[str]) -> list[str]:
    """The arguments by which a script reads and parts a recording."""
    if not path.is_dir():
        return ["--recording", str(path), *more]
    files, n_repeat = files_of(path, "Test"), None if neuron == "GIF" else 2
    repeats = ["--current", *files.current[:n_repeat], "--voltage", *files.voltage[:n_repeat]]
    return [*map(str, repeats), *PARTS.split(), *more]


def row_of(neuron: str, selection: Sequence[str]) -> tuple[list[str], str]:
    """The cells of a row after the recording's name, and the command."""
    script, arguments = SCRIPTS[neuron]
    command = [sys.executable, script.__file__, *selection, *arguments, "--n_sample", "8"]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "run"
        done = subprocess.run([*command, "--output", str(output)], capture_output=True, text=True, check=False)
        typed = shlex.join(["python", Path(command[1]).name, *command[2:]])
        if done.returncode:
            return [neuron, done.stderr.strip().splitlines()[-1]], typed
        result = json.loads((output / "result.json").read_text())
    held_out = result["validation"]
    repeats = held_out["repeats"][0] if held_out["repeats"] else {}
    Md = [repeats.get(f"md_star_{window}ms") for window in (4, 2)]
    numbers = [np.mean(held_out["gamma"]), held_out["variance_explained"], held_out["variance_explained_forced"]]
    shown = ["-" if x is None else f"{x:.3f}" for x in (*Md, repeats.get("reliability_4ms"), *numbers)]
    return [neuron, ", ".join(shown[:2]), *shown[2:], f"{result['seconds']['run']:.0f}"], typed


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--neurons", nargs="+", choices=SCRIPTS, default=list(SCRIPTS), help="default: both")
    parser.add_argument("--arguments", default="", help="more arguments of both scripts, in one text")
    args = parser.parse_args(argv)
    inside = args.folder.iterdir() if args.folder.is_dir() else []
    recordings = sorted(p for p in inside if not p.is_dir() or any(p.glob("Test_ch3_*.ibw")))
    recordings = [path for path in recordings if path.is_dir() or path.suffix not in (".md", ".txt", ".json", ".py")]
    if not recordings:
        sys.exit(f"FOLDER {args.folder}: found no recording, expected files, or folders with Test_ch3_*.ibw")
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS), flush=True)
    commands = []
    for path in recordings:
        for neuron in args.neurons:
            cells, command = row_of(neuron, selection_of(path, neuron, shlex.split(args.arguments)))
            print("| " + " | ".join([path.name, *cells]) + " |", flush=True)
            commands.append(command)
    print("", *commands, sep="\n")


if __name__ == "__main__":
    main()
