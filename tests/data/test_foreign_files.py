"""What files of other programs state, and what used to be taken for something else in silence."""

import warnings

import ase
import ase.db
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read as ase_read
from ase.io import write
from gaussian_log import POSITIONS

from jaxal.core.errors import InputError, InputWarning
from jaxal.data import dataset, file_electrons, files, frames

GAUSSIAN = f""" Entering Gaussian System, Link 0=g16
 Charge = CHARGE Multiplicity = MULTIPLICITY
                          Input orientation:
{POSITIONS} SCF Done:  E(UB3LYP) =  -150.2   A.U. after   10 cycles
 Normal termination of Gaussian 16
"""
MOLFILE = """hydroxide
  drawn

  2  1  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.0000 O   0  0
    0.0000    0.0000    0.9700 H   0  0
  1  2  1  0
PROPERTIES
M  END
"""
PDB = "HETATM    1  O   LIG A   1       0.000   0.000   0.000  1.00  0.00          ELEMENTS\n" + (
    "HETATM    2  H   LIG A   1       0.000   0.000   0.970  1.00  0.00           H  \nEND\n"
)
ESPRESSO = """&control
/
&system
 ibrav=0, nat=2, ntyp=2, tot_charge=-1.0d0, tot_magnetization = 2
/
&electrons
/
ATOMIC_SPECIES
O 15.999 O.UPF
H 1.008 H.UPF
CELL_PARAMETERS angstrom
8 0 0
0 8 0
0 0 8
ATOMIC_POSITIONS angstrom
O 0 0 0
H 0 0 0.97
"""
POSCAR = """Selenium is not what this is
1.0
4 0 0
0 4 0
0 0 4
Si
2
selective dynamics
Direct
0 0 0 A
0.5 0.5 0.5 B
"""
XYZ = '2\nLattice="4 0 0 0 4 0 0 0 9" WORDS Properties=species:S:1:pos:R:3\nO 0 0 0\nH 0 0 0.97\n'


def electrons(folder, name, text):
    (folder / name).write_text(text)
    frame = files.read(folder / name)[0]
    return frame.charge, frame.spin


@pytest.mark.parametrize(
    ("name", "text", "stated"),
    [
        ("a.log", GAUSSIAN.replace("CHARGE", "-2").replace("MULTIPLICITY", "1"), (-2, 0)),
        ("b.log", GAUSSIAN.replace("CHARGE", " 0").replace("MULTIPLICITY", "3"), (0, 2)),
        ("a.gjf", "# PBEPBE/def2SVP\n\nhydroxide\n\n-1 1\nO 0.0 0.0 0.0\nH 0.0 0.0 0.97\n\n", (-1, 0)),
        ("a.mol", MOLFILE.replace("PROPERTIES", "M  CHG  1   1  -1"), (-1, None)),
        ("b.mol", MOLFILE.replace("PROPERTIES", "M  CHG  2   1  -2   2   1"), (-1, None)),
        ("c.mol", MOLFILE.replace("PROPERTIES\n", ""), (None, None)),
        ("a.sdf", MOLFILE.replace("PROPERTIES", "M  CHG  1   1  -1") + "$$$$\n", (-1, None)),
        ("a.pdb", PDB.replace("ELEMENTS", " O1-"), (-1, None)),
        ("b.pdb", PDB.replace("ELEMENTS", " O  "), (None, None)),
        ("a.pwi", ESPRESSO, (-1, 2)),
        (
            "b.pwi",
            ESPRESSO.replace(", tot_", "\n! tot_"),
            (None, None),
        ),
        ("coord", "$coord\n0 0 0 o\n0 0 1.83 h\n$charge\n -1\n$end\n", (-1, None)),
    ],
)
def test_a_charge_that_a_file_states_is_read(tmp_path, name, text, stated):
    assert electrons(tmp_path, name, text) == stated


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.log", 2 * GAUSSIAN.replace("MULTIPLICITY", "1").replace("CHARGE", "0", 1), "CHARGE"),
        ("a.pwi", ESPRESSO.replace("-1.0d0", "0.5"), "tot_charge '0.5' is not a whole number"),
        ("a.mol", MOLFILE.replace("PROPERTIES", "M  CHG  1   1   x"), "M  CHG 'x' is not a whole number"),
        ("a.mol", MOLFILE.replace("PROPERTIES", "M  ISO  1   2   2"), "has isotopes"),
        (
            "a.gjf",
            "# PBE/STO-3G\n\nwater\n\n0 1\nO 0.0 0.0 0.0\nH(iso=2) 0.0 0.0 0.97\nH 0.0 0.9 0.0\n\n",
            "has isotopes",
        ),
        ("a.pdb", PDB.replace("ELEMENTS", "    "), "no element in columns 77 and 78"),
    ],
)
def test_what_a_file_states_and_cannot_be_carried_is_refused(tmp_path, name, text, reason):
    if reason == "CHARGE":  # two calculations of different ions in a file
        first, second = (GAUSSIAN.replace("MULTIPLICITY", "1").replace("CHARGE", charge) for charge in ("0", "2"))
        text, reason = first + second, r"states charge \+0 with spin 0, charge \+2 with spin 0; give a file for each"
    with pytest.raises(InputError, match=reason):
        electrons(tmp_path, name, text)


