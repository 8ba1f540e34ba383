"""Cells and their periodic directions in closed form: LAPACK has no place in a step of a compiled program.

On a GPU each would be a factorization by cuSOLVER and two triangular solves, kernels that wait for each other.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def determinant(cell: Float[Array, "*b 3 3"]) -> Float[Array, "*b"]:
    """A . (b x c) of the rows, the signed volume of a cell, Å^3."""
    return jnp.sum(cell[..., 0, :] * jnp.cross(cell[..., 1, :], cell[..., 2, :]), axis=-1)


def inverse(cell: Float[Array, "*b 3 3"]) -> Float[Array, "*b 3 3"]:
    """The inverse, whose columns are the reciprocal vectors (without 2 pi); infinite where the volume is zero."""
    a, b, c = cell[..., 0, :], cell[..., 1, :], cell[..., 2, :]
    columns = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)], axis=-1)
    return columns / determinant(cell)[..., None, None]


def completed(cell: Float[Array, "*b 3 3"], periodic: Bool[Array, "*b 3"]) -> Float[Array, "*b 3 3"]:
    """The cell with unit vectors in place of its open rows, orthogonal to the periodic ones and to each other, Å.

    So it has an inverse whatever stood there, and a coordinate along an open direction is a length. The cell itself
    where all is periodic, the unit matrix where nothing is. With one vector open it is the unit normal of the other
    two; with two, those of Duff et al., J. Comput. Graph. Tech. 6, 1 (2017).
    """
    number = jnp.sum(periodic, axis=-1)[..., None, None]
    rows = [cell[..., row, :] for row in range(3)]
    normals = jnp.stack([_unit(jnp.cross(rows[row - 2], rows[row - 1])) for row in range(3)], axis=-2)
    alone = jnp.sum(jnp.where(periodic[..., None], cell, 0.0), axis=-2)  # the one periodic vector of a wire
    first, second = _around(_unit(alone))
    others = [jnp.where(periodic[..., row - 1, None], first, second) for row in range(3)]
    unit = jnp.broadcast_to(jnp.eye(3, dtype=cell.dtype), cell.shape)
    open_rows = jnp.where(number == 2, normals, jnp.where(number == 1, jnp.stack(others, axis=-2), unit))
    return jnp.where(periodic[..., None], cell, open_rows)


def fractional(
    vector: Float[Array, "*n 3"], cell: Float[Array, "3 3"], periodic: Bool[Array, "3"]
) -> Float[Array, "*n 3"]:
    """Coordinates of vectors (Å) along the lattice vectors that repeat, in units of these; 0 along the others.

    Rounded they are the lattice vectors to the nearest image, exactly so for distances below half of the cell's
    smallest height.
    """
    return jnp.where(periodic, vector @ inverse(completed(cell, periodic)), 0.0)


def along_periodic(
    tensor: Float[Array, "*p b 3 3"], cell: Float[Array, "b 3 3"], periodic: Bool[Array, "b 3"]
) -> Float[Array, "*p b 3 3"]:
    """What tensors have in the directions that repeat: zero in rows and columns along open ones, whole in a crystal."""
    out = jnp.where(periodic[..., None], 0.0, completed(cell, periodic))  # orthonormal rows
    kept = jnp.eye(3, dtype=cell.dtype) - jnp.sum(out[..., :, :, None] * out[..., :, None, :], axis=-3)
    return _product(_product(kept, tensor), kept)


def _product(left: Float[Array, "*p 3 3"], right: Float[Array, "*p 3 3"]) -> Float[Array, "*p 3 3"]:
    """The matrix product as sums, which take no kernel of their own and are exact where a matrix is the unit matrix."""
    return jnp.sum(left[..., :, :, None] * right[..., None, :, :], axis=-2)


def _unit(vector: Float[Array, "*b 3"]) -> Float[Array, "*b 3"]:
    square = jnp.sum(vector**2, axis=-1, keepdims=True)
    return vector / jnp.sqrt(jnp.where(square > 0, square, 1.0))


def _around(axis: Float[Array, "*b 3"]) -> tuple[Float[Array, "*b 3"], Float[Array, "*b 3"]]:
    """Two unit vectors orthogonal to a unit vector and to each other."""
    x, y, z = axis[..., 0], axis[..., 1], axis[..., 2]
    sign = jnp.where(z >= 0, 1.0, -1.0).astype(axis.dtype)
    a = -1.0 / (sign + z)
    b = x * y * a
    return (
        jnp.stack([1.0 + sign * x**2 * a, sign * b, -sign * x], axis=-1),
        jnp.stack([b, sign + y**2 * a, -y], axis=-1),
    )
