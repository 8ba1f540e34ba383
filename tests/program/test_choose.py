"""What a selection counts as known: all labels, held out or not, and what waits for one or is at work."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from closed_features import SHELLS
from queue_example import structures

from jaxal.committee.evaluation import Committee
from jaxal.core.types import Label
from jaxal.data import buffer as buffers
from jaxal.data import neighbors
from jaxal.data import queue as queues
from jaxal.program.selection import Chooser, choose

NEAR = neighbors.Spec(1.0, 0.0, 2, (0, 0, 0))


def place(potential, params, structures, near):
    """The coordinate by which these structures are told apart."""
    return structures.position[:, 0, :1]


def seen(key, candidates, size):
    """Not a choice: which of the numbers 0 to 9 is known."""
    there = jnp.round(candidates.known[:, 0]).astype(jnp.int32)
    known = jnp.zeros(10, bool).at[jnp.where(candidates.labeled, there, 10)].set(True, mode="drop")
    return jnp.where(known, jnp.arange(10), -1)


@pytest.mark.parametrize("waiting", [False, True])
def test_known_is_what_is_labeled_held_out_waiting_or_at_work(waiting):
    labeled = structures([1.0, 2.0, 3.0])
    buffer = buffers.init(jax.tree.map(lambda x: x[0], labeled), 1, 6)
    label = Label(jnp.zeros(3), jnp.zeros((3, 2, 3)), jnp.zeros((3, 3, 3)), jnp.ones(3, bool))
    held = jnp.asarray([False, True, False])
    buffer, _ = buffers.add(buffer, jax.random.key(0), labeled, label, jnp.ones(3, bool), held, 0.0)
    queue = queues.init(jax.tree.map(lambda x: x[0], labeled), 4)
    if waiting:
        both, none = structures([6.0, 7.0]), jnp.zeros(2, bool)
        queue = queues.push(queue, both, jnp.ones(2), none, jnp.arange(2), jnp.ones(2, bool))
        queue = queue._replace(sent=queue.sent.at[0].set(True))  # its calculation has begun
    chooser = Chooser(Committee(SHELLS, 1), place, seen, NEAR, 10)
    arguments = jnp.ones(2), jnp.ones(2, bool)
    params = {"params": jnp.zeros((1, 1))}
    rows, *_ = choose(chooser, jax.random.key(1), params, buffer, structures([8.0, 9.0]), *arguments, queue=queue)
    assert set(np.asarray(rows).tolist()) - {-1} == ({1, 2, 3, 6, 7} if waiting else {1, 2, 3})
