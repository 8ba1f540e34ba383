"""What every registered bias and schedule promises; registering a part makes these run on it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from structures import plain

from jaxal.acquire.score import max_force_spread
from jaxal.core import registry
from jaxal.core.discovery import import_parts
from jaxal.core.types import Bias, Moment, Structure
from jaxal.explore import variables

import_parts()
DTYPES = [jnp.float32, jnp.float64]
OF = ("top_k", "random", "farthest")
# What a bias cannot be built without.
OPTIONS = {
    "restraint": {"low": 0.5, "high": 2.0},
    "umbrella": {"low": 0.5, "high": 2.0, "windows": 3},
    "metadynamics": {"width": 0.1, "pace": 1, "hills": 5},
    "opes": {"width": 0.1, "pace": 1, "kernels": 5},
    "wall": {"low": 0.5, "high": 2.0},
    "confinement": {"radius": 1.0},
}


def every(kind: str):
    """All parts of a kind but the one that is none."""
    return pytest.mark.parametrize("name", [n for n in registry.names(kind) if n != "single"])


def test_single_is_no_part_of_the_program():
    assert registry.get("schedule", "single")() is None


def types_of(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def structure_of(dtype) -> Structure:
    """Four atoms, of which the last is padding."""
    position = np.random.default_rng(0).normal(size=(4, 3)).astype(dtype)
    zero = np.int32(0)
    return plain(position, np.array([0, 1, 1, -1], np.int32), np.zeros((3, 3), dtype), zero, zero)


ALONG = variables.bound([("distance", {"atoms": (0, 1)})], Atoms("HOO"), "bias.variables")
values_of = jax.jit(ALONG.values)


@functools.cache
def bias_of(name: str) -> Bias:
    return registry.get("bias", name)(max_force_spread, ALONG, **OPTIONS.get(name, {}))


def moment_of(structure: Structure, value, slope, force, time) -> Moment:
    time = np.asarray(time, structure.position.dtype)
    return Moment(values_of(structure), value, slope, force, structure, time, np.asarray(True))


def learned(bias: Bias, state, moment: Moment):
    """What a bias has learned from a moment of one walker, which are all there are of a shared one."""
    moment = jax.tree.map(lambda x: np.asarray(x)[None], moment) if bias.shared else moment
    return jax.jit(bias.learn)(state, moment)


@every("bias")
@pytest.mark.parametrize("dtype", DTYPES)
def test_bias_keeps_its_types_and_is_finite(name, dtype):
    """Also where the committee is certain; its state is carried through a loop, and back to where it was."""
    with jax.enable_x64(True):
        bias, structure = bias_of(name), structure_of(dtype)
        begun = jax.jit(bias.init)(structure, np.int32(3))
        slope, force = 0.3 * structure.position, structure.position
        energy_of = jax.jit(jax.value_and_grad(bias.energy, argnums=(1, 2)))
        for value in (0.0, 1e-12, 0.2, 50.0):
            value = np.asarray(value, dtype)
            states = [begun]
            for scale in (1.0, 0.0):
                moment = moment_of(structure, value, scale * slope, scale * force, 700.0)
                states.append(learned(bias, begun, moment))
            if bias.rewind is not None:
                states.append(jax.jit(bias.rewind)(states[1], begun, structure, moment.time))
            for state in states:
                assert types_of(state) == types_of(begun)
                energy, weights = energy_of(state, moment.variables, value, structure, moment.time)
                assert energy.dtype == dtype and energy.shape == () and np.isfinite(energy)
                assert all(weight.dtype == dtype and np.all(np.isfinite(weight)) for weight in weights)


@every("bias")
def test_bias_never_pulls_to_where_the_committee_is_certain(name):
    bias, structure = bias_of(name), structure_of(jnp.float32)
    moment = moment_of(structure, np.float32(0.2), 0.3 * structure.position, structure.position, 0.5)
    state = learned(bias, jax.jit(bias.init)(structure, np.int32(0)), moment)
    energy_of = jax.jit(jax.vmap(lambda u: bias.energy(state, moment.variables, u, structure, moment.time)))
    energy = np.asarray(energy_of(np.linspace(0.01, 1.0, 50, dtype=np.float32)))
    if bias.measure is None:
        np.testing.assert_array_equal(energy, energy[0])
    else:
        assert np.all(np.diff(energy) <= 0) and energy[-1] < energy[0]
        assert bias.largest is not None and bias.largest > 0, "it knows no energy: it has to be bounded"


@every("bias")
def test_a_bias_at_rest_is_an_energy_of_the_structure_and_one_that_grows_says_by_how_much(name):
    """Frames are weighed by what these say of themselves: `static`, `offset`."""
    bias, structure = bias_of(name), structure_of(jnp.float32)
    begun = jax.jit(bias.init)(structure, np.int32(1))
    moment = moment_of(structure, np.float32(0.2), 0.3 * structure.position, structure.position, 700.0)
    after = learned(bias, begun, moment)
    if bias.static:
        assert bias.measure is None and not bias.shared
        jax.tree.map(np.testing.assert_array_equal, after, begun)
        early, late = (
            jax.jit(bias.energy)(begun, moment.variables, np.float32(u), structure, np.float32(t))
            for u, t in ((0, 0), (9, 1234))
        )
        np.testing.assert_array_equal(early, late)
    if bias.offset is not None:
        offset = jax.jit(bias.offset)
        assert bias.shared and float(offset(begun)) == 0.0 and np.isfinite(offset(after))


@every("schedule")
@pytest.mark.parametrize("wide", [False, True])
def test_schedule_keeps_its_state_and_draws_arms_that_there_are(name, wide):
    with jax.enable_x64(wide):
        schedule = registry.get("schedule", name)(of=OF)
        assert schedule.of == OF
        state = schedule.init()
        for turn in range(5):
            key, used = jax.random.key(turn), np.asarray(0.2 * turn)
            draw = jax.jit(schedule.choose, static_argnums=3)
            arms = draw(key, state, used, 4)
            assert arms.shape == (4,) and arms.dtype == np.int32 and set(np.asarray(arms).tolist()) <= {0, 1, 2}
            np.testing.assert_array_equal(arms, draw(key, state, used, 4))
            after = jax.jit(schedule.learn)(state, arms, np.array([0.0, 1.0, 0.5, 0.2]))
            assert types_of(after) == types_of(state)
            state = after


@every("schedule")
def test_labels_of_no_arm_teach_nothing(name):
    schedule = registry.get("schedule", name)(of=OF)
    learn = jax.jit(schedule.learn)
    state = learn(schedule.init(), np.array([0, 1], np.int32), np.array([0.2, 0.7], np.float32))
    after = learn(state, np.full(2, -1, np.int32), np.array([1.0, np.nan], np.float32))
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
