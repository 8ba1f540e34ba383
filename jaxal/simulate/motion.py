"""How atoms move: mean squared displacements, diffusion, and the spectrum of the velocities. Host side, numpy.

Walkers are independent samples, and each may follow one member of the committee (`explore.drive`): then what the
members say is the mean over the walkers of each.
"""

from typing import Any, NamedTuple

import numpy as np
from ase.units import _c as LIGHT
from jaxtyping import Bool, Float
from scipy.signal import welch

from jaxal.core.errors import InputError
from jaxal.core.units import BOLTZMANN, TIME_UNIT
from jaxal.simulate.surface import deviation

FOLDED = 3.0  # fs, the longest time between frames of a spectrum: half a period of 5560 cm^-1
FIT = (0.1, 0.5)  # part of the time over which displacements grow in proportion to time: later there are few of them
PER_FS = 1e-15 * 1e2 * LIGHT  # 1/cm in 1/fs
CM2_PER_S = 0.1  # of a diffusion coefficient in Å^2/fs; 1e-16 cm^2 over 1e-15 s


class Motion(NamedTuple):
    """Walkers [w] at frames [t] evenly spaced in time, of atoms [n]."""

    spacing: float  # fs
    mass: Float[np.ndarray, "n"]  # amu
    symbols: tuple[str, ...]
    fixed: Bool[np.ndarray, "n"]
    position: Float[np.ndarray, "t w n 3"]  # Å, not wrapped
    velocity: Float[np.ndarray, "t w n 3"]  # Å/fs
    temperature: Float[np.ndarray, "t w"]  # K
    members: int  # that walkers follow in turn; 1: all follow the mean


class Estimate(NamedTuple):
    """A function on a grid [g], with its errors."""

    value: Float[np.ndarray, "g"]
    error: Float[np.ndarray, "g"]  # standard error, from walkers as independent samples; NaN of a single one
    spread: Float[np.ndarray, "g"]  # standard deviation of what members say, that error included; NaN without


class Diffusion(NamedTuple):
    """Displacements of the atoms of one element and what follows from them."""

    symbol: str
    displacement: Estimate  # Å^2, mean squared, on the grid of times
    coefficient: float  # cm^2/s
    error: float
    spread: float


class Spectrum(NamedTuple):
    """Power spectrum of the velocities on a grid of wavenumbers."""

    wavenumber: Float[np.ndarray, "g"]  # 1/cm
    total: Estimate  # states per 1/cm; its integral is the number of degrees of freedom
    elements: dict[str, Float[np.ndarray, "g"]]  # what the atoms of each have of it


def diffusion(motion: Motion, directions: Float[np.ndarray, "d 3"]) -> tuple[Float[np.ndarray, "g"], list[Diffusion]]:
    """Mean squared displacements along orthonormal directions, by element, on a grid of times (ps), and D from them.

    D = slope / (2 d) by least squares over `FIT` of the time (Einstein, Ann. Phys. 322, 549, 1905). Displacements are
    those of all origins in time, less that of the center of mass where no atom is fixed.
    """
    number = len(motion.position)
    if number < 20:
        raise InputError(
            f"length: {number} frames are too few for displacements; give a longer one, or a smaller every"
        )
    position = motion.position.astype(np.float64)
    if not motion.fixed.any():
        share = motion.mass / motion.mass.sum()
        position = position - np.einsum("twnx,n->twx", position, share)[:, :, None]
    along = position @ directions.T
    lag = np.arange(int(FIT[1] * number) + 1)
    time = 1e-3 * motion.spacing * lag
    rows = slice(max(1, int(FIT[0] * number)), None)
    results = []
    for symbol in dict.fromkeys(np.array(motion.symbols)[~motion.fixed].tolist()):
        atoms = (np.array(motion.symbols) == symbol) & ~motion.fixed
        each = squared_displacement(along[:, :, atoms]).mean(axis=2)[lag].T  # [w g]
        slope = np.polynomial.polynomial.polyfit(time[rows] * 1e3, each[:, rows].T, 1)[1]
        coefficient = CM2_PER_S * slope / (2 * len(directions))
        whole = estimate(coefficient[:, None], motion.members)
        numbers = (float(part[0]) for part in whole)
        results.append(Diffusion(symbol, estimate(each, motion.members), *numbers))
    return time, results


