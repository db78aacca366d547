"""Spike detection, the van Rossum distance and the coincidence factor."""

import math

import braintools
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

import fitting
import neuron_fitting_of_hh_model as hh
import recordings
import utils
from recordings import Recording


def train(times, n_step=1000, dt=0.1):
    spikes = np.zeros(n_step)
    spikes[np.round(np.asarray(times, float) / dt).astype(int)] = 1
    return spikes


def distance(model, data, dt, tau):
    return recordings.van_rossum_distance(model, data, dt * u.ms, tau * u.ms)


def coincidence(model, data, dt, delta=4.0):
    return recordings.coincidence_factor(model, data, dt * u.ms, delta * u.ms)


def test_noise_on_a_crossing_makes_no_spikes():
    V = np.full((1000, 2), -65.0)
    V[300:400, 0] = 30.0
    V[600:700, 0] = 30.0
    noisy = V + 1.5 * np.random.default_rng(0).standard_normal(V.shape)
    ramp = np.linspace(-65, 30, 1000)[:, None] + 1.5 * np.random.default_rng(1).standard_normal((1000, 1))
    spikes = recordings.detect_spikes(noisy, 0.0)
    assert np.flatnonzero(spikes[:, 0]).tolist() == [299, 599]
    assert spikes[:, 1].sum() == 0
    assert recordings.detect_spikes(ramp, 0.0).sum() == 1
    assert recordings.detect_spikes(ramp, 0.0, rearm=0.0).sum() > 1


def test_a_trace_that_begins_above_the_level_has_no_spike_there():
    V = np.array([20.0, 20.0, -60.0, 20.0, 20.0])[:, None]
    assert np.flatnonzero(recordings.detect_spikes(V, 0.0)).tolist() == [2]


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
    hard = recordings.detect_spikes(V, 0.0)
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
    assert recordings.coincidence_factor(data, data, 0.0001 * u.second, 4000.0 * u.us) == pytest.approx(1)


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
    model = fitting.simulation(utils.HH)
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
