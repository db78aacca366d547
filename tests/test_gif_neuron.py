"""The GIF neuron against Brian2, its closed form between spikes, and the definition of its surrogate gradient."""

import json
from pathlib import Path

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scripts

import neuron_fitting_of_gif_model as gif
import studies
import utils
from learning_rules import SPIKE_CURRENTS

DATA = Path(__file__).resolve().parents[1] / "data"
FACTS = json.loads((DATA / "parameters_gif.json").read_text())
DT = 0.1 * u.ms


def parameters_of(neuron):
    return {name: value * gif.UNITS[name] for name, value in neuron.items() if name in gif.UNITS}


@pytest.mark.parametrize("trace", range(len(FACTS["neurons"])), ids=[neuron["name"] for neuron in FACTS["neurons"]])
def test_agrees_with_brian2(trace, x64):
    assert FACTS["dt_ms"] == 0.1
    neuron = FACTS["neurons"][trace]
    current, V_brian = (scripts.read_traces(DATA / f"{kind}_traces_gif.csv").T for kind in ("input", "output"))
    V, spikes = studies.simulate(utils.GIF, parameters_of(neuron), current[:, [trace]] * 1e9 * u.nA, DT)
    assert len(neuron["spike_steps"]) > 10
    assert np.flatnonzero(spikes).tolist() == neuron["spike_steps"]
    np.testing.assert_allclose(V.to_decimal(u.mV)[:, 0], V_brian[:, trace], atol=0.1)


def test_a_settled_neuron_stays_where_it_is(x64):
    """Held at -58 mV by 0.6 nA: the threshold is V_th_inf + a / b (V - V_rest), and nothing moves."""
    current = np.full((500, 2), 0.6)
    V, spikes = studies.simulate(utils.GIF, {}, current * u.nA, DT, V_start=np.full(2, -58.0) * u.mV)
    np.testing.assert_allclose(V.to_decimal(u.mV), -58.0, atol=1e-9)
    assert spikes.sum() == 0
    cell = utils.GIF(1)
    with brainstate.environ.context(dt=DT):
        studies.start_at(cell, np.array([-58.0]) * u.mV)
        for _ in range(200):
            cell.update(0.6 * u.nA)
    np.testing.assert_allclose(cell.V_th.value.to_decimal(u.mV), -50 + 0.5 * 12, atol=1e-9)


def test_the_patterns_are_those_of_mihalas_and_niebur():
    intervals = {neuron["name"]: np.diff(neuron["spike_steps"]) for neuron in FACTS["neurons"]}
    assert np.ptp(intervals["regular spiking"]) <= 1
    assert (np.diff(intervals["spike frequency adaptation"]) >= 0).all()
    bursting = intervals["tonic bursting"]
    assert bursting.max() > 10 * np.median(bursting)


def test_subthreshold_response_is_the_closed_form(x64):
    current = np.full((500, 1), 0.5)
    V, spikes = studies.simulate(utils.GIF, {}, current * u.nA, DT)
    t = np.arange(500) * 0.1
    np.testing.assert_allclose(V.to_decimal(u.mV)[:, 0], -70 + 10 * (1 - np.exp(-t / 20)), rtol=1e-12)
    assert not spikes.any()


def test_soft_reset_without_units_is_the_neuron_of_the_network():
    """tau dV/dt = -V + I + I2, V -> V - V_th and I2 -> I2 - beta at a spike: against a loop in NumPy."""
    tau, tau_a, beta, I, n_step = 100.0, 1000.0, 0.5, 3.0, 800
    parameters = dict(a=0.0 / u.ms, b=0.0 / u.ms, k1=0.0 / u.ms, k2=1 / tau_a / u.ms, tau=tau * u.ms, A2=-beta)
    parameters |= dict(V_rest=0.0, V_reset=0.0, V_th_inf=1.0, V_th_reset=1.0, R=1.0, A1=0.0, spk_reset="soft")
    V, spikes = studies.simulate(utils.GIF, parameters, jnp.full((n_step, 1), I), 1.0 * u.ms)
    v = i2 = 0.0
    for k in range(n_step):
        assert float(V[k, 0]) == pytest.approx(v, abs=1e-4)
        spike = v >= 1
        assert bool(spikes[k, 0]) == spike
        v, i2 = v - spike, i2 - beta * spike
        v, i2 = I + i2 + (v - I - i2) * np.exp(-1 / tau), i2 * np.exp(-1 / tau_a)
    assert spikes.sum() >= 3


def test_the_gradient_is_that_of_the_surrogate(x64):
    def spike(V):
        neuron = utils.GIF(1)
        neuron.init_state()
        neuron.V.value = V * u.mV * jnp.ones(1)
        return neuron.get_spike()[0]

    for V in (-130.0, -90.0, -50.1, -50.0, -30.0, -12.0, 10.0):
        value, slope = jax.jvp(spike, (V,), (1.0,))
        distance = (V + 50) / 50
        assert value == (V >= -50)
        assert slope == pytest.approx(0.3 * max(0, 1 - abs(distance)) / 50)


def test_given_spikes_drive_the_reset():
    neuron = utils.GIF(2, A1=1.0 * u.nA, A2=-0.5 * u.nA)
    neuron.init_state()
    with brainstate.environ.context(dt=DT):
        returned = neuron.update(0.0 * u.nA, spike=jnp.array([1.0, 0.0]))
    np.testing.assert_array_equal(returned, [1, 0])
    np.testing.assert_allclose(neuron.I1.value.to_decimal(u.nA), [np.exp(-0.02), 0], rtol=1e-5)
    np.testing.assert_allclose(neuron.I2.value.to_decimal(u.nA), [-0.5 * np.exp(-0.002), 0], rtol=1e-5)


@pytest.mark.parametrize("erased", [True, False])
def test_what_is_erased_is_all_that_earlier_spikes_leave_in_currents(erased):
    """Of a neuron that is still refractory, too, whose currents begin when it no longer is."""
    amplitudes = {name: -0.5 * u.nA for name in ("A1", "A2", "A3")}
    neuron = utils.GIF(1, **amplitudes, k3=0.01 / u.ms, A_g=0.01 * u.uS, k_g=0.1 / u.ms, t_ref=0.4 * u.ms)
    neuron.init_state()
    left = []
    with brainstate.environ.context(dt=DT):
        for k in range(8):
            for name in SPIKE_CURRENTS & neuron.local_states.keys() if erased and k == 2 else ():
                neuron.local_states[name].value = 0 * neuron.local_states[name].value
            neuron.update(0.0 * u.nA, spike=jnp.array([float(k == 0)]))
            left.append([float(neuron.local_states[name].value.mantissa[0]) for name in ("I1", "I2", "I3", "g")])
    assert (np.array(left)[-1] != 0).all() == (not erased)
    assert np.any(left) == (not erased)
