"""Whole small runs: from a structure to a model, killed and resumed, in both precisions, with an oracle in JAX."""

import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from ase.build import bulk, molecule
from ase.io import read, write
from commands import SMALL, alone, here
from run_example import BRIEF, EQUIVARIANT, WATER, folder, jaxal, killed_after, metrics, model_arrays

from jaxal.label.store.database import open_store
from jaxal.run import initial_labels, lock, training_data

FULL = {"{name: bonds}": EQUIVARIANT}  # the model that users have
SHARED = pytest.param({"{members: 2}": "{kind: shared, members: 4, signs: 2}"} | FULL, marks=pytest.mark.slow)
DRIVEN = """label: {initial: 4, batch: 1}
bias:
  - {name: hyperactive, fraction: 0.1}
  - {name: restraint, variables: {name: difference, pairs: [[0, 1], [0, 2]]}, low: -0.1, high: 0.1, period: 0.05}
  - {name: metadynamics, variables: {name: distance, atoms: [0, 1]}, width: 0.05, pace: 3}
  - {name: opes, variables: {name: angle, atoms: [1, 0, 2]}, width: 5 deg, pace: 3}
  - {name: wall, variables: {name: distance, atoms: [0, 1]}, high: 1.3}
  - {name: confinement, radius: 1.0, squeezed: 0.8, period: 0.02}"""
BIASED = pytest.param({"label: {initial: 4, batch: 1}": DRIVEN}, id="biased", marks=pytest.mark.slow)


