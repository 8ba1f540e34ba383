"""What of a task no strategy changes: the frames to choose from, what the models are tested on, the labels' source.

Host side, numpy, float64, energies absolute.
"""

import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import ase
import ase.units
import jax
import numpy as np
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

from jaxal.acquire.score import max_force_spread
from jaxal.config import electrons
from jaxal.config.biases import terms_of
from jaxal.config.check import dynamics_of, idle_weight, task_of
from jaxal.config.systems import start_structures
from jaxal.contest.schema import Entrant, Live, Task
from jaxal.core.errors import InputWarning
from jaxal.core.types import InputError, Label, Structure
from jaxal.data import dataset, files
from jaxal.data.electrons import or_none
from jaxal.data.frames import Frame, of_atoms, overlap, stripped, with_electrons
from jaxal.data.structure import Table, from_atoms, from_frames, labels_of, shares_of, species_table
from jaxal.label.calculator import LabelCalculator
from jaxal.label.service import Service, label_service
from jaxal.label.task import LabelError, has_stress
from jaxal.label.workers.executor import Recipe

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
    share: np.ndarray | None = None  # [b 3] weights of the pool's energies, forces and stresses; None: 1
    isolated: Mapping[int, float] = MappingProxyType({})  # row of the table -> energy of the free atom, eV


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


def check(name: str, task: Task, entered: Sequence[Entrant]) -> None:
    """Raises InputError for data, and biases of entrants, that do not fit, before anything is computed or paid for."""
    if task.live is not None:
        _check_live(name, task, task.live, entered)
        return
    frames = _frames(name, task)
    if len(frames.pool) < task.budgets[-1]:
        raise InputError(
            f"tasks.{name}.budgets: {task.budgets[-1]} is too large; the pool {task.pool} has {len(frames.pool)} "
            f"frames besides those of the test"
        )
    if task.potential is not None:
        electrons.resolved(task.potential, dataset.states_of(frames.pool), f"tasks.{name}.potential")
    if not frames.test:
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


class _Files(NamedTuple):
    """The labeled frames of a task."""

    pool: list[Frame]
    test: list[Frame]
    path: list[Frame]
    isolated: dict[int, float]  # atomic number -> eV, of free atoms
    forces: bool


