"""The fast inertial relaxation engine, of walkers that glide together or each by itself.

Bitzek et al., Phys. Rev. Lett. 97, 170201 (2006). Masses are 1; a glide has a row for each walker.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# As published: steps after which the inertia grows, factors of growth and of shrinking, mixing and its decay
PATIENT, FASTER, SLOWER, MIXING, DECAY = 5, 1.1, 0.5, 0.1, 0.99
FIRST, LONGEST = 0.1, 1.0  # of the time step, sqrt(Å^2/eV)


class Glide(NamedTuple):
    """What moves walkers [w]."""

    velocity: Float[Array, "w n 3"]  # sqrt(eV)
    pace: Float[Array, "w"]  # time step, sqrt(Å^2/eV)
    mixing: Float[Array, "w"]
    downhill: Int[Array, "w"]  # steps since the velocity last was against the force
    rests: Bool[Array, "w"]  # it does not move in the next step: its forces are not known yet


def at_rest(position: Float[Array, "w n 3"]) -> Glide:
    """A glide that has not begun."""
    rows, dtype = position.shape[0], position.dtype
    number = jnp.ones(rows, dtype)
    return Glide(jnp.zeros_like(position), FIRST * number, MIXING * number, jnp.zeros(rows, jnp.int32), number > 0)


def onward(
    glide: Glide, force: Float[Array, "w n 3"], power: Float[Array, "w"], ratio: Float[Array, "w"], longest: float
) -> Glide:
    """The glide after its walkers have come to feel a force (eV/Å).

    `power` is the force times the velocity, `ratio` the length of the velocity over that of the force, each of all that
    glide together; `longest` bounds the time step.
    """
    forth, late = power > 0, glide.downhill >= PATIENT
    mixing, along = _column(glide.mixing), _column(ratio)
    mixed = (1 - mixing) * glide.velocity + mixing * along * force
    quicker = jnp.minimum(FASTER * glide.pace, longest)
    pace = jnp.where(forth, jnp.where(late, quicker, glide.pace), SLOWER * glide.pace)
    pace = jnp.where(glide.rests, glide.pace, pace)  # what rested has no velocity to judge
    velocity = jnp.where(_column(forth), mixed, 0.0) + _column(pace) * force
    fading = jnp.where(forth, jnp.where(late, DECAY * glide.mixing, glide.mixing), MIXING)
    downhill = jnp.where(forth, glide.downhill + 1, 0)
    return Glide(velocity, pace, fading, downhill, jnp.zeros_like(glide.rests))


def bounded(move: Float[Array, "w n 3"], longest: Float[Array, "*w"], stride: float) -> Float[Array, "w n 3"]:
    """Displacements no farther than a stride (Å), where `longest` is the farthest of any atom."""
    scale = jnp.minimum(1.0, stride / jnp.maximum(longest, 1e-12))
    return move * (_column(scale) if scale.ndim else scale)


def _column(values: Array) -> Array:
    return values[:, None, None]
