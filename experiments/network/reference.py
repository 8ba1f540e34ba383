"""Structures and test frames of the network, all from GFN2-xTB: python experiments/network/reference.py

The ions, the molecules and the ion-dipole complexes of Cl- + CH3Cl and of F- + CH3Cl -> CH3F + Cl-. Each complex also
stands apart, its leaving chloride at 5 to 12 Å from carbon along the axis: what a local model knows of separated
fragments it has from such frames. The test frames of each come from a Langevin trajectory at 300 K, 0.5 fs, one every
25 fs. A minute on one core.
"""

import gzip
import io
from pathlib import Path

import ase.units
import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixInternals
from ase.io import write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import BFGS
from tblite.ase import TBLite

HERE = Path(__file__).parent
DISTANCES = (5.0, 6.0, 7.0, 8.0, 10.0, 12.0)  # Å, carbon to the leaving chloride
FRAMES, EVERY, WARM, KELVIN = 30, 50, 500, 300.0  # frames, steps between them and before the first


def teacher(charge: int) -> TBLite:
    """GFN2-xTB of closed shells."""
    return TBLite(method="GFN2-xTB", charge=charge, verbosity=0)


def relaxed(atoms: Atoms, charge: int) -> Atoms:
    """The nearest minimum."""
    atoms.calc = teacher(charge)
    BFGS(atoms, logfile=None).run(fmax=0.01, steps=500)
    return atoms


def complex_of(methyl: Atoms) -> Atoms:
    """Cl- behind the methyl group of a relaxed CH3X, relaxed; atoms in the order of the molecule, chloride last."""
    halogen = next(atom.index for atom in methyl if atom.symbol in ("Cl", "F"))
    carbon = next(atom.index for atom in methyl if atom.symbol == "C")
    axis = methyl.positions[carbon] - methyl.positions[halogen]
    axis /= np.linalg.norm(axis)
    return relaxed(methyl + Atoms("Cl", [methyl.positions[carbon] + 3.2 * axis]), -1)


def apart(whole: Atoms, distance: float) -> Atoms:
    """A complex whose chloride, its last atom, is at `distance` from carbon, the rest relaxed."""
    carbon, last = next(atom.index for atom in whole if atom.symbol == "C"), len(whole) - 1
    moved = whole.copy()
    vector = moved.positions[last] - moved.positions[carbon]
    moved.positions[last] = moved.positions[carbon] + distance * vector / np.linalg.norm(vector)
    moved.set_constraint(FixInternals(bonds=[[distance, [carbon, last]]]))
    relaxed(moved, -1)
    moved.set_constraint()
    return moved


def frames(atoms: Atoms, charge: int, seed: int) -> list[Atoms]:
    """Labeled frames of a trajectory."""
    moving = atoms.copy()
    moving.calc = teacher(charge)
    rng = np.random.default_rng(seed)
    MaxwellBoltzmannDistribution(moving, temperature_K=KELVIN, rng=rng)
    dynamics = Langevin(
        moving, 0.5 * ase.units.fs, temperature_K=KELVIN, friction=0.01 / ase.units.fs, rng=rng, fixcm=False
    )
    dynamics.run(WARM)
    kept = []
    for _ in range(FRAMES):
        dynamics.run(EVERY)
        frame = moving.copy()
        frame.calc = SinglePointCalculator(frame, energy=moving.get_potential_energy(), forces=moving.get_forces())
        frame.info = {"charge": charge, "spin": 0}
        kept.append(frame)
    return kept


def compressed(path: Path, structures: list[Atoms]) -> None:
    """Extended XYZ, always the same bytes."""
    text = io.StringIO()
    write(text, structures, format="extxyz")
    path.write_bytes(gzip.compress(text.getvalue().encode(), mtime=0))


def main() -> None:
    """Writes all files."""
    fluoro = molecule("CH3Cl")
    fluoro.symbols[fluoro.symbols == "Cl"] = "F"
    chloromethane, fluoromethane = relaxed(molecule("CH3Cl"), 0), relaxed(fluoro, 0)
    identity, exchange = complex_of(chloromethane.copy()), complex_of(fluoromethane.copy())
    starts = {
        "chloride": [Atoms("Cl")],
        "fluoride": [Atoms("F")],
        "chloromethane": [chloromethane],
        "fluoromethane": [fluoromethane],
        "identity": [identity, *(apart(identity, distance) for distance in DISTANCES)],
        "exchange": [exchange, *(apart(exchange, distance) for distance in DISTANCES)],
    }
    for name, structures in starts.items():
        charge = 0 if name.endswith("methane") else -1
        for atoms in structures:
            atoms.calc, atoms.info = None, {"charge": charge, "spin": 0}
        write(HERE / f"{name}.xyz", structures, format="extxyz")
        if len(structures[0]) > 1:
            compressed(HERE / f"test_{name}.xyz.gz", frames(structures[0], charge, len(name)))


if __name__ == "__main__":
    main()
