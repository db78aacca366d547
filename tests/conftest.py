import contextlib
import gc
import os
from importlib.metadata import version
from pathlib import Path

# Of the scripts that are started, too: two devices where there is one core; as most of the time of a test is
# compilation, XLA's older code of fused operations, which compiles in half the time and changes numbers by rounding
# alone, and no optimisation but in files whose tests run longer than they compile; and what was compiled once is kept.
os.environ["JAX_NUM_CPU_DEVICES"] = "2"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
QUICK = "--xla_backend_optimization_level=1 --xla_cpu_parallel_codegen_split_count=1"
if version("jaxlib").startswith("0.9."):  # that of requirements.txt; newer ones may lack the option, and end at it
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{QUICK} {os.environ.get('XLA_FLAGS', '')}"
found, started = os.environ.get("PYTHONPATH", "").split(os.pathsep), str(Path(__file__).parent / "started")
os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys([*filter(None, found), started]))
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path.home() / ".cache/differentiable-brain-modeling-tests"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")

import runs

import brainstate
import brainunit as u
import jax
import matplotlib.pyplot as plt
import pytest

gc.set_threshold(50_000, 20, 50)  # what is traced makes many objects, nearly all of which stay; see started/

LAYOUT_ENGINE, PLOT_STYLE = plt.Figure.get_layout_engine, runs.use_plot_style
LONGEST = (
    "test_reference",
    "test_processes",
    "test_ei_script",
    "test_online",
    "test_cases",
    "test_synchronisation",
    "test_teacher_forcing",
)  # minutes each, in a process of its own
RUNNING = ("test_reference", "test_cases", "test_gif_script")  # longer than they compile


def pytest_collection_modifyitems(items):
    """The longest files first, so that no process waits at the end for another."""
    order = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONGEST)))


def coarse_plot_style():
    PLOT_STYLE()
    plt.rcParams["savefig.dpi"] = 80


@pytest.fixture(scope="session", autouse=True)
def plot_style():
    """That of the scripts, of fewer pixels and without a search for a layout, which is half of the time of a figure."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(runs, "use_plot_style", coarse_plot_style)
        monkeypatch.setattr(plt.Figure, "get_layout_engine", lambda figure: None)
        runs.use_plot_style()
        yield


@pytest.fixture
def layouts(monkeypatch):
    """With that search, which warns where there is no place."""
    monkeypatch.setattr(plt.Figure, "get_layout_engine", LAYOUT_ENGINE)


@contextlib.contextmanager
def optimising():
    """Programs are optimised, also in processes that are started."""
    before = jax.config.read("jax_disable_most_optimizations")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
        jax.config.update("jax_disable_most_optimizations", False)
        try:
            yield
        finally:
            jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module", autouse=True)
def optimised_file(request):
    with optimising() if request.path.stem in RUNNING else contextlib.nullcontext():
        yield


@pytest.fixture
def optimised():
    """Of a test that runs longer than it compiles, in another file."""
    with optimising():
        yield


@pytest.fixture
def x64():
    """Run the test in float64."""
    with jax.enable_x64(True), brainstate.environ.context(precision=64):
        yield


@pytest.fixture
def dt():
    with brainstate.environ.context(dt=1.0 * u.ms):
        yield
