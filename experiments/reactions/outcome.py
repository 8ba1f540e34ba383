"""Many reactions from both sides alone, and what came of each beside GFN2-xTB's own saddle.

    python experiments/reactions/outcome.py DATA DIR [--every 25] [--number 40] [--jobs 1] [--set key.sub=value ...]
    python experiments/reactions/outcome.py DATA DIR --table
    python experiments/reactions/outcome.py DATA DIR --begin      how high the bands begin, both ways of making images

DATA holds reactant, transition state and product of each reaction in turn (extended XYZ, also gzipped), such as
those of Sci. Data 9, 417 (2022). Taken is every so-manyth one, from the first on, whose ends relax to minima of
GFN2-xTB with the bonds that they had. Nothing else is known to the run, which is that of `jaxal new REACTANT --reaction
PRODUCT`. Its folder and `result.json` lie in DIR; what is there is not done again.

GFN2-xTB's own saddle is where a search with its Hessians (central differences of forces) goes from the learned one.
"""

import argparse
import gzip
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import CalculationFailed
from ase.io import read, write
from tblite.ase import TBLite

from jaxal.core.errors import InputError
from jaxal.core.units import KCAL_PER_MOL
from jaxal.explore.images import between
from jaxal.report.metrics import METRICS, answers, read_metrics
from jaxal.simulate.saddle import refined

sys.path.append(str(Path(__file__).parents[1]))
from gfn2 import expansion, method, relaxed


def reactions(data: Path) -> list[list[Atoms]]:
    """Reactant, transition state and product of each."""
    text = (gzip.decompress(data.read_bytes()) if data.suffix == ".gz" else data.read_bytes()).decode()
    frames: Any = read(io.StringIO(text), ":", format="extxyz")
    return [frames[at : at + 3] for at in range(0, len(frames), 3)]


