"""The door for data: every key a frame may carry is read for what it means, or refused in one line."""

import ase
import numpy as np
import pytest
from ase.build import bulk, fcc111, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixBondLength, FixCartesian, FixedPlane, FixScaled
from ase.stress import full_3x3_to_voigt_6_stress

from jaxal.core.errors import InputError
from jaxal.data import frames
from jaxal.data.labels import Share


def labeled(atoms: ase.Atoms, prefix: str = "", **others) -> ase.Atoms:
    """Atoms with an energy and forces in info and arrays, under names with a prefix."""
    rng = np.random.default_rng(len(atoms))
    atoms.info |= {f"{prefix}energy": -3.0, **others}
    atoms.arrays[f"{prefix}forces"] = rng.normal(size=(len(atoms), 3))
    return atoms


def refusal(atoms: ase.Atoms) -> str:
    with pytest.raises(InputError) as error:
        frames.of_atoms(atoms)
    assert "\n" not in str(error.value)
    return str(error.value)


# ---------------------------------------------------------------- labels


def test_the_reference_comes_before_everything_else():
    atoms = labeled(molecule("H2O"), "REF_")
    meant = atoms.arrays["REF_forces"].copy()
    atoms.info["energy"], atoms.arrays["forces"] = 0.0, np.zeros((3, 3))
    atoms.calc = SinglePointCalculator(atoms, energy=1.0, forces=np.ones((3, 3)))
    frame = frames.of_atoms(atoms)
    assert frame.numeric.energy == -3.0
    np.testing.assert_array_equal(frame.numeric.force, meant)


@pytest.mark.parametrize(
    ("reference", "plain", "missing"),
    [
        (("energy",), ("energy", "forces"), "forces"),
        (("forces",), ("energy", "forces"), "energy"),
        (("energy", "forces"), ("energy", "forces", "stress"), "stress"),
        (("energy", "forces"), ("energy", "forces", "virial"), "stress"),
    ],
)
def test_two_families_that_hold_different_things_are_refused(reference, plain, missing):
    atoms = bulk("Cu", cubic=True)
    values = {"energy": 1.0, "forces": np.zeros((4, 3)), "stress": np.zeros((3, 3)), "virial": np.eye(3)}
    for prefix, names in (("REF_", reference), ("", plain)):
        for name in names:
            (atoms.arrays if name == "forces" else atoms.info)[prefix + name] = values[name]
    assert missing in refusal(atoms) and "REF_" in refusal(atoms)


def test_the_energy_is_the_one_whose_gradient_the_forces_are():
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=0)
    results = {"energy": 1.0, "free_energy": 2.0, "forces": np.zeros((4, 3))}
    atoms.calc = SinglePointCalculator(atoms, **results)
    assert frames.of_atoms(atoms).numeric.energy == 2.0
    for prefix in ("", "REF_"):
        other = labeled(molecule("H2O"), prefix, **{f"{prefix}free_energy": 7.0})
        assert frames.of_atoms(other).numeric.energy == 7.0


@pytest.mark.parametrize("prefix", ["", "REF_"])
@pytest.mark.parametrize("name", ["virial", "virials"])
@pytest.mark.parametrize("six", [False, True])
def test_a_virial_is_minus_the_stress_times_the_volume(prefix, name, six):
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.1, seed=1)
    atoms.calc = EMT()
    stress = atoms.get_stress(voigt=False)
    virial = -stress * atoms.get_volume()
    other = labeled(bulk("Cu", cubic=True), prefix)
    other.info[prefix + name] = full_3x3_to_voigt_6_stress(virial) if six else virial
    np.testing.assert_allclose(frames.of_atoms(other).numeric.stress, stress, atol=1e-15)
    other.info[f"{prefix}stress"] = stress
    np.testing.assert_allclose(frames.of_atoms(other).numeric.stress, stress, atol=1e-15)
    other.info[f"{prefix}stress"] = -stress
    assert "give one of them" in refusal(other)


