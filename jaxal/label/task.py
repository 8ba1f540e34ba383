"""One reference calculation: what is asked, what is answered, and who calculates.

A backend never raises for a failed calculation: it answers with `ok=False` and a reason of one line. A mistake
of the user (a missing package, an impossible spin) is told by `Backend.check` before anything is paid.
"""

import importlib.metadata
import importlib.util
import os
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import msgpack
import numpy as np

from jaxal.core.errors import InputError
from jaxal.data import lattice
from jaxal.data.electrons import check_electrons

MOVED = 1e-4  # Å; by so much a program may round the positions
ARRAY = "__array__"  # the key of an array in a message
OPEN = np.zeros((3, 3)), np.zeros(3, bool)  # cell and periodicity of a molecule
NO_STRESS = np.full((3, 3), np.nan)  # of an open structure, or of a method that has none
REASON_LENGTH = 300  # characters of a reason: it is shown on one line


class LabelError(InputError):
    """A mistake in what a method is to calculate, or in a label: one line, what was wrong and what would be right."""


class Enough(BaseException):
    """Told to end, with what was begun on disk. Not an Exception, so that nothing takes it for a failure."""


class Task(NamedTuple):
    """A structure without padding, in float64."""

    numbers: np.ndarray  # [n] atomic numbers
    position: np.ndarray  # [n, 3] Å
    cell: np.ndarray  # [3, 3] Å, rows are lattice vectors; along open directions the user's vacuum; else zeros
    periodic: np.ndarray  # [3] bool, which lattice vectors repeat
    charge: int  # e
    spin: int  # number of unpaired electrons


class Result(NamedTuple):
    """What a backend answers. Where `ok` is false the numbers mean nothing unless acceptance refused them."""

    energy: float  # eV, total
    force: np.ndarray  # [n, 3] eV/Å
    stress: np.ndarray  # [3, 3] eV/Å^3 of volume with the vacuum, positive under tension; NaN where there is none
    ok: bool
    reason: str  # why not, in one line; empty if ok
    seconds: float  # wall time


class Backend(NamedTuple):
    """Who calculates.

    `check` raises LabelError for a structure the method cannot treat, without calculating. `method` describes
    the method with every option that changes its numbers, `version` the code; both are part of a label's key.
    """

    calculate: Callable[[Task], Result]
    check: Callable[[Task], None]
    method: str
    version: str


def packed(value: Any) -> bytes:
    """Numbers, texts, lists, mappings and numpy arrays, or a Task or Result, as one process sends them to another."""

    def plain(other: Any) -> Any:
        if isinstance(other, np.ndarray):
            kind = {"i": "<i8", "u": "<i8", "b": "|b1", "U": other.dtype.newbyteorder("<").str}.get(
                other.dtype.kind, "<f8"
            )
            return {ARRAY: [kind, list(other.shape), np.ascontiguousarray(other, kind).tobytes()]}
        if isinstance(other, np.generic):
            return other.item()
        if isinstance(other, os.PathLike):
            return os.fspath(other)
        if isinstance(other, Mapping):
            return dict(other)
        raise TypeError(f"{type(other).__name__} cannot be sent to a worker")

    return msgpack.Packer(default=plain).pack(value)


def unpacked(message: bytes) -> Any:
    """What `packed` packed; a Task or a Result as the list of its fields. It makes no other objects."""

    def value_of(mapping: dict) -> Any:
        if mapping.keys() == {ARRAY}:
            kind, shape, data = mapping[ARRAY]
            return np.frombuffer(data, kind).reshape(shape).copy()
        return mapping

    return msgpack.unpackb(message, object_hook=value_of, strict_map_key=False)


def failed(task: Task, reason: str, seconds: float = 0.0) -> Result:
    """The answer of a calculation that gave no numbers."""
    return Result(0.0, np.zeros((len(task.numbers), 3)), NO_STRESS.copy(), False, one_line(reason), seconds)


def answered(task: Task, energy: float, force: np.ndarray, stress: np.ndarray | None = None) -> Result:
    """The label that a program wrote: energy in eV, force [n, 3] in eV/Å, stress [3, 3] in eV/Å^3 or None.

    A failure where the shapes do not fit or a number is not finite.
    """
    arrays = np.asarray(force, float), NO_STRESS.copy() if stress is None else np.asarray(stress, float)
    if arrays[0].shape != (len(task.numbers), 3) or arrays[1].shape != (3, 3):
        return failed(task, f"the program wrote forces {arrays[0].shape} for {len(task.numbers)} atoms")
    there = arrays if stress is not None else arrays[:1]
    if not (np.isfinite(energy) and all(np.all(np.isfinite(values)) for values in there)):
        return failed(task, "the program wrote numbers that are not finite")
    return Result(float(energy), *arrays, True, "", 0.0)


