"""The published extraction of a GIF neuron from recordings, written from its paper: regression, then a point process.

Pozzorini et al. (2015), PLoS Comput. Biol. 11, e1004275. 1. The kernel of the electrode by regression of the potential
on the current where the cell is silent (Brette et al. 2008), whose response is then subtracted. 2. C, gL, EL and the
spike-triggered current eta by linear regression of dV/dt away from spikes. 3. With the spikes forced on that membrane,
V_T*, Delta_V and the kernel gamma of the threshold by maximum likelihood of a generalised linear model,
lambda = exp((V - V_T* - sum gamma) / Delta_V) per ms, which is concave. eta and gamma are piecewise constant, in bins
that grow with the time after a spike. Units: mV, ms, nA, nF, uS, Mohm.
"""

import dataclasses
import itertools
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2]))

import numba
import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.signal

import recordings
import scoring
from recordings import Recording

T_REF, T_BEFORE = 4.0, 5.0  # ms, refractory period, and what is left out before spikes
EDGES = np.concatenate([[0.0, 2.0, 4.0], np.geomspace(6.0, 500.0, 16)])  # ms after the refractory period, of the bins
T_KERNEL, T_ELECTRODE = 60.0, 6.0  # ms, of the response to a current, and of the electrode in it
N_NEWTON = 30


@dataclasses.dataclass(frozen=True)
class Published:
    """A neuron as the method gives it; the electrode's kernel is in Mohm a sample of dt."""

    C: float
    gL: float
    EL: float
    V_reset: float
    eta: np.ndarray
    V_T: float
    Delta_V: float
    gamma: np.ndarray
    electrode: np.ndarray
    dt: float

    @property
    def n_parameters(self) -> int:
        """Numbers that describe the neuron, beside the electrode."""
        return 6 + len(self.eta) + len(self.gamma)


def electrode_kernel(current: np.ndarray, V: np.ndarray, dt: float) -> np.ndarray:
    """The response of the electrode to a current (T,), of a silent cell: that of both, less an exponential tail."""
    n, cut = round(T_KERNEL / dt), round(T_ELECTRODE / dt)
    x, y = current - current.mean(), V - V.mean()

    def correlation(first, second):
        return scipy.signal.correlate(first, second, method="fft")[len(second) - 1 :][:n]

    kernel = scipy.linalg.solve_toeplitz(correlation(x, x), correlation(y, x))
    t = np.arange(n) * dt

    def tail(p):
        return p[0] * np.exp(-t / p[1])

    fit = scipy.optimize.least_squares(lambda p: (tail(p) - kernel)[cut:], [kernel[cut], 20.0])
    return (kernel - tail(fit.x))[:cut]


def compensated(recording: Recording, kernel: np.ndarray) -> np.ndarray:
    """Potentials without what the electrode adds (T, n_trace)."""
    return recording.V - electrode_response(recording.current, kernel)


