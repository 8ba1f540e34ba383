"""The batch selection of a look: candidates and the training set by their features, and who gets a label."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxal import buffer as buffers
from jaxal import neighbors
from jaxal.committee import Committee, backbone
from jaxal.precision import exact
from jaxal.types import Candidates, Kernel, Key, Params, Select, Structure
from jaxal.walk import where

TOGETHER = 32  # structures of the training set whose features are found at a time


class Chooser(NamedTuple):
    """What has to be static about a selection."""

    committee: Committee
    kernel: Kernel
    select: Select
    near: neighbors.Spec
    size: int  # labels, at most


def choose(
    chooser: Chooser,
    key: Key,
    params: Params,
    buffer: buffers.Buffer,
    structures: Structure,
    score: Float[Array, "c"],
    wants: Bool[Array, "c"],
) -> tuple[Int[Array, "k"], Bool[Array, ""]]:
    """Rows of `structures` [c] to label, -1 = none, and whether a wanted one has more neighbors than there is room for.

    `params` are of the committee, [r] leading; the first set of weights makes the features. Where nobody wants a label
    nothing is computed, and features that the selection does not read are not either.
    """
    first = backbone(chooser.committee, jax.tree.map(lambda x: x[0], params))

    @exact
    def features(structures: Structure) -> tuple[Float[Array, "b f"], Bool[Array, "b"]]:
        near = neighbors.find(chooser.near, structures)
        return chooser.kernel(chooser.committee.potential, first, structures, near), near.overflow

    def among():
        labeled = buffers.trainable(buffer)
        # a free row, and one that is not trained on, is seen as the first candidate
        known = where(labeled, buffer.structure, jax.tree.map(lambda x: x[:1], structures))
        each = jax.lax.map(lambda one: features(jax.tree.map(lambda x: x[None], one))[0][0], known, batch_size=TOGETHER)
        own, crowded = features(structures)
        chosen = exact(chooser.select)(key, Candidates(score, own, wants, each, labeled), chooser.size)
        return chosen, jnp.any(crowded & wants)

    def nobody():
        return jnp.full(chooser.size, -1, jnp.int32), jnp.zeros((), bool)

    return jax.lax.cond(jnp.any(wants), among, nobody)
