"""The candidates of a live task: frames that the committee's walkers visit, in one program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxal.acquire.fits import measure_of
from jaxal.acquire.gate import conformal
from jaxal.committee import evaluation as committees
from jaxal.committee.evaluation import Committee
from jaxal.config.biases import terms_of
from jaxal.contest.programs import over_seeds
from jaxal.contest.schema import Entrant, Live
from jaxal.core.types import Key, Neighbors, Params, Start, Structure
from jaxal.data import fragments, neighbors
from jaxal.data.structure import Table
from jaxal.explore.bias_forces import begun, rewound
from jaxal.explore.stepping import sampler, where
from jaxal.program.reports import Trusted
from jaxal.program.step import Bounds, Walk, driving, farthest, make_walk, nothing, reported


class Visited(NamedTuple):
    """What the walkers [w] of one seed came upon in a round; candidates [c] are looks times walkers."""

    structure: Structure  # [c]
    force: Float[Array, "c n 3"]  # committee mean, eV/Å
    score: Float[Array, "c"]
    seen: Bool[Array, "c"]  # False: the walker was not on a physical frame between two looks
    end: Structure  # [w] the last frame that the walker is trusted with
    lost: Float[Array, "w"]  # fraction of the looks at which it had left the physical


def make_walking(
    committee: Committee, live: Live, entrant: Entrant, table: Table, near: neighbors.Spec, start: ase.Atoms
) -> Callable[..., Any]:
    """(weights, factor, structures [w], key data) -> Visited, for all seeds.

    The strategy's score judges the frames; its drive and the biases of task and strategy move the walkers, and what a
    bias learns is of one round. `start` is the first structure of the task.
    `factor` times a score that tells an error is the estimated error; before it is known (infinite), and for other
    scores, the largest force spread in eV/Å is taken for it.
    As in a run, walkers that leave the physical go back to their last trusted frame with new momenta, and the score of
    a frame with an isolated atom is infinite where the start structures have no such atom of its species.
    """
    score, drive = entrant.score.bind(), entrant.drive or live.explore.drive
    bias = terms_of((*live.bias, *entrant.bias), score, start)

    def walking(params: Params, factor: Float[Array, ""], starts: Structure, key: Array) -> Visited:
        dtype = starts.position.dtype
        moving = sampler(live.explore.part.bind()())
        tells = measure_of(entrant.score.name, dict(entrant.score.options)).spread
        judging = conformal() if tells else None
        walk = make_walk(committee, moving, score, table, near, live.every, drive, bias, judging)
        gate = conformal().init()._replace(factor=factor)
        number = starts.charge.shape[0]
        listed = neighbors.find(near, starts)
        said = committees.predict(committee, params, starts, listed)
        drift = begun(bias, starts)
        trusted = Trusted(starts, *driving(drive, said, jnp.arange(number)), drift)
        every = jnp.ones(number, bool)
        known = fragments.isolated_species(near.cutoff, starts, listed, every, len(table))
        implausible, closest, hottest = (jnp.asarray(x, dtype) for x in (live.implausible, live.closest, live.hottest))
        widest = jnp.full(number, farthest(near.cutoff, starts).astype(dtype))
        bounds = Bounds(implausible, closest, hottest, widest, known)
        first, later = jax.random.split(jax.random.wrap_key_data(key))
        keys = jax.random.split(first, number)
        walkers = moving.init(keys, Start(*trusted[:3]), jnp.zeros(number, jnp.int32))
        names = reported(moving, bias, walkers)

        def look(carry: tuple[Any, Neighbors, Trusted, Any], key: Key) -> Any:
            walkers, listed, trusted, drift = carry
            begin = Walk(walkers, listed, nothing(*trusted, names=names), jnp.zeros(number, bool), drift)
            end = walk(params, gate, None, bounds, begin)
            now, left = end.candidate, end.candidate.bad | end.full
            seen = jnp.isfinite(now.score) & ~end.full
            trusted = where(seen & ~left, Trusted(now.structure, now.drive, now.stress, now.drift), trusted)
            walkers = moving.rewind(jax.random.split(key, number), end.walkers, left, Start(*trusted[:3]))
            time = moving.timestep * moving.steps(walkers).astype(dtype)
            drift = rewound(bias, left, end.drift, trusted.drift, trusted.structure, time)
            score = jnp.where(now.unknown, jnp.inf, now.score)
            return (walkers, end.near, trusted, drift), (now.structure, now.force, score, seen, left)

        keys = jax.random.split(later, live.looks)
        (_, _, trusted, _), (*looks, left) = jax.lax.scan(look, (walkers, listed, trusted, drift), keys)
        flat: Any = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tuple(looks))
        structure, force, values, seen = flat
        return Visited(structure, force, values, seen, trusted.structure, jnp.mean(left.astype(dtype), axis=0))

    return over_seeds(walking)


def onwards(visited: Visited, starts: Structure) -> Structure:
    """Where the walkers [s w] begin the next round: where they have come, or anew if they were mostly lost."""
    lost = np.asarray(visited.lost) > 0.5

    def pick(here: Any, start: Any) -> Any:
        mask = lost.reshape(*lost.shape, *(1,) * (np.ndim(here) - 2))
        return np.where(mask, np.asarray(start), np.asarray(here))

    return jax.tree.map(pick, visited.end, starts)


def factor_of(score: np.ndarray, error: np.ndarray) -> float:
    """What the score is multiplied with to estimate an error: the median ratio for labels that are not trained on yet.

    Infinite without such labels. A bound would not do here: of a poor committee it leaves the walkers nowhere to go.
    """
    use = np.isfinite(score) & np.isfinite(error) & (score > 0)
    return float(np.median(error[use] / score[use])) if use.any() else float("inf")
