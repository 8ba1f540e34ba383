"""The compiled segment: dynamics, uncertainty, gate, selection, labels, growth and retraining in one program.

A segment is a scan over looks. Between two looks all walkers take a fixed number of steps under the committee's
force, and every step is scored. At a look, walkers that left the physical are rewound, those the gate
flags are labeled, and if labels came the committee is retrained and the gate recalibrated; then the dynamics go
on. The labeler is a function of the program: one ordered callback, or none where the oracle is written in JAX.
Without a labeler flagged frames wait in a queue and their walkers go back to a trusted frame: the program never
waits, and between two segments `jaxal.program.late_labels` takes in the labels that have come.

What varies from segment to segment (parameters, labels, thresholds, learning rate) is an argument, so a run
compiles once. What cannot be handled inside comes out as a bit mask, with the state as it was before.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int

from jaxal.acquire.gate import estimated
from jaxal.committee import evaluation as committees
from jaxal.core import devices
from jaxal.core.devices import MEMBERS, WALKERS
from jaxal.core.types import (
    Bias,
    Explorer,
    Gate,
    GateState,
    Kernel,
    Key,
    Label,
    Neighbors,
    Schedule,
    Score,
    Select,
    Structure,
    WalkerState,
)
from jaxal.data import buffer as buffers
from jaxal.data import fragments, neighbors
from jaxal.data import queue as queues
from jaxal.data import sample as samples
from jaxal.program.reports import Lesson, Look, Taught, Trusted
from jaxal.program.selection import Chooser, Course, choose, taught
from jaxal.program.step import Bounds, Candidate, Drive, Walk, driving, farthest, make_walk, nothing, where
from jaxal.train import fit as training
from jaxal.train import posterior
from jaxal.train import support as supports
from jaxal.train.calibrate import Fresh, Judge, calibrate
from jaxal.train.loss import force_rmse, max_force_error
from jaxal.uncertainty.support import Support, is_supported

NEIGHBORS_FULL, BUFFER_FULL, NOT_FINITE, UNPHYSICAL, LABEL_FAILED = 1, 2, 4, 8, 16
UNDONE = NEIGHBORS_FULL | BUFFER_FULL | NOT_FINITE  # the segment did not happen: grow or slow down, then replay
PROBLEMS = {
    NEIGHBORS_FULL: "more neighbors than slots",
    BUFFER_FULL: "more labels than rows",
    NOT_FINITE: "the committee's parameters are no longer finite",
    UNPHYSICAL: "a walker was rewound from an unphysical frame",
    LABEL_FAILED: "a label failed",
}


class Parts(NamedTuple):
    """The interchangeable functions of a run."""

    committee: committees.Committee
    explorer: Explorer
    score: Score
    gate: Gate
    kernel: Kernel
    select: Select
    # in the program, energies relative to the references; None: what is to be labeled waits in the queue
    label: Callable[[Structure, Bool[Array, "k"]], Label] | None
    drive: Drive = "mean"  # whose force moves a walker
    bias: Bias | None = None  # drives walkers beside the committee's mean force
    schedule: Schedule | None = None  # None: `select` picks every label
    arms: tuple[Select, ...] = ()  # the selections of the schedule


class Static(NamedTuple):
    """What has to be known to compile a segment; hashable."""

    table: tuple[int, ...]
    near: neighbors.Spec  # of the walkers
    train_near: neighbors.Spec  # of the training set, without a skin
    recipe: training.Recipe
    every: int  # steps between looks
    looks: int  # looks in a segment
    batch: int  # labels at one look, at most
    fold: int  # held-out labels, the latest so many, that calibrate the gate
    queue: int = 0  # structures that can wait for a label
    sample: int = 0  # frames at random that are kept, to calibrate the bound in the end


class Limits(NamedTuple):
    """Thresholds and rates: arguments of the program, free to change between segments."""

    implausible: Float[Array, ""]  # eV/Å, estimated error above which a frame is not physical
    closest: Float[Array, ""]  # fraction of the sum of covalent radii below which a frame is not physical
    hottest: Float[Array, ""]  # multiple of the bath's temperature above which a frame is not physical
    budget: Int[Array, ""]  # labels, failed ones included, over the whole run
    probe: Float[Array, ""]  # chance of each walker at each look to be labeled whatever the gate says
    holdout: Float[Array, ""]  # fraction of the gated labels that is held out
    steps: Int[Array, ""]  # optimizer steps after a labeling
    rate: Float[Array, ""]  # learning rate
    final_rate: Float[Array, ""]  # learning rate at the end of each training


class State(NamedTuple):
    """Everything that goes on from one segment to the next."""

    walkers: WalkerState  # [w]
    trusted: Trusted  # [w]
    near: Neighbors  # [w]
    quiet: Int[Array, "w"]  # steps since the gate last fired
    gate: GateState
    train: training.TrainState  # [m]
    buffer: buffers.Buffer
    queue: queues.Queue
    fresh: Fresh
    support: Support  # of the training set
    sample: samples.Sample
    key: Key
    labels: Int[Array, ""]  # asked for, failed ones included
    problems: Int[Array, ""]
    farthest: Float[Array, ""]  # Å, gap between two parts of a structure above which a frame is not physical
    known: Bool[Array, "s"]  # species that were trained on as isolated atoms
    drift: Any = ()  # what the bias has learned of each walker [w]
    course: Course = Course()  # of the schedule


Segment = Callable[[State, Limits], tuple[State, Look]]


# How a state divides over the devices of a mesh; what is not named, being small and read by all, is whole on each.
_DIVIDED = {"walkers": P(WALKERS), "trusted": P(WALKERS), "near": P(WALKERS), "train": P(MEMBERS), "drift": P(WALKERS)}
LAYOUT: Any = State._make(_DIVIDED.get(name, P()) for name in State._fields)


def judge_of(parts: Parts, static: Static) -> Judge:
    """The judge of a run."""
    return Judge(parts.committee, parts.score, parts.gate, static.train_near, static.fold)


def start(
    parts: Parts, static: Static, train: training.TrainState, buffer: buffers.Buffer, structures: Structure, key: Key
) -> State:
    """State of a new run: walkers [w] begin at `structures`, with momenta of their own."""
    near = neighbors.find(static.near, structures)
    prediction = committees.predict(parts.committee, train.average, structures, near)
    force, stress = driving(parts.drive, prediction, jnp.arange(structures.charge.shape[0]))
    key, *keys = jax.random.split(key, structures.charge.shape[0] + 1)
    begun = jnp.zeros(structures.charge.shape[0], jnp.int32)
    walkers = jax.vmap(parts.explorer.init)(jnp.stack(keys), structures, force, stress, begun)
    gate = calibrate(judge_of(parts, static), parts.gate.init(), train.average, buffer)[0]
    state = State(
        walkers=walkers,
        trusted=Trusted(structures, force, stress),
        near=near,
        quiet=jnp.zeros(structures.charge.shape[0], jnp.int32),
        gate=gate,
        train=train,
        buffer=buffer,
        queue=queues.init(jax.tree.map(lambda x: x[0], structures), static.queue),
        fresh=Fresh.empty(static.fold // 2, buffer.label.energy.dtype),
        support=supports.learned(parts.committee, static.train_near, train.average, buffer),
        sample=samples.init(jax.tree.map(lambda x: x[0], structures), static.sample),
        key=key,
        labels=buffer.count,
        problems=jnp.where(jnp.any(near.overflow), NEIGHBORS_FULL, 0).astype(jnp.int32),
        farthest=farthest(static.near.cutoff, structures).astype(force.dtype),
        known=_known(static, buffer),
        drift=() if parts.bias is None else jax.vmap(parts.bias.init)(structures),
        course=Course.begun(parts.schedule),
    )
    return devices.laid(parts.committee.mesh, LAYOUT, state)


def _known(static: Static, buffer: buffers.Buffer) -> Bool[Array, "s"]:
    """Species that the training set holds as isolated atoms."""
    cutoff, number, trained = static.train_near.cutoff, len(static.table), buffers.trainable(buffer)

    def seen(row: Int[Array, ""], known: Bool[Array, "s"]) -> Bool[Array, "s"]:
        structure = _one(jax.tree.map(lambda x: x[row], buffer.structure))
        near = neighbors.find(static.train_near, structure)
        return known | fragments.isolated_species(cutoff, structure, near, trained[row][None], number)

    return jax.lax.fori_loop(0, buffer.count, seen, jnp.zeros(number, bool))


def make_segment(parts: Parts, static: Static) -> Segment:
    """The function to compile: (state, limits) -> (state, looks). Donate the state."""
    mesh = parts.committee.mesh
    walking = parts.committee, parts.explorer, parts.score, static.table, static.near, static.every
    walk = make_walk(*walking, parts.drive, parts.bias, parts.gate)
    picks = parts.select, static.train_near, static.batch, parts.schedule, parts.arms
    chooser = Chooser(parts.committee, parts.kernel, *picks)

    def look(limits: Limits, state: State, _) -> tuple[State, Look]:
        trusted, walkers = state.trusted, state.walkers
        number = walkers.step.shape[0]
        key, key_probe, key_select, key_add, key_hold, key_fit, key_rewind = jax.random.split(state.key, 7)
        state = state._replace(key=key)
        start = Walk(walkers, state.near, nothing(*trusted), jnp.zeros(number, bool), state.drift)
        bounds = Bounds(limits.implausible, limits.closest, limits.hottest, state.farthest, state.known)
        end = walk(state.train.average, state.gate, state.support, bounds, start)
        # what a look decides it decides on every device alike: a few numbers of each walker
        candidate, full = devices.laid(mesh, P(), (end.candidate, end.full))
        problems = state.problems | jnp.where(jnp.any(full), NEIGHBORS_FULL, 0)
        state = state._replace(walkers=end.walkers, near=end.near, drift=end.drift)
        gate, flagged = parts.gate.step(state.gate, candidate.score)
        # of a frame unlike all that was trained on a small score says nothing
        flagged |= candidate.unknown | ~is_supported(candidate.novelty)
        estimate = jnp.where(candidate.unknown, jnp.inf, estimated(parts.gate, gate, candidate.score))
        probe = jax.random.uniform(key_probe, (number,)) < limits.probe
        wants = flagged | (probe & ~candidate.bad)
        score = jnp.where(probe | candidate.unknown, jnp.inf, candidate.score)
        given = state.train.average, state.buffer, candidate.structure, score, wants
        used = state.labels / jnp.maximum(limits.budget, 1)
        chosen, crowded, arm = choose(chooser, key_select, *given, state.course, used, state.queue)
        problems |= jnp.where(crowded, NEIGHBORS_FULL, 0)
        left = jnp.maximum(limits.budget - state.labels, 0)
        lost = (problems & UNDONE) != 0  # this segment will be undone: a label asked for now would not be used
        chosen = jnp.where((chosen >= 0) & (jnp.cumsum(chosen >= 0) <= left) & ~lost, chosen, -1)
        picked = jnp.zeros(number, bool).at[jnp.where(chosen >= 0, chosen, number)].set(True, mode="drop")
        seen = jnp.isfinite(candidate.score) & ~candidate.bad & ~picked
        sample = samples.taken(state.sample, jax.random.fold_in(key_probe, 1), candidate.structure, seen)
        state = state._replace(gate=gate, problems=problems, sample=sample)
        keys = key_add, key_hold, key_fit
        if parts.label is None:
            state, report = put_off(state, candidate, chosen, probe, arm)
        else:
            state, report = learn(limits, state, candidate, chosen, probe, estimate, arm, keys)

        # Back to the trusted frame: walkers that are unphysical, those whose frame the method cannot label, and those
        # whose label nobody waits for.
        failed = jnp.zeros(number, bool).at[report["failed"]].set(True, mode="drop")
        labeled = jnp.zeros(number, bool).at[report["labeled"]].set(True, mode="drop")
        trust = (~candidate.bad & ~flagged) | labeled
        here = Trusted(candidate.structure, candidate.drive, candidate.stress)
        trusted = where(trust, here, trusted)
        rewind = candidate.bad | failed | (flagged if parts.label is None else False)
        keys = jax.random.split(key_rewind, number)
        place, force, stress = trusted
        fresh = jax.vmap(parts.explorer.init)(keys, place, force, stress, state.walkers.step)
        walkers = where(rewind, fresh, state.walkers)
        quiet = jnp.where(flagged | candidate.bad, 0, state.quiet + static.every)
        bits = jnp.where(jnp.any(candidate.bad), UNPHYSICAL, 0) | jnp.where(jnp.any(failed), LABEL_FAILED, 0)
        out = Look(
            structure=candidate.structure,
            energy=candidate.energy,
            temperature=candidate.temperature,
            score=candidate.score,
            estimate=estimate,
            supported=is_supported(candidate.novelty),
            flagged=flagged & ~candidate.bad,
            unphysical=candidate.bad,
            cause=candidate.cause,
            **report["look"],
            factor=state.gate.factor,
            threshold=state.gate.threshold,
            coverage=jnp.where(state.gate.checked > 0, state.gate.covered / state.gate.checked, jnp.nan),
        )
        state = state._replace(
            walkers=walkers, trusted=trusted, quiet=quiet, problems=(state.problems | bits).astype(jnp.int32)
        )
        return devices.laid(mesh, LAYOUT, state), devices.laid(mesh, P(), out)

    def learn(limits, state: State, candidate: Candidate, chosen, probe, estimate, arm, keys):
        """Labels the chosen walkers' candidates, adds them to the training set and retrains."""
        key_add, key_hold, key_fit = keys
        wanted = chosen >= 0
        row = jnp.maximum(chosen, 0)
        number = candidate.score.shape[0]
        picked = jax.tree.map(lambda x: x[row], candidate)
        is_probe = probe[row] & wanted
        nan = jnp.asarray(jnp.nan, candidate.force.dtype)

        def ask(state: State):
            assert parts.label is not None
            label = parts.label(picked.structure, wanted)
            ok = label.ok & wanted
            hold = is_probe | (jax.random.uniform(key_hold, wanted.shape) < limits.holdout)
            given = picked.structure, picked.score, picked.force, label, ok, hold
            lesson = Lesson(*given, jnp.where(is_probe, -1, arm))
            state, told = teach(parts, static, limits, state, lesson, (key_add, key_fit))
            state = state._replace(labels=state.labels + jnp.sum(wanted, dtype=jnp.int32))
            return state, (ok, told.error, told.rmse, told.loss, told.fold_rmse)

        def skip(state: State):
            none = jnp.full(wanted.shape, jnp.nan, candidate.force.dtype)
            return state, (jnp.zeros(wanted.shape, bool), none, none, nan, nan)

        state, (ok, error, rmses, loss, rmse) = jax.lax.cond(jnp.any(wanted), ask, skip, state)
        report = {
            "labeled": jnp.where(ok, chosen, number),
            "failed": jnp.where(wanted & ~ok, chosen, number),
            "look": {
                "walker": chosen,
                "probe": is_probe,
                "ok": ok,
                "label_score": jnp.where(wanted, picked.score, jnp.nan),
                "label_estimate": jnp.where(wanted, estimate[row], jnp.nan),
                "label_error": error,
                "label_rmse": rmses,
                "loss": loss,
                "fold_rmse": rmse,
            },
        }
        return state, report

    def put_off(state: State, candidate: Candidate, chosen, probe, arm):
        """The chosen walkers' candidates wait in the queue; no label comes at this look."""
        wanted, row = chosen >= 0, jnp.maximum(chosen, 0)
        asked = jax.tree.map(lambda x: x[row], candidate.structure)
        score = jnp.where(candidate.unknown, jnp.inf, candidate.score)[row]
        queue = queues.push(state.queue, asked, score, probe[row], chosen, wanted, arm)
        # What is asked for counts as known: nobody asks for the like of it before the label is there.
        train = posterior.updated(parts.committee, static.train_near, state.train, asked, wanted)
        none = jnp.full(wanted.shape, jnp.nan, candidate.force.dtype)
        nobody, never = jnp.full(wanted.shape, candidate.score.shape[0]), jnp.zeros(wanted.shape, bool)
        look = {"walker": jnp.full_like(chosen, -1), "probe": never, "ok": never, "label_score": none}
        look |= {"label_estimate": none, "label_error": none, "label_rmse": none, "loss": none[0], "fold_rmse": none[0]}
        return state._replace(queue=queue, train=train), {"labeled": nobody, "failed": nobody, "look": look}

    def segment(state: State, limits: Limits) -> tuple[State, Look]:
        before = state._replace(problems=jnp.zeros_like(state.problems))
        after, looks = jax.lax.scan(lambda s, x: look(limits, s, x), before, None, length=static.looks)
        return devices.laid(mesh, LAYOUT, unless_undone(before, after)), devices.laid(mesh, P(), looks)

    return segment


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
    each = jax.vmap(lambda f, s, lab: force_rmse(f[None], _one(s), _one(lab), jnp.ones(1, bool)))
    nan = jnp.asarray(jnp.nan, force.dtype)
    rmse = each(force, structure, label)
    return state, Taught(jnp.where(ok, error, nan), jnp.where(ok, rmse, nan), jnp.mean(loss), fold)


def unless_undone(before: State, after: State) -> State:
    """`after`, or `before` with the problems of `after` where these undo it: what comes after them is wrong."""
    undone = (after.problems & UNDONE) != 0
    state = jax.tree.map(lambda old, new: jax.lax.select(undone, old, new), *_data(before, after))
    return _undata(state, before)._replace(problems=after.problems)


def _one(row):
    return jax.tree.map(lambda x: x[None], row)


def _is_key(x) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _data(*trees):
    """Typed keys as their data, which `select` takes."""
    return tuple(jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree) for tree in trees)


def _undata(tree, like):
    return jax.tree.map(lambda x, y: jax.random.wrap_key_data(x) if _is_key(y) else x, tree, like)
