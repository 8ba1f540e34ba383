"""The end of a run or of an offline training: a long training, the model, its validation, the report."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxal import buffer as buffers
from jaxal import devices, loop, memory, model, neighbors, records, report, setup
from jaxal.committee import Committee
from jaxal.label.task import Enough
from jaxal.memory import Progress, Run
from jaxal.train import fit as training
from jaxal.train import posterior
from jaxal.train.calibrate import Judge, calibrate
from jaxal.types import GateState, Key
from jaxal.validate import command

CHUNKS = 10  # pieces of the final training, between which the held-out error is looked at


def compiled_fit(committee: Committee, recipe: training.Recipe, near: neighbors.Spec) -> Callable:
    """Training as a program of its own: (train, buffer, key, steps, rate, final rate) -> (train, losses)."""

    @jax.jit
    def fit(train, buffer, key, steps, rate, final_rate):
        train, losses = training.fit(committee, recipe, near, train, buffer, key, steps, rate, final_rate)
        return posterior.learned(committee, near, train, buffer), losses

    return fit


def anneal(
    judge: Judge,
    recipe: training.Recipe,
    train: training.TrainState,
    buffer: buffers.Buffer,
    gate: GateState,
    key: Key,
    steps: int,
    rate: float,
    final_rate: float,
    show: Callable[[float | None, float], None],
) -> tuple[training.TrainState, GateState, float | None]:
    """Trains down to `final_rate` on a cosine and keeps the weights with the least held-out force error.

    `show` gets that error (eV/Å, None if nothing is held out) and the seconds left after each piece. Returns the
    best state, the gate calibrated with it and its held-out error.
    """
    fit = compiled_fit(judge.committee, recipe, judge.near)
    assess = jax.jit(lambda gate, params, buffer: calibrate(judge, gate, params, buffer)[:2])
    dtype = buffer.label.energy.dtype
    # early stopping is among the weights of this training: those before it saw a larger learning rate
    best: tuple[float, training.TrainState, GateState] | None = None
    rates = final_rate + 0.5 * (rate - final_rate) * (1 + np.cos(np.pi * np.arange(CHUNKS + 1) / CHUNKS))
    began = time.monotonic()
    for chunk in range(CHUNKS):
        count = steps * (chunk + 1) // CHUNKS - steps * chunk // CHUNKS
        if count or steps == 0:
            first, last = (jnp.asarray(value, dtype) for value in rates[chunk : chunk + 2])
            train, _ = fit(train, buffer, jax.random.fold_in(key, chunk), jnp.asarray(count, jnp.int32), first, last)
        learned, rmse = assess(gate, train.average, buffer)
        error = float(rmse) if np.isfinite(rmse) else np.inf
        if best is None or error <= best[0]:
            best = (error, train, learned)
        left = (time.monotonic() - began) * (CHUNKS - chunk - 1) / (chunk + 1)
        show(error if np.isfinite(error) else None, left)
        if steps == 0:
            break
    assert best is not None
    return best[1], best[2], best[0] if np.isfinite(best[0]) else None


def write_model(
    directory: Path,
    committee: Committee,
    train: training.TrainState,
    gate: GateState,
    buffer: buffers.Buffer,
    **facts: Any,
) -> None:
    """The model file of a run folder; `facts` are the other fields of `model.Model`."""
    facts |= {"params": jax.device_get(train.average), "factor": float(gate.factor)}
    facts |= {"electrons": electrons_can_be(buffer, facts["table"])}
    model.save(directory / model.FILE_NAME, model.Model(heads=committee.heads, signs=committee.signs, **facts))


def electrons_can_be(buffer: buffers.Buffer, table: tuple[int, ...]) -> bool:
    """Whether every open structure [c] of a training set can have its charge and spin.

    Labels of a closed form, and files that do not say them, know no electrons: a model of them cannot refuse any.
    """
    structures: Any = jax.tree.map(lambda x: np.asarray(x)[: int(buffer.count)], buffer.structure)
    neutral = np.where(structures.species >= 0, np.asarray(table)[structures.species], 0).sum(-1)
    count, open_ = neutral - structures.charge, ~structures.cell.any((-1, -2))
    can = (structures.spin >= 0) & (structures.spin <= count) & ((count - structures.spin) % 2 == 0)
    return bool(np.all(can[open_]))


def validated(directory: Path, data: Path | None) -> None:
    """Compares the model with labeled frames, where there are any; into validate.json."""
    if data is not None:
        command.save(directory, command.validate(directory, data))


def finish(run: Run, progress: Progress, parts: loop.Parts, static: loop.Static, state: loop.State) -> None:
    """Ends a run whose exploration is over."""
    config, directory = run.config, run.directory

    def show(error: float | None, left: float) -> None:
        if devices.from_first(run.interrupted):  # the training begins anew, from the last checkpoint
            raise Enough
        progress.fold = error
        memory.show(run, progress, "final training", eta=left)

    train, gate, progress.fold = anneal(
        loop.judge_of(parts, static),
        static.recipe,
        state.train,
        state.buffer,
        state.gate,
        jax.random.fold_in(jax.random.key(config.seed), 2),
        config.train.final_steps,
        progress.rate,
        config.train.final_learning_rate,
        show,
    )
    train, gate, buffer = devices.whole((train, gate, state.buffer))

    def write() -> None:
        reference = np.asarray(progress.reference)
        write_model(
            directory,
            parts.committee,
            train,
            gate,
            buffer,
            potential=config.potential.name,
            options=config.potential.options,
            uncertainty=config.uncertainty.name,
            uncertainty_options=config.uncertainty.options,
            table=run.table,
            reference=reference,
            precision=config.precision,
            charge=int(buffer.structure.charge[0]),
            spin=int(buffer.structure.spin[0]),
        )
        records.write_training(directory, buffer, run.table, reference)
        memory.show(run, progress, "validation")
        records.append(directory, [memory.phase(run, "validation")])
        validated(directory, config.validate.data)
        records.append(directory, [memory.phase(run, "done")])

    devices.from_first(write)
    progress.phase = "done"
    memory.save(run, progress, state)
    devices.from_first(lambda: str(report.write(directory)))


def fold_of(held: np.ndarray) -> int:
    """Held-out labels that calibrate an offline training."""
    return int(max(1, min(held.sum(), 4 * setup.FOLD)))
