"""What the held-out labels say: the gate's calibration and the committee's error on them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxal.committee.evaluation import Committee, predict
from jaxal.core.types import Gate, GateState, Params, Score
from jaxal.data import buffer as buffers
from jaxal.data import neighbors
from jaxal.train.loss import force_rmse, max_force_error


class Fresh(NamedTuple):
    """The latest labels as the committee met them, before it learned from them; NaN where there is none yet."""

    score: Float[Array, "c"]
    error: Float[Array, "c"]  # largest force error of an atom, eV/Å

    @classmethod
    def empty(cls, size: int, dtype: Any) -> "Fresh":
        """Room for the latest `size` labels."""
        return cls(jnp.full(size, jnp.nan, dtype), jnp.full(size, jnp.nan, dtype))

    def push(self, score: Float[Array, "k"], error: Float[Array, "k"], ok: Bool[Array, "k"]) -> "Fresh":
        """With the labels that are ok added and the oldest dropped."""
        scores = jnp.concatenate([self.score, jnp.where(ok, score, jnp.nan)])
        errors = jnp.concatenate([self.error, jnp.where(ok, error, jnp.nan)])
        order = jnp.argsort(~jnp.isnan(errors), stable=True)[-self.score.shape[0] :]  # the empty ones first
        return Fresh(scores[order], errors[order])


class Judge(NamedTuple):
    """What calibration needs: the committee, what is made of their spread, and on how many held-out labels."""

    committee: Committee
    score: Score
    gate: Gate
    near: neighbors.Spec  # of the training set
    fold: int  # held-out labels, the latest so many


def calibrate(
    judge: Judge, gate: GateState, params: Params, buffer: buffers.Buffer, fresh: Fresh | None = None
) -> tuple[GateState, Float[Array, ""], Bool[Array, ""]]:
    """The gate with its factor learned on the latest held-out labels, their force RMSE, neighbor overflow.

    `fresh` are labels that were predicted before they were trained on: out of sample as well, they count beside
    the held-out ones, which are few at first. (Prequential validation: Dawid, J. R. Stat. Soc. A 147, 278, 1984.)
    """
    capacity = buffers.capacity(buffer)
    held = buffer.held_out & (jnp.arange(capacity) < buffer.count)
    (row,) = jnp.nonzero(held[::-1], size=judge.fold, fill_value=capacity)
    valid = row < capacity
    structures, labels = buffers.rows(buffer, jnp.where(valid, capacity - 1 - row, 0))
    near = neighbors.find(judge.near, structures)
    prediction = predict(judge.committee, params, structures, near)
    score = jax.vmap(judge.score)(prediction, structures)
    force = prediction.force.mean(1)
    error = max_force_error(force, structures, labels)
    scores, errors, known = score, error, valid
    if fresh is not None:
        scores, errors = jnp.concatenate([score, fresh.score]), jnp.concatenate([error, fresh.error])
        known = jnp.concatenate([valid, ~jnp.isnan(fresh.error)])
    learned = judge.gate.calibrate(gate, scores, errors, known)
    return learned, force_rmse(force, structures, labels, valid), jnp.any(near.overflow & valid)
