"""Evidential regression: a head on the features tells, beside the model's forces, how much evidence there is for them.

Its outputs are the parameters of a normal-inverse-gamma distribution: the mean of a number is normal with variance
sigma^2 / nu, and sigma^2 is inverse gamma with shape alpha and scale beta.
"""

from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln
from jaxtyping import Array, Bool, Float, Int

from jaxal.acquire.score import root
from jaxal.committee import heads
from jaxal.committee.evaluation import evaluate_batch
from jaxal.core.registry import register
from jaxal.core.types import (
    Distribution,
    Key,
    Label,
    Lessons,
    Neighbors,
    Params,
    Posterior,
    Potential,
    Structure,
    Uncertainty,
)
from jaxal.core.units import Unit
from jaxal.uncertainty.features import each, residuals, scales, used, width

NAME = "evidential"  # of its weights among the potential's
LEAST = 1e-4  # of nu, alpha - 1 and beta: a variance stays finite
START = (0.0, 0.0, -4.0)  # of the outputs: begins with errors of a tenth of what the forces are


class Evidence(NamedTuple):
    """Of any shape; the number is told in units in which beta has the square."""

    nu: Float[Array, "..."]  # observations that the mean is worth
    alpha: Float[Array, "..."]  # above 1: half of the observations that the variance is worth
    beta: Float[Array, "..."]


def negative_log_likelihood(evidence: Evidence, error: Float[Array, "..."]) -> Float[Array, "..."]:
    """Of a number whose deviation from the predicted mean is `error`.

    The marginal is Student's t with 2 alpha degrees of freedom and scale (beta (1 + nu) / (nu alpha))^1/2; with
    Omega = 2 beta (1 + nu) this is eq. 8 of Amini et al., arXiv:1910.02600:

        log(pi / nu) / 2 - alpha log Omega + (alpha + 1/2) log(nu error^2 + Omega)
            + log(Gamma(alpha) / Gamma(alpha + 1/2))
    """
    nu, alpha, beta = evidence
    omega = 2 * beta * (1 + nu)
    # alpha cancels between the two logarithms of Omega: one quotient rounds less
    logarithms = 0.5 * jnp.log(jnp.pi / nu) + (alpha + 0.5) * jnp.log1p(nu * error**2 / omega) + 0.5 * jnp.log(omega)
    return logarithms + gammaln(alpha) - gammaln(alpha + 0.5)


def epistemic(evidence: Evidence) -> Float[Array, "..."]:
    """Variance of the mean, beta / (nu (alpha - 1))."""
    return evidence.beta / (evidence.nu * (evidence.alpha - 1))


def _evidence(output: Float[Array, "3 ..."]) -> Evidence:
    raw = output + jnp.asarray(START, output.dtype).reshape(3, *(1,) * (output.ndim - 1))
    nu, more, beta = jax.nn.softplus(raw) + LEAST
    return Evidence(nu, 1 + more, beta)


