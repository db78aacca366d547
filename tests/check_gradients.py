"""The gradients of all learning rules against BPTT and against an oracle of each rule."""

import functools
import itertools
import math
import time

import runs

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import scripts
from jax.sharding import NamedSharding
from tqdm import tqdm

import learning_rules
import utils

task_script = scripts.import_script("task-coba-ei-rsnn")

TOLERANCE = {32: 1e-5, 64: 1e-8}  # relative error of a gradient against its oracle, by bits of a number


def diag_oracle(task, network, weights, connections, keys):
    """What `diag` should give: BPTT with the gradient stopped between neurons and in the readout's memory.

    For the weights of the readout, BPTT.
    """
    loss, gradient, accuracy, rates = learning_rules.bptt(task, network, weights, connections, keys, local=True)
    return loss, gradient | {"out": learning_rules.bptt(task, network, weights, connections, keys)[1]["out"]}, accuracy, rates


def expsm_diag_oracle(task, network, weights, connections, keys, etrace_decay):
    """What `expsm_diag` should give: its equations one after another, with every Jacobian and every trace in full."""
    recall = task.periods["recall"]
    labels, evidence, synapses, h, _ = learning_rules.prepare(task, network, weights, connections, keys)
    ones, zeros = jnp.ones_like(h["V"]), jnp.zeros_like(h["V"])
    no_push, decay_r = {"g_exc": zeros, "g_inh": zeros}, utils.relax(1.0, 0.0, 1 / network.tau_out)

    def step(carry, k, learns):
        h, r, x, f, f_r, sums = carry
        inputs = task.spikes(keys, evidence, k)

        def simulate(h, push):
            return network.local_step(synapses, h, inputs, push["g_exc"], push["g_inh"])

        def loss(h, drive):
            new_r = decay_r * r + simulate(h, no_push)[0] @ synapses["out"] + drive
            return learning_rules.cross_entropy(new_r, labels).sum(), new_r

        spikes, next_h = simulate(h, no_push)
        z = {"in": inputs, "exc": spikes[:, : network.n_exc], "inh": spikes[:, network.n_exc :]}
        x["out"], f_r = etrace_decay * x["out"] + spikes, etrace_decay * decay_r * f_r + 1 - etrace_decay
        (value, r), (by_h, by_r) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(h, jnp.zeros_like(r))
        if learns:
            gradient = {"out": jnp.einsum("bi,bo->io", x["out"], by_r * f_r)}
            for name, g in learning_rules.CONDUCTANCE.items():
                traces = {state: jnp.einsum("bi,bj->bij", x[name], f[g][state]) for state in h}
                gradient[name] = sum(jnp.einsum("bj,bij->ij", by_h[state], traces[state]) for state in h)
            sums = jax.tree.map(jnp.add, sums, dict(loss=value, gradient=gradient, r=r))
        x |= {name: etrace_decay * x[name] + z[name] for name in z}
        J = {b: jax.jvp(lambda h_b, b=b: simulate(h | {b: h_b}, no_push)[1], (h[b],), (ones,))[1] for b in h}
        for g in f:
            c = jax.jvp(lambda push, g=g: simulate(h, no_push | {g: push})[1], (zeros,), (ones,))[1]
            f[g] = {a: etrace_decay * sum(J[b][a] * f[g][b] for b in h) + (1 - etrace_decay) * c[a] for a in h}
        return (next_h, r, x, f, f_r, sums), network.mean_of_populations(spikes)

    full = network.full_matrices(weights, connections)
    r = jnp.zeros((len(keys), network.n_out))
    x = {name: jnp.zeros((len(keys), len(matrix))) for name, matrix in full.items()}
    sums = dict(loss=jnp.zeros(()), gradient=jax.tree.map(jnp.zeros_like, full), r=r)
    before, during = jnp.arange(recall.start), jnp.arange(recall.start, recall.stop)
    carry = h, r, x, dict.fromkeys(no_push, h), jnp.zeros(()), sums  # all 0
    carry, before = jax.lax.scan(functools.partial(step, learns=False), carry, before)
    (*_, sums), during = jax.lax.scan(functools.partial(step, learns=True), carry, during)
    _, to_weights = jax.vjp(lambda weights: network.synapses(weights, connections), weights)
    (sums["gradient"],) = to_weights(sums["gradient"])
    return learning_rules.averages(task, labels, rates=jnp.concatenate([before, during]), **sums)


def alignment(gradient, reference):
    """Cosine, ratio of norms, and norm of the difference relative to the reference's, of two arrays."""
    a, b = (np.asarray(x, np.float64).ravel() for x in (gradient, reference))
    norm_a, norm_b = np.linalg.norm(a), np.linalg.norm(b)
    if norm_a == 0 or norm_b == 0:
        return dict(cosine=math.nan, norm_ratio=math.nan, error=0.0 if norm_a == norm_b else math.inf)
    return dict(cosine=a @ b / (norm_a * norm_b), norm_ratio=norm_a / norm_b, error=np.linalg.norm(a - b) / norm_b)


