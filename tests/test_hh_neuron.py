"""The HH neuron against Brian2, its own limit dt -> 0, finite differences, and numbers that break naive rates."""

import csv
import functools
import json
from pathlib import Path

import brainunit as u
import cells
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gates
import numerics
import studies
import utils

DATA = Path(__file__).resolve().parents[1] / "data"
PARAMETERS = {"gL": 0.012 * u.uS, "gNa": 22.0 * u.uS, "gK": 5.2 * u.uS, "V_T": -56.0 * u.mV}
CONSTANTS = {"EL": -65.0 * u.mV, "ENa": 50.0 * u.mV, "EK": -90.0 * u.mV, "C": 0.2 * u.nF}
DT = 0.01 * u.ms


def potentials(parameters, current, dt=DT):
    return studies.simulate(utils.HH, parameters, current * u.nA, dt)[0].to_decimal(u.mV)


def pulse(n_step=700, amplitude=2.0, dt=0.01):
    """Two traces: a pulse from 2 ms that makes one spike, and one that makes none."""
    t = np.arange(n_step) * dt
    return np.stack([np.where(t >= 2, amplitude, 0.0), np.where(t >= 2, 0.2, 0.0)], axis=1)


def read_csv(name):
    with open(DATA / name) as file:
        return np.array([[float(x) for x in row[1:]] for row in list(csv.reader(file))[1:]]).T


@pytest.mark.parametrize("suffix", ["", "_validation"])
def test_agrees_with_brian2(suffix):
    facts = json.loads((DATA / "parameters_hh.json").read_text())
    assert facts["dt_ms"] == 0.01
    assert facts["parameters"] == {name: float(value.mantissa) for name, value in PARAMETERS.items()}
    current, V_brian = (read_csv(f"{kind}_traces_hh{suffix}.csv") for kind in ("input", "output"))
    V, spikes = studies.simulate(utils.HH, PARAMETERS, current * 1e9 * u.nA, DT)
    V, spikes = np.asarray(V.to_decimal(u.mV)), np.asarray(spikes)
    rmse = np.sqrt(np.mean((V - V_brian) ** 2, axis=0))
    assert (rmse < 0.1).all(), rmse

    spikes_brian = (V_brian[:-1] < 0) & (V_brian[1:] >= 0)
    assert spikes_brian.sum() >= 3
    np.testing.assert_array_equal(spikes.sum(0), spikes_brian.sum(0))
    np.testing.assert_allclose(*(np.argwhere(s)[:, 0] for s in (spikes[:-1], spikes_brian)), atol=1)


def test_error_is_first_order_in_dt(x64):
    def at_common_times(refinement):
        dt = 0.02 / refinement
        current = np.repeat(pulse(350, dt=0.02), refinement, axis=0)
        return np.asarray(potentials(PARAMETERS, current, dt * u.ms))[::refinement]

    exact = at_common_times(64)
    assert exact.max() > 30
    errors = [np.abs(at_common_times(refinement) - exact).mean() for refinement in (2, 4, 8)]
    ratios = np.divide(errors[:-1], errors[1:])
    assert ((ratios > 1.7) & (ratios < 2.5)).all(), ratios


def test_the_staggered_scheme_is_of_second_order(x64):
    """Against the cell by Runge-Kutta in steps of 0.001 ms, from rest."""
    current = cells.steps((-0.1, 0.6, 1.5), 0.04, 5, 15, 20)
    exact = cells.hh(current, 0.04)
    assert exact.max() > 30
    cell = functools.partial(utils.HH, scheme="staggered")

    def error(n_substep):
        start = current * u.nA, 0.04 * u.ms, n_substep, exact[0] * u.mV
        return np.abs(studies.simulate(cell, PARAMETERS | CONSTANTS, *start)[0].to_decimal(u.mV) - exact).mean()

    errors = [error(n) for n in (2, 4, 8, 16)]
    ratios = np.divide(errors[:-1], errors[1:])
    assert ((ratios > 3.7) & (ratios < 4.3)).all(), ratios
    assert errors[1] < 0.05


