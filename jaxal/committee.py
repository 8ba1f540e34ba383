"""Energies, forces and stresses of one model and of a committee.

Forces and stress are one gradient wrapped around the energy. Members stand on a leading axis [m] of the
parameters. How members and structures are batched is one switch: on CPUs the members are taken one after the
other (a vmap over members makes XLA's batched products lose their layout and runs 2 to 3 times slower), on
accelerators the widest batch wins.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxal.types import Key, Neighbors, Params, Potential, Prediction, Structure

Batching = Literal["auto", "map", "vmap"]


def init(potential: Potential, key: Key, members: int, structure: Structure, neighbors: Neighbors) -> Params:
    """Independent initial weights of each member, [m] leading."""
    return jax.vmap(lambda k: potential.init(k, structure, neighbors))(jax.random.split(key, members))


def evaluate(
    potential: Potential, params: Params, structure: Structure, neighbors: Neighbors
) -> tuple[Float[Array, ""], Float[Array, "n 3"], Float[Array, "3 3"], Float[Array, "n f"]]:
    """One model on one structure: energy (eV), forces (eV/Å), stress (eV/Å^3, zero if open), features.

    The stress is dE/dstrain over the volume: ASE's sign, positive under tension.
    """

    def strained(position, strain):
        deformation = jnp.eye(3, dtype=position.dtype) + 0.5 * (strain + strain.T)
        moved = structure._replace(position=position @ deformation, cell=structure.cell @ deformation)
        return potential.energy(params, moved, neighbors)

    zero = jnp.zeros((3, 3), structure.position.dtype)
    (energy, feature), (slope, virial) = jax.value_and_grad(strained, argnums=(0, 1), has_aux=True)(
        structure.position, zero
    )
    volume = jnp.abs(jnp.linalg.det(structure.cell))
    stress = jnp.where(volume > 0, virial / jnp.where(volume > 0, volume, 1.0), 0.0)
    return energy, -slope, stress, feature


def one_by_one(batching: Batching) -> bool:
    """Whether members are mapped in sequence rather than batched, for the backend in use."""
    return batching == "map" or (batching == "auto" and jax.default_backend() == "cpu")


def over_members(function, batching: Batching):
    """`function(member's arguments...)` over the leading axis of all its arguments, by map or vmap."""
    if one_by_one(batching):
        return lambda *arguments: jax.lax.map(lambda rows: function(*rows), arguments)
    return jax.vmap(function)


def predict(
    potential: Potential, params: Params, structures: Structure, neighbors: Neighbors, batching: Batching = "auto"
) -> Prediction:
    """The committee on a batch of structures [b]: Prediction with axes [b m ...].

    `params` has members on its leading axis. Features are those of the first member.
    """

    def member(one):
        return jax.vmap(lambda s, n: evaluate(potential, one, s, n))(structures, neighbors)

    energy, force, stress, feature = over_members(member, batching)(params)
    return Prediction(
        energy=jnp.moveaxis(energy, 0, 1),
        force=jnp.moveaxis(force, 0, 1),
        stress=jnp.moveaxis(stress, 0, 1),
        feature=feature[0],
    )
