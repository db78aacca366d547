"""Fit a Hodgkin-Huxley cell to recorded membrane potentials or spikes.

Four parameters of a Traub-type cell are fitted: the leak, sodium and potassium conductances gL, gNa, gK (uS) and the
shift V_T of the rates (mV), by gradients of the simulation (multi-start L-BFGS-B) or by derivative-free methods.
Without arguments the cell is fitted to the traces in data/ and checked on other currents.
"""

import utils  # isort: skip  (first: it configures JAX)

import json
from pathlib import Path

import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np

SCRIPT = Path(__file__).stem
DATA = Path(__file__).resolve().parent / "data"

# Wang et al. (2024): the box of the fit, and the parameters at which their code simulates its own target.
BOUNDS = {
    "gL": u.Quantity([1e-4, 0.1], unit=u.uS),
    "gNa": u.Quantity([0.01, 40.0], unit=u.uS),
    "gK": u.Quantity([0.01, 20.0], unit=u.uS),
    "V_T": u.Quantity([-65.0, -50.0], unit=u.mV),
}
PAPER_PARAMETERS = {"gL": 0.0083637, "gNa": 24.6977, "gK": 5.8149, "V_T": -55.3109}


def parse_args():
    parser = utils.Parser(
        description=__doc__,
        epilog="examples:\n"
        f"  python {SCRIPT}.py --noise_std 1 --seed 3\n"
        f"  python {SCRIPT}.py --current currents.csv --voltage potentials.csv --current_unit nA --dt 0.02",
    )
    utils.add_fit_arguments(parser)
    parser.add_argument_group("spikes of this cell").add_argument(
        "--spike_level", type=utils.number(float), default=0.0, help="a spike is an upward crossing of it (mV)"
    )
    utils.add_run_arguments(parser)
    parser.set_defaults(dt=0.01, current=DATA / "input_traces_hh.csv", voltage=DATA / "output_traces_hh.csv")
    return parser.parse_args()


# ---- Model and loss -------------------------------------------------------------------------------------------------


def make_model(dt):
    """(parameters, data) -> potentials (T, n_trace) in mV under data["current"] in nA; dt in ms."""

    def model(parameters, data):
        V, _ = utils.simulate(utils.HH, parameters, data["current"] * u.nA, dt * u.ms)
        return V.to_decimal(u.mV)

    return model


def soft_spikes(V, level, width=2.0):
    """Spike train that is a smooth function of the potential: the rise of a logistic across the level.

    s[k] = max(0, L(V[k+1]) - L(V[k])), L(V) = 1 / (1 + exp(-(V - level) / width)): a rise from far below the level to
    far above it has mass 1, spread over the steps that it takes. The gradient is the true one.

    Args:
        V: shape (T, n_trace) (mV).
        level, width: (mV).
    """
    logistic = jax.nn.sigmoid((V - level) / width)
    return jnp.maximum(jnp.diff(logistic, axis=0, append=logistic[-1:]), 0)


def make_loss(args, n_step):
    """The loss (potentials, data) -> scalar that `args` ask for, and its name with unit."""
    if args.fit_target == "potential":
        stride = n_step // (args.n_point or n_step)
        return lambda V, data: jnp.mean((V - data["V"])[::stride] ** 2), "mean squared error of the potential (mV^2)"

    def spike_loss(V, data):
        spikes = soft_spikes(V, args.spike_level)
        return utils.van_rossum_distance(spikes, data["spikes"], args.dt * u.ms, args.tau_rossum * u.ms)

    return spike_loss, "van Rossum distance of the spikes"


# ---- Data -----------------------------------------------------------------------------------------------------------


