"""The bound of a model: its coverage by counting, in every combination of score, gate and uncertainty; and no bound."""

import functools

import jax
import numpy as np
import pytest
from ase.build import molecule
from closed_features import SHELLS
from loop_example import oracle

from jaxal.acquire.fits import measure_of, refuse_misfits
from jaxal.acquire.gate import estimated
from jaxal.committee import evaluation
from jaxal.committee.evaluation import Committee
from jaxal.core import registry
from jaxal.core.discovery import import_parts
from jaxal.core.types import FORCE, InputError
from jaxal.data import neighbors
from jaxal.data.structure import from_atoms
from jaxal.deploy import model as models
from jaxal.run import training_data
from jaxal.train import bound as bounding
from jaxal.train import fit as training
from jaxal.train import posterior
from jaxal.train import support as supports
from jaxal.train.loss import max_force_error
from jaxal.uncertainty import bound
from jaxal.uncertainty import support as statistics

import_parts()

TABLE = (1, 8)
NEAR = neighbors.Spec(4.0, 0.0, 4, (0, 0, 0))
TRAINED, CALIBRATING, UNSEEN = 20, 99, 300
METHODS = {"members": 3, "laplace": 1, "d_optimality": 2}  # and sets of weights
CLAIMS = ("conformal", "adaptive")  # gates whose estimate is a bound
# three standard deviations of a coverage of 90 % by both the frames that calibrate and those that are counted
SPREAD = 3 * float(np.sqrt(0.09 / (CALIBRATING + 2) + 0.09 / UNSEEN))


# ---------------------------------------------------------------- the quantile


@pytest.mark.parametrize("count", [1, 4, 9, 19, 60])
def test_the_stored_coverage_is_what_is_realized(count):
    """Exactly k / (n + 1) for continuous ratios, over draws of the calibrating frames and of a fresh one."""
    rng = np.random.default_rng(count)
    repeats = 4000
    score = np.exp(rng.normal(-2, 1, (repeats, count + 1)))
    error = score * np.abs(rng.standard_t(2, score.shape))
    calibrations = [bound.calibrated(s[:-1], e[:-1], "draws") for s, e in zip(score, error, strict=True)]
    coverage = calibrations[0].coverage
    assert coverage == pytest.approx(min(int(np.ceil((count + 1) * 0.9 - 1e-6)), count) / (count + 1))
    assert (coverage >= 0.9) == (count >= 9) and calibrations[0].count == count
    draws = zip(calibrations, score, error, strict=True)
    within = np.mean([e[-1] <= calibration.factor * s[-1] for calibration, s, e in draws])
    assert within == pytest.approx(coverage, abs=4 * np.sqrt(coverage * (1 - coverage) / repeats))


def test_there_is_no_bound_without_anything_to_learn_it_from():
    assert bound.calibrated([], [], "nothing") is None
    assert bound.calibrated([np.nan, 1.0], [1.0, np.nan], "no numbers") is None
    assert bound.calibrated([0.0, 0.0], [0.1, 0.2], "a score that sees nothing") is None
    assert bound.calibrated([0.0, 1.0], [0.0, 2.0], "where both vanish").factor == 2.0
    none = bound.bounds(None, [0.1, 0.2], [0.5, 2.0])
    assert np.isnan(none).all()
    some = bound.calibrated(np.ones(9), np.arange(1.0, 10.0), "nine")
    assert (some.factor, some.coverage) == (9.0, 0.9)
    # of novelty 1, a third, so little that it does not count, unknown, above 1; and of no spread that is a number
    bounds = bound.bounds(some, [0.1] * 5 + [np.nan], [1.0, 1 / 3, 0.0, np.nan, 1.01, 0.5])
    np.testing.assert_allclose(bounds, [0.9, 0.3, 0.9 * bound.FAMILIAR, 0.9, np.inf, np.nan])


@pytest.mark.parametrize(
    "change", [{"coverage": 1.0}, {"count": 0}, {"factor": float("nan")}, {"score": "energy_spread"}, {"factor": -1.0}]
)
def test_a_header_that_cannot_be_is_refused(change):
    header = bound.calibrated(np.ones(9), np.ones(9), "nine").header()
    assert bound.of_header(header).header() == header and bound.of_header(None) is None
    with pytest.raises(ValueError, match="calibration"):
        bound.of_header(header | change)


# ---------------------------------------------------------------- all combinations


def waters(count, seed):
    """Water molecules, displaced alike in no order."""
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(count):
        frame = molecule("H2O")
        frame.positions += rng.normal(0, 0.06, (3, 3))
        frames.append(frame)
    return from_atoms(frames, TABLE)


@functools.cache
def seen(name):
    """(committee, weights, support, structures, labels, prediction) of a method, on frames it has not learned from."""
    method = registry.get("uncertainty", name)(SHELLS, len(TABLE))
    part = Committee(SHELLS, METHODS[name], species=len(TABLE), uncertainty=method)
    structures = waters(TRAINED + CALIBRATING + UNSEEN, 1)
    labels = jax.device_get(jax.jit(oracle)(structures, np.ones(len(structures.charge), bool)))
    first, others = (
        jax.tree.map(lambda x, rows=rows: x[rows], (structures, labels))
        for rows in (slice(0, TRAINED), slice(TRAINED, None))
    )
    held = np.arange(TRAINED) % 5 == 2
    buffer = training_data.training_set(*first, held, METHODS[name], TRAINED, jax.random.key(0), 0.0)

    @jax.jit
    def learned(key, buffer):
        structure, near = jax.tree.map(lambda x: x[0], (first[0], neighbors.find(NEAR, first[0])))
        train = training.init(training.Recipe(), evaluation.init(part, key, structure, near))
        train = posterior.learned(part, NEAR, train, buffer)
        prediction = evaluation.predict(part, train.average, others[0], neighbors.find(NEAR, others[0]))
        return train.average, supports.learned(part, NEAR, train.average, buffer), prediction

    params, support, prediction = learned(jax.random.key(1), buffer)
    return part, params, support, *others, prediction


