"""Networks that runs discovered, beside GFN2-xTB's own saddles.

    python experiments/discovery/outcome.py RUN ...

From every saddle of a run's task (`jaxal run` with `task.name: network`) a search with GFN2-xTB's Hessians (central
differences of forces) goes to its own one: how far an atom goes, and how its energy over the first minimum, which
GFN2-xTB relaxes, compares to that of the run's labels and of its model. One that comes to nothing near is false.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read
from ase.optimize import BFGS

from jaxal.core.errors import InputError
from jaxal.core.units import KCAL_PER_MOL
from jaxal.report.metrics import METRICS, read_metrics
from jaxal.simulate.saddle import refined

sys.path.append(str(Path(__file__).parents[1]))
from gfn2 import expansion, method

NEAR = 0.3  # Å, that an atom may go from the learned saddle to GFN2-xTB's own


def table(run: Path) -> str:
    """The network of a run, and what is right of it."""
    record: dict[str, Any] = json.loads((run / "task" / "network.json").read_text())
    task = [line for line in read_metrics(run / METRICS) if line["kind"] == "task"][-1]
    minima: Any = read(run / "task" / "minima.xyz", ":")
    lowest = Atoms(minima[0].symbols, minima[0].positions, calculator=method())
    BFGS(lowest, logfile=None).run(fmax=1e-3, steps=500)
    base = lowest.get_potential_energy()
    rows = [
        f"{run.name}: {task['text']}; {task['labels']} labels of the task",
        "",
        "| minimum | | model | labels |",
        "|---|---|---|---|",
    ]
    for number, minimum in enumerate(record["minima"]):
        rows.append(f"| {number} | {minimum['molecules']} | {_kcal(minimum['energy'])} | {_labeled(minimum)} |")
    rows += [
        "",
        "| saddle | from, to | cm^-1 | model | labels | GFN2-xTB's own | moved, Å |",
        "|---|---|---|---|---|---|---|",
    ]
    saddles: Any = read(run / "task" / "saddles.xyz", ":") if record["saddles"] else []
    for number, (saddle, atoms) in enumerate(zip(record["saddles"], saddles, strict=True)):
        own = "| false | |"
        try:
            there, end = refined(expansion, Atoms(atoms.symbols, atoms.positions))
            moved = float(np.linalg.norm(there.positions - atoms.positions, axis=-1).max())
            if moved < NEAR:
                own = f"| {_kcal(float(end.energy[0]) - base)} | {moved:.3f} |"
        except InputError:
            pass
        first, last = saddle["minima"]
        rows.append(
            f"| {number} | {first}, {last} | {-saddle['imaginary_frequency']:.0f}i | {_kcal(saddle['energy'])} "
            f"| {_labeled(saddle)} {own}"
        )
    return "\n".join(rows)


def _kcal(energy: float) -> str:
    return f"{energy / KCAL_PER_MOL:.2f}"


def _labeled(row: dict[str, Any]) -> str:
    if "labeled" not in row:
        return ""
    return f"{_kcal(row['labeled']['energy'])} ± {_kcal(row['labeled']['error'])}"


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    for run in parser.parse_args().runs:
        print(table(run), end="\n\n")


if __name__ == "__main__":
    main()
