"""Selections by covariances against numpy with explicit inverses and determinants, and k-DPPs against enumeration."""

import itertools
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from select_example import Plain, agrees, candidates, chosen, drawn, greedy, plain

from jaxal.acquire import select_gaussian as parts
from jaxal.core.types import Candidates

pytestmark = pytest.mark.usefixtures("double")
SEEDS = range(3)
NOISE = 0.2
KNOWN = ([1, 1, 0, 1, 0], [0, 0])


def pool_of(seed: int, known=KNOWN[0], count=12, features=4) -> Candidates:
    mask = np.random.default_rng(seed).uniform(size=count) < 0.8
    return candidates(count, features, mask, seed, known, jnp.float64)


def joint(hand: Plain) -> np.ndarray:
    """Covariance of the candidates' values given labels of the known ones, by the inverse of their covariance."""
    cross = hand.feature @ hand.known.T
    inverse = np.linalg.inv(hand.known @ hand.known.T + NOISE**2 * np.eye(len(hand.known)))
    return hand.feature @ hand.feature.T - cross @ inverse @ cross.T


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("weight", [0.0, 1.5])
def test_max_det_is_the_greedy_choice(seed, known, weight):
    pool = pool_of(seed, known)
    hand = plain(pool)
    everything = np.concatenate([hand.known, hand.feature])
    worth = np.concatenate([np.ones(len(hand.known)), hand.score**weight])
    kernel = worth[:, None] * (everything @ everything.T + NOISE**2 * np.eye(len(everything))) * worth

    def determinant(row, rows):
        block = [*range(len(hand.known)), *(len(hand.known) + candidate for candidate in [*rows, row])]
        return np.linalg.slogdet(kernel[np.ix_(block, block)])[1]

    rows = chosen(parts.max_det, pool, 7, weight=weight, noise=NOISE)
    assert rows == greedy(hand.left, 7, determinant)
    if weight == 0:
        assert rows == chosen(parts.batch_bald, pool, 7, noise=NOISE)


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("seed", SEEDS)
def test_batch_bald_is_the_mutual_information_of_labels_and_weights(seed, known):
    """Entropy of the weights before less that after the labels, by their covariances; in no way by the labels'."""
    pool = pool_of(seed, known)
    hand = plain(pool)

    def entropy(rows):
        seen = np.concatenate([hand.known, hand.feature[rows]])
        return -0.5 * np.linalg.slogdet(np.eye(4) + seen.T @ seen / NOISE**2)[1]

    expected = greedy(hand.left, 7, lambda row, rows: entropy([]) - entropy([*rows, row]))
    assert chosen(parts.batch_bald, pool, 7, noise=NOISE) == expected


def error(hand: Plain, rows: list[int]) -> float:
    """Variance summed over the eligible candidates, given labels of `rows`."""
    covariance = joint(hand)
    block = covariance[np.ix_(rows, rows)] + NOISE**2 * np.eye(len(rows))
    cross = covariance[np.ix_(hand.left, rows)]
    return np.trace(covariance[np.ix_(hand.left, hand.left)]) - np.trace(cross @ np.linalg.inv(block) @ cross.T)


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("seed", SEEDS)
def test_expected_error_reduction_is_the_greedy_choice(seed, known):
    hand = plain(pool_of(seed, known))
    expected = greedy(hand.left, 6, lambda row, rows: -error(hand, [*rows, row]))
    assert chosen(parts.expected_error_reduction, pool_of(seed, known), 6, noise=NOISE) == expected


@pytest.mark.parametrize("known", KNOWN)
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("size", [1, 3, 6])
def test_bait_adds_twice_as_many_and_drops_the_least(seed, known, size):
    pool = pool_of(seed, known)
    hand = plain(pool)
    rows = greedy(hand.left, 2 * size, lambda row, rows: -error(hand, [*rows, row]))
    while len(rows) > size:
        rows.remove(min(rows, key=lambda row: error(hand, [other for other in rows if other != row])))
    assert chosen(parts.bait, pool, size, noise=NOISE) == rows


def test_bait_is_never_worse_than_its_first_half_and_may_be_better():
    """What the way back is for, over many pools."""
    gains = []
    for seed in range(12):
        pool = pool_of(seed, count=20)
        hand = plain(pool)
        forward = chosen(parts.expected_error_reduction, pool, 3, noise=NOISE)
        both = chosen(parts.bait, pool, 3, noise=NOISE)
        gains.append(error(hand, forward) - error(hand, both))
    assert np.mean(gains) > 0 and sum(gain > 1e-9 for gain in gains) >= 3


