"""Structures that can be told apart, for queues and selections."""

import jax.numpy as jnp
from structures import plain

ATOMS = 2


def structures(values):
    """Structures that can be told apart by their first coordinate."""
    values = jnp.asarray(values, jnp.float32)
    position = jnp.zeros((len(values), ATOMS, 3)).at[:, 0, 0].set(values)
    number = len(values)
    species = jnp.zeros((number, ATOMS), jnp.int32)
    return plain(position, species, jnp.zeros((number, 3, 3)), *jnp.zeros((2, number), jnp.int32))
