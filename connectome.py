"""A connectome as a table of connections: reading it, Dale's law, and rewiring it as a control."""

import dataclasses
import gzip
from collections.abc import Sequence
from pathlib import Path

from runs import BadInput, setting

import numpy as np
import pandas as pd

# Names of columns, in lower case: those of FlyWire's and MICrONS's tables, and plain ones.
PRE = ("pre", "pre_id", "pre_root_id", "pre_pt_root_id", "source")
POST = ("post", "post_id", "post_root_id", "post_pt_root_id", "target")
WEIGHT = ("weight", "syn_count", "n_syn", "size")
SIGN = ("sign", "type", "nt_type", "pre_type", "pre_cell_type", "classification_system")
# In lower case. That of glutamate is the fly's.
EXCITATORY = ("e", "exc", "excitatory", "excitatory_neuron", "1", "+1", "1.0", "+", "ach", "acetylcholine")
INHIBITORY = ("i", "inh", "inhibitory", "inhibitory_neuron", "-1", "-1.0", "-", "gaba", "glut", "glutamate")
READERS = {
    **dict.fromkeys((".csv", ".csv.gz", ".tsv", ".tsv.gz"), lambda path: read_text(path)),
    ".parquet": pd.read_parquet,
    ".feather": pd.read_feather,
    ".npz": lambda path: read_npz(path),
}
SWAPS = 20  # rounds of swaps, each of which tries all connections once


@dataclasses.dataclass(frozen=True)
class EdgeColumns:
    """What the columns of a table of connections mean; the arguments of the same names."""

    pre_column: str | None = setting(
        None, f"column of the presynaptic neuron; {' or '.join(PRE)} without this argument", kind=str, metavar="COLUMN"
    )
    post_column: str | None = setting(
        None,
        f"column of the postsynaptic neuron; {' or '.join(POST)} without this argument",
        kind=str,
        metavar="COLUMN",
    )
    weight_column: str | None = setting(
        None,
        f"column of the weights, or numbers of synapses; {' or '.join(WEIGHT)} without this argument, and where there "
        "is none, weights are random as in rand",
        kind=str,
        metavar="COLUMN",
    )
    sign_column: str | None = setting(
        None,
        "column that says whether the presynaptic neuron excites (E, 1, ACH) or inhibits (I, -1, GABA, GLUT); "
        f"{' or '.join(SIGN)} without this argument, and where there is none, the signs of the weights",
        kind=str,
        metavar="COLUMN",
    )
    inh_types: Sequence[str] | None = setting(
        None,
        "values in that column, such as cell types, of neurons that inhibit; all others excite then",
        kind=str,
        nargs="+",
        metavar="TYPE",
    )
    mixed_signs: str = setting(
        "refuse",
        "a neuron with connections of both signs: refuse; or majority: it has the sign of the larger sum of weights",
        choices=("refuse", "majority"),
    )


@dataclasses.dataclass(frozen=True)
class Wiring:
    """Which neurons project to which: excitatory ones are numbered first.

    Args:
        n_exc, n_inh: numbers of neurons.
        connections: as `utils.connect` gives them.
        weights: {"exc": absolute weights in the order of the connections, "inh": ...}, or None.
        ids: of the neurons in the file.
        report: lines that say what is in it.
    """

    n_exc: int
    n_inh: int
    connections: dict[str, tuple[np.ndarray, np.ndarray] | None]
    weights: dict[str, np.ndarray] | None = None
    ids: np.ndarray | None = None
    report: tuple[str, ...] = ()


# ---- Reading --------------------------------------------------------------------------------------------------------


def read_text(path: Path) -> pd.DataFrame:
    """The table of a text file; what is most often in its first line, tab, ; or comma, separates its columns."""
    with (gzip.open if path.name.lower().endswith(".gz") else open)(path, "rt", encoding="utf-8-sig") as lines:
        first = lines.readline()
    return pd.read_csv(path, sep=max(",;\t", key=first.count))


def read_npz(path: Path) -> pd.DataFrame:
    """The arrays of a NPZ file as columns."""
    with np.load(path) as arrays:
        return pd.DataFrame({name: arrays[name] for name in arrays.files})


