"""Does the committee know when it is wrong? Its spread against true errors. Host side, numpy and scipy.

`spread` and `error` are equally long [c]: one number for each atom (standard deviation and true error of its
force vector, eV/Å) or for each structure (the largest of its atoms). What asks for a whole distribution takes signed
`residual`s and their standard deviations `std` [c] instead: of force components, or of energies. The measures are those
of Scalia et al., J. Chem. Inf. Model. 60, 2697 (2020) and Tran et al., Mach. Learn.: Sci. Technol. 1, 025006 (2020).
"""

from typing import NamedTuple

import numpy as np
from scipy.special import erf
from scipy.stats import norm, rankdata, spearmanr


class Bin(NamedTuple):
    """Structures or atoms of similar spread."""

    spread: float  # root mean square, eV/Å
    error: float  # root mean square, eV/Å
    covered: float  # fraction whose error is within the bound
    count: int


class Calibration(NamedTuple):
    """How well spread tells error.

    `covered` is the fraction with error <= factor * spread, `covered_error` its binomial standard error, `factor` the
    median of the factors. `scale`
    is the multiple of the spread most likely under a normal law, `nll` the negative log-likelihood per force
    component with it, `nll_constant` that of one spread for all: the committee is of use where nll is smaller.
    """

    spearman: float
    covered: float
    covered_error: float
    factor: float
    threshold: float  # eV/Å
    auroc: float  # of telling errors above the threshold; 0.5 = blind, NaN where all or none are
    scale: float
    nll: float
    nll_constant: float
    bins: tuple[Bin, ...]
    count: int


class Covered(NamedTuple):
    """Of one element: fraction of its atoms with error <= factor * spread, standard error, most likely scale, atoms."""

    covered: float
    covered_error: float
    scale: float
    count: int


class Normal(NamedTuple):
    """How well normal laws about the predictions tell residuals, each with `scale` times its standard deviation.

    The scale is the most likely one; everything after it but the rank correlation is with it, in the unit of the
    residuals where it has one.
    """

    scale: float
    spearman: float  # of the sizes of the residuals and the standard deviations
    nll: float  # mean negative log-likelihood
    crps: float  # mean continuous ranked probability score
    area: float  # miscalibration area: 0 is calibrated, 0.5 the most there can be
    sharpness: float  # root mean square of the standard deviations
    count: int


def rank_correlation(spread: np.ndarray, error: np.ndarray) -> float:
    """Spearman's rank correlation; NaN where one of them does not vary or there are fewer than three."""
    if len(spread) < 3 or np.ptp(spread) == 0 or np.ptp(error) == 0:
        return float("nan")
    return float(spearmanr(spread, error).statistic)  # pyright: ignore[reportAttributeAccessIssue]


def coverage(bound: np.ndarray, error: np.ndarray) -> tuple[float, float]:
    """Fraction of errors within their bounds, and its binomial standard error; NaN without errors, or bounds."""
    if len(error) == 0 or np.isnan(bound).any():
        return float("nan"), float("nan")
    fraction = float(np.mean(error <= bound))
    # Agresti-Coull's count, or all covered would claim a standard error of zero.
    smooth = (fraction * len(error) + 2) / (len(error) + 4)
    return fraction, float(np.sqrt(smooth * (1 - smooth) / (len(error) + 4)))


def reliability(spread: np.ndarray, error: np.ndarray, factor: np.ndarray, bins: int) -> tuple[Bin, ...]:
    """Bins equally full, by rising spread; a factor for each."""
    parts = np.array_split(np.argsort(spread, kind="stable"), max(1, min(bins, len(spread))))
    return tuple(
        Bin(
            float(np.sqrt(np.mean(spread[rows] ** 2))),
            float(np.sqrt(np.mean(error[rows] ** 2))),
            coverage(factor[rows] * spread[rows], error[rows])[0],
            len(rows),
        )
        for rows in parts
        if len(rows)
    )


def likelihood(spread: np.ndarray, error: np.ndarray) -> tuple[float, float, float]:
    """(scale, nll, nll with one spread for all), per component of the force vector, ln(eV/Å).

    Model: each of the three components of the error is normal with variance (scale * spread)^2 / 3. The most likely
    scale is closed: scale^2 = mean(error^2 / spread^2).
    """
    use = spread > 0
    if not np.any(use) or not np.any(error[use] > 0):
        return float("nan"), float("nan"), float("nan")
    spread, error = spread[use], error[use]

    def mean_nll(variance: np.ndarray) -> float:  # variance of one component
        return float(np.mean(0.5 * np.log(2 * np.pi * variance) + error**2 / (6 * variance)))

    scale = float(np.sqrt(np.mean((error / spread) ** 2)))
    constant = np.full_like(error, np.mean(error**2) / 3)
    return scale, mean_nll((scale * spread) ** 2 / 3), mean_nll(constant)


