"""What a frame carries by a name that looks as if it meant something, and that nothing is read from: it is told."""

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from ase.data import atomic_masses

from jaxal.core.errors import InputWarning
from jaxal.data import electrons, labels
from jaxal.data.frames import Frame

HEAVY = 10.0  # times its element's mass, or a tenth of it: no isotope, another unit
UNITS = (
    "kcal/mol",
    "kj/mol",
    "hartree",
    "ha",
    "ev",
    "rydberg",
    "ry",
    "bohr",
    "au",
    "a.u.",
    "atomic",
    "angstrom",
    "gpa",
)
OURS = (
    "ev",
    "angstrom",
    "å",
    "ev/angstrom",
    "ev/å",
    "ev/a",
    "ev/angstrom^3",
    "metal",
    "a",
)  # units that are read as such
FIXED = ("fixed", "frozen", "selective_dynamics", "constraint", "constraints", "mask", "force_mask", "forces_mask")
CHARGES = ("charge", "formal_charge", "formal_charges", "spin", "spins")  # columns
STATES = ("doublet", "triplet", "quartet", "quintet")  # words of a comment
WORDS = ("q", "chrg", "nelec")


class Kind(NamedTuple):
    """A kind of names that are not read."""

    names: Callable[[Frame], list[str]]
    advice: str


def _flag(value: Any) -> bool:
    return isinstance(value, bool | np.bool_) and bool(value)


def _electrons(frame: Frame) -> list[str]:
    info = dict(frame.carried.info)
    words = [name for name in info if name.lower() in (*STATES, *WORDS)]
    numbers = [name for name, value in info.items() if _flag(value) and name.lstrip("+-").isdigit()]
    pair = [" ".join(numbers)] if len(numbers) == 2 and numbers != ["0", "1"] else []
    columns = [
        name
        for name, values in frame.carried.arrays
        if (name.lower() in CHARGES and values.dtype.kind in "iuf" and round(float(np.nansum(values)), 6))
        or (name == "initial_magmoms" and values.ndim > 1 and np.any(values))
    ]
    return [*electrons.unread(info, frame.spin), *words, *pair, *columns]


def _units(frame: Frame) -> list[str]:
    named = []
    for name, value in frame.carried.info:
        word = name.lower().strip(":,;")
        if (word in UNITS and _flag(value)) or (
            re.search(r"(^|_)units?$", word) and isinstance(value, str) and value.lower() not in OURS
        ):
            named.append(name)
    return named


def _constraints(frame: Frame) -> list[str]:
    return [name for name, values in frame.carried.arrays if name.lower() in (*FIXED, "move_mask") and len(values)]


def _weights(frame: Frame) -> list[str]:
    known = {name.lower() for name in labels.SHARE_KEYS}
    info = [
        name
        for name, value in frame.carried.info
        if name.lower().endswith("weight") and name not in labels.SHARE_KEYS
        if name.lower() in known or name.lower().startswith(("config", "energy", "force", "stress", "virial", "weight"))
    ]
    return info + [name for name, _ in frame.carried.arrays if name.lower().endswith(("weight", "weights"))]


def _masses(frame: Frame) -> list[str]:
    return [name for name, _ in frame.carried.arrays if name.lower() == "mass"]


KINDS = (
    Kind(_electrons, "nothing about electrons is read from it; give charge and spin, a number of unpaired electrons"),
    Kind(_units, "no unit is read; energies are in eV, positions in Å, forces in eV/Å, stresses in eV/Å^3"),
    Kind(_constraints, "no constraint is read from it; give move_mask, of logical values (L:1), or FixAtoms"),
    Kind(_weights, f"no weight is read from it; give {', '.join(sorted(labels.SHARE_KEYS)[:3])}, ..."),
    Kind(_masses, "it is not read, programs differ in its unit; give `masses` in amu"),
)


def tell(frames: Sequence[Frame], source: str) -> None:
    """Warns of what is not read, a line for each kind, with the first frame that has it."""
    for line in _lines(frames):
        warnings.warn(f"{source}: {line}", InputWarning, stacklevel=3)


def _lines(frames: Sequence[Frame]) -> Iterator[str]:
    for kind in KINDS:
        carriers = ((number, names[0]) for number, frame in enumerate(frames) if (names := kind.names(frame)))
        if first := next(carriers, None):
            yield f"frame {first[0]} carries {first[1]}: {kind.advice}"
    for number, frame in enumerate(frames):
        ratio = frame.mass / atomic_masses[frame.numbers]
        if np.any(ratio > HEAVY) or np.any(ratio < 1 / HEAVY):
            row = int(np.argmax(np.abs(np.log(ratio))))
            yield f"frame {number}: atom {row} has a mass of {frame.mass[row]:.4g}; masses are in amu"
            return
