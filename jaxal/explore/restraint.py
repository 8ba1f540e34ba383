"""A moving harmonic restraint, for walkers that have to pass a barrier that heat alone does not take them over."""

from collections.abc import Sequence
from typing import Annotated, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxal.core.registry import register
from jaxal.core.types import Bias, InputError, Moment, Score, Structure, Variables
from jaxal.core.units import Unit, amount, to_unit

Level = float | str | tuple[float | str, ...]
Stiffness = Annotated[float, Unit("", 0.0)]
Largest = Annotated[float, Unit("eV/Å", 0.0, exclusive=True)] | None


class Sweep(NamedTuple):
    """Where the center of one walker's restraint is in its period, but for time."""

    phase: Float[Array, ""]  # rad; with that of time 0 at `low`, pi at `high`


@register("bias")
def restraint(
    score: Score,
    variables: Variables,
    *,
    low: Level,
    high: Level | None = None,
    period: Annotated[float, Unit("ps", 0.0, exclusive=True)] = 2.0,
    stiffness: Stiffness | tuple[Stiffness, ...] = 5.0,
    largest: Largest = None,
) -> Bias:
    """Harmonic restraint of collective variables whose center is swept to and fro, or rests.

    A spring of `stiffness` s (eV over the square of the variable's unit) pulls each variable q towards a center c that
    goes from `low` to `high` and back within `period` (ps):

        E = sum s (q - c)^2 / 2,    c = (low + high)/2 - (high - low)/2 cos(2 pi t/period + phase)

    Of several variables all have the same phase; `low`, `high` and `stiffness` are lists then, in their order. `low`
    and `high` are numbers in the variable's unit (Å, rad) or text such as "120 deg"; without `high` the center rests at
    `low`, the window of an umbrella. Across the period of a torsion the shorter way counts.

    Each walker begins where it is (c = q, or the nearest point of the sweep), every second upwards, the others
    downwards. Taken back to an earlier structure it begins anew from there and turns around: what ended its way may be
    ahead of it. Take `low` and `high` beyond the minima on either side of a barrier, or the walkers are held on its
    slopes. `largest` (eV/Å) bounds the force of the spring on an atom; null does not.

    Izrailev et al., Biophys. J. 72, 1568 (1997); Park and Schulten, J. Chem. Phys. 120, 5946 (2004); at rest: Torrie
    and Valleau, J. Comput. Phys. 23, 187 (1977). Raises InputError without variables, for lists of another length, text
    in another unit, and an empty range.
    """
    del score
    size = len(variables.names)
    if not size:
        raise InputError("variables: missing; a restraint needs at least one, such as {name: distance, atoms: [0, 1]}")
    first = _levels("low", low, variables)
    last = first if high is None else _levels("high", high, variables)
    strength = np.array(stiffness if isinstance(stiffness, tuple) else [stiffness], float)
    if len(strength) != size:
        raise InputError(f"stiffness: {len(strength)} for {size} variables; give one for each")
    if high is not None and not np.any(first != last):
        raise InputError("high: the same as low; the sweep needs a range, leave it out for a restraint at rest")
    middle, half = (first + last) / 2, (last - first) / 2
    turn, along = 2 * np.pi / (1e3 * period), float(np.sum(strength * half**2)) or 1.0

    def away(values: Float[Array, "v"], center: Float[Array, "v"]) -> Float[Array, "v"]:
        """From the center to the values, the shorter way."""
        straight = values - center
        around = jnp.asarray([each or 0.0 for each in variables.periods], values.dtype)
        return straight - around * jnp.round(straight / jnp.where(around > 0, around, 1.0))

    def angle(state: Sweep, time: Float[Array, ""]) -> Float[Array, ""]:
        return turn * jnp.mod(time, 1e3 * period) + state.phase

    def begin(structure: Structure, time: Float[Array, ""], upwards: Array) -> Sweep:
        """With the center at the point of the sweep that is nearest to the structure."""
        values = variables.values(structure)
        back = jnp.sum(jnp.asarray(strength * half, values.dtype) * away(values, jnp.asarray(middle, values.dtype)))
        there = jnp.arccos(jnp.clip(-back / along, -1.0, 1.0))
        phase = jnp.where(upwards, there, -there) - turn * jnp.mod(time, 1e3 * period)
        return Sweep(jnp.asarray(phase, values.dtype))

    def init(structure: Structure, walker: Int[Array, ""]) -> Sweep:
        return begin(structure, jnp.zeros((), structure.position.dtype), walker % 2 == 0)

    def rewind(now: Sweep, trusted: Sweep, structure: Structure, time: Float[Array, ""]) -> Sweep:
        del trusted
        return begin(structure, time, jnp.sin(angle(now, time)) <= 0)

    def learn(state: Sweep, moment: Moment) -> Sweep:
        del moment
        return state

    def energy(
        state: Sweep,
        values: Float[Array, "v"],
        uncertainty: Float[Array, ""],
        structure: Structure,
        time: Float[Array, ""],
    ) -> Float[Array, ""]:
        del uncertainty, structure
        center = jnp.asarray(middle, values.dtype) - jnp.asarray(half, values.dtype) * jnp.cos(angle(state, time))
        return 0.5 * jnp.sum(jnp.asarray(strength, values.dtype) * away(values, center) ** 2)

    return Bias(init, energy, learn, largest=largest, rewind=rewind)


def _levels(name: str, level: Level, variables: Variables) -> Float[np.ndarray, "v"]:
    """One value for each variable, in its unit."""
    listed: Sequence[float | str] = level if isinstance(level, tuple) else (level,)
    if len(listed) != len(variables.names):
        raise InputError(f"{name}: {len(listed)} for {len(variables.names)} variables; give one for each")
    return np.array([_level(name, each, unit) for each, unit in zip(listed, variables.units, strict=True)])


def _level(name: str, level: float | str, unit: str) -> float:
    if not isinstance(level, str):
        return float(level)
    parsed = amount(level)
    form = f"a number{f' in {unit}' if unit else ''}"
    if parsed is None or not unit:
        raise InputError(f"{name}: {level!r} does not fit; give {form}")
    try:
        return to_unit(*parsed, unit)
    except ValueError as error:
        raise InputError(f"{name}: {level!r} does not fit: {error}") from None
