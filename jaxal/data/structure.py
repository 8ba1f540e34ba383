"""Frames and the device: numpy structures and labels, padded, from frames and back.

Host side, numpy only. A species table is the sorted tuple of atomic numbers that a model knows; species are
stored as rows of it, -1 for padding.
"""

from collections.abc import Sequence
from typing import Any

import ase
import numpy as np
from ase.data import chemical_symbols

from jaxal.core.errors import InputError
from jaxal.core.types import Label, Structure
from jaxal.data import frames, lattice
from jaxal.data.frames import Frame
from jaxal.data.labels import Numbers

Table = tuple[int, ...]


def species_table(structures: Sequence[ase.Atoms | Frame]) -> Table:
    """Sorted atomic numbers that occur in the structures."""
    return tuple(sorted({int(z) for structure in structures for z in structure.numbers}))


def _rows(numbers: np.ndarray, table: Table) -> np.ndarray:
    missing = sorted({int(z) for z in numbers} - set(table))
    if missing:
        raise InputError(
            f"element {', '.join(chemical_symbols[z] for z in missing)} is not among those of the model "
            f"({', '.join(chemical_symbols[z] for z in table)})"
        )
    return np.searchsorted(np.asarray(table), numbers)


def from_atoms(
    structures: ase.Atoms | Sequence[ase.Atoms],
    table: Table,
    charge: int = 0,
    spin: int = 0,
    size: int | None = None,
    dtype: Any = np.float32,
) -> Structure:
    """`from_frames` of ASE's atoms; a single structure comes back unbatched."""
    if isinstance(structures, ase.Atoms):
        batch = from_atoms([structures], table, charge, spin, size, dtype)
        return Structure(*(leaf[0] for leaf in batch))
    frame_list = []
    for row, atoms in enumerate(structures):
        try:
            frame_list.append(frames.of_atoms(atoms, labeled=False))
        except InputError as error:
            raise InputError(f"frame {row}: {error}") from None
    return from_frames(frame_list, table, charge, spin, size, dtype)


def from_frames(
    batch: Sequence[Frame],
    table: Table,
    charge: int = 0,
    spin: int = 0,
    size: int | None = None,
    dtype: Any = np.float32,
) -> Structure:
    """Structures [b] as numpy arrays, padded to `size` atoms (the largest by default).

    `charge` (e) and `spin` (unpaired electrons) hold where a frame does not say them. Raises InputError for an element
    outside the table, and for a frame that `size` has no room for.
    """
    size = size or max(len(frame.numbers) for frame in batch)
    position: Any = np.zeros((len(batch), size, 3), dtype)  # Any: the host's Structure holds numpy arrays
    species: Any = np.full((len(batch), size), -1, np.int32)
    cell: Any = np.zeros((len(batch), 3, 3), dtype)
    periodic: Any = np.array([frame.periodic for frame in batch], bool).reshape(-1, 3)
    mass: Any = np.ones((len(batch), size), dtype)
    fixed: Any = np.zeros((len(batch), size), bool)
    for row, frame in enumerate(batch):
        atoms = len(frame.numbers)
        if atoms > size:
            raise InputError(f"frame {row} has {atoms} atoms; there is room for {size}")
        position[row, :atoms] = frame.position
        species[row, :atoms] = _rows(frame.numbers, table)
        cell[row] = frame.lattice
        mass[row, :atoms] = frame.mass
        fixed[row, :atoms] = frame.fixed
    charges: Any = np.array([charge if frame.charge is None else frame.charge for frame in batch], np.int32)
    spins: Any = np.array([spin if frame.spin is None else frame.spin for frame in batch], np.int32)
    return Structure(position, species, cell, periodic, mass, fixed, charges, spins)


def to_frame(structure: Structure, table: Table, label: Label | None = None, reference: Any = None) -> Frame:
    """One unbatched structure as a frame without its padding, with its label where there is one.

    `reference` [s] in eV are the energies of the species that the label's energy is relative to (default: none).
    """
    species = np.asarray(structure.species)
    real = species >= 0
    cell, periodic = np.asarray(structure.cell, np.float64), np.asarray(structure.periodic)
    numeric = None
    if label is not None:
        offset = 0.0 if reference is None else float(np.sum(np.asarray(reference)[species[real]]))
        force, stress = np.asarray(label.force, np.float64)[real], np.asarray(label.stress, np.float64)
        volume = periodic.any() and abs(np.linalg.det(cell)) > lattice.FLAT
        numeric = Numbers(float(label.energy) + offset, force, stress if volume else np.full((3, 3), np.nan))
    numbers = np.asarray(table, np.int64)[species[real]]
    position, mass, fixed = (np.asarray(x)[real] for x in (structure.position, structure.mass, structure.fixed))
    electrons = int(structure.charge), int(structure.spin)
    return frames.bare(numbers, position, cell, periodic, mass, fixed, *electrons, numeric)


def to_atoms(structure: Structure, table: Table) -> ase.Atoms:
    """One unbatched structure as ASE's atoms, without its padding; charge and spin go into `info`."""
    return frames.to_atoms(to_frame(structure, table))


def labels_of(batch: Sequence[Frame], size: int | None = None) -> Label:
    """Energies, forces and stresses that can be learned from, padded, float64; NaN where absent, zero in padding."""
    size = size or max(len(frame.numbers) for frame in batch)
    energy: Any = np.zeros(len(batch))
    force: Any = np.zeros((len(batch), size, 3))
    stress: Any = np.zeros((len(batch), 3, 3))
    for row, frame in enumerate(batch):
        energy[row], force[row, : len(frame.numbers)], stress[row] = frame.label
    ok: Any = np.ones(len(batch), bool)
    return Label(energy, force, stress, ok)


def shares_of(batch: Sequence[Frame]) -> np.ndarray:
    """What each frame's energy, forces and stress count in the loss, [b 3]."""
    return np.array([frame.share for frame in batch], float)
