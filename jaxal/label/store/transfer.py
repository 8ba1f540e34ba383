"""Label stores and the outside: structures out to files, labeled structures in, stores into one another.

A file is written whole or not at all, and so is a store: what is added goes in with one transaction. Numbers are
written with all their digits, so that a label that was exported and imported again has its key and its bits.
"""

import contextlib
import sqlite3
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxal.core.errors import InputError
from jaxal.data import dataset, files
from jaxal.data.frames import with_electrons
from jaxal.label.store import conversion
from jaxal.label.store.database import (
    COLUMNS,
    COUNT,
    INSERT,
    PATIENCE,
    Status,
    connect,
    connect_to_read,
    entry_of,
    store_error,
)
from jaxal.label.task import LabelError

RANK: dict[str, int] = {"failed": 0, "rejected": 1, "done": 2}
KEY, STATUS, CARRIED = (
    COLUMNS.split(", ").index(name) - 1 for name in ("key", "status", "carried")
)  # in a row for INSERT
UPDATE = f"UPDATE label SET ({COLUMNS.removeprefix('row, ')}) = ({', '.join('?' * COUNT)}) WHERE key = ?"


class Added(NamedTuple):
    """What became of labels that were offered to a store."""

    new: int = 0
    better: int = 0  # took the place of a row of a lesser status
    known: int = 0  # the store had them, and keeps its own
    other: int = 0  # of these, came with other masses, fixed atoms or info


def merge(target: str | Path, sources: Sequence[str | Path], patience: float = PATIENCE) -> Added:
    """Adds the rows that `target` lacks; of two with one key the one with the better status stays.

    Done is better than rejected, rejected than failed; of equal ones the target keeps its own. The sources are only
    read, also while runs write to them. Raises LabelError, with `target` as it was, where one of them cannot be read.
    """
    target = Path(target)
    with contextlib.ExitStack() as stack:
        opened = []
        for source in map(Path, sources):
            if target.exists() and source.exists() and target.samefile(source):
                raise LabelError(f"{source}: is the store that would take its own labels; give another source")
            opened.append((source, stack.enter_context(contextlib.closing(connect_to_read(source, patience)))))
        with _adding(target, patience) as connection:
            total = Added()
            for source, reading in opened:
                with contextlib.closing(_selected(reading, source, COLUMNS.removeprefix("row, "))) as rows:
                    total = Added(*map(sum, zip(total, _add(connection, rows, _better), strict=True)))
    return total


def import_labels(
    path: str | Path,
    file: str | Path,
    method: str | None = None,
    version: str | None = None,
    charge: int | None = None,
    spin: int | None = None,
    patience: float = PATIENCE,
) -> Added:
    """Labeled structures of any file ASE reads become rows of a store.

    Parameters
    ----------
    path, file
        The store, created where it is not there, and the structures, read by the rules of `jaxal.data`.
    method, version
        As the labeler gives them (`jaxal store list --json` shows those of a store): a run with this very method and
        version finds the labels. None takes each frame's own, which an export has.
    charge, spin
        In e, and number of unpaired electrons, of frames that do not say them; None: 0.

    A label that the store has is left as it is, unless it is a failed one. Raises LabelError with the number of the
    frame (from 0) that is not good; nothing is written then.
    """
    file = Path(file)
    rows = []
    for number, frame in enumerate(frames := files.read(file)):
        try:
            missing = charge if frame.charge is None else None, spin if frame.spin is None else None
            rows.append(conversion.row_of(with_electrons(frame, *missing, "import"), method, version))
        except InputError as error:
            raise LabelError(f"{file}: frame {number}: {error}") from None
    if others := sorted({frame.origin.method for frame in frames} - {"", method or ""} if method else set()):
        dataset.tell(f"{file}: frames name other methods, such as {others[0]!r}; they are taken for {method!r}")
    labeled = [(number, frame) for number, frame in enumerate(frames) if not frame.isolated]
    try:
        dataset.check_one_method(list(enumerate(frames)), str(file))
    except InputError as error:
        raise LabelError(str(error)) from None
    dataset.doubts(labeled, str(file))
    dataset.contradictions(frames, dataset.groups(frames), str(file))
    with _adding(Path(path), patience) as connection:
        return _add(connection, rows, lambda there, offered: there == "failed")


def export(
    path: str | Path,
    file: str | Path,
    status: Status = "done",
    method: str | None = None,
    force: bool = False,
    patience: float = PATIENCE,
) -> int:
    """Writes the labels of one status, and of one method where it is given, to a file, and returns how many.

    Extended XYZ (.xyz, .extxyz, also .gz) or an ASE database (.db). Energies in eV, forces in eV/Å and, where there is
    one, stresses in eV/Å^3; charge (e), spin (unpaired electrons), key, method, version, status and seconds stand in
    the info of a frame, in `data` of a database row, with whatever the frame carried when it came. A failed label has
    no energy and no forces.

    Raises LabelError where the file exists (unless `force`), cannot be written, or would be empty.
    """
    path, file = Path(path), files.writable(file, force)
    where, values = "WHERE status = ?", (status,)
    if method is not None:
        where, values = f"{where} AND method = ?", (status, method)
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(contextlib.closing(connect_to_read(path, patience)))
        selected = _selected(connection, path, COLUMNS, where, values)
        rows = stack.enter_context(contextlib.closing(selected))
        count = files.write(file, (conversion.frame_of(entry_of(row)) for row in rows), force)
    if not count:
        of = f" of {method!r}" if method is not None else ""
        raise LabelError(f"{path}: holds no label{of} that is {status}; nothing was written")
    return count


def _better(there: str, offered: str) -> bool:
    return RANK[offered] > RANK[there]


@contextlib.contextmanager
def _adding(path: Path, patience: float) -> Iterator[sqlite3.Connection]:
    """One transaction on a store. Where it does not succeed nothing is left of it, nor of a store made for it."""
    new = not path.exists()
    connection = connect(path, patience)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        connection.execute("COMMIT")
    except BaseException as error:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        connection.close()
        if new:
            path.unlink(missing_ok=True)
        if isinstance(error, sqlite3.Error):
            raise store_error(error, path, patience) from error
        raise
    connection.close()


def _add(connection: sqlite3.Connection, rows: Iterable[tuple], wins: Callable[[str, str], bool]) -> Added:
    """Adds rows; `wins(status there, status offered)` says which replaces a row with the same key."""
    new = better = known = other = 0
    for row in rows:
        there = connection.execute("SELECT status, carried FROM label WHERE key = ?", (row[KEY],)).fetchone()
        if there is None:
            connection.execute(INSERT, row)
            new += 1
        elif wins(there[0], row[STATUS]):
            connection.execute(UPDATE, (*row, row[KEY]))
            better += 1
        else:
            known += 1
            other += there[1] != row[CARRIED]
    return Added(new, better, known, other)


def _selected(
    connection: sqlite3.Connection, path: Path, columns: str, where: str = "", values: tuple = ()
) -> Generator[tuple, None, None]:
    """Rows as they are at this moment, in the order of insertion, one at a time; to be closed before `connection`."""
    try:
        yield from connection.execute(f"SELECT {columns} FROM label {where} ORDER BY row", values)
    except sqlite3.Error as error:
        raise store_error(error, path) from error
