"""Fit a generalised integrate-and-fire neuron to membrane potentials or spike trains.

The neuron is that of Mihalas & Niebur (2009); by default the rates a, b of its threshold and k1, k2 of its
spike-triggered currents are fitted (1/ms). The gradient of a simulation that spikes by itself is a surrogate, and a
poor guide. With --objective likelihood the recorded spikes drive the reset instead, and the parameters are those that
make these spikes the most likely: the gradient is true, and leads from any start to the parameters behind the data.
Without arguments the target is that of the paper's release, five currents of one second.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import runs
from runs import BadInput

import brainstate
import braintools
import brainunit as u
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax.typing import ArrayLike

import comparing
import fitting
import recordings
import utils
from comparing import PaperResult
from identifiability import Box, Parameters, Prediction, Predictions
from recordings import Recording

SCRIPT = Path(__file__).stem

# Wang et al. (2024): the first four are fitted, in these bounds. The other bounds are ours.
PER_MS = u.ms**-1
RANGES = {
    "a": u.Quantity([0.0, 0.1], unit=PER_MS),
    "b": u.Quantity([0.0, 0.1], unit=PER_MS),
    "k1": u.Quantity([0.1, 1.0], unit=PER_MS),
    "k2": u.Quantity([0.01, 0.1], unit=PER_MS),
    "A1": u.Quantity([-10.0, 10.0], unit=u.nA),
    "A2": u.Quantity([-1.0, 1.0], unit=u.nA),
    "R1": u.Quantity([0.0, 1.0], unit=u.UNITLESS),
    "R2": u.Quantity([0.0, 1.0], unit=u.UNITLESS),
    "R": u.Quantity([5.0, 50.0], unit=u.Mohm),
    "tau": u.Quantity([5.0, 50.0], unit=u.ms),
    "V_rest": u.Quantity([-80.0, -60.0], unit=u.mV),
    "V_reset": u.Quantity([-80.0, -60.0], unit=u.mV),
    "V_th_inf": u.Quantity([-60.0, -40.0], unit=u.mV),
    "V_th_reset": u.Quantity([-70.0, -50.0], unit=u.mV),
}
FITTED = ["a", "b", "k1", "k2"]
# The neuron behind a simulated target, and the constants of every fit.
PAPER_PARAMETERS = {"a": 0.005, "b": 0.01, "k1": 0.2, "k2": 0.02, "A1": 0.0, "A2": 0.0, "R1": 0.0, "R2": 1.0, "R": 20.0}
PAPER_PARAMETERS |= {"tau": 20.0, "V_rest": -70.0, "V_reset": -70.0, "V_th_inf": -50.0, "V_th_reset": -60.0}
PROTOCOLS = {"paper": PAPER_PARAMETERS, "identifiable": PAPER_PARAMETERS | {"A1": 1.0, "A2": -0.1}}
# Table S2 (loss in mV^2); 100 starts of L-BFGS-B.
PAPER_STARTS = 100
PAPER_RESULTS = {
    "L-BFGS-B": PaperResult(6.799, 4.623, 5.404, 0.294),
    "DE": PaperResult(9.966, 2.281, 1.172, 0.09),
    "PSO": PaperResult(14.034, 2.857, 1.151, 0.150),
    "TwoPointsDE": PaperResult(9.702, 5.115, 1.161, 0.172),
    "bayesian": PaperResult(3.511, 1.741, 62.330, 10.917),
}
# The paper's currents: (nA, ms), one after the other, one second in all.
PAPER_CURRENTS = [
    [(2.0, 200), (0.0, 800)],
    [(1.5, 500), (0.0, 500)],
    [(1.5, 100), (0.0, 500), (0.5, 100), (1.0, 100), (1.5, 100), (0.0, 100)],
    [(1.5, 20), (0.0, 180), (-1.5, 20), (0.0, 20), (1.5, 20), (0.0, 740)],
    [(0.0, 50), (-3.5, 750), (0.0, 200)],
]
WIDTHS = (5.0, 2.0, 0.7, 0.2, 0.07, 0.02, 0.007, 0.002)  # mV
RISE_FLOOR = 1e-3  # of (V - V_th) / width in a step with a spike, which stays possible where V falls


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    examples = (
        "--protocol identifiable --noise_std 0.5 --spike_jitter 0.1",
        "--objective simulation --n_sample 100 --n_point 100",
    )
    parser = runs.Parser(SCRIPT, __doc__, examples)
    add = parser.add_argument_group("spiking model").add_argument
    objective = (
        "likelihood: of the recorded spikes, which drive the reset, and with --fit_target potential of the potentials "
        "too; simulation: the loss of the model that runs freely, with its surrogate gradient, as in the paper; "
        "without this argument, likelihood where the target has spikes"
    )
    add("--objective", choices=("simulation", "likelihood"), help=objective)
    protocol = (
        "simulated target: currents and neuron of the paper, in which A1 = A2 = 0 leaves k1 and k2 without effect, or "
        "five noisy currents and non-zero A1 and A2, so that every fitted parameter matters; for your own traces, the "
        "values of the parameters that are not fitted"
    )
    add("--protocol", choices=PROTOCOLS, default="paper", help=protocol)
    width = "narrowest width of the spike likelihood: L-BFGS-B fits it, from 5 mV downwards, others have this one (mV)"
    add("--width_floor", type=runs.number(float, above=0), default=WIDTHS[-1], help=width)
    blank = "the likelihood leaves out the potentials within this time of a recorded spike (ms)"
    add("--t_blank", type=runs.number(float, low=0), default=0.5, help=blank)
    fitting.add_fit_arguments(parser, RANGES, FITTED, ("potential", "spike"))
    comparing.add_compare_arguments(parser)
    recordings.add_data_arguments(parser)
    runs.add_run_arguments(parser)
    parser.set_defaults(dt=0.1, precision=64)  # in float32, one start in three ends early
    return fitting.parse_fit_arguments(parser, argv, shipped=False)


@dataclasses.dataclass(frozen=True)
class Settings(fitting.FitSettings):
    """Besides, what only this neuron has; the arguments of the same names."""

    fit_parameters: Sequence[str] = tuple(FITTED)
    protocol: str = "paper"
    objective: str | None = None
    width_floor: float = WIDTHS[-1]
    t_blank: float = 0.5


# ---- Model ----------------------------------------------------------------------------------------------------------

# What becomes of a carry in a step: (carry, V, V - V_th, row of the recording) -> carry, output.
Observer = Callable[[Any, jax.Array, jax.Array, Recording], tuple[Any, Any]]


def teacher_forced(
    constants: Parameters, observe: Observer, start: Callable[[jax.Array, jax.Array], Any] = lambda V, distance: None
) -> Callable[[Parameters, Recording], tuple[Any, Any]]:
    """The neuron whose reset the recorded spikes drive, as a function (parameters, recording) -> (carry, outputs).

    Args:
        constants: {name: value with unit} of the parameters that are not fitted.
        observe: a step: V and V - V_th (mV) at its start, before a spike resets them, each (n_trace,).
        start: (V, distance) -> carry, before the first step.
    """

    def run(parameters: Parameters, recording: Recording) -> tuple[Any, Any]:
        cell = utils.GIF(recording.current.shape[1:], **constants | parameters)

        def potentials():
            return cell.V.value.to_decimal(u.mV), (cell.V.value - cell.V_th.value).to_decimal(u.mV)

        def step(carry, row):
            carry, output = observe(carry, *potentials(), row)
            cell.update(row.current * u.nA, row.spikes)
            return carry, output

        with brainstate.environ.context(dt=recording.dt * u.ms):
            cell.init_state()
            return brainstate.transform.scan(step, start(*potentials()), recording)

    return run


def make_trajectories(constants: Parameters) -> fitting.Model:
    """Teacher-forced potentials: (parameters, recording) -> V and V - V_th (mV), each (T, n_trace)."""
    run = teacher_forced(constants, lambda _, V, distance, row: (None, dict(V=V, distance=distance)))
    return lambda parameters, recording, level=0.0: run(parameters, recording)[1]


def make_costs(constants: Parameters) -> fitting.Model:
    """Costs of traces: (parameters, recording, width) -> `spike_cost` and squared errors, summed over time, (n_trace,).

    They are summed as the neuron runs: storing potentials and their derivatives would take three times as long.
    """

    def model(parameters: Parameters, recording: Recording, width: ArrayLike) -> dict[str, jax.Array]:
        def observe(carry, V, distance, row):
            spike_costs, errors, before = carry
            spike_costs += spike_cost(distance, before, row.spikes, width)
            return (spike_costs, errors + row.mask * (V - row.V) ** 2, distance), None

        def start(V, distance):
            return 0 * V, 0 * V, distance

        (spike_costs, errors, _), _ = teacher_forced(constants, observe, start)(parameters, recording)
        return dict(spike_cost=spike_costs, error=errors)

    return model


# ---- Losses ---------------------------------------------------------------------------------------------------------


def spike_cost(distance: ArrayLike, before: ArrayLike, spike: ArrayLike, width: ArrayLike) -> jax.Array:
    r"""Negative log-probability of a spike, or of none, in a step of an escape-noise neuron.

    With x = (V - V_th) / width, which the step takes from x_0 to x, the neuron fires with probability

    .. math:: p = 1 - \exp(-[\Lambda(x) - \Lambda(x_0)]_+), \quad \Lambda(x) = \log(1 + e^x)

    so that on a rising potential the first spike is where x exceeds a logistic random number: early and late spikes
    cost the same. (With p = 1 / (1 + exp(-x)) in every step it is early, the more so the slower V rises.) As the width
    goes to 0, spikes are where V reaches V_th. For hazards that grow with the slope of V see Plesser & Gerstner (2000).

    Args:
        distance, before: V - V_th at the start of this step, where spike belongs, and of the one before (mV).
        spike: recorded, 0 or 1, of the same shape.
        width: (mV).
    """
    x, rise = distance / width, (distance - before) / width
    cumulative = jax.nn.softplus(x)
    silent = jax.nn.relu(cumulative - jax.nn.softplus(before / width))
    # p = (1 - exp(-rise)) / (1 + exp(-x)).
    fired = cumulative - x - jnp.log(1 - jnp.exp(-jnp.maximum(rise, RISE_FLOOR)))
    return jnp.where(spike > 0, fired, silent)


def likelihood_loss(settings: Settings, trajectories: fitting.Model) -> fitting.Loss:
    """Negative log-likelihood of the spikes and, for --fit_target potential, of the potentials, from `make_costs`.

    That of n potentials is Gaussian, maximised over the noise level: n / 2 log(1 + mean squared error / s^2) with s the
    resolution of a recording.
    """
    with_potentials = settings.fit_target == "potential"

    def loss(costs: Mapping[str, jax.Array], recording: Recording) -> jax.Array:
        n = with_potentials * jnp.sum(recording.mask)
        mse = jnp.sum(costs["error"]) / jnp.maximum(n, 1)
        return jnp.sum(costs["spike_cost"]) + n / 2 * jnp.log1p(mse / fitting.V_RESOLUTION**2)

    return fitting.Loss(loss, "negative log-likelihood", make_predictions(settings, trajectories))


def simulation_loss(settings: Settings, trajectories: fitting.Model) -> fitting.Loss:
    """The paper's loss of the model that runs freely: potentials as they are, spikes with their surrogate gradient."""
    tau, predictions = settings.tau_rossum * u.ms, make_predictions(settings, trajectories)

    def van_rossum(output: Mapping[str, jax.Array], recording: Recording) -> jax.Array:
        return recordings.van_rossum_distance(output["spikes"], recording.spikes, recording.dt * u.ms, tau)

    if settings.fit_target == "potential":
        return dataclasses.replace(fitting.SQUARED_ERROR, predictions=predictions)
    return fitting.Loss(van_rossum, "van Rossum distance of the spikes", predictions)


