import os

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")  # also where there is one core

import utils  # isort: skip  (first of the rest: it configures JAX)

import brainstate
import brainunit as u
import jax
import pytest


@pytest.fixture
def x64():
    """Run the test in float64."""
    with jax.enable_x64(True), brainstate.environ.context(precision=64):
        yield utils


@pytest.fixture
def dt():
    with brainstate.environ.context(dt=1.0 * u.ms):
        yield
