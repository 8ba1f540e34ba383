"""Values of collective variables in a configuration, and differences of them."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxal.core.errors import InputError
from jaxal.core.types import Variables
from jaxal.core.units import amount, to_unit

Level = float | str | tuple[float | str, ...]


def levels(name: str, level: Level, variables: Variables) -> Float[np.ndarray, "v"]:
    """One value for each variable, in its unit, from numbers or text such as "120 deg".

    Raises InputError, with the option `name`, for another number of them and for text that is no such value.
    """
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


def widths(name: str, level: Level, variables: Variables) -> Float[np.ndarray, "v"]:
    """As `levels`; raises InputError for one that is not above zero, too."""
    values = levels(name, level, variables)
    if np.any(values <= 0):
        raise InputError(f"{name}: {values.min():g} is too small; give more than 0")
    return values


def needs_variables(variables: Variables, what: str) -> None:
    """Raises InputError where there are none."""
    if not variables.names:
        raise InputError(f"variables: missing; {what} needs at least one, such as {{name: distance, atoms: [0, 1]}}")


def away(variables: Variables, values: Float[Array, "... v"], center: Float[Array, "... v"]) -> Float[Array, "... v"]:
    """From the center to the values, of periodic variables the shorter way."""
    straight = values - center
    around = jnp.asarray([each or 0.0 for each in variables.periods], values.dtype)
    return straight - around * jnp.round(straight / jnp.where(around > 0, around, 1.0))
