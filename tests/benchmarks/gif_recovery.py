"""How well the GIF fit recovers the neuron behind its target, over seeds: the table of README.md here.

    python tests/benchmarks/gif_recovery.py [--cases paper noisy ...] [--seeds N]

Every case is the script of the repository, run as a user would, once a seed. A row tells how many of the starts have
the right parameters, the free-running error of the best start, and how many standard errors its parameters are from the
truth. The target is the script's own simulation, but in `recording`: files of a neuron with t_ref, A_th, escape noise
and R_s, integrated by tests/cells.py, 12 s with 0.5 mV of noise and other currents and chances for every seed.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

import cells
import numpy as np
from common import fit

SCRIPT = "neuron_fitting_of_gif_model.py"
DT, NOISE = 0.1, 0.5  # ms, mV
OF_RECORDING = ["R", "tau", "V_rest", "V_reset", "A1", "k1", "A2", "k2", "R_s", "V_th_inf", "a", "b", "A_th", "width"]
# arguments, seeds, parameters that the data determine, and how near a start must come to them
CASES = {
    "paper": ("--protocol paper", 5, ["a", "b"], 0.01),
    "paper, spikes alone": ("--protocol paper --fit_target spike", 5, ["a", "b"], 0.01),
    "identifiable": ("--protocol identifiable", 5, ["a", "b", "k1", "k2"], 0.02),
    "noisy": ("--protocol identifiable --noise_std 0.5 --spike_jitter 0.1", 20, ["a", "b", "k1", "k2"], 0.02),
    "recording": (
        f"--n_sample 4 --validation none --constants t_ref=4 --fit_parameters {' '.join(OF_RECORDING)}",
        40,
        OF_RECORDING,
        0.2,
    ),
    "simulation": ("--objective simulation --n_sample 100 --n_point 100", 5, ["a", "b"], 0.01),
    "simulation, spikes": ("--objective simulation --fit_target spike --n_sample 100", 5, ["a", "b"], 0.01),
}


def recording(seed: int, folder: Path) -> str:
    """Files of a recording, as arguments. Spikes are seen: 1 ms at 30 mV from the step after that in which one begins.

    R_s I is in the potentials. The current is Ornstein-Uhlenbeck (0.25 nA, s.d. 0.35 nA, 5 ms), in two sweeps.
    """
    rng, current = np.random.default_rng(seed), cells.noise(2, DT, 6000, 0.25, 0.35, 5.0, seed)
    V, _, _, spikes = cells.escaping(current, DT, np.full(2, -60.0), rng.random(current.shape), **cells.RECORDED)
    V = V + NOISE * rng.standard_normal(V.shape)
    for step, trace in np.argwhere(spikes):
        V[step + 1 : step + 11, trace] = 30.0
    np.savetxt(folder / "I.csv", current.T, delimiter=",")
    np.savetxt(folder / "V.csv", V.T, delimiter=",")
    return f"--current {folder}/I.csv --voltage {folder}/V.csv --current_unit nA --dt {DT}"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="default: all")
    parser.add_argument(
        "--seeds", type=int, help="number of seeds, 0, 1, ...; default: 5, 20 of noisy and 40 of recording"
    )
    args = parser.parse_args(argv)
    for case in args.cases:
        arguments, n_seed, names, tolerance = CASES[case]
        z, fractions = [], []
        print(f"\n{case}: {arguments}")
        for seed in range(args.seeds or n_seed):
            with tempfile.TemporaryDirectory() as folder:
                files = recording(seed, Path(folder)) if case == "recording" else ""
                result = fit(SCRIPT, f"{files} {arguments}", seed, Path(folder) / "run")
            known, errors = (
                result.get("known_parameters") or cells.RECORDED,
                result["identifiability"]["standard_errors"],
            )
            away = [[abs(start["parameters"][name] / known[name] - 1) for name in names] for start in result["starts"]]
            fractions.append(np.mean(np.max(away, axis=1) <= tolerance))
            z.append([(result["parameters"][name] - known[name]) / errors[name] for name in names])
            floor = result.get("random_search_loss")
            right = f"{fractions[-1]:.0%} of starts within {tolerance:.0%}"
            print(f"  seed {seed}: {right}, loss {result['loss']:.4g}", end="")
            print(f" (random search {floor:.4g})" if floor else "", end="; ")
            print(f"free-running {result['rmse'] ** 2:.3g} mV^2, Gamma {result['gamma']},", end=" ")
            print(
                f"{np.sum(result['n_spikes_same_step'])} of {sum(result['n_spikes'])} spikes at the same step;", end=" "
            )
            print(f"standard errors from the truth {np.round(z[-1], 2).tolist()};", end=" ")
            print(f"{result['n_simulations']} simulations, {result['seconds']['run']:.1f} s", flush=True)
        within = dict(zip(names, (np.abs(z) <= 2).sum(axis=0).tolist(), strict=True))
        print(f"  all seeds: {np.mean(fractions):.1%} of starts; seeds within 2 standard errors: {within} of {len(z)}")


if __name__ == "__main__":
    main()
