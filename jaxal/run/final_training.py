"""The end of a run or of an offline training: a long training, the bound, the model, its validation, the report."""

import functools
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxal.committee.evaluation import Committee, predict
from jaxal.config.schema import Config, Offline
from jaxal.core import devices
from jaxal.core.types import InputError, Key, Label, Params, Structure
from jaxal.data import buffer as buffers
from jaxal.data import electrons, neighbors
from jaxal.data import sample as samples
from jaxal.data.dataset import labeled
from jaxal.data.electrons import State
from jaxal.data.frames import of_atoms
from jaxal.data.structure import Table
from jaxal.deploy import model
from jaxal.label.task import Enough
from jaxal.program import state as states
from jaxal.report import page
from jaxal.run import answering, folder, initial_labels, labeling, notes, persistence, session
from jaxal.run.session import Progress, Run
from jaxal.train import fit as training
from jaxal.train import posterior
from jaxal.train import support as supports
from jaxal.train.bound import Bounded, bounded
from jaxal.train.loss import force_rmse
from jaxal.validate import command

CHUNKS = 10  # pieces of the final training, between which the held-out error is looked at
AGAIN = 3  # a training for the labels of a task takes so many times fewer steps, from a smaller rate
STOPPING = 256  # held-out labels, the latest so many, that say which weights are kept
SAMPLED, HELD = "random frames of the dynamics", "held-out labels"  # what calibrates a bound


@functools.lru_cache(maxsize=1)  # a run trains several times for its task
def compiled_fit(committee: Committee, recipe: training.Recipe, near: neighbors.Spec) -> Callable:
    """Training as a program of its own: (train, buffer, key, steps, rate, final rate) -> (train, losses)."""

    @jax.jit
    def fit(train, buffer, key, steps, rate, final_rate):
        train, losses = training.fit(committee, recipe, near, train, buffer, key, steps, rate, final_rate)
        return posterior.learned(committee, near, train, buffer), losses

    return fit


def anneal(
    committee: Committee,
    recipe: training.Recipe,
    near: neighbors.Spec,
    train: training.TrainState,
    buffer: buffers.Buffer,
    key: Key,
    steps: int,
    rate: float,
    final_rate: float,
    show: Callable[[float | None, float], None],
) -> tuple[training.TrainState, float | None]:
    """Trains down to `final_rate` on a cosine and keeps the weights with the least held-out force error.

    That error is of the latest `STOPPING` held-out labels, which are of no use for a bound afterwards. `show` gets it
    (eV/Å, None if nothing is held out) and the seconds left after each piece. Returns the best state and its error.
    """
    fit = compiled_fit(committee, recipe, near)
    held = np.flatnonzero(np.asarray(buffer.held_out) & (np.arange(buffers.capacity(buffer)) < int(buffer.count)))
    rows = held[-STOPPING:]

    @jax.jit
    def assess(params: Params, buffer: buffers.Buffer) -> Float[Array, ""]:
        structures, labels = buffers.rows(buffer, rows)
        prediction = predict(committee, params, structures, neighbors.find(near, structures))
        return force_rmse(prediction.force.mean(1), structures, labels, jnp.ones(rows.size, bool))

    dtype = buffer.label.energy.dtype
    # early stopping is among the weights of this training: those before it saw a larger learning rate
    best: tuple[float, training.TrainState] | None = None
    rates = final_rate + 0.5 * (rate - final_rate) * (1 + np.cos(np.pi * np.arange(CHUNKS + 1) / CHUNKS))
    began = time.monotonic()
    for chunk in range(CHUNKS):
        count = steps * (chunk + 1) // CHUNKS - steps * chunk // CHUNKS
        if count or steps == 0:
            first, last = (jnp.asarray(value, dtype) for value in rates[chunk : chunk + 2])
            train, _ = fit(train, buffer, jax.random.fold_in(key, chunk), jnp.asarray(count, jnp.int32), first, last)
        rmse = float(assess(train.average, buffer)) if rows.size else np.nan
        error = rmse if np.isfinite(rmse) else np.inf
        if best is None or error <= best[0]:
            best = (error, train)
        left = (time.monotonic() - began) * (CHUNKS - chunk - 1) / (chunk + 1)
        show(error if np.isfinite(error) else None, left)
        if steps == 0:
            break
    assert best is not None
    return best[1], best[0] if np.isfinite(best[0]) else None


