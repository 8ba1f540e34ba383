"""What the results of a contest allow to be said: curves, labels saved, ranks, each with its interval.

Host side, numpy and scipy. A curve is an error at rising numbers of labels, one row for each seed [s r]. Seeds are
paired: a seed has the same first labels, initial weights and batches with every strategy.
"""

from typing import NamedTuple

import numpy as np
from scipy import stats

LEVEL = 0.95
DRAWS = 10_000  # of a bootstrap
NOTHING = 1e-12  # an error below it counts as it


class Interval(NamedTuple):
    """An estimate and its 95 % interval; NaN bounds where the seeds are too few for one."""

    value: float
    low: float
    high: float


class Ranking(NamedTuple):
    """Average ranks over blocks, 1 = best, and what they are worth.

    Strategies whose average ranks differ by less than `critical` are not told apart. `p` is the chance of ranks at
    least as different if all strategies were alike.
    """

    rank: np.ndarray  # [k]
    critical: float
    p: float
    blocks: int


def area(labels: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Area under learning curves [s r], divided by their length: the mean of ln(error) over ln(labels), [s].

    Its exponential is an error: that of a flat curve of equal area.
    """
    x, y = np.log(labels), np.log(np.maximum(error, NOTHING))
    width = np.diff(x, axis=1)
    total = width.sum(1)
    middle = 0.5 * (y[:, 1:] + y[:, :-1])
    return np.where(total > 0, (width * middle).sum(1) / np.where(total > 0, total, 1.0), y[:, 0])


def mean_interval(values: np.ndarray, level: float = LEVEL) -> Interval:
    """Mean of independent values [s] and Student's interval for it."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    if not len(values):
        return Interval(np.nan, np.nan, np.nan)
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, np.nan, np.nan)
    half = stats.t.ppf(0.5 + level / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return Interval(mean, float(mean - half), float(mean + half))


def geometric_interval(values: np.ndarray, level: float = LEVEL) -> Interval:
    """Geometric mean of positive values [s] and its interval: errors of seeds differ by factors."""
    values = np.asarray(values, float)
    values = values[np.isfinite(values)]
    return Interval(*(float(np.exp(x)) for x in mean_interval(np.log(np.maximum(values, NOTHING)), level)))


def tails(seeds: int, level: float = LEVEL) -> float:
    """Probability of each tail of a percentile bootstrap that has the coverage of Student's interval for a mean.

    Plain percentiles are too narrow for few seeds: by sqrt(1 - 1/n) and by the normal law in place of Student's. The
    expanded percentile interval (Hesterberg, Am. Stat. 69, 371, 2015; arXiv:1411.5279) takes
    Phi(-sqrt(n / (n - 1)) t) for a tail, t being Student's quantile with n - 1 degrees of freedom.
    """
    quantile = stats.t.ppf(0.5 + level / 2, seeds - 1)
    return float(stats.norm.cdf(-np.sqrt(seeds / (seeds - 1)) * quantile))


def resamples(seeds: int, draws: int = DRAWS) -> np.ndarray:
    """Seeds drawn with replacement, [d s]: all there are where that is fewer than `draws`, else so many at random."""
    if seeds**seeds <= draws:
        return np.stack(np.meshgrid(*[np.arange(seeds)] * seeds, indexing="ij"), -1).reshape(-1, seeds)
    return np.random.default_rng(0).integers(seeds, size=(draws, seeds))


def bootstrap(values: np.ndarray, estimate: float, seeds: int, level: float = LEVEL) -> Interval:
    """The expanded percentile interval from the values [d] of a statistic on resamples."""
    tail = tails(seeds, level)
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(float(estimate), float(low), float(high))


def needed(labels: np.ndarray, error: np.ndarray, target: float) -> float:
    """Labels at which a curve [r] first falls to `target`; straight between its points in ln(labels), ln(error).

    Infinite where it never does; the first number of labels where it begins below.
    """
    x, y = np.log(labels), np.log(np.maximum(error, NOTHING))
    goal = np.log(max(target, NOTHING))
    below = np.flatnonzero(y <= goal + 1e-12)
    if not len(below):
        return np.inf
    at = int(below[0])
    if at == 0:
        return float(labels[0])
    share = (y[at - 1] - goal) / (y[at - 1] - y[at])
    return float(np.exp(x[at - 1] + share * (x[at] - x[at - 1])))


def saved_fraction(labels: np.ndarray, error: np.ndarray, other_labels: np.ndarray, other: np.ndarray) -> float:
    """Fraction of the labels of another curve [r] that a curve saves at equal error; negative where it needs more.

    The error is the least that both curves reach: the larger of their smallest. So neither is extrapolated.
    """
    target = max(error.min(), other.min())
    return 1.0 - needed(labels, error, target) / needed(other_labels, other, target)


def saved(
    labels: np.ndarray, error: np.ndarray, other_labels: np.ndarray, other: np.ndarray, level: float = LEVEL
) -> Interval:
    """Labels saved against another strategy at equal error, as a fraction, with its bootstrap interval over the seeds.

    The curves [s r] are averaged over the seeds (errors geometrically) before they are compared; a resample takes the
    same seeds of both.
    """

    def of(rows: np.ndarray) -> float:
        mean, mean_other = (np.exp(np.log(np.maximum(x[rows], NOTHING)).mean(0)) for x in (error, other))
        return saved_fraction(labels[rows].mean(0), mean, other_labels[rows].mean(0), mean_other)

    seeds = len(error)
    estimate = of(np.arange(seeds))
    return bootstrap(np.array([of(rows) for rows in resamples(seeds)]), estimate, seeds, level)


def ratio(value: np.ndarray, other: np.ndarray) -> Interval:
    """Geometric mean of the ratio of paired positive values [s], with Student's interval on its logarithm."""
    return geometric_interval(np.maximum(value, NOTHING) / np.maximum(other, NOTHING))


def critical_difference(strategies: int, blocks: int, level: float = LEVEL) -> float:
    """Nemenyi's critical difference of average ranks: q sqrt(k (k + 1) / (6 N)).

    q is the quantile of the studentized range of k with infinite degrees of freedom over sqrt(2). Demsar, J. Mach.
    Learn. Res. 7, 1 (2006).
    """
    q = stats.studentized_range.ppf(level, strategies, np.inf) / np.sqrt(2)
    return float(q * np.sqrt(strategies * (strategies + 1) / (6 * blocks)))


def ranking(score: np.ndarray, level: float = LEVEL) -> Ranking:
    """Ranks of strategies by a score [blocks k], smaller = better, equal ones sharing theirs; Friedman's test.

    With fewer than three strategies p is NaN.
    """
    blocks, strategies = score.shape
    rank = stats.rankdata(score, axis=1).mean(0)
    p = float(stats.friedmanchisquare(*score.T).pvalue) if strategies > 2 and blocks > 1 else np.nan
    return Ranking(rank, critical_difference(strategies, blocks, level), p, blocks)


def cliques(ranks: np.ndarray, critical: float) -> list[tuple[int, int]]:
    """The longest runs of sorted average ranks [k] that are not told apart, as first and last place."""
    order = np.sort(ranks)
    last = [int(np.searchsorted(order, low + critical, side="right")) - 1 for low in order]
    runs = [(first, end) for first, end in enumerate(last) if end > first]
    return [run for row, run in enumerate(runs) if row == 0 or run[1] > runs[row - 1][1]]
