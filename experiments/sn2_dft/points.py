"""Stationary points of Cl- + CH3Cl -> ClCH3 + Cl-, the same way for any ASE calculator.

Atoms are in the order C Cl H H H Cl. The reaction is its own reverse: both complexes have one energy, and between
them lies a saddle point with D3h symmetry, on which the carbon is flat between two chlorines equally far away.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import ase
import ase.units
import numpy as np
from ase.optimize import BFGS
from scipy.optimize import minimize

SYMBOLS = "CClHHHCl"
CARBON, FIRST, SECOND = 0, 1, 5  # both chlorines
FMAX = 2e-3  # eV/Å, of a relaxed structure
# Drawn: the methyl group in front of one chlorine, the other one behind it.
COMPLEX = [
    [0.0, 0.0, 0.0],
    [0.0, 0.0, 1.80],
    [1.03, 0.0, -0.33],
    [-0.515, 0.892, -0.33],
    [-0.515, -0.892, -0.33],
    [0.0, 0.0, -3.1],
]


class Points(NamedTuple):
    """Both stationary points with their energies (eV)."""

    complex: ase.Atoms
    complex_energy: float
    saddle: ase.Atoms
    saddle_energy: float

    @property
    def barrier(self) -> float:
        """From the complex to the saddle point, eV."""
        return self.saddle_energy - self.complex_energy


def points(calculator: Callable[[], Any]) -> Points:
    """Relaxed complex and saddle point. Raises RuntimeError where a force is left over."""
    bound = ase.Atoms(SYMBOLS, COMPLEX, calculator=calculator())
    if not BFGS(bound, logfile=None).run(fmax=FMAX, steps=300):
        raise RuntimeError("the complex did not relax in 300 steps")
    top = _saddle(calculator())
    return Points(bound, float(bound.get_potential_energy()), top, float(top.get_potential_energy()))


def _saddle(calculator: Any) -> ase.Atoms:
    """The lowest structure of D3h symmetry: downhill in the lengths of C-Cl and C-H, its only two coordinates."""
    along = np.zeros((6, 3))
    along[[FIRST, SECOND], 2] = 1.0, -1.0
    angles = 2 * np.pi * np.arange(3) / 3
    across = np.zeros((6, 3))
    across[2:5, :2] = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    atoms = ase.Atoms(SYMBOLS, np.zeros((6, 3)), calculator=calculator)

    def slope(lengths: np.ndarray) -> tuple[float, np.ndarray]:
        atoms.positions = lengths[0] * along + lengths[1] * across
        force = atoms.get_forces()
        return float(atoms.get_potential_energy()), -np.array([np.sum(force * along), np.sum(force * across)])

    optimum = minimize(slope, np.array([2.32, 1.075]), jac=True, method="BFGS", options={"gtol": FMAX})
    slope(optimum.x)
    left = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
    if left > 2 * FMAX:
        raise RuntimeError(f"a force of {left:.4f} eV/Å is left on the saddle point")
    return atoms


def wavenumbers(atoms: ase.Atoms, step: float = 0.01) -> np.ndarray:
    """Vibrations, 1/cm, lowest first; imaginary ones are negative. From central differences of the forces, `step` in Å.

    Translations and rotations are projected out of the Hessian.
    """
    calculator, place, size = atoms.calc, atoms.positions.copy(), 3 * len(atoms)
    hessian = np.zeros((size, size))
    for row in range(size):
        for sign in (1.0, -1.0):
            moved = place.copy()
            moved.flat[row] += sign * step
            there = ase.Atoms(atoms.numbers, moved, calculator=calculator)
            hessian[row] -= sign * there.get_forces().ravel() / (2 * step)
    weight = np.repeat(np.sqrt(atoms.get_masses()), 3)
    still = place - atoms.get_center_of_mass()
    rigid = [np.tile(axis, (len(atoms), 1)) for axis in np.eye(3)] + [np.cross(axis, still) for axis in np.eye(3)]
    basis = np.linalg.qr(np.stack([weight * motion.ravel() for motion in rigid], axis=1))[0]
    inner = np.eye(size) - basis @ basis.T
    values = np.linalg.eigvalsh(inner @ ((hessian + hessian.T) / 2 / np.outer(weight, weight)) @ inner)
    values = np.delete(values, np.argsort(np.abs(values))[:6])  # the six that were projected out
    # sqrt(eV/Å^2/amu) is an angular frequency in ASE's unit of time
    unit = ase.units._hbar * ase.units.s / ase.units._e / ase.units.invcm  # pyright: ignore[reportAttributeAccessIssue]
    return np.sign(values) * np.sqrt(np.abs(values)) * unit


def lengths(atoms: ase.Atoms) -> tuple[float, float]:
    """Both C-Cl distances, Å, the shorter one first."""
    a, b = sorted(float(atoms.get_distance(CARBON, other)) for other in (FIRST, SECOND))
    return a, b


def other_side(atoms: ase.Atoms) -> ase.Atoms:
    """The complex of the reverse reaction: mirrored along the axis, with the chlorines in each other's place."""
    order = np.arange(len(atoms))
    order[[FIRST, SECOND]] = SECOND, FIRST
    mirrored = atoms.copy()
    mirrored.calc = None
    mirrored.positions = (atoms.positions * [1.0, 1.0, -1.0])[order]
    return mirrored
