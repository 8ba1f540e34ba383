"""The experiments' contests are what they say: they load, and every one has random and farthest-point selection."""

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

from jaxal.config.loading import load
from jaxal.contest import data, schema
from jaxal.core.types import InputError
from jaxal.core.units import GPA

FOLDER = Path(__file__).parents[2] / "experiments" / "contest"


def raw(name: str, tmp_path: Path, *overrides: str) -> schema.Contest:
    """A contest as its file says, but for the grids, whose parts are tested by name where they are."""
    return load(FOLDER / name, [*overrides, "grids=[{select: [random]}]"], schema.Contest)


@pytest.mark.parametrize("name", ["malonaldehyde.yaml", "live.yaml", "all.yaml"])
def test_it_loads_and_has_its_strategies(name, tmp_path):
    contest = raw(name, tmp_path)
    assert contest.seeds >= 5
    names = {entrant.name for entrant in schema.entrants(contest)}
    assert names == {"random", "farthest"}
    text = (FOLDER / name).read_text()
    assert "{select: all}" in text
    if name != "live.yaml":
        assert "[max_det, farthest, random]" in text


def test_the_live_tasks_have_their_files():
    contest = schema.load(FOLDER / "live.yaml", ["grids=[{select: [random]}]"])
    for name, task in contest.tasks.items():
        data.check(name, task, ())
        path = read(task.path, ":")
        assert len(path) >= 7 and len(read(task.test, ":")) >= 100
        assert all(len(atoms) == len(path[0]) for atoms in path)


def test_a_missing_data_folder_is_told(tmp_path):
    with pytest.raises(InputError, match=r"data: there is no folder .*data=FOLDER"):
        schema.load(FOLDER / "malonaldehyde.yaml", [f"data={tmp_path}/none", "grids=[{select: [random]}]"])


def test_silicons_stress_is_ases(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import prepare

    atoms = Atoms("Si", cell=np.eye(3) * 3, pbc=True)
    atoms.calc = SinglePointCalculator(atoms, energy=1.0, forces=np.zeros((1, 3)))
    atoms.info["virial_stress_raw"] = [10.0, 20.0, 30.0, 1.0, 2.0, 3.0]  # VASP: xx yy zz xy yz zx, kbar, compressed
    (frame,) = prepare.with_stress([atoms])
    assert frame.get_stress() == pytest.approx(-GPA * np.array([1.0, 2, 3, 0.2, 0.3, 0.1]))  # ASE: xx yy zz yz xz xy


def test_without_a_test_file_a_part_of_the_pool_is_held_out(tmp_path):
    frames = []
    for row in range(30):
        atoms = Atoms("H2", [[0, 0, 0], [0, 0, 0.7 + 0.01 * row]])
        atoms.calc = SinglePointCalculator(atoms, energy=float(row), forces=np.zeros((2, 3)))
        frames.append(atoms)
    write(tmp_path / "pool.xyz", frames, format="extxyz")
    task = schema.Task(pool=str(tmp_path / "pool.xyz"), budgets=(2, 4), test_frames=8, pool_frames=15)
    with data.opened("h2", task, tmp_path, "float32") as source:
        split = source.data
    assert source.service is None and split.labels is not None
    assert split.tests == 8 and len(split.labels.energy) == 15
    assert not set(split.answers.energy) & set(split.labels.energy)
    assert set(split.answers.energy) | set(split.labels.energy) <= set(range(30))
    assert np.diff(split.answers.energy).max() <= 5  # spread over the whole file
