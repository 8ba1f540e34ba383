"""The bond graph of a structure: which atoms are bonded and which molecules there are. Host side, numpy, ASE."""

import ase
import numpy as np
from ase.data import covalent_radii
from scipy.sparse.csgraph import connected_components


def bonds(atoms: ase.Atoms, stretch: float = 1.3) -> np.ndarray:
    """Which pairs of atoms (nearest images) are closer than `stretch` times the sum of their covalent radii, [n n]."""
    radii = covalent_radii[atoms.numbers]
    distance = atoms.get_all_distances(mic=bool(atoms.pbc.any()))
    return (distance < stretch * (radii[:, None] + radii[None])) & ~np.eye(len(atoms), dtype=bool)


def fragments(atoms: ase.Atoms, stretch: float = 1.3) -> np.ndarray:
    """Number of the molecule that each atom belongs to, [n], numbered by their first atoms."""
    labels = connected_components(bonds(atoms, stretch), directed=False)[1]
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def same_skeleton(atoms: ase.Atoms, other: ase.Atoms, stretch: float = 1.6) -> bool:
    """Whether both hold the same molecules: no atom has left one or joined another, none has broken apart.

    Bonds within a molecule may change, so a hydrogen may pass from one of its atoms to the next. The wide
    default `stretch` tells hot vibrations from broken bonds.
    """
    return np.array_equal(fragments(atoms, stretch), fragments(other, stretch))