def test_bait_keeps_probes():
    pool = pool_of(1, count=20)
    probes = plain(pool).left[-2:]
    probed = pool._replace(score=pool.score.at[jnp.asarray(probes)].set(jnp.inf))
    assert chosen(parts.bait, probed, 3)[:2] == probes
    assert chosen(parts.bait, probed, 1)[0] in probes


# ---------------------------------------------------------------- k-DPPs


def batches(kernel: np.ndarray, left: list[int], size: int) -> dict[tuple[int, ...], float]:
    """Probability of every batch: its determinant over the sum of all."""
    sets = list(itertools.combinations(left, size))
    values = np.array([np.linalg.det(kernel[np.ix_(rows, rows)]) for rows in sets])
    return dict(zip(sets, values / values.sum(), strict=True))


@pytest.mark.parametrize("known", [[1, 0, 1], [0]])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_a_k_dpp_draws_batches_by_their_determinants(known, weight):
    """6 choose 3, of seven candidates of which one is not eligible."""
    pool = candidates(7, 4, [1, 1, 1, 0, 1, 1, 1], 3, known, jnp.float64)
    hand = plain(pool)
    worth = hand.score**weight
    expected = batches(worth[:, None] * joint(hand) * worth, hand.left, 3)
    assert len(expected) == 20 and max(expected.values()) > 4 * np.median(list(expected.values()))
    draws = 20_000
    rows = drawn(partial(parts.k_dpp, weight=weight, noise=NOISE), pool, 3, draws)
    agrees(Counter(tuple(sorted(batch)) for batch in rows), expected, draws)
    # marginals of single candidates, and of each place in the order: the order carries nothing
    for row in hand.left:
        marginal = sum(chance for batch, chance in expected.items() if row in batch)
        for place in range(3):
            count = sum(batch[place] == row for batch in rows)
            assert abs(count - draws * marginal / 3) <= 4 * np.sqrt(draws * marginal / 3)


def test_a_k_dpp_is_exact_in_single_precision_with_many_features():
    """More features than candidates, of very different sizes: what counts is the same."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(False):
        pool = candidates(6, 40, known=[0])
        feature = rng.normal(size=(6, 40)) * 10.0 ** -np.linspace(0, 2, 40)
        pool = pool._replace(feature=jnp.asarray(feature, jnp.float32))
        hand = plain(pool)
        expected = batches(hand.feature @ hand.feature.T, hand.left, 3)
        rows = drawn(partial(parts.k_dpp, weight=0.0), pool, 3, 20_000)
    agrees(Counter(tuple(sorted(batch)) for batch in rows), expected, 20_000)


def test_a_k_dpp_never_takes_twins():
    pool = candidates(8, 4, known=[0], dtype=jnp.float64)
    twins = pool._replace(feature=pool.feature.at[4:].set(pool.feature[:4]))
    for rows in drawn(parts.k_dpp, twins, 3, 500):
        assert len({row % 4 for row in rows}) == 3


def test_a_k_dpp_is_filled_up_by_score_where_the_features_span_too_little():
    pool = candidates(9, 2, known=[0], dtype=jnp.float64)
    score = np.asarray(pool.score)
    for rows in drawn(parts.k_dpp, pool, 5, 50):
        rest = sorted((row for row in range(9) if row not in rows[:2]), key=lambda row: -score[row])
        assert list(rows[2:]) == rest[:3]


def test_probes_of_a_k_dpp_come_first_and_count_as_known():
    pool = candidates(7, 4, known=[1, 0], seed=5, dtype=jnp.float64)
    probed = pool._replace(score=pool.score.at[2].set(jnp.inf))
    hand = plain(probed)
    seen = hand._replace(known=np.concatenate([hand.known, hand.feature[[2]]]))
    left = [row for row in hand.left if row != 2]
    expected = batches(joint(seen), left, 2)
    rows = drawn(partial(parts.k_dpp, weight=0.0, noise=NOISE), probed, 3, 10_000)
    assert all(batch[0] == 2 for batch in rows)
    agrees(Counter(tuple(sorted(batch[1:])) for batch in rows), expected, 10_000)


def test_single_precision_makes_the_same_choices():
    """Of 200 candidates with 100 known: what rounding does over many rank-one changes decides next to nothing."""
    selections = parts.max_det, parts.expected_error_reduction, parts.bait
    double = candidates(200, 30, known=[1] * 100, dtype=jnp.float64)
    with jax.enable_x64(False):
        single = candidates(200, 30, known=[1] * 100)
        rows = [chosen(part, single, 20) for part in selections]
    hand = plain(double)
    for part, batch in zip(selections, rows, strict=True):
        exact = chosen(part, double, 20)
        assert abs(error(hand, batch) / error(hand, exact) - 1) < 1e-3
        assert len(set(batch) & set(exact)) >= 18
