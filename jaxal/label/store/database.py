"""The label store: one SQLite file that remembers every calculation, so that none is paid for twice.

A label is on the disk before `put` returns (write-ahead log, synchronous FULL): a killed run loses none. One
store serves several threads and several processes. SQLite's log needs shared memory, so the file must lie on a
local disk, not on a network file system.
"""

import contextlib
import datetime
import hashlib
import os
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from jaxal.data.lattice import letters
from jaxal.label.task import LabelError, Result, Task, one_line

SCHEMA = 3
APPLICATION = 0x4A61_7861  # "Jaxa", SQLite's application_id of a label store
PATIENCE = 60.0  # s to wait for another process that writes
PAGE = 256  # rows read at a time by `all`
DECIMALS = 6  # of a coordinate in the key, Å: far below what changes an energy by 1e-6 eV

# done: accepted. rejected: calculated, but the acceptance check refused it. failed: no numbers. The verdict is that of
# whoever calculated the label; others, with other caps, judge its numbers for themselves and leave the row as it is.
Status = Literal["done", "rejected", "failed"]

TABLE = """
CREATE TABLE label (
    row INTEGER PRIMARY KEY,
    key TEXT NOT NULL UNIQUE,
    numbers BLOB NOT NULL,   -- int64 [n]
    position BLOB NOT NULL,  -- float64 [n, 3], Å
    cell BLOB NOT NULL,      -- float64 [3, 3], Å
    periodic TEXT NOT NULL,  -- T or F for each lattice vector
    charge INTEGER NOT NULL,
    spin INTEGER NOT NULL,
    energy REAL,             -- eV; SQLite keeps a NaN as NULL
    force BLOB NOT NULL,     -- float64 [n, 3], eV/Å
    stress BLOB NOT NULL,    -- float64 [3, 3], eV/Å^3; NaN where there is none
    status TEXT NOT NULL CHECK (status IN ('done', 'rejected', 'failed')),
    reason TEXT NOT NULL,
    method TEXT NOT NULL,
    version TEXT NOT NULL,   -- of the code
    seconds REAL NOT NULL,   -- wall time
    host TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    created TEXT NOT NULL,   -- UTC
    carried BLOB NOT NULL DEFAULT x''  -- what the frame carried besides, see `jaxal.label.store.conversion`
)
"""
COLUMNS = (
    "row, key, numbers, position, cell, periodic, charge, spin, energy, force, stress, status, reason, method, "
    "version, seconds, host, attempt, created, carried"
)
COUNT = COLUMNS.count(",")  # without the row
INSERT = f"INSERT INTO label ({COLUMNS.removeprefix('row, ')}) VALUES ({', '.join('?' * COUNT)})"
# Numbers that the device may have seen are never replaced, only a failure is.
PUT = f"""
{INSERT}
ON CONFLICT (key) DO UPDATE SET
    energy = excluded.energy, force = excluded.force, stress = excluded.stress, status = excluded.status,
    reason = excluded.reason, seconds = excluded.seconds, host = excluded.host,
    created = excluded.created, attempt = label.attempt + 1
WHERE label.status = 'failed'
"""


class Entry(NamedTuple):
    """One row of the store. `result` holds the numbers as calculated, also where they were rejected."""

    row: int
    key: str
    task: Task
    result: Result
    status: Status
    method: str
    version: str
    host: str
    attempt: int  # how often it was calculated
    created: str  # UTC, ISO 8601
    carried: bytes  # see `jaxal.label.store.conversion`


class Store(NamedTuple):
    """An open store. Every function may be called from any thread."""

    get: Callable[[str], Entry | None]  # key -> entry
    put: Callable[..., Entry]  # (task, result, method, version, carried=b"", why rejected="") -> what it now holds
    all: Callable[[], Iterator[Entry]]  # in the order of insertion
    counts: Callable[[], dict[str, int]]  # rows by status
    close: Callable[[], None]


def label_key(task: Task, method: str, version: str) -> str:
    """SHA-256 of what determines a label; coordinates count to 1e-6 Å.

    What is periodic in all directions, and what is open (a cell of zeros), differ in their cells already.
    """
    digest = hashlib.sha256(f"{method}\n{version}\n{int(task.charge)} {int(task.spin)} {len(task.numbers)}\n".encode())
    digest.update(np.ascontiguousarray(task.numbers, "<i8").tobytes())
    for array in (task.position, task.cell):
        rounded = np.round(np.asarray(array, np.float64), DECIMALS) + 0.0  # -0.0 + 0.0 = 0.0
        digest.update(np.ascontiguousarray(rounded, "<f8").tobytes())
    if np.any(task.periodic) and not np.all(task.periodic):
        digest.update(letters(task.periodic).encode())
    return digest.hexdigest()


