"""neuron_fitting_of_gif_model.py: its likelihood and gradients, what it finds, and how it refuses bad input."""

import csv
import dataclasses
import json
import math

import brainunit as u
import jax
import numpy as np
import pytest
import scipy.special
import scripts
from scripts import result_of, write_traces

import fitting
import neuron_fitting_of_gif_model as gif
import studies
import utils
from recordings import Recording, Source

DT = 0.1
CONSTANTS = {name: value * gif.RANGES[name].unit for name, value in gif.PROTOCOLS["identifiable"].items()}
BOUNDS = {name: gif.RANGES[name] for name in gif.FITTED}


run = scripts.here(gif)


def target(n_step=1200):
    """Two traces of the identifiable protocol, with spikes, and noise so that no residual is 0."""
    current = gif.protocol_currents("identifiable", DT)["fit"][:n_step, :2]
    out = studies.simulation(utils.GIF, CONSTANTS)({}, Recording(current, dt=DT))
    V = np.asarray(out["V"]) + 0.1 * np.random.default_rng(0).standard_normal(current.shape)
    assert (out["spikes"].sum(0) >= 2).all()
    ones = np.ones_like(V)
    return Recording(current, V, np.asarray(out["spikes"]), ones, ones, dt=DT)


def problem_of(objective, n_sample=4, **settings):
    """A problem with that target. Its spikes are those of the recording, not the crossings of a level."""
    settings = gif.Settings(protocol="identifiable", objective=objective, **settings)
    study = gif.study_of(settings, {"fit": target()}, Source(dt_sim=DT))
    return fitting.FitProblem(study, n_sample, jax.devices())


# ---- The likelihood -------------------------------------------------------------------------------------------------


def test_the_spike_on_a_rising_potential_is_logistic(x64):
    """The probabilities of a first spike in step k are the mass of a logistic law in that step; early equals late."""
    width, distance = 0.3, np.arange(-20, 21) * 0.25
    before = np.concatenate([distance[:1], distance[:-1]])
    silent, fired = (np.asarray(gif.spike_cost(distance, before, spike, width)) for spike in (0.0, 1.0))
    cost = np.cumsum(silent) - silent + fired  # silent until step k, and then a spike
    mass = np.diff(scipy.special.expit(distance / width))
    np.testing.assert_allclose(np.exp(-cost[1:]), mass, rtol=1e-6)
    np.testing.assert_allclose(np.exp(-cost[1:]), np.exp(-cost[1:])[::-1], rtol=1e-6)
    assert mass.max() > 0.1


def test_teacher_forcing_by_its_own_spikes_is_the_simulation(x64):
    current = gif.protocol_currents("identifiable", DT)["fit"]
    free = studies.simulation(utils.GIF, CONSTANTS)({}, Recording(current, dt=DT))
    forced = gif.make_trajectories(CONSTANTS, DT)({}, Recording(current, spikes=free["spikes"], dt=DT))
    np.testing.assert_allclose(forced["V"], free["V"], rtol=1e-12)
    np.testing.assert_array_equal(forced["distance"] >= 0, free["spikes"])
    assert free["spikes"].sum() > 50


def test_a_second_jump_of_the_threshold_counts_in_the_likelihood(x64):
    """Each spike leaves A_th2 exp(-b2 t) on the threshold, and nothing on V, which the recorded spikes drive."""
    spikes = np.zeros((2000, 1))
    spikes[[300, 900]] = 1
    recording = Recording(np.ones((2000, 1)), spikes=spikes, dt=DT)
    with_jump = CONSTANTS | {"A_th2": 3.0 * u.mV, "b2": 0.05 / u.ms}
    one, other = (gif.make_trajectories(constants, DT)({}, recording) for constants in (CONSTANTS, with_jump))
    t = np.arange(2000)[:, None] * DT
    left = sum(np.where(t > at, np.exp(-0.05 * (t - at)), 0.0) for at in (30, 90))
    np.testing.assert_allclose(one["distance"] - other["distance"], 3.0 * left, atol=1e-9)
    np.testing.assert_array_equal(one["V"], other["V"])


