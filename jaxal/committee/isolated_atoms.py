"""Potentials whose isolated atoms have the energies that a reference method gives them.

The program's energies are relative to reference energies of bonded atoms, which leave little for a model to learn. An
atom that loses its last neighbor has the energy of an isolated atom instead, whatever the model makes of it:

    E = sum_i e_i + sum_i w_i (D(s_i) - e(s_i))

with the model's own energy sum_i e_i, its energy e(s) of an atom of species s without neighbors, and the energy D(s) of
the isolated atom relative to the reference. The isolation w_i of an atom is 1 without neighbors and falls to 0 with its
first bond,

    w_i = max(0, 1 - 2 n_i)^3,    n_i = sum_j f(r_ij / 3 (R_i + R_j)),    f(u) = 1 - 10 u^3 + 15 u^4 - 6 u^5 for u < 1,

with covalent radii R. One neighbor at 1.5 times the sum of the radii makes n_i = 1/2 and w_i = 0. So bonded structures
have the model's energy and forces, and fragments far apart the sum of their energies; in between the energy has two
continuous derivatives, and the model learns what it has to be.
"""

from typing import Any

import jax
import jax.numpy as jnp
from ase.data import covalent_radii
from jaxtyping import Array, Float, Int

from jaxal.core.types import Key, Neighbors, Params, Potential, Structure
from jaxal.data.electrons import ground_spin
from jaxal.data.neighbors import vectors

ISOLATED = "isolated"  # collection of what is known of isolated atoms, never trained
REACH = 3.0  # of the sum of two covalent radii; farther neighbors bond nothing


def exact_when_isolated(potential: Potential, table: tuple[int, ...]) -> Potential:
    """The potential, its parameters collections (see `weights`), with isolated atoms as the collection `ISOLATED` says.

    That holds "energy" [s], eV, of a neutral atom relative to the reference energy of its species, and "known" [s], 1
    where there is one; the others, as in the beginning all, are as the potential has them.
    """
    radii = jnp.asarray(covalent_radii[list(table)], jnp.float32)
    energies_of = potential.energies

    def init(key: Key, structure: Structure, neighbors: Neighbors) -> Params:
        zero = jnp.zeros(len(table), structure.position.dtype)
        return {**potential.init(key, structure, neighbors), ISOLATED: {"energy": zero, "known": zero}}

    def own(params: Params) -> Params:
        return {name: value for name, value in params.items() if name != ISOLATED}

    def alone(params: Params) -> tuple[Float[Array, "s"], Float[Array, "s f"]]:
        if potential.alone is not None:
            return potential.alone(own(params))
        return _evaluated_alone(potential, own(params), table, params[ISOLATED]["energy"].dtype)

    def isolation(params: Params, structure: Structure, neighbors: Neighbors) -> Float[Array, "n"]:
        return _isolation(radii, potential.cutoff, structure, neighbors) * _of(params, "known", structure.species)

    def released(params: Params, structure: Structure, neighbors: Neighbors) -> Float[Array, ""]:
        """What the energy of a structure is to change by."""
        species = structure.species
        energy = _of(params, "energy", species) - alone(params)[0][jnp.maximum(species, 0)]
        return jnp.sum(isolation(params, structure, neighbors) * energy)

    def energy(params: Params, structure: Structure, neighbors: Neighbors) -> Any:
        value, feature = potential.energy(own(params), structure, neighbors)
        return value + released(params, structure, neighbors), feature

    def energies(params: Params, structures: Structure, neighbors: Neighbors) -> Any:
        assert energies_of is not None
        value, feature = energies_of(own(params), structures, neighbors)
        return value + jax.vmap(released, (None, 0, 0))(params, structures, neighbors), feature

    batch = None if energies_of is None else energies
    return Potential(init, energy, potential.cutoff, batch, alone, isolation)


def _of(params: Params, name: str, species: Int[Array, "n"]) -> Float[Array, "n"]:
    return jax.lax.stop_gradient(params[ISOLATED][name])[jnp.maximum(species, 0)]


def _isolation(
    radii: Float[Array, "s"], cutoff: float, structure: Structure, neighbors: Neighbors
) -> Float[Array, "n"]:
    """How far atoms are from having a bond, in [0, 1]; 0 for padding."""
    vector, used = vectors(structure, neighbors)
    distance = jnp.sqrt(jnp.where(used, jnp.sum(vector**2, axis=-1), 1.0))
    radius = radii.astype(distance.dtype)[jnp.maximum(structure.species, 0)]
    other = radius.at[neighbors.index].get(mode="fill", fill_value=1.0)
    reach = jnp.minimum(REACH * (radius[:, None] + other), cutoff)
    u = jnp.minimum(distance / reach, 1.0)
    count = jnp.sum(jnp.where(used, 1.0 - u**3 * (10.0 - 15.0 * u + 6.0 * u**2), 0.0), axis=1)
    value = jnp.maximum(1.0 - 2.0 * count, 0.0) ** 3
    return jnp.where(structure.species >= 0, value, 0.0)


def _evaluated_alone(
    potential: Potential, params: Params, table: tuple[int, ...], dtype: Any
) -> tuple[Float[Array, "s"], Float[Array, "s f"]]:
    """Energies and features of neutral atoms without neighbors, one structure of one atom each."""
    structures, neighbors = lone_atoms(table, dtype)
    energies = potential.energies or jax.vmap(potential.energy, (None, 0, 0))
    value, feature = energies(params, structures, neighbors)
    return value, feature[:, 0]


def lone_atoms(table: tuple[int, ...], dtype: Any) -> tuple[Structure, Neighbors]:
    """A neutral atom of each species in the spin of its ground state, open, without neighbors: [s], one atom each."""
    number = len(table)
    position, cell = jnp.zeros((number, 1, 3), dtype), jnp.zeros((number, 3, 3), dtype)
    structures = Structure(
        position=position,
        species=jnp.arange(number, dtype=jnp.int32)[:, None],
        cell=cell,
        mass=jnp.ones((number, 1), dtype),
        fixed=jnp.zeros((number, 1), bool),
        charge=jnp.zeros(number, jnp.int32),
        spin=jnp.asarray([ground_spin(z) or 0 for z in table], jnp.int32),
    )
    none, slot = jnp.ones((number, 1, 1), jnp.int32), jnp.zeros((number, 1, 1), jnp.int32)
    shift = jnp.zeros((number, 1, 1, 3), dtype)
    return structures, Neighbors(none, shift, slot, position, cell, jnp.zeros(number, bool))
