"""Fitting neuron models: many parameter sets simulated at once, and methods that minimise.

Three nouns carry it. A `studies.Study` is what is fitted: a model, its loss, bounds and recordings. A `FitProblem`
evaluates the loss of a study, and its gradient, for many parameter sets in one compiled program. A `Search` says by
which method and from how many starts it is minimised. `fit` takes a study and a search and gives an object back.
"""

import contextlib
import dataclasses
import functools
import math
import queue
import threading
import warnings
from collections.abc import Callable, Sequence

import runs
from runs import BadInput

import brainstate
import jax
import numpy as np

import processes
import scoring
from evaluation import FitProblem, Round, Start
from identifiability import Box, Identifiability, Likelihood, Undetermined, identifiability, of_likelihood, unknown
from recordings import Recording
from solvers import GAUSS_NEWTON, SCALED, SOLVERS
from studies import V_RESOLUTION, Annealing, Released, Study, n_traces

METHODS = ("L-BFGS-B", "DE", "PSO", "TwoPointsDE", "CMA", "bayesian", "random")
AGREE = 0.01  # of the range of every parameter, within which two starts are said to have found the same
SAME_GAMMA = 0.02  # by which two Gamma may differ by chance
RISE = 0.3  # of a loss, that a first step of CMA from its minimum costs
PROMISING = 1.1  # times the lowest squared error: starts that are refined
N_TRIM = 5  # times that windows are left out
N_FURTHER = 2  # times that a fit goes on by what is better where it has ended
SAME_RELEASED, SAME_DRIVEN = 1.1, 1.005  # of the lowest loss of a released or driven model: no worse than that
SAME_LIKELIHOOD = 0.05  # between parameters of which a part of the data says nothing
MET = 1e-3  # of the range of every parameter, within which two starts of an annealed fit go on as one

# ---- Methods that minimise ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Minimum:
    """What a search gives: its starts, the level at which they ended, and whether Ctrl-C ended it early.

    `stages` are the minima at all levels of an annealed fit, and `released` is what the best start of one does if it is
    released. `kept` are the windows that count in the end, where some do not; `near` are the best points at the levels
    next to it. `loss_name` is what the starts have lowest in the end, where that is not the loss of the study, and
    `n_before` the simulations before they were fitted to what counts in the end.
    """

    starts: list[Start]
    level: float = 0.0
    interrupted: bool = False
    stages: list["Minimum"] = dataclasses.field(default_factory=list)
    released: Released | None = None
    kept: np.ndarray | None = None
    near: list[np.ndarray] = dataclasses.field(default_factory=list)
    loss_name: str = ""
    n_before: int = 0

    @property
    def best(self) -> Start:
        return min(self.starts, key=lambda start: start.loss)

    @property
    def n_left_out(self) -> int:
        """Windows that do not count in the end."""
        return 0 if self.kept is None else int(np.sum(~self.kept))

    @property
    def agreement(self) -> float:
        """Share of the starts that are at the best one's parameters, to AGREE of the range of each."""
        return float(np.mean([np.abs(start.x - self.best.x).max() <= AGREE for start in self.starts]))


@dataclasses.dataclass(frozen=True)
class Search:
    """How a loss is minimised.

    Args:
        method: one of METHODS, or GAUSS_NEWTON.
        n_sample: starts of these two that have gradients; parameter sets that the others try in a round.
        n_iter: rounds of the others, which go on until min_seconds are over.
        level: of the others, in an annealed fit; by default the last of its levels.
        x0: (n, k) in the box, where methods with gradients start; else they start at random.
        steps: (k, k) of CMA around the first of x0, a column a direction; without them it searches the whole box.
    """

    method: str = "L-BFGS-B"
    n_sample: int = 20
    n_iter: int = 5
    seed: int = 0
    min_seconds: float = 0.0
    level: float | None = None
    x0: np.ndarray | None = None
    steps: np.ndarray | None = None


