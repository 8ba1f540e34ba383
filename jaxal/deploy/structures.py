"""Structures as a finished model takes them: checked, in its precision, near the origin."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import ase
import numpy as np
from jaxtyping import Float

from jaxal.core.types import InputError, Structure
from jaxal.data import electrons, frames, lattice
from jaxal.data.structure import from_atoms
from jaxal.deploy import model as models


class Placed(NamedTuple):
    """Structures [b] of the same atoms, and how far they were moved to be near the origin."""

    structure: Structure  # numpy
    shift: Float[np.ndarray, "n 3"]  # Å, the same for all


def electrons_of(atoms: ase.Atoms, model: models.Model) -> tuple[int, int]:
    """Charge (e) and number of unpaired electrons of a structure; see `model.unsaid` where it does not say them.

    Raises InputError for what is no whole number, and for names in its info that contradict each other.
    """
    try:
        said = electrons.electrons_of(atoms.info, atoms.arrays)
    except InputError as error:
        raise InputError(f"atoms: {error}") from None
    charge, spin = (rest if own is None else own for own, rest in zip(said, models.unsaid(model), strict=True))
    return charge or 0, spin or 0


def placed(
    model: models.Model, batch: Sequence[ase.Atoms], size: int | None = None, constrained: bool = True
) -> Placed:
    """Structures of the same atoms for a model, padded to `size` atoms, the first one centered and wrapped.

    That is done in float64: far from the origin float32 would lose the digits that forces need. Without `constrained`
    nothing is fixed. Raises InputError for a structure that cannot be, for an element the model does not know, and for
    a charge or spin that it was not trained at or that the atoms cannot have.
    """
    first, states = batch[0], {_checked(model, atoms) for atoms in batch}
    if any(not np.array_equal(atoms.numbers, first.numbers) for atoms in batch) or len(states) > 1:
        raise InputError("atoms: structures of other atoms or electrons; give the same atoms in the same order")
    cell, periodic = frames.cell_of(first)
    near: Any = first.copy()
    near.set_constraint()
    if first.pbc.any():
        near.wrap()
    outward = lattice.completed(cell, periodic)[~periodic]
    near.positions -= near.positions.mean(axis=0) @ outward.T @ outward
    shift = near.positions - first.positions
    moved = []
    for atoms in batch:
        copy: Any = atoms.copy()
        copy.info = {name: value for name, value in atoms.info.items() if name == "occupancy"}
        if not constrained:
            copy.set_constraint()
        copy.set_positions(atoms.positions + shift, apply_constraint=False)
        moved.append(copy)
    dtype = np.float64 if model.precision == "float64" else np.float32
    charge, spin = next(iter(states))
    return Placed(from_atoms(moved, model.table, charge, spin, size, dtype), shift)


def _checked(model: models.Model, atoms: ase.Atoms) -> tuple[int, int]:
    """Charge and spin of a structure that the model can take."""
    if len(atoms) == 0:
        raise InputError("atoms: there are none; give at least one")
    try:
        frames.cell_of(atoms)
    except InputError as error:
        raise InputError(f"atoms: {error}") from None
    charge, spin = electrons_of(atoms, model)
    try:
        models.check_state(model, atoms.numbers, np.asarray(atoms.pbc), charge, spin)
    except InputError as error:
        raise InputError(f"atoms: {error}") from None
    return charge, spin
