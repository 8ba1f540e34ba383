"""Charge and spin that a file of another program states and ASE's reader of it does not pass on."""

import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from ase.data import atomic_masses, atomic_numbers
from ase.io.formats import open_with_compression

from jaxal.core.errors import InputError, InputWarning
from jaxal.data.electrons import Electrons, whole

INTEGER, REAL = r"([-+]?\d+)", r"([-+]?[\d.]+(?:[dDeE][-+]?\d+)?)"
# what a format calls a charge and a multiplicity, by ASE's names of formats
BOTH = {
    "gaussian-out": rf"Charge\s*=\s*{INTEGER}\s+Multiplicity\s*=\s*(\d+)",
    "gaussian-in": rf"(?m)^[ \t]*{INTEGER}[ \t,]+(\d+)[ \t]*$",
    "orca-output": rf"Total Charge\s+Charge\s+\.+\s+{INTEGER}\s+Multiplicity\s+Mult\s+\.+\s+(\d+)",
    "nwchem-out": rf"Charge\s+:\s*{INTEGER}[\s\S]{{0,2000}}?Spin multiplicity\s*:\s*(\d+)",
}
ISOTOPE = 0.15  # amu; a mass so far from its element's is no rounded one
INSTEAD = "give extended XYZ with a column `masses`"
SPECIES = re.compile(rf"\s*([A-Za-z]+)\S*\s+{REAL}\s+\S+\s*$")  # label, mass, pseudopotential
FIRST = ("gaussian-in",)  # the numbers after it are of other things


def stated(path: Path, form: str) -> Electrons:
    """What a file of this format states; None for what it does not.

    Raises InputError where it states several, as a file of several calculations may.
    """
    if form not in BOTH and form not in CHARGES:
        return Electrons()
    with open_with_compression(str(path), "rb") as file:
        text = file.read().decode("utf-8", errors="replace")
    if form in BOTH:
        if form in FIRST and re.search(r"(?i)\(.*\biso\s*=", text):
            raise InputError(f"{path}: has isotopes (iso=), whose masses are not read from this format; {INSTEAD}")
        pairs = [(int(charge), int(multiplicity) - 1) for charge, multiplicity in re.findall(BOTH[form], text)]
        return Electrons(*_only(path, pairs[:1] if form in FIRST else pairs)) if pairs else Electrons()
    return CHARGES[form](path, text)


def _only(path: Path, pairs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    several = sorted(set(pairs))
    if len(several) > 1:
        listed = ", ".join(f"charge {charge:+d} with spin {spin}" for charge, spin in several)
        raise InputError(f"{path}: states {listed}; give a file for each")
    return several[0]


def _of_molfile(path: Path, text: str) -> Electrons:
    """The charges of atoms, `M  CHG`: how many, then atom and charge of each."""
    if re.search(r"(?m)^M  ISO", text):
        raise InputError(f"{path}: has isotopes (M  ISO), whose masses are not read from this format; {INSTEAD}")
    first = text.split("$$$$")[0].splitlines()  # of several molecules ASE reads one
    charges = [word for line in first if line.startswith("M  CHG") for word in line.split()[4::2]]
    return Electrons(sum(_whole(path, charge, "M  CHG") for charge in charges)) if charges else Electrons()


def _of_pdb(path: Path, text: str) -> Electrons:
    """The charges of atoms in columns 79 and 80 of the first model, such as 1-."""
    atoms = [line for line in text.split("ENDMDL")[0].splitlines() if line.startswith(("ATOM", "HETATM"))]
    if any(not line[76:78].strip() for line in atoms):
        what = "an atom has no element in columns 77 and 78, and names such as CA are of carbon or of calcium"
        raise InputError(f"{path}: {what}; write the elements there")
    charges = [line[78:80].strip() for line in atoms]
    signed = [re.fullmatch(r"(\d)([-+])", charge) for charge in charges]
    if not any(signed):
        return Electrons()
    return Electrons(sum(int(match[2] + match[1]) for match in signed if match))


def _of_espresso(path: Path, text: str) -> Electrons:
    _tell_isotopes(path, text)
    charge, moment = (_number(path, text, rf"(?m)^[^!\n]*\b{name}\s*=\s*{REAL}", name) for name in ESPRESSO)
    return Electrons(charge, None if moment is None else abs(moment))


def _tell_isotopes(path: Path, text: str) -> None:
    """Warns of masses in ATOMIC_SPECIES that are not their elements'; ASE reads none of them."""
    for line in text.splitlines()[_row_after(text, "ATOMIC_SPECIES") :]:
        if (match := SPECIES.match(line)) is None:
            break
        element, mass = atomic_numbers.get(match[1].capitalize()), float(re.sub("[dD]", "e", match[2]))
        if element and abs(mass - atomic_masses[element]) > ISOTOPE:
            what = f"the mass of {match[1]}, {mass:g} amu, is not read from this format, the element's is taken"
            warnings.warn(f"{path}: {what}; {INSTEAD}", InputWarning, stacklevel=2)


def _row_after(text: str, card: str) -> int:
    lines = text.splitlines()
    return next((row + 1 for row, line in enumerate(lines) if line.strip().upper().startswith(card)), len(lines))


def _of_turbomole(path: Path, text: str) -> Electrons:
    return Electrons(_number(path, text, rf"(?m)^\$charge\s+{REAL}", "$charge"))


def _number(path: Path, text: str, pattern: str, name: str) -> int | None:
    match = re.search(pattern, text)
    return None if match is None else _whole(path, re.sub("[dD]", "e", match[1]), name)


def _whole(path: Path, text: str, name: str) -> int:
    try:
        return whole(text, name)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


ESPRESSO = ("tot_charge", "tot_magnetization")
CHARGES: dict[str, Callable[[Path, str], Electrons]] = {
    "sdf": _of_molfile,
    "mol": _of_molfile,
    "proteindatabank": _of_pdb,
    "espresso-in": _of_espresso,
    "turbomole": _of_turbomole,
}
