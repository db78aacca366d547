"""The GIF neuron that recorded spikes drive, in parallel over time: its filters, its likelihood, and what it finds.

Oracles are `utils.GIF` step by step, plain loops, finite differences, and the law of intervals by quadrature.
"""

import csv
import dataclasses
import json
import math

import brainstate
import brainunit as u
import cells
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import scripts
from jax.test_util import check_grads
from scripts import write_traces

import fitting
import neuron_fitting_of_gif_model as gif
import recordings
import studies
import teacher_forcing
import utils
from numerics import exponential_filter
from recordings import Recording

DT = 0.1
NEURON = cells.ESCAPING
run = scripts.here(gif)
PLAIN = {
    "A3": 0.0,
    "A_g": 0.0,
    "lapse": 0.0,
    "t_ref": 0.0,
    "A_th": 0.0,
    "A_th2": 0.0,
    "k_i": 0.0,
    "R1": 0.0,
    "R2": 1.0,
    "tau_s": 0.0,
    "V_reset": -60.0,
}


def with_units(values):
    return {name: value * gif.UNITS[name] for name, value in values.items()}


def noise(n_step, n_trace, mean=0.25, sd=0.3, seed=0):
    """Ornstein-Uhlenbeck currents (nA) of 5 ms."""
    decay, rng = math.exp(-DT / 5), np.random.default_rng(seed)
    x = np.zeros((n_step, n_trace))
    for k in range(1, n_step):
        x[k] = decay * x[k - 1] + math.sqrt(1 - decay**2) * rng.standard_normal(n_trace)
    return mean + sd * x


def step_by_step(values, current, V_start, spikes=None):
    """V as recorded, V - V_th, escape rate and spikes of `utils.GIF`, driven by spikes or free, (T, n_trace) each."""
    recording = Recording(current, V_start=V_start, dt=DT)
    own, electrode = studies.behind_electrode(with_units(values), recording)
    cell = utils.GIF(current.shape[1], **own, V_th_reset=teacher_forcing.NO_FLOOR)
    with brainstate.environ.context(dt=DT * u.ms):
        cell.init_state()
        if V_start is not None:
            cell.settle((V_start - np.asarray(electrode)[0]) * u.mV)

        def step(x, spike):
            before = cell.V.value / u.mV, (cell.V.value - cell.threshold) / u.mV, cell.escape_rate() * u.ms
            return *before, cell.update(x * u.nA, None if spikes is None else spike)

        given = jnp.zeros_like(current) if spikes is None else jnp.asarray(spikes)
        V, distance, rate, fired = brainstate.transform.for_loop(step, jnp.asarray(current), given)
    return np.asarray(V) + np.asarray(electrode), *map(np.asarray, (distance, rate, fired))


def recorded(values, n_step=6000, n_trace=3, held=True, **changes):
    """A recording of the neuron that fires at its threshold, and what it was; held before it, or as in the paper."""
    current, V_start = noise(n_step, n_trace), np.linspace(-64, -60, n_trace) if held else None
    V, distance, rate, spikes = step_by_step(values, current, V_start)
    ones = np.ones_like(V)
    recording = Recording(current, V, spikes, ones, ones, V_start=V_start, dt=DT)
    return dataclasses.replace(recording, **changes), distance, rate


# ---- Filters and the neuron -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.003, 0.5, 50.0])
@pytest.mark.parametrize("n_step", [1, 31, 32, 33, 3000])
def test_a_filter_in_parallel_is_the_recursion(rate, n_step, x64):
    x = np.random.default_rng(0).normal(size=(2, n_step))
    y = np.empty_like(x)
    last = np.array([2.0, -1.0])
    for k in range(n_step):
        y[:, k], last = last, math.exp(-rate) * last + x[:, k]
    filtered = jax.jit(exponential_filter)(jnp.asarray(x), rate, jnp.array([2.0, -1.0]))
    np.testing.assert_allclose(filtered, y, atol=1e-11)


def test_a_filter_whose_rate_changes_is_the_recursion(x64):
    rng, last = np.random.default_rng(0), np.array([2.0, -1.0])
    x, rate, y = rng.normal(size=(2, 3000)), 10.0 ** rng.uniform(-4, 3, (2, 3000)), np.empty((2, 3000))
    for k in range(3000):
        y[:, k], last = last, np.exp(-rate[:, k]) * last + x[:, k]
    filtered = jax.jit(exponential_filter)(jnp.asarray(x), rate, jnp.array([2.0, -1.0]))
    np.testing.assert_allclose(filtered, y, atol=1e-11)


