"""Label stores and the outside: structures out to files, labeled structures in, stores into one another.

A file is written whole or not at all, and so is a store: what is added goes in with one transaction. Numbers are
written with all their digits, so that a label that was exported and imported again has its key and its bits.
"""

import contextlib
import gzip
import json
import re
import sqlite3
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase
import numpy as np
from ase.data import chemical_symbols
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress

from jaxal import extxyz
from jaxal.label.store import (
    COLUMNS,
    INSERT,
    PATIENCE,
    Entry,
    Status,
    connect,
    connect_to_read,
    entry_of,
    label_key,
    new_row,
    told,
)
from jaxal.label.task import LabelError, Result, Task, check_task, one_line, periodic

XYZ, DATABASE = (".xyz", ".extxyz", ".xyz.gz", ".extxyz.gz"), (".db",)
MATRIX = "stress_matrix"  # nine numbers of a stress that is symmetric but for rounding: ASE's stress has six
RANK: dict[str, int] = {"failed": 0, "rejected": 1, "done": 2}
KEY, STATUS = (COLUMNS.split(", ").index(name) - 1 for name in ("key", "status"))  # in a row for INSERT
UPDATE = f"UPDATE label SET ({COLUMNS.removeprefix('row, ')}) = ({', '.join('?' * 17)}) WHERE key = ?"


class Added(NamedTuple):
    """What became of labels that were offered to a store."""

    new: int = 0
    better: int = 0  # took the place of a row of a lesser status
    known: int = 0  # the store had them, and keeps its own


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
            found = Added()
            for source, reading in opened:
                with contextlib.closing(_selected(reading, source, COLUMNS.removeprefix("row, "))) as rows:
                    found = Added(*map(sum, zip(found, _add(connection, rows, _better), strict=True)))
    return found


def import_labels(
    path: str | Path,
    file: str | Path,
    method: str | None = None,
    version: str | None = None,
    charge: int = 0,
    spin: int = 0,
    patience: float = PATIENCE,
) -> Added:
    """Labeled structures of any file ASE reads become rows of a store.

    Parameters
    ----------
    path, file
        The store, created where it is not there, and the structures: energies in eV, forces in eV/Å, for periodic
        ones stresses in eV/Å^3 if there are any (zeros otherwise).
    method, version
        As the labeler gives them (`jaxal store list --json` shows those of a store): a run with this very method and
        version finds the labels. None takes each frame's own, which an export has.
    charge, spin
        In e, and number of unpaired electrons, of frames whose info does not give them.

    A label that the store has is left as it is, unless it is a failed one. Raises LabelError with the number of the
    frame (from 0) that is not good; nothing is written then.
    """
    file = Path(file)
    rows = []
    for number, atoms in enumerate(_read(file)):
        try:
            rows.append(_labeled(atoms, method, version, charge, spin))
        except LabelError as error:
            raise LabelError(f"{file}: frame {number}: {error}") from None
    with _adding(Path(path), patience) as connection:
        return _add(connection, rows, lambda there, offered: there == "failed")


def export(
    path: str | Path, file: str | Path, status: Status = "done", force: bool = False, patience: float = PATIENCE
) -> int:
    """Writes the labels of one status to a file that ASE reads, and returns how many.

    Extended XYZ (.xyz, .extxyz, also .gz) or an ASE database (.db). Energies in eV, forces in eV/Å and, where there is
    a cell, stresses in eV/Å^3; charge (e), spin (unpaired electrons), key, method, version, status and seconds stand
    in the info of a frame, in `data` of a database row. A failed label has no energy and no forces.

    Raises LabelError where the file exists (unless `force`), cannot be written, or would be empty.
    """
    path, file = Path(path), writable(file, force)
    with contextlib.ExitStack() as stack:
        connection = stack.enter_context(contextlib.closing(connect_to_read(path, patience)))
        selected = _selected(connection, path, COLUMNS, "WHERE status = ?", (status,))
        rows = stack.enter_context(contextlib.closing(selected))
        count = write(file, map(entry_of, rows), force)
    if not count:
        raise LabelError(f"{path}: holds no label that is {status}; nothing was written")
    return count


def writable(file: str | Path, force: bool = False) -> Path:
    """Raises LabelError where labels cannot go into a file of this name, or would replace it without `force`."""
    file = Path(file)
    if not file.name.lower().endswith(XYZ + DATABASE):
        raise LabelError(f"{file}: unknown kind of file; give a name that ends in {', '.join(XYZ + DATABASE)}")
    if file.exists() and not force:
        raise LabelError(f"{file}: is there already; --force replaces it")
    return file


def write(file: str | Path, entries: Iterable[Entry], force: bool = False) -> int:
    """Writes rows of a store as `export` does, and returns how many. Without any there will be no file."""
    file = writable(file, force)
    name, part = file.name.lower(), file.with_name(file.name + ".part")
    try:
        part.unlink(missing_ok=True)
        count = (_write_database if name.endswith(DATABASE) else _write_xyz)(part, entries, name)
        if count:
            part.replace(file)
    except (OSError, sqlite3.Error) as error:
        raise LabelError(f"{file}: cannot be written ({one_line(error)})") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return count


