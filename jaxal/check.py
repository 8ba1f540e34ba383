"""The part of checking a configuration that needs its structure, still before anything is computed."""

from collections.abc import Callable
from typing import Any

import ase
import numpy as np

from jaxal.explore.md import NEEDS_CELL
from jaxal.label.task import Task
from jaxal.schema import Config, System
from jaxal.structure import masses, read_frames, species_table
from jaxal.types import InputError


def start_structure(system: System) -> ase.Atoms:
    """The structure that the walkers start from, with its supercell; `info` holds charge and spin.

    Raises InputError for a file that cannot be read, a frame that is not there, and a supercell of a molecule.
    """
    frames = read_frames(system.file)
    if not -len(frames) <= system.index < len(frames):
        held = f"{len(frames)} frames, 0 to {len(frames) - 1}"
        raise InputError(f"system.index: {system.index} does not fit; {system.file} holds {held}")
    atoms = frames[system.index]
    if system.supercell != (1, 1, 1):
        if not atoms.pbc.all():
            raise InputError(
                f"system.supercell: {list(system.supercell)} needs a periodic cell; {system.file} has none"
            )
        atoms = atoms.repeat(system.supercell)
    return of_system(system, atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)


def of_system(system: System, numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: Any) -> ase.Atoms:
    """Atoms with the charge and spin of the configuration."""
    found = ase.Atoms(numbers, positions, cell=cell, pbc=pbc)
    found.info = {"charge": system.charge, "spin": system.spin}
    return found


def check(config: Config) -> None:
    """Makes sure that structure, method, dynamics and potential fit together.

    Raises InputError, one line that names the section or field and what would be right.
    """
    atoms = start_structure(config.system)
    table = species_table([atoms])
    explorer = config.explore.part
    if explorer.name in NEEDS_CELL and not atoms.pbc.all():
        raise InputError(f"explore.name: {explorer.name} needs a periodic cell; {config.system.file} has none")
    _built("explore", lambda: explorer.bind()(masses(table)[np.searchsorted(table, atoms.numbers)]))
    _built("potential", lambda: config.potential.bind()(table))
    if config.label.initial > config.stop.labels:
        raise InputError(
            f"label.initial: {config.label.initial} is too large; give at most stop.labels ({config.stop.labels})"
        )
    if config.train.holdout == 0:
        raise InputError("train.holdout: 0 is too small; the gate learns from held-out labels, give such as 0.1")
    if config.label.part.kind == "oracle":
        for name in ("charge", "spin"):
            if value := getattr(config.system, name):
                what = f"the oracle {config.label.part.name} knows no electrons, give 0"
                raise InputError(f"system.{name}: {value} does not fit; {what}")
        _built("label", lambda: config.label.part.bind()(table))
    else:
        cell = atoms.cell.array if atoms.pbc.all() else np.zeros((3, 3))
        task = Task(atoms.numbers, atoms.positions, cell, config.system.charge, config.system.spin)
        _built("label", lambda: config.label.part.bind()().check(task))
        _built("executor", config.executor.bind())


def _built(section: str, build: Callable[[], Any]) -> Any:
    """What `build` gives. A part's ValueError is about its options or the system: it gets the field's full name."""
    try:
        return build()
    except ValueError as error:
        message = str(error)
        field = message.partition(":")[0]
        if field in ("charge", "spin"):
            message = f"system.{message}"
        elif field in ("structure", "cell"):
            message = f"system.file: {message}"
        elif field.partition(".")[0] != section:
            message = f"{section}: {message}"
        raise InputError(message) from error
