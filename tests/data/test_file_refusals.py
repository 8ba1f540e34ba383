"""Files of other programs of which ASE's readers make something else, and names that nothing is read from."""

import warnings

import ase
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.io import write
from gaussian_log import POSITIONS

from jaxal.core.errors import InputError, InputWarning
from jaxal.data import file_electrons, file_refusals, files

GJF = "# ROUTE\n\nt\n\nELECTRONS\nO 0.0 0.0 0.1\nH 0.8 0.0 0.7\nH -0.8 0.0 0.7\n\n"
ORIENTED = f""" ORIENTATION orientation:
{POSITIONS} SCF Done:  E(UB3LYP) =  -150.2   A.U. after   10 cycles
 MORE
 Center     Atomic                   Forces (Hartrees/Bohr)
 Number     Number              X              Y              Z
 -------------------------------------------------------------------
      1        8           0.000000000    0.000000000    0.010000000
      2        8           0.000000000    0.000000000   -0.010000000
 -------------------------------------------------------------------
 Cartesian Forces:  Max     0.010000000 RMS     0.005773503
 Normal termination of Gaussian 16
"""
LOG = " Entering Gaussian System, Link 0=g16\n Charge =  0 Multiplicity = 3\n" + ORIENTED
COORD = "$coordHOW\n 0.0 0.0 0.1 o\n 0.0 0.0 2.0 h\nMORE$end\n"
MOL = (
    "a\n b\n\n  1  0  0  0  0  0  0  0  0  0999 V2000\n    0.0000    0.0000    0.0000 OMASSCODE  0\nPROPERTIESM  END\n"
)
DUMP = "ITEM: UNITS\nSTYLEITEM: TIMESTEP\n0\nITEM: NUMBER OF ATOMS\nCOUNT\nITEM: BOX BOUNDS pp pp pp\n0 5\n0 5\n0 5\n"
DUMP += "ITEM: ATOMS id element x y z fx fy fz\n1 Cu 0 0 0 0.1 0 0\n"
CELL = "%block lattice_cart\nUNIT5 0 0\n0 5 0\n0 0 5\n%endblock lattice_cart\n%block positions_frac\nSi 0 0 0ROW\n"
CELL += "%endblock positions_frac\nMORE"
RES = "TITL a\nCELL 1.0 5 5 5 90 90 90\nMORESFAC Si\nSi 1 0.0 0.0 0.0 SHARE\nEND\n"
POSCAR = "t\n1.0\n5 0 0\n0 5 0\n0 0 5\nSi\n1\nDirect\n0 0 0\n"
GEN = "2 C\nO H\n1 1 0 0 0\n2 2 0 0 1\n"
XSF = "CRYSTAL\nPRIMVEC\n5 0 0\n0 5 0\n0 0 5\nPRIMCOORD\n1 1\nSi 0 0 0 0.1 0 0\n"
LOOP = "loop_\n_atom_site_label\n_atom_site_type_symbol\n_atom_site_fract_x\n_atom_site_fract_y\n_atom_site_fract_z\n"
CIF = "data_a\n_cell_length_a 5\n_cell_length_b 5\n_cell_length_c 5\n_cell_angle_alpha 90\n_cell_angle_beta 90\n"
CIF += f"_cell_angle_gamma 90\n_symmetry_space_group_name_H-M 'P 1'\n{LOOP}KIND\nSi1 Si 0 0 0 FIRST\n"
CIF += "Si2 Si 0.5 0.5 0.5 SECOND\n"
MASSES = DUMP.replace("id element", "id element mass").replace("1 Cu 0", "1 Cu WEIGHT 0")
GRO = "t\n    2\n    1NA      NA    1   0.000   0.000   0.010\n    2CL      CL    2   0.276   0.000   0.010\n 1 1 1\n"


def filled(text: str, **words: str) -> str:
    for name, word in words.items():
        text = text.replace(name, word)
    return text


def gjf(route: str = "pbe", electrons: str = "0 1") -> str:
    return filled(GJF, ROUTE=route, ELECTRONS=electrons)