@pytest.mark.parametrize("rate", [0.3, np.linspace(0.1, 0.4, 200).reshape(2, 100)], ids=["constant", "changing"])
def test_derivatives_of_a_filter_in_both_modes(rate, x64):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 100)))

    def f(x, rate, start):
        return jnp.sum(jnp.sin(exponential_filter(x, rate, start)))

    check_grads(jax.jit(f), (x, rate, jnp.ones(2)), order=2, modes=("fwd", "rev"))


@pytest.mark.parametrize("changes", [{}, PLAIN, {"t_ref": 0.1}], ids=["all", "plain", "one step"])
def test_the_neuron_is_its_equations(changes, x64):
    """A plain loop over steps, with the time since the last spike in place of a state."""
    values, current, V_start = NEURON | changes, noise(5000, 2), np.array([-62.0, -64.0])
    for ours, plain in zip(
        step_by_step(values, current, V_start), cells.escaping(current, DT, V_start, **values), strict=True
    ):
        np.testing.assert_allclose(ours, plain, atol=1e-9)
    assert plain.sum() > 6


@pytest.mark.parametrize("held", [True, False])
@pytest.mark.parametrize("changes", [{}, PLAIN, {"t_ref": 0.1}], ids=["all", "plain", "one step"])
def test_in_parallel_it_is_the_neuron_step_by_step(changes, held, x64):
    values = NEURON | changes
    recording, distance, rate = recorded(values, held=held)
    assert recording.spikes.sum() > 15
    driven = teacher_forcing.driven_by(recording, values["t_ref"])
    out = jax.jit(lambda driven: teacher_forcing.trajectories({})(with_units(values), driven))(driven)
    np.testing.assert_allclose(out["V"], recording.V, atol=1e-10)
    free = rate > 0
    low = free & (distance < teacher_forcing.STEEPEST * values["width"])
    assert low.sum() > 0.8 * free.sum()
    np.testing.assert_allclose(np.asarray(out["log_rate"])[low], np.log(rate[low]), atol=1e-9)
    assert (np.asarray(driven.silent) > 0)[free & (recording.spikes == 0)].all()
    assert not np.asarray(driven.silent)[~free].any()


def test_rates_far_above_the_threshold_and_improbable_spikes_cost_what_they_should(x64):
    """From STEEPEST on, exp(x) is its tangent, in value and slope; -log(1 - exp(-m)) keeps its digits for any m."""
    steepest = teacher_forcing.STEEPEST
    for lapse in (0.0, 1e-3):
        for x in (-30.0, steepest - 0.1, steepest + 0.1, steepest + 10.0):
            rate = math.exp(min(x, steepest)) * (1 + max(x - steepest, 0)) + lapse
            slope = (math.exp(min(x, steepest)) if x < steepest else math.exp(steepest)) / rate
            found = jax.value_and_grad(lambda x, lapse=lapse: teacher_forcing.log_escape_rate(x, lapse))(x)
            np.testing.assert_allclose(found, (math.log(rate), slope), rtol=1e-9)
    recording = Recording(np.zeros((20, 1)), V=np.zeros((20, 1)), spikes=np.zeros((20, 1)), dt=DT)
    recording.spikes[10] = 1
    driven = teacher_forcing.driven_by(
        dataclasses.replace(recording, mask=np.ones((20, 1)), observed=np.ones((20, 1))), 4.0
    )
    for log_mean in (-60.0, -12.1, -11.9, 0.0, 2.0):
        log_rate = jnp.full((1, 20), log_mean - math.log(DT))
        _, cost = teacher_forcing.spike_costs(log_rate, driven)
        exact = -(log_mean - math.exp(log_mean) / 2) if log_mean < -20 else -math.log(-math.expm1(-math.exp(log_mean)))
        assert float(cost.sum()) == pytest.approx(exact, rel=1e-9)
        by_rate = jax.grad(lambda x: teacher_forcing.spike_costs(x, driven)[1].sum())(log_rate)
        mean = math.exp(log_mean)
        assert float(by_rate.sum()) == pytest.approx(-mean / math.expm1(mean), rel=1e-4)