def make_predictions(settings: Settings, trajectories: fitting.Model) -> Callable[..., Predictions]:
    """What `identifiability` asks how well it is determined, and the clusters of these numbers.

    They are the teacher-forced potentials, and V - V_th half a step before each recorded spike, where it should be 0. A
    cluster is the time between two spikes: a spike recorded late is one for all potentials that follow.
    """

    def predictions(study: fitting.Study, box: Box, x: np.ndarray) -> Predictions:
        recording = study.recordings["fit"]
        spikes = recording.spikes > 0
        interval = np.cumsum(spikes, axis=0) - spikes
        interval += np.concatenate([[0], np.cumsum(interval.max(0) + 1)[:-1]])
        counts = recording.mask > 0 if settings.fit_target == "potential" else np.zeros_like(spikes)

        def output(x):
            return trajectories(box.parameters(x), recording, 0.0)

        def at_spikes(x):
            distance = output(x)["distance"]
            return ((distance + jnp.concatenate([distance[:1], distance[:-1]])) / 2)[spikes]

        potentials = Prediction(lambda x: output(x)["V"][counts], recording.V[counts], fitting.V_RESOLUTION)
        distances = Prediction(at_spikes, np.zeros(spikes.sum()), fitting.V_RESOLUTION)
        clusters = np.concatenate([interval[counts], interval[spikes]]).astype(int)
        return {"V_mV": potentials, "distance_at_spikes_mV": distances}, clusters

    return predictions