def test_what_is_absent_is_not_zero():
    frame = frames.of_atoms(bulk("Cu", cubic=True))
    assert all(np.isnan(values).all() for values in frame.numeric)
    open_structure = labeled(molecule("H2O"), stress=np.eye(3))
    assert np.isnan(frames.of_atoms(open_structure).numeric.stress).all(), "an open structure has no stress"


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("energy", "NA", "energy: 'NA' is no number"),
        ("energy", "-1.379D+02", "is no number"),
        ("energy", float("nan"), "energy: not a finite number"),
        ("energy", [1.0, 2.0], r"energy: numbers [2], where [] are needed"),
        ("energy", True, "is no number"),
        ("forces", np.full((3, 3), np.nan), "forces: not a finite number"),
        ("forces", np.zeros((3, 2)), "forces: numbers [3, 2], where [3, 3] are needed"),
        ("config_weight", -1.0, "config_weight: -1 is below zero"),
        ("energy_weight", "much", "is no number"),
        ("charge", 0.5, "not a whole number"),
        ("spin", -1, "spin -1 cannot be"),
        ("multiplicity", 0, "multiplicity 0 cannot be; give 1 or more"),
    ],
)
def test_what_is_no_number_is_named(name, value, words):
    atoms = labeled(molecule("H2O"))
    (atoms.arrays if name == "forces" else atoms.info)[name] = value
    assert words in refusal(atoms)


@pytest.mark.parametrize("stress", [[0.1, 0.2, 0.3], np.arange(9.0).reshape(3, 3), np.full(6, np.inf)])
def test_a_stress_has_six_numbers_or_nine_that_are_symmetric(stress):
    for prefix in ("", "REF_"):
        atoms = labeled(bulk("Cu"), prefix, **{f"{prefix}stress": stress})
        assert f"{prefix}stress: " in refusal(atoms)


def test_weights_multiply_and_zero_leaves_out():
    atoms = labeled(bulk("Cu"), config_weight=2.0, energy_weight=3.0, config_stress_weight=0.0, stress=np.eye(3))
    frame = frames.of_atoms(atoms)
    assert frame.share == Share(6.0, 2.0, 0.0)
    assert np.isnan(frame.label.stress).all() and frame.label.energy == -3.0
    assert frame.numeric.stress[0, 0] == 1.0, "what came in can go out again"


# ---------------------------------------------------------------- electrons


@pytest.mark.parametrize(
    ("info", "charge", "spin"),
    [
        ({}, None, None),
        ({"charge": 1, "spin": 1}, 1, 1),
        ({"total_charge": -1.0, "spin": 1}, -1, 1),
        ({"Charge": 1, "multiplicity": 2}, 1, 1),
        ({"charge": 1, "spin_multiplicity": 4, "spin": 3}, 1, 3),
        ({"charge": np.int64(2)}, 2, None),
        ({"uhf": 2}, None, 2),
    ],
)
def test_electrons_by_their_usual_names(info, charge, spin):
    atoms = molecule("H2O")
    atoms.info |= info
    frame = frames.of_atoms(atoms)
    assert (frame.charge, frame.spin) == (charge, spin)
    back = frames.of_atoms(frames.to_atoms(frame))
    assert (back.charge, back.spin) == (charge, spin)


def test_whole_sums_of_initial_charges_and_moments():
    atoms = molecule("O2")
    atoms.set_initial_magnetic_moments([1.0, 1.0])
    assert frames.of_atoms(atoms).spin == 2
    atoms.set_initial_magnetic_moments([1.0, -1.0])
    assert frames.of_atoms(atoms).spin is None, "a sum of zero says nothing"
    atoms.set_initial_magnetic_moments([0.3, 0.4])
    assert frames.of_atoms(atoms).spin is None
    atoms.set_initial_charges([-0.5, -0.5])
    assert frames.of_atoms(atoms).charge == -1
    atoms.info["charge"] = 0
    assert frames.of_atoms(atoms).charge == 0, "what is said comes before what is summed"


