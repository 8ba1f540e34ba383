"""Acquisition scores: how unsure is the committee about one structure?

A score is pure and differentiable; it ignores padded atoms and atom order, and larger means less certain. To
add one, write it here under @register: the contract tests run on it by name.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxal.registry import register
from jaxal.types import Prediction, Structure


def root(square: Float[Array, "..."]) -> Float[Array, "..."]:
    """Square root with a zero gradient at zero, where the true one is infinite."""
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def atom_spread(prediction: Prediction) -> Float[Array, "n"]:
    """Committee standard deviation of each atom's force vector, eV/Å."""
    return root(jnp.sum(jnp.var(prediction.force, axis=0), axis=-1))


@register("score")
def max_force_spread(prediction: Prediction, structure: Structure) -> Float[Array, ""]:
    """Worst atom's force spread, eV/Å (the model deviation of Zhang et al., PRMaterials 3, 023804, 2019)."""
    return jnp.max(atom_spread(prediction), where=structure.species >= 0, initial=0.0)


@register("score")
def mean_force_spread(prediction: Prediction, structure: Structure) -> Float[Array, ""]:
    """Root mean square over the atoms of the force spread, eV/Å."""
    real = structure.species >= 0
    square = jnp.sum(jnp.var(prediction.force, axis=0), axis=-1)
    return root(jnp.sum(jnp.where(real, square, 0.0)) / jnp.maximum(jnp.sum(real), 1))


@register("score")
def energy_spread(prediction: Prediction, structure: Structure) -> Float[Array, ""]:
    """Committee standard deviation of the energy, eV per atom."""
    return root(jnp.var(prediction.energy)) / jnp.maximum(jnp.sum(structure.species >= 0), 1)
