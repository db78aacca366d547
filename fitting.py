"""Fitting neuron models: losses of many parameter sets at once, methods that minimise them, reports and comparisons."""

import runs  # isort: skip  (first: it configures JAX)

import argparse
import dataclasses
import math
import queue
import threading
import time
import warnings
from pathlib import Path

import brainunit as u
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scipy.optimize
import scipy.stats
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

import recordings

# ---- Fitting --------------------------------------------------------------------------------------------------------

METHODS = ("L-BFGS-B", "DE", "PSO", "TwoPointsDE", "CMA", "bayesian", "random")

GRADIENT_BLOCKS = (10, 50)  # parameter sets on each device

V_RESOLUTION = 0.01  # mV; no recording is taken to be more exact

# Tolerances below what float32 resolves: a start ends where its line search finds nothing lower.
LBFGSB_OPTIONS = {"maxiter": 1000, "maxfun": 20000, "ftol": 1e-12, "gtol": 1e-8}


@dataclasses.dataclass
class Start:
    """One start of a fit and the best point it has seen, both in [0, 1]^k."""

    initial: np.ndarray | None
    x: np.ndarray
    loss: float = math.inf
    n_gradients: int = 0
    flat: bool = False  # the gradient at the initial point is exactly zero
    status: str = "interrupted"


