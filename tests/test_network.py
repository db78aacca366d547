"""The E/I network, its connections and its task, against a plain reference, and the gradient by which it learns."""

import dataclasses
import itertools
import math

import runs

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain import arguments, full_matrix, plain_loss, plain_neurons, script, tau_a_of

import engines
import learning_rules
import models
import utils

CONN_METHODS = utils.CONN_METHODS
bptt = jax.jit(learning_rules.bptt)


@pytest.mark.parametrize("conn_method", CONN_METHODS)
def test_gradient_is_that_of_a_plain_reference(x64, conn_method):
    """Loss, spikes and the gradient of every block of weights, in float64, whatever the chunks of time."""
    args = arguments("--conn_method", conn_method)
    model = script.make_model(args)
    task, network, connections = model.task, model.network, model.connections
    weights = jax.tree.map(lambda w: w.astype(jnp.float64), model.weights)
    model = dataclasses.replace(model, weights=weights)
    key = jax.random.key(3)
    inputs, labels, _ = task(key, 4)
    trials = inputs, labels, np.arange(task.n_step) >= task.periods["recall"].start
    neurons, decay_out = plain_neurons(args, tau_a_of(network)), math.exp(-args.dt / args.tau_out)

    def reference(weights):
        matrices = dict(weights)
        for name, n_pre in network.sizes.items():
            matrices[name] = full_matrix(weights[name], connections[name], n_pre, network.n_rec)
        return plain_loss(neurons, matrices, trials, decay_out)

    (expected, raster), expected_gradient = jax.jit(jax.value_and_grad(reference, has_aux=True))(weights)
    keys = jax.random.split(key, 4)
    loss, gradient, _, rates = bptt(model, keys)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)
    assert raster[..., : network.n_exc].sum() > 20
    assert raster[..., network.n_exc :].sum() > 5
    np.testing.assert_allclose(rates[:, 0], raster[..., : network.n_exc].mean(axis=(1, 2)), atol=1e-12)
    for name in weights:
        assert np.abs(expected_gradient[name]).max() > 1e-6
        np.testing.assert_allclose(gradient[name], expected_gradient[name], rtol=1e-9, atol=1e-14)


def dense_copy(model):
    """The weights as full matrices, zero where no connection is listed, and the mask of those listed."""
    network, weights, connections = model.network, model.weights, model.connections
    matrices, masks = dict(weights), {}
    for name, n_pre in network.sizes.items():
        matrices[name] = full_matrix(weights[name], connections[name], n_pre, network.n_rec)
        masks[name] = np.asarray(full_matrix(jnp.ones_like(weights[name]), connections[name], n_pre, network.n_rec)) > 0
    return matrices, masks


@pytest.mark.parametrize("conn_method", ["gaussian", "rand"])
def test_sparse_network_is_the_masked_dense_one(conn_method):
    """In float32: losses, rates and the gradient at the connections that exist."""
    model = script.make_model(arguments("--conn_method", conn_method, "--n_rec", 50))
    keys = jax.random.split(jax.random.key(0), 8)
    loss, gradient, _, rates = bptt(model, keys)
    matrices, masks = dense_copy(model)
    dense = dataclasses.replace(model, weights=matrices, connections={"exc": None, "inh": None})
    dense_loss, dense_gradient, _, dense_rates = bptt(dense, keys)
    assert rates.sum() > 1
    np.testing.assert_allclose(loss, dense_loss, rtol=1e-5)
    np.testing.assert_allclose(rates, dense_rates, atol=1e-6)
    for name, mask in masks.items():
        assert 0 < mask.sum() < mask.size
        assert np.abs(gradient[name]).max() > 1e-5
        np.testing.assert_allclose(gradient[name], np.asarray(dense_gradient[name])[mask], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("conn_method", CONN_METHODS)
def test_event_driven_simulation_is_that_of_training(conn_method):
    model = script.make_model(arguments("--conn_method", conn_method, "--n_rec", 50))
    keys = jax.random.split(jax.random.key(0), 8)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("batch",))
    activity = script.simulate(model, keys, mesh)
    _, correct, rates = jax.jit(learning_rules.run_trials)(model, keys)
    assert activity.spikes.sum() > 20
    np.testing.assert_array_equal(activity.correct, correct)
    np.testing.assert_allclose(activity.rates, rates, atol=1e-6)
    np.testing.assert_array_equal(activity.spikes[..., -1] > 0, activity.V["inh"][..., -1] >= 1)


