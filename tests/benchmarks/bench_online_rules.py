"""The online rules of braintrace on the E/I network, beside ours.

    python tests/benchmarks/bench_online_rules.py [--batch_size 8] [--updates 40] [--minutes 4] [--rules NAME ...]

On the newest set of packages (requirements-newest.txt). Constants of the network and of its training are those of the
README. In a row: the cosines of the gradient of one batch by an untrained network, by block of weights, to that of BPTT
and to that of D-RTRL (our diag), here also for the inputs that are active in the cues alone; the seconds of it a trial,
median in turns after a first call that does not count; the memory of the compiled program for one trial; and the
accuracy on held-out trials after as many updates for each rule, or - where they would take more than --minutes. Of
UORO, each trial has a draw of its own and the gradient is their mean; the matrices of random feedback are one draw.

braintrace has weights as |W| in plain layers, for which its traces are in closed form, and one row shows its layer for
signed weights. Rules that need the Jacobian between all states have one trial at a time (*), since in a batch theirs is
between the states of all trials. What cannot run here is listed with what it raises. The ratios come last.
"""

import argparse
import importlib
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path += map(str, Path(__file__).resolve().parents[1:3])

import runs

import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
from check_gradients import alignment
from common import in_turns
from workloads import Compiled, network, network_gradient, task_script

import engines
import learning_rules
from engines import PackageNetwork
from learning_rules import BatchGradient
from models import Model

ARGUMENTS = ("--lr", 5e-3, "--schedule", "cosine")
ARGUMENTS += ("--tau_a", 10000, "--rec_scale", 0.1, "--ff_scale", 10, "--beta", 0.5)
TRAINED_BATCH, N_HELDOUT = 64, 512
BLOCKS = {"in": "input", "exc": "E", "inh": "I"}
OURS: dict[str, task_script.Rule] = {
    "bptt": learning_rules.bptt,
    "diag": learning_rules.diag,
    "expsm_diag, 2 groups": learning_rules.expsm_diag,
    "expsm_diag, 1 group": lambda model, keys: learning_rules.expsm_diag(model, keys, etrace_groups=1),
}

MakeAlgorithm = Callable[[PackageNetwork, jax.Array], Any]  # of the network in layers, and the keys of its trials


def at_once(package: Any, make: MakeAlgorithm, signed: bool = False) -> task_script.Rule:
    """The rule of an algorithm of the package that has all trials of a batch together."""

    def rule(model: Model, keys: jax.Array) -> BatchGradient:
        return engines.by_algorithm(model, keys, package, lambda layers: make(layers, keys), signed)

    return rule


def one_by_one(package: Any, make: MakeAlgorithm) -> task_script.Rule:
    """The rule of an algorithm of the package that has one trial after the other."""
    of_one = at_once(package, make)

    def rule(model: Model, keys: jax.Array) -> BatchGradient:
        each = jax.lax.map(lambda key: of_one(model, key[None]), keys)
        return jax.tree.map(lambda x: x.mean(axis=0), each)

    return rule


def their_rules(package: Any, seed: int) -> dict[str, task_script.Rule]:
    """{class of braintrace, with what sets it apart: rule}; * where it has one trial at a time."""
    # Some draw from the generator of brainstate, or test a constant, neither of which can be traced.
    eager, feedback_key = jax.ensure_compile_time_eval, jax.random.key(seed)

    def compiled(algorithm, layers):
        with eager():
            algorithm.compile_graph(jnp.zeros((len(layers.network.g_exc.value), layers.network.n_in)))
        return algorithm

    def random_feedback(layers, keys):
        return compiled(package.EProp(layers, feedback="random", random_feedback_key=feedback_key), layers)

    def kappa_filter(layers, keys):  # as slow as the readout, in steps of 1 ms
        return package.EProp(layers, kappa_filter_decay=math.exp(-1 / layers.network.tau_out.to_decimal(u.ms)))

    def uoro(layers, keys):
        with eager():
            return package.UORO(layers, projection_key=jax.random.fold_in(keys[0], 2**30))  # no step of the trial

    def dni(layers, keys):
        algorithm = compiled(package.DNI(layers), layers)
        with eager():
            algorithm.attach_synthesizer(package.SyntheticGradient(algorithm.group_signal_shapes()))
        return algorithm

    def modulated(layers, keys):  # by a derivative of the loss at each state of each neuron, were it known
        return package.ThreeFactor(layers, modulator=jnp.zeros((len(keys), layers.network.n_rec, 4)))

    return {
        "D_RTRL": at_once(package, lambda layers, keys: package.D_RTRL(layers)),
        "D_RTRL, SignedWLinear": at_once(package, lambda layers, keys: package.D_RTRL(layers), signed=True),
        "DNI": at_once(package, dni),
        "OSTLRecurrent *": one_by_one(package, lambda layers, keys: package.OSTLRecurrent(layers)),
        "SnAp, n = 2 *": one_by_one(package, lambda layers, keys: package.SnAp(layers, n=2)),
        "UORO *": one_by_one(package, uoro),
        "EProp, kappa of the readout": at_once(package, kappa_filter),
        "EProp, random feedback": at_once(package, random_feedback),
        "ThreeFactor": at_once(package, modulated),
        "pp_prop, decay 0.98": at_once(package, lambda layers, keys: package.pp_prop(layers, 0.98)),
        "OSTLFeedforward": at_once(package, lambda layers, keys: package.OSTLFeedforward(layers)),
    }


def without_a_row(package: Any, names: Sequence[str]) -> list[str]:
    """The classes of algorithms of the package that neither are in the table, by these names, nor a base of those."""
    tried = [getattr(package, name.split(",")[0].rstrip(" *")) for name in names]
    classes = [cls for cls in vars(package).values() if isinstance(cls, type)]
    algorithms = {cls for cls in classes if issubclass(cls, package.ETraceAlgorithm)}
    return sorted(cls.__name__ for cls in algorithms if not any(issubclass(known, cls) for known in tried))