def mol(mass: str = "   0", code: str = "  0", properties: str = "") -> str:
    return filled(MOL, MASS=mass, CODE=code, PROPERTIES=properties)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.gjf", gjf() + "--Link1--\n" + gjf(), "has several jobs, which are read as one structure; give a file"),
        ("a.gjf", gjf("pbe units=au"), "has positions in Bohr, which are read as Å"),
        ("a.gjf", gjf("pbe units(bohr)"), "has positions in Bohr, which are read as Å"),
        ("a.log", LOG.replace("Number     Number              X", " O(Iso=18)  0 0 0\n X"), "has isotopes"),
        ("a.log", " AtmWgt=  15.9949146   2.0141018\n" + LOG, "has isotopes"),
        ("coord", filled(COORD, HOW=" angs", MORE=""), "has positions that are not in Bohr"),
        ("coord", filled(COORD, HOW="", MORE="$periodic 3\n"), "has a cell, which is not read"),
        ("coord", filled(COORD, HOW="", MORE="") * 2, "has several structures, of which one is read"),
        ("a.sdf", (mol() + "$$$$\n") * 2, "has several molecules, of which one is read"),
        ("a.sdf", mol().replace("V2000", "V3000"), "has the version V3000, which is not read"),
        ("a.mol", mol(mass="   2"), "has isotopes"),
        ("POSCAR", POSCAR * 2, "has several structures, of which one is read"),
        ("a.gen", GEN * 2, "has more lines than its first structure"),
        (
            "a.gen",
            GEN.replace("C", "S") + "0 0 0\n5 0 0\n0 5 0\n0 0 5\n" + GEN,
            "has more lines than its first structure",
        ),
        ("a.xsf", XSF * 2, "has several structures without ANIMSTEPS"),
        ("a.res", filled(RES, MORE="SYMM -x,-y,z\n", SHARE="1.0"), "has symmetry"),
        ("a.res", filled(RES, MORE="LATT 1\n", SHARE="1.0"), "has a centered or centrosymmetric lattice"),
        ("a.res", filled(RES, MORE="", SHARE="0.5"), "has a site that is partly empty"),
        ("a.cell", filled(CELL, UNIT="a0\n", ROW="", MORE=""), "has a unit of length that is read as Å"),
        ("a.cell", filled(CELL, UNIT="", ROW=" MIXTURE:(1 0.5)", MORE=""), "has a site that is shared"),
        ("a.cell", filled(CELL, UNIT="", ROW="", MORE="FIX_ALL_IONS : true\n"), "has FIX_ALL_IONS, which is not read"),
        (
            "a.cif",
            filled(CIF, KIND="_atom_site_disorder_group", FIRST="1", SECOND="2"),
            "has atoms of disorder groups 1, 2",
        ),
        (
            "a.cif",
            filled(CIF, KIND="_atom_site_disorder_group", FIRST=".", SECOND="-1"),
            "has atoms of disorder groups -1",
        ),
        ("a.cif", filled(CIF, KIND="_atom_site_calc_flag", FIRST="calc", SECOND="dum"), "has dummy sites"),
        ("a.lammpstrj", filled(MASSES, STYLE="metal\n", COUNT="1", WEIGHT="65.0"), "has isotopes"),
        ("a-frc-1.xyz", "1\n i = 0, E = -1.0\nO 0 0 0.1\n", "its name is one of CP2K's for forces or velocities"),
        ("a.gro", GRO, "has names of atoms, such as NA, where elements are needed"),
        ("a.lammpstrj", filled(DUMP, STYLE="lj\n", COUNT="1"), "has units that are not read"),
        ("a.lammpstrj", filled(DUMP, STYLE="metal\n", COUNT="3"), "frame 0 is cut off: it says 3 atoms"),
    ],
)
def test_what_a_reader_would_pass_over_is_refused(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    for labeled in (True, False):
        with pytest.raises(InputError, match=rf"^{tmp_path / name}: {expected}"):
            files.read(tmp_path / name, labeled)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("POSCAR", POSCAR + "\n0.01 0 0\n"),  # with a velocity
        ("CONTCAR", POSCAR + "Lattice velocities and vectors\n 1\n0 0 0\n0 0 0\n0 0 0\n5 0 0\n0 5 0\n0 0 5\n"),
        ("a.gen", GEN.replace("C", "S") + "0 0 0\n5 0 0\n0 5 0\n0 0 5\n\n"),
        ("a.xsf", "ANIMSTEPS 2\n" + XSF + XSF.split("0 0 5\n")[1]),
        ("a.res", filled(RES, MORE="LATT -1\n", SHARE="1.0")),
        ("a.res", filled(RES.replace("CELL 1.0", "CELL 1"), MORE="", SHARE="11.0")),
        ("a.cell", filled(CELL, UNIT="ang\n", ROW="", MORE="FIX_ALL_IONS : false\n")),
        ("a.cif", filled(CIF, KIND="_atom_site_disorder_group", FIRST=".", SECOND="1")),
        ("a.lammpstrj", filled(MASSES, STYLE="metal\n", COUNT="1", WEIGHT="63.55")),
    ],
)
def test_what_a_reader_reads_whole_is_not_refused(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        assert files.read(tmp_path / name, labeled=False)


def test_a_format_that_nobody_checked_is_told(tmp_path):
    write(tmp_path / "a.xsd", bulk("NaCl", "rocksalt", a=5.64, cubic=True))
    with pytest.warns(
        InputWarning, match="is read as ASE reads xsd; charge, spin, masses, fixed atoms and units of it"
    ):
        files.read(tmp_path / "a.xsd", labeled=False)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.xsf", "# total energy = -1.0 eV\n" + XSF, "a total energy, as files of aenet have"),
        ("a.log", filled(LOG, ORIENTATION="Standard", MORE=""), "positions in the standard orientation"),
        ("a.log", filled(LOG, ORIENTATION="Input", MORE="Total Energy, E(TD-HF/TD-DFT) = -150.1"), "an excited state"),
        ("a.log", filled(LOG, ORIENTATION="Input", MORE="SCF Done:  E(UHF) = -149."), "energies of several methods"),
        ("a.lammpstrj", filled(DUMP, STYLE="real\n", COUNT="1"), "forces in kcal/mol/Å, which are read as eV/Å"),
    ],
)
def test_labels_that_a_reader_would_take_for_others_are_refused_where_they_count(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=rf"^{tmp_path / name}: has {expected}"):
        files.read(tmp_path / name)
    assert len(files.read(tmp_path / name, labeled=False)) == 1


