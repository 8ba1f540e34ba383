"""`jaxal train` and its data: what is learned is what the file means, and what cannot be is refused before any work."""

from pathlib import Path

import ase
import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import read, write
from commands import SMALL

import jaxal
from jaxal.cli.main import main
from jaxal.config.loading import load
from jaxal.config.schema import Offline
from jaxal.core.errors import InputWarning
from jaxal.core.types import InputError
from jaxal.run import offline

TINY = """
data: {file: data.xyz}
potential: {name: equivariant, cutoff: 3.0, channels: 2, l_max: 1, layers: 1, correlation: 1}
committee: {members: 2}
train: {final_steps: 4, batch: 4, holdout: 0.25}
"""


def frame(seed: int, name: str = "H2O", **info) -> ase.Atoms:
    """A molecule on springs, with forces that sum to zero."""
    atoms = molecule(name)
    start = atoms.positions.copy()
    atoms.rattle(0.05, seed=seed)
    forces = -10 * (atoms.positions - start - (atoms.positions - start).mean(0))
    atoms.calc = SinglePointCalculator(atoms, energy=-100.0 + 0.05 * (forces**2).sum(), forces=forces)
    atoms.info |= info
    return atoms


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(TINY)
    return tmp_path


def refusal(capsys, atoms, *words: str) -> str:
    """The line that refuses frames, with nothing computed."""
    write("data.xyz", atoms)
    assert main(["train", "config.yaml", *words, "--dir", "out"]) == 2
    *_, line = capsys.readouterr().err.splitlines()
    assert line.startswith("jaxal: error: ")
    return line


@pytest.mark.slow
def test_everything_a_file_says_counts(folder, capsys):
    """Electrons, free atoms, weights, copies and fixed atoms of one file, in one training."""
    frames = [frame(seed, charge=1, spin=1, config_type="here") for seed in range(6) for _ in range(3)]
    wrong = frame(7, charge=1, spin=1, config_weight=0.0)
    wrong.calc.results["energy"] = 1e6
    atoms = [ase.Atoms([z], info={"config_type": "IsolatedAtom", "energy": e}) for z, e in ((1, -13.0), (8, -70.0))]
    held = frame(8, charge=1, spin=1)
    held.set_constraint(FixAtoms([0]))
    held.calc.results["forces"][0] = 0.0
    write("data.xyz", [*frames, wrong, *atoms, held])
    assert main(["train", "config.yaml", "--dir", "out"]) == 0
    warnings = capsys.readouterr().err
    assert "frame 18 is left out, of weight 0" in warnings
    assert "19 frames hold 7 different structures" in warnings
    model = jaxal.load_model("out")
    assert model.states == ((1, 1),)
    # of atoms in structures, all as much below free ones; what leaves an ion may be one itself
    np.testing.assert_allclose(model.reference - [-13.0, -70.0], model.reference[0] + 13.0, rtol=1e-12)
    assert 2 * model.reference[0] + model.reference[1] == pytest.approx(-100.0, abs=1.0) and not model.isolated
    learned: list = read("out/training.xyz", ":")
    assert len(learned) == 19 and all(a.info["charge"] == 1 for a in learned)
    sides: dict[bytes, set[bool]] = {}
    for structure in learned:
        sides.setdefault(structure.positions.tobytes(), set()).add(bool(structure.info["held_out"]))
    assert len(sides) == 7 and all(len(side) == 1 for side in sides.values())
    assert sum(side == {True} for side in sides.values()) == 2
    assert learned[0].info["config_type"] == "here" and list(learned[-1].constraints[0].index) == [0]
    for path in ("out", "out/model.npz"):  # and the model knows its charge
        assert main(["validate", path, "--data", "data.xyz", "--json"]) == 0
    write("neutral.xyz", frame(1, charge=0))
    assert main(["validate", "out", "--data", "neutral.xyz"]) == 2
    assert "neutral.xyz: frame 0: its charge is 0" in capsys.readouterr().err


@pytest.mark.slow
def test_free_atoms_of_a_file_are_those_of_the_model(folder):
    atoms = [ase.Atoms([z], info={"config_type": "IsolatedAtom", "energy": e}) for z, e in ((1, -13.0), (8, -70.0))]
    write("data.xyz", [*(frame(seed) for seed in range(6)), *atoms])
    assert main(["train", "config.yaml", "--dir", "out"]) == 0
    model = jaxal.load_model("out")
    assert model.isolated and 2 * model.reference[0] + model.reference[1] == pytest.approx(-100.0, abs=1.0)
    far = ase.Atoms("OHH", positions=30.0 * np.eye(3), calculator=jaxal.Calculator("out"))
    assert far.get_potential_energy() == pytest.approx(-96.0, abs=1e-4) and not far.get_forces().any()
    water = molecule("H2O")
    water.calc = far.calc
    assert water.get_potential_energy() < -98  # bonds are in what the species have in structures


