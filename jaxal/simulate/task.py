"""What a run is to answer: a task asks on the model that was learned, and has labeled what its answer rests on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase
import numpy as np
from jaxtyping import Float

from jaxal.deploy import model as models
from jaxal.simulate.surface import Expansion
from jaxal.simulate.vibrations import QUANTUM, motions

NEAR = 0.1  # Å; a stationary point whose atoms are nearer to those of one that has a label is the same
AROUND, SAME = 0.5, 1e-6  # Å; where a stationary point is looked for again; a structure and itself
USABLE = 0.05  # eV that are taken off a label, from where on one of Newton's steps says more than another model
NEARER = 2  # times that stationary points are labeled again, where the forces there say they are
STRIDE = 0.2  # Å, the farthest that an atom goes in one of Newton's steps
SOFT = 0.0025  # eV; the quantum (20 cm^-1) below which a motion counts as one of that stiffness


class Labeled(NamedTuple):
    """What the reference method says of a structure; NaN where it fails."""

    energy: float  # eV, total
    force: Float[np.ndarray, "n 3"]  # eV/Å


class Answer(NamedTuple):
    """What a task found out on a model."""

    structures: list[ase.Atoms]  # that were labeled for it
    labels: list[Labeled]
    satisfied: bool  # nothing more has to be learned
    text: str  # a line
    record: dict[str, Any]  # numbers, for JSON
    save: Callable[[Path], object]  # writes what there is into a folder
    again: Sequence[ase.Atoms] = ()  # what the next turn begins with, beside the walkers


Reference = Callable[[Sequence[ase.Atoms]], list[Labeled]]
Expand = Callable[[ase.Atoms], Expansion]
Known = Sequence[tuple[ase.Atoms, Labeled]]


class Turn(NamedTuple):
    """What a task has to answer from, beside a model."""

    path: Sequence[ase.Atoms]  # where the walkers of a system are
    known: Known  # what it asked for in the turns before
    left: int  # labels that it may ask for
    reference: Reference  # the method
    again: Sequence[ase.Atoms] = ()  # of the answer in the turn before


class Task(NamedTuple):
    """What a run is for, beside a model."""

    labels: int  # that it may ask for in all, of each system, beyond `stop.labels`
    answer: Callable[[models.Model, Turn], Answer]
    ordered: bool = False  # it needs walkers that are a path
    largest: int | None = None  # atoms that a system may have
    open: bool = False  # it makes sense of open structures alone


class Point(NamedTuple):
    """A stationary point, or what is near one."""

    atoms: ase.Atoms
    label: Labeled | None
    moves: bool  # what is meant is the method's own stationary point; else this very structure
    lower: float = np.nan  # eV, how much lower that is
    size: float = np.nan  # eV, the same, but that motions uphill and downhill do not make up for each other


def known_near(expand: Expand, point: Point, known: Known, enough: float) -> Point:
    """Of the structures with a label that are near a point the one closest to the method's own, if it is close enough
    (eV), else that point, without one.
    """
    best = point._replace(size=enough)
    for atoms, label in known:
        if _near(atoms, point.atoms) and np.isfinite(label.energy):
            there = labeled_point(expand, point._replace(atoms=atoms), label)
            best = there if there.size < best.size else best
    return point if best.label is None else best


def remembered(expand: Expand, point: Point, before: ase.Atoms | None, known: Known, enough: float) -> Point:
    """The same point of the turn before, with its label, where it still is near the method's own: what the model makes
    of it now, as long as it is around there, says no more. Else that of `known_near`.
    """
    if before is not None and point.moves and _apart(before, point.atoms) < AROUND:
        for atoms, label in known:
            if _apart(atoms, before) < SAME and np.isfinite(label.energy):
                there = labeled_point(expand, point._replace(atoms=atoms), label)
                if there.size < max(enough, USABLE):
                    return there
    return known_near(expand, point, known, enough)


def fails_near(point: Point, known: Known) -> bool:
    """Whether the method has failed at a structure near a point: it is not asked there again."""
    return any(_near(atoms, point.atoms) and not np.isfinite(label.energy) for atoms, label in known)


def _near(atoms: ase.Atoms, other: ase.Atoms) -> bool:
    return _apart(atoms, other) < NEAR


def _apart(atoms: ase.Atoms, other: ase.Atoms) -> float:
    """How far apart an atom is in two structures, Å, at most."""
    return float(np.linalg.norm(atoms.positions - other.positions, axis=-1).max())


def labeled_point(expand: Expand, point: Point, label: Labeled) -> Point:
    """The point with its label."""
    lower, size = relaxation(expand(point.atoms), point.atoms, label.force) if point.moves else (0.0, 0.0)
    return point._replace(label=label, lower=lower, size=size)


def nearer(expand: Expand, point: Point) -> ase.Atoms:
    """Where the method's own stationary point is by the forces that it has left at a labeled one."""
    assert point.label is not None
    return stationary(expand(point.atoms), point.atoms, point.label.force)


def approached(
    expand: Expand, points: Sequence[Point], rows: Sequence[int], reference: Reference
) -> tuple[list[Point], list[ase.Atoms], list[Labeled]]:
    """The points, of which some have labels one of Newton's steps away, where they are nearer there; what was labeled
    for it, and the labels.
    """
    moved, after = [nearer(expand, points[row]) for row in rows], list(points)
    labels = reference(moved)
    for row, atoms, label in zip(rows, moved, labels, strict=True):
        if np.isfinite(label.energy):
            there = labeled_point(expand, points[row]._replace(atoms=atoms), label)
            after[row] = min(points[row], there, key=lambda point: point.size)
    return after, moved, labels


def relaxation(expansion: Expansion, atoms: ase.Atoms, force: Float[np.ndarray, "n 3"]) -> tuple[float, float]:
    """By how much (eV) a stationary point near a structure is lower, by a Hessian, from the `force` there (eV/Å).

    Also the same with all contributions positive: at a saddle those of the mode across it are negative.
    """
    values, slope, _ = _by_mode(expansion, atoms, force)
    each = 0.5 * slope**2 / values
    return float(np.sum(each)), float(np.sum(np.abs(each)))


def stationary(expansion: Expansion, atoms: ase.Atoms, force: Float[np.ndarray, "n 3"]) -> ase.Atoms:
    """Where that stationary point is, by Newton's step; no atom goes farther than `STRIDE`."""
    values, slope, modes = _by_mode(expansion, atoms, force)
    step = (modes @ (slope / values)).reshape(-1, 3) / np.sqrt(atoms.get_masses())[:, None]
    longest = np.linalg.norm(step, axis=-1).max()
    after = atoms.copy()
    after.set_positions(atoms.positions + step * min(1.0, STRIDE / max(longest, 1e-12)), apply_constraint=False)
    return after


def _by_mode(
    expansion: Expansion, atoms: ase.Atoms, force: Float[np.ndarray, "n 3"]
) -> tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k"], Float[np.ndarray, "3n k"]]:
    """Curvatures of the modes of motion, none softer than `SOFT`, the force along each, and they (mass-weighted)."""
    basis, free = motions(atoms)
    root = np.repeat(np.sqrt(atoms.get_masses()), 3)
    values, modes = np.linalg.eigh(basis.T @ (expansion.hessian[0] / np.outer(root, root)) @ basis)
    slope = (basis @ modes).T @ (np.where(free[:, None], force, 0.0).ravel() / root)
    return np.where(values < 0, -1.0, 1.0) * np.maximum(np.abs(values), (SOFT / QUANTUM) ** 2), slope, basis @ modes
