"""A run from start to end: what the host does between two segments of the program.

First labels and a first training, then the exploration (`jaxal.run.exploration`), and in the end a long training, the
model, its validation and the report. Of several processes each does the same; what concerns files, labels and the
clock the first does, and the others follow it.
"""

import dataclasses
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

import ase
import jax
import numpy as np

from jaxal.config import yaml12
from jaxal.config.check import check, with_inputs
from jaxal.config.loading import FILE_NAME, INPUTS, load, parse
from jaxal.config.schema import Config
from jaxal.config.systems import grouped, population, populations
from jaxal.config.writing import dump, resolved
from jaxal.core import devices, plugins
from jaxal.core.discovery import import_file, import_parts
from jaxal.core.types import InputError
from jaxal.data import buffer as buffers
from jaxal.data import frames, neighbors
from jaxal.data.structure import from_atoms, species_table
from jaxal.label.service import Service
from jaxal.label.task import Enough
from jaxal.label.workers.executor import shared_executor
from jaxal.program import state as states
from jaxal.report.display import Status, display
from jaxal.report.metrics import METRICS, answers, read_metrics
from jaxal.run import (
    addition,
    assembly,
    checkpoint,
    final_training,
    folder,
    grouping,
    initial_labels,
    labeling,
    lock,
    persistence,
    pooled,
    reference_atoms,
    session,
    stop,
    training_data,
)
from jaxal.run.exploration import Labels, assembled, explore
from jaxal.run.session import CHECKPOINTS, Progress, Run
from jaxal.train import fit as training
from jaxal.train.reference import reference_energies


def start(config: Config, directory: Path) -> bool:
    """Runs a configuration in a new folder. Returns whether it came to its end: False where it was told to stop.

    Ctrl-C and SIGTERM tell it, and `resume` goes on. Raises InputError for mistakes and for a folder in use.
    """
    directory = Path(directory)
    assembly.dtype_of(config.precision)

    def prepared() -> str:
        folder.refuse_used(directory)
        for warning in check(config):
            print(f"jaxal: warning: {warning}", file=sys.stderr)
        store = str(Path(config.label.store).expanduser().resolve()) if config.label.store else ""
        # a system that is added later takes no walkers from those that are there
        systems = {
            name: dataclasses.replace(system, walkers=config.walkers[f"systems.{name}"])
            for name, system in config.systems.items()
        }
        label = dataclasses.replace(config.label, store=store)
        ready = dataclasses.replace(config, devices=assembly.devices_of(config), label=label, systems=systems)
        directory.mkdir(parents=True, exist_ok=True)
        open_folder.enter_context(lock.held(directory))
        folder.refuse_used(directory)
        folder.versions(directory)
        return dump(resolved(ready, directory))

    with stop.interruptible(directory) as interrupted, ExitStack() as open_folder:
        return _go(_config_from_first(prepared), directory, interrupted)


def resume(directory: Path, overrides: Sequence[str] = ()) -> bool:
    """Goes on with a run where its last checkpoint stands, bit for bit; a finished run is left as it is.

    `overrides`, such as "stop.labels=500", change fields of its configuration for good; `persistence.MAY_CHANGE` says
    which may. With another task, or other options of it, a finished run goes on with that. Files with parts that it was
    started with are imported from the folder. Returns whether it came to its end, as `start` does. Raises InputError
    for another change, and where another process is at work on the folder.
    """
    directory = Path(directory)

    def config_text() -> str:
        if not (directory / FILE_NAME).is_file():
            raise InputError(f"{directory}: not a run folder, it holds no {FILE_NAME}; `jaxal run CONFIG` starts a run")
        open_folder.enter_context(lock.held(directory))
        return dump(load(directory / FILE_NAME, overrides))

    _import_kept(directory / INPUTS)
    with stop.interruptible(directory) as interrupted, ExitStack() as open_folder:
        config = _config_from_first(config_text)
        assembly.dtype_of(config.precision)
        return _go(config, directory, interrupted, bool(overrides))


