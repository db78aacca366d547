"""What is saved, printed and drawn of a fit, of a look before it, and of a prediction after it."""

import argparse
import dataclasses
import itertools
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import runs
from runs import BadInput

import brainunit as u
import jax
import matplotlib.pyplot as plt
import numpy as np

import recordings
import scoring
from fitting import Fit, FitProblem, Minimum, Round, Search, random_starts
from identifiability import Box, plot_identifiability
from recordings import Data, Recording
from spike_trains import SpikeLevel
from studies import SQUARED_ERROR, STEPS_OF_ONE, Study, n_traces, unit_name

T_LOOK = 1000.0  # ms of a recording that a look at it shows beside models
T_SETTLE = 1000.0  # ms for which a model is held at the first current before one that it has not been fitted to

# ---- A fit ----------------------------------------------------------------------------------------------------------


def result_of(study: Study, data: Data, fit: Fit, seed: int, extra: Mapping[str, Any]) -> dict[str, Any]:
    """What result.json says of a fit."""
    box = Box(study.bounds)
    known = None if study.known is None else {name: study.known.get(name) for name in box.units}
    result = dict(parameters=fit.parameters, units={name: unit_name(unit) for name, unit in box.units.items()})
    result |= dict(constants=study.constants, known_parameters=known, loss=fit.loss, **extra)
    result["loss_name"] = SQUARED_ERROR.name if fit.released else study.loss.name
    result |= dict(spike_level=data.spike_level, data=data.report, dt_ms=study.recordings["fit"].dt)
    result |= dataclasses.asdict(fit.scores["fit"]) if "fit" in fit.scores else {}
    result |= dict(validation=fit.scores.get("validation"))
    result |= dict(identifiability=fit.identifiability, n_simulations=fit.n_simulations)
    result |= dict(n_gradients=fit.n_gradients, seconds=fit.seconds)
    result["starts"] = [
        dict(
            initial=None if start.initial is None else box.values(start.initial),
            parameters=box.values(start.x),
            loss=start.loss,
            n_gradients=start.n_gradients,
            status=start.status,
        )
        for start in fit.minimum.starts
    ]
    if fit.released:
        name = fit.minimum.loss_name or study.loss.name
        result |= dict(loss_driven=fit.minimum.best.loss, loss_driven_name=name, released=fit.released)
    return result | dict(interrupted=fit.minimum.interrupted, seed=seed)


def release_of(study: Study, minimum: Minimum) -> dict[str, Any]:
    """What result.json says of a fit in which the recording drove the model: its levels, and the model released.

    And of how many windows some do not count in the end.
    """
    box = Box(study.bounds)
    stages = [
        dict(
            level=stage.level,
            loss=stage.best.loss,
            parameters=box.values(stage.best.x),
            agreement=stage.agreement,
            released=stage.released,
        )
        for stage in minimum.stages
    ]
    return dict(stages=stages, n_window=n_traces(study.fitted), n_left_out=minimum.n_left_out)


def save_fit(run: runs.RunFolder, study: Study, data: Data, fit: Fit, extra: Mapping[str, Any]) -> None:
    """Save result.json, the history and the figures of a fit; `extra` are numbers besides, {what: number}."""
    run.save("result.json", result_of(study, data, fit, run.args.seed, extra))
    run.save("history.csv", [history_row(study, row) for row in fit.history])
    run.save("losses.png", plot_losses(fit, fit.minimum.loss_name or study.loss.name))
    if np.isfinite(fit.identifiability.eigenvalues).all():
        run.save("identifiability.png", plot_identifiability(fit.identifiability))
    for name, prediction in fit.predictions.items():
        recording = study.recordings[name]
        run.save(f"traces_{name}.png", recordings.plot_traces(recording, data=recording.V, model=prediction.V))
        scoring.save_scores(run, name, recording, prediction, fit.scores[name])
        run.save(f"prediction_{name}.npz", arrays_of(recording, prediction))


