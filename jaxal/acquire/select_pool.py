"""What selections share: candidates and known structures in one unit, scores, distances, and the greedy loop.

Features are counted from their mean over candidates and known structures, in units of their root mean square distance
from it. So no selection depends on the scale of a kernel or on what all structures have in common, and a distance or a
noise means the same for every kernel.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxal.core.types import Candidates, Key

S = TypeVar("S")


class Pool(NamedTuple):
    """Candidates in the unit of the selections. Whatever a row without a structure held is zero."""

    feature: Float[Array, "c f"]
    known: Float[Array, "t f"]
    score: Float[Array, "c"]  # finite, or +inf for a probe
    eligible: Bool[Array, "c"]
    labeled: Bool[Array, "t"]
    probe: Bool[Array, "c"]  # comes before all others


class Step(NamedTuple):
    """What a greedy choice may depend on apart from its state."""

    number: Int[Array, ""]  # from 0
    key: Key


def pooled(candidates: Candidates) -> Pool:
    """The candidates in the unit of the selections.

    A score that is not a number is the lowest there is; a candidate whose features have no finite length counts as
    the mean, a known structure with such features not at all.
    """
    eligible = candidates.eligible
    labeled = candidates.labeled & _measurable(candidates.known)
    whole = eligible & _measurable(candidates.feature)
    feature = jnp.where(whole[:, None], candidates.feature, 0.0)
    known = jnp.where(labeled[:, None], candidates.known, 0.0)
    count = jnp.maximum(jnp.sum(whole) + jnp.sum(labeled), 1)
    mean = (jnp.sum(feature, axis=0) + jnp.sum(known, axis=0)) / count
    feature = jnp.where(whole[:, None], feature - mean, 0.0)
    known = jnp.where(labeled[:, None], known - mean, 0.0)
    square = (jnp.sum(feature**2) + jnp.sum(known**2)) / count
    unit = jnp.sqrt(jnp.where(square > 0, square, 1.0))
    score = ranked(candidates)
    return Pool(feature / unit, known / unit, score, eligible, labeled, eligible & (score == jnp.inf))


def _measurable(feature: Float[Array, "c f"]) -> Bool[Array, "c"]:
    """Rows whose squared length is a number."""
    return jnp.isfinite(jnp.sum(feature**2, axis=-1))


def ranked(candidates: Candidates) -> Float[Array, "c"]:
    """Scores that can be compared: the lowest finite number where there is none."""
    lowest = jnp.finfo(candidates.score.dtype).min
    return jnp.where(candidates.eligible & (candidates.score > lowest), candidates.score, lowest)


def best(value: Float[Array, "c"], eligible: Bool[Array, "c"], size: int) -> Int[Array, "k"]:
    """The `size` eligible rows of largest value, first of equals first, then -1."""
    rows = value.shape[0]
    order = jnp.argsort(jnp.where(eligible, -value, jnp.inf), stable=True)
    chosen = jnp.where(jnp.arange(rows) < jnp.sum(eligible), order, -1).astype(jnp.int32)
    return jnp.concatenate([chosen, jnp.full(max(size - rows, 0), -1, jnp.int32)])[:size]


def quality(pool: Pool, weight: float) -> Float[Array, "c"]:
    """(score / largest score)^weight, in [0, 1]; a probe's is 1.

    Where scores are negative all are counted from the smallest. Where none is above zero all are 1.
    """
    lowest = jnp.finfo(pool.score.dtype).min
    real = pool.eligible & (pool.score > lowest)
    finite = real & ~pool.probe
    score = jnp.where(finite, pool.score, 0.0)
    score = jnp.where(finite, score - jnp.minimum(jnp.min(score), 0.0), 0.0)
    top = jnp.max(score)
    relative = jnp.where(pool.probe, 1.0, score / jnp.where(top > 0, top, 1.0))
    return jnp.where(real & (top <= 0), 1.0, relative) ** weight


def squared_distances(a: Float[Array, "c f"], b: Float[Array, "t f"]) -> Float[Array, "c t"]:
    """|a - b|^2 by one matrix product, exactly zero where it is below rounding."""
    size = jnp.sum(a**2, axis=-1)[:, None] + jnp.sum(b**2, axis=-1)
    square = size - 2.0 * a @ b.T
    return jnp.where(square > 16 * jnp.finfo(a.dtype).eps * size, square, 0.0)


def to_known(pool: Pool) -> tuple[Float[Array, "c"], Int[Array, "c"]]:
    """Squared distance to the nearest known structure, and which it is; far beyond any where none is known."""
    square = jnp.where(pool.labeled, squared_distances(pool.feature, pool.known), far(pool.feature))
    nearest = jnp.min(square, axis=-1)
    return nearest, jnp.argmax(square == nearest[:, None], axis=-1)


def far(like: Array) -> float:
    """A squared distance above all real ones, whose products with what is at most 1 are finite."""
    return float(jnp.finfo(like.dtype).max) / 4


def to_row(feature: Float[Array, "c f"], row: Int[Array, ""]) -> Float[Array, "c"]:
    """Squared distances of all rows to one of them."""
    return squared_distances(feature, feature[row][None])[:, 0]


def greedy(
    key: Key,
    pool: Pool,
    size: int,
    state: S,
    gain: Callable[[S, Step], Float[Array, "c"]],
    take: Callable[[S, Int[Array, ""], Step], S],
) -> Int[Array, "k"]:
    """Row by row the one of largest gain, probes before all others; a row whose gain is -inf is left out."""
    lowest = jnp.finfo(pool.feature.dtype).min

    def step(carry, turn: Step):
        free, state = carry
        value = gain(state, turn)
        value = jnp.where(jnp.isnan(value), lowest, value)
        value = jnp.where(free, jnp.where(pool.probe, jnp.inf, value), -jnp.inf)
        row = jnp.argmax(value)
        any_left = value[row] > -jnp.inf
        taken = take(state, row, turn)
        state = jax.tree.map(lambda new, old: jnp.where(any_left, new, old), taken, state)
        return (free.at[row].set(False), state), jnp.where(any_left, row, -1).astype(jnp.int32)

    steps = Step(jnp.arange(size), jax.random.split(key, size))
    _, rows = jax.lax.scan(step, (pool.eligible, state), steps)
    return rows
