"""What a run learns first: displaced copies of its start structures, and their labels."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np

from jaxal.config.schema import FIRST_OF_EACH as FIRST_OF_EACH
from jaxal.config.schema import Config
from jaxal.config.systems import Population
from jaxal.core.types import InputError, Label, Structure
from jaxal.data.frames import Frame, fixed_atoms, of_atoms, stripped
from jaxal.data.lattice import along_periodic
from jaxal.data.structure import Table, from_atoms, species_table
from jaxal.label.store import conversion
from jaxal.run.assembly import dtype_of
from jaxal.run.labeling import Opener, open_service, oracle_label, oracle_spec


class First(NamedTuple):
    """The first labels: absolute energies in float64."""

    structures: Structure  # [k] numpy
    labels: Label  # [k] numpy
    failed: int

    def values(self) -> list[Any]:
        """As one process tells another."""
        return [list(self.structures), list(self.labels), self.failed]

    @classmethod
    def from_values(cls, values: list[Any]) -> "First":
        """From what `values` returns."""
        return cls(Structure(*values[0]), Label(*values[1]), values[2])


def first_structures(atoms: ase.Atoms | Sequence[ase.Atoms], number: int, seed: int) -> list[ase.Atoms]:
    """The start structures of a system and displaced copies of them, in turn, to learn the first potential from.

    Gaussian displacements of 0.02 to 0.10 Å per coordinate, light atoms more than heavy ones (as the square root of
    carbon's mass over theirs, at most 1.5 times); cells are also strained by up to 2 % in the directions that repeat.
    Fixed atoms stay where they are, and a cell that holds some keeps its shape, as it does in the dynamics.
    """
    rng = np.random.default_rng([seed, 1])
    starts = [atoms] if isinstance(atoms, ase.Atoms) else atoms
    frames = [start.copy() for start in starts]
    scale = np.minimum(np.sqrt(12.0 / frames[0].get_masses()), 1.5)[:, None]
    for turn, size in enumerate(np.linspace(0.02, 0.10, number - len(starts))):
        frame = starts[turn % len(starts)].copy()
        fixed = fixed_atoms(frame)
        if frame.pbc.any() and not fixed.any():
            strain = rng.uniform(-0.02, 0.02, (3, 3))
            strain = along_periodic(0.5 * (strain + strain.T), frame.cell.array, frame.pbc)
            if frame.pbc.all():
                frame.set_cell(frame.cell.array @ (np.eye(3) + strain), scale_atoms=True)
            else:  # vectors that do not repeat, if there are any, stay as they are
                frame.positions += frame.positions @ strain
                cell = frame.cell.array + np.where(frame.pbc[:, None], frame.cell.array @ strain, 0.0)
                frame.set_cell(cell)
        frame.positions += np.where(fixed[:, None], 0.0, scale * rng.normal(0.0, size, frame.positions.shape))
        frames.append(frame)
    return frames


def first_of_all(systems: Sequence[Population], number: int, seed: int) -> list[ase.Atoms]:
    """`number` first structures of several systems: of each an even share, the start structures before all others.

    A system has at least its start structures; an isolated atom, which nothing displaces, has no copies.
    """
    least = [len(system.starts) for system in systems]
    movable = [0 if len(system.starts[0]) == 1 else 1 for system in systems]
    shares = list(least)
    for turn in range(max(0, number - sum(least)) if any(movable) else 0):
        # the next one goes to the system that has the fewest copies so far
        at = min((share - few, at) for at, (share, few) in enumerate(zip(shares, least, strict=True)) if movable[at])[1]
        shares[at] += 1
        del turn
    frames = [
        first_structures(system.starts, share, seed + 1000 * at)
        for at, (system, share) in enumerate(zip(systems, shares, strict=True))
    ]
    begun = [frame for own, few in zip(frames, least, strict=True) for frame in own[:few]]
    return begun + [frame for own, few in zip(frames, least, strict=True) for frame in own[few:]]


def carriers(starts: Sequence[ase.Atoms], table: Table) -> Callable[[Any], list[bytes]]:
    """What each structure of a batch carries into the label store: masses and fixed atoms of the start it comes from.

    In the program masses have its precision; in the store they are those of the file.
    """
    stripped_starts = [stripped(of_atoms(start, labeled=False)) for start in starts]
    luggage = [conversion.luggage(frame) for frame in stripped_starts]

    def carried(batch: Any) -> list[bytes]:
        return [_of_start(stripped_starts, luggage, batch, row, table) for row in range(len(batch.species))]

    return carried


def _of_start(starts: Sequence[Frame], luggage: list[bytes], batch: Any, row: int, table: Table) -> bytes:
    species = np.asarray(batch.species[row])
    real = species >= 0
    numbers = np.asarray(table)[species[real]]
    mass, fixed = (np.asarray(values[row])[real] for values in (batch.mass, batch.fixed))
    for start, own in zip(starts, luggage, strict=True):
        same = np.array_equal(start.numbers, numbers) and np.array_equal(start.fixed, fixed)
        if same and np.allclose(start.mass, mass, rtol=1e-5):
            return own
    raise AssertionError("a structure of a run is none of its systems'")


def first_labels(
    config: Config,
    systems: Sequence[Population],
    store: Path,
    enough: Callable[[], bool] = lambda: False,
    opener: Opener | None = None,
    number: int | None = None,
    table: Table | None = None,
) -> First:
    """Labels the first structures. Raises InputError if the method fails on a start structure or on most.

    Once `enough()` holds it raises Enough, with what was calculated in the store. `opener`: see `open_service`. There
    are `number` of them (default: `label.initial`), their species rows of `table` (default: of their own).
    """
    starts = [start for system in systems for start in system.starts]
    table = table or species_table(starts)
    frames = first_of_all(systems, number or config.initial, config.seed)
    structures = from_atoms(frames, table, dtype=np.float64)
    zero = np.zeros(len(table))
    wanted = np.ones(len(frames), bool)
    if config.label.part.kind == "oracle":
        dtype = dtype_of(config.precision)
        inputs = jax.tree.map(lambda x: jnp.asarray(x, dtype) if x.dtype == np.float64 else jnp.asarray(x), structures)
        label = jax.jit(oracle_label(config, table, dtype, zero, oracle_spec(config, table, inputs)))
        labels = label(inputs, jnp.asarray(wanted))
        values: Any = jax.device_get(labels)
        energy, force, stress = (x.astype(np.float64) for x in values[:3])
        labels = Label(energy, force, stress, values.ok)
        reasons = ["the force cap label.max_force"] * len(frames)
    else:
        service = open_service(config, table, store, zero, enough, opener)
        try:
            # the program will ask in its own precision: the first structures are rounded to it, too
            rounded: Any = structures._replace(position=np.float64(np.asarray(structures.position, config.precision)))
            answer: Any = service.label(rounded, wanted, carriers(starts, table)(structures))
            if trouble := service.trouble():
                raise InputError(trouble)
            labels = Label(*answer)
            reasons = [record.reason for record in service.drain()]
        finally:
            service.close()
    ok = np.asarray(labels.ok)
    files = [system.file for system in systems for _ in system.starts]
    failed = np.flatnonzero(~ok)
    if not ok[: len(starts)].all() or ok.sum() < 2:
        row = int(failed[0]) if failed.size else 0
        file = files[row] if row < len(files) else files[0]
        raise InputError(f"label: {config.label.part.name} fails on the start structure {file}: {reasons[row]}")
    keep = np.flatnonzero(ok)
    kept = jax.tree.map(lambda x: np.asarray(x)[keep], (structures, labels))
    return First(*kept, failed=int((~ok).sum()))
