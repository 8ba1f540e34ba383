"""What the stubs of licensed programs calculate, and the ways in which they go wrong. No part of jaxal is imported."""

import os
import signal
import sys
import time

import numpy as np
from ase import Atoms
from ase.calculators.morse import MorsePotential

ENOUGH = 5  # iterations; fewer do not converge


def calculated(atoms: Atoms, charge: int, spin: int) -> tuple[float, np.ndarray, np.ndarray]:
    """Energy (eV) with 1 eV for each charge and 0.1 eV for each unpaired electron, forces (eV/Å), stress (eV/Å^3)."""
    atoms = atoms.copy()
    atoms.calc = MorsePotential(epsilon=1.0, r0=1.2, rho0=2.0, rcut1=2.5, rcut2=3.5)
    energy = atoms.get_potential_energy() + charge + 0.1 * spin
    stress = atoms.get_stress(voigt=False) if atoms.pbc.all() else np.zeros((3, 3))
    return energy, atoms.get_forces(), stress


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
