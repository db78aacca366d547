"""Gradients of the E/I network by the online rules of other packages, brainscale and its successor braintrace.

An engine is this project, "native", or a package, as far as it can be imported.
"""

import functools
import importlib
from collections.abc import Callable, Collection, Mapping
from typing import Any

from runs import BadInput

import brainstate
import jax
import jax.extend.core
import jax.numpy as jnp

from learning_rules import RULES, BatchGradient, Sums, cross_entropy, through_absolute_value
from models import Model

# {engine: what has to be installed for it}; each computes diag and expsm_diag.
PACKAGES = {
    "brainscale": 'pip install brainscale==0.1.0 "jax<0.10"',
    "braintrace": "pip install --requirement requirements-newest.txt, on Python 3.12 or later",
}
ENGINES = ("native", *PACKAGES)
PACKAGE_RULES = ("diag", "expsm_diag")


def why_not(package: str) -> str | None:
    """Why a package cannot be used as an engine; None if it can be."""
    try:
        importlib.import_module(package)
    except Exception as error:  # of several kinds, with other versions of JAX
        return f"found none that can be imported ({error}), expected it from: {PACKAGES[package]}"
    # brainscale makes one from the other, which are different classes up to JAX 0.9.
    if package == "brainscale" and jax.extend.core.ClosedJaxpr is jax.extend.core.Jaxpr:
        return f"found JAX {jax.__version__}, with which it does not run, expected it from: {PACKAGES[package]}"
    return None


