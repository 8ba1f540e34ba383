"""How often are force errors within the bound? Realized coverage of what jaxal claims, against nominal.

    python scripts/coverage.py combinations [--frames 400]
    python scripts/coverage.py trainings [--molecules ...] [--frames 400]
    python scripts/coverage.py runs [--molecules methanol formic_acid_dimer malonaldehyde] [--set key=value ...]

`combinations`: every score, gate and three methods of uncertainty on a water molecule whose reference is a closed form:
a small committee is trained, then 100 frames calibrate a gate and the others are counted, over 200 random splits. A
combination that `jaxal check` refuses says so, one that claims no bound has a dash; the bound of the model file is
calibrated once, for whatever score and gate.

`trainings`: a small committee is trained by `jaxal train` on frames of GFN2-xTB's own dynamics at the temperature of
each molecule, 100 to train on and 200 held out; then other frames of that dynamics, and at twice the temperature: the
fraction that is supported, and how many of these are within the bound.

`runs`: the same after a run with defaults (but for --set). Needs tblite. All print a table with binomial standard
errors; nominal is 90 %.
"""

import argparse
import functools
import sys
import tempfile
import time
from pathlib import Path

import ase
import jax
import jax.numpy as jnp
import numpy as np
from ase import units
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import BFGS

from jaxal.acquire.fits import measure_of, refuse_misfits
from jaxal.acquire.gate import estimated
from jaxal.committee import evaluation as committees
from jaxal.config.loading import load, parse
from jaxal.config.schema import Offline
from jaxal.core import registry
from jaxal.core.discovery import import_parts
from jaxal.core.types import FORCE, Gate, InputError
from jaxal.data import files, neighbors
from jaxal.data.frames import of_atoms
from jaxal.data.structure import from_atoms, from_frames, labels_of
from jaxal.deploy import model
from jaxal.potential.pair import morse
from jaxal.run import driver, offline
from jaxal.train.loss import max_force_error
from jaxal.validate import command

CALIBRATING, SPLITS = 100, 200
METHODS = {"members": 3, "laplace": 1, "d_optimality": 2}  # and members
CLAIMS = ("conformal", "adaptive")  # gates whose estimate is a bound
TEMPERATURE = {"methanol": 400, "formic_acid_dimer": 400, "malonaldehyde": 400}  # K
DIMER = """C 1.90 0.12 0 O 1.18 1.16 0 O 1.44 -1.11 0 H 0.42 -1.16 0 H 2.99 0.18 0
C -1.90 -0.12 0 O -1.18 -1.16 0 O -1.44 1.11 0 H -0.42 1.16 0 H -2.99 -0.18 0"""


def percent(coverage: tuple[float, float]) -> str:
    """A coverage and its standard error."""
    return "–" if np.isnan(coverage[0]) else f"{100 * coverage[0]:.1f} ± {100 * coverage[1]:.1f}"


# ---------------------------------------------------------------- combinations


def waters(number: int, seed: int) -> list[ase.Atoms]:
    """Displaced water molecules with the energies and forces of a closed form."""
    rng, table = np.random.default_rng(seed), (1, 8)
    frames = [molecule("H2O") for _ in range(number)]
    for frame in frames:
        frame.positions += rng.normal(0, 0.06, (3, 3))
    form = morse(table, sigma=1.2, epsilon=2.0, alpha=1.5, cutoff=4.0)
    structures = jax.tree.map(jnp.asarray, from_atoms(frames, table))
    near = neighbors.find(neighbors.plan(structures, 4.0, 0.0), structures)
    energy, force, _, _ = jax.jit(lambda s, n: committees.evaluate_batch(form, {}, s, n))(structures, near)
    for row, frame in enumerate(frames):
        frame.calc = SinglePointCalculator(frame, energy=float(energy[row]), forces=np.asarray(force[row], float))
    return frames


@functools.partial(jax.jit, static_argnums=0)
def splits(rule: Gate, value: jax.Array, error: jax.Array) -> jax.Array:
    """Coverage of each split [r c]: the gate is calibrated on its first rows and the others are counted."""

    def split(value: jax.Array, error: jax.Array) -> jax.Array:
        there = jnp.ones(CALIBRATING, bool)
        state = rule.calibrate(rule.init(), value[:CALIBRATING], error[:CALIBRATING], there)
        return jnp.mean(error[CALIBRATING:] <= estimated(rule, state, value[CALIBRATING:]))

    return jax.vmap(split)(value, error)


