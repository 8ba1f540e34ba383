"""Readout heads: several members of a committee on one set of weights, the backbone.

Member h has the energy E_h = E + sum_i u_h(x_i, s_i), with the energy E and the invariant atomic features x_i of any
registered potential and a network u_h of one hidden layer whose last weights belong to the atom's species s_i. Members
that share their features cost one forward pass together, and one backward pass through the backbone each; this is the
shallow ensemble of Kellner and Ceriotti, Mach. Learn.: Sci. Technol. 5, 035006 (2024).

Parameters are {"params": {"backbone": ..., "heads": ...}, ...}: the potential's own "params" under "backbone", its
other collections as they are. The heads' have a leading axis [h] and give energies in units of the constant "scale"
(eV), where the potential has one.

Where the potential has its isolated atoms exact, so have all its members: an atom as isolated as w (`isolation`) takes
w of what its head says of such an atom from its energy. The features that heads see then have w as their last column.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxal.core.types import Key, Neighbors, Params, Potential, Structure

WIDTH = 16  # of the hidden layer
GRAIN = 0.01  # eV, energies closer than that share their random signs: above rounding, below what a structure explores


class Weights(NamedTuple):
    """Of one head (or of all, with a leading axis [h]); s species, q hidden units."""

    first: Float[Array, "*h f q"]
    bias: Float[Array, "*h q"]
    last: Float[Array, "*h q s"]
    shift: Float[Array, "*h s"]


def init(
    potential: Potential, heads: int, species: int, key: Key, structure: Structure, neighbors: Neighbors
) -> Params:
    """Initial weights of a backbone and its heads, which differ by about one scale in the energy of an atom.

    That is more than the backbone's own readouts begin with: in the one comparison there is (docs/benchmarks.md) the
    spread of heads that began a third as far apart told less of the errors.
    """
    key_backbone, key_first, key_last = jax.random.split(key, 3)
    inner = potential.init(key_backbone, structure, neighbors)
    size = jax.eval_shape(potential.energy, inner, structure, neighbors)[1].shape[-1]
    weights = first_weights((key_first, key_last), (heads, size, WIDTH, species), structure.position.dtype)
    return {**inner, "params": {"backbone": inner["params"], "heads": weights._asdict()}}


def first_weights(keys: tuple[Key, Key], sizes: tuple[int, int, int, int], dtype: Any) -> Weights:
    """Initial weights of sizes (heads, features, hidden units, species), whose outputs have about unit variance."""
    heads, size, width, species = sizes
    return Weights(
        first=size**-0.5 * jax.random.normal(keys[0], (heads, size, width), dtype),
        bias=jnp.zeros((heads, width), dtype),
        last=width**-0.5 * jax.random.normal(keys[1], (heads, width, species), dtype),
        shift=jnp.zeros((heads, species), dtype),
    )


def backbone(params: Params) -> Params:
    """The potential's own parameters."""
    return {**params, "params": params["params"]["backbone"]}


def atomic(weights: Weights, feature: Float[Array, "n f"], species: Int[Array, "n"]) -> Float[Array, "n"]:
    """Output of one head for each atom, zero for padding."""
    hidden = jax.nn.silu(feature @ weights.first + weights.bias) * 1.6765  # keeps unit variance
    kind = jax.nn.one_hot(species, weights.shift.shape[-1], dtype=feature.dtype)  # zeros for padding
    return jnp.sum(kind * (hidden @ weights.last + weights.shift), axis=-1)


def readout(
    weights: Weights,
    scale: Float[Array, ""],
    feature: Float[Array, "n f"],
    species: Int[Array, "n"],
    alone: Float[Array, "s f"] | None = None,
) -> Float[Array, ""]:
    """What one head adds to the energy of one structure, eV.

    `alone` are the features of isolated atoms, where theirs are exact; `feature` then has a last column more.
    """
    if alone is None:
        return scale * jnp.sum(atomic(weights, feature, species))
    isolated = atomic(weights, alone, jnp.arange(alone.shape[0]))
    kind = jax.nn.one_hot(species, alone.shape[0], dtype=feature.dtype)
    return scale * jnp.sum(atomic(weights, feature[:, :-1], species) - feature[:, -1] * (kind @ isolated))


def with_isolation(potential: Potential) -> Potential:
    """A potential whose isolated atoms are exact, with the isolation of each atom as a last feature."""
    isolation = potential.isolation
    if not potential.exact or isolation is None:
        return potential

    def energies(params: Params, structures: Structure, neighbors: Neighbors):
        energy, feature, last = isolation(params, structures, neighbors)
        return energy, jnp.concatenate([feature, last[..., None]], axis=-1)

    return potential._replace(energies=energies)


