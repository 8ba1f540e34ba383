"""From dynamics to free energies: the temperature, the variables and the weights of what was written down."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxal.config.simulation import Simulation
from jaxal.core.errors import InputError
from jaxal.core.units import BOLTZMANN
from jaxal.data.structure import from_atoms
from jaxal.deploy.model import Model
from jaxal.explore.bias_forces import Term
from jaxal.simulate import dynamics
from jaxal.simulate.dynamics import OBSERVED, Prepared, Series
from jaxal.simulate.free_energy import (
    Difference,
    Profile,
    Samples,
    difference,
    difference_spread,
    profile,
    profile_spread,
    resampled,
)
from jaxal.simulate.surface import opinions

OPINIONS = 2000  # frames that the members are asked about


class Question(NamedTuple):
    """What is asked of the frames."""

    split: float | None  # of the first variable: the difference between what is above and below
    bins: int
    discard: float  # first part of the frames that does not count


class Answer(NamedTuple):
    """A free energy along variables."""

    names: tuple[str, ...]
    units: tuple[str, ...]
    profile: Profile
    difference: Difference | None
    estimator: str
    frames: int


def check(walkers: Prepared, simulation: Simulation) -> Term:
    """The term whose variables the free energy is along; raises InputError where there can be none."""
    options = dict(simulation.explore.part.options)
    sampler = walkers.sampler
    ramps = options.get("final_temperature") is not None
    if sampler.bath is None or not sampler.thermostat or sampler.couples or ramps:
        name = simulation.explore.part.name
        raise InputError(f"explore.name: {name} is no dynamics at one temperature; give nvt_langevin or another")
    temperature = options["temperature"]
    for term in walkers.terms:
        other = term.bias.temperature
        if other is not None and other != temperature:
            what = f"{term.name} is made for {other:g} K, the dynamics has {temperature:g} K"
            raise InputError(f"bias: {what}; give one temperature for both")
        if not term.bias.static and not term.bias.shared:
            raise InputError(f"bias: under {term.name} walkers have no ensemble; give umbrella, metadynamics or opes")
        if term.bias.offset is not None and not np.isfinite(_first_offset(walkers, term)):
            raise InputError(f"bias: {term.name} of {len(term.variables.names)} variables has no weights; give opes")
    along = [term for term in walkers.terms if term.name == OBSERVED]
    along += [term for term in walkers.terms if term.variables.names]
    if not along:
        raise InputError("along: missing; give a variable, such as along={name: distance, atoms: [0, 1]}")
    if len(along[0].variables.names) > 2:
        raise InputError(f"along: {len(along[0].variables.names)} variables; give one or two")
    return along[0]


def _first_offset(walkers: Prepared, term: Term) -> float:
    offset = term.bias.offset
    assert offset is not None
    start = from_atoms(walkers.starts[0], walkers.surface.model.table)
    return float(jax.jit(lambda start: offset(term.bias.init(start, jnp.int32(0))))(start))


def answer(
    walkers: Prepared, simulation: Simulation, series: Series, kept: dict[int, list[ase.Atoms]], question: Question
) -> Answer:
    """The free energy along the variables of `check`; `kept` are structures as of `dynamics.run`.

    Raises InputError where walkers came to an end early.
    """
    term = check(walkers, simulation)
    dynamics.to_the_end(walkers, simulation, series, "free energy")
    temperature = dict(simulation.explore.part.options)["temperature"]
    first = int(question.discard * len(series.time))
    samples = of_series(walkers, series, term, temperature, first)
    edges = tuple(
        _edges(samples.values[..., row], term.variables.periods[row], question.bins)
        for row in range(len(term.variables.names))
    )
    drawn = resampled(samples)
    thin, shift = _shifts(walkers, samples, kept, first)
    whole = profile(samples, edges, drawn)
    between = None if question.split is None else difference(samples, question.split, drawn)
    if shift is not None:
        whole = whole._replace(spread=profile_spread(thin, edges, shift))
        between = between and between._replace(spread=difference_spread(thin, between.split, shift))
    acting = [each.name for each in walkers.terms if each.name != OBSERVED]
    how = "MBAR" if samples.windows is not None else "reweighted" if acting else "counted"
    count = int(np.prod(samples.logweight.shape))
    return Answer(term.labels, term.variables.units, whole, between, how, count)


def of_series(walkers: Prepared, series: Series, term: Term, temperature: float, first: int) -> Samples:
    """The frames from number `first` on as samples of the term's variables."""
    thermal = BOLTZMANN * temperature
    values = np.stack([series.report[f"variable_{label}"][first:] for label in term.labels], axis=-1)
    logweight = np.zeros(values.shape[:2])
    windows, window = None, None
    for each in walkers.terms:
        if each.name == OBSERVED:
            continue
        energies = _windows(walkers, each, series, first)
        if energies is None:
            offset = series.offsets.get(each.name, np.zeros(len(series.time)))[first:, None]
            logweight += (series.report[f"bias_{each.name}"][first:] - offset) / thermal
            continue
        windows = energies / thermal + (0.0 if windows is None else windows)
    if windows is not None:
        # walkers in the same windows are of one ensemble
        _, leader, window = np.unique(np.round(windows[:, 0], 9), axis=0, return_index=True, return_inverse=True)
        windows = windows[leader]
    exchanged = any(each.bias.couples for each in walkers.terms)
    return Samples(temperature, values, logweight, windows, window, exchanged)


