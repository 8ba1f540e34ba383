"""MaxVol: rows of a tall matrix that span the largest volume, by swaps.

Goreinov, Oseledets, Savostyanov, Tyrtyshnikov and Zamarashkin, "How to find a good submatrix", in Matrix Methods:
Theory, Algorithms and Applications (World Scientific, 2010).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

ROUNDS = 2  # the second begins with coefficients free of the first's rounding
SWAPS = 20  # for each row of the square matrix, in a round, at most


class _Search(NamedTuple):
    active: Float[Array, "p p"]
    coefficient: Float[Array, "c p"]  # of the candidates in the active rows
    swaps: Array


def maxvol(
    active: Float[Array, "p p"], rows: Float[Array, "c p"], eligible: Bool[Array, "c"], tolerance: float
) -> Float[Array, "p p"]:
    """`active` (invertible, rows) with its rows replaced by eligible `rows` until no swap helps.

    Swapping candidate i for active row j multiplies the volume |det| by |B_ij|, B = rows active^-1. Each step takes the
    largest, until all are at most 1 + `tolerance`: then the volume is within (1 + tolerance)^p p^(p/2) of the largest
    there is, by Hadamard's inequality. Every swap makes it larger, so none comes back.
    """
    size = active.shape[0]
    rows = jnp.where(eligible[:, None], rows, 0.0)

    def going(search: _Search) -> Bool[Array, ""]:
        worst = jnp.max(jnp.abs(search.coefficient))
        return (worst > 1 + tolerance) & (search.swaps < SWAPS * size)

    def swap(search: _Search) -> _Search:
        active, b, swaps = search
        row, column = jnp.unravel_index(jnp.argmax(jnp.abs(b)), b.shape)
        change = (b[row] - jax.nn.one_hot(column, size, dtype=b.dtype)) / b[row, column]
        return _Search(active.at[column].set(rows[row]), b - b[:, column, None] * change, swaps + 1)

    for _ in range(ROUNDS):
        zero = jnp.zeros((), jnp.int32)
        active = jax.lax.while_loop(going, swap, _Search(active, rows @ jnp.linalg.inv(active), zero)).active
    return active