@pytest.mark.parametrize("rule", ["diag", "expsm_diag", "one group"])
def test_online_rules_are_the_same_event_by_event(x64, rule, monkeypatch):
    """As large networks have it, under jit: to rounding of sums, in float64."""
    options = {"one group": dict(etrace_groups=1)}.get(rule, {})
    gradient = learning_rules.RULES["diag" if rule == "diag" else "expsm_diag"].gradient
    keys, found = jax.random.split(jax.random.key(0), 8), []
    for least in (1, 10**9):
        monkeypatch.setattr(models, "EVENT_DRIVEN", least)
        model = script.make_model(arguments("--conn_method", "rand", "--n_rec", 50))
        assert set(model.buffers) == ({"exc", "inh"} if least == 1 else set())
        found.append(jax.jit(lambda model: gradient(model, keys, **options))(model))
        heldout = jax.jit(lambda model: learning_rules.run_trials(model, keys, event_driven=True))(model)
        np.testing.assert_allclose(heldout.loss.mean(), found[-1].loss, rtol=1e-10)
    assert found[0].rates.sum() > 1
    for ours, expected in zip(*map(jax.tree.leaves, found), strict=True):
        assert np.abs(expected).max() > 1e-9
        np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_chunks_of_time_change_nothing(x64, chunk):
    model = script.make_model(arguments())
    keys = jax.random.split(jax.random.key(0), 4)

    def loss(weights, chunk):
        return learning_rules.run_trials(dataclasses.replace(model, weights=weights), keys, chunk).loss.mean()

    gradient = jax.grad(loss)(model.weights, chunk)
    assert model.task.n_step % 7
    for name, expected in jax.grad(loss)(model.weights, None).items():
        assert np.abs(expected).max() > 1e-6
        np.testing.assert_allclose(gradient[name], expected, rtol=1e-7, atol=1e-12)


def test_signs_of_weights_do_not_matter():
    """Dale's law: all but the readout act as |W|, so that a gradient changes its sign with the weight."""
    model = script.make_model(arguments())
    keys = jax.random.split(jax.random.key(0), 4)
    flipped = {name: w if name == "out" else -w for name, w in model.weights.items()}
    assert all((w < 0).any() and (w > 0).any() for w in model.weights.values())
    loss, gradient, _, rates = bptt(model, keys)
    other_loss, other_gradient, _, _ = bptt(dataclasses.replace(model, weights=flipped), keys)
    assert rates.sum() > 1
    assert loss == other_loss
    for name in ("in", "exc", "inh"):
        np.testing.assert_array_equal(gradient[name], -other_gradient[name])


