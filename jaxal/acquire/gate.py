"""Gates: is a structure uncertain enough to be worth a label?

A gate turns a score into an estimated error, factor * score, and compares it with a threshold; both are part
of its state, so they may change without a new compilation.
"""

from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxal.registry import register
from jaxal.types import Gate, GateState
from jaxal.units import Unit


def _state(factor: float, threshold: float) -> GateState:
    return GateState(jnp.asarray(factor, jnp.float32), jnp.asarray(threshold, jnp.float32))


def _step(state: GateState, score: Float[Array, "w"]) -> tuple[GateState, Bool[Array, "w"]]:
    # a score that is not a number is not known to be small
    return state, ~(state.factor * score <= state.threshold)


@register("gate")
def threshold(*, limit: Annotated[float, Unit("", 0.0)] = 0.1) -> Gate:
    """Label where the score exceeds `limit`, in the score's own unit.

    The estimated error is the score itself: nothing is learned.
    """
    return Gate(lambda: _state(1.0, limit), _step, lambda state, score, error, valid: state)


@register("gate")
def conformal(
    *,
    target_error: Annotated[float, Unit("eV/Å", 0.0, True)] = 0.3,
    miss_rate: Annotated[float, Unit("", 0.0, True)] = 0.1,
) -> Gate:
    """Label where the force error, estimated from held-out labels, exceeds `target_error`.

    Split conformal prediction (Angelopoulos and Bates, arXiv:2107.07511, sec. 2.3.2) on the ratio of true error
    to score: `factor` is its ceil((n+1)(1-miss_rate))-th smallest value over the n held-out structures, so a
    fresh structure from the same distribution has an error above factor * score with probability at most
    `miss_rate`. With n too small for that guarantee the largest ratio serves; with n = 0 everything is labeled.
    """
    if miss_rate >= 1:
        raise ValueError(f"gate.miss_rate is {miss_rate}; it must lie between 0 and 1")

    def calibrate(
        state: GateState, score: Float[Array, "c"], error: Float[Array, "c"], valid: Bool[Array, "c"]
    ) -> GateState:
        count = jnp.sum(valid)
        tiny = jnp.finfo(score.dtype).tiny
        ratio = jnp.sort(jnp.where(valid, error / jnp.maximum(score, tiny), jnp.inf))
        # the small subtraction keeps (n+1)(1-miss) from being rounded up past a whole number
        rank = jnp.ceil((count + 1) * (1.0 - miss_rate) - 1e-6).astype(jnp.int32)
        factor = ratio[jnp.clip(rank, 1, jnp.maximum(count, 1)) - 1]
        return state._replace(factor=factor.astype(state.factor.dtype))

    return Gate(lambda: _state(float("inf"), target_error), _step, calibrate)
