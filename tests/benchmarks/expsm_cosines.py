"""How near the gradient of expsm_diag is to that of diag: by groups of states, stretches of the trial, and the decay.

    python tests/benchmarks/expsm_cosines.py [--batch_size 32] [--seed 0]

Cosines of the gradients of one batch by untrained networks, with the paper's constants and with the arguments of the
README: of the weights of the inputs, of those that are active in the cues alone, and of the excitatory and inhibitory
neurons; and the seconds of a gradient over those of diag. Three minutes on two cores.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

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


def print_table(model: models.Model, keys: jax.Array) -> None:
    """Rows of cosines and seconds, one a variant."""
    rules = {"diag": jax.jit(learning_rules.diag)}
    rules |= {
        variant: jax.jit(lambda model, keys, own=own: learning_rules.expsm_diag(model, keys, **own))
        for variant, own in VARIANTS.items()
    }
    calls = [lambda rule=rule: jax.block_until_ready(rule(model, keys)) for rule in rules.values()]
    seconds = dict(zip(rules, np.median(in_turns(*calls, repeats=3), axis=0), strict=True))
    exact, n_cue = rules["diag"](model, keys).gradient, model.network.n_in // 2
    print(f"{'':28}  input    cue      E      I  seconds")
    for variant in VARIANTS:
        gradient = rules[variant](model, keys).gradient
        pairs = [(gradient[block], exact[block]) for block in ("in", "exc", "inh")]
        pairs.insert(1, tuple(x[:n_cue] for x in pairs[0]))
        row = "".join(f"{alignment(*pair)['cosine']:7.3f}" for pair in pairs)
        print(f"{variant:28}{row}{seconds[variant] / seconds['diag']:9.2f}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    keys = jax.random.split(jax.random.key(args.seed), args.batch_size)
    for name, arguments in NETWORKS.items():
        print(f"constants: {name}; batch {args.batch_size}")
        print_table(network(*arguments).model, keys)


if __name__ == "__main__":
    main()