@pytest.mark.parametrize(
    ("name", "text", "electrons"),
    [
        ("a.gjf", gjf(electrons="-2 1 0 1 -2 1"), (-2, 0)),
        ("a.mol", mol(code="  3"), (1, None)),
        ("a.mol", mol(code="  5"), (-1, None)),
        ("a.mol", mol(), (None, None)),
        ("a.mol", mol(properties="M  RAD  1   1   3\n"), (0, 2)),
        ("a.sdf", mol() + ">  <CHARGE>\n-1\n\n> <MULTIPLICITY>\n2\n\n$$$$\n", (-1, 1)),
        ("a.sdf", mol(code="  3") + "> <PUBCHEM_TOTAL_CHARGE>\n1\n\n> <PARTIAL_CHARGES>\n0.5\n\n$$$$\n", (1, None)),
        ("coord", filled(COORD, HOW="", MORE="$eht charge=1 unpaired=1\n").replace(" h\n", " o\n"), (1, 1)),
        ("a.log", filled(LOG, ORIENTATION="Input", MORE=""), (0, 2)),
    ],
)
def test_electrons_by_further_names_are_read(tmp_path, name, text, electrons):
    (tmp_path / name).write_text(text)
    frame = files.read(tmp_path / name)[0]
    assert (frame.charge, frame.spin) == electrons


