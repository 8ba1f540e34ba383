"""The free energy of the proton transfer at 300 K by four ways, and what GFN2-xTB's own is from the same frames.

    python experiments/malonaldehyde/free_energy.py RUN [--length 20] [--seed 0] [--frames 1500]

RUN is what was learned, such as by the command in README.md. On its model walkers move under no bias, windows of an
umbrella, windows that are exchanged, metadynamics and OPES along q = |O4 H5| - |O3 H5|. Asked for is the free energy of
the proton in between, |q| < 0.1 Å, over that of it elsewhere. GFN2-xTB's own follows from the frames: each counts by
exp(-(E_GFN2 - E_model)/kT) more, which is exact where enough of them count (`effective` says what part does).
"""

import argparse
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import ase
import numpy as np
from ase.io import read
from tblite.ase import TBLite

from jaxal.config.loading import parse
from jaxal.config.simulation import Simulation
from jaxal.core.units import BOLTZMANN, KCAL_PER_MOL
from jaxal.deploy import model as models
from jaxal.simulate import dynamics, free_energy, sampling
from jaxal.simulate.free_energy import Samples

KELVIN, BETWEEN, DISCARD = 300.0, 0.1, 0.2
STRAINED = 0.8  # eV over the lowest; walkers do not begin at structures that are higher
ALONG = "{name: difference, pairs: [[5, 4], [5, 3]]}"
GROWING = f"pace: 50, temperature: {KELVIN}, variables: {ALONG}}}"
UMBRELLA = f"{{name: umbrella, low: -0.9, high: 0.9, windows: 12, stiffness: 2.0, variables: {ALONG}"
WAYS = {
    "none": "bias=[]",
    "umbrella": f"bias={UMBRELLA}}}",
    "exchange": f"bias={UMBRELLA}, exchange: 100, temperature: {KELVIN}}}",
    "metadynamics": f"bias={{name: metadynamics, width: 0.15, height: 0.004, bias_factor: 6, {GROWING}",
    "opes": f"bias={{name: opes, width: 0.15, barrier: 0.2, {GROWING}",
}


def energy_of(atoms: ase.Atoms) -> float:
    """GFN2-xTB's, eV."""
    atoms = ase.Atoms(atoms.symbols, atoms.positions)
    atoms.calc = TBLite(method="GFN2-xTB", verbosity=0)
    return float(atoms.get_potential_energy())


def activation(samples: Samples) -> dict[str, float]:
    """F of the proton in between less F of it elsewhere, kcal/mol, with its standard error."""
    folded = samples._replace(values=-np.abs(samples.values))
    between = free_energy.difference(folded, -BETWEEN, free_energy.resampled(folded))
    return {"energy": between.energy / KCAL_PER_MOL, "error": between.error / KCAL_PER_MOL}


def thinned(samples: Samples, rows: np.ndarray) -> Samples:
    """The samples at some of the frames."""
    windows = None if samples.windows is None else samples.windows[:, rows]
    return samples._replace(values=samples.values[rows], logweight=samples.logweight[rows], windows=windows)


def one(model: models.Model, starts: Sequence[ase.Atoms], way: str, options: Any) -> dict[str, Any]:
    """What comes of one way, on the model and by GFN2-xTB."""
    fields = [f"explore.temperature={KELVIN}", "explore.walkers=12", "explore.friction=0.01", "unsure=go"]
    more = [f"length={options.length}", f"seed={options.seed}", f"along={ALONG}", WAYS[way]]
    simulation = parse({}, None, Simulation, [*fields, *more])
    walkers = dynamics.prepared(model, simulation, starts, options.run)
    term = sampling.check(walkers, simulation)
    series, kept = dynamics.run(walkers, simulation, None, lambda text: None, options.frames)
    dynamics.to_the_end(walkers, simulation, series, way)
    first = int(DISCARD * len(series.time))
    samples = sampling.of_series(walkers, series, term, KELVIN, first)
    rows = np.array([row for row in sorted(kept) if row >= first])
    thin = thinned(samples, rows - first)
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        frames = [atoms for row in rows for atoms in kept[int(row)]]
        own = np.array(list(pool.map(energy_of, frames, chunksize=20))).reshape(len(rows), -1)
    off = own - series.energy[rows]
    off -= off.mean()
    exact = thin._replace(logweight=thin.logweight - off / (BOLTZMANN * KELVIN))
    weight, before = free_energy.weights(exact), free_energy.weights(thin)
    ratio = weight / before
    return {
        "way": way,
        "model": activation(samples),
        "model, same frames": activation(thin),
        "GFN2": activation(exact),
        "effective": float(np.sum(before * ratio) ** 2 / np.sum(before * ratio**2)),
        "energy error": float(off.std()) / KCAL_PER_MOL,
        "frames": off.size,
        "supported": float(series.supported.mean()),
    }


def main() -> None:
    """Prints a record for each way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--length", type=float, default=20.0, help="ps of each of twelve walkers (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--frames", type=int, default=1500, help="that GFN2-xTB is asked about (default: 1500)")
    parser.add_argument("--processes", type=int, default=2, help="of GFN2-xTB (default: 2)")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    options = parser.parse_args()
    model = models.load(options.run)
    learned: Any = read(options.run / "training.xyz", ":")
    energies = np.array([atoms.get_potential_energy() for atoms in learned])
    starts = [atoms for atoms, energy in zip(learned, energies, strict=True) if energy < energies.min() + STRAINED]
    for atoms in starts:
        atoms.calc = None
        atoms.info = {"charge": 0, "spin": 0}
    for way in options.ways:
        print(json.dumps(one(model, starts, way, options)), flush=True)


if __name__ == "__main__":
    main()
