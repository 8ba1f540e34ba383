"""What a potential does in dynamics: energy conservation, survival of molecules, density and structure of liquids.

The dynamics is one compiled program for all starts; the analysis is numpy on the host.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np
from ase.neighborlist import neighbor_list
from jaxtyping import Array, Float

from jaxal.committee.evaluation import Committee, predict
from jaxal.core.types import Explorer, InputError, Key, Neighbors, Params, Sampler, Start, Structure
from jaxal.data import neighbors as lists
from jaxal.data.structure import Table, to_atoms
from jaxal.explore import stepping
from jaxal.explore.walker import free, kelvin
from jaxal.validate.graph import same_skeleton

# Structures [b] and their neighbors -> energies (eV), forces (eV/Å) and stresses (eV/Å^3)
Field = Callable[[Structure, Neighbors], tuple[Float[Array, "b"], Float[Array, "b n 3"], Float[Array, "b 3 3"]]]

GRAM_PER_CM3 = 1.66053906660  # of one amu/Å^3


class Trajectory(NamedTuple):
    """Frames of several independent runs, numpy arrays; t frames."""

    structure: Structure  # [b t n ...]
    energy: np.ndarray  # [b t] eV, potential
    kinetic: np.ndarray  # [b t] eV
    time: np.ndarray  # [t] ps


class Stability(NamedTuple):
    """Microcanonical dynamics, one number for each start.

    `drift` is the slope of the total energy by least squares, `fluctuation` the standard deviation around it.
    `survived` is the time until a molecule broke apart or joined another, or until the end where it stays `intact`.
    """

    drift: np.ndarray  # [b] meV/atom/ps
    fluctuation: np.ndarray  # [b] meV/atom
    survived: np.ndarray  # [b] ps
    intact: np.ndarray  # [b] bool
    length: float  # ps
    temperature: np.ndarray  # [b] K, mean


class Distribution(NamedTuple):
    """Radial distribution function with the standard error of its mean, from blocks of frames."""

    radius: np.ndarray  # [r] Å, middle of each bin
    value: np.ndarray  # [r]
    error: np.ndarray  # [r]


def mean_field(committee: Committee, params: Params) -> Field:
    """The mean of a committee whose `params` have members on the leading axis."""

    def field(structures: Structure, near: Neighbors):
        prediction = predict(committee, params, structures, near)
        return prediction.energy.mean(1), prediction.force.mean(1), prediction.stress.mean(1)

    return field


def run(
    field: Field,
    cutoff: float,
    explorer: Explorer | Sampler,
    starts: Structure,
    key: Key,
    *,
    length: float,
    every: int = 20,
    skin: float = 0.5,
) -> Trajectory:
    """Dynamics of `length` ps from each start [b n ...] in one jitted scan, a frame each `every` steps.

    The starts are of the same atoms, unpadded; fixed ones stay where they are.
    `field` gives energies, forces and stresses of all, `explorer` moves each (jaxal.explore, "nve" say), or all. The
    neighbor lists (cutoff and skin in Å) are rebuilt when an atom has moved too far; where one overflows the whole is
    run again with more room. A frame after the forces ceased to be finite holds NaN.
    Raises InputError for less than two frames, and for atoms that collapse into ever smaller space.
    """
    sampler = stepping.sampler(explorer)
    frames = round(length * 1e3 / (sampler.timestep * every))
    if frames < 2:
        raise InputError(f"length: {length} ps is less than two frames of {every} steps of {sampler.timestep} fs")

    def push(structures: Structure, near: Neighbors):
        energy, force, stress = field(structures, near)
        return stepping.unjudged(energy, force, stress), energy

    def all_of(spec: lists.Spec, keys: Key, starts: Structure):
        near = lists.find(spec, starts)
        energy, *moves = field(starts, near)
        walkers = sampler.init(keys, Start(starts, *moves), jnp.zeros(len(keys), jnp.int32))

        def step(carry, _):
            walkers, near, _, overflow = carry
            step = stepping.step(sampler, spec, walkers, near, push)
            return (step.walkers, step.near, step.said, overflow | step.close.overflow), None

        def frame(carry, _):
            carry, _ = jax.lax.scan(step, carry, None, length=every)
            walkers, _, energy, _ = carry
            return carry, (sampler.walkers(walkers), energy, sampler.kinetic(walkers))

        carry, kept = jax.lax.scan(frame, (walkers, near, energy, near.overflow), None, length=frames)
        return jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), kept), carry[-1]

    starts = jax.device_put(starts)
    keys = jax.random.split(key, starts.position.shape[0])
    program = jax.jit(all_of, static_argnums=0)

    def attempt(spec: lists.Spec):
        kept, overflow = jax.tree.map(np.asarray, program(spec, keys, starts))
        return kept, bool(overflow.any()), starts

    (structure, energy, kinetic), _ = stepping.with_room(lists.plan(starts, cutoff, skin), attempt)
    time = np.arange(1, frames + 1) * every * sampler.timestep * 1e-3
    return Trajectory(structure, energy.astype(float), kinetic.astype(float), time)


def stability(trajectory: Trajectory, table: Table, starts: Structure) -> Stability:
    """Drift, fluctuation and survival of molecules in a microcanonical trajectory from `starts` [b n ...]."""
    real = np.asarray(starts.species) >= 0
    atoms = real.sum(axis=-1)
    total = (trajectory.energy + trajectory.kinetic) / atoms[:, None] * 1e3  # meV/atom
    drift, fluctuation, broken = [], [], []
    for run, series in enumerate(total):
        finite = np.isfinite(series)
        whole = finite & np.isfinite(trajectory.structure.position[run]).all(axis=(-1, -2))
        slope, offset = np.polyfit(trajectory.time, series, 1) if finite.all() else (np.nan, np.nan)
        drift.append(slope)
        fluctuation.append(np.std(series - slope * trajectory.time - offset))
        first = to_atoms(Structure(*(np.asarray(leaf)[run] for leaf in starts)), table)
        bad = (
            t
            for t, frame in enumerate(frames_of(trajectory, run, table))
            if not (whole[t] and same_skeleton(first, frame))
        )
        broken.append(next(bad, None))
    return Stability(
        drift=np.array(drift),
        fluctuation=np.array(fluctuation),
        survived=np.array([trajectory.time[-1 if frame is None else frame] for frame in broken]),
        intact=np.array([frame is None for frame in broken]),
        length=float(trajectory.time[-1]),
        temperature=np.asarray(kelvin(trajectory.kinetic.mean(axis=1), np.asarray(jax.vmap(free)(starts)))),
    )


def frames_of(trajectory: Trajectory, run: int, table: Table) -> list[ase.Atoms]:
    """One run of a trajectory as ASE atoms."""
    return [
        to_atoms(Structure(*(leaf[run, number] for leaf in trajectory.structure)), table)
        for number in range(len(trajectory.time))
    ]


def block_error(series: np.ndarray, blocks: int = 8) -> np.ndarray:
    """Standard error of the mean along the first axis [t ...] from means of blocks, which frames in time need."""
    parts = np.array_split(np.asarray(series, float), min(blocks, len(series)))
    means = np.stack([part.mean(axis=0) for part in parts])
    return means.std(axis=0, ddof=1) / np.sqrt(len(means)) if len(means) > 1 else np.full_like(means[0], np.nan)


def density(frames: Sequence[ase.Atoms]) -> tuple[float, float]:
    """Mean mass density and its standard error, g/cm^3, of periodic frames."""
    series = np.array([frame.get_masses().sum() / frame.get_volume() for frame in frames]) * GRAM_PER_CM3
    return float(series.mean()), float(block_error(series))


def radial_distribution(
    frames: Sequence[ase.Atoms], cutoff: float, *, width: float = 0.05, pair: tuple[str, str] | None = None
) -> Distribution:
    """g(r) up to `cutoff` (Å, also beyond half the cell) in bins of `width` Å, of all atoms or of a pair of elements.

    Raises InputError for open frames and elements that are not there.
    """
    edges = np.linspace(0.0, cutoff, max(1, round(cutoff / width)) + 1)
    shell = 4 / 3 * np.pi * np.diff(edges**3)
    series = []
    for frame in frames:
        if not frame.pbc.all():
            raise InputError("frames: not periodic; a radial distribution needs a density")
        symbols = np.array(frame.get_chemical_symbols())
        i, j, distance = neighbor_list("ijd", frame, cutoff)
        first, second = pair or ("", "")
        from_, to = (symbols == first, symbols == second) if pair else (np.full(len(frame), True),) * 2
        if not (from_.any() and to.any()):
            raise InputError(f"pair: {first}-{second} does not occur in the frames")
        counts = np.histogram(distance[from_[i] & to[j]], edges)[0]
        # an atom is no neighbor of itself but its images are, so the ideal count has all `to` atoms
        series.append(counts / (from_.sum() * to.sum() / frame.get_volume() * shell))
    values = np.array(series)
    return Distribution((edges[1:] + edges[:-1]) / 2, values.mean(axis=0), block_error(values))
