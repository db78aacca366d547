"""Fitting neuron models: many parameter sets simulated at once, methods that minimise, and reports.

Three nouns carry it. A `Study` is what is fitted: a model, its loss, bounds and recordings. A `FitProblem` evaluates
the loss of a study, and its gradient, for many parameter sets in one compiled program. A `Search` says by which method
and from how many starts it is minimised. `fit` and `visualize` take a study and a search and give an object back.
"""

import argparse
import dataclasses
import functools
import math
import queue
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import runs
from runs import BadInput, number

import brainpy.state
import brainunit as u
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.optimize
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

import recordings
import utils
from identifiability import (
    Box,
    Identifiability,
    Parameters,
    Prediction,
    Predictions,
    identifiability,
    plot_identifiability,
)
from recordings import Recording

METHODS = ("L-BFGS-B", "DE", "PSO", "TwoPointsDE", "CMA", "bayesian", "random")
GRADIENT_BLOCKS = (10, 50)  # parameter sets on each device
V_RESOLUTION = 0.01  # mV; no recording is taken to be more exact
# Tolerances below what float32 resolves: a start ends where its line search finds nothing lower.
LBFGSB_OPTIONS = {"maxiter": 1000, "maxfun": 20000, "ftol": 1e-12, "gtol": 1e-8}
COARSE_OPTIONS = LBFGSB_OPTIONS | {"ftol": 1e-6}  # of the stages of an annealed fit before the last

# ---- What is fitted -------------------------------------------------------------------------------------------------


class Model(Protocol):
    """What is simulated: parameters and a recording give an array (..., n_trace), or a pytree of them, such as V (mV).

    `level` is where an annealed fit stands (see `Annealing`); most models do not look at it.
    """

    def __call__(self, parameters: Parameters, recording: Recording, level: ArrayLike) -> Any: ...


@dataclasses.dataclass(frozen=True)
class Loss:
    """A loss: (output of the model, recording) -> scalar; its name with unit; and what `identifiability` asks."""

    function: Callable[[Any, Recording], jax.Array]
    name: str
    predictions: Callable[["Study", Box, np.ndarray], Predictions]


@dataclasses.dataclass(frozen=True)
class Annealing:
    """What changes in stages while a fit runs, such as the width of a likelihood: its name, unit and values in order.

    Every start is minimised at each level in turn, from where the last one ended, and then fully at the level of the
    lowest loss, which is thereby fitted too. Methods without gradients have the last level alone.
    """

    name: str
    unit: str
    levels: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class FitSettings:
    """What is fitted of a neuron, and how; the arguments of the same names, with potentials in mV and times in ms."""

    fit_target: str = "potential"
    fit_parameters: Sequence[str] = ()
    bounds: Sequence[tuple[str, list[float]]] = ()
    n_point: int | None = None
    tau_rossum: float = 5.0
    spike_level: float = 0.0
    delta: float = 4.0


@dataclasses.dataclass(frozen=True)
class Study:
    """A model, what is fitted of it, and to what.

    Args:
        model, loss, bounds: see `Model`, `Loss` and `Box`.
        recordings: "fit", and where there is one "validation".
        free_run: (parameters, current) -> V (mV) and spikes of the model when it runs freely, each (T, n_trace).
        known: {name: value} of the parameters behind the target, where they are.
        delta: coincidence window of the scores, to either side (ms).
        annealing: where a fit goes by stages.
        trajectories: as model, each array (T, n_trace), where the model does not return these itself: to find NaN.
    """

    model: Model
    loss: Loss
    bounds: Mapping[str, u.Quantity]
    recordings: Mapping[str, Recording]
    free_run: recordings.FreeRun | None = None
    known: Mapping[str, float] | None = None
    delta: float = 4.0
    annealing: Annealing | None = None
    trajectories: Model | None = None

    @property
    def last_level(self) -> float:
        """The level of what is not annealed: methods without gradients, a look before a fit, the cost of a gradient."""
        return self.annealing.levels[-1] if self.annealing else 0.0


