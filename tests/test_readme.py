"""The README and EXTENDING.md: that code runs as it stands there, and that the first is three screens at most."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import learning_rules

ROOT = Path(__file__).resolve().parents[1]
README, EXTENDING = ((ROOT / name).read_text() for name in ("README.md", "EXTENDING.md"))


@pytest.fixture(scope="module")
def names():
    """What the blocks of Python have defined, one after the other."""
    defined, rules = {}, dict(learning_rules.RULES)
    for block in re.findall(r"```python\n(.*?)```", EXTENDING, re.DOTALL):
        exec(block, defined)
    yield defined
    learning_rules.RULES.clear()
    learning_rules.RULES.update(rules)


def test_a_new_neuron_is_fitted(names):
    fit = names["fit"]
    assert fit.parameters == pytest.approx({"R": 30.0, "tau": 12.0}, rel=1e-3)
    assert fit.identifiability.undetermined == []
    V, _ = fit.predict(names["recordings"].Recording(np.full((500, 1), 0.5), dt=0.1))
    assert V[-1, 0] == pytest.approx(-70 + 30 * 0.5 * (1 - np.exp(-499 * 0.1 / 12)), abs=0.01)


def test_a_new_rule_is_an_argument_and_gives_a_gradient(names):
    args, script = names["args"], names["task_script"]
    rule, model = script.make_rule(args), names["model"]
    keys = names["jax"].random.split(names["jax"].random.key(1), 4)
    gradient, by_bptt = rule(model, keys).gradient, learning_rules.bptt(model, keys).gradient
    assert all((gradient[name] == jnp.sign(g)).all() for name, g in by_bptt.items())
    assert any((g != 0).any() for g in gradient.values())


def test_a_new_task_is_learned_from(names):
    assert names["loss"] > 0
    assert all(np.abs(g).max() > 0 for g in names["gradient"].values())
    task, jax = names["model"].task, names["jax"]
    labels, evidence = task.trials(jax.random.split(jax.random.key(0), 100))
    assert (labels != (evidence.sum(axis=1) > 0)).any()
    np.testing.assert_array_equal(labels, evidence[:, -1] > 0)


def test_three_screens():
    assert len(README.splitlines()) <= 180


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#:]+)\)", README + EXTENDING)
    assert len(links) >= 4
    assert all((ROOT / link).exists() for link in links)
