"""Fitted neurons in the network: that they are those of the fit, in every rule, and what is refused."""

import dataclasses
import itertools
import json
from types import SimpleNamespace

import runs

import brainstate
import brainunit as u
import cells
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scripts
from plain import (
    arguments,
    plain_bptt,
    plain_diag,
    plain_expsm_diag,
    plain_gif,
    reference_gradient,
    relative_errors,
    script,
)
from scripts import result_of

import fitted_neurons
import learning_rules
import models
import neuron_fitting_of_gif_model as gif
from recordings import Recording

# Parameters of fits. Two recordings by the default of recordings, rounded: a layer-5 cell (Pozzorini et al. 2015), and
# data/recording.nwb. Then with all terms, with a linear threshold, and the paper's protocol that is identifiable.
LAYER_5 = {"R": 139.2, "tau": 26.13, "V_rest": -59.96, "V_reset": -29.74, "A1": -0.5268, "k1": 0.2718, "A2": -0.0504}
LAYER_5 |= {"k2": 0.0117, "R_s": 12.82, "tau_s": 1.289, "V_th_inf": -42.76, "a": 0.4071, "b": 0.4062, "A_th": 15.08}
LAYER_5 |= {"width": 0.4924, "V_i": -43.24, "k_i": 2.838, "A_th2": 1.059, "b2": 0.0156, "t_ref": 3.4}
RIG = {"R": 87.01, "tau": 17.07, "V_rest": -70.0, "V_reset": -72.09, "A1": -0.0896, "k1": 0.9558, "A2": -0.0354}
RIG |= {"k2": 0.0093, "R_s": 5.863, "tau_s": 0.02, "V_th_inf": -46.81, "a": 0.0, "b": 1.157, "A_th": -10.0}
RIG |= {"width": 1.48, "V_i": -40.01, "k_i": 10.0, "A_th2": 2.487, "b2": 0.0959, "t_ref": 1.6}
POTENTIALS = ("V_rest", "V_reset", "V_th_inf", "V_i")
PAPER = gif.PROTOCOLS["identifiable"]
CELLS = {"layer 5": LAYER_5, "rig": RIG, "all terms": cells.ESCAPING, "linear": cells.RECORDED, "paper": PAPER}
MEAN_NA = {"layer 5": 0.2, "rig": 0.35, "all terms": 0.3, "linear": 0.3, "paper": 1.5}


