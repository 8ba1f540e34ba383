"""Fixed-capacity dense neighbors for open and periodic structures, however small or large the cell.

A list [n, k] holds every pair of images closer than cutoff + skin, so it stays valid until atoms and cell have
moved the equivalent of half the skin. Small structures search all pairs and the needed lattice images: quadratic in the
atoms, exact for cells shorter than the cutoff. Large cells are cut into bins at least cutoff + skin wide, and an atom
looks into the 27 around it: linear in the atoms. How many slots, images and bins there are is fixed in a `Spec` by the
host; too few of any is reported in `Neighbors.overflow`, never silently wrong.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxal.core.precision import exact
from jaxal.core.types import Neighbors, Structure
from jaxal.data.cell import inverse

LARGE = 400  # atoms from which on bins pay
ROWS = 2048  # atoms whose reversed pairs are looked up at a time
LISTED = 1.25  # room of a list with a skin, over the neighbors there are


class Spec(NamedTuple):
    """What has to be static about a neighbor list; hashable."""

    cutoff: float  # Å
    skin: float  # Å, added to the cutoff when searching
    capacity: int  # slots per atom
    images: tuple[int, int, int]  # lattice images searched on either side, after wrapping to the nearest
    bins: tuple[int, int, int] | None = None  # along the lattice vectors; None searches all pairs
    bin_slots: int = 0  # atoms in a bin, at most
    close: int = 0  # slots for those within the cutoff itself; 0 = as many as `capacity`


def _heights(cell: np.ndarray) -> np.ndarray | None:
    """Distances between the lattice planes of each direction, Å; None for an open structure."""
    volume = abs(np.linalg.det(cell))
    if volume < 1e-12:
        return None
    return volume / np.linalg.norm(np.cross(np.roll(cell, -1, 0), np.roll(cell, -2, 0)), axis=1)


def _images(cell: np.ndarray, reach: float) -> np.ndarray:
    """Images needed on either side of the nearest one, per direction; zeros for an open structure."""
    height = _heights(cell)
    # a fractional difference in [-1/2, 1/2] plus s reaches (|s| - 1/2) heights
    return np.zeros(3, int) if height is None else np.floor(reach / height + 0.5).astype(int)


def _bins(cell: np.ndarray, reach: float) -> np.ndarray:
    """How often `reach` fits between the lattice planes, per direction; zeros for an open structure."""
    height = _heights(cell)
    return np.zeros(3, int) if height is None else np.floor(height / reach).astype(int)


def plan(structures: Structure, cutoff: float, skin: float = 0.0, margin: float = 1.15, shrink: float = 0.97) -> Spec:
    """A Spec with room for the given structures (one, or a batch [b]) and `margin` times their neighbors.

    Host side. With a skin the list itself, which costs little, has more room than what is taken from it. Images and
    bins also serve cells that a barostat makes shorter by the factor `shrink`. For an open structure the capacity never
    exceeds atoms - 1.
    """
    lead = np.ndim(structures.charge)
    flat = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *np.shape(x)[lead:]), structures)
    position, species, cell = flat[:3]
    reach = cutoff + skin
    shrunk = [shrink * c.astype(float) for c in cell]
    images = np.max([_images(c, reach) for c in shrunk], axis=0)
    spec = Spec(cutoff, skin, 1, (int(images[0]), int(images[1]), int(images[2])))
    bins = np.min([_bins(c, reach) for c in shrunk], axis=0)
    if position.shape[1] >= LARGE and bins.min() >= 3:
        three = int(bins[0]), int(bins[1]), int(bins[2])
        most = max(_fullest(three, p.astype(float), s, c) for p, s, c in zip(position, species, cell, strict=True))
        spec = spec._replace(images=(0, 0, 0), bins=three, bin_slots=int(np.ceil(1.5 * most)) + 2)
    frames = [jax.tree.map(lambda x, row=row: jnp.asarray(x[row]), flat) for row in range(len(position))]

    def slots(each: Spec, margin: float) -> int:
        room = max(1, int(np.ceil(margin * max(int(np.max(_counts(each, frame))) for frame in frames))))
        return room if np.any(cell) else min(room, max(1, position.shape[1] - 1))

    spec = spec._replace(capacity=slots(spec, margin if skin == 0 else max(margin, LISTED)))
    close = slots(spec._replace(skin=0.0), margin) if skin else spec.capacity
    return spec._replace(close=close if close < spec.capacity else 0)


def larger(spec: Spec, structures: Structure, shrink: float = 0.9) -> Spec:
    """More room of every kind than `spec` has, after an overflow near `structures`; `shrink` as in `plan`."""
    planned = plan(jax.device_get(structures), spec.cutoff, spec.skin, LISTED, shrink)
    most = structures.species.shape[-1] - 1 if not np.any(np.asarray(structures.cell)) else np.inf
    capacity = int(min(max(planned.capacity, 1.5 * spec.capacity + 1), max(1, most)))
    close = int(min(max(planned.close, LISTED * spec.close + 1), capacity)) if spec.close else 0
    images = planned.images
    if planned.bins is None:
        images = tuple(max(a, b) for a, b in zip(spec.images, planned.images, strict=True))
    slots = max(planned.bin_slots, int(1.5 * spec.bin_slots) + 1)
    return planned._replace(capacity=capacity, images=images, bin_slots=slots if planned.bins else 0, close=close)


def _fullest(bins: tuple[int, int, int], position: np.ndarray, species: np.ndarray, cell: np.ndarray) -> int:
    """Atoms in the fullest bin."""
    fractional = position[species >= 0] @ np.linalg.inv(cell.astype(float))
    place = np.minimum(((fractional - np.floor(fractional)) * bins).astype(int), np.array(bins) - 1)
    return int(np.bincount(np.ravel_multi_index(tuple(place.T), bins)).max())


def _stencil(images: tuple[int, int, int]) -> Int[np.ndarray, "q 3"]:
    axes = [np.arange(-i, i + 1) for i in images]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


def _fractional(vector: Float[Array, "... 3"], cell: Float[Array, "3 3"]) -> Float[Array, "... 3"]:
    periodic = jnp.any(cell != 0)
    safe = jnp.where(periodic, cell, jnp.eye(3, dtype=cell.dtype))
    return jnp.where(periodic, vector @ inverse(safe), 0.0)


class _Pairs(NamedTuple):
    """What may be a neighbor of each atom: squared distance (inf for what is none), who, and in which image."""

    square: Float[Array, "n c"]
    index: Callable[[Int[Array, "n s"]], Int[Array, "n s"]]  # of chosen candidates
    shift: Callable[[Int[Array, "n s"]], Int[Array, "n s 3"]]
    overflow: Bool[Array, ""]


def _search(spec: Spec, structure: Structure) -> _Pairs:
    return _all_pairs(spec, structure) if spec.bins is None else _binned(spec, structure)


def _all_pairs(spec: Spec, structure: Structure) -> _Pairs:
    """Every image of every atom."""
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
    nearest = nearest.astype(jnp.int32)

    def shift(place):
        whole = jnp.take_along_axis(nearest, (place // len(stencil))[:, :, None], axis=1)
        return whole + jnp.asarray(stencil, jnp.int32)[place % len(stencil)]

    return _Pairs(
        square.reshape(number, -1), lambda place: place // len(stencil), shift, _too_few_images(spec, structure.cell)
    )


def _binned(spec: Spec, structure: Structure) -> _Pairs:
    """The atoms of the 27 bins around each atom."""
    assert spec.bins is not None
    bins, slots = np.array(spec.bins), spec.bin_slots
    position, species, cell = structure.position, structure.species, structure.cell
    number = position.shape[0]
    fractional = position @ inverse(cell)
    whole = jnp.floor(fractional)
    wrapped = (fractional - whole) @ cell
    place = jnp.clip(((fractional - whole) * bins).astype(jnp.int32), 0, bins - 1)  # [n, 3]
    linear = (place[:, 0] * bins[1] + place[:, 1]) * bins[2] + place[:, 2]
    linear = jnp.where(species >= 0, linear, bins.prod())  # padding goes into a bin nobody looks into
    order = jnp.argsort(linear)
    rank = jnp.arange(number) - jnp.searchsorted(linear[order], linear[order])
    table = jnp.full((bins.prod() + 1, slots), number, jnp.int32)
    table = table.at[linear[order], rank].set(order.astype(jnp.int32), mode="drop")
    crowded = jnp.any((rank >= slots) & (linear[order] < bins.prod()))

    around = place[:, None, :] + _stencil((1, 1, 1))  # [n, 27, 3]
    image = jnp.floor_divide(around, bins)
    around = around - image * bins
    bin_ = (around[..., 0] * bins[1] + around[..., 1]) * bins[2] + around[..., 2]
    index = table[bin_]  # [n, 27, slots]
    vector = wrapped.at[index].get(mode="fill", fill_value=0) - wrapped[:, None, None, :]
    vector = vector + (image.astype(cell.dtype) @ cell)[:, :, None, :]
    square = jnp.sum(vector**2, axis=-1)
    itself = (index == jnp.arange(number)[:, None, None]) & jnp.all(image == 0, axis=-1)[:, :, None]
    real = (index < number) & (species >= 0)[:, None, None]
    square = jnp.where(real & ~itself, square, jnp.inf).reshape(number, -1)
    index = index.reshape(number, -1)
    whole = whole.astype(jnp.int32)

    def shift(chosen):
        other = whole.at[jnp.take_along_axis(index, chosen, axis=1)].get(mode="fill", fill_value=0)
        across = jnp.take_along_axis(image, (chosen // slots)[:, :, None], axis=1)
        return across + whole[:, None, :] - other

    narrow = jnp.any(_plane_distances(cell) < (spec.cutoff + spec.skin) * bins)
    return _Pairs(square, lambda chosen: jnp.take_along_axis(index, chosen, axis=1), shift, crowded | narrow)


@partial(jax.jit, static_argnums=0)
@exact
def _counts(spec: Spec, structure: Structure) -> Int[Array, "n"]:
    return jnp.sum(_search(spec, structure).square < (spec.cutoff + spec.skin) ** 2, axis=1)


@partial(jax.jit, static_argnums=0, inline=True)  # one program where it is called outside of one
@exact
def build(spec: Spec, structure: Structure) -> Neighbors:
    """All neighbors of one structure [n]; nearest first. Pure and vmappable."""
    number = structure.position.shape[0]
    pairs = _search(spec, structure)
    count = jnp.sum(pairs.square < (spec.cutoff + spec.skin) ** 2, axis=1)
    slots = min(spec.capacity, pairs.square.shape[1])
    negative, place = jax.lax.top_k(-pairs.square, slots)
    if slots < spec.capacity:  # fewer pairs in all than there are slots
        pad = ((0, 0), (0, spec.capacity - slots))
        negative = jnp.pad(negative, pad, constant_values=-jnp.inf)
        place = jnp.pad(place, pad)
    valid = -negative < (spec.cutoff + spec.skin) ** 2  # [n, k]
    index = jnp.where(valid, pairs.index(place), number).astype(jnp.int32)
    shift = jnp.where(valid[:, :, None], pairs.shift(place), 0)
    return Neighbors(
        index=index,
        shift=shift,
        reverse=_reverse(index, shift),
        position=structure.position,
        cell=structure.cell,
        overflow=jnp.any(count > spec.capacity) | pairs.overflow,
    )


@partial(jax.jit, static_argnums=0, inline=True)
@exact
def within(spec: Spec, neighbors: Neighbors, structures: Structure) -> Neighbors:
    """Those of the neighbors [b] that are within the cutoff now, in fewer slots, without those in the skin.

    What a potential does for a pair costs the same however far it is: a list with a skin of 0.5 Å about a cutoff of
    5 Å has a third more pairs than count. `overflow` also says where the slots did not suffice.
    """
    if not spec.close:
        return neighbors
    return jax.vmap(lambda n, s: _within(spec, n, s))(neighbors, structures)


def _within(spec: Spec, neighbors: Neighbors, structure: Structure) -> Neighbors:
    vector, used = vectors(structure, neighbors)
    near = used & (jnp.sum(vector**2, axis=-1) < spec.cutoff**2)
    # both rows of a pair must agree, though rounding may put it on either side of the cutoff
    near = near & near.at[neighbors.index, neighbors.reverse].get(mode="fill", fill_value=False)
    number, slots = near.shape
    rank = jnp.cumsum(near, axis=1, dtype=jnp.int32) - 1  # where a slot goes
    goes = near[:, None, :] & (rank[:, None, :] == jnp.arange(spec.close)[:, None])  # [n, close, k]
    place = jnp.sum(jnp.where(goes, jnp.arange(slots), 0), axis=-1)
    kept = jnp.arange(spec.close) < jnp.sum(near, axis=1)[:, None]
    back = rank.at[neighbors.index, neighbors.reverse].get(mode="fill", fill_value=0)

    def take(values, empty):
        return jnp.where(kept, jnp.take_along_axis(values, place, axis=1), empty)

    shift = jnp.take_along_axis(neighbors.shift, place[:, :, None], axis=1)
    return neighbors._replace(
        index=take(neighbors.index, number),
        shift=jnp.where(kept[:, :, None], shift, 0),
        reverse=take(back, spec.close),
        overflow=neighbors.overflow | jnp.any(jnp.sum(near, axis=1) > spec.close),
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

    def row(given):
        atom, neighbor, to = given
        inside = jnp.minimum(neighbor, number - 1)
        match = (index[inside] == atom) & jnp.all(shift[inside] == -to[:, None, :], axis=-1)  # [k, k]
        return jnp.where(neighbor < number, jnp.argmax(match, axis=-1).astype(jnp.int32), capacity)

    rows = (jnp.arange(number, dtype=jnp.int32), index, shift)
    if number <= ROWS:
        return jax.vmap(lambda *one: row(one))(*rows)
    return jax.lax.map(row, rows, batch_size=ROWS)


def _plane_distances(cell: Float[Array, "3 3"]) -> Float[Array, "3"]:
    cross = jnp.cross(jnp.roll(cell, -1, 0), jnp.roll(cell, -2, 0))
    return jnp.abs(jnp.sum(cell[0] * cross[0])) / jnp.linalg.norm(cross, axis=1)


def _too_few_images(spec: Spec, cell: Float[Array, "3 3"]) -> Bool[Array, ""]:
    periodic = jnp.any(cell != 0)
    safe = jnp.where(periodic, cell, jnp.eye(3, dtype=cell.dtype))
    needed = jnp.floor((spec.cutoff + spec.skin) / _plane_distances(safe) + 0.5)
    return periodic & jnp.any(needed > jnp.asarray(spec.images))


@partial(jax.jit, static_argnums=0, inline=True)
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
    strain = inverse(safe) @ current  # old row vector @ strain = strained row vector
    moved = jnp.sqrt(
        jnp.max(jnp.sum((structure.position - neighbors.position @ strain) ** 2, -1), where=real, initial=0)
    )
    # a pair outside reach = cutoff + skin is, after the strain, still outside reach * (1 - |strain - 1|)
    compression = jnp.linalg.norm(strain - jnp.eye(3, dtype=strain.dtype))
    # written so that positions that are not numbers count as stale
    return ~(2 * moved + compression * (spec.cutoff + spec.skin) <= spec.skin)


@partial(jax.jit, inline=True)
@exact
def vectors(structure: Structure, neighbors: Neighbors) -> tuple[Float[Array, "n k 3"], Bool[Array, "n k"]]:
    """Vectors from each atom to its neighbors (Å) and the mask of slots in use; padded vectors are zero."""
    used = neighbors.index < structure.position.shape[0]
    target = gather(structure.position, *inward(neighbors.index, neighbors.reverse))
    vector = target + neighbors.shift.astype(structure.cell.dtype) @ structure.cell - structure.position[:, None, :]
    return jnp.where(used[:, :, None], vector, 0.0), used


def inward(index: Int[Array, "n k"], reverse: Int[Array, "n k"]) -> tuple[Int[Array, "n k"], Int[Array, "n k"]]:
    """Index and reverse for `gather`: a padded slot points at its own atom and is its own reverse."""
    used = index < index.shape[0]
    atom = jnp.arange(index.shape[0], dtype=index.dtype)[:, None]
    slot = jnp.arange(index.shape[1], dtype=reverse.dtype)[None, :]
    return jnp.where(used, index, atom), jnp.where(used, reverse, slot)


@jax.custom_vjp
def gather(
    values: Float[Array, "n ..."], index: Int[Array, "n k"], reverse: Int[Array, "n k"]
) -> Float[Array, "n k ..."]:
    """`values[index]` for indices as `inward` gives them, whose transpose is a gather too.

    A padded slot holds its own atom's values: they must not count, so that their cotangents are zero.
    The pullback of a gather is a scatter-add, which XLA runs serially on CPUs. Every listed pair stands in both
    rows, so the sum over the pairs that point at i is the sum over the row of i of the reversed pairs.
    """
    return values.at[index].get(mode="promise_in_bounds")


@jax.custom_vjp
def _reversed(
    values: Float[Array, "n k ..."], index: Int[Array, "n k"], reverse: Int[Array, "n k"]
) -> Float[Array, "n k ..."]:
    """The value of each pair as its other atom sees it; its own inverse and its own transpose."""
    return values.at[index, reverse].get(mode="promise_in_bounds")


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
