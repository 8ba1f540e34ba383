"""A run from start to end: what the host does between two segments of the program.

It keeps the checkpoint, the growing files and the display, grows capacities where the program says so, decides
when enough is learned, and finishes with a long training, the model, its validation and the report.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxal import buffer as buffers
from jaxal import checkpoint, finish, loop, memory, neighbors, records, setup
from jaxal.check import check
from jaxal.config import FILE_NAME, load, resolved
from jaxal.memory import CHECKPOINTS, STORE, Progress, Run
from jaxal.progress import Status, display
from jaxal.schema import Config
from jaxal.structure import species_table
from jaxal.train import fit as training
from jaxal.types import InputError

STUCK = 200  # looks in a row at which no walker was physical
TRICKLE = 0.001  # chance of a probe at each look at a walker, so that the held-out labels are not only flagged ones
EARLY_SLOWER = 3  # times the learning rate is halved after a diverged training


def start(config: Config, directory: Path) -> None:
    """Runs a configuration in a new folder. Raises InputError for mistakes and for a folder in use."""
    directory = Path(directory)
    if directory.exists() and any(directory.iterdir()):
        raise InputError(f"{directory}: the folder is in use; `jaxal resume {directory}` goes on, --dir names another")
    setup.dtype_of(config.precision)
    check(config)
    config = resolved(config, directory)
    records.versions(directory)
    _go(config, directory)


def resume(directory: Path) -> None:
    """Goes on with a run where its last checkpoint stands, bit for bit; a finished run is left as it is."""
    directory = Path(directory)
    if not (directory / FILE_NAME).is_file():
        raise InputError(f"{directory}: not a run folder, it holds no {FILE_NAME}; `jaxal run CONFIG` starts a run")
    config = load(directory / FILE_NAME)
    setup.dtype_of(config.precision)
    _go(config, directory)


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Yields whether Ctrl-C was pressed. The exception alone can be lost: one raised while garbage is collected is."""
    pressed = threading.Event()

    def handler(*_: Any) -> None:
        pressed.set()
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield pressed.is_set
    except Exception:
        if pressed.is_set():  # raised inside a callback it comes back as an error of XLA
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def _go(config: Config, directory: Path) -> None:
    atoms = check(config)
    with _interruptible() as interrupted, display() as show:
        run = Run(config, directory, atoms, species_table([atoms]), show, time.monotonic(), interrupted)
        if checkpoint.latest(directory / CHECKPOINTS) is None:
            records.cut(directory, {})
            progress, train, buffer = _begin(run)
            state = None
        else:
            progress, state = memory.restore(run)
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


def _begin(run: Run) -> tuple[Progress, training.TrainState, buffers.Buffer]:
    """First labels and an untrained committee."""
    config = run.config
    run.show(Status("first labels", 0.0, budget=config.stop.labels))
    first = setup.first_labels(config, run.atoms, run.directory / STORE)
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
        example = setup.from_atoms([run.atoms], run.table, dtype=dtype)
        spec = setup.oracle_spec(config, run.table, example)
        yield setup.oracle_label(config, run.table, dtype, reference, spec), list
        return
    service = setup.open_service(config, run.table, run.directory / STORE, reference)

    def asked(structures: Any, wanted: np.ndarray) -> Any:
        answer = service.label(structures, wanted)
        progress.asked += int(np.sum(wanted))
        progress.failed += int(np.sum(wanted) - np.sum(answer.ok))
        memory.show(run, progress, "explore")
        return answer

    try:
        yield setup.host_label_of(asked), lambda: [r.reason for r in service.drain() if not r.ok]
    finally:
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
    saved = time.monotonic()
    if progress.look == 0:
        records.append(run.directory, [memory.phase(run, "explore")])
    timestep = parts.explorer.timestep
    why = _reason(run, progress, state, timestep)
    while not why:
        memory.show(run, progress, "explore")
        counted = progress.asked, progress.failed
        state, looks = segment(state, setup.limits_of(config, progress.rate, _probe_rate(run, progress)))
        looks = jax.device_get(looks)
        problems = int(state.problems)
        if run.interrupted():
            raise KeyboardInterrupt
        reasons = drain()
        if problems & loop.UNDONE:
            progress.asked, progress.failed = counted
            state = _mended(run, progress, state, problems)
            if problems & (loop.NEIGHBORS_FULL | loop.BUFFER_FULL):
                parts, static = _assembled(run, progress, label)
                segment = _lowered(run, progress, parts, static, state).compile()
            continue
        _note(run, progress, state, looks, timestep, reasons)
        why = _reason(run, progress, state, timestep)
        if time.monotonic() - saved >= config.output.checkpoint:
            memory.save(run, progress, state)
            saved = time.monotonic()
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
    """Trains on the first labels while the segment is compiled beside; the state to begin with, and the program."""
    config = run.config
    memory.show(run, progress, "first training")
    structures = jax.tree.map(jnp.asarray, memory.walker_structures(run))
    key_train, key = jax.random.split(jax.random.fold_in(jax.random.key(config.seed), 1))

    def begin(train: training.TrainState, buffer: buffers.Buffer, key: Any) -> loop.State:
        state = loop.start(parts, static, train, buffer, structures, key)
        return state._replace(labels=jnp.asarray(progress.asked, jnp.int32))

    limits = setup.limits_of(config, progress.rate, TRICKLE)
    # Lowering is Python's work and compiling XLA's: the larger program compiles while the first training goes on.
    lowered = _lowered(run, progress, parts, static, jax.eval_shape(begin, train, buffer, key))
    with ThreadPoolExecutor(1) as beside:
        compiling = beside.submit(lowered.compile)
        steps = jnp.asarray(config.train.initial_steps, jnp.int32)
        fit = finish.compiled_fit(parts.committee, static.recipe, static.train_near)
        train, _ = fit(train, buffer, key_train, steps, limits.rate, limits.final_rate)
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(train.average))):
            rate = config.train.learning_rate
            raise InputError(f"train.learning_rate: the first training diverges at {rate:g}; give a smaller one")
        state = jax.block_until_ready(jax.jit(begin)(train, buffer, key))
        memory.show(run, progress, "compiling")
        return state, compiling.result()


