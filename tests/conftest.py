import os

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")  # of the scripts that are started, too, and where there is one core

import runs

import brainstate
import brainunit as u
import jax
import pytest

LONGEST = (
    "test_reference",
    "test_processes",
    "test_ei_script",
    "test_online",
    "test_cases",
)  # minutes each, in a process of its own


def pytest_collection_modifyitems(items):
    """The longest files first, so that no process waits at the end for another."""
    order = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONGEST)))


@pytest.fixture(scope="session", autouse=True)
def plot_style():
    runs.use_plot_style()


@pytest.fixture
def x64():
    """Run the test in float64."""
    with jax.enable_x64(True), brainstate.environ.context(precision=64):
        yield


@pytest.fixture
def dt():
    with brainstate.environ.context(dt=1.0 * u.ms):
        yield
