"""Gaps and isolated atoms against SciPy's spanning tree and ASE's distances, open and in cells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from scipy.sparse.csgraph import minimum_spanning_tree
from structures import plain

from jaxal.data import fragments, neighbors
from jaxal.data.structure import from_atoms

gap = jax.jit(fragments.gap)
isolated = jax.jit(fragments.isolated)
unknown = jax.jit(fragments.unknown)
species_of = jax.jit(fragments.isolated_species, static_argnums=4)
build = jax.jit(neighbors.build, static_argnums=0)


@pytest.mark.parametrize("cell", [None, [[9.0, 0, 0], [2.0, 8.0, 0], [1.0, -1.5, 10.0]]], ids=["open", "periodic"])
def test_the_gap_is_the_longest_edge_of_the_spanning_tree(cell):
    rng = np.random.default_rng(2)
    for _ in range(5):
        atoms = Atoms("H9", rng.uniform(-6, 12, (9, 3)), cell=cell, pbc=cell is not None)
        distance = atoms.get_all_distances(mic=cell is not None)
        expected = minimum_spanning_tree(distance).toarray().max()
        if cell is None or expected < 3.5:  # half of the smallest height, beyond which other images may be nearer
            padded = jax.device_put(from_atoms(atoms, (1,), size=12))
            assert float(gap(padded)) == pytest.approx(expected, rel=1e-5)


def test_the_gap_of_one_atom_and_of_what_is_not_a_number():
    single = plain(jnp.zeros((1, 3)), jnp.zeros(1, jnp.int32), jnp.zeros((3, 3)))
    assert float(gap(single)) == 0.0
    two = plain(jnp.asarray([[0.0, 0, 0], [jnp.nan, 0, 0]]), jnp.zeros(2, jnp.int32), jnp.zeros((3, 3)))
    assert not float(gap(two)) <= 1e6


def test_isolated_atoms_and_their_species():
    """Hydrogen 0 is 2.9 Å from the next atom, hydrogen 3 3.1 Å, the cutoff is 3 Å; a list with a skin holds both."""
    position = jnp.asarray([[0.0, 0, 0], [2.9, 0, 0], [2.9, 1.0, 0], [6.0, 1.0, 0], [0.0, 0, 0]])
    species = jnp.asarray([0, 1, 1, 0, -1], jnp.int32)
    structure = plain(position, species, jnp.zeros((3, 3)))
    near = build(neighbors.Spec(3.0, 0.5, 4, (0, 0, 0)), structure)
    np.testing.assert_array_equal(isolated(3.0, structure, near), [False, False, False, True, False])
    batch = jax.tree.map(lambda x: jnp.stack([jnp.asarray(x)] * 2), (structure, near))
    for rows, expected in (([True, False], [True, False]), ([False, False], [False, False])):
        alone = species_of(3.0, *batch, jnp.asarray(rows), 2)
        np.testing.assert_array_equal(alone, expected)
        assert bool(unknown(3.0, structure, near, alone)) != expected[0]


def test_an_atom_with_its_own_image_inside_the_cutoff_is_not_alone():
    structure = plain(jnp.zeros((1, 3)), jnp.zeros(1, jnp.int32), 2.5 * jnp.eye(3))
    near = build(neighbors.plan(structure, 3.0), structure)
    assert not isolated(3.0, structure, near).any()
    assert isolated(2.4, structure, near).all()
