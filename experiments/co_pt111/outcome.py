"""What a run of this experiment learned: adsorption energies and the hop, by the model and by the method itself.

`python experiments/co_pt111/outcome.py RUN` relaxes CO on each site and away from the surface, and finds the path from
the top site into the hollow, with both potentials from the same drawn structures; writes them into RUN/validate.json,
where the errors on the test frames already are. Ten minutes, most of them by the method.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from surface import HEIGHTS, method, relaxed

import jaxal
from jaxal.report import page
from jaxal.validate import command
from jaxal.validate.barrier import barrier


class Outcome(NamedTuple):
    """Energies in eV."""

    top: float  # of adsorption, relative to CO and the slab apart
    bridge: float
    hcp: float
    fcc: float
    into_hollow: float  # barrier from the top site into the fcc hollow
    out_of_hollow: float  # and back


def outcome(factory: Callable[[], Any]) -> Outcome:
    """The figures of one potential."""
    ends = {site: relaxed(site, factory()) for site in (*HEIGHTS, "away")}
    energy = {site: atoms.get_potential_energy() for site, atoms in ends.items()}
    path = barrier(factory, ends["top"], ends["fcc"], images=7, fmax=0.05)
    sites = {site: float(energy[site] - energy["away"]) for site in HEIGHTS}
    top = float(path.energies.max())
    return Outcome(**sites, into_hollow=top, out_of_hollow=top - float(path.energies[-1]))


def main(directory: Path) -> None:
    """Measures, prints and writes."""
    calculator = jaxal.Calculator(directory)
    learned, truth = outcome(calculator.share), outcome(method)
    command.save(directory, surface={"model": learned, "reference": truth})
    page.write(directory)
    for name, mine, theirs in zip(Outcome._fields, learned, truth, strict=True):
        print(f"{name}: model {mine:.3f} eV, GFN1-xTB {theirs:.3f}")
    errors = json.loads((directory / "validate.json").read_text())["errors"]
    for name, unit in (("energy", "meV/atom"), ("force", "meV/Å")):
        print(f"{name} RMSE on {errors['structures']} frames: {1e3 * errors[name]['rmse']:.3g} {unit}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
