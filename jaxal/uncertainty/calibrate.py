"""Calibration of a spread by known errors: one scale by likelihood, a rising curve, a conformal bound; and its gates.

Pure functions of fixed shapes: `spread` [c] and `error` [c] (not negative) of structures or atoms, of which the `valid`
ones count and the others may hold anything. So they run in the program as well as after it, and under vmap. What is
above a bound only so often is `conformal_factor`, which the gates `conformal` and `adaptive` have, too.
"""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxal.acquire.gate import begun, conformal_factor, count, flag
from jaxal.core.registry import register
from jaxal.core.types import Gate, GateState
from jaxal.core.units import Unit

__all__ = ["Isotonic", "conformal_factor", "expected_error", "isotonic_curve", "likelihood_scale"]


class Isotonic(NamedTuple):
    """A curve that does not fall, from spread to expected error, by its knots; equal ones at the end are room left."""

    spread: Float[Array, "c"]  # rising
    error: Float[Array, "c"]


def likelihood_scale(spread: Float[Array, "c"], error: Float[Array, "c"], valid: Bool[Array, "c"]) -> Float[Array, ""]:
    """The multiple of the spread that is most likely if errors are normal: sqrt(mean((error / spread)^2)).

    Spreads of zero are left out, as no multiple of them says anything; infinity where there is no other. The same for
    numbers and for the lengths of vectors whose components share a variance (sigma scaling of Laves et al., PMLR 121,
    393, 2020).
    """
    use = valid & (spread > 0)
    ratio = jnp.where(use, error / jnp.where(use, spread, 1.0), 0.0)
    total = jnp.sum(jnp.sort(ratio**2))  # sorted: rounding does not depend on the order of the rows
    return jnp.where(jnp.any(use), jnp.sqrt(total / jnp.maximum(jnp.sum(use), 1)), jnp.inf)


def isotonic_curve(spread: Float[Array, "c"], error: Float[Array, "c"], valid: Bool[Array, "c"]) -> Isotonic:
    """The curve that does not fall and has the least squared distance from the errors.

    Pool adjacent violators (Ayer et al., Ann. Math. Stat. 26, 641, 1955), at most two steps for each row; equal
    spreads count as one point with their mean. Without valid rows the expected error is infinite.
    """
    rows = spread.shape[0]
    valid = valid & jnp.isfinite(spread) & jnp.isfinite(error)
    key, clean = jnp.where(valid, spread, jnp.inf), jnp.where(valid, error, 0.0)
    order = jnp.lexsort((clean, key))  # the others last
    x, y, weight = key[order], clean[order], valid[order].astype(spread.dtype)
    point = jnp.cumsum(jnp.r_[False, x[1:] != x[:-1]])  # number of the point that a row belongs to
    zero = jnp.zeros(rows, spread.dtype)
    weights, total = zero.at[point].add(weight), zero.at[point].add(y)
    place, number = zero.at[point].set(x), jnp.sum(weights > 0)
    value = total / jnp.maximum(weights, 1)

    def falls(top, mean):
        return (top > 1) & (mean[top - 2] >= mean[top - 1])

    def step(carry):
        """Puts the next point on the stack of blocks, or joins the last two blocks where they fall."""
        at, top, mean, mass, last = carry
        join = falls(top, mean)
        row = jnp.where(join, top - 2, top)
        both = mass[top - 2] + mass[top - 1]
        joined = (mean[top - 2] * mass[top - 2] + mean[top - 1] * mass[top - 1]) / jnp.where(join, both, 1.0)
        mean = mean.at[row].set(jnp.where(join, joined, value[at]))
        mass = mass.at[row].set(jnp.where(join, both, weights[at]))
        last = last.at[row].set(jnp.where(join, last[top - 1], at))
        return jnp.where(join, at, at + 1), row + 1, mean, mass, last

    def more(carry):
        at, top, mean, *_ = carry
        return (at < number) | falls(top, mean)

    none = jnp.full(rows, rows, jnp.int32)
    _, top, mean, _, last = jax.lax.while_loop(more, step, (jnp.int32(0), jnp.int32(0), zero, zero, none))
    last = jnp.where(jnp.arange(rows) < top, last, rows)  # of blocks that were joined nothing must be left
    each = jnp.minimum(jnp.arange(rows), jnp.maximum(number - 1, 0))
    fitted = mean[jnp.minimum(jnp.searchsorted(last, each), rows - 1)]
    return Isotonic(jnp.where(number > 0, place[each], 0.0), jnp.where(number > 0, fitted, jnp.inf))


def expected_error(curve: Isotonic, spread: Float[Array, "..."]) -> Float[Array, "..."]:
    """The curve at a spread: linear between its knots, constant beyond them."""
    known = jnp.isfinite(curve.error[0])
    return jnp.where(known, jnp.interp(spread, curve.spread, jnp.where(known, curve.error, 0.0)), jnp.inf)


@register("gate")
def likelihood(*, target_error: Annotated[float, Unit("eV/Å", 0.0, True)] = 0.3) -> Gate:
    """Label where the score times its most likely scale exceeds `target_error`.

    `factor` is the root mean square of the ratio of true error to score over the held-out structures: the scale of a
    normal law, so the estimate is a standard deviation of the error and no bound.
    """

    def calibrate(
        state: GateState, score: Float[Array, "c"], error: Float[Array, "c"], valid: Bool[Array, "c"]
    ) -> GateState:
        return state._replace(factor=likelihood_scale(score, error, valid).astype(state.factor.dtype))

    return Gate(lambda: begun(float("inf"), target_error), flag, calibrate, count)


@register("gate")
def isotonic(*, target_error: Annotated[float, Unit("eV/Å", 0.0, True)] = 0.3) -> Gate:
    """Label where the error expected at a score, by a rising curve through the held-out labels, exceeds `target_error`.

    `factor` is `target_error` over the score at which the isotonic curve comes to it, so that the estimate, factor *
    score, is that of the curve where it matters. Outside of the held-out scores the curve goes on in proportion.
    """

    def calibrate(
        state: GateState, score: Float[Array, "c"], error: Float[Array, "c"], valid: Bool[Array, "c"]
    ) -> GateState:
        curve = isotonic_curve(score, error, valid)
        above = curve.error > target_error
        after = jnp.where(jnp.any(above), jnp.argmax(above), score.shape[0] - 1)
        before = jnp.maximum(after - 1, 0)
        rise = curve.error[after] - curve.error[before]
        crosses = above[after] & ~above[before]
        part = (target_error - curve.error[before]) / jnp.where(crosses, rise, 1.0)
        level = curve.spread[before] + part * (curve.spread[after] - curve.spread[before])
        tiny = jnp.finfo(score.dtype).tiny
        inside = target_error / jnp.maximum(level, tiny)
        outside = curve.error[after] / jnp.maximum(curve.spread[after], tiny)
        factor = jnp.minimum(jnp.where(crosses, inside, outside), jnp.finfo(score.dtype).max)
        known = jnp.any(jnp.isfinite(curve.error))
        return state._replace(factor=jnp.where(known, factor, jnp.inf).astype(state.factor.dtype))

    return Gate(lambda: begun(float("inf"), target_error), flag, calibrate, count)
