"""The compiled programs of a task: those of a model serve all strategies that have it.

Every program takes all seeds on a leading axis [s]. On accelerators that axis is vmapped; on CPUs, where the small
matrices of one seed do not fill the cores, threads take the seeds beside each other.
"""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxal.committee import evaluation as committees
from jaxal.committee import weights
from jaxal.committee.evaluation import Committee, backbone
from jaxal.committee.isolated_atoms import exact_when_isolated
from jaxal.config.schema import Part
from jaxal.contest.schema import Model, Task
from jaxal.core.placement import placement
from jaxal.core.precision import exact
from jaxal.core.types import Candidates, Key, Params, Prediction, Structure
from jaxal.data import buffer as buffers
from jaxal.data import neighbors
from jaxal.data.structure import Table
from jaxal.explore.stepping import where
from jaxal.program.selection import Course, arms_of, scheduled, taught
from jaxal.run import assembly
from jaxal.train import fit as training
from jaxal.train import posterior

GROUP = {"cpu": 64}  # structures evaluated by one call of a program
WIDEST = 256  # the same on accelerators


def over_seeds(function: Callable[..., Any], shared: int = 0) -> Callable[..., Any]:
    """`function(one seed's arguments...)` compiled, for arguments and results with a leading axis [s].

    The last `shared` arguments have no such axis: all seeds have the same.
    """

    def batched(*arguments: Any) -> Any:
        return jax.vmap(function, (0,) * (len(arguments) - shared) + (None,) * shared)(*arguments)

    if not placement().cpu:
        return jax.jit(batched)
    program = jax.jit(function)

    def each(*arguments: Any) -> Any:
        own = len(arguments) - shared
        here, same = jax.tree.map(_on_host, arguments[:own]), arguments[own:]
        seeds = jax.tree.leaves(here)[0].shape[0]
        rows = [(*jax.tree.map(lambda x, seed=seed: x[seed], here), *same) for seed in range(seeds)]
        # the first alone: it may have to be compiled
        first = jax.block_until_ready(program(*rows[0]))
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            others = list(threads.map(lambda row: jax.block_until_ready(program(*row)), rows[1:]))
        return jax.tree.map(lambda *x: np.stack([np.asarray(each) for each in x]), first, *others)

    return each


def _on_host(leaf: Any) -> Any:
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf)


