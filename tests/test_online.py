"""Online learning: the rules against BPTT with stopped gradients, their equations written out, and other packages."""

import dataclasses
import importlib

import runs

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from check_gradients import ORACLES, alignment, oracle_rule
from plain import (
    arguments,
    needs,
    plain_diag,
    plain_expsm_diag,
    plain_neurons,
    reference_gradient,
    relative_errors,
    script,
    tau_a_of,
)

import engines
import learning_rules
import utils
from learning_rules import RULES, bptt, diag, expsm_diag
from utils import CONN_METHODS

BLOCKS = {"in", "exc", "inh", "out"}


class WholeTrial(utils.EvidenceAccumulation):
    """A trial whose loss counts from its first step to its last."""

    @property
    def periods(self):
        return {"recall": slice(0, super().periods["recall"].stop)}


def small_model(*more):
    """Model and keys of 4 trials of a small network; a function that gives the plain reference of a rule."""
    args = arguments(*more)
    model = script.make_model(args)
    keys = jax.random.split(jax.random.key(3), 4)

    def plain(rule, task=model.task, reset=lambda s: s, **kwargs):
        neurons = plain_neurons(args, tau_a_of(model.network), reset)
        return reference_gradient(rule, model, neurons, args, task, **kwargs)

    return model, keys, plain


# ---- D-RTRL ---------------------------------------------------------------------------------------------------------

# The small trial has 105 steps before recall and 15 of it.


@pytest.mark.parametrize("conn_method", CONN_METHODS)
def test_diag_is_bptt_with_stopped_gradients(x64, conn_method):
    """Of a plain network, in float64, for chunks that divide the periods and that do not; and it is not BPTT."""
    model, keys, plain = small_model("--conn_method", conn_method)
    expected = plain(plain_diag)
    for trace_chunk in (5, 8, 1000):
        loss, gradient, accuracy, rates = jax.jit(lambda k, chunk=trace_chunk: diag(model, k, chunk))(keys)
        assert set(gradient) == BLOCKS
        assert all(error < 1e-8 for error in relative_errors(gradient, expected).values())
    bptt_loss, bptt_gradient, bptt_accuracy, bptt_rates = jax.jit(lambda k: bptt(model, k))(keys)
    assert loss == pytest.approx(float(bptt_loss), rel=1e-12)
    assert accuracy == bptt_accuracy
    np.testing.assert_allclose(rates, bptt_rates, atol=1e-15)
    assert rates[:, 0].sum() * model.network.n_exc > 5
    differences = relative_errors(gradient, bptt_gradient)
    assert differences.pop("out") < 1e-8
    assert all(difference > 0.1 for difference in differences.values())


@pytest.mark.parametrize("conn_method", CONN_METHODS)
def test_diag_in_float32(conn_method):
    model, keys, plain = small_model("--conn_method", conn_method)
    _, gradient, _, _ = jax.jit(lambda k: diag(model, k, 8))(keys)
    assert all(error < 1e-5 for error in relative_errors(gradient, plain(plain_diag)).values())


@pytest.mark.parametrize("window", ["one step", "whole trial"])
def test_diag_for_other_windows_of_the_loss(x64, window):
    model, keys, plain = small_model(*(["--t_recall", 1] if window == "one step" else []))
    task = model.task
    if window == "whole trial":
        task = WholeTrial(**dataclasses.asdict(task))
    recall = task.periods["recall"]
    assert recall.stop - recall.start == (1 if window == "one step" else task.n_step)
    _, gradient, _, _ = jax.jit(lambda k: diag(dataclasses.replace(model, task=task), k, 8))(keys)
    assert all(error < 1e-8 for error in relative_errors(gradient, plain(plain_diag, task)).values())


def test_diag_without_the_gradient_of_the_reset(x64, monkeypatch):
    """The Jacobian is that of the network's own step: with the reset's spikes taken as constants, another gradient."""
    model, keys, plain = small_model()
    with_reset = diag(model, keys)[1]
    update_neurons = utils.EINetwork.update_neurons

    def detached(self, x_exc, x_inh, spikes):
        update_neurons(self, x_exc, x_inh, jax.lax.stop_gradient(spikes))

    monkeypatch.setattr(utils.EINetwork, "update_neurons", detached)
    _, gradient, _, _ = diag(model, keys)
    expected = plain(plain_diag, reset=jax.lax.stop_gradient)
    assert all(error < 1e-8 for error in relative_errors(gradient, expected).values())
    assert relative_errors(gradient, with_reset)["in"] > 0.1


