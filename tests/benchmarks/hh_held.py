"""What a constant of the HH cell that is held at a wrong value does: to what is fitted, its errors, and the residuals.

    python tests/benchmarks/hh_held.py [--held ENa=52 EK=-88 EL=-64 C=0.21] [--length 1000] [--n_start 8] [--seed 0]

The recording, the fit and the four parameters are those of `bench_hh_length.py` (driven by the recording, 0.5 mV of
noise), with every constant right and then with one of them held as given. A row each: by how much each parameter is
off, its standard error, or why there is none, and the root mean square of the residuals. A minute on two cores.
"""

import argparse
import math
from collections.abc import Sequence

from bench_hh_length import noisy_current, study_of
from workloads import hh_parameters, runs

import fitting
import solvers


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--held", nargs="+", default=["ENa=52", "EK=-88", "EL=-64", "C=0.21"], metavar="NAME=VALUE")
    parser.add_argument("--length", type=float, default=1000, help="(ms)")
    parser.add_argument("--n_start", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    devices, current = runs.setup_jax(32, "all"), noisy_current(args.length, args.seed)
    for held in ([], *([constant] for constant in args.held)):
        study = study_of(current, "synchronised", args.seed, *(["--constants", *held] if held else []))
        found = fitting.fit(study, fitting.Search(solvers.GAUSS_NEWTON, args.n_start, seed=args.seed), devices)
        information, off = found.identifiability, []
        for name, value in hh_parameters().items():
            error = information.standard_errors[name]
            said = f" \u00b1 {100 * error / abs(value):.2g}" if math.isfinite(error) else ""
            off.append(f"{name} {100 * (found.parameters[name] / value - 1):+.2g}{said} %")
        noise = ", ".join(f"{noise:.3f} mV" for noise in information.noise.values())
        reasons = "; ".join(dict.fromkeys(information.without_error.values()))
        released = found.released.text if found.released else ""
        line = f"{' '.join(held) or 'all right'}: {', '.join(off)}; residuals {noise}; released {released}; {reasons}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
