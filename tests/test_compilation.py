"""Compiled programs are kept between processes, where the user has not said otherwise."""

import os
import subprocess
import sys

import pytest

PROGRAM = """
import jax, jax.numpy as jnp
from jaxal import compilation
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.endswith("cache_hits")))
print(compilation.keep())
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))).block_until_ready()
print(sum(hits))
"""


def run(**given):
    """(folder, programs taken from it) of a fresh process."""
    settings = {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = os.environ | settings | {name: str(value) for name, value in given.items()}
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder, hits = done.stdout.split()
    return folder, int(hits)


def test_the_second_process_compiles_nothing_again(tmp_path):
    first, second = run(XDG_CACHE_HOME=tmp_path), run(XDG_CACHE_HOME=tmp_path)
    assert first[0] == second[0] and first[0].startswith(str(tmp_path / "jaxal"))
    assert first[1] == 0 and second[1] > 0


@pytest.mark.parametrize(
    "settings, folder",
    [
        ({"JAX_ENABLE_COMPILATION_CACHE": "false"}, "None"),
        ({"JAX_COMPILATION_CACHE_DIR": os.devnull}, os.devnull),
        ({"XDG_CACHE_HOME": __file__}, "None"),  # no folder can be made there
    ],
)
def test_the_users_settings_win(settings, folder):
    assert run(**settings)[0] == folder
