"""All tests run on the CPU; a test that needs 64 bits asks for the fixture `double`, one of faults for `faults`.

Most of their time is compilation, so LLVM optimizes little here: a third less time, the same programs. Who sets
XLA_FLAGS tests what LLVM makes of them as users get it.
"""

import importlib
import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault(  # also in commands that tests start
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=1"
    " --xla_llvm_disable_expensive_passes=true",
)
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")  # what is tested is compiled, and nobody's home is used

import jax
import pytest

from jaxal import registry

MAPS = Path("/proc/self/maps")
MANY = 20_000  # of the 65,530 mappings that Linux gives a process; one file of tests can take 15,000


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


@pytest.fixture
def faults(monkeypatch):
    """The labeler that misbehaves (`label_faults`), registered for one test only."""
    others = {name: part for name, part in registry._table["labeler"].items() if name != "faulty"}
    monkeypatch.setitem(registry._table, "labeler", others)
    sys.modules.pop("label_faults", None)
    return importlib.import_module("label_faults")