def test_a_settled_cell_stays_where_it_is(x64):
    """At V_inf, where all currents and 0.1 nA cancel, nothing moves in either scheme."""
    current = np.full((400, 1), 0.1)
    rest = cells.hh(current, 0.05, t_before=1000.0)[:1, 0]
    for scheme in ("exponential_euler", "staggered"):
        cell = functools.partial(utils.HH, scheme=scheme)
        V, spikes = studies.simulate(cell, PARAMETERS | CONSTANTS, current * u.nA, 0.05 * u.ms, 5, rest * u.mV)
        np.testing.assert_allclose(V.to_decimal(u.mV), rest[0], atol=1e-6)
        assert spikes.sum() == 0


def test_steps_between_samples_are_those_of_finer_samples(x64):
    current = pulse(350, dt=0.04)
    V, spikes = studies.simulate(utils.HH, PARAMETERS, current * u.nA, 0.04 * u.ms, 4)
    fine, fine_spikes = studies.simulate(utils.HH, PARAMETERS, current.repeat(4, axis=0) * u.nA, DT)
    np.testing.assert_allclose(V.to_decimal(u.mV), fine.to_decimal(u.mV)[::4], rtol=1e-12)
    np.testing.assert_array_equal(spikes, np.reshape(fine_spikes, (350, 4, 2)).sum(1))
    assert spikes[:, 1].sum() == 0 < spikes[:, 0].sum()


@pytest.mark.parametrize("shift", [13.0, 40.0, 15.0])
def test_rates_are_smooth_where_exprel_meets_zero(shift, x64):
    cell = utils.HH(1, V_T=0.0 * u.mV)

    def rates(V):
        return jnp.stack([u.Quantity(x * u.ms).to_decimal() for pair in cell.rates(V * u.mV) for x in pair])

    value, slope = jax.jvp(rates, (shift,), (1.0,))
    below, above = rates(shift - 1e-4), rates(shift + 1e-4)
    np.testing.assert_allclose(value, (below + above) / 2, rtol=1e-8)
    np.testing.assert_allclose(slope, (above - below) / 2e-4, rtol=1e-6)


PRECISIONS = pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-6), (np.float64, 4e-15)])


def around_zero(largest):
    """Numbers of both signs, from 0 to the largest, and at both sides of where series end."""
    magnitudes = np.concatenate([[0.0], np.geomspace(1e-12, largest, 200), [0.4999, 0.5, 0.5001]])
    return np.concatenate([-magnitudes, magnitudes])


@PRECISIONS
def test_exprel_value_and_slope(dtype, tolerance, x64):
    x = around_zero(10**1.5).astype(dtype)
    value, slope = jax.jvp(numerics.exprel, (x,), (np.ones_like(x),))
    assert value.dtype == slope.dtype == dtype
    exact = x.astype(np.float64)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(value, np.where(exact == 0, 1, np.expm1(exact) / exact), rtol=tolerance)
    # The slope is the mean of s exp(s x) over s in [0, 1]: by Gauss-Legendre quadrature.
    node, weight = np.polynomial.legendre.leggauss(60)
    s = (node + 1) / 2
    np.testing.assert_allclose(slope, np.exp(np.outer(exact, s)) @ (s * weight / 2), rtol=40 * tolerance)
    np.testing.assert_allclose(numerics.exprel(x), value, rtol=tolerance)


@PRECISIONS
def test_inverse_exprel_is_the_reciprocal(dtype, tolerance, x64):
    x = around_zero(10**1.9).astype(dtype)
    value, slope = jax.jvp(numerics.inverse_exprel, (x,), (np.ones_like(x),))
    assert value.dtype == slope.dtype == dtype
    f, df = jax.jvp(numerics.exprel, (x.astype(np.float64),), (np.ones(len(x)),))
    np.testing.assert_allclose(value, 1 / f, rtol=tolerance)
    np.testing.assert_allclose(slope, -df / f**2, rtol=10 * tolerance)
    far = jax.vmap(jax.value_and_grad(numerics.inverse_exprel))(np.array([-1e3, 1e3], dtype))
    np.testing.assert_array_equal(far, [[1e3, 0], [-1, 0]])


