"""A cell that its recording drives while it is fitted: what is minimised, windows, and the cell that is found."""

import dataclasses
import functools

import runs

import brainstate
import brainunit as u
import cells
import jax
import numpy as np
import pytest
import scipy.interpolate
import scipy.signal
import scripts

import evaluation
import fitting
import neuron_fitting_of_hh_model as script
import recordings
import reports
import scoring
import solvers
import spike_trains
import studies
import synchronisation
import utils
from identifiability import identifiability

DT = 0.05
SPIKING = dict(gM=0.03, tau_max=100.0, phi=1.2)


def current_of(T, seed=0, mean=0.35, sd=0.3):
    """Noise (T, 1) that makes the cell fire irregularly (nA)."""
    noise = np.random.default_rng(seed).standard_normal(round(T / DT / 60) + 1)
    current = mean + sd * np.repeat(noise, 60)[: round(T / DT), None]
    current[: round(5 / DT)] = 0  # at which the cell rests
    return current


@pytest.fixture(scope="module")
def adapting():
    """Potentials of a cell with M current, after 300 ms at its first current."""
    current = current_of(600.0)
    return recordings.recorded(current, cells.hh(current, DT, step=0.0025, **SPIKING), DT)


def values(**parameters):
    return script.with_units(cells.HH | dict(R_s=0.0) | parameters)


def model(dt_sim=0.005):
    return synchronisation.driven(functools.partial(utils.HH, scheme="staggered"), {}, dt_sim)


def mean_square(output, windows):
    return float(np.sum(np.square(synchronisation.weighted_errors(output, windows))) / np.sum(windows.mask))


def test_an_M_current_and_a_temperature_are_those_of_another_integration(adapting):
    cell = studies.simulation(functools.partial(utils.HH, scheme="staggered"), dt_sim=0.005)
    V = np.asarray(cell(values(**SPIKING), adapting)["V"])
    start = slice(0, 2000)  # 100 ms, before errors of the first spikes grow
    assert adapting.spikes[start].sum() >= 2
    assert np.sqrt(np.mean((V - adapting.V)[start] ** 2)) < 0.3
    without = np.asarray(cell(values(), adapting)["V"])
    assert np.sqrt(np.mean((without - adapting.V)[start] ** 2)) > 5


@pytest.mark.parametrize("coupling", [10.0, 1.0, 0.1])
def test_where_the_parameters_are_true_there_is_no_error_whatever_the_coupling(adapting, coupling):
    windows = synchronisation.windows_of(adapting, t_history=500.0)
    error = [
        mean_square(model()(values(**parameters), windows, coupling), windows)
        for parameters in (SPIKING, SPIKING | dict(gNa=26.0))
    ]
    assert error[0] < 0.05 * error[1]
    assert error[0] < 0.5


def test_at_coupling_0_from_a_known_start_the_model_is_the_one_that_runs_freely():
    current = current_of(60.0)
    free = studies.simulation(functools.partial(utils.HH, scheme="staggered"), dt_sim=0.01)
    V = np.asarray(free(values(), recordings.Recording(current, dt=DT))["V"])
    exact = dataclasses.replace(recordings.recorded(current, V, DT), V_start=None, V_start_error=None)
    windows = synchronisation.windows_of(exact)
    assert windows.recording.V.shape == V.shape
    np.testing.assert_allclose(model(0.01)(values(), windows, 0.0)["V"], V, atol=1e-2)
    other = values(gNa=25.0)
    released = np.asarray(free(other, exact)["V"])
    np.testing.assert_allclose(model(0.01)(other, windows, 0.0)["V"], released, atol=1e-2)
    assert np.mean((released - V) ** 2) > 1


def test_a_sample_is_predicted_from_the_one_before_where_the_coupling_is_strong(adapting):
    windows = synchronisation.windows_of(adapting, t_history=500.0)
    V = np.asarray(model()(values(**SPIKING), windows, 1e3)["V"])[100:]
    recorded = windows.recording.V[100:]
    assert np.abs(V - recorded).max() < 0.5
    # Not the recorded sample itself: with other parameters it is off by what these change in a step.
    slope = np.asarray(model()(values(**SPIKING | dict(C=0.4)), windows, 1e3)["V"])[100:]
    changed = np.diff(recorded, axis=0)
    np.testing.assert_allclose((slope - recorded)[1:], -0.5 * changed, atol=0.2 + 0.2 * np.abs(changed).max())
    assert np.corrcoef((slope - recorded)[1:].ravel(), changed.ravel())[0, 1] < -0.9


def test_what_is_not_known_does_not_draw_the_model(adapting):
    observed = adapting.observed.copy()
    observed[4000:4400] = 0
    hidden = dataclasses.replace(adapting, observed=observed, mask=adapting.mask * observed)
    elsewhere = dataclasses.replace(hidden, V=np.where(observed > 0, hidden.V, 0.0))
    V = [
        np.asarray(model()(values(**SPIKING), synchronisation.windows_of(r, t_window=1e4), 1.0)["V"])
        for r in (hidden, elsewhere)
    ]
    np.testing.assert_array_equal(*V)
    assert np.isfinite(V[0]).all()


def test_windows_count_every_sample_after_the_first_warm_up_once(adapting):
    T = 1900  # the second of two traces is shorter
    two = jax.tree.map(lambda x: np.concatenate([x, x], axis=-1), adapting)
    two.mask[T:, 1] = 0
    two.V[:, :] = np.arange(len(two.V))[:, None] + 1e5 * np.arange(2)
    windows = synchronisation.windows_of(two, t_window=100.0)
    counted = windows.recording.V[windows.recording.mask > 0]
    assert len(np.unique(counted)) == len(counted)
    n_warm = round(synchronisation.T_WARM / DT)
    for trace, end in ((0, len(two.V)), (1, T)):
        own = np.sort(counted[(counted >= 1e5) == bool(trace)]) - 1e5 * trace
        np.testing.assert_array_equal(own, np.arange(n_warm, n_warm + len(own)))
        assert end - n_warm - len(own) < 6
    assert windows.recording.mask.any(0).all()


def test_an_error_weighs_less_where_a_little_time_is_many_millivolts():
    V = np.interp(np.arange(4000) * DT, [0, 100, 100.5, 200], [-65, -65, 35, 35])[:, None]
    quiet = synchronisation.weights_of(recordings.recorded(0 * V, V, DT))
    expected = 1 / np.sqrt(1 + (200 * synchronisation.T_JITTER / synchronisation.S_NOISE) ** 2)
    np.testing.assert_allclose(quiet[2005, 0], expected, rtol=1e-6)
    np.testing.assert_allclose(np.delete(quiet[:, 0], np.arange(1995, 2015)), 1)
    noise = 0.5 * np.random.default_rng(0).standard_normal(V.shape)
    noisy = synchronisation.weights_of(recordings.recorded(0 * V, V + noise, DT))
    assert np.delete(noisy[:, 0], np.arange(1995, 2015)).mean() > 0.85
    np.testing.assert_allclose(noisy[2005, 0], expected, rtol=0.2)


