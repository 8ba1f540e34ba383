"""What a label costs, learned from the times in the store, and in which order labels are handed out."""

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from jaxal.label.store.database import Entry
from jaxal.label.task import Task, has_stress, volume

POWER = 3.0  # of the number of electrons, where nothing is known: diagonalization
PRIOR = 1e-4  # s for one electron, so that 100 electrons take 100 s; only ratios mean anything before the first label
STRENGTH = 0.5  # so wide is the prior of the two powers, against deviations of the logarithm of a time
ROBUST = 1.5  # deviations, in units of their median, above which a time counts less (Huber)
SHORTEST = 1e-3  # s
LATEST = 2000  # times that are learned from


def times(entries: Iterable[Entry], method: str) -> Iterator[tuple[Task, float]]:
    """(task, seconds) of what a store holds of a method; failures, which end early or late, tell nothing."""
    return (
        (entry.task, entry.result.seconds) for entry in entries if entry.method == method and entry.status != "failed"
    )


def expected(known: Iterable[tuple[Task, float]]) -> Callable[[Task], float]:
    """Expected wall time in seconds of a task, from (task, seconds) of calculations by the same method.

    A power law, log t = a + b log(electrons) + c log(volume), with c only for structures with a cell: with a density of
    k-points there are fewer of them in a larger cell, with plane waves there are more of these. Powers that the data
    do not tell (all structures alike, few labels) stay near b = 3 and c = 0. A calculation that took far longer than
    its like, for want of convergence or a busy node, counts little.
    """
    pairs = [(task, seconds) for task, seconds in known if math.isfinite(seconds) and seconds > 0][-LATEST:]
    if not pairs:
        return lambda task: PRIOR * _electrons(task) ** POWER
    features = np.array([_features(task) for task, _ in pairs])  # [t, 2]
    target = np.log([max(seconds, SHORTEST) for _, seconds in pairs])
    prior = np.array([POWER, 0.0])
    middle = np.median(features, axis=0)
    moved = features - middle
    weight, level, power = np.ones(len(target)), float(np.median(target - moved @ prior)), prior
    for _ in range(20):
        rest = target - level - moved @ power
        spread = max(1.4826 * float(np.median(np.abs(rest))), 0.05)  # of a normal distribution, and 5 % at least
        weight = np.minimum(1.0, ROBUST * spread / np.maximum(np.abs(rest), 1e-12))
        design = np.column_stack([np.ones(len(target)), moved])
        # Weighted least squares about the prior, whose precision is that of one more datum for each power.
        precision = np.diag([1e-9, *[(spread / STRENGTH) ** 2] * 2])
        normal = design.T @ (weight[:, None] * design) + precision
        solved = np.linalg.solve(normal, design.T @ (weight * target) + precision @ np.array([0.0, *prior]))
        level, power = float(solved[0]), solved[1:]

    def seconds(task: Task) -> float:
        return float(np.exp(np.clip(level + (_features(task) - middle) @ power, -20.0, 20.0)))

    return seconds


def order(values: Sequence[float], expected: Sequence[float], slots: int) -> list[int]:
    """Rows in the order in which they are handed out to `slots` at a time.

    Highest value first. Among equal values the longest first, so that all slots end together: the time until the last
    has ended is at most 4/3 of the shortest possible (Graham, SIAM J. Appl. Math. 17, 416, 1969). Where all begin at
    once, or one after another, equal values keep their order. What is not a number comes last.
    """
    rows = range(len(values))
    matters = 1 < slots < len(values)

    def key(row: int) -> tuple[bool, float, float]:
        value = float(values[row])
        return math.isnan(value), 0.0 if math.isnan(value) else -value, -float(expected[row]) if matters else 0.0

    return sorted(rows, key=key)


def finished(expected: Sequence[float], slots: int) -> float:
    """Seconds until the last task has ended, each begun in the given order as soon as one of the slots is free."""
    free = [0.0] * max(1, slots)
    for each in expected:
        heapq.heappush(free, heapq.heappop(free) + each)
    return max(free)


def _electrons(task: Task) -> float:
    return max(1.0, float(np.sum(task.numbers)) - task.charge)


def _features(task: Task) -> np.ndarray:
    return np.array([math.log(_electrons(task)), math.log(volume(task)) if has_stress(task) else 0.0])
