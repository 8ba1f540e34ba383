"""What every method of uncertainty costs, relative to one model: a prediction, and learning its posterior.

    NPROC=1 XLA_FLAGS=--xla_cpu_multi_thread_eigen=false python scripts/cost_of_uncertainty.py [--labels 64]

Malonaldehyde with an equivariant potential of 16 channels, 16 structures a prediction, methods with their default
options. CPU times, medians over rounds in which every method is timed once after the other. Learning is given in
predictions of one model for as many structures as there are labels. Prints a table.
"""

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxal import committee, neighbors, registry
from jaxal.committee import Committee
from jaxal.parts import import_parts
from jaxal.potential.equivariant import equivariant
from jaxal.structure import from_atoms, read_frames
from jaxal.types import Label, Lessons

FRAMES = Path(__file__).parents[1] / "experiments/malonaldehyde/test_500K.xyz.gz"
TABLE, WALKERS = (1, 6, 8), 16


def main() -> None:
    """The table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=64, help="structures of the training set, a quarter held out")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    import_parts()
    potential = equivariant(TABLE, cutoff=4.5, channels=16)
    frames = read_frames(FRAMES)
    frames = [frames[i] for i in np.linspace(0, len(frames) - 1, given.labels).astype(int)]
    structures = jax.tree.map(jnp.asarray, from_atoms(frames, TABLE))
    near = jax.jit(neighbors.find, static_argnums=0)(neighbors.plan(structures, potential.cutoff), structures)
    force = jnp.asarray(np.stack([frame.get_forces() for frame in frames]), jnp.float32)
    none = jnp.zeros(given.labels, jnp.float32)
    held = jnp.arange(given.labels) % 4 == 3
    stress = jnp.zeros((given.labels, 3, 3), jnp.float32)
    lessons = Lessons(structures, near, Label(none, force, stress, none == 0), ~held, held)
    few = jax.tree.map(lambda x: x[:WALKERS], (structures, near))
    first = jax.tree.map(lambda x: x[0], (structures, near))

    predictions, learnings = {}, {}
    for name in ("one model", *registry.names("uncertainty")):
        make = None if name == "one model" else registry.get("uncertainty", name)
        method = make and make(potential, len(TABLE))
        if make and method is None:
            continue
        whole = Committee(potential, 1, "map", species=len(TABLE), uncertainty=method)
        params = jax.jit(lambda key, whole=whole: committee.init(whole, key, *first))(jax.random.key(0))
        run = jax.jit(lambda params, given, whole=whole: committee.predict(whole, params, *given))
        if method is None:
            learnings[name] = (run, (params, (structures, near)))
        else:
            alone = jax.tree.map(lambda x: x[0], params)
            learn = jax.jit(method.learn)
            learnings[name] = (learn, (alone, lessons))
            posterior = {"posterior": jax.tree.map(lambda x: x[None], learn(alone, lessons))}
            params = {**params, **posterior}
        predictions[name] = (run, (params, few))

    def medians(calls: dict) -> dict[str, float]:
        for run, arguments in calls.values():
            jax.block_until_ready(run(*arguments))
        times = {name: [] for name in calls}
        for _ in range(given.rounds):
            for name, (run, arguments) in calls.items():
                began = time.process_time()
                jax.block_until_ready(run(*arguments))
                times[name].append(time.process_time() - began)
        return {name: float(np.median(each)) for name, each in times.items()}

    predicted, learned = medians(predictions), medians(learnings)
    one, all_labels = predicted["one model"], learned["one model"]
    print(f"one model: {1e3 * one:.1f} ms for {WALKERS} structures, {1e3 * all_labels:.1f} ms for {given.labels}\n")
    print("| method | prediction | learning |\n|---|---|---|")
    for name, spent in predicted.items():
        told = "" if name == "one model" else f"{learned[name] / all_labels:.1f}"
        print(f"| {name} | {spent / one:.2f} | {told} |")


if __name__ == "__main__":
    main()
