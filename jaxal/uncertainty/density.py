"""Density of the features: how far an atom is from where the training set's atoms are."""

from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxal.acquire.kernel import atom_features
from jaxal.acquire.score import root
from jaxal.core.registry import register
from jaxal.core.types import Distribution, Key, Lessons, Neighbors, Params, Posterior, Potential, Structure, Uncertainty
from jaxal.core.units import Unit
from jaxal.uncertainty import mixture
from jaxal.uncertainty.features import closed_form, if_any, kept, of_lessons, projection, residuals, scales, used, width
from jaxal.uncertainty.mixture import Density, Moments


@register("uncertainty")
def density(
    potential: Potential,
    species: int,
    *,
    components: Annotated[int, Unit("", 1)] = 4,
    size: Annotated[int, Unit("", 1)] = 32,
    strength: Annotated[float, Unit("", 0.0)] = 10.0,
) -> Uncertainty:
    """Distance from a Gaussian mixture of the trained atoms' features; Mahalanobis' with one component.

    For each species a mixture p(x) = sum over c of w_c N(x; mu_c, Sigma_c) is fitted to the features x of its trained
    atoms by expectation maximization. The distance of an atom,

        d^2 = -2 log(p(x) / p0),    p0 = sum over c of w_c |2 pi Sigma_c|^-1/2,

    is never negative, and with one component (x - mu)^T Sigma^-1 (x - mu). The force spread is alpha_F d (eV/Å), the
    energy spread alpha_E (sum of d^2)^1/2 (eV); the scales are the most likely for the residuals, of the held-out
    labels where there are any. Features more than `size` are projected on as many random orthonormal directions. An
    update adds the new atoms to the components' means and covariances, each to those it belongs to (with one component
    that is exact).

    Parameters
    ----------
    potential, species : the potential and the rows of its species table
    components : Gaussians of each species
    size : p, features that the density is of, at most
    strength : as many atoms as the covariance of all atoms of the species counts in that of each of its Gaussians

    Reference: Zhu, Batzner, Musaelian and Kozinsky, J. Chem. Phys. 158, 164111 (2023).
    """

    def init(key: Key, params: Params, structure: Structure, neighbors: Neighbors) -> Params:
        turn = projection(key, width(potential, params, structure, neighbors), size, structure.position.dtype)
        p, dtype = turn.shape[1], turn.dtype
        none = Moments(
            jnp.zeros((species, components), dtype),
            jnp.zeros((species, components, p), dtype),
            jnp.zeros((species, components, p, p), dtype),
        )
        return {**params, "posterior": ready({"turn": turn, "scale": jnp.ones(2, dtype)}, none)}

    def ready(posterior: Posterior, moments: Moments) -> Posterior:
        """With the moments and what evaluates them."""
        points = jnp.sum(moments.count, axis=-1)  # [s]
        whole = jnp.sum(points * mixture.variance(mixture.pooled(moments))) / jnp.maximum(jnp.sum(points), 1.0)
        least = mixture.LEAST * jnp.where(whole > 0, whole, 1.0)
        densities = jax.vmap(lambda statistics: mixture.density(statistics, least, strength))(moments)
        return {**posterior, **moments._asdict(), **densities._asdict()}

    def moments_of(posterior: Posterior) -> Moments:
        return Moments(*(posterior[name] for name in Moments._fields))

    def distances(
        posterior: Posterior, feature: Float[Array, "b n f"], kinds: Int[Array, "b n"]
    ) -> Float[Array, "b n"]:
        """Squares of the atoms' distances, 0 where there is none."""
        points = (feature @ posterior["turn"]).reshape(-1, posterior["turn"].shape[1])
        evaluated = moments_of(posterior), Density(*(posterior[name] for name in Density._fields))
        square = jax.vmap(mixture.square_distance, (0, 0, None))(*evaluated, points)  # [s c]
        kind = jax.nn.one_hot(kinds.reshape(-1), species, dtype=square.dtype)
        return jnp.sum(square * kind.T, axis=0).reshape(kinds.shape)

    def learn(params: Params, lessons: Lessons) -> Posterior:
        old, lessons = params["posterior"], used(lessons)
        feature, kinds = of_lessons(potential, params, lessons), lessons.structure.species
        points = (feature @ old["turn"]).reshape(-1, old["turn"].shape[1])
        taught = jnp.where(lessons.trained[:, None], kinds, -1).reshape(-1)
        there = (taught >= 0)[:, None]
        mean = jnp.sum(jnp.where(there, points, 0.0), axis=0) / jnp.maximum(jnp.sum(there), 1)
        square = jnp.where(there, points - mean, 0.0) ** 2
        whole = jnp.sum(square) / (jnp.maximum(jnp.sum(there), 1) * points.shape[1])
        least = mixture.LEAST * jnp.where(whole > 0, whole, 1.0)

        def mixture_of(kind: Int[Array, ""]) -> Moments:
            return mixture.fitted(points, taught == kind, components, least, strength)

        new = ready(old, jax.lax.map(mixture_of, jnp.arange(species)))
        errors = residuals(potential, params, lessons)
        square = jnp.where(errors.real, distances(new, feature, kinds)[errors.row], 0.0)
        return {**new, "scale": scales(errors, jnp.sum(square, axis=-1), square)}

    def update(params: Params, structures: Structure, neighbors: Neighbors, wanted: Bool[Array, "k"]) -> Posterior:
        old = params["posterior"]
        structures, neighbors = kept(structures, neighbors, wanted)
        feature = atom_features(potential, params, structures, neighbors)
        points = (feature @ old["turn"]).reshape(-1, old["turn"].shape[1])
        kinds = structures.species.reshape(-1)
        evaluated = moments_of(old), Density(*(old[name] for name in Density._fields))

        def extended(moments: Moments, density: Density, kind: Int[Array, ""]) -> Moments:
            share = jax.nn.softmax(mixture.logs(moments, density, points), axis=-1)
            return mixture.added(moments, points, jnp.where((kinds == kind)[:, None], share, 0.0))

        return if_any(wanted, ready(old, jax.vmap(extended)(*evaluated, jnp.arange(species))), old)

    def predict(params: Params, structures: Structure, neighbors: Neighbors) -> Distribution:
        scale = params["posterior"]["scale"]

        def spreads(feature: Float[Array, "b n f"]) -> tuple[Float[Array, "b"], Float[Array, "b n"]]:
            square = distances(params["posterior"], feature, structures.species)
            return scale[0] * root(jnp.sum(square, axis=-1)), scale[1] * root(square)

        return closed_form(potential, params, structures, neighbors, spreads)

    return Uncertainty(init, learn, update, predict)
