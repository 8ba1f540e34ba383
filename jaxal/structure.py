"""Structures in and out: ASE and extended XYZ on one side, padded arrays on the other.

Host side, numpy only. A species table is the sorted tuple of atomic numbers that a model knows; species are
stored as rows of it, -1 for padding.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
from ase.constraints import FixAtoms
from ase.data import atomic_masses, chemical_symbols, covalent_radii
from ase.neighborlist import neighbor_list

from jaxal import extxyz
from jaxal.types import InputError, Label, Structure

Table = tuple[int, ...]
# No reference method labels more, and a committee on several walkers has no memory for them.
MOST_ATOMS = 10_000
NEAREST = 0.2  # of the sum of two atoms' covalent radii: 0.12 Å for H2, far below what any dynamics visits


def species_table(frames: Sequence[ase.Atoms]) -> Table:
    """Sorted atomic numbers that occur in the frames."""
    return tuple(sorted({int(z) for atoms in frames for z in atoms.numbers}))


def masses(table: Table) -> np.ndarray:
    """Atomic masses of the table's rows, amu."""
    return atomic_masses[list(table)]


def read_frames(path: str | Path, index: str = ":") -> list[ase.Atoms]:
    """Frames of any file ASE reads, in order.

    Raises InputError for a missing or unreadable file, and for one or two periodic directions, which have
    no counterpart in the program.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    if reason := extxyz.damage(path):
        raise InputError(f"{path}: {reason}")
    try:
        frames = ase.io.read(path, index=index)
    except Exception as error:  # ASE's readers raise anything at all
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise InputError(f"{path}: ASE cannot read it ({reason})") from error
    frames = frames if isinstance(frames, list) else [frames]
    if not frames:
        raise InputError(f"{path}: holds no structure")
    for number, atoms in enumerate(frames):
        if len(atoms) == 0:
            raise InputError(f"{path}: frame {number} has no atoms")
        if len(atoms) > MOST_ATOMS:
            raise InputError(f"{path}: frame {number} has {len(atoms)} atoms; give at most {MOST_ATOMS}")
        if not np.all(np.isfinite(atoms.positions)):
            raise InputError(f"{path}: frame {number} has a position that is not a finite number")
        if not np.all(np.isfinite(atoms.cell.array)):
            raise InputError(f"{path}: frame {number} has a lattice vector that is not a finite number")
        if atoms.pbc.any() and not atoms.pbc.all():
            raise InputError(
                f"{path}: frame {number} is periodic in {int(atoms.pbc.sum())} directions; use none or three "
                "(for a slab: three, with vacuum in the cell)"
            )
        if atoms.pbc.all() and abs(atoms.cell.volume) < 1e-6:
            raise InputError(f"{path}: frame {number} is periodic but its cell has no volume; give Lattice=...")
    return frames


def overlap(atoms: ase.Atoms, closest: float) -> str:
    """Which two atoms are nearer than this part of the sum of their covalent radii, in words; empty where none are.

    Periodic images count. What a reference method says of such a frame is nonsense, if it says anything.
    """
    part = max(closest, NEAREST)
    first, second, distance = neighbor_list("ijd", atoms, part * covalent_radii[atoms.numbers])
    if len(distance) == 0:
        return ""
    worst = int(np.argmin(distance))
    i, j = int(first[worst]), int(second[worst])
    names = f"atoms {i} ({chemical_symbols[atoms.numbers[i]]}) and {j} ({chemical_symbols[atoms.numbers[j]]})"
    return f"{names} are {distance[worst]:.3g} Å apart, less than {part:g} of the sum of their covalent radii"


def _rows(numbers: np.ndarray, table: Table) -> np.ndarray:
    missing = sorted({int(z) for z in numbers} - set(table))
    if missing:
        raise InputError(
            f"element {', '.join(chemical_symbols[z] for z in missing)} is not among those of the model "
            f"({', '.join(chemical_symbols[z] for z in table)})"
        )
    return np.searchsorted(np.asarray(table), numbers)


def from_atoms(
    frames: ase.Atoms | Sequence[ase.Atoms],
    table: Table,
    charge: int = 0,
    spin: int = 0,
    size: int | None = None,
    dtype: Any = np.float32,
) -> Structure:
    """One structure, or a batch [b] padded to `size` atoms (the largest by default), as numpy arrays.

    `charge` (e) and `spin` (unpaired electrons) hold where a frame's info has no `charge` or `spin`.
    Raises InputError for an element outside the table, and for a frame that `size` has no room for.
    """
    if isinstance(frames, ase.Atoms):
        batch = from_atoms([frames], table, charge, spin, size, dtype)
        return Structure(*(leaf[0] for leaf in batch))
    size = size or max(len(atoms) for atoms in frames)
    position: Any = np.zeros((len(frames), size, 3), dtype)  # Any: the host's Structure holds numpy arrays
    species: Any = np.full((len(frames), size), -1, np.int32)
    cell: Any = np.zeros((len(frames), 3, 3), dtype)
    mass: Any = np.ones((len(frames), size), dtype)
    fixed: Any = np.zeros((len(frames), size), bool)
    for row, atoms in enumerate(frames):
        if len(atoms) > size:
            raise InputError(f"frame {row} has {len(atoms)} atoms; there is room for {size}")
        position[row, : len(atoms)] = atoms.positions
        species[row, : len(atoms)] = _rows(atoms.numbers, table)
        if atoms.pbc.all():
            cell[row] = atoms.cell.array
        mass[row, : len(atoms)] = atoms.get_masses()
        fixed[row, : len(atoms)] = fixed_atoms(atoms)
    charges: Any = np.array([electrons(atoms, "charge", charge, row) for row, atoms in enumerate(frames)], np.int32)
    spins: Any = np.array([electrons(atoms, "spin", spin, row) for row, atoms in enumerate(frames)], np.int32)
    return Structure(position, species, cell, mass, fixed, charges, spins)


def electrons(atoms: ase.Atoms, name: str, default: int = 0, row: int = 0) -> int:
    """Charge (e) or spin (unpaired electrons) of a frame: its info's, or the default.

    Raises InputError, with the number of the frame, for what is no whole number.
    """
    value = atoms.info.get(name, default)
    try:
        whole = int(value)
        right = whole == float(value) and abs(whole) < 10**6
    except (TypeError, ValueError, OverflowError):
        right = False
    if not right:
        raise InputError(f"frame {row}: {name} {str(value)[:30]!r} is not a whole number")
    return int(value)


def fixed_atoms(atoms: ase.Atoms) -> np.ndarray:
    """Which atoms the frame's FixAtoms hold in place, [n] bool."""
    fixed = np.zeros(len(atoms), bool)
    for constraint in atoms.constraints:
        if isinstance(constraint, FixAtoms):
            fixed[constraint.index] = True
    return fixed