def arrays_of(recording: Recording, prediction: scoring.Prediction) -> dict[str, np.ndarray]:
    """What a .npz file has of a prediction: currents, potentials and spikes of the model, what of it counts, and dt."""
    arrays = dict(current_nA=recording.current, V_mV=prediction.V, spikes=prediction.spikes)
    arrays["observed"] = recordings.observed_in(recording)  # not behind the end of a sweep, nor what was fitted
    return arrays | dict(dt_ms=np.array(recording.dt))


def history_row(study: Study, row: Round) -> dict[str, float]:
    """A row of history.csv, with the parameters in columns of their own, and the level where a fit is annealed."""
    columns = dataclasses.asdict(row)
    level, parameters = columns.pop("level"), columns.pop("parameters")
    return columns | parameters | ({study.annealing.name: level} if study.annealing else {})


def print_fit(study: Study, fit: Fit, extra: Mapping[str, Any]) -> None:
    """Print what `save_fit` saves, in short."""
    known, information, starts = study.known, fit.identifiability, fit.minimum.starts
    for name, value in fit.parameters.items():
        unit, error = unit_name(study.bounds[name].unit), information.standard_errors[name]
        text = f"{name:>10} = {value:.6g}" + ("" if math.isnan(error) else f" ± {error:.2g}") + f" {unit}"
        true = known and known.get(name)
        truth = f"true {true:<7.6g} off by {abs(value / true - 1):.3%}" if true else ""
        print(f"{text:<46}{truth}".rstrip())
    for line in reasons_of(fit):
        print(line)
    print(constants_line(study))
    for line in lines_of_held(study, fit):
        print(line)
    for direction in information.undetermined:
        print(f"not determined by these data: {direction}")
    # A likelihood is compared by differences: one unit is little, whatever it is counted from.
    lowest = fit.minimum.best.loss
    near = sum(start.loss <= (lowest + 1 if study.loss.is_log else 1.1 * lowest + 1e-3) for start in starts)
    how = "to 1" if study.loss.is_log else "to 10 % + 0.001"
    reached = f", reached ({how}) from {near} of {len(starts)} starts" if len(starts) > 1 else ""
    if fit.released:
        print(*lines_of_release(study, fit, reached), sep="\n")
    else:
        print(f"{study.loss.name}: {fit.loss:.3g}{reached}")
    for what, value in extra.items():
        if isinstance(value, float):
            print(f"{what.replace('_', ' ')}: {value:.3g}")
    for name, score in fit.scores.items():
        print(*scoring.lines_of(name, score), sep="\n")
    score = fit.scores.get("fit")
    if score and sum(score.n_spikes) and not sum(score.n_spikes_model):
        advice = "a shorter part (--t_stop), or tighter --bounds"
        print(f"WARNING: the model has no spike where the recording has {sum(score.n_spikes)}: try {advice}")
    for i, start in enumerate(starts):
        if start.status.startswith("NaN"):
            print(f"start {i} ended: {start.status}")
    if all(start.flat for start in starts):
        print("WARNING: the gradient is zero at every start: this would be random search")
    print("{run:.1f} s to run and {compile:.1f} s to compile".format(**fit.seconds), end=", ")
    print(f"{fit.n_simulations} simulations, {fit.n_gradients} of them with gradient")


def lines_of_release(study: Study, fit: Fit, reached: str) -> list[str]:
    """What is printed of a fit in which the recording drove the model: that it did, and what the released one does."""
    level, stages, unit = fit.minimum.level, fit.minimum.stages, study.annealing.unit.replace("_", " ")
    driven = f"{study.loss.name}, driven with {study.annealing.name} {level:g} {unit}"
    lines = [
        f"{SQUARED_ERROR.name}, released: {fit.loss:.3g} ({fit.released.text})",
        f"{fit.minimum.loss_name or driven}: {fit.minimum.best.loss:.3g}{reached}",
    ]
    lines += lines_of_left_out(fit.minimum)
    if level and stages and stages[-1].level == 0:
        at_0 = stages[-1].released
        lines.append(f"of a fit at {study.annealing.name} 0, released: {at_0.loss:.3g} ({at_0.text})")
    if not fit.released.follows:
        lines.append("WARNING: released, the model does not follow the recording: it is not this cell, or not found")
        lines.append("(its spikes may be had at the cost of its potentials: --fit_target both, or spike)")
    return lines


