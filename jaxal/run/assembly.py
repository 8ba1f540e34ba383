"""From a configuration to the program: parts, capacities, first labels, first training set."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool

from jaxal.committee import evaluation as committees
from jaxal.committee import weights
from jaxal.committee.evaluation import Committee
from jaxal.config.schema import Config, Offline, Train
from jaxal.core import devices
from jaxal.core.types import InputError, Key, Label, Params, Structure
from jaxal.data import buffer as buffers
from jaxal.data import neighbors
from jaxal.data.frames import fixed_atoms, of_atoms, stripped
from jaxal.data.structure import Table, from_atoms, species_table
from jaxal.label.service import Service, label_service
from jaxal.label.store import conversion
from jaxal.label.workers.executor import Executor, Setting
from jaxal.label.workers.executor import Recipe as LabelRecipe
from jaxal.program import loop
from jaxal.program.callback import host_label
from jaxal.program.selection import arms_of
from jaxal.train import fit as training
from jaxal.train.loss import LossWeights

SKIN = 0.5  # Å
FOLD = 64  # held-out labels that calibrate the gate
LOOKS = 10  # in a segment
LARGEST_BUFFER = 4096  # rows of the first allocation; it grows beyond

Opener = Callable[[LabelRecipe, float | None], Executor]  # of an executor, for a labeler and a time limit in s
LabelFunction = Callable[[Structure, Bool[Array, "k"]], Label]


class First(NamedTuple):
    """The first labels: absolute energies in float64."""

    structures: Structure  # [k] numpy
    labels: Label  # [k] numpy
    failed: int

    def told(self) -> list[Any]:
        """As one process tells another."""
        return [list(self.structures), list(self.labels), self.failed]

    @classmethod
    def heard(cls, told: list[Any]) -> "First":
        """What `told` told."""
        return cls(Structure(*told[0]), Label(*told[1]), told[2])


def dtype_of(precision: str) -> Any:
    """The float type of a precision; float64 also switches JAX to 64 bits."""
    if precision == "float64":
        jax.config.update("jax_enable_x64", True)
    return np.dtype(precision)


def recipe(train: Train) -> training.Recipe:
    """What is static about training, from its section."""
    weights = LossWeights(train.energy_weight, train.force_weight, train.stress_weight, train.huber)
    return training.Recipe(
        batch=train.batch,
        optimizer=train.optimizer,
        weight_decay=train.weight_decay,
        clip=train.clip,
        ema=train.ema,
        weights=weights,
        bootstrap=1.0 if train.bootstrap else 0.0,
    )


def first_structures(atoms: ase.Atoms | Sequence[ase.Atoms], number: int, seed: int) -> list[ase.Atoms]:
    """The start structures and displaced copies of them, in turn, to learn the first potential from.

    Gaussian displacements of 0.02 to 0.10 Å per coordinate, light atoms more than heavy ones (as the square root of
    carbon's mass over theirs, at most 1.5 times); periodic cells are also strained by up to 2 %. Fixed atoms stay where
    they are, and a cell that holds some keeps its shape, as it does in the dynamics.
    """
    rng = np.random.default_rng([seed, 1])
    starts = [atoms] if isinstance(atoms, ase.Atoms) else atoms
    frames = [start.copy() for start in starts]
    scale = np.minimum(np.sqrt(12.0 / frames[0].get_masses()), 1.5)[:, None]
    for turn, size in enumerate(np.linspace(0.02, 0.10, number - len(starts))):
        frame = starts[turn % len(starts)].copy()
        fixed = fixed_atoms(frame)
        if frame.pbc.all() and not fixed.any():
            strain = rng.uniform(-0.02, 0.02, (3, 3))
            frame.set_cell(frame.cell.array @ (np.eye(3) + 0.5 * (strain + strain.T)), scale_atoms=True)
        frame.positions += np.where(fixed[:, None], 0.0, scale * rng.normal(0.0, size, frame.positions.shape))
        frames.append(frame)
    return frames


def carried_by(start: ase.Atoms) -> bytes:
    """What all structures of a run carry into its label store: the masses and fixed atoms of its start."""
    return conversion.luggage(stripped(of_atoms(start, labeled=False)))


def executor_of(config: Config, directory: Path) -> Opener:
    """What opens the executor of a run, whose folder is `directory`, for a labeler and a time limit in seconds."""

    def opened(recipe: LabelRecipe, timeout: float | None) -> Executor:
        return config.executor.bind()()(Setting(recipe, timeout, config.label.workers, directory))

    return opened


def open_service(
    config: Config,
    table: Table,
    store: Path,
    reference: np.ndarray,
    enough: Callable[[], bool] = lambda: False,
    opener: Opener | None = None,
    retry_failed: bool = False,
    carried: bytes = b"",
) -> Service:
    """The labels of a host method, relative to `reference` (eV per species), kept in `store`, until `enough()`.

    `opener` opens the executor; by default it is one of its own, which writes into the folder of the store. With
    `retry_failed` what the store remembers as failed is calculated again. `carried`: see `label_service`.
    """
    part = config.label.part
    return label_service(
        LabelRecipe(part.name, dict(part.options)),
        table=table,
        store=store,
        reference=reference,
        executor=opener or executor_of(config, store.parent),
        timeout=config.label.timeout,
        max_force=config.label.max_force,
        net_force=config.label.net_force,
        enough=enough,
        retry_failed=retry_failed,
        carried=carried,
    )


def oracle_label(
    config: Config, table: Table, dtype: Any, reference: np.ndarray, spec: neighbors.Spec
) -> LabelFunction:
    """The labels of a closed form in JAX, as a function of the program, without a callback."""
    oracle = config.label.part.bind()(table)
    offset = jnp.asarray(reference, dtype)
    cap = config.label.max_force

    def label(structures: Structure, wanted: Bool[Array, "k"]) -> Label:
        near = neighbors.find(spec, structures)
        energy, force, stress, _ = committees.evaluate_batch(oracle, {}, structures, near)
        real = structures.species >= 0
        energy = energy - jnp.sum(jnp.where(real, offset[structures.species], 0.0), axis=-1)
        largest = jnp.max(jnp.linalg.norm(force, axis=-1), axis=-1)
        ok = wanted & jnp.isfinite(energy) & (largest <= cap) & ~near.overflow
        return Label(energy, force, stress, ok)

    return label


def oracle_spec(config: Config, table: Table, structures: Structure) -> neighbors.Spec:
    """Neighbors of the closed form, with ample room: an overflow there would fail labels.

    A crystal gains neighbors when it melts or is compressed: twice those within one more angstrom are provided for.
    """
    cutoff = config.label.part.bind()(table).cutoff
    return neighbors.plan(structures, cutoff, 1.0, 2.0)._replace(skin=0.0, close=0)


def first_labels(
    config: Config,
    atoms: ase.Atoms | Sequence[ase.Atoms],
    store: Path,
    enough: Callable[[], bool] = lambda: False,
    opener: Opener | None = None,
) -> First:
    """Labels the first structures. Raises InputError if the method fails on a start structure or on most.

    Once `enough()` holds it raises Enough, with what was calculated in the store. `opener`: see `open_service`.
    """
    starts = [atoms] if isinstance(atoms, ase.Atoms) else atoms
    table = species_table(starts)
    frames = first_structures(starts, config.label.initial, config.seed)
    structures = from_atoms(frames, table, dtype=np.float64)
    zero = np.zeros(len(table))
    wanted = np.ones(len(frames), bool)
    if config.label.part.kind == "oracle":
        dtype = dtype_of(config.precision)
        given = jax.tree.map(lambda x: jnp.asarray(x, dtype) if x.dtype == np.float64 else jnp.asarray(x), structures)
        label = jax.jit(oracle_label(config, table, dtype, zero, oracle_spec(config, table, given)))
        labels = label(given, jnp.asarray(wanted))
        told: Any = jax.device_get(labels)
        energy, force, stress = (x.astype(np.float64) for x in told[:3])
        labels = Label(energy, force, stress, told.ok)
        reason = "the force cap label.max_force"
    else:
        service = open_service(config, table, store, zero, enough, opener, carried=carried_by(starts[0]))
        try:
            # the program will ask in its own precision: the first structures are rounded to it, too
            rounded: Any = structures._replace(position=np.float64(np.asarray(structures.position, config.precision)))
            told: Any = service.label(rounded, wanted)
            if trouble := service.trouble():
                raise InputError(trouble)
            labels = Label(*told)
            reason = next((record.reason for record in service.drain() if not record.ok), "")
        finally:
            service.close()
    ok = np.asarray(labels.ok)
    if not ok[: len(starts)].all() or ok.sum() < 2:
        raise InputError(f"label: {config.label.part.name} fails on the start structure {config.system.file}: {reason}")
    keep = np.flatnonzero(ok)
    kept = jax.tree.map(lambda x: np.asarray(x)[keep], (structures, labels))
    return First(*kept, failed=int((~ok).sum()))


def cast(structures: Structure, labels: Label, reference: np.ndarray, dtype: Any) -> tuple[Structure, Label]:
    """Device arrays in the program's precision, energies relative to the references (subtracted in float64)."""
    species = np.asarray(structures.species)
    offset = np.where(species >= 0, np.asarray(reference)[species], 0.0).sum(-1)
    structures = structures._replace(
        position=jnp.asarray(structures.position, dtype), cell=jnp.asarray(structures.cell, dtype)
    )
    labels = Label(
        jnp.asarray(np.asarray(labels.energy) - offset, dtype),
        jnp.asarray(labels.force, dtype),
        jnp.asarray(labels.stress, dtype),
        jnp.asarray(labels.ok),
    )
    return jax.tree.map(jnp.asarray, (structures, labels))


def training_set(
    structures: Structure,
    labels: Label,
    held: np.ndarray,
    members: int,
    capacity: int,
    key: Key,
    bootstrap: float,
    share: np.ndarray | None = None,
) -> buffers.Buffer:
    """A buffer that holds the labels (device arrays, [b]); `held` marks those held out, `share` weighs them [b 3]."""
    number = structures.charge.shape[0]
    empty = buffers.init(jax.tree.map(lambda x: x[0], structures), members, max(capacity, number))
    add = jax.jit(buffers.add, static_argnums=6)
    weights = None if share is None else jnp.asarray(share, empty.share.dtype)
    return add(empty, key, structures, labels, labels.ok, jnp.asarray(held), bootstrap, weights)[0]


def spread_hold(number: int, fraction: float) -> np.ndarray:
    """Marks `fraction` of the rows, at least one, evenly spaced and away from both ends."""
    count = max(1, round(fraction * number))
    held = np.zeros(number, bool)
    held[((np.arange(count) + 0.5) * number / count).astype(int)] = True
    return held


def committee_of(config: Config | Offline, table: Table) -> Committee:
    """The committee of a configuration, on the devices of a run. Raises InputError where those do not fit."""
    given, mesh = config.committee, mesh_of(config) if isinstance(config, Config) else None
    heads = given.members if given.kind == "shared" else 1
    potential = weights.collected(config.potential.bind()(table))
    method = config.uncertainty.bind()(potential, len(table))
    return Committee(potential, given.members, given.batching, heads, given.signs, len(table), method, mesh)


def _replicas(config: Config) -> int:
    """Sets of weights, which divide over devices; the heads of one set do not."""
    return config.committee.members if config.committee.kind == "full" else 1


def devices_of(config: Config) -> int:
    """How many devices a run takes. Raises InputError where `devices` does not fit."""
    return devices.number(config.devices, config.explore.walkers, _replicas(config))


def mesh_of(config: Config) -> Mesh | None:
    """The devices of a run; None for a single one."""
    return devices.mesh(devices_of(config), _replicas(config))


def new_params(committee: Committee, key: Key, spec: neighbors.Spec, structures: Structure, labels: Label) -> Params:
    """Initial weights, [r] leading, with the constants taken from the data."""
    near = jax.jit(neighbors.find, static_argnums=0)(spec, structures)
    atoms = jnp.sum(structures.species >= 0)
    listed = float(jnp.sum(near.index < structures.species.shape[-1]) / atoms)
    first = jax.tree.map(lambda x: x[0], (structures, near))
    params = jax.jit(lambda key, *one: committees.init(committee, key, *one))(key, *first)
    return training.normalize(params, labels, structures, listed)


def static_of(
    config: Config, table: Table, near: neighbors.Spec, train_near: neighbors.Spec, looks: int = LOOKS
) -> loop.Static:
    """What the segment is compiled for."""
    return loop.Static(
        table=table,
        near=near,
        train_near=train_near,
        recipe=recipe(config.train),
        every=config.gate.every,
        looks=looks,
        batch=config.label.batch or config.explore.walkers,
        fold=FOLD,
        queue=config.label.queue if config.label.mode == "pooled" else 0,
        sample=config.calibration,
    )


def limits_of(config: Config, rate: float, probe: float) -> loop.Limits:
    """The arguments of the segment. Trainings in the loop end at a tenth of their learning rate."""
    dtype = np.dtype(config.precision)
    return loop.Limits(
        implausible=jnp.asarray(config.gate.implausible, dtype),
        closest=jnp.asarray(config.gate.closest, dtype),
        hottest=jnp.asarray(config.gate.hottest, dtype),
        budget=jnp.asarray(config.stop.labels, jnp.int32),
        probe=jnp.asarray(probe, dtype),
        holdout=jnp.asarray(config.train.holdout, dtype),
        steps=jnp.asarray(config.train.steps, jnp.int32),
        rate=jnp.asarray(rate, dtype),
        final_rate=jnp.asarray(0.1 * rate, dtype),
    )


def parts_of(config: Config, table: Table, label: LabelFunction | None) -> loop.Parts:
    """The functions of the run; without a `label` what is to be labeled waits in the queue."""
    dtype_of(config.precision)
    schedule = config.schedule.bind()()
    return loop.Parts(
        committee=committee_of(config, table),
        explorer=config.explore.part.bind()(),
        score=config.score.bind(),
        gate=config.gate.part.bind()(),
        kernel=config.kernel.bind(),
        select=config.select.bind(),
        label=label,
        drive=config.explore.drive,
        bias=config.bias.bind()(config.score.bind()),
        schedule=schedule,
        arms=arms_of(schedule),
    )


def host_label_of(label: Callable[..., Any], mesh: Mesh | None) -> LabelFunction:
    """The labels of a service as a function of the program: one callback."""
    return lambda structures, wanted: host_label(label, structures, wanted, mesh)