@pytest.mark.parametrize("words", ["charge -1 multiplicity 1", "charge=T", "a charge of my own", "spin"])
def test_a_word_is_no_number_of_electrons(tmp_path, words):
    with pytest.raises(InputError, match=r"frame 0: (charge|spin) True is a flag, where a whole number is needed"):
        electrons(tmp_path, "a.xyz", XYZ.replace("WORDS", words))


@pytest.mark.parametrize(
    ("flags", "fixed"),
    [("F F F", True), ("f f f", True), (".FALSE. .false. .F.", True), ("T T T", False), (".true. t T", False)],
)
def test_flags_of_a_poscar_are_those_of_fortran(tmp_path, flags, fixed):
    (tmp_path / "POSCAR").write_text(POSCAR.replace("A", flags).replace("B", "T T T"))
    np.testing.assert_array_equal(files.read(tmp_path / "POSCAR")[0].fixed, [fixed, False])


@pytest.mark.parametrize("right", ['pbc="T T F"', "pbc=[T,T,F]", 'pbc="1 1 0"'])
def test_directions_that_repeat_are_flags(tmp_path, right):
    (tmp_path / "a.xyz").write_text(XYZ.replace("WORDS", right))
    np.testing.assert_array_equal(files.read(tmp_path / "a.xyz")[0].periodic, [True, True, False])


@pytest.mark.parametrize("wrong", ['"TTF"', '"[T,T,F]"', '"110"', '"t t f"', '"yes yes no"', "xy", "2"])
def test_other_words_for_them_are_refused(tmp_path, wrong):
    (tmp_path / "a.xyz").write_text(XYZ.replace("WORDS", f"pbc={wrong}"))
    with pytest.raises(InputError, match=r"frame 0 \(line 1\): pbc: .* is not read as the directions that repeat"):
        files.read(tmp_path / "a.xyz")
    (tmp_path / "a.xyz").write_text(XYZ.replace("WORDS", 'PBC="T T F"'))
    with pytest.raises(InputError, match="PBC: "):
        files.read(tmp_path / "a.xyz")


@pytest.mark.parametrize("nine", ["1 2 0 0 1 0 0 0 1", "1 0 0 2 1 0 0 0 1"])
def test_a_stress_that_is_not_symmetric_is_refused(tmp_path, nine):
    (tmp_path / "a.xyz").write_text(XYZ.replace("WORDS", f'energy=1.0 stress="{nine}"'))
    with pytest.raises(InputError, match="stress: its nine numbers are not symmetric"):
        files.read(tmp_path / "a.xyz")
    assert len(files.read(tmp_path / "a.xyz", labeled=False)) == 1, "where labels do not count"


