"""A stand-in for ORCA: reads its input, calculates a closed form, and answers in its formats and units (Hartree, Bohr).

`python stub_orca.py [HOW ...] orca.inp`
"""

import re
import sys
from pathlib import Path

from ase import Atoms
from ase.units import Bohr, Hartree
from stub_form import ENOUGH, calculated, misbehave, numbers, spoiled, turned

*words, name = sys.argv[1:]
how = words[0] if words else ""
print("                         Program Version 6.0.1  -  RELEASE   -")
if not Path(name).exists():
    sys.exit("INPUT FILE NOT FOUND")
text = Path(name).read_text()
misbehave(how)
simple = " ".join(re.findall(r"^!(.*)$", text, re.MULTILINE)).lower().split()
start = re.search(r"^\* xyz (-?\d+) (\d+)\n(.*?)^\*", text, re.MULTILINE | re.DOTALL)
if how == "abort" or not start or "engrad" not in simple or "scfconvforced" not in simple:
    print("\n[file orca_tools/qcmsg.cpp, line 394]:\n  .... aborting the run\n")
    sys.exit(0)
charge, multiplicity = int(start[1]), int(start[2])
rows = [row.split() for row in start[3].splitlines()]
atoms = Atoms([row[0] for row in rows], [[float(x) for x in row[1:]] for row in rows])
iterations = re.search(r"MaxIter +(\d+)", text)
if how == "unconverged" or (iterations and int(iterations[1]) < ENOUGH):
    print(f"*           SCF NOT CONVERGED AFTER {iterations[1] if iterations else 125} CYCLES          *")
    sys.exit(0)
energy, force, _ = calculated(atoms, charge, multiplicity - 1)
gradient = numbers(-force / (Hartree / Bohr), how)
atoms = turned(atoms, how)
lines = ["#", "# Number of atoms", "#", f" {len(atoms)}", "#", "# The current total energy in Eh", "#"]
lines += [f"  {energy / Hartree:20.12f}", "#", "# The current gradient in Eh/bohr", "#"]
lines += [f"  {value:20.12f}" for value in gradient.ravel()]
lines += ["#", "# The atomic numbers and current coordinates in Bohr", "#"]
for number, place in zip(atoms.numbers, atoms.positions / Bohr, strict=True):
    lines.append(f"  {number:3d} {place[0]:14.7f} {place[1]:12.7f} {place[2]:12.7f}")
if how != "missing":
    Path(name).with_suffix(".engrad").write_text(spoiled("\n".join(lines) + "\n", how))
print(f"FINAL SINGLE POINT ENERGY    {energy / Hartree:18.12f}\n\n        ****ORCA TERMINATED NORMALLY****")
