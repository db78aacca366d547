"""Fit a Hodgkin-Huxley cell to recorded membrane potentials or spikes.

Four parameters of a Traub-type cell are fitted: the leak, sodium and potassium conductances gL, gNa, gK (uS) and the
shift V_T of the rates (mV), by gradients of the simulation (multi-start L-BFGS-B) or by derivative-free methods.
Without arguments the cell is fitted to the traces in data/ and checked on other currents.
"""

import runs  # isort: skip  (first: it configures JAX)

import json
from pathlib import Path

import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np

import fitting
import recordings
import utils

SCRIPT = Path(__file__).stem
DATA = Path(__file__).resolve().parent / "data"

# Wang et al. (2024) fit the first four in these bounds to a simulation at PAPER_PARAMETERS. The other bounds are ours.
RANGES = {
    "gL": u.Quantity([1e-4, 0.1], unit=u.uS),
    "gNa": u.Quantity([0.01, 40.0], unit=u.uS),
    "gK": u.Quantity([0.01, 20.0], unit=u.uS),
    "V_T": u.Quantity([-65.0, -50.0], unit=u.mV),
    "EL": u.Quantity([-80.0, -50.0], unit=u.mV),
    "ENa": u.Quantity([40.0, 60.0], unit=u.mV),
    "EK": u.Quantity([-100.0, -80.0], unit=u.mV),
    "C": u.Quantity([0.05, 0.5], unit=u.nF),
}
FITTED = ["gL", "gNa", "gK", "V_T"]
# Table S3: loss (mV^2) and seconds, mean and s.d. of each; 20 starts of L-BFGS-B.
PAPER_STARTS = 20
PAPER_RESULTS = {
    "L-BFGS-B": (2.3e-8, 1.55e-8, 3.818, 0.725),
    "DE": (24.42, 22.55, 0.619, 0.139),
    "PSO": (35.72, 24.06, 0.663, 0.168),
    "TwoPointsDE": (32.31, 22.60, 0.658, 0.175),
    "bayesian": (27.95, 25.76, 55.26, 12.39),
}
CONSTANTS = {"EL": -65.0, "ENa": 50.0, "EK": -90.0, "C": 0.2}
PAPER_PARAMETERS = {"gL": 0.0083637, "gNa": 24.6977, "gK": 5.8149, "V_T": -55.3109}
SHIPPED = {
    "fit": [DATA / "input_traces_hh.csv", DATA / "output_traces_hh.csv"],
    "validation": [DATA / "input_traces_hh_validation.csv", DATA / "output_traces_hh_validation.csv"],
}


def parse_args():
    parser = runs.Parser(
        description=__doc__,
        epilog="examples:\n"
        f"  python {SCRIPT}.py --noise_std 1 --seed 3\n"
        f"  python {SCRIPT}.py --current currents.csv --voltage potentials.csv --current_unit nA --dt 0.02",
    )
    fitting.add_fit_arguments(parser, RANGES, FITTED)
    runs.add_run_arguments(parser)
    parser.set_defaults(dt=0.01)
    return fitting.parse_fit_arguments(parser, shipped=True)


# ---- Model and loss -------------------------------------------------------------------------------------------------


def make_model(dt, constants=None):
    """(parameters, data) -> potentials (T, n_trace) in mV under data["current"] in nA; dt in ms.

    constants: {name: value with unit} of parameters that are not fitted; without it, those of `utils.HH`.
    """

    def model(parameters, data):
        V, _ = utils.simulate(utils.HH, (constants or {}) | parameters, data["current"] * u.nA, dt * u.ms)
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
        return recordings.van_rossum_distance(spikes, data["spikes"], args.dt * u.ms, args.tau_rossum * u.ms)

    return spike_loss, "van Rossum distance of the spikes"


