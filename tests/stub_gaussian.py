"""A stand-in for Gaussian: input on standard input, log on standard output, formatted checkpoint file beside it.

The layout of that file is the documented one: a name of 40 characters, a type, a number or `N=` and their count, then
five reals or six integers on a line. `python stub_gaussian.py [HOW]`
"""

import re
import sys
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.units import Bohr, Hartree
from stub_form import ENOUGH, calculated, misbehave, numbers, spoiled, turned

how = sys.argv[1] if len(sys.argv) > 1 else ""
print(" Entering Gaussian System, Link 0=g16\n ******\n Gaussian 16:  ES64L-G16RevC.01  3-Jul-2019\n ******")
text = sys.stdin.read()
if not text.strip():
    sys.exit(" Route card not found.")
misbehave(how)
head, title, body, *_ = text.split("\n\n")
route = " ".join(line for line in head.splitlines() if not line.startswith("%")).lower()
assert title.strip() and text.endswith("\n\n"), "Gaussian wants a title, and an empty line at the end"
first, *rows = body.splitlines()
charge, multiplicity = map(int, first.split())
atoms = Atoms([row.split()[0] for row in rows], [[float(x) for x in row.split()[1:]] for row in rows])
if how == "abort":
    print(" End of file in ZSymb.\n Error termination via Lnk1e in /opt/g16/l101.exe at Tue Nov 24 2026.")
    sys.exit(1)
cycles = int(re.search(r"maxcycle=(\d+)", route)[1])  # pyright: ignore
if how == "unconverged" or cycles < ENOUGH:
    print(" Convergence criterion not met.\n Convergence failure -- run terminated.")
    print(" Error termination via Lnk1e in /opt/g16/l502.exe")
    sys.exit(1)
energy, force, _ = calculated(atoms, charge, multiplicity - 1)
gradient = numbers(-force / (Hartree / Bohr), how) if re.search(r"\bforce\b", route) and how != "zero" else 0 * force
atoms = turned(atoms, how if "nosymm" in route else "turned")


def entry(name: str, values: np.ndarray) -> list[str]:
    whole = values.dtype.kind == "i"
    words = [f"{value:12d}" if whole else f"{value:16.8E}" for value in values.ravel()]
    width = 6 if whole else 5
    rows = ["".join(words[i : i + width]) for i in range(0, len(words), width)]
    return [f"{name:<40}   {'I' if whole else 'R'}   N={len(words):12d}", *rows]


lines = ["jaxal", f"{'FORCE':<10}{'RHF':<30}{'STO-3G':<30}", f"{'Number of atoms':<40}   I     {len(atoms):12d}"]
lines += entry("Atomic numbers", atoms.numbers)
lines += entry("Current cartesian coordinates", atoms.positions / Bohr)
lines += [f"{name:<40}   R     {energy / Hartree:22.15E}" for name in ("SCF Energy", "Total Energy")]
lines += entry("Cartesian Gradient", gradient)
if "formcheck" in route and how != "missing":
    Path("Test.FChk").write_text(spoiled("\n".join(lines) + "\n", how))
print(f" SCF Done:  E(RHF) = {energy / Hartree:16.10f}     A.U. after   10 cycles")
print(" Normal termination of Gaussian 16 at Tue Nov 24 20:00:00 2026.")
