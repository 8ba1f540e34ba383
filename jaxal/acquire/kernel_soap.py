"""A kernel that knows no model: smooth overlap of atomic positions, by power spectra."""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxal.core.registry import register
from jaxal.core.types import Neighbors, Params, Potential, Structure
from jaxal.core.units import Unit
from jaxal.data.neighbors import vectors

ROWS = 118  # of the species table, at most


def _unit(vector: Float[Array, "... q"]) -> Float[Array, "... q"]:
    """The vector over its length; zero where it is zero, with zero gradient."""
    square = jnp.sum(vector**2, axis=-1, keepdims=True)
    return jnp.where(square > 0, vector / jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


@register("kernel")
def soap(
    potential: Potential,
    params: Params,
    structures: Structure,
    neighbors: Neighbors,
    *,
    radial: Annotated[int, Unit("", 1)] = 4,
    l_max: Annotated[int, Unit("", 0)] = 3,
    elements: Annotated[int, Unit("", 1)] = 2,
) -> Float[Array, "b f"]:
    """Mean over the atoms of normalized power spectra, normalized: what a structure looks like, whatever the model.

    With densities c_q = sum_j w_a(species of j) g_r(r_ij) Y_lm(r_ij) around atom i, q = (a, r), its spectrum is p_qq'l
    = sum_m c_qlm c_q'lm for q <= q', times one of `elements` weights of its own species. Parameters are not read.

    radial : Gaussians g_r in the distance, whose centers divide the potential's cutoff evenly; they end smoothly there
    l_max : highest degree of the spherical harmonics Y
    elements : fixed random weights w_a of the species, for neighbors and for the atom itself

    f = elements * q (q + 1) / 2 * (l_max + 1) with q = elements * radial. Bartók, Kondor and Csányi, Phys. Rev. B 87,
    184115 (2013); weights of species as in Willatt, Musil and Ceriotti, Phys. Chem. Chem. Phys. 20, 29661 (2018).
    """
    del params
    weights = np.random.default_rng(0).normal(size=(2, ROWS, elements))
    degrees = np.repeat(np.arange(l_max + 1), 2 * np.arange(l_max + 1) + 1)
    left, right = np.triu_indices(elements * radial)

    def descriptor(structure: Structure, neighbors: Neighbors) -> Float[Array, "f"]:
        dtype = structure.position.dtype
        of_neighbor, of_atom = jnp.asarray(weights, dtype)
        species = structure.species
        real = species >= 0
        vector, used = vectors(structure, neighbors)
        # a slot that is not used sits at the cutoff, where everything and its derivatives are zero
        vector = jnp.where(used[..., None], vector, jnp.asarray([potential.cutoff, 0.0, 0.0], dtype))
        distance = jnp.sqrt(jnp.sum(vector**2, axis=-1))
        width = potential.cutoff / (radial + 1)
        center = jnp.asarray(width * np.arange(1, radial + 1), dtype)
        inside = jnp.clip(distance / potential.cutoff, 0.0, 1.0)
        shape = jnp.exp(-0.5 * ((distance[..., None] - center) / width) ** 2) * ((1.0 - inside**2) ** 3)[..., None]
        import e3nn_jax as e3nn  # takes seconds

        harmonics = e3nn.spherical_harmonics(
            e3nn.Irreps.spherical_harmonics(l_max), vector / distance[..., None], False, normalization="component"
        ).array
        kind = of_neighbor[species.at[neighbors.index].get(mode="fill", fill_value=0)]
        kind = jnp.where(used[..., None], kind, 0.0)
        density = jnp.einsum("nka,nkr,nkm->narm", kind, shape, harmonics)
        density = density.reshape(density.shape[0], elements * radial, -1)
        products = density[:, left] * density[:, right]
        spectrum = jax.nn.one_hot(degrees, l_max + 1, axis=0, dtype=dtype) @ jnp.swapaxes(products, 1, 2)
        spectrum = _unit(spectrum.reshape(spectrum.shape[0], -1))
        own = jnp.where(real[:, None], of_atom[jnp.maximum(species, 0)], 0.0)
        return _unit((own.T @ spectrum).reshape(-1))

    return jax.vmap(descriptor)(structures, neighbors)
