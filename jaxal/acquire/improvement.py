"""Scores that look for an extreme of a scalar property: how much better than the best known could it be here?

A property is read off a prediction as a mean and a standard deviation, taken as those of a normal law. These scores are
no estimates of an error: a `threshold` gate compares them with a limit in their own unit, and they fit no gate that
learns a factor.
"""

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Float

from jaxal.acquire.score import atom_count, energy_std, root
from jaxal.core.registry import register
from jaxal.core.types import FORCE, Measure, Prediction, Structure
from jaxal.core.units import Unit

SURE = 10.0  # standard deviations beyond which nothing is left of the tail of a normal law, in float32
NONE = 1e-12  # a standard deviation that is none, in the property's unit: its square is still a number in float32


class Property(NamedTuple):
    """What is known of a scalar: its mean and standard deviation, in its own unit."""

    mean: Float[Array, ""]
    std: Float[Array, ""]


def _energy(prediction: Prediction, structure: Structure) -> Property:
    """Energy, eV per atom."""
    atoms = atom_count(structure)
    return Property(jnp.mean(prediction.energy) / atoms, energy_std(prediction) / atoms)


def _largest_force(prediction: Prediction, structure: Structure) -> Property:
    """Force on the atom of the largest mean force, eV/Å, to first order: its spread is that along the mean force."""
    real = structure.species >= 0
    mean = jnp.where(real[:, None], jnp.mean(prediction.force, axis=0), 0.0)
    size = root(jnp.sum(mean**2, axis=-1))
    atom = jnp.argmax(size)
    if prediction.force_spread is not None:  # the same in all directions
        return Property(size[atom], prediction.force_spread[atom] / 3**0.5)
    along = mean[atom] / jnp.where(size[atom] > 0, size[atom], 1.0)
    return Property(size[atom], root(jnp.var(prediction.force[:, atom] @ along)))


PROPERTIES: dict[str, Callable[[Prediction, Structure], Property]] = {
    "energy": _energy,
    "largest_force": _largest_force,
}
UNITS = {"energy": "eV per atom", "largest_force": FORCE}
Name = Literal["energy", "largest_force"]
Goal = Literal["low", "high"]


def _gain(
    prediction: Prediction, structure: Structure, name: str, goal: str, best: float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """By how much the mean is better than `best`, and its standard deviation."""
    law = PROPERTIES[name](prediction, structure)
    return (best - law.mean if goal == "low" else law.mean - best), law.std


def _standard(gain: Float[Array, ""], std: Float[Array, ""]) -> tuple[Float[Array, ""], ...]:
    """(gain / std, std), with 0 and 1 in their place where gain is beyond all doubt, and whether it is."""
    sure = (std <= NONE) | (SURE * std <= jnp.abs(gain))
    safe = jnp.where(sure, 1.0, std)
    return jnp.where(sure, 0.0, gain) / safe, safe, sure


def _gained(unit: str, property: str) -> Measure:
    return Measure(unit, spread=False, needs_force=property == "largest_force")


@register("score", about=lambda **_: Measure("eV per atom", spread=False))
def confidence_bound(
    prediction: Prediction,
    structure: Structure,
    *,
    kappa: Annotated[float, Unit("", 0.0)] = 2.0,
    best: Annotated[float, Unit("eV/atom")] = 0.0,
) -> Float[Array, ""]:
    """Optimistic guess of how far the energy per atom lies below `best`, eV: kappa s - (mu - best).

    mu and s are the mean and standard deviation of the energy per atom: structures of low energy that the committee is
    unsure of come first. Energies are those of the program: total energies less the reference energies of the species,
    which are fitted to the first labels, so compositions can be compared. `best` (eV per atom) moves all scores alike.
    The lower confidence bound of Cox and John (IEEE Int. Conf. Syst. Man Cybern., 1241, 1992); Srinivas et al.,
    arXiv:0912.3995, say how kappa should grow. At fixed mu it grows with s; it may be negative.
    """
    energy = _energy(prediction, structure)
    return kappa * energy.std - (energy.mean - best)


@register("score", about=lambda property, **_: _gained(UNITS[property], property))
def expected_improvement(
    prediction: Prediction,
    structure: Structure,
    *,
    property: Name = "energy",
    goal: Goal = "low",
    best: Annotated[float, Unit("")] = 0.0,
) -> Float[Array, ""]:
    """By how much a property is expected to be better than the best known, in its unit: d Phi(d/s) + s phi(d/s).

    d is by how much the mean is better than the incumbent `best`, s the standard deviation, Phi and phi the normal law
    and its density (Jones, Schonlau and Welch, J. Glob. Optim. 13, 455, 1998, eq. 15). `property` is `energy` (eV per
    atom, relative to the reference energies of the species) or `largest_force` (eV/Å, of an atom); `goal` says whether
    `low` or `high` is better. For a barrier let walkers be pulled over it and look for high energies. At fixed d it
    grows with s; without spread it is max(d, 0).
    """
    gain, std = _gain(prediction, structure, property, goal, best)
    z, safe, sure = _standard(gain, std)
    return jnp.where(sure, jnp.maximum(gain, 0.0), safe * jnp.maximum(z * norm.cdf(z) + norm.pdf(z), 0.0))


@register("score", about=lambda property, **_: _gained("", property))
def probability_of_improvement(
    prediction: Prediction,
    structure: Structure,
    *,
    property: Name = "energy",
    goal: Goal = "low",
    best: Annotated[float, Unit("")] = 0.0,
) -> Float[Array, ""]:
    """Probability that a property is better than the best known: Phi(d/s).

    Symbols and options (`property`, `goal`, `best`) are those of expected_improvement (Kushner, J. Basic Eng. 86, 97,
    1964). It grows with s where the mean is worse than `best`, and falls where it is better.
    """
    gain, std = _gain(prediction, structure, property, goal, best)
    z, _, sure = _standard(gain, std)
    return jnp.where(sure, (gain > 0).astype(z.dtype), norm.cdf(z))
