"""Labels from ABINIT: plane waves with pseudopotentials or PAW; crystals, slabs, wires and molecules in a box."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from jaxal.core.registry import register
from jaxal.core.units import BOHR, HARTREE, Unit
from jaxal.data.electrons import symbol
from jaxal.label.cells import check_cell, in_box, mesh_of
from jaxal.label.pseudopotential import valence
from jaxal.label.scratch import Finished, arguments, check_program, contents, in_scratch, program_version, run
from jaxal.label.task import (
    NO_STRESS,
    Backend,
    LabelError,
    Result,
    Task,
    check_spin,
    check_task,
    failed,
    guarded,
    one_line,
    periodic,
)

OCCOPT = {"gaussian": 7, "mp": 6, "mv": 4, "fd": 3}  # ABINIT's numbers of the smearings
# What follows from the structure and the other options, or what this file relies on. ABINIT knows some by two names.
OURS = {"acell", "rprim", "angdeg", "natom", "ntypat", "typat", "znucl", "xcart", "xred", "xangst", "pseudos"} | {
    *("pp_dirpath", "ecut", "pawecutdg", "kptopt", "ngkpt", "kptrlatt", "nshiftk", "shiftk", "kpt", "nkpt", "occopt"),
    *("tsmear", "occ", "charge", "cellcharge", "nsppol", "nspden", "nspinor", "spinmagntarget", "spinat", "nstep"),
    *("tolvrs", "toldfe", "toldff", "tolrff", "tolwfr", "optforces", "optstress", "ionmov", "optcell", "ndtset"),
    *("optdriver", "nsym", "chksymbreak", "chksymtnons", "prtwf", "prtden", "jdtset", "nimage"),
}


@register("labeler")
def abinit(
    *,
    pseudopotentials: Mapping[str, Path],
    ecut: Annotated[float, Unit("Ha", 0, True)],
    pawecutdg: Annotated[float | None, Unit("Ha", 0, True)] = None,
    k_spacing: Annotated[float, Unit("1/Å", 0, True)] = 0.25,
    k_points: tuple[int, int, int] | None = None,
    smearing: Literal["none", "gaussian", "mp", "mv", "fd"] = "mv",
    smearing_width: Annotated[float, Unit("eV", 0, True)] = 0.1,
    toldfe: Annotated[float, Unit("Ha", 0, True)] = 1e-10,
    max_iterations: Annotated[int, Unit("", 1)] = 100,
    box: Annotated[float | None, Unit("Å", 0, True)] = None,
    input_data: Mapping[str, Any] | None = None,
    command: Sequence[str] = ("abinit",),
    keep: str = "",
) -> Backend:
    """Density functional theory by ABINIT; crystals, slabs and wires, or a molecule in a box.

    `pseudopotentials` are files in a format that ABINIT reads (psp8, fhi, UPF, PAW in XML, ...), `{Si: Si.psp8}`; they
    choose the functional, and their contents are part of a label's key. `ecut` is in Ha, as everywhere with this
    program, and so is `pawecutdg`, the cutoff of the fine grid that PAW needs. The mesh of k-points around Γ has at
    least the density `k_spacing`, or is `k_points`; symmetry is not used. The SCF ends where the energy changes by
    less than `toldfe`, twice in a row. `input_data` adds variables, such as `{vdw_xc: 7, vdw_tol: 1e-10}`. With
    unpaired electrons the calculation is spin-polarized with that magnetization. The energy is the free energy of the
    smeared electrons, of which the forces are the gradient.

    A molecule is refused unless `box` gives the edge of a cube that it is put into, the same for all structures; it is
    periodic there, so a charged one converges slowly with the box. A slab needs a vacuum of at least 8 Å in its cell
    and has one k-point across it; the field of one with two different sides stays.
    `command` is a list of arguments, such as [mpirun, -np, '4', abinit]; `keep` is the folder for what failed
    calculations leave behind.

    Source: Gonze et al., Comput. Phys. Commun. 248, 107042 (2020).
    """
    words = arguments(command)
    files = {element: Path(file) for element, file in sorted(pseudopotentials.items())}
    hashes = contents(list(files.values()), "label.pseudopotentials")
    extra = _variables(input_data or {})

    def electrons(task: Task) -> int:
        """Valence electrons of the neutral atoms. Raises LabelError for an element without a pseudopotential."""
        count = 0.0
        for number in task.numbers:
            element = symbol(int(number))
            if element not in files:
                raise LabelError(f"label.pseudopotentials: none for {element}; give {{{element}: FILE}}")
            per_atom = valence(files[element])
            if per_atom is None:
                raise LabelError(
                    f"label.pseudopotentials.{element}: {files[element].name} does not say how many valence electrons "
                    "there are; give a file in one of ABINIT's formats, such as psp8"
                )
            count += per_atom
        return round(count)

    def check(task: Task) -> None:
        check_task(task)
        check_spin(task)
        check_spin(task, electrons(task))
        check_cell(task, box, k_points)
        used = {files[symbol(int(number))] for number in task.numbers}
        paw = sorted(file.name for file in used if file.suffix.lower() == ".xml")
        if paw and pawecutdg is None:
            raise LabelError(
                f"label.pawecutdg: {paw[0]} is PAW, which needs a finer grid; give a cutoff in Ha above ecut"
            )
        check_program(words, "install ABINIT (Debian: apt-get install abinit) or give its path")

    def work(task: Task, folder: Path) -> Result:
        placed = in_box(task, box)
        mesh = mesh_of(task, k_points, k_spacing)
        if np.linalg.det(placed.cell) < 0:  # ABINIT refuses a left-handed cell
            placed, mesh = placed._replace(cell=placed.cell[[1, 0, 2]]), (mesh[1], mesh[0], mesh[2])
        elements = [symbol(number) for number in sorted(set(task.numbers.tolist()))]
        names = [f"{element}{files[element].suffix}" for element in elements]  # its suffix tells ABINIT the format
        for element, name in zip(elements, names, strict=True):
            shutil.copyfile(files[element], folder / name)
        values = {
            "pseudos": f'"{", ".join(names)}"',
            "ecut": ecut,
            **({} if pawecutdg is None else {"pawecutdg": pawecutdg}),
            "kptopt": 2,  # k and -k are the same, and no other symmetry: forces are those of these very positions
            "ngkpt": mesh,
            "nshiftk": 1,
            "shiftk": (0, 0, 0),
            "nsym": 1,
            "chksymbreak": 0,
            "chksymtnons": 0,
            "cellcharge": task.charge,
            **_occupations(task, electrons(task) - task.charge, smearing, smearing_width),
            # Not tolvrs: where one spin is rare in a vacuum the residual of the potential is noise. Not toldff: forces
            # that vanish by symmetry would end the SCF at once.
            "toldfe": toldfe,
            "nstep": max_iterations,
            "optforces": 1,
            "optstress": 1,
            "prtwf": 0,
            "prtden": 0,
        }
        (folder / "abinit.abi").write_text(_deck(placed, values | extra), encoding="utf-8")
        finished = run([*words, "abinit.abi"], folder)
        report = folder / "abinit.abo"
        said = report.read_text(encoding="utf-8", errors="replace") if report.exists() else ""
        if reason := _objection(finished, said, max_iterations):
            return failed(task, reason)
        return _result(task, said)

    def calculate(task: Task) -> Result:
        check(task)
        return in_scratch(task, "abinit", keep, lambda folder: work(task, folder))

    mesh = f"k_points={tuple(k_points)!r}" if k_points else f"k_spacing={k_spacing!r} 1/Å"
    return Backend(
        guarded(calculate),
        check,
        f"ABINIT pseudopotentials={','.join(files)}:{hashes} ecut={ecut!r} Ha pawecutdg={pawecutdg!r} Ha {mesh} "
        f"smearing={smearing} {smearing_width!r} eV toldfe={toldfe!r} Ha max_iterations={max_iterations!r} "
        f"box={box!r} Å input_data={json.dumps(extra, sort_keys=True)} spin-polarized if open-shell",
        "ABINIT " + program_version((*words, "--version"), r"(?m)^(\d+\.\d+\S*)\s*$"),
    )


def _variables(input_data: Mapping[str, Any]) -> dict[str, Any]:
    """`input_data` in lower case. Raises LabelError for what ABINIT or this file would not understand."""
    variables = {str(name).lower(): value for name, value in input_data.items()}
    for name, value in variables.items():
        if not re.fullmatch(r"[a-z]\w*", name):
            raise LabelError(f"label.input_data.{name}: no variable of ABINIT; give letters, digits and _")
        if name in OURS:
            raise LabelError(f"label.input_data.{name}: it follows from the structure or another option; leave it out")
        for each in value if isinstance(value, list | tuple) else [value]:
            if isinstance(each, bool) or not (
                isinstance(each, int | float) or (isinstance(each, str) and re.fullmatch(r"[^\n\"#!]+", each))
            ):
                raise LabelError(f"label.input_data.{name}: {each!r} does not fit; give numbers or a text of one line")
    return variables


def _occupations(task: Task, count: int, smearing: str, width: float) -> dict[str, Any]:
    """Who has the `count` electrons."""
    up, down = (count + task.spin) // 2, (count - task.spin) // 2
    polarized: dict[str, Any] = {}
    if task.spin:
        start = task.spin / len(task.numbers)
        polarized = {"nsppol": 2, "spinat": [0, 0, start] * len(task.numbers)}
    if smearing == "none":
        if not task.spin:
            return {"occopt": 1}
        ones = [1] * (up + down)
        return polarized | {"occopt": 0, "nband": up, "occ": ones + [0] * (up - down)}
    # With the few empty bands that ABINIT adds by itself, the SCF of a small metal creeps.
    smeared = {"occopt": OCCOPT[smearing], "tsmear": width / HARTREE, "nband": up + max(4, up // 5)}
    if task.spin:
        smeared |= {"spinmagntarget": task.spin}
        # ABINIT 9.6 miscounts the electrons it begins with where all spins are up and there are more bands than that.
        smeared |= {} if down else {"nband": up}
    return polarized | smeared


def _deck(task: Task, values: Mapping[str, Any]) -> str:
    """ABINIT's input for a structure that has a cell."""
    kinds = sorted(set(task.numbers.tolist()))
    lines = ["acell 1 1 1", "rprim"]
    lines += [" ".join(f"{value:.15e}" for value in row / BOHR) for row in task.cell]
    lines += [f"natom {len(task.numbers)}", f"ntypat {len(kinds)}", "znucl " + " ".join(map(str, kinds)), "typat"]
    lines += [str(kinds.index(number) + 1) for number in task.numbers.tolist()]
    lines += ["xcart", *(" ".join(f"{value:.15e}" for value in place / BOHR) for place in task.position)]
    for name, value in values.items():
        several = value if isinstance(value, list | tuple) else [value]
        # One to a line: ABINIT cuts off what is longer than 264 characters.
        lines += (
            [name, *(str(each) for each in several)] if len(several) > 3 else [f"{name} {' '.join(map(str, several))}"]
        )
    return "\n".join(lines) + "\n"


