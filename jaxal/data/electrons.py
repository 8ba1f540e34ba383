"""Charge and unpaired electrons of a structure: where a file may say them, and which numbers can be."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from ase.data import chemical_symbols

from jaxal.core.errors import InputError

# names in a frame's info, in lower case; those of a multiplicity hold the number of unpaired electrons + 1
CHARGE = ("charge", "total_charge", "net_charge", "system_charge")
UNPAIRED = ("spin", "unpaired", "unpaired_electrons", "num_unpaired_electrons", "uhf")
MULTIPLICITY = ("multiplicity", "spin_multiplicity")
KEYS = frozenset(CHARGE + UNPAIRED + MULTIPLICITY)
SAID, UNKNOWN = "electrons", "unknown"  # electrons=unknown: labels of a method that knows none, such as a closed form
LARGEST = 10**6
# Unpaired electrons of neutral atoms in their ground states, hydrogen to radon: the multiplicities of the ground levels
# less 1, in LS coupling. Kramida, Ralchenko, Reader and the NIST ASD Team, NIST Atomic Spectra Database, ground states
# and ionization energies, https://physics.nist.gov/asd.
GROUND_SPINS = (
    *(1, 0),  # H He
    *(1, 0, 1, 2, 3, 2, 1, 0),  # Li to Ne
    *(1, 0, 1, 2, 3, 2, 1, 0),  # Na to Ar
    *(1, 0, 1, 2, 3, 6, 5, 4, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0),  # K to Kr; Cr is 3d5 4s1
    *(1, 0, 1, 2, 5, 6, 5, 4, 3, 0, 1, 0, 1, 2, 3, 2, 1, 0),  # Rb to Xe; Nb 4d4 5s1, Mo 4d5 5s1, Pd 4d10
    *(1, 0),  # Cs Ba
    *(1, 0, 3, 4, 5, 6, 7, 8, 5, 4, 3, 2, 1, 0, 1),  # La to Lu; Ce is a singlet, 4f1 5d1 6s2
    *(2, 3, 4, 5, 4, 3, 2, 1, 0, 1, 2, 3, 2, 1, 0),  # Hf to Rn
)
# what else a name may end in that is meant to say it, as in tot_charge; total_spin may be half of our number
MOMENTS = ("magmom", "nupdown", "magnetization")
WHOLE = 0.01  # a total magnetic moment so near to a whole number counts unpaired electrons: densities sit on grids
ALIKE = ("charge", "spin", "multiplicity", "mult", "uhf", "nelectrons", "n_electrons", "nelec", *MOMENTS)


State = tuple[int, int]  # charge, e, and number of unpaired electrons: which energy surface of the atoms is meant


class Electrons(NamedTuple):
    """What is said of the electrons of a structure; None where nobody says it."""

    charge: int | None = None  # e
    spin: int | None = None  # number of unpaired electrons


def states(charge: Any, spin: Any) -> tuple[State, ...]:
    """The pairs of charge and spin that occur among those of structures [b], sorted."""
    pairs = zip(np.ravel(np.asarray(charge)), np.ravel(np.asarray(spin)), strict=True)
    return tuple(sorted({(int(pair[0]), int(pair[1])) for pair in pairs}))


def listed(states: Collection[State]) -> str:
    """Charges and spins in words: `charge 0 with 0 unpaired electrons, charge +1 with 1`."""
    first, *rest = sorted(set(states))
    words = [f"charge {first[0] or 0:+d} with {first[1]} unpaired electron{'s' if first[1] != 1 else ''}"]
    words += [f"charge {charge:+d} with {spin}" for charge, spin in rest]
    return ", ".join(words).replace("charge +0", "charge 0")


def whole(value: Any, name: str) -> int:
    """A whole number of any type. Raises InputError for anything else."""
    if np.asarray(value).dtype == bool:  # what a word without a number is read as
        raise InputError(f"{name} {value} is a flag, where a whole number is needed; give it as {name}=number")
    try:
        number = float(np.asarray(value).reshape(()))
    except (TypeError, ValueError):
        number = float("nan")
    if not number.is_integer() or abs(number) >= LARGEST:
        raise InputError(f"{name} {str(value)[:30]!r} is not a whole number")
    return int(number)


def electrons_of(
    info: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None, moment: Any = None
) -> Electrons:
    """What the info of a frame says, else the moment of its calculation, else the sums of what its atoms began with.

    `moment` is the total magnetic moment of the calculation that labeled the frame; it and the sums of initial charges
    and moments count where they are whole. Zeros say nothing: files that know no charges are full of them. Raises
    InputError for what is no whole number and for names that contradict each other.
    """
    charges = {name: whole(value, name) for name, value in _named(info, CHARGE)}
    spins = {name: whole(value, name) for name, value in _named(info, UNPAIRED)}
    spins |= {name: whole(value, name) - 1 for name, value in _named(info, MULTIPLICITY)}
    for name, value in spins.items():
        if value < 0:
            right = "1 or more" if name.lower() in MULTIPLICITY else "a number of unpaired electrons, 0 or more"
            raise InputError(f"{name} {info[name]} cannot be; give {right}")
    unpaired = _counted(moment) or _sum(arrays, "initial_magmoms", absolute=True)
    return Electrons(_agreed(charges, info, _sum(arrays, "initial_charges")), _agreed(spins, info, unpaired))


def unread(info: Mapping[str, Any], spin: int | None = None) -> list[str]:
    """Names of single numbers that are called like a charge or a spin and are not read as one, such as this spin."""
    return [
        str(name)
        for name, value in info.items()
        if str(name).lower().endswith(ALIKE) and str(name).lower() not in KEYS and np.ndim(value) == 0
        if not str(name).lower().endswith(MOMENTS) or (value != 0 and _counted(value) != spin)  # 0: codes say it always
    ]


def check_electrons(numbers: np.ndarray, charge: int, spin: int, neutral: int | None = None) -> None:
    """Raises InputError where so many unpaired electrons cannot be with these atoms [n] and this charge.

    `neutral` replaces the number of electrons of the neutral atoms, for a method that hides some of them.
    """
    neutral = int(np.sum(numbers)) if neutral is None else neutral
    count = neutral - charge
    name = formula(numbers)
    if count < 0:
        raise InputError(f"charge: {charge:+d} is more than the {neutral} electrons of {name}")
    if spin < 0 or spin > count or (count - spin) % 2:
        right = "0, 2, 4, ..." if count % 2 == 0 else "1, 3, 5, ..."
        where = f"{name} with charge {charge:+d} has {count} electrons"
        raise InputError(f"spin: {spin} unpaired electrons are impossible, {where}; give {right} up to {count}")


def unknown(numbers: np.ndarray, periodic: np.ndarray, charge: int | None, spin: int | None) -> bool:
    """Whether these are atoms [n] of which nobody knows the electrons: open, neutral, an odd number of them unpaired 0.

    So they stand where nobody says a spin: in a file, or for a method that knows no electrons.
    """
    return not np.any(periodic) and not charge and not spin and int(np.sum(numbers)) % 2 == 1


def or_none(charge: int, spin: int) -> tuple[int | None, int | None]:
    """A charge and spin that others said; None for a neutral closed shell, which nobody may have said."""
    return (charge, spin) if charge or spin else (None, None)


def ground_spin(number: int) -> int | None:
    """Unpaired electrons of a neutral atom in its ground state; None beyond the table."""
    return GROUND_SPINS[number - 1] if 1 <= number <= len(GROUND_SPINS) else None


def formula(numbers: np.ndarray) -> str:
    """Chemical formula, elements by atomic number: `H4C2O` for acetaldehyde."""
    kinds, counts = np.unique(numbers, return_counts=True)
    return "".join(f"{symbol(int(z))}{count if count > 1 else ''}" for z, count in zip(kinds, counts, strict=True))


def symbol(number: int) -> str:
    """Symbol of an element, or its number where there is none."""
    return chemical_symbols[number] if 0 < number < len(chemical_symbols) else f"Z={number}"


def _named(info: Mapping[str, Any], names: tuple[str, ...]) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in info.items() if str(key).lower() in names and value is not None]


def _agreed(values: dict[str, int], info: Mapping[str, Any], weak: int | None) -> int | None:
    if len(set(values.values())) > 1:
        listed = " and ".join(f"{name}={info[name]}" for name in values)
        raise InputError(f"{listed} contradict each other; give one of them")
    return next(iter(values.values()), weak)


def _counted(moment: Any) -> int | None:
    """Unpaired electrons of a total magnetic moment, µB; None where it is none, or no whole number."""
    try:
        value = abs(float(moment))
    except (TypeError, ValueError):  # a text, a vector
        return None
    near = bool(np.isfinite(value)) and abs(value - round(value)) < WHOLE
    return (round(value) or None) if near else None


def _sum(arrays: Mapping[str, np.ndarray] | None, name: str, absolute: bool = False) -> int | None:
    if arrays is None or name not in arrays:
        return None
    values = np.asarray(arrays[name], float)
    if values.ndim != 1 or not np.all(np.isfinite(values)):  # moments with a direction have no number
        return None
    total = float(values.sum())
    if abs(total - round(total)) > 1e-6 or round(total) == 0:
        return None
    return abs(round(total)) if absolute else round(total)
