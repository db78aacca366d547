"""The gradient of a batch of trials: backpropagation through time, online rules, and those of brainscale."""

import dataclasses
import functools
import math

import brainstate
import jax
import jax.numpy as jnp

import utils

# ---- Backpropagation through time -----------------------------------------------------------------------------------


def cross_entropy(r, labels):
    """-log softmax(r)[label] of each trial, of readouts (batch, n_out)."""
    return -jnp.take_along_axis(jax.nn.log_softmax(r), labels[:, None], axis=1)[:, 0]


def run_trials(task, network, weights, connections, keys, chunk=None, local=False):
    """Run the trials of the given keys.

    The time axis is cut into chunks of about sqrt(n_step) / 2 steps, and the states within a chunk are computed again
    in the backward pass: memory grows with the square root of n_step, but for the inputs, a byte each.

    Args:
        chunk: steps of a chunk; n_step or more for one scan that stores all states.
        local: whether gradients stop between neurons and in the readout's memory, as in `EINetwork.update`.

    Returns:
        loss (batch,): cross-entropy of softmax(r) against the label, mean over the steps of recall; correct (batch,):
        whether the output with the largest sum over recall is the label; rates (n_step, 2): mean spikes of an
        excitatory and of an inhibitory neuron in a step.
    """
    recall, n_step = task.periods["recall"], task.n_step
    chunk = chunk or math.ceil(math.sqrt(n_step) / 2)
    labels, evidence = task.trials(keys)
    synapses = network.synapses(weights, connections)
    network.init_state(len(keys))

    def step(k, x):
        spikes, r = network.update(synapses, x, local), network.r.value
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
    loss, r, rates = brainstate.transform.for_loop(run_chunk, steps)
    correct = r.sum(axis=0).argmax(axis=0) == labels
    return loss.sum(axis=0) / (recall.stop - recall.start), correct, rates.reshape(-1, 2)[:n_step]


def bptt(task, network, weights, connections, keys, chunk=None, local=False):
    """Loss, its gradient, accuracy and rates of a batch, by backpropagation through time."""

    def loss(weights):
        losses, correct, rates = run_trials(task, network, weights, connections, keys, chunk, local)
        return losses.mean(), (correct.mean(), rates)

    (value, (accuracy, rates)), gradient = jax.value_and_grad(loss, has_aux=True)(weights)
    return value, gradient, accuracy, rates


# ---- Online learning ------------------------------------------------------------------------------------------------

CONDUCTANCE = {"in": "g_exc", "exc": "g_exc", "inh": "g_inh"}  # on which a block of weights acts