@pytest.mark.parametrize("instead", [{}, SHARED, BIASED])
def test_a_killed_run_resumes_bit_for_bit(tmp_path, instead):
    text = BRIEF
    for old, new in instead.items():
        text = text.replace(old, new)
    config = folder(tmp_path, text)
    jaxal("run", config, "--dir", tmp_path / "whole")  # in this process, the other in one of its own
    killed_after(config, tmp_path / "killed", 20)
    assert not (tmp_path / "killed" / "model.npz").exists()
    jaxal("resume", tmp_path / "killed", run=alone if instead else here)  # in the slow tests in a third
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    expected, actual = model_arrays(whole), model_arrays(killed)
    assert expected.keys() == actual.keys()
    for name in expected:
        np.testing.assert_array_equal(actual[name], expected[name], err_msg=name)
    for name in ("training.xyz", "trajectory.xyz"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert metrics(killed) == metrics(whole)
    # the labels that the replayed segment asked for again were not paid for again
    counts = []
    for directory in (whole, killed):
        store = open_store(directory / "labels.sqlite")
        counts.append([entry.row for entry in store.all()])
        store.close()
    bound = sum(line["labels"] for line in metrics(whole) if line["kind"] == "calibration")
    assert 6 <= bound <= 8 and len(counts[0]) == len(counts[1]) == 32 + bound + 2  # and the isolated atoms

    # and what is left is what the documentation says
    training = read(whole / "training.xyz", ":")
    lines = metrics(whole)
    assert len(training) == 32 and sum(atoms.info["held_out"] for atoms in training) > 0
    assert [line["label"] for line in lines if line["kind"] == "label"] == list(range(5, 33))
    assert lines[-1]["phase"] == "done" and "label budget" in next(
        line["why"] for line in lines if line.get("phase") == "final training"
    )
    again = jaxal("run", config, "--dir", whole, check=False)
    assert again.returncode == 2 and "jaxal resume" in again.stderr and "Traceback" not in again.stderr
    before = (whole / "model.npz").read_bytes()
    jaxal("resume", whole)  # a finished run is left as it is
    assert (whole / "model.npz").read_bytes() == before


@pytest.mark.slow
def test_a_run_in_double_precision_with_an_oracle_that_grows_its_lists(tmp_path):
    """Silicon under constant pressure: no host labels, float64, neighbor lists that must grow on the way."""
    text = """
system: {file: water.xyz}
potential: {cutoff: 4.0, channels: 2, l_max: 1, layers: 1, radial: 4, radial_hidden: 0}
committee: {members: 2}
explore: {name: npt_nose_hoover, temperature: 2500, timestep: 2.0, walkers: 2}
gate: {name: conformal, target_error: 0.3, every: 4, implausible: 1000}
label: {name: stillinger_weber, initial: 4}
train: {steps: 4, initial_steps: 40, final_steps: 20, batch: 2, learning_rate: 0.01, stress_weight: 1.0}
stop: {labels: 24, time: 1.0}
precision: float64
"""
    atoms = bulk("Si", cubic=True)
    config = folder(tmp_path, text, atoms)
    out = tmp_path / "out"
    jaxal("run", config, "--dir", out)
    arrays = model_arrays(out)
    assert all(a.dtype == np.float64 for name, a in arrays.items() if name.startswith("['params']"))
    training = read(out / "training.xyz", ":")
    assert not (out / "labels.sqlite").exists()
    assert all(np.isfinite(frame.get_stress()).all() for frame in training)
    volumes = [frame.get_volume() for frame in read(out / "trajectory.xyz", ":")]
    assert np.std(volumes) > 0
    # total energies: the oracle's own, recomputed by another implementation of the same formula
    from matscipy.calculators.manybody import Manybody
    from matscipy.calculators.manybody.explicit_forms import StillingerWeber
    from matscipy.calculators.manybody.explicit_forms.stillinger_weber import Stillinger_Weber_PRB_31_5262_Si

    frame = training[-1]
    energy, force = frame.get_potential_energy(), frame.get_forces()
    parameters = Stillinger_Weber_PRB_31_5262_Si | {"epsilon": 2.16826}  # jax-md's and the paper's digits
    frame.calc = Manybody(**StillingerWeber(parameters))
    assert frame.get_potential_energy() == pytest.approx(energy, rel=1e-6)
    np.testing.assert_allclose(frame.get_forces(), force, atol=1e-4)


def test_a_method_that_fails_on_the_start_structure_is_told_in_one_line(tmp_path):
    atoms = molecule("H2")
    atoms.positions[1] = atoms.positions[0] + [0, 0, 0.35]  # farther apart than what is refused by itself
    config = folder(tmp_path, WATER, atoms)
    result = jaxal("run", config, "--dir", tmp_path / "out", check=False)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("jaxal: error: label: tblite fails on the start structure") and "eV/Å" in last


@pytest.mark.slow
def test_walkers_that_never_stay_physical_end_the_run_with_advice(tmp_path):
    config = folder(tmp_path, WATER)
    result = jaxal("run", config, "gate.implausible=1e-9", "--dir", tmp_path / "out", check=False)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "looks at each walker were rewinds" in result.stderr and "too uncertain 100 %" in result.stderr
    assert "gate.implausible" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "stop, why",
    [
        ("{labels: 400, quiet: 0.02}", "quiet for 0.02 ps"),
        ("{labels: 400, time: 0.04}", "0.04 ps of dynamics"),
        ("{labels: 400, error: 5.0, probes: 4}", "fresh probe labels"),
    ],
)
def test_a_run_ends_by_itself_for_each_reason(tmp_path, stop, why):
    limit = "limit: 1000" if "quiet" in stop else "limit: 0.0"
    text = WATER.replace("stop: {labels: 64}", f"stop: {stop}").replace("limit: 0.0", limit)
    out = tmp_path / "out"
    jaxal("run", folder(tmp_path, text), "--dir", out)
    reason = next(line["why"] for line in metrics(out) if line.get("phase") == "final training")
    assert why in reason


def test_first_structures_are_displaced_more_and_more():
    frames = initial_labels.first_structures(molecule("CH4"), 6, 3)
    spread = [np.sqrt(np.mean((f.positions - frames[0].positions) ** 2)) for f in frames]
    assert spread[0] == 0 and 0.01 < spread[1] < spread[-1] < 0.3
    same = initial_labels.first_structures(molecule("CH4"), 6, 3)
    assert all(np.array_equal(a.positions, b.positions) for a, b in zip(frames, same, strict=True))


