"""Reaction paths, start structures and test frames of the live tasks, all from GFN2-xTB.

`python experiments/contest/reference.py` writes, beside itself: malonaldehyde_path.xyz and sn2_path.xyz, the images of
climbing elastic bands; sn2_starts.xyz, both ion-dipole complexes; sn2_test.xyz, frames of dynamics at 300 K pulled from
one complex to the other and back. The frames of malonaldehyde are those of experiments/malonaldehyde.
"""

from pathlib import Path
from typing import Any

import ase
import ase.io
import ase.units
import numpy as np
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

from jaxal.label.calculator import LabelCalculator
from jaxal.label.methods.tblite import tblite
from jaxal.validate.barrier import Barrier, barrier, mirrored_transfer

HERE = Path(__file__).parent
EXPERIMENTS = HERE.parent
CARBON, LEAVING, COMING = 0, 1, 5  # atoms of Cl- + CH3Cl
STIFFNESS, REACH, PERIOD = 10.0, 1.5, 4000  # eV/Å^2, Å, steps of 0.5 fs
FRAMES, EVERY = 200, 80  # steps of 0.5 fs


class Pulled(LabelCalculator):
    """GFN2-xTB and a spring that pulls the difference of both C-Cl distances to `center`, Å."""

    center = 0.0

    def calculate(self, atoms: ase.Atoms | None = None, properties: Any = None, system_changes: Any = ()) -> None:
        """One label and the spring."""
        super().calculate(atoms, properties, system_changes)
        system: Any = self.atoms
        arms = [system.positions[CARBON] - system.positions[other] for other in (LEAVING, COMING)]
        lengths = [float(np.linalg.norm(arm)) for arm in arms]
        off = lengths[0] - lengths[1] - self.center
        self.results["energy"] += 0.5 * STIFFNESS * off**2
        for arm, length, other, sign in zip(arms, lengths, (LEAVING, COMING), (1, -1), strict=True):
            self.results["forces"][CARBON] -= STIFFNESS * off * sign * arm / length
            self.results["forces"][other] += STIFFNESS * off * sign * arm / length


def inverted(complex_: ase.Atoms) -> ase.Atoms:
    """The other complex: mirrored along the axis, the chlorine atoms in each other's place."""
    product = complex_.copy()
    product.positions *= [1, 1, -1]
    product.positions[[LEAVING, COMING]] = product.positions[[COMING, LEAVING]]
    return product


def pulled(start: ase.Atoms) -> list[ase.Atoms]:
    """Frames of dynamics at 300 K from one complex to the other and back."""
    rng = np.random.default_rng(7)
    atoms = start.copy()
    calculator = Pulled(tblite(), charge=-1)
    atoms.calc = calculator
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=rng)
    warm: Any = {"temperature_K": 300, "friction": 0.01 / ase.units.fs, "rng": rng, "fixcm": False}
    dynamics = Langevin(atoms, 0.5 * ase.units.fs, **warm)
    frames = []
    for step in range(FRAMES * EVERY):
        calculator.center = -REACH * np.cos(2 * np.pi * step / PERIOD)
        dynamics.run(1)
        if (step + 1) % EVERY == 0:
            frames.append(ase.Atoms(atoms.numbers, atoms.positions))
    return frames


def images_of(name: str, path: Barrier) -> list[ase.Atoms]:
    """The images of a path; prints its barrier."""
    state = "converged" if path.converged else "NOT converged"
    print(f"{name}: barrier {path.energy:.4f} eV, {len(path.images)} images, {state}")
    return path.images


def main() -> None:
    """Writes all files."""
    enol: Any = ase.io.read(EXPERIMENTS / "malonaldehyde" / "malonaldehyde.xyz")
    path = barrier(lambda: LabelCalculator(tblite()), enol, mirrored_transfer(enol, 5, 4, 3))
    ase.io.write(HERE / "malonaldehyde_path.xyz", images_of("malonaldehyde", path), format="extxyz")
    complex_: Any = ase.io.read(EXPERIMENTS / "sn2" / "complex.xyz")
    path = barrier(lambda: LabelCalculator(tblite(), charge=-1), complex_, inverted(complex_))
    images = images_of("sn2", path)
    ase.io.write(HERE / "sn2_path.xyz", images, format="extxyz")
    ase.io.write(HERE / "sn2_starts.xyz", [images[0], images[-1]], format="extxyz")
    ase.io.write(HERE / "sn2_test.xyz", pulled(images[0]), format="extxyz")


if __name__ == "__main__":
    main()