def model_of(
    config: Config | Offline,
    committee: Committee,
    train: training.TrainState,
    bound: Bounded,
    buffer: buffers.Buffer,
    table: Table,
    reference: np.ndarray,
    isolated: bool,
) -> model.Model:
    """The model of a training; `reference` and `isolated` are as in `model.Model`."""
    return model.Model(
        potential=config.potential.name,
        options=config.potential.options,
        uncertainty=config.uncertainty.name,
        uncertainty_options=config.uncertainty.options,
        precision=config.precision,
        table=table,
        reference=reference,
        isolated=isolated,
        heads=committee.heads,
        signs=committee.signs,
        params=jax.device_get(train.average),
        calibration=bound.calibration,
        support=jax.device_get(bound.support),
        electrons=electrons_can_be(buffer, table),
        states=states_of(buffer),
    )


def states_of(buffer: buffers.Buffer) -> tuple[State, ...]:
    """Charges and spins of what a training set [c] trains on."""
    trained = np.asarray(buffers.trainable(buffer))
    charge, spin = (np.asarray(x)[trained] for x in (buffer.structure.charge, buffer.structure.spin))
    return electrons.states(charge, spin)


def electrons_can_be(buffer: buffers.Buffer, table: tuple[int, ...]) -> bool:
    """Whether every open structure [c] of a training set can have its charge and spin.

    Labels of a closed form, and files that do not say them, know no electrons: a model of them cannot refuse any.
    """
    structures: Any = jax.tree.map(lambda x: np.asarray(x)[: int(buffer.count)], buffer.structure)
    neutral = np.where(structures.species >= 0, np.asarray(table)[structures.species], 0).sum(-1)
    count, open_ = neutral - structures.charge, ~structures.periodic.any(-1)
    can = (structures.spin >= 0) & (structures.spin <= count) & ((count - structures.spin) % 2 == 0)
    return bool(np.all(can[open_]))


def validated(directory: Path, data: Path | None) -> None:
    """Compares the model with labeled frames, where there are any; into validate.json."""
    if data is not None:
        command.save(directory, command.validate(directory, data))


def validated_by_system(run: Run) -> None:
    """The same for a run, with the frames that its systems have of their own, and by system."""
    config, learned = run.config, model.load(run.directory)
    known = {command.described(of_atoms(own.starts[0], labeled=False)): own.name for own in reversed(run.systems)}
    parts: list[Any] = [(config.validate.data, None, *model.unsaid(learned))]
    for own in run.systems:
        start = own.starts[0].info
        said = electrons.or_none(start["charge"], start["spin"])
        parts.append((config.named[own.field].validate, own.name, *said))
    frames, names = [], []
    for file, name, charge, spin in parts:
        if file is None:
            continue
        of_file = labeled(file, "the model", charge, spin).frames
        frames += of_file
        names += [name or known.get(command.described(frame), command.described(frame)) for frame in of_file]
    if frames:
        files = ", ".join(str(file) for file, *_ in parts if file is not None)
        measured = command.measure(learned, frames, name=str(run.directory), source=files, systems=names)
        command.save(run.directory, measured)


def finish(run: Run, progress: Progress, parts: states.Parts, static: states.Static, state: states.State) -> None:
    """Ends a run whose exploration is over: its task, where it has one, the bound, the model and the report."""
    config, directory = run.config, run.directory
    alone = parts.committee._replace(mesh=None)  # a few structures, by each process alike
    facts = run.table, np.asarray(progress.reference), progress.exact

    def show(error: float | None, left: float) -> None:
        if devices.from_first(run.interrupted):  # the training begins anew, from the last checkpoint
            raise Enough
        progress.fold = error
        session.show(run, progress, "final training", eta=left)

    def trained(buffer: buffers.Buffer, turn: int) -> tuple[training.TrainState, Any, buffers.Buffer]:
        key = jax.random.fold_in(jax.random.key(config.seed), 2)
        begun, steps, rate = state.train, config.train.final_steps, progress.rate
        if turn:  # a few labels more: it goes on from what it was
            begun, key = devices.laid(run.mesh, states.LAYOUT.train, last[0]), jax.random.fold_in(key, turn)
            steps, rate = steps // AGAIN, rate / AGAIN
        train, progress.fold = anneal(
            parts.committee,
            static.recipe,
            static.train_near,
            begun,
            buffer,
            key,
            steps,
            rate,
            config.train.final_learning_rate,
            show,
        )
        learned = jax.jit(supports.learned, static_argnums=(0, 1))
        support = learned(parts.committee, static.train_near, train.average, buffer)
        return devices.whole((train, support, buffer))

    last: list[Any] = []
    if config.task is None:
        train, support, buffer = trained(state.buffer, 0)
    else:

        def learned(buffer: buffers.Buffer, turn: int) -> model.Model:
            last[:] = trained(buffer, turn)
            return model_of(config, parts.committee, last[0], Bounded(None, last[1], np.nan), last[2], *facts)

        labeled = functools.partial(_labeled, run, progress, parts)
        state = answering.answered(run, progress, parts.samplers, state, learned, labeled)
        train, support, buffer = last
    session.show(run, progress, "calibration")
    structures, labels = sampled(run, progress, parts, devices.whole(state.sample))
    bound = bounded(alone, train.average, support, structures, labels, SAMPLED)

    def write() -> None:
        learned_model = model_of(config, parts.committee, train, bound, buffer, *facts)
        model.save(directory / model.FILE_NAME, learned_model)
        folder.write_training(directory, buffer, run.table, np.asarray(progress.reference))
        folder.append(directory, [_noted(run, bound, labels)])
        session.show(run, progress, "validation")
        folder.append(directory, [notes.phase(run, "validation")])
        validated_by_system(run)
        folder.append(directory, [notes.phase(run, "done")])

    devices.from_first(write)
    progress.phase = "done"
    persistence.save(run, progress, state)
    devices.from_first(lambda: str(page.write(directory)))


