"""Scores of predictions: what counts, what is undefined, and the figures."""

import argparse
import dataclasses
import json
import warnings
from pathlib import Path

import runs

import numpy as np
import pytest

import reading
import recordings
import reports
import scoring
from recordings import Recording
from scoring import Prediction
from spike_trains import SpikeLevel, away_from_spikes

DT = 0.1


def poisson(rate, n_train, seed):
    """Trains (T, n_train) of 0 and 1 with a rate (T,) in spikes a step."""
    return (np.random.default_rng(seed).random((len(rate), n_train)) < rate[:, None]).astype(float)


def noise(n_step, n_trace=1, seed=0):
    return np.cumsum(np.random.default_rng(seed).standard_normal((n_step, n_trace)), axis=0) * 0.01


def recording_of(current, V, spikes, **others):
    ones = np.ones(np.shape(current))
    return Recording(current, V, spikes, **dict(mask=ones, observed=ones) | others, dt=DT)


def repeats(n_step=10000, n_trace=4):
    """Repeats of one current with spikes of one rate, and potentials with noise of their own."""
    rng = np.random.default_rng(1)
    rate = 0.002 * (1 + np.sin(np.arange(n_step) / 200)) ** 2
    V = -60 + 3 * np.sin(np.arange(n_step) / 300)[:, None] + 0.1 * rng.standard_normal((n_step, n_trace))
    return recording_of(np.repeat(noise(n_step), n_trace, axis=1), V, poisson(rate, n_trace, 2))


def steps(n_step=8000):
    """A family of five steps, with as many spikes as the step is high."""
    current, spikes = np.zeros((n_step, 5)), np.zeros((n_step, 5))
    current[1000:6000] = 0.1 * np.arange(5)
    for trace in range(1, 5):
        spikes[np.linspace(1100, 5900, 10 * trace).astype(int), trace] = 1
    return recording_of(current, np.full_like(current, -60.0), spikes)


def same(recording, **others):
    """The prediction of a perfect model."""
    return Prediction(np.asarray(recording.V), recording.spikes, **others)


# ---- Numbers --------------------------------------------------------------------------------------------------------


def test_a_perfect_prediction():
    score = scoring.score(steps(), same(steps(), V_forced=steps().V))
    assert score.rmse == score.rmse_away == 0
    assert score.gamma[0] is None
    assert score.gamma[1:] == pytest.approx([1.0] * 4)
    assert score.n_spikes == score.n_spikes_model == score.n_spikes_same_step == [0, 10, 20, 30, 40]
    assert score.rate == score.rate_model == pytest.approx(100 / (5 * 0.8))
    assert score.repeats == []


def test_variance_explained_of_known_signals():
    n_step = 20000
    V = -60 + 4 * np.sin(2 * np.pi * np.arange(n_step) / 1000)[:, None]
    error = 2 * np.cos(2 * np.pi * np.arange(n_step) / 1000)[:, None]
    recording, none = recording_of(noise(n_step), V, np.zeros_like(V)), np.zeros_like(V)
    score = scoring.score(recording, Prediction(V + error, none, V_forced=V + error / 2))
    assert score.rmse == score.rmse_away == pytest.approx(2 / 2**0.5)
    assert score.variance_explained == pytest.approx(1 - 2**2 / 4**2)
    assert score.variance_explained_forced == pytest.approx(1 - 1 / 4**2)
    mean = np.full_like(V, V.mean())
    assert scoring.score(recording, Prediction(mean, none)).variance_explained == pytest.approx(0)


def test_variance_is_that_away_from_spikes_of_both():
    recording = repeats()
    prediction = same(recording, V_forced=recording.V + 1)
    prediction = dataclasses.replace(prediction, spikes=np.roll(recording.spikes, 700, axis=0))
    quiet_data, quiet_model = (away_from_spikes(x, DT, (5, 20)) > 0 for x in (recording.spikes, prediction.spikes))
    expected = scoring.score(recording, prediction)
    wild = [np.random.default_rng(i).normal(0, 50, recording.V.shape) for i in range(2)]
    V = np.where(quiet_data & quiet_model, prediction.V, wild[0])
    forced = np.where(quiet_data, prediction.V_forced, wild[1])
    score = scoring.score(recording, dataclasses.replace(prediction, V=V, V_forced=forced))
    assert score.rmse > expected.rmse + 10
    assert score.variance_explained == expected.variance_explained == 1
    variance = recording.V[quiet_data].var()
    assert score.variance_explained_forced == expected.variance_explained_forced == pytest.approx(1 - 1 / variance)


