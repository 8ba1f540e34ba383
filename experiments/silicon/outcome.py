"""What the silicon run learned: density and structure of its liquid beside the oracle's own.

`python experiments/silicon/outcome.py RUN` takes the last frame of the run and runs the learned committee and
Stillinger-Weber itself from there at zero pressure with the same integrator and momenta: 4 ps from 3200 K, where the
crystal melts, down to 2500 K, 2 ps to settle, then 16 ps measured. Densities, g(r) with errors from blocks and the
mean square displacement, which a crystal would not have, go into RUN/validate.json. Prints them.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxal.committee.evaluation import Committee
from jaxal.data.files import read
from jaxal.data.structure import from_frames
from jaxal.deploy import model
from jaxal.explore.dynamics import npt_nose_hoover
from jaxal.potential.pair import stillinger_weber
from jaxal.validate import command, dynamics

MELT, TEMPERATURE, TIMESTEP, EVERY = 3200.0, 2500.0, 2.0, 20  # K, K, fs, steps
RAMP, SETTLE, LENGTH = 4.0, 6.0, 16.0  # ps; the ramp is part of what settles


def main(directory: Path) -> None:
    """Measures, prints and writes."""
    start = read(directory / "trajectory.xyz")[-1]
    finished = model.load(directory)
    table, learned = finished.table, model.committee(finished)
    oracle = stillinger_weber(table)
    structure = jax.tree.map(jnp.asarray, from_frames([start], table))
    explorer = npt_nose_hoover(
        temperature=MELT, final_temperature=TEMPERATURE, ramp=RAMP, timestep=TIMESTEP, barostat_tau=500.0
    )
    params = jax.tree.map(jnp.asarray, finished.params)
    fields = {
        "learned": (dynamics.mean_field(learned, params), learned.potential.cutoff),
        "oracle": (dynamics.mean_field(Committee(oracle, 1, "vmap"), {"none": jnp.zeros(1)}), oracle.cutoff),
    }
    liquid, distributions = {}, {}
    for name, (field, cutoff) in fields.items():
        trajectory = dynamics.run(
            field, cutoff, explorer, structure, jax.random.key(7), length=SETTLE + LENGTH, every=EVERY, skin=1.0
        )
        frames = dynamics.frames_of(trajectory, 0, table)[round(SETTLE * 1e3 / (TIMESTEP * EVERY)) :]
        density, error = dynamics.density(frames)
        # a superheated crystal would stay where it is
        moved = float(np.mean(np.sum((frames[-1].positions - frames[0].positions) ** 2, axis=1)))
        distributions[name] = dynamics.radial_distribution(frames, 5.0)
        liquid[name] = {
            "density": density,
            "density_error": error,
            "moved": moved,
            "rdf": command.to_json(distributions[name]),
        }
        peak = int(np.argmax(distributions[name].value))
        print(
            f"{name}: density {density:.3f} +- {error:.3f} g/cm^3, first peak of g(r) "
            f"{distributions[name].value[peak]:.2f} at {distributions[name].radius[peak]:.3f} A, "
            f"mean square displacement {moved:.0f} A^2"
        )
    a, b = distributions["learned"], distributions["oracle"]
    difference = np.abs(a.value - b.value)
    liquid["largest_difference"] = float(difference.max())
    liquid["mean_difference"] = float(difference.mean())
    command.save(directory, liquid=liquid)
    print(json.dumps({name: liquid[name] for name in ("largest_difference", "mean_difference")}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
