"""The bound on force errors that a finished model carries: split conformal, of what it multiplies, or none at all.

It is learned once, when training is over, from structures that nothing else was learned from: neither weights nor when
to stop. What a gate has learned in a run, about another score and other structures, is no part of it. Host side, numpy.
"""

import math
from typing import Any, NamedTuple

import numpy as np

MISS_RATE = 0.1  # of the bound, where there are enough structures for it
SCORE = "max_force_spread * novelty"  # what the bound multiplies
FAMILIAR = 0.25  # a structure of less novelty is no better known


class Calibration(NamedTuple):
    """Largest force error of an atom <= `factor` * score, with probability `coverage` or more.

    The probability is that of a structure drawn like those that calibrated it, over draws of both: (rank of the ratio
    of error to score that `factor` is) / (count + 1), by Vovk, Gammerman and Shafer, Algorithmic Learning in a Random
    World (Springer, 2005); Angelopoulos and Bates, arXiv:2107.07511.
    """

    factor: float  # eV/Å for each unit of the score
    coverage: float
    count: int  # structures it was learned from
    score: str  # in words
    source: str  # what structures these were, in words

    def header(self) -> dict[str, Any]:
        """As JSON has it."""
        return self._asdict()


def of_header(header: Any) -> Calibration | None:
    """The calibration of a file's header. Raises ValueError where it is none that could be."""
    if header is None:
        return None
    calibration = Calibration(
        float(header["factor"]),
        float(header["coverage"]),
        int(header["count"]),
        str(header["score"]),
        str(header["source"]),
    )
    possible = 0 < calibration.coverage < 1 and calibration.count > 0 and calibration.score == SCORE
    if not (math.isfinite(calibration.factor) and calibration.factor >= 0 and possible):
        raise ValueError(f"calibration {header!r}")
    return calibration


def calibrated(score: Any, error: Any, source: str, miss_rate: float = MISS_RATE) -> Calibration | None:
    """The bound from scores and true errors [c] of structures that nothing was learned from; None where none can be.

    `factor` is the ceil((n+1)(1-miss_rate))-th smallest ratio of error to score. With n below 1/miss_rate - 1 it is the
    largest, whose coverage is n / (n+1): that is what is stored. Pairs that are not finite are left out. There is no
    bound without any pair, and where the ratio is infinite, as the score vanishes where the error does not.
    """
    score, error = np.asarray(score, np.float64), np.asarray(error, np.float64)
    use = np.isfinite(score) & np.isfinite(error)
    number = int(use.sum())
    if number == 0:
        return None
    score, error = score[use], error[use]
    safe = np.where(score > 0, score, 1.0)
    ratio = np.sort(np.where(score > 0, error / safe, np.where(error > 0, np.inf, 0.0)))
    # the small subtraction keeps (n+1)(1-miss) from being rounded up past a whole number
    rank = min(math.ceil((number + 1) * (1 - miss_rate) - 1e-6), number)
    factor = float(ratio[rank - 1])
    return Calibration(factor, rank / (number + 1), number, SCORE, source) if np.isfinite(factor) else None


def widened(spread: Any, novelty: Any) -> np.ndarray:
    """What the bound multiplies: the largest force spread of a structure [c] times its novelty, at least `FAMILIAR`.

    Farther from what was trained on the same spread stands for a larger error: members that saw the same structures
    are wrong alike beyond them.
    """
    return np.asarray(spread, np.float64) * np.maximum(np.asarray(novelty, np.float64), FAMILIAR)


def factors(calibration: Calibration | None, novelty: Any) -> np.ndarray:
    """Bounds on the largest force error over the largest force spread, eV/Å for its unit, of structures [c].

    `novelty` is NaN where it is not known. NaN without a calibration, and infinite above a novelty of 1: such a
    structure is unlike all that the bound comes from.
    """
    novelty = np.asarray(novelty, np.float64)
    if calibration is None:
        return np.full(novelty.shape, np.nan)
    known = calibration.factor * widened(1.0, np.where(np.isnan(novelty), 1.0, novelty))
    return np.where(novelty > 1, np.inf, known)


def bounds(calibration: Calibration | None, spread: Any, novelty: Any) -> np.ndarray:
    """Bounds on the largest force error of structures [c], eV/Å, from their largest force spreads.

    NaN without a calibration and where the spread is not finite; infinite where a structure is not supported.
    """
    spread, factor = np.asarray(spread, np.float64), factors(calibration, novelty)
    known = np.where(np.isfinite(spread), np.where(np.isinf(factor), 0.0, factor) * spread, np.nan)
    return np.where(np.isinf(factor), np.inf, known)
