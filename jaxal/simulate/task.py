"""What a run is to answer: a task asks on the model that was learned, and has labeled what its answer rests on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import ase
import numpy as np
from jaxtyping import Float

from jaxal.core.registry import register
from jaxal.core.units import KCAL_PER_MOL, Unit
from jaxal.deploy import model as models
from jaxal.explore.images import between
from jaxal.simulate import barrier as paths
from jaxal.simulate import outcome
from jaxal.simulate.barrier import Barrier
from jaxal.simulate.surface import Expansion, expander, in_double, opinions
from jaxal.simulate.vibrations import QUANTUM, motions

NEAR = 0.1  # Å; a stationary point whose atoms are nearer to those of one that has a label is the same
SOFT = 0.0025  # eV; the quantum (20 cm^-1) below which a motion counts as one of that stiffness
LOST = 3  # images that are labeled where the model has no path
IMAGES, STEPS = 9, 1000  # of the band around the barrier
BELOW = 0.5  # eV under the higher end, from where on a path only leads down to the lower


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


Reference = Callable[[Sequence[ase.Atoms]], list[Labeled]]
Expand = Callable[[ase.Atoms], Expansion]
Known = Sequence[tuple[ase.Atoms, Labeled]]


class Task(NamedTuple):
    """What a run is for, beside a model."""

    labels: int  # that it may ask for in all, of each system, beyond `stop.labels`
    # (model, where the walkers of a system are, what it asked for before, how many labels are left, the method)
    answer: Callable[[models.Model, Sequence[ase.Atoms], Known, int, Reference], Answer]
    ordered: bool = False  # it needs walkers that are a path
    largest: int | None = None  # atoms that a system may have
    open: bool = False  # it makes sense of open structures alone


@register("task")
def barrier(
    *,
    labels: Annotated[int, Unit("", 1)] = 12,
    tolerance: Annotated[float, Unit("eV", 0.0, True)] = 0.004,
    converged: Annotated[float, Unit("eV/Å", 0.0, True)] = 0.02,
    wary: Annotated[float, Unit("eV/Å", 0.0, True)] = 0.5,
    ends: Literal["fixed", "relaxed"] = "relaxed",
) -> Task:
    """The barrier along a band, from labels of the saddle and of both ends.

    On the learned model the band of the run, but for what is far below both ends, is relaxed until no atom is pulled by
    more than `converged` (eV/Å), and its highest image becomes a saddle by exact Hessians, as `jaxal barrier` does; its
    `ends` go to minima near them, or stay. The method labels saddle and ends. The forces g that it has left there say
    how far its own stationary points are: by the model's Hessian H their energies are lower by g H^-1 g / 2, to second
    order, which is taken off. Where that changes the barriers by less than `tolerance` (eV) the task is done; else the
    model learns from these labels, and all begins anew from where the walkers are, until `labels` of them are spent,
    beyond `stop.labels`. A band rests where the members differ by more than `wary` (eV/Å) about the force on an atom.
    Where it comes to no saddle that joins both ends, images are labeled that are high and uncertain (Koistinen et al.,
    J. Chem. Phys. 147, 152720, 2017, rest and begin anew so).
    """

    def answer(model: models.Model, path: Sequence[ase.Atoms], known: Known, left: int, reference: Reference) -> Answer:
        part = upper(model, path)
        images = between(part, max(IMAGES, len(part)))
        band = paths.relaxed(model, images, converged=converged, steps=STEPS, wary=wary)
        if band.rests:
            why = f"its members differ by {band.spread.max():.2g} eV/Å"
            return _astray(paths.along(model, band, None), band, left, reference, why)
        # where it has not converged, as where the surface is flat, Hessian and reaction path prove the saddle
        sides = path[0], path[-1]
        if ends == "relaxed":
            sides = paths.settled(model, path[0]), paths.settled(model, path[-1])
        shown = paths.along(model, band, sides)
        if shown.saddle is None or not shown.joins:
            why = "no saddle" if shown.saddle is None else "a saddle that does not join both ends"
            return _astray(shown, band, left, reference, why)
        expand = expander(model)
        stationary = zip((shown.saddle, *sides), (True, ends == "relaxed", ends == "relaxed"), strict=True)
        begun = [Point(atoms, None, moves) for atoms, moves in stationary]
        points = [known_near(expand, point, known, tolerance / 3) for point in begun]
        if sum(point.label is None for point in points) > left:  # what is there must do
            points = [known_near(expand, point, known, np.inf) for point in begun]
        asked = [row for row, point in enumerate(points) if point.label is None]
        if len(asked) > left:
            what = f"{shown.forward / KCAL_PER_MOL:.2f} kcal/mol by the model, too few labels are left"
            return _answer([], [], False, f"barrier: {what}", {}, shown)
        labels = reference([points[row].atoms for row in asked])
        for row, label in zip(asked, labels, strict=True):
            points[row] = labeled_point(expand, points[row], label)
        new = [points[row].atoms for row in asked]
        energy = np.array([point.label.energy for point in points if point.label is not None])
        if not np.isfinite(energy).all():
            return _answer(new, labels, False, "barrier: a saddle, but the method fails at it or an end", {}, shown)
        top, first, last = energy - np.array([point.lower for point in points])
        off = points[0].size + max(point.size for point in points[1:])
        record = {"forward": top - first, "backward": top - last, "error": off}
        values = [value / KCAL_PER_MOL for value in (top - first, top - last, off)]
        text = "barrier: {:.2f} kcal/mol, back {:.2f}, +- {:.2f}".format(*values)
        return _answer(new, labels, off <= tolerance, text, record, shown)

    return Task(labels, answer, ordered=True, largest=paths.LARGE)


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
        near = np.linalg.norm(atoms.positions - point.atoms.positions, axis=-1).max() < NEAR
        if near and np.isfinite(label.energy):
            there = labeled_point(expand, point._replace(atoms=atoms), label)
            best = there if there.size < best.size else best
    return point if best.label is None else best


def labeled_point(expand: Expand, point: Point, label: Labeled) -> Point:
    """The point with its label."""
    lower, size = relaxation(expand(point.atoms), point.atoms, label.force) if point.moves else (0.0, 0.0)
    return point._replace(label=label, lower=lower, size=size)


def upper(model: models.Model, path: Sequence[ase.Atoms]) -> list[ase.Atoms]:
    """The part of a path that is not far below both of its ends, with an image more on either hand.

    What leads down from the barrier to an end that is much lower says nothing of it, and would have to be learned.
    """
    energy = opinions(in_double(model), path).energy.mean(axis=1)
    top, low = int(np.argmax(energy[1:-1])) + 1, max(energy[0], energy[-1]) - BELOW
    first = max((row for row in range(top) if energy[row] < low), default=0)
    last = min((row for row in range(top + 1, len(path)) if energy[row] < low), default=len(path) - 1)
    return list(path[first : last + 1])


def _astray(shown: Barrier, band: paths.Band, left: int, reference: Reference, why: str) -> Answer:
    """Nothing to answer with: the image that the members differ about most is labeled, the highest, and another."""
    top = 1 + int(np.argmax(shown.energies[1:-1]))
    order = [int(row) for row in np.argsort(-band.spread) if row != top]
    images = [band.images[row] for row in (order[0], top, *order[1:])][: min(left, LOST)]
    return _answer(images, reference(images), False, f"barrier: none yet, {why}", {}, shown)


def _answer(
    structures: list[ase.Atoms],
    labels: list[Labeled],
    satisfied: bool,
    text: str,
    record: dict[str, Any],
    shown: Barrier,
) -> Answer:
    def save(folder: Path) -> None:
        outcome.of_barrier(folder, shown, record)

    return Answer(structures, labels, satisfied, text, record, save)


def relaxation(expansion: Expansion, atoms: ase.Atoms, force: Float[np.ndarray, "n 3"]) -> tuple[float, float]:
    """By how much (eV) a stationary point near a structure is lower, by a Hessian, from the `force` there (eV/Å).

    Also the same with all contributions positive: at a saddle those of the mode across it are negative.
    """
    basis, free = motions(atoms)
    root = np.repeat(np.sqrt(atoms.get_masses()), 3)
    values, modes = np.linalg.eigh(basis.T @ (expansion.hessian[0] / np.outer(root, root)) @ basis)
    slope = (basis @ modes).T @ (np.where(free[:, None], force, 0.0).ravel() / root)
    each = 0.5 * slope**2 / np.maximum(np.abs(values), (SOFT / QUANTUM) ** 2)
    return float(np.sum(np.where(values < 0, -each, each))), float(np.sum(each))
