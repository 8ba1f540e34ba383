"""Batch selection by the covariance of what a Bayesian linear model on the features predicts.

y_i = w . x_i + e_i with w ~ N(0, 1) and noise e_i ~ N(0, noise^2), for features x in the unit of `select_pool`: `noise`
is the standard deviation of a label relative to that of a typical candidate before anything is known. Given labels of
the known structures (rows X), the candidates' covariances are again products of features,

    cov(i, j) = x_i . A x_j,    A = (1 + X^T X / noise^2)^-1,    z = A^(1/2) x,

and every further label i changes them by rank one. In a step the candidates enter through one or two products of a
matrix [c f] with a vector, so a batch of k costs O(c f k).
"""

from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxal.acquire.select_pool import Pool, greedy, pooled, quality
from jaxal.core.registry import register
from jaxal.core.types import Candidates, Key
from jaxal.core.units import Unit

Noise = Annotated[float, Unit("", 0.0, True)]
Weight = Annotated[float, Unit("", 0.0)]


def _informed(pool: Pool, noise: float, probes: bool = False) -> Float[Array, "c f"]:
    """Features z whose products are the covariances given the known structures, and the probes if wanted."""
    gram = pool.known.T @ pool.known
    if probes:
        probe = jnp.where(pool.probe[:, None], pool.feature, 0.0)
        gram = gram + probe.T @ probe
    # what rounding may have taken from the smallest eigenvalues, so that there always is a factor
    room = noise**2 + jnp.finfo(gram.dtype).eps * jnp.trace(gram)
    identity = jnp.eye(gram.shape[0], dtype=gram.dtype)
    lower = jnp.linalg.cholesky(gram + room * identity)
    return pool.feature @ (noise * jax.scipy.linalg.solve_triangular(lower, identity, lower=True).T)


def _by_variance(key: Key, pool: Pool, z: Float[Array, "c f"], noise: float, size: int, gain) -> Int[Array, "k"]:
    """Greedy choice by gain(variance [c], step), the variances given all labels chosen before."""

    def take(state, row, step):
        variance, covariance = state
        slope = covariance @ z[row]
        total = variance[row] + noise**2
        share = jnp.where(total > 0, 1.0 / jnp.where(total > 0, total, 1.0), 0.0)
        variance = jnp.maximum(variance - (z @ slope) ** 2 * share, 0.0)
        return variance, covariance - share * jnp.outer(slope, slope)

    start = jnp.sum(z**2, axis=-1), jnp.eye(z.shape[-1], dtype=z.dtype)
    return greedy(key, pool, size, start, lambda state, step: gain(state[0], step), take)


@register("select")
def max_det(
    key: Key, candidates: Candidates, size: int, *, weight: Weight = 1.0, noise: Noise = 0.1
) -> Int[Array, "k"]:
    """Greedily the largest determinant of q_i (cov(i, j) + noise^2 [i = j]) q_j, with q = score^weight.

    The most probable batch of a determinantal point process, quality times diversity: Chen, Zhang and Zhou, NeurIPS
    2018 (arXiv:1709.05135). With `weight` = 0 only the features count and it chooses what `batch_bald` does.
    """
    pool = pooled(candidates)
    square = quality(pool, weight) ** 2
    return _by_variance(
        key, pool, _informed(pool, noise), noise, size, lambda variance, step: square * (variance + noise**2)
    )


@register("select")
def batch_bald(key: Key, candidates: Candidates, size: int, *, noise: Noise = 0.1) -> Int[Array, "k"]:
    """BatchBALD in closed form: greedily the largest mutual information of labels and model.

    log det(1 + cov / noise^2) / 2 over the batch, for the linear model of this module. Only the ratio of noise and
    prior matters, so the prior is the unit. Kirsch, van Amersfoort and Gal, NeurIPS 2019 (arXiv:1906.08158).
    """
    pool = pooled(candidates)
    return _by_variance(
        key, pool, _informed(pool, noise), noise, size, lambda variance, step: 0.5 * jnp.log1p(variance / noise**2)
    )


def _eigenvectors(key: Key, value: Float[Array, "f"], number: Int[Array, ""], most: int) -> Bool[Array, "f"]:
    """Which `number` <= `most` eigenvalues (ascending) a k-DPP takes, with probability in proportion to their product.

    By elementary symmetric polynomials in logarithms: e(n, l) = e(n - 1, l) + value_n e(n - 1, l - 1).
    """
    positive = value > 0
    log = jnp.where(positive, jnp.log(jnp.where(positive, value, 1.0)), -jnp.inf)
    none = jnp.full(1, -jnp.inf, value.dtype)
    zeroth = jnp.full(most + 1, -jnp.inf, value.dtype).at[0].set(0.0)

    def add(table, log):
        return jnp.logaddexp(table, log + jnp.concatenate([none, table[:-1]])), table

    last, before = jax.lax.scan(add, zeroth, log)
    after = jnp.concatenate([before[1:], last[None]])

    def draw(left, terms):
        log, before, after, chance = terms
        taken = (left > 0) & (jnp.log(chance) < log + before[jnp.maximum(left - 1, 0)] - after[left])
        return left - taken, taken

    chance = jax.random.uniform(key, value.shape, value.dtype)
    _, taken = jax.lax.scan(draw, number, (log, before, after, chance), reverse=True)
    return taken


