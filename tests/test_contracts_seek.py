"""What every registered bias and schedule promises; registering a part makes these run on it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from structures import plain

from jaxal.acquire.score import max_force_spread
from jaxal.core import registry
from jaxal.core.discovery import import_parts
from jaxal.core.types import Structure

import_parts()
DTYPES = [jnp.float32, jnp.float64]
OF = ("top_k", "random", "farthest")


def every(kind: str):
    """All parts of a kind but the one that is none."""
    return pytest.mark.parametrize("name", [n for n in registry.names(kind) if n not in ("none", "single")])


def test_none_and_single_are_no_part_of_the_program():
    assert registry.get("bias", "none")(max_force_spread) is None and registry.get("schedule", "single")() is None


def types_of(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def structure_of(dtype) -> Structure:
    """Four atoms, of which the last is padding."""
    position = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), dtype)
    zero = jnp.int32(0)
    return plain(position, jnp.asarray([0, 1, 1, -1], jnp.int32), jnp.zeros((3, 3), dtype), zero, zero)


@every("bias")
@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_keeps_its_types_and_is_finite(name, dtype):
    """Also where the committee is certain; its state is carried through a loop."""
    with jax.enable_x64(True):
        bias, structure = registry.get("bias", name)(max_force_spread), structure_of(dtype)
        begun = bias.init(structure)
        slope, force = 0.3 * structure.position, structure.position
        for value in (0.0, 1e-12, 0.2, 50.0):
            value = jnp.asarray(value, dtype)
            after = jax.jit(bias.learn)(begun, value, slope, force)
            assert types_of(after) == types_of(begun)
            still = jax.jit(bias.learn)(begun, value, 0 * slope, 0 * force)
            for state in (begun, after, still):
                energy, weight = jax.jit(jax.value_and_grad(bias.energy, argnums=1))(state, value, structure)
                assert energy.dtype == weight.dtype == dtype and energy.shape == ()
                assert np.isfinite(energy) and np.isfinite(weight)


@every("bias")
def test_bias_never_pulls_to_where_the_committee_is_certain(name):
    bias, structure = registry.get("bias", name)(max_force_spread), structure_of(jnp.float32)
    state = bias.learn(bias.init(structure), jnp.float32(0.2), 0.3 * structure.position, structure.position)
    energy = jax.vmap(lambda u: bias.energy(state, u, structure))(jnp.linspace(0.01, 1.0, 50))
    assert np.all(np.diff(energy) <= 0) and energy[-1] < energy[0] and bias.largest > 0


@every("schedule")
@pytest.mark.parametrize("wide", [False, True])
def test_schedule_keeps_its_state_and_draws_arms_that_there_are(name, wide):
    with jax.enable_x64(wide):
        schedule = registry.get("schedule", name)(of=OF)
        assert schedule.of == OF
        state = schedule.init()
        for turn in range(5):
            key, used = jax.random.key(turn), jnp.asarray(0.2 * turn)
            draw = jax.jit(schedule.choose, static_argnums=3)
            arms = draw(key, state, used, 4)
            assert arms.shape == (4,) and arms.dtype == jnp.int32 and np.all((arms >= 0) & (arms < 3))
            np.testing.assert_array_equal(arms, draw(key, state, used, 4))
            gain = jnp.asarray([0.0, 1.0, 0.5, 0.2])
            after = jax.jit(schedule.learn)(state, arms, gain)
            assert types_of(after) == types_of(state)
            state = after


@every("schedule")
def test_labels_of_no_arm_teach_nothing(name):
    schedule = registry.get("schedule", name)(of=OF)
    state = schedule.learn(schedule.init(), jnp.asarray([0, 1]), jnp.asarray([0.2, 0.7]))
    after = schedule.learn(state, jnp.full(2, -1), jnp.asarray([1.0, jnp.nan]))
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(a, b)


@every("schedule")
def test_schedule_goes_through_a_scan(name):
    schedule = registry.get("schedule", name)(of=OF)

    def turn(state, key):
        arms = schedule.choose(key, state, jnp.asarray(0.5), 2)
        return schedule.learn(state, arms, jnp.full(2, 0.5)), arms

    _, arms = jax.jit(functools.partial(jax.lax.scan, turn))(schedule.init(), jax.random.split(jax.random.key(0), 20))
    assert arms.shape == (20, 2)
