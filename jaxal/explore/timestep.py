"""How long a time step the bonds of a structure bear, before any potential is known."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import ase
import numpy as np
from ase.data import chemical_symbols, covalent_radii
from ase.neighborlist import neighbor_list

from jaxal.core.units import TIME_UNIT
from jaxal.data.frames import fixed_atoms

FEWEST = 5  # steps in the shortest period; with fewer, Verlet's frequency is off by more than 7 %
ENOUGH = 10  # then it is off by less than 2 %
BONDED = 1.3  # of the sum of two covalent radii
MILLIDYNE = 6.241509  # eV/Å^2 in 1 mdyn/Å
NOBLE = (2, 10, 18, 36, 54, 86)
# Badger's d, Å, by the rows of the periodic table of two bonded atoms: hydrogen, the first row after it, all below
BADGER = np.array([[0.025, 0.335, 0.585], [0.335, 0.680, 0.900], [0.585, 0.900, 1.180]])


class Stretch(NamedTuple):
    """The fastest vibration of a structure, by estimate."""

    period: float  # fs
    elements: str  # such as O-H


def fastest(starts: Sequence[ase.Atoms]) -> Stretch | None:
    """The stretch with the shortest period among the bonds of these structures; None where no atom is to be bonded.

    The force constant is Badger's, k = 1.86 mdyn Å^2 / (r - d)^3, which knows of an element only its row of the
    periodic table, and stiff bonds from their length: within some 15 % of what is measured for H2, O-H, C-H, C=O, N2.
    The reduced mass is that of the structure's own masses; fixed atoms are infinitely heavy. An atom that is not
    bonded, but for noble gases, is taken to be bonded to any of the others. Badger, J. Chem. Phys. 3, 710 (1935).
    """
    return min((stretch for atoms in starts for stretch in _stretches(atoms)), default=None)


def too_long(starts: Sequence[ase.Atoms], timestep: float) -> str:
    """Why a time step (fs) is too long for the bonds of these structures, and what would do; empty where it is not."""
    stretch = fastest(starts)
    if stretch is None or timestep <= stretch.period / FEWEST:
        return ""
    limit = stretch.period / np.pi  # 2 / omega
    more = "velocity Verlet diverges beyond" if timestep > limit else "velocity Verlet's limit is"
    return (
        f"{timestep:g} fs is long for the {stretch.elements} stretch, whose period is about {stretch.period:.1f} fs; "
        f"{more} {limit:.1f} fs, give at most {stretch.period / ENOUGH:.1f} fs"
    )


def _stretches(atoms: ase.Atoms) -> Iterator[Stretch]:
    numbers, radii = atoms.numbers, covalent_radii[atoms.numbers]
    inverse = np.where(fixed_atoms(atoms), 0.0, 1.0 / atoms.get_masses())  # 1/amu
    first, second, distance = neighbor_list("ijd", atoms, BONDED * radii)
    for i, j, r in zip(first, second, distance, strict=True):
        yield from _stretch(int(numbers[i]), int(numbers[j]), float(inverse[i] + inverse[j]), float(r))
    loose = np.setdiff1d(np.flatnonzero(~np.isin(numbers, NOBLE)), first)
    kinds, count = np.unique(np.stack([numbers, inverse], axis=1)[~np.isin(numbers, NOBLE)], axis=0, return_counts=True)
    for z, weight in np.unique(np.stack([numbers, inverse], axis=1)[loose], axis=0):
        for (other, its), number in zip(kinds, count, strict=True):
            if number > 1 or (other, its) != (z, weight):
                between = 1.15 * (covalent_radii[int(z)] + covalent_radii[int(other)])
                yield from _stretch(int(z), int(other), weight + its, between)


def _stretch(z: int, other: int, inverse: float, distance: float) -> Iterator[Stretch]:
    """One bond, of its atomic numbers, inverse reduced mass (1/amu) and length (Å); none between fixed atoms."""
    if inverse > 0:
        rows = [0 if number <= 2 else 1 if number <= 10 else 2 for number in (z, other)]
        stiffness = 1.86 * MILLIDYNE / max(distance - BADGER[rows[0], rows[1]], 0.3) ** 3
        heavy, light = sorted((int(z), int(other)), reverse=True)
        elements = f"{chemical_symbols[heavy]}-{chemical_symbols[light]}"
        yield Stretch(float(2 * np.pi * TIME_UNIT / np.sqrt(stiffness * inverse)), elements)
