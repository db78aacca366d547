"""Which minimum of a GIF fit predicts what was not fitted: cross-validation over the quarters of the fitted time.

    python tests/benchmarks/gif_quarters.py [ARGUMENTS OF THE SCRIPT ...]

Three minima, by default of the README's recording: of the model without terms; of all default terms from uniform random
starts; and of these from the best of the first. From each, the model is fitted to three quarters of the time, driven by
the spikes of all of it, and the fourth has the negative log-likelihood that is printed: of its spikes, and of its
potentials with the errors that were fitted. Five minutes on two cores. The last line is the sums over the quarters.
"""

import argparse
import dataclasses
import functools
import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

import runs

import jax
import numpy as np

import fitting
import neuron_fitting_of_gif_model as gif
import recordings
import studies
from evaluation import FitProblem
from solvers import GAUSS_NEWTON, SCALED

README = "--recording data/recording.nwb --sweeps 0:5 --n_sample 8"
N_PART = 4


def counted(study: studies.Study, steps: np.ndarray) -> studies.Study:
    """The study of which these steps (T,) alone count; the spikes of all of them drive it."""
    driven = study.windows
    recording = dataclasses.replace(driven.recording, mask=np.asarray(driven.recording.mask) * steps[:, None])
    fired = np.asarray(driven.fired) * steps[np.minimum(driven.spikes, len(steps) - 1)]
    silent = np.asarray(driven.silent) * steps[:, None]
    return dataclasses.replace(
        study, windows=dataclasses.replace(driven, recording=recording, silent=silent, fired=fired)
    )


def costs_of(study: studies.Study, problem: FitProblem, x: np.ndarray) -> tuple[float, float, float]:
    """Negative log-probability of the spikes that count, mean squared error of the potentials, and their number."""
    costs = jax.jit(study.model)(problem.box.parameters(x), study.windows)
    n = float(np.sum(study.windows.mask))
    return float(np.sum(costs["spike_cost"])), float(np.sum(costs["error"])) / n, n


def left_out(study: studies.Study, x: np.ndarray, devices: Sequence[jax.Device]) -> list[float]:
    """Negative log-likelihood of each part, by the model that is fitted to the others from x."""
    n_step, found = len(study.windows.recording.current), []
    for part in range(N_PART):
        inside = np.arange(n_step) * N_PART // n_step == part
        fitted = counted(study, 1.0 - inside)
        problem = FitProblem(fitted, 1, devices)
        best = fitting.multistart(problem, x[None], SCALED, study.annealing.levels[-1]).best.x
        _, mse_fitted, _ = costs_of(fitted, problem, best)
        spikes, mse, n = costs_of(counted(study, 1.0 * inside), problem, best)
        weight = study.recordings["fit"].dt / study.objective["tau_noise_ms"]
        relative = math.log(mse_fitted / studies.V_RESOLUTION**2) + mse / mse_fitted - 1
        found.append(spikes + n * weight / 2 * relative)
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given = parser.parse_known_args(argv)[1] or README.split()
    print(f"python {gif.SCRIPT}.py {' '.join(given)}", flush=True)
    args = gif.parse_args([*given, "--method", GAUSS_NEWTON])
    devices = runs.setup(args, gif.SCRIPT, given)
    source, settings = recordings.source_of(args), runs.pick(gif.Settings, args)
    data = gif.read_data(source, args.protocol)
    make = functools.partial(gif.make_study, data=data, source=source)
    small, large = (make(gif.with_terms(settings, terms)) for terms in (["none"], list(gif.DEFAULT_TERMS)))
    search, sums = runs.pick(fitting.Search, args), {}

    def report(name, study, x0=None):
        problem = FitProblem(study, search.n_sample, devices)
        best = fitting.minimise(problem, dataclasses.replace(search, x0=x0)).best
        parts = left_out(study, best.x, devices)
        sums[name] = sum(parts)
        print(f"{name}: fitted {best.loss:.1f}, left out", ", ".join(f"{part:.1f}" for part in parts), flush=True)
        return problem, best

    without = report("without terms", small)
    report("all terms, uniform starts", dataclasses.replace(large, starts=None))
    x0 = fitting.starts_from(FitProblem(large, search.n_sample, devices), *without, search.seed)
    report("all terms, from the first", large, x0[::2])
    print("; ".join(f"{name} {total:.0f}" for name, total in sums.items()))


if __name__ == "__main__":
    main()
