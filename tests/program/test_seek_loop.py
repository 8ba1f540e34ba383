"""Biases and schedules inside the compiled segment, inline and pooled."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import molecule
from loop_example import WALKERS, compiled, limits_of, made, oracle, same, with_gate

from jaxal.acquire import select
from jaxal.acquire.schedule import bandit
from jaxal.acquire.score import max_force_spread
from jaxal.core.types import Bias
from jaxal.explore import bias_forces, variables
from jaxal.explore.bias_forces import Term
from jaxal.explore.biases import hyperactive
from jaxal.explore.restraint import restraint
from jaxal.program import loop, selection
from jaxal.program import state as states

OF = ("top_k", "random")
ALONG = variables.bound(
    [("distance", {"atoms": (0, 1)}), ("angle", {"atoms": (1, 0, 2)})], molecule("H2O"), "bias.variables"
)


def hills(height=0.05, width=0.1) -> Bias:
    """Gaussians of all walkers in the first variable, one of each at every step, where it was physical."""
    room = 64 * WALKERS

    def init(structure, walker):
        return jnp.zeros(room, structure.position.dtype), jnp.zeros(room), jnp.zeros((), jnp.int32)

    def learn(state, moment):
        place, weight, number = state
        rows = number + jnp.arange(WALKERS)
        place = place.at[rows].set(moment.variables[:, 0], mode="drop")
        weight = weight.at[rows].set(jnp.where(moment.physical, 1.0, 0.0), mode="drop")
        return place, weight, number + WALKERS

    def energy(state, values, uncertainty, structure, time):
        place, weight, _ = state
        return height * jnp.sum(weight * jnp.exp(-0.5 * ((values[0] - place) / width) ** 2))

    return Bias(init, energy, learn, shared=True)


@functools.cache
def terms():
    spring = restraint(max_force_spread, ALONG, low=(1.0, "100 deg"), high=(1.1, "110 deg"), stiffness=(5.0, 1.0))
    return (
        Term("hyperactive", hyperactive(max_force_spread, variables.NONE), variables.NONE, ()),
        Term("restraint", spring, ALONG, ALONG.names),
        Term("hills", hills(), ALONG, ("distance_2", "angle_2")),
    )


@functools.cache
def sought(queue=0):
    """(state, parts, jitted segment) of the small run with three biases and a bandit."""
    begun, parts, static = made(None if queue else oracle, queue=queue)
    schedule = bandit(of=OF)
    parts = parts._replace(biases=(terms(),), schedule=schedule, arms=tuple(getattr(select, name) for name in OF))
    drift = (bias_forces.begun(terms(), begun.walkers[0].structure),)
    course = selection.Course.begun(schedule)
    begun = begun._replace(drift=drift, trusted=begun.trusted._replace(drift=drift), course=course)
    return begun, parts, jax.jit(loop.make_segment(parts, static))


@pytest.mark.slow
def test_a_segment_with_biases_and_bandit_learns_of_both_and_repeats_itself():
    begun, parts, run = sought()
    state = with_gate(begun, -1.0)
    after, looks = run(state, limits_of())
    assert not int(after.problems) & states.UNDONE and looks.ok.all()
    adapted, _, (place, weight, number) = after.drift[0]
    assert np.all(adapted.count == 12) and np.all(np.asarray(adapted.slope) > 0)
    assert float(after.course.rounds) == 3 and float(after.course.error) > 0
    assert not np.array_equal(after.course.schedule.weight, state.course.schedule.weight)
    assert same(run(state, limits_of())[0], after)
    # the biases move the walkers elsewhere
    plain, _, unbiased = compiled(oracle)
    other, none = unbiased(with_gate(plain, -1.0), limits_of())
    here, there = other.walkers[0].structure.position, after.walkers[0].structure.position
    assert other.drift == ((),) and not np.array_equal(here, there)
    assert looks.walker.shape == (3, WALKERS) and none.report == {}
    # what is written down is of the frames that are written down
    distance, angle = looks.report["variable_distance"], looks.report["variable_angle"]
    frames = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), looks.structure)
    np.testing.assert_allclose(
        np.stack([distance, angle], -1).reshape(-1, 2), jax.vmap(ALONG.values)(frames), rtol=1e-6
    )
    time = jnp.repeat(jnp.asarray([4, 8, 12]) * parts.samplers[0].timestep, WALKERS)
    spring = jax.tree.map(lambda x: jnp.tile(x, 3), begun.drift[0][1])
    energy = jax.vmap(terms()[1].bias.energy)(spring, jax.vmap(ALONG.values)(frames), 0 * time, frames, time)
    np.testing.assert_allclose(looks.report["bias_restraint"].ravel(), energy, rtol=1e-3, atol=1e-6)
    # a hill is felt by every walker: all have those of all
    assert np.all(number == 12 * WALKERS) and np.all(weight.sum(1) == 12 * WALKERS)
    assert np.all(place == place[:1]) and np.all(looks.report["bias_hills"][-1] > 0.05)
    last = np.asarray(place)[0, : 12 * WALKERS].reshape(12, WALKERS)[[3, 7, 11]]
    np.testing.assert_array_equal(last, distance)


@pytest.mark.slow
def test_biases_are_rewound_with_their_walkers():
    """Flagged in a pooled run: what the bias of one walker has learned goes back, what all have learned stays."""
    begun, parts, run = sought(queue=6)
    sure, _ = run(with_gate(begun, 1e3), limits_of())
    assert same(sure.trusted.drift, sure.drift) and float(sure.drift[0][0].count[0]) == 12
    after, looks = run(with_gate(sure, -1.0), limits_of())
    assert looks.flagged.all()
    assert same(after.trusted, sure.trusted), "nothing was trusted since"
    # and so are the hyperactive means, after every look; hills of twelve more steps are there
    assert same(after.drift[0][0], sure.drift[0][0])
    assert np.all(after.drift[0][2][2] == 24 * WALKERS)
    # the restraint begins where the walker was taken back to
    values = jax.vmap(ALONG.values)(after.trusted.structure)
    time = parts.samplers[0].timestep * after.walkers[0].step.astype(jnp.float32)
    energy = jax.vmap(terms()[1].bias.energy)
    structures = after.trusted.structure
    expected = jax.vmap(terms()[1].bias.rewind)(after.drift[0][1], sure.drift[0][1], structures, time)
    at = values, 0 * time, structures, time
    np.testing.assert_allclose(energy(after.drift[0][1], *at), energy(expected, *at), rtol=1e-3, atol=1e-5)
    assert np.all(energy(after.drift[0][1], *at) <= energy(sure.drift[0][1], *at) + 1e-5)