def simulation(neuron: type[brainpy.state.Neuron], constants: Parameters | None = None) -> Model:
    """A neuron that runs freely, as a model with the output {"V": (mV), "spikes": ...}, each (T, n_trace).

    Args:
        neuron: its class, as in `utils.simulate`.
        constants: {name: value with unit} of parameters that are not fitted; without it, those of the class.
    """

    def model(parameters: Parameters, recording: Recording, level: ArrayLike = 0.0) -> dict[str, jax.Array]:
        parameters = (constants or {}) | parameters
        V, spikes = utils.simulate(neuron, parameters, recording.current * u.nA, recording.dt * u.ms)
        return dict(V=V.to_decimal(u.mV), spikes=spikes)

    return model


def free_run_of(model: Model, dt: float) -> recordings.FreeRun:
    """(parameters, current) -> V (mV) and spikes of a `simulation`, with currents every dt (ms), as one program."""
    compiled = jax.jit(model)

    def free_run(parameters: Parameters, current: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        output = compiled(parameters, Recording(np.asarray(current), dt=dt), 0.0)
        return np.asarray(output["V"], np.float64), np.asarray(output["spikes"], np.float64)

    return free_run


def squared_error(output: Mapping[str, jax.Array], recording: Recording) -> jax.Array:
    """Mean squared error of the potentials that count (mV^2)."""
    return jnp.sum(recording.mask * (output["V"] - recording.V) ** 2) / jnp.sum(recording.mask)


def predicted_potentials(study: Study, box: Box, x: np.ndarray) -> Predictions:
    """The potentials that count, for `squared_error`."""
    recording = study.recordings["fit"]
    counts = np.asarray(recording.mask) > 0

    def potentials(x):
        return study.model(box.parameters(x), recording, 0.0)["V"][counts]

    return {"V_mV": Prediction(potentials, recording.V[counts], V_RESOLUTION)}, None


SQUARED_ERROR = Loss(squared_error, "mean squared error of the potential (mV^2)", predicted_potentials)


def simulation_study(
    neuron: type[brainpy.state.Neuron],
    bounds: Mapping[str, u.Quantity],
    targets: Mapping[str, Recording],
    constants: Parameters | None = None,
) -> Study:
    """The study of a neuron class by the mean squared error of its potentials: all that a new neuron needs."""
    model = simulation(neuron, constants)
    return Study(model, SQUARED_ERROR, bounds, targets, free_run_of(model, targets["fit"].dt))


# ---- Losses and gradients of many parameter sets --------------------------------------------------------------------


@dataclasses.dataclass
class Start:
    """One start of a fit and the best point it has seen, both in [0, 1]^k."""

    initial: np.ndarray | None
    x: np.ndarray
    loss: float = math.inf
    n_gradients: int = 0
    flat: bool = False  # the gradient at the initial point is exactly zero
    status: str = "interrupted"


@dataclasses.dataclass(frozen=True)
class Minimum:
    """What a search gives: its starts, the level at which they ended, and whether Ctrl-C ended it early."""

    starts: list[Start]
    level: float = 0.0
    interrupted: bool = False

    @property
    def best(self) -> Start:
        return min(self.starts, key=lambda start: start.loss)


@dataclasses.dataclass(frozen=True)
class Round:
    """A round of evaluations: what all of them have cost so far, and the best point seen at this level."""

    round: int
    active: int
    n_simulations: int
    n_gradients: int
    seconds: float
    level: float
    best_loss: float
    parameters: dict[str, float]


class FitProblem:
    """The loss of a study over its box of parameters, evaluated for many parameter sets at once and recorded.

    Losses are one compiled program, a batch of n_sample sets split over the devices. Gradients are in forward mode: k
    parameters cost about k simulations more and store nothing, where reverse mode stores the trajectory. They are
    computed in padded blocks of one of two sizes, so that the few starts of a fit that take long do not cost what all
    of them do.

    Args:
        study: of which the recording "fit" goes to the devices once.
        n_sample: parameter sets that wait for evaluation at the same time.
        devices: JAX devices.
    """

    def __init__(self, study: Study, n_sample: int, devices: Sequence[jax.Device]):
        self.study, self.n_sample, self.box = study, n_sample, Box(study.bounds)
        self.mesh = Mesh(np.array(devices), ("batch",))
        self.programs, self.seconds = {}, {"compile": 0.0, "run": 0.0}
        self.data = jax.tree.map(lambda x: np.asarray(x, jnp.result_type(float)), study.recordings["fit"])
        self.device_data = jax.device_put(self.data, NamedSharding(self.mesh, PartitionSpec()))
        self.reset()

    def reset(self) -> None:
        """Begin another fit, with the programs that are compiled."""
        self.n_simulations = self.n_gradients = 0
        self.history: list[Round] = []
        self.on_round: Callable[[Round], None] = lambda row: None
        self.best: dict[float, Start] = {}
        self.begin = time.perf_counter() - self.seconds["compile"]

    def _losses(self, X, data, level):
        """The model runs on the traces of all sets as one flat population: XLA vectorises that best on a CPU."""
        n_trace = jax.tree.leaves(data)[0].shape[1]
        population = jax.tree.map(lambda x: jnp.tile(x, len(X)), data)
        output = self.study.model(self.box.parameters(jnp.repeat(X, n_trace, axis=0)), population, level)
        output = jax.tree.map(lambda y: y.reshape(*y.shape[:-1], len(X), n_trace), output)
        return jax.vmap(self.study.loss.function, (-2, None))(output, data)

    def _losses_and_grads(self, X, data, level):
        def along(direction):
            return jax.jvp(lambda X: self._losses(X, data, level), (X,), (jnp.broadcast_to(direction, X.shape),))

        return jax.vmap(along, out_axes=(None, -1))(jnp.eye(X.shape[1]))

    def _program(self, gradient, n_block):
        if (gradient, n_block) not in self.programs:
            start = time.perf_counter()
            split, copied = PartitionSpec("batch"), PartitionSpec()
            specs = dict(mesh=self.mesh, in_specs=(split, copied, copied), out_specs=split, check_vma=False)
            function = jax.shard_map(self._losses_and_grads if gradient else self._losses, **specs)
            X, level = np.zeros((n_block, len(self.box.low))), np.zeros(())
            X, level = (x.astype(jnp.result_type(float)) for x in (X, level))
            self.programs[gradient, n_block] = jax.jit(function).lower(X, self.device_data, level).compile()
            self.seconds["compile"] += time.perf_counter() - start
        return self.programs[gradient, n_block]

    def evaluate(self, X: np.ndarray, gradient: bool = False, level: float = 0.0) -> Any:
        """Losses (n,), or losses and gradients (n, k), at the rows of X (n, k); a round of the history."""
        n_all = -(-self.n_sample // self.mesh.size)
        small, large = (min(size, n_all) for size in GRADIENT_BLOCKS)
        n_block = self.mesh.size * (n_all if not gradient else small if len(X) <= 3 * small * self.mesh.size else large)
        program = self._program(gradient, n_block)
        padded = np.pad(X, ((0, -len(X) % n_block), (0, 0)), mode="edge").astype(jnp.result_type(float))
        at_level = np.asarray(level, jnp.result_type(float))
        out = [program(block, self.device_data, at_level) for block in padded.reshape(-1, n_block, X.shape[1])]
        out = jax.tree.map(lambda *blocks: np.concatenate(blocks)[: len(X)].astype(np.float64), *out)
        self._add_round(X, out[0] if gradient else out, gradient, level)
        return out

    def _add_round(self, X, losses, gradient, level):
        self.n_simulations += len(X)
        self.n_gradients += len(X) * gradient
        first = np.argmin(np.where(np.isfinite(losses), losses, math.inf))
        best = self.best.setdefault(level, Start(None, np.full(X.shape[1], 0.5)))
        if losses[first] < best.loss:
            best.x, best.loss = X[first].copy(), float(losses[first])
        self.seconds["run"] = time.perf_counter() - self.begin - self.seconds["compile"]
        counts = len(self.history) + 1, len(X), self.n_simulations, self.n_gradients, self.seconds["run"]
        self.history.append(Round(*counts, level, best.loss, self.box.values(best.x)))
        self.on_round(self.history[-1])

    def name_nan(self, x: np.ndarray, level: float = 0.0) -> str:
        """Where the model stops being finite at x, as text."""
        trajectories = jax.jit(self.study.trajectories or self.study.model)
        outputs = jax.tree.leaves(trajectories(self.box.parameters(jnp.asarray(x)), self.data, level))
        units = self.box.units
        where = ", ".join(f"{name} = {value:.6g} {units[name]}" for name, value in self.box.values(x).items())
        finite = np.all([np.isfinite(output) for output in outputs], axis=0)
        if finite.all():
            return f"NaN in the loss or its gradient at {where}"
        step, trace = np.argwhere(~finite)[0]
        return f"NaN at time step {step} of trace {trace} at {where}"


# ---- Methods that minimise ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Search:
    """How a loss is minimised.

    Args:
        method: one of METHODS.
        n_sample: starts of L-BFGS-B; parameter sets that the others try in a round.
        n_iter: rounds of the others, which go on until min_seconds are over.
        level: of the others, in an annealed fit; by default the last of its levels.
    """

    method: str = "L-BFGS-B"
    n_sample: int = 20
    n_iter: int = 5
    seed: int = 0
    min_seconds: float = 0.0
    level: float | None = None


def minimise(problem: FitProblem, search: Search) -> Minimum:
    """Minimise the loss of a problem by one of METHODS, with a progress bar."""
    by_gradient, annealing = search.method == "L-BFGS-B", problem.study.annealing
    total = None if by_gradient else search.n_iter * problem.n_sample
    with runs.progress(total=total, desc=search.method, unit=" simulations") as bar:

        def on_round(row: Round) -> None:
            bar.set_postfix(best_loss=f"{row.best_loss:.3g}", active=row.active, refresh=False)
            bar.update(row.n_simulations - bar.n)

        problem.on_round = on_round
        if not by_gradient:
            return derivative_free(problem, search)
        x0 = random_starts(problem, search.seed)
        return anneal(problem, annealing.levels, x0) if annealing else lbfgsb_multistart(problem, x0)


def random_starts(problem: FitProblem, seed: int) -> np.ndarray:
    """Starts (n_sample, k), uniform in the box."""
    return np.random.default_rng(seed).random((problem.n_sample, len(problem.box.low)))


def lbfgsb_multistart(
    problem: FitProblem, x0: np.ndarray, options: Mapping[str, float] = LBFGSB_OPTIONS, level: float = 0.0
) -> Minimum:
    """Minimise from every row of x0 (n, k) with SciPy's L-BFGS-B and its options, all starts advancing together.

    Each start is an ordinary `scipy.optimize.minimize` in a thread that sleeps while it waits for a loss and gradient;
    the points that all of them wait for are evaluated in one round. Its iterates are those it would have alone.

    Returns:
        The minimum, with a `Start` a row. NaN ends a start and KeyboardInterrupt all; the best points seen are kept.
    """
    starts, failures, interrupted = [Start(x, x) for x in x0], [], False
    requests, replies = queue.SimpleQueue(), [queue.SimpleQueue() for _ in starts]

    def run(i, start):
        def loss_and_grad(x):
            requests.put((i, x.copy()))
            loss, grad = replies[i].get()
            start.flat = start.flat if start.n_gradients else not grad.any()
            start.n_gradients += 1
            if loss < start.loss:
                start.x, start.loss = x.copy(), float(loss)
            if not np.isfinite([loss, *grad]).all():
                raise FloatingPointError(problem.name_nan(x, level))
            return loss, grad

        try:
            box = [(0.0, 1.0)] * len(start.x)
            start.status = scipy.optimize.minimize(
                loss_and_grad, start.x, jac=True, method="L-BFGS-B", bounds=box, options=dict(options)
            ).message
        except FloatingPointError as error:
            start.status = str(error)
        except Exception as error:
            failures.append(error)
        requests.put((i, None))

    for i, start in enumerate(starts):
        threading.Thread(target=run, args=(i, start), daemon=True).start()
    active, waiting = len(starts), {}
    try:
        while active and not failures:
            i, x = requests.get()
            if x is None:
                active -= 1
            else:
                waiting[i] = x
            if active and len(waiting) == active:
                points, waiting = sorted(waiting.items()), {}
                X = np.stack([x for _, x in points])
                losses, grads = problem.evaluate(X, gradient=True, level=level)
                for (i, _), loss, grad in zip(points, losses, grads, strict=True):
                    replies[i].put((loss, grad))
    except KeyboardInterrupt:
        interrupted = True  # the threads sleep on, and end with the process
    if failures:
        raise failures[0]
    return Minimum(starts, level, interrupted)


def anneal(problem: FitProblem, levels: Sequence[float], x0: np.ndarray) -> Minimum:
    """Minimise from every row of x0 at each level in turn, from where the last one ended, then fully at the best one.

    The best level is that of the lowest loss. KeyboardInterrupt leaves the best stage that is complete.
    """

    def stage(level, earlier, options):
        minimum = lbfgsb_multistart(problem, np.stack([start.x for start in earlier]), options, level)
        for start, before in zip(minimum.starts, earlier, strict=True):
            start.initial = before.initial
            start.flat = before.flat if before.n_gradients else start.flat
            start.n_gradients += before.n_gradients
        return minimum

    starts, stages = [Start(x, x) for x in x0], []
    for level in levels:
        last = stage(level, starts, COARSE_OPTIONS)
        if last.interrupted or not math.isfinite(last.best.loss):
            break
        starts = last.starts
        stages.append(last)
    if not stages:
        return last
    best = min(stages, key=lambda minimum: minimum.best.loss)
    refined = last if last.interrupted else stage(best.level, best.starts, LBFGSB_OPTIONS)
    return dataclasses.replace(best, interrupted=True) if refined.interrupted else refined


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
        while n < search.n_iter or problem.seconds["run"] < search.min_seconds:
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

            unit_box = nevergrad.p.Array(shape=(k,), lower=0.0, upper=1.0)
            unit_box.random_state.seed(search.seed)
            budget = dict(budget=search.n_iter * problem.n_sample, num_workers=problem.n_sample)
            optimiser = nevergrad.optimizers.registry[search.method](unit_box, **budget)
            for _ in rounds():
                candidates = [optimiser.ask() for _ in range(problem.n_sample)]
                losses = losses_at([candidate.value for candidate in candidates])
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
    """What a fit found. `predict(current)` gives V (mV) and spikes of the fitted model under another current (nA)."""

    parameters: dict[str, float]
    loss: float
    minimum: Minimum
    V: dict[str, np.ndarray]
    scores: dict[str, recordings.Score]
    identifiability: Identifiability
    history: list[Round]
    n_simulations: int
    n_gradients: int
    seconds: dict[str, float]
    predict: Callable[[ArrayLike], tuple[np.ndarray, np.ndarray]]


def fit(study: Study, search: Search, devices: Sequence[jax.Device] | None = None) -> Fit:
    """Minimise the loss of a study, and say how well the best point predicts its recordings and is determined.

    Raises:
        BadInput: no start has a finite loss.
        KeyboardInterrupt: before any start had one.
    """
    problem = FitProblem(study, search.n_sample, devices or jax.devices())
    minimum = minimise(problem, search)
    best, box = minimum.best, problem.box
    if not math.isfinite(best.loss):
        if minimum.interrupted:
            raise KeyboardInterrupt
        raise BadInput(f"no start has a finite loss; start 0: {minimum.starts[0].status}")
    V, scores = {}, {}
    predict = functools.partial(study.free_run, box.parameters(best.x))
    for name, recording in study.recordings.items():
        V[name], spikes = predict(recording.current)
        scores[name] = recordings.score(recording, V[name], spikes, study.delta * u.ms)
    return Fit(
        parameters=box.values(best.x),
        loss=best.loss,
        minimum=minimum,
        V=V,
        scores=scores,
        identifiability=identifiability(box, best.x, *study.loss.predictions(study, box, best.x)),
        history=problem.history,
        n_simulations=problem.n_simulations,
        n_gradients=problem.n_gradients,
        seconds=problem.seconds,
        predict=predict,
    )


def unit_name(unit: u.Unit) -> str:
    """The unit as text, empty for a number without."""
    return "" if unit == u.UNITLESS else str(unit).replace(" ", "")


def result_of(study: Study, fit: Fit, seed: int, extra: Mapping[str, float]) -> dict[str, Any]:
    """What result.json says of a fit."""
    box = Box(study.bounds)
    known = None if study.known is None else {name: study.known[name] for name in box.units}
    result = dict(parameters=fit.parameters, units={name: unit_name(unit) for name, unit in box.units.items()})
    result |= dict(known_parameters=known, loss=fit.loss, loss_name=study.loss.name, **extra)
    result |= dataclasses.asdict(fit.scores["fit"]) | dict(validation=fit.scores.get("validation"))
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
    return result | dict(interrupted=fit.minimum.interrupted, seed=seed)


def save_fit(run: runs.RunFolder, study: Study, fit: Fit, seed: int, extra: Mapping[str, float] | None = None) -> None:
    """Save result.json, the history and the figures of a fit; `extra` are numbers besides, {what: number}."""
    run.save("result.json", result_of(study, fit, seed, extra or {}))
    run.save("history.csv", [history_row(study, row) for row in fit.history])
    run.save("losses.png", plot_losses(fit, study.loss.name))
    run.save("identifiability.png", plot_identifiability(fit.identifiability))
    for name, recording in study.recordings.items():
        run.save(f"traces_{name}.png", recordings.plot_traces(recording, data=recording.V, model=fit.V[name]))


def history_row(study: Study, row: Round) -> dict[str, float]:
    """A row of history.csv, with the parameters in columns of their own, and the level where a fit is annealed."""
    columns = dataclasses.asdict(row)
    level, parameters = columns.pop("level"), columns.pop("parameters")
    return columns | parameters | ({study.annealing.name: level} if study.annealing else {})


def print_fit(study: Study, fit: Fit, extra: Mapping[str, float] | None = None) -> None:
    """Print what `save_fit` saves, in short."""
    known, information, starts = study.known, fit.identifiability, fit.minimum.starts
    for name, value in fit.parameters.items():
        unit = unit_name(study.bounds[name].unit)
        text = f"{name:>10} = {value:.6g} ± {information.standard_errors[name]:.2g} {unit}"
        truth = f"true {known[name]:<7.6g} off by {abs(value / known[name] - 1):.3%}" if known and known[name] else ""
        print(f"{text:<46}{truth}".rstrip())
    for direction in information.undetermined:
        print(f"not determined by these data: {direction}")
    near = sum(start.loss <= 1.1 * fit.loss + 1e-3 for start in starts)
    reached = f", reached (to 10 % + 0.001) from {near} of {len(starts)} starts" if len(starts) > 1 else ""
    print(f"{study.loss.name}: {fit.loss:.3g}{reached}")
    for what, value in (extra or {}).items():
        print(f"{what.replace('_', ' ')}: {value:.3g}")
    for name, row in fit.scores.items():
        gamma = " ".join("-" if math.isnan(value) else f"{value:.2f}" for value in row.gamma)
        same = f"{sum(row.n_spikes_same_step)} of {sum(row.n_spikes)} spikes at the same step"
        print(f"{name}, free-running: RMSE {row.rmse:.4g} mV ({row.rmse**2:.3g} mV^2), Gamma {gamma}, {same}")
    for i, start in enumerate(starts):
        if start.status.startswith("NaN"):
            print(f"start {i} ended: {start.status}")
    if all(start.flat for start in starts):
        print("WARNING: the gradient is zero at every start: this would be random search")
    print("{run:.1f} s to run and {compile:.1f} s to compile".format(**fit.seconds), end=", ")
    print(f"{fit.n_simulations} simulations, {fit.n_gradients} of them with gradient")


# ---- A look before a fit --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Preview:
    """The model at random parameter sets: these, their losses, V (mV) and spikes."""

    parameters: list[dict[str, float]]
    losses: np.ndarray
    V: list[np.ndarray]
    spikes: list[np.ndarray]


def visualize(study: Study, search: Search, devices: Sequence[jax.Device] | None = None) -> Preview:
    """Simulate a study at n_sample random parameter sets: what a fit starts from."""
    problem = FitProblem(study, search.n_sample, devices or jax.devices())
    sets = random_starts(problem, search.seed)
    current = study.recordings["fit"].current
    responses = [study.free_run(problem.box.parameters(x), current) for x in sets]
    losses = problem.evaluate(sets, level=study.last_level)
    return Preview([problem.box.values(x) for x in sets], losses, *map(list, zip(*responses, strict=True)))


def save_preview(run: runs.RunFolder, study: Study, preview: Preview) -> None:
    """Save the target with the responses of the model."""
    recording = study.recordings["fit"]
    figure = recordings.plot_traces(recording, target=recording.V)
    for trace, axis in enumerate(figure.axes[len(figure.axes) // 2 :]):
        for V in preview.V:
            axis.plot(np.arange(len(V)) * recording.dt, V[:, trace], color="C1", alpha=0.4, lw=0.7, zorder=0)
    figure.suptitle("black: the target; orange: the model at random parameters")
    run.save("target.png", figure)
    counts = dict(n_spikes=recording.spikes.sum(0), n_spikes_models=[spikes.sum(0) for spikes in preview.spikes])
    run.save("result.json", dict(parameters=preview.parameters, losses=preview.losses, **counts))


def print_preview(study: Study, preview: Preview) -> None:
    """Print what `save_preview` saves, in short."""
    losses = preview.losses
    print(f"spikes a trace: {study.recordings['fit'].spikes.sum(0).astype(int).tolist()}")
    print(f"losses of {len(losses)} random parameter sets: {np.nanmin(losses):.4g} to {np.nanmax(losses):.4g}")


# ---- Arguments ------------------------------------------------------------------------------------------------------


def bound(text: str) -> tuple[str, list[float]]:
    """argparse type: NAME=LOW:HIGH as (name, [low, high])."""
    name, _, ends = text.partition("=")
    limits = [runs.to_number(limit) for limit in ends.split(":")]
    if len(limits) != 2 or not np.isfinite(limits).all() or limits[0] >= limits[1]:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected NAME=LOW:HIGH with numbers LOW < HIGH")
    return name, limits


def parse_fit_arguments(parser: runs.Parser, argv: Sequence[str] | None, shipped: bool) -> argparse.Namespace:
    """Arguments of a neuron script, checked against each other; `shipped`: there is a recording to fit by default."""
    args = parser.parse_args(argv)
    target = args.target or ("recorded" if args.voltage or shipped else "simulated")
    methods = sorted(set(args.methods), key=METHODS.index)
    if args.resume and (args.mode != "compare" or args.output):
        parser.error("argument --resume: found without --mode compare or with --output, expected a comparison to go on")
    if args.mode == "compare" and args.protocol_budget == "equal" and "L-BFGS-B" not in methods:
        parser.error("argument --methods: found no L-BFGS-B, expected it, as the others get its budget")
    for name, chosen in (("method", [args.method]), ("methods", methods if args.mode == "compare" else [])):
        if "CMA" in chosen and len(set(args.fit_parameters)) == 1:
            parser.error(f"argument --{name}: found CMA with one parameter to fit, expected two or more")
    return argparse.Namespace(**vars(args) | dict(target=target, methods=methods))


def select_bounds(
    names: Sequence[str], ranges: Mapping[str, u.Quantity], own: Sequence[tuple[str, list[float]]]
) -> dict[str, u.Quantity]:
    """{name: Quantity [low, high]} of the parameters to fit: `ranges`, where `--bounds` has no others."""
    bounds, own = {name: ranges[name] for name in names}, dict(own)
    if unknown := own.keys() - bounds.keys():
        raise BadInput(f"argument --bounds: found {unknown.pop()!r}, expected one of {', '.join(bounds)}")
    return bounds | {name: u.Quantity(limits, unit=bounds[name].unit) for name, limits in own.items()}


def add_fit_arguments(
    parser: runs.Parser, ranges: Mapping[str, u.Quantity], fitted: Sequence[str], losses: Sequence[str]
) -> None:
    """Arguments of both neuron scripts: ranges of all parameters, those fitted by default, and what can be fitted."""
    add = parser.add_argument_group("fit").add_argument
    mode = "compare: fit by every method, several times; visualize: only draw the target and random models"
    add("--mode", choices=("fit", "compare", "visualize"), default="fit", help=mode)
    fit_target = (
        "what to fit: potentials, by mean squared error, or spikes, by van Rossum distance (or both by likelihood)"
    )
    add("--fit_target", choices=losses, default="potential", help=fit_target)
    add("--method", choices=METHODS, default="L-BFGS-B", help="L-BFGS-B uses gradients, the others do not")
    listed = (
        f"{name} {limits.mantissa[0]:g}:{limits.mantissa[1]:g} {unit_name(limits.unit)}".strip()
        for name, limits in ranges.items()
    )
    fit_parameters = f"parameters to fit, of (with bounds): {', '.join(listed)}; the others are as in the target"
    add("--fit_parameters", nargs="+", metavar="NAME", choices=ranges, default=fitted, help=fit_parameters)
    bounds = "other bounds of fitted parameters, in the units above; without this argument, those above"
    add("--bounds", nargs="+", type=bound, metavar="NAME=LOW:HIGH", default=[], help=bounds)
    add(
        "--n_sample", type=number(int, low=1), default=20, help="starts of L-BFGS-B; sets that the others try at a time"
    )
    add("--n_iter", type=number(int, low=1), default=5, help="rounds of the other methods, but for equal budgets")
    n_point = "the potential error takes every (T // N)-th of the T samples; all without this argument"
    add("--n_point", type=number(int, low=1), metavar="N", help=n_point)
    add("--tau_rossum", type=number(float, above=0), default=5.0, help="time constant of the spike loss (ms)")
    add("--delta", type=number(float, above=0), default=4.0, help="half-width of the coincidence window of Gamma (ms)")


# ---- Figures --------------------------------------------------------------------------------------------------------


def plot_losses(fit: Fit, loss_name: str) -> plt.Figure:
    """Left, the losses of all starts, sorted; right, the best loss at the last level against the simulations made."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(runs.WIDTH, 2.8), layout="constrained")
    starts, history = fit.minimum.starts, [row for row in fit.history if row.level == fit.minimum.level]
    left.plot(1 + np.arange(len(starts)), sorted(start.loss for start in starts), "k.")
    yscale = "log" if min(row.best_loss for row in history) > 0 else "linear"
    left.set(xlabel="start, best first", ylabel=loss_name, yscale=yscale)
    losses = [start.loss for start in starts if math.isfinite(start.loss)]
    left.set_ylim(min(losses) / 3, max(losses) * 3) if yscale == "log" else None
    left.xaxis.get_major_locator().set_params(integer=True)
    right.plot(*zip(*((row.n_simulations, row.best_loss) for row in history), strict=True), "k.-")
    right.set(xlabel="simulations", ylabel="best loss so far", xscale="log", yscale=yscale)
    return figure