def _frames(name: str, task: Task) -> _Files:
    """Pool, test and path: without a file for the test every so manieth of the pool. Copies of a structure of the pool
    are no test: they are left out of it, told by a warning.

    Raises InputError for frames that cannot be used, or that do not belong together.
    """
    section = f"tasks.{name}"

    def read(file: str) -> dataset.Labeled:
        return dataset.labeled(file, section, task.charge, task.spin, task.method, forces=False)

    pool, isolated = read(task.pool)
    group = dataset.tell_duplicates(pool, task.pool)
    if task.test:
        test, more = read(task.test)
        isolated = more | isolated
        both = dataset.groups([*pool, *test])
        known = np.isin(both[len(pool) :], both[: len(pool)])
        if known.any():
            dataset.tell(f"{section}.test: {int(known.sum())} of {len(test)} frames are in the pool, too; left out")
            test = [frame for frame, in_pool in zip(test, known, strict=True) if not in_pool]
    else:
        held = np.isin(group, spaced(int(group.max()) + 1, min(task.test_frames, (int(group.max()) + 1) // 3)))
        test = [frame for frame, in_test in zip(pool, held, strict=True) if in_test]
        pool = [frame for frame, in_test in zip(pool, held, strict=True) if not in_test]
    path = read(task.path).frames if task.path else []
    pool = [pool[row] for row in spaced(len(pool), task.pool_frames)]
    test = [test[row] for row in spaced(len(test), task.test_frames)]
    if pool:
        table, states = dataset.species_of(pool), dataset.states_of(pool)
        for part, file in ((test, task.test or task.pool), (path, task.path)):
            dataset.check_elements(part, table, file, f"the pool {task.pool}")
            dataset.check_states(part, states, file, f"the pool {task.pool}")
    forces = all(np.isfinite(frame.label.force).any() for frame in [*pool, *test])
    return _Files(pool, test, path, isolated, forces)


def _of_file(name: str, task: Task) -> Data:
    check(name, task, ())
    pool, test, path, isolated, forces = _frames(name, task)
    if task.metric == "force" and not forces:
        raise InputError(f"tasks.{name}.metric: force does not fit, {task.pool} or its test has no forces; give energy")
    table = species_table(pool)
    size = max(len(frame.numbers) for frame in [*pool, *test, *path])
    structures = from_frames(pool, table, size=size, dtype=np.float64)
    exam = from_frames([*test, *path], table, size=size, dtype=np.float64)
    labels, answers = labels_of(pool, size), labels_of([*test, *path], size)
    stress = bool(np.any(np.isfinite(labels.stress)))
    free = {table.index(z): energy for z, energy in isolated.items() if z in table}
    return Data(table, structures, labels, exam, answers, len(test), forces, stress, shares_of(pool), free)


def _check_live(name: str, task: Task, live: Live, entered: Sequence[Entrant]) -> None:
    starts = start_structures(live.system)
    for start in starts:
        if reason := overlap(start, live.closest):
            raise InputError(f"tasks.{name}.live.system.file: {live.system.file}: {reason}")
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
    assert task.potential is not None
    states = dataset.states_of([of_atoms(start, labeled=False) for start in starts])
    electrons.resolved(task.potential, states, f"tasks.{name}.potential")
    try:
        backend = live.label.bind()()
        for start in starts:
            backend.check(task_of(start))
    except (LabelError, InputError) as error:
        raise InputError(f"tasks.{name}.live.label: {error}") from None
    try:
        weight = task.train.stress_weight if task.train else 0.0
        cautions = dynamics_of(live.explore.part, live.label, weight, starts, live.explore.walkers, live.system.file)
        cautions += idle_weight(weight, starts, [live.system.file])
    except InputError as error:
        raise InputError(f"tasks.{name}.{_placed(error)}") from None
    terms_of(live.bias, max_force_spread, starts[0], f"tasks.{name}.live.bias")
    for entrant in entered:
        terms_of(entrant.bias, max_force_spread, starts[0], f"strategies.{entrant.name}.bias")
    for line in cautions:
        warnings.warn(f"tasks.{name}.{_placed(line)}", InputWarning, stacklevel=2)


def _placed(line: object) -> str:
    """A line about a field of a run, as it is called in a task."""
    return str(line) if str(line).startswith("train.") else f"live.{line}"


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
    start = of_atoms(starts[0], labeled=False)
    tests = _like(name, live, start, task.test) if task.test else _dynamics(name, task, live, starts[0], folder)
    tests = [tests[row] for row in spaced(len(tests), task.test_frames)]
    path = _like(name, live, start, task.path) if task.path else []
    frames = [*tests, *path]
    exam = _rounded(from_frames(frames, table, dtype=np.float64), precision)
    answers = paid(service, exam, np.ones(len(frames), bool))
    keep = np.flatnonzero(np.asarray(answers.ok))
    tested = int((keep < len(tests)).sum())
    if tested < 2 or len(keep) - tested < len(path):
        raise InputError(f"tasks.{name}: the labeler {live.label.name} fails on the frames of test or path")
    exam, answers = jax.tree.map(lambda x: np.asarray(x)[keep], (exam, answers))
    pool = from_atoms(starts, table, dtype=np.float64)
    return Data(table, pool, None, exam, answers, tested, True, has_stress(task_of(starts[0])))


def _like(name: str, live: Live, start: Frame, file: str | Path) -> list[Frame]:
    """The structures of a file, which are of the atoms and the electrons that the walkers start from."""
    frames = files.read(file, labeled=False)
    for number, frame in enumerate(frames):
        try:
            own = or_none(start.charge or 0, start.spin or 0)
            frames[number] = stripped(with_electrons(frame, *own, f"tasks.{name}.live.system"))
        except InputError as error:
            raise InputError(f"{file}: frame {number}: {error}") from None
        if not np.array_equal(frame.numbers, start.numbers) or np.any(frame.periodic != start.periodic):
            raise InputError(f"{file}: frame {number} needs the atoms of {live.system.file}, in their order")
    return frames


def _rounded(structures: Structure, precision: str) -> Any:
    """Positions as the program will have them: the labels are of the same structures."""
    return structures._replace(position=np.float64(np.asarray(structures.position, precision)))


def _dynamics(name: str, task: Task, live: Live, start: ase.Atoms, folder: Path) -> list[Frame]:
    """Frames of the labeler's own Langevin dynamics, calculated once and kept in `folder`."""
    kept = folder / "test.xyz"
    if kept.is_file():
        return files.read(kept, labeled=False)
    atoms = start.copy()
    atoms.calc = LabelCalculator(live.label.bind()())
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
            frames.append(stripped(of_atoms(atoms, labeled=False)))
    except Exception as error:
        raise InputError(
            f"tasks.{name}.live: the labeler's dynamics at {live.test_temperature:g} K fails ({error}); give a lower "
            "test_temperature, or a file as test"
        ) from error
    files.write(kept, frames)
    return frames