def test_only_what_is_observed_and_in_the_mask_counts():
    recording, model = repeats(), poisson(np.full(10000, 0.003), 4, 3)
    mask, observed = np.ones((10000, 4)), np.ones((10000, 4))
    mask[:3000], observed[:4000] = 0, 0
    recording = dataclasses.replace(recording, mask=mask, observed=observed)
    prediction = Prediction(recording.V + 1, model, poisson(np.full(10000, 0.003), 12, 4).reshape(-1, 4, 3))
    score = scoring.score(recording, prediction)
    # Outside, all else is different; what is near the border is away from no spike in both.
    far, wild = slice(0, 2700), np.random.default_rng(5)
    V, spikes, stochastic = recording.V.copy(), recording.spikes.copy(), prediction.stochastic.copy()
    V[far], spikes[far], stochastic[:4000] = 99, wild.random((2700, 4)) < 0.01, 1
    model = np.where(np.arange(10000)[:, None] < 2700, 1 - model, model)
    other = scoring.score(
        dataclasses.replace(recording, V=V, spikes=spikes), Prediction(recording.V + 1, model, stochastic)
    )
    assert other == score
    assert score.rmse == pytest.approx(1)
    assert score.n_spikes == recording.spikes[4000:].sum(0).astype(int).tolist()
    assert score.rate == pytest.approx(recording.spikes[4000:].sum() / (4 * 0.6))
    cut = {name: getattr(recording, name)[4000:] for name in ("current", "V", "spikes", "mask", "observed")}
    cut = scoring.score(Recording(**cut, dt=DT), Prediction(cut["V"] + 1, model[4000:], prediction.stochastic[4000:]))
    assert (cut.gamma, cut.repeats, cut.rate_model) == (score.gamma, score.repeats, score.rate_model)


def test_spikes_across_a_gap_do_not_coincide():
    spikes, model, observed = np.zeros((1000, 1)), np.zeros((1000, 1)), np.ones((1000, 1))
    spikes[299], model[700], observed[300:700] = 1, 1, 0
    recording = recording_of(noise(1000), np.full((1000, 1), -60.0), spikes, observed=observed)
    assert scoring.score(recording, Prediction(recording.V, model)).gamma[0] < 0


def test_repeats_count_where_all_are_observed():
    recording = repeats()
    observed = np.ones((10000, 4))
    observed[:2000, 0], observed[8000:, 3] = 0, 0
    some = dataclasses.replace(recording, observed=observed)
    all_of_them = np.zeros((10000, 4))
    all_of_them[2000:8000] = 1
    both = [scoring.score(r, same(recording)) for r in (some, dataclasses.replace(some, observed=all_of_them))]
    assert both[0].repeats == both[1].repeats
    assert both[0].n_spikes != both[1].n_spikes


def test_runs_with_noise_and_one_without():
    recording = repeats()
    score = scoring.score(recording, same(recording)).repeats[0]
    assert (score.traces, score.n_run) == ([0, 1, 2, 3], 1)
    expected = scoring.md_star(recording.spikes, recording.spikes[:, :1], DT * scoring.u.ms, 4 * scoring.u.ms)
    assert (score.md_star_4ms, score.md_star_4ms_error) == pytest.approx(expected)
    assert 0 < expected[1] < 0.5
    trains = poisson(recording.spikes.mean(1), 8, 6).reshape(-1, 4, 2)
    scores = [
        scoring.score(recording, same(recording, stochastic=trains.astype(kind))) for kind in (bool, np.uint8, float)
    ]
    assert scores[0] == scores[1] == scores[2]
    assert scores[0].repeats[0].n_run == 8


