"""Gaussians that walkers leave behind in the space of collective variables, near ones merged into one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxal.core.types import Variables
from jaxal.explore.levels import away

REACH = 3.0  # widths beyond which a Gaussian counts for nothing


class Kernels(NamedTuple):
    """Gaussians in slots; those beyond `count` are empty, of mass 0."""

    center: Float[Array, "c v"]
    width: Float[Array, "c v"]
    mass: Float[Array, "c"]  # height times the product of the widths, in those that all begin with
    count: Int[Array, ""]


def empty(slots: int, width: Float[np.ndarray, "v"], dtype: jnp.dtype) -> Kernels:
    """No Gaussian, room for so many."""
    zero = jnp.zeros((slots, len(width)), dtype)
    return Kernels(zero, zero + jnp.asarray(width, dtype), zero[:, 0], jnp.int32(0))


def squares(variables: Variables, kernels: Kernels, values: Float[Array, "v"]) -> Float[Array, "c"]:
    """Squares of the distances of a point from the centers, in widths."""
    return jnp.sum((away(variables, values, kernels.center) / kernels.width) ** 2, axis=-1)


def value(
    variables: Variables, kernels: Kernels, width: Float[np.ndarray, "v"], values: Float[Array, "v"]
) -> Float[Array, ""]:
    """The sum of the Gaussians at a point, those of `width` as high as their mass."""
    height = kernels.mass * jnp.prod(jnp.asarray(width, values.dtype) / kernels.width, axis=-1)
    return jnp.sum(height * jnp.exp(-0.5 * squares(variables, kernels, values)))


def grid(variables: Variables, kernels: Kernels, points: int = 60) -> Float[Array, "g v"]:
    """Points over all Gaussians and `REACH` widths around them, `points` along each variable; or over its period."""
    there = (jnp.arange(kernels.mass.shape[0]) < kernels.count)[:, None]
    reach = REACH * kernels.width
    low = jnp.min(jnp.where(there, kernels.center - reach, jnp.inf), axis=0)
    high = jnp.max(jnp.where(there, kernels.center + reach, -jnp.inf), axis=0)
    around = jnp.asarray([each or 0.0 for each in variables.periods], low.dtype)
    low, high = (jnp.where(kernels.count > 0, x, 0.0) for x in (low, high))
    high = jnp.where(around > 0, low + around * (points - 1) / points, high)
    part = jnp.linspace(0.0, 1.0, points, dtype=low.dtype)
    axes = [low[each] + part * (high[each] - low[each]) for each in range(len(variables.names))]
    return jnp.stack([x.ravel() for x in jnp.meshgrid(*axes, indexing="ij")], axis=-1)


def added(
    variables: Variables,
    kernels: Kernels,
    values: Float[Array, "w v"],
    width: Float[Array, "w v"],
    mass: Float[Array, "w"],
    counts: Bool[Array, "w"],
    reach: float,
) -> Kernels:
    """With the Gaussians of all walkers that count, one after the other.

    Within `reach` widths of another one it is merged with it, to one Gaussian of the mass, the mean and the variance of
    both; so it is, with the nearest, where no slot is left.
    """
    slots = kernels.mass.shape[0]

    def onward(kernels: Kernels, sample: tuple[Array, Array, Array, Array]) -> tuple[Kernels, None]:
        values, width, mass, counts = sample
        distances = jnp.where(jnp.arange(slots) < kernels.count, squares(variables, kernels, values), jnp.inf)
        nearest = jnp.argmin(distances)
        merges = (distances[nearest] < reach**2) | (kernels.count >= slots)
        row = jnp.where(merges, nearest, kernels.count)
        old = jnp.where(merges, kernels.mass[row], 0.0)
        share = mass / jnp.maximum(old + mass, float(jnp.finfo(values.dtype).tiny))
        base = jnp.where(merges, kernels.center[row], values)
        off = away(variables, values, base)
        square = (1 - share) * kernels.width[row] ** 2 + share * width**2 + share * (1 - share) * off**2
        row = jnp.where(counts, row, slots)
        new = Kernels(
            kernels.center.at[row].set(base + share * off, mode="drop"),
            kernels.width.at[row].set(jnp.where(merges, jnp.sqrt(square), width), mode="drop"),
            kernels.mass.at[row].set(old + mass, mode="drop"),
            kernels.count + jnp.where(counts & ~merges, 1, 0).astype(jnp.int32),
        )
        return new, None

    return jax.lax.scan(onward, kernels, (values, width, mass, counts))[0]