def new_row(
    key: str, task: Task, result: Result, status: Status, method: str, version: str, carried: bytes = b""
) -> tuple:
    """A row for INSERT, of a first attempt made here and now; `key` is its `label_key`."""
    created = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
    return (
        *(key, np.ascontiguousarray(task.numbers, "<i8").tobytes(), _blob(task.position), _blob(task.cell)),
        letters(task.periodic),
        *(int(task.charge), int(task.spin), float(result.energy), _blob(result.force), _blob(result.stress)),
        *(status, result.reason, method, version, float(result.seconds), socket.gethostname(), 1, created, carried),
    )


def connect(path: str | Path, patience: float = PATIENCE) -> sqlite3.Connection:
    """A connection that may write, in autocommit; the store is created where there is none. Its folder must exist.

    It waits `patience` seconds for others that write. Raises LabelError where the file cannot be opened, is something
    else, or has another schema.
    """
    path = Path(path)
    connection = None
    try:
        connection = sqlite3.connect(path, timeout=patience, isolation_level=None, check_same_thread=False)
        _prepare(connection, path)
    except (sqlite3.Error, ValueError) as error:  # ValueError: what SQLite says of a damaged file may be no text
        if connection is not None:
            connection.close()
        raise error if isinstance(error, LabelError) else store_error(error, path, patience) from error
    return connection


def connect_to_read(path: str | Path, patience: float = PATIENCE) -> sqlite3.Connection:
    """A connection to a store that changes nothing; runs may go on writing to it.

    Raises LabelError where there is no such file, or where it is something else.
    """
    path = Path(path)
    if not path.is_file():
        raise LabelError(f"{path}: there is no such file; give a label store, or the folder of a run that has one")
    # Reading a log needs the files -wal and -shm. Where there is none (nobody is at work), mode=ro would make both
    # and leave them behind; a connection that could write takes them away again.
    if path.with_name(path.name + "-wal").exists():
        mode = "mode=ro"
    elif os.access(path, os.W_OK) and os.access(path.parent, os.W_OK):
        mode = "mode=rw"
    else:
        mode = "immutable=1"  # a folder that nobody here may write to
    connection = None
    try:
        connection = sqlite3.connect(
            f"{path.resolve().as_uri()}?{mode}", timeout=patience, isolation_level=None, uri=True
        )
        if (version := _check(connection, path)) < SCHEMA:
            connection.execute(_view(version))
        connection.execute("PRAGMA query_only = ON")
    except (sqlite3.Error, ValueError) as error:  # ValueError: what SQLite says of a damaged file may be no text
        if connection is not None:
            connection.close()
        raise error if isinstance(error, LabelError) else store_error(error, path, patience) from error
    return connection


def store_error(error: Exception, path: Path, patience: float = PATIENCE) -> LabelError:
    """What is wrong with a store, from what SQLite says."""
    name = getattr(error, "sqlite_errorname", "")
    if name.startswith("SQLITE_BUSY"):
        return LabelError(f"{path}: another process has kept it locked for {patience:g} s; try again when it is done")
    if name.startswith("SQLITE_READONLY"):
        return LabelError(f"{path}: cannot be written ({error}); its file and folder must be writable")
    if name.startswith("SQLITE_CANTOPEN"):
        return LabelError(f"{path}: cannot open the label store ({error}); its folder must exist and be writable")
    if name.startswith(("SQLITE_FULL", "SQLITE_IOERR")):
        return LabelError(f"{path}: {one_line(str(error))}; the label store is as it was before")
    return LabelError(f"{path}: not a label store ({one_line(error)}); give another path")


