"""Rows of a label store as frames, and frames as rows: what a frame carried stands in a row beside its label."""

from typing import Any, NamedTuple

import numpy as np
from ase.data import atomic_masses

from jaxal.data import frames
from jaxal.data.files import portable
from jaxal.data.frames import Carried, Frame, Origin
from jaxal.data.labels import Numbers, share_of
from jaxal.label.store.database import Entry, Status, label_key, new_row
from jaxal.label.task import LabelError, Result, Task, check_task, one_line, packed, unpacked


class _Luggage(NamedTuple):
    """What a row keeps of a frame besides its task and its label; None: the usual."""

    mass: np.ndarray | None  # [n] amu
    fixed: np.ndarray | None  # [n] bool
    cell: np.ndarray | None  # [3 3] Å, of an open structure
    info: list[Any]
    arrays: list[Any]


def luggage(frame: Frame) -> bytes:
    """What a frame carried, for a row of a store; empty where there is nothing."""
    carried = portable(frame).carried
    parts = _Luggage(
        frame.mass if frames.isotopes(frame) else None,
        frame.fixed if frame.fixed.any() else None,
        frame.cell if frame.cell.any() and not frame.periodic.any() else None,
        [list(pair) for pair in carried.info],
        [list(pair) for pair in carried.arrays],
    )
    return packed(list(parts)) if any(part is not None and len(part) for part in parts) else b""


def fixed_of(carried: bytes, atoms: int) -> np.ndarray:
    """Which atoms are fixed, [n], by what a row of a store keeps beside its label."""
    fixed = unpacked(carried)[1] if carried else None
    return np.zeros(atoms, bool) if fixed is None else np.asarray(fixed, bool)


def task_of(frame: Frame) -> Task:
    """The structure of a frame as a labeler takes it; 0 for electrons that nobody says anything of."""
    geometry = frame.numbers, frame.position, frame.lattice, frame.periodic
    return Task(*geometry, frame.charge or 0, frame.spin or 0)


def frame_of(entry: Entry) -> Frame:
    """A row of a store as a frame; a failed one has no numbers."""
    task, result = entry.task, entry.result
    mass, fixed, cell, info, arrays = unpacked(entry.carried) if entry.carried else (None, None, None, [], [])
    parts = _Luggage(mass, fixed, cell, info, arrays)
    count = len(task.numbers)
    carried = Carried(tuple((key, value) for key, value in parts.info), tuple((key, v) for key, v in parts.arrays))
    numbers = Numbers(result.energy, result.force, result.stress)
    if entry.status == "failed":
        numbers = Numbers(float("nan"), np.full((count, 3), np.nan), np.full((3, 3), np.nan))
    info = dict(carried.info)
    return Frame(
        numbers=task.numbers,
        position=task.position,
        cell=task.cell if parts.cell is None else parts.cell,
        periodic=task.periodic,
        mass=atomic_masses[task.numbers] if parts.mass is None else parts.mass,
        fixed=fixed_of(entry.carried, count),
        charge=int(task.charge),
        spin=int(task.spin),
        numeric=numbers,
        share=share_of(info),
        isolated=str(info.get("config_type", "")).strip().lower() in frames.ISOLATED,
        origin=Origin(entry.method, entry.version, entry.key, entry.status, result.reason, result.seconds),
        carried=carried,
    )


def row_of(frame: Frame, method: str | None, version: str | None) -> tuple:
    """A labeled frame as a row of a store. Raises LabelError where something is missing.

    `method` and `version` come before the frame's own.
    """
    task, origin, numeric = task_of(frame), frame.origin, frame.numeric
    check_task(task)
    if origin.status not in ("", "done", "rejected"):
        raise LabelError(f"its status is {origin.status!r}; only labels that are done or rejected have numbers")
    force = numeric.force
    if frame.isolated and np.isnan(force).all():
        force = np.zeros((1, 3))  # nothing pulls at a free atom
    for name, value in (("energy", numeric.energy), ("forces", force)):
        if not np.all(np.isfinite(value)):
            raise LabelError(f"carries no {name}; give `{name}` or `REF_{name}`")
    method, version = origin.method if method is None else method, origin.version if version is None else version
    for name, text in (("method", method), ("version", version)):
        if not text.strip():
            raise LabelError(f"{name}: neither the frame nor the command gives it; give --{name} TEXT")
    status: Status = "rejected" if origin.status == "rejected" else "done"
    reason = one_line(origin.reason) if status == "rejected" else ""
    result = Result(numeric.energy, force, numeric.stress, status == "done", reason, origin.seconds)
    return new_row(label_key(task, method, version), task, result, status, method, version, luggage(frame))
