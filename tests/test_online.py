"""Online learning: the rules against BPTT with stopped gradients, their equations written out, and brainscale."""

import utils  # isort: skip  (first: it configures JAX)

import brainscale
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brainscale import _etrace_vjp_algorithms as brainscale_algorithms
from plain import arguments, full_matrix, plain_diag, plain_expsm_diag, relative_errors, script, tau_a_of

CONN_METHODS = ("dense", "gaussian", "rand")
BLOCKS = {"in", "exc", "inh", "out"}


class WholeTrial(utils.EvidenceAccumulation):
    """A trial whose loss counts from its first step to its last."""

    @property
    def periods(self):
        return {"recall": slice(0, super().periods["recall"].stop)}


def small_model(monkeypatch, *more):
    """Arguments, model and keys of 4 trials of a small network; a function that gives the plain reference of a rule."""
    args = arguments(monkeypatch, *more)
    task, network, weights, connections = script.make_model(args)
    keys = jax.random.split(jax.random.key(3), 4)

    def plain(rule, task=task, **kwargs):
        inputs, labels, _ = task(jax.random.key(3), 4)
        recall = task.periods["recall"]
        counts = (np.arange(len(inputs)) >= recall.start) & (np.arange(len(inputs)) < recall.stop)
        matrices = dict(weights)
        for name, n_pre in network.sizes.items():
            matrices[name] = full_matrix(weights[name], connections[name], n_pre, network.n_rec)
        expected = dict(rule(matrices, inputs, labels, counts, tau_a_of(network), network.n_exc, args, **kwargs))
        for name, ends in network.pairs(connections).items():
            expected[name] = expected[name] if ends is None else expected[name][ends]
        return expected

    return args, (task, network, weights, connections), keys, plain


# ---- D-RTRL ---------------------------------------------------------------------------------------------------------

# The small trial has 105 steps before recall and 15 of it.


@pytest.mark.parametrize("conn_method", CONN_METHODS)
def test_diag_is_bptt_with_stopped_gradients(x64, dt, monkeypatch, conn_method):
    """Of a plain network, in float64, for chunks that divide the periods and that do not; and it is not BPTT."""
    _, model, keys, plain = small_model(monkeypatch, "--conn_method", conn_method)
    expected = plain(plain_diag)
    for trace_chunk in (5, 8, 1000):
        loss, gradient, accuracy, rates = jax.jit(lambda k, chunk=trace_chunk: learning_rules.diag(*model, k, chunk))(keys)
        assert set(gradient) == BLOCKS
        assert all(error < 1e-8 for error in relative_errors(gradient, expected).values())
    bptt_loss, bptt_gradient, bptt_accuracy, bptt_rates = learning_rules.bptt(*model, keys)
    assert loss == pytest.approx(float(bptt_loss), rel=1e-12)
    assert accuracy == bptt_accuracy
    np.testing.assert_allclose(rates, bptt_rates, atol=1e-15)
    assert rates[:, 0].sum() * model[1].n_exc > 5
    differences = relative_errors(gradient, bptt_gradient)
    assert differences.pop("out") < 1e-8
    assert all(difference > 0.1 for difference in differences.values())


@pytest.mark.parametrize("conn_method", CONN_METHODS)
def test_diag_in_float32(dt, monkeypatch, conn_method):
    _, model, keys, plain = small_model(monkeypatch, "--conn_method", conn_method)
    _, gradient, _, _ = jax.jit(lambda k: learning_rules.diag(*model, k, 8))(keys)
    assert all(error < 1e-5 for error in relative_errors(gradient, plain(plain_diag)).values())


