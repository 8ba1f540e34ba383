"""From a run to a store, to text, to a database, to another store, to a training: nothing on the way is changed."""

import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import read, write
from numpy.testing import assert_allclose
from run_example import WATER, jaxal
from structures import same_frame

from jaxal.data import files
from jaxal.data.frames import Frame
from jaxal.label.store import conversion
from jaxal.label.store.database import Entry, open_store

TRAIN = """
data: {file: third.db}
potential: {name: bonds}
committee: {members: 2}
train: {final_steps: 2, batch: 4, holdout: 0.25}
"""


def entries(path) -> list[Entry]:
    store = open_store(path)
    rows = list(store.all())
    store.close()
    return rows


def frames(path) -> dict[bytes, Frame]:
    """The frames of a file by their positions; those of a training without what it adds."""
    by_position = {}
    for frame in files.read(path):
        info = {name: value for name, value in dict(frame.carried.info).items() if name != "held_out"}
        by_position[frame.position.tobytes()] = frame._replace(carried=frame.carried._replace(info=tuple(info.items())))
    return by_position


@pytest.mark.slow
def test_a_label_of_a_run_is_the_same_wherever_it_goes(tmp_path, monkeypatch):
    """Cations with a fixed atom and a heavy one, and beside those of the run one from a file, with a weight."""
    monkeypatch.chdir(tmp_path)
    water = molecule("H2O")
    water.set_masses([17.999, 1.008, 2.014])
    water.set_constraint(FixAtoms([0]))
    water.info |= {"charge": 1, "spin": 1}
    write("water.xyz", water, format="extxyz")
    (tmp_path / "config.yaml").write_text(WATER.replace("{labels: 64}", "{labels: 12}"))
    (tmp_path / "train.yaml").write_text(TRAIN)
    jaxal("run", "config.yaml", "--dir", "out")
    paid = entries("out/labels.sqlite")
    water.rattle(0.01)
    forces = np.array([[0, 0, 0.1], [0, 1 / 3, 0], [0, 0, -0.1]])
    water.calc = SinglePointCalculator(water, energy=-2 / 3, forces=forces)
    water.info |= {"config_weight": 0.5, "config_type": "here"}
    write("more.xyz", water, format="extxyz")
    jaxal("store", "import", "out", "more.xyz", "--method", paid[0].method, "--version", paid[0].version)
    jaxal("store", "export", "out", "first.xyz")
    jaxal("store", "import", "second.sqlite", "first.xyz")
    jaxal("store", "export", "second.sqlite", "second.db")
    jaxal("store", "import", "third.sqlite", "second.db")
    jaxal("store", "merge", "fourth.sqlite", "third.sqlite")
    jaxal("store", "export", "fourth.sqlite", "third.db")
    jaxal("train", "train.yaml", "--dir", "trained")

    paid = entries("out/labels.sqlite")
    assert len(paid) >= 10
    for path in ("second.sqlite", "third.sqlite", "fourth.sqlite"):
        again = {entry.key: entry for entry in entries(path)}
        assert again.keys() == {entry.key for entry in paid if entry.result.ok}
        for entry in paid:
            same_frame(conversion.frame_of(entry), conversion.frame_of(again[entry.key]))
    run, learned, exported = frames("out/training.xyz"), frames("trained/training.xyz"), frames("first.xyz")
    assert run.keys() <= exported.keys() == learned.keys() and len(learned) == len(paid)
    for key, frame in exported.items():
        assert (frame.charge, frame.spin) == (1, 1) and list(np.flatnonzero(frame.fixed)) == [0]
        np.testing.assert_array_equal(frame.mass, water.get_masses())
        same_frame(frame, learned[key])
        if key in run:
            assert_allclose(run[key].numeric.force, frame.numeric.force, rtol=0, atol=1e-6)  # as learned: 32 bits
            assert_allclose(run[key].numeric.energy, frame.numeric.energy, rtol=0, atol=1e-6)
    assert all(atoms.info["charge"] == 1 for atoms in read("trained/training.xyz", ":"))
    (weighted,) = (frame for frame in learned.values() if frame.share.energy == 0.5)
    assert dict(weighted.carried.info)["config_type"] == "here" and weighted.numeric.energy == -2 / 3
