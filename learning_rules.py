"""The gradient of a batch of trials: backpropagation through time, and online rules.

A rule is a function (model, keys, **its arguments) -> `BatchGradient`, listed in `RULES`, from which the command line,
the training and the check of the gradients take it.
"""

import argparse
import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from runs import setting

import brainstate
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

import numerics
import sparse_products
from models import Model
from utils import EINetwork, Weights

cross_entropy = optax.softmax_cross_entropy_with_integer_labels


class BatchGradient(NamedTuple):
    """Of a batch: loss, its gradient by the weights, accuracy, and rates.

    The rates (n_step, 2) are mean spikes of an excitatory and of an inhibitory neuron in a step.
    """

    loss: jax.Array
    gradient: Weights
    accuracy: jax.Array
    rates: jax.Array


class Outcome(NamedTuple):
    """Of each trial of a batch, the loss (batch,) and whether it is correct (batch,); and rates, as in `BatchGradient`.

    The loss is the cross-entropy of softmax(r) against the label, mean over the steps of recall; a trial is correct
    where the output with the largest sum over recall is the label.
    """

    loss: jax.Array
    correct: jax.Array
    rates: jax.Array


# States that spikes leave, adaptation among them, and "pending", which of refractory neurons goes into these later.
SPIKE_CURRENTS = {"I1", "I2", "I3", "g", "pending"}


# ---- Backpropagation through time -----------------------------------------------------------------------------------


