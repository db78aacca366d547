"""The E/I network and the gradients of its learning rules written out plainly, one equation after another: the oracles.

Neurons are `Neurons`: `plain_neurons`, or those of a network of `utils`. Weights are full matrices.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence

import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scripts

import engines

script = scripts.import_script("task-coba-ei-rsnn")


def arguments(*more):
    """Arguments of a small network that spikes and a short trial, as the script parses them."""
    return script.parse_args([*scripts.SMALL_NETWORK, *map(str, more)])


def needs(package):
    """Skips a test where a package cannot be used as an engine."""
    reason = engines.why_not(package)
    return pytest.mark.skipif(reason is not None, reason=str(reason))


def relative_errors(gradient, expected):
    """{block: norm of the difference relative to the norm of what is expected}."""
    assert all(np.linalg.norm(x) > 0 for x in expected.values())
    return {name: np.linalg.norm(gradient[name] - x) / np.linalg.norm(x) for name, x in expected.items()}


def full_matrix(weights, connections, n_pre, n_rec):
    """Matrix (n_pre, n_rec) of listed connections, entry by entry."""
    if connections is None:
        return weights
    indptr, indices = connections
    matrix = jnp.zeros((n_pre, n_rec), weights.dtype)
    for i in range(n_pre):
        for k in range(indptr[i], indptr[i + 1]):
            matrix = matrix.at[i, indices[k]].set(weights[k])
    return matrix


def tau_a_of(network):
    return (1 / network.neurons.k2).to_decimal(u.ms)


@jax.custom_jvp
def heaviside(x):
    return jnp.where(x >= 0, 1.0, 0.0)


@heaviside.defjvp
def _(primals, tangents):
    (x,), (dx,) = primals, tangents
    return heaviside(x), 0.3 * jnp.maximum(0.0, 1 - jnp.abs(x)) * dx


@dataclasses.dataclass(frozen=True)
class Neurons:
    """Neurons as functions of their states h = {"V", ..., "g_exc", "g_inh"}, each (batch, n_rec).

    Args:
        start: batch -> h before a trial.
        spikes: h -> spikes.
        step: (h, x_exc, x_inh) -> h after a step, with the increments of the conductances.
        fast, slow: names of the states besides conductances that remember, by their time constants.
    """

    start: Callable
    spikes: Callable
    step: Callable
    fast: Sequence[str] = ("V",)
    slow: Sequence[str] = ("I2",)


def unchanged(x):
    return x


def plain_neurons(args, tau_a, reset=unchanged):
    """The neurons of Wang et al. (2024), App. F; reset: what becomes of the spikes in the reset."""
    dt, n_rec = args.dt, args.n_rec

    def start(batch):
        return dict.fromkeys(("V", "I2", "g_exc", "g_inh"), jnp.zeros((batch, n_rec)))

    def spikes(h):
        return heaviside(h["V"] - 1)

    def step(h, x_exc, x_inh):
        V, I2, s = h["V"], h["I2"], reset(heaviside(h["V"] - 1))
        g_exc = h["g_exc"] * jnp.exp(-dt / args.tau_syn) + x_exc
        g_inh = h["g_inh"] * jnp.exp(-dt / args.tau_syn) + x_inh
        V, I2 = V - s, I2 - args.beta * s
        g = 1 + g_exc + g_inh
        V_inf = (I2 + g_exc * args.E_exc + g_inh * args.E_inh) / g
        V = V_inf + (V - V_inf) * jnp.exp(-g * dt / args.tau_neu)
        return dict(V=V, I2=I2 * jnp.exp(-dt / tau_a), g_exc=g_exc, g_inh=g_inh)

    return Neurons(start, spikes, step)


def plain_gif(constants, args, tau_syn):
    """Neurons of `utils.GIF` with all that they may have.

    Args:
        constants: {name: (n_rec,)}, dimensionless, in ms and per ms, with E_exc and E_inh.
    """
    c, dt, n_rec = constants, args.dt, args.n_rec
    n_ref = jnp.asarray(np.round(c["t_ref"] / dt))
    currents = (("I1", "R1", "A1", "k1"), ("I2", "R2", "A2", "k2"), ("I3", None, "A3", "k3"))
    currents += (("g", None, "A_g", "k_g"),)

    def drive(V):
        k_i = np.where(c["k_i"] > 0, c["k_i"], 1)
        smooth = k_i * jnp.logaddexp(0, (V - c["V_i"]) / k_i)
        return jnp.where(c["k_i"] > 0, smooth, V - c["V_rest"])

    def start(batch):
        names = ("V", "V_th", "V_th2", "I1", "I2", "I3", "g", "left", "pending", "g_exc", "g_inh")
        h = dict.fromkeys(names, jnp.zeros((batch, n_rec)))
        V = h["V"] + c["V_rest"]
        return h | dict(V=V, V_th=c["V_th_inf"] + c["a"] / np.maximum(c["b"], 1e-4) * drive(V))

    def spikes(h):
        threshold = h["V_th"] + h["V_th2"]
        return heaviside((h["V"] - threshold) / jnp.abs(threshold)) * (h["left"] == 0)

    def step(h, x_exc, x_inh):
        s, due = spikes(h), h["left"] == 0
        g_exc = h["g_exc"] * jnp.exp(-dt / tau_syn) + x_exc
        g_inh = h["g_inh"] * jnp.exp(-dt / tau_syn) + x_inh
        V_reset = jnp.where(c["soft"], h["V"] - h["V_th"], c["V_reset"])
        V = h["V"] + s * (V_reset - h["V"])
        begins = h["pending"] * due + s * (n_ref == 0)  # the spikes whose currents begin
        pending = jnp.where(s > 0, s * (n_ref > 0), h["pending"] * ~due)
        left = jnp.where(s > 0, n_ref, h["left"])
        after, now = {}, {}
        for name, factor, increment, rate in currents:
            now[name] = h[name] + begins * (((c[factor] if factor else 1) - 1) * h[name] + c[increment])
            after[name] = now[name] * jnp.exp(-dt * c[rate])
        g = 1 + g_exc + g_inh + now["g"]
        I = now["I1"] + now["I2"] + now["I3"] + now["g"] * c["E_g"]
        V_inf = (c["V_rest"] + I + g_exc * c["E_exc"] + g_inh * c["E_inh"]) / g
        V_next = jnp.where(left > 0, V, V_inf + (V - V_inf) * jnp.exp(-g * dt / c["tau"]))
        V_th = jnp.maximum(h["V_th"], c["V_th_reset"]) + s * c["A_th"]
        b = np.where(c["b"] > 0, c["b"], 1)
        steady = c["V_th_inf"] + c["a"] / b * drive(V)
        relaxed = steady + (V_th - steady) * jnp.exp(-b * dt)
        V_th = jnp.where(c["b"] > 0, relaxed, V_th + dt * c["a"] * drive(V))
        V_th2 = (h["V_th2"] + s * c["A_th2"]) * jnp.exp(-c["b2"] * dt)
        after |= dict(V=V_next, V_th=V_th, V_th2=V_th2, left=jnp.maximum(left - 1, 0), pending=pending)
        return after | dict(g_exc=g_exc, g_inh=g_inh)

    rates = dict(V_th="b", V_th2="b2", I1="k1", I2="k2", I3="k3", g="k_g")
    driven = dict(V_th=c["a"] + abs(c["A_th"]), V_th2=c["A_th2"], I1=c["A1"], I2=c["A2"], I3=c["A3"], g=c["A_g"])
    slow = [name for name, rate in rates.items() if np.median((c["tau"] * c[rate])[driven[name] != 0]) < 1]
    return Neurons(start, spikes, step, ["V", "pending", *(name for name in rates if name not in slow)], slow)


def cross_entropy(r, labels):
    return -(r - jnp.log(jnp.exp(r).sum(axis=1, keepdims=True)))[jnp.arange(len(labels)), labels]


def plain_loss(neurons, weights, trials, decay_out, sent=unchanged, remembered=unchanged):
    """Mean cross-entropy over the steps that count, and spikes (T, batch, n_rec).

    Args:
        trials: inputs (T, batch, n_in), labels (batch,), and which steps count (T,).
        decay_out: of the readout in a step.
        sent, remembered: what becomes of the spikes sent to other neurons, and of the readout of the last step:
            `jax.lax.stop_gradient` cuts there.
    """
    inputs, labels, counts = trials
    w_in, w_exc, w_inh, w_out = (weights[name] for name in ("in", "exc", "inh", "out"))
    n_exc, n_out = len(w_exc), w_out.shape[1]

    def advance(carry, now):
        (h, r), (x, counted) = carry, now
        s = neurons.spikes(h)
        x_exc = x.astype(w_in.dtype) @ abs(w_in) + sent(s)[:, :n_exc] @ abs(w_exc)
        x_inh = sent(s)[:, n_exc:] @ abs(w_inh)
        r = remembered(r) * decay_out + s @ w_out
        loss = jnp.where(counted, cross_entropy(r, labels).mean(), 0)
        return (neurons.step(h, x_exc, x_inh), r), (loss, s)

    batch = inputs.shape[1]
    start = neurons.start(batch), jnp.zeros((batch, n_out), w_in.dtype)
    _, (losses, raster) = jax.lax.scan(advance, start, (inputs, counts))
    return losses.sum() / counts.sum(), raster


def plain_bptt(neurons, weights, trials, decay_out):
    """The gradient of backpropagation through time."""
    return jax.grad(lambda w: plain_loss(neurons, w, trials, decay_out)[0])(weights)


def plain_diag(neurons, weights, trials, decay_out):
    """The gradient of D-RTRL: that of BPTT stopped between neurons and in the readout's memory, but for W_out."""
    stop = jax.lax.stop_gradient
    gradient = jax.grad(lambda w: plain_loss(neurons, w, trials, decay_out, sent=stop, remembered=stop)[0])(weights)
    return gradient | {"out": plain_bptt(neurons, weights, trials, decay_out)["out"]}


