"""Potentials whose isolated atoms have the energies that a reference method gives them.

The program's energies are relative to reference energies of bonded atoms, which leave little for a model to learn. An
atom that loses its last neighbor has the energy of an isolated atom instead, whatever the model makes of it:

    E = sum_i e_i + sum_i w_i (D(s_i) - e(s_i))

with the model's own energy sum_i e_i, its energy e(s) of an atom of species s without neighbors, and the energy D(s) of
the isolated atom relative to the reference. The isolation w_i (`data.fragments`) is 1 without neighbors and 0 where an
atom has one within 1.5 times the sum of their covalent radii. So bonded structures have the model's energy and forces,
and fragments far apart the sum of their energies; in between the energy has two continuous derivatives, and the model
learns what it has to be. In a structure with a charge all w_i are 0: an atom of an ion may be one itself.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxal.core.types import Key, Neighbors, Params, Potential, Structure
from jaxal.data import fragments
from jaxal.data.electrons import ground_spin
from jaxal.data.neighbors import vectors

ISOLATED = "isolated"  # collection of what is known of isolated atoms, never trained


def exact_when_isolated(potential: Potential, table: tuple[int, ...]) -> Potential:
    """The potential, its parameters collections (see `weights`), with isolated atoms as the collection `ISOLATED` says.

    That holds "energy" [s], eV, of a neutral atom relative to the reference energy of its species, and "known" [s], 1
    where there is one; the others, as in the beginning all, are as the potential has them.
    """

    def init(key: Key, structure: Structure, neighbors: Neighbors) -> Params:
        zero = jnp.zeros(len(table), structure.position.dtype)
        return {**potential.init(key, structure, neighbors), ISOLATED: {"energy": zero, "known": zero}}

    def own(params: Params) -> Params:
        return {name: value for name, value in params.items() if name != ISOLATED}

    def alone(params: Params) -> tuple[Float[Array, "s"], Float[Array, "s f"]]:
        if potential.alone is not None:
            return potential.alone(own(params))
        return _evaluated_alone(potential, own(params), table, params[ISOLATED]["energy"].dtype)

    def geometric(structure: Structure, neighbors: Neighbors) -> Float[Array, "n"]:
        vector, used = vectors(structure, neighbors)
        distance = jnp.sqrt(jnp.where(used, jnp.sum(vector**2, axis=-1), 1.0))
        other = structure.species.at[neighbors.index].get(mode="fill", fill_value=0)
        far = fragments.isolation(table, potential.cutoff, structure.species, other, distance, used)
        return jnp.where(structure.species >= 0, far, 0.0)

    def model(params: Params, structures: Structure, neighbors: Neighbors) -> Any:
        """Energies, features and isolation as the potential has them."""
        if potential.isolation is not None:
            return potential.isolation(params, structures, neighbors)
        energies_of = potential.energies or jax.vmap(potential.energy, (None, 0, 0))
        return *energies_of(params, structures, neighbors), jax.vmap(geometric)(structures, neighbors)

    def isolation(params: Params, structures: Structure, neighbors: Neighbors) -> Any:
        energy, feature, far = model(own(params), structures, neighbors)
        isolated = jax.lax.stop_gradient(params[ISOLATED])
        far = far * isolated["known"][jnp.maximum(structures.species, 0)]
        far = jnp.where((structures.charge == 0)[:, None], far, 0.0)  # what leaves an ion may be one itself
        # a product with ones and zeros: its transpose is one, too, where that of a gather is a scatter
        kind = jax.nn.one_hot(structures.species, len(table), dtype=far.dtype)
        released = isolated["energy"] - alone(params)[0]  # [s]
        return energy + jnp.einsum("bn,bns,s->b", far, kind, released), feature, far

    def energies(params: Params, structures: Structure, neighbors: Neighbors) -> Any:
        return isolation(params, structures, neighbors)[:2]

    def energy(params: Params, structure: Structure, neighbors: Neighbors) -> Any:
        value, feature = energies(params, *jax.tree.map(lambda x: x[None], (structure, neighbors)))
        return value[0], feature[0]

    return Potential(init, energy, potential.cutoff, energies, alone, isolation, True)


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
        periodic=jnp.zeros((number, 3), bool),
        mass=jnp.ones((number, 1), dtype),
        fixed=jnp.zeros((number, 1), bool),
        charge=jnp.zeros(number, jnp.int32),
        spin=jnp.asarray([ground_spin(z) or 0 for z in table], jnp.int32),
    )
    none, slot = jnp.ones((number, 1, 1), jnp.int32), jnp.zeros((number, 1, 1), jnp.int32)
    shift = jnp.zeros((number, 1, 1, 3), dtype)
    return structures, Neighbors(none, shift, slot, position, cell, jnp.zeros(number, bool))
