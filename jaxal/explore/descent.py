"""Walkers without heat, for biases that make structures rather than dynamics."""

from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxal.core.jaxmd import dataclasses, simulate
from jaxal.core.registry import register
from jaxal.core.types import Explorer, Key, Structure, WalkerState
from jaxal.core.units import Unit
from jaxal.explore.dynamics import Femtosecond
from jaxal.explore.walker import explorer


@dataclasses.dataclass
class Displaced(simulate.NVEState):
    """A walker at rest, and the displacement that its first step begins with."""

    jolt: Array  # Å


@register("explorer")
def descent(
    *,
    rate: Annotated[float, Unit("Å^2/eV", 0.0, exclusive=True)] = 0.005,
    longest: Annotated[float, Unit("Å", 0.0, exclusive=True)] = 0.05,
    jolt: Annotated[float, Unit("Å", 0.0)] = 0.02,
    timestep: Femtosecond = 0.5,
) -> Explorer:
    """Steepest descent of what drives the walker; with the bias `adversarial`, ascent of the uncertainty.

    A step is `rate` (Å^2/eV) times the force, scaled down where an atom would go farther than `longest` (Å). It begins,
    and begins again at every return to an earlier structure, with a Gaussian displacement of `jolt` (Å) per coordinate,
    so walkers that start together part. `timestep` (fs) is what a step counts as in the run's simulated time. Cells and
    fixed atoms stay as they are. Schwalbe-Koda, Tan and Gómez-Bombarelli, Nat.
    Commun. 12, 5104 (2021).
    """

    def init(
        key: Key, structure: Structure, force: Float[Array, "n 3"], stress: Float[Array, "3 3"], step: Int[Array, ""]
    ) -> WalkerState:
        position = structure.position
        weight = structure.mass.astype(position.dtype)[:, None]
        noise = jolt * jax.random.normal(key, position.shape, position.dtype)
        still = jnp.zeros_like(position)
        engine = Displaced(position, still, jnp.asarray(force, position.dtype), weight, jolt=noise)  # pyright: ignore
        return WalkerState(structure, engine, jnp.asarray(stress, position.dtype), jnp.asarray(step, jnp.int32))

    def propose(walker: WalkerState) -> Structure:
        move = rate * walker.engine.force
        far = jnp.sqrt(jnp.max(jnp.sum(move**2, axis=-1)))
        move = move * jnp.minimum(1.0, longest / jnp.maximum(far, jnp.finfo(move.dtype).tiny))
        return walker.structure._replace(position=walker.structure.position + move + walker.engine.jolt)

    def advance(
        walker: WalkerState, structure: Structure, force: Float[Array, "n 3"], stress: Float[Array, "3 3"]
    ) -> WalkerState:
        dtype = walker.structure.position.dtype
        still = jnp.zeros_like(walker.engine.jolt)
        engine = walker.engine.set(position=structure.position, force=jnp.asarray(force, dtype), jolt=still)
        return WalkerState(structure, engine, jnp.asarray(stress, walker.stress.dtype), walker.step + 1)

    return explorer(init, propose, advance, timestep)
