"""Candidates for the tests of selections, and what selections make of them in numpy."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxal.core.types import Candidates

KNOWN = [1, 1, 0, 1, 0]


def candidates(count=12, features=3, eligible=None, seed=1, known=KNOWN, dtype=jnp.float32) -> Candidates:
    """Random candidates; rows without a structure hold numbers that would change every result."""
    rng = np.random.default_rng(seed)
    mask = np.ones(count, bool) if eligible is None else np.asarray(eligible, bool)
    labeled = np.asarray(known, bool)
    feature = np.where(mask[:, None], rng.normal(2.0, 3.0, size=(count, features)), 1e3)
    old = np.where(labeled[:, None], rng.normal(2.0, 3.0, size=(len(known), features)), -1e3)
    score = rng.uniform(0.1, 1.0, size=count)
    score, feature, old = (jnp.asarray(x, dtype) for x in (score, feature, old))
    return Candidates(score, feature, jnp.asarray(mask), old, jnp.asarray(labeled))


class Plain(NamedTuple):
    """Candidates in numpy and in the unit of the selections."""

    feature: np.ndarray
    known: np.ndarray  # of labeled rows only
    score: np.ndarray
    left: list[int]  # eligible rows


def plain(pool: Candidates) -> Plain:
    """Counted from the mean of all structures, in units of their root mean square distance from it."""
    feature, known = np.asarray(pool.feature, float), np.asarray(pool.known, float)[np.asarray(pool.labeled)]
    left = np.flatnonzero(pool.eligible)
    everything = np.concatenate([feature[left], known])
    mean = everything.mean(axis=0)
    unit = np.sqrt(np.mean(np.sum((everything - mean) ** 2, axis=1)))
    score = np.asarray(pool.score, float)
    return Plain((feature - mean) / unit, (known - mean) / unit, score, [int(row) for row in left])


def greedy(left: list[int], size: int, value) -> list[int]:
    """Always the row of largest value(row, chosen)."""
    chosen: list[int] = []
    while len(chosen) < min(size, len(left)):
        chosen.append(max((row for row in left if row not in chosen), key=lambda row: value(row, chosen)))
    return chosen


@functools.cache
def compiled(part, **options):
    return jax.jit(functools.partial(part, **options), static_argnums=2)


def chosen(part, pool: Candidates, size: int, key: int = 0, **options) -> list[int]:
    """The rows of one batch."""
    return np.asarray(compiled(part, **options)(jax.random.key(key), pool, size)).tolist()


def drawn(part, pool: Candidates, size: int, draws: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Many independent batches of a selection."""
    keys = jax.random.split(jax.random.key(seed), draws)
    rows = jax.jit(jax.vmap(lambda key: part(key, pool, size)))(keys)
    return [tuple(row) for row in np.asarray(rows).tolist()]


def agrees(counts: dict, expected: dict, draws: int) -> None:
    """Frequencies within four standard deviations of the probabilities, and nothing else drawn."""
    assert abs(sum(expected.values()) - 1) < 1e-9
    assert set(counts) <= {what for what, chance in expected.items() if chance > 0}
    for what, chance in expected.items():
        deviation = np.sqrt(draws * chance * (1 - chance))
        assert abs(counts.get(what, 0) - draws * chance) <= 4 * deviation + 1, (what, counts.get(what, 0), chance)
