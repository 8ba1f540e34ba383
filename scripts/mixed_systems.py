"""What a step of several systems in one program costs, beside the same systems each in a program of its own.

    python scripts/mixed_systems.py [--rounds 9] [--threads 1]

Water, its dimer, its hexamer and a periodic box of 32 waters, two walkers each, four members of the default potential
with random weights. Everything is timed in alternation, ten steps at a time; printed are the groups, the time to
compile, the median times of a step, and the ratio of the one program to the sum of the four.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import molecule
from ase.io import write

STEPS = 10  # between two looks


def turned(rng: np.random.Generator) -> Atoms:
    """A water molecule, any way round."""
    water = molecule("H2O")
    water.rotate(360 * rng.random(), rng.normal(size=3))
    water.positions -= water.get_center_of_mass()
    return water


def structures() -> dict[str, Atoms]:
    """The systems: hydrogen-bond distances and densities of water, orientations at random."""
    rng = np.random.default_rng(0)
    places = {
        "water": np.zeros((1, 3)),
        "dimer": np.array([[0.0, 0.0, 0.0], [2.9, 0.0, 0.0]]),
        "hexamer": np.array([[2.9 * np.cos(a), 2.9 * np.sin(a), 0.0] for a in np.arange(6) * np.pi / 3]),
        "box": np.array([[x, y, z] for x in range(4) for y in range(4) for z in range(2)]) * [2.46, 2.46, 4.93],
    }
    systems = {}
    for name, centers in places.items():
        atoms = Atoms()
        for center in centers:
            water = turned(rng)
            water.positions += center
            atoms += water
        systems[name] = atoms
    systems["box"].set_cell([9.86, 9.86, 9.86])
    systems["box"].pbc = True
    return systems


def program(folder: Path, names: list[str]) -> tuple[Any, list[list[str]], float]:
    """Ten steps of these systems as a function without arguments, their groups, and the seconds it took to compile."""
    import jax
    import jax.numpy as jnp

    from jaxal.config.loading import parse
    from jaxal.config.systems import grouped, populations
    from jaxal.data.structure import species_table
    from jaxal.plan import programs
    from jaxal.program import loop

    systems = {name: {"file": f"{name}.xyz", "walkers": 2} for name in names}
    raw = {"systems": systems, "gate": {"every": STEPS, "implausible": 1e6, "closest": 0.0, "hottest": 1e6}}
    config = parse(raw | {"devices": 1}, folder)
    running = populations(config)
    table = species_table([system.starts[0] for system in running])
    run = programs.run_of(config, running, table, filled=True)
    walk = loop.make_walks(run.parts, run.static)
    limits = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype) + jnp.asarray(1e6, x.dtype), run.limits)
    began = time.perf_counter()
    compiled = jax.jit(walk).lower(limits, run.state).compile()
    took = time.perf_counter() - began
    groups = grouped(running, config.potential.bind()(table).cutoff)
    return lambda: jax.block_until_ready(compiled(limits, run.state)), [[names[n] for n in g] for g in groups], took


def main() -> None:
    """Compiles, times and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if options.threads == 1:
        os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false"
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    with tempfile.TemporaryDirectory() as folder:
        atoms = structures()
        for name, each in atoms.items():
            write(Path(folder) / f"{name}.xyz", each, format="extxyz")
        runs = {"together": list(atoms)} | {name: [name] for name in atoms}
        programs = {name: program(Path(folder), names) for name, names in runs.items()}
    times: dict[str, list[float]] = {name: [] for name in programs}
    for _ in range(options.rounds + 1):
        for name, (steps, _, _) in programs.items():
            began = time.perf_counter()
            steps()
            times[name].append((time.perf_counter() - began) / STEPS)
    medians = {name: float(np.median(values[1:])) for name, values in times.items()}
    for name, (_, groups, took) in programs.items():
        print(f"{name:10} {1e3 * medians[name]:9.2f} ms a step, compiled in {took:5.1f} s, groups {groups}")
    apart = sum(medians[name] for name in atoms)
    print(f"together / apart: {medians['together'] / apart:.3f}")


if __name__ == "__main__":
    main()
