"""What the scripts share: neurons, the E/I network and its task, the fitting machinery, run folders and figures.

A plain number stands for mV, ms, nA, uS or nF, which are consistent: 1 nA = 1 uS mV = 1 nF mV / ms.
"""

import argparse
import csv
import dataclasses
import datetime
import importlib.metadata
import json
import math
import os
import platform
import queue
import shlex
import sys
import threading
import time
import warnings
from pathlib import Path

# Read by the libraries when they are imported. JAX spreads a batch over its devices: on a CPU, each core is made one.
N_CORE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
os.environ.setdefault("JAX_NUM_CPU_DEVICES", str(N_CORE))
# SciPy's matrices are tiny here, and the idle threads of its BLAS spin on the cores that simulate.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Errors come as exceptions; XLA's own log would call each program from the compilation cache one.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import brainevent
import brainpy.state
import brainstate
import braintools
import brainunit as u
import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import scipy.optimize
import scipy.special
import scipy.stats
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# A page is 7 inches wide, a column half of it, and text 7 or 8 points at that size; the colours differ for the
# colour-blind too. Text in a PDF stays text.
WIDTH = 7.0
plt.style.use("tableau-colorblind10")
plt.rcParams.update({"font.size": 8, "axes.titlesize": 8, "legend.fontsize": 7, "xtick.labelsize": 7})
plt.rcParams.update({"ytick.labelsize": 7, "axes.linewidth": 0.6, "legend.frameon": False, "savefig.dpi": 200})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "pdf.fonttype": 42})

# ---- Numerics -------------------------------------------------------------------------------------------------------


@jax.custom_jvp
def exprel(x):
    """(exp(x) - 1) / x, and 1 at 0; value and derivative are accurate to a few units in the last place.

    A series where |x| < 1/2, else exp(x) - 1. A simulation is four times faster than with `brainunit.math.exprel`,
    whose expm1 XLA does not vectorise on a CPU.
    """
    x = jnp.asarray(x)
    return jnp.where(jnp.abs(x) < 0.5, _exprel_series(x, 0), (jnp.exp(x) - 1) / jnp.where(x == 0, 1, x))


def _exprel_jvp(tangent, value, x):
    slope = (jnp.exp(x) - value) / jnp.where(x == 0, 1, x)
    return tangent * jnp.where(jnp.abs(x) < 0.5, _exprel_series(x, 1), slope)


exprel.defjvps(_exprel_jvp)


def _exprel_series(x, derivative):
    k = np.arange(8 if x.dtype == jnp.float32 else 14, -1, -1)  # the next term is below the rounding error
    return jnp.polyval(jnp.asarray((k + 1.0) ** derivative / scipy.special.factorial(k + 1 + derivative), x.dtype), x)


def bernoulli(x):
    """x / (exp(x) - 1), the reciprocal of `exprel`, whose value and derivative overflow nowhere."""
    size = jnp.abs(x)
    return jnp.exp(-size) / exprel(-size) + jax.nn.relu(-x)


def exp_euler(x, drift, rate):
    """Exponential Euler step of dx/dt = drift, with rate = -d(drift)/dx: x + dt drift exprel(-rate dt).

    Exact while all else in drift is constant. The step dt is brainstate's.
    """
    dt = brainstate.environ.get_dt()
    return x + dt * drift * exprel(u.Quantity(-rate * dt).to_decimal())


def relax(x, x_inf, rate):
    """Exponential Euler step of dx/dt = -rate (x - x_inf): `exp_euler` where the steady state x_inf is of order 1."""
    return x_inf + (x - x_inf) * u.math.exp(-rate * brainstate.environ.get_dt())


def is_zero(x):
    """Whether x is known to be 0, which it is not while a gradient or a batch is traced through it."""
    return not isinstance(u.get_magnitude(x), jax.core.Tracer) and not np.any(u.get_magnitude(x))


# ---- Neurons --------------------------------------------------------------------------------------------------------

V_START, GATE_START = braintools.init.Constant(-65.0 * u.mV), braintools.init.ZeroInit()
SURROGATE = braintools.surrogate.ReluGrad(alpha=0.3, width=1.0)


class HH(brainpy.state.Neuron):
    r"""Traub-type Hodgkin-Huxley cell (Traub & Miles 1991; as in Pospischil et al. 2008).

    .. math::

        C \dot V &= -g_{Na} m^3 h (V - E_{Na}) - g_K n^4 (V - E_K) - g_L (V - E_L) + I \\
        \dot x &= \alpha_x (1 - x) - \beta_x x, \quad x = m, h, n, \quad v = V - V_T \\
        \alpha_m &= 1.28 / exprel((13 - v) / 4), \quad \beta_m = 1.4 / exprel((v - 40) / 5) \\
        \alpha_h &= 0.128 \exp((17 - v) / 18), \quad \beta_h = 4 / (1 + \exp((40 - v) / 5)) \\
        \alpha_n &= 0.16 / exprel((15 - v) / 5), \quad \beta_n = 0.5 \exp((10 - v) / 40)

    with v in mV, rates per ms and exprel(x) = (exp(x) - 1) / x; exponential Euler.

    Args:
        in_size: number or shape of the cells.
        gL, gNa, gK: maximal conductances (uS).
        EL, ENa, EK: reversal potentials (mV).
        V_T: shift of the rates along V, which sets the threshold (mV).
        C: membrane capacitance (nF).
        V_th: level whose upward crossing is a spike (mV).
        V_initializer, gate_initializer: V (mV) and m, h, n at the start; by default the paper's -65 mV and 0.
        **kwargs: those of `brainpy.state.Neuron`, such as the surrogate gradient `spk_fun` of the spikes.
    """

    def __init__(
        self,
        in_size,
        gL=0.01 * u.uS,
        gNa=20.0 * u.uS,
        gK=6.0 * u.uS,
        V_T=-60.0 * u.mV,
        EL=-65.0 * u.mV,
        ENa=50.0 * u.mV,
        EK=-90.0 * u.mV,
        C=0.2 * u.nF,
        V_th=0.0 * u.mV,
        V_initializer=V_START,
        gate_initializer=GATE_START,
        **kwargs,
    ):
        super().__init__(in_size, **kwargs)
        constants = dict(gL=gL, gNa=gNa, gK=gK, V_T=V_T, EL=EL, ENa=ENa, EK=EK, C=C, V_th=V_th)
        for key, value in constants.items():
            setattr(self, key, braintools.init.param(value, self.varshape))
        self.V_initializer, self.gate_initializer = V_initializer, gate_initializer

    def init_state(self, batch_size=None, **kwargs):
        self.V = brainstate.HiddenState.init(self.V_initializer, self.varshape, batch_size)
        for gate in "mhn":
            setattr(self, gate, brainstate.HiddenState.init(self.gate_initializer, self.varshape, batch_size))

    def rates(self, V):
        """(alpha, beta) of m, h and n at potential V."""
        v = (V - self.V_T).to_decimal(u.mV)
        m = 1.28 * bernoulli((13 - v) / 4), 1.4 * bernoulli((v - 40) / 5)
        # exp is the published rate; the paper's code has exprel here.
        h = 0.128 * jnp.exp((17 - v) / 18), 4 * jax.nn.sigmoid((v - 40) / 5)
        n = 0.16 * bernoulli((15 - v) / 5), 0.5 * jnp.exp((10 - v) / 40)
        return [(alpha / u.ms, beta / u.ms) for alpha, beta in (m, h, n)]

    def update(self, x=0.0 * u.nA):
        """One step under the current x (nA). Returns 1 where V crosses V_th upwards during the step, else 0."""
        V, m, h, n = self.V.value, self.m.value, self.h.value, self.n.value
        gNa, gK = self.gNa * m**3 * h, self.gK * n**4
        I = self.sum_current_inputs(x, V) - gNa * (V - self.ENa) - gK * (V - self.EK) - self.gL * (V - self.EL)
        self.V.value = self.sum_delta_inputs(exp_euler(V, I / self.C, (gNa + gK + self.gL) / self.C))
        for gate, (alpha, beta) in zip((self.m, self.h, self.n), self.rates(V), strict=True):
            gate.value = relax(gate.value, alpha / (alpha + beta), alpha + beta)
        return self.get_spike(self.V.value) * (1 - self.get_spike(V))

    def get_spike(self, V=None):
        """1 where V (by default the present one) is at least V_th, with the surrogate gradient `spk_fun`."""
        V = self.V.value if V is None else V
        return self.spk_fun((V - self.V_th).to_decimal(u.mV))


class GIF(brainpy.state.Neuron):
    r"""Generalised integrate-and-fire neuron (Mihalas & Niebur 2009).

    .. math::

        \tau \dot V &= -(V - V_{rest}) + R (I + I_1 + I_2), \quad \dot I_1 = -k_1 I_1, \quad \dot I_2 = -k_2 I_2 \\
        \dot V_{th} &= a (V - V_{rest}) - b (V_{th} - V_{th,inf})

    A step emits a spike if V >= V_th at its start; resets I_j -> R_j I_j + A_j and V -> V_reset (`spk_reset` 'hard') or
    V - V_th ('soft'); floors V_th at V_th_reset; and then integrates by exponential Euler. The surrogate gradient
    `spk_fun` acts on (V - V_th) / |V_th|. What cannot change is not integrated: V_th if a = b = 0, and I_j if A_j = 0.

    Args:
        in_size: number or shape of the neurons.
        a, b, k1, k2: rates of threshold and currents (1/ms).
        V_rest, V_reset, V_th_inf, V_th_reset: potentials (mV); V starts at V_rest, V_th at V_th_inf, I_1 and I_2 at 0.
        R, tau: membrane resistance (Mohm) and time constant (ms).
        R1, R2, A1, A2: factor and increment (nA) of I_1 and I_2 at a spike.
        spk_fun, spk_reset, name: as in `brainpy.state.Neuron`; by default the paper's surrogate.

    Potentials, R and currents may be numbers without unit, as long as all of them are.
    """

    def __init__(
        self,
        in_size,
        a=0.005 / u.ms,
        b=0.01 / u.ms,
        k1=0.2 / u.ms,
        k2=0.02 / u.ms,
        V_rest=-70.0 * u.mV,
        V_reset=-70.0 * u.mV,
        V_th_inf=-50.0 * u.mV,
        V_th_reset=-60.0 * u.mV,
        R=20.0 * u.Mohm,
        tau=20.0 * u.ms,
        R1=0.0,
        R2=1.0,
        A1=0.0 * u.nA,
        A2=0.0 * u.nA,
        spk_fun=SURROGATE,
        spk_reset="hard",
        name=None,
    ):
        super().__init__(in_size, spk_fun=spk_fun, spk_reset=spk_reset, name=name)
        constants = dict(a=a, b=b, k1=k1, k2=k2, V_rest=V_rest, V_reset=V_reset, V_th_inf=V_th_inf, tau=tau)
        constants |= dict(V_th_reset=V_th_reset, R=R, R1=R1, R2=R2, A1=A1, A2=A2)
        for key, value in constants.items():
            setattr(self, key, braintools.init.param(value, self.varshape))
        self.changes = {"V_th": not is_zero(a) or not is_zero(b), "I1": not is_zero(A1), "I2": not is_zero(A2)}

    def init_state(self, batch_size=None, **kwargs):
        def state(value):
            return brainstate.HiddenState.init(braintools.init.Constant(value), self.varshape, batch_size)

        self.V, self.V_th, self.I1, self.I2 = map(state, (self.V_rest, self.V_th_inf, 0 * self.A1, 0 * self.A2))

    def get_spike(self):
        """1 where V >= V_th, else 0, with the surrogate gradient."""
        V_th = self.V_th.value
        return self.spk_fun(u.get_magnitude((self.V.value - V_th) / u.math.abs(V_th)))

    def update(self, x=0.0 * u.nA, spike=None, g=None):
        """One step under the current x - g V; the spikes of its start, or those given, which then drive the reset.

        x is in nA, and g a conductance in the unit of 1 / R.
        """
        spike = self.get_spike() if spike is None else spike
        g = 0 / self.R if g is None else g
        V, V_th = self.V.value, u.math.maximum(self.V_th.value, self.V_th_reset)
        V = V + spike * (self.V_reset - V) if self.spk_reset == "hard" else V - spike * self.V_th.value
        I = self.sum_current_inputs(x, V)
        for name, factor, increment, k in (("I1", self.R1, self.A1, self.k1), ("I2", self.R2, self.A2, self.k2)):
            if self.changes[name]:
                I_j = getattr(self, name).value
                I_j = I_j + spike * ((factor - 1) * I_j + increment)
                I = I + I_j
                getattr(self, name).value = exp_euler(I_j, -k * I_j, k)
        drift = (self.R * (I - g * V) - (V - self.V_rest)) / self.tau
        self.V.value = self.sum_delta_inputs(exp_euler(V, drift, (1 + self.R * g) / self.tau))
        if self.changes["V_th"]:
            self.V_th.value = exp_euler(V_th, self.a * (V - self.V_rest) - self.b * (V_th - self.V_th_inf), self.b)
        return spike


