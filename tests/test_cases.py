"""What users bring: recordings that begin anywhere, of any sampling, unit and layout, and what is right of them.

The cells are those of `cells.py`. Numbers of cases are those of faults that were found in the scripts as they were.
"""

import json
import os

import runs

import cells
import numpy as np
import pytest
import scripts
from scripts import write_traces

import neuron_fitting_of_gif_model as gif
import neuron_fitting_of_hh_model as hh
import reading
import recordings

HH_STEPS = (-0.1, 0.3, 0.6, 1.0)  # nA
# The paper's neuron, whose threshold has a floor, and which has no noise.
GIF_NEURON = ["--protocol", "identifiable", "--escape", "threshold"]
GIF_FIT = [*GIF_NEURON, "--n_sample", 3]


def write(folder, current, V, dt, names=("I.csv", "V.csv")):
    """Files of currents (nA) and potentials (mV), each (T, n_trace), as arguments."""
    files = write_traces(folder / names[0], current.T), write_traces(folder / names[1], V.T)
    return ["--current", files[0], "--voltage", files[1], "--current_unit", "nA", "--dt", dt]


@pytest.fixture
def fit(tmp_path, monkeypatch, capsys):
    """A script run in this process, in a folder: result.json, and what it prints."""

    def run(script, *arguments, status=0):
        capsys.readouterr()
        folder = tmp_path / f"run{len(list(tmp_path.glob('run*')))}"
        assert scripts.exit_status(script, monkeypatch, tmp_path, [*arguments, "--output", folder]) == status
        output, errors = capsys.readouterr()
        if status:
            assert len(errors.splitlines()) == 1
            return None, errors
        assert errors == ""
        return json.loads((folder / "result.json").read_text()), output

    return run


def assert_found(result, expected, tolerance):
    for name in result["parameters"]:
        assert result["parameters"][name] == pytest.approx(expected[name], rel=tolerance), name


@pytest.fixture(scope="module")
def hh_cell():
    """Step currents, and potentials of the cell after a long rest, every 0.05 ms."""
    current = cells.steps(HH_STEPS, 0.05, 10, 30, 40)
    return current, cells.hh(current, 0.05)


@pytest.fixture(scope="module")
def gif_cell():
    """Noisy currents, potentials and spikes of the neuron, every 0.1 ms."""
    current = cells.noise(2, 0.1, 450, 1.4, 0.8)
    V, spikes = cells.gif(current, 0.1, step=0.01)
    assert (spikes.sum(0) >= 3).all()
    return current, V, spikes


# ---- Where a recording begins, and how it is sampled ----------------------------------------------------------------


@pytest.mark.parametrize(("EL", "t_rest"), [(-60.0, 100.0), (-65.0, 10.0), (-70.0, 50.0), (-75.0, 10.0)])
def test_a_cell_at_rest_before_the_recording(EL, t_rest, fit, tmp_path):
    """Case 1: it was at rest for long, at whatever potential that is."""
    current = cells.steps(HH_STEPS, 0.05, t_rest, t_rest + 20, t_rest + 30)
    V = cells.hh(current, 0.05, EL=EL)
    fitted = ["--fit_parameters", "gL", "gNa", "gK", "V_T", "EL", "--n_sample", 10]
    result, _ = fit(hh, *write(tmp_path, current, V, 0.05), *fitted)
    assert_found(result, cells.HH | {"EL": EL}, 0.005)
    for name, error in result["identifiability"]["standard_errors"].items():
        truth = (cells.HH | {"EL": EL})[name]
        assert abs(result["parameters"][name] - truth) < 4 * error, name


def test_a_cell_that_was_held_before_the_recording(fit, tmp_path):
    """Case 2: 0.6 nA hold the neuron at -58 mV, where its threshold has risen."""
    current = np.concatenate([np.full((500, 2), 0.6), cells.noise(2, 0.1, 450, 1.4, 0.8)])
    V, spikes = cells.gif(current, 0.1, t_before=3000.0, step=0.01)
    assert V[0, 0] == pytest.approx(-58, abs=0.01)
    assert spikes.sum() > 5
    recording = write(tmp_path, current, cells.with_action_potentials(V, spikes, 0.1), 0.1)
    result, _ = fit(gif, *recording, *GIF_FIT, "--t_blank", 2, "--fit_parameters", "a", "b")
    assert_found(result, cells.GIF, 0.05)
    for name, error in result["identifiability"]["standard_errors"].items():
        assert abs(result["parameters"][name] - cells.GIF[name]) < 4 * error, name