def without_isolation(potential: Potential, feature: Float[Array, "*b f"]) -> Float[Array, "*b g"]:
    """The features of the potential itself, of those that `with_isolation` gives."""
    return feature[..., :-1] if potential.exact else feature


def alone_of(potential: Potential, params: Params) -> Float[Array, "s f"] | None:
    """Features of isolated atoms, where those are exact; `params` are the potential's own."""
    return potential.alone(params)[1] if potential.exact and potential.alone is not None else None


def scale_of(params: Params) -> Float[Array, ""]:
    """The constant "scale" of the potential, eV; 1 where it has none."""
    constants = params.get("constants", {})
    scale = constants.get("scale", 1.0) if isinstance(constants, dict) else 1.0
    return jax.lax.stop_gradient(jnp.asarray(scale))


def _of(params: Params) -> tuple[Weights, Float[Array, ""]]:
    return Weights(**params["params"]["heads"]), scale_of(params)


def evaluate(
    params: Params,
    feature: Float[Array, "b n f"],
    species: Int[Array, "b n"],
    alone: Float[Array, "s f"] | None = None,
) -> tuple[Float[Array, "h b"], Float[Array, "h b n f"]]:
    """What every head adds to the energies (eV), and its derivative with respect to the features.

    `alone`: see `readout`.
    """
    return added(*_of(params), feature, species, alone)


def added(
    weights: Weights,
    scale: Float[Array, ""],
    feature: Float[Array, "b n f"],
    species: Int[Array, "b n"],
    alone: Float[Array, "s f"] | None = None,
) -> tuple[Float[Array, "h b"], Float[Array, "h b n f"]]:
    """`evaluate` with the weights [h] and the scale (eV) given."""
    slopes = jax.value_and_grad(readout, argnums=2)
    each = jax.vmap(slopes, (None, None, 0, 0, None))
    return jax.vmap(each, (0, None, None, None, None))(weights, scale, feature, species, alone)


def chosen(potential: Potential, head: Int[Array, "b"]) -> Potential:
    """The potential that gives structure b of a batch the energy of member head[b]: one model's work for each."""
    extended = with_isolation(potential)
    energies = extended.energies or jax.vmap(extended.energy, (None, 0, 0))

    def energies_of(params: Params, structures: Structure, neighbors: Neighbors):
        energy, feature = energies(backbone(params), structures, neighbors)
        alone = alone_of(potential, backbone(params))
        weights, scale = _of(params)
        # a product with ones and zeros: its transpose is one, too, where that of a gather is a scatter
        pick = jax.nn.one_hot(head, weights.bias.shape[0], dtype=feature.dtype)
        mine = jax.tree.map(lambda x: jnp.tensordot(pick, x, 1), weights)
        more = jax.vmap(readout, (0, None, 0, 0, None))(mine, scale, feature, structures.species, alone)
        return energy + more, without_isolation(potential, feature)

    def none(params: Params, structure: Structure, neighbors: Neighbors):
        raise NotImplementedError("which head belongs to which structure is known of a batch only")

    return potential._replace(energy=none, energies=energies_of)


def combinations(energy: Float[Array, "h b"], number: int) -> Float[Array, "k h b"]:
    """Weights of `number` random combinations of the heads: signs less their mean over the heads, over sqrt(h).

    A combination g_k = sum_h w_kh y_h of anything that the heads predict has mean zero and, since the signs xi of
    different heads are independent, E[g_k^2] = sum_h (y_h - mean y)^2 / h: the population variance of the heads. So
    the mean of g_k^2 over k estimates it without bias, for energies, forces and stresses alike (the trace estimator
    of Hutchinson, Commun. Stat. Simul. Comput. 19, 433, 1990, for a covariance).

    What signs are drawn depends on the heads' mean energy of the structure alone, in steps of `GRAIN`. So the same
    structure always gets the same, whatever the order of its atoms, their padding, its orientation and its place, but
    for the few energies that rounding carries into the next step; structures of other energies get independent ones.
    """
    heads = energy.shape[0]
    steps = jnp.round(jax.lax.stop_gradient(jnp.mean(energy, axis=0)) / GRAIN).astype(jnp.float32) + 0.0  # no -0
    bits = jax.lax.bitcast_convert_type(steps, jnp.uint32)

    def draw(bits):
        return jax.random.rademacher(jax.random.fold_in(jax.random.key(0), bits), (number, heads), energy.dtype)

    signs = jax.vmap(draw, out_axes=-1)(bits)
    return (signs - jnp.mean(signs, axis=1, keepdims=True)) * heads**-0.5


def antithetic(values: Float[Array, "p ..."]) -> Float[Array, "q ..."]:
    """From a mean (first row) and k combinations 2 k pseudo-members, mean + g and mean - g.

    Their mean is the mean, their population variance the mean of g^2.
    """
    return jnp.concatenate([values[:1] + values[1:], values[:1] - values[1:]])
