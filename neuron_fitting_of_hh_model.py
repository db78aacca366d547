"""Fit a Hodgkin-Huxley cell to recorded membrane potentials or spikes.

Four parameters of a Traub-type cell are fitted: the leak, sodium and potassium conductances gL, gNa, gK (uS) and the
shift V_T of the rates (mV), by gradients of the simulation (from many starts) or by derivative-free methods; an M
current (gM, tau_max), which adapts, and a temperature factor phi of all rates are there to be fitted too.
Without arguments the cell is fitted to the traces in data/ and checked on other currents. A recording of your own is
read as it is (ABF, NWB, IBW, NPZ, CSV and others); the model starts where it starts, and a part of it is held out.
"""

import argparse
import dataclasses
import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import runs
from runs import BadInput

import brainunit as u
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.typing import ArrayLike

import comparing
import fit_arguments
import fitting
import recordings
import reports
import scoring
import spike_trains
import studies
import synchronisation
import utils
from comparing import PaperResult
from identifiability import Box, Prediction, Predictions, Undetermined
from reading import Files
from recordings import Data, Recording
from spike_trains import SpikeLevel

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
    "gM": u.Quantity([0.0, 0.2], unit=u.uS),
    "tau_max": u.Quantity([20.0, 2000.0], unit=u.ms),
    "phi": u.Quantity([0.3, 5.0], unit=u.UNITLESS),
    "R_s": u.Quantity([-20.0, 40.0], unit=u.Mohm),
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
CONSTANTS = {"EL": -65.0, "ENa": 50.0, "EK": -90.0, "C": 0.2, "gM": 0.0, "tau_max": 1000.0, "phi": 1.0, "R_s": 0.0}
# Those of `utils.HH`: of your recordings, unless they are fitted or given.
DEFAULTS = {"gL": 0.01, "gNa": 20.0, "gK": 6.0, "V_T": -60.0, **CONSTANTS}
PAPER_PARAMETERS = {"gL": 0.0083637, "gNa": 24.6977, "gK": 5.8149, "V_T": -55.3109}
SHIPPED = {
    name: Files(
        current=[DATA / f"input_traces_hh{suffix}.csv"], voltage=[DATA / f"output_traces_hh{suffix}.csv"], dt=0.01
    )
    for name, suffix in (("fit", ""), ("validation", "_validation"))
}
SCHEMES = ("exponential_euler", "staggered")
V_WEIGHT = 0.3  # of potentials beside spikes
OBJECTIVES = ("synchronised", "simulation")
# Of a synchronised fit: of potentials by one alone, of spikes from where that ends.
OF_SPIKES = (None, "L-BFGS-B", "CMA")
METHODS = {"potential": (None, fitting.GAUSS_NEWTON), "spike": OF_SPIKES, "both": OF_SPIKES}
TARGETS = {
    "potential": "mean squared error",
    "spike": "van Rossum distance",
    "both": f"the latter, of no spikes 1, + {V_WEIGHT:g} of the variance of V, away from spikes, that is unexplained",
}
DERIVATIVE_FREE = set(fitting.METHODS) - set(fitting.SOLVERS)
SEVERAL = 3  # spikes of a trace, with which the plain loss finds nothing


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    examples = ("--noise_std 1 --seed 3", "--recording data/recording.nwb --sweeps 5:16 --t_stop 160 --mode visualize")
    parser = runs.Parser(SCRIPT, __doc__, examples)
    scheme = (
        "scheme of the simulation: of first order, as in the paper, or of second; without this argument, staggered for "
        "your files and exponential_euler for all others"
    )
    objective = (
        "synchronised: the recording drives the model while potentials are fitted, and lets go of it in stages, from "
        "coupling 10 per ms to 0; simulation: the paper's loss, of the model that runs freely; without this argument, "
        f"synchronised for your potentials, where a trace has {SEVERAL} spikes or more. By {fitting.GAUSS_NEWTON}, if "
        "potentials are fitted; of spikes, the last stage is by L-BFGS-B or CMA, from where potentials lead"
    )
    add = parser.add_argument_group("spiking model").add_argument
    add("--objective", choices=OBJECTIVES, help=objective)
    add("--scheme", choices=SCHEMES, help=scheme)
    fit_arguments.add_fit_arguments(parser, RANGES, FITTED, TARGETS)
    comparing.add_compare_arguments(parser)
    recordings.add_data_arguments(parser)
    runs.add_run_arguments(parser)
    parser.set_defaults(dt_sim=0.01, method=None)
    return fit_arguments.parse_fit_arguments(parser, argv, shipped=True)