def open_store(path: str | Path) -> Store:
    """Opens a store, or creates it. The folder must exist.

    Raises LabelError where the file cannot be opened, is something else, or has another schema.
    """
    lock = threading.RLock()
    connection = connect(path)

    @contextlib.contextmanager
    def reading() -> Iterator[None]:
        """Holds the lock; a damaged file is told of."""
        try:
            with lock:
                yield
        except sqlite3.DatabaseError as error:
            raise store_error(error, Path(path)) from error
        except (ValueError, TypeError) as error:
            what = f"the label store is damaged ({one_line(error)}); restore it from a copy"
            raise LabelError(f"{path}: {what}") from error

    def get(key: str) -> Entry | None:
        with reading():
            row = connection.execute(f"SELECT {COLUMNS} FROM label WHERE key = ?", (key,)).fetchone()
            return entry_of(row) if row else None

    def put(task: Task, result: Result, method: str, version: str, carried: bytes = b"", rejected: str = "") -> Entry:
        key = label_key(task, method, version)
        status: Status = "failed" if not result.ok else "rejected" if rejected else "done"
        result = result._replace(reason=rejected) if result.ok else result
        values = new_row(key, task, result, status, method, version, carried)
        with lock:
            connection.execute(PUT, values)  # autocommit: on the disk when this returns
            entry = get(key)
        assert entry is not None
        return entry

    def all_entries() -> Iterator[Entry]:
        last = 0
        while True:
            with reading():
                rows = connection.execute(
                    f"SELECT {COLUMNS} FROM label WHERE row > ? ORDER BY row LIMIT {PAGE}", (last,)
                ).fetchall()
                entries = [entry_of(row) for row in rows]
            if not entries:
                return
            yield from entries
            last = entries[-1].row

    def counts() -> dict[str, int]:
        with reading():
            by_status = dict(connection.execute("SELECT status, count(*) FROM label GROUP BY status").fetchall())
        return {status: by_status.get(status, 0) for status in ("done", "rejected", "failed")}

    def close() -> None:
        with lock:
            connection.close()

    return Store(get, put, all_entries, counts, close)


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Makes the connection durable and the schema present. One process at a time creates it."""
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("BEGIN IMMEDIATE")
    try:
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if tables == 0:
            connection.execute(TABLE)
            connection.execute(f"PRAGMA user_version = {SCHEMA}")
            connection.execute(f"PRAGMA application_id = {APPLICATION}")
        else:
            version = _check(connection, path)
            if version == 1:
                connection.execute("ALTER TABLE label ADD COLUMN carried BLOB NOT NULL DEFAULT x''")
                connection.execute("UPDATE label SET stress = ? WHERE stress = ?", (_blob(_ABSENT), _blob(_ZERO)))
            if version < 3:
                connection.execute("ALTER TABLE label ADD COLUMN periodic TEXT NOT NULL DEFAULT 'TTT'")
                connection.execute("UPDATE label SET periodic = 'FFF' WHERE cell = ?", (_blob(_ZERO),))
                connection.execute(f"PRAGMA user_version = {SCHEMA}")
        connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        raise
    # Two processes that switch at once: the switch does not wait for the lock by itself, the next one does.
    for _ in range(100):
        try:
            connection.execute("PRAGMA journal_mode = WAL").fetchone()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("COMMIT")
    connection.execute("PRAGMA journal_mode = WAL").fetchone()


# A store of schema 1 had zeros where there was no stress, and nothing of what a frame carried; one of schema 2 had
# structures that are periodic in all directions or, with a cell of zeros, in none.
_ZERO, _ABSENT = np.zeros((3, 3)), np.full((3, 3), np.nan)


def _view(version: int) -> str:
    """SQL that shows a store of an earlier schema as one of this."""
    zero, absent = (f"x'{_blob(x).hex()}'" for x in (_ZERO, _ABSENT))
    columns = COLUMNS.replace("periodic", f"iif(cell = {zero}, 'FFF', 'TTT') AS periodic")
    if version == 1:
        columns = columns.replace("stress", f"iif(stress = {zero}, {absent}, stress) AS stress")
        columns = columns.replace("carried", "x'' AS carried")
    return f"CREATE TEMP VIEW label AS SELECT {columns} FROM main.label"


def _check(connection: sqlite3.Connection, path: Path) -> int:
    """The schema of the file. Raises LabelError where it is no label store, or one of a later schema."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    if application != APPLICATION:
        raise LabelError(f"{path}: an SQLite file, but not a label store; give another path")
    if not 1 <= version <= SCHEMA:
        what = "a later jaxal has written it" if version > SCHEMA else "no jaxal has written it"
        raise LabelError(f"{path}: label store of schema {version}, this one reads 1 to {SCHEMA}; {what}")
    return version


def _blob(array: np.ndarray) -> bytes:
    return np.ascontiguousarray(array, "<f8").tobytes()


def _array(blob: bytes, *shape: int) -> np.ndarray:
    return np.frombuffer(blob, "<f8").reshape(shape).astype(np.float64)


def entry_of(row: tuple) -> Entry:
    """A row of COLUMNS as an entry."""
    number, key, numbers, position, cell, periodic, charge, spin, energy, force, stress, status, reason = row[:13]
    method, version, seconds, host, attempt, created, carried = row[13:]
    geometry = np.frombuffer(numbers, "<i8").astype(np.int64), _array(position, -1, 3), _array(cell, 3, 3)
    task = Task(*geometry, np.array([letter == "T" for letter in periodic]), charge, spin)
    energy = float("nan") if energy is None else energy
    result = Result(energy, _array(force, -1, 3), _array(stress, 3, 3), status == "done", reason, seconds)
    return Entry(number, key, task, result, status, method, version, host, attempt, created, bytes(carried))