class PackageNetwork(brainstate.nn.Module):
    """The network in layers of brainscale or braintrace, which need the weights to be states.

    The readout has the spikes of the end of a step, so that the loss of a step depends on its states alone: r is one
    step ahead of `EINetwork`'s.

    Args:
        signed: whether the states are W, in the layers that the packages have for |W|; else |W|, in plain linear ones,
            for which braintrace has the products of traces in closed form.
    """

    def __init__(self, package: Any, model: Model, signed: bool = True):
        super().__init__()
        self.network, nn = model.network, package.nn
        matrices = model.network.full_matrices(model.weights, model.connections)
        w_out = matrices.pop("out")
        if signed:
            self.layers = {name: nn.SignedWLinear(*w.shape, w_init=w) for name, w in matrices.items()}
        else:
            self.layers = {name: nn.Linear(*w.shape, w_init=jnp.abs(w), b_init=None) for name, w in matrices.items()}
        self.readout = nn.LeakyRateReadout(*w_out.shape, tau=model.network.tau_out, w_init=w_out)

    def init_state(self, batch_size: int) -> None:
        self.network.init_state(batch_size)
        self.readout.init_state(batch_size)
        # The packages take it that every hidden state is written, and every state used.
        neurons = self.network.neurons
        neurons.V_th = brainstate.ShortTermState(neurons.V_th.value)
        del self.network.r

    def update(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """One step. Returns r and the spikes of its start."""
        network, layers = self.network, self.layers
        spikes = network.neurons.get_spike()
        exc, inh = jnp.split(spikes, [network.n_exc], axis=1)
        network.update_neurons(layers["in"](x) + layers["exc"](exc), layers["inh"](inh), spikes)
        # The loss is differentiated by a state where it is written: V, which has read the conductances, would count
        # in the gradient by these once more.
        for state in (network.g_exc, network.g_inh):
            state.value = jnp.copy(state.value)
        return self.readout(network.neurons.get_spike()), spikes


def by_package(model: Model, keys: jax.Array, package: str, method: str, etrace_decay: float = 0.98) -> BatchGradient:
    """What `diag` or `expsm_diag` gives, by the algorithms and layers of the package of that name, as in the paper.

    diag of brainscale 0.1.0 is not D-RTRL: it divides all traces by the largest one where that exceeds 1, and takes the
    derivative of |W| at the trace instead of at W. Without these two, it agrees with ours; that of braintrace 0.2.8
    does as it is. Its expsm_diag divides the postsynaptic factor by 1 - etrace_decay^(t + 1) up to t = 1000, which
    undoes the bias of the smoothing in short trials; brainscale's by 1 - (1 - etrace_decay)^(t + 1). Both are 1 later
    on (`tests/test_online.py`).
    """
    module = importlib.import_module(package)
    # braintrace sees by the shape of the input that there is a batch, and is four times slower with signed layers.
    of_brainscale = package == "brainscale"
    options = dict(mode=brainstate.mixin.Batching()) if of_brainscale else {}

    def make_algorithm(layers):
        if method == "diag":
            return module.ParamDimVjpAlgorithm(layers, **options)
        return module.IODimVjpAlgorithm(layers, etrace_decay, **options)

    return by_algorithm(model, keys, module, make_algorithm, signed=of_brainscale)


def by_algorithm(
    model: Model, keys: jax.Array, package: Any, make_algorithm: Callable[[PackageNetwork], Any], signed: bool = False
) -> BatchGradient:
    """The gradient by an algorithm of a package, made of the network in layers, which are as in `PackageNetwork`."""
    with model.clock():
        layers = PackageNetwork(package, model, signed)
        layers.init_state(len(keys))
        found = _by_algorithm(model, keys, layers, make_algorithm(layers))
    return found if signed else found._replace(gradient=through_absolute_value(model.weights, found.gradient))


def _by_algorithm(model: Model, keys: jax.Array, layers: PackageNetwork, algorithm: Any) -> BatchGradient:
    task, network, recall = model.task, model.network, model.task.periods["recall"]
    labels, evidence = task.trials(keys)
    parameters = layers.states(brainstate.ParamState)
    dtype = model.weights["in"].dtype
    algorithm.compile_graph(jnp.zeros((len(keys), network.n_in), dtype))

    def simulate(k):
        r, spikes = algorithm.update(task.spikes(keys, evidence, k).astype(dtype))
        return cross_entropy(r, labels).sum(), (r, network.mean_of_populations(spikes))

    def learn(gradient, k):
        step = brainstate.transform.grad(simulate, parameters, has_aux=True, return_value=True)
        more, loss, (r, rates) = step(k)
        return jax.tree.map(jnp.add, gradient, more), (loss, r, rates)

    before = brainstate.transform.for_loop(lambda k: simulate(k)[1][1], jnp.arange(recall.start - 1))
    gradient = jax.tree.map(jnp.zeros_like, {path: state.value for path, state in parameters.items()})
    steps = jnp.arange(recall.start - 1, recall.stop - 1)
    gradient, (loss, r, during) = brainstate.transform.scan(learn, gradient, steps)
    last = network.mean_of_populations(network.neurons.get_spike())
    # brainscale's weights are {"weight": W}, braintrace's are W.
    matrices = {path[-2]: jax.tree.leaves(g)[0] for path, g in gradient.items()}
    ends = network.pairs(model.connections)
    gradient = {name: matrices[name] if ends.get(name) is None else matrices[name][ends[name]] for name in ends}
    gradient |= {"in": matrices["in"], "out": matrices["readout"]}
    sums = Sums(loss.sum(), gradient, r.sum(axis=0))
    return sums.mean(task, labels, jnp.concatenate([before, during, last[None]]))


def choose_rule(
    method: str, engine: str = "native", arguments: Mapping[str, Any] | None = None
) -> Callable[[Model, jax.Array], BatchGradient]:
    """The rule (model, keys) -> `BatchGradient` of that name and engine; `arguments` may be those of all rules."""
    own = {name: x for name, x in (arguments or {}).items() if name in arguments_of(method, engine)}
    if engine == "native":
        return functools.partial(RULES[method].gradient, **own)
    return functools.partial(by_package, package=engine, method=method, **own)


def arguments_of(method: str, engine: str, etrace_groups: int = 2) -> set[str]:
    """Names of the arguments of a rule that have an effect."""
    names = set(RULES[method].arguments)
    if engine != "native":
        return names & {"etrace_decay"}
    return names & {"etrace_decay", "etrace_groups"} if etrace_groups == 1 and method == "expsm_diag" else names


def refuse_unused(method: str, engine: str, etrace_groups: int, given: Collection[str]) -> None:
    """Refuse, of the arguments that are given, one of a rule that this one does not have.

    Raises:
        BadInput: it is.
    """
    own = arguments_of(method, engine, etrace_groups)
    if engine != "native" and method == "expsm_diag" and etrace_groups == 1:
        own |= {"etrace_groups"}
    for name in sorted(set(given) - own):
        owners = [other for other, rule in RULES.items() if name in rule.arguments]
        if not owners:
            continue
        here, expected = f"--method {method}", " or ".join(f"--method {other}" for other in owners)
        if method in owners:
            here, expected = "--etrace_groups 1", "2 of them"
            if engine != "native":
                here, expected = f"--engine {engine}, which has one group", "--engine native, of two groups"
        raise BadInput(f"argument --{name}: found it with {here}, where it has no effect, expected {expected}")