def reference_gradient(rule, model, neurons, args, task=None, **options):
    """The gradient of 4 trials, those of key 3, at the connections that there are.

    Args:
        rule: `plain_bptt` or another, with its options.
        args: of the script, that the model is made of.
        task: in place of the model's.
    """
    network, task = model.network, task or model.task
    inputs, labels, _ = task(jax.random.key(3), 4)
    recall, steps = task.periods["recall"], np.arange(task.n_step)
    matrices = dict(model.weights)
    for name, n_pre in network.sizes.items():
        matrices[name] = full_matrix(matrices[name], model.connections[name], n_pre, network.n_rec)
    trials = inputs, labels, (steps >= recall.start) & (steps < recall.stop)
    expected = dict(rule(neurons, matrices, trials, math.exp(-args.dt / args.tau_out), **options))
    for name, ends in network.pairs(model.connections).items():
        expected[name] = expected[name] if ends is None else expected[name][ends]
    return expected


CONDUCTANCE = {"in": "g_exc", "exc": "g_exc", "inh": "g_inh"}


def plain_expsm_diag(
    neurons, weights, trials, decay_out, etrace_decay, etrace_groups, etrace_stretches=1, trace_chunk=100
):
    """The gradient of ES-D-RTRL, with one group of states or two."""
    if etrace_groups == 1:
        return plain_one_product(neurons, weights, trials, decay_out, etrace_decay)
    return plain_products(neurons, weights, trials, decay_out, etrace_decay, etrace_stretches, trace_chunk)