def simulate(neuron, parameters, current, dt):
    """Response of single cells to currents, as one compiled scan.

    Args:
        neuron: class of the cell, called as `neuron(n_trace, **parameters)`.
        parameters: {name: value with unit}. Under `jax.vmap` over this pytree many parameter sets are one program, and
            `jax.jacfwd` or `jax.grad` differentiate with respect to it.
        current: shape (T, n_trace) (nA), one cell a trace.
        dt: time step (ms).

    Returns:
        V (mV) and spikes, each (T, n_trace): V[k] at time k dt, before current[k] acts; spikes[k] of step k.
    """
    cell = neuron(current.shape[1:], **parameters)
    with brainstate.environ.context(dt=dt):
        cell.init_state()
        return brainstate.transform.for_loop(lambda x: (cell.V.value, cell.update(x)), current)


# ---- Task -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class EvidenceAccumulation:
    """Evidence accumulation (Morcos & Harvey 2016): cues on the left or right, a delay, and then which side had more.

    A trial is n_cue cues of t_cue, each after t_interval, then t_delay and t_recall. It is biased to the left or to the
    right with probability 1/2, and each cue is on the biased side with probability p_bias. The n_in inputs are four
    equal groups of Bernoulli neurons: left and right, which fire at rate_cue during cues of their side; recall, at
    rate_recall during recall; and noise, at rate_noise always. Called with a JAX key and the number of trials, it gives

        inputs (n_step, batch, n_in), bool; labels (batch,), 0 left, 1 right; evidence (batch, n_cue), -1 left, 1 right

    and the same for the same key. Times are in ms and rates in Hz; n_cue is odd, so that there is no tie, and n_in a
    multiple of 4.
    """

    n_cue: int = 7
    t_cue: float = 100.0
    t_interval: float = 50.0
    t_delay: float = 1000.0
    t_recall: float = 150.0
    rate_cue: float = 40.0
    rate_recall: float = 40.0
    rate_noise: float = 10.0
    p_bias: float = 0.7
    n_in: int = 100
    dt: float = 1.0

    @property
    def periods(self):
        """{name: slice of steps} of the cues, with the intervals before them, the delay and recall."""
        delay = self.n_cue * (self._steps(self.t_interval) + self._steps(self.t_cue))
        recall = delay + self._steps(self.t_delay)
        end = recall + self._steps(self.t_recall)
        return dict(cues=slice(0, delay), delay=slice(delay, recall), recall=slice(recall, end))

    @property
    def n_step(self):
        return self.periods["recall"].stop

    def _steps(self, t):
        return round(t / self.dt)

    def trials(self, keys):
        """Labels and evidence of the trials whose keys are given."""

        def trial(key):
            bias, cues = jax.random.split(key)
            side = jnp.where(jax.random.bernoulli(bias), 1, -1)
            evidence = side * jnp.where(jax.random.bernoulli(cues, self.p_bias, (self.n_cue,)), 1, -1)
            return (evidence.sum() > 0).astype(jnp.int32), evidence

        return jax.vmap(trial)(keys)

    def spikes(self, keys, evidence, step):
        """Inputs (batch, n_in) at one step of those trials, each a function of its trial's key and of the step."""
        n_interval, n_cue_steps = self._steps(self.t_interval), self._steps(self.t_cue)
        cue, phase = step // (n_interval + n_cue_steps), step % (n_interval + n_cue_steps)
        in_cue, recall = (cue < self.n_cue) & (phase >= n_interval), step >= self.periods["recall"].start
        rate = jnp.where(in_cue, self.rate_cue, jnp.where(recall, self.rate_recall, 0.0))

        def trial(key, evidence):
            side = jnp.where(evidence[jnp.minimum(cue, self.n_cue - 1)] > 0, 1, 0)
            # Of the first three groups one is active at a time, and they share the random numbers. The keys of 0 and 1
            # are those of split(key), which `trials` uses.
            draws = jax.random.uniform(jax.random.fold_in(key, step + 2), (2, self.n_in // 4))
            active = (jnp.arange(3) == jnp.where(in_cue, side, 2))[:, None] & (draws[0] < rate * self.dt / 1000)
            return jnp.append(active, draws[1:] < self.rate_noise * self.dt / 1000, axis=0).ravel()

        return jax.vmap(trial)(keys, evidence)

    def inputs(self, keys, evidence, steps):
        """Inputs (len(steps), batch, n_in) at those steps."""
        return jax.vmap(lambda step: self.spikes(keys, evidence, step))(steps)

    def __call__(self, key, batch):
        keys = jax.random.split(key, batch)
        labels, evidence = self.trials(keys)
        return self.inputs(keys, evidence, jnp.arange(self.n_step)), labels, evidence


# ---- Network --------------------------------------------------------------------------------------------------------


def connect(conn_method, n_exc, n_inh, seed, p=0.1, sigma=20.0):
    """Which neurons the excitatory and the inhibitory ones project to.

    'dense': all, themselves included, as in a linear layer. The others have no autapses: in 'rand' each neuron has
    round(p n_rec) different targets out of all others, as in the paper's Figure 3. In 'gaussian' that holds for the
    inhibitory ones, while excitatory neurons project to each other neuron with probability exp(-d^2 / (2 sigma^2)).
    The n_exc neurons, and also the n_inh, lie evenly on a ring of length n_rec = n_exc + n_inh, and d is the distance
    along it.

    Returns:
        {"exc": (indptr, indices), "inh": ...}: the targets of neuron i of its population are
        indices[indptr[i] : indptr[i + 1]], in ascending order; None for all to all.
    """
    n_rec = n_exc + n_inh
    n_target = max(1, round(p * n_rec))
    place = np.append(np.arange(n_exc) * n_rec / n_exc, np.arange(n_inh) * n_rec / n_inh)

    def targets(i, by_distance, rng):
        if by_distance:
            distance = np.abs(place - place[i])
            probability = np.exp(-0.5 * (np.minimum(distance, n_rec - distance) / sigma) ** 2)
            chosen = np.flatnonzero(rng.random(n_rec) < probability)
            return chosen[chosen != i]
        chosen = np.sort(rng.choice(n_rec - 1, n_target, replace=False))
        return chosen + (chosen >= i)

    if conn_method == "dense":
        return {"exc": None, "inh": None}
    connections, rng = {}, np.random.default_rng(seed)
    for name, neurons in (("exc", range(n_exc)), ("inh", range(n_exc, n_rec))):
        rows = [targets(i, conn_method == "gaussian" and name == "exc", rng).astype(np.int32) for i in neurons]
        connections[name] = np.cumsum([0, *map(len, rows)], dtype=np.int32), np.concatenate(rows)
    return connections


def initial_weights(key, n_in, n_out, n_exc, n_inh, connections, ff_scale=1.0, rec_scale=0.5, w_ei_ratio=4.0):
    """Weights {"in", "exc", "inh", "out"}: normal, cut at 2 s.d., of variance scale / number of inputs to a neuron.

    The scale is ff_scale for "in", rec_scale for "exc", w_ei_ratio rec_scale for "inh" and 2 for "out" (Kaiming). The
    shapes are (n_pre, n_post) or, where `connections` lists them, the number of connections.
    """
    n_rec, weights = n_exc + n_inh, {}
    shapes = {"in": (n_in, n_rec), "exc": (n_exc, n_rec), "inh": (n_inh, n_rec), "out": (n_rec, n_out)}
    scales = {"in": ff_scale, "exc": rec_scale, "inh": w_ei_ratio * rec_scale, "out": 2.0}
    for name, subkey in zip(shapes, jax.random.split(key, 4), strict=True):
        sparse = connections.get(name)
        shape = shapes[name] if sparse is None else sparse[1].shape
        unit_variance = jax.random.truncated_normal(subkey, -2, 2, shape) / scipy.stats.truncnorm.std(-2, 2)
        n_input = math.prod(shape) / shapes[name][1]
        weights[name] = unit_variance * math.sqrt(scales[name] / n_input)
    return weights


class EINetwork(brainstate.nn.Module):
    r"""Excitatory and inhibitory neurons, conductance-based synapses and a leaky readout (Wang et al. 2024, App. F).

    .. math::

        \tau_{neu} \dot V &= -V + g_E (E_{exc} - V) + g_I (E_{inh} - V) + I_2, \quad \tau_{a,j} \dot I_2 = -I_2 \\
        \tau_{syn} \dot g_E &= -g_E, \quad \tau_{syn} \dot g_I = -g_I, \quad \tau_{out} \dot r = -r

    all dimensionless. A neuron is a `GIF` with V_rest = 0, V_th = 1, V -> V - V_th and I_2 -> I_2 - beta at a spike. In
    a step, the spikes s of the potentials at its start and the input spikes x add |W_in| x + |W_exc| s_exc to g_E,
    |W_inh| s_inh to g_I (Dale's law) and W_out s to r, after these have decayed; then the neurons make their step.

    `update` is the step of the network; `update_neurons` is what in it is local to a neuron, given what reaches it, and
    `local_step` the same as a function of the neurons' states. Weights are no states of the module but arguments of
    `synapses`: one network serves gradients, devices and kernels.

    Args:
        n_in, n_exc, n_inh, n_out: numbers of inputs, of neurons, the excitatory ones first, and of outputs.
        tau_a: time constant of adaptation, of all or of each neuron (ms).
        tau_neu, tau_syn, tau_out: time constants (ms).
        beta: strength of adaptation.
        E_exc, E_inh: reversal potentials.
    """

    def __init__(
        self,
        n_in=100,
        n_exc=160,
        n_inh=40,
        n_out=2,
        tau_a=1000.0 * u.ms,
        tau_neu=100.0 * u.ms,
        tau_syn=10.0 * u.ms,
        tau_out=10.0 * u.ms,
        beta=1.0,
        E_exc=3.0,
        E_inh=-3.0,
    ):
        super().__init__()
        self.n_in, self.n_exc, self.n_inh, self.n_out, self.n_rec = n_in, n_exc, n_inh, n_out, n_exc + n_inh
        self.tau_syn, self.tau_out, self.E_exc, self.E_inh = tau_syn, tau_out, E_exc, E_inh
        unitless = dict(V_rest=0.0, V_reset=0.0, V_th_inf=1.0, V_th_reset=1.0, R=1.0, A1=0.0, A2=-beta, R1=1.0, R2=1.0)
        self.neurons = GIF(self.n_rec, a=0 / u.ms, b=0 / u.ms, k2=1 / tau_a, tau=tau_neu, spk_reset="soft", **unitless)

    @property
    def sizes(self):
        return dict(exc=self.n_exc, inh=self.n_inh)

    @property
    def local_states(self):
        return dict(V=self.neurons.V, I2=self.neurons.I2, g_exc=self.g_exc, g_inh=self.g_inh)

    def init_state(self, batch_size=None, **kwargs):
        def zeros(n):
            return brainstate.HiddenState.init(braintools.init.ZeroInit(), (n,), batch_size)

        self.neurons.init_state(batch_size)
        self.g_exc, self.g_inh, self.r = zeros(self.n_rec), zeros(self.n_rec), zeros(self.n_out)

    def pairs(self, connections):
        """{name: (pre, post)}: the neurons at the two ends of each connection that is listed; None for all to all."""
        pairs = dict.fromkeys(connections)
        for name, listed in connections.items():
            if listed is not None:
                indptr, post = map(jnp.asarray, listed)
                pre = jnp.arange(self.sizes[name], dtype=post.dtype)
                pairs[name] = jnp.repeat(pre, jnp.diff(indptr), total_repeat_length=len(post)), post
        return pairs

    def full_matrices(self, weights, connections):
        """Weights as matrices (n_pre, n_post), with 0 where there is no connection."""
        matrices = dict(weights)
        for name, pair in self.pairs(connections).items():
            if pair is not None:
                zeros = jnp.zeros((self.sizes[name], self.n_rec), weights[name].dtype)
                matrices[name] = zeros.at[pair].set(weights[name], unique_indices=True)
        return matrices

    def synapses(self, weights, connections, event_driven=False):
        """Matrices (n_pre, n_post) that act on spikes: |W|, and W_out.

        Connections that are listed become a sparse matrix where `event_driven`, whose product costs what the spikes
        that occur cost, but which cannot be made under `jax.jit`; and else a full one with zeros, whose product and
        gradient together are faster at hundreds of neurons.
        """
        matrices = {name: w if name == "out" else jnp.abs(w) for name, w in weights.items()}
        if not event_driven:
            return self.full_matrices(matrices, connections)
        for name, listed in connections.items():
            if listed is not None:
                indptr, indices = map(jnp.asarray, listed)
                csr = brainevent.CSR(matrices[name], indices, indptr, shape=(self.sizes[name], self.n_rec))
                brainevent.BinaryArray(jnp.zeros((1, self.sizes[name]))) @ csr  # has it make the work space
                matrices[name] = dict(data=csr.data, indices=indices, indptr=indptr, buffers=csr.buffers)
        return matrices

    def update(self, synapses, x, local=False):
        """One step under input spikes x (batch, n_in). Returns the spikes (batch, n_rec) of its start.

        With `local`, gradients are those of D-RTRL: they pass neither from a neuron to others, nor from r to r.
        """
        spikes = self.neurons.get_spike()
        sent, r = jax.lax.stop_gradient((spikes, self.r.value)) if local else (spikes, self.r.value)
        self.update_neurons(*self.receive(synapses, x, sent), spikes)
        self.r.value = relax(r, 0.0, 1 / self.tau_out) + spikes @ synapses["out"]
        return spikes

    def local_step(self, synapses, states, x, push_exc=0.0, push_inh=0.0):
        """The neurons' part of `update` as a function of their states {"V", "I2", "g_exc", "g_inh"}.

        Its derivatives are local to a neuron: what comes from others is held constant. The pushes are added to the
        increments of the conductances, for the derivative with respect to these.

        Returns:
            spikes (batch, n_rec) of the start of the step, and the states at its end.
        """
        with brainstate.StateTraceStack():  # lets the states hold what JAX traces
            for name, value in states.items():
                self.local_states[name].value = value
            spikes = self.neurons.get_spike()
            x_exc, x_inh = self.receive(synapses, x, jax.lax.stop_gradient(spikes))
            self.update_neurons(x_exc + push_exc, x_inh + push_inh, spikes)
            return spikes, {name: state.value for name, state in self.local_states.items()}

    def receive(self, synapses, x, spikes):
        """Increments (batch, n_rec) of the excitatory and inhibitory conductances by input and recurrent spikes."""
        x_exc = x.astype(spikes.dtype) @ synapses["in"] + self._propagate(spikes[:, : self.n_exc], synapses["exc"])
        return x_exc, self._propagate(spikes[:, self.n_exc :], synapses["inh"])

    def mean_of_populations(self, x):
        """Means (2,) of x (batch, n_rec) over the excitatory and over the inhibitory neurons."""
        return jnp.stack([x[:, : self.n_exc].mean(), x[:, self.n_exc :].mean()])

    def update_neurons(self, x_exc, x_inh, spikes):
        """The step of each neuron, given the increments (batch, n_rec) of its conductances, and its spikes."""
        g_exc = self.g_exc.value = relax(self.g_exc.value, 0.0, 1 / self.tau_syn) + x_exc
        g_inh = self.g_inh.value = relax(self.g_inh.value, 0.0, 1 / self.tau_syn) + x_inh
        self.neurons.update(g_exc * self.E_exc + g_inh * self.E_inh, spikes, g_exc + g_inh)

    def _propagate(self, spikes, matrix):
        if isinstance(matrix, dict):
            # Made here, as a CSR that is the argument of a program has its indices as constants of it.
            matrix = brainevent.CSR(**matrix, shape=(spikes.shape[1], self.n_rec))
            return brainevent.BinaryArray(spikes) @ matrix
        return spikes @ matrix


# ---- Spike trains ---------------------------------------------------------------------------------------------------


def detect_spikes(V, level, rearm=10.0):
    """Upward crossings of a level by recorded potentials.

    The next one counts once V has been `rearm` below the level: noise does not make one spike several.

    Args:
        V: shape (T, n_trace) (mV).
        level, rearm: (mV).

    Returns:
        Array (T, n_trace) of 0 and 1; as in `simulate`, entry k is for a crossing between samples k and k + 1.
    """
    sample = np.arange(len(V))[:, None]
    last_above = np.maximum.accumulate(np.where(level <= V, sample, -1))
    last_below = np.maximum.accumulate(np.where(level - rearm > V, sample, -1))
    armed = (last_below > last_above) | (last_above < 0)
    return np.append(armed[:-1] & (level <= V[1:]), np.zeros_like(armed[:1]), axis=0).astype(float)


def van_rossum_distance(model, data, dt, tau):
    """Squared distance of spike trains (van Rossum 2001), the mean over traces of (1 / tau) sum_t (f - g)^2 dt.

    f and g are the trains filtered with exp(-t / tau). A spike against none costs 1/2, less what the end cuts off.

    Args:
        model, data: spike trains, shape (T, n_trace); those of the model may be soft.
        dt, tau: time step and time constant (ms).

    Returns:
        A scalar, differentiable in both trains.
    """
    ratio = dt.to_decimal(u.ms) / tau.to_decimal(u.ms)
    decay = math.exp(-ratio)

    def step(filtered, x):
        filtered = decay * filtered + x
        return filtered, filtered

    _, filtered = jax.lax.scan(step, jnp.zeros_like(model[0] - data[0]), model - data)
    return ratio * jnp.mean(jnp.sum(filtered**2, axis=0))


def coincidence_factor(model, data, dt, delta=4.0 * u.ms):
    """Coincidence factor Gamma of Jolivet et al. (2008) between two spike trains.

    Gamma = (N_coinc - 2 r_model delta N_data) / (N_data + N_model) * 2 / (1 - 2 r_model delta)

    is 1 for trains that agree within delta, 0 for what a Poisson train of the model's rate r_model would reach by
    chance, and negative below. A spike takes part in at most one coincidence.

    Args:
        model, data: spike trains, shape (T,), 0 or 1.
        dt, delta: time step and one side of the coincidence window (ms).

    Returns:
        A float; NaN where Gamma is undefined: no spike in either train, or 2 r_model delta >= 1.
    """
    window = delta.to_decimal(u.ms) / dt.to_decimal(u.ms)
    t_model, t_data = np.flatnonzero(model), np.flatnonzero(data)
    chance = 2 * window * len(t_model) / len(model)
    if len(t_model) + len(t_data) == 0 or chance >= 1:
        return math.nan
    n_coinc = i = j = 0
    while i < len(t_model) and j < len(t_data):
        lag = t_model[i] - t_data[j]
        match = abs(lag) <= window + 1e-6
        n_coinc, i, j = n_coinc + match, i + (match or lag < 0), j + (match or lag > 0)
    return float((n_coinc - chance * len(t_data)) / (len(t_model) + len(t_data)) * 2 / (1 - chance))


# ---- Fitting --------------------------------------------------------------------------------------------------------

METHODS = ("L-BFGS-B", "DE", "PSO", "TwoPointsDE", "CMA", "bayesian", "random")
GRADIENT_BLOCKS = (10, 50)  # parameter sets on each device
V_RESOLUTION = 0.01  # mV; no recording is taken to be more exact
# Tolerances below what float32 resolves: a start ends where its line search finds nothing lower.
LBFGSB_OPTIONS = {"maxiter": 1000, "maxfun": 20000, "ftol": 1e-12, "gtol": 1e-8}


@dataclasses.dataclass
class Start:
    """One start of a fit and the best point it has seen, both in [0, 1]^k."""

    initial: np.ndarray | None
    x: np.ndarray
    loss: float = math.inf
    n_gradients: int = 0
    flat: bool = False  # the gradient at the initial point is exactly zero
    status: str = "interrupted"


class FitProblem:
    """A loss over a box of parameters, evaluated for many parameter sets at once and recorded.

    A set is x in [0, 1]^k, with parameter = low + x (high - low). Losses are one compiled program, a batch of n_sample
    sets split over the devices. Gradients are in forward mode: k parameters cost about k simulations more and store
    nothing, where reverse mode stores the trajectory. They are computed in padded blocks of one of two sizes, so that
    the few starts of a fit that take long do not cost what all of them do.

    Args:
        model: (parameters, data) -> array (..., n_trace), such as potentials (T, n_trace), or a pytree of them.
        loss: (output of the model, data) -> scalar.
        bounds: {name: Quantity [low, high]}.
        data: dict of arrays (T, n_trace) and of scalars, arguments of the compiled programs.
        n_sample: parameter sets that wait for evaluation at the same time.
        devices: JAX devices.
        trajectories: as model, each array (T, n_trace), where the model does not return these itself: to find NaN.
    """

    def __init__(self, model, loss, bounds, data, n_sample, devices, trajectories=None):
        self.model, self.loss, self.n_sample, self.trajectories = model, loss, n_sample, trajectories or model
        self.bounds, self.devices = bounds, devices
        self.units = {name: bound.unit for name, bound in bounds.items()}
        self.low, self.high = np.array([bound.mantissa for bound in bounds.values()], dtype=np.float64).T
        self.mesh = Mesh(np.array(devices), ("batch",))
        self.programs, self.seconds = {}, {"compile": 0.0, "run": 0.0}
        self.set_data(**data)
        self.reset()

    def reset(self):
        """Begin another fit, with the programs that are compiled."""
        self.n_simulations = self.n_gradients = 0
        self.history, self.on_round, self.interrupted = [], lambda row: None, False
        self.best_x, self.best_loss = np.full(len(self.units), 0.5), math.inf
        self.begin = time.perf_counter() - self.seconds["compile"]

    def set_data(self, **data):
        """Set the data, of the shapes that they had, which compiles nothing; the best point is forgotten."""
        self.data = {name: np.asarray(x, jnp.result_type(float)) for name, x in data.items()}
        self.device_data = jax.device_put(self.data, NamedSharding(self.mesh, PartitionSpec()))
        self.best_x, self.best_loss = np.full(len(self.units), 0.5), math.inf

    def values(self, x):
        """{name: value in the unit of its bounds} at x, never outside the bounds."""
        values = np.clip(self.low + np.asarray(x, np.float64) * (self.high - self.low), self.low, self.high)
        return dict(zip(self.units, values.tolist(), strict=True))

    def parameters(self, X):
        """{name: values with unit} at the rows of X (n, k), or at one x (k,), which may be traced."""
        values = jnp.asarray(self.low) + X * jnp.asarray(self.high - self.low)
        return {name: value * unit for (name, unit), value in zip(self.units.items(), values.T, strict=True)}

    def _losses(self, X, data):
        """The model runs on the traces of all sets as one flat population: XLA vectorises that best on a CPU."""
        n_trace = next(x.shape[1] for x in data.values() if x.ndim)
        population = {name: jnp.tile(x, len(X)) if x.ndim else x for name, x in data.items()}
        output = self.model(self.parameters(jnp.repeat(X, n_trace, axis=0)), population)
        output = jax.tree.map(lambda y: y.reshape(*y.shape[:-1], len(X), n_trace), output)
        return jax.vmap(self.loss, (-2, None))(output, data)

    def _losses_and_grads(self, X, data):
        def along(direction):
            return jax.jvp(lambda X: self._losses(X, data), (X,), (jnp.broadcast_to(direction, X.shape),))

        return jax.vmap(along, out_axes=(None, -1))(jnp.eye(X.shape[1]))

    def _program(self, gradient, n_block):
        if (gradient, n_block) not in self.programs:
            start = time.perf_counter()
            split, copied = PartitionSpec("batch"), PartitionSpec()
            specs = dict(mesh=self.mesh, in_specs=(split, copied), out_specs=split, check_vma=False)
            function = jax.shard_map(self._losses_and_grads if gradient else self._losses, **specs)
            X = np.zeros((n_block, len(self.units)), jnp.result_type(float))
            self.programs[gradient, n_block] = jax.jit(function).lower(X, self.device_data).compile()
            self.seconds["compile"] += time.perf_counter() - start
        return self.programs[gradient, n_block]

    def evaluate(self, X, gradient=False):
        """Losses (n,), or losses and gradients (n, k), at the rows of X (n, k); a round of the history."""
        n_all = -(-self.n_sample // self.mesh.size)
        small, large = (min(size, n_all) for size in GRADIENT_BLOCKS)
        n_block = self.mesh.size * (n_all if not gradient else small if len(X) <= 3 * small * self.mesh.size else large)
        program = self._program(gradient, n_block)
        padded = np.pad(X, ((0, -len(X) % n_block), (0, 0)), mode="edge").astype(jnp.result_type(float))
        out = [program(block, self.device_data) for block in padded.reshape(-1, n_block, len(self.units))]
        out = jax.tree.map(lambda *blocks: np.concatenate(blocks)[: len(X)].astype(np.float64), *out)
        self._record(X, out[0] if gradient else out, gradient)
        return out

    def _record(self, X, losses, gradient):
        self.n_simulations += len(X)
        self.n_gradients += len(X) * gradient
        best = np.argmin(np.where(np.isfinite(losses), losses, math.inf))
        if losses[best] < self.best_loss:
            self.best_x, self.best_loss = X[best].copy(), float(losses[best])
        row = dict(round=len(self.history) + 1, active=len(X), n_simulations=self.n_simulations)
        self.seconds["run"] = time.perf_counter() - self.begin - self.seconds["compile"]
        row |= dict(n_gradients=self.n_gradients, seconds=self.seconds["run"], best_loss=self.best_loss)
        row |= self.values(self.best_x) | {name: float(x) for name, x in self.data.items() if x.ndim == 0}
        self.history.append(row)
        self.on_round(row)

    def name_nan(self, x):
        """Where the model stops being finite at x, in words."""
        outputs = jax.tree.leaves(jax.jit(self.trajectories)(self.parameters(jnp.asarray(x)), self.data))
        where = ", ".join(f"{name} = {value:.6g} {self.units[name]}" for name, value in self.values(x).items())
        finite = np.all([np.isfinite(output) for output in outputs], axis=0)
        if finite.all():
            return f"NaN in the loss or its gradient at {where}"
        step, trace = np.argwhere(~finite)[0]
        return f"NaN at time step {step} of trace {trace} at {where}"


def lbfgsb_multistart(problem, x0, options=LBFGSB_OPTIONS):
    """Minimise from every row of x0 (n, k) with SciPy's L-BFGS-B and its options, all starts advancing together.

    Each start is an ordinary `scipy.optimize.minimize` in a thread that sleeps while it waits for a loss and gradient;
    the points that all of them wait for are evaluated in one round. Its iterates are those it would have alone.

    Returns:
        A `Start` a row. NaN ends a start and KeyboardInterrupt all; the best points seen are kept.
    """
    starts, failures = [Start(x, x) for x in x0], []
    requests, replies = queue.SimpleQueue(), [queue.SimpleQueue() for _ in starts]

    def run(i, start):
        def loss_and_grad(x):
            requests.put((i, x.copy()))
            loss, grad = replies[i].get()
            start.flat = start.flat if start.n_gradients else not grad.any()
            start.n_gradients += 1
            if loss < start.loss:
                start.x, start.loss = x.copy(), float(loss)
            if not np.isfinite([loss, *grad]).all():
                raise FloatingPointError(problem.name_nan(x))
            return loss, grad

        try:
            box = [(0.0, 1.0)] * len(start.x)
            start.status = scipy.optimize.minimize(
                loss_and_grad, start.x, jac=True, method="L-BFGS-B", bounds=box, options=options
            ).message
        except FloatingPointError as error:
            start.status = str(error)
        except Exception as error:
            failures.append(error)
        requests.put((i, None))

    for i, start in enumerate(starts):
        threading.Thread(target=run, args=(i, start), daemon=True).start()
    active, waiting = len(starts), {}
    try:
        while active and not failures:
            i, x = requests.get()
            if x is None:
                active -= 1
            else:
                waiting[i] = x
            if active and len(waiting) == active:
                points, waiting = sorted(waiting.items()), {}
                losses, grads = problem.evaluate(np.stack([x for _, x in points]), gradient=True)
                for (i, _), loss, grad in zip(points, losses, grads, strict=True):
                    replies[i].put((loss, grad))
    except KeyboardInterrupt:
        problem.interrupted = True  # the threads sleep on, and end with the process
    if failures:
        raise failures[0]
    return starts


def derivative_free(problem, method, n_iter, seed, min_seconds=0.0):
    """Minimise in n_iter rounds of n_sample evaluations, each round one call, and in more until min_seconds are over.

    DE, PSO, TwoPointsDE and CMA are Nevergrad's, as they come; bayesian is scikit-optimize's Gaussian process
    with expected improvement and constant-liar batches; random draws uniformly from the box. A loss that is not finite
    counts as the largest finite one.

    Returns:
        A list of one `Start`, without initial point: the best set of all rounds.
    """
    status, largest, first_bad, n_bad, box = "budget used", -math.inf, "", 0, [(0.0, 1.0)] * len(problem.units)

    def losses_at(X):
        nonlocal largest, first_bad, n_bad
        X = np.asarray(X)
        losses = problem.evaluate(X)
        finite = np.isfinite(losses)
        largest = losses[finite].max(initial=largest)
        n_bad += int(np.sum(~finite))
        if not finite.all() and not first_bad:
            first_bad = problem.name_nan(X[~finite][0])
        return np.where(finite, losses, largest if math.isfinite(largest) else 1e30)

    def rounds():
        n = 0
        while n < n_iter or problem.seconds["run"] < min_seconds:
            yield n
            n += 1

    try:
        if method == "random":
            rng = np.random.default_rng(seed)
            for _ in rounds():
                losses_at(rng.random((problem.n_sample, len(box))))
        elif method == "bayesian":
            import skopt  # here because the import takes seconds

            optimiser = skopt.Optimizer(box, n_initial_points=problem.n_sample, acq_func="EI", random_state=seed)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "The objective has been evaluated")  # at a corner of the box
                for _ in rounds():
                    X = optimiser.ask(n_points=problem.n_sample)
                    optimiser.tell(X, losses_at(X).tolist())
        else:
            import nevergrad

            unit_box = nevergrad.p.Array(shape=(len(box),), lower=0.0, upper=1.0)
            unit_box.random_state.seed(seed)
            budget = dict(budget=n_iter * problem.n_sample, num_workers=problem.n_sample)
            optimiser = nevergrad.optimizers.registry[method](unit_box, **budget)
            for _ in rounds():
                candidates = [optimiser.ask() for _ in range(problem.n_sample)]
                losses = losses_at([candidate.value for candidate in candidates])
                for candidate, loss in zip(candidates, losses, strict=True):
                    optimiser.tell(candidate, float(loss))
    except KeyboardInterrupt:
        problem.interrupted, status = True, Start.status
    if n_bad:
        status += f"; {n_bad} losses were not finite, first {first_bad}"
    return [Start(None, problem.best_x, problem.best_loss, status=status)]


def random_starts(problem, seed):
    """Starts (n_sample, k), uniform in the box."""
    return np.random.default_rng(seed).random((problem.n_sample, len(problem.units)))


def minimise(problem, method, n_iter, seed, multistart=None, min_seconds=0.0):
    """Fit by one of METHODS, with a progress bar; the `Start`s of the fit.

    L-BFGS-B is multistart(problem, x0), by default `lbfgsb_multistart`; for the others see `derivative_free`.
    """
    total = None if method == "L-BFGS-B" else n_iter * problem.n_sample
    with tqdm(total=total, desc=method, unit=" simulations", leave=False, disable=None) as bar:

        def on_round(row):
            bar.set_postfix(best_loss=f"{row['best_loss']:.3g}", active=row["active"], refresh=False)
            bar.update(row["n_simulations"] - bar.n)

        problem.on_round = on_round
        if method == "L-BFGS-B":
            return (multistart or lbfgsb_multistart)(problem, random_starts(problem, seed))
        return derivative_free(problem, method, n_iter, seed, min_seconds)


def identifiability(problem, predictions, clusters=None):
    """What the data determine at the best point: Fisher information, standard errors, undetermined directions.

    In the coordinates x of the box, with J = (dy / dx) / s the derivatives of the predictions y in units of their noise
    s, and residuals r = y - target, whose root mean square is taken for s:

        F = J^T J  (Gauss-Newton),  H = F + 12,  covariance H^-1,  or with clusters  H^-1 (12 + C / (C - k) G^T G) H^-1

    where 12 is what the box itself says, the precision of a uniform density, and row c of G is the sum of J r / s over
    cluster c of C: within one, residuals may depend on each other (Liang & Zeger 1986). An eigenvector of F with an
    eigenvalue below 12 is not determined: the data say less of it than the bounds.

    Args:
        predictions: {name: (function of x -> y (n,), target (n,), smallest s)}.
        clusters: cluster of every prediction, from 0, in the order of `predictions`.

    Returns:
        A dict for result.json; standard errors in the units of the parameters, direction_errors in units of the box.
    """
    J, r, noise, x = [], [], {}, jnp.asarray(problem.best_x)
    for name, (predict, target, smallest) in predictions.items():
        y, jacobian = jax.jit(lambda x, f=predict: (f(x), jax.jacfwd(f)(x)))(x)
        residual = np.asarray(y, np.float64) - target
        noise[name] = max(float(np.sqrt(np.mean(residual**2))), smallest) if len(target) else smallest
        J.append(np.asarray(jacobian, np.float64) / noise[name])
        r.append(residual / noise[name])
    J, r = np.concatenate(J), np.concatenate(r)
    eigenvalues, vectors = np.linalg.eigh(J.T @ J)
    box = 12 * np.eye(len(x))
    covariance = np.linalg.inv(J.T @ J + box)
    n_cluster = 0 if clusters is None else 1 + max(clusters)
    if n_cluster > len(x):
        G = np.zeros((n_cluster, len(x)))
        np.add.at(G, clusters, J * r[:, None])
        covariance = covariance @ (G.T @ G * n_cluster / (n_cluster - len(x)) + box) @ covariance
    errors = np.sqrt(np.diag(covariance)) * (problem.high - problem.low)
    return dict(
        noise=noise,
        standard_errors=dict(zip(problem.units, errors.tolist(), strict=True)),
        eigenvalues=eigenvalues,
        eigenvectors=vectors.T,
        direction_errors=1 / np.sqrt(np.maximum(eigenvalues, 0) + 12),
        undetermined=_name_directions(vectors[:, eigenvalues < 12], problem.units),
    )


def unit_name(unit):
    """The unit as text, empty for a number without."""
    return "" if unit == u.UNITLESS else str(unit).replace(" ", "")


def _name_directions(vectors, names):
    """Directions (k, m) in words: the parameters that they contain whole, and what remains as sums of parameters."""
    names = list(names)
    alone = (vectors**2).sum(1) > 0.99
    words = [name for name, is_alone in zip(names, alone, strict=True) if is_alone]
    for vector in vectors.T[np.square(vectors[~alone]).sum(0) > 0.5]:
        terms = [f"{value:+.2f} {name}" for name, value in zip(names, vector, strict=True) if abs(value) > 0.05]
        words.append(" ".join(terms) + " (each in units of its bounds)")
    return words


def write_report(run, problem, starts, loss_name, recordings, free_run, known, information, extra=()):
    """Save result.json, config.json, the history and the figures of a fit, and print its summary.

    Args:
        recordings: {"fit" or "validation": dict of current (nA), V (mV) and spikes}.
        free_run: (parameters, current) -> V (mV) and spikes of the free-running model, each (T, n_trace).
        known: {name: value} of the parameters behind the target, or None.
        information: () -> what `identifiability` returns.
        extra: {what: number} to save and print besides.
    """
    if not math.isfinite(problem.best_loss):
        if problem.interrupted:
            raise KeyboardInterrupt
        raise BadInput(f"no start has a finite loss; start 0: {starts[0].status}")
    args, best = run.args, problem.values(problem.best_x)
    units = {name: unit_name(unit) for name, unit in problem.units.items()}
    known = known and {name: known[name] for name in best}
    result = dict(parameters=best, units=units, known_parameters=known, loss=problem.best_loss, loss_name=loss_name)
    responses, measures = {}, {}
    for name, data in recordings.items():
        responses[name], spikes = free_run(problem.parameters(problem.best_x), data["current"])
        trains = zip(spikes.T, data["spikes"].T, strict=True)
        measures[name] = dict(
            rmse=float(np.sqrt(np.mean((responses[name] - data["V"]) ** 2))),
            gamma=[coincidence_factor(*pair, args.dt * u.ms, args.delta * u.ms) for pair in trains],
            n_spikes=data["spikes"].sum(0).astype(int),
            n_spikes_model=spikes.sum(0).astype(int),
            n_spikes_same_step=(spikes * data["spikes"]).sum(0).astype(int),
        )
    extra = dict(extra)
    result |= extra | measures["fit"] | dict(validation=measures.get("validation"))
    result |= dict(identifiability=information(), n_simulations=problem.n_simulations)
    result |= dict(n_gradients=problem.n_gradients, seconds=problem.seconds)
    result["starts"] = [
        dict(
            initial=None if start.initial is None else problem.values(start.initial),
            parameters=problem.values(start.x),
            loss=start.loss,
            n_gradients=start.n_gradients,
            status=start.status,
        )
        for start in starts
    ]
    run.save("result.json", result | dict(interrupted=problem.interrupted, seed=args.seed))
    run.save("config.json", run.config())
    run.save("history.csv", problem.history)
    run.save("losses.png", plot_losses(starts, comparable_rows(problem), loss_name))
    run.save("identifiability.png", plot_identifiability(result["identifiability"]))
    for name, data in recordings.items():
        run.save(f"traces_{name}.png", plot_traces(data["current"], args.dt, data=data["V"], model=responses[name]))
    print_summary(result, measures, starts, extra)


def comparable_rows(problem):
    """The rows of the history whose losses are those of the present data, of the last width if that was annealed."""
    scalars = {name: float(x) for name, x in problem.data.items() if x.ndim == 0}
    return [row for row in problem.history if scalars.items() <= row.items()]


def print_summary(result, measures, starts, extra):
    """Print what `write_report` has saved, in short."""
    known, information = result["known_parameters"], result["identifiability"]
    for name, value in result["parameters"].items():
        text = f"{name:>10} = {value:.6g} ± {information['standard_errors'][name]:.2g} {result['units'][name]}"
        truth = f"true {known[name]:<7.6g} off by {abs(value / known[name] - 1):.3%}" if known and known[name] else ""
        print(f"{text:<46}{truth}".rstrip())
    for words in information["undetermined"]:
        print(f"not determined by these data: {words}")
    near = sum(start.loss <= 1.1 * result["loss"] + 1e-3 for start in starts)
    reached = f", reached (to 10 % + 0.001) from {near} of {len(starts)} starts" if len(starts) > 1 else ""
    print(f"{result['loss_name']}: {result['loss']:.3g}{reached}")
    for what, value in extra.items():
        print(f"{what.replace('_', ' ')}: {value:.3g}")
    for name, row in measures.items():
        gamma = " ".join("-" if math.isnan(value) else f"{value:.2f}" for value in row["gamma"])
        same = f"{row['n_spikes_same_step'].sum()} of {row['n_spikes'].sum()} spikes at the same step"
        print(f"{name}, free-running: RMSE {row['rmse']:.4g} mV ({row['rmse'] ** 2:.3g} mV^2), Gamma {gamma}, {same}")
    for i, start in enumerate(starts):
        if start.status.startswith("NaN"):
            print(f"start {i} ended: {start.status}")
    if all(start.flat for start in starts):
        print("WARNING: the gradient is zero at every start: this would be random search")
    print("{run:.1f} s to run and {compile:.1f} s to compile".format(**result["seconds"]), end=", ")
    print(f"{result['n_simulations']} simulations, {result['n_gradients']} of them with gradient")


def write_visualization(run, problem, free_run, data, seed):
    """Save the target with the responses of the model at random parameter sets: what a fit starts from."""
    sets = random_starts(problem, seed)
    responses = [free_run(problem.parameters(x), data["current"]) for x in sets]
    dt = run.args.dt
    figure = plot_traces(data["current"], dt, target=data["V"])
    for trace, axis in enumerate(figure.axes[len(figure.axes) // 2 :]):
        for V, _ in responses:
            axis.plot(np.arange(len(V)) * dt, V[:, trace], color="C1", alpha=0.4, lw=0.7, zorder=0)
    figure.suptitle("black: the target; orange: the model at random parameters")
    run.save("target.png", figure)
    run.save("config.json", run.config())
    losses = problem.evaluate(sets)
    counts = dict(n_spikes=data["spikes"].sum(0), n_spikes_models=[spikes.sum(0) for _, spikes in responses])
    run.save("result.json", dict(parameters=[problem.values(x) for x in sets], losses=losses, **counts))
    print(f"spikes a trace: {data['spikes'].sum(0).astype(int).tolist()}")
    print(f"losses of {len(sets)} random parameter sets: {np.nanmin(losses):.4g} to {np.nanmax(losses):.4g}")


# ---- Comparing methods ----------------------------------------------------------------------------------------------

BAYESIAN_EVALUATIONS = 100  # the time that its Gaussian process takes grows with their cube
RECOVERED = 0.01  # relative error of the parameters up to which they count as found


def gradient_cost(problem):
    """Simulations that a gradient costs: the ratio of the times of a full batch with gradient and without."""
    X, medians = random_starts(problem, 0), []
    for gradient in (True, False):
        times = []
        for _ in range(8):
            start = time.perf_counter()
            problem.evaluate(X, gradient)
            times.append(time.perf_counter() - start)
        medians.append(float(np.median(times[1:])))
    return medians[0] / medians[1]


def at_limit(history, quantity, limit):
    """Last row of a history in which the quantity, a function of the row, is within the limit; or else the first."""
    return next((row for row in reversed(history) if quantity(row) <= limit), history[0])


def run_repeat(problem, method, args, repeat, reference, multistart):
    """One fit by one method as a row of numbers, or None if it was interrupted.

    In an equal budget, reference is the row of L-BFGS-B: the loss is that after as many simulations, a gradient counted
    as args.gradient_cost of them, and loss_equal_time that after as many seconds.
    """
    seed = int(np.random.SeedSequence([args.seed, repeat]).generate_state(1)[0])
    n_iter, budget, seconds = args.n_iter, math.inf, 0.0

    def cost(row):
        return row["n_simulations"] + (args.gradient_cost - 1) * row["n_gradients"]

    if reference:
        problem.set_data(**{name: reference.get(name, x) for name, x in problem.data.items()})  # the same width
    if reference and args.protocol_budget == "equal":
        budget, seconds = cost(reference), reference["seconds"]
        n_iter = math.ceil((BAYESIAN_EVALUATIONS if method == "bayesian" else budget) / problem.n_sample)
    problem.reset()
    starts = minimise(problem, method, n_iter, seed, multistart, min_seconds=seconds)
    if problem.interrupted:
        return None
    history = [row | dict(cost=cost(row)) for row in problem.history]
    final = at_limit(history, cost, budget)
    if not math.isfinite(final["best_loss"]):
        raise BadInput(f"no loss of {method} is finite; {starts[0].status}")
    row = dict(method=method, repeat=repeat, seed=seed, n_start=len(starts)) | final | dict(loss=final["best_loss"])
    row["loss_equal_time"] = at_limit(history, lambda row: row["seconds"], seconds or math.inf)["best_loss"]
    comparable = [row | dict(cost=cost(row)) for row in comparable_rows(problem)]
    improved = [row for i, row in enumerate(comparable) if i == 0 or row["best_loss"] < comparable[i - 1]["best_loss"]]
    curve = [[row["cost"], row["seconds"], row["best_loss"]] for row in [*improved, comparable[-1]]]
    return row | dict(seconds_compile=problem.seconds["compile"], curve=curve)


def compare(run, make_problem, n_start, paper, names, known, recording, free_run, loss_name, multistart=None):
    """Fit by every method of `--methods`, `--repeats` times, and save and print what came of it.

    A repeat that is already in the folder is not run again.

    Args:
        make_problem: n_sample -> FitProblem.
        n_start: starts of L-BFGS-B.
        paper: {method: (loss, its s.d., seconds, their s.d.)} of the paper's table, where it is comparable.
        names, known: parameters that have to be found, and {name: value} behind the target, or None.
        recording: current (nA), V (mV) and spikes of the target.
        free_run: (parameters, current) -> V (mV) and spikes of the free-running model.
        multistart: as in `minimise`.

    Returns:
        {method: V of its best repeat, running freely}, or None if it was interrupted.
    """
    import nevergrad  # noqa: F401  (here and now: an import is not to be timed as part of a fit)
    import skopt  # noqa: F401

    args, rows = run.args, []
    problems = {method: make_problem(n_start if method == "L-BFGS-B" else args.n_sample) for method in args.methods}
    names = [name for name in names if known and known[name] != 0]

    def response(row):
        parameters = {name: row[name] * unit for name, unit in problems[row["method"]].units.items()}
        return free_run(parameters, recording["current"])[0]

    try:
        if stored := run.load("budget.json"):
            args.gradient_cost = stored["gradient_cost"]
        elif not args.gradient_cost:
            args.gradient_cost = gradient_cost(problems["L-BFGS-B"]) if args.protocol_budget == "equal" else 1.0
        run.save("budget.json", dict(gradient_cost=args.gradient_cost))
        run.save("config.json", run.config())
        for repeat in tqdm(range(args.repeats), desc="compare", unit=" repeats", leave=False, disable=None):
            reference = None
            for method in args.methods:
                name = f"repeats/{method}_{repeat}.json"
                row = run.load(name)
                if row is None:
                    row = run_repeat(problems[method], method, args, repeat, reference, multistart)
                    if row is None:
                        return None
                    row["free_running_mse"] = float(np.mean((response(row) - recording["V"]) ** 2))
                    found = [abs(row[name] - known[name]) <= RECOVERED * abs(known[name]) for name in names]
                    run.save(name, row | dict(recovered=all(found) if found else None))
                rows.append(run.load(name))
                if method == "L-BFGS-B":
                    reference = rows[-1]
        return write_comparison(run, rows, paper, loss_name, recording, response)
    except KeyboardInterrupt:
        if run.made:
            return None
        raise


def write_comparison(run, rows, paper, loss_name, recording, response):
    """Save repeats.csv, comparison.csv, the table in Markdown and the figures; print the table. See `compare`."""
    methods, table = {}, []
    for row in rows:
        methods.setdefault(row["method"], []).append(row)
    for method, repeats in methods.items():
        line = dict(method=method, n_repeat=len(repeats))
        for name in ("loss", "loss_equal_time", "free_running_mse", "seconds", "n_simulations", "n_gradients"):
            values = np.array([row[name] for row in repeats], float)
            line |= {name: values.mean(), f"{name}_sd": values.std(ddof=min(1, len(values) - 1))}
            line[f"{name}_median"] = np.median(values)
        line["recovered"] = np.array([row["recovered"] for row in repeats], float).mean()
        line |= dict(seconds_compile=max(row["seconds_compile"] for row in repeats), p=None)
        if method != "L-BFGS-B" and "L-BFGS-B" in methods:
            pairs = zip(repeats, methods["L-BFGS-B"], strict=True)
            difference = np.array([row["loss"] - reference["loss"] for row, reference in pairs])
            line["p"] = float(scipy.stats.wilcoxon(difference).pvalue) if difference.any() else 1.0
        names = ("paper_loss", "paper_loss_sd", "paper_seconds", "paper_seconds_sd")
        table.append(line | dict(zip(names, paper.get(method, (None,) * 4), strict=True)))
    run.save("repeats.csv", [{name: value for name, value in row.items() if name != "curve"} for row in rows])
    run.save("comparison.csv", table)
    text = markdown_of(table, run.args, loss_name)
    run.save("comparison.md", text)
    run.save("comparison.png", plot_comparison(methods, run.args.gradient_cost))
    responses = {method: response(min(rows, key=lambda row: row["loss"])) for method, rows in methods.items()}
    run.save("methods.png", plot_methods(recording, run.args.dt, responses))
    print(text, end="")
    return responses


def markdown_of(table, args, loss_name):
    """The comparison as a Markdown table and a line on how it was made."""

    def spread(row, name, mean=".3g", sd=".2g"):
        return "" if row[name] is None else f"{row[name]:{mean}} ± {row[f'{name}_sd']:{sd}}"

    columns = {
        "method": lambda row: row["method"],
        "loss (median)": lambda row: f"{spread(row, 'loss')} ({row['loss_median']:.3g})",
        "median in equal time": lambda row: f"{row['loss_equal_time_median']:.3g}",
        "median free-running, mV²": lambda row: f"{row['free_running_mse_median']:.3g}",
        "paper's loss": lambda row: spread(row, "paper_loss"),
        "seconds": lambda row: spread(row, "seconds"),
        "to compile": lambda row: f"{row['seconds_compile']:.1f}",
        "paper's seconds": lambda row: spread(row, "paper_seconds"),
        "simulations": lambda row: spread(row, "n_simulations", ".0f", ".0f"),
        "of them gradients": lambda row: spread(row, "n_gradients", ".0f", ".0f"),
        "found": lambda row: "" if math.isnan(row["recovered"]) else f"{row['recovered']:.0%}",
        "p": lambda row: "" if row["p"] is None else f"{row['p']:.2g}",
    }
    equal, has_paper = args.protocol_budget == "equal", any(row["paper_loss"] is not None for row in table)
    dropped = (set() if equal else {"median in equal time"}) | (
        set() if has_paper else {"paper's loss", "paper's seconds"}
    )
    columns = {name: cell for name, cell in columns.items() if name not in dropped}
    grid = [list(columns), ["---"] * len(columns), *([cell(row) for cell in columns.values()] for row in table)]
    note = f"Loss: {loss_name}, of the {args.target} target; {args.repeats} repeats, mean ± s.d.; found: within "
    note += f"{RECOVERED:.0%}; p: Wilcoxon signed-rank test of the loss against L-BFGS-B's."
    if equal:
        note += f" A gradient counts as {args.gradient_cost:.2f} simulations."
    if equal and "bayesian" in args.methods:
        note += f" bayesian has {BAYESIAN_EVALUATIONS} evaluations, which take it longer than the others have."
    return "\n".join("| " + " | ".join(line) + " |" for line in grid) + f"\n\n{note}\n"


# ---- Recordings -----------------------------------------------------------------------------------------------------

CURRENT_UNITS = {"A": 1e9, "uA": 1e3, "nA": 1.0, "pA": 1e-3}  # in nA
VOLTAGE_UNITS = {"V": 1e3, "mV": 1.0}  # in mV


class BadInput(ValueError):
    """Input that cannot be used. The message names the argument or file, what was found and what was expected."""


def to_number(text, kind=float):
    """kind(text), and NaN for what is not such a number."""
    try:
        return kind(text)
    except ValueError:
        return math.nan


def read_traces(path):
    """Numbers (T, n_trace) of a CSV file: a header of sample numbers, then a line a trace behind an index column."""
    try:
        with open(path, newline="") as file:
            header, *rows = [row for row in csv.reader(file) if row] or [[]]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"{path}: {getattr(error, 'strerror', 'not CSV')}; expected a CSV file of traces") from None
    if not rows or len(header) < 2 or header[1:] != [str(k) for k in range(len(header) - 1)]:
        raise BadInput(f"{path}: expected a header of sample numbers (,0,1,2,...) and then an index and a trace a line")
    for i, row in enumerate(rows):
        if len(row) != len(header):
            raise BadInput(
                f"{path}: found {len(row) - 1} samples in trace {i}, expected {len(header) - 1} as in the header"
            )
    values = np.array([[to_number(text) for text in row[1:]] for row in rows]).T
    for sample, trace in np.argwhere(~np.isfinite(values)):
        found = rows[trace][sample + 1]
        raise BadInput(f"{path}: found {found!r} at sample {sample} of trace {trace}, expected a finite number")
    return values


def read_recording(current_path, voltage_path, args):
    """Currents (nA) and potentials (mV) of a recording, each (T, n_trace); no potentials without a path to them."""
    current = read_traces(current_path) * CURRENT_UNITS[args.current_unit]
    if voltage_path is None:
        return current, None
    V = read_traces(voltage_path) * VOLTAGE_UNITS[args.voltage_unit]
    if current.shape != V.shape:
        found, expected = (f"{x.shape[1]} traces of {x.shape[0]} samples" for x in (V, current))
        raise BadInput(f"{voltage_path}: found {found}, expected {expected} as in {current_path}")
    if not 1 < np.abs(V).max() < 500:
        raise BadInput(
            f"{voltage_path}: found potentials up to {np.abs(V).max():.3g} mV, read in {args.voltage_unit}; expected "
            "1 to 500 mV, as neurons have (is --voltage_unit right?)"
        )
    return current, V


def read_recordings(args, shipped):
    """{"fit" or "validation": (current, V)} of the files that the arguments name, or else of those in `shipped`.

    Where a target is simulated, currents are enough and V is None.
    """
    own = {"fit": [args.current, args.voltage], "validation": [args.validation_current, args.validation_voltage]}
    paths = own if any(own["fit"]) else shipped | {name: pair for name, pair in own.items() if any(pair)}
    for name, (current, voltage) in paths.items():
        prefix = "validation_" * (name == "validation")
        if (voltage and not current) or (current and not voltage and args.target == "recorded"):
            found = "voltage" if voltage else "current"
            raise BadInput(
                f"argument --{prefix}{found}: found it alone, expected --{prefix}current and --{prefix}voltage"
            )
    if args.target == "recorded" and "fit" not in paths:
        raise BadInput("argument --target: found recorded without a recording, expected --current and --voltage")
    if args.target == "simulated":
        paths = {name: [current, None] for name, (current, _) in paths.items()}
    return {name: read_recording(*pair, args) for name, pair in paths.items() if any(pair)}


def make_targets(args, traces, free_run, known, seed):
    """{"fit" or "validation": dict of current (nA), V (mV) and spikes}, each (T, n_trace).

    Args:
        traces: {name: (current, V)}; where V is None, it and the spikes are those of free_run(known, current).
        seed: of the noise and the spike jitter, which the traces of the fit get.
    """
    targets, rng = {}, np.random.default_rng(seed)
    for name, (current, V) in traces.items():
        V, spikes = free_run(known, current) if V is None else (V, None)
        if name == "fit":
            V = V + args.noise_std * rng.standard_normal(V.shape)
        spikes = detect_spikes(V, args.spike_level) if spikes is None else spikes
        if name == "fit" and args.spike_jitter:
            step, trace = np.nonzero(spikes)
            shift = np.rint(rng.normal(0, args.spike_jitter / args.dt, len(step))).astype(int)
            spikes = np.zeros_like(spikes)
            spikes[np.clip(step + shift, 0, len(spikes) - 1), trace] = 1
        targets[name] = dict(current=current, V=V, spikes=spikes)
    n_step, highest = len(targets["fit"]["V"]), targets["fit"]["V"].max()
    if (args.n_point or 0) > n_step:
        raise BadInput(f"argument --n_point: found {args.n_point}, expected at most the {n_step} samples of a trace")
    if args.fit_target == "spike" and not targets["fit"]["spikes"].any():
        found = f"spike and potentials up to {highest:.3g} mV, spikes being crossings of {args.spike_level:g} mV"
        raise BadInput(f"argument --fit_target: found {found} (--spike_level), expected spikes")
    return targets


# ---- Command line and run folder ------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    """Prints defaults, keeps the layout of the text around the arguments, and reports an error in one line."""

    class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
        def _get_help_string(self, action):
            if isinstance(action.default, list) and action.default:
                return f"{action.help} (default: {' '.join(action.default)})"
            return super()._get_help_string(action) if action.default not in (None, []) else action.help

    def __init__(self, **kwargs):
        super().__init__(formatter_class=self.Formatter, **kwargs)

    def parse_args(self):
        """The arguments; with `--resume`, those of that run are the defaults."""
        args = super().parse_args()
        if getattr(args, "resume", None):
            saved = saved_arguments(args.resume, "resume", vars(args))
            self.set_defaults(**{name: saved[name] for name in vars(args).keys() - {"resume", "output"}})
            args = super().parse_args()
        return args

    def error(self, message):
        self.exit(2, f"{self.prog}: error: {message}\n")


def number(kind, low=-math.inf, above=-math.inf, high=math.inf):
    """argparse type: a finite int or float, from `low` to `high` and greater than `above`."""

    def parse(text):
        value = to_number(text, kind)
        if not (math.isfinite(value) and low <= value <= high and value > above):
            limit = f" >= {low}" if math.isfinite(low) else f" > {above}" if math.isfinite(above) else ""
            limit += f" and <= {high}" if math.isfinite(high) else ""
            noun = "an integer" if kind is int else "a number"
            raise argparse.ArgumentTypeError(f"found {text!r}, expected {noun}{limit}")
        return value

    return parse


def bound(text):
    """argparse type: NAME=LOW:HIGH as (name, [low, high])."""
    name, _, limits = text.partition("=")
    limits = [to_number(limit) for limit in limits.split(":")]
    if len(limits) != 2 or not np.isfinite(limits).all() or limits[0] >= limits[1]:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected NAME=LOW:HIGH with numbers LOW < HIGH")
    return name, limits


def parse_fit_arguments(parser, shipped):
    """Arguments of a neuron script, checked against each other; `shipped`: there is a recording to fit by default."""
    args = parser.parse_args()
    args.target = args.target or ("recorded" if args.voltage or shipped else "simulated")
    args.methods = sorted(set(args.methods), key=METHODS.index)
    if args.resume and (args.mode != "compare" or args.output):
        parser.error("argument --resume: found without --mode compare or with --output, expected a comparison to go on")
    if args.mode == "compare" and args.protocol_budget == "equal" and "L-BFGS-B" not in args.methods:
        parser.error("argument --methods: found no L-BFGS-B, expected it, as the others get its budget")
    for name, methods in (("method", [args.method]), ("methods", args.methods if args.mode == "compare" else [])):
        if "CMA" in methods and len(set(args.fit_parameters)) == 1:
            parser.error(f"argument --{name}: found CMA with one parameter to fit, expected two or more")
    return args


def select_bounds(args, ranges):
    """{name: Quantity [low, high]} of the parameters to fit: `ranges`, where `--bounds` has no others."""
    bounds, own = {name: ranges[name] for name in args.fit_parameters}, dict(args.bounds)
    if unknown := own.keys() - bounds.keys():
        raise BadInput(f"argument --bounds: found {unknown.pop()!r}, expected one of {', '.join(bounds)}")
    return bounds | {name: u.Quantity(limits, unit=bounds[name].unit) for name, limits in own.items()}


def add_run_arguments(parser):
    """Arguments that every script has."""
    add = parser.add_argument_group("run").add_argument
    add("--seed", type=number(int, low=0), default=0, help="the one seed of all that is random")
    add("--precision", type=int, choices=(32, 64), default=32, help="bits of the floating-point numbers")
    add("--devices", default="all", help="indices into jax.devices(), such as 0,1; each core of a CPU is a device")
    add("--output", type=Path, metavar="DIR", help="run folder; without it, a new one in results/")
    figure_format = "pdf: every figure also as vector graphics, beside the PNG"
    add("--figure_format", choices=("png", "pdf"), default="png", help=figure_format)


def add_fit_arguments(parser, ranges, fitted):
    """Arguments of both neuron scripts: the ranges of all parameters {name: Quantity}, and those fitted by default."""
    add = parser.add_argument_group("fit").add_argument
    mode = "compare: fit by every method, several times; visualize: only draw the target and random models"
    add("--mode", choices=("fit", "compare", "visualize"), default="fit", help=mode)
    fit_target = (
        "what to fit: potentials, by mean squared error, or spikes, by van Rossum distance (or both by likelihood)"
    )
    add("--fit_target", choices=("potential", "spike"), default="potential", help=fit_target)
    add("--method", choices=METHODS, default="L-BFGS-B", help="L-BFGS-B uses gradients, the others do not")
    listed = (
        f"{name} {bound.mantissa[0]:g}:{bound.mantissa[1]:g} {unit_name(bound.unit)}".strip()
        for name, bound in ranges.items()
    )
    fit_parameters = f"parameters to fit, of (with bounds): {', '.join(listed)}; the others are as in the target"
    add("--fit_parameters", nargs="+", metavar="NAME", choices=ranges, default=fitted, help=fit_parameters)
    bounds = "other bounds of fitted parameters, in the units above; without this argument, those above"
    add("--bounds", nargs="+", type=bound, metavar="NAME=LOW:HIGH", default=[], help=bounds)
    add(
        "--n_sample", type=number(int, low=1), default=20, help="starts of L-BFGS-B; sets that the others try at a time"
    )
    add("--n_iter", type=number(int, low=1), default=5, help="rounds of the other methods, but for equal budgets")
    n_point = "the potential error takes every (T // N)-th of the T samples; all without this argument"
    add("--n_point", type=number(int, low=1), metavar="N", help=n_point)
    add("--tau_rossum", type=number(float, above=0), default=5.0, help="time constant of the spike loss (ms)")
    add("--delta", type=number(float, above=0), default=4.0, help="half-width of the coincidence window of Gamma (ms)")

    add = parser.add_argument_group("compare").add_argument
    methods = "methods to compare; each is tested against L-BFGS-B"
    add("--methods", nargs="+", choices=METHODS, metavar="METHOD", default=list(METHODS), help=methods)
    add("--repeats", type=number(int, low=1), default=10, help="fits by each method, from other random numbers")
    budget = (
        "paper: as many starts of L-BFGS-B as in the paper's release, to convergence, and n_iter rounds of n_sample; "
        "equal: as many simulations, and separately as many seconds, as n_sample starts of L-BFGS-B take, "
        f"but {BAYESIAN_EVALUATIONS} evaluations for bayesian"
    )
    add("--protocol_budget", choices=("paper", "equal"), default="equal", help=budget)
    cost = "simulations that a gradient counts for in an equal budget; measured without this argument, kept by --resume"
    add("--gradient_cost", type=number(float, above=0), metavar="N", help=cost)
    add("--resume", type=Path, metavar="DIR", help="run folder of an interrupted comparison, to run what is missing")

    add = parser.add_argument_group("data").add_argument
    target = "fit recorded traces (so if --voltage is given), or the model's own response to the currents at the "
    target += "paper's parameters"
    add("--target", choices=("recorded", "simulated"), help=target)
    add("--current", type=Path, metavar="CSV", help="currents: a header of sample numbers, an index and a trace a line")
    add("--voltage", type=Path, metavar="CSV", help="recorded potentials, in the same layout")
    for kind in ("current", "voltage"):
        help = f"{kind} traces for validation only; without this argument, those that belong to the default target"
        add(f"--validation_{kind}", type=Path, metavar="CSV", help=help)
    add("--dt", type=number(float, above=0), help="time between samples, and step of the simulation (ms)")
    add("--current_unit", choices=CURRENT_UNITS, default="A", help="unit of the current files")
    add("--voltage_unit", choices=VOLTAGE_UNITS, default="mV", help="unit of the voltage files")
    add("--noise_std", type=number(float, low=0), default=0.0, help="s.d. of white noise added to the target (mV)")
    jitter = "s.d. of a normal jitter added to the spike times of the target, rounded to steps (ms)"
    add("--spike_jitter", type=number(float, low=0), default=0.0, help=jitter)
    spike_level = "a spike of recorded potentials is an upward crossing of it (mV)"
    add("--spike_level", type=number(float), default=0.0, help=spike_level)


def setup_jax(args):
    """Set precision and compilation cache; the JAX devices that `--devices` names."""
    jax.config.update("jax_enable_x64", args.precision == 64)
    brainstate.environ.set(precision=args.precision)
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "differentiable-brain-modeling")
    jax.config.update("jax_compilation_cache_dir", jax.config.jax_compilation_cache_dir or str(cache))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    devices = jax.devices()
    indices = range(len(devices)) if args.devices == "all" else [to_number(i, int) for i in args.devices.split(",")]
    if len(set(indices)) < len(indices) or not set(indices) <= set(range(len(devices))):
        expected = f"different indices from 0 to {len(devices) - 1}, joined by commas"
        raise BadInput(f"argument --devices: found {args.devices!r}, expected {expected}")
    jax.config.update("jax_default_device", devices[indices[0]])
    return [devices[i] for i in indices]


def saved_arguments(folder, argument, names=()):
    """{name: value} of the run in a folder, which `argument` names; a run of this script has those of the names."""
    saved = load_json(folder / "config.json")
    if not isinstance(saved, dict) or not isinstance(saved.get("arguments"), dict):
        raise BadInput(f"argument --{argument}: found no config.json of a run in {folder}, expected the folder of one")
    if not saved["arguments"].keys() >= set(names):
        found = f"found a run of another script in {folder}"
        raise BadInput(f"argument --{argument}: {found}, expected one of this script to {argument}")
    return saved["arguments"]


def load_json(path):
    """Content of a JSON file, or None where there is none."""
    try:
        return json.loads(path.read_text()) if path.exists() else None
    except ValueError:
        raise BadInput(f"{path}: found something else than JSON, expected what an earlier run has saved") from None


# Those whose versions config.json gives.
PACKAGES = """brainevent brainpy brainscale brainstate braintools brainunit jax jaxlib nevergrad numba numpy optax
    orbax-checkpoint scikit-optimize scipy""".split()  # noqa: SIM905 (a list of literals takes a line each)


def version_of(package):
    """Its version, or None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


class RunFolder:
    """The folder of one run: `--output`, or results/SCRIPT/NAME, with -2, -3, ... added where that is taken.

    The folder is made with its first file, and every file is written whole. With `--resume` it is that of an earlier
    run, which must have had the same arguments.
    """

    def __init__(self, args, devices, script, name, may_change=()):
        self.args, self.devices, self.made = args, devices, bool(args.resume)
        self.path = args.resume or args.output or Path("results", script, name)
        if args.resume:
            self._check_arguments({"resume", "output", "figure_format", *may_change})
            return
        if args.output and args.output.exists() and (args.output.is_file() or any(args.output.iterdir())):
            raise BadInput(f"argument --output: {args.output} holds another run, expected a new or empty folder")
        parent = next(path for path in (self.path.absolute(), *self.path.absolute().parents) if path.exists())
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise BadInput(f"argument --output: {parent} is not a folder that can be written, expected one")

    def _check_arguments(self, may_change):
        ours, earlier = to_json(vars(self.args)), saved_arguments(self.path, "resume")
        for name in sorted(ours.keys() - may_change):
            if ours[name] != earlier.get(name):
                found = f"found {ours[name]} here and {earlier.get(name)} in {self.path}"
                raise BadInput(f"argument --{name}: {found}, expected the same to resume")

    def _make(self):
        first, copy = self.path, 1
        while not self.made:
            try:
                self.path.mkdir(parents=True, exist_ok=bool(self.args.output))
                self.made = True
            except FileExistsError:
                copy += 1
                self.path = first.with_name(f"{first.name}-{copy}")

    def save(self, name, content):
        """Save content in a file of this run, as `save` does."""
        self._make()
        save(self.path / name, content, self.args.figure_format)

    def load(self, name):
        """Content of a JSON file of this run, or None where there is none."""
        return load_json(self.path / name) if self.made else None

    def config(self):
        """What this run was: command, date, arguments, devices and versions."""
        devices = [f"{device} ({device.device_kind})" for device in self.devices]
        versions = {name: version_of(name) for name in PACKAGES}
        date = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        config = dict(command=shlex.join(sys.argv), date=date, arguments=vars(self.args), devices=devices)
        return config | dict(python=platform.python_version(), packages=versions)


def save(path, content, figure_format="png"):
    """Save a figure as PNG (and PDF), a list of dicts as CSV, text as it is, or anything else as JSON; whole or not."""
    path.parent.mkdir(exist_ok=True)
    temporary = path.with_name(f".{path.name}")
    if isinstance(content, plt.Figure):
        for suffix in {".png", f".{figure_format}"}:
            content.savefig(temporary, format=suffix[1:])
            temporary.replace(path.with_suffix(suffix))
        plt.close(content)
        return
    if path.suffix == ".csv":
        with open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, content[0])
            writer.writeheader()
            writer.writerows(content)
    else:
        temporary.write_text(content if isinstance(content, str) else json.dumps(to_json(content), indent=2) + "\n")
    temporary.replace(path)


def to_json(content):
    """Content in the types of JSON: arrays as lists, paths as text, and null for numbers that are not finite."""
    content = content.tolist() if hasattr(content, "tolist") else content
    if isinstance(content, dict):
        return {key: to_json(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [to_json(value) for value in content]
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    return content if isinstance(content, int | str | None) else str(content)


def run_script(main):
    """Run main(): its result is the exit status, and bad input one line on stderr and exit status 2."""
    try:
        sys.exit(main())
    except BadInput as error:
        sys.stderr.write(f"{Path(sys.argv[0]).name}: error: {error}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write(f"{Path(sys.argv[0]).name}: interrupted before there was anything to keep\n")
        sys.exit(130)


# ---- Figures --------------------------------------------------------------------------------------------------------


def plot_traces(current, dt, **potentials):
    """Currents (nA) over potentials (mV), all (T, n_trace): the first black, the second orange; the first 20 traces."""
    t, n_trace = np.arange(len(current)) * dt, min(20, current.shape[1])
    layout = dict(sharex=True, sharey="row", squeeze=False, height_ratios=(1, 3), layout="constrained")
    figure, axes = plt.subplots(2, n_trace, figsize=(1 + (WIDTH - 1) / 5 * n_trace, 2.8), **layout)
    for trace, (top, bottom) in enumerate(axes.T):
        top.plot(t, current[:, trace], color="0.4", lw=1)
        top.set_title(f"trace {trace}")
        for (label, V), style in zip(potentials.items(), ("k-", "C1--"), strict=False):
            bottom.plot(t, V[:, trace], style, lw=1, label=label)
        bottom.set_xlabel("t (ms)")
    axes[0, 0].set_ylabel("I (nA)")
    axes[1, 0].set_ylabel("V (mV)")
    figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower right", ncols=2)
    return figure


def plot_losses(starts, history, loss_name):
    """Left, the losses of all starts, sorted; right, the best loss against the simulations made."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.8), layout="constrained")
    left.plot(1 + np.arange(len(starts)), sorted(start.loss for start in starts), "k.")
    yscale = "log" if min(row["best_loss"] for row in history) > 0 else "linear"
    left.set(xlabel="start, best first", ylabel=loss_name, yscale=yscale)
    losses = [start.loss for start in starts if math.isfinite(start.loss)]
    left.set_ylim(min(losses) / 3, max(losses) * 3) if yscale == "log" else None
    left.xaxis.get_major_locator().set_params(integer=True)
    right.plot(*zip(*((row["n_simulations"], row["best_loss"]) for row in history), strict=True), "k.-")
    right.set(xlabel="simulations", ylabel="best loss so far", xscale="log", yscale=yscale)
    return figure


def plot_identifiability(information):
    """Left, the standard error along each eigenvector of the Fisher matrix, in units of the box; right, the vectors."""
    names, eigenvalues = list(information["standard_errors"]), information["eigenvalues"]
    index = np.arange(len(names))
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.8), layout="constrained")
    left.bar(index, information["direction_errors"], color=np.where(eigenvalues < 12, "C1", "0.4"))
    left.axhline(12**-0.5, color="k", lw=0.8, ls="--")
    left.set(yscale="log", xticks=index, xlabel="eigenvector", ylabel="standard error (units of the bounds)")
    left.set_title("dashed: what the bounds alone say; orange: the data say less")
    size = np.abs(information["eigenvectors"]).T
    image = right.imshow(size, cmap="Greys", vmin=0, vmax=1, aspect="auto")
    right.set(xlabel="eigenvector", xticks=index, yticks=index, yticklabels=names)
    figure.colorbar(image, ax=right, label="size of the component")
    return figure


