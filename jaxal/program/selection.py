"""The batch selection of a look: candidates and the training set by their features, and who gets a label."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxal.committee.evaluation import Committee, backbone
from jaxal.core import registry
from jaxal.core.precision import exact
from jaxal.core.types import Candidates, Kernel, Key, Params, Schedule, Select, Structure
from jaxal.data import buffer as buffers
from jaxal.data import neighbors
from jaxal.data.queue import Queue
from jaxal.explore.stepping import where

TOGETHER = 32  # structures of the training set whose features are found at a time


class Chooser(NamedTuple):
    """What has to be static about a selection."""

    committee: Committee
    kernel: Kernel
    select: Select
    near: neighbors.Spec
    size: int  # labels, at most
    schedule: Schedule | None = None  # None: `select` picks all of them
    arms: tuple[Select, ...] = ()  # the selections of the schedule


class Course(NamedTuple):
    """How a schedule stands, and the running mean that gains are relative to."""

    schedule: Any = ()
    error: Any = ()  # [] eV/Å, mean over the labels of a round, averaged over the rounds
    rounds: Any = ()  # []

    @classmethod
    def begun(cls, schedule: Schedule | None) -> "Course":
        """Before the first label; empty where nothing is scheduled."""
        zero = jnp.zeros((), jnp.float32)
        return cls() if schedule is None else cls(schedule.init(), zero, zero)


def choose(
    chooser: Chooser,
    key: Key,
    params: Params,
    buffer: buffers.Buffer,
    structures: Structure,
    score: Float[Array, "c"],
    wants: Bool[Array, "c"],
    course: Course = Course(),  # noqa: B008
    used: Float[Array, ""] | float = 0.0,
    queue: Queue | None = None,
) -> tuple[Int[Array, "k"], Bool[Array, ""], Int[Array, "k"]]:
    """Rows of `structures` [c] to label, -1 = none; whether a wanted one has more neighbors than there is room for; and
    the arm of the schedule that picked each row, -1 = none. `used` is the fraction of the label budget that is spent.
    Known is what has a label, held out or not, and what waits for one in the `queue` or is at work.

    `params` are of the committee, [r] leading; the first set of weights makes the features. Where nobody wants a label
    nothing is computed, and features that the selection does not read are not either.
    """
    first = backbone(chooser.committee, jax.tree.map(lambda x: x[0], params))

    @exact
    def features(structures: Structure) -> tuple[Float[Array, "b f"], Bool[Array, "b"]]:
        near = neighbors.find(chooser.near, structures)
        return chooser.kernel(chooser.committee.potential, first, structures, near), near.overflow

    def among():
        rows, labeled = buffer.structure, jnp.arange(buffers.capacity(buffer)) < buffer.count
        if queue is not None:
            rows = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), rows, queue.structure)
            labeled = jnp.concatenate([labeled, queue.ticket >= 0])
        # a free row is seen as the first candidate
        known = where(labeled, rows, jax.tree.map(lambda x: x[:1], structures))
        each = jax.lax.map(
            lambda structure: features(jax.tree.map(lambda x: x[None], structure))[0][0], known, batch_size=TOGETHER
        )
        own, crowded = features(structures)
        candidates = Candidates(score, own, wants, each, labeled)
        if chooser.schedule is None:
            chosen, arm = exact(chooser.select)(key, candidates, chooser.size), none
        else:
            by = chooser.schedule, chooser.arms, chooser.size
            chosen, arm = scheduled(*by, key, candidates, course.schedule, jnp.asarray(used))
        return chosen, jnp.any(crowded & wants), arm

    none = jnp.full(chooser.size, -1, jnp.int32)

    def nobody():
        return none, jnp.zeros((), bool), none

    return jax.lax.cond(jnp.any(wants), among, nobody)


def arms_of(schedule: Schedule | None) -> tuple[Select, ...]:
    """The selections of a schedule, with their default options."""
    return tuple(registry.get("select", name) for name in (schedule.of if schedule else ()))


def scheduled(
    schedule: Schedule,
    arms: tuple[Select, ...],
    size: int,
    key: Key,
    candidates: Candidates,
    state: Any,
    used: Float[Array, ""],
) -> tuple[Int[Array, "k"], Int[Array, "k"]]:
    """Rows [`size`] and the arm of each, -1 = none.

    Arm after arm picks its share of what is left; one without a share is not run. `state` is the schedule's, `used` the
    fraction of the label budget that is spent.
    """
    key_arm, key = jax.random.split(key)
    drawn = schedule.choose(key_arm, state, used, size)
    # as many draws count as there are labels to give: the shares of a few labels are those of many
    counts = jnp.arange(size) < jnp.sum(candidates.eligible)
    share = jnp.sum((drawn[None, :] == jnp.arange(len(arms))[:, None]) & counts[None, :], axis=1)
    rows, picked_by = jnp.full(size, -1, jnp.int32), jnp.full(size, -1, jnp.int32)
    for number, select in enumerate(arms):

        def pick(left: Bool[Array, "c"], select: Select = select, number: int = number) -> Int[Array, "k"]:
            key_pick = jax.random.fold_in(key, number)
            return exact(select)(key_pick, candidates._replace(eligible=left), size)

        def nothing(left: Bool[Array, "c"]) -> Int[Array, "k"]:
            del left
            return jnp.full(size, -1, jnp.int32)

        taken = jnp.zeros(candidates.eligible.shape, bool).at[_or_out(rows, candidates)].set(True, mode="drop")
        picks = jax.lax.cond(share[number] > 0, pick, nothing, candidates.eligible & ~taken)
        picks = jnp.where(jnp.arange(size) < share[number], picks, -1)
        order = jnp.argsort(jnp.concatenate([rows, picks]) < 0, stable=True)[:size]
        rows = jnp.concatenate([rows, picks])[order]
        picked_by = jnp.concatenate([picked_by, jnp.where(picks >= 0, number, -1)])[order]
    return rows, picked_by


def _or_out(rows: Int[Array, "k"], candidates: Candidates) -> Int[Array, "k"]:
    """The rows, and where there is none a number beyond all rows."""
    return jnp.where(rows >= 0, rows, candidates.eligible.shape[0])


def taught(
    schedule: Schedule | None, course: Course, arm: Int[Array, "k"], error: Float[Array, "k"], ok: Bool[Array, "k"]
) -> Course:
    """The course after labels [k]: the arm that picked each, and how wrong the committee was about it before.

    A label's gain is half of its largest force error (eV/Å) over the running mean of all rounds' so far, at most 1: the
    usual error gains a half, whatever the training has come to, and one of twice that or more gains one.
    """
    if schedule is None:
        return course
    counts = ok & (arm >= 0) & jnp.isfinite(error)
    number = jnp.sum(counts)
    error = jnp.where(counts, error, 0.0).astype(jnp.float32)
    rounds = course.rounds + (number > 0)
    now = jnp.sum(error) / jnp.maximum(number, 1)
    # the last sixteen rounds or so: errors fall as training goes on
    mean = course.error + jnp.where(number > 0, now - course.error, 0.0) / jnp.clip(rounds, 1, 16)
    gain = jnp.clip(0.5 * error / jnp.where(mean > 0, mean, 1.0), 0.0, 1.0)
    return Course(schedule.learn(course.schedule, jnp.where(counts, arm, -1), gain), mean, rounds)
