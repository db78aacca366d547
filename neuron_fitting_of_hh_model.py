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
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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
import solvers
import spike_trains
import studies
import synchronisation
import utils
from comparing import PaperResult
from identifiability import Box, Parameters, Prediction, Predictions, Undetermined
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
# Table S3 (loss in mV^2, of 10 points of a trace); 20 starts of L-BFGS-B.
PAPER_STARTS, PAPER_POINTS = 20, 10
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
# Of a synchronised fit: of potentials by one alone, of spikes from where that ends; the first by default.
METHODS = {"potential": (solvers.GAUSS_NEWTON,), "spike": ("L-BFGS-B", "CMA"), "both": ("CMA", "L-BFGS-B")}
N_RUN, N_ITER, N_SAMPLE = 3, 75, 20  # of CMA, from where potentials lead: one in three ends in a minimum of its own
NEARER = 0.3  # times the first steps of CMA, in a last run from the best of these
LOW_SPIKE = 0.5  # of the height of recorded spikes above the level: below it, spikes of the model are said to be low
N_JUDGED = 10  # spikes at least, by which it is judged what is fitted
TARGETS = {
    "potential": "mean squared error",
    "spike": "van Rossum distance",
    "both": f"the latter, as a share of those to no spikes, + {V_WEIGHT:g} of the unexplained variance of V away from "
    "them",
}
DERIVATIVE_FREE = set(fitting.METHODS) - set(solvers.SOLVERS)
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
        f"synchronised for your potentials, where a trace has {SEVERAL} spikes or more after its first "
        f"{synchronisation.T_WARM:g} ms, and half of all spikes come after those, if --mode and --method allow it. By "
        f"{solvers.GAUSS_NEWTON}, if potentials are fitted; from where these lead, spikes are fitted by L-BFGS-B or "
        f"CMA (by default --fit_target spike by the first, both by the second, {N_RUN} times {N_ITER} rounds of "
        f"{N_SAMPLE}, and once more from the best)"
    )
    no_fit_target = (
        "; without this argument, potential; but where synchronised and then released, the model has other spikes than "
        "the recording, both follows, fitted to its first two thirds by spikes, and is kept if it predicts the spikes "
        f"of the last third, {N_JUDGED} or more, better by more than a standard error; not where --method is given"
    )
    add = parser.add_argument_group("spiking model").add_argument
    add("--objective", choices=OBJECTIVES, help=objective)
    add("--scheme", choices=SCHEMES, help=scheme)
    fit_arguments.add_fit_arguments(parser, RANGES, FITTED, TARGETS, no_fit_target)
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


def trains_of(
    settings: studies.FitSettings, spike_level: SpikeLevel, output: Mapping[str, jax.Array], recording: Recording
) -> tuple[jax.Array, jax.Array]:
    """Spike trains (T, n_trace) of model and data, where they are known.

    Those of the model are soft, or for a method without gradients as they are counted.
    """
    if settings.method in DERIVATIVE_FREE:
        model = spike_trains.detect_spikes(output["V"], spike_level.level, spike_level.rearm)
    else:
        model = soft_spikes(output["V"], spike_level.level)
    return model * recording.observed, recording.spikes * recording.observed


