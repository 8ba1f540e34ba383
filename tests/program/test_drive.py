"""Walkers that each follow one member: whose force moves them, what is judged, and where they return to."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loop_example import MEMBERS, SPEC, WALKERS, limits_of, made, same, with_gate
from test_absorb import arrivals

from jaxal.committee import evaluation
from jaxal.config.loading import parse
from jaxal.config.schema import Config
from jaxal.core.types import InputError, Prediction
from jaxal.data import neighbors
from jaxal.explore.dynamics import nve
from jaxal.explore.stepping import per_walker
from jaxal.program import late_labels, loop
from jaxal.program.step import Bounds, Walk, driving, make_walk, nothing

STEPS = 6
predict = jax.jit(evaluation.predict, static_argnums=0)


def alone(row):
    """The state of a run whose committee is the one member `row` of the two."""
    state, parts, static = made()
    params = jax.tree.map(lambda x: x[row : row + 1], state.train.average)
    return state, parts._replace(committee=parts.committee._replace(members=1)), static, params


def walked(parts, static, params, state, drive, walkers, score=None):
    """`STEPS` steps of all walkers from the start, at constant energy."""
    explorer = nve(timestep=0.5, temperature=300.0)
    size = walkers.charge.shape[0]
    near = neighbors.find(static.groups[0].near, walkers)
    first = predict(parts.committee, params, walkers, near)
    moves = driving(drive, first, jnp.arange(size))
    keys = jax.random.split(jax.random.key(11), size)
    begun = jax.vmap(explorer.init)(keys, walkers, *moves, jnp.zeros(size, jnp.int32))
    judged = score or parts.score, static.table, static.groups[0].near
    walk = make_walk(parts.committee, per_walker(explorer), *judged, STEPS, drive)
    bounds = Bounds(*map(jnp.float32, (1e6, 0.0, 1e6, 1e6)), state.known)
    start = Walk(begun, near, nothing(walkers, *moves), jnp.zeros(size, bool))
    return jax.jit(walk)(params, state.gate, None, bounds, start)


@pytest.mark.slow
def test_each_walker_goes_where_its_member_alone_would_lead_it():
    state, parts, static = made()
    walkers = state.walkers[0].structure
    together = walked(parts, static, state.train.average, state, "member", walkers)
    mean = walked(parts, static, state.train.average, state, "mean", walkers)
    for member in range(MEMBERS):
        _, own_parts, _, params = alone(member)
        only = walked(own_parts, static, params, state, "mean", walkers)
        for walker in range(WALKERS):
            place = together.walkers.structure.position[walker]
            distance = float(jnp.abs(place - only.walkers.structure.position[walker]).max())
            assert (distance < 1e-5) == (walker % MEMBERS == member), (walker, member, distance)
        assert float(jnp.abs(mean.walkers.structure.position - only.walkers.structure.position).max()) > 1e-4


@pytest.mark.slow
def test_frames_are_judged_by_all_members():
    state, parts, static = made()
    end = walked(parts, static, state.train.average, state, "member", state.walkers[0].structure)
    near = neighbors.find(static.groups[0].near, end.candidate.structure)
    prediction = predict(parts.committee, state.train.average, end.candidate.structure, near)
    # 32 bits of the repulsion's tens of eV/Å, which bonds cancel; members differ by far more
    np.testing.assert_allclose(end.candidate.force, prediction.force.mean(1), atol=1e-4)
    np.testing.assert_allclose(end.candidate.energy, prediction.energy.mean(1), atol=1e-4)
    np.testing.assert_allclose(
        end.candidate.score, jax.vmap(parts.score)(prediction, end.candidate.structure), atol=1e-4
    )
    own = prediction.force[jnp.arange(WALKERS), jnp.arange(WALKERS) % MEMBERS]
    np.testing.assert_allclose(end.candidate.drive, own, atol=1e-4)
    assert float(jnp.abs(own - end.candidate.force).max()) > 1e-3


@functools.cache
def programs():
    state, parts, static = made(None, queue=6, drive="member")
    return state, jax.jit(loop.make_segment(parts, static)), jax.jit(late_labels.make_absorb(parts, static))


def members_say(state, structures, walker):
    """Force and stress of member walker mod m on structures [b]."""
    whole = made(None, queue=6, drive="member")[1].committee
    prediction = predict(whole, state.train.average, structures, neighbors.find(SPEC, structures))
    row, member = np.arange(len(walker)), np.asarray(walker) % MEMBERS
    return prediction.force[row, member], prediction.stress[row, member]


def assert_of_member(force, state, structures, walker):
    """That forces are those of the walkers' members and not of the others.

    In float32 they are within 7e-5 eV/Å of those in float64, in whatever program.
    """
    np.testing.assert_allclose(force, members_say(state, structures, walker)[0], atol=1e-4)
    other = members_say(state, structures, np.asarray(walker) + 1)[0]
    assert np.all(np.abs(force - other).max(axis=(1, 2)) > 1e-2)


@pytest.mark.slow
def test_trusted_frames_keep_the_force_of_the_walkers_member():
    start, segment, take = programs()
    assert_of_member(start.trusted.force, start, start.trusted.structure, np.arange(WALKERS))
    # nothing is flagged: the last frames are trusted
    sure, _ = segment(with_gate(start, 1e3), limits_of())
    assert_of_member(sure.trusted.force, sure, sure.trusted.structure, np.arange(WALKERS))
    assert not np.allclose(sure.trusted.structure.position, start.trusted.structure.position)
    # all is flagged and waits; labels of two rows come, and their walkers may return there
    state, _ = segment(with_gate(start, 0.0), limits_of())
    rows = [int(np.flatnonzero(state.queue.walker == walker)[0]) for walker in (1, 2) if walker in state.queue.walker]
    came = arrivals(state.queue, rows)
    after, report = take(with_gate(state, 1e3), limits_of(), came)
    walker = np.asarray(came.walker)[: len(rows)]
    assert len(rows) and set(walker) <= {1, 2}
    frames = jax.tree.map(lambda x: x[: len(rows)], came.structure)
    np.testing.assert_array_equal(after.trusted.structure.position[walker], frames.position)
    assert_of_member(after.trusted.force[walker], after, frames, walker)
    # what is compared with the labels is the mean of all members, before they learned
    near = neighbors.find(SPEC, came.structure)
    before = predict(made(None, queue=6, drive="member")[1].committee, state.train.average, came.structure, near)
    error = np.linalg.norm(before.force.mean(1) - came.label.force, axis=-1).max(axis=-1)
    np.testing.assert_allclose(np.asarray(report.error)[: len(rows)], error[: len(rows)], rtol=1e-3)


@pytest.mark.slow
def test_the_same_state_gives_the_same_bits_and_others_than_the_mean():
    start, segment, _ = programs()
    arguments = with_gate(start, 1e3), limits_of()
    after = segment(*arguments)[0]
    assert same(after, segment(*arguments)[0])
    state, parts, static = made(None, queue=6)
    other = jax.jit(loop.make_segment(parts, static))(with_gate(state, 1e3), limits_of())[0]
    assert not np.allclose(after.walkers[0].structure.position, other.walkers[0].structure.position, atol=1e-6)


def test_a_single_member_cannot_be_chosen_from(tmp_path):
    prediction = Prediction(jnp.zeros((2, 1)), jnp.zeros((2, 1, 3, 3)), jnp.zeros((2, 1, 3, 3)), jnp.zeros((2, 3, 1)))
    with pytest.raises(InputError, match=r"explore\.drive: member does not fit"):
        driving("member", prediction, jnp.arange(2))
    driving("mean", prediction, jnp.arange(2))
    (tmp_path / "a.xyz").write_text("1\n\nH 0 0 0\n")
    raw = {"system": {"file": "a.xyz"}, "explore": {"drive": "member"}, "committee": {"kind": "shared", "signs": 2}}
    with pytest.raises(InputError, match=r"explore\.drive: member needs .* committee\.signs = 0"):
        parse(raw, tmp_path, Config)
    raw["committee"] = {}
    assert parse(raw, tmp_path, Config).explore.drive == "member"