# ---- Model and loss -------------------------------------------------------------------------------------------------


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


def potential_loss(settings: studies.FitSettings, spike_level: SpikeLevel) -> studies.Loss:
    """The paper's: the mean squared error of the potentials."""
    return studies.SQUARED_ERROR


def spike_loss(settings: studies.FitSettings, spike_level: SpikeLevel) -> studies.Loss:
    """The van Rossum distance of soft spikes, or for a method without gradients of spikes as they are counted.

    Soft spikes are those of a model that spikes: one that stays at the level has many small parts of them.
    The times of the model's spikes tell what is determined.

    A spike's time is that at which V, linear within the step of the crossing, is at the level: its derivative is
    -dV / (dV/dt). Its noise is at least that of rounding to a step, and the lag behind the recorded spikes. Where there
    are not as many of them, nothing is said of the parameters.
    """
    level, tau = spike_level.level, settings.tau_rossum * u.ms

    def distance(output: Mapping[str, jax.Array], recording: Recording) -> jax.Array:
        if settings.method in DERIVATIVE_FREE:
            model = spike_trains.detect_spikes(output["V"], level, spike_level.rearm) * recording.observed
        else:
            model = soft_spikes(output["V"], level) * recording.observed
        return spike_trains.van_rossum_distance(model, recording.spikes * recording.observed, recording.dt * u.ms, tau)

    def spike_times(study: studies.Study, box: Box, x: np.ndarray) -> Predictions:
        recording = study.recordings["fit"]
        _, spikes = study.free_run(box.parameters(x), recording)
        observed = np.asarray(recording.observed)
        trace, step = np.nonzero((spikes * observed).T)
        trace_data, step_data = np.nonzero((recording.spikes * observed).T)
        if not np.array_equal(trace, trace_data):
            counts = f"{len(step)} spikes of the model, {len(step_data)} of the recording"
            raise Undetermined(f"this model does not describe these data: {counts}")

        def times(x):
            V = study.model(box.parameters(x), recording, 0.0)["V"]
            before, after = V[step, trace], V[step + 1, trace]
            return recording.dt * (step + (level - before) / jax.lax.stop_gradient(after - before))

        target = recording.dt * (step_data + 0.5)
        return {"spike_times_ms": Prediction(times, target, recording.dt / 12**0.5)}, None

    return studies.Loss(distance, "van Rossum distance of the spikes", spike_times)


def spike_and_potential_loss(settings: studies.FitSettings, spike_level: SpikeLevel) -> studies.Loss:
    """Spikes, and the potentials away from those recorded: for a cell that the model is not, and that cannot have both.

    D(model, data) / D(no spikes, data) + V_WEIGHT mean (V - V_data)^2 / var V_data, with the distance D of `spike_loss`
    and the potentials that count. By the distance alone, potentials between spikes may be anywhere.
    """
    distance = spike_loss(settings, spike_level).function

    def loss(output: Mapping[str, jax.Array], recording: Recording) -> jax.Array:
        spikes = recording.spikes * recording.observed
        silent = spike_trains.van_rossum_distance(0 * spikes, spikes, recording.dt * u.ms, settings.tau_rossum * u.ms)
        n_sample = jnp.sum(recording.mask)
        deviations = recording.mask * (recording.V - jnp.sum(recording.mask * recording.V) / n_sample)
        unexplained = jnp.sum(studies.potential_errors(output, recording) ** 2) / jnp.sum(deviations**2)
        return distance(output, recording) / silent + V_WEIGHT * unexplained

    def nothing(study: studies.Study, box: Box, x: np.ndarray) -> Predictions:
        raise Undetermined("--fit_target both is a compromise, not an estimate")

    return studies.Loss(loss, f"spike distance + {V_WEIGHT:g} variance of V, shares", nothing)