@pytest.mark.newest
@pytest.mark.parametrize(("dt", "tolerance"), [(0.01, 0.01), (0.02, 0.02), (0.05, 0.05)])
def test_any_sampling(dt, tolerance, fit, tmp_path):
    """Case 3: 100, 50 and 20 kHz."""
    current = cells.steps(HH_STEPS, dt, 10, 30, 40)
    result, _ = fit(hh, *write(tmp_path, current, cells.hh(current, dt), dt))
    assert_found(result, cells.HH, tolerance)


def test_a_recording_with_white_noise(fit, tmp_path, hh_cell):
    """The noise of the first sample does not become an error of the start."""
    current, V = hh_cell
    V = V + 0.5 * np.random.default_rng(0).standard_normal(V.shape)
    fitted = ["--fit_parameters", "gL", "gNa", "gK", "V_T", "EL", "--n_sample", 10]
    result, _ = fit(hh, *write(tmp_path, current, V, 0.05), *fitted)
    assert result["loss"] < 0.5
    for name, error in result["identifiability"]["standard_errors"].items():
        assert abs(result["parameters"][name] - cells.HH[name]) < 4 * error, name


def test_wrong_constants_give_no_small_error(fit, tmp_path, hh_cell):
    """Reversal potentials off by 5 mV: the fit looks good, gNa is off by more than half, and no error is said."""
    current, V = hh_cell
    V = V + 0.5 * np.random.default_rng(0).standard_normal(V.shape)
    near = ["--bounds", "gL=0.005:0.03", "gNa=15:60", "gK=3:15", "V_T=-58:-50", "--n_sample", 6]
    result, output = fit(hh, *write(tmp_path, current, V, 0.05), *near, "--constants", "ENa=55", "EK=-85")
    assert result["parameters"]["gNa"] > 30
    assert set(result["identifiability"]["standard_errors"].values()) == {None}
    assert "this model does not describe these data" in output


# ---- Units, constants, bounds and the electrode ---------------------------------------------------------------------


@pytest.mark.parametrize("script", [hh, gif])
def test_currents_in_another_unit_are_refused(script, fit, tmp_path, hh_cell):
    """Case 4: pA read as nA."""
    current, V = hh_cell
    _, line = fit(script, *write(tmp_path, current * 1e3, V, 0.05), status=2)
    assert "--current_unit" in line
    assert "I.csv" in line or "V.csv" in line


def test_a_parameter_at_its_bound_has_no_error(fit, tmp_path):
    """Case 6: the true gNa is 60 uS, and bounds end at 40."""
    current = cells.steps(HH_STEPS, 0.05, 10, 30, 40)
    V = cells.hh(current, 0.05, gNa=60.0)
    result, output = fit(hh, *write(tmp_path, current, V, 0.05), "--fit_parameters", "gNa", "gK", "--constants",
                         "gL=0.012", "V_T=-56", "--n_sample", 6)  # fmt: skip
    assert result["parameters"]["gNa"] == 40
    assert result["identifiability"]["standard_errors"]["gNa"] is None
    assert "no standard error of gNa: at its bound, 40" in output
    assert "gNa = 40 uS\n" in output


def test_bounds_and_constants_of_the_other_neuron(fit, tmp_path, gif_cell):
    """Cases 6 and 7, GIF: R is 20 Mohm and bounds end at 15; tau is 20 ms and held at 10."""
    current, V, spikes = gif_cell
    recording = write(tmp_path, current, cells.with_action_potentials(V, spikes, 0.1), 0.1)
    recording += [*GIF_FIT, "--t_blank", 2]
    result, output = fit(gif, *recording, "--fit_parameters", "R", "V_rest", "--bounds", "R=5:15")
    assert result["parameters"]["R"] == pytest.approx(15)
    assert result["identifiability"]["standard_errors"]["R"] is None
    assert "no standard error of R: at its bound, 15" in output
    result, output = fit(gif, *recording, "--fit_parameters", "R", "--constants", "tau=10")
    assert result["constants"]["tau"] == 10
    assert "tau = 10" in output
    assert "this model does not describe these data" in output
    assert result["identifiability"]["standard_errors"] == {"R": None}


