"""All tests run on the CPU; a test that needs 64 bits asks for the fixture `double`."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=1")  # also in a command that a test starts
os.environ.setdefault("JAX_ENABLE_COMPILATION_CACHE", "false")  # what is tested is compiled, and nobody's home is used

import jax
import pytest


@pytest.fixture
def double():
    """64-bit arrays within a test."""
    with jax.enable_x64(True):
        yield
