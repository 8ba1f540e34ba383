"""The part of checking a configuration that needs its structure, still before anything is computed."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ase
import jax
import jax.numpy as jnp
import numpy as np

from jaxal.acquire.fits import refuse_idle_limit, refuse_misfits
from jaxal.committee import evaluation as committees
from jaxal.committee import weights
from jaxal.config.schema import Config, Gate, Part, System
from jaxal.core.errors import InputError
from jaxal.core.types import FORCE, Explorer, Uncertainty
from jaxal.data import files
from jaxal.data import frames as door
from jaxal.data.electrons import symbol
from jaxal.data.frames import MOST_ATOMS, fixed_atoms, overlap
from jaxal.data.structure import Table, from_atoms, species_table
from jaxal.explore.timestep import too_long
from jaxal.label.isolated_atoms import planned
from jaxal.label.store import conversion
from jaxal.label.task import Task
from jaxal.label.workers.executor import Recipe


def start_structures(system: System) -> list[ase.Atoms]:
    """The structures that the walkers start from, with their supercells; `info` holds charge and spin.

    Masses and fixed atoms are the file's.

    Raises InputError for a file that cannot be read, a frame that is not there, frames of different atoms, and a
    supercell of a molecule.
    """
    frames = files.read(system.file, labeled=False)
    listed = range(len(frames)) if system.index == "all" else system.index
    if listed == ():
        raise InputError("system.index: an empty list does not fit; give frames such as [0, 1], or all")
    chosen = [listed] if isinstance(listed, int) else list(listed)
    starts: list[ase.Atoms] = []
    for index in chosen:
        if not -len(frames) <= index < len(frames):
            held = f"{len(frames)} frames, 0 to {len(frames) - 1}"
            raise InputError(f"system.index: {index} does not fit; {system.file} holds {held}")
    for index in chosen:
        try:
            frame = door.with_electrons(frames[index], system.charge, system.spin, "system")
        except InputError as error:
            raise InputError(f"{system.file}: frame {index}: {error}") from None
        atoms = door.to_atoms(door.stripped(frame))
        first = starts[0] if starts else atoms
        if not np.array_equal(atoms.numbers, first.numbers) or atoms.pbc.any() != first.pbc.any():
            what = "the same atoms in the same order, all with a cell or none"
            raise InputError(f"system.index: frames {chosen[0]} and {index} of {system.file} differ; they need {what}")
        if system.supercell != (1, 1, 1):
            if not atoms.pbc.all():
                raise InputError(
                    f"system.supercell: {list(system.supercell)} needs a periodic cell; {system.file} has none"
                )
            if (number := len(atoms) * int(np.prod(system.supercell))) > MOST_ATOMS:
                raise InputError(
                    f"system.supercell: {list(system.supercell)} makes {number} atoms; give at most {MOST_ATOMS}"
                )
            atoms = atoms.repeat(system.supercell)
        starts.append(atoms)
    return starts


def explorer_of(part: Part, starts: list[ase.Atoms], file: Any) -> Explorer:
    """The explorer of a configuration, which can move the start structures of this file.

    It is tried on shapes alone: nothing is computed. Raises InputError for options and structures that do not fit.
    """
    atoms = starts[0]
    explorer = _built("explore", part.bind())
    if all(fixed_atoms(start).all() for start in starts):
        raise InputError(f"system.file: all atoms of {file} are fixed; leave at least one free to move")
    if explorer.barostat and not atoms.pbc.all():
        raise InputError(f"explore.name: {part.name} needs a periodic cell; {file} has none")
    if explorer.barostat and any(fixed_atoms(start).any() for start in starts):
        what = "a changing cell moves all of its atoms; give a dynamics of constant volume, such as nvt_langevin"
        raise InputError(f"explore.name: {part.name} does not fit the fixed atoms of {file}: {what}")
    structure = from_atoms(atoms, species_table([atoms]))

    def begin() -> Any:
        nothing = jnp.zeros_like(structure.position), jnp.zeros((3, 3), structure.position.dtype)
        return explorer.init(jax.random.key(0), structure, *nothing, jnp.zeros((), jnp.int32))

    _built("explore", lambda: jax.eval_shape(begin))
    return explorer


def dynamics_of(part: Part, label: Part, weight: float, starts: list[ase.Atoms], file: Any) -> list[str]:
    """What is to be warned of where walkers of these structures move so under a model of such labels.

    `weight` is `train.stress_weight`. Raises InputError as `explorer_of`, and where a stress is needed that the labels
    do not have.
    """
    explorer = explorer_of(part, starts, file)
    reason = too_long(starts, explorer.timestep) if explorer.bath is not None else ""
    cautions = [f"explore.timestep: {reason}"] if reason else []
    if dict(label.options).get("stress") is False:
        if explorer.barostat:
            raise InputError(
                f"label.stress: false does not fit explore.name = {part.name}, whose cell follows the stress; "
                "give true, or a dynamics of constant volume"
            )
        if weight > 0:
            raise InputError(
                f"train.stress_weight: {weight:g} does not fit label.stress = false; give 0, or label.stress = true"
            )
    if explorer.barostat and weight == 0:
        what = f"the cell of {part.name} follows a stress that is never trained on; give such as 1"
        cautions.append(f"train.stress_weight: 0, {what}")
    if weight > 0 and not starts[0].pbc.all():
        cautions.append(f"train.stress_weight: {weight:g} has no effect; {file} has no periodic cell")
    return cautions


def check(config: Config) -> list[str]:
    """Makes sure that structure, method, dynamics and potential fit together.

    Returns what is to be warned of, one line each. Raises InputError, one line that names the section or field and what
    would be right.
    """
    starts = start_structures(config.system)
    atoms = starts[0]
    table = species_table([atoms])
    for start in starts:
        if reason := overlap(start, config.gate.closest):
            raise InputError(f"system.file: {config.system.file}: {reason}; give a structure that can be")
    check_fits(config, _check_parameters(config, table))
    if config.label.initial > config.stop.labels:
        raise InputError(
            f"label.initial: {config.label.initial} is too large; give at most stop.labels ({config.stop.labels})"
        )
    if config.label.initial < len(starts):
        raise InputError(
            f"label.initial: {config.label.initial} is too small; each of the {len(starts)} frames of system.index is "
            f"labeled first, give at least {len(starts)}"
        )
    if config.label.mode == "pooled" and config.label.part.kind == "oracle":
        raise InputError("label.mode: pooled does not fit an oracle, whose labels are in the program; give inline")
    if config.label.mode == "pooled" and config.executor.name == "local" and config.label.workers == 0:
        raise InputError("label.workers: 0 does not fit label.mode = pooled; give 1 or more")
    if config.label.lag is not None and config.label.mode != "pooled":
        raise InputError("label.lag: an inline run learns from each label at once; leave it out, or set label.mode")
    folder = Path(config.label.store).expanduser().parent
    if config.label.store and not folder.is_dir():
        raise InputError(f"label.store: there is no folder {folder}; make it, or give another path")
    if config.train.holdout == 0:
        raise InputError("train.holdout: 0 is too small; the gate learns from held-out labels, give such as 0.1")
    if config.label.part.kind == "oracle":
        for name in ("charge", "spin"):
            if value := getattr(config.system, name):
                what = f"the oracle {config.label.part.name} knows no electrons, give 0"
                raise InputError(f"system.{name}: {value} does not fit; {what}")
        _built("label", lambda: config.label.part.bind()(table))
    else:
        backend = _built("label", lambda: config.label.part.bind()())
        for start in starts:
            _built("label", lambda start=start: backend.check(task_of(start)))
        if config.label.atoms == "method":
            refuse_atoms(config.label.part, table, [int(start.info.get("charge", 0)) for start in starts])
        _built("executor", config.executor.bind())
    weight = config.train.stress_weight
    return dynamics_of(config.explore.part, config.label.part, weight, starts, config.system.file)


def refuse_atoms(label: Part, table: Table, charges: Sequence[int]) -> None:
    """Raises InputError where a method cannot calculate the isolated atoms of the elements of a run.

    `charges` are those of its systems: without a neutral one an atom that leaves may take a charge along.
    """
    if 0 not in charges:
        what = "a system with a charge, which one of its atoms may take along; give auto, or fit"
        raise InputError(f"label.atoms: method does not fit {what}")
    for number in table:
        plan = planned(Recipe(label.name, dict(label.options)), number, insist=True)
        if plan.task is None:
            what = f"the method cannot calculate {symbol(number)} alone ({plan.reason}); give auto, or fit"
            raise InputError(f"label.atoms: {what}")


def _check_parameters(config: Config, table: Table) -> Uncertainty | None:
    """The method of uncertainty. Raises InputError for a potential whose parameters cannot be trained or kept.

    Nothing is computed.
    """
    potential = _built("potential", lambda: weights.collected(config.potential.bind()(table)))
    method = _built("uncertainty", lambda: config.uncertainty.bind()(potential, len(table)))
    heads = config.committee.members if config.committee.kind == "shared" else 1
    one = committees.Committee(potential, heads, heads=heads, species=len(table), uncertainty=method)
    committees.shapes(one, config.precision)
    return method


def check_fits(config: Config, method: Uncertainty | None) -> None:
    """Raises InputError for a score, gate, uncertainty and bias that do not go together."""
    gate = _built("gate", config.gate.part.bind())
    spread = FORCE if method is None else method.unit
    score, name = config.score, config.gate.part.name
    names = config.uncertainty.name, spread, config.bias.name
    refuse_misfits(score.name, dict(score.options), name, gate, *names)
    default: Any = next(field.default for field in dataclasses.fields(Gate) if field.name == "implausible")
    refuse_idle_limit(config.gate.implausible, default, gate, spread)


def task_of(atoms: ase.Atoms) -> Task:
    """A structure as a labeler takes it."""
    return conversion.task_of(door.of_atoms(atoms, labeled=False))


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
