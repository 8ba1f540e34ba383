"""The method's own barrier of Cl- + CH3Cl, and the complexes that the run begins with.

`python experiments/sn2_dft/reference.py` relaxes the complex and the saddle point with PBE0-D3BJ/def2-SVP by jaxal's
own labeler, calculates the vibrations of both, and writes complexes.xyz and reference.json beside this file. Six
minutes on one core. With the argument `tblite` it prints the same figures of GFN2-xTB and writes nothing.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from ase.io import write
from points import lengths, other_side, points, wavenumbers

from jaxal.core import registry
from jaxal.core.discovery import import_parts
from jaxal.core.units import KCAL_PER_MOL
from jaxal.label.calculator import LabelCalculator

HERE = Path(__file__).parent
OPTIONS: dict[str, dict[str, Any]] = {"pyscf": {"dispersion": "d3bj"}, "tblite": {}}  # else defaults


def labeler(name: str) -> LabelCalculator:
    """A labeler with the options of this experiment."""
    import_parts()
    return LabelCalculator(registry.get("labeler", name)(**OPTIONS[name]), charge=-1)


def main(name: str) -> None:
    """Measures, prints and writes."""
    began, calculator = time.perf_counter(), labeler(name)
    reaction = points(lambda: calculator)
    record: dict[str, Any] = {
        "method": calculator.backend.method,
        "version": calculator.backend.version,
        "barrier": reaction.barrier / KCAL_PER_MOL,
    }
    energies = {"complex": reaction.complex_energy, "saddle": reaction.saddle_energy}
    for point, atoms in (("complex", reaction.complex), ("saddle", reaction.saddle)):
        record[point] = {
            "energy": energies[point],
            "fmax": float(np.linalg.norm(atoms.get_forces(), axis=1).max()),
            "C-Cl": lengths(atoms),
            "wavenumbers": np.round(wavenumbers(atoms), 1).tolist(),
            "position": np.round(atoms.positions, 6).tolist(),
        }
        print(point, json.dumps(record[point]), flush=True)
    record |= {"labels": len(calculator.seconds), "seconds_per_label": float(np.median(calculator.seconds))}
    print(f"{record['method']}: barrier {record['barrier']:.3f} kcal/mol")
    print(f"{record['labels']} labels of {record['seconds_per_label']:.2f} s in {time.perf_counter() - began:.0f} s")
    if name == "pyscf":
        start = reaction.complex.copy()
        start.calc = None
        write(HERE / "complexes.xyz", [start, other_side(start)], format="extxyz")
        (HERE / "reference.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "pyscf")
