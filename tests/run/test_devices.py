"""Many devices, many processes: the same results as on one device, each label asked for once, files written once."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from ase.build import molecule
from ase.io import read, write
from commands import SMALL, here
from run_example import metrics, model_arrays

from jaxal.core import devices
from jaxal.core.types import InputError
from jaxal.label.store.database import open_store

HERE = Path(__file__).parents[1]
WATER = """
system: {file: water.xyz}
potential: {name: bonds}
committee: {members: 2}
explore: {temperature: 600, walkers: 8}
gate: {name: threshold, limit: 0.0, every: 4, implausible: 50}
label: {initial: 4, batch: 3}
train: {steps: 4, initial_steps: 20, final_steps: 10, batch: 2, learning_rate: 0.01, holdout: 0.2}
stop: {labels: 64}
output: {checkpoint: 0, trajectory: 5}
precision: float64
"""


def environment(count: int, **more: str) -> dict[str, str]:
    flags = os.environ["XLA_FLAGS"].replace("device_count=1", f"device_count={count}")
    return os.environ | {"JAX_PLATFORMS": "cpu", "OMP_NUM_THREADS": "1", "XLA_FLAGS": flags} | more


def python(*arguments, count: int = 8, check: bool = True, **more: str):
    command = [sys.executable, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment(count, **more))
    assert not check or result.returncode == 0, result.stderr
    return result


def started(*arguments, count: int, errors: Path, cwd: Path | None = None, **more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "jaxal", *map(str, arguments)]
    with errors.open("w") as file:  # a pipe that nobody reads would fill up
        return subprocess.Popen(
            command, env=environment(count, **more), stdout=subprocess.DEVNULL, stderr=file, cwd=cwd
        )


def together(folder: Path, *arguments) -> list[tuple[int, str]]:
    """Exit status and standard error of two processes with four devices each that run a command together."""
    both, errors = pair(folder, *arguments)
    return [(process.wait(timeout=600), path.read_text()) for process, path in zip(both, errors, strict=True)]


def pair(folder: Path, *arguments) -> tuple[list[subprocess.Popen], list[Path]]:
    """Two processes with four devices each that run a command together, and where their standard errors go.

    Only the first stands in `folder`, the other sees none of its files.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    variables = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    errors = [folder / f"errors{index}" for index in range(2)]
    empty = folder / "elsewhere"
    empty.mkdir(exist_ok=True)
    both = [
        started(*arguments, "--distributed", count=4, errors=path, cwd=where, JAX_PROCESS_ID=str(index), **variables)
        for index, (path, where) in enumerate(zip(errors, (folder, empty), strict=True))
    ]
    return both, errors


def devices_of(directory: Path) -> int:
    return yaml.safe_load((directory / "config.yaml").read_text())["devices"]


def stored(directory: Path) -> int:
    store = open_store(directory / "labels.sqlite")
    count = sum(len(entry.task.numbers) > 1 for entry in store.all())  # isolated atoms are none of the budget
    store.close()
    return count


def assert_alike(actual: Path, expected: Path) -> None:
    """Two runs of the same labels in the same order, to float tolerance; each label paid for once."""
    for name, value in model_arrays(expected).items():
        got = model_arrays(actual)[name]
        if value.dtype.kind == "f":
            np.testing.assert_allclose(got, value, rtol=1e-7, atol=1e-9, err_msg=name)
        elif name == "header":
            mine, theirs = (json.loads(str(header)) for header in (got, value))
            assert mine["calibration"].pop("factor") == pytest.approx(theirs["calibration"].pop("factor"), rel=1e-5)
            assert mine == theirs
        else:
            np.testing.assert_array_equal(got, value, err_msg=name)
    assert len(metrics(actual)) == len(metrics(expected))
    for line, other in zip(metrics(actual), metrics(expected), strict=True):
        assert line == {k: pytest.approx(v, rel=1e-5) if isinstance(v, float) else v for k, v in other.items()}
    frames = [read(directory / "training.xyz", ":") for directory in (actual, expected)]
    for frame, other in zip(*frames, strict=True):
        np.testing.assert_allclose(frame.positions, other.positions, atol=1e-7)
    assert stored(actual) == stored(expected) == 64 + 16  # a quarter more for the bound


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("devices")
    write(folder / "water.xyz", molecule("H2O"), format="extxyz")
    (folder / "config.yaml").write_text(WATER)
    return folder / "config.yaml"


