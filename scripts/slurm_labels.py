"""Labels over a real Slurm whose jobs are canceled in mid-run: none may be lost, and none be paid for without need.

    python scripts/slurm_labels.py [--gfn2 40] [--qe 8]

It brings up a Slurm of one node (slurm_one_node.py: root, Debian's slurm-wlm and munge) and labels water clusters with
GFN2-xTB, then silicon with Quantum ESPRESSO, through the executor `slurm`, two labels at a time. When a quarter of a
method's labels are in the store and others at work, the job is canceled with scancel. Every label must be in the store;
what was calculated is counted by the labeler itself, in a file, and may exceed the labels by those that were cut off.

The last line is the verdict; the exit status is 0 if all held.
"""

import argparse
import collections
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import slurm_counted  # noqa: F401  registers
from ase import Atoms
from ase.build import bulk, molecule
from slurm_one_node import missing, one_node

from jaxal.data.structure import from_atoms, species_table
from jaxal.label.service import label_service
from jaxal.label.workers.cluster import slurm
from jaxal.label.workers.executor import Executor, Recipe, Setting

WORKERS = 2
PSEUDO = Path("/usr/share/espresso/pseudo/Si.pz-vbc.UPF")
WATERS = 15


def clusters() -> Atoms:
    """Water molecules on a grid: about a second of GFN2."""
    cluster = Atoms()
    for place in np.ndindex(3, 3, 3):
        if len(cluster) < 3 * WATERS:
            water = molecule("H2O")
            water.translate(3.1 * np.array(place))
            cluster += water
    return cluster


def labeled(name: str, recipe: Recipe, whole: Atoms, number: int, size: float, folder: Path) -> list[str]:
    """Labels so many copies, rattled by `size` Å, and cancels the job in between; says what happened, gives faults."""
    copies = [whole.copy() for _ in range(number)]
    for seed, copy in enumerate(copies):
        copy.rattle(size, seed=seed)
    table = species_table([whole])
    structures = from_atoms(copies, table, dtype=np.float64)
    folder.mkdir()
    wrong = []
    log = Path(recipe.options["log"])

    def executor(recipe: Recipe, timeout: float | None) -> Executor:
        opened = slurm(partition="debug", workers=WORKERS, lost_after=6.0, walltime=600.0, memory=None)
        return opened(Setting(recipe, timeout, 0, folder))

    began = time.monotonic()
    service = label_service(
        recipe,
        table=table,
        store=folder / "labels.sqlite",
        executor=executor,
        timeout=120.0,
        max_force=np.inf,
        net_force=np.inf,
    )
    answer: list[Any] = []
    thread = threading.Thread(target=lambda: answer.append(service.label(structures, np.ones(number, bool))))
    try:
        thread.start()
        until(lambda: (service.store.counts()["done"] >= number // 4 and at_work(log)) or not thread.is_alive())
        jobs = output("squeue", "-h", "-t", "R", "-o", "%i").split()
        before = service.store.counts()["done"]
        output("scancel", *jobs)
        canceled = time.monotonic()
        until(lambda: not output("squeue", "-h", "-j", *jobs).strip())
        dead = service.store.counts()["done"]
        until(lambda: service.store.counts()["done"] > dead or not thread.is_alive())
        again = time.monotonic() - canceled
        thread.join()
    finally:
        service.close()
    counts = collections.Counter()
    begun: collections.Counter[str] = collections.Counter()
    used = set()
    for what, which, job in (line.split() for line in log.read_text().splitlines()):
        counts[what] += 1
        begun[which] += what == "begun"
        used.add(job)
    lost = [line for path in folder.rglob("lost.log") for line in path.read_text().splitlines()]
    good = int(answer[0].ok.sum())
    if good != number or len(begun) != number:
        reasons = sorted({record.reason for record in service.drain() if not record.ok})
        wrong.append(f"{number - good} labels are missing: {'; '.join(reasons)}")
    if len(jobs) != 1 or len(used) < 2:
        wrong.append(f"{len(jobs)} jobs were canceled and {len(used)} calculated: nothing was tested")
    if not before < number:
        wrong.append("the cancel came after the last label")
    if not 1 <= len(lost) <= WORKERS:
        wrong.append(f"{len(lost)} labels were lost with one job of {WORKERS}")
    if counts["begun"] > number + len(lost) or max(begun.values()) > 2:
        wrong.append(f"{counts['begun']} calculations for {number} labels of which {len(lost)} were lost")
    print(
        f"{name}: {good} of {number} labels, {counts['begun']} calculations begun and {counts['ended']} ended; job "
        f"{'+'.join(jobs)} canceled after {before} labels, {len(lost)} lost, the next label {again:.1f} s later; "
        f"{time.monotonic() - began:.1f} s in all",
        flush=True,
    )
    left = output("squeue", "-h").strip()
    return [*wrong, *([f"a job is left: {left}"] if left and not gone() else [])]


def at_work(log: Path) -> bool:
    """Whether a calculation has begun that has not ended."""
    text = log.read_text() if log.exists() else ""
    return text.count("begun") > text.count("ended")


def gone() -> bool:
    """Whether the queue is empty within some seconds."""
    end = time.monotonic() + 10.0
    while output("squeue", "-h").strip():
        if time.monotonic() > end:
            return False
        time.sleep(0.2)
    return True


def until(holds: Any, patience: float = 120.0) -> None:
    """Waits until it holds. Raises TimeoutError."""
    end = time.monotonic() + patience
    while not holds():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {patience:g} s in vain")
        time.sleep(0.05)


def output(*command: str) -> str:
    """What one of Slurm's commands says."""
    return subprocess.run(command, capture_output=True, text=True).stdout


def main() -> int:
    """Runs what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gfn2", type=int, default=40, help="labels with GFN2-xTB")
    parser.add_argument("--qe", type=int, default=8, help="labels with Quantum ESPRESSO")
    arguments = parser.parse_args()
    if why := missing():
        sys.exit(why)
    qe = {"pseudopotentials": {"Si": str(PSEUDO)}, "ecutwfc": 16.0, "k_points": [4, 4, 4]}
    cases = {
        "GFN2-xTB": ("tblite", {}, clusters(), arguments.gfn2, 0.05),
        "Quantum ESPRESSO": ("espresso", qe, bulk("Si", "diamond", 5.43), arguments.qe, 0.03),
    }
    wrong, parts = [], []
    with one_node(WORKERS) as where, tempfile.TemporaryDirectory(prefix="jaxal-slurm-") as folder:
        os.environ.update(where)
        for name, (labeler, options, whole, number, size) in cases.items():
            if not number:
                continue
            log = str(Path(folder) / f"{labeler}.log")
            recipe = Recipe("counted", {"log": log, "of": labeler, "options": options})
            problems = labeled(name, recipe, whole, number, size, Path(folder) / labeler)
            wrong += [f"{name}: {each}" for each in problems]
            parts.append(f"{number} {name}")
    for each in wrong:
        print(each)
    verdict = "FAILED" if wrong else "PASSED"
    print(f"{verdict}: {' and '.join(parts)} labels over Slurm, a job of each canceled, {len(wrong)} problems")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