def _mended(run: Run, progress: Progress, state: loop.State, problems: int) -> loop.State:
    """The state with what the program found too small made larger, or the learning rate halved."""
    if problems & loop.NEIGHBORS_FULL:
        for name in ("near", "train_near"):
            spec = memory.spec_in(getattr(progress, name))
            setattr(progress, name, memory.spec_out(neighbors.larger(spec, state.walkers.structure)))
        near = jax.jit(neighbors.find, static_argnums=0)(memory.spec_in(progress.near), state.walkers.structure)
        state = state._replace(near=near)
    if problems & loop.BUFFER_FULL:
        state = state._replace(buffer=buffers.grow(state.buffer, 2 * buffers.capacity(state.buffer)))
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


def _note(
    run: Run,
    progress: Progress,
    state: loop.State,
    looks: loop.Look,
    timestep: float,
    reasons: list[str],
) -> None:
    """Takes down what a segment did, in memory and in the files."""
    config, number = run.config, looks.factor.shape[0]
    per_look = config.gate.every * timestep * 1e-3  # ps
    ps = per_look * (progress.look + 1 + np.arange(number))
    wall = memory.elapsed(run)
    asked = int(np.sum(looks.walker >= 0))
    lines = records.label_records(looks, wall, ps, int(state.labels) - asked + 1, reasons)
    good = [line["rmse"] for line in lines if line["ok"]]
    progress.asked = int(state.labels)
    progress.failed += 0 if run.config.label.part.kind == "labeler" else asked - len(good)
    progress.true = float(np.mean(good)) if good else progress.true
    progress.flagged = float(np.mean(looks.flagged))
    estimate = looks.estimate[~looks.unphysical]
    calibrated = np.isfinite(looks.factor[-1])
    progress.estimated = float(np.mean(estimate)) if calibrated and estimate.size else None
    fold = looks.fold_rmse[np.isfinite(looks.fold_rmse)]
    progress.fold = float(fold[-1]) if fold.size else progress.fold
    if progress.probing:
        progress.probes += [float(line["rmse"]) ** 2 for line in lines if line["probe"] and line["ok"]]
    idle = looks.unphysical.all(axis=1) & ~looks.ok.any(axis=1)
    progress.stuck = progress.stuck + number if idle.all() else 0
    loss = looks.loss[np.isfinite(looks.loss)]
    records.append(
        run.directory,
        [
            *lines,
            {
                "kind": "segment",
                "wall": wall,
                "ps": ps[-1],
                "labels": progress.asked,
                "failed": progress.failed,
                "looks": progress.look + number,
                "flagged": progress.flagged,
                "unphysical": float(np.mean(looks.unphysical)),
                "factor": looks.factor[-1],
                "estimated": progress.estimated,
                "worst": float(np.max(estimate)) if calibrated and estimate.size else None,
                "loss": loss[-1] if loss.size else None,
                "holdout_force_rmse": progress.fold,
                "temperature": float(np.mean(looks.temperature)),
            },
        ],
    )
    reference = np.asarray(progress.reference)
    records.write_walkers(run.directory, looks, config.output.trajectory, progress.look, run.table, reference)
    progress.look += number


def _reason(run: Run, progress: Progress, state: loop.State, timestep: float) -> str:
    """Why the exploration is over; empty as long as it is not."""
    stop = run.config.stop
    ps = progress.look * run.config.gate.every * timestep * 1e-3
    if progress.stuck >= STUCK:
        memory.save(run, progress, state)
        raise InputError(
            f"explore: no walker stayed physical for {progress.stuck} looks; lower explore.temperature or "
            "explore.timestep, raise gate.implausible, or give more label.initial"
        )
    if progress.asked >= 20 and progress.failed > 0.5 * progress.asked:
        memory.save(run, progress, state)
        raise InputError(
            f"label: {progress.failed} of {progress.asked} labels failed; see `reason` in {run.directory / STORE} "
            "and mend the method before going on"
        )
    if progress.asked >= stop.labels:
        return f"label budget of {stop.labels}"
    quiet = float(np.min(np.asarray(state.quiet))) * timestep * 1e-3
    if quiet >= stop.quiet:
        return f"quiet for {stop.quiet:g} ps"
    if stop.time is not None and ps >= stop.time:
        return f"{stop.time:g} ps of dynamics"
    if stop.wall is not None and memory.elapsed(run) >= stop.wall:
        return f"{stop.wall:g} s of wall time"
    if stop.error is not None:
        if len(progress.probes) >= stop.probes:
            found = float(np.sqrt(np.mean(progress.probes)))
            if found <= stop.error:
                return f"force RMSE {1e3 * found:.0f} meV/Å on {len(progress.probes)} fresh probe labels"
            progress.probing, progress.probes = False, []
        elif not progress.probing and progress.fold is not None:
            progress.probing = progress.fold <= stop.error
    return ""


def _probe_rate(run: Run, progress: Progress) -> float:
    """Chance of each walker at each look to be a probe: a trickle, or enough for the fresh probes in two segments."""
    if not progress.probing:
        return TRICKLE
    return min(1.0, run.config.stop.probes / (2 * setup.LOOKS * run.config.explore.walkers))
