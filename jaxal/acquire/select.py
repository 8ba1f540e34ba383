"""Batch selection: which of the eligible candidates get a label now. Here: by scores and by chance.

Each is a pure function of fixed shapes, (key, candidates, size) -> row numbers [size], -1 where nothing more is worth a
label. A probe has an infinite score and comes first in every selection that reads scores. Selections that look at the
features are in `select_distance` and `select_gaussian`.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxal.acquire.select_pool import best, greedy, pooled, ranked, to_known, to_row
from jaxal.core.registry import register
from jaxal.core.types import Candidates, Key
from jaxal.core.units import Unit


@register("select")
def top_k(key: Key, candidates: Candidates, size: int) -> Int[Array, "k"]:
    """The candidates of largest score."""
    del key
    return best(ranked(candidates), candidates.eligible, size)


@register("select")
def random(key: Key, candidates: Candidates, size: int) -> Int[Array, "k"]:
    """Eligible candidates at random: the baseline."""
    return best(jax.random.uniform(key, candidates.score.shape, candidates.score.dtype), candidates.eligible, size)


@register("select")
def threshold_window(
    key: Key, candidates: Candidates, size: int, *, low: float = 0.0, high: float | None = None
) -> Int[Array, "k"]:
    """At random those whose score lies between `low` and `high`, in the score's unit.

    Below `low` a structure is known well enough, above `high` (None: no limit) it counts as unphysical. The selection
    of DP-GEN: Zhang et al., Comput. Phys. Commun. 253, 107206 (2020).
    """
    score = ranked(candidates)
    probe = score == jnp.inf
    inside = (score >= low) & (score <= (jnp.inf if high is None else high))
    value = jax.random.uniform(key, score.shape, score.dtype) + probe
    return best(value, candidates.eligible & (inside | probe), size)


@register("select")
def stratified(key: Key, candidates: Candidates, size: int) -> Int[Array, "k"]:
    """One at random from each of as many quantiles of the score as there are labels, the highest first."""
    score = ranked(candidates)
    order = best(score, candidates.eligible, score.shape[0])
    probes = jnp.sum(candidates.eligible & (score == jnp.inf))
    others = jnp.sum(candidates.eligible) - probes
    strata = jnp.clip(size - probes, 1, jnp.maximum(others, 1))
    place = jnp.arange(size)
    stratum = place - probes
    first, end = stratum * others // strata, (stratum + 1) * others // strata
    within = first + jnp.floor(jax.random.uniform(key, (size,), score.dtype) * (end - first)).astype(first.dtype)
    rank = jnp.where(stratum < 0, place, probes + jnp.minimum(within, end - 1))
    rows = order[jnp.clip(rank, 0, order.shape[0] - 1)]
    return jnp.where(stratum < jnp.minimum(strata, others), rows, -1).astype(jnp.int32)


@register("select")
def distinct(
    key: Key, candidates: Candidates, size: int, *, closest: Annotated[float, Unit("", 0.0)] = 0.1
) -> Int[Array, "k"]:
    """Those of largest score without near-duplicates, of one another and of known structures.

    `closest` is the least distance of the features, relative to their root mean square distance from the mean. A probe
    is chosen wherever it lies.
    """
    pool = pooled(candidates)
    limit = closest**2
    return greedy(
        key,
        pool,
        size,
        to_known(pool)[0] < limit,
        lambda close, step: jnp.where(close, -jnp.inf, pool.score),
        lambda close, row, step: close | (to_row(pool.feature, row) < limit),
    )
