"""Comparing methods that fit: each as often as planned, with the budgets of the paper or with equal ones."""

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import runs
from runs import BadInput, number

import brainunit as u
import jax
import matplotlib.pyplot as plt
import numpy as np
import scipy.stats

import processes
from fitting import (
    METHODS,
    SOLVERS,
    Fit,
    FitProblem,
    Minimum,
    Round,
    Search,
    conclude,
    minimise,
    random_starts,
    starts_from,
    with_cost_of,
)
from recordings import Data, Recording, known_potentials
from studies import Study, unit_name

BAYESIAN_EVALUATIONS = 100  # the time that its Gaussian process takes grows with their cube
N_TIMED, T_TIMED = 7, 3.0  # times and seconds, in which the cost of a gradient is measured
RECOVERED = 0.01  # relative error of the parameters up to which they count as found

# ---- A comparison ----------------------------------------------------------------------------------------------------


class PaperResult(NamedTuple):
    """Loss and seconds of a method in a table of the paper, mean and s.d. of each."""

    loss: float
    loss_sd: float
    seconds: float
    seconds_sd: float


@dataclasses.dataclass(frozen=True)
class Plan:
    """A comparison of methods: each fits `repeats` times, from other random numbers.

    Args:
        protocol_budget: "paper" gives L-BFGS-B n_start starts to convergence, and the others n_iter rounds of n_sample;
            "equal" gives these as many simulations, and separately as many seconds, as n_start starts took.
        gradient_cost: simulations that a gradient counts for; measured without it where the budget is equal.
        names: parameters that have to be found, where those behind the target are known.
        paper: {method: result}, where it is comparable.
        target: what the table says that the target is.
    """

    methods: Sequence[str] = METHODS
    repeats: int = 10
    protocol_budget: str = "equal"
    gradient_cost: float | None = None
    n_start: int = 20
    n_sample: int = 20
    n_iter: int = 5
    seed: int = 0
    names: Sequence[str] = ()
    paper: Mapping[str, PaperResult] = dataclasses.field(default_factory=dict)
    target: str = "recorded"


@dataclasses.dataclass(frozen=True)
class Repeat:
    """One fit by one method.

    Args:
        loss_equal_time: that after as many seconds as L-BFGS-B had; None by the budget of the paper.
        free_running_mse: of the potentials of the fitted model (mV^2), if any are known.
        recovered: whether all parameters that have to be found are, if it is known.
        curve: simulations, seconds and best loss so far, wherever it improved at the level of the result.
    """

    method: str
    repeat: int
    seed: int
    n_start: int
    loss: float
    loss_equal_time: float | None
    free_running_mse: float | None
    recovered: bool | None
    seconds: float
    seconds_compile: float
    n_simulations: int
    n_gradients: int
    level: float
    parameters: dict[str, float]
    curve: list[list[float]]


