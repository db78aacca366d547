"""How near the gradient of expsm_diag is to that of diag: by groups of states, stretches of the trial, and the decay.

    python tests/benchmarks/expsm_cosines.py [--batch_size 32] [--seed 0]

Cosines of the gradients of one batch by untrained networks, with the paper's constants and with the arguments of the
README: of the weights of the inputs, of those that are active in the cues alone, and of the excitatory and inhibitory
neurons; and the seconds of a gradient over those of diag. Three minutes on two cores. `tests/reference/make.py groups`
keeps the cosines.
"""

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path += map(str, Path(__file__).resolve().parents[1:3])

import runs  # noqa: F401 - before JAX

import jax
import numpy as np
from check_gradients import alignment
from common import in_turns
from workloads import network

import learning_rules
import models

NETWORKS = {"the paper's": (), "the README's": ("--tau_a", 10000, "--rec_scale", 0.1, "--ff_scale", 10, "--beta", 0.5)}
VARIANTS = {"one group": dict(etrace_groups=1)}
VARIANTS |= {f"two groups, stretches {n}": dict(etrace_stretches=n) for n in (1, 2, 4, 8, 16)}
VARIANTS |= {f"two groups, decay {decay:g}": dict(etrace_decay=decay) for decay in (0.9, 0.999)}
VARIANTS |= {f"two groups, chunks of {C}": dict(trace_chunk=C) for C in (10, 25, 200)}


Rules = dict[str, Callable[[models.Model, jax.Array], learning_rules.BatchGradient]]


def rules_of(variants: Mapping[str, Mapping[str, Any]]) -> Rules:
    """diag, and expsm_diag with the arguments of each variant, compiled when called."""
    rules = {"diag": jax.jit(learning_rules.diag)}
    return rules | {
        variant: jax.jit(lambda model, keys, own=own: learning_rules.expsm_diag(model, keys, **own))
        for variant, own in variants.items()
    }


def cosines(rules: Rules, model: models.Model, keys: jax.Array) -> dict[str, dict[str, float]]:
    """{variant: {block of weights: cosine with the gradient of diag}}."""
    exact, n_cue, found = rules["diag"](model, keys).gradient, model.network.n_in // 2, {}
    for variant in list(rules)[1:]:
        gradient = rules[variant](model, keys).gradient
        pairs = {block: (gradient[block], exact[block]) for block in ("in", "exc", "inh")}
        pairs["cue inputs"] = tuple(x[:n_cue] for x in pairs["in"])
        found[variant] = {name: alignment(*pair)["cosine"] for name, pair in pairs.items()}
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    keys, rules = jax.random.split(jax.random.key(args.seed), args.batch_size), rules_of(VARIANTS)
    for name, arguments in NETWORKS.items():
        print(f"constants: {name}; batch {args.batch_size}", flush=True)
        model = network(*arguments).model
        calls = [lambda rule=rule, model=model: jax.block_until_ready(rule(model, keys)) for rule in rules.values()]
        seconds = dict(zip(rules, np.median(in_turns(*calls, repeats=3), axis=0), strict=True))
        for variant, of_blocks in cosines(rules, model, keys).items():
            numbers = ", ".join(f"{block} {cosine:.3f}" for block, cosine in of_blocks.items())
            print(f"{variant:28} {numbers}; {seconds[variant] / seconds['diag']:.2f} of diag's seconds", flush=True)


if __name__ == "__main__":
    main()
