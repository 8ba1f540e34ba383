"""Which scores, gates, methods of uncertainty and biases go together: by units, and by what a score tells.

A gate that estimates an error takes any score that rises with the spread from zero on: what it learns turns it into
eV/Å. A gate that compares the score itself takes every score. Scores that mix a force spread with other forces need it
in eV/Å.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxal.core import registry
from jaxal.core.types import FORCE, Gate, InputError, Measure

UNKNOWN = Measure("its own unit")  # of a score that says nothing of itself


def measure_of(name: str, options: Mapping[str, Any] | None = None) -> Measure:
    """What a registered score measures, with these options; by default with its own."""
    if options is None:
        options = {option.name: option.default for option in registry.options("score", name)}
    return registry.about("score", name, **options) or UNKNOWN


def unit_of(measure: Measure, spread: str) -> str:
    """The unit of a score where force spreads have the unit `spread`, in words."""
    return (spread if measure.of_force else measure.unit) or "without a unit"


def refuse_misfits(
    score: str,
    options: Mapping[str, Any],
    gate: str,
    part: Gate,
    uncertainty: str,
    spread: str,
    biases: Sequence[str] = (),
) -> None:
    """Raises InputError for parts that do not go together, with what would.

    Parameters
    ----------
    score, options : name of the score and its options
    gate, part : name of the gate, and the gate
    uncertainty, spread : name of the method, and the unit of its force spreads
    biases : names of the biases
    """
    measure = measure_of(score, options)
    unit = unit_of(measure, spread)
    fitting = [name for name in registry.names("score") if spread == FORCE or not measure_of(name).needs_force]
    if measure.needs_force and spread != FORCE:
        raise InputError(
            f"score.name: {score} needs force spreads in {FORCE}, those of uncertainty.name = {uncertainty} have "
            f"{'no unit' if not spread else f'the unit {spread}'}; give one of {', '.join(fitting)}, or another "
            "uncertainty"
        )
    telling = ", ".join(name for name in fitting if measure_of(name).spread)
    if part.estimates and not measure.spread:
        raise InputError(
            f"gate.name: {gate} estimates errors, of which score.name = {score} ({unit}) tells nothing; give gate.name "
            f"= threshold with a limit in the score's unit, or one of the scores {telling}"
        )
    if "adversarial" in biases and not measure.spread:
        raise InputError(
            f"bias.name: adversarial needs a score that is zero where nothing is unsure, which score.name = {score} is "
            f"not; give one of {telling}, or another bias"
        )


def refuse_idle_limit(implausible: float, default: float, part: Gate, spread: str) -> None:
    """Raises InputError for a `gate.implausible` that somebody has set and nothing is compared with."""
    if not part.estimates and spread != FORCE and implausible != default:
        raise InputError(
            f"gate.implausible: {implausible:g} {FORCE} is compared with nothing here: no error is estimated, and the "
            "force spreads have another unit; give gate.ceiling in the score's unit, or a gate that estimates errors"
        )
