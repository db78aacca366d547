"""The arguments that the neuron scripts share: what is fitted, by which method, and how it is scored."""

import argparse
import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import runs
from runs import number

import brainunit as u
import numpy as np

from fitting import METHODS, Search
from solvers import GAUSS_NEWTON
from studies import FitSettings, unit_name


def constant(text: str) -> tuple[str, float]:
    """argparse type: NAME=VALUE as (name, value)."""
    name, _, value = text.partition("=")
    if not math.isfinite(runs.to_number(value)):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected NAME=VALUE with a number")
    return name, float(value)


def bound(text: str) -> tuple[str, list[float]]:
    """argparse type: NAME=LOW:HIGH as (name, [low, high])."""
    name, _, ends = text.partition("=")
    limits = [runs.to_number(limit) for limit in ends.split(":")]
    if len(limits) != 2 or not np.isfinite(limits).all() or limits[0] >= limits[1]:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected NAME=LOW:HIGH with numbers LOW < HIGH")
    return name, limits


# Arguments of a fit, which do not change the response of one that is there.
NOT_OF_PREDICTIONS = ("mode", "method", "fit_target", "fit_parameters", "constants", "bounds", "n_point", "objective")
NOT_OF_PREDICTIONS += ("noise_std", "spike_jitter", "validation_recording", "validation_current", "validation_voltage")
NOT_OF_PREDICTIONS += ("validation_spike_times", "validation_sweeps", "validation_t_start", "validation_t_stop")
NOT_OF_PREDICTIONS += ("scheme", "escape", "model_terms", "t_blank", "tau_noise", "width_floor", "protocol")
NOT_OF_PREDICTIONS += ("n_sample", "n_iter", "tau_rossum", "target", "validation")
OF_COMPARISONS = ("methods", "repeats", "protocol_budget", "gradient_cost")


def parse_fit_arguments(parser: runs.Parser, argv: Sequence[str] | None, shipped: bool) -> argparse.Namespace:
    """Arguments of a neuron script, checked against each other; `shipped`: there is a recording to fit by default."""
    args = parser.parse_args(argv)
    if args.load:
        saved = runs.saved_arguments(args.load, "load", parser.prog)
        parser.set_defaults(**{name: saved[name] for name in ("dt_sim", "delta") if name in saved})
        args = parser.parse_args(argv)
        if args.initial == "paper":
            parser.error("argument --initial: found paper with --load, expected recorded, or neither")
    refuse_idle_arguments(parser, args, parser.given(argv))
    own = args.voltage or args.recording or args.spike_times
    target = args.target or ("recorded" if own or shipped else "simulated")
    if target == "simulated" and (args.exclude or args.initial == "recorded"):
        name = "exclude" if args.exclude else "initial"
        parser.error(f"argument --{name}: found it with a simulated target, expected potentials that are recorded")
    methods = sorted(set(args.methods), key=METHODS.index)
    if args.resume and (args.mode == "visualize" or args.output or args.load):
        parser.error("argument --resume: found with --mode visualize, --load or --output, expected a fit to go on with")
    if args.load and not (args.current or args.recording):
        parser.error("argument --load: found it without --current or --recording, expected currents to predict under")
    if args.mode == "compare" and args.protocol_budget == "equal" and "L-BFGS-B" not in methods:
        parser.error("argument --methods: found no L-BFGS-B, expected it, as the others get its budget")
    for name, chosen in (("method", [args.method]), ("methods", methods if args.mode == "compare" else [])):
        if "CMA" in chosen and len(set(args.fit_parameters or "ab")) == 1:
            parser.error(f"argument --{name}: found CMA with one parameter to fit, expected two or more")
    return argparse.Namespace(**vars(args) | dict(target=target, methods=methods))


def refuse_idle_arguments(parser: runs.Parser, args: argparse.Namespace, given: set[str]) -> None:
    """Refuse arguments that are given and have no effect in this mode, or with --load."""
    if args.load and (idle := given & {*NOT_OF_PREDICTIONS, *OF_COMPARISONS}):
        parser.error(f"argument --{min(idle)}: found it with --load, which fits nothing; expected neither, or a fit")
    if args.mode != "compare" and (idle := given & {*OF_COMPARISONS}):
        parser.error(f"argument --{min(idle)}: found it with --mode {args.mode}, expected --mode compare")
    if args.mode != "fit" and "method" in given:
        expected = "--methods" if args.mode == "compare" else "--mode fit"
        parser.error(f"argument --method: found it with --mode {args.mode}, expected {expected}")


