"""A labeler that misbehaves on demand; the charge of the structure says how. Worker processes import it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
from ase.calculators.calculator import FileIOCalculator

from jaxal.core.registry import register
from jaxal.label.task import Backend, Result, Task

GOOD, DIES, HANGS, DIES_ONCE, RAISES, SPAWNS, HAS_JAX, NOT_FINITE, BLOWS_UP, CRIES, KILLS_PARENT = range(11)


@register("labeler")
def faulty(*, folder: str, build_error: str = "") -> Backend:
    """Misbehaves as the charge says, and notes every call in `folder`."""
    if build_error and build_error == os.environ.get("OMP_NUM_THREADS"):  # in a worker only
        raise RuntimeError("no license")
    calls = Path(folder) / "calls"

    def calculate(task: Task) -> Result:
        with calls.open("a") as file:
            file.write(f"{task.charge} {os.getpid()}\n")
        n = len(task.numbers)
        energy = float(np.sum(task.position))
        force = np.zeros((n, 3))
        match task.charge:
            case c if c == DIES or (c == DIES_ONCE and calls.read_text().count(f"{DIES_ONCE} ") == 1):
                os.kill(os.getpid(), signal.SIGKILL)
            case c if c == HANGS:
                time.sleep(600)
            case c if c == RAISES:
                raise RuntimeError("this backend\nbreaks its promise")
            case c if c == SPAWNS:
                child = subprocess.Popen(["sleep", "600"])
                (Path(folder) / "child").write_text(str(child.pid))
                time.sleep(600)
            case c if c == HAS_JAX:
                energy = float("jax" in sys.modules)
            case c if c == NOT_FINITE:
                energy = float("nan")
            case c if c == BLOWS_UP:
                force = np.full((n, 3), 1e4)
            case c if c == KILLS_PARENT:
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(600)
            case c if c == CRIES:
                print("first line\nout of memory in block 7", file=sys.stderr, flush=True)
                os._exit(3)
        return Result(energy, force, np.zeros((3, 3)), True, "", 0.0)

    return Backend(calculate, lambda task: None, "faulty", "1")


class FileCalculator(FileIOCalculator):
    """Writes its input, runs a program in its folder, reads what that wrote, as most codes behind ASE do."""

    implemented_properties: ClassVar = ["energy", "forces"]  # pyright: ignore

    def __init__(self):
        super().__init__(command="cat input >> history && wc -l < history > output")

    def write_input(self, atoms, properties=None, system_changes=None):
        super().write_input(atoms, properties, system_changes)
        (Path(self.directory) / "input").write_text(f"{len(atoms)}\n")

    def read_results(self):
        energy = float((Path(self.directory) / "output").read_text())
        self.results = {"energy": energy, "forces": np.zeros((len(self.atoms or ()), 3))}
