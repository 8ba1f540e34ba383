"""How far predictions are from the reference: energies, forces and stresses, overall and per element.

Host side, numpy, float64. Everything in eV and Å; `Statistic` is per component for forces and stresses, as
is usual in the field.
"""

from typing import Any, NamedTuple

import numpy as np
from ase.data import chemical_symbols

from jaxal.core.types import Label, Structure
from jaxal.data.lattice import components
from jaxal.data.structure import Table


class Statistic(NamedTuple):
    """Mean absolute, root mean square and largest absolute deviation of `count` numbers; NaN where there are none."""

    mae: float
    rmse: float
    largest: float
    count: int


class Errors(NamedTuple):
    """Deviations of predictions from the reference.

    `energy_shifted` is after the mean deviation of each composition is taken out: what matters to energy
    differences. Compositions of which there is but one structure do not count in it.
    """

    energy: Statistic  # eV/atom
    energy_shifted: Statistic  # eV/atom
    force: Statistic  # eV/Å, per component
    # eV/Å^3, per component of the symmetric matrix in the directions that repeat; no numbers where none does
    stress: Statistic
    elements: dict[str, Statistic]  # symbol -> eV/Å, per component
    structures: int
    compositions: int


def statistic(deviation: np.ndarray) -> Statistic:
    """Statistic of all finite numbers in an array."""
    values = np.asarray(deviation, np.float64)
    values = values[np.isfinite(values)]
    if values.size == 0:
        return Statistic(np.nan, np.nan, np.nan, 0)
    size = np.abs(values)
    return Statistic(float(size.mean()), float(np.sqrt(np.mean(values**2))), float(size.max()), int(values.size))


def compositions(species: np.ndarray, table: Table) -> np.ndarray:
    """Number of the composition of each structure, [b]: equal where the same atoms occur equally often."""
    counts = np.stack([np.sum(species == row, axis=-1) for row in range(len(table))], axis=-1)
    return np.unique(counts, axis=0, return_inverse=True)[1].reshape(-1)


def compare(predicted: Label, reference: Label, structure: Structure, table: Table) -> Errors:
    """Errors of predicted total energies [b], forces [b n 3] and stresses [b 3 3] against reference labels.

    Structures whose reference or prediction is not ok are left out; so are stresses that are not finite and
    those of structures that do not repeat, or whose cell has no volume.
    """
    ok = np.asarray(predicted.ok) & np.asarray(reference.ok)
    species = np.asarray(structure.species)[ok]
    real = species >= 0
    group = compositions(species, table)
    energy = np.asarray(predicted.energy, np.float64)[ok] - np.asarray(reference.energy, np.float64)[ok]
    shifted = np.full_like(energy, np.nan)
    for number in np.unique(group):
        members = group == number
        if members.sum() > 1:
            shifted[members] = energy[members] - energy[members].mean()
    atoms = np.maximum(real.sum(axis=-1), 1)
    force = np.asarray(predicted.force, np.float64)[ok] - np.asarray(reference.force, np.float64)[ok]
    stress = np.asarray(predicted.stress, np.float64)[ok] - np.asarray(reference.stress, np.float64)[ok]
    return Errors(
        energy=statistic(energy / atoms),
        energy_shifted=statistic(shifted / atoms),
        force=statistic(force[real]),
        stress=statistic(components(stress, np.asarray(structure.cell)[ok], np.asarray(structure.periodic)[ok])),
        elements={
            chemical_symbols[number]: statistic(force[species == row])
            for row, number in enumerate(table)
            if np.any(species == row)
        },
        structures=int(ok.sum()),
        compositions=len(np.unique(group)),
    )


def atom_errors(predicted: Any, reference: Any, species: np.ndarray) -> np.ndarray:
    """Length of each atom's force error, eV/Å, [b n]; zero at padding, NaN where the reference is not known."""
    length = np.linalg.norm(np.asarray(predicted, np.float64) - np.asarray(reference, np.float64), axis=-1)
    return np.where(species >= 0, length, 0.0)