def test_contradictions_and_impossible_electrons_are_refused():
    atoms = molecule("H2O")
    atoms.info |= {"spin": 1, "multiplicity": 1}
    assert "contradict" in refusal(atoms)
    atoms.info = {"spin": 1}
    assert "1 unpaired electrons are impossible" in refusal(atoms)
    atoms.info = {"charge": 11, "spin": 0}
    assert "more than the 10 electrons" in refusal(atoms)
    metal = bulk("Cu")
    metal.info = {"charge": 0, "spin": 0}
    assert frames.of_atoms(metal).spin == 0, "29 electrons in a cell of a crystal pair with the next"


def radical_atoms() -> ase.Atoms:
    """Methyl without the magnetic moments that ASE brings."""
    return ase.Atoms(molecule("CH3").symbols, molecule("CH3").positions)


def test_electrons_that_nobody_says_are_unknown_and_stay_so():
    radical = frames.with_electrons(frames.of_atoms(radical_atoms()), None, None, "data")
    assert (radical.charge, radical.spin) == (0, 0)
    atoms = frames.to_atoms(radical)
    assert atoms.info["electrons"] == "unknown"
    again = frames.of_atoms(atoms)
    assert (again.charge, again.spin) == (0, 0)
    assert frames.with_electrons(again, None, None, "data")[6:8] == (0, 0)
    atoms.info["spin"] = 1  # what is said counts
    assert frames.of_atoms(atoms).spin == 1
    atoms.info |= {"charge": 1, "spin": 1}
    with pytest.raises(InputError, match="1 unpaired electrons are impossible"):
        frames.of_atoms(atoms)
    with pytest.raises(InputError, match=r"^data\.spin: 0 unpaired electrons are impossible"):
        frames.with_electrons(frames.of_atoms(radical_atoms()), None, 0, "data")
    closed = frames.to_atoms(frames.with_electrons(frames.of_atoms(molecule("CH4")), None, None, "data"))
    assert "electrons" not in closed.info


def test_frame_and_configuration_must_agree():
    atoms = molecule("H2O")
    atoms.info["charge"] = 1
    frame = frames.of_atoms(atoms)
    assert frames.with_electrons(frame, 1, 1, "system")[6:8] == (1, 1)
    for bare, charge in ((frame, 1), (frame._replace(charge=1), None)):  # a charge that leaves an electron unpaired
        with pytest.raises(InputError, match="spin: 0 unpaired electrons are impossible, H2O with charge \\+1 has 9"):
            frames.with_electrons(bare, charge, None, "data")
    assert frames.with_electrons(frame, None, 1, "data")[6:8] == (1, 1)
    with pytest.raises(InputError, match=r"^its charge is 1, but system\.charge is 0; give the same"):
        frames.with_electrons(frame, 0, None, "system")
    with pytest.raises(InputError, match=r"^system\.spin: 0 unpaired electrons are impossible"):
        frames.with_electrons(frame, 1, 0, "system")


# ---------------------------------------------------------------- atoms


@pytest.mark.parametrize("make", [lambda i: FixAtoms(i), lambda i: [FixCartesian(j) for j in i]])
def test_fixed_atoms_are_kept(make):
    atoms = fcc111("Cu", (2, 2, 3), vacuum=6.0)
    atoms.pbc = True
    atoms.set_constraint(make([0, 1, 2, 3]))
    frame = frames.of_atoms(atoms)
    assert np.flatnonzero(frame.fixed).tolist() == [0, 1, 2, 3]
    (constraint,) = frames.to_atoms(frame).constraints
    assert isinstance(constraint, FixAtoms) and list(constraint.index) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("constraint", "words"),
    [
        (lambda atoms: FixBondLength(0, 1), "FixBondLengths cannot be kept"),
        (lambda atoms: FixedPlane(0, (0, 0, 1)), "FixedPlane cannot be kept"),
        (lambda atoms: FixCartesian(0, (True, False, True)), "atom 0 is fixed in some directions"),
        (lambda atoms: FixScaled(1, (False, False, True), atoms.cell), "atom 1 is fixed in some directions"),
    ],
)
def test_other_constraints_are_refused_by_name(constraint, words):
    atoms = bulk("Cu", cubic=True)
    atoms.set_constraint(constraint(atoms))
    assert words in refusal(atoms)