@jax.jit
def all_scores(prediction, structures):
    """What every score says, by name."""
    return {name: jax.vmap(registry.get("score", name))(prediction, structures) for name in registry.names("score")}


@functools.cache
def judged(gate):
    """(score [c], error [c], scores [k]) -> errors that a gate calibrated on the first estimates from the others."""
    rule = registry.get("gate", gate)()

    def judge(score, error, others):
        state = rule.calibrate(rule.init(), score, error, np.ones(CALIBRATING, bool))
        return estimated(rule, state, others)

    return rule, jax.jit(judge)


@pytest.mark.slow
@pytest.mark.parametrize("uncertainty", METHODS)
def test_every_combination_covers_or_claims_nothing(uncertainty):
    """The bound of the model whatever score and gate a run had, and the estimates of every gate from every score."""
    part, params, support, structures, labels, prediction = seen(uncertainty)
    unit = FORCE if part.uncertainty is None else part.uncertainty.unit
    error = max_force_error(prediction.force.mean(1), structures, labels)
    head, tail = slice(0, CALIBRATING), slice(CALIBRATING, None)
    first = jax.tree.map(lambda x: x[head], (structures, labels))
    result = bounding.bounded(part, params, support, *first, "frames of a test")
    assert result.calibration.coverage >= 0.9 and np.isfinite(result.rmse)
    seen_by = jax.jit(bounding.measured, static_argnums=(0, 1))(part, NEAR, params, result.support, structures, labels)
    spread, _, new, _ = map(np.asarray, seen_by)
    claimed = bound.bounds(result.calibration, spread[tail], new[tail])
    inside = np.isfinite(claimed)
    assert inside.mean() == pytest.approx(bounding.LEVEL, abs=0.1)
    model_coverage = np.mean(np.asarray(error)[tail][inside] <= claimed[inside])
    assert model_coverage == pytest.approx(0.9, abs=SPREAD), uncertainty

    combinations, scores = 0, all_scores(prediction, structures)
    for score in registry.names("score"):
        options = {option.name: option.default for option in registry.options("score", score)}
        values = scores[score]
        for gate in registry.names("gate"):
            rule, judge = judged(gate)
            fits = (not measure_of(score).needs_force or unit == FORCE) and (
                measure_of(score).spread or not rule.estimates
            )
            arguments = score, options, gate, rule, uncertainty, unit
            if not fits:
                with pytest.raises(InputError, match=r"^(score|gate)\.name: .* give "):
                    refuse_misfits(*arguments)
                continue
            refuse_misfits(*arguments)
            combinations += 1
            estimate = np.asarray(judge(values[head], error[head], values[tail]))
            if not rule.estimates:
                assert np.isnan(estimate).all(), "a score is no error"
            elif gate in CLAIMS:
                covered = np.mean(np.asarray(error)[tail] <= estimate)
                assert covered == pytest.approx(0.9, abs=SPREAD), (score, gate, uncertainty)
            else:
                assert np.isfinite(estimate).all()
    assert combinations >= 20


def test_a_model_without_labels_to_calibrate_it_has_no_bound():
    part, params, support, structures, labels, _ = seen("members")
    none = labels._replace(ok=np.zeros_like(labels.ok))
    result = bounding.bounded(part, params, support, structures, none, "failed labels")
    assert result.calibration is None and np.isnan(result.rmse)
    np.testing.assert_array_equal(result.support.limit, support.limit)


def test_calibration_and_support_are_in_the_model_file(tmp_path):
    support = seen("members")[2]
    calibration = bound.calibrated(np.ones(9), np.arange(9.0), "nine")
    options = (("cutoff", 4.0), ("channels", 2), ("l_max", 1), ("layers", 1), ("radial", 4), ("radial_hidden", 0))
    facts = {"potential": "equivariant", "options": options, "table": TABLE, "reference": np.zeros(2)}
    facts |= {"precision": "float32", "states": ((0, 0),)}
    shapes = models.shapes(models.Model(params={}, **facts), 2)
    plain = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    for carried in ({}, {"calibration": calibration, "support": support}):
        models.save(tmp_path / "model.npz", models.Model(params=plain, **facts, **carried))
        loaded = models.load(tmp_path / "model.npz")
        assert loaded.calibration == carried.get("calibration")
        assert (loaded.support is None) == (not carried)
        for name, value in ({} if loaded.support is None else loaded.support._asdict()).items():
            np.testing.assert_array_equal(value, getattr(support, name))


@pytest.mark.parametrize("name", ["mean", "whiten", "alone", "limit"])
def test_a_support_that_cannot_be_is_refused(name):
    arrays = {field: np.asarray(value) for field, value in seen("members")[2]._asdict().items()}
    assert statistics.of_arrays(arrays, len(TABLE)) is not None and statistics.of_arrays({}, len(TABLE)) is None
    for broken in (arrays[name][..., None], arrays[name] * np.float32(np.nan)):
        with pytest.raises(ValueError, match=f"support {name}"):
            statistics.of_arrays(arrays | {name: broken}, len(TABLE))
