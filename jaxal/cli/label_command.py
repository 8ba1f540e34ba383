"""`jaxal label`: one label to see that a configuration's method works, or labels for the structures of a file."""

import argparse
import dataclasses
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxal.config.systems import Population
    from jaxal.data.frames import Frame
    from jaxal.label.service import Labels, Record

WAIT_AND_SEE = 50  # frames between two lines of progress
SHOWN = 10  # failures


def add(label: argparse.ArgumentParser) -> None:
    """The arguments of the command, besides those of a configuration."""
    label.add_argument("--check", action="store_true", help="calculate one label of each system, and show it")
    label.add_argument("--data", metavar="FILE", type=Path, help="structures to label, any format ASE reads")
    label.add_argument("--out", metavar="FILE", type=Path, help="labeled ones: extended XYZ (also .gz) or .db")
    label.add_argument("--store", metavar="FILE", type=Path, help="label store (default: --out with .sqlite)")
    label.add_argument("--retry", action="store_true", help="calculate again what the store remembers as failed")
    label.add_argument("--force", action="store_true", help="replace --out if it is there")
    label.set_defaults(command=_label)


def _label(arguments: argparse.Namespace) -> None:
    from jaxal.config.loading import load
    from jaxal.core.types import InputError

    if arguments.check == (arguments.data is not None) or (arguments.data is None) != (arguments.out is None):
        raise InputError("label: give --check, or --data FILE and --out FILE")
    config = load(arguments.config, arguments.overrides)
    if config.label.part.kind == "oracle":
        name = config.label.part.name
        raise InputError(f"label.name: {name} is a closed form inside the program, which has no labels to calculate")
    if arguments.check:
        _check(config)
    else:
        store = arguments.store or arguments.out.with_suffix(".sqlite")
        _file(config, arguments.data, arguments.out, store, arguments.force, arguments.retry)


def _check(config: Any) -> None:
    """Checks the configuration, then calculates the label of each system's structure, and shows it."""
    import numpy as np

    from jaxal.config.check import check, task_of
    from jaxal.config.systems import populations
    from jaxal.data.electrons import formula

    check(config)
    backend = config.label.part.bind()()
    for system in populations(config):
        labels, record = one_label(config, system)
        task, force = task_of(system.starts[0]), labels.force[0]
        rows = {} if config.system else {"system": system.name}
        rows |= {
            "structure": f"{formula(task.numbers)}, {len(task.numbers)} atoms",
            "electrons": f"charge {task.charge}, {task.spin} unpaired",
            "method": backend.method,
            "version": backend.version,
            "energy": f"{labels.energy[0]:.6f} eV",
            "largest force": f"{np.linalg.norm(force, axis=1).max():.6f} eV/Å",
            "net force": f"{np.linalg.norm(force.sum(axis=0)):.2g} eV/Å",
            "wall time": f"{record.seconds:.3g} s",
        }
        if np.isfinite(labels.stress[0]).all() and all(task.periodic):
            rows["pressure"] = f"{-np.trace(labels.stress[0]) / 3:.6f} eV/Å^3"
        print("\n".join(f"{name:<14} {value}" for name, value in rows.items()))


def one_label(config: Any, system: "Population") -> "tuple[Labels, Record]":
    """The label of a system's first structure, with the configuration's workers, timeout and caps, and what became of
    it.

    Raises InputError where the method fails.
    """
    import numpy as np

    from jaxal.core.types import InputError
    from jaxal.data.structure import from_atoms, species_table
    from jaxal.run.labeling import open_service

    atoms = system.starts[0]
    table = species_table([atoms])
    config = dataclasses.replace(config, label=dataclasses.replace(config.label, workers=min(1, config.label.workers)))
    with tempfile.TemporaryDirectory(prefix="jaxal-") as folder:
        service = open_service(config, table, Path(folder) / "labels.sqlite", np.zeros(len(table)))
        try:
            labels = service.label(from_atoms([atoms], table, dtype=np.float64), np.ones(1, bool))  # pyright: ignore
            (record,) = service.drain()
        finally:
            service.close()
    if not record.ok:
        raise InputError(f"label: {config.label.part.name} fails on {system.file}: {record.reason}")
    return labels, record


def _file(config: Any, data: Path, out: Path, store: Path, force: bool, retry: bool) -> None:
    """Labels every frame of a file. What the store holds is not calculated again, but with `retry` what has failed."""
    import numpy as np

    from jaxal.config.systems import populations, with_electrons
    from jaxal.core.types import InputError
    from jaxal.data import files
    from jaxal.data.frames import overlap
    from jaxal.data.labels import Numbers
    from jaxal.data.structure import from_frames, species_table
    from jaxal.label.store import conversion
    from jaxal.label.store.database import label_key
    from jaxal.run.labeling import open_service

    files.writable(out, force)
    frames = files.read(data, labeled=False)
    systems = populations(config) if config.systems else []
    for number, frame in enumerate(frames):
        try:
            frames[number] = with_electrons(config, systems, frame)
            if reason := overlap(frame, config.gate.closest):
                raise InputError(f"{reason}; leave it out")
        except InputError as error:
            raise InputError(f"{data}: frame {number}: {error}") from None
    table = species_table(frames)
    batch = from_frames(frames, table, dtype=np.float64)
    backend = config.label.part.bind()()
    tasks = [conversion.task_of(frame) for frame in frames]
    for number, task in enumerate(tasks):
        try:
            backend.check(task)
        except ValueError as error:
            raise InputError(f"{data}: frame {number}: {error}") from None
    failures: list[str] = []
    accepted: list[bool] = []  # by the caps of this configuration, whatever those of the store's other users
    luggage = [conversion.luggage(frame) for frame in frames]
    service = open_service(config, table, store, np.zeros(len(table)), retry_failed=retry)
    try:
        for start in range(0, len(frames), WAIT_AND_SEE):
            rows = slice(start, start + WAIT_AND_SEE)
            part = type(batch)(*(leaf[rows] for leaf in batch))
            service.label(part, np.ones(len(part.species), bool), luggage[rows])  # pyright: ignore
            if trouble := service.trouble():
                raise InputError(trouble)
            records = service.drain()
            accepted += [record.ok for record in records]
            failures += [f"frame {row}: {record.reason}" for row, record in enumerate(records, start) if not record.ok]
            end = min(start + WAIT_AND_SEE, len(frames))
            print(f"{end} of {len(frames)} frames, {len(failures)} failed", flush=True)

        def labeled() -> "Iterator[Frame]":
            for frame, task, ok in zip(frames, tasks, accepted, strict=True):
                entry = service.store.get(label_key(task, backend.method, backend.version))
                if entry is not None and ok:
                    energy, force, stress = entry.result[:3]
                    fine = entry._replace(status="done", result=entry.result._replace(reason=""))
                    origin = conversion.frame_of(fine).origin
                    yield frame._replace(numeric=Numbers(energy, force, stress), origin=origin)

        count = files.write(out, labeled(), force)
    finally:
        service.close()
    for failure in failures[:SHOWN]:
        print(failure)
    if len(failures) > SHOWN:
        print(f"... `jaxal store list {store} --status failed` shows all")
    if not count:
        raise InputError(f"{data}: no frame could be labeled; frame 0: {failures[0].partition(': ')[2]}")
    print(f"{out}: {count} labels; {store} has them, too")