def in_windows(walkers: Prepared, term: Term) -> bool:
    """Whether walkers are held in different windows by a bias at rest."""
    if not term.bias.static or not term.variables.names:
        return False
    return any(bool(np.any(x != x[:1])) for x in map(np.asarray, jax.tree.leaves(_states(walkers, term))))


def _states(walkers: Prepared, term: Term) -> Any:
    """Those of a bias of all walkers at the start."""
    start = from_atoms(walkers.starts[0], walkers.surface.model.table)
    return jax.jit(jax.vmap(term.bias.init, (None, 0)))(start, np.arange(len(walkers.starts)))


def _windows(walkers: Prepared, term: Term, series: Series, first: int) -> Float[np.ndarray, "w t w"] | None:
    """Energies of a bias at rest in the window of each walker at all frames; None where all have the same."""
    if not in_windows(walkers, term):
        return None
    start = jax.device_put(from_atoms(walkers.starts[0], walkers.surface.model.table))
    states = _states(walkers, term)
    values = jax.device_put(np.stack([series.report[f"variable_{label}"][first:] for label in term.labels], axis=-1))
    zero: Any = jnp.zeros(())

    def energies(state: Any) -> Any:
        return jax.vmap(jax.vmap(lambda value: term.bias.energy(state, value, zero, start, zero)))(values)

    return np.asarray(jax.jit(jax.vmap(energies))(states), float)


def _edges(values: np.ndarray, period: float | None, bins: int) -> np.ndarray:
    """Of bins over what was visited, or over a period."""
    if period is not None:
        return np.linspace(-period / 2, period / 2, bins + 1)
    low, high = float(values.min()), float(values.max())
    room = 1e-6 * max(high - low, 1e-3)
    return np.linspace(low - room, high + room, bins + 1)


def _shifts(
    walkers: Prepared, samples: Samples, kept: dict[int, list[ase.Atoms]], first: int
) -> tuple[Samples, Float[np.ndarray, "m t w"] | None]:
    """The samples whose structures were kept, and by how much each member's energy of them is off the mean, eV."""
    rows = np.array([row - first for row in sorted(kept) if row >= first], int)
    windows = None if samples.windows is None else samples.windows[:, rows]
    thin = samples._replace(values=samples.values[rows], logweight=samples.logweight[rows], windows=windows)
    return thin, shifts(walkers.surface.model, [kept[int(row) + first] for row in rows])


def shifts(model: Model, kept: Sequence[Sequence[ase.Atoms]]) -> Float[np.ndarray, "m t w"] | None:
    """By how much each member's energy of structures [t w] is off the mean, eV; None where there is but one."""
    energy = opinions(model, [atoms for row in kept for atoms in row]).energy if kept else np.zeros((0, 1))
    if energy.shape[1] < 2:
        return None
    off = (energy - energy.mean(axis=1, keepdims=True)).T
    return off.reshape(energy.shape[1], len(kept), -1)
