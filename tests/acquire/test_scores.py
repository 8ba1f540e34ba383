"""Scores against numpy and scipy: closed forms, Monte Carlo, spreads in closed form."""

import functools

import jax
import numpy as np
import pytest
from scipy import stats
from structures import plain

from jaxal.acquire import environments, improvement, score
from jaxal.core.types import Prediction, Structure

RNG = np.random.default_rng(0)
REAL, TOTAL, MEMBERS = 4, 6, 5  # atoms, of which the last two are padding
FORCE, FEATURE = RNG.normal(size=(MEMBERS, TOTAL, 3)), RNG.normal(size=(TOTAL, 7))
ENERGY = RNG.normal(size=MEMBERS)
SPECIES = np.array([0, 0, 1, 1, -1, -1])


def example(**more) -> tuple[Prediction, Structure]:
    single = functools.partial(np.asarray, dtype=np.float32)
    prediction = Prediction(single(ENERGY), single(FORCE), single(np.zeros((MEMBERS, 3, 3))), single(FEATURE))
    zero, species = np.int32(0), SPECIES.astype(np.int32)
    room = plain(single(np.zeros((TOTAL, 3))), species, single(np.zeros((3, 3))), zero, zero)
    return prediction._replace(**{name: single(value) for name, value in more.items()}), room


@functools.cache
def compiled(function, **words):
    """A score with some options; numbers are given to what comes back."""
    return jax.jit(functools.partial(function, **words))


@functools.cache
def slope_of(function):
    return jax.jit(jax.value_and_grad(function))


def spread_of(force):
    """Root mean squared distance of each atom's force from the mean."""
    return np.sqrt(np.mean(np.sum((force - force.mean(0)) ** 2, axis=-1), axis=0))


SPREAD, MEAN = spread_of(FORCE)[:REAL], np.linalg.norm(FORCE.mean(0), axis=-1)[:REAL]
CLOSED = {"energy_spread": 0.3, "force_spread": [0.1, 0.4, 0.2, 0.3, 9.0, 9.0]}
OWN = np.array(CLOSED["force_spread"][:REAL])


@pytest.mark.parametrize(("more", "spread"), [({}, SPREAD), (CLOSED, OWN)])
def test_force_scores_are_what_they_say(more, spread):
    prediction, room = example(**more)
    np.testing.assert_allclose(np.asarray(compiled(score.atom_spread)(prediction))[:REAL], spread, rtol=1e-5)
    expected = {
        score.max_force_spread: spread.max(),
        score.mean_force_spread: np.sqrt(np.mean(spread**2)),
        functools.partial(score.relative_force_spread, floor=0.25): np.max(spread / (MEAN + 0.25)),
        functools.partial(environments.environment_novelty, limit=0.3, steepness=5.0): np.sum(
            spread**5 / (spread**5 + 0.3**5)
        ),
        functools.partial(environments.environment_novelty, limit=0.3, steepness=5.0, count="fraction"): np.mean(
            spread**5 / (spread**5 + 0.3**5)
        ),
    }
    values = jax.jit(lambda *of: [function(*of) for function in expected])(prediction, room)
    for value, (function, known) in zip(values, expected.items(), strict=True):
        assert float(value) == pytest.approx(known, rel=1e-5), function


def test_entropy_is_the_difference_of_two_normal_entropies():
    noise = 0.05
    for more, spread in (({}, SPREAD), (CLOSED, OWN)):
        entropies = [
            stats.multivariate_normal(np.zeros(3), np.eye(3) * (s**2 / 3 + noise**2)).entropy()
            - stats.multivariate_normal(np.zeros(3), np.eye(3) * noise**2).entropy()
            for s in spread
        ]
        entropy = float(compiled(score.committee_entropy)(*example(**more), noise=noise))
        assert entropy == pytest.approx(np.mean(entropies), rel=1e-5)


def test_a_steep_novelty_counts_the_atoms_above_the_limit():
    prediction, room = example(**CLOSED)
    novelty = environments.environment_novelty
    count, fraction = (
        functools.partial(compiled(novelty, count=of), prediction, room, steepness=500.0)
        for of in ("atoms", "fraction")
    )
    assert float(count(limit=0.25)) == pytest.approx(2, abs=1e-3)
    assert float(fraction(limit=0.25)) == pytest.approx(0.5, abs=1e-3)
    assert float(count(limit=0.05)) == pytest.approx(REAL, abs=1e-3) and float(count(limit=5.0)) == 0
    # far above and far below the limit nothing overflows
    for size in (0.0, 1e-30, 1e-3, 1e3, 1e30):
        given_spread = prediction._replace(force_spread=np.full(TOTAL, size, np.float32))
        value, slope = slope_of(novelty)(given_spread, room)
        assert np.isfinite(value) and np.isfinite(slope.force_spread).all()


