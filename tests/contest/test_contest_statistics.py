"""The contest's statistics: against scipy, published tables, brute force, and by simulation."""

import itertools

import numpy as np
import pytest
from scipy import stats

from jaxal.contest import statistics as ours


def test_the_area_is_the_mean_of_the_logarithm():
    labels = np.array([[50.0, 100, 200, 400]])
    assert ours.area(labels, np.full((1, 4), 0.3)) == pytest.approx(np.log(0.3))
    power = 3.0 * labels**-0.7  # straight in logarithms: its mean is that of its ends
    assert ours.area(labels, power) == pytest.approx(np.mean(np.log(power[0, [0, -1]])))
    fine = np.geomspace(50, 400, 2001)
    error = np.interp(np.log(fine), np.log(labels[0]), np.log([0.5, 0.2, 0.15, 0.1]))
    assert ours.area(labels, np.array([[0.5, 0.2, 0.15, 0.1]])) == pytest.approx(error.mean(), abs=1e-3)


def test_students_interval_is_scipys():
    values = np.random.default_rng(0).normal(2, 1, 7)
    interval = ours.mean_interval(values)
    oracle = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert interval == pytest.approx((values.mean(), oracle.low, oracle.high))
    assert ours.geometric_interval(np.exp(values)) == pytest.approx(np.exp(interval))
    assert np.isnan(ours.mean_interval(np.ones(1))[1:]).all()


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.6])
def test_labels_saved_of_curves_with_a_known_answer(factor):
    """A strategy that needs `factor` times the labels for every error saves 1 - factor."""
    labels = np.tile(np.geomspace(50, 400, 7), (5, 1))
    other = 4.0 * labels**-0.5
    error = 4.0 * (labels / factor) ** -0.5
    interval = ours.saved(labels, error, labels, other)
    assert interval == pytest.approx([1 - factor] * 3, abs=1e-9)


def test_needed_labels():
    labels, error = np.array([10.0, 20, 40]), np.array([4.0, 2, 3])
    assert ours.needed(labels, error, 4.5) == 10 and ours.needed(labels, error, 2.0) == pytest.approx(20)
    assert ours.needed(labels, error, np.sqrt(8.0)) == pytest.approx(10 * np.sqrt(2))  # halfway in both logarithms
    assert ours.needed(labels, error, 1.9) == np.inf
    # who stops early is compared where both have been
    few = ours.saved_fraction(np.array([10.0, 20]), np.array([4.0, 2]), labels, np.array([4.0, 3, 1]))
    assert few == pytest.approx(1 - 20 / ours.needed(labels, np.array([4.0, 3, 1]), 2.0))


def test_all_resamples_of_few_seeds_are_taken_once():
    rows = ours.resamples(3)
    assert sorted(map(tuple, rows)) == sorted(itertools.product(range(3), repeat=3))
    assert ours.resamples(12).shape == (ours.DRAWS, 12)


def test_a_pair_of_seeds_is_resampled_together():
    """Seeds that differ by far but always in the same ratio leave no doubt about what is saved."""
    rng = np.random.default_rng(1)
    labels = np.tile(np.geomspace(50, 400, 6), (5, 1))
    other = np.exp(rng.normal(0, 1, (5, 1))) * labels**-0.5
    interval = ours.saved(labels, other * 0.8**0.5, labels, other)
    assert interval == pytest.approx([0.2] * 3, abs=1e-9)


@pytest.mark.parametrize("seeds, low, high", [(5, 0.91, 0.98), (10, 0.92, 0.975)])
def test_the_bootstrap_covers_what_it_says(seeds, low, high):
    """Coverage of the mean of normal numbers in 1000 experiments; plain percentiles of five would cover 83 %."""
    rng = np.random.default_rng(2)
    rows = ours.resamples(seeds, 4000)
    hits, plain = 0, 0
    for _ in range(1000):
        values = rng.normal(0, 1, seeds)
        means = values[rows].mean(1)
        interval = ours.bootstrap(means, values.mean(), seeds)
        hits += interval.low <= 0 <= interval.high
        plain += np.quantile(means, 0.025) <= 0 <= np.quantile(means, 0.975)
    assert low < hits / 1000 < high
    assert hits > plain + 15


@pytest.mark.parametrize(
    "strategies, q", [(2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (6, 2.850), (7, 2.949), (8, 3.031), (10, 3.164)]
)
def test_nemenyis_critical_values_are_those_of_demsars_table(strategies, q):
    """Table 5a of Demsar, JMLR 7, 1 (2006), alpha = 0.05."""
    blocks = 14
    difference = ours.critical_difference(strategies, blocks)
    assert difference / np.sqrt(strategies * (strategies + 1) / (6 * blocks)) == pytest.approx(q, abs=1.1e-3)


def test_ranks_and_friedmans_test_are_scipys():
    rng = np.random.default_rng(3)
    score = rng.normal(size=(8, 4)) + np.array([0, 0.5, 1, 2])
    score[0, 1] = score[0, 2]
    ranking = ours.ranking(score)
    assert ranking.p == stats.friedmanchisquare(*score.T).pvalue and ranking.blocks == 8
    brute = [
        [1 + sum(o < x for o in row) + 0.5 * (sum(o == x for o in row) - 1) for x in row] for row in score.tolist()
    ]
    assert ranking.rank == pytest.approx(np.mean(brute, axis=0))


def test_alike_strategies_are_told_apart_in_one_of_twenty_contests():
    """The chance that the best and the worst of k alike differ by more than the critical difference is 5 %."""
    rng = np.random.default_rng(4)
    wrong = 0
    for _ in range(2000):
        ranking = ours.ranking(rng.normal(size=(40, 5)))
        wrong += np.ptp(ranking.rank) > ranking.critical
    assert 0.03 < wrong / 2000 < 0.07


def test_cliques_are_the_longest_runs_within_the_difference():
    ranks = np.array([3.0, 1.0, 1.4, 5.0, 2.1, 5.2])
    cliques = ours.cliques(ranks, 1.2)
    order = np.sort(ranks)
    runs = [(i, j) for i, j in itertools.combinations(range(6), 2) if order[j] - order[i] <= 1.2]
    longest = [r for r in runs if not any(o != r and o[0] <= r[0] and r[1] <= o[1] for o in runs)]
    assert sorted(cliques) == sorted(longest)