def squared_displacement(position: Float[np.ndarray, "t w n d"]) -> Float[np.ndarray, "t w n"]:
    """Mean over all origins in time of |x(t0 + t) - x(t0)|^2, by Fourier transforms.

    Kneller et al., Comput. Phys. Commun. 91, 191 (1995).
    """
    number = len(position)
    position = position - position.mean(axis=0)
    square = np.sum(position**2, axis=-1)
    power = np.abs(np.fft.rfft(position, 2 * number, axis=0)) ** 2
    product = np.fft.irfft(power, axis=0)[:number].sum(axis=-1)
    origins = (number - np.arange(number))[:, None, None]
    before, after = np.cumsum(square, axis=0), np.cumsum(square[::-1], axis=0)
    both = (before + after)[::-1]  # of |x(t0)|^2 and |x(t0 + t)|^2 over the origins that there are
    return np.maximum((both - 2 * product) / origins, 0.0)


def spectrum(motion: Motion, resolution: float) -> Spectrum:
    """The vibrational density of states: (2 / kT) sum_i m_i of the power spectrum of the velocities of atom i.

    By Welch's method (IEEE Trans. Audio Electroacoust. 15, 70, 1967; scipy), in segments as long as a `resolution`
    (1/cm) asks for. The temperature is that of the frames, so the integral is the number of degrees of freedom. Raises
    InputError as `in_segment`.
    """
    segment = in_segment(motion.spacing, len(motion.velocity), resolution)
    whole: Any = False  # its stubs want a text
    velocity = motion.velocity.astype(np.float64)
    frequency, power = welch(velocity, 1 / motion.spacing, nperseg=segment, detrend=whole, axis=0)
    kT = BOLTZMANN * motion.temperature.mean(axis=0)  # of each walker
    weight = motion.mass * TIME_UNIT**2 * PER_FS
    states = power.sum(axis=-1) * weight / kT[:, None]  # [g w n], per 1/cm
    elements = {
        symbol: states[:, :, np.array(motion.symbols) == symbol].sum(axis=-1).mean(axis=-1)
        for symbol in dict.fromkeys(motion.symbols)
    }
    return Spectrum(frequency / PER_FS, estimate(states.sum(axis=-1).T, motion.members), elements)


def in_segment(spacing: float, frames: int, resolution: float) -> int:
    """Frames in a segment of a spectrum of this resolution (1/cm), where they are `spacing` (fs) apart.

    Raises InputError for frames too far apart in time, and for fewer than one segment.
    """
    if spacing > FOLDED * (1 + 1e-9):
        why = f"frames {spacing:g} fs apart fold what is above {0.5 / (spacing * PER_FS):.0f} cm^-1"
        raise InputError(f"every: {why}; give one with at most {FOLDED:g} fs between frames")
    segment = int(np.ceil(1 / (resolution * PER_FS * spacing)))
    if segment > frames:
        need, there = segment * spacing * 1e-3, frames * spacing * 1e-3
        what = f"{resolution:g} cm^-1 needs {need:.3g} ps after --discard, there are {there:.3g}"
        raise InputError(f"--resolution: {what}; give a larger length or a coarser resolution")
    return segment


def estimate(each: Float[np.ndarray, "w g"], members: int) -> Estimate:
    """What walkers say together, where they follow so many members in turn."""
    number = len(each)
    by_member = [each[member::members].mean(axis=0) for member in range(min(members, number))]
    within = [each[member::members] - mean for member, mean in enumerate(by_member)]
    freedom = number - len(by_member)
    nothing = np.full(each.shape[1], np.nan)
    error = np.sqrt(sum((part**2).sum(axis=0) for part in within) / freedom / number) if freedom > 0 else nothing
    spread = np.array([deviation(column) for column in np.array(by_member).T]) if members > 1 else nothing
    return Estimate(each.mean(axis=0), error, spread)


def directions(cell: Float[np.ndarray, "3 3"], periodic: Bool[np.ndarray, "3"]) -> Float[np.ndarray, "d 3"]:
    """Orthonormal vectors that span the lattice vectors that repeat."""
    rows = np.asarray(cell, float)[np.asarray(periodic, bool)]
    return np.linalg.qr(rows.T)[0].T
