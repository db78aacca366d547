"""Spike detection, the van Rossum distance and the coincidence factor."""

import math

import braintools
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

import neuron_fitting_of_hh_model as hh
import spike_trains
import studies
import utils
from recordings import Recording


def train(times, n_step=1000, dt=0.1):
    spikes = np.zeros(n_step)
    spikes[np.round(np.asarray(times, float) / dt).astype(int)] = 1
    return spikes


def distance(model, data, dt, tau):
    return spike_trains.van_rossum_distance(model, data, dt * u.ms, tau * u.ms)


def coincidence(model, data, dt, delta=4.0):
    return spike_trains.coincidence_factor(model, data, dt * u.ms, delta * u.ms)


def test_noise_on_a_crossing_makes_no_spikes():
    V = np.full((1000, 2), -65.0)
    V[300:400, 0] = 30.0
    V[600:700, 0] = 30.0
    noisy = V + 1.5 * np.random.default_rng(0).standard_normal(V.shape)
    ramp = np.linspace(-65, 30, 1000)[:, None] + 1.5 * np.random.default_rng(1).standard_normal((1000, 1))
    spikes = spike_trains.detect_spikes(noisy, 0.0)
    assert np.flatnonzero(spikes[:, 0]).tolist() == [299, 599]
    assert spikes[:, 1].sum() == 0
    assert spike_trains.detect_spikes(ramp, 0.0).sum() == 1
    assert spike_trains.detect_spikes(ramp, 0.0, rearm=0.0).sum() > 1


def test_a_trace_that_begins_above_the_level_has_no_spike_there():
    V = np.array([20.0, 20.0, -60.0, 20.0, 20.0])[:, None]
    assert np.flatnonzero(spike_trains.detect_spikes(V, 0.0)).tolist() == [2]


def test_van_rossum_closed_form():
    one, none, dt, tau = train([30])[:, None], train([])[:, None], 0.1, 5.0
    assert distance(one, none, dt, tau) == pytest.approx(0.5, rel=0.03)
    for lag in (0.0, 1.0, 5.0, 20.0):
        shifted = train([30 + lag])[:, None]
        expected = 1 - math.exp(-lag / tau)
        assert distance(one, shifted, dt, tau) == pytest.approx(expected, rel=0.03, abs=1e-6)


def test_van_rossum_agrees_with_braintools():
    tau, times = 4.0, ([10.0, 33.3, 60.1], [12.0, 35.0, 70.0, 71.0])
    theirs = braintools.metric.van_rossum_distance(*map(np.array, times), tau=tau) ** 2 * tau
    ours = distance(*(train(t, 2000)[:, None] for t in times), 0.1, tau)
    assert ours > 0.5
    assert ours == pytest.approx(theirs, rel=0.05)


def test_soft_spikes_of_a_rise_have_mass_one():
    V = np.concatenate([np.linspace(-80, 60, 50), np.linspace(60, -80, 80), np.linspace(-80, 60, 30)])[:, None]
    spikes = hh.soft_spikes(jnp.asarray(V), 0.0)
    assert spikes.sum() == pytest.approx(2, rel=1e-4)
    hard = spike_trains.detect_spikes(V, 0.0)
    for start, stop in ((0, 90), (90, 160)):
        assert abs(np.argmax(spikes[start:stop]) - np.argmax(hard[start:stop])) <= 1


def brute_force_gamma(model, data, dt, delta):
    """Gamma with the largest number of one-to-one coincidences there is, from a bipartite matching."""
    t_model, t_data = (np.flatnonzero(x) * dt for x in (model, data))
    close = np.abs(t_model[:, None] - t_data[None, :]) <= delta + 1e-9
    n_coinc = np.sum(maximum_bipartite_matching(csr_array(close)) >= 0)
    chance = 2 * delta * len(t_model) / (len(model) * dt)
    return (n_coinc - chance * len(t_data)) / (len(t_data) + len(t_model)) * 2 / (1 - chance)


def test_gamma_equals_a_brute_force_matching():
    rng, n_defined = np.random.default_rng(0), 0
    for _ in range(50):
        model, data = (rng.random(2000) < rate for rate in rng.uniform(0.002, 0.018, 2))
        gamma, undefined = coincidence(model, data, 0.1, 4.0), 2 * 4.0 * model.sum() / 200 >= 1
        assert math.isnan(gamma) == undefined
        if not undefined:
            n_defined += 1
            assert gamma == pytest.approx(brute_force_gamma(model, data, 0.1, 4.0))
    assert 10 < n_defined < 50


