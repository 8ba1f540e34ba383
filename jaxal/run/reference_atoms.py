"""The isolated atoms of a run, calculated once by its own method and kept in the label store."""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from ase.data import atomic_masses

from jaxal.committee.isolated_atoms import lone_atoms
from jaxal.config.schema import Config
from jaxal.core import devices
from jaxal.core.types import InputError, Structure
from jaxal.data.electrons import symbol
from jaxal.data.frames import Carried, bare
from jaxal.data.structure import Table
from jaxal.label.isolated_atoms import Plan, planned
from jaxal.label.store.conversion import luggage
from jaxal.label.task import Enough, Task
from jaxal.run.labeling import Opener, open_service, recipe_of
from jaxal.run.session import Run


class Atom(NamedTuple):
    """What the method says of an isolated atom."""

    number: int  # atomic number
    spin: int  # unpaired electrons
    energy: float  # eV; NaN where it has none
    reason: str  # why not, in one line
    seconds: float  # of the calculation
    stored: bool  # the label store had it


def _marked() -> bytes:
    """What the rows of isolated atoms in a store say of them, so that a file of its labels says it, too."""
    atom = bare(
        np.ones(1), np.zeros((1, 3)), np.zeros((3, 3)), np.zeros(3, bool), atomic_masses[[1]], np.zeros(1, bool), 0, 1
    )
    return luggage(atom._replace(carried=Carried(info=(("config_type", "IsolatedAtom"),))))


_MARK = _marked()


def known(atoms: Sequence[Atom], table: Table) -> dict[int, float]:
    """The energies that there are, eV, by row of the table."""
    return {table.index(atom.number): atom.energy for atom in atoms if np.isfinite(atom.energy)}


def of_run(run: Run, isolated: Mapping[int, float] | None = None) -> list[Atom]:
    """The isolated atoms of a run's elements, but for those whose energies are known, `isolated` (by row of the table).

    The first process calculates them. Raises as `isolated_atoms`, in all processes.
    """
    charges = [int(start.info.get("charge", 0)) for start in run.starts]
    numbers = [number for row, number in enumerate(run.table) if row not in (isolated or {})]

    def calculated() -> list[Any] | None:
        with suppress(Enough):  # it must be raised in all processes
            atoms = isolated_atoms(
                run.config, run.table, charges, run.store, run.interrupted, run.opener, numbers=numbers
            )
            for line in fallbacks(atoms):
                print(f"jaxal: {line}", file=sys.stderr)
            return [list(atom) for atom in atoms]

    values = devices.from_first(calculated)
    if values is None:
        raise Enough
    return [Atom(*atom) for atom in values]


def plans(config: Config, numbers: Sequence[int], charges: Sequence[int]) -> list[Plan]:
    """What the method of a run is to calculate of the atoms of these elements.

    `charges` are those of its systems. Nothing where `label.atoms` is `fit`, and where no system is neutral: an atom
    that leaves an ion may take its charge along.
    """
    if config.label.atoms == "fit" or 0 not in charges:
        return []
    return [planned(recipe_of(config), number, config.label.atoms == "method") for number in numbers]