def test_two_currents_with_repeats():
    one, two = repeats(), repeats()
    both = {name: np.hstack([getattr(one, name), getattr(two, name)]) for name in ("V", "spikes", "mask", "observed")}
    current = np.hstack([one.current, 2 * two.current])[:, [0, 4, 1, 5, 2, 6, 3, 7]]
    recording = Recording(current, **both, dt=DT)
    assert [x.traces for x in scoring.score(recording, same(recording)).repeats] == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_what_is_undefined_is_none():
    recording, none = repeats(), np.zeros((10000, 4))
    silent = dataclasses.replace(recording, spikes=none)
    one = none.copy()
    one[5000, 1] = 1
    score = scoring.score(silent, Prediction(recording.V, none))
    assert score.gamma == [None] * 4
    assert score.rate == score.rate_model == 0
    assert score.repeats[0] == scoring.RepeatScore([0, 1, 2, 3], *[None] * 6, n_run=1)
    assert scoring.score(silent, Prediction(recording.V, one)).gamma == [None, 0, None, None]
    single = scoring.score(dataclasses.replace(recording, spikes=one), Prediction(recording.V, none))
    assert (single.gamma, single.repeats[0].md_star_4ms) == ([None, 0, None, None], None)
    assert single.repeats[0].reliability_4ms == 0
    assert scoring.score(recording, Prediction(recording.V, none)).repeats[0].md_star_4ms == 0
    assert scoring.score(recording, Prediction(recording.V, np.ones_like(none))).gamma == [None] * 4
    nothing = scoring.score(dataclasses.replace(recording, mask=none, observed=none), same(recording))
    assert (nothing.rmse, nothing.rate, nothing.gamma) == (None, None, [None] * 4)
    constant = dataclasses.replace(silent, V=np.full_like(none, -64.3))
    assert scoring.score(constant, Prediction(recording.V, none)).variance_explained is None
    assert scoring.score(recording, Prediction(recording.V * np.nan, none)).rmse is None


def test_spike_times_alone():
    recording = dataclasses.replace(steps(), V=np.zeros((8000, 5)), mask=np.zeros((8000, 5)))
    score = scoring.score(recording, Prediction(np.full((8000, 5), -60.0), recording.spikes))
    assert score.rmse is score.rmse_away is score.variance_explained is None
    assert score.gamma[1:] == pytest.approx([1.0] * 4)
    assert scoring.lines_of("fit", score)[0].startswith("fit, free-running: 25 Hz for 25 Hz, Gamma - 1.00")
    assert scoring.score(dataclasses.replace(recording, V=None), same(steps())) == score


def test_scores_are_json():
    score = scoring.score(repeats(), same(repeats(), V_forced=repeats().V))
    assert json.loads(json.dumps(runs.to_json(score)))["repeats"][0]["traces"] == [0, 1, 2, 3]


def test_what_is_printed():
    recording = repeats()
    trains = poisson(recording.spikes.mean(1), 8, 6).reshape(-1, 4, 2)
    score = scoring.score(recording, same(recording, stochastic=trains, V_forced=recording.V))
    spikes = dict(n_spikes=[3] * 10, n_spikes_model=[2] * 10, n_spikes_same_step=[1] * 10)
    score = dataclasses.replace(score, gamma=[0.5, 0.7] * 5, rmse=3.21456, **spikes)
    first, second = scoring.lines_of("validation", score)
    assert first.startswith("validation, free-running: RMSE 3.215 mV, away from spikes 0 mV (100 % of the variance; ")
    assert "Gamma 0.60 (0.50 to 0.70)" in first
    assert second.startswith("repeats of traces 0-3: Md* ")
    assert "from 8 runs; the repeats' own reliability" in second


def test_spikes_with_noise_are_counted_where_a_trace_is_observed():
    recording = dataclasses.replace(repeats(), observed=np.ones_like(repeats().V))
    recording.observed[:1000, 1] = 0
    trains = np.zeros((len(recording.V), recording.V.shape[1], 2))
    trains[[500, 600, 1500], 1, 0] = trains[1500, :, 1] = 1
    score = scoring.score(recording, same(recording, stochastic=trains))
    assert score.n_spikes_noise[:2] == [0.5, 1.0]


# ---- Figures --------------------------------------------------------------------------------------------------------


def saved(recording, prediction, folder):
    """Names of the figures, made without a warning, as of axes that have no place."""

    class Run:
        def save(self, name, figure):
            runs.save(folder / name, figure)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        score = scoring.score(recording, prediction)
        scoring.save_scores(Run(), "fit", recording, prediction, score)
        scoring.lines_of("fit", score)
    return sorted(Path(folder).glob("*.png"))


@pytest.fixture
def names(layouts):
    return lambda *args: [path.name for path in saved(*args)]


def test_figures_of_repeats(names, tmp_path):
    recording = repeats(30000)
    trains = poisson(recording.spikes.mean(1), 12, 6).reshape(-1, 4, 3)
    prediction = same(recording, stochastic=trains, V_forced=recording.V + 0.5)
    assert names(recording, prediction, tmp_path) == ["raster_fit.png", "window_fit.png"]
    few = dataclasses.replace(prediction, stochastic=None)
    observed = np.ones_like(recording.V)
    observed[:10000], observed[15000:16000] = 0, 0
    gaps = dataclasses.replace(recording, observed=observed, mask=observed)
    assert names(gaps, few, tmp_path) == ["raster_fit.png", "window_fit.png"]