@pytest.mark.parametrize("gate", gates.RATES)
def test_partial_derivatives_of_a_gate_are_those_of_its_step(gate, x64):
    """By autodiff through all of it, in forward and reverse mode, for several directions at once."""

    def plain(x, v, scale):
        alpha, beta = gates.RATES[gate](v)
        x_inf = alpha / (alpha + beta)
        return x_inf + (x - x_inf) * jnp.exp(-(alpha + beta) * scale)

    v = np.linspace(-90, 60, 31)
    at = np.linspace(0.05, 0.95, 31), v, np.full(31, 0.02)
    np.testing.assert_allclose(gates.STEPS[gate](*at), plain(*at), rtol=1e-12)
    for derivative in (jax.jacfwd, jax.jacrev):
        ours, autodiff = (derivative(step, argnums=(0, 1, 2))(*at) for step in (gates.STEPS[gate], plain))
        assert min(np.abs(np.diagonal(x)).max() for x in autodiff) > 1e-5
        np.testing.assert_allclose(ours, autodiff, rtol=1e-9, atol=1e-14)


def test_vmap_over_parameters_is_a_loop_over_simulations():
    current = pulse()
    gNa = np.array([5.0, 15.0, 30.0], np.float32)
    together = jax.jit(jax.vmap(lambda g: potentials(PARAMETERS | {"gNa": g * u.uS}, current)))(gNa)
    for g, V in zip(gNa, together, strict=True):
        np.testing.assert_allclose(V, potentials(PARAMETERS | {"gNa": g * u.uS}, current), atol=1e-2)
    assert np.abs(together[0] - together[2]).max() > 10


@pytest.mark.parametrize("scheme", ["exponential_euler", "staggered"])
def test_gradients_agree_with_finite_differences(scheme, x64):
    current, cell = pulse(400), functools.partial(utils.HH, scheme=scheme)
    at = PARAMETERS | CONSTANTS | dict(gM=0.1 * u.uS, tau_max=100.0 * u.ms, phi=1.5)

    def loss(x):
        parameters = {name: factor * value for factor, (name, value) in zip(x, at.items(), strict=True)}
        V = studies.simulate(cell, parameters, current * u.nA, DT)[0].to_decimal(u.mV)
        return jnp.mean((V + 60) ** 2)

    x = jnp.ones(len(at))
    forward, reverse = jax.jacfwd(loss)(x), jax.grad(loss)(x)
    differences = [(loss(x.at[i].add(1e-6)) - loss(x.at[i].add(-1e-6))) / 2e-6 for i in range(len(at))]
    assert np.abs(forward).min() > 1e-4
    np.testing.assert_allclose(forward, reverse, rtol=1e-8)
    np.testing.assert_allclose(forward, differences, rtol=1e-4, atol=1e-6)


def test_states_and_inputs_follow_the_ecosystem():
    cell = utils.HH(3)
    cell.init_state(batch_size=2)
    assert cell.V.value.shape == cell.m.value.shape == (2, 3)
    np.testing.assert_allclose(cell.V.value.to_decimal(u.mV), -65)
    cell.add_current_input("electrode", 1.0 * u.nA)
    with utils.brainstate.environ.context(dt=DT):
        spikes = cell.update(1.0 * u.nA)
    assert spikes.shape == (2, 3)
    assert not spikes.any()
    np.testing.assert_allclose(cell.V.value.to_decimal(u.mV), -64.9, atol=1e-3)  # (1 + 1) nA * 0.01 ms / 0.2 nF


def test_a_wild_potential_overflows_nothing():
    """50 nA drive a cell without potassium conductance to hundreds of mV: gradients stay finite in float32."""
    current = np.full((700, 1), 50.0)

    def largest(gK):
        return jnp.max(potentials(PARAMETERS | {"gK": gK * u.uS}, current))

    value, slope = jax.jvp(largest, (0.01,), (1.0,))
    assert value > 500
    assert np.isfinite(slope)
    assert slope < 0