@pytest.mark.parametrize(
    ("line", "charge"),
    [("TOT_CHARGE=1", 1), ("Tot_Charge = 1.0D0", 1), ("input_dft='tot_charge=3'", None), ("! tot_charge=2", None)],
)
def test_the_charge_of_a_pwx_input_ignores_case_quotes_and_comments(tmp_path, line, charge):
    (tmp_path / "a.pwi").write_text(
        f"&system\n ibrav=0, nat=1, ntyp=1\n {line}\n/\n&electrons\n/\nATOMIC_SPECIES\nNa 22.99 Na.upf\n\n"
        "CELL_PARAMETERS angstrom\n5 0 0\n0 5 0\n0 0 5\nATOMIC_POSITIONS angstrom\nNa 0 0 0\n"
    )
    assert files.read(tmp_path / "a.pwi")[0].charge == charge


OUTCAR = "   ions per type =    1   2\n   ZVAL   =   6.00  1.00\n   NELECT =       {}    total number of electrons\n"
VASPRUN = (
    '<i name="NELECT">     {}</i><array name="atomtypes" ><set>\n'
    "<rc><c>   1</c><c>O </c><c>     16.00000000</c><c>      6.00000000</c><c>  PAW_PBE O </c></rc>\n"
    "<rc><c>   2</c><c>H </c><c>      1.00000000</c><c>      1.00000000</c><c>  PAW_PBE H </c></rc>\n</set></array>"
)


@pytest.mark.parametrize(("form", "text"), [("vasp-out", OUTCAR), ("vasp-xml", VASPRUN)])
def test_the_charge_that_the_electrons_of_vasp_leave_is_read(tmp_path, form, text):
    for electrons, charge in (("8.0000", None), ("7.0000", 1), ("9.0000", -1)):
        assert file_electrons.stated(tmp_path, form, text.format(electrons)) == (charge, None)
    with pytest.raises(InputError, match=r"the charge that NELECT leaves '0\.500' is not a whole number"):
        file_electrons.stated(tmp_path, form, text.format("7.5000"))


def test_what_atoms_and_data_of_an_sdf_say_must_agree(tmp_path):
    (tmp_path / "a.sdf").write_text(mol(code="  3") + "> <charge>\n0\n\n$$$$\n")
    with pytest.raises(InputError, match=r"a\.sdf: its atoms have charge 1, a data item 0; give the same"):
        files.read(tmp_path / "a.sdf")


def test_the_charge_of_a_castep_output_is_read(tmp_path):
    text = "  net charge of system               :  1.000\n"
    assert file_electrons.stated(tmp_path, "castep-castep", text) == (1, None)


def test_a_vasprun_of_a_step_that_took_all_its_steps_is_refused(tmp_path):
    text = '<i type="int" name="NELM">     3</i>' + "".join(f"<calculation>{'<scstep>' * n}" for n in (2, 3))
    with pytest.raises(InputError, match="has a step of as many steps of its electrons as NELM allows"):
        file_refusals.refuse(tmp_path, "vasp-xml", text, True)
    file_refusals.refuse(tmp_path, "vasp-xml", text.replace("3</i>", "4</i>"), True)


def test_a_vasp_step_that_did_not_converge_is_refused(tmp_path):
    text = "aborting loop EDIFF was not reached (unconverged)"
    with pytest.raises(InputError, match="has steps whose electrons did not converge"):
        file_refusals.refuse(tmp_path, "vasp-out", text, True)
    file_refusals.refuse(tmp_path, "vasp-out", text, False)


def test_elements_of_an_old_poscar_come_from_a_potcar_beside_it(tmp_path):
    (tmp_path / "POSCAR").write_text("t\n1.0\n5 0 0\n0 5 0\n0 0 5\n1 1\nDirect\n0 0 0\n0.5 0.5 0.5\n")
    with pytest.raises(InputError, match=r"POSCAR: ASE cannot read it as vasp, .*; mend it, or give extended XYZ"):
        files.read(tmp_path / "POSCAR", labeled=False)
    titles = "".join(f"   TITEL  = PAW_PBE {name}\n" for name in ("Cu 22Jun2005", "O 08Apr2002"))
    (tmp_path / "POTCAR").write_text(titles)
    assert files.read(tmp_path / "POSCAR", labeled=False)[0].numbers.tolist() == [29, 8]


