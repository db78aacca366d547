import os
from importlib.metadata import version
from pathlib import Path

# Of the scripts that are started, too: two devices where there is one core; as most of the time of a test is
# compilation, no optimisation by LLVM, and XLA's older code of fused operations, which compiles in half the time and
# changes numbers by rounding alone; and what was compiled once is kept.
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")
QUICK = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if version("jaxlib").startswith("0.9."):  # that of requirements.txt; newer ones may lack the option, and end at it
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{QUICK} {os.environ.get('XLA_FLAGS', '')}"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache/differentiable-brain-modeling-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")

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
