"""Products with connections that are listed, whose time and memory grow with their number, not with n_pre n_post.

Plain JAX, the same on CPU, GPU and TPU. A product gathers, in rows of WIDTH connections of one neuron, what the neurons
at their other ends have, and adds up the rows of a neuron; it costs the same whatever the spikes are. Those
`by_events`, of brainevent, cost what the spikes that occur cost, and have no gradient.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import brainevent
import jax
import jax.numpy as jnp

WIDTH = 16
# Steps are added up in lanes, which a CPU does at once, and so many are taken for a table: the sum is not stored.
LANES, AT_ONCE = 4, 100
# Share of the pairs that are connected, below which these products are used. They take as long as full ones at 0.1
# (400 to 4000 neurons, 4 to 64 trials, 2 cores), and less memory from there on.
SPARSE = 1 / 16


def is_sparse(n_listed: int, n_pre: int, n_post: int) -> bool:
    """Whether the products here are the faster ones for so many connections of n_pre with n_post neurons."""
    return n_listed < SPARSE * n_pre * n_post


class Rows(NamedTuple):
    """Connections in rows of WIDTH, each of one neuron; rows are padded, and some are empty.

    `of` (n_rows,) is the neuron of a row, ascending; `other` (n_rows, WIDTH) those at the other end, and `edge` their
    places in the list, its length where there is none.
    """

    of: jax.Array
    other: jax.Array
    edge: jax.Array


def in_rows(of: jax.Array, other: jax.Array, n: int) -> Rows:
    """The connections of each of n neurons in rows, whose number depends on the sizes alone."""
    n_listed = len(of)
    order = jnp.argsort(of, stable=True).astype(jnp.int32)
    degree = jnp.zeros(n, jnp.int32).at[of].add(1)
    n_rows = -(-degree // WIDTH)
    ends, start = jnp.cumsum(n_rows), jnp.cumsum(degree) - degree
    row = jnp.arange(n_listed // WIDTH + min(n, n_listed), dtype=jnp.int32)  # at least sum(n_rows)
    owner = jnp.minimum(jnp.searchsorted(ends, row, side="right"), n - 1).astype(jnp.int32)
    place = (row - (ends - n_rows)[owner])[:, None] * WIDTH + jnp.arange(WIDTH, dtype=jnp.int32)
    edge = order.at[start[owner][:, None] + place].get(mode="clip")
    exists = place < degree[owner][:, None]
    return Rows(owner, jnp.where(exists, other[edge], 0), jnp.where(exists, edge, n_listed))


class Synapses(NamedTuple):
    """Connections from `pre` to `post` with weights w, each (n_listed,), and the same in rows of either end."""

    w: jax.Array
    pre: jax.Array
    post: jax.Array
    of_pre: Rows
    of_post: Rows
    w_of_pre: jax.Array
    w_of_post: jax.Array


def synapses(w: jax.Array, pre: jax.Array, post: jax.Array, n_pre: int, n_post: int) -> Synapses:
    """The connections as `propagate` takes them; the gradient is that by w."""
    rows = in_rows(pre, post, n_pre), in_rows(post, pre, n_post)
    weights = (jax.lax.stop_gradient(w).at[of.edge].get(mode="fill", fill_value=0) for of in rows)
    return Synapses(w, pre, post, *rows, *weights)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def propagate(s: jax.Array, of: Synapses, n_post: int) -> jax.Array:
    """sum_i s_i w_ij, (batch, n_post), from any s (batch, n_pre)."""
    return _sums(s, of.w_of_post, of.of_post, n_post)


def _propagate_forward(s, of, n_post):
    return propagate(s, of, n_post), (s, of)


def _propagate_backward(n_post, kept, pulled):
    s, of = kept
    by_w = pair_total(s, pulled, of.pre, of.post)
    return _sums(pulled, of.w_of_pre, of.of_pre, s.shape[1]), Synapses(by_w, *[None] * 6)


propagate.defvjp(_propagate_forward, _propagate_backward)


def pair_products(x: jax.Array, y: jax.Array, pre: jax.Array, post: jax.Array) -> jax.Array:
    """`pair_total` of each trial, (batch, n_listed), from x (C, batch, n_pre) and y (C, batch, n_post)."""
    return jax.lax.map(lambda of_trial: pair_total(*of_trial, pre, post), (x.swapaxes(0, 1), y.swapaxes(0, 1)))


def pair_total(x: jax.Array, y: jax.Array, pre: jax.Array, post: jax.Array) -> jax.Array:
    """sum_s x_i(s) y_j(s) at each pair, (n_listed,), from x (..., n_pre) and y (..., n_post), over all other axes."""
    x, y = (a.reshape(-1, a.shape[-1]) for a in (x, y))
    n_group = -(-len(x) // AT_ONCE)
    length = -(-len(x) // (n_group * LANES))

    def in_lanes(a):  # (n_group, n, length, LANES): the steps of a neuron lie together
        a = jnp.pad(a, ((0, n_group * length * LANES - len(a)), (0, 0)))
        return a.reshape(n_group, length, LANES, -1).transpose(0, 3, 1, 2)

    def add(total, group):
        return total + _unless_zero(lambda x, y: (x[pre] * y[post]).sum(axis=1).sum(axis=1), *group), None

    return jax.lax.scan(add, jnp.zeros(len(pre), y.dtype), (in_lanes(x), in_lanes(y)))[0]


def _sums(x, w, of, n):
    """sum over the connections of each of n neurons of w x_other, (batch, n), from x (batch, n_other), w in rows."""

    def product(x):
        y = jnp.zeros((n, x.shape[1]), x.dtype)
        return y.at[of.of].add((w[..., None] * x[of.other]).sum(axis=1), indices_are_sorted=True)

    return _unless_zero(product, x.T).T


def _unless_zero(product: Callable, x: jax.Array, *others: jax.Array):
    """product(x, *others), which is 0 where x is.

    It also has XLA transpose the operands before: a CPU does so again for each element that it gathers else.
    """
    none = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(product, x, *others))
    return jax.lax.cond((x != 0).any(), product, lambda *_: none, x, *others)


def event_buffers(indptr: jax.Array, indices: jax.Array, n_pre: int, n_post: int) -> Any:
    """The work space of `by_events`; it cannot be made under `jax.jit`."""
    csr = brainevent.CSR(jnp.zeros(len(indices)), indices, indptr, shape=(n_pre, n_post))
    brainevent.BinaryArray(jnp.zeros((1, n_pre))) @ csr  # has it make them
    return csr.buffers


def by_events(spikes: jax.Array, matrix: dict[str, Any], n_post: int) -> jax.Array:
    """What spikes (batch, n_pre) send, by a matrix of data, indices, indptr and buffers, without a gradient."""
    # Made here, as a CSR that is the argument of a program has its indices as constants of it.
    return brainevent.BinaryArray(spikes) @ brainevent.CSR(**matrix, shape=(spikes.shape[1], n_post))