def test_a_missing_spike_does_not_outweigh_all_else():
    windows = synchronisation.windows_of(recordings.recorded(np.zeros((4000, 1)), np.zeros((4000, 1)), DT))
    error = {V: synchronisation.weighted_errors(dict(V=np.full((4000, 1), V)), windows) for V in (0.1, -100.0)}
    np.testing.assert_allclose(error[0.1][windows.mask > 0], 0.1, rtol=1e-3)
    assert -25 < error[-100.0].min() < -10


def test_the_slow_gate_of_a_window_is_what_the_recording_has_made_of_it(adapting):
    windows = synchronisation.windows_of(adapting, t_window=100.0, t_history=500.0)
    parameters = values(**SPIKING)
    cell = utils.HH(windows.recording.V.shape[1:], **{k: v for k, v in parameters.items() if k != "R_s"})
    cell.init_state()
    synchronisation.follow(cell, windows, parameters)
    # In fine steps, from rest.
    samples = np.arange(len(adapting.V))
    V = scipy.interpolate.CubicSpline(samples, adapting.V[:, 0])((np.arange(10 * len(samples) - 10) + 0.5) / 10)
    z = np.exp((V + 35) / 20)
    p_inf, rate = z**2 / (1 + z**2), SPIKING["phi"] * (3.3 * z + 1 / z) / SPIKING["tau_max"]
    p = [1 / (1 + np.exp(-(adapting.V[0, 0] + 35) / 10))]
    for k in range(len(V)):
        p.append(p_inf[k] + (p[-1] - p_inf[k]) * np.exp(-rate[k] * DT / 10))
    n_window = (len(adapting.V) - round(synchronisation.T_WARM / DT)) // windows.recording.V.shape[1]
    expected = np.array(p)[::10][n_window * np.arange(windows.recording.V.shape[1])]
    assert np.ptp(expected) > 0.05
    np.testing.assert_allclose(np.asarray(cell.p.value), expected, atol=2e-3)


# ---- Fits -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def spiking():
    """Many spikes of the cell without M current."""
    current = current_of(300.0, seed=1)
    return recordings.recorded(current, cells.hh(current, DT, step=0.0025), DT)


def study_of(recording, objective, level=None, **settings):
    source = recordings.Source(files=recordings.Files(recording=["own"]), dt_sim=0.025)
    settings = studies.FitSettings(fit_parameters=("gL", "gNa", "gK", "V_T"), **settings)
    data = recordings.Data({"fit": recording})
    return script.make_study(settings, data, source, cells.HH | dict(R_s=0.0), "staggered", objective)


def test_a_cell_that_the_plain_loss_does_not_find_is_found_from_every_start(optimised, spiking):
    assert spiking.spikes.sum() >= 6
    search = fitting.Search(n_sample=3)
    plain = fitting.minimise(fitting.FitProblem(study_of(spiking, "simulation"), 3, jax.devices()), search)
    fit = fitting.fit(study_of(spiking, "synchronised"), search)
    assert plain.best.loss > 50
    assert fit.loss < 5
    for start in fit.minimum.starts:
        found = fitting.Box(study_of(spiking, "synchronised").bounds).values(start.x)
        for name, value in found.items():
            assert value == pytest.approx(cells.HH[name], rel=0.02)
    assert fit.released.gamma > 0.95
    assert fit.released.n_spikes_model == fit.released.n_spikes
    assert [stage.level for stage in fit.minimum.stages] == list(synchronisation.COUPLINGS)
    assert sum(start.n_gradients for start in fit.minimum.starts) == fit.n_gradients


def test_a_model_that_is_not_the_cell_has_no_standard_error(adapting, monkeypatch):
    monkeypatch.setattr(synchronisation, "COUPLINGS", (2.5, 0.0))
    cell = dataclasses.replace(
        adapting, V=adapting.V + 0.1 * np.random.default_rng(0).standard_normal(adapting.V.shape)
    )
    fit = fitting.fit(study_of(cell, "synchronised"), fitting.Search(n_sample=2))
    reasons = set(fit.identifiability.without_error.values())
    assert all("does not describe these data: released" in reason or "at its bound" in reason for reason in reasons)
    assert np.isnan(list(fit.identifiability.standard_errors.values())).all()


def test_standard_errors_know_of_the_noise_with_which_counting_begins():
    current, deviations = current_of(120.0, seed=1), []
    free = jax.jit(studies.simulation(functools.partial(utils.HH, scheme="staggered"), dt_sim=0.025))
    held = recordings.Recording(current, V_start=np.array([-65.0]), dt=DT)
    V, truth = np.asarray(free(values(), held)["V"]), np.array([cells.HH[name] for name in script.FITTED])
    with jax.enable_x64(True):
        for seed in range(2):
            noise = 0.5 * np.random.default_rng(seed).standard_normal(V.shape)
            study = study_of(recordings.recorded(current, V + noise, DT), "synchronised")
            problem = fitting.FitProblem(study, 1, jax.devices())
            x0 = (truth - problem.box.low) / (problem.box.high - problem.box.low)
            x = fitting.multistart(problem, x0[None]).best.x
            errors = fitting.determined(study.at(0.0), problem.box, x).standard_errors
            found = problem.box.values(x)
            deviations += [(found[name] - cells.HH[name]) / error for name, error in errors.items()]
        predictions, clusters = study.at(0.0).loss.predictions(study.at(0.0), problem.box, x)
        alone = {"V_mV": predictions["V_mV"]._replace(nuisances=None)}
        without = identifiability(problem.box, x, alone, clusters).standard_errors
    assert len(deviations) == 8
    assert 0.4 < np.sqrt(np.mean(np.square(deviations))) < 2
    assert 0.6 < without["V_T"] / errors["V_T"] < 0.85, "what drives it has noise, too"