def minimise(problem: FitProblem, search: Search) -> Minimum:
    """Minimise the loss of a problem by one of METHODS, or GAUSS_NEWTON, with a progress bar.

    Raises:
        BadInput: Gauss-Newton, of a loss that is no sum of squares.
    """
    by_gradient, annealing, loss = search.method in SOLVERS, problem.study.annealing, problem.study.loss
    n_before = problem.n_simulations
    if search.method == GAUSS_NEWTON and not (loss.residuals or problem.study.gram):
        raise BadInput(f"argument --method: found {GAUSS_NEWTON}, expected another to minimise the {loss.name}")
    total = None if by_gradient else search.n_iter * problem.n_sample
    with runs.progress(total=total, desc=search.method, unit=" simulations") as bar:

        def on_round(row: Round) -> None:
            bar.set_postfix(best_loss=f"{row.best_loss:.3g}", active=row.active, refresh=False)
            bar.update(row.n_simulations - n_before - bar.n)

        problem.on_round = on_round
        if not by_gradient:
            return derivative_free(problem, search)
        x0 = random_starts(problem, search.seed) if search.x0 is None else search.x0
        return anneal(problem, annealing, x0, search.method) if annealing else multistart(problem, x0, search.method)


def after(problem: FitProblem, minimum: Minimum, search: Search) -> Search:
    """The search that begins where the fit of another problem, a sum of squares, has ended.

    By gradients from all of its distinct minima, and by CMA from the best one, by the steps that change its loss alike.

    Raises:
        BadInput: no start of that has a finite loss.
    """
    starts = [minimum.starts[i] for i in sorted(set(_met(minimum.starts)), key=lambda i: minimum.starts[i].loss)]
    finite = [start.x for start in starts if math.isfinite(start.loss)]
    if not finite:
        raise BadInput(f"no start has a finite loss; start 0: {minimum.starts[0].status}")
    steps = steps_from(problem, finite[0], minimum.level) if search.method == "CMA" else None
    return dataclasses.replace(search, x0=np.stack(finite), steps=steps)


def steps_from(problem: FitProblem, x: np.ndarray, level: float) -> np.ndarray:
    """Steps (k, k) from a minimum x of a sum of squares: along the eigenvectors of its second derivatives.

    H = J^T J / (RISE loss) + 12, and a column is v h^(-1/2) with an eigenvector v of H and its value h: the loss rises
    by RISE of it, or where it does not tell, the step is the standard deviation of a uniform density in the box.
    """
    (loss,), (gram,) = problem.evaluate(x[None], "grams", level)
    values, vectors = np.linalg.eigh(gram[:-1, :-1] / (RISE * loss + 1e-12))
    return vectors / np.sqrt(np.maximum(values, 0) + 12)


def random_starts(problem: FitProblem, seed: int) -> np.ndarray:
    """Starts (n_sample, k): those of the study, or else uniform in the box."""
    if problem.study.starts:
        return problem.study.starts(problem.n_sample, seed)
    return np.random.default_rng(seed).random((problem.n_sample, len(problem.box.low)))


def starts_from(problem: FitProblem, smaller: FitProblem, best: Start, seed: int) -> np.ndarray:
    """Starts (n_sample, k), every other one random, and the others from the best of a smaller study.

    The first of these is without what that does not have, where the loss is no higher; the others have random values.
    """
    x, names = random_starts(problem, seed), list(problem.study.bounds)
    x[::2, [names.index(name) for name in smaller.study.bounds]] = best.x
    for name in set(names) & set(problem.study.absent) - set(smaller.study.bounds):
        low, high = problem.study.bounds[name].mantissa
        x[0, names.index(name)] = np.clip((problem.study.absent[name] - low) / (high - low), 0, 1)
    return x


