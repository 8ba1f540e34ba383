"""Fixed-capacity dense neighbors for open and periodic structures, however small the cell.

A list [n, k] holds every pair of images closer than cutoff + skin, so it stays valid until atoms and cell have
moved the equivalent of half the skin. All pairs and the needed lattice images are searched: quadratic in the
atoms, exact for cells shorter than the cutoff. How many slots and images there are is fixed in a `Spec` by the
host; too few of either is reported in `Neighbors.overflow`, never silently wrong.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxal.precision import exact
from jaxal.types import Neighbors, Structure


class Spec(NamedTuple):
    """What has to be static about a neighbor list; hashable."""

    cutoff: float  # Å
    skin: float  # Å, added to the cutoff when searching
    capacity: int  # slots per atom
    images: tuple[int, int, int]  # lattice images searched on either side, after wrapping to the nearest


def _images(cell: np.ndarray, reach: float) -> np.ndarray:
    """Images needed on either side of the nearest one, per direction; zeros for an open structure."""
    volume = abs(np.linalg.det(cell))
    if volume < 1e-12:
        return np.zeros(3, int)
    # the distance between lattice planes: a fractional difference in [-1/2, 1/2] plus s reaches (|s| - 1/2) h
    height = volume / np.linalg.norm(np.cross(np.roll(cell, -1, 0), np.roll(cell, -2, 0)), axis=1)
    return np.floor(reach / height + 0.5).astype(int)


def plan(structures: Structure, cutoff: float, skin: float = 0.0, margin: float = 1.25) -> Spec:
    """A Spec with room for the given structures (one, or a batch [b]) and `margin` times their neighbors.

    Host side. For an open structure the capacity never exceeds atoms - 1.
    """
    position, species, cell = (np.asarray(x) for x in structures[:3])
    position, species, cell = (x.reshape(-1, *x.shape[-tail:]) for x, tail in ((position, 2), (species, 1), (cell, 2)))
    reach = cutoff + skin
    images = np.max([_images(c.astype(float), reach) for c in cell], axis=0)
    # 3 % of room for a cell that shrinks under a barostat
    images = np.maximum(images, np.max([_images(0.97 * c.astype(float), reach) for c in cell], axis=0))
    spec = Spec(cutoff, skin, 1, (int(images[0]), int(images[1]), int(images[2])))
    none: Any = np.int32(0)
    rows = zip(position, species, cell, strict=True)
    counts = (_counts(spec, jax.tree.map(jnp.asarray, Structure(p, s, c, none, none))) for p, s, c in rows)
    most = max(int(np.max(count)) for count in counts)
    capacity = max(1, int(np.ceil(margin * most)))
    if not np.any(cell):
        capacity = min(capacity, max(1, position.shape[1] - 1))
    return spec._replace(capacity=capacity)


def _stencil(images: tuple[int, int, int]) -> Int[np.ndarray, "q 3"]:
    axes = [np.arange(-i, i + 1) for i in images]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def _fractional(vector: Float[Array, "... 3"], cell: Float[Array, "3 3"]) -> Float[Array, "... 3"]:
    periodic = jnp.any(cell != 0)
    safe = jnp.where(periodic, cell, jnp.eye(3, dtype=cell.dtype))
    return jnp.where(periodic, vector @ jnp.linalg.inv(safe), 0.0)


def _search(
    spec: Spec, structure: Structure
) -> tuple[Float[Array, "n nq"], Int[Array, "n n 3"], Int[np.ndarray, "q 3"]]:
    """Squared distances to every image of every atom (inf where it is none), and the nearest-image shifts."""
    position, species, cell = structure.position, structure.species, structure.cell
    number = position.shape[0]
    stencil = _stencil(spec.images)
    difference = position[None, :, :] - position[:, None, :]  # [i, j, 3] from i to j
    nearest = -jnp.round(_fractional(difference, cell))
    vector = (difference + nearest @ cell)[:, :, None, :] + jnp.asarray(stencil, cell.dtype) @ cell  # [i, j, q, 3]
    square = jnp.sum(vector**2, axis=-1)
    real = (species >= 0)[:, None] & (species >= 0)[None, :]
    same = np.eye(number, dtype=bool)[:, :, None] & np.all(stencil == 0, axis=1)
    # an open structure has zeros for a cell: its images are all the same atom
    open_copy = ~jnp.any(cell != 0) & np.any(stencil != 0, axis=1)
    square = jnp.where(real[:, :, None] & ~same & ~open_copy, square, jnp.inf)
    return square.reshape(number, -1), nearest.astype(jnp.int32), stencil


@partial(jax.jit, static_argnums=0)
@exact
def _counts(spec: Spec, structure: Structure) -> Int[Array, "n"]:
    square, _, _ = _search(spec, structure)
    return jnp.sum(square < (spec.cutoff + spec.skin) ** 2, axis=1)


@exact
def build(spec: Spec, structure: Structure) -> Neighbors:
    """All neighbors of one structure [n]; nearest first. Pure and vmappable."""
    number = structure.position.shape[0]
    square, nearest, stencil = _search(spec, structure)
    count = jnp.sum(square < (spec.cutoff + spec.skin) ** 2, axis=1)
    slots = min(spec.capacity, square.shape[1])
    negative, place = jax.lax.top_k(-square, slots)
    if slots < spec.capacity:  # fewer pairs in all than there are slots
        pad = ((0, 0), (0, spec.capacity - slots))
        negative = jnp.pad(negative, pad, constant_values=-jnp.inf)
        place = jnp.pad(place, pad)
    valid = -negative < (spec.cutoff + spec.skin) ** 2  # [n, k]
    index, image = place // len(stencil), place % len(stencil)
    shift = jnp.take_along_axis(nearest, index[:, :, None], axis=1) + jnp.asarray(stencil, jnp.int32)[image]
    index = jnp.where(valid, index, number).astype(jnp.int32)
    shift = jnp.where(valid[:, :, None], shift, 0)
    return Neighbors(
        index=index,
        shift=shift,
        reverse=_reverse(index, shift),
        position=structure.position,
        cell=structure.cell,
        overflow=jnp.any(count > spec.capacity) | _too_few_images(spec, structure.cell),
    )


def find(spec: Spec, structures: Structure) -> Neighbors:
    """Neighbors of a batch [b]."""
    return jax.vmap(lambda s: build(spec, s))(structures)


def renewed(spec: Spec, neighbors: Neighbors, structures: Structure) -> Neighbors:
    """The neighbors [b] as they are, or found again, all of them, where one structure has outrun its skin."""
    old = jax.vmap(lambda n, s: stale(spec, n, s))(neighbors, structures)
    return jax.lax.cond(jnp.any(old), lambda: find(spec, structures), lambda: neighbors)


def _reverse(index: Int[Array, "n k"], shift: Int[Array, "n k 3"]) -> Int[Array, "n k"]:
    """Slot of i in the row of its neighbor j with the opposite shift."""
    number, capacity = index.shape
    inside = jnp.minimum(index, number - 1)
    back_index, back_shift = index[inside], shift[inside]  # [n, k, k], [n, k, k, 3]
    match = (back_index == jnp.arange(number)[:, None, None]) & jnp.all(back_shift == -shift[:, :, None, :], axis=-1)
    slot = jnp.argmax(match, axis=-1).astype(jnp.int32)
    return jnp.where(index < number, slot, capacity)


def _too_few_images(spec: Spec, cell: Float[Array, "3 3"]) -> Bool[Array, ""]:
    cross = jnp.cross(jnp.roll(cell, -1, 0), jnp.roll(cell, -2, 0))
    area = jnp.linalg.norm(cross, axis=1)
    volume = jnp.abs(jnp.sum(cell[0] * cross[0]))
    needed = jnp.floor((spec.cutoff + spec.skin) * area / jnp.where(volume > 0, volume, 1.0) + 0.5)
    return (volume > 0) & jnp.any(needed > jnp.asarray(spec.images))


@exact
def stale(spec: Spec, neighbors: Neighbors, structure: Structure) -> Bool[Array, ""]:
    """Whether a pair may have come closer than the cutoff without being listed.

    Two atoms approach by at most twice the largest displacement, measured after the homogeneous strain of the
    cell, plus what the strain itself does to a distance of cutoff + skin.
    """
    real = structure.species >= 0
    periodic = jnp.any(structure.cell != 0)
    safe = jnp.where(periodic, neighbors.cell, jnp.eye(3, dtype=structure.cell.dtype))
    current = jnp.where(periodic, structure.cell, jnp.eye(3, dtype=structure.cell.dtype))
    strain = jnp.linalg.solve(safe, current)  # old row vector @ strain = strained row vector
    moved = jnp.sqrt(
        jnp.max(jnp.sum((structure.position - neighbors.position @ strain) ** 2, -1), where=real, initial=0)
    )
    # a pair outside reach = cutoff + skin is, after the strain, still outside reach * (1 - |strain - 1|)
    compression = jnp.linalg.norm(strain - jnp.eye(3, dtype=strain.dtype))
    # written so that positions that are not numbers count as stale
    return ~(2 * moved + compression * (spec.cutoff + spec.skin) <= spec.skin)


@exact
def vectors(structure: Structure, neighbors: Neighbors) -> tuple[Float[Array, "n k 3"], Bool[Array, "n k"]]:
    """Vectors from each atom to its neighbors (Å) and the mask of slots in use; padded vectors are zero."""
    number = structure.position.shape[0]
    used = neighbors.index < number
    target = gather(structure.position, neighbors.index, neighbors.reverse)
    vector = target + neighbors.shift.astype(structure.cell.dtype) @ structure.cell - structure.position[:, None, :]
    return jnp.where(used[:, :, None], vector, 0.0), used


@jax.custom_vjp
def gather(
    values: Float[Array, "n ..."], index: Int[Array, "n k"], reverse: Int[Array, "n k"]
) -> Float[Array, "n k ..."]:
    """`values[index]`, zero in padded slots, whose transpose is a gather too.

    The pullback of a gather is a scatter-add, which XLA runs serially on CPUs. Every listed pair stands in both
    rows, so the sum over the pairs that point at i is the sum over the row of i of the reversed pairs.
    """
    return values.at[index].get(mode="fill", fill_value=0)


@jax.custom_vjp
def _reversed(
    values: Float[Array, "n k ..."], index: Int[Array, "n k"], reverse: Int[Array, "n k"]
) -> Float[Array, "n k ..."]:
    """The value of each pair as its other atom sees it; its own inverse and its own transpose."""
    return values.at[index, reverse].get(mode="fill", fill_value=0)


def _gather_forward(values, index, reverse):
    return gather(values, index, reverse), (index, reverse)


def _gather_backward(pairs, cotangent):
    return jnp.sum(_reversed(cotangent, *pairs), axis=1), None, None


def _reversed_forward(values, index, reverse):
    return _reversed(values, index, reverse), (index, reverse)


def _reversed_backward(pairs, cotangent):
    return _reversed(cotangent, *pairs), None, None


gather.defvjp(_gather_forward, _gather_backward)
_reversed.defvjp(_reversed_forward, _reversed_backward)
