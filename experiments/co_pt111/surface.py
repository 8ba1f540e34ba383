"""CO on Pt(111) for the experiment and for its outcome: sites, structures and what they are called.

`python experiments/co_pt111/surface.py` writes start.xyz, the structures that the walkers start from, relaxed by the
method itself, and test.xyz.gz, frames of its own dynamics at 500 K. Half a minute.
"""

import gzip
import io
from pathlib import Path

import ase
import ase.units
import numpy as np
from ase.build import add_adsorbate, fcc111
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms
from ase.io import write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import BFGS

HERE = Path(__file__).parent
LATTICE = 3.92  # Å, of platinum
HEIGHTS = {"top": 1.85, "bridge": 1.50, "hcp": 1.35, "fcc": 1.35}  # Å, of carbon above the surface
SITES = {"top": "ontop", "away": "fcc"}  # what ASE calls them
AWAY = 7.0  # Å above the surface: no atom of it is in the reach of the model or of the method
VACUUM = 16.0  # Å above the surface
TEMPERATURE, FRAMES, EVERY = 500.0, 50, 200  # K, frames of each of two trajectories, steps of 1 fs between them


def adsorbed(site: str) -> ase.Atoms:
    """A p(2x2) slab of three layers with one CO upright on a site, or `away` from it; the lowest layer is fixed."""
    slab = fcc111("Pt", (2, 2, 3), a=LATTICE, vacuum=None)  # periodic along a and b
    molecule = ase.Atoms("CO", [[0, 0, 0], [0, 0, 1.15]])
    add_adsorbate(slab, molecule, HEIGHTS.get(site, AWAY), SITES.get(site, site))
    slab.cell[2] = [0, 0, LATTICE / np.sqrt(3) * 2 + VACUUM]
    slab.set_constraint(FixAtoms(mask=slab.get_tags() == 3))
    return ase.Atoms(slab.numbers, slab.positions, cell=slab.cell, pbc=slab.pbc, constraint=slab.constraints)


def relaxed(site: str, calculator: Calculator) -> ase.Atoms:
    """The structure at its nearest stationary point; symmetry keeps CO on its site."""
    atoms = adsorbed(site)
    atoms.calc = calculator
    BFGS(atoms, logfile=None).run(fmax=0.005, steps=500)  # pyright: ignore[reportArgumentType]
    return atoms


def frames(site: str, seed: int) -> list[ase.Atoms]:
    """Labeled frames of EMT's own Langevin dynamics from a site, after 2 ps."""
    rng = np.random.default_rng(seed)
    atoms = relaxed(site, EMT())
    MaxwellBoltzmannDistribution(atoms, temperature_K=TEMPERATURE, rng=rng)
    dynamics = Langevin(
        atoms, ase.units.fs, temperature_K=TEMPERATURE, friction=0.01 / ase.units.fs, fixcm=False, rng=rng
    )
    dynamics.run(2000)
    kept = []
    for _ in range(FRAMES):
        dynamics.run(EVERY)
        frame = atoms.copy()
        forces = atoms.get_forces(apply_constraint=False)
        frame.calc = SinglePointCalculator(frame, energy=atoms.get_potential_energy(), forces=forces)
        kept.append(frame)
    return kept


if __name__ == "__main__":
    starts = [relaxed(site, EMT()) for site in ("top", "fcc", "away")]
    for start in starts:
        start.calc = None
    write(HERE / "start.xyz", starts, format="extxyz")
    text = io.StringIO()
    write(text, [frame for site, seed in (("top", 1), ("fcc", 2)) for frame in frames(site, seed)], format="extxyz")
    with gzip.GzipFile(HERE / "test.xyz.gz", "wb", mtime=0) as file:
        file.write(text.getvalue().encode())
