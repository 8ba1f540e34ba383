"""Kernels: the features by which selections tell structures apart; their products are similarities.

Each is a function of (potential, parameters, structures [b], neighbors [b]) -> [b f], where the parameters are the
first member's. Padded atoms and the order of atoms must not matter.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxal.registry import register
from jaxal.types import Neighbors, Params, Potential, Structure


def atom_features(
    potential: Potential, params: Params, structures: Structure, neighbors: Neighbors
) -> Float[Array, "b n f"]:
    """The potential's invariant features of all atoms, zero where padded."""
    energies = potential.energies or jax.vmap(potential.energy, (None, 0, 0))
    feature = energies(params, structures, neighbors)[1]
    return jnp.where((structures.species >= 0)[..., None], feature, 0.0)


@register("kernel")
def mean_feature(
    potential: Potential, params: Params, structures: Structure, neighbors: Neighbors
) -> Float[Array, "b f"]:
    """Mean over the atoms of the potential's invariant features, those its readout is made from."""
    feature = atom_features(potential, params, structures, neighbors)
    atoms = jnp.maximum(jnp.sum(structures.species >= 0, axis=-1), 1)
    return jnp.sum(feature, axis=1) / atoms[:, None]
