"""The fitting machinery: batched losses and gradients, lock-step L-BFGS-B, derivative-free methods, recordings."""

import dataclasses
import math

import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.signal

import comparing
import fitting
import neuron_fitting_of_hh_model as hh
import solvers
import studies
import utils
from fitting import FitProblem, Search
from identifiability import Box, Likelihood, Prediction, identifiability, of_likelihood
from recordings import Recording
from studies import Loss, Study

HH_BOUNDS = {name: hh.RANGES[name] for name in hh.FITTED}
BOUNDS = {"a": u.Quantity([-2.0, 2.0], unit=u.mV), "b": u.Quantity([0.0, 3.0], unit=u.mV)}


def squared_error(V, data):
    return jnp.mean((V - data["V"]) ** 2)


def line_problem(n_sample=4, model=None, devices=None, annealing=None):
    """Fit a + b t to two straight lines of four samples: a quadratic loss with its minimum inside the box."""

    def line(parameters, data, level):
        a, b = (parameters[name].to_decimal(u.mV) for name in "ab")
        return a + b * data["t"]

    t = np.tile(np.linspace(0, 1, 4)[:, None], (1, 2))
    data = {"t": t, "V": 0.5 + 1.5 * t + np.array([0.1, -0.1])}
    loss = Loss(squared_error, "squared error", None)
    study = Study(model or line, loss, BOUNDS, {"fit": data}, free_run=None, annealing=annealing)
    return FitProblem(study, n_sample, devices or jax.devices())


def hh_problem(n_sample):
    current = np.zeros((600, 2))
    current[100:] = [2.0, 0.3]
    truth = {n: x * b.unit for (n, b), x in zip(HH_BOUNDS.items(), (0.01, 25, 6, -58), strict=True)}
    V = np.asarray(studies.simulation(utils.HH)(truth, Recording(current, dt=0.01))["V"])
    assert V.max() > 20
    target = Recording(current, V, mask=np.ones_like(V), dt=0.01)
    return FitProblem(studies.simulation_study(utils.HH, HH_BOUNDS, {"fit": target}), n_sample, jax.devices())


class Rosenbrock:
    """Stands in for a FitProblem: losses and gradients of a hard function, in NumPy."""

    def __init__(self, stop_after=math.inf):
        self.rounds, self.stop_after = [], stop_after

    def evaluate(self, X, what="losses", level=0.0):
        self.rounds.append(len(X))
        if len(self.rounds) > self.stop_after:
            raise KeyboardInterrupt
        Z = 4 * X - 2
        return scipy.optimize.rosen(Z.T), np.stack([4 * scipy.optimize.rosen_der(z) for z in Z])


