"""Kernels: the features by which selections tell structures apart; their products are similarities.

Each is a function of (potential, parameters, structures [b], neighbors [b]) -> [b f], where the parameters are the
first member's. Padded atoms and the order of atoms must not matter.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxal.core.placement import placement
from jaxal.core.registry import register
from jaxal.core.types import InputError, Neighbors, Params, Potential, Structure
from jaxal.core.units import Unit

BLOCKS = 4  # of species, where the weights do not tell how many there are
TOGETHER = 8  # structures whose gradients are found at a time on accelerators: each is as large as the weights


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


def _blocks(params: Params) -> int:
    """Species that the potential tells apart: as many as it has energy shifts."""
    shift = params.get("params", {}).get("shift") if isinstance(params, dict) else None
    return BLOCKS if shift is None or not hasattr(shift, "shape") else int(np.prod(shift.shape))


@register("kernel")
def last_layer_gradient(
    potential: Potential, params: Params, structures: Structure, neighbors: Neighbors
) -> Float[Array, "b f"]:
    """Sums over the atoms of each species of the potential's invariant features, one block for each species.

    The gradient of the energy with respect to a linear readout of its own for each species, so the products are those
    of Gaussian process regression with the last layer's tangent kernel. The number of species is that of the weight
    `shift`; of a potential without one, row s of the species table belongs to block s mod 4.
    """
    feature = atom_features(potential, params, structures, neighbors)
    blocks = _blocks(params)
    kind = jnp.where(structures.species >= 0, structures.species % blocks, -1)
    sums = jnp.einsum("bns,bnf->bsf", jax.nn.one_hot(kind, blocks, dtype=feature.dtype), feature)
    return sums.reshape(sums.shape[0], -1)


@register("kernel")
def sketched_gradient(
    potential: Potential,
    params: Params,
    structures: Structure,
    neighbors: Neighbors,
    *,
    size: Annotated[int, Unit("", 1)] = 128,
) -> Float[Array, "b f"]:
    """Gradient of the energy with respect to all weights (eV per weight), sketched to `size` numbers.

    Products of gradients are the neural tangent kernel. The weights, in a fixed random order and with fixed random
    signs, are dealt out to the numbers in turn and summed. The expectation over the signs of a product is that of the
    gradients, its error about size^(-1/2) times their lengths. The count sketch of Charikar, Chen and Farach-Colton,
    Theor. Comput. Sci. 312, 3 (2004), with as many weights for every number. Raises InputError for a potential without
    weights.
    """
    weights = params.get("params", {}) if isinstance(params, dict) else {}
    count = sum(leaf.size for leaf in jax.tree.leaves(weights))
    if not count:
        raise InputError("kernel: sketched_gradient needs weights, this potential has none; give mean_feature, or soap")
    rows = -(-count // size)
    rng = np.random.default_rng(0)
    order, sign = rng.permutation(count), rng.choice([-1, 1], count)

    def sketch(pair: tuple[Structure, Neighbors]) -> Float[Array, "f"]:
        slope = jax.grad(lambda weights: potential.energy({**params, "params": weights}, *pair)[0])(weights)
        flat = ravel_pytree(slope)[0]
        dealt = jnp.pad(flat[order] * jnp.asarray(sign, flat.dtype), (0, rows * size - count))
        return jnp.sum(dealt.reshape(rows, size), axis=0)

    together = 1 if placement().cpu else TOGETHER
    return jax.lax.map(sketch, (structures, neighbors), batch_size=together)