def save_run(folder, name, **changes):
    """A run folder with what a fit says of one of CELLS."""
    fitted, escape = {"constants": {"R1": 1.0, "R2": 1.0}, "parameters": CELLS[name] | changes}, "exponential"
    if name == "paper":
        fitted, escape = {"constants": CELLS[name], "parameters": {"a": 0.006} | changes}, "threshold"
    folder.mkdir(parents=True, exist_ok=True)
    result = fitted | dict(script="neuron_fitting_of_gif_model", escape=escape, tau_noise_ms=5.0, width_mV=0.01)
    (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.fixture
def folders(tmp_path):
    return {name: save_run(tmp_path / name.replace(" ", "_"), name) for name in CELLS}


# ---- The neuron -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CELLS)
def test_a_neuron_of_the_network_fires_when_the_fitted_one_does(x64, folders, name):
    """Every spike at the same step, and potentials in mV, of 3 s of noise: against the simulation of the fit itself."""
    dt, neuron = 0.1, fitted_neurons.read_neuron(folders[name], "exc_neuron")
    current = cells.noise(2, dt, 3000.0, MEAN_NA[name], MEAN_NA[name], seed=1)
    own = neuron.constants
    result, source = json.loads((folders[name] / "result.json").read_text()), SimpleNamespace(dt_sim=dt)
    recording = Recording(current, V_start=np.full(2, own["V_rest"]), dt=dt)
    # Of the electrode, which a network has not.
    result["parameters"] |= {name: 0.0 for name in ("R_s", "tau_s") if name in result["parameters"]}
    V, spikes = gif.responder(result, source, 0).free_run(recording)

    settings = models.NetworkSettings(n_rec=5, exc_neuron=[folders[name]], inh_neuron=[folders["rig"]])
    network = models.make_network(settings, 4, 1, 4, 2)
    network.init_state(2)
    x = jnp.asarray(current)[:, :, None] * own["R"] / neuron.scale * jnp.ones(5)

    def step(x):
        V = network.neurons.V.value
        return V, network.neurons.update(x)

    with brainstate.environ.context(dt=dt * u.ms):
        V_network, spikes_network = brainstate.transform.for_loop(step, x)
    assert (spikes.sum(axis=0) > 20).all()
    for i in range(4):
        np.testing.assert_array_equal(spikes_network[:, :, i], spikes)
    np.testing.assert_allclose(own["V_rest"] + neuron.scale * V_network[:, :, 0], V, atol=1e-8)
    if name != "rig":
        assert (np.asarray(spikes_network[:, :, 4]) != spikes).any()


def test_reversal_potentials_in_mV(folders):
    """V of the network is (mV - V_rest) / (V_th_inf - V_rest) of each neuron."""
    settings = models.NetworkSettings(exc_neuron=[folders["layer 5"]], inh_neuron=[folders["rig"]], E_inh_mV=-75.0)
    network = models.make_network(settings, 4, 1, 4, 2)
    scales = np.array([59.96 - 42.76] * 4 + [70 - 46.81])
    np.testing.assert_allclose(network.E_exc, np.array([59.96] * 4 + [70]) / scales, rtol=1e-6)
    np.testing.assert_allclose(network.E_inh, np.array([-75 + 59.96] * 4 + [-75 + 70]) / scales, rtol=1e-5)


def test_neurons_are_drawn_in_proportion_or_at_random(folders):
    a, b = folders["layer 5"], folders["rig"]

    def taus(**settings):
        settings = models.NetworkSettings(exc_neuron=[a, b, b], inh_neuron=[a], **settings)
        network = models.make_network(settings, 90, 10, 4, 2)
        return np.asarray(network.neurons.tau / u.ms)

    even = taus()
    assert [(even[:90] == np.float32(tau)).sum() for tau in (26.13, 17.07)] == [30, 60]
    assert (even[90:] == np.float32(26.13)).all()
    assert len(set(np.flatnonzero(even[:90] > 20) % 3)) == 3  # in no order
    np.testing.assert_array_equal(even, taus())
    assert (even != taus(conn_seed=1)).any()
    random = [(taus(neuron_draw="random", conn_seed=seed)[:90] > 20).sum() for seed in range(20)]
    assert len(set(random)) > 5
    assert np.mean(random) == pytest.approx(30, abs=5)


def test_fitted_and_paper_neurons_in_one_network(folders):
    """The inhibitory neurons are the paper's, with the soft reset and the arguments that are theirs."""
    settings = models.NetworkSettings(exc_neuron=[folders["rig"]], tau_neu=50.0, beta=0.7, E_exc=2.5)
    neurons = (network := models.make_network(settings, 4, 1, 4, 2)).neurons
    np.testing.assert_allclose(neurons.tau / u.ms, [17.07] * 4 + [50])
    assert neurons.A2[4] == np.float32(-0.7)
    assert network.E_exc[4] == 2.5
    np.testing.assert_array_equal(neurons.soft, [False] * 4 + [True])


def test_without_spike_currents(folders):
    settings = models.NetworkSettings(exc_neuron=[folders["all terms"]], inh_neuron=[folders["rig"]])
    neurons = models.make_network(settings, 4, 1, 4, 2).neurons
    assert all(neurons.changes[name] for name in ("I1", "I2", "I3", "g"))
    without = models.make_network(dataclasses.replace(settings, no_spike_currents=True), 4, 1, 4, 2).neurons
    assert not any(without.changes[name] for name in ("I1", "I2", "I3", "g"))
    assert without.changes["V_th"]
    assert without.changes["V_th2"]


# ---- Learning -------------------------------------------------------------------------------------------------------

FITTED = ("--ff_scale", "40", "--rec_scale", "4", "--tau_syn", "5")


def rich_model(folders, *more):
    """Model, keys of 4 trials, and the plain reference of a rule: the richest neurons, and the paper's beside them."""
    exc = folders["all terms"], folders["layer 5"], folders["paper"]
    args = arguments(*FITTED, "--exc_neuron", *exc, *more)
    model, keys = script.make_model(args), jax.random.split(jax.random.key(3), 4)
    arrays = models.neuron_arrays(model.network)
    constants = {name.removeprefix("neuron_"): x for name, x in arrays.items() if name.startswith("neuron_")}
    neurons = plain_gif(constants | dict(soft=model.network.neurons.soft), args, args.tau_syn)

    def plain(rule, **kwargs):
        return reference_gradient(rule, model, neurons, args, **kwargs)

    return model, keys, plain


EXPSM = dict(etrace_decay=0.9, etrace_groups=2, etrace_stretches=3, trace_chunk=8)
RULES = {
    "bptt": (lambda m, k: learning_rules.bptt(m, k, chunk=8), plain_bptt, {}),
    "diag": (lambda m, k: learning_rules.diag(m, k, trace_chunk=8), plain_diag, {}),
    "expsm_diag": (lambda m, k: learning_rules.expsm_diag(m, k, **EXPSM), plain_expsm_diag, EXPSM),
    "one group": (
        lambda m, k: learning_rules.expsm_diag(m, k, 0.9, 1),
        plain_expsm_diag,
        dict(etrace_decay=0.9, etrace_groups=1),
    ),
}


@pytest.mark.parametrize(
    ("rule", "conn_method"), [("bptt", "dense"), ("diag", "rand"), ("expsm_diag", "rand"), ("one group", "dense")]
)
def test_gradients_with_fitted_neurons(x64, folders, rule, conn_method):
    """Of the richest neurons, three kinds of them and the paper's, against their equations written out; float64."""
    model, keys, plain = rich_model(folders, "--conn_method", conn_method)
    ours, oracle, kwargs = RULES[rule]
    _, gradient, _, rates = jax.jit(lambda keys: ours(model, keys))(keys)
    assert set(model.network.traced_states) == {"V", "V_th", "V_th2", "I1", "I2", "I3", "g", "pending"}
    assert set(model.network.slow_states) >= {"V_th2", "I3"}
    assert (rates.sum(axis=0) * np.array(list(model.network.sizes.values())) > 3).all()
    errors = relative_errors(gradient, plain(oracle, **kwargs))
    assert all(error < 1e-8 for error in errors.values()), errors


@pytest.mark.parametrize("rule", RULES)
def test_gradients_with_fitted_neurons_in_float32(folders, rule):
    model, keys, plain = rich_model(folders)
    ours, oracle, kwargs = RULES[rule]
    _, gradient, _, _ = jax.jit(lambda keys: ours(model, keys))(keys)
    errors = relative_errors(gradient, plain(oracle, **kwargs))
    assert all(error < 1e-5 for error in errors.values()), errors


def test_rules_differ_with_fitted_neurons(folders):
    """What the online rules leave out is there to be left out."""
    model, keys, _ = rich_model(folders)
    gradients = {rule: jax.jit(ours)(model, keys)[1] for rule, (ours, _, _) in RULES.items()}
    for one, other in itertools.combinations(gradients.values(), 2):
        assert all(relative_errors(one, other)[name] > 0.01 for name in ("in", "exc", "inh"))


# ---- The script -----------------------------------------------------------------------------------------------------


def test_training_with_fitted_neurons(folders, tmp_path, monkeypatch, capsys):
    """And loaded again, with the constants in weights.npz and adaptation silenced."""
    exc, inh = folders["layer 5"], folders["rig"]
    common = [*scripts.SMALL_NETWORK, *FITTED, "--batch_size", 4, "--n_heldout", 8]
    neurons = ["--exc_neuron", exc, folders["all terms"], "--inh_neuron", inh]
    common += [*neurons, "--epochs", 2, "--eval_every", 1]
    done = scripts.done_here(script, monkeypatch, capsys, tmp_path, *common)
    result, folder = result_of(done, tmp_path)
    assert result["updates"] == 2
    assert f"exc: {exc}: tau 26.1 ms, threshold 17.2 mV above rest, t_ref 3.4 ms (3 here)" in done.stdout
    arrays = np.load(folder / "weights.npz")
    np.testing.assert_allclose(sorted(set(arrays["neuron_tau"])), [17.07, 20.0, 26.13], rtol=1e-6)
    assert arrays["neuron_E_inh"].shape == (20,)
    monkeypatch.setattr(script, "DELAYS", ())
    arguments = ["--mode", "sim", "--load", folder, "--batch_size", 4, "--n_heldout", 8]
    result, _ = scripts.run_here(script, monkeypatch, capsys, tmp_path, *arguments)
    assert result["behaviour"]["silenced"]["adaptation"]["accuracy"] >= 0
    assert runs.load_json(folder / "config.json")["arguments"]["exc_neuron"] == [str(exc), str(folders["all terms"])]


def test_parameters_at_the_bounds_of_a_fit_are_said(tmp_path):
    neuron = save_run(tmp_path / "neuron", "rig")
    result = json.loads((neuron / "result.json").read_text())
    reasons = {"a": "at its bound, 0 (--bounds)", "b": "not at an optimum", "R_s": "at its bound, 40 (--bounds)"}
    assert "at the bounds of the fit" not in fitted_neurons.read_neuron(neuron, "exc_neuron").told(1.0)
    (neuron / "result.json").write_text(json.dumps(result | dict(identifiability=dict(without_error=reasons))))
    assert fitted_neurons.read_neuron(neuron, "exc_neuron").told(1.0).endswith("; at the bounds of the fit: a")


def test_a_network_whose_fits_have_changed_is_refused(tmp_path, monkeypatch, capsys):
    neuron = save_run(tmp_path / "neuron", "rig")
    arguments = [*scripts.SMALL_NETWORK, *FITTED, "--batch_size", 4, "--n_heldout", 8, "--epochs", 1]
    _, folder = scripts.run_here(script, monkeypatch, capsys, tmp_path, *arguments, "--exc_neuron", neuron)
    again = ["--mode", "sim", "--load", folder, "--batch_size", 4, "--n_heldout", 8, "--E_exc_mV", 10]
    monkeypatch.setattr(script, "DELAYS", ())
    scripts.run_here(script, monkeypatch, capsys, tmp_path, *again)
    save_run(neuron, "rig", tau=20.0)
    for given in (again, ["--resume", folder]):
        before = scripts.contents(tmp_path)
        capsys.readouterr()
        assert scripts.exit_status(script, monkeypatch, tmp_path, list(map(str, given))) == 2
        errors = capsys.readouterr().err
        assert len(errors.splitlines()) == 1
        assert scripts.contents(tmp_path) == before
        assert "weights.npz: found tau 17.07 of neuron 0, and in the folders of the fits 20" in errors
    # All potentials higher by 5 mV: only the reversal potentials tell.
    save_run(neuron, "rig", E_g=5.0, **{name: RIG[name] + 5 for name in POTENTIALS})
    without = again[:-2]
    for given, E in ((without, "E_exc"), (again, "E_inh"), (["--resume", folder], "E_exc")):
        assert scripts.exit_status(script, monkeypatch, tmp_path, list(map(str, given))) == 2
        assert f"weights.npz: found {E} " in capsys.readouterr().err


def test_nothing_fades_where_thresholds_do_not_move(tmp_path):
    still = save_run(tmp_path / "still", "linear", a=0.0, b=0.1, A_th=0.0)
    neurons = ["--exc_neuron", str(still), "--inh_neuron", str(still)]
    for given, n in ((neurons, 2), ([*neurons, "--no_spike_currents"], 0)):
        fading = models.fading(script.make_model(script.parse_args(given)), np.eye(7))
        assert [np.isfinite(row["tau_a"]) for row in fading] == [True] * n
    model = script.make_model(script.parse_args(["--exc_neuron", str(still), "--beta", "0"]))  # others are the paper's
    tau = model.network.neurons.time_constants
    assert np.isfinite(tau["I2"]).sum() == model.network.n_exc


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        (["--exc_neuron", "RIG", "--inh_neuron", "RIG", "--tau_neu", "20"], ["--tau_neu", "all neurons are fitted"]),
        (["--exc_neuron", "RIG", "--inh_neuron", "RIG", "--beta", "1"], ["--beta"]),
        (["--exc_neuron", "RIG", "--inh_neuron", "RIG", "--E_inh", "-2"], ["--E_inh"]),
        (["--E_exc_mV", "0"], ["--E_exc_mV", "--exc_neuron"]),
        (["--no_spike_currents"], ["--no_spike_currents", "--beta 0"]),
        (["--exc_neuron", "nowhere"], ["--exc_neuron", "nowhere", "result.json"]),
        (["--inh_neuron", "HH"], ["--inh_neuron", "neuron_fitting_of_gif_model.py"]),
        (["--exc_neuron", "TONIC"], ["--exc_neuron", "V_th_inf", "silent at rest"]),
        (["--exc_neuron", "PART"], ["--exc_neuron", "that was interrupted, expected a whole one"]),
        (["--exc_neuron", "RIG", "--engine", "brainscale", "--method", "diag"], ["--engine", "native"]),
    ],
)
def test_what_is_refused(given, texts, folders, tmp_path, monkeypatch, capsys):
    (tmp_path / "hh").mkdir()
    (tmp_path / "hh/result.json").write_text(json.dumps(dict(script="neuron_fitting_of_hh_model", parameters={})))
    tonic = save_run(tmp_path / "tonic", "rig", V_th_inf=-71.0)
    part = save_run(tmp_path / "part", "rig")
    result = json.loads((part / "result.json").read_text())
    (part / "result.json").write_text(json.dumps(result | dict(interrupted=True)))
    names = {"RIG": str(folders["rig"]), "HH": str(tmp_path / "hh"), "TONIC": str(tonic), "PART": str(part)}
    errors = scripts.refused(script, monkeypatch, capsys, tmp_path, [names.get(x, x) for x in given])
    assert all(text in errors for text in texts), errors
