"""A task of a contest: every strategy, all seeds together, round by round.

Of each strategy the state after every finished round is a checkpoint, which also holds its results: a contest that is
killed goes on behind it, and comes to the same numbers.
"""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxal import buffer as buffers
from jaxal import checkpoint, neighbors, setup
from jaxal.contest import data as datas
from jaxal.contest import programs as made
from jaxal.contest import walking
from jaxal.contest.data import Source, paid
from jaxal.contest.measure import measure, offsets
from jaxal.contest.schema import Contest, Entrant, Model, Task
from jaxal.structure import to_atoms
from jaxal.train import fit as training
from jaxal.types import InputError, Label, Structure

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


class Arena(NamedTuple):
    """A task ready to be competed in."""

    contest: Contest
    name: str
    task: Task
    source: Source
    near: neighbors.Spec
    drawn: np.ndarray  # [s k] their rows of the pool
    first: Structure  # [s k] the first structures, as the program has them
    first_label: Label  # [s k] relative to the references
    reference: np.ndarray  # [s z] eV
    exam: Structure  # [s e]
    kept: dict[Any, Any]  # programs, and the standing after the first round, of the models and parts so far

    @property
    def seeds(self) -> int:
        """How many."""
        return self.contest.seeds


def arena(contest: Contest, name: str, task: Task, source: Source) -> Arena:
    """The task with its first labels, the same for all strategies. Raises InputError where the labeler fails."""
    data, count = source.data, task.budgets[0]
    dtype = setup.dtype_of(contest.precision)
    assert task.potential is not None
    cutoff = task.potential.bind()(data.table).cutoff
    everything = jax.tree.map(lambda *x: np.concatenate(x), data.pool, data.exam)
    near = neighbors.plan(everything, cutoff, 0.0, 1.0 if task.live is None else 2.0)
    rows, drawn = [], []
    for seed in range(contest.seeds):
        rng = np.random.default_rng([contest.seed, seed, datas.key_of(name)])
        if data.labels is not None:
            chosen = rng.permutation(len(data.labels.energy))[:count]
            drawn.append(chosen)
            rows.append(jax.tree.map(lambda x, chosen=chosen: np.asarray(x)[chosen], (data.pool, data.labels)))
        else:
            rows.append(_first_live(contest, name, task, source, seed))
    structures, labels = jax.tree.map(lambda *x: np.stack(x), *rows)
    reference = np.stack(
        [
            training.reference_energies(jax.tree.map(lambda x, ok=ok: x[ok], one), label.energy[ok], len(data.table))
            for one, label, ok in zip(_rows(structures), _rows(labels), labels.ok, strict=True)
        ]
    )
    first, first_label = cast(structures, labels, reference, dtype)
    exam = _of_all(cast_structures(data.exam, dtype), contest.seeds)
    return Arena(contest, name, task, source, near, np.array(drawn, int), first, first_label, reference, exam, {})


def _rows(tree: Any) -> list[Any]:
    return [jax.tree.map(lambda x, row=row: x[row], tree) for row in range(jax.tree.leaves(tree)[0].shape[0])]


def _of_all(structures: Structure, seeds: int) -> Structure:
    """The same structures for all seeds, without copies."""
    return jax.tree.map(lambda x: np.broadcast_to(x[None], (seeds, *np.shape(x))), structures)


def cast_structures(structures: Structure, dtype: Any) -> Any:
    """Positions and cells in the program's precision."""
    return structures._replace(position=np.asarray(structures.position, dtype), cell=np.asarray(structures.cell, dtype))


def cast(structures: Structure, labels: Label, reference: np.ndarray, dtype: Any) -> tuple[Structure, Label]:
    """Structures and labels [s k] as the program has them: energies relative to the references of each seed [s z]."""
    species = np.asarray(structures.species)
    offset = np.stack([offsets(reference[s : s + 1], species[s])[0] for s in range(len(reference))])
    relative = np.where(labels.ok, np.asarray(labels.energy) - offset, 0.0)
    energy: Any = relative.astype(dtype)
    force, stress, ok = (np.asarray(x, kind) for x, kind in zip(labels[1:], (dtype, dtype, bool), strict=True))
    told: Any = (energy, force, stress, ok)
    return cast_structures(structures, dtype), Label(*told)


