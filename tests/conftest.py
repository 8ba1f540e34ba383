"""All tests run on the CPU; a test that needs 64 bits asks for the fixture `double`, one of faults for `faults`."""

import importlib
import os
import sys

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=1")  # also in a command that a test starts
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")  # what is tested is compiled, and nobody's home is used

import jax
import pytest

from jaxal import registry


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
