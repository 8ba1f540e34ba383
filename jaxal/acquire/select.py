"""Batch selection: which of the eligible candidates get a label now.

Each is a pure function of fixed shapes, (key, candidates, size) -> row numbers [size], -1 where nothing more is
eligible.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxal.registry import register
from jaxal.types import Candidates, Key


def _best(value: Float[Array, "c"], candidates: Candidates, size: int) -> Int[Array, "k"]:
    """The `size` eligible rows of largest value, first of equals first."""
    rows = value.shape[0]
    order = jnp.argsort(jnp.where(candidates.eligible, -value, jnp.inf), stable=True)
    chosen = jnp.where(jnp.arange(rows) < jnp.sum(candidates.eligible), order, -1).astype(jnp.int32)
    return jnp.concatenate([chosen, jnp.full(max(size - rows, 0), -1, jnp.int32)])[:size]


@register("select")
def top_k(key: Key, candidates: Candidates, size: int) -> Int[Array, "k"]:
    """The candidates of largest score."""
    del key
    return _best(candidates.score, candidates, size)


@register("select")
def random(key: Key, candidates: Candidates, size: int) -> Int[Array, "k"]:
    """Eligible candidates at random: the baseline."""
    return _best(jax.random.uniform(key, candidates.score.shape), candidates, size)


@register("select")
def farthest(key: Key, candidates: Candidates, size: int) -> Int[Array, "k"]:
    """Farthest-point selection on the features, from the candidate of largest score on.

    Gonzalez, Theor. Comput. Sci. 38, 293 (1985). Candidates that coincide with a chosen one are not chosen.
    """
    del key

    def step(distance, _):
        row = jnp.argmax(distance)
        found = distance[row] > 0
        gap = jnp.sum((candidates.feature - candidates.feature[row]) ** 2, axis=-1)
        gap = jnp.where(candidates.eligible, gap, jnp.inf)  # the others' features may be anything
        remaining = jnp.where(found, jnp.minimum(distance, gap), distance).at[row].set(-jnp.inf)
        return jnp.where(found, remaining, distance), jnp.where(found, row, -1).astype(jnp.int32)

    first = _best(candidates.score, candidates, 1)[0]
    # every distance starts out above any real one, the most uncertain candidate's above all others'
    start = jnp.where(candidates.eligible, jnp.finfo(candidates.feature.dtype).max / 2, -jnp.inf)
    start = jnp.where(jnp.arange(start.shape[0]) == first, jnp.finfo(start.dtype).max, start)
    _, chosen = jax.lax.scan(step, start, None, length=size)
    return chosen