def combinations(arguments: argparse.Namespace) -> None:
    """Trains a committee of each method and counts for every score and gate."""
    import_parts()
    fresh = [of_atoms(atoms) for atoms in waters(CALIBRATING + arguments.frames, arguments.seed + 1)]
    rows = ["| uncertainty | bound of the model | supported | score | " + " | ".join(registry.names("gate")) + " |"]
    rows.append("|" + "---|" * (4 + len(registry.names("gate"))))
    for name, members in METHODS.items():
        with tempfile.TemporaryDirectory() as folder:
            write(Path(folder) / "train.xyz", waters(120, arguments.seed), format="extxyz")
            raw = {"data": {"file": "train.xyz"}, "committee": {"members": members}, "uncertainty": {"name": name}}
            raw |= {"potential": {"channels": 8, "l_max": 1, "layers": 1, "cutoff": 4.0}, "seed": arguments.seed}
            raw |= {"train": {"final_steps": 400, "learning_rate": 0.01, "batch": 4, "holdout": 0.5}}
            offline.train(parse(raw, Path(folder), Offline), Path(folder) / "run")
            made = model.load(Path(folder) / "run")
        whole = command.measure(made, fresh)
        own = percent((whole.within, whole.within_error)) + f" | {100 * whole.support:.0f} %"
        structures = jax.tree.map(jnp.asarray, from_frames(fresh, made.table))
        labels = jax.tree.map(jnp.asarray, labels_of(fresh))
        prediction = model.predictor(made)(structures)
        error = max_force_error(prediction.force.mean(1), structures, labels)
        method = model.committee(made).uncertainty
        spread = FORCE if method is None else method.unit
        rng = np.random.default_rng(arguments.seed)
        orders = np.stack([rng.permutation(len(fresh)) for _ in range(SPLITS)])
        for score in registry.names("score"):
            options = {option.name: option.default for option in registry.options("score", score)}
            value = jax.jit(jax.vmap(registry.get("score", score)))(prediction, structures)
            cells = []
            for gate in registry.names("gate"):
                rule = registry.get("gate", gate)()
                try:
                    refuse_misfits(score, options, gate, rule, name, spread)
                except InputError:
                    cells.append("refused")
                    continue
                if gate not in CLAIMS:
                    cells.append("–")
                    continue
                coverages = np.asarray(splits(rule, value[orders], error[orders]))
                cells.append(f"{100 * coverages.mean():.1f} ± {100 * coverages.std(ddof=1) / np.sqrt(SPLITS):.1f}")
            unit = measure_of(score, options).unit or "no unit"
            rows.append(f"| {name} | {own} | `{score}`, {unit} | " + " | ".join(cells) + " |")
        print(f"{name}: trained and counted", flush=True)
    print("\n".join(rows))


# ---------------------------------------------------------------- runs


def start_of(name: str) -> ase.Atoms:
    """A first geometry."""
    if name == "formic_acid_dimer":
        words = DIMER.split()
        return ase.Atoms(words[::4], np.array([words[1::4], words[2::4], words[3::4]], float).T)
    if name == "malonaldehyde":
        atoms = read(Path(__file__).parent.parent / "experiments" / "malonaldehyde" / "malonaldehyde.xyz")
        assert isinstance(atoms, ase.Atoms)
        return atoms
    return molecule("CH3OH")


def dynamics(atoms: ase.Atoms, temperature: float, number: int, seed: int) -> list[ase.Atoms]:
    """Frames of GFN2's own Langevin dynamics, 20 fs apart, the first 0.5 ps left out."""
    rng, frames = np.random.default_rng(seed), []
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature, rng=rng)
    warm = {"temperature_K": temperature, "friction": 0.01 / units.fs, "rng": rng}
    moving = Langevin(atoms, 0.5 * units.fs, fixcm=False, **warm)  # a fixed center heats small molecules by a third
    moving.run(1000)
    for _ in range(number):
        moving.run(40)
        frame = ase.Atoms(atoms.numbers, atoms.positions)
        frame.calc = SinglePointCalculator(frame, energy=atoms.get_potential_energy(), forces=atoms.get_forces())
        frames.append(frame)
    return frames


