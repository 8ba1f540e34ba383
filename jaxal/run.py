"""A run from start to end: what the host does between two segments of the program.

It keeps the checkpoint, the growing files and the display, grows capacities where the program says so, decides
when enough is learned, and finishes with a long training, the model, its validation and the report.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np

from jaxal import buffer as buffers
from jaxal import checkpoint, committee, loop, model, neighbors, records, report, setup
from jaxal.check import check
from jaxal.config import FILE_NAME, load, resolved
from jaxal.progress import Status, display
from jaxal.schema import Config
from jaxal.structure import Table, species_table
from jaxal.train import fit as training
from jaxal.types import InputError
from jaxal.validate import command

CHECKPOINTS, STORE = "checkpoints", "labels.sqlite"
STUCK = 200  # looks in a row at which no walker was physical
CHUNKS = 10  # pieces of the final training, between which the held-out error is looked at
TRICKLE = 0.001  # chance of a probe at each look at a walker, so that the held-out labels are not only flagged ones
EARLY_SLOWER = 3  # times the learning rate is halved after a diverged training


@dataclass
class Progress:
    """What the host remembers between segments; all of it goes into the checkpoint as JSON."""

    reference: list[float]
    near: list[Any]
    train_near: list[Any]
    phase: str = "explore"
    elapsed: float = 0.0  # s, over all sittings
    look: int = 0
    asked: int = 0
    failed: int = 0
    flagged: float = 0.0  # of the last segment, fraction
    estimated: float | None = None  # eV/Å, mean of the last segment
    true: float | None = None  # eV/Å, mean force RMSE of the last labels before training on them
    fold: float | None = None  # eV/Å, force RMSE on the held-out labels
    rate: float = 0.0
    slower: int = 0
    stuck: int = 0
    probing: bool = False
    probes: list[float] = field(default_factory=list)  # squared force RMSE of the fresh probes
    sizes: dict[str, int] = field(default_factory=dict)


class Run(NamedTuple):
    """An open run: what does not change while it goes."""

    config: Config
    directory: Path
    atoms: ase.Atoms
    table: Table
    show: Callable[[Status], None]
    began: float


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


def _go(config: Config, directory: Path) -> None:
    atoms = check(config)
    with display() as show:
        run = Run(config, directory, atoms, species_table([atoms]), show, time.monotonic())
        if checkpoint.latest(directory / CHECKPOINTS) is None:
            records.cut(directory, {})
            progress, train, buffer = _begin(run)
            state = None
        else:
            progress, state = _restore(run)
            records.cut(directory, progress.sizes)
            train = buffer = None
        run = run._replace(began=run.began - progress.elapsed)
        with _labels(run, progress) as (label, drain):
            if progress.phase == "explore":
                state = _explore(run, progress, state, train, buffer, label, drain)
            if progress.phase != "done":
                _finish(run, progress, state, label)
        _status(run, progress, "done")


def _begin(run: Run) -> tuple[Progress, training.TrainState, buffers.Buffer]:
    """First labels and an untrained committee."""
    config = run.config
    run.show(Status("first labels", 0.0, budget=config.stop.labels))
    first = setup.first_labels(config, run.atoms, run.directory / STORE)
    reference = training.reference_energies(first.structures, first.labels.energy, len(run.table))
    structures, labels = setup.cast(first.structures, first.labels, reference, config.precision)
    potential = config.potential.bind()(run.table)
    near = neighbors.plan(structures, potential.cutoff, setup.SKIN)
    train_near = neighbors.plan(structures, potential.cutoff, 0.0)
    number = structures.charge.shape[0]
    key, key_set = jax.random.split(jax.random.key(config.seed))
    params = setup.new_params(potential, key, config.committee.members, train_near, structures, labels)
    buffer = setup.training_set(
        structures,
        labels,
        setup.spread_hold(number, config.train.holdout),
        config.committee.members,
        min(config.stop.labels, setup.LARGEST_BUFFER),
        key_set,
        1.0 if config.train.bootstrap else 0.0,
    )
    train = training.init(setup.recipe(config.train), params)
    progress = Progress(
        reference=[float(x) for x in reference],
        near=_spec_out(near),
        train_near=_spec_out(train_near),
        rate=config.train.learning_rate,
        asked=number + first.failed,
        failed=first.failed,
    )
    records.append(run.directory, [{"kind": "phase", "wall": _elapsed(run), "phase": "initial", "why": ""}])
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
        _status(run, progress, "explore")
        return answer

    try:
        yield setup.host_label_of(asked), lambda: [r.reason for r in service.drain() if not r.ok]
    finally:
        service.close()


def _compiled(run: Run, progress: Progress, label: setup.LabelFunction) -> tuple[loop.Parts, loop.Static]:
    parts = setup.parts_of(run.config, run.atoms, run.table, label)
    return parts, setup.static_of(run.config, run.table, _spec(progress.near), _spec(progress.train_near))


def _explore(
    run: Run,
    progress: Progress,
    state: loop.State | None,
    train: training.TrainState | None,
    buffer: buffers.Buffer | None,
    label: setup.LabelFunction,
    drain: Callable[[], list[str]],
) -> loop.State:
    """Segments until a reason to stop."""
    config = run.config
    parts, static = _assembled(run, progress, label)
    if state is None:
        assert train is not None and buffer is not None
        state, segment = _first_training(run, progress, parts, static, train, buffer)
        _save(run, progress, state)
    else:
        _status(run, progress, "compiling")
        segment = _lowered(run, progress, parts, static, state).compile()
    saved = time.monotonic()
    if progress.look == 0:
        records.append(run.directory, [_phase(run, "explore")])
    timestep = parts.explorer.timestep
    why = _reason(run, progress, state, timestep)
    while not why:
        _status(run, progress, "explore")
        counted = progress.asked, progress.failed
        state, looks = segment(state, setup.limits_of(config, progress.rate, _probe_rate(run, progress)))
        looks = jax.device_get(looks)
        problems = int(state.problems)
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
            _save(run, progress, state)
            saved = time.monotonic()
    progress.phase = "final training"
    records.append(run.directory, [_phase(run, "final training", why)])
    _save(run, progress, state)
    return state


def _assembled(run: Run, progress: Progress, label: setup.LabelFunction) -> tuple[loop.Parts, loop.Static]:
    parts = setup.parts_of(run.config, run.atoms, run.table, label)
    return parts, setup.static_of(run.config, run.table, _spec(progress.near), _spec(progress.train_near))


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
    _status(run, progress, "first training")
    structures = jax.tree.map(jnp.asarray, _walker_structures(run))
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
        train, _ = _fit(parts, static)(train, buffer, key_train, steps, limits.rate, limits.final_rate)
        state = jax.block_until_ready(jax.jit(begin)(train, buffer, key))
        _status(run, progress, "compiling")
        return state, compiling.result()


def _walker_structures(run: Run) -> Any:
    config = run.config
    return setup.from_atoms(
        [run.atoms] * config.explore.walkers,
        run.table,
        config.system.charge,
        config.system.spin,
        dtype=np.dtype(config.precision),
    )


def _fit(parts: loop.Parts, static: loop.Static) -> Any:
    """Training as a program of its own, for the first and the final one."""

    @jax.jit
    def fit(train, buffer, key, steps, rate, final_rate):
        near, recipe = static.train_near, static.recipe
        return training.fit(
            parts.potential, recipe, near, train, buffer, key, steps, rate, final_rate, static.batching
        )

    return fit


def _mended(run: Run, progress: Progress, state: loop.State, problems: int) -> loop.State:
    """The state with what the program found too small made larger, or the learning rate halved."""
    if problems & loop.NEIGHBORS_FULL:
        for name in ("near", "train_near"):
            spec = _spec(getattr(progress, name))
            cells = state.walkers.structure
            planned = neighbors.plan(jax.device_get(cells), spec.cutoff, spec.skin)
            images = tuple(max(a, b) for a, b in zip(spec.images, planned.images, strict=True))
            room = max(planned.capacity, int(1.5 * spec.capacity) + 1)
            if not np.any(np.asarray(cells.cell)):
                room = min(room, max(1, cells.species.shape[-1] - 1))
            setattr(progress, name, _spec_out(spec._replace(capacity=room, images=images)))
        near = jax.jit(loop.find, static_argnums=0)(_spec(progress.near), state.walkers.structure)
        state = state._replace(near=near)
    if problems & loop.BUFFER_FULL:
        state = state._replace(buffer=buffers.grow(state.buffer, 2 * buffers.capacity(state.buffer)))
    if problems & loop.NOT_FINITE:
        progress.slower += 1
        progress.rate *= 0.5
        if progress.slower > EARLY_SLOWER:
            _save(run, progress, state)
            raise InputError(
                f"train.learning_rate: training diverges even at {progress.rate:g}; give a smaller one and "
                f"check the labels in {run.directory / STORE}"
            )
    what = ", ".join(text for bit, text in loop.PROBLEMS.items() if problems & bit & loop.UNDONE)
    _status(run, progress, "explore", f"{what}: mended, replaying the segment")
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
    wall = _elapsed(run)
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
        _save(run, progress, state)
        raise InputError(
            f"explore: no walker stayed physical for {progress.stuck} looks; lower explore.temperature or "
            "explore.timestep, raise gate.implausible, or give more label.initial"
        )
    if progress.asked >= 20 and progress.failed > 0.5 * progress.asked:
        _save(run, progress, state)
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
    if stop.wall is not None and _elapsed(run) >= stop.wall:
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


def _finish(run: Run, progress: Progress, state: loop.State | None, label: setup.LabelFunction) -> None:
    """Final training, model, validation, report."""
    assert state is not None
    config, directory = run.config, run.directory
    parts, static = _assembled(run, progress, label)
    train, gate = _final_training(run, progress, parts, static, state)
    reference = np.asarray(progress.reference)
    finished = model.Model(
        potential=config.potential.name,
        options=config.potential.options,
        table=run.table,
        params=jax.device_get(train.average),
        reference=reference,
        factor=float(gate.factor),
        precision=config.precision,
        charge=config.system.charge,
        spin=config.system.spin,
    )
    model.save(directory / model.FILE_NAME, finished)
    records.write_training(directory, state.buffer, run.table, reference)
    if config.validate.data is not None:
        _status(run, progress, "validation")
        records.append(directory, [_phase(run, "validation")])
        command.save(directory, command.validate(directory, config.validate.data))
    progress.phase = "done"
    records.append(directory, [_phase(run, "done")])
    _save(run, progress, state)
    report.write(directory)


def _final_training(
    run: Run, progress: Progress, parts: loop.Parts, static: loop.Static, state: loop.State
) -> tuple[training.TrainState, Any]:
    """Down to the final learning rate on a cosine, keeping the weights with the least held-out force error."""
    steps = run.config.train.final_steps
    fit = _fit(parts, static)
    judge = jax.jit(lambda gate, params, buffer: loop.calibrate(parts, static, gate, params, buffer)[:2])
    train = state.train
    gate, rmse = judge(state.gate, train.average, state.buffer)
    best = (float(rmse) if np.isfinite(rmse) else np.inf, train, gate)
    last = run.config.train.final_learning_rate
    rates = last + 0.5 * (progress.rate - last) * (1 + np.cos(np.pi * np.arange(CHUNKS + 1) / CHUNKS))
    began = time.monotonic()
    key = jax.random.fold_in(jax.random.key(run.config.seed), 2)
    for chunk in range(CHUNKS if steps else 0):
        count = jnp.asarray(steps * (chunk + 1) // CHUNKS - steps * chunk // CHUNKS, jnp.int32)
        pair = (jnp.asarray(rate, state.buffer.label.energy.dtype) for rate in rates[chunk : chunk + 2])
        train, _ = fit(train, state.buffer, jax.random.fold_in(key, chunk), count, *pair)
        gate, rmse = judge(state.gate, train.average, state.buffer)
        if not np.isfinite(rmse) or float(rmse) <= best[0]:
            best = (float(rmse) if np.isfinite(rmse) else np.inf, train, gate)
        progress.fold = float(rmse) if np.isfinite(rmse) else None
        left = (time.monotonic() - began) * (CHUNKS - chunk - 1) / (chunk + 1)
        _status(run, progress, "final training", eta=left)
    return best[1], best[2]


def _restore(run: Run) -> tuple[Progress, loop.State]:
    """State and memory of the newest whole checkpoint."""
    like = _example_state(run)
    state, host, _ = checkpoint.restore(run.directory / CHECKPOINTS, like)
    return Progress(**host), state


def _example_state(run: Run) -> Any:
    """A state of the right structure, as shapes; what sizes it has is on disk."""
    config = run.config
    structures = _walker_structures(run)
    potential = config.potential.bind()(run.table)
    near = neighbors.plan(structures, potential.cutoff, setup.SKIN)
    parts = setup.parts_of(config, run.atoms, run.table, lambda structures, wanted: None)  # pyright: ignore
    static = setup.static_of(config, run.table, near, near)

    def build(structures: Any, key: Any) -> loop.State:
        one = jax.tree.map(lambda x: x[0], structures)
        from_one = neighbors.build(near, one)
        params = committee.init(potential, key, config.committee.members, one, from_one)
        buffer = buffers.init(one, config.committee.members, 1)
        return loop.start(parts, static, training.init(static.recipe, params), buffer, structures, key)

    return jax.eval_shape(build, jax.tree.map(jnp.asarray, structures), jax.random.key(0))


def _save(run: Run, progress: Progress, state: loop.State) -> None:
    progress.elapsed = _elapsed(run)
    progress.sizes = records.sizes(run.directory)
    checkpoint.save(run.directory / CHECKPOINTS, progress.look, state, asdict(progress))


def _spec(listed: list[Any]) -> neighbors.Spec:
    cutoff, skin, capacity, images = listed
    return neighbors.Spec(cutoff, skin, capacity, tuple(images))


def _spec_out(spec: neighbors.Spec) -> list[Any]:
    return [spec.cutoff, spec.skin, spec.capacity, list(spec.images)]


def _elapsed(run: Run) -> float:
    return time.monotonic() - run.began


def _phase(run: Run, name: str, why: str = "") -> dict[str, Any]:
    return {"kind": "phase", "wall": _elapsed(run), "phase": name, "why": why}


def _status(run: Run, progress: Progress, phase: str, message: str = "", eta: float | None = None) -> None:
    """Shows how the run stands, with the time left by the budget that fills fastest."""
    stop, elapsed = run.config.stop, _elapsed(run)
    ps = progress.look * run.config.gate.every * 1e-3 * run.config.explore.part["timestep"]
    if phase == "explore":
        parts = [progress.asked / stop.labels, ps / stop.time if stop.time else 0, elapsed / stop.wall if stop.wall else 0]
        done = max(parts)
        eta = elapsed * (1 - done) / done if done > 0.05 else None
    run.show(
        Status(
            phase=phase,
            elapsed=elapsed,
            picoseconds=ps,
            labels=progress.asked,
            failed=progress.failed,
            budget=stop.labels,
            gate_rate=progress.flagged if progress.look else None,
            estimated_error=progress.estimated,
            true_error=progress.true,
            eta=eta,
            message=message,
        )
    )
