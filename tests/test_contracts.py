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
from structures import plain

from jaxal.acquire.fits import measure_of
from jaxal.core import registry
from jaxal.core.discovery import import_parts
from jaxal.core.types import Candidates, Prediction, Structure

import_parts()

TESTED = {"score", "gate", "kernel", "select", "uncertainty", "explorer", "potential", "oracle", "labeler", "executor"}
TESTED |= {"bias", "schedule"}  # in test_contracts_seek.py
TESTED |= {"variable"}  # in test_contracts_variables.py
TESTED |= {"sampler"}  # in test_contracts_samplers.py
TESTED |= {"task"}  # in simulate/test_task.py
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


@functools.cache
def score_of(name):
    return jax.jit(registry.get("score", name))


@functools.cache
def slope_of(name):
    return jax.jit(jax.value_and_grad(registry.get("score", name)))


def finite(tree) -> bool:
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


def prediction_of(dtype, atoms=6, padded=0, members=4) -> tuple[Prediction, Structure]:
    """Random predictions for `atoms` atoms; the padding holds garbage."""
    rng = np.random.default_rng(1)
    total = atoms + padded

    def filled(*shape):
        values = rng.normal(size=(*shape[:-2], atoms, shape[-1]))
        garbage = 1e3 * np.arange(1.0, padded * shape[-1] * int(np.prod(shape[:-2], initial=1)) + 1)
        return np.concatenate([values, garbage.reshape(*shape[:-2], padded, shape[-1])], -2).astype(dtype)

    prediction = Prediction(
        energy=np.asarray([1.0, 1.5, -0.5, 0.25][:members], dtype),
        force=filled(members, total, 3),
        stress=np.linspace(-1, 1, 9 * members).reshape(members, 3, 3).astype(dtype),
        feature=filled(total, 4),
    )
    species = np.asarray([0, 1, 1, 0, 1, 0][:atoms] + [-1] * padded, np.int32)
    structure = plain(filled(total, 3), species, np.zeros((3, 3), dtype), np.int32(0), np.int32(0))
    return prediction, structure


def unanimous(prediction: Prediction) -> Prediction:
    """All members say what the first does: nothing is uncertain."""
    energy, force, stress = (np.broadcast_to(x[:1], x.shape) for x in prediction[:3])
    return prediction._replace(energy=energy, force=force, stress=stress)


# Scores that look for an extreme of a property: their value depends on the mean as well. The first is negative where
# the mean is bad, the others are not zero where a structure is better than the best known beyond doubt.
BOUND, IMPROVEMENT = "confidence_bound", ("expected_improvement", "probability_of_improvement")


@every("score")
def test_score_ignores_padding_and_atom_order(name):
    score = score_of(name)
    prediction, structure = prediction_of(jnp.float32)
    value = float(score(prediction, structure))
    assert np.isfinite(value) and (value > 0 or name == BOUND)
    assert float(score(*prediction_of(jnp.float32, padded=3))) == pytest.approx(value, rel=1e-6)
    if name not in (BOUND, *IMPROVEMENT):  # what is not there must not matter even where it is no number
        masked = np.array([True] * 6 + [False] * 3)[:, None]
        wide, room = prediction_of(jnp.float32, padded=3)
        broken = wide._replace(
            force=np.where(masked, wide.force, np.nan), feature=np.where(masked, wide.feature, np.nan)
        )
        assert float(score(broken, room)) == pytest.approx(value, rel=1e-6)

    order = np.array([3, 0, 5, 1, 4, 2])
    swapped = prediction._replace(force=prediction.force[:, order], feature=prediction.feature[order])
    turned = structure._replace(position=structure.position[order], species=structure.species[order])
    assert float(score(swapped, turned)) == pytest.approx(value, rel=1e-6)


@every("score")
@pytest.mark.parametrize("dtype", DTYPES)
def test_score_keeps_the_dtype(name, dtype):
    with jax.enable_x64(True):
        value = jax.eval_shape(registry.get("score", name), *prediction_of(dtype))
        assert value.dtype == dtype and value.shape == ()


@every("score")
@pytest.mark.parametrize("agree", [False, True])
def test_score_has_a_finite_gradient(name, agree):
    prediction, structure = prediction_of(jnp.float32, padded=2)
    prediction = unanimous(prediction) if agree else prediction
    value, slope = slope_of(name)(prediction, structure)
    assert finite(slope)
    if measure_of(name).spread:
        assert (float(value) == 0) == agree


