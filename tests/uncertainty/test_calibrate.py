"""Calibrations against scikit-learn, scipy and uncertainty-toolbox; the gates made of them."""

import jax
import numpy as np
import pytest
from scipy import optimize, stats
from sklearn.isotonic import IsotonicRegression
from uncertainty_toolbox import metrics_calibration, metrics_scoring_rule

from jaxal.uncertainty import calibrate
from jaxal.uncertainty.calibrate import expected_error, isotonic_curve, likelihood_scale
from jaxal.validate import calibration

fit_curve, error_at, scale_of = map(jax.jit, (isotonic_curve, expected_error, likelihood_scale))


def data(seed, count=60, ties=False):
    rng = np.random.default_rng(seed)
    spread = np.exp(rng.normal(-2, 0.7, count))
    error = np.abs(rng.normal(0, 1, count)) * spread ** rng.uniform(-0.5, 1.5)
    return (np.round(spread, 1) if ties else spread).astype(np.float32), error.astype(np.float32)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_isotonic_is_that_of_scikit_learn(seed, ties):
    spread, error = data(seed, ties=ties)
    valid = np.random.default_rng(seed).uniform(size=len(spread)) < 0.8
    observations = np.where(valid, spread, np.nan), np.where(valid, error, np.inf)  # what is not valid may be anything
    curve = fit_curve(*observations, valid)
    theirs = IsotonicRegression(out_of_bounds="clip").fit(spread[valid], error[valid])
    where = np.r_[0.0, np.linspace(spread.min(), spread.max(), 301), 9.0].astype(np.float32)
    np.testing.assert_allclose(error_at(curve, where), theirs.predict(where), rtol=2e-4, atol=1e-5)
    assert np.all(np.diff(curve.error) >= 0) and np.all(np.diff(curve.spread) >= 0)


def test_isotonic_at_its_limits_and_under_vmap():
    spread, error = data(1, 10)
    rank, every = np.arange(5, dtype=np.float32), np.ones(5, bool)
    np.testing.assert_allclose(fit_curve(rank, rank[::-1], every).error, 2.0)
    np.testing.assert_allclose(fit_curve(rank, rank**2, every).error, rank**2)
    none = fit_curve(spread, error, np.zeros(10, bool))
    assert np.isinf(error_at(none, np.float32(0.3)))
    single = fit_curve(spread, error, np.arange(10) == 4)
    assert float(error_at(single, np.float32(7.0))) == pytest.approx(float(error[4]))
    several = np.stack([data(seed, 12)[0] for seed in range(3)]), np.stack([data(seed, 12)[1] for seed in range(3)])
    batch = jax.device_get(jax.jit(jax.vmap(isotonic_curve))(*several, np.ones((3, 12), bool)))
    for row in range(3):
        alone = fit_curve(several[0][row], several[1][row], np.ones(12, bool))
        np.testing.assert_allclose(batch.error[row], alone.error, rtol=1e-6)


@pytest.mark.parametrize("components", [1, 3])
def test_the_scale_is_the_most_likely_one(components):
    """Against a search for the largest likelihood of normal components."""
    rng = np.random.default_rng(2)
    spread = np.exp(rng.normal(-2, 0.7, 300))
    parts = rng.standard_t(4, (300, components)) * spread[:, None]
    error = np.linalg.norm(parts, axis=1)
    estimate = float(scale_of(*(x.astype(np.float32) for x in (spread, error)), np.ones(300, bool)))

    def unlikely(scale):
        return -stats.norm.logpdf(parts, scale=scale * spread[:, None] / np.sqrt(components)).sum()

    assert estimate == pytest.approx(optimize.minimize_scalar(unlikely, bounds=(0.1, 10), method="bounded").x, rel=1e-3)
    valid, ones = np.array([True, True, False]), np.ones(3, np.float32)
    assert float(scale_of(np.array([0.0, 0.5, 1.0], np.float32), ones, valid)) == 2.0
    assert np.isinf(scale_of(0 * ones, ones, valid))


def test_the_likelihood_gate_estimates_the_root_mean_square():
    gate = calibrate.likelihood(target_error=1.0)
    score, error = np.array([0.1, 0.2, 9.0], np.float32), np.array([0.3, 0.8, 9.0], np.float32)
    state = jax.jit(gate.calibrate)(gate.init(), score, error, np.arange(3) < 2)
    assert float(state.factor) == pytest.approx(np.sqrt((9 + 16) / 2), rel=1e-5)


@jax.jit
def flagged_by(target, spread, error, valid, scores):
    """What an isotonic gate says of scores."""
    gate = calibrate.isotonic(target_error=target)
    return gate.step(gate.calibrate(gate.init(), spread, error, valid), scores)[1]