def _first_live(contest: Contest, name: str, task: Task, source: Source, seed: int) -> tuple[Structure, Label]:
    """The start structures and displaced copies of them, labeled."""
    assert source.service is not None and task.live is not None
    data = source.data
    starts = [to_atoms(one, data.table) for one in _rows(data.pool)]
    number = int(np.random.default_rng([contest.seed, seed, datas.key_of(name)]).integers(2**31))
    frames = setup.first_structures(starts, task.budgets[0], number)
    structures = setup.from_atoms(frames, data.table, dtype=np.dtype(contest.precision))
    labels = paid(source.service, structures, np.ones(len(frames), bool))
    if not np.asarray(labels.ok)[: len(starts)].all() or np.asarray(labels.ok).sum() < 2:
        assert task.live is not None
        raise InputError(f"tasks.{name}.live.label: {task.live.label.name} fails on {task.live.system.file}")
    return cast_structures(structures, np.float64), labels


def compete(
    arena: Arena,
    entrant: Entrant,
    folder: Path,
    told: Callable[[Records], None],
    begun: Callable[[int], None] = lambda _: None,
) -> Records:
    """One strategy through all rounds, from its last checkpoint in `folder` on; returns its results.

    `told` is called with all results so far after each round, `begun` with the number of each round before it. When
    all rounds are done and told, the folder is removed.
    """
    if checkpoint.latest(folder) is None:
        begun(0)
        standing, records = _first_round(arena, entrant)
        checkpoint.save(folder, 0, standing, {"records": records})
    else:
        standing, host, _ = checkpoint.restore(folder, _untrained(arena, entrant.model))
        records = host["records"]
    told(records)
    for number in range(records[-1]["round"] + 1, len(arena.task.budgets)):
        begun(number)
        clock = _Clock()
        standing = _bought(arena, entrant, standing, number, clock)
        standing = _trained(arena, entrant.model, standing, number, clock)
        records = records + _results(arena, entrant, standing, number, clock)
        checkpoint.save(folder, number, standing, {"records": records})
        told(records)
    shutil.rmtree(folder, ignore_errors=True)
    return records


class _Clock:
    """Seconds of the parts of a round."""

    def __init__(self) -> None:
        self.last, self.seconds = time.monotonic(), {}

    def took(self, part: str) -> None:
        now = time.monotonic()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self.last
        self.last = now


def _programs(arena: Arena, model: Model) -> made.Programs:
    """Those of a model, made once."""
    data, part = arena.source.data, arena.task.potential
    assert part is not None

    def make() -> made.Programs:
        committee = made.committee_of(model, part, data.table)
        return made.make_programs(committee, made.recipe_of(arena.task, data.forces, data.stress), arena.near)

    return _kept(arena, ("programs", model), make)


def _kept(arena: Arena, key: Any, make: Callable[[], Any]) -> Any:
    if key not in arena.kept:
        arena.kept[key] = make()
    return arena.kept[key]


