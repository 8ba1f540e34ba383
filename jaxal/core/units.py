"""Units: eV, Å, fs, amu, e inside; conversions at the boundaries only.

Constants are CODATA 2018 (NIST, https://physics.nist.gov/constants), the set ASE 3.29 and tblite also use
to the digits that matter here. A quantity option of a part is annotated `Annotated[float, Unit("fs")]`: it is
a plain float in code, and the configuration accepts a number in that unit or text such as "0.5 fs".
"""

import math
import re
from typing import NamedTuple

BOLTZMANN = 8.617333262e-5  # eV/K
HARTREE = 27.211386245988  # eV
BOHR = 0.529177210903  # Å
KCAL_PER_MOL = 0.0433641153087705  # eV, thermochemical calorie: 4184 J/mol / (F * 1 V)
GPA = 0.006241509074  # eV/Å^3
# A momentum in amu Å/fs gains force [eV/Å] * time [fs] * this, in amu Å/fs:
# 1 eV = 1.602176634e-19 J, 1 amu Å^2/fs^2 = 1.66053906660e-27 * 1e10 J.
EV_PER_AMU_A2_FS2 = 1.602176634e-19 / (1.66053906660e-27 * 1e10)  # 0.00964853321
# jax-md has one energy unit: with energies in eV, masses in amu and lengths in Å, its time unit is this many fs.
TIME_UNIT = EV_PER_AMU_A2_FS2**-0.5  # 10.1805057 fs


class Unit(NamedTuple):
    """Marks a float option with its unit, and the smallest value that makes sense.

    `minimum` is the lower bound, excluded where `exclusive` is true.
    """

    symbol: str
    minimum: float | None = None
    exclusive: bool = False


class Below(NamedTuple):
    """Marks a number with its upper bound, which is excluded."""

    maximum: float


# symbol -> (dimension, size in the internal unit of that dimension)
SYMBOLS: dict[str, tuple[str, float]] = {
    "eV": ("energy", 1.0),
    "meV": ("energy", 1e-3),
    "kcal/mol": ("energy", KCAL_PER_MOL),
    "kJ/mol": ("energy", KCAL_PER_MOL / 4.184),
    "Ha": ("energy", HARTREE),
    "Ry": ("energy", HARTREE / 2),
    "Å": ("length", 1.0),
    "A": ("length", 1.0),
    "Ang": ("length", 1.0),
    "nm": ("length", 10.0),
    "Bohr": ("length", BOHR),
    "fs": ("time", 1.0),
    "ps": ("time", 1e3),
    "ns": ("time", 1e6),
    "s": ("wall time", 1.0),
    "min": ("wall time", 60.0),
    "h": ("wall time", 3600.0),
    "K": ("temperature", 1.0),
    "rad": ("angle", 1.0),
    "deg": ("angle", math.pi / 180),
    "eV/Å": ("force", 1.0),
    "eV/A": ("force", 1.0),
    "meV/Å": ("force", 1e-3),
    "meV/A": ("force", 1e-3),
    "1/fs": ("rate", 1.0),
    "1/ps": ("rate", 1e-3),
    "GPa": ("pressure", GPA),
    "bar": ("pressure", 1e-4 * GPA),
    "eV/Å^3": ("pressure", 1.0),
    "eV/A^3": ("pressure", 1.0),
    "eV/atom": ("energy per atom", 1.0),
    "meV/atom": ("energy per atom", 1e-3),
}


def amount(text: str) -> tuple[float, str] | None:
    """The number and the symbol of text such as "0.5 fs"; None for any other."""
    match = re.fullmatch(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(\S.*?)\s*", text)
    return (float(match[1]), match[2]) if match else None


def to_unit(value: float, unit: str, target: str) -> float:
    """`value` in `unit`, expressed in the unit `target`.

    Raises ValueError where a symbol is unknown or the dimensions differ, with what would be right.
    """
    for symbol in (unit, target):
        if symbol not in SYMBOLS:
            raise ValueError(f"unknown unit {symbol!r}; known are {', '.join(SYMBOLS)}")
    (dimension, size), (target_dimension, target_size) = SYMBOLS[unit], SYMBOLS[target]
    if dimension != target_dimension:
        same = [s for s, (d, _) in SYMBOLS.items() if d == target_dimension]
        raise ValueError(f"{unit} is a {dimension}, needed is a {target_dimension} ({' or '.join(same)})")
    return value * size / target_size
