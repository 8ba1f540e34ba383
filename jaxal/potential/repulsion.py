"""Screened nuclear repulsion at short range, so that atoms cannot fall into each other where no label is.

Ziegler, Biersack, Littmark, "The Stopping and Range of Ions in Solids" (1985): the universal screening
function. It is switched off smoothly at the sum of the covalent radii, where the learned part takes over.
"""

import jax.numpy as jnp
import numpy as np
from ase.data import covalent_radii
from jaxtyping import Array, Bool, Float, Int

from jaxal.core.units import BOHR, HARTREE
from jaxal.potential.radial import envelope

_COEFFICIENT = (0.18175, 0.50986, 0.28022, 0.02817)
_EXPONENT = (3.19980, 0.94229, 0.40290, 0.20162)


def zbl(
    table: tuple[int, ...],
    species: Int[Array, "n"],
    neighbor: Int[Array, "n k"],
    distance: Float[Array, "n k"],
    used: Bool[Array, "n k"],
) -> Float[Array, "n"]:
    """Repulsion energy of each atom, eV: half of every pair's.

    `species` and `neighbor` are rows of `table` (atomic numbers), `distance` is positive, Å. Each pair's energy
    goes to zero with two continuous derivatives at the sum of the covalent radii (ASE's, Cordero 2008).
    """
    dtype = distance.dtype
    charge = jnp.asarray(np.asarray(table), dtype)
    radius = jnp.asarray(covalent_radii[list(table)], dtype)
    z_i, z_j = charge[jnp.maximum(species, 0)][:, None], charge[jnp.maximum(neighbor, 0)]
    cutoff = radius[jnp.maximum(species, 0)][:, None] + radius[jnp.maximum(neighbor, 0)]
    length = 0.8854 * BOHR / (z_i**0.23 + z_j**0.23)
    x = distance / length
    screening = sum(c * jnp.exp(-e * x) for c, e in zip(_COEFFICIENT, _EXPONENT, strict=True))
    u = jnp.minimum(distance / cutoff, 1.0)
    pair = HARTREE * BOHR * z_i * z_j / distance * screening * envelope(u, 1.0)
    return 0.5 * jnp.sum(jnp.where(used, pair, 0.0), axis=1)