def _objection(finished: Finished, said: str, max_iterations: int) -> str:
    """Why the calculation gave nothing. An SCF that did not converge is a mere warning to ABINIT."""
    if re.search(r"was not enough SCF cycles to converge", said):
        return f"the SCF did not converge in {max_iterations} iterations"
    if match := re.search(
        r"^--- !(?:ERROR|BUG)\n.*?^message: \|\n(.*?)^\.\.\.", finished.output, re.MULTILINE | re.DOTALL
    ):
        return one_line(f"abinit: {match[1]}")
    return finished.failure or ("" if "Calculation completed" in said else "abinit did not finish")


def _result(task: Task, said: str) -> Result:
    """The label in ABINIT's main output, in Hartree and Bohr, with tension positive as here."""
    n = len(task.numbers)
    energies = re.findall(r"^ ETOT +\d+ +(\S+)", said, re.MULTILINE)  # with the entropy term
    table = said.partition("cartesian forces (hartree/bohr) at end:")[2]
    forces = re.findall(r"^ +\d+ +(\S+) +(\S+) +(\S+) *$", table, re.MULTILINE)[:n]
    stress = re.search(r"^ +strten((?:\s+[-+\dE.]+){6})", said, re.MULTILINE)
    if not energies or len(forces) < n or not stress:
        return failed(task, "abinit printed no energy, no forces or no stress")
    tensor = NO_STRESS.copy()
    if periodic(task):
        xx, yy, zz, yz, xz, xy = np.array(stress[1].split(), float) * (HARTREE / BOHR**3)
        tensor = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    return Result(float(energies[-1]) * HARTREE, np.array(forces, float) * (HARTREE / BOHR), tensor, True, "", 0.0)