@pytest.mark.parametrize("method", learning_rules.RULES)
def test_two_devices_give_the_loss_and_gradient_of_one(method):
    model = script.make_model(arguments())
    keys, results = jax.random.split(jax.random.key(0), 16), []
    assert len(jax.devices()) >= 2
    for n in (1, 2):
        mesh = jax.sharding.Mesh(np.array(jax.devices()[:n]), ("batch",))
        gradient = jax.jit(script.make_gradient(engines.choose_rule(method), mesh))
        results.append(jax.device_get(gradient(model, keys)))
    (loss, gradient, accuracy, rates), (loss_2, gradient_2, accuracy_2, rates_2) = results
    assert rates.sum() > 1
    assert accuracy == accuracy_2
    np.testing.assert_allclose(loss, loss_2, rtol=1e-5)
    np.testing.assert_allclose(rates, rates_2, atol=1e-6)
    for name, expected in gradient.items():
        assert np.abs(expected).max() > 1e-5
        np.testing.assert_allclose(gradient_2[name], expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


# ---- Connections ----------------------------------------------------------------------------------------------------


def targets(connections):
    indptr, indices = connections
    return [indices[start:end] for start, end in itertools.pairwise(indptr)]


@pytest.mark.parametrize("name", ["exc", "inh"])
def test_rand_gives_each_neuron_as_many_targets_and_not_itself(name):
    connections = utils.connect("rand", 320, 80, seed=0)
    rows = targets(connections[name])
    assert len(rows) == {"exc": 320, "inh": 80}[name]
    assert sum(map(len, rows)) == {"exc": 12800, "inh": 3200}[name]  # as in Figure 3 of the paper
    for i, row in enumerate(rows):
        assert len(set(row)) == 40
        assert i + 320 * (name == "inh") not in row
        assert row.min() >= 0
        assert row.max() < 400
    in_degree = np.bincount(connections[name][1], minlength=400)
    expected = len(rows) * 0.1
    assert abs(in_degree.var() / (expected * 0.9) - 1) < 0.35  # as of independent draws: nearly binomial


def test_gaussian_connects_by_distance():
    """Excitatory connections occur with probability exp(-d^2 / (2 20^2)), d on the ring; inhibitory ones as in rand."""
    spacing, n_bin = 1.25, 81  # of the excitatory neurons; all distances are multiples of it
    place = np.append(np.arange(160) * spacing, np.arange(40) * 5.0)
    distance = np.abs(place[:160, None] - place)
    distance = np.rint(np.minimum(distance, 200 - distance) / spacing).astype(int)
    hits, pairs = np.zeros(n_bin), np.zeros(n_bin)
    for seed in range(20):
        connections = utils.connect("gaussian", 160, 40, seed)
        for i, row in enumerate(targets(connections["exc"])):
            assert i not in row
            hits += np.bincount(distance[i, row], minlength=n_bin)
            pairs += np.bincount(np.delete(distance[i], i), minlength=n_bin)
        assert all(len(set(row)) == 20 for row in targets(connections["inh"]))
    p = np.exp(-0.5 * (np.arange(n_bin) * spacing / 20) ** 2)
    assert np.all(np.abs(hits - p * pairs) < 5 * np.sqrt(p * (1 - p) * pairs) + 5)


def test_dense_is_all_to_all():
    assert utils.connect("dense", 4, 1, seed=0) == {"exc": None, "inh": None}


@pytest.mark.parametrize("conn_method", ["gaussian", "rand"])
def test_connections_depend_on_their_seed_alone(conn_method):
    first, same, other = (
        script.make_model(arguments("--conn_method", conn_method, "--conn_seed", c, "--weight_seed", w))
        for c, w in ((1, 1), (1, 2), (2, 1))
    )
    for name in ("exc", "inh"):
        np.testing.assert_array_equal(first.connections[name][1], same.connections[name][1])
        assert not np.array_equal(first.connections[name][1], other.connections[name][1])
    assert not np.array_equal(first.weights["inh"], same.weights["inh"])
    np.testing.assert_array_equal(first.weights["inh"], other.weights["inh"])


@pytest.mark.parametrize("n_rec", range(5, 13))
def test_four_excitatory_neurons_for_an_inhibitory_one(n_rec):
    for conn_method in CONN_METHODS:
        model = script.make_model(arguments("--n_rec", n_rec, "--conn_method", conn_method))
        assert all(w.size and np.isfinite(w).all() for w in model.weights.values())
    network = model.network
    assert network.n_exc + network.n_inh == n_rec
    assert abs(network.n_inh - n_rec / 5) <= 0.5
    assert network.n_inh >= 1


@pytest.mark.parametrize("conn_method", CONN_METHODS)
def test_initial_weights_have_the_variance_of_the_paper(conn_method):
    """scale / number of inputs, and the largest of Figure 3: 0.284 (E) and 1.132 (I) for rand, n_rec 400."""
    settings = models.NetworkSettings(conn_method=conn_method, n_rec=400)
    connections = utils.connect(conn_method, 320, 80, seed=0)
    weights = models.make_model(utils.EvidenceAccumulation(), settings).weights
    inputs = {"in": 100, "exc": 320, "inh": 80, "out": 400}
    for name in ("exc", "inh"):
        if connections[name] is not None:
            inputs[name] = len(connections[name][1]) / 400
    for name, scale in {"in": 1.0, "exc": 0.5, "inh": 2.0, "out": 2.0}.items():
        assert np.std(weights[name]) == pytest.approx(math.sqrt(scale / inputs[name]), rel=0.05)
        assert abs(np.mean(weights[name])) < 4 * np.std(weights[name]) / math.sqrt(weights[name].size)
    if conn_method == "rand":
        assert np.abs(weights["exc"]).max() == pytest.approx(0.284, abs=0.001)
        assert np.abs(weights["inh"]).max() == pytest.approx(1.136, abs=0.005)
        assert np.abs(weights["exc"]).mean() == pytest.approx(0.1025, abs=0.001)


def test_adaptation_differs_between_neurons():
    """Its time constants are uniform in 0.5 to 1.5 tau_a."""
    model = script.make_model(arguments("--n_rec", 2000, "--tau_a", 700))
    tau_a = tau_a_of(model.network) / 700
    assert 0.5 <= tau_a.min() < 0.51
    assert 1.49 < tau_a.max() <= 1.5
    assert tau_a.std() == pytest.approx(1 / 12**0.5, rel=0.05)


# ---- Updates --------------------------------------------------------------------------------------------------------


def test_update_follows_the_clipped_gradient_and_the_penalties():
    """SGD: W - lr s (G + L1 sign(W) / n + 2 L2 W / n), s that which brings the norm of all down to grad_clip."""
    more = ["--opt", "sgd", "--lr", 0.1, "--weight_L1", 0.5, "--weight_L2", 2.0, "--grad_clip", 0.01, "--batch_size", 4]
    args = arguments(*more)
    model, settings = script.make_model(args), runs.pick(script.TrainingSettings, args)
    mesh, optimiser = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("batch",)), script.make_optimiser(settings)
    key, weights = jax.random.key(5), model.weights
    update = jax.jit(script.make_update(settings, learning_rules.bptt, optimiser, mesh))
    after, _, metrics = update(model, optimiser.init(weights), jax.random.key_data(key), 3)
    keys = jax.random.split(jax.random.fold_in(key, 3), 4)
    loss, gradient, _, _ = bptt(model, keys)
    total = {
        name: np.asarray(gradient[name]) + (0.5 * np.sign(w) + 2 * 2.0 * np.asarray(w)) / w.size
        for name, w in weights.items()
    }
    norm = math.sqrt(sum((g**2).sum() for g in total.values()))
    assert norm > 0.01
    for name, w in weights.items():
        expected = w - 0.1 * 0.01 / norm * total[name]
        np.testing.assert_allclose(after.weights[name], expected, atol=1e-7)
    penalties = sum(0.5 * np.abs(w).mean() + 2 * np.square(w).mean() for w in weights.values())
    assert metrics["loss"] == pytest.approx(float(loss + penalties), rel=1e-5)


