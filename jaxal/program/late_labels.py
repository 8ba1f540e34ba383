"""The second program of a pooled run: labels that have come are learned from, and what waits is judged anew.

It runs between two segments. The committee is asked about the new labels before it learns from them, so they are out
of sample and calibrate the gate; afterwards it is asked about everything in the queue, and what it has become sure of
is dropped. The walker that came upon a labeled frame may return to it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from jaxal.acquire.gate import estimated
from jaxal.committee import evaluation as committees
from jaxal.core import devices
from jaxal.core.types import Label, Neighbors, Prediction, Structure
from jaxal.data import fragments, neighbors
from jaxal.data import queue as queues
from jaxal.explore.stepping import where
from jaxal.program import lessons, reports
from jaxal.program import state as states
from jaxal.program.reports import Lesson
from jaxal.program.state import Limits, Parts, State, Static
from jaxal.program.step import driving
from jaxal.uncertainty.support import is_supported, novelty


class Arrivals(NamedTuple):
    """Labels that have come [a]; a row whose `there` is false is empty."""

    structure: Structure
    label: Label  # energies relative to the reference energies; failed ones are not ok
    ticket: Int[Array, "a"]  # -1: of a label that no row of the queue waits for
    probe: Bool[Array, "a"]
    walker: Int[Array, "a"]  # -1: none
    there: Bool[Array, "a"]


class Absorbed(NamedTuple):
    """What the committee had said of the labels, and how it stands now."""

    score: Float[Array, "a"]  # before training
    estimate: Float[Array, "a"]  # eV/Å, estimated error before training; NaN where the gate estimates none, or none yet
    error: Float[Array, "a"]  # eV/Å, largest force error of an atom before training; NaN where not ok
    rmse: Float[Array, "a"]  # eV/Å, force RMSE before training; NaN where not ok
    loss: Float[Array, ""]
    fold_rmse: Float[Array, ""]  # eV/Å
    dropped: Int[Array, ""]  # waiting structures that the committee has become sure of


def make_absorb(parts: Parts, static: Static) -> Callable[[State, Limits, Arrivals], tuple[State, Absorbed]]:
    """The function to compile: (state, limits, arrivals) -> (state, report). Donate the state.

    As in a segment, a problem that undoes it leaves the state as it was.
    """
    mesh, cutoff = parts.committee.mesh, parts.committee.potential.cutoff

    def predicted(state: State, structures: Structure) -> tuple[Float[Array, "b"], Prediction, Neighbors]:
        """Scores, predictions and neighbors of structures [b]."""
        near = neighbors.find(static.train_near, structures)
        prediction = committees.predict(parts.committee, state.train.average, structures, near)
        return jax.vmap(parts.score)(prediction, structures), prediction, near

    def learned(state: State, limits: Limits, arrivals: Arrivals) -> tuple[State, Absorbed]:
        key, key_add, key_hold, key_fit = jax.random.split(state.key, 4)
        ok = arrivals.label.ok & arrivals.there
        score, prediction, near = predicted(state, arrivals.structure)
        hold = arrivals.probe | (jax.random.uniform(key_hold, ok.shape) < limits.holdout)
        estimate = estimated(parts.gate, state.gate, score)
        state = state._replace(key=key, problems=jnp.where(jnp.any(near.overflow & ok), states.NEIGHBORS_FULL, 0))
        arm = jnp.where(arrivals.probe, -1, queues.arm_of(state.queue, arrivals.ticket))
        lesson = Lesson(arrivals.structure, score, prediction.force.mean(1), arrivals.label, ok, hold, arm)
        state, taught = lessons.teach(parts, static, limits, state, lesson, (key_add, key_fit))
        failed = jnp.any(arrivals.there & ~ok)
        state = state._replace(
            labels=state.labels + jnp.sum(arrivals.there, dtype=jnp.int32),
            problems=(state.problems | jnp.where(failed, states.LABEL_FAILED, 0)).astype(jnp.int32),
        )
        return state, Absorbed(score, estimate, taught.error, taught.rmse, taught.loss, taught.fold_rmse, jnp.zeros(()))

    def judged(state: State, arrivals: Arrivals) -> tuple[State, Int[Array, ""]]:
        """The queue by the committee as it is now, and where walkers may return to."""
        came = arrivals.structure.charge.shape[0]
        waiting = state.queue.ticket >= 0
        # a free row is evaluated as the first trusted frame, which has no more neighbors than there is room for
        rows = where(waiting, state.queue.structure, jax.tree.map(lambda x: x[:1], state.trusted.structure))
        both = jax.tree.map(lambda x, y: jnp.concatenate([x, y]), arrivals.structure, rows)
        score, prediction, near = predicted(state, both)
        # what is isolated and was not trained on so is not certain, whatever the score
        unknown = jax.vmap(lambda s, n: fragments.unknown(cutoff, s, n, state.known))(both, near)
        score = jnp.where(unknown, jnp.inf, score)
        new = jax.vmap(novelty, (None, 0, 0, 0, None))(state.support, prediction.feature, both, near, cutoff)
        supported = is_supported(new)
        ok = arrivals.label.ok & arrivals.there
        # A failed label is no frame to return to, and of several for one walker the last counts: the others get the
        # number of a walker that there is not.
        comes = ok & (arrivals.walker >= 0)
        later = jnp.triu(arrivals.walker[:, None] == arrivals.walker[None, :], 1) & comes[None, :]
        walker = jnp.where(comes & ~jnp.any(later, axis=1), arrivals.walker, state.quiet.shape[0])
        moves = driving(parts.drive, jax.tree.map(lambda x: x[:came], prediction), jnp.maximum(arrivals.walker, 0))
        # what the biases have learned stays that of the frame before: they have not seen the walker come here
        new, old = reports.Trusted(arrivals.structure, *moves), state.trusted._replace(drift=())
        trusted = jax.tree.map(lambda old, now: old.at[walker].set(now, mode="drop"), old, new)
        trusted = trusted._replace(drift=state.trusted.drift)
        queue = state.queue._replace(score=score[came:])
        flagged = parts.gate.step(state.gate, queue.score)[1] | ~supported[came:]
        arrived = queues.holds(queue, jnp.where(arrivals.there, arrivals.ticket, -1))
        sure = queues.waits(queue) & ~arrived & ~flagged & ~queue.probe
        problems = state.problems | jnp.where(jnp.any(near.overflow[came:] & waiting), states.NEIGHBORS_FULL, 0)
        queue = queues.keep(queue, waiting & ~arrived & ~sure)
        return state._replace(queue=queue, trusted=trusted, problems=problems.astype(jnp.int32)), jnp.sum(sure)

    def absorb(state: State, limits: Limits, arrivals: Arrivals) -> tuple[State, Absorbed]:
        after, report = learned(state, limits, arrivals)
        after, dropped = judged(after, arrivals)
        after = devices.laid(mesh, states.LAYOUT, states.unless_undone(state, after))
        return after, devices.laid(mesh, P(), report._replace(dropped=dropped))

    return absorb
