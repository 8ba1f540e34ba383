"""A task ready to be competed in: its first labels, which are the same for all strategies."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxal.config import electrons
from jaxal.contest import data as datas
from jaxal.contest.data import Source, paid
from jaxal.contest.measure import offsets
from jaxal.contest.schema import Contest, Task
from jaxal.core.types import InputError, Label, Structure
from jaxal.data import neighbors
from jaxal.data.electrons import states
from jaxal.data.structure import from_atoms, to_atoms
from jaxal.run import assembly, initial_labels
from jaxal.train.reference import reference_energies


class Arena(NamedTuple):
    """A task ready to be competed in."""

    contest: Contest
    name: str
    task: Task
    source: Source
    near: neighbors.Spec
    drawn: np.ndarray  # [s k] their rows of the pool
    first: Structure  # [s k] the first structures, as the program has them
    first_label: Label  # [s k] relative to the references
    reference: np.ndarray  # [s z] eV
    exam: Structure  # [s e]
    kept: dict[Any, Any]  # programs, and the standing after the first round, of the models and parts so far

    @property
    def seeds(self) -> int:
        """How many."""
        return self.contest.seeds


def arena(contest: Contest, name: str, task: Task, source: Source) -> Arena:
    """The task with its first labels, the same for all strategies. Raises InputError where the labeler fails."""
    data, count = source.data, task.budgets[0]
    dtype = assembly.dtype_of(contest.precision)
    assert task.potential is not None
    potential = electrons.resolved(task.potential, states(data.pool.charge, data.pool.spin), f"tasks.{name}.potential")
    task = dataclasses.replace(task, potential=potential)
    cutoff = potential.bind()(data.table).cutoff
    everything = jax.tree.map(lambda *x: np.concatenate(x), data.pool, data.exam)
    near = neighbors.plan(everything, cutoff, 0.0, 1.0 if task.live is None else 2.0)
    rows, drawn = [], []
    for seed in range(contest.seeds):
        rng = np.random.default_rng([contest.seed, seed, datas.key_of(name)])
        if data.labels is not None:
            chosen = rng.permutation(len(data.labels.energy))[:count]
            drawn.append(chosen)
            rows.append(jax.tree.map(lambda x, chosen=chosen: np.asarray(x)[chosen], (data.pool, data.labels)))
        else:
            rows.append(_first_live(contest, name, task, source, seed))
    structures, labels = jax.tree.map(lambda *x: np.stack(x), *rows)
    reference = np.stack(
        [
            reference_energies(
                jax.tree.map(lambda x, ok=ok: x[ok], structure), label.energy[ok], len(data.table), data.isolated
            )
            for structure, label, ok in zip(rows_of(structures), rows_of(labels), labels.ok, strict=True)
        ]
    )
    first, first_label = cast(structures, labels, reference, dtype)
    exam = of_all(cast_structures(data.exam, dtype), contest.seeds)
    return Arena(contest, name, task, source, near, np.array(drawn, int), first, first_label, reference, exam, {})


def rows_of(tree: Any) -> list[Any]:
    """Seed by seed."""
    return [jax.tree.map(lambda x, row=row: x[row], tree) for row in range(jax.tree.leaves(tree)[0].shape[0])]


def of_all(structures: Structure, seeds: int) -> Structure:
    """The same structures for all seeds, without copies."""
    return jax.tree.map(lambda x: np.broadcast_to(x[None], (seeds, *np.shape(x))), structures)


def cast_structures(structures: Structure, dtype: Any) -> Any:
    """Positions and cells in the program's precision."""
    return structures._replace(position=np.asarray(structures.position, dtype), cell=np.asarray(structures.cell, dtype))


def cast(structures: Structure, labels: Label, reference: np.ndarray, dtype: Any) -> tuple[Structure, Label]:
    """Structures and labels [s k] as the program has them: energies relative to the references of each seed [s z]."""
    species = np.asarray(structures.species)
    offset = np.stack([offsets(reference[s : s + 1], species[s])[0] for s in range(len(reference))])
    relative = np.where(labels.ok, np.asarray(labels.energy) - offset, 0.0)
    energy: Any = relative.astype(dtype)
    force, stress, ok = (np.asarray(x, kind) for x, kind in zip(labels[1:], (dtype, dtype, bool), strict=True))
    fields: Any = (energy, force, stress, ok)
    return cast_structures(structures, dtype), Label(*fields)


def _first_live(contest: Contest, name: str, task: Task, source: Source, seed: int) -> tuple[Structure, Label]:
    """The start structures and displaced copies of them, labeled."""
    assert source.service is not None and task.live is not None
    data = source.data
    starts = [to_atoms(structure, data.table) for structure in rows_of(data.pool)]
    number = int(np.random.default_rng([contest.seed, seed, datas.key_of(name)]).integers(2**31))
    frames = initial_labels.first_structures(starts, task.budgets[0], number)
    structures = from_atoms(frames, data.table, dtype=np.dtype(contest.precision))
    labels = paid(source.service, structures, np.ones(len(frames), bool))
    if not np.asarray(labels.ok)[: len(starts)].all() or np.asarray(labels.ok).sum() < 2:
        assert task.live is not None
        raise InputError(f"tasks.{name}.live.label: {task.live.label.name} fails on {task.live.system.file}")
    return cast_structures(structures, np.float64), labels


def kept(arena: Arena, key: Any, make: Callable[[], Any]) -> Any:
    """What `make` makes, made once for a key."""
    if key not in arena.kept:
        arena.kept[key] = make()
    return arena.kept[key]
