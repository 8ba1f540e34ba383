"""Files of other programs of which ASE's readers make something else in silence: refused, with what would be right."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from jaxal.core.errors import InputError

INSTEAD = "give extended XYZ"
MASSES = "isotopes, whose masses are not read from this format; give extended XYZ with a column `masses`"


def rotated(text: str) -> bool:
    """Whether the only positions of a Gaussian output are in another orientation than its forces."""
    return all(("Input orientation:" not in text, "Standard orientation:" in text, "Forces (Hartrees/Bohr)" in text))


def several_methods(text: str) -> bool:
    """Whether a Gaussian output holds energies of several methods."""
    return len(set(re.findall(r"SCF Done:\s+E\((\w+)\)", text))) > 1


class Rule(NamedTuple):
    """What a format may hold and its reader passes over."""

    holds: str | Callable[[str], bool]  # pattern of a text that does, or what says so
    what: str  # that such a file has
    labels: bool = False  # it matters only where labels count


RULES = {  # by ASE's names of formats
    "gaussian-in": (
        Rule(r"(?i)\(.*\biso\s*=", MASSES),
        Rule(
            r"(?im)^--link1--",
            "several jobs, which are read as one structure; give a file for each",
        ),
        Rule(
            r"(?im)^\s*#.*\bunits\s*[=(][^)\n]*\b(au|bohr)",
            f"positions in Bohr, which are read as Å; {INSTEAD}",
        ),
    ),
    "gaussian-out": (
        Rule(r"(?i)\(iso=\d|AtmWgt=.*\s[23]\.01[46]", MASSES),
        Rule(
            r"E\(TD-HF/TD-DFT\)",
            f"an excited state, whose energy is not read; {INSTEAD}",
            True,
        ),
        Rule(
            rotated,
            "positions in the standard orientation and forces in the input's; calculate with NoSymm",
            True,
        ),
        Rule(
            several_methods,
            "energies of several methods; give a file for each",
            True,
        ),
    ),
    "turbomole": (
        Rule(
            r"(?im)^\$coord.*\b(angs|frac)",
            f"positions that are not in Bohr; {INSTEAD}",
        ),
        Rule(r"(?im)^\$(periodic|cell|lattice)\b", f"a cell, which is not read from this format; {INSTEAD}"),
        Rule(r"(?ims)^\$coord.*^\$coord", "several structures, of which one is read; give a file for each"),
    ),
    "sdf": (
        Rule(r"\$\$\$\$\s+\S", "several molecules, of which one is read; give a file for each"),
        Rule(r"(?m)^M  ISO", MASSES),
        Rule(r"\A(.*\n){3}.*V3000", f"the version V3000, which is not read; {INSTEAD} or V2000"),
    ),
    "mol": (
        Rule(r"(?m)^M  ISO", MASSES),
        Rule(r"\A(.*\n){3}.*V3000", f"the version V3000, which is not read; {INSTEAD} or V2000"),
    ),
    "gromacs": (Rule(r"\A", f"names of atoms, such as NA, where elements are needed; {INSTEAD}"),),
    "vasp-out": (
        Rule(
            r"EDIFF was not reached \(unconverged\)",
            f"steps whose electrons did not converge; {INSTEAD} without these",
            True,
        ),
    ),
    "lammps-dump-text": (
        Rule(
            r"(?m)^ITEM: UNITS\n(?!metal|real)",
            f"units that are not read; {INSTEAD}, or dump metal units",
        ),
        Rule(
            r"(?m)^ITEM: UNITS\nreal[\s\S]*^ITEM: ATOMS.* fx ",
            f"forces in kcal/mol/Å, which are read as eV/Å; {INSTEAD}, or dump metal units",
            True,
        ),
    ),
}


def refuse(path: Path, form: str, text: str, labeled: bool) -> None:
    """Raises InputError for what the reader of this format would pass over in this text."""
    for rule in RULES.get(form, ()):
        holds = rule.holds(text) if callable(rule.holds) else re.search(rule.holds, text)
        if (labeled or not rule.labels) and holds:
            raise InputError(f"{path}: has {rule.what}")
    if form in ("sdf", "mol"):
        _refuse_mass_differences(path, text)
    if form == "lammps-dump-text":
        _refuse_cut_dumps(path, text)


def _refuse_mass_differences(path: Path, text: str) -> None:
    """The columns 35 and 36 of an atom of a V2000 molfile: how much heavier than its element."""
    for line in atoms_of_molfile(text):
        if line[34:36].strip() not in ("", "0"):
            raise InputError(f"{path}: has {MASSES}")


def atoms_of_molfile(text: str) -> list[str]:
    """The lines of the atoms of a V2000 molfile."""
    lines = text.split("\n")
    count = lines[3][:3].strip() if len(lines) > 3 else ""
    return lines[4 : 4 + int(count)] if count.isdigit() else []


def _refuse_cut_dumps(path: Path, text: str) -> None:
    """A frame of a LAMMPS dump with fewer lines than it has atoms: ASE takes what is there."""
    for number, frame in enumerate(text.split("ITEM: TIMESTEP")[1:]):
        count = re.search(r"ITEM: NUMBER OF ATOMS\s+(\d+)", frame)
        rows = re.search(r"ITEM: ATOMS[^\n]*\n([\s\S]*)", frame)
        if count and rows and int(count[1]) != len([line for line in rows[1].split("\n") if line.strip()]):
            raise InputError(f"{path}: frame {number} is cut off: it says {count[1]} atoms and has others")
