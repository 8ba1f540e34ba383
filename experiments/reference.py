"""Start geometry and test frames of the molecular experiments, all from GFN2-xTB.

`python experiments/reference.py malonaldehyde` (or ethanol, sn2) relaxes the molecule, then runs four independent
Langevin trajectories (0.5 fs, friction 0.01/fs, 1 ps discarded) at the experiment's temperature and keeps a frame
every 40 fs. Writes start.xyz (named as the experiment's configuration has it) and the frames into the experiment's
folder. Two minutes on one core for malonaldehyde.

The dynamics is hotter than the temperature it is given: ASE's default, a fixed center of mass, takes momenta that its
friction and noise are balanced for (537 K where 400 K were asked for, malonaldehyde). The frames that the experiments'
figures are of were made so, and are a harder test than their temperature says.
"""

import gzip
import io
import sys
from pathlib import Path
from typing import NamedTuple

import ase.units
import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import BFGS
from tblite.ase import TBLite

HERE = Path(__file__).parent


class Experiment(NamedTuple):
    """What is relaxed and run."""

    atoms: Atoms
    charge: int  # e
    temperature: float  # K
    frames: int
    start: str  # file name of the start geometry
    test: str  # file name of the frames


EXPERIMENTS = {
    # the cis enol form drawn flat, O=C-C=C-O-H with the hydrogen bond closed
    "malonaldehyde": Experiment(
        Atoms(
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
        ),
        0,
        500.0,
        500,
        "malonaldehyde.xyz",
        "test_500K.xyz.gz",
    ),
    "ethanol": Experiment(molecule("CH3CH2OH"), 0, 500.0, 200, "ethanol.xyz", "test_500K.xyz.gz"),
    # the ion-dipole complex of the identity reaction, chloride behind the methyl group
    "sn2": Experiment(
        Atoms(
            "CClHHHCl",
            [
                [0.0, 0.0, 0.0],
                [0.0, 0.0, 1.80],
                [1.03, 0.0, -0.33],
                [-0.515, 0.892, -0.33],
                [-0.515, -0.892, -0.33],
                [0.0, 0.0, -3.0],
            ],
        ),
        -1,
        300.0,
        200,
        "complex.xyz",
        "test_300K.xyz.gz",
    ),
}


def relaxed(experiment: Experiment) -> Atoms:
    """The minimum of the drawn structure."""
    atoms = experiment.atoms.copy()
    atoms.calc = TBLite(method="GFN2-xTB", charge=experiment.charge, multiplicity=1, verbosity=0)
    BFGS(atoms, logfile=None).run(fmax=1e-3)
    return atoms


def trajectory(experiment: Experiment, seed: int, frames: int) -> list[Atoms]:
    """One independent trajectory; a labeled frame every 80 steps of 0.5 fs after 2000 steps."""
    rng = np.random.default_rng(seed)
    atoms, temperature = relaxed(experiment), experiment.temperature
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
    dynamics = Langevin(atoms, 0.5 * ase.units.fs, temperature_K=temperature, friction=0.01 / ase.units.fs, rng=rng)
    dynamics.run(2000)
    kept = []
    for _ in range(frames):
        dynamics.run(80)
        frame = atoms.copy()
        frame.calc = SinglePointCalculator(frame, energy=atoms.get_potential_energy(), forces=atoms.get_forces())
        frame.info["trajectory"] = seed
        kept.append(frame)
    return kept


def main(name: str) -> None:
    """Writes both files of one experiment."""
    experiment = EXPERIMENTS[name]
    start = relaxed(experiment)
    start.calc = None
    write(HERE / name / experiment.start, start, format="extxyz")
    frames = [f for seed in range(101, 105) for f in trajectory(experiment, seed, experiment.frames // 4)]
    text = io.StringIO()
    write(text, frames, format="extxyz")
    with gzip.GzipFile(HERE / name / experiment.test, "wb", mtime=0) as file:
        file.write(text.getvalue().encode())


if __name__ == "__main__":
    main(sys.argv[1])
