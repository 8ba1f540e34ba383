"""Gates: is a structure uncertain enough to be worth a label?

A gate compares factor * score with a threshold; both are part of its state, so they may change without a new
compilation. One that estimates an error learns the factor, which turns any score that tells an error into eV/Å, and
counts how often the error of a label was within factor * score before anything was learned from it: the realized
coverage. It is that of the frames that were labeled,
which the gate and the probes chose, not of all that walkers saw.

`begun`, `flag` and `count` are what most gates begin with, ask for and observe.
"""

from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxal.core.registry import register
from jaxal.core.types import Gate, GateState
from jaxal.core.units import Unit

Share = Annotated[float, Unit("", 0.0, True)]  # of all, more than none


def begun(factor: float, threshold: float) -> GateState:
    """A state that has seen nothing yet."""
    first, second, none = (jnp.asarray(value, jnp.float32) for value in (factor, threshold, 0.0))
    return GateState(first, second, none, jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def flag(state: GateState, score: Float[Array, "w"]) -> tuple[GateState, Bool[Array, "w"]]:
    """Asks for a label above the threshold; the state is as it was."""
    # a score that is not a number is not known to be small
    return state, ~(state.factor * score <= state.threshold)


def _outcome(
    state: GateState, score: Float[Array, "k"], error: Float[Array, "k"], ok: Bool[Array, "k"]
) -> tuple[Bool[Array, "k"], Bool[Array, "k"]]:
    """Which labels can be compared, and which of them have their error within factor * score."""
    there = ok & jnp.isfinite(state.factor) & jnp.isfinite(score) & jnp.isfinite(error)
    return there, there & (error <= state.factor * score)


def count(state: GateState, score: Float[Array, "k"], error: Float[Array, "k"], ok: Bool[Array, "k"]) -> GateState:
    """The state with labels counted; before the first calibration there is nothing to compare them with."""
    there, covered = _outcome(state, score, error, ok)
    return state._replace(
        covered=state.covered + jnp.sum(covered, dtype=jnp.int32),
        checked=state.checked + jnp.sum(there, dtype=jnp.int32),
    )


def estimated(gate: Gate, state: GateState, score: Float[Array, "w"]) -> Float[Array, "w"]:
    """Errors that the gate estimates from scores, eV/Å; NaN where it estimates none, or has not been calibrated yet."""
    known = jnp.isfinite(state.factor) & gate.estimates
    return jnp.where(known, jnp.where(known, state.factor, 1.0) * score, jnp.nan)


def conformal_factor(
    score: Float[Array, "c"], error: Float[Array, "c"], valid: Bool[Array, "c"], miss_rate: float
) -> Float[Array, ""]:
    """The factor by which a score bounds the error of a fresh structure, but for `miss_rate` of them.

    The ceil((n+1)(1-miss_rate))-th smallest ratio of error to score over the n valid rows; the largest where n is too
    small for that, infinity where n = 0.
    """
    number = jnp.sum(valid)
    tiny = jnp.finfo(score.dtype).tiny
    ratio = jnp.sort(jnp.where(valid, error / jnp.maximum(score, tiny), jnp.inf))
    # the small subtraction keeps (n+1)(1-miss) from being rounded up past a whole number
    rank = jnp.ceil((number + 1) * (1.0 - miss_rate) - 1e-6).astype(jnp.int32)
    return ratio[jnp.clip(rank, 1, jnp.maximum(number, 1)) - 1]


def _refuse_above_one(**options: float) -> None:
    for name, value in options.items():
        if value >= 1:
            raise ValueError(f"gate.{name} is {value}; it must lie between 0 and 1")


@register("gate")
def threshold(
    *, limit: Annotated[float, Unit("", 0.0)] = 0.1, ceiling: Annotated[float, Unit("", 0.0, True)] | None = None
) -> Gate:
    """Label where the score exceeds `limit`, in the score's own unit; any score.

    Nothing is learned, and no error is estimated. A frame whose score exceeds `ceiling`, in the same unit, is not
    physical; null sets no such limit. Raises ValueError where the ceiling is not above the limit.
    """
    if ceiling is not None and ceiling <= limit:
        raise ValueError(f"gate.ceiling is {ceiling:g}; it must be above gate.limit ({limit:g}), or null")

    def calibrate(
        state: GateState, score: Float[Array, "c"], error: Float[Array, "c"], valid: Bool[Array, "c"]
    ) -> GateState:
        del score, error, valid
        return state

    return Gate(lambda: begun(1.0, limit), flag, calibrate, estimates=False, ceiling=ceiling)


@register("gate")
def conformal(*, target_error: Annotated[float, Unit("eV/Å", 0.0, True)] = 0.3, miss_rate: Share = 0.1) -> Gate:
    """Label where the force error, estimated from held-out labels, exceeds `target_error`.

    Split conformal prediction (Angelopoulos and Bates, arXiv:2107.07511, sec. 2.3.2) on the ratio of true error
    to score: `factor` is its ceil((n+1)(1-miss_rate))-th smallest value over the n held-out structures, so a
    fresh structure from the same distribution has an error above factor * score with probability at most
    `miss_rate`. With n too small for that guarantee the largest ratio serves; with n = 0 everything is labeled.
    """
    _refuse_above_one(miss_rate=miss_rate)

    def calibrate(
        state: GateState, score: Float[Array, "c"], error: Float[Array, "c"], valid: Bool[Array, "c"]
    ) -> GateState:
        factor = conformal_factor(score, error, valid, miss_rate)
        return state._replace(factor=factor.astype(state.factor.dtype))

    return Gate(lambda: begun(float("inf"), target_error), flag, calibrate, count)


@register("gate")
def adaptive(
    *,
    target_error: Annotated[float, Unit("eV/Å", 0.0, True)] = 0.3,
    miss_rate: Share = 0.1,
    budget: Share = 0.1,
    rate: Share = 0.1,
) -> Gate:
    """Label the worst within a budget, by an error bound that is kept honest as the labels come in.

    The bound is that of `conformal` times exp(c). Every label that comes moves c before it is learned from: up by
    rate (1 - miss_rate) where its error was above the bound, down by rate miss_rate where it was within. So over T
    labels the misses differ from `miss_rate` by at most |c| / (rate T), whatever the distribution does, where split
    conformal prediction holds only while fresh structures are like the held-out ones. This is adaptive conformal
    inference (Gibbs and Candes, NeurIPS 2021, arXiv:2106.00170) on the bound itself rather than on its level, which
    once past 0 would make it infinite: the quantile tracking of Angelopoulos, Candes and Tibshirani (NeurIPS 2023,
    arXiv:2307.16895), with the conformal factor as what it starts from.

    `budget` is the fraction of the looks at a walker that may ask for a label: 0.1 of looks every 10 steps of 0.5 fs is
    20 labels per ps and walker. The threshold never falls below `target_error`, and follows the budget above it: at
    each look its logarithm rises by the fraction of walkers that asked, less the budget. So in T looks at most
    budget T + ln(threshold / target_error) labels of each walker are asked for.
    """
    _refuse_above_one(miss_rate=miss_rate, budget=budget)

    def step(state: GateState, score: Float[Array, "w"]) -> tuple[GateState, Bool[Array, "w"]]:
        _, flagged = flag(state, score)
        fraction = jnp.mean(flagged, dtype=state.threshold.dtype)
        moved = jnp.maximum(state.threshold * jnp.exp(fraction - budget), target_error)
        # before the first calibration everything is asked for, whatever the threshold
        moved = jnp.where(jnp.isfinite(state.factor), moved, state.threshold)
        return state._replace(threshold=moved.astype(state.threshold.dtype)), flagged

    def observe(
        state: GateState, score: Float[Array, "k"], error: Float[Array, "k"], ok: Bool[Array, "k"]
    ) -> GateState:
        there, covered = _outcome(state, score, error, ok)
        move = rate * (jnp.sum(there & ~covered) - miss_rate * jnp.sum(there)).astype(state.factor.dtype)
        state = count(state, score, error, ok)
        return state._replace(factor=state.factor * jnp.exp(move), correction=state.correction + move)

    def calibrate(
        state: GateState, score: Float[Array, "c"], error: Float[Array, "c"], valid: Bool[Array, "c"]
    ) -> GateState:
        factor = conformal_factor(score, error, valid, miss_rate).astype(state.factor.dtype)
        return state._replace(factor=factor * jnp.exp(state.correction))

    return Gate(lambda: begun(float("inf"), target_error), step, calibrate, observe)
