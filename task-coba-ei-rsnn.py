"""Train a conductance-based spiking network on evidence accumulation, simulate it, or check its gradients.

Cues on the left and right, a delay of one second, and then a decision for the side that had more. The network has
excitatory and inhibitory neurons with adaptation (4 : 1), obeys Dale's law and is trained by gradients of its
simulation: those of backpropagation through time, or of one of two online rules whose memory does not grow with the
trial. `--mode train` leaves checkpoints, a learning curve and pictures of what the network does; `--mode sim`
makes the pictures alone, of an untrained network or of that of an earlier run, and of the latter also what it has
learned; `--mode check` compares the gradients of all methods with what they should be.
"""

import runs  # isort: skip  (first: it configures JAX)

import argparse
import contextlib
import dataclasses
import functools
import math
import signal
import time
from pathlib import Path

import absl.logging
import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import orbax.checkpoint as ocp
import scipy.optimize
import scipy.special
import scipy.stats
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

import learning_rules
import utils

SCRIPT = Path(__file__).stem
METHODS, ENGINES = ("bptt", "diag", "expsm_diag"), ("native", "brainscale")
# The arguments that a network that is loaded brings along.
TASK_ARGUMENTS = tuple(utils.EvidenceAccumulation.__dataclass_fields__)
INITIAL_ARGUMENTS = ("conn_seed", "weight_seed", "ff_scale", "rec_scale", "w_ei_ratio")
NETWORK_ARGUMENTS = ("conn_method", "n_rec", "tau_neu", "tau_syn", "tau_out", "tau_a", "beta", "E_exc", "E_inh")
NETWORK_ARGUMENTS += INITIAL_ARGUMENTS
SATURATED = 200.0  # Hz; a population that fires more in the mean carries no information in single spikes
HELDOUT_BLOCK = 64  # held-out trials at a time on each device
LEVELS = (0.9, 0.95, 0.99)  # the updates after which the held-out accuracy first reached these are reported
DELAYS = (250.0, 500.0, 1000.0, 2000.0, 4000.0)  # ms; a trained network is tried with each


def parse_args():
    parser = runs.Parser(
        description=__doc__,
        epilog="examples:\n"
        f"  python {SCRIPT}.py --method bptt --lr 5e-3 --schedule cosine --epochs 100 --batch_size 64 --tau_a 10000 "
        "--rec_scale 0.1 --ff_scale 10 --beta 0.5\n"
        f"  python {SCRIPT}.py --mode sim --load results/{SCRIPT}/train_bptt_dense_200_seed0 --t_delay 2000",
    )
    seed_number = runs.number(int, low=0, high=2**32 - 1)
    positive, positive_int = runs.number(float, above=0), runs.number(int, low=1)
    not_negative, fraction = runs.number(float, low=0), runs.number(float, above=0, high=1)

    add = parser.add_argument_group("what to do").add_argument
    mode = (
        "train the network; or only simulate it, and with --load also test what it has learned"
    )
    add("--mode", choices=("train", "sim"), default="train", help=mode)
    load = "run folder whose best network is the one to start from; its network and task are the defaults then"
    add("--load", type=Path, metavar="RUN", help=load)
    resume = "run folder of an interrupted training to go on with; its arguments are the defaults then"
    add("--resume", type=Path, metavar="RUN", help=resume)

    add = parser.add_argument_group("gradient").add_argument
    method = (
        "bptt: backpropagation through time; diag: D-RTRL, online and exact; expsm_diag: ES-D-RTRL, online, with "
        "traces that are products of two smoothed factors"
    )
    add("--method", choices=METHODS, default="bptt", help=method)
    engine = (
        "native: the rules of this script; brainscale: diag and expsm_diag by that package, as in the paper, which is "
        "slower, and whose diag is wrong here"
    )
    add("--engine", choices=ENGINES, default="native", help=engine)
    etrace_decay = (
        "decay of the factors of expsm_diag in a step, between 0 and 1, or a rank n, for (n - 1) / (n + 1); its memory "
        "is 1 / (1 - decay) steps"
    )
    add("--etrace_decay", type=decay_or_rank, default=0.98, metavar="DECAY", help=etrace_decay)
    trace_chunk = "steps, at most, by which the traces of diag advance at once"
    add("--trace_chunk", type=positive_int, default=100, metavar="C", help=trace_chunk)
    trace_batch = "trials whose traces diag has at a time on each device; a GPU may want all of them"
    add("--trace_batch", type=positive_int, default=4, metavar="N", help=trace_batch)

    add = parser.add_argument_group("network").add_argument
    conn_method = (
        "dense: all to all; rand: each neuron has 0.1 n_rec random targets; gaussian: excitatory connections by "
        "distance on a ring of n_rec neurons (s.d. 20 neurons), inhibitory ones as in rand"
    )
    add("--conn_method", choices=("dense", "gaussian", "rand"), default="dense", help=conn_method)
    n_rec = "recurrent neurons, of which one in five is inhibitory"
    add("--n_rec", type=runs.number(int, low=5), default=200, help=n_rec)
    ff_scale = "variance of the input weights, times the number of inputs to a neuron"
    add("--ff_scale", type=not_negative, default=1.0, help=ff_scale)
    rec_scale = "variance of the excitatory weights, times the number of excitatory inputs to a neuron"
    add("--rec_scale", type=not_negative, default=0.5, help=rec_scale)
    w_ei_ratio = "factor on rec_scale for the inhibitory weights"
    add("--w_ei_ratio", type=not_negative, default=4.0, help=w_ei_ratio)
    add("--tau_neu", type=positive, default=100.0, help="time constant of the membrane (ms)")
    add("--tau_syn", type=positive, default=10.0, help="time constant of the synaptic conductances (ms)")
    add("--tau_out", type=positive, default=10.0, help="time constant of the readout (ms)")
    tau_a = "time constant of adaptation (ms): that of each neuron is uniform in 0.5 to 1.5 of it"
    add("--tau_a", type=positive, default=1000.0, help=tau_a)
    add(
        "--beta",
        type=runs.number(float),
        default=1.0,
        help="adaptation current of a spike; it excites if negative (threshold is 1)",
    )
    add("--E_exc", type=runs.number(float), default=3.0, help="excitatory reversal potential (threshold is 1)")
    add("--E_inh", type=runs.number(float), default=-3.0, help="inhibitory reversal potential (threshold is 1)")
    add("--dt", type=positive, default=1.0, help="time step (ms)")
    seed = "seed of the {}, derived from --seed without this argument"
    add("--conn_seed", type=seed_number, help=seed.format("connections and time constants of adaptation"))
    add("--weight_seed", type=seed_number, help=seed.format("initial weights"))

    add, task = parser.add_argument_group("task").add_argument, utils.EvidenceAccumulation()
    add("--n_in", type=positive_int, default=task.n_in, help="input neurons: four equal groups; a multiple of 4")
    add("--n_cue", type=positive_int, default=task.n_cue, help="cues of a trial; odd, so that one side has more")
    add("--t_cue", type=positive, default=task.t_cue, help="duration of a cue (ms)")
    add("--t_interval", type=not_negative, default=task.t_interval, help="interval before each cue (ms)")
    add("--t_delay", type=not_negative, default=task.t_delay, help="delay between cues and recall (ms)")
    add("--t_recall", type=positive, default=task.t_recall, help="duration of recall, at the end of the trial (ms)")
    add(
        "--rate_cue",
        type=not_negative,
        default=task.rate_cue,
        help="rate of the left or right inputs during a cue (Hz)",
    )
    add(
        "--rate_recall",
        type=not_negative,
        default=task.rate_recall,
        help="rate of the recall inputs during recall (Hz)",
    )
    add("--rate_noise", type=not_negative, default=task.rate_noise, help="rate of the noise inputs, always (Hz)")
    p_bias = "probability that a cue is on the side to which its trial is biased"
    add("--p_bias", type=fraction, default=task.p_bias, help=p_bias)

    add = parser.add_argument_group("training").add_argument
    add("--epochs", type=positive_int, default=1000, help="updates, at most")
    batch_size = "trials of an update; in the other modes, trials to simulate"
    add("--batch_size", type=positive_int, default=128, help=batch_size)
    add("--opt", choices=("adam", "sgd"), default="adam", help="optimiser of the weights, by optax")
    add("--lr", type=positive, default=1e-3, help="learning rate")
    schedule = "cosine: the learning rate falls to 0 over --epochs along half a cosine"
    add("--schedule", choices=("constant", "cosine"), default="constant", help=schedule)
    add("--weight_L1", type=not_negative, default=0.0, help="factor of the mean |W| in the loss, summed over W")
    add("--weight_L2", type=not_negative, default=0.0, help="factor of the mean W^2 in the loss, summed over W")
    grad_clip = "largest norm of the gradient, which is scaled down to it; unlimited without this argument"
    add("--grad_clip", type=positive, metavar="NORM", help=grad_clip)
    add("--eval_every", type=positive_int, default=20, help="updates between evaluations on the held-out trials")
    add("--n_heldout", type=positive_int, default=1024, help="held-out trials")
    heldout_seed = "seed of the held-out trials, which are the same for every --seed"
    add("--heldout_seed", type=seed_number, default=1, help=heldout_seed)
    add("--threshold", type=fraction, default=0.99, help="held-out accuracy at which training ends")
    add("--save_every", type=positive_int, default=20, help="updates between checkpoints")
    runs.add_run_arguments(parser)

    args = parser.parse_args()
    if args.load and not args.resume:
        brought = (*NETWORK_ARGUMENTS, *TASK_ARGUMENTS)
        saved = runs.saved_arguments(args.load, "load", brought)
        parser.set_defaults(**{name: saved[name] for name in brought})
        args = parser.parse_args()
        for name in ("conn_method", "n_rec", "n_in", *INITIAL_ARGUMENTS):
            if getattr(args, name) != saved[name]:
                found = f"found {getattr(args, name)} here and {saved[name]} in {args.load}"
                parser.error(f"argument --{name}: {found}, expected the same to load it")
    return check_arguments(parser, args)