def test_constants_are_printed_saved_and_given(fit, tmp_path, hh_cell):
    """Case 7: what is not fitted has a value, and it is the user's."""
    recording, fitted = write(tmp_path, *hh_cell, 0.05), ["--fit_parameters", "gNa", "gK", "--n_sample", 4]
    default, output = fit(hh, *recording, *fitted)
    assert default["constants"]["V_T"] == -60
    assert "held at (--constants), on which all of these depend: gL = 0.01, V_T = -60, EL = -65" in output
    assert "this model does not describe these data" in output
    assert set(default["identifiability"]["standard_errors"].values()) == {None}
    given, _ = fit(hh, *recording, *fitted, "--constants", "gL=0.012", "V_T=-56")
    assert_found(given, cells.HH, 0.005)
    assert given["constants"] == {"gL": 0.012, "V_T": -56, "EL": -65, "ENa": 50, "EK": -90, "C": 0.2, "R_s": 0} | {
        "gM": 0,
        "tau_max": 1000,
        "phi": 1,
    }
    _, line = fit(hh, *recording, *fitted, "--constants", "gNa=1", status=2)
    assert "argument --constants: found 'gNa', which is fitted" in line


def test_a_series_resistance_is_fitted(fit, tmp_path, hh_cell):
    """Case 13, HH: the bridge is off by 10 Mohm."""
    current, V = hh_cell
    recording = write(tmp_path, current, V + 10 * current, 0.05)
    without, output = fit(hh, *recording, "--n_sample", 6)
    assert "this model does not describe these data" in output
    assert set(without["identifiability"]["standard_errors"].values()) == {None}
    fitted = ["--fit_parameters", "gL", "gNa", "gK", "V_T", "R_s", "--n_sample", 10]
    result, _ = fit(hh, *recording, *fitted)
    assert_found(result, cells.HH | {"R_s": 10.0}, 0.005)
    assert result["loss"] < 0.01 * without["loss"]


def test_a_series_resistance_is_fitted_with_spikes(fit, tmp_path, gif_cell):
    """Case 13, GIF."""
    current, V, spikes = gif_cell
    recording = write(tmp_path, current, cells.with_action_potentials(V, spikes, 0.1) + 5 * current, 0.1)
    fitted = ["--t_blank", 2, "--fit_parameters", "R", "tau", "R_s"]
    result, _ = fit(gif, *recording, *GIF_FIT, *fitted)
    assert_found(result, cells.GIF | {"R_s": 5.0}, 0.02)


# ---- Spikes ---------------------------------------------------------------------------------------------------------


def small_spikes(height, dt=0.1):
    """A current step, and 18 spikes of that height (mV) on -50 mV."""
    n_step = 4000
    V, current = np.full((n_step, 1), -50.0), np.zeros((n_step, 1))
    current[100:] = 0.1
    shape = height * (1 - np.abs(np.linspace(-1, 1, 21)))
    for k in range(18):
        V[300 + 200 * k : 321 + 200 * k, 0] += shape
    return current, V, dt


@pytest.mark.parametrize("script", [hh, gif])
@pytest.mark.parametrize(("height", "level"), [(9.0, ["--spike_level", -45]), (9.0, []), (40.0, []), (85.0, [])])
def test_spikes_of_any_height_are_found(script, height, level, fit, tmp_path):
    """Cases 8 and 9: spikes of 9 mV, with the level given or not, and spikes that peak at -10 and 35 mV."""
    look = ["--mode", "visualize", "--n_sample", 1]
    result, output = fit(script, *write(tmp_path, *small_spikes(height)), *look, *level)
    assert result["n_spikes"] == [18]
    assert "spikes are crossings of " in output
    assert -50 < result["spike_level"]["level"] < -50 + height


def test_no_spikes_are_announced(fit, tmp_path):
    """Case 9: a model that resets, and never crosses 0 mV."""
    current = cells.noise(2, 0.1, 300, 1.4, 0.8)
    V, spikes = cells.gif(current, 0.1, step=0.01)
    assert spikes.sum() > 3
    recording = write(tmp_path, current, V, 0.1)
    result, output = fit(gif, *recording, *GIF_FIT, "--mode", "visualize")
    assert result["n_spikes"] == [0, 0]
    assert f"WARNING: no spike found: V goes up to {V.max():.4g} mV" in output
    _, line = fit(gif, *recording, "--fit_target", "spike", status=2)
    assert "argument --fit_target: found no spike: potentials go up to" in line


