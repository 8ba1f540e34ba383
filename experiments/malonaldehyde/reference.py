"""Reference data of this experiment: the start geometry and 500 test frames, all from GFN2-xTB.

`python experiments/malonaldehyde/reference.py` relaxes malonaldehyde from SMILES-like coordinates, then runs
four independent Langevin trajectories at 500 K (0.5 fs, friction 0.01/fs, 1 ps discarded) and keeps a frame every
40 fs, 125 from each. Writes malonaldehyde.xyz and test_500K.xyz.gz beside itself. About ten minutes on one core.
"""

import gzip
import io
from pathlib import Path

import ase.units
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import BFGS
from tblite.ase import TBLite

HERE = Path(__file__).parent

# cis enol form drawn flat: O=C-C=C-O-H with the hydrogen bond closed, Å
START = Atoms(
    "CCCOOHHHH",
    [
        [-1.20, -0.45, 0.0],
        [0.00, -1.12, 0.0],
        [1.20, -0.40, 0.0],
        [-1.28, 0.80, 0.0],
        [1.25, 0.93, 0.0],
        [0.30, 1.25, 0.0],
        [-2.14, -1.02, 0.0],
        [0.00, -2.20, 0.0],
        [2.17, -0.90, 0.0],
    ],
)


def trajectory(seed: int, frames: int) -> list[Atoms]:
    """One independent 500 K trajectory; a labeled frame every 80 steps of 0.5 fs after 2000 steps."""
    rng = np.random.default_rng(seed)
    atoms = START.copy()
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    BFGS(atoms, logfile=None).run(fmax=1e-3)
    MaxwellBoltzmannDistribution(atoms, temperature_K=500, rng=rng)
    dynamics = Langevin(atoms, 0.5 * ase.units.fs, temperature_K=500, friction=0.01 / ase.units.fs, rng=rng)
    dynamics.run(2000)
    kept = []
    for _ in range(frames):
        dynamics.run(80)
        frame = atoms.copy()
        frame.calc = SinglePointCalculator(frame, energy=atoms.get_potential_energy(), forces=atoms.get_forces())
        frame.info["trajectory"] = seed
        kept.append(frame)
    return kept


def main() -> None:
    """Writes both files."""
    relaxed = START.copy()
    relaxed.calc = TBLite(method="GFN2-xTB", verbosity=0)
    BFGS(relaxed, logfile=None).run(fmax=1e-3)
    relaxed.calc = None
    write(HERE / "malonaldehyde.xyz", relaxed, format="extxyz")
    frames = [frame for seed in range(101, 105) for frame in trajectory(seed, 125)]
    text = io.StringIO()
    write(text, frames, format="extxyz")
    with gzip.GzipFile(HERE / "test_500K.xyz.gz", "wb", mtime=0) as file:
        file.write(text.getvalue().encode())


if __name__ == "__main__":
    main()
