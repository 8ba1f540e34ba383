"""The exploration of a run: segments of the program until a reason to stop, and what the host does between them.

The host keeps the checkpoint and the metrics, grows capacities where the program says so, and in a pooled run takes in
labels and hands out new ones (`jaxal.run.pooled`). Of several processes each does the same; what concerns files, labels
and the clock the first does, and the others follow it.
"""

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from jaxal.core import devices
from jaxal.core.types import InputError
from jaxal.data import buffer as buffers
from jaxal.data import neighbors
from jaxal.data.padding import structures_to
from jaxal.label.task import Enough
from jaxal.program import loop, reports
from jaxal.program import state as states
from jaxal.program.late_labels import make_absorb
from jaxal.run import assembly, final_training, folder, grouping, labeling, notes, persistence, pooled, session, stop
from jaxal.run.session import Progress, Run
from jaxal.train import fit as training

EARLY_SLOWER = 3  # times the learning rate is halved after a diverged training
REPLAYS = 8  # of one segment; by then there is room for thirty times the neighbors


class Labels(NamedTuple):
    """Where the labels of a run come from."""

    label: labeling.LabelFunction | None  # in the program; None where it does not wait for them
    desk: pooled.Desk | None  # of a pooled run, in the first process
    drain: Callable[[], list[str]]  # reasons of the labels that failed in the program since the last call
    waited: Callable[[], float]  # s that the program has waited for labels since the last call


class Programs(NamedTuple):
    """What has been compiled, and from what."""

    parts: states.Parts
    static: states.Static
    segment: Callable[..., Any]
    absorb: Callable[..., Any] | None  # of a pooled run


def explore(
    run: Run,
    progress: Progress,
    restored: states.State | None,
    train: training.TrainState | None,
    buffer: buffers.Buffer | None,
    labels: Labels,
) -> states.State:
    """Segments until a reason to stop. It begins with `restored`, or with first training on `buffer`.

    Raises Enough where the run was told to end, with a checkpoint written.
    """
    if restored is None:
        assert train is not None and buffer is not None
        state, programs = _first_training(run, progress, labels, train, buffer)
        persistence.save(run, progress, state)
    else:
        state = restored
        session.show(run, progress, "compiling")
        programs = _compiled(run, progress, labels, state)
    if progress.look == 0:
        folder.append(run.directory, [notes.phase(run, "explore")])
    sitting = _Sitting(run, progress, labels, state, programs, time.monotonic(), time.monotonic())
    if labels.label is None and restored is not None:
        sitting.take_in(pooled.recovered(run, progress, labels.desk, sitting.state))
    why = sitting.judged(None, [])
    while not why:
        sitting.end_if_told()
        sitting.exchange(last=False)
        looks, reasons = sitting.walked()
        if looks is not None:
            why = sitting.judged(looks, reasons)
    while progress.begun:  # what was paid for is learned from
        sitting.end_if_told()
        sitting.exchange(last=True)
    progress.phase = "final training"
    folder.append(run.directory, [notes.phase(run, "final training", why)])
    persistence.save(run, progress, sitting.state)
    return sitting.state