def run_trials(
    model: Model,
    keys: jax.Array,
    chunk: int | None = None,
    event_driven: bool = False,
    erase_at: int | None = None,
    erase_V: bool = False,
) -> Outcome:
    """Run the trials of the given keys.

    The time axis is cut into chunks of about sqrt(n_step) / 2 steps, and the states within a chunk are computed again
    in the backward pass: memory grows with the square root of n_step, but for the inputs, a byte each.

    Args:
        chunk: steps of a chunk; n_step or more for one scan that stores all states.
        event_driven: without a gradient, where the model has buffers for it.
        erase_at: step before which what spikes have left in currents is erased, once.
        erase_V: whether potentials, which follow these currents, are then set to rest, too.
    """
    task, network = model.task, model.network
    recall, n_step = task.periods["recall"], task.n_step
    chunk = chunk or math.ceil(math.sqrt(n_step) / 2)
    labels, evidence = task.trials(keys)
    synapses = model.synapses(event_driven)
    network.init_state(len(keys))

    def step(k, x):
        if erase_at is not None:
            neurons = network.neurons
            for name in SPIKE_CURRENTS & neurons.local_states.keys():
                neurons.local_states[name].value *= k != erase_at
            if erase_V:
                neurons.V.value = neurons.V_rest + (neurons.V.value - neurons.V_rest) * (k != erase_at)
        spikes, r = network.update(synapses, x), network.r.value
        counts = (recall.start <= k) & (k < recall.stop)  # the last chunk may go beyond the end
        loss = cross_entropy(r, labels)
        return jnp.where(counts, loss, 0.0), jnp.where(counts, r.T, 0.0), network.mean_of_populations(spikes)

    def run_steps(steps, inputs):
        loss, r, rates = brainstate.transform.for_loop(step, steps, inputs)
        return loss.sum(axis=0), r.sum(axis=0), rates

    def run_chunk(steps):
        inputs = task.inputs(keys, evidence, steps)
        return (run_steps if n_step <= chunk else brainstate.transform.checkpoint(run_steps))(steps, inputs)

    steps = jnp.arange(-(-n_step // chunk) * chunk).reshape(-1, chunk)
    with model.clock():
        loss, r, rates = brainstate.transform.for_loop(run_chunk, steps)
    correct = r.sum(axis=0).argmax(axis=0) == labels
    return Outcome(loss.sum(axis=0) / (recall.stop - recall.start), correct, rates.reshape(-1, 2)[:n_step])


def bptt(model: Model, keys: jax.Array, chunk: int | None = None) -> BatchGradient:
    """The gradient by backpropagation through time, with the surrogate gradient at spikes.

    Use it when the trial fits: it learns in the fewest updates. Memory as in `run_trials`.
    """

    def loss(weights):
        losses, correct, rates = run_trials(dataclasses.replace(model, weights=weights), keys, chunk)
        return losses.mean(), (correct.mean(), rates)

    (value, (accuracy, rates)), gradient = jax.value_and_grad(loss, has_aux=True)(model.weights)
    return BatchGradient(value, gradient, accuracy, rates)


# ---- Online learning ------------------------------------------------------------------------------------------------

CONDUCTANCE = {"in": "g_exc", "exc": "g_exc", "inh": "g_inh"}  # on which a block of weights acts


def in_chunks(start: int, stop: int, chunk: int, fill_before: bool = False) -> jax.Array:
    """The steps from start to stop as rows (n, C), C at most `chunk` and the same for all.

    Steps that are missing to fill them are added after the last, or before the first.
    """
    n = -(-(stop - start) // chunk)
    length = max(1, -(-(stop - start) // max(1, n)))
    return (stop - n * length if fill_before else start) + jnp.arange(n * length).reshape(n, length)


def filtered(trace: jax.Array, spikes: jax.Array, tau: Any) -> jax.Array:
    """`trace` after the steps of spikes (C, batch, n): in each it decays with time constant tau, and they are added."""
    decay = numerics.relax(1.0, 0.0, 1 / tau)
    weights = decay ** jnp.arange(len(spikes) - 1, -1, -1, dtype=spikes.dtype)
    return decay ** len(spikes) * trace + jnp.tensordot(weights, spikes, 1)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The pairs of neurons (i, j) that a block of weights connects: those listed, ends = (i, j), or all, (n_i, n_j)."""

    ends: tuple[jax.Array, jax.Array] | None

    def pre(self, x: jax.Array) -> jax.Array:
        """x_i at each pair, from x (batch, n_i)."""
        return x[:, :, None] if self.ends is None else x[:, self.ends[0]]

    def post(self, y: jax.Array) -> jax.Array:
        """y_j at each pair, from y (batch, n_j)."""
        return y[:, None, :] if self.ends is None else y[:, self.ends[1]]

    def products(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """sum_s x_i(s) y_j(s) at each pair, of each trial, from x (C, batch, n_i) and y (C, batch, n_j)."""
        if self.ends is None:
            return jnp.einsum("sbi,sbj->bij", x, y)
        if self._is_sparse(x, y):
            return sparse_products.pair_products(x, y, *self.ends)
        # One trial at a time, so that a full matrix exists for one alone.
        return jax.lax.map(lambda xy: (xy[0].T @ xy[1])[self.ends], (x.swapaxes(0, 1), y.swapaxes(0, 1)))

    def total(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """`products`, summed over the trials."""
        if self._is_sparse(x, y):
            return sparse_products.pair_total(x, y, *self.ends)
        matrix = jnp.einsum("sbi,sbj->ij", x, y)
        return matrix if self.ends is None else matrix[self.ends]

    def _is_sparse(self, x, y):
        return self.ends is not None and sparse_products.is_sparse(len(self.ends[0]), x.shape[2], y.shape[2])


@dataclasses.dataclass(frozen=True)
class Batch:
    """What an online rule starts from.

    Args:
        labels, evidence: of the trials.
        synapses: as in `EINetwork.synapses`.
        states: of the neurons, before the trial.
        blocks: {block of weights: the pairs that it connects}.
    """

    labels: jax.Array
    evidence: jax.Array
    synapses: dict[str, Any]
    states: dict[str, jax.Array]
    blocks: dict[str, Pairs]


def start_batch(model: Model, keys: jax.Array) -> Batch:
    """The batch of the trials of the given keys."""
    network = model.network
    network.init_state(len(keys))
    states = {name: state.value for name, state in network.local_states.items()}
    blocks = {name: Pairs(ends) for name, ends in ({"in": None} | network.pairs(model.connections)).items()}
    return Batch(*model.task.trials(keys), model.synapses(event_driven=True), states, blocks)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Sums:
    """Sums over the steps of recall: of the readout r (batch, n_out), and over trials too, of loss and gradient."""

    loss: ArrayLike
    gradient: Weights
    r: jax.Array

    @classmethod
    def zero(cls, model: Model, batch: int) -> "Sums":
        r = jnp.zeros((batch, model.network.n_out))
        return cls(jnp.zeros(()), jax.tree.map(jnp.zeros_like, model.weights), r)

    def __add__(self, other: "Sums") -> "Sums":
        return jax.tree.map(jnp.add, self, other)

    def mean(self, task: Any, labels: jax.Array, rates: jax.Array) -> BatchGradient:
        recall = task.periods["recall"]
        n = len(labels) * (recall.stop - recall.start)
        accuracy = (self.r.argmax(axis=1) == labels).mean()
        return BatchGradient(self.loss / n, jax.tree.map(lambda g: g / n, self.gradient), accuracy, rates)


def through_absolute_value(weights: Weights, gradient: Weights) -> Weights:
    """Gradient by W, from that by |W|; the readout's is by W already."""
    return {name: g if name == "out" else jax.vjp(jnp.abs, weights[name])[1](g)[0] for name, g in gradient.items()}


def read_out(
    network: EINetwork, labels: jax.Array, w_out: jax.Array, spikes: jax.Array, q: jax.Array, counts: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Sum of the loss over the steps that count, with the gradients of D-RTRL.

    The readout r = q W_out has the spikes filtered with tau_out, q. The gradient by the spikes passes through the last
    ones in q alone, that by W_out through all.

    Args:
        spikes, counts: (C, batch, n_rec) and (C,); q (batch, n_rec) is that before them.

    Returns:
        The sum, and q after the steps and the sum of r (batch, n_out).
    """

    def step(q, now):
        spikes, counts = now
        q = numerics.relax(jax.lax.stop_gradient(q), 0.0, 1 / network.tau_out) + spikes
        r = q @ w_out
        return q, (jnp.where(counts, cross_entropy(r, labels).sum(), 0.0), jnp.where(counts, r, 0.0))

    q, (loss, r) = jax.lax.scan(step, q, (spikes, counts))
    return loss.sum(), (q, r.sum(axis=0))


class OfChunk(NamedTuple):
    """What the traces of a block of weights owe to a chunk of C steps.

    `by_start` {state: {other: (batch, n_rec)}} and `by_push` {state: (C, batch, n_rec)} are the derivatives of traced
    states at its end by all at its start, and by what the conductance of the block receives in its steps. `sent`
    (C, batch, n_pre) are the spikes of the neurons before the weights, and p (batch, n_pre) those before the chunk,
    filtered with tau_syn. `stretch` is the one of the trial that the chunk is in.
    """

    p: jax.Array
    sent: jax.Array
    by_start: dict[str, dict[str, jax.Array]]
    by_push: dict[str, jax.Array]
    conductance: str
    stretch: jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Matrices:
    """Traces of the traced states at each pair of neurons, of each trial: exact."""

    e: dict[str, jax.Array]

    @classmethod
    def start(cls, pairs: Pairs, x: jax.Array, states: Mapping[str, jax.Array]) -> "Matrices":
        return cls({name: pairs.pre(x) * pairs.post(zeros) for name, zeros in states.items()})

    def total(self, pairs: Pairs, by_start: Mapping[str, jax.Array]) -> jax.Array:
        """Their products with the derivatives by those states, summed over the trials."""
        return sum(trace * pairs.post(by_start[state]) for state, trace in self.e.items()).sum(axis=0)

    def after(self, pairs: Pairs, chunk: OfChunk) -> "Matrices":
        """The traces after a chunk."""
        e = {}
        for state, by_start in chunk.by_start.items():
            trace = sum(trace * pairs.post(by_start[other]) for other, trace in self.e.items())
            trace += pairs.pre(chunk.p) * pairs.post(by_start[chunk.conductance])
            e[state] = trace + pairs.products(chunk.sent, chunk.by_push[state])
        return Matrices(e)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["x", "f", "unit"], meta_fields=["slow", "decay"])
@dataclasses.dataclass(frozen=True)
class Factors:
    """Traces that are sums of products x_i f_j, of each trial.

    The first product is of the fast states, V and those that are not slow; the others are of the slow states, in the
    stretches of the trial.

    Args:
        x: mean spikes of i in a step (1 + n_stretch, batch, n_pre).
        f: {state: what it owes to the weight, had i sent a spike in each step} (1 + n_stretch, batch, n_rec).
        unit: a spike in each step, filtered with tau_syn.
        slow: names of the slow states.
        decay: of the weights with which spikes count in the mean of the fast states, in a step back.
    """

    x: jax.Array
    f: dict[str, jax.Array]
    unit: ArrayLike
    slow: tuple[str, ...]
    decay: float

    def total(self, pairs: Pairs, by_start: Mapping[str, jax.Array]) -> jax.Array:
        """Their products with the derivatives by the states, summed over the trials."""
        return pairs.total(self.x, sum(f * by_start[state] for state, f in self.f.items()))

    def after(self, pairs: Pairs, chunk: OfChunk) -> "Factors":
        """The traces after a chunk, of which the fast states join theirs, and the slow ones that of its stretch.

        The latter is joined too by what the fast states have left in the slow ones.
        """
        f = {to: sum(f * by[state] for state, f in self.f.items()) for to, by in chunk.by_start.items()}
        fast = [state for state in f if state not in self.slow]
        weights = self.decay ** jnp.arange(len(chunk.sent) - 1, -1, -1, dtype=chunk.p.dtype)

        def own(states, mean):
            during = {state: chunk.by_push[state].sum(axis=0) for state in states}
            before = {state: self.unit * chunk.by_start[state][chunk.conductance] for state in states}
            return [(mean, during), (chunk.p / self.unit, before)]

        def earlier(states, k):
            return self.x[k], {state: f[state][k] for state in states}

        of_fast = [*own(fast, jnp.tensordot(weights / weights.sum(), chunk.sent, 1)), earlier(fast, 0)]
        x_fast, f_fast = together(of_fast)
        x, f_after = self.x.at[0].set(x_fast), {state: f[state].at[0].set(f_fast[state]) for state in fast}
        if self.slow:
            k = 1 + chunk.stretch
            x_slow, f_slow = together(
                [*own(self.slow, chunk.sent.mean(axis=0)), earlier(self.slow, 0), earlier(self.slow, k)]
            )
            x = x.at[k].set(x_slow)
            f_after |= {state: f[state].at[0].set(0).at[k].set(f_slow[state]) for state in self.slow}
        return dataclasses.replace(self, x=x, f=f_after)


Product = tuple[jax.Array, dict[str, jax.Array]]


def together(products: Sequence[Product]) -> Product:
    """One product of (x, {state: f}) for several: exact where x are the same; else their mean, by the sizes of f."""
    sizes = [sum(jnp.abs(f).mean(axis=1, keepdims=True) for f in of_states.values()) for _, of_states in products]
    total = jnp.maximum(sum(sizes), jnp.finfo(sizes[0].dtype).tiny)
    x = sum(size * x for size, (x, _) in zip(sizes, products, strict=True)) / total
    return x, jax.tree.map(lambda *f: sum(f), *(of_states for _, of_states in products))


def diag(model: Model, keys: jax.Array, trace_chunk: int = 100, trace_batch: int = 4) -> BatchGradient:
    r"""The gradient by D-RTRL (Wang et al. 2024), exactly.

    What the state u = (V, I2, g_E, g_I, or whatever else the neuron has) of neuron j owes to the weight W_ij is the
    trace e_ij = du_j / d|W_ij|. It advances within the neuron, by the Jacobians J of its next state by its state, and c
    by what it receives:

    .. math:: e_{ij}(t + 1) = J_j(t) e_{ij}(t) + c_j(t) z_i(t), \quad
        \frac{dL}{d|W_{ij}|} = \sum_t \frac{\partial L(t)}{\partial u_j(t)} e_{ij}(t)

    where z_i are the spikes of i, and L(t) depends on u(t) through the spikes of t alone. That is the gradient of BPTT
    stopped between neurons and in the memory of the readout. For the weights of the readout, it is BPTT's. Use it for
    long trials: it is as fast as BPTT, and its memory does not depend on their length.

    After a chunk of C steps the trace is Phi_j e_ij(start) + sum_s G_j(s) z_i(s), where the derivatives Phi and G of
    the last state come from one backward pass within the chunk. The sum is a product of matrices (n_i, C) and (C, n_j)
    for each trial. Those of the conductances are not stored: they are the spikes of i filtered with tau_syn, the same
    for all j.

    Args:
        trace_chunk: the largest C.
        trace_batch: trials at a time on a device. Their traces are most of the memory; few stay in the cache of a CPU.
    """
    return in_groups(functools.partial(by_chunks, trace_chunk=trace_chunk), model, keys, trace_batch)


def in_groups(
    rule: Callable[[Model, jax.Array], BatchGradient], model: Model, keys: jax.Array, size: int
) -> BatchGradient:
    """The gradient by a rule of few trials at a time."""
    size = min(size, len(keys))
    whole, rest = jnp.split(keys, [len(keys) // size * size])
    groups = whole.reshape(-1, size)
    zero = jnp.zeros(())
    none = BatchGradient(zero, jax.tree.map(jnp.zeros_like, model.weights), zero, jnp.zeros((model.task.n_step, 2)))

    def at_once(keys):
        with model.clock():
            return rule(model, keys)

    total, _ = jax.lax.scan(lambda total, keys: (jax.tree.map(jnp.add, total, at_once(keys)), None), none, groups)
    means = jax.tree.map(lambda x: x / len(groups), total)
    if len(rest):
        fraction = len(rest) / len(keys)
        means = jax.tree.map(lambda x, y: (1 - fraction) * x + fraction * y, means, at_once(rest))
    return means


def by_chunks(
    model: Model,
    keys: jax.Array,
    trace_chunk: int,
    start: Callable[[Pairs, jax.Array, dict[str, jax.Array]], Any] = Matrices.start,
    n_stretch: int = 1,
) -> BatchGradient:
    """D-RTRL of few trials, with traces as `diag` has them, or others.

    Args:
        start: (pairs, zeros (batch, n_pre), {traced state: zeros (batch, n_rec)}) -> traces of a block of weights
            before the trial.
        n_stretch: of the trial, of about equal length.
    """
    task, network, batch = model.task, model.network, start_batch(model, keys)
    states = batch.states
    recall, n_pre = task.periods["recall"], {"in": network.n_in} | network.sizes

    def simulate(states, pushes, x, steps):
        """Traced states after a chunk, and its spikes; all states. `pushes` (C, batch, n_rec) as in `local_step`."""

        def step(states, now):
            spikes, after = network.local_step(batch.synapses, states, now["x"], now["g_exc"], now["g_inh"])
            begun = now["step"] >= 0  # before step 0 nothing changes
            return {name: jnp.where(begun, x, states[name]) for name, x in after.items()}, begun * spikes

        states, spikes = jax.lax.scan(step, states, pushes | dict(x=x, step=steps))
        return ({name: states[name] for name in network.traced_states}, spikes), states

    def learn(sums, traces, p, q, sent, steps, spikes, pull, zeros):
        """Sums with the loss of a chunk and its gradients, and q after it."""
        of_chunk = functools.partial(read_out, network, batch.labels, q=q, counts=steps < recall.stop)
        loss, pull_loss, (q, r) = jax.vjp(of_chunk, batch.synapses["out"], spikes, has_aux=True)
        by_out, by_spikes = pull_loss(jnp.ones_like(loss))
        by_start, by_push = pull((zeros[0], by_spikes))
        gradient = {"out": by_out}
        for name, pairs in batch.blocks.items():
            g = CONDUCTANCE[name]
            gradient[name] = traces[name].total(pairs, by_start) + pairs.total(p[name][None], by_start[g][None])
            gradient[name] += pairs.total(sent[name], by_push[g])
        return sums + Sums(loss, gradient, r), q

    def propagate(traces, p, sent, pull, zeros, stretch):
        """The traces after a chunk, those of a state from one backward pass."""
        one = jax.tree.map(jnp.ones_like, zeros[0])
        ends = [(zeros[0] | {state: one[state]}, zeros[1]) for state in one]
        by_start, by_push = jax.vmap(pull)(jax.tree.map(lambda *x: jnp.stack(x), *ends))
        starts = {state: {other: x[i] for other, x in by_start.items()} for i, state in enumerate(one)}
        after = {}
        for name, pairs in batch.blocks.items():
            g = CONDUCTANCE[name]
            pushes = {state: by_push[g][i] for i, state in enumerate(one)}
            after[name] = traces[name].after(pairs, OfChunk(p[name], sent[name], starts, pushes, g, stretch))
        return after

    def run_chunk(carry, now, learns):
        (states, traces, p, q, sums), (steps, stretch) = carry, now
        x = task.inputs(keys, batch.evidence, steps) & (steps >= 0)[:, None, None]
        none = jnp.zeros((len(steps), *states["V"].shape))
        pushes = {"g_exc": none, "g_inh": none}
        (end, spikes), pull, states = jax.vjp(lambda *at: simulate(*at, x, steps), states, pushes, has_aux=True)
        zeros = jax.tree.map(jnp.zeros_like, (end, spikes))
        exc, inh = jnp.split(spikes, [network.n_exc], axis=2)
        sent = {"in": x.astype(spikes.dtype), "exc": exc, "inh": inh}
        if learns:
            sums, q = learn(sums, traces, p, q, sent, steps, spikes, pull, zeros)
        else:
            q = filtered(q, spikes, network.tau_out)
        traces = propagate(traces, p, sent, pull, zeros, stretch)
        p = {name: filtered(p[name], sent[name], network.tau_syn) for name in p}
        return (states, traces, p, q, sums), jax.vmap(network.mean_of_populations)(spikes)

    p = {name: jnp.zeros((len(keys), n)) for name, n in n_pre.items()}
    none = {name: jnp.zeros_like(states[name]) for name in network.traced_states}
    traces = {name: start(pairs, p[name], none) for name, pairs in batch.blocks.items()}
    carry = states, traces, p, none["V"], Sums.zero(model, len(keys))
    before = in_chunks(0, recall.start, trace_chunk, fill_before=True)
    during = in_chunks(recall.start, recall.stop, trace_chunk)
    n_chunk = len(before) + len(during)
    stretches = jnp.arange(n_chunk) * n_stretch // n_chunk
    before, during = (before, stretches[: len(before)]), (during, stretches[len(before) :])
    carry, before = jax.lax.scan(functools.partial(run_chunk, learns=False), carry, before)
    (*_, sums), during = jax.lax.scan(functools.partial(run_chunk, learns=True), carry, during)
    rates = jnp.concatenate([before.reshape(-1, 2)[before.size // 2 - recall.start :], during.reshape(-1, 2)])
    sums = dataclasses.replace(sums, gradient=through_absolute_value(model.weights, sums.gradient))
    return sums.mean(task, batch.labels, rates[: task.n_step])


def expsm_diag(
    model: Model,
    keys: jax.Array,
    etrace_decay: float = 0.98,
    etrace_groups: int = 2,
    etrace_stretches: int = 4,
    trace_chunk: int = 100,
    etrace_batch: int = 8,
) -> BatchGradient:
    r"""The gradient by ES-D-RTRL: `diag`, with traces that are products of a presynaptic and a postsynaptic factor.

    One group of states (Wang et al. 2024): a product for all of them, of factors that are smoothed in each step,

    .. math:: e_{ij} \approx f_j x_i, \quad x_i(t) = \alpha x_i(t - 1) + z_i(t), \quad
        f_j(t) = \alpha J_j(t) f_j(t - 1) + (1 - \alpha) c_j(t)

    with alpha the decay, and in the same way for the readout, whose state is r. brainscale and braintrace compute this,
    but divide f by a factor that is 1 later on (`by_package`). Its memory is 1 / (1 - alpha) steps, and the same for
    what V remembers and for I2, where a spike leaves the opposite of what its input does: with the paper's adaptation
    the gradient of the inputs in the cues has the wrong sign.

    Two groups: a product for V, and one for I2 in each stretch of the trial, which each chunk of C steps joins. (What
    is said of V holds for all fast states of a neuron, and that of I2 for all slow ones, whose time constant is longer
    than that of V: one x_i for all of a group, an f_j for each.)

    .. math:: e^V_{ij} \approx \bar z_i F^V_j, \quad e^{I2}_{ij} \approx \sum_k \bar z^k_i F^k_j, \quad
        F_j = \sum_s G_j(s)

    with G as in `diag`: F_j is exactly what the state owes to W_ij if i sends a spike in each step, so that a product
    is exact where i fires at a constant rate. Later F goes on by Phi, exactly. Two products become one whose F is the
    sum and whose mean of z is that of both, weighted by the sizes of their F; so does with its stretch what V's product
    leaves in I2. In a chunk's mean for V a spike counts alpha^s, s steps before the end. All else is as in `diag`:
    exact within a chunk, for the conductances, and for the weights of the readout.

    Memory of one group is that of two numbers a neuron and state; of two, of n_stretch such, and of C steps of the
    neurons of few trials. One group is the fastest rule; two are near to `diag`, at less than its time and memory.

    Args:
        etrace_decay: alpha.
        etrace_groups: 1 or 2.
        etrace_stretches: into which the trial is divided evenly.
        trace_chunk, etrace_batch: the largest C, and trials at a time on a device, as in `diag`; of two groups.
    """
    if etrace_groups == 1:
        with model.clock():
            return _expsm_diag(model, keys, start_batch(model, keys), etrace_decay)

    def start(pairs, x, states):
        unit = 1 / (1 - numerics.relax(jnp.ones(()), 0.0, 1 / model.network.tau_syn))
        x, f = jax.tree.map(lambda zeros: jnp.zeros((1 + etrace_stretches, *zeros.shape), zeros.dtype), (x, states))
        return Factors(x, f, unit, tuple(model.network.slow_states), etrace_decay)

    rule = functools.partial(by_chunks, trace_chunk=trace_chunk, start=start, n_stretch=etrace_stretches)
    return in_groups(rule, model, keys, etrace_batch)


def _expsm_diag(model: Model, keys: jax.Array, batch: Batch, etrace_decay: float) -> BatchGradient:
    task, network, synapses, states = model.task, model.network, batch.synapses, batch.states
    recall, n_pre = task.periods["recall"], {"in": network.n_in, "out": network.n_rec} | network.sizes
    none, new = jnp.zeros_like(states["V"]), jnp.full_like(states["V"], 1 - etrace_decay)

    def smooth(trace, spikes):
        return etrace_decay * trace + spikes

    def step(carry, k, learns):
        states, r, x, f, f_out, sums = carry
        inputs = task.spikes(keys, batch.evidence, k)
        local_step = functools.partial(network.local_step, synapses)
        (spikes, states), tangent = jax.linearize(
            lambda states, exc, inh: local_step(states, inputs, exc, inh), states, none, none
        )
        r = numerics.relax(r, 0.0, 1 / network.tau_out) + spikes @ synapses["out"]
        f_out = etrace_decay * numerics.relax(f_out, 0.0, 1 / network.tau_out) + 1 - etrace_decay
        x["out"] = smooth(x["out"], spikes)
        if learns:
            loss, by_r = jax.value_and_grad(lambda r: cross_entropy(r, batch.labels).sum())(r)
            by_spikes = by_r @ synapses["out"].T
            gradient = {"out": x["out"].T @ (by_r * f_out)}
            for name, pairs in batch.blocks.items():
                spikes_by_f, _ = tangent(f[CONDUCTANCE[name]], none, none)
                gradient[name] = pairs.total(x[name][None], (by_spikes * spikes_by_f)[None])
            sums = sums + Sums(loss, gradient, r)
        exc, inh = jnp.split(spikes, [network.n_exc], axis=1)
        x |= {"in": smooth(x["in"], inputs), "exc": smooth(x["exc"], exc), "inh": smooth(x["inh"], inh)}
        decayed = jax.tree.map(lambda f: etrace_decay * f, f)
        f = {"g_exc": tangent(decayed["g_exc"], new, none)[1], "g_inh": tangent(decayed["g_inh"], none, new)[1]}
        return (states, r, x, f, f_out, sums), network.mean_of_populations(spikes)

    sums = Sums.zero(model, len(keys))
    x = {name: jnp.zeros((len(keys), n)) for name, n in n_pre.items()}
    f = dict.fromkeys(("g_exc", "g_inh"), jax.tree.map(jnp.zeros_like, states))
    before, during = jnp.arange(recall.start), jnp.arange(recall.start, recall.stop)
    carry = states, sums.r, x, f, jnp.zeros(()), sums
    carry, before = jax.lax.scan(functools.partial(step, learns=False), carry, before)
    (*_, sums), during = jax.lax.scan(functools.partial(step, learns=True), carry, during)
    sums = dataclasses.replace(sums, gradient=through_absolute_value(model.weights, sums.gradient))
    return sums.mean(task, batch.labels, jnp.concatenate([before, during]))


def decay_or_rank(text: str) -> float:
    """argparse type: a decay between 0 and 1, or that of a rank n, which is (n - 1) / (n + 1)."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if value.is_integer() and value >= 2:
        return (value - 1) / (value + 1)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected a decay between 0 and 1, or a rank, an integer >= 2"
        )
    return value


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule (model, keys, **arguments) -> `BatchGradient`, what `--help` says of it, and its arguments, by name."""

    gradient: Callable[..., BatchGradient]
    help: str
    arguments: Mapping[str, dataclasses.Field] = dataclasses.field(default_factory=dict)


CHUNK = setting(
    100,
    "steps, at most, by which traces of diag, and of expsm_diag with two groups, advance at once",
    low=1,
    metavar="C",
)
# Another rule is a function above and a line here; the check of the gradients asks for its oracle.
RULES: dict[str, Rule] = {
    "bptt": Rule(bptt, "backpropagation through time"),
    "diag": Rule(
        diag,
        "D-RTRL, online, exact within each neuron and without what neurons do with each other's spikes",
        {
            "trace_chunk": CHUNK,
            "trace_batch": setting(
                4,
                "trials whose traces diag has at a time on each device; a GPU may want all of them",
                low=1,
                metavar="N",
            ),
        },
    ),
    "expsm_diag": Rule(
        expsm_diag,
        "ES-D-RTRL, online, with traces that are products of two factors",
        {
            "etrace_decay": setting(
                0.98,
                "decay of the factors of expsm_diag in a step, between 0 and 1, or a rank n, for (n - 1) / (n + 1); "
                "with two groups, of the weights of the spikes of a chunk in what V remembers of them",
                parse=decay_or_rank,
                metavar="DECAY",
            ),
            "etrace_groups": setting(
                2,
                "1: one product of factors for all states, as in the paper, with a memory of 1 / (1 - decay) steps; 2: "
                "one for V, and one for adaptation in each stretch of the trial",
                low=1,
                high=2,
            ),
            "etrace_stretches": setting(
                4, "with two groups, stretches of the trial, each of as many chunks as the others, or one more", low=1
            ),
            "trace_chunk": CHUNK,
            "etrace_batch": setting(
                8, "trials that expsm_diag, with two groups, has at a time on each device", low=1, metavar="N"
            ),
        },
    ),
}