@pytest.mark.parametrize("alone", [True, False])
def test_spike_times_as_a_file(alone, fit, tmp_path, gif_cell):
    """Case 9: spike times alone, or beside potentials in which no spike can be seen."""
    current, V, spikes = gif_cell
    times = [np.flatnonzero(train) * 0.1 for train in spikes.T]
    (tmp_path / "times.txt").write_text("".join(",".join(f"{t:.1f}" for t in trace) + "\n" for trace in times))
    in_seconds = "".join(",".join(f"{t / 1000:.4f}" for t in trace) + "\n" for trace in times)
    (tmp_path / "seconds.txt").write_text(in_seconds)
    recording = [*write(tmp_path, current, V, 0.1), "--spike_times", tmp_path / "seconds.txt"]
    _, line = fit(gif, *recording, *GIF_FIT, status=2)
    assert "expected times in ms (are they in s?)" in line
    recording[-1] = tmp_path / "times.txt"
    if alone:
        del recording[2:4]
        _, line = fit(gif, *recording, *GIF_FIT, status=2)
        assert "argument --fit_target: found potential without potentials" in line
        recording += ["--fit_target", "spike"]
    result, output = fit(gif, *recording, *GIF_FIT, "--fit_parameters", "a", "b")
    assert result["n_spikes"] == spikes.sum(0).tolist()
    assert "WARNING" not in output
    assert_found(result, cells.GIF, 0.3 if alone else 0.05)
    if alone:
        assert result["rmse"] is None
    look = ["--mode", "visualize", "--exclude", "20:80", "--fit_parameters", "a", "b"]
    left, _ = fit(gif, *recording, *GIF_FIT, *look)
    outside = [sum(not 20 <= t < 80 for t in trace) for trace in times]
    assert left["n_spikes"] == outside != result["n_spikes"]


def test_spike_times_beside_low_spikes_that_are_noisy_and_have_gaps():
    """They stay as given; what crosses the level of the potentials is counted of models, and of what is held out."""
    T, dt, steps = 4000, 0.1, [700, 1400, 2900]
    V = np.full((T, 1), -65.0)
    for step in steps:
        V[step : step + 10, 0] += 59 * np.exp(-np.arange(10) / 3)
    V[1395:1500] = np.nan
    times = [np.array(steps) * dt]
    sweeps = reading.Sweeps([np.zeros(T)], [V[:, 0]], times, dt, ["cell"], [])
    files = reading.Files(spike_times="given")
    source = recordings.Source(files=files, noise_std=0.2)
    data = recordings.recordings_of({"fit": sweeps}, source, hold_out=False)
    assert -60 < data.spike_level.level < -10
    assert "where their times are not given" in data.report[-1]
    (recording,) = recordings.make_targets(source, data, None, {}, seed=0).values()
    assert np.flatnonzero(recording.spikes).tolist() == steps
    assert recording.observed.sum() == T - 105, "nothing is known where there is no potential, which draws the cell"
    assert (recording.observed[1395:1500] == 0).all()
    lost = np.where(np.arange(T) < 1000, V[:, 0], np.nan)
    sweeps = reading.Sweeps([np.zeros(T)], [lost], None, dt, ["cell"], [])
    with pytest.raises(runs.BadInput, match="cell: found no potential in the part to use"):
        recordings.recordings_of(
            {"fit": sweeps}, recordings.Source(part=recordings.Part(t_start=150.0)), hold_out=False
        )


def test_a_cell_of_which_only_spike_times_are_known(fit, tmp_path, hh_cell):
    current, V = hh_cell
    times = [np.flatnonzero((x[:-1] < 0) & (x[1:] >= 0)) * 0.05 for x in V.T]
    (tmp_path / "times.txt").write_text("".join(" ".join(f"{t:.2f}" for t in trace) + "\n" for trace in times))
    recording = write(tmp_path, current, V, 0.05)
    recording = [*recording[:2], *recording[4:], "--spike_times", tmp_path / "times.txt"]
    result, _ = fit(hh, *recording, "--fit_target", "spike", "--n_sample", 6, "--initial", "paper")
    assert sum(result["n_spikes"]) == sum(map(len, times)) == 5
    assert result["loss"] < 0.5  # that of one spike against none
    assert result["rmse"] is None