def test_gamma_of_equal_shifted_and_absent_trains():
    data = train([10, 40, 80])
    assert coincidence(data, data, 0.1) == pytest.approx(1)
    assert coincidence(train([14, 36, 84]), data, 0.1) == pytest.approx(1)
    assert coincidence(train([14.1, 35.9, 84.1]), data, 0.1) < 0
    assert coincidence(train([]), data, 0.1) == 0
    assert coincidence(data, train([]), 0.1) == 0
    assert math.isnan(coincidence(train([]), train([]), 0.1))
    assert spike_trains.coincidence_factor(data, data, 0.0001 * u.second, 4000.0 * u.us) == pytest.approx(1)


def test_gamma_does_not_depend_on_the_sampling():
    fine, coarse = ([train(t, n, dt) for t in ([10, 40], [12, 47])] for n, dt in ((10000, 0.01), (200, 0.5)))
    assert coincidence(*fine, 0.01) == pytest.approx(coincidence(*coarse, 0.5))


def test_gamma_is_undefined_at_rates_where_chance_explains_all():
    dense = train(np.arange(0, 100, 8))
    assert math.isnan(coincidence(dense, train([10, 40]), 0.1, delta=4.0))
    assert coincidence(dense, dense, 0.1, delta=2.0) == pytest.approx(1)


def test_gamma_of_poisson_trains_is_zero_on_average():
    rng = np.random.default_rng(1)
    gammas = [coincidence(*(rng.random((2, 20000)) < 0.001), 0.1, 2.0) for _ in range(300)]
    assert np.mean(gammas) == pytest.approx(0, abs=0.04)


def test_gradient_of_the_spike_loss_is_alive_and_true(x64):
    t = np.arange(800) * 0.01
    spikes = train([4.5], 800, 0.01)[:, None]
    recording = Recording(np.where(t >= 2, 2.0, 0.0)[:, None], spikes=spikes, dt=0.01)
    model = studies.simulation(utils.HH)
    low, high = (np.array([float(hh.RANGES[name].mantissa[i]) for name in hh.FITTED]) for i in (0, 1))

    def loss(x):
        values = low + x * (high - low)
        V = model({name: x * hh.RANGES[name].unit for name, x in zip(hh.FITTED, values, strict=True)}, recording)["V"]
        return distance(hh.soft_spikes(V, 0.0), spikes, 0.01, 5.0)

    x = jnp.array([0.1, 0.6, 0.3, 0.5])
    gradient = jax.jacfwd(loss)(x)
    differences = [(loss(x.at[i].add(1e-6)) - loss(x.at[i].add(-1e-6))) / 2e-6 for i in range(4)]
    assert np.abs(gradient).min() > 1e-6
    np.testing.assert_allclose(gradient, differences, rtol=1e-4, atol=1e-8)


# ---- Repeats --------------------------------------------------------------------------------------------------------


def brute_force_pairs(first, second, dt, delta):
    """Pairs of a spike of one train and a spike of another that are at most delta (ms) apart."""
    t_first, t_second = np.flatnonzero(first) * dt, np.flatnonzero(second) * dt
    return sum(abs(a - b) <= delta + 1e-9 for a in t_first for b in t_second)


def brute_force_md_star(data, model, dt, delta):
    def mean(x, y):
        pairs = [(i, j) for i in range(x.shape[1]) for j in range(y.shape[1]) if x is not y or i != j]
        pairs = pairs or [(0, 0)]
        return np.mean([brute_force_pairs(x[:, i], y[:, j], dt, delta) for i, j in pairs])

    return 2 * mean(data, model) / (mean(data, data) + mean(model, model))


@pytest.mark.parametrize("dtype", [float, np.uint8, bool])
def test_md_star_and_reliability_equal_brute_force(dtype):
    rng = np.random.default_rng(0)
    for n_data, n_model, dt, delta in ((2, 1, 0.1, 4.0), (4, 3, 0.1, 2.0), (3, 5, 0.3, 4.0), (3, 4, 0.5, 200.0)):
        data, model = ((rng.random((600, n)) < 0.02).astype(dtype) for n in (n_data, n_model))
        found, _ = spike_trains.md_star(data, model, dt * u.ms, delta * u.ms)
        assert found == pytest.approx(brute_force_md_star(data, model, dt, delta))
        pairs = [[brute_force_pairs(x, y, dt, delta) for x in data.T] for y in data.T]
        between = (np.sum(pairs) - np.trace(pairs)) / (n_data * (n_data - 1))
        found = spike_trains.reliability(data, dt * u.ms, delta * u.ms)
        assert found == pytest.approx(between / (np.trace(pairs) / n_data))


