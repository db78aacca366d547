"""The E/I network and the gradients of its learning rules written out plainly, one equation after another: the oracles.

A step of the neurons is a function (h, x_exc, x_inh) -> h of their states h = {"V", "I2", "g_exc", "g_inh"}, each
(batch, n_rec), and of the increments of the conductances: `plain_neurons`, or that of a network of `utils`. Weights are
full matrices.
"""

import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scripts

import learning_rules

script = scripts.import_script("task-coba-ei-rsnn")


def arguments(*more):
    """Arguments of a small network that spikes and a short trial, as the script parses them."""
    return script.parse_args([*scripts.SMALL_NETWORK, *map(str, more)])


def needs(package):
    """Skips a test where a package cannot be used as an engine."""
    reason = learning_rules.why_not(package)
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


def unchanged(x):
    return x


def plain_neurons(args, tau_a, reset=unchanged):
    """The step of Wang et al. (2024), App. F; reset: what becomes of the spikes in the reset."""
    dt = args.dt

    def step(h, x_exc, x_inh):
        V, I2, s = h["V"], h["I2"], reset(heaviside(h["V"] - 1))
        g_exc = h["g_exc"] * jnp.exp(-dt / args.tau_syn) + x_exc
        g_inh = h["g_inh"] * jnp.exp(-dt / args.tau_syn) + x_inh
        V, I2 = V - s, I2 - args.beta * s
        g = 1 + g_exc + g_inh
        V_inf = (I2 + g_exc * args.E_exc + g_inh * args.E_inh) / g
        V = V_inf + (V - V_inf) * jnp.exp(-g * dt / args.tau_neu)
        return dict(V=V, I2=I2 * jnp.exp(-dt / tau_a), g_exc=g_exc, g_inh=g_inh)

    return step


def cross_entropy(r, labels):
    return -(r - jnp.log(jnp.exp(r).sum(axis=1, keepdims=True)))[jnp.arange(len(labels)), labels]


def at_rest(weights, batch):
    return dict.fromkeys(("V", "I2", "g_exc", "g_inh"), jnp.zeros((batch, weights["in"].shape[1]), weights["in"].dtype))


def plain_loss(step, weights, trials, decay_out, sent=unchanged, remembered=unchanged):
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
        s = heaviside(h["V"] - 1)
        x_exc = x.astype(w_in.dtype) @ abs(w_in) + sent(s)[:, :n_exc] @ abs(w_exc)
        x_inh = sent(s)[:, n_exc:] @ abs(w_inh)
        r = remembered(r) * decay_out + s @ w_out
        loss = jnp.where(counted, cross_entropy(r, labels).mean(), 0)
        return (step(h, x_exc, x_inh), r), (loss, s)

    batch = inputs.shape[1]
    start = at_rest(weights, batch), jnp.zeros((batch, n_out), w_in.dtype)
    _, (losses, raster) = jax.lax.scan(advance, start, (inputs, counts))
    return losses.sum() / counts.sum(), raster


def plain_bptt(step, weights, trials, decay_out):
    """The gradient of backpropagation through time."""
    return jax.grad(lambda w: plain_loss(step, w, trials, decay_out)[0])(weights)


def plain_diag(step, weights, trials, decay_out):
    """The gradient of D-RTRL: that of BPTT stopped between neurons and in the readout's memory, but for W_out."""
    stop = jax.lax.stop_gradient
    gradient = jax.grad(lambda w: plain_loss(step, w, trials, decay_out, sent=stop, remembered=stop)[0])(weights)
    return gradient | {"out": plain_bptt(step, weights, trials, decay_out)["out"]}


def plain_expsm_diag(step, weights, trials, decay_out, etrace_decay):
    """The gradient of ES-D-RTRL: traces of |W_ij| that are products of x_i and f_j, both smoothed.

    What a neuron's next states owe to its states and to the increments are columns of its Jacobian: as neurons do not
    see each other in a step, that of all is one derivative along ones.
    """
    inputs, labels, counts = trials
    w = {name: abs(x) if name != "out" else x for name, x in weights.items()}
    n_exc, batch, decay = len(w["exc"]), inputs.shape[1], etrace_decay
    conductance = {"in": "g_exc", "exc": "g_exc", "inh": "g_inh"}

    def advance(carry, now):
        (h, f, x, r, f_r, total), (z, counted) = carry, now
        z, s = z.astype(w["in"].dtype), heaviside(h["V"] - 1)
        sources = {"in": z, "exc": s[:, :n_exc], "inh": s[:, n_exc:]}
        x["out"], f_r, r = decay * x["out"] + s, decay * decay_out * f_r + 1 - decay, decay_out * r + s @ w["out"]
        by_r = jnp.where(counted, jax.grad(lambda r: cross_entropy(r, labels).sum())(r), 0)
        by_V = by_r @ w["out"].T * 0.3 * jnp.maximum(0.0, 1 - jnp.abs(h["V"] - 1))
        total["out"] += x["out"].T @ (by_r * f_r)
        for name, g in conductance.items():
            total[name] += x[name].T @ (by_V * f[g]["V"])
        push = {"g_exc": z @ w["in"] + s[:, :n_exc] @ w["exc"], "g_inh": s[:, n_exc:] @ w["inh"]}
        one = jnp.ones_like(s)

        def column(function, argument):
            return jax.jvp(function, (argument,), (one,))[1]

        J = {b: column(lambda h_b, b=b: step(h | {b: h_b}, *push.values()), h[b]) for b in h}
        c = {g: column(lambda push_g, g=g: step(h, *(push | {g: push_g}).values()), push[g]) for g in push}
        f = {g: {a: decay * sum(J[b][a] * f[g][b] for b in h) + (1 - decay) * c[g][a] for a in h} for g in f}
        x |= {name: decay * x[name] + spikes for name, spikes in sources.items()}
        return (step(h, *push.values()), f, x, r, f_r, total), None

    dtype = w["in"].dtype
    x = {name: jnp.zeros((batch, len(matrix)), dtype) for name, matrix in w.items()}
    h, total = at_rest(w, batch), jax.tree.map(jnp.zeros_like, w)
    carry = h, {"g_exc": h, "g_inh": h}, x, jnp.zeros((batch, w["out"].shape[1]), dtype), jnp.zeros((), dtype), total
    (*_, total), _ = jax.lax.scan(advance, carry, (inputs, counts))
    n = batch * counts.sum()
    return {name: g * (1 if name == "out" else jnp.sign(weights[name])) / n for name, g in total.items()}
