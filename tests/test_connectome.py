"""Connectomes: what a table of connections becomes, what is refused, and that a rewired one is a control."""

import csv
import gzip
import io
from collections import Counter, defaultdict

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scripts
from plain import (
    plain_bptt,
    plain_diag,
    plain_expsm_diag,
    plain_neurons,
    reference_gradient,
    relative_errors,
    script,
    tau_a_of,
)
from scripts import result_of

import connectome
import learning_rules
import models
import sparse_products
import utils
from connectome import EdgeColumns, Wiring

CORRUPT = gzip.compress(b"", mtime=0)[:10] + b"\xff" * 50  # a stream that deflate cannot have
# (pre, post, weight, sign), with numbers as FlyWire and MICrONS have them, which no float has room for.
N0 = 720575940600000000
EDGES = [(N0 + 5, N0 + 1, 2.0, 1), (N0 + 5, N0 + 9, 0.5, 1), (N0 + 1, N0 + 5, 3.0, 1), (N0 + 9, N0 + 1, 4.0, -1)]
EDGES += [(N0 + 9, N0 + 5, 1.0, -1), (N0 + 5, N0 + 1, 0.25, 1), (N0 + 1, N0 + 1, 1.5, 1), (N0 + 1, N0 + 7, 0.0, 1)]


def table(names=("pre", "post", "weight", "sign"), edges=EDGES):
    return pd.DataFrame(edges, columns=list(names))


def save(path, frame):
    writers = {".csv": frame.to_csv, ".gz": frame.to_csv, ".parquet": frame.to_parquet}
    if path.suffix == ".npz":
        np.savez(path, **{name: frame[name].to_numpy() for name in frame})
    elif path.suffix == ".feather":
        frame.to_feather(path)
    elif path.suffix == ".tsv":
        frame.to_csv(path, sep="\t", index=False)
    else:
        writers[path.suffix](path, index=False)
    return path


def array_alone():
    """What np.save writes, which is no NPZ file."""
    file = io.BytesIO()
    np.save(file, np.zeros(1))
    return file.getvalue()


def listed(wiring):
    """{(id of pre, id of post): weight} of a wiring, one after another."""
    found = {}
    for name, first in (("exc", 0), ("inh", wiring.n_exc)):
        indptr, indices = wiring.connections[name]
        for i in range(len(indptr) - 1):
            for k in range(indptr[i], indptr[i + 1]):
                pair = wiring.ids[first + i], wiring.ids[indices[k]]
                assert pair not in found
                found[pair] = wiring.weights[name][k]
    return found


# ---- Reading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv", "a.npz", "a.parquet", "a.feather"])
def test_a_table_in_each_format(name, tmp_path):
    """Weights of the same pair are added, those of 0 left out; numbers of 64 bits keep their digits."""
    wiring = connectome.read_wiring(save(tmp_path / name, table()), EdgeColumns())
    expected = defaultdict(float)
    for pre, post, weight, _ in EDGES:
        expected[pre, post] += weight
    assert listed(wiring) == {pair: weight for pair, weight in expected.items() if weight}
    assert list(wiring.ids) == [N0 + 1, N0 + 5, N0 + 9]  # excitatory, in order, then inhibitory
    assert (wiring.n_exc, wiring.n_inh) == (2, 1)
    text = " ".join(wiring.report)
    assert all(
        x in text for x in ("2 excitatory and 1 inhibitory", "6 connections", "1 rows added", "1 rows of weight 0")
    )
    assert "1 neurons connect to themselves" in text


def test_signs_by_the_weights(tmp_path):
    edges = [(pre, post, weight * sign) for pre, post, weight, sign in EDGES]
    wiring = connectome.read_wiring(
        save(tmp_path / "a.csv", table(("source", "Target", "weight"), edges)), EdgeColumns()
    )
    assert (wiring.n_exc, wiring.n_inh) == (2, 1)
    assert all(weight > 0 for weight in listed(wiring).values())