def test_md_star_tells_the_right_rate_from_another():
    rng, t = np.random.default_rng(1), np.arange(100000) * 0.1
    rate = 0.001 * (1 + np.sin(t / 20)) ** 4
    data, model = (rng.random((len(t), n)) < rate[:, None] for n in (10, 50))
    late, high, flat = np.roll(model, 300, axis=0), rng.random(model.shape) < 3 * rate[:, None], np.empty_like(model)
    flat[:] = rng.random(model.shape) < rate.mean()
    found = [spike_trains.md_star(data, x, 0.1 * u.ms, 4 * u.ms)[0] for x in (model, late, high, flat)]
    assert found[0] == pytest.approx(1, abs=0.03)
    assert max(found[1:]) < 0.8


@pytest.mark.parametrize("n_repeat", [2, 5])
def test_the_error_of_md_star_is_what_it_varies_by(n_repeat):
    """A model that is the cell: 100 recordings of 5 s, with other events in each, of which a repeat has 60 %."""
    rng, found = np.random.default_rng(3), []

    def trains(times, n):
        x = np.zeros((50000, n))
        for i in range(n):
            kept = times[rng.random(len(times)) < 0.6]
            x[np.clip((kept + 2 * rng.standard_normal(len(kept))) / 0.1, 0, 49999).astype(int), i] = 1
        return x

    for _ in range(100):
        times = rng.uniform(0, 5000, 40)
        found.append(spike_trains.md_star(trains(times, n_repeat), trains(times, 20), 0.1 * u.ms, 4 * u.ms))
    values, errors = np.transpose(found)
    assert values.mean() == pytest.approx(1, abs=0.05)
    assert values.std() > 0.03
    assert 0.7 < np.sqrt(np.mean(errors**2)) / values.std() < 1.4


def test_md_star_of_one_train_and_of_nothing():
    rng = np.random.default_rng(2)
    train_, none = rng.random((5000, 1)) < 0.004, np.zeros((5000, 3))
    same, windows = np.repeat(train_, 3, axis=1), (0.1 * u.ms, 4 * u.ms)
    assert spike_trains.md_star(same, train_, *windows) == pytest.approx((1, 0))
    assert spike_trains.reliability(same, 0.1 * u.ms, 4000 * u.us) == pytest.approx(1)
    apart = np.zeros((5000, 2))
    apart[1000, 0] = apart[4000, 1] = 1  # no spike that a model could have in common with both
    for data, model in ((train_, train_), (none, none), (apart, apart[:, :1])):
        assert np.isnan(spike_trains.md_star(data, model, *windows)).all()
    assert spike_trains.md_star(same, none, *windows) == (0, 0)
    assert math.isnan(spike_trains.reliability(none, 0.1 * u.ms, 4 * u.ms))
    assert math.isnan(spike_trains.reliability(train_, 0.1 * u.ms, 4 * u.ms))


def test_gamma_where_some_steps_are_observed():
    data, model, observed = train([10, 40, 80]), train([11, 41, 60]), np.ones(1000)
    observed[500:] = 0
    gamma = spike_trains.coincidence_factor(model, data, 0.1 * u.ms, 4 * u.ms, observed)
    assert gamma == pytest.approx(coincidence(model[:500], data[:500], 0.1))


# ---- The level of spikes --------------------------------------------------------------------------------------------


def fluctuations(n_step, dt, sd, tau, rng):
    """An Ornstein-Uhlenbeck process (mV) with time constant tau (ms)."""
    decay = math.exp(-dt / tau)
    return scipy.signal.lfilter([sd * math.sqrt(1 - decay**2)], [1, -decay], rng.standard_normal(n_step))


def waveform(times, heights, dt, base=-50.0, t_end=2000.0, noise=0.05, sd=0.0, seed=0):
    """Potentials (T,) in mV: spikes 1 ms wide with a hyperpolarisation behind, on a base that fluctuates."""
    rng, t = np.random.default_rng(seed), np.arange(round(t_end / dt)) * dt
    V = base + fluctuations(len(t), dt, sd, 20.0, rng) + noise * rng.standard_normal(len(t))
    for time, height in zip(times, heights, strict=True):
        lag = t - time
        V += height * np.exp(-((lag / np.where(lag < 0, 0.25, 0.6)) ** 2))
        V -= 0.06 * height * np.where(lag > 0, np.exp(-lag.clip(0) / 8) - np.exp(-lag.clip(0) / 1.5), 0)
    return V


def found_in(V, dt, level=None):
    """The level, and the steps of the spikes that cross it."""
    found = spike_trains.find_level([V], dt, level)
    return found, np.flatnonzero(spike_trains.detect_spikes(V[:, None], found.level, found.rearm))