@register("select")
def k_dpp(key: Key, candidates: Candidates, size: int, *, weight: Weight = 1.0, noise: Noise = 0.1) -> Int[Array, "k"]:
    """A batch drawn from the k-DPP: with probability in proportion to det(q_i cov(i, j) q_j), q = score^weight.

    Exact, in the dual form: the eigenvectors of the f x f matrix of the features, a choice of k of them, and a draw
    from the projection that they span. Kulesza and Taskar, ICML 2011; Found. Trends Mach. Learn. 5, 123 (2012),
    arXiv:1207.6083. Probes come first and count as known. Where the features span less than the batch the rest is
    filled up by score.
    """
    pool = pooled(candidates)
    key_value, key_row = jax.random.split(key)
    worth = jnp.where(pool.eligible & ~pool.probe, quality(pool, weight), 0.0).astype(pool.feature.dtype)
    scaled = worth[:, None] * _informed(pool, noise, probes=True)
    value, vector = jnp.linalg.eigh(scaled.T @ scaled)
    slots = min(size, value.shape[0])
    value = jnp.where(value > value.shape[0] * jnp.finfo(value.dtype).eps * value[-1], value, 0.0)
    probes = jnp.sum(pool.probe)
    number = jnp.minimum(jnp.clip(size - probes, 0, slots), jnp.sum(value > 0))
    taken = _eigenvectors(key_value, value, number, slots)
    order = jnp.argsort(~taken, stable=True)[:slots]
    root = jnp.where(taken, jnp.sqrt(jnp.where(value > 0, value, 1.0)), jnp.inf)[order]
    span = scaled @ (vector[:, order] / root)  # orthonormal columns
    tiny = jnp.finfo(value.dtype).tiny

    def gain(variance, step):
        noise = jax.random.gumbel(step.key, variance.shape, variance.dtype)
        drawn = jnp.log(jnp.maximum(variance, tiny)) + noise
        return jnp.where(step.number < probes + number, drawn, pool.score)

    return _by_variance(key_row, pool, span, 0.0, size, gain)


def _by_summed_variance(key: Key, pool: Pool, z: Float[Array, "c f"], noise: float, size: int) -> Int[Array, "k"]:
    """Greedily the largest reduction of the candidates' summed variance.

    With P = cov(w) and F = sum_j z_j z_j^T the sum is tr(P F), and label i takes |F^(1/2) P z_i|^2 / (variance_i +
    noise^2) from it. Both terms are kept up to date for all candidates.
    """
    fisher = z.T @ z

    def gain(state, step):
        variance, reach, _ = state
        return reach / (variance + noise**2)

    def take(state, row, step):
        variance, reach, covariance = state
        slope = covariance @ z[row]
        total = variance[row] + noise**2
        both = z @ jnp.stack([slope, covariance @ (fisher @ slope)], axis=1)
        part = both[:, 0] / total
        reach = reach - 2.0 * part * both[:, 1] + part**2 * (slope @ fisher @ slope)
        variance = jnp.maximum(variance - part * both[:, 0], 0.0)
        return variance, jnp.maximum(reach, 0.0), covariance - jnp.outer(slope, slope) / total

    start = jnp.sum(z**2, axis=-1), jnp.sum((z @ fisher) * z, axis=-1), jnp.eye(z.shape[-1], dtype=z.dtype)
    return greedy(key, pool, size, start, gain, take)


@register("select")
def expected_error_reduction(key: Key, candidates: Candidates, size: int, *, noise: Noise = 0.1) -> Int[Array, "k"]:
    """Greedily the largest reduction of the variance summed over all candidates.

    The expected squared error on the pool after the labels, which for a linear model does not depend on what they say:
    Cohn, Ghahramani and Jordan, J. Artif. Intell. Res. 4, 129 (1996).
    """
    pool = pooled(candidates)
    return _by_summed_variance(key, pool, _informed(pool, noise), noise, size)


@register("select")
def bait(key: Key, candidates: Candidates, size: int, *, noise: Noise = 0.1) -> Int[Array, "k"]:
    """BAIT for regression: the least tr(P F), forward to twice the batch and then backward.

    P is the covariance of the weights given all labels, F the Fisher information of the candidates, so tr(P F) is their
    summed variance. Twice as many as wanted are added greedily, as in `expected_error_reduction`; then those are
    dropped, one by one, whose loss raises it least. Ash et al., NeurIPS 2021 (arXiv:2106.09675).
    """
    pool = pooled(candidates)
    z = _informed(pool, noise)
    rows = _by_summed_variance(key, pool, z, noise, 2 * size)
    valid, safe = rows >= 0, jnp.maximum(rows, 0)
    chosen = jnp.where(valid[:, None], z[safe], 0.0)
    # tr(P F) = tr F - tr(Q B) with Q the inverse of the labels' covariance and B = Z F Z^T; an empty row has no effect
    inverse = jnp.linalg.inv(chosen @ chosen.T + noise**2 * jnp.eye(2 * size, dtype=z.dtype))
    reach = chosen @ (z.T @ z) @ chosen.T
    top = jnp.finfo(z.dtype).max

    def drop(state, _):
        kept, inverse = state
        own = jnp.diagonal(inverse)
        loss = jnp.einsum("ij,jk,ki->i", inverse, reach, inverse) / jnp.where(own > 0, own, 1.0)
        row = jnp.argmin(jnp.where(kept, jnp.where(pool.probe[safe], top, loss), jnp.inf))
        less = inverse - jnp.outer(inverse[row], inverse[row]) / inverse[row, row]
        less = less.at[row].set(0.0).at[:, row].set(0.0)
        enough = jnp.sum(kept) <= size
        return (jnp.where(enough, kept, kept.at[row].set(False)), jnp.where(enough, inverse, less)), None

    (kept, _), _ = jax.lax.scan(drop, (valid, inverse), None, length=size)
    order = jnp.argsort(~kept, stable=True)[:size]
    return jnp.where(kept[order], rows[order], -1)