def make_predictions(args, model, problem, data, spikes):
    """What `fitting.identifiability` asks how well it is determined: the potentials, or the times of the model's spikes.

    A spike's time is that at which V, linear within the step of the crossing, is at the level: its derivative is
    -dV / (dV/dt). Its noise is at least that of rounding to a step, and the lag behind the recorded spikes if there are
    as many of them.
    """
    if args.fit_target == "potential":
        stride = len(data["V"]) // (args.n_point or len(data["V"]))

        def potentials(x):
            return model(problem.parameters(x), data)[::stride].ravel()

        return {"V_mV": (potentials, data["V"][::stride].ravel(), fitting.V_RESOLUTION)}

    trace, step = np.nonzero(spikes.T)
    trace_data, step_data = np.nonzero(data["spikes"].T)

    def times(x):
        V = model(problem.parameters(x), data)
        before, after = V[step, trace], V[step + 1, trace]
        return args.dt * (step + (args.spike_level - before) / jax.lax.stop_gradient(after - before))

    target = args.dt * (step_data + 0.5) if np.array_equal(trace, trace_data) else np.asarray(times(problem.best_x))
    return {"spike_times_ms": (times, target, args.dt / 12**0.5)}


# ---- Main -----------------------------------------------------------------------------------------------------------


def main():
    args = parse_args()
    devices = runs.setup_jax(args)
    bounds = fitting.select_bounds(args, RANGES)
    way = args.protocol_budget if args.mode == "compare" else args.method
    name = f"{args.mode}_{args.target}_{args.fit_target}_{way}_seed{args.seed}"
    run = runs.RunFolder(args, devices, SCRIPT, name, may_change={"repeats", "gradient_cost"})
    noise_seed, fit_seed = (int(child.generate_state(1)[0]) for child in np.random.SeedSequence(args.seed).spawn(2))

    known = PAPER_PARAMETERS | CONSTANTS
    if args.target == "recorded":
        own = args.current or args.voltage
        known = None if own else json.loads((DATA / "parameters_hh.json").read_text())["parameters"] | CONSTANTS
    constants = {name: value * RANGES[name].unit for name, value in (known or {}).items()}
    model = make_model(args.dt, constants)
    compiled = jax.jit(model)

    def free_run(parameters, current):
        V = np.asarray(compiled(parameters, dict(current=current)))
        return V, recordings.detect_spikes(V, args.spike_level)

    targets = recordings.make_targets(args, recordings.read_recordings(args, SHIPPED), free_run, constants, noise_seed)
    data = targets["fit"]
    loss, loss_name = make_loss(args, len(data["V"]))

    def make_problem(n_sample):
        return fitting.FitProblem(model, loss, bounds, data, n_sample, devices)

    problem, responses = make_problem(args.n_sample), {}

    def information():
        _, spikes = free_run(problem.parameters(problem.best_x), data["current"])
        return fitting.identifiability(problem, make_predictions(args, model, problem, data, spikes))

    if args.mode == "compare":
        as_paper = (
            args.target == "simulated" and args.fit_target == "potential" and not (args.current or args.noise_std)
        )
        n_start, paper = PAPER_STARTS if args.protocol_budget == "paper" else args.n_sample, PAPER_RESULTS
        task = dict(names=list(bounds), known=known, recording=data, free_run=free_run, loss_name=loss_name)
        responses = fitting.compare(run, make_problem, n_start, paper if as_paper else {}, **task)
        if responses:
            papers = {method: V for method, V in responses.items() if method in PAPER_RESULTS}
            spiking = np.flatnonzero(data["spikes"].any(0)) if data["spikes"].any() else np.arange(data["V"].shape[1])
            run.save("figure_2.png", fitting.plot_methods(data, args.dt, papers, spiking[:5]))
    elif args.mode == "visualize":
        fitting.write_visualization(run, problem, free_run, data, fit_seed)
    else:
        starts = fitting.minimise(problem, args.method, args.n_iter, fit_seed)
        fitting.write_report(run, problem, starts, loss_name, targets, free_run, known, information)
    print(run.path)
    return 130 if problem.interrupted or responses is None else 0


if __name__ == "__main__":
    runs.run_script(main)