def decay_or_rank(text):
    """argparse type: a decay between 0 and 1, or that of a rank n, which is (n - 1) / (n + 1)."""
    value = runs.to_number(text)
    if value.is_integer() and value >= 2:
        return (value - 1) / (value + 1)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected a decay between 0 and 1, or a rank, an integer >= 2"
        )
    return value


def check_arguments(parser, args):
    if args.resume and (args.mode != "train" or args.output):
        found = f"found with --mode {args.mode} or --output"
        parser.error(f"argument --resume: {found}, expected a training to go on with")
    if args.engine == "brainscale" and args.method == "bptt" and args.mode == "train":
        parser.error("argument --engine: found brainscale with --method bptt, expected --method diag or expsm_diag")
    if args.engine == "brainscale" and (words := learning_rules.why_no_brainscale()):
        parser.error(f"argument --engine: brainscale: {words}")
    if args.n_cue % 2 == 0:
        parser.error(f"argument --n_cue: found {args.n_cue}, expected an odd number, so that one side has more")
    if args.n_in % 4:
        parser.error(f"argument --n_in: found {args.n_in}, expected a multiple of 4, the number of groups")
    for name in ("rate_cue", "rate_recall", "rate_noise"):
        if getattr(args, name) * args.dt > 1000:
            limit = f"at most one spike a step, {1000 / args.dt:g} Hz"
            parser.error(f"argument --{name}: found {getattr(args, name):g}, expected {limit}")
    for name in ("t_cue", "t_recall"):
        if round(getattr(args, name) / args.dt) < 1:
            parser.error(f"argument --{name}: found {getattr(args, name):g}, expected at least a step of {args.dt:g}")
    seeds = split_seed(args.seed)
    args.conn_seed = seeds["conn"] if args.conn_seed is None else args.conn_seed
    args.weight_seed = seeds["weight"] if args.weight_seed is None else args.weight_seed
    return args


def split_seed(seed):
    """Seeds of the connections, the initial weights, the training and the simulation, from one."""
    states = np.random.SeedSequence(seed).generate_state(4).tolist()
    return dict(zip(("conn", "weight", "train", "sim"), states, strict=True))


def split_devices(args, devices):
    """The devices over which a batch is split: with `--devices all`, as many as divide it."""
    n = len(devices)
    if args.devices == "all":
        n = max(n for n in range(1, n + 1) if args.batch_size % n == 0)
    elif args.batch_size % n:
        expected = f"a multiple of the {n} devices of --devices, each of which gets as many trials"
        raise runs.BadInput(f"argument --batch_size: found {args.batch_size}, expected {expected}")
    return devices[:n]


# ---- Model and loss -------------------------------------------------------------------------------------------------


def make_model(args):
    """Task, network, connections and initial weights that the arguments ask for."""
    task = utils.EvidenceAccumulation(**{name: getattr(args, name) for name in TASK_ARGUMENTS})
    n_inh = round(args.n_rec / 5)
    n_exc = args.n_rec - n_inh
    conn_seed, tau_seed = np.random.SeedSequence(args.conn_seed).spawn(2)
    connections = utils.connect(args.conn_method, n_exc, n_inh, conn_seed)
    tau_a = np.random.default_rng(tau_seed).uniform(0.5 * args.tau_a, 1.5 * args.tau_a, args.n_rec)
    taus = {name: getattr(args, name) * u.ms for name in ("tau_neu", "tau_syn", "tau_out")}
    reversal = dict(beta=args.beta, E_exc=args.E_exc, E_inh=args.E_inh)
    tau_a = u.Quantity(tau_a.astype(jnp.result_type(float)), unit=u.ms)
    network = utils.EINetwork(args.n_in, n_exc, n_inh, tau_a=tau_a, **taus, **reversal)
    scales = {name: getattr(args, name) for name in ("ff_scale", "rec_scale", "w_ei_ratio")}
    key = jax.random.key(args.weight_seed)
    weights = utils.initial_weights(key, args.n_in, network.n_out, n_exc, n_inh, connections, **scales)
    return task, network, weights, connections