def test_figures_of_two_groups_of_repeats(names, tmp_path):
    recording = repeats()
    recording = dataclasses.replace(recording, current=recording.current * [1, 2, 1, 2])
    assert names(recording, same(recording), tmp_path) == ["raster_fit.png", "raster_fit_2.png", "window_fit.png"]


@pytest.mark.parametrize("change", ["none", "spike times", "silent", "nothing observed"])
def test_figures_of_steps(names, tmp_path, change):
    recording, zeros = steps(), np.zeros((8000, 5))
    changes = {"spike times": dict(V=zeros, mask=zeros), "silent": dict(spikes=zeros)}
    changes |= {"nothing observed": dict(mask=zeros, observed=zeros), "none": {}}
    model = dataclasses.replace(same(steps()), spikes=zeros if change == "silent" else steps().spikes)
    recording = dataclasses.replace(recording, **changes[change])
    assert names(recording, model, tmp_path) == ["f_I_fit.png", "window_fit.png"]


def test_figures_of_silent_repeats_and_short_traces(names, tmp_path):
    recording = dataclasses.replace(repeats(300), spikes=np.zeros((300, 4)))
    assert names(recording, same(recording), tmp_path) == ["window_fit.png"]
    (row,) = scoring.score(recording, same(recording)).repeats
    assert row.traces == [0, 1, 2, 3]
    assert scoring.plot_raster(recording, same(recording), row).axes[2].get_ylim() == (0, 1)


def test_f_I_is_the_rate_during_the_step():
    figure = scoring.plot_f_I(steps(), same(steps()), recordings.steps_of(steps()))
    for line in figure.axes[0].lines:
        np.testing.assert_allclose(line.get_xdata(), 0.1 * np.arange(5))
        np.testing.assert_allclose(line.get_ydata(), 20 * np.arange(5))


def test_the_window_is_where_most_spikes_are():
    recording = recording_of(noise(20000), np.full((20000, 1), -60.0), np.zeros((20000, 1)))
    assert scoring.window_of(steps(), [4]).stop - scoring.window_of(steps(), [4]).start == 5000
    recording.spikes[np.arange(12000, 16000, 100)] = 1
    recording.spikes[np.arange(100, 3000, 10)] = 1
    recording.observed[:5000] = 0
    window = scoring.window_of(recording, [0])
    assert window.start <= 12000
    assert window.stop >= 15900
    silent = dataclasses.replace(steps(), spikes=np.zeros((8000, 5)))
    window = scoring.window_of(silent, [0, 2, 4])
    assert any(window.start < edge < window.stop for edge in (1000, 6000))


def test_rates_are_those_of_the_trains():
    trains = poisson(np.full(100000, 0.002), 50, 0)
    observed = np.ones(100000, bool)
    rate = scoring.rate_of(trains, observed, DT)
    assert rate.mean() == pytest.approx(1000 * trains.mean() / DT, rel=0.01)
    assert rate[[0, -1]] == pytest.approx(20, rel=0.5)
    observed[:50000] = False
    gap = scoring.rate_of(trains * observed[:, None], observed, DT)
    assert np.isnan(gap[:50000]).all()
    np.testing.assert_allclose(gap[60000:], rate[60000:])


def test_repeats_are_found_up_to_the_noise_of_the_converter():
    recording = repeats()
    current = recording.current + 1e-5 * np.ptp(recording.current) * np.arange(4)
    assert recordings.repeats_of(dataclasses.replace(recording, current=current)) == [[0, 1, 2, 3]]


def test_a_prediction_has_the_coincidence_window_that_is_asked_for():
    current, spikes = np.zeros((5000, 1)), np.zeros((5000, 1))
    spikes[500::700] = 1
    recording = recording_of(current, noise(5000), spikes, V_start=np.zeros(1))
    late = reports.Responder(lambda recording: (noise(5000, seed=1), np.roll(spikes, 30, axis=0)))  # by 3 ms
    gamma = [reports.respond(late, recording, delta)[2].gamma[0] for delta in (4.0, 2.0)]
    assert gamma[0] == pytest.approx(1)
    assert gamma[1] < 0


