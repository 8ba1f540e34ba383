"""Charge and spin that a file of another program states and ASE's reader of it does not pass on."""

import re
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from ase.data import atomic_masses, atomic_numbers

from jaxal.core.errors import InputError, InputWarning
from jaxal.data.electrons import Electrons, whole
from jaxal.data.file_refusals import ISOTOPE, atoms_of_molfile

INTEGER, REAL = r"([-+]?\d+)", r"([-+]?[\d.]+(?:[dDeE][-+]?\d+)?)"
# what a format calls a charge and a multiplicity, by ASE's names of formats
BOTH = {
    "gaussian-out": rf"Charge\s*=\s*{INTEGER}\s+Multiplicity\s*=\s*(\d+)",
    "gaussian-in": rf"(?m)^[ \t]*{INTEGER}[ \t,]+(\d+)(?:[ \t,]+[-+]?\d+)*[ \t]*$",  # then those of fragments
    "orca-output": rf"Total Charge\s+Charge\s+\.+\s+{INTEGER}\s+Multiplicity\s+Mult\s+\.+\s+(\d+)",
    "nwchem-out": rf"Charge\s+:\s*{INTEGER}[\s\S]{{0,2000}}?Spin multiplicity\s*:\s*(\d+)",
}
RADICALS = {2: 1, 3: 2}  # unpaired electrons of a doublet and of a triplet; 1 is a singlet
OLD_CHARGES = {"1": 3, "2": 2, "3": 1, "5": -1, "6": -2, "7": -3}  # what the column of a molfile means; 4 is a doublet
ITEM = r"(?im)^>.*<{}>.*\n\s*{}\s*$"  # of data of an SDF: name and value
INSTEAD = "give extended XYZ with a column `masses`"
SPECIES = re.compile(rf"\s*([A-Za-z]+)\S*\s+{REAL}\s+\S+\s*$")  # label, mass, pseudopotential
FIRST = ("gaussian-in",)  # the numbers after it are of other things


def stated(path: Path, form: str, text: str) -> Electrons:
    """What a file of this format with this text states; None for what it does not.

    Raises InputError where it states several, as a file of several calculations may.
    """
    if form in BOTH:
        pairs = [(int(charge), int(multiplicity) - 1) for charge, multiplicity in re.findall(BOTH[form], text)]
        return Electrons(*_only(path, pairs[:1] if form in FIRST else pairs)) if pairs else Electrons()
    return CHARGES[form](path, text) if form in CHARGES else Electrons()


def _only(path: Path, pairs: Iterable[tuple[int, int]]) -> tuple[int, int]:
    several = sorted(set(pairs))
    if len(several) > 1:
        listed = ", ".join(f"charge {charge:+d} with spin {spin}" for charge, spin in several)
        raise InputError(f"{path}: states {listed}; give a file for each")
    return several[0]


def _of_molfile(path: Path, text: str) -> Electrons:
    """Charges and radicals of atoms, or what the data items of an SDF say of the molecule. Raises InputError."""
    atoms = _of_atoms_of_molfile(path, text)
    charge = _number(path, text, ITEM.format(r"(?:\w+_)?(?:total|net|formal|molecular)?_?charge", REAL), "<charge>")
    multiplicity = _number(path, text, ITEM.format(r"(?:\w+_)?(?:spin_?)?multiplicity", REAL), "<multiplicity>")
    items = Electrons(charge, None if multiplicity is None else multiplicity - 1)
    for name, of_atoms, item in zip(Electrons._fields, atoms, items, strict=True):
        if None not in (of_atoms, item) and of_atoms != item:
            raise InputError(
                f"{path}: its atoms have {name} {of_atoms}, a data item {item}; give the same, or one of them"
            )
    return Electrons(*(own if item is None else item for own, item in zip(atoms, items, strict=True)))


