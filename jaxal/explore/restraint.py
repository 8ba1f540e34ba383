"""Harmonic restraints, for walkers that heat alone does not take over a barrier: moving ones, and windows at rest."""

import functools
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxal.core.registry import register
from jaxal.core.types import Bias, InputError, Moment, Score, Structure, Variables
from jaxal.core.units import BOLTZMANN, Unit
from jaxal.explore.bias_functions import Largest, as_before, of_variables
from jaxal.explore.levels import Level, away, levels, needs_variables

Stiffness = Annotated[float, Unit("", 0.0)]


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
    needs_variables(variables, "a restraint")
    first = levels("low", low, variables)
    last = first if high is None else levels("high", high, variables)
    strength = levels("stiffness", stiffness, variables)
    if high is not None and not np.any(first != last):
        raise InputError("high: the same as low; the sweep needs a range, leave it out for a restraint at rest")
    middle, half = (first + last) / 2, (last - first) / 2
    turn, along = 2 * np.pi / (1e3 * period), float(np.sum(strength * half**2)) or 1.0

    def angle(state: Sweep, time: Float[Array, ""]) -> Float[Array, ""]:
        return turn * jnp.mod(time, 1e3 * period) + state.phase

    def begin(structure: Structure, time: Float[Array, ""], upwards: Array) -> Sweep:
        """With the center at the point of the sweep that is nearest to the structure."""
        values = variables.values(structure)
        back = jnp.sum(
            jnp.asarray(strength * half, values.dtype) * away(variables, values, jnp.asarray(middle, values.dtype))
        )
        there = jnp.arccos(jnp.clip(-back / along, -1.0, 1.0))
        phase = jnp.where(upwards, there, -there) - turn * jnp.mod(time, 1e3 * period)
        return Sweep(jnp.asarray(phase, values.dtype))

    def init(structure: Structure, walker: Int[Array, ""]) -> Sweep:
        return begin(structure, jnp.zeros((), structure.position.dtype), walker % 2 == 0)

    def rewind(now: Sweep, trusted: Sweep, structure: Structure, time: Float[Array, ""]) -> Sweep:
        del trusted
        return begin(structure, time, jnp.sin(angle(now, time)) <= 0)

    def energy(
        state: Sweep,
        values: Float[Array, "v"],
        uncertainty: Float[Array, ""],
        structure: Structure,
        time: Float[Array, ""],
    ) -> Float[Array, ""]:
        del uncertainty, structure
        center = jnp.asarray(middle, values.dtype) - jnp.asarray(half, values.dtype) * jnp.cos(angle(state, time))
        return 0.5 * jnp.sum(jnp.asarray(strength, values.dtype) * away(variables, values, center) ** 2)

    static = high is None and largest is None
    return Bias(init, energy, as_before, largest=largest, rewind=rewind, static=static)


class Window(NamedTuple):
    """Where one walker is held."""

    center: Float[Array, "v"]
    number: Int[Array, ""]  # of the window
    steps: Int[Array, ""]
    tried: Float[Array, ""]  # exchanges of pairs whose lower one this was
    accepted: Float[Array, ""]  # of these


@register("bias")
def umbrella(
    score: Score,
    variables: Variables,
    *,
    low: Level,
    high: Level,
    windows: Annotated[int, Unit("", 2)],
    stiffness: Stiffness | tuple[Stiffness, ...] = 5.0,
    exchange: Annotated[int, Unit("steps", 1)] | None = None,
    temperature: Annotated[float, Unit("K", 0.0, exclusive=True)] = 300.0,
) -> Bias:
    """Windows of umbrella sampling: E = sum s (q - c)^2 / 2 with a center c for each walker, at rest.

    The centers of `windows` are evenly spaced from `low` to `high`, both included; walkers take them in turn. `low`,
    `high` and `stiffness` s (eV over the square of the variable's unit) as of `restraint`. Neighboring windows are to
    overlap: a walker spreads by sqrt(kT/s) around its center, or more where it is held on a slope.

    With `exchange` walkers in neighboring windows exchange these every so many steps, with the chance
    min(1, exp(-D/kT)) where D is by how much both energies grow, even and odd pairs in turn. Then `temperature` T is
    that of the dynamics, and the number of the `window` and the part of the exchanges that was `accepted` are written
    down. Walkers that have left the physical exchange nothing, and keep their windows when they are taken back.

    Torrie and Valleau, J. Comput. Phys. 23, 187 (1977); Sugita, Kitao and Okamoto, J. Chem. Phys. 113, 6042 (2000).
    Raises InputError as `restraint`.
    """
    del score
    needs_variables(variables, "an umbrella")
    first, last = levels("low", low, variables), levels("high", high, variables)
    strength = levels("stiffness", stiffness, variables)
    if not np.any(first != last):
        raise InputError("high: the same as low; the windows need a range")
    thermal = BOLTZMANN * temperature

    def init(structure: Structure, walker: Int[Array, ""]) -> Window:
        dtype = structure.position.dtype
        number = (walker % windows).astype(jnp.int32)
        center = jnp.asarray(first, dtype) + number.astype(dtype) / (windows - 1) * jnp.asarray(last - first, dtype)
        none = jnp.zeros((), dtype)
        return Window(center, number, jnp.int32(0), none, none)

    def within(center: Float[Array, "v"], values: Float[Array, "v"]) -> Float[Array, ""]:
        return 0.5 * jnp.sum(jnp.asarray(strength, values.dtype) * away(variables, values, center) ** 2)

    def exchanged(every: int, now: Window, moment: Moment) -> Window:
        """Of all walkers [w], in windows that they had."""
        number, values = len(now.number), moment.variables
        walker = jnp.argsort(now.number)  # in the order of their windows
        upper = walker[jnp.minimum(jnp.arange(number) + 1, number - 1)]
        energy = jax.vmap(within)
        before = energy(now.center[walker], values[walker]) + energy(now.center[upper], values[upper])
        after = energy(now.center[upper], values[walker]) + energy(now.center[walker], values[upper])
        steps = now.steps[0] + 1
        row = jnp.arange(number)
        paired = (row % 2 == (steps // every) % 2) & (row < number - 1) & (steps % every == 0)
        paired &= moment.physical[walker] & moment.physical[upper]
        chance = jax.random.uniform(jax.random.fold_in(jax.random.key(0), steps), (number,), values.dtype)
        accepted = paired & (jnp.log(chance) < (before - after) / thermal)
        below = jnp.roll(accepted, 1) & (row > 0)
        source = walker[jnp.where(accepted, row + 1, jnp.where(below, row - 1, row))]
        own = jnp.zeros_like(walker).at[walker].set(source)  # whose window each walker has now
        counts = (jnp.zeros_like(now.tried).at[walker].set(each) for each in (paired, accepted))
        tried, done = (old + new for old, new in zip((now.tried, now.accepted), counts, strict=True))
        return Window(now.center[own], now.number[own], now.steps + 1, tried, done)

    def energy(state: Window, values: Float[Array, "v"]) -> Float[Array, ""]:
        return within(state.center, values)

    if exchange is None:
        return Bias(init, of_variables(energy), as_before, static=True)
    return Bias(
        init,
        of_variables(energy),
        functools.partial(exchanged, exchange),
        rewind=lambda now, trusted, structure, time: now,
        temperature=temperature,
        static=True,
        couples=True,
        numbers=(
            ("window", lambda state: state.number.astype(state.center.dtype)),
            ("accepted", lambda state: state.accepted / jnp.maximum(state.tried, 1.0)),
        ),
    )
