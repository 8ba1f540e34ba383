"""Many frames as data to learn from or to compare with: what belongs together, what does not, and what looks wrong."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import ase
import numpy as np
from ase.data import chemical_symbols
from ase.neighborlist import neighbor_list

from jaxal.core.errors import InputError, InputWarning
from jaxal.data import electrons, files, labels
from jaxal.data.electrons import State
from jaxal.data.frames import Frame, overlap, with_electrons
from jaxal.data.lattice import letters

DECIMALS = 6  # of a coordinate, Å: structures that agree so far are the same, as in a label store
STRESS, FORCE, NET, ENERGY = 1.0, 30.0, 0.1, 10.0  # eV/Å^3, eV/Å, eV/Å, eV/atom: beyond these a number looks wrong
LOWEST = 1.5 * 20.92  # eV; the atom of Thomas and Fermi has 0.7687 Hartree Z^(7/3), below all that there are
SAME = 1e-3  # eV/atom; two labels of one structure may differ by so much
ALONE = 4.0  # Å; an atom with images nearer than this is no free one
LEVELS = ("head", "level_of_theory", "theory", "functional", "calculator")  # what else may name a method in an info
LOOKED_AT = 500  # frames whose distances are looked at: a wrong unit is in all of them


class Labeled(NamedTuple):
    """Labeled structures, and the energies of the free atoms among them."""

    frames: list[Frame]
    isolated: dict[int, float]  # atomic number -> eV


def labeled(
    path: str | Path,
    section: str,
    charge: int | None = None,
    spin: int | None = None,
    method: str | None = None,
    forces: bool = True,
) -> Labeled:
    """The labeled frames of a file, of one method, with electrons that are said somewhere or 0.

    `charge`, `spin` and `method` are those of the configuration's `section`. Free atoms (config_type=IsolatedAtom) and
    frames of weight 0 are no structures to learn from; the latter are told by a warning, and so is what looks wrong.
    Raises InputError with the number of the frame (from 0) that cannot be used.
    """
    source = str(path)
    chosen = of_one_method(list(enumerate(files.read(path))), source, section, method)
    check_one_method(chosen, source)
    kept, isolated, weightless = [], {}, []
    for number, frame in chosen:
        try:
            if not any(frame.share):
                weightless.append(number)
                continue
            if frame.isolated:
                _add_isolated(isolated, frame)
                continue
            frame = with_electrons(frame, charge, spin, section)
            _require(frame, forces)
        except InputError as error:
            raise InputError(f"{source}: frame {number}: {error}") from None
        kept.append((number, frame))
    if weightless:
        tell(f"{source}: {_numbered(weightless)} left out, of weight 0")
    if not kept:
        raise InputError(f"{source}: no frame is left to learn from; free atoms and frames of weight 0 are none")
    doubts(kept, source)
    return Labeled([frame for _, frame in kept], isolated)


def tell(text: str) -> None:
    """A warning of one line to the user."""
    warnings.warn(text, InputWarning, stacklevel=3)


def of_one_method(
    chosen: list[tuple[int, Frame]], source: str, section: str, method: str | None
) -> list[tuple[int, Frame]]:
    """The numbered frames of `method`; without one all of them. Raises InputError for labels of several methods."""
    methods = {frame.origin.method for _, frame in chosen if not frame.isolated}
    if method is not None:
        mine = [(number, frame) for number, frame in chosen if frame.origin.method == method]
        if not mine:
            listed = " and ".join(repr(name) for name in sorted(methods))
            raise InputError(f"{section}.method: {source} has no label of {method!r}, but of {listed}")
        return mine
    if len(methods) > 1:
        listed = " and ".join(repr(name) if name else "frames that name none" for name in sorted(methods))
        raise InputError(f"{source}: labels of several methods, {listed}; choose one as {section}.method")
    return chosen


def check_one_method(numbered: Sequence[tuple[int, Frame]], source: str) -> None:
    """Raises InputError where some frames name their reference (`REF_...`) and others have plain labels, or where names
    of a level of theory that frames carry differ.
    """
    families: dict[str, int] = {}
    for number, frame in numbered:
        if np.isfinite(frame.numeric.energy) or _any(frame.numeric.force):
            families.setdefault(frame.family, number)
    if len(families) > 1:
        plain, named = families[""], families[labels.REFERENCE]
        what = f"frame {named} has {labels.REFERENCE}energy or {labels.REFERENCE}forces, frame {plain} only plain ones"
        raise InputError(f"{source}: {what}, which may be of another method; name them alike, or leave frames out")
    for name in LEVELS:
        values: dict[str, int] = {}
        for number, frame in numbered:
            if (value := dict(frame.carried.info).get(name)) is not None:
                values.setdefault(str(value), number)
        if len(values) > 1:
            listed = " and ".join(f"{value!r} (frame {number})" for value, number in list(values.items())[:2])
            raise InputError(f"{source}: labels of several methods by `{name}`, {listed}; give a file of each")


def state_of(frame: Frame) -> State:
    """Charge and unpaired electrons of a frame."""
    return frame.charge or 0, frame.spin or 0


def states_of(frames: Sequence[Frame]) -> tuple[State, ...]:
    """Charges and spins that occur in the frames: the energy surfaces that a model of them has."""
    return tuple(sorted({state_of(frame) for frame in frames}))


def check_states(frames: Sequence[Frame], known: Sequence[State], source: str, where: str) -> None:
    """Raises InputError for a charge and spin that is not among those `known`, which `where` has."""
    for number, frame in enumerate(frames):
        if (state := state_of(frame)) not in known:
            what = f"frame {number} has {electrons.listed([state])}, of which {where} has no frame"
            raise InputError(f"{source}: {what}; it has {electrons.listed(known)}")


def groups(frames: Sequence[Frame]) -> np.ndarray:
    """The number of each frame's structure, [b]: equal where atoms, cell, periodicity and electrons are the same."""
    numbers: dict[bytes, int] = {}
    keys = []
    for frame in frames:
        parts = [np.round(x, DECIMALS) + 0.0 for x in (frame.position, frame.lattice)]  # -0.0 + 0.0 = 0.0
        key = b"|".join([frame.numbers.tobytes(), *(part.tobytes() for part in parts)])
        key += f"{letters(frame.periodic)} {frame.charge} {frame.spin}".encode()
        keys.append(numbers.setdefault(key, len(numbers)))
    return np.array(keys)


