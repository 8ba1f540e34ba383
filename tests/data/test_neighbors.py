"""Neighbors against matscipy; overflow; the transpose of a gather; when a list is stale."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from matscipy.neighbours import neighbour_list

from jaxal.data import neighbors
from jaxal.data.structure import from_atoms

pytestmark = pytest.mark.usefixtures("double")


def structure_of(atoms: Atoms, size: int | None = None):
    structure = from_atoms([atoms], tuple(sorted(set(atoms.numbers.tolist()))), size=size, dtype=np.float64)
    return jax.tree.map(lambda x: x[0], structure)


DIRECTIONS = list(itertools.product([False, True], repeat=3))


def random_cell(rng, kind: str, pbc=True) -> Atoms:
    shape = {"triclinic": (6, 7, 8), "thin": (2.2, 9, 9), "tiny": (2.0, 2.3, 2.6)}[kind]
    cell = np.diag(shape) + rng.normal(0, 0.25, (3, 3))
    number = {"triclinic": 12, "thin": 7, "tiny": 2}[kind]
    atoms = Atoms("Si" * number, rng.random((number, 3)) @ cell, cell=cell, pbc=pbc)
    # walkers never wrap their positions; along an open direction they leave the cell by a part of it
    atoms.positions += np.where(pbc, rng.integers(-3, 4, (number, 3)), rng.normal(0, 0.3, (number, 3))) @ cell
    return atoms


@pytest.mark.parametrize("kind", ["triclinic", "thin", "tiny"])
@pytest.mark.parametrize("seed", range(4))
def test_pairs_are_those_of_matscipy(kind, seed):
    atoms = random_cell(np.random.default_rng(seed), kind)
    structure = structure_of(atoms)
    assert_pairs(neighbors.plan(structure, 4.5), structure, atoms, 4.5)


def batch_of(frames: list[Atoms]):
    """Structures [b], with what stands in the place of open vectors in the files: a vacuum."""
    return from_atoms(frames, (14,), dtype=np.float64)


@pytest.mark.parametrize("kind", ["triclinic", "thin", "tiny"])
def test_pairs_of_crystal_slab_wire_and_molecule_are_those_of_matscipy(kind):
    """With one program for all: images that one needs are none of another, nor does an open vector count."""
    rng = np.random.default_rng(11)
    frames = [random_cell(rng, kind, pbc) for pbc in DIRECTIONS]
    batch = batch_of(frames)
    spec = neighbors.plan(batch, 4.5)
    for row, (pbc, atoms) in enumerate(zip(DIRECTIONS, frames, strict=True)):
        structure = jax.tree.map(lambda x, row=row: x[row], batch)
        assert_pairs(spec, structure, atoms, 4.5)
        nothing = structure._replace(cell=np.where(structure.periodic[:, None], structure.cell, 0.0))
        assert_pairs(spec, nothing, atoms, 4.5)
        images = neighbors._images(structure.cell, np.asarray(pbc), 4.5)
        assert not np.any(images[~np.array(pbc)])


@functools.partial(jax.jit, static_argnums=0)
def listed(spec, structure):
    near = neighbors.build(spec, structure)
    return near, *neighbors.vectors(structure, near)


def assert_pairs(spec, structure, atoms: Atoms, cutoff: float):
    """The list holds the pairs, with their vectors, that matscipy finds within the cutoff."""
    near, vector, used = jax.device_get(listed(spec, structure))
    assert not near.overflow
    used = used[: len(atoms)]
    i, j, expected = neighbour_list("ijD", atoms, cutoff)
    rows = np.broadcast_to(np.arange(len(atoms))[:, None], used.shape)[used]
    pairs = np.column_stack([rows, near.index[: len(atoms)][used], np.round(vector[: len(atoms)][used], 6)])
    reference = np.column_stack([i, j, np.round(expected, 6)])
    assert len(pairs) == len(reference)
    order = lambda x: x[np.lexsort((x + 0.0).T)]  # noqa: E731
    np.testing.assert_allclose(order(pairs), order(reference), atol=2e-6)


def large_cell(rng, density: float = 0.06, pbc=True) -> Atoms:
    """At least three bins of 5 Å in every direction, atoms anywhere, positions not wrapped."""
    cell = np.diag([17.0, 21.0, 26.0]) + rng.normal(0, 1.0, (3, 3))
    number = int(density * abs(np.linalg.det(cell)))
    atoms = Atoms("Si" * number, rng.random((number, 3)) @ cell, cell=cell, pbc=pbc)
    atoms.positions += np.where(pbc, rng.integers(-3, 4, (number, 3)), 0) @ cell
    return atoms


def test_bins_of_crystal_slab_wire_and_molecule_find_the_pairs_of_matscipy():
    frames = [large_cell(np.random.default_rng(4), pbc=pbc) for pbc in DIRECTIONS]
    batch = batch_of(frames)
    spec = neighbors.plan(batch, 4.2, 0.3)
    assert spec.bins is not None and np.prod(spec.bins) >= 27
    for row, atoms in enumerate(frames):
        assert_pairs(spec, jax.tree.map(lambda x, row=row: x[row], batch), atoms, 4.5)
    alone = neighbors.plan(structure_of(frames[0]), 4.2, 0.3)  # bins from the first to the last atom
    assert alone.bins is not None and not frames[0].pbc.any()
    assert_pairs(alone, structure_of(frames[0]), frames[0], 4.5)


def test_bins_of_a_thin_slab_and_of_one_that_an_atom_leaves():
    """One bin across it; an atom far out makes bins wider, never wrong, and too full ones are told."""
    rng = np.random.default_rng(9)
    cell = np.diag([27.0, 29.0, 20.0]) + rng.normal(0, 0.5, (3, 3))
    cell[2] = 0
    place = np.column_stack([rng.random((450, 2)), rng.random(450) * 4]) @ (cell + np.diag([0, 0, 1]))
    atoms = Atoms("Si450", place, cell=cell + np.diag([0, 0, 40]), pbc=(True, True, False))
    structure = structure_of(atoms)
    spec = neighbors.plan(structure, 4.2, 0.3)
    assert spec.bins is not None and spec.bins[2] == 1
    assert_pairs(spec, structure, atoms, 4.5)
    atoms.positions[7] += 30 * np.cross(cell[0], cell[1]) / np.linalg.norm(np.cross(cell[0], cell[1]))
    structure = structure_of(atoms)
    assert_pairs(spec, structure, atoms, 4.5)
    deeper = spec._replace(bins=(*spec.bins[:2], 7))
    assert_pairs(deeper, structure, atoms, 4.5)
    assert neighbors.build(deeper._replace(bin_slots=2), structure).overflow


@pytest.mark.parametrize("seed", range(3))
def test_bins_find_the_pairs_of_matscipy(seed):
    atoms = large_cell(np.random.default_rng(seed))
    structure = structure_of(atoms, size=len(atoms) + 3)
    spec = neighbors.plan(structure, 4.2, 0.3)
    assert spec.bins is not None and min(spec.bins) >= 3
    assert_pairs(spec, structure, atoms, 4.5)


def test_bins_and_all_pairs_make_the_same_list():
    """Also the reversed pairs, which large lists look up in pieces."""
    structure = structure_of(large_cell(np.random.default_rng(5)))
    spec = neighbors.plan(structure, 4.2)
    assert spec.bins is not None
    lists = [neighbors.build(each, structure) for each in (spec, spec._replace(bins=None))]
    for binned, direct in zip(*lists, strict=True):
        np.testing.assert_array_equal(binned, direct)


def test_reversed_pairs_in_pieces(monkeypatch):
    structure = structure_of(large_cell(np.random.default_rng(5)))
    spec = neighbors.plan(structure, 4.2)
    whole = neighbors.build(spec, structure)
    monkeypatch.setattr(neighbors, "ROWS", 100)
    reverse = jax.jit(lambda *pairs: neighbors._reverse(*pairs))(whole.index, whole.shift)
    np.testing.assert_array_equal(reverse, whole.reverse)


@pytest.mark.parametrize("short", ["bin_slots", "capacity", "cell"])
def test_overflow_of_bins_is_reported_and_mended(short):
    structure = structure_of(large_cell(np.random.default_rng(5)))
    spec = neighbors.plan(structure, 4.2, margin=1.0)
    assert not neighbors.build(spec, structure).overflow
    if short == "cell":  # three bins no longer fit
        structure = structure._replace(position=0.8 * structure.position, cell=0.8 * structure.cell)
    else:
        spec = spec._replace(**{short: 3})
    assert neighbors.build(spec, structure).overflow
    assert not neighbors.build(neighbors.larger(spec, structure), structure).overflow


def test_open_molecule_needs_no_more_slots_than_other_atoms():
    structure = structure_of(molecule("CH3CH2OH"))
    spec = neighbors.plan(structure, 50.0)
    assert spec.capacity == 8 and spec.images == (0, 0, 0)
    near = neighbors.build(spec, structure)
    assert not near.overflow and np.all(np.asarray(near.index) < 9)


def test_padded_atoms_have_no_neighbors_and_are_none():
    atoms = bulk("Si", cubic=True)
    structure = structure_of(atoms, size=11)
    near = neighbors.build(neighbors.plan(structure, 4.0), structure)
    assert np.all(np.asarray(near.index)[8:] == 11)
    assert set(np.unique(near.index)) <= set(range(8)) | {11}


@pytest.mark.parametrize("seed", range(3))
def test_close_neighbors_are_those_within_the_cutoff_now(seed):
    """In fewer slots than the list with its skin has, after every atom moved, each with its reverse."""
    rng = np.random.default_rng(seed)
    atoms = bulk("Si", cubic=True) * (2, 2, 2)
    start = structure_of(atoms, size=len(atoms) + 2)
    spec = neighbors.plan(start, 5.0, 0.5)
    assert spec.close < spec.capacity
    near = jax.device_get(neighbors.build(spec, start))
    atoms.rattle(0.05, rng=rng)
    batch, lists = jax.tree.map(lambda x: x[None], (structure_of(atoms, size=len(atoms) + 2), near))
    moved = jax.tree.map(lambda x: x[0], batch)
    assert not neighbors.stale(spec, near, moved)
    close = jax.tree.map(lambda x: x[0], jax.device_get(neighbors.within(spec, lists, batch)))
    whole = neighbors.build(neighbors.plan(moved, 5.0), moved)
    assert close.index.shape[1] == spec.close and not close.overflow
    for row, other in zip(pairs_of(moved, close), pairs_of(moved, whole), strict=True):
        assert row == other
    i, a = np.nonzero(close.index < len(atoms) + 2)
    j, b = close.index[i, a], close.reverse[i, a]
    np.testing.assert_array_equal(close.index[j, b], i)
    np.testing.assert_array_equal(close.shift[j, b], -close.shift[i, a])
    few = spec._replace(close=27)  # silicon has 28
    assert np.all(neighbors.within(few, lists, batch).overflow)


def pairs_of(structure, near):
    """For each atom, who is near and in which image."""
    number = structure.position.shape[0]
    index, shift = np.asarray(near.index), np.asarray(near.shift)
    return [
        {(int(j), *map(int, s)) for j, s in zip(index[i], shift[i], strict=True) if j < number} for i in range(number)
    ]


@pytest.mark.parametrize("short", ["capacity", "images"])
def test_overflow_is_reported(short):
    structure = structure_of(bulk("Si", cubic=True))
    spec = neighbors.plan(structure, 5.0, margin=1.0)
    assert not neighbors.build(spec, structure).overflow
    less = spec._replace(capacity=spec.capacity - 1) if short == "capacity" else spec._replace(images=(0, 1, 1))
    assert neighbors.build(less, structure).overflow


def test_every_pair_finds_its_reverse():
    structure = structure_of(random_cell(np.random.default_rng(7), "tiny"))
    near, vector, used = jax.device_get(listed(neighbors.plan(structure, 5.0), structure))
    for i, k in zip(*np.nonzero(used), strict=True):
        j, back = int(near.index[i, k]), int(near.reverse[i, k])
        assert int(near.index[j, back]) == i
        np.testing.assert_allclose(vector[j, back], -vector[i, k], atol=1e-12)


def test_gather_has_the_derivatives_of_plain_indexing():
    structure = structure_of(random_cell(np.random.default_rng(3), "triclinic"))
    near = neighbors.build(neighbors.plan(structure, 4.0), structure)
    rng = np.random.default_rng(0)
    weight, values = rng.normal(size=(*near.index.shape, 2)), rng.normal(size=(len(structure.species), 2))

    def total(take):
        return lambda v: jnp.sum(jnp.sin(take(v)) * weight * (near.index < len(v))[:, :, None])

    fast = total(lambda v: neighbors.gather(v, *neighbors.inward(near.index, near.reverse)))
    plain = total(lambda v: v.at[near.index].get(mode="fill", fill_value=0))
    first = [jax.grad(f) for f in (fast, plain)]
    second = [jax.grad(lambda v, f=f: jnp.sum(f(v) ** 2)) for f in first]
    for slopes in jax.jit(lambda v: [[f(v) for f in pair] for pair in (first, second)])(values):
        np.testing.assert_allclose(*slopes, atol=1e-12)
    assert "scatter" not in str(jax.make_jaxpr(second[0])(values))


@pytest.mark.parametrize("pbc", [True, (True, False, True), (False, True, False)])
def test_a_list_that_is_not_stale_has_every_pair(pbc):
    rng = np.random.default_rng(2)
    atoms = random_cell(rng, "triclinic", pbc)
    structure = structure_of(atoms)
    spec = neighbors.plan(structure, 4.0, skin=0.6)
    near = neighbors.build(spec, structure)
    seen = 0
    for size in (0.02, 0.05, 0.1, 0.2):
        strain = np.eye(3) + rng.uniform(-0.01, 0.01, (3, 3))
        moved = structure._replace(
            position=structure.position @ strain + rng.normal(0, size, structure.position.shape),
            cell=structure.cell @ strain,
        )
        if neighbors.stale(spec, near, moved):
            continue
        seen += 1
        vector, used = neighbors.vectors(moved, near)
        inside = np.asarray(used) & (np.linalg.norm(vector, axis=-1) < 4.0)
        new = atoms.copy()
        new.set_cell(moved.cell)
        new.positions = moved.position
        assert inside.sum() == len(neighbour_list("i", new, 4.0))
    assert seen


def test_positions_that_are_not_numbers_are_stale():
    structure = structure_of(molecule("H2O"))
    spec = neighbors.plan(structure, 3.0, skin=0.5)
    near = neighbors.build(spec, structure)
    assert not neighbors.stale(spec, near, structure)
    position = structure.position.copy()
    position[0, 0] = np.nan
    assert neighbors.stale(spec, near, structure._replace(position=position))
