"""The walk between two looks: all walkers take steps under the committee's mean force, and every frame is judged.

On a mesh each device walks its own walkers; only the members' predictions travel.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ase.data import covalent_radii
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float

from jaxal import ascent, devices, neighbors
from jaxal import committee as committees
from jaxal.committee import Committee
from jaxal.devices import MEMBERS, WALKERS
from jaxal.types import Bias, Explorer, GateState, Neighbors, Params, Prediction, Score, Structure, WalkerState


class Candidate(NamedTuple):
    """The last physical frame of a walker since the last look."""

    structure: Structure
    force: Float[Array, "n 3"]  # committee mean
    stress: Float[Array, "3 3"]
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


def make_walk(
    committee: Committee,
    explorer: Explorer,
    score: Score,
    table: tuple[int, ...],
    near: neighbors.Spec,
    steps: int,
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

    def judge(bounds: Bounds, gate: GateState, structure: Structure, near: Neighbors, prediction: Prediction):
        """Score and plausibility of one walker's frame."""
        value = score(prediction, structure)
        force = prediction.force.mean(0)
        finite = jnp.isfinite(value) & jnp.all(jnp.isfinite(force)) & jnp.all(jnp.isfinite(structure.position))
        # before the first calibration the factor is infinite: then the score itself is compared
        estimate = jnp.where(jnp.isfinite(gate.factor), gate.factor, 1.0) * value
        physical = finite & (estimate <= bounds.implausible) & (closeness(structure, near) >= bounds.closest)
        return Candidate(structure, force, prediction.stress.mean(0), value, ~physical)

    def step(params: Params, gate: GateState, bounds: Bounds, walk: Walk) -> Walk:
        """One integration step of all walkers."""
        proposed = jax.vmap(explorer.propose)(walk.walkers)
        with jax.named_scope("neighbors"):
            found = neighbors.renewed(near, walk.near, proposed)
            close = neighbors.within(near, found, proposed)
        with jax.named_scope("forces"):
            prediction = committees.predict_local(committee, params, proposed, close)
        with jax.named_scope("gate"):
            now = jax.vmap(lambda s, n, p: judge(bounds, gate, s, n, p))(proposed, close, prediction)
        drive, drift = (now.force, now.stress), walk.drift
        if bias is not None:
            with jax.named_scope("bias"):
                given = params, proposed, close, prediction
                push, drift = ascent.push(bias, committee, drift, *given)
                drive = now.force + push.force, now.stress + push.stress
        walkers = jax.vmap(explorer.advance)(walk.walkers, proposed, *drive)
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
