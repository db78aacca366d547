"""Check the gradients of all learning rules: of one batch, against BPTT and against an oracle of each rule.

The oracles are the equations of the rules written out plainly (`tests/plain.py`), on the neurons of the network itself.
Those of the packages brainscale and braintrace are beside them, where these can be used, and neurons are the paper's.
The exit status is 1 where a rule departs from its oracle by more than 1e-5 (1e-8 with --precision 64), where the
network is silent, or where two rules agree that should not.
"""

import argparse
import dataclasses
import itertools
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[1]))

import runs
from runs import BadInput

import brainstate
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import plain
import scripts
from jax.sharding import Mesh, NamedSharding
from plain import Neurons

import engines
import learning_rules
import numerics
from learning_rules import RULES, BatchGradient
from models import Model

task_script = scripts.import_script("task-coba-ei-rsnn")

SCRIPT = Path(__file__).stem
TOLERANCE = {32: 1e-5, 64: 1e-8}  # relative error of a gradient against its oracle, by bits of a number
GROUP = 8  # trials that an oracle has at a time, as it stores all states
# {rule: oracle, (neurons, weights, trials, decay_out, **arguments of the rule) -> gradient}, and what it is told.
ORACLES: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "bptt": (plain.plain_bptt, ()),
    "diag": (plain.plain_diag, ()),
    "expsm_diag": (plain.plain_expsm_diag, ("etrace_decay", "etrace_groups", "etrace_stretches", "trace_chunk")),
}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = runs.Parser(f"tests/{SCRIPT}", __doc__, ("--n_rec 40 --batch_size 8", "--batch_size 16 --precision 64"))
    task_script.add_model_arguments(parser)
    batch_size = "trials whose mean gradient is checked"
    parser.add_argument("--batch_size", type=runs.number(int, low=1), default=16, help=batch_size)
    runs.add_run_arguments(parser)
    return task_script.complete(parser, parser.parse_args(argv))


def neurons_of(model: Model) -> Neurons:
    """The model's own neurons, as in `plain`."""
    network = model.network

    def with_states(function):
        def of_states(h, *arguments):
            with brainstate.StateTraceStack():  # lets the states hold what JAX traces
                for name, value in h.items():
                    network.local_states[name].value = value
                return function(*arguments)

        return of_states

    def states():
        return {name: state.value for name, state in network.local_states.items()}

    def start(batch):
        network.init_state(batch)
        return states()

    def step(x_exc, x_inh):
        network.update_neurons(x_exc, x_inh, network.neurons.get_spike())
        return states()

    fast = [name for name in network.traced_states if name not in network.slow_states]
    return Neurons(start, with_states(network.neurons.get_spike), with_states(step), fast, network.slow_states)


def oracle_rule(method: str, arguments: Mapping[str, Any]) -> task_script.Rule:
    """The oracle of a rule, as a rule; its accuracy is not computed.

    Raises:
        BadInput: the rule has no oracle.
    """
    if method not in ORACLES:
        raise BadInput(f"rule {method}: found no oracle, expected one in ORACLES of tests/{SCRIPT}.py")
    oracle, names = ORACLES[method]
    own = {name: arguments[name] for name in names}

    def of_group(model: Model, keys: jax.Array) -> dict[str, jax.Array]:
        task, network = model.task, model.network
        labels, evidence = task.trials(keys)
        network.init_state(len(keys))
        steps, recall = np.arange(task.n_step), task.periods["recall"]
        trials = task.inputs(keys, evidence, steps), labels, (steps >= recall.start) & (steps < recall.stop)
        full = network.full_matrices(model.weights, model.connections)
        with model.clock():
            decay_out = numerics.relax(1.0, 0.0, 1 / network.tau_out)
            gradient = oracle(neurons_of(model), full, trials, decay_out, **own)
        ends = network.pairs(model.connections)
        return {name: g if ends.get(name) is None else g[ends[name]] for name, g in gradient.items()}

    def rule(model: Model, keys: jax.Array) -> BatchGradient:
        size = math.gcd(len(keys), GROUP)
        gradients = jax.lax.map(lambda keys: of_group(model, keys), keys.reshape(-1, size))
        gradient = jax.tree.map(lambda g: g.mean(axis=0), gradients)
        return BatchGradient(jnp.nan, gradient, jnp.nan, jnp.full((model.task.n_step, 2), jnp.nan))

    return rule


@dataclasses.dataclass(frozen=True)
class Measured:
    """The gradient of one batch by a rule, the rates, and what it took, without compilation."""

    gradient: dict[str, np.ndarray]
    rates: np.ndarray
    seconds: float
    memory_MB: float


def run_rule(rule: task_script.Rule, mesh: Mesh, model: Model, keys: jax.Array) -> Measured:
    """The gradient of the trials of the given keys by a rule."""
    copied, split = NamedSharding(mesh, task_script.COPIED), NamedSharding(mesh, task_script.SPLIT)
    arguments = jax.device_put(model, copied), jax.device_put(keys, split)
    program = jax.jit(task_script.make_gradient(rule, mesh)).lower(*arguments).compile()
    seconds = []
    while len(seconds) < 2 and sum(seconds) < 10:  # the first call may be slower
        start = time.perf_counter()
        _, gradient, _, rates = jax.device_get(program(*arguments))
        seconds.append(time.perf_counter() - start)
    return Measured(gradient, rates, min(seconds), task_script.memory_of(program))