def test_cosine_schedule_ends_at_zero():
    settings = script.TrainingSettings(opt="sgd", lr=0.2, schedule="cosine", epochs=10)
    optimiser, weights, steps = script.make_optimiser(settings), {"in": jnp.ones(3)}, []
    state = optimiser.init(weights)
    for _ in range(11):
        step, state = optimiser.update(weights, state, weights)
        steps.append(float(step["in"][0]))
    np.testing.assert_allclose(steps, -0.1 * (1 + np.cos(np.pi * np.arange(11) / 10)), atol=1e-7)


# ---- Task -----------------------------------------------------------------------------------------------------------


def test_rates_of_each_group_in_each_period():
    """40 Hz on the side of a cue and in recall, 10 Hz of noise throughout, and nothing else."""
    batch, task = 200, utils.EvidenceAccumulation()
    inputs, _, evidence = jax.device_get(task(jax.random.key(0), batch))
    assert inputs.shape == (2200, batch, 100)
    assert inputs.dtype == bool
    left, right, recall, noise = np.split(inputs, 4, axis=2)
    cue, phase = np.divmod(np.arange(1050), 150)
    expected = np.zeros((4, 2200, batch))
    for side, row in ((-1, 0), (1, 1)):
        expected[row, :1050] = 0.04 * ((evidence[:, cue] == side).T & (phase >= 50)[:, None])
    expected[2, 2050:], expected[3] = 0.04, 0.01
    for group, p in zip((left, right, recall, noise), expected, strict=True):
        assert not group[p == 0].any()
        for level in set(p[p > 0]):
            n = group[p == level].size
            assert abs(group[p == level].mean() - level) < 5 * math.sqrt(level * (1 - level) / n)
        deviation = group.sum(axis=(0, 2)) - 25 * p.sum(axis=0)
        variance = 25 * (p * (1 - p)).sum(axis=0)
        assert 0.5 < (deviation**2).mean() / variance.mean() < 2  # Bernoulli spikes, not regular or bursts
    correlation = np.corrcoef(noise[:, 0].T.astype(float)) - np.eye(25)
    assert np.abs(correlation).max() < 6 / math.sqrt(2200)


