"""Is the error bound of the conformal gates kept? Realized coverage on frames that nothing was learned from.

    python scripts/conformal_coverage.py --data DIR [--systems malonaldehyde acetylacetone silicon]

Trains a small committee on frames of malonaldehyde (rMD17), acetylacetone and silicon, predicts many others, and draws
from these, again and again, some to calibrate the gate on and the rest to count on: how often the largest force error
of a structure is within factor * score. `adaptive` counts along a stream in random order, from the same calibration
on. The last column calibrates on frames of low energy and counts on those of high energy. DIR holds rmd17/, acac/ and
silicon/ as published. Prints a table and a verdict; the exit status is 1 where a coverage is more than 3 % from
nominal.
"""

import argparse
import functools
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxal.acquire.gate import adaptive, conformal
from jaxal.config.loading import parse
from jaxal.config.schema import Offline
from jaxal.core.types import Gate
from jaxal.data import files
from jaxal.data.frames import Frame
from jaxal.data.structure import from_frames, labels_of
from jaxal.deploy import model
from jaxal.run import offline
from jaxal.validate.command import predict_all
from jaxal.validate.errors import atom_errors


class System(NamedTuple):
    """Files below DIR, how many frames are trained on and how many calibrate, optimizer steps, range of the model."""

    train: str
    others: tuple[str, ...]
    trained: int
    calibrated: int
    steps: int
    cutoff: float  # Å


SYSTEMS = {
    "malonaldehyde": System(
        "rmd17/rmd17_malonaldehyde_train_01.xyz.gz", ("rmd17/rmd17_malonaldehyde_test_01.xyz.gz",), 150, 100, 600, 4.5
    ),
    "acetylacetone": System("acac/train_300K.xyz", ("acac/test_MD_300K.xyz",), 150, 100, 600, 4.5),
    "silicon": System("silicon/Si_train.xyz", ("silicon/Si_test.xyz",), 60, 60, 600, 4.0),
}
POTENTIAL = {"channels": 8, "l_max": 1, "layers": 1}
TRAIN = {"batch": 4, "learning_rate": 0.01, "energy_weight": 5.0, "holdout": 0.1}
MISS = (0.2, 0.1, 0.05)
ALLOWED = 0.03


class Seen(NamedTuple):
    """Frames that nothing was learned from [c]."""

    score: np.ndarray  # eV/Å, largest force spread
    error: np.ndarray  # eV/Å, largest force error
    energy: np.ndarray  # eV per atom, of the reference
    rmse: float  # eV/Å, of a force component


def predicted(arguments: argparse.Namespace, system: System) -> Seen:
    """Trains a committee on some frames and predicts all others."""
    frames = files.read(arguments.data / system.train)
    rng = np.random.default_rng(arguments.seed)
    order = rng.permutation(len(frames))
    others = [frames[row] for row in order[system.trained :]]
    others += [frame for name in system.others for frame in files.read(arguments.data / name)]
    others = [others[row] for row in rng.permutation(len(others))[: arguments.frames]]
    with tempfile.TemporaryDirectory() as folder:
        files.write(Path(folder) / "train.xyz", [frames[row] for row in order[: system.trained]])
        raw = {
            "data": {"file": "train.xyz"},
            "potential": POTENTIAL | {"cutoff": system.cutoff},
            "seed": arguments.seed,
        }
        raw |= {
            "committee": {"members": arguments.members},
            "train": TRAIN | {"final_steps": arguments.steps or system.steps},
        }
        offline.train(parse(raw, Path(folder), Offline), Path(folder) / "run")
        made = model.load(Path(folder) / "run")
    return measured(made, others)


def measured(made: model.Model, frames: list[Frame]) -> Seen:
    """Scores and true errors of labeled frames."""
    structures = from_frames(frames, made.table)
    labels, prediction = labels_of(frames), predict_all(made, structures)
    species = np.asarray(structures.species)
    error = atom_errors(prediction.label.force, labels.force, species)
    count = (species >= 0).sum(axis=1)
    return Seen(
        prediction.spread.max(axis=1),
        error.max(axis=1),
        np.asarray(labels.energy) / count,
        float(np.sqrt(np.sum(error**2) / (3 * count.sum()))),
    )


@functools.partial(jax.jit, static_argnums=(0, 3))
def coverage(gate: Gate, score: jax.Array, error: jax.Array, number: int) -> jax.Array:
    """Share of the errors within the bound, of the rows after the first `number`, on which the gate is calibrated."""
    state = gate.calibrate(gate.init(), score[:number], error[:number], jnp.ones(number, bool))

    def step(state, pair):
        assert gate.observe is not None
        return gate.observe(state, pair[0], pair[1], jnp.ones(1, bool)), None

    state, _ = jax.lax.scan(step, state, (score[number:, None], error[number:, None]))
    return state.covered / state.checked


def drawn(arguments: argparse.Namespace, seen: Seen, number: int, gate: Gate, shifted: bool) -> np.ndarray:
    """Coverages of many random splits; `shifted`: calibrated on the half of low energy, counted on the other."""
    rng = np.random.default_rng(arguments.seed + 1)
    orders = np.stack([rng.permutation(len(seen.score)) for _ in range(arguments.splits)])
    if shifted:
        low = seen.energy < np.median(seen.energy)
        orders = np.stack([np.r_[row[low[row]][:number], row[~low[row]]] for row in orders])
    score, error = (jnp.asarray(x[orders], jnp.float32) for x in (seen.score, seen.error))
    return np.asarray(jax.vmap(lambda s, e: coverage(gate, s, e, number))(score, error))


def main() -> None:
    """Trains, counts, prints and judges."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the published data")
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--steps", type=int, help="of the optimizer, for all systems")
    parser.add_argument("--frames", type=int, default=600, help="to predict, at most")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    wrong = 0
    rows = ["| system | gate | frames | nominal, % | realized, % | one split, % | shifted, % |", "|" + "---|" * 7]
    for name in arguments.systems:
        system, began = SYSTEMS[name], time.monotonic()
        seen = predicted(arguments, system)
        number = len(seen.score)
        rho = np.corrcoef(np.argsort(np.argsort(seen.score)), np.argsort(np.argsort(seen.error)))[0, 1]
        print(
            f"{name}: {system.trained} frames trained on, {number} others, force RMSE {1e3 * seen.rmse:.0f} meV/Å, "
            f"rank correlation {rho:.2f}, {time.monotonic() - began:.0f} s",
            flush=True,
        )
        for kind in (conformal, adaptive):
            for miss in MISS:
                gate = kind(miss_rate=miss)
                coverages = drawn(arguments, seen, system.calibrated, gate, False)
                moved = drawn(arguments, seen, system.calibrated, gate, True)
                mean, spread = coverages.mean(), coverages.std(ddof=1)
                bad = abs(mean - (1 - miss)) > ALLOWED
                wrong += bad
                rows.append(
                    f"| {name} | {kind.__name__} | {system.calibrated} + {number - system.calibrated} | "
                    f"{100 * (1 - miss):.0f} | {100 * mean:.1f} ± {100 * spread / np.sqrt(len(coverages)):.1f}"
                    f"{' (wrong)' if bad else ''} | ± {100 * spread:.1f} | {100 * moved.mean():.1f} |"
                )
    print("\n".join(rows))
    print(f"{'kept' if not wrong else f'NOT kept in {wrong} rows'}: within {100 * ALLOWED:.0f} % of nominal")
    sys.exit(int(wrong > 0))


if __name__ == "__main__":
    main()
