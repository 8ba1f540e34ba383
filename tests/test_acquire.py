"""Scores against numpy, selections against brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxal.acquire import gate, score, select
from jaxal.types import Candidates, Prediction, Structure

RNG = np.random.default_rng(0)
FORCE = RNG.normal(size=(4, 5, 3))  # four members, five atoms, of which the last two are padding
ENERGY = RNG.normal(size=4)
REAL = 3
PREDICTION = Prediction(
    jnp.asarray(ENERGY, jnp.float32), jnp.asarray(FORCE, jnp.float32), jnp.zeros((4, 3, 3)), jnp.zeros((5, 2))
)
STRUCTURE = Structure(jnp.zeros((5, 3)), jnp.asarray([0, 0, 1, -1, -1]), jnp.zeros((3, 3)), jnp.int32(0), jnp.int32(0))


def test_scores_are_what_they_say():
    mean = FORCE.mean(axis=0)
    # the mean over members of the squared distance of an atom's force vector from the committee's
    spread = np.sqrt(np.mean([np.sum((one - mean) ** 2, axis=-1) for one in FORCE], axis=0))
    np.testing.assert_allclose(score.atom_spread(PREDICTION), spread, rtol=1e-5)
    assert float(score.max_force_spread(PREDICTION, STRUCTURE)) == pytest.approx(spread[:REAL].max(), rel=1e-5)
    rms = np.sqrt(np.mean(spread[:REAL] ** 2))
    assert float(score.mean_force_spread(PREDICTION, STRUCTURE)) == pytest.approx(rms, rel=1e-5)
    assert float(score.energy_spread(PREDICTION, STRUCTURE)) == pytest.approx(ENERGY.std() / REAL, rel=1e-5)


def test_the_worst_atom_is_found_wherever_it_is():
    for atom in range(REAL):
        force = 0.01 * FORCE
        force[:, atom] *= 100
        prediction = PREDICTION._replace(force=jnp.asarray(force, jnp.float32))
        worst = float(score.max_force_spread(prediction, STRUCTURE))
        assert worst == pytest.approx(float(score.atom_spread(prediction)[atom]))


def test_structures_of_padding_only_are_certain():
    empty = STRUCTURE._replace(species=jnp.full(5, -1))
    for each in (score.max_force_spread, score.mean_force_spread):
        assert float(each(PREDICTION, empty)) == 0
    assert np.isfinite(float(score.energy_spread(PREDICTION, empty)))


def test_the_threshold_itself_passes():
    part = gate.threshold(limit=0.5)
    _, flagged = part.step(part.init(), jnp.asarray([0.0, 0.5, 0.500001, 7.0]))
    np.testing.assert_array_equal(flagged, [False, False, True, True])
    state = part.init()
    assert part.calibrate(state, jnp.ones(3), jnp.full(3, 9.0), jnp.ones(3, bool)) is state  # it learns nothing


def test_a_conformal_gate_compares_the_estimated_error_with_its_target():
    part = gate.conformal(target_error=0.3, miss_rate=0.25)
    scores, errors = jnp.asarray([0.1, 0.1, 0.1]), jnp.asarray([0.1, 0.2, 0.3])  # ratios 1, 2, 3
    state = part.calibrate(part.init(), scores, errors, jnp.ones(3, bool))
    assert float(state.factor) == pytest.approx(3.0)
    _, flagged = part.step(state, jnp.asarray([0.05, 0.099, 0.101]))
    np.testing.assert_array_equal(flagged, [False, False, True])
    # a new target needs no new gate: it is part of the state
    _, flagged = part.step(state._replace(threshold=jnp.asarray(0.1)), jnp.asarray([0.05, 0.03]))
    np.testing.assert_array_equal(flagged, [True, False])


# ---------------------------------------------------------------- selections


def candidates(count=12, features=3, eligible=None, seed=1) -> Candidates:
    rng = np.random.default_rng(seed)
    mask = np.ones(count, bool) if eligible is None else np.asarray(eligible, bool)
    return Candidates(
        jnp.asarray(rng.uniform(size=count), jnp.float32),
        jnp.asarray(rng.normal(size=(count, features)), jnp.float32),
        jnp.asarray(mask),
        jnp.asarray(rng.normal(size=(5, features)), jnp.float32),
        jnp.asarray([1, 1, 0, 1, 0], bool),
    )


def test_top_k_is_the_sorted_list():
    mask = np.arange(12) % 3 != 0
    given = candidates(eligible=mask)
    scores = np.asarray(given.score)
    expected = sorted(np.flatnonzero(mask), key=lambda row: -scores[row])
    np.testing.assert_array_equal(select.top_k(jax.random.key(0), given, 5), expected[:5])
    tied = given._replace(score=jnp.zeros(12))
    np.testing.assert_array_equal(select.top_k(jax.random.key(0), tied, 4), np.flatnonzero(mask)[:4])


def farthest_by_hand(given: Candidates, size: int) -> list[int]:
    """Always the row whose nearest chosen one is farthest away."""
    feature, score = np.asarray(given.feature, float), np.asarray(given.score)
    left = [int(row) for row in np.flatnonzero(given.eligible)]
    chosen = [max(left, key=lambda row: score[row])]
    while len(chosen) < min(size, len(left)):
        rest = [row for row in left if row not in chosen]
        chosen.append(max(rest, key=lambda row: min(np.linalg.norm(feature[row] - feature[one]) for one in chosen)))
    return chosen


@pytest.mark.parametrize("seed", range(5))
def test_farthest_is_the_greedy_choice(seed):
    given = candidates(eligible=np.random.default_rng(seed).uniform(size=12) < 0.7, seed=seed)
    rows = select.farthest(jax.random.key(0), given, 6)
    np.testing.assert_array_equal(rows, farthest_by_hand(given, 6))


def test_farthest_is_within_twice_the_best_radius():
    """Gonzalez's bound, against all choices: every candidate is within twice the best possible distance."""
    given = candidates(count=10)
    feature = np.asarray(given.feature, float)
    distance = np.linalg.norm(feature[:, None] - feature, axis=-1)
    best = min(distance[list(rows)].min(axis=0).max() for rows in itertools.combinations(range(10), 3))
    rows = np.asarray(select.farthest(jax.random.key(0), given, 3))
    assert distance[rows].min(axis=0).max() <= 2 * best


def test_farthest_leaves_out_what_is_there_twice():
    given = candidates(count=6)
    twins = given._replace(feature=given.feature.at[3:].set(given.feature[:3]))
    rows = np.asarray(select.farthest(jax.random.key(0), twins, 6))
    assert np.sum(rows >= 0) == 3 and {int(row) % 3 for row in rows[rows >= 0]} == {0, 1, 2}
    same = given._replace(feature=jnp.ones((6, 3)))
    np.testing.assert_array_equal(select.farthest(jax.random.key(0), same, 3), [int(jnp.argmax(given.score)), -1, -1])


def test_random_is_uniform_over_the_eligible():
    mask = np.array([1, 0, 1, 1, 0, 1, 1, 0], bool)
    given = candidates(count=8, eligible=mask)
    draws = 4000
    keys = jax.random.split(jax.random.key(5), draws)
    rows = np.asarray(jax.jit(jax.vmap(lambda key: select.random(key, given, 2)))(keys))
    for place in range(2):
        counts = np.bincount(rows[:, place], minlength=8)
        assert not counts[~mask].any()
        expected = draws / mask.sum()
        assert np.all(abs(counts[mask] - expected) < 4 * np.sqrt(expected))
    assert np.all(rows[:, 0] != rows[:, 1])
