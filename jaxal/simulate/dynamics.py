"""Dynamics on a finished model: many walkers, any explorer and biases, that end or go on where the model is unsure."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from jaxal.acquire.score import max_force_spread
from jaxal.config.biases import terms_of
from jaxal.config.check import sampler_of
from jaxal.config.schema import Part
from jaxal.config.simulation import Simulation
from jaxal.core import devices
from jaxal.core.errors import InputError
from jaxal.core.types import Bias, Sampler, Structure
from jaxal.data import files
from jaxal.data import frames as door
from jaxal.data.frames import Carried
from jaxal.data.structure import from_atoms, to_frame
from jaxal.deploy import model as models
from jaxal.explore import variables as variables_of
from jaxal.explore.bias_forces import ENERGY, VALUE, Term, Terms
from jaxal.explore.bias_functions import as_before, nothing
from jaxal.explore.timestep import too_long
from jaxal.program.step import CAUSES, PHYSICAL
from jaxal.simulate.surface import Surface, surface
from jaxal.simulate.walkers import Frames, Program, position, program
from jaxal.uncertainty.bound import bounds

AT_ONCE = 50  # frames between two looks from outside
EVERY = 20  # steps between two frames
ALIKE = 1e-6  # eV, between energies that are the same
OBSERVED = "observed"  # the bias that does nothing
TRAJECTORY, SERIES, RESULT = "trajectory.xyz", "series.npz", "dynamics.json"


class Series(NamedTuple):
    """What was written down of walkers [w] at their frames [t]; numpy."""

    time: Float[np.ndarray, "t"]  # ps
    energy: Float[np.ndarray, "t w"]  # eV, total, without biases
    temperature: Float[np.ndarray, "t w"]  # K
    spread: Float[np.ndarray, "t w"]  # eV/Å
    error: Float[np.ndarray, "t w"]  # eV/Å, a bound on the largest force error
    supported: Bool[np.ndarray, "t w"]
    cause: Int[np.ndarray, "t w"]
    counts: Bool[np.ndarray, "t w"]  # frames before the model was unsure of the walker
    report: dict[str, np.ndarray]  # [t w]
    offsets: dict[str, np.ndarray]  # [t] eV, of biases that grow


class Prepared(NamedTuple):
    """What moves on a model, before anything is computed."""

    surface: Surface
    sampler: Sampler
    terms: Terms
    starts: list[ase.Atoms]  # one for each walker
    cautions: list[str]


def prepared(model: models.Model, simulation: Simulation, starts: Sequence[ase.Atoms], file: Path) -> Prepared:
    """The walkers of a simulation; raises InputError for what does not fit the structures."""
    part, number = simulation.explore.part, simulation.explore.walkers
    sampler = sampler_of(part, list(starts), number, file, "structure")
    terms = (*terms_of(simulation.bias, max_force_spread, starts[0]), *observed(simulation.along, starts[0]))
    many = 1 if model.heads > 1 else len(jax.tree.leaves(model.params)[0])
    mesh = devices.mesh(devices.number(simulation.devices, number, many), many)
    own = [starts[row] for row in _nearest(terms, starts, number, model)]
    reason = too_long(starts, sampler.timestep) if sampler.bath is not None else ""
    return Prepared(surface(model, mesh), sampler, terms, own, [f"explore.timestep: {reason}"] if reason else [])


def observed(along: Sequence[Part], start: ase.Atoms) -> Terms:
    """Variables that are written down, as a bias that does nothing."""
    if not along:
        return ()
    chosen = variables_of.bound([(part.name, dict(part.options)) for part in along], start, "along")

    def none(state: Any, values: Any, uncertainty: Any, structure: Structure, time: Any) -> Any:
        del state, values, uncertainty, time
        return jnp.zeros((), structure.position.dtype)

    labels = tuple(f"{name}_{row}" if chosen.names.count(name) > 1 else name for row, name in enumerate(chosen.names))
    return (Term(OBSERVED, Bias(nothing, none, as_before, static=True), chosen, labels),)


def _nearest(terms: Terms, starts: Sequence[ase.Atoms], number: int, model: models.Model) -> list[int]:
    """Which structure each walker starts from: of those where biases at rest are lowest in its window, in turn."""
    at_rest = [term for term in terms if term.bias.static and term.variables.names]
    structures = from_atoms(list(starts), model.table)
    zero = jnp.zeros(())

    def energy(walker: Any, first: Structure, structure: Structure) -> Any:
        states = [(term, term.bias.init(first, walker)) for term in at_rest]
        return zero + sum(
            term.bias.energy(own, term.variables.values(structure), zero, structure, zero) for term, own in states
        )

    def each(structures: Structure) -> Any:
        first = jax.tree.map(lambda x: x[0], structures)
        of_walker = jax.vmap(energy, (None, None, 0))
        return jax.vmap(of_walker, (0, None, None))(jnp.arange(number), first, structures)

    energies = np.asarray(jax.jit(each)(structures))
    lowest = [np.flatnonzero(row <= row.min() + ALIKE) for row in energies]
    return [int(rows[walker % len(rows)]) for walker, rows in enumerate(lowest)]


def number_of_frames(walkers: Prepared, simulation: Simulation) -> int:
    """Of each walker."""
    spacing = walkers.sampler.timestep * (simulation.every or EVERY)
    return max(1, math.ceil(simulation.length * 1e3 / spacing - 1e-9))


def run(
    walkers: Prepared,
    simulation: Simulation,
    folder: Path | None,
    say: Callable[[str], None],
    keep: int = 0,
    watch: Callable[[Frames], None] | None = None,
) -> tuple[Series, dict[int, list[ase.Atoms]]]:
    """Moves the walkers for `simulation.length`, or until the model is unsure of all of them.

    Frames are added to the trajectory in the folder as they come. With biases that walkers share or exchange the first
    of them to be unsure ends the dynamics of all. Returns what was written down, and evenly spaced about `keep`
    structures: of all walkers, by the numbers of their frames. `watch` is called with all frames as they come.
    """
    model, step, steps = walkers.surface.model, walkers.sampler.timestep, simulation.every or EVERY
    wanted = number_of_frames(walkers, simulation)
    moves = program(
        walkers.surface,
        walkers.sampler,
        walkers.terms,
        walkers.starts,
        simulation.seed,
        steps,
        drive=simulation.explore.drive or "mean",
    )
    shared = any(term.bias.shared or term.bias.couples for term in walkers.terms)
    every = max(1, math.ceil(wanted * len(walkers.starts) / keep)) if keep else wanted + 1
    state, parts = moves.start, []
    kept: dict[int, list[ase.Atoms]] = {}
    alive = np.ones(len(walkers.starts), bool)
    done = 0
    while done < wanted and alive.any():
        number = min(AT_ONCE, wanted - done)
        state, frames = moves.onward(state, number)
        time = 1e-3 * step * steps * np.arange(done + 1, done + number + 1)
        if watch is not None:
            watch(frames)
        part, alive = _judged(walkers, simulation, frames, time, alive, shared)
        if folder is not None:
            where = map(tuple, np.argwhere(part.counts).tolist())
            files.append(folder / TRAJECTORY, (_frame(moves, model, frames, part, *each) for each in where))
        for time_ in (at for at in range(number) if keep and (done + at) % every == 0):
            own = range(len(alive))
            kept[done + time_] = [door.to_atoms(_frame(moves, model, frames, part, time_, each)) for each in own]
        parts.append(part)
        done += number
        say(f"{time[-1]:.3g} of {simulation.length:g} ps, {int(alive.sum())} of {len(alive)} walkers")
    return _joined(parts), kept


def _judged(
    walkers: Prepared, simulation: Simulation, frames: Frames, time: np.ndarray, alive: np.ndarray, shared: bool
) -> tuple[Series, Bool[np.ndarray, "w"]]:
    """What is written down of frames, and which walkers go on."""
    model = walkers.surface.model
    known = models.has_spread(model)
    supported = (frames.novelty <= 1) & ~frames.unknown
    novelty = np.where(supported, np.nan if model.support is None else frames.novelty, np.inf)
    error = bounds(model.calibration, frames.spread, novelty)
    unsure = (frames.cause != PHYSICAL) | (known & ~(supported & _within(simulation, error, frames.spread)))
    stops = simulation.unsure != "go"
    if not stops:
        unsure = frames.cause != PHYSICAL
    elif shared:
        unsure = np.broadcast_to(unsure.any(axis=1, keepdims=True), unsure.shape)
    ended = np.cumsum(unsure, axis=0) > 0
    counts = alive & ~ended if stops else ~unsure
    species = np.asarray(frames.structure.species)[0, 0]
    reference = float(model.reference[species[species >= 0]].sum())
    series = Series(
        time=time,
        energy=frames.energy.astype(float) + reference,
        temperature=frames.temperature,
        spread=frames.spread,
        error=error,
        supported=supported,
        cause=frames.cause,
        counts=counts,
        report={name: np.asarray(values, float) for name, values in frames.report.items()},
        offsets=frames.offsets,
    )
    return series, alive & ~ended[-1] if stops else alive


def _within(simulation: Simulation, error: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Whether estimated errors, or spreads where there is no estimate, are within the limit."""
    value = np.where(np.isnan(error), spread, error)
    return np.full(value.shape, True) if simulation.limit is None else value <= simulation.limit


