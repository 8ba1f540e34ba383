"""The task of a run: a barrier that rests on labels of its own, learned from and never asked for twice."""

import json
from pathlib import Path

import ase
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.io import read, write
from closed_surfaces import HEIGHT, well_energy
from commands import SMALL, here
from run_example import killed_after, metrics, model_arrays
from scipy.optimize import minimize_scalar

PART = SMALL.with_name("two_wells.py")
CONFIG = """
system: {file: pair.xyz, index: all}
potential: {name: two_wells}
committee: {members: 2}
explore: {name: band, walkers: 7, converged: 0.02}
gate: {name: threshold, limit: 0.02, every: 5}
label: {name: two_wells_method, initial: 8, calibration: 0}
train: {steps: 20, initial_steps: 200, final_steps: FINAL, batch: 2, learning_rate: RATE, holdout: 0.2}
stop: {labels: 30, time: 2}
task: {name: barrier, labels: 6, tolerance: 1 meV}
"""


def exact() -> float:
    """The barrier from the left well, eV."""
    top = minimize_scalar(lambda r: -well_energy(r), bounds=(2.2, 2.8), method="bounded")
    low = minimize_scalar(well_energy, bounds=(1.6, 2.2), method="bounded")
    return -top.fun - low.fun


def pair(folder: Path, text: str = CONFIG, final: int = 100, rate: float = 0.01) -> Path:
    frames = [ase.Atoms("H2", positions=[[0, 0, 0], [r, 0, 0]], info={"charge": 0, "spin": 0}) for r in (1.9, 3.1)]
    write(folder / "pair.xyz", frames, format="extxyz")
    (folder / "config.yaml").write_text(text.replace("FINAL", str(final)).replace("RATE", str(rate)))
    return folder / "config.yaml"


def test_a_run_ends_with_its_barrier(tmp_path):
    done = here("run", pair(tmp_path), "--dir", tmp_path / "run", "--part", PART)
    assert done.returncode == 0, done.stderr
    assert "barrier: " in (done.stdout + done.stderr).splitlines()[-1]
    lines = metrics(tmp_path / "run")
    answers = [line for line in lines if line["kind"] == "task"]
    assert answers[-1]["satisfied"] and answers[-1]["system"] == "system"
    assert answers[-1]["forward"] == pytest.approx(exact(), abs=1e-3)
    written = json.loads((tmp_path / "run" / "task" / "barrier.json").read_text())
    assert written["labeled"]["forward"] == pytest.approx(answers[-1]["forward"], rel=1e-6)
    # its labels are trained on, and count
    before = max(line["labels"] for line in lines if line["kind"] == "segment")
    training = read(tmp_path / "run" / "training.xyz", ":")
    assert len(training) == before + answers[-1]["labels"] and answers[-1]["labels"] in range(3, 7)
    assert not any(atoms.info["held_out"] for atoms in training[before:])
    height = model_arrays(tmp_path / "run")["['params']['height']"]
    np.testing.assert_allclose(height, HEIGHT, rtol=2e-2)
    report = (tmp_path / "run" / "report.html").read_text()
    assert answers[-1]["text"] in report
    again = here("status", tmp_path / "run")
    assert f"{answers[-1]['text']}; {answers[-1]['labels']} labels\n" in again.stdout


@pytest.mark.slow
def test_what_was_not_as_the_model_had_it_is_learned_and_asked_again(tmp_path):
    """A model that has hardly learned: its saddle is not the method's, but what is taken off makes up for it."""
    config = pair(tmp_path, CONFIG.replace("1 meV", "0.001 meV"), rate=1e-4)
    done = here("run", config, "--dir", tmp_path / "run", "--part", PART)
    assert done.returncode == 0, done.stderr
    answers = [line for line in metrics(tmp_path / "run") if line["kind"] == "task"]
    assert len(answers) > 1 and not answers[0]["satisfied"]
    assert [line["labels"] for line in answers] == sorted(line["labels"] for line in answers)
    assert answers[-1]["labels"] <= 6 and answers[-1]["forward"] == pytest.approx(exact(), abs=2e-3)
    store = here("store", "list", tmp_path / "run") if (tmp_path / "run" / "labels.sqlite").exists() else None
    assert store is None or store.returncode == 0
    assert json.loads((tmp_path / "run" / "task" / "barrier.json").read_text())["labeled"]