@pytest.mark.parametrize("window", ["one step", "whole trial"])
def test_diag_for_other_windows_of_the_loss(x64, dt, monkeypatch, window):
    _, model, keys, plain = small_model(monkeypatch, *(["--t_recall", 1] if window == "one step" else []))
    task = model[0]
    if window == "whole trial":
        task = WholeTrial(**{name: getattr(task, name) for name in script.TASK_ARGUMENTS})
    recall = task.periods["recall"]
    assert recall.stop - recall.start == (1 if window == "one step" else task.n_step)
    _, gradient, _, _ = jax.jit(lambda k: learning_rules.diag(task, *model[1:], k, 8))(keys)
    assert all(error < 1e-8 for error in relative_errors(gradient, plain(plain_diag, task)).values())


def test_diag_without_the_gradient_of_the_reset(x64, dt, monkeypatch):
    """The Jacobian is that of the network's own step: with the reset's spikes taken as constants, another gradient."""
    _, model, keys, plain = small_model(monkeypatch)
    with_reset = learning_rules.diag(*model, keys)[1]
    update_neurons = utils.EINetwork.update_neurons

    def detached(self, x_exc, x_inh, spikes):
        update_neurons(self, x_exc, x_inh, jax.lax.stop_gradient(spikes))

    monkeypatch.setattr(utils.EINetwork, "update_neurons", detached)
    _, gradient, _, _ = learning_rules.diag(*model, keys)
    expected = plain(plain_diag, reset=jax.lax.stop_gradient)
    assert all(error < 1e-8 for error in relative_errors(gradient, expected).values())
    assert relative_errors(gradient, with_reset)["in"] > 0.1


@pytest.mark.parametrize(("conn_method", "batch", "trace_batch"), [("dense", 4, 1), ("rand", 5, 2), ("dense", 1, 4)])
def test_groups_of_trials_change_nothing(x64, dt, monkeypatch, conn_method, batch, trace_batch):
    _, model, keys, _ = small_model(monkeypatch, "--conn_method", conn_method)
    keys = jax.random.split(jax.random.key(4), batch)
    loss, gradient, accuracy, rates = learning_rules.diag(*model, keys, trace_batch=trace_batch)
    whole_loss, whole, whole_accuracy, whole_rates = learning_rules.diag(*model, keys, trace_batch=batch)
    assert all(error < 1e-12 for error in relative_errors(gradient, whole).values())
    assert loss == pytest.approx(float(whole_loss), rel=1e-12)
    assert accuracy == pytest.approx(float(whole_accuracy))  # in float32
    np.testing.assert_allclose(rates, whole_rates, atol=1e-15)


# ---- ES-D-RTRL ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("conn_method", "decay"), [("dense", 0.98), ("gaussian", 0.5), ("rand", 0.98)])
def test_expsm_diag_is_what_its_equations_say(x64, dt, monkeypatch, conn_method, decay):
    """Written out for a plain network, in float64; and it is neither BPTT nor D-RTRL."""
    _, model, keys, plain = small_model(monkeypatch, "--conn_method", conn_method)
    loss, gradient, _, rates = jax.jit(lambda k: learning_rules.expsm_diag(*model, k, decay))(keys)
    bptt_loss, bptt_gradient, _, bptt_rates = learning_rules.bptt(*model, keys)
    assert loss == pytest.approx(float(bptt_loss), rel=1e-12)
    np.testing.assert_allclose(rates, bptt_rates, atol=1e-15)
    assert all(error < 1e-8 for error in relative_errors(gradient, plain(plain_expsm_diag, decay=decay)).values())
    for other in (bptt_gradient, learning_rules.diag(*model, keys)[1]):
        assert all(difference > 0.1 for difference in relative_errors(gradient, other).values())


@pytest.mark.parametrize(("beta", "sign"), [(1.0, -1), (-0.1, 1)])
def test_expsm_diag_and_the_sign_of_adaptation(dt, monkeypatch, beta, sign):
    """Across a delay, its gradient by the weights of cue inputs has the exact sign only if spikes leave excitation."""
    _, model, keys, _ = small_model(monkeypatch, "--beta", beta, "--t_delay", 300)
    n_cue_inputs = model[1].n_in // 2
    smoothed, exact = (
        jax.jit(lambda k, rule=rule, last=last: rule(*model, k, last))(keys)[1]["in"][:n_cue_inputs]
        for rule, last in ((learning_rules.expsm_diag, 0.99), (learning_rules.diag, 100))
    )
    assert sign * check_gradients.alignment(smoothed, exact)["cosine"] > 0.3


