"""Labels from ORCA: density functionals and wavefunction methods in Gaussian basis sets, open systems."""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np

from jaxal.core.registry import register
from jaxal.core.units import BOHR, HARTREE, Unit
from jaxal.data.electrons import symbol
from jaxal.label.scratch import LAUNCHERS, arguments, check_program, in_scratch, program_version, run
from jaxal.label.task import (
    Backend,
    LabelError,
    Result,
    Task,
    answered,
    check_open,
    check_spin,
    check_task,
    elsewhere,
    failed,
    guarded,
    one_line,
)

# Other kinds of calculation: they move the atoms, or give no gradient.
KINDS = re.compile(r"sp|energy|opt|[a-z]*opt|optts|copt|[a-z]*freq|md|neb(-\w+)?|irc|scants|goat|pal\d+", re.I)
BLOCKS = re.compile(r"%\s*(pal|maxcore|coords|geom|base|md|neb|compound)\b|\*|!|\$new_job", re.I)


@register("labeler")
def orca(
    *,
    keywords: str,
    blocks: Sequence[str] = (),
    max_iterations: Annotated[int, Unit("", 1)] = 125,
    nprocs: Annotated[int, Unit("", 1)] = 1,
    memory: Annotated[int, Unit("", 1)] = 2000,
    command: Sequence[str] = ("orca",),
    keep: str = "",
) -> Backend:
    """Any method of ORCA that has a gradient; open systems only. Untested against the program itself.

    `keywords` is ORCA's simple input, such as "wB97X-D3 def2-TZVP TightSCF"; def2 basis sets bring their core
    potentials, and open shells are unrestricted unless the keywords say otherwise. `blocks` are further lines, such
    as ["%cpcm epsilon 78.4 end"]. `nprocs` processes are started by ORCA itself, each with `memory` in MB; it must
    then be called by its full path, which is found here. `keep` is the folder for what failed calculations leave
    behind.

    Source: Neese, WIREs Comput. Mol. Sci. 12, e1606 (2022).
    """
    words = _in_full(arguments(command))
    if os.path.basename(words[0]) in LAUNCHERS:
        raise LabelError(f"label.command: ORCA starts {words[0]} by itself; give label.nprocs and ORCA's own path")
    simple = " ".join(keywords.replace("!", " ").split())
    for word in simple.split():
        if KINDS.fullmatch(word):
            raise LabelError(f"label.keywords: {word} is another kind of calculation; give method, basis, accuracy")
    if not simple:
        raise LabelError("label.keywords: empty; give method and basis, such as 'wB97X-D3 def2-TZVP TightSCF'")
    for line in blocks:
        if BLOCKS.match(line.strip()):
            raise LabelError(f"label.blocks: {line.strip()!r} follows from the structure or another option; drop it")

    def check(task: Task) -> None:
        check_task(task)
        check_spin(task)
        check_open(task, "orca")
        check_program(words, "install ORCA or give its full path")

    def work(task: Task, folder: Path) -> Result:
        (folder / "orca.inp").write_text(_deck(task, simple, blocks, max_iterations, nprocs, memory))
        finished = run([*words, "orca.inp"], folder)
        if match := re.search(r"SCF NOT CONVERGED AFTER +(\d+)", finished.output):
            return failed(task, f"the SCF did not converge in {match[1]} iterations")
        # It is no crash for ORCA to give up: its exit status may be 0, so these words decide.
        if finished.failure or "ORCA TERMINATED NORMALLY" not in finished.output:
            said = re.findall(r"^.*(?:error|abort|impossible).*$", finished.output, re.MULTILINE | re.IGNORECASE)
            if not said:
                return failed(task, finished.failure or "orca did not end normally and gave no reason")
            ended = f" ({finished.failure})" if finished.failure else ""
            return failed(task, f"orca: {said[0].strip(' *[]')}{ended}")
        return _result(task, folder / "orca.engrad")

    def calculate(task: Task) -> Result:
        check(task)
        return in_scratch(task, "orca", keep, lambda folder: work(task, folder))

    return Backend(
        guarded(calculate),
        check,
        f"{simple} blocks={[one_line(line) for line in blocks]!r} max_iterations={max_iterations!r}",
        "ORCA " + program_version((*words, "no-such-input"), r"Program Version (\S+)"),
    )


def _in_full(words: tuple[str, ...]) -> tuple[str, ...]:
    """The command with ORCA, its last word, by the path of the file itself: beside it ORCA seeks its other programs."""
    path = shutil.which(words[-1])
    return (*words[:-1], os.path.realpath(path) if path else words[-1])


def _deck(task: Task, simple: str, blocks: Sequence[str], iterations: int, nprocs: int, memory: int) -> str:
    atoms = [
        " ".join([f"  {symbol(int(number))}", *(f"{value:.12f}" for value in place)])
        for number, place in zip(task.numbers, task.position, strict=True)
    ]
    return "\n".join(
        [
            # Without SCFConvForced ORCA goes on to the gradient of an SCF that is only nearly converged.
            f"! {simple} EnGrad SCFConvForced",
            f"%maxcore {memory}",
            *([f"%pal nprocs {nprocs} end"] if nprocs > 1 else []),
            f"%scf MaxIter {iterations} end",
            *blocks,
            f"* xyz {task.charge} {task.spin + 1}",
            *atoms,
            "*",
            "",
        ]
    )


def _result(task: Task, path: Path) -> Result:
    """The label in an .engrad file, in Hartree and Bohr: atoms, energy, gradient, then elements with positions."""
    n = len(task.numbers)
    text = path.read_text(errors="replace") if path.exists() else ""
    values = [word for line in text.splitlines() if not line.lstrip().startswith("#") for word in line.split()]
    if len(values) != 2 + 3 * n + 4 * n or int(values[0]) != n:
        return failed(task, f"orca wrote no whole {path.name}")
    atoms = np.array(values[2 + 3 * n :], float).reshape(n, 4)
    if np.any(atoms[:, 0] != task.numbers) or elsewhere(task, atoms[:, 1:] * BOHR):
        return failed(task, f"the atoms in {path.name} are not those of the input")
    gradient = np.array(values[2 : 2 + 3 * n], float).reshape(n, 3)
    return answered(task, float(values[1]) * HARTREE, -gradient * (HARTREE / BOHR))
