"""What a run learns first: displaced copies of its start structures, and their labels."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np

from jaxal.config.schema import Config
from jaxal.core.types import InputError, Label, Structure
from jaxal.data.frames import fixed_atoms, of_atoms, stripped
from jaxal.data.lattice import along_periodic
from jaxal.data.structure import from_atoms, species_table
from jaxal.label.store import conversion
from jaxal.run.assembly import dtype_of
from jaxal.run.labeling import Opener, open_service, oracle_label, oracle_spec


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


def first_structures(atoms: ase.Atoms | Sequence[ase.Atoms], number: int, seed: int) -> list[ase.Atoms]:
    """The start structures and displaced copies of them, in turn, to learn the first potential from.

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


def carried_by(start: ase.Atoms) -> bytes:
    """What all structures of a run carry into its label store: the masses and fixed atoms of its start."""
    return conversion.luggage(stripped(of_atoms(start, labeled=False)))


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
