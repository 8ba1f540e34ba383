"""A stand-in for VASP: INCAR, KPOINTS, POSCAR and POTCAR in, OUTCAR and vasprun.xml out (eV, eV/Å, kbar of pressure).

`python stub_vasp.py [HOW]`
"""

import re
import sys
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.units import GPa
from stub_form import ENOUGH, calculated, misbehave, numbers, spoiled, turned


def refuse(why: str) -> None:
    lines = (
        "EEEEEEE  R     R  R     R  OOOOOOO  R     R     ###",
        "",
        why,
        "",
        "  ---->  I REFUSE TO CONTINUE ... <----",
    )
    print("\n".join(f"|     {line:<72}|" for line in lines))


def structure(text: str) -> Atoms:
    """The atoms of a POSCAR."""
    _, scale, *more = text.splitlines()
    cell = float(scale) * np.array([row.split() for row in more[:3]], float)
    symbols = [name for name, count in zip(*(row.split() for row in more[3:5]), strict=True) for _ in range(int(count))]
    first = 6 if more[5].strip().lower().startswith("s") else 5  # selective dynamics
    places = np.array([row.split()[:3] for row in more[first + 1 : first + 1 + len(symbols)]], float)
    cartesian = more[first].strip().lower()[0] in "ck"
    where = {"positions": float(scale) * places} if cartesian else {"scaled_positions": places}
    return Atoms(symbols, cell=cell, pbc=True, **where)


how = sys.argv[1] if len(sys.argv) > 1 else ""
print(" running on    1 total cores\n vasp.6.4.2 20Jul23 (build Nov 24 2026 10:00:00) complex")
if not Path("POSCAR").exists():
    refuse("No POSCAR found, STOPPING")
    sys.exit(1)
misbehave(how)
tags = dict(re.findall(r"^(\w+) = (.*)$", Path("INCAR").read_text(), re.MULTILINE))
potcar = Path("POTCAR").read_text()
atoms = structure(Path("POSCAR").read_text())
kinds = list(dict.fromkeys(atoms.get_chemical_symbols()))
assert kinds == re.findall(r"VRHFIN =(\w+)", potcar), "POSCAR and POTCAR differ"
assert np.linalg.det(atoms.cell.array) > 0, "the triple product of the basis vectors is negative"
assert Path("KPOINTS").read_text().splitlines()[2] == "Gamma"
if how == "abort":
    refuse("Error reading item ENCUT from file INCAR.")
    sys.exit(0)
valence = dict(zip(kinds, map(float, re.findall(r"ZVAL *= *(\S+)", potcar)), strict=True))
neutral = sum(valence[kind] for kind in atoms.get_chemical_symbols())
charge = round(neutral - float(tags.get("NELECT", neutral)))
spin = int(tags["NUPDOWN"]) if tags.get("ISPIN") == "2" else 0
energy, force, stress = calculated(atoms, charge, spin)
converged = how != "unconverged" and int(tags["NELM"]) >= ENOUGH
sentence = "because EDIFF is reached" if converged else "EDIFF was not reached (unconverged)"
outcar = f"------------------------ aborting loop {sentence} ----------------------------------------\n"
outcar += " General timing and accounting informations for this job:\n"


def rows(name: str, values: np.ndarray) -> str:
    lines = "".join("<v>" + "".join(f"{value:17.8f}" for value in row) + " </v>\n" for row in values)
    return f'<varray name="{name}" >\n{lines}</varray>\n'


shown = turned(atoms, how)
places = rows("positions", shown.get_scaled_positions(wrap=False))
xml = '<?xml version="1.0" encoding="ISO-8859-1"?>\n<modeling>\n<calculation>\n'
xml += f'<scstep><energy><i name="e_fr_energy">{energy + 1:17.8f} </i></energy></scstep>\n'
xml += f"<structure><crystal>\n{rows('basis', atoms.cell.array)}</crystal>\n{places}</structure>\n"
xml += rows("forces", numbers(force, how)) + rows("stress", -stress / (0.1 * GPa))
xml += f'<energy><i name="e_fr_energy">{energy:17.8f} </i></energy>\n</calculation>\n</modeling>\n'
if how == "stars":
    xml = re.sub(r'"forces" >\n<v>.*</v>', '"forces" >\n<v> ************** 0.0 0.0 </v>', xml)
Path("OUTCAR").write_text(outcar if how != "killed" else outcar[:10])
if how != "missing":
    Path("vasprun.xml").write_text(spoiled(xml, how))
