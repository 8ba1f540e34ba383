"""Sparse Gaussian process on the features of the atoms: the variance of its kernel, not its mean."""

from typing import Annotated, Literal

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxal.acquire.kernel import atom_features
from jaxal.acquire.score import root
from jaxal.core.registry import register
from jaxal.core.types import Distribution, Key, Lessons, Neighbors, Params, Posterior, Potential, Structure, Uncertainty
from jaxal.core.units import Unit
from jaxal.uncertainty import gaussian, sparse
from jaxal.uncertainty.features import closed_form, if_any, kept, of_lessons, residuals, scales, used, width

SPARE = 16  # slots for inducing atoms that only updates fill, until the next training


@register("uncertainty")
def gaussian_process(
    potential: Potential,
    species: int,
    *,
    kernel: Literal["dot_product", "squared_exponential"] = "dot_product",
    power: Annotated[int, Unit("", 1)] = 2,
    length: Annotated[float, Unit("", 0.0, True)] = 0.3,
    inducing: Annotated[int, Unit("", 1)] = 64,
    noise: Annotated[float, Unit("", 0.0, True)] = 0.01,
) -> Uncertainty:
    """Variance of a sparse Gaussian process on the atoms' features, far from the data that of its prior.

    The energy of a structure is the sum of its atoms', each a Gaussian process of unit prior variance on the normalized
    features u of the potential: k = (u . u')^power or exp(-|u - u'|^2 / (2 length^2)) between atoms of one species, 0
    otherwise. With psi = L^-1 k(x) from K = L L^T of the m inducing atoms, Psi the sum over a structure's atoms and k_E
    that of k over its pairs,

        Var E = alpha_E^2 [k_E - |Psi|^2 + Psi^T (1 + sum over trained of Psi Psi^T / (noise^2 N))^-1 Psi],
        force spread of atom i = alpha_F (k(x_i, x_i) - |psi_i|^2)^1/2,

    the exact posterior where every trained atom is inducing (DTC, with the prior's own variance where the inducing
    atoms tell nothing; Quinonero-Candela and Rasmussen, J. Mach. Learn. Res. 6, 1939, 2005), and FLARE's local energy
    uncertainty. alpha_E (eV) and alpha_F (eV/Å) are the most likely for the residuals, of the held-out labels where
    there are any. Inducing atoms are those of largest remaining variance, one after the other. An update takes the new
    structure's atoms as further ones, in which the structures trained before are taken to have no part.

    Parameters
    ----------
    potential, species : the potential and the rows of its species table
    kernel, power, length : of two atoms, as above
    inducing : m, atoms of the training set, of all species together; a few more are for updates
    noise : of an atom's energy, over the prior's standard deviation

    References: Vandermause et al., npj Comput. Mater. 6, 20 (2020); Xie et al., npj Comput. Mater. 9, 36 (2023).
    """
    del species  # atoms of different species have nothing in common, however many there are
    slots = inducing + SPARE

    def similarity(a: Float[Array, "... f"], b: Float[Array, "... f"]) -> Float[Array, "..."]:
        product = a @ jnp.swapaxes(b, -1, -2) if b.ndim > 1 else a @ b
        if kernel == "dot_product":
            return product**power
        return jnp.exp((jnp.minimum(product, 1.0) - 1) / length**2)  # both have length 1

    def of(feature: Float[Array, "b n f"], kinds: Int[Array, "b n"]) -> sparse.Atoms:
        flat = feature.reshape(-1, feature.shape[-1])
        return sparse.Atoms(sparse.normalized(flat), kinds.reshape(-1))

    def init(key: Key, params: Params, structure: Structure, neighbors: Neighbors) -> Params:
        del key
        size = width(potential, params, structure, neighbors) + 1  # as `sparse.normalized` has it
        return {**params, "posterior": empty(size, structure.position.dtype)}

    def empty(size: int, dtype) -> Posterior:
        return {
            "inducing": jnp.zeros((slots, size), dtype),
            "species": jnp.full(slots, sparse.EMPTY, jnp.int32),
            "whiten": jnp.eye(slots, dtype=dtype),
            "root": jnp.eye(slots, dtype=dtype),
            "scale": jnp.ones(2, dtype),
        }

    def sums(psi: Float[Array, "c m"], kinds: Int[Array, "b n"]) -> tuple[Float[Array, "b m"], Float[Array, "b"]]:
        """Psi of the structures, and the standard deviation of their noise."""
        total = jnp.sum(jnp.where((kinds >= 0)[..., None], psi.reshape(*kinds.shape, -1), 0.0), axis=1)
        return total, noise * jnp.sqrt(jnp.maximum(jnp.sum(kinds >= 0, axis=1), 1).astype(psi.dtype))

    def variances(
        posterior: Posterior, psi: Float[Array, "c m"], atoms: sparse.Atoms, kinds: Int[Array, "b n"]
    ) -> tuple[Float[Array, "b"], Float[Array, "b n"]]:
        """Of the structures' energies and of their atoms', in the prior's unit."""
        total, _ = sums(psi, kinds)
        own = atoms.feature.reshape(*kinds.shape, -1)
        both = (kinds[:, :, None] == kinds[:, None, :]) & (kinds >= 0)[:, :, None]
        prior = jnp.sum(jnp.where(both, similarity(own, own), 0.0), axis=(1, 2))
        known = jnp.sum((total @ posterior["root"]) ** 2, axis=-1)
        energy = jnp.maximum(prior - jnp.sum(total**2, axis=-1), 0.0) + known
        return energy, sparse.unexplained(psi, atoms).reshape(kinds.shape)

    def learn(params: Params, lessons: Lessons) -> Posterior:
        lessons = used(lessons)
        kinds = lessons.structure.species
        atoms = of(of_lessons(potential, params, lessons), kinds)
        teaching = atoms._replace(species=jnp.where(lessons.trained[:, None], kinds, -1).reshape(-1))
        new = empty(atoms.feature.shape[-1], atoms.feature.dtype)
        new, _ = sparse.grown(similarity, new, teaching, inducing, jnp.zeros((kinds.size, slots), atoms.feature.dtype))
        psi = sparse.coordinates(similarity, new, atoms)
        total, deviation = sums(psi, kinds)
        row = jnp.where(lessons.trained[:, None], total / deviation[:, None], 0.0)
        values, vectors = jnp.linalg.eigh(row.T @ row)
        new["root"] = gaussian.inverse_root(1.0 + jnp.maximum(values, 0.0), vectors)
        errors = residuals(potential, params, lessons)
        energy, atom = (x[errors.row] for x in variances(new, psi, atoms, kinds))
        return {**new, "scale": scales(errors, energy, atom)}

    def update(params: Params, structures: Structure, neighbors: Neighbors, wanted: Bool[Array, "k"]) -> Posterior:
        old = params["posterior"]
        structures, neighbors = kept(structures, neighbors, wanted)
        atoms = of(atom_features(potential, params, structures, neighbors), structures.species)
        new, psi = sparse.grown(similarity, old, atoms, SPARE, sparse.coordinates(similarity, old, atoms))
        total, deviation = sums(psi, structures.species)
        row = jnp.where(wanted[:, None], total / deviation[:, None], 0.0)
        return if_any(wanted, {**new, "root": gaussian.updated(new["root"], row)}, old)

    def predict(params: Params, structures: Structure, neighbors: Neighbors) -> Distribution:
        posterior = params["posterior"]

        def spreads(feature: Float[Array, "b n f"]) -> tuple[Float[Array, "b"], Float[Array, "b n"]]:
            atoms = of(feature, structures.species)
            psi = sparse.coordinates(similarity, posterior, atoms)
            energy, atom = variances(posterior, psi, atoms, structures.species)
            return posterior["scale"][0] * root(energy), posterior["scale"][1] * root(atom)

        return closed_form(potential, params, structures, neighbors, spreads)

    return Uncertainty(init, learn, update, predict)
