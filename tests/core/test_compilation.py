"""Compiled programs are kept between processes, where the user has not said otherwise."""

import os
import subprocess
import sys

import numpy as np
import pytest

from jaxal.core import compilation

PROGRAM = """
import jax, jax.numpy as jnp
from jaxal.core import compilation
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.endswith("cache_hits")))
print(compilation.keep())
jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8))).block_until_ready()
print(sum(hits))
inputs = []
def host(x):
    inputs.append(x.copy())
    return 2 * x
def ask(x, _):
    y = jax.experimental.io_callback(host, x, x, ordered=True)
    return jnp.cos(y), jnp.sum(y)
print(*(f"{x:.6f}" for x in jax.jit(lambda x: jax.lax.scan(ask, x, length=3))(jnp.arange(2.0))[1]), len(inputs))
print(sum(hits))
"""


def run(**variables):
    """(folder, programs taken from it, what the host was asked, programs taken now) of a fresh process."""
    settings = {"JAX_ENABLE_COMPILATION_CACHE": "true", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    environment = os.environ | settings
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)  # that of the session
    environment |= {name: str(value) for name, value in variables.items()}
    result = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    folder, hits, asked, more = result.stdout.splitlines()
    return folder, int(hits), asked, int(more)


def test_the_second_process_compiles_nothing_again(tmp_path):
    first, second = run(XDG_CACHE_HOME=tmp_path), run(XDG_CACHE_HOME=tmp_path)
    assert first[0] == second[0] and first[0].startswith(str(tmp_path / "jaxal"))
    assert first[1] == 0 and second[1] > 0


def test_a_program_that_calls_the_host_is_kept_and_calls_the_host_of_its_process(tmp_path):
    first, second = run(XDG_CACHE_HOME=tmp_path), run(XDG_CACHE_HOME=tmp_path)
    expected, x = [], np.arange(2.0)
    for _ in range(3):
        expected.append(f"{np.sum(2 * x):.6f}")
        x = np.cos(2 * x)
    assert first[2] == second[2] == " ".join([*expected, "3"])
    assert first[3] == 0 and second[3] > second[1]


def test_programs_longest_unused_go_first(tmp_path):
    for age, name in enumerate(("new-cache", "older-cache", "oldest-cache")):
        (tmp_path / name).write_bytes(bytes(1000))
        os.utime(tmp_path / name, (1e9 - 1000 * age, 1e9 - 1000 * age))
    for largest, kept in ((3000, 3), (2500, 2), (2000, 2), (10, 0)):
        compilation._make_room(tmp_path, largest)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["new-cache", "older-cache", "oldest-cache"][:kept]


def test_a_damaged_program_is_compiled_again(tmp_path):
    first = run(XDG_CACHE_HOME=tmp_path)
    for path in (tmp_path / "jaxal").rglob("*-cache"):
        path.write_bytes(path.read_bytes()[:100])
    assert run(XDG_CACHE_HOME=tmp_path)[2] == first[2]


@pytest.mark.parametrize(
    "settings, folder",
    [
        ({"JAX_ENABLE_COMPILATION_CACHE": "false"}, "None"),
        ({"JAX_COMPILATION_CACHE_DIR": os.devnull}, os.devnull),
        ({"XDG_CACHE_HOME": __file__}, "None"),  # no folder can be made there
        ({"XDG_CACHE_HOME": "", "HOME": os.devnull}, "None"),  # nor here
    ],
)
def test_the_users_settings_win(settings, folder):
    assert run(**settings)[0] == folder


@pytest.mark.slow
def test_kept_programs_are_loaded_without_a_word(tmp_path):
    """XLA's complaints about each of them fill a pipe that nobody reads, and the run stands still."""
    words = "import sys; from jaxal.cli.main import main; sys.argv[1:] = ['list']; main()"
    program = f"{words}; from jax_md import rigid_body; rigid_body.RigidBody"  # which compiles a hundred of them
    settings = {
        "JAX_ENABLE_COMPILATION_CACHE": "true",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TF_CPP_MIN_LOG_LEVEL": "1",  # what importing JAX sets, for the commands that a program starts, too
    }
    said = []
    for _ in range(2):
        command = [sys.executable, "-c", program]
        said.append(subprocess.run(command, env=os.environ | settings, capture_output=True, text=True))
    assert all(process.returncode == 0 for process in said)
    errors = [process.stderr for process in said]
    assert any(tmp_path.iterdir()) and not any("cpu_aot_loader" in error for error in errors), errors[-1][:500]