@pytest.fixture(scope="module")
def alone(config) -> Path:
    """The run on one device."""
    out = config.parent / "alone"
    result = here("run", config, "--part", SMALL, "--dir", out)
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="module")
def eight(config) -> Path:
    """The run on eight devices of one process."""
    out = config.parent / "eight"
    python("-m", "jaxal", "run", config, "--part", SMALL, "--dir", out)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("segments", [[], ["all"]], ids=["one", "all"])
def test_committee_training_and_segment_on_every_mesh_are_those_of_one_device(segments):
    """Committee and training on three meshes, segments on one of them or on all over which they divide."""
    result = python(HERE / "devices_program.py", *segments, JAX_ENABLE_X64="1")
    assert result.stdout.split("\n")[:3] == ["8x1 alike", "4x2 alike", "2x4 alike"]


@pytest.mark.slow
def test_what_drives_walkers_on_every_mesh_is_what_does_on_one_device():
    """Each walker follows a member, which may be on another device, and a bias that learns of it; a bandit chooses."""
    result = python(HERE / "devices_program.py", "seeking", JAX_ENABLE_X64="1")
    assert result.stdout.split("\n")[:2] == ["4x2 alike", "2x4 alike"]


@pytest.mark.slow
def test_coupled_walkers_move_on_a_mesh_as_on_one_device():
    python(HERE / "devices_program.py", "coupled", JAX_ENABLE_X64="1")


@pytest.mark.slow
def test_devices_wait_for_a_label_as_long_as_they_are_told_to():
    impatient = python(HERE / "devices_wait.py", 1, 6, count=2, check=False)
    assert impatient.returncode == -signal.SIGABRT  # that is what the limits are for
    assert python(HERE / "devices_wait.py", 0, 6, count=2).stdout.split() == ["20.0", "1"]


@pytest.mark.slow
def test_devices_wait_longer_than_xla_does_by_itself():
    assert python(HERE / "devices_wait.py", 0, 60, count=2).stdout.split() == ["20.0", "1"]


@pytest.mark.slow
def test_a_run_on_eight_devices_is_the_run_on_one(alone, eight):
    assert devices_of(alone) == 1 and devices_of(eight) == 8
    assert_alike(eight, alone)


@pytest.mark.slow
def test_a_killed_run_on_eight_devices_resumes_bit_for_bit(config, eight):
    killed = config.parent / "killed"
    process = started("run", config, "--part", SMALL, "--dir", killed, count=8, errors=config.parent / "errors")
    end, path = time.monotonic() + 300, killed / "metrics.jsonl"
    while time.monotonic() < end and process.poll() is None:
        if path.exists() and path.read_text().count("\n") >= 20:
            break
        time.sleep(0.02)
    assert process.poll() is None, "the run was over before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    few = python("-m", "jaxal", "resume", killed, count=4, check=False)
    assert few.returncode == 2 and "devices: 8 is too large, there are 4; give 1, 2, 4" in few.stderr
    python("-m", "jaxal", "resume", killed)
    expected, actual = model_arrays(eight), model_arrays(killed)
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)
    for name in ("training.xyz", "trajectory.xyz"):
        assert (killed / name).read_bytes() == (eight / name).read_bytes(), name
    assert metrics(killed) == metrics(eight) and stored(killed) == 64 + 16


@pytest.mark.slow
def test_two_processes_run_as_one(config, alone):
    out = config.parent / "two"
    for status, error in together(config.parent, "run", config.name, "--part", SMALL, "--dir", out.name):
        assert status == 0, error
    assert not any((config.parent / "elsewhere").iterdir())
    assert devices_of(out) == 8
    assert_alike(out, alone)
    assert {path.name for path in out.iterdir()} == {path.name for path in alone.iterdir()}