def multistart(
    problem: FitProblem,
    x0: np.ndarray,
    method: str = "L-BFGS-B",
    level: float = 0.0,
    coarse: bool = False,
    approach: str = "grams",
) -> Minimum:
    """Minimise from every row of x0 (n, k) with one of SOLVERS, which has `approach`, all starts advancing together.

    Each start is an ordinary call of SciPy in a thread that sleeps while it waits for a loss and derivatives; the
    points that all of them wait for are evaluated in one round. Its iterates are those it would have alone.

    Returns:
        The minimum, with a `Start` a row. NaN ends a start and KeyboardInterrupt all; the best points seen are kept.
    """
    solver, starts, failures, interrupted = SOLVERS[method], [Start(x, x) for x in x0], [], False
    requests, replies = queue.SimpleQueue(), [queue.SimpleQueue() for _ in starts]

    def run(i, start):
        def function(x, what):
            requests.put((i, x.copy(), what))
            loss, derivatives = replies[i].get()
            gradient = derivatives if derivatives.ndim == 1 else derivatives[:-1, -1]
            start.flat = start.flat if start.n_gradients else not gradient.any()
            start.n_gradients += 1
            if loss < start.loss:
                start.x, start.loss = x.copy(), float(loss)
            if not np.isfinite([loss, *derivatives.ravel()]).all():
                raise FloatingPointError(problem.name_nan(x, level))
            return loss, derivatives

        try:
            options = solver.coarse_options if coarse else solver.options
            start.status = solver.solve(function, start.x, options, approach)
        except FloatingPointError as error:
            start.status = str(error)
        except Exception as error:
            failures.append(error)
        requests.put((i, None, ""))

    for i, start in enumerate(starts):
        threading.Thread(target=run, args=(i, start), daemon=True).start()
    active, waiting = len(starts), {}
    try:
        while active and not failures:
            i, x, what = requests.get()
            if x is None:
                active -= 1
            else:
                waiting[i] = x, what
            if active and len(waiting) == active:
                points, waiting = sorted(waiting.items()), {}
                for asked in sorted({what for _, (_, what) in points}):
                    some = [(i, x) for i, (x, what) in points if what == asked]
                    losses, derivatives = problem.evaluate(np.stack([x for _, x in some]), asked, level)
                    for (i, _), *reply in zip(some, losses, derivatives, strict=True):
                        replies[i].put(reply)
    except KeyboardInterrupt:
        interrupted = True  # the threads sleep on, and end with the process
    if failures:
        raise failures[0]
    return Minimum(starts, level, interrupted)


