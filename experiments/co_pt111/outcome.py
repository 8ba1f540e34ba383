"""What a run of this experiment learned: adsorption energies and the hop, by the model and by the method itself.

`python experiments/co_pt111/outcome.py RUN` relaxes CO on each site and away, once with the surface free to follow and
once with it still, and on the still surface finds the paths from the fcc hollow onto the top site and into the hcp
hollow; with both potentials from the same structures. Writes them into RUN/validate.json, where the errors on the test
frames already are. Some minutes, most of them by the method.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ase
from ase.io import read
from surface import HEIGHTS, HERE, adsorbed, method, relaxed, still

import jaxal
from jaxal.report import page
from jaxal.validate import command
from jaxal.validate.barrier import barrier


class Sites(NamedTuple):
    """Energies of adsorption, relative to CO away from the same surface, eV."""

    top: float
    bridge: float
    hcp: float
    fcc: float


class Outcome(NamedTuple):
    """Energies in eV."""

    free: Sites  # the surface follows
    still: Sites  # it keeps its place
    fcc_to_top: float  # barriers on the still surface
    top_to_fcc: float
    fcc_to_hcp: float
    hcp_to_fcc: float


def sites(factory: Callable[[], Any], made: Callable[[str], ase.Atoms]) -> Sites:
    """Of structures that are made for each site and relaxed."""
    energy = {site: relaxed(made(site), factory()).get_potential_energy() for site in (*HEIGHTS, "away")}
    return Sites(**{site: float(energy[site] - energy["away"]) for site in HEIGHTS})


def outcome(factory: Callable[[], Any]) -> Outcome:
    """The figures of one potential."""
    surface: Any = read(HERE / "start.xyz", -1)
    hollow, *others = (relaxed(still(site, surface), factory()) for site in ("fcc", "top", "hcp"))
    hops = []
    for other in others:
        path = barrier(factory, hollow, other, images=7, fmax=0.05)
        hops += [path.energy, path.energy - float(path.energies[-1])]
    return Outcome(sites(factory, adsorbed), sites(factory, lambda site: still(site, surface)), *hops)


def main(directory: Path) -> None:
    """Measures, prints and writes."""
    calculator = jaxal.Calculator(directory)
    learned, truth = outcome(calculator.share), outcome(method)
    command.save(directory, surface={"model": learned, "reference": truth})
    page.write(directory)
    for name in Sites._fields:
        for surface in ("free", "still"):
            mine, theirs = (getattr(getattr(each, surface), name) for each in (learned, truth))
            print(f"{name}, {surface}: model {mine:.3f} eV, GFN1-xTB {theirs:.3f}")
    for name in Outcome._fields[2:]:
        print(f"{name}: model {getattr(learned, name):.3f} eV, GFN1-xTB {getattr(truth, name):.3f}")
    errors = json.loads((directory / "validate.json").read_text())["errors"]
    for name, unit in (("energy", "meV/atom"), ("force", "meV/Å")):
        print(f"{name} RMSE on {errors['structures']} frames: {1e3 * errors[name]['rmse']:.3g} {unit}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
