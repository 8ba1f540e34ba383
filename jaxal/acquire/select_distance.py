"""Batch selection by distances of features: batches that cover the candidates, away from what is known.

Distances are Euclidean, in the unit of `select_pool`.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxal.acquire.select_pool import Pool, far, greedy, pooled, quality, squared_distances, to_known, to_row
from jaxal.core.registry import register
from jaxal.core.types import Candidates, Key
from jaxal.core.units import Unit

Weight = Annotated[float, Unit("", 0.0)]


@register("select")
def farthest(key: Key, candidates: Candidates, size: int) -> Int[Array, "k"]:
    """Farthest-point selection, from the candidate of largest score on, away from known structures.

    The next is the candidate whose nearest chosen or known structure is farthest away: Gonzalez, Theor. Comput. Sci.
    38, 293 (1985). The first is the most uncertain one, also where structures are known. Of the others those that
    coincide with a chosen or known structure are not chosen.
    """
    pool = pooled(candidates)
    return greedy(
        key,
        pool,
        size,
        to_known(pool)[0],
        lambda square, step: jnp.where(step.number == 0, pool.score, jnp.where(square > 0, square, -jnp.inf)),
        lambda square, row, step: jnp.minimum(square, to_row(pool.feature, row)),
    )


@register("select")
def uncertainty_diversity(key: Key, candidates: Candidates, size: int, *, weight: Weight = 1.0) -> Int[Array, "k"]:
    """Greedily the largest score^weight times distance to the nearest chosen or known structure.

    `weight` = 0 is farthest-point selection, a large one `top_k`. Where nothing is known the first is the most
    uncertain candidate.
    """
    pool = pooled(candidates)
    worth = quality(pool, weight)
    return greedy(
        key,
        pool,
        size,
        to_known(pool)[0],
        lambda square, step: worth * jnp.sqrt(square),
        lambda square, row, step: jnp.minimum(square, to_row(pool.feature, row)),
    )


def _seeded(
    key: Key, pool: Pool, feature: Float[Array, "c f"], square: Float[Array, "c"], size: int
) -> Int[Array, "k"]:
    """Rows drawn one by one in proportion to the squared distance from the nearest drawn before, `square` at first."""
    tiny = jnp.finfo(feature.dtype).tiny  # where all distances are zero, all rows are equally likely
    return greedy(
        key,
        pool,
        size,
        square,
        lambda square, step: (
            jnp.log(jnp.maximum(square, tiny)) + jax.random.gumbel(step.key, square.shape, square.dtype)
        ),
        lambda square, row, step: jnp.minimum(square, to_row(feature, row)),
    )


@register("select")
def kmeans_plusplus(key: Key, candidates: Candidates, size: int) -> Int[Array, "k"]:
    """k-means++ seeding: drawn in proportion to the squared distance from the nearest chosen or known structure.

    Arthur and Vassilvitskii, Proc. 18th ACM-SIAM Symp. Discrete Algorithms (SODA), 1027 (2007). Where nothing is known
    the first is drawn uniformly.
    """
    pool = pooled(candidates)
    return _seeded(key, pool, pool.feature, to_known(pool)[0], size)


@register("select")
def badge(key: Key, candidates: Candidates, size: int) -> Int[Array, "k"]:
    """BADGE: k-means++ seeding on gradients of the loss with respect to a linear readout.

    The embedding is score * (feature, 1): the derivative of half the squared error, with the score in place of the
    unknown error, with respect to weights and shift of the readout. It is long where the model is unsure and points
    where the structure differs. What is learned has no gradient left, so distances begin at the origin. Ash et al.,
    ICLR 2020 (arXiv:1906.03671).
    """
    pool = pooled(candidates)
    score = quality(pool, 1.0)[:, None]
    embedding = score * jnp.concatenate([pool.feature, jnp.ones_like(score, pool.feature.dtype)], axis=-1)
    embedding = embedding.astype(pool.feature.dtype)
    return _seeded(key, pool, embedding, jnp.sum(embedding**2, axis=-1), size)


@register("select")
def k_medoids(
    key: Key, candidates: Candidates, size: int, *, iterations: Annotated[int, Unit("", 0)] = 5
) -> Int[Array, "k"]:
    """Centers of clusters: k-means++ seeding, then `iterations` in which every medoid moves within its cluster.

    A candidate belongs to the nearest medoid or known structure; those of known structures, and probes, stay where they
    are. The medoid of a cluster is the member of least summed squared distance to the others, which is the one nearest
    to their mean. Alternating as in Park and Jun, Expert Syst. Appl. 36, 3336 (2009).
    """
    pool = pooled(candidates)
    known = to_known(pool)[0]
    start = _seeded(key, pool, pool.feature, known, size)
    used, places = start >= 0, jnp.arange(size)

    def move(rows, _):
        safe = jnp.maximum(rows, 0)
        square = jnp.where(used, squared_distances(pool.feature, pool.feature[safe]), jnp.inf)
        nearest = jnp.min(square, axis=-1)
        cluster = jnp.where(pool.eligible & (nearest < known), jnp.argmin(square, axis=-1), size)
        cluster = cluster.at[jnp.where(used, rows, cluster.shape[0])].set(
            places, mode="drop"
        )  # also of coinciding ones
        member = jax.nn.one_hot(cluster, size, dtype=pool.feature.dtype)
        mean = member.T @ pool.feature / jnp.maximum(jnp.sum(member, axis=0), 1)[:, None]
        centered = jnp.where(member > 0, squared_distances(pool.feature, mean), jnp.inf)
        # of two members each is as near to the mean as the other: rounding must not move anything
        better = jnp.min(centered, axis=0) < 0.999 * centered[safe, places]
        kept = ~used | pool.probe[safe] | ~better
        return jnp.where(kept, rows, jnp.argmin(centered, axis=0)).astype(jnp.int32), None

    rows, _ = jax.lax.scan(move, start, None, length=iterations)
    return rows


@register("select")
def lcmd(key: Key, candidates: Candidates, size: int) -> Int[Array, "k"]:
    """Largest cluster maximum distance: the farthest member of the cluster of largest summed squared distance.

    Every chosen or known structure is the center of a cluster, to which the candidates nearest to it belong. Holzmüller
    et al., J. Mach. Learn. Res. 24, 164 (2023), arXiv:2203.09410, with training points. Where nothing is known the
    first is the most uncertain candidate.
    """
    pool = pooled(candidates)
    known = pool.labeled.shape[0]
    square, center = to_known(pool)
    anything = jnp.any(pool.labeled)
    clusters = jnp.arange(known + size)

    def gain(state, step):
        square, center = state
        counted = jnp.where(pool.eligible & (square < far(square)), square, 0.0)
        total = jax.ops.segment_sum(counted, center, known + size)
        value = jnp.where(center == clusters[jnp.argmax(total)], square, -1.0)
        return jnp.where(anything | (step.number > 0), value, pool.score)

    def take(state, row, step):
        square, center = state
        new = to_row(pool.feature, row)
        return jnp.minimum(square, new), jnp.where(new < square, known + step.number, center)

    return greedy(key, pool, size, (square, center), gain, take)
