"""What needs the structure is checked before anything is computed: frame, cell, electrons, elements, parts."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from ase.cluster import Icosahedron
from ase.io import write

from jaxal.config import yaml12
from jaxal.config.check import check
from jaxal.config.loading import load, parse
from jaxal.config.systems import start_structures
from jaxal.config.writing import dump
from jaxal.core.errors import InputWarning
from jaxal.core.types import InputError
from jaxal.data.structure import from_atoms
from jaxal.run.initial_labels import first_structures

WATER = "3\n\nO 0 0 0.12\nH 0 0.76 -0.48\nH 0 -0.76 -0.48\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "water.xyz").write_text(WATER)
    (tmp_path / "config.yaml").write_text("system: {file: water.xyz}")
    return tmp_path


def test_start_structures(folder):
    (folder / "two.xyz").write_text(WATER + WATER.replace("O ", "S "))
    config = load(folder / "config.yaml", ["system.file=two.xyz", "system.index=-1"])
    (atoms,) = start_structures(config.system)
    assert atoms.get_chemical_formula() == "H2S" and atoms.info["charge"] == 0 and atoms.info["spin"] == 0
    for index in (2, -3):
        with pytest.raises(InputError, match=f"system.index: {index} does not fit; .*two.xyz holds 2 frames, 0 to 1"):
            start_structures(dataclasses.replace(config.system, index=index))


def test_several_start_structures(folder):
    (folder / "three.xyz").write_text(WATER + WATER.replace("0.12", "0.13") + WATER.replace("0.12", "0.14"))
    for index, expected in (("all", [0.12, 0.13, 0.14]), ("[-1, 0]", [0.14, 0.12]), ("1", [0.13])):
        config = load(folder / "config.yaml", ["system.file=three.xyz", f"system.index={index}"])
        assert parse(yaml12.parse(dump(config), ""), None) == config, "it comes back from its own YAML"
        starts = start_structures(config.system)
        assert [atoms.positions[0, 2] for atoms in starts] == pytest.approx(expected)
        assert all(atoms.info == {"charge": 0, "spin": 0} for atoms in starts)
        check(config)


@pytest.mark.parametrize(
    ("second", "overrides", "expected"),
    [
        (WATER.replace("O ", "S "), [], "system.index: frames 0 and 1 of .*two.xyz differ; they need the same atoms"),
        (WATER.replace("O 0 0 0.12\nH", "H 0 0 0.12\nO"), [], "system.index: frames 0 and 1 of .* in the same order"),
        ("2\n\nH 0 0 0\nH 0 0 0.74\n", [], "system.index: frames 0 and 1 of"),
        (
            WATER.replace("\n\n", '\nLattice="9 0 0 0 9 0 0 0 9"\n'),
            [],
            "system.index: frames .* periodic in the same directions",
        ),
        (WATER, ["system.index=[0, 2]"], "system.index: 2 does not fit; .*two.xyz holds 2 frames, 0 to 1"),
        (WATER, ["system.index=[]"], "system.index: an empty list does not fit; give frames such as"),
        (WATER, ["system.index=some"], "system.index: some does not fit; give a whole number or all or a list"),
        (WATER, ["system.index=[0, 1, 0]", "label.initial=2"], "label.initial: 2 is too small; each of the 3 start"),
    ],
)
def test_start_structures_that_do_not_belong_together(folder, second, overrides, expected):
    (folder / "two.xyz").write_text(WATER + second)
    with pytest.raises(InputError, match=expected) as caught:
        check(load(folder / "config.yaml", ["system.file=two.xyz", "system.index=all", *overrides]))
    assert "\n" not in str(caught.value)


def test_supercell(folder):
    lattice = 'Lattice="5.43 0 0 0 5.43 0 0 0 5.43" pbc="T T T" Properties=species:S:1:pos:R:3'
    (folder / "si.xyz").write_text(f"1\n{lattice}\nSi 0 0 0\n")
    config = load(folder / "config.yaml", ["system.file=si.xyz", "system.supercell=[1, 2, 3]", "label.name=tblite"])
    (atoms,) = start_structures(config.system)
    assert len(atoms) == 6 and atoms.cell.lengths() == pytest.approx([5.43, 10.86, 16.29])
    with pytest.raises(InputError, match=r"system\.supercell: "):
        start_structures(load(folder / "config.yaml", ["system.supercell=[1, 2, 3]"]).system)


SLAB = """2
Lattice="4 0 0 0 4 0 0 0 12" pbc="T T T" Properties=species:S:1:pos:R:3:move_mask:L:1:masses:R:1
Ar 0 0 2.0 F 40.0
Ar 0 0 6.0 T 36.0
"""


def test_masses_and_fixed_atoms_are_the_files_also_in_a_supercell(folder):
    (folder / "slab.xyz").write_text(SLAB)
    config = load(folder / "config.yaml", ["system.file=slab.xyz", "system.supercell=[2, 1, 1]"])
    (atoms,) = start_structures(config.system)
    structure = from_atoms(atoms, (18,), dtype=float)
    assert structure.mass.tolist() == [40.0, 36.0] * 2 and structure.fixed.tolist() == [True, False] * 2
    frames = first_structures(atoms, 6, 0)
    for frame in frames[1:]:
        moved = np.any(frame.positions != atoms.positions, axis=1)
        assert moved.tolist() == [False, True] * 2 and np.array_equal(frame.cell.array, atoms.cell.array)
    free = atoms.copy()
    free.set_constraint()
    strained = first_structures(free, 6, 0)[-1]
    assert np.all(strained.positions != free.positions) and not np.allclose(strained.cell.array, free.cell.array)


def test_fixed_atoms_that_no_dynamics_fits_are_refused(folder):
    (folder / "slab.xyz").write_text(SLAB)
    slab = ["system.file=slab.xyz", "label={name: lennard_jones}"]
    check(load(folder / "config.yaml", slab))
    with pytest.raises(
        InputError, match=r"explore\.name: npt_nose_hoover does not fit the fixed atoms of .*slab\.xyz: a "
    ):
        check(load(folder / "config.yaml", [*slab, "explore={name: npt_nose_hoover}"]))
    (folder / "slab.xyz").write_text(SLAB.replace(" T 36", " F 36"))
    with pytest.raises(InputError, match=r"system\.file: all atoms of .*slab\.xyz are fixed; leave at least one free"):
        check(load(folder / "config.yaml", slab))


def test_slabs_repeat_along_their_surface_only(folder):
    """Supercells, strains and pressures: what acts on a vacuum is refused in one line."""
    (folder / "slab.xyz").write_text(SLAB.replace('"T T T"', '"T T F"').replace(" F 40", " T 40"))
    slab = ["system.file=slab.xyz", "label={name: lennard_jones}"]
    check(load(folder / "config.yaml", slab))
    (atoms,) = start_structures(load(folder / "config.yaml", [*slab, "system.supercell=[2, 3, 1]"]).system)
    assert len(atoms) == 12 and atoms.pbc.tolist() == [True, True, False] and atoms.cell.lengths()[2] == 12
    last = first_structures(atoms, 6, 0)[-1]
    np.testing.assert_array_equal(last.cell.array[2], atoms.cell.array[2])
    assert not np.any(last.cell.array[:2, 2]) and np.all(last.cell.array[:2, :2] != atoms.cell.array[:2, :2])
    full = (folder / "full.xyz").write_text(SLAB.replace(" F 40", " T 40").replace("0 0 12", "0 0 14")) and "full.xyz"
    for overrides, reason in (
        (["system.supercell=[1, 1, 2]"], r"system\.supercell: \[1, 1, 2\] does not fit, .* is periodic along a, b"),
        (
            ["explore={name: npt_nose_hoover}"],
            r"npt_nose_hoover needs a cell .* in all three directions, .* along a, b",
        ),
        ([f"system.file={full}", "explore={name: npt_nose_hoover}"], r"explore\.name: .* has a vacuum of 10\.0 Å"),
    ):
        with pytest.raises(InputError, match=reason) as caught:
            check(load(folder / "config.yaml", [*slab, *overrides]))
        assert "\n" not in str(caught.value)


COPPER = '4\nLattice="3.6 0 0 0 3.6 0 0 0 3.6"\nCu 0 0 0\nCu 0 1.8 1.8\nCu 1.8 0 1.8\nCu 1.8 1.8 0\n'


@pytest.mark.parametrize(
    ("overrides", "refused", "warned"),
    [
        (["label.stress=false"], "label.stress: false does not fit explore.name = npt_nose_hoover", ""),
        (["label.stress=false", "train.stress_weight=1"], "label.stress: false does not fit", ""),
        (
            ["label.stress=false", "train.stress_weight=1", "explore={name: nve}"],
            "train.stress_weight: 1 does not fit",
            "",
        ),
        ([], "", "train.stress_weight: 0, the cell of npt_nose_hoover follows a stress that is never trained on"),
        (["train.stress_weight=1"], "", ""),
        (["explore={name: nve, timestep: 90 fs}"], "", "explore.timestep: 90 fs is long for the Cu-Cu stretch"),
        (
            ["system.file=water.xyz", "explore={name: nve}", "train.stress_weight=1"],
            "",
            "train.stress_weight: 1 has no",
        ),
        (
            ["system.file=water.xyz", "explore={name: nvt_langevin, timestep: 4}"],
            "",
            "4 fs is long for the O-H stretch",
        ),
        (["system.file=water.xyz", "explore={name: descent, timestep: 4}"], "", ""),  # no dynamics
    ],
)
def test_stress_and_time_step(folder, overrides, refused, warned):
    (folder / "cu.xyz").write_text(COPPER)
    label = "label={name: ase, calculator: ase.calculators.emt.EMT}"
    config = load(folder / "config.yaml", ["system.file=cu.xyz", "explore={name: npt_nose_hoover}", label, *overrides])
    if refused:
        with pytest.raises(InputError, match=refused) as caught:
            check(config)
        assert "\n" not in str(caught.value)
        return
    lines = check(config)
    assert len(lines) == bool(warned) and all(warned in line and "\n" not in line for line in lines)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["system.charge=1"], "system.spin: 0 unpaired electrons are impossible, H2O with charge"),
        (["system.spin=1"], "system.spin: 1 unpaired electrons are impossible"),
        (
            ["explore={name: npt_nose_hoover}"],
            "explore.name: npt_nose_hoover needs a cell that is periodic in all three directions",
        ),
        (["explore.ramp=1 ps"], "explore.ramp: .*give final_temperature"),
        (["potential.l_max=0"], "potential.*hidden_l"),
        (["label={name: stillinger_weber}"], "label: stillinger_weber: knows silicon only"),
        (["label={name: morse}", "system.charge=2"], "system.charge: 2 does not fit; the oracle morse"),
        (["label={name: ase, calculator: no.Such}"], "label.calculator: cannot import 'no'"),
        (["label={name: pyscf, method: B3LIP}"], "label.method: "),
        (["seed=4294967296"], "seed: 4294967296"),
        (["label.initial=500"], "label.initial: 500 is too large; give at most stop.labels"),
        (["train.holdout=0"], "train.holdout: "),
    ],
)
def test_check_refuses_what_cannot_run(folder, overrides, expected):
    with pytest.raises(InputError, match=expected) as caught:
        check(load(folder / "config.yaml", overrides))
    assert "\n" not in str(caught.value)


def test_check_refuses_an_element_unknown_to_the_method(folder):
    (folder / "water.xyz").write_text("1\n\nU 0 0 0\n")  # GFN2-xTB ends at radon
    with pytest.raises(InputError, match=r"label: .* U"):
        check(load(folder / "config.yaml"))


def test_check_accepts_what_can_run(folder):
    for overrides in ([], ["system.charge=1", "system.spin=1"], ["label={name: lennard_jones}"]):
        check(load(folder / "config.yaml", overrides))


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        ("3\nenergy=-1.0\nO 0 0 0.12\nH 0 0.76 -0.48\nH 0 -0.76 -0.48\n", "frame 0: .*forces"),
        (
            "1\nProperties=species:S:1:pos:R:3:forces:R:3 energy=-1.0 spin=0\nHe 0 0 0 0 0 0\n",
            "frame 0 has He, of which",
        ),
        (
            "2\nProperties=species:S:1:pos:R:3:forces:R:3 energy=-1.0 charge=-1 spin=0\nO 0 0 0 0 0 0\nH 0 0 1 0 0 0\n",
            r"frame 0 has charge -1 with 0 unpaired electrons, of which the run has no frame",
        ),
        ("", "ASE cannot read it"),
    ],
)
def test_frames_to_compare_with_are_looked_at_before_anything_is_computed(folder, frame, reason):
    (folder / "test.xyz").write_text(frame)
    with pytest.raises(InputError, match=reason):
        check(load(folder / "config.yaml", ["validate.data=test.xyz"]))
    with pytest.raises(InputError, match=reason):
        check(load(folder / "config.yaml", ["system.validate=test.xyz"]))


def test_a_radical_whose_spin_nobody_says_is_told_and_only_for_methods_that_know_none(folder):
    """An open copper cluster has an odd number of electrons, and EMT knows none."""
    write(folder / "cluster.xyz", Icosahedron("Cu", 2, latticeconstant=3.6))
    emt = "label={name: ase, calculator: ase.calculators.emt.EMT}"
    for label, refused in ((emt, False), ("label={name: tblite}", True)):
        config = load(folder / "config.yaml", ["system.file=cluster.xyz", label])
        with pytest.warns(InputWarning, match=r"^system\.spin: .*cluster.xyz: frame 0 has an odd number of electrons"):
            if refused:
                with pytest.raises(InputError, match=r"^system\.spin: 0 unpaired electrons are impossible"):
                    check(config)
            else:
                check(config)