def anneal(problem: FitProblem, annealing: Annealing, x0: np.ndarray, method: str = "L-BFGS-B") -> Minimum:
    """Minimise from every row of x0 at each level in turn, from where the last one ended, then fully at the best one.

    Starts that have met go on as one: whichever of them has the lowest loss is followed, for all of them. Those that in
    the end are worse by more than PROMISING, of a loss that is not a likelihood, are left where they are. Windows that
    the study says are not kept there are then left out, until they are the same, if that leads no further away. Then
    it goes on by another study, where the study says so. KeyboardInterrupt leaves the best stage that is complete.
    """

    stage = functools.partial(_stage, problem, method)

    def release(best):
        released = problem.study.released
        return released(problem.box.parameters(best.x)) if released else None

    def trimmed(found):
        """The minimum without the windows that are not kept there, if the released model follows as well."""
        whole, last, kept = problem.study.windows, found, np.ones(n_traces(problem.data), bool)
        for _ in range(N_TRIM):
            now = problem.study.kept(problem.box.parameters(last.best.x), found.level)
            now = processes.of_all(*now)[0] > 0  # those of the first of several processes
            if np.array_equal(now, kept):
                break
            kept = now
            problem.fit_to(whole.only(kept))
            n_before = problem.n_simulations
            last = stage(found.level, last.starts, coarse=False)
            if last.interrupted:
                problem.fit_to(whole)
                return dataclasses.replace(found, interrupted=True)
        if last is found:
            return found
        last = dataclasses.replace(last, released=release(last.best), kept=kept, n_before=n_before)
        if not last.released.loss <= SAME_RELEASED * found.released.loss or _better(found, last) is found:
            problem.fit_to(whole)
            return found
        beside = _beside([stage.level for stage in stages], found.level)
        minima = [multistart(problem, last.best.x[None], method, stages[i].level, coarse=True) for i in beside]
        interrupted = any(minimum.interrupted for minimum in minima)
        return dataclasses.replace(last, near=[minimum.best.x for minimum in minima], interrupted=interrupted)

    starts, stages = [Start(x, x) for x in x0], []
    for level in annealing.levels:
        last = stage(level, starts, coarse=True)
        if last.interrupted or not math.isfinite(last.best.loss):
            break
        starts = last.starts
        try:
            stages.append(dataclasses.replace(last, released=release(last.best)))
        except KeyboardInterrupt:
            last = dataclasses.replace(last, interrupted=True)
            break
    if problem.first_is_part and len(stages) < 2:  # Ctrl-C came before all traces have been fitted
        last = _of_all(problem, last, annealing.levels[-1])
        stages = [dataclasses.replace(_of_all(problem, found, last.level), released=found.released) for found in stages]
    if not stages:
        return dataclasses.replace(last, released=release(last.best) if math.isfinite(last.best.loss) else None)
    candidates = stages[1:] if problem.first_is_part and len(stages) > 1 else stages
    best = _chosen(candidates)
    counted = [dataclasses.replace(x, n_gradients=y.n_gradients) for x, y in zip(best.starts, starts, strict=True)]
    best = dataclasses.replace(best, starts=counted)
    found = dataclasses.replace(best, interrupted=True)
    with contextlib.suppress(KeyboardInterrupt):
        refined = last if last.interrupted else stage(best.level, best.starts, coarse=False)
        if not refined.interrupted:
            refined = _better(best, dataclasses.replace(refined, released=release(refined.best)))
            found = _further(problem, method, trimmed(refined) if problem.study.kept else refined)
    return dataclasses.replace(found, stages=stages)


def _of_all(problem: FitProblem, found: Minimum, level: float) -> Minimum:
    """The minimum with the losses of all traces, at a level."""
    losses = problem.evaluate(np.stack([start.x for start in found.starts]), level=level)
    starts = [dataclasses.replace(start, loss=float(x)) for start, x in zip(found.starts, losses, strict=True)]
    return dataclasses.replace(found, starts=starts, level=level)


def _stage(problem: FitProblem, method: str, level: float, earlier: Sequence[Start], coarse: bool) -> Minimum:
    """A level of `anneal`, from where the starts are."""
    followed = _met(earlier, SAME_LIKELIHOOD if problem.study.gram else 0.0)
    least, log = min(start.loss for start in earlier), problem.study.loss.is_log
    limit = math.inf if coarse or log else PROMISING * least + V_RESOLUTION**2
    distinct = sorted({i for i in followed if earlier[i].loss <= limit})
    near = any(start.n_gradients for start in earlier)
    approach = "" if near else "gradients" if problem.study.gram else "grams"
    solver = SCALED if method == GAUSS_NEWTON and problem.study.gram and not coarse else method
    minimum = multistart(problem, np.stack([earlier[i].x for i in distinct]), solver, level, coarse, approach)
    ended, starts = dict(zip(distinct, minimum.starts, strict=True)), []
    for i, before in enumerate(earlier):
        after = ended.get(followed[i], before)
        n_gradients = before.n_gradients + (after.n_gradients if i == followed[i] in ended else 0)
        flat = before.flat if before.n_gradients else after.flat
        changed = dict(initial=before.initial, n_gradients=n_gradients, flat=flat)
        starts.append(dataclasses.replace(after, **changed))
    return dataclasses.replace(minimum, starts=starts)


