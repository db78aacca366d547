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
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

import runs

import numpy as np
import scipy.signal
from common import BRIAN2MODELFITTING, run_peer
from workloads import hh_parameters

import fitting
import neuron_fitting_of_hh_model as hh
import recordings
import solvers
import studies

DT, NOISE = 0.05, 0.5  # ms, mV
MEAN, STD, TAU = 0.25, 0.35, 3.0  # nA, nA, ms
WITHIN, PATIENCE, BATCH = 0.05, 10, 100
LENGTHS = (15, 50, 200, 1000, 10000)  # ms
OBJECTIVES = {"synchronised": solvers.GAUSS_NEWTON, "simulation": "L-BFGS-B"}
PEER = "brian2modelfitting"


def noisy_current(T: float, seed: int) -> np.ndarray:
    """An Ornstein-Uhlenbeck current (T / DT, 1) (nA), from 0 on."""
    decay = np.exp(-DT / TAU)
    z = np.random.default_rng(seed).standard_normal((round(T / DT), 1))
    return MEAN + STD * scipy.signal.lfilter([np.sqrt(1 - decay**2)], [1, -decay], z, axis=0)


def study_of(current: np.ndarray, objective: str, seed: int, *more: str) -> studies.Study:
    """The study of the cell of data/ under this current, with more arguments."""
    args = hh.parse_args(["--target", "simulated", "--noise_std", str(NOISE), "--dt_sim", str(DT), *more])
    data = recordings.Data({"fit": recordings.Recording(current, dt=DT)})
    settings = runs.pick(studies.FitSettings, args, fit_target="potential")
    known = hh_parameters() | hh.CONSTANTS
    return hh.make_study(settings, data, recordings.source_of(args), known, objective=objective, seed=seed)


def found(parameters: Mapping[str, float]) -> bool:
    """Whether all parameters are those of the cell, to WITHIN."""
    return all(abs(parameters[name] / value - 1) <= WITHIN for name, value in hh_parameters().items())


def compare(T: float, n_start: int, repeats: int, seed: int) -> list[dict[str, Any]]:
    """For each fit of the first T ms: spikes of the recording, how many starts find the cell, seconds, loss (mV^2).

    The seconds are those of all starts together, or the mean of the repeats; the loss is the best one of the starts,
    running freely, or the median of the repeats.
    """
    devices, current, rows = runs.setup_jax(32, "all"), noisy_current(T, seed), []
    for objective, method in OBJECTIVES.items():
        study = study_of(current, objective, seed)
        problem = fitting.FitProblem(study, n_start, devices)
        minimum = fitting.minimise(problem, fitting.Search(method, n_start, seed=seed))
        n_found = sum(found(problem.box.values(start.x)) for start in minimum.starts)
        loss = minimum.released.loss if minimum.released else minimum.best.loss
        spikes = int(study.recordings["fit"].spikes.sum())
        row = dict(fit=objective, length_ms=T, spikes=spikes, found=n_found, n=n_start)
        rows.append(row | dict(seconds=problem.seconds["run"], loss=float(loss)))
    if repeats:
        recording = study.recordings["fit"]
        arrays = {f"bounds_{name}": bound.mantissa for name, bound in study.bounds.items()}
        arrays |= dict(current=recording.current, V=recording.V, dt=DT, n_sample=BATCH)
        peer = "peer_brian2modelfitting.py", BRIAN2MODELFITTING, 10**6, PATIENCE * rows[0]["seconds"]
        peers = [run_peer(*peer, **arrays) for _ in range(repeats)]
        row = rows[0] | dict(fit=PEER, found=sum(found(peer["parameters"]) for peer in peers), n=repeats)
        row["seconds"] = float(np.mean([peer["log"][-1][0] for peer in peers]))
        rows.append(row | dict(loss=float(np.median([peer["log"][-1][1] for peer in peers]))))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=float, nargs="+", default=LENGTHS, help="(ms)")
    parser.add_argument("--n_start", type=int, default=20, help="starts of 1 and 2")
    parser.add_argument("--repeats", type=int, default=5, help="of brian2modelfitting")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    print("fit, length (ms), spikes: found by; seconds; loss (mV^2)")
    for T in args.lengths:
        rows = compare(T, args.n_start, args.repeats, args.seed)
        for row in rows:
            shares = f"{row['found']} of {row['n']}; {row['seconds']:.1f} s; {row['loss']:.3g}"
            print(f"{row['fit']}, {T:g}, {row['spikes']}: {shares}", flush=True)
    driven, plain = (row["found"] / row["n"] for row in rows[:2])
    print(f"ratio of shares at {T:g} ms, driven / plain: {driven:.2f} / {plain:.2f}")


if __name__ == "__main__":
    main()
