"""The random sample of a run's frames, against what its rule says of when a frame comes in and how long it stays."""

import jax
import jax.numpy as jnp
import numpy as np
from queue_example import structures

from jaxal.data import sample as samples

CAPACITY, WALKERS, LOOKS = 40, 4, 1500


def followed(seed, eligible=True):
    """The sample after all looks; the first coordinate of frame w at look t is 4 t + w."""

    def step(sample, look):
        values = (WALKERS * look + jnp.arange(WALKERS)).astype(jnp.float32)
        frames = structures(jnp.zeros(WALKERS))
        frames = frames._replace(position=frames.position.at[:, 0, 0].set(values))
        key = jax.random.fold_in(jax.random.key(seed), look)
        return samples.taken(sample, key, frames, jnp.full(WALKERS, eligible)), None

    first = samples.init(jax.tree.map(lambda x: x[0], structures([0.0])), CAPACITY)
    return jax.lax.scan(step, first, jnp.arange(LOOKS))[0]


def test_late_frames_are_drawn_more_often():
    """The place s / t of a frame has the density a s^(a-1): its mean is a / (a + 1)."""
    sample = jax.jit(jax.vmap(followed))(jnp.arange(50))
    assert np.all(sample.there) and np.all(np.asarray(sample.seen) == WALKERS * LOOKS)
    place = np.asarray(sample.structure.position)[:, :, 0, 0] / (WALKERS * LOOKS)
    for power in (1, 2, 6):
        expected = samples.RECENT / (samples.RECENT + power)
        error = (place**power).std() / np.sqrt(place.size)
        assert abs((place**power).mean() - expected) < 4 * error + 2e-3, power
    assert all(len(set(row.tolist())) == CAPACITY for row in place), "a frame is kept once"


def test_only_eligible_frames_are_taken():
    none = jax.jit(lambda seed: followed(seed, False))(0)
    assert not np.any(none.there) and int(none.seen) == 0
    empty = samples.init(jax.tree.map(lambda x: x[0], structures([0.0])), 0)
    assert samples.taken(empty, jax.random.key(0), structures([1.0]), jnp.ones(1, bool)) is empty