def test_what_a_held_constant_moves_in_a_driven_cell_is_what_another_fit_finds(x64):
    current, found = current_of(120.0, seed=1), []
    V = cells.hh(current, DT, step=0.0025) + 0.1 * np.random.default_rng(0).standard_normal(current.shape)
    recording, truth = recordings.recorded(current, V, DT), np.array([cells.HH[name] for name in script.FITTED])
    for more in (0.0, 0.1):
        study = study_of(recording, "synchronised", constants=[("ENa", cells.HH["ENa"] + more)])
        problem = fitting.FitProblem(study, 1, jax.devices())
        x0 = (truth - problem.box.low) / (problem.box.high - problem.box.low)
        x = fitting.multistart(problem, x0[None]).best.x
        found.append(np.array(list(problem.box.values(x).values())))
        if not more:
            by_held = fitting.determined(study.at(0.0), problem.box, x).by_held
    expected = dict(zip(script.FITTED, (found[1] - found[0]) / 0.1, strict=True))
    assert by_held["ENa"] == pytest.approx(expected, rel=0.1, abs=1e-5)
    assert abs(by_held["ENa"]["gNa"]) > 0.005 * cells.HH["gNa"]


@pytest.mark.parametrize("objective", ["synchronised", "simulation"])
def test_a_recording_is_no_constant_of_the_programs_of_standard_errors(objective, spiking, monkeypatch):
    """Of 10 s, which are 150 MB of text, XLA made 0.8 GB."""
    released = studies.Released(0.0, 1.0, 7, 7, 0.0)
    monkeypatch.setattr(synchronisation, "releaser", lambda *args: lambda parameters: released)
    study = study_of(spiking, objective)
    study = study.at(0.0) if objective == "synchronised" else study
    x = np.full(len(study.bounds), 0.5)
    predictions, _ = study.loss.predictions(study, fitting.Box(study.bounds), x)
    (prediction,) = predictions.values()
    for function, given in ((prediction.function, ()), (prediction.nuisances, (prediction.target,))):
        arrays = jax.make_jaxpr(function)(x, *given, *prediction.data).consts
        others = [array for array in arrays if np.size(array) > 100 and np.asarray(array).dtype.kind == "f"]
        assert not others
    taken = jax.make_jaxpr(lambda x: prediction.function(x, *prediction.data))(x).consts
    assert max(np.size(array) for array in taken) >= spiking.V.size


def test_a_fit_of_many_traces_in_chunks_is_that_of_all_at_once(spiking, monkeypatch):
    study = study_of(spiking, "synchronised")
    study = dataclasses.replace(study, windows=synchronisation.windows_of(spiking, t_window=50.0))
    assert study.windows.recording.V.shape[1] == 5
    X = np.random.default_rng(0).random((4, 4))
    problems = [fitting.FitProblem(study, 4, jax.devices())]
    monkeypatch.setattr(evaluation, "N_CELL", 4)
    problems.append(fitting.FitProblem(study, 4, jax.devices()))
    for what in ("gradients", "grams"):
        whole, chunks = (problem.evaluate(X, what, level=1.0) for problem in problems)
        for a, b in zip(whole, chunks, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(a).max())


def test_a_gram_matrix_is_that_of_the_residuals_and_their_derivatives(spiking):
    study = study_of(spiking, "synchronised")
    problem, x = fitting.FitProblem(study, 2, jax.devices()), np.array([0.4, 0.5, 0.3, 0.6])
    windows = study.windows

    def residuals(x):
        output = study.model(problem.box.parameters(x), windows, 1.0)
        return study.loss.residuals(output, windows).ravel() / np.sqrt(np.sum(windows.mask))

    J, r = np.asarray(jax.jacfwd(residuals)(x)), np.asarray(residuals(x))
    rows = np.column_stack([J, r])
    (loss, gradient), (also, grams) = (problem.evaluate(x[None], what, level=1.0) for what in ("gradients", "grams"))
    np.testing.assert_allclose(grams[0], rows.T @ rows, rtol=2e-3, atol=1e-4 * np.abs(rows.T @ rows).max())
    np.testing.assert_allclose(also, loss, rtol=1e-4)
    np.testing.assert_allclose(2 * grams[0, :-1, -1], gradient[0], rtol=2e-3, atol=1e-3 * np.abs(gradient).max())
    assert np.abs(gradient).min() > 0


def test_the_first_level_is_fitted_on_a_part_of_the_windows(spiking):
    study = study_of(spiking, "synchronised")
    annealing = dataclasses.replace(study.annealing, n_first=2)
    windows = synchronisation.windows_of(spiking, t_window=50.0)
    study = dataclasses.replace(study, windows=windows, annealing=annealing)
    problem = fitting.FitProblem(study, 1, jax.devices())
    x = np.full((1, 4), 0.4)
    part = jax.tree.map(lambda y: y[..., [0, 4]], windows)
    output = study.model(problem.box.parameters(np.repeat(x, 2, axis=0)), part, 10.0)
    assert problem.evaluate(x, level=10.0)[0] == pytest.approx(mean_square(output, part), rel=1e-4)
    all_of_them = study.model(problem.box.parameters(np.repeat(x, 5, axis=0)), windows, 2.5)
    expected = mean_square(all_of_them, windows)
    assert problem.evaluate(x, level=2.5)[0] == pytest.approx(expected, rel=1e-4)


def test_starts_that_have_met_go_on_as_one():
    starts = [
        fitting.Start(None, np.array(x), loss)
        for x, loss in (([0.5, 0.5], 2.0), ([0.5, 0.5005], 1.0), ([0.5, 0.6], 3.0))
    ]
    assert fitting._met(starts) == [1, 1, 2]


def test_a_fit_ends_where_the_released_cell_predicts_spikes_and_starts_agree():
    def stage(level, gamma, losses, x, released=90.0):
        starts = [fitting.Start(None, np.array(point), loss) for point, loss in zip(x, losses, strict=True)]
        return fitting.Minimum(starts, level, released=studies.Released(released, gamma, 10, 10, 1.0))

    same, apart = [[0.5], [0.5]], [[0.5], [0.9]]
    silent, late = stage(0.0, 0.0, [0.1, 0.1], same), stage(1.0, 0.7, [3.0, 3.0], same)
    assert fitting._chosen([late, silent]) is late
    scattered, better = stage(0.1, 0.71, [1.0, 2.0], apart), stage(0.25, 0.69, [2.0, 2.0], same)
    assert fitting._chosen([late, better, scattered]) is better
    strong, weak = (stage(level, 1.0, [1.0, 1.0], same) for level in (1.0, 0.25))
    worse = [stage(level, 1.0, [1.1, 1.1], same) for level in (10.0, 0.0)]
    assert fitting._chosen([weak, strong, *worse]) is weak
    closer = stage(0.1, 1.0, [2.0, 2.0], same, released=70.0)
    assert fitting._chosen([weak, strong, closer, *worse]) is closer
    assert late.released.follows
    assert not silent.released.follows
    assert not studies.Released(float("nan"), None, 10, 0, 1.0).follows


