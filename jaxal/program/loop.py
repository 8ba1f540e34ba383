"""The compiled segment: dynamics, uncertainty, gate, selection, labels, growth and retraining in one program.

A segment is a scan over looks. Between two looks all walkers take a fixed number of steps under the committee's
force, group by group, and every step is scored. At a look, walkers that left the physical are rewound, those the gate
flags are labeled, and if labels came the committee is retrained and the gate recalibrated; then the dynamics go
on. The labeler is a function of the program: one ordered callback, or none where the oracle is written in JAX.
Without a labeler flagged frames wait in a queue and their walkers go back to a trusted frame: the program never
waits, and between two segments `jaxal.program.late_labels` takes in the labels that have come.

What varies from segment to segment (parameters, labels, thresholds, learning rate) is an argument, so a run
compiles once. What cannot be handled inside comes out as a bit mask, with the state as it was before.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from jaxal.acquire.gate import estimated
from jaxal.core import devices
from jaxal.core.types import Start
from jaxal.data import queue as queues
from jaxal.data import sample as samples
from jaxal.explore.bias_forces import rewound
from jaxal.explore.stepping import where
from jaxal.program.lessons import teach
from jaxal.program.reports import Lesson, Look, Trusted, cut
from jaxal.program.selection import Chooser, choose
from jaxal.program.state import (
    LABEL_FAILED,
    LAYOUT,
    NEIGHBORS_FULL,
    UNDONE,
    UNPHYSICAL,
    Limits,
    Parts,
    State,
    Static,
    rows_of,
    unless_undone,
)
from jaxal.program.step import Bounds, Candidate, Walk, joined, make_walk, nothing, reported
from jaxal.train import posterior
from jaxal.uncertainty.support import is_supported

Segment = Callable[[State, Limits], tuple[State, Look]]


def make_walks(parts: Parts, static: Static) -> Callable[[Limits, State], list[Walk]]:
    """The function that lets all walkers, group by group, take their steps from one look to the next."""
    own = rows_of(static.groups)
    walks = [
        make_walk(
            *(parts.committee, sampler, parts.score, static.table, group.near, static.every),
            *(parts.drive, bias, parts.gate, rows.start),
        )
        for sampler, bias, group, rows in zip(parts.samplers, parts.biases, static.groups, own, strict=True)
    ]

    def walked(limits: Limits, state: State, number: int) -> Walk:
        group, rows = static.groups[number], own[number]
        names = reported(parts.samplers[number], parts.biases[number], state.walkers[number])
        candidate = nothing(*cut(state.trusted, number, rows, group.atoms), names=names)
        full = jnp.zeros(len(group.systems), bool)
        start = Walk(state.walkers[number], state.near[number], candidate, full, state.drift[number])
        limit = limits.implausible, limits.closest, limits.hottest
        bounds = Bounds(*limit, state.farthest[rows], state.known)
        return walks[number](state.train.average, state.gate, state.support, bounds, start)

    return lambda limits, state: [walked(limits, state, number) for number in range(len(walks))]


def make_segment(parts: Parts, static: Static) -> Segment:
    """The function to compile: (state, limits) -> (state, looks). Donate the state."""
    mesh = parts.committee.mesh
    walk, own = make_walks(parts, static), rows_of(static.groups)
    picks = parts.select, static.train_near, static.batch, parts.schedule, parts.arms
    chooser = Chooser(parts.committee, parts.kernel, *picks)

    def look(limits: Limits, state: State, _) -> tuple[State, Look]:
        trusted, number = state.trusted, state.quiet.shape[0]
        key, key_probe, key_select, key_add, key_hold, key_fit, key_rewind = jax.random.split(state.key, 7)
        state = state._replace(key=key)
        ends = walk(limits, state)
        # what a look decides it decides on every device alike: a few numbers of each walker
        candidate = joined([end.candidate for end in ends])
        candidate, full = devices.laid(mesh, P(), (candidate, jnp.concatenate([end.full for end in ends])))
        problems = state.problems | jnp.where(jnp.any(full), NEIGHBORS_FULL, 0)
        walkers, near, drift = zip(*((end.walkers, end.near, end.drift) for end in ends), strict=True)
        state = state._replace(walkers=walkers, near=near, drift=drift)
        gate, flagged = parts.gate.step(state.gate, candidate.score)
        # of a frame unlike all that was trained on a small score says nothing
        flagged |= candidate.unknown | ~is_supported(candidate.novelty)
        estimate = jnp.where(candidate.unknown, jnp.inf, estimated(parts.gate, gate, candidate.score))
        probe = jax.random.uniform(key_probe, (number,)) < limits.probe
        wants = flagged | (probe & ~candidate.bad)
        score = jnp.where(probe | candidate.unknown, jnp.inf, candidate.score)
        inputs = state.train.average, state.buffer, candidate.structure, score, wants
        used = state.labels / jnp.maximum(limits.budget, 1)
        chosen, crowded, arm = choose(chooser, key_select, *inputs, state.course, used, state.queue)
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
        kept = where(trust, here, trusted._replace(drift=()))
        learned = zip(own, candidate.drift, trusted.drift, strict=True)
        trusted = kept._replace(drift=tuple(where(trust[rows], now, old) for rows, now, old in learned))
        rewind = candidate.bad | failed | (flagged if parts.label is None else False)
        keys = jax.random.split(key_rewind, number)
        again = [back(state, trusted, rewind, keys, number) for number in range(len(own))]
        walkers, drift = zip(*again, strict=True)
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
            report=candidate.report,
            factor=state.gate.factor,
            threshold=state.gate.threshold,
            coverage=jnp.where(state.gate.checked > 0, state.gate.covered / state.gate.checked, jnp.nan),
            over=over(walkers, trust & ~rewind),
        )
        state = state._replace(
            walkers=walkers,
            trusted=trusted,
            drift=drift,
            quiet=quiet,
            problems=(state.problems | bits).astype(jnp.int32),
        )
        return devices.laid(mesh, LAYOUT, state), devices.laid(mesh, P(), out)

    def back(state: State, trusted: Trusted, rewind, keys, number: int):
        """The walkers of one group, some of them back at their trusted frames, and what biases have learned of them."""
        sampler, rows, now = parts.samplers[number], own[number], state.walkers[number]
        place, force, stress, drift = cut(trusted, number, rows, static.groups[number].atoms)
        walkers = sampler.rewind(keys[rows], now, rewind[rows], Start(place, force, stress))
        time = sampler.timestep * sampler.steps(walkers).astype(force.dtype)
        return walkers, rewound(parts.biases[number], rewind[rows], state.drift[number], drift, place, time)

    def over(walkers, trust):
        """Whether walkers have come to their end, on frames that are trusted; None where no sampler does."""
        if all(sampler.over is None for sampler in parts.samplers):
            return None
        each = [
            jnp.zeros_like(trust[rows]) if sampler.over is None else sampler.over(now) & trust[rows]
            for sampler, now, rows in zip(parts.samplers, walkers, own, strict=True)
        ]
        return jnp.concatenate(each)

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
            content = picked.structure, picked.score, picked.force, label, ok, hold
            lesson = Lesson(*content, jnp.where(is_probe, -1, arm))
            state, outcome = teach(parts, static, limits, state, lesson, (key_add, key_fit))
            state = state._replace(labels=state.labels + jnp.sum(wanted, dtype=jnp.int32))
            return state, (ok, outcome.error, outcome.rmse, outcome.loss, outcome.fold_rmse)

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
        structures = jax.tree.map(lambda x: x[row], candidate.structure)
        score = jnp.where(candidate.unknown, jnp.inf, candidate.score)[row]
        queue = queues.push(state.queue, structures, score, probe[row], chosen, wanted, arm)
        # What is asked for counts as known: nobody asks for the like of it before the label is there.
        train = posterior.updated(parts.committee, static.train_near, state.train, structures, wanted)
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
