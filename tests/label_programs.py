"""Structures and a program that the tests of labelers share."""

import sys
import textwrap
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk, molecule

from jaxal.label.task import Task


def task_of(atoms: Atoms, charge=0, spin=0) -> Task:
    return Task(atoms.numbers, atoms.positions.copy(), np.array(atoms.cell), charge, spin)


def rattled(atoms: Atoms, size=0.05) -> Atoms:
    atoms.positions += np.random.default_rng(0).normal(size=atoms.positions.shape) * size
    return atoms


WATER = task_of(rattled(molecule("H2O")))
HYDROGEN = task_of(Atoms("H2", [[0, 0, 0], [0.05, 0.1, 0.8]]))
SILICON = task_of(rattled(bulk("Si", "diamond", 5.2), 0.1))
COPPER = task_of(rattled(bulk("Cu", cubic=True), 0.1))

# A calculation by ASE's EMT (effective medium theory), as a user would write it.
EMT = """
import sys
from ase.io import read, write
from ase.calculators.emt import EMT
atoms = read(sys.argv[1])
atoms.calc = EMT()
atoms.get_potential_energy(), atoms.get_forces()
if any(atoms.pbc):
    atoms.get_stress()
if "stop" in sys.argv:
    sys.exit("it did not converge")
write(sys.argv[2], atoms)
"""


def script(text: str, *more: str) -> dict[str, Any]:
    """Options of `command` for a Python program."""
    return {
        "command": [sys.executable, "-c", textwrap.dedent(text), "{input}", "{output}", *more],
        "method": "a script of the tests",
    }