def accuracy_after(rule: task_script.Rule, updates: int, *arguments: Any) -> float:
    """Accuracy on held-out trials after that many updates by the rule."""
    model, args, mesh = network(
        *arguments, "--batch_size", TRAINED_BATCH, "--n_heldout", N_HELDOUT, "--epochs", updates
    )
    settings = runs.pick(task_script.TrainingSettings, argparse.Namespace(**args))
    optimiser = task_script.make_optimiser(settings)
    update = jax.jit(task_script.make_update(settings, rule, optimiser, mesh))
    state, key = optimiser.init(model.weights), jax.random.key_data(jax.random.key(args["seed"]))
    for n in range(1, updates + 1):
        model, state, _ = update(model, state, key, n)
    _, seed = task_script.evaluation_seeds(settings)
    return float(jax.jit(task_script.make_evaluation(settings, mesh))(model, seed).correct.mean())


def compile_rules(
    rules: Mapping[str, task_script.Rule], *arguments: Any
) -> tuple[dict[str, Compiled], dict[str, float], dict[str, str]]:
    """The program of each rule for a batch, the memory (MB) of that for one trial, and why others have none."""
    compiled, memory, reasons = {}, {}, {}
    for name, rule in rules.items():
        try:
            compiled[name] = network_gradient(lambda args, rule=rule: rule, *arguments)
            one = network_gradient(lambda args, rule=rule: rule, *arguments, "--batch_size", 1)
            memory[name] = task_script.memory_of(one.program)
        except Exception as error:  # whatever an algorithm raises where it cannot be used
            reasons[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"
        print(f"{name}: {reasons.get(name) or f'{compiled[name].seconds:.1f} s to compile'}", flush=True)
    return compiled, memory, reasons


def cosines(gradient: Mapping[str, Any], bptt: Mapping[str, Any], diag: Mapping[str, Any]) -> list[float]:
    """Cosines to BPTT, to D-RTRL, and to D-RTRL of the inputs that are active in the cues alone."""
    found = [alignment(gradient[block], exact[block])["cosine"] for exact in (bptt, diag) for block in BLOCKS]
    n_cue = len(diag["in"]) // 2
    return [*found, alignment(gradient["in"][:n_cue], diag["in"][:n_cue])["cosine"]]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--n_rec", type=int, default=200)
    parser.add_argument("--updates", type=int, default=40, help="of each rule; 0: no training")
    parser.add_argument("--minutes", type=float, default=4.0, help="which the training by a rule may take")
    parser.add_argument("--turns", type=int, default=1, help="that count")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rules", nargs="+", default=[""], metavar="NAME", help="beginnings of their names")
    args = parser.parse_args(argv)
    if reason := engines.why_not("braintrace"):
        sys.exit(f"braintrace: {reason}")
    # UORO draws with a callback, which JAX has on one device alone.
    arguments = *ARGUMENTS, "--n_rec", args.n_rec, "--seed", args.seed, "--devices", 0
    package = importlib.import_module("braintrace")
    theirs = their_rules(package, args.seed)
    chosen = ("bptt", "diag", *args.rules)  # these two are what the others are compared with
    rules = {name: rule for name, rule in (OURS | theirs).items() if name.startswith(chosen)}

    compiled, memory, reasons = compile_rules(rules, *arguments, "--batch_size", args.batch_size)
    found: dict[str, BatchGradient] = {}
    calls = [lambda name=name: found.update({name: compiled[name].run()}) for name in compiled]
    turns = in_turns(*calls, repeats=args.turns) / args.batch_size
    of_turns = dict(zip(compiled, turns.T, strict=True))
    seconds = {name: float(np.median(of_rule)) for name, of_rule in of_turns.items()}
    for name, of_rule in found.items():
        if not all(np.isfinite(g).all() for g in of_rule.gradient.values()):
            reasons[name] = "its gradient is not finite"

    rows, untrained = [], []
    for name in (name for name in compiled if name not in reasons):
        of_rule = cosines(found[name].gradient, found["bptt"].gradient, found["diag"].gradient)
        row = [name, *(f"{x:.3f}" for x in of_rule), f"{seconds[name]:.3g}", f"{memory[name]:.2f}"]
        minutes, accuracy = seconds[name] * TRAINED_BATCH * args.updates / 60, "-"
        if 0 < minutes <= args.minutes:
            accuracy = f"{accuracy_after(rules[name], args.updates, *arguments):.3f}"
        elif minutes:
            untrained.append(f"{name}: {minutes:.0f}")
        print(f"{name}: {', '.join(row[1:])}, {accuracy}", flush=True)
        rows.append([*row, accuracy])
    header = ["rule", *(f"{x}, {to}" for to in ("BPTT", "D-RTRL") for x in BLOCKS.values()), "cue inputs, D-RTRL"]
    header += ["s a trial", "MB a trial", f"accuracy, {args.updates} updates"]
    for row in (header, ["---"] * len(header), *rows):
        print(f"| {' | '.join(row)} |")
    print(f"minutes that {args.updates} updates would take, where they are left out:", "; ".join(untrained) or "none")
    for name, reason in reasons.items():
        print(f"cannot: {name}: {reason}")
    print("algorithms of braintrace without a row:", ", ".join(without_a_row(package, list(theirs))) or "none")
    for name in (name for name in compiled if name in theirs):
        ratios = (f"{np.median(of_turns[name] / of_turns[own]):.1f} times {own}" for own in OURS if own in compiled)
        print(f"time of {name}: {', '.join(ratios)}")


if __name__ == "__main__":
    main()