def _frame(moves: Program, model: models.Model, frames: Frames, series: Series, time: int, walker: int) -> door.Frame:
    """One walker's frame, with what was written down of it."""
    structure: Any = Structure(*(np.asarray(leaf)[time, walker] for leaf in frames.structure))  # pyright: ignore
    place: Any = np.array(structure.position, float)
    place[: len(moves.shift)] = position(moves, frames, time, walker)
    info = {
        "walker": walker,
        "time_ps": float(series.time[time]),
        "model_energy": float(series.energy[time, walker]),
        "force_spread": float(series.spread[time, walker]),
        "temperature": float(series.temperature[time, walker]),
    } | {name: float(values[time, walker]) for name, values in series.report.items()}
    velocity = frames.velocity[time, walker, : len(moves.shift)]
    arrays = (("velocity", velocity.astype(float)),) if np.isfinite(velocity).all() else ()
    frame = to_frame(structure._replace(position=place), model.table)
    return frame._replace(carried=Carried(tuple(info.items()), arrays))


def _joined(parts: Sequence[Series]) -> Series:
    def joined(name: str) -> Any:
        values = [getattr(part, name) for part in parts]
        if isinstance(values[0], dict):
            return {key: np.concatenate([each[key] for each in values]) for key in values[0]}
        return np.concatenate(values)

    return Series(*(joined(name) for name in Series._fields))