@pytest.mark.slow
def test_two_processes_pool_their_labels_as_one(config):
    """With a lag, so that labels come in the same order: the run on two processes is the run on one device."""
    pooled = ("label.mode=pooled", "label.lag=1", "label.queue=16", "label.workers=1")
    one_device = config.parent / "pooled alone"
    python("-m", "jaxal", "run", config, "--part", SMALL, *pooled, "--dir", one_device, count=1)
    for status, error in together(
        config.parent, "run", config.name, "--part", SMALL, *pooled, "--dir", "pooled by two"
    ):
        assert status == 0, error
    assert_alike(config.parent / "pooled by two", one_device)


@pytest.mark.slow
def test_two_killed_processes_resume_as_one(config, alone):
    out = config.parent / "two killed"
    both, _ = pair(config.parent, "run", config.name, "--part", SMALL, "--dir", out.name)
    end, path = time.monotonic() + 300, out / "metrics.jsonl"
    while time.monotonic() < end and not (path.exists() and path.read_text().count("\n") >= 20):
        time.sleep(0.02)
    for process in both:
        assert process.poll() is None, "the run was over before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    for status, error in together(config.parent, "resume", out.name):
        assert status == 0, error
    assert_alike(out, alone)
    # both are told, in one line, what the first one finds
    for status, error in together(config.parent, "run", config.name, "--part", SMALL, "--dir", out.name):
        assert status == 2 and "already holds a run" in error and "Traceback" not in error, error


@pytest.mark.parametrize(
    "field, message",
    [
        ("devices=2", "devices: 2 is too large, there is 1; give 1"),
        ("devices=0", "devices: 0 is too small; give at least 1"),
        ("devices=all", "devices: all does not fit; give auto or a whole number"),
    ],
)
def test_a_number_of_devices_that_cannot_be_is_told_in_one_line(config, tmp_path, field, message):
    result = here("run", config, "--part", SMALL, field, "--dir", tmp_path / "out")
    assert result.returncode == 2 and message in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_processes_that_nobody_told_who_they_are_are_told_how(config, tmp_path):
    result = python(
        "-m", "jaxal", "run", config, "--part", SMALL, "--distributed", "--dir", tmp_path, count=1, check=False
    )
    assert result.returncode == 2 and "JAX_COORDINATOR_ADDRESS" in result.stderr and "Traceback" not in result.stderr


def test_one_device_needs_no_mesh():
    assert devices.number("auto", 3, 2) == 1 and devices.mesh(1, 2) is None
    with pytest.raises(InputError, match="devices: 4 is too large"):
        devices.number(4, 4, 1)
    tree = {"a": np.ones(2)}
    assert devices.laid(None, None, tree) is tree and devices.whole(tree) is tree


def test_a_cpu_has_devices_for_its_cores_and_for_a_run_that_goes_on():
    program = "from jaxal.core import devices; devices.prepare({}); import jax; print(jax.device_count())"
    cores = min(len(os.sched_getaffinity(0)), devices.CORES)
    for least, expected in ((1, cores), (6, 6)):
        more = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
        words = [sys.executable, "-c", program.format(least)]
        result = subprocess.run(words, capture_output=True, text=True, env=more, check=True)
        assert int(result.stdout) == expected
    assert python("-c", program.format(6), count=3).stdout.split() == ["3"], "what is asked for by hand stands"


def test_an_xla_that_cannot_be_told_to_wait_is_used_all_the_same():
    program = (
        "from jaxal.core import devices; devices.LIMITS += ('xla_no_such_flag',); devices.KNOWN = ();"
        "devices.prepare(2); import jax; print(jax.device_count())"
    )
    environ = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environ)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= 2 and "cannot be told to wait longer" in result.stderr


@pytest.mark.slow
def test_a_training_set_that_outgrows_its_room_grows_on_eight_devices_too(config):
    small = "from jaxal.run import assembly; assembly.LARGEST_BUFFER = 16; "
    small += "from jaxal.cli.main import main; raise SystemExit(main())"
    one_device, eight_devices = config.parent / "grown on one", config.parent / "grown on eight"
    for out, count in ((one_device, 1), (eight_devices, 8)):
        result = python("-c", small, "run", config, "--part", SMALL, "--dir", out, count=count)
        assert result.stderr.count("more labels than rows: mended, replaying") == 2, result.stderr  # 16 to 64
    assert_alike(eight_devices, one_device)
