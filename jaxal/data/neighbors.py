"""Fixed-capacity dense neighbors for structures periodic in any directions, however small or large the cell.

A list [n, k] holds every pair of images closer than cutoff + skin, so it stays valid until atoms and cell have
moved the equivalent of half the skin. Small structures search all pairs and the needed lattice images: quadratic in the
atoms, exact for cells shorter than the cutoff. Large structures are cut into bins at least cutoff + skin wide, and an
atom looks into the 27 around it: linear in the atoms. Along a periodic direction bins divide the cell, along an open
one the distance from the first to the last atom. How many slots, images and bins there are is fixed in a `Spec` by the
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
from jaxal.data import lattice
from jaxal.data.cell import completed, fractional, inverse

LARGE = 400  # atoms from which on bins pay
ACROSS, BINS = 3, 27  # bins along each periodic direction, and in all, from which on they pay
ROWS = 2048  # atoms whose reversed pairs are looked up at a time
LISTED = 1.25  # room of a list with a skin, over the neighbors there are


class Spec(NamedTuple):
    """What has to be static about a neighbor list; hashable."""

    cutoff: float  # Å
    skin: float  # Å, added to the cutoff when searching
    capacity: int  # slots per atom
    images: tuple[int, int, int]  # lattice images searched on either side, after wrapping to the nearest; 0: open
    bins: tuple[int, int, int] | None = None  # along the lattice vectors; None searches all pairs
    bin_slots: int = 0  # atoms in a bin, at most
    close: int = 0  # slots for those within the cutoff itself; 0 = as many as `capacity`


def _images(cell: np.ndarray, periodic: np.ndarray, reach: float) -> np.ndarray:
    """Images needed on either side of the nearest one, per direction; zeros along open ones."""
    # a fractional difference in [-1/2, 1/2] plus s reaches (|s| - 1/2) heights
    return np.where(periodic, np.floor(reach / lattice.heights(cell, periodic) + 0.5), 0).astype(int)


def _bins(position: list[np.ndarray], cell: np.ndarray, periodic: np.ndarray, reach: float) -> np.ndarray | None:
    """How often `reach` fits between the lattice planes, or, where no structure repeats, between first and last atom.

    `position` [b] holds the atoms of each structure without padding. None where bins do not pay.
    """
    heights = np.array([lattice.heights(*each) for each in zip(cell, periodic, strict=True)])
    placed = zip(position, cell, periodic, strict=True)
    extents = np.array([np.ptp(x @ lattice.inverse(*each), axis=0) for x, *each in placed])
    repeated = np.any(periodic, axis=0)
    narrowest = np.min(np.where(periodic, heights, np.inf), axis=0)
    bins = np.maximum(np.floor(np.where(repeated, narrowest, extents.max(axis=0)) / reach), 1).astype(int)
    return bins if np.all(bins[repeated] >= ACROSS) and np.prod(bins) >= BINS else None


def plan(structures: Structure, cutoff: float, skin: float = 0.0, margin: float = 1.15, shrink: float = 0.97) -> Spec:
    """A Spec with room for the given structures (one, or a batch [b]) and `margin` times their neighbors.

    Host side. With a skin the list itself, which costs little, has more room than what is taken from it. Images and
    bins also serve cells that a barostat makes shorter by the factor `shrink`. Where nothing is periodic the capacity
    never exceeds atoms - 1.
    """
    lead = np.ndim(structures.charge)
    flat = jax.tree.map(lambda x: np.asarray(x).reshape(-1, *np.shape(x)[lead:]), structures)
    position, species, cell, periodic = flat[:4]
    reach = cutoff + skin
    shrunk = shrink * cell.astype(float)
    images = np.max([_images(*each, reach) for each in zip(shrunk, periodic, strict=True)], axis=0)
    spec = Spec(cutoff, skin, 1, (int(images[0]), int(images[1]), int(images[2])))
    atoms = [x[s >= 0].astype(float) for x, s in zip(position, species, strict=True)]
    if position.shape[1] >= LARGE and (bins := _bins(atoms, shrunk, periodic, reach)) is not None:
        three = int(bins[0]), int(bins[1]), int(bins[2])
        most = max(_fullest(three, *each, reach) for each in zip(atoms, cell, periodic, strict=True))
        spec = spec._replace(images=(0, 0, 0), bins=three, bin_slots=int(np.ceil(1.5 * most)) + 2)
    frames = [jax.tree.map(lambda x, row=row: x[row], flat) for row in range(len(position))]

    most_listed, most_close = np.max([_most(spec, frame) for frame in frames], axis=0)

    def slots(most: int, margin: float) -> int:
        room = max(1, int(np.ceil(margin * most)))
        return room if np.any(periodic) else min(room, max(1, position.shape[1] - 1))

    spec = spec._replace(capacity=slots(most_listed, margin if skin == 0 else max(margin, LISTED)))
    close = slots(most_close, margin)
    return spec._replace(close=close if close < spec.capacity else 0)


def larger(spec: Spec, structures: Structure, shrink: float = 0.9) -> Spec:
    """More room of every kind than `spec` has, after an overflow near `structures`; `shrink` as in `plan`."""
    planned = plan(jax.device_get(structures), spec.cutoff, spec.skin, LISTED, shrink)
    most = structures.species.shape[-1] - 1 if not np.any(np.asarray(structures.periodic)) else np.inf
    capacity = int(min(max(planned.capacity, 1.5 * spec.capacity + 1), max(1, most)))
    close = int(min(max(planned.close, LISTED * spec.close + 1), capacity)) if spec.close else 0
    images = planned.images
    if planned.bins is None:
        images = tuple(max(a, b) for a, b in zip(spec.images, planned.images, strict=True))
    slots = max(planned.bin_slots, int(1.5 * spec.bin_slots) + 1)
    return planned._replace(capacity=capacity, images=images, bin_slots=slots if planned.bins else 0, close=close)


def _fullest(
    bins: tuple[int, int, int], position: np.ndarray, cell: np.ndarray, periodic: np.ndarray, reach: float
) -> int:
    """Atoms in the fullest bin, as `_binned` cuts them."""
    along = position @ lattice.inverse(cell.astype(float), periodic)
    low = along.min(axis=0)
    width = np.maximum((along.max(axis=0) - low) / bins, reach)
    place = np.where(periodic, (along - np.floor(along)) * bins, (along - low) / width)
    place = np.clip(place.astype(int), 0, np.array(bins) - 1)
    return int(np.bincount(np.ravel_multi_index(tuple(place.T), bins)).max())


def _stencil(images: tuple[int, int, int]) -> Int[np.ndarray, "q 3"]:
    axes = [np.arange(-i, i + 1) for i in images]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


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
    position, species, cell, periodic = structure[:4]
    number = position.shape[0]
    stencil = _stencil(spec.images)
    difference = position[None, :, :] - position[:, None, :]  # [i, j, 3] from i to j
    nearest = -jnp.round(fractional(difference, cell, periodic))
    vector = (difference + nearest @ cell)[:, :, None, :] + jnp.asarray(stencil, cell.dtype) @ cell  # [i, j, q, 3]
    square = jnp.sum(vector**2, axis=-1)
    real = (species >= 0)[:, None] & (species >= 0)[None, :]
    same = np.eye(number, dtype=bool)[:, :, None] & np.all(stencil == 0, axis=1)
    # another structure of the batch may repeat where this one is open
    no_image = jnp.any(~periodic & (stencil != 0), axis=1)
    square = jnp.where(real[:, :, None] & ~same & ~no_image, square, jnp.inf)
    nearest = nearest.astype(jnp.int32)

    def shift(place):
        whole = jnp.take_along_axis(nearest, (place // len(stencil))[:, :, None], axis=1)
        return whole + jnp.asarray(stencil, jnp.int32)[place % len(stencil)]

    return _Pairs(
        square.reshape(number, -1), lambda place: place // len(stencil), shift, _too_few_images(spec, cell, periodic)
    )


def _binned(spec: Spec, structure: Structure) -> _Pairs:
    """The atoms of the 27 bins around each atom."""
    assert spec.bins is not None
    bins, slots = np.array(spec.bins), spec.bin_slots
    reach = spec.cutoff + spec.skin
    position, species, _, periodic = structure[:4]
    number, real = position.shape[0], (species >= 0)[:, None]
    cell = completed(structure.cell, periodic)
    along = position @ inverse(cell)  # along open directions in Å
    whole = jnp.where(periodic, jnp.floor(along), 0.0)
    wrapped = (along - whole) @ cell
    low = jnp.min(along, axis=0, where=real, initial=jnp.inf)
    high = jnp.max(along, axis=0, where=real, initial=-jnp.inf)
    width = jnp.where(periodic, 1 / bins, jnp.maximum((high - low) / bins, reach)).astype(cell.dtype)
    place = ((along - whole) * bins, (along - low) / width)
    place = jnp.clip(jnp.where(periodic, *place).astype(jnp.int32), 0, bins - 1)  # [n, 3]
    linear = (place[:, 0] * bins[1] + place[:, 1]) * bins[2] + place[:, 2]
    linear = jnp.where(species >= 0, linear, bins.prod())  # padding goes into a bin nobody looks into
    order = jnp.argsort(linear)
    rank = jnp.arange(number) - jnp.searchsorted(linear[order], linear[order])
    table = jnp.full((bins.prod() + 2, slots), number, jnp.int32)  # the last one stays empty
    table = table.at[linear[order], rank].set(order.astype(jnp.int32), mode="drop")
    crowded = jnp.any((rank >= slots) & (linear[order] < bins.prod()))

    first, second, third = (min(1, each - 1) for each in spec.bins)
    around = place[:, None, :] + _stencil((first, second, third))  # [n, 27, 3], fewer where there is one bin
    image = jnp.floor_divide(around, bins)
    around = around - image * bins
    bin_ = (around[..., 0] * bins[1] + around[..., 1]) * bins[2] + around[..., 2]
    beyond = jnp.any(~periodic & (image != 0), axis=-1)
    index = table[jnp.where(beyond, bins.prod() + 1, bin_)]  # [n, 27, slots]
    vector = wrapped.at[index].get(mode="fill", fill_value=0) - wrapped[:, None, None, :]
    vector = vector + (image.astype(cell.dtype) @ cell)[:, :, None, :]
    square = jnp.sum(vector**2, axis=-1)
    itself = (index == jnp.arange(number)[:, None, None]) & jnp.all(image == 0, axis=-1)[:, :, None]
    square = jnp.where((index < number) & real[:, :, None] & ~itself, square, jnp.inf).reshape(number, -1)
    index = index.reshape(number, -1)
    whole = whole.astype(jnp.int32)

    def shift(chosen):
        other = whole.at[jnp.take_along_axis(index, chosen, axis=1)].get(mode="fill", fill_value=0)
        across = jnp.take_along_axis(image, (chosen // slots)[:, :, None], axis=1)
        return across + whole[:, None, :] - other

    narrow = jnp.any(periodic & (_plane_distances(cell) < reach * bins))
    return _Pairs(square, lambda chosen: jnp.take_along_axis(index, chosen, axis=1), shift, crowded | narrow)


@partial(jax.jit, static_argnums=0)
@exact
def _most(spec: Spec, structure: Structure) -> Int[Array, "2"]:
    """Neighbors of the atom that has most: in the list, and within the cutoff."""
    square = _search(spec, structure).square
    return jnp.stack([jnp.max(jnp.sum(square < reach**2, axis=1)) for reach in (spec.cutoff + spec.skin, spec.cutoff)])


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

    def row(entry):
        atom, neighbor, to = entry
        inside = jnp.minimum(neighbor, number - 1)
        match = (index[inside] == atom) & jnp.all(shift[inside] == -to[:, None, :], axis=-1)  # [k, k]
        return jnp.where(neighbor < number, jnp.argmax(match, axis=-1).astype(jnp.int32), capacity)

    rows = (jnp.arange(number, dtype=jnp.int32), index, shift)
    if number <= ROWS:
        return jax.vmap(lambda *entry: row(entry))(*rows)
    return jax.lax.map(row, rows, batch_size=ROWS)


def _plane_distances(cell: Float[Array, "3 3"]) -> Float[Array, "3"]:
    cross = jnp.cross(jnp.roll(cell, -1, 0), jnp.roll(cell, -2, 0))
    return jnp.abs(jnp.sum(cell[0] * cross[0])) / jnp.linalg.norm(cross, axis=1)


def _too_few_images(spec: Spec, cell: Float[Array, "3 3"], periodic: Bool[Array, "3"]) -> Bool[Array, ""]:
    needed = jnp.floor((spec.cutoff + spec.skin) / _plane_distances(completed(cell, periodic)) + 0.5)
    return jnp.any(periodic & (needed > jnp.asarray(spec.images)))


@partial(jax.jit, static_argnums=0, inline=True)
@exact
def stale(spec: Spec, neighbors: Neighbors, structure: Structure) -> Bool[Array, ""]:
    """Whether a pair may have come closer than the cutoff without being listed.

    Two atoms approach by at most twice the largest displacement, measured after the homogeneous strain of the
    cell's periodic vectors, plus what the strain itself does to a distance of cutoff + skin.
    """
    real, periodic = structure.species >= 0, structure.periodic
    # old row vector @ strain = strained row vector
    strain = inverse(completed(neighbors.cell, periodic)) @ completed(structure.cell, periodic)
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
