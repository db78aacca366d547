"""Fit a generalised integrate-and-fire neuron to membrane potentials or spike trains.

The neuron is that of Mihalas & Niebur (2009); by default the rates a, b of its threshold and k1, k2 of its
spike-triggered currents are fitted (1/ms). The gradient of a simulation that spikes by itself is a surrogate, and a
poor guide. With --objective likelihood the recorded spikes drive the reset instead, and the parameters are those that
make these spikes the most likely: the gradient is true, and leads from any start to the parameters behind the data.
Without arguments the target is that of the paper's release, five currents of one second.
"""

import runs  # isort: skip  (first: it configures JAX)

import math
from pathlib import Path

import brainstate
import braintools
import brainunit as u
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import fitting
import recordings
import utils

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
# Table S2: loss (mV^2) and seconds, mean and s.d. of each; 100 starts of L-BFGS-B.
PAPER_STARTS = 100
PAPER_RESULTS = {
    "L-BFGS-B": (6.799, 4.623, 5.404, 0.294),
    "DE": (9.966, 2.281, 1.172, 0.09),
    "PSO": (14.034, 2.857, 1.151, 0.150),
    "TwoPointsDE": (9.702, 5.115, 1.161, 0.172),
    "bayesian": (3.511, 1.741, 62.330, 10.917),
}
# The paper's currents: (nA, ms), one after the other, one second in all.
PAPER_CURRENTS = [
    [(2.0, 200), (0.0, 800)],
    [(1.5, 500), (0.0, 500)],
    [(1.5, 100), (0.0, 500), (0.5, 100), (1.0, 100), (1.5, 100), (0.0, 100)],
    [(1.5, 20), (0.0, 180), (-1.5, 20), (0.0, 20), (1.5, 20), (0.0, 740)],
    [(0.0, 50), (-3.5, 750), (0.0, 200)],
]
COARSE_OPTIONS = fitting.LBFGSB_OPTIONS | {"ftol": 1e-6}
WIDTHS = (5.0, 2.0, 0.7, 0.2, 0.07, 0.02, 0.007, 0.002)  # mV


def parse_args():
    parser = runs.Parser(
        description=__doc__,
        epilog="examples:\n"
        f"  python {SCRIPT}.py --protocol identifiable --noise_std 0.5 --spike_jitter 0.1\n"
        f"  python {SCRIPT}.py --objective simulation --n_sample 100 --n_point 100",
    )
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
    fitting.add_fit_arguments(parser, RANGES, FITTED)
    runs.add_run_arguments(parser)
    parser.set_defaults(dt=0.1, precision=64)  # in float32, one start in three ends early
    return fitting.parse_fit_arguments(parser, shipped=False)


# ---- Model ----------------------------------------------------------------------------------------------------------


def make_simulation(constants, dt):
    """The neuron that runs freely: (parameters, data) -> V (mV) and spikes, each (T, n_trace); dt in ms."""

    def simulation(parameters, data):
        V, spikes = utils.simulate(utils.GIF, constants | parameters, data["current"] * u.nA, dt * u.ms)
        return dict(V=V.to_decimal(u.mV), spikes=spikes)

    return simulation


def teacher_forced(constants, dt, observe, start=lambda V, distance: None):
    """The neuron whose reset the recorded spikes drive, as a model (parameters, data) -> (carry, outputs).

    Args:
        constants: {name: value with unit} of the parameters that are not fitted.
        dt: (ms).
        observe: (carry, V, distance, row) -> carry, output of a step: V and V - V_th (mV) at its start, before a spike
            resets them, and the row of the data; each (n_trace,).
        start: (V, distance) -> carry, before the first step.
    """

    def model(parameters, data):
        cell = utils.GIF(data["current"].shape[1:], **constants | parameters)

        def potentials():
            return cell.V.value.to_decimal(u.mV), (cell.V.value - cell.V_th.value).to_decimal(u.mV)

        def step(carry, row):
            carry, output = observe(carry, *potentials(), row)
            cell.update(row["current"] * u.nA, row["spikes"])
            return carry, output

        with brainstate.environ.context(dt=dt * u.ms):
            cell.init_state()
            series = {name: x for name, x in data.items() if jnp.ndim(x)}
            return brainstate.transform.scan(step, start(*potentials()), series)

    return model


def make_trajectories(constants, dt):
    """Teacher-forced potentials: (parameters, data) -> V and V - V_th (mV), each (T, n_trace)."""
    model = teacher_forced(constants, dt, lambda _, V, distance, row: (None, dict(V=V, distance=distance)))
    return lambda parameters, data: model(parameters, data)[1]


