"""Slabs and wires: a model of them against itself in a cell with much vacuum, and stresses against finite strains."""

import functools

import jax
import numpy as np
import pytest
from commands import SMALL
from scipy.spatial.transform import Rotation

from jaxal.committee.evaluation import evaluate
from jaxal.core import registry
from jaxal.core.discovery import import_file
from jaxal.core.types import Label, Structure
from jaxal.data import lattice, neighbors
from jaxal.data.cell import along_periodic, completed, fractional
from jaxal.train.loss import LossWeights, loss

pytestmark = pytest.mark.usefixtures("double")

CUTOFF = 4.0  # Å, of the small potential
complete = jax.jit(completed)


@functools.cache
def small():
    """The small potential, found by its file: imported as a module it would be registered for other tests, too."""
    import_file(SMALL)
    return registry.get("potential", "bonds")((1, 8))


KINDS = {
    "slab": [True, True, False],
    "slab, b open": [True, False, True],
    "wire": [False, True, False],
    "wire along a": [True, False, False],
    "molecule": [False, False, False],
    "crystal": [True, True, True],
}
PARTIAL = [name for name, repeats in KINDS.items() if any(repeats) and not all(repeats)]


def structure_of(kind: str, turned: bool = True) -> Structure:
    """Six atoms whose open vectors are no longer than what a vacuum of 30 Å needs, in any orientation."""
    rng = np.random.default_rng(5)
    periodic = np.array(KINDS[kind])
    cell = np.diag([3.1, 3.6, 3.3]) + rng.normal(0, 0.2, (3, 3))
    place = rng.random((6, 3)) @ cell
    cell = np.where(periodic[:, None], cell, 30 * lattice.completed(cell, periodic))
    turn = Rotation.from_euler("xyz", [20, 40, 70], degrees=True).as_matrix() if turned else np.eye(3)
    geometry = place @ turn, np.array([0, 0, 0, 0, 1, 1]), cell @ turn * periodic.any(), periodic
    return Structure(*geometry, np.ones(6), np.zeros(6, bool), np.int32(0), np.int32(0))


@pytest.fixture(scope="module")
def model():
    """Energy, force and stress of a structure, with weights of one draw; few programs for all."""
    with jax.enable_x64(True):
        whole = structure_of("crystal")
        spec = neighbors.plan(whole, CUTOFF, 0.0, 2.0)._replace(images=(2, 2, 2))
        params = jax.jit(small().init)(jax.random.key(0), whole, neighbors.build(spec, whole))

        @jax.jit
        def run(structure):
            near = neighbors.build(spec, structure)
            return *evaluate(small(), params, structure, near)[:3], near.overflow

        def checked(structure):
            *numbers, overflow = jax.device_get(run(structure))
            assert not overflow
            return numbers

        yield checked


@pytest.mark.parametrize("kind", PARTIAL)
def test_what_is_open_is_what_has_a_vacuum(model, kind):
    """Nothing of the open vectors counts for energies and forces, and their length only for the volume."""
    structure = structure_of(kind)
    energy, force, stress = model(structure)
    far = model(structure._replace(periodic=np.ones(3, bool)))
    assert energy == pytest.approx(far[0], abs=1e-12)
    np.testing.assert_allclose(force, far[1], atol=1e-12)
    np.testing.assert_allclose(stress, lattice.along_periodic(far[2], *structure[2:4]), atol=1e-12, rtol=1e-9)
    closer = structure._replace(cell=np.where(structure.periodic[:, None], structure.cell, 0.5 * structure.cell))
    opened = int(3 - np.sum(KINDS[kind]))
    np.testing.assert_allclose(model(closer)[2], 2**opened * stress, rtol=1e-9)
    nothing = structure._replace(cell=np.where(structure.periodic[:, None], structure.cell, 0.0))
    without = model(nothing)
    assert without[0] == energy and not without[2].any()
    np.testing.assert_array_equal(without[1], force)


