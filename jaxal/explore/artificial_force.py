"""Artificial forces: what pushes atoms together and pulls them apart, so that structures react without heat."""

from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxal.core.registry import register
from jaxal.core.types import Bias, InputError, Score, Structure, Variables
from jaxal.core.units import Unit
from jaxal.explore.bias_functions import as_before
from jaxal.explore.levels import needs_variables

# Of two argon atoms (Maeda 2013): where their energy is lowest, Å, and how low it is there, eV
ARGON, DEPTH = 3.8164, 1.0061e3 * 1.0364269e-5
SOFT = 0.1  # Å, over which the force on what is apart ends


class Push(NamedTuple):
    """What one walker is driven to."""

    sense: Float[Array, "v"]  # of each variable: above zero together, below zero apart, zero not at all


def strength(collision: float) -> float:
    """The force (eV/Å) that takes atoms over barriers of about this energy (eV).

    It is the mean slope of the energy of two argon atoms from where it is zero to where they turn back when they
    collide with that energy: Maeda, Ohno and Morokuma, Phys. Chem. Chem. Phys. 15, 3683 (2013).
    """
    turned = (1 + np.sqrt(1 + collision / DEPTH)) ** (-1 / 6)
    return float(collision / ((2 ** (-1 / 6) - turned) * ARGON))


@register("bias")
def artificial_force(
    score: Score,
    variables: Variables,
    *,
    collision: Annotated[float, Unit("eV", 0.0, exclusive=True)] = 5.0,
    reach: Annotated[float, Unit("Å", 0.0, exclusive=True)] = 4.0,
    ramp: Annotated[float, Unit("ps", 0.0)] = 0.0,
    senses: tuple[tuple[float, ...], ...] | None = None,
) -> Bias:
    """Pushes atoms together and pulls them apart: E = a sum s q of distances q with the senses s.

    The force a is that which crosses barriers of about `collision` (eV). A sense above zero is together, below zero
    apart, zero not at all. `senses` are lists with a number for each variable, which walkers take in turn; without them
    the walkers take every variable alone, together and apart. What is farther apart than `reach` (Å) is not pulled any
    more. The force grows from nothing over `ramp` (ps). With the explorer `descent` structures react along the softest
    way that leads there.

    Maeda, Ohno and Morokuma, Phys. Chem. Chem. Phys. 15, 3683 (2013), whose weights of pairs are the senses here.
    Raises InputError without variables, for those that are no lengths, and for senses that do not fit them.
    """
    del score
    needs_variables(variables, "an artificial force")
    size = len(variables.names)
    if odd := [name for name, unit in zip(variables.names, variables.units, strict=True) if unit != "Å"]:
        raise InputError(f"variables: {odd[0]} is no length; give distances, such as {{name: distance, atoms: [0, 1]}}")
    for each in senses or ():
        if len(each) != size:
            raise InputError(f"senses: {len(each)} numbers for {size} variables; give one for each in every list")
        if not any(each):
            raise InputError("senses: a list of zeros pushes nothing; leave it out")
    one = np.eye(size)
    rows = np.concatenate([one, -one]) if senses is None else np.array(senses, float)

    def init(structure: Structure, walker: Int[Array, ""]) -> Push:
        return Push(jnp.asarray(rows, structure.position.dtype)[walker % len(rows)])

    slope = strength(collision)

    def energy(push: Push, values: Float[Array, "v"], uncertainty: Any, structure: Any, time: Float[Array, ""]):
        del uncertainty, structure
        bounded = reach - SOFT * jax.nn.softplus((reach - values) / SOFT)
        pushed = push.sense * jnp.where(push.sense < 0, bounded, values)
        part = jnp.minimum(time / (1e3 * ramp), 1.0) if ramp else 1.0
        return part * slope * jnp.sum(pushed)

    return Bias(init, energy, as_before, static=not ramp)


def all_pairs(number: int) -> Variables:
    """All distances of the atoms of an open structure, in the order of `np.triu_indices`."""
    first, second = np.triu_indices(number, 1)

    def values(structure: Structure) -> Any:
        vector = structure.position[first] - structure.position[second]
        return jnp.sqrt(jnp.sum(vector**2, axis=-1))

    names = tuple(f"{i}-{j}" for i, j in zip(first, second, strict=True))
    return Variables(names, ("Å",) * len(names), (None,) * len(names), values)
