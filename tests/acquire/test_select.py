"""Selections by scores and by distances, against plain loops, exact probabilities and hand counts."""

import itertools
from collections import Counter
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from select_example import Plain, agrees, candidates, chosen, drawn, greedy, plain

from jaxal.acquire import select, select_distance

SEEDS = range(4)


def mask_of(seed: int, count: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).uniform(size=count) < 0.8


# ---------------------------------------------------------------- by scores and by chance


def test_top_k_is_the_sorted_list():
    mask = np.arange(12) % 3 != 0
    pool = candidates(eligible=mask)
    scores = np.asarray(pool.score)
    expected = sorted(np.flatnonzero(mask), key=lambda row: -scores[row])
    assert chosen(select.top_k, pool, 5) == expected[:5]
    tied = pool._replace(score=jnp.zeros(12))
    assert chosen(select.top_k, tied, 4) == np.flatnonzero(mask)[:4].tolist()
    broken = pool._replace(score=pool.score.at[int(expected[0])].set(jnp.nan))
    assert chosen(select.top_k, broken, 12) == [*expected[1:], expected[0], *[-1] * 4], "what is no number comes last"


def test_random_is_uniform_over_the_eligible():
    mask = np.array([1, 0, 1, 1, 0, 1, 1, 0], bool)
    pairs = Counter(drawn(select.random, candidates(count=8, eligible=mask), 2, 4000))
    rows = np.flatnonzero(mask).tolist()
    agrees(pairs, dict.fromkeys(itertools.permutations(rows, 2), 1 / 20), 4000)


def test_a_window_is_drawn_from_uniformly_and_only_probes_come_from_outside():
    score = jnp.asarray([0.05, 0.1, 0.2, 0.3, 0.31, jnp.nan, jnp.inf, 0.2])
    pool = candidates(count=8, eligible=[1, 1, 1, 1, 1, 1, 1, 0])._replace(score=score)
    part = partial(select.threshold_window, low=0.1, high=0.3)
    batches = drawn(part, pool, 3, 3000)
    agrees(Counter(batches), {(6, *pair): 1 / 6 for pair in itertools.permutations([1, 2, 3], 2)}, 3000)
    assert sorted(chosen(part, pool, 8)) == [-1] * 4 + [1, 2, 3, 6]
    assert sorted(chosen(select.threshold_window, pool, 8, low=0.2)) == [-1] * 4 + [2, 3, 4, 6]


def test_strata_are_the_quantiles_of_the_score():
    mask = np.array([1] * 9 + [0] * 3, bool)
    pool = candidates(eligible=mask)
    ranks = sorted(range(9), key=lambda row: -float(pool.score[row]))
    thirds = [ranks[:3], ranks[3:6], ranks[6:]]
    agrees(Counter(drawn(select.stratified, pool, 3, 5400)), dict.fromkeys(itertools.product(*thirds), 1 / 27), 5400)
    assert chosen(select.stratified, pool, 11) == [*ranks, -1, -1]
    # two probes come first, and the third label is from the rest
    probed = pool._replace(score=pool.score.at[jnp.asarray(ranks[7:])].set(jnp.inf))
    expected = {(*sorted(ranks[7:]), row): 1 / 7 for row in ranks[:7]}
    agrees(Counter(drawn(select.stratified, probed, 3, 3000)), expected, 3000)
    assert chosen(select.stratified, probed, 1) == sorted(ranks[7:])[:1]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("closest", [0.6, 0.9])
def test_distinct_leaves_out_near_duplicates(seed, closest):
    pool = candidates(count=20, eligible=mask_of(seed, 20), seed=seed)
    hand = plain(pool)
    expected: list[int] = []
    for row in sorted(hand.left, key=lambda row: -hand.score[row]):
        others = [*hand.known, *hand.feature[expected]]
        if min(np.linalg.norm(hand.feature[row] - other) for other in others) >= closest:
            expected.append(row)
    assert 2 < len(expected) < len(hand.left)
    rows = chosen(select.distinct, pool, 20, closest=closest)
    assert rows == expected + [-1] * (20 - len(expected))