def to_atoms(structure: Structure, table: Table) -> ase.Atoms:
    """One unbatched structure as ASE atoms, without its padding; charge and spin go into `info`."""
    species = np.asarray(structure.species)
    real = species >= 0
    cell = np.asarray(structure.cell, np.float64)
    periodic = bool(np.any(cell != 0))
    fixed = np.flatnonzero(np.asarray(structure.fixed)[real])
    return ase.Atoms(
        numbers=np.asarray(table)[species[real]],
        positions=np.asarray(structure.position, np.float64)[real],
        masses=np.asarray(structure.mass, np.float64)[real],
        cell=cell if periodic else None,
        pbc=periodic,
        constraint=FixAtoms(fixed) if len(fixed) else None,
        info={"charge": int(structure.charge), "spin": int(structure.spin)},
    )


def read_labels(
    frames: Sequence[ase.Atoms], size: int | None = None, source: str = "data", forces: bool = True
) -> Label:
    """Energies, forces and stresses that the frames carry, padded, float64; stress is NaN where absent.

    Reads ASE's calculator results, else `REF_energy`/`energy` in info and `REF_forces`/`forces` in arrays. Without
    `forces` they are not read, and zero. Raises InputError that names the frame without energy or forces.
    """
    size = size or max(len(atoms) for atoms in frames)
    energy: Any = np.zeros(len(frames))
    force: Any = np.zeros((len(frames), size, 3))
    stress: Any = np.zeros((len(frames), 3, 3))
    for row, atoms in enumerate(frames):
        results = atoms.calc.results if atoms.calc is not None else {}
        found: dict[str, Any] = {
            "energy": results.get("energy"),
            "forces": results.get("forces"),
            "stress": results.get("stress"),
        }
        for name, store in (("energy", atoms.info), ("forces", atoms.arrays), ("stress", atoms.info)):
            for key in (f"REF_{name}", name):
                if found[name] is None and key in store:
                    found[name] = store[key]
        for name in ("energy", "forces") if forces else ("energy",):
            if found[name] is None:
                raise InputError(f"{source}: frame {row} carries no {name}; give `{name}` or `REF_{name}`")
        energy[row] = float(found["energy"])
        if forces:
            force[row, : len(atoms)] = found["forces"]
        if found["stress"] is not None:
            value = np.asarray(found["stress"], float)
            stress[row] = value.reshape(3, 3) if value.size == 9 else voigt_to_matrix(value)
        elif atoms.pbc.all():
            stress[row] = np.nan
    ok: Any = np.ones(len(frames), bool)
    return Label(energy, force, stress, ok)


def voigt_to_matrix(stress: np.ndarray) -> np.ndarray:
    """ASE's xx yy zz yz xz xy as a symmetric [3, 3] matrix."""
    xx, yy, zz, yz, xz, xy = stress
    return np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])


def matrix_to_voigt(stress: np.ndarray) -> np.ndarray:
    """The six independent components in ASE's order xx yy zz yz xz xy."""
    return np.array([stress[0, 0], stress[1, 1], stress[2, 2], stress[1, 2], stress[0, 2], stress[0, 1]])
