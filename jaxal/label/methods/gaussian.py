"""Labels from Gaussian: density functionals and wavefunction methods in Gaussian basis sets, open systems."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np

from jaxal.core.registry import register
from jaxal.core.units import BOHR, HARTREE, Unit
from jaxal.data.electrons import symbol
from jaxal.label.scratch import arguments, check_program, in_scratch, program_version, run
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

# Other kinds of calculation, and what this file relies on.
OURS = re.compile(
    r"(opt|freq|force|scf|nosymm\w*|symm\w*|formcheck|fchk|irc|scan|admp|bomd|geom|polar|stable|units)\b.*", re.I
)


@register("labeler")
def gaussian(
    *,
    route: str,
    scf: Sequence[str] = ("Tight",),
    max_iterations: Annotated[int, Unit("", 1)] = 128,
    sections: Sequence[str] = (),
    nprocs: Annotated[int, Unit("", 1)] = 1,
    memory: Annotated[int, Unit("", 1)] = 2000,
    command: Sequence[str] = ("g16",),
    keep: str = "",
) -> Backend:
    """Any method of Gaussian that has a gradient; open systems only. Untested against the program itself.

    `route` is method, basis and further keywords, such as "wB97XD/def2TZVP Integral=SuperFine" or "PBE1PBE/def2SVP
    EmpiricalDispersion=GD3BJ"; `scf` holds the options of SCF, such as [Tight, XQC]. `sections` follow the atoms,
    each with an empty line after it, as Gen and GenECP want. `nprocs` threads share `memory` in MB. Environment
    variables of Gaussian (g16root, GAUSS_EXEDIR) are taken from where jaxal is started. `keep` is the folder for what
    failed calculations leave behind.

    Source: Frisch et al., Gaussian 16, Gaussian, Inc., Wallingford (2016); formatted checkpoint file: its manual.
    """
    words = arguments(command)
    keywords = " ".join(route.replace("#", " ").split()).removeprefix("P ").removeprefix("p ")
    if not keywords:
        raise LabelError("label.route: empty; give method and basis, such as 'wB97XD/def2TZVP'")
    for word in keywords.split():
        if OURS.fullmatch(word):
            raise LabelError(f"label.route: {word} follows from another option or is another kind of calculation")

    def check(task: Task) -> None:
        check_task(task)
        check_spin(task)
        check_open(task, "gaussian")
        check_program(words, "install Gaussian and load its environment, or give its path")

    def work(task: Task, folder: Path) -> Result:
        options = ",".join([*scf, f"MaxCycle={max_iterations}"])
        deck = _deck(task, [f"#P {keywords}", f"Force NoSymm FormCheck SCF=({options})"], sections, nprocs, memory)
        (folder / "gaussian.com").write_text(deck)
        finished = run(words, folder, folder / "gaussian.com")
        if "Convergence failure" in finished.output:
            return failed(task, f"the SCF did not converge in {max_iterations} iterations")
        if finished.failure or "Normal termination of Gaussian" not in finished.output:
            before, given_up, _ = finished.output.partition("Error termination")
            lines = [line.strip() for line in before.splitlines() if line.strip()]
            if not given_up or not lines:
                return failed(task, finished.failure or "gaussian did not end normally and gave no reason")
            # The cause stands before the line that says in which of its programs Gaussian gave up.
            return failed(task, f"gaussian: {lines[-1]}" + (f" ({finished.failure})" if finished.failure else ""))
        for path in folder.iterdir():  # Test.FChk by default
            if path.suffix.lower() == ".fchk":
                return _result(task, path)
        return failed(task, "gaussian wrote no formatted checkpoint file")

    def calculate(task: Task) -> Result:
        check(task)
        return in_scratch(task, "gaussian", keep, lambda folder: work(task, folder))

    return Backend(
        guarded(calculate),
        check,
        f"{keywords} scf={list(scf)!r} max_iterations={max_iterations!r} sections={list(sections)!r}",
        "Gaussian " + program_version(words, r"\n *Gaussian \d+: +(\S+)"),
    )


def _deck(task: Task, route: Sequence[str], sections: Sequence[str], nprocs: int, memory: int) -> str:
    atoms = [
        " ".join([f" {symbol(int(number))}", *(f"{value:.12f}" for value in place)])
        for number, place in zip(task.numbers, task.position, strict=True)
    ]
    head = [f"%nprocshared={nprocs}", f"%mem={memory}MB", "%chk=gaussian.chk", *route, "", "jaxal", ""]
    body = [f"{task.charge} {task.spin + 1}", *atoms, ""]
    for section in sections:
        body += [*section.strip().splitlines(), ""]
    return "\n".join([*head, *body, ""])


def _result(task: Task, path: Path) -> Result:
    """The label in a formatted checkpoint file, in Hartree and Bohr.

    The energy in it is that of the method whose gradient it holds, whatever the method: no need to know how the
    output spells the energies of all of them.
    """
    n = len(task.numbers)
    lines = path.read_text(errors="replace").splitlines()
    try:
        numbers = _array(lines, "Atomic numbers")
        position = _array(lines, "Current cartesian coordinates").reshape(-1, 3) * BOHR
        gradient = _array(lines, "Cartesian Gradient").reshape(-1, 3)
        energy = float(_field(lines, "Total Energy")[1])
    except (ValueError, IndexError) as error:
        return failed(task, f"{path.name} is not whole: {one_line(str(error))}")
    if not np.array_equal(numbers, task.numbers) or elsewhere(task, position):
        return failed(task, f"the atoms in {path.name} are not where they were put")
    if n > 1 and not gradient.any():  # what it writes where no gradient was calculated
        return failed(task, f"{path.name} holds no gradient")
    return answered(task, energy * HARTREE, -gradient * (HARTREE / BOHR))


def _field(lines: Sequence[str], name: str) -> tuple[int, str]:
    """Line number of an entry, and what stands behind its name and type. Raises ValueError where there is none."""
    for number, line in enumerate(lines):
        if line[:40].rstrip() == name:
            return number, line[44:].strip()
    raise ValueError(f"it has no {name}")


def _array(lines: Sequence[str], name: str) -> np.ndarray:
    """The numbers of an entry. Raises ValueError where there are fewer than it says."""
    start, size = _field(lines, name)
    count = int(size.removeprefix("N="))
    words: list[str] = []
    for line in lines[start + 1 :]:
        if len(words) >= count:
            break
        words += line.split()
    if len(words) != count:
        raise ValueError(f"{len(words)} numbers of {count} for {name}")
    return np.array(words, float)
