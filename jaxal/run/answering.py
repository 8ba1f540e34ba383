"""The task of a run, once its exploration is over: what it asks on the learned model is labeled and trained on."""

import itertools
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import ase
import jax
import jax.numpy as jnp
import numpy as np

from jaxal.core import devices
from jaxal.core.types import Label, Structure
from jaxal.data import buffer as buffers
from jaxal.data import frames as door
from jaxal.data.structure import from_atoms, to_frame
from jaxal.deploy import model as models
from jaxal.label.task import Enough
from jaxal.program import state as states
from jaxal.run import folder, session, training_data
from jaxal.run.session import Progress, Run
from jaxal.simulate.task import Answer, Labeled, Task, Turn

FOLDER = "task"  # in the run folder; of several systems a folder for each in it

# (structures [k]) -> labels, energies relative to the references; numpy, the first process asks
Reference = Callable[[Structure], Label]
Learned = Callable[[buffers.Buffer, int], models.Model]  # the model of a training set, at this turn


def answered(
    run: Run, progress: Progress, samplers: Sequence[Any], state: states.State, learned: Learned, reference: Reference
) -> states.State:
    """The state with all labels that the task of the run asked for, on which `learned` was called last.

    Raises Enough where the run is told to end, and InputError where no label can be kept.
    """
    assert run.config.task is not None
    task: Task = run.config.task.bind()()
    paths = _paths(run, task, samplers, state)
    known: dict[int, list[tuple[ase.Atoms, Labeled]]] = {at: [] for at in paths}
    again: dict[int, Sequence[ase.Atoms]] = dict.fromkeys(paths, ())
    open_, buffer = set(paths), state.buffer
    for turn in itertools.count():
        model = learned(buffer, turn)
        session.show(run, progress, "task")

        def asked(model: models.Model = model, left: frozenset[int] = frozenset(open_)) -> list[Any] | None:
            if run.interrupted():
                return None
            with suppress(Enough):  # it must be raised in all processes
                return _turn(run, progress, task, model, paths, known, again, left, reference)
            return None

        values = devices.from_first(asked)
        if values is None:
            raise Enough
        structures, labels, done = Structure(*values[0]), Label(*values[1]), set(values[2])
        number = len(labels.ok)
        progress.asked += number
        progress.failed += int(np.sum(~np.asarray(labels.ok)))
        open_ -= done
        if not number:
            break
        buffer = _with(run, buffer, structures, labels)
        if not open_:
            learned(buffer, turn + 1)
            break
    return state._replace(buffer=buffer)


def _paths(run: Run, task: Task, samplers: Sequence[Any], state: states.State) -> dict[int, list[ase.Atoms]]:
    """Where the walkers are, by the numbers of the systems that the task asks about."""
    paths: dict[int, list[ase.Atoms]] = {}
    for sampler, walkers, group in zip(samplers, state.walkers, run.groups, strict=True):
        structures: Any = jax.tree.map(np.asarray, devices.whole(sampler.walkers(walkers)))
        end = 0
        for at in group:
            begin, end = end, end + run.systems[at].walkers
            if task.ordered and not sampler.ordered:
                continue
            rows = [jax.tree.map(lambda x, row=row: x[row], structures) for row in range(begin, end)]
            paths[at] = [door.to_atoms(to_frame(row, run.table), labeled=False) for row in rows]
            if task.ordered:  # the sides are the user's, wherever a flat surface has let the ends of the band go
                paths[at][0], paths[at][-1] = run.systems[at].starts[0].copy(), run.systems[at].starts[-1].copy()
    return paths


def _turn(
    run: Run,
    progress: Progress,
    task: Task,
    model: models.Model,
    paths: dict[int, list[ase.Atoms]],
    known: dict[int, list[tuple[ase.Atoms, Labeled]]],
    again: dict[int, Sequence[ase.Atoms]],
    left: frozenset[int],
    reference: Reference,
) -> list[Any]:
    """What the task has labeled in this turn, [k] padded to the atoms of the run, and the systems it is done with."""
    parts: list[tuple[Structure, Label]] = []

    def labeled(images: Sequence[ase.Atoms]) -> list[Labeled]:
        if not images:
            return []
        structures: Any = from_atoms(images, run.table, dtype=np.float64, size=run.atoms)
        # what is trained on has the program's precision
        rounded = structures._replace(position=np.float64(np.asarray(structures.position, run.config.precision)))
        label = reference(rounded)
        parts.append((rounded, label))
        offset = np.where(rounded.species >= 0, np.asarray(progress.reference)[rounded.species], 0.0).sum(-1)
        energy = np.where(label.ok, np.float64(label.energy) + offset, np.nan)
        return [Labeled(float(e), np.asarray(f)[: len(a)]) for e, f, a in zip(energy, label.force, images, strict=True)]

    done = []
    for at in sorted(left):
        turn = Turn(paths[at], known[at], task.labels - len(known[at]), labeled, again[at])
        answer: Answer = task.answer(model, turn)
        again[at] = answer.again
        known[at] += zip(answer.structures, answer.labels, strict=True)
        learned = any(np.isfinite(label.energy) for label in answer.labels)
        if answer.satisfied or not learned:  # the same model would ask the same
            done.append(at)
        name = run.systems[at].name
        place = run.directory / FOLDER / (name if len(paths) > 1 else "")
        shutil.rmtree(place, ignore_errors=True)  # of the turn before
        answer.save(place)
        line = {"kind": "task", "wall": session.elapsed(run), "system": name, "labels": len(known[at])}
        folder.append(run.directory, [line | {"satisfied": answer.satisfied, "text": answer.text, **answer.record}])
        session.show(run, progress, "task", answer.text)
    if not parts:
        return [list(from_atoms([], run.table, dtype=np.float64, size=run.atoms)), _no_labels(run.atoms), done]
    together = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    return [list(together[0]), list(together[1]), done]


def _no_labels(atoms: int) -> list[np.ndarray]:
    return [np.zeros(0), np.zeros((0, atoms, 3)), np.zeros((0, 3, 3)), np.zeros(0, bool)]


def _with(run: Run, buffer: buffers.Buffer, structures: Structure, labels: Label) -> buffers.Buffer:
    """The training set with labels that are trained on, each with weight 1 for every member."""
    structures, labels = training_data.cast(structures, labels, np.zeros(len(run.table)), run.config.precision)
    number = int(buffer.count) + labels.ok.shape[0]
    buffer = buffers.grow(buffer, max(number, buffers.capacity(buffer)))
    held = jnp.zeros(labels.ok.shape, bool)
    add = jax.jit(buffers.add, static_argnums=6)
    buffer = add(buffer, jax.random.key(0), structures, labels, labels.ok, held, 0.0)[0]
    return devices.laid(run.mesh, states.LAYOUT.buffer, buffer)
