"""How well the GIF fit recovers the neuron behind its target, over seeds: the table of README.md here.

    python tests/benchmarks/gif_recovery.py [--cases paper noisy ...] [--seeds N]

Every case is the script of the repository, run as a user would, once a seed. A row tells how many of the starts have
the right parameters, the free-running error of the best start, and how many standard errors its parameters are from the
truth.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SCRIPT = Path(__file__).resolve().parents[2] / "neuron_fitting_of_gif_model.py"
# arguments, seeds, parameters that the data determine, and how near a start must come to them
CASES = {
    "paper": ("--protocol paper", 5, ["a", "b"], 0.01),
    "paper, spikes alone": ("--protocol paper --fit_target spike", 5, ["a", "b"], 0.01),
    "identifiable": ("--protocol identifiable", 5, ["a", "b", "k1", "k2"], 0.02),
    "noisy": ("--protocol identifiable --noise_std 0.5 --spike_jitter 0.1", 20, ["a", "b", "k1", "k2"], 0.02),
    "simulation": ("--objective simulation --n_sample 100 --n_point 100", 5, ["a", "b"], 0.01),
    "simulation, spikes": ("--objective simulation --fit_target spike --n_sample 100", 5, ["a", "b"], 0.01),
}


def fit(arguments: str, seed: int, folder: Path) -> dict[str, Any]:
    """result.json of a fit."""
    command = [sys.executable, str(SCRIPT), *arguments.split(), "--seed", str(seed), "--output", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((folder / "result.json").read_text())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument("--seeds", type=int, help="number of seeds, 0, 1, ...; default: 5, and 20 of the noisy case")
    args = parser.parse_args(argv)
    for case in args.cases:
        arguments, n_seed, names, tolerance = CASES[case]
        z, fractions = [], []
        print(f"\n{case}: {arguments}")
        for seed in range(args.seeds or n_seed):
            with tempfile.TemporaryDirectory() as folder:
                result = fit(arguments, seed, Path(folder) / "run")
            known, errors = result["known_parameters"], result["identifiability"]["standard_errors"]
            away = [[abs(start["parameters"][name] / known[name] - 1) for name in names] for start in result["starts"]]
            fractions.append(np.mean(np.max(away, axis=1) <= tolerance))
            z.append([(result["parameters"][name] - known[name]) / errors[name] for name in names])
            floor = result.get("random_search_loss")
            right = f"{fractions[-1]:.0%} of starts within {tolerance:.0%}"
            print(f"  seed {seed}: {right}, loss {result['loss']:.4g}", end="")
            print(f" (random search {floor:.4g})" if floor else "", end="; ")
            print(f"free-running {result['rmse'] ** 2:.3g} mV^2, Gamma {result['gamma']},", end=" ")
            print(f"{sum(result['n_spikes_same_step'])} of {sum(result['n_spikes'])} spikes at the same step;", end=" ")
            print(f"standard errors from the truth {np.round(z[-1], 2).tolist()};", end=" ")
            print(f"{result['n_simulations']} simulations, {result['seconds']['run']:.1f} s", flush=True)
        within = dict(zip(names, (np.abs(z) <= 2).sum(axis=0).tolist(), strict=True))
        print(f"  all seeds: {np.mean(fractions):.1%} of starts; seeds within 2 standard errors: {within} of {len(z)}")


if __name__ == "__main__":
    main()
