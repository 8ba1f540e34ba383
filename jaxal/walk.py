"""The walk between two looks: all walkers take steps under the committee's force, and every frame is judged.

The force is the mean of the members, or that of one member for each walker: then each sees the world as one sample of
what the committee holds possible (Thompson, Biometrika 25, 285, 1933). Frames are judged by all members either way. On
a mesh each device walks its own walkers; only the members' predictions travel.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from ase.data import covalent_radii
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from jaxal import ascent, devices, neighbors
from jaxal import committee as committees
from jaxal.committee import Committee
from jaxal.devices import MEMBERS, WALKERS
from jaxal.types import (
    Bias,
    Explorer,
    GateState,
    InputError,
    Neighbors,
    Params,
    Prediction,
    Score,
    Structure,
    WalkerState,
)

Drive = Literal["mean", "member"]


class Candidate(NamedTuple):
    """The last physical frame of a walker since the last look."""

    structure: Structure
    force: Float[Array, "n 3"]  # committee mean
    drive: Float[Array, "n 3"]  # what moves the walker: the force of the mean or of its member
    stress: Float[Array, "3 3"]  # of the same
    score: Float[Array, ""]
    bad: Bool[Array, ""]  # the walker has left the physical since


class Bounds(NamedTuple):
    """Beyond these a frame is not physical."""

    implausible: Float[Array, ""]  # eV/Å, largest estimated error
    closest: Float[Array, ""]  # smallest fraction of the sum of two atoms' covalent radii


class Walk(NamedTuple):
    """Where the walkers [w] have come."""

    walkers: WalkerState
    near: Neighbors
    candidate: Candidate
    full: Bool[Array, "w"]  # a physical frame had more neighbors than there is room for
    energy: Float[Array, "w"]  # committee mean of the last frame, eV
    drift: Any = ()  # what the bias has learned of each walker


def driving(
    drive: Drive, prediction: Prediction, walker: Int[Array, "w"]
) -> tuple[Float[Array, "w n 3"], Float[Array, "w 3 3"]]:
    """Forces and stresses that move walkers [w] of these numbers: those of the mean, or of member w mod m for walker w.

    Raises InputError where there is but one member to follow.
    """
    if drive == "mean":
        return prediction.force.mean(1), prediction.stress.mean(1)
    members = prediction.energy.shape[1]
    if members == 1:
        raise InputError(
            "explore.drive: member does not fit, there is one member to follow; give mean, or more members"
        )
    row, member = jnp.arange(walker.shape[0]), walker % members
    return prediction.force[row, member], prediction.stress[row, member]


def make_walk(
    committee: Committee,
    explorer: Explorer,
    score: Score,
    table: tuple[int, ...],
    near: neighbors.Spec,
    steps: int,
    drive: Drive = "mean",
    bias: Bias | None = None,
) -> Callable[[Params, GateState, Bounds, Walk], Walk]:
    """The function of (parameters [r], gate, bounds, walk) that takes `steps` steps."""
    radii = jnp.asarray(covalent_radii[list(table)], jnp.float32)

    def closeness(structure: Structure, near: Neighbors) -> Float[Array, ""]:
        """Smallest distance as a fraction of the sum of covalent radii."""
        vector, used = neighbors.vectors(structure, near)
        radius = radii[structure.species]
        both = radius[:, None] + radius.at[near.index].get(mode="fill", fill_value=1.0)
        return jnp.min(jnp.where(used, jnp.linalg.norm(vector, axis=-1) / both, jnp.inf))

    def judge(bounds: Bounds, gate: GateState, structure: Structure, near: Neighbors, prediction: Prediction, moves):
        """Score and plausibility of one walker's frame; `moves` are the force and stress that move the walker."""
        value = score(prediction, structure)
        force = prediction.force.mean(0)
        finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(force)) & jnp.all(jnp.isfinite(structure.position))
        # before the first calibration the factor is infinite: then the score itself is compared
        estimate = jnp.where(jnp.isfinite(gate.factor), gate.factor, 1.0) * value
        physical = finite & (estimate <= bounds.implausible) & (closeness(structure, near) >= bounds.closest)
        drive, stress = moves
        return Candidate(structure, force, drive, stress, value, ~physical)

    def own(number: int) -> Int[Array, "w"]:
        """The numbers of this device's walkers."""
        return jnp.arange(number) + (0 if committee.mesh is None else number * jax.lax.axis_index(WALKERS))

    def step(params: Params, gate: GateState, bounds: Bounds, walk: Walk) -> Walk:
        """One integration step of all walkers."""
        proposed = jax.vmap(explorer.propose)(walk.walkers)
        with jax.named_scope("neighbors"):
            found = neighbors.renewed(near, walk.near, proposed)
            close = neighbors.within(near, found, proposed)
        with jax.named_scope("forces"):
            prediction = committees.predict_local(committee, params, proposed, close)
        moves = driving(drive, prediction, own(proposed.charge.shape[0]))
        with jax.named_scope("gate"):
            now = jax.vmap(lambda s, n, p, m: judge(bounds, gate, s, n, p, m))(proposed, close, prediction, moves)
        push, drift = moves, walk.drift
        if bias is not None:
            with jax.named_scope("bias"):
                given = params, proposed, close, prediction
                extra, drift = ascent.push(bias, committee, drift, *given)
                push = moves[0] + extra.force, moves[1] + extra.stress
        walkers = jax.vmap(explorer.advance)(walk.walkers, proposed, *push)
        # from the first unphysical frame to the next look a walker keeps its last physical frame
        bad = walk.candidate.bad | now.bad
        candidate = where(bad, walk.candidate, now)._replace(bad=bad)
        full = walk.full | (close.overflow & ~bad)
        return Walk(walkers, found, candidate, full, prediction.energy.mean(1), drift)

    def walk(params: Params, gate: GateState, bounds: Bounds, start: Walk) -> Walk:
        return jax.lax.fori_loop(0, steps, lambda _, now: step(params, gate, bounds, now), start)

    return devices.split(committee.mesh, walk, (P(MEMBERS), P(), P(), P(WALKERS)), P(WALKERS))


def where(mask: Bool[Array, "w"], yes, no):
    """Row by row `yes` where the mask is true, else `no`, over a whole pytree [w ...]."""

    def pick(a, b):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(pick(jax.random.key_data(a), jax.random.key_data(b)))
        return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, yes, no)
