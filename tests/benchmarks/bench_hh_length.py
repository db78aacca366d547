"""Up to which length of a recording the HH fit finds its cell: driven by it, by the plain loss, by brian2modelfitting.

    python tests/benchmarks/bench_hh_length.py [--lengths 15 50 200 1000 10000] [--n_start 20] [--repeats 5] [--seed 0]

The first so many ms of one recording, sampled and simulated every 0.05 ms, of the cell of data/ under a noisy current,
with 0.5 mV of noise. gL, gNa, gK, V_T are fitted, in the paper's bounds and from the same random starts:

1. `--objective synchronised`, by Gauss-Newton; 2. `--objective simulation`, by L-BFGS-B, both in float32, all starts
side by side, and given the cell's initial state;
3. brian2modelfitting's TraceFitter with Nevergrad's DE, 100 sets a round: so many repeats, each with ten times the
seconds that 1 takes for all its starts together, and two rounds at least.

A start, or a repeat, has found the cell if all four parameters are within 5 %. Compilation is apart. Half an hour on
two cores; run nothing else meanwhile. The last line is the ratio of the shares of 1 and 2 at the longest.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

import runs

import numpy as np
import scipy.signal
from common import BRIAN2MODELFITTING, run_peer
from workloads import hh_parameters

import fitting
import neuron_fitting_of_hh_model as hh
import recordings
import studies

DT, NOISE = 0.05, 0.5  # ms, mV
MEAN, STD, TAU = 0.25, 0.35, 3.0  # nA, nA, ms
WITHIN, PATIENCE, BATCH = 0.05, 10, 100


def noisy_current(T: float, seed: int) -> np.ndarray:
    """An Ornstein-Uhlenbeck current (T / DT, 1) (nA), from 0 on."""
    decay = np.exp(-DT / TAU)
    z = np.random.default_rng(seed).standard_normal((round(T / DT), 1))
    return MEAN + STD * scipy.signal.lfilter([np.sqrt(1 - decay**2)], [1, -decay], z, axis=0)


def study_of(current: np.ndarray, objective: str, seed: int) -> studies.Study:
    """The study of the cell of data/ under this current."""
    arguments = ["--target", "simulated", "--noise_std", str(NOISE), "--dt_sim", str(DT)]
    args = hh.parse_args(arguments)
    data = recordings.Data({"fit": recordings.Recording(current, dt=DT)})
    settings, known = runs.pick(studies.FitSettings, args), hh_parameters() | hh.CONSTANTS
    return hh.make_study(settings, data, recordings.source_of(args), known, objective=objective, seed=seed)


def found(parameters: Mapping[str, float]) -> bool:
    """Whether all parameters are those of the cell, to WITHIN."""
    return all(abs(parameters[name] / value - 1) <= WITHIN for name, value in hh_parameters().items())


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=float, nargs="+", default=[15, 50, 200, 1000, 10000], help="(ms)")
    parser.add_argument("--n_start", type=int, default=20, help="starts of 1 and 2")
    parser.add_argument("--repeats", type=int, default=5, help="of brian2modelfitting")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    devices = runs.setup_jax(32, "all")
    current = noisy_current(max(args.lengths), args.seed)
    print("length (ms), spikes; found by: driven, plain, brian2modelfitting; seconds of each; losses (mV^2)")
    for T in args.lengths:
        part, shares, seconds, losses = current[: round(T / DT)], [], [], []
        for objective, method in (("synchronised", fitting.GAUSS_NEWTON), ("simulation", "L-BFGS-B")):
            study = study_of(part, objective, args.seed)
            problem = fitting.FitProblem(study, args.n_start, devices)
            minimum = fitting.minimise(problem, fitting.Search(method, args.n_start, seed=args.seed))
            shares.append(np.mean([found(problem.box.values(start.x)) for start in minimum.starts]))
            seconds.append(problem.seconds["run"])
            losses.append(minimum.released.loss if minimum.released else minimum.best.loss)
        recording = study.recordings["fit"]
        arrays = {f"bounds_{name}": bound.mantissa for name, bound in study.bounds.items()}
        arrays |= dict(current=recording.current, V=recording.V, dt=DT, n_sample=BATCH)
        peer = "peer_brian2modelfitting.py", BRIAN2MODELFITTING, 10**6, PATIENCE * seconds[0]
        peers = [run_peer(*peer, **arrays) for _ in range(args.repeats)]
        shares.append(np.mean([found(result["parameters"]) for result in peers]))
        seconds.append(np.mean([result["log"][-1][0] for result in peers]))
        losses.append(np.median([result["log"][-1][1] for result in peers]))
        columns = ("{:.0%}", shares), ("{:.1f}", seconds), ("{:.3g}", losses)
        row = "; ".join(" ".join(text.format(x) for x in column) for text, column in columns)
        print(f"{T:g}, {int(recording.spikes.sum())}; {row}", flush=True)
    print(f"ratio of shares at {T:g} ms, driven / plain: {shares[0]:.2f} / {shares[1]:.2f}")


if __name__ == "__main__":
    main()
