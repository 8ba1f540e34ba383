"""Cells for codes that repeat everything in three directions: k-points, a cube around a molecule, a slab's vacuum."""

from collections.abc import Sequence

import numpy as np

from jaxal.data.lattice import FLAT
from jaxal.label.task import LabelError, Task, periodic

MARGIN = 6.0  # Å; at least so much of a box is empty in each direction
# Å; at least so much lies between a slab and its next image. Three layers of silicon by pw.x: with 10 Å the forces are
# within 0.02 eV/Å of those with 16, with 8 within 0.03, with 6 within 0.13 and with 4 within 0.63.
VACUUM = 8.0
DIRECTIONS = "abc"


def k_mesh(cell: np.ndarray, spacing: float, periodic: np.ndarray) -> tuple[int, int, int]:
    """Numbers of k-points along the reciprocal vectors that are at most `spacing` apart, in 1/Å with 2 pi.

    One along an open direction: there is nothing to sample across a vacuum.
    """
    lengths = 2 * np.pi * np.linalg.norm(np.linalg.inv(cell), axis=0)
    # A hair of tolerance: rounding must not add a point for a cell that fits exactly.
    numbers = np.where(periodic, np.maximum(np.ceil(lengths / spacing - 1e-6), 1), 1)
    a, b, c = numbers.astype(int).tolist()
    return a, b, c


def mesh_of(task: Task, k_points: Sequence[int] | None, spacing: float) -> tuple[int, int, int]:
    """The k-points of a structure: those given, else of a density; Γ alone for a molecule."""
    if k_points:
        a, b, c = k_points
        return a, b, c
    return k_mesh(task.cell, spacing, task.periodic) if periodic(task) else (1, 1, 1)


def check_cell(task: Task, box: float | None, k_points: Sequence[int] | None = None) -> None:
    """Raises LabelError for a structure that a code which repeats it in three directions cannot treat as it is meant.

    A molecule needs a cube of edge `box` (Å) to be put into. A slab or a wire needs a lattice vector along each open
    direction, with vacuum between the images, and one k-point there.
    """
    if not periodic(task):
        _check_box(task, box)
        return
    if np.all(task.periodic):
        return
    for row, name in enumerate(DIRECTIONS):
        if task.periodic[row]:
            continue
        if k_points and k_points[row] > 1:
            what = f"{k_points[row]} points along {name}, where the structure is open; give 1"
            raise LabelError(f"label.k_points: {what}")
        empty = vacuum(task, row)
        if empty is None:
            what = f"there is no lattice vector along {name}, which is open; this method needs a vacuum there"
            raise LabelError(f"cell: {what}: give a vector that leaves {VACUUM:g} Å between the images")
        if empty < VACUUM:
            what = f"the vacuum along {name}, which is open, is {empty:.1f} Å from atom to next image"
            raise LabelError(f"cell: {what}; give a lattice vector that leaves at least {VACUUM:g} Å")


def check_cutoff(task: Task, option: str) -> None:
    """Raises LabelError for a cell in which a potential that is cut off does not reach from one end to the other.

    It ends at half the height along each open direction, which has to hold the atoms and `MARGIN` of their density:
    three layers of silicon in a cell of 13 Å get wrong forces by 0.2 eV/Å, in one of 19 Å none. Source: Sohier,
    Calandra and Mauri, Phys. Rev. B 96, 075448 (2017). `option` is the field that asks for it.
    """
    for row, name in enumerate(DIRECTIONS):
        if task.periodic[row]:
            continue
        if max(abs(float(task.cell[row] @ task.cell[other])) for other in (row - 2, row - 1)) > FLAT:
            raise LabelError(f"{option} needs a vector along {name}, which is open, that is orthogonal to the others")
        height = float(np.linalg.norm(task.cell[row]))
        needed = 2 * (height - (vacuum(task, row) or 0.0) + MARGIN)
        if height < needed:
            what = f"needs a cell of at least {needed:.1f} Å along {name}, twice the atoms and their density"
            raise LabelError(f"{option} {what}; it has {height:.1f}")


def vacuum(task: Task, row: int) -> float | None:
    """Distance from the last atom to the first of the next image along a lattice vector, Å; None without one."""
    normal = np.cross(task.cell[row - 2], task.cell[row - 1])
    length = np.linalg.norm(normal)
    if length == 0 or (height := abs(task.cell[row] @ normal) / length) == 0:
        return None
    return float(height - np.ptp(task.position @ normal / length))


def _check_box(task: Task, box: float | None) -> None:
    if box is None:
        raise LabelError("label.box: a molecule has no cell; give the edge of a cube for it in Å, such as 12")
    extent = float(np.ptp(task.position, axis=0).max())
    if extent > box - MARGIN:
        raise LabelError(
            f"label.box: {box:g} Å is too small for a molecule of {extent:.1f} Å; give at least {extent + MARGIN:.1f}"
        )


def in_box(task: Task, box: float | None) -> Task:
    """The task as a code sees it that repeats everything in three directions.

    A molecule stands with its middle in the middle of a cube; what repeats in any direction keeps its cell and place.
    """
    everywhere = np.ones(3, bool)
    if periodic(task):
        return task._replace(periodic=everywhere)
    cell = np.eye(3) * float(box or 0)
    middle = (task.position.min(axis=0) + task.position.max(axis=0)) / 2
    return task._replace(cell=cell, periodic=everywhere, position=task.position - middle + np.diag(cell) / 2)