def spike_loss(settings: studies.FitSettings, spike_level: SpikeLevel) -> studies.Loss:
    """The van Rossum distance of the spikes.

    Soft spikes are those of a model that spikes: one that stays at the level has many small parts of them.
    The times of the model's spikes tell what is determined.

    A spike's time is that at which V, linear within the step of the crossing, is at the level: its derivative is
    -dV / (dV/dt). Its noise is at least that of rounding to a step, and the lag behind the recorded spikes. Where there
    are not as many of them, or they are further off, in root mean square, than spikes that count as one in scores
    (--delta), nothing is said of the parameters.
    """
    level, tau = spike_level.level, settings.tau_rossum * u.ms

    def distance(output: Mapping[str, jax.Array], recording: Recording) -> jax.Array:
        trains = trains_of(settings, spike_level, output, recording)
        return spike_trains.van_rossum_distance(*trains, recording.dt * u.ms, tau)

    def spike_times(study: studies.Study, box: Box, x: np.ndarray) -> Predictions:
        recording = study.recordings["fit"]
        _, spikes = study.free_run(box.parameters(x), recording)
        observed = np.asarray(recording.observed)
        trace, step = np.nonzero((spikes * observed).T)
        trace_data, step_data = np.nonzero((recording.spikes * observed).T)
        if not np.array_equal(trace, trace_data):
            counts = f"{len(step)} spikes of the model, {len(step_data)} of the recording"
            raise Undetermined(f"this model does not describe these data: {counts}")
        if (off := recording.dt * np.sqrt(np.mean((step - step_data) ** 2))) > settings.delta:
            far = f"its spikes are {off:.3g} ms off in root mean square, more than --delta, {settings.delta:g} ms"
            raise Undetermined(f"this model does not describe these data: {far}")
        # A spike that is late makes those after it late: in the order of samples whose errors may depend on each other.
        n_spike = np.bincount(trace, minlength=observed.shape[1])
        counts = np.arange(n_spike.max())[:, None] < n_spike
        order = np.lexsort((trace, np.concatenate([np.arange(n) for n in n_spike])))
        trace, step, step_data = trace[order], step[order], step_data[order]

        def times(x, recording, steps=None):
            V = study.model(box.parameters(x) | studies.stepped(study, steps), recording, 0.0)["V"]
            before, after = V[step, trace], V[step + 1, trace]
            return recording.dt * (step + (level - before) / jax.lax.stop_gradient(after - before))

        more = dict(data=(recording,), held=tuple(study.held), counts=counts)
        target, noise = recording.dt * (step_data + 0.5), recording.dt / 12**0.5
        return {"spike_times_ms": Prediction(times, target, noise, **more)}, None

    return studies.Loss(distance, "van Rossum distance of the spikes", spike_times)


def spike_and_potential_loss(settings: studies.FitSettings, spike_level: SpikeLevel) -> studies.Loss:
    """Spikes, and the potentials away from those recorded: for a cell that the model is not, and that cannot have both.

    D(m, d) / (D(m, 0) + D(d, 0)) + V_WEIGHT mean (V - V_d)^2 / var V_d, with the distance D of `spike_loss`, the spikes
    m of the model and d of the data, none as 0, and the potentials that count. The first term is 1 minus twice the
    share of what both have: a spike that is early or late costs less than two. By D alone a silent cell is better than
    one that has less than half of its spikes in their places; and potentials between them may be anywhere.
    """

    def loss(output: Mapping[str, jax.Array], recording: Recording) -> jax.Array:
        model, data = trains_of(settings, spike_level, output, recording)
        of = functools.partial(spike_trains.van_rossum_distance, dt=recording.dt * u.ms, tau=settings.tau_rossum * u.ms)
        share = of(model, data) / (of(model, 0 * data) + of(data, 0 * data))
        n_sample = jnp.sum(recording.mask)
        deviations = recording.mask * (recording.V - jnp.sum(recording.mask * recording.V) / n_sample)
        unexplained = jnp.sum(studies.potential_errors(output, recording) ** 2) / jnp.sum(deviations**2)
        return share + V_WEIGHT * unexplained

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
    studies.require_effect(values, settings.fit_parameters, {"tau_max": "gM"})
    others = {name: x for name, x in values.items() if name not in settings.fit_parameters}
    cell, dt = functools.partial(utils.HH, scheme=scheme), data.recordings["fit"].dt
    free_run = make_free_run(cell, known or values, source.dt_sim, data.spike_level)
    targets = recordings.make_targets(source, data, free_run, {}, seed)
    half = dt / studies.substeps(dt, source.dt_sim) / 2
    targets["fit"] = recordings.every(targets["fit"], settings.n_point)
    if settings.fit_target != "potential":
        recordings.require_spikes(targets["fit"], data.spike_level)
    if settings.fit_target != "spike":
        recordings.require_potentials(targets["fit"])
    away = recordings.without_spikes(targets["fit"], *scoring.T_AROUND) if settings.fit_target == "both" else None
    if away is not None:
        require_quiet(away)
    study = studies.Study(
        model=studies.simulation(cell, with_units(values), source.dt_sim),
        loss=LOSSES[settings.fit_target](settings, data.spike_level),
        bounds=studies.select_bounds(settings.fit_parameters, RANGES, settings.bounds),
        recordings=targets,
        free_run=make_free_run(cell, values, source.dt_sim, data.spike_level),
        constants=others,
        held={name: x for name, x in with_units(others).items() if u.get_mantissa(studies.step_of(x))},
        known=known,
        delta=settings.delta,
        finer=studies.simulation(cell, with_units(values), half) if source.own and scheme == "staggered" else None,
        windows=away,
    )
    if objective == "simulation":
        return study
    return synchronisation.synchronised(study, cell, with_units(values), source.dt_sim, data.spike_level)