HEAD = "| molecule | labels | calibrating | nominal, % | K | supported, % | supported, within the bound, % | all, % |"


def counted(name: str, made: model.Model, labels: int, atoms: ase.Atoms, arguments: argparse.Namespace) -> list[str]:
    """Rows of the table, on the method's own dynamics at the molecule's temperature and at twice that."""
    rows, kelvin = [], TEMPERATURE[name]
    count, nominal = (
        (0, "–") if made.calibration is None else (made.calibration.count, f"{made.calibration.coverage:.1%}")
    )
    for hot in (kelvin, 2 * kelvin):
        frames = dynamics(atoms, hot, arguments.frames, arguments.seed + hot)
        measurement = command.measure(made, [of_atoms(frame) for frame in frames])
        inside, whole = (
            (measurement.within, measurement.within_error),
            (measurement.structures.covered, measurement.structures.covered_error),
        )
        rows.append(
            f"| {name} | {labels} | {count} | {nominal} | {hot} | {100 * measurement.support:.1f} | "
            f"{percent(inside)} | {percent(whole)} |"
        )
    return rows


def prepared(name: str) -> ase.Atoms:
    """The relaxed molecule with its method."""
    from tblite.ase import TBLite

    atoms = start_of(name)
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    BFGS(atoms, logfile=None).run(fmax=0.02, steps=200)
    return atoms


def trainings(arguments: argparse.Namespace) -> None:
    """Trains on the method's own dynamics and counts on more of it."""
    rows = [HEAD, "|" + "---|" * 8]
    for name in arguments.molecules:
        began, atoms = time.monotonic(), prepared(name)
        with tempfile.TemporaryDirectory() as folder:
            frames = dynamics(atoms, TEMPERATURE[name], 300, arguments.seed + 1)
            files.write(Path(folder) / "train.xyz", map(of_atoms, frames))
            raw = {"data": {"file": "train.xyz"}, "committee": {"members": 3}, "seed": arguments.seed}
            raw |= {"potential": {"channels": 8, "l_max": 1, "layers": 2, "cutoff": 4.5}}
            raw |= {
                "train": {"final_steps": 800, "learning_rate": 0.01, "energy_weight": 5.0, "holdout": 0.667, "batch": 4}
            }
            offline.train(parse(raw, Path(folder), Offline), Path(folder) / "run")
            made = model.load(Path(folder) / "run")
        rows += counted(name, made, 300, atoms, arguments)
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    print("\n".join(rows))


def runs(arguments: argparse.Namespace) -> None:
    """Runs each molecule and counts on the method's own dynamics."""
    arguments.dir.mkdir(parents=True, exist_ok=True)
    rows = [HEAD, "|" + "---|" * 8]
    for name in arguments.molecules:
        began, atoms = time.monotonic(), prepared(name)
        write(arguments.dir / f"{name}.xyz", ase.Atoms(atoms.numbers, atoms.positions), format="extxyz")
        (arguments.dir / f"{name}.yaml").write_text(
            f"system: {{file: {name}.xyz, charge: 0, spin: 0}}\nexplore: {{temperature: {TEMPERATURE[name]}}}\n"
            f"label: {{name: tblite, method: GFN2-xTB}}\nseed: {arguments.seed}\n"
        )
        folder = arguments.dir / name
        if not (folder / model.FILE_NAME).is_file():
            driver.start(load(arguments.dir / f"{name}.yaml", arguments.set), folder)
        labels = len(files.read(folder / "training.xyz"))
        rows += counted(name, model.load(folder), labels, atoms, arguments)
        print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
    print("\n".join(rows))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("combinations", "trainings", "runs"))
    parser.add_argument("--frames", type=int, default=400, help="that are counted, of each kind")
    parser.add_argument("--molecules", nargs="+", choices=list(TEMPERATURE), default=list(TEMPERATURE))
    parser.add_argument("--set", nargs="+", default=[], help="fields of the run's configuration")
    parser.add_argument("--dir", type=Path, default=Path("runs/coverage"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    {"combinations": combinations, "trainings": trainings, "runs": runs}[arguments.what](arguments)


if __name__ == "__main__":
    sys.exit(main())
