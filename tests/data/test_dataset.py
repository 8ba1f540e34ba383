"""Many frames as data: methods are not mixed, copies stay together, and what looks wrong is told."""

import warnings

import ase
import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from jaxal.core.errors import InputError, InputWarning
from jaxal.data import dataset, files

GPA = 1 / 160.21766208


def frame(seed: int, name: str = "H2O", energy: float = -14.0, **info) -> ase.Atoms:
    """A molecule with forces that sum to zero."""
    atoms = molecule(name)
    atoms.rattle(0.05, seed=seed)
    atoms.info |= info
    forces = np.random.default_rng(seed).normal(size=(len(atoms), 3))
    return result(atoms, energy=energy + 0.01 * seed, forces=forces - forces.mean(0))


def result(atoms: ase.Atoms, **results) -> ase.Atoms:
    atoms.calc = SinglePointCalculator(atoms, **results)
    return atoms


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.xyz"


def read(path, atoms, **options):
    write(path, atoms)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = dataset.labeled(path, "data", **options)
    return data, [str(warning.message) for warning in caught if warning.category is InputWarning]


def test_good_frames_say_nothing(path):
    data, messages = read(path, [frame(seed) for seed in range(4)])
    assert len(data.frames) == 4 and messages == [] and data.isolated == {}


# ---------------------------------------------------------------- what belongs together


def test_methods_are_not_mixed(path):
    atoms = [frame(0, method="GFN1"), frame(1, method="GFN2"), frame(2, method="GFN2")]
    with pytest.raises(InputError, match=r"several methods, 'GFN1' and 'GFN2'; choose one as data\.method"):
        read(path, atoms)
    assert len(read(path, atoms, method="GFN2")[0].frames) == 2
    with pytest.raises(InputError, match="has no label of 'PBE', but of 'GFN1' and 'GFN2'"):
        read(path, atoms, method="PBE")
    with pytest.raises(InputError, match="frames that name none and 'GFN1'"):
        read(path, [frame(0, method="GFN1"), frame(1)][::-1])


def test_charges_and_spins(path):
    data, _ = read(path, [frame(0, charge=1, spin=1), frame(1), frame(2, charge=1, multiplicity=2)])
    assert dataset.states_of(data.frames) == ((0, 0), (1, 1))
    dataset.check_states(data.frames, ((0, 0), (1, 1)), "data.xyz", "the pool")
    what = (
        r"^data\.xyz: frame 1 has charge 0 with 0 unpaired electrons, of which the pool has no frame; it has charge \+1"
    )
    with pytest.raises(InputError, match=what):
        dataset.check_states(data.frames, ((1, 1),), "data.xyz", "the pool")
    group = np.arange(3)
    assert list(dataset.held_out(data.frames, group, 0.9)) == [True, False, False]  # one of each is learned from
    with pytest.raises(InputError, match=r"frame 0: its charge is 1, but data\.charge is 0"):
        read(path, [frame(0, charge=1, spin=1)], charge=0)


def test_free_atoms_are_references_and_no_frames(path):
    atoms = [frame(0), ase.Atoms("H", info={"config_type": "IsolatedAtom", "energy": -13.6})]
    data, _ = read(path, atoms)
    assert len(data.frames) == 1 and data.isolated == {1: -13.6}
    with pytest.raises(InputError, match=r"frame 2: free atoms of H have energies -13\.600000 and -12\.000000 eV"):
        read(path, [*atoms, ase.Atoms("H", info={"config_type": "IsolatedAtom", "energy": -12.0})])
    with pytest.raises(InputError, match="frame 0: a free atom of H without an energy"):
        read(path, [ase.Atoms("H", info={"config_type": "IsolatedAtom"}), frame(0)])


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({"charge": 1, "energy": -5.0}, r"a free atom of H with charge \+1; the reference is the neutral atom"),
        ({"REF_energy": -13.6}, "frame 1 has REF_energy or REF_forces, frame 0 only plain ones"),
    ],
)
def test_atoms_that_are_no_references_are_refused(path, info, expected):
    with pytest.raises(InputError, match=expected):
        read(path, [frame(0), ase.Atoms("H", info={"config_type": "IsolatedAtom", **info})])


def test_a_dense_crystal_is_no_free_atom_and_one_of_weight_zero_is_left_out(path):
    atom = ase.Atoms("H", info={"config_type": "IsolatedAtom", "energy": -13.6}, cell=[2, 2, 2], pbc=True)
    with pytest.raises(InputError, match="a free atom of H whose images are nearer than 4 Å"):
        read(path, [frame(0), atom])
    atom.set_cell([9, 9, 9])
    other = ase.Atoms("H", info={"config_type": "IsolatedAtom", "energy": -1.0, "config_weight": 0.0})
    data, messages = read(path, [frame(0), atom, other])
    assert data.isolated == {1: -13.6} and "frame 2 is left out, of weight 0" in messages[0]


@pytest.mark.parametrize("name", ["head", "level_of_theory", "theory", "functional", "calculator"])
def test_labels_of_several_levels_of_theory_are_refused(path, name):
    frames = [frame(0), frame(1)]
    for atoms, level in zip(frames, ("pbe", "gfn1"), strict=True):
        atoms.info[name] = level
    with pytest.raises(InputError, match=rf"several methods by `{name}`, 'pbe' \(frame 0\) and 'gfn1' \(frame 1\)"):
        read(path, frames)


