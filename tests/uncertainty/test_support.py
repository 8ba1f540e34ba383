"""What is supported: distances against numpy, coordination, atoms alone, species and numbers nobody trained on."""

import jax
import numpy as np
import pytest
from ase.build import molecule

from jaxal.data import neighbors
from jaxal.data.structure import from_atoms
from jaxal.uncertainty import support as statistics

FEATURES, KINDS, CUTOFF = 3, 3, 4.0
TABLE = (1, 6, 8)
SPEC = neighbors.Spec(CUTOFF, 0.5, 8, (0, 0, 0))
SKEW = np.array([[1.0, 0.4, 0.0], [0.0, 0.5, 0.2], [0.0, 0.0, 2.0]])


def waters(*apart):
    """A water molecule, of which one hydrogen is moved away by so many Å, for each; with one atom of padding."""
    frames = [molecule("H2O") for _ in apart]
    for frame, gap in zip(frames, apart, strict=True):
        frame.positions[2] += gap * np.array([0.0, -1.0, 0.0])
    return from_atoms(frames, TABLE, size=4)


def features(structures, seed=0):
    """Features of atoms whose law depends on the species; what padding holds must not matter."""
    species = structures.species
    feature = np.random.default_rng(seed).normal(size=(*species.shape, FEATURES)) @ SKEW + species[..., None]
    feature[species < 0] = np.nan
    return feature.astype(np.float32)


@jax.jit
def described(feature, structures):
    near = neighbors.find(SPEC, structures)
    lonely = jax.vmap(statistics.without_neighbors, (0, 0, None))(structures, near, CUTOFF)
    return jax.vmap(statistics.described, (0, 0, 0, None, None))(feature, structures, near, CUTOFF, KINDS), lonely


@jax.jit
def fitted(feature, structures):
    return statistics.fitted(
        *described(feature, structures)[:1], structures.species, described(feature, structures)[1], KINDS
    )


distance = jax.jit(statistics.distance)


@jax.jit
def novelties(support, feature, structures):
    near = neighbors.find(SPEC, structures)
    return jax.vmap(statistics.novelty, (None, 0, 0, 0, None))(support, feature, structures, near, CUTOFF)


def trained(*more):
    """Sixty molecules of slightly varied shape, and those of `more` gaps."""
    gaps = np.random.default_rng(1).normal(0, 0.05, 60)
    return waters(*gaps, *more)


def test_atoms_are_described_by_their_neighbors():
    structures = waters(0.0, 9.0)
    description, lonely = described(features(structures), structures)
    count = np.asarray(description)[:, :3, FEATURES:]
    position = structures.position
    for row in range(2):
        for atom in range(3):
            expected = np.zeros(KINDS)
            for other in range(3):
                r = np.linalg.norm(position[row, atom] - position[row, other])
                if other != atom and r < CUTOFF:
                    expected[int(structures.species[row, other])] += 0.5 + 0.5 * np.cos(np.pi * r / CUTOFF)
            np.testing.assert_allclose(count[row, atom], expected, atol=1e-5)
    np.testing.assert_array_equal(lonely, [[0, 0, 0, 0], [0, 0, 1, 0]])


def test_distances_are_those_of_mahalanobis():
    structures = trained()
    feature = features(structures)
    support, rows = fitted(feature, structures), np.asarray(described(feature, structures)[0], np.float64)
    species = structures.species
    new = np.random.default_rng(2).normal(size=(4, FEATURES + KINDS))
    far = np.asarray(distance(support, new.astype(np.float32), np.array([2, 0, 0, -1], np.int32)))
    size = FEATURES + KINDS
    for atom, kind in enumerate([2, 0, 0]):
        own = rows[species == kind]
        std = own.std(0)
        std = np.maximum(std, statistics.LEAST * std.max())
        scaled = (own - own.mean(0)) / std
        correlation = (scaled.T @ scaled + statistics.STRENGTH * np.eye(size)) / (len(own) + statistics.STRENGTH)
        gap = (new[atom] - own.mean(0)) / std
        assert float(far[atom]) == pytest.approx(np.sqrt(gap @ np.linalg.solve(correlation, gap) / size), rel=1e-3)
    assert float(far[3]) == 0
    # a species that nobody trained on is infinitely far
    assert np.isinf(distance(support, np.zeros((4, size), np.float32), np.array([1, 0, 0, -1], np.int32)))[0]


@pytest.mark.parametrize("apart", [0.5, 2.0])
def test_what_comes_apart_is_new_whatever_its_features_say(apart):
    structures = trained()
    support = fitted(features(structures), structures)
    both = waters(0.0, apart)
    same = np.asarray(support.mean)[both.species, :FEATURES]
    whole, broken = novelties(support, same, both)
    assert float(whole) < 1 < 3 < float(broken)


@pytest.mark.parametrize("lonely", [False, True])
def test_an_atom_without_neighbors_is_unknown_unless_one_was_trained_on(lonely):
    structures = trained(*[9.0] * (20 * lonely))
    support = fitted(features(structures), structures)._replace(limit=np.float32(3.0))
    alone = waters(9.0)
    same = np.asarray(support.mean)[alone.species, :FEATURES]
    value = novelties(support, same, alone).item()
    assert np.isfinite(value) == lonely and statistics.is_supported(value) == lonely


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_what_is_no_number_is_not_supported(bad):
    structures = trained()
    support = fitted(features(structures), structures)._replace(limit=np.float32(3.0))
    water = waters(0.0)
    same = np.asarray(support.mean)[water.species, :FEATURES]
    for atom, is_supported in ((1, False), (3, True)):  # the latter is padding
        feature = same.copy()
        feature[0, atom, 1] = bad
        value = np.asarray(novelties(support, feature, water))
        assert statistics.is_supported(value[0]) == is_supported


@pytest.mark.parametrize("dtype, accuracy", [(np.float32, 2e-3), (np.float64, 1e-11)])
def test_the_inverse_of_the_cholesky_factor_is_that_of_lapack(double, dtype, accuracy):
    """Also where the largest eigenvalue is a hundred thousand times the smallest."""
    rng = np.random.default_rng(0)
    turns = np.linalg.qr(rng.normal(size=(3, 40, 40)))[0]
    values = np.stack([np.ones(40), np.geomspace(1e-2, 1, 40), np.geomspace(1e-5, 1, 40)])
    matrix = np.einsum("sij,sj,skj->sik", turns, values, turns)
    ours = np.asarray(jax.jit(statistics.inverse_root)(matrix.astype(dtype)))
    assert ours.dtype == dtype and not np.triu(ours, 1).any()
    exact = np.linalg.inv(np.linalg.cholesky(matrix))
    scale = np.abs(exact).max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(ours / scale, exact / scale, atol=accuracy)
