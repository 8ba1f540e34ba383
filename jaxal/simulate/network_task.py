"""The task of a run that discovers: labels where pushes end because the model is not sure, and of what they lead to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import ase
import numpy as np

from jaxal.core.errors import InputError
from jaxal.core.registry import register
from jaxal.core.units import Unit
from jaxal.deploy import model as models
from jaxal.simulate.barrier import LARGE
from jaxal.simulate.discovery import RELAXATIONS, RELAXED, Network
from jaxal.simulate.discovery import network as discovered
from jaxal.simulate.saddle import sorted_distances
from jaxal.simulate.surface import expander, in_double, minimized
from jaxal.simulate.task import (
    NEARER,
    USABLE,
    Answer,
    Point,
    Task,
    Turn,
    approached,
    fails_near,
    known_near,
    labeled_point,
)

Energy = Annotated[float, Unit("eV", 0.0, True)]


@register("task")
def network(
    *,
    labels: Annotated[int, Unit("", 1)] = 200,
    at_once: Annotated[int, Unit("", 1)] = 12,
    tolerance: Energy = 0.02,
    wary: Annotated[float, Unit("eV/Å", 0.0, True)] = 1.0,
    collision: Energy = 10.0,
    ceiling: Energy = 6.0,
    generations: Annotated[int, Unit("", 1)] = 2,
    pushes: Annotated[int, Unit("", 1)] = 64,
) -> Task:
    """The network of reactions around the start structures, as `jaxal discover` finds it, from labels of its own.

    On the learned model the minima of the start structures are driven by artificial forces that grow to that of
    `collision` (eV), `pushes` walkers at a time, each of them to make or break other bonds; so are new minima, in so
    many `generations`, of what is not higher than `ceiling` (eV) over the lowest. Where members differ by more than
    `wary` (eV/Å) about the force on an atom a push ends. Up to `at_once` such structures, those that are least alike,
    are labeled in a turn, with as many of the saddles and minima that have no label near enough to the method's own
    stationary point: what its forces say that this is lower, at most `tolerance` (eV), is taken off; where it is little
    more, what they point to is labeled, too. Then the model learns, and all begins anew, with the saddles that there
    were, until no push is in doubt and every saddle is as near as that, or `labels` are spent, beyond `stop.labels`. Of
    minima of several molecules, which are soft, a label is enough. Where the method has failed it is not asked again.
    """

    def answer(model: models.Model, turn: Turn) -> Answer:
        path, known, left, reference, saddles = turn
        starts = _relaxed(model, path)
        if not starts:
            images = list(path[: min(left, at_once)])
            return Answer(
                images, reference(images), False, "network: none yet, nothing relaxes", {}, lambda folder: None
            )
        net = discovered(
            model,
            starts,
            pushes=pushes,
            generations=generations,
            collision=collision,
            ceiling=ceiling,
            wary=wary,
            guesses=saddles,
        )
        expand = expander(model)
        points = [Point(step.saddle.atoms, None, True) for step in net.steps]
        points += [Point(minimum.atoms, None, True) for minimum in net.minima]
        strict = [True] * len(net.steps) + [len(minimum.graph) == 1 for minimum in net.minima]
        points = [
            known_near(expand, point, known, tolerance if exact else np.inf)
            for point, exact in zip(points, strict, strict=True)
        ]
        open_ = [row for row, point in enumerate(points) if point.label is None and not fails_near(point, known)]
        asked = open_[: min(at_once, left)]
        doubtful = apart(net.doubtful, min(at_once, left - len(asked)))
        labels = reference([points[row].atoms for row in asked] + doubtful)
        for row, label in zip(asked, labels[: len(asked)], strict=True):
            points[row] = labeled_point(expand, points[row], label)
        structures = [points[row].atoms for row in asked] + doubtful
        for _ in range(NEARER):
            close = [
                row for row, point in enumerate(points)
                if strict[row] and point.label is not None and tolerance < point.size < USABLE
            ][: max(0, left - len(structures))]  # fmt: skip
            if not close:
                break
            points, moved, more = approached(expand, points, close, reference)
            structures, labels = structures + moved, [*labels, *more]
        if not left:  # what is there must do
            points = [known_near(expand, point, known, np.inf) for point in points]
        near = [point.label is not None and (not exact or point.size <= tolerance)
                for point, exact in zip(points, strict, strict=True)]  # fmt: skip
        text = f"network: {len(net.minima)} minima, {len(net.steps)} saddles, {sum(near)} of them as near as asked"
        if net.doubtful:
            text += f"; {len(net.doubtful)} pushes in doubt"
        record = {"minima": len(net.minima), "saddles": len(net.steps), "doubtful": len(net.doubtful)}

        def save(folder: Path) -> None:
            _saved(folder, net, points)

        again = [step.saddle.atoms for step in net.steps]
        return Answer(structures, labels, all(near) and not net.doubtful, text, record, save, again)

    return Task(labels, answer, largest=LARGE, open=True)


def _relaxed(model: models.Model, path: Sequence[ase.Atoms]) -> list[ase.Atoms]:
    """The minima that structures relax to, of those that do."""
    double, minima = in_double(model), []
    for atoms in path:
        try:
            minima.append(minimized(double, atoms, RELAXED, RELAXATIONS, "a start"))
        except InputError:
            continue
    return minima


def apart(frames: Sequence[ase.Atoms], number: int) -> list[ase.Atoms]:
    """Of structures of the same atoms so many that are least alike, by their sorted distances: each is the one farthest
    from those before it.
    """
    if not frames or number < 1:
        return []
    places = np.array([np.concatenate(sorted_distances(atoms)) for atoms in frames])
    chosen = [0]
    nearest = np.abs(places - places[0]).max(axis=1)
    while len(chosen) < min(number, len(frames)):
        chosen.append(int(np.argmax(nearest)))
        nearest = np.minimum(nearest, np.abs(places - places[chosen[-1]]).max(axis=1))
    return [frames[row] for row in chosen]


def _saved(folder: Path, net: Network, points: Sequence[Point]) -> None:
    from jaxal.simulate import atlas  # here: matplotlib, which who lists the tasks need not wait for

    checked = [
        None if point.label is None or not np.isfinite(point.label.energy)
        else atlas.Checked(point.label.energy - point.lower, point.size)
        for point in points
    ]  # fmt: skip
    atlas.of_network(folder, net, checked[len(net.steps) :], checked[: len(net.steps)])