def test_a_reference_beside_plain_labels_is_refused(path):
    named = frame(1)
    force = named.get_forces()
    named.calc = None
    named.info["REF_energy"], named.arrays["REF_forces"] = -1.0, force
    with pytest.raises(InputError, match="frame 1 has REF_energy or REF_forces, frame 0 only plain ones, which may be"):
        read(path, [frame(0), named])
    assert len(read(path, [named, named])[0].frames) == 2


def test_frames_of_weight_zero_are_left_out_and_told(path):
    data, messages = read(path, [frame(0), frame(1, energy=1e5, config_weight=0.0)])
    assert len(data.frames) == 1 and "frame 1 is left out, of weight 0" in messages[0] and len(messages) == 1


def test_what_is_missing_is_named_with_what_looks_like_it(path):
    atoms = molecule("H2O")
    atoms.info["dft_energy"], atoms.arrays["dft_forces"] = -1.0, np.zeros((3, 3))
    with pytest.raises(InputError, match=r"frame 1: carries no energy \(it has dft_energy\); give `energy` or `REF_"):
        read(path, [frame(0), atoms])


# ---------------------------------------------------------------- holding out


def held(atoms, fraction=0.25):
    frames = [files.frames.of_atoms(structure) for structure in atoms]
    group = dataset.groups(frames)
    return dataset.held_out(frames, group, fraction), group


def test_copies_of_a_structure_stay_on_one_side():
    hold, group = held([frame(seed // 8) for seed in range(64)])
    assert group.tolist() == [seed // 8 for seed in range(64)]
    assert hold.sum() == 16
    assert not set(group[hold]) & set(group[~hold])


def test_a_structure_is_the_same_whatever_its_label_and_differs_by_its_electrons():
    atoms = [frame(0), frame(0, energy=3.0), frame(0, charge=1, spin=1), frame(1)]
    assert held(atoms)[1].tolist() == [0, 0, 1, 2]


def test_the_only_atoms_of_an_element_are_never_held_out():
    atoms = [frame(0, "CH4"), *[frame(seed) for seed in range(1, 4)]]
    for fraction in (0.01, 0.25, 0.5, 0.75):
        hold, _ = held(atoms, fraction)
        assert hold.any() and not hold[0]
    hold, _ = held([frame(0), frame(1, "CH4")], 0.5)
    assert not hold.any(), "each is the only one of an element"


def test_without_copies_the_rows_are_evenly_spaced():
    hold, _ = held([frame(seed) for seed in range(20)], 0.1)
    assert np.flatnonzero(hold).tolist() == [5, 15]


def test_an_energy_below_all_that_electrons_can_have_is_told(path):
    _, messages = read(path, [frame(0, energy=-76.4 * 627.5), frame(1, energy=-76.4 * 627.5)])  # kcal/mol
    assert len(messages) == 1
    assert "the energy of frame 0, -47941 eV, is below what all its electrons can have" in messages[0]
    _, messages = read(path, [frame(0, energy=-76.4 * 27.2114), frame(1, energy=-76.4 * 27.2114)])
    assert not messages


def test_a_name_like_a_charge_or_a_spin_that_is_not_read_is_told(path):
    _, messages = read(path, [frame(0), frame(1, total_spin=0.5), frame(2, mulliken_charge=[0.1, 0.2])])
    assert len(messages) == 1 and "frame 1 carries total_spin: nothing about electrons is read from it" in messages[0]


def test_copies_are_told_and_so_are_their_different_energies(path):
    data, _ = read(path, [frame(0), frame(0), frame(1)])
    with pytest.warns(InputWarning, match="3 frames hold 2 different structures"):
        dataset.tell_duplicates(data.frames, "data.xyz")
    data, _ = read(path, [frame(0), frame(0, energy=-13.0), frame(1)])
    with pytest.warns(InputWarning, match="frames 0 and 1 are the same structure, but their energies are 333 meV/atom"):
        dataset.tell_duplicates(data.frames, "data.xyz")


# ---------------------------------------------------------------- what looks wrong


def copper(seed: int, scale: float) -> ase.Atoms:
    from ase.calculators.emt import EMT

    atoms = bulk("Cu", a=3.4, cubic=True)
    atoms.rattle(0.1, seed=seed)
    atoms.calc = EMT()
    results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
    return result(atoms, **results, stress=atoms.get_stress() * scale)


@pytest.mark.parametrize(("scale", "implausible"), [(1.0, False), (10 / GPA, True), (1 / GPA, True)])
def test_stresses_in_other_units_are_told(path, scale, implausible):
    _, said = read(path, [copper(seed, scale) for seed in range(3)])
    assert any("eV/Å^3" in line and "not plausible" in line for line in said) == implausible


def test_implausible_forces_energies_and_distances_are_told(path):
    many = [frame(seed) for seed in range(5)]
    for atoms in many:
        atoms.calc.results["forces"] = atoms.calc.results["forces"] * 100
    assert "forces of" in read(path, many)[1][0]
    assert "energy of frame 4" in read(path, [*[frame(s) for s in range(4)], frame(4, energy=500.0)])[1][0]
    short = frame(0)
    short.positions *= 0.1  # nm
    short.calc.atoms = short.copy()
    assert "positions are in Å" in read(path, [short])[1][0]
    pulled = frame(0)
    pulled.calc.results["forces"] = pulled.calc.results["forces"] + 0.1
    assert "do not sum to zero, frame 0 by 0.52 eV/Å" in read(path, [pulled])[1][0]