def lines_of_left_out(minimum: Minimum) -> list[str]:
    """What is printed of the windows that do not count in the end, if there are any."""
    if not minimum.n_left_out:
        return []
    errors = "whose errors are not those of the others: noise may have moved a spike there, or made one"
    return [f"in the end without {minimum.n_left_out} of {len(minimum.kept)} windows, {errors}"]


def reasons_of(fit: Fit) -> list[str]:
    """Lines that say why parameters have no standard error, a line a reason."""
    names: dict[str, list[str]] = {}
    for name, reason in fit.identifiability.without_error.items():
        names.setdefault(reason, []).append(name)
    return [f"no standard error of {', '.join(some)}: {reason}" for reason, some in names.items()]


def constants_line(study: Study) -> str:
    """The parameters that are not fitted, with their values."""
    held = ", ".join(f"{name} = {value:.6g}" for name, value in study.constants.items())
    return f"held at (--constants), on which all of these depend: {held}" if held else "nothing is held"


def lines_of_held(study: Study, fit: Fit) -> list[str]:
    """By how much parameters would be others by a step of each constant that is held, if by more than their errors."""
    lines = []
    for constant, moved in fit.identifiability.by_held.items():
        changes = []
        for name, change in moved.items():
            low, high = study.bounds[name].mantissa
            if abs(change) > fit.identifiability.standard_errors[name]:
                beyond = "" if low <= fit.parameters[name] + change <= high else " (beyond its bounds)"
                changes.append(f"{name} {change:+.2g} {unit_name(study.bounds[name].unit)}{beyond}")
        unit = u.get_unit(study.held[constant])
        higher = f"1 {unit_name(unit)}" if unit in STEPS_OF_ONE else "1 %"
        if changes:
            moves = f"{constant} higher by {higher}, of which no error above knows, moves, to first order"
            lines.append(f"  {moves}: {', '.join(changes)}")
    return lines


# ---- A look before a fit --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Preview:
    """The model at random parameter sets: these, their losses, and V (mV) and spikes in the first T_LOOK."""

    parameters: list[dict[str, float]]
    losses: np.ndarray
    V: list[np.ndarray]
    spikes: list[np.ndarray]


def beginning_of(recording: Recording) -> Recording:
    """The first T_LOOK of a recording."""
    return recordings.first_part(recording, max(2, round(T_LOOK / recording.dt)))


def visualize(study: Study, search: Search, devices: Sequence[jax.Device] | None = None) -> Preview:
    """Simulate a study at n_sample random parameter sets: what a fit starts from."""
    problem = FitProblem(study, search.n_sample, devices or jax.devices())
    sets = random_starts(problem, search.seed)
    beginning = beginning_of(study.recordings["fit"])
    responses = [study.free_run(problem.box.parameters(x), beginning) for x in sets]
    losses = problem.evaluate(sets, level=study.last_level)
    return Preview([problem.box.values(x) for x in sets], losses, *map(list, zip(*responses, strict=True)))