def sampled(run: Run, progress: Progress, parts: states.Parts, sample: samples.Sample) -> tuple[Structure, Label]:
    """The random frames of the dynamics [c] with their labels, in numpy, energies relative to the references.

    Raises Enough where the run is told to end meanwhile: what was calculated is in the store.
    """
    rows = np.flatnonzero(np.asarray(sample.there))
    structures: Any = jax.tree.map(lambda x: np.asarray(x)[rows], sample.structure)

    def labeled() -> list[Any] | None:
        with suppress(Enough):  # it must be raised in all processes
            return list(_labeled(run, progress, parts, structures))
        return None

    if not rows.size:
        none: Any = np.zeros(0), np.zeros((0, *structures.position.shape[1:])), np.zeros((0, 3, 3)), np.zeros(0, bool)
        return structures, Label(*none)
    values = devices.from_first(labeled)
    if values is None:
        raise Enough
    return structures, Label(*values)


def _labeled(run: Run, progress: Progress, parts: states.Parts, structures: Any) -> Label:
    """Labels of structures [c], numpy, energies relative to the references; the first process asks.

    Raises Enough where the run is told to end meanwhile, and InputError where none can be kept.
    """
    wanted = np.ones(len(structures.charge), bool)
    if run.config.label.part.kind == "oracle":
        assert parts.label is not None
        dtype = np.dtype(run.config.precision)
        cast = jax.tree.map(lambda x: x.astype(dtype) if x.dtype.kind == "f" else x, structures)
        return jax.tree.map(np.asarray, jax.jit(parts.label)(cast, wanted))
    reference = np.asarray(progress.reference)
    opened = labeling.open_service(run.config, run.table, run.store, reference, run.interrupted, run.opener)
    try:
        labels = opened.label(structures, wanted, initial_labels.carriers(run.starts, run.table)(structures))
        if trouble := opened.trouble():
            raise InputError(f"{trouble}; the last checkpoint stands, `jaxal resume {run.directory}` goes on")
        values: Any = labels
        return Label(*values)
    finally:
        opened.close()


def _noted(run: Run, bound: Bounded, labels: Label) -> dict[str, Any]:
    """A metrics line about the bound and the labels it comes from."""
    ok = np.asarray(labels.ok)
    line = {"kind": "calibration", "wall": session.elapsed(run), "labels": ok.size, "failed": int(np.sum(~ok))}
    line |= {"rmse": bound.rmse, "factor": None, "coverage": None, "count": 0}
    known = bound.calibration
    return line | ({} if known is None else {n: getattr(known, n) for n in ("factor", "coverage", "count")})


def split_held(held: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Which of the held-out rows [c] calibrate the bound: two of three. Every third, from the first on, ends training.

    Both must not be the same: the weights that are kept are those that suit the rows that choose them. Rows of one
    `group` [c], copies of a structure, stay together.
    """
    groups, first = np.unique(group[held], return_index=True)
    order = groups[np.argsort(first)]  # the groups as they come
    return held & np.isin(group, order[np.arange(order.size) % 3 != 0])
