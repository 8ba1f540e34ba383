"""A run from start to end: what the host does between two segments of the program.

It keeps the checkpoint, the growing files and the display, grows capacities where the program says so, decides
when enough is learned, and finishes with a long training, the model, its validation and the report. Of several
processes each does the same; what concerns files, labels and the clock the first does, and the others follow it.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxal import buffer as buffers
from jaxal import checkpoint, devices, finish, lock, loop, memory, neighbors, records, setup, stop, yaml12
from jaxal.check import check, of_system, start_structures
from jaxal.config import FILE_NAME, dump, import_parts, load, parse, resolved
from jaxal.label.service import Service
from jaxal.label.task import Enough
from jaxal.memory import CHECKPOINTS, STORE, Progress, Run
from jaxal.progress import Status, display
from jaxal.schema import Config
from jaxal.structure import species_table
from jaxal.train import fit as training
from jaxal.types import InputError

EARLY_SLOWER = 3  # times the learning rate is halved after a diverged training


def start(config: Config, directory: Path) -> bool:
    """Runs a configuration in a new folder. Returns whether it came to its end: False where it was told to stop.

    Ctrl-C and SIGTERM tell it, and `resume` goes on. Raises InputError for mistakes and for a folder in use.
    """
    directory = Path(directory)
    setup.dtype_of(config.precision)

    def prepared() -> str:
        records.refuse_used(directory)
        check(config)
        ready = dataclasses.replace(config, devices=setup.devices_of(config))
        directory.mkdir(parents=True, exist_ok=True)
        folder.enter_context(lock.held(directory))
        records.refuse_used(directory)
        records.versions(directory)
        return dump(resolved(ready, directory))

    with stop.interruptible(directory) as interrupted, ExitStack() as folder:
        return _go(_told(prepared), directory, interrupted)


def resume(directory: Path, overrides: Sequence[str] = ()) -> bool:
    """Goes on with a run where its last checkpoint stands, bit for bit; a finished run is left as it is.

    `overrides`, such as "stop.labels=500", change fields of its configuration for good; `memory.MAY_CHANGE` says
    which may. Returns whether it came to its end, as `start` does. Raises InputError for another change, and where
    another process is at work on the folder.
    """
    directory = Path(directory)

    def found() -> str:
        if not (directory / FILE_NAME).is_file():
            raise InputError(f"{directory}: not a run folder, it holds no {FILE_NAME}; `jaxal run CONFIG` starts a run")
        folder.enter_context(lock.held(directory))
        return dump(load(directory / FILE_NAME, overrides))

    with stop.interruptible(directory) as interrupted, ExitStack() as folder:
        config = _told(found)
        setup.dtype_of(config.precision)
        return _go(config, directory, interrupted, bool(overrides))


def _told(text: Callable[[], str]) -> Config:
    """The configuration that the first process has, from its text."""
    return parse(yaml12.parse(devices.from_first(text), FILE_NAME), None)


def _go(config: Config, directory: Path, interrupted: Callable[[], bool], changed: bool = False) -> bool:
    import_parts()
    setup.mesh_of(config)  # before anything else: what was there when the run began may be gone when it is resumed

    def start() -> list[Any]:
        check(config)
        starts = start_structures(config.system)
        return [[atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc] for atoms in starts]

    starts = [of_system(config.system, *told) for told in devices.from_first(start)]
    with suppress(Enough), display() if devices.first() else nullcontext(_unseen) as show:
        run = Run(config, directory, starts, species_table(starts), show, time.monotonic(), interrupted)
        if devices.from_first(lambda: checkpoint.latest(directory / CHECKPOINTS)) is None:
            records.cut(directory, {})
            progress, train, buffer = _begin(run)
            _end_if_told(run)
            train = devices.laid(run.mesh, loop.LAYOUT.train, train)
            buffer = devices.laid(run.mesh, loop.LAYOUT.buffer, buffer)
            state = None
        else:
            progress, state = memory.restore(run)
            if changed and devices.first():
                resolved(config, directory)
            records.cut(directory, progress.sizes)
            train = buffer = None
        run = run._replace(began=run.began - progress.elapsed)
        with _labels(run, progress) as (label, drain):
            if progress.phase == "explore":
                state = _explore(run, progress, state, train, buffer, label, drain)
            if progress.phase != "done":
                assert state is not None
                memory.show(run, progress, "final training")
                finish.finish(run, progress, *_assembled(run, progress, label), state)
        memory.show(run, progress, "done")
        return True
    return False


def _end_if_told(run: Run) -> None:
    """Raises Enough in all processes where the first was told to end."""
    if devices.from_first(run.interrupted):
        raise Enough


def _unseen(status: Status) -> None:
    """Shows nothing: the first process shows how the run stands."""


def _begin(run: Run) -> tuple[Progress, training.TrainState, buffers.Buffer]:
    """First labels and an untrained committee."""
    config = run.config
    run.show(Status("first labels", 0.0, budget=config.stop.labels))

    def labeled() -> list[Any] | None:
        with suppress(Enough):  # it must be raised in all processes
            return setup.first_labels(config, run.starts, run.directory / STORE, run.interrupted).told()

    told = devices.from_first(labeled)
    if told is None:
        raise Enough
    first = setup.First.heard(told)
    reference = training.reference_energies(first.structures, first.labels.energy, len(run.table))
    structures, labels = setup.cast(first.structures, first.labels, reference, config.precision)
    committee = setup.committee_of(config, run.table)
    near = neighbors.plan(structures, committee.potential.cutoff, setup.SKIN)
    train_near = neighbors.plan(structures, committee.potential.cutoff, 0.0)
    number = structures.charge.shape[0]
    key, key_set = jax.random.split(jax.random.key(config.seed))
    params = setup.new_params(committee, key, train_near, structures, labels)
    buffer = setup.training_set(
        structures,
        labels,
        setup.spread_hold(number, config.train.holdout),
        committee.members,
        min(config.stop.labels, setup.LARGEST_BUFFER),
        key_set,
        1.0 if config.train.bootstrap else 0.0,
    )
    train = training.init(setup.recipe(config.train), params)
    progress = Progress(
        reference=[float(x) for x in reference],
        config=dump(config, run.directory),
        near=memory.spec_out(near),
        train_near=memory.spec_out(train_near),
        rate=config.train.learning_rate,
        asked=number + first.failed,
        failed=first.failed,
    )
    records.append(run.directory, [{"kind": "phase", "wall": memory.elapsed(run), "phase": "initial", "why": ""}])
    return progress, train, buffer


@contextmanager
def _labels(run: Run, progress: Progress) -> Iterator[tuple[setup.LabelFunction, Callable[[], list[str]]]]:
    """The label function of the program, and the reasons of the labels that failed since the last call."""
    config = run.config
    reference = np.asarray(progress.reference)
    if config.label.part.kind == "oracle":
        dtype = setup.dtype_of(config.precision)
        example = setup.from_atoms(run.starts, run.table, dtype=dtype)
        spec = setup.oracle_spec(config, run.table, example)
        yield setup.oracle_label(config, run.table, dtype, reference, spec), list
        return
    opened: list[Service] = []

    def opening() -> None:
        opened.append(setup.open_service(config, run.table, run.directory / STORE, reference))

    devices.from_first(opening)

    def asked(structures: Any, wanted: np.ndarray) -> Any:
        answer = opened[0].label(structures, wanted)
        progress.asked += int(np.sum(wanted))
        progress.failed += int(np.sum(wanted) - np.sum(answer.ok))
        memory.show(run, progress, "explore")
        return answer

    def drained() -> list[str]:
        for trouble in filter(None, (service.trouble() for service in opened)):
            raise InputError(f"{trouble}; the last checkpoint stands, `jaxal resume {run.directory}` goes on from it")
        return [r.reason for service in opened for r in service.drain() if not r.ok]

    try:
        label = setup.host_label_of(asked, run.mesh)
        yield label, drained
    finally:
        for service in opened:
            service.close()


def _explore(
    run: Run,
    progress: Progress,
    restored: loop.State | None,
    train: training.TrainState | None,
    buffer: buffers.Buffer | None,
    label: setup.LabelFunction,
    drain: Callable[[], list[str]],
) -> loop.State:
    """Segments until a reason to stop."""
    config = run.config
    parts, static = _assembled(run, progress, label)
    if restored is None:
        assert train is not None and buffer is not None
        state: loop.State
        state, segment = _first_training(run, progress, parts, static, train, buffer)
        memory.save(run, progress, state)
    else:
        state = restored
        memory.show(run, progress, "compiling")
        segment = _lowered(run, progress, parts, static, state).compile()
    saved, unsaved = time.monotonic(), False
    if progress.look == 0:
        records.append(run.directory, [memory.phase(run, "explore")])
    timestep = parts.explorer.timestep

    def judged(looks: loop.Look | None, reasons: list[str]) -> list[Any]:
        """What the host makes of a segment, whether a checkpoint is due, and what it remembers now."""
        if looks is not None:
            memory.note(run, progress, state, looks, timestep, reasons)
        quiet = float(np.min(np.asarray(state.quiet)))
        due = time.monotonic() - saved >= config.output.checkpoint
        return [*stop.verdict(run, progress, quiet, timestep), due, dataclasses.asdict(progress)]

    def judge(looks: loop.Look | None, reasons: list[str]) -> tuple[str, bool]:
        why, wrong, due, now = devices.from_first(lambda: judged(looks, reasons))
        vars(progress).update(now)
        if wrong:
            memory.save(run, progress, state)
            raise InputError(wrong)
        return why, due

    why, due = judge(None, [])
    while not why:
        if unsaved and (due or devices.from_first(run.interrupted)):
            memory.save(run, progress, state)
            saved, unsaved = time.monotonic(), False
        _end_if_told(run)
        memory.show(run, progress, "explore")
        counted = progress.asked, progress.failed
        state, looks = segment(state, setup.limits_of(config, progress.rate, stop.probe_rate(run, progress)))
        looks = jax.device_get(looks)
        problems = int(state.problems)
        unsaved = True
        reasons = devices.from_first(drain)
        if problems & loop.UNDONE:
            progress.asked, progress.failed = counted
            state = _mended(run, progress, state, problems)
            if problems & (loop.NEIGHBORS_FULL | loop.BUFFER_FULL):
                parts, static = _assembled(run, progress, label)
                segment = _lowered(run, progress, parts, static, state).compile()
            continue
        why, due = judge(looks, reasons)
    progress.phase = "final training"
    records.append(run.directory, [memory.phase(run, "final training", why)])
    memory.save(run, progress, state)
    return state


def _assembled(run: Run, progress: Progress, label: setup.LabelFunction) -> tuple[loop.Parts, loop.Static]:
    parts = setup.parts_of(run.config, run.atoms, run.table, label)
    return parts, setup.static_of(
        run.config, run.table, memory.spec_in(progress.near), memory.spec_in(progress.train_near)
    )


def _lowered(run: Run, progress: Progress, parts: loop.Parts, static: loop.Static, state: Any) -> jax.stages.Lowered:
    """The segment as a program for states like `state`; what is compiled from it serves the whole run."""
    limits = setup.limits_of(run.config, progress.rate, 0.0)
    return jax.jit(loop.make_segment(parts, static), donate_argnums=0).lower(state, limits)


def _first_training(
    run: Run,
    progress: Progress,
    parts: loop.Parts,
    static: loop.Static,
    train: training.TrainState,
    buffer: buffers.Buffer,
) -> tuple[loop.State, Any]:
    """Trains on the first labels while the segment is compiled; the state to begin with, and the program."""
    config = run.config
    memory.show(run, progress, "first training")
    structures = jax.tree.map(jnp.asarray, memory.walker_structures(run))
    key_train, key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1))

    def begin(train: training.TrainState, buffer: buffers.Buffer, key: Any) -> loop.State:
        state = loop.start(parts, static, train, buffer, structures, key)
        return state._replace(labels=jnp.asarray(progress.asked, jnp.int32))

    limits = setup.limits_of(config, progress.rate, stop.TRICKLE)
    steps = jnp.asarray(config.train.initial_steps, jnp.int32)
    given = train, buffer, key_train, steps, limits.rate, limits.final_rate
    fit = finish.compiled_fit(parts.committee, static.recipe, static.train_near).lower(*given)
    # Lowering is Python's work, compiling and training XLA's: beside the first training the segment is made ready.
    with ThreadPoolExecutor(1) as beside:
        fitting = beside.submit(lambda: jax.block_until_ready(fit.compile()(*given)))
        shapes = devices.shapes(run.mesh, loop.LAYOUT, jax.eval_shape(begin, train, buffer, key))
        segment = _lowered(run, progress, parts, static, shapes).compile()
        train, _ = fitting.result()
    average = jax.device_get(devices.whole(train.average))
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(average)):
        rate = config.train.learning_rate
        raise InputError(f"train.learning_rate: the first training diverges at {rate:g}; give a smaller one")
    return jax.block_until_ready(jax.jit(begin)(train, buffer, key)), segment


def _mended(run: Run, progress: Progress, state: loop.State, problems: int) -> loop.State:
    """The state with what the program found too small made larger, or the learning rate halved."""
    if problems & loop.NEIGHBORS_FULL:
        structures = devices.whole(state.walkers.structure)
        for name in ("near", "train_near"):
            spec = memory.spec_in(getattr(progress, name))
            larger = devices.from_first(lambda spec=spec: memory.spec_out(neighbors.larger(spec, structures)))
            setattr(progress, name, larger)
        near = jax.jit(neighbors.find, static_argnums=0)(memory.spec_in(progress.near), state.walkers.structure)
        state = state._replace(near=devices.laid(run.mesh, loop.LAYOUT.near, near))
    if problems & loop.BUFFER_FULL:
        grown = buffers.grow(state.buffer, 2 * buffers.capacity(state.buffer))
        state = state._replace(buffer=devices.laid(run.mesh, loop.LAYOUT.buffer, grown))
    if problems & loop.NOT_FINITE:
        progress.slower += 1
        progress.rate *= 0.5
        if progress.slower > EARLY_SLOWER:
            memory.save(run, progress, state)
            raise InputError(
                f"train.learning_rate: training diverges even at {progress.rate:g}; give a smaller one and "
                f"check the labels in {run.directory / STORE}"
            )
    what = ", ".join(text for bit, text in loop.PROBLEMS.items() if problems & bit & loop.UNDONE)
    memory.show(run, progress, "explore", f"{what}: mended, replaying the segment")
    return state
