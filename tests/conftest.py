"""All tests run on the CPU; a test that needs 64 bits asks for the fixture `double`, one of faults for `faults`.

Most of their time is compilation, so XLA emits plain code here, in one piece and not optimized by LLVM: an eighth of
the time for the same programs. Who sets XLA_FLAGS tests what is made of them as users get it. What one process has
compiled the others of the session (workers of pytest-xdist, commands that tests start) take from a folder that is new
in each session and goes with it: what is tested is compiled, once, and nobody's home is used.
"""

import gc
import importlib
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
PLAIN = "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
if version("jaxlib").startswith("0.10."):  # later ones have one way only to make code, and end where this is asked for
    PLAIN += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", f"--xla_force_host_platform_device_count=1 {PLAIN}")  # also in commands of tests
PROGRAMS = None  # the folder of compiled programs, in the process that made it; workers have it from there
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    PROGRAMS = os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="jaxal-programs-")
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")  # s; others cost more to keep
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # XLA's complaints about each loaded program

gc.set_threshold(200_000, 50, 100)  # tracing makes millions of objects that live: looking through them takes a fifth

import jax  # noqa: E402
import pytest  # noqa: E402

from jaxal.core import registry  # noqa: E402
from jaxal.core.discovery import import_parts  # noqa: E402

MAPS = Path("/proc/self/maps")
MANY = 20_000  # of the 65,530 mappings that Linux gives a process; one file of tests can take 15,000


def pytest_unconfigure():
    if PROGRAMS:
        shutil.rmtree(PROGRAMS, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def mappings():
    """Drops compiled programs before they are too many: each keeps its own mappings, and the first too many crashes."""
    yield
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MANY:
        jax.clear_caches()


@pytest.fixture
def double():
    """64-bit arrays within a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def surfaces():
    """Closed surfaces (`closed_surfaces`), registered as potentials for one file of tests only."""
    import_parts("potential")  # what is first imported meanwhile would be forgotten with the rest
    with pytest.MonkeyPatch.context() as patch:
        there = importlib.import_module("closed_surfaces").POTENTIALS
        patch.setitem(registry._table, "potential", registry._table["potential"] | there)
        yield


@pytest.fixture
def faults(monkeypatch):
    """The labeler that misbehaves (`label_faults`), registered for one test only."""
    others = {name: part for name, part in registry._table["labeler"].items() if name != "faulty"}
    monkeypatch.setitem(registry._table, "labeler", others)
    sys.modules.pop("label_faults", None)
    return importlib.import_module("label_faults")
