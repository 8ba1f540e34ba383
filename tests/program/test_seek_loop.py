"""Biases and schedules inside the compiled segment, inline and pooled."""

import functools

import jax
import numpy as np
from loop_example import WALKERS, compiled, limits_of, made, oracle, same, with_gate

from jaxal.acquire import select
from jaxal.acquire.schedule import bandit
from jaxal.acquire.score import max_force_spread
from jaxal.explore.biases import hyperactive
from jaxal.program import loop, selection
from jaxal.program import state as states

OF = ("top_k", "random")


@functools.cache
def sought():
    """(state, jitted segment) of the small run with a bias and a bandit."""
    begun, parts, static = made(oracle)
    schedule = bandit(of=OF)
    parts = parts._replace(
        bias=hyperactive(max_force_spread), schedule=schedule, arms=tuple(getattr(select, name) for name in OF)
    )
    drift = (jax.vmap(parts.bias.init)(begun.walkers[0].structure),)
    course = selection.Course.begun(schedule)
    return begun._replace(drift=drift, course=course), jax.jit(loop.make_segment(parts, static))


def test_a_segment_with_bias_and_bandit_learns_of_both_and_repeats_itself():
    begun, run = sought()
    state = with_gate(begun, -1.0)
    after, looks = run(state, limits_of())
    assert not int(after.problems) & states.UNDONE and looks.ok.all()
    assert np.all(after.drift[0].count == 12) and np.all(np.asarray(after.drift[0].slope) > 0)
    assert float(after.course.rounds) == 3 and float(after.course.error) > 0
    assert not np.array_equal(after.course.schedule.weight, state.course.schedule.weight)
    assert same(run(state, limits_of())[0], after)
    # the bias moves the walkers elsewhere
    plain, _, unbiased = compiled(oracle)
    other, _ = unbiased(with_gate(plain, -1.0), limits_of())
    assert other.drift == ((),) and not np.array_equal(
        other.walkers[0].structure.position, after.walkers[0].structure.position
    )
    assert looks.walker.shape == (3, WALKERS)
