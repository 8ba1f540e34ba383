"""Mixtures of Gaussians by expectation maximization, with fixed shapes, from moments that can be added to.

Dempster, Laird and Rubin, J. R. Stat. Soc. B 39, 1 (1977).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float

STEPS = 10  # of expectation maximization
LEAST = 1e-2  # variance of a mixture of hardly any points, over that of all mixtures
ROUND = 0.1  # part of the sphere in the covariance that components share


class Moments(NamedTuple):
    """Of k components: points (a real number of them, for each may belong to several), their mean and covariance."""

    count: Float[Array, "*s k"]
    mean: Float[Array, "*s k p"]
    scatter: Float[Array, "*s k p p"]


class Density(NamedTuple):
    """What evaluates a mixture: W_c with W_c^T W_c the inverse covariance, and log(weight) + log det W_c."""

    whiten: Float[Array, "*s k p p"]
    level: Float[Array, "*s k"]


def pooled(moments: Moments) -> Float[Array, "*s p p"]:
    """Covariance of all points of a mixture; zeros where there are none."""
    count = moments.count[..., None]
    total = jnp.maximum(jnp.sum(count, axis=-2), 1.0)
    away = moments.mean - (jnp.sum(count * moments.mean, axis=-2) / total)[..., None, :]
    both = moments.scatter + away[..., :, None] * away[..., None, :]
    return jnp.sum(count[..., None] * both, axis=-3) / total[..., None]


def variance(covariance: Float[Array, "*s p p"]) -> Float[Array, "*s"]:
    """Mean variance of a coordinate."""
    return jnp.trace(covariance, axis1=-2, axis2=-1) / covariance.shape[-1]


def density(moments: Moments, least: Float[Array, ""], strength: float) -> Density:
    """The mixture whose covariances are shrunk to a shared one, which counts as much as `strength` points.

    Sigma_c = (N_c S_c + strength T) / (N_c + strength), T = (1 - `ROUND`) P + `ROUND` v I with the covariance P of all
    points and the mean variance v of their coordinates, at least `least`. That is the most likely covariance under an
    inverse Wishart prior, so a component of few points does not collapse on them.
    """
    dtype, size = moments.mean.dtype, moments.mean.shape[-1]
    whole = pooled(moments)
    unit = jnp.eye(size, dtype=dtype)
    sphere = jnp.maximum(variance(whole), least) * unit
    shared = (1 - ROUND) * whole + ROUND * sphere
    count = moments.count[:, None, None]
    covariance = (count * moments.scatter + strength * shared) / jnp.maximum(count + strength, 1e-3)
    # what rounding needs, and what a component without points has where there is no shrinkage
    small = 1e-5 if dtype == jnp.float32 else 1e-10
    factor = jnp.linalg.cholesky(covariance + jnp.where(count + strength > 0.5, small, 1.0) * sphere)
    whiten = jax.vmap(lambda root: solve_triangular(root, unit, lower=True))(factor)
    # a component without points weighs next to nothing, and one of several without any as much as another
    weight = (moments.count + 1e-6) / jnp.sum(moments.count + 1e-6)
    return Density(whiten, jnp.log(weight) - jnp.sum(jnp.log(jnp.diagonal(factor, axis1=-2, axis2=-1)), axis=-1))


def logs(moments: Moments, density: Density, points: Float[Array, "c p"]) -> Float[Array, "c k"]:
    """Logarithm of each component's part of the density at the points, but for that of (2 pi)^(p/2)."""
    aimed = jnp.einsum("kpq,kq->kp", density.whiten, moments.mean)
    away = jnp.einsum("kpq,cq->ckp", density.whiten, points) - aimed
    return density.level - 0.5 * jnp.sum(away**2, axis=-1)


def square_distance(moments: Moments, density: Density, points: Float[Array, "c p"]) -> Float[Array, "c"]:
    """-2 log of the density over the bound that all components have together at their means.

    Never negative; with one component the square of Mahalanobis' distance.
    """
    part = logs(moments, density, points)
    return jnp.maximum(2 * (logsumexp(density.level) - logsumexp(part, axis=-1)), 0.0)


def added(old: Moments, points: Float[Array, "c p"], share: Float[Array, "c k"]) -> Moments:
    """With points of which each component has its share; exactly what all points together have."""
    new = jnp.sum(share, axis=0)
    count = old.count + new
    total = jnp.where(count > 0, count, 1.0)[:, None]
    # from the old mean, so that nothing is lost where the points are far from the origin and close together
    shift = jnp.einsum("ck,cp->kp", share, points) - new[:, None] * old.mean
    mean = jnp.where(count[:, None] > 0, old.mean + shift / total, old.mean)

    def spread(share: Float[Array, "c"], mean: Float[Array, "p"]) -> Float[Array, "p p"]:
        away = points - mean
        return (share[:, None] * away).T @ away

    moved = old.mean - mean
    before = old.count[:, None, None] * (old.scatter + moved[:, :, None] * moved[:, None, :])
    return Moments(count, mean, (before + jax.vmap(spread, (1, 0))(share, mean)) / total[:, :, None])


def seeds(points: Float[Array, "c p"], there: Bool[Array, "c"], number: int) -> Float[Array, "k p"]:
    """The point closest to the mean and others each farthest from those before."""
    mean = jnp.sum(jnp.where(there[:, None], points, 0.0), axis=0) / jnp.maximum(jnp.sum(there), 1)
    square = jnp.sum((points - mean) ** 2, axis=-1)
    first = jnp.argmin(jnp.where(there, square, jnp.inf))

    def step(distance: Float[Array, "c"], row):
        near = jnp.minimum(distance, jnp.sum((points - points[row]) ** 2, axis=-1))
        return near, jnp.argmax(near)

    def scanned(carry, _):
        distance, row = carry
        distance, following = step(distance, row)
        return (distance, following), row

    start = jnp.where(there, jnp.inf, -jnp.inf), first
    _, rows = jax.lax.scan(scanned, start, None, length=number)
    return points[rows]


def fitted(
    points: Float[Array, "c p"], there: Bool[Array, "c"], number: int, least: Float[Array, ""], strength: float
) -> Moments:
    """A mixture of `number` components fitted to the points that are there, in `STEPS` steps; see `density`."""
    size, dtype = points.shape[1], points.dtype

    def shared_out(mean: Float[Array, "k p"], share: Float[Array, "c k"]) -> Moments:
        none = Moments(jnp.zeros(number, dtype), mean, jnp.zeros((number, size, size), dtype))
        return added(none, points, jnp.where(there[:, None], share, 0.0))

    centers = seeds(points, there, number)
    gap = jnp.sum((points[:, None, :] - centers) ** 2, axis=-1)
    start = shared_out(centers, jax.nn.one_hot(jnp.argmin(gap, axis=1), number, dtype=dtype))
    if number == 1:
        return start

    def step(_, moments: Moments) -> Moments:
        part = logs(moments, density(moments, least, strength), points)
        return shared_out(moments.mean, jax.nn.softmax(part, axis=-1))

    return jax.lax.fori_loop(0, STEPS, step, start)