def test_intervals_have_the_law_of_the_escape_rate(x64):
    """At a constant current, with a threshold that stays: survival is the exponential of the integral of the rate."""
    values = NEURON | {"a": 0.0, "A_th": 0.0, "A3": 0.0, "A_th2": 0.0, "A1": 0.0, "A2": 0.0, "R_s": 0.0, "width": 3.0}
    values |= {"V_reset": -60.0, "A_g": 0.0}
    n_trace, I = 200, 0.15
    constants = with_units(values)
    neuron = teacher_forcing.Escaping(constants, teacher_forcing.Noise(10.0))
    current = np.full((8000, n_trace), I)
    spikes = neuron.noisy({}, Recording(current, V_start=np.full(n_trace, -60.0), dt=DT), jax.random.key(0))
    intervals = np.concatenate([np.diff(np.flatnonzero(train)) for train in spikes.T]) * DT

    def cumulative(t):
        fine = np.linspace(0, 600, 60_001)
        V = -65 + 100 * I + (values["V_reset"] + 65 - 100 * I) * np.exp(-fine / 20)
        rate = np.exp((V[1:] + V[:-1] + 96) / 6) + values["lapse"]
        integral = np.concatenate([[0], np.cumsum(rate * np.diff(fine))])
        return 1 - np.exp(-np.interp(t - values["t_ref"], fine, integral))

    assert len(intervals) > 2000
    assert intervals.min() >= values["t_ref"]
    assert scipy.stats.ks_1samp(intervals + DT / 2, cumulative).statistic < 1.6 / math.sqrt(len(intervals)) + DT / 10


# ---- The likelihood -------------------------------------------------------------------------------------------------

FITTED = ("R", "tau", "V_rest", "A1", "k2", "R_s", "a", "b", "A_th", "width", "V_i", "k_i", "b2", "A3", "lapse")
FITTED += ("A_g", "E_g")


def problem_of(**changes):
    """A problem with noise in the potentials and gaps, and a point off the truth."""
    recording, *_ = recorded(NEURON, 1500, 2, **changes)
    rng = np.random.default_rng(1)
    V, observed = recording.V + 0.5 * rng.standard_normal(recording.V.shape), np.ones_like(recording.V)
    observed[200:300, 1] = 0
    recording = dataclasses.replace(recording, V=V, mask=observed, observed=observed)
    bounds = {
        name: u.Quantity(np.sort([0.5 * NEURON[name], 1.7 * NEURON[name]]), unit=gif.UNITS[name]) for name in FITTED
    }
    constants = {name: value for name, value in with_units(NEURON).items() if name not in FITTED}
    neuron = teacher_forcing.Escaping(constants, teacher_forcing.Noise(5.0))
    model = studies.simulation(utils.GIF, constants | {"V_th_reset": teacher_forcing.NO_FLOOR})
    study = studies.Study(model, None, bounds, {"fit": recording}, studies.free_run_of(model))
    study = neuron.study(study)
    return fitting.FitProblem(dataclasses.replace(study, annealing=None), 2, jax.devices()[:1])


def test_the_likelihood_is_what_its_equation_says(x64):
    problem = problem_of()
    x = np.full(len(FITTED), 0.42)
    recording = problem.study.recordings["fit"]
    values = NEURON | problem.box.values(x)
    V, _, rate, _ = step_by_step(values, recording.current, recording.V_start, recording.spikes)
    expected = 0.0
    for step, trace in np.argwhere(recording.observed):
        mean = DT * rate[step, trace]
        expected += -math.log(-math.expm1(-mean)) if recording.spikes[step, trace] else mean
    counts = problem.study.fitted.recording.mask > 0
    assert 0.3 < counts.mean() < 0.95
    mse = np.mean((V - recording.V)[counts] ** 2)
    expected += counts.sum() * DT / 5.0 / 2 * math.log1p(mse / studies.V_RESOLUTION**2)
    assert problem.evaluate(x[None])[0] == pytest.approx(expected, rel=1e-9)