@pytest.mark.parametrize("rate", [20, 133])
def test_undefined_gammas_count_against_a_model_that_fires_too_often_alone(rate):
    """Rates (Hz) at which Gamma is defined for the cell and where it is not, by --delta alone; and a silent trace."""
    dt, T = 0.1, 10000

    def train(rate):
        V = np.full(T, -65.0)
        V[round(500 / rate / dt) :: round(1000 / rate / dt)] = 20.0
        return V

    V = np.stack([*4 * [train(rate)], np.full(T, -65.0)], axis=1)
    spikes = (np.diff(V > 0, axis=0, prepend=False) > 0) & (V > 0)
    observed = np.ones_like(V)
    observed[:, 4] = 0  # as of a sweep that ends before what counts begins
    recording = recordings.Recording(np.zeros_like(V), V, spikes * 1.0, np.ones_like(V), observed, dt=dt)
    level = spike_trains.SpikeLevel(0.0)
    release = synchronisation.releaser(lambda parameters, windows, coupling: parameters, recording, level, 4.0)
    same = release({"V": V})
    assert same.gamma == pytest.approx(1)
    assert same.follows
    assert release({"V": np.roll(V, round(1 / dt), axis=0)}).gamma > 0.9  # 1 ms late
    often = V.copy()
    often[:, 1:4] = train(3 * rate if rate > 100 else 150)[:, None]
    wrong = release({"V": often})
    assert wrong.gamma == pytest.approx(0.25)
    assert not wrong.follows
    assert not release({"V": np.full_like(V, -65.0)}).follows


def in_steps(n_step, rows):
    """A recording of silent potentials at 0.1 ms with spikes at these (step, trace)."""
    V = np.full((n_step, 1 + max(trace for _, trace in rows)), -65.0)
    for step, trace in rows:
        V[step : step + 10, trace] = 20.0
    return recordings.recorded(np.zeros_like(V), V, 0.1)


def test_windows_of_a_fit_of_spikes_keep_those_without_a_quiet_potential():
    fast = in_steps(41_000, [(step, 0) for step in range(500, 21_000, 200)])  # 50 Hz for 2 s of 4
    away = recordings.without_spikes(fast, *scoring.T_AROUND)
    script.require_quiet(away)
    kept = synchronisation.windows_of(away, synchronisation.T_FREE, by_spikes=True)
    n_warm = kept.n_warm[0]
    assert kept.recording.spikes[n_warm:].sum() == fast.spikes[n_warm:].sum() > 90
    assert synchronisation.windows_of(away, synchronisation.T_FREE).recording.spikes.sum() < 60
    nothing = recordings.without_spikes(
        in_steps(4_000, [(step, 0) for step in range(40, 4_000, 200)]), *scoring.T_AROUND
    )
    with pytest.raises(runs.BadInput, match="found both, and all potentials less than 5 ms before or 20 ms after"):
        script.require_quiet(nothing)


def test_spikes_of_the_warm_up_decide_nothing():
    level = spike_trains.SpikeLevel(0.0)
    early = in_steps(4_000, [(step, trace) for trace in range(12) for step in (50, 150, 250, 350)])
    release = synchronisation.releaser(lambda parameters, windows, coupling: parameters, early, level, 4.0)
    released = release({"V": np.full_like(early.V, -65.0)})
    assert released.n_spikes == released.n_spikes_model == 0
    assert not synchronisation.describes(released, early)
    silent = dataclasses.replace(early, spikes=0 * early.spikes)
    assert synchronisation.describes(released, silent)
    late = in_steps(4_000, [(step, 0) for step in (50, 150, 2000, 2500, 3000)])
    args = script.parse_args(["--recording", "sweeps.npz"])
    found = [script.objective_of(args, recordings.Data({"fit": recording})) for recording in (early, late)]
    assert found == ["simulation", "synchronised"]
    assert script.steps_to_judge(early) == 0
    many = in_steps(20_000, [(50 + step, 0) for step in range(0, 19_500, 400)])
    n_early = script.steps_to_judge(many)
    assert synchronisation.counted_in(many).spikes[n_early:].sum() == 48 // 3
    for interval in (200, 220, 240):
        fast = in_steps(20_000, [(50 + step, 0) for step in range(0, 19_000, interval)])
        assert script.steps_to_judge(fast) == 0


def test_a_sweep_that_ends_within_the_warm_up_is_left_out():
    recording = in_steps(4_000, [(1000, 0), (100, 1)])
    known = np.ones_like(recording.V)
    known[350:, 1] = 0
    aborted = dataclasses.replace(recording, mask=known, observed=known)
    level = spike_trains.SpikeLevel(0.0)
    release = synchronisation.releaser(lambda parameters, windows, coupling: parameters, aborted, level, 4.0)
    released = release({"V": recording.V[:, :1]})
    assert (released.n_spikes, released.n_spikes_model, released.gamma) == (1, 1, 1.0)


def test_a_minimum_that_has_lost_its_spikes_is_not_taken():
    def at(gamma):
        return fitting.Minimum([], released=studies.Released(1.0, gamma, 10, 10, 1.0))

    coarse, fine, silent = at(0.5), at(0.49), at(None)
    assert fitting._better(coarse, fine) is fine
    assert fitting._better(coarse, silent) is coarse
    plain = fitting.Minimum([])
    assert fitting._better(plain, plain) is plain


def test_a_standard_error_is_no_less_than_what_the_coupling_changes():
    box = fitting.Box({"gL": u.Quantity([0.0, 2.0], unit=u.uS), "C": u.Quantity([0.0, 1.0], unit=u.nF)})
    said = dataclasses.replace(fitting.unknown(box, np.full(2, 0.5), ""), standard_errors=dict(gL=0.3, C=0.1))
    points = [[0.9, 0.9], [0.5, 0.5], [0.5, 0.7], [0.7, 0.5]]
    stages = [
        fitting.Minimum([fitting.Start(None, np.array(x), 1.0)], level)
        for level, x in zip((10.0, 1.0, 0.1, 0.0), points, strict=True)
    ]
    released = studies.Released(1.0, 1.0, 5, 5, 0.1)
    at = [dataclasses.replace(stage, stages=stages, released=released) for stage in stages]
    # The first level, of a part of the windows, is no neighbour.
    assert fitting.widened(said, box, at[1]).standard_errors == pytest.approx(dict(gL=0.3, C=np.hypot(0.1, 0.2)))
    both = fitting.widened(said, box, at[2]).standard_errors
    assert both == pytest.approx(dict(gL=0.5, C=np.hypot(0.1, 0.2)))
    assert fitting.widened(said, box, stages[2]) is said


