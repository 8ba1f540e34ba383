"""Structures in and out: nothing is lost on the way to ASE and back, and what cannot be is refused in one line."""

import ase.io
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress

from jaxal.core.errors import InputError
from jaxal.data import dataset, files, frames
from jaxal.data.labels import matrix_to_voigt, voigt_to_matrix
from jaxal.data.structure import from_atoms, labels_of, species_table, to_atoms


def crystal() -> Atoms:
    atoms = bulk("Cu", cubic=True)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.05 * np.random.default_rng(0).normal(size=(3, 3))))
    atoms.rattle(0.1, seed=1)
    return atoms


def test_the_species_table_is_sorted():
    assert species_table([molecule("CH3CH2OH"), molecule("NH3")]) == (1, 6, 7, 8)


@pytest.mark.parametrize("atoms", [molecule("CH3CH2OH"), crystal()], ids=["open", "periodic"])
def test_there_and_back(atoms):
    table = species_table([atoms, molecule("NH3")])
    structure = from_atoms(atoms, table, charge=-1, spin=2, dtype=np.float64)
    assert structure.position.shape == (len(atoms), 3) and structure.cell.shape == (3, 3)
    back = to_atoms(structure, table)
    np.testing.assert_array_equal(back.numbers, atoms.numbers)
    np.testing.assert_array_equal(back.positions, atoms.positions)
    np.testing.assert_array_equal(back.cell.array, atoms.cell.array if atoms.pbc.all() else np.zeros((3, 3)))
    np.testing.assert_array_equal(back.pbc, atoms.pbc)
    assert back.info == {"charge": -1, "spin": 2}


def test_batches_are_padded_and_padding_is_dropped_again():
    frames = [molecule("H2O"), molecule("CH3CH2OH"), crystal()]
    table = species_table(frames)
    batch = from_atoms(frames, table, size=11)
    assert batch.position.shape == (3, 11, 3) and batch.position.dtype == np.float32
    assert batch.species.dtype == batch.charge.dtype == batch.spin.dtype == np.int32
    for row, atoms in enumerate(frames):
        assert np.all(batch.species[row, len(atoms) :] == -1) and not batch.position[row, len(atoms) :].any()
        back = to_atoms(type(batch)(*(leaf[row] for leaf in batch)), table)
        np.testing.assert_array_equal(back.numbers, atoms.numbers)
        np.testing.assert_allclose(back.positions, atoms.positions, rtol=1e-6)
    assert not batch.cell[:2].any() and batch.cell[2].any()
    assert from_atoms(frames, table).position.shape == (3, 9, 3)


SURFACES = {
    "slab": ([[4, 0, 0], [1, 5, 0], [0.5, 0.3, 12]], [True, True, False]),
    "slab without a vacuum": ([[4, 0, 0], [1, 5, 0], [0, 0, 0]], [True, True, False]),
    "wire": ([[0, 0, 0], [0.3, 5, 0], [0, 0, 9]], [False, True, False]),
}


@pytest.mark.parametrize("kind", SURFACES)
@pytest.mark.parametrize("name", ["out.xyz", "out.db"])
def test_slabs_and_wires_go_there_and_back(tmp_path, kind, name):
    """Through files and the device, with the vacuum that they came with, or none."""
    cell, pbc = SURFACES[kind]
    atoms = Atoms("H2O", [[0, 0, 0], [1, 1, 1], [2, 0.5, 3]], cell=cell, pbc=pbc)
    atoms.info |= {"charge": 0, "spin": 0}
    files.write(tmp_path / name, [frames.of_atoms(atoms)])
    (frame,) = files.read(tmp_path / name)
    structure = from_atoms(frames.to_atoms(frame), (1, 8), dtype=np.float64)
    assert structure.periodic.tolist() == pbc and structure.cell.tolist() == np.array(cell, float).tolist()
    back = to_atoms(structure, (1, 8))
    for copy in (frames.to_atoms(frame), back):
        np.testing.assert_array_equal(copy.positions, atoms.positions)
        np.testing.assert_array_equal(copy.cell.array, atoms.cell.array)
        np.testing.assert_array_equal(copy.pbc, atoms.pbc)
    (plain,) = ase.io.iread(tmp_path / name)  # and what ASE makes of it
    np.testing.assert_array_equal(plain.pbc, pbc)