def elsewhere(task: Task, position: np.ndarray) -> bool:
    """Whether the atoms that a program says it calculated, [n, 3] in Å, are not where they were put.

    Lattice vectors do not count. A program that turns a molecule or sorts its atoms gives forces of another frame.
    """
    if np.shape(position) != task.position.shape:
        return True
    moved = position - task.position
    if periodic(task):
        images = np.round(moved @ lattice.inverse(task.cell, task.periodic))
        moved = moved - np.where(task.periodic, images, 0.0) @ task.cell
    return not np.abs(moved).max() <= MOVED


def one_line(text: str | BaseException) -> str:
    """An error or a text as one line of bounded length."""
    if isinstance(text, BaseException):
        text = str(text) if isinstance(text, LabelError) else f"{type(text).__name__}: {text}"
    return " ".join(text.split())[:REASON_LENGTH] or "no reason given"


def guarded(calculate: Callable[[Task], Result]) -> Callable[[Task], Result]:
    """`calculate` with its wall time filled in, and any exception turned into `ok=False` and a reason."""

    def safe(task: Task) -> Result:
        start = time.perf_counter()
        try:
            result = calculate(task)
        except Exception as error:  # anything at all: a failed calculation is data
            result = failed(task, one_line(error))
        return result._replace(seconds=time.perf_counter() - start)

    return safe


def periodic(task: Task) -> bool:
    """Whether the structure repeats in any direction."""
    return bool(np.any(task.periodic))


def has_stress(task: Task) -> bool:
    """Whether a stress means anything: the structure repeats, and its cell has a volume."""
    return periodic(task) and volume(task) > lattice.FLAT


def check_task(task: Task) -> None:
    """Raises LabelError for arrays that do not fit together, positions that are no numbers, or a flat cell."""
    n = len(task.numbers)
    if n == 0:
        raise LabelError("structure: it has no atoms; give at least one")
    if task.position.shape != (n, 3) or task.cell.shape != (3, 3) or np.shape(task.periodic) != (3,):
        shapes = f"positions {task.position.shape}, cell {task.cell.shape} and periodic {np.shape(task.periodic)}"
        raise LabelError(f"structure: {n} atoms, {shapes} do not fit; give ({n}, 3), (3, 3) and (3,)")
    if not (np.all(np.isfinite(task.position)) and np.all(np.isfinite(task.cell))):
        raise LabelError("structure: a position or cell vector is not finite; give numbers in Å")
    if lattice.spanned(task.cell, task.periodic) < lattice.FLAT:
        what = "it has no volume" if np.all(task.periodic) else "its periodic vectors span nothing"
        raise LabelError(f"cell: {what}; give a lattice vector for each periodic direction, of an open system zeros")
    if np.any(task.cell) and not periodic(task):
        raise LabelError("cell: given, but nothing is periodic; give zeros, or which lattice vectors repeat")


def check_open(task: Task, name: str) -> None:
    """Raises LabelError for a structure that repeats, where the method `name` knows molecules only."""
    if periodic(task):
        what = f"this one is periodic along {lattice.named(task.periodic)}"
        raise LabelError(f"label: {name} is for open systems, {what}; drop the cell or use another labeler")


def volume(task: Task) -> float:
    """Volume of the cell, Å^3."""
    return float(abs(np.linalg.det(task.cell)))


def check_spin(task: Task, electrons: int | None = None) -> None:
    """Raises LabelError where so many unpaired electrons are impossible with this composition and charge.

    `electrons` replaces the number in the neutral atoms, for a method that hides some of them.
    """
    try:
        check_electrons(task.numbers, int(task.charge), int(task.spin), electrons)
    except InputError as error:
        raise LabelError(str(error)) from None


def code_version(package: str) -> str:
    """Name and version of an installed distribution, without importing it."""
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} not installed"


def check_package(module: str, install: str) -> None:
    """Raises LabelError that says what to install where a module is missing. Does not import it."""
    if importlib.util.find_spec(module) is None:
        raise LabelError(f"label: the Python package {module!r} is missing; run `pip install {install}`")