def isolated_atoms(
    config: Config,
    table: Table,
    charges: Sequence[int],
    store: Path,
    enough: Callable[[], bool] = lambda: False,
    opener: Opener | None = None,
    numbers: Sequence[int] | None = None,
) -> list[Atom]:
    """The isolated atoms of the elements of a run, or of those with these `numbers`; of `label.atoms: fit` none.

    One call of the method for each, neutral, in the spin of the ground state; what the store knows is not calculated.
    `charges`: see `plans`. Raises InputError where an atom fails and `label.atoms` is `method`, or the store does, and
    Enough once `enough()` holds.
    """
    numbers = table if numbers is None else numbers
    if config.label.part.kind == "oracle" and config.label.atoms != "fit":
        return [atom for atom in _of_closed_form(config, table) if atom.number in numbers]
    atoms: dict[int, Atom] = {}
    groups: list[list[Plan]] = []
    for plan in plans(config, numbers, charges):
        if plan.task is None:
            atoms[plan.number] = Atom(plan.number, 0, float("nan"), plan.reason, 0.0, False)
        elif groups and groups[-1][0].recipe == plan.recipe:
            groups[-1].append(plan)
        else:
            groups.append([plan])
    for group in groups:
        recipe = group[0].recipe
        # the executor of the run calculates with the method of the run
        own = opener if recipe == recipe_of(config) else None
        zero = np.zeros(len(table))
        service = open_service(config, table, store, zero, enough, own, recipe=recipe)
        try:
            tasks = [plan.task for plan in group if plan.task is not None]
            marks = [_MARK] * len(tasks)
            labels = service.label(_batch(tasks, table), np.ones(len(tasks), bool), marks)
            if trouble := service.trouble():
                raise InputError(trouble)
            for row, (task, record) in enumerate(zip(tasks, service.drain(), strict=True)):
                energy = float(labels.energy[row]) if record.ok else float("nan")
                about = record.reason, record.seconds, record.from_store
                atoms[int(task.numbers[0])] = Atom(int(task.numbers[0]), task.spin, energy, *about)
        finally:
            service.close()
    for atom in atoms.values():
        if config.label.atoms == "method" and not np.isfinite(atom.energy):
            raise InputError(f"label.atoms: the method fails for {symbol(atom.number)} alone: {atom.reason}")
    return [atoms[number] for number in sorted(atoms)]


def _of_closed_form(config: Config, table: Table) -> list[Atom]:
    """What an oracle gives for atoms without neighbors."""
    oracle = config.label.part.bind()(table)
    structures, neighbors = lone_atoms(table, np.dtype(config.precision))
    atoms = []
    for row, number in enumerate(table):
        inputs: Any = [type(tree)(*(leaf[row] for leaf in tree)) for tree in (structures, neighbors)]
        energy = float(oracle.energy({}, *inputs)[0])
        atoms.append(Atom(number, 0, energy, "" if np.isfinite(energy) else "the energy is not finite", 0.0, False))
    return atoms


def _batch(tasks: Sequence[Task], table: Table) -> Structure:
    """Atoms as the service takes them, numpy."""
    number = len(tasks)
    fields: Any = (
        np.zeros((number, 1, 3)),
        np.array([[table.index(int(task.numbers[0]))] for task in tasks], np.int32),
        np.zeros((number, 3, 3)),
        np.zeros((number, 3), bool),
        np.ones((number, 1)),
        np.zeros((number, 1), bool),
        np.zeros(number, np.int32),
        np.array([task.spin for task in tasks], np.int32),
    )
    return Structure(*fields)


def fallbacks(atoms: Sequence[Atom]) -> list[str]:
    """A line for each reason why the method gives no energies, with the elements that it holds for."""
    elements: dict[str, list[str]] = {}
    for atom in atoms:
        if not np.isfinite(atom.energy):
            elements.setdefault(atom.reason, []).append(symbol(atom.number))
    return [
        f"label.atoms: the energies of {', '.join(names)} are fitted to the labels, those of their isolated atoms are "
        f"not known: {reason}"
        for reason, names in elements.items()
    ]


def records(atoms: Sequence[Atom], reference: np.ndarray, table: Table, wall: float) -> list[dict[str, Any]]:
    """A metrics line for each element: its isolated atom, eV, and what it has in the first labels, `reference` [s]."""
    return [
        {
            "kind": "atom",
            "wall": wall,
            "element": symbol(atom.number),
            "spin": atom.spin,
            "energy": atom.energy,
            "bonded": float(reference[table.index(atom.number)]),
            "reason": atom.reason,
            "worked": 0.0 if atom.stored else atom.seconds,
        }
        for atom in atoms
    ]
