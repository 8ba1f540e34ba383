"""The barriers that runs of the band learned, and GFN2-xTB's own: python experiments/proton_transfer/outcome.py RUN ...

For each run ASE's climbing band is relaxed on the final model from the same images; the reference is the same band on
GFN2-xTB. With `--images` path.xyz is made again: both ends relaxed with GFN2-xTB, seven images between by IDPP.
"""

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build.rotate import minimize_rotation_and_translation
from ase.io import read, write
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from tblite.ase import TBLite

import jaxal
from jaxal.core.units import KCAL_PER_MOL

HERE = Path(__file__).parent
HYDROGEN, DONOR, ACCEPTOR, IMAGES = 5, 4, 3, 9  # atoms of malonaldehyde.xyz


def method() -> TBLite:
    """GFN2-xTB."""
    return TBLite(method="GFN2-xTB", verbosity=0)


def relaxed(atoms: Atoms) -> Atoms:
    """The nearest minimum of GFN2-xTB."""
    atoms.calc = method()
    BFGS(atoms, logfile=None).run(fmax=1e-3)
    return atoms


def images() -> None:
    """Writes path.xyz."""
    start: Any = read(HERE.parent / "malonaldehyde/malonaldehyde.xyz")
    first, last = relaxed(start.copy()), start.copy()
    away = first.positions[HYDROGEN] - first.positions[ACCEPTOR]
    last.positions = first.positions
    last.positions[HYDROGEN] = first.positions[ACCEPTOR] + 0.98 * away / np.linalg.norm(away)
    last = relaxed(last)
    minimize_rotation_and_translation(first, last)
    chain = NEB([first, *(first.copy() for _ in range(IMAGES - 2)), last])
    chain.interpolate("idpp")
    frames = [Atoms(image.symbols, image.positions) for image in chain.images]
    write(HERE / "path.xyz", frames)


def barrier(calculator: Any) -> float:
    """Of a climbing band, kcal/mol; `calculator` gives one for each image."""
    band: Any = read(HERE / "path.xyz", ":")
    for image in band:
        image.calc = calculator()
    chain: Any = NEB(band, climb=True, method="improvedtangent")
    FIRE(chain, logfile=os.devnull).run(fmax=0.02, steps=500)
    energy = np.array([image.get_potential_energy() for image in band])
    return float(energy.max() - energy[0]) / KCAL_PER_MOL


def main(arguments: list[str]) -> None:
    """Prints a line for the method and for each run."""
    if arguments == ["--images"]:
        return images()
    reference = barrier(method)
    print(f"GFN2-xTB: {reference:.3f} kcal/mol")
    for run in map(Path, arguments):
        labels: Any = read(run / "training.xyz", ":")
        learned = barrier(lambda run=run: jaxal.Calculator(run))
        print(f"{run.name}: {learned:.3f} kcal/mol, {learned - reference:+.3f}, from {len(labels)} labels")


if __name__ == "__main__":
    main(sys.argv[1:])