def test_copies_are_of_one_periodicity():
    cell, pbc = SURFACES["slab"]
    atoms = [Atoms("H", cell=cell, pbc=each) for each in (pbc, True, pbc, [True, False, True])]
    assert dataset.groups([frames.of_atoms(each) for each in atoms]).tolist() == [0, 1, 0, 2]


def test_a_cell_without_periodicity_is_no_cell():
    atoms = molecule("H2O", vacuum=5.0)
    assert atoms.cell.volume > 0 and not atoms.pbc.any()
    assert not from_atoms(atoms, (1, 8)).cell.any()


def test_charge_and_spin_of_a_frame_come_first():
    frames = [molecule("H2O"), molecule("H2O")]
    frames[1].info.update(charge=1, spin=1)
    batch = from_atoms(frames, (1, 8), charge=-1, spin=3)
    assert batch.charge.tolist() == [-1, 1] and batch.spin.tolist() == [3, 1]


def test_an_element_outside_the_table_is_named():
    with pytest.raises(InputError, match=r"^element C, O is not among those of the model \(H, N\)$"):
        from_atoms(molecule("CH3CH2OH"), (1, 7))


def test_voigt_order_is_ases():
    rng = np.random.default_rng(2)
    stress = rng.normal(size=(3, 3))
    stress += stress.T
    np.testing.assert_array_equal(matrix_to_voigt(stress), full_3x3_to_voigt_6_stress(stress))
    voigt = rng.normal(size=6)
    np.testing.assert_array_equal(voigt_to_matrix(voigt), voigt_6_to_full_3x3_stress(voigt))
    np.testing.assert_array_equal(matrix_to_voigt(voigt_to_matrix(voigt)), voigt)


# ---------------------------------------------------------------- files


def test_frames_are_read_in_order(tmp_path):
    path = tmp_path / "frames.xyz"
    structures = [molecule("H2O"), crystal(), molecule("NH3")]
    ase.io.write(path, structures)
    rows = files.read(path)
    assert [len(frame.numbers) for frame in rows] == [3, 4, 4]
    np.testing.assert_allclose(rows[1].position, structures[1].positions, atol=1e-7)


def broken(name: str, atoms: Atoms) -> Atoms:
    if name == "slab":
        atoms.cell, atoms.pbc = [[10, 0, 0], [-5, 0, 0], [0, 0, 10]], [True, True, False]
    elif name == "wire":
        atoms.cell, atoms.pbc = [10, 10, 0], [False, False, True]
    elif name == "flat":
        atoms.cell, atoms.pbc = [10, 10, 0], True
    elif name == "nan":
        atoms.positions[0, 0] = np.nan
    return atoms


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("slab", "frame 1: periodic along a, b, but these lattice vectors span nothing"),
        ("wire", "frame 1: periodic along c, but these lattice vectors span nothing"),
        ("flat", "frame 1: periodic, but its cell has no volume"),
        ("nan", "frame 1: a position is not a finite number"),
    ],
)
def test_frames_that_cannot_be_are_refused(tmp_path, name, words):
    path = tmp_path / "frames.traj"
    ase.io.write(path, [molecule("H2O"), broken(name, molecule("H2O"))])
    with pytest.raises(InputError, match=words) as error:
        files.read(path)
    assert str(error.value).startswith(f"{path}: ") and "\n" not in str(error.value)