def penalty(weights, weight_L1, weight_L2):
    """weight_L1 sum_W mean |W| + weight_L2 sum_W mean W^2."""
    leaves = jax.tree.leaves(weights)
    return sum(weight_L1 * jnp.abs(w).mean() + weight_L2 * (w**2).mean() for w in leaves)


# ---- Online learning ------------------------------------------------------------------------------------------------


# ---- Training -------------------------------------------------------------------------------------------------------


def make_optimiser(args):
    lr = optax.cosine_decay_schedule(args.lr, args.epochs) if args.schedule == "cosine" else args.lr
    optimiser = {"adam": optax.adam, "sgd": optax.sgd}[args.opt](lr)
    return optax.chain(optax.clip_by_global_norm(args.grad_clip), optimiser) if args.grad_clip else optimiser


COPIED, SPLIT = PartitionSpec(), PartitionSpec("batch")


def memory_of(program):
    """Memory (MB) of a compiled program on each device: its arguments, its results, and what it holds on the way."""
    memory = program.memory_analysis()
    return (memory.argument_size_in_bytes + memory.temp_size_in_bytes + memory.output_size_in_bytes) / 1e6


def over_devices(function, mesh, in_specs, out_specs):
    """The function of a batch, run on each device with its part of what is SPLIT and all of what is COPIED."""
    return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def choose_rule(args, method, engine):
    """The function (task, network, weights, connections, keys) -> loss, gradient, accuracy and rates of a batch."""
    if engine == "brainscale":
        return functools.partial(learning_rules.by_brainscale, method=method, etrace_decay=args.etrace_decay)
    return {
        "bptt": learning_rules.bptt,
        "diag": functools.partial(learning_rules.diag, trace_chunk=args.trace_chunk, trace_batch=args.trace_batch),
        "expsm_diag": functools.partial(learning_rules.expsm_diag, etrace_decay=args.etrace_decay),
    }[method]


def make_gradient(rule, task, network, mesh):
    """(weights, connections, keys) -> what the rule gives of a batch that is split over the devices."""

    def on_device(weights, connections, keys):
        return jax.lax.pmean(rule(task, network, weights, connections, keys), "batch")

    return over_devices(on_device, mesh, (COPIED, COPIED, SPLIT), COPIED)


def make_update(args, task, network, optimiser, mesh):
    """The update (state, connections, number of the update) -> state after it, metrics."""
    gradient = make_gradient(choose_rule(args, args.method, args.engine), task, network, mesh)

    def update(state, connections, n):
        weights = state["weights"]
        keys = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(state["key"]), n), args.batch_size)
        loss, grads, accuracy, rates = gradient(weights, connections, keys)
        if args.weight_L1 or args.weight_L2:
            extra, extra_grads = jax.value_and_grad(penalty)(weights, args.weight_L1, args.weight_L2)
            loss, grads = loss + extra, jax.tree.map(jnp.add, grads, extra_grads)
        steps, optimiser_state = optimiser.update(grads, state["optimiser"], weights)
        new_weights = optax.apply_updates(weights, steps)
        both = jax.tree.map(lambda grad, w: jnp.isfinite(grad).all() & jnp.isfinite(w).all(), grads, new_weights)
        finite = {name: ok & jnp.isfinite(loss) for name, ok in both.items()}
        metrics = dict(loss=loss, accuracy=accuracy, rates=rates.mean(axis=0) * 1000 / args.dt, finite=finite)
        return state | dict(weights=new_weights, optimiser=optimiser_state), metrics

    return update


