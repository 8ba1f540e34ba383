"""Acquisition scores: how unsure is the committee about one structure?

A score is pure and differentiable; it ignores padded atoms and atom order, and larger means less certain. To
add one, write it here under @register, with its `Measure`: the contract tests run on it by name. Spreads are those
that the method of uncertainty gives in closed form, where it does, else those of the members.
"""

from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxal.core.registry import register
from jaxal.core.types import FORCE, Measure, Prediction, Structure
from jaxal.core.units import Unit


def root(square: Float[Array, "..."]) -> Float[Array, "..."]:
    """Square root with a zero gradient at zero, where the true one is infinite."""
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def atom_variance(prediction: Prediction) -> Float[Array, "n"]:
    """Variance of each atom's force vector, summed over its components, (eV/Å)^2."""
    if prediction.force_spread is not None:
        return prediction.force_spread**2
    return jnp.sum(jnp.var(prediction.force, axis=0), axis=-1)


def atom_spread(prediction: Prediction) -> Float[Array, "n"]:
    """Standard deviation of each atom's force vector, eV/Å; in the method's own unit where it has another."""
    return root(atom_variance(prediction)) if prediction.force_spread is None else prediction.force_spread


def energy_std(prediction: Prediction) -> Float[Array, ""]:
    """Standard deviation of the energy of the structure, eV."""
    return root(jnp.var(prediction.energy)) if prediction.energy_spread is None else prediction.energy_spread


def atom_count(structure: Structure) -> Float[Array, ""]:
    """Number of atoms, at least 1, in the dtype of the positions."""
    return jnp.maximum(jnp.sum(structure.species >= 0), 1).astype(structure.position.dtype)


@register("score", about=lambda: Measure(FORCE, of_force=True))
def max_force_spread(prediction: Prediction, structure: Structure) -> Float[Array, ""]:
    """Worst atom's force spread, eV/Å (the model deviation of Zhang et al., PRMaterials 3, 023804, 2019)."""
    return jnp.max(atom_spread(prediction), where=structure.species >= 0, initial=0.0)


@register("score", about=lambda: Measure(FORCE, of_force=True))
def mean_force_spread(prediction: Prediction, structure: Structure) -> Float[Array, ""]:
    """Root mean square over the atoms of the force spread, eV/Å."""
    real = structure.species >= 0
    square = atom_variance(prediction)
    return root(jnp.sum(jnp.where(real, square, 0.0)) / jnp.maximum(jnp.sum(real), 1))


@register("score", about=lambda: Measure("eV per atom"))
def energy_spread(prediction: Prediction, structure: Structure) -> Float[Array, ""]:
    """Standard deviation of the energy, eV per atom."""
    return energy_std(prediction) / jnp.maximum(jnp.sum(structure.species >= 0), 1)


@register("score", about=lambda **_: Measure("", needs_force=True))
def relative_force_spread(
    prediction: Prediction, structure: Structure, *, floor: Annotated[float, Unit("eV/Å", 0.0, True)] = 0.5
) -> Float[Array, ""]:
    """Worst atom's force spread over the size of its force, without a unit: max_i s_i / (|F_i| + floor).

    s_i is the spread of atom i's force and F_i its mean over the members; `floor` keeps small forces from ruling. The
    relative model deviation of DP-GEN and DeePMD-kit (Zeng et al., J. Chem. Phys. 159, 054801, 2023).
    """
    real = structure.species >= 0
    mean = jnp.where(real[:, None], jnp.mean(prediction.force, axis=0), 0.0)
    size = root(jnp.sum(mean**2, axis=-1))
    return jnp.max(atom_spread(prediction) / (size + floor), where=real, initial=0.0)


@register("score", about=lambda **_: Measure("nats per atom", needs_force=True))
def committee_entropy(
    prediction: Prediction, structure: Structure, *, noise: Annotated[float, Unit("eV/Å", 0.0, True)] = 0.02
) -> Float[Array, ""]:
    """Entropy of the predicted forces above that of labels with some noise, nats per atom.

    The force components of atom i are taken as normal and independent, of variance s_i^2 / 3, and seen with `noise`
    (standard deviation of a component): h = mean_i (3/2) ln(1 + s_i^2 / (3 noise^2)). It is the difference of the
    differential entropies (3/2) ln(2 pi e v) with and without s_i (Cover and Thomas, Elements of Information Theory,
    theorem 8.4.1), so it is the information that a label brings about the forces (MacKay, Neural Comput. 4, 590,
    1992) and zero where nothing is unsure. Unlike the mean spread it counts ratios: a few bad atoms do not rule.
    """
    real = structure.species >= 0
    square = jnp.where(real, atom_variance(prediction), 0.0)
    return 1.5 * jnp.sum(jnp.log1p(square / (3 * noise**2))) / atom_count(structure)
