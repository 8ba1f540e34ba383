"""A random sample of the frames that walkers were on, the recent ones more often, on the device: fixed capacity.

What the gate picks are the hard frames; an honest bound needs frames as the dynamics gives them, drawn whatever the
committee said of them, and better of late, when it was about as good as in the end. A frame is taken in with
probability min(1, a c / t) and takes the place of a row at random, where t is the number of frames so far, c the
capacity and a = `RECENT`: then a row's frame has the number s with a density of s^(a-1), as for c = 1 and a = 1 in
Vitter's reservoir (ACM Trans. Math. Softw. 11, 37, 1985).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxal.core.types import Key, Structure

RECENT = 4  # four fifths of the way is the mean place of a frame in the dynamics


class Sample(NamedTuple):
    """Frames [c]; the rows that are not `there` are free."""

    structure: Structure
    there: Bool[Array, "c"]
    seen: Int[Array, ""]  # frames, of all walkers


def init(example: Structure, capacity: int) -> Sample:
    """No frames yet; `example` is one structure."""
    rows = jax.tree.map(lambda x: jnp.broadcast_to(x, (capacity, *jnp.shape(x))), example)
    return Sample(rows, jnp.zeros(capacity, bool), jnp.zeros((), jnp.int32))


def taken(sample: Sample, key: Key, structures: Structure, eligible: Bool[Array, "w"]) -> Sample:
    """With the eligible of the frames [w] of a look, each by chance."""
    capacity, number = sample.there.shape[0], eligible.shape[0]
    if capacity == 0:
        return sample
    key_take, key_place = jax.random.split(key)
    seen = sample.seen + jnp.sum(eligible, dtype=jnp.int32)
    chance = RECENT * capacity / jnp.maximum(seen, 1)
    take = eligible & (jax.random.uniform(key_take, (number,)) < chance)
    place = jax.random.randint(key_place, (number,), 0, capacity)
    place = jnp.where(take, place, capacity)  # out of range: dropped
    structure = jax.tree.map(lambda old, new: old.at[place].set(new, mode="drop"), sample.structure, structures)
    return Sample(structure, sample.there.at[place].set(True, mode="drop"), seen)
