"""Vibrations of a structure on a finished model: exact Hessian, frequencies, and what thermochemistry makes of them."""

from typing import Any, NamedTuple

import ase
import numpy as np
from ase import units
from ase.thermochemistry import HarmonicThermo, IdealGasThermo
from jaxtyping import Bool, Float

from jaxal.core.errors import InputError
from jaxal.data.frames import fixed_atoms
from jaxal.deploy import model as models
from jaxal.deploy.structures import electrons_of
from jaxal.simulate.surface import Expansion, expander, in_double, minimized

# eV of the quantum of an oscillator whose curvature is 1 eV/(Å^2 amu)
QUANTUM = units._hbar * units.m / np.sqrt(units._e * units._amu)
RELAXED, RELAXATIONS = 1e-3, 500  # eV/Å and steps of a minimization


class Vibrations(NamedTuple):
    """Vibrations [k] of a structure, the softest first; numpy, float64.

    Quanta of imaginary frequencies are negative. `spread` is the standard deviation of the members' at this structure.
    """

    quanta: Float[np.ndarray, "k"]  # eV
    spread: Float[np.ndarray, "k"]  # eV; NaN of a single member
    modes: Float[np.ndarray, "k n 3"]  # displacements of the atoms, of unit length
    energy: float  # eV, total
    force: float  # eV/Å, the largest on a free atom

    @property
    def wavenumbers(self) -> Float[np.ndarray, "k"]:
        """1/cm."""
        return self.quanta / units.invcm

    @property
    def imaginary(self) -> int:
        """How many frequencies are."""
        return int(np.sum(self.quanta < 0))


class Thermochemistry(NamedTuple):
    """At a temperature, of the harmonic oscillator, and of the rigid rotor and ideal gas where nothing holds it; eV."""

    temperature: float  # K
    pressure: float | None  # bar, of the ideal gas; None: there is none
    zero_point: float
    entropy: float  # eV/K
    free: float  # Gibbs' with a pressure, else Helmholtz', potential energy included


def motions(atoms: ase.Atoms) -> tuple[Float[np.ndarray, "3n k"], Bool[np.ndarray, "n"]]:
    """An orthonormal basis of displacements, weighted by the roots of the masses, without those of the whole; and which
    atoms are free.

    Translations are left out where no atom is fixed, rotations where nothing is periodic, too.
    """
    free = ~fixed_atoms(atoms)
    if not free.any():
        raise InputError("atoms: all are fixed; leave at least one free to move")
    root = np.sqrt(atoms.get_masses())
    rows = np.repeat(free, 3)
    whole: list[np.ndarray] = []
    if free.all():
        whole += [np.kron(root, unit) for unit in np.eye(3)]
        if not atoms.pbc.any():
            place = atoms.positions - atoms.get_center_of_mass()
            whole += [(root[:, None] * np.cross(unit, place)).ravel() for unit in np.eye(3)]
    span = np.zeros((rows.size, 0))
    if whole:
        left, size, _ = np.linalg.svd(np.array(whole).T, full_matrices=False)
        span = left[:, size > 1e-6 * size.max()]  # the rotation around the axis of a line is none
    inner = np.eye(rows.size)[:, rows] - span @ span.T[:, rows]
    left, size, _ = np.linalg.svd(inner, full_matrices=False)
    return left[:, size > 0.5], free


def of(atoms: ase.Atoms, expansion: Expansion, reference: float = 0.0) -> Vibrations:
    """The vibrations of a structure from its expansion by member, or that of the mean."""
    basis, free = motions(atoms)
    root = np.repeat(np.sqrt(atoms.get_masses()), 3)
    mean = expansion.hessian.mean(axis=0)

    def curvatures(hessian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.linalg.eigh(basis.T @ (hessian / np.outer(root, root)) @ basis)

    values, vectors = curvatures(mean)
    modes = (basis @ vectors).T / root
    modes /= np.linalg.norm(modes, axis=1, keepdims=True)
    quanta = _quanta(values)
    spread = np.full(len(quanta), np.nan)
    if len(expansion.hessian) > 1:
        spread = np.std([_quanta(curvatures(hessian)[0]) for hessian in expansion.hessian], axis=0)
    force = float(np.linalg.norm(expansion.force.mean(axis=0)[free], axis=-1).max())
    energy = float(expansion.energy.mean()) + reference
    return Vibrations(quanta, spread, modes.reshape(-1, len(atoms), 3), energy, force)


def _quanta(curvatures: np.ndarray) -> np.ndarray:
    return QUANTUM * np.sign(curvatures) * np.sqrt(np.abs(curvatures))


def reference_of(model: models.Model, atoms: ase.Atoms) -> float:
    """The sum of the reference energies of the atoms, eV."""
    return float(model.reference[np.searchsorted(model.table, atoms.numbers)].sum())


def relaxed(model: models.Model, atoms: ase.Atoms) -> ase.Atoms:
    """The nearest minimum. Raises InputError where it is not reached."""
    return minimized(in_double(model), atoms, RELAXED, RELAXATIONS, "STRUCTURE")


def vibrations(model: models.Model, atoms: ase.Atoms) -> Vibrations:
    """The vibrations of a structure on a model, which should be a stationary point."""
    return of(atoms, expander(model, each=True)(atoms), reference_of(model, atoms))


def thermochemistry(
    model: models.Model, atoms: ase.Atoms, oscillators: Vibrations, temperature: float, pressure: float, symmetry: int
) -> Thermochemistry:
    """What the frequencies that are not imaginary make of the energy, by ASE.

    `pressure` in bar and the `symmetry` number count for open structures without fixed atoms.
    """
    quanta: Any = oscillators.quanta[oscillators.quanta > 0]
    zero_point = 0.5 * float(quanta.sum())
    if atoms.pbc.any() or fixed_atoms(atoms).any():
        harmonic: Any = HarmonicThermo(quanta, oscillators.energy)
        entropy = float(harmonic.get_entropy(temperature, verbose=False))
        free_energy = float(harmonic.get_helmholtz_energy(temperature, verbose=False))
        return Thermochemistry(temperature, None, zero_point, entropy, free_energy)
    line = len(oscillators.quanta) == 3 * len(atoms) - 5
    shape = "monatomic" if len(atoms) == 1 else "linear" if line else "nonlinear"
    gas: Any = IdealGasThermo(
        vib_energies=[quantum if quantum > 0 else -1j * quantum for quantum in oscillators.quanta],
        geometry=shape,
        potentialenergy=oscillators.energy,
        atoms=atoms,
        symmetrynumber=symmetry,
        spin=electrons_of(atoms, model)[1] / 2,
        ignore_imag_modes=True,
    )
    pascal = 1e5 * pressure
    entropy = float(gas.get_entropy(temperature, pascal, verbose=False))
    free_energy = float(gas.get_gibbs_energy(temperature, pascal, verbose=False))
    return Thermochemistry(temperature, pressure, zero_point, entropy, free_energy)