def in_groups(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function(weights of a seed, structures)` for any number of structures [s b], in groups of one size.

    So one compilation serves whatever number there is. The last group is filled up with its own last structure.
    """
    program = over_seeds(function)
    size = GROUP.get(placement().platform, WIDEST)

    def all_of(params: Any, structures: Structure) -> Any:
        number = structures.charge.shape[1]
        groups = []
        for start in range(0, number, size):
            rows = np.minimum(np.arange(start, start + size), number - 1)
            groups.append(program(params, jax.tree.map(lambda x, rows=rows: x[:, rows], structures)))
        return jax.tree.map(lambda *x: np.concatenate([np.asarray(y) for y in x], axis=1)[:, :number], *groups)

    return all_of


class Programs(NamedTuple):
    """Of one task and model."""

    committee: Committee
    init: Callable[..., Any]  # (key data, first structure, its neighbors) -> weights
    fresh: Callable[..., Any]  # (weights) -> training state
    add: Callable[..., Any]  # (buffer, key data, structures [k], labels [k], wanted, held, shares [k 3]) -> buffer
    train: Callable[..., Any]  # (training state, buffer, key data, steps, rate, final rate) -> training state
    predict: Callable[[Any, Structure], Prediction]  # (weights, structures [s b]) -> [s b ...]


def committee_of(model: Model, part: Part, table: Table, isolated: bool = False) -> Committee:
    """The committee of a model for the elements of a table, with exact isolated atoms where `isolated`."""
    settings = model.committee
    potential = weights.collected(part.bind()(table))
    potential = exact_when_isolated(potential, table) if isolated else potential
    heads = settings.members if settings.kind == "shared" else 1
    method = model.uncertainty.bind()(potential, len(table))
    return Committee(potential, settings.members, settings.batching, heads, settings.signs, len(table), method)


def recipe_of(task: Task, forces: bool, stress: bool) -> training.Recipe:
    """How a task is trained: on the forces and stresses that there are."""
    assert task.train is not None
    recipe = assembly.recipe(task.train)
    weights = recipe.weights
    weights = weights._replace(force=weights.force if forces else 0.0, stress=weights.stress if stress else 0.0)
    return recipe._replace(weights=weights)


def make_programs(committee: Committee, recipe: training.Recipe, near: neighbors.Spec) -> Programs:
    """The programs of a model; `near` are the neighbors of everything that is trained on or predicted."""

    def init(key: Array, structure: Structure, listed: Any) -> Params:
        return committees.init(committee, jax.random.wrap_key_data(key), structure, listed)

    def add(buffer: buffers.Buffer, key: Array, structures: Structure, labels: Any, wanted: Any, held: Any, share: Any):
        key = jax.random.wrap_key_data(key)
        return buffers.add(buffer, key, structures, labels, wanted, held, recipe.bootstrap, share)[0]

    def train(state: training.TrainState, buffer: buffers.Buffer, key: Array, steps: Any, rate: Any, final: Any):
        key = jax.random.wrap_key_data(key)
        state, _ = training.fit(committee, recipe, near, state, buffer, key, steps, rate, final)
        return posterior.learned(committee, near, state, buffer)

    def predict(params: Params, structures: Structure) -> Prediction:
        return committees.predict(committee, params, structures, neighbors.find(near, structures))

    return Programs(
        committee,
        over_seeds(init),
        over_seeds(functools.partial(training.init, recipe)),
        over_seeds(add),
        over_seeds(train, shared=3),
        in_groups(predict),
    )


def make_features(committee: Committee, kernel: Part, near: neighbors.Spec) -> Callable[[Any, Structure], Array]:
    """The kernel's features of structures [s b], by the first set of weights."""
    function = kernel.bind()

    @exact
    def features(params: Params, structures: Structure) -> Float[Array, "b f"]:
        first = backbone(committee, jax.tree.map(lambda x: x[0], params))
        return function(committee.potential, first, structures, neighbors.find(near, structures))

    return in_groups(features)


def make_score(score: Part) -> Callable[[Prediction, Structure], Float[Array, "s b"]]:
    """Scores of predictions [s b]."""
    function = score.bind()
    return over_seeds(lambda prediction, structures: jax.vmap(function)(prediction, structures))


def make_select(select: Part, schedule: Part, size: int) -> Callable[..., Any]:
    """The choice of `size` candidates, by one selection or by a schedule of several.

    (key data, score [s c], feature, eligible, known, labeled, state of the schedule, spent fraction of the budget
    [s]) -> rows [s k], -1 = nothing more is worth a label, and the arm of the schedule that picked each, -1 = none.
    """
    selection, several = select.bind(), schedule.bind()()
    arms = arms_of(several)

    @exact
    def chosen(
        key: Array,
        score: Any,
        feature: Any,
        eligible: Bool[Array, "c"],
        known: Any,
        labeled: Any,
        state: Any,
        used: Any,
    ):
        candidates = Candidates(score, feature, eligible, known, labeled)
        if several is None:
            rows = selection(jax.random.wrap_key_data(key), candidates, size)
            arm = jnp.full(size, -1, jnp.int32)
        else:
            rows, arm = scheduled(several, arms, size, jax.random.wrap_key_data(key), candidates, state, used)
        rows = jnp.where(rows >= 0, jnp.where(eligible[jnp.maximum(rows, 0)], rows, -1), -1)
        return rows, jnp.where(rows >= 0, arm, -1)

    return over_seeds(chosen)


def begun(schedule: Part, seeds: int) -> Course:
    """The course of a schedule before the first label [s]; empty where nothing is scheduled."""
    course = Course.begun(schedule.bind()())
    return jax.tree.map(lambda x: np.broadcast_to(np.asarray(x)[None], (seeds, *np.shape(x))), course)


def make_lessons(schedule: Part) -> Callable[..., Course]:
    """(course [s], arm [s k], error of the committee before it learned [s k], ok [s k]) -> course [s]."""
    several = schedule.bind()()
    if several is None:
        return lambda course, *_: course
    return over_seeds(functools.partial(taught, several))


def filled(buffer: buffers.Buffer, example: Structure) -> tuple[Structure, Bool[np.ndarray, "s c"]]:
    """The structures of buffers [s c], an example [s] in rows that are not trained on, and which rows are."""
    labeled: Any = np.asarray(jax.vmap(buffers.trainable)(buffer))
    like = jax.tree.map(lambda x: np.broadcast_to(x[:, None], (*labeled.shape, *x.shape[1:])), example)
    return jax.vmap(where)(labeled, buffer.structure, like), labeled


def keys(seed: int, seeds: int, *numbers: int) -> np.ndarray:
    """Key data [s 2]: the same for all strategies, another for each seed of the contest and each set of numbers."""
    data = []
    for row in range(seeds):
        key: Key = jax.random.key(seed)
        for number in (row, *numbers):
            key = jax.random.fold_in(key, number)
        data.append(np.asarray(jax.random.key_data(key)))
    return np.stack(data)