def study_of(
    settings: Settings, targets: Mapping[str, Recording], known: Mapping[str, float] | None = None
) -> fitting.Study:
    """The study of the neuron on targets that have potentials and spikes.

    Args:
        targets: {"fit" or "validation": recording}.
        known: {name: value} of the neuron behind the targets, where there is one.
    """
    constants = constants_of(settings)
    model, trajectories = fitting.simulation(utils.GIF, constants), make_trajectories(constants)
    target = recordings.every(targets["fit"], settings.n_point)
    if settings.fit_target == "spike":
        recordings.require_spikes(target, settings.spike_level)
    study = fitting.Study(
        model=model,
        loss=simulation_loss(settings, trajectories),
        bounds=fitting.select_bounds(settings.fit_parameters, RANGES, settings.bounds),
        recordings={**targets, "fit": target},
        free_run=fitting.free_run_of(model, target.dt),
        known=known,
        delta=settings.delta,
    )
    if (settings.objective or ("likelihood" if target.spikes.any() else "simulation")) == "simulation":
        return study
    target = recordings.without_spikes(target, settings.t_blank)
    if settings.fit_target == "potential" and not target.mask.any():
        expected = "expected less: no potential is left to fit"
        raise BadInput(f"argument --t_blank: found {settings.t_blank:g}, {expected}")
    widths = (*(width for width in WIDTHS if width > settings.width_floor), settings.width_floor)
    return dataclasses.replace(
        study,
        model=make_costs(constants),
        loss=likelihood_loss(settings, trajectories),
        recordings={**targets, "fit": target},
        annealing=fitting.Annealing("width", "mV", widths),
        trajectories=trajectories,
    )


