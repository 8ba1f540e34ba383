"""Where a committee and its bound apply: structures whose atoms are like those that were trained on.

An atom is described by x: the potential's features, and by its smooth coordination numbers, one for each species of
neighbors. Of each species the x of the trained atoms are taken as normal, with mean mu and covariance S: an atom's
distance is Mahalanobis', d^2 = (x - mu)^T S^-1 (x - mu) / f over f numbers. A structure's novelty is the distance of
its farthest atom over `limit`, which comes from structures that were held out: above 1 it is not supported. So is a
structure with an atom that has no neighbor, where no atom of its species was trained so: its features are those of
nothing, which may lie anywhere. (Lee et al., NeurIPS 2018, arXiv:1807.03888, for classifiers; Hu, Musielewicz, Ulissi
and Medford, Mach. Learn.: Sci. Technol. 3, 045028, 2022, for potentials.)

What training makes of features it makes for the structures that are trained on: those of a dimer do not change much
when it comes apart, and coordination numbers do. The features are those of the first set of weights. Pure functions of
fixed shapes, in the program and after it.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxal.core.precision import exact
from jaxal.core.types import Neighbors, Structure
from jaxal.data.neighbors import vectors

STRENGTH = 10.0  # as many atoms as the identity counts in the correlations of a species
LEAST = 1e-3  # standard deviation of a number, over the largest of its species, at least


class Support(NamedTuple):
    """What is known of the trained atoms of each species; small, part of the model file."""

    mean: Float[Array, "s f"]
    whiten: Float[Array, "s f f"]  # W with W^T W the inverse of f times the covariance
    alone: Bool[Array, "s"]  # an atom without neighbors was trained on
    trained: Bool[Array, "s"]  # any atom was
    limit: Float[Array, ""]  # distance of the farthest atom of a structure that is still supported


def of_arrays(arrays: Mapping[str, Any], kinds: int) -> Support | None:
    """The support of a file, by the names of its fields; None without any. Raises ValueError where it cannot be one."""
    if not arrays:
        return None
    support: Any = Support(**arrays)
    size = support.mean.shape[-1]
    shapes = Support((kinds, size), (kinds, size, size), (kinds,), (kinds,), ())  # pyright: ignore[reportArgumentType]
    for name, array, shape in zip(Support._fields, support, shapes, strict=True):
        if array.shape != shape or not np.all(np.isfinite(array)):
            raise ValueError(f"support {name} {array.shape}")
    return support


def described(
    feature: Float[Array, "n g"], structure: Structure, neighbors: Neighbors, cutoff: float, kinds: int
) -> Float[Array, "n f"]:
    """What atoms are compared by: the potential's features and coordination numbers, f = g + kinds.

    The coordination number of an atom by a species is the sum over its neighbors of that species, at distances r below
    the cutoff, of (1 + cos(pi r / cutoff)) / 2 (Behler and Parrinello, Phys. Rev. Lett. 98, 146401, 2007).
    """
    vector, used = vectors(structure, neighbors)
    square = jnp.sum(vector**2, axis=-1)
    near = used & (square < cutoff**2) & (square > 0)
    weight = 0.5 + 0.5 * jnp.cos(jnp.pi / cutoff * jnp.sqrt(jnp.where(near, square, 1.0)))
    kind = structure.species.at[neighbors.index].get(mode="fill", fill_value=-1)  # [n k]
    shares = jax.nn.one_hot(kind, kinds, dtype=feature.dtype)
    count = jnp.sum(jnp.where(near, weight, 0.0).astype(feature.dtype)[..., None] * shares, axis=1)
    return jnp.concatenate([feature, count], axis=-1)


@exact
def fitted(
    described: Float[Array, "c n f"], species: Int[Array, "c n"], lonely: Bool[Array, "c n"], kinds: int
) -> Support:
    """The statistics of the atoms of trained structures [c]; species -1 is none. The limit is 1.

    S = D R D with the standard deviations D, none below `LEAST` times the largest, and the correlations R, in which the
    identity counts as much as `STRENGTH` atoms.
    """
    rows, size = described.reshape(-1, described.shape[-1]), described.shape[-1]
    kind = jax.nn.one_hot(species.reshape(-1), kinds, dtype=rows.dtype)  # [c n, s]
    rows = jnp.where(jnp.any(kind > 0, axis=-1, keepdims=True), rows, 0.0)
    count = jnp.sum(kind, axis=0)
    mean = (kind.T @ rows) / jnp.maximum(count, 1)[:, None]
    away = rows - kind @ mean
    std = jnp.sqrt((kind.T @ away**2) / jnp.maximum(count, 1)[:, None])
    largest = jnp.max(std, axis=-1, keepdims=True, initial=0.0)
    std = jnp.maximum(std, LEAST * jnp.where(largest > 0, largest, 1.0))
    scaled = away / (kind @ std + (1 - jnp.sum(kind, axis=-1, keepdims=True)))
    unit = jnp.eye(size, dtype=rows.dtype)

    def correlated(mask: Float[Array, "a"], number: Float[Array, ""]) -> Float[Array, "f f"]:
        product = (scaled * mask[:, None]).T @ scaled
        return (product + STRENGTH * unit) / (number + STRENGTH) * size

    whiten = inverse_root(jax.lax.map(lambda pair: correlated(*pair), (kind.T, count))) / std[:, None, :]
    alone = jnp.einsum("as,a->s", kind, lonely.reshape(-1).astype(rows.dtype)) > 0
    return Support(mean, whiten, alone, count > 0, jnp.ones((), rows.dtype))


def inverse_root(matrix: Float[Array, "s f f"]) -> Float[Array, "s f f"]:
    """The inverse of the lower Cholesky factor L of positive definite matrices, without a library's factorization.

    Elimination makes [A | 1] into [L^T | L^-1], row by row; by symmetry a column is the row that eliminates it.
    """
    size = matrix.shape[-1]
    place = jnp.arange(size)

    def eliminate(k: Int[Array, ""], both: Float[Array, "s f g"]) -> Float[Array, "s f g"]:
        row = both[:, k] / jnp.sqrt(both[:, k, k])[:, None]
        below = jnp.where(place > k, row[:, :size], 0.0)
        return (both - below[:, :, None] * row[:, None, :]).at[:, k].set(row)

    unit = jnp.broadcast_to(jnp.eye(size, dtype=matrix.dtype), matrix.shape)
    return jax.lax.fori_loop(0, size, eliminate, jnp.concatenate([matrix, unit], axis=-1))[..., size:]


@exact
def distance(support: Support, described: Float[Array, "n f"], species: Int[Array, "n"]) -> Float[Array, "n"]:
    """Distances of atoms; zero where there is none, infinite for a species that was never trained on."""
    kinds = support.mean.shape[0]
    real = species >= 0
    kind = jnp.where(real, species, 0)
    away = jnp.where(real[:, None], described - support.mean[kind], 0.0)
    # by species rather than by atom: the matrices are gathered for none of the atoms
    each = jnp.einsum("sgf,nf->nsg", support.whiten, away)
    square = jnp.sum(jnp.sum(each**2, axis=-1) * jax.nn.one_hot(kind, kinds, dtype=away.dtype), axis=-1)
    length = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), square)
    return jnp.where(real, jnp.where(support.trained[kind], length, jnp.inf), 0.0)


def without_neighbors(structure: Structure, neighbors: Neighbors, cutoff: float) -> Bool[Array, "n"]:
    """Atoms that have no neighbor within the cutoff."""
    vector, used = vectors(structure, neighbors)
    return (structure.species >= 0) & ~jnp.any(used & (jnp.sum(vector**2, axis=-1) < cutoff**2), axis=-1)


def novelty(
    support: Support, feature: Float[Array, "n g"], structure: Structure, neighbors: Neighbors, cutoff: float
) -> Float[Array, ""]:
    """Distance of the farthest atom over the limit; above 1 the structure is not supported.

    `feature` is the potential's, `cutoff` its range, which the neighbors may exceed. Infinite where a feature is not
    finite, and where an atom has no neighbor within the cutoff without such an atom having been trained on.
    """
    own = described(feature, structure, neighbors, cutoff, support.mean.shape[0])
    farthest = jnp.max(distance(support, own, structure.species), initial=0.0)
    kind = jnp.maximum(structure.species, 0)
    lost = jnp.any(without_neighbors(structure, neighbors, cutoff) & ~support.alone[kind])
    value = farthest / support.limit
    return jnp.where(lost | jnp.isnan(value), jnp.inf, value)


def is_supported(novelty: Float[Array, "*b"]) -> Bool[Array, "*b"]:
    """Structures that are like what was trained on."""
    return novelty <= 1
