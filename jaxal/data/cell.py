"""Determinant and inverse of 3x3 cells in closed form: LAPACK's have no place in a step of a compiled program.

On a GPU each would be a factorization by cuSOLVER and two triangular solves, kernels that wait for each other.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float


def determinant(cell: Float[Array, "*b 3 3"]) -> Float[Array, "*b"]:
    """A . (b x c) of the rows, the signed volume of a cell, Å^3."""
    return jnp.sum(cell[..., 0, :] * jnp.cross(cell[..., 1, :], cell[..., 2, :]), axis=-1)


def inverse(cell: Float[Array, "*b 3 3"]) -> Float[Array, "*b 3 3"]:
    """The inverse, whose columns are the reciprocal vectors (without 2 pi); infinite where the volume is zero."""
    a, b, c = cell[..., 0, :], cell[..., 1, :], cell[..., 2, :]
    columns = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)], axis=-1)
    return columns / determinant(cell)[..., None, None]
