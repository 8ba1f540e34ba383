"""A small model of random weights, saved."""

from pathlib import Path

import jax
import numpy as np
from ase.io import read

from jaxal.data import neighbors
from jaxal.data.structure import from_atoms, species_table
from jaxal.deploy import model as models
from jaxal.uncertainty import bound

MOLECULE = Path(__file__).parents[1] / "experiments" / "malonaldehyde" / "malonaldehyde.xyz"


def tiny_model(path: Path) -> None:
    """A committee of two with random weights that knows the elements of malonaldehyde."""
    atoms = read(MOLECULE)
    table = species_table([atoms])
    options = (("cutoff", 3.5), ("channels", 4), ("l_max", 1), ("layers", 1))
    known = bound.Calibration(1.5, 0.9, 99, bound.SCORE, "frames of a test")
    reference = np.array([-13.0, -50.0, -430.0])
    model = models.Model("equivariant", options, table, {}, reference, "float32", ((0, 0),), calibration=known)
    potential = models.potential(model)
    structure = jax.device_put(from_atoms(atoms, table))
    near = neighbors.build(neighbors.plan(structure, potential.cutoff), structure)
    init = jax.jit(jax.vmap(potential.init, (0, None, None)))
    params = init(jax.random.split(jax.random.key(0), 2), structure, near)
    models.save(path, model._replace(params=params))
