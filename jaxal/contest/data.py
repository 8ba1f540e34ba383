"""What of a task no strategy changes: the frames to choose from, what the models are tested on, the labels' source.

Host side, numpy, float64, energies absolute.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import ase
import ase.units
import jax
import numpy as np
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

from jaxal import records
from jaxal.check import of_system, start_structures, task_of
from jaxal.contest.schema import Live, Task
from jaxal.explore.md import NEEDS_CELL
from jaxal.label.calculator import LabelCalculator
from jaxal.label.executor import Recipe
from jaxal.label.service import Service, label_service
from jaxal.label.task import LabelError
from jaxal.structure import Table, from_atoms, overlap, read_frames, read_labels, species_table
from jaxal.types import InputError, Label, Structure

SETTLE = 1000  # steps of the labeler's dynamics before its first frame
STORE = "labels.sqlite"


class Data(NamedTuple):
    """The data of a task."""

    table: Table
    pool: Structure  # [b]; the start structures of a live task
    labels: Label | None  # of the pool; None: they are calculated
    exam: Structure  # [e] the test frames, then those of the path
    answers: Label  # of the exam
    tests: int  # rows of the exam that are test frames
    forces: bool
    stress: bool  # the labels have some


class Source(NamedTuple):
    """Where the labels of a task come from."""

    data: Data
    service: Service | None  # of a live task


def key_of(*words: str) -> int:
    """A number that stands for names: what is drawn for a task does not depend on the others."""
    return zlib.crc32("/".join(words).encode())


def spaced(number: int, most: int | None) -> np.ndarray:
    """At most `most` rows of `number`, evenly spaced."""
    if most is None or number <= most:
        return np.arange(number)
    return ((np.arange(most) + 0.5) * number / most).astype(int)


def check(name: str, task: Task) -> None:
    """Raises InputError for data that do not fit, before anything is computed or paid for."""
    if task.live is not None:
        _check_live(name, task, task.live)
        return
    frames, tests = _frames(task)
    if len(frames) < task.budgets[-1]:
        raise InputError(
            f"tasks.{name}.budgets: {task.budgets[-1]} is too large; the pool {task.pool} has {len(frames)} frames "
            f"besides those of the test"
        )
    if not tests:
        raise InputError(f"tasks.{name}.test: no frame is left for the test; give a file, or a larger pool")


@contextmanager
def opened(name: str, task: Task, folder: Path, precision: str) -> Iterator[Source]:
    """The data of a task; `folder` keeps what is calculated for it. Raises InputError, as `check` does."""
    if task.live is None:
        yield Source(_of_file(name, task), None)
        return
    live = task.live
    starts = start_structures(live.system)
    table = species_table(starts)
    folder.mkdir(parents=True, exist_ok=True)
    service = label_service(
        Recipe(live.label.name, dict(live.label.options)),
        table=table,
        store=folder / STORE,
        workers=live.workers,
        max_force=live.max_force,
        net_force=live.net_force,
    )
    try:
        yield Source(_of_dynamics(name, task, live, starts, table, service, folder, precision), service)
    finally:
        service.close()


def paid(service: Service, structures: Structure, wanted: np.ndarray) -> Label:
    """Labels of the wanted rows [k], absolute energies. Raises InputError where none can be had any more."""
    labels = Label(*service.label(structures, wanted))  # pyright: ignore[reportArgumentType]
    if trouble := service.trouble():
        raise InputError(trouble)
    service.drain()
    return labels


def _frames(task: Task) -> tuple[list[ase.Atoms], list[ase.Atoms]]:
    """The frames of the pool and of the test: without a file for it every so manieth of the pool."""
    frames = read_frames(task.pool)
    if task.test:
        tests = read_frames(task.test)
    else:
        rows = spaced(len(frames), min(task.test_frames, len(frames) // 3))
        tests = [frames[row] for row in rows]
        frames = [frames[row] for row in np.setdiff1d(np.arange(len(frames)), rows)]
    return [frames[row] for row in spaced(len(frames), task.pool_frames)], [
        tests[row] for row in spaced(len(tests), task.test_frames)
    ]


def _has_forces(frames: list[ase.Atoms]) -> bool:
    first = frames[0]
    known = first.calc.results if first.calc is not None else {}
    return "forces" in known or any(name in first.arrays for name in ("forces", "REF_forces"))


def _of_file(name: str, task: Task) -> Data:
    check(name, task)
    frames, tests = _frames(task)
    path = read_frames(task.path) if task.path else []
    table = species_table(frames)
    size = max(len(atoms) for atoms in [*frames, *tests, *path])
    forces = _has_forces(frames) and _has_forces(tests)
    pool = from_atoms(frames, table, task.charge, task.spin, size, np.float64)
    exam = from_atoms([*tests, *path], table, task.charge, task.spin, size, np.float64)
    labels = read_labels(frames, size, task.pool, forces)
    answers = read_labels(tests, size, task.test or task.pool, forces)
    if path:  # only its energies are asked for
        answers = jax.tree.map(lambda *x: np.concatenate(x), answers, read_labels(path, size, task.path, False))
    if task.metric == "force" and not forces:
        raise InputError(f"tasks.{name}.metric: force does not fit, {task.pool} or its test has no forces; give energy")
    stress = bool(np.any(np.asarray(pool.cell) != 0) and np.any(np.isfinite(labels.stress)))
    return Data(table, pool, labels, exam, answers, len(tests), forces, stress)


def _check_live(name: str, task: Task, live: Live) -> None:
    starts = start_structures(live.system)
    for start in starts:
        if reason := overlap(start, live.closest):
            raise InputError(f"tasks.{name}.live.system.file: {live.system.file}: {reason}")
    if live.explore.part.name in NEEDS_CELL and not starts[0].pbc.all():
        raise InputError(f"tasks.{name}.live.explore.name: {live.explore.part.name} needs a periodic cell")
    largest = max(high - low for low, high in zip(task.budgets, task.budgets[1:], strict=False))
    if largest > live.looks * live.explore.walkers:
        raise InputError(
            f"tasks.{name}.live.looks: {live.looks} looks at {live.explore.walkers} walkers are too few candidates for "
            f"{largest} labels in a round; give at least {-(-largest // live.explore.walkers)}"
        )
    if task.budgets[0] < len(starts):
        raise InputError(
            f"tasks.{name}.budgets: {task.budgets[0]} is too small; {len(starts)} start structures come first"
        )
    try:
        backend = live.label.bind()()
        for start in starts:
            backend.check(task_of(start))
    except (LabelError, InputError) as error:
        raise InputError(f"tasks.{name}.live.label: {error}") from None


def _of_dynamics(
    name: str,
    task: Task,
    live: Live,
    starts: list[ase.Atoms],
    table: Table,
    service: Service,
    folder: Path,
    precision: str,
) -> Data:
    tests = read_frames(task.test) if task.test else _dynamics(name, task, live, starts[0], folder)
    tests = [tests[row] for row in spaced(len(tests), task.test_frames)]
    path = read_frames(task.path) if task.path else []
    frames = [of_system(live.system, a.numbers, a.positions, a.cell.array, a.pbc) for a in [*tests, *path]]
    if any(len(atoms) != len(starts[0]) for atoms in frames):
        raise InputError(f"tasks.{name}: the frames of test and path need the atoms of {live.system.file}")
    exam = _rounded(from_atoms(frames, table, dtype=np.float64), precision)
    answers = paid(service, exam, np.ones(len(frames), bool))
    keep = np.flatnonzero(np.asarray(answers.ok))
    tested = int((keep < len(tests)).sum())
    if tested < 2 or len(keep) - tested < len(path):
        raise InputError(f"tasks.{name}: the labeler {live.label.name} fails on the frames of test or path")
    exam, answers = jax.tree.map(lambda x: np.asarray(x)[keep], (exam, answers))
    pool = from_atoms(starts, table, dtype=np.float64)
    return Data(table, pool, None, exam, answers, tested, True, bool(starts[0].pbc.all()))


def _rounded(structures: Structure, precision: str) -> Any:
    """Positions as the program will have them: the labels are of the same structures."""
    return structures._replace(position=np.float64(np.asarray(structures.position, precision)))


def _dynamics(name: str, task: Task, live: Live, start: ase.Atoms, folder: Path) -> list[ase.Atoms]:
    """Frames of the labeler's own Langevin dynamics, calculated once and kept in `folder`."""
    kept = folder / "test.xyz"
    if kept.is_file():
        return read_frames(kept)
    atoms = start.copy()
    atoms.calc = LabelCalculator(live.label.bind()(), live.system.charge, live.system.spin)
    rng = np.random.default_rng(key_of(name, "test"))
    MaxwellBoltzmannDistribution(atoms, temperature_K=live.test_temperature, rng=rng)
    friction = 0.01 / ase.units.fs
    warm: Any = {"temperature_K": live.test_temperature, "friction": friction, "rng": rng, "fixcm": False}
    dynamics = Langevin(atoms, 0.5 * ase.units.fs, **warm)
    frames = []
    try:
        dynamics.run(SETTLE)
        for _ in range(task.test_frames):
            dynamics.run(live.test_every)
            frames.append(ase.Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc))
    except Exception as error:
        raise InputError(
            f"tasks.{name}.live: the labeler's dynamics at {live.test_temperature:g} K fails ({error}); give a lower "
            "test_temperature, or a file as test"
        ) from error
    records.write_frames(kept, frames)
    return read_frames(kept)  # as a later start will have them: rounded