# Another loss is a function of the settings here.
LOSSES: dict[str, Callable[[studies.FitSettings, SpikeLevel], studies.Loss]] = {
    "potential": potential_loss,
    "spike": spike_loss,
    "both": spike_and_potential_loss,
}


def make_study(
    settings: studies.FitSettings,
    data: Data,
    source: recordings.Source,
    known: Mapping[str, float] | None = None,
    scheme: str = "exponential_euler",
    objective: str = "simulation",
    seed: int = 0,
) -> studies.Study:
    """The study of the cell.

    Args:
        data: recordings; potentials that are missing are simulated at `known`.
        source: of the data, with what is added to them.
        known: {name: value} of the cell behind the traces, and of the parameters that are not fitted; without it,
            these are DEFAULTS.
        scheme: as in `utils.HH`.
        objective: one of OBJECTIVES.
        seed: of noise that is added.
    """
    values = studies.select_constants(known or DEFAULTS, settings.constants, settings.fit_parameters)
    cell, dt = functools.partial(utils.HH, scheme=scheme), data.recordings["fit"].dt
    free_run = make_free_run(cell, known or values, source.dt_sim, data.spike_level)
    targets = recordings.make_targets(source, data, free_run, {}, seed)
    half = dt / studies.substeps(dt, source.dt_sim) / 2
    targets["fit"] = recordings.every(targets["fit"], settings.n_point)
    if settings.fit_target != "potential":
        recordings.require_spikes(targets["fit"], data.spike_level)
    if settings.fit_target != "spike":
        recordings.require_potentials(targets["fit"])
    if settings.fit_target == "both":
        targets["fit"] = recordings.without_spikes(targets["fit"], *scoring.T_AROUND)
    study = studies.Study(
        model=studies.simulation(cell, with_units(values), source.dt_sim),
        loss=LOSSES[settings.fit_target](settings, data.spike_level),
        bounds=studies.select_bounds(settings.fit_parameters, RANGES, settings.bounds),
        recordings=targets,
        free_run=make_free_run(cell, values, source.dt_sim, data.spike_level),
        constants={name: value for name, value in values.items() if name not in settings.fit_parameters},
        known=known,
        delta=settings.delta,
        finer=studies.simulation(cell, with_units(values), half) if source.own and scheme == "staggered" else None,
    )
    if objective == "simulation":
        return study
    return synchronisation.synchronised(study, cell, with_units(values), source.dt_sim, data.spike_level)


def objective_of(args: argparse.Namespace, data: Data) -> str:
    """The objective that the arguments ask for, or else the one that finds the cell."""
    recording, methods = data.recordings["fit"], METHODS[args.fit_target]
    if args.objective == "synchronised" and args.method not in methods:
        expected = f"expected {' or '.join(method for method in methods if method)} with --fit_target {args.fit_target}"
        raise BadInput(f"argument --method: found {args.method} with --objective synchronised, {expected}")
    if args.objective == "synchronised" and not np.any(recording.mask):
        raise BadInput("argument --objective: found synchronised without potentials, expected simulation")
    if args.objective or args.method not in methods or args.mode != "fit":
        return args.objective or "simulation"
    own = (args.recording or args.voltage) and recording.spikes is not None and np.any(recording.mask)
    several = own and (recording.spikes * recording.observed).sum(0).max() >= SEVERAL
    return "synchronised" if several else "simulation"


def make_free_run(
    cell: Callable[..., utils.HH], values: Mapping[str, float], dt_sim: float, level: SpikeLevel
) -> recordings.FreeRun:
    """(parameters, recording) -> V (mV) and spikes; those that are not among the parameters have these values."""
    return studies.free_run_of(studies.simulation(cell, with_units(values), dt_sim), level)


def with_units(values: Mapping[str, float]) -> dict[str, u.Quantity]:
    """{name: value with unit}."""
    return {name: value * RANGES[name].unit for name, value in values.items()}


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
    own = args.current or args.recording or args.noise_std or args.constants
    as_paper = args.target == "simulated" and args.fit_target == "potential" and not own
    n_start = PAPER_STARTS if args.protocol_budget == "paper" else args.n_sample
    paper = PAPER_RESULTS if as_paper else {}
    return runs.pick(comparing.Plan, args, n_start=n_start, names=args.fit_parameters, paper=paper)


