"""Labels that have come: into the training set, learned from, and what the gate and the bound make of them."""

import functools

import jax
import jax.numpy as jnp

from jaxal.core.types import (
    Key,
)
from jaxal.data import buffer as buffers
from jaxal.data import fragments, neighbors
from jaxal.program.reports import Lesson, Taught
from jaxal.program.selection import taught
from jaxal.program.state import BUFFER_FULL, NEIGHBORS_FULL, NOT_FINITE, Limits, Parts, State, Static, judge_of, single
from jaxal.train import fit as training
from jaxal.train import posterior
from jaxal.train import support as supports
from jaxal.train.calibrate import calibrate
from jaxal.train.loss import force_rmse, max_force_error


def teach(
    parts: Parts, static: Static, limits: Limits, state: State, lesson: Lesson, keys: tuple[Key, Key]
) -> tuple[State, Taught]:
    """Adds labels to the training set, retrains all members and calibrates the gate."""
    structure, score, force, label, ok, hold, arm = lesson
    key_add, key_fit = keys
    buffer, full = buffers.add(state.buffer, key_add, structure, label, ok, hold, static.recipe.bootstrap)
    steps = jnp.where(jnp.any(ok & ~hold), limits.steps, 0)
    with jax.named_scope("training"):
        fit = functools.partial(training.fit, parts.committee, static.recipe, static.train_near)
        train, loss = fit(state.train, buffer, key_fit, steps, limits.rate, limits.final_rate)
        train = posterior.learned(parts.committee, static.train_near, train, buffer)
    error = max_force_error(force, structure, label)
    fresh = state.fresh.push(score, error, ok)
    course = state.course if arm is None else taught(parts.schedule, state.course, arm, error, ok)
    with jax.named_scope("gate"):
        gate = state.gate if parts.gate.observe is None else parts.gate.observe(state.gate, score, error, ok)
        gate, fold, crowded = calibrate(judge_of(parts, static), gate, train.average, buffer, fresh)
        support = supports.learned(parts.committee, static.train_near, train.average, buffer)
    near = neighbors.find(static.train_near, structure)
    cutoff, number = static.train_near.cutoff, len(static.table)
    known = state.known | fragments.isolated_species(cutoff, structure, near, ok & ~hold, number)
    finite = jax.tree.reduce(jnp.logical_and, jax.tree.map(lambda x: jnp.all(jnp.isfinite(x)), train.average))
    problems = (
        state.problems
        | jnp.where(full, BUFFER_FULL, 0)
        | jnp.where(jnp.any(near.overflow & ok) | crowded, NEIGHBORS_FULL, 0)
        | jnp.where(finite, 0, NOT_FINITE)
    )
    state = state._replace(buffer=buffer, fresh=fresh, train=train, gate=gate, course=course)
    state = state._replace(known=known, support=support)
    state = state._replace(problems=problems.astype(jnp.int32))
    each = jax.vmap(lambda f, s, lab: force_rmse(f[None], single(s), single(lab), jnp.ones(1, bool)))
    nan = jnp.asarray(jnp.nan, force.dtype)
    rmse = each(force, structure, label)
    return state, Taught(jnp.where(ok, error, nan), jnp.where(ok, rmse, nan), jnp.mean(loss), fold)