# ---------------------------------------------------------------- by distances


def gap(hand: Plain, row: int, chosen: list[int]) -> float:
    """Distance to the nearest chosen or known structure."""
    others = [*hand.known, *hand.feature[chosen]]
    return min((np.linalg.norm(hand.feature[row] - other) for other in others), default=1e9)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("known", [[1, 1, 0, 1, 0], [0, 0]])
def test_farthest_is_the_greedy_choice(seed, known):
    pool = candidates(eligible=mask_of(seed), seed=seed, known=known)
    hand = plain(pool)
    expected = greedy(hand.left, 6, lambda row, rows: gap(hand, row, rows) if rows else hand.score[row])
    assert chosen(select_distance.farthest, pool, 6) == expected


def test_farthest_is_within_twice_the_best_radius():
    """Gonzalez's bound, against all choices: every candidate is within twice the best possible distance."""
    pool = candidates(count=10, known=[0])
    feature = np.asarray(pool.feature, float)
    distance = np.linalg.norm(feature[:, None] - feature, axis=-1)
    best = min(distance[list(rows)].min(axis=0).max() for rows in itertools.combinations(range(10), 3))
    rows = chosen(select_distance.farthest, pool, 3)
    assert distance[rows].min(axis=0).max() <= 2 * best


def test_farthest_leaves_out_what_is_there_twice():
    pool = candidates(count=6, known=[0])
    twins = pool._replace(feature=pool.feature.at[3:].set(pool.feature[:3]))
    rows = np.asarray(chosen(select_distance.farthest, twins, 6))
    assert np.sum(rows >= 0) == 3 and {int(row) % 3 for row in rows[rows >= 0]} == {0, 1, 2}
    same = pool._replace(feature=jnp.ones((6, 3)))
    assert chosen(select_distance.farthest, same, 3) == [int(jnp.argmax(pool.score)), -1, -1]
    # a known one is not chosen again, unless it is the most uncertain of all
    top = int(jnp.argmax(pool.score))
    learned = pool._replace(known=pool.feature, labeled=jnp.ones(6, bool).at[(top + 1) % 6].set(False))
    assert chosen(select_distance.farthest, learned, 6) == [top, (top + 1) % 6, -1, -1, -1, -1]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
def test_uncertainty_times_distance_is_the_greedy_choice(seed, weight):
    pool = candidates(eligible=mask_of(seed), seed=seed)
    hand = plain(pool)
    expected = greedy(hand.left, 6, lambda row, rows: hand.score[row] ** weight * gap(hand, row, rows))
    part = select_distance.uncertainty_diversity
    assert chosen(part, pool, 6, weight=weight) == expected
    # where scores are negative all count from the smallest
    lower = pool._replace(score=pool.score - jnp.max(pool.score))
    values = np.where(np.asarray(pool.eligible), np.asarray(lower.score, float), np.inf)
    worth = (values - values.min()) / (np.max(values[hand.left]) - values.min())
    expected = greedy(hand.left, 6, lambda row, rows: worth[row] ** weight * gap(hand, row, rows))
    assert chosen(part, lower, 6, weight=weight) == expected


def seeding(square, pairwise, left: list[int], size: int) -> dict[tuple[int, ...], float]:
    """Exact probabilities of all ordered batches of D^2 sampling."""
    chances = {}
    for rows in itertools.permutations(left, size):
        chance = 1.0
        for place, row in enumerate(rows):
            weight = {
                candidate: min([square[candidate], *pairwise[candidate, rows[:place]]])
                for candidate in left
                if candidate not in rows[:place]
            }
            chance *= weight[row] / sum(weight.values())
        chances[rows] = chance
    return chances