@dataclasses.dataclass
class _Sitting:
    """The exploration from this start of the process on: the state and what it takes to go on with it."""

    run: Run
    progress: Progress
    labels: Labels
    state: states.State
    programs: Programs
    saved: float  # when, on the monotonic clock
    counted: float  # up to when the device's time has been counted
    unsaved: bool = False
    due: bool = False
    replays: int = 0  # of the present segment, or of the present lesson

    def walked(self) -> tuple[reports.Look | None, list[str]]:
        """One segment: its looks, and the reasons of labels that failed in it; None for one that is to be replayed."""
        run, progress = self.run, self.progress
        session.show(run, progress, "explore")
        before = progress.asked, progress.failed
        began = time.monotonic()
        state, looks = self.programs.segment(self.state, self._limits())
        looks = jax.device_get(looks)
        self.state, self.unsaved = state, True
        self._count(began)
        reasons = devices.from_first(self.labels.drain)
        if int(state.problems) & states.UNDONE:
            progress.asked, progress.failed = before
            self._mend(int(state.problems))
            return None, []
        self.replays = 0
        return looks, reasons

    def exchange(self, last: bool) -> None:
        """In a pooled run takes in the labels that have come and hands out others; with `last` it waits for some."""
        if self.programs.absorb is None:
            return
        came = pooled.arrived(self.run, self.progress, self.labels.desk, self.state, last)
        self.take_in(came)
        if not last:
            self.state = pooled.handed_out(self.run, self.progress, self.labels.desk, self.state)

    def take_in(self, came: pooled.Came | None) -> None:
        """Learns from labels that have come."""
        if came is None:
            return
        size = self.programs.static.batch
        for arrivals, piece in pooled.arrivals(self.run, came, size):
            while True:
                assert self.programs.absorb is not None
                began = time.monotonic()
                state, report = self.programs.absorb(self.state, self._limits(), arrivals)
                report = jax.device_get(report)
                self.state, self.unsaved = state, True
                self._count(began)
                if not int(state.problems) & states.UNDONE:
                    break
                self._mend(int(state.problems))
            self.replays = 0
            pooled.taken_in(self.run, self.progress, self.state, piece, report)

    def judged(self, looks: reports.Look | None, reasons: list[str]) -> str:
        """Takes down what a segment did. Returns why the exploration is over, empty if it is not.

        Raises InputError where the run cannot go on.
        """
        run, progress, state = self.run, self.progress, self.state
        timesteps = run.timesteps

        def judge() -> list[Any]:
            if looks is not None:
                notes.note(run, progress, state, looks, reasons)
            quiet = float(np.min(np.asarray(state.quiet) * timesteps)) * 1e-3
            due = time.monotonic() - self.saved >= run.config.output.checkpoint
            over = looks is not None and looks.over is not None and bool(np.all(looks.over[-1]))
            return [*stop.verdict(run, progress, quiet, over), due, dataclasses.asdict(progress)]

        why, wrong, self.due, now = devices.from_first(judge)
        vars(progress).update(now)
        if wrong:
            self._end(wrong)
        return why

    def end_if_told(self) -> None:
        """Writes a checkpoint where one is due; raises Enough in all processes where the first was told to end."""
        interrupted = devices.from_first(self.run.interrupted)
        if self.unsaved and (self.due or interrupted):
            persistence.save(self.run, self.progress, self.state)
            self.saved, self.unsaved = time.monotonic(), False
        if interrupted:
            raise Enough

    def _limits(self) -> states.Limits:
        return assembly.limits_of(self.run.config, self.progress.rate, stop.probe_rate(self.run, self.progress))

    def _count(self, began: float) -> None:
        """Counts the time of a program that began then and has ended now, and what the device did before."""
        now, waited = time.monotonic(), self.labels.waited()
        self.progress.busy += now - began - waited
        self.progress.idle += began - self.counted + waited
        self.counted = now

    def _end(self, wrong: str) -> NoReturn:
        """Ends a run that cannot go on, with its state kept and the reason among the metrics."""
        folder.append(self.run.directory, [notes.phase(self.run, "stopped", wrong)])
        persistence.save(self.run, self.progress, self.state)
        raise InputError(wrong)

    def _mend(self, problems: int) -> None:
        """Makes larger what the program found too small, or halves the learning rate; a bounded number of times."""
        run, progress, state = self.run, self.progress, self.state
        what = ", ".join(text for bit, text in states.PROBLEMS.items() if problems & bit & states.UNDONE)
        self.replays += 1
        if self.replays > REPLAYS:
            self._end(
                f"explore: a segment was replayed {REPLAYS} times and there still are {what}; the walkers collapse: "
                "lower explore.timestep or explore.temperature, raise gate.closest, or give more label.initial"
            )
        if problems & states.NEIGHBORS_FULL:
            # a cell that shrinks in the segment needs more images than at its begin: each time more are provided
            shrink = 0.9**self.replays

            def larger(listed: list[Any], structures: Any) -> list[Any]:
                spec = session.spec_in(listed)
                return devices.from_first(lambda: session.spec_out(neighbors.larger(spec, structures, shrink)))

            each = zip(self.programs.parts.samplers, state.walkers, strict=True)
            moving = [devices.whole(sampler.walkers(walkers)) for sampler, walkers in each]
            progress.near = [larger(*each) for each in zip(progress.near, moving, strict=True)]
            together = jax.tree.map(
                lambda *x: np.concatenate(x), *(jax.device_get(structures_to(each, run.atoms)) for each in moving)
            )
            progress.train_near = larger(progress.train_near, together)
            find = jax.jit(neighbors.find, static_argnums=0)
            specs = map(session.spec_in, progress.near)
            near = tuple(find(spec, structures) for spec, structures in zip(specs, moving, strict=True))
            state = state._replace(near=devices.laid(run.mesh, states.LAYOUT.near, near))
        if problems & states.BUFFER_FULL:
            grown = buffers.grow(state.buffer, 2 * buffers.capacity(state.buffer))
            state = state._replace(buffer=devices.laid(run.mesh, states.LAYOUT.buffer, grown))
        if problems & states.NOT_FINITE:
            progress.slower += 1
            progress.rate *= 0.5
            if progress.slower > EARLY_SLOWER:
                self._end(
                    f"train.learning_rate: training diverges even at {progress.rate:g}; give a smaller one and "
                    f"check the labels in {run.store}"
                )
        session.show(run, progress, "explore", f"{what}: mended, replaying")
        self.state = state
        if problems & (states.NEIGHBORS_FULL | states.BUFFER_FULL):
            self.programs = _compiled(run, progress, self.labels, state)
            self.counted = time.monotonic()