def test_a_stress_of_a_later_calculation_counts(tmp_path):
    """What keeps all digits of an asymmetric stress does not outlive that stress."""
    atoms = bulk("Cu")
    stress = np.diag([0.1, 0.2, 0.3])
    stress[0, 1] = 1e-12
    numeric = frames.Numbers(-1.0, np.zeros((1, 3)), stress)
    files.write(tmp_path / "a.xyz", [frames.of_atoms(atoms)._replace(numeric=numeric)])
    np.testing.assert_array_equal(files.read(tmp_path / "a.xyz")[0].numeric.stress, stress)
    later: ase.Atoms = ase_read(tmp_path / "a.xyz")  # pyright: ignore
    results = {"energy": -2.0, "forces": np.zeros((1, 3))}
    for name, values in (("new", {"stress": np.full(6, 0.05)}), ("none", {})):
        later.calc = SinglePointCalculator(later, **results, **values)
        write(tmp_path / f"{name}.xyz", later)
    new, none = (files.read(tmp_path / f"{name}.xyz")[0].numeric.stress for name in ("new", "none"))
    np.testing.assert_array_equal(new, np.full((3, 3), 0.05))
    assert np.isnan(none).all()


def test_forces_of_a_dump_come_without_an_energy(tmp_path):
    dump = "ITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\n1\nITEM: BOX BOUNDS pp pp pp\n0 5\n0 5\n0 5\n"
    (tmp_path / "a.lammpstrj").write_text(dump + "ITEM: ATOMS id element x y z fx fy fz\n1 Cu 0 0 0 0.1 0 0\n")
    numeric = files.read(tmp_path / "a.lammpstrj")[0].numeric
    assert np.isnan(numeric.energy) and numeric.force[0, 0] == 0.1


def test_a_charge_in_the_row_of_a_database_is_not_hidden_by_ases_own(tmp_path):
    with ase.db.connect(tmp_path / "a.db") as database:
        database.write(molecule("H2O"), charge=2, spin=0)
    frame = files.read(tmp_path / "a.db")[0]
    assert (frame.charge, frame.spin) == (2, 0)


def test_old_results_are_not_carried_where_labels_do_not_count():
    atoms = molecule("H2O")
    atoms.info |= {"dipole": np.ones(3), "magmom": 2.0, "mine": 1}
    atoms.arrays |= {"charges": np.ones(3), "energies": np.ones(3), "own": np.ones(3)}
    carried = frames.of_atoms(atoms, labeled=False).carried
    assert [name for name, _ in carried.info] == ["mine"] and [name for name, _ in carried.arrays] == ["own"]


def test_numbers_that_mean_nothing_are_refused(tmp_path):
    atoms = molecule("H2O")
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.full((3, 3), 1e300))
    with pytest.raises(InputError, match=r"forces: 1e\+300 cannot be; leave the frame out"):
        frames.of_atoms(atoms)
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((3, 3)))
    atoms.info["converged"] = False
    with pytest.raises(InputError, match="converged is false: its numbers mean nothing"):
        frames.of_atoms(atoms)
    text = "1\nProperties=species:S:1:pos:R:3:Z:I:1\nO 0 0 0 8\n"
    (tmp_path / "a.xyz").write_text(text)
    assert files.read(tmp_path / "a.xyz")[0].numbers[0] == 8
    (tmp_path / "a.xyz").write_text(text.replace("0 8", "0 6"))
    with pytest.raises(InputError, match=r"\(line 3\): its species is O, but its Z is 6"):
        files.read(tmp_path / "a.xyz")