@pytest.mark.slow
def test_a_finished_run_goes_on_with_what_its_task_is_allowed_more(tmp_path):
    """Too few labels for saddle and ends, then enough; what was labeled is learned from and not paid for again."""
    done = here("run", pair(tmp_path), "--dir", tmp_path / "run", "--part", PART, "task.labels=1")
    assert done.returncode == 0, done.stderr
    (first,) = [line for line in metrics(tmp_path / "run") if line["kind"] == "task"]
    assert not first["satisfied"] and "too few labels are left" in first["text"]
    again = here("resume", tmp_path / "run", "task.labels=6")
    assert again.returncode == 0, again.stderr
    lines = metrics(tmp_path / "run")
    last = [line for line in lines if line["kind"] == "task"][-1]
    assert last["satisfied"] and last["forward"] == pytest.approx(exact(), abs=1e-3)
    assert [line["phase"] for line in lines if line["kind"] == "phase"][-1] == "done"
    before = (tmp_path / "run" / "model.npz").read_bytes()
    assert here("resume", tmp_path / "run", "task.labels=6").returncode == 0  # as it was: nothing is done
    assert (tmp_path / "run" / "model.npz").read_bytes() == before


def test_a_task_needs_what_it_asks_about(tmp_path):
    text = CONFIG.replace("name: band, walkers: 7, converged: 0.02", "walkers: 2").replace(", index: all", "")
    done = here("check", pair(tmp_path, text), "--part", PART)
    assert done.returncode == 2 and "task.name: barrier asks about a path" in done.stderr
    many = [molecule("C60") for _ in range(2)]
    many[0] += ase.Atoms("He", positions=[[9.0, 0, 0]])
    many[1] += ase.Atoms("He", positions=[[0, 9.0, 0]])
    write(tmp_path / "many.xyz", many, format="extxyz")
    band = "system: {file: many.xyz, index: all}\nexplore: {name: band, walkers: 3}\ntask: {name: barrier}\n"
    (tmp_path / "many.yaml").write_text(band)
    done = here("check", tmp_path / "many.yaml")
    assert done.returncode == 2 and "task.name: barrier is for 60 atoms at most, " in done.stderr
    write(tmp_path / "crystal.xyz", bulk("Si"))
    (tmp_path / "crystal.yaml").write_text("system: {file: crystal.xyz}\ntask: {name: network}\n")
    done = here("check", tmp_path / "crystal.yaml")
    assert done.returncode == 2 and "task.name: network is for open structures, that of" in done.stderr
    done = here("check", pair(tmp_path), "--part", PART, "task.labels=0")
    assert done.returncode == 2 and "task.labels: 0 is too small" in done.stderr


@pytest.mark.slow
def test_a_run_killed_in_its_task_resumes_bit_for_bit(tmp_path):
    config = pair(tmp_path, final=20000)
    here("run", config, "--dir", tmp_path / "whole", "--part", PART)
    kinds = [line["kind"] for line in metrics(tmp_path / "whole")]
    killed_after(config, tmp_path / "killed", kinds.index("task") + 1, PART)
    done = here("resume", tmp_path / "killed")
    assert done.returncode == 0, done.stderr
    whole, killed = (model_arrays(tmp_path / name) for name in ("whole", "killed"))
    for name, values in whole.items():
        np.testing.assert_array_equal(killed[name], values, err_msg=name)
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    names = ("training.xyz", "task/barrier.json", "task/path.xyz", "task/saddle.xyz")
    for name in names:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
