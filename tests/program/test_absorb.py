"""A pooled run's programs on a closed form: what waits, is learned, is dropped, and where walkers return to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loop_example import limits_of, made, oracle, same, with_gate

from jaxal.committee import evaluation
from jaxal.data import neighbors
from jaxal.program import late_labels, loop
from jaxal.program import state as states

CAPACITY, ROWS = 6, 3


@functools.cache
def programs():
    """(start state, segment, absorb) of a run that does not wait for its labels."""
    state, parts, static = made(None, queue=CAPACITY)
    return state, jax.jit(loop.make_segment(parts, static)), jax.jit(late_labels.make_absorb(parts, static))


def walked(threshold=0.0, **limits):
    """(state, looks) after a segment from the start."""
    state, segment, _ = programs()
    return segment(with_gate(state, threshold), limits_of(**limits))


def arrivals(queue, rows, ok=True, force=None, **more):
    """Labels of some rows of the queue, by the closed form."""
    chosen = jnp.asarray([*rows, *[0] * (ROWS - len(rows))])
    structure = jax.tree.map(lambda x: x[chosen], queue.structure)
    label = jax.jit(oracle)(structure, jnp.ones(ROWS, bool))
    label = label._replace(ok=label.ok & ok, force=label.force if force is None else label.force + force)
    batch = late_labels.Arrivals(
        structure,
        label,
        queue.ticket[chosen],
        jnp.zeros(ROWS, bool),
        queue.walker[chosen],
        jnp.arange(ROWS) < len(rows),
    )
    return batch._replace(**more)


def tickets(queue):
    return sorted(int(x) for x in queue.ticket if x >= 0)


@pytest.mark.slow
def test_flagged_frames_wait_and_their_walkers_go_back():
    before, *_ = programs()
    state, looks = walked(threshold=0.0)
    assert np.all(looks.flagged) and np.all(looks.walker == -1) and not np.any(looks.ok)
    assert np.all(np.isnan(looks.loss)) and int(state.labels) == int(before.labels)
    assert same(state.buffer, before.buffer) and same(state.train, before.train)
    # three looks at three walkers ask for nine; the six most uncertain wait
    assert int(state.queue.next) == 9 and len(tickets(state.queue)) == CAPACITY
    scores = np.sort(np.asarray(looks.score).ravel())[::-1]
    np.testing.assert_allclose(state.queue.score, scores[:CAPACITY], rtol=1e-6)
    # no frame was trusted: every walker stands where it began, with new momenta
    np.testing.assert_array_equal(state.walkers[0].structure.position, before.trusted.structure.position)
    assert not np.any(state.quiet)
    assert np.all(state.walkers[0].step == before.walkers[0].step + 3 * 4)


def test_a_sure_committee_lets_its_walkers_go():
    before, *_ = programs()
    state, looks = walked(threshold=1e3)
    assert not np.any(looks.flagged) and tickets(state.queue) == []
    assert np.all(state.quiet == 12) and not np.array_equal(
        state.trusted.structure.position, before.trusted.structure.position
    )


def test_what_is_unlike_the_training_set_is_asked_for_whatever_the_committee_says():
    before, segment, _ = programs()
    state, looks = segment(with_gate(before, 1e3, limit=1e-6), limits_of())
    assert np.all(looks.flagged) and not np.any(looks.supported) and len(tickets(state.queue)) == CAPACITY
    state, looks = segment(with_gate(before, 1e3), limits_of())
    assert np.all(looks.supported) and not np.any(looks.flagged)


def test_probes_wait_too_and_their_walkers_go_on():
    state, _ = walked(threshold=1e3, probe=1.0)
    assert len(tickets(state.queue)) == CAPACITY and np.all(state.queue.probe)
    assert np.all(state.quiet == 12)


def test_labels_are_learned_from_and_their_rows_freed():
    state, _ = walked()
    _, _, learn = programs()
    rows = [1, 4]
    batch = arrivals(state.queue, rows)
    after, report = learn(state, limits_of(holdout=0.0), batch)
    assert int(after.labels) == int(state.labels) + 2 and int(after.buffer.count) == int(state.buffer.count) + 2
    last = slice(int(state.buffer.count), int(after.buffer.count))
    np.testing.assert_array_equal(after.buffer.structure.position[last], batch.structure.position[:2])
    np.testing.assert_array_equal(after.buffer.label.force[last], batch.label.force[:2])
    gone = {int(state.queue.ticket[row]) for row in rows}
    assert tickets(after.queue) == sorted(set(tickets(state.queue)) - gone)
    assert not same(after.train.params, state.train.params) and np.isfinite(report.loss)
    # what was said of them before: the error of the old weights
    error = np.linalg.norm(batch.label.force - predicted(state, batch.structure), axis=-1).max(-1)
    np.testing.assert_allclose(report.error[:2], error[:2], rtol=1e-4)
    assert np.isnan(report.error[2]) and np.all(report.rmse[:2] <= report.error[:2])
    # what still waits is judged by the new weights, and the walkers may go to the labeled frames
    waiting = after.queue.ticket >= 0
    assert not np.allclose(after.queue.score[waiting], state.queue.score[:4], rtol=1e-3)
    for row in rows:
        walker = int(state.queue.walker[row])
        others = [r for r in rows if int(state.queue.walker[r]) == walker]
        if row == others[-1]:
            place = after.trusted.structure.position[walker]
            np.testing.assert_array_equal(place, state.queue.structure.position[row])


def predicted(state, structures):
    _, parts, static = made(None, queue=CAPACITY)
    near = neighbors.find(static.train_near, structures)
    return evaluation.predict(parts.committee, state.train.average, structures, near).force.mean(1)


def test_what_the_committee_has_become_sure_of_is_dropped_unless_it_is_at_work():
    state, _ = walked()
    _, _, learn = programs()
    first = tickets(state.queue)[0]
    sent = state.queue.ticket == first
    state = with_gate(state._replace(queue=state.queue._replace(sent=sent)), 1e3)
    after, report = learn(state, limits_of(), arrivals(state.queue, []))
    assert tickets(after.queue) == [first] and int(report.dropped) == CAPACITY - 1
    assert same(after.train.params, state.train.params)  # nothing came: nothing was trained


def test_failed_labels_teach_nothing_but_are_counted():
    state, _ = walked()
    _, _, learn = programs()
    after, report = learn(state, limits_of(), arrivals(state.queue, [0, 1], ok=False))
    assert int(after.labels) == int(state.labels) + 2 and same(after.buffer, state.buffer)
    assert int(after.problems) == states.LABEL_FAILED and np.all(np.isnan(report.error))
    assert same(after.train, state.train) and same(after.trusted, state.trusted)
    assert len(tickets(after.queue)) == CAPACITY - 2


@pytest.mark.slow
def test_a_label_that_no_row_waits_for_is_learned_from_all_the_same():
    state, _ = walked()
    _, _, learn = programs()
    strangers = arrivals(state.queue, [0], ticket=jnp.full(ROWS, -1), walker=jnp.full(ROWS, -1))
    after, _ = learn(state, limits_of(), strangers)
    assert int(after.buffer.count) == int(state.buffer.count) + 1
    assert tickets(after.queue) == tickets(state.queue) and same(after.trusted, state.trusted)


@pytest.mark.parametrize("problem", [states.NOT_FINITE, states.BUFFER_FULL])
def test_what_is_undone_leaves_the_state_as_it_was(problem):
    state, _ = walked()
    _, _, learn = programs()
    if problem == states.BUFFER_FULL:
        full = jnp.asarray(state.buffer.held_out.shape[0] - 1, jnp.int32)
        state = state._replace(buffer=state.buffer._replace(count=full))
        after, _ = learn(state, limits_of(), arrivals(state.queue, [0, 1]))
    else:
        after, _ = learn(state, limits_of(rate=1e30, final_rate=1e30), arrivals(state.queue, [0, 1], force=1e6))
    assert int(after.problems) & problem
    assert same(after._replace(problems=state.problems), state)


def test_a_pooled_segment_asks_no_host():
    state, parts, static = made(None, queue=CAPACITY)
    assert "callback" not in str(jax.make_jaxpr(loop.make_segment(parts, static))(state, limits_of()))
