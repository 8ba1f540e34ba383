"""The queue of structures that wait for a label, against a list in Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from queue_example import structures

from jaxal.data import queue as queues

CAPACITY = 5


def empty(capacity=CAPACITY):
    return queues.init(jax.tree.map(lambda x: x[0], structures([0.0])), capacity)


def pushed(queue, scores, probe=(), wanted=None):
    number = len(scores)
    probe = jnp.asarray([row in probe for row in range(number)])
    wanted = jnp.ones(number, bool) if wanted is None else jnp.asarray(wanted)
    score = jnp.asarray(scores, jnp.float32)
    return jax.jit(queues.push)(queue, structures(scores), score, probe, jnp.arange(number), wanted)


def tickets(queue):
    return [int(x) for x in queue.ticket if x >= 0]


def test_a_queue_takes_in_what_is_wanted_and_numbers_it():
    queue = pushed(empty(), [0.1, 0.9, 0.5], wanted=[True, False, True])
    assert sorted(tickets(queue)) == [0, 1] and int(queue.next) == 2
    np.testing.assert_allclose(queue.score[:2], [0.5, 0.1])
    np.testing.assert_allclose(queue.structure.position[:2, 0, 0], [0.5, 0.1])
    assert [int(x) for x in queue.walker[:2]] == [2, 0]
    assert tickets(pushed(queue, [0.7])) == [2, 1, 0]


def test_the_most_uncertain_stay_where_room_lacks():
    """Against sorting a list, over many random pushes."""
    rng = np.random.default_rng(0)
    queue, known, number = empty(), [], 0
    for _ in range(30):
        scores, wanted = rng.permutation(1000)[:4] / 1000, rng.random(4) < 0.7
        probe = [row for row in range(4) if rng.random() < 0.1]
        queue = pushed(queue, scores, probe, wanted)
        for row in np.flatnonzero(wanted):
            known.append([row in probe, np.float32(scores[row]), -number])
            number += 1
        known = sorted(known, reverse=True)[:CAPACITY]
        assert tickets(queue) == [-ticket for _, _, ticket in known]
        np.testing.assert_array_equal(queue.score[: len(known)], [score for _, score, _ in known])
        np.testing.assert_array_equal(queue.structure.position[: len(known), 0, 0], queue.score[: len(known)])
    assert int(queue.next) == number


def test_what_has_been_sent_is_never_replaced():
    queue = pushed(empty(2), [0.1, 0.2])
    sent = queue._replace(sent=queue.ticket == 0)
    full = pushed(sent, [0.9, 0.8])
    assert tickets(full) == [0, 2] and [bool(x) for x in full.sent] == [True, False]
    assert [bool(x) for x in queues.waits(full)] == [False, True]


def test_rows_are_freed_and_the_others_keep_their_order():
    queue = pushed(empty(), [0.5, 0.4, 0.3])
    arrived = queues.holds(queue, jnp.asarray([1, -1, 77]))
    assert [bool(x) for x in arrived] == [False, True, False, False, False]
    kept = queues.keep(queue, (queue.ticket >= 0) & ~arrived)
    assert tickets(kept) == [0, 2] and int(kept.next) == 3
    assert tickets(pushed(kept, [0.45])) == [0, 3, 2]


@pytest.mark.parametrize("capacity", [0, 1])
def test_a_queue_may_have_hardly_any_room(capacity):
    queue = pushed(empty(capacity), [0.1, 0.2])
    assert tickets(queue) == [1][:capacity] and int(queue.next) == 2
