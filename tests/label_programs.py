"""Structures, a program, and the cases that every code is tried on, which the tests of labelers share."""

import os
import shutil
import subprocess
import sys
import textwrap
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from jaxal.label.task import Task


def task_of(atoms: Atoms, charge=0, spin=0) -> Task:
    return Task(atoms.numbers, atoms.positions.copy(), np.array(atoms.cell), np.array(atoms.pbc), charge, spin)


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


SHARE = Path(os.environ.get("JAXAL_TEST_SHARE", "/usr/share"))  # scripts/check.sh hides it
PSEUDO = SHARE / "espresso/pseudo"  # of Debian's package quantum-espresso-data
UPF = {"H": PSEUDO / "H.pbe-kjpaw.UPF", "Si": PSEUDO / "Si.pz-vbc.UPF"}
PSP8_FOLDER = SHARE / "abinit/psp"  # of Debian's package abinit-data
PSP8 = {"H": PSP8_FOLDER / "Pseudodojo_nc_sr_04_pbe_standard_psp8/H.psp8", "Si": PSP8_FOLDER / "Si.psp8"}
# What every file of pseudopotentials begins with, which is all that the check of a configuration reads.
HEADS = Path(__file__).parent / "golden" / "pseudopotentials"
PROGRAMS = {
    "xtb": "xtb",
    "espresso": "pw.x",
    "nwchem": "nwchem",
    "cp2k": "cp2k.psmp",
    "abinit": "abinit",
    "psi4": "psi4",
}
PROGRAMS["gpaw"] = os.environ.get("JAXAL_GPAW_PYTHON", sys.executable)  # scripts/install_codes.sh says it


@cache
def missing(name: str) -> str:
    """Why the backend cannot be tested here; empty if it can."""
    if name in PROGRAMS and shutil.which(PROGRAMS[name]) is None:
        return f"{PROGRAMS[name]} is not installed"
    if name == "espresso" and not all(file.exists() for file in UPF.values()):
        return f"there are no pseudopotentials in {PSEUDO}"
    if name == "abinit" and not all(file.exists() for file in PSP8.values()):
        return f"there are no pseudopotentials in {PSP8_FOLDER}"
    if (
        name == "gpaw"
        and subprocess.run([PROGRAMS[name], "-c", "from gpaw import __version__"], stderr=subprocess.DEVNULL).returncode
    ):
        return "JAXAL_GPAW_PYTHON names no Python that has GPAW"
    return ""


def needs(name: str):
    return pytest.mark.skipif(bool(missing(name)), reason=missing(name))


class Case(NamedTuple):
    name: str  # of the backend
    options: dict[str, Any]
    task: Task
    unconverged: dict[str, Any]  # options with which the SCF does not converge
    tolerance: float = 2e-3  # eV/Å
    stress: float = 0.0  # eV/Å^3, tolerance; 0 for an open system
    marks: tuple[pytest.MarkDecorator, ...] = ()


SLOW = (pytest.mark.slow,)