def test_a_rank_stands_for_a_decay(monkeypatch):
    """As in brainscale: (n - 1) / (n + 1)."""
    for text, decay in (("3", 0.5), ("99", 0.98), ("0.98", 0.98)):
        assert arguments(monkeypatch, "--etrace_decay", text).etrace_decay == pytest.approx(decay)
        expected, _ = brainscale_algorithms._format_decay_and_rank(float(text) if "." in text else int(text))
        assert arguments(monkeypatch, "--etrace_decay", text).etrace_decay == pytest.approx(expected)


# ---- brainscale -----------------------------------------------------------------------------------------------------


def by_brainscale(model, keys, method):
    return jax.jit(lambda k: learning_rules.by_brainscale(*model, k, method))(keys)


@pytest.mark.parametrize("conn_method", CONN_METHODS)
def test_expsm_diag_is_that_of_brainscale(dt, monkeypatch, conn_method):
    _, model, keys, _ = small_model(monkeypatch, "--conn_method", conn_method)
    loss, gradient, accuracy, rates = jax.jit(lambda k: learning_rules.expsm_diag(*model, k))(keys)
    their_loss, theirs, their_accuracy, their_rates = by_brainscale(model, keys, "expsm_diag")
    assert their_loss == pytest.approx(float(loss), rel=1e-5)
    assert their_accuracy == accuracy
    np.testing.assert_allclose(their_rates, rates, atol=1e-6)
    for name in BLOCKS:
        alignment = check_gradients.alignment(gradient[name], theirs[name])
        assert alignment["cosine"] >= 0.9999
        assert alignment["norm_ratio"] == pytest.approx(1, abs=1e-3)


def test_what_is_wrong_with_diag_of_brainscale(dt, monkeypatch):
    """It is exact without two lines: the rescaling of traces, and |W| differentiated at the trace instead of at W."""
    _, model, keys, _ = small_model(monkeypatch)
    _, exact, _, _ = learning_rules.diag(*model, keys)
    cosines = {
        name: check_gradients.alignment(g, exact[name])["cosine"] for name, g in by_brainscale(model, keys, "diag")[1].items()
    }
    assert all(abs(cosines[name]) < 0.5 for name in ("in", "exc", "inh"))
    monkeypatch.setattr(brainscale_algorithms, "_normalize_vector", lambda v: v)
    one_mended = relative_errors(by_brainscale(model, keys, "diag")[1], exact)
    monkeypatch.setattr(brainscale.MatMulOp, "_vjp_weight_fn", lambda self, w, dw: dw)
    both_mended = relative_errors(by_brainscale(model, keys, "diag")[1], exact)
    assert one_mended["in"] > 0.1
    assert all(error < 1e-4 for error in both_mended.values())


# ---- Memory ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", script.METHODS)
def test_memory_and_the_length_of_the_trial(dt, monkeypatch, method):
    """That of the compiled program does not grow with online learning, when the trial is 9 times as long."""
    memory = []
    for t_delay in (30, 1010):  # whole chunks
        args, model, _, _ = small_model(monkeypatch, "--t_delay", t_delay, "--n_rec", 60, "--trace_chunk", 35)
        task, network, weights, connections = model
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("batch",))
        keys = jax.random.split(jax.random.key(0), 64)
        gradient = script.make_gradient(script.choose_rule(args, method, "native"), task, network, mesh)
        memory.append(script.memory_of(jax.jit(gradient).lower(weights, connections, keys).compile()))
    ratio = memory[1] / memory[0]
    assert ratio > 1.5 if method == "bptt" else ratio < 1.05


def test_traces_exist_only_for_connections(monkeypatch):
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