@pytest.fixture(scope="module")
def disturbed():
    """Study of ten windows of a noisy recording, in the sixth of which spikes are not where the cell has them."""
    current = current_of(1040.0, seed=1)
    V = cells.hh(current, DT, step=0.0025)
    V += 0.3 * np.random.default_rng(0).standard_normal(V.shape)
    V[10800:11800] = np.roll(V[10800:11800], 200, axis=0)
    recording = recordings.recorded(current, V, DT)
    study = study_of(recording, "synchronised")
    windows = synchronisation.windows_of(recording, t_window=100.0)
    annealing = dataclasses.replace(study.annealing, levels=(1.0, 0.25), n_first=None)
    kept = synchronisation.keeper(study.model, windows, recordings.SpikeLevel(0.0, -20.0))
    return dataclasses.replace(study, windows=windows, annealing=annealing, kept=kept)


def test_a_window_whose_errors_are_not_those_of_the_others_is_left_out(disturbed):
    box = fitting.Box(disturbed.bounds)
    truth = np.array([cells.HH[name] for name in script.FITTED])
    x0 = ((truth - box.low) / (box.high - box.low) + 0.02)[None]

    def fitted_by(study):
        problem = fitting.FitProblem(study, 1, jax.devices())
        found = fitting.anneal(problem, study.annealing, x0, solvers.GAUSS_NEWTON)
        return problem, found, np.abs(list(box.values(found.best.x).values()) / truth - 1).max()

    problem, found, error = fitted_by(disturbed)
    assert found.kept.tolist() == [i != 5 for i in range(10)]
    assert "without 1 of 10 windows" in reports.lines_of_left_out(found)[0]
    assert reports.release_of(disturbed, found)["n_left_out"] == 1
    assert np.asarray(problem.study.windows.mask).any(axis=0).tolist() == found.kept.tolist()
    others = jax.tree.map(lambda x: x[..., found.kept], disturbed.windows)
    expected = mean_square(disturbed.model(box.parameters(found.best.x), others, found.level), others)
    assert found.best.loss == pytest.approx(expected, rel=1e-3)
    assert len(found.near) == 1
    _, plain, error_of_all = fitted_by(dataclasses.replace(disturbed, kept=None))
    assert reports.lines_of_left_out(plain) == []
    assert error < 0.04
    assert error_of_all > 2 * error
    further = (studies.Released(2.0**n, 1.0, 30, 30, 1.0) for n in range(9))
    problem, found, _ = fitted_by(dataclasses.replace(disturbed, released=lambda parameters: next(further)))
    assert found.kept is None
    assert problem.study.windows is disturbed.windows


@pytest.fixture(scope="module")
def misled(adapting):
    """Windows of a noisy recording, whose warm-ups end 0.5 mV off: a cell that is drawn there begins with that."""
    windows = synchronisation.windows_of(adapting, t_history=500.0)
    V = windows.recording.V + 0.2 * np.random.default_rng(0).standard_normal(windows.recording.V.shape)
    V[: windows.n_warm[0]] += 0.5
    return dataclasses.replace(windows, recording=dataclasses.replace(windows.recording, V=V))


def test_a_window_begins_at_the_potential_from_which_it_is_followed_best(misled):
    parameters, plain = values(**SPIKING | dict(gNa=22.02)), jax.jit(model(0.025))

    def costs(shift):
        output = plain(parameters, dataclasses.replace(misled, shift=shift), 0.0)
        return np.sum(np.square(synchronisation.weighted_errors(output, misled)), axis=0)

    shifts = np.arange(-2.0, 1.0, 0.02)
    brute = np.stack([costs(np.full(misled.mask.shape[1], shift)) for shift in shifts])
    best = synchronisation.weighted_errors(synchronisation.from_any_start(plain)(parameters, misled), misled)
    found = np.sum(np.square(best), axis=0)
    np.testing.assert_allclose(found, brute.min(0), rtol=0.02)
    assert np.sum(costs(np.zeros(misled.mask.shape[1]))) > 1.1 * np.sum(found)
    assert np.abs(shifts[brute.argmin(0)]).max() > 0.2


def test_derivatives_are_those_at_the_best_start_of_every_parameter(misled, monkeypatch):
    monkeypatch.setattr(synchronisation, "N_SHIFT", 10)
    best, names = synchronisation.from_any_start(model(0.025)), ("gL", "gNa", "gM")

    def residuals(x):
        parameters = values(**SPIKING)
        for name, factor in zip(names, x, strict=True):
            parameters[name] = parameters[name] * factor
        return synchronisation.weighted_errors(best(parameters, misled), misled).ravel()

    with jax.enable_x64(True), brainstate.environ.context(precision=64):
        cost, x = jax.jit(lambda x: jax.numpy.sum(residuals(x) ** 2)), np.array([1.002, 0.999, 1.001])
        J, r = jax.jit(jax.jacfwd(residuals))(x), jax.jit(residuals)(x)
        steps = 1e-5 * np.eye(3)
        differences = [float(cost(x + step) - cost(x - step)) / 2e-5 for step in steps]
    np.testing.assert_allclose(2 * J.T @ r, differences, rtol=0.01)
    assert np.abs(differences).min() > 1


def test_weights_are_those_of_the_errors_and_windows_beyond_them_are_left_out(disturbed):
    windows, level, rng = disturbed.windows, recordings.SpikeLevel(0.0, -20.0), np.random.default_rng(0)
    clean = dataclasses.replace(windows.recording, V=scipy.signal.savgol_filter(windows.recording.V, 5, 3, axis=0))
    windows = dataclasses.replace(windows, recording=clean)
    slope = np.sqrt(synchronisation.squared_slopes(clean))
    errors = np.hypot(synchronisation.S_NOISE, 0.02 * slope) * rng.standard_normal(slope.shape)
    weighted = synchronisation.weighted_by(errors, windows, level)
    expected = windows.mask * synchronisation.weights_of(clean, 0.02)
    np.testing.assert_allclose(weighted.weight, expected, rtol=0.1)
    assert expected[windows.mask > 0].min() < 0.3
    one, several = errors.copy(), errors.copy()
    one[:, 3] *= 1.5
    several[:, 2:6] *= 1.5
    kept = [synchronisation.weighted_by(e, windows, level).mask.any(0) for e in (one, several)]
    assert kept[0].tolist() == [i != 3 for i in range(10)]
    assert kept[1].all()
    alike = synchronisation.weighted_by(0.1 * rng.standard_normal(slope.shape), windows, level)
    assert set(np.unique(alike.weight)) == {0.0, 1.0}