class Store(dict):
    """Where a comparison keeps finished repeats and finds them again: in memory, as a `runs.RunFolder` in files."""

    load, save = dict.get, dict.__setitem__


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The repeats of a comparison, V (mV) of the best of each method, and whether Ctrl-C ended it early.

    Args:
        table: a row a method, as `table_of` gives it; empty where the comparison was interrupted.
    """

    repeats: list[Repeat]
    V: dict[str, np.ndarray]
    gradient_cost: float
    interrupted: bool = False
    table: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def by_method(self) -> dict[str, list[Repeat]]:
        methods: dict[str, list[Repeat]] = {}
        for row in self.repeats:
            methods.setdefault(row.method, []).append(row)
        return methods


def measured_gradient_cost(problem: FitProblem) -> float:
    """Simulations that a gradient costs: of a full batch, the median ratio of its times with gradient and without.

    One after the other, for T_TIMED and at least N_TIMED times, so that other work on the machine slows down both.
    """
    X, ratios, begin = random_starts(problem, 0), [], time.perf_counter()

    def seconds(what):
        start = time.perf_counter()
        problem.evaluate(X, what, problem.study.last_level)
        return time.perf_counter() - start

    seconds("gradients"), seconds("losses")  # to compile
    while len(ratios) < N_TIMED or time.perf_counter() - begin < T_TIMED:
        ratios.append(seconds("gradients") / seconds("losses"))
    return float(np.median(ratios))


def last_within(history: Sequence[Round], quantity: Callable[[Round], float], limit: float) -> Round:
    """Last row of a history in which the quantity, a function of the row, is within the limit; or else the first."""
    return next((row for row in reversed(history) if quantity(row) <= limit), history[0])


def run_repeat(
    problem: FitProblem, plan: Plan, gradient_cost: float, method: str, repeat: int, reference: Repeat | None
) -> Repeat:
    """One fit by one method; `reference` is that by L-BFGS-B, whose level and, in an equal budget, cost it has too."""
    seed = int(np.random.SeedSequence([plan.seed, repeat]).generate_state(1)[0])
    search = Search(method, problem.n_sample, plan.n_iter, seed, level=reference and reference.level)
    budget, seconds = math.inf, 0.0

    def cost(row: Round | Repeat) -> float:
        return row.n_simulations + (gradient_cost - 1) * row.n_gradients

    if reference and plan.protocol_budget == "equal":
        budget, seconds = cost(reference), reference.seconds
        n_iter = math.ceil((BAYESIAN_EVALUATIONS if method == "bayesian" else budget) / problem.n_sample)
        search = dataclasses.replace(search, n_iter=n_iter, min_seconds=seconds)
    problem.reset()
    minimum = minimise(problem, search)
    if minimum.interrupted:
        raise KeyboardInterrupt
    final = last_within(problem.history, cost, budget)
    if not math.isfinite(final.best_loss):
        raise BadInput(f"no loss of {method} is finite; {minimum.starts[0].status}")
    comparable = [row for row in problem.history if row.level == minimum.level]
    improved = [row for i, row in enumerate(comparable) if i == 0 or row.best_loss < comparable[i - 1].best_loss]
    in_time = last_within(problem.history, lambda row: row.seconds, seconds or math.inf).best_loss
    study, known = problem.study, problem.study.known
    parameters = {name: value * problem.box.units[name] for name, value in final.parameters.items()}
    errors = {name: abs(final.parameters[name] - known[name]) for name in plan.names if known and known.get(name)}
    recovered = [error <= RECOVERED * abs(known[name]) for name, error in errors.items()]
    return Repeat(
        method=method,
        repeat=repeat,
        seed=seed,
        n_start=len(minimum.starts),
        loss=final.best_loss,
        loss_equal_time=in_time if plan.protocol_budget == "equal" else None,
        free_running_mse=free_running_mse(study, parameters),
        recovered=all(recovered) if recovered else None,
        seconds=final.seconds,
        seconds_compile=problem.seconds["compile"],
        n_simulations=final.n_simulations,
        n_gradients=final.n_gradients,
        level=final.level,
        parameters=final.parameters,
        curve=[[cost(row), row.seconds, row.best_loss] for row in [*improved, comparable[-1]]],
    )


def free_running_mse(study: Study, parameters: Mapping[str, u.Quantity]) -> float | None:
    """Mean squared error (mV^2) of the model that runs freely, wherever it is known; None where no potential is."""
    recording = study.recordings["fit"]
    if not np.any(recording.mask):
        return None
    error = (study.free_run(dict(parameters), recording)[0] - recording.V) ** 2
    return float(np.sum(recording.observed * error) / np.sum(recording.observed))


def file_of(method: str, repeat: int) -> str:
    """The name under which a store has a repeat."""
    return f"repeats/{method}_{repeat}.json"


def repeat_from(name: str, stored: dict[str, Any]) -> Repeat:
    """The repeat that a store has under a name."""
    try:
        return Repeat(**stored)
    except TypeError:
        raise BadInput(f"{name}: found a repeat of an earlier version, expected one of this; begin anew") from None


def compare(
    study: Study, plan: Plan, devices: Sequence[jax.Device] | None = None, store: Store | runs.RunFolder | None = None
) -> Comparison:
    """Fit by every method of a plan. A repeat that is already in the store is not run again.

    Of several processes, each has repeats of its own, on its own devices.

    Raises:
        KeyboardInterrupt: before the first repeat; what an earlier comparison has left in the store is still there.
    """
    import nevergrad  # noqa: F401  (here and now: an import is not to be timed as part of a fit)
    import skopt  # noqa: F401

    store, devices, repeats = Store() if store is None else store, devices or jax.devices(), []
    own = [device for device in devices if device.process_index == jax.process_index()]
    n_samples = {method: plan.n_start if method == "L-BFGS-B" else plan.n_sample for method in plan.methods}
    problems = {method: FitProblem(study, n_sample, own) for method, n_sample in n_samples.items()}
    stored = store.load("budget.json")
    gradient_cost = stored["gradient_cost"] if stored else plan.gradient_cost
    if not gradient_cost:
        equal = plan.protocol_budget == "equal"
        gradient_cost = measured_gradient_cost(problems["L-BFGS-B"]) if equal else 1.0
    gradient_cost = processes.gather(gradient_cost)[0]
    store.save("budget.json", dict(gradient_cost=gradient_cost))

    def repeat_of(method, repeat, reference):
        found = store.load(file_of(method, repeat)) if repeat < plan.repeats else {}
        if found is None:
            try:
                found = dataclasses.asdict(run_repeat(problems[method], plan, gradient_cost, method, repeat, reference))
            except KeyboardInterrupt:  # which others are to know of
                found = dict(interrupted=True)
        return runs.to_json(found)

    try:
        n, index = jax.process_count(), jax.process_index()
        for first in runs.progress(range(0, plan.repeats, n), desc="compare", unit=" repeats", unit_scale=n):
            reference = None
            for method in plan.methods:
                found = processes.gather(repeat_of(method, first + index, reference))
                if any("interrupted" in row for row in found):
                    raise KeyboardInterrupt
                for repeat, row in enumerate(found[: plan.repeats - first], first):
                    name = file_of(method, repeat)
                    if store.load(name) is None:
                        store.save(name, row)
                    repeats.append(repeat_from(name, row))
                    if method == "L-BFGS-B" and repeat == first + index:
                        reference = repeats[-1]
        repeats.sort(key=lambda row: row.repeat)
        comparison, V = Comparison(repeats, {}, gradient_cost), {}
        for method, rows in comparison.by_method.items():
            best = min(rows, key=lambda row: row.loss)
            parameters = {name: value * study.bounds[name].unit for name, value in best.parameters.items()}
            V[method] = study.free_run(parameters, study.recordings["fit"])[0]
        return dataclasses.replace(comparison, V=V, table=table_of(plan, comparison))
    except KeyboardInterrupt:
        return Comparison(repeats, {}, gradient_cost, interrupted=True)


def save_comparison(run: runs.RunFolder, study: Study, plan: Plan, comparison: Comparison, data: Data) -> None:
    """Save result.json, repeats.csv, comparison.csv, the table in Markdown and the figures."""
    units = {name: unit_name(bound.unit) for name, bound in study.bounds.items()}
    result = dict(mode="compare", table=comparison.table, loss_name=study.loss.name, constants=study.constants)
    result |= dict(units=units, gradient_cost=comparison.gradient_cost, spike_level=data.spike_level, data=data.report)
    run.save("result.json", result)
    rows = [dataclasses.asdict(row) for row in comparison.repeats]
    rows = [{name: x for name, x in row.items() if name != "curve"} | row["parameters"] for row in rows]
    run.save("repeats.csv", [{name: x for name, x in row.items() if name != "parameters"} for row in rows])
    run.save("comparison.csv", comparison.table)
    run.save("comparison.md", markdown_of(study, plan, comparison))
    run.save("comparison.png", plot_comparison(comparison))
    run.save("methods.png", plot_methods(study.recordings["fit"], comparison.V))


def table_of(plan: Plan, comparison: Comparison) -> list[dict[str, Any]]:
    """A row a method: means, standard deviations and medians over the repeats, and the paper's numbers if it has any.

    The paper's are None for a method that it does not have.
    """
    table, methods = [], comparison.by_method
    unknown = dict.fromkeys(PaperResult._fields) if plan.paper.keys() & methods else {}
    for method, repeats in methods.items():
        line: dict[str, Any] = dict(method=method, n_repeat=len(repeats))
        timed = ("loss_equal_time",) if plan.protocol_budget == "equal" else ()
        for name in ("loss", *timed, "free_running_mse", "seconds", "n_simulations", "n_gradients"):
            values = np.array([getattr(row, name) for row in repeats], float)
            line |= {name: values.mean(), f"{name}_sd": values.std(ddof=min(1, len(values) - 1))}
            line[f"{name}_median"] = np.median(values)
        line["recovered"] = np.array([row.recovered for row in repeats], float).mean()
        line |= dict(seconds_compile=max(row.seconds_compile for row in repeats), p=None)
        if method != "L-BFGS-B" and "L-BFGS-B" in methods:
            pairs = zip(repeats, methods["L-BFGS-B"], strict=True)
            difference = np.array([row.loss - reference.loss for row, reference in pairs])
            line["p"] = float(scipy.stats.wilcoxon(difference).pvalue) if difference.any() else 1.0
        paper = plan.paper[method]._asdict() if method in plan.paper else unknown
        table.append(line | {f"paper_{name}": x for name, x in paper.items()})
    return table


def markdown_of(study: Study, plan: Plan, comparison: Comparison) -> str:
    """The comparison as a Markdown table and a line on how it was made."""

    def spread(row, name, mean=".3g", sd=".2g"):
        return "" if row[name] is None else f"{row[name]:{mean}} ± {row[f'{name}_sd']:{sd}}"

    columns = {
        "method": lambda row: row["method"],
        "loss (median)": lambda row: f"{spread(row, 'loss')} ({row['loss_median']:.3g})",
        "median in equal time": lambda row: f"{row['loss_equal_time_median']:.3g}",
        "median free-running, mV²": lambda row: f"{row['free_running_mse_median']:.3g}".replace("nan", ""),
        "paper's loss": lambda row: spread(row, "paper_loss"),
        "seconds": lambda row: spread(row, "seconds"),
        "to compile": lambda row: f"{row['seconds_compile']:.1f}",
        "paper's seconds": lambda row: spread(row, "paper_seconds"),
        "simulations": lambda row: spread(row, "n_simulations", ".0f", ".0f"),
        "of them gradients": lambda row: spread(row, "n_gradients", ".0f", ".0f"),
        "found": lambda row: "" if math.isnan(row["recovered"]) else f"{row['recovered']:.0%}",
        "p": lambda row: "" if row["p"] is None else f"{row['p']:.2g}",
    }
    table, equal = comparison.table, plan.protocol_budget == "equal"
    dropped = set() if equal else {"median in equal time"}
    dropped |= set() if plan.paper.keys() & set(plan.methods) else {"paper's loss", "paper's seconds"}
    columns = {name: cell for name, cell in columns.items() if name not in dropped}
    grid = [list(columns), ["---"] * len(columns), *([cell(row) for cell in columns.values()] for row in table)]
    note = f"Loss: {study.loss.name}, of the {plan.target} target; {plan.repeats} repeats, mean ± s.d.; found: within "
    note += f"{RECOVERED:.0%}; p: Wilcoxon signed-rank test of the loss against L-BFGS-B's."
    if equal:
        note += f" A gradient counts as {comparison.gradient_cost:.2f} simulations."
    if equal and "bayesian" in plan.methods:
        note += f" bayesian has {BAYESIAN_EVALUATIONS} evaluations, and more where the others have more seconds."
    return "\n".join("| " + " | ".join(line) + " |" for line in grid) + f"\n\n{note}\n"


# ---- Arguments ------------------------------------------------------------------------------------------------------


def add_compare_arguments(parser: runs.Parser) -> None:
    """Arguments of a comparison."""
    add = parser.add_argument_group("compare").add_argument
    methods = "methods to compare; each is tested against L-BFGS-B"
    add("--methods", nargs="+", choices=METHODS, metavar="METHOD", default=list(METHODS), help=methods)
    add("--repeats", type=number(int, low=1), default=10, help="fits by each method, from other random numbers")
    budget = (
        "paper: as many starts of L-BFGS-B as in the paper's release, to convergence, and n_iter rounds of n_sample; "
        "equal: as many simulations, and separately as many seconds, as n_sample starts of L-BFGS-B take, "
        f"but for bayesian {BAYESIAN_EVALUATIONS} evaluations, or as many more as fit into these seconds"
    )
    add("--protocol_budget", choices=("paper", "equal"), default="equal", help=budget)
    cost = "simulations that a gradient counts for in an equal budget; measured without this argument, kept by --resume"
    add("--gradient_cost", type=number(float, above=0), metavar="N", help=cost)


# ---- Figures ---------------------------------------------------------------------------------------------------------


def plot_comparison(comparison: Comparison) -> plt.Figure:
    """Best loss so far against simulations and seconds: median and quartiles over the repeats."""
    figure, axes = plt.subplots(1, 2, figsize=(runs.WIDTH, 2.8), sharey=True, layout="constrained")
    simulations = f"simulations (a gradient counts as {comparison.gradient_cost:.2g})"
    for column, (axis, xlabel) in enumerate(zip(axes, (simulations, "seconds (without compilation)"), strict=True)):
        for i, (method, repeats) in enumerate(comparison.by_method.items()):
            curves = [np.array(row.curve).T for row in repeats]
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


def plot_methods(
    recording: Recording, responses: Mapping[str, np.ndarray], traces: Sequence[int] | slice = slice(0, 5)
) -> plt.Figure:
    """Currents over potentials, a row a method and a column a trace: the target black, the fitted model orange."""
    traces = np.arange(recording.V.shape[1])[traces]
    t, n_row = np.arange(len(recording.V)) * recording.dt, 1 + len(responses)
    layout = dict(sharex=True, sharey="row", squeeze=False, layout="constrained")
    figure, axes = plt.subplots(n_row, len(traces), figsize=(1 + (runs.WIDTH - 1) / 5 * len(traces), n_row), **layout)
    for column, trace in enumerate(traces):
        axes[0, column].plot(t, recording.current[:, trace], color="0.4", lw=1)
        axes[0, column].set_title(f"trace {trace}")
        for axis, (method, V) in zip(axes[1:, column], responses.items(), strict=True):
            axis.plot(t, known_potentials(recording, trace), "k-", lw=1)
            axis.plot(t, V[:, trace], "C1--", lw=0.8)
            axis.set_ylabel(f"{method}\nV (mV)" if column == 0 else "")
        axes[-1, column].set_xlabel("t (ms)")
    axes[0, 0].set_ylabel("I (nA)")
    return figure


# ---- Terms of a model -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A model with some terms, and what the fitted data say of it: aic = 2 (n_parameters + negative log-likelihood)."""

    terms: str
    n_parameters: int
    negative_log_likelihood: float
    aic: float
    kept: bool


