"""Labels from the program xtb: the GFN tight-binding methods, open systems."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from jaxal.core.registry import register
from jaxal.core.units import BOHR, HARTREE, Unit
from jaxal.data.electrons import symbol
from jaxal.label.methods.tblite import HEAVIEST, LANTHANIDES
from jaxal.label.scratch import arguments, check_program, in_scratch, program_version, run
from jaxal.label.task import (
    NO_STRESS,
    Backend,
    LabelError,
    Result,
    Task,
    check_open,
    check_spin,
    check_task,
    failed,
    guarded,
)

GFN = {"GFN2-xTB": "2", "GFN1-xTB": "1"}
COORDINATES = "coord"  # Turbomole's format, in Bohr: xtb reads it without a conversion of its own


@register("labeler")
def xtb(
    *,
    method: Literal["GFN2-xTB", "GFN1-xTB"] = "GFN2-xTB",
    accuracy: Annotated[float, Unit("", 0, True)] = 0.1,
    electronic_temperature: Annotated[float, Unit("K", 0)] = 300.0,
    max_iterations: Annotated[int, Unit("", 1)] = 250,
    solvent: str = "",
    command: Sequence[str] = ("xtb",),
    keep: str = "",
) -> Backend:
    """GFN tight binding by the program xtb; open systems only.

    For what the program has and the library `tblite` lacks; that is faster where both will do, as it starts no
    program. `accuracy` scales the SCF thresholds, `solvent` names an implicit ALPB solvent, such as "water". Open
    shells are not spin-polarized (triplet O2 lies above the singlet); `tblite` does that. The energy is the free
    energy at the electronic temperature, of which the forces are the gradient.
    `command` is a list of arguments, `keep` the folder for what failed calculations leave behind.

    Source: Bannwarth et al., WIREs Comput. Mol. Sci. 11, e1493 (2021).
    """
    words = arguments(command)

    def check(task: Task) -> None:
        check_task(task)
        for number in task.numbers:
            if not 1 <= number <= HEAVIEST:
                raise LabelError(f"label: {method} does not know {symbol(int(number))}; it ends at Rn (Z = {HEAVIEST})")
        check_spin(task, sum(57 if z in LANTHANIDES else int(z) for z in task.numbers))
        check_open(task, "xtb")
        check_program(words, "install xtb (Debian: apt-get install xtb) or give its path")

    def work(task: Task, folder: Path) -> Result:
        lines = [
            " ".join([*(f"{value:.15e}" for value in position / BOHR), symbol(int(number)).lower()])
            for number, position in zip(task.numbers, task.position, strict=True)
        ]
        (folder / COORDINATES).write_text("\n".join(["$coord", *lines, "$end", ""]))
        options = {
            "--gfn": GFN[method],
            "--chrg": str(task.charge),
            "--uhf": str(task.spin),
            "--acc": repr(accuracy),
            "--etemp": repr(electronic_temperature),
            "--iterations": str(max_iterations),
        } | ({"--alpb": solvent} if solvent else {})
        finished = run([*words, COORDINATES, "--grad", *(word for pair in options.items() for word in pair)], folder)
        if finished.failure:  # its last words on standard error are a backtrace; the cause is the last of these
            causes = re.findall(r"^-\d+- (.+)$", finished.output, re.MULTILINE)
            return failed(task, f"xtb: {causes[-1]}" if causes else finished.failure)
        return _result(task, folder / "gradient")

    def calculate(task: Task) -> Result:
        check(task)
        return in_scratch(task, "xtb", keep, lambda folder: work(task, folder))

    return Backend(
        guarded(calculate),
        check,
        f"{method} accuracy={accuracy!r} electronic_temperature={electronic_temperature!r} K "
        f"max_iterations={max_iterations!r} solvent={solvent or 'none'} not spin-polarized",
        "xtb " + program_version((*words, "--version"), r"xtb version (\S+)"),
    )


def _result(task: Task, path: Path) -> Result:
    """The label in a Turbomole `gradient` file: a title with the energy, n lines of positions, n of gradients."""
    n = len(task.numbers)
    lines = path.read_text().replace("D", "E").splitlines() if path.exists() else []
    if len(lines) < 2 * n + 3 or "energy =" not in lines[1]:
        return failed(task, "xtb ended well but wrote no gradient")
    energy = float(lines[1].partition("energy =")[2].split()[0])
    gradient = np.array([line.split() for line in lines[2 + n : 2 + 2 * n]], float)
    return Result(energy * HARTREE, -gradient * (HARTREE / BOHR), NO_STRESS.copy(), True, "", 0.0)