def jacobian(step, h, push):
    """{state: {next state: derivative}} (batch, n_rec), and {conductance: {next state: that by its increment}}.

    As neurons do not see each other in a step, a column of all their Jacobians is one derivative along ones.
    """
    one = jnp.ones_like(h["V"])

    def column(function, argument):
        return jax.jvp(function, (argument,), (one,))[1]

    J = {b: column(lambda h_b, b=b: step(h | {b: h_b}, *push.values()), h[b]) for b in h}
    return J, {g: column(lambda push_g, g=g: step(h, *(push | {g: push_g}).values()), push[g]) for g in push}


def plain_one_product(neurons, weights, trials, decay_out, etrace_decay):
    """Traces of |W_ij| that are products of x_i and f_j, both smoothed."""
    inputs, labels, counts = trials
    w = {name: abs(x) if name != "out" else x for name, x in weights.items()}
    n_exc, batch, decay = len(w["exc"]), inputs.shape[1], etrace_decay

    def advance(carry, now):
        (h, f, x, r, f_r, total), (z, counted) = carry, now
        z, s = z.astype(w["in"].dtype), neurons.spikes(h)
        sources = {"in": z, "exc": s[:, :n_exc], "inh": s[:, n_exc:]}
        x["out"], f_r, r = decay * x["out"] + s, decay * decay_out * f_r + 1 - decay, decay_out * r + s @ w["out"]
        by_r = jnp.where(counted, jax.grad(lambda r: cross_entropy(r, labels).sum())(r), 0)
        by_h = jax.vjp(neurons.spikes, h)[1](by_r @ w["out"].T)[0]
        total["out"] += x["out"].T @ (by_r * f_r)
        for name, g in CONDUCTANCE.items():
            total[name] += sum(x[name].T @ (by_h[a] * f[g][a]) for a in h)
        push = {"g_exc": z @ w["in"] + s[:, :n_exc] @ w["exc"], "g_inh": s[:, n_exc:] @ w["inh"]}
        J, c = jacobian(neurons.step, h, push)
        f = {g: {a: decay * sum(J[b][a] * f[g][b] for b in h) + (1 - decay) * c[g][a] for a in h} for g in f}
        x |= {name: decay * x[name] + spikes for name, spikes in sources.items()}
        return (neurons.step(h, *push.values()), f, x, r, f_r, total), None

    dtype = w["in"].dtype
    x = {name: jnp.zeros((batch, len(matrix)), dtype) for name, matrix in w.items()}
    h, total = neurons.start(batch), jax.tree.map(jnp.zeros_like, w)
    none = jax.tree.map(jnp.zeros_like, h)
    r, f_r = jnp.zeros((batch, w["out"].shape[1]), dtype), jnp.zeros((), dtype)
    carry = h, {"g_exc": none, "g_inh": none}, x, r, f_r, total
    (*_, total), _ = jax.lax.scan(advance, carry, (inputs, counts))
    n = batch * counts.sum()
    return {name: g * (1 if name == "out" else jnp.sign(weights[name])) / n for name, g in total.items()}