def add_fit_arguments(
    parser: runs.Parser,
    ranges: Mapping[str, u.Quantity],
    fitted: Sequence[str] | str,
    targets: Mapping[str, str],
    without_target: str = "",
) -> None:
    """Arguments of both neuron scripts: ranges of all parameters, those fitted by default, and {what to fit: how}.

    Where what is fitted by default depends on the target, `fitted` is a text, and the default None; and so with
    `without_target`, what is fitted without --fit_target.
    """
    add = parser.add_argument_group("fit").add_argument
    mode = "compare: fit by every method, several times; visualize: only draw the target and random models"
    add("--mode", choices=("fit", "compare", "visualize"), default="fit", help=mode)
    fit_target = f"what to fit: {'; '.join(f'{name}: {how}' for name, how in targets.items())}"
    default = None if without_target else "potential"
    add("--fit_target", choices=targets, default=default, help=fit_target + without_target)
    method = f"L-BFGS-B and {GAUSS_NEWTON} use gradients, the others do not; without this argument, {GAUSS_NEWTON} "
    method += "where a recording drives the model, which is the only place for it, and else L-BFGS-B"
    add("--method", choices=(*METHODS, GAUSS_NEWTON), default="L-BFGS-B", help=method)
    listed = (
        f"{name} {limits.mantissa[0]:g}:{limits.mantissa[1]:g} {unit_name(limits.unit)}".strip()
        for name, limits in ranges.items()
    )
    fit_parameters = f"parameters to fit, of (with bounds): {', '.join(listed)}; the others are as printed"
    fit_parameters += f"; without this argument, {fitted}" * isinstance(fitted, str)
    default = None if isinstance(fitted, str) else fitted
    add("--fit_parameters", nargs="+", metavar="NAME", choices=ranges, default=default, help=fit_parameters)
    bounds = "other bounds of fitted parameters, in the units above; without this argument, those above, or, of the "
    bounds += "likelihood of a recording (--escape exponential), what the recording asks for"
    add("--bounds", nargs="+", type=bound, metavar="NAME=LOW:HIGH", default=[], help=bounds)
    constants = (
        "values of parameters that are not fitted, in the units above; without this argument, those printed. Standard "
        "errors take them for true"
    )
    add("--constants", nargs="+", type=constant, metavar="NAME=VALUE", default=[], help=constants)
    step = "longest step of the simulation (ms), whatever the sampling; the likelihood of a recording has its samples"
    add("--dt_sim", type=number(float, above=0), help=step)
    load = "run folder of a fit: predict its response to --current (or --recording), instead of a fit"
    add("--load", type=Path, metavar="DIR", help=load)
    resume = "run folder of a fit or comparison that was interrupted or killed, to go on with"
    add("--resume", type=Path, metavar="DIR", help=resume)
    n_sample = "starts by gradients; sets that the others try at a time, but for spikes of a driven fit"
    add("--n_sample", type=number(int, low=1), default=20, help=n_sample)
    n_iter = "rounds of the other methods, but for equal budgets"
    default = None if without_target else Search.n_iter
    n_iter += f"; without this argument, {Search.n_iter}, or what --objective says" if without_target else ""
    add("--n_iter", type=number(int, low=1), default=default, help=n_iter)
    n_point = "the potential error takes every (T // N)-th of the T samples; all without this argument"
    add("--n_point", type=number(int, low=1), metavar="N", help=n_point)
    add("--tau_rossum", type=number(float, above=0), default=5.0, help="time constant of the spike loss (ms)")
    add("--delta", type=number(float, above=0), default=4.0, help="half-width of the coincidence window of Gamma (ms)")


def refuse_idle(settings: FitSettings, where: str, names: Sequence[str], expected: str) -> None:
    """Refuse settings that have no effect, unless they are the defaults.

    Args:
        where: the arguments with which they have none, and `expected` those with which they have.

    Raises:
        BadInput: one of the names is set.
    """
    for field in dataclasses.fields(settings):
        given = getattr(settings, field.name)
        if field.name in names and given != field.default:
            found = given if isinstance(given, str | float) else " ".join(given)
            found = f"found {found} with {where}, where it has no effect"
            raise runs.BadInput(f"argument --{field.name}: {found}, expected {expected}")