def require_quiet(away: Recording) -> None:
    """Raise `BadInput` where no potential is left of a recording without its spikes, for a fit of both."""
    if not np.any(away.mask):
        near = "all potentials less than {:g} ms before or {:g} ms after a spike".format(*scoring.T_AROUND)
        raise BadInput(f"argument --fit_target: found both, and {near}, expected spike")


def objective_of(args: argparse.Namespace, data: Data) -> str:
    """The objective that the arguments ask for, or else the one that finds the cell."""
    recording, fit_target = data.recordings["fit"], args.fit_target or "potential"
    late = recording if recording.V is None else synchronisation.counted_in(recording)
    methods = (None, *METHODS[fit_target]) if fit_target in METHODS else ()
    if args.objective == "synchronised" and not methods:
        raise BadInput(f"argument --objective: found synchronised with --fit_target {fit_target}, expected simulation")
    if args.objective == "synchronised" and args.method not in methods:
        expected = f"expected {' or '.join(methods[1:])} with --fit_target {fit_target}"
        raise BadInput(f"argument --method: found {args.method} with --objective synchronised, {expected}")
    if args.objective == "synchronised" and args.mode == "compare":
        raise BadInput("argument --objective: found synchronised with --mode compare, expected simulation, or one fit")
    if args.objective == "synchronised" and not np.any(late.mask):
        after = f"after the first {synchronisation.T_WARM:g} ms of a sweep"
        raise BadInput(f"argument --objective: found synchronised without potentials {after}, expected simulation")
    if args.objective or args.method not in methods or args.mode != "fit":
        return args.objective or "simulation"
    own = (args.recording or args.voltage) and recording.spikes is not None and np.any(late.mask)
    n_spikes = (late.spikes * late.observed).sum(0) if own else np.zeros(1)
    several = n_spikes.max() >= SEVERAL and synchronisation.half_count(n_spikes.sum(), recording)
    return "synchronised" if several else "simulation"


def make_free_run(
    cell: Callable[..., utils.HH], values: Mapping[str, float], dt_sim: float, level: SpikeLevel
) -> recordings.FreeRun:
    """(parameters, recording) -> V (mV) and spikes; those that are not among the parameters have these values."""
    return studies.free_run_of(studies.simulation(cell, with_units(values), dt_sim), level)


def with_units(values: Mapping[str, float]) -> dict[str, u.Quantity]:
    """{name: value with unit}."""
    return {name: value * RANGES[name].unit for name, value in values.items()}


# ---- Fit of a recording that drives the cell ------------------------------------------------------------------------


class Synchronised(NamedTuple):
    """A fit by a recording that drives the cell: the study in which it ended, and numbers for its report besides.

    `driven` is the study of the driven cell and `found` its minimum, to which potentials led.
    """

    study: studies.Study
    fit: fitting.Fit
    extra: dict[str, Any]
    driven: studies.Study
    found: fitting.Minimum