def test_the_table_of_flywire(tmp_path):
    """As Codex has it, a row a neuropil; where a neuron's transmitter differs from row to row, by the majority."""
    names = ("pre_root_id", "post_root_id", "neuropil", "syn_count", "nt_type")
    rows = [(N0 + 1, N0 + 2, "ME_R", 5, "ACH"), (N0 + 1, N0 + 2, "LO_R", 7, "ACH"), (N0 + 2, N0 + 1, "ME_R", 9, "GABA")]
    rows += [(N0 + 3, N0 + 1, "ME_R", 6, "GLUT")]
    path = save(tmp_path / "connections.csv.gz", table(names, rows))
    wiring = connectome.read_wiring(path, EdgeColumns())
    assert listed(wiring) == {(N0 + 1, N0 + 2): 12, (N0 + 2, N0 + 1): 9, (N0 + 3, N0 + 1): 6}
    assert wiring.n_inh == 2
    path = save(tmp_path / "mixed.csv.gz", table(names, [*rows, (N0 + 1, N0 + 3, "ME_R", 2, "GABA")]))
    with pytest.raises(connectome.BadInput, match=f"both signs .{N0 + 1}"):
        connectome.read_wiring(path, EdgeColumns())
    wiring = connectome.read_wiring(path, EdgeColumns(mixed_signs="majority"))
    assert wiring.n_inh == 2
    assert listed(wiring)[N0 + 1, N0 + 3] == 2
    assert "1 of 3 neurons have both signs" in " ".join(wiring.report)


def test_the_table_of_microns_with_cell_types(tmp_path):
    """Names of columns as arguments, and which types inhibit."""
    rows = [(1, 2, 900.0, "23P"), (2, 3, 400.0, "4P"), (3, 1, 2000.0, "BC"), (4, 1, 100.0, "MC")]
    path = save(tmp_path / "a.parquet", table(("pre_pt_root_id", "post_pt_root_id", "size", "my_type"), rows))
    with pytest.raises(connectome.BadInput, match="expected signs"):
        connectome.read_wiring(path, EdgeColumns())
    with pytest.raises(connectome.BadInput, match="found 23P, 4P, BC, MC in 4 rows"):
        connectome.read_wiring(path, EdgeColumns(sign_column="my_type"))
    wiring = connectome.read_wiring(path, EdgeColumns(sign_column="my_type", inh_types=["BC", "MC"]))
    assert list(wiring.ids) == [1, 2, 3, 4]
    assert (wiring.n_exc, wiring.n_inh) == (2, 2)
    text = " ".join(wiring.report)
    assert "excitatory: 23P (1), 4P (1)" in text
    assert "inhibitory: BC (1), MC (1)" in text


def test_neurons_without_targets_count_as_excitatory(tmp_path):
    path = save(tmp_path / "a.csv", table(edges=[("a", "b", 1.0, "E"), ("c", "d", 1.0, "I")]))
    wiring = connectome.read_wiring(path, EdgeColumns())
    assert list(wiring.ids) == ["a", "b", "d", "c"]
    assert "2 neurons without a connection to others" in " ".join(wiring.report)


