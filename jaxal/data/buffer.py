"""The training set on the device: fixed capacity, labels are appended and never overwritten.

Every label has a bootstrap weight for each member and is either trained on or held out. When the capacity does
not suffice nothing is added and `add` says so; the host then grows the buffer and replays.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxal.core.types import Key, Label, Structure


class Buffer(NamedTuple):
    """Labeled structures [c]; rows from `count` on are empty."""

    structure: Structure
    label: Label
    weight: Float[Array, "m c"]  # bootstrap weight, mean 1
    share: Float[Array, "c 3"]  # weights of energy, forces and stress in the loss
    held_out: Bool[Array, "c"]  # never trained on: calibration and early stopping
    count: Int[Array, ""]


@partial(jax.jit, static_argnums=(1, 2), inline=True)  # one program where it is called outside of one
def init(example: Structure, members: int, capacity: int) -> Buffer:
    """An empty buffer for structures like `example` (unbatched; its number of atoms and dtype are kept)."""
    atoms, dtype = example.position.shape[0], example.position.dtype
    empty = jax.tree.map(lambda x: jnp.zeros((capacity, *x.shape), x.dtype), example)
    label = Label(
        energy=jnp.zeros(capacity, dtype),
        force=jnp.zeros((capacity, atoms, 3), dtype),
        stress=jnp.zeros((capacity, 3, 3), dtype),
        ok=jnp.zeros(capacity, bool),
    )
    return Buffer(
        structure=empty._replace(species=jnp.full((capacity, atoms), -1, jnp.int32)),
        label=label,
        weight=jnp.zeros((members, capacity), dtype),
        share=jnp.ones((capacity, 3), dtype),
        held_out=jnp.zeros(capacity, bool),
        count=jnp.zeros((), jnp.int32),
    )


def capacity(buffer: Buffer) -> int:
    """Rows there are."""
    return buffer.held_out.shape[0]


def trainable(buffer: Buffer) -> Bool[Array, "c"]:
    """Rows that hold a label to train on."""
    return (jnp.arange(capacity(buffer)) < buffer.count) & ~buffer.held_out


def add(
    buffer: Buffer,
    key: Key,
    structures: Structure,
    labels: Label,
    wanted: Bool[Array, "k"],
    held_out: Bool[Array, "k"],
    bootstrap: float,
    share: Float[Array, "k 3"] | None = None,
) -> tuple[Buffer, Bool[Array, ""]]:
    """Appends the wanted rows in order; returns the buffer, unchanged if they do not all fit, and whether so.

    Bootstrap weights are drawn from a gamma distribution of mean 1 and variance `bootstrap`: 1 is the Bayesian
    bootstrap (Rubin, Ann. Stat. 9, 130, 1981), which, unlike counts, leaves no label out; 0 gives weight 1 to all.
    `share` weighs energy, forces and stress of each row in the loss (default: 1).
    Raises ValueError at trace time if shapes or dtypes do not fit the buffer.
    """
    for mine, new in zip(jax.tree.leaves(buffer[:2]), jax.tree.leaves((structures, labels)), strict=True):
        if mine.shape[1:] != new.shape[1:] or mine.dtype != new.dtype:
            raise ValueError(f"buffer.add: {new.dtype}{new.shape} does not fit rows of {mine.dtype}{mine.shape[1:]}")
    members, rows = buffer.weight.shape[0], wanted.shape[0]
    place = buffer.count + jnp.cumsum(wanted) - 1
    total = buffer.count + jnp.sum(wanted, dtype=jnp.int32)
    overflow = total > capacity(buffer)
    place = jnp.where(wanted & ~overflow, place, capacity(buffer))  # out of range: dropped
    weight = jnp.ones((members, rows), buffer.weight.dtype)
    if bootstrap > 0:
        weight = bootstrap * jax.random.gamma(key, 1.0 / bootstrap, (members, rows), buffer.weight.dtype)

    def put(mine, new):
        return mine.at[place].set(new, mode="drop")

    structure, label = jax.tree.map(put, buffer[:2], (structures, labels))
    added = Buffer(
        structure=structure,
        label=label,
        weight=buffer.weight.at[:, place].set(weight, mode="drop"),
        share=put(buffer.share, jnp.ones((rows, 3), buffer.share.dtype) if share is None else share),
        held_out=put(buffer.held_out, held_out),
        count=jnp.where(overflow, buffer.count, total),
    )
    return added, overflow


@partial(jax.jit, static_argnums=1)
def grow(buffer: Buffer, size: int) -> Buffer:
    """The same buffer with room for `size` labels. Host side, between segments."""
    more = size - capacity(buffer)
    if more < 0:
        raise ValueError(f"buffer.grow: {size} is below the present capacity {capacity(buffer)}")

    def pad(x, axis=0, value=0):
        widths = [(0, more if a == axis else 0) for a in range(x.ndim)]
        return jnp.pad(x, widths, constant_values=value)

    structure = jax.tree.map(pad, buffer.structure)._replace(species=pad(buffer.structure.species, 0, -1))
    return buffer._replace(
        structure=structure,
        label=jax.tree.map(pad, buffer.label),
        weight=pad(buffer.weight, 1),
        share=pad(buffer.share, 0, 1),
        held_out=pad(buffer.held_out),
    )


def rows(buffer: Buffer, chosen: Int[Array, "b"] | np.ndarray) -> tuple[Structure, Label]:
    """The structures and labels of some rows."""
    return jax.tree.map(lambda x: x[chosen], (buffer.structure, buffer.label))


def sample(key: Key, buffer: Buffer, weight: Float[Array, "h c"], size: int) -> tuple[Int[Array, "b"], Int[Array, "b"]]:
    """`size` pairs of a row to train on and a member, drawn with replacement in proportion to bootstrap weights.

    `weight` holds those of the h members that draw together; one that draws alone has h = 1.
    """
    odds = jnp.cumsum(jnp.where(trainable(buffer), weight, 0.0).reshape(-1))
    draw = jax.random.uniform(key, (size,), odds.dtype) * odds[-1]
    index = jnp.minimum(jnp.searchsorted(odds, draw, side="right"), weight.size - 1)
    return index % capacity(buffer), index // capacity(buffer)
