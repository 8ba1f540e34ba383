"""Scores by what a label would teach: new atomic environments, and the change it would make to the last layer."""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxal.acquire.score import atom_count, atom_spread, energy_std, root
from jaxal.core.registry import register
from jaxal.core.types import Measure, Prediction, Structure
from jaxal.core.units import Unit


@register("score", about=lambda **_: Measure(""))
def environment_novelty(
    prediction: Prediction,
    structure: Structure,
    *,
    limit: Annotated[float, Unit("", 0.0, True)] = 0.1,
    steepness: Annotated[float, Unit("", 1.0)] = 8.0,
    count: Literal["atoms", "fraction"] = "atoms",
) -> Float[Array, ""]:
    """How many atoms stand in an environment that is new, or which fraction: those whose own spread exceeds a limit.

    sum_i s_i^p / (s_i^p + limit^p), with s_i the spread of atom i, p the `steepness` of the step and half an atom at
    the `limit`, so that it has a gradient. `count` is `atoms` or the `fraction` of them. The limit is in the unit of
    the spread: eV/Å for a committee (0.1); with d_optimality the extrapolation grade, where 2 is the usual limit and
    the worst atom's grade alone is max_force_spread; with a feature density its distance. After the selection by
    environments of Podryabinkin and Shapeev, Comput. Mater. Sci. 140, 171 (2017).
    """
    ratio = atom_spread(prediction) / limit
    there = (structure.species >= 0) & (ratio > 1e-6)  # below, nothing is left of ratio^p
    step = jax.nn.sigmoid(steepness * jnp.log(jnp.where(there, ratio, 1.0)))
    total = jnp.sum(jnp.where(there, step, 0.0))
    return total if count == "atoms" else total / atom_count(structure)


@register("score", about=lambda: Measure("eV"))
def expected_model_change(prediction: Prediction, structure: Structure) -> Float[Array, ""]:
    """Expected length of the step that the energy label asks of the last layer, eV: sqrt(2/pi) (s/n) |g/n|.

    The energy is a sum over n atoms, linear in the last layer's weights: the gradient with respect to them is g, the
    sum of the atoms' features. That of half the squared error per atom is the error times g / n^2, and the error of a
    normal law of standard deviation s has the mean size sqrt(2/pi) s. The expected model change of Cai, Zhang and Zhou
    (IEEE ICDM 2013, 51); for classifiers the expected gradient length of Settles, Craven and Ray (NIPS 2007).
    """
    atoms = atom_count(structure)
    feature = jnp.where((structure.species >= 0)[:, None], prediction.feature, 0.0)
    gradient = root(jnp.sum((jnp.sum(feature, axis=0) / atoms) ** 2))
    return float(np.sqrt(2 / np.pi)) * energy_std(prediction) / atoms * gradient