def figure_2(study: studies.Study, comparison: comparing.Comparison) -> plt.Figure:
    """Responses of the best fits by the paper's methods, under the currents at which the target spikes."""
    recording = study.recordings["fit"]
    responses = {method: V for method, V in comparison.V.items() if method in PAPER_RESULTS}
    spiking = np.flatnonzero(recording.spikes.any(0)) if recording.spikes.any() else np.arange(recording.V.shape[1])
    return comparing.plot_methods(recording, responses, spiking[:5])


def responder(result: Mapping[str, Any], source: recordings.Source, seed: int) -> reports.Responder:
    """The cell that a fit has found, by its result.json."""
    cell, values = functools.partial(utils.HH, scheme=result["scheme"]), result["constants"] | result["parameters"]
    free_run = make_free_run(cell, values, source.dt_sim, SpikeLevel(**result["spike_level"]))
    return reports.Responder(functools.partial(free_run, {}))


@runs.command_line
def main(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    devices = runs.setup(args, SCRIPT, argv)
    if args.load:
        print(reports.predict(args, argv, devices, SCRIPT, responder).path)
        return 0
    noise_seed, fit_seed = (int(child.generate_state(1)[0]) for child in np.random.SeedSequence(args.seed).spawn(2))
    source = recordings.source_of(args)
    data = recordings.read_data(source, SHIPPED)
    scheme = args.scheme or ("staggered" if source.own else "exponential_euler")
    settings = runs.pick(studies.FitSettings, args, method=args.method if args.mode == "fit" else None)
    objective = objective_of(args, data)
    by_squares = objective == "synchronised" and args.fit_target == "potential"
    method = args.method or (fitting.GAUSS_NEWTON if by_squares else "L-BFGS-B")
    budget = args.protocol_budget if args.mode == "compare" else method
    name = f"{args.mode}_{args.target}_{args.fit_target}_{budget}_seed{args.seed}"
    run = runs.RunFolder(args, SCRIPT, name, may_change={"repeats", "gradient_cost"})
    source_of_study = data, source, known_parameters(source), scheme
    study = make_study(settings, *source_of_study, objective if by_squares else "simulation", noise_seed)
    print(*data.report, sep="\n", end="\n" * bool(data.report))
    search, interrupted = runs.pick(fitting.Search, args, seed=fit_seed, method=method), False
    if args.mode == "compare":
        plan = make_plan(args)
        run.save_config(argv, devices)  # first: a comparison that is killed is resumed by it
        comparison = comparing.compare(study, plan, devices, run)
        interrupted = comparison.interrupted
        if not interrupted:
            print(comparing.markdown_of(study, plan, comparison), end="")
            comparing.save_comparison(run, study, plan, comparison)
            run.save("figure_2.png", figure_2(study, comparison))
    elif args.mode == "visualize":
        preview = reports.visualize(study, search, devices)
        reports.print_preview(study, preview)
        run.save_config(argv, devices)
        reports.save_preview(run, study, data, preview)
    else:
        journal = runs.Journal(run, functools.partial(run.save_config, argv, devices))
        extra = dict(script=SCRIPT, scheme=scheme, objective=objective)
        if objective == "synchronised" and not by_squares:
            potentials = dataclasses.replace(settings, fit_target="potential")
            driven = make_study(potentials, *source_of_study, objective, noise_seed)
            search, found = fitting.after(fitting.FitProblem(driven, search.n_sample, devices, journal), search)
            print(f"driven, with coupling {found.level:g} per ms, potentials led to {found.released.text}")
            extra |= dict(driven=found.released)
        fit = fitting.fit(study, search, devices, journal)
        extra |= {study.annealing.label: fit.minimum.level} if study.annealing else {}
        reports.print_fit(study, fit, extra)
        run.save_config(argv, devices)
        reports.save_fit(run, study, data, fit, extra)
        if not fit.minimum.interrupted:
            journal.discard()
        interrupted = fit.minimum.interrupted
    print(run.path)
    return 130 if interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