def test_artefacts_are_left_out(fit, tmp_path, hh_cell):
    """Case 12: +80 mV for half a millisecond, twice."""
    current, V = hh_cell
    spoiled = V.copy()
    spoiled[100:110] += 145
    spoiled[725:730] -= 200
    recording = write(tmp_path, current, spoiled, 0.05)
    look = ["--mode", "visualize", "--n_sample", 1]
    assert fit(hh, *recording, *look)[0]["n_spikes"] == [1, 2, 3, 3]
    exclude = ["--exclude", "4.9:5.7", "36.2:36.6"]
    assert fit(hh, *recording, *look, *exclude)[0]["n_spikes"] == [0, 1, 2, 2]
    result, _ = fit(hh, *recording, *exclude)
    assert_found(result, cells.HH, 0.005)


# ---- Sweeps ---------------------------------------------------------------------------------------------------------


def test_unequal_sweeps_with_gaps(fit, tmp_path, hh_cell):
    """Case 10: NaN at the end of one trace and inside another; a sweep that is shorter."""
    current, V = (x.copy() for x in hh_cell)
    V[700:, 1] = current[700:, 1] = np.nan
    V[320:330, 2] = np.nan
    result, output = fit(hh, *write(tmp_path, current, V, 0.05))
    assert "fit: 4 sweeps, 0.1545 s" in output
    assert_found(result, cells.HH, 0.005)


def test_gaps_artefacts_and_one_current_of_the_other_neuron(fit, tmp_path, gif_cell):
    """Cases 10, 12 and 14, GIF: one current for two sweeps, of which one has a gap and an artefact."""
    current, V, spikes = gif_cell
    V = cells.with_action_potentials(V, spikes, 0.1)[:, [0, 0]]
    V[-300:, 1] = np.nan
    V[20:30, 1] += 145
    recording = [*write(tmp_path, current[:, :1], V, 0.1), *GIF_FIT, "--t_blank", 2, "--exclude", "2:3"]
    result, output = fit(gif, *recording, "--fit_parameters", "R", "tau")
    assert_found(result, cells.GIF, 0.02)
    assert "2 of them repeats of one current" in output
    n_spikes = spikes[:, 0].sum()
    assert result["n_spikes"] == [n_spikes, n_spikes - spikes[-300:, 0].sum()]


def test_layouts(fit, tmp_path, hh_cell):
    """Cases 11 and 14: samples in lines, a time column, semicolons; and one current for all sweeps."""
    current, V = cells.steps([0.6], 0.05, 10, 30, 40), []
    V = cells.hh(np.repeat(current, 2, axis=1), 0.05)
    t = np.arange(len(V)) * 0.05
    table = [f"{a:.2f};{x:.6f};{y:.6f}".replace(".", ",") for a, (x, y) in zip(t, V, strict=True)]
    (tmp_path / "V.csv").write_text("\n".join(["t (ms);V1 (mV);V2 (mV)", *table]) + "\n")
    (tmp_path / "I.csv").write_text("\n".join(f"{a:.2f}\t{x:.6f}" for a, (x,) in zip(t, current, strict=True)) + "\n")
    recording = ["--current", tmp_path / "I.csv", "--current_unit", "nA", "--voltage", tmp_path / "V.csv"]
    result, output = fit(hh, *recording, "--n_sample", 4, "--fit_parameters", "gNa", "--constants", "gL=0.012",
                         "gK=5.2", "V_T=-56")  # fmt: skip
    assert "fit: 2 sweeps, 0.08 s, 4 spikes, 2 of them repeats of one current" in output
    assert_found(result, cells.HH, 0.005)


