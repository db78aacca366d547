"""The E/I network and its gradients written out plainly, one step and one equation after another, to compare with."""

import importlib

import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import scripts

script = importlib.import_module("task-coba-ei-rsnn")


def arguments(monkeypatch, *more):
    """Arguments of a small network that spikes and a short trial, as the script parses them."""
    monkeypatch.setattr("sys.argv", [script.__file__, *scripts.SMALL_NETWORK, *map(str, more)])
    return script.parse_args()


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


def keep(x):
    return x


def plain_step(V, I2, g_exc, g_inh, x_exc, x_inh, tau_a, args, reset=keep):
    """V, I2, g_E and g_I after a step, of one neuron or of many."""
    dt, s = args.dt, reset(heaviside(V - 1))
    g_exc = g_exc * jnp.exp(-dt / args.tau_syn) + x_exc
    g_inh = g_inh * jnp.exp(-dt / args.tau_syn) + x_inh
    V, I2 = V - s, I2 - args.beta * s
    g = 1 + g_exc + g_inh
    V_inf = (I2 + g_exc * args.E_exc + g_inh * args.E_inh) / g
    return V_inf + (V - V_inf) * jnp.exp(-g * dt / args.tau_neu), I2 * jnp.exp(-dt / tau_a), g_exc, g_inh


def cross_entropy(r, labels):
    return -(r - jnp.log(jnp.exp(r).sum(axis=1, keepdims=True)))[jnp.arange(len(labels)), labels]


def plain_loss(weights, inputs, labels, counts, tau_a, n_exc, args, sent=keep, kept=keep, reset=keep):
    """Mean cross-entropy over the steps (T,) that count, and spikes (T, batch, n_rec), of Wang et al. (2024), App. F.

    weights: full matrices; args: the arguments of the script; sent, kept, reset: what becomes of the spikes sent to
    other neurons, of the readout of the last step, and of the spikes in the reset: `jax.lax.stop_gradient` cuts there.
    """
    w_in, w_exc, w_inh, w_out = (weights[name] for name in ("in", "exc", "inh", "out"))
    at_rest = jnp.zeros((inputs.shape[1], w_in.shape[1]))

    def step(carry, now):
        (V, I2, g_exc, g_inh, r), (x, counted) = carry, now
        s = heaviside(V - 1)
        x_exc = x @ abs(w_in) + sent(s)[:, :n_exc] @ abs(w_exc)
        x_inh = sent(s)[:, n_exc:] @ abs(w_inh)
        r = kept(r) * jnp.exp(-args.dt / args.tau_out) + s @ w_out
        loss = jnp.where(counted, cross_entropy(r, labels).mean(), 0)
        return (*plain_step(V, I2, g_exc, g_inh, x_exc, x_inh, tau_a, args, reset), r), (loss, s)

    start = at_rest, at_rest, at_rest, at_rest, jnp.zeros((inputs.shape[1], 2))
    _, (losses, raster) = jax.lax.scan(step, start, (inputs.astype(w_in.dtype), counts))
    return losses.sum() / counts.sum(), raster


def plain_diag(weights, *args, **kwargs):
    """The gradient of D-RTRL: that of BPTT stopped between neurons and in the readout's memory, but for W_out."""
    stop = jax.lax.stop_gradient
    gradient = jax.grad(lambda w: plain_loss(w, *args, sent=stop, kept=stop, **kwargs)[0])(weights)
    return gradient | {"out": jax.grad(lambda w: plain_loss(w, *args, **kwargs)[0])(weights)["out"]}


def plain_expsm_diag(weights, inputs, labels, counts, tau_a, n_exc, args, decay):
    """The gradient of ES-D-RTRL: traces of |W_ij| that are products of x_i and f_j, both smoothed.

    The Jacobians are those of one neuron at a time.
    """
    w = {name: abs(x) if name != "out" else x for name, x in weights.items()}
    batch, n_rec, decay_r = inputs.shape[1], w["in"].shape[1], jnp.exp(-args.dt / args.tau_out)

    def one_neuron(h, push, tau_a):
        return jnp.stack(plain_step(*h, *push, tau_a, args))

    jacobians = [jax.vmap(jax.vmap(jax.jacfwd(one_neuron, n)), (0, 0, None)) for n in (0, 1)]

    def step(carry, now):
        (h, f, x, r, f_r, total), (z, counted) = carry, now
        s = heaviside(h[..., 0] - 1)
        sources = {"in": (z, 0), "exc": (s[:, :n_exc], 0), "inh": (s[:, n_exc:], 1)}
        x["out"], f_r, r = decay * x["out"] + s, decay * decay_r * f_r + 1 - decay, decay_r * r + s @ w["out"]
        by_r = jnp.where(counted, jax.grad(lambda r: cross_entropy(r, labels).sum())(r), 0)
        by_V = by_r @ w["out"].T * 0.3 * jnp.maximum(0.0, 1 - jnp.abs(h[..., 0] - 1))
        total["out"] += x["out"].T @ (by_r * f_r)
        for name, (_, kind) in sources.items():
            total[name] += x[name].T @ (by_V * f[kind][..., 0])
        push = jnp.stack([z @ w["in"] + s[:, :n_exc] @ w["exc"], s[:, n_exc:] @ w["inh"]], axis=-1)
        J, c = (jacobian(h, push, tau_a) for jacobian in jacobians)
        f = jnp.stack([decay * jnp.einsum("bjkl,bjl->bjk", J, f[n]) + (1 - decay) * c[..., n] for n in (0, 1)])
        x |= {name: decay * x[name] + spikes for name, (spikes, _) in sources.items()}
        h = jnp.stack(plain_step(*jnp.moveaxis(h, -1, 0), *jnp.moveaxis(push, -1, 0), tau_a, args), axis=-1)
        return (h, f, x, r, f_r, total), None

    x = {name: jnp.zeros((batch, len(matrix))) for name, matrix in w.items()}
    total = jax.tree.map(jnp.zeros_like, w)
    carry = jnp.zeros((batch, n_rec, 4)), jnp.zeros((2, batch, n_rec, 4)), x, jnp.zeros((batch, 2)), 0.0, total
    (*_, total), _ = jax.lax.scan(step, carry, (inputs.astype(w["in"].dtype), counts))
    n = batch * counts.sum()
    return {name: g * (1 if name == "out" else jnp.sign(weights[name])) / n for name, g in total.items()}
