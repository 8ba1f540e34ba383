"""Schedules: which of several selections picks each label, by what has been spent or by what it brought.

A schedule is `(*, of, options) -> Schedule`, or None for the one selection that `select` names. `of` are the names of
registered selections, the arms, each with its default options. What an arm brought is a gain between 0 and 1 (how wrong
the committee was about the labels that it picked, see `jaxal.program.selection`).
"""

import inspect
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxal.core import registry
from jaxal.core.registry import register
from jaxal.core.types import InputError, Key, Schedule
from jaxal.core.units import Unit

Names = tuple[str, ...]
Share = Annotated[float, Unit("", 0.0)]


class Exp3(NamedTuple):
    """What exponential weights have learned."""

    weight: Float[Array, "arms"]  # logarithms, the largest is 0


class Ucb1(NamedTuple):
    """What upper confidence bounds have learned."""

    count: Float[Array, "arms"]  # rounds in which an arm's labels came
    total: Float[Array, "arms"]  # sum of the gains of these rounds


@register("schedule")
def single() -> Schedule | None:
    """The selection that `select` names picks every label."""


@register("schedule")
def annealed(*, of: Names, until: Annotated[float, Unit("", 0.0, exclusive=True)] = 1.0) -> Schedule:
    """From the first selection to the last as the label budget is used up, through those between.

    `of` names the selections. Where a fraction f of `stop.labels` is used, z = (arms - 1) min(f / `until`, 1) is the
    place between them, and a label is picked by arm floor(z) with probability 1 - (z - floor(z)), else by the next.
    """
    arms = len(_arms("annealed", of, 2))

    def choose(key: Key, state: Any, used: Float[Array, ""], size: int) -> Int[Array, "k"]:
        del state
        place = (arms - 1) * jnp.clip(used / until, 0.0, 1.0)
        lower = jnp.floor(place)
        upwards = jax.random.uniform(key, (size,)) < place - lower
        return jnp.minimum(lower + upwards, arms - 1).astype(jnp.int32)

    return Schedule(of, lambda: (), choose, lambda state, arm, gain: state)


@register("schedule")
def mixture(*, of: Names, weights: tuple[Share, ...] = ()) -> Schedule:
    """Every label's selection is drawn with fixed probabilities.

    `of` names the selections, `weights` are their shares, in that order and of any sum; none are equal shares.
    """
    arms = len(_arms("mixture", of, 1))
    shares = weights or (1.0,) * arms
    if len(shares) != arms or not sum(shares) > 0:
        raise InputError(f"schedule.weights: {list(shares)} does not fit; give {arms} shares, not all of them 0")

    def choose(key: Key, state: Any, used: Float[Array, ""], size: int) -> Int[Array, "k"]:
        del state, used
        return jax.random.categorical(key, jnp.log(jnp.asarray(shares)), shape=(size,)).astype(jnp.int32)

    return Schedule(of, lambda: (), choose, lambda state, arm, gain: state)


@register("schedule")
def bandit(
    *,
    of: Names,
    rule: Literal["exp3", "ucb1"] = "exp3",
    explore: Annotated[float, Unit("", 0.0, exclusive=True)] = 0.1,
) -> Schedule:
    """One selection for each look, learned from what the labels of each were worth: a bandit.

    `of` names the K selections; a round is labels that come together, its gain x of an arm the mean of theirs. `rule`
    exp3: probabilities p_i = (1 - g) w_i / sum w + g / K with g = `explore`, and w_i grows by the factor
    exp(g x_i / (K p_i)) where i was played; for gains that may change as training goes on. ucb1: the arm of largest
    mean gain + sqrt(2 ln n / n_i) after n rounds, n_i of them its own, each arm once before; it reads no `explore`.
    In pooled runs a label may come when the probabilities are no longer those by which its arm was drawn; the present
    ones count then.

    Auer, Cesa-Bianchi, Freund and Schapire, SIAM J. Comput. 32, 48 (2002), sec. 3; Auer, Cesa-Bianchi and Fischer,
    Mach. Learn. 47, 235 (2002). Raises InputError for `explore` above 1.
    """
    arms = len(_arms("bandit", of, 2))
    if explore > 1:
        raise InputError(f"schedule.explore: {explore} is too large; give at most 1")
    return _exp3(of, arms, explore) if rule == "exp3" else _ucb1(of, arms)


def _exp3(of: Names, arms: int, explore: float) -> Schedule:
    def chance(state: Exp3) -> Float[Array, "arms"]:
        return (1 - explore) * jax.nn.softmax(state.weight) + explore / arms

    def choose(key: Key, state: Exp3, used: Float[Array, ""], size: int) -> Int[Array, "k"]:
        del used
        return jnp.full(size, jax.random.categorical(key, jnp.log(chance(state))), jnp.int32)

    def learn(state: Exp3, arm: Int[Array, "k"], gain: Float[Array, "k"]) -> Exp3:
        mean, played = _means(arms, arm, gain)
        weight = state.weight + jnp.where(played, explore * mean / (arms * chance(state)), 0.0)
        return Exp3(weight - jnp.max(weight))

    return Schedule(of, lambda: Exp3(jnp.zeros(arms, jnp.float32)), choose, learn)


def _ucb1(of: Names, arms: int) -> Schedule:
    def choose(key: Key, state: Ucb1, used: Float[Array, ""], size: int) -> Int[Array, "k"]:
        del key, used
        count = jnp.maximum(state.count, 1)
        bound = state.total / count + jnp.sqrt(2 * jnp.log(jnp.maximum(jnp.sum(state.count), 1)) / count)
        return jnp.full(size, jnp.argmax(jnp.where(state.count > 0, bound, jnp.inf)), jnp.int32)

    def learn(state: Ucb1, arm: Int[Array, "k"], gain: Float[Array, "k"]) -> Ucb1:
        mean, played = _means(arms, arm, gain)
        return Ucb1(state.count + played, state.total + jnp.where(played, mean, 0.0))

    zero = jnp.zeros(arms, jnp.float32)
    return Schedule(of, lambda: Ucb1(zero, zero), choose, learn)


def _means(arms: int, arm: Int[Array, "k"], gain: Float[Array, "k"]) -> tuple[Float[Array, "arms"], Array]:
    """Mean gain of each arm in this round, and which arms there are labels of."""
    mine = arm[None, :] == jnp.arange(arms)[:, None]
    number = jnp.sum(mine, axis=1)
    total = jnp.sum(jnp.where(mine, gain.astype(jnp.float32), 0.0), axis=1)
    return total / jnp.maximum(number, 1), number > 0


def _arms(name: str, of: Names, fewest: int) -> Names:
    """The names, checked."""
    known = registry.names("select")
    if len(of) < fewest:
        raise InputError(f"schedule.of: {list(of)} is too short; {name} needs at least {fewest} selections")
    for arm in of:
        if arm not in known:
            raise InputError(f"schedule.of: unknown select {arm!r}; there are {', '.join(known)}")
        for option in registry.options("select", arm):
            if option.default is inspect.Parameter.empty:
                raise InputError(f"schedule.of: {arm} has no default for {option.name}; take another")
    return of
