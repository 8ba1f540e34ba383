"""What every registered part promises; a new part is tested by being registered.

Here: descriptions and options of all parts, and scores, gates and selections. Explorers, potentials, oracles and
labelers are in test_contracts_models.py.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxal import registry
from jaxal.parts import import_parts
from jaxal.types import Candidates, Prediction, Structure

import_parts()

TESTED = {"score", "gate", "kernel", "select", "uncertainty", "explorer", "potential", "oracle", "labeler", "executor"}
TESTED |= {"bias", "schedule"}  # in test_contracts_seek.py
DTYPES = [jnp.float32, jnp.float64]


def every(kind: str):
    return pytest.mark.parametrize("name", registry.names(kind))


def test_every_kind_has_a_contract():
    assert {kind for kind in registry.KINDS if registry.names(kind)} == TESTED


@pytest.mark.parametrize("kind", sorted(TESTED))
def test_descriptions_and_options(kind):
    for name in registry.names(kind):
        assert registry.description(kind, name).strip(), f"{name}: the first line of the docstring is what a user sees"
        text = inspect.getdoc(registry.get(kind, name)) or ""
        for option in registry.options(kind, name):
            assert option.annotation is not inspect.Parameter.empty, f"{name}.{option.name} has no type"
            documented = option.name in text
            assert option.default is not inspect.Parameter.empty or documented, f"{name}.{option.name}: say what it is"


# ---------------------------------------------------------------- scores


def prediction_of(dtype, atoms=6, padded=0, members=4) -> tuple[Prediction, Structure]:
    """Random predictions for `atoms` atoms; the padding holds garbage."""
    rng = np.random.default_rng(1)
    total = atoms + padded

    def filled(*shape):
        values = rng.normal(size=(*shape[:-2], atoms, shape[-1]))
        garbage = 1e3 * np.arange(1.0, padded * shape[-1] * int(np.prod(shape[:-2], initial=1)) + 1)
        return jnp.asarray(np.concatenate([values, garbage.reshape(*shape[:-2], padded, shape[-1])], -2), dtype)

    prediction = Prediction(
        energy=jnp.asarray([1.0, 1.5, -0.5, 0.25][:members], dtype),
        force=filled(members, total, 3),
        stress=jnp.asarray(np.linspace(-1, 1, 9 * members).reshape(members, 3, 3), dtype),
        feature=filled(total, 4),
    )
    species = jnp.asarray([0, 1, 1, 0, 1, 0][:atoms] + [-1] * padded, jnp.int32)
    structure = Structure(filled(total, 3), species, jnp.zeros((3, 3), dtype), jnp.int32(0), jnp.int32(0))
    return prediction, structure


def unanimous(prediction: Prediction) -> Prediction:
    """All members say what the first does: nothing is uncertain."""
    energy, force, stress = (jnp.broadcast_to(x[:1], x.shape) for x in prediction[:3])
    return prediction._replace(energy=energy, force=force, stress=stress)


@every("score")
def test_score_ignores_padding_and_atom_order(name):
    score = registry.get("score", name)
    prediction, structure = prediction_of(jnp.float32)
    value = float(score(prediction, structure))
    assert np.isfinite(value) and value > 0
    assert float(score(*prediction_of(jnp.float32, padded=3))) == pytest.approx(value, rel=1e-6)

    order = jnp.asarray([3, 0, 5, 1, 4, 2])
    swapped = prediction._replace(force=prediction.force[:, order], feature=prediction.feature[order])
    turned = structure._replace(position=structure.position[order], species=structure.species[order])
    assert float(score(swapped, turned)) == pytest.approx(value, rel=1e-6)


@every("score")
@pytest.mark.parametrize("dtype", DTYPES)
def test_score_keeps_the_dtype(name, dtype):
    with jax.enable_x64(True):
        value = registry.get("score", name)(*prediction_of(dtype))
        assert value.dtype == dtype and value.shape == ()


@every("score")
@pytest.mark.parametrize("agree", [False, True])
def test_score_has_a_finite_gradient(name, agree):
    score = registry.get("score", name)
    prediction, structure = prediction_of(jnp.float32, padded=2)
    prediction = unanimous(prediction) if agree else prediction
    value, slope = jax.value_and_grad(score)(prediction, structure)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(slope))
    assert (float(value) == 0) == agree


@every("score")
def test_score_grows_with_the_spread_and_goes_through_jit_and_vmap(name):
    score = registry.get("score", name)
    prediction, structure = prediction_of(jnp.float32, padded=2)
    same = unanimous(prediction)
    scales = jnp.asarray([0.0, 0.5, 1.0, 2.0])

    def blend(a, b):
        return (1 - scales.reshape(-1, *(1,) * a.ndim)) * a + scales.reshape(-1, *(1,) * a.ndim) * b

    batch = jax.tree.map(blend, same, prediction)
    values = jax.jit(jax.vmap(score, in_axes=(0, None)))(batch, structure)
    assert values.shape == (4,) and bool(jnp.all(jnp.diff(values) > 0))
    alone = [float(score(jax.tree.map(lambda x, i=i: x[i], batch), structure)) for i in range(4)]
    np.testing.assert_allclose(values, alone, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- gates


def gate_of(name):
    return registry.get("gate", name)()


def types_of(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@every("gate")
@pytest.mark.parametrize("dtype", DTYPES)
def test_gate_states_keep_their_types(name, dtype):
    """A gate's state is carried through a scan: nothing may change its shape or dtype."""
    with jax.enable_x64(True):
        gate = gate_of(name)
        state = gate.init()
        scores = jnp.linspace(0.1, 1.0, 5).astype(dtype)
        after, flagged = jax.jit(gate.step)(state, scores)
        assert flagged.shape == (5,) and flagged.dtype == bool
        learned = jax.jit(gate.calibrate)(after, scores, 2 * scores, jnp.arange(5) < 4)
        assert types_of(state) == types_of(after) == types_of(learned)


