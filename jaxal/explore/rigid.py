"""Displacements and forces without what moves or turns a structure as a whole."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxal.core.types import Structure
from jaxal.explore.walker import mobile


def internal(structure: Structure, vector: Float[Array, "n 3"]) -> Float[Array, "n 3"]:
    """Vectors of one structure without those on fixed atoms and padding, and without what moves the whole: translations
    where no atom is fixed, rotations where nothing is periodic, too.

    By Gram and Schmidt's method, written out: no LAPACK in the loop.
    """
    moves = mobile(structure)
    vector = jnp.where(moves[:, None], vector, 0.0)
    loose = ~jnp.any((structure.species >= 0) & structure.fixed)
    turns = loose & ~jnp.any(structure.periodic)
    number = jnp.maximum(jnp.sum(moves), 1)
    place = structure.position - jnp.sum(jnp.where(moves[:, None], structure.position, 0.0), axis=0) / number
    unit = jnp.broadcast_to(jnp.eye(3, dtype=vector.dtype)[:, None], (3, *place.shape))
    basis: list[Array] = []
    for counts, motions in ((loose, unit), (turns, jnp.cross(unit, place[None]))):
        for motion in motions:
            motion = jnp.where(moves[:, None] & counts, motion, 0.0)
            size = jnp.sum(motion**2)
            for _ in range(2):  # once more: what little is left of a dependent one is rounding
                for other in basis:
                    motion = motion - jnp.sum(motion * other) * other
            left = jnp.sum(motion**2)
            sound = left > 1e-6 * jnp.maximum(size, 1e-12)  # the rotation around the axis of a line is none
            basis.append(jnp.where(sound, motion / jnp.sqrt(jnp.where(sound, left, 1.0)), 0.0))
    for motion in basis:
        vector = vector - jnp.sum(vector * motion) * motion
    return vector