def test_labels_and_bias():
    """The label is the side with more cues; sides are equally likely; cues agree as those of a bias of 0.7 do."""
    n = 20_000
    labels, evidence = jax.device_get(utils.EvidenceAccumulation().trials(jax.random.split(jax.random.key(1), n)))
    assert set(np.unique(evidence)) == {-1, 1}
    np.testing.assert_array_equal(labels, (evidence == 1).sum(axis=1) > 3)
    assert abs(labels.mean() - 0.5) < 5 * 0.5 / math.sqrt(n)
    agreement = (evidence[:, :1] * evidence[:, 1:]).mean()  # (2 p - 1)^2
    assert agreement == pytest.approx(0.4**2, abs=0.02)
    biased = utils.EvidenceAccumulation(p_bias=1.0).trials(jax.random.split(jax.random.key(1), 50))[1]
    assert np.all(np.abs(biased.sum(axis=1)) == 7)


def test_trials_are_a_function_of_their_key():
    task = utils.EvidenceAccumulation(t_delay=50.0)
    inputs, labels, evidence = task(jax.random.key(0), 6)
    again, other = task(jax.random.key(0), 6), task(jax.random.key(1), 6)
    np.testing.assert_array_equal(inputs, again[0])
    assert not np.array_equal(inputs, other[0])
    assert not np.array_equal(inputs[:, 0], inputs[:, 1])
    keys = jax.random.split(jax.random.key(0), 6)[4:]  # of two trials alone, as on another device
    some_labels, some_evidence = task.trials(keys)
    np.testing.assert_array_equal(some_labels, labels[4:])
    np.testing.assert_array_equal(some_evidence, evidence[4:])
    np.testing.assert_array_equal(task.spikes(keys, some_evidence, 77), inputs[77, 4:])


def test_durations_and_rates_are_arguments():
    task = utils.EvidenceAccumulation(
        n_cue=3, t_cue=20, t_interval=10, t_delay=40, t_recall=30, rate_cue=500, rate_noise=0, n_in=40, dt=0.5
    )
    inputs, _, evidence = jax.device_get(task(jax.random.key(0), 100))
    assert inputs.shape == (320, 100, 40)
    assert evidence.shape == (100, 3)
    assert task.periods == {"cues": slice(0, 180), "delay": slice(180, 260), "recall": slice(260, 320)}
    cue = inputs[20:60, :, :20].sum() / (40 * 10 * 100)
    assert cue == pytest.approx(0.25, abs=0.01)  # 500 Hz for steps of 0.5 ms, on one of two sides
    assert not inputs[180:260].any()
    assert not inputs[:, :, 30:].any()