def save_preview(run: runs.RunFolder, study: Study, data: Data, preview: Preview) -> None:
    """Save the recordings as they are, and their beginning with the responses of the model."""
    for name, recording in study.recordings.items():
        run.save(f"recording_{name}.png", plot_recording(recording, data.spike_level.level))
    beginning = beginning_of(study.recordings["fit"])
    figure = recordings.plot_traces(beginning, target=beginning.V)
    for trace, axis in enumerate(figure.axes[len(figure.axes) // 2 :]):
        for V in preview.V:
            axis.plot(np.arange(len(V)) * beginning.dt, V[:, trace], color="C1", alpha=0.4, lw=0.7, zorder=0)
    figure.suptitle("black: the target; orange: the model at random parameters")
    run.save("target.png", figure)
    counts = {f"n_spikes_{name}": (r.spikes * r.observed).sum(0) for name, r in study.recordings.items()}
    result = dict(parameters=preview.parameters, losses=preview.losses, n_spikes=counts["n_spikes_fit"], **counts)
    n_spikes = [(spikes * beginning.observed).sum(0) for spikes in (beginning.spikes, *preview.spikes)]
    result |= dict(t_beginning_ms=len(beginning.V) * beginning.dt, n_spikes_beginning=n_spikes[0])
    result |= dict(n_spikes_models=n_spikes[1:])  # in the beginning, too
    run.save("result.json", result | dict(constants=study.constants, spike_level=data.spike_level, data=data.report))


def print_preview(study: Study, preview: Preview) -> None:
    """Print what `save_preview` saves, in short."""
    losses = preview.losses
    for name, recording in study.recordings.items():
        print(f"{name}, spikes a trace: {(recording.spikes * recording.observed).sum(0).astype(int).tolist()}")
    print(constants_line(study))
    finite = losses[np.isfinite(losses)]
    span = f"{finite.min():.4g} to {finite.max():.4g}" if len(finite) else "none is finite"
    print(f"losses of {len(losses)} random parameter sets: {span}")


# ---- A prediction after a fit ---------------------------------------------------------------------------------------


def load_fit(folder: Path, script: str) -> dict[str, Any]:
    """result.json of the run of a fit by a script in a folder."""
    result = runs.load_json(folder / "result.json")
    if not isinstance(result, dict) or result.get("script") != script:
        expected = f"expected one of {script}.py"
        raise BadInput(f"argument --load: found no result of a fit by this script in {folder}, {expected}")
    return result


@dataclasses.dataclass(frozen=True)
class Responder:
    """A fitted model.

    Args:
        free_run: (recording) -> V (mV) and spikes, each (T, n_trace), when it runs freely.
        complete: (prediction, recording) -> the prediction with what it says besides of a recording with spikes.
        dt: of the recording to which it was fitted (ms), if its steps are those of the samples.
    """

    free_run: Callable[[Recording], tuple[np.ndarray, np.ndarray]]
    complete: Callable[[scoring.Prediction, Recording], scoring.Prediction] = lambda prediction, recording: prediction
    dt: float | None = None


def predict(
    args: argparse.Namespace,
    argv: Sequence[str],
    devices: Sequence[jax.Device],
    script: str,
    make_responder: Callable[[Mapping[str, Any], recordings.Source, int], Responder],
) -> runs.RunFolder:
    """Print and save the response of a fitted model to other currents (--load).

    Args:
        script: whose fits may be loaded.
        make_responder: (result.json of the fit, source of the currents, seed) -> the model.
    """
    result, source = load_fit(args.load, script), recordings.source_of(args)
    data = recordings.read_to_predict(source, SpikeLevel(**result["spike_level"]))
    run = runs.RunFolder(args, script, f"predict_{args.load.name}", checksum=data.checksum)
    print(*data.report, sep="\n")
    if result.get("interrupted"):
        print(f"WARNING: the fit in {args.load} was interrupted: these are the best parameters until then")
    seed = int(np.random.SeedSequence(args.seed).generate_state(1)[0])
    result |= dict(spike_level=dataclasses.asdict(data.spike_level))  # spikes of both are counted by one level
    response = respond(make_responder(result, source, seed), data.recordings["fit"], args.delta)
    print_response(*response)
    run.save_config(argv, devices)
    of_fit = dict(folder=args.load.resolve(), **{name: result[name] for name in ("parameters", "constants")})
    of_fit |= dict(interrupted=bool(result.get("interrupted")))
    save_response(run, *response, dict(fit=of_fit, spike_level=data.spike_level, data=data.report))
    return run


def respond(
    model: Responder, recording: Recording, delta: float
) -> tuple[Recording, scoring.Prediction, scoring.Score | None]:
    """The response of a fitted model to currents, with its score by `scoring.score` where there is something to score.

    Without V_start, the model is held at the first current for T_SETTLE before.
    """
    if model.dt and recording.dt > 1.01 * model.dt:
        finer = f"where the fit had {model.dt:g} ms: sample the currents so that what it says is that neuron's"
        print(f"WARNING: the neuron has a step a sample, of {recording.dt:g} ms, {finer}")
    if recording.V_start is None:
        before = Recording(np.repeat(recording.current[:1], round(T_SETTLE / recording.dt), axis=0), dt=recording.dt)
        V, spikes = model.free_run(before)
        if spikes[len(spikes) // 2 :].any():
            print("WARNING: the model fires at the first current, where it has no rest to start from")
        recording = dataclasses.replace(recording, V_start=V[-1])
    prediction = scoring.Prediction(*model.free_run(recording))
    if recording.spikes is None:
        return recording, prediction, None
    prediction = model.complete(prediction, recording)
    return recording, prediction, scoring.score(recording, prediction, delta)


def counted_spikes(recording: Recording, prediction: scoring.Prediction) -> np.ndarray:
    """Spikes of the model (T, n_trace) where it is compared."""
    return prediction.spikes * recordings.observed_in(recording)


def save_response(
    run: runs.RunFolder,
    recording: Recording,
    prediction: scoring.Prediction,
    score: scoring.Score | None,
    of: Mapping[str, Any],
) -> None:
    """Save a response as prediction.csv, spikes.csv, prediction.npz and figures, and its score in result.json.

    There is also what it is a response `of`.

    In the table, a trace is blank behind its last current and the last sample that is compared.
    """
    t, n_trace = np.arange(len(prediction.V)) * recording.dt, prediction.V.shape[1]
    known = recordings.observed_in(recording) | (np.asarray(recording.current) != 0)
    ends = [len(t) - int(np.argmax(of_trace[::-1])) for of_trace in known.T]
    columns = {"t_ms": t.tolist()}
    for name, x in (("I{}_nA", recording.current), ("V{}_mV", prediction.V)):
        columns |= {name.format(i): x[: ends[i], i].tolist() for i in range(n_trace)}
    rows = itertools.zip_longest(*columns.values())
    run.save("prediction.csv", [dict(zip(columns, row, strict=True)) for row in rows])
    counted = counted_spikes(recording, prediction)
    spikes = [dict(trace=int(i), t_ms=float(t[k])) for i, k in np.argwhere(counted.T)]
    run.save("spikes.csv", spikes or "trace,t_ms\n")
    run.save("prediction.npz", arrays_of(recording, prediction))
    traces = dict(model=prediction.V) if score is None else dict(data=recording.V, model=prediction.V)
    run.save("prediction.png", recordings.plot_traces(recording, **traces))
    if score is not None:
        scoring.save_scores(run, "prediction", recording, prediction, score)
    run.save("result.json", dict(n_spikes_model=counted.sum(0), score=score, **of))


def print_response(recording: Recording, prediction: scoring.Prediction, score: scoring.Score | None) -> None:
    """Print what `save_response` saves, in short."""
    counted = counted_spikes(recording, prediction)
    print(f"spikes of the model a trace: {counted.sum(0).astype(int).tolist()}")
    if score is not None:
        print(*scoring.lines_of("prediction", score), sep="\n")


# ---- Figures --------------------------------------------------------------------------------------------------------


def _scale_of(values):
    """Of an axis: logarithmic where values span more than a factor of a hundred; below it, labels meet."""
    finite = [value for value in values if math.isfinite(value)]
    return "log" if finite and 0 < 100 * min(finite) < max(finite) else "linear"


def plot_losses(fit: Fit, loss_name: str) -> plt.Figure:
    """Left, the losses of all starts, sorted; right, the best loss at the last level against the simulations made."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(runs.WIDTH, 2.8), layout="constrained")
    minimum, starts = fit.minimum, fit.minimum.starts
    history = [row for row in fit.history if row.level == minimum.level and row.n_simulations > minimum.n_before]
    left.plot(1 + np.arange(len(starts)), sorted(start.loss for start in starts), "k.")
    losses = [start.loss for start in starts if math.isfinite(start.loss)]
    left.set(xlabel="start, best first", ylabel=textwrap.fill(loss_name, 36), yscale=_scale_of(losses))
    left.xaxis.get_major_locator().set_params(integer=True)
    counts, best = zip(*((row.n_simulations, row.best_loss) for row in history), strict=True)
    right.plot(counts, best, "k.-")
    scales = dict(xscale=_scale_of(counts), yscale=_scale_of(best))
    right.set(xlabel="simulations", ylabel="best loss so far", **scales)
    return figure


def plot_stages(study: Study, minimum: Minimum) -> plt.Figure:
    """Driven loss and parameters of every start at each level; black the best start, dashed where the fit ended."""
    stages, box = minimum.stages, Box(study.bounds)
    losses = np.array([[start.loss for start in stage.starts] for stage in stages])
    panels = {"driven loss": losses}
    values = [[box.values(start.x) for start in stage.starts] for stage in stages]
    for name, unit in box.units.items():
        panels[f"{name} ({unit_name(unit)})" if unit_name(unit) else name] = np.array(
            [[one[name] for one in row] for row in values]
        )
    n_column, n_row = 3, -(-len(panels) // 3)
    layout = dict(sharex=True, squeeze=False, layout="constrained")
    figure, axes = plt.subplots(n_row, n_column, figsize=(runs.WIDTH, 1.6 * n_row + 0.4), **layout)
    at, best = np.arange(len(stages)), losses.argmin(1)
    chosen = [stage.level for stage in stages].index(minimum.level)
    for axis, (name, y) in zip(axes.flat, panels.items(), strict=False):
        axis.plot(at, y, "-", color="C1", alpha=0.5, lw=0.7)
        axis.plot(at, y[at, best], "k.-", lw=0.8)
        axis.axvline(chosen, color="0.4", lw=0.8, ls="--")
        axis.set(ylabel=name, xticks=at, xticklabels=[f"{stage.level:g}" for stage in stages])
    axes.flat[0].set_yscale("log" if (losses > 0).all() else "linear")
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    figure.supxlabel(f"{study.annealing.name} ({study.annealing.unit.replace('_', ' ')})", fontsize=8)
    return figure


def plot_recording(recording: Recording, level: float) -> plt.Figure:
    """All traces: currents, potentials with the level that spikes cross (dashed), and the spikes found.

    Args:
        level: (mV).
    """
    t = np.arange(len(recording.current)) * recording.dt
    layout = dict(sharex=True, height_ratios=(1, 3, 1), layout="constrained")
    figure, (top, middle, bottom) = plt.subplots(3, 1, figsize=(runs.WIDTH, 5), **layout)
    counted = recordings.observed_in(recording)
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, recording.current.shape[1]))
    for trace, color in enumerate(colors):
        top.plot(t, np.where(counted[:, trace], recording.current[:, trace], np.nan), color=color, lw=0.6)
        middle.plot(t, recordings.known_potentials(recording, trace), color=color, lw=0.6)
        steps = np.flatnonzero(recording.spikes[:, trace] * counted[:, trace])
        bottom.plot(t[steps], np.full(len(steps), trace), "|", color=color, ms=5)
    middle.axhline(level, color="k", lw=0.8, ls="--")
    top.set_ylabel("I (nA)")
    middle.set_ylabel("V (mV)")
    bottom.set(xlabel="t (ms)", ylabel="trace", ylim=(-0.5, len(colors) - 0.5))
    bottom.invert_yaxis()
    bottom.yaxis.get_major_locator().set_params(integer=True)
    return figure
