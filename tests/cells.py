"""Cells as a recording has them, integrated plainly and finely: what fits have to find again.

Nothing is shared with `utils.py`: the equations are written out once more, and integrated by the classical Runge-Kutta
method. Currents are in nA, constant within a sample, and potentials in mV, each (T, n_trace); times in ms.
"""

import math

import numba
import numpy as np

HH = {"gL": 0.012, "gNa": 22.0, "gK": 5.2, "V_T": -56.0, "EL": -65.0, "ENa": 50.0, "EK": -90.0, "C": 0.2}
HH |= {"gM": 0.0, "tau_max": 1000.0, "phi": 1.0}
GIF = {"a": 0.005, "b": 0.01, "k1": 0.2, "k2": 0.02, "A1": 1.0, "A2": -0.1, "R": 20.0, "tau": 20.0}
GIF |= {"V_rest": -70.0, "V_reset": -70.0, "V_th_inf": -50.0, "V_th_reset": -60.0}


@numba.njit
def _rate(x):
    return 1.0 if abs(x) < 1e-9 else math.expm1(x) / x


@numba.njit
def _rates(V, p):
    """alpha and beta of m, h and n, and of p of the M current (Pospischil et al. 2008), at potential V."""
    V_T, tau_max, phi = p[3], p[9], p[10]
    v = V - V_T
    m = 1.28 / _rate((13 - v) / 4), 1.4 / _rate((v - 40) / 5)
    h = 0.128 * math.exp((17 - v) / 18), 4 / (1 + math.exp((40 - v) / 5))
    n = 0.16 / _rate((15 - v) / 5), 0.5 * math.exp((10 - v) / 40)
    p_inf = 1 / (1 + math.exp(-(V + 35) / 10))
    tau_p = tau_max / (3.3 * math.exp((V + 35) / 20) + math.exp(-(V + 35) / 20))
    slow = p_inf / tau_p, (1 - p_inf) / tau_p
    return (phi * m[0], phi * h[0], phi * n[0], phi * slow[0]), (phi * m[1], phi * h[1], phi * n[1], phi * slow[1])


@numba.njit
def _slope(y, I, p):
    gL, gNa, gK, _, EL, ENa, EK, C, gM, _, _ = p
    V, m, h, n, slow = y
    (a_m, a_h, a_n, a_slow), (b_m, b_h, b_n, b_slow) = _rates(V, p)
    return (
        (-gNa * m**3 * h * (V - ENa) - (gK * n**4 + gM * slow) * (V - EK) - gL * (V - EL) + I) / C,
        a_m * (1 - m) - b_m * m,
        a_h * (1 - h) - b_h * h,
        a_n * (1 - n) - b_n * n,
        a_slow * (1 - slow) - b_slow * slow,
    )


@numba.njit
def _plus(y, step, k):
    """y + step k, of tuples, for which no memory is allocated in each step."""
    return (y[0] + step * k[0], y[1] + step * k[1], y[2] + step * k[2], y[3] + step * k[3], y[4] + step * k[4])


@numba.njit
def _hh(current, p, dt, t_before, n_before, n_step):
    T, n_trace = current.shape
    V = np.empty((T, n_trace))
    (a_m, a_h, a_n, a_slow), (b_m, b_h, b_n, b_slow) = _rates(p[4], p)
    at_rest = p[4], a_m / (a_m + b_m), a_h / (a_h + b_h), a_n / (a_n + b_n), a_slow / (a_slow + b_slow)
    for trace in range(n_trace):
        y = at_rest
        for k in range(-round(t_before / dt), T):
            I = current[max(k, 0), trace]
            if k >= 0:
                V[k, trace] = y[0]
            n = n_step if k >= 0 else n_before
            step = dt / n
            for _ in range(n):
                k1 = _slope(y, I, p)
                k2 = _slope(_plus(y, step / 2, k1), I, p)
                k3 = _slope(_plus(y, step / 2, k2), I, p)
                k4 = _slope(_plus(y, step, k3), I, p)
                y = _plus(_plus(_plus(_plus(y, step / 6, k1), step / 3, k2), step / 3, k3), step / 6, k4)
    return V


def hh(current, dt, t_before=300.0, step=0.001, **parameters):
    """Potentials of the Traub-type cell, which has been at its first current for t_before when the recording begins.

    Until then steps are of up to 0.01 ms, by which it comes to the same rest.
    """
    p = tuple(float(value) for value in (HH | parameters).values())
    n_step = round(dt / step)
    return _hh(np.asarray(current, float), p, dt, t_before, min(n_step, math.ceil(dt / 0.01)), n_step)


@numba.njit
def _gif(current, p, dt, t_before, n_step):
    a, b, k1, k2, A1, A2, R, tau, V_rest, V_reset, V_th_inf, V_th_reset = p
    T, n_trace = current.shape
    V_out, spikes, step = np.empty((T, n_trace)), np.zeros((T, n_trace)), dt / n_step
    for trace in range(n_trace):
        V, V_th, I1, I2 = V_rest, V_th_inf, 0.0, 0.0
        for k in range(-round(t_before / dt), T):
            I = current[max(k, 0), trace]
            if k >= 0:
                V_out[k, trace] = V
            for _ in range(n_step):
                if V_th <= V:
                    V, V_th, I1, I2 = V_reset, max(V_th, V_th_reset), A1, I2 + A2
                    if k >= 0:
                        spikes[k, trace] = 1
                V_th = V_th + step * (a * (V - V_rest) - b * (V_th - V_th_inf))
                V = V + step * (-(V - V_rest) + R * (I + I1 + I2)) / tau
                I1, I2 = I1 - step * k1 * I1, I2 - step * k2 * I2
    return V_out, spikes