@pytest.mark.slow
def test_several_charges_are_learned_by_one_model(folder, capsys):
    """It tells them apart, says which it knows, and refuses others; so do validation and another potential."""
    frames = [frame(seed) for seed in range(5)] + [frame(seed, charge=1, spin=1) for seed in range(5)]
    for atoms in frames[5:]:
        atoms.calc.results["energy"] += 12.0
    alike = [frame(seed, charge=0, spin=0) for seed in range(2)]
    assert "electrons: off does not fit" in refusal(capsys, frames, "potential.electrons=off")
    blind = refusal(capsys, frames, "potential={name: bonds}", "--part", str(SMALL))
    assert "potential.name: bonds is blind to charge and spin, in which the structures differ (charge 0 with 0" in blind
    write("data.xyz", frames)
    assert main(["train", "config.yaml", "--dir", "out"]) == 0
    model = jaxal.load_model("out")
    assert model.states == ((0, 0), (1, 1)) and dict(model.options)["electrons"] == "on"
    assert "electrons: auto" in (folder / "out" / "config.yaml").read_text()
    atoms = frames[0].copy()
    atoms.calc = jaxal.Calculator(model)
    neutral = atoms.get_potential_energy()
    atoms.info |= {"charge": 1, "spin": 1}
    assert atoms.get_potential_energy() - neutral == pytest.approx(
        12.0, abs=2.0
    )  # the offset; four steps are no training
    for state in ({"charge": 1}, {"charge": -1, "spin": 1}, {"charge": 0, "spin": 2}):
        atoms.info = state
        with pytest.raises(InputError, match=r"it knows charge 0 with 0 unpaired electrons, charge \+1 with 1$"):
            atoms.get_potential_energy()
    assert main(["validate", "out", "--data", "data.xyz", "--json"]) == 0
    write("anion.xyz", frame(1, charge=-1, spin=1))
    capsys.readouterr()
    assert main(["validate", "out", "--data", "anion.xyz"]) == 2
    assert "anion.xyz: frame 0: the model was not trained at charge -1 with 1" in capsys.readouterr().err
    write("data.xyz", alike)
    assert main(["train", "config.yaml", "--dir", "other"]) == 0
    assert dict(jaxal.load_model("other").options)["electrons"] == "off"


def test_one_structure_is_trained_on_and_nothing_held_out(folder, capsys):
    write("data.xyz", [frame(0)] * 3)
    assert main(["train", "config.yaml", "--dir", "out"]) == 0
    said = capsys.readouterr().err
    assert "3 frames hold 1 different structure" in said and "nothing is held out" in said
    assert not any(atoms.info["held_out"] for atoms in read("out/training.xyz", ":"))  # pyright: ignore


@pytest.mark.parametrize(
    ("atoms", "words"),
    [
        (lambda: [frame(0), frame(1, charge=-11, spin=1)], "potential.electrons: charge: -11 is not among the inputs"),
        (lambda: [frame(0), frame(1, spin=1)], "data.xyz: frame 1: spin: 1 unpaired electrons are impossible"),
        (lambda: [frame(0, method="a"), frame(1, method="b")], "labels of several methods, 'a' and 'b'"),
        (lambda: [frame(0), ase.Atoms("XH", np.eye(3)[:2])], "data.xyz: frame 1: atom 0 is a dummy atom"),
        (lambda: [frame(0, config_weight=0.0)], "no frame is left to learn from"),
    ],
)  # fmt: skip
def test_what_does_not_belong_together_is_refused(folder, capsys, atoms, words):
    assert words in refusal(capsys, atoms())


def test_not_a_number_is_refused_with_its_frame(folder, capsys):
    bad = frame(1)
    bad.calc.results["forces"][1, 2] = np.nan
    assert "data.xyz: frame 2: forces: not a finite number" in refusal(capsys, [frame(0), frame(2), bad])


def test_held_out_frames_of_a_file_must_fit(folder, capsys):
    write("other.xyz", [frame(9, "CH4")])
    line = refusal(capsys, [frame(0), frame(1)], "data.validation=other.xyz")
    assert "other.xyz: frame 0 has C, of which data.file has none; it has H, O" in line
    write("other.xyz", [frame(9, charge=1, spin=1)])
    line = refusal(capsys, [frame(0), frame(1)], "data.validation=other.xyz")
    assert "other.xyz: frame 0 has charge +1 with 1 unpaired electron, of which data.file has no frame" in line
    write("other.xyz", [frame(1)])
    assert "no structure that is not in data.file" in refusal(capsys, [frame(0), frame(1)], "data.validation=other.xyz")
    assert not (folder / "out").exists()


def test_structures_of_the_file_are_no_validation(folder, capsys):
    """Those that are in both are left out, told; where all are nothing is begun."""
    write("validation.xyz", [frame(0), frame(1)])
    line = refusal(capsys, [frame(seed) for seed in range(6)], "data.validation=validation.xyz")
    assert (
        line.endswith("validation.xyz holds no structure that is not in data.file, too") and "data.validation" in line
    )
    write("validation.xyz", [frame(0), frame(7), frame(8)])
    write("data.xyz", [frame(seed) for seed in range(6)])
    config = load("config.yaml", ["data.validation=validation.xyz"], cls=Offline)
    with pytest.warns(InputWarning, match=r"^data\.validation: 1 of 3 frames are in data\.file, too; left out$"):
        frames, held, _ = offline._data(config.data, config.train)
    assert len(frames) == 8 and held.tolist() == [False] * 6 + [True] * 2


def test_stresses_that_are_to_be_learned_must_be_there(folder, capsys):
    crystals = []
    for seed in range(6):
        atoms = frame(seed)
        atoms.set_cell(np.eye(3) * 6)
        atoms.pbc = True
        crystals.append(atoms)
    line = refusal(capsys, crystals, "train.stress_weight=1")
    assert "train.stress_weight: some periodic structures carry no stress; give 0 or data with stress" in line


def test_a_folder_in_use_is_not_trained_into(folder, tmp_path):
    write("data.xyz", [frame(seed) for seed in range(6)])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "note.txt").write_text("mine")
    with pytest.raises(InputError, match=r"^out: the folder is in use; give another with --dir$"):
        offline.train(load("config.yaml", cls=Offline), Path("out"))
    assert (tmp_path / "out" / "note.txt").read_text() == "mine"