def constants_of(settings: Settings) -> Parameters:
    """The parameters of the protocol's neuron, with units: those that are not fitted have these values."""
    return {name: value * RANGES[name].unit for name, value in PROTOCOLS[settings.protocol].items()}


def make_study(
    settings: Settings, traces: Mapping[str, Recording], source: recordings.Source, seed: int = 0
) -> fitting.Study:
    """The study of the neuron on traces.

    Args:
        traces: {"fit" or "validation": recording}; potentials that are missing are simulated by the neuron of the
            protocol.
        source: of the traces, with what is added to them.
        seed: of noise that is added.
    """
    constants = constants_of(settings)
    free_run = fitting.free_run_of(fitting.simulation(utils.GIF, constants), source.dt)
    targets = recordings.make_targets(source, traces, free_run, constants, seed)
    return study_of(settings, targets, PROTOCOLS[settings.protocol] if source.target == "simulated" else None)


# ---- Data -----------------------------------------------------------------------------------------------------------


def protocol_currents(protocol: str, dt: float) -> dict[str, np.ndarray]:
    """{"fit" or "validation": currents (T, 5) in nA} of one second, in steps of dt (ms).

    The currents other than the paper's are Ornstein-Uhlenbeck: mean 1.5 nA, s.d. 0.7 nA, time constant 30 ms.
    """
    n_step, rng, decay = round(1000 / dt), np.random.default_rng(0), np.exp(-dt / 30)
    noisy = rng.standard_normal((n_step, 10))
    for k in range(1, n_step):
        noisy[k] = decay * noisy[k - 1] + np.sqrt(1 - decay**2) * noisy[k]
    noisy = 1.5 + 0.7 * noisy
    if protocol == "identifiable":
        return {"fit": noisy[:, :5], "validation": noisy[:, 5:]}
    t, steps = np.arange(n_step) * dt, np.zeros((n_step, 5))
    for trace, pieces in enumerate(PAPER_CURRENTS):
        levels, durations = zip(*pieces, strict=True)
        steps[:, trace] = np.take(levels, np.searchsorted(np.cumsum(durations), t + 1e-9, side="right"))
    return {"fit": steps, "validation": noisy[:, 5:]}


def read_traces(source: recordings.Source, protocol: str) -> dict[str, Recording]:
    """The user's recordings, or else the currents of the protocol, whose potentials are still to be simulated."""
    traces = recordings.read_recordings(source, {})
    if "fit" in traces:
        return traces
    currents = protocol_currents(protocol, source.dt)
    return {name: Recording(current, dt=source.dt) for name, current in currents.items()} | traces


# ---- Figure S4 ------------------------------------------------------------------------------------------------------