class FitProblem:
    """A loss over a box of parameters, evaluated for many parameter sets at once and recorded.

    A set is x in [0, 1]^k, with parameter = low + x (high - low). Losses are one compiled program, a batch of n_sample
    sets split over the devices. Gradients are in forward mode: k parameters cost about k simulations more and store
    nothing, where reverse mode stores the trajectory. They are computed in padded blocks of one of two sizes, so that
    the few starts of a fit that take long do not cost what all of them do.

    Args:
        model: (parameters, data) -> array (..., n_trace), such as potentials (T, n_trace), or a pytree of them.
        loss: (output of the model, data) -> scalar.
        bounds: {name: Quantity [low, high]}.
        data: dict of arrays (T, n_trace) and of scalars, arguments of the compiled programs.
        n_sample: parameter sets that wait for evaluation at the same time.
        devices: JAX devices.
        trajectories: as model, each array (T, n_trace), where the model does not return these itself: to find NaN.
    """

    def __init__(self, model, loss, bounds, data, n_sample, devices, trajectories=None):
        self.model, self.loss, self.n_sample, self.trajectories = model, loss, n_sample, trajectories or model
        self.bounds, self.devices = bounds, devices
        self.units = {name: bound.unit for name, bound in bounds.items()}
        self.low, self.high = np.array([bound.mantissa for bound in bounds.values()], dtype=np.float64).T
        self.mesh = Mesh(np.array(devices), ("batch",))
        self.programs, self.seconds = {}, {"compile": 0.0, "run": 0.0}
        self.set_data(**data)
        self.reset()

    def reset(self):
        """Begin another fit, with the programs that are compiled."""
        self.n_simulations = self.n_gradients = 0
        self.history, self.on_round, self.interrupted = [], lambda row: None, False
        self.best_x, self.best_loss = np.full(len(self.units), 0.5), math.inf
        self.begin = time.perf_counter() - self.seconds["compile"]

    def set_data(self, **data):
        """Set the data, of the shapes that they had, which compiles nothing; the best point is forgotten."""
        self.data = {name: np.asarray(x, jnp.result_type(float)) for name, x in data.items()}
        self.device_data = jax.device_put(self.data, NamedSharding(self.mesh, PartitionSpec()))
        self.best_x, self.best_loss = np.full(len(self.units), 0.5), math.inf

    def values(self, x):
        """{name: value in the unit of its bounds} at x, never outside the bounds."""
        values = np.clip(self.low + np.asarray(x, np.float64) * (self.high - self.low), self.low, self.high)
        return dict(zip(self.units, values.tolist(), strict=True))

    def parameters(self, X):
        """{name: values with unit} at the rows of X (n, k), or at one x (k,), which may be traced."""
        values = jnp.asarray(self.low) + X * jnp.asarray(self.high - self.low)
        return {name: value * unit for (name, unit), value in zip(self.units.items(), values.T, strict=True)}

    def _losses(self, X, data):
        """The model runs on the traces of all sets as one flat population: XLA vectorises that best on a CPU."""
        n_trace = next(x.shape[1] for x in data.values() if x.ndim)
        population = {name: jnp.tile(x, len(X)) if x.ndim else x for name, x in data.items()}
        output = self.model(self.parameters(jnp.repeat(X, n_trace, axis=0)), population)
        output = jax.tree.map(lambda y: y.reshape(*y.shape[:-1], len(X), n_trace), output)
        return jax.vmap(self.loss, (-2, None))(output, data)

    def _losses_and_grads(self, X, data):
        def along(direction):
            return jax.jvp(lambda X: self._losses(X, data), (X,), (jnp.broadcast_to(direction, X.shape),))

        return jax.vmap(along, out_axes=(None, -1))(jnp.eye(X.shape[1]))

    def _program(self, gradient, n_block):
        if (gradient, n_block) not in self.programs:
            start = time.perf_counter()
            split, copied = PartitionSpec("batch"), PartitionSpec()
            specs = dict(mesh=self.mesh, in_specs=(split, copied), out_specs=split, check_vma=False)
            function = jax.shard_map(self._losses_and_grads if gradient else self._losses, **specs)
            X = np.zeros((n_block, len(self.units)), jnp.result_type(float))
            self.programs[gradient, n_block] = jax.jit(function).lower(X, self.device_data).compile()
            self.seconds["compile"] += time.perf_counter() - start
        return self.programs[gradient, n_block]

    def evaluate(self, X, gradient=False):
        """Losses (n,), or losses and gradients (n, k), at the rows of X (n, k); a round of the history."""
        n_all = -(-self.n_sample // self.mesh.size)
        small, large = (min(size, n_all) for size in GRADIENT_BLOCKS)
        n_block = self.mesh.size * (n_all if not gradient else small if len(X) <= 3 * small * self.mesh.size else large)
        program = self._program(gradient, n_block)
        padded = np.pad(X, ((0, -len(X) % n_block), (0, 0)), mode="edge").astype(jnp.result_type(float))
        out = [program(block, self.device_data) for block in padded.reshape(-1, n_block, len(self.units))]
        out = jax.tree.map(lambda *blocks: np.concatenate(blocks)[: len(X)].astype(np.float64), *out)
        self._record(X, out[0] if gradient else out, gradient)
        return out

    def _record(self, X, losses, gradient):
        self.n_simulations += len(X)
        self.n_gradients += len(X) * gradient
        best = np.argmin(np.where(np.isfinite(losses), losses, math.inf))
        if losses[best] < self.best_loss:
            self.best_x, self.best_loss = X[best].copy(), float(losses[best])
        row = dict(round=len(self.history) + 1, active=len(X), n_simulations=self.n_simulations)
        self.seconds["run"] = time.perf_counter() - self.begin - self.seconds["compile"]
        row |= dict(n_gradients=self.n_gradients, seconds=self.seconds["run"], best_loss=self.best_loss)
        row |= self.values(self.best_x) | {name: float(x) for name, x in self.data.items() if x.ndim == 0}
        self.history.append(row)
        self.on_round(row)

    def name_nan(self, x):
        """Where the model stops being finite at x, in words."""
        outputs = jax.tree.leaves(jax.jit(self.trajectories)(self.parameters(jnp.asarray(x)), self.data))
        where = ", ".join(f"{name} = {value:.6g} {self.units[name]}" for name, value in self.values(x).items())
        finite = np.all([np.isfinite(output) for output in outputs], axis=0)
        if finite.all():
            return f"NaN in the loss or its gradient at {where}"
        step, trace = np.argwhere(~finite)[0]
        return f"NaN at time step {step} of trace {trace} at {where}"


def lbfgsb_multistart(problem, x0, options=LBFGSB_OPTIONS):
    """Minimise from every row of x0 (n, k) with SciPy's L-BFGS-B and its options, all starts advancing together.

    Each start is an ordinary `scipy.optimize.minimize` in a thread that sleeps while it waits for a loss and gradient;
    the points that all of them wait for are evaluated in one round. Its iterates are those it would have alone.

    Returns:
        A `Start` a row. NaN ends a start and KeyboardInterrupt all; the best points seen are kept.
    """
    starts, failures = [Start(x, x) for x in x0], []
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
                raise FloatingPointError(problem.name_nan(x))
            return loss, grad

        try:
            box = [(0.0, 1.0)] * len(start.x)
            start.status = scipy.optimize.minimize(
                loss_and_grad, start.x, jac=True, method="L-BFGS-B", bounds=box, options=options
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
                losses, grads = problem.evaluate(np.stack([x for _, x in points]), gradient=True)
                for (i, _), loss, grad in zip(points, losses, grads, strict=True):
                    replies[i].put((loss, grad))
    except KeyboardInterrupt:
        problem.interrupted = True  # the threads sleep on, and end with the process
    if failures:
        raise failures[0]
    return starts


def derivative_free(problem, method, n_iter, seed, min_seconds=0.0):
    """Minimise in n_iter rounds of n_sample evaluations, each round one call, and in more until min_seconds are over.

    DE, PSO, TwoPointsDE and CMA are Nevergrad's, as they come; bayesian is scikit-optimize's Gaussian process
    with expected improvement and constant-liar batches; random draws uniformly from the box. A loss that is not finite
    counts as the largest finite one.

    Returns:
        A list of one `Start`, without initial point: the best set of all rounds.
    """
    status, largest, first_bad, n_bad, box = "budget used", -math.inf, "", 0, [(0.0, 1.0)] * len(problem.units)

    def losses_at(X):
        nonlocal largest, first_bad, n_bad
        X = np.asarray(X)
        losses = problem.evaluate(X)
        finite = np.isfinite(losses)
        largest = losses[finite].max(initial=largest)
        n_bad += int(np.sum(~finite))
        if not finite.all() and not first_bad:
            first_bad = problem.name_nan(X[~finite][0])
        return np.where(finite, losses, largest if math.isfinite(largest) else 1e30)

    def rounds():
        n = 0
        while n < n_iter or problem.seconds["run"] < min_seconds:
            yield n
            n += 1

    try:
        if method == "random":
            rng = np.random.default_rng(seed)
            for _ in rounds():
                losses_at(rng.random((problem.n_sample, len(box))))
        elif method == "bayesian":
            import skopt  # here because the import takes seconds

            optimiser = skopt.Optimizer(box, n_initial_points=problem.n_sample, acq_func="EI", random_state=seed)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The objective has been evaluated")  # at a corner of the box
                for _ in rounds():
                    X = optimiser.ask(n_points=problem.n_sample)
                    optimiser.tell(X, losses_at(X).tolist())
        else:
            import nevergrad

            unit_box = nevergrad.p.Array(shape=(len(box),), lower=0.0, upper=1.0)
            unit_box.random_state.seed(seed)
            budget = dict(budget=n_iter * problem.n_sample, num_workers=problem.n_sample)
            optimiser = nevergrad.optimizers.registry[method](unit_box, **budget)
            for _ in rounds():
                candidates = [optimiser.ask() for _ in range(problem.n_sample)]
                losses = losses_at([candidate.value for candidate in candidates])
                for candidate, loss in zip(candidates, losses, strict=True):
                    optimiser.tell(candidate, float(loss))
    except KeyboardInterrupt:
        problem.interrupted, status = True, Start.status
    if n_bad:
        status += f"; {n_bad} losses were not finite, first {first_bad}"
    return [Start(None, problem.best_x, problem.best_loss, status=status)]


def random_starts(problem, seed):
    """Starts (n_sample, k), uniform in the box."""
    return np.random.default_rng(seed).random((problem.n_sample, len(problem.units)))


def minimise(problem, method, n_iter, seed, multistart=None, min_seconds=0.0):
    """Fit by one of METHODS, with a progress bar; the `Start`s of the fit.

    L-BFGS-B is multistart(problem, x0), by default `lbfgsb_multistart`; for the others see `derivative_free`.
    """
    total = None if method == "L-BFGS-B" else n_iter * problem.n_sample
    with tqdm(total=total, desc=method, unit=" simulations", leave=False, disable=None) as bar:

        def on_round(row):
            bar.set_postfix(best_loss=f"{row['best_loss']:.3g}", active=row["active"], refresh=False)
            bar.update(row["n_simulations"] - bar.n)

        problem.on_round = on_round
        if method == "L-BFGS-B":
            return (multistart or lbfgsb_multistart)(problem, random_starts(problem, seed))
        return derivative_free(problem, method, n_iter, seed, min_seconds)


def identifiability(problem, predictions, clusters=None):
    """What the data determine at the best point: Fisher information, standard errors, undetermined directions.

    In the coordinates x of the box, with J = (dy / dx) / s the derivatives of the predictions y in units of their noise
    s, and residuals r = y - target, whose root mean square is taken for s:

        F = J^T J  (Gauss-Newton),  H = F + 12,  covariance H^-1,  or with clusters  H^-1 (12 + C / (C - k) G^T G) H^-1

    where 12 is what the box itself says, the precision of a uniform density, and row c of G is the sum of J r / s over
    cluster c of C: within one, residuals may depend on each other (Liang & Zeger 1986). An eigenvector of F with an
    eigenvalue below 12 is not determined: the data say less of it than the bounds.

    Args:
        predictions: {name: (function of x -> y (n,), target (n,), smallest s)}.
        clusters: cluster of every prediction, from 0, in the order of `predictions`.

    Returns:
        A dict for result.json; standard errors in the units of the parameters, direction_errors in units of the box.
    """
    J, r, noise, x = [], [], {}, jnp.asarray(problem.best_x)
    for name, (predict, target, smallest) in predictions.items():
        y, jacobian = jax.jit(lambda x, f=predict: (f(x), jax.jacfwd(f)(x)))(x)
        residual = np.asarray(y, np.float64) - target
        noise[name] = max(float(np.sqrt(np.mean(residual**2))), smallest) if len(target) else smallest
        J.append(np.asarray(jacobian, np.float64) / noise[name])
        r.append(residual / noise[name])
    J, r = np.concatenate(J), np.concatenate(r)
    eigenvalues, vectors = np.linalg.eigh(J.T @ J)
    box = 12 * np.eye(len(x))
    covariance = np.linalg.inv(J.T @ J + box)
    n_cluster = 0 if clusters is None else 1 + max(clusters)
    if n_cluster > len(x):
        G = np.zeros((n_cluster, len(x)))
        np.add.at(G, clusters, J * r[:, None])
        covariance = covariance @ (G.T @ G * n_cluster / (n_cluster - len(x)) + box) @ covariance
    errors = np.sqrt(np.diag(covariance)) * (problem.high - problem.low)
    return dict(
        noise=noise,
        standard_errors=dict(zip(problem.units, errors.tolist(), strict=True)),
        eigenvalues=eigenvalues,
        eigenvectors=vectors.T,
        direction_errors=1 / np.sqrt(np.maximum(eigenvalues, 0) + 12),
        undetermined=_name_directions(vectors[:, eigenvalues < 12], problem.units),
    )


def unit_name(unit):
    """The unit as text, empty for a runs.number without."""
    return "" if unit == u.UNITLESS else str(unit).replace(" ", "")


def _name_directions(vectors, names):
    """Directions (k, m) in words: the parameters that they contain whole, and what remains as sums of parameters."""
    names = list(names)
    alone = (vectors**2).sum(1) > 0.99
    words = [name for name, is_alone in zip(names, alone, strict=True) if is_alone]
    for vector in vectors.T[np.square(vectors[~alone]).sum(0) > 0.5]:
        terms = [f"{value:+.2f} {name}" for name, value in zip(names, vector, strict=True) if abs(value) > 0.05]
        words.append(" ".join(terms) + " (each in units of its bounds)")
    return words


def write_report(run, problem, starts, loss_name, targets, free_run, known, information, extra=()):
    """Save result.json, config.json, the history and the figures of a fit, and print its summary.

    Args:
        targets: {"fit" or "validation": dict of current (nA), V (mV) and spikes}.
        free_run: (parameters, current) -> V (mV) and spikes of the free-running model, each (T, n_trace).
        known: {name: value} of the parameters behind the target, or None.
        information: () -> what `identifiability` returns.
        extra: {what: runs.number} to runs.save and print besides.
    """
    if not math.isfinite(problem.best_loss):
        if problem.interrupted:
            raise KeyboardInterrupt
        raise runs.BadInput(f"no start has a finite loss; start 0: {starts[0].status}")
    args, best = run.args, problem.values(problem.best_x)
    units = {name: unit_name(unit) for name, unit in problem.units.items()}
    known = known and {name: known[name] for name in best}
    result = dict(parameters=best, units=units, known_parameters=known, loss=problem.best_loss, loss_name=loss_name)
    responses, measures = {}, {}
    for name, data in targets.items():
        responses[name], spikes = free_run(problem.parameters(problem.best_x), data["current"])
        trains = zip(spikes.T, data["spikes"].T, strict=True)
        measures[name] = dict(
            rmse=float(np.sqrt(np.mean((responses[name] - data["V"]) ** 2))),
            gamma=[recordings.coincidence_factor(*pair, args.dt * u.ms, args.delta * u.ms) for pair in trains],
            n_spikes=data["spikes"].sum(0).astype(int),
            n_spikes_model=spikes.sum(0).astype(int),
            n_spikes_same_step=(spikes * data["spikes"]).sum(0).astype(int),
        )
    extra = dict(extra)
    result |= extra | measures["fit"] | dict(validation=measures.get("validation"))
    result |= dict(identifiability=information(), n_simulations=problem.n_simulations)
    result |= dict(n_gradients=problem.n_gradients, seconds=problem.seconds)
    result["starts"] = [
        dict(
            initial=None if start.initial is None else problem.values(start.initial),
            parameters=problem.values(start.x),
            loss=start.loss,
            n_gradients=start.n_gradients,
            status=start.status,
        )
        for start in starts
    ]
    run.save("result.json", result | dict(interrupted=problem.interrupted, seed=args.seed))
    run.save("config.json", run.config())
    run.save("history.csv", problem.history)
    run.save("losses.png", plot_losses(starts, comparable_rows(problem), loss_name))
    run.save("identifiability.png", plot_identifiability(result["identifiability"]))
    for name, data in targets.items():
        run.save(
            f"traces_{name}.png",
            recordings.plot_traces(data["current"], args.dt, data=data["V"], model=responses[name]),
        )
    print_summary(result, measures, starts, extra)


def comparable_rows(problem):
    """The rows of the history whose losses are those of the present data, of the last width if that was annealed."""
    scalars = {name: float(x) for name, x in problem.data.items() if x.ndim == 0}
    return [row for row in problem.history if scalars.items() <= row.items()]


def print_summary(result, measures, starts, extra):
    """Print what `write_report` has saved, in short."""
    known, information = result["known_parameters"], result["identifiability"]
    for name, value in result["parameters"].items():
        text = f"{name:>10} = {value:.6g} ± {information['standard_errors'][name]:.2g} {result['units'][name]}"
        truth = f"true {known[name]:<7.6g} off by {abs(value / known[name] - 1):.3%}" if known and known[name] else ""
        print(f"{text:<46}{truth}".rstrip())
    for words in information["undetermined"]:
        print(f"not determined by these data: {words}")
    near = sum(start.loss <= 1.1 * result["loss"] + 1e-3 for start in starts)
    reached = f", reached (to 10 % + 0.001) from {near} of {len(starts)} starts" if len(starts) > 1 else ""
    print(f"{result['loss_name']}: {result['loss']:.3g}{reached}")
    for what, value in extra.items():
        print(f"{what.replace('_', ' ')}: {value:.3g}")
    for name, row in measures.items():
        gamma = " ".join("-" if math.isnan(value) else f"{value:.2f}" for value in row["gamma"])
        same = f"{row['n_spikes_same_step'].sum()} of {row['n_spikes'].sum()} spikes at the same step"
        print(f"{name}, free-running: RMSE {row['rmse']:.4g} mV ({row['rmse'] ** 2:.3g} mV^2), Gamma {gamma}, {same}")
    for i, start in enumerate(starts):
        if start.status.startswith("NaN"):
            print(f"start {i} ended: {start.status}")
    if all(start.flat for start in starts):
        print("WARNING: the gradient is zero at every start: this would be random search")
    print("{run:.1f} s to run and {compile:.1f} s to compile".format(**result["seconds"]), end=", ")
    print(f"{result['n_simulations']} simulations, {result['n_gradients']} of them with gradient")


def write_visualization(run, problem, free_run, data, seed):
    """Save the target with the responses of the model at random parameter sets: what a fit starts from."""
    sets = random_starts(problem, seed)
    responses = [free_run(problem.parameters(x), data["current"]) for x in sets]
    dt = run.args.dt
    figure = recordings.plot_traces(data["current"], dt, target=data["V"])
    for trace, axis in enumerate(figure.axes[len(figure.axes) // 2 :]):
        for V, _ in responses:
            axis.plot(np.arange(len(V)) * dt, V[:, trace], color="C1", alpha=0.4, lw=0.7, zorder=0)
    figure.suptitle("black: the target; orange: the model at random parameters")
    run.save("target.png", figure)
    run.save("config.json", run.config())
    losses = problem.evaluate(sets)
    counts = dict(n_spikes=data["spikes"].sum(0), n_spikes_models=[spikes.sum(0) for _, spikes in responses])
    run.save("result.json", dict(parameters=[problem.values(x) for x in sets], losses=losses, **counts))
    print(f"spikes a trace: {data['spikes'].sum(0).astype(int).tolist()}")
    print(f"losses of {len(sets)} random parameter sets: {np.nanmin(losses):.4g} to {np.nanmax(losses):.4g}")


# ---- Comparing methods ----------------------------------------------------------------------------------------------

BAYESIAN_EVALUATIONS = 100  # the time that its Gaussian process takes grows with their cube

RECOVERED = 0.01  # relative error of the parameters up to which they count as found


def gradient_cost(problem):
    """Simulations that a gradient costs: the ratio of the times of a full batch with gradient and without."""
    X, medians = random_starts(problem, 0), []
    for gradient in (True, False):
        times = []
        for _ in range(8):
            start = time.perf_counter()
            problem.evaluate(X, gradient)
            times.append(time.perf_counter() - start)
        medians.append(float(np.median(times[1:])))
    return medians[0] / medians[1]


def at_limit(history, quantity, limit):
    """Last row of a history in which the quantity, a function of the row, is within the limit; or else the first."""
    return next((row for row in reversed(history) if quantity(row) <= limit), history[0])


def run_repeat(problem, method, args, repeat, reference, multistart):
    """One fit by one method as a row of numbers, or None if it was interrupted.

    In an equal budget, reference is the row of L-BFGS-B: the loss is that after as many simulations, a gradient counted
    as args.gradient_cost of them, and loss_equal_time that after as many seconds.
    """
    seed = int(np.random.SeedSequence([args.seed, repeat]).generate_state(1)[0])
    n_iter, budget, seconds = args.n_iter, math.inf, 0.0

    def cost(row):
        return row["n_simulations"] + (args.gradient_cost - 1) * row["n_gradients"]

    if reference:
        problem.set_data(**{name: reference.get(name, x) for name, x in problem.data.items()})  # the same width
    if reference and args.protocol_budget == "equal":
        budget, seconds = cost(reference), reference["seconds"]
        n_iter = math.ceil((BAYESIAN_EVALUATIONS if method == "bayesian" else budget) / problem.n_sample)
    problem.reset()
    starts = minimise(problem, method, n_iter, seed, multistart, min_seconds=seconds)
    if problem.interrupted:
        return None
    history = [row | dict(cost=cost(row)) for row in problem.history]
    final = at_limit(history, cost, budget)
    if not math.isfinite(final["best_loss"]):
        raise runs.BadInput(f"no loss of {method} is finite; {starts[0].status}")
    row = dict(method=method, repeat=repeat, seed=seed, n_start=len(starts)) | final | dict(loss=final["best_loss"])
    row["loss_equal_time"] = at_limit(history, lambda row: row["seconds"], seconds or math.inf)["best_loss"]
    comparable = [row | dict(cost=cost(row)) for row in comparable_rows(problem)]
    improved = [row for i, row in enumerate(comparable) if i == 0 or row["best_loss"] < comparable[i - 1]["best_loss"]]
    curve = [[row["cost"], row["seconds"], row["best_loss"]] for row in [*improved, comparable[-1]]]
    return row | dict(seconds_compile=problem.seconds["compile"], curve=curve)


def compare(run, make_problem, n_start, paper, names, known, recording, free_run, loss_name, multistart=None):
    """Fit by every method of `--methods`, `--repeats` times, and runs.save and print what came of it.

    A repeat that is already in the folder is not run again.

    Args:
        make_problem: n_sample -> FitProblem.
        n_start: starts of L-BFGS-B.
        paper: {method: (loss, its s.d., seconds, their s.d.)} of the paper's table, where it is comparable.
        names, known: parameters that have to be found, and {name: value} behind the target, or None.
        recording: current (nA), V (mV) and spikes of the target.
        free_run: (parameters, current) -> V (mV) and spikes of the free-running model.
        multistart: as in `minimise`.

    Returns:
        {method: V of its best repeat, running freely}, or None if it was interrupted.
    """
    import nevergrad  # noqa: F401  (here and now: an import is not to be timed as part of a fit)
    import skopt  # noqa: F401

    args, rows = run.args, []
    problems = {method: make_problem(n_start if method == "L-BFGS-B" else args.n_sample) for method in args.methods}
    names = [name for name in names if known and known[name] != 0]

    def response(row):
        parameters = {name: row[name] * unit for name, unit in problems[row["method"]].units.items()}
        return free_run(parameters, recording["current"])[0]

    try:
        if stored := run.load("budget.json"):
            args.gradient_cost = stored["gradient_cost"]
        elif not args.gradient_cost:
            args.gradient_cost = gradient_cost(problems["L-BFGS-B"]) if args.protocol_budget == "equal" else 1.0
        run.save("budget.json", dict(gradient_cost=args.gradient_cost))
        run.save("config.json", run.config())
        for repeat in tqdm(range(args.repeats), desc="compare", unit=" repeats", leave=False, disable=None):
            reference = None
            for method in args.methods:
                name = f"repeats/{method}_{repeat}.json"
                row = run.load(name)
                if row is None:
                    row = run_repeat(problems[method], method, args, repeat, reference, multistart)
                    if row is None:
                        return None
                    row["free_running_mse"] = float(np.mean((response(row) - recording["V"]) ** 2))
                    found = [abs(row[name] - known[name]) <= RECOVERED * abs(known[name]) for name in names]
                    run.save(name, row | dict(recovered=all(found) if found else None))
                rows.append(run.load(name))
                if method == "L-BFGS-B":
                    reference = rows[-1]
        return write_comparison(run, rows, paper, loss_name, recording, response)
    except KeyboardInterrupt:
        if run.made:
            return None
        raise


def write_comparison(run, rows, paper, loss_name, recording, response):
    """Save repeats.csv, comparison.csv, the table in Markdown and the figures; print the table. See `compare`."""
    methods, table = {}, []
    for row in rows:
        methods.setdefault(row["method"], []).append(row)
    for method, repeats in methods.items():
        line = dict(method=method, n_repeat=len(repeats))
        for name in ("loss", "loss_equal_time", "free_running_mse", "seconds", "n_simulations", "n_gradients"):
            values = np.array([row[name] for row in repeats], float)
            line |= {name: values.mean(), f"{name}_sd": values.std(ddof=min(1, len(values) - 1))}
            line[f"{name}_median"] = np.median(values)
        line["recovered"] = np.array([row["recovered"] for row in repeats], float).mean()
        line |= dict(seconds_compile=max(row["seconds_compile"] for row in repeats), p=None)
        if method != "L-BFGS-B" and "L-BFGS-B" in methods:
            pairs = zip(repeats, methods["L-BFGS-B"], strict=True)
            difference = np.array([row["loss"] - reference["loss"] for row, reference in pairs])
            line["p"] = float(scipy.stats.wilcoxon(difference).pvalue) if difference.any() else 1.0
        names = ("paper_loss", "paper_loss_sd", "paper_seconds", "paper_seconds_sd")
        table.append(line | dict(zip(names, paper.get(method, (None,) * 4), strict=True)))
    run.save("repeats.csv", [{name: value for name, value in row.items() if name != "curve"} for row in rows])
    run.save("comparison.csv", table)
    text = markdown_of(table, run.args, loss_name)
    run.save("comparison.md", text)
    run.save("comparison.png", plot_comparison(methods, run.args.gradient_cost))
    responses = {method: response(min(rows, key=lambda row: row["loss"])) for method, rows in methods.items()}
    run.save("methods.png", plot_methods(recording, run.args.dt, responses))
    print(text, end="")
    return responses


def markdown_of(table, args, loss_name):
    """The comparison as a Markdown table and a line on how it was made."""

    def spread(row, name, mean=".3g", sd=".2g"):
        return "" if row[name] is None else f"{row[name]:{mean}} ± {row[f'{name}_sd']:{sd}}"

    columns = {
        "method": lambda row: row["method"],
        "loss (median)": lambda row: f"{spread(row, 'loss')} ({row['loss_median']:.3g})",
        "median in equal time": lambda row: f"{row['loss_equal_time_median']:.3g}",
        "median free-running, mV²": lambda row: f"{row['free_running_mse_median']:.3g}",
        "paper's loss": lambda row: spread(row, "paper_loss"),
        "seconds": lambda row: spread(row, "seconds"),
        "to compile": lambda row: f"{row['seconds_compile']:.1f}",
        "paper's seconds": lambda row: spread(row, "paper_seconds"),
        "simulations": lambda row: spread(row, "n_simulations", ".0f", ".0f"),
        "of them gradients": lambda row: spread(row, "n_gradients", ".0f", ".0f"),
        "found": lambda row: "" if math.isnan(row["recovered"]) else f"{row['recovered']:.0%}",
        "p": lambda row: "" if row["p"] is None else f"{row['p']:.2g}",
    }
    equal, has_paper = args.protocol_budget == "equal", any(row["paper_loss"] is not None for row in table)
    dropped = (set() if equal else {"median in equal time"}) | (
        set() if has_paper else {"paper's loss", "paper's seconds"}
    )
    columns = {name: cell for name, cell in columns.items() if name not in dropped}
    grid = [list(columns), ["---"] * len(columns), *([cell(row) for cell in columns.values()] for row in table)]
    note = f"Loss: {loss_name}, of the {args.target} target; {args.repeats} repeats, mean ± s.d.; found: within "
    note += f"{RECOVERED:.0%}; p: Wilcoxon signed-rank test of the loss against L-BFGS-B's."
    if equal:
        note += f" A gradient counts as {args.gradient_cost:.2f} simulations."
    if equal and "bayesian" in args.methods:
        note += f" bayesian has {BAYESIAN_EVALUATIONS} evaluations, which take it longer than the others have."
    return "\n".join("| " + " | ".join(line) + " |" for line in grid) + f"\n\n{note}\n"


# ---- Arguments ------------------------------------------------------------------------------------------------------


def bound(text):
    """argparse type: NAME=LOW:HIGH as (name, [low, high])."""
    name, _, limits = text.partition("=")
    limits = [runs.to_number(limit) for limit in limits.split(":")]
    if len(limits) != 2 or not np.isfinite(limits).all() or limits[0] >= limits[1]:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected NAME=LOW:HIGH with numbers LOW < HIGH")
    return name, limits


def parse_fit_arguments(parser, shipped):
    """Arguments of a neuron script, checked against each other; `shipped`: there is a recording to fit by default."""
    args = parser.parse_args()
    args.target = args.target or ("recorded" if args.voltage or shipped else "simulated")
    args.methods = sorted(set(args.methods), key=METHODS.index)
    if args.resume and (args.mode != "compare" or args.output):
        parser.error("argument --resume: found without --mode compare or with --output, expected a comparison to go on")
    if args.mode == "compare" and args.protocol_budget == "equal" and "L-BFGS-B" not in args.methods:
        parser.error("argument --methods: found no L-BFGS-B, expected it, as the others get its budget")
    for name, methods in (("method", [args.method]), ("methods", args.methods if args.mode == "compare" else [])):
        if "CMA" in methods and len(set(args.fit_parameters)) == 1:
            parser.error(f"argument --{name}: found CMA with one parameter to fit, expected two or more")
    return args


def select_bounds(args, ranges):
    """{name: Quantity [low, high]} of the parameters to fit: `ranges`, where `--bounds` has no others."""
    bounds, own = {name: ranges[name] for name in args.fit_parameters}, dict(args.bounds)
    if unknown := own.keys() - bounds.keys():
        raise runs.BadInput(f"argument --bounds: found {unknown.pop()!r}, expected one of {', '.join(bounds)}")
    return bounds | {name: u.Quantity(limits, unit=bounds[name].unit) for name, limits in own.items()}


def add_fit_arguments(parser, ranges, fitted):
    """Arguments of both neuron scripts: the ranges of all parameters {name: Quantity}, and those fitted by default."""
    add = parser.add_argument_group("fit").add_argument
    mode = "compare: fit by every method, several times; visualize: only draw the target and random models"
    add("--mode", choices=("fit", "compare", "visualize"), default="fit", help=mode)
    fit_target = (
        "what to fit: potentials, by mean squared error, or spikes, by van Rossum distance (or both by likelihood)"
    )
    add("--fit_target", choices=("potential", "spike"), default="potential", help=fit_target)
    add("--method", choices=METHODS, default="L-BFGS-B", help="L-BFGS-B uses gradients, the others do not")
    listed = (
        f"{name} {bound.mantissa[0]:g}:{bound.mantissa[1]:g} {unit_name(bound.unit)}".strip()
        for name, bound in ranges.items()
    )
    fit_parameters = f"parameters to fit, of (with bounds): {', '.join(listed)}; the others are as in the target"
    add("--fit_parameters", nargs="+", metavar="NAME", choices=ranges, default=fitted, help=fit_parameters)
    bounds = "other bounds of fitted parameters, in the units above; without this argument, those above"
    add("--bounds", nargs="+", type=bound, metavar="NAME=LOW:HIGH", default=[], help=bounds)
    add(
        "--n_sample",
        type=runs.number(int, low=1),
        default=20,
        help="starts of L-BFGS-B; sets that the others try at a time",
    )
    add("--n_iter", type=runs.number(int, low=1), default=5, help="rounds of the other methods, but for equal budgets")
    n_point = "the potential error takes every (T // N)-th of the T samples; all without this argument"
    add("--n_point", type=runs.number(int, low=1), metavar="N", help=n_point)
    add("--tau_rossum", type=runs.number(float, above=0), default=5.0, help="time constant of the spike loss (ms)")
    add(
        "--delta",
        type=runs.number(float, above=0),
        default=4.0,
        help="half-width of the coincidence window of Gamma (ms)",
    )

    add = parser.add_argument_group("compare").add_argument
    methods = "methods to compare; each is tested against L-BFGS-B"
    add("--methods", nargs="+", choices=METHODS, metavar="METHOD", default=list(METHODS), help=methods)
    add("--repeats", type=runs.number(int, low=1), default=10, help="fits by each method, from other random numbers")
    budget = (
        "paper: as many starts of L-BFGS-B as in the paper's release, to convergence, and n_iter rounds of n_sample; "
        "equal: as many simulations, and separately as many seconds, as n_sample starts of L-BFGS-B take, "
        f"but {BAYESIAN_EVALUATIONS} evaluations for bayesian"
    )
    add("--protocol_budget", choices=("paper", "equal"), default="equal", help=budget)
    cost = "simulations that a gradient counts for in an equal budget; measured without this argument, kept by --resume"
    add("--gradient_cost", type=runs.number(float, above=0), metavar="N", help=cost)
    add("--resume", type=Path, metavar="DIR", help="run folder of an interrupted comparison, to run what is missing")

    add = parser.add_argument_group("data").add_argument
    target = "fit recorded traces (so if --voltage is given), or the model's own response to the currents at the "
    target += "paper's parameters"
    add("--target", choices=("recorded", "simulated"), help=target)
    add("--current", type=Path, metavar="CSV", help="currents: a header of sample numbers, an index and a trace a line")
    add("--voltage", type=Path, metavar="CSV", help="recorded potentials, in the same layout")
    for kind in ("current", "voltage"):
        help = f"{kind} traces for validation only; without this argument, those that belong to the default target"
        add(f"--validation_{kind}", type=Path, metavar="CSV", help=help)
    add("--dt", type=runs.number(float, above=0), help="time between samples, and step of the simulation (ms)")
    add("--current_unit", choices=recordings.CURRENT_UNITS, default="A", help="unit of the current files")
    add("--voltage_unit", choices=recordings.VOLTAGE_UNITS, default="mV", help="unit of the voltage files")
    add("--noise_std", type=runs.number(float, low=0), default=0.0, help="s.d. of white noise added to the target (mV)")
    jitter = "s.d. of a normal jitter added to the spike times of the target, rounded to steps (ms)"
    add("--spike_jitter", type=runs.number(float, low=0), default=0.0, help=jitter)
    spike_level = "a spike of recorded potentials is an upward crossing of it (mV)"
    add("--spike_level", type=runs.number(float), default=0.0, help=spike_level)


# ---- Figures --------------------------------------------------------------------------------------------------------


def plot_losses(starts, history, loss_name):
    """Left, the losses of all starts, sorted; right, the best loss against the simulations made."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(runs.WIDTH, 2.8), layout="constrained")
    left.plot(1 + np.arange(len(starts)), sorted(start.loss for start in starts), "k.")
    yscale = "log" if min(row["best_loss"] for row in history) > 0 else "linear"
    left.set(xlabel="start, best first", ylabel=loss_name, yscale=yscale)
    losses = [start.loss for start in starts if math.isfinite(start.loss)]
    left.set_ylim(min(losses) / 3, max(losses) * 3) if yscale == "log" else None
    left.xaxis.get_major_locator().set_params(integer=True)
    right.plot(*zip(*((row["n_simulations"], row["best_loss"]) for row in history), strict=True), "k.-")
    right.set(xlabel="simulations", ylabel="best loss so far", xscale="log", yscale=yscale)
    return figure


def plot_identifiability(information):
    """Left, the standard error along each eigenvector of the Fisher matrix, in units of the box; right, the vectors."""
    names, eigenvalues = list(information["standard_errors"]), information["eigenvalues"]
    index = np.arange(len(names))
    figure, (left, right) = plt.subplots(1, 2, figsize=(runs.WIDTH, 2.8), layout="constrained")
    left.bar(index, information["direction_errors"], color=np.where(eigenvalues < 12, "C1", "0.4"))
    left.axhline(12**-0.5, color="k", lw=0.8, ls="--")
    left.set(yscale="log", xticks=index, xlabel="eigenvector", ylabel="standard error (units of the bounds)")
    left.set_title("dashed: what the bounds alone say; orange: the data say less")
    size = np.abs(information["eigenvectors"]).T
    image = right.imshow(size, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    right.set(xlabel="eigenvector", xticks=index, yticks=index, yticklabels=names)
    figure.colorbar(image, ax=right, label="size of the component")
    return figure


def plot_comparison(methods, gradient_cost):
    """Best loss so far against simulations and seconds: median and quartiles over the repeats {method: rows}."""
    figure, axes = plt.subplots(1, 2, figsize=(runs.WIDTH, 2.8), sharey=True, layout="constrained")
    simulations = f"simulations (a gradient counts as {gradient_cost:.2g})"
    for column, (axis, xlabel) in enumerate(zip(axes, (simulations, "seconds (without compilation)"), strict=True)):
        for i, (method, repeats) in enumerate(methods.items()):
            curves = [np.array(row["curve"]).T for row in repeats]
            start, end = max(curve[column][0] for curve in curves), min(curve[column][-1] for curve in curves)
            x = np.geomspace(start, max(start, end), 100)
            best = [curve[2][np.searchsorted(curve[column], x * (1 + 1e-12), side="right") - 1] for curve in curves]
            low, median, high = np.quantile(best, (0.25, 0.5, 0.75), axis=0)
            axis.plot(x, median, ("-", "--")[i % 2], color=f"C{i}", label=method)
            axis.fill_between(x, low, high, color=f"C{i}", alpha=0.2, lw=0)
        axis.set(xlabel=xlabel, xscale="log", yscale="log")
    axes[0].set_ylabel("best loss so far")
    axes[1].legend()
    return figure


def plot_methods(recording, dt, responses, traces=slice(0, 5)):
    """Currents over potentials, a row a method and a column a trace: the target black, the fitted model orange."""
    traces = np.arange(recording["V"].shape[1])[traces]
    t, n_row = np.arange(len(recording["V"])) * dt, 1 + len(responses)
    layout = dict(sharex=True, sharey="row", squeeze=False, layout="constrained")
    figure, axes = plt.subplots(n_row, len(traces), figsize=(1 + (runs.WIDTH - 1) / 5 * len(traces), n_row), **layout)
    for column, trace in enumerate(traces):
        axes[0, column].plot(t, recording["current"][:, trace], color="0.4", lw=1)
        axes[0, column].set_title(f"trace {trace}")
        for axis, (method, V) in zip(axes[1:, column], responses.items(), strict=True):
            axis.plot(t, recording["V"][:, trace], "k-", lw=1)
            axis.plot(t, V[:, trace], "C1--", lw=0.8)
            axis.set_ylabel(f"{method}\nV (mV)" if column == 0 else "")
        axes[-1, column].set_xlabel("t (ms)")
    axes[0, 0].set_ylabel("I (nA)")
    return figure