def test_forces_that_a_constraint_hides_do_not_count():
    atoms = bulk("Cu", cubic=True)
    atoms.rattle(0.2, seed=0)
    atoms.calc = EMT()
    true = atoms.get_forces()
    atoms.set_constraint(FixAtoms([0, 2]))
    hidden = atoms.get_forces()
    assert not hidden[[0, 2]].any() and np.linalg.norm(hidden.sum(0)) > 0.1
    for forces, known in ((hidden, False), (true, True)):
        labeled_frame = atoms.copy()
        labeled_frame.calc = SinglePointCalculator(labeled_frame, energy=1.0, forces=forces)
        frame = frames.of_atoms(labeled_frame)
        assert np.isfinite(frame.label.force[[0, 2]]).all() == known
        np.testing.assert_array_equal(frame.label.force[[1, 3]], true[[1, 3]])
        np.testing.assert_array_equal(frame.numeric.force, forces)


def test_isotopes_are_the_files_own():
    atoms = molecule("H2O")
    atoms.set_masses([15.999, 2.014, 2.014])
    frame = frames.of_atoms(atoms)
    np.testing.assert_array_equal(frame.mass, [15.999, 2.014, 2.014])
    assert frames.isotopes(frame) and not frames.isotopes(frames.of_atoms(molecule("H2O")))
    atoms.set_masses([15.999, 0.0, 2.014])
    assert "masses: atom 1 has 0 amu" in refusal(atoms)


def test_dummy_atoms_and_partial_occupancies_are_refused():
    assert "atom 1 is a dummy atom" in refusal(ase.Atoms("HXO", np.eye(3)))
    atoms = molecule("H2O")
    atoms.set_array("occupancy", np.array([1.0, 0.5, 1.0]))
    assert "atom 1 has occupancy 0.5" in refusal(atoms)
    atoms.set_array("occupancy", np.zeros(3))
    frames.of_atoms(atoms)  # a file that knows no occupancies
    atoms = bulk("Cu")
    atoms.info["occupancy"] = {"0": {"Cu": 0.25}}
    assert "site 0 has occupancies Cu 0.25" in refusal(atoms)
    atoms.info["occupancy"] = {"0": {"Cu": 1.0}}
    frames.of_atoms(atoms)


def test_a_free_atom_is_one_atom():
    atom = ase.Atoms("H", info={"config_type": "IsolatedAtom", "energy": -13.6})
    assert frames.of_atoms(atom).isolated
    atoms = molecule("H2O")
    atoms.info["config_type"] = "isolated_atom"
    assert "it has 3 atoms" in refusal(atoms)


def test_what_nobody_reads_is_carried():
    atoms = labeled(molecule("H2O"), config_type="liquid", config_weight=2.0, note={"a": [1, "b"]})
    atoms.cell = [5.0, 6.0, 7.0]
    atoms.set_tags([1, 2, 3])
    atoms.set_array("mine", np.arange(6.0).reshape(3, 2))
    atoms.calc = SinglePointCalculator(atoms, dipole=np.array([0.0, 0.0, 1.0]), charges=np.array([-0.8, 0.4, 0.4]))
    frame = frames.of_atoms(atoms)
    back = frames.to_atoms(frame)
    assert back.info["config_type"] == "liquid" and back.info["note"] == {"a": [1, "b"]}
    assert back.info["config_weight"] == 2.0 and frames.of_atoms(back).share == frame.share
    np.testing.assert_array_equal(back.info["dipole"], [0, 0, 1])
    for name in ("tags", "mine", "charges"):
        np.testing.assert_array_equal(back.arrays[name], {**atoms.arrays, **atoms.calc.results}[name])
    np.testing.assert_array_equal(back.cell.array, np.diag([5.0, 6.0, 7.0]))
    assert not back.pbc.any() and not frame.lattice.any()
