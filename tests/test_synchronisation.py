"""A cell that its recording drives while it is fitted: what is minimised, windows, and the cell that is found."""

import dataclasses
import functools

import brainunit as u
import cells
import jax
import numpy as np
import pytest
import scripts

import fitting
import neuron_fitting_of_hh_model as script
import recordings
import studies
import synchronisation
import utils

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


def model(dt_sim=0.005, whole=True):
    return synchronisation.driven(functools.partial(utils.HH, scheme="staggered"), {}, dt_sim, whole)


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
        float(synchronisation.mean_error(model(whole=False)(values(**parameters), windows, coupling), windows))
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
    distance = np.mean((np.asarray(free(other, exact)["V"]) - V) ** 2)
    error = model(0.01, whole=False)(other, windows, 0.0)
    np.testing.assert_allclose(synchronisation.mean_error(error, windows), distance, rtol=1e-3)
    assert distance > 1


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


def test_the_slow_gate_of_a_window_is_what_the_recording_has_made_of_it(adapting):
    windows = synchronisation.windows_of(adapting, t_window=100.0, t_history=500.0)
    parameters = values(**SPIKING)
    cell = utils.HH(windows.recording.V.shape[1:], **{k: v for k, v in parameters.items() if k != "R_s"})
    cell.init_state()
    synchronisation.follow(cell, windows, parameters)
    # Sample by sample, from rest.
    V = (adapting.V[1:, 0] + adapting.V[:-1, 0]) / 2
    z = np.exp((V + 35) / 20)
    p_inf, rate = z**2 / (1 + z**2), SPIKING["phi"] * (3.3 * z + 1 / z) / SPIKING["tau_max"]
    p = [1 / (1 + np.exp(-(adapting.V[0, 0] + 35) / 10))]
    for k in range(len(V)):
        p.append(p_inf[k] + (p[-1] - p_inf[k]) * np.exp(-rate[k] * DT))
    n_window = (len(adapting.V) - round(synchronisation.T_WARM / DT)) // windows.recording.V.shape[1]
    expected = np.array(p)[n_window * np.arange(windows.recording.V.shape[1])]
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


def test_a_cell_that_the_plain_loss_does_not_find_is_found_from_every_start(spiking):
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
            x = fitting.lbfgsb_multistart(problem, x0[None]).best.x
            errors = fitting.determined(study.at(0.0), problem.box, x).standard_errors
            found = problem.box.values(x)
            deviations += [(found[name] - cells.HH[name]) / error for name, error in errors.items()]
    assert len(deviations) == 8
    assert np.sqrt(np.mean(np.square(deviations))) < 2
    assert np.abs(deviations).max() > 0.1


def test_a_fit_of_many_traces_in_chunks_is_that_of_all_at_once(spiking, monkeypatch):
    study = study_of(spiking, "synchronised")
    study = dataclasses.replace(study, windows=synchronisation.windows_of(spiking, t_window=50.0))
    assert study.windows.recording.V.shape[1] == 5
    X = np.random.default_rng(0).random((4, 4))
    whole = fitting.FitProblem(study, 4, jax.devices()).evaluate(X, gradient=True, level=1.0)
    monkeypatch.setattr(fitting, "N_CELL", 4)
    chunks = fitting.FitProblem(study, 4, jax.devices()).evaluate(X, gradient=True, level=1.0)
    for a, b in zip(whole, chunks, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(a).max())


def test_the_first_level_is_fitted_on_a_part_of_the_windows(spiking):
    study = study_of(spiking, "synchronised")
    annealing = dataclasses.replace(study.annealing, n_first=2)
    windows = synchronisation.windows_of(spiking, t_window=50.0)
    study = dataclasses.replace(study, windows=windows, annealing=annealing)
    problem = fitting.FitProblem(study, 1, jax.devices())
    x = np.full((1, 4), 0.4)
    part = jax.tree.map(lambda y: y[..., [0, 4]], windows)
    output = study.model(problem.box.parameters(np.repeat(x, 2, axis=0)), part, 10.0)
    assert problem.evaluate(x, level=10.0)[0] == pytest.approx(
        float(synchronisation.mean_error(output, part)), rel=1e-4
    )
    all_of_them = study.model(problem.box.parameters(np.repeat(x, 5, axis=0)), windows, 2.5)
    expected = float(synchronisation.mean_error(all_of_them, windows))
    assert problem.evaluate(x, level=2.5)[0] == pytest.approx(expected, rel=1e-4)


def test_starts_that_have_met_go_on_as_one():
    starts = [
        fitting.Start(None, np.array(x), loss)
        for x, loss in (([0.5, 0.5], 2.0), ([0.5, 0.5005], 1.0), ([0.5, 0.6], 3.0))
    ]
    assert fitting._met(starts) == [1, 1, 2]


def test_the_better_of_two_released_cells_is_that_which_predicts_spikes():
    silent, late = studies.Released(40.0, 0.0, 10, 0), studies.Released(90.0, 0.7, 10, 10)
    assert min((silent, late), key=lambda released: released.criterion) is late
    assert late.follows
    assert not silent.follows
    assert not studies.Released(float("nan"), None, 10, 0).follows


# ---- The script -----------------------------------------------------------------------------------------------------


def test_the_script_drives_the_cell_by_a_recording_that_spikes(tmp_path, spiking):
    np.savez(tmp_path / "own.npz", current_nA=spiking.current, V_mV=spiking.V, dt_ms=DT)
    arguments = "--n_sample 2 --dt_sim 0.05 --bounds gNa=20:24 gK=5:6 gL=0.01:0.02 V_T=-57:-55 --validation none"
    result, folder = scripts.result_of(
        scripts.run(script, "--recording", "own.npz", *arguments.split(), cwd=tmp_path), tmp_path
    )
    assert result["objective"] == "synchronised"
    assert result["coupling_per_ms"] in synchronisation.COUPLINGS
    assert result["loss"] == result["released"]["loss"]
    assert [stage["level"] for stage in result["stages"]] == list(synchronisation.COUPLINGS)
    assert {"coupling.png", "traces_fit.png", "window_fit.png"} <= {path.name for path in folder.iterdir()}
    header = (folder / "history.csv").read_text().splitlines()[0]
    assert "coupling" in header


def test_spikes_alone_do_not_drive_the_cell(capsys, monkeypatch, tmp_path):
    arguments = ["--objective", "synchronised", "--fit_target", "spike"]
    assert scripts.exit_status(script, monkeypatch, tmp_path, arguments) == 2
    assert "argument --objective: found synchronised with --fit_target spike" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_help_names_the_units_of_the_new_parameters():
    for name, unit in (("gM", u.uS), ("tau_max", u.ms), ("phi", u.UNITLESS)):
        assert script.RANGES[name].unit == unit
        assert script.DEFAULTS[name] == (0.0 if name == "gM" else 1000.0 if name == "tau_max" else 1.0)


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
