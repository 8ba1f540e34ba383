"""A potential that compiles fast, for whole runs of which the model is not the subject: `--part small_potential.py`."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxal.core.registry import register
from jaxal.core.types import Key, Neighbors, Params, Potential, Structure
from jaxal.data import neighbors
from jaxal.potential.radial import envelope

CUTOFF = 4.0  # Å
CENTERS = np.linspace(0.6, 2.4, 5)  # Å


@register("potential")
def bonds(table: tuple[int, ...]) -> Potential:
    """Morse bonds between unlike elements, walls between like ones, and a small trained part on mixed shells.

    The trained part is linear in features that mix the neighbors of each element at a few distances. Bonds are as deep
    and as long as those of water (4.5 eV, 0.97 Å).
    """

    def init(key: Key, structure: Structure, near: Neighbors) -> Params:
        mix, weight = jax.random.split(key)
        dtype, inputs = structure.position.dtype, len(table) * len(CENTERS)
        return {
            "params": {
                "mix": jax.random.normal(mix, (inputs, 6), dtype),
                "weight": jax.random.normal(weight, (len(table), 6), dtype),
            }
        }

    def energy(params: Params, structure: Structure, near: Neighbors) -> tuple[Float[Array, ""], Float[Array, "n f"]]:
        vector, used = neighbors.vectors(structure, near)
        distance = jnp.sqrt(jnp.sum(jnp.where(used[:, :, None], vector, 1.0) ** 2, axis=-1))
        switch = jnp.where(used, envelope(distance, CUTOFF), 0.0)
        species = structure.species.at[near.index].get(mode="fill", fill_value=-1)
        bond = 4.5 * ((1 - jnp.exp(-2.2 * (distance - 0.97))) ** 2 - 1)
        pair = jnp.where(species == structure.species[:, None], 20.0 * jnp.exp(-3.0 * distance), bond)
        shell = jnp.exp(-(((distance[:, :, None] - CENTERS.astype(distance.dtype)) / 0.4) ** 2)) * switch[:, :, None]
        kind = jax.nn.one_hot(species, len(table), dtype=distance.dtype)
        shells = jnp.einsum("nkc,nks->nsc", shell, kind).reshape(distance.shape[0], -1)
        feature = jnp.where((structure.species >= 0)[:, None], jnp.tanh(shells @ params["params"]["mix"]), 0.0)
        trained = jnp.sum(params["params"]["weight"][structure.species] * feature)
        return 0.5 * jnp.sum(pair * switch) + 0.1 * trained, feature

    return Potential(init, energy, CUTOFF)
