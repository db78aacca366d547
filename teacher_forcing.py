r"""The GIF neuron whose reset the recorded spikes drive, in parallel over time, and the likelihood of a recording.

With the spikes given, nothing of `utils.GIF` is left but exponential filters. With y = V - V_rest and u the filter of
the currents that knows no reset, the end E_n of a refractory period sets y to r = V_reset - V_rest:

.. math:: y(t) = u(t) + (r - u(E_n)) \exp(-(t - E_n) / \tau), \quad E_n < t \le E_{n + 1}

I_1, I_2 and the thresholds begin anew at spikes, or add to what is left, which a recursion over spikes tells. With a
conductance g after spikes the integral of the membrane's rate, (1 + R g) / tau, is in the exponent, by an associative
scan. A trace of n samples takes some products of matrices instead of n steps, and reverse mode as many again. It is the
simulation of `utils.GIF`, step by step, to rounding errors; a floor of the threshold (V_th_reset) alone is not to be
had in this way.

The neuron fires by chance, at the rate h = exp((V - V_th) / width) + lapse of `utils.GIF.escape_rate`, and n
potentials, of which one every tau_noise is taken for independent, have normal errors of a size that is fitted too. The
negative logarithm of the probability of both is

.. math::

    \sum_k h_k dt - \sum_{spikes} [\log(1 - e^{-h_k dt}) + h_k dt] + \frac{n dt}{2 \tau_{noise}} \log(1 + MSE / s^2)

with s the resolution of a recording, and sums over the steps in which V is not held. Sources: Pillow et al. (2005) and
Paninski et al. (2004) for the likelihood; Pozzorini et al. (2015), whose GIF is this neuron with a = 0; Mensi et al.
(2016) for the threshold that follows V non-linearly.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

from runs import BadInput

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
import scipy.signal
from jax.typing import ArrayLike

import recordings
import studies
import utils
from identifiability import Box, Likelihood, Parameters, autocorrelation_time, misfit
from numerics import exponential_filter, exprel, is_zero
from recordings import Recording

NO_FLOOR = -np.inf * u.mV  # of the threshold
T_BEFORE = 1.5  # ms before a spike that potentials do not count: a sodium current is no part of the neuron
T_SPIKE, FALL = 10.0, 5.0  # ms after a spike, within which the mean potential falls less steeply than this, mV / ms
TAUS = (1.0, 3.0, 10.0, 30.0, 100.0, 300.0)  # ms, of currents after spikes in a regression
LOG_TAUS = np.log(2.0) + np.arange(8) * np.log(2.0) * 0.85  # of a first look at tau, which goes from 2 to 120 ms
ABOVE = 10.0  # mV; the threshold is so far above the highest potential of a recording without spikes
MISFIT = 3.0, 0.5  # as in `studies.largest_error`: clusters allow for errors that depend on each other
T_CLUSTER, CLUSTERS = 200.0, 4  # ms of one trace that are independent of others; so many a parameter, where shorter
APART, FEWEST = 3.0, 2  # times tau_noise that a cluster has at least; clusters a parameter that are not too few
ESTIMATED = ("R", "tau", "V_rest", "V_reset", "R_s", "V_th_inf")  # by regression, well enough to begin with
STEEPEST = 20.0  # (V - V_th) / width, from which on a rate grows linearly: it has no bound, and numbers have


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Driven:
    """A recording that drives a neuron; arrays (T, n_trace), but `spikes`, `ends` and `real` (n_spike, n_trace).

    Args:
        recording: where V_start is None, the neuron begins as `utils.GIF` does, V at V_rest and V_th at V_th_inf.
        spikes, ends: steps of the spikes, and of the ends of their refractory periods; behind the last of them, T.
        real: 1 for those, else 0.
        at_spike: 1 in the step of a spike, else 0.
        held: 1 after a spike, to the end of its refractory period included, where V is V_reset; else 0.
        silent: 1 in steps that are known to have no spike and could have one, else 0.
        fired: (n_spike, n_trace), 1 for spikes that are observed, else 0.
    """

    recording: Recording
    spikes: ArrayLike
    ends: ArrayLike
    real: ArrayLike
    at_spike: ArrayLike
    held: ArrayLike
    silent: ArrayLike
    fired: ArrayLike

    @property
    def mask(self) -> ArrayLike:
        """Of the potentials that count."""
        return self.recording.mask


def driven_by(recording: Recording, t_ref: float) -> Driven:
    """The recording as it drives a neuron with a refractory period of t_ref (ms); spikes within it count as none."""
    n_ref = round(t_ref / recording.dt)
    trains = [apart(np.flatnonzero(train), n_ref) for train in np.asarray(recording.spikes).T]
    n_step, n_trace = np.shape(recording.spikes)
    spikes, steps = np.zeros((n_step, n_trace), bool), np.full((max(1, *map(len, trains)), n_trace), n_step)
    for trace, train in enumerate(trains):
        spikes[train, trace] = True
        steps[: len(train), trace] = train
    observed = recordings.observed_in(recording).astype(float)
    held, refractory = np.zeros(spikes.shape), np.zeros(spikes.shape)
    for step, trace in np.argwhere(spikes):
        held[step + 1 : step + n_ref + 1, trace] = 1
        refractory[step + 1 : step + n_ref, trace] = 1
    real = steps < n_step
    seen = np.take_along_axis(observed, np.minimum(steps, n_step - 1), axis=0) * real
    silent = observed * (1 - refractory) * ~spikes
    driving = dataclasses.replace(recording, V_start_error=None, spikes=None, observed=None)
    ends = np.where(real, np.minimum(steps + n_ref, n_step), n_step)
    return Driven(driving, steps, ends, real.astype(float), spikes.astype(float), held, silent, seen)


def apart(steps: np.ndarray, n_ref: int) -> np.ndarray:
    """Steps of spikes, without those within n_ref steps of the last one that is left."""
    kept: list[int] = []
    for step in steps:
        if not kept or step >= kept[-1] + n_ref:
            kept.append(int(step))
    return np.array(kept, int)


def shortest_interval(recording: Recording) -> float:
    """Time between the two spikes of a trace that are closest to each other (ms)."""
    intervals = [np.diff(np.flatnonzero(train)) for train in np.asarray(recording.spikes).T]
    return float(min((x.min() for x in intervals if len(x)), default=np.inf)) * recording.dt


# ---- Model ----------------------------------------------------------------------------------------------------------


def trajectories(constants: Parameters) -> studies.Model:
    """The driven neuron: (parameters, driven) -> V and the logarithm of its escape rate, each (T, n_trace).

    V is what an electrode records (mV); both are before a spike of the same step resets the neuron.

    Args:
        constants: {name: value with unit} of the parameters of `utils.GIF` that are not fitted, R_s and tau_s.
    """

    respond = potentials_of(constants)

    def model(parameters: Parameters, driven: Driven, level: ArrayLike = 0.0) -> dict[str, jax.Array]:
        V, log_rate = respond(parameters, driven)
        return dict(V=V.T, log_rate=log_rate.T)

    return model


def potentials_of(constants: Parameters) -> Callable[[Parameters, Driven], tuple[jax.Array, jax.Array]]:
    """`potentials` as a function of the parameters that are fitted, and the recording."""
    return lambda parameters, driven: potentials({**constants, **parameters}, driven)


def potentials(parameters: Parameters, driven: Driven) -> tuple[jax.Array, jax.Array]:
    """V (mV) and the logarithm of the escape rate, were V not held (per ms), (n_trace, T)."""
    p = {"A3": 0.0, "A_g": 0.0, "lapse": 0.0} | {name: u.get_magnitude(value) for name, value in parameters.items()}
    recording, dt = driven.recording, driven.recording.dt
    current, ends = jnp.asarray(recording.current).T, driven.ends.T
    electrode = jnp.asarray(studies.electrode_potential(parameters, recording) + 0 * recording.current).T
    held = recording.V_start is not None
    y_start = recording.V_start - electrode[:, 0] - p["V_rest"] if held else 0 * electrode[:, 0]
    at_spike = jnp.asarray(driven.at_spike).T

    drive = current
    for j, factor in (("1", p["R1"]), ("2", p["R2"]), ("3", 1.0)):
        if not is_zero(p[f"A{j}"]):
            rate = p[f"k{j}"] * dt
            jumps = place(driven.real.T * jumps_of(p[f"A{j}"], factor, rate, driven), ends, current)
            drive = drive + jumps + exponential_filter(jnp.exp(-rate) * jumps, rate, 0 * y_start)
    rate, r, gain = dt / p["tau"], p["V_reset"] - p["V_rest"], 1.0
    if not is_zero(p["A_g"]):
        opened = place(driven.real.T * p["A_g"], ends, current)
        g = opened + exponential_filter(jnp.exp(-p["k_g"] * dt) * opened, p["k_g"] * dt, 0 * y_start)
        gain, drive = 1 + p["R"] * g, drive + g * (p["E_g"] - p["V_rest"])
    rate = rate * gain
    x = p["R"] * (1 - jnp.exp(-rate)) * drive / gain
    unreset = exponential_filter(x, rate, y_start)
    passed = taken(jnp.cumsum(rate, axis=1) - rate, ends) if jnp.ndim(rate) else rate * ends
    resets = place(driven.real.T * resets_of(r, passed, taken(unreset, ends)), ends, current)
    y = unreset + exponential_filter(jnp.exp(-rate) * resets, rate, 0 * y_start)
    y = jnp.where(jnp.asarray(driven.held).T > 0, r, y)

    slow = p["b"] * dt
    after_reset = jnp.where(at_spike > 0, r, y)
    drive_th, start = drive_of_threshold(p, after_reset), drive_of_threshold(p, y_start) if held else y_start
    phi = dt * exprel(-slow)
    jump = p["A_th"] * jnp.exp(-slow) * at_spike
    theta = exponential_filter(phi * p["a"] * drive_th + jump, slow, p["a"] / jnp.maximum(p["b"], 1e-4) * start)
    if not is_zero(p["A_th2"]):
        rate = p["b2"] * dt
        theta = theta + exponential_filter(p["A_th2"] * jnp.exp(-rate) * at_spike, rate, 0 * y_start)
    V = p["V_rest"] + y
    return V + electrode, log_escape_rate((V - p["V_th_inf"] - theta) / p["width"], p["lapse"])


def drive_of_threshold(p: Mapping[str, Any], y: jax.Array) -> jax.Array:
    """f(V) of `utils.GIF` (mV), at V = V_rest + y."""
    if is_zero(p["k_i"]):
        return y
    return p["k_i"] * jax.nn.softplus((y + p["V_rest"] - p["V_i"]) / p["k_i"])


def place(values: jax.Array, steps: ArrayLike, like: jax.Array) -> jax.Array:
    """Values (n_trace, n_spike) at steps of an array (n_trace, T) of zeros; those at T are dropped."""
    trace = np.arange(len(like))[:, None]
    return jnp.zeros_like(like).at[trace, jnp.asarray(steps, int)].add(values, mode="drop")


def taken(x: jax.Array, steps: ArrayLike) -> jax.Array:
    """x (n_trace, T) at steps (n_trace, n_spike), the last sample in place of those beyond."""
    return jnp.take_along_axis(x, jnp.minimum(jnp.asarray(steps, int), x.shape[1] - 1), axis=1)


def jumps_of(A: jax.Array, factor: jax.Array, rate: jax.Array, driven: Driven) -> jax.Array:
    """What each spike adds to a spike-triggered current (n_trace, n_spike): A + (factor - 1) of what is left of it."""
    ends = jnp.asarray(driven.ends)

    def after(I, elapsed):
        left = I * jnp.exp(-rate * elapsed)
        I = factor * left + A
        return I, I - left

    elapsed = jnp.diff(ends, axis=0, prepend=ends[:1])
    return jax.lax.scan(after, jnp.zeros(ends.shape[1]) * rate, elapsed)[1].T


def resets_of(r: jax.Array, passed: jax.Array, unreset: jax.Array) -> jax.Array:
    """What each end of a refractory period adds to y (n_trace, n_spike): r less what y was.

    Args:
        r: to which it sets y.
        passed, unreset: the integral of the membrane's rate, and u, at each end (n_trace, n_spike).
    """
    left = (r - unreset[:, :-1]) * jnp.exp(-jnp.diff(passed, axis=1))
    return r - unreset - jnp.pad(left, ((0, 0), (1, 0)))


# ---- Likelihood -----------------------------------------------------------------------------------------------------


def make_costs(constants: Parameters) -> studies.Model:
    """(parameters, driven) -> `spike_cost`, negative log-probability, and `error`, sums of squares: (n_trace,).

    Trace after trace, each done again for its derivatives: its arrays stay in the cache, and memory is that of one.

    Args:
        constants: as in `trajectories`.
    """
    respond = potentials_of(constants)

    def model(parameters: Parameters, driven: Driven, level: ArrayLike = 0.0) -> dict[str, jax.Array]:
        @jax.checkpoint
        def of_trace(trace):
            V, log_rate = respond(parameters, trace)
            silent, fired = spike_costs(log_rate, trace)
            return dict(spike_cost=silent.sum() + fired.sum(), error=jnp.sum(errors_of(V, trace) ** 2))

        return jax.lax.map(of_trace, each_trace(driven))

    return model


def each_trace(driven: Driven) -> Driven:
    """The traces along a first axis, each with the shapes of a recording of one."""
    return jax.tree.map(lambda x: jnp.moveaxis(jnp.asarray(x)[..., None], -2, 0), driven)


def errors_of(V: jax.Array, driven: Driven) -> jax.Array:
    """Errors of the potentials (n_trace, T) that count (mV)."""
    return jnp.asarray(driven.mask).T * (V - jnp.asarray(driven.recording.V).T)


def spike_costs(log_rate: jax.Array, driven: Driven) -> tuple[jax.Array, jax.Array]:
    """Negative log-probabilities of no spike (n_trace, T), and of those recorded (n_trace, n_spike)."""
    dt = driven.recording.dt
    silent = jnp.asarray(driven.silent).T * dt * jnp.exp(log_rate)
    log_mean = jnp.log(dt) + taken(log_rate, driven.spikes.T)
    # log(1 - exp(-x)), by its series where x is small and rounding would leave nothing of it.
    small = log_mean < -12
    mean = jnp.exp(log_mean)
    log_p = jnp.where(small, log_mean - mean / 2, jnp.log(-jnp.expm1(-jnp.where(small, 1.0, mean))))
    return silent, -jnp.asarray(driven.fired).T * log_p


def log_escape_rate(distance: jax.Array, lapse: ArrayLike) -> jax.Array:
    """log(exp(x) + lapse), x = (V - V_th) / width; from STEEPEST on the tangent of exp(x) in its place."""
    log_rate = jnp.minimum(distance, STEEPEST) + jnp.log1p(jnp.maximum(distance - STEEPEST, 0))
    return log_rate if is_zero(lapse) else jnp.logaddexp(log_rate, jnp.log(lapse))


@dataclasses.dataclass(frozen=True)
class Noise:
    """What potentials say beside spikes: one of them counts every `tau_noise` (ms), or none at all."""

    tau_noise: float
    counts: bool = True

    def weight(self, recording: Recording) -> float:
        """The weight of a sample."""
        return recording.dt / self.tau_noise * self.counts


def likelihood(constants: Parameters, noise: Noise) -> studies.Loss:
    """The negative log-likelihood of the spikes, and of the potentials if these count, of the `costs` of a neuron."""

    def loss(costs: Mapping[str, jax.Array], driven: Driven) -> jax.Array:
        n = jnp.sum(driven.mask)
        mse = jnp.sum(costs["error"]) / jnp.maximum(n, 1)
        potential_cost = n * noise.weight(driven.recording) / 2 * jnp.log1p(mse / studies.V_RESOLUTION**2)
        return jnp.sum(costs["spike_cost"]) + potential_cost

    respond = potentials_of(constants)

    def clustered(study: studies.Study, box: Box, x: np.ndarray) -> Likelihood:
        driven, dt = study.windows, study.windows.recording.dt
        V, _ = jax.jit(lambda x, driven: respond(box.parameters(x), driven))(x, driven)
        recording = driven.recording
        rms = float(np.sqrt(np.sum(errors_of(V, driven) ** 2) / max(np.sum(recording.mask), 1)))
        size, largest = max(rms, studies.V_RESOLUTION), studies.largest_error(study.recordings["fit"], *MISFIT)
        misfits = [misfit("V_mV", rms, largest)] if noise.counts and rms > largest else []
        n_step, n_trace = np.shape(recording.current)
        between = jnp.asarray(driven.silent + driven.mask).T
        counts = np.asarray(between + place(jnp.asarray(driven.fired).T, driven.spikes.T, between)) > 0
        n_each = cluster_length(int(counts.sum()), n_step, dt, len(x), noise)
        n_part = -(-n_step // n_each)

        def parts(y):
            padded = jnp.pad(y, ((0, 0), (0, n_part * n_each - n_step)))
            return padded.reshape(n_trace, n_part, n_each).sum(2).ravel()

        said = np.flatnonzero(parts(counts.astype(int)))  # not those in which nothing counts

        def costs(x, driven):
            V, log_rate = respond(box.parameters(x), driven)
            silent, fired = spike_costs(log_rate, driven)
            everywhere = silent + noise.weight(driven.recording) / (2 * size**2) * errors_of(V, driven) ** 2
            return parts(everywhere + place(fired, driven.spikes.T, everywhere))[said]

        return Likelihood(costs, {"V_mV": size} if noise.counts else {}, misfits, (driven,))

    return studies.Loss(loss, "negative log-likelihood", clustered, is_log=True)


def cluster_length(n_counted: int, n_step: int, dt: float, n_fitted: int, noise: Noise) -> int:
    """Steps of a cluster: longer than its errors depend on each other; n_step where there would be too few of them.

    Args:
        n_counted: samples of all traces that count.
        dt: (ms).
        n_fitted: parameters.
    """
    n_each = min(round(T_CLUSTER / dt), n_counted // (CLUSTERS * n_fitted))
    n_each = max(1, n_each, round(APART * noise.tau_noise / dt) if noise.counts else 1)
    return n_step if n_counted < FEWEST * n_fitted * n_each else n_each


def make_gram(constants: Parameters, noise: Noise) -> studies.Gram:
    """The quadratic form of the likelihood by which Gauss-Newton steps, as `studies.Gram` has it.

    The Fisher information of the potentials, and of a rate h that of its logarithm, h dt in each step: second
    derivatives of V and log h are left out. L-BFGS-B takes ten times as many evaluations, along a valley of a, b, A_th.
    """
    respond = potentials_of(constants)

    def gram(parameters_of: Callable[[jax.Array], Parameters], x: jax.Array, driven: Driven) -> jax.Array:
        def of_trace(trace):
            # A direction at a time: its arrays stay in the cache.
            (V, log_rate), along = jax.linearize(lambda x: respond(parameters_of(x), trace), x)
            dV, dlog = jax.lax.map(along, jnp.eye(len(x)))
            total, slope = jax.value_and_grad(lambda y: sum(map(jnp.sum, spike_costs(y, trace))))(log_rate)
            error, mask = errors_of(V, trace), jnp.asarray(trace.mask).T
            dV, dlog = dV[:, 0], dlog[:, 0]
            spikes = form(dlog, jnp.maximum(slope[0], 0), slope[0], total)
            return spikes, form(dV, mask[0], error[0], jnp.sum(error**2) / 2)

        spikes, errors = (part.sum(0) for part in jax.lax.map(of_trace, each_trace(driven)))
        n = jnp.sum(driven.mask)
        mse = 2 * errors[-1, -1] / jnp.maximum(n, 1)
        weight = noise.weight(driven.recording)
        potentials = weight / (studies.V_RESOLUTION**2 + mse) * errors
        cost = n * weight / 2 * jnp.log1p(mse / studies.V_RESOLUTION**2)
        return (spikes + potentials.at[-1, -1].set(cost)).at[-1, -1].multiply(2.0) / 2

    return gram


def form(J: jax.Array, weight: jax.Array, slope: jax.Array, cost: jax.Array) -> jax.Array:
    """[[J w J^T, J s], [(J s)^T, cost]] (k + 1, k + 1), of derivatives J (k, T), weights w and slopes s (T,)."""
    gradient = (J @ slope)[:, None]
    return jnp.block([[(J * weight) @ J.T, gradient], [gradient.T, jnp.reshape(cost, (1, 1))]])


# ---- What a recording says before a fit -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Estimates:
    """What linear regression says of a recording, and the bounds of a fit that follow.

    Args:
        values: {name: value} of R, tau, V_rest, V_reset, R_s, t_ref, the potential from which spikes start as V_th_inf,
            and V_rest as E_g, in the units of mV, ms, nA and Mohm.
        bounds: {name: (low, high)} of the parameters of which they tell, `bounds_of`.
        tau_noise: integral of the autocorrelation of the residuals, -oo to oo (ms).
    """

    values: dict[str, float]
    bounds: dict[str, tuple[float, float]]
    tau_noise: float


def refractory_period(recording: Recording) -> float:
    """Time after a spike from which on the mean potential is less steep than FALL, no longer than an interval (ms)."""
    n, dt = round(T_SPIKE / recording.dt), recording.dt
    V, spikes = np.asarray(recording.V), np.asarray(recording.spikes)
    pieces = [V[k : k + n, trace] for k, trace in np.argwhere(spikes) if k + n <= len(V)]
    if not pieces:
        return 0.0
    steep = np.flatnonzero(np.abs(np.diff(np.mean(pieces, axis=0))) > FALL * dt)
    last = steep[-1] if len(steep) else 0
    return float(min(last * dt, shortest_interval(recording)))


def first_estimates(recording: Recording, t_ref: float | None = None) -> Estimates:
    """Regression of the potentials, with the spikes given, on what a leaky membrane makes of current and spikes.

    Given tau, V is linear in V_rest, R, R_s, V_reset and in currents that decay after spikes with TAUS.

    Args:
        t_ref: (ms), or None where it is that of `refractory_period`.
    """
    dt, t_ref = recording.dt, refractory_period(recording) if t_ref is None else t_ref
    quiet = recordings.without_spikes(recording, T_BEFORE, t_ref)
    driven = driven_by(quiet, t_ref)
    mask, V = np.asarray(quiet.mask).T > 0, np.asarray(recording.V).T

    @functools.cache
    def regression(log_tau):
        """Mean square, weights and residuals. A little ridge: columns may be the same, as without spikes."""
        columns = regressors(driven, math.exp(log_tau))
        X = np.stack([column[mask] for column in columns], axis=1)
        gram = X.T @ X
        ridge = 1e-9 * np.trace(gram) / len(gram) * np.eye(len(gram))
        weights = np.linalg.solve(gram + ridge, X.T @ V[mask])
        residual = V[mask] - X @ weights
        return np.mean(residual**2), weights, residual

    coarse = min(LOG_TAUS, key=lambda log_tau: regression(log_tau)[0])
    around = coarse - LOG_TAUS[1] + LOG_TAUS[0], coarse + LOG_TAUS[1] - LOG_TAUS[0]
    options = dict(bounds=around, method="bounded", options=dict(maxiter=8))
    log_tau = float(scipy.optimize.minimize_scalar(lambda log_tau: regression(log_tau)[0], **options).x)
    _, (V_rest, R, R_s, above, *_), residuals = regression(log_tau)
    residual = np.zeros(mask.shape)
    residual[mask] = residuals
    step, trace = np.nonzero(driven.at_spike)
    before = V[trace, np.maximum(step - round(T_BEFORE / dt), 0)]
    V_spike = float(np.median(before) if len(before) else V[mask].max() + ABOVE)
    values = dict(R=max(R, 1e-3), tau=math.exp(log_tau), V_rest=V_rest, V_reset=V_rest + above, R_s=R_s, t_ref=t_ref)
    values = {name: float(value) for name, value in values.items()} | {"V_th_inf": V_spike, "E_g": float(V_rest)}
    tau_noise = autocorrelation_time(residual, mask) * dt
    return Estimates(values, bounds_of(values), min(max(tau_noise, dt), T_CLUSTER))


def regressors(driven: Driven, tau: float) -> list[np.ndarray]:
    """Columns (n_trace, T): what V is made of, for one unit of V_rest, R, R_s, V_reset - V_rest, of the currents after
    spikes that decay with TAUS, and of V - V_rest at the start.
    """
    recording, dt = driven.recording, driven.recording.dt
    current, n_step = np.asarray(recording.current).T, len(recording.current)
    impulses = np.zeros(current.shape)
    spike, trace = np.nonzero(driven.ends < n_step)
    np.add.at(impulses, (trace, driven.ends[spike, trace]), 1)
    last = np.maximum.accumulate(np.where(impulses > 0, np.arange(n_step), -1), axis=1)
    decayed = np.exp(-dt / tau * (np.arange(n_step) - np.maximum(last, 0)))

    def membrane(x):
        """R = 1 Mohm under the current x, with no potential left at the last end of a refractory period."""
        y = scipy.signal.lfilter([0.0, -np.expm1(-dt / tau)], [1.0, -np.exp(-dt / tau)], x, axis=1)
        return y - (last >= 0) * decayed * np.take_along_axis(y, np.maximum(last, 0), axis=1)

    after = [scipy.signal.lfilter([1.0], [1.0, -np.exp(-dt / tau_I)], impulses, axis=1) for tau_I in TAUS]
    columns = [np.ones(current.shape), membrane(current), current, (last >= 0) * decayed]
    return [*columns, *map(membrane, after), (last < 0) * decayed]


def bounds_of(values: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """Bounds of parameters around the estimates; spike-triggered currents in units of what brings V to threshold."""
    V_rest, V_spike, R, tau = (values[name] for name in ("V_rest", "V_th_inf", "R", "tau"))
    current = max(abs(V_spike - V_rest), 1.0) / R
    bounds = {"R": (R / 3, 3 * R), "tau": (tau / 3, 3 * tau), "V_rest": (V_rest - 20, V_rest + 20)}
    bounds |= {"V_reset": (min(V_rest, values["V_reset"]) - 20, max(V_spike, values["V_reset"]) + 20)}
    bounds |= {"A1": (-20 * current, 10 * current), "A2": (-4 * current, 2 * current), "A3": (-current, current / 2)}
    bounds |= {"A_g": (0.0, 10 / R), "E_g": (V_rest - 40, V_spike + 40)}
    bounds |= {"V_th_inf": (V_spike - 20, V_spike + 20), "V_i": (V_spike - 20, V_spike + 5)}
    return bounds | {"R_s": (min(0.0, values["R_s"]) - 20, max(0.0, values["R_s"]) + 20)}


def starts_of(bounds: Mapping[str, u.Quantity], values: Mapping[str, float]) -> Callable[[int, int], np.ndarray]:
    """(n, seed) -> random starts (n, k) in the box, from where the likelihood leads to its minima, not to one alone.

    What regression knows begins there. A threshold that follows V slowly has b = 0.005 per ms of bounds up to 2, and
    of uniform starts hardly one is near: positive parameters whose bounds span more than a decade are uniform in their
    logarithm, a is between 0 and b, by which the threshold follows V no further than V goes, and A_th is 0. All else
    is uniform.

    Args:
        values: of `Estimates`.
    """
    names = list(bounds)
    low, high = np.transpose([np.asarray(limits.mantissa, float) for limits in bounds.values()])
    decades = (low > 0) & (high > 10 * low)
    known = {name: values[name] for name in ESTIMATED} | {"A_th": 0.0}

    def starts(n: int, seed: int) -> np.ndarray:
        rng = np.random.default_rng(seed)
        x, share = rng.random((n, len(names))), rng.random(n)
        least = np.where(decades, low, 1.0)
        p = np.where(decades, least * np.where(decades, high / least, 1.0) ** x, low + x * (high - low))
        if {"a", "b"} <= set(names):
            p[:, names.index("a")] = share * p[:, names.index("b")]
        for name in set(names) & set(known):
            p[:, names.index(name)] = known[name]
        return np.clip((p - low) / (high - low), 0, 1)

    return starts


# ---- Study ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Escaping:
    """A neuron with escape noise that is to be fitted to a recording.

    Args:
        constants: {name: value with unit} of the parameters that are not fitted, among them t_ref.
        noise: of the potentials.
        t_blank: before spikes, and after them or t_ref, potentials do not count (ms).
    """

    constants: Parameters
    noise: Noise
    t_blank: float = T_BEFORE

    @property
    def t_ref(self) -> float:
        """(ms)"""
        return self.constants["t_ref"].to_decimal(u.ms)

    def study(self, study: studies.Study) -> studies.Study:
        """The study of the recordings by the likelihood of a neuron; its free run has to be of this neuron.

        Raises:
            BadInput: t_ref is longer than an interval between spikes, or t_blank leaves no potential.
        """
        recording, constants = study.recordings["fit"], self.constants
        shortest = shortest_interval(recording)
        if shortest < self.t_ref:
            found = f"found t_ref={self.t_ref:g} with spikes {shortest:g} ms apart"
            raise BadInput(f"argument --constants: {found}, expected a refractory period no longer than that (ms)")
        recording = recordings.without_spikes(recording, self.t_blank, max(self.t_blank, self.t_ref))
        if self.noise.counts and not np.any(recording.mask):
            raise BadInput(f"argument --t_blank: found {self.t_blank:g}, expected less: no potential is left to fit")
        # One trace stands for all where they are repeats; of a step family it may have no spike.
        same_current = [len(group) for group in recordings.repeats_of(recording)] == [recording.current.shape[1]]
        return dataclasses.replace(
            study,
            model=make_costs(constants),
            loss=likelihood(constants, self.noise),
            windows=driven_by(recording, self.t_ref),
            trajectories=trajectories(constants),
            annealing=studies.Annealing("stage", "", (0.0, 1.0), n_first=1 if same_current else None),
            gram=make_gram(constants, self.noise),
        )

    def forced(self, parameters: Parameters, recording: Recording) -> np.ndarray:
        """Potentials (T, n_trace) of the neuron that the recorded spikes drive (mV)."""
        V, _ = jax.jit(potentials_of(self.constants))(parameters, driven_by(recording, self.t_ref))
        return np.asarray(V, np.float64).T

    def noisy(self, parameters: Parameters, recording: Recording, key: jax.Array) -> np.ndarray:
        """Spikes (T, n_trace) of the neuron that runs freely and fires by chance, at its escape rate."""

        def run(parameters, recording, key):
            own, electrode = studies.behind_electrode(self.constants | parameters, recording)
            cell, dt = utils.GIF(np.shape(recording.current)[1:], **own, V_th_reset=NO_FLOOR), recording.dt * u.ms

            def step(row):
                current, key = row
                p = -jnp.expm1(-u.get_magnitude(cell.escape_rate() * dt))
                spikes = jax.random.uniform(key, p.shape) < p
                cell.update(current * u.nA, spikes.astype(p.dtype))
                return spikes.astype(jnp.uint8)

            with brainstate.environ.context(dt=dt):
                studies.start_at(cell, studies.held_at(recording, electrode))
                keys = jax.random.split(key, len(recording.current))
                return brainstate.transform.for_loop(step, (jnp.asarray(recording.current), keys))

        return np.asarray(jax.jit(run)(parameters, recording, key))