@dataclasses.dataclass(frozen=True)
class Choice:
    """The model that is kept: its terms, its problem and minimum, the table, and the problems of all."""

    terms: list[str]
    problem: FitProblem
    minimum: Minimum
    rows: list[Candidate]
    problems: list[FitProblem]

    def fit(self, seed: int) -> Fit:
        """What has been found, with the cost of the choice; `fitting.conclude` says what is raised."""
        fit = conclude(self.problem, self.minimum, seed)
        for other in self.problems:
            fit = fit if other is self.problem else with_cost_of(other, fit)
        return fit


def choose_terms(
    study_of: Callable[[Sequence[str]], Study],
    steps: Sequence[Sequence[str]],
    search: Search,
    devices: Sequence[jax.Device],
    journal: runs.Journal | None = None,
) -> Choice:
    """Terms that lower Akaike's information criterion (1974) of the fitted data, each tried on top of those before it.

    The model without any is fitted from random starts, and each other one from the best so far and random starts.

    Args:
        study_of: terms, or ["none"] -> the study of a likelihood; bounds of one parameter are the same in all of them.
        steps: terms that are tried together, in the order in which they are tried.

    Returns:
        The choice; where Ctrl-C has ended it, of the models that were fitted before.
    """
    choice, rows, problems = None, [], []
    for step in ([], *steps):
        terms = [*(choice.terms if choice else ()), *step]
        study = study_of(terms or ["none"])
        if choice and len(study.bounds) == len(choice.problem.study.bounds):
            continue  # these data say nothing of what the step adds
        problem = FitProblem(study, search.n_sample, devices, journal)
        problems.append(problem)
        x0 = starts_from(problem, choice.problem, choice.minimum.best, search.seed) if choice else search.x0
        minimum = minimise(problem, dataclasses.replace(search, x0=x0))
        if minimum.interrupted and choice:
            choice = dataclasses.replace(choice, minimum=dataclasses.replace(choice.minimum, interrupted=True))
            break
        n, loss = len(study.bounds), minimum.best.loss
        kept = not choice or 2 * (n + loss) < min(row.aic for row in rows)
        rows.append(Candidate(" ".join(terms) or "none", n, loss, 2 * (n + loss), kept))
        choice = Choice(terms, problem, minimum, rows, problems) if kept else choice
        if minimum.interrupted:
            break
    return choice


def candidate_lines(rows: Sequence[Candidate], method: str) -> list[str]:
    """The table of `choose_terms` as text, by one of the METHODS of fitting, or another solver."""
    least = min(row.aic for row in rows)
    lines = [f"{'terms':36} parameters  -log likelihood   AIC - least"]
    for row in rows:
        numbers = f"{row.n_parameters:10d} {row.negative_log_likelihood:16.2f} {row.aic - least:13.2f}"
        lines.append(f"{row.terms:36} {numbers}{'  kept' * row.kept}")
    if len(rows) > 1 and method in SOLVERS:
        lines.append("of each model but the first, every other start begins at the best of what was kept before it")
    elif len(rows) > 1:
        lines.append(f"WARNING: {method} has searched for each model anew, which may be what they differ by")
    return lines