def recording_paths(args):
    """{"fit": (current, voltage), "validation": ...} of the files to read, and whether the target is that of data/.

    A simulated target needs currents alone; the traces in data/ come with their own validation.
    """
    shipped = [DATA / "input_traces_hh.csv", DATA / "output_traces_hh.csv"]
    own = [path.resolve() != default for path, default in zip((args.current, args.voltage), shipped, strict=True)]
    paths = {"fit": [args.current, args.voltage], "validation": [args.validation_current, args.validation_voltage]}
    if not own[0] and not any(paths["validation"]):
        paths["validation"] = [DATA / f"{kind}_traces_hh_validation.csv" for kind in ("input", "output")]
    if args.target == "simulated":
        paths = {name: [current, None] for name, (current, _) in paths.items()}
    elif own[0] != own[1]:
        raise utils.BadInput("argument --current: found it or --voltage alone, expected both")
    elif paths["validation"].count(None) == 1:
        raise utils.BadInput("argument --validation_current: found it or --validation_voltage alone, expected both")
    return {name: pair for name, pair in paths.items() if any(pair)}, not any(own)


def load_recordings(args, model, seed):
    """The target, and validation traces where there are any, each current (nA), V (mV) and spikes of (T, n_trace).

    Returns:
        {"fit": dict, "validation": dict}, and {name: value} of the parameters behind the target where they are known.
    """
    paths, shipped = recording_paths(args)
    traces = {name: utils.read_recording(*pair, args) for name, pair in paths.items()}
    known = json.loads((DATA / "parameters_hh.json").read_text())["parameters"] if shipped else None
    if args.target == "simulated":
        known = PAPER_PARAMETERS
        parameters = {name: known[name] * bound.unit for name, bound in BOUNDS.items()}
        traces = {name: (I, np.asarray(model(parameters, dict(current=I)))) for name, (I, _) in traces.items()}

    I, V = traces["fit"]
    traces["fit"] = I, V + args.noise_std * np.random.default_rng(seed).standard_normal(V.shape)
    spikes = {name: utils.detect_spikes(V, args.spike_level) for name, (_, V) in traces.items()}
    return {name: dict(current=I, V=V, spikes=spikes[name]) for name, (I, V) in traces.items()}, known


def check_against_data(args, data):
    """Refuse what the arguments ask of the target in vain."""
    n_step = len(data["V"])
    if (args.n_point or 0) > n_step:
        raise utils.BadInput(
            f"argument --n_point: found {args.n_point}, expected at most the {n_step} samples of a trace"
        )
    if args.fit_target == "spike" and not data["spikes"].any():
        highest = f"potentials up to {data['V'].max():.3g} mV"
        raise utils.BadInput(f"argument --spike_level: found {args.spike_level:g} mV and {highest}, expected spikes")


# ---- Main -----------------------------------------------------------------------------------------------------------


def main():
    args = parse_args()
    devices = utils.setup_jax(args)
    name = f"{args.mode}_{args.target}_{args.fit_target}_{args.method}_seed{args.seed}"
    run = utils.RunFolder(args, devices, SCRIPT, name)
    noise_seed, fit_seed = (int(child.generate_state(1)[0]) for child in np.random.SeedSequence(args.seed).spawn(2))

    model = make_model(args.dt)
    compiled = jax.jit(model)
    recordings, known = load_recordings(args, compiled, noise_seed)
    data = recordings["fit"]
    check_against_data(args, data)
    loss, loss_name = make_loss(args, len(data["V"]))
    problem = utils.FitProblem(model, loss, BOUNDS, data, args.n_sample, devices)

    def free_run(parameters, current):
        V = np.asarray(compiled(parameters, dict(current=current)))
        return V, utils.detect_spikes(V, args.spike_level)

    if args.mode == "visualize":
        utils.write_visualization(run, problem, free_run, data, args.dt, fit_seed)
    else:
        starts = utils.minimise(problem, args.method, args.n_iter, fit_seed)
        utils.write_report(run, args, problem, starts, free_run, recordings, known, loss_name)
    print(run.path)
    return 130 if problem.interrupted else 0


if __name__ == "__main__":
    utils.run_script(main)