@pytest.mark.parametrize("n", [1, 5, 60])
def test_batched_gradients_equal_reverse_mode_one_by_one(n, x64):
    problem = hh_problem(n_sample=n)
    X = np.random.default_rng(0).random((n, 4))
    losses, grads = problem.evaluate(X, "gradients")
    np.testing.assert_allclose(problem.evaluate(X), losses, rtol=1e-8)
    assert np.abs(grads).max(axis=0).min() > 0
    study, data = problem.study, problem.data
    one = jax.jit(
        jax.value_and_grad(lambda x: study.loss.function(study.model(problem.box.parameters(x), data, 0.0), data))
    )
    for i in {0, n // 2, n - 1}:
        loss, grad = one(jnp.asarray(X[i]))
        np.testing.assert_allclose(losses[i], loss, rtol=1e-8)
        np.testing.assert_allclose(grads[i], grad, rtol=1e-6, atol=1e-9)
    assert (problem.n_simulations, problem.n_gradients) == (2 * n, n)


def test_the_number_of_devices_changes_nothing():
    if len(jax.devices()) < 2:
        pytest.skip("one core, one device")
    X = np.random.default_rng(0).random((7, 2))
    one, all_ = line_problem(devices=jax.devices()[:1]), line_problem()
    for a, b in zip(one.evaluate(X, "gradients"), all_.evaluate(X, "gradients"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


def test_every_start_makes_the_iterates_it_would_make_alone():
    problem, x0 = Rosenbrock(), np.random.default_rng(0).random((9, 3))
    starts = fitting.multistart(problem, x0).starts
    for start, x in zip(starts, x0, strict=True):
        alone = scipy.optimize.minimize(
            lambda x: tuple(y[0] for y in Rosenbrock().evaluate(x[None])),
            x,
            jac=True,
            method="L-BFGS-B",
            bounds=[(0, 1)] * 3,
            options=solvers.LBFGSB_OPTIONS,
        )
        np.testing.assert_array_equal(start.initial, x)
        assert start.loss == pytest.approx(alone.fun, rel=1e-12, abs=1e-30)
        np.testing.assert_array_equal(start.x, alone.x)
        assert start.n_gradients == alone.nfev
        assert start.status == alone.message
    assert problem.rounds[0] == 9
    assert len(problem.rounds) == max(start.n_gradients for start in starts)


def test_ctrl_c_keeps_the_best_point_of_every_start():
    problem = Rosenbrock(stop_after=5)
    x0 = np.random.default_rng(0).random((4, 2))
    minimum = fitting.multistart(problem, x0)
    assert minimum.interrupted
    initial, _ = Rosenbrock().evaluate(x0)
    for start, loss in zip(minimum.starts, initial, strict=True):
        assert start.n_gradients == 5
        assert start.status == "interrupted"
        assert start.loss < loss


def test_nan_ends_its_start_by_name_and_no_other():
    def model(parameters, data, level):
        a, b = (parameters[name].to_decimal(u.mV) for name in "ab")
        return (a + b * data["t"]) * jnp.sqrt(b - 0.3 + (data["t"] <= 0.5))

    problem = line_problem(model=model)
    starts = fitting.multistart(problem, np.array([[0.5, 0.05], [0.4, 0.5]])).starts
    assert starts[0].status.startswith("NaN at time step 2 of trace 0 at a = 0 mV, b = 0.15 mV")
    assert starts[0].n_gradients == 1
    assert starts[1].n_gradients > 1
    assert "NaN" not in starts[1].status


@pytest.mark.parametrize("method", [method for method in fitting.METHODS if method != "random"])
def test_every_method_finds_the_minimum(method):
    n_iter, near = {"L-BFGS-B": (1, 1e-6), "bayesian": (4, 5e-3)}.get(method, (100, 1e-4))
    problem, floor = line_problem(n_sample=10), 0.1**2
    minimum = fitting.minimise(problem, Search(method, n_iter=n_iter, seed=2))
    best = problem.best[0.0]
    assert 0.999 * floor < best.loss < floor + near
    # The median gap of random search with as many evaluations is larger.
    random = line_problem(n_sample=30 * problem.n_simulations)
    losses = random.evaluate(fitting.random_starts(random, seed=0)).reshape(30, -1)
    assert np.median(losses.min(axis=1)) > floor + near
    assert min(start.loss for start in minimum.starts) == minimum.best.loss == best.loss
    assert np.isfinite(minimum.best.x).all()
    losses = [row.best_loss for row in problem.history]
    assert losses == sorted(losses, reverse=True)
    if method != "L-BFGS-B":
        assert problem.n_gradients == 0
        assert {row.active for row in problem.history} == {10}  # a population is one call


@pytest.mark.parametrize("method", ["L-BFGS-B", "DE", "CMA"])
def test_the_same_seed_gives_the_same_numbers(method):
    def fit(seed):
        problem = line_problem()
        minimum = fitting.minimise(problem, Search(method, n_iter=3, seed=seed))
        return [start.x.tolist() for start in minimum.starts], problem.n_simulations

    assert fit(1) == fit(1)
    assert fit(1) != fit(2)


def test_parameters_stay_inside_their_bounds():
    box = Box(BOUNDS)
    for x in (0.0, 1.0, np.nextafter(1, 0), 1e-300):
        for name, value in box.values([x, x]).items():
            low, high = (float(limit) for limit in BOUNDS[name].mantissa)
            assert low <= value <= high
            assert low <= float(box.parameters(np.array([x, x]))[name].to_decimal(u.mV)) <= high
    assert box.values([1.0, 0.0]) == {"a": 2.0, "b": 0.0}


def test_an_error_in_a_start_is_raised_and_does_not_hang(monkeypatch):
    problem = line_problem(model=lambda parameters, data, level: data["t"] * jnp.nan)

    def out_of_memory(x, level):
        raise MemoryError("no room")

    monkeypatch.setattr(problem, "name_nan", out_of_memory)
    with pytest.raises(MemoryError, match="no room"):
        fitting.multistart(problem, np.full((3, 2), 0.5))


@pytest.mark.parametrize("method", ["DE", "bayesian"])
def test_losses_that_are_not_finite_are_survived_and_counted(method):
    def model(parameters, data, level):
        a, b = (parameters[name].to_decimal(u.mV) for name in "ab")
        return a + b * data["t"] + jnp.where(a > 1, jnp.inf, 0)

    problem = line_problem(n_sample=12, model=model)
    (start,) = fitting.minimise(problem, Search(method, n_iter=2)).starts
    assert math.isfinite(start.loss)
    assert "losses were not finite, first NaN at time step 0 of trace 0 at a = 1." in start.status


def test_the_minimum_outside_the_box_is_found_on_its_edge():
    def model(parameters, data, level):
        return parameters["a"].to_decimal(u.mV) + 5 + parameters["b"].to_decimal(u.mV) * data["t"]

    problem = line_problem(model=model)
    minimum = fitting.minimise(problem, Search())
    assert problem.box.values(minimum.best.x)["a"] == -2.0


# ---- Identifiability ------------------------------------------------------------------------------------------------


def linear(design):
    """y = X (a, b), as a function of x in the box."""
    box = Box(BOUNDS)
    scaled = design * (box.high - box.low)
    return box, lambda x: jnp.asarray(scaled) @ x


def test_standard_errors_are_those_of_linear_regression(x64):
    rng = np.random.default_rng(0)
    design, truth, n = rng.standard_normal((400, 2)), np.array([0.4, 0.6]), 400
    box, predict = linear(design)
    target = np.asarray(predict(truth)) + 0.05 * rng.standard_normal(n)
    fitted = np.linalg.lstsq(np.asarray(jax.jacfwd(predict)(truth)), target, rcond=None)[0]
    report = identifiability(box, fitted, {"y": Prediction(predict, target, 1e-9)})
    sd = np.sqrt(np.sum((np.asarray(predict(fitted)) - target) ** 2) / (n - 2))
    assert report.noise["y"] == pytest.approx(sd)
    expected = sd * np.sqrt(np.diag(np.linalg.inv(design.T @ design)))
    np.testing.assert_allclose(list(report.standard_errors.values()), expected, rtol=1e-3)
    assert report.undetermined == []


def test_clusters_allow_for_residuals_that_depend_on_each_other(x64):
    """Over many draws the errors are as large as they are said to be; without clusters they are taken too small."""
    rng, n_cluster, n_each = np.random.default_rng(0), 60, 25
    clusters = np.repeat(np.arange(n_cluster), n_each)
    design = rng.standard_normal((n_cluster, 2))[clusters]
    truth = np.array([0.4, 0.6])
    errors, said, naive = [], [], []
    for _ in range(60):
        box, predict = linear(design)
        noise = 0.05 * rng.standard_normal(n_cluster)[clusters] + 0.02 * rng.standard_normal(len(clusters))
        target = np.asarray(predict(truth)) + noise
        fitted = np.linalg.lstsq(np.asarray(jax.jacfwd(predict)(truth)), target, rcond=None)[0]
        errors.append((fitted - truth) * (box.high - box.low))
        for reports, groups in ((said, clusters), (naive, None)):
            report = identifiability(box, fitted, {"y": Prediction(predict, target, 1e-9)}, groups)
            reports.append(list(report.standard_errors.values()))
    spread = np.sqrt(np.mean(np.square(errors), axis=0))
    np.testing.assert_allclose(np.mean(said, axis=0), spread, rtol=0.3)
    assert (np.mean(naive, axis=0) < 0.5 * spread).all()
    few = np.repeat([0, 1, 7, 20], len(clusters) // 4)  # 4, as those without a number are none
    few_in_turn = np.repeat(np.arange(4), len(clusters) // 4)
    prediction = {"y": Prediction(predict, target, 1e-9)}
    reports = [identifiability(box, fitted, prediction, each).standard_errors for each in (few, few_in_turn)]
    assert reports[0] == reports[1]


def test_what_a_constant_that_is_held_moves(x64):
    """y = a + b t + c t^2, with c held: as least squares with another c have it; errors are the same whatever c is."""
    t, truth = np.linspace(0, 1, 200), np.array([0.4, 0.6])
    box, predict = linear(np.stack([np.ones(200), t], axis=1))
    X = np.asarray(jax.jacfwd(predict)(truth))
    target = X @ truth + 1e-3 * np.random.default_rng(0).standard_normal(200)
    fitted, moved = (np.linalg.lstsq(X, target - c * t**2, rcond=None)[0] for c in (0, 0.01))

    def stepped(x, steps=None):
        return predict(x) + (steps["c"] * 0.01 * t**2 if steps else 0)

    prediction = Prediction(stepped, target, 1e-9, held=("c",))
    report = identifiability(box, fitted, {"y": prediction})
    expected = (moved - fitted) * (box.high - box.low)
    np.testing.assert_allclose(list(report.by_held["c"].values()), expected, rtol=1e-4)
    assert report.standard_errors == identifiability(box, fitted, {"y": prediction._replace(held=())}).standard_errors
    assert (np.abs(expected) > 3 * np.array(list(report.standard_errors.values()))).all()
    pinned = np.array([0.0, 0.5])  # where the constant is at its bound, and the slope has to do it alone
    exact = {"y": prediction._replace(target=X @ pinned)}
    slope = -np.sum(X[:, 1] * 0.01 * t**2) / np.sum(X[:, 1] ** 2) * (box.high - box.low)[1]
    assert list(identifiability(box, pinned, exact).by_held["c"].values()) == pytest.approx([0, slope], rel=1e-4)


def test_correlated_residuals_and_few_numbers_widen_the_standard_errors(x64):
    """Over many draws the errors are as large as they are said to be, by how far residuals depend on each other."""
    rng, n, truth, tau = np.random.default_rng(0), 3000, np.array([0.4, 0.6]), 20.0
    design = np.stack([np.ones(n), np.sin(np.arange(n) / 300)], axis=1)
    box, predict = linear(design)
    X, errors, said, naive = np.asarray(jax.jacfwd(predict)(truth)), [], [], []
    for _ in range(60):
        drive = 0.05 * math.sqrt(1 - math.exp(-2 / tau)) * rng.standard_normal(n)
        target = X @ truth + scipy.signal.lfilter([1], [1, -math.exp(-1 / tau)], drive)
        fitted = np.linalg.lstsq(X, target, rcond=None)[0]
        errors.append((fitted - truth) * (box.high - box.low))
        for reports, counts in ((said, np.ones((n, 1), bool)), (naive, None)):
            prediction = Prediction(predict, target, 1e-9, counts=counts)
            reports.append(list(identifiability(box, fitted, {"y": prediction}).standard_errors.values()))
    # Fewer samples, a tenth or all those in turn for a while, are no better known than all of them.
    for left in (np.arange(n) % 10 == 0, np.arange(n) // 100 % 2 == 0):
        prediction = Prediction(lambda x, at=left: predict(x)[at], target[left], 1e-9, counts=left[:, None])
        fewer = identifiability(box, np.linalg.lstsq(X[left], target[left], rcond=None)[0], {"y": prediction})
        ratio = np.array(list(fewer.standard_errors.values())) / said[-1]
        assert (ratio > 0.8).all()
        assert (ratio < 2.5).all()
    spread = np.sqrt(np.mean(np.square(errors), axis=0))
    np.testing.assert_allclose(np.mean(said, axis=0), spread, rtol=0.35)
    assert (np.mean(naive, axis=0) < 0.3 * spread).all()
    few, said, errors = design[:: n // 4][:4], [], []
    box, predict = linear(few)
    X = np.asarray(jax.jacfwd(predict)(truth))
    for _ in range(200):
        target = X @ truth + 1e-3 * rng.standard_normal(4)
        fitted = np.linalg.lstsq(X, target, rcond=None)[0]
        errors.append((fitted - truth) * (box.high - box.low))
        report = identifiability(box, fitted, {"y": Prediction(predict, target, 1e-9)})
        said.append(list(report.standard_errors.values()))
    np.testing.assert_allclose(np.mean(np.square(said), axis=0), np.mean(np.square(errors), axis=0), rtol=0.3)
    report = identifiability(box, fitted, {"y": Prediction(lambda x: predict(x)[:2], target[:2], 1e-9)})
    assert set(report.without_error.values()) == {"2 numbers are too few for 2 parameters and their noise"}


def test_directions_without_effect_are_named(x64):
    t, centre = np.linspace(0, 1, 50), np.array([0.5, 0.5])
    for design, names in ((np.stack([t, 0 * t], axis=1), ["b"]), (np.stack([0 * t, 0 * t], axis=1), ["a", "b"])):
        box, predict = linear(design)
        report = identifiability(box, centre, {"y": Prediction(predict, np.asarray(predict(centre)), 1e-3)})
        assert sorted(report.undetermined) == names
        for name, (low, high) in {name: BOUNDS[name].mantissa for name in names}.items():
            assert report.standard_errors[name] == pytest.approx((high - low) / 12**0.5)
    box, predict = linear(np.stack([t, 4 / 3 * t], axis=1))  # 4 (a + b) in the box
    prediction = Prediction(predict, np.asarray(predict(centre)), 1e-3)
    (direction,) = identifiability(box, centre, {"y": prediction}).undetermined
    assert direction in (
        "+0.71 a -0.71 b (each in units of its bounds)",
        "-0.71 a +0.71 b (each in units of its bounds)",
    )


def test_a_parameter_at_its_bound_has_no_standard_error(x64):
    design = np.random.default_rng(0).standard_normal((100, 2))
    box, predict = linear(design)
    target = np.asarray(predict(np.array([1.1, 0.6])))
    at = np.array([1.0, 0.6])
    at[1] += np.linalg.lstsq(design[:, 1:] * 3.0, target - np.asarray(predict(at)), rcond=None)[0][0]
    report = identifiability(box, at, {"y": Prediction(predict, target, 1e-3)})
    assert report.without_error == {"a": "at its bound, 2 (--bounds)"}
    assert math.isnan(report.standard_errors["a"])
    assert report.standard_errors["b"] > 0


def test_no_standard_error_away_from_an_optimum_or_of_a_model_that_does_not_describe_the_data(x64):
    rng = np.random.default_rng(0)
    box, predict = linear(rng.standard_normal((400, 2)))
    target = np.asarray(predict(np.array([0.4, 0.6]))) + 0.01 * rng.standard_normal(400)
    report = identifiability(box, np.array([0.5, 0.6]), {"y": Prediction(predict, target, 1e-3)})
    assert all(reason.startswith("not at an optimum: the data move a by") for reason in report.without_error.values())
    report = identifiability(box, np.array([0.4, 0.6]), {"y": Prediction(predict, target, 1e-3, 0.002)})
    assert report.without_error["b"].startswith("this model does not describe these data: y off by 0.009")
    assert all(math.isnan(error) for error in report.standard_errors.values())
    report = identifiability(box, np.array([0.4, 0.6]), {"y": Prediction(predict, target, 1e-3, 0.02)})
    assert report.without_error == {}


def test_standard_errors_of_a_likelihood_are_those_of_its_clusters(x64):
    """Of normal errors of known size: those of linear regression, and their spread where they depend on each other."""
    rng, n_cluster, n_each, size = np.random.default_rng(0), 60, 10, 0.05
    clusters = np.repeat(np.arange(n_cluster), n_each)
    design, truth = rng.standard_normal((n_cluster, 2))[clusters], np.array([0.4, 0.6])
    box, predict = linear(design)
    X = np.asarray(jax.jacfwd(predict)(truth))
    alone = np.sqrt(np.diag(np.linalg.inv(X.T @ X))) * size * (box.high - box.low)
    for shared, ratio in ((0.0, 1.0), (2 * size, np.sqrt(1 + 4 * n_each))):
        errors, said = [], []
        for _ in range(40):
            noise = size * rng.standard_normal(len(clusters)) + shared * rng.standard_normal(n_cluster)[clusters]
            target = X @ truth + noise

            def costs(x, target):
                return jnp.square((predict(x) - target) / size).reshape(n_cluster, n_each).sum(1) / 2

            fitted = np.linalg.lstsq(X, target, rcond=None)[0]
            report = of_likelihood(box, fitted, Likelihood(costs, {"y": size}, [], (target,)))
            said.append(list(report.standard_errors.values()))
            errors.append((fitted - truth) * (box.high - box.low))
        np.testing.assert_allclose(np.mean(said, axis=0), ratio * alone, rtol=0.1)
        np.testing.assert_allclose(np.sqrt(np.mean(np.square(errors), axis=0)), ratio * alone, rtol=0.3)


def test_no_standard_error_where_a_likelihood_has_no_minimum(x64):
    """At a saddle the gradient is 0, too."""
    box = Box(BOUNDS)
    for sign, reasons in ((1, set()), (-1, {"not at a minimum: the loss falls both ways along a"})):
        curved = jnp.array([500.0 * sign, 500.0])
        likelihood = Likelihood(lambda x, c=curved: c * (x - 0.5) ** 2, {"V_mV": 0.1}, [])
        report = of_likelihood(box, np.array([0.5, 0.5]), likelihood)
        assert set(report.without_error.values()) == reasons
        assert np.isnan(list(report.standard_errors.values())).all() == bool(reasons)


def test_what_the_integration_moves_is_part_of_the_standard_error(x64):
    """An exact model would be off by as much as parameters 0.01 and -0.02 (of the box) away."""
    design = np.random.default_rng(0).standard_normal((400, 2))
    box, predict = linear(design)
    at, moved = np.array([0.4, 0.6]), np.array([0.01, -0.02])
    nuisances = lambda x, y: jnp.stack([predict(x + moved) - y, 0 * y], axis=1)  # noqa: E731
    prediction = Prediction(predict, np.asarray(predict(at)), 1e-6, nuisances=nuisances)
    errors = identifiability(box, at, {"y": prediction}).standard_errors
    np.testing.assert_allclose(list(errors.values()), np.abs(moved) * (box.high - box.low), rtol=1e-3)


# ---- Annealing ------------------------------------------------------------------------------------------------------


def raised(parameters, data, level):
    """The line, and `level` more."""
    a, b = (parameters[name].to_decimal(u.mV) for name in "ab")
    return a + b * data["t"] + level


def test_scaled_steps_end_where_parameters_of_any_scale_are_best():
    """The minimum of a quadratic in a box whose axes count from 1e-6 to 1e6, two of them beyond the box."""
    curvature, best = np.logspace(-6, 6, 7), np.array([0.3, 1.4, 0.5, 0.7, -0.2, 0.1, 0.9])
    asked = []

    def function(x, what):
        asked.append((what, x))
        gradient = curvature * (x - best)
        gram = np.diag(np.append(curvature, 0.0))
        return float(gradient @ (x - best) / 2), gram if what == "grams" else gradient

    solver = solvers.SOLVERS[solvers.SCALED]
    solver.solve(function, np.full(7, 0.6), solver.options, "")
    assert [what for what, _ in asked].count("grams") == 1
    X = np.stack([x for _, x in asked])
    assert (X >= 0).all()
    assert (X <= 1).all()
    assert len(X) < 60
    weight = np.sqrt(curvature / curvature.max())
    np.testing.assert_allclose(weight * X[-1], weight * np.clip(best, 0, 1), atol=1e-4)


@pytest.mark.parametrize(("n_trace", "at_most", "n_part"), [(1, 1, 2), (5, 3, 2), (7, 2, 3), (16, 16, 2), (9, 9, 1)])
def test_parts_of_chunks_have_each_trace_once(n_trace, at_most, n_part):
    chunks, counts = studies.chunks_of(n_trace, at_most), np.zeros(n_trace)
    parts = [chunks.part(i, n_part) for i in range(n_part)]
    assert len({len(firsts) for firsts, _ in parts}) == 1
    for firsts, is_new in parts:
        for first, new in zip(np.asarray(firsts), np.asarray(is_new), strict=True):
            counts[first : first + len(new)] += new
    np.testing.assert_array_equal(counts, 1)


def test_a_level_neither_compiles_again_nor_forgets_the_best_point():
    problem = line_problem(model=raised)
    X = np.full((3, 2), 0.5)
    before, sent = problem.evaluate(X), problem.device_data
    best = problem.best[0.0].loss
    assert 2.0 not in problem.best  # nothing is known of another level
    seconds = problem.seconds["compile"]
    assert (problem.evaluate(X, level=2.0) != before).all()
    assert problem.seconds["compile"] == seconds
    assert problem.device_data is sent
    assert problem.best[0.0].loss == best == before.min()
    assert problem.best[2.0].loss != best
    assert [row.level for row in problem.history] == [0.0, 2.0]


def test_annealing_ends_at_the_level_of_the_lowest_loss():
    """Raised by 5, the line cannot be reached from inside the box; lowered by nothing it is a fit of the line."""
    annealing = studies.Annealing("offset", "mV", (5.0, 3.0, 0.0, 4.0))
    problem = line_problem(model=raised, annealing=annealing)
    minimum = fitting.minimise(problem, Search())
    assert minimum.level == 0.0
    assert minimum.best.loss == pytest.approx(0.01, rel=1e-3)
    assert list(dict.fromkeys(row.level for row in problem.history)) == [5.0, 3.0, 0.0, 4.0]
    assert problem.history[-1].level == 0.0
    starts = fitting.random_starts(problem, 0)
    assert all(np.array_equal(start.initial, x) for start, x in zip(minimum.starts, starts, strict=True))


def test_methods_without_gradients_have_the_last_level_or_that_of_the_search():
    problem = line_problem(model=raised, annealing=studies.Annealing("offset", "mV", (5.0, 1.0)))
    assert fitting.minimise(problem, Search("random", n_iter=2)).level == 1.0
    assert fitting.minimise(problem, Search("random", n_iter=2, level=0.5)).level == 0.5
    assert {row.level for row in problem.history} == {1.0, 0.5}


def test_terms_are_chosen_by_akaikes_criterion_of_the_fitted_data(x64):
    """Against least squares by NumPy, of every nested model: y = a + b t + c t^2, with sin t of no use."""
    t, rng = np.linspace(0, 3, 200), np.random.default_rng(2)
    columns = {"a": 1 + 0 * t, "b": t, "c": t**2, "d": np.sin(9 * t)}
    y = (0.5 - 0.2 * t + 0.3 * t**2 + 0.1 * rng.standard_normal(200))[:, None]
    terms = {"none": "a", "linear": "b", "square": "c", "sine": "d"}

    def study_of(chosen):
        def model(parameters, data, level):
            return sum(p.to_decimal(u.mV) * columns[name][:, None] for name, p in parameters.items())

        names = dict.fromkeys(["a", *(terms[term] for term in chosen)])
        bounds = {name: u.Quantity([-3.0, 3.0], unit=u.mV) for name in names}
        loss = Loss(lambda V, data: jnp.sum((V - data["V"]) ** 2) / 2 / 0.1**2, "-log likelihood", None)
        return Study(model, loss, bounds, {"fit": {"V": y}}, free_run=None)

    steps, search = [["linear"], ["square"], ["sine"]], Search(n_sample=2)
    choice = comparing.choose_terms(study_of, steps, search, jax.devices())
    rows = choice.rows
    assert (choice.terms, [row.terms.split() for row in rows]) == (
        ["linear", "square"],
        [["none"], ["linear"], ["linear", "square"], ["linear", "square", "sine"]],
    )
    assert [row.kept for row in rows] == [True, True, True, False]
    for row, used in zip(rows, ("a", "ab", "abc", "abcd"), strict=True):
        X = np.stack([columns[name] for name in used], axis=1)
        residual = y[:, 0] - X @ np.linalg.lstsq(X, y[:, 0])[0]
        assert row.aic == pytest.approx(2 * len(used) + np.sum(residual**2) / 0.1**2, abs=1e-5)
    *table, note = comparing.candidate_lines(rows, "L-BFGS-B")
    assert [line.endswith("kept") for line in table[1:]] == [True, True, True, False]
    assert "every other start begins at the best" in note
    assert comparing.candidate_lines(rows, "DE")[-1].startswith("WARNING: DE has searched for each model anew")
    assert choice.minimum.best.loss == rows[2].negative_log_likelihood
    assert list(choice.problem.study.bounds) == ["a", "b", "c"]
    by_cma = comparing.choose_terms(study_of, steps, Search("CMA", n_sample=8, n_iter=40), jax.devices())
    assert by_cma.terms == choice.terms
    together = comparing.choose_terms(study_of, [["linear", "square", "sine"]], search, jax.devices())
    assert [row.terms for row in together.rows] == ["none", "linear square sine"]
    assert together.rows[1].aic == pytest.approx(rows[3].aic, abs=1e-5)
    assert sum(problem.n_gradients for problem in together.problems) > together.problem.n_gradients > 0


def test_a_choice_that_ctrl_c_ends_is_what_it_was_so_far(monkeypatch):
    def level(parameters, data, level):
        return parameters["a"].to_decimal(u.mV) + 0 * data["t"]

    def study_of(terms):
        if terms == ["none"]:
            return dataclasses.replace(line_problem(model=level).study, bounds={"a": BOUNDS["a"]})
        return line_problem(model=raised).study

    def stopped_in_the_second(problem, search, minimise=fitting.minimise):
        minimum = minimise(problem, search)
        return dataclasses.replace(minimum, interrupted=problem.study.model is raised)

    monkeypatch.setattr(comparing, "minimise", stopped_in_the_second)
    choice = comparing.choose_terms(study_of, [["more"], ["never"]], Search(n_sample=2), jax.devices())
    assert (choice.terms, choice.minimum.interrupted, [row.terms for row in choice.rows]) == ([], True, ["none"])
    whole = dataclasses.replace(study_of(["none"]), model=raised, bounds=BOUNDS)
    monkeypatch.undo()
    choice = comparing.choose_terms(lambda terms: whole, [["nothing"]], Search(n_sample=2), jax.devices())
    assert [row.terms for row in choice.rows] == ["none"], "a step without a parameter is none"


def test_ctrl_c_before_all_traces_are_fitted_leaves_their_loss(monkeypatch):
    """The first level has one trace of six; what is left of it says what all of them cost."""

    def line(parameters, data, level):
        a, b = (parameters[name].to_decimal(u.mV) for name in "ab")
        return a + b * data["t"]

    t = np.tile(np.linspace(0, 1, 4)[:, None], (1, 6))
    data = {"t": t, "V": 0.5 + 1.5 * t + 0.1 * np.random.default_rng(0).standard_normal(t.shape)}
    total = Loss(lambda V, data: jnp.sum((V - data["V"]) ** 2), "sum of squares", None)
    annealing = studies.Annealing("level", "mV", (1.0, 0.0), n_first=1)
    study = Study(line, total, BOUNDS, {"fit": data}, free_run=None, annealing=annealing)
    evaluate, n_before = FitProblem.evaluate, [0]
    for stop in (1, 100):

        def interrupted(self, X, what="losses", level=0.0, stop=stop):
            if what != "losses" and (n_before[0] >= stop or level < 1.0):
                raise KeyboardInterrupt
            n_before[0] += 1
            return evaluate(self, X, what, level)

        n_before[0] = 0
        monkeypatch.setattr(FitProblem, "evaluate", interrupted)
        minimum = fitting.minimise(FitProblem(study, 3, jax.devices()), Search(n_sample=3))
        assert minimum.interrupted
        for start in minimum.starts:
            a, b = Box(BOUNDS).values(start.x).values()
            assert start.loss == pytest.approx(np.sum((a + b * t - data["V"]) ** 2), rel=1e-4)


def test_a_larger_study_begins_at_the_best_of_a_smaller_one_without_what_that_lacks():
    """Where the best of the smaller one is in a narrow well, which random starts of the larger one miss."""

    def study_of(names):
        def model(parameters, data, level):
            a, c = (parameters[name].to_decimal(u.mV) if name in parameters else 0.0 for name in "ac")
            return jnp.atleast_1d(0.1 * (a + 1) ** 2 - 5 * jnp.exp(-(((a - 2) / 0.02) ** 2)) + c**2 / 4)

        bounds = {name: u.Quantity([-3.0, 3.0], unit=u.mV) for name in names}
        loss = Loss(lambda output, data: jnp.sum(output), "loss", None)
        return Study(model, loss, bounds, {"fit": {"V": np.zeros((1, 1))}}, None, absent={"c": -0.0, "a": 9.0})

    small, large = (fitting.FitProblem(study_of(names), 6, jax.devices()) for names in ("a", "ca"))
    best = fitting.Start(None, np.array([5 / 6]), -4.1)
    x0 = fitting.starts_from(large, small, best, seed=0)
    random = fitting.random_starts(large, 0)
    np.testing.assert_array_equal(x0[1::2], random[1::2])
    np.testing.assert_allclose(x0[0], [0.5, 5 / 6])
    np.testing.assert_array_equal(x0[2::2], np.stack([random[2::2, 0], np.full(2, 5 / 6)], axis=1))
    assert large.evaluate(x0[:1])[0] == pytest.approx(small.evaluate(best.x[None])[0]) == pytest.approx(-4.1)
    missed = fitting.multistart(large, random)
    assert min(start.loss for start in missed.starts) > -0.1
    assert fitting.multistart(large, x0).best.loss < -4.09


def test_CMA_with_steps_searches_along_them_from_where_it_begins():
    """The losses are of x0 + steps z: it comes to the minimum along the first two of three, the third being no step."""
    steps, goal, tried = np.array([[0.1, 0.05, 0.0], [0.0, 0.02, 0.0], [0.3, 0.0, 0.0]]), np.array([1.0, -2.0]), []

    class Valley:
        n_sample, best, box = 8, {}, Box(BOUNDS | {"c": u.Quantity([0.0, 1.0], unit=u.mV)})

        def evaluate(self, X, what="losses", level=0.0):
            tried.append(X)
            losses = np.sum(np.square((X - 0.5 - steps[:, :2] @ goal) / 0.01), axis=1)
            if not self.best or losses.min() < self.best[0.0].loss:
                self.best[0.0] = fitting.Start(None, X[losses.argmin()], losses.min())
            return losses

        def elapsed(self):
            return 1.0

    search = Search("CMA", n_iter=40, seed=0, n_sample=8, level=0.0, x0=np.full((1, 3), 0.5), steps=steps)
    minimum = fitting.derivative_free(Valley(), search)
    np.testing.assert_allclose(minimum.best.x, 0.5 + steps[:, :2] @ goal, atol=0.01)
    np.testing.assert_array_equal(tried[0][0], np.full(3, 0.5))
    inside = np.concatenate([X[((X > 0) & (X < 1)).all(axis=1)] for X in tried[:3]]) - 0.5
    assert np.linalg.svd(inside)[1][1] > 1e-3
    assert np.linalg.svd(inside)[1][2] < 1e-6


def test_steps_of_CMA_from_a_minimum_cost_a_share_of_its_loss_and_no_more_than_the_box_says():
    rng = np.random.default_rng(3)
    J, r = rng.standard_normal((50, 3)) * [300.0, 30.0, 0.0], rng.standard_normal(50)
    r -= J[:, :2] @ np.linalg.lstsq(J[:, :2], r, rcond=None)[0]  # at the minimum

    class Squares:
        def evaluate(self, X, what, level):
            rows = np.column_stack([J, r])
            return np.array([r @ r]), (rows.T @ rows)[None]

    steps = fitting.steps_from(Squares(), np.full(3, 0.5), 0.0)
    rises = [np.sum((r + J @ step) ** 2) / (r @ r) - 1 for step in steps.T]
    assert min(rises) == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(sorted(rises)[1:], fitting.RISE, rtol=0.05)
    undetermined = steps.T[int(np.argmin(rises))]
    np.testing.assert_allclose(np.abs(undetermined), [0, 0, 12**-0.5], atol=1e-9)