ULTRASOFT = {"pseudopotentials": {"H": UPF["H"]}, "ecutwfc": 20.0, "ecutrho": 120.0, "box": 8.0, "smearing": "none"}
# The stress is that of infinitely many plane waves: at a low cutoff it differs from the slope of the energy.
VALENCE = {"pseudopotentials": {"Si": UPF["Si"]}, "ecutwfc": 24.0, "k_points": (2, 2, 2)}
GAUSSIANS = {"cutoff": 200.0, "box": 7.0}
SMEARED = {"basis": "SZV-MOLOPT-SR-GTH", "cutoff": 80.0, "electronic_temperature": 3000.0, "eps_scf": 1e-7}
NORM = {"pseudopotentials": {"Si": PSP8["Si"]}, "ecut": 12.0, "k_points": (2, 2, 2)}
NORM |= {"smearing": "fd", "smearing_width": 0.5}
NORM_BOX = {"pseudopotentials": {"H": PSP8["H"]}, "ecut": 12.0, "box": 7.0, "smearing": "none"}
# The same with the heads, for mistakes that are told before any program runs.
VALENCE_HEAD = VALENCE | {"pseudopotentials": {"Si": HEADS / "Si.upf"}}
ULTRASOFT_HEAD = ULTRASOFT | {"pseudopotentials": {"H": HEADS / "H.upf"}}
NORM_HEAD = NORM | {"pseudopotentials": {"Si": HEADS / "Si.psp8"}}
NORM_BOX_HEAD = NORM_BOX | {"pseudopotentials": {"H": HEADS / "H.psp8"}}
WAVES = {"command": [PROGRAMS["gpaw"]], "ecut": 250.0}
CASES = {
    "command, open": Case("command", script(EMT), task_of(rattled(molecule("H2O"))), script(EMT, "stop"), 1e-4),
    "command, periodic": Case("command", script(EMT), COPPER, script(EMT, "stop"), 1e-4, 1e-4),
    "xtb": Case("xtb", {}, WATER, {"max_iterations": 1}, 1e-4),
    "xtb, radical": Case("xtb", {}, WATER._replace(charge=1, spin=1), {"max_iterations": 1}, 1e-4),
    "espresso": Case("espresso", VALENCE, SILICON, {"max_iterations": 2}, stress=1e-2),
    "espresso, box": Case("espresso", ULTRASOFT, HYDROGEN, {"max_iterations": 2}),
    "nwchem": Case("nwchem", {"basis": "sto-3g", "grid": "fine"}, WATER, {"max_iterations": 2}),
    "nwchem, radical": Case(
        "nwchem", {"basis": "sto-3g", "grid": "fine"}, HYDROGEN._replace(charge=1, spin=1), {"max_iterations": 1}
    ),
    "cp2k": Case("cp2k", SMEARED, SILICON, {"max_iterations": 2}, stress=1e-2, marks=SLOW),
    "cp2k, box": Case("cp2k", GAUSSIANS, HYDROGEN, {"max_iterations": 2}, marks=SLOW),
    "cp2k, radical": Case("cp2k", GAUSSIANS, HYDROGEN._replace(charge=1, spin=1), {"max_iterations": 1}, marks=SLOW),
    "abinit": Case("abinit", NORM, SILICON, {"max_iterations": 2}, stress=1e-2, marks=SLOW),
    "abinit, box": Case("abinit", NORM_BOX, HYDROGEN, {"max_iterations": 2}, marks=SLOW),
    "abinit, radical": Case("abinit", NORM_BOX, HYDROGEN._replace(charge=1, spin=1), {"max_iterations": 2}, marks=SLOW),
    # A wide smearing: that the forces belong to the free energy shows.
    "gpaw": Case(
        "gpaw",
        WAVES | {"k_points": (2, 2, 2), "smearing_width": 0.5},
        SILICON,
        {"max_iterations": 2},
        stress=1e-2,
        marks=SLOW,
    ),
    "gpaw, box": Case("gpaw", WAVES | {"box": 7.0}, HYDROGEN, {"max_iterations": 2}, marks=SLOW),
    "gpaw, radical": Case(
        "gpaw",
        WAVES | {"box": 7.0, "representation": "lcao"},
        HYDROGEN._replace(charge=1, spin=1),
        {"max_iterations": 2},
        marks=SLOW,
    ),
    "psi4": Case("psi4", {"basis": "sto-3g"}, WATER, {"max_iterations": 2}, 3e-4, marks=SLOW),
    "psi4, radical": Case(
        "psi4",
        {"basis": "sto-3g", "method": "mp2"},
        WATER._replace(charge=1, spin=1),
        {"max_iterations": 2},
        3e-4,
        marks=SLOW,
    ),
}


def write_potcars(library: Path, electrons: dict[str, float]) -> str:
    """Makes a library of POTCAR files that hold what is read of them: element and valence electrons."""
    for element, charge in electrons.items():
        (library / element).mkdir()
        lines = [f"  PAW_PBE {element} 01Jan2000", f"   VRHFIN ={element}: s p"]
        lines.append(f"   POMASS =   10.000; ZVAL   =    {charge:.3f}    mass and valenz")
        (library / element / "POTCAR").write_text("\n".join(lines) + "\n")
    return str(library)