def plot_comparison(methods, gradient_cost):
    """Best loss so far against simulations and seconds: median and quartiles over the repeats {method: rows}."""
    figure, axes = plt.subplots(1, 2, figsize=(WIDTH, 2.8), sharey=True, layout="constrained")
    simulations = f"simulations (a gradient counts as {gradient_cost:.2g})"
    for column, (axis, xlabel) in enumerate(zip(axes, (simulations, "seconds (without compilation)"), strict=True)):
        for i, (method, repeats) in enumerate(methods.items()):
            curves = [np.array(row["curve"]).T for row in repeats]
            start, end = max(curve[column][0] for curve in curves), min(curve[column][-1] for curve in curves)
            x = np.geomspace(start, max(start, end), 100)
            best = [curve[2][np.searchsorted(curve[column], x * (1 + 1e-12), side="right") - 1] for curve in curves]
            low, median, high = np.quantile(best, (0.25, 0.5, 0.75), axis=0)
            axis.plot(x, median, ("-", "--")[i % 2], color=f"C{i}", label=method)
            axis.fill_between(x, low, high, color=f"C{i}", alpha=0.2, lw=0)
        axis.set(xlabel=xlabel, xscale="log", yscale="log")
    axes[0].set_ylabel("best loss so far")
    axes[1].legend()
    return figure


def plot_methods(recording, dt, responses, traces=slice(0, 5)):
    """Currents over potentials, a row a method and a column a trace: the target black, the fitted model orange."""
    traces = np.arange(recording["V"].shape[1])[traces]
    t, n_row = np.arange(len(recording["V"])) * dt, 1 + len(responses)
    layout = dict(sharex=True, sharey="row", squeeze=False, layout="constrained")
    figure, axes = plt.subplots(n_row, len(traces), figsize=(1 + (WIDTH - 1) / 5 * len(traces), n_row), **layout)
    for column, trace in enumerate(traces):
        axes[0, column].plot(t, recording["current"][:, trace], color="0.4", lw=1)
        axes[0, column].set_title(f"trace {trace}")
        for axis, (method, V) in zip(axes[1:, column], responses.items(), strict=True):
            axis.plot(t, recording["V"][:, trace], "k-", lw=1)
            axis.plot(t, V[:, trace], "C1--", lw=0.8)
            axis.set_ylabel(f"{method}\nV (mV)" if column == 0 else "")
        axes[-1, column].set_xlabel("t (ms)")
    axes[0, 0].set_ylabel("I (nA)")
    return figure
