"""What the silicon run learned: density and structure of its liquid beside the oracle's own.

`python experiments/silicon/outcome.py RUN` takes the last frame of the run, which is molten, and runs the learned
committee and Stillinger-Weber itself from there, at 2500 K and zero pressure with the same integrator and momenta: 4
ps to settle, then 16 ps measured. Densities and g(r), with errors from blocks, go into RUN/validate.json. Prints them.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxal import model
from jaxal.explore.md import npt_nose_hoover
from jaxal.potential.pair import stillinger_weber
from jaxal.structure import from_atoms, masses, read_frames
from jaxal.validate import command, dynamics

TEMPERATURE, TIMESTEP, EVERY = 2500.0, 2.0, 20  # K, fs, steps
SETTLE, LENGTH = 4.0, 16.0  # ps


def main(directory: Path) -> None:
    """Measures, prints and writes."""
    start = read_frames(directory / "trajectory.xyz", "-1")[0]
    finished = model.load(directory)
    table, learned = finished.table, model.potential(finished)
    oracle = stillinger_weber(table)
    structure = jax.tree.map(jnp.asarray, from_atoms([start], table))
    mass = jnp.full(structure.species.shape[-1], float(masses(table)[0]), jnp.float32)
    explorer = npt_nose_hoover(mass, temperature=TEMPERATURE, timestep=TIMESTEP, barostat_tau=500.0)
    params = jax.tree.map(jnp.asarray, finished.params)
    fields = {
        "learned": (dynamics.mean_field(learned, params), learned.cutoff),
        "oracle": (dynamics.mean_field(oracle, {"none": jnp.zeros(1)}, "vmap"), oracle.cutoff),
    }
    found, distributions = {}, {}
    for name, (field, cutoff) in fields.items():
        trajectory = dynamics.run(
            field, cutoff, explorer, structure, jax.random.key(7), length=SETTLE + LENGTH, every=EVERY, skin=1.0
        )
        frames = dynamics.frames_of(trajectory, 0, table)[round(SETTLE * 1e3 / (TIMESTEP * EVERY)) :]
        density, error = dynamics.density(frames)
        distributions[name] = dynamics.radial_distribution(frames, 5.0)
        found[name] = {"density": density, "density_error": error, "rdf": command.to_json(distributions[name])}
        peak = int(np.argmax(distributions[name].value))
        print(
            f"{name}: density {density:.3f} +- {error:.3f} g/cm^3, first peak of g(r) "
            f"{distributions[name].value[peak]:.2f} at {distributions[name].radius[peak]:.3f} A"
        )
    a, b = distributions["learned"], distributions["oracle"]
    difference = np.abs(a.value - b.value)
    found["largest_difference"] = float(difference.max())
    found["mean_difference"] = float(difference.mean())
    command.save(directory, liquid=found)
    print(json.dumps({name: found[name] for name in ("largest_difference", "mean_difference")}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