def test_files_that_are_not_there_or_not_structures_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.xyz: there is no such file"):
        files.read(tmp_path / "none.xyz")
    with pytest.raises(InputError, match="there is no such file"):
        files.read(tmp_path)
    path = tmp_path / "text.xyz"
    for text in ("three atoms of water\n", "2\n\nH 0 0 0\n", ""):
        path.write_text(text)
        with pytest.raises(InputError, match=r"text\.xyz: [^\n]*$"):
            files.read(path)


# ---------------------------------------------------------------- labels


def labeled(atoms: Atoms) -> Atoms:
    atoms.calc = EMT()
    atoms.get_forces()
    if atoms.pbc.all():
        atoms.get_stress()
    return atoms


def read(*structures: Atoms):
    return labels_of([frames.of_atoms(atoms) for atoms in structures])


def test_labels_are_read_from_results_of_any_size_and_cell(tmp_path):
    structures = [labeled(molecule("H2O")), labeled(crystal())]
    ase.io.write(tmp_path / "data.xyz", structures)
    labels = labels_of(files.read(tmp_path / "data.xyz"), size=6)
    assert labels.force.shape == (2, 6, 3) and labels.ok.all()
    for row, atoms in enumerate(structures):
        assert labels.energy[row] == pytest.approx(atoms.get_potential_energy(), abs=1e-7)
        np.testing.assert_allclose(labels.force[row, : len(atoms)], atoms.get_forces(), atol=1e-7)
        assert not labels.force[row, len(atoms) :].any()
    np.testing.assert_allclose(labels.stress[1], structures[1].get_stress(voigt=False), atol=1e-9)
    assert np.isnan(labels.stress[0]).all(), "an open structure has no stress"


@pytest.mark.parametrize("names", [("REF_energy", "REF_forces", "REF_stress"), ("energy", "forces", "stress")])
@pytest.mark.parametrize("voigt", [True, False])
def test_labels_are_read_from_info_and_arrays(tmp_path, names, voigt):
    truth = labeled(crystal())
    atoms = Atoms(truth.numbers, truth.positions, cell=truth.cell, pbc=True)
    atoms.info[names[0]] = truth.get_potential_energy()
    atoms.arrays[names[1]] = truth.get_forces()
    atoms.info[names[2]] = truth.get_stress(voigt=voigt)
    labels = read(atoms)
    assert labels.energy[0] == truth.get_potential_energy()
    np.testing.assert_array_equal(labels.force[0], truth.get_forces())
    np.testing.assert_allclose(labels.stress[0], truth.get_stress(voigt=False), atol=1e-15)
    # and through a file
    ase.io.write(tmp_path / "data.xyz", atoms)
    again = labels_of(files.read(tmp_path / "data.xyz"))
    np.testing.assert_allclose(again.force, labels.force, atol=1e-7)
    np.testing.assert_allclose(again.stress, labels.stress, atol=1e-9)


def test_what_is_missing_is_named_with_its_frame(tmp_path):
    good = labeled(molecule("H2O"))
    bare, half = molecule("H2O"), molecule("H2O")
    half.calc = SinglePointCalculator(half, energy=-1.0)
    for name, structures, words in (
        ("bare", [good, bare], r"bare\.xyz: frame 1: carries no energy; give `energy` or `REF_energy`$"),
        ("half", [good, good, half], "frame 2: carries no forces"),
    ):
        ase.io.write(tmp_path / f"{name}.xyz", structures)
        with pytest.raises(InputError, match=words):
            dataset.labeled(tmp_path / f"{name}.xyz", "data")


def test_an_unknown_stress_of_a_crystal_is_not_zero():
    atoms = crystal()
    atoms.calc = SinglePointCalculator(atoms, energy=1.0, forces=np.zeros((4, 3)))
    assert np.isnan(read(atoms).stress).all()


def test_results_of_other_positions_do_not_count():
    atoms = labeled(molecule("H2O"))
    atoms.positions[0, 2] += 0.1
    assert np.isnan(read(atoms).energy).all(), "the calculator has not seen these positions"
