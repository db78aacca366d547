"""The neurons, the E/I network with its connections, and the task of Wang et al. (2024).

A plain number stands for mV, ms, nA, uS or nF, which are consistent: 1 nA = 1 uS mV = 1 nF mV / ms.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from runs import setting

import brainpy.state
import brainstate
import braintools
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

import sparse_products
from gates import RATES, STEPS
from numerics import Number, exp_euler, is_zero, relax

# ---- Neurons --------------------------------------------------------------------------------------------------------

SURROGATE = braintools.surrogate.ReluGrad(alpha=0.3, width=1.0)


class HH(brainpy.state.Neuron):
    r"""Traub-type Hodgkin-Huxley cell (Traub & Miles 1991; as in Pospischil et al. 2008).

    .. math::

        C \dot V &= -g_{Na} m^3 h (V - E_{Na}) - (g_K n^4 + g_M p) (V - E_K) - g_L (V - E_L) + I \\
        \dot x &= \phi [\alpha_x (1 - x) - \beta_x x], \quad x = m, h, n, \quad v = V - V_T \\
        \alpha_m &= 1.28 / exprel((13 - v) / 4), \quad \beta_m = 1.4 / exprel((v - 40) / 5) \\
        \alpha_h &= 0.128 \exp((17 - v) / 18), \quad \beta_h = 4 / (1 + \exp((40 - v) / 5)) \\
        \alpha_n &= 0.16 / exprel((15 - v) / 5), \quad \beta_n = 0.5 \exp((10 - v) / 40) \\
        \dot p &= \phi (z^2 / (1 + z^2) - p) (3.3 z + 1 / z) / \tau_{max}, \quad z = \exp((V + 35) / 20)

    with potentials in mV, rates per ms and exprel(x) = (exp(x) - 1) / x. The M current (p), which adapts, is integrated
    unless gM is known to be 0. The scheme 'exponential_euler', the paper's, advances potential and gates from the same
    time and is of first order in the step. In 'staggered' the gates stand half a step before the potential, so that
    each sees the other at the middle of its step: of second order at the same cost (Hines 1984). V starts at -65 mV and
    the gates at 0, as in the paper, unless `settle` is called.

    Args:
        in_size: number or shape of the cells.
        gL, gNa, gK, gM: maximal conductances (uS).
        EL, ENa, EK: reversal potentials (mV).
        V_T: shift of the rates along V, which sets the threshold (mV).
        C: membrane capacitance (nF).
        tau_max, phi: time constant of the M current (ms), and temperature factor of all rates.
        V_th: level whose upward crossing is a spike (mV).
        scheme: 'exponential_euler' or 'staggered'.
        **kwargs: those of `brainpy.state.Neuron`, such as the surrogate gradient `spk_fun` of the spikes.
    """

    def __init__(
        self,
        in_size: int | Sequence[int],
        gL: u.Quantity = 0.01 * u.uS,
        gNa: u.Quantity = 20.0 * u.uS,
        gK: u.Quantity = 6.0 * u.uS,
        V_T: u.Quantity = -60.0 * u.mV,
        EL: u.Quantity = -65.0 * u.mV,
        ENa: u.Quantity = 50.0 * u.mV,
        EK: u.Quantity = -90.0 * u.mV,
        C: u.Quantity = 0.2 * u.nF,
        gM: u.Quantity = 0.0 * u.uS,
        tau_max: u.Quantity = 1000.0 * u.ms,
        phi: Number = 1.0,
        V_th: u.Quantity = 0.0 * u.mV,
        scheme: str = "exponential_euler",
        **kwargs,
    ):
        super().__init__(in_size, **kwargs)
        constants = dict(gL=gL, gNa=gNa, gK=gK, V_T=V_T, EL=EL, ENa=ENa, EK=EK, C=C, V_th=V_th)
        constants |= dict(gM=gM, tau_max=tau_max, phi=phi)
        for key, value in constants.items():
            setattr(self, key, braintools.init.param(value, self.varshape))
        self.staggered, self.gates = scheme == "staggered", "mhn" if is_zero(gM) else "mhnp"

    def init_state(self, batch_size: int | None = None, **kwargs) -> None:
        V_start, closed = braintools.init.Constant(-65.0 * u.mV), braintools.init.ZeroInit()
        self.V = brainstate.HiddenState.init(V_start, self.varshape, batch_size)
        for gate in self.gates:
            setattr(self, gate, brainstate.HiddenState.init(closed, self.varshape, batch_size))

    def settle(self, V: u.Quantity) -> None:
        """The states of a cell that has been held at potential V: gates at their steady state there."""
        self.V.value = V
        for gate, (alpha, beta) in zip(self.gates, self.rates(V), strict=True):
            getattr(self, gate).value = alpha / (alpha + beta)

    def rates(self, V: u.Quantity) -> list[tuple[u.Quantity, u.Quantity]]:
        """(alpha, beta) of the gates at potential V."""
        at = zip(self.gates, self.rate_arguments(V), strict=True)
        return [tuple(scale * rate / u.ms for rate in RATES[gate](v)) for gate, (v, scale) in at]

    def rate_arguments(self, V: u.Quantity) -> list[tuple[jax.Array, Number]]:
        """For every gate what its RATES depend on (mV), and what they are taken times."""
        v, V, tau_max = (V - self.V_T).to_decimal(u.mV), V.to_decimal(u.mV), self.tau_max.to_decimal(u.ms)
        return [(V, self.phi / tau_max) if gate == "p" else (v, self.phi) for gate in self.gates]

    def update(self, x: u.Quantity = 0.0 * u.nA) -> jax.Array:
        """One step under the current x (nA). Returns 1 where V crosses V_th upwards during the step, else 0."""
        V, before = self.V.value, [getattr(self, gate).value for gate in self.gates]
        dt = brainstate.environ.get_dt().to_decimal(u.ms)
        at = zip(self.gates, before, self.rate_arguments(V), strict=True)
        after = [STEPS[gate](x, v, scale * dt) for gate, x, (v, scale) in at]
        for gate, value in zip(self.gates, after, strict=True):
            getattr(self, gate).value = value
        m, h, n, *p = after if self.staggered else before
        gNa, gK = self.gNa * m**3 * h, self.gK * n**4
        gK = gK + self.gM * p[0] if p else gK
        I = self.sum_current_inputs(x, V) - gNa * (V - self.ENa) - gK * (V - self.EK) - self.gL * (V - self.EL)
        self.V.value = self.sum_delta_inputs(exp_euler(V, I / self.C, (gNa + gK + self.gL) / self.C))
        return self.get_spike(self.V.value) * (1 - self.get_spike(V))

    def get_spike(self, V: u.Quantity | None = None) -> jax.Array:
        """1 where V (by default the present one) is at least V_th, with the surrogate gradient `spk_fun`."""
        V = self.V.value if V is None else V
        return self.spk_fun((V - self.V_th).to_decimal(u.mV))


class GIF(brainpy.state.Neuron):
    r"""Generalised integrate-and-fire neuron (Mihalas & Niebur 2009), with what recordings need besides.

    .. math::

        \tau \dot V &= -(V - V_{rest}) + R (I + I_1 + I_2 + I_3 - g (V - E_g)) \\
        \dot I_j &= -k_j I_j, \quad \dot g = -k_g g \\
        \dot V_{th} &= a f(V) - b (V_{th} - V_{th,inf}), \quad \dot V_{th2} = -b_2 V_{th2} \\
        f(V) &= V - V_{rest}, \quad \textrm{or with } k_i > 0 \quad k_i \log(1 + \exp((V - V_i) / k_i))

    A step floors V_th at V_th_reset. If V >= V_th + V_th2 at its start it emits a spike: V -> V_reset (`spk_reset`
    'hard') or V - V_th ('soft'), V_th -> V_th + A_th, V_th2 -> V_th2 + A_th2, and at the end of t_ref, until which V is
    held and no spike emitted, I_j -> R_j I_j + A_j and g -> g + A_g. Then it integrates by exponential Euler. The
    surrogate gradient `spk_fun` acts on (V - V_th) / |V_th|; with t_ref, I_j and g have that of spikes that are there
    alone. What cannot change is not integrated. The f with k_i is as in the iGIF of Mensi et al. (2016).

    Args:
        in_size: number or shape of the neurons.
        a, b, b2, k1, k2, k3, k_g: rates of thresholds, currents and conductance (1/ms).
        V_rest, V_reset, V_th_inf, V_th_reset: potentials (mV); V starts at V_rest, V_th at V_th_inf, I_1, I_2 and V_th2
            at 0, unless `settle` is called.
        R, tau: membrane resistance (Mohm) and time constant (ms).
        R1, R2, A1, A2, A3: factor and increment (nA) of I_1 and I_2 at a spike, and increment of a third current.
        A_g, E_g: increment (uS) and reversal potential (mV) of the conductance after spikes.
        t_ref: absolute refractory period, rounded to steps (ms).
        A_th, A_th2: jumps of the thresholds at a spike (mV).
        V_i, k_i: (mV); a k_i of 0 is the linear threshold.
        width, lapse: of the noise of `escape_rate` (mV, 1/ms); the neuron itself has none.
        spk_fun, spk_reset, name: as in `brainpy.state.Neuron`; by default the paper's surrogate. Neurons may differ in
            the reset, 'hard' or 'soft'.

    Potentials, R, currents and A_g may be numbers without unit, as long as all of them are.
    """

    # {what decays: its increment at a spike, and its rate}
    DECAYING: ClassVar = {"I1": ("A1", "k1"), "I2": ("A2", "k2"), "I3": ("A3", "k3"), "g": ("A_g", "k_g")}
    DECAYING |= {"V_th2": ("A_th2", "b2")}

    def __init__(
        self,
        in_size: int | Sequence[int],
        a: Number = 0.005 / u.ms,
        b: Number = 0.01 / u.ms,
        k1: Number = 0.2 / u.ms,
        k2: Number = 0.02 / u.ms,
        V_rest: Number = -70.0 * u.mV,
        V_reset: Number = -70.0 * u.mV,
        V_th_inf: Number = -50.0 * u.mV,
        V_th_reset: Number = -60.0 * u.mV,
        R: Number = 20.0 * u.Mohm,
        tau: Number = 20.0 * u.ms,
        R1: Number = 0.0,
        R2: Number = 1.0,
        A1: Number = 0.0 * u.nA,
        A2: Number = 0.0 * u.nA,
        t_ref: Number = 0.0 * u.ms,
        A_th: Number | None = None,
        A_th2: Number | None = None,
        b2: Number = 0.01 / u.ms,
        A3: Number | None = None,
        k3: Number = 0.05 / u.ms,
        A_g: Number | None = None,
        k_g: Number = 0.05 / u.ms,
        E_g: Number | None = None,
        V_i: Number | None = None,
        k_i: Number | None = None,
        width: Number | None = None,
        lapse: Number = 0.0 / u.ms,
        spk_fun=SURROGATE,
        spk_reset: str | Sequence[str] = "hard",
        name: str | None = None,
    ):
        super().__init__(in_size, spk_fun=spk_fun, name=name)
        self.soft = np.asarray(spk_reset) == "soft"
        none = u.Quantity(0.0, unit=u.get_unit(V_th_inf))  # known to be 0, whatever is traced
        constants = dict(a=a, b=b, k1=k1, k2=k2, V_rest=V_rest, V_reset=V_reset, V_th_inf=V_th_inf, tau=tau)
        constants |= dict(V_th_reset=V_th_reset, R=R, R1=R1, R2=R2, A1=A1, A2=A2, A_th=A_th, A_th2=A_th2, b2=b2)
        constants |= dict(V_i=V_i, k_i=k_i, width=width, lapse=lapse, t_ref=t_ref, A3=A3, k3=k3)
        constants |= dict(A_g=A_g, k_g=k_g, E_g=E_g)
        constants = {key: none if value is None else value for key, value in constants.items()}
        for key, value in constants.items():
            setattr(self, key, braintools.init.param(value, self.varshape))
        self.changes = {name: not is_zero(constants[increment]) for name, (increment, _) in self.DECAYING.items()}
        self.changes |= {"wait": not is_zero(t_ref), "V_th": not all(is_zero(constants[x]) for x in ("a", "b", "A_th"))}
        self.linear = is_zero(constants["k_i"])
        # Of neurons that differ, some may be linear.
        k_i = u.get_magnitude(self.k_i)
        self.some_linear = not isinstance(k_i, jax.core.Tracer) and not self.linear and not np.all(np.asarray(k_i))

    def init_state(self, batch_size: int | None = None, **kwargs) -> None:
        def state(value):
            return brainstate.HiddenState.init(braintools.init.Constant(value), self.varshape, batch_size)

        self.V, self.V_th = state(self.V_rest), state(self.V_th_inf)
        for name, (increment, _) in self.DECAYING.items():
            if self.changes[name]:
                setattr(self, name, state(0 * getattr(self, increment)))
        if self.changes["wait"]:  # steps until a refractory period ends, or -1, and the spike whose currents wait
            self.wait, self.pending = state(-1.0), state(0.0)

    @property
    def local_states(self) -> dict[str, brainstate.State]:
        """{name: state} of what can change."""
        names = [name for name in ("V_th", *self.DECAYING, "wait") if self.changes[name]]
        return {name: getattr(self, name) for name in ("V", *names, *["pending"] * self.changes["wait"])}

    @property
    def time_constants(self) -> dict[str, np.ndarray]:
        """{name: time constant (ms)} of the states that relax, NaN of neurons in which they do not change."""
        driven = {name: (getattr(self, k), getattr(self, A)) for name, (A, k) in self.DECAYING.items()}
        driven["V_th"] = self.b, self.a, self.A_th

        def of(rate, *by):
            changes = np.any(np.broadcast_arrays(*(np.asarray(u.get_magnitude(x)) != 0 for x in by)), axis=0)
            with np.errstate(divide="ignore"):  # of what never relaxes
                return 1 / np.where(changes, u.maybe_decimal(rate * u.ms), np.nan)

        taus = {"V": np.asarray(self.tau.to_decimal(u.ms))}
        return taus | {name: of(*by) for name, by in driven.items() if self.changes[name]}

    def settle(self, V: Number) -> None:
        """The states of a neuron that has been held at potential V and had no spike: the threshold at its steady state.

        That is V_th_inf + a / b f(V). A threshold slower than 10 s, or one with b = 0, is given 1 / b = 10 s.
        """
        self.V.value = V
        if self.changes["V_th"]:
            b = u.math.maximum(self.b, 1e-4 / u.ms)
            self.V_th.value = self.V_th_inf + (self.a / b) * self.drive_of_threshold(V)

    def drive_of_threshold(self, V: Number) -> Number:
        """f(V)."""
        if self.linear:
            return V - self.V_rest
        some = self.some_linear
        k_i = u.math.where(self.k_i == 0 * self.k_i, self.V_th_inf - self.V_rest, self.k_i) if some else self.k_i
        f = k_i * jax.nn.softplus(u.get_magnitude((V - self.V_i) / k_i))
        return u.math.where(self.k_i == 0 * self.k_i, V - self.V_rest, f) if some else f

    @property
    def threshold(self) -> Number:
        """V_th + V_th2."""
        return self.V_th.value + self.V_th2.value if self.changes["V_th2"] else self.V_th.value

    def get_spike(self) -> jax.Array:
        """1 where V is at the threshold and not held, else 0, with the surrogate gradient."""
        V_th = self.threshold
        spike = self.spk_fun(u.get_magnitude((self.V.value - V_th) / u.math.abs(V_th)))
        return spike * (self.wait.value <= 0) if self.changes["wait"] else spike

    def escape_rate(self) -> u.Quantity:
        """Rate at which a noisy neuron fires, exp((V - V_th - V_th2) / width) per ms + lapse, 0 while V is held."""
        rate = jnp.exp(u.get_magnitude((self.V.value - self.threshold) / self.width)) / u.ms + self.lapse
        return rate * (self.wait.value <= 0) if self.changes["wait"] else rate

    def update(self, x: Number = 0.0 * u.nA, spike: ArrayLike | None = None, g: Number | None = None) -> jax.Array:
        """One step under the current x - g V; the spikes of its start, or those given, which then drive the reset.

        x is in nA, and g a conductance in the unit of 1 / R.
        """
        spike = self.get_spike() if spike is None else spike
        g = 0 / self.R if g is None else g
        V, V_th = self.V.value, u.math.maximum(self.V_th.value, self.V_th_reset)
        V = V + spike * self._reset(V)
        I, (jump, held) = self.sum_current_inputs(x, V), self._refractory(spike)
        for name, factor in (("I1", self.R1), ("I2", self.R2), ("I3", 1.0), ("g", 1.0)):
            if self.changes[name]:
                A, k = (getattr(self, constant) for constant in self.DECAYING[name])
                x_j = getattr(self, name).value
                x_j = x_j + jump * ((factor - 1) * x_j + A)
                I, g = (I + x_j * self.E_g, g + x_j) if name == "g" else (I + x_j, g)
                getattr(self, name).value = exp_euler(x_j, -k * x_j, k)
        drift = (self.R * (I - g * V) - (V - self.V_rest)) / self.tau
        after = self.sum_delta_inputs(exp_euler(V, drift, (1 + self.R * g) / self.tau))
        self.V.value = after if held is None else u.math.where(held, V, after)
        if self.changes["V_th"]:
            V_th = V_th + spike * self.A_th
            drift = self.a * self.drive_of_threshold(V) - self.b * (V_th - self.V_th_inf)
            self.V_th.value = exp_euler(V_th, drift, self.b)
        if self.changes["V_th2"]:
            self.V_th2.value = relax(self.V_th2.value + spike * self.A_th2, 0 * self.A_th2, self.b2)
        return spike

    def _reset(self, V):
        """What a spike adds to V."""
        if not self.soft.any():
            return self.V_reset - V
        soft = -self.V_th.value
        return soft if self.soft.all() else u.math.where(self.soft, soft, self.V_reset - V)

    def _refractory(self, spike):
        """The spikes whose currents begin in this step, and where V is held in it (None: nowhere)."""
        if not self.changes["wait"]:
            return spike, None
        n_step = jnp.round(u.Quantity(self.t_ref / brainstate.environ.get_dt()).to_decimal())
        ends = self.wait.value == 0
        jump = self.pending.value * ends + spike * (n_step == 0)
        self.pending.value = jnp.where(spike > 0, spike * (n_step > 0), self.pending.value * ~ends)
        wait = jnp.where(spike > 0, jnp.where(n_step > 0, n_step, -1.0), self.wait.value)
        self.wait.value = jnp.where(spike > 0, wait - (n_step > 0), jnp.maximum(wait - 1, -1.0))
        return jump, wait > 0


# ---- Task -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class EvidenceAccumulation:
    """Evidence accumulation (Morcos & Harvey 2016): cues on the left or right, a delay, and then which side had more.

    A trial is n_cue cues of t_cue, each after t_interval, then t_delay and t_recall. It is biased to the left or to the
    right with probability 1/2, and each cue is on the biased side with probability p_bias. The n_in inputs are four
    equal groups of Bernoulli neurons: left and right, which fire at rate_cue during cues of their side; recall, at
    rate_recall during recall; and noise, at rate_noise always. Called with a JAX key and the number of trials, it gives

        inputs (n_step, batch, n_in), bool; labels (batch,), 0 left, 1 right; evidence (batch, n_cue), -1 left, 1 right

    and the same for the same key. Times are in ms and rates in Hz.

    Raises:
        ValueError: "NAME: found ..., expected ..." for settings that are no task.
    """

    n_in: int = setting(100, "input neurons: four equal groups; a multiple of 4", low=1)
    n_cue: int = setting(7, "cues of a trial; odd, so that one side has more", low=1)
    t_cue: float = setting(100.0, "duration of a cue (ms)", above=0)
    t_interval: float = setting(50.0, "interval before each cue (ms)", low=0)
    t_delay: float = setting(1000.0, "delay between cues and recall (ms)", low=0)
    t_recall: float = setting(150.0, "duration of recall, at the end of the trial (ms)", above=0)
    rate_cue: float = setting(40.0, "rate of the left or right inputs during a cue (Hz)", low=0)
    rate_recall: float = setting(40.0, "rate of the recall inputs during recall (Hz)", low=0)
    rate_noise: float = setting(10.0, "rate of the noise inputs, always (Hz)", low=0)
    p_bias: float = setting(0.7, "probability that a cue is on the side to which its trial is biased", above=0, high=1)
    dt: float = setting(1.0, "time step (ms)", above=0)

    n_out = 2
    groups = ("left", "right", "recall", "noise")
    choices = ("left", "right")

    def __post_init__(self):
        if self.n_cue % 2 == 0:
            raise ValueError(f"n_cue: found {self.n_cue}, expected an odd number, so that one side has more")
        if self.n_in % 4:
            raise ValueError(f"n_in: found {self.n_in}, expected a multiple of 4, the number of groups")
        for name in ("rate_cue", "rate_recall", "rate_noise"):
            if getattr(self, name) * self.dt > 1000:
                limit = f"at most one spike a step, {1000 / self.dt:g} Hz"
                raise ValueError(f"{name}: found {getattr(self, name):g}, expected {limit}")
        for name in ("t_cue", "t_interval", "t_delay", "t_recall"):
            n_step = getattr(self, name) / self.dt
            too_short = name in ("t_cue", "t_recall") and round(n_step) < 1
            if too_short or abs(n_step - round(n_step)) > 1e-6 * max(1, n_step):
                raise ValueError(f"{name}: found {getattr(self, name):g}, expected whole steps of {self.dt:g}")

    @property
    def periods(self) -> dict[str, slice]:
        """{name: slice of steps} of the cues, with the intervals before them, the delay and recall."""
        delay = self.n_cue * (self._steps(self.t_interval) + self._steps(self.t_cue))
        recall = delay + self._steps(self.t_delay)
        end = recall + self._steps(self.t_recall)
        return dict(cues=slice(0, delay), delay=slice(delay, recall), recall=slice(recall, end))

    @property
    def n_step(self) -> int:
        return self.periods["recall"].stop

    def _steps(self, t: float) -> int:
        return round(t / self.dt)

    def trials(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Labels and evidence of the trials whose keys are given."""

        def trial(key):
            bias, cues = jax.random.split(key)
            side = jnp.where(jax.random.bernoulli(bias), 1, -1)
            evidence = side * jnp.where(jax.random.bernoulli(cues, self.p_bias, (self.n_cue,)), 1, -1)
            return (evidence.sum() > 0).astype(jnp.int32), evidence

        return jax.vmap(trial)(keys)

    def spikes(self, keys: jax.Array, evidence: jax.Array, step: ArrayLike) -> jax.Array:
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

    def inputs(self, keys: jax.Array, evidence: jax.Array, steps: jax.Array) -> jax.Array:
        """Inputs (len(steps), batch, n_in) at those steps."""
        return jax.vmap(lambda step: self.spikes(keys, evidence, step))(steps)

    def __call__(self, key: jax.Array, batch: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        keys = jax.random.split(key, batch)
        labels, evidence = self.trials(keys)
        return self.inputs(keys, evidence, jnp.arange(self.n_step)), labels, evidence


# ---- Network --------------------------------------------------------------------------------------------------------

CONN_METHODS = ("dense", "gaussian", "rand")

Weights = dict[str, jax.Array]
Connections = dict[str, tuple[ArrayLike, ArrayLike] | None]


def connect(
    conn_method: str, n_exc: int, n_inh: int, seed: Any, p: float = 0.1, sigma: float = 20.0
) -> dict[str, tuple[np.ndarray, np.ndarray] | None]:
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


class EINetwork(brainstate.nn.Module):
    r"""Excitatory and inhibitory neurons, conductance-based synapses and a leaky readout (Wang et al. 2024, App. F).

    .. math::

        \tau_{syn} \dot g_E &= -g_E, \quad \tau_{syn} \dot g_I = -g_I, \quad \tau_{out} \dot r = -r

    all dimensionless: in units of the leak, of potentials V_rest = 0 and V_th_inf = 1, and R = 1. In a step, the spikes
    s of the potentials at its start and the input spikes x add |W_in| x + |W_exc| s_exc to g_E, |W_inh| s_inh to g_I
    (Dale's law) and W_out s to r, after these have decayed; then the neurons make their step under the current
    g_E (E_exc - V) + g_I (E_inh - V).

    `update` is the step of the network; `update_neurons` is what in it is local to a neuron, given what reaches it, and
    `local_step` the same as a function of the neurons' states. Weights are no states of the module but arguments of
    `synapses`: one network serves gradients, devices and kernels.

    Args:
        neurons: of the network, the excitatory ones first.
        n_exc: of them are excitatory.
        n_in, n_out: numbers of inputs and outputs.
        E_exc, E_inh: reversal potentials, of all neurons or (n_rec,).
        tau_syn, tau_out: time constants of synapses and readout (ms).
    """

    def __init__(
        self,
        neurons: GIF,
        n_exc: int,
        n_in: int,
        n_out: int,
        E_exc: ArrayLike,
        E_inh: ArrayLike,
        tau_syn: u.Quantity,
        tau_out: u.Quantity,
    ):
        super().__init__()
        self.neurons, self.n_in, self.n_out, self.n_exc = neurons, n_in, n_out, n_exc
        self.n_rec = neurons.varshape[0]
        self.n_inh = self.n_rec - n_exc
        self.E_exc, self.E_inh, self.tau_syn, self.tau_out = E_exc, E_inh, tau_syn, tau_out

    @property
    def sizes(self) -> dict[str, int]:
        return dict(exc=self.n_exc, inh=self.n_inh)

    @property
    def local_states(self) -> dict[str, brainstate.State]:
        return self.neurons.local_states | dict(g_exc=self.g_exc, g_inh=self.g_inh)

    @property
    def traced_states(self) -> list[str]:
        """The local states that remember, with a derivative, what conductances have done to the neuron."""
        return [name for name in self.neurons.local_states if name != "wait"]

    @property
    def slow_states(self) -> list[str]:
        """Those of them whose time constant is longer than that of V, in the median of the neurons that have them."""
        taus = self.neurons.time_constants
        return [name for name in taus if np.nanmedian(taus[name] / taus["V"]) > 1]

    def init_state(self, batch_size: int | None = None, **kwargs) -> None:
        def zeros(n):
            return brainstate.HiddenState.init(braintools.init.ZeroInit(), (n,), batch_size)

        self.neurons.init_state(batch_size)
        self.neurons.settle(self.neurons.V.value)
        self.g_exc, self.g_inh, self.r = zeros(self.n_rec), zeros(self.n_rec), zeros(self.n_out)

    def pairs(self, connections: Connections) -> dict[str, tuple[jax.Array, jax.Array] | None]:
        """{name: (pre, post)}: the neurons at the two ends of each connection that is listed; None for all to all."""
        pairs = dict.fromkeys(connections)
        for name, listed in connections.items():
            if listed is not None:
                indptr, post = map(jnp.asarray, listed)
                pre = jnp.arange(self.sizes[name], dtype=post.dtype)
                pairs[name] = jnp.repeat(pre, jnp.diff(indptr), total_repeat_length=len(post)), post
        return pairs

    def full_matrices(self, weights: Weights, connections: Connections) -> Weights:
        """Weights as matrices (n_pre, n_post), with 0 where there is no connection."""
        matrices = dict(weights)
        for name, pair in self.pairs(connections).items():
            if pair is not None:
                zeros = jnp.zeros((self.sizes[name], self.n_rec), weights[name].dtype)
                matrices[name] = zeros.at[pair].set(weights[name], unique_indices=True)
        return matrices

    def synapses(
        self, weights: Weights, connections: Connections, buffers: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Matrices (n_pre, n_post) that act on spikes: |W|, and W_out.

        Connections that are listed become a sparse matrix where they have `buffers`, whose product costs what the
        spikes that occur cost, but which has no gradient. Else they become those of `sparse_products`, or where there
        are many for the number of neurons a full matrix with zeros.
        """
        matrices, buffers = {name: w if name == "out" else jnp.abs(w) for name, w in weights.items()}, buffers or {}
        others = {name: listed for name, listed in connections.items() if name not in buffers}
        full = self.full_matrices(matrices, {n: of for n, of in others.items() if not self._is_sparse(of, n)})
        for name, pair in self.pairs(others).items():
            if self._is_sparse(connections[name], name):
                full[name] = sparse_products.synapses(matrices[name], *pair, self.sizes[name], self.n_rec)
        for name, own in buffers.items():
            indptr, indices = map(jnp.asarray, connections[name])
            full[name] = dict(data=matrices[name], indices=indices, indptr=indptr, buffers=own)
        return full

    def buffers(self, connections: Connections, least: int = 0) -> dict[str, Any]:
        """The work space of event-driven products, of connections that are listed and at least so many.

        It cannot be made under `jax.jit`.
        """
        made = {}
        for name, listed in connections.items():
            if listed is not None and len(listed[1]) >= max(least, 1):
                made[name] = sparse_products.event_buffers(*map(jnp.asarray, listed), self.sizes[name], self.n_rec)
        return made

    def update(self, synapses: Mapping[str, Any], x: jax.Array) -> jax.Array:
        """One step under input spikes x (batch, n_in). Returns the spikes (batch, n_rec) of its start."""
        spikes = self.neurons.get_spike()
        self.update_neurons(*self.receive(synapses, x, spikes), spikes)
        self.r.value = relax(self.r.value, 0.0, 1 / self.tau_out) + spikes @ synapses["out"]
        return spikes

    def local_step(
        self,
        synapses: Mapping[str, Any],
        states: Mapping[str, jax.Array],
        x: jax.Array,
        push_exc: ArrayLike = 0.0,
        push_inh: ArrayLike = 0.0,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The neurons' part of `update` as a function of their `local_states`.

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

    def receive(self, synapses: Mapping[str, Any], x: jax.Array, spikes: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Increments (batch, n_rec) of the excitatory and inhibitory conductances by input and recurrent spikes."""
        x_exc = x.astype(spikes.dtype) @ synapses["in"] + self._propagate(spikes[:, : self.n_exc], synapses["exc"])
        return x_exc, self._propagate(spikes[:, self.n_exc :], synapses["inh"])

    def mean_of_populations(self, x: jax.Array) -> jax.Array:
        """Means (2,) of x (batch, n_rec) over the excitatory and over the inhibitory neurons."""
        return jnp.stack([x[:, : self.n_exc].mean(), x[:, self.n_exc :].mean()])

    def update_neurons(self, x_exc: jax.Array, x_inh: jax.Array, spikes: jax.Array) -> None:
        """The step of each neuron, given the increments (batch, n_rec) of its conductances, and its spikes."""
        g_exc = self.g_exc.value = relax(self.g_exc.value, 0.0, 1 / self.tau_syn) + x_exc
        g_inh = self.g_inh.value = relax(self.g_inh.value, 0.0, 1 / self.tau_syn) + x_inh
        self.neurons.update(g_exc * self.E_exc + g_inh * self.E_inh, spikes, g_exc + g_inh)

    def _is_sparse(self, listed, name):
        return listed is not None and sparse_products.is_sparse(len(listed[1]), self.sizes[name], self.n_rec)

    def _propagate(self, spikes, matrix):
        if isinstance(matrix, sparse_products.Synapses):
            return sparse_products.propagate(spikes, matrix, self.n_rec)
        return sparse_products.by_events(spikes, matrix, self.n_rec) if isinstance(matrix, dict) else spikes @ matrix
