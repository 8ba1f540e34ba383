"""The part of checking a configuration that needs its structure, still before anything is computed."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ase
import jax
import jax.numpy as jnp

from jaxal.acquire.fits import refuse_idle_limit, refuse_misfits
from jaxal.committee import evaluation as committees
from jaxal.committee import weights
from jaxal.config import electrons
from jaxal.config.annotations import unit_of
from jaxal.config.biases import terms_of
from jaxal.config.schema import Config, Gate, Part
from jaxal.config.systems import Population, populations
from jaxal.core import registry
from jaxal.core.errors import InputError
from jaxal.core.plugins import source_of
from jaxal.core.types import FORCE, Sampler, Score, Start, Uncertainty
from jaxal.data import dataset, lattice
from jaxal.data import frames as door
from jaxal.data.electrons import or_none, symbol
from jaxal.data.frames import fixed_atoms, overlap
from jaxal.data.structure import Table, from_atoms, species_table
from jaxal.explore import stepping
from jaxal.explore.timestep import too_long
from jaxal.label.isolated_atoms import planned
from jaxal.label.store import conversion
from jaxal.label.task import Task, has_stress
from jaxal.label.workers.executor import Recipe

VACUUM = 8.0  # Å; a layer without atoms so thick is no part of a crystal or of a liquid


def sampler_of(part: Part, starts: list[ase.Atoms], walkers: int, file: Any, field: str = "system") -> Sampler:
    """The sampler of a configuration, which can move so many walkers from the start structures of this file, of the
    system `field`.

    It is tried on shapes alone: nothing is computed. Raises InputError for options and structures that do not fit.
    """
    atoms = starts[0]
    sampler = stepping.sampler(_built("explore", part.bind()))
    if all(fixed_atoms(start).all() for start in starts):
        raise InputError(f"{field}.file: all atoms of {file} are fixed; leave at least one free to move")
    if sampler.ordered and len(starts) != walkers:
        what = f"{file} gives {len(starts)} of them ({field}.index chooses)"
        raise InputError(
            f"explore.walkers: {walkers} does not fit {part.name}, whose images are the start structures and others "
            f"between them: {what}; give at least two, and no fewer walkers"
        )
    if sampler.barostat and not atoms.pbc.all():
        what = f"{file} is periodic along {lattice.named(atoms.pbc)}"
        raise InputError(f"explore.name: {part.name} needs a cell that is periodic in all three directions, {what}")
    if sampler.barostat and any(fixed_atoms(start).any() for start in starts):
        what = "a changing cell moves all of its atoms; give a dynamics of constant volume, such as nvt_langevin"
        raise InputError(f"explore.name: {part.name} does not fit the fixed atoms of {file}: {what}")
    for start in starts if sampler.barostat else ():
        if (empty := float(lattice.empty(start.positions, start.cell.array, start.pbc).max())) > VACUUM:
            what = f"{file} has a vacuum of {empty:.1f} Å, which a pressure would close; give nvt_langevin or another"
            raise InputError(f"explore.name: {part.name} does not fit: {what}")
    each = [starts[walker % len(starts)] for walker in range(walkers)]
    structures = jax.device_put(from_atoms(each, species_table([atoms])))

    def begin() -> Any:
        start = Start(structures, jnp.zeros_like(structures.position), jnp.zeros_like(structures.cell))
        return sampler.init(jax.random.split(jax.random.key(0), walkers), start, jnp.zeros(walkers, jnp.int32))

    _built("explore", lambda: jax.eval_shape(begin))
    return sampler


def dynamics_of(
    part: Part, label: Part, weight: float, starts: list[ase.Atoms], walkers: int, file: Any, field: str = "system"
) -> list[str]:
    """What is to be warned of where so many walkers of these structures move so under a model of such labels.

    `weight` is `train.stress_weight`. Raises InputError as `sampler_of`, and where a stress is needed that the labels
    do not have.
    """
    sampler = sampler_of(part, starts, walkers, file, field)
    reason = too_long(starts, sampler.timestep) if sampler.bath is not None else ""
    cautions = [f"explore.timestep: {reason}"] if reason else []
    if dict(label.options).get("stress") is False:
        if sampler.barostat:
            raise InputError(
                f"label.stress: false does not fit explore.name = {part.name}, whose cell follows the stress; "
                "give true, or a dynamics of constant volume"
            )
        if weight > 0:
            raise InputError(
                f"train.stress_weight: {weight:g} does not fit label.stress = false; give 0, or label.stress = true"
            )
    if sampler.barostat and weight == 0:
        what = f"the cell of {part.name} follows a stress that is never trained on; give such as 1"
        cautions.append(f"train.stress_weight: 0, {what}")
    return cautions


def _of_another_temperature(system: Population, score: Score) -> list[str]:
    """What is to be warned of where a bias is made for another temperature than that of the dynamics.

    Raises InputError for biases and variables that do not fit the structures, as `terms_of`.
    """
    terms = terms_of(system.bias, score, system.starts[0], system.bias_field)
    units = {
        option.name: unit_of(option.annotation) for option in registry.options(system.explore.kind, system.explore.name)
    }
    kelvin = {value for name, value in system.explore.options if units.get(name) == "K" and value is not None}
    others = [term for term in terms if term.bias.temperature is not None and kelvin - {term.bias.temperature}]
    has = " and ".join(f"{each:g}" for each in sorted(kelvin))
    return [
        f"{system.bias_field}: {term.name} is made for {term.bias.temperature:g} K, the dynamics has {has} K; give one "
        "temperature for both, or its free energies are wrong"
        for term in others
    ]


def idle_weight(weight: float, starts: Sequence[ase.Atoms], files: Sequence[Any]) -> list[str]:
    """What is to be warned of where the stress has a weight in the training, and no start structure has one."""
    if weight == 0 or any(map(_has_stress, starts)):
        return []
    which = ", ".join(dict.fromkeys(map(str, files)))
    return [f"train.stress_weight: {weight:g} has no effect; {which}: no periodic cell with a volume"]


def _has_stress(atoms: ase.Atoms) -> bool:
    return has_stress(task_of(atoms))


def check(config: Config) -> list[str]:
    """Makes sure that structure, method, dynamics and potential fit together.

    Returns what is to be warned of, one line each. Raises InputError, one line that names the section or field and what
    would be right.
    """
    systems = populations(config)
    starts = [start for system in systems for start in system.starts]
    table = species_table(starts)
    for system in systems:
        for start in system.starts:
            if reason := overlap(start, config.gate.closest):
                raise InputError(f"{system.field}.file: {system.file}: {reason}; give a structure that can be")
    config = with_inputs(config, starts)
    check_fits(config, _check_parameters(config, table))
    cautions = [_of_another_temperature(system, config.score.bind()) for system in systems]
    if config.initial > config.stop.labels:
        raise InputError(
            f"label.initial: {config.initial} is too large; give at most stop.labels ({config.stop.labels})"
        )
    if config.initial < len(starts):
        raise InputError(
            f"label.initial: {config.initial} is too small; each of the {len(starts)} start structures is labeled "
            f"first, give at least {len(starts)}"
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
        for field, section in config.named.items():
            for name in ("charge", "spin"):
                if value := getattr(section, name):
                    what = f"the oracle {config.label.part.name} knows no electrons, give 0"
                    raise InputError(f"{field}.{name}: {value} does not fit; {what}")
        _built("label", lambda: config.label.part.bind()(table))
    else:
        backend = _built("label", lambda: config.label.part.bind()())
        for system in systems:
            for start in system.starts:
                _built("label", lambda start=start: backend.check(task_of(start)), system.field)
        if config.label.atoms == "method":
            refuse_atoms(config.label.part, table, [int(start.info.get("charge", 0)) for start in starts])
        _built("executor", config.executor.bind())
    weight = config.train.stress_weight
    cautions += [
        dynamics_of(system.explore, config.label.part, weight, system.starts, system.walkers, system.file, system.field)
        for system in systems
    ]
    cautions.append(idle_weight(weight, starts, [system.file for system in systems]))
    if config.task is not None:
        _check_task(config.task, systems)
    _check_validation(config, systems, table)
    return list(dict.fromkeys(caution for of_system in cautions for caution in of_system))


def _check_task(part: Part, systems: Sequence[Population]) -> None:
    """Raises InputError for a task that no system is fit for, or one of them is too large for."""
    task = _built("task", part.bind())
    asked = [system for system in systems if system.sampler.ordered or not task.ordered]
    if not asked:
        what = "asks about a path, and no system has one; give explore.name = band, or leave the task out"
        raise InputError(f"task.name: {part.name} {what}")
    for system in asked:
        if task.largest is not None and (number := len(system.starts[0])) > task.largest:
            what = f"is for {task.largest} atoms at most, {system.file} has {number}; leave the task out"
            raise InputError(f"task.name: {part.name} {what}")
        if task.open and system.starts[0].pbc.any():
            what = f"is for open structures, that of {system.file} is periodic; leave the task out"
            raise InputError(f"task.name: {part.name} {what}")


def _check_validation(config: Config, systems: Sequence[Population], table: Table) -> None:
    """Raises InputError for frames to compare with that the finished model could not be compared with."""
    states = dataset.states_of([door.of_atoms(start, labeled=False) for own in systems for start in own.starts])
    files: list[Any] = [
        (config.validate.data, systems[0].field, *(or_none(*states[0]) if len(states) == 1 else (None, None)))
    ]
    for own in systems:
        (state,) = dataset.states_of([door.of_atoms(own.starts[0], labeled=False)])
        files.append((config.named[own.field].validate, own.field, *or_none(*state)))
    for file, section, charge, spin in files:
        if file is not None:
            frames = dataset.labeled(file, section, charge, spin).frames
            dataset.check_elements(frames, table, str(file), "the run")
            dataset.check_states(frames, states, str(file), "the run")


def with_inputs(config: Config, starts: Sequence[ase.Atoms]) -> Config:
    """The configuration whose potential takes charge and spin as input where these structures differ in them.

    Raises InputError where it cannot, see `electrons.resolved`.
    """
    states = dataset.states_of([door.of_atoms(start, labeled=False) for start in starts])
    return dataclasses.replace(config, potential=electrons.resolved(config.potential, states))


def refuse_atoms(label: Part, table: Table, charges: Sequence[int]) -> None:
    """Raises InputError where a method cannot calculate the isolated atoms of the elements of a run.

    `charges` are those of its systems: where none is neutral, an atom that leaves may take a charge along.
    """
    if 0 not in charges:
        what = "systems that all have a charge, which one of their atoms may take along; give auto, or fit"
        raise InputError(f"label.atoms: method does not fit {what}")
    for number in table:
        plan = planned(Recipe(label.name, dict(label.options)), number, insist=True)
        if plan.task is None:
            what = f"the method cannot calculate {symbol(number)} alone ({plan.reason}); give auto, or fit"
            raise InputError(f"label.atoms: {what}")


def _check_parameters(config: Config, table: Table) -> Uncertainty | None:
    """The method of uncertainty. Raises InputError for a potential whose parameters cannot be trained or kept.

    Nothing is computed; parts of the package, which tests hold to that, are not even traced.
    """
    potential = _built("potential", lambda: weights.collected(config.potential.bind()(table)))
    method = _built("uncertainty", lambda: config.uncertainty.bind()(potential, len(table)))
    if not (source_of("potential", config.potential.name) or source_of("uncertainty", config.uncertainty.name)):
        return method
    heads = config.committee.members if config.committee.kind == "shared" else 1
    committee = committees.Committee(potential, heads, heads=heads, species=len(table), uncertainty=method)
    committees.shapes(committee, config.precision)
    return method


def check_fits(config: Config, method: Uncertainty | None) -> None:
    """Raises InputError for a score, gate, uncertainty and bias that do not go together."""
    gate = _built("gate", config.gate.part.bind())
    spread = FORCE if method is None else method.unit
    score, name = config.score, config.gate.part.name
    names = config.uncertainty.name, spread, [bias.part.name for bias in config.bias]
    refuse_misfits(score.name, dict(score.options), name, gate, *names)
    default: Any = next(field.default for field in dataclasses.fields(Gate) if field.name == "implausible")
    refuse_idle_limit(config.gate.implausible, default, gate, spread)


def task_of(atoms: ase.Atoms) -> Task:
    """A structure as a labeler takes it."""
    return conversion.task_of(door.of_atoms(atoms, labeled=False))


def _built(section: str, build: Callable[[], Any], system: str = "system") -> Any:
    """What `build` gives. A part's ValueError is about its options or the `system`: it gets the field's full name."""
    try:
        return build()
    except ValueError as error:
        message = str(error)
        field = message.partition(":")[0]
        if field in ("charge", "spin"):
            message = f"{system}.{message}"
        elif field in ("structure", "cell"):
            message = f"{system}.file: {message}"
        elif field.partition(".")[0] != section:
            message = f"{section}: {message}"
        raise InputError(message) from error
