"""Labels from NWChem: density functionals and Hartree–Fock in Gaussian basis sets, open systems."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from jaxal.core.registry import register
from jaxal.core.units import BOHR, HARTREE, Unit
from jaxal.data.electrons import symbol
from jaxal.label.scratch import arguments, check_program, in_scratch, program_version, run
from jaxal.label.task import (
    NO_STRESS,
    OPEN,
    Backend,
    LabelError,
    Result,
    Task,
    check_open,
    check_spin,
    check_task,
    failed,
    guarded,
    one_line,
)

KRYPTON = 36  # the last element whose def2 basis sets hold all electrons
DISPERSION = {"none": [], "d3zero": ["  disp vdw 3"], "d3bj": ["  disp vdw 4"]}
# What NWChem says of an input that it cannot run, before it calculates anything.
REFUSALS = ("There is an error in the input file", "There is an error in the specified basis set")


@register("labeler")
def nwchem(
    *,
    xc: str = "pbe0",
    basis: str = "def2-svp",
    ecp: Mapping[str, str] | None = None,
    dispersion: Literal["none", "d3zero", "d3bj"] = "none",
    grid: Literal["medium", "fine", "xfine", "huge"] = "xfine",
    conv_tol: Annotated[float, Unit("Ha", 0, True)] = 1e-8,
    max_iterations: Annotated[int, Unit("", 1)] = 100,
    lines: Sequence[str] = (),
    memory: Annotated[int, Unit("", 1)] = 2000,
    command: Sequence[str] = ("nwchem",),
    keep: str = "",
) -> Backend:
    """DFT in Gaussian basis sets by NWChem; open systems only.

    `xc` is what stands after that word in NWChem's input: "pbe0", "b3lyp", "HFexch" for Hartree–Fock. `basis` is
    one of its library, with spherical functions. Core potentials must be named, `ecp: {I: def2-ecp}`: NWChem adds
    none by itself. `lines` are further ones for the block `dft`. Spin-unrestricted where electrons are unpaired.
    NWChem prints gradients to 3e-5 eV/Å, and without the response of the grid: a coarser grid leaves a net force.
    `memory` is in MB for each process, `command` a list of arguments such as [mpirun, -np, '2', nwchem], `keep`
    the folder for what failed calculations leave behind.

    Source: Aprà et al., J. Chem. Phys. 152, 184102 (2020).
    """
    words = arguments(command)
    cores = dict(sorted((ecp or {}).items()))
    known: set[tuple[int, ...]] = set()  # elements that NWChem has accepted

    def check(task: Task) -> None:
        check_task(task)
        check_spin(task)
        check_open(task, "nwchem")
        elements = tuple(sorted(set(task.numbers.tolist())))
        for number in elements:
            if number > KRYPTON and basis.lower().startswith("def2") and symbol(number) not in cores:
                raise LabelError(
                    f"label.ecp: {basis} needs one for {symbol(number)}; give {{{symbol(number)}: def2-ecp}}"
                )
        check_program(words, "install NWChem (Debian: apt-get install nwchem) or give its path")
        if elements not in known:
            _check_input(elements)
            known.add(elements)

    def _check_input(elements: tuple[int, ...]) -> None:
        """Runs one iteration for atoms far apart: NWChem looks at basis and functional only when it needs them."""
        n = len(elements)
        position = np.zeros((n, 3))
        position[:, 0] = 10.0 * np.arange(n)
        atoms = Task(np.array(elements), position, *OPEN, 0, sum(elements) % 2)

        def work(folder: Path) -> Result:
            (folder / "nwchem.nw").write_text(deck(atoms, 1) + "task dft energy\n")
            output = run([*words, "nwchem.nw"], folder).output
            return failed(atoms, _cause(output))._replace(ok=not any(refusal in output for refusal in REFUSALS))

        answer = in_scratch(atoms, "nwchem", keep, work)
        if not answer.ok:
            raise LabelError(
                f"label: NWChem refuses {xc}/{basis} for {', '.join(map(symbol, elements))}: {answer.reason}"
            )

    def deck(task: Task, iterations: int) -> str:
        atoms = [
            " ".join([f"  {symbol(int(number))}", *(f"{value:.12f}" for value in place)])
            for number, place in zip(task.numbers, task.position, strict=True)
        ]
        potentials = [f"  {element} library {core}" for element, core in cores.items()]
        here = {symbol(int(number)) for number in task.numbers}
        potentials = [line for line in potentials if line.split()[0] in here]
        return "\n".join(
            [
                "start jaxal",
                f"memory total {memory} mb",
                f"charge {task.charge}",
                # The forces must be those of the atoms as they stand: no turning, no shifting, no symmetry.
                "geometry units angstrom noautosym nocenter noautoz",
                *atoms,
                "end",
                # Cartesian functions are NWChem's default and no other program's: 41 meV off for water.
                "basis spherical noprint",
                f"  * library {basis}",
                "end",
                *(["ecp", *potentials, "end"] if potentials else []),
                "dft",
                f"  xc {xc}",
                f"  mult {task.spin + 1}",
                *(["  odft"] if task.spin else []),
                f"  grid {grid}",
                f"  iterations {iterations}",
                f"  convergence energy {conv_tol:.3e}",
                *DISPERSION[dispersion],
                *(f"  {line}" for line in lines),
                "end",
                "",
            ]
        )

    def work(task: Task, folder: Path) -> Result:
        (folder / "nwchem.nw").write_text(deck(task, max_iterations) + "task dft gradient\n")
        finished = run([*words, "nwchem.nw"], folder)
        if "Calculation failed to converge" in finished.output:
            return failed(task, f"the SCF did not converge in {max_iterations} iterations")
        if finished.failure:
            return failed(task, f"nwchem: {_cause(finished.output)} ({finished.failure})")
        return _result(task, finished.output)

    def calculate(task: Task) -> Result:
        check(task)
        return in_scratch(task, "nwchem", keep, lambda folder: work(task, folder))

    version = program_version((*words, "{input}"), r"\(NWChem\) (\S+)", "start version\n")
    return Backend(
        guarded(calculate),
        check,
        f"{one_line(xc)}/{basis} ecp={cores!r} dispersion={dispersion} grid={grid} conv_tol={conv_tol!r} Ha "
        f"max_iterations={max_iterations!r} lines={list(lines)!r} unrestricted if open-shell",
        f"NWChem {version}",
    )


def _cause(output: str) -> str:
    """What NWChem says first when it gives up: the line after the first ruler of its error message, or before it."""
    located = re.search(r"^ *bas_tag_lib: failed to locate.*$", output, re.MULTILINE)
    match = re.search(r"^ -{60,}\n (.+?) +-?\d+ *\n -{60,}$", output, re.MULTILINE)
    return one_line(located[0] if located else match[1] if match else "it gave no reason")


def _result(task: Task, output: str) -> Result:
    """The label in NWChem's output, in Hartree and Bohr."""
    n = len(task.numbers)
    # With a dispersion correction this line includes it.
    energies = re.findall(r"Total DFT energy = +(\S+)", output)
    table = output.partition("DFT ENERGY GRADIENTS")[2]
    rows = re.findall(r"^ +\d+ +\S+((?: +-?\d+\.\d+){6})$", table, re.MULTILINE)[:n]
    if not energies or len(rows) < n:
        return failed(task, "nwchem printed no energy or no gradient")
    gradient = np.array([row.split()[3:] for row in rows], float)
    force = -gradient * (HARTREE / BOHR)
    return Result(float(energies[-1]) * HARTREE, force, NO_STRESS.copy(), True, "", 0.0)