def make_evaluation(args, task, network, mesh):
    """The evaluation (weights, connections) -> of the held-out trials, `correct` and `evidence`; and rates (n_step, 2).

    The rates are also of the trials that fill up the last block.
    """
    n_block = mesh.size * min(HELDOUT_BLOCK, -(-args.n_heldout // mesh.size))
    n_padded = -(-args.n_heldout // n_block) * n_block

    def block(weights, connections, keys):
        _, correct, rates = learning_rules.run_trials(task, network, weights, connections, keys)
        return dict(correct=correct, evidence=task.trials(keys)[1]), jax.lax.pmean(rates, "batch")

    on_devices = over_devices(block, mesh, (COPIED, COPIED, SPLIT), (SPLIT, COPIED))

    def evaluate(weights, connections):
        keys = jax.random.split(jax.random.key(args.heldout_seed), n_padded)
        trials, rates = jax.lax.map(lambda k: on_devices(weights, connections, k), keys.reshape(-1, n_block))
        trials = {name: x.reshape(n_padded, *x.shape[2:])[: args.n_heldout] for name, x in trials.items()}
        return trials, rates.mean(axis=0)

    return evaluate


def wilson_interval(n_correct, n):
    """95 % interval of a probability of which n_correct of n trials were seen (Wilson 1927)."""
    return list(scipy.stats.binomtest(int(n_correct), n).proportion_ci(method="wilson"))


def period_rates(task, rates):
    """{period: {"exc": Hz, "inh": Hz}} of rates (n_step, 2) in spikes a step, for periods that have steps."""
    periods = {name: rates[period] for name, period in task.periods.items() if period.stop > period.start}
    means = {name: (np.mean(rows, axis=0) * 1000 / task.dt).tolist() for name, rows in periods.items()}
    return {name: dict(zip(("exc", "inh"), mean, strict=True)) for name, mean in means.items()}


class Checkpoints:
    """Checkpoints of a run by orbax, in its folder checkpoints/: the last one and the one of best held-out accuracy.

    Each holds the state, a pytree of arrays, and the history, a list of dicts. One that is being written when the
    process is killed does not count.
    """

    def __init__(self, folder, read_only=False):
        def accuracy(metrics):
            return metrics["heldout_accuracy"]

        policies = ocp.checkpoint_managers
        best = policies.BestN(get_metric_fn=accuracy, n=1, keep_checkpoints_without_metrics=False)
        policy = policies.AnyPreservationPolicy([policies.LatestN(1), best])
        options = dict(preservation_policy=policy, best_fn=accuracy, enable_async_checkpointing=False)
        options |= dict(create=not read_only, cleanup_tmp_directories=not read_only)
        self.folder = Path(folder, "checkpoints").absolute()
        self.manager = ocp.CheckpointManager(self.folder, options=ocp.CheckpointManagerOptions(**options))

    @classmethod
    def of(cls, folder, argument):
        """Those of an earlier run, which `argument` names: to go on with it, or else to read."""
        if not Path(folder, "checkpoints").is_dir():
            found = f"found no checkpoints in {folder}"
            raise runs.BadInput(f"argument --{argument}: {found}, expected the folder of a training")
        with readable(Path(folder, "checkpoints")):
            checkpoints = cls(folder, read_only=argument != "resume")
        if checkpoints.last is None:
            found = f"found no complete checkpoint in {folder}"
            raise runs.BadInput(f"argument --{argument}: {found}, expected at least one")
        return checkpoints

    @property
    def last(self):
        return self.manager.latest_step()

    @property
    def best(self):
        """The update of best held-out accuracy, or the last one where none was evaluated."""
        best = self.manager.best_step()
        return self.last if best is None else best

    def save(self, update, state, history, heldout_accuracy):
        content = ocp.args.Composite(state=ocp.args.StandardSave(state), history=ocp.args.JsonSave(history))
        metrics = None if heldout_accuracy is None else dict(heldout_accuracy=heldout_accuracy)
        self.manager.save(update, args=content, metrics=metrics)

    def restore(self, update, like=None):
        """State, as the pytree `like`, or else of dicts and lists on the first device; and history."""
        first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        state = ocp.args.StandardRestore(like, fallback_sharding=None if like else first)
        with readable(self.folder / str(update)):
            restored = self.manager.restore(
                update, args=ocp.args.Composite(state=state, history=ocp.args.JsonRestore())
            )
        return restored.state, restored.history

    def close(self):
        self.manager.close()


@contextlib.contextmanager
def readable(path):
    """Any error while a checkpoint is read, of which orbax and tensorstore raise many kinds, as one line."""
    try:
        yield
    except Exception as error:
        first = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise runs.BadInput(f"{path}: found a checkpoint that cannot be read ({first}), expected a whole one") from None


def load_network(folder, weights, connections):
    """(weights, connections, initial weights) of the best network of a run, whose shapes must be those given."""
    checkpoints = Checkpoints.of(folder, "load")
    state, _ = checkpoints.restore(checkpoints.best)
    checkpoints.close()
    expected = dict(weights=weights, connections={name: pair for name, pair in connections.items() if pair})
    shapes = [
        [np.shape(x) for x in jax.tree.leaves((tree["weights"], tree["connections"]))] for tree in (state, expected)
    ]
    if shapes[0] != shapes[1]:
        raise runs.BadInput(f"{folder}: found weights and connections of shapes {shapes[0]}, expected {shapes[1]}")
    connections = {name: state["connections"].get(name) for name in connections}
    return state["weights"], connections, state["initial"]


def name_nan(args, model, key, finite):
    """Where an update that is not finite stops being so, in words: the simulation, or the gradient of what."""
    task, network, weights, connections = model
    keys = jax.random.split(key, args.batch_size)
    _, evidence = task.trials(keys)

    @jax.jit
    def simulate(weights, connections):
        synapses = network.synapses(weights, connections)
        network.init_state(len(keys))
        states = dict(V=network.neurons.V, g_exc=network.g_exc, g_inh=network.g_inh, r=network.r)

        def step(k):
            network.update(synapses, task.spikes(keys, evidence, k))
            return {name: jnp.isfinite(state.value).all(axis=1) for name, state in states.items()}

        return brainstate.transform.for_loop(step, jnp.arange(task.n_step))

    bad = {name: np.argwhere(~np.asarray(x)) for name, x in simulate(weights, connections).items()}
    first = min(((*where[0], name) for name, where in bad.items() if len(where)), default=None)
    if first:
        return f"{first[2]} is not finite at time step {first[0]} of trial {first[1]}"
    return f"the weights {', '.join(name for name, ok in finite.items() if not ok)}, or their gradients, are not finite"


def diagnose(rate_exc, rate_inh):
    """What is wrong with the activity of a batch (Hz), and the argument to change, in words; None if nothing is."""
    if rate_exc == 0:
        return "the network is silent: no excitatory neuron fires; raise --ff_scale"
    for name, rate, argument in (("excitatory", rate_exc, "rec_scale"), ("inhibitory", rate_inh, "ff_scale")):
        if rate > SATURATED:
            limit = f"{name} neurons fire at more than {SATURATED:g} Hz"
            return f"the network saturates: {limit}; lower --{argument} or raise --beta"
    return None


@contextlib.contextmanager
def deferred_ctrl_c():
    """A list that is empty until Ctrl-C is pressed, which then lets the update or save in progress come to its end."""
    pressed = []
    before = signal.signal(signal.SIGINT, lambda *_: pressed.append(True))
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


class Training:
    """A training that can be stopped and resumed: its state, its compiled programs, and its history, a row an update.

    A checkpoint holds the history, the state {"weights", "optimiser", "key"}, and what stays fixed: the connections and
    the initial weights.
    """

    def __init__(self, args, run, mesh, seed):
        self.args, self.run = args, run
        self.task, self.network, weights, connections = make_model(args)
        if args.load and not args.resume:
            weights, connections, _ = load_network(args.load, weights, connections)
        copied = NamedSharding(mesh, COPIED)
        optimiser, key = make_optimiser(args), jax.random.key_data(jax.random.key(seed))
        state = dict(weights=weights, optimiser=optimiser.init(weights), key=key)
        fixed = dict(initial=weights, connections={name: pair for name, pair in connections.items() if pair})
        self.state, self.fixed = jax.device_put((state, fixed), copied)
        self.history, self.stopped, self.warnings = [], "epochs", []
        if args.resume:
            self._restore(mesh.size)
        start = time.perf_counter()
        compiled = dict(in_shardings=copied, out_shardings=copied)
        update = jax.jit(make_update(args, self.task, self.network, optimiser, mesh), **compiled)
        evaluate = jax.jit(make_evaluation(args, self.task, self.network, mesh), **compiled)
        self.update = update.lower(self.state, self.connections, 0).compile()
        self.evaluate = evaluate.lower(weights, self.connections).compile()
        spent = self.history[-1]["seconds"] if self.history else 0.0
        self.seconds = dict(compile=time.perf_counter() - start, run=spent)
        run.save("config.json", run.config())
        if not args.resume:
            self.checkpoints = Checkpoints(run.path)

    def _restore(self, n_device):
        self.checkpoints = Checkpoints.of(self.run.path, "resume")
        state, self.history = self.checkpoints.restore(self.checkpoints.last, self.state | self.fixed)
        self.fixed = {name: state.pop(name) for name in self.fixed}
        self.state = state
        for row in self.history:
            self._warn(diagnose(row["rate_exc"], row["rate_inh"]))
        before = len(self.run.load("config.json")["devices"])
        if before != n_device:
            self._warn(f"{n_device} devices instead of {before}: numbers differ by rounding from here on")

    def _warn(self, words):
        if words and words not in self.warnings:
            self.warnings.append(words)
            tqdm.write(f"update {len(self.history)}: {words}")

    @property
    def connections(self):
        return {name: self.fixed["connections"].get(name) for name in self.network.sizes}

    @property
    def model(self):
        return self.task, self.network, self.state["weights"], self.connections

    def reached(self):
        return bool(self.history) and (self.history[-1]["heldout_accuracy"] or 0) >= self.args.threshold

    def save(self):
        last = self.history[-1]
        if self.checkpoints.last != last["update"]:
            self.checkpoints.save(last["update"], self.state | self.fixed, self.history, last["heldout_accuracy"])
        self.run.save("metrics.csv", self.history)

    def step(self):
        """One update with, when it is due, the evaluation; False, and nothing changed, where it is not finite."""
        args, n, start = self.args, len(self.history) + 1, time.perf_counter()
        state, metrics = self.update(self.state, self.connections, n)
        metrics = jax.device_get(metrics)
        if not all(metrics["finite"].values()):
            key = jax.random.fold_in(jax.random.wrap_key_data(self.state["key"]), n)
            where = name_nan(args, self.model, key, metrics["finite"])
            self.stopped = f"update {n}: {where}; lower --lr, or set --grad_clip"
            return False
        row = dict(update=n, loss=float(metrics["loss"]), accuracy=float(metrics["accuracy"]), heldout_accuracy=None)
        if n % args.eval_every == 0:
            correct = jax.device_get(self.evaluate(state["weights"], self.connections)[0]["correct"])
            row["heldout_accuracy"] = float(correct.mean())
            low, high = wilson_interval(correct.sum(), len(correct))
            tqdm.write(f"update {n}: held-out accuracy {correct.mean():.4f} (95 %: {low:.4f} to {high:.4f})")
        row |= dict(zip(("rate_exc", "rate_inh"), metrics["rates"].tolist(), strict=True))
        self.seconds["run"] += time.perf_counter() - start
        self.state = state
        self.history.append(row | dict(seconds=self.seconds["run"]))
        self._warn(diagnose(row["rate_exc"], row["rate_inh"]))
        return True

    def go_on(self):
        """Train until the threshold, --epochs, Ctrl-C or a number that is not finite, saving on the way."""
        bar = tqdm(total=self.args.epochs, initial=len(self.history), unit=" updates", leave=False, disable=None)
        with deferred_ctrl_c() as pressed:
            while len(self.history) < self.args.epochs and not self.reached():
                if pressed:
                    self.stopped = "interrupted"
                    break
                if not self.step():
                    break
                *earlier, row = self.history
                best = max((row["heldout_accuracy"] or 0 for row in earlier), default=0)
                if row["update"] % self.args.save_every == 0 or (row["heldout_accuracy"] or 0) > best:
                    self.save()
                shown = dict(loss=f"{row['loss']:.3f}", accuracy=f"{row['accuracy']:.2f}")
                shown |= dict(exc=f"{row['rate_exc']:.1f} Hz", inh=f"{row['rate_inh']:.1f} Hz")
                bar.set_postfix(shown, refresh=False)
                bar.update()
            bar.close()
            if self.history:
                self.save()
            elif self.stopped == "interrupted":
                raise KeyboardInterrupt
            self.checkpoints.close()
        self.stopped = "threshold" if self.reached() else self.stopped

    def result(self):
        """What result.json says of the training, with an evaluation of the last weights."""
        trials, rates = jax.device_get(self.evaluate(self.state["weights"], self.connections))
        correct = trials["correct"]
        evaluated = [row for row in self.history if row["heldout_accuracy"] is not None]
        # Of equal ones the latest, as in the checkpoints.
        best = max(reversed(evaluated), key=lambda row: row["heldout_accuracy"], default=None)
        seconds = np.diff([0.0] + [row["seconds"] for row in self.history])
        return dict(
            mode="train",
            method=self.args.method,
            updates=len(self.history),
            stopped=self.stopped,
            heldout_accuracy=float(correct.mean()),
            heldout_interval=wilson_interval(correct.sum(), len(correct)),
            n_heldout=len(correct),
            best=best and {name: best[name] for name in ("update", "heldout_accuracy")},
            first_at={
                f"{level:g}": next((row for row in evaluated if row["heldout_accuracy"] >= level), None)
                for level in LEVELS
            },
            heldout_rates_Hz=period_rates(self.task, rates),
            warnings=self.warnings,
            seconds=self.seconds,
            seconds_per_update=float(np.median(seconds)) if len(seconds) else None,
        )


# ---- Check of the gradients -----------------------------------------------------------------------------------------


# ---- Simulation -----------------------------------------------------------------------------------------------------


def record(task, network, weights, connections, keys, mesh, n_trace=5):
    """Simulate the trials of the given keys, event by event where connections are sparse, and record the first of them.

    Returns:
        rates (n_step, 2): mean spikes of an excitatory and an inhibitory neuron in a step, over all trials; within
        (2,), the share of time that their potentials are between the reversal potentials; correct (batch,); and of the
        first trial: evidence, label, inputs (n_step, n_in), spikes (n_step, n_rec), r (n_step,
        n_out), and V_exc and V_inh (n_step, n_trace) of neurons that are evenly spread. Then what it took: seconds, and
        memory (MB) of the program on each device.
    """
    traced = {name: np.linspace(0, n - 1, min(n, n_trace)).astype(int) for name, n in network.sizes.items()}
    traced["inh"] += network.n_exc
    start = time.perf_counter()
    synapses = network.synapses(weights, connections, event_driven=True)

    def on_device(synapses, keys):
        labels, evidence = task.trials(keys)
        network.init_state(len(keys))

        def step(k):
            x, V = task.spikes(keys, evidence, k), network.neurons.V.value
            within = ((network.E_inh <= V) & (network.E_exc >= V)).astype(V.dtype)
            spikes = network.update(synapses, x)
            r = network.r.value
            first = dict(inputs=x[0], spikes=jnp.packbits(spikes[0] > 0), r=r[0])
            first |= {f"V_{name}": V[0, neurons] for name, neurons in traced.items()}
            means = network.mean_of_populations(spikes), network.mean_of_populations(within)
            return jnp.where(k >= task.periods["recall"].start, r, 0.0), means, first

        r, (rates, within), first = brainstate.transform.for_loop(step, jnp.arange(task.n_step))
        correct = r.sum(axis=0).argmax(axis=-1) == labels
        first |= dict(evidence=evidence[0], label=labels[0])
        means = jax.lax.pmean(dict(rates=rates, within=within.mean(axis=0)), "batch")
        return means, correct, jax.tree.map(lambda x: x[None], first)

    program = jax.jit(over_devices(on_device, mesh, (COPIED, SPLIT), (COPIED, SPLIT, SPLIT)))
    arguments = jax.device_put((synapses, keys), (NamedSharding(mesh, COPIED), NamedSharding(mesh, SPLIT)))
    program = program.lower(*arguments).compile()
    compiled = time.perf_counter()
    means, correct, first = jax.device_get(program(*arguments))
    seconds = dict(compile=compiled - start, run=time.perf_counter() - compiled)
    first = {name: x[0] for name, x in first.items()}
    first["spikes"] = np.unpackbits(first["spikes"], axis=1)[:, : network.n_rec]
    return means | dict(correct=correct, **first), dict(seconds=seconds, memory_MB=memory_of(program))


WEIGHT_LAWS = {"half-normal": scipy.stats.halfnorm, "gamma": scipy.stats.gamma, "log-normal": scipy.stats.lognorm}


def weight_statistics(w):
    """Moments of |w|, and the maximum-likelihood half-normal, gamma and log-normal laws with their AIC.

    The laws are of weights greater than 0, and there are none where fewer than two different ones are.
    """
    w = np.abs(np.asarray(w, np.float64)).ravel()
    statistics = dict(n=len(w), mean=w.mean(), median=np.median(w), sd=w.std(), skew=scipy.stats.skew(w), max=w.max())
    statistics["laws"], w = {}, w[w > 0]
    for name, law in WEIGHT_LAWS.items() if len(np.unique(w)) > 1 else ():
        parameters = law.fit(w, floc=0)
        log_likelihood = law.logpdf(w, *parameters).sum()
        aic = 2 * (len(parameters) - 1) - 2 * log_likelihood  # the location is fixed
        statistics["laws"][name] = dict(parameters=parameters, AIC=aic)
    return statistics


def report_activity(args, run, mesh, model, seed, initial_weights=None):
    """Simulate trials, save the figures of activity and weights, and return what result.json says of them."""
    task, network, weights, connections = model
    keys = jax.random.split(jax.random.key(seed), args.batch_size)
    activity, cost = record(task, network, weights, connections, keys, mesh)
    stages = {"before": weights} if initial_weights is None else {"before": initial_weights, "after": weights}
    statistics = {
        stage: {name: weight_statistics(w[name]) for name in ("in", "exc", "inh")} for stage, w in stages.items()
    }
    run.save("activity.png", plot_activity(args, task, network, activity))
    run.save("weight_matrix.png", plot_matrix(network, weights, connections))
    run.save("weights.png", plot_weights(stages, statistics))
    correct = activity["correct"]
    simulated = task.n_step * args.dt / 1000
    result = dict(n_trials=args.batch_size, accuracy=float(correct.mean()))
    result["accuracy_interval"] = wilson_interval(correct.sum(), len(correct))
    result |= dict(rates_Hz=period_rates(task, activity["rates"]), weights=statistics, **cost)
    result["within_reversal_potentials"] = dict(zip(network.sizes, activity["within"].tolist(), strict=True))
    words = diagnose(*(activity["rates"].mean(axis=0) * 1000 / args.dt))
    result["warnings"] = [words] if words else []
    result["seconds_per_simulated_second"] = cost["seconds"]["run"] / simulated
    return result


# ---- What it has learned --------------------------------------------------------------------------------------------


def logistic_fit(x, chosen):
    """P(chosen) = 1 / (1 + exp(-(bias + slopes . x))), fitted to choices (n,) at x (n, k).

    The likelihood is multiplied by the root of the determinant of the Fisher information (Firth 1993), so that the
    estimate is finite also where x separates the choices, as a perfect network does.

    Returns:
        bias, slopes (k,), and the standard errors bias_se, slopes_se; None where x does not determine them.
    """
    design = np.column_stack([np.ones(len(x)), x])
    if np.linalg.matrix_rank(design) < design.shape[1]:
        return None

    def information(b):
        p = scipy.special.expit(design @ b)
        return (design.T * (p * (1 - p))) @ design

    def objective(b):
        log_likelihood = chosen @ design @ b - np.logaddexp(0, design @ b).sum()
        return -log_likelihood - 0.5 * np.linalg.slogdet(information(b))[1]

    b = scipy.optimize.minimize(objective, np.zeros(design.shape[1]), method="BFGS").x
    se = np.sqrt(np.diag(np.linalg.pinv(information(b))))
    return dict(bias=b[0], slopes=b[1:].tolist(), bias_se=se[0], slopes_se=se[1:].tolist())


def share(correct):
    """Accuracy of trials, with its interval."""
    return dict(accuracy=float(correct.mean()), interval=wilson_interval(correct.sum(), len(correct)))


def behaviour(args, mesh, model):
    """What a trained network decides, in the held-out trials, as it is and with a part of it silenced.

    Returns:
        psychometric: share of choices "right" against right minus left cues, with a logistic `fit`; cue_weights: the
        slopes of a logistic fit of the choice on all cues, in order; delays: accuracy with each of DELAYS, and that of
        the arguments, without training for it; silenced: accuracy and rates with the adaptation current (beta = 0), all
        recurrent excitatory or all inhibitory weights at 0.
    """
    task, network, weights, connections = model
    copied = NamedSharding(mesh, COPIED)

    def compiled(task, network):
        return jax.jit(make_evaluation(args, task, network, mesh), in_shardings=copied, out_shardings=copied)

    def without(name):
        return weights | {name: jnp.zeros_like(weights[name])}

    program = compiled(task, network)
    trials, rates = jax.device_get(program(weights, connections))
    evidence, correct = trials["evidence"], trials["correct"]
    difference = evidence.sum(axis=1)
    right = (difference > 0) == correct
    psychometric = [
        dict(difference=int(d), n=int((difference == d).sum()), right=float(right[difference == d].mean()))
        for d in np.unique(difference)
    ]
    delays = []
    for t_delay in tqdm(sorted({*DELAYS, args.t_delay}), leave=False, disable=None, unit=" delays"):
        of_delay = trials
        if t_delay != args.t_delay:
            longer = compiled(dataclasses.replace(task, t_delay=t_delay), network)
            of_delay, _ = jax.device_get(longer(weights, connections))
        delays.append(dict(t_delay=t_delay) | share(of_delay["correct"]))
    unadapted = make_model(argparse.Namespace(**vars(args) | dict(beta=0.0)))[1]
    silenced = {"nothing": (trials, rates), "adaptation": compiled(task, unadapted)(weights, connections)}
    silenced |= {f"recurrent {name}": program(without(name), connections) for name in network.sizes}
    silenced = {
        name: share(np.asarray(trials["correct"])) | dict(rates_Hz=period_rates(task, np.asarray(rates)))
        for name, (trials, rates) in silenced.items()
    }
    fit = logistic_fit(difference[:, None], right)
    cue_weights = logistic_fit(evidence, right)
    return dict(
        n_trials=len(correct),
        psychometric=psychometric,
        fit=fit,
        cue_weights=cue_weights,
        delays=delays,
        silenced=silenced,
    )


# ---- Figures --------------------------------------------------------------------------------------------------------

EXC, INH = "C5", "C0"


def plot_learning(history, args):
    """Loss, accuracy and rates against updates."""
    updates = [row["update"] for row in history]
    figure, axes = plt.subplots(1, 3, figsize=(runs.WIDTH, 2.2), layout="constrained")
    axes[0].plot(updates, [row["loss"] for row in history], color="0.4", lw=1)
    axes[0].set_ylabel("loss (nats)")
    axes[1].plot(updates, [row["accuracy"] for row in history], color="0.75", lw=1, label="training batch")
    evaluated = [row for row in history if row["heldout_accuracy"] is not None]
    if evaluated:
        p = np.array([row["heldout_accuracy"] for row in evaluated])
        low, high = np.transpose([wilson_interval(round(x * args.n_heldout), args.n_heldout) for x in p])
        x = [row["update"] for row in evaluated]
        axes[1].errorbar(x, p, (p - low, high - p), fmt="k.-", lw=1, label="held-out, 95 %")
    axes[1].axhline(args.threshold, color="k", lw=0.6, ls=":")
    axes[1].set(ylabel="accuracy", ylim=(0.4, 1.01))
    axes[1].legend(loc="lower right")
    for name, color in (("exc", EXC), ("inh", INH)):
        axes[2].plot(updates, [row[f"rate_{name}"] for row in history], color=color, lw=1, label=name)
    axes[2].set(ylabel="rate (Hz)", ylim=(0, None))
    axes[2].legend()
    for axis in axes:
        axis.set_xlabel("update")
    return figure


def plot_raster(axis, spikes, dt, color, offset=0):
    step, neuron = np.nonzero(spikes)
    axis.plot(step * dt, neuron + offset, "|" if spikes.shape[1] <= 100 else ".", color=color, ms=2, mew=0.6)


def plot_activity(args, task, network, activity):
    """One trial: inputs, recurrent spikes, potentials with the reversal potentials, and readout."""
    n_trace = max(activity["V_exc"].shape[1], activity["V_inh"].shape[1])
    t = np.arange(task.n_step) * args.dt
    layout = dict(sharex=True, layout="constrained", height_ratios=(1.3, 2, 1.4, 1.4, 1))
    figure, axes = plt.subplots(5, 1, figsize=(runs.WIDTH, 7.5), **layout)
    plot_raster(axes[0], activity["inputs"], args.dt, "k")
    n_group = task.n_in // 4
    centres = (np.arange(4) + 0.5) * n_group
    axes[0].set(yticks=centres, yticklabels=["left", "right", "recall", "noise"], ylim=(0, task.n_in), ylabel="inputs")
    sides = "".join("LR"[int(x > 0)] for x in activity["evidence"])
    axes[0].set_title(f"cues {sides}, correct choice {'LR'[int(activity['label'])]}")
    plot_raster(axes[1], activity["spikes"][:, : network.n_exc], args.dt, EXC)
    plot_raster(axes[1], activity["spikes"][:, network.n_exc :], args.dt, INH, network.n_exc)
    axes[1].axhline(network.n_exc - 0.5, color="k", lw=0.6)
    axes[1].set(ylim=(0, network.n_rec), ylabel="neuron\n(excitatory below)")
    for axis, name, color in ((axes[2], "exc", EXC), (axes[3], "inh", INH)):
        V = activity[f"V_{name}"]
        for i in range(V.shape[1]):
            axis.plot(t, V[:, i], color=color, lw=0.7, alpha=1 - 0.7 * i / n_trace)
        for level in (network.E_exc, network.E_inh):
            axis.axhline(level, color="0.5", lw=0.8, ls="--")
        axis.axhline(1, color="0.5", lw=0.6, ls=":")
        axis.set_ylabel(f"V, {name}.\n(threshold 1)")
    for i, (label, color) in enumerate((("left", "C1"), ("right", "C3"))):
        axes[4].plot(t, activity["r"][:, i], color=color, lw=1, label=label)
    axes[4].set(xlabel="t (ms)", ylabel="readout", xlim=(0, t[-1]))
    axes[4].legend(loc="lower right", bbox_to_anchor=(1, 0.95), ncols=2)
    for axis in axes:
        for period in list(task.periods.values())[1:]:
            axis.axvline(period.start * args.dt, color="0.7", lw=0.6)
    return figure


def plot_matrix(network, weights, connections, n_pixel=400):
    """|W| from presynaptic (rows) to postsynaptic neurons, those of inhibitory neurons negative; means over pixels."""
    n_rec = network.n_rec
    n_bin = min(n_rec, n_pixel)
    image, first = np.zeros((n_bin, n_bin)), 0
    connections = {name: pair and [np.asarray(x) for x in pair] for name, pair in connections.items()}
    for name, n_pre, sign in (("exc", network.n_exc, 1), ("inh", network.n_inh, -1)):
        w = sign * np.abs(np.asarray(weights[name]))
        for i in range(n_pre):
            row = slice(None) if connections[name] is None else slice(*connections[name][0][i : i + 2])
            post = np.arange(n_rec) if connections[name] is None else connections[name][1][row]
            values = w[i] if connections[name] is None else w[row]
            np.add.at(image[(first + i) * n_bin // n_rec], post * n_bin // n_rec, values)
        first += n_pre
    image *= (n_bin / n_rec) ** 2
    limit = np.quantile(np.abs(image[image != 0]), 0.99) if image.any() else 1.0
    figure, axis = plt.subplots(figsize=(runs.WIDTH / 2, 2.9), layout="constrained")
    shown = axis.imshow(
        image, cmap="RdBu_r", vmin=-limit, vmax=limit, extent=(0, n_rec, n_rec, 0), interpolation="nearest"
    )
    axis.set(xlabel="postsynaptic neuron", ylabel="presynaptic neuron")
    figure.colorbar(shown, ax=axis, label="weight (inhibitory: negative)")
    return figure


def plot_weights(stages, statistics):
    """Histograms of |W| with the fitted laws: a row a stage, a column a kind of connection."""
    layout = dict(squeeze=False, layout="constrained", sharex="col")
    figure, axes = plt.subplots(len(stages), 3, figsize=(runs.WIDTH, 0.6 + 1.9 * len(stages)), **layout)
    titles = {"in": "input to all", "exc": "excitatory to all", "inh": "inhibitory to all"}
    for row, (stage, weights) in zip(axes, stages.items(), strict=True):
        for axis, (name, title) in zip(row, titles.items(), strict=True):
            w = np.abs(np.asarray(weights[name])).ravel()
            x = np.linspace(0, np.quantile(w, 0.999) or 1.0, 200)[1:]
            axis.hist(w, bins=60, range=(0, x[-1]), density=True, color="0.8")
            top = axis.get_ylim()[1]
            laws = statistics[stage][name]["laws"]
            for (law, fitted), style in zip(laws.items(), ("-", "--", ":"), strict=False):
                axis.plot(x, WEIGHT_LAWS[law].pdf(x, *fitted["parameters"]), "k" + style, lw=1, label=law)
            axis.set_ylim(0, top * 1.1)
            best = min(laws, key=lambda law: laws[law]["AIC"], default="-")
            axis.set_title(f"{title}, {stage}\nlowest AIC: {best}")
    for axis in axes[-1]:
        axis.set_xlabel("|W|")
    for axis in axes[:, 0]:
        axis.set_ylabel("density")
    if axes[0, 0].get_legend_handles_labels()[0]:
        axes[0, 0].legend()
    return figure


def plot_behaviour(args, found):
    """Choices against the difference of the cues, the weight of each cue, accuracy by delay and with parts at 0."""
    figure, axes = plt.subplots(2, 2, figsize=(runs.WIDTH, 4.6), layout="constrained")
    choice, cue, delay, part = axes.flat

    def points(axis, x, rows, style):
        p = np.array([row["accuracy"] for row in rows])
        low, high = np.transpose([row["interval"] for row in rows])
        axis.errorbar(x, p, (p - low, high - p), fmt=style, lw=1, ms=3)

    d = np.array([row["difference"] for row in found["psychometric"]])
    choice.plot(d, [row["right"] for row in found["psychometric"]], "k.", label=f"{found['n_trials']} trials")
    if fit := found["fit"]:
        x = np.linspace(d.min(), d.max(), 200)
        curve = scipy.special.expit(fit["bias"] + fit["slopes"][0] * x)
        choice.plot(x, curve, "C1-", lw=1, label="logistic fit", zorder=0)
    choice.set(xlabel="right minus left cues", ylabel='share of choices "right"', ylim=(-0.05, 1.05))
    choice.legend(loc="upper left")
    if weights := found["cue_weights"]:
        x = 1 + np.arange(args.n_cue)
        cue.errorbar(x, weights["slopes"], weights["slopes_se"], fmt="k.-", lw=1)
        cue.axhline(0, color="0.5", lw=0.6, ls=":")
        cue.xaxis.get_major_locator().set_params(integer=True)
    cue.set(xlabel="cue", ylabel="weight in the choice (log odds)")
    points(delay, [row["t_delay"] for row in found["delays"]], found["delays"], "k.-")
    delay.axvline(args.t_delay, color="C1", lw=1, zorder=0)
    delay.axhline(0.5, color="0.5", lw=0.6, ls=":")
    ticks = [row["t_delay"] for row in found["delays"]]
    delay.set(xscale="log", xlabel="delay (ms; line: --t_delay)", ylabel="accuracy", ylim=(0, 1.02))
    delay.set_xticks(ticks, [f"{t:g}" for t in ticks])
    delay.minorticks_off()
    names = list(found["silenced"])
    points(part, range(len(names)), list(found["silenced"].values()), "ks")
    part.axhline(0.5, color="0.5", lw=0.6, ls=":")
    labels = [name.replace("exc", "E").replace("inh", "I") for name in names]
    part.set(xlabel="silenced", ylabel="accuracy", ylim=(0, 1.02), xlim=(-0.5, len(names) - 0.5))
    part.set_xticks(range(len(names)), labels)
    return figure


# ---- Main -----------------------------------------------------------------------------------------------------------


def print_rates(rates):
    for name, rate in rates.items():
        print(f"{name:>6}: excitatory neurons {rate['exc']:.2f} Hz, inhibitory {rate['inh']:.2f} Hz")


def print_training(result):
    low, high = result["heldout_interval"]
    print(f"held-out accuracy {result['heldout_accuracy']:.4f} (95 %: {low:.4f} to {high:.4f})", end=" ")
    print(f"after {result['updates']} updates, stopped by: {result['stopped']}")
    for level, row in result["first_at"].items():
        if row:
            print(f"first {level} or more after {row['update']} updates and {row['seconds'] / 60:.1f} minutes")
    for words in result["warnings"]:
        print(f"WARNING: {words}")
    print_rates(result["heldout_rates_Hz"])
    print("{run:.1f} s to run and {compile:.1f} s to compile".format(**result["seconds"]), end=", ")
    print(f"{result['seconds_per_update'] or math.nan:.2f} s an update")


def print_simulation(result):
    print(f"accuracy {result['accuracy']:.3f} in {result['n_trials']} trials")
    print_rates(result["rates_Hz"])
    for name, share in result["within_reversal_potentials"].items():
        print(f"potentials within the reversal potentials, {name}.: {share:.2%} of time")
    for words in result["warnings"]:
        print(f"WARNING: {words}")
    print("{run:.1f} s to run and {compile:.1f} s to compile".format(**result["seconds"]))


def print_behaviour(found):
    print(f"in {found['n_trials']} held-out trials:")
    if fit := found["fit"]:
        slope, se = fit["slopes"][0], fit["slopes_se"][0]
        print(f"  log odds of the choice: {slope:.2f} ± {se:.2f} a cue, bias {fit['bias']:.2f} ± {fit['bias_se']:.2f}")
    if weights := found["cue_weights"]:
        print(f"  weights of the cues, in order: {' '.join(f'{w:.2f}' for w in weights['slopes'])}")
    delays = ", ".join(f"{row['accuracy']:.3f} ({row['t_delay']:g} ms)" for row in found["delays"])
    print(f"  accuracy with a delay: {delays}")
    silenced = ", ".join(f"{row['accuracy']:.3f} ({name})" for name, row in found["silenced"].items())
    print(f"  accuracy with a part silenced: {silenced}")


def main():
    args = parse_args()
    absl.logging.set_verbosity(absl.logging.ERROR)  # orbax warns of checkpoints without metrics, which are intended
    devices = split_devices(args, runs.setup_jax(args))
    mesh = Mesh(np.array(devices), ("batch",))
    brainstate.environ.set(dt=args.dt * u.ms)
    rule = {"native": args.method, "brainscale": f"{args.method}_brainscale"}[args.engine]
    names = args.mode, rule, args.conn_method, args.n_rec, f"seed{args.seed}"
    name = "_".join(map(str, names))
    may_change = {"threshold"} if args.schedule == "cosine" else {"threshold", "epochs"}
    run = runs.RunFolder(args, devices, SCRIPT, name, may_change=may_change)
    seeds = split_seed(args.seed)
    if args.mode == "train":
        training = Training(args, run, mesh, seeds["train"])
        training.go_on()
        result, model, initial = training.result(), training.model, training.fixed["initial"]
        run.save("result.json", result)  # before the figures, which may be interrupted
        if training.history:
            run.save("learning_curve.png", plot_learning(training.history, args))
        result["simulation"] = report_activity(args, run, mesh, model, seeds["sim"], initial)
        print_training(result)
    else:
        task, network, weights, connections = make_model(args)
        initial = None
        if args.load:
            weights, connections, initial = load_network(args.load, weights, connections)
        model = task, network, weights, connections
        run.save("config.json", run.config())
        result = dict(mode="sim") | report_activity(args, run, mesh, model, seeds["sim"], initial)
        print_simulation(result)
        if args.load:
            run.save("result.json", result)  # before what takes longer, and may be interrupted
            result["behaviour"] = behaviour(args, mesh, model)
            run.save("behaviour.png", plot_behaviour(args, result["behaviour"]))
            print_behaviour(result["behaviour"])
    run.save("result.json", result)
    print(run.path)
    if args.mode == "train":
        return {"interrupted": 130, "epochs": 0, "threshold": 0}.get(result["stopped"], 1)
    return 0


if __name__ == "__main__":
    runs.run_script(main)
