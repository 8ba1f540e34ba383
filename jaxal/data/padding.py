"""Padded structures on the device, brought from one number of atoms to another."""

from typing import Any

import jax.numpy as jnp

from jaxal.core.types import Structure


def atoms_to(values: Any, size: int, fill: float = 0, axis: int = 1) -> Any:
    """Values of atoms [w n ...] with `size` of them: padded by `fill`, or without their last rows."""
    more = size - values.shape[axis]
    if more == 0:
        return values
    if more < 0:
        return values[(slice(None),) * axis + (slice(size),)]
    widths = [(0, more if place == axis else 0) for place in range(values.ndim)]
    return jnp.pad(values, widths, constant_values=fill)


def structures_to(structures: Structure, size: int) -> Structure:
    """Structures [w n] with room for `size` atoms each. What is cut off must be padding."""
    return structures._replace(
        position=atoms_to(structures.position, size),
        species=atoms_to(structures.species, size, -1),
        mass=atoms_to(structures.mass, size, 1),
        fixed=atoms_to(structures.fixed, size),
    )
