"""Files of other programs of which ASE's readers make something else in silence: refused, with what would be right."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ase.data import atomic_masses, atomic_numbers

from jaxal.core.errors import InputError

INSTEAD = "give extended XYZ"
ISOTOPE = 0.15  # amu; a mass so far from its element's is no rounded one
MASSES = "isotopes, whose masses are not read from this format; give extended XYZ with a column `masses`"


def rotated(text: str) -> bool:
    """Whether the only positions of a Gaussian output are in another orientation than its forces."""
    return all(("Input orientation:" not in text, "Standard orientation:" in text, "Forces (Hartrees/Bohr)" in text))


def several_methods(text: str) -> bool:
    """Whether a Gaussian output holds energies of several methods."""
    return len(set(re.findall(r"SCF Done:\s+E\((\w+)\)", text))) > 1


def several_in_poscar(text: str) -> bool:
    """Whether a POSCAR has a second header: a number, three lattice vectors, a line that begins with a letter."""
    number, end = r"[ \t]*[-+\d.eEdD]+", r"[ \t]*\n"
    header = rf"(?m)^{number}{end}(?:^{number}[ \t]{number}[ \t]{number}{end}){{3}}[ \t]*[A-Za-z]"
    return len(re.findall(header, text)) > 1


def several_in_gen(text: str) -> bool:
    """Whether a .gen file has lines behind its only structure."""
    lines = [line for line in text.split("\n") if line.strip() and not line.lstrip().startswith("#")]
    head = lines[0].split() if lines else []
    if len(head) < 2 or not head[0].isdigit():
        return False
    return len(lines) > 2 + int(head[0]) + (0 if head[1].upper() == "C" else 4)


def several_in_xsf(text: str) -> bool:
    """Whether an XSF file without ANIMSTEPS has several structures."""
    starts = re.findall(r"(?m)^\s*(?:PRIMCOORD|ATOMS)\b", text)
    return len(starts) > 1 and not re.search(r"(?m)^\s*ANIMSTEPS", text)


def partial_sites_in_res(text: str) -> bool:
    """Whether a site of a SHELX file is not fully occupied, 1, or 11 where it is not refined."""
    rows = re.findall(r"(?m)^\w+[ \t]+\d+(?:[ \t]+[-\d.]+){3}[ \t]+([-\d.]+)", text.split("SFAC")[-1])
    return any(float(row) not in (1.0, 11.0) for row in rows if re.fullmatch(r"-?\d+\.?\d*", row))


def unconverged(text: str) -> bool:
    """Whether the electrons of a step in a vasprun.xml took all steps that they may, which is what VASP stops at."""
    most = re.search(r'name="NELM">\s*(\d+)', text)
    steps = (step.count("<scstep>") for step in text.split("<calculation>")[1:])
    return most is not None and any(count >= int(most[1]) > 1 for count in steps)


class Rule(NamedTuple):
    """What a format may hold and its reader passes over."""

    holds: str | Callable[[str], bool]  # pattern of a text that does, or what says so
    what: str  # that such a file has
    labels: bool = False  # it matters only where labels count


RULES: dict[str, tuple[Rule, ...]] = {  # by ASE's names of formats
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
    "vasp-xml": (
        Rule(
            unconverged,
            f"a step of as many steps of its electrons as NELM allows, which did not converge; {INSTEAD} without it",
            True,
        ),
    ),
    "vasp": (Rule(several_in_poscar, "several structures, of which one is read; give a file for each"),),
    "gen": (
        Rule(several_in_gen, "more lines than its first structure, which is all that is read; give a file for each"),
    ),
    "xsf": (
        Rule(several_in_xsf, "several structures without ANIMSTEPS, of which one is read; give a file for each"),
        Rule(
            r"(?im)^\s*#\s*total energy",
            f"a total energy, as files of aenet have; their forces in eV/Å are read as Hartree/Å; {INSTEAD}",
            True,
        ),
    ),
    "qbox": (Rule(r"\A", f"positions in Bohr and energies in Hartree, which are read as Å and eV; {INSTEAD}"),),
    "res": (
        Rule(r"(?m)^SYMM\s", "symmetry (SYMM), by which no atoms are made; give CIF, or all atoms"),
        Rule(
            r"(?m)^LATT\s+(?!-1\b)", "a centered or centrosymmetric lattice (LATT); give CIF, or all atoms and LATT -1"
        ),
        Rule(partial_sites_in_res, "a site that is partly empty; give a supercell with whole atoms"),
    ),
    "castep-cell": (
        Rule(r"(?i)\bMIXTURE\b", "a site that is shared (MIXTURE); give a supercell with whole atoms"),
        Rule(
            r"(?im)^\s*fix_all_ions\s*[:=]?\s*t",
            "FIX_ALL_IONS, which is not read; give extended XYZ with a column `move_mask`",
        ),
        Rule(
            r"(?im)^\s*%block\s+(?:lattice_\w+|positions_abs)\s*\n\s*(?!(?:bohr|ang|m|cm|nm|pm)\s*$)[a-z]\w*\s*$",
            "a unit of length that is read as Å; give ang or bohr",
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
    for check in CHECKS.get(form, ()):
        check(path, text)


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


def _refuse_lost_masses(path: Path, text: str) -> None:
    """Masses beside elements in a LAMMPS dump: ASE takes the elements' own."""
    for columns, rows in re.findall(r"(?m)^ITEM: ATOMS ([^\n]*)\n((?:(?!ITEM:)[^\n]*\n?)*)", text):
        names = columns.split()
        if not {"element", "mass"} <= set(names):
            continue
        for row in filter(str.strip, rows.split("\n")):
            words = dict(zip(names, row.split(), strict=False))
            element = atomic_numbers.get(words.get("element", ""))
            if element and abs(float(words["mass"]) - atomic_masses[element]) > ISOTOPE:
                raise InputError(f"{path}: has {MASSES}")


def _refuse_sites(path: Path, text: str) -> None:
    """Sites of a CIF of which only some are there at a time, and those without an atom."""
    for block in re.split(r"(?im)^[ \t]*loop_[ \t]*$", text)[1:]:
        lines = [line.strip() for line in block.split("\n")]
        lines = lines[next((row for row, line in enumerate(lines) if line.startswith("_")), 0) :]
        head = next((row for row, line in enumerate(lines) if not line.startswith("_")), len(lines))
        names = [line.split()[0].lower() for line in lines[:head]]
        if not any(name.startswith("_atom_site_") for name in names):
            continue
        end = next((r for r, line in enumerate(lines[head:], head) if line[:1] in ("", "_", "#")), len(lines))
        rows = [line.split() for line in lines[head:end]]
        values = {name: {row[place] for row in rows if len(row) == len(names)} for place, name in enumerate(names)}
        groups = values.get("_atom_site_disorder_group", set()) - {".", "?", "0"}
        if len(groups) > 1 or any(group.startswith("-") for group in groups):
            raise InputError(f"{path}: has atoms of disorder groups {', '.join(sorted(groups))}; keep those of one")
        if "dum" in values.get("_atom_site_calc_flag", set()):
            raise InputError(f"{path}: has dummy sites (_atom_site_calc_flag dum), which hold no atom; remove them")


CHECKS: dict[str, tuple[Callable[[Path, str], None], ...]] = {  # what no pattern says
    "sdf": (_refuse_mass_differences,),
    "mol": (_refuse_mass_differences,),
    "cif": (_refuse_sites,),
    "lammps-dump-text": (_refuse_cut_dumps, _refuse_lost_masses),
}
FORMATS = {*RULES, *CHECKS}
