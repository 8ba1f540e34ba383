"""CO on Pt(111) for the experiment and for its outcome: the method, the sites, and structures on them.

`python experiments/co_pt111/surface.py` writes start.xyz, the structures that the walkers start from, relaxed by the
method itself; hop.xyz, CO on three sites of the surface as it is without CO; and test.xyz, labeled structures
around the path from the top site into the hollow. Some minutes.
"""

from pathlib import Path

import ase
import numpy as np
from ase.build import add_adsorbate, fcc111
from ase.calculators.calculator import Calculator
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write
from ase.optimize import BFGS

from jaxal.label.calculator import LabelCalculator
from jaxal.label.methods.tblite import tblite

HERE = Path(__file__).parent
LATTICE = 4.05  # Å: of 3.92, 4.05, 4.20 and 4.35 where the slab's energy is lowest
LAYER = 2.7  # Å, between layers, as they relax
HEIGHTS = {"top": 1.9, "bridge": 1.6, "hcp": 1.4, "fcc": 1.4}  # Å, of carbon above the surface
SITES = {"top": "ontop", "away": "fcc"}  # what ASE calls them
AWAY = 7.0  # Å above the surface: no atom of it is in the reach of the model
VACUUM = 20.0  # Å above the surface
TESTS, RATTLE = 40, 0.08  # structures, Å of each coordinate of a free atom


def method() -> LabelCalculator:
    """GFN1-xTB as the configuration has it."""
    return LabelCalculator(tblite(method="GFN1-xTB", electronic_temperature=3000.0), charge=0, spin=0)


def adsorbed(site: str) -> ase.Atoms:
    """A p(2x2) slab of three layers with one CO upright on a site, or `away` from it; the lowest layer is fixed."""
    slab = fcc111("Pt", (2, 2, 3), a=LATTICE, vacuum=None)  # periodic along a and b
    slab.positions[:, 2] *= LAYER * np.sqrt(3) / LATTICE
    molecule = ase.Atoms("CO", [[0, 0, 0], [0, 0, 1.15]])
    add_adsorbate(slab, molecule, HEIGHTS.get(site, AWAY), SITES.get(site, site))
    lowest = FixAtoms(mask=slab.get_tags() == 3)
    cell = np.vstack([slab.cell.array[:2], [0, 0, 2 * LAYER + VACUUM]])
    return ase.Atoms(slab.numbers, slab.positions, cell=cell, pbc=slab.pbc, constraint=lowest)


def relaxed(atoms: ase.Atoms, calculator: Calculator) -> ase.Atoms:
    """The structure at its nearest stationary point; symmetry keeps CO on its site."""
    atoms.calc = calculator
    BFGS(atoms, logfile=None, maxstep=0.1).run(fmax=0.02, steps=200)  # pyright: ignore[reportArgumentType]
    return atoms


def still(site: str, surface: ase.Atoms) -> ase.Atoms:
    """CO on a site of a surface that keeps its place; the last two atoms of `surface` are CO away from it."""
    atoms = adsorbed(site)
    lift = surface.positions[:-2, 2].max() - atoms.positions[:-2, 2].max()
    atoms.positions[:-2] = surface.positions[:-2]
    atoms.positions[-2:, 2] += lift
    atoms.set_constraint(FixAtoms(indices=range(len(atoms) - 2)))
    return atoms


def tests(start: ase.Atoms, end: ase.Atoms) -> list[ase.Atoms]:
    """Labeled structures between two, displaced at random."""
    rng, kept = np.random.default_rng(7), []
    for part in np.linspace(0, 1, TESTS):
        atoms = start.copy()
        atoms.set_constraint()
        atoms.positions += part * (end.positions - start.positions)
        free = np.delete(np.arange(len(atoms)), start.constraints[0].index)
        atoms.positions[free] += rng.normal(0, RATTLE, (len(free), 3))
        atoms.calc = method()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        atoms.set_constraint(start.constraints)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        kept.append(atoms)
    return kept


if __name__ == "__main__":
    starts = {site: relaxed(adsorbed(site), method()) for site in ("top", "fcc", "away")}
    hop = [relaxed(still(site, starts["away"]), method()) for site in ("top", "fcc", "hcp")]
    write(HERE / "test.xyz", tests(starts["top"], starts["fcc"]), format="extxyz")
    for atoms in (*starts.values(), *hop):
        atoms.calc = None
    write(HERE / "start.xyz", list(starts.values()), format="extxyz")
    write(HERE / "hop.xyz", hop, format="extxyz")
