"""Errors of one model on a batch of labeled structures, as one number to be minimized."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxal.core.types import Label, Structure
from jaxal.data.cell import determinant


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
    share: Float[Array, "b 3"],
) -> Float[Array, ""]:
    """Weighted mean penalty over the batch; padded atoms and absent (NaN) numbers do not count.

    Of a stress the components along directions that repeat count: the others are zero, predicted and labeled.
    `share` weighs the energy, the forces and the stress of each structure.
    """
    real = structures.species >= 0
    atoms = jnp.maximum(jnp.sum(real, axis=1), 1)
    known = jnp.isfinite(labels.energy)
    error = jnp.where(known, energy - jnp.where(known, labels.energy, 0.0), 0.0) / atoms
    total = weights.energy * jnp.sum(share[:, 0] * _penalty(error, weights.huber)) / jnp.maximum(jnp.sum(known), 1)
    known = real[:, :, None] & jnp.isfinite(labels.force)
    error = jnp.where(known, force - jnp.where(known, labels.force, 0.0), 0.0)
    each = jnp.sum(_penalty(error, weights.huber), axis=(1, 2))
    total += weights.force * jnp.sum(share[:, 1] * each) / jnp.maximum(jnp.sum(known), 1)
    if weights.stress:
        volume = jnp.abs(determinant(structures.cell))
        known = jnp.isfinite(labels.stress) & (volume > 0)[:, None, None]
        virial = (stress - jnp.where(known, labels.stress, 0.0)) * (volume / atoms)[:, None, None]
        virial = jnp.where(known, virial, 0.0)
        each = jnp.sum(_penalty(virial, weights.huber), axis=(1, 2))
        # 9 components of a crystal, 4 of a slab, 1 of a wire
        counted = jnp.sum(known, axis=(1, 2)) * jnp.sum(structures.periodic, axis=1) ** 2 // 9
        total += weights.stress * jnp.sum(share[:, 2] * each) / jnp.maximum(jnp.sum(counted), 1)
    return total


def force_rmse(
    force: Float[Array, "b n 3"], structures: Structure, labels: Label, count: Float[Array, "b"]
) -> Float[Array, ""]:
    """Root mean square error of the known force components of the rows where `count` is true, eV/Å; NaN if none is."""
    error, known = force_errors(force, structures, labels)
    known &= count[:, None, None]
    return jnp.sqrt(jnp.sum(jnp.where(known, error**2, 0.0)) / jnp.sum(known))


def max_force_error(force: Float[Array, "b n 3"], structures: Structure, labels: Label) -> Float[Array, "b"]:
    """Largest norm of an atom's force error in each structure, eV/Å, over what is known; NaN where no force is."""
    error, known = force_errors(force, structures, labels)
    norm = jnp.max(jnp.linalg.norm(error, axis=-1), axis=-1)
    return jnp.where(jnp.any(known, axis=(1, 2)), norm, jnp.nan)


def force_errors(
    force: Float[Array, "b n 3"], structures: Structure, labels: Label
) -> tuple[Float[Array, "b n 3"], Bool[Array, "b n 3"]]:
    """Errors of the force components, eV/Å, and which of them are known; zero for those that are not."""
    known = (structures.species >= 0)[:, :, None] & jnp.isfinite(labels.force)
    return jnp.where(known, force - jnp.where(known, labels.force, 0.0), 0.0), known