def _untrained(arena: Arena, model: Model) -> Standing:
    """All seeds with the first labels: the same for all strategies of a model."""
    contest, data, task = arena.contest, arena.source.data, arena.task
    seeds, program = arena.seeds, _programs(arena, model)
    assert task.train is not None
    number = datas.key_of(arena.name)
    one = jax.tree.map(lambda x: x[:, 0], arena.first)
    listed = made.over_seeds(lambda structure: neighbors.build(arena.near, structure))(one)
    params = program.init(made.keys(contest.seed, seeds, number, INIT), one, listed)
    real = np.asarray(arena.first.species) >= 0
    near = np.asarray(
        made.in_groups(lambda _, s: jnp.sum(neighbors.find(arena.near, s).index < s.species.shape[-1], (1, 2)))(
            np.zeros(seeds), arena.first
        )
    )
    label = arena.first_label
    if not data.forces:  # a force that would change the energies by their spread within an angstrom
        spread = np.maximum(np.std(np.asarray(label.energy), axis=1), 1e-3)
        label = label._replace(force=np.broadcast_to(spread[:, None, None, None], np.shape(label.force)))
    rows = [
        training.normalize(weights, labels, structures, float(listed.sum() / atoms.sum()))
        for weights, labels, structures, listed, atoms in zip(
            _rows(params), _rows(label), _rows(arena.first), near, real, strict=True
        )
    ]
    train = program.fresh(jax.tree.map(lambda *x: np.stack([np.asarray(y) for y in x]), *rows))
    committee = program.committee
    empty = buffers.init(jax.tree.map(lambda x: x[0], one), committee.members, task.budgets[-1])
    count = np.shape(label.energy)[1]
    held = setup.spread_hold(count, task.train.holdout) if task.train.holdout else np.zeros(count, bool)
    ok = np.asarray(label.ok)
    buffer = program.add(
        jax.tree.map(lambda x: np.broadcast_to(np.asarray(x)[None], (seeds, *np.shape(x))), empty),
        made.keys(contest.seed, seeds, number, ADD, 0),
        arena.first,
        arena.first_label,
        ok,
        np.broadcast_to(held[None], (seeds, count)),
    )
    taken = np.zeros((seeds, np.shape(data.pool.charge)[0]), bool)
    if data.labels is not None:
        np.put_along_axis(taken, arena.drawn, True, axis=1)
    walkers = jax.tree.map(lambda x: x[:, :0], arena.first) if task.live is None else _starts(arena)
    return Standing(train, buffer, taken, np.full(seeds, count), np.sum(~ok, axis=1), walkers, np.full(seeds, np.inf))


def _starts(arena: Arena) -> Structure:
    """Where the walkers [s w] begin: at the start structures in turn."""
    live = arena.task.live
    assert live is not None
    pool = cast_structures(arena.source.data.pool, arena.contest.precision)
    rows = np.arange(live.explore.walkers) % np.shape(pool.charge)[0]
    return _of_all(jax.tree.map(lambda x: np.asarray(x)[rows], pool), arena.seeds)


def _first_round(arena: Arena, entrant: Entrant) -> tuple[Standing, Records]:
    """The round before anything is chosen, which strategies of one model have in common."""

    def make() -> tuple[Standing, Records]:
        clock = _Clock()
        standing = _trained(arena, entrant.model, _untrained(arena, entrant.model), 0, clock)
        return standing, _results(arena, entrant, standing, 0, clock)

    standing, records = _kept(arena, ("first", entrant.model), make)
    return standing, [record | {"strategy": entrant.name} for record in records]


def _trained(arena: Arena, model: Model, standing: Standing, number: int, clock: _Clock) -> Standing:
    train, seeds = arena.task.train, arena.seeds
    assert train is not None
    dtype = np.dtype(arena.contest.precision)
    fit = _programs(arena, model).train
    key = made.keys(arena.contest.seed, seeds, datas.key_of(arena.name), FIT, number)
    steps = np.int32(train.steps if number else train.initial_steps)
    rate, final = (np.asarray(value, dtype) for value in (train.learning_rate, train.final_learning_rate))
    new = fit(standing.train, standing.buffer, key, steps, rate, final)
    jax.block_until_ready(new)
    clock.took("train_s")
    return standing._replace(train=new)