def _further(problem: FitProblem, method: str, found: Minimum) -> Minimum:
    """The minimum by what its study says is better where it has ended, N_FURTHER times, if it says so of that too.

    That the parameters are determined no better than the last time has moved them is said by `near`.
    """
    before, last = problem.study, found

    def study_at(minimum):
        return before.further(before, problem.box.parameters(minimum.best.x), minimum.released)

    def turn(last, study):
        n_before = problem.n_simulations
        X, first, at = np.unique([start.x for start in last.starts], axis=0, return_index=True, return_inverse=True)
        losses, _ = problem.evaluate(X, "grams")
        starts = [
            dataclasses.replace(start, loss=losses[k], n_gradients=start.n_gradients + (first[k] == i))
            for i, (start, k) in enumerate(zip(last.starts, at.ravel(), strict=True))
        ]
        after = _stage(problem, method, 0.0, starts, coarse=False)
        released = before.released(problem.box.parameters(after.best.x))
        ended = dict(released=released, kept=np.asarray(study.fitted.mask).any(0), near=[last.best.x])
        return dataclasses.replace(after, **ended, loss_name=study.loss.name, n_before=n_before)

    if found.interrupted or not before.further or not (study := study_at(found)):
        return found
    problem.go_on_with(study)
    try:
        for i in range(N_FURTHER):
            if i:
                problem.fit_to(study.windows)
            last = turn(last, study)
            study = study_at(last)
            if last.interrupted or not study:
                break
    except KeyboardInterrupt:
        last = dataclasses.replace(last, interrupted=True)
    if study and not last.interrupted and _better(found, last) is last:
        return last
    problem.go_on_with(before)
    return dataclasses.replace(found, interrupted=last.interrupted)


def _beside(levels: Sequence[float], level: float) -> list[int]:
    """Which levels are next to one; the first one, which is of a part of the data, is next to none."""
    at = levels.index(level)
    return [i for i in (at - 1, at + 1) if 1 <= i < len(levels)]


def _better(coarse: Minimum, fine: Minimum) -> Minimum:
    """The minimum that is fully minimised, unless its released model has lost spikes by that."""
    lost = fine.released and (coarse.released.gamma or 0.0) - (fine.released.gamma or 0.0) > SAME_GAMMA
    return coarse if lost else fine


def _chosen(stages: Sequence[Minimum]) -> Minimum:
    """The stage of the lowest loss; where models are released, of those with the best Gamma at which the starts agree.

    Of these the ones of the lowest released loss, which where the model is right falls with the errors of parameters.
    Then the lowest driven loss, as the gain of a Kalman filter is found, and of those that are no worse the weakest
    level, which is nearest to the released model.
    """
    if not stages[0].released:
        return min(stages, key=lambda stage: stage.best.loss)
    gamma = [stage.released.gamma or 0.0 for stage in stages]
    stages = [stage for stage, value in zip(stages, gamma, strict=True) if value >= max(gamma) - SAME_GAMMA]
    agreement = [round(stage.agreement, 1) for stage in stages]
    stages = [stage for stage, value in zip(stages, agreement, strict=True) if value == max(agreement)]
    released = np.nan_to_num([stage.released.loss for stage in stages], nan=math.inf)
    stages = [stage for stage, loss in zip(stages, released, strict=True) if loss <= SAME_RELEASED * min(released)]
    lowest = min(stage.best.loss for stage in stages)
    return min((stage for stage in stages if stage.best.loss <= SAME_DRIVEN * lowest), key=lambda stage: stage.level)


def _met(starts: Sequence[Start], same_loss: float = 0.0) -> list[int]:
    """Of every start, the index of the one that is followed for it: one of its parameters, or nearly of its loss."""
    followed, kept = [0] * len(starts), []

    def met(one, other):
        return np.abs(one.x - other.x).max() <= MET or one.loss - other.loss < same_loss

    for i in sorted(range(len(starts)), key=lambda i: starts[i].loss):
        near = [j for j in kept if met(starts[i], starts[j])]
        followed[i] = near[0] if near and math.isfinite(starts[i].loss) else i
        kept += [i] * (followed[i] == i)
    return followed


