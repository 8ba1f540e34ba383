"""Errors of one model on a batch of labeled structures, as one number to be minimized."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxal.types import Label, Structure


class LossWeights(NamedTuple):
    """Weights of the terms; all errors in eV, Å. `huber` bounds the force error that counts quadratically."""

    energy: float  # of the squared error per atom, (eV/atom)^2
    force: float  # of the squared error of a force component, (eV/Å)^2
    stress: float  # of the squared error of a stress component times the volume per atom, (eV/atom)^2
    huber: float | None  # eV/Å, and the same number in eV/atom for energies and virials


def _penalty(error: Float[Array, "..."], huber: float | None) -> Float[Array, "..."]:
    """error^2, growing linearly beyond `huber` (Huber 1964), with the same curvature at zero."""
    if huber is None:
        return error**2
    size = jnp.abs(error)
    return jnp.where(size < huber, error**2, huber * (2 * size - huber))


def loss(
    weights: LossWeights,
    energy: Float[Array, "b"],
    force: Float[Array, "b n 3"],
    stress: Float[Array, "b 3 3"],
    structures: Structure,
    labels: Label,
) -> Float[Array, ""]:
    """Weighted mean penalty over the batch; padded atoms and absent (NaN) stresses do not count."""
    real = structures.species >= 0
    atoms = jnp.maximum(jnp.sum(real, axis=1), 1)
    total = weights.energy * jnp.mean(_penalty((energy - labels.energy) / atoms, weights.huber))
    error = jnp.where(real[:, :, None], force - labels.force, 0.0)
    total += weights.force * jnp.sum(_penalty(error, weights.huber)) / (3 * jnp.sum(real))
    if weights.stress:
        volume = jnp.abs(jnp.linalg.det(structures.cell))
        known = jnp.isfinite(labels.stress) & (volume > 0)[:, None, None]
        virial = (stress - jnp.where(known, labels.stress, 0.0)) * (volume / atoms)[:, None, None]
        virial = jnp.where(known, virial, 0.0)
        total += weights.stress * jnp.sum(_penalty(virial, weights.huber)) / jnp.maximum(jnp.sum(known), 1)
    return total


def force_rmse(
    force: Float[Array, "b n 3"], structures: Structure, labels: Label, count: Float[Array, "b"]
) -> Float[Array, ""]:
    """Root mean square force component error over the rows where `count` is true, eV/Å; NaN if none is."""
    real = (structures.species >= 0) & count[:, None]
    square = jnp.sum(jnp.where(real[:, :, None], (force - labels.force) ** 2, 0.0))
    return jnp.sqrt(square / (3 * jnp.sum(real)))


def max_force_error(force: Float[Array, "b n 3"], structures: Structure, labels: Label) -> Float[Array, "b"]:
    """Largest norm of an atom's force error in each structure, eV/Å."""
    norm = jnp.linalg.norm(force - labels.force, axis=-1)
    return jnp.max(jnp.where(structures.species >= 0, norm, 0.0), axis=-1)