def test_its_derivatives_are_those_of_finite_differences(x64):
    problem = problem_of()
    x = np.full(len(FITTED), 0.42)
    _, (gradient,) = problem.evaluate(x[None], "gradients")
    losses, (gram,) = problem.evaluate(x[None], "grams")
    np.testing.assert_allclose(2 * gram[:-1, -1], gradient, rtol=1e-8, atol=1e-8 * np.abs(gradient).max())
    assert losses[0] == gram[-1, -1] == pytest.approx(problem.evaluate(x[None])[0])
    for i in range(len(FITTED)):
        low, high = (problem.evaluate((x + step * np.eye(len(x))[i])[None])[0] for step in (-1e-6, 1e-6))
        assert abs(gradient[i]) > 1e-3
        assert gradient[i] == pytest.approx((high - low) / 2e-6, rel=1e-4, abs=1e-4)


def test_the_quadratic_form_is_the_second_derivative_where_the_model_is_right(x64):
    """Of potentials without noise, at the truth: what is left out is proportional to residuals."""
    problem = problem_of()
    study = problem.study
    recording, *_ = recorded(NEURON, 1500, 2)
    silenced = dataclasses.replace(study.windows, recording=recording, silent=0 * study.windows.silent,
                                   fired=0 * study.windows.fired)  # fmt: skip
    x = np.array([(NEURON[name] - low) / (high - low) for name, low, high in
                  zip(FITTED, problem.box.low, problem.box.high, strict=True)])  # fmt: skip
    names = [i for i, name in enumerate(FITTED) if name in ("R", "tau", "V_rest", "A1", "k2", "R_s")]
    gram = jax.jit(lambda x: study.gram(problem.box.parameters, x, silenced))(x)[:-1, :-1]

    def loss(some):
        at = jnp.asarray(x).at[jnp.asarray(names)].set(some)
        return study.loss.function(study.model(problem.box.parameters(at), silenced, 0.0), silenced)

    hessian = jax.jit(jax.hessian(loss))(x[names])
    np.testing.assert_allclose(2 * np.asarray(gram)[np.ix_(names, names)], hessian, rtol=1e-5)


def test_clusters_are_of_the_samples_that_count(x64, monkeypatch):
    """With as many traces again that say nothing, all twice as long: no cluster more, and in each the same cost."""
    monkeypatch.setattr(teacher_forcing, "FEWEST", 0)
    few = problem_of()
    recording = few.study.recordings["fit"]

    def padded(x, fill=0.0):
        return np.pad(x, ((0, len(x)), (0, x.shape[1])), constant_values=fill)

    arrays = {name: padded(getattr(recording, name)) for name in ("current", "spikes", "mask", "observed")}
    arrays["spikes"][::400, 2:] = 1  # driven by, and not observed
    V_start = {name: np.tile(getattr(recording, name), 2) for name in ("V_start", "V_start_error")}
    longer = dataclasses.replace(recording, V=padded(recording.V, -60.0), **arrays, **V_start)
    found = []
    for data in (recording, longer):
        driven = teacher_forcing.driven_by(data, NEURON["t_ref"])
        study = dataclasses.replace(few.study, windows=driven, recordings={"fit": data})
        x = np.full(len(FITTED), 0.42)
        told = study.loss.predictions(study, few.box, x)
        found.append(np.asarray(jax.jit(told.costs)(x, *told.data)))
    assert len(found[0]) == len(found[1]) > 10
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)


# ---- What it finds --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def noisy_recording():
    """12 s of a neuron with t_ref, A_th, escape noise and R_s, as two sweeps, with noise in V."""
    truth = cells.RECORDED
    current, rng = noise(60_000, 2, mean=0.25, sd=0.35), np.random.default_rng(1)
    V, _, _, spikes = cells.escaping(current, DT, np.full(2, -60.0), rng.random(current.shape), **truth)
    V = V + 0.5 * rng.standard_normal(V.shape)
    return truth, current, V, spikes


def test_estimates_before_a_fit_are_near(noisy_recording):
    truth, current, V, spikes = noisy_recording
    ones = np.ones_like(V)
    recording = Recording(current, V, spikes.astype(float), ones, ones, V_start=V[0], dt=DT)
    estimates = teacher_forcing.first_estimates(recording, t_ref=4.0)
    for name, tolerance in {"R": 0.2, "tau": 0.25, "V_rest": 0.03, "V_reset": 0.05, "R_s": 0.3}.items():
        assert estimates.values[name] == pytest.approx(truth[name], rel=tolerance), name
    assert estimates.tau_noise == pytest.approx(DT, rel=0.5)
    bounds = dict(estimates.bounds)
    assert bounds.pop("A_g")[0] == truth["A_g"] == 0  # this neuron has none, and none has less
    inside = [low < truth[name] < high for name, (low, high) in bounds.items()]
    assert all(inside)


