"""Tiny labeled data made here, and a tiny contest about them."""

from pathlib import Path

import numpy as np
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

CONTEST = """
potential: {cutoff: 3.0, channels: 2, l_max: 1, layers: 1, correlation: 1, radial: 4, radial_hidden: 0}
committee: {members: 2}
train: {initial_steps: 20, steps: 10, batch: 2, learning_rate: 0.01, holdout: 0.2}
budgets: [5, 8, 11]
seeds: 2
"""
WATER = "tasks: {water: {pool: water.xyz, test: test.xyz}}\n"


def frames(number: int, seed: int, crystal: bool = False) -> list:
    """Displaced water molecules, or strained cells of copper, with what effective medium theory says of them."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(number):
        atoms = bulk("Cu", cubic=True) if crystal else molecule("H2O")
        if crystal:
            atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.02 * rng.normal(size=(3, 3))), scale_atoms=True)
        atoms.positions += rng.normal(0, 0.08, atoms.positions.shape)
        atoms.calc = EMT()
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        if crystal:
            results["stress"] = atoms.get_stress()
        atoms.calc = SinglePointCalculator(atoms, **results)
        images.append(atoms)
    return images


def folder_of(path: Path, text: str = CONTEST + WATER) -> Path:
    """A folder with the data and, in contest.yaml, the contest."""
    path.mkdir(parents=True, exist_ok=True)
    write(path / "water.xyz", frames(40, 0), format="extxyz")
    write(path / "test.xyz", frames(12, 1), format="extxyz")
    (path / "contest.yaml").write_text(text)
    return path