@register("uncertainty")
def evidential(
    potential: Potential,
    species: int,
    *,
    regularizer: Annotated[float, Unit("", 0.0)] = 0.01,
    weight: Annotated[float, Unit("", 0.0, True)] = 0.1,
    units: Annotated[int, Unit("", 1)] = 32,
    trains: Literal["head", "model"] = "head",
) -> Uncertainty:
    """Evidential regression: a normal-inverse-gamma head on the features, at the cost of one model.

    A network of one hidden layer gives (nu, alpha, beta) of the three force components of every atom i from its
    invariant features, and, as means over the atoms, those of the energy per atom. With the negative log-likelihood
    of the marginal, a Student t, training adds to the loss, for each component of the forces and for the energy
    per atom,

        weight (NLL + regularizer |error| (2 nu + alpha)),

    errors in units of the potential's scale. The spreads are the epistemic ones,

        force: a_F (3 beta_i / (nu_i (alpha_i - 1)))^1/2,    energy: a_E n (beta / (nu (alpha - 1)))^1/2,

    for n atoms, where a_F and a_E, learned after every training, make the residuals of the held-out labels most likely.
    The prediction is the plain model. A new structure changes nothing before it is trained on.

    The likelihood alone leaves nu undetermined: the marginal knows beta (1 + nu) / nu. What tells epistemic from
    aleatoric is the regularizer, which keeps nu small where errors are large (Meinert, Gawlikowski and Lavin, AAAI
    2023, arXiv:2205.10060). So the spread ranks by how large errors were on the like of what was trained on; far
    from it, it says what the network extrapolates.

    Parameters
    ----------
    potential : has the features
    species : rows of the species table
    regularizer : weight of |error| (2 nu + alpha) beside the likelihood
    weight : of all that, beside the loss
    units : hidden units of the network
    trains : what learns from this loss: the head alone, so that forces are those without it, or the model as well

    References: Amini, Schwarting, Soleimany and Rus, NeurIPS 2020, arXiv:1910.02600; for molecules Soleimany et al.,
    ACS Cent. Sci. 7, 1356 (2021).
    """

    def init(key: Key, params: Params, structure: Structure, neighbors: Neighbors) -> Params:
        size, dtype = width(potential, params, structure, neighbors), structure.position.dtype
        key_first, key_last = jax.random.split(key)
        weights = heads.first_weights((key_first, key_last), (6, size, units, species), dtype)
        weights = weights._replace(last=0.1 * weights.last)  # begin about alike for all atoms
        trained = {**params.get("params", {}), NAME: weights._asdict()}
        return {**params, "params": trained, "posterior": {"scale": jnp.ones(2, dtype)}}

    def evidences(
        params: Params, feature: Float[Array, "b n f"], kinds: Int[Array, "b n"]
    ) -> tuple[Evidence, Evidence]:
        """Of the energies per atom [b], and of the forces of the atoms [b n], in the potential's unit."""
        weights = heads.Weights(**params["params"][NAME])
        feature = jnp.where((kinds >= 0)[..., None], feature, 0.0)
        output = jax.vmap(lambda head: jax.vmap(heads.atomic, (None, 0, 0))(head, feature, kinds))(weights)  # [6 b n]
        count = jnp.maximum(jnp.sum(kinds >= 0, axis=-1), 1)
        return _evidence(jnp.sum(output[:3], axis=-1) / count), _evidence(output[3:])

    def variances(
        params: Params, feature: Float[Array, "b n f"], kinds: Int[Array, "b n"]
    ) -> tuple[Float[Array, "b"], Float[Array, "b n"]]:
        """Of the energies, eV^2, and of the force vectors, (eV/Å)^2, before they are scaled; zero for padding."""
        energy, force = evidences(params, feature, kinds)
        real = kinds >= 0
        square = heads.scale_of(params) ** 2
        count = jnp.sum(real, axis=-1)
        return square * count**2 * epistemic(energy), jnp.where(real, 3 * square * epistemic(force), 0.0)

    def penalty(params: Params, structures: Structure, labels: Label, said: Distribution) -> Float[Array, ""]:
        kinds, scale = structures.species, heads.scale_of(params)
        real = kinds >= 0
        count = jnp.maximum(jnp.sum(real, axis=-1), 1)
        known = jnp.isfinite(labels.energy)
        energy = jnp.where(known, said.energy[0] - jnp.where(known, labels.energy, 0.0), 0.0) / (scale * count)
        known = real[..., None] & jnp.isfinite(labels.force)
        force = jnp.where(known, said.force[0] - jnp.where(known, labels.force, 0.0), 0.0) / scale
        feature = said.feature
        if trains == "head":
            energy, force, feature = jax.lax.stop_gradient((energy, force, feature))
        of_energy, of_force = evidences(params, feature, kinds)
        of_force = Evidence(*(x[..., None] for x in of_force))  # the same for all components

        def cost(evidence: Evidence, error: Float[Array, "..."]) -> Float[Array, "..."]:
            against = jnp.abs(error) * (2 * evidence.nu + evidence.alpha)
            return negative_log_likelihood(evidence, error) + regularizer * against

        costs = jnp.where(real[..., None], cost(of_force, force), 0.0)
        total = jnp.sum(costs) / jnp.maximum(3 * jnp.sum(real), 1) + jnp.mean(cost(of_energy, energy))
        return weight * total

    def predict(params: Params, structures: Structure, neighbors: Neighbors) -> Distribution:
        energy, force, stress, feature = evaluate_batch(potential, params, structures, neighbors)
        scale = params["posterior"]["scale"]
        spreads = (root(x) for x in variances(params, feature, structures.species))
        of_energy, of_force = (a * x for a, x in zip(scale, spreads, strict=True))
        return Distribution(energy[None], force[None], stress[None], feature, of_energy, of_force)

    def learn(params: Params, lessons: Lessons) -> Posterior:
        errors = residuals(potential, params, lessons)
        judging = jax.tree.map(lambda x: x[errors.row], used(lessons)[:2])
        energies = potential.energies or jax.vmap(potential.energy, (None, 0, 0))

        def variances_of(structure: Structure, neighbors: Neighbors):
            single = jax.tree.map(lambda x: x[None], (structure, neighbors))
            energy, force = variances(params, energies(params, *single)[1], single[0].species)
            return energy[0], force[0]

        return {"scale": scales(errors, *each(variances_of, *judging))}

    def update(params: Params, structures: Structure, neighbors: Neighbors, wanted: Bool[Array, "k"]) -> Posterior:
        del structures, neighbors, wanted
        return params["posterior"]

    return Uncertainty(init, learn, update, predict, penalty=penalty)