def plot_surrogates() -> plt.Figure:
    """The surrogates of `braintools.surrogate` at their defaults: gradient (orange) and the function (black).

    The last panel is the one of this neuron. Some surrogates are defined by the gradient alone.
    """
    module = braintools.surrogate
    classes = [getattr(module, name) for name in module.__all__]
    surrogates = {c.__name__: c() for c in classes if isinstance(c, type) and c is not module.Surrogate}
    surrogates["this neuron's ReluGrad"] = utils.SURROGATE
    x = jnp.linspace(-3, 3, 601)
    layout, n_row = dict(sharex=True, squeeze=False, layout="constrained"), -(-len(surrogates) // 5)
    figure, axes = plt.subplots(n_row, 5, figsize=(runs.WIDTH, 1.3 * n_row), **layout)
    for axis, (name, surrogate) in zip(axes.flat, surrogates.items(), strict=False):
        if type(surrogate).surrogate_fun is not module.Surrogate.surrogate_fun:
            axis.plot(x, surrogate.surrogate_fun(x), "k-", lw=1)
        axis.plot(x, surrogate.surrogate_grad(x), "C1-", lw=1)
        axis.set_title(name)
    for axis in axes.flat[len(surrogates) :]:
        axis.set_axis_off()
    figure.supxlabel("distance from threshold x", fontsize=8)
    return figure


# ---- Main -----------------------------------------------------------------------------------------------------------


def random_search(study: fitting.Study, fit: fitting.Fit, seed: int, devices: Sequence[jax.Device]) -> fitting.Minimum:
    """Random parameter sets, as many as a fit has simulated: what gradients have to beat."""
    n_sample = len(fit.minimum.starts)
    search = fitting.Search("random", n_sample, n_iter=-(-fit.n_simulations // n_sample), seed=seed)
    return fitting.minimise(fitting.FitProblem(study, n_sample, devices), search)


def make_plan(args: argparse.Namespace, study: fitting.Study) -> comparing.Plan:
    """The comparison that the arguments ask for."""
    without_currents = args.protocol == "paper" and not {"A1", "A2"} & set(study.bounds)
    names = [name for name in study.bounds if not (without_currents and name in ("k1", "k2", "R1", "R2"))]
    own = study.annealing or args.current or args.noise_std or args.fit_target != "potential"
    paper = PAPER_RESULTS if args.protocol == "paper" and not own else {}
    n_start = PAPER_STARTS if args.protocol_budget == "paper" else args.n_sample
    return runs.pick(comparing.Plan, args, n_start=n_start, names=names, paper=paper)


@runs.command_line
def main(argv: Sequence[str]) -> int:
    args = parse_args(argv)
    runs.use_plot_style()
    devices = runs.setup_jax(args.precision, args.devices)
    seeds = (int(child.generate_state(1)[0]) for child in np.random.SeedSequence(args.seed).spawn(3))
    noise_seed, fit_seed, random_seed = seeds
    source, settings = runs.pick(recordings.Source, args), runs.pick(Settings, args)
    study = make_study(settings, read_traces(source, args.protocol), source, noise_seed)
    objective = "likelihood" if study.annealing else "simulation"
    budget = args.protocol_budget if args.mode == "compare" else args.method
    name = f"{args.mode}_{args.protocol}_{objective}_{args.fit_target}_{budget}_seed{args.seed}"
    run = runs.RunFolder(args, SCRIPT, name, may_change={"repeats", "gradient_cost"})
    search, interrupted = runs.pick(fitting.Search, args, seed=fit_seed), False
    if args.mode == "compare":
        plan = make_plan(args, study)
        run.save_config(argv, devices)  # first: a comparison that is killed is resumed by it
        comparison = comparing.compare(study, plan, devices, run)
        interrupted = comparison.interrupted
        if not interrupted:
            comparing.save_comparison(run, study, plan, comparison)
            print(comparing.markdown_of(study, plan, comparison), end="")
    elif args.mode == "visualize":
        preview = fitting.visualize(study, search, devices)
        run.save_config(argv, devices)
        fitting.save_preview(run, study, preview)
        run.save("surrogates.png", plot_surrogates())
        fitting.print_preview(study, preview)
    else:
        fit, extra = fitting.fit(study, search, devices), {}
        interrupted = fit.minimum.interrupted
        if study.annealing:
            extra[f"{study.annealing.name}_{study.annealing.unit}"] = fit.minimum.level
        elif args.method == "L-BFGS-B" and not interrupted:
            random = random_search(study, fit, random_seed, devices)
            interrupted = random.interrupted
            fit = dataclasses.replace(fit, minimum=dataclasses.replace(fit.minimum, interrupted=interrupted))
            extra |= {} if interrupted else {"random_search_loss": random.best.loss}
        run.save_config(argv, devices)
        fitting.save_fit(run, study, fit, args.seed, extra)
        fitting.print_fit(study, fit, extra)
    print(run.path)
    return 130 if interrupted else 0


if __name__ == "__main__":
    sys.exit(main())
