"""Replica exchange: walkers at a ladder of temperatures, which they exchange."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxal.core.precision import exact
from jaxal.core.registry import register
from jaxal.core.types import InputError, Key, Sampler, Seen, Start, Structure
from jaxal.core.units import BOLTZMANN, TIME_UNIT, Unit
from jaxal.explore.stepping import where
from jaxal.explore.walker import mobile

Kelvin = Annotated[float, Unit("K", 0.0, exclusive=True)]


class Replicas(NamedTuple):
    """Walkers [w] of an exchange; momenta in sqrt(eV amu)."""

    structure: Structure
    momentum: Float[Array, "w n 3"]
    force: Float[Array, "w n 3"]
    key: Key
    rung: Int[Array, "w"]  # of the ladder of temperatures
    kT: Float[Array, "w"]  # of the rung, eV
    tried: Float[Array, "w"]  # exchanges of pairs whose colder one this was
    accepted: Float[Array, "w"]  # of these
    step: Int[Array, "w"]


@register("sampler")
def replica_exchange(
    *,
    temperature: Kelvin = 300.0,
    highest: Kelvin = 600.0,
    every: Annotated[int, Unit("steps", 1)] = 100,
    timestep: Annotated[float, Unit("fs", 0.0, exclusive=True)] = 0.5,
    friction: Annotated[float, Unit("1/fs", 0.0, exclusive=True)] = 0.01,
) -> Sampler:
    """Langevin dynamics of one walker at each temperature of a ladder, whose temperatures are exchanged.

    The ladder goes from `temperature` to `highest` (K) in equal ratios, with a rung for each walker of the system.
    Every `every` steps neighbors on it exchange with the chance min(1, exp((b_i - b_j)(E_i - E_j))), b = 1/kT, even and
    odd pairs in turn; momenta are scaled by the square root of the ratio of the temperatures. E is the committee's
    energy with the walker's own biases, which stay with it. Between exchanges BAOAB with `timestep` (fs) and
    `friction` (1/fs), whose positions are exact in a harmonic well. What is not physical exchanges nothing. Reported
    are the `rung` of each walker and the fraction of exchanges that were `accepted`, of those whose colder one it was.

    Sugita and Okamoto, Chem. Phys. Lett. 314, 141 (1999); Leimkuhler and Matthews, J. Chem. Phys. 138, 174102 (2013).
    Raises InputError for a ladder that does not rise, and for less than two walkers.
    """
    if highest <= temperature:
        raise InputError(f"explore.highest: {highest:g} K is too low; give more than temperature ({temperature:g} K)")
    half = 0.5 * timestep / TIME_UNIT

    def ladder(number: int, dtype: jnp.dtype) -> Float[Array, "w"]:
        """Thermal energies of the rungs, eV."""
        part = jnp.arange(number) / (number - 1)
        return jnp.asarray(BOLTZMANN * temperature * (highest / temperature) ** part, dtype)

    def drawn(keys: Key, structure: Structure, kT: Float[Array, "w"]) -> Float[Array, "w n 3"]:
        """Momenta of these temperatures."""
        size, dtype = structure.position.shape[1:], structure.position.dtype
        noise = jax.vmap(lambda key: jax.random.normal(key, size, dtype))(keys)
        width = jnp.sqrt(structure.mass.astype(dtype) * kT[:, None])
        return jnp.where(jax.vmap(mobile)(structure)[..., None], width[..., None] * noise, 0.0)

    def init(keys: Key, start: Start, steps: Int[Array, "w"]) -> Replicas:
        number, dtype = steps.shape[0], start.structure.position.dtype
        if number < 2:
            raise InputError(f"explore.walkers: {number} is too small; an exchange needs 2 or more")
        draws, own = jax.vmap(lambda key: tuple(jax.random.split(key)))(keys)
        rung, kT, none = jnp.arange(number, dtype=jnp.int32), ladder(number, dtype), jnp.zeros(number, dtype)
        momentum = drawn(draws, start.structure, kT)
        return Replicas(start.structure, momentum, start.force, own, rung, kT, none, none, steps)

    def moved(now: Replicas) -> tuple[Structure, Float[Array, "w n 3"]]:
        """Positions after the step, and momenta before its last kick."""
        structure, dtype = now.structure, now.momentum.dtype
        mass, moves = structure.mass.astype(dtype)[..., None], jax.vmap(mobile)(structure)[..., None]
        momentum = jnp.where(moves, now.momentum + half * now.force, 0.0)
        middle = jnp.where(moves, structure.position + half * momentum / mass, structure.position)
        keys = jax.vmap(jax.random.fold_in)(now.key, now.step)
        kept = jnp.exp(jnp.asarray(-friction * timestep, dtype))
        momentum = kept * momentum + jnp.sqrt(1 - kept**2) * drawn(keys, structure, now.kT)
        last = jnp.where(moves, middle + half * momentum / mass, structure.position)
        return structure._replace(position=last), momentum

    def exchanged(now: Replicas, seen: Seen) -> tuple[Int[Array, "w"], Array, Array]:
        """Rungs after this step, and which pairs tried and exchanged, by their lower rung."""
        number, step = now.rung.shape[0], now.step + 1
        rungs, kT = jnp.arange(number), ladder(number, now.momentum.dtype)
        walker = jnp.argsort(now.rung)  # on each rung
        energy, physical = seen.energy[walker], seen.physical[walker]
        draw = jax.vmap(lambda key, step: jax.random.uniform(jax.random.fold_in(key, -step), dtype=kT.dtype))
        chance = draw(now.key, step)[walker]
        upper, lower = jnp.minimum(rungs + 1, number - 1), jnp.maximum(rungs - 1, 0)
        paired = (rungs % 2 == (step[0] // every) % 2) & (rungs < number - 1) & (step[0] % every == 0)
        paired &= physical & physical[upper]
        accepted = paired & (jnp.log(chance) < (1 / kT - 1 / kT[upper]) * (energy - energy[upper]))
        to = jnp.where(accepted, upper, jnp.where((rungs > 0) & accepted[lower], lower, rungs))
        return to[now.rung].astype(now.rung.dtype), paired[now.rung], accepted[now.rung]

    def advance(now: Replicas, structure: Structure, seen: Seen) -> Replicas:
        _, momentum = moved(now)
        moves = jax.vmap(mobile)(structure)[..., None]
        force = jnp.where(moves, seen.force, 0.0).astype(momentum.dtype)
        rung, tried, accepted = exchanged(now, seen)
        kT = ladder(rung.shape[0], momentum.dtype)[rung]
        momentum = (momentum + half * force) * jnp.sqrt(kT / now.kT)[:, None, None]
        counts = now.tried + tried, now.accepted + accepted
        return Replicas(structure, momentum, force, now.key, rung, kT, *counts, now.step + 1)

    def rewind(keys: Key, now: Replicas, mask: Array, start: Start) -> Replicas:
        momentum = drawn(keys, start.structure, now.kT)
        again = now._replace(structure=start.structure, momentum=momentum, force=start.force)
        return where(mask, again, now)

    def kinetic(now: Replicas) -> Float[Array, "w"]:
        mass = now.structure.mass.astype(now.momentum.dtype)[..., None]
        return 0.5 * jnp.sum(now.momentum**2 / mass, axis=(1, 2))

    def report(now: Replicas) -> dict[str, Float[Array, "w"]]:
        return {"rung": now.rung.astype(now.force.dtype), "accepted": now.accepted / jnp.maximum(now.tried, 1.0)}

    return Sampler(
        init=init,
        propose=exact(lambda now: moved(now)[0]),
        advance=exact(advance),
        rewind=rewind,
        walkers=lambda now: now.structure,
        steps=lambda now: now.step,
        kinetic=kinetic,
        degrees=lambda now: 3 * jnp.sum(jax.vmap(mobile)(now.structure), axis=-1, dtype=jnp.int32),
        timestep=timestep,
        bath=lambda now: now.kT / BOLTZMANN,
        report=report,
        couples=True,
    )