def make_costs(constants, dt):
    """Costs of traces: (parameters, data) -> `spike_cost` and squared potential errors, summed over time, (n_trace,).

    They are summed as the neuron runs: storing potentials and their derivatives would take three times as long.
    """

    def model(parameters, data):
        def observe(carry, V, distance, row):
            spike_costs, errors, before = carry
            spike_costs += spike_cost(distance, before, row["spikes"], data["width"])
            return (spike_costs, errors + row["weight"] * (V - row["V"]) ** 2, distance), None

        def start(V, distance):
            return 0 * V, 0 * V, distance

        (spike_costs, errors, _), _ = teacher_forced(constants, dt, observe, start)(parameters, data)
        return dict(spike_cost=spike_costs, error=errors)

    return model


# ---- Losses ---------------------------------------------------------------------------------------------------------


def spike_cost(distance, before, spike, width):
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
    # p = (1 - exp(-rise)) / (1 + exp(-x)); the bound keeps a spike possible where V falls.
    fired = cumulative - x - jnp.log(1 - jnp.exp(-jnp.maximum(rise, 1e-3)))
    return jnp.where(spike > 0, fired, silent)


def potential_weights(args, spikes):
    """1 where the potential error counts, else 0: at every (T // n_point)-th step and not next to a recorded spike."""
    n_step = len(spikes)
    weights = np.zeros_like(spikes)
    weights[:: n_step // (args.n_point or n_step)] = 1
    if args.objective == "likelihood":
        n_blank = round(args.t_blank / args.dt)
        for step, trace in np.argwhere(spikes):
            weights[max(step - n_blank, 0) : step + n_blank + 2, trace] = 0
    return weights


def likelihood_loss(args):
    """Negative log-likelihood of the spikes and, for --fit_target potential, of the potentials, from `make_costs`.

    That of n potentials is Gaussian, maximised over the noise level: n / 2 log(1 + mean squared error / s^2) with s the
    resolution of a recording.
    """

    def loss(costs, data):
        n = (args.fit_target == "potential") * jnp.sum(data["weight"])
        mse = jnp.sum(costs["error"]) / jnp.maximum(n, 1)
        return jnp.sum(costs["spike_cost"]) + n / 2 * jnp.log1p(mse / fitting.V_RESOLUTION**2)

    return loss, "negative log-likelihood"


def simulation_loss(args):
    """The paper's loss of the model that runs freely: potentials as they are, spikes with their surrogate gradient."""

    def mse(output, data):
        return jnp.sum(data["weight"] * (output["V"] - data["V"]) ** 2) / jnp.sum(data["weight"])

    def van_rossum(output, data):
        return recordings.van_rossum_distance(output["spikes"], data["spikes"], args.dt * u.ms, args.tau_rossum * u.ms)

    if args.fit_target == "potential":
        return mse, "mean squared error of the potential (mV^2)"
    return van_rossum, "van Rossum distance of the spikes"


# ---- Optimisation ---------------------------------------------------------------------------------------------------


def anneal(problem, widths, x0):
    """Minimise from every row of x0 at each width in turn, from where the last one ended, then fully at the best width.

    The best width is that of the highest likelihood: it is thereby fitted too. KeyboardInterrupt leaves the best stage.
    """
    starts, stages = [fitting.Start(x, x) for x in x0], []

    def minimise(width, starts, options):
        problem.set_data(**problem.data | {"width": width})
        stage = fitting.lbfgsb_multistart(problem, np.stack([start.x for start in starts]), options)
        for start, earlier in zip(stage, starts, strict=True):
            start.initial = earlier.initial
            start.flat = earlier.flat if earlier.n_gradients else start.flat
            start.n_gradients += earlier.n_gradients
        return stage

    for width in widths:
        starts = minimise(width, starts, COARSE_OPTIONS)
        if problem.interrupted or not math.isfinite(problem.best_loss):
            break
        stages.append((problem.best_loss, width, starts, problem.best_x))
    if not stages:
        return starts
    best_loss, width, starts, best_x = min(stages, key=lambda stage: stage[0])
    if not problem.interrupted:
        refined = minimise(width, starts, fitting.LBFGSB_OPTIONS)
        if not problem.interrupted:
            return refined
    problem.set_data(**problem.data | {"width": width})
    problem.best_loss, problem.best_x = best_loss, best_x
    return starts


def random_search_loss(problem, seed):
    """Lowest loss of as many random parameter sets as the problem has had simulated: what gradients have to beat."""
    other = fitting.FitProblem(
        problem.model, problem.loss, problem.bounds, problem.data, problem.n_sample, problem.devices
    )
    fitting.minimise(other, "random", -(-problem.n_simulations // problem.n_sample), seed)
    problem.interrupted |= other.interrupted
    return other.best_loss


# ---- Data -----------------------------------------------------------------------------------------------------------


def protocol_currents(protocol, dt):
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


def make_predictions(args, model, problem, data):
    """What `fitting.identifiability` asks how well it is determined, and the clusters of these numbers.

    They are the teacher-forced potentials, and V - V_th half a step before each recorded spike, where it should be 0. A
    cluster is the time between two spikes: a spike recorded late is one for all potentials that follow.
    """
    spikes = data["spikes"] > 0
    interval = np.cumsum(spikes, axis=0) - spikes
    interval += np.concatenate([[0], np.cumsum(interval.max(0) + 1)[:-1]])
    keep = data["weight"] > 0 if args.fit_target == "potential" else np.zeros_like(spikes)

    def output(x):
        return model(problem.parameters(x), data)

    def at_spikes(x):
        distance = output(x)["distance"]
        return ((distance + jnp.concatenate([distance[:1], distance[:-1]])) / 2)[spikes]

    predictions = {"V_mV": (lambda x: output(x)["V"][keep], data["V"][keep], fitting.V_RESOLUTION)}
    predictions["distance_at_spikes_mV"] = (at_spikes, np.zeros(spikes.sum()), fitting.V_RESOLUTION)
    return predictions, np.concatenate([interval[keep], interval[spikes]]).astype(int)


# ---- Figure S4 ------------------------------------------------------------------------------------------------------


def plot_surrogates():
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


def main():
    args = parse_args()
    devices = runs.setup_jax(args)
    bounds = fitting.select_bounds(args, RANGES)
    seeds = (int(child.generate_state(1)[0]) for child in np.random.SeedSequence(args.seed).spawn(3))
    noise_seed, fit_seed, random_seed = seeds

    known = PROTOCOLS[args.protocol]
    constants = {name: value * RANGES[name].unit for name, value in known.items()}
    simulation, trajectories = make_simulation(constants, args.dt), make_trajectories(constants, args.dt)
    compiled = jax.jit(simulation)

    def free_run(parameters, current):
        out = compiled(parameters, dict(current=current))
        return np.asarray(out["V"], np.float64), np.asarray(out["spikes"], np.float64)

    traces = recordings.read_recordings(args, {})
    if "fit" not in traces:
        traces = {name: (current, None) for name, current in protocol_currents(args.protocol, args.dt).items()} | traces
    targets = recordings.make_targets(args, traces, free_run, constants, noise_seed)
    args.objective = args.objective or ("likelihood" if targets["fit"]["spikes"].any() else "simulation")
    way = args.protocol_budget if args.mode == "compare" else args.method
    name = f"{args.mode}_{args.protocol}_{args.objective}_{args.fit_target}_{way}_seed{args.seed}"
    run = runs.RunFolder(args, devices, SCRIPT, name, may_change={"repeats", "gradient_cost"})

    widths = [width for width in WIDTHS if width > args.width_floor] + [args.width_floor]
    data = targets["fit"] | dict(weight=potential_weights(args, targets["fit"]["spikes"]), width=widths[-1])
    likelihood = args.objective == "likelihood"
    if args.fit_target == "potential" and not data["weight"].any():
        raise runs.BadInput(f"argument --t_blank: found {args.t_blank:g}, expected less: no potential is left to fit")
    if likelihood:
        model, (loss, loss_name) = make_costs(constants, args.dt), likelihood_loss(args)
    else:
        model, (loss, loss_name) = simulation, simulation_loss(args)

    def make_problem(n_sample):
        return fitting.FitProblem(model, loss, bounds, data, n_sample, devices, trajectories if likelihood else None)

    problem = make_problem(args.n_sample)

    def multistart(problem, x0):
        return anneal(problem, widths, x0)

    def information():
        return fitting.identifiability(problem, *make_predictions(args, trajectories, problem, data))

    responses, known = {}, known if args.target == "simulated" else None
    if args.mode == "compare":
        without_effect = (
            {"k1", "k2", "R1", "R2"} if args.protocol == "paper" and not {"A1", "A2"} & set(bounds) else set()
        )
        task = dict(names=[name for name in bounds if name not in without_effect], known=known, recording=data)
        task |= dict(free_run=free_run, loss_name=loss_name, multistart=multistart if likelihood else None)
        as_paper = not (likelihood or args.current or args.noise_std) and args.fit_target == "potential"
        n_start = PAPER_STARTS if args.protocol_budget == "paper" else args.n_sample
        paper = PAPER_RESULTS if as_paper and args.protocol == "paper" else {}
        responses = fitting.compare(run, make_problem, n_start, paper, **task)
    elif args.mode == "visualize":
        fitting.write_visualization(run, problem, free_run, targets["fit"], fit_seed)
        run.save("surrogates.png", plot_surrogates())
    else:
        starts = fitting.minimise(problem, args.method, args.n_iter, fit_seed, multistart if likelihood else None)
        extra = {"width_mV": float(problem.data["width"])} if likelihood else {}
        if not likelihood and args.method == "L-BFGS-B" and not problem.interrupted:
            random_loss = random_search_loss(problem, random_seed)
            extra = {} if problem.interrupted else {"random_search_loss": random_loss}
        fitting.write_report(run, problem, starts, loss_name, targets, free_run, known, information, extra)
    print(run.path)
    return 130 if problem.interrupted or responses is None else 0


if __name__ == "__main__":
    runs.run_script(main)