TIMES = np.linspace(50, 1900, 18)
BURSTS = np.sort(np.concatenate([np.arange(100, 1900, 200) + lag for lag in (0, 5, 10)]))
TRAIN = np.arange(100, 1900, 30)


@pytest.mark.parametrize("dt", [0.1, 0.05, 0.01])
@pytest.mark.parametrize(
    ("times", "heights", "options"),
    [
        pytest.param(TIMES, [40] * 18, {}, id="low peaks"),
        pytest.param(TIMES, [42] * 18, dict(base=-52, sd=3), id="low peaks on fluctuations"),
        pytest.param(TIMES, [9] * 18, {}, id="very small"),
        pytest.param(BURSTS, [80, 60, 45] * 9, dict(base=-52, sd=2), id="bursts"),
        pytest.param(TRAIN, np.linspace(80, 30, len(TRAIN)), dict(base=-45), id="declining"),
        pytest.param(TIMES[:1], [80], dict(base=-55, sd=3), id="one spike"),
    ],
)
def test_every_spike_is_found_without_a_level(times, heights, options, dt):
    level, steps = found_in(waveform(times, heights, dt, **options), dt)
    assert len(steps) == len(times)
    assert np.abs(steps * dt - times).max() < 1
    assert 0.1 <= level.rearm <= 10


@pytest.mark.parametrize("dt", [0.1, 0.05, 0.01])
@pytest.mark.parametrize("noise", [0.05, 1.0])
def test_normal_spikes_cross_0(dt, noise):
    level, steps = found_in(waveform(TIMES, [80] * 18, dt, base=-45, noise=noise), dt)
    assert level == spike_trains.SpikeLevel(0.0, 10.0)
    assert len(steps) == 18


@pytest.mark.parametrize("dt", [0.1, 0.05, 0.01])
def test_small_spikes_with_a_level(dt):
    level, steps = found_in(waveform(TIMES, [9] * 18, dt), dt, -45.0)
    assert level.level == -45
    assert level.rearm < 5
    assert len(steps) == 18


@pytest.mark.parametrize("dt", [0.1, 0.05, 0.01])
@pytest.mark.parametrize("noise", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("t_end", [300.0, 2000.0, 10000.0])
def test_fluctuations_are_no_spikes(dt, noise, t_end):
    for sd, seed in ((0, 0), (5, 0), (5, 1)):
        level, steps = found_in(waveform([], [], dt, -60.0, t_end, noise, sd, seed), dt)
        assert level == spike_trains.SpikeLevel()
        assert len(steps) == 0


def test_a_level_above_fluctuations_rearms_half_way_to_their_middle():
    V = waveform([], [], 0.1, -60.0, sd=3)
    assert spike_trains.find_level([V], 0.1, -50.0).rearm == pytest.approx(5, abs=0.7)
    assert spike_trains.find_level([np.full(1000, -60.0)], 0.1, -54.0).rearm == pytest.approx(3)


def test_a_spike_that_begins_above_the_level_makes_no_noise_of_the_others():
    V = waveform(TIMES, [60] * 18, 0.1, noise=0.5)
    on_plateau = np.abs(np.arange(len(V)) * 0.1 - TIMES[9]) < 30
    level, steps = found_in(V + 12 * on_plateau, 0.1, -45.0)
    assert level.rearm == pytest.approx(2.5, abs=1)
    assert len(steps) == 18


def test_the_level_serves_all_sweeps():
    sweeps = [waveform(TIMES, [h] * 18, 0.1, seed=i) for i, h in enumerate((40, 45, 60))] + [np.full(500, -70.0)]
    level = spike_trains.find_level(sweeps, 0.1)
    counts = [spike_trains.detect_spikes(V[:, None], level.level, level.rearm).sum() for V in sweeps]
    assert counts == [18, 18, 18, 0]


@pytest.mark.parametrize("V", [np.zeros(0), np.zeros(1), np.full(2, -60.0), np.arange(3.0)])
def test_very_short_sweeps_have_no_spikes(V):
    assert spike_trains.find_level([V, np.full(100, -65.0)], 0.1) == spike_trains.SpikeLevel()


def test_the_peak_of_spikes_is_the_median_of_what_follows_each_crossing():
    V = np.full((200, 2), -60.0)
    for step, trace, height in ((20, 0, 30.0), (80, 0, 10.0), (50, 1, 20.0)):
        V[step : step + 3, trace] = -10.0, height, -20.0
    V[150, 1] = 90.0  # of no spike
    spikes = np.zeros_like(V)
    spikes[[19, 79, 49], [0, 0, 1]] = 1
    assert spike_trains.peak(V, spikes, 0.5) == 20.0
    assert np.isnan(spike_trains.peak(V, 0 * spikes, 0.5))
