"""Schedules against their papers' rules in numpy, by counting, and in the selection of a look."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxal.acquire import select, select_distance
from jaxal.acquire.schedule import annealed, bandit, mixture
from jaxal.core.types import Candidates, InputError
from jaxal.program import selection

OF = ("top_k", "farthest", "random")
taught = jax.jit(selection.taught, static_argnums=0)


def drawn(schedule, key, used, size):
    """Arms of a schedule whose state is empty."""
    return np.asarray(jax.jit(schedule.choose, static_argnums=3)(jax.random.key(key), (), np.float32(used), size))


def test_exp3_is_the_published_rule():
    """Weights and probabilities of Auer et al. 2002, fig. 1, as they stand there, after forty rounds."""
    schedule, gamma = bandit(of=OF, explore=0.2), 0.2
    rng, weight, state, learn = np.random.default_rng(0), np.ones(3), schedule.init(), jax.jit(schedule.learn)
    for _ in range(40):
        chance = (1 - gamma) * weight / weight.sum() + gamma / 3
        arm, gains = int(rng.integers(3)), rng.uniform(size=2)
        weight[arm] *= np.exp(gamma * (gains.mean() / chance[arm]) / 3)
        # a third label that nothing is learned of
        state = learn(state, np.array([arm, arm, -1], np.int32), np.array([*gains, 1.0], np.float32))
        np.testing.assert_allclose(np.exp(state.weight), weight / weight.max(), rtol=1e-4)
    choose = jax.jit(jax.vmap(lambda key: schedule.choose(key, state, jnp.asarray(0.5), 4)))
    draws = np.asarray(choose(jax.random.split(jax.random.key(1), 9000)))
    assert np.all(draws == draws[:, :1]), "one arm in a look"
    chance = (1 - gamma) * weight / weight.sum() + gamma / 3
    np.testing.assert_allclose(np.bincount(draws[:, 0], minlength=3) / 9000, chance, atol=0.02)


def test_ucb1_is_the_published_rule():
    schedule = bandit(of=OF, rule="ucb1")
    rng, count, total, state = np.random.default_rng(0), np.zeros(3), np.zeros(3), schedule.init()
    choose, learn = jax.jit(schedule.choose, static_argnums=3), jax.jit(schedule.learn)
    for turn in range(60):
        arm = int(np.asarray(choose(jax.random.key(turn), state, np.float32(0.0), 2))[0])
        with np.errstate(divide="ignore", invalid="ignore"):
            bound = np.where(count > 0, total / count + np.sqrt(2 * np.log(max(count.sum(), 1)) / count), np.inf)
        assert bound[arm] == pytest.approx(bound.max(), rel=1e-5)
        gain = rng.uniform() * [0.3, 0.6, 0.9][arm]
        count[arm] += 1
        total[arm] += gain
        state = learn(state, np.array([arm], np.int32), np.array([gain], np.float32))
    np.testing.assert_array_equal(state.count, count)
    assert count.argmax() == 2


@pytest.mark.parametrize("rule", ["exp3", "ucb1"])
def test_a_bandit_finds_the_better_arm(rule):
    """Errors drawn from 1 and 2 eV/Å on average: the arm whose labels were worse predicted is played more."""
    schedule = bandit(of=OF[:2], rule=rule, explore=0.2)

    def look(course, key):
        draw, noise = jax.random.split(key)
        arm = schedule.choose(draw, course.schedule, jnp.asarray(0.0), 2)
        error = (1.0 + arm) * jax.random.uniform(noise, (2,), minval=0.5, maxval=1.5)
        return selection.taught(schedule, course, arm, error, jnp.ones(2, bool)), arm[0]

    begun = selection.Course.begun(schedule)
    _, arms = jax.jit(lambda keys: jax.lax.scan(look, begun, keys))(jax.random.split(jax.random.key(0), 600))
    assert np.mean(np.asarray(arms)[300:] == 1) > 0.7


def test_annealed_shares_are_those_of_the_place_between_the_arms():
    schedule = annealed(of=OF, until=0.8)
    for used, shares in (
        (0.0, [1, 0, 0]),
        (0.1, [0.75, 0.25, 0]),
        (0.6, [0, 0.5, 0.5]),
        (0.8, [0, 0, 1]),
        (1.2, [0, 0, 1]),
    ):
        arms = drawn(schedule, 2, used, 8000)
        np.testing.assert_allclose(np.bincount(arms, minlength=3) / 8000, shares, atol=0.02)


def test_mixture_draws_by_its_weights():
    arms = drawn(mixture(of=OF, weights=(1.0, 0.0, 3.0)), 3, 0.0, 8000)
    np.testing.assert_allclose(np.bincount(arms, minlength=3) / 8000, [0.25, 0, 0.75], atol=0.02)


def candidates(eligible=12) -> Candidates:
    rng = np.random.default_rng(4)
    return Candidates(
        rng.uniform(size=12).astype(np.float32),
        rng.normal(size=(12, 2)).astype(np.float32),
        np.arange(12) < eligible,
        np.zeros((1, 2), np.float32),
        np.zeros(1, bool),
    )


@functools.cache
def scheduled(schedule_of, **options):
    schedule = schedule_of(of=OF, **options)
    arms = selection.arms_of(schedule)
    state = schedule.init()
    choose = jax.jit(lambda key, pool, used: selection.scheduled(schedule, arms, 6, key, pool, state, used))
    return lambda key, pool, used: jax.device_get(choose(jax.random.key(key), pool, np.float32(used)))


@pytest.mark.parametrize("eligible", [0, 1, 4, 12])
def test_several_arms_pick_each_candidate_once(eligible):
    rows, arms = scheduled(mixture)(5, candidates(eligible), 0.0)
    chosen = rows[rows >= 0]
    assert len(chosen) == len(set(chosen.tolist())) == min(eligible, 6) and np.all(chosen < eligible)
    np.testing.assert_array_equal(rows >= 0, arms >= 0)
    assert np.all(rows[len(chosen) :] == -1)
    again = scheduled(mixture)(5, candidates(eligible), 0.0)
    np.testing.assert_array_equal(rows, again[0])


def test_one_arm_alone_picks_what_its_selection_does():
    pool = candidates()
    for number, (used, part) in enumerate(((0.0, select.top_k), (0.5, select_distance.farthest))):
        rows, arms = scheduled(annealed)(6, pool, used)
        np.testing.assert_array_equal(rows, jax.jit(part, static_argnums=2)(jax.random.key(0), pool, 6))
        assert np.all(arms == number)


def test_gains_are_relative_to_the_usual_error():
    """Half of the error over the mean of the rounds so far, at most one; failed labels and probes do not count."""
    schedule = bandit(of=OF, rule="ucb1")
    course = selection.Course.begun(schedule)
    arm, ok = np.array([0, 1, 2, -1], np.int32), np.array([True, True, False, True])
    course = taught(schedule, course, arm, np.array([1.0, 3.0, np.nan, 9.0], np.float32), ok)
    assert float(course.error) == pytest.approx(2.0)
    np.testing.assert_allclose(course.schedule.total, [0.25, 0.75, 0.0])
    np.testing.assert_allclose(course.schedule.count, [1, 1, 0])
    course = taught(schedule, course, np.array([2], np.int32), np.array([20.0], np.float32), np.array([True]))
    assert float(course.error) == pytest.approx(11.0)
    np.testing.assert_allclose(course.schedule.total, [0.25, 0.75, 10 / 11])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bandit(of=("top_k",)), r"schedule\.of: .* at least 2"),
        (lambda: annealed(of=("top_k", "topk")), r"schedule\.of: unknown select 'topk'"),
        (lambda: mixture(of=OF, weights=(1.0,)), r"schedule\.weights: .* give 3 shares"),
        (lambda: bandit(of=OF, explore=2.0), r"schedule\.explore: .* at most 1"),
    ],
)
def test_mistakes_are_told(make, message):
    with pytest.raises(InputError, match=message):
        make()