def one(number: int, ends: Sequence[Atoms], folder: Path, options: Sequence[str]) -> None:
    """A run between two structures, and what came of it, in `result.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, atoms in zip(("reactant", "product"), ends, strict=True):
        atoms.info = {"charge": 0, "spin": 0}
        write(folder / f"{name}.xyz", atoms, format="extxyz")
    jaxal = [sys.executable, "-m", "jaxal"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log:
        how: dict[str, Any] = {"cwd": folder, "env": environment, "stdout": log, "stderr": log}
        if not (folder / "run").exists():
            new = ["new", "reactant.xyz", "--reaction", "product.xyz", "--method", "GFN2-xTB", "--force"]
            subprocess.run([*jaxal, *new], check=True, **how)
            subprocess.run([*jaxal, "run", "reactant.yaml", "--dir", "run", *options], **how)
        else:
            subprocess.run([*jaxal, "resume", "run"], **how)
    result: dict[str, Any] = {"number": number, "atoms": len(ends[0]), "formula": ends[0].get_chemical_formula()}
    result |= answered(folder / "run", ends)
    (folder / "result.json").write_text(json.dumps(result) + "\n")
    print(json.dumps(result), flush=True)


def answered(run: Path, ends: Sequence[Atoms]) -> dict[str, Any]:
    """What a run says of its reaction, and GFN2-xTB of the saddle near that of the run; energies in kcal/mol."""
    records = read_metrics(run / METRICS)
    task = [record for record in records if record["kind"] == "task"]
    segments = [record for record in records if record["kind"] == "segment"]
    walls = [record["wall"] for record in records if "wall" in record]
    result = {
        "labels": (segments[-1]["labels"] if segments else 0) + (task[-1]["labels"] if task else 0),
        "minutes": round(max(walls, default=0.0) / 60, 1),
        "text": answers(records).get("system", {}).get("text"),
        "satisfied": bool(task and task[-1]["satisfied"]),
    }
    path = run / "task" / "saddle.xyz"
    if not (task and "forward" in task[-1] and path.exists()):
        return result
    learned: Any = read(path)
    result |= {name: task[-1][name] / KCAL_PER_MOL for name in ("forward", "error")}
    try:
        saddle, end = refined(expansion, Atoms(learned.symbols, learned.positions))
    except InputError as error:
        return result | {"own": None, "why": str(error)}
    start = ends[0].copy()
    start.calc = method()
    own = (float(end.energy[0]) - start.get_potential_energy()) / KCAL_PER_MOL
    moved = float(np.linalg.norm(saddle.positions - learned.positions, axis=-1).max())
    return result | {"own": own, "off": result["forward"] - own, "moved": moved}


def begin(chosen: Sequence[tuple[str, Sequence[Atoms]]], images: int = 11) -> None:
    """The highest image of GFN2-xTB on paths by pair potentials and on geodesics, kcal/mol."""
    for name, ends in chosen:
        heights = []
        for geodesic in (False, True):
            energies = []
            for image in between(ends, images, geodesic=geodesic):
                charge = image.info.get("charge", 0)
                image.calc = TBLite(method="GFN2-xTB", verbosity=0, charge=charge)
                with suppress(CalculationFailed):  # of what no molecule is
                    energies.append(image.get_potential_energy())
            heights.append((max(energies) - energies[0]) / KCAL_PER_MOL)
        print("{}: {:.1f} by pair potentials, {:.1f} on a geodesic".format(name, *heights), flush=True)


def table(folder: Path) -> None:
    """All results, and what they are together."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))]
    print("| reaction | | labels | minutes | barrier | GFN2-xTB's own | off |\n|---|---|---|---|---|---|---|")
    for r in results:
        numbers = "| {forward:.2f} ± {error:.2f} ".format(**r) if "forward" in r else f"| {r['text']} "
        own = f"| {r['own']:.2f} | {r['off']:+.3f} |" if r.get("own") is not None else "| | |"
        print(f"| {r['number']} | {r['formula']} | {r['labels']} | {r['minutes']} {numbers}{own}")
    known = [r for r in results if "off" in r]
    off = np.abs([r["off"] for r in known])
    labels = [r["labels"] for r in results]
    print(f"\n{len(known)} of {len(results)} saddles; labels {np.median(labels):.0f} (median); ", end="")
    if known:
        print(f"off by {np.median(off):.3f} kcal/mol (median), {off.max():.3f} at most")


def main() -> None:
    """Runs what is not there, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("dir", type=Path)
    parser.add_argument("--every", type=int, default=25)
    parser.add_argument("--number", type=int, default=40)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--set", nargs="*", default=[], metavar="key.sub=value")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--begin", action="store_true")
    arguments = parser.parse_args()
    if arguments.begin:
        every = reactions(arguments.data)[:: arguments.every][: arguments.number]
        begin([(str(arguments.every * at), [first, last]) for at, (first, _, last) in enumerate(every)])
        files = sorted((Path(__file__).parents[1] / "barriers").glob("*.xyz"))
        begin([(file.stem, read(file, ":")) for file in files])  # pyright: ignore[reportArgumentType]
        return
    if not arguments.table:
        chosen: list[tuple[int, list[Atoms]]] = []
        for number, (first, _, last) in enumerate(reactions(arguments.data)):
            if number % arguments.every or len(chosen) == arguments.number:
                continue
            ends = [relaxed(first), relaxed(last)]
            if all(end is not None for end in ends):
                chosen.append((number, ends))  # pyright: ignore[reportArgumentType]
            else:
                print(f"{number}: an end is no minimum of GFN2-xTB with its bonds, left out", flush=True)
        with ThreadPoolExecutor(arguments.jobs) as pool:
            for number, ends in chosen:
                folder = arguments.dir.resolve() / f"{number:04d}"
                if not (folder / "result.json").exists():
                    pool.submit(one, number, ends, folder, arguments.set)
    table(arguments.dir)


if __name__ == "__main__":
    main()
