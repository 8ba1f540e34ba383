"""The systems of a configuration: what their walkers start from, and how they are divided into groups."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ase
import numpy as np
from ase.constraints import FixAtoms
from ase.neighborlist import neighbor_list

from jaxal.config.schema import Bias, Config, Part, Structures
from jaxal.core.errors import InputError
from jaxal.core.types import Sampler
from jaxal.data import dataset, electrons, files, lattice
from jaxal.data import frames as door
from jaxal.data.frames import MOST_ATOMS
from jaxal.explore import stepping
from jaxal.explore.images import between

PADDING = 0.15  # of the work of a step may be for atoms and neighbors that there are not
LAYERS = 8  # neighbors that an atom costs as much as by itself


class Population(NamedTuple):
    """A system and its walkers."""

    field: str  # `system`, or `systems.NAME`
    file: Path
    starts: list[ase.Atoms]  # the same atoms in each
    walkers: int
    explore: Part
    bias: tuple[Bias, ...] = ()
    bias_field: str = "bias"

    @property
    def name(self) -> str:
        """The user's name for it; of a single system `system`."""
        return self.field.removeprefix("systems.")

    @property
    def sampler(self) -> Sampler:
        """What moves its walkers."""
        return stepping.sampler(self.explore.bind()())


def populations(config: Config) -> list[Population]:
    """The systems of a configuration, in its order. Raises InputError as `start_structures`."""
    return [population(config, field, start_structures(system, field)) for field, system in config.named.items()]


def population(config: Config, field: str, starts: list[ase.Atoms]) -> Population:
    """The system of a field, with the structures that its walkers start from."""
    system = config.named[field]
    own = config.bias if system.bias is None else system.bias
    where = "bias" if system.bias is None else f"{field}.bias"
    part, number = system.explore or config.explore.part, config.walkers[field]
    if part.kind == "sampler" and 1 < len(starts) < number and stepping.sampler(part.bind()()).ordered:
        try:
            starts = between(starts, number)
        except InputError as error:
            raise InputError(f"{field}.file: {system.file}: {error}") from None
    return Population(field, system.file, starts, number, part, own, where)


def start_structures(system: Structures, field: str = "system") -> list[ase.Atoms]:
    """The structures that the walkers of a system start from, with their supercells; `info` holds charge and spin.

    Masses and fixed atoms are the file's; more atoms may be fixed. `field` is the system's in the configuration.

    Raises InputError for a file that cannot be read, a frame that is not there, frames of different atoms, and a
    supercell of a molecule.
    """
    frames = files.read(system.file, labeled=False)
    listed = range(len(frames)) if system.index == "all" else system.index
    if listed == ():
        raise InputError(f"{field}.index: an empty list does not fit; give frames such as [0, 1], or all")
    chosen = [listed] if isinstance(listed, int) else list(listed)
    starts: list[ase.Atoms] = []
    for index in chosen:
        if not -len(frames) <= index < len(frames):
            held = f"{len(frames)} frames, 0 to {len(frames) - 1}"
            raise InputError(f"{field}.index: {index} does not fit; {system.file} holds {held}")
    for index in chosen:
        try:
            frame = door.with_electrons(frames[index], system.charge, system.spin, field)
        except InputError as error:
            raise InputError(f"{system.file}: frame {index}: {error}") from None
        if dataset.says_no_electrons(frame):
            what = "an odd number of electrons and nobody says its spin, which is left to the method"
            dataset.tell(f"{field}.spin: {system.file}: frame {index} has {what}; give it, such as 1")
        atoms = door.to_atoms(door.stripped(frame))
        first = starts[0] if starts else atoms
        if not np.array_equal(atoms.numbers, first.numbers) or np.any(atoms.pbc != first.pbc):
            what = "the same atoms in the same order, periodic in the same directions"
            raise InputError(f"{field}.index: frames {chosen[0]} and {index} of {system.file} differ; they need {what}")
        if system.supercell != (1, 1, 1):
            if np.any((np.array(system.supercell) > 1) & ~atoms.pbc):
                what = f"{system.file} is periodic along {lattice.named(atoms.pbc)}; give 1 elsewhere"
                raise InputError(f"{field}.supercell: {list(system.supercell)} does not fit, {what}")
            if (number := len(atoms) * int(np.prod(system.supercell))) > MOST_ATOMS:
                raise InputError(
                    f"{field}.supercell: {list(system.supercell)} makes {number} atoms; give at most {MOST_ATOMS}"
                )
            atoms = atoms.repeat(system.supercell)
        if system.fixed and max(system.fixed) >= len(atoms):
            what = f"{system.file} has {len(atoms)} atoms, 0 to {len(atoms) - 1}"
            raise InputError(f"{field}.fixed: {max(system.fixed)} is too large; {what}")
        if system.fixed:
            rows = np.union1d(np.flatnonzero(door.fixed_atoms(atoms)), system.fixed)
            atoms.set_constraint(FixAtoms(rows.astype(int)))
        starts.append(atoms)
    return starts