# ---------------------------------------------------------------- extended XYZ


def water(tmp_path, words: str = "", column: str = "", values: tuple[str, str, str] = ("", "", "")):
    rows = zip(("O 0 0 0.1 0 0 0.1", "H 0.76 0 0.69 0 0 -0.05", "H -0.76 0 0.69 0 0 -0.05"), values, strict=True)
    lines = "\n".join(f"{row} {value}" for row, value in rows)
    path = tmp_path / "a.xyz"
    path.write_text(f"3\nProperties=species:S:1:pos:R:3:forces:R:3{column} energy=-10 {words}\n{lines}\n")
    return path


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("kcal/mol", "kcal/mol: no unit is read"),
        ("energy_unit=Hartree", "energy_unit: no unit is read"),
        ("units=atomic", "units: no unit is read"),
        ("Bohr", "Bohr: no unit is read"),
        ("units: bohr", "bohr: no unit is read"),
        ("q=-1", "q: nothing about electrons"),
        ("triplet", "triplet: nothing about electrons"),
        ("nelec=8", "nelec: nothing about electrons"),
        ("-1 1", "-1 1: nothing about electrons"),
        ("mult=3", "mult: nothing about electrons"),
        ("Config_weight=0", "Config_weight: no weight is read"),
    ],
)
@pytest.mark.parametrize("labeled", [True, False])
def test_words_that_nothing_is_read_from_are_told(tmp_path, words, told, labeled):
    with pytest.warns(InputWarning, match=rf"a\.xyz: frame 0 carries {told}"):
        files.read(water(tmp_path, words), labeled)


@pytest.mark.parametrize("words", ["energy_unit=eV", "units=metal", "0 1", "triple", "note=weight", "united=x"])
def test_words_that_mean_nothing_are_not(tmp_path, words):
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        files.read(water(tmp_path, words))


@pytest.mark.parametrize(
    ("column", "values", "told"),
    [
        (":formal_charges:R:1", ("1", "0", "0"), "formal_charges: nothing about electrons"),
        (":spins:R:1", ("2", "0", "0"), "spins: nothing about electrons"),
        (":initial_magmoms:R:3", ("0 0 2", "0 0 0", "0 0 0"), "initial_magmoms: nothing about electrons"),
        (":fixed:L:1", ("T", "F", "F"), "fixed: no constraint is read"),
        (":selective_dynamics:L:3", ("T T T", "F F F", "F F F"), "selective_dynamics: no constraint is read"),
        (":forces_weight:R:1", ("0", "1", "1"), "forces_weight: no weight is read"),
    ],
)
def test_columns_that_nothing_is_read_from_are_told(tmp_path, column, values, told):
    with pytest.warns(InputWarning, match=f"frame 0 carries {told}"):
        files.read(water(tmp_path, column=column, values=values))


@pytest.mark.parametrize("masses", [("2.6e-26", "1.6e-27", "1.6e-27"), ("29156.9", "1837", "1837")])
def test_masses_in_another_unit_are_told(tmp_path, masses):
    with pytest.warns(InputWarning, match=r"frame 0: atom \d has a mass of [\d.e+-]+; masses are in amu"):
        files.read(water(tmp_path, column=":masses:R:1", values=masses))


