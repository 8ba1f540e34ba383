"""Determinant and inverse of cells against LAPACK's, their slopes, and cells that are none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxal.data import cell as cells

determinant, inverse = jax.jit(cells.determinant), jax.jit(cells.inverse)
CELLS = {
    "cube": np.eye(3) * 5.43,
    "left-handed": -np.eye(3) * 4.0,
    "triclinic": np.array([[5.1, 0.2, -0.3], [2.4, 6.0, 0.1], [-1.7, 2.2, 7.9]]),
    "flat": np.array([[40.0, 0, 0], [0, 2.5, 0], [1.0, 1.2, 3.0]]),
    "large": np.array([[300.0, 10, 0], [0, 280.0, 5], [7, 0, 310.0]]),
}


@pytest.mark.parametrize("name", CELLS)
def test_both_are_those_of_lapack(double, name):
    cell = CELLS[name]
    assert float(determinant(cell)) == pytest.approx(np.linalg.det(cell), rel=1e-13)
    np.testing.assert_allclose(inverse(cell), np.linalg.inv(cell), atol=1e-14 / np.abs(cell).max())


def test_they_go_over_batches_in_single_precision():
    batch = np.stack([*CELLS.values()]).astype(np.float32).reshape(5, 1, 3, 3)
    assert determinant(batch).shape == (5, 1) and inverse(batch).dtype == np.float32
    unit = batch @ np.asarray(inverse(batch))
    np.testing.assert_allclose(unit, np.broadcast_to(np.eye(3), unit.shape), atol=2e-6)


def test_their_slopes_are_those_of_lapack(double):
    cell = CELLS["triclinic"]
    weight = np.random.default_rng(0).normal(size=(3, 3))
    ours = jax.jit(jax.grad(lambda c: determinant(c) + jnp.sum(weight * inverse(c))))(cell)
    theirs = jax.jit(jax.grad(lambda c: jnp.linalg.det(c) + jnp.sum(weight * jnp.linalg.inv(c))))(cell)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_what_has_no_volume_has_no_inverse():
    assert float(determinant(np.zeros((3, 3)))) == 0
    assert not np.isfinite(inverse(np.zeros((3, 3)))).any()
