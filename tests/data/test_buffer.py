"""The training set: what was added stays, weights have the stated moments, nothing is added half."""

import jax
import numpy as np
import pytest
from structures import plain

from jaxal.core.types import Label, Structure
from jaxal.data import buffer as buffers

ATOMS, MEMBERS = 4, 3
add = jax.jit(buffers.add, static_argnums=6)
trainable = jax.jit(buffers.trainable)


def batch(count: int, seed: int = 0, dtype=np.float32) -> tuple[Structure, Label]:
    rng = np.random.default_rng(seed)

    def real(*shape):
        return rng.normal(size=(count, *shape)).astype(dtype)

    structures = plain(
        position=real(ATOMS, 3),
        species=rng.integers(0, 3, (count, ATOMS)).astype(np.int32),
        cell=real(3, 3),
        charge=rng.integers(-1, 2, count).astype(np.int32),
        spin=rng.integers(0, 3, count).astype(np.int32),
    )
    return structures, Label(real(), real(ATOMS, 3), real(3, 3), np.ones(count, bool))


def empty(capacity: int) -> buffers.Buffer:
    return buffers.init(jax.tree.map(lambda x: x[0], batch(1)[0]), MEMBERS, capacity)


def put(buffer, structures, labels, wanted=None, held=None, key=0, bootstrap=1.0):
    count = labels.ok.shape[0]
    wanted = np.ones(count, bool) if wanted is None else np.array(wanted)
    held = np.zeros(count, bool) if held is None else np.array(held)
    return jax.device_get(add(buffer, jax.random.key(key), structures, labels, wanted, held, bootstrap))


def assert_same(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_new_buffer_is_empty():
    buffer = empty(5)
    assert buffers.capacity(buffer) == 5 and int(buffer.count) == 0
    assert np.all(buffer.structure.species == -1) and not np.any(trainable(buffer))


def test_wanted_rows_are_appended_in_order_and_stay():
    first, second = batch(4, 1), batch(3, 2)
    wanted = [True, False, True, True]
    buffer, full = put(empty(8), *first, wanted, held=[False, True, True, False])
    assert not full and int(buffer.count) == 3
    assert_same(buffers.rows(buffer, np.arange(3)), jax.tree.map(lambda x: x[[0, 2, 3]], first))
    np.testing.assert_array_equal(buffer.held_out[:3], [False, True, False])

    before = jax.tree.map(lambda x: x[:3], (buffer.structure, buffer.label, buffer.held_out, buffer.weight.T))
    buffer, full = put(buffer, *second, key=9)
    assert not full and int(buffer.count) == 6
    after = jax.tree.map(lambda x: x[:3], (buffer.structure, buffer.label, buffer.held_out, buffer.weight.T))
    assert_same(after, before)
    assert_same(buffers.rows(buffer, np.arange(3, 6)), second)
    np.testing.assert_array_equal(trainable(buffer), [True, False, True, True, True, True, False, False])
    assert np.all(buffer.structure.species[6:] == -1) and not np.any(buffer.weight[:, 6:])


def test_nothing_wanted_changes_nothing():
    buffer, _ = put(empty(4), *batch(2))
    same, full = put(buffer, *batch(3, 5), wanted=[False] * 3)
    assert not full
    assert_same(same, buffer)


def test_an_overflow_leaves_the_buffer_as_it_was():
    buffer, _ = put(empty(4), *batch(3, 1))
    same, full = put(buffer, *batch(2, 2))
    assert full
    assert_same(same, buffer)
    # exactly full is not an overflow
    filled, full = put(buffer, *batch(2, 2), wanted=[False, True])
    assert not full and int(filled.count) == 4


def test_a_grown_buffer_takes_what_an_ample_one_takes():
    first, second = batch(3, 1), batch(3, 2)
    small, _ = put(empty(4), *first, held=[True, False, False], key=1)
    grown = buffers.grow(small, 8)
    assert buffers.capacity(grown) == 8
    ample, _ = put(empty(8), *first, held=[True, False, False], key=1)
    assert_same(grown, ample)
    assert_same(put(grown, *second, key=2), put(ample, *second, key=2))
    with pytest.raises(ValueError, match="below the present capacity"):
        buffers.grow(grown, 7)


def test_what_does_not_fit_is_refused():
    structures, labels = batch(2)
    for wrong in (
        (structures._replace(position=structures.position[:, :3]), labels),
        (structures, labels._replace(force=labels.force[:, :, :2])),
        (structures, labels._replace(energy=labels.energy.astype(np.float16))),
    ):
        with pytest.raises(ValueError, match=r"buffer\.add"):
            put(empty(4), *wrong)


@pytest.mark.parametrize("variance", [1.0, 0.25, 0.0])
def test_bootstrap_weights_have_mean_one_and_the_stated_variance(variance):
    number = 4000
    buffer, _ = put(empty(number), *batch(number), key=3, bootstrap=variance)
    weight = np.asarray(buffer.weight, float)
    assert np.all(weight > 0)
    error = 4 / np.sqrt(weight.size)  # standard errors, for variances of order one
    assert abs(weight.mean() - 1) <= error * np.sqrt(variance)
    assert abs(weight.var() - variance) <= 3 * error * variance
    if variance:
        assert np.max(abs(np.corrcoef(weight) - np.eye(MEMBERS))) < 0.07  # members see different data
    again, _ = put(empty(number), *batch(number), key=3, bootstrap=variance)
    np.testing.assert_array_equal(again.weight, buffer.weight)


def test_samples_follow_the_weights_and_are_never_held_out():
    buffer, _ = put(empty(8), *batch(6), held=[False, True, False, False, True, False])
    weight = np.array([1.0, 50.0, 2.0, 0.0, 50.0, 3.0, 99.0, 99.0], np.float32)
    draws = 12_000
    sample = jax.jit(buffers.sample, static_argnums=3)
    rows, member = sample(jax.random.key(1), buffer, weight[None], draws)
    counts = np.bincount(rows, minlength=8)
    expected = draws * np.array([1, 0, 2, 0, 0, 3, 0, 0]) / 6
    assert np.all(counts[expected == 0] == 0)
    assert np.all(abs(counts - expected) <= 4 * np.sqrt(expected))
    assert not np.any(member)

    # members that draw together: pairs in proportion to the weights of all
    several = np.stack([weight, 0 * weight, weight[::-1] / 10])
    pairs = sample(jax.random.key(2), buffer, several, draws)
    histogram = np.histogram2d(pairs[1], pairs[0], bins=[np.arange(4) - 0.5, np.arange(9) - 0.5])[0]
    odds = np.where(np.asarray(trainable(buffer)), several, 0.0)
    expected = draws * odds / odds.sum()
    assert np.all(histogram[expected == 0] == 0)
    assert np.all(abs(histogram - expected) <= 4 * np.sqrt(expected))


def test_double_precision_is_kept():
    with jax.enable_x64(True):
        structures, labels = batch(2, dtype=np.float64)
        buffer = buffers.init(jax.tree.map(lambda x: x[0], structures), MEMBERS, 3)
        buffer, _ = put(buffer, structures, labels)
        for leaf in (buffer.structure.position, buffer.label.force, buffer.label.energy, buffer.weight):
            assert leaf.dtype == np.float64
        assert buffer.count.dtype == np.int32
