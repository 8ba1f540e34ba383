"""What the stubs of licensed programs calculate, and the ways in which they go wrong. No part of jaxal is imported.

Nor is what takes long to import: a hundred tests start a stub each.
"""

import itertools
import os
import signal
import sys
import time

import numpy as np
from ase import Atoms

ENOUGH = 5  # iterations; fewer do not converge
SIZE, WIDTH, REACH = 2.0, 1.2, 6.5  # eV, Å, and Å beyond which a Gaussian is nothing


def calculated(atoms: Atoms, charge: int, spin: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy (eV) with 1 eV for each charge and 0.1 eV for each unpaired electron, forces (eV/Å), stress (eV/Å^3).

    A Gaussian of each distance, of atoms and their images.
    """
    shifts, volume = [np.zeros(3)], 1.0
    if atoms.pbc.any():
        cell = atoms.cell.array
        volume = abs(float(np.linalg.det(cell)))
        heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
        counts = [
            int(np.ceil(REACH / height)) + 1 if periodic else 0
            for height, periodic in zip(heights, atoms.pbc, strict=True)
        ]
        shifts = [np.array(n) @ cell for n in itertools.product(*(range(-count, count + 1) for count in counts))]
    position = atoms.get_positions(wrap=bool(atoms.pbc.any()))
    vector = position[None, :, None] + np.array(shifts) - position[:, None, None]
    square = np.sum(vector**2, axis=-1)
    each = np.where(square > 0, SIZE * np.exp(-square / WIDTH**2), 0.0)
    slope = -2 / WIDTH**2 * each[..., None] * vector
    stress = 0.5 * np.einsum("ijsx,ijsy->xy", vector, slope) / volume if atoms.pbc.all() else np.zeros((3, 3))
    return 0.5 * float(each.sum()) + charge + 0.1 * spin, slope.sum(axis=(1, 2)), stress


def misbehave(how: str) -> None:
    """Ends or hangs the process where `how` says so."""
    if how == "status":
        sys.exit("no license for this host")
    if how == "signal":
        os.kill(os.getpid(), signal.SIGSEGV)
    if how == "hang":
        time.sleep(600)


def spoiled(text: str, how: str) -> str:
    """An output file as it is after an accident: cut off in the middle, or empty."""
    return {"truncated": text[: len(text) // 2], "empty": ""}.get(how, text)


def numbers(force: np.ndarray, how: str) -> np.ndarray:
    """Forces as they are, or not numbers."""
    return force * np.nan if how == "nan" else force


def turned(atoms: Atoms, how: str) -> Atoms:
    """The atoms as they are, or in another frame."""
    atoms = atoms.copy()
    if how == "turned":
        atoms.positions = atoms.positions[:, [1, 2, 0]]
    return atoms
