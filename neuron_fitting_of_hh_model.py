"""Fit a Hodgkin-Huxley cell to recorded membrane potentials or spikes.

Four parameters of a Traub-type cell are fitted: the leak, sodium and potassium conductances gL, gNa, gK (uS) and the
shift V_T of the rates (mV), by gradients of the simulation (multi-start L-BFGS-B) or by derivative-free methods.
Without arguments the cell is fitted to the traces in data/ and checked on other currents.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import runs

import brainunit as u
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.typing import ArrayLike

import comparing
import fitting
import recordings
import utils
from comparing import PaperResult
from identifiability import Box, Parameters, Prediction, Predictions
from recordings import Recording

SCRIPT = Path(__file__).stem
DATA = Path(__file__).resolve().parent / "data"

# Wang et al. (2024) fit the first four in these bounds to a simulation at PAPER_PARAMETERS. The other bounds are ours.
RANGES = {
    "gL": u.Quantity([1e-4, 0.1], unit=u.uS),
    "gNa": u.Quantity([0.01, 40.0], unit=u.uS),
    "gK": u.Quantity([0.01, 20.0], unit=u.uS),
    "V_T": u.Quantity([-65.0, -50.0], unit=u.mV),
    "EL": u.Quantity([-80.0, -50.0], unit=u.mV),
    "ENa": u.Quantity([40.0, 60.0], unit=u.mV),
    "EK": u.Quantity([-100.0, -80.0], unit=u.mV),
    "C": u.Quantity([0.05, 0.5], unit=u.nF),
}
FITTED = ["gL", "gNa", "gK", "V_T"]
# Table S3 (loss in mV^2); 20 starts of L-BFGS-B.
PAPER_STARTS = 20
PAPER_RESULTS = {
    "L-BFGS-B": PaperResult(2.3e-8, 1.55e-8, 3.818, 0.725),
    "DE": PaperResult(24.42, 22.55, 0.619, 0.139),
    "PSO": PaperResult(35.72, 24.06, 0.663, 0.168),
    "TwoPointsDE": PaperResult(32.31, 22.60, 0.658, 0.175),
    "bayesian": PaperResult(27.95, 25.76, 55.26, 12.39),
}
CONSTANTS = {"EL": -65.0, "ENa": 50.0, "EK": -90.0, "C": 0.2}
PAPER_PARAMETERS = {"gL": 0.0083637, "gNa": 24.6977, "gK": 5.8149, "V_T": -55.3109}
SHIPPED = {
    "fit": (DATA / "input_traces_hh.csv", DATA / "output_traces_hh.csv"),
    "validation": (DATA / "input_traces_hh_validation.csv", DATA / "output_traces_hh_validation.csv"),
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    examples = ("--noise_std 1 --seed 3", "--current currents.csv --voltage potentials.csv --current_unit nA --dt 0.02")
    parser = runs.Parser(SCRIPT, __doc__, examples)
    fitting.add_fit_arguments(parser, RANGES, FITTED, list(LOSSES))
    comparing.add_compare_arguments(parser)
    recordings.add_data_arguments(parser)
    runs.add_run_arguments(parser)
    parser.set_defaults(dt=0.01)
    return fitting.parse_fit_arguments(parser, argv, shipped=True)


# ---- Model and loss -------------------------------------------------------------------------------------------------


def make_free_run(model: fitting.Model, dt: float, spike_level: float) -> recordings.FreeRun:
    """(parameters, current) -> V (mV), and as spikes its crossings of the level, as in a recording."""
    simulate = fitting.free_run_of(model, dt)

    def free_run(parameters: Parameters, current: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        V, _ = simulate(parameters, current)
        return V, recordings.detect_spikes(V, spike_level)

    return free_run


def soft_spikes(V: ArrayLike, level: float, width: float = 2.0) -> jax.Array:
    """Spike train that is a smooth function of the potential: the rise of a logistic across the level.

    s[k] = max(0, L(V[k+1]) - L(V[k])), L(V) = 1 / (1 + exp(-(V - level) / width)): a rise from far below the level to
    far above it has mass 1, spread over the steps that it takes. The gradient is the true one.

    Args:
        V: shape (T, n_trace) (mV).
        level, width: (mV).
    """
    logistic = jax.nn.sigmoid((V - level) / width)
    return jnp.maximum(jnp.diff(logistic, axis=0, append=logistic[-1:]), 0)


def potential_loss(settings: fitting.FitSettings) -> fitting.Loss:
    """The paper's: the mean squared error of the potentials."""
    return fitting.SQUARED_ERROR


def spike_loss(settings: fitting.FitSettings) -> fitting.Loss:
    """The van Rossum distance of soft spikes; the times of the model's spikes tell what is determined.

    A spike's time is that at which V, linear within the step of the crossing, is at the level: its derivative is
    -dV / (dV/dt). Its noise is at least that of rounding to a step, and the lag behind the recorded spikes if there are
    as many of them.
    """
    level, tau = settings.spike_level, settings.tau_rossum * u.ms

    def distance(output: Mapping[str, jax.Array], recording: Recording) -> jax.Array:
        return recordings.van_rossum_distance(
            soft_spikes(output["V"], level), recording.spikes, recording.dt * u.ms, tau
        )

    def spike_times(study: fitting.Study, box: Box, x: np.ndarray) -> Predictions:
        recording = study.recordings["fit"]
        _, spikes = study.free_run(box.parameters(x), recording.current)
        trace, step = np.nonzero(spikes.T)
        trace_data, step_data = np.nonzero(recording.spikes.T)

        def times(x):
            V = study.model(box.parameters(x), recording, 0.0)["V"]
            before, after = V[step, trace], V[step + 1, trace]
            return recording.dt * (step + (level - before) / jax.lax.stop_gradient(after - before))

        same = np.array_equal(trace, trace_data)
        target = recording.dt * (step_data + 0.5) if same else np.asarray(times(jnp.asarray(x)))
        return {"spike_times_ms": Prediction(times, target, recording.dt / 12**0.5)}, None

    return fitting.Loss(distance, "van Rossum distance of the spikes", spike_times)


