"""`jaxal new`: what is written is what the structure says, is checked, and runs as it stands."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, fcc111, molecule
from ase.constraints import FixAtoms
from ase.io import read, write
from commands import here

from jaxal.config import proposal
from jaxal.config.check import check
from jaxal.config.loading import load
from jaxal.core.errors import InputError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def new(*words: object) -> str:
    process = here("new", *words)
    assert process.returncode == 0, process.stderr
    return process.stdout


def refused(*words: object) -> str:
    before = sorted(Path().iterdir())
    process = here("new", *words)
    own = [line for line in process.stderr.splitlines() if line.startswith("jaxal: error: ")]
    assert process.returncode == 2 and len(own) == 1 and "Traceback" not in process.stderr
    assert sorted(Path().iterdir()) == before, "a mistake leaves nothing behind"
    return process.stderr


def test_a_molecule_has_a_configuration_that_can_be_run():
    write("ethanol.xyz", molecule("CH3CH2OH"))
    said = new("ethanol.xyz", "--temperature", 400)
    config = load("ethanol.yaml")
    assert check(config) == [] and said.splitlines()[-1] == "next: jaxal run ethanol.yaml"
    assert "nobody says otherwise" in said and "one label takes" in said
    assert (config.system.file.name, config.system.charge, config.system.spin) == ("ethanol.xyz", 0, 0)
    assert config.explore.part["temperature"] == 400 and config.explore.part["timestep"] == 0.5  # O-H: 9 fs
    assert (config.label.part.name, config.label.part["method"]) == ("tblite", "GFN2-xTB")
    assert config.stop.labels == 400 and config.label.mode == "inline"
    text = Path("ethanol.yaml").read_text()
    assert "9 atoms, open" in text and "one label took" in text and "O-H stretch" in text
    assert "is there already; --force replaces it" in refused("ethanol.xyz")
    new("ethanol.xyz", "--force", "--no-label")
    assert load("ethanol.yaml").explore.part["temperature"] == 500


def test_a_configuration_beside_its_structure_or_elsewhere_names_it(tmp_path):
    for name in ("data", "runs"):
        (tmp_path / name).mkdir()
    write("data/argon.xyz", Atoms("Ar2", [[0, 0, 0], [0, 0, 4.0]]))
    new("data/argon.xyz", "--out", "runs/argon.yaml", "--no-label")
    assert load("runs/argon.yaml").system.file.samefile("data/argon.xyz")
    assert "there is no folder" in refused("data/argon.xyz", "--out", "nowhere/argon.yaml")


@pytest.mark.parametrize(
    "said, words, electrons",
    [
        ({}, ("--charge", 1, "--spin", 1), (1, 1)),
        ({}, ("--charge", -1, "--spin", 1), (-1, 1)),
        ({"charge": 1, "spin": 1}, (), (1, 1)),
        ({"multiplicity": 3}, (), (0, 2)),
        ({"charge": 1}, ("--spin", 3), (1, 3)),
    ],
)
def test_electrons_are_those_of_the_file_or_the_command(said, words, electrons):
    water = molecule("H2O")
    water.info |= said
    write("water.xyz", water)
    new("water.xyz", "--no-label", *words)
    system = load("water.yaml").system
    assert (system.charge, system.spin) == electrons


@pytest.mark.parametrize(
    "said, words, reason",
    [
        ({}, ("--charge", 1), "--spin: H2O with charge +1 has an odd number of electrons; give the number of unpaired"),
        ({}, ("--charge", 1, "--spin", 2), "--spin: 2 unpaired electrons are impossible"),
        ({}, ("--charge", 11, "--spin", 1), "--charge: +11 is more than the 10 electrons of H2O"),
        ({"charge": 1, "spin": 1}, ("--charge", 0, "--spin", 0), "water.xyz: its charge is 1, elsewhere it is 0"),
        ({}, ("--temperature", 0), "--temperature: 0 is too small"),
        ({}, ("--temperature", "nan"), "--temperature: nan is too small"),
        ({}, ("--method", "GFN3-xTB"), "--method: 'GFN3-xTB' is no method; give GFN2-xTB"),
        ({}, ("--method", "orca:pbe0/def2-svp"), "--method: orca takes no theory and basis set"),
        ({}, ("--method", "pyscf:pbe0"), "--method: 'pbe0' is no theory with a basis set"),
        ({}, ("--method", "pbe0/no-such-basis"), "label.basis: PySCF has no 'no-such-basis' for H"),
        ({}, ("--method", "stillinger_weber"), "stillinger_weber"),
        ({}, ("--reaction", "nothing.xyz"), "nothing.xyz: there is no such file"),
        (
            {},
            ("--reaction", "water.xyz", "--temperature", 300),
            "--temperature: a band, which --reaction proposes, has",
        ),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(said, words, reason):
    water = molecule("H2O")
    water.info |= said
    write("water.xyz", water)
    assert reason in refused("water.xyz", *words)


def test_an_element_that_the_method_does_not_know_is_refused():
    write("uranium.xyz", Atoms("UH4", np.array([[0, 0, 0], [2, 0, 0], [-2, 0, 0], [0, 2, 0], [0, -2, 0.0]])))
    assert "GFN2-xTB does not know U" in refused("uranium.xyz", "--spin", 2)


@pytest.mark.parametrize(
    "text, name, options",
    [
        ("GFN2-xTB", "tblite", {"method": "GFN2-xTB"}),
        ("gfn1-xtb", "tblite", {"method": "GFN1-xTB"}),
        ("xtb:GFN1-xTB", "xtb", {"method": "GFN1-xTB"}),
        ("pbe0/def2-svp", "pyscf", {"method": "pbe0", "basis": "def2-svp"}),
        ("MP2/cc-pVDZ", "pyscf", {"method": "MP2", "basis": "cc-pVDZ"}),
        ("psi4:b3lyp/def2-tzvp", "psi4", {"method": "b3lyp", "basis": "def2-tzvp"}),
        ("nwchem:pbe/6-31g*", "nwchem", {"xc": "pbe", "basis": "6-31g*"}),
        ("cp2k", "cp2k", {}),
        ("stillinger_weber", "stillinger_weber", {}),
    ],
)
def test_a_method_is_named_as_people_name_it(text, name, options):
    method = proposal.method_of(text)
    assert (method.name, method.options, method.missing) == (name, options, ())


def test_what_only_the_user_knows_is_to_be_filled_in():
    write("mgo.vasp", bulk("MgO", "rocksalt", 4.2, cubic=True))
    said = new("mgo.vasp", "--method", "espresso")
    assert "fill in label.pseudopotentials, label.ecutwfc; then `jaxal label mgo.yaml --check`" in said
    text = Path("mgo.yaml").read_text()
    assert "periodic" in text and "    Mg:\n    O:\n" in text
    with pytest.raises(InputError, match=r"label\.pseudopotentials\.Mg"):
        load("mgo.yaml")
    text = text.replace("    Mg:", "    Mg: Mg.UPF").replace("    O:", "    O: O.UPF").replace("wfc:  #", "wfc: 40  #")
    Path("mgo.yaml").write_text(text)
    for element in ("Mg", "O"):
        Path(f"{element}.UPF").write_text("")
    assert load("mgo.yaml").label.part["ecutwfc"] == 40


def test_the_time_step_is_that_of_the_lightest_bond_and_the_budget_that_of_the_size():
    light = molecule("H2O")
    heavy = light.copy()
    heavy.set_masses([16, 2.014, 2.014])
    steps = [proposal.timestep([atoms])[0] for atoms in (light, heavy, bulk("Si", cubic=True), Atoms("Ar"))]
    assert steps == [0.5, 1.0, 2.0, 2.0]
    held = bulk("Si", cubic=True) * (4, 4, 4)
    sizes = [proposal.labels(atoms) for atoms in (light, bulk("Si", cubic=True) * (2, 2, 2), held)]
    assert sizes == [400, 160, 100]
    held.set_constraint(FixAtoms(range(0, len(held) - 64)))
    assert proposal.labels(held) == 160  # by the atoms that move


def test_a_slab_keeps_its_fixed_atoms():
    slab = fcc111("Cu", (2, 2, 3), vacuum=8.0)
    slab.pbc = True
    slab.set_constraint(FixAtoms(mask=slab.positions[:, 2] < 9))
    write("slab.xyz", slab)
    new("slab.xyz", "--no-label", "--method", "GFN1-xTB", "--charge", 0, "--spin", 0)
    assert "12 atoms, 4 of them fixed, periodic" in Path("slab.yaml").read_text()
    slab.pbc = [True, True, False]
    write("slab.xyz", slab)
    new("slab.xyz", "--no-label", "--method", "GFN1-xTB", "--charge", 0, "--spin", 0, "--force")
    text = Path("slab.yaml").read_text()
    assert "periodic in two directions" in text and "npt" not in text


def test_both_sides_of_a_reaction_are_starts():
    reactant = molecule("HCN")
    product = reactant.copy()
    product.positions[2] = 2.9 * product.positions[1] - 1.9 * product.positions[0]
    write("hcn.xyz", reactant)
    write("hnc.xyz", product)
    new("hcn.xyz", "--reaction", "hnc.xyz")
    config = load("hcn.yaml")
    assert check(config) == [] and config.system.index == "all"
    sides = read(config.system.file, ":")
    for side, atoms in zip(sides, (reactant, product), strict=True):
        np.testing.assert_allclose(side.positions, atoms.positions, atol=1e-8)
    write("other.xyz", product[[1, 0, 2]])
    write("less.xyz", product[:2])
    product.set_cell([9, 9, 9])
    product.pbc = True
    write("cell.xyz", product)
    for other, reason in (
        ("other", "they have other elements from atom 0 on"),
        ("less", "both sides need all atoms"),
        ("cell", "not periodic in the same directions"),
    ):
        assert reason in refused("hcn.xyz", "--reaction", f"{other}.xyz", "--force", "--charge", 0, "--spin", 0)
    before = Path("hcn_states.xyz").read_bytes()
    refused("hcn.xyz", "--reaction", "hnc.xyz", "--force", "--method", "pbe0/no-such-basis")
    assert Path("hcn_states.xyz").read_bytes() == before


def test_labels_that_take_long_are_not_waited_for():
    water = molecule("H2O")
    water.info |= {"charge": 0, "spin": 0}
    write("water.xyz", water)
    method = proposal.method_of("pbe0/def2-svp")
    text = proposal.configuration([water], "water.xyz", method, temperature=500, seconds=90.0, workers=3)
    Path("water.yaml").write_text(text)
    config = load("water.yaml")
    assert check(config) == [] and (config.label.mode, config.label.workers) == ("pooled", 3)
    assert "one label took 1.5 min, so 500 take 12 h" in text and "then 100 labels more calibrate" in text
    # of a reaction as many at a time as are calculated at a time
    sides = [water, water.copy()]
    for seconds, batch in ((90.0, 3), (0.01, 1)):
        costs = {"temperature": 500, "seconds": seconds, "workers": 3}
        Path("sides.yaml").write_text(proposal.configuration(sides, "water.xyz", method, **costs))
        assert load("sides.yaml").label.batch == batch


def test_who_sits_at_a_terminal_is_asked():
    write("methyl.xyz", molecule("CH3"))
    atoms = read("methyl.xyz")
    atoms.set_initial_magnetic_moments(None)
    write("methyl.xyz", atoms)
    leader, follower = os.openpty()
    command = [sys.executable, "-m", "jaxal", "new", "methyl.xyz", "--no-label"]
    process = subprocess.Popen(command, stdin=follower, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    os.write(leader, b"minus one\n-1\n\n")
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "charge of H3C, e [0]: " in out and "a whole number, please" in err
    system = load("methyl.yaml").system
    assert (system.charge, system.spin) == (-1, 0)


def test_of_a_file_of_several_frames_the_first_is_taken_and_that_is_told(tmp_path):
    water = molecule("H2O")
    further = water.copy()
    further.positions += 1.0
    write(tmp_path / "water.xyz", [water, further])
    done = here("new", "water.xyz", "--method", "tblite", "--no-label", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "water.xyz: holds 2 frames; the first is taken, system.index chooses others" in done.stdout


def test_a_place_that_cannot_be_written_to_is_one_line(tmp_path):
    write(tmp_path / "water.xyz", molecule("H2O"))
    (tmp_path / "new.yaml.part").mkdir()
    done = here("new", "water.xyz", "--method", "tblite", "--no-label", "--out", "new.yaml", folder=tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("jaxal: error: new.yaml: cannot be written (Is a directory)")
