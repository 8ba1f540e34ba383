"""D-optimality: how far the features of an atom extrapolate from those of an active set of trained atoms."""

from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxal.acquire.kernel import atom_features
from jaxal.acquire.score import root
from jaxal.core.registry import register
from jaxal.core.types import Distribution, Key, Lessons, Neighbors, Params, Posterior, Potential, Structure, Uncertainty
from jaxal.core.units import Unit
from jaxal.uncertainty.features import closed_form, if_any, kept, of_lessons, projection, residuals, scales, used, width
from jaxal.uncertainty.maxvol import maxvol

RIDGE = 1e-2  # length of the axes that begin an active set, over the root mean square of the features


@register("uncertainty")
def d_optimality(
    potential: Potential,
    species: int,
    *,
    size: Annotated[int, Unit("", 1)] = 32,
    tolerance: Annotated[float, Unit("", 0.0, True)] = 0.01,
) -> Uncertainty:
    """Extrapolation grade of each atom's features over an active set chosen by MaxVol (not in eV/Å).

    The active set of a species is the square matrix of largest volume whose rows are the features x of trained atoms,
    A [p p]. The grade of an atom is gamma = max_j |(x A^-1)_j|: at most about 1 for atoms that were trained on, above 1
    for those that extrapolate, with the usual thresholds 2 (worth a label) and 10 (not to be trusted). The force spread
    is gamma itself: use `gate: {name: threshold, limit: 2, ceiling: 10}`, or a conformal gate, whose factor turns gamma
    into eV/Å. Of several sets of weights the largest gamma counts. The energy spread is alpha (sum of gamma^2)^1/2 in
    eV, alpha the most likely for the energies' residuals.

    Directions that no trained atom has are closed by the axes, `RIDGE` times the features' root mean square long, so an
    atom that goes there has a large grade, not an infinite one. More features than `size` are projected on as many
    random orthonormal directions.

    Parameters
    ----------
    potential, species : the potential and the rows of its species table
    size : p, atoms in the active set of a species, at most
    tolerance : of MaxVol: no trained atom has a grade above 1 + tolerance

    References: Podryabinkin and Shapeev, Comput. Mater. Sci. 140, 171 (2017); Lysogorskiy, Bochkarev, Mrovec and
    Drautz, Phys. Rev. Mater. 7, 043801 (2023).
    """

    def init(key: Key, params: Params, structure: Structure, neighbors: Neighbors) -> Params:
        turn = projection(key, width(potential, params, structure, neighbors), size, structure.position.dtype)
        axes = jnp.broadcast_to(jnp.eye(turn.shape[1], dtype=turn.dtype), (species, *(turn.shape[1],) * 2))
        # as after learning from nothing
        posterior = {"turn": turn, "active": RIDGE * axes, "inverse": axes / RIDGE, "scale": jnp.ones((), turn.dtype)}
        return {**params, "posterior": posterior}

    def swapped(
        posterior: Posterior, active: Float[Array, "s p p"], rows: Float[Array, "c p"], kinds: Int[Array, "c"]
    ) -> Posterior:
        """With the rows that make the volumes larger; rows of species -1 are none."""

        def active_of(kind: Int[Array, ""]) -> Float[Array, "p p"]:
            return maxvol(active[kind], rows, kinds == kind, tolerance)

        active = jax.lax.map(active_of, jnp.arange(species))
        return {**posterior, "active": active, "inverse": jnp.linalg.inv(active)}

    def grade(posterior: Posterior, feature: Float[Array, "b n f"], kinds: Int[Array, "b n"]) -> Float[Array, "b n"]:
        kind = jax.nn.one_hot(kinds, species, dtype=feature.dtype)
        coefficient = jnp.einsum("bnp,spq,bns->bnq", feature @ posterior["turn"], posterior["inverse"], kind)
        return jnp.max(jnp.abs(coefficient), axis=-1)

    def learn(params: Params, lessons: Lessons) -> Posterior:
        old, lessons = params["posterior"], used(lessons)
        feature = of_lessons(potential, params, lessons)
        kinds = jnp.where(lessons.trained[:, None], lessons.structure.species, -1)
        rows = feature @ old["turn"]
        square = jnp.sum(jnp.where((kinds >= 0)[..., None], rows, 0.0) ** 2) / jnp.maximum(jnp.sum(kinds >= 0), 1)
        ridge = RIDGE * jnp.sqrt(jnp.where(square > 0, square / rows.shape[-1], 1.0))
        axes = jnp.broadcast_to(ridge * jnp.eye(rows.shape[-1], dtype=rows.dtype), old["active"].shape)
        new = swapped(old, axes, rows.reshape(-1, rows.shape[-1]), kinds.reshape(-1))
        errors = residuals(potential, params, lessons)
        gamma = jnp.where(errors.real, grade(new, feature, lessons.structure.species)[errors.row], 0.0)
        return {**new, "scale": scales(errors, jnp.sum(gamma**2, axis=-1), gamma**2)[0]}

    def update(params: Params, structures: Structure, neighbors: Neighbors, wanted: Bool[Array, "k"]) -> Posterior:
        old = params["posterior"]
        structures, neighbors = kept(structures, neighbors, wanted)
        rows = atom_features(potential, params, structures, neighbors) @ old["turn"]
        rows, kinds = rows.reshape(-1, rows.shape[-1]), structures.species.reshape(-1)
        return if_any(wanted, swapped(old, old["active"], rows, kinds), old)

    def predict(params: Params, structures: Structure, neighbors: Neighbors) -> Distribution:
        def spreads(feature: Float[Array, "b n f"]) -> tuple[Float[Array, "b"], Float[Array, "b n"]]:
            gamma = grade(params["posterior"], feature, structures.species)
            return params["posterior"]["scale"] * root(jnp.sum(gamma**2, axis=-1)), gamma

        return closed_form(potential, params, structures, neighbors, spreads)

    return Uncertainty(init, learn, update, predict, unit="")
