"""What a label store holds and what it cost, as plain values that JSON can have."""

import contextlib
import math
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np

from jaxal.data.electrons import formula
from jaxal.label.store.database import PATIENCE, connect_to_read, store_error

STATUSES = ("done", "rejected", "failed")
FIELDS = "row, key, numbers, charge, spin, method, version, status, energy, seconds, host, attempt, created, reason"


def listed(
    path: str | Path, status: str | None = None, limit: int | None = None, patience: float = PATIENCE
) -> dict[str, Any]:
    """Rows (energy in eV, None where there is none; seconds of wall time) and their counts by status.

    `limit` keeps the last so many, of one `status` where that is given; the counts are those of the whole store.
    Raises LabelError for what is not a label store.
    """
    path, where, values = Path(path), "", ()
    if status is not None:
        where, values = "WHERE status = ?", (status,)
    with contextlib.closing(connect_to_read(path, patience)) as connection:
        try:
            counts = dict(connection.execute("SELECT status, count(*) FROM label GROUP BY status").fetchall())
            records = connection.execute(
                f"SELECT {FIELDS} FROM label {where} ORDER BY row DESC LIMIT ?",
                (*values, -1 if limit is None else limit),
            ).fetchall()
        except sqlite3.Error as error:
            raise store_error(error, path, patience) from error
    rows = [_row(row) for row in reversed(records)]
    return {"store": str(path), "counts": {status: counts.get(status, 0) for status in STATUSES}, "rows": rows}


def cost(path: str | Path, patience: float = PATIENCE) -> dict[str, Any]:
    """Wall time by method and status, and in each by number of atoms: number, total, mean, median and max, in s.

    `hours` is the total in h. A label that was calculated more than once counts with its last attempt. Raises
    LabelError for what is not a label store.
    """
    path = Path(path)
    with contextlib.closing(connect_to_read(path, patience)) as connection:
        try:
            records = connection.execute(
                "SELECT method, status, length(numbers) / 8, seconds FROM label ORDER BY row"
            ).fetchall()
        except sqlite3.Error as error:
            raise store_error(error, path, patience) from error
    groups: dict[tuple[str, str], dict[int, list[float]]] = {}
    for method, status, atoms, seconds in records:
        groups.setdefault((method, status), {}).setdefault(atoms, []).append(seconds)
    return {
        "store": str(path),
        "total": _times([row[3] for row in records]),
        "methods": [
            {"method": method, "status": status}
            | _times([value for times in by_atoms.values() for value in times])
            | {"atoms": [{"atoms": atoms} | _times(by_atoms[atoms]) for atoms in sorted(by_atoms)]}
            for (method, status), by_atoms in sorted(groups.items())
        ],
    }


def _times(seconds: list[float]) -> dict[str, Any]:
    times = np.asarray(seconds, float)
    if not times.size:
        return {"number": 0, "total": 0.0, "hours": 0.0, "mean": None, "median": None, "max": None}
    return {
        "number": len(times),
        "total": float(times.sum()),
        "hours": float(times.sum()) / 3600,
        "mean": float(times.mean()),
        "median": float(np.median(times)),
        "max": float(times.max()),
    }


def _row(values: tuple) -> dict[str, Any]:
    row: dict[str, Any] = dict(zip(FIELDS.split(", "), values, strict=True))
    numbers = np.frombuffer(row.pop("numbers"), "<i8")
    row["formula"] = formula(numbers)
    row["atoms"] = len(numbers)
    row["energy"] = row["energy"] if row["energy"] is not None and math.isfinite(row["energy"]) else None
    return row