def synchronised_fit(
    args: argparse.Namespace,
    study: studies.Study,
    make: Callable[[str, str, str], studies.Study],
    search: fitting.Search,
    devices: Sequence[jax.Device],
    journal: runs.Journal,
    level: SpikeLevel,
) -> Synchronised:
    """Fit potentials, driven by the recording, and from where these lead what --fit_target asks for.

    Where it asks for nothing and the released cell has other spikes than the recording, `both` are fitted to what
    precedes the last third of its spikes, and kept where the cell predicts that third better by them, by more than a
    standard error.

    Args:
        study: of what --fit_target asks for; of potentials and driven, where these or nothing.
        make: (--fit_target, --method, --objective) -> the study.
        search: starts, seed, and rounds of CMA.
        level: of the spikes.

    Raises:
        KeyboardInterrupt: before potentials led anywhere, where --fit_target asks for more.
    """
    driven = make("potential", solvers.GAUSS_NEWTON, "synchronised") if search.method in METHODS["both"] else study
    if args.fit_target == "both":
        require_quiet(synchronisation.counted_in(study.windows))
    problem = fitting.FitProblem(driven, args.n_sample, devices, journal)
    found = fitting.minimise(problem, dataclasses.replace(search, method=solvers.GAUSS_NEWTON))
    target, n_early = args.fit_target, steps_to_judge(driven.recordings["fit"])
    same = found.released and synchronisation.same_spikes(found.released)
    if target == "potential" or (not target and (args.method or found.interrupted or not n_early or same)):
        fit = fitting.conclude(problem, found, search.seed)
        return Synchronised(driven, fit, {driven.annealing.label: fit.minimum.level}, driven, found)
    if found.interrupted:
        journal.save()
        raise KeyboardInterrupt
    print(f"driven, with coupling {found.level:g} per ms, potentials led to {found.released.text};", end=" ")
    at_0 = f"with coupling {found.stages[-1].level:g}, to {found.stages[-1].released.text}"
    print(at_0, *reports.lines_of_left_out(found), sep="\n")
    method = search.method if target else METHODS["both"][0]
    n_sample, n_iter = N_SAMPLE if method == "CMA" else args.n_sample, args.n_iter or N_ITER
    budget = dict(method=method, n_sample=n_sample, n_iter=n_iter)
    search = fitting.after(problem, found, dataclasses.replace(search, **budget))
    if target == "both":
        study = synchronisation.in_windows(study, driven, study.windows)
    if target:
        by_spikes = fitting.FitProblem(study, n_sample, devices, journal)
        fit = fitting.conclude(by_spikes, nearer(by_spikes, search, minimise_spikes(by_spikes, search)), search.seed)
        return Synchronised(study, fitting.with_cost_of(problem, fit), dict(driven=found.released), driven, found)
    study = make("both", method, "simulation")
    parts = recordings.first_part(study.windows, n_early), study.windows
    studies_of = (synchronisation.in_windows(study, driven, part) for part in parts)
    early, whole = (fitting.FitProblem(of_part, n_sample, devices, journal) for of_part in studies_of)
    late = recordings.counted_from(driven.recordings["fit"], n_early)
    judge = synchronisation.releaser(driven.model, late, level, study.delta)
    return judged_fit(problem, found, BySpikes(early, whole, search), judge)


def steps_to_judge(recording: Recording) -> int:
    """Samples before the last third of the spikes that count; 0 where that has fewer than N_JUDGED, or `both` nothing.

    Nothing, where no potential that precedes them is away from spikes.
    """
    n_early = recordings.steps_before(synchronisation.counted_in(recording), N_JUDGED)
    away = recordings.without_spikes(recording, *scoring.T_AROUND)
    early = synchronisation.counted_in(recordings.first_part(away, n_early))
    return n_early if np.any(early.mask) else 0


def minimise_spikes(problem: fitting.FitProblem, search: fitting.Search) -> fitting.Minimum:
    """The minimum of a loss of spikes; by CMA the best of N_RUN runs."""
    if search.method != "CMA":
        return fitting.minimise(problem, search)
    for seed in seeds_of(search)[:N_RUN]:
        found = fitting.minimise(problem, dataclasses.replace(search, seed=seed))
        if found.interrupted:
            break
    return found


def nearer(problem: fitting.FitProblem, search: fitting.Search, found: fitting.Minimum) -> fitting.Minimum:
    """What `minimise_spikes` has found, by CMA after one more run from there by smaller steps."""
    if search.method != "CMA" or found.interrupted:
        return found
    smaller = dict(seed=seeds_of(search)[-1], x0=found.best.x[None], steps=NEARER * search.steps)
    last = fitting.minimise(problem, dataclasses.replace(search, **smaller))
    return last if math.isfinite(last.best.loss) else dataclasses.replace(found, interrupted=True)