@pytest.mark.parametrize(("conn_method", "batch", "trace_batch"), [("dense", 4, 1), ("rand", 5, 2), ("dense", 1, 4)])
def test_groups_of_trials_change_nothing(x64, conn_method, batch, trace_batch):
    model, keys, _ = small_model("--conn_method", conn_method)
    keys = jax.random.split(jax.random.key(4), batch)
    loss, gradient, accuracy, rates = diag(model, keys, trace_batch=trace_batch)
    whole_loss, whole, whole_accuracy, whole_rates = diag(model, keys, trace_batch=batch)
    assert all(error < 1e-12 for error in relative_errors(gradient, whole).values())
    assert loss == pytest.approx(float(whole_loss), rel=1e-12)
    assert accuracy == pytest.approx(float(whole_accuracy))  # in float32
    np.testing.assert_allclose(rates, whole_rates, atol=1e-15)


# ---- ES-D-RTRL ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conn_method", "settings"),
    [
        ("dense", dict(etrace_decay=0.98, etrace_groups=1)),
        ("rand", dict(etrace_decay=0.5, etrace_groups=1)),
        ("gaussian", dict(etrace_stretches=3, trace_chunk=10)),
        ("rand", dict(etrace_decay=0.5, etrace_stretches=2, trace_chunk=8)),
    ],
)
def test_expsm_diag_is_what_its_equations_say(x64, conn_method, settings):
    """Written out for a plain network, in float64; and it is neither BPTT nor D-RTRL."""
    settings = dict(etrace_decay=0.98, etrace_groups=2) | settings
    model, keys, plain = small_model("--conn_method", conn_method)
    loss, gradient, _, rates = jax.jit(lambda k: expsm_diag(model, k, **settings))(keys)
    bptt_loss, bptt_gradient, _, bptt_rates = jax.jit(lambda k: bptt(model, k))(keys)
    assert loss == pytest.approx(float(bptt_loss), rel=1e-12)
    np.testing.assert_allclose(rates, bptt_rates, atol=1e-15)
    assert all(error < 1e-8 for error in relative_errors(gradient, plain(plain_expsm_diag, **settings)).values())
    for other in (bptt_gradient, jax.jit(lambda k: diag(model, k, 8))(keys)[1]):
        differences = relative_errors(gradient, other)
        if settings["etrace_groups"] == 2:
            differences.pop("out")  # exact
        assert all(difference > 0.01 for difference in differences.values())


def test_expsm_diag_of_a_trial_in_one_chunk_is_exact(x64):
    """All that is approximate is what is kept from one chunk to the next; here that is from before recall."""
    model, keys, _ = small_model()
    task = WholeTrial(**dataclasses.asdict(model.task))
    whole = dataclasses.replace(model, task=task)
    exact = diag(whole, keys).gradient
    assert all(e < 1e-10 for e in relative_errors(expsm_diag(whole, keys, trace_chunk=1000).gradient, exact).values())
    kept = relative_errors(expsm_diag(model, keys, trace_chunk=1000).gradient, diag(model, keys).gradient)
    assert kept["in"] > 0.01


@pytest.mark.parametrize(("beta", "sign"), [(1.0, -1), (-0.1, 1)])
def test_expsm_diag_and_the_sign_of_adaptation(beta, sign):
    """Across a delay, one group has the sign of D-RTRL at the cue inputs only if spikes leave excitation; two have."""
    model, keys, _ = small_model("--beta", beta, "--t_delay", 300)
    n_cue_inputs = model.network.n_in // 2
    exact, one, two = (
        jax.jit(rule)(keys).gradient["in"][:n_cue_inputs]
        for rule in (
            lambda k: diag(model, k, 100),
            lambda k: expsm_diag(model, k, 0.99, 1),
            lambda k: expsm_diag(model, k, 0.99, trace_chunk=20),
        )
    )
    assert sign * alignment(one, exact)["cosine"] > 0.3
    assert alignment(two, exact)["cosine"] > 0.9


