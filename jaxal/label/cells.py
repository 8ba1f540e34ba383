"""Cells for plane-wave codes: meshes of k-points, and a cube around a molecule."""

import numpy as np

from jaxal.label.task import LabelError, Task, periodic

MARGIN = 6.0  # Å; at least so much of a box is empty in each direction


def k_mesh(cell: np.ndarray, spacing: float) -> tuple[int, int, int]:
    """Numbers of k-points along the reciprocal vectors that are at most `spacing` apart, in 1/Å with 2 pi."""
    lengths = 2 * np.pi * np.linalg.norm(np.linalg.inv(cell), axis=0)
    # A hair of tolerance: rounding must not add a point for a cell that fits exactly.
    a, b, c = (max(1, int(np.ceil(length / spacing - 1e-6))) for length in lengths)
    return a, b, c


def check_box(task: Task, box: float | None) -> None:
    """Raises LabelError for a molecule without a cube of edge `box` (Å) to put it into, or with one too small."""
    if periodic(task):
        return
    if box is None:
        raise LabelError("label.box: a molecule has no cell; give the edge of a cube for it in Å, such as 12")
    extent = float(np.ptp(task.position, axis=0).max())
    if extent > box - MARGIN:
        raise LabelError(
            f"label.box: {box:g} Å is too small for a molecule of {extent:.1f} Å; give at least {extent + MARGIN:.1f}"
        )


def in_box(task: Task, box: float | None) -> Task:
    """The task as it is where it is periodic; a molecule stands with its middle in the middle of a cube."""
    if periodic(task):
        return task
    cell = np.eye(3) * float(box or 0)
    middle = (task.position.min(axis=0) + task.position.max(axis=0)) / 2
    return task._replace(cell=cell, position=task.position - middle + np.diag(cell) / 2)