def _better(there: str, offered: str) -> bool:
    return RANK[offered] > RANK[there]


@contextlib.contextmanager
def _adding(path: Path, patience: float) -> Iterator[sqlite3.Connection]:
    """One transaction on a store. Where it does not succeed nothing is left of it, nor of a store made for it."""
    made = not path.exists()
    connection = connect(path, patience)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        connection.execute("COMMIT")
    except BaseException as error:
        with contextlib.suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
        connection.close()
        if made:
            path.unlink(missing_ok=True)
        if isinstance(error, sqlite3.Error):
            raise told(error, path, patience) from error
        raise
    connection.close()


def _add(connection: sqlite3.Connection, rows: Iterable[tuple], wins: Callable[[str, str], bool]) -> Added:
    """Adds rows; `wins(status there, status offered)` says which replaces a row with the same key."""
    new = better = known = 0
    for row in rows:
        there = connection.execute("SELECT status FROM label WHERE key = ?", (row[KEY],)).fetchone()
        if there is None:
            connection.execute(INSERT, row)
            new += 1
        elif wins(there[0], row[STATUS]):
            connection.execute(UPDATE, (*row, row[KEY]))
            better += 1
        else:
            known += 1
    return Added(new, better, known)


def _selected(
    connection: sqlite3.Connection, path: Path, columns: str, where: str = "", values: tuple = ()
) -> Generator[tuple, None, None]:
    """Rows as they are at this moment, in the order of insertion, one at a time; to be closed before `connection`."""
    try:
        yield from connection.execute(f"SELECT {columns} FROM label {where} ORDER BY row", values)
    except sqlite3.Error as error:
        raise told(error, path) from error


def _read(file: Path) -> list[ase.Atoms]:
    """The frames of a file; a database row's data and key-value pairs are its info."""
    import ase.db
    import ase.io

    if not file.is_file():
        raise LabelError(f"{file}: there is no such file; give labeled structures in a format that ASE reads")
    if reason := extxyz.damage(file):
        raise LabelError(f"{file}: {reason}")
    try:
        if file.suffix == ".db":
            with contextlib.closing(sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True)) as plain:
                plain.execute("SELECT 1 FROM systems")  # ASE would make its tables in any SQLite file
            frames = []
            for row in ase.db.connect(file, use_lock_file=False).select():
                frames.append(row.toatoms())
                frames[-1].info |= dict(row.data) | row.key_value_pairs
        else:
            frames = ase.io.read(file, index=":")
    except Exception as error:  # ASE's readers raise anything at all
        raise LabelError(f"{file}: ASE cannot read it ({one_line(error)})") from error
    if not frames:
        raise LabelError(f"{file}: holds no structure")
    return frames if isinstance(frames, list) else [frames]


def _labeled(atoms: ase.Atoms, method: str | None, version: str | None, charge: int, spin: int) -> tuple:
    """A frame as a row of a store. Raises LabelError where something is missing or is not a number."""
    info, results = atoms.info, atoms.calc.results if atoms.calc is not None else {}

    def found(name: str, elsewhere: Any) -> Any:
        places = ((results, name), (elsewhere, f"REF_{name}"), (elsewhere, name))
        return next((place[key] for place, key in places if place.get(key) is not None), None)

    if atoms.pbc.any() and not atoms.pbc.all():
        raise LabelError(f"periodic in {int(atoms.pbc.sum())} directions; use none or three")
    cell = np.array(atoms.cell.array, float) if atoms.pbc.all() else np.zeros((3, 3))
    task = Task(
        np.asarray(atoms.numbers, np.int64),
        np.array(atoms.positions, float),
        cell,
        _whole(info.get("charge", charge), "charge"),
        _whole(info.get("spin", spin), "spin"),
    )
    check_task(task)
    if atoms.pbc.all() and not periodic(task):
        raise LabelError("periodic, but without a cell; give Lattice")
    if task.spin < 0:
        raise LabelError(f"spin: {task.spin} is no number of unpaired electrons; give 0 or more")
    if info.get("status", "done") not in ("done", "rejected"):
        raise LabelError(f"its status is {info['status']!r}; only labels that are done or rejected have numbers")
    given = {"energy": found("energy", info), "forces": found("forces", atoms.arrays)}
    for name, value in given.items():
        if value is None:
            raise LabelError(f"carries no {name}; give `{name}` or `REF_{name}`")
    stress = info.get(MATRIX)
    stress = found("stress", info) if stress is None else stress
    given["stress"] = _matrix(np.zeros((3, 3)) if stress is None else stress)
    try:
        energy, force, stress = (np.asarray(value, float) for value in given.values())
    except (TypeError, ValueError):
        raise LabelError("its energy, forces or stress are not numbers") from None
    if energy.size != 1 or force.shape != task.position.shape:
        raise LabelError(f"energy {energy.shape} and forces {force.shape} do not fit {len(task.numbers)} atoms")
    for name, value in (("energy", energy), ("forces", force), ("stress", stress)):
        if not np.all(np.isfinite(value)):
            raise LabelError(f"{name}: not a finite number; leave the frame out")
    method, version = _named(info, "method", method), _named(info, "version", version)
    seconds = info.get("seconds", 0.0)
    seconds = float(seconds) if isinstance(seconds, int | float | np.number) and np.isfinite(seconds) else 0.0
    status: Status = "rejected" if info.get("status") == "rejected" else "done"
    reason = one_line(str(info.get("reason", ""))) if status == "rejected" else ""
    result = Result(float(energy.reshape(())), force, stress, status == "done", reason, max(seconds, 0.0))
    return new_row(label_key(task, method, version), task, result, status, method, version)