def test_parts_and_what_is_held_out(fit, tmp_path):
    """The parts that are named, or a third where nothing is: what is fitted is what result.json says."""
    dt = 0.1
    current = np.concatenate([cells.noise(1, dt, 1200, 0.3, 0.3).repeat(2, axis=1), np.zeros((12000, 0))], axis=1)
    V, spikes = cells.gif(current * 4, dt, step=0.05)
    V = cells.with_action_potentials(V, spikes, dt)
    recording = [*write(tmp_path, current * 4, V, dt), *GIF_FIT, "--mode", "visualize"]
    third = len(V) * 2 // 3
    result, output = fit(gif, *recording)
    assert "held out: the last third of the time of sweeps 0-1" in output
    assert "2 of them repeats of one current\n" in output
    assert result["n_spikes_fit"] == spikes[:third].sum(0).tolist()
    measured = current * 4 + 0.02 * np.random.default_rng(0).standard_normal(current.shape)
    as_measured = write(tmp_path, measured, V, dt, ("measured.csv", "V.csv"))
    _, output = fit(gif, *as_measured, *GIF_FIT, "--mode", "visualize")
    assert "2 of them repeats of one current, but for the noise with which it was measured\n" in output
    none, _ = fit(gif, *recording, "--validation", "none")
    assert none["n_spikes_fit"] == spikes.sum(0).tolist()
    assert "n_spikes_validation" not in none
    parts = ["--sweeps", "0", "--t_stop", 600, "--validation_sweeps", "1:2", "--validation_t_start", 600]
    chosen, output = fit(gif, *recording, *parts)
    assert chosen["n_spikes_fit"] == [spikes[:6000, 0].sum()]
    assert "WARNING" not in output
    _, output = fit(gif, *recording, "--validation_sweeps", "0")
    assert "WARNING: sweep 0 is fitted where it is held out" in output
    _, line = fit(gif, *recording, "--sweeps", "7", status=2)
    assert "argument --sweeps: found none of the sweeps of" in line
    _, line = fit(gif, *recording, "--sweeps", "0,7", status=2)
    assert "in 7, expected some of the 2 sweeps" in line
    _, line = fit(gif, *recording, "--sweeps", "0:2,1", status=2)
    assert "argument --sweeps: found a sweep twice in 0:2,1" in line
    again = [f"--validation_{name}" for name in ("current", "voltage")]
    same = (os.path.relpath(recording[i]) for i in (1, 3))
    _, output = fit(gif, *recording, again[0], next(same), again[1], next(same), "--mode", "visualize")
    assert "WARNING: sweep 0 is fitted where it is held out" in output
    _, line = fit(gif, *recording, "--validation", "none", "--validation_t_start", "5", status=2)
    assert "argument --validation: found none with other arguments" in line
    simulated = ["--mode", "visualize", "--sweeps", "0", "--validation_sweeps", "0:2", "--validation_t_stop", 600]
    chosen, _ = fit(gif, *recording[:2], *recording[4:8], *simulated)
    assert [len(chosen[f"n_spikes_{name}"]) for name in ("fit", "validation")] == [1, 2]
    whole, _ = fit(gif, *recording[:2], *recording[4:8], *simulated[:-2])
    assert chosen["n_spikes_fit"] == whole["n_spikes_fit"]
    assert 0 < sum(chosen["n_spikes_validation"]) < sum(whole["n_spikes_validation"])


def test_currents_of_ones_own_and_a_parameter_that_the_paper_does_not_have(fit, tmp_path):
    """They simulate a target of the paper's neuron, which is without noise; of A_th it says nothing."""
    current = cells.steps([1.5, 2.5], 0.1, 15, 190, 200)
    files = write(tmp_path, current, current, 0.1)
    result, output = fit(gif, *files[:2], *files[4:], "--fit_parameters", "a", "A_th", "--n_sample", 2)
    assert result["escape"] == "threshold"
    assert result["known_parameters"] == {"a": 0.005, "A_th": None}
    assert "true 0.005" in output


def test_every_third_of_a_step_family_is_held_out(fit, tmp_path):
    dt = 0.1
    current = cells.steps(np.linspace(-0.5, 2.5, 7), dt, 50, 200, 250)
    V, spikes = cells.gif(current, dt, step=0.05)
    V = cells.with_action_potentials(V, spikes, dt)
    result, output = fit(gif, *write(tmp_path, current, V, dt), *GIF_FIT, "--mode", "visualize")
    assert "held out: sweeps 2, 5 of the step family" in output
    assert result["n_spikes_validation"] == spikes[:, [2, 5]].sum(0).tolist()


