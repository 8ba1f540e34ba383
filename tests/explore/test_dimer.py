"""Dimers on Müller and Brown's surface: saddles from the slopes before them, one curvature that is negative."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from structures import plain
from test_band import LEFT, RIGHT, SADDLE, surface

from jaxal.core.types import Start
from jaxal.explore.dimer import dimer
from jaxal.explore.stepping import unjudged

pytestmark = pytest.mark.usefixtures("double")
OTHER = (0.212487, 0.292988)  # the saddle between the middle and the right minimum
PAIRS, LENGTH = 8, 1e-3  # Å


def searched(steps, unphysical=(), **options):
    """Positions [d 2] of the middles after so many steps, curvatures, and which dimers are over at each step.

    The atom's third coordinate has a stiff spring; a second atom that is fixed lets the first one turn as it likes.
    """
    halfway = [np.mean([LEFT, SADDLE], axis=0), np.mean([RIGHT, OTHER], axis=0)]
    starts = np.repeat(halfway * (PAIRS // 2), 2, axis=0)
    place = jnp.zeros((2 * PAIRS, 2, 3)).at[:, 0, :2].set(starts)
    none, cell = jnp.zeros(2 * PAIRS, jnp.int32), jnp.zeros((2 * PAIRS, 3, 3))
    fixed = jnp.zeros((2 * PAIRS, 2), bool).at[:, 1].set(True)
    start = plain(place, jnp.zeros((2 * PAIRS, 2), jnp.int32), cell, none, none, fixed=fixed)
    sampler = dimer(jolt=0.05, length=LENGTH, **options)

    def step(state, number):
        structure = sampler.propose(state)
        value, slope = jax.vmap(jax.value_and_grad(surface))(structure.position[:, 0, :2])
        force = jnp.zeros_like(place).at[:, 0, :2].set(-slope).at[:, 0, 2].set(-200 * structure.position[:, 0, 2])
        seen = unjudged(value, force, cell)
        lost = jnp.isin(jnp.arange(2 * PAIRS), jnp.asarray(unphysical, jnp.int32)) & (number == 3)
        seen = seen._replace(physical=~lost, force=jnp.where(lost[:, None, None], jnp.nan, force))
        state = sampler.advance(state, structure, seen)
        return state, sampler.over(state)[::2]

    begun = sampler.init(jax.random.split(jax.random.key(1), 2 * PAIRS), Start(start, 0 * place, cell), none)
    state, over = jax.jit(lambda state: jax.lax.scan(step, state, jnp.arange(steps)))(begun)
    middles = np.asarray(sampler.walkers(state).position[::2, 0])
    return middles, np.asarray(sampler.report(state)["curvature"][::2]), np.asarray(over), state


def test_dimers_climb_to_saddles():
    middles, curvature, over, state = searched(600, converged=1e-3)
    assert over[-1].sum() >= PAIRS - 2 and not over[0].any()
    exact = jax.vmap(jax.hessian(surface))(jnp.asarray(middles[over[-1], :2]))
    lowest, highest = np.linalg.eigvalsh(exact).T
    assert np.all(lowest < 0) and np.all(highest > 0)
    np.testing.assert_allclose(curvature[over[-1]], lowest, rtol=1e-2)
    apart = [np.linalg.norm(middles[over[-1], :2] - saddle, axis=1) for saddle in (SADDLE, OTHER)]
    assert np.all(np.min(apart, axis=0) < 2e-3)
    # the end of each dimer is where it should be, and what both share is the same in both rows
    place = np.asarray(state.structure.position)
    np.testing.assert_allclose(np.linalg.norm(place[1::2, 0] - place[::2, 0], axis=-1), LENGTH, rtol=1e-9)
    for leaf in (state.axis, state.curvature, state.pull, *state.glide):
        np.testing.assert_array_equal(leaf[::2], leaf[1::2])


def test_a_dimer_one_of_whose_walkers_is_not_physical_rests_and_goes_on():
    middles, _, over, state = searched(600, unphysical=(2,), converged=1e-3)
    others, _, same, _ = searched(600, converged=1e-3)
    assert np.all(np.isfinite(middles)) and over[-1, 1] == same[-1, 1]
    np.testing.assert_allclose(np.delete(middles, 1, axis=0), np.delete(others, 1, axis=0), atol=1e-6)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in (state.axis, state.force, *state.glide))
