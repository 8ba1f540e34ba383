"""Energies, forces and stresses of one model and of a committee.

Forces and stress are one gradient wrapped around the energy. Members stand on a leading axis [m] of the
parameters. How members and structures are batched is one switch: on CPUs the members are taken one after the
other (a vmap over members makes XLA's batched products lose their layout and runs 2 to 3 times slower), on
accelerators the widest batch wins.
"""

import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from jaxal import devices
from jaxal.devices import MEMBERS, WALKERS
from jaxal.precision import exact
from jaxal.types import Key, Neighbors, Params, Potential, Prediction, Structure

Batching = Literal["auto", "map", "vmap"]


class Committee(NamedTuple):
    """What has to be static about a committee; hashable. Its parameters have the members on a leading axis [m]."""

    potential: Potential
    members: int
    batching: Batching = "auto"
    mesh: Mesh | None = None  # over which structures and members divide; None is one device


def init(committee: Committee, key: Key, structure: Structure, neighbors: Neighbors) -> Params:
    """Independent initial weights of each member, [m] leading."""
    return jax.vmap(lambda k: committee.potential.init(k, structure, neighbors))(
        jax.random.split(key, committee.members)
    )


def evaluate(
    potential: Potential, params: Params, structure: Structure, neighbors: Neighbors
) -> tuple[Float[Array, ""], Float[Array, "n 3"], Float[Array, "3 3"], Float[Array, "n f"]]:
    """One model on one structure: energy (eV), forces (eV/Å), stress (eV/Å^3, zero if open), features.

    The stress is dE/dstrain over the volume: ASE's sign, positive under tension.
    """
    found = evaluate_batch(potential, params, *jax.tree.map(lambda x: x[None], (structure, neighbors)))
    energy, force, stress, feature = (x[0] for x in found)
    return energy, force, stress, feature


@exact
def evaluate_batch(
    potential: Potential, params: Params, structures: Structure, neighbors: Neighbors
) -> tuple[Float[Array, "b"], Float[Array, "b n 3"], Float[Array, "b 3 3"], Float[Array, "b n f"]]:
    """`evaluate` of a batch [b]: one gradient of the sum, since no energy depends on another structure."""
    energies = potential.energies or jax.vmap(potential.energy, (None, 0, 0))

    def strained(position, strain):
        deformation = jnp.eye(3, dtype=position.dtype) + 0.5 * (strain + jnp.swapaxes(strain, -1, -2))
        moved = structures._replace(position=position @ deformation, cell=structures.cell @ deformation)
        energy, feature = energies(params, moved, neighbors)
        return jnp.sum(energy), (energy, feature)

    zero = jnp.zeros_like(structures.cell)
    slopes, (energy, feature) = jax.grad(strained, argnums=(0, 1), has_aux=True)(structures.position, zero)
    volume = jnp.abs(jnp.linalg.det(structures.cell))[:, None, None]
    stress = jnp.where(volume > 0, slopes[1] / jnp.where(volume > 0, volume, 1.0), 0.0)
    return energy, -slopes[0], stress, feature


def one_by_one(batching: Batching) -> bool:
    """Whether members are mapped in sequence rather than batched, for the backend in use."""
    return batching == "map" or (batching == "auto" and jax.default_backend() == "cpu")


def over_members(function, batching: Batching):
    """`function(member's arguments...)` over the leading axis of all its arguments, by map or vmap."""
    if one_by_one(batching):
        return lambda *arguments: jax.lax.map(lambda rows: function(*rows), arguments)
    return jax.vmap(function)


def predict(committee: Committee, params: Params, structures: Structure, neighbors: Neighbors) -> Prediction:
    """The committee on a batch of structures [b]: Prediction with axes [b m ...].

    `params` has members on its leading axis. Features are those of the first member. On a mesh each device evaluates
    its own members on its own structures; structures whose number does not divide are evaluated by every row of it.
    """
    rows = devices.along(committee.mesh, WALKERS, structures.charge.shape[0])
    run = functools.partial(predict_local, committee)
    return devices.split(committee.mesh, run, (P(MEMBERS), rows, rows), rows)(params, structures, neighbors)


def predict_local(committee: Committee, params: Params, structures: Structure, neighbors: Neighbors) -> Prediction:
    """`predict` inside of `devices.split`: this device's structures, by the members of all devices."""

    def member(one):
        return evaluate_batch(committee.potential, one, structures, neighbors)

    energy, force, stress, feature = over_members(member, committee.batching)(params)
    energy, force, stress = devices.gathered(committee.mesh, MEMBERS, (energy, force, stress))
    feature = devices.gathered(committee.mesh, MEMBERS, feature[:1])[0]
    return Prediction(
        energy=jnp.moveaxis(energy, 0, 1),
        force=jnp.moveaxis(force, 0, 1),
        stress=jnp.moveaxis(stress, 0, 1),
        feature=feature,
    )
