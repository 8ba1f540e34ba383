"""Two atoms whose distance has two wells, as a potential to be learned and as a method: `--part two_wells.py`."""

import jax.numpy as jnp

from jaxal.core.registry import register
from jaxal.core.types import Potential
from jaxal.data import neighbors

CUTOFF = 8.0  # Å
HEIGHT, MIDDLE, HALF, TILT = 0.12, 2.5, 0.6, 0.05  # eV, Å, Å, eV/Å
BEGUN = 0.7  # of the height, before anything was learned


def wells(r, height=HEIGHT):
    """Energy of a distance, eV."""
    x = (r - MIDDLE) / HALF
    return height * (x**2 - 1) ** 2 + TILT * (r - MIDDLE)


def _potential(height):
    def init(key, structure, near):
        return {"params": {"height": jnp.full((), BEGUN * HEIGHT, structure.position.dtype)}}

    def energy(params, structure, near):
        vector, used = neighbors.vectors(structure, near)
        square = jnp.sum(jnp.where(used[..., None], vector, MIDDLE / jnp.sqrt(3.0)) ** 2, axis=-1)
        each = jnp.where(used, wells(jnp.sqrt(square), height(params)), 0.0)
        return 0.5 * jnp.sum(each), jnp.where(structure.species >= 0, 1.0, 0.0).astype(each.dtype)[:, None]

    return Potential(init, energy, CUTOFF)


@register("potential")
def two_wells(table: tuple[int, ...]) -> Potential:
    """Two wells whose height is learned."""
    return _potential(lambda params: params["params"]["height"])


@register("oracle")
def two_wells_method(table: tuple[int, ...]) -> Potential:
    """Two wells as they are."""
    return _potential(lambda params: HEIGHT)
