"""What a run of this experiment learned: barrier and stability of its potential, beside GFN2-xTB.

`python experiments/malonaldehyde/outcome.py RUN` climbs the proton transfer's barrier by CI-NEB on the calculator
and on GFN2 in the same way, and runs 20 ps at constant energy from 500 K; both go into RUN/validate.json, where the
errors on the 500 test frames already are, and RUN/report.html is written anew. Two minutes on two cores.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from ase.io import read
from tblite.ase import TBLite

import jaxal
from jaxal.core.units import KCAL_PER_MOL
from jaxal.data.structure import from_atoms
from jaxal.deploy import model
from jaxal.explore.dynamics import nve
from jaxal.report import page
from jaxal.validate import command, dynamics
from jaxal.validate.barrier import barrier, mirrored_transfer

HERE = Path(__file__).parent
HYDROGEN, DONOR, ACCEPTOR = 5, 4, 3  # atoms of malonaldehyde.xyz


def main(directory: Path) -> None:
    """Measures and writes."""
    start = read(HERE / "malonaldehyde.xyz")
    assert not isinstance(start, list)
    end = mirrored_transfer(start, HYDROGEN, DONOR, ACCEPTOR)
    calculator = jaxal.Calculator(directory)
    learned = barrier(lambda: calculator.share(), start, end, images=9)
    truth = barrier(lambda: TBLite(method="GFN2-xTB", accuracy=0.1, verbosity=0), start, end, images=9)

    finished = model.load(directory)
    committee = model.committee(finished)
    params = jax.tree.map(jnp.asarray, finished.params)
    structure = from_atoms([start], finished.table)
    # From the minimum about half of the energy goes into the potential: momenta of 770 K make a run at 500 K.
    explorer = nve(temperature=770.0, timestep=0.5)
    trajectory = dynamics.run(
        dynamics.mean_field(committee, params),
        committee.potential.cutoff,
        explorer,
        jax.tree.map(jnp.asarray, structure),
        jax.random.key(0),
        length=20.0,
        every=20,
    )
    stability = dynamics.stability(trajectory, finished.table, structure)
    command.save(directory, barrier={"model": learned, "reference": truth}, stability=stability)
    page.write(directory)
    print(f"barrier, kcal/mol: model {learned.energy / KCAL_PER_MOL:.3f}, GFN2 {truth.energy / KCAL_PER_MOL:.3f}")
    print(json.dumps(command.to_json(stability)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