# ---- Other packages -------------------------------------------------------------------------------------------------


def by_package(model, keys, package, method):
    return jax.jit(lambda k: engines.by_package(model, k, package, method))(keys)


@pytest.mark.newest
@pytest.mark.parametrize("package", [pytest.param(name, marks=needs(name)) for name in engines.PACKAGES])
def test_a_rank_stands_for_a_decay(package):
    """As in brainscale and braintrace: (n - 1) / (n + 1)."""
    module = importlib.import_module(package)
    model, keys, _ = small_model()
    with model.clock():
        layers = engines.PackageNetwork(module, model)
        layers.init_state(len(keys))
        for text, decay in (("3", 0.5), ("99", 0.98), ("0.98", 0.98)):
            ours = arguments("--method", "expsm_diag", "--etrace_decay", text).etrace_decay
            assert ours == pytest.approx(decay)
            options = dict(mode=engines.brainstate.mixin.Batching()) if package == "brainscale" else {}
            theirs = module.IODimVjpAlgorithm(layers, float(text) if "." in text else int(text), **options)
            assert ours == pytest.approx(theirs.decay)


@needs("brainscale")
@pytest.mark.parametrize("conn_method", CONN_METHODS)
def test_expsm_diag_is_that_of_brainscale(conn_method):
    model, keys, _ = small_model("--conn_method", conn_method)
    loss, gradient, accuracy, rates = jax.jit(lambda k: expsm_diag(model, k, etrace_groups=1))(keys)
    their_loss, theirs, their_accuracy, their_rates = by_package(model, keys, "brainscale", "expsm_diag")
    assert their_loss == pytest.approx(float(loss), rel=1e-5)
    assert their_accuracy == accuracy
    np.testing.assert_allclose(their_rates, rates, atol=1e-6)
    for name in BLOCKS:
        aligned = alignment(gradient[name], theirs[name])
        assert aligned["cosine"] >= 0.9999
        assert aligned["norm_ratio"] == pytest.approx(1, abs=1e-3)


@needs("brainscale")
def test_what_is_wrong_with_diag_of_brainscale(monkeypatch):
    """It is exact without two lines: the rescaling of traces, and |W| differentiated at the trace instead of at W."""
    brainscale = importlib.import_module("brainscale")
    model, keys, _ = small_model()
    _, exact, _, _ = diag(model, keys)
    theirs = by_package(model, keys, "brainscale", "diag").gradient
    cosines = {name: alignment(g, exact[name])["cosine"] for name, g in theirs.items()}
    assert all(abs(cosines[name]) < 0.5 for name in ("in", "exc", "inh"))
    monkeypatch.setattr(brainscale._etrace_vjp_algorithms, "_normalize_vector", lambda v: v)
    one_mended = relative_errors(by_package(model, keys, "brainscale", "diag").gradient, exact)
    monkeypatch.setattr(brainscale.MatMulOp, "_vjp_weight_fn", lambda self, w, dw: dw)
    both_mended = relative_errors(by_package(model, keys, "brainscale", "diag").gradient, exact)
    assert one_mended["in"] > 0.1
    assert all(error < 1e-4 for error in both_mended.values())


@pytest.mark.newest
@needs("braintrace")
@pytest.mark.parametrize("conn_method", CONN_METHODS)
def test_diag_is_that_of_braintrace(conn_method):
    model, keys, _ = small_model("--conn_method", conn_method)
    loss, gradient, accuracy, rates = jax.jit(lambda k: diag(model, k))(keys)
    their_loss, theirs, their_accuracy, their_rates = by_package(model, keys, "braintrace", "diag")
    assert their_loss == pytest.approx(float(loss), rel=1e-5)
    assert their_accuracy == accuracy
    np.testing.assert_allclose(their_rates, rates, atol=1e-6)
    assert all(error < 1e-5 for error in relative_errors(theirs, gradient).values())