def tell_duplicates(frames: Sequence[Frame], source: str) -> np.ndarray:
    """`groups`, with a warning where frames are the same, and another where their labels differ."""
    group = groups(frames)
    different = len(np.unique(group))
    if different < len(frames):
        kinds = f"{different} different structure{'s' if different > 1 else ''}"
        tell(f"{source}: {len(frames)} frames hold {kinds}; copies are held out together")
    contradictions(frames, group, source)
    return group


def contradictions(frames: Sequence[Frame], group: np.ndarray, source: str) -> None:
    """Warns where frames of a group of `groups` have different energies."""
    for number in np.flatnonzero(np.bincount(group) > 1):
        rows = np.flatnonzero(group == number)
        energy = np.array([frames[int(row)].label.energy for row in rows]) / len(frames[int(rows[0])].numbers)
        if (spread := float(np.nanmax(energy) - np.nanmin(energy))) > SAME:
            what = f"frames {rows[np.nanargmin(energy)]} and {rows[np.nanargmax(energy)]} are the same structure"
            tell(f"{source}: {what}, but their energies are {1e3 * spread:.3g} meV/atom apart")
            break


def held_out(frames: Sequence[Frame], group: np.ndarray, fraction: float) -> np.ndarray:
    """Marks about `fraction` of the structures, at least one, evenly spaced and away from both ends, [b].

    Copies of a structure stay on one side, and structures that hold the only atoms of an element, or are the only ones
    of a charge and spin, are trained on. None is marked where that leaves nothing to hold out.
    """
    number = int(group.max()) + 1
    elements = [set[int | State]() for _ in range(number)]
    for frame, of in zip(frames, group, strict=True):
        elements[of] |= {*frame.numbers.tolist(), state_of(frame)}
    count = max(1, round(fraction * number))
    held = np.zeros(number, bool)

    def can(index: int) -> bool:
        others = [elements[i] for i in range(number) if i != index and not held[i]]
        return not held[index] and elements[index] <= set[int | State]().union(*others)

    for place in ((np.arange(count) + 0.5) * number / count).astype(int):
        near = sorted(range(number), key=lambda index, place=place: (abs(index - place), index))
        if (choice := next((index for index in near if can(index)), None)) is not None:
            held[choice] = True
    return held[group]


def species_of(frames: Sequence[Frame]) -> tuple[int, ...]:
    """Sorted atomic numbers that occur in the frames."""
    return tuple(sorted({int(z) for frame in frames for z in frame.numbers}))


def check_elements(frames: Sequence[Frame], table: Sequence[int], source: str, where: str) -> None:
    """Raises InputError for an element that is not in the table of those that `where` has."""
    for number, frame in enumerate(frames):
        if strange := sorted(set(frame.numbers.tolist()) - set(table)):
            names = ", ".join(chemical_symbols[z] for z in strange)
            known = ", ".join(chemical_symbols[z] for z in table)
            raise InputError(f"{source}: frame {number} has {names}, of which {where} has none; it has {known}")