@pytest.mark.parametrize(
    "info", [{"x": 2**64}, {"x": {"y": -(2**70)}}, {"x": "\ud800"}, {"x": [[1], [1, 2]]}, {"Lattice": 1}, {"pbc": 1}]
)
def test_what_no_file_can_hold_is_left_out_with_a_warning(tmp_path, info):
    atoms = molecule("H2O")
    atoms.info |= info
    with pytest.warns(InputWarning, match=f"left out: {next(iter(info))}"):
        files.write(tmp_path / "a.xyz", [frames.of_atoms(atoms)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert files.read(tmp_path / "a.xyz")[0].carried.info == ()


def test_an_array_with_more_than_a_column_for_each_component_is_left_out(tmp_path):
    atoms = molecule("H2O")
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0)
    atoms.calc.results["born_effective_charges"] = np.zeros((3, 3, 3))
    with pytest.warns(InputWarning, match="left out: born_effective_charges"):
        files.write(tmp_path / "a.xyz", [frames.of_atoms(atoms)])
    assert files.read(tmp_path / "a.xyz")[0].numeric.energy == -1.0


ORCA = " Total Charge           Charge          ....   -1\n Multiplicity           Mult            ....    2\n"
NWCHEM = "          Charge           :    -1\n          Spin multiplicity:     2\n"


@pytest.mark.parametrize(("form", "text"), [("orca-output", ORCA), ("nwchem-out", NWCHEM)])
def test_outputs_say_charge_and_multiplicity_once_or_again_and_again(tmp_path, form, text):
    path = tmp_path / "out"
    assert file_electrons.stated(path, form, text) == (-1, 1)
    assert file_electrons.stated(path, form, 3 * text) == (-1, 1)
    assert file_electrons.stated(path, form, "nothing of the kind") == (None, None)


def test_isotopes_of_a_pwx_input_are_told(tmp_path):
    head = "&system\n ibrav=0, nat=2, ntyp=2, ecutwfc=30\n/\n&electrons\n/\nATOMIC_SPECIES\n"
    tail = (
        "O1 16.0 O.upf\n\nCELL_PARAMETERS angstrom\n5 0 0\n0 5 0\n0 0 5\nATOMIC_POSITIONS angstrom\nH 0 0 0\nO1 0 0 1\n"
    )
    (tmp_path / "a.pwi").write_text(f"{head}H 2.014 H.upf\n{tail}")
    with pytest.warns(InputWarning, match=r"a.pwi: the mass of H, 2.014 amu, is not read from this format"):
        frame = files.read(tmp_path / "a.pwi")[0]
    assert frame.mass[0] < 1.1
    (tmp_path / "b.pwi").write_text(f"{head}H 1.0 H.upf\n{tail}")
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        files.read(tmp_path / "b.pwi")


def test_a_column_of_masses_in_other_units_is_told(tmp_path):
    atoms = molecule("H2O")
    atoms.set_array("mass", atoms.get_masses() * 103.6)
    write(tmp_path / "a.xyz", atoms, format="extxyz")
    with pytest.warns(InputWarning, match="frame 0 carries mass: it is not read"):
        frame = files.read(tmp_path / "a.xyz")[0]
    np.testing.assert_array_equal(frame.mass, molecule("H2O").get_masses())


@pytest.mark.parametrize(
    "moment, initial, spin", [(2.003, 0, 2), (-2.0, 0, 2), (0.0, 0, None), (2.0, 4, 2), (1.6, 0, None), (0.0, 2, 2)]
)
@pytest.mark.parametrize("labeled", [True, False])
def test_the_moment_of_a_calculation_counts_unpaired_electrons(tmp_path, moment, initial, spin, labeled):
    atoms = molecule("O2")
    atoms.set_initial_magnetic_moments([initial, 0])
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((2, 3)), magmom=moment)
    write(tmp_path / "a.xyz", atoms)
    with ase.db.connect(tmp_path / "a.db") as database:
        database.write(atoms)
    for name in ("a.xyz", "a.db"):
        assert files.read(tmp_path / name, labeled)[0].spin == spin, name


def test_the_moment_of_a_crystal_is_told_not_read(tmp_path):
    atoms = bulk("Ni")
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((1, 3)), magmom=1.0)
    write(tmp_path / "a.xyz", atoms)
    with pytest.warns(InputWarning, match="frame 0 carries magmom: nothing about electrons is read from it"):
        frames_of = dataset.labeled(tmp_path / "a.xyz", "data").frames
    assert frames_of[0].spin == 0
