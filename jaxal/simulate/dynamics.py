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
from jaxal.simulate.program import Frames, Program, program
from jaxal.simulate.surface import Surface, surface
from jaxal.uncertainty.bound import bounds

AT_ONCE = 50  # frames between two looks from outside
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
    """Which structure each walker starts from: in turn, or where biases at rest have windows the nearest to its own."""
    at_rest = [term for term in terms if term.bias.static and term.variables.names]
    if len(starts) == 1 or not at_rest:
        return [walker % len(starts) for walker in range(number)]
    structures = jax.tree.map(jnp.asarray, from_atoms(list(starts), model.table))
    first = jax.tree.map(lambda x: x[0], structures)
    zero = jnp.zeros(())

    def energy(walker: Any, structure: Structure) -> Any:
        states = [(term, term.bias.init(first, walker)) for term in at_rest]
        return sum(
            term.bias.energy(own, term.variables.values(structure), zero, structure, zero) for term, own in states
        )

    each = jax.vmap(lambda walker: jax.vmap(lambda structure: energy(walker, structure))(structures))
    return np.argmin(np.asarray(each(jnp.arange(number))), axis=1).tolist()


def run(
    walkers: Prepared, simulation: Simulation, folder: Path | None, say: Callable[[str], None]
) -> tuple[Series, list[ase.Atoms]]:
    """Moves the walkers for `simulation.length`, or until the model is unsure of all of them.

    Frames are added to the trajectory in the folder as they come. With biases that walkers share the first of them to
    be unsure ends the dynamics of all. Returns what was written down, and the structures of the frames that count,
    walker by walker within each frame.
    """
    model, step = walkers.surface.model, walkers.sampler.timestep
    wanted = max(1, math.ceil(simulation.length * 1e3 / (step * simulation.every) - 1e-9))
    moves = program(walkers.surface, walkers.sampler, walkers.terms, walkers.starts, simulation.seed, simulation.every)
    shared = any(term.bias.shared for term in walkers.terms)
    state, parts, kept = moves.start, [], []
    alive = np.ones(len(walkers.starts), bool)
    done = 0
    while done < wanted and alive.any():
        number = min(AT_ONCE, wanted - done)
        state, frames = moves.onward(state, number)
        time = 1e-3 * step * simulation.every * np.arange(done + 1, done + number + 1)
        part, alive = _judged(walkers, simulation, frames, time, alive, shared)
        atoms = _atoms(moves, model, frames, part)
        if folder is not None:
            files.append(folder / TRAJECTORY, (frame for frame, _ in atoms))
        kept += [each for _, each in atoms]
        parts.append(part)
        done += number
        say(f"{time[-1]:.3g} of {simulation.length:g} ps, {int(alive.sum())} of {len(alive)} walkers")
    return _joined(parts), kept


def _judged(
    walkers: Prepared, simulation: Simulation, frames: Frames, time: np.ndarray, alive: np.ndarray, shared: bool
) -> tuple[Series, Bool[np.ndarray, "w"]]:
    """What is written down of frames, and which walkers go on."""
    model = walkers.surface.model
    error = bounds(model.calibration, frames.spread, frames.novelty)
    known = models.has_spread(model)
    supported = (frames.novelty <= 1) | (model.support is None)
    unsure = (frames.cause != PHYSICAL) | (known & ~supported)
    if simulation.limit is not None and known:
        unsure |= ~(np.where(np.isnan(error), frames.spread, error) <= simulation.limit)
    stops = simulation.unsure != "go"
    if not stops:
        unsure = frames.cause != PHYSICAL
    elif shared:
        unsure = np.broadcast_to(unsure.any(axis=1, keepdims=True), unsure.shape)
    ended = np.cumsum(unsure, axis=0) > 0
    counts = alive & ~ended if stops else ~unsure
    species = np.asarray(frames.structure.species)[0, 0]
    reference = float(model.reference[species[species >= 0]].sum())
    offsets = {}
    for term, learned in zip(walkers.terms, frames.learned, strict=True):
        if term.bias.offset is not None:
            offsets[term.name] = np.full(len(time), float(jax.jit(term.bias.offset)(learned)))
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
        offsets=offsets,
    )
    return series, alive & ~ended[-1] if stops else alive


def _atoms(moves: Program, model: models.Model, frames: Frames, series: Series) -> list[tuple[Any, ase.Atoms]]:
    """The frames that count, for the file and as ASE's atoms."""
    out = []
    for at, walker in np.argwhere(series.counts):
        structure: Any = Structure(*(np.asarray(leaf)[at, walker] for leaf in frames.structure))  # pyright: ignore
        place: Any = np.asarray(structure.position, float)
        place[: len(moves.shift)] -= moves.shift
        frame = to_frame(structure._replace(position=place), model.table)
        info = {
            "walker": int(walker),
            "time_ps": float(series.time[at]),
            "model_energy": float(series.energy[at, walker]),
            "force_spread": float(series.spread[at, walker]),
            "temperature": float(series.temperature[at, walker]),
        } | {name: float(values[at, walker]) for name, values in series.report.items()}
        velocity = frames.velocity[at, walker]
        arrays = (("velocity", velocity.astype(float)),) if np.isfinite(velocity).all() else ()
        carried = Carried(tuple(info.items()), arrays)
        frame = frame._replace(carried=carried)
        out.append((frame, door.to_atoms(frame)))
    return out


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
        else _reason(series, int(at), walker) for walker, at in enumerate(first)
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


def _mean(values: np.ndarray, counts: np.ndarray) -> float | None:
    chosen = np.asarray(values, float)[counts]
    chosen = chosen[np.isfinite(chosen)]
    return float(chosen.mean()) if len(chosen) else None


def _reason(series: Series, at: int, walker: int) -> str:
    if series.cause[at, walker] != PHYSICAL:
        return f"not physical: {CAUSES[series.cause[at, walker]]}"
    if not series.supported[at, walker]:
        return "unlike what the model was trained on"
    return "estimated error above the limit" if series.counts[:at].all() else "another walker was unsure"


def save(folder: Path, record: dict[str, Any], series: Series) -> None:
    """Writes the record and the series."""
    arrays = {name: value for name, value in series._asdict().items() if isinstance(value, np.ndarray)}
    arrays |= {f"report/{name}": value for name, value in series.report.items()}
    arrays |= {f"offset/{name}": value for name, value in series.offsets.items()}
    np.savez_compressed(folder / SERIES, allow_pickle=False, **arrays)
    (folder / RESULT).write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
