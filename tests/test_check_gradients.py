"""tests/check_gradients.py: that it finds the rules right, and that it says what is wrong where they are not."""

import csv
import itertools
import json
import re
import sys

import check_gradients
import pytest
import scripts
from scripts import result_of

import engines
import learning_rules
from learning_rules import RULES

SMALL = [*scripts.SMALL_NETWORK, "--batch_size", "4"]


@pytest.mark.newest
def test_check_of_the_gradients(tmp_path):
    """By a subprocess: a row a rule and block; native rules agree with their oracles, brainscale's diag does not."""
    arguments = [*SMALL, "--conn_method", "rand", "--n_rec", 40]
    result, folder = result_of(scripts.run(check_gradients, *arguments, "--output", "run", cwd=tmp_path), tmp_path)
    assert {path.name for path in folder.iterdir()} == {"config.json", "result.json", "check.csv", "check.png"}
    assert result["failures"] == []
    with open(folder / "check.csv", newline="") as file:
        rows = {(row["method"], row["engine"], row["block"]): row for row in csv.DictReader(file)}
    packages = [package for package in engines.PACKAGES if not engines.why_not(package)]
    rules = [("bptt", "native"), *itertools.product(("diag", "expsm_diag"), ("native", *packages))]
    assert set(rows) == {(*rule, block) for rule in rules for block in ("in", "exc", "inh", "out")}
    for (method, engine, block), row in rows.items():
        assert float(row["seconds"]) > 0
        assert float(row["memory_MB"]) > 0
        if engine == "native":
            assert float(row["error_oracle"]) < 1e-5
        if method != "bptt" and engine == "native" and block != "out":
            assert abs(float(row["cosine_bptt"])) < 0.999
    if "brainscale" in packages:
        assert abs(float(rows["diag", "brainscale", "in"]["cosine_oracle"])) < 0.5
        assert float(rows["expsm_diag", "brainscale", "in"]["cosine_oracle"]) > 0.9999
    if "braintrace" in packages:
        assert float(rows["diag", "braintrace", "in"]["error_oracle"]) < 1e-5
        assert float(rows["expsm_diag", "braintrace", "in"]["cosine_oracle"]) > 0.9999


def without_packages(monkeypatch):
    for package in engines.PACKAGES:
        monkeypatch.setitem(sys.modules, package, None)


def test_without_the_packages_it_says_so_and_checks_the_rest(monkeypatch, tmp_path, capsys):
    without_packages(monkeypatch)
    assert scripts.exit_status(check_gradients, monkeypatch, tmp_path, [*SMALL, "--output", "run"]) == 0
    output = capsys.readouterr().out
    assert "pip install brainscale==0.1.0" in output
    assert "requirements-newest.txt" in output
    rows = json.loads((tmp_path / "run" / "result.json").read_text())["rows"]
    assert {row["engine"] for row in rows} == {"native"}


def wrong_diag(*args, **kwargs):
    loss, gradient, accuracy, rates = learning_rules.diag(*args, **kwargs)
    return learning_rules.BatchGradient(loss, gradient | {"exc": 1.001 * gradient["exc"]}, accuracy, rates)


@pytest.mark.parametrize(
    ("arguments", "rule", "texts"),
    [
        (["--ff_scale", 0], learning_rules.diag, ["silent", "--ff_scale"]),
        (["--rec_scale", 0, "--tau_out", 0.01], learning_rules.diag, ["bptt and diag give the same gradient"]),
        ([], wrong_diag, ["diag, weights exc", "1.0e-03", "1e-05"]),
    ],
)
def test_check_fails_and_says_why(arguments, rule, texts, monkeypatch, tmp_path, capsys):
    without_packages(monkeypatch)
    monkeypatch.setitem(RULES, "diag", learning_rules.Rule(rule, "D-RTRL", RULES["diag"].arguments))
    arguments = [*SMALL, *arguments, "--output", "run"]
    assert scripts.exit_status(check_gradients, monkeypatch, tmp_path, arguments) == 1
    failures = json.loads((tmp_path / "run" / "result.json").read_text())["failures"]
    assert any(all(text in failure for text in texts) for failure in failures)
    assert all(f"FAILED: {failure}" in capsys.readouterr().out for failure in failures[:1])


def test_a_rule_without_an_oracle_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(RULES, "new", RULES["bptt"])
    errors = scripts.refused(check_gradients, monkeypatch, capsys, tmp_path, SMALL)
    assert "rule new: found no oracle, expected one in ORACLES" in errors


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--batch_size", 0], ["--batch_size", "'0'", ">= 1"]),
        (["--method", "diag"], ["unrecognized arguments", "--method diag"]),
        (["--n_cue", 2], ["--n_cue", "2", "odd"]),
    ],
)
def test_bad_arguments_get_one_line(arguments, texts, monkeypatch, tmp_path, capsys):
    errors = scripts.refused(check_gradients, monkeypatch, capsys, tmp_path, arguments)
    assert all(text in errors for text in texts)


def test_help_explains_every_argument(capsys):
    with pytest.raises(SystemExit):
        check_gradients.main(["--help"])
    text = capsys.readouterr().out
    assert text.count("python tests/check_gradients.py") == 2
    assert all(re.search(rf"--{argument}\s", text) for argument in vars(check_gradients.parse_args([])))
