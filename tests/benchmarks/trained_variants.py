"""What changes the accuracy that a network comes to: one argument at a time, trained to the end.

    python tests/benchmarks/trained_variants.py [pairs] [diag] [synapses] [--seed 0]

pairs: products of eligibility that `expsm_diag` keeps of each synapse, by --etrace_groups and --etrace_stretches; diag:
learning rates, clipped gradients and a penalty on the weights, both of the online rules as the paper types them, 300
updates of 128 trials each. synapses: how fast those of the README's multi-scale network decay, with its weights as they
are, or so much larger that the conductance after a spike has the same integral; the neurons are those which the first
commands there fit, into results/regular and results/fast, without which this group is left out. Half an hour on two
cores for each group. The accuracy is that on 1024 held-out trials, of the best weights in validation, with its 95 %
interval; the last line says the best variant of the last group.
"""

import argparse
import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import fit, multi_scale_network

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = "task-coba-ei-rsnn.py"
CELLS = ("results/regular", "results/fast")
FITTED = "--batch_size 64 --epochs 200 --exc_neuron {} --inh_neuron {}".format(*CELLS)
GROUPED = "--method expsm_diag --etrace_decay 0.98"
VARIANTS = {
    "pairs": {
        "1": f"{GROUPED} --etrace_groups 1",
        **{str(1 + n): f"{GROUPED} --etrace_stretches {n}" for n in (1, 2, 4, 8, 16)},
    },
    "diag": {
        "as typed": "--method diag",
        "lr 1e-3": "--method diag --lr 1e-3",
        "lr 4e-3": "--method diag --lr 4e-3",
        "clipped to 0.02": "--method diag --grad_clip 0.02",
        "weight_L2 0.3": "--method diag --weight_L2 0.3",
    },
    "synapses": {
        **{f"{tau} ms": f"{multi_scale_network(tau)} {FITTED}" for tau in (200, 100, 50, 10)},
        **{
            f"{tau} ms, weights times {200 // tau}": f"{multi_scale_network(tau, 200 / tau)} {FITTED}"
            for tau in (100, 50, 10)
        },
    },
}


def trained(arguments: str, seed: int) -> dict[str, Any]:
    """What result.json says of a training, and the mean rate (Hz) of the E neurons in its last update."""
    with tempfile.TemporaryDirectory() as folder:
        result = fit(SCRIPT, arguments, seed, Path(folder) / "run")
        with open(Path(folder) / "run" / "metrics.csv", newline="") as file:
            *_, last = csv.DictReader(file)
    return result | dict(rate_exc=float(last["rate_exc"]))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="{pairs,diag,synapses}")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if not set(args.groups) <= set(VARIANTS):
        parser.error(f"argument groups: found {args.groups}, expected some of {list(VARIANTS)}")
    has_cells = all((ROOT / cell / "result.json").exists() for cell in CELLS)
    if "synapses" in args.groups and not has_cells:
        parser.error(f"argument groups: found synapses without {' and '.join(CELLS)}, expected the README's fits there")
    for group in args.groups or [name for name in VARIANTS if name != "synapses" or has_cells]:
        print(f"| {group} | held-out (95 %) | in validation, after updates | E rate at the end, Hz |")
        print("|---|---|---|---|")
        found = {}
        for name, arguments in VARIANTS[group].items():
            result = trained(arguments, args.seed)
            found[name], (low, high) = result["heldout_accuracy"], result["heldout_interval"]
            cells = [name, f"{found[name]:.3f} ({low:.3f} to {high:.3f})"]
            cells.append("{validation_accuracy:.3f}, {update}".format(**result["best"]))
            cells.append(f"{result['rate_exc']:.1f}")
            print(f"| {' | '.join(cells)} |", flush=True)
    best = max(found, key=found.get)
    print(f"{group}: best {best}, {found[best]:.3f}")


if __name__ == "__main__":
    main()
