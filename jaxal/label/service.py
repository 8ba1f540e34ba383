"""Labels for a batch of padded structures: from the store where they are known, else calculated and committed.

This is the host's side of the callback (`jaxal.program.callback`), and what the driver calls for its first labels.
numpy in, numpy out; a label is in the store before the caller sees it, and a failed calculation is `ok=False`.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from jaxal.data.labels import Numbers, known
from jaxal.data.lattice import along_periodic
from jaxal.label import cost
from jaxal.label.acceptance import MAX_FORCE, NET_FORCE
from jaxal.label.store.commit import keeper
from jaxal.label.store.database import Store, open_store
from jaxal.label.task import Backend, Enough, LabelError, Result, Task, failed, one_line
from jaxal.label.workers.executor import Executor, Recipe, in_process, run_all
from jaxal.label.workers.pool import open_pool


@runtime_checkable
class Batch(Protocol):
    """A batch of padded structures as numpy arrays; `jaxal.core.types.Structure` has these fields."""

    @property
    def position(self) -> np.ndarray: ...  # noqa: D102  [k, n, 3] Å

    @property
    def species(self) -> np.ndarray: ...  # noqa: D102  [k, n] row of the table, -1 = padding

    @property
    def cell(self) -> np.ndarray: ...  # noqa: D102  [k, 3, 3] Å

    @property
    def periodic(self) -> np.ndarray: ...  # noqa: D102  [k, 3] bool

    @property
    def mass(self) -> np.ndarray: ...  # noqa: D102  [k, n] amu

    @property
    def fixed(self) -> np.ndarray: ...  # noqa: D102  [k, n] bool

    @property
    def charge(self) -> np.ndarray: ...  # noqa: D102  [k] e

    @property
    def spin(self) -> np.ndarray: ...  # noqa: D102  [k] unpaired electrons


class Labels(NamedTuple):
    """`jaxal.core.types.Label` in numpy, of the dtype of the positions. Zeros where `ok` is false."""

    energy: np.ndarray  # [k] eV, relative to the reference energies
    force: np.ndarray  # [k, n, 3] eV/Å
    stress: np.ndarray  # [k, 3, 3] eV/Å^3; zero along open directions, NaN where there is none
    ok: np.ndarray  # [k] bool


class Record(NamedTuple):
    """What became of one wanted label, for the progress display."""

    row: int  # in the store; 0 if it could not be committed
    ok: bool
    reason: str
    seconds: float  # wall time of the calculation, also where the store had it
    from_store: bool  # nothing was paid


class Service(NamedTuple):
    """An open labeler. `store` is the open label store, closed with it."""

    # (structures [k], wanted [k] bool, what each carries [k] = nothing: `jaxal.label.store.conversion`)
    label: Callable[..., Labels]
    check: Callable[[Batch], None]  # raises LabelError for a structure the method cannot treat
    drain: Callable[[], list[Record]]  # records since the last call, oldest first
    trouble: Callable[[], str]  # why no label can be committed any more, empty while all is well
    store: Store
    method: str
    close: Callable[[], None]


def label_service(
    labeler: Recipe | Backend,
    *,
    table: Sequence[int],
    store: str | Path,
    reference: Sequence[float] | np.ndarray | None = None,
    workers: int = 0,
    executor: Callable[[Recipe, float | None], Executor] | None = None,
    timeout: float | None = None,
    max_force: float = MAX_FORCE,
    net_force: float = NET_FORCE,
    retry_failed: bool = False,
    enough: Callable[[], bool] = lambda: False,
) -> Service:
    """Opens the store and the workers.

    Parameters
    ----------
    labeler
        A registered labeler by name and options, or a backend (which only this process can run).
    table
        Atomic numbers of the species.
    store
        Path of the label store; created if it is not there.
    reference
        Energy of each species, eV; labels are relative to their sum, subtracted in float64.
    workers
        Processes on this host; 0 calculates in this one.
    executor
        Opens the place where labels are calculated from the labeler and `timeout`, instead of those processes.
    timeout
        Seconds for one calculation. Only another process can be stopped: in this one it has no effect.
    max_force, net_force
        Caps of the acceptance check, eV/Å. They are not part of a label's key: other caps judge the stored
        numbers anew and pay for nothing.
    retry_failed
        Calculate again what the store remembers as failed.
    enough
        Asked before each calculation. Once it holds, no other is begun, and `label` raises Enough when those that
        were begun are in the store.

    With several workers the rows of the store are in the order in which the labels landed. Raises LabelError for
    options that cannot be, and for a file that is not a label store.
    """
    backend = labeler.build() if isinstance(labeler, Recipe) else labeler
    numbers = np.asarray(table, np.int64)
    offset = np.zeros(len(numbers)) if reference is None else np.asarray(reference, np.float64)
    if offset.shape != numbers.shape:
        raise LabelError(f"reference: {offset.shape} energies for {len(numbers)} species; give one for each")
    records: list[Record] = []
    troubles: list[str] = []
    times: list[tuple[Task, float]] = []  # of calculations, once they are needed
    opened = open_store(store)
    kept = keeper(opened, backend, max_force=max_force, net_force=net_force, retry_failed=retry_failed)

    def no_more() -> bool:
        return bool(troubles) or enough()

    try:
        place = open_executor(labeler, backend, workers, executor, timeout)
    except BaseException:
        opened.close()
        raise
    busy, noting = threading.Lock(), threading.Lock()

    def check(batch: Batch) -> None:
        for index in range(len(batch.species)):
            backend.check(_task(batch, index, numbers))

    def ordered(tasks: dict[str, Task]) -> list[str]:
        """The keys, longest calculation first where some have to wait for others."""
        keys = list(tasks)
        if not 1 < place.slots < len(keys):
            return keys
        if not times:
            times.extend(cost.times(opened.all(), backend.method))
        seconds = cost.expected(times)
        return [keys[row] for row in cost.order([0.0] * len(keys), [*map(seconds, tasks.values())], place.slots)]

    def answers(tasks: dict[str, Task], own: dict[str, bytes]) -> dict[str, tuple[int, Result, bool]]:
        """(row, result, from the store) of each key. Every landed result is committed at once."""
        outcomes: dict[str, tuple[int, Result, bool]] = {}
        for key, task in tasks.items():
            if (hit := kept.known(key, task)) is not None:
                outcomes[key] = (*hit, True)
        todo = ordered({key: task for key, task in tasks.items() if key not in outcomes})

        def landed(index: int, result: Result) -> None:
            key = todo[index]
            if result.ok and times:
                times.append((tasks[key], result.seconds))
            try:
                outcomes[key] = (*kept.committed(tasks[key], result, own.get(key, b"")), False)
            except Exception as error:  # a full disk: a label that is not committed is not a label
                troubles.append(f"the label store {store} failed: {one_line(error)}")
                outcomes[key] = (0, failed(tasks[key], troubles[-1], result.seconds), False)

        try:
            run_all(place, [tasks[key] for key in todo], landed, no_more)
        except Enough:
            if not troubles:
                raise
            raise LabelError(troubles[0]) from None
        return outcomes

    def label(batch: Batch, wanted: np.ndarray, own: Sequence[bytes] | None = None) -> Labels:
        species = np.asarray(batch.species)
        dtype = np.asarray(batch.position).dtype
        labels = _empty(species.shape, dtype)
        chosen = [int(index) for index in np.flatnonzero(wanted)]
        with busy:
            tasks = {index: _task(batch, index, numbers) for index in chosen}
            keys = {index: kept.key(task) for index, task in tasks.items()}
            # Walkers may stand on the same frame: it is paid for once.
            wanted_tasks = {keys[index]: tasks[index] for index in chosen}
            carries = {} if own is None else {keys[index]: own[index] for index in chosen}
            try:
                if troubles:  # nothing more is paid for that could not be kept
                    raise LabelError(troubles[0])
                outcomes = answers(wanted_tasks, carries)
            except Exception as error:  # the store or the executor itself: nothing of this call counts as a label
                reason = f"labeling failed: {one_line(error)}"
                troubles.append(reason)
                outcomes = {key: (0, failed(task, reason), False) for key, task in wanted_tasks.items()}
        for index in chosen:
            row, result, from_store = outcomes[keys[index]]
            with noting:
                records.append(Record(row, result.ok, result.reason, result.seconds, from_store))
            if result.ok:
                atoms = species[index] >= 0
                labels.energy[index] = result.energy - offset[species[index][atoms]].sum()
                fixed = np.asarray(batch.fixed[index])[atoms]
                labels.force[index, atoms] = known(Numbers(result.energy, result.force, result.stress), fixed).force
                geometry = tasks[index].cell, tasks[index].periodic
                labels.stress[index] = along_periodic(result.stress, *geometry)
                labels.ok[index] = True
        return labels

    def drain() -> list[Record]:
        with noting:
            drained, records[:] = list(records), []
        return drained

    def close() -> None:
        place.close()
        opened.close()

    def trouble() -> str:
        return troubles[0] if troubles else ""

    return Service(label, check, drain, trouble, opened, f"{backend.method} ({backend.version})", close)


def open_executor(
    labeler: Recipe | Backend,
    backend: Backend,
    workers: int,
    executor: Callable[[Recipe, float | None], Executor] | None,
    timeout: float | None,
) -> Executor:
    """Where labels are calculated: by `executor`, by processes on this host, or, with no workers, in this one.

    Raises LabelError for a backend without a recipe that another process is to run.
    """
    if not isinstance(labeler, Recipe):
        if workers or executor:
            raise LabelError("label.workers: a backend built in this process cannot run in another; give 0")
        return in_process(backend)
    if executor:
        return executor(labeler, timeout)
    return open_pool(labeler, workers, timeout) if workers else in_process(backend)


def _task(batch: Batch, index: int, numbers: np.ndarray) -> Task:
    """One structure of a batch without its padding, in float64."""
    species = np.asarray(batch.species[index])
    atoms = species >= 0
    return Task(
        numbers[species[atoms]],
        np.asarray(batch.position[index], np.float64)[atoms],
        np.asarray(batch.cell[index], np.float64),
        np.asarray(batch.periodic[index], bool),
        int(batch.charge[index]),
        int(batch.spin[index]),
    )


def _empty(shape: tuple[int, ...], dtype: np.dtype) -> Labels:
    k, n = shape
    return Labels(np.zeros(k, dtype), np.zeros((k, n, 3), dtype), np.zeros((k, 3, 3), dtype), np.zeros(k, bool))
