"""What a silicon crystal of eight atoms answers to strain and to a push, the same way for any ASE calculator."""

from typing import Any, NamedTuple

import ase.units
import numpy as np
from ase.build import bulk
from ase.eos import EquationOfState

LATTICE = 5.47  # Å, near PBE's own
STRAIN, PUSH = 0.01, 0.02  # of the elastic constants; Å


class Elastic(NamedTuple):
    """Figures of the perfect crystal."""

    lattice: float  # Å, of zero pressure, from energies
    bulk_modulus: float  # GPa, from the same energies
    c11: float  # GPa, from stresses under strain
    c12: float  # GPa
    c44: float  # GPa, the atoms held where the strain puts them
    optical: float  # THz, the phonon at the zone center


def elastic(calculator: Any) -> Elastic:
    """The figures of a calculator, from seven volumes (Birch-Murnaghan), then four strained and two pushed cells."""
    crystal = bulk("Si", "diamond", a=LATTICE, cubic=True)
    crystal.calc = calculator
    volumes, energies = [], []
    for scale in np.linspace(0.98, 1.02, 7):
        atoms = crystal.copy()
        atoms.set_cell(crystal.cell.array * scale, scale_atoms=True)
        atoms.calc = calculator
        volumes.append(atoms.get_volume())
        energies.append(atoms.get_potential_energy())
    volume, _, modulus = EquationOfState(volumes, energies, eos="birchmurnaghan").fit()
    edge = float(volume ** (1 / 3))

    def stress(strain: np.ndarray) -> np.ndarray:
        atoms = crystal.copy()
        atoms.set_cell(edge * (np.eye(3) + strain), scale_atoms=True)
        atoms.calc = calculator
        return atoms.get_stress(voigt=False)

    slope = {}
    for name, shape in (("xx", np.diag([1.0, 0, 0])), ("yz", np.array([[0, 0, 0], [0, 0, 0.5], [0, 0.5, 0]]))):
        slope[name] = (stress(STRAIN * shape) - stress(-STRAIN * shape)) / (2 * STRAIN)
    force = 0.0
    sublattice = np.arange(8) % 2 == 1  # ASE's order of the diamond cell: the two sublattices in turn
    for sign in (1.0, -1.0):
        atoms = crystal.copy()
        atoms.set_cell(edge * np.eye(3), scale_atoms=True)
        atoms.positions[sublattice, 0] += sign * PUSH
        atoms.calc = calculator
        force -= sign * float(atoms.get_forces()[sublattice, 0].mean()) / (2 * PUSH)
    # both sublattices move against each other: half of a mass on each spring
    rate = np.sqrt(force / (crystal.get_masses()[0] / 2)) / (2 * np.pi)  # of ASE's unit of time
    return Elastic(
        edge,
        float(modulus / ase.units.GPa),
        float(slope["xx"][0, 0] / ase.units.GPa),
        float((slope["xx"][1, 1] + slope["xx"][2, 2]) / 2 / ase.units.GPa),
        float(slope["yz"][1, 2] / ase.units.GPa),
        float(rate * ase.units.fs * 1e3),
    )