def files_of(folder, current, V, spikes):
    """A recording whose spikes are seen: 1 ms at 30 mV from the step after that in which each begins."""
    V = V.copy()
    for step, trace in np.argwhere(spikes):
        V[step + 1 : step + 11, trace] = 30.0
    files = write_traces(folder / "I.csv", current.T), write_traces(folder / "V.csv", V.T)
    return ["--current", files[0], "--voltage", files[1], "--current_unit", "nA", "--dt", DT]


def test_the_neuron_behind_a_recording_is_found_from_every_start(optimised, noisy_recording, run, tmp_path):
    truth, *recording = noisy_recording
    fitted = ["R", "tau", "V_rest", "V_reset", "A1", "k1", "A2", "k2", "R_s", "V_th_inf", "a", "b", "A_th", "width"]
    arguments = [*files_of(tmp_path, *recording), "--constants", "t_ref=4", "--n_sample", 3, "--validation", "none"]
    done = run(*arguments, "--model_terms", "none", "--output", "out", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert set(result["parameters"]) == set(fitted)
    assert (result["escape"], result["n_spikes"]) == ("exponential", recording[2].sum(0).tolist())
    best = min(start["loss"] for start in result["starts"])
    assert sum(start["loss"] <= best + 0.5 for start in result["starts"]) >= 2
    errors = result["identifiability"]["standard_errors"]
    away = {name: abs(result["parameters"][name] - truth[name]) / errors[name] for name in fitted}
    assert max(away.values()) < 4, away
    assert np.mean(np.array(list(away.values())) < 2) > 0.75, away
    assert errors["tau"] < 2
    assert result["variance_explained_forced"] > 0.9
    assert {"window_fit.png", "losses.png", "identifiability.png"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    # The response to the same current, by the saved run.
    again = run("--load", "out", *arguments[:8], "--output", "again", cwd=tmp_path)
    assert (again.returncode, again.stderr) == (0, "")
    loaded = json.loads((tmp_path / "again" / "result.json").read_text())
    assert loaded["score"]["variance_explained_forced"] == pytest.approx(result["variance_explained_forced"], abs=0.02)


@pytest.mark.parametrize("terms", [[], ["--model_terms", "auto"]])
def test_terms_that_a_recording_does_not_ask_for_are_left_out(noisy_recording, tmp_path, monkeypatch, capsys, terms):
    """By default together, with auto one after the other; bounds of what is left out do no harm."""
    _, *recording = noisy_recording
    monkeypatch.setattr(
        gif, "TERMS", {name: gif.TERMS[name] for name in ("tau_s", "non_linear", "A_th2")[: 3 - len(terms)]}
    )
    arguments = [*map(str, files_of(tmp_path, *(x[:20_000] for x in recording))), "--constants", "t_ref=4"]
    arguments += ["--n_sample", "2", "--validation", "none", "--bounds", "tau_s=0.02:1", *terms]
    result, folder = scripts.run_here(gif, monkeypatch, capsys, tmp_path, *arguments)
    with open(folder / "model_terms.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["terms"] for row in rows] == ["none", *(["tau_s"] if terms else [" ".join(gif.DEFAULT_TERMS)])]
    assert [row["kept"] for row in rows] == ["True", "False"]
    assert set(result["parameters"]) == {*gif.MEMBRANE, *gif.THRESHOLD} - {"tau_s"}
    assert result["loss"] == float(rows[0]["negative_log_likelihood"])
    assert float(rows[0]["aic"]) == pytest.approx(2 * (len(result["parameters"]) + result["loss"]))
    assert result["n_simulations"] > sum(start["n_gradients"] for start in result["starts"])


def test_starts_have_what_regression_knows_and_slow_rates_as_often_as_fast_ones(noisy_recording):
    _, current, V, spikes = noisy_recording
    ones = np.ones_like(V)
    estimates = teacher_forcing.first_estimates(
        Recording(current, V, spikes.astype(float), ones, ones, V_start=V[0], dt=DT)
    )
    limits = {"R": estimates.bounds["R"], "V_i": (-60.0, -30.0), **{name: gif.WIDE[name] for name in ("a", "b", "k2")}}
    bounds = {name: u.Quantity(pair, unit=gif.UNITS[name]) for name, pair in limits.items()} | {
        "A_th": gif.RANGES["A_th"]
    }
    draw = teacher_forcing.starts_of(bounds, estimates.values)
    x = draw(2000, 3)
    assert np.array_equal(x, draw(2000, 3))
    assert not np.array_equal(x, draw(2000, 4))
    assert x.min() >= 0
    assert x.max() <= 1
    low, high = np.transpose([limits.mantissa for limits in bounds.values()])
    p = dict(zip(bounds, (low + x * (high - low)).T, strict=True))
    assert np.ptp(p["R"]) == 0
    assert p["R"][0] == pytest.approx(estimates.values["R"])
    np.testing.assert_allclose(p["A_th"], 0, atol=1e-12)
    for name, (low, high) in gif.WIDE.items():
        if name in ("b", "k2"):
            assert scipy.stats.kstest(np.log(p[name] / low) / np.log(high / low), "uniform").pvalue > 0.01, name
    assert scipy.stats.kstest((p["V_i"] + 60) / 30, "uniform").pvalue > 0.01
    assert scipy.stats.kstest(p["a"] / p["b"], "uniform").pvalue > 0.01


def test_a_recording_without_spikes_tells_of_the_membrane(run, tmp_path):
    current, p = noise(20_000, 1, mean=0.0, sd=0.1), NEURON
    V, rng = np.full(20_000, -65.0), np.random.default_rng(0)
    for k in range(19_999):
        V[k + 1] = -65 + 100 * current[k, 0] + (V[k] + 65 - 100 * current[k, 0]) * math.exp(-DT / 20)
    V = (V + p["R_s"] * current[:, 0] + 0.2 * rng.standard_normal(20_000))[:, None]
    arguments = [*files_of(tmp_path, current, V, np.zeros_like(V)), "--n_sample", 2, "--output", "out"]
    done = run(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    for name in ("R", "tau", "V_rest", "R_s"):
        error = result["identifiability"]["standard_errors"][name]
        assert abs(result["parameters"][name] - p[name]) < 4 * error, name
    assert set(result["parameters"]) == gif.OF_SILENCE - {"tau_s"}, "which this electrode does not have"


BAD = {
    "--constants t_ref=400": "argument --constants: found t_ref=400 with spikes ",
    "--fit_parameters a V_th_reset": "found V_th_reset, expected A_th, the jump of a threshold without floor",
    "--escape exponential --objective simulation": "argument --escape: found exponential with --objective simulation",
    "--t_blank 1e5": "argument --t_blank: found 100000, expected less: no potential is left to fit",
    "--model_terms lapse --fit_parameters a": "argument --model_terms: found it with --fit_parameters, expected one",
    "--model_terms auto lapse": "argument --model_terms: found auto lapse, expected auto or none alone",
    "--model_terms auto --mode compare": "argument --model_terms: found auto with --mode compare, expected --mode fit",
    "--model_terms lapse --escape threshold": "argument --model_terms: found it with --escape threshold, expected one",
    "--model_terms I3 --objective simulation": "argument --model_terms: found I3 with --objective simulation, where it",
    "--n_point 100": "argument --n_point: found 100 with --escape exponential, expected none",
    "--width_floor 1": "argument --width_floor: found 1.0 with --escape exponential, where it has no effect",
    "--tau_noise 0": "argument --tau_noise: found '0', expected a number > 0",
}


@pytest.mark.parametrize("text", BAD)
def test_bad_arguments(text, noisy_recording, tmp_path, monkeypatch, capsys):
    _, *recording = noisy_recording
    short = [x[:20_000] for x in recording]
    arguments = [*map(str, files_of(tmp_path, *short)), *text.split()]
    assert BAD[text] in scripts.refused(gif, monkeypatch, capsys, tmp_path, arguments)


def test_a_spike_within_the_refractory_period_drives_nothing(x64):
    recording, *_ = recorded(NEURON, 2000, 1)
    steps = np.flatnonzero(recording.spikes[:, 0])
    close = recording.spikes.copy()
    close[steps[0] + 5] = 1
    assert recordings.observed_in(recording).all()
    kept = teacher_forcing.driven_by(dataclasses.replace(recording, spikes=close), 4.0)
    np.testing.assert_array_equal(np.asarray(kept.at_spike), recording.spikes)