@pytest.mark.parametrize("seed", range(5))
def test_the_isotonic_gate_asks_where_the_curve_exceeds_the_target(seed):
    observations = *data(seed, 80), np.ones(80, bool)
    curve = jax.device_get(fit_curve(*observations))
    middle = float(np.mean([curve.error[0], curve.error[-1]]))
    largest = observations[0].max()
    scores = np.linspace(observations[0].min(), largest, 400, dtype=np.float32)
    for target in (middle, 0.5 * float(curve.error[0]), 2 * float(curve.error[-1])):
        flagged = np.asarray(flagged_by(target, *observations, scores))
        expected = np.asarray(error_at(curve, scores))
        sure = np.abs(expected - target) > 1e-3 * target
        np.testing.assert_array_equal(flagged[sure], expected[sure] > target)
    # beyond what was held out the curve goes on in proportion
    beyond = largest * np.array([1.9, 2.1], np.float32)
    flagged = flagged_by(2 * float(curve.error[-1]), *observations, beyond)
    np.testing.assert_array_equal(flagged, [False, True])


# ---------------------------------------------------------------- metrics


def laws(seed, scale=1.0, count=2000):
    rng = np.random.default_rng(seed)
    std = np.exp(rng.normal(-2, 0.7, count))
    return rng.normal(0, scale * std), std


@pytest.mark.parametrize("scale", [0.3, 1.0, 2.5])
def test_metrics_are_those_of_uncertainty_toolbox(scale):
    residual, std = laws(3, scale)
    zero = np.zeros_like(residual)
    assert calibration.nll(residual, std) == pytest.approx(
        metrics_scoring_rule.nll_gaussian(zero, std, residual), rel=1e-6
    )
    assert calibration.crps(residual, std) == pytest.approx(
        metrics_scoring_rule.crps_gaussian(zero, std, residual), rel=1e-6
    )
    assert calibration.sharpness(std) == pytest.approx(metrics_calibration.sharpness(std), rel=1e-9)
    theirs = metrics_calibration.miscalibration_area(zero, std, residual, num_bins=1000, vectorized=True)
    assert calibration.miscalibration_area(residual, std) == pytest.approx(theirs, abs=2e-3)


def test_crps_and_area_by_their_definitions():
    residual, std = laws(4, 1.4, 50)
    grid = np.linspace(-6, 6, 40_001)
    squares = [
        np.trapezoid((stats.norm.cdf(grid, scale=s) - (grid >= r)) ** 2, grid)
        for r, s in zip(residual, std, strict=True)
    ]
    assert calibration.crps(residual, std) == pytest.approx(np.mean(squares), rel=1e-3)
    p = (np.arange(100_000) + 0.5) / 100_000
    width = stats.norm.ppf(0.5 + 0.5 * p)
    within = np.searchsorted(np.sort(np.abs(residual / std)), width, side="right") / 50
    assert calibration.miscalibration_area(residual, std) == pytest.approx(np.mean(np.abs(within - p)), abs=1e-4)
    # the worst there is, and next to none
    assert calibration.miscalibration_area(np.full(10, 1e9), np.ones(10)) == pytest.approx(0.5)
    even = stats.norm.ppf(0.5 + 0.5 * (np.arange(1000) + 0.5) / 1000)
    assert calibration.miscalibration_area(even, np.ones(1000)) < 1e-3


def test_normal_scales_the_spread_first():
    residual, std = laws(5, 3.0)
    metrics = calibration.normal(residual, std)
    assert metrics.scale == pytest.approx(3.0, rel=0.05) and metrics.area < 0.02
    assert metrics.sharpness == pytest.approx(metrics.scale * np.sqrt(np.mean(std**2)))
    assert metrics.nll == pytest.approx(calibration.nll(residual, metrics.scale * std))
    assert metrics.spearman == pytest.approx(stats.spearmanr(std, np.abs(residual)).statistic)
    broken = calibration.normal(np.r_[residual, np.nan, 1.0, 1.0], np.r_[std, 1.0, 0.0, np.inf])
    assert broken == metrics
    assert np.isnan(calibration.normal(np.zeros(0), np.zeros(0)).crps)


def test_coverage_by_element():
    rng = np.random.default_rng(6)
    symbols = rng.choice(["H", "C"], 4000)
    spread = np.exp(rng.normal(-2, 0.5, 4000))
    error = np.where(symbols == "H", 2.0, 1.0) * spread * np.abs(rng.normal(size=4000))
    coverage = calibration.coverage_by(symbols, spread, error, 2.0)
    assert list(coverage) == ["C", "H"] and coverage["C"].count == np.sum(symbols == "C")
    for name, scale in (("C", 1.0), ("H", 2.0)):
        expected = 2 * stats.norm.cdf(2.0 / scale) - 1
        assert abs(coverage[name].covered - expected) < 4 * coverage[name].covered_error
        assert coverage[name].scale == pytest.approx(scale, rel=0.05)
