"""`jaxal label`: what cannot be labeled is refused in one line before anything is paid for; the rest has its labels."""

import json
import re
import sys
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from label_programs import EMT, rattled

from jaxal.cli.main import main
from jaxal.config.check import task_of
from jaxal.core.types import InputError
from jaxal.data import files
from jaxal.data.frames import MOST_ATOMS, overlap, to_atoms
from jaxal.data.structure import from_atoms, labels_of
from jaxal.label.methods.tblite import tblite

WATER = rattled(molecule("H2O"))

# EMT as a program of the user's that notes every calculation; charge 1 fails, charge 2 hangs.
NOTED = (
    EMT.replace("atoms.calc = EMT()", "open('{mark}', 'a').write('x')\natoms.calc = EMT()")
    + """
import time
if atoms.info["charge"] == 1:
    sys.exit("no electrons left")
if atoms.info["charge"] == 2:
    time.sleep(600)
"""
)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A configuration whose program notes each calculation in `mark`."""
    monkeypatch.chdir(tmp_path)
    ase.io.write("water.xyz", WATER)
    Path("program.py").write_text(NOTED.replace("{mark}", str(tmp_path / "mark")))
    command = json.dumps([sys.executable, "program.py", "{input}", "{output}"])
    method = (
        "{name: command, command: " + command + ", files: [program.py], method: EMT, keep: " + str(tmp_path / "kept")
    )
    Path("config.yaml").write_text("system: {file: water.xyz}\nlabel: " + method + "}\n")
    return tmp_path


def paid(folder: Path) -> int:
    mark = folder / "mark"
    return len(mark.read_text()) if mark.exists() else 0


def label(*words: str) -> int:
    return main(["label", "config.yaml", *words])


def refusal(capsys, *words: str) -> str:
    assert label(*words) == 2
    said = capsys.readouterr()
    assert said.err.startswith("jaxal: error: ") and said.err.count("\n") == 1
    return said.err.removeprefix("jaxal: error: ").strip()


# ---------------------------------------------------------------- --check


@pytest.mark.parametrize("workers", [0, 1])
def test_check_shows_one_label(folder, capsys, workers):
    assert label("label={name: tblite}", f"label.workers={workers}", "--check") == 0
    shown = dict(re.findall(r"^(.{14}) (.+)$", capsys.readouterr().out, re.MULTILINE))
    rows = {name.strip(): value for name, value in shown.items()}
    backend = tblite()
    result = backend.calculate(task_of(to_atoms(files.read("water.xyz")[0])))
    assert float(rows["energy"].removesuffix(" eV")) == pytest.approx(result.energy, abs=1e-6)
    largest = np.linalg.norm(result.force, axis=1).max()
    assert float(rows["largest force"].removesuffix(" eV/Å")) == pytest.approx(largest, abs=1e-6)
    assert float(rows["net force"].removesuffix(" eV/Å")) < 1e-10
    assert float(rows["wall time"].removesuffix(" s")) > 0
    assert rows["method"] == backend.method and rows["version"] == backend.version
    assert rows["structure"] == "H2O, 3 atoms" and rows["electrons"] == "charge 0, 0 unpaired"
    assert not (folder / "mark").exists() and not list(folder.glob("*.sqlite"))


def test_check_shows_the_pressure_of_a_crystal(folder, capsys):
    ase.io.write("copper.xyz", bulk("Cu", "fcc", 3.4, cubic=True))
    assert label("system.file=copper.xyz", "--check") == 0
    assert float(re.findall(r"pressure +(\S+) eV/Å\^3", capsys.readouterr().out)[0]) > 0.05, "it is compressed"
    assert paid(folder) == 1


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (
            ["label={name: nwchem, command: [no-such]}"],
            r"label\.command: there is no program 'no-such'; install NWChem",
        ),
        (["label={name: espresso, pseudopotentials: {}, ecutwfc: 20, box: 9}"], r"label\.pseudopotentials: none for H"),
        (["label={name: orca, keywords: PBE Opt}"], r"label\.keywords: Opt is another kind"),
        (["label={name: teacher, address: 'localhost:1'}"], r"label\.address: no teacher answers"),
        (["label={name: morse}"], r"label\.name: morse is a closed form"),
        (["system.charge=1"], r"system\.spin: 0 unpaired electrons are impossible"),
        (["system.file=uranium.xyz", "label={name: tblite}"], r"label: GFN2-xTB does not know U"),
        (["system.file=none.xyz"], r"none\.xyz"),
        (["system.file=nan.xyz"], r"nan\.xyz: frame 0: a position is not a finite number"),
        (["system.file=lattice.xyz"], r"lattice\.xyz: frame 0: a lattice vector is not a finite number"),
        (["system.file=flat.xyz"], r"flat\.xyz: frame 0: periodic, but its cell has no volume"),
        (["system.file=overlap.xyz"], r"system\.file: .*atoms 0 \(H\) and 1 \(H\) are 0\.05 Å apart, less than 0\.5"),
        (["system.file=same.xyz", "gate.closest=0"], r"atoms 0 \(H\) and 1 \(H\) are 0 Å apart, less than 0\.2"),
        (["system.file=copper.xyz"], r"atoms 0 \(Cu\) and 0 \(Cu\) are 1 Å apart"),
        (["system.file=huge.xyz"], rf"huge\.xyz: frame 0: {MOST_ATOMS + 1} atoms; give at most {MOST_ATOMS}"),
        (["system.file=crystal.xyz", "system.supercell=[100, 100, 100]"], r"system\.supercell: .* makes 1000000 atoms"),
    ],
)
def test_what_cannot_be_labeled_is_refused_before_anything_is_paid(folder, capsys, words, what):
    Path("uranium.xyz").write_text("1\n\nU 0 0 0\n")
    Path("nan.xyz").write_text("2\n\nH 0 0 0\nH 0 0 nan\n")
    for name, vector in (("lattice", "nan"), ("flat", "0")):
        text = f'1\nLattice="4 0 0 0 4 0 0 0 {vector}" pbc="T T T" Properties=species:S:1:pos:R:3\nCu 0 0 0\n'
        Path(f"{name}.xyz").write_text(text)
    ase.io.write("overlap.xyz", Atoms("H2", [[0, 0, 0], [0, 0, 0.05]]))
    ase.io.write("same.xyz", Atoms("H2", [[0, 0, 0], [0, 0, 0]]))
    ase.io.write("copper.xyz", Atoms("Cu", cell=[1, 4, 4], pbc=True))
    ase.io.write("crystal.xyz", bulk("Cu"))
    Path("huge.xyz").write_text(f"{MOST_ATOMS + 1}\n\n" + "".join(f"H {i}.0 0 0\n" for i in range(MOST_ATOMS + 1)))
    assert re.search(what, refusal(capsys, "--check", *words))
    assert paid(folder) == 0 and not (folder / "kept").exists()


@pytest.mark.slow
def test_a_label_that_fails_or_hangs_is_told(folder, capsys):
    said = refusal(capsys, "--check", "system.charge=1", "system.spin=1")
    assert re.match(r"label: command fails on .*water\.xyz: .*exit status 1: no electrons left; see .*kept", said)
    hanging = ["system.charge=2", "label.workers=3", "label.timeout=5"]
    assert "timeout: the calculation took more than 5 s" in refusal(capsys, "--check", *hanging)
    assert paid(folder) == 2
    assert re.search(r"above max_force 0\.01", refusal(capsys, "--check", "label={name: tblite, max_force: 0.01}"))


@pytest.mark.parametrize(
    "words", [[], ["--data", "water.xyz"], ["--out", "o.xyz"], ["--check", "--data", "water.xyz", "--out", "o.xyz"]]
)
def test_what_to_do_must_be_said(folder, capsys, words):
    assert refusal(capsys, *words) == "label: give --check, or --data FILE and --out FILE"


# ---------------------------------------------------------------- --data


def frames_of(number: int) -> list[Atoms]:
    frames = []
    for seed in range(number):
        atoms = molecule("CH3OH") if seed % 2 else molecule("H2O")
        atoms.rattle(0.05, seed=seed)
        frames.append(atoms)
    return frames


def test_every_frame_is_labeled_in_order_and_paid_for_once(folder, capsys):
    frames = [*frames_of(4), bulk("Cu", "fcc", 3.5, cubic=True)]
    frames[1].info.update(charge=3, spin=1)
    ase.io.write("data.xyz", frames)
    assert label("--data", "data.xyz", "--out", "labeled.xyz", "label.workers=2") == 0
    assert "5 of 5 frames, 0 failed\nlabeled.xyz: 5 labels; labeled.sqlite has them, too\n" in capsys.readouterr().out
    assert paid(folder) == 5
    results = files.read("labeled.xyz")
    labels = labels_of(results)
    from ase.calculators.emt import EMT as Emt

    for row, (before, after) in enumerate(zip(frames, results, strict=True)):
        before.calc = Emt()
        np.testing.assert_allclose(after.position, before.positions, atol=1e-7)
        assert labels.energy[row] == pytest.approx(before.get_potential_energy(), abs=1e-6)
        np.testing.assert_allclose(labels.force[row, : len(after.numbers)], before.get_forces(), atol=1e-6)
    np.testing.assert_allclose(labels.stress[4], frames[4].get_stress(voigt=False), atol=1e-8)
    assert (results[1].charge, results[1].spin, results[0].charge) == (3, 1, 0)

    assert "is there already; --force replaces it" in refusal(capsys, "--data", "data.xyz", "--out", "labeled.xyz")
    assert label("--data", "data.xyz", "--out", "labeled.xyz", "--force") == 0
    assert label("--data", "data.xyz", "--out", "other.db", "--store", "labeled.sqlite") == 0
    assert paid(folder) == 5, "the store had them"


def test_frames_that_fail_are_left_out_and_listed(folder, capsys):
    frames = frames_of(3)
    frames[1].info.update(charge=1, spin=1)
    ase.io.write("data.xyz", frames)
    assert label("--data", "data.xyz", "--out", "labeled.xyz") == 0
    said = capsys.readouterr().out
    assert "3 of 3 frames, 1 failed\n" in said and "labeled.xyz: 2 labels" in said
    assert re.search(r"^frame 1: python.* ended with exit status 1: no electrons left", said, re.MULTILINE)
    assert [len(frame.numbers) for frame in files.read("labeled.xyz")] == [3, 3]

    before = paid(folder)
    assert label("--data", "data.xyz", "--out", "labeled.xyz", "--force") == 0
    assert paid(folder) == before, "what has failed is remembered"
    assert label("--data", "data.xyz", "--out", "labeled.xyz", "--force", "--retry") == 0
    assert paid(folder) == before + 1

    for atoms in frames:
        atoms.info.update(charge=1, spin=1)
    ase.io.write("data.xyz", frames)
    said = refusal(capsys, "--data", "data.xyz", "--out", "none.xyz")
    assert re.match(r"data\.xyz: no frame could be labeled; frame 0: python.* no electrons left", said)
    assert not Path("none.xyz").exists()


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda atoms: atoms.info.update(spin=1), r"data\.xyz: frame 2: spin: 1 unpaired electrons are impossible"),
        (lambda atoms: atoms.info.update(charge="two"), r"frame 2: charge 'two' is not a whole number"),
        (lambda atoms: atoms.positions.__setitem__(1, atoms.positions[0]), r"data\.xyz: frame 2: atoms 0 \(O\) and 1 "),
    ],
    ids=["spin", "charge", "overlap"],
)
def test_a_frame_that_cannot_be_is_named_before_anything_is_paid(folder, capsys, spoil, what):
    frames = frames_of(3)
    spoil(frames[2])
    ase.io.write("data.xyz", frames)
    assert re.search(what, refusal(capsys, "--data", "data.xyz", "--out", "labeled.xyz"))
    assert paid(folder) == 0 and not Path("labeled.xyz").exists()


def test_files_that_cannot_be_are_told(folder, capsys):
    assert "there is no such file" in refusal(capsys, "--data", "none.xyz", "--out", "labeled.xyz")
    assert "unknown kind of file" in refusal(capsys, "--data", "water.xyz", "--out", "labeled.txt")
    assert paid(folder) == 0


# ---------------------------------------------------------------- structures


def test_overlap_counts_periodic_images_and_nothing_that_can_be():
    for name in ("H2", "H2O", "CH3CH2OH", "LiF"):
        assert not overlap(molecule(name), 0.5)
    assert not overlap(bulk("Si"), 0.5) and not overlap(bulk("Cu", "fcc", 2.9), 0.5)
    apart = Atoms("CO", [[0, 0, 0.1], [0, 0, 3.9]], cell=[4, 4, 4])
    assert not overlap(apart, 0.5)
    apart.pbc = True  # 0.2 Å through the wall
    assert overlap(apart, 0.5).startswith("atoms 0 (C) and 1 (O) are 0.2 Å apart")


def test_a_frame_that_an_array_has_no_room_for_is_named():
    with pytest.raises(InputError, match=r"^frame 1 has 9 atoms; there is room for 4$"):
        from_atoms([molecule("H2O"), molecule("CH3CH2OH")], (1, 6, 8), size=4)


@pytest.mark.parametrize("value", [0.5, "x", [1, 2], float("nan"), 10**12])
def test_a_charge_that_is_no_whole_number_is_named(value):
    atoms = molecule("H2O")
    atoms.info["charge"] = value
    with pytest.raises(InputError, match=r"^frame 0: charge .* is not a whole number$"):
        from_atoms(atoms, (1, 8))