def gate_states(gate):
    """As it begins, calibrated on nothing, and calibrated on twenty held-out structures."""
    rng = np.random.default_rng(2)
    score, ratio = rng.uniform(0.05, 0.5, 20), rng.uniform(0.5, 2.0, 20)
    arrays = jnp.asarray(score, jnp.float32), jnp.asarray(score * ratio, jnp.float32)
    state = gate.init()
    return [state, *(gate.calibrate(state, *arrays, jnp.full(20, valid)) for valid in (False, True))]


@every("gate")
def test_a_larger_score_is_flagged_if_a_smaller_one_is(name):
    gate = gate_of(name)
    states = gate_states(gate)
    for state in states:
        _, flagged = gate.step(state, jnp.linspace(0.0, 20.0, 201))
        assert np.all(np.diff(np.asarray(flagged, int)) >= 0)
        assert flagged[-1], "a score above anything seen must be flagged"
    assert not gate.step(states[-1], jnp.zeros(1))[1].any(), "a calibrated gate lets certainty pass"


@every("gate")
def test_a_score_that_is_not_a_number_is_flagged(name):
    gate = gate_of(name)
    for state in gate_states(gate):
        assert gate.step(state, jnp.asarray([jnp.nan, jnp.inf]))[1].all()


@every("gate")
def test_calibration_reads_valid_rows_only(name):
    gate = gate_of(name)
    score, error = jnp.asarray([0.1, 0.3, 0.2, 0.4]), jnp.asarray([0.2, 0.3, 0.1, 0.5])
    valid = jnp.asarray([True, True, False, True])
    clean = gate.calibrate(gate.init(), score, error, valid)
    for garbage in (jnp.nan, jnp.inf, 1e6):
        dirty = gate.calibrate(gate.init(), score.at[2].set(garbage), error.at[2].set(garbage), valid)
        assert jax.tree.map(float, dirty) == jax.tree.map(float, clean)
    order = jnp.asarray([2, 0, 3, 1])
    assert gate.calibrate(gate.init(), score[order], error[order], valid[order]) == clean


@pytest.mark.parametrize(("count", "miss_rate"), [(19, 0.1), (19, 0.3), (50, 0.1), (64, 0.25)])
def test_conformal_coverage(count, miss_rate):
    """A fresh error exceeds factor * score with the probability that finite samples give, at most the miss rate."""
    repeats, capacity, target = 20_000, 64, 0.3
    gate = registry.get("gate", "conformal")(target_error=target, miss_rate=miss_rate)
    rng = np.random.default_rng(count)
    # heavy tails: errors are Student t with two degrees of freedom (no variance) times the score, a lognormal
    score = np.exp(rng.normal(-2, 1, (repeats, capacity + 1)))
    error = score * np.abs(rng.standard_t(2, score.shape))
    valid = np.argsort(rng.uniform(size=(repeats, capacity)), axis=1) < count
    score, error = jnp.asarray(score, jnp.float32), jnp.asarray(error, jnp.float32)

    @jax.vmap
    def trial(score, error, valid):
        state = gate.calibrate(gate.init(), score[:-1], error[:-1], valid)
        _, flagged = gate.step(state, score[-1:])
        return error[-1] <= state.factor * score[-1], ~flagged[0] & (error[-1] > target)

    covered, missed = (np.mean(np.asarray(x)) for x in jax.jit(trial)(score, error, jnp.asarray(valid)))
    expected = np.ceil((count + 1) * (1 - miss_rate) - 1e-9) / (count + 1)
    tolerance = 3 * np.sqrt(expected * (1 - expected) / repeats)
    assert expected >= 1 - miss_rate
    assert abs(covered - expected) < tolerance
    # what the user is told: an error above the target passes the gate at most that often
    assert missed <= miss_rate + tolerance


