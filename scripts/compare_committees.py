"""Full and shared committees on malonaldehyde: what a prediction costs, and how well its spread tells the error.

    NPROC=1 XLA_FLAGS=--xla_cpu_multi_thread_eigen=false python scripts/compare_committees.py [--steps 1500]

Trains each committee offline on frames of two of the GFN2-xTB trajectories at 500 K in experiments/malonaldehyde and
measures it on the frames of the other two. Costs are CPU times of one prediction for 16 structures over that of one
member, medians over rounds in which every committee is timed once after the other. Prints the table of
docs/benchmarks.md.
"""

import argparse
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ase.io import write

from jaxal import model, neighbors, offline
from jaxal.committee import predict
from jaxal.config import parse
from jaxal.schema import Offline
from jaxal.structure import from_atoms, read_frames
from jaxal.validate import command

FRAMES = Path(__file__).parents[1] / "experiments/malonaldehyde/test_500K.xyz.gz"
TRAINING = 250  # frames of the first two trajectories
POTENTIAL = {"cutoff": 4.5, "channels": 16, "l_max": 2, "layers": 2, "correlation": 2}
TRAIN = {"batch": 8, "learning_rate": 0.01, "energy_weight": 5.0, "holdout": 0.2}
TITLES = ("committee", "cost", "force RMSE, meV/Å", "rank correlation", "bound / spread", "within the bound, %")
TITLES += ("log-likelihood gained",)


def trained(name: str, given: argparse.Namespace, committee: dict, folder: Path) -> model.Model:
    """A committee trained on the frames in `folder`."""
    raw = {"data": {"file": "train.xyz"}, "potential": POTENTIAL, "committee": committee, "seed": given.seed}
    raw["train"] = TRAIN | {"final_steps": given.steps}
    offline.train(parse(raw, folder, Offline), folder / name)
    return model.load(folder / name)


def costs(models: dict[str, model.Model], rounds: int) -> dict[str, float]:
    """CPU time of one prediction, ms, medians over the rounds."""
    structures = jax.tree.map(jnp.asarray, from_atoms(read_frames(FRAMES, ":16"), next(iter(models.values())).table))
    calls, times = {}, {name: [] for name in models}
    for name, one in models.items():
        committee = model.committee(one)
        near = neighbors.find(neighbors.plan(structures, committee.potential.cutoff), structures)
        arguments = jax.tree.map(jnp.asarray, one.params), structures, near
        compiled = jax.jit(predict, static_argnums=0).lower(committee, *arguments).compile()
        calls[name] = lambda compiled=compiled, arguments=arguments: jax.block_until_ready(compiled(*arguments))
    for turn in range(rounds + 1):
        for name, call in calls.items():
            began = time.process_time()
            for _ in range(10):
                call()
            if turn:  # the first is to warm up
                times[name].append(100 * (time.process_time() - began))
    return {name: float(np.median(each)) for name, each in times.items()}


def main() -> None:
    """Trains, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=8)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--frames", type=int, default=100, help="to train on, a fifth of them held out, at most 250")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    frames = read_frames(FRAMES)
    rows = np.linspace(0, TRAINING - 1, given.frames).astype(int)
    committees = {"full": {"kind": "full"}, "shared": {"kind": "shared"}, "2 signs": {"kind": "shared", "signs": 2}}
    committees |= {"4 signs": {"kind": "shared", "signs": 4}}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "train.xyz", [frames[row] for row in rows], format="extxyz")
        models = {
            name: trained(name, given, each | {"members": given.members}, Path(folder))
            for name, each in committees.items()
        }
    first = models["full"]
    first = first._replace(params=jax.tree.map(lambda x: x[:1], first.params))
    spent = costs({"one": first} | models, given.rounds)
    print("| " + " | ".join(TITLES) + " |\n|" + "---|" * len(TITLES))
    for name, one in models.items():
        found = command.measure(one, frames[TRAINING:])
        of = found.atoms
        cells = [
            name,
            f"{spent[name] / spent['one']:.2f}",
            f"{1e3 * found.errors.force.rmse:.1f}",
            f"{of.spearman:.2f}",
        ]
        covered = found.structures
        cells += [f"{one.factor:.1f}", f"{100 * covered.covered:.0f} ± {100 * covered.covered_error:.0f}"]
        print("| " + " | ".join([*cells, f"{of.nll_constant - of.nll:.2f}"]) + " |", flush=True)


if __name__ == "__main__":
    main()
