"""What all explorers share: which atoms move, their degrees of freedom and temperature, and what is too hot."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxal.core.precision import exact
from jaxal.core.types import Explorer, Structure, WalkerState
from jaxal.core.units import BOLTZMANN

Init = Callable[..., WalkerState]
ROOM = 300.0  # K; what heats a walker beside its bath, such as a reaction, does not scale with the bath
TAIL = 30.0  # a walker in equilibrium is found too hot with probability exp(-30), 1e-13, at each independent look


def mobile(structure: Structure) -> Bool[Array, "n"]:
    """Atoms that move: neither fixed nor padding."""
    return (structure.species >= 0) & ~structure.fixed


def rests(structure: Structure) -> Bool[Array, ""]:
    """Whether the center of mass is to rest: not where a fixed atom takes up momentum, nor for a single atom."""
    real = structure.species >= 0
    return ~jnp.any(real & structure.fixed) & (jnp.sum(real) > 1)


def free(structure: Structure) -> Int[Array, ""]:
    """Degrees of freedom of momenta that dynamics without friction and noise keeps: 3 for each mobile atom, less the
    3 of the total momentum where it is conserved.
    """
    return 3 * jnp.sum(mobile(structure), dtype=jnp.int32) - 3 * rests(structure).astype(jnp.int32)


def degrees_of_freedom(walker: WalkerState) -> Int[Array, ""]:
    """Momenta of one walker that are thermalized: 3 for each mobile atom under Langevin's noise, else `free`."""
    from jaxal.core.jaxmd import simulate  # here: whoever asks has loaded it, and others need not

    if isinstance(walker.engine, simulate.NVTLangevinState):
        return 3 * jnp.sum(mobile(walker.structure), dtype=jnp.int32)
    return free(walker.structure)


def kinetic_energy(walker: WalkerState) -> Float[Array, ""]:
    """Kinetic energy of the atoms of one walker, eV."""
    return 0.5 * jnp.sum(walker.engine.momentum**2 / walker.engine.mass)


def kelvin(energy: Any, degrees: Any) -> Any:
    """Kinetic temperature, K, of a kinetic energy in eV: 2 K / (degrees of freedom * k_B); 0 without any freedom."""
    return 2 * energy / (jnp.maximum(degrees, 1) * BOLTZMANN)


def temperature(walker: WalkerState) -> Float[Array, ""]:
    """Kinetic temperature of one walker, K, with the degrees of freedom there are."""
    return kelvin(kinetic_energy(walker), degrees_of_freedom(walker))


def hottest(bath: Float[Array, "w"], factor: Float[Array, ""], degrees: Int[Array, "w"]) -> Float[Array, "w"]:
    """The kinetic temperatures above which walkers in baths of these temperatures (K) cannot be, K.

    `factor` times the temperature T of the bath, but at least what chance gives: in equilibrium
    2 K / (k_B T) has the chi-square distribution of f degrees of freedom, which exceeds f + 2 sqrt(f t) + 2 t with
    probability below exp(-t) (Laurent and Massart, Ann. Stat. 28, 1302, 2000, lemma 1), and t is `TAIL`. That counts
    for three atoms and fewer. T is at least `ROOM`.
    """
    count = jnp.maximum(degrees, 1).astype(factor.dtype)
    chance = 1 + 2 * jnp.sqrt(TAIL / count) + 2 * TAIL / count
    return (jnp.maximum(factor, chance) * jnp.maximum(bath, ROOM)).astype(factor.dtype)


def explorer(
    init: Init,
    propose: Callable[[WalkerState], Structure],
    advance: Callable[..., WalkerState],
    timestep: float,
    bath: Callable[[Int[Array, ""]], Float[Array, ""]] | None = None,
    barostat: bool = False,
) -> Explorer:
    """The explorer of these functions, an `Explorer` under which fixed atoms stay to the last bit.

    Whatever the functions do with them, fixed atoms (and padding) feel no force, keep their positions and have no
    momentum. What remains to a thermostat is to count the degrees of freedom there are.
    """

    def pulled(structure: Structure, force: Float[Array, "n 3"]) -> Float[Array, "n 3"]:
        return jnp.where(mobile(structure)[:, None], force, 0.0)

    def still(walker: WalkerState) -> WalkerState:
        momentum = walker.engine.momentum
        momentum = jnp.where(mobile(walker.structure)[:, None], momentum, jnp.zeros_like(momentum))
        return walker._replace(engine=walker.engine.set(momentum=momentum))

    def begun(
        key: Any, structure: Structure, force: Float[Array, "n 3"], stress: Float[Array, "3 3"], step: Int[Array, ""]
    ) -> WalkerState:
        return still(init(key, structure, pulled(structure, force), stress, step))

    def proposed(walker: WalkerState) -> Structure:
        structure = propose(walker)
        position = jnp.where(mobile(walker.structure)[:, None], structure.position, walker.structure.position)
        return structure._replace(position=position)

    def advanced(
        walker: WalkerState, structure: Structure, force: Float[Array, "n 3"], stress: Float[Array, "3 3"]
    ) -> WalkerState:
        return still(advance(walker, structure, pulled(structure, force), stress))

    return Explorer(exact(begun), exact(proposed), exact(advanced), timestep, bath, barostat)