def _bought(arena: Arena, entrant: Entrant, standing: Standing, number: int, clock: _Clock) -> Standing:
    """The strategy chooses candidates, whose labels are added."""
    data, seeds, seed = arena.source.data, arena.seeds, arena.contest.seed
    program, params = _programs(arena, entrant.model), standing.train.average
    committee, task_key = program.committee, datas.key_of(arena.name)
    size = arena.task.budgets[number] - arena.task.budgets[number - 1]
    live = arena.task.live
    visited = None
    if live is None:
        among = _of_all(cast_structures(data.pool, arena.contest.precision), seeds)
        prediction = program.predict(params, among)
        clock.took("predict_s")
        score = _kept(arena, ("score", entrant.score), lambda: made.make_score(entrant.score))(prediction, among)
        eligible = ~np.asarray(standing.taken)
    else:
        walk = _kept(
            arena,
            ("walk", entrant.model, entrant.score),
            lambda: walking.make_walking(committee, live, entrant.score, data.table, arena.near, _numbers(arena)),
        )
        factor = np.asarray(standing.factor, arena.contest.precision)
        key = made.keys(seed, seeds, task_key, WALK, number)
        visited = jax.tree.map(np.asarray, walk(params, factor, standing.walkers, key))
        clock.took("walk_s")
        among, score, eligible = visited.structure, visited.score, visited.seen
    score = np.asarray(score)
    eligible = eligible & np.isfinite(score)
    features = _kept(
        arena,
        ("features", entrant.model, entrant.kernel),
        lambda: made.make_features(committee, entrant.kernel, arena.near),
    )
    filled, labeled = made.filled(standing.buffer, jax.tree.map(lambda x: np.asarray(x)[:, 0], among))
    known, own = features(params, filled), features(params, among)
    clock.took("features_s")
    select = _kept(arena, ("select", entrant.select, size), lambda: made.make_select(entrant.select, size))
    key = made.keys(seed, seeds, task_key, SELECT, number)
    rows = np.asarray(select(key, np.where(eligible, score, 0), own, eligible, known, labeled))
    clock.took("select_s")
    return _labeled(arena, program, standing, among, visited, rows, number, clock)


def _numbers(arena: Arena) -> np.ndarray:
    """Atomic numbers of a live task's atoms."""
    data = arena.source.data
    return np.asarray(data.table)[np.asarray(data.pool.species)[0]]


def _labeled(
    arena: Arena,
    program: made.Programs,
    standing: Standing,
    among: Structure,
    visited: walking.Visited | None,
    rows: np.ndarray,
    number: int,
    clock: _Clock,
) -> Standing:
    """The standing with the labels of the chosen rows [s k] of the candidates in the training set."""
    seeds, wanted = arena.seeds, rows >= 0
    data, every = arena.source.data, np.arange(seeds)[:, None]
    row = np.maximum(rows, 0)
    picked = jax.tree.map(lambda x: np.asarray(x)[every, row], among)
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
        error = np.linalg.norm(visited.force[every, row] - answers.force, axis=-1).max(-1)
        right = wanted & np.asarray(answers.ok)
        for seed in range(seeds):
            told: Any = (np.asarray(visited.score)[seed, row[seed]], error[seed])
            found = walking.factor_of(*(x[right[seed]] for x in told))
            factor[seed] = found if np.isfinite(found) else factor[seed]
        walkers = walking.onwards(visited, _starts(arena))
    structures, labels = cast(picked, answers, arena.reference, np.dtype(arena.contest.precision))
    ok = wanted & np.asarray(labels.ok)
    key = made.keys(arena.contest.seed, seeds, datas.key_of(arena.name), ADD, number)
    buffer = program.add(standing.buffer, key, structures, labels, ok, np.zeros_like(ok))
    clock.took("label_s")
    return standing._replace(
        buffer=buffer,
        taken=taken,
        paid=standing.paid + wanted.sum(1),
        failed=standing.failed + (wanted & ~ok).sum(1),
        walkers=walkers,
        factor=factor,
    )


def _results(arena: Arena, entrant: Entrant, standing: Standing, number: int, clock: _Clock) -> Records:
    """What the test frames say of every seed. Raises InputError where a training has come to no finite numbers."""
    prediction = _programs(arena, entrant.model).predict(standing.train.average, arena.exam)
    found = measure(prediction, arena.reference, arena.source.data)
    clock.took("test_s")
    seconds = {name: round(value, 3) for name, value in clock.seconds.items()}
    if any(each["energy_rmse"] is None for each in found):
        raise InputError(
            f"tasks.{arena.name}: the training of {entrant.name} came to no finite numbers; lower train.learning_rate"
        )
    head = {"task": arena.name, "strategy": entrant.name, "round": number}
    return [
        head | {"seed": seed, "labels": int(standing.paid[seed]), "failed": int(standing.failed[seed])} | each | seconds
        for seed, each in enumerate(found)
    ]
