"""The task of a barrier: the saddle on a run's band and both ends are labeled, until the barrier is sure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import ase
import numpy as np

from jaxal.core.registry import register
from jaxal.core.units import KCAL_PER_MOL, Unit
from jaxal.deploy import model as models
from jaxal.explore.images import between
from jaxal.simulate import barrier as paths
from jaxal.simulate.barrier import Barrier
from jaxal.simulate.surface import expander, in_double, opinions
from jaxal.simulate.task import (
    NEARER,
    Answer,
    Labeled,
    Point,
    Task,
    Turn,
    approached,
    fails_near,
    known_near,
    labeled_point,
    remembered,
)

LOST = 3  # images that are labeled where the model has no path
IMAGES, STEPS = 9, 1000  # of the band around the barrier
FAILS = "barrier: a saddle, but the method fails at it or an end"
SADDLE = "saddle"  # marks it among the images of the next turn
BELOW = 0.7  # eV under the top, from where on a path says nothing of it


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

    On the learned model the part of the run's band that is not far below its top is relaxed until no atom is pulled by
    more than `converged` (eV/Å), and its highest image becomes a saddle by exact Hessians, as `jaxal barrier` does; its
    `ends` go to minima near them, or stay. The method labels saddle and ends. The forces g that it has left there say
    how far its own stationary points are: by the model's Hessian H their energies are lower by g H^-1 g / 2, to second
    order, which is taken off. Where that is much it labels there, H^-1 g away, too. Where what is left to be taken off
    changes the barriers by less than `tolerance` (eV) the task is done; else the model learns from these labels, and
    the saddle is looked for near this one, or where there is none from where the walkers are, until `labels` are spent,
    beyond `stop.labels`. A band rests where the members differ by more than `wary` (eV/Å) about the force on an atom.
    Where it comes to no saddle that joins both ends, images are labeled that are high and uncertain (Koistinen et al.,
    J. Chem. Phys. 147, 152720, 2017, rest and begin anew so).
    """

    def answer(model: models.Model, turn: Turn) -> Answer:
        path, known, left, reference, again = turn
        sides = path[0], path[-1]
        if ends == "relaxed":
            sides = paths.settled(model, path[0]), paths.settled(model, path[-1])
        # a saddle of the turn before is near that of this model, whatever it makes of a band
        before = list(again[1:-1])  # between both ends
        shown = paths.along(model, paths.Band(before, np.zeros(len(before)), True, False), sides) if before else None
        if shown is None or not shown.joins:
            part = upper(model, path)
            images = between(part, max(IMAGES, len(part)))
            band = paths.relaxed(model, images, converged=converged, steps=STEPS, wary=wary)
            if band.rests:
                why = f"its members differ by {band.spread.max():.2g} eV/Å"
                return _astray(paths.along(model, band, None), band, turn, why)
            # where it has not converged, as where the surface is flat, Hessian and reaction path prove the saddle
            shown = paths.along(model, band, sides)
            if not shown.joins:
                why = "no saddle" if shown.saddle is None else "a saddle that does not join both ends"
                return _astray(shown, band, turn, why)
        assert shown.saddle is not None
        expand = expander(model)
        stationary = zip((shown.saddle, *sides), (True, ends == "relaxed", ends == "relaxed"), strict=True)
        begun = [Point(atoms, None, moves) for atoms, moves in stationary]
        had = (_saddle_of(before), again[0], again[-1]) if before else (None, None, None)
        points = [remembered(expand, *each, known, tolerance / 3) for each in zip(begun, had, strict=True)]
        if sum(point.label is None for point in points) > left:  # what is there must do
            points = [known_near(expand, point, known, np.inf) for point in begun]
        asked = [row for row, point in enumerate(points) if point.label is None]
        if len(asked) > left:
            what = f"{shown.forward / KCAL_PER_MOL:.2f} kcal/mol by the model, too few labels are left"
            return _answer([], [], False, f"barrier: {what}", {}, shown, again)
        if any(fails_near(points[row], known) for row in asked):
            return _answer([], [], False, FAILS, {}, shown, again)
        labels = reference([points[row].atoms for row in asked])
        for row, label in zip(asked, labels, strict=True):
            points[row] = labeled_point(expand, points[row], label)
        new = [points[row].atoms for row in asked]
        if not all(point.label is not None and np.isfinite(point.label.energy) for point in points):
            return _answer(new, labels, False, FAILS, {}, shown, again)
        for _ in range(NEARER):
            far = [row for row, point in enumerate(points) if point.moves and point.size > tolerance / 3]
            if _off(points) <= tolerance or not far or len(far) > left - len(new):
                break
            points, moved, more = approached(expand, points, far, reference)
            new, labels = new + moved, [*labels, *more]
        energy = np.array([point.label.energy for point in points if point.label is not None])
        top, first, last = energy - np.array([point.lower for point in points])
        off = _off(points)
        record = {"forward": top - first, "backward": top - last, "error": off}
        values = [value / KCAL_PER_MOL for value in (top - first, top - last, off)]
        text = "barrier: {:.2f} kcal/mol, back {:.2f}, +- {:.2f}".format(*values)
        onward = [points[1].atoms, *_with_saddle(shown, points[0].atoms), points[2].atoms]
        return _answer(new, labels, off <= tolerance, text, record, shown, onward)

    return Task(labels, answer, ordered=True, largest=paths.LARGE)