def with_electrons(config: Config, systems: Sequence[Population], frame: door.Frame) -> door.Frame:
    """A frame with the charge and spin of the system that it is of, where it does not say them itself.

    Raises InputError where it says others than a single system, and where it says none and is of no system, or of
    several that differ in them.
    """
    if config.system is not None and not config.systems:
        return door.with_electrons(frame, config.system.charge, config.system.spin, "system")
    if frame.charge is not None and frame.spin is not None:
        return frame
    atoms = sorted(frame.numbers)
    alike = [system for system in systems if sorted(system.starts[0].numbers) == atoms]
    pairs = {(own.starts[0].info["charge"], own.starts[0].info["spin"]): own.field for own in alike}
    if len(pairs) != 1:
        which = f"it may be {' or '.join(pairs.values())}" if pairs else "it has the atoms of none of the systems"
        raise InputError(f"charge and spin are missing, and {which}; give `charge` and `spin` with the frame")
    charge, spin = next(iter(pairs))
    return door.with_electrons(frame, *electrons.or_none(charge, spin), next(iter(pairs.values())))


def grouped(systems: Sequence[Population], cutoff: float) -> list[list[int]]:
    """The numbers of the systems that share a padded size, smaller ones first.

    Walkers of a group move by one program, whose size is that of its largest system. Groups of systems with the same
    dynamics are merged, those first that cost least, as long as no more than `PADDING` of the work is for nothing.
    """
    sizes = [_size(system, cutoff) for system in systems]
    groups = sorted(([number] for number in range(len(systems))), key=lambda group: sizes[group[0]])
    useful = sum(_work([number], systems, sizes) for number in range(len(systems)))

    def cost(group: list[int]) -> float:
        return _work(group, systems, sizes)

    while True:
        alike = [
            (cost(group + other) - cost(group) - cost(other), at, after)
            for at, group in enumerate(groups)
            for after, other in enumerate(groups)
            if at < after and _move_alike(systems[group[0]], systems[other[0]])
        ]
        spent = sum(map(cost, groups)) - useful
        if not alike or spent + min(alike)[0] > PADDING * useful:
            return [sorted(group) for group in groups]
        _, at, after = min(alike)
        groups[at] = groups[at] + groups.pop(after)


def _move_alike(system: Population, other: Population) -> bool:
    """Whether two systems can be moved by one program: variables, and walkers that are coupled, are of one system."""
    alike = system.explore == other.explore and system.bias == other.bias
    return alike and not any(bias.variables for bias in system.bias) and not system.sampler.couples


def _size(system: Population, cutoff: float) -> tuple[int, int]:
    """Atoms, and neighbors of the atom that has the most."""
    most = [np.bincount(neighbor_list("i", start, cutoff), minlength=1).max() for start in system.starts]
    return len(system.starts[0]), int(max(most))


def _work(group: list[int], systems: Sequence[Population], sizes: Sequence[tuple[int, int]]) -> float:
    """What a step of a group costs, in any unit: its walkers are all as large as the largest."""
    walkers = sum(systems[number].walkers for number in group)
    atoms, near = (max(sizes[number][which] for number in group) for which in range(2))
    return walkers * atoms * (LAYERS + near)
