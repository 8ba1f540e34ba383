"""Walkers on a finished model's surface, in one compiled program: the steps of the learning loop, without its looks."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxal.acquire.score import max_force_spread
from jaxal.committee.evaluation import Committee, predict
from jaxal.committee.isolated_atoms import ISOLATED
from jaxal.core.placement import Placement, placement
from jaxal.core.types import GateState, Sampler, Start, Structure, WalkerState
from jaxal.core.units import TIME_UNIT
from jaxal.data import neighbors
from jaxal.deploy.model import KEPT
from jaxal.deploy.structures import placed
from jaxal.explore import bias_forces, stepping
from jaxal.explore.bias_forces import Terms
from jaxal.program.step import Bounds, Drive, Walk, driving, farthest, make_walk, nothing, reported
from jaxal.simulate.surface import CLOSEST, Surface

SKIN = 0.5  # Å
HOTTEST = 10.0  # as of `gate.hottest`: what is hotter is not physical


class Frames(NamedTuple):
    """What walkers [w] do, frame by frame [t]; numpy."""

    structure: Structure  # [t w n ...], moved near the origin by the `shift` of the program
    velocity: Float[np.ndarray, "t w n 3"]  # Å/fs; NaN of walkers that have none
    energy: Float[np.ndarray, "t w"]  # eV, without biases, relative to the reference energies
    temperature: Float[np.ndarray, "t w"]  # K
    spread: Float[np.ndarray, "t w"]  # eV/Å, the largest of an atom's force
    novelty: Float[np.ndarray, "t w"]  # above 1 it is not supported; 0 where the model does not know
    unknown: Bool[np.ndarray, "t w"]  # an isolated atom of a species that the model does not know so
    cause: Int[np.ndarray, "t w"]  # why it is not physical, of `program.step.CAUSES`
    report: dict[str, np.ndarray]  # [t w], energies of the biases, variables, what the sampler reports
    offsets: dict[str, np.ndarray]  # [t] eV, of the biases that grow, by name
    over: Bool[np.ndarray, "w"]  # at the last frame, whether the walker has come to its end


class Program(NamedTuple):
    """Walkers and what takes them on."""

    start: PyTree
    onward: Callable[[PyTree, int], tuple[PyTree, Frames]]  # (state, frames) -> (state, what happened)
    shift: Float[np.ndarray, "n 3"]  # Å, by which positions are moved near the origin


def program(
    surface: Surface,
    sampler: Sampler,
    terms: Terms,
    starts: Sequence[ase.Atoms],
    seed: int,
    every: int,
    drift: tuple[PyTree, ...] | None = None,
    drive: Drive = "mean",
) -> Program:
    """Walkers [w] from these structures, one from each, that keep a frame every so many steps.

    `drift` has the states of the biases [w] to begin with, where they are not what the biases themselves say. With
    `drive` member each walker follows one of the model's members, in turn. Nothing takes walkers back: a frame of
    dynamics that is not physical says so, and the walker goes on as it can. Raises InputError for structures that the
    model or the sampler cannot take, for a member to follow where there is one, and from `onward` for atoms that
    collapse.
    """
    batch, shift = placed(surface.model, starts)
    with jax.enable_x64(surface.double):
        structures = jax.device_put(batch)
        spec = neighbors.plan(structures, surface.committee.potential.cutoff, SKIN)
        state = _begun(surface, sampler, terms, drive, spec, structures, jax.random.key(seed))
        if drift is not None:
            state = state._replace(drift=jax.tree.map(lambda x, y: jnp.asarray(x, y.dtype), drift, state.drift))
        widest = farthest(surface.committee.potential.cutoff, structures)
    judged = not sampler.relaxes  # what does waits for images that are not physical, and nobody takes them back
    bounds = Bounds(
        implausible=jnp.asarray(jnp.inf, surface.dtype),
        closest=jnp.asarray(CLOSEST if judged else 0.0, surface.dtype),
        hottest=jnp.asarray(HOTTEST, surface.dtype),
        farthest=jnp.full(len(starts), widest if judged else jnp.inf, surface.dtype),
        known=_isolated(surface),
    )
    compiled = _onward(surface.committee, surface.model.table, sampler, terms, every, drive, placement())
    room = [spec]  # grows where neighbors overflow

    def onward(state: PyTree, number: int) -> tuple[PyTree, Frames]:
        def attempt(spec: neighbors.Spec):
            near = state.near if spec == room[0] else neighbors.find(spec, sampler.walkers(state.walkers))
            now = state._replace(near=near)
            after, frames, full = compiled(spec, number, surface.params, surface.support, bounds, now)
            return (after, frames), bool(np.any(full)), sampler.walkers(after.walkers)

        with jax.enable_x64(surface.double):
            (after, frames), room[0] = stepping.with_room(room[0], attempt)
            return after, jax.tree.map(np.asarray, frames)

    return Program(state, onward, shift)


def position(moves: Program, frames: Frames, time: int, walker: int) -> Float[np.ndarray, "n 3"]:
    """Where the atoms of a walker are at a frame, Å, in the place of the structures that it began with."""
    return np.asarray(frames.structure.position[time, walker, : len(moves.shift)], float) - moves.shift


def _isolated(surface: Surface) -> Bool[Array, "s"]:
    """The species of which the model knows isolated atoms."""
    there = surface.params.get(ISOLATED)
    return jnp.zeros(len(surface.model.table), bool) if there is None else there["known"][0] > 0


def _begun(
    surface: Surface,
    sampler: Sampler,
    terms: Terms,
    drive: Drive,
    spec: neighbors.Spec,
    structures: Structure,
    key: Array,
) -> Walk:
    """Walkers at these structures."""
    return _beginning(surface.committee, sampler, terms, drive, placement())(spec, surface.params, structures, key)


@functools.lru_cache(KEPT)
def _beginning(
    committee: Committee, sampler: Sampler, terms: Terms, drive: Drive, where: Placement
) -> Callable[..., Walk]:
    """The compiled program of (room, parameters, structures, key) that begins walkers, on this platform."""
    del where

    def begin(spec: neighbors.Spec, params, structures, key):
        number = structures.charge.shape[0]
        near = neighbors.find(spec, structures)
        prediction = predict(committee, params, structures, neighbors.within(spec, near, structures))
        start = Start(structures, *driving(drive, prediction, jnp.arange(number)))
        force, stress = prediction.force.mean(1), prediction.stress.mean(1)
        walkers = sampler.init(jax.random.split(key, number), start, jnp.zeros(number, jnp.int32))
        drift = bias_forces.begun(terms, sampler.walkers(walkers))
        candidate = nothing(structures, force, stress, drift, reported(sampler, terms, walkers))
        return Walk(walkers, near, candidate, jnp.zeros(number, bool), drift)

    return jax.jit(begin, static_argnums=0)


@functools.lru_cache(KEPT)
def _onward(
    committee: Committee,
    table: tuple[int, ...],
    sampler: Sampler,
    terms: Terms,
    every: int,
    drive: Drive,
    where: Placement,
) -> Callable:
    """The compiled program of (room, number of frames, parameters, support, bounds, state) that takes walkers on, on
    this platform.
    """
    del where

    def run(spec: neighbors.Spec, number: int, params, support, bounds: Bounds, state: Walk):
        none, zero = jnp.full((), jnp.nan, bounds.implausible.dtype), jnp.zeros((), jnp.int32)
        gate = GateState(none, none, none, zero, zero)
        walk = make_walk(committee, sampler, max_force_spread, table, spec, every, drive, terms)

        def frame(state: Walk, _):
            # each frame is judged for itself
            physical = jnp.zeros_like(state.candidate.cause)
            state = state._replace(candidate=state.candidate._replace(cause=physical))
            after = walk(params, gate, support, bounds, state)
            seen, now = after.candidate, sampler.walkers(after.walkers)
            offsets = {
                term.name: term.bias.offset(jax.tree.map(lambda x: x[0], learned))
                for term, learned in zip(terms, after.drift, strict=True)
                if term.bias.offset is not None
            }
            values = seen.energy, seen.temperature, seen.score, seen.novelty, seen.unknown, seen.cause, seen.report
            return after, (now, _velocity(after.walkers, now), *values, offsets)

        after, kept = jax.lax.scan(frame, state, None, length=number)
        last = jnp.zeros(after.full.shape, bool) if sampler.over is None else sampler.over(after.walkers)
        frames: Any = Frames(*kept, last)  # pyright: ignore[reportArgumentType]  of JAX in here
        return after._replace(full=jnp.zeros_like(after.full)), frames, after.full

    return jax.jit(run, static_argnums=(0, 1))


def _velocity(walkers: PyTree, structure: Structure) -> Float[Array, "w n 3"]:
    """Å/fs, of what has a momentum."""
    if isinstance(walkers, WalkerState) and hasattr(walkers.engine, "momentum"):
        return walkers.engine.momentum / walkers.engine.mass / TIME_UNIT
    return jnp.full_like(structure.position, jnp.nan)