def test_means_of_gamma_leave_out_what_is_silent_and_nothing_else():
    """Not traces in which the model fires throughout, of which Gamma is undefined, too."""
    silent, fires = [False] * 8 + [True] * 2, [False] * 10
    assert scoring.listed([1.0, None], [False, True]) == "1.00 -"
    assert scoring.listed([0.5, 1.0] * 4 + [None] * 2, silent) == "0.75 (0.50 to 1.00; 2 of 10 without a spike)"
    assert scoring.listed([0.5, 1.0] * 4 + [None] * 2, fires) == "0.60 (0.00 to 1.00)"
    assert scoring.listed([0.5, 1.0] * 5, fires) == "0.75 (0.50 to 1.00)"


def test_a_model_that_fires_by_its_noise_alone_is_not_said_to_be_silent():
    recording = repeats()
    silent, none = dataclasses.replace(recording, spikes=np.zeros((10000, 4))), np.zeros((10000, 4))
    score = scoring.score(
        silent, Prediction(recording.V, none, poisson(np.full(10000, 0.003), 12, 4).reshape(-1, 4, 3))
    )
    assert score.rate_noise == pytest.approx(sum(score.n_spikes_noise) / 4)
    assert score.rate_noise > 10
    assert f"0 Hz for 0 Hz ({score.rate_noise:.3g} Hz with its escape noise)" in scoring.lines_of("fit", score)[0]


def test_a_neuron_that_steps_by_samples_says_where_these_are_longer_than_it_was_fitted_to(capsys):
    recording, nothing = Recording(np.zeros((50, 1)), V_start=np.zeros(1), dt=1.0), np.zeros((50, 1))
    for dt, is_said in ((0.05, True), (1.0, False), (None, False)):
        reports.respond(reports.Responder(lambda recording: (nothing, nothing), dt=dt), recording, 4.0)
        assert ("WARNING: the neuron has a step a sample, of 1 ms" in capsys.readouterr().out) == is_said


def test_nothing_counts_beyond_the_sweeps_of_a_current_alone(tmp_path):
    """A model that fires wherever there is no current: not after the end of the shorter sweep, nor before t_start."""
    sweeps = reading.Sweeps([np.full(100, -0.1), np.full(500, -0.1)], None, None, 1.0, ["short", "long"], [])
    pieces = [recordings.Piece(0, 0, 50, 100), recordings.Piece(1, 0, 50, 500)]
    recording = recordings.assemble(sweeps, pieces, SpikeLevel())
    assert recording.observed.sum(0).tolist() == [50, 450]
    spikes = np.where(np.arange(500) % 20 == 10, 1.0, 0.0)[:, None] * [1.0, 1.0]
    run = runs.RunFolder(argparse.Namespace(output=tmp_path / "run", resume=None, figure_format="png"), "x", "x")
    reports.save_response(run, recording, Prediction(np.full((500, 2), -65.0), spikes), None, {})
    assert json.loads((tmp_path / "run" / "result.json").read_text())["n_spikes_model"] == [3, 23]
    rows = (tmp_path / "run" / "spikes.csv").read_text().split()[1:]
    assert len(rows) == 26
    assert "0,110.0" not in rows
    data = recordings.Data({"fit": recording}, SpikeLevel(), [])
    source = recordings.Source(reading.Files())
    target = recordings.make_targets(source, data, lambda known, recording: (spikes - 65, spikes), {}, 0)["fit"]
    assert (target.mask == recording.observed).all()
    assert (target.observed == recording.observed).all()


def test_the_level_of_spikes_is_that_of_held_out_potentials_where_spikes_are_fitted_by_their_times():
    """Spikes that peak at -12 mV, which no crossing of 0 mV would count."""
    V = np.full(4000, -65.0)
    for step in range(500, 4000, 500):
        V[step : step + 20] += 53 * np.exp(-np.arange(20) / 6)
    current = [np.zeros(4000)]
    fit = reading.Sweeps(current, None, [np.array([50.0, 100.0])], 0.1, ["fit"], [])
    held_out = reading.Sweeps(current, [V], None, 0.1, ["held out"], [])
    source = recordings.Source(reading.Files(spike_times="given"))
    data = recordings.recordings_of({"fit": fit, "validation": held_out}, source, hold_out=False)
    assert data.recordings["validation"].spikes.sum() == 7
    assert data.recordings["fit"].spikes.sum() == 2
    assert any("spikes held out are crossings of" in line for line in data.report)