def electrode_response(current: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """What the electrode adds (T, n_trace); before the recording the current was the first."""
    before = np.repeat(current[:1], len(kernel) - 1, axis=0)
    return scipy.signal.lfilter(kernel, [1.0], np.concatenate([before, current]), axis=0)[len(kernel) - 1 :]


@numba.njit
def _free_to_fire(spikes, n_ref):
    """Where the neuron could fire: not within n_ref steps after a spike (T, n_trace)."""
    T, n = spikes.shape
    free = np.ones((T, n), np.bool_)
    for trace in range(n):
        last = -(1 << 30)
        for k in range(T):
            free[k, trace] = k - last > n_ref
            if spikes[k, trace]:
                last = k
    return free


def in_bins(spikes: np.ndarray, dt: float) -> np.ndarray:
    """How many past spikes lie in each bin (T, n_trace, n_bin)."""
    first, edges = round(T_REF / dt) + 1, np.round(EDGES / dt).astype(int)
    before = np.cumsum(np.concatenate([np.zeros((1, spikes.shape[1])), spikes]), axis=0)  # spikes in steps < k

    def until(lag):
        """Spikes at least `lag` steps ago."""
        index = np.arange(len(spikes)) - lag + 1
        return np.where(index[:, None] > 0, before[np.maximum(index, 0)], 0.0)

    counts = [until(first + low) - until(first + high) for low, high in itertools.pairwise(edges)]
    return np.stack(counts, axis=2)


@numba.njit
def _forced(current, spikes, eta, start, C, gL, EL, V_reset, n_ref, dt):
    V = np.empty(current.shape)
    for trace in range(current.shape[1]):
        v, last = start[trace], -(1 << 30)
        for k in range(len(current)):
            if k - last <= n_ref and k > last:
                v = V_reset
            V[k, trace] = v
            if spikes[k, trace]:
                last = k
            v += dt / C * (-gL * (v - EL) + current[k, trace] - eta[k, trace])
    return V


@numba.njit
def _free(current, kernels, chance, start, p, n_ref, dt):
    C, gL, EL, V_reset, V_T, Delta_V = p
    n_kernel = kernels.shape[1]
    spikes = np.zeros(chance.shape, np.uint8)
    for run in range(chance.shape[1]):
        v, last = start, -(1 << 30)
        times = [last]
        for k in range(len(current)):
            eta = gamma = 0.0
            for spike in times[::-1]:
                lag = k - spike - n_ref - 1
                if lag >= n_kernel:
                    break
                if lag >= 0:
                    eta += kernels[0, lag]
                    gamma += kernels[1, lag]
            if k - last <= n_ref:
                v = V_reset
            elif chance[k, run] < -np.expm1(-dt * np.exp(min((v - V_T - gamma) / Delta_V, 20.0))):
                spikes[k, run], last = 1, k
                times.append(k)
            v += dt / C * (-gL * (v - EL) + current[k] - eta)
    return spikes


def extract(recording: Recording, kernel: np.ndarray) -> Published:
    """The neuron of a recording, from whose potentials the electrode's response is subtracted.

    Args:
        kernel: of the electrode (Mohm a sample).
    """
    dt, n_ref = recording.dt, round(T_REF / recording.dt)
    V, spikes, current = compensated(recording, kernel), np.asarray(recording.spikes), np.asarray(recording.current)
    steps = [(k, trace) for k, trace in np.argwhere(spikes) if k + n_ref < len(V)]
    V_reset = float(np.mean([V[k + n_ref, trace] for k, trace in steps]))
    quiet, bins = np.ones(V.shape, bool), in_bins(spikes, dt)
    for k, trace in np.argwhere(spikes):
        quiet[max(k - round(T_BEFORE / dt), 0) : k + n_ref + 1, trace] = False
    quiet[-1] = False
    slope = np.diff(V, axis=0, append=V[-1:]) / dt
    X = np.column_stack([V[quiet], current[quiet], np.ones(quiet.sum()), -bins[quiet]])
    b = np.linalg.solve(X.T @ X, X.T @ slope[quiet])
    C = 1 / b[1]
    gL, EL, eta = -b[0] * C, -b[2] / b[0], b[3:] * C
    forced = _forced(current, spikes, bins @ eta, V[0], C, gL, EL, V_reset, n_ref, dt)
    free = _free_to_fire(spikes, n_ref)
    X = np.column_stack([forced[free], np.ones(free.sum()), -bins[free]])
    fired = spikes[free] > 0
    w = np.zeros(X.shape[1])
    w[:2] = 0.5, -0.5 * (forced[(spikes > 0) & free].mean() + 3)
    for _ in range(N_NEWTON):
        rate = dt * np.exp(np.minimum(X @ w, 20.0))
        gradient = X[fired].sum(0) - X.T @ rate
        step = np.linalg.solve((X * rate[:, None]).T @ X + 1e-9 * np.eye(len(w)), gradient)
        w = w + step / max(1.0, np.abs(X[::97] @ step).max() / 2)
    return Published(C, gL, EL, V_reset, eta, -w[1] / w[0], 1 / w[0], w[2:] / w[0], kernel, dt)


def predict(neuron: Published, recording: Recording, n_run: int, seed: int) -> scoring.Prediction:
    """Its potentials as recorded with the spikes forced, and n_run runs of every trace with its escape noise."""
    dt, n_ref = neuron.dt, round(T_REF / neuron.dt)
    current, spikes = np.asarray(recording.current), np.asarray(recording.spikes)
    electrode = electrode_response(current, neuron.electrode)
    membrane = neuron.C, neuron.gL, neuron.EL, neuron.V_reset
    start = recording.V[0] - electrode[0]
    eta = in_bins(spikes, dt) @ neuron.eta
    forced = _forced(current, spikes, eta, start, *membrane, n_ref, dt) + electrode
    widths = np.diff(np.round(EDGES / dt).astype(int))
    kernels = np.stack([np.repeat(neuron.eta, widths), np.repeat(neuron.gamma, widths)])
    rng, stochastic = np.random.default_rng(seed), np.zeros((*current.shape, n_run), np.uint8)
    p = np.array([*membrane, neuron.V_T, neuron.Delta_V])
    for trace in range(current.shape[1]):
        chance = rng.random((len(current), n_run))
        stochastic[:, trace] = _free(current[:, trace], kernels, chance, start[trace], p, n_ref, dt)
    return scoring.Prediction(forced, stochastic[:, :, 0].astype(float), V_forced=forced, stochastic=stochastic)


def repeats_per_trace(recording: Recording, n_run: int) -> int:
    """Runs of each trace, so that a current that is repeated has n_run in all."""
    return -(-n_run // min(map(len, recordings.repeats_of(recording))))