@pytest.fixture(scope="module")
def noisy(spiking):
    V = spiking.V + np.random.default_rng(0).standard_normal(spiking.V.shape)
    return recordings.recorded(spiking.current, V, DT)


def test_where_the_model_is_the_cell_parameters_are_known_better_by_the_best_starts(optimised, noisy):
    study, search, fits = study_of(noisy, "synchronised"), fitting.Search(n_sample=2), []
    for further in (study.further, None):
        fits.append(fitting.fit(dataclasses.replace(study, further=further), search))
        errors = fits[-1].identifiability.standard_errors
        off = [abs(fits[-1].parameters[name] - cells.HH[name]) / error for name, error in errors.items()]
        assert max(off) < 3
    best, plain = fits
    assert not plain.minimum.loss_name
    assert best.minimum.loss_name.startswith("squared error of V released")
    assert reports.result_of(study, recordings.Data({}), best, 0, {})["loss_driven_name"] == best.minimum.loss_name
    right = reports.plot_losses(best, best.minimum.loss_name).axes[1]
    counts, losses = right.lines[0].get_data()
    assert counts[0] > best.minimum.n_before > len(counts) > 1
    assert np.all(np.diff(losses) <= 0)
    for name in ("gNa", "gK"):
        errors = [fit.identifiability.standard_errors[name] for fit in fits]
        assert errors[0] < 0.6 * errors[1]


def test_best_starts_are_asked_for_only_where_the_released_cell_is_the_recorded_one(noisy):
    study = study_of(noisy, "synchronised")
    right = studies.Released(1.0, 1.0, 7, 7, 1.0)
    assert study.further(study, values(), right)
    for change in (dict(gamma=0.9), dict(gamma=None), dict(rmse_away=2.0), dict(rmse_away=float("nan"))):
        assert study.further(study, values(), dataclasses.replace(right, **change)) is None


def test_ctrl_c_at_the_best_starts_leaves_what_predictions_have_found(noisy, monkeypatch):
    study, evaluate = study_of(noisy, "synchronised"), fitting.FitProblem.evaluate

    def interrupted(problem, *args, **kwargs):
        if problem.study.loss.name.startswith("squared error of V released"):
            raise KeyboardInterrupt
        return evaluate(problem, *args, **kwargs)

    monkeypatch.setattr(fitting.FitProblem, "evaluate", interrupted)
    problem = fitting.FitProblem(study, 1, jax.devices())
    truth = np.array([cells.HH[name] for name in script.FITTED])
    x0 = (truth - problem.box.low) / (problem.box.high - problem.box.low)
    found = fitting.anneal(problem, dataclasses.replace(study.annealing, levels=(0.1, 0.0)), x0[None], "Gauss-Newton")
    assert found.interrupted
    assert found.released.gamma == 1
    assert not found.loss_name
    assert problem.study.loss is study.loss


def test_windows_are_left_out_only_where_they_are_few_of_many_with_spikes(disturbed):
    truth, whole, level = values(), disturbed.windows, recordings.SpikeLevel(0.0, -20.0)

    def keeper_of(V):
        windows = dataclasses.replace(whole, recording=dataclasses.replace(whole.recording, V=V))
        return synchronisation.keeper(disturbed.model, windows, level)

    V, several = np.array(whole.recording.V), np.array(whole.recording.V)
    assert disturbed.kept(truth, 0.25).sum() == 9
    several[:, [2, 8]] = np.roll(V[:, [2, 8]], 200, axis=0)
    assert keeper_of(several)(truth, 0.25).all()
    assert keeper_of(V - 100) is None
    few = jax.tree.map(lambda x: x[..., 3:9], whole)
    assert synchronisation.keeper(disturbed.model, few, level) is None


def test_what_is_at_its_bound_is_named_though_nothing_else_is_known():
    box = fitting.Box({"gL": u.Quantity([0.0, 2.0], unit=u.uS), "C": u.Quantity([0.0, 1.0], unit=u.nF)})
    reasons = fitting.unknown(box, np.array([1.0, 0.5]), "no reason").without_error
    assert reasons == dict(gL="at its bound, 2 (--bounds)", C="no reason")


def test_the_later_spikes_are_counted_and_the_earlier_part_is_what_precedes_them():
    spikes = np.zeros((90, 2))
    spikes[[10, 20, 30, 40, 50, 60], [0, 1, 0, 1, 0, 1]] = 1
    whole = recordings.Recording(np.zeros((90, 2)), np.zeros((90, 2)), spikes, np.ones((90, 2)), np.ones((90, 2)))
    n_step = recordings.steps_before(whole, 2)
    assert n_step == 50
    assert recordings.steps_before(whole, 3) == 0
    early, late = recordings.first_part(whole, n_step), recordings.counted_from(whole, n_step)
    assert early.spikes.sum() == 4
    assert len(early.current) == len(early.mask) == n_step
    assert (late.spikes * late.observed).sum() == 2
    assert late.mask[:n_step].sum() == 0
    assert late.mask[n_step:].all()


def test_few_windows_are_clusters_of_what_a_driven_cell_forgets():
    counts = np.ones((200, 2))
    counts[:40] = 0
    whole, parts = (synchronisation.clusters_of(counts, 0.5, coupling) for coupling in (0.0, 0.25))
    assert set(whole) == {0, 1}
    np.testing.assert_array_equal(np.bincount(whole), [160, 160])
    np.testing.assert_array_equal(np.bincount(parts), [40] * 8)  # 20 ms of one window


# ---- The script -----------------------------------------------------------------------------------------------------


def test_the_script_drives_the_cell_by_a_recording_that_spikes(tmp_path, monkeypatch, capsys, spiking):
    np.savez(tmp_path / "own.npz", current_nA=spiking.current, V_mV=spiking.V, dt_ms=DT)
    arguments = "--n_sample 2 --dt_sim 0.05 --bounds gNa=20:24 gK=5:6 gL=0.01:0.02 V_T=-57:-55 --validation none"
    arguments = ["--recording", "own.npz", *arguments.split()]
    result, folder = scripts.run_here(script, monkeypatch, capsys, tmp_path, *arguments)
    assert result["objective"] == "synchronised"
    assert result["coupling_per_ms"] in synchronisation.COUPLINGS
    assert result["loss"] == result["released"]["loss"]
    assert "judged" not in result  # as the model is the cell
    assert [stage["level"] for stage in result["stages"]] == list(synchronisation.COUPLINGS)
    assert {"coupling.png", "traces_fit.png", "window_fit.png"} <= {path.name for path in folder.iterdir()}
    header = (folder / "history.csv").read_text().splitlines()[0]
    assert "coupling" in header


