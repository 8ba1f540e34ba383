"""Images between structures: ends kept, evenly spaced, atoms out of each other's way, fixed ones where they are."""

import itertools

import ase
import numpy as np
import pytest
from ase.build import fcc111, molecule
from ase.constraints import FixAtoms

from jaxal.core.errors import InputError
from jaxal.data.frames import overlap
from jaxal.explore.images import between
from jaxal.validate.graph import bonds


def lengths(images):
    return [np.linalg.norm(b.positions - a.positions) for a, b in itertools.pairwise(images)]


def test_a_molecule_is_turned_onto_itself_and_ends_are_kept():
    first = molecule("CH3CH2OH")
    last = first.copy()
    last.set_dihedral(2, 1, 0, 3, 60, indices=[3])
    turned = last.copy()
    turned.rotate(70, "x")
    turned.translate([3.0, 1.0, -2.0])
    images = between([first, turned], 7)
    assert len(images) == 7 and not any(overlap(image, 0.5) for image in images)
    np.testing.assert_allclose(images[0].positions, first.positions)
    np.testing.assert_allclose(images[-1].get_all_distances(), last.get_all_distances(), atol=1e-8)
    steps = lengths(images)
    assert max(steps) < 2 * min(steps) and sum(steps) < 4


def test_bonds_keep_their_lengths_along_a_geodesic_and_the_way_is_always_the_same():
    first = molecule("CH3CH2OH")
    last = first.copy()
    (oxygen,) = np.flatnonzero(first.numbers == 8)
    bonded = [(i, j) for i, j in itertools.combinations(range(9), 2) if bonds(first)[i, j]]
    carbon, hydrogen = (
        next(i + j - oxygen for i, j in bonded if oxygen in (i, j) and first.numbers[i + j - oxygen] == z)
        for z in (6, 1)
    )
    other = next(i + j - carbon for i, j in bonded if carbon in (i, j) and first.numbers[i + j - carbon] == 6)
    last.set_dihedral(other, carbon, oxygen, hydrogen, 60, indices=[hydrogen])
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    images, again = between([first, last], 7), between([first, last], 7)
    assert np.array_equal(np.random.get_state()[1], before), "others draw from the same numbers"
    for image, same in zip(images, again, strict=True):
        np.testing.assert_array_equal(image.positions, same.positions)
    assert np.linalg.norm(last.positions - first.positions, axis=1).max() > 1.4
    for i, j in bonded:
        lengths_of = [image.get_distance(i, j) for image in images]
        assert max(lengths_of) - min(lengths_of) < 0.03, "a straight way would bring the atom onto the axis"


def test_atoms_on_a_line_pass_each_other():
    first = molecule("HCN")
    last = first.copy()
    last.positions[2] = 2.9 * last.positions[1] - 1.9 * last.positions[0]
    images = between([first, last], 9)
    assert all(np.isfinite(image.positions).all() for image in images)
    assert not any(overlap(image, 0.6) for image in images[1:-1])


def test_several_structures_are_passed_in_their_order():
    first = ase.Atoms("H2", positions=[[0, 0, 0], [1.0, 0, 0]])
    middle, last = first.copy(), first.copy()
    middle.positions[1, 0], last.positions[1, 0] = 1.4, 2.6
    images = between([first, middle, last], 6)
    distances = [image.get_distance(0, 1) for image in images]
    assert distances == sorted(distances) and distances.count(pytest.approx(1.4)) == 1
    assert distances[1] == pytest.approx(1.4) and len(images) == 6, "more images where it is farther"


def test_fixed_atoms_and_cells_stay():
    slab = fcc111("Cu", (2, 2, 2), vacuum=6.0)
    slab += ase.Atoms("O", positions=[slab.positions[4] + [0, 0, 1.8]])
    slab.set_constraint(FixAtoms(range(4)))
    other = slab.copy()
    other.positions[-1] += [1.2, 0.7, 0.1]
    images = between([slab, other], 5)
    for image in images:
        np.testing.assert_array_equal(image.positions[:4], slab.positions[:4])
        np.testing.assert_array_equal(image.cell.array, slab.cell.array)
        assert image.constraints[0].index.tolist() == [0, 1, 2, 3]
    other.positions[0] += 0.1
    with pytest.raises(InputError, match=r"structure 1: its fixed atom 0 is 0.173 Å from where the first has it"):
        between([slab, other], 5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda atoms: atoms[[1, 0, 2]], "structure 1: its atoms are not those of the first"),
        (lambda atoms: ase.Atoms(atoms, cell=[9, 9, 9], pbc=True), "structure 1: not periodic in the same directions"),
    ],
)
def test_what_has_no_path_is_refused(change, message):
    first = molecule("H2O")
    with pytest.raises(InputError, match=message):
        between([first, change(first)], 5)
    with pytest.raises(InputError, match="images: 1 are fewer than the structures"):
        between([first, first], 1)


def test_a_cell_of_another_size_has_no_path():
    first = ase.Atoms("Cu", cell=[3, 3, 3], pbc=True)
    other = ase.Atoms("Cu", cell=[3, 3, 3.01], pbc=True)
    with pytest.raises(InputError, match=r"^structure 1: its cell is not that of the first; give both the same"):
        between([first, other], 5)


def test_without_a_geodesic_atoms_on_a_line_step_aside():
    """Held atoms: nothing is turned, and the straight way of the hydrogen leads through both others."""
    first = molecule("HCN")
    first.positions[:, :2] = 0.0
    first.set_constraint(FixAtoms([0, 1]))
    last = first.copy()
    last.set_constraint()
    last.positions[2] = 2.9 * last.positions[1] - 1.9 * last.positions[0]
    last.set_constraint(FixAtoms([0, 1]))
    images = between([first, last], 8)
    assert len(images) == 8 and not any(overlap(image, 0.6) for image in images)
    for image in images:
        np.testing.assert_array_equal(image.positions[:2], first.positions[:2])
    assert max(np.abs(image.positions[2, :2]).max() for image in images) > 0.5
    again = between([first, last], 8)
    assert all(np.array_equal(a.positions, b.positions) for a, b in zip(images, again, strict=True))