def in_chunks(start, stop, chunk, fill_before=False):
    """The steps from start to stop as rows (n, C), C at most `chunk` and the same for all.

    Steps that are missing to fill them are added after the last, or before the first.
    """
    n = -(-(stop - start) // chunk)
    length = max(1, -(-(stop - start) // max(1, n)))
    return (stop - n * length if fill_before else start) + jnp.arange(n * length).reshape(n, length)


def filtered(trace, spikes, tau):
    """`trace` after the steps of spikes (C, batch, n): in each it decays with time constant tau, and they are added."""
    decay = utils.relax(1.0, 0.0, 1 / tau)
    weights = decay ** jnp.arange(len(spikes) - 1, -1, -1, dtype=spikes.dtype)
    return decay ** len(spikes) * trace + jnp.tensordot(weights, spikes, 1)


@dataclasses.dataclass(frozen=True)
class Pairs:
    """The pairs of neurons (i, j) that a block of weights connects: those listed, ends = (i, j), or all, (n_i, n_j)."""

    ends: tuple | None

    def pre(self, x):
        """x_i at each pair, from x (batch, n_i)."""
        return x[:, :, None] if self.ends is None else x[:, self.ends[0]]

    def post(self, y):
        """y_j at each pair, from y (batch, n_j)."""
        return y[:, None, :] if self.ends is None else y[:, self.ends[1]]

    def products(self, x, y):
        """sum_s x_i(s) y_j(s) at each pair, of each trial, from x (C, batch, n_i) and y (C, batch, n_j)."""
        if self.ends is None:
            return jnp.einsum("sbi,sbj->bij", x, y)
        # One trial at a time, so that a full matrix exists for one alone.
        return jax.lax.map(lambda xy: (xy[0].T @ xy[1])[self.ends], (x.swapaxes(0, 1), y.swapaxes(0, 1)))

    def total(self, x, y):
        """`products`, summed over the trials."""
        matrix = jnp.einsum("sbi,sbj->ij", x, y)
        return matrix if self.ends is None else matrix[self.ends]


def prepare(task, network, weights, connections, keys):
    """Labels and evidence of trials, synapses, the neurons' states at rest, and the pairs of each block of weights."""
    network.init_state(len(keys))
    states = {name: state.value for name, state in network.local_states.items()}
    blocks = {name: Pairs(ends) for name, ends in ({"in": None} | network.pairs(connections)).items()}
    return *task.trials(keys), network.synapses(weights, connections), states, blocks


def averages(task, labels, loss, gradient, r, rates):
    """Loss, gradient, accuracy and rates, from sums over recall: of r, and over trials too, of loss and gradient."""
    recall = task.periods["recall"]
    n = len(labels) * (recall.stop - recall.start)
    return loss / n, jax.tree.map(lambda g: g / n, gradient), (r.argmax(axis=1) == labels).mean(), rates


def by_weights(weights, gradient):
    """Gradient by W, from that by |W|; the readout's is by W already."""
    return {name: g if name == "out" else jax.vjp(jnp.abs, weights[name])[1](g)[0] for name, g in gradient.items()}


def read_out(network, labels, w_out, spikes, q, counts):
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
        q = utils.relax(jax.lax.stop_gradient(q), 0.0, 1 / network.tau_out) + spikes
        r = q @ w_out
        return q, (jnp.where(counts, cross_entropy(r, labels).sum(), 0.0), jnp.where(counts, r, 0.0))

    q, (loss, r) = jax.lax.scan(step, q, (spikes, counts))
    return loss.sum(), (q, r.sum(axis=0))


def diag(task, network, weights, connections, keys, trace_chunk=100, trace_batch=4):
    r"""Loss, its gradient, accuracy and rates of a batch, by D-RTRL (Wang et al. 2024), exactly.

    What the state u = (V, I2, g_E, g_I) of neuron j owes to the weight W_ij is the trace e_ij = du_j / d|W_ij|. It
    advances within the neuron, by the Jacobians J of its next state by its state, and c by what it receives:

    .. math:: e_{ij}(t + 1) = J_j(t) e_{ij}(t) + c_j(t) z_i(t), \quad
        \frac{dL}{d|W_{ij}|} = \sum_t \frac{\partial L(t)}{\partial u_j(t)} e_{ij}(t)

    where z_i are the spikes of i, and L(t) depends on u(t) through the spikes of t alone. That is the gradient of BPTT
    stopped between neurons and in the memory of the readout. For the weights of the readout, it is BPTT's.

    After a chunk of C steps the trace is Phi_j e_ij(start) + sum_s G_j(s) z_i(s), where the derivatives Phi and G of
    the last state come from one backward pass within the chunk. The sum is a product of matrices (n_i, C) and (C, n_j)
    for each trial. Of the four traces two are stored, of V and I2: those of the conductances are the spikes of i
    filtered with tau_syn, the same for all j. Memory does not depend on the length of the trial.

    Args:
        trace_chunk: the largest C.
        trace_batch: trials at a time on a device. Their traces are most of the memory; few stay in the cache of a CPU.
    """
    rule = functools.partial(_diag_at_once, task, network, weights, connections, trace_chunk=trace_chunk)
    size = min(trace_batch, len(keys))
    whole, rest = jnp.split(keys, [len(keys) // size * size])
    groups = whole.reshape(-1, size)
    none = jnp.zeros(()), jax.tree.map(jnp.zeros_like, weights), jnp.zeros(()), jnp.zeros((task.n_step, 2))
    total, _ = jax.lax.scan(lambda total, keys: (jax.tree.map(jnp.add, total, rule(keys)), None), none, groups)
    means = jax.tree.map(lambda x: x / len(groups), total)
    if len(rest):
        share = len(rest) / len(keys)
        means = jax.tree.map(lambda x, y: (1 - share) * x + share * y, means, rule(rest))
    return means


def _diag_at_once(task, network, weights, connections, keys, trace_chunk):
    """`diag` of few trials."""
    recall = task.periods["recall"]
    labels, evidence, synapses, states, blocks = prepare(task, network, weights, connections, keys)
    n_pre = {"in": network.n_in} | network.sizes

    def simulate(states, pushes, x):
        """V and I2 after a chunk, and its spikes; then all states. `pushes` (C, batch, n_rec) as in `local_step`."""

        def step(states, now):
            spikes, states = network.local_step(synapses, states, now["x"], now["g_exc"], now["g_inh"])
            return states, spikes

        states, spikes = jax.lax.scan(step, states, pushes | dict(x=x))
        return ({name: states[name] for name in ("V", "I2")}, spikes), states

    def learn(sums, traces, p, q, sent, steps, spikes, pull, zeros):
        """Sums with the loss of a chunk and its gradients, and q after it."""
        of_chunk = functools.partial(read_out, network, labels, q=q, counts=steps < recall.stop)
        loss, pull_loss, (q, r) = jax.vjp(of_chunk, synapses["out"], spikes, has_aux=True)
        by_out, by_spikes = pull_loss(jnp.ones_like(loss))
        by_start, by_push = pull((zeros[0], by_spikes))
        gradient = {"out": by_out}
        for name, pairs in blocks.items():
            g = CONDUCTANCE[name]
            by_traces = sum(trace * pairs.post(by_start[state]) for state, trace in traces[name].items())
            by_traces += pairs.pre(p[name]) * pairs.post(by_start[g])
            gradient[name] = by_traces.sum(axis=0) + pairs.total(sent[name], by_push[g])
        return jax.tree.map(jnp.add, sums, dict(loss=loss, gradient=gradient, r=r)), q

    def propagate(traces, p, sent, pull, zeros):
        """The traces after a chunk: V's and I2's, each from one backward pass."""
        one = jax.tree.map(jnp.ones_like, zeros[0])
        ends = [(zeros[0] | {state: one[state]}, zeros[1]) for state in one]
        by_start, by_push = jax.vmap(pull)(jax.tree.map(lambda *x: jnp.stack(x), *ends))
        after = {}
        for name, pairs in blocks.items():
            g, after[name] = CONDUCTANCE[name], {}
            for i, state in enumerate(one):
                kept = sum(trace * pairs.post(by_start[other][i]) for other, trace in traces[name].items())
                kept += pairs.pre(p[name]) * pairs.post(by_start[g][i])
                after[name][state] = kept + pairs.products(sent[name], by_push[g][i])
        return after

    def run_chunk(carry, steps, learns):
        states, traces, p, q, sums = carry
        x = task.inputs(keys, evidence, steps) & (steps >= 0)[:, None, None]  # before step 0 all is at rest
        none = jnp.zeros((len(steps), *states["V"].shape))
        pushes = {"g_exc": none, "g_inh": none}
        (end, spikes), pull, states = jax.vjp(lambda *at: simulate(*at, x), states, pushes, has_aux=True)
        zeros = jax.tree.map(jnp.zeros_like, (end, spikes))
        exc, inh = jnp.split(spikes, [network.n_exc], axis=2)
        sent = {"in": x.astype(spikes.dtype), "exc": exc, "inh": inh}
        if learns:
            sums, q = learn(sums, traces, p, q, sent, steps, spikes, pull, zeros)
        else:
            q = filtered(q, spikes, network.tau_out)
        traces = propagate(traces, p, sent, pull, zeros)
        p = {name: filtered(p[name], sent[name], network.tau_syn) for name in p}
        return (states, traces, p, q, sums), jax.vmap(network.mean_of_populations)(spikes)

    def no_traces(pairs, p):
        return dict.fromkeys(("V", "I2"), pairs.pre(p) * pairs.post(states["V"]))

    p = {name: jnp.zeros((len(keys), n)) for name, n in n_pre.items()}
    traces = {name: no_traces(pairs, p[name]) for name, pairs in blocks.items()}
    r = jnp.zeros((len(keys), network.n_out))
    sums = dict(loss=jnp.zeros(()), gradient=jax.tree.map(jnp.zeros_like, weights), r=r)
    carry = states, traces, p, states["V"], sums
    before = in_chunks(0, recall.start, trace_chunk, fill_before=True)
    during = in_chunks(recall.start, recall.stop, trace_chunk)
    carry, before = jax.lax.scan(functools.partial(run_chunk, learns=False), carry, before)
    (*_, sums), during = jax.lax.scan(functools.partial(run_chunk, learns=True), carry, during)
    rates = jnp.concatenate([before.reshape(-1, 2)[before.size // 2 - recall.start :], during.reshape(-1, 2)])
    sums["gradient"] = by_weights(weights, sums["gradient"])
    return averages(task, labels, rates=rates[: task.n_step], **sums)


def expsm_diag(task, network, weights, connections, keys, etrace_decay=0.98):
    r"""Loss, its gradient, accuracy and rates of a batch, by ES-D-RTRL (Wang et al. 2024).

    The traces of `diag` are approximated by products of a presynaptic and a postsynaptic factor, each smoothed:

    .. math:: e_{ij} \approx f_j x_i, \quad x_i(t) = \alpha x_i(t - 1) + z_i(t), \quad
        f_j(t) = \alpha J_j(t) f_j(t - 1) + (1 - \alpha) c_j(t)

    with alpha the decay, and in the same way for the readout, whose state is r. `IODimVjpAlgorithm` of brainscale
    computes this, but divides f by 1 - (1 - alpha)^(t + 1), which is 1 after a few steps. Memory is that of two numbers
    a neuron and state, and of one an input.
    """
    recall = task.periods["recall"]
    labels, evidence, synapses, states, blocks = prepare(task, network, weights, connections, keys)
    n_pre = {"in": network.n_in, "out": network.n_rec} | network.sizes
    none, new = jnp.zeros_like(states["V"]), jnp.full_like(states["V"], 1 - etrace_decay)

    def smooth(trace, spikes):
        return etrace_decay * trace + spikes

    def step(carry, k, learns):
        states, r, x, f, f_out, sums = carry
        inputs = task.spikes(keys, evidence, k)
        local_step = functools.partial(network.local_step, synapses)
        (spikes, states), tangent = jax.linearize(
            lambda states, exc, inh: local_step(states, inputs, exc, inh), states, none, none
        )
        r = utils.relax(r, 0.0, 1 / network.tau_out) + spikes @ synapses["out"]
        f_out = etrace_decay * utils.relax(f_out, 0.0, 1 / network.tau_out) + 1 - etrace_decay
        x["out"] = smooth(x["out"], spikes)
        if learns:
            loss, by_r = jax.value_and_grad(lambda r: cross_entropy(r, labels).sum())(r)
            by_spikes = by_r @ synapses["out"].T
            gradient = {"out": x["out"].T @ (by_r * f_out)}
            for name, pairs in blocks.items():
                spikes_by_f, _ = tangent(f[CONDUCTANCE[name]], none, none)
                gradient[name] = pairs.total(x[name][None], (by_spikes * spikes_by_f)[None])
            sums = jax.tree.map(jnp.add, sums, dict(loss=loss, gradient=gradient, r=r))
        exc, inh = jnp.split(spikes, [network.n_exc], axis=1)
        x |= {"in": smooth(x["in"], inputs), "exc": smooth(x["exc"], exc), "inh": smooth(x["inh"], inh)}
        kept = jax.tree.map(lambda f: etrace_decay * f, f)
        f = {"g_exc": tangent(kept["g_exc"], new, none)[1], "g_inh": tangent(kept["g_inh"], none, new)[1]}
        return (states, r, x, f, f_out, sums), network.mean_of_populations(spikes)

    r = jnp.zeros((len(keys), network.n_out))
    x = {name: jnp.zeros((len(keys), n)) for name, n in n_pre.items()}
    f = dict.fromkeys(("g_exc", "g_inh"), states)  # all 0
    sums = dict(loss=jnp.zeros(()), gradient=jax.tree.map(jnp.zeros_like, weights), r=r)
    before, during = jnp.arange(recall.start), jnp.arange(recall.start, recall.stop)
    carry = states, r, x, f, jnp.zeros(()), sums
    carry, before = jax.lax.scan(functools.partial(step, learns=False), carry, before)
    (*_, sums), during = jax.lax.scan(functools.partial(step, learns=True), carry, during)
    sums["gradient"] = by_weights(weights, sums["gradient"])
    return averages(task, labels, rates=jnp.concatenate([before, during]), **sums)


# ---- brainscale -----------------------------------------------------------------------------------------------------

INSTALL_BRAINSCALE = 'pip install brainscale==0.1.0 "jax<0.10"'


def why_no_brainscale():
    """Why brainscale cannot be used, in words; None if it can be."""
    try:
        import brainscale  # noqa: F401 (to see whether it can be)
    except Exception as error:  # of several kinds, with other versions of JAX
        return f"found none that can be imported ({error}), expected it from: {INSTALL_BRAINSCALE}"
    return None


class BrainscaleNetwork(brainstate.nn.Module):
    """The network in layers of brainscale, which needs the weights to be states.

    The readout has the spikes of the end of a step, so that the loss of a step depends on its states alone: r is one
    step ahead of `EINetwork`'s.
    """

    def __init__(self, network, weights, connections):
        import brainscale

        super().__init__()
        self.network = network
        matrices = network.full_matrices(weights, connections)
        w_out = matrices.pop("out")
        self.layers = {name: brainscale.nn.SignedWLinear(*w.shape, w_init=w) for name, w in matrices.items()}
        self.readout = brainscale.nn.LeakyRateReadout(*w_out.shape, tau=network.tau_out, w_init=w_out)

    def init_state(self, batch_size):
        self.network.init_state(batch_size)
        self.readout.init_state(batch_size)
        # brainscale takes it that every hidden state is written, and every state used.
        neurons = self.network.neurons
        neurons.V_th = brainstate.ShortTermState(neurons.V_th.value)
        del self.network.r
        for name in ("I1", "I2"):
            if not neurons.changes[name]:
                delattr(neurons, name)

    def update(self, x):
        """One step. Returns r and the spikes of its start."""
        network, layers = self.network, self.layers
        spikes = network.neurons.get_spike()
        exc, inh = jnp.split(spikes, [network.n_exc], axis=1)
        network.update_neurons(layers["in"](x) + layers["exc"](exc), layers["inh"](inh), spikes)
        # The loss is differentiated by a state where it is written: V, which has read the conductances, would count
        # in the gradient by these once more.
        for state in (network.g_exc, network.g_inh):
            state.value = jnp.copy(state.value)
        return self.readout(network.neurons.get_spike()), spikes


def by_brainscale(task, network, weights, connections, keys, method, etrace_decay=0.98):
    """What `diag` or `expsm_diag` gives, by the algorithms of brainscale 0.1.0 and with its layers, as in the paper.

    Its diag is not D-RTRL: it divides all traces by the largest one where that exceeds 1, and takes the derivative of
    |W| at the trace instead of at W. Without these two, it agrees with ours (`tests/test_online.py`).
    """
    import brainscale

    recall = task.periods["recall"]
    labels, evidence = task.trials(keys)
    model = BrainscaleNetwork(network, weights, connections)
    model.init_state(len(keys))
    mode = brainstate.mixin.Batching()
    if method == "diag":
        algorithm = brainscale.ParamDimVjpAlgorithm(model, mode=mode)
    else:
        algorithm = brainscale.IODimVjpAlgorithm(model, etrace_decay, mode=mode)
    parameters = model.states(brainstate.ParamState)
    dtype = weights["in"].dtype
    algorithm.compile_graph(jnp.zeros((len(keys), network.n_in), dtype))

    def simulate(k):
        r, spikes = algorithm.update(task.spikes(keys, evidence, k).astype(dtype))
        return cross_entropy(r, labels).sum(), (r, network.mean_of_populations(spikes))

    def learn(gradient, k):
        step = brainstate.transform.grad(simulate, parameters, has_aux=True, return_value=True)
        more, loss, (r, rates) = step(k)
        return jax.tree.map(jnp.add, gradient, more), (loss, r, rates)

    before = brainstate.transform.for_loop(lambda k: simulate(k)[1][1], jnp.arange(recall.start - 1))
    gradient = jax.tree.map(jnp.zeros_like, {path: state.value for path, state in parameters.items()})
    steps = jnp.arange(recall.start - 1, recall.stop - 1)
    gradient, (loss, r, during) = brainstate.transform.scan(learn, gradient, steps)
    last = network.mean_of_populations(network.neurons.get_spike())
    matrices = {path[-2]: g["weight"] for path, g in gradient.items()}
    ends = network.pairs(connections)
    gradient = {name: matrices[name] if ends.get(name) is None else matrices[name][ends[name]] for name in ends}
    gradient |= {"in": matrices["in"], "out": matrices["readout"]}
    rates = jnp.concatenate([before, during, last[None]])
    return averages(task, labels, loss.sum(), gradient, r.sum(axis=0), rates)
