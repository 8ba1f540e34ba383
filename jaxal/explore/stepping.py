"""One step of all walkers, whatever asks for it: the program, validation and benchmarks take their steps here."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxal.core import devices
from jaxal.core.devices import WALKERS
from jaxal.core.types import Explorer, InputError, Key, Neighbors, Sampler, Seen, Start, Structure, WalkerState
from jaxal.data import neighbors
from jaxal.explore.walker import degrees_of_freedom, kinetic_energy

S = TypeVar("S")
REPLAYS = 8  # with more room each time


def per_walker(explorer: Explorer) -> Sampler:
    """The sampler that moves every walker by itself, as an explorer says."""

    def init(keys: Key, start: Start, steps: Int[Array, "w"]) -> WalkerState:
        return jax.vmap(explorer.init)(keys, *start, steps)

    def advance(walkers: WalkerState, structures: Structure, seen: Seen) -> WalkerState:
        return jax.vmap(explorer.advance)(walkers, structures, seen.force, seen.stress)

    def rewind(keys: Key, walkers: WalkerState, mask: Bool[Array, "w"], start: Start) -> WalkerState:
        return where(mask, init(keys, start, walkers.step), walkers)

    def bath(walkers: WalkerState) -> Float[Array, "w"]:
        assert explorer.bath is not None
        return jax.vmap(explorer.bath)(walkers.step)

    return Sampler(
        init=init,
        propose=jax.vmap(explorer.propose),
        advance=advance,
        rewind=rewind,
        walkers=lambda walkers: walkers.structure,
        steps=lambda walkers: walkers.step,
        kinetic=jax.vmap(kinetic_energy),
        degrees=jax.vmap(degrees_of_freedom),
        timestep=explorer.timestep,
        bath=None if explorer.bath is None else bath,
        barostat=explorer.barostat,
        thermostat=explorer.thermostat,
    )


def sampler(part: Explorer | Sampler) -> Sampler:
    """What moves walkers, of an explorer or a sampler."""
    return part if isinstance(part, Sampler) else per_walker(part)


def unjudged(energy: Float[Array, "w"], force: Float[Array, "w n 3"], stress: Float[Array, "w 3 3"]) -> Seen:
    """What a field says of structures [w] that no gate judges: all pass for physical."""
    return Seen(energy, force, stress, jnp.full_like(energy, jnp.nan), jnp.ones(energy.shape, bool))


class Step(NamedTuple):
    """Where walkers [w] have come by one step."""

    walkers: PyTree  # the sampler's state
    near: Neighbors  # with their skin, for the next step
    close: Neighbors  # within the cutoff; `overflow` says where there was no room
    said: Any  # what `push` said beside


def step(
    sampler: Sampler,
    spec: neighbors.Spec,
    walkers: PyTree,
    near: Neighbors,
    push: Callable[[Structure, Neighbors], tuple[Seen, S]],
    mesh: Mesh | None = None,
) -> Step:
    """Proposes, finds the neighbors, takes from `push` what moves the walkers and what else it says, and advances.

    Neighbors are searched anew, for all walkers, where one has outrun its skin. On a mesh, inside of `devices.split`,
    the rows are those of this device; where the sampler couples walkers, every device moves those of all.
    """
    mesh = mesh if sampler.couples else None
    walkers = devices.gathered(mesh, WALKERS, walkers)
    everywhere = sampler.propose(walkers)
    proposed = devices.own(mesh, WALKERS, everywhere)
    with jax.named_scope("neighbors"):
        near = neighbors.renewed(spec, near, proposed)
        close = neighbors.within(spec, near, proposed)
    seen, said = push(proposed, close)
    after = sampler.advance(walkers, everywhere, devices.gathered(mesh, WALKERS, seen))
    return Step(devices.own(mesh, WALKERS, after), near, close, said)


def with_room(
    spec: neighbors.Spec, attempt: Callable[[neighbors.Spec], tuple[S, bool, Structure]]
) -> tuple[S, neighbors.Spec]:
    """What an attempt comes to with enough room for neighbors, and that room; for programs that run outside of a run.

    An attempt gives its result, whether there were more neighbors than room, and the structures it came to. Raises
    InputError where there still are after `REPLAYS` more attempts: atoms that collapse into ever smaller space.
    """
    for again in range(REPLAYS + 1):
        result, overflow, structures = attempt(spec)
        if not overflow:
            return result, spec
        spec = neighbors.larger(spec, jax.device_get(structures), 0.9 ** (again + 1))
    raise InputError(
        f"dynamics: there are still more neighbors than room after it was enlarged {REPLAYS} times; "
        "the atoms collapse: give a shorter timestep or a lower temperature"
    )


def where(mask: Bool[Array, "w"], yes: S, no: S) -> S:
    """Row by row `yes` where the mask is true, else `no`, over a whole pytree [w ...]."""

    def pick(a: Array, b: Array) -> Array:
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(pick(jax.random.key_data(a), jax.random.key_data(b)))
        return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(pick, yes, no)