def squares(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sum((a[:, None] - b[None]) ** 2, axis=-1)


@pytest.mark.parametrize("known", [[1, 0, 1], [0]])
def test_kmeans_plusplus_draws_by_squared_distance(known):
    pool = candidates(count=6, eligible=[1, 1, 1, 0, 1, 1], known=known)
    hand = plain(pool)
    start = squares(hand.feature, hand.known).min(axis=1) if any(known) else np.full(6, 1e9)
    expected = seeding(start, squares(hand.feature, hand.feature), hand.left, 2)
    agrees(Counter(drawn(select_distance.kmeans_plusplus, pool, 2, 20_000)), expected, 20_000)


def test_badge_draws_long_gradients_that_differ():
    pool = candidates(count=6, eligible=[1, 1, 1, 0, 1, 1])
    hand = plain(pool)
    embedding = hand.score[:, None] * np.concatenate([hand.feature, np.ones((6, 1))], axis=1)
    expected = seeding(np.sum(embedding**2, axis=1), squares(embedding, embedding), hand.left, 2)
    agrees(Counter(drawn(select_distance.badge, pool, 2, 20_000)), expected, 20_000)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("known", [[1, 0, 1], [0]])
def test_medoids_move_to_the_middle_of_their_clusters(seed, known):
    pool = candidates(count=30, eligible=mask_of(seed, 30), seed=seed, known=known)
    hand = plain(pool)
    rows = chosen(select_distance.k_medoids, pool, 4, seed, iterations=0)
    assert rows == chosen(select_distance.kmeans_plusplus, pool, 4, seed)

    def cost(rows):
        return sum(gap(hand, row, rows) ** 2 for row in hand.left)

    before = cost(rows)
    for _ in range(2):
        clusters = [[] for _ in rows]
        for row in hand.left:
            near = [np.linalg.norm(hand.feature[row] - hand.feature[center]) for center in rows]
            if min(near) < gap(hand, row, []):
                clusters[int(np.argmin(near))].append(row)
        # the member of least summed squared distance to all members, by trying all
        total = [squares(hand.feature[c], hand.feature[c]).sum(axis=1) for c in clusters]
        least = [c[int(np.argmin(t))] for c, t in zip(clusters, total, strict=True)]
        stays = [t[c.index(center)] < 1.0001 * min(t) for c, t, center in zip(clusters, total, rows, strict=True)]
        rows = [center if stay else other for center, other, stay in zip(rows, least, stays, strict=True)]
    assert chosen(select_distance.k_medoids, pool, 4, seed, iterations=2) == rows
    assert cost(rows) <= before


def test_medoids_of_coinciding_candidates_stay_apart():
    pool = candidates(count=6, known=[0])
    same = pool._replace(feature=jnp.ones((6, 3)))
    assert len(set(chosen(select_distance.k_medoids, same, 4))) == 4
    twins = pool._replace(feature=pool.feature.at[3:].set(pool.feature[:3]))
    for seed in range(10):
        assert len(set(chosen(select_distance.k_medoids, twins, 5, seed))) == 5


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("known", [[1, 1, 0, 1, 0], [0, 0]])
def test_lcmd_takes_the_farthest_of_the_largest_cluster(seed, known):
    pool = candidates(count=25, eligible=mask_of(seed, 25), seed=seed, known=known)
    hand = plain(pool)
    rows: list[int] = [] if any(known) else [max(hand.left, key=lambda row: hand.score[row])]
    while len(rows) < 7:
        centers = np.concatenate([hand.known, hand.feature[rows]])
        square = squares(hand.feature, centers)
        member = {row: int(np.argmin(square[row])) for row in hand.left}
        sizes = [
            sum(square[row, cluster] for row in hand.left if member[row] == cluster) for cluster in range(len(centers))
        ]
        inside = [row for row in hand.left if member[row] == int(np.argmax(sizes))]
        rows.append(max(inside, key=lambda row: square[row, member[row]]))
    assert chosen(select_distance.lcmd, pool, 7) == rows