def _import_kept(inputs: Path) -> None:
    """Imports the files with parts that a run folder holds, in all processes, which need not see the folder."""
    kept = devices.from_first(lambda: [[file.name, file.read_text(encoding="utf-8")] for file in plugins.kept(inputs)])
    if devices.first():
        for file in plugins.kept(inputs):
            import_file(file)
        return
    with tempfile.TemporaryDirectory(prefix="jaxal-") as folder:
        for name, text in kept:
            path = Path(folder) / name
            path.write_text(text, encoding="utf-8")
            import_file(path)


def _config_from_first(text: Callable[[], str]) -> Config:
    """The configuration that the first process has, from its text."""
    return parse(yaml12.parse(devices.from_first(text), FILE_NAME), None)


def _go(config: Config, directory: Path, interrupted: Callable[[], bool], changed: bool = False) -> bool:
    import_parts()
    assembly.mesh_of(config)  # before anything else: what was there when the run began may be gone when it is resumed

    opening = shared_executor(labeling.executor_of(config, directory))
    with suppress(Enough), display() if devices.first() else nullcontext(_unseen) as show, opening as opener:
        nothing = Run(config, directory, [], [], (), show, time.monotonic(), interrupted, opener)
        run = _with(nothing, config)
        if devices.from_first(lambda: checkpoint.latest(directory / CHECKPOINTS)) is None:
            folder.cut(directory, {})
            progress, train, buffer = _begin(run)
            _end_if_told(run)
            train = devices.laid(run.mesh, states.LAYOUT.train, train)
            buffer = devices.laid(run.mesh, states.LAYOUT.buffer, buffer)
            state = None
        else:
            stored = persistence.newest(run)
            began = addition.begun_with(run, stored)
            more = addition.added(began, config)
            before = _with(run, began) if more else run
            progress, state = persistence.restored(before, stored)
            run = run._replace(began=run.began - progress.elapsed)
            # what cannot be labeled, or not within the budget, leaves the folder as it was
            first = addition.first_labels(before, run, progress) if more else None
            if progress.phase == "done" and persistence.asks_otherwise(run, progress):
                progress.phase = "final training"  # on all that was learned, with labels of its own
            if changed:
                copied = _config_from_first(lambda: dump(resolved(config, directory)))
                run = run._replace(config=with_inputs(copied, run.starts))
            folder.cut(directory, progress.sizes)
            if first is not None:
                progress, state = addition.grown(addition.Before(before, progress, state), run, first)
            progress.config = dump(run.config, directory)
            train = buffer = None
        with _labels(run, progress) as labels:
            if progress.phase == "explore":
                state = explore(run, progress, state, train, buffer, labels)
            if progress.phase != "done":
                assert state is not None
                session.show(run, progress, "final training")
                final_training.finish(run, progress, *assembled(run, progress, labels.label), state)
        answered = answers(read_metrics(directory / METRICS)) if devices.first() else {}
        session.show(run, progress, "done", "; ".join(str(answer["text"]) for answer in answered.values()))
        return True
    return False


def _with(run: Run, config: Config) -> Run:
    """The run of another configuration, with its systems as the first process reads them, and their groups."""

    def read() -> list[Any]:
        check(config)
        systems = populations(config)
        potential = config.potential.bind()(species_table([atoms for system in systems for atoms in system.starts]))
        return [[list(map(_values_of, system.starts)) for system in systems], grouped(systems, potential.cutoff)]

    begun, groups = devices.from_first(read)
    systems = [
        population(config, field, [frames.to_atoms(frames.bare(*values)) for values in own])
        for field, own in zip(config.named, begun, strict=True)
    ]
    starts = [atoms for system in systems for atoms in system.starts]
    config, table = with_inputs(config, starts), species_table(starts)
    return run._replace(config=config, systems=systems, groups=[list(map(int, g)) for g in groups], table=table)


