"""Water, its dimer, its hexamer and a periodic box of 32 molecules in one program, resumed and extended."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.io import read, write
from run_example import jaxal, killed_after, metrics, model_arrays

pytestmark = pytest.mark.slow
MIXTURE = """
systems:
  water: {file: water.xyz, walkers: 1}
  dimer: {file: dimer.xyz, walkers: 1}
  box: {file: box.xyz, walkers: 1}
potential: {name: bonds}
committee: {members: 2}
explore: {temperature: 300}
gate: {name: threshold, limit: 0.0, every: 4, implausible: 50}
label: {initial: 12}
train: {steps: 4, initial_steps: 40, final_steps: 20, batch: 2, learning_rate: 0.01, holdout: 0.2}
stop: {labels: 30}
output: {checkpoint: 0, trajectory: 5}
"""
HEXAMER = "  hexamer: {file: hexamer.xyz, walkers: 1}\n"


def waters(centers: np.ndarray) -> Atoms:
    """Molecules at these places, any way round."""
    rng, atoms = np.random.default_rng(0), Atoms()
    for center in centers:
        water = molecule("H2O")
        water.rotate(360 * rng.random(), rng.normal(size=3))
        water.positions += center - water.get_center_of_mass()
        atoms += water
    return atoms


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("water")
    angle = np.arange(6) * np.pi / 3
    grid = np.array([[x, y, z] for x in range(4) for y in range(4) for z in range(2)]) * [2.46, 2.46, 4.93]
    box = waters(grid)
    box.set_cell([9.86, 9.86, 9.86])
    box.pbc = True
    write(path / "water.xyz", waters(np.zeros((1, 3))))
    write(path / "dimer.xyz", waters(np.array([[0.0, 0.0, 0.0], [2.9, 0.0, 0.0]])))
    write(path / "hexamer.xyz", waters(2.9 * np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)))
    write(path / "box.xyz", box)
    (path / "three.yaml").write_text(MIXTURE)
    (path / "four.yaml").write_text(MIXTURE.replace("potential:", f"{HEXAMER}potential:"))
    return path


def test_the_four_resume_bit_for_bit(folder):
    jaxal("run", folder / "four.yaml", "--dir", folder / "whole")
    killed_after(folder / "four.yaml", folder / "killed", 2)
    jaxal("resume", folder / "killed")
    whole, resumed = (model_arrays(folder / name) for name in ("whole", "killed"))
    for name, values in whole.items():
        if values.dtype.kind in "fiu":
            np.testing.assert_array_equal(values, resumed[name])
    assert metrics(folder / "whole") == metrics(folder / "killed")
    assert {len(frame) for frame in read(folder / "whole" / "training.xyz", ":")} == {3, 6, 18, 96}


def test_the_hexamer_comes_at_half_time(folder):
    jaxal("run", folder / "three.yaml", "--dir", folder / "grown")
    before = [line for line in metrics(folder / "grown") if line["kind"] == "label"]
    jaxal("resume", folder / "grown", f"systems.hexamer.file={folder / 'hexamer.xyz'}", "stop.labels=60")
    later = [line for line in metrics(folder / "grown") if line["kind"] == "label"]
    assert later[: len(before)] == before and later[-1]["label"] == 60
    assert {line["system"] for line in later[len(before) :]} == {"water", "dimer", "hexamer", "box"}
    frames = read(folder / "grown" / "training.xyz", ":")
    failed = [line for line in metrics(folder / "grown") if line["kind"] == "segment"][-1]["failed"]
    assert {len(frame) for frame in frames} == {3, 6, 18, 96} and len(frames) == 60 - failed and failed < 10
