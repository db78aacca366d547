"""How near the gradient of expsm_diag is to that of diag: by groups of states, stretches of the trial, and the decay.

    python tests/benchmarks/expsm_cosines.py [--batch_size 32] [--seed 0]

Cosines of the gradients of one batch by untrained networks, with the paper's constants and with the arguments of the
README: of the weights of the inputs, of those that are active in the cues alone, and of the excitatory and inhibitory
neurons; and the seconds of a gradient over those of diag. Three minutes on two cores. `tests/reference/make.py groups`
keeps them.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
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


def rows_of(model: models.Model, keys: jax.Array, variants: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Cosines with diag, of each block of weights, and the share of its seconds, a row a variant."""
    rules = {"diag": jax.jit(learning_rules.diag)}
    rules |= {
        variant: jax.jit(lambda model, keys, own=own: learning_rules.expsm_diag(model, keys, **own))
        for variant, own in variants.items()
    }
    calls = [lambda rule=rule: jax.block_until_ready(rule(model, keys)) for rule in rules.values()]
    seconds = dict(zip(rules, np.median(in_turns(*calls, repeats=3), axis=0), strict=True))
    exact, n_cue, rows = rules["diag"](model, keys).gradient, model.network.n_in // 2, []
    for variant in variants:
        gradient = rules[variant](model, keys).gradient
        pairs = {block: (gradient[block], exact[block]) for block in ("in", "exc", "inh")}
        pairs["cue inputs"] = tuple(x[:n_cue] for x in pairs["in"])
        cosines = {name: alignment(*pair)["cosine"] for name, pair in pairs.items()}
        rows.append(dict(variant=variant) | cosines | dict(seconds_of_diag=seconds[variant] / seconds["diag"]))
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    keys = jax.random.split(jax.random.key(args.seed), args.batch_size)
    for name, arguments in NETWORKS.items():
        print(f"constants: {name}; batch {args.batch_size}", flush=True)
        for row in rows_of(network(*arguments).model, keys, VARIANTS):
            print(", ".join(f"{key} {x:.3f}" if key != "variant" else f"{x:28}" for key, x in row.items()), flush=True)


if __name__ == "__main__":
    main()