# ---- After a fit ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("script", [hh, gif])
def test_the_response_to_a_new_current(script, fit, tmp_path, hh_cell, gif_cell):
    """Case 16: from the rest of the fitted model, as CSV, NPZ and figure; and scored where there are potentials."""
    if script is hh:
        recording, more = write(tmp_path, *hh_cell, 0.05), []
        new, dt = cells.steps([0.5], 0.05, 15, 35, 50), 0.05
        V = cells.hh(new, 0.05)
    else:
        current, V, spikes = gif_cell
        recording = write(tmp_path, current, cells.with_action_potentials(V, spikes, 0.1), 0.1)
        more = [*GIF_FIT, "--t_blank", 2, "--fit_parameters", "a", "b"]
        new, dt = cells.steps([1.5], 0.1, 15, 135, 200), 0.1
        V, spikes = cells.gif(new, 0.1, step=0.01)
    dt_sim = 0.025 if script is hh else 0.05
    fit(script, *recording, *more, "--dt_sim", dt_sim)
    again = write(tmp_path, new, V, dt, names=("new.csv", "new_V.csv"))
    alone = [*again[:2], *again[4:]]
    result, _ = fit(script, "--load", tmp_path / "run0", *alone)
    folder = tmp_path / "run1"
    assert json.loads((folder / "config.json").read_text())["arguments"]["dt_sim"] == dt_sim, "that of the fit"
    predicted = np.load(folder / "prediction.npz")
    assert np.abs(predicted["V_mV"] - V).mean() < 0.2
    np.testing.assert_allclose(predicted["current_nA"], new, atol=1e-6)
    assert predicted["dt_ms"] == dt
    table = np.loadtxt(folder / "prediction.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(table[:, 2], predicted["V_mV"][:, 0])
    assert (folder / "prediction.csv").read_text().startswith("t_ms,I0_nA,V0_mV\n")
    assert (folder / "prediction.png").stat().st_size > 5_000
    n_spikes = len((folder / "spikes.csv").read_text().splitlines()) - 1
    assert result["n_spikes_model"] == [n_spikes]
    assert n_spikes > 0
    fitted = json.loads((tmp_path / "run0" / "result.json").read_text())
    assert result["fit"]["parameters"] == fitted["parameters"]
    assert not result["fit"]["interrupted"]
    (tmp_path / "run0" / "result.json").write_text(json.dumps(fitted | dict(interrupted=True)))
    scored, output = fit(script, "--load", tmp_path / "run0", *again)
    assert scored["score"]["rmse"] < 2
    assert "run0 was interrupted: these are the best parameters until then" in output
    _, line = fit(script, "--load", tmp_path / "run0", *again[:2], "--dt", dt, status=2)  # nA, read as A
    assert "is --current_unit right?" in line
    _, line = fit(script, "--load", tmp_path / "run0", *alone, "--initial", "paper", status=2)
    assert "argument --initial: found paper with --load" in line
    idle = ["--scheme", "staggered"] if script is hh else ["--escape", "exponential"]
    _, line = fit(script, "--load", tmp_path / "run0", *alone, *idle, status=2)
    assert f"argument {idle[0]}: found it with --load" in line
    _, line = fit(script, "--load", tmp_path / "run0", *alone, "--noise_std", 1, status=2)
    assert "argument --noise_std: found it with --load, which fits nothing" in line
    for argument in ("--n_sample 3", "--target simulated", "--validation none", "--methods DE"):
        _, line = fit(script, "--load", tmp_path / "run0", *alone, *argument.split(" "), status=2)
        assert f"argument {argument.split(' ')[0]}: found it with --load" in line
    other = gif if script is hh else hh
    _, line = fit(other, "--load", tmp_path / "run0", *alone, status=2)
    assert "argument --load: found a run of another script" in line


def test_no_error_away_from_an_optimum(fit, tmp_path, hh_cell):
    """Case 21: DE that has not arrived, in a model that would describe the data, and in noise that hides how far."""
    current, V = hh_cell
    silent = cells.steps((-0.2, -0.1), 0.05, 10, 30, 40)
    noisy = cells.hh(silent, 0.05) + 4 * np.random.default_rng(0).standard_normal(silent.shape)
    few = ["--method", "DE", "--n_sample", 1, "--n_iter", 1, "--fit_parameters", "gL", "--bounds", "gL=0.016:0.03"]
    constants = ["--constants", "gNa=22", "gK=5.2", "V_T=-56"]
    result, output = fit(hh, *write(tmp_path, current, V, 0.05), "--method", "DE", "--n_iter", 3)
    assert set(result["identifiability"]["standard_errors"].values()) == {None}
    assert "no standard error of gL, gNa, gK, V_T: this model does not describe these data" in output
    result, output = fit(hh, *write(tmp_path, silent, noisy, 0.05), *few, *constants)
    assert "no standard error of gL: not at an optimum" in output


def test_no_error_away_from_an_optimum_of_the_other_neuron(fit, tmp_path, gif_cell):
    """Case 21, GIF."""
    current, V, spikes = gif_cell
    recording = write(tmp_path, current, cells.with_action_potentials(V, spikes, 0.1), 0.1)
    few = [*GIF_NEURON, "--t_blank", 2, "--method", "DE", "--n_sample", 2, "--n_iter", 1]
    result, output = fit(gif, *recording, *few, "--fit_parameters", "R", "tau", "V_rest")
    assert set(result["identifiability"]["standard_errors"].values()) == {None}
    assert "no standard error of R, tau, V_rest: " in output


@pytest.mark.parametrize("method", ["L-BFGS-B", "DE"])
def test_a_fit_that_is_killed_goes_on_to_the_same_numbers(method, fit, tmp_path, monkeypatch, capsys, hh_cell):
    part = ["--sweeps", "1:3,0", "--exclude", "35:36", "--t_stop", 39]
    arguments = [*write(tmp_path, *hh_cell, 0.05), *part, "--n_sample", 3, "--method", method, "--n_iter", 6]
    whole, _ = fit(hh, *arguments)
    monkeypatch.setattr(runs.Journal, "SECONDS", 0.0)
    undo = scripts.interrupt(monkeypatch, lambda level, n_before: n_before >= 4, error=SystemExit)
    with pytest.raises(SystemExit):  # as a kill: nothing is saved at the end
        fit(hh, *arguments)
    undo()
    (killed,) = (path for path in tmp_path.glob("run*") if not (path / "result.json").exists())
    assert {path.name for path in killed.iterdir()} == {"config.json", "evaluations.npz"}
    monkeypatch.chdir(tmp_path)
    assert hh.main(["--resume", killed]) == 0
    resumed = json.loads((killed / "result.json").read_text())
    for result in (whole, resumed):
        del result["seconds"]
    assert whole == resumed
    assert not (killed / "evaluations.npz").exists()
    assert hh.main(["--resume", killed]) == 2
    assert "found a fit that is finished" in capsys.readouterr().err


def test_a_fit_that_was_interrupted_goes_on(fit, tmp_path, monkeypatch, capsys, hh_cell):
    arguments = [*write(tmp_path, *hh_cell, 0.05), "--n_sample", 3]
    whole, _ = fit(hh, *arguments)
    undo = scripts.interrupt(monkeypatch, lambda level, n_before: n_before >= 5)
    assert hh.main([*arguments, "--output", tmp_path / "part"]) == 130
    undo()
    part = json.loads((tmp_path / "part" / "result.json").read_text())
    assert part["interrupted"]
    assert part["identifiability"]["without_error"]["gL"] == "interrupted"
    assert hh.main(["--resume", tmp_path / "part", "--seed", 5]) == 2
    current, V = hh_cell
    write(tmp_path, current, V + 0.1, 0.05)
    capsys.readouterr()
    assert hh.main(["--resume", tmp_path / "part"]) == 2
    assert "--resume: found other numbers in the files of data than those of" in capsys.readouterr().err
    write(tmp_path, *hh_cell, 0.05)
    evaluations = dict(np.load(tmp_path / "part" / "evaluations.npz"))
    evaluations["seconds"] += 1000
    np.savez(tmp_path / "part" / "evaluations.npz", **evaluations)
    assert hh.main(["--resume", tmp_path / "part"]) == 0
    resumed = json.loads((tmp_path / "part" / "result.json").read_text())
    assert 1000 < resumed["seconds"]["run"] < 1000 + part["seconds"]["run"] + 100, "of both parts"
    for result in (whole, resumed):
        del result["seconds"]
    assert whole == resumed
    config = json.loads((tmp_path / "part" / "config.json").read_text())
    (earlier,) = config["earlier"]
    assert "--resume" in config["command"]
    assert "--voltage" in earlier["command"]
    assert earlier["packages"]["jax"]


def test_an_error_in_the_error_analysis_loses_nothing(fit, tmp_path, monkeypatch, hh_cell):
    def fails(*arguments):
        raise np.linalg.LinAlgError("Singular matrix")

    monkeypatch.setattr(np.linalg, "eigh", fails)
    result, output = fit(hh, *write(tmp_path, *hh_cell, 0.05), "--n_sample", 2)
    assert result["loss"] < 1000
    assert len(result["parameters"]) == 4
    assert "the error analysis ended in LinAlgError: Singular matrix" in output
