"""Distributions of distances between atoms, from frames of dynamics. Host side, numpy and ASE."""

from collections.abc import Sequence
from typing import NamedTuple

import ase
import numpy as np
from ase.neighborlist import neighbor_list
from jaxtyping import Float, Int

from jaxal.core.units import BOLTZMANN


class Pair(NamedTuple):
    """Atoms of one element around one of another, on a grid of distances."""

    symbols: tuple[str, str]  # in the middle, around it
    density: Float[np.ndarray, "g"] | None  # g(r), 1 where there is no order; None of what has no volume
    error: Float[np.ndarray, "g"]  # standard error of `density`, or else of `shell`
    spread: Float[np.ndarray, "g"]  # likewise, the standard deviation of what members say; NaN where it is not known
    shell: Float[np.ndarray, "g"]  # atoms around per Å
    within: Float[np.ndarray, "g"]  # atoms around up to the outer edge of the bin


class Radial(NamedTuple):
    """Distances of a system."""

    distance: Float[np.ndarray, "g"]  # Å, middles of the bins
    pairs: list[Pair]


def counted(atoms: ase.Atoms, edges: Float[np.ndarray, "e"], kinds: Int[np.ndarray, "n"]) -> Float[np.ndarray, "p g"]:
    """How many distances of one frame are in each bin, by pairs of kinds (row first * number of kinds + second)."""
    first, second, distance = neighbor_list("ijd", atoms, float(edges[-1]))
    number, bins = int(kinds.max()) + 1, len(edges) - 1
    place = np.searchsorted(edges, distance, side="right") - 1
    inside = (place >= 0) & (place < bins)
    row = (kinds[first] * number + kinds[second]) * bins + place
    return np.bincount(row[inside], minlength=number**2 * bins).reshape(number**2, bins).astype(float)


def radial(
    frames: Sequence[Sequence[ase.Atoms]],
    edges: Float[np.ndarray, "e"],
    temperature: float | None,
    shift: Float[np.ndarray, "m t w"] | None,
) -> Radial:
    """Distributions of the distances in frames [t] of walkers [w], for every pair of elements.

    Standard errors are from walkers and quarters of the time as independent samples. `shift` is by how much each
    member's energy is off the mean (eV): its distribution is, to first order, the mean's less the covariance of both
    over kT (Imbalzano et al., J. Chem. Phys. 154, 074102, 2021); `temperature` is in K.
    """
    start = frames[0][0]
    symbols = list(dict.fromkeys(start.get_chemical_symbols()))
    kinds = np.array([symbols.index(symbol) for symbol in start.get_chemical_symbols()])
    counts = np.array([[counted(atoms, edges, kinds) for atoms in row] for row in frames])  # [t w p g]
    numbers = np.bincount(kinds)
    volume = np.array([[atoms.get_volume() for atoms in row] for row in frames]) if start.pbc.all() else None
    thin, width = np.diff(edges**3) * 4 * np.pi / 3, np.diff(edges)
    pairs = []
    for first, center in enumerate(symbols):
        for second, other in list(enumerate(symbols))[first:]:
            around = counts[:, :, first * len(symbols) + second] / numbers[first]  # [t w g]
            shown = around / width if volume is None else around * volume[..., None] / numbers[second] / thin
            pair = Pair(
                (center, other),
                None if volume is None else shown.mean(axis=(0, 1)),
                _error(shown),
                _spread(shown, temperature, shift),
                (around / width).mean(axis=(0, 1)),
                np.cumsum(around.mean(axis=(0, 1))),
            )
            if pair.within[-1] > 0:
                pairs.append(pair)
    return Radial((edges[1:] + edges[:-1]) / 2, pairs)


def _error(values: Float[np.ndarray, "t w g"]) -> Float[np.ndarray, "g"]:
    """Standard error of the mean, from walkers and quarters of the time."""
    parts = np.array_split(values, min(4, len(values)))
    each = np.concatenate([part.mean(axis=0) for part in parts])
    if len(each) < 2:
        return np.full(values.shape[-1], np.nan)
    return each.std(axis=0, ddof=1) / np.sqrt(len(each))


def _spread(
    values: Float[np.ndarray, "t w g"], temperature: float | None, shift: Float[np.ndarray, "m t w"] | None
) -> Float[np.ndarray, "g"]:
    """Standard deviation of what members say of the mean."""
    if temperature is None or shift is None:
        return np.full(values.shape[-1], np.nan)
    off = shift - shift.mean(axis=(1, 2), keepdims=True)
    covariance = np.einsum("mtw,twg->mg", off, values - values.mean(axis=(0, 1))) / off[0].size
    return (covariance / (BOLTZMANN * temperature)).std(axis=0)
