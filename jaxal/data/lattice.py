"""Cells and their periodic directions on the host: numpy, float64, without JAX. `jaxal.data.cell` is the device's side.

Rows of a cell are lattice vectors in Å. Rows along open directions hold what the user gave, a vacuum or zeros; they
count for volumes only.
"""

from collections.abc import Sequence

import numpy as np

FLAT = 1e-6  # Å, Å^2 or Å^3: lattice vectors that span less repeat nothing


def basis(cell: np.ndarray, periodic: np.ndarray) -> np.ndarray:
    """Orthonormal vectors [d 3] that span the d periodic directions; x, y and z where all are."""
    periodic = np.asarray(periodic, bool)
    if periodic.all():
        return np.eye(3)
    return np.linalg.qr(np.asarray(cell, float)[periodic].T)[0].T


def completed(cell: np.ndarray, periodic: np.ndarray) -> np.ndarray:
    """The cell with unit vectors in place of its open rows, orthogonal to the periodic ones and to each other."""
    periodic = np.asarray(periodic, bool)
    filled = np.array(cell, float)
    if not periodic.all():
        spanned = basis(cell, periodic)
        filled[~periodic] = np.linalg.svd(spanned)[2][len(spanned) :] if len(spanned) else np.eye(3)
    return filled


def inverse(cell: np.ndarray, periodic: np.ndarray) -> np.ndarray:
    """The inverse of the completed cell: vectors @ it are lattice vectors along periodic directions, Å along others."""
    return np.linalg.inv(completed(cell, periodic))


def heights(cell: np.ndarray, periodic: np.ndarray) -> np.ndarray:
    """Distances between the lattice planes of each direction, Å, [3]; infinite along open ones."""
    return np.where(periodic, 1 / np.linalg.norm(inverse(cell, periodic), axis=0), np.inf)


def spanned(cell: np.ndarray, periodic: np.ndarray) -> float:
    """Length, area or volume that the periodic vectors span, Å, Å^2 or Å^3; 1 of none."""
    return float(abs(np.linalg.det(completed(cell, periodic))))


def empty(position: np.ndarray, cell: np.ndarray, periodic: np.ndarray) -> np.ndarray:
    """The thickest layers without an atom [n 3] along the lattice planes of each direction, Å; infinite where open."""
    place = np.sort(position @ inverse(cell, periodic) % 1.0, axis=0)
    gaps = np.diff(np.concatenate([place, place[:1] + 1.0]), axis=0)
    return np.where(periodic, gaps.max(axis=0) * np.where(periodic, heights(cell, periodic), 0.0), np.inf)


def along_periodic(tensor: np.ndarray, cell: np.ndarray, periodic: np.ndarray) -> np.ndarray:
    """What a tensor [3 3] has in the directions that repeat, zero elsewhere; as it is where all do."""
    if np.all(periodic):
        return tensor
    axes = basis(cell, periodic)
    kept = axes.T @ axes
    return kept @ tensor @ kept


def components(tensors: np.ndarray, cells: np.ndarray, periodic: np.ndarray) -> np.ndarray:
    """All components that symmetric tensors [b 3 3] have in the directions that repeat: 6, 3 or 1 of each.

    None of a structure that does not repeat, or whose cell has no volume.
    """
    kept = [np.zeros(0)]
    for tensor, cell, repeats in zip(tensors, cells, periodic, strict=True):
        if np.any(repeats) and abs(np.linalg.det(cell)) > FLAT:
            axes = basis(cell, repeats)
            kept.append((axes @ tensor @ axes.T)[np.triu_indices(len(axes))])
    return np.concatenate(kept)


def named(periodic: np.ndarray) -> str:
    """The lattice vectors that repeat, such as "a, b"."""
    return ", ".join(name for name, repeats in zip("abc", periodic, strict=True) if repeats) or "none"


def letters(periodic: np.ndarray | Sequence[bool]) -> str:
    """Three letters, T or F: which lattice vectors repeat."""
    return "".join("T" if each else "F" for each in np.asarray(periodic, bool))
