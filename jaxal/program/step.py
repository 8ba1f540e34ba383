"""The walk between two looks: all walkers take steps under the committee's force, and every frame is judged.

The force is the mean of the members, or that of one member for each walker: then each sees the world as one sample of
what the committee holds possible (Thompson, Biometrika 25, 285, 1933). Frames are judged by all members either way. On
a mesh each device walks its own walkers; only the members' predictions travel.

A frame is not physical, and its walker is rewound, where the committee is far too uncertain, where atoms are too close,
where the walker is too hot for its bath, where the structure is in pieces, or where a number is not finite.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ase.data import covalent_radii
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxal.acquire.score import max_force_spread
from jaxal.committee import evaluation as committees
from jaxal.committee.evaluation import Committee
from jaxal.core import devices
from jaxal.core.devices import MEMBERS, WALKERS
from jaxal.core.types import (
    FORCE,
    Gate,
    GateState,
    InputError,
    Neighbors,
    Params,
    Prediction,
    Sampler,
    Score,
    Seen,
    Structure,
)
from jaxal.data import fragments, neighbors
from jaxal.data.padding import atoms_to, structures_to
from jaxal.explore import bias_forces, stepping
from jaxal.explore.bias_forces import Terms
from jaxal.explore.stepping import where
from jaxal.explore.walker import hottest, kelvin
from jaxal.uncertainty.support import Support, novelty

Drive = Literal["mean", "member"]
PHYSICAL, UNCERTAIN, CLOSE, HOT, APART, NOT_FINITE = range(6)
CAUSES = ("physical", "too uncertain", "too close", "too hot", "in pieces", "not finite")  # why a walker is rewound
FARTHEST = 1.5  # a gap wider by this factor than the cutoff, and than any gap at the start, is none of the dynamics'


class Candidate(NamedTuple):
    """The last physical frame of a walker since the last look."""

    structure: Structure
    energy: Float[Array, ""]  # committee mean, eV
    force: Float[Array, "n 3"]  # committee mean
    drive: Float[Array, "n 3"]  # what moves the walker: the force of the mean or of its member
    stress: Float[Array, "3 3"]  # of the same
    score: Float[Array, ""]
    novelty: Float[Array, ""]  # above 1 the structure is unlike all that was trained on
    temperature: Float[Array, ""]  # K
    unknown: Bool[Array, ""]  # an atom has no neighbor, and none of its species was trained on so
    cause: Int[Array, ""]  # why the walker has left the physical since, of `CAUSES`
    drift: Any  # what the biases had learned of the walker
    report: dict[str, Float[Array, ""]]  # by `reported`

    @property
    def bad(self) -> Bool[Array, ""]:
        """Whether the walker has left the physical since."""
        return self.cause != PHYSICAL


def nothing(
    structure: Structure,
    force: Float[Array, "w n 3"],
    stress: Float[Array, "w 3 3"],
    drift: Any = (),
    names: Sequence[str] = (),
) -> Candidate:
    """What walkers [w] have to show before their first step, with what moves them at their trusted frames.

    `names` are those of `reported`.
    A walker may be bad from the first step on: its score is below every threshold, so no gate asks for it.
    """
    number, dtype = structure.charge.shape[0], force.dtype
    absent, none = jnp.full(number, jnp.nan, dtype), jnp.zeros(number, bool)
    low, zero = jnp.full(number, -jnp.inf, dtype), jnp.zeros(number, dtype)
    physical = jnp.zeros(number, jnp.int32)
    report = dict.fromkeys(names, absent)
    return Candidate(structure, absent, force, force, stress, low, zero, absent, none, physical, drift, report)


def reported(sampler: Sampler, bias: Terms, walkers: PyTree) -> tuple[str, ...]:
    """Names of what is written down of each walker: energies of the biases, variables, and what the sampler reports."""
    own = () if sampler.report is None else jax.eval_shape(sampler.report, walkers)
    return *bias_forces.names(bias), *own


def joined(candidates: Sequence[Candidate]) -> Candidate:
    """Those of several groups as of one, padded to the atoms of the largest.

    What the biases have learned stays by group; energies and variables that a group has not are NaN.
    """
    size = max(candidate.force.shape[1] for candidate in candidates)
    padded = [
        candidate._replace(
            structure=structures_to(candidate.structure, size),
            force=atoms_to(candidate.force, size),
            drive=atoms_to(candidate.drive, size),
            drift=(),
            report={},
        )
        for candidate in candidates
    ]
    names = dict.fromkeys(name for candidate in candidates for name in candidate.report)
    report = {
        name: jnp.concatenate([c.report.get(name, jnp.full_like(c.energy, jnp.nan)) for c in candidates])
        for name in names
    }
    whole = padded[0] if len(padded) == 1 else jax.tree.map(lambda *x: jnp.concatenate(x), *padded)
    return whole._replace(drift=tuple(candidate.drift for candidate in candidates), report=report)


class Bounds(NamedTuple):
    """Beyond these a frame is not physical; and what is known of isolated atoms."""

    implausible: Float[Array, ""]  # eV/Å, largest estimated error
    closest: Float[Array, ""]  # smallest fraction of the sum of two atoms' covalent radii
    hottest: Float[Array, ""]  # largest kinetic temperature, as a multiple of the bath's
    farthest: Float[Array, "w"]  # Å, widest gap between two parts of a structure, for each walker
    known: Bool[Array, "s"]  # species that were trained on as isolated atoms


def farthest(cutoff: float, starts: Structure) -> Float[Array, ""]:
    """The widest gap, Å, that walkers from these structures [b] may come to: `FARTHEST` times the cutoff of the model,
    or the widest gap of a start where that is wider. Fragments that far apart have left each other.
    """
    return FARTHEST * jnp.maximum(jnp.max(_gaps(starts)), cutoff)


_gaps = jax.jit(jax.vmap(fragments.gap))


class Walk(NamedTuple):
    """Where the walkers [w] have come."""

    walkers: PyTree  # the sampler's state
    near: Neighbors
    candidate: Candidate
    full: Bool[Array, "w"]  # a physical frame had more neighbors than there is room for
    drift: Any = ()  # what the biases have learned of each walker


def driving(
    drive: Drive, prediction: Prediction, walker: Int[Array, "w"]
) -> tuple[Float[Array, "w n 3"], Float[Array, "w 3 3"]]:
    """Forces and stresses that move walkers [w] of these numbers: those of the mean, or of member w mod m for walker w.

    Raises InputError where there is but one member to follow.
    """
    return _followed(drive, prediction.force, walker), _followed(drive, prediction.stress, walker)


def _followed(drive: Drive, values: Float[Array, "w m *x"], walker: Int[Array, "w"]) -> Float[Array, "w *x"]:
    """What the members say, of the mean or of the member that each walker follows."""
    if drive == "mean":
        return values.mean(1)
    members = values.shape[1]
    if members == 1:
        raise InputError(
            "explore.drive: member does not fit, there is one member to follow; give mean, or more members"
        )
    return values[jnp.arange(walker.shape[0]), walker % members]


def make_walk(
    committee: Committee,
    sampler: Sampler,
    score: Score,
    table: tuple[int, ...],
    near: neighbors.Spec,
    steps: int,
    drive: Drive = "mean",
    bias: Terms = (),
    gate: Gate | None = None,
    first: int = 0,
) -> Callable[[Params, GateState, Support | None, Bounds, Walk], Walk]:
    """The function of (parameters [r], gate, support, bounds, walk) that takes `steps` steps.

    `gate` is that of the states; where it is None, no error is estimated from the score. Without a support every
    structure is supported. `first` is the number of the first of these walkers in the run.
    """
    unit = FORCE if committee.uncertainty is None else committee.uncertainty.unit
    radii = jnp.asarray(covalent_radii[list(table)], jnp.float32)

    def closeness(structure: Structure, near: Neighbors) -> Float[Array, ""]:
        """Smallest distance as a fraction of the sum of covalent radii."""
        vector, used = neighbors.vectors(structure, near)
        radius = radii[structure.species]
        both = radius[:, None] + radius.at[near.index].get(mode="fill", fill_value=1.0)
        return jnp.min(jnp.where(used, jnp.linalg.norm(vector, axis=-1) / both, jnp.inf))

    def away(support: Support, prediction: Prediction, structure: Structure, near: Neighbors) -> Float[Array, ""]:
        return novelty(support, prediction.feature, structure, near, committee.potential.cutoff)

    def implied(state: GateState, value: Float[Array, ""], structure: Structure, prediction: Prediction):
        """The force error that a frame implies, eV/Å: estimated by the gate, or else the largest force spread.

        Zero where neither is in eV/Å: what has another unit is not compared.
        """
        spread = max_force_spread(prediction, structure) if unit == FORCE else jnp.zeros_like(value)
        if gate is None or not gate.estimates:
            return spread
        return jnp.where(jnp.isfinite(state.factor), state.factor * value, spread)

    def judge(
        bounds: Bounds,
        state: GateState,
        support: Support | None,
        structure: Structure,
        near_: Neighbors,
        prediction: Prediction,
        moves,
    ):
        """One walker's frame, judged but for its heat; `moves` are the force and stress that move the walker."""
        value = score(prediction, structure)
        energy, force = prediction.energy.mean(), prediction.force.mean(0)
        numbers = value, energy, force, prediction.stress, structure.position, structure.cell
        ceiling = jnp.inf if gate is None or gate.ceiling is None else gate.ceiling
        certain = (implied(state, value, structure, prediction) <= bounds.implausible) & (value <= ceiling)
        certain |= sampler.relaxes  # by the same way it would come here again
        causes = (
            (NOT_FINITE, ~_finite(numbers)),
            (CLOSE, ~(closeness(structure, near_) >= bounds.closest)),
            (UNCERTAIN, ~certain),
        )
        alone = fragments.unknown(near.cutoff, structure, near_, bounds.known)
        new = jnp.zeros_like(value) if support is None else away(support, prediction, structure, near_)
        drive, stress = moves
        kelvin = jnp.zeros_like(value)
        fields = structure, energy, force, drive, stress, value, new, kelvin, alone, _first(causes)
        return Candidate(*fields, (), {})

    def heated(bounds: Bounds, walkers: PyTree, candidate: Candidate) -> Candidate:
        """The same [w], now that the walkers have the momenta that belong to their frames."""
        degrees = sampler.degrees(walkers)
        heat = kelvin(sampler.kinetic(walkers), degrees)
        most = jnp.inf if sampler.bath is None else hottest(sampler.bath(walkers), bounds.hottest, degrees)
        too_hot = ~(heat <= most)
        spoiled = jax.vmap(lambda walker, hot: _first(((NOT_FINITE, ~_finite(walker)), (HOT, hot))))(walkers, too_hot)
        cause = jnp.where(candidate.bad, candidate.cause, spoiled)
        own = {} if sampler.report is None else sampler.report(walkers)
        heat = heat.astype(candidate.temperature.dtype)
        return candidate._replace(temperature=heat, cause=cause, report=candidate.report | own)

    def own(number: int) -> Int[Array, "w"]:
        """The numbers of this device's walkers."""
        return first + jnp.arange(number) + (0 if committee.mesh is None else number * jax.lax.axis_index(WALKERS))

    def step(params: Params, state: GateState, support: Support | None, bounds: Bounds, walk: Walk) -> Walk:
        """One integration step of all walkers."""

        def push(proposed: Structure, close: Neighbors) -> tuple[Seen, tuple[Candidate, Any]]:
            with jax.named_scope("forces"):
                prediction = committees.predict_local(committee, params, proposed, close)
            walker = own(proposed.charge.shape[0])
            moves = driving(drive, prediction, walker)
            energy = _followed(drive, prediction.energy, walker)
            with jax.named_scope("gate"):
                judged = jax.vmap(lambda s, n, p, m: judge(bounds, state, support, s, n, p, m))
                now = judged(proposed, close, prediction, moves)
            physical = ~(now.bad | walk.candidate.bad)
            seen = Seen(energy, *moves, now.score, physical)
            if not bias:
                return seen, (now, walk.drift)
            with jax.named_scope("bias"):
                time = sampler.timestep * (sampler.steps(walk.walkers) + 1).astype(proposed.position.dtype)
                at = params, proposed, close, prediction, time, physical
                extra, drift = bias_forces.push(bias, committee, walk.drift, *at)
            now = now._replace(drift=drift, report=extra.report)
            force, stress = seen.force + extra.force, seen.stress + extra.stress
            return seen._replace(energy=energy + extra.energy, force=force, stress=stress), (now, drift)

        taken = stepping.step(sampler, near, walk.walkers, walk.near, push, committee.mesh)
        walkers, new_near, close, (now, drift) = taken
        now = heated(bounds, walkers, now)
        # from the first unphysical frame to the next look a walker keeps its last physical frame
        cause = jnp.where(walk.candidate.bad, walk.candidate.cause, now.cause)
        candidate = where(cause != PHYSICAL, walk.candidate, now)._replace(cause=cause)
        full = walk.full | (close.overflow & (cause == PHYSICAL))
        return Walk(walkers, new_near, candidate, full, drift)

    def walk(params: Params, state: GateState, support: Support | None, bounds: Bounds, start: Walk) -> Walk:
        end = jax.lax.fori_loop(0, steps, lambda _, now: step(params, state, support, bounds, now), start)
        # what is far apart was so for many steps: it is enough to see it at the look
        candidate, width = end.candidate, jax.vmap(fragments.gap)(end.candidate.structure)
        apart = ~candidate.bad & ~(width <= bounds.farthest)
        cause = jnp.where(apart, APART, candidate.cause)
        return end._replace(candidate=where(apart, start.candidate, candidate)._replace(cause=cause))

    bounds = Bounds._make(P(WALKERS) if name == "farthest" else P() for name in Bounds._fields)
    return devices.split(committee.mesh, walk, (P(MEMBERS), P(), P(), bounds, P(WALKERS)), P(WALKERS))


def _finite(tree: Any) -> Bool[Array, ""]:
    """Whether all floating-point numbers of a pytree are finite."""
    leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    floats = [jnp.all(jnp.isfinite(leaf)) for leaf in leaves if jnp.issubdtype(leaf.dtype, np.floating)]
    return jnp.all(jnp.stack(floats))


def _first(causes: tuple[tuple[int, Bool[Array, ""]], ...]) -> Int[Array, ""]:
    """The first cause that holds, PHYSICAL where none does."""
    numbers, holds = zip(*causes, strict=True)
    return jnp.select(list(holds), [jnp.int32(number) for number in numbers], jnp.int32(PHYSICAL))