SPIKES = ["--fit_target", "spike", "--n_sample", 2, "--n_iter", 3, "--dt_sim", 0.05, "--validation", "none"]


def test_spikes_are_fitted_from_where_the_potentials_lead(tmp_path, spiking, capsys):
    np.savez(tmp_path / "own.npz", current_nA=spiking.current, V_mV=spiking.V, dt_ms=DT)
    near = ["--bounds", "gNa=20:24", "gK=5:6", "gL=0.01:0.02", "V_T=-57:-55"]
    results = {}
    for method, fit_target in (("L-BFGS-B", "spike"), ("CMA", "spike"), ("CMA", "both")):
        folder = tmp_path / method / fit_target
        arguments = ["--recording", tmp_path / "own.npz", *SPIKES, *near, "--method", method, "--output", folder]
        arguments += ["--fit_target", fit_target]
        assert script.main([str(x) for x in arguments]) == 0
        results[method, fit_target] = scripts.json.loads((folder / "result.json").read_text())
        assert "driven, with coupling" in capsys.readouterr().out
    for result in results.values():
        assert result["objective"] == "synchronised"
        assert [stage["level"] for stage in result["stages"]] == list(synchronisation.COUPLINGS)
        assert result["driven"]["gamma"] > 0.9
        assert result["gamma"][0] > 0.9
    n_simulations = [result["n_simulations"] - result["n_gradients"] for result in results.values()]
    assert n_simulations == [0, *2 * [(script.N_RUN + 1) * 3 * script.N_SAMPLE]]
    names = {fit_target: result["loss_name"] for (_, fit_target), result in results.items()}
    assert names["spike"] == "van Rossum distance of the spikes"
    assert names["both"].startswith("spike distance + 0.3 variance of V")
    assert names["both"].endswith(", 1000 ms at a time")


def test_spikes_and_potentials_are_fitted_in_windows_as_if_these_were_traces(adapting, monkeypatch):
    """By the loss of the traces that begin after each warm-up."""
    monkeypatch.setattr(synchronisation, "T_FREE", 150.0)
    settings = studies.FitSettings(fit_target="both", fit_parameters=script.FITTED, method="CMA")
    data, source = recordings.Data({"fit": adapting}), recordings.source_of(script.parse_args([]))
    driven, study = (
        script.make_study(settings if target == "both" else studies.FitSettings(), data, source, cells.HH, **how)
        for target, how in (("potential", dict(objective="synchronised")), ("both", {}))
    )
    by_windows = synchronisation.in_windows(study, driven, study.windows)
    windows, n_warm = by_windows.windows.recording, int(by_windows.windows.n_warm[0])
    assert windows.V.shape[1] >= 2 * adapting.V.shape[1]
    V = windows.V + 3.0 * np.sin(np.arange(len(windows.V)) / 40.0)[:, None]
    after = {name: getattr(windows, name)[n_warm:] for name in ("current", "V", "spikes", "mask", "observed")}
    expected = study.loss.function({"V": V[n_warm:]}, recordings.Recording(**after, dt=windows.dt))
    V[: n_warm - 1] = 100.0  # what is driven does not count
    assert by_windows.loss.function({"V": V}, by_windows.windows) == pytest.approx(float(expected), rel=1e-5)
    right, wrong = (
        float(by_windows.loss.function(by_windows.model(values(**x), by_windows.windows, 0.0), by_windows.windows))
        for x in (SPIKING, SPIKING | dict(gM=0.0))
    )
    assert right < 0.1 < wrong


def test_where_the_model_is_not_the_cell_what_predicts_later_spikes_is_kept(tmp_path, adapting, capsys, monkeypatch):
    monkeypatch.setattr(synchronisation, "COUPLINGS", (2.5, 0.0))
    monkeypatch.setattr(script, "N_JUDGED", 3)
    np.savez(tmp_path / "own.npz", current_nA=adapting.current, V_mV=adapting.V, dt_ms=DT)
    arguments = ["--recording", tmp_path / "own.npz", "--n_sample", 2, "--n_iter", 15, "--dt_sim", 0.05]
    arguments += ["--validation", "none", "--output", tmp_path / "run"]
    assert script.main([str(x) for x in arguments]) == 0
    result = scripts.json.loads((tmp_path / "run" / "result.json").read_text())
    said, judged = capsys.readouterr().out, result["judged"]
    assert [stage["level"] for stage in result["stages"]] == [2.5, 0.0]
    assert result["driven"]["gamma"] < synchronisation.SAME_SPIKES
    assert 3 <= judged["both"]["n_spikes"] == judged["potential"]["n_spikes"] < result["driven"]["n_spikes"] / 2
    assert judged["both"]["loss"] != judged["potential"]["loss"]
    gammas = [judged[name]["gamma"] for name in ("potential", "both")]
    share = np.clip(np.mean(gammas), 0, 1)
    better = gammas[1] > gammas[0] + np.sqrt(share * (1 - share) / judged["both"]["n_spikes"])
    assert result["fit_target"] == ("both" if better else "potential")
    assert f"kept is what {result['fit_target']} gives" in said
    assert result["n_simulations"] - result["n_gradients"] == (script.N_RUN + better) * 15 * script.N_SAMPLE
    assert result["loss_name"].startswith("spike distance" if better else "mean squared error")
    assert (tmp_path / "run" / "coupling.png").exists()


def test_what_predicts_later_spikes_goes_on_with_all_of_them(tmp_path, adapting, capsys, monkeypatch):
    monkeypatch.setattr(synchronisation, "COUPLINGS", (2.5,))
    monkeypatch.setattr(script, "N_JUDGED", 3)
    judged_fit, gammas, fitted_to = script.judged_fit, iter((0.2, 0.9)), []

    def with_judge(problem, found, by_spikes, judge):
        fitted_to.extend(part.study.fitted.recording.spikes.sum() for part in (by_spikes.early, by_spikes.whole))
        verdict = studies.Released(1.0, 0.0, 20, 20, 1.0)
        ended = judged_fit(problem, found, by_spikes, lambda x: dataclasses.replace(verdict, gamma=next(gammas)))
        assert ended.study is by_spikes.whole.study
        assert {len(row.parameters) for row in ended.fit.history} == {4}
        assert ended.fit.loss == pytest.approx(min(row.best_loss for row in by_spikes.whole.history))
        return ended

    monkeypatch.setattr(script, "judged_fit", with_judge)
    np.savez(tmp_path / "own.npz", current_nA=adapting.current, V_mV=adapting.V, dt_ms=DT)
    arguments = ["--recording", tmp_path / "own.npz", "--n_sample", 2, "--n_iter", 2, "--dt_sim", 0.05]
    arguments += ["--validation", "none", "--output", tmp_path / "run"]
    assert script.main([str(x) for x in arguments]) == 0
    result = scripts.json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["fit_target"] == "both"
    assert result["n_simulations"] - result["n_gradients"] == (script.N_RUN + 1) * 2 * script.N_SAMPLE
    assert fitted_to[0] < 0.8 * fitted_to[1]
    assert "kept is what both gives" in capsys.readouterr().out