def gif(current, dt, t_before=0.0, step=0.001, **parameters):
    """Potentials and spikes of the Mihalas-Niebur neuron, by Euler's method in steps of 0.001 ms."""
    p = np.array(list((GIF | parameters).values()))
    return _gif(np.asarray(current, float), p, dt, t_before, round(dt / step))


def with_action_potentials(V, spikes, dt, top=30.0, width=0.5):
    """The potentials with a triangle up to `top` where each spike begins, as a cell has it and the neuron has not."""
    V, n = V.copy(), max(2, round(width / dt))
    for step, trace in np.argwhere(spikes):
        shape = top - np.abs(np.linspace(-1, 1, n)) * (top - V[step, trace])
        V[step : step + n, trace] = shape[: len(V) - step]
    return V


def steps(heights, dt, t_on, t_off, t_end):
    """Step currents, a trace a height (nA), from t_on to t_off of t_end."""
    t = np.arange(round(t_end / dt)) * dt
    return np.stack([np.where((t >= t_on - 1e-9) & (t < t_off - 1e-9), height, 0.0) for height in heights], axis=1)


def noise(n_trace, dt, t_end, mean, sd, tau=10.0, seed=0):
    """Ornstein-Uhlenbeck currents (nA)."""
    rng, decay, n_step = np.random.default_rng(seed), math.exp(-dt / tau), round(t_end / dt)
    x = rng.standard_normal((n_step, n_trace))
    for k in range(1, n_step):
        x[k] = decay * x[k - 1] + math.sqrt(1 - decay**2) * x[k]
    return mean + sd * x


ESCAPING = {"R": 100.0, "tau": 20.0, "V_rest": -65.0, "V_reset": -50.0, "V_th_inf": -48.0, "a": 0.05, "b": 0.1}
ESCAPING |= {"A1": -0.3, "k1": 0.1, "A2": -0.05, "k2": 0.01, "R1": 0.5, "R2": 1.0, "t_ref": 4.0, "A_th": 12.0}
ESCAPING |= {"width": 1.0, "A_th2": 2.0, "b2": 0.01, "V_i": -50.0, "k_i": 3.0, "R_s": 8.0, "tau_s": 0.4}
ESCAPING |= {"A3": -0.01, "k3": 0.002, "lapse": 0.001, "A_g": 0.004, "k_g": 0.03, "E_g": -75.0}
# With a linear threshold, t_ref, A_th, escape noise and R_s alone.
RECORDED = ESCAPING | {"k_i": 0.0, "A_th2": 0.0, "R1": 1.0, "tau_s": 0.0, "width": 1.5, "A3": 0.0, "lapse": 0.0}
RECORDED["A_g"] = 0.0


@numba.njit
def _escaping(current, p, dt, V_start, chance):
    R, tau, V_rest, V_reset, V_th_inf, a, b, A1, k1, A2, k2, R1, R2, t_ref, A_th = p[:15]
    width, A_th2, b2, V_i, k_i, R_s, tau_s, A3, k3, lapse, A_g, k_g, E_g = p[15:]
    n_ref, slow = round(t_ref / dt), math.exp(-b * dt)
    out = np.empty((4, *current.shape))
    for trace in range(current.shape[1]):
        I_s, since, th, th2, I1, I2, I3, g = current[0, trace], 1 << 30, V_th_inf, 0.0, 0.0, 0.0, 0.0, 0.0
        V = V_start[trace] - R_s * I_s
        th += a / b * (k_i * math.log1p(math.exp((V - V_i) / k_i)) if k_i > 0 else V - V_rest)
        for k in range(len(current)):
            I = current[k, trace]
            I_s = I + (I_s - I) * (math.exp(-dt / tau_s) if tau_s > 0 else 0.0)
            free, distance = since >= n_ref, V - th - th2
            rate = math.exp(distance / width) + lapse if free else 0.0
            spike = free and (-math.expm1(-rate * dt) > chance[k, trace] if len(chance) else distance >= 0)
            out[0, k, trace], out[1, k, trace], out[2, k, trace] = V + R_s * I_s, distance, rate
            out[3, k, trace] = spike
            if since == n_ref:
                I1, I2, I3, g = R1 * I1 + A1, R2 * I2 + A2, I3 + A3, g + A_g
            if spike:
                since, V, th, th2 = 0, V_reset, th + A_th, th2 + A_th2
                if n_ref == 0:
                    I1, I2, I3, g = R1 * I1 + A1, R2 * I2 + A2, I3 + A3, g + A_g
            f = k_i * math.log1p(math.exp((V - V_i) / k_i)) if k_i > 0 else V - V_rest
            th = V_th_inf + (th - V_th_inf) * slow + a * f * (1 - slow) / b
            th2 *= math.exp(-b2 * dt)
            if since >= n_ref:
                V_inf = (V_rest + R * (I + I1 + I2 + I3 + g * E_g)) / (1 + R * g)
                V = V_inf + (V - V_inf) * math.exp(-dt * (1 + R * g) / tau)
            I1, I2, I3, since = I1 * math.exp(-k1 * dt), I2 * math.exp(-k2 * dt), I3 * math.exp(-k3 * dt), since + 1
            g *= math.exp(-k_g * dt)
    return out


def escaping(current, dt, V_start, chance=None, **parameters):
    """V as an electrode records it, V - V_th, escape rate (1/ms) and spikes of a GIF neuron, in steps of dt.

    It fires where V reaches V_th, or where uniform random numbers `chance` (T, n_trace) are below the probability that
    its escape rate gives to a step. All are those of the start of a step, before a spike resets V.
    """
    p = np.array(list((ESCAPING | parameters).values()))
    return _escaping(np.asarray(current, float), p, dt, V_start, np.empty((0, 0)) if chance is None else chance)