@pytest.mark.parametrize("more", [{}, CLOSED])
def test_model_change_is_the_mean_length_of_the_gradient(more):
    """By drawing labels: the gradient of half the squared error per atom with respect to the last layer's weights."""
    prediction, room = example(**more)
    rng = np.random.default_rng(3)
    sigma = more.get("energy_spread", ENERGY.std())
    error = rng.normal(0, sigma, 200_000)
    gradient = np.sum(FEATURE[:REAL], axis=0)
    lengths = np.abs(error)[:, None] * np.linalg.norm(gradient) / REAL**2
    change = float(compiled(environments.expected_model_change)(prediction, room))
    assert change == pytest.approx(lengths.mean(), rel=0.01)
    assert change == pytest.approx(np.sqrt(2 / np.pi) * sigma * np.linalg.norm(gradient) / REAL**2, rel=1e-5)


@pytest.mark.parametrize("more", [{}, CLOSED])
@pytest.mark.parametrize("best", [-2.0, -0.1, 0.0, 0.05, 3.0])
@pytest.mark.parametrize("goal", ["low", "high"])
def test_improvement_of_the_energy_against_scipy_and_by_drawing(more, best, goal):
    prediction, room = example(**more)
    mean, std = ENERGY.mean() / REAL, more.get("energy_spread", ENERGY.std()) / REAL
    d = best - mean if goal == "low" else mean - best
    probability = stats.norm.cdf(d / std)
    gained = d * probability + std * stats.norm.pdf(d / std)
    value, chance = (
        float(compiled(function, goal=goal)(prediction, room, best=best))
        for function in (improvement.expected_improvement, improvement.probability_of_improvement)
    )
    assert value == pytest.approx(gained, rel=1e-3, abs=1e-9)
    assert chance == pytest.approx(probability, rel=1e-3, abs=1e-9)
    drawn = np.random.default_rng(4).normal(mean, std, 400_000)
    gains = np.maximum(best - drawn if goal == "low" else drawn - best, 0)
    assert abs(value - gains.mean()) < 5 * gains.std() / np.sqrt(len(gains)) + 1e-6
    bound = float(compiled(improvement.confidence_bound)(prediction, room, kappa=1.7, best=best))
    assert bound == pytest.approx(1.7 * std - (mean - best), rel=1e-4)
    # a lower confidence bound is a quantile
    assert best - bound == pytest.approx(stats.norm.ppf(stats.norm.cdf(-1.7), mean, std), rel=1e-4)


def test_low_and_unsure_energies_have_the_highest_bound():
    prediction, room = example(**CLOSED)
    bound = functools.partial(compiled(improvement.confidence_bound), structure=room)
    lower = prediction._replace(energy=prediction.energy - 1.0)
    unsure = prediction._replace(energy_spread=np.float32(0.9))
    assert float(bound(lower)) > float(bound(prediction)) < float(bound(unsure))


@pytest.mark.parametrize(("more", "atom"), [({}, None), (CLOSED, None)])
def test_the_largest_force_as_a_property(more, atom):
    del atom
    prediction, room = example(**more)
    mean = FORCE.mean(0)[:REAL]
    worst = np.argmax(np.linalg.norm(mean, axis=-1))
    size = np.linalg.norm(mean[worst])
    std = OWN[worst] / np.sqrt(3) if more else (FORCE[:, worst] @ (mean[worst] / size)).std()
    largest = compiled(improvement.PROPERTIES["largest_force"])(prediction, room)
    assert float(largest.mean) == pytest.approx(size, rel=1e-5) and float(largest.std) == pytest.approx(std, rel=1e-5)
    d = size - 1.0
    expected = d * stats.norm.cdf(d / std) + std * stats.norm.pdf(d / std)
    value, probability = (
        float(compiled(function, property="largest_force", goal="high")(prediction, room, best=1.0))
        for function in (improvement.expected_improvement, improvement.probability_of_improvement)
    )
    assert value == pytest.approx(expected, rel=1e-4)
    assert probability == pytest.approx(stats.norm.cdf(d / std), rel=1e-4)


@pytest.mark.parametrize("std", [0.0, 1e-38, 1e-20, 1e-3, 1.0, 1e10])
@pytest.mark.parametrize("mean", [-1.0, -1e-30, 0.0, 1e-30, 1.0])
def test_improvements_and_their_gradients_are_finite_at_any_spread(mean, std):
    prediction, room = example(energy=[mean], force=FORCE[:1], energy_spread=std, force_spread=np.zeros(TOTAL))
    for function in (improvement.expected_improvement, improvement.probability_of_improvement):
        value, slope = slope_of(function)(prediction, room)
        assert np.isfinite(value) and float(value) >= 0
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slope))
    if std == 0:
        gain = float(compiled(improvement.expected_improvement)(prediction, room))
        assert gain == pytest.approx(max(-mean / REAL, 0), rel=1e-6)


def test_the_gradient_of_improvement_is_the_closed_one():
    """d EI / d mean = -Phi and d EI / d std = phi (Jones et al., eq. 16 ff)."""
    prediction, room = example(energy=[0.4], force=FORCE[:1], energy_spread=0.5, force_spread=np.zeros(TOTAL))
    _, slope = slope_of(improvement.expected_improvement)(prediction, room)
    z = -0.4 / 0.5
    assert float(slope.energy[0]) == pytest.approx(-stats.norm.cdf(z) / REAL, rel=1e-4)
    assert float(slope.energy_spread) == pytest.approx(stats.norm.pdf(z) / REAL, rel=1e-4)
