"""Structures for tests whose subject is neither masses nor fixed atoms."""

from typing import Any

import numpy as np

from jaxal.types import Structure


def plain(
    position: Any, species: Any, cell: Any, charge: Any = 0, spin: Any = 0, *, mass: Any = None, fixed: Any = None
) -> Structure:
    """A structure or a batch, of atoms of 1 amu that are free unless told otherwise."""
    shape = np.shape(position)[:-1]
    dtype = np.asarray(position).dtype if not hasattr(position, "dtype") else position.dtype
    mass = np.ones(shape, dtype) if mass is None else mass
    fixed = np.zeros(shape, bool) if fixed is None else fixed
    return Structure(position, species, cell, mass, fixed, charge, spin)  # pyright: ignore