def alignment(gradient: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Cosine, ratio of norms, and norm of the difference relative to the reference's, of two arrays."""
    a, b = (np.asarray(x, np.float64).ravel() for x in (gradient, reference))
    norm_a, norm_b = np.linalg.norm(a), np.linalg.norm(b)
    if norm_a == 0 or norm_b == 0:
        return dict(cosine=math.nan, norm_ratio=math.nan, error=0.0 if norm_a == norm_b else math.inf)
    return dict(cosine=a @ b / (norm_a * norm_b), norm_ratio=norm_a / norm_b, error=np.linalg.norm(a - b) / norm_b)


def rules_to_check(arguments: Mapping[str, Any]) -> dict[tuple[str, str], task_script.Rule]:
    """{(method, engine or "oracle"): rule}, with a line where a package cannot be used; those have one group."""
    rules = {(method, "native"): engines.choose_rule(method, "native", arguments) for method in RULES}
    rules |= {(method, "oracle"): oracle_rule(method, arguments) for method in RULES}
    for package in () if arguments["exc_neuron"] or arguments["inh_neuron"] else engines.PACKAGES:
        if reason := engines.why_not(package):
            print(f"without {package}: {reason}")
        else:
            choose = engines.choose_rule
            rules |= {(m, package): choose(m, package, arguments) for m in engines.PACKAGE_RULES}
            one_group = {**arguments, "etrace_groups": 1}
            rules["expsm_diag", f"oracle of {package}"] = oracle_rule("expsm_diag", one_group)
    return rules


def check(
    arguments: Mapping[str, Any], mesh: Mesh, model: Model, keys: jax.Array, limit: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """The gradient of one batch by every method and engine, against BPTT's and against the oracle of each method.

    Returns:
        A row a rule and block of weights; and what is wrong: a native rule that departs from its oracle by more than
        the limit, a network that is silent, or two native rules that give the same gradient.
    """
    bar = runs.progress(rules_to_check(arguments).items(), unit=" rules")
    measured = {name: run_rule(rule, mesh, model, keys) for name, rule in bar}
    rows, failures = [], []
    for method, engine in (name for name in measured if not name[1].startswith("oracle")):
        of_rule = measured[method, engine]
        oracle = measured.get((method, f"oracle of {engine}"), measured[method, "oracle"])
        for block, gradient in of_rule.gradient.items():
            of_bptt = alignment(gradient, measured["bptt", "native"].gradient[block])
            of_oracle = alignment(gradient, oracle.gradient[block])
            row = dict(method=method, engine=engine, block=block)
            row |= dict(cosine_bptt=of_bptt["cosine"], norm_ratio_bptt=of_bptt["norm_ratio"])
            row |= {f"{name}_oracle": value for name, value in of_oracle.items()}
            rows.append(row | dict(seconds=of_rule.seconds, memory_MB=of_rule.memory_MB))
            if engine == "native" and not of_oracle["error"] <= limit:
                error = f"found an error of {of_oracle['error']:.1e} to its oracle, expected at most {limit:g}"
                failures.append(f"{method}, weights {block}: {error}")
    if not measured["bptt", "native"].rates.any():
        failures.append("the network is silent: no neuron fires; raise --ff_scale")
    for methods in itertools.combinations(RULES, 2):
        gradients = [measured[method, "native"].gradient for method in methods]
        pair = [np.concatenate([g[block].ravel() for block in learning_rules.CONDUCTANCE]) for g in gradients]
        if alignment(*pair)["error"] <= limit:
            failures.append(f"{' and '.join(methods)} give the same gradient")
    return rows, failures


def plot_check(rows: Sequence[Mapping[str, Any]]) -> plt.Figure:
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


def print_check(rows: Sequence[Mapping[str, Any]], failures: Sequence[str]) -> None:
    print(f"{'':28} {'to BPTT':^15}  {'to the oracle of the method':^26}")
    print(f"{'method':10} {'engine':10} weights  cosine    norm    cosine     norm    error  seconds        MB")
    for row in rows:
        print(f"{row['method']:10} {row['engine']:10} {row['block']:7}", end=" ")
        print(f"{row['cosine_bptt']:7.4f} {row['norm_ratio_bptt']:7.4f}", end=" ")
        print(f"{row['cosine_oracle']:9.6f} {row['norm_ratio_oracle']:8.5f} {row['error_oracle']:8.1e}", end=" ")
        print(f"{row['seconds']:8.2f} {row['memory_MB']:9.1f}")
    print("seconds: of a gradient, compiled; MB: of its program, on each device")
    for failure in failures:
        print(f"FAILED: {failure}")


@runs.command_line
def main(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    mesh, seeds = task_script.setup(args, []), task_script.split_seed(args.seed)
    run = runs.RunFolder(args, SCRIPT, f"{args.conn_method}_{args.n_rec}_seed{args.seed}")
    keys = jax.random.split(jax.random.key(seeds.train), args.batch_size)
    model = task_script.make_model(args)
    rows, failures = check(vars(args), mesh, model, keys, TOLERANCE[args.precision])
    run.save_config(argv, list(mesh.devices))
    run.save("check.csv", rows)
    run.save("check.png", plot_check(rows))
    run.save("result.json", dict(rows=rows, failures=failures))
    print_check(rows, failures)
    print(run.path)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
