"""The host's side of a run that does not wait for its labels: what is handed out, and what comes back.

Before every segment the first process takes in the labels that have come, hands out the most uncertain of what waits,
and marks it in the queue as sent. It hands out no more than what keeps the workers busy until the next time: what only
waits can still be dropped. With `label.lag` all this happens a fixed number of segments later, and a run has the same
bits again.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxal.core import devices
from jaxal.core.types import InputError, Label, Structure
from jaxal.data import queue
from jaxal.data.frames import of_atoms
from jaxal.data.labels import Numbers, known
from jaxal.data.lattice import along_periodic
from jaxal.data.structure import from_frames
from jaxal.label import cost
from jaxal.label.store import conversion
from jaxal.label.store.commit import Keeper, keeper
from jaxal.label.store.database import Entry, open_store
from jaxal.label.task import Result, Task
from jaxal.label.workers.dispatch import Dispatch, Landed, ledger_keys, open_dispatch
from jaxal.label.workers.executor import Recipe
from jaxal.program import state as states
from jaxal.program.late_labels import Absorbed, Arrivals
from jaxal.run import assembly, folder, initial_labels, labeling, session
from jaxal.run.session import Progress, Run

LEDGER = "asked.txt"  # keys of the labels that the run asked for, in the run folder
TICK = 0.2  # s between two looks at whether to end, while labels are waited for


@dataclass
class Desk:
    """Where labels are asked for; only the first process has one."""

    dispatch: Dispatch
    keeper: Keeper
    times: list[tuple[Task, float]]  # that calculations have taken, s
    early: dict[int, Landed] = field(default_factory=dict)  # by ticket: there, and not due


class Came(NamedTuple):
    """Labels that have come [a], in numpy, as one process tells the others; energies relative to the references."""

    structure: Structure  # [a n], padded
    energy: np.ndarray
    force: np.ndarray
    stress: np.ndarray
    ok: np.ndarray
    ticket: np.ndarray
    probe: np.ndarray
    walker: np.ndarray
    reasons: list[str]
    seconds: float  # of calculation, all together; what the store had took none

    def values(self) -> list[Any]:
        """As one process tells another."""
        return [list(self.structure), *self[1:]]

    @classmethod
    def from_values(cls, values: list[Any] | None) -> "Came | None":
        """From what `values` returns, if anything."""
        return None if values is None else cls(Structure(*values[0]), *values[1:])


class _Item(NamedTuple):
    structure: Structure  # [n], padded
    task: Task
    result: Result
    ticket: int
    probe: bool
    walker: int
    seconds: float


@contextmanager
def opened(run: Run) -> Iterator[Desk]:
    """The desk of a run, with its store and its workers; what is at work in the end is left and asked for again."""
    section = run.config.label
    recipe = Recipe(section.part.name, dict(section.part.options))
    backend = recipe.build()
    store = open_store(run.store)
    try:
        kept = keeper(store, backend, max_force=section.max_force, net_force=section.net_force)
        opener = run.opener or labeling.executor_of(run.config, run.directory)
        executor = opener(recipe, section.timeout)
        dispatch = open_dispatch(executor, kept, run.directory / LEDGER)
        try:
            yield Desk(dispatch, kept, list(cost.times(store.all(), backend.method)))
        finally:
            dispatch.close()
    finally:
        store.close()


def recovered(run: Run, progress: Progress, desk: Desk | None, state: states.State) -> Came | None:
    """Hands out again what a restored state has handed out, and finds the labels that it does not know of.

    These were calculated after its checkpoint, for structures that may not come again: they are learned from at once.
    With a lag they are not: the same structures do come again, and their labels are in the store.
    """
    held, training = jax.device_get(devices.whole((state.queue, state.buffer)))

    def lost_labels() -> list[Any] | None:
        assert desk is not None
        rows = [int(row) for row in np.flatnonzero(held.sent)]
        sent = {int(held.ticket[row]): _task(run, held.structure, row) for row in rows}
        for (ticket, task), carried in zip(sent.items(), _carried(run, held.structure, rows), strict=True):
            desk.dispatch.submit(ticket, task, carried)
        if run.config.label.lag is not None:
            return None
        known = {desk.keeper.key(task) for task in sent.values()}
        # what only waited at the checkpoint may have been calculated since: its row goes when its label is learned
        rows = map(int, np.flatnonzero(np.asarray(queue.waits(held))))
        waiting = {desk.keeper.key(_task(run, held.structure, row)): row for row in rows}
        known |= {desk.keeper.key(_task(run, training.structure, row)) for row in range(int(training.count))}
        lost = []
        for key in ledger_keys(run.directory / LEDGER):
            entry = None if key in known else desk.keeper.entry(key)
            if entry is not None and entry.result.ok:
                row = waiting.get(key)
                if row is None:
                    lost.append(_Item(_structure(run, entry), entry.task, entry.result, -1, False, -1, 0.0))
                    continue
                structure = jax.tree.map(lambda x, row=row: np.asarray(x)[row], held.structure)
                whose = int(held.ticket[row]), bool(held.probe[row]), int(held.walker[row])
                lost.append(_Item(structure, entry.task, entry.result, *whose, 0.0))
        return _came(run, progress, lost).values() if lost else None

    return Came.from_values(devices.from_first(lost_labels))


def arrived(run: Run, progress: Progress, desk: Desk | None, state: states.State, last: bool) -> Came | None:
    """The labels to learn from now, if any; none when told to end while it waits for one.

    It waits for those that are due by `label.lag`, and with `last` for the next of all that have been handed out.
    Raises InputError where labels can no longer be calculated or kept.
    """
    held = jax.device_get(devices.whole(state.queue))

    def new_labels() -> list[Any] | None:
        assert desk is not None
        lag, begun = run.config.label.lag, [ticket for ticket, _ in progress.begun]
        due = (
            [] if lag is None else [t for t, at in progress.begun if last or progress.look >= at + lag * assembly.LOOKS]
        )
        patience = 0.0
        while True:
            desk.early |= {landed.ticket: landed for landed in desk.dispatch.landed(patience)}
            if trouble := desk.dispatch.trouble():
                more = f"the last checkpoint stands, `jaxal resume {run.directory}` goes on from it"
                raise InputError(f"{trouble}; {more}")
            ready = list(desk.early) if lag is None else due
            if set(due) <= desk.early.keys() and (ready or not (last and begun)):
                break
            if run.interrupted():
                return None
            patience = TICK
            session.show(run, progress, "explore", f"waits for {len(begun)} labels")
        items = []
        for ticket in ready:
            landed = desk.early.pop(ticket)
            row = int(np.flatnonzero(held.ticket == ticket)[0])
            paid = 0.0 if landed.from_store else landed.result.seconds
            task = _task(run, held.structure, row)
            if paid and landed.result.ok:
                desk.times.append((task, paid))
            structure = jax.tree.map(lambda x, row=row: np.asarray(x)[row], held.structure)
            whose = ticket, bool(held.probe[row]), int(held.walker[row])
            items.append(_Item(structure, task, landed.result, *whose, paid))
        return _came(run, progress, items).values() if items else None

    return Came.from_values(devices.from_first(new_labels))


def arrivals(run: Run, came: Came, size: int) -> Iterator[tuple[Arrivals, Came]]:
    """The labels in pieces of `size` rows for the program, each with what there is in it."""
    for start in range(0, len(came.ok), size):
        rows = slice(start, start + size)
        structure = jax.tree.map(lambda x, rows=rows: x[rows], came.structure)
        pieces: Any = [structure, *(x[rows] for x in came[1:-1]), came.seconds if start == 0 else 0.0]
        piece = Came._make(pieces)
        yield _rows(run, piece, size), piece


def empty(run: Run, size: int) -> Arrivals:
    """No labels, as the program takes them."""
    nothing: Any = jax.tree.map(lambda x: np.asarray(x)[:0], session.walker_structures(run))
    none = np.zeros(0, int)
    came = Came(nothing, none, nothing.position, nothing.cell, none, none, none, none, [], 0.0)
    return _rows(run, came, size)


def _rows(run: Run, came: Came, size: int) -> Arrivals:
    dtype = np.dtype(run.config.precision)
    number = len(came.ok)

    def filled(values: np.ndarray, kind: Any) -> Any:
        widths: Any = [(0, size - number)] + [(0, 0)] * (values.ndim - 1)
        return np.pad(values, widths).astype(kind)

    # an empty row is the start structure, which has no more neighbors than there is room for
    start: Any = jax.tree.map(lambda x: np.repeat(np.asarray(x)[:1], size, axis=0), session.walker_structures(run))
    there: Any = np.arange(size) < number
    for rows, values in zip(start, came.structure, strict=True):
        rows[:number] = values
    energy, force, stress = (filled(x, dtype) for x in (came.energy, came.force, came.stress))
    rows = Arrivals(
        start,
        Label(energy, force, stress, filled(came.ok, bool)),
        filled(came.ticket, np.int32),
        filled(came.probe, bool),
        filled(came.walker, np.int32),
        there,
    )
    return devices.laid(run.mesh, P(), jax.device_put(rows))


def taken_in(run: Run, progress: Progress, state: states.State, came: Came, report: Absorbed) -> None:
    """Takes down what a piece of labels said of the committee, in memory and in the files."""
    number, wall, ps = len(came.ok), session.elapsed(run), session.picoseconds(run, progress)
    progress.begun = [pair for pair in progress.begun if pair[0] not in set(came.ticket.tolist())]
    progress.asked = int(state.labels)
    progress.failed += number - int(np.sum(came.ok))
    progress.worked += came.seconds
    progress.dropped += int(report.dropped)
    rmse = report.rmse[:number][came.ok]
    progress.true = float(np.mean(rmse)) if rmse.size else progress.true
    progress.fold = float(report.fold_rmse) if np.isfinite(report.fold_rmse) else progress.fold
    if progress.probing:
        progress.probes += [float(report.rmse[row]) ** 2 for row in range(number) if came.probe[row] and came.ok[row]]
    lines = [
        {
            "kind": "label",
            "wall": wall,
            "label": progress.asked - number + row + 1,
            "ps": ps,
            "walker": came.walker[row],
            "system": session.name_of(run, int(came.walker[row])),
            "score": report.score[row],
            "estimated": report.estimate[row],
            "error": report.error[row],
            "rmse": report.rmse[row],
            "probe": bool(came.probe[row]),
            "ok": bool(came.ok[row]),
            "reason": came.reasons[row],
        }
        for row in range(number)
    ]
    folder.append(run.directory, lines)


def handed_out(run: Run, progress: Progress, desk: Desk | None, state: states.State) -> states.State:
    """The state with what is worth it marked as sent, and the most uncertain of what waits at work."""
    held = jax.device_get(devices.whole(state.queue))
    waiting = np.flatnonzero(np.asarray(queue.waits(held)))

    def chosen() -> list[Any]:
        assert desk is not None
        left = run.config.stop.labels - progress.asked - len(progress.begun)
        room = min(_ahead(run, progress, desk.dispatch.slots) - len(progress.begun), left)
        if room <= 0 or not waiting.size:
            return [desk.dispatch.slots, []]
        # probes first: they are due whatever the committee says
        values = np.where(held.probe, np.inf, held.score)[waiting]
        tasks = [_task(run, held.structure, int(row)) for row in waiting]
        seconds = cost.expected(desk.times)
        order = cost.order(values.tolist(), [*map(seconds, tasks)], desk.dispatch.slots)[:room]
        carried = _carried(run, held.structure, [int(row) for row in waiting])
        for at in order:
            desk.dispatch.submit(int(held.ticket[waiting[at]]), tasks[at], carried[at])
        rows = waiting[order]
        return [desk.dispatch.slots, [int(held.ticket[row]) for row in rows]]

    progress.slots, tickets = devices.from_first(chosen)
    progress.begun += [[ticket, progress.look] for ticket in tickets]
    progress.waiting = len(waiting) - len(tickets)
    if not tickets:
        return state
    sent = devices.laid(run.mesh, P(), jnp.asarray(held.sent | np.isin(held.ticket, tickets)))
    return state._replace(queue=state.queue._replace(sent=sent))


def _ahead(run: Run, progress: Progress, slots: int) -> int:
    """How many labels may be handed out at a time."""
    if run.config.label.lag is not None:
        return slots * run.config.label.lag
    count = progress.asked - progress.failed - run.config.initial
    if count <= 0 or not progress.worked or not progress.look:
        return 2 * slots
    # while a segment goes on each worker ends so many
    label, segment = progress.worked / count, progress.busy / (progress.look / assembly.LOOKS)
    return slots * (1 + int(np.ceil(segment / label)))


def _task(run: Run, structures: Structure, row: int) -> Task:
    """A structure of the device, without padding, in float64."""
    species = np.asarray(structures.species[row])
    atoms = species >= 0
    numbers = np.asarray(run.table, np.int64)[species[atoms]]
    position = np.asarray(structures.position[row], np.float64)[atoms]
    cell = np.asarray(structures.cell[row], np.float64)
    electrons = int(structures.charge[row]), int(structures.spin[row])
    return Task(numbers, position, cell, np.asarray(structures.periodic[row]), *electrons)


def _carried(run: Run, structures: Structure, rows: Sequence[int]) -> list[bytes]:
    """What some structures of the device carry into the store."""
    chosen = jax.tree.map(lambda x: np.asarray(x)[np.array(rows, int)], structures)
    return initial_labels.carriers(run.starts, run.table)(chosen)


def _structure(run: Run, entry: Entry) -> Structure:
    """A structure of the store as the device has it, in numpy: of the system that it belongs to."""
    task = entry.task
    fixed = conversion.fixed_of(entry.carried, len(task.numbers))
    dtype = np.dtype(run.config.precision)
    for atoms in run.starts:
        start = of_atoms(atoms, labeled=False)
        same = np.array_equal(start.numbers, task.numbers) and np.array_equal(start.fixed, fixed)
        if same and (start.charge or 0, start.spin or 0) == (task.charge, task.spin):
            frame = start._replace(position=task.position, cell=task.cell if np.any(start.periodic) else start.cell)
            return jax.tree.map(lambda x: x[0], from_frames([frame], run.table, size=run.atoms, dtype=dtype))
    raise InputError(f"{run.store}: label {entry.key} is of none of the run's systems; the ledger is another run's")


def _came(run: Run, progress: Progress, items: Sequence[_Item]) -> Came:
    reference = np.asarray(progress.reference)
    offset = [reference[np.searchsorted(run.table, item.task.numbers)].sum() for item in items]
    ok = np.array([item.result.ok for item in items])
    structure: Any = jax.tree.map(lambda *x: np.stack(x), *(item.structure for item in items))
    force, stress = np.zeros(structure.position.shape), np.zeros(structure.cell.shape)
    for row, item in enumerate(items):
        if item.result.ok:
            atoms = structure.species[row] >= 0
            learned = known(Numbers(*item.result[:3]), structure.fixed[row][atoms])
            force[row, atoms] = learned.force
            stress[row] = along_periodic(learned.stress, item.task.cell, item.task.periodic)
    energy = np.where(ok, [item.result.energy for item in items], 0.0) - np.where(ok, offset, 0.0)
    return Came(
        structure,
        *(energy, force, stress, ok),
        np.array([item.ticket for item in items]),
        np.array([item.probe for item in items]),
        np.array([item.walker for item in items]),
        [item.result.reason for item in items],
        float(sum(item.seconds for item in items)),
    )
