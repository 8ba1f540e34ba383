"""Structures for tests whose subject is neither masses nor fixed atoms."""

from typing import Any

import numpy as np

from jaxal.core.types import Structure


def plain(
    position: Any,
    species: Any,
    cell: Any,
    charge: Any = 0,
    spin: Any = 0,
    *,
    mass: Any = None,
    fixed: Any = None,
    periodic: Any = None,
) -> Structure:
    """A structure or a batch, of atoms of 1 amu that are free unless told otherwise; periodic where it has a cell."""
    shape = np.shape(position)[:-1]
    dtype = np.asarray(position).dtype if not hasattr(position, "dtype") else position.dtype
    mass = np.ones(shape, dtype) if mass is None else mass
    fixed = np.zeros(shape, bool) if fixed is None else fixed
    if periodic is None:
        periodic = (cell != 0).any((-1, -2))[..., None] & np.ones(3, bool)
    return Structure(position, species, cell, periodic, mass, fixed, charge, spin)  # pyright: ignore


def same_frame(frame, other) -> None:
    """Two frames are the same to the last bit."""
    for name in frame._fields[:9]:
        for x, y in zip(*(np.atleast_1d(np.asarray(getattr(f, name), object)) for f in (frame, other)), strict=True):
            np.testing.assert_array_equal(x, y, err_msg=name)
    for x, y in zip(frame.numeric, other.numeric, strict=True):
        np.testing.assert_array_equal(x, y)
    assert frame.share == other.share and frame.isolated == other.isolated
    for kind in ("info", "arrays"):
        mine, theirs = dict(getattr(frame.carried, kind)), dict(getattr(other.carried, kind))
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            if isinstance(value, dict):
                assert theirs[name] == value
            else:
                np.testing.assert_array_equal(np.asarray(theirs[name]), np.asarray(value), err_msg=name)