@pytest.mark.parametrize("fit_target", ["potential", "spike"])
def test_the_loss_is_the_likelihood_of_the_trajectories(fit_target, x64):
    problem = problem_of("likelihood", fit_target=fit_target, n_point=300)
    x = np.array([0.3, 0.2, 0.4, 0.6])
    data = problem.data
    trajectories = problem.study.trajectories(problem.box.parameters(x), data, 0.5)
    out = {name: np.asarray(y) for name, y in trajectories.items()}
    logistic, expected = scipy.special.expit, 0.0
    for trace in range(2):
        y = out["distance"][:, trace] / 0.5
        for step in range(1, len(y)):
            if data.spikes[step, trace]:
                rise = max(y[step] - y[step - 1], 1e-3)
                expected -= math.log(logistic(y[step]) * (1 - math.exp(-rise)))
            else:
                expected -= math.log(min(1.0, logistic(-y[step]) / logistic(-y[step - 1])))
    if fit_target == "potential":
        counts = data.mask > 0
        assert counts[::4].any()
        assert not counts[1::4].any()
        assert not counts[data.spikes > 0].any()
        mse = np.mean((out["V"] - data.V)[counts] ** 2)
        expected += counts.sum() / 2 * math.log1p(mse / studies.V_RESOLUTION**2)
    assert problem.evaluate(x[None], level=0.5)[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("fit_target", ["potential", "spike"])
def test_the_gradient_of_the_likelihood_is_that_of_finite_differences(fit_target, x64):
    problem = problem_of("likelihood", fit_target=fit_target)
    x = np.array([0.3, 0.2, 0.4, 0.6])
    _, (gradient,) = problem.evaluate(x[None], "gradients", level=0.5)
    for i in range(4):
        losses = [problem.evaluate((x + step * np.eye(4)[i])[None], level=0.5)[0] for step in (1e-6, -1e-6)]
        assert abs(gradient[i]) > 1e-2
        assert gradient[i] == pytest.approx((losses[0] - losses[1]) / 2e-6, rel=1e-4)


def test_escape_noise_has_the_law_of_its_cost(x64):
    """Under a ramp the first spikes of many runs have the probabilities that `spike_cost` gives."""
    n_run, width = 4000, 1.0
    current = np.linspace(0.5, 3.0, 400)[:, None]
    constants = gif.with_units(gif.PROTOCOLS["paper"])
    silent = Recording(current, spikes=np.zeros_like(current), dt=DT)
    distance = np.asarray(gif.make_trajectories(constants, DT)({}, silent)["distance"])[:, 0]
    before = np.concatenate([distance[:1], distance[:-1]])
    survival = np.exp(-np.cumsum(np.asarray(gif.spike_cost(distance, before, 0.0, width))))
    many = Recording(np.repeat(current, n_run, axis=1), dt=DT)
    spikes = np.asarray(gif.with_escape_noise(constants, many, width, DT, jax.random.key(0)))
    first = np.where(spikes.any(0), spikes.argmax(0), len(spikes))
    for step in np.searchsorted(-survival, [-0.9, -0.7, -0.5, -0.3, -0.1]):
        assert 0.02 < survival[step] < 0.98
        assert np.mean(first > step) == pytest.approx(survival[step], abs=4 * (0.25 / n_run) ** 0.5)
    assert (np.diff(np.quantile(first, [0.1, 0.5, 0.9])) > 0).all()


def test_the_electrode_and_steps_between_samples_are_those_of_the_simulation(x64):
    """With R_s and a sampling coarser than the steps, teacher forcing by its own spikes is the simulation."""
    current = gif.protocol_currents("identifiable", 0.3)["fit"]
    parameters = CONSTANTS | {"R_s": 5.0 * u.Mohm}
    recording = Recording(current, V_start=np.full(5, -60.0), dt=0.3)
    free = studies.simulation(utils.GIF, parameters, DT)({}, recording)
    without = studies.simulation(utils.GIF, CONSTANTS, DT)({}, recording)
    assert free["V"][0] == pytest.approx(-60)
    assert (without["V"][0] == -60).all()
    held = studies.simulation(utils.GIF, CONSTANTS, DT)({}, Recording(current, V_start=-60 - 5 * current[0], dt=0.3))
    np.testing.assert_allclose(free["V"], held["V"] + 5 * current, rtol=1e-12)
    # The neuron fires in any of the three steps of a sample; told of its spikes, it fires in the first.
    late = np.asarray(free["spikes"]) > 0
    assert late.sum() > 20
    once = Recording(current[:1], spikes=0 * current[:1], V_start=np.full(5, -60.0), dt=0.3)
    forced = gif.make_trajectories(parameters, DT)({}, once)
    np.testing.assert_allclose(forced["V"], free["V"][:1])


# ---- The simulation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fit_target", ["potential", "spike"])
def test_the_gradient_of_the_simulation_is_by_the_surrogate(fit_target, x64):
    """A loop that carries d/da of the state along, in which a spike has the derivative of the surrogate."""
    problem = problem_of("simulation", fit_target=fit_target)
    x = np.array([0.03, 0.15, 0.2, 0.3])
    p, data, slope = problem.box.values(x), problem.data, 0.0
    phi = {name: -math.expm1(-rate * DT) / rate for name, rate in (p | {"V": 1 / 20}).items()}
    for trace in range(2):
        V, dV, V_th, dV_th, currents, dcurrents = -70.0, 0.0, -50.0, 0.0, np.zeros(2), np.zeros(2)
        filtered = dfiltered = 0.0
        for k, I in enumerate(data.current[:, trace]):
            error = V - data.V[k, trace]
            slope += (fit_target == "potential") * 2 * error * dV
            z, dz = (V - V_th) / -V_th, (dV - dV_th) / -V_th + (V - V_th) * dV_th / V_th**2
            s, ds = float(z >= 0), 0.3 * max(0.0, 1 - abs(z)) * dz
            decay = math.exp(-DT / 5)
            filtered, dfiltered = decay * filtered + s - data.spikes[k, trace], decay * dfiltered + ds
            slope += (fit_target == "spike") * 2 * filtered * dfiltered
            V, dV = V + s * (-70 - V), dV * (1 - s) + ds * (-70 - V)
            V_th, dV_th = max(V_th, -60.0), dV_th * (V_th > -60)
            jump = np.array([1.0 - currents[0], -0.1])  # R1 = 0, R2 = 1, A1 = 1, A2 = -0.1
            dcurrents = dcurrents + ds * jump + s * np.array([-dcurrents[0], 0.0])
            currents = currents + s * jump
            drift, ddrift = (20 * (I + currents.sum()) - (V + 70)) / 20, (20 * dcurrents.sum() - dV) / 20
            rise = p["a"] * (V + 70) - p["b"] * (V_th + 50)
            drise = V + 70 + p["a"] * dV - p["b"] * dV_th
            V, dV, V_th, dV_th = (
                V + phi["V"] * drift,
                dV + phi["V"] * ddrift,
                V_th + phi["b"] * rise,
                dV_th + phi["b"] * drise,
            )
            decay_k = np.exp(-DT * np.array([p["k1"], p["k2"]]))
            currents, dcurrents = currents * decay_k, dcurrents * decay_k
    slope /= data.V.size if fit_target == "potential" else 2 * 5 / DT
    _, (gradient,) = problem.evaluate(x[None], "gradients")
    low, high = gif.RANGES["a"].mantissa
    assert abs(slope) > 1e-3
    assert float(gradient[0]) == pytest.approx(float(slope * (high - low)), rel=1e-6)


# ---- What it finds --------------------------------------------------------------------------------------------------


def away(result, names):
    """Largest relative error of the parameters of each start."""
    starts = [[start["parameters"][name] / result["known_parameters"][name] - 1 for name in names]
              for start in result["starts"]]  # fmt: skip
    return np.abs(starts).max(axis=1)


def test_default_fit_finds_the_papers_neuron_from_any_start(tmp_path):
    result, folder = result_of(scripts.run(gif, cwd=tmp_path), tmp_path)
    assert len(result["starts"]) == 20
    assert np.mean(away(result, "ab") <= 0.01) >= 0.95
    assert result["rmse"] ** 2 <= 0.05
    assert result["n_spikes_same_step"] == result["n_spikes"] == result["n_spikes_model"] == [10, 5, 3, 0, 0]
    assert result["gamma"][:3] == pytest.approx([1, 1, 1])
    assert result["identifiability"]["undetermined"] == ["k1", "k2"]
    assert set(result["identifiability"]["standard_errors"]) == set("ab") | {"k1", "k2"}
    assert result["width_mV"] == pytest.approx(gif.WIDTHS[-1])
    figures = {"traces_fit.png", "traces_validation.png", "losses.png", "identifiability.png"}
    figures |= {"window_fit.png", "window_validation.png", "prediction_fit.npz", "prediction_validation.npz"}
    assert {path.name for path in folder.iterdir()} == figures | {"config.json", "result.json", "history.csv"}
    with open(folder / "history.csv") as file:
        widths = [float(row["width"]) for row in csv.DictReader(file)]
    assert list(dict.fromkeys(widths)) == pytest.approx(gif.WIDTHS)


def test_spikes_alone_are_enough(run, tmp_path):
    result, _ = result_of(run("--fit_target", "spike", "--n_sample", 4, cwd=tmp_path), tmp_path)
    assert result["gamma"][:3] == pytest.approx([1, 1, 1])
    assert np.min(away(result, "ab")) <= 0.01


def test_identifiable_protocol_determines_all_parameters(run, tmp_path):
    result, _ = result_of(run("--protocol", "identifiable", "--n_sample", 3, cwd=tmp_path), tmp_path)
    assert np.mean(away(result, gif.FITTED) <= 0.02) >= 0.9
    assert result["identifiability"]["undetermined"] == []


def test_noise_and_jitter_widen_the_likelihood_and_the_standard_errors(run, tmp_path):
    noisy = ["--protocol", "identifiable", "--noise_std", 0.5, "--spike_jitter", 0.1, "--n_sample", 3]
    result, _ = result_of(run(*noisy, cwd=tmp_path), tmp_path)
    assert 0.02 < result["width_mV"] < 1
    assert result["identifiability"]["noise"]["V_mV"] == pytest.approx(0.5, rel=0.05)
    for name, error in result["identifiability"]["standard_errors"].items():
        assert abs(result["parameters"][name] - result["known_parameters"][name]) < 4 * error
        assert 1e-4 < error / result["known_parameters"][name] < 0.05


def test_simulation_objective_stands_beside_random_search(run, tmp_path):
    small = ["--objective", "simulation", "--n_sample", 4, "--n_point", 100]
    result, _ = result_of(run(*small, cwd=tmp_path), tmp_path)
    assert result["loss_name"] == "mean squared error of the potential (mV^2)"
    assert result["random_search_loss"] > 0
    assert result["loss"] < max(start["loss"] for start in result["starts"])


@pytest.mark.parametrize("objective", ["simulation", "likelihood"])
def test_a_gradient_that_is_zero_everywhere_is_announced(objective, run, tmp_path):
    without_effect = ["--fit_parameters", "k1", "k2", "--objective", objective, "--n_sample", 2]
    done = run(*without_effect, "--fit_target", "spike", cwd=tmp_path)
    result, _ = result_of(done, tmp_path)
    assert "the gradient is zero at every start: this would be random search" in done.stdout
    assert result["identifiability"]["undetermined"] == ["k1", "k2"]


def test_what_belongs_to_a_fitted_parameter_is_there_and_can_be_given(run, tmp_path):
    """A conductance after spikes has a reversal potential, -80 mV where none is given; alone, that has no effect."""
    known = gif.PROTOCOLS["identifiable"]
    settings = gif.Settings(protocol="identifiable", fit_parameters=["A_g", "k_g"])
    assert gif.values_of(settings) == known | {"A_g": 0.0, "k_g": 0.05, "E_g": -80.0}
    given = dataclasses.replace(settings, constants=[("E_g", -75.0), ("t_ref", 2.0)])
    assert gif.values_of(given) == known | {"A_g": 0.0, "k_g": 0.05, "E_g": -75.0, "t_ref": 2.0}
    current = gif.protocol_currents("identifiable", DT)["fit"][:3000]

    def n_spikes(**values):
        constants = gif.with_units(gif.values_of(given) | values)
        return np.asarray(studies.simulation(utils.GIF, constants)({}, Recording(current, dt=DT))["spikes"]).sum()

    assert 0 < n_spikes(A_g=0.05) < n_spikes(A_g=0.0) < n_spikes(A_g=0.05, E_g=0.0)
    for name, other in (("V_i", "k_i"), ("E_g", "A_g"), ("b2", "A_th2")):
        done = run("--fit_parameters", "a", name, cwd=tmp_path)
        assert f"argument --fit_parameters: found {name} without {other}, which is held at 0" in done.stderr


@pytest.mark.parametrize("method", ["DE", "random"])
def test_derivative_free_methods(method, run, tmp_path):
    result, _ = result_of(run("--method", method, "--n_sample", 6, cwd=tmp_path), tmp_path)
    assert (result["n_simulations"], result["n_gradients"]) == (30, 0)
    assert math.isfinite(result["loss"])


def test_a_recording_with_action_potentials(run, tmp_path):
    """Potentials of a GIF neuron with an action potential after every spike; the neuron's R and tau are to be found."""
    truth = CONSTANTS | {"R": 30.0 * u.Mohm, "tau": 15.0 * u.ms}
    current = gif.protocol_currents("identifiable", DT)["fit"][:4000, :2] * 0.7
    out = studies.simulation(utils.GIF, truth)({}, Recording(current, dt=DT))
    V, spikes = np.array(out["V"]), np.asarray(out["spikes"])
    assert spikes.sum() > 5
    V[1:][spikes[:-1] > 0] = 25.0
    files = write_traces(tmp_path / "I.csv", current.T), write_traces(tmp_path / "V.csv", V.T)
    recording = ["--current", files[0], "--voltage", files[1], "--current_unit", "nA", "--dt", DT]
    recording += ["--protocol", "identifiable", "--escape", "threshold"]
    result, folder = result_of(run(*recording, "--fit_parameters", "R", "tau", "--n_sample", 4, cwd=tmp_path), tmp_path)
    assert result["n_spikes"] == spikes.sum(0).tolist()
    assert result["parameters"]["R"] == pytest.approx(30, rel=1e-3)
    assert result["parameters"]["tau"] == pytest.approx(15, rel=1e-3)
    error = np.load(folder / "prediction_fit.npz")["V_mV"] - V
    assert result["rmse"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-3), "of all samples, not those fitted"
    assert (result["known_parameters"], result["validation"]) == (None, None)
    assert json.loads((folder / "config.json").read_text())["arguments"]["target"] == "recorded"


def test_ctrl_c_keeps_the_best_complete_width(monkeypatch, tmp_path):
    scripts.interrupt(monkeypatch, lambda level, n_before: level < 0.5 and n_before >= 3)
    assert scripts.exit_status(gif, monkeypatch, tmp_path, ["--n_sample", 2, "--output", "out"]) == 130
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["interrupted"]
    assert result["width_mV"] == pytest.approx(0.7)


def test_compare_counts_what_finds_the_parameters(run, tmp_path):
    few = ["--mode", "compare", "--methods", "L-BFGS-B", "random", "--repeats", 1, "--n_sample", 2]
    done = run(*few, "--output", "out", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    folder = tmp_path / "out"
    with open(folder / "comparison.csv") as file:
        gradients, random = csv.DictReader(file)
    assert (float(gradients["recovered"]), float(random["recovered"])) == (1, 0)
    assert float(gradients["free_running_mse"]) < 1e-9 < float(random["free_running_mse"])
    cost = json.loads((folder / "budget.json").read_text())["gradient_cost"]
    assert cost > 1
    assert float(random["n_simulations"]) == pytest.approx(cost * float(gradients["n_gradients"]), abs=3)


def test_visualize_draws_without_fitting(run, tmp_path):
    result, folder = result_of(run("--mode", "visualize", "--n_sample", 3, cwd=tmp_path), tmp_path)
    assert result["n_spikes"] == [10, 5, 3, 0, 0]
    assert (folder / "target.png").stat().st_size > 10_000
    assert (folder / "surrogates.png").stat().st_size > 10_000  # figure S4


# ---- Bad input ------------------------------------------------------------------------------------------------------

BAD_ARGUMENTS = {
    "--objective surrogate": "argument --objective: invalid choice: 'surrogate'",
    "--protocol other": "argument --protocol: invalid choice: 'other'",
    "--width_floor 0": "argument --width_floor: found '0', expected a number > 0",
    "--t_blank -1": "argument --t_blank: found '-1', expected a number >= 0",
    "--spike_jitter x": "argument --spike_jitter: found 'x', expected a number >= 0",
    "--fit_parameters a gNa": "argument --fit_parameters: invalid choice: 'gNa'",
    "--bounds tau=10:20": "argument --bounds: found 'tau', expected one of a, b, k1, k2",
    "--bounds a=1:0": "argument --bounds: found 'a=1:0', expected NAME=LOW:HIGH",
    "--target recorded": "argument --target: found recorded without a recording, expected --recording, or",
    "--voltage V.csv": "argument --voltage: found it alone, expected --current and --voltage",
    "--current nowhere.csv": "nowhere.csv: No such file",
    "--n_point 10001": "argument --n_point: found 10001, expected at most the 10000 samples",
    "--fit_parameters a width lapse": "argument --fit_parameters: found width lapse without --escape exponential",
    "--validation_t_stop 5": "--validation_t_stop: found a part without files, expected --validation_current",
    "--objective simulation --t_blank 1": "argument --t_blank: found 1.0 with --objective simulation, where it has no",
    "--objective simulation --width_floor 1": "argument --width_floor: found 1.0 with --objective simulation",
    "--tau_noise 5": "argument --tau_noise: found 5.0 with --escape threshold, where it has no effect, expected",
    "--t_blank 2000 --protocol identifiable": "argument --t_blank: found 2000, expected less: no potential is left",
}


@pytest.mark.parametrize("text", BAD_ARGUMENTS)
def test_bad_arguments(text, tmp_path, monkeypatch, capsys):
    assert BAD_ARGUMENTS[text] in scripts.refused(gif, monkeypatch, capsys, tmp_path, text.split())


def test_a_start_that_ends_in_nan_is_named(run, tmp_path):
    """exp(-dt / tau) overflows for a negative time constant."""
    done = run("--fit_parameters", "tau", "--bounds", "tau=-0.0008:0.002", "--n_sample", 6, cwd=tmp_path)
    result, _ = result_of(done, tmp_path)
    statuses = [start["status"] for start in result["starts"] if start["status"].startswith("NaN")]
    assert 0 < len(statuses) < 6
    assert all("at time step" in status and "tau = -" in status for status in statuses)


def test_help_explains_every_argument(capsys):
    scripts.check_help(gif, capsys)
