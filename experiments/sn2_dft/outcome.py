"""What a run of this experiment learned: complex, saddle point and barrier of its potential beside the method's own.

`python experiments/sn2_dft/outcome.py RUN` relaxes both points on the learned potential as reference.py does on PBE0,
climbs the barrier between the complexes by CI-NEB too, and compares with reference.json. Writes RUN/validate.json and
the report anew. With `tblite` as second argument the reference is GFN2-xTB, calculated at once. Half a minute on one
core.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from points import lengths, other_side, points, wavenumbers
from reference import HERE, labeler

import jaxal
from jaxal.core.units import KCAL_PER_MOL
from jaxal.report import page
from jaxal.validate import command
from jaxal.validate.barrier import barrier


def main(directory: Path, reference: str) -> None:
    """Measures, prints and writes."""
    calculator = jaxal.Calculator(directory)
    reaction = points(calculator.share)
    climbed = barrier(calculator.share, reaction.complex, other_side(reaction.complex), images=9)
    record: dict[str, Any] = {"barrier": reaction.barrier / KCAL_PER_MOL, "neb": climbed.energy / KCAL_PER_MOL}
    record["neb converged"] = climbed.converged
    for point, atoms in (("complex", reaction.complex), ("saddle", reaction.saddle)):
        atoms.calc = calculator
        atoms.get_forces()
        record[point] = {
            "C-Cl": lengths(atoms),
            "estimated_error": float(calculator.results["estimated_error"]),
            "wavenumbers": np.round(wavenumbers(atoms), 1).tolist(),
        }
    if reference == "tblite":
        teacher = labeler(reference)
        truth = points(lambda: teacher)
        expected = truth.barrier / KCAL_PER_MOL
        bonds = {"complex": lengths(truth.complex), "saddle": lengths(truth.saddle)}
    else:
        stored = json.loads((HERE / "reference.json").read_text())
        expected = stored["barrier"]
        bonds = {point: stored[point]["C-Cl"] for point in ("complex", "saddle")}
    record |= {"reference": expected, "difference": record["barrier"] - expected, "reference C-Cl": bonds}
    command.save(directory, sn2=record)
    page.write(directory)
    print(json.dumps(record, indent=1))
    print(f"barrier, kcal/mol: model {record['barrier']:.3f}, by NEB {record['neb']:.3f}, {reference} {expected:.3f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "pyscf")
