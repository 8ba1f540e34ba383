"""MC dropout: a readout network some of whose inputs and hidden units are left out at random, in training and after."""

from typing import Annotated

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

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
from jaxal.core.units import Below, Unit
from jaxal.uncertainty.features import each, residuals, used, width
from jaxal.uncertainty.scale import likelihood_scale

NAME = "dropout"  # of its weights among the potential's


def masks(key: Key, rate: float, shape: tuple[int, ...], dtype) -> Float[Array, "..."]:
    """0 with probability `rate`, else 1 / (1 - rate): of mean 1."""
    return jax.random.bernoulli(key, 1 - rate, shape).astype(dtype) / (1 - rate)


def masked(weights: heads.Weights, feature: Float[Array, "p f"], hidden: Float[Array, "p q"]) -> heads.Weights:
    """The weights [p ...] of networks whose inputs and hidden units are multiplied by masks."""
    return heads.Weights(
        first=feature[:, :, None] * weights.first,
        bias=jnp.broadcast_to(weights.bias, (feature.shape[0], *weights.bias.shape)),
        last=hidden[:, :, None] * weights.last,
        shift=jnp.broadcast_to(weights.shift, (feature.shape[0], *weights.shift.shape)),
    )


@register("uncertainty")
def dropout(
    potential: Potential,
    species: int,
    *,
    samples: Annotated[int, Unit("", 2)] = 8,
    rate: Annotated[float, Unit("", 0.0, True), Below(1)] = 0.2,
    units: Annotated[int, Unit("", 1)] = 32,
) -> Uncertainty:
    """MC dropout of a readout network on the potential's features: members differ by what is left out.

    With a mask m for the f invariant features x_i of the atoms and one for the hidden units, both the same for all
    atoms, and a network u of one hidden layer whose last weights belong to the atom's species,

        E_m = E + sum_i u(x_i * m_x, m_h),    the prediction = mean_k E_k,    members: mean + alpha (E_k - mean)

    for `samples` masks that are drawn once. So each member is a smooth, conservative potential; together they cost one
    pass forward and `samples` back. A training step draws other masks for every structure. alpha, learned after every
    training, makes the force residuals most likely, of the held-out labels where there are any. A new structure changes
    nothing before it is trained on.

    The prediction is not the plain model but that mean. Limits: only the readout is uncertain, not the features; and E
    has no dropout and learns beside u, so training, to which the noise of u is a loss, makes u smaller where E can do
    without it. Therefore u begins with an output of about the potential's scale, and alpha restores the size.

    Parameters
    ----------
    potential : has the features
    species : rows of the species table
    samples : masks that predict
    rate : chance of each feature and hidden unit to be left out
    units : hidden units of the network, q

    References: Gal and Ghahramani, ICML 2016, arXiv:1506.02142; Wen and Tadmor, npj Comput. Mater. 6, 124 (2020).
    """
    extended = heads.with_isolation(potential)
    energies = extended.energies or jax.vmap(extended.energy, (None, 0, 0))

    def init(key: Key, params: Params, structure: Structure, neighbors: Neighbors) -> Params:
        size, dtype = width(potential, params, structure, neighbors), structure.position.dtype
        key_first, key_last, key_feature, key_hidden = jax.random.split(key, 4)
        weights = heads.first_weights((key_first, key_last), (1, size, units, species), dtype)
        posterior = {
            "feature": masks(key_feature, rate, (samples, size), dtype),
            "hidden": masks(key_hidden, rate, (samples, units), dtype),
            "scale": jnp.ones((), dtype),
        }
        trained = {**params.get("params", {}), NAME: {name: x[0] for name, x in weights._asdict().items()}}
        return {**params, "params": trained, "posterior": posterior}

    def members(params: Params, feature: Float[Array, "p f"], hidden: Float[Array, "p q"]) -> heads.Weights:
        return masked(heads.Weights(**params["params"][NAME]), feature, hidden)

    def trained(key: Key) -> Potential:
        """With a mask of its own for each structure of a batch."""

        def masked_energies(params: Params, structures: Structure, neighbors: Neighbors):
            energy, feature = energies(params, structures, neighbors)
            number, dtype = energy.shape[0], energy.dtype
            keys = jax.random.split(key)
            own = heads.without_isolation(potential, feature)
            feature_mask = masks(keys[0], rate, (number, own.shape[-1]), dtype)
            weights = members(params, feature_mask, masks(keys[1], rate, (number, units), dtype))
            extra = jax.vmap(heads.readout, (0, None, 0, 0, None))(
                weights, heads.scale_of(params), feature, structures.species, heads.alone_of(potential, params)
            )
            return energy + extra, own

        return _of_batch(potential, masked_energies)

    def sampled(params: Params) -> heads.Weights:
        return members(params, params["posterior"]["feature"], params["posterior"]["hidden"])

    def added(params: Params, feature: Float[Array, "b n f"], structures: Structure):
        alone = heads.alone_of(potential, params)
        return heads.added(sampled(params), heads.scale_of(params), feature, structures.species, alone)

    def mean_energies(params: Params, structures: Structure, neighbors: Neighbors):
        energy, feature = energies(params, structures, neighbors)
        extra = added(params, feature, structures)[0]
        return energy + jnp.mean(extra, axis=0), heads.without_isolation(potential, feature)

    def predict(params: Params, structures: Structure, neighbors: Neighbors) -> Distribution:
        energy, feature, back = pullback(extended, params, structures, neighbors)
        extra, slope = added(params, feature, structures)
        # energies and slopes of the members about their mean, which are linear in those of the networks
        extra, slope = (_spread(x, params["posterior"]["scale"]) for x in (extra, slope))
        force, stress = over_members(back, "auto")(jnp.ones_like(extra), slope)
        return Distribution(energy + extra, force, stress, heads.without_isolation(potential, feature))

    def learn(params: Params, lessons: Lessons) -> Posterior:
        unscaled = {
            **params,
            "posterior": {**params["posterior"], "scale": jnp.ones_like(params["posterior"]["scale"])},
        }
        errors = residuals(_of_batch(potential, mean_energies), unscaled, lessons)
        judging = jax.tree.map(lambda x: x[errors.row], used(lessons)[:2])

        def variance(structure: Structure, neighbors: Neighbors) -> Float[Array, "n"]:
            prediction = predict(unscaled, *jax.tree.map(lambda x: x[None], (structure, neighbors)))
            return jnp.sum(jnp.var(prediction.force[:, 0], axis=0), axis=-1)

        square = jnp.sum(errors.force**2, axis=-1)
        observations = (x.reshape(-1) for x in (square, each(variance, *judging), errors.real))
        return {**params["posterior"], "scale": likelihood_scale(*observations)}

    def update(params: Params, structures: Structure, neighbors: Neighbors, wanted: Bool[Array, "k"]) -> Posterior:
        del structures, neighbors, wanted
        return params["posterior"]

    return Uncertainty(init, learn, update, predict, potential=trained)


def _spread(values: Float[Array, "p ..."], scale: Float[Array, ""]) -> Float[Array, "p ..."]:
    """The same mean, and deviations from it times `scale`."""
    mean = jnp.mean(values, axis=0, keepdims=True)
    return mean + scale * (values - mean)


def _of_batch(potential: Potential, energies) -> Potential:
    """The potential with other energies of a batch; that of one structure is of a batch of one."""

    def energy(params: Params, structure: Structure, neighbors: Neighbors):
        value, feature = energies(params, *jax.tree.map(lambda x: x[None], (structure, neighbors)))
        return value[0], feature[0]

    return potential._replace(energy=energy, energies=energies)