def doubts(numbered: Sequence[tuple[int, Frame]], source: str) -> None:
    """Warns of numbers that are not plausible in their units, forces that do not sum to zero, and unknown electrons."""

    def worst(values: list[float]) -> tuple[int, float]:
        row = int(np.nanargmax(values))
        return numbered[row][0], values[row]

    stresses = [float(np.abs(frame.label.stress).max()) for _, frame in numbered]
    if np.isfinite(stresses).any() and np.nanmedian(stresses) > STRESS:
        number, largest = worst(stresses)
        unit = "stresses are in eV/Å^3 (1 eV/Å^3 = 160 GPa = 1602 kbar)"
        tell(f"{source}: a stress of {largest:.3g} eV/Å^3 (frame {number}) is not plausible; {unit}")
    forces = [float(np.sqrt(np.nanmean(f.label.force**2))) if _any(f.label.force) else np.nan for _, f in numbered]
    if np.isfinite(forces).any() and np.nanmedian(forces) > FORCE:
        number, largest = worst(forces)
        unit = "forces are in eV/Å (1 Hartree/Bohr = 51.4 eV/Å)"
        tell(f"{source}: forces of {largest:.3g} eV/Å on average (frame {number}) are not plausible; {unit}")
    nets = [float(np.linalg.norm(frame.label.force.sum(axis=0))) for _, frame in numbered]  # NaN where masked
    if np.isfinite(nets).any() and np.nanmax(nets) > NET:
        number, largest = worst(nets)
        much = f"{int(np.sum(np.array(nets) > NET))} frames have forces that do not sum to zero"
        tell(f"{source}: {much}, frame {number} by {largest:.3g} eV/Å; fixed atoms need FixAtoms or move_mask")
    _doubt_energies(numbered, source)
    unsaid = [number for number, frame in numbered if says_no_electrons(frame)]
    if unsaid:
        what = "have an odd number of electrons and say no spin, so theirs are not known; give spin, such as 1"
        tell(f"{source}: {len(unsaid)} frames, the first is {unsaid[0]}, {what}")
    for number, frame in numbered[:: max(1, len(numbered) // LOOKED_AT)]:
        if reason := overlap(frame, 0.0):
            tell(f"{source}: frame {number}: {reason}; positions are in Å")
            break


def says_no_electrons(frame: Frame) -> bool:
    """Whether the electrons of a frame are unknown, and nobody says that they are (`electrons=unknown`)."""
    meant = dict(frame.carried.info).get(electrons.SAID) == electrons.UNKNOWN
    return electrons.unknown(frame.numbers, frame.periodic, frame.charge, frame.spin) and not meant


def _doubt_energies(numbered: Sequence[tuple[int, Frame]], source: str) -> None:
    for number, frame in numbered:
        lowest = -LOWEST * float(np.sum(frame.numbers ** (7 / 3)))
        if frame.label.energy < lowest:
            what = f"below what all its electrons can have, {lowest:.4g} eV"
            tell(f"{source}: the energy of frame {number}, {frame.label.energy:.6g} eV, is {what}; energies are in eV")
            return
    compositions: dict[tuple[tuple[int, ...], State], list[int]] = {}
    for row, (_, frame) in enumerate(numbered):
        compositions.setdefault((tuple(sorted(frame.numbers.tolist())), state_of(frame)), []).append(row)
    for (atoms, _), rows in compositions.items():
        energy = np.array([numbered[row][1].label.energy for row in rows]) / len(atoms)
        if len(rows) < 3 or not np.isfinite(energy).any():
            continue
        away = np.abs(energy - np.nanmedian(energy))
        if np.nanmax(away) > ENERGY:
            number = numbered[rows[int(np.nanargmax(away))]][0]
            what = f"{np.nanmax(away):.3g} eV/atom away from the median of its composition"
            tell(f"{source}: the energy of frame {number} is {what}; total energies are in eV")
            return


def _add_isolated(isolated: dict[int, float], frame: Frame) -> None:
    element, energy = int(frame.numbers[0]), frame.numeric.energy
    name = chemical_symbols[element]
    if frame.charge:
        raise InputError(f"a free atom of {name} with charge {frame.charge:+d}; the reference is the neutral atom")
    if _nearest_image(frame) < ALONE:
        raise InputError(f"a free atom of {name} whose images are nearer than {ALONE:g} Å, no free one; give it open")
    if np.isnan(energy):
        raise InputError(f"a free atom of {name} without an energy; give `energy` or `REF_energy`")
    if abs(isolated.setdefault(element, energy) - energy) > 1e-6:
        raise InputError(f"free atoms of {name} have energies {isolated[element]:.6f} and {energy:.6f} eV; give one")


def _nearest_image(frame: Frame) -> float:
    """Å; infinite in an open structure."""
    own = ase.Atoms(frame.numbers, frame.position, cell=frame.lattice, pbc=frame.periodic)
    distances = neighbor_list("d", own, ALONE)
    return float(distances.min()) if len(distances) else float("inf")


def _require(frame: Frame, forces: bool) -> None:
    for name, there in (("energy", np.isfinite(frame.numeric.energy)), ("forces", _any(frame.numeric.force))):
        if there or (name == "forces" and not forces):
            continue
        similar = labels.lookalikes(dict(frame.carried.info), dict(frame.carried.arrays), name)
        hint = f" (it has {', '.join(similar)})" if similar else ""
        raise InputError(f"carries no {name}{hint}; give `{name}` or `REF_{name}`")


def _any(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).any())


def _numbered(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:5])) + (", ..." if len(numbers) > 5 else "")
    return f"frame{'s' if len(numbers) > 1 else ''} {shown} {'are' if len(numbers) > 1 else 'is'}"
