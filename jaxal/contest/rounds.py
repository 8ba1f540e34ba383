"""A task of a contest: every strategy, all seeds together, round by round.

Of each strategy the state after every finished round is a checkpoint, which also holds its results: a contest that is
killed goes on behind it, and comes to the same numbers.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np

from jaxal.contest import data as datas
from jaxal.contest import programs, walking
from jaxal.contest.arena import Arena, cast, cast_structures, kept, of_all, rows_of
from jaxal.contest.measure import measure
from jaxal.contest.schema import Entrant, Model
from jaxal.core.types import InputError, Structure
from jaxal.data import buffer as buffers
from jaxal.data import neighbors
from jaxal.data.structure import to_atoms
from jaxal.program.selection import Course
from jaxal.run import checkpoint, training_data
from jaxal.train import fit as training
from jaxal.train.reference import with_isolated

INIT, FIT, ADD, SELECT, WALK = range(5)  # what a key is for
Records = list[dict[str, Any]]


class Standing(NamedTuple):
    """How all seeds [s] of a strategy stand after a round."""

    train: training.TrainState  # [s r]
    buffer: buffers.Buffer  # [s]
    taken: np.ndarray  # [s b] frames of the pool that are labeled
    paid: np.ndarray  # [s] labels asked for
    failed: np.ndarray  # [s]
    walkers: Structure  # [s w]; none in a task with a pool
    factor: np.ndarray  # [s] of the score, that bounds the error
    course: Course  # [s] of the schedule


def compete(
    arena: Arena,
    entrant: Entrant,
    folder: Path,
    report: Callable[[Records], None],
    begun: Callable[[int], None] = lambda _: None,
) -> Records:
    """One strategy through all rounds, from its last checkpoint in `folder` on; returns its results.

    `report` is called with all results so far after each round, `begun` with the number of each round before it. When
    all rounds are done and reported, the folder is removed.
    """
    if checkpoint.latest(folder) is None:
        begun(0)
        standing, records = _first_round(arena, entrant)
        standing = _entered(standing, entrant)
        checkpoint.save(folder, 0, standing, {"records": records})
    else:
        standing, host, _ = checkpoint.restore(folder, _entered(_untrained(arena, entrant.model), entrant))
        records = host["records"]
    report(records)
    for number in range(records[-1]["round"] + 1, len(arena.task.budgets)):
        begun(number)
        clock = _Clock()
        standing = _bought(arena, entrant, standing, number, clock)
        standing = _trained(arena, entrant.model, standing, number, clock)
        records = records + _results(arena, entrant, standing, number, clock)
        checkpoint.save(folder, number, standing, {"records": records})
        report(records)
    shutil.rmtree(folder, ignore_errors=True)
    return records


def _entered(standing: Standing, entrant: Entrant) -> Standing:
    """The standing of a model as one strategy begins from it."""
    return standing._replace(course=programs.begun(entrant.schedule, len(standing.paid)))


class _Clock:
    """Seconds of the parts of a round."""

    def __init__(self) -> None:
        self.last, self.seconds = time.monotonic(), {}

    def took(self, part: str) -> None:
        now = time.monotonic()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self.last
        self.last = now


def _programs(arena: Arena, model: Model) -> programs.Programs:
    """Those of a model, made once."""
    data, part = arena.source.data, arena.task.potential
    assert part is not None

    def make() -> programs.Programs:
        exact = bool(data.isolated) and bool(np.any(data.pool.charge == 0))  # what leaves an ion may be one itself
        committee = programs.committee_of(model, part, data.table, exact)
        return programs.make_programs(committee, programs.recipe_of(arena.task, data.forces, data.stress), arena.near)

    return kept(arena, ("programs", model), make)


def _untrained(arena: Arena, model: Model) -> Standing:
    """All seeds with the first labels: the same for all strategies of a model."""
    contest, data, task = arena.contest, arena.source.data, arena.task
    seeds, program = arena.seeds, _programs(arena, model)
    assert task.train is not None
    number = datas.key_of(arena.name)
    example = jax.tree.map(lambda x: x[:, 0], arena.first)
    listed = programs.over_seeds(lambda structure: neighbors.build(arena.near, structure))(example)
    params = program.init(programs.keys(contest.seed, seeds, number, INIT), example, listed)
    real = np.asarray(arena.first.species) >= 0
    near = np.asarray(
        programs.in_groups(lambda _, s: jnp.sum(neighbors.find(arena.near, s).index < s.species.shape[-1], (1, 2)))(
            np.zeros(seeds), arena.first
        )
    )
    label = arena.first_label
    if not data.forces:  # a force that would change the energies by their spread within an angstrom
        spread = np.maximum(np.std(np.asarray(label.energy), axis=1), 1e-3)
        label = label._replace(force=np.broadcast_to(spread[:, None, None, None], np.shape(label.force)))
    rows = [
        with_isolated(
            training.normalize(weights, labels, structures, float(listed.sum() / atoms.sum())), reference, data.isolated
        )
        for weights, labels, structures, listed, atoms, reference in zip(
            rows_of(params), rows_of(label), rows_of(arena.first), near, real, arena.reference, strict=True
        )
    ]
    train = program.fresh(jax.tree.map(lambda *x: np.stack([np.asarray(y) for y in x]), *rows))
    committee = program.committee
    empty = buffers.init(jax.tree.map(lambda x: x[0], example), committee.members, task.budgets[-1])
    count = np.shape(label.energy)[1]
    held = training_data.spread_hold(count, task.train.holdout) if task.train.holdout else np.zeros(count, bool)
    ok = np.asarray(label.ok)
    buffer = program.add(
        jax.tree.map(lambda x: np.broadcast_to(np.asarray(x)[None], (seeds, *np.shape(x))), empty),
        programs.keys(contest.seed, seeds, number, ADD, 0),
        arena.first,
        arena.first_label,
        ok,
        np.broadcast_to(held[None], (seeds, count)),
        _shares(arena, arena.drawn) if task.live is None else np.ones((seeds, count, 3), label.energy.dtype),
    )
    taken = np.zeros((seeds, np.shape(data.pool.charge)[0]), bool)
    if data.labels is not None:
        np.put_along_axis(taken, arena.drawn, True, axis=1)
    walkers = jax.tree.map(lambda x: x[:, :0], arena.first) if task.live is None else _starts(arena)
    paid, failed, factor = np.full(seeds, count), np.sum(~ok, axis=1), np.full(seeds, np.inf)
    return Standing(train, buffer, taken, paid, failed, walkers, factor, Course())


def _starts(arena: Arena) -> Structure:
    """Where the walkers [s w] begin: at the start structures in turn."""
    live = arena.task.live
    assert live is not None
    pool = cast_structures(arena.source.data.pool, arena.contest.precision)
    rows = np.arange(live.explore.walkers) % np.shape(pool.charge)[0]
    return of_all(jax.tree.map(lambda x: np.asarray(x)[rows], pool), arena.seeds)


def _first_round(arena: Arena, entrant: Entrant) -> tuple[Standing, Records]:
    """The round before anything is chosen, which strategies of one model have in common."""

    def make() -> tuple[Standing, Records]:
        clock = _Clock()
        standing = _trained(arena, entrant.model, _untrained(arena, entrant.model), 0, clock)
        return standing, _results(arena, entrant, standing, 0, clock)

    standing, records = kept(arena, ("first", entrant.model), make)
    return standing, [record | {"strategy": entrant.name} for record in records]


def _trained(arena: Arena, model: Model, standing: Standing, number: int, clock: _Clock) -> Standing:
    train, seeds = arena.task.train, arena.seeds
    assert train is not None
    dtype = np.dtype(arena.contest.precision)
    fit = _programs(arena, model).train
    key = programs.keys(arena.contest.seed, seeds, datas.key_of(arena.name), FIT, number)
    steps = np.int32(train.steps if number else train.initial_steps)
    rate, final = (np.asarray(value, dtype) for value in (train.learning_rate, train.final_learning_rate))
    new = fit(standing.train, standing.buffer, key, steps, rate, final)
    jax.block_until_ready(new)
    clock.took("train_s")
    return standing._replace(train=new)


def _shares(arena: Arena, rows: np.ndarray) -> np.ndarray:
    """What rows of the pool [s k] count in the loss, [s k 3]."""
    share = arena.source.data.share
    assert share is not None
    return share[rows].astype(np.dtype(arena.contest.precision))


class Offer(NamedTuple):
    """What a strategy chooses from."""

    structure: Structure  # [s c]
    score: np.ndarray  # [s c]
    eligible: np.ndarray  # [s c]
    energy: np.ndarray | None  # [s c] committee mean, eV, relative to the references; None in a live task
    force: np.ndarray  # [s c n 3] committee mean, eV/Å
    visited: walking.Visited | None  # in a live task


def _bought(arena: Arena, entrant: Entrant, standing: Standing, number: int, clock: _Clock) -> Standing:
    """The strategy chooses candidates, whose labels are added."""
    program, params = _programs(arena, entrant.model), standing.train.average
    offer = _offered(arena, entrant, standing, number, clock)
    features = kept(
        arena,
        ("features", entrant.model, entrant.kernel),
        lambda: programs.make_features(program.committee, entrant.kernel, arena.near),
    )
    among, budgets = offer.structure, arena.task.budgets
    filled, labeled = programs.filled(standing.buffer, jax.tree.map(lambda x: np.asarray(x)[:, 0], among))
    known, own = features(params, filled), features(params, among)
    clock.took("features_s")
    size = budgets[number] - budgets[number - 1]
    parts = entrant.select, entrant.schedule, size
    select = kept(arena, ("select", *parts), lambda: programs.make_select(*parts))
    key = programs.keys(arena.contest.seed, arena.seeds, datas.key_of(arena.name), SELECT, number)
    score, used = np.where(offer.eligible, offer.score, 0), np.asarray(standing.paid / budgets[-1], np.float32)
    chosen = select(key, score, own, offer.eligible, known, labeled, standing.course.schedule, used)
    rows, arm = map(np.asarray, chosen)
    clock.took("select_s")
    return _labeled(arena, entrant, standing, offer, rows, arm, number, clock)


def _start(data: datas.Data) -> ase.Atoms:
    """The first start structure of a live task."""
    return to_atoms(jax.tree.map(lambda x: x[0], data.pool), data.table)


def _offered(arena: Arena, entrant: Entrant, standing: Standing, number: int, clock: _Clock) -> Offer:
    """The pool as the committee sees it, or what its walkers visit."""
    data, live, params = arena.source.data, arena.task.live, standing.train.average
    program = _programs(arena, entrant.model)
    if live is None:
        among = of_all(cast_structures(data.pool, arena.contest.precision), arena.seeds)
        prediction = program.predict(params, among)
        clock.took("predict_s")
        judge = kept(arena, ("score", entrant.score), lambda: programs.make_score(entrant.score))
        score = np.asarray(judge(prediction, among))
        eligible = ~np.asarray(standing.taken) & np.isfinite(score)
        energy, force = (np.asarray(x).mean(2) for x in (prediction.energy, prediction.force))
        return Offer(among, score, eligible, energy, force, None)
    walk = kept(
        arena,
        ("walk", entrant.model, entrant.score, entrant.bias, entrant.drive),
        lambda: walking.make_walking(program.committee, live, entrant, data.table, arena.near, _start(data)),
    )
    factor = np.asarray(standing.factor, arena.contest.precision)
    key = programs.keys(arena.contest.seed, arena.seeds, datas.key_of(arena.name), WALK, number)
    visited = jax.tree.map(np.asarray, walk(params, factor, standing.walkers, key))
    clock.took("walk_s")
    eligible = visited.seen & np.isfinite(visited.score)
    return Offer(visited.structure, visited.score, eligible, None, visited.force, visited)


def _labeled(
    arena: Arena,
    entrant: Entrant,
    standing: Standing,
    offer: Offer,
    rows: np.ndarray,
    arm: np.ndarray,
    number: int,
    clock: _Clock,
) -> Standing:
    """The standing with the labels of the chosen rows [s k] of the candidates in the training set."""
    seeds, wanted, visited = arena.seeds, rows >= 0, offer.visited
    data, every = arena.source.data, np.arange(seeds)[:, None]
    row = np.maximum(rows, 0)
    picked = jax.tree.map(lambda x: np.asarray(x)[every, row], offer.structure)
    taken, walkers, factor = np.array(standing.taken), standing.walkers, np.array(standing.factor)
    if visited is None:
        assert data.labels is not None
        answers = jax.tree.map(lambda x: np.asarray(x)[row], data.labels)
        for seed in range(seeds):
            taken[seed, rows[seed][wanted[seed]]] = True
    else:
        assert arena.source.service is not None
        flat = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), picked)
        paid = datas.paid(arena.source.service, flat, wanted.reshape(-1))
        answers = jax.tree.map(lambda x: np.asarray(x).reshape(*rows.shape, *np.shape(x)[1:]), paid)
        walkers = walking.onwards(visited, _starts(arena))
    structures, labels = cast(picked, answers, arena.reference, np.dtype(arena.contest.precision))
    ok = wanted & np.asarray(labels.ok)
    if data.forces:
        gap = offer.force[every, row] - np.asarray(answers.force)
        error = np.linalg.norm(np.where(np.isfinite(gap), gap, 0.0), axis=-1).max(-1)
    else:
        assert offer.energy is not None
        error = np.abs(offer.energy[every, row] - np.asarray(labels.energy))
    if visited is not None:
        for seed in range(seeds):
            pairs: Any = (np.asarray(visited.score)[seed, row[seed]], error[seed])
            estimate = walking.factor_of(*(x[ok[seed]] for x in pairs))
            factor[seed] = estimate if np.isfinite(estimate) else factor[seed]
    lessons = kept(arena, ("lessons", entrant.schedule), lambda: programs.make_lessons(entrant.schedule))
    course = lessons(standing.course, arm, np.asarray(error, np.float32), ok)
    key = programs.keys(arena.contest.seed, seeds, datas.key_of(arena.name), ADD, number)
    share = np.ones((*ok.shape, 3), labels.energy.dtype) if data.labels is None else _shares(arena, row)
    buffer = _programs(arena, entrant.model).add(standing.buffer, key, structures, labels, ok, np.zeros_like(ok), share)
    clock.took("label_s")
    return standing._replace(
        buffer=buffer,
        taken=taken,
        paid=standing.paid + wanted.sum(1),
        failed=standing.failed + (wanted & ~ok).sum(1),
        walkers=walkers,
        factor=factor,
        course=course,
    )


def _results(arena: Arena, entrant: Entrant, standing: Standing, number: int, clock: _Clock) -> Records:
    """What the test frames say of every seed. Raises InputError where a training has come to no finite numbers."""
    prediction = _programs(arena, entrant.model).predict(standing.train.average, arena.exam)
    measures = measure(prediction, arena.reference, arena.source.data)
    clock.took("test_s")
    seconds = {name: round(value, 3) for name, value in clock.seconds.items()}
    if any(each["energy_rmse"] is None for each in measures):
        raise InputError(
            f"tasks.{arena.name}: the training of {entrant.name} came to no finite numbers; lower train.learning_rate"
        )
    head = {"task": arena.name, "strategy": entrant.name, "round": number}
    return [
        head | {"seed": seed, "labels": int(standing.paid[seed]), "failed": int(standing.failed[seed])} | each | seconds
        for seed, each in enumerate(measures)
    ]