def seeds_of(search: fitting.Search) -> list[int]:
    """Of the N_RUN runs of CMA, and of the one that goes on from the best of them."""
    return np.random.SeedSequence(search.seed).generate_state(N_RUN + 1).tolist()


def better_target(judged: Mapping[str, studies.Released]) -> str:
    """Which of "potential" and "both" predicts the judge's spikes better, and tell: "both" by more than an error.

    The standard error of a share p of n spikes is (p (1 - p) / n)^(1/2).
    """
    by_potential, by_both = (judged[name].gamma or 0.0 for name in ("potential", "both"))
    share = min(max((by_potential + by_both) / 2, 0.0), 1.0)
    error = math.sqrt(share * (1 - share) / max(judged["both"].n_spikes, 1))
    target = "both" if by_both > by_potential + error else "potential"
    texts = [f"{name} {released.text}" for name, released in judged.items()]
    kept = f"(the standard error of either is {error:.2f}): kept is what {target} gives"
    print(f"of the last third of the spikes: by {'; by '.join(texts)} {kept}")
    return target


class BySpikes(NamedTuple):
    """Spikes and potentials as problems: of what precedes the judge's spikes, and of all; and how they are solved."""

    early: fitting.FitProblem
    whole: fitting.FitProblem
    search: fitting.Search


def judged_fit(
    problem: fitting.FitProblem,
    found: fitting.Minimum,
    by_spikes: BySpikes,
    judge: Callable[[Parameters], studies.Released],
) -> Synchronised:
    """The fit of spikes and potentials, if what it finds predicts the judge's spikes better than what potentials found.

    What is kept goes on from there with all that is fitted, the judge's spikes among it. Where Ctrl-C ends the search
    of `both`, nothing is judged and that of potentials is kept.

    Args:
        problem, found: of potentials.
        judge: (parameters) -> what the released cell does where it was not fitted to spikes.
    """
    early, whole, search = by_spikes
    last, extra = minimise_spikes(early, search), dict(driven=found.released, fit_target="potential")
    if not last.interrupted:
        judged = {name: judge(problem.box.parameters(x.best.x)) for name, x in (("potential", found), ("both", last))}
        extra |= dict(judged=judged, fit_target=better_target(judged))
    if extra["fit_target"] == "both":
        whole.reset()  # its time begins here
        nearest = nearer(whole, search, last)
        kept, other = (whole, early) if whole.history else (early, whole)  # after Ctrl-C there may be nothing of it
        fit, study, others = fitting.conclude(kept, nearest, search.seed), kept.study, (other, problem)
    else:
        fit = fitting.conclude(problem, dataclasses.replace(found, interrupted=last.interrupted), search.seed)
        extra |= {problem.study.annealing.label: fit.minimum.level}
        study, others = problem.study, (early,)
    for other in others:
        fit = fitting.with_cost_of(other, fit)
    return Synchronised(study, fit, extra, problem.study, found)


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
    own = args.current or args.recording or args.noise_std or args.constants or args.bounds or args.scheme
    own = own or list(args.fit_parameters) != list(FITTED) or args.n_point != PAPER_POINTS
    as_paper = args.target == "simulated" and args.fit_target in (None, "potential") and not own
    n_start = PAPER_STARTS if args.protocol_budget == "paper" else args.n_sample
    paper = PAPER_RESULTS if as_paper else {}
    n_iter = args.n_iter or comparing.Plan.n_iter
    return runs.pick(comparing.Plan, args, n_start=n_start, n_iter=n_iter, names=args.fit_parameters, paper=paper)


def figure_2(study: studies.Study, comparison: comparing.Comparison) -> plt.Figure:
    """Responses of the best fits by the paper's methods, under the currents at which the target spikes."""
    recording = study.recordings["fit"]
    responses = {method: V for method, V in comparison.V.items() if method in PAPER_RESULTS}
    spiking = np.flatnonzero(recording.spikes.any(0)) if recording.spikes.any() else np.arange(recording.V.shape[1])
    return comparing.plot_methods(recording, responses, spiking[:5])


