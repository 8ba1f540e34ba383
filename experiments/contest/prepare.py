"""The folder of data that all.yaml wants, from a folder with the published files.

`python experiments/contest/prepare.py DATA OUT` links the files that the tasks name from DATA into OUT, and writes
silicon's with its stresses as ASE has them: the published ones are VASP's, xx yy zz xy yz zx in kbar, positive where
compressed.
"""

import sys
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from jaxal.core.units import GPA

LINKED = (
    "rmd17/rmd17_malonaldehyde_train_01.xyz.gz",
    "rmd17/rmd17_malonaldehyde_test_01.xyz.gz",
    "rmd17/rmd17_ethanol_train_01.xyz.gz",
    "rmd17/rmd17_ethanol_test_01.xyz.gz",
    "acac/train_300K.xyz",
    "acac/test_MD_300K.xyz",
    "3bpa/train_300K.xyz",
    "qm22/H2CO_and_HCOH_subset4000.xyz",
)
SILICON = {"silicon/Si_train.xyz": "silicon/train.xyz", "silicon/Si_test.xyz": "silicon/test.xyz"}


def with_stress(frames: Any) -> list[ase.Atoms]:
    """The frames with energy, forces and stress (eV/Å^3, tension positive)."""
    images = []
    for atoms in frames:
        xx, yy, zz, xy, yz, zx = np.array(atoms.info["virial_stress_raw"]) * -0.1 * GPA
        plain = ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=True)
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        plain.calc = SinglePointCalculator(plain, **results, stress=np.array([xx, yy, zz, yz, zx, xy]))
        images.append(plain)
    return images


def main() -> None:
    """Links and writes all files."""
    data, out = (Path(word).resolve() for word in sys.argv[1:])
    for name in LINKED:
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            target.symlink_to(data / name)
    for name in ("malonaldehyde", "contest"):  # whose test frames and paths the live tasks name
        (out / "experiments").mkdir(parents=True, exist_ok=True)
        if not (out / "experiments" / name).exists():
            (out / "experiments" / name).symlink_to(Path(__file__).resolve().parent.parent / name)
    for source, name in SILICON.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        ase.io.write(out / name, with_stress(ase.io.read(data / source, ":")), format="extxyz")


if __name__ == "__main__":
    main()
