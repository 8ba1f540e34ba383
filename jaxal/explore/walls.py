"""Walls: what keeps walkers within a range of variables, or molecules together in a sphere."""

from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxal.core.registry import register
from jaxal.core.types import Bias, InputError, Score, Structure, Variables
from jaxal.core.units import Unit
from jaxal.explore.bias_functions import as_before, nothing, of_variables
from jaxal.explore.levels import Level, away, levels, needs_variables

Stiffness = Annotated[float, Unit("", 0.0, exclusive=True)]
Radius = Annotated[float, Unit("Å", 0.0, exclusive=True)]


@register("bias")
def wall(
    score: Score,
    variables: Variables,
    *,
    low: Level | None = None,
    high: Level | None = None,
    stiffness: Stiffness | tuple[Stiffness, ...] = 10.0,
) -> Bias:
    """Keeps variables between `low` and `high`: E = sum s d^2 / 2 of how far d each is beyond one of them.

    Either may be left out. They are numbers in the variable's unit or text such as "120 deg", lists for several
    variables, as `stiffness` s (eV over the square of the unit) is. Within nothing acts. Of a periodic variable the
    nearer wall counts. Raises InputError without variables, for walls that do not fit them or leave no room, and where
    there is none.
    """
    del score
    needs_variables(variables, "a wall")
    if low is None and high is None:
        raise InputError("low: missing; a wall needs low, high or both")
    size = len(variables.names)
    below = np.full(size, -np.inf) if low is None else levels("low", low, variables)
    above = np.full(size, np.inf) if high is None else levels("high", high, variables)
    if np.any(below >= above):
        raise InputError("high: not above low; leave room between the walls")
    strength = levels("stiffness", stiffness, variables)
    around = np.array([each or np.inf for each in variables.periods])
    if np.any(np.isfinite(around) & ~(np.isfinite(below) & np.isfinite(above))):
        raise InputError("high: a periodic variable needs low and high, one wall alone is passed the other way round")
    if np.any(np.isfinite(around) & (above - below >= around)):
        raise InputError("high: a period above low; nothing is outside")
    middle = np.array(
        [(a + b) / 2 if np.isfinite(b - a) else max(a, min(b, 0.0)) for a, b in zip(below, above, strict=True)]
    )

    def energy(_: Any, values: Float[Array, "v"]) -> Float[Array, ""]:
        center = jnp.asarray(middle, values.dtype)
        off = away(variables, values, center)
        beyond = jnp.maximum(off - jnp.asarray(above - middle, values.dtype), 0.0)
        beyond += jnp.minimum(off - jnp.asarray(below - middle, values.dtype), 0.0)
        return 0.5 * jnp.sum(jnp.asarray(strength, values.dtype) * beyond**2)

    return Bias(nothing, of_variables(energy), as_before, static=True)


@register("bias")
def confinement(
    score: Score,
    variables: Variables,
    *,
    radius: Radius,
    squeezed: Radius | None = None,
    period: Annotated[float, Unit("ps", 0.0, exclusive=True)] = 2.0,
    share: Annotated[float, Unit("", 0.0, exclusive=True)] = 0.25,
    stiffness: Annotated[float, Unit("eV/Å^2", 0.0, exclusive=True)] = 0.5,
) -> Bias:
    """A soft spherical wall around the center of mass: E = sum over atoms s (r - R)^2 / 2 of those beyond R.

    R is `radius` (Å). With `squeezed`, a smaller one, it is that for the last `share` of every `period` (ps): molecules
    are driven into each other again and again, the piston of the nanoreactor. `stiffness` s is the same for all atoms,
    so that all feel the same pressure. The center is that of the walker itself: the wall pushes nothing as a whole. For
    open structures alone.

    Wang et al., Nat. Chem. 6, 1044 (2014). Raises InputError for a `squeezed` radius that is not smaller, and for a
    share that is not below 1.
    """
    del score, variables
    if squeezed is not None and squeezed >= radius:
        raise InputError(f"squeezed: {squeezed:g} is too large; give less than radius ({radius:g} Å)")
    if share >= 1:
        raise InputError(f"share: {share:g} is too large; give less than 1, such as 0.25")

    def energy(_: Any, values: Any, uncertainty: Any, structure: Structure, time: Float[Array, ""]):
        del values, uncertainty
        dtype = structure.position.dtype
        real = structure.species >= 0
        mass = jnp.where(real, structure.mass, 0.0)
        center = jnp.sum(mass[:, None] * structure.position, axis=0) / jnp.maximum(jnp.sum(mass), 1e-6)
        square = jnp.where(real, jnp.sum((structure.position - center) ** 2, axis=-1), 0.0)
        edge = jnp.asarray(radius, dtype)
        if squeezed is not None:
            late = jnp.mod(time, 1e3 * period) >= 1e3 * period * (1 - share)
            edge = jnp.where(late, jnp.asarray(squeezed, dtype), edge)
        outside = square > edge**2
        beyond = jnp.where(outside, jnp.sqrt(jnp.where(outside, square, 1.0)) - edge, 0.0)
        return 0.5 * stiffness * jnp.sum(beyond**2)

    return Bias(nothing, energy, as_before, open=True, static=squeezed is None)
