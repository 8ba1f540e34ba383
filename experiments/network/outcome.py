"""What a run of the network learned: the energy of taking each complex apart, beside GFN2-xTB's own.

`python experiments/network/outcome.py RUN` calculates the model and the method at the relaxed complexes, at the frames
with the chloride at 5 to 12 Å, and at the fragments alone. Writes RUN/validate.json and the report anew.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read
from reference import DISTANCES, HERE, teacher

import jaxal
from jaxal.core.units import KCAL_PER_MOL
from jaxal.report import page
from jaxal.validate import command


def energies(calculator: Any, structures: list[Atoms]) -> np.ndarray:
    """Energies, kcal/mol."""
    values = []
    for atoms in structures:
        atoms.calc = calculator or teacher(atoms.info["charge"])
        values.append(atoms.get_potential_energy() / KCAL_PER_MOL)
    return np.array(values)


def main(directory: Path) -> None:
    """Measures, prints and writes."""
    calculator = jaxal.Calculator(directory)
    separation: dict[str, Any] = {}
    for name, molecule in (("identity", "chloromethane"), ("exchange", "fluoromethane")):
        frames: Any = read(HERE / f"{name}.xyz", ":")
        pieces: Any = [read(HERE / f"{piece}.xyz") for piece in ("chloride", molecule)]
        model, method = (
            np.append(whole[1:], alone.sum()) - whole[0]
            for whole, alone in ((energies(kind, frames), energies(kind, pieces)) for kind in (calculator, None))
        )
        separation[name] = {"distances": [*DISTANCES, None], "model": model.tolist(), "method": method.tolist()}
        for distance, ours, theirs in zip((*DISTANCES, np.inf), model, method, strict=True):
            print(
                f"{name:10} {distance:5.1f} Å: model {ours:7.2f}, GFN2-xTB {theirs:7.2f}, differ {ours - theirs:6.2f}"
            )
    command.save(directory, separation=separation)
    page.write(directory)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