def _values_of(atoms: ase.Atoms) -> list[Any]:
    """A start structure as one process tells another."""
    f = frames.stripped(frames.of_atoms(atoms, labeled=False))
    return [f.numbers, f.position, f.cell, f.periodic, f.mass, f.fixed, f.charge, f.spin]


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
            return initial_labels.first_labels(config, run.systems, run.store, run.interrupted, run.opener).values()

    values = devices.from_first(labeled)
    if values is None:
        raise Enough
    first = initial_labels.First.from_values(values)
    atoms = reference_atoms.of_run(run)
    isolated = reference_atoms.known(atoms, run.table)
    reference = reference_energies(first.structures, first.labels.energy, len(run.table), isolated)
    structures, labels = training_data.cast(first.structures, first.labels, reference, config.precision)
    committee = assembly.committee_of(config, run.table, bool(isolated))
    near = grouping.neighbor_lists(run.systems, run.groups, run.table, structures, committee.potential.cutoff)
    train_near = neighbors.plan(structures, committee.potential.cutoff, 0.0)
    number = structures.charge.shape[0]
    key, key_set = jax.random.split(jax.random.key(config.seed))
    params = training_data.new_params(committee, key, train_near, structures, labels, reference, isolated)
    buffer = training_data.training_set(
        structures,
        labels,
        training_data.spread_hold(number, config.train.holdout, len(run.starts) if len(run.systems) > 1 else 0),
        committee.members,
        min(config.stop.labels, assembly.LARGEST_BUFFER),
        key_set,
        1.0 if config.train.bootstrap else 0.0,
    )
    train = training.init(assembly.recipe(config.train), params)
    progress = Progress(
        reference=[float(x) for x in reference],
        isolated=[isolated.get(row) for row in range(len(run.table))],
        config=dump(config, run.directory),
        near=[session.spec_out(spec) for spec in near],
        train_near=session.spec_out(train_near),
        rate=config.train.learning_rate,
        asked=number + first.failed,
        failed=first.failed,
    )
    wall = session.elapsed(run)
    folder.append(run.directory, [{"kind": "phase", "wall": wall, "phase": "initial", "why": ""}])
    folder.append(run.directory, reference_atoms.records(atoms, reference, run.table, wall))
    return progress, train, buffer


@contextmanager
def _labels(run: Run, progress: Progress) -> Iterator[Labels]:
    """Where the labels come from: an oracle in the program, the host inside a callback, or a pool between segments."""
    config = run.config
    reference = np.asarray(progress.reference)
    if config.label.part.kind == "oracle":
        dtype = assembly.dtype_of(config.precision)
        example = from_atoms(run.starts, run.table, dtype=dtype)
        spec = labeling.oracle_spec(config, run.table, example)
        yield Labels(labeling.oracle_label(config, run.table, dtype, reference, spec), None, list, float)
        return
    if config.label.mode == "pooled":
        with pooled.opened(run) if devices.first() else nullcontext() as desk:
            yield Labels(None, desk, list, float)
        return
    services: list[Service] = []
    waited = [0.0]
    carried = initial_labels.carriers(run.starts, run.table)

    def opening() -> None:
        services.append(labeling.open_service(config, run.table, run.store, reference, opener=run.opener))

    devices.from_first(opening)

    def label(structures: Any, wanted: np.ndarray) -> Any:
        began = time.monotonic()
        answer = services[0].label(structures, wanted, carried(structures))
        progress.asked += int(np.sum(wanted))
        progress.failed += int(np.sum(wanted) - np.sum(answer.ok))
        session.show(run, progress, "explore")
        waited[0] += time.monotonic() - began
        return answer

    def drained() -> list[str]:
        for trouble in filter(None, (service.trouble() for service in services)):
            raise InputError(f"{trouble}; the last checkpoint stands, `jaxal resume {run.directory}` goes on from it")
        return [r.reason for service in services for r in service.drain() if not r.ok]

    def since() -> float:
        seconds, waited[0] = waited[0], 0.0
        return seconds

    try:
        yield Labels(labeling.host_label_of(label, run.mesh), None, drained, since)
    finally:
        for service in services:
            service.close()