def derivative_free(problem: FitProblem, search: Search) -> Minimum:
    """Minimise in n_iter rounds of n_sample evaluations, each round one call, and in more until min_seconds are over.

    DE, PSO, TwoPointsDE and CMA are Nevergrad's, as they come; bayesian is scikit-optimize's Gaussian process
    with expected improvement and constant-liar batches; random draws uniformly from the box. A loss that is not finite
    counts as the largest finite one.

    Returns:
        The minimum, with a single `Start` that has no initial point: the best set of all rounds.
    """
    level = problem.study.last_level if search.level is None else search.level
    largest, first_bad, n_bad, k = -math.inf, "", 0, len(problem.box.low)
    status, interrupted = "budget used", False

    def losses_at(X):
        nonlocal largest, first_bad, n_bad
        X = np.asarray(X)
        losses = problem.evaluate(X, level=level)
        finite = np.isfinite(losses)
        largest = losses[finite].max(initial=largest)
        n_bad += int(np.sum(~finite))
        if not finite.all() and not first_bad:
            first_bad = problem.name_nan(X[~finite][0], level)
        return np.where(finite, losses, largest if math.isfinite(largest) else 1e30)

    def rounds():
        n = 0
        while n < search.n_iter or problem.elapsed() < search.min_seconds:
            yield n
            n += 1

    try:
        if search.method == "random":
            rng = np.random.default_rng(search.seed)
            for _ in rounds():
                losses_at(rng.random((problem.n_sample, k)))
        elif search.method == "bayesian":
            import skopt  # here because the import takes seconds

            n_initial, box = problem.n_sample, [(0.0, 1.0)] * k
            optimiser = skopt.Optimizer(box, n_initial_points=n_initial, acq_func="EI", random_state=search.seed)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The objective has been evaluated")  # at a corner of the box
                for _ in rounds():
                    X = optimiser.ask(n_points=problem.n_sample)
                    optimiser.tell(X, losses_at(X).tolist())
        else:
            import nevergrad

            near = search.steps is not None
            box = {} if near else dict(lower=0.0, upper=1.0)
            space = nevergrad.p.Array(init=np.full(k, 0.0 if near else 0.5), **box)
            space.random_state.seed(search.seed)
            budget = dict(budget=search.n_iter * problem.n_sample, num_workers=problem.n_sample)
            optimiser = nevergrad.optimizers.registry[search.method](space, **budget)
            if near:
                optimiser.suggest(np.zeros(k))
            for _ in rounds():
                candidates = [optimiser.ask() for _ in range(problem.n_sample)]
                X = np.stack([candidate.value for candidate in candidates])
                losses = losses_at(np.clip(search.x0[0] + X @ search.steps.T, 0, 1) if near else X)
                for candidate, loss in zip(candidates, losses, strict=True):
                    optimiser.tell(candidate, float(loss))
    except KeyboardInterrupt:
        interrupted, status = True, Start.status
    if n_bad:
        status += f"; {n_bad} losses were not finite, first {first_bad}"
    best = problem.best.get(level, Start(None, np.full(k, 0.5)))
    return Minimum([dataclasses.replace(best, status=status)], level, interrupted)


# ---- A fit ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Fit:
    """What a fit found. `predict(recording)` gives V (mV) and spikes of the fitted model under other currents.

    Where the model was driven while it was fitted, `loss` is that of the `released` one.
    """

    parameters: dict[str, float]
    loss: float
    minimum: Minimum
    predictions: dict[str, scoring.Prediction]
    scores: dict[str, scoring.Score]
    identifiability: Identifiability
    history: list[Round]
    n_simulations: int
    n_gradients: int
    seconds: dict[str, float]
    predict: Callable[[Recording], tuple[np.ndarray, np.ndarray]]

    @property
    def released(self) -> Released | None:
        """What the model does, where it was driven while it was fitted."""
        return self.minimum.released

    @property
    def V(self) -> dict[str, np.ndarray]:
        """{"fit" or "validation": potentials (T, n_trace) of the fitted model (mV)}."""
        return {name: prediction.V for name, prediction in self.predictions.items()}


