"""Barriers that runs between two structures learned, beside GFN2-xTB's: python experiments/barriers/outcome.py RUN ...

A run's barrier is what its task says, and what `jaxal barrier` says of its model. The reference is ASE's climbing band
on GFN2-xTB between the same structures, to 0.005 eV/Å. With `--ends` the structures are made again: minima of GFN2-xTB
on either side.
"""

import functools
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ase import Atoms
from ase.io import read, write
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from tblite.ase import TBLite

from jaxal.core.units import KCAL_PER_MOL
from jaxal.deploy import model as models
from jaxal.explore.images import between
from jaxal.report.metrics import METRICS, read_metrics
from jaxal.simulate.barrier import barrier

HERE = Path(__file__).parent
IMAGES = 19  # of the reference


def method(charge: int) -> TBLite:
    """GFN2-xTB."""
    return TBLite(method="GFN2-xTB", verbosity=0, charge=charge)


def relaxed(atoms: Atoms, charge: int = 0) -> Atoms:
    """The nearest minimum of GFN2-xTB, from a little off any symmetry."""
    atoms = Atoms(atoms.symbols, atoms.positions)
    atoms.rattle(0.02, seed=0)
    atoms.calc = method(charge)
    BFGS(atoms, logfile=None, maxstep=0.1).run(fmax=1e-3, steps=2000)
    atoms.calc = None
    return atoms


def malonaldehyde() -> list[Atoms]:
    """Both sides of the proton transfer."""
    start: Any = read(HERE.parent / "malonaldehyde/malonaldehyde.xyz")
    first, last = relaxed(start), start.copy()
    away = first.positions[5] - first.positions[3]
    last.positions = first.positions
    last.positions[5] = first.positions[3] + 0.98 * away / np.linalg.norm(away)
    return [first, relaxed(last)]


def sn2() -> list[Atoms]:
    """Both complexes of Cl- and CH3Cl, mirror images of each other."""
    start: Any = read(HERE.parent / "sn2/complex.xyz")
    first = relaxed(start, -1)
    chlorides = np.flatnonzero(first.numbers == 17)
    carbon = int(np.flatnonzero(first.numbers == 6)[0])
    near, far = chlorides[np.argsort(first.get_distances(carbon, chlorides))]
    axis = first.positions[far] - first.positions[near]
    axis /= np.linalg.norm(axis)
    middle = (first.positions[far] + first.positions[near]) / 2
    last = first.copy()
    last.positions -= 2 * np.outer((first.positions - middle) @ axis, axis)
    last.positions[[near, far]] = last.positions[[far, near]]
    return [first, relaxed(last, -1)]


def diels_alder() -> list[Atoms]:
    """Butadiene and ethene, and cyclohexene."""

    def facing(height: float) -> Atoms:
        diene = [(-1.40, -0.60, 0), (-0.70, 0.58, 0), (0.70, 0.58, 0), (1.40, -0.60, 0)]
        ethene = [(0.69, -1.25, height), (-0.69, -1.25, height)]
        inner = [(-2.45, -0.62, -0.15), (-1.05, -1.52, -0.45), (-1.20, 1.52, 0.1), (1.20, 1.52, 0.1)]
        inner += [(2.45, -0.62, -0.15), (1.05, -1.52, -0.45)]
        outer = [(s * 1.24, y, height + up) for s in (1, -1) for y, up in ((-0.55, 0.62), (-2.14, 0.1))]
        return Atoms("C6H10", [*diene, *ethene, *inner, *outer])

    return [relaxed(facing(3.3)), relaxed(facing(1.55))]


ENDS = {"malonaldehyde": (malonaldehyde, 0), "sn2": (sn2, -1), "diels_alder": (diels_alder, 0)}


@functools.cache
def reference(name: str) -> float:
    """GFN2-xTB's barrier, kcal/mol."""
    ends: Any = read(HERE / f"{name}.xyz", ":")
    band = between(ends, IMAGES)
    for image in band:
        image.calc = method(ENDS[name][1])
    for climb, force in ((False, 0.1), (True, 5e-3)):  # an image that climbs too early can leave the path
        chain: Any = NEB(band, k=5.0, climb=climb, method="improvedtangent")
        FIRE(chain, logfile=os.devnull, maxstep=0.1).run(fmax=force, steps=5000)
    energy = np.array([image.get_potential_energy() for image in band])
    return float(energy.max() - energy[0]) / KCAL_PER_MOL


def main(arguments: list[str]) -> None:
    """Prints a line for each run."""
    if arguments == ["--ends"]:
        for name, (make, charge) in ENDS.items():
            ends = make()
            for atoms in ends:
                atoms.info = {"charge": charge, "spin": 0}
            write(HERE / f"{name}.xyz", ends, format="extxyz")
            print(f"{name}: {reference(name):.3f} kcal/mol")
        return
    for run in map(Path, arguments):
        name = Path(yaml.safe_load((run / "config.yaml").read_text())["system"]["file"]).stem
        ends: Any = read(HERE / f"{name}.xyz", ":")
        records = read_metrics(run / METRICS)
        asked = max(record["labels"] for record in records if record["kind"] == "segment")
        task = [record for record in records if record["kind"] == "task"]
        asked += task[-1]["labels"] if task else 0
        own, learned = reference(name), barrier(models.load(run), *ends)
        value, spread = learned.forward / KCAL_PER_MOL, learned.forward_spread / KCAL_PER_MOL
        print(
            f"{run.name}: {asked} labels; the model alone {value:.3f} +- {spread:.3f} kcal/mol, {value - own:+.3f}",
            end="",
        )
        if task and "forward" in task[-1]:
            value, error = (task[-1][key] / KCAL_PER_MOL for key in ("forward", "error"))
            print(f"; its task {value:.3f} +- {error:.3f}, {value - own:+.3f}", end="")
        print(flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