def nll(residual: np.ndarray, std: np.ndarray) -> float:
    """Mean negative log-likelihood of normal laws, the logarithm of the residuals' unit."""
    return float(-np.mean(norm.logpdf(residual, scale=std)))


def crps(residual: np.ndarray, std: np.ndarray) -> float:
    """Mean continuous ranked probability score of normal laws, in the unit of the residuals; the smaller the better.

    s (z (2 Phi(z) - 1) + 2 phi(z) - 1 / sqrt(pi)) with z = residual / s (Gneiting et al., Mon. Weather Rev. 133, 1098,
    2005). As the spread vanishes it becomes the size of the residual.
    """
    z = residual / std
    return float(np.mean(std * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / np.sqrt(np.pi))))


def miscalibration_area(residual: np.ndarray, std: np.ndarray) -> float:
    """Area between the fraction of residuals within the central interval of probability p, and p, over 0 <= p <= 1.

    Exact, without bins: the fraction rises by 1/c where p is erf(|z| / sqrt 2) of a residual (Kuleshov, Fenner and
    Ermon, arXiv:1807.00263; Tran et al.).
    """
    edges = np.r_[0.0, np.sort(erf(np.abs(residual / std) / np.sqrt(2))), 1.0]
    fraction = np.arange(len(edges) - 1) / (len(edges) - 2)  # between two edges
    first, last = edges[:-1] - fraction, edges[1:] - fraction
    return float(0.5 * np.sum(last * np.abs(last) - first * np.abs(first)))  # integral of |p - fraction|


def sharpness(std: np.ndarray) -> float:
    """Root mean square of the standard deviations, in their unit: of two calibrated ones the sharper is the better."""
    return float(np.sqrt(np.mean(std**2)))


def normal(residual: np.ndarray, std: np.ndarray) -> Normal:
    """All measures of residuals [c] by normal laws; those without spread, and what is not finite, are left out."""
    residual, std = np.asarray(residual, np.float64).ravel(), np.asarray(std, np.float64).ravel()
    use = np.isfinite(residual) & np.isfinite(std) & (std > 0)
    residual, std = residual[use], std[use]
    if not np.any(residual != 0):
        nan = float("nan")
        return Normal(nan, nan, nan, nan, nan, nan, len(residual))
    scale = float(np.sqrt(np.mean((residual / std) ** 2)))
    scaled = scale * std
    return Normal(
        scale,
        rank_correlation(std, np.abs(residual)),
        nll(residual, scaled),
        crps(residual, scaled),
        miscalibration_area(residual, scaled),
        sharpness(scaled),
        len(residual),
    )


def coverage_by(
    group: np.ndarray, spread: np.ndarray, error: np.ndarray, factor: float | np.ndarray
) -> dict[str, Covered]:
    """Coverage of each group of atoms, `group` [c] being their symbols, in the order of the names."""
    coverages, bound = {}, factor * spread
    for name in np.unique(group):
        rows = group == name
        covered = coverage(bound[rows], error[rows])
        coverages[str(name)] = Covered(*covered, likelihood(spread[rows], error[rows])[0], int(rows.sum()))
    return coverages


def auroc(spread: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive has a larger spread than a negative (Mann-Whitney); NaN without both."""
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    rank = rankdata(spread)[positive].sum()
    return float((rank - positives * (positives + 1) / 2) / (positives * negatives))


def calibration(
    spread: np.ndarray,
    error: np.ndarray,
    *,
    factor: float | np.ndarray,
    threshold: float | None = None,
    bins: int = 10,
) -> Calibration:
    """All measures of spread [c] against error [c], both eV/Å.

    `factor`, of all or for each [c], times the spread is the bound claimed, none where it is NaN. `threshold` (eV/Å) is
    the error to be told; the 90 % quantile of the errors where it is not given. Pairs that are not finite are left out.
    """
    spread, error = np.asarray(spread, np.float64), np.asarray(error, np.float64)
    finite = np.isfinite(spread) & np.isfinite(error)
    factor = np.broadcast_to(np.asarray(factor, np.float64), spread.shape)[finite]
    spread, error = spread[finite], error[finite]
    if threshold is None:
        threshold = float(np.quantile(error, 0.9)) if len(error) else float("nan")
    covered, covered_error = coverage(factor * spread, error)
    scale, nll, nll_constant = likelihood(spread, error)
    return Calibration(
        spearman=rank_correlation(spread, error),
        covered=covered,
        covered_error=covered_error,
        factor=float(np.median(factor)) if len(factor) else float("nan"),
        threshold=threshold,
        auroc=auroc(spread, error > threshold),
        scale=scale,
        nll=nll,
        nll_constant=nll_constant,
        bins=reliability(spread, error, factor, bins),
        count=len(error),
    )