def chunk_marks(start, stop, chunk, n_stretch):
    """Of the steps of all chunks: which are the first and the last of one, and the stretch it is in; and the steps.

    The chunks before recall end with it, and may begin before step 0; those in it may go on beyond its end.
    """
    n_before, n_during = -(-start // chunk), -(-(stop - start) // chunk)
    lengths = [-(-start // n_before)] * n_before if n_before else []
    lengths += [-(-(stop - start) // n_during)] * n_during
    ends = np.cumsum(lengths)
    steps = np.arange(ends[-1])
    which = np.searchsorted(ends, steps, side="right")
    stretch = which * n_stretch // len(lengths)
    first_step = start - sum(lengths[:n_before])
    return np.isin(steps, ends - lengths), np.isin(steps + 1, ends), stretch, first_step + steps


def plain_products(neurons, weights, trials, decay_out, etrace_decay, n_stretch, chunk):
    """Traces that are exact within a chunk, and products of x_i and f_j from one to the next.

    All goes forward: e are the traces since the chunk began, f what the products of earlier ones have become, and in
    `unit` what a state would owe to a weight had its neuron sent a spike in each step of this chunk, or before it.
    """
    inputs, labels, counts = trials
    w = {name: abs(x) if name != "out" else x for name, x in weights.items()}
    n_exc, batch, dtype = len(w["exc"]), inputs.shape[1], w["in"].dtype
    counted = np.flatnonzero(np.asarray(counts))
    first, last, stretch, steps = chunk_marks(counted[0], counted[-1] + 1, chunk, n_stretch)
    exists = (steps >= 0) & (steps < len(inputs))
    z = jnp.asarray(inputs)[np.clip(steps, 0, len(inputs) - 1)].astype(dtype) * exists[:, None, None]
    counts = exists & np.asarray(counts)[np.clip(steps, 0, len(inputs) - 1)]
    remember = (*neurons.fast, *neurons.slow)

    def together(products):
        sizes = [sum(abs(f_a).mean(axis=1, keepdims=True) for f_a in f.values()) for _, f in products]
        total = sum(sizes) + (sum(sizes) == 0)
        x = sum(size * x for size, (x, _) in zip(sizes, products, strict=True)) / total
        return x, {a: sum(f[a] for _, f in products) for a in products[0][1]}

    def advance(carry, now):
        h, p, p_before, e, unit, f, x, means, q, r, total = carry
        z, counted, is_first, is_last, k, age, begun = now
        s = begun * neurons.spikes(h)

        sources = {"in": z, "exc": s[:, :n_exc], "inh": s[:, n_exc:]}
        push = {"g_exc": z @ w["in"] + s[:, :n_exc] @ w["exc"], "g_inh": s[:, n_exc:] @ w["inh"]}
        J, c = jacobian(neurons.step, h, push)
        decay_syn = J["g_exc"]["g_exc"][0, 0]
        # Before step 0 nothing changes.
        J = {b: {a: jnp.where(begun > 0, x, float(a == b)) for a, x in of.items()} for b, of in J.items()}
        c = {g: {a: begun * x for a, x in of.items()} for g, of in c.items()}
        always = 1 / (1 - decay_syn)

        # A chunk begins.
        def begin(name, i, e):
            return p[name][:, :, None] * jnp.ones_like(h["V"])[:, None, :] if i == CONDUCTANCE[name] else 0 * e

        e = {n: {i: jnp.where(is_first, begin(n, i, e_i), e_i) for i, e_i in of.items()} for n, of in e.items()}
        p_before = {n: jnp.where(is_first, p[n], p_before[n]) for n in p}
        unit = {
            g: {
                when: {
                    i: jnp.where(is_first, always * (i == g and when == "before") + 0 * u_i, u_i)
                    for i, u_i in of.items()
                }
                for when, of in both.items()
            }
            for g, both in unit.items()
        }
        means = {n: [jnp.where(is_first, 0, m) for m in of] for n, of in means.items()}

        # The gradient of this step.
        q, r = decay_out * q + s, decay_out * r + s @ w["out"]
        by_r = jnp.where(counted, jax.grad(lambda r: cross_entropy(r, labels).sum())(r), 0)
        by_h = jax.vjp(neurons.spikes, h)[1](by_r @ w["out"].T)[0]
        total = total | {"out": total["out"] + q.T @ by_r}
        for n in CONDUCTANCE:
            traces = {a: e[n][a] + jnp.einsum("pbi,pbj->bij", x[n], f[n][a]) for a in remember}
            total[n] += sum((trace * by_h[a][:, None, :]).sum(axis=0) for a, trace in traces.items())

        # What is remembered of it.
        for n, g in CONDUCTANCE.items():
            e[n] = {
                a: sum(J[b][a][:, None, :] * e[n][b] for b in h) + c[g][a][:, None, :] * sources[n][:, :, None]
                for a in h
            }
            f[n] = {a: sum(J[b][a] * f[n][b] for b in remember) for a in remember}
            means[n] = [means[n][0] + sources[n], etrace_decay * means[n][1] + sources[n]]
        for g in unit:
            old = unit[g]
            unit[g] = {when: {a: sum(J[b][a] * old[when][b] for b in h) for a in h} for when in old}
            unit[g]["now"] = {a: unit[g]["now"][a] + c[g][a] for a in h}

        # A chunk ends.
        for n, g in CONDUCTANCE.items():
            n_weights = (1 - etrace_decay ** (age + 1)) / (1 - etrace_decay)
            mean, mean_V = means[n][0] / (age + 1), means[n][1] / n_weights

            def own(states, mean, n=n, g=g):
                now, before = unit[g]["now"], unit[g]["before"]
                return [(mean, {a: now[a] for a in states}), (p_before[n] / always, {a: before[a] for a in states})]

            def earlier(states, k, n=n):
                return x[n][k], {a: f[n][a][k] for a in states}

            x_fast, f_fast = together([*own(neurons.fast, mean_V), earlier(neurons.fast, 0)])
            x_slow, f_slow = together(
                [*own(neurons.slow, mean), earlier(neurons.slow, 0), earlier(neurons.slow, 1 + k)]
            )
            ended = x[n].at[0].set(x_fast).at[1 + k].set(x_slow)
            ended_f = {a: f[n][a].at[0].set(f_fast[a]) for a in neurons.fast}
            ended_f |= {a: f[n][a].at[0].set(0.0).at[1 + k].set(f_slow[a]) for a in neurons.slow}
            x[n] = jnp.where(is_last, ended, x[n])
            f[n] = {a: jnp.where(is_last, ended_f[a], f[n][a]) for a in remember}
        p = {n: decay_syn * p[n] + sources[n] for n in p}
        h = {a: jnp.where(begun > 0, after, h[a]) for a, after in neurons.step(h, *push.values()).items()}
        return (h, p, p_before, e, unit, f, x, means, q, r, total), None

    h = neurons.start(batch)
    none = jax.tree.map(jnp.zeros_like, h)
    n_rec, sizes = h["V"].shape[1], {n: len(w[n]) for n in CONDUCTANCE}
    p = {n: jnp.zeros((batch, m), dtype) for n, m in sizes.items()}
    e = {n: dict.fromkeys(h, jnp.zeros((batch, m, n_rec), dtype)) for n, m in sizes.items()}
    unit = {g: {"now": none, "before": none} for g in ("g_exc", "g_inh")}
    f = {n: dict.fromkeys(remember, jnp.zeros((1 + n_stretch, batch, n_rec), dtype)) for n in sizes}
    x = {n: jnp.zeros((1 + n_stretch, batch, m), dtype) for n, m in sizes.items()}
    means = {n: [zeros, zeros] for n, zeros in p.items()}
    r = jnp.zeros((batch, w["out"].shape[1]), dtype)
    carry = h, p, p, e, unit, f, x, means, none["V"], r, jax.tree.map(jnp.zeros_like, w)
    age = np.arange(len(steps)) - np.maximum.accumulate(np.where(first, np.arange(len(steps)), 0))
    age, begun = age.astype(dtype), (steps >= 0).astype(dtype)
    (*_, total), _ = jax.lax.scan(advance, carry, (z, counts, first, last, stretch, age, begun))
    n = batch * counts.sum()
    return {name: g * (1 if name == "out" else jnp.sign(weights[name])) / n for name, g in total.items()}
