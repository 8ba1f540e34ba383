"""Random features of full gradients: the network is linear in a few random directions of all its weights.

In the directions S_j the weights move by v = sum_j delta_j S_j and the energy by phi . delta, where
phi_j = S_j . dE/dtheta: Bayesian linear regression with the sketched gradients as features, whose kernel
phi . phi' is, on average over S, the neural tangent kernel.
"""

from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float

from jaxal.acquire.score import root
from jaxal.committee import heads
from jaxal.committee.evaluation import over_members, pullback
from jaxal.core.registry import register
from jaxal.core.types import (
    Distribution,
    Key,
    Lessons,
    Neighbors,
    Params,
    Posterior,
    Potential,
    Structure,
    Uncertainty,
)
from jaxal.core.units import Unit
from jaxal.uncertainty import evidence, gaussian
from jaxal.uncertainty.features import directions as displacements
from jaxal.uncertainty.features import each, if_any, kept, residuals, used

WORD = 32  # signs in one random number


def signs(seed: int, direction: Any, size: int, dtype) -> Float[Array, "t"]:
    """Direction `direction` in the space of `size` weights, of entries +1 and -1: made anew where it is needed."""
    key = jax.random.fold_in(jax.random.key(seed), direction // WORD)
    bits = jax.random.bits(key, (size,), jnp.uint32) >> jnp.asarray(direction % WORD, jnp.uint32)
    return 1 - 2 * (bits & 1).astype(dtype)


@register("uncertainty")
def gradient_sketch(
    potential: Potential,
    species: int,
    *,
    directions: Annotated[int, Unit("", 0)] = 64,
    samples: Annotated[int, Unit("", 1)] = 4,
    probes: Annotated[int, Unit("", 0)] = 4,
    energy_noise: Annotated[float, Unit("eV/atom", 0.0, True)] = 0.005,
    force_noise: Annotated[float, Unit("eV/Å", 0.0, True)] = 0.05,
    seed: int = 0,
) -> Uncertainty:
    """Posterior of the linearized network in random directions of all its weights (sketched neural tangent kernel).

    With phi_j = d^-1/2 S_j . dE/dtheta for d directions S_j of random signs,

        A = lambda + sum over trained structures of phi phi^T / sigma_E^2 + psi psi^T / sigma_F^2,
        Var E = a^2 phi^T A^-1 phi,    E_k = E +- <dE/dtheta, v_k>,    v_k = a d^-1/2 S^T A^-1/2 z_k,

    with fixed normal z_k; psi_j = d^-1/2 S_j . d(F . w)/dtheta are the sketched gradients of the forces along random
    signs w, `probes` for each structure. The 2 `samples` energies are smooth, and forces and stresses are their slopes;
    all v_k share the gradient's way forward, and each takes a way back. a and lambda make the residuals of the forces
    along w most likely, of the held-out labels where there are any. A new structure enters A at once and exactly.

    Directions are made anew, bit by bit, wherever they are needed: with P weights the memory is that of the gradients
    of the structures that are evaluated together, P each, and of one direction, not d P.

    Parameters
    ----------
    potential : its "params" are the weights
    species : rows of the species table
    directions : d; 0 = one along each weight, so that nothing is left out: the full posterior, of P^2 numbers
    samples : draws of the weights, each taken with both signs; forces and stresses know their spread by them alone
    probes : force observations of each structure; 0 = energies alone
    energy_noise : sigma_E over the number of atoms, eV/atom
    force_noise : sigma_F, eV/Å; of the sum over the probes, as they stand for all 3 n components
    seed : of the directions

    Reference: Holzmüller, Zaverkin, Kästner and Steinwart, J. Mach. Learn. Res. 24, 164 (2023), arXiv:2203.09410; for
    the linearized network Immer, Korzepa and Bauer, AISTATS 2021, arXiv:2008.08400.
    """
    del species
    energies = potential.energies or jax.vmap(potential.energy, (None, 0, 0))

    def sketched(slope: Float[Array, "*q t"]) -> Float[Array, "*q d"]:
        """Products with all directions."""
        if not directions:
            return slope
        size, dtype = slope.shape[-1], slope.dtype
        products = jax.lax.map(lambda j: slope @ signs(seed, j, size, dtype), jnp.arange(directions))
        return jnp.moveaxis(products, 0, -1) * directions**-0.5

    def expanded(delta: Float[Array, "k d"], size: int) -> Float[Array, "k t"]:
        """The transpose of `sketched`."""
        if not directions:
            return delta

        def add(j, total):
            return total + delta[:, j, None] * signs(seed, j, size, delta.dtype)

        start = jnp.zeros((delta.shape[0], size), delta.dtype)
        return jax.lax.fori_loop(0, directions, add, start) * directions**-0.5

    def energy_of(params: Params, theta: Params, structure: Structure, neighbors: Neighbors) -> Float[Array, ""]:
        return potential.energy({**params, "params": theta}, structure, neighbors)[0]

    def gradient(params: Params, structure: Structure, neighbors: Neighbors) -> Float[Array, "t"]:
        """dE/dtheta of one structure."""
        return ravel_pytree(jax.grad(energy_of, argnums=1)(params, params["params"], structure, neighbors))[0]

    def observed(params: Params, structure: Structure, neighbors: Neighbors) -> Float[Array, "q d"]:
        """Rows of A over their noise: that of the energy, then those of the forces along the probes."""
        atoms = jnp.maximum(jnp.sum(structure.species >= 0), 1)
        first = gradient(params, structure, neighbors)[None] / (energy_noise * atoms)
        if not probes:
            return sketched(first)

        def forces(theta: Params) -> Float[Array, "n 3"]:
            def of(position):
                return energy_of(params, theta, structure._replace(position=position), neighbors)

            return -jax.grad(of)(structure.position)

        _, pull = jax.vjp(forces, params["params"])
        along = jax.lax.map(lambda w: ravel_pytree(pull(w))[0], displacements(structure, "probes", probes))
        return sketched(jnp.concatenate([first, along / (force_noise * probes**0.5)]))

    def init(key: Key, params: Params, structure: Structure, neighbors: Neighbors) -> Params:
        size, dtype = directions or sum(x.size for x in jax.tree.leaves(params["params"])), structure.position.dtype
        posterior = {
            "root": jnp.eye(size, dtype=dtype),
            "scale": jnp.ones((), dtype),
            "draw": jax.random.normal(key, (samples, size), dtype),
        }
        return {**params, "posterior": posterior}

    def learn(params: Params, lessons: Lessons) -> Posterior:
        structures, neighbors = used(lessons)[:2]
        row = each(lambda *pair: observed(params, *pair), structures, neighbors)  # [c q d]
        trained = jnp.where(lessons.trained[:, None, None], row, 0.0).reshape(-1, row.shape[-1])
        errors = residuals(potential, params, lessons)
        design, there = row[errors.row], errors.valid[:, None]
        if probes:
            judging = jax.tree.map(lambda x: x[errors.row], structures)
            along = jax.vmap(lambda frame: displacements(frame, "probes", probes))(judging)
            gap = jnp.einsum("jrnx,jnx->jr", along, errors.force) / (force_noise * probes**0.5)
            design, there = design[:, 1:], there & jnp.any(along != 0, axis=(2, 3))
        else:
            gap = (errors.energy / (energy_noise * jnp.maximum(jnp.sum(errors.real, axis=1), 1)))[:, None]
        design = design.reshape(-1, row.shape[-1])
        covariance_root, scale = evidence.fitted(trained, design, gap.reshape(-1), there.reshape(-1))
        return {**params["posterior"], "root": covariance_root, "scale": scale}

    def update(params: Params, structures: Structure, neighbors: Neighbors, wanted: Bool[Array, "k"]) -> Posterior:
        old = params["posterior"]
        row = each(lambda *pair: observed(params, *pair), *kept(structures, neighbors, wanted))
        row = jnp.where(wanted[:, None, None], row, 0.0).reshape(-1, row.shape[-1])
        return if_any(wanted, {**old, "root": gaussian.updated(old["root"], row)}, old)

    def with_gradient(params: Params, structures: Structure, neighbors: Neighbors):
        """Energies of a batch, and beside the features the gradient of their sum."""

        def total(theta: Params):
            energy, feature = energies({**params, "params": theta}, structures, neighbors)
            return jnp.sum(energy), (energy, feature)

        slope, (energy, feature) = jax.grad(total, has_aux=True)(params["params"])
        return energy, (feature, ravel_pytree(slope)[0])

    def predict(params: Params, structures: Structure, neighbors: Neighbors) -> Distribution:
        posterior = params["posterior"]
        both: Any = potential._replace(energies=with_gradient)
        pulled: Any = pullback(both, params, structures, neighbors)  # its features are a pair
        energy, (feature, slope), back = pulled
        phi = sketched(over_members(lambda *pair: gradient(params, *pair), "auto")(structures, neighbors))  # [b d]
        delta = posterior["scale"] * posterior["draw"] @ posterior["root"].T  # [k d]
        moves = expanded(delta, slope.shape[-1])
        # the first way back is of the plain model, the others of what the moves add to it
        moves = jnp.concatenate([jnp.zeros_like(moves[:1]), moves])
        share = jnp.zeros((1 + samples, *energy.shape), energy.dtype).at[0].set(1.0)
        none = jnp.zeros_like(feature)
        force, stress = over_members(lambda part, move: back(part, (none, move)), "auto")(share, moves)
        energy = jnp.concatenate([energy[None], delta @ phi.T])
        energy, force, stress = (heads.antithetic(x) for x in (energy, force, stress))
        spread = posterior["scale"] * root(jnp.sum((phi @ posterior["root"]) ** 2, axis=-1))
        feature = jnp.where((structures.species >= 0)[..., None], feature, 0.0)
        return Distribution(energy, force, stress, feature, energy_spread=spread)

    return Uncertainty(init, learn, update, predict)