def upper(model: models.Model, path: Sequence[ase.Atoms]) -> list[ase.Atoms]:
    """The part of a path around its top that is not far below it, with an image more on either hand.

    What leads down from there says nothing of the barrier, and would have to be learned; and where most images stand on
    what is flat, as between fragments, few are left for the top.
    """
    energy = opinions(in_double(model), path).energy.mean(axis=1)
    top = int(np.argmax(energy[1:-1])) + 1
    low = energy[top] - BELOW
    first = max((row for row in range(top) if energy[row] < low), default=0)
    last = min((row for row in range(top + 1, len(path)) if energy[row] < low), default=len(path) - 1)
    return list(path[first : last + 1])


def _off(points: Sequence[Point]) -> float:
    """How much barriers may be off, eV, by what is taken off a saddle and both ends."""
    return points[0].size + max(point.size for point in points[1:])


def _astray(shown: Barrier, band: paths.Band, turn: Turn, why: str) -> Answer:
    """Nothing to answer with: the image that the members differ about most is labeled, the highest, and another."""
    top = 1 + int(np.argmax(shown.energies[1:-1]))
    order = [int(row) for row in np.argsort(-band.spread) if row != top]
    images = [band.images[row] for row in (order[0], top, *order[1:])][: min(turn.left, LOST)]
    return _answer(images, turn.reference(images), False, f"barrier: none yet, {why}", {}, shown, turn.again)


def _with_saddle(shown: Barrier, saddle: ase.Atoms) -> list[ase.Atoms]:
    """The images of a path, and this structure, marked, in place of the highest."""
    images, top = [image.copy() for image in shown.images], paths.highest_inside(shown.energies)
    row = int(np.argmax(shown.energies)) if top is None else top
    images[row] = saddle.copy()
    images[row].info[SADDLE] = True
    return images


def _saddle_of(images: Sequence[ase.Atoms]) -> ase.Atoms | None:
    return next((image for image in images if image.info.get(SADDLE)), None)


def _answer(
    structures: list[ase.Atoms],
    labels: list[Labeled],
    satisfied: bool,
    text: str,
    record: dict[str, Any],
    shown: Barrier,
    again: Sequence[ase.Atoms],
) -> Answer:
    def save(folder: Path) -> None:
        from jaxal.simulate import outcome  # here: matplotlib, which who lists the tasks need not wait for

        outcome.of_barrier(folder, shown, record)

    return Answer(structures, labels, satisfied, text, record, save, again)
