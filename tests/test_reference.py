"""The results in tests/reference/: small variants of all, run again, agree with those there, and its README shows them.

Another CPU rounds otherwise, and a network of spiking neurons makes of that other spikes, so that numbers agree within
tolerances: of a CSV column, or of rows whose `quantity` is named, ("relative", x), ("absolute", x) or ("factor", x).
With one device instead of two, which rounds otherwise, they differed by a third of these or less.
"""

import csv
import importlib.util
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import scripts

REFERENCE = Path(__file__).resolve().parent / "reference"
ITEMS = ("fits", "recording", "hh_length", "hh_methods", "gif_methods", "equal_budget", "as_typed", "training")
ITEMS += ("groups", "figure3", "behaviour", "multi_scale", "memory", "processes")
# Rows are found again by these columns.
KEYS = ("fit", "length_ms", "neuron", "method", "conn_method", "n_rec", "seed", "n_step", "n_processes")
KEYS += ("run", "quantity", "when", "population", "at", "constants", "variant")
TOLERANCES: dict[str, dict[str, tuple[str, float]]] = {
    "fits": {"loss": ("factor", 10), "worst_error": ("absolute", 0.002), "starts_found": ("absolute", 6)},
    "recording": {
        "md_star_4ms": ("absolute", 0.35),  # of 8 held-out spikes a sweep
        "variance_explained": ("absolute", 0.15),
        "variance_explained_forced": ("absolute", 0.05),
        "starts_found": ("absolute", 1),
    },
    "hh_length": {"spikes": ("absolute", 0), "found": ("absolute", 2), "n": ("absolute", 0)},
    "hh_methods": {"loss": ("factor", 10), "recovered": ("absolute", 0), "n_gradients": ("relative", 0.3)},
    "gif_methods": {"loss": ("factor", 3), "n_gradients": ("relative", 0.3)},
    "equal_budget": {"loss": ("factor", 10), "recovered": ("absolute", 0), "n_gradients": ("relative", 0.3)},
    **{
        name: {
            "heldout_accuracy": ("absolute", 0.1),
            "updates": ("absolute", 0),
            **{f"{period}_{who}_Hz": ("relative", 0.15) for period in ("cues", "recall") for who in ("exc", "inh")},
        }
        for name in ("as_typed", "training")
    },
    "groups": {name: ("absolute", 0.05) for name in ("in", "cue inputs", "exc", "inh")},
    "figure3": {
        "accuracy": ("absolute", 0.1),
        "within": ("absolute", 0.05),
        "mean": ("relative", 0.05),
        "median": ("relative", 0.1),
        "sd": ("relative", 0.05),
    },
    "behaviour": {
        "slope": ("relative", 0.3),
        "psychometric": ("absolute", 0.2),
        "delay": ("absolute", 0.1),
        "silenced": ("absolute", 0.1),
    },
    "multi_scale": {
        "heldout_accuracy": ("absolute", 0.1),
        "updates": ("absolute", 0),
        "fading": ("absolute", 0.01),
        "cues_exc_Hz": ("relative", 0.15),
        "delay_inh_Hz": ("relative", 0.15),
        "delay_of_500_ms": ("absolute", 0.1),
        "without_adaptation": ("absolute", 0.15),
        "without_recurrent inh": ("absolute", 0.15),
    },
    "memory": {"program_MB": ("relative", 0.2)},
    "processes": {"off, 64 bits": ("absolute", 1e-12)},
}


def rows_of(folder: Path, item: str) -> dict[tuple, dict[str, float]]:
    """{keys: {quantity: value}} of the numbers of an item that have a tolerance."""
    rows, names = {}, TOLERANCES[item]
    with open(folder / f"{item}.csv", newline="") as file:
        for row in csv.DictReader(file):
            numbers = {row["quantity"]: row["value"]} if "quantity" in row else row
            key = tuple(row[name] for name in KEYS if name in row)
            rows[key] = {name: float(x) for name, x in numbers.items() if name in names and x}
    return rows


def agree(value: float, expected: float, tolerance: tuple[str, float]) -> bool:
    """Whether they do, within a tolerance as in `TOLERANCES`."""
    kind, x = tolerance
    if kind == "factor":
        return expected / x <= value <= expected * x
    return abs(value - expected) <= x * (abs(expected) if kind == "relative" else 1)


@pytest.fixture(scope="module")
def make():
    """make.py, whose scripts run in this process, which saves that they are started."""
    spec = importlib.util.spec_from_file_location("make", REFERENCE / "make.py")
    module = importlib.util.module_from_spec(spec)

    def start(command: Sequence[str]) -> int:
        done = scripts.done_alone(scripts.import_script(Path(command[0]).stem), REFERENCE.parents[1], *command[1:])
        assert done.returncode == 0, done.stderr
        return done.returncode

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(sys.modules, "make", module)
        monkeypatch.setattr(sys, "path", [*sys.path])
        spec.loader.exec_module(module)
        monkeypatch.setattr(module, "start", start)
        monkeypatch.chdir(REFERENCE.parents[1])
        yield lambda *arguments: module.main(list(map(str, arguments)))


@pytest.fixture(scope="module")
def made(make, tmp_path_factory):
    """Folder of the small variants, all run again."""
    folder = tmp_path_factory.mktemp("reference")
    make("all", "--laptop", "--output", folder, "--runs", folder / "runs")
    return folder


@pytest.mark.parametrize("item", ITEMS)
def test_small_variant_gives_what_is_kept(item, made):
    expected, again = rows_of(REFERENCE / "laptop", item), rows_of(made, item)
    assert expected.keys() == again.keys()
    compared, apart = set(), []
    for key, values in expected.items():
        for name, value in values.items():
            compared.add(name)
            if not agree(again[key][name], value, TOLERANCES[item][name]):
                apart.append((key, name, value, again[key][name]))
    assert not apart
    assert compared == TOLERANCES[item].keys()


def test_small_variants_learn(made):
    accuracy = {key: values["heldout_accuracy"] for key, values in rows_of(made, "training").items()}
    assert max(accuracy.values()) > 0.8
    assert len(set(accuracy.values())) == 3
    silenced = {key[-1]: values for key, values in rows_of(made, "behaviour").items() if "silenced" in key}
    assert silenced["nothing"] != silenced["adaptation"]


@pytest.mark.parametrize("item", ITEMS)
@pytest.mark.parametrize("variant", [".", "laptop"])
def test_results_say_what_made_them(item, variant):
    made_by = json.loads((REFERENCE / variant / f"{item}.json").read_text())
    assert f"make.py {item}" in made_by["command"]
    assert made_by["date"] >= "2026"
    assert made_by["packages"]["jax"]
    assert all(run["date"] and run["devices"] for run in made_by["runs"])
    assert made_by["runs"] or item in ("hh_length", "groups", "memory", "processes")
    assert rows_of(REFERENCE / variant, item)


@pytest.mark.parametrize("item", ITEMS)
def test_readme_has_the_tables_and_figures_that_are_kept(item):
    readme = (REFERENCE / "README.md").read_text()
    assert (REFERENCE / f"{item}.md").read_text() in readme
    assert all(f"]({path.name})" in readme for path in REFERENCE.glob(f"{item}*.png"))


def test_readme_is_what_make_writes(make, tmp_path):
    files = [path for path in REFERENCE.iterdir() if path.suffix in (".md", ".png")]
    for path in files:
        shutil.copyfile(path, tmp_path / path.name)
    make("readme", "--output", tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {p.name: p.read_bytes() for p in files}


def test_results_are_small():
    assert sum(path.stat().st_size for path in REFERENCE.rglob("*") if path.is_file()) < 2e6