@pytest.mark.parametrize(
    ("changes", "columns", "texts"),
    [
        (dict(weight=[np.inf] + [1.0] * 7), {}, ["'inf'", "column weight, row 0"]),
        (dict(weight=[0.0] * 8), {}, ["only weights of 0"]),
        (dict(sign=[None, *"EEIIEEE"]), {}, ["(none) in 1 rows", "--inh_types"]),
        (dict(pre=["A"] + ["01"] * 7), {}, ["pre and post", "text"]),
        (dict(sign=[1, 1, 1, -1, 1, 1, 1, 1]), {}, ["both signs", str(N0 + 9), "Dale"]),
        (dict(weight=[-1.0] + [1.0] * 7), {}, ["weight -1", "agree"]),
        (dict(weight=[np.nan] + [1.0] * 7), {}, ["column weight, row 0", "finite"]),
        (dict(weight=["x"] + ["1"] * 7), {}, ["'x'", "column weight"]),
        (dict(pre=[1.5] * 8), {}, ["decimals", "column pre"]),
        (dict(pre=[np.nan] + [1.0] * 7), {}, ["no neuron", "row 0"]),
        (dict(sign=[1] * 8), {}, ["no inhibitory neuron"]),
        (dict(sign=["SER"] * 8), {}, ["SER in 8 rows", "--inh_types"]),
        (dict(pre=N0, post=range(8), sign=-1), {}, ["no connection of an excitatory neuron"]),
        ({}, dict(pre_column="x"), ["--pre_column", "'x'", "pre, post, weight, sign"]),
        ({}, dict(inh_types=["BC"]), ["--inh_types", "'BC'"]),
    ],
)
def test_what_is_refused(changes, columns, texts, tmp_path):
    path = save(tmp_path / "a.csv", table().assign(**changes))
    with pytest.raises(connectome.BadInput) as error:
        connectome.read_wiring(path, EdgeColumns(**columns))
    assert "\n" not in str(error.value)
    assert all(text in str(error.value) for text in ["a.csv", *texts]), str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.xls", b"x", "expected one of .csv"),
        ("a.csv", b"", "expected a table"),
        ("a.csv", b"pre,post\n", "no connections"),
        ("a.csv", b"i,j\n1,2\n", "columns i, j, expected pre, or --pre_column"),
        ("a.npz", b"x", "expected a table"),
        ("a.parquet", b"x", "expected a table"),
        ("a.csv.gz", b"x", "expected a table"),
        ("a.csv.gz", CORRUPT, "expected a table"),
        ("a.npz", array_alone(), "expected a table"),
    ],
)
def test_files_that_are_no_tables(name, content, text, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(connectome.BadInput, match=text) as error:
        connectome.read_wiring(tmp_path / name, EdgeColumns())
    assert "\n" not in str(error.value)


def test_blanks_and_categories_make_no_other_neurons(tmp_path):
    (tmp_path / "a.csv").write_text("pre,post,weight\na, b,3\nb ,a,-1\n")
    assert connectome.read_wiring(tmp_path / "a.csv", EdgeColumns()).ids.tolist() == ["a", "b"]
    edges = table()
    as_categories = edges.assign(pre=edges.pre.astype("category"))
    as_categories.to_parquet(tmp_path / "a.parquet")
    ids = [
        connectome.read_wiring(path, EdgeColumns()).ids
        for path in (tmp_path / "a.parquet", save(tmp_path / "b.csv", edges))
    ]
    np.testing.assert_array_equal(*ids)


def test_types_that_no_column_has(tmp_path):
    edges = [(pre, post, weight * sign) for pre, post, weight, sign in EDGES]
    path = save(tmp_path / "a.csv", table(("pre", "post", "weight"), edges))
    with pytest.raises(connectome.BadInput, match="--inh_types: found columns pre, post, weight"):
        connectome.read_wiring(path, EdgeColumns(inh_types=["BC"]))


def test_signs_of_zero_weights_contradict_nothing(tmp_path):
    path = save(tmp_path / "a.csv", table(edges=[(1, 2, 1.0, "E"), (2, 1, -1.0, "I"), (2, 3, 0.0, "I")]))
    assert connectome.read_wiring(path, EdgeColumns()).n_inh == 1


def test_neurons_without_a_type_excite_and_are_counted(tmp_path):
    path = save(tmp_path / "a.csv", table(edges=[(1, 2, 1.0, "ACH"), (2, 1, 1.0, "GABA"), (3, 1, 1.0, None)]))
    wiring = connectome.read_wiring(path, EdgeColumns(inh_types=["GABA"]))
    assert list(wiring.ids) == [1, 3, 2]
    assert "(none) (1)" in " ".join(wiring.report)


@pytest.mark.parametrize("separator", ["\t", ";"])
def test_separators_of_csv(separator, tmp_path):
    table().to_csv(tmp_path / "a.csv", sep=separator, index=False)
    assert list(connectome.read_wiring(tmp_path / "a.csv", EdgeColumns()).ids) == [N0 + 1, N0 + 5, N0 + 9]


@pytest.mark.parametrize("kinds", [(np.int32, np.int64), (np.uint64, np.int64)])
def test_integers_of_two_types_stay_integers(kinds, tmp_path):
    first = 0 if np.int32 in kinds else N0
    pre, post = (np.array(ids).astype(kind) for ids, kind in zip(([10, 9], [9, 10]), kinds, strict=True))
    arrays = dict(pre=pre + kinds[0](first), post=post + kinds[1](first), sign=["I", "E"])
    np.savez(tmp_path / "a.npz", **arrays)
    assert list(connectome.read_wiring(tmp_path / "a.npz", EdgeColumns()).ids) == [first + 9, first + 10]


# ---- The control ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["file", "rand"])
def test_shuffled_connections_keep_what_a_neuron_has(source):
    """Out-degrees, in-degrees from each population, weights by presynaptic neuron; no pair twice; most are new."""
    if source == "file":
        wiring = connectome.read_wiring(script.Path("data/connectome.csv"), EdgeColumns())
    else:
        wiring = Wiring(80, 20, utils.connect("rand", 80, 20, 0))
    new = connectome.shuffled(wiring, 0)
    n_new = n = 0
    for name in ("exc", "inh"):
        (indptr, post), (new_indptr, new_post) = wiring.connections[name], new.connections[name]
        np.testing.assert_array_equal(indptr, new_indptr)
        np.testing.assert_array_equal(np.sort(post), np.sort(new_post))
        first = 0 if name == "exc" else wiring.n_exc
        for i in range(len(indptr) - 1):
            row = slice(indptr[i], indptr[i + 1])
            assert (np.diff(new_post[row]) > 0).all()
            assert first + i not in new_post[row]
            n, n_new = n + len(post[row]), n_new + len(set(new_post[row]) - set(post[row]))
            if wiring.weights:
                assert Counter(wiring.weights[name][row]) == Counter(new.weights[name][row])
    assert n_new / n > 0.75
    again, other = connectome.shuffled(wiring, 0), connectome.shuffled(wiring, 1)
    np.testing.assert_array_equal(again.connections["exc"][1], new.connections["exc"][1])
    assert (other.connections["exc"][1] != new.connections["exc"][1]).any()
    assert "shuffled" in new.report[-1]


def test_shuffling_forgets_the_groups_of_the_example():
    """In data/connectome.csv two excitatory neurons share more targets if they are of one group; not when rewired."""
    wiring = connectome.read_wiring(script.Path("data/connectome.csv"), EdgeColumns())

    def spread(wiring):
        indptr, post = wiring.connections["exc"]
        matrix = np.zeros((160, 160))
        for i in range(160):
            row = post[indptr[i] : indptr[i + 1]]
            matrix[i, row[row < 160]] = 1
        return np.linalg.svd(matrix - matrix.mean())[1][0]

    assert spread(wiring) > 1.5 * spread(connectome.shuffled(wiring, 0))


def test_autapses_stay_and_what_cannot_be_swapped_too():
    """Two neurons of each population that are connected to all there is."""
    full = {name: (np.array([0, 4, 8], np.int32), np.array([0, 1, 2, 3] * 2, np.int32)) for name in ("exc", "inh")}
    new = connectome.shuffled(Wiring(2, 2, full), 0)
    for name in full:
        np.testing.assert_array_equal(new.connections[name][1], full[name][1])


def test_autapses_stay_among_connections_that_are_swapped():
    connections, rng = utils.connect("rand", 80, 20, 0), np.random.default_rng(0)
    pairs, first = {}, dict(exc=0, inh=80)
    for name, (indptr, post) in connections.items():
        post = np.array(post)
        for i in rng.permutation(len(indptr) - 1)[:8]:
            row = post[indptr[i] : indptr[i + 1]]
            row[0] = row[0] if first[name] + i in row else first[name] + i
            row.sort()
        pairs[name] = indptr, post
    new = connectome.shuffled(Wiring(80, 20, pairs), 1).connections
    for name, (indptr, post) in pairs.items():
        pre = first[name] + np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        np.testing.assert_array_equal(pre[new[name][1] == pre], pre[post == pre])
        assert (post == pre).sum() >= 8
        before, after = (set(zip(pre.tolist(), x.tolist(), strict=True)) for x in (post, new[name][1]))
        assert len(after) == len(post)
        assert len(before & after) < 0.4 * len(post)


def test_the_report_says_where_too_few_could_be_swapped():
    full = {name: [np.delete(np.arange(40), first + i) for i in range(20)] for name, first in (("exc", 0), ("inh", 20))}
    connections = {name: (np.arange(21) * 39, np.concatenate(rows)) for name, rows in full.items()}
    assert "too few" in connectome.shuffled(Wiring(20, 20, connections), 0).report[-1]
    assert "too few" not in connectome.shuffled(Wiring(80, 20, utils.connect("rand", 80, 20, 0)), 0).report[-1]


# ---- In the network -------------------------------------------------------------------------------------------------


def test_initial_weights_are_those_of_the_file_up_to_one_scale():
    """By which the mean square of the excitatory ones is rec_scale / number of inputs."""
    settings = models.NetworkSettings(conn_method="data/connectome.csv", rec_scale=0.7)
    model = models.make_model(utils.EvidenceAccumulation(), settings)
    wiring = models.wiring_of(settings)
    assert (model.network.n_exc, model.network.n_inh) == (160, 40)
    factor = model.weights["exc"][0] / wiring.weights["exc"][0]
    for name in ("exc", "inh"):
        np.testing.assert_allclose(model.weights[name], factor * wiring.weights[name], rtol=1e-5)
    assert np.sum(np.square(model.weights["exc"])) / 200 == pytest.approx(0.7, rel=1e-5)


def test_without_weights_they_are_random(tmp_path):
    frame = pd.read_csv("data/connectome.csv").drop(columns="weight")
    settings = models.NetworkSettings(conn_method=str(save(tmp_path / "a.csv", frame)))
    weights = models.make_model(utils.EvidenceAccumulation(), settings).weights
    assert np.std(weights["exc"]) == pytest.approx(np.sqrt(0.5 / (len(weights["exc"]) / 200)), rel=0.05)
    assert (weights["exc"] < 0).any()


RULES = {
    "bptt": (learning_rules.bptt, plain_bptt, {}),
    "diag": (learning_rules.diag, plain_diag, {}),
    "expsm_diag": (
        learning_rules.expsm_diag,
        plain_expsm_diag,
        dict(etrace_decay=0.9, etrace_groups=2, etrace_stretches=3, trace_chunk=8),
    ),
}


@pytest.mark.parametrize(
    ("rule", "products"), [("bptt", "full"), ("bptt", "sparse"), ("diag", "sparse"), ("expsm_diag", "sparse")]
)
def test_gradients_on_a_connectome(x64, rule, products, tmp_path, monkeypatch):
    """Against the equations with full matrices, whose entries are those of the file, by either kind of products."""
    monkeypatch.setattr(sparse_products, "SPARSE", 2.0 if products == "sparse" else 0.0)
    frame = pd.read_csv("data/connectome.csv")
    number = frame.pre.str[1:].astype(int), frame.post.str[1:].astype(int)
    small = frame[(number[0] < 16) & (number[1] < 16)]
    small = small[(small.type == "E") | (number[0][small.index] < 4)]
    path = save(tmp_path / "small.csv", small)
    args = script.parse_args([*scripts.SMALL_NETWORK[2:], "--conn_method", str(path)])
    model, keys = script.make_model(args), jax.random.split(jax.random.key(3), 4)
    network = model.network
    args.n_rec = network.n_rec
    assert all(0 < len(model.weights[name]) < 0.3 * network.n_rec * n for name, n in network.sizes.items())
    ours, oracle, kwargs = RULES[rule]
    expected = reference_gradient(oracle, model, plain_neurons(args, tau_a_of(network)), args, **kwargs)
    _, gradient, _, _ = jax.jit(lambda keys: ours(model, keys, **kwargs))(keys)
    errors = relative_errors(gradient, expected)
    assert all(error < 1e-8 for error in errors.values()), errors


@pytest.mark.parametrize(("n_pre", "n_post", "p", "batch"), [(60, 90, 0.1, 3), (40, 33, 0.9, 2), (30, 30, 0.01, 2)])
def test_sparse_products_are_those_of_full_matrices(x64, n_pre, n_post, p, batch):
    """Values and derivatives by spikes and weights, also of neurons without connections, and with many."""
    rng = np.random.default_rng(0)
    pre, post = (jnp.asarray(x, jnp.int32) for x in np.nonzero(rng.random((n_pre, n_post)) < p))
    w, y = rng.normal(size=len(pre)), rng.normal(size=(7, batch, n_post))
    spikes = (rng.random((7, batch, n_pre)) < 0.2).astype(float)

    def sparse(w, s):
        synapses = sparse_products.synapses(w, pre, post, n_pre, n_post)
        return jnp.stack([sparse_products.propagate(x, synapses, n_post) for x in s])

    def full(w, s):
        return s @ jnp.zeros((n_pre, n_post)).at[pre, post].set(w)

    @jax.jit
    def found(s):
        of_both = [(ours, *pull(y)) for ours, pull in (jax.vjp(f, w, s) for f in (sparse, full))]
        products = sparse_products.pair_products(s, y, pre, post), jnp.einsum("sbi,sbj->bij", s, y)[:, pre, post]
        total = sparse_products.pair_total(s, y, pre, post), products[1].sum(axis=0)
        return [*zip(*of_both, strict=True), products, total]

    w, y = jnp.asarray(w), jnp.asarray(y)
    for s in (spikes, spikes * rng.normal(size=spikes.shape), 0 * spikes):
        for ours, expected in found(jnp.asarray(s)):
            np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_which_products_a_network_takes():
    """Those of 20 000 neurons with a million connections are sparse, those of the example and of `rand` are not."""
    assert sparse_products.is_sparse(800_000, 16_000, 20_000)
    assert not sparse_products.is_sparse(3941, 160, 200)
    assert not sparse_products.is_sparse(320 * 40, 320, 400)


def test_training_on_a_connectome(tmp_path, monkeypatch, capsys):
    """Trained, loaded, resumed; the connections in weights.npz are those of the file."""
    path = tmp_path / "connectome.csv"
    path.write_bytes(script.Path("data/connectome.csv").read_bytes())
    common = [*scripts.SMALL_NETWORK[2:], "--batch_size", 4, "--n_heldout", 8, "--conn_method", path]
    training = [*common, "--epochs", 2, "--eval_every", 1, "--schedule", "constant"]
    done = scripts.done_here(script, monkeypatch, capsys, tmp_path, *training)
    _, folder = result_of(done, tmp_path)
    assert "160 excitatory and 40 inhibitory neurons, 5891 connections" in done.stdout
    assert folder.name == "train_bptt_connectome_200_seed0"
    wiring = connectome.read_wiring(path, EdgeColumns())
    arrays = np.load(folder / "weights.npz")
    np.testing.assert_array_equal(arrays["inh_indices"], wiring.connections["inh"][1])
    with open(folder / "neurons.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [str(name) for name in wiring.ids]
    assert [row["population"] for row in rows] == ["exc"] * 160 + ["inh"] * 40
    monkeypatch.setattr(script, "DELAYS", ())
    scripts.run_here(script, monkeypatch, capsys, tmp_path, "--mode", "sim", "--load", folder, "--n_heldout", 8)
    resumed, _ = scripts.run_here(script, monkeypatch, capsys, tmp_path, "--resume", folder, "--epochs", 3)
    assert resumed["updates"] == 3
    lines = path.read_text().splitlines()
    edges = [line.split(",") for line in lines[1:]]
    named = [",".join([f"{pre}0", f"{post}0", *more]) for pre, post, *more in edges]
    for changed, text in ((lines[:-1], "other connections of inh"), ([lines[0], *named], "neurons.csv: found other")):
        path.write_text("\n".join(changed) + "\n")
        for again in (["--mode", "sim", "--load", folder], ["--resume", folder, "--epochs", 4]):
            capsys.readouterr()
            assert scripts.exit_status(script, monkeypatch, tmp_path, list(map(str, again))) == 2
            errors = capsys.readouterr().err
            assert len(errors.splitlines()) == 1
            assert text in errors


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        (["--conn_method", "nowhere.csv"], ["--conn_method", "nowhere.csv", "dense, gaussian, rand"]),
        (["--conn_method", "DATA", "--n_rec", "100"], ["--n_rec", "200 neurons"]),
        (["--conn_method", "DATA", "--w_ei_ratio", "3"], ["--w_ei_ratio", "--rec_scale alone"]),
        (["--pre_column", "pre"], ["--pre_column", "--conn_method FILE"]),
        (["--shuffle_connections"], ["--shuffle_connections", "dense"]),
    ],
)
def test_arguments_that_are_refused(given, texts, tmp_path, monkeypatch, capsys):
    path = str(script.Path("data/connectome.csv").resolve())
    errors = scripts.refused(script, monkeypatch, capsys, tmp_path, [path if x == "DATA" else x for x in given])
    assert all(text in errors for text in texts), errors
