"""Training from labeled structures in a file, with the sections a run has: `jaxal train`."""

import time
from pathlib import Path

import ase
import jax
import numpy as np

from jaxal import finish, neighbors, records, report, setup
from jaxal.acquire.gate import conformal
from jaxal.acquire.score import max_force_spread
from jaxal.config import resolved
from jaxal.progress import Status, display
from jaxal.schema import Offline
from jaxal.structure import from_atoms, read_frames, read_labels, species_table
from jaxal.train import fit as training
from jaxal.train.calibrate import Judge, calibrate
from jaxal.types import InputError


def train(config: Offline, directory: Path) -> None:
    """Trains a committee on a file and writes model, training set, validation and report into a new folder.

    Raises InputError for mistakes and for a folder in use, before any training.
    """
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()):
        raise InputError(f"{directory}: the folder is in use; give another with --dir")
    dtype = setup.dtype_of(config.precision)
    data = config.data
    frames = read_frames(data.file)
    extra = read_frames(data.validation) if data.validation else []
    table = species_table(frames + extra)
    held = np.r_[np.zeros(len(frames), bool), np.ones(len(extra), bool)]
    if not extra:
        held = setup.spread_hold(len(frames), config.train.holdout) if len(frames) > 1 else held
    if not extra and (held.all() or not held.any()):
        raise InputError(
            f"data.file: {data.file} holds {len(frames)} structure; one to train and one to hold out are needed"
        )
    structures, labels, reference = _device(config, frames, extra, table, held, dtype)
    config = resolved(config, directory)
    records.versions(directory)
    began = time.monotonic()
    with display() as show:

        def status(phase: str, error: float | None = None, left: float | None = None) -> None:
            elapsed = time.monotonic() - began
            show(Status(phase, elapsed, labels=len(held), true_error=error, eta=left))

        def note(phase: str) -> None:
            line = {"kind": "phase", "wall": time.monotonic() - began, "phase": phase, "why": ""}
            records.append(directory, [line])

        status("preparing")
        committee = setup.committee_of(config, table)
        near = neighbors.plan(structures, committee.potential.cutoff, 0.0, 1.0)
        key, key_set, key_fit = jax.random.split(jax.random.key(config.seed), 3)
        recipe = setup.recipe(config.train)
        params = setup.new_params(committee, key, near, structures, labels)
        buffer = setup.training_set(structures, labels, held, committee.members, len(held), key_set, recipe.bootstrap)
        gate = conformal()
        judge = Judge(committee, max_force_spread, gate, near, finish.fold_of(held))
        state = training.init(recipe, params)
        note("final training")
        state, learned, error = finish.anneal(
            judge,
            recipe,
            state,
            buffer,
            calibrate(judge, gate.init(), params, buffer)[0],
            key_fit,
            config.train.final_steps,
            config.train.learning_rate,
            config.train.final_learning_rate,
            lambda error, left: status("training", error, left),
        )
        finish.write_model(
            directory,
            committee,
            state,
            learned,
            potential=config.potential.name,
            options=config.potential.options,
            uncertainty=config.uncertainty.name,
            uncertainty_options=config.uncertainty.options,
            table=table,
            reference=reference,
            precision=config.precision,
            charge=data.charge,
            spin=data.spin,
        )
        records.write_training(directory, buffer, table, reference)
        status("validation", error)
        finish.validated(directory, config.data.validation)
        note("done")
        report.write(directory)
        status("done", error)


def _device(
    config: Offline,
    frames: list[ase.Atoms],
    extra: list[ase.Atoms],
    table: tuple[int, ...],
    held: np.ndarray,
    dtype: np.dtype,
):
    """Structures and labels on the device, energies relative to references fitted to what is trained on."""
    size = max(len(atoms) for atoms in frames + extra)
    data = config.data
    host = from_atoms(frames + extra, table, data.charge, data.spin, size, np.float64)
    told = [
        read_labels(part, size, str(path)) for part, path in ((frames, data.file), (extra, data.validation)) if part
    ]
    labels = jax.tree.map(lambda *x: np.concatenate(x), *told)
    if config.train.stress_weight and np.isnan(labels.stress).any():
        raise InputError("train.stress_weight: some periodic structures carry no stress; give 0 or data with stress")
    fitted = jax.tree.map(lambda x: x[~held], host)
    reference = training.reference_energies(fitted, labels.energy[~held], len(table))
    return *setup.cast(host, labels, reference, dtype), reference