@pytest.mark.parametrize(
    ("words", "column", "values", "expected"),
    [
        ('lattice="9 0 0 0 9 0 0 0 9"', "", ("", "", ""), "lattice is not read; write Lattice"),
        ('Cell="9 0 0 0 9 0 0 0 9"', "", ("", "", ""), "Cell is not read; write Lattice"),
        ('Lattice="9 0 0 0 9 0 0 0 9" periodic=F', "", ("", "", ""), "periodic is not read; write pbc"),
        ("charge: -1 mult: 1", "", ("", "", ""), "charge True is a flag, where a whole number is needed"),
        ("", ":symbols:S:1", ("O", "C", "H"), "a column `symbols` beside species"),
        ("", ":numbers:I:1", ("8", "6", "1"), "a column `numbers` beside species"),
        ("", ":positions:R:3", ("0 0 0", "0 0 1", "0 0 2"), "a column `positions` beside species"),
        ("", ":move_mask:S:1", ("F", "T", "T"), "move_mask must be of logical values"),
        ("", ":masses:S:1", ("a", "a", "a"), "masses: not a finite number for each atom"),
        ("", ":masses:R:2", ("1 1", "1 1", "1 1"), "masses: not a finite number for each atom"),
        ("", ":initial_magmoms:S:1", ("a", "a", "a"), "initial_magmoms: not a finite number for each atom"),
        ("", ":initial_charges:R:1", ("nan", "0", "0"), "initial_charges: not a finite number for each atom"),
        ("converged=0", "", ("", "", ""), "converged is false"),
        ("scf_converged=F", "", ("", "", ""), "scf_converged is false"),
        ("converged=no", "", ("", "", ""), "converged is false"),
        (
            'Lattice="9 0 0 0 9 0 0 0 9" virial="1 0 0 0 1 0 0 0 1" virials="2 0 0 0 2 0 0 0 2"',
            "",
            ("", "", ""),
            "virial and virials differ",
        ),
    ],
)
def test_what_would_be_read_otherwise_is_refused(tmp_path, words, column, values, expected):
    with pytest.raises(InputError, match=rf"a\.xyz: frame 0.*: {expected}"):
        files.read(water(tmp_path, words, column, values))


@pytest.mark.parametrize("name", ["virials_weight", "config_virial_weight", "config_force_weight"])
def test_further_names_of_weights_count(tmp_path, name):
    share = files.read(water(tmp_path, f"{name}=0"))[0].share
    assert (share.stress, share.force).count(0.0) == 1


def test_heavy_isotopes_are_no_other_unit(tmp_path):
    atoms = ase.Atoms(molecule("H2O"))
    atoms.set_masses([17.999, 4.0, 3.016])  # as repartitioned for long time steps, tritium
    write(tmp_path / "a.xyz", atoms, columns=["symbols", "positions", "masses"], format="extxyz")
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        np.testing.assert_allclose(files.read(tmp_path / "a.xyz")[0].mass, [17.999, 4.0, 3.016])


def test_lines_end_where_programs_end_them(tmp_path):
    """A vertical tab or form feed ends no line, a carriage return before the newline belongs to its end."""
    (tmp_path / "a.gjf").write_bytes(gjf(electrons="-2 1").replace("\n", "\r\n").encode())
    assert files.read(tmp_path / "a.gjf")[0].charge == -2
    poscar = "Si\n1.0\n5 0 0\n0 5 0\n0 0 5\nSi\n2\nCartesian\n0 0\v0\n1.5 1.5 4.0\v99\n9 9 9\n"
    (tmp_path / "POSCAR").write_text(poscar)
    np.testing.assert_array_equal(files.read(tmp_path / "POSCAR")[0].position, [[0, 0, 0], [1.5, 1.5, 4.0]])
    (tmp_path / "a.xyz").write_text("1\nnote=a\x0cb\nO 0 0 0\n")
    assert len(files.read(tmp_path / "a.xyz")[0].numbers) == 1


def test_what_ase_says_of_a_cif_is_no_unit(tmp_path):
    write(tmp_path / "a.cif", bulk("NaCl", "rocksalt", a=5.64, cubic=True))
    with warnings.catch_warnings():
        warnings.simplefilter("error", InputWarning)
        assert len(files.read(tmp_path / "a.cif", labeled=False)[0].numbers) == 8
