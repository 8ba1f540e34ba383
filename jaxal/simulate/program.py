"""Walkers on a finished model's surface, in one compiled program: the steps of the learning loop, without its looks."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxal.acquire.score import max_force_spread
from jaxal.committee.evaluation import predict
from jaxal.core.errors import InputError
from jaxal.core.types import GateState, Sampler, Start, Structure, WalkerState
from jaxal.data import neighbors
from jaxal.deploy.structures import placed
from jaxal.explore import bias_forces
from jaxal.explore.bias_forces import Terms
from jaxal.program.step import Bounds, Walk, farthest, make_walk, nothing, reported
from jaxal.simulate.surface import Surface

SKIN = 0.5  # Å
CLOSEST, HOTTEST = 0.5, 10.0  # as of `gate`: what is nearer or hotter is not physical
REPLAYS = 8  # with more room each time


class Frames(NamedTuple):
    """What walkers [w] do, frame by frame [t]; numpy, and `learned` as of the last frame."""

    structure: Structure  # [t w n ...], moved near the origin by the `shift` of the program
    velocity: Float[np.ndarray, "t w n 3"]  # Å/fs; NaN of walkers that have none
    energy: Float[np.ndarray, "t w"]  # eV, without biases, relative to the reference energies
    temperature: Float[np.ndarray, "t w"]  # K
    spread: Float[np.ndarray, "t w"]  # eV/Å, the largest of an atom's force
    novelty: Float[np.ndarray, "t w"]  # above 1 it is not supported; 0 where the model does not know
    cause: Int[np.ndarray, "t w"]  # why it is not physical, of `program.step.CAUSES`
    report: dict[str, np.ndarray]  # [t w], energies of the biases, variables, what the sampler reports
    over: Bool[np.ndarray, "w"]  # at the last frame, whether the walker has come to its end
    learned: tuple[Any, ...]  # by the biases


class Program(NamedTuple):
    """Walkers and what takes them on."""

    start: PyTree
    onward: Callable[[PyTree, int], tuple[PyTree, Frames]]  # (state, frames) -> (state, what happened)
    shift: Float[np.ndarray, "n 3"]  # Å, by which positions are moved near the origin


def program(
    surface: Surface, sampler: Sampler, terms: Terms, starts: Sequence[ase.Atoms], seed: int, every: int
) -> Program:
    """Walkers [w] from these structures, one from each, that keep a frame every so many steps.

    Nothing takes them back: a frame of dynamics that is not physical says so, and the walker goes on as it can. Raises
    InputError for structures that the model or the sampler cannot take, and from `onward` for atoms that collapse.
    """
    batch, shift = placed(surface.model, starts)
    with jax.enable_x64(surface.double):
        structures = jax.tree.map(jnp.asarray, batch)
        spec = neighbors.plan(structures, surface.committee.potential.cutoff, SKIN)
        state, spec = _begun(surface, sampler, terms, spec, structures, jax.random.key(seed))
        widest = farthest(surface.committee.potential.cutoff, structures)
    moves = not sampler.relaxes  # what does waits for images that are not physical, and nobody takes them back
    bounds = Bounds(
        implausible=jnp.asarray(jnp.inf, surface.dtype),
        closest=jnp.asarray(CLOSEST if moves else 0.0, surface.dtype),
        hottest=jnp.asarray(HOTTEST, surface.dtype),
        farthest=jnp.full(len(starts), widest if moves else jnp.inf, surface.dtype),
        known=jnp.zeros(len(surface.model.table), bool),
    )
    compiled = jax.jit(_frames(surface, sampler, terms, every), static_argnums=(0, 1))
    room = [spec]  # grows where neighbors overflow

    def onward(state: PyTree, number: int) -> tuple[PyTree, Frames]:
        with jax.enable_x64(surface.double):
            for again in range(REPLAYS + 1):
                after, frames, full = compiled(room[0], number, surface.params, surface.support, bounds, state)
                if not np.any(full):
                    return after, jax.tree.map(np.asarray, frames)
                at = sampler.walkers(after.walkers)
                room[0] = neighbors.larger(room[0], jax.device_get(at), 0.9 ** (again + 1))
                state = state._replace(near=neighbors.find(room[0], sampler.walkers(state.walkers)))
        raise InputError(
            f"dynamics: there are still more neighbors than room after it was enlarged {REPLAYS} times; the atoms "
            "collapse: give a shorter timestep or a lower temperature"
        )

    return Program(state, onward, shift)


def _begun(
    surface: Surface, sampler: Sampler, terms: Terms, spec: neighbors.Spec, structures: Structure, key: Array
) -> tuple[Walk, neighbors.Spec]:
    """Walkers at these structures, and room for their neighbors."""
    committee, number = surface.committee, structures.charge.shape[0]

    def begin(params, structures, key):
        near = neighbors.find(spec, structures)
        prediction = predict(committee, params, structures, neighbors.within(spec, near, structures))
        force, stress = prediction.force.mean(1), prediction.stress.mean(1)
        start = Start(structures, force, stress)
        walkers = sampler.init(jax.random.split(key, number), start, jnp.zeros(number, jnp.int32))
        drift = bias_forces.begun(terms, sampler.walkers(walkers))
        candidate = nothing(structures, force, stress, drift, reported(sampler, terms, walkers))
        return Walk(walkers, near, candidate, jnp.zeros(number, bool), drift)

    return jax.jit(begin)(surface.params, structures, key), spec


def _frames(surface: Surface, sampler: Sampler, terms: Terms, every: int):
    """The function to compile, of (room, number of frames, parameters, support, bounds, state)."""
    model, committee = surface.model, surface.committee
    none = jnp.asarray(jnp.nan, surface.dtype)
    zero = jnp.zeros((), jnp.int32)
    gate = GateState(none, none, none, zero, zero)

    def run(spec: neighbors.Spec, number: int, params, support, bounds: Bounds, state: Walk):
        walk = make_walk(committee, sampler, max_force_spread, model.table, spec, every, bias=terms)

        def frame(state: Walk, _):
            # each frame is judged for itself
            physical = jnp.zeros_like(state.candidate.cause)
            state = state._replace(candidate=state.candidate._replace(cause=physical))
            after = walk(params, gate, support, bounds, state)
            seen, now = after.candidate, sampler.walkers(after.walkers)
            values = seen.energy, seen.temperature, seen.score, seen.novelty, seen.cause, seen.report
            return after, (now, _velocity(after.walkers, now), *values)

        after, kept = jax.lax.scan(frame, state, None, length=number)
        last = jnp.zeros(after.full.shape, bool) if sampler.over is None else sampler.over(after.walkers)
        shared = tuple(
            jax.tree.map(lambda x: x[0], learned) if term.bias.shared else learned
            for term, learned in zip(terms, after.drift, strict=True)
        )
        frames: Any = Frames(*kept, last, shared)  # pyright: ignore[reportArgumentType]  of JAX in here
        return after._replace(full=jnp.zeros_like(after.full)), frames, after.full

    return run


def _velocity(walkers: PyTree, structure: Structure) -> Float[Array, "w n 3"]:
    """Å/fs, of what has a momentum."""
    if isinstance(walkers, WalkerState) and hasattr(walkers.engine, "momentum"):
        from jaxal.core.units import TIME_UNIT

        return walkers.engine.momentum / walkers.engine.mass / TIME_UNIT
    return jnp.full_like(structure.position, jnp.nan)
