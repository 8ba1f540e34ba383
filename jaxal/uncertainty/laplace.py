"""Last-layer Laplace approximation: the weights of a linear readout are normally distributed, all others fixed.

The energy is linear in phi, the sums over the atoms of each species of their features, so the posterior is that of
Bayesian linear regression, in closed form.
"""

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxal.acquire.kernel import atom_features
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
from jaxal.uncertainty.features import directions, each, if_any, kept, residuals, used, width


def sums(feature: Float[Array, "n f"], species: Int[Array, "n"], kinds: int) -> Float[Array, "d"]:
    """Sums of the features over the atoms of each species, one species after the other."""
    kind = jax.nn.one_hot(species, kinds, dtype=feature.dtype)  # zeros for padding
    return (kind.T @ feature).reshape(-1)


@register("uncertainty")
def laplace(
    potential: Potential,
    species: int,
    *,
    samples: Annotated[int, Unit("", 1)] = 4,
    rows: Literal["energy", "probes", "forces"] = "probes",
    probes: Annotated[int, Unit("", 1)] = 4,
    energy_noise: Annotated[float, Unit("eV/atom", 0.0, True)] = 0.005,
    force_noise: Annotated[float, Unit("eV/Å", 0.0, True)] = 0.05,
) -> Uncertainty:
    """Posterior over the weights of the readout, updated in closed form by every structure (prediction rigidity).

    With phi [s f] the sums over the atoms of each of s species of their f invariant features and J = dphi/dx,

        A = lambda + sum over trained structures of phi phi^T / sigma_E^2 + J^T J / sigma_F^2,
        Var E = alpha^2 phi^T A^-1 phi,    E_k = E +- alpha phi^T A^-1/2 z_k    with fixed normal z_k,

    so forces, stresses and their spreads are those of the 2 `samples` energies E_k, which cost one pass forward and
    1 + `samples` back; the energy spread is the closed form. J^T J is a sum over 3 n force components ("forces"), its
    unbiased estimate from `probes` products of J with random signs ("probes"), or left out ("energy"). alpha and
    lambda are those that make the residuals most likely, of the held-out labels where there are any: residuals of the
    forces along the same directions, or of the energies where no forces are in A. The readout's constants for each
    species are not in phi: a constant energy is not uncertain.

    Parameters
    ----------
    potential : its energy should be linear in its features, but for terms without weights
    species : rows of the species table
    samples : draws of the weights, each taken with both signs; forces and stresses know their spread by them alone
    rows : what of a trained structure enters A
    probes : products with random signs, for each structure
    energy_noise : sigma_E over the number of atoms, eV/atom
    force_noise : sigma_F, eV/Å

    References: Bigi, Chong, Ceriotti and Grasselli, Mach. Learn.: Sci. Technol. 5, 045018 (2024), arXiv:2403.02251;
    Daxberger et al., NeurIPS 2021, arXiv:2106.14806.
    """

    def init(key: Key, params: Params, structure: Structure, neighbors: Neighbors) -> Params:
        size = species * width(potential, params, structure, neighbors)
        dtype = structure.position.dtype
        posterior = {
            "root": jnp.eye(size, dtype=dtype),
            "scale": jnp.ones((), dtype),
            "draw": jax.random.normal(key, (samples, size), dtype),
        }
        return {**params, "posterior": posterior}

    def observed(params: Params, structure: Structure, neighbors: Neighbors) -> Float[Array, "q d"]:
        """Rows of A over their noise: that of the energy, then those of the forces along `directions`."""

        def phi(position: Float[Array, "n 3"]) -> Float[Array, "d"]:
            moved = structure._replace(position=position)
            feature = atom_features(potential, params, *jax.tree.map(lambda x: x[None], (moved, neighbors)))[0]
            return sums(feature, structure.species, species)

        value, pull = jax.vjp(phi, structure.position)
        atoms = jnp.maximum(jnp.sum(structure.species >= 0), 1)
        first = value[None] / (energy_noise * atoms)
        if rows == "energy":
            return first
        # J v as the transpose of v -> v^T J: the gather of neighbors has a rule for the way back only
        _, push = jax.vjp(lambda u: pull(u)[0], jnp.zeros_like(value))
        slope = jax.lax.map(lambda v: push(v)[0], directions(structure, rows, probes), batch_size=8)
        return jnp.concatenate([first, slope / noise_along()])

    def noise_along() -> float:
        """Noise of a force along a direction whose square counts once, or as one of the probes, eV/Å."""
        return force_noise * (probes**0.5 if rows == "probes" else 1.0)

    def learn(params: Params, lessons: Lessons) -> Posterior:
        structure, neighbors = used(lessons)[:2]
        row = each(lambda *pair: observed(params, *pair), structure, neighbors)  # [c q d]
        trained = jnp.where(lessons.trained[:, None, None], row, 0.0).reshape(-1, row.shape[-1])
        errors = residuals(potential, params, lessons)
        design, there = row[errors.row], errors.valid[:, None]
        if rows == "energy":
            gap = (errors.energy / (energy_noise * jnp.maximum(jnp.sum(errors.real, axis=1), 1)))[:, None]
        else:
            judging = jax.tree.map(lambda x: x[errors.row], structure)
            along = jax.vmap(lambda frame: directions(frame, rows, probes))(judging)
            gap = jnp.einsum("jrnx,jnx->jr", along, errors.force) / noise_along()
            design, there = design[:, 1:], there & jnp.any(along != 0, axis=(2, 3))
        design = design.reshape(-1, row.shape[-1])
        covariance_root, scale = evidence.fitted(trained, design, gap.reshape(-1), there.reshape(-1))
        return {**params["posterior"], "root": covariance_root, "scale": scale}

    def update(params: Params, structures: Structure, neighbors: Neighbors, wanted: Bool[Array, "k"]) -> Posterior:
        old = params["posterior"]
        row = each(lambda *pair: observed(params, *pair), *kept(structures, neighbors, wanted))
        row = jnp.where(wanted[:, None, None], row, 0.0).reshape(-1, row.shape[-1])
        return if_any(wanted, {**old, "root": gaussian.updated(old["root"], row)}, old)

    def predict(params: Params, structures: Structure, neighbors: Neighbors) -> Distribution:
        posterior = params["posterior"]
        energy, feature, back = pullback(potential, params, structures, neighbors)
        feature = jnp.where((structures.species >= 0)[..., None], feature, 0.0)
        phi = jax.vmap(sums, (0, 0, None))(feature, structures.species, species)  # [b d]
        weight = posterior["scale"] * posterior["draw"] @ posterior["root"].T  # [k d]
        spread = posterior["scale"] * root(jnp.sum((phi @ posterior["root"]) ** 2, axis=-1))
        kind = jax.nn.one_hot(structures.species, species, dtype=feature.dtype)
        slope = jnp.einsum("bns,ksf->kbnf", kind, weight.reshape(samples, species, -1))
        slope = jnp.concatenate([jnp.zeros_like(slope[:1]), slope])
        share = jnp.zeros((1 + samples, *energy.shape), energy.dtype).at[0].set(1.0)
        force, stress = over_members(back, "auto")(share, slope)
        energies = jnp.concatenate([energy[None], weight @ phi.T])
        energies, force, stress = (heads.antithetic(x) for x in (energies, force, stress))
        return Distribution(energies, force, stress, feature, energy_spread=spread)

    return Uncertainty(init, learn, update, predict)