def assembled(run: Run, progress: Progress, label: labeling.LabelFunction | None) -> tuple[states.Parts, states.Static]:
    """The parts of a run, and what its programs are compiled for."""
    parts = assembly.parts_of(run.config, run.table, label, run.systems, run.groups, progress.exact)
    near, train_near = map(session.spec_in, progress.near), session.spec_in(progress.train_near)
    groups = grouping.program_groups(run.systems, run.groups, list(near))
    return parts, assembly.static_of(run.config, run.table, groups, train_near)


def _compiled(run: Run, progress: Progress, labels: Labels, state: Any) -> Programs:
    """The programs for states like `state`; they serve the whole run unless a capacity grows."""
    parts, static = assembled(run, progress, labels.label)
    limits = assembly.limits_of(run.config, progress.rate, 0.0)
    segment = jax.jit(loop.make_segment(parts, static), donate_argnums=0).lower(state, limits).compile()
    if labels.label is not None:
        return Programs(parts, static, segment, None)
    example = pooled.empty(run, static.batch)
    absorb = jax.jit(make_absorb(parts, static), donate_argnums=0).lower(state, limits, example).compile()
    return Programs(parts, static, segment, absorb)


def _first_training(
    run: Run, progress: Progress, labels: Labels, train: training.TrainState, buffer: buffers.Buffer
) -> tuple[states.State, Programs]:
    """Trains on the first labels while the programs are compiled; the state to begin with, and the programs."""
    config = run.config
    session.show(run, progress, "first training")
    parts, static = assembled(run, progress, labels.label)
    structures = jax.device_put(session.walker_structures(run))
    key_train, key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1))

    def begin(train: training.TrainState, buffer: buffers.Buffer, key: Any) -> states.State:
        state = states.start(parts, static, train, buffer, structures, key)
        return state._replace(labels=jnp.asarray(progress.asked, jnp.int32))

    limits = assembly.limits_of(config, progress.rate, stop.TRICKLE)
    steps = jnp.asarray(config.train.initial_steps, jnp.int32)
    arguments = train, buffer, key_train, steps, limits.rate, limits.final_rate
    fit = final_training.compiled_fit(parts.committee, static.recipe, static.train_near).lower(*arguments)
    # Lowering is Python's work, compiling and training XLA's: beside the first training the programs are made ready.
    with ThreadPoolExecutor(1) as beside:
        fitting = beside.submit(lambda: jax.block_until_ready(fit.compile()(*arguments)))
        shapes = devices.shapes(run.mesh, states.LAYOUT, jax.eval_shape(begin, train, buffer, key))
        programs = _compiled(run, progress, labels, shapes)
        train, _ = fitting.result()
    average = jax.device_get(devices.whole(train.average))
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(average)):
        rate = config.train.learning_rate
        raise InputError(f"train.learning_rate: the first training diverges at {rate:g}; give a smaller one")
    return jax.block_until_ready(jax.jit(begin)(train, buffer, key)), programs