def measure(rule, mesh, model, keys):
    """The gradient by a rule of one batch, the rates, and what it took: seconds, without compilation, and memory."""
    task, network, weights, connections = model
    copied = NamedSharding(mesh, task_script.COPIED)
    arguments = jax.device_put((weights, connections, keys), (copied, copied, NamedSharding(mesh, task_script.SPLIT)))
    program = jax.jit(task_script.make_gradient(rule, task, network, mesh)).lower(*arguments).compile()
    seconds = []
    while len(seconds) < 2 and sum(seconds) < 10:  # the first call may be slower
        start = time.perf_counter()
        _, gradient, _, rates = jax.device_get(program(*arguments))
        seconds.append(time.perf_counter() - start)
    return dict(gradient=gradient, rates=rates, seconds=min(seconds), memory_MB=task_script.memory_of(program))


def check(args, mesh, model, seed):
    """The gradient of one batch by every method and engine, against BPTT's and against the oracle of each method.

    Returns:
        A row a rule and block of weights; and in words what is wrong: a native rule that departs from its oracle, a
        network that is silent, or two native rules that give the same gradient.
    """
    keys = jax.random.split(jax.random.key(seed), args.batch_size)
    oracles = {"diag": diag_oracle, "expsm_diag": functools.partial(expsm_diag_oracle, etrace_decay=args.etrace_decay)}
    rules = {(method, "native"): task_script.choose_rule(args, method, "native") for method in task_script.METHODS}
    rules |= {(method, "oracle"): oracle for method, oracle in oracles.items()}
    if words := learning_rules.why_no_brainscale():
        print(f"without brainscale: {words}")
    else:
        rules |= {(method, "brainscale"): task_script.choose_rule(args, method, "brainscale") for method in oracles}
    bar = tqdm(rules.items(), leave=False, disable=None, unit=" rules")
    found = {name: measure(rule, mesh, model, keys) for name, rule in bar}
    gradients = {name: result["gradient"] for name, result in found.items()}
    rows, failures, limit = [], [], TOLERANCE[args.precision]
    for method, engine in (name for name in found if name[1] != "oracle"):
        for block, gradient in gradients[method, engine].items():
            of_bptt = alignment(gradient, gradients["bptt", "native"][block])
            of_oracle = alignment(gradient, gradients.get((method, "oracle"), gradients["bptt", "native"])[block])
            row = dict(method=method, engine=engine, block=block)
            row |= dict(cosine_bptt=of_bptt["cosine"], norm_ratio_bptt=of_bptt["norm_ratio"])
            row |= {f"{name}_oracle": value for name, value in of_oracle.items()}
            rows.append(row | {name: found[method, engine][name] for name in ("seconds", "memory_MB")})
            if engine == "native" and not of_oracle["error"] <= limit:
                error = f"found an error of {of_oracle['error']:.1e} to its oracle, expected at most {limit:g}"
                failures.append(f"{method}, weights {block}: {error}")
    if not found["bptt", "native"]["rates"].any():
        failures.append("the network is silent: no neuron fires; raise --ff_scale")
    for methods in itertools.combinations(task_script.METHODS, 2):
        pair = [np.concatenate([gradients[m, "native"][block].ravel() for block in learning_rules.CONDUCTANCE]) for m in methods]
        if alignment(*pair)["error"] <= limit:
            failures.append(f"{' and '.join(methods)} give the same gradient")
    return rows, failures


def plot_check(rows):
    """Cosine with the gradient of BPTT, and ratio of the norms, by each rule for each block of weights."""
    rules = list(dict.fromkeys((row["method"], row["engine"]) for row in rows))
    figure, axes = plt.subplots(1, 2, figsize=(runs.WIDTH, 1.2 + 0.3 * len(rules)), sharey=True, layout="constrained")
    for i, block in enumerate(dict.fromkeys(row["block"] for row in rows)):
        of_block = [row for row in rows if row["block"] == block]
        for axis, quantity in zip(axes, ("cosine_bptt", "norm_ratio_bptt"), strict=True):
            y = np.arange(len(rules)) + 0.12 * (i - 1.5)
            axis.plot([row[quantity] for row in of_block], y, "os^D"[i], color=f"C{i}", label=block)
    axes[0].set(xlabel="cosine with the gradient of BPTT", yticks=range(len(rules)))
    axes[0].set_yticklabels([", ".join(rule) for rule in rules])
    axes[0].invert_yaxis()
    scale = "log" if any(row["norm_ratio_bptt"] > 0 for row in rows) else "linear"
    axes[1].set(xlabel="norm, relative to BPTT", xscale=scale)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right", title="weights")
    for axis in axes:
        axis.grid(axis="x", lw=0.4)
    return figure


def print_check(rows, failures):
    print(f"{'':28} {'to BPTT':^15}  {'to the oracle of the method':^26}")
    print(f"{'method':10} {'engine':10} weights  cosine    norm    cosine     norm    error  seconds        MB")
    for row in rows:
        print(f"{row['method']:10} {row['engine']:10} {row['block']:7}", end=" ")
        print(f"{row['cosine_bptt']:7.4f} {row['norm_ratio_bptt']:7.4f}", end=" ")
        print(f"{row['cosine_oracle']:9.6f} {row['norm_ratio_oracle']:8.5f} {row['error_oracle']:8.1e}", end=" ")
        print(f"{row['seconds']:8.2f} {row['memory_MB']:9.1f}")
    print("seconds: of a gradient, compiled; MB: of its program, on each device")
    for words in failures:
        print(f"FAILED: {words}")
