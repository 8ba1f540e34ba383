"""Free energies along variables from frames of biased walkers: weights of the frames, profiles, differences, intervals.

A frame of a walker under the bias V counts as exp(V / kT), of a bias that grows as exp((V - c(t)) / kT) with its offset
(Tiwary and Parrinello, J. Phys. Chem. B 119, 736, 2015). Walkers in different windows are combined by MBAR (Shirts and
Chodera, J. Chem. Phys. 129, 124105, 2008; `pymbar`). Standard errors are those of the same estimate from blocks of
frames drawn anew (bootstrap). Host side, numpy.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int
from scipy.special import logsumexp

from jaxal.core.errors import InputError
from jaxal.core.units import BOLTZMANN

BLOCKS, DRAWS = 8, 50
MOST = 20_000  # frames that MBAR takes


class Samples(NamedTuple):
    """Frames [t] of walkers [w] at one temperature, evenly spaced in time."""

    temperature: float  # K
    values: Float[np.ndarray, "t w v"]  # of the variables
    logweight: Float[np.ndarray, "t w"]  # of the biases that all walkers share, V / kT, less offsets
    windows: Float[np.ndarray, "k t w"] | None = None  # V_k / kT of each window k; None: there are none
    window: Int[np.ndarray, "w"] | None = None  # of each walker, to begin with
    exchanged: bool = False  # walkers have exchanged their windows since: each frame has all of them, as at the start


class Drawn(NamedTuple):
    """Samples of a bootstrap."""

    samples: Samples
    weight: Float[np.ndarray, "t w"]


class Profile(NamedTuple):
    """A free energy on a grid; its minimum is zero. Not visited points are NaN."""

    axes: tuple[np.ndarray, ...]  # middles of the bins along each variable
    energy: np.ndarray  # eV
    error: np.ndarray  # eV, standard error
    spread: np.ndarray  # eV, of the committee; NaN where it is not known


class Difference(NamedTuple):
    """Of two sides: F of what lies above a value less F of what lies below."""

    split: float  # the value
    energy: float  # eV
    error: float  # eV, standard error
    spread: float = np.nan  # eV, of the committee; NaN where it is not known


def weights(samples: Samples) -> Float[np.ndarray, "t w"]:
    """Normalized weights of the frames in the unbiased ensemble."""
    if samples.windows is None:
        log = samples.logweight
    else:
        assert samples.window is not None
        log = samples.logweight + _of_windows(samples.windows, samples.window)
    return np.exp(log - logsumexp(log))


def _of_windows(windows: Float[np.ndarray, "k t w"], window: Int[np.ndarray, "w"]) -> Float[np.ndarray, "t w"]:
    """Logarithms of weights by MBAR: -ln sum_k N_k exp(f_k - u_k)."""
    count, time, walkers = windows.shape
    every = max(1, time * walkers // MOST)
    order = np.argsort(window, kind="stable")
    numbers = np.bincount(window, minlength=count)
    thin = windows[:, ::every]
    flat = thin[:, :, order].transpose(0, 2, 1).reshape(count, -1)  # frames of one window after the other
    number = numbers * thin.shape[1]
    free = _free_energies(flat, number)
    counts: Any = np.broadcast_to(number[:, None, None] * 1.0, windows.shape)
    return -np.asarray(logsumexp(free[:, None, None] - windows, b=counts, axis=0))


def _free_energies(energies: Float[np.ndarray, "k f"], number: Int[np.ndarray, "k"]) -> Float[np.ndarray, "k"]:
    """Dimensionless free energies of the windows, the first one zero."""
    if len(energies) == 1:
        return np.zeros(1)
    # pymbar sets JAX to 64 bits for good where it is not so already
    with jax.enable_x64(True):
        try:
            logging.getLogger("pymbar").setLevel(logging.ERROR)  # advice on series in time, each time it is imported
            from pymbar import MBAR

            return np.asarray(MBAR(energies, number, relative_tolerance=1e-8, verbose=False).f_k)
        except Exception as error:  # its own kinds, of windows that do not overlap
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"free energy: windows cannot be combined ({reason}); give more of them, or softer"
            ) from None


def histogram(
    samples: Samples, edges: tuple[np.ndarray, ...], weight: Float[np.ndarray, "t w"]
) -> Float[np.ndarray, "..."]:
    """F = -kT ln p on bins of the variables, eV; infinite where nothing is, its zero that of p."""
    total = _total(samples, edges, weight)
    with np.errstate(divide="ignore"):
        return -BOLTZMANN * samples.temperature * np.log(total / total.sum())


def _total(
    samples: Samples, edges: tuple[np.ndarray, ...], weight: Float[np.ndarray, "t w"]
) -> Float[np.ndarray, "..."]:
    """The sum of the weights in each bin."""
    flat = samples.values.reshape(-1, samples.values.shape[-1])[:, : len(edges)]
    return np.histogramdd(flat, bins=list(edges), weights=weight.ravel())[0]


def below_above(samples: Samples, split: float, weight: Float[np.ndarray, "t w"]) -> float:
    """F of the frames whose first variable is above `split`, less F of those below, eV."""
    above = samples.values[..., 0] > split
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(-BOLTZMANN * samples.temperature * np.log(weight[above].sum() / weight[~above].sum()))


def resampled(samples: Samples, seed: int = 0, number: int = DRAWS, blocks: int = BLOCKS) -> list[Drawn]:
    """The samples with blocks of frames drawn anew: of each walker where it stays in its window, of all at once where
    they exchange these, and without windows of all together.
    """
    rng = np.random.default_rng(seed)
    time, walkers = samples.logweight.shape
    length = time // min(blocks, time)
    many = time // length
    drawn = []
    for _ in range(number):
        start = length * rng.integers(0, many, (many, 1 if samples.exchanged else walkers))
        of = np.arange(walkers) + np.zeros((many, 1), int)
        if samples.windows is None:
            of = rng.integers(0, walkers, (many, walkers))
        rows = (start[:, None] + np.arange(length)[None, :, None]).reshape(len(of) * length, -1)
        columns = np.repeat(of, length, axis=0)
        part = samples._replace(
            values=samples.values[rows, columns],
            logweight=samples.logweight[rows, columns],
            windows=None if samples.windows is None else samples.windows[:, rows, columns],
        )
        drawn.append(Drawn(part, weights(part)))
    return drawn


def profile(samples: Samples, edges: tuple[np.ndarray, ...], drawn: Sequence[Drawn]) -> Profile:
    """The free energy on bins, with standard errors from the samples `resampled`."""
    whole = histogram(samples, edges, weights(samples))
    at = np.unravel_index(np.argmin(whole), whole.shape)
    each = np.array([_zeroed(histogram(part, edges, weight), at) for part, weight in drawn])
    energy = np.where(np.isfinite(whole), whole - whole[at], np.nan)
    middles = tuple((edge[1:] + edge[:-1]) / 2 for edge in edges)
    error = np.where(np.isfinite(energy), _deviation(each), np.nan)
    return Profile(middles, energy, error, np.full(energy.shape, np.nan))


def profile_spread(
    samples: Samples, edges: tuple[np.ndarray, ...], shift: Float[np.ndarray, "m t w"]
) -> Float[np.ndarray, "..."]:
    """Standard deviation of what members say of a profile, eV, zero where it is lowest.

    `shift` is by how much each member's energy is off the mean, eV: its mean in a bin is what the member says of F
    there, to first order. Imbalzano et al., J. Chem. Phys. 154, 074102 (2021).
    """
    weight = weights(samples)
    total = _total(samples, edges, weight)
    at = np.unravel_index(np.argmax(total), total.shape)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = [_total(samples, edges, weight * each) / total for each in shift]
        return np.std([mean - mean[at] for mean in means], axis=0)


def _deviation(each: np.ndarray) -> np.ndarray:
    """Standard deviation along the first axis of what is a number; NaN where fewer than half of them are."""
    there = np.isfinite(each)
    count = there.sum(axis=0)
    mean = np.where(there, each, 0.0).sum(axis=0) / np.maximum(count, 1)
    square = np.where(there, (each - mean) ** 2, 0.0).sum(axis=0) / np.maximum(count, 1)
    return np.where(2 * count > len(each), np.sqrt(square), np.nan)


def _zeroed(values: np.ndarray, at: tuple[Any, ...]) -> np.ndarray:
    values = np.where(np.isfinite(values), values, np.nan)
    return values - (values[at] if np.isfinite(values[at]) else np.nanmin(values))


def difference(samples: Samples, split: float, drawn: Sequence[Drawn]) -> Difference:
    """F above `split` less F below, with its standard error from the samples `resampled`."""
    each = np.array([below_above(part, split, weight) for part, weight in drawn])
    finite = each[np.isfinite(each)]
    error = float(np.std(finite)) if len(finite) > 1 else np.nan
    return Difference(split, below_above(samples, split, weights(samples)), error)


def difference_spread(samples: Samples, split: float, shift: Float[np.ndarray, "m t w"]) -> float:
    """Standard deviation of what members say of a difference, eV, as of `profile_spread`."""
    weight, above = weights(samples), samples.values[..., 0] > split

    def mean(values: np.ndarray, side: np.ndarray) -> float:
        return float(np.sum((weight * values)[side]) / np.sum(weight[side])) if side.any() else np.nan

    return float(np.std([mean(each, above) - mean(each, ~above) for each in shift]))
