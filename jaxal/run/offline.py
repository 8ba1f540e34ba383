"""Training from labeled structures in a file, with the sections a run has: `jaxal train`."""

import dataclasses
import time
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxal.config import electrons
from jaxal.config.schema import Data, Offline, Train
from jaxal.config.writing import resolved
from jaxal.core.types import InputError
from jaxal.data import dataset, neighbors
from jaxal.data.frames import Frame
from jaxal.data.lattice import FLAT
from jaxal.data.structure import from_frames, labels_of, shares_of
from jaxal.deploy import model
from jaxal.report import page
from jaxal.report.display import Status, display
from jaxal.run import assembly, final_training, folder, training_data
from jaxal.train import fit as training
from jaxal.train.bound import bounded
from jaxal.train.reference import reference_energies
from jaxal.train.support import learned


def train(config: Offline, directory: Path) -> None:
    """Trains a committee on a file and writes model, training set, validation and report into a new folder.

    Raises InputError for mistakes and for a folder in use, before any training.
    """
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()):
        raise InputError(f"{directory}: the folder is in use; give another with --dir")
    dtype = assembly.dtype_of(config.precision)
    data = config.data
    frames, held, isolated = _data(data, config.train)
    table = dataset.species_of(frames)
    free = {table.index(z): energy for z, energy in isolated.items() if z in table}
    states = dataset.states_of(frames)
    exact = bool(free) and any(charge == 0 for charge, _ in states)  # what leaves an ion may be one itself
    potential = electrons.resolved(config.potential, states)
    structures, labels, reference = _device(config, frames, free, table, held, dtype)
    config = dataclasses.replace(resolved(config, directory), potential=potential)
    folder.versions(directory)
    began = time.monotonic()
    with display() as show:

        def status(phase: str, error: float | None = None, left: float | None = None) -> None:
            elapsed = time.monotonic() - began
            show(Status(phase, elapsed, labels=len(held), true_error=error, eta=left))

        def note(phase: str) -> None:
            line = {"kind": "phase", "wall": time.monotonic() - began, "phase": phase, "why": ""}
            folder.append(directory, [line])

        status("preparing")
        committee = assembly.committee_of(config, table, exact)
        near = neighbors.plan(structures, committee.potential.cutoff, 0.0, 1.0)
        key, key_set, key_fit = jax.random.split(jax.random.key(config.seed), 3)
        recipe = assembly.recipe(config.train)
        params = training_data.new_params(committee, key, near, structures, labels, reference, free)
        last = final_training.split_held(held, dataset.groups(frames))  # known to nothing but the bound
        shares = shares_of(frames)[~last]
        rest = [jax.tree.map(lambda x: np.asarray(x)[~last], tree) for tree in (structures, labels)]
        drawn = committee.members, len(held), key_set, recipe.bootstrap, shares
        buffer = training_data.training_set(rest[0], rest[1], held[~last], *drawn)
        state = training.init(recipe, params)
        note("final training")
        state, error = final_training.anneal(
            committee,
            recipe,
            near,
            state,
            buffer,
            key_fit,
            config.train.final_steps,
            config.train.learning_rate,
            config.train.final_learning_rate,
            lambda error, left: status("training", error, left),
        )
        support = jax.jit(learned, static_argnums=(0, 1))(committee, near, state.average, buffer)
        judging = [jax.tree.map(lambda x: np.asarray(x)[last], tree) for tree in (structures, labels)]
        bound = bounded(committee, state.average, support, judging[0], judging[1], final_training.HELD)
        facts = table, reference, exact
        learned_model = final_training.model_of(config, committee, state, bound, buffer, *facts)
        model.save(directory / model.FILE_NAME, learned_model)
        folder.write_frames(directory / folder.TRAINING, map(folder.marked, frames, held))
        status("validation", error)
        final_training.validated(directory, config.data.validation)
        note("done")
        page.write(directory)
        status("done", error)


class _Data(NamedTuple):
    """What is trained on and what is held out."""

    frames: list[Frame]
    held: np.ndarray  # [b] bool
    isolated: dict[int, float]  # atomic number -> eV, of free atoms


def _data(data: Data, train: Train) -> _Data:
    """The frames of the files, checked together, before anything is computed.

    Copies of a structure stay on one side. Where none can be spared nothing is held out. Raises InputError for held-out
    frames that those to train on know nothing of.
    """

    def read(file: Path) -> dataset.Labeled:
        return dataset.labeled(file, "data", data.charge, data.spin, data.method)

    frames, isolated = read(data.file)
    group = dataset.tell_duplicates(frames, str(data.file))
    if data.validation is None:
        held = dataset.held_out(frames, group, train.holdout)
        if not held.any():
            what = "nothing is held out: no early stopping, no bound of errors; give more frames, or data.validation"
            dataset.tell(f"data.file: {data.file} has no structure to spare, {what}")
        return _Data(frames, held, isolated)
    extra, more = read(data.validation)
    dataset.check_elements(extra, dataset.species_of(frames), f"data.validation: {data.validation}", "data.file")
    dataset.check_states(extra, dataset.states_of(frames), f"data.validation: {data.validation}", "data.file")
    both = dataset.groups([*frames, *extra])
    known = np.isin(both[len(frames) :], both[: len(frames)])
    if known.all():
        raise InputError(f"data.validation: {data.validation} holds no structure that is not in data.file, too")
    if known.any():
        dataset.tell(f"data.validation: {int(known.sum())} of {len(extra)} frames are in data.file, too; left out")
    extra = [frame for frame, is_known in zip(extra, known, strict=True) if not is_known]
    return _Data([*frames, *extra], np.r_[np.zeros(len(frames), bool), np.ones(len(extra), bool)], more | isolated)


def _device(
    config: Offline,
    frames: list[Frame],
    free: dict[int, float],
    table: tuple[int, ...],
    held: np.ndarray,
    dtype: np.dtype,
):
    """Structures and labels on the device, energies relative to references fitted to what is trained on.

    `free` are the energies of free atoms, eV, by row of the table.
    """
    host, labels = from_frames(frames, table, dtype=np.float64), labels_of(frames)
    periodic = np.any(np.asarray(host.periodic), axis=1) & (np.abs(np.linalg.det(np.asarray(host.cell))) > FLAT)
    if config.train.stress_weight and np.isnan(labels.stress[periodic]).any():
        raise InputError("train.stress_weight: some periodic structures carry no stress; give 0 or data with stress")
    fitted = jax.tree.map(lambda x: x[~held], host)
    reference = reference_energies(fitted, labels.energy[~held], len(table), free)
    return *training_data.cast(host, labels, reference, dtype), reference