def variables(series: Series) -> dict[str, np.ndarray]:
    """Values [t w] of the variables of biases, by name."""
    return {name.removeprefix(VALUE): values for name, values in series.report.items() if name.startswith(VALUE)}


def biases(series: Series) -> dict[str, np.ndarray]:
    """Energies [t w] of the biases, eV, by name."""
    named = ((name.removeprefix(ENERGY), each) for name, each in series.report.items() if name.startswith(ENERGY))
    return {name: values for name, values in named if name != OBSERVED}


def record(walkers: Prepared, simulation: Simulation, series: Series) -> dict[str, Any]:
    """What came of a simulation, as JSON has it."""
    first = np.array([np.argmin(counts) if not counts.all() else len(counts) for counts in series.counts.T])
    reasons = [
        "end of the simulation" if at == len(series.time)
        else _reason(simulation, series, int(at), walker) for walker, at in enumerate(first)
    ]  # fmt: skip
    counts, known = series.counts, walkers.surface.model.support is not None
    return {
        "explorer": simulation.explore.part.name,
        "walkers": counts.shape[1],
        "length": float(series.time[-1]),
        "frames": int(counts.sum()),
        "lengths": [float(series.time[at - 1]) if at else 0.0 for at in first],
        "ended": reasons,
        "temperature": _mean(series.temperature, counts),
        "energy": _mean(series.energy, counts),
        "force_spread": _mean(series.spread, counts),
        "estimated_error": _mean(series.error, counts),
        "supported": _mean(series.supported, known & np.ones_like(counts)),
        "variables": {name: _mean(values, counts) for name, values in variables(series).items()},
        "seed": simulation.seed,
    }


def to_the_end(walkers: Prepared, simulation: Simulation, series: Series, what: str) -> None:
    """Raises InputError, for what is to be told of the frames, where walkers came to an end early."""
    if series.counts.all():
        return
    ended = np.array([series.time[np.argmin(c)] if not c.all() else np.inf for c in series.counts.T])
    walker = int(np.argmin(ended))
    why = record(walkers, simulation, series)["ended"][walker]
    when = f"walker {walker} ended at {ended[walker]:.3g} ps ({why})"
    more = "learn what it met, or give unsure=go"
    if simulation.unsure != "stop":
        more = "keep it by a wall, or learn what it met"
    raise InputError(f"{what}: {when}; {more}")


def _mean(values: np.ndarray, counts: np.ndarray) -> float | None:
    chosen = np.asarray(values, float)[counts]
    chosen = chosen[np.isfinite(chosen)]
    return float(chosen.mean()) if len(chosen) else None


def _reason(simulation: Simulation, series: Series, at: int, walker: int) -> str:
    if series.cause[at, walker] != PHYSICAL:
        return f"not physical: {CAUSES[series.cause[at, walker]]}"
    if not series.supported[at, walker]:
        return "unlike what the model was trained on"
    within = _within(simulation, series.error[at, walker], series.spread[at, walker])
    return "another walker was unsure" if within else "estimated error above the limit"


def save(folder: Path, record: dict[str, Any], series: Series) -> None:
    """Writes the record and the series."""
    arrays = {name: value for name, value in series._asdict().items() if isinstance(value, np.ndarray)}
    arrays |= {f"report/{name}": value for name, value in series.report.items()}
    arrays |= {f"offset/{name}": value for name, value in series.offsets.items()}
    np.savez_compressed(folder / SERIES, allow_pickle=False, **arrays)
    (folder / RESULT).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
