"""The adaptive gate by simulation: coverage where the distribution shifts, and the budget of labels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loop_example import Asked, Host, limits_of, made

from jaxal.acquire.gate import adaptive, conformal
from jaxal.core.types import GateState
from jaxal.program import loop

STEPS, HELD = 4000, 64


def stream(ratio_scale, seed):
    """(scores, errors) of structures whose errors are lognormal about `ratio_scale` [t] times their score."""
    rng = np.random.default_rng(seed)
    count = len(ratio_scale)
    score = np.exp(rng.normal(-2, 0.8, count))
    error = score * ratio_scale * np.exp(rng.normal(0, 0.5, count))
    return score.astype(np.float32), error.astype(np.float32)


@functools.cache
def gate_of(kind, miss_rate):
    return kind(miss_rate=miss_rate)


@functools.partial(jax.jit, static_argnums=0)
def followed(gate, held, later):
    """(final state, factors): calibrated on what was held out, then told of one label after the other."""
    state = gate.calibrate(gate.init(), *held, jnp.ones(HELD, bool))

    def step(state: GateState, pair):
        return gate.observe(state, pair[0][None], pair[1][None], jnp.ones(1, bool)), state.factor

    return jax.lax.scan(step, state, later)


SHIFTS = {
    "none": np.ones(STEPS),
    "jump": np.where(np.arange(STEPS) < STEPS // 4, 1.0, 3.0),
    "drift": np.geomspace(1.0, 8.0, STEPS),
    "fall": np.where(np.arange(STEPS) < STEPS // 4, 1.0, 0.2),
    "waves": np.exp(np.sin(np.arange(STEPS) / 300)),
}


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("miss_rate", [0.05, 0.1, 0.2])
def test_coverage_is_nominal_whatever_shifts_where_split_conformal_fails(shift, miss_rate):
    coverage = {}
    for kind in (conformal, adaptive):
        state, _ = followed(gate_of(kind, miss_rate), stream(np.ones(HELD), 1), stream(SHIFTS[shift], 2))
        assert int(state.checked) == STEPS
        coverage[kind] = int(state.covered) / STEPS
        if kind is adaptive:
            # an identity: what was missed beyond the rate is what the bound has been moved by
            missed = 1 - coverage[kind] - miss_rate
            assert float(state.correction) == pytest.approx(0.1 * missed * STEPS, abs=0.01)
    assert abs(coverage[adaptive] - (1 - miss_rate)) < 0.02
    if shift in ("jump", "drift"):
        assert coverage[conformal] < 1 - miss_rate - 0.1
    if shift == "fall":  # bounds that are far too wide cost labels
        assert coverage[conformal] > 1 - miss_rate / 2


def test_the_bound_is_that_of_the_errors_after_a_jump():
    """Not only the mean: in the end the factor is the quantile of the ratios as they then are."""
    _, factors = followed(gate_of(adaptive, 0.1), stream(np.ones(HELD), 1), stream(SHIFTS["jump"], 2))
    score, error = stream(np.full(200_000, 3.0), 5)
    quantile = np.quantile(error / score, 0.9)
    factors = np.asarray(factors)
    assert factors[STEPS // 2 :].mean() == pytest.approx(quantile, rel=0.15)
    assert factors[0] < 0.6 * quantile


def test_a_new_calibration_keeps_what_was_observed():
    gate = adaptive(miss_rate=0.1, rate=0.2)
    held = stream(np.ones(HELD), 1)
    calibrate, observe, valid = jax.jit(gate.calibrate), jax.jit(gate.observe), np.ones(HELD, bool)
    state = calibrate(gate.init(), *held, valid)
    factor = float(state.factor)
    assert factor == float(jax.jit(conformal(miss_rate=0.1).calibrate)(gate.init(), *held, valid).factor)
    ok, ones = np.array([True, True, True, False]), np.ones(4, np.float32)
    state = observe(state, ones, np.array([2.0, 0.5, 3.0, 9.0], np.float32) * np.float32(factor), ok)
    expected = 0.2 * (2 - 0.1 * 3)  # two missed, three compared
    assert float(state.factor) == pytest.approx(factor * np.exp(expected), rel=1e-5)
    again = calibrate(state, *held, valid)
    assert float(again.factor) == pytest.approx(float(state.factor), rel=1e-5)
    # before the first calibration there is no bound that could be missed
    assert float(observe(gate.init(), ones, ones, ok).correction) == 0


@pytest.mark.parametrize("budget", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("walkers", [1, 8])
def test_the_budget_is_kept_and_spent_where_there_is_need(budget, walkers):
    gate = adaptive(target_error=0.05, budget=budget)
    state = gate.init()._replace(factor=jnp.float32(1.0))
    rng = np.random.default_rng(3)
    looks = 3000
    # estimated errors far above the target, and ten times as large from the middle on
    scores = np.exp(rng.normal(-1, 0.5, (looks, walkers))) * np.where(np.arange(looks) < looks // 2, 1, 10)[:, None]
    last, flagged = jax.jit(lambda s, x: jax.lax.scan(gate.step, s, x))(state, scores.astype(np.float32))
    labels = np.asarray(flagged).sum() / walkers
    # the bound that is promised, and that the budget is not left unspent
    assert labels <= budget * looks + np.log(float(last.threshold) / 0.05) + 1e-2
    assert labels == pytest.approx(budget * looks, rel=0.1, abs=8)
    worst = scores[np.asarray(flagged)].mean() / scores.mean()
    assert worst > 1.2, "it is the worst that are asked for"


def test_what_is_within_the_target_is_never_asked_for():
    gate = adaptive(target_error=0.3, budget=0.5)
    state = gate.init()._replace(factor=jnp.float32(2.0))
    scores = np.random.default_rng(4).uniform(0, 0.149, (500, 4)).astype(np.float32)
    last, flagged = jax.lax.scan(gate.step, state, scores)
    assert not np.asarray(flagged).any() and float(last.threshold) == pytest.approx(0.3)
    # it saves nothing up either: from the first look above it on, the budget is what counts
    flagged = np.asarray(jax.lax.scan(gate.step, last, np.full((100, 4), 10.0, np.float32))[1])
    assert flagged[0].all() and flagged.mean() < 0.6


def test_options_out_of_range_are_refused():
    for name in ("miss_rate", "budget"):
        with pytest.raises(ValueError, match=rf"gate\.{name} is 1.5; it must lie between 0 and 1"):
            adaptive(**{name: 1.5})


@pytest.mark.slow
def test_in_the_loop_it_counts_and_follows():
    """Labels that come are compared with the bound of their look; the look reports coverage and threshold."""
    gate = adaptive(target_error=0.01, budget=0.25)
    state, parts, static = made(Host.label, gate=gate)
    Host.now = Asked()
    run = jax.jit(loop.make_segment(parts, static))
    after, looks = jax.block_until_ready(run(state, limits_of()))
    ok = np.asarray(looks.ok)
    estimate, error = np.asarray(looks.label_estimate)[ok], np.asarray(looks.label_error)[ok]
    assert int(after.gate.checked) == ok.sum() > 0
    assert int(after.gate.covered) == np.sum(error <= estimate)
    assert float(looks.coverage[-1]) == pytest.approx(np.mean(error <= estimate))
    assert float(looks.threshold[-1]) == float(after.gate.threshold) > 0.01
    moved = 0.1 * (np.sum(error > estimate) - 0.1 * ok.sum())
    assert float(after.gate.correction) == pytest.approx(moved, abs=1e-5)
