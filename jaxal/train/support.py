"""What a training set supports: the features of its atoms, and how far those of held-out structures are from them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxal.acquire.kernel import atom_features
from jaxal.committee.evaluation import Committee, backbone
from jaxal.core.precision import exact
from jaxal.core.types import Params, Structure
from jaxal.data import buffer as buffers
from jaxal.data import neighbors
from jaxal.uncertainty.support import Support, described, distance, fitted, without_neighbors

ROWS = 256  # structures trained on that are looked at, evenly over all
HELD = 64  # held-out structures that are, the latest so many
TOGETHER = 32  # structures whose features are found at a time
ROOM = 1.25  # as far beyond the farthest labeled structure as a structure is still supported in a run


def _spread(mask: Bool[Array, "c"], number: int) -> tuple[Int[Array, "r"], Bool[Array, "r"]]:
    """At most `number` rows of the mask, evenly over all of them, and which of the numbers returned are rows."""
    number = min(number, mask.shape[0])
    order = jnp.argsort(~mask, stable=True)
    total = jnp.sum(mask)
    place = jnp.arange(number) * jnp.maximum(total, number) // number
    return order[jnp.minimum(place, mask.shape[0] - 1)], place < total


def _latest(mask: Bool[Array, "c"], number: int) -> tuple[Int[Array, "r"], Bool[Array, "r"]]:
    """At most `number` last rows of the mask, and which of the numbers returned are rows."""
    (back,) = jnp.nonzero(mask[::-1], size=min(number, mask.shape[0]), fill_value=mask.shape[0])
    return jnp.where(back < mask.shape[0], mask.shape[0] - 1 - back, 0), back < mask.shape[0]


def _atoms(
    committee: Committee, spec: neighbors.Spec, params: Params, structures: Structure
) -> tuple[Float[Array, "r n f"], Bool[Array, "r n"]]:
    """What all atoms are compared by, with the first set of weights, and which have no neighbor."""
    first, cutoff = backbone(committee, jax.tree.map(lambda x: x[0], params)), committee.potential.cutoff

    @exact
    def atoms_of(structure: Structure) -> tuple[Float[Array, "n f"], Bool[Array, "n"]]:
        alone = jax.tree.map(lambda x: x[None], structure)
        listed = neighbors.find(spec, alone)
        near = jax.tree.map(lambda x: x[0], listed)
        feature = atom_features(committee.potential, first, alone, listed)[0]
        lonely = without_neighbors(structure, near, cutoff)
        return described(feature, structure, near, cutoff, committee.species), lonely

    return jax.lax.map(atoms_of, structures, batch_size=TOGETHER)


def learned(committee: Committee, spec: neighbors.Spec, params: Params, buffer: buffers.Buffer) -> Support:
    """The support of a training set, for the weights `params` [r ...].

    Its limit is `ROOM` times the distance of the farthest atom of all labeled structures: a walker that goes beyond is
    noticed, and when its frame is labeled the limit is farther out.
    """
    there = jnp.arange(buffers.capacity(buffer)) < buffer.count
    (rows, trained), (last, held) = _spread(there & ~buffer.held_out, ROWS), _latest(there & buffer.held_out, HELD)
    structures = jax.tree.map(lambda x: x[jnp.concatenate([rows, last])], buffer.structure)
    own, lonely = _atoms(committee, spec, params, structures)
    species, at = structures.species, rows.shape[0]
    support = fitted(own[:at], jnp.where(trained[:, None], species[:at], -1), lonely[:at], committee.species)
    away = jax.vmap(lambda x, kind: jnp.max(distance(support, x, kind), initial=0.0))(own, species)
    use = jnp.concatenate([trained, held]) & jnp.isfinite(away)
    largest = jnp.max(jnp.where(use, away, 0.0), initial=0.0)
    return support._replace(limit=ROOM * jnp.where(largest > 0, largest, 1.0))