@pytest.mark.parametrize("kind", [*PARTIAL, "crystal"])
def test_stress_is_the_slope_along_what_repeats_and_zero_elsewhere(model, kind):
    structure = structure_of(kind)
    stress = model(structure)[2]
    cell, periodic = structure.cell, structure.periodic
    axes = lattice.basis(cell, periodic)
    strain = axes.T @ np.array([[1.0, 0.3, 0.1], [0.3, -0.5, 0.2], [0.1, 0.2, 0.7]])[: len(axes), : len(axes)] @ axes

    def at(step: float) -> float:
        stretch = np.eye(3) + step * strain
        return model(structure._replace(position=structure.position @ stretch, cell=structure.cell @ stretch))[0]

    tension = (at(1e-5) - at(-1e-5)) / 2e-5 / abs(np.linalg.det(cell))
    assert np.sum(stress * strain) == pytest.approx(float(tension), rel=1e-6) and abs(tension) > 1e-4
    out = lattice.completed(cell, periodic)[~periodic]
    np.testing.assert_allclose(stress @ out.T, 0.0, atol=1e-15)
    np.testing.assert_allclose(out @ stress, 0.0, atol=1e-15)


def test_a_molecule_has_no_stress(model):
    assert not model(structure_of("molecule"))[2].any()


@pytest.mark.parametrize("kind", KINDS)
def test_device_and_host_complete_a_cell_alike(kind):
    """Volume, heights and projection are those of LAPACK's; where all repeats no bit changes."""
    structure = structure_of(kind)
    cell, periodic = structure.cell, structure.periodic
    ours = np.asarray(complete(cell, periodic))
    np.testing.assert_array_equal(ours[periodic], cell[periodic])
    out = ours[~periodic]
    np.testing.assert_allclose(out @ out.T, np.eye(len(out)), atol=1e-14)
    np.testing.assert_allclose(out @ cell[periodic].T, 0, atol=1e-13)
    assert abs(np.linalg.det(ours)) == pytest.approx(lattice.spanned(cell, periodic), rel=1e-12)
    vector = np.random.default_rng(1).normal(size=(5, 3))
    expected = np.where(periodic, vector @ lattice.inverse(cell, periodic), 0.0)
    np.testing.assert_allclose(jax.jit(fractional)(vector, cell, periodic), expected, atol=1e-13)
    tensor = np.random.default_rng(2).normal(size=(3, 3))
    kept = np.asarray(jax.jit(along_periodic)(tensor[None], cell[None], periodic[None]))[0]
    np.testing.assert_allclose(kept, lattice.along_periodic(tensor, cell, periodic), atol=1e-14)
    if periodic.all():
        np.testing.assert_array_equal(ours, cell)
        np.testing.assert_array_equal(kept, tensor)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_wires_along_an_axis_are_completed(axis, sign):
    """The closed form of the two other vectors has a pole to stay away from."""
    cell = np.zeros((3, 3))
    cell[1, axis] = sign * 2.5
    ours = np.asarray(complete(cell, np.array([False, True, False])))
    assert abs(np.linalg.det(ours)) == pytest.approx(2.5)


def test_loss_counts_the_components_of_what_repeats():
    """A crystal's nine, a slab's four: the mean over those, not over zeros."""
    rows = [structure_of("crystal"), structure_of("slab"), structure_of("molecule")]
    structures = jax.tree.map(lambda *x: np.stack(x), *rows)
    rng = np.random.default_rng(3)
    errors = np.stack([lattice.along_periodic(rng.normal(size=(3, 3)), *row[2:4]) for row in rows])
    zeros = np.zeros((3, 6, 3))
    label = Label(np.zeros(3), zeros, np.zeros((3, 3, 3)), np.ones(3, bool))
    weights = LossWeights(0.0, 0.0, 2.0, None)
    value = jax.jit(functools.partial(loss, weights))(np.zeros(3), zeros, errors, structures, label, np.ones((3, 3)))
    volume = [abs(np.linalg.det(row.cell)) for row in rows]
    squares = [np.sum((error * v / 6) ** 2) for error, v in zip(errors, volume, strict=True)]
    assert float(value) == pytest.approx(2.0 * (squares[0] + squares[1]) / 13)