@pytest.mark.parametrize("miss_rate", [0.05, 0.1, 0.2, 0.25, 0.3])
def test_conformal_rank_is_exact(miss_rate):
    """Rounding must not move the rank: with errors 1, 2, 3, ... the factor is the rank itself."""
    gate = registry.get("gate", "conformal")(miss_rate=miss_rate)
    count = np.arange(1, 65)
    valid = jnp.arange(64) < count[:, None]
    ramp = jnp.arange(1.0, 65.0)
    factor = jax.vmap(lambda v: gate.calibrate(gate.init(), jnp.ones(64), ramp, v).factor)(valid)
    rank = -((-(count + 1) * round(100 - 100 * miss_rate)) // 100)  # in whole numbers
    np.testing.assert_array_equal(factor, np.minimum(rank, count))


def test_conformal_with_too_few_labels_takes_the_worst_of_them():
    gate = registry.get("gate", "conformal")(miss_rate=0.1)
    score, error = jnp.asarray([0.1, 0.2, 0.3, 9.0]), jnp.asarray([0.1, 0.8, 0.3, 90.0])
    state = gate.calibrate(gate.init(), score, error, jnp.asarray([True, True, True, False]))
    assert float(state.factor) == pytest.approx(4.0)
    empty = gate.calibrate(gate.init(), score, error, jnp.zeros(4, bool))
    assert gate.step(empty, jnp.asarray([0.0, 1e-9, 1.0]))[1].all()
    with pytest.raises(ValueError, match=r"gate\.miss_rate"):
        registry.get("gate", "conformal")(miss_rate=1.0)


# ---------------------------------------------------------------- selections


@functools.cache
def selection(name):
    return jax.jit(registry.get("select", name), static_argnums=2)


def candidates_of(eligible, seed=4) -> Candidates:
    rng = np.random.default_rng(seed)
    count = len(eligible)
    return Candidates(
        jnp.asarray(rng.uniform(size=count), jnp.float32),
        jnp.asarray(rng.normal(size=(count, 3)), jnp.float32),
        jnp.asarray(eligible, bool),
        jnp.asarray(rng.normal(size=(5, 3)), jnp.float32),
        jnp.asarray([1, 1, 0, 1, 0], bool),
    )


MASKS = {"some": [1, 0, 1, 1, 0, 0, 1, 0], "none": [0] * 8, "all": [1] * 8, "one": [0, 0, 0, 0, 0, 1, 0, 0]}


@every("select")
@pytest.mark.parametrize("size", [1, 3, 8, 11])
@pytest.mark.parametrize("mask", MASKS)
def test_selected_rows_are_eligible_and_distinct(name, size, mask):
    eligible = np.array(MASKS[mask], bool)
    rows = np.asarray(selection(name)(jax.random.key(0), candidates_of(eligible), size))
    assert rows.shape == (size,) and rows.dtype == np.int32
    chosen = rows[rows >= 0]
    assert len(chosen) == len(set(chosen)) == min(size, eligible.sum())
    assert eligible[chosen].all()
    assert np.all(rows[len(chosen) :] == -1), "what is chosen comes first, -1 after it"


@every("select")
@pytest.mark.parametrize("garbage", [1e6, np.inf, np.nan])
def test_what_is_not_eligible_does_not_matter(name, garbage):
    eligible = np.array(MASKS["some"], bool)
    clean = candidates_of(eligible)
    dirty = clean._replace(
        score=jnp.where(clean.eligible, clean.score, garbage),
        feature=jnp.where(clean.eligible[:, None], clean.feature, garbage),
        known=jnp.where(clean.labeled[:, None], clean.known, garbage),
    )
    key = jax.random.key(1)
    np.testing.assert_array_equal(selection(name)(key, dirty, 6), selection(name)(key, clean, 6))


@every("select")
def test_an_infinite_score_comes_first_and_vmap_passes(name):
    """A probe has an infinite score; selections that read scores must take it."""
    several = jax.tree.map(lambda *x: jnp.stack(x), *(candidates_of([1] * 8, seed) for seed in range(3)))
    keys = jax.random.split(jax.random.key(2), 3)
    batch = jax.vmap(registry.get("select", name), in_axes=(0, 0, None))(keys, several, 4)
    for row in range(3):
        alone = selection(name)(keys[row], jax.tree.map(lambda x, row=row: x[row], several), 4)
        np.testing.assert_array_equal(batch[row], alone)
    probe = candidates_of([1] * 8)
    rows = selection(name)(keys[0], probe._replace(score=probe.score.at[5].set(jnp.inf)), 4)
    assert len(set(np.asarray(rows).tolist())) == 4
    if name != "random":
        assert rows[0] == 5