def _of_atoms_of_molfile(path: Path, text: str) -> Electrons:
    """`M  CHG` and `M  RAD`, how many, then atom and number of each, else a column."""
    lines = text.split("\n")
    charges = [word for line in lines if line.startswith("M  CHG") for word in line.split()[4::2]]
    radicals = [word for line in lines if line.startswith("M  RAD") for word in line.split()[4::2]]
    spin = sum(RADICALS.get(_whole(path, word, "M  RAD"), 0) for word in radicals)
    if charges or radicals:
        charge = sum(_whole(path, word, "M  CHG") for word in charges)
        return Electrons(charge, spin or None)
    codes = [line[36:39].strip() for line in atoms_of_molfile(text)]
    if not set(codes) - {"", "0"}:
        return Electrons()
    return Electrons(sum(OLD_CHARGES.get(code, 0) for code in codes), codes.count("4") or None)


def _of_pdb(path: Path, text: str) -> Electrons:
    """The charges of atoms in columns 79 and 80 of the first model, such as 1-."""
    atoms = [line for line in text.split("ENDMDL")[0].split("\n") if line.startswith(("ATOM", "HETATM"))]
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
    bare = re.sub(r"'[^'\n]*'|\"[^\"\n]*\"", "''", text)  # what stands in quotes is no setting
    charge, moment = (_number(path, bare, rf"(?im)^[^!\n]*\b{name}\s*=\s*{REAL}", name) for name in ESPRESSO)
    return Electrons(charge, None if moment is None else abs(moment))


def _tell_isotopes(path: Path, text: str) -> None:
    """Warns of masses in ATOMIC_SPECIES that are not their elements'; ASE reads none of them."""
    for line in text.split("\n")[_row_after(text, "ATOMIC_SPECIES") :]:
        if (match := SPECIES.match(line)) is None:
            break
        element, mass = atomic_numbers.get(match[1].capitalize()), float(re.sub("[dD]", "e", match[2]))
        if element and abs(mass - atomic_masses[element]) > ISOTOPE:
            what = f"the mass of {match[1]}, {mass:g} amu, is not read from this format, the element's is taken"
            warnings.warn(f"{path}: {what}; {INSTEAD}", InputWarning, stacklevel=2)


def _row_after(text: str, card: str) -> int:
    lines = text.split("\n")
    return next((row + 1 for row, line in enumerate(lines) if line.strip().upper().startswith(card)), len(lines))


def _of_castep(path: Path, text: str) -> Electrons:
    return Electrons(_number(path, text, rf"(?i)net charge of system\s*:\s*{REAL}", "net charge of system"))


def _of_turbomole(path: Path, text: str) -> Electrons:
    charge = _number(path, text, rf"(?im)^\$(?:charge\s+|eht\b.*\bcharge=\s*){REAL}", "$charge")
    return Electrons(charge, _number(path, text, rf"(?im)^\$eht\b.*\bunpaired=\s*{REAL}", "$eht unpaired"))


def _of_outcar(path: Path, text: str) -> Electrons:
    """The valence electrons that the atoms bring less those there are."""
    lines = (re.search(rf"{name}\s*=\s*([\d. \t]+)", text) for name in ("ions per type", "ZVAL", "NELECT"))
    counts, valences, electrons = ([float(word) for word in line[1].split()] if line else [] for line in lines)
    if len(counts) != len(valences) or len(electrons) != 1:
        return Electrons()
    return _charged(path, list(zip(counts, valences, strict=True)), electrons[0])


def _of_vasprun(path: Path, text: str) -> Electrons:
    electrons = re.search(rf'name="NELECT">\s*{REAL}', text)
    table = re.search(r'<array name="atomtypes"[\s\S]*?</array>', text)
    row = r"<rc><c>\s*(\d+)\s*</c><c>\s*\w+\s*</c><c>[^<]*</c><c>\s*([\d.]+)\s*</c>"
    types = [(float(count), float(valence)) for count, valence in re.findall(row, table[0] if table else "")]
    return _charged(path, types, float(electrons[1])) if electrons and types else Electrons()


def _charged(path: Path, types: list[tuple[float, float]], electrons: float) -> Electrons:
    """Number and valence of each kind of atom, and the electrons of the calculation; a neutral one states nothing."""
    charge = sum(count * valence for count, valence in types) - electrons
    return Electrons(_whole(path, f"{charge:.3f}", "the charge that NELECT leaves") or None)


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
    "vasp-out": _of_outcar,
    "vasp-xml": _of_vasprun,
    "turbomole": _of_turbomole,
    "castep-castep": _of_castep,
}
FORMATS = (*BOTH, *CHARGES)