def spike_peaks(recording: Recording, fit: fitting.Fit) -> dict[str, float]:
    """Where spikes of the model and those recorded have their peaks (mV), medians, if both have any."""
    if "fit" not in fit.predictions:
        return {}
    model, dt = fit.predictions["fit"], recording.dt
    peaks = dict(
        spike_peak_mV=spike_trains.peak(model.V, model.spikes * recording.observed, dt),
        spike_peak_recorded_mV=spike_trains.peak(recording.V, recording.spikes * recording.observed, dt),
    )
    return peaks if np.isfinite(list(peaks.values())).all() else {}


def lines_of_low_spikes(peaks: Mapping[str, Any], spike_level: SpikeLevel) -> list[str]:
    """What is printed where spikes are counted at a level that hardly cuts those of the model."""
    if "spike_peak_mV" not in peaks:
        return []
    model, recorded, level = peaks["spike_peak_mV"], peaks["spike_peak_recorded_mV"], spike_level.level
    if model - level >= LOW_SPIKE * (recorded - level):
        return []
    how = f"those recorded at {recorded:.3g}: the level that counts them, {level:g} mV (--spike_level), says which"
    return [f"WARNING: spikes of the model peak at {model:.3g} mV, {how} there are"]


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
    objective, fit_target = objective_of(args, data), args.fit_target or "potential"
    by_squares = objective == "synchronised" and fit_target == "potential"
    method = args.method or (METHODS[fit_target][0] if objective == "synchronised" else "L-BFGS-B")
    budget = args.protocol_budget if args.mode == "compare" else method
    name = f"{args.mode}_{args.target}_{fit_target}_{budget}_seed{args.seed}"
    run = runs.RunFolder(args, SCRIPT, name, {"repeats"}, data.checksum)

    def make(fit_target, method, objective):
        settings = runs.pick(studies.FitSettings, args, fit_target=fit_target, method=method)
        return make_study(settings, data, source, known_parameters(source), scheme, objective, noise_seed)

    study = make(fit_target, method if args.mode == "fit" else None, "synchronised" if by_squares else "simulation")
    print(*data.report, sep="\n", end="\n" * bool(data.report))
    n_iter, interrupted = args.n_iter or fitting.Search.n_iter, False
    search = runs.pick(fitting.Search, args, seed=fit_seed, method=method, n_iter=n_iter)
    if args.mode == "compare":
        plan = make_plan(args)
        run.save_config(argv, devices)  # first: a comparison that is killed is resumed by it
        comparison = comparing.compare(study, plan, devices, run)
        interrupted = comparison.interrupted
        if not interrupted:
            print(comparing.markdown_of(study, plan, comparison), end="")
            comparing.save_comparison(run, study, plan, comparison, data)
            run.save("figure_2.png", figure_2(study, comparison))
    elif args.mode == "visualize":
        preview = reports.visualize(study, search, devices)
        reports.print_preview(study, preview)
        run.save_config(argv, devices)
        reports.save_preview(run, study, data, preview)
    else:
        journal = runs.Journal(run, functools.partial(run.save_config, argv, devices))
        extra = dict(script=SCRIPT, scheme=scheme, objective=objective, method=method, fit_target=fit_target)
        coupling = None
        if objective == "synchronised":
            ended = synchronised_fit(args, study, make, search, devices, journal, data.spike_level)
            study, fit, extra = ended.study, ended.fit, extra | ended.extra
            extra |= reports.release_of(ended.driven, ended.found)
            coupling = reports.plot_stages(ended.driven, ended.found) if ended.found.stages else None
            extra |= spike_peaks(study.recordings["fit"], fit)
        else:
            fit = fitting.fit(study, search, devices, journal)
        reports.print_fit(study, fit, extra)
        for line in lines_of_low_spikes(extra, data.spike_level):
            print(line)
        run.save_config(argv, devices)
        reports.save_fit(run, study, data, fit, extra)
        if coupling:
            run.save("coupling.png", coupling)
        if not fit.minimum.interrupted:
            journal.discard()
        interrupted = fit.minimum.interrupted
    print(run.path)
    return 130 if interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