@pytest.mark.parametrize("where", ["early", "whole"])
def test_ctrl_c_while_both_are_searched_keeps_what_is_whole(where, tmp_path, adapting, capsys, monkeypatch):
    """What potentials gave, where nothing can be judged yet; what was judged, before the program of all is there."""
    monkeypatch.setattr(synchronisation, "COUPLINGS", (2.5,))
    monkeypatch.setattr(script, "N_JUDGED", 3)
    judged_fit, gammas = script.judged_fit, iter((0.2, 0.9))

    def interrupted(*arguments, **others):
        raise KeyboardInterrupt

    def with_judge(problem, found, by_spikes, judge):
        monkeypatch.setattr(getattr(by_spikes, where), "evaluate", interrupted)
        verdict = studies.Released(1.0, 0.0, 20, 20, 1.0)
        return judged_fit(problem, found, by_spikes, lambda x: dataclasses.replace(verdict, gamma=next(gammas)))

    monkeypatch.setattr(script, "judged_fit", with_judge)
    np.savez(tmp_path / "own.npz", current_nA=adapting.current, V_mV=adapting.V, dt_ms=DT)
    arguments = ["--recording", tmp_path / "own.npz", "--n_sample", 1, "--n_iter", 1, "--dt_sim", 0.05]
    assert script.main([str(x) for x in [*arguments, "--validation", "none", "--output", tmp_path / "run"]]) == 130
    result = scripts.json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["interrupted"]
    assert result["fit_target"] == ("potential" if where == "early" else "both")
    assert ("kept is what" in capsys.readouterr().out) == ("judged" in result) == (where == "whole")
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) > 1
    assert (tmp_path / "run" / "prediction_fit.npz").exists()


@pytest.mark.parametrize("method", ["CMA", "L-BFGS-B"])
def test_spikes_and_potentials_are_weighed_by_what_a_silent_constant_would_leave(method, spiking, x64):
    settings = studies.FitSettings(fit_target="both", fit_parameters=script.FITTED, method=method)
    args = script.parse_args(["--target", "simulated"])
    data = recordings.Data({"fit": spiking})
    study = script.make_study(settings, data, recordings.source_of(args))
    target, level = study.fitted, data.spike_level
    away = np.asarray(target.mask) > 0
    assert 0.05 < away.mean() < 0.95
    assert not away[np.asarray(target.spikes) > 0].any()
    constant = np.full_like(target.V, target.V[away].mean())
    assert study.loss.function({"V": constant}, target) == pytest.approx(1 + script.V_WEIGHT)
    V = np.asarray(target.V) + 3.0 * np.sin(np.arange(len(away)) / 40.0)[:, None]
    spikes = script.spike_trains.detect_spikes(V, level.level, level.rearm)
    if method == "L-BFGS-B":
        spikes = script.soft_spikes(V, level.level)
    tau, dt = settings.tau_rossum, target.dt

    def filtered(train):
        return scipy.signal.lfilter([1.0], [1, -np.exp(-dt / tau)], train, axis=0)

    norms = [(filtered(train) ** 2).sum() for train in (spikes - target.spikes, spikes, target.spikes)]
    share = norms[0] / (norms[1] + norms[2])
    unexplained = ((V - target.V)[away] ** 2).mean() / np.var(target.V[away])
    expected = share + script.V_WEIGHT * unexplained
    assert study.loss.function({"V": V}, target) == pytest.approx(expected, rel=1e-6)


def test_what_cannot_drive_a_cell_is_refused(capsys, monkeypatch, tmp_path, spiking):
    np.savez(tmp_path / "own.npz", current_nA=spiking.current, V_mV=spiking.V, dt_ms=DT)
    steps = np.flatnonzero(spiking.spikes[:, 0])
    (tmp_path / "spikes.csv").write_text(",".join(f"{DT * step:.2f}" for step in steps) + "\n")
    np.savetxt(tmp_path / "current.csv", spiking.current, header="I_nA", comments="")
    times = ["--current", "current.csv", "--spike_times", "spikes.csv", "--dt", DT, "--fit_target", "spike"]
    own, before = ["--recording", "own.npz"], set(tmp_path.iterdir())
    refused = {
        "argument --objective: found synchronised without potentials": [*times, "--objective", "synchronised"],
        "argument --method: found DE with --objective synchronised": [
            *own, "--objective", "synchronised", "--method", "DE"
        ],
        "argument --method: found Gauss-Newton, expected another": [*own, *SPIKES, "--method", "Gauss-Newton"],
    }  # fmt: skip
    for message, arguments in refused.items():
        assert scripts.exit_status(script, monkeypatch, tmp_path, arguments) == 2
        assert message in capsys.readouterr().err
    assert set(tmp_path.iterdir()) == before


def test_help_names_bounds_and_units_of_the_parameters(capsys):
    with pytest.raises(SystemExit):
        script.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert all(listed in text for listed in ("gM 0:0.2 uS", "tau_max 20:2000 ms", "phi 0.3:5,"))


@pytest.mark.parametrize("coupling", [10.0, 1.0])
def test_what_ctrl_c_has_left_of_a_driven_fit_is_saved(coupling, tmp_path, monkeypatch, capsys, spiking):
    np.savez(tmp_path / "own.npz", current_nA=spiking.current, V_mV=spiking.V, dt_ms=DT)
    scripts.interrupt(monkeypatch, lambda level, n_before: level == coupling and n_before > 5)
    arguments = [
        "--recording",
        "own.npz",
        "--n_sample",
        "2",
        "--dt_sim",
        "0.05",
        "--validation",
        "none",
        "--output",
        "out",
    ]
    assert scripts.exit_status(script, monkeypatch, tmp_path, arguments) == 130
    assert "released" in capsys.readouterr().out
    assert (tmp_path / "out" / "result.json").exists()
    assert (tmp_path / "out" / "coupling.png").exists() == (coupling < 10)