@pytest.mark.newest
@needs("braintrace")
def test_signed_layers_of_braintrace_have_the_gradient_of_plain_ones():
    model, keys, _ = small_model()
    braintrace = importlib.import_module("braintrace")
    theirs = engines.by_algorithm(model, keys, braintrace, braintrace.D_RTRL, signed=True).gradient
    assert all(error < 1e-5 for error in relative_errors(theirs, diag(model, keys).gradient).values())


@pytest.mark.newest
@needs("braintrace")
def test_expsm_diag_is_that_of_braintrace_after_its_correction():
    """It divides f by 1 - decay^(t + 1) up to t = 1000, which undoes the bias of the smoothing: in short trials its
    gradient is longer, by that factor at recall, and in long ones the same.
    """
    model, keys, _ = small_model()
    theirs = by_package(model, keys, "braintrace", "expsm_diag").gradient
    recall = model.task.periods["recall"]
    factors = [1 / (1 - 0.98 ** (step + 1)) for step in (recall.start, recall.stop)]
    ours = expsm_diag(model, keys, etrace_groups=1).gradient
    for name in BLOCKS:
        aligned = alignment(theirs[name], ours[name])
        assert aligned["cosine"] >= 0.9999
        assert factors[1] - 0.01 < aligned["norm_ratio"] < factors[0] + 0.01
    model, keys, _ = small_model("--t_delay", 1000)
    theirs = by_package(model, keys, "braintrace", "expsm_diag").gradient
    assert all(
        error < 1e-4 for error in relative_errors(theirs, expsm_diag(model, keys, etrace_groups=1).gradient).values()
    )


# ---- The check of the gradients -------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", RULES)
def test_every_rule_has_an_oracle_on_the_neurons_of_the_network(x64, method):
    """And for the plain neurons it gives the same, in float64."""
    model, keys, plain = small_model("--conn_method", "rand")
    oracle, names = ORACLES[method]
    own = {name: RULES[method].arguments[name].default for name in names}
    gradient = oracle_rule(method, own)(model, keys).gradient
    assert all(error < 1e-8 for error in relative_errors(gradient, plain(oracle, **own)).values())


def test_a_rule_without_an_oracle_is_refused(monkeypatch):
    monkeypatch.setitem(RULES, "new", RULES["bptt"])
    with pytest.raises(runs.BadInput, match="rule new: found no oracle, expected one in ORACLES"):
        oracle_rule("new", {})


# ---- Memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", RULES)
def test_memory_and_the_length_of_the_trial(method):
    """That of the compiled program does not grow with online learning, when the trial is 9 times as long."""
    memory = []
    for t_delay in (30, 1010):  # whole chunks
        model, _, _ = small_model("--t_delay", t_delay, "--n_rec", 60)
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("batch",))
        keys = jax.random.split(jax.random.key(0), 64)
        rule = engines.choose_rule(method, arguments=dict(trace_chunk=35))
        gradient = script.make_gradient(rule, mesh)
        memory.append(script.memory_of(jax.jit(gradient).lower(model, keys).compile()))
    ratio = memory[1] / memory[0]
    assert ratio > 1.5 if method == "bptt" else ratio < 1.05


def test_traces_exist_only_for_connections():
    """Products at the pairs that are listed are those of all pairs, at these."""
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.normal(size=(7, 3, n))) for n in (5, 6))
    ends = jnp.array([0, 0, 2, 4]), jnp.array([1, 5, 0, 3])
    listed, every = learning_rules.Pairs(ends), learning_rules.Pairs(None)
    assert listed.products(x, y).shape == (3, 4)
    np.testing.assert_allclose(listed.products(x, y), every.products(x, y)[:, ends[0], ends[1]], rtol=1e-5)
    np.testing.assert_allclose(listed.total(x, y), every.products(x, y).sum(axis=0)[ends], rtol=1e-5)
    of_one = every.pre(x[0]) * every.post(y[0])
    np.testing.assert_allclose(of_one, np.einsum("bi,bj->bij", x[0], y[0]), rtol=1e-6)
    np.testing.assert_allclose(listed.pre(x[0]) * listed.post(y[0]), of_one[:, ends[0], ends[1]], rtol=1e-6)
