"""Uphill in uncertainty: how it changes with positions and strain, and the force and stress of a bias made from it.

Where the pseudo-members are models of the energy, each with its own forces, the standard deviation of their energies
E_m needs no further gradient:

    u^2 = sum_m (E_m - mean E)^2 / M,    du/dx = -sum_m (E_m - mean E) F_m / (M u),

and the same for the strain, with stresses. Anything else is differentiated as a whole, through score, committee and
neighbor vectors: one reverse pass over the forward and the reverse pass of the forces.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxal.acquire.score import root
from jaxal.committee import evaluation as committees
from jaxal.committee.evaluation import Committee
from jaxal.core.devices import MEMBERS
from jaxal.core.types import Bias, Neighbors, Params, Prediction, Score, Structure


class Rise(NamedTuple):
    """A measure u of uncertainty of structures [b] and how it changes."""

    value: Float[Array, "b"]
    position: Float[Array, "b n 3"]  # du/dx, 1/Å
    strain: Float[Array, "b 3 3"]  # du/dstrain over the volume, 1/Å^3; zero if open


class Push(NamedTuple):
    """What a bias adds to what drives walkers [w]."""

    energy: Float[Array, "w"]  # eV
    force: Float[Array, "w n 3"]  # eV/Å
    stress: Float[Array, "w 3 3"]  # eV/Å^3


def energy_deviation(prediction: Prediction, structure: Structure) -> Float[Array, ""]:
    """Standard deviation of the energy, eV: the method's closed form, or the members'."""
    del structure
    spread = prediction.energy_spread
    return root(jnp.var(prediction.energy)) if spread is None else spread


def rise(
    committee: Committee,
    measure: Score | None,
    params: Params,
    structures: Structure,
    neighbors: Neighbors,
    prediction: Prediction,
) -> Rise:
    """The measure (None: the energy's standard deviation) of structures [b] that `prediction` is of, and its slopes.

    Inside of `devices.split`, as `evaluation.predict_local`.
    """
    if measure is None and committee.uncertainty is None:
        return _of_members(prediction)
    return _differentiated(committee, measure or energy_deviation, params, structures, neighbors)


def _of_members(prediction: Prediction) -> Rise:
    energy = prediction.energy - jnp.mean(prediction.energy, axis=1, keepdims=True)
    value = root(jnp.mean(energy**2, axis=1))
    share = energy / jnp.where(value > 0, value, 1.0)[:, None] / energy.shape[1]  # all zero where all agree
    position = -jnp.einsum("bm,bmnx->bnx", share, prediction.force, precision="highest")
    return Rise(value, position, jnp.einsum("bm,bmxy->bxy", share, prediction.stress, precision="highest"))


def _differentiated(
    committee: Committee, measure: Score, params: Params, structures: Structure, neighbors: Neighbors
) -> Rise:
    def total(position: Float[Array, "b n 3"], strain: Float[Array, "b 3 3"]):
        moved = committees.deformed(structures._replace(position=position), strain)
        found = committees.predict_local(committee, params, moved, neighbors)
        value = jax.vmap(measure)(found, moved)
        return jnp.sum(value), value

    slopes, value = jax.grad(total, argnums=(0, 1), has_aux=True)(structures.position, jnp.zeros_like(structures.cell))
    mesh = committee.mesh
    if mesh is not None and mesh.shape[MEMBERS] > 1:
        # Every device's copy of the value sends its slope to the members of all: each has the share of its own members,
        # as many times as there are devices.
        slopes = jax.tree.map(lambda x: jax.lax.pmean(x, MEMBERS), slopes)
    return Rise(value, slopes[0], committees.by_volume(slopes[1], structures))


def push(
    bias: Bias,
    committee: Committee,
    state: Any,
    params: Params,
    structures: Structure,
    neighbors: Neighbors,
    prediction: Prediction,
) -> tuple[Push, Any]:
    """Energy, force and stress of a bias on walkers [w], and what it has learned of each; inside of `devices.split`.

    Where the force on any atom exceeds `bias.largest`, force and stress of that walker are scaled down together: its
    direction stays, and its sum over the atoms stays zero. A bias that is not finite is none.
    """
    up = rise(committee, bias.measure, params, structures, neighbors, prediction)
    force = prediction.force.mean(1)

    def one(state: Any, up: Rise, force: Float[Array, "n 3"], structure: Structure) -> tuple[Push, Any]:
        real = (structure.species >= 0)[:, None]
        slope = jnp.where(real, up.position, 0.0)
        learned = bias.learn(state, up.value, slope, jnp.where(real, force, 0.0))
        energy, weight = jax.value_and_grad(bias.energy, argnums=1)(learned, up.value, structure)
        pull, stress = -weight * slope, weight * up.strain
        largest = jnp.max(root(jnp.sum(pull**2, axis=-1)))
        scale = jnp.minimum(1.0, bias.largest / jnp.where(largest > 0, largest, 1.0))
        sound = jnp.isfinite(energy) & jnp.isfinite(largest) & jnp.all(jnp.isfinite(stress))
        pull, stress = (jnp.where(sound, scale * x, 0.0) for x in (pull, stress))
        kept = jax.tree.map(lambda new, old: jnp.where(sound, new, old), learned, state)
        return Push(jnp.where(sound, energy, 0.0), pull, stress), kept

    return jax.vmap(one)(state, up, force, structures)