def _named(info: dict[str, Any], name: str, given: str | None) -> str:
    text = str(info.get(name) or "") if given is None else given
    if not text.strip():
        raise LabelError(f"{name}: neither the frame nor the command gives it; give --{name} TEXT")
    return text


def _whole(value: Any, name: str) -> int:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = float("nan")
    if not number.is_integer():
        raise LabelError(f"{name}: {value!r} is not a whole number")
    return int(number)


def _matrix(stress: Any) -> np.ndarray:
    """A stress of six or nine numbers, [3, 3]."""
    value = np.asarray(stress)
    if value.size not in (6, 9):
        raise LabelError(f"stress: {value.shape} numbers; give six or nine")
    return value.reshape(3, 3) if value.size == 9 else voigt_6_to_full_3x3_stress(value)


def _info(entry: Entry) -> dict[str, str | int | float]:
    task, result = entry.task, entry.result
    info = {"charge": task.charge, "spin": task.spin, "key": entry.key, "status": entry.status}
    info |= {"method": entry.method, "version": entry.version, "seconds": result.seconds}
    return info | ({"reason": result.reason} if result.reason else {})


def _has_stress(entry: Entry) -> bool:
    return periodic(entry.task) or bool(np.any(entry.result.stress))


def _write_xyz(path: Path, entries: Iterable[Entry], name: str) -> int:
    count = 0
    with gzip.open(path, "wt", encoding="utf-8") if name.endswith(".gz") else open(path, "w", encoding="utf-8") as file:
        for entry in entries:
            file.write(_frame(entry))
            count += 1
    return count


def _frame(entry: Entry) -> str:
    """A label in extended XYZ. ASE's own writer rounds to 1e-8 and takes odd texts apart when it reads them."""
    task, result = entry.task, entry.result
    columns, words = [task.position], []
    if periodic(task):
        words.append(f'Lattice="{_numbers(task.cell)}"')
    words.append("Properties=species:S:1:pos:R:3" + (":forces:R:3" if entry.status != "failed" else ""))
    if entry.status != "failed":
        columns.append(result.force)
        words.append(f"energy={float(result.energy)!r}")
        if _has_stress(entry):
            words.append(f'stress="{_numbers(result.stress.T)}"')
            if not np.array_equal(result.stress, result.stress.T):
                words.append(f'{MATRIX}="{_numbers(result.stress)}"')
    words += [f"{key}={_text(value) if isinstance(value, str) else repr(value)}" for key, value in _info(entry).items()]
    words.append('pbc="T T T"' if periodic(task) else 'pbc="F F F"')
    lines = [str(len(task.numbers)), " ".join(words)]
    for number, row in zip(task.numbers, np.hstack(columns), strict=True):
        lines.append(f"{chemical_symbols[number]:<2} {_numbers(row)}")
    return "\n".join(lines) + "\n"


def _numbers(array: np.ndarray) -> str:
    """All digits that a float64 needs to come back with the same bits."""
    return " ".join(repr(float(value)) for value in np.ravel(array))


def _text(text: str) -> str:
    """A text so that ASE reads it as this very text: as JSON where it looks like numbers or has odd characters."""
    odd = not (text.isascii() and text.isprintable()) or text.strip() != text or set(text) & {'"', "\\"}
    if odd or all(map(_is_value, re.findall(r"[^\s,]+", text))):
        text = "_JSON " + json.dumps(text)
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _is_value(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return word in ("T", "F", "true", "false", "True", "False", "TRUE", "FALSE")
    return True


def _write_database(path: Path, entries: Iterable[Entry], name: str) -> int:
    import ase.db
    from ase.calculators.singlepoint import SinglePointCalculator

    count = 0
    connected: Any = ase.db.connect(path, type="db", use_lock_file=False)
    with connected as database:  # one transaction
        for entry in entries:
            task, result = entry.task, entry.result
            box = {"cell": task.cell, "pbc": True} if periodic(task) else {}
            atoms = ase.Atoms(numbers=task.numbers, positions=task.position, **box)
            data: dict[str, Any] = dict(_info(entry))
            if entry.status != "failed":
                results = {"energy": result.energy, "forces": result.force}
                if _has_stress(entry):
                    results["stress"] = full_3x3_to_voigt_6_stress(result.stress)
                    data |= {} if np.array_equal(result.stress, result.stress.T) else {MATRIX: result.stress}
                atoms.calc = SinglePointCalculator(atoms, **results)
            database.write(atoms, status=entry.status, data=data)
            count += 1
    return count
