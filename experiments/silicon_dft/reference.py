"""Start geometry, test frames and elastic figures of Si8 from Quantum ESPRESSO, with the labeler of config.yaml.

`python experiments/silicon_dft/reference.py` writes silicon.xyz, test.xyz and reference.json beside this file. The test
frames know nothing of any learned potential: 20 independent runs of Langevin dynamics at 600 K under Stillinger-Weber,
each one's last frame brought to the lattice of the method, strained at random by up to 1.5 %, and labeled. Three
minutes on one core.
"""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from elastic import LATTICE, elastic

from jaxal.committee.evaluation import Committee
from jaxal.config.loading import load
from jaxal.core.discovery import import_parts
from jaxal.data.structure import from_atoms
from jaxal.explore.dynamics import nvt_langevin
from jaxal.label.calculator import LabelCalculator
from jaxal.potential.pair import stillinger_weber
from jaxal.validate import dynamics

HERE, TABLE = Path(__file__).parent, (14,)
FRAMES, TEMPERATURE, STRAIN = 20, 600.0, 0.015


def thermal() -> list[Atoms]:
    """The last frames of 2 ps under Stillinger-Weber, strained; seed 1."""
    oracle = stillinger_weber(TABLE)
    crystal = bulk("Si", "diamond", a=5.431, cubic=True)  # of Stillinger-Weber
    starts = from_atoms([crystal] * FRAMES, TABLE)
    explorer = nvt_langevin(temperature=TEMPERATURE, timestep=1.0)
    field = dynamics.mean_field(Committee(oracle, 1, "vmap"), {"none": jnp.zeros(1)})
    trajectory = dynamics.run(field, oracle.cutoff, explorer, starts, jax.random.key(1), length=2.0, every=100)
    rng = np.random.default_rng(1)
    frames = []
    for number in range(FRAMES):
        atoms = dynamics.frames_of(trajectory, number, TABLE)[-1]
        strain = rng.uniform(-STRAIN, STRAIN, (3, 3))
        atoms.set_cell(LATTICE * (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
        frames.append(atoms)
    return frames


def main() -> None:
    """Calculates and writes."""
    start = bulk("Si", "diamond", a=LATTICE, cubic=True)
    write(HERE / "silicon.xyz", start, format="extxyz")
    write(HERE / "test.xyz", start, format="extxyz")  # the configuration names it
    import_parts()
    calculator = LabelCalculator(load(HERE / "config.yaml").label.part.bind()())
    figures = elastic(calculator)
    print(figures, flush=True)
    labeled = []
    for atoms in thermal():
        atoms.calc = calculator
        results: dict[str, Any] = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        results["stress"] = atoms.get_stress()
        atoms.calc = SinglePointCalculator(atoms, **results)
        labeled.append(atoms)
        print(f"{len(labeled)} frames", flush=True)
    write(HERE / "test.xyz", labeled, format="extxyz")
    record = figures._asdict() | {
        "method": calculator.backend.method,
        "version": calculator.backend.version,
        "labels": len(calculator.seconds),
        "seconds": float(np.sum(calculator.seconds)),
    }
    (HERE / "reference.json").write_text(json.dumps(record, indent=1) + "\n")
    print(f"{record['labels']} labels in {record['seconds']:.0f} s")


if __name__ == "__main__":
    main()