def fit(
    study: Study, search: Search, devices: Sequence[jax.Device] | None = None, journal: runs.Journal | None = None
) -> Fit:
    """Minimise the loss of a study, and `conclude`, which says what is raised."""
    problem = FitProblem(study, search.n_sample, devices or jax.devices(), journal)
    return conclude(problem, minimise(problem, search), search.seed)


def conclude(problem: FitProblem, minimum: Minimum, seed: int) -> Fit:
    """What has been found: how well the best point predicts the recordings of the study, and is determined.

    Args:
        seed: of the noise of predictions.

    Raises:
        BadInput: no start has a finite loss.
        KeyboardInterrupt: before any start had one.
    """
    if minimum.interrupted and problem.journal:
        problem.journal.save()
    study, best, box = problem.study, minimum.best, problem.box
    if not math.isfinite(best.loss):
        if minimum.interrupted:
            raise KeyboardInterrupt
        raise BadInput(f"no start has a finite loss; start 0: {minimum.starts[0].status}")
    parameters, information = box.parameters(best.x), unknown(box, best.x, "interrupted")
    predictions, scores = {}, {}
    at_level = study.at(minimum.level) if study.annealing else study
    try:
        for name, recording in runs.progress(study.recordings.items(), desc="predict", unit=" recordings"):
            predictions[name] = study.predict(parameters, recording, minimum.level, seed)
            scores[name] = scoring.score(recording, predictions[name], study.delta)
        if not minimum.interrupted:
            information = widened(determined(at_level, box, best.x), box, minimum)
    except KeyboardInterrupt:
        minimum = dataclasses.replace(minimum, interrupted=True)
        if problem.journal:
            problem.journal.save()
    return Fit(
        parameters=box.values(best.x),
        loss=minimum.released.loss if minimum.released else best.loss,
        minimum=minimum,
        predictions=predictions,
        scores=scores,
        identifiability=information,
        history=problem.history,
        n_simulations=problem.n_simulations,
        n_gradients=problem.n_gradients,
        seconds=problem.seconds,
        predict=functools.partial(study.free_run, parameters),
    )


def with_cost_of(problem: FitProblem, fit: Fit) -> Fit:
    """The fit, with the simulations and the seconds of another problem that led to it."""
    return dataclasses.replace(
        fit,
        n_simulations=fit.n_simulations + problem.n_simulations,
        n_gradients=fit.n_gradients + problem.n_gradients,
        seconds={name: seconds + problem.seconds[name] for name, seconds in fit.seconds.items()},
    )


def determined(study: Study, box: Box, x: np.ndarray) -> Identifiability:
    """What the data determine at x, in float64, so that the step left to the optimum is one of rounding errors too.

    Whatever fails in finding it out is said, and costs nothing that was fitted.
    """
    try:
        with jax.enable_x64(True), brainstate.environ.context(precision=64):
            asked = study.loss.predictions(study, box, x)
            return of_likelihood(box, x, asked) if isinstance(asked, Likelihood) else identifiability(box, x, *asked)
    except Undetermined as reason:
        return unknown(box, x, str(reason))
    except Exception as error:
        return unknown(box, x, f"the error analysis ended in {type(error).__name__}: {str(error).splitlines()[0]}")


def widened(information: Identifiability, box: Box, minimum: Minimum) -> Identifiability:
    """What the data determine, where the model was driven: no better than its level matters.

    By how far the parameters are from those at the levels next to it, in quadrature, such as by a missing spike.
    """
    levels = [stage.level for stage in minimum.stages]
    if not minimum.released or minimum.level not in levels:
        return information
    near = minimum.near or [minimum.stages[i].best.x for i in _beside(levels, minimum.level)]
    apart = np.max([np.abs(x - minimum.best.x) for x in near], axis=0, initial=0) * (box.high - box.low)
    pairs = zip(information.standard_errors.items(), apart, strict=True)
    errors = {name: math.hypot(error, distance) for (name, error), distance in pairs}
    return dataclasses.replace(information, standard_errors=errors)