@every("score")
@pytest.mark.parametrize("energy", [0.0, 1e-30, 0.4])
@pytest.mark.parametrize("force", [0.0, 1e-30, 0.2])
def test_score_reads_a_spread_in_closed_form(name, energy, force):
    """Unanimous pseudo-members with a spread beside them: the gradient is finite, and the spread is what counts."""
    prediction, structure = prediction_of(jnp.float32, padded=2)

    def seen(more):
        return unanimous(prediction)._replace(
            energy_spread=np.float32(energy + more), force_spread=np.full(8, force + more, np.float32)
        )

    assert finite(slope_of(name)(seen(0.0), structure))
    small, larger = (slope_of(name)(at_mean(seen(more), 0.1), structure)[0] for more in (0.0, 0.1))
    assert float(larger) > float(small)


def at_mean(prediction: Prediction, energy: float) -> Prediction:
    """The same spread about another energy, which is worse than a best known of zero."""
    return prediction._replace(energy=prediction.energy - np.mean(prediction.energy) + energy)


@every("score")
def test_score_grows_with_the_spread_and_goes_through_jit_and_vmap(name):
    """At a fixed mean; where that is better than the best known, the probability of improvement would fall."""
    prediction, structure = prediction_of(jnp.float32, padded=3)
    prediction = at_mean(prediction, 0.5)
    prediction = prediction._replace(force=0.05 * prediction.force)  # or all atoms would be new at any of the scales
    same = at_mean(unanimous(prediction), 0.5)
    scales = np.array([0.0, 0.5, 1.0, 2.0], np.float32)

    def blend(a, b):
        return (1 - scales.reshape(-1, *(1,) * a.ndim)) * a + scales.reshape(-1, *(1,) * a.ndim) * b

    batch = jax.tree.map(blend, same, prediction)
    values = jax.jit(jax.vmap(registry.get("score", name), in_axes=(0, None)))(batch, structure)
    assert values.shape == (4,) and np.all(np.diff(values) > 0)
    alone = [float(score_of(name)(jax.tree.map(lambda x, i=i: x[i], batch), structure)) for i in range(4)]
    np.testing.assert_allclose(values, alone, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- gates


@functools.cache
def gate_of(name, **options):
    """A gate whose functions are compiled."""
    gate = registry.get("gate", name)(**options)
    observe = gate.observe and jax.jit(gate.observe)
    return gate._replace(step=jax.jit(gate.step), calibrate=jax.jit(gate.calibrate), observe=observe)


def types_of(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


@every("gate")
@pytest.mark.parametrize("dtype", DTYPES)
def test_gate_states_keep_their_types(name, dtype):
    """A gate's state is carried through a scan: nothing may change its shape or dtype."""
    with jax.enable_x64(True):
        gate = gate_of(name)
        state = gate.init()
        scores, valid = np.linspace(0.1, 1.0, 5, dtype=dtype), np.arange(5) < 4
        after, flagged = gate.step(state, scores)
        assert flagged.shape == (5,) and flagged.dtype == bool
        learned = gate.calibrate(after, scores, 2 * scores, valid)
        assert types_of(state) == types_of(after) == types_of(learned)
        if gate.observe is not None:
            seen = gate.observe(learned, scores, 2 * scores, valid)
            assert types_of(seen) == types_of(state)
        else:
            assert not gate.estimates, "what is claimed is counted"


@pytest.mark.parametrize("name", [name for name in registry.names("gate") if registry.get("gate", name)().estimates])
def test_what_a_gate_observes_is_counted(name):
    gate = gate_of(name)
    new, empty, state = gate_states(gate)
    score, within = np.array([[0.1, 0.2, 0.3, 0.4, 0.2], [0.9, 1.0, 1.01, 7.0, np.nan]], np.float32)
    ok = np.array([True, True, True, True, False])
    after = gate.observe(state, score, within * np.asarray(state.factor) * score, ok)
    assert (int(after.covered), int(after.checked)) == (2, 4)
    # nothing has been claimed before the first calibration
    assert int(gate.observe(empty, score, score, ok).checked) == int(gate.observe(new, score, score, ok).checked) == 0


def gate_states(gate):
    """As it begins, calibrated on nothing, and calibrated on twenty held-out structures."""
    rng = np.random.default_rng(2)
    score, ratio = rng.uniform(0.05, 0.5, 20), rng.uniform(0.5, 2.0, 20)
    arrays = score.astype(np.float32), (score * ratio).astype(np.float32)
    state = gate.init()
    return [state, *(gate.calibrate(state, *arrays, np.full(20, valid)) for valid in (False, True))]


@every("gate")
def test_a_larger_score_is_flagged_if_a_smaller_one_is(name):
    gate = gate_of(name)
    states = gate_states(gate)
    for state in states:
        flagged = np.asarray(gate.step(state, np.linspace(0.0, 20.0, 201, dtype=np.float32))[1], int)
        assert np.all(np.diff(flagged) >= 0)
        assert flagged[-1], "a score above anything seen must be flagged"
    flagged = np.asarray(gate.step(states[-1], np.zeros(1, np.float32))[1])
    assert not flagged.any(), "a calibrated gate lets certainty pass"


@every("gate")
def test_a_score_that_is_not_a_number_is_flagged(name):
    gate = gate_of(name)
    for state in gate_states(gate):
        assert np.asarray(gate.step(state, np.array([np.nan, np.inf], np.float32))[1]).all()


@every("gate")
def test_calibration_reads_valid_rows_only(name):
    gate = gate_of(name)
    score, error = np.array([[0.1, 0.3, 0.2, 0.4], [0.2, 0.3, 0.1, 0.5]], np.float32)
    valid, order = np.array([True, True, False, True]), np.array([2, 0, 3, 1])

    def learned(*labels):
        return jax.tree.map(float, gate.calibrate(gate.init(), *labels))

    clean = learned(score, error, valid)
    for garbage in (np.nan, np.inf, 1e6):
        assert learned(*(np.where(valid, x, np.float32(garbage)) for x in (score, error)), valid) == clean
    assert learned(score[order], error[order], valid[order]) == clean


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
    score, error = score.astype(np.float32), error.astype(np.float32)

    @jax.vmap
    def trial(score, error, valid):
        state = gate.calibrate(gate.init(), score[:-1], error[:-1], valid)
        _, flagged = gate.step(state, score[-1:])
        return error[-1] <= state.factor * score[-1], ~flagged[0] & (error[-1] > target)

    covered, missed = (np.mean(np.asarray(x)) for x in jax.jit(trial)(score, error, valid))
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
    valid = np.arange(64) < count[:, None]
    ones, ramp = np.ones(64, np.float32), np.arange(1.0, 65.0, dtype=np.float32)
    factor = jax.jit(jax.vmap(lambda v: gate.calibrate(gate.init(), ones, ramp, v).factor))(valid)
    rank = -((-(count + 1) * round(100 - 100 * miss_rate)) // 100)  # in whole numbers
    np.testing.assert_array_equal(factor, np.minimum(rank, count))


def test_conformal_with_too_few_labels_takes_the_worst_of_them():
    gate = gate_of("conformal", miss_rate=0.1)
    score, error = np.array([[0.1, 0.2, 0.3, 9.0], [0.1, 0.8, 0.3, 90.0]], np.float32)
    state = gate.calibrate(gate.init(), score, error, np.array([True, True, True, False]))
    assert float(state.factor) == pytest.approx(4.0)
    empty = gate.calibrate(gate.init(), score, error, np.zeros(4, bool))
    assert np.asarray(gate.step(empty, np.array([0.0, 1e-9, 1.0], np.float32))[1]).all()
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
        rng.uniform(size=count).astype(np.float32),
        rng.normal(size=(count, 3)).astype(np.float32),
        np.asarray(eligible, bool),
        rng.normal(size=(5, 3)).astype(np.float32),
        np.array([1, 1, 0, 1, 0], bool),
    )


def replaced(values, index, value):
    values = values.copy()
    values[index] = value
    return values


@every("select")
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_a_known_structure_whose_features_are_no_numbers_is_as_if_it_was_not_there(name, bad):
    candidates = candidates_of([1, 0, 1, 1, 0, 1, 1, 1])
    without = candidates._replace(labeled=candidates.labeled & (np.arange(5) != 1))
    broken = candidates._replace(known=replaced(candidates.known, (1, 2), bad))
    for size in (1, 3):
        rows, expected = (np.asarray(selection(name)(jax.random.key(3), x, size)) for x in (broken, without))
        np.testing.assert_array_equal(rows, expected)


MASKS = {"some": [1, 0, 1, 1, 0, 0, 1, 0], "none": [0] * 8, "all": [1] * 8, "one": [0, 0, 0, 0, 0, 1, 0, 0]}


@every("select")
@pytest.mark.parametrize("size", [1, 3, 11])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("labeled", [[1, 1, 0, 1, 0], [0] * 5])
def test_selected_rows_are_eligible_and_distinct(name, size, mask, labeled):
    """As many as there are. Those that leave some out on purpose find none to leave out here."""
    eligible = np.array(MASKS[mask], bool)
    candidates = candidates_of(eligible)._replace(labeled=np.array(labeled, bool))
    rows = np.asarray(selection(name)(jax.random.key(0), candidates, size))
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
        score=np.where(clean.eligible, clean.score, garbage),
        feature=np.where(clean.eligible[:, None], clean.feature, garbage),
        known=np.where(clean.labeled[:, None], clean.known, garbage),
    )
    key = jax.random.key(1)
    np.testing.assert_array_equal(selection(name)(key, dirty, 11), selection(name)(key, clean, 11))


@every("select")
def test_known_structures_are_a_set_and_features_have_no_unit(name):
    candidates = candidates_of(MASKS["all"])
    key = jax.random.key(5)
    rows = selection(name)(key, candidates, 3)
    order = np.array([4, 3, 1, 0, 2])
    turned = candidates._replace(known=candidates.known[order], labeled=candidates.labeled[order])
    np.testing.assert_array_equal(selection(name)(key, turned, 3), rows)
    scaled = candidates._replace(feature=100.0 * candidates.feature + 7.0, known=100.0 * candidates.known + 7.0)
    np.testing.assert_array_equal(selection(name)(key, scaled, 3), rows)


# What known structures change nothing in: they read scores alone, or nothing at all.
BLIND = {"random", "stratified", "threshold_window", "top_k"}
# Its known structures are the origin of the embedding, wherever they lie.
ORIGIN = {"badge"}


@every("select")
def test_what_is_known_is_not_asked_for_again(name):
    """Half of the candidates are known, and more features than structures: nothing is learned of the others."""
    feature = np.random.default_rng(8).normal(size=(8, 20)).astype(np.float32)
    candidates = candidates_of(MASKS["all"])._replace(score=np.ones(8, np.float32), feature=feature, known=feature[:5])
    half = candidates._replace(labeled=np.arange(5) < 4)
    draw = jax.jit(jax.vmap(lambda key, batch: registry.get("select", name)(key, batch, 3), (0, None)))
    keys = jax.random.split(jax.random.key(6), 64)
    none = candidates._replace(labeled=np.zeros(5, bool))
    repeated = [np.mean((rows >= 0) & (rows < 4)) for rows in (np.asarray(draw(keys, x)) for x in (half, none))]
    if name in BLIND:
        assert repeated[0] == repeated[1]
    elif name not in ORIGIN:
        assert repeated[0] <= 0.34, "at most the first, where it is the most uncertain"


@every("select")
@pytest.mark.parametrize("field", ["score", "feature"])
def test_a_candidate_that_is_not_finite_spoils_no_other(name, field):
    candidates = candidates_of(MASKS["all"])
    broken = candidates._replace(**{field: replaced(getattr(candidates, field), 2, np.nan)})
    rows = np.asarray(selection(name)(jax.random.key(7), broken, 11))
    chosen = rows[rows >= 0].tolist()
    assert len(chosen) == len(set(chosen)) and {0, 1, 3, 4, 5, 6, 7} <= set(chosen)
    assert np.all(rows[len(chosen) :] == -1)


@every("select")
def test_single_precision_is_the_same_where_double_is_enabled(name):
    candidates = candidates_of(MASKS["some"])
    rows = selection(name)(jax.random.key(0), candidates, 3)
    with jax.enable_x64(True):
        part = jax.jit(registry.get("select", name), static_argnums=2)
        same = part(jax.random.key(0), candidates, 3)
        wide = part(jax.random.key(0), jax.tree.map(lambda x: x if x.dtype == bool else x.astype(float), candidates), 3)
        assert same.dtype == wide.dtype == jnp.int32
        np.testing.assert_array_equal(same, rows)
        assert candidates.eligible[np.asarray(wide)].all()


@every("select")
def test_an_infinite_score_comes_first_and_vmap_passes(name):
    """A probe has an infinite score; selections that read scores must take it."""
    several = jax.tree.map(lambda *x: np.stack(x), *(candidates_of([1] * 8, seed) for seed in range(3)))
    keys = jax.random.split(jax.random.key(2), 3)
    batch = jax.jit(jax.vmap(lambda key, candidates: registry.get("select", name)(key, candidates, 3)))(keys, several)
    for row in range(3):
        alone = selection(name)(keys[row], jax.tree.map(lambda x, row=row: x[row], several), 3)
        np.testing.assert_array_equal(batch[row], alone)
    probe = candidates_of([1] * 8)
    rows = np.asarray(selection(name)(keys[0], probe._replace(score=replaced(probe.score, 5, np.inf)), 3))
    assert len(set(rows.tolist())) == 3
    if name == "random":
        return
    assert rows[0] == 5
    # several, as many as there are labels, and more than that
    for probes in ([1, 6], [0, 2, 7], [1, 2, 3, 4, 6]):
        rows = selection(name)(keys[0], probe._replace(score=replaced(probe.score, probes, np.inf)), 3)
        first = np.asarray(rows)[: len(probes)].tolist()
        assert set(first) <= set(probes) and len(set(first)) == min(3, len(probes))
