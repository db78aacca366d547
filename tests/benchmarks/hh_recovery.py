"""How well the HH fit finds the cell behind a recording that drives it, over seeds: a table of README.md here.

    python tests/benchmarks/hh_recovery.py [--cases recorded noisy long electrode] [--seeds N]

Every case is the script of the repository, run as a user would, once a seed. `recorded` and `noisy` are the held-out
traces of data/, without and with noise. `long` and `electrode` are files of a cell with M current, integrated by
tests/cells.py in steps of 0.005 ms: 10 s, sampled at 20 kHz with 0.5 mV of noise, another current and other noise for
every seed. In `long` the cell is at rest before the current begins; in `electrode` what was before is unknown, and the
electrode has 10 Mohm. A row tells how many of the 20 starts end within the tolerance of all parameters, and at the best
loss; the largest error of the best start, and how many standard errors its parameters are from the truth.
"""

import argparse
import dataclasses
import json
import resource
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import cells
import numpy as np
from common import fit

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "neuron_fitting_of_hh_model.py"
DT, NOISE, STEP, T, T_BEFORE = 0.05, 0.5, 0.005, 10000.0, 1000.0  # ms, mV, ms, ms, ms
CELL = {"gM": 0.03, "tau_max": 300.0}
R_S = 10.0  # Mohm
DATA = json.loads((ROOT / "data" / "parameters_hh.json").read_text())["parameters"]
SHIPPED = "--current data/input_traces_hh_validation.csv --voltage data/output_traces_hh_validation.csv --dt 0.01 "
SHIPPED += "--current_unit A --scheme exponential_euler --validation none"


@dataclasses.dataclass(frozen=True)
class Case:
    """Arguments, what is fitted with the true values, how near a start must come, and whether files are made."""

    arguments: str
    known: dict[str, float]
    within: float
    of_cell: bool = False

    @property
    def command(self) -> str:
        return f"{self.arguments} --fit_parameters {' '.join(self.known)}"


ALL = DATA | {name: cells.HH[name] for name in ("EL", "ENa", "EK", "C")}
SLOW = {name: (cells.HH | CELL)[name] for name in ("gL", "gNa", "gK", "V_T", "C", "gM", "tau_max")}
CASES = {
    "recorded": Case(SHIPPED, DATA, 0.001),
    "noisy": Case(f"{SHIPPED} --noise_std 1", ALL, 0.01),
    "long": Case("--validation none", SLOW, 0.03, of_cell=True),
    "electrode": Case("--validation none", SLOW | {"R_s": R_S}, 0.03, of_cell=True),
}


def recording(case: str, seed: int, folder: Path) -> str:
    """Files of the cell, as arguments. The current is Ornstein-Uhlenbeck (0.25 nA, s.d. 0.35 nA, 3 ms)."""
    rng = np.random.default_rng([seed, len(case)])
    current = cells.noise(1, DT, T + T_BEFORE, 0.25, 0.35, 3.0, seed)
    if case == "long":
        current[: round(T_BEFORE / DT) + round(10 / DT)] = 0
    V = cells.hh(current, DT, step=STEP, **CELL)
    V += R_S * current if case == "electrode" else 0
    V += NOISE * rng.standard_normal(V.shape)
    for name, values in (("I", current), ("V", V)):
        np.savetxt(folder / f"{name}.csv", values[round(T_BEFORE / DT) :].T, delimiter=",")
    return f"--current {folder}/I.csv --voltage {folder}/V.csv --current_unit nA --dt {DT} --dt_sim {DT / 4}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds, 0, 1, ... (default: 5)")
    args = parser.parse_args(argv)
    for name in args.cases:
        case, z = CASES[name], []
        print(f"\n{name}: {case.command}")
        for seed in range(args.seeds):
            with tempfile.TemporaryDirectory() as folder:
                files = recording(name, seed, Path(folder)) if case.of_cell else ""
                result = fit(SCRIPT, f"{case.command} {files}", seed, Path(folder) / "run")

            def errors(parameters, known=case.known):
                return {key: parameters[key] / value - 1 for key, value in known.items()}

            of_starts = [max(map(abs, errors(start["parameters"]).values())) for start in result["starts"]]
            losses = np.array([start["loss"] for start in result["starts"]])
            off = errors(result["parameters"])
            worst = max(off, key=lambda key: abs(off[key]))
            given = result["identifiability"]["standard_errors"]
            z.append({key: error * case.known[key] / given[key] for key, error in off.items() if given.get(key)})
            print(f"  seed {seed}: {np.sum(np.array(of_starts) <= case.within)} of {len(losses)} starts", end=" ")
            print(f"within {case.within:.2%}, {np.sum(losses <= 1.1 * losses.min() + 1e-3)} at the best loss;", end=" ")
            print(f"{sum(result['n_spikes'])} spikes, {off[worst]:+.3%} of {worst};", end=" ")
            print(f"standard errors from the truth {[round(x, 2) for x in z[-1].values()]};", end=" ")
            print(f"coupling {result['coupling_per_ms']:g}, {result['n_left_out']} windows left out;", end=" ")
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9  # of those before, too
            print(f"{result['seconds']['run']:.1f} s, {peak:.2f} GB at most so far", flush=True)
        of_all = np.abs([x for of_seed in z for x in of_seed.values()])
        print(f"  all seeds: {np.sum(of_all <= 2)} of {len(of_all)} parameters within 2 standard errors")


if __name__ == "__main__":
    main()