# Another loss is a function of the settings here.
LOSSES: dict[str, Callable[[fitting.FitSettings], fitting.Loss]] = {"potential": potential_loss, "spike": spike_loss}


def make_study(
    settings: fitting.FitSettings,
    traces: Mapping[str, Recording],
    source: recordings.Source,
    known: Mapping[str, float] | None = None,
    seed: int = 0,
) -> fitting.Study:
    """The study of the cell.

    Args:
        traces: {"fit" or "validation": recording}; potentials that are missing are simulated at `known`.
        source: of the traces, with what is added to them.
        known: {name: value} of the cell behind the traces, and of the parameters that are not fitted; without it,
            these have the values of `utils.HH`.
        seed: of noise that is added.
    """
    constants = {name: value * RANGES[name].unit for name, value in (known or {}).items()}
    model = fitting.simulation(utils.HH, constants)
    free_run = make_free_run(model, source.dt, settings.spike_level)
    targets = recordings.make_targets(source, traces, free_run, constants, seed)
    targets["fit"] = recordings.every(targets["fit"], settings.n_point)
    if settings.fit_target == "spike":
        recordings.require_spikes(targets["fit"], settings.spike_level)
    bounds = fitting.select_bounds(settings.fit_parameters, RANGES, settings.bounds)
    loss = LOSSES[settings.fit_target](settings)
    return fitting.Study(model, loss, bounds, targets, free_run, known, settings.delta)


# ---- Main -----------------------------------------------------------------------------------------------------------


def known_parameters(source: recordings.Source) -> dict[str, float] | None:
    """Those behind the target: of the paper's cell, of the cell in data/, or unknown."""
    if source.target == "simulated":
        return PAPER_PARAMETERS | CONSTANTS
    if source.own:
        return None
    return json.loads((DATA / "parameters_hh.json").read_text())["parameters"] | CONSTANTS


def make_plan(args: argparse.Namespace) -> comparing.Plan:
    """The comparison that the arguments ask for."""
    as_paper = args.target == "simulated" and args.fit_target == "potential" and not (args.current or args.noise_std)
    n_start = PAPER_STARTS if args.protocol_budget == "paper" else args.n_sample
    paper = PAPER_RESULTS if as_paper else {}
    return runs.pick(comparing.Plan, args, n_start=n_start, names=args.fit_parameters, paper=paper)


def figure_2(study: fitting.Study, comparison: comparing.Comparison) -> plt.Figure:
    """Responses of the best fits by the paper's methods, under the currents at which the target spikes."""
    recording = study.recordings["fit"]
    responses = {method: V for method, V in comparison.V.items() if method in PAPER_RESULTS}
    spiking = np.flatnonzero(recording.spikes.any(0)) if recording.spikes.any() else np.arange(recording.V.shape[1])
    return comparing.plot_methods(recording, responses, spiking[:5])


@runs.command_line
def main(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    runs.use_plot_style()
    devices = runs.setup_jax(args.precision, args.devices)
    budget = args.protocol_budget if args.mode == "compare" else args.method
    name = f"{args.mode}_{args.target}_{args.fit_target}_{budget}_seed{args.seed}"
    run = runs.RunFolder(args, SCRIPT, name, may_change={"repeats", "gradient_cost"})
    noise_seed, fit_seed = (int(child.generate_state(1)[0]) for child in np.random.SeedSequence(args.seed).spawn(2))
    source = runs.pick(recordings.Source, args)
    traces = recordings.read_recordings(source, SHIPPED)
    study = make_study(runs.pick(fitting.FitSettings, args), traces, source, known_parameters(source), noise_seed)
    search, interrupted = runs.pick(fitting.Search, args, seed=fit_seed), False
    if args.mode == "compare":
        plan = make_plan(args)
        run.save_config(argv, devices)  # first: a comparison that is killed is resumed by it
        comparison = comparing.compare(study, plan, devices, run)
        interrupted = comparison.interrupted
        if not interrupted:
            comparing.save_comparison(run, study, plan, comparison)
            run.save("figure_2.png", figure_2(study, comparison))
            print(comparing.markdown_of(study, plan, comparison), end="")
    elif args.mode == "visualize":
        preview = fitting.visualize(study, search, devices)
        run.save_config(argv, devices)
        fitting.save_preview(run, study, preview)
        fitting.print_preview(study, preview)
    else:
        fit = fitting.fit(study, search, devices)
        run.save_config(argv, devices)
        fitting.save_fit(run, study, fit, args.seed)
        fitting.print_fit(study, fit)
        interrupted = fit.minimum.interrupted
    print(run.path)
    return 130 if interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