def read_table(path: Path) -> pd.DataFrame:
    """The table of a file, by its suffix.

    Raises:
        BadInput: it has another suffix, cannot be read, or is empty.
    """
    suffix = next((suffix for suffix in READERS if path.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise BadInput(f"{path}: found no table by its name, expected one of {' '.join(READERS)}")
    try:
        table = READERS[suffix](path)
    except Exception as error:  # parsers of others raise what they like, and ImportError where they are not installed
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise BadInput(f"{path}: found nothing that can be read ({reason}), expected a table of connections") from None
    if not len(table):
        raise BadInput(f"{path}: found no connections, expected one in each row")
    return table


def column_of(path: Path, table: pd.DataFrame, named: str | None, usual: Sequence[str], what: str) -> pd.Series | None:
    """The column that is named, or else the first with a usual name; None without.

    Raises:
        BadInput: one that is named is not there.
    """
    lower = {str(name).lower(): name for name in table.columns}
    if named and named not in table.columns:
        raise BadInput(f"argument --{what}_column: found no {named!r} in {path}, expected one of {columns_of(table)}")
    name = named or next((lower[usual_name] for usual_name in usual if usual_name in lower), None)
    return None if name is None else table[name]


def columns_of(table: pd.DataFrame) -> str:
    return ", ".join(map(str, table.columns))


def numbers_of(path: Path, column: pd.Series) -> np.ndarray:
    """The numbers of a column.

    Raises:
        BadInput: not all of them are finite numbers.
    """
    numbers = pd.to_numeric(column, errors="coerce").to_numpy(np.float64)
    if not np.isfinite(numbers).all():
        row = int(np.flatnonzero(~np.isfinite(numbers))[0])
        found = f"found '{column.iloc[row]}' in column {column.name}, row {row}"
        raise BadInput(f"{path}: {found}, expected finite numbers")
    return numbers


def inhibitory_by(path: Path, column: pd.Series, inh_types: Sequence[str] | None) -> tuple[np.ndarray, list[str]]:
    """Whether each connection inhibits, by what a column says, and lines that say of which types that has made what.

    With `inh_types`, a row without a value excites, as all others do, and is counted as (none).

    Raises:
        BadInput: a value is neither of those that excite nor of those that inhibit.
    """
    values = column.astype(str).str.strip().where(column.notna(), "(none)")
    if inh_types:
        types = values.value_counts()
        if missing := [name for name in inh_types if name not in types.index]:
            found = f"found no {missing[0]!r} in column {column.name} of {path}"
            raise BadInput(f"argument --inh_types: {found}, expected some of {', '.join(map(str, types.index[:10]))}")
        counts = {
            kind: [f"{name} ({n})" for name, n in types.items() if (name in inh_types) == inh] for kind, inh in KINDS
        }
        lines = [
            f"taken for {kind}: {', '.join(names[:10])}{' ...' * (len(names) > 10)}" for kind, names in counts.items()
        ]
        return values.isin(inh_types).to_numpy(), lines
    lower = values.str.lower()
    known = lower.isin((*EXCITATORY, *INHIBITORY)).to_numpy()
    if not known.all():
        others = values[~known].value_counts()
        found = f"found {', '.join(map(str, others.index[:5]))} in {others.sum()} rows of column {column.name}"
        raise BadInput(f"{path}: {found}, expected E or I, 1 or -1, or --inh_types, which says which of them inhibit")
    return lower.isin(INHIBITORY).to_numpy(), []


KINDS = (("excitatory", False), ("inhibitory", True))


def ids_of(path: Path, column: pd.Series) -> np.ndarray:
    """Integers, or text, that name neurons; an integer in a floating-point number would have lost digits.

    Raises:
        BadInput: one is missing, or is not such.
    """
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    if column.isna().any():
        row = int(np.flatnonzero(column.isna())[0])
        raise BadInput(f"{path}: found no neuron in column {column.name}, row {row}, expected one in each")
    if pd.api.types.is_float_dtype(column):
        expected = "expected integers or text (a floating-point number has no room for 64 bits)"
        raise BadInput(f"{path}: found numbers with decimals in column {column.name}, {expected}")
    if pd.api.types.is_integer_dtype(column):
        return column.to_numpy()
    return column.astype(str).str.strip().to_numpy(object)


def read_wiring(path: Path, columns: EdgeColumns) -> Wiring:
    """The connections that a table lists, one in a row; weights of rows with the same two neurons are added.

    The neurons of a population are in the order of their ids. Those without a connection to others, which have no
    sign, count as excitatory.

    Raises:
        BadInput: what is in the file is no such table, or breaks Dale's law.
    """
    table = read_table(path)
    pre, post = (
        column_of(path, table, *of) for of in ((columns.pre_column, PRE, "pre"), (columns.post_column, POST, "post"))
    )
    if pre is None or post is None:
        missing = "pre" if pre is None else "post"
        raise BadInput(f"{path}: found columns {columns_of(table)}, expected {missing}, or --{missing}_column")
    weight = column_of(path, table, columns.weight_column, WEIGHT, "weight")
    sign = column_of(path, table, columns.sign_column, SIGN, "sign")
    w = np.ones(len(table)) if weight is None else numbers_of(path, weight)
    report = []
    if sign is None and columns.inh_types:
        found = f"found columns {columns_of(table)} in {path}"
        raise BadInput(f"argument --inh_types: {found}, expected --sign_column, the column of these types")
    if sign is not None:
        inhibits, report = inhibitory_by(path, sign, columns.inh_types)
        if (w < 0).any() and (contradict := (w != 0) & ((w < 0) != inhibits)).any():
            row = int(np.flatnonzero(contradict)[0])
            found = f"found weight {w[row]:g} and '{sign.iloc[row]}' in row {row}"
            raise BadInput(f"{path}: {found}, expected signs that agree")
    elif (w < 0).any():
        inhibits = w < 0
    else:
        found = f"found columns {columns_of(table)}, and no negative weight"
        raise BadInput(f"{path}: {found}, expected signs: a column sign or type (or --sign_column), or signed weights")
    ends = [ids_of(path, column) for column in (pre, post)]
    if len({end.dtype == object for end in ends}) > 1:
        # Text such as 01 would be another neuron than the integer that it became in the other column.
        found = f"found integers in one of the columns {pre.name} and {post.name}, and text in the other"
        raise BadInput(f"{path}: {found}, expected one of them in both")
    kind = np.result_type(*ends)
    ends = [end.astype(object if kind.kind == "f" else kind) for end in ends]  # of int64 and uint64, NumPy makes floats
    edges = pd.DataFrame(dict(pre=ends[0], post=ends[1], w=np.abs(w), inhibits=inhibits))
    if n_zero := int((edges.w == 0).sum()):
        report = [*report, f"{n_zero} rows of weight 0 left out"]
        edges = edges[edges.w > 0]
    if not len(edges):
        raise BadInput(f"{path}: found only weights of 0, expected others too")
    return wiring_of(path, edges, columns.mixed_signs, weight is not None, report)


def wiring_of(path: Path, edges: pd.DataFrame, mixed_signs: str, weighted: bool, report: Sequence[str]) -> Wiring:
    """The wiring of connections {"pre", "post", "w", "inhibits"}.

    Raises:
        BadInput: they break Dale's law, or one of the populations is empty.
    """
    inhibitory, lines = dale(path, edges, mixed_signs)
    neurons = np.unique(pd.concat([edges.pre, edges.post]).to_numpy())
    is_inh = np.isin(neurons, inhibitory)
    ids = np.concatenate([neurons[~is_inh], neurons[is_inh]])
    n_exc, n_inh = int((~is_inh).sum()), int(is_inh.sum())
    if not n_exc or not n_inh:
        none = "excitatory" if not n_exc else "inhibitory"
        raise BadInput(f"{path}: found no {none} neuron among {len(ids)}, expected both kinds")
    number = pd.Series(np.arange(len(ids)), index=ids)
    pairs = pd.DataFrame(
        dict(pre=number.loc[edges.pre].to_numpy(), post=number.loc[edges.post].to_numpy(), w=edges.w.to_numpy())
    )
    summed = pairs.groupby(["pre", "post"], sort=True).w.sum().reset_index()
    connections, weights = {}, {}
    for name, start, stop in (("exc", 0, n_exc), ("inh", n_exc, len(ids))):
        part = summed[(summed.pre >= start) & (summed.pre < stop)]
        indptr = np.searchsorted(part.pre, np.arange(start, stop + 1)).astype(np.int32)
        connections[name], weights[name] = (indptr, part.post.to_numpy(np.int32)), part.w.to_numpy()
    if not len(weights["exc"]):
        raise BadInput(f"{path}: found no connection of an excitatory neuron, expected some")
    silent = len(ids) - len(np.unique(edges.pre))
    counts = f"{n_exc} excitatory and {n_inh} inhibitory neurons, {len(summed)} connections"
    again, zero = len(pairs) - len(summed), 0 in ids and 1 not in ids
    lines += [f"WARNING: neuron 0 has {int(((edges.pre == 0) | (edges.post == 0)).sum())} rows (no neuron?)"] * zero
    others = {
        f"{again} rows added to others with the same two neurons": again * weighted,
        f"{again} rows with the same two neurons as others, which count once without weights": again * (not weighted),
        f"{int((summed.pre == summed.post).sum())} neurons connect to themselves": (summed.pre == summed.post).sum(),
        f"{silent} neurons without a connection to others count as excitatory": silent,
    }
    report = (f"{path}: {counts}", *report, *lines, *(line for line, n in others.items() if n))
    return Wiring(n_exc, n_inh, connections, weights if weighted else None, ids, report)


def dale(path: Path, edges: pd.DataFrame, mixed_signs: str) -> tuple[np.ndarray, list[str]]:
    """Ids of the inhibitory neurons, by Dale's law or by the majority of a neuron's weights, and what there is to say.

    A neuron whose weights of both signs are equal in sum is taken for excitatory.

    Raises:
        BadInput: neurons have connections of both signs, and no majority is asked for.
    """
    sums = edges.w.groupby([edges.pre, edges.inhibits]).sum().unstack(fill_value=0.0)
    inh, exc = (sums[inhibits] if inhibits in sums else 0 * sums.iloc[:, 0] for inhibits in (True, False))
    mixed = sums.index[(inh > 0) & (exc > 0)]
    if len(mixed) and mixed_signs == "refuse":
        named = ", ".join(map(str, mixed[:3])) + (f" and {len(mixed) - 3} more" if len(mixed) > 3 else "")
        expected = "expected one sign for each (Dale's law), or --mixed_signs majority"
        raise BadInput(f"{path}: found neurons with connections of both signs ({named}), {expected}")
    line = f"{len(mixed)} of {len(sums)} neurons have both signs, and that of the larger sum; their weights add up"
    return sums.index[inh > exc].to_numpy(), [line] * bool(len(mixed))


# ---- A control ------------------------------------------------------------------------------------------------------


def shuffled(wiring: Wiring, seed: int) -> Wiring:
    """The wiring with its connections swapped at random: a-b and c-d become a-d and c-b (Maslov & Sneppen 2002).

    Every neuron keeps its numbers of connections to others, and from each population; a weight stays with its
    presynaptic neuron. No pair is connected twice and no neuron newly to itself: swaps that would do that are left out.
    """
    rng, n_rec = np.random.default_rng(seed), wiring.n_exc + wiring.n_inh
    connections, weights, kept = {}, dict(wiring.weights or {}), []
    for name, first in (("exc", 0), ("inh", wiring.n_exc)):
        indptr, post = (np.asarray(x) for x in wiring.connections[name])
        pre = np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))
        new = swapped(pre + first, post.astype(np.int64), n_rec, rng)
        by_chance = np.diff(indptr)[pre] * np.bincount(post, minlength=n_rec)[post] / max(len(post), 1)
        n_kept = np.isin(pre * n_rec + new, pre * n_rec + post).sum()
        kept.append((n_kept, np.minimum(by_chance, 1).sum(), len(post)))
        order = np.lexsort((new, pre))
        connections[name] = indptr, new[order].astype(np.int32)
        if wiring.weights is not None:
            weights[name] = wiring.weights[name][order]
    n_kept, n_chance, n = np.sum(kept, axis=0)
    line = f"shuffled: {n_kept / n:.1%} of the connections are where there was one before, about {n_chance / n:.1%} by "
    line += "chance in networks of these degrees"
    if n_kept - n_chance > 0.5 * (n - n_chance):
        line += "; too few can be swapped for a control"
    return dataclasses.replace(
        wiring, connections=connections, weights=weights if wiring.weights else None, report=(*wiring.report, line)
    )


def swapped(pre: np.ndarray, post: np.ndarray, n_rec: int, rng: np.random.Generator) -> np.ndarray:
    """The targets of the connections after SWAPS rounds, in each of which they are paired at random."""
    post = post.copy()
    n_pair = len(post) // 2
    for _ in range(SWAPS):
        a, b = rng.permutation(len(post))[: 2 * n_pair].reshape(2, n_pair)
        taken = np.sort(pre * n_rec + post)
        new = np.stack([pre[a] * n_rec + post[b], pre[b] * n_rec + post[a]])
        place = np.minimum(np.searchsorted(taken, new), len(taken) - 1)
        allowed = (taken[place] != new).all(axis=0) & (pre[a] != post[b]) & (pre[b] != post[a])
        # An autapse stays, and of swaps in the same round that would make the same pair all but the first are left out.
        allowed &= (pre[a] != post[a]) & (pre[b] != post[b])
        a, b, new = a[allowed], b[allowed], new[:, allowed]
        _, first = np.unique(new.ravel(), return_index=True)
        alone = np.zeros(new.size, bool)
        alone[first] = True
        chosen = alone.reshape(new.shape).all(axis=0)
        post[a[chosen]], post[b[chosen]] = post[b[chosen]], post[a[chosen]]
    return post
