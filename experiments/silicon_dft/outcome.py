"""What a run of this experiment learned: lattice, elastic constants and optical phonon beside PBE's own.

`python experiments/silicon_dft/outcome.py RUN` measures the learned potential as reference.py measured the method, and
writes both into RUN/validate.json, where the errors on the 20 test frames already are. Seconds.
"""

import json
import sys
from pathlib import Path

from elastic import Elastic, elastic

import jaxal
from jaxal.core.units import GPA
from jaxal.report import page
from jaxal.validate import command


def main(directory: Path) -> None:
    """Measures, prints and writes."""
    learned = elastic(jaxal.Calculator(directory))
    stored = json.loads((Path(__file__).parent / "reference.json").read_text())
    truth = Elastic(**{name: stored[name] for name in Elastic._fields})
    command.save(directory, elastic={"model": learned, "reference": truth})
    page.write(directory)
    for name, mine, theirs in zip(Elastic._fields, learned, truth, strict=True):
        print(f"{name}: model {mine:.4g}, Quantum ESPRESSO {theirs:.4g}")
    errors = json.loads((directory / "validate.json").read_text())["errors"]
    units = {"energy": (1e3, "meV/atom"), "force": (1e3, "meV/Å"), "stress": (1 / GPA, "GPa")}
    for name, (factor, unit) in units.items():
        print(f"{name} RMSE on {errors['structures']} frames: {factor * errors[name]['rmse']:.3g} {unit}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