@pytest.mark.slow
def test_first_structures_and_walkers_take_the_start_structures_in_turn(tmp_path):
    """Two shapes of water that no displacement turns into each other; a whole run begins at both."""
    flat, bent = molecule("H2O"), molecule("H2O")
    flat.positions[1:] = [[0.0, 1.0, 0.1], [0.0, -1.0, 0.1]]
    frames = initial_labels.first_structures([flat, bent], 8, 3)
    angles = np.array([frame.get_angle(1, 0, 2) for frame in frames])
    assert np.array_equal(frames[0].positions, flat.positions) and np.array_equal(frames[1].positions, bent.positions)
    assert np.all(angles[0::2] > 130) and np.all(angles[1::2] < 130)

    config = folder(tmp_path, WATER.replace("water.xyz", "water.xyz, index: all").replace("walkers: 2", "walkers: 4"))
    write(tmp_path / "water.xyz", [flat, bent], format="extxyz")
    out = tmp_path / "out"
    jaxal("run", config, "stop.time=0.04", "output.trajectory=1", "--dir", out)
    angles = [atoms.get_angle(1, 0, 2) for atoms in read(out / "trajectory.xyz", ":4")]  # 2 fs after the start
    assert min(angles[0::2]) > 130 > max(angles[1::2])


def test_held_out_rows_are_some_and_not_the_first():
    for number, fraction in ((2, 0.1), (10, 0.1), (10, 0.3), (500, 0.1)):
        held = training_data.spread_hold(number, fraction)
        assert held.sum() == max(1, round(fraction * number)) and not held.all()
    assert not training_data.spread_hold(10, 0.1)[0]
    assert not training_data.spread_hold(10, 0.3, 6)[:6].any() and training_data.spread_hold(10, 0.3, 6).sum() == 3


@pytest.mark.slow
def test_a_diverging_first_training_is_told_in_one_line(tmp_path):
    config = folder(tmp_path, WATER)
    result = jaxal("run", config, "--dir", tmp_path / "o", "train.learning_rate=1e30", check=False)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "train.learning_rate: the first training diverges" in result.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_only_what_may_change_is_changed_on_resume(tmp_path):
    config, out = folder(tmp_path, WATER), tmp_path / "out"
    jaxal("run", config, "stop.labels=1000", "stop.time=0.05", "--dir", out)
    shutil.rmtree(max((out / "checkpoints").iterdir(), key=lambda path: int(path.name)))  # back into the exploration
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for changes, messages in (
        (["explore.temperature=301", "seed=5"], ["explore.temperature was 600", "is 301", "seed was 0, is 5"]),
        (["committee.members=3"], ["committee.members was 2, is 3"]),
        (["explore.temprature=3"], ["explore.temprature"]),
    ):
        result = jaxal("resume", out, *changes, check=False)
        assert result.returncode == 2 and "Traceback" not in result.stderr
        assert all(text in result.stderr.strip().splitlines()[-1] for text in messages)
        assert all(path.read_bytes() == text for path, text in before.items() if path.name != "lock")
    jaxal("resume", out, "stop.labels=2000", "output.checkpoint=5 s")
    assert yaml.safe_load((out / "config.yaml").read_text())["stop"]["labels"] == 2000
    assert metrics(out)[-1]["phase"] == "done"


def test_one_process_at_a_time_works_on_a_folder(tmp_path):
    config, out = folder(tmp_path, WATER), tmp_path / "out"
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "jaxal",
            "run",
            str(config),
            "stop.time=1 ns",
            "stop.labels=1000",
            "--dir",
            str(out),
            "--part",
            str(SMALL),
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + 120
        while not (out / "config.yaml").exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        for command in (("resume", out), ("run", config, "--dir", out)):
            result = jaxal(*command, check=False)
            assert result.returncode == 2 and "Traceback" not in result.stderr
            assert "at work on it" in result.stderr or "already holds a run" in result.stderr
        message = jaxal("resume", out, check=False).stderr
        assert f"process {process.pid} on {socket.gethostname()}" in message
    finally:
        process.kill()
        process.wait()
    with lock.held(out):  # nobody has to remove anything after a kill
        pass


@pytest.mark.parametrize("where", ["/sys/jaxal", "/dev/null/jaxal"])
def test_a_folder_that_cannot_be_written_is_told_in_one_line(tmp_path, where):
    result = jaxal("run", folder(tmp_path, WATER), "--dir", where, check=False)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert where in result.stderr.strip().splitlines()[-1]
