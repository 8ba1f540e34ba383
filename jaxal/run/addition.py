"""Systems added to a run that has begun: what was learned stays, and there is room for what is new.

The new systems are labeled first, as those of a new run are. Training set, parameters and trusted frames are brought
to the new species table and padded size; walkers go on from their trusted frames with new momenta. What knows only the
walkers' present frames, such as the queue, begins anew: labels that were at work are found by the ledger of the run.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxal.committee.isolated_atoms import ISOLATED
from jaxal.config import yaml12
from jaxal.config.loading import FILE_NAME, parse
from jaxal.config.schema import Config
from jaxal.config.systems import Population
from jaxal.config.writing import dump
from jaxal.core import devices
from jaxal.core.types import InputError, Key, Label, Params, Structure
from jaxal.data import buffer as buffers
from jaxal.data import neighbors
from jaxal.data.padding import atoms_to, structures_to
from jaxal.explore.bias_forces import rewound
from jaxal.label.task import Enough
from jaxal.program import state as states
from jaxal.run import (
    assembly,
    checkpoint,
    folder,
    grouping,
    initial_labels,
    notes,
    persistence,
    reference_atoms,
    session,
    training_data,
)
from jaxal.run.final_training import compiled_fit
from jaxal.run.session import Progress, Run
from jaxal.train import fit as training
from jaxal.train.reference import reference_energies


class Before(NamedTuple):
    """A run as its last checkpoint has it."""

    run: Run
    progress: Progress
    state: states.State


class Labeled(NamedTuple):
    """What the method of a run says of new systems."""

    first: initial_labels.First
    atoms: list[reference_atoms.Atom]  # the isolated atoms of new elements


def begun_with(run: Run, stored: checkpoint.Stored) -> Config:
    """The configuration that a checkpoint was written with."""
    raw = yaml12.parse(stored.record["host"]["config"], FILE_NAME)
    return parse(raw, run.directory if devices.first() else None)


def added(before: Config, now: Config) -> list[str]:
    """The fields of the systems that a run had not when it was last at work."""
    return [field for field in now.named if field not in before.named]


def new_systems(old: Run, run: Run) -> list[Population]:
    """The systems of a run that it had not before."""
    known = {system.field for system in old.systems}
    return [system for system in run.systems if system.field not in known]


def grown(before: Before, run: Run, labels_of_new: Labeled) -> tuple[Progress, states.State]:
    """Progress and state of a run with more systems than it had, from what its method says of the new ones.

    Writes a checkpoint of them.
    """
    old, progress, state = before
    state, (first, atoms) = devices.whole(state), labels_of_new
    fresh = new_systems(old, run)
    size, rows = run.atoms, np.array([run.table.index(number) for number in old.table])
    isolated = _isolated(old, run, progress) | reference_atoms.known(atoms, run.table)
    reference = _references(old, run, progress, first, isolated)
    structures, labels = training_data.cast(first.structures, first.labels, reference, run.config.precision)
    structures, labels = structures_to(structures, size), labels._replace(force=atoms_to(labels.force, size))
    key, key_add, key_new, key_fit = jax.random.split(jax.device_get(state.key), 4)
    buffer = _training_set(run, fresh, state.buffer, rows, structures, labels, key_add)
    committee = assembly.committee_of(run.config, run.table, bool(isolated))
    cutoff = committee.potential.cutoff
    everything, _ = buffers.rows(buffer, np.arange(int(buffer.count)))
    near = grouping.neighbor_lists(run.systems, run.groups, run.table, everything, cutoff)
    train_near = neighbors.plan(everything, cutoff, 0.0)
    params = training_data.new_params(committee, key_new, train_near, structures, labels, reference, isolated)
    params = _learned(params, state.train.average, rows)
    recipe = assembly.recipe(run.config.train)
    limits = assembly.limits_of(run.config, progress.rate, 0.0)
    steps = jnp.asarray(run.config.train.initial_steps, jnp.int32)
    session.show(run, progress, "first training", f"{', '.join(system.name for system in fresh)}: added")
    fit = compiled_fit(committee, recipe, train_near)
    train = devices.laid(run.mesh, states.LAYOUT.train, training.init(recipe, params))
    buffer = devices.laid(run.mesh, states.LAYOUT.buffer, buffer)
    train, _ = fit(train, buffer, key_fit, steps, limits.rate, limits.final_rate)
    parts = assembly.parts_of(run.config, run.table, None, run.systems, run.groups, bool(isolated))
    groups = grouping.program_groups(run.systems, run.groups, near)
    static = assembly.static_of(run.config, run.table, groups, train_near)
    walkers, begun = _walkers(old, run, state, rows)
    starts, sample = jax.device_put(session.walker_structures(run)), state.sample

    def begin(train: Any, buffer: Any, key: Key) -> states.State:
        new = states.start(parts, static, train, buffer, walkers, key, begun)
        frames = structures_to(_renamed(sample.structure, rows), size)
        counted = {name: getattr(state.gate, name) for name in ("correction", "covered", "checked")}
        return new._replace(
            sample=sample._replace(structure=frames),
            gate=new.gate._replace(**counted),
            fresh=state.fresh,
            course=state.course,
            farthest=states.farthest_of(static, starts).astype(new.farthest.dtype),
        )

    progress.reference = [float(x) for x in reference]
    progress.isolated = [isolated.get(row) for row in range(len(run.table))]
    progress.near, progress.train_near = [session.spec_out(spec) for spec in near], session.spec_out(train_near)
    progress.asked += first.structures.charge.shape[0] + first.failed
    progress.failed += first.failed
    progress.phase, progress.config = "explore", dump(run.config, run.directory)
    progress.begun, progress.waiting, progress.rewinds = [], None, []
    new_state = jax.block_until_ready(jax.jit(begin)(train, buffer, key))
    new_state = _with_biases(Before(old, progress, state), run, parts, new_state)
    new_state = new_state._replace(labels=jnp.asarray(progress.asked, jnp.int32))
    folder.append(run.directory, [notes.phase(run, "explore", f"added {', '.join(s.name for s in fresh)}")])
    folder.append(run.directory, reference_atoms.records(atoms, reference, run.table, session.elapsed(run)))
    new_state = devices.laid(run.mesh, states.LAYOUT, new_state)
    persistence.save(run, progress, new_state)
    return progress, new_state


def first_labels(old: Run, run: Run, progress: Progress) -> Labeled:
    """The first labels of the new systems, as many as those of a new run, and the isolated atoms of new elements.

    Raises InputError where they cannot be labeled, or nothing is left of the budget for them, and Enough where the run
    is told to end meanwhile.
    """
    fresh = new_systems(old, run)
    names = ", ".join(system.field for system in fresh)
    number = max(initial_labels.FIRST_OF_EACH * len(fresh), sum(len(system.starts) for system in fresh))
    stop, ps = run.config.stop, session.picoseconds(run, progress)
    if progress.asked + number >= stop.labels:
        raise InputError(
            f"stop.labels: {stop.labels} is too small for {names}: {progress.asked} labels are there, and {number} "
            f"more come first; give such as {progress.asked + 10 * number}"
        )
    if stop.time is not None and ps >= stop.time:
        raise InputError(f"stop.time: {stop.time:g} ps are over; for {names} give more, such as {2 * stop.time:g}")
    session.show(run, progress, "first labels")

    def labeled() -> list[Any] | None:
        with suppress(Enough):
            how = run.store, run.interrupted, run.opener, number, run.table
            return initial_labels.first_labels(run.config, fresh, *how).values()
        return None

    labels = devices.from_first(labeled)
    if labels is None:
        raise Enough
    return Labeled(initial_labels.First.from_values(labels), reference_atoms.of_run(run, _isolated(old, run, progress)))


def _isolated(old: Run, run: Run, progress: Progress) -> dict[int, float]:
    """The isolated atoms that the run knows, eV, by row of the new table."""
    each = zip(old.table, progress.isolated, strict=True)
    return {run.table.index(number): energy for number, energy in each if energy is not None}


def _references(
    old: Run, run: Run, progress: Progress, first: initial_labels.First, isolated: Mapping[int, float]
) -> np.ndarray:
    """Energies of the species, eV: those that the run has, and of new elements by the first labels."""
    known = {run.table.index(number): value for number, value in zip(old.table, progress.reference, strict=True)}
    return reference_energies(first.structures, first.labels.energy, len(run.table), isolated, known)


def _renamed(structures: Structure, rows: np.ndarray) -> Structure:
    """Structures whose species are rows of the new table: row i of the old one is `rows[i]`."""
    species = jnp.asarray(structures.species)
    return structures._replace(species=jnp.where(species >= 0, jnp.asarray(rows, jnp.int32)[species], -1))


def _training_set(
    run: Run,
    fresh: Sequence[Population],
    buffer: buffers.Buffer,
    rows: np.ndarray,
    structures: Structure,
    labels: Label,
    key: Key,
) -> buffers.Buffer:
    """The training set with the new labels, and room for as many as a new run would have."""
    size, number = run.atoms, structures.charge.shape[0]
    force = atoms_to(buffer.label.force, size)
    buffer = buffer._replace(
        structure=structures_to(_renamed(buffer.structure, rows), size), label=buffer.label._replace(force=force)
    )
    capacity = max(int(buffer.count) + number, min(run.config.stop.labels, assembly.LARGEST_BUFFER))
    buffer = buffers.grow(buffer, max(capacity, buffers.capacity(buffer)))
    held = jnp.asarray(training_data.spread_hold(number, run.config.train.holdout, sum(len(s.starts) for s in fresh)))
    bootstrap = 1.0 if run.config.train.bootstrap else 0.0
    return jax.jit(buffers.add, static_argnums=6)(buffer, key, structures, labels, labels.ok, held, bootstrap)[0]


def _learned(new: Params, learned: Params, rows: np.ndarray) -> Params:
    """New parameters that are the learned ones wherever these say something.

    An axis that has grown is one of species; its new rows keep their initial weights. Raises InputError for parameters
    that have grown in another way.
    """
    known = {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(learned)}

    def merged(path: Any, fresh: Any) -> Any:
        old = known.get(jax.tree_util.keystr(path))
        if old is None:  # charge and spin, which become an input with the first system that differs in them
            return fresh
        if fresh.shape == old.shape:
            # an offset of a charge and spin that nothing was learned at is that of the new labels
            return jnp.where(old == 0, fresh, old) if "offset" in jax.tree_util.keystr(path) else old
        axes = [axis for axis, (a, b) in enumerate(zip(fresh.shape, old.shape, strict=True)) if a != b]
        if any(old.shape[axis] != len(rows) for axis in axes):
            name = jax.tree_util.keystr(path)
            raise InputError(
                f"potential: its parameters {name} change from {old.shape} to {fresh.shape} with another element, and "
                "no axis of them is one of species; give a new run"
            )
        place = np.ix_(*(rows if axis in axes else np.arange(n) for axis, n in enumerate(old.shape)))
        return jnp.asarray(fresh).at[place].set(old)

    # the posterior is learned again, and isolated atoms are as the run knows them now
    fresh = {name: value for name, value in new.items() if name in ("posterior", ISOLATED)}
    kept = {name: value for name, value in new.items() if name not in fresh}
    return jax.tree_util.tree_map_with_path(merged, kept) | fresh


def _with_biases(before: Before, run: Run, parts: states.Parts, fresh: states.State) -> states.State:
    """What biases have learned, of groups that are as they were, now that their walkers are at their trusted frames."""
    named = {tuple(before.run.systems[at].field for at in group): row for row, group in enumerate(before.run.groups)}
    drift, trusted = list(fresh.drift), list(fresh.trusted.drift)
    for at, group in enumerate(run.groups):
        row = named.get(tuple(run.systems[number].field for number in group))
        if row is None:
            continue
        sampler, walkers = parts.samplers[at], fresh.walkers[at]
        structures = sampler.walkers(walkers)
        time = sampler.timestep * sampler.steps(walkers).astype(structures.position.dtype)
        trusted[at] = before.state.trusted.drift[row]
        every = jnp.ones(time.shape, bool)
        drift[at] = rewound(parts.biases[at], every, before.state.drift[row], trusted[at], structures, time)
    return fresh._replace(drift=tuple(drift), trusted=fresh.trusted._replace(drift=tuple(trusted)))


def _walkers(old: Run, run: Run, state: states.State, rows: np.ndarray) -> tuple[Structure, np.ndarray]:
    """Where the walkers begin, [w n], and how many steps they have done."""
    size = run.atoms
    trusted = jax.device_get(structures_to(_renamed(state.trusted.structure, rows), size))
    samplers = [old.systems[group[0]].sampler for group in old.groups]
    each = zip(samplers, state.walkers, strict=True)
    steps = np.concatenate([np.asarray(sampler.steps(walkers)) for sampler, walkers in each])
    begin: Any = jax.tree.map(np.array, session.walker_structures(run))
    begun = np.zeros(len(run.walkers), np.int32)
    for at, system in enumerate(run.systems):
        mine = np.flatnonzero(np.array(run.walkers) == at)
        theirs = [row for row, number in enumerate(old.walkers) if old.systems[number].field == system.field]
        for row, source in zip(mine, theirs, strict=False):
            for values, from_old in zip(begin, trusted, strict=True):
                values[row] = from_old[source]
            begun[row] = steps[source]
    return jax.device_put(begin), begun
