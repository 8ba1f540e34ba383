"""Labels from VASP: plane waves and projector-augmented waves; crystals, slabs, wires and molecules in a box."""

import json
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from jaxal.core.registry import register
from jaxal.core.units import GPA, Unit
from jaxal.data.electrons import symbol
from jaxal.label.cells import check_cell, in_box, mesh_of
from jaxal.label.scratch import Finished, arguments, check_program, contents, in_scratch, program_version, run
from jaxal.label.task import (
    NO_STRESS,
    Backend,
    LabelError,
    Result,
    Task,
    answered,
    check_spin,
    check_task,
    elsewhere,
    failed,
    guarded,
    periodic,
)

KILOBAR = 0.1 * GPA  # eV/Å^3
SMEARING = {"gaussian": 0, "mp": 1, "fermi": -1}
# What follows from the structure and the other options, or what this file relies on.
OURS = {"ENCUT", "ISMEAR", "SIGMA", "EDIFF", "NELM", "NSW", "IBRION", "ISIF", "NELECT", "ISPIN", "NUPDOWN"}
OURS |= {"KSPACING", "KGAMMA", "PSTRESS", "ISTART", "ICHARG", "LWAVE", "LCHARG", "ISYM", "POTIM", "TEBEG"}


@register("labeler")
def vasp(
    *,
    potcars: Mapping[str, str],
    encut: Annotated[float, Unit("eV", 0, True)],
    library: str = "",
    k_spacing: Annotated[float, Unit("1/Å", 0, True)] = 0.25,
    k_points: tuple[int, int, int] | None = None,
    smearing: Literal["gaussian", "mp", "fermi"] = "gaussian",
    smearing_width: Annotated[float, Unit("eV", 0, True)] = 0.05,
    ediff: Annotated[float, Unit("eV", 0, True)] = 1e-7,
    max_iterations: Annotated[int, Unit("", 1)] = 100,
    box: Annotated[float | None, Unit("Å", 0, True)] = None,
    incar: Mapping[str, Any] | None = None,
    command: Sequence[str] = ("vasp_std",),
    keep: str = "",
) -> Backend:
    """Density functional theory by VASP; crystals, slabs, wires, or a molecule in a box. Untested against the program.

    `potcars` names a folder of `library` for each element, `{Na: potpaw_PBE/Na_pv, Cl: potpaw_PBE/Cl}`, which holds
    its POTCAR; `library` is $VASP_PP_PATH unless given. The files stay where they are, their contents are part of a
    label's key, and they choose the functional unless `incar` does. `incar` holds further tags, `{IVDW: 12, PREC:
    Accurate}`; PREC is Accurate, LREAL and LASPH are .FALSE. and .TRUE. unless it says otherwise. The mesh of k-points
    around Γ has at least the density `k_spacing`, or is `k_points`. A charge sets NELECT; unpaired electrons set
    ISPIN = 2 and NUPDOWN. The energy is the free energy of the smeared electrons, of which the forces are the gradient.

    `encut` is the cutoff of the plane waves. A molecule is refused unless `box` gives the edge of a cube that it is put
    into. A charged cell has VASP's uniform background; {LMONO: true} or the like in `incar` corrects for it. A slab
    needs a vacuum of at least 8 Å in its cell and has one k-point across it; {LDIPOL: true, IDIPOL: 3} takes out the
    field of one that is open along c and has two different sides.
    `command` is a list of arguments, such as [mpirun, -np, '4', vasp_std]; `keep` is the folder for what failed
    calculations leave behind.

    Source: Kresse and Furthmüller, Phys. Rev. B 54, 11169 (1996); Kresse and Joubert, Phys. Rev. B 59, 1758 (1999).
    """
    words = arguments(command)
    files = {element: _potcar(element, name, library) for element, name in sorted(potcars.items())}
    hashes = contents(list(files.values()), "label.potcars")
    valence = {element: _valence(element, file) for element, file in files.items()}
    extra = _tags(incar or {})

    def electrons(task: Task) -> float:
        return sum(valence[symbol(int(number))] for number in task.numbers)

    def check(task: Task) -> None:
        check_task(task)
        for element in sorted({symbol(int(number)) for number in task.numbers}):
            if element not in files:
                raise LabelError(f"label.potcars: none for {element}; give {{{element}: FOLDER}}, such as {element}_pv")
        check_spin(task, round(electrons(task)))
        check_cell(task, box, k_points)
        check_program(words, "install VASP or give its path")

    def work(task: Task, folder: Path) -> Result:
        order = np.argsort(task.numbers, kind="stable")  # POSCAR holds the atoms of an element together
        placed = in_box(task, box)
        placed = placed._replace(numbers=task.numbers[order], position=placed.position[order])
        mesh = mesh_of(task, k_points, k_spacing)
        tags = {"PREC": "Accurate", "LREAL": False, "LASPH": True, "ALGO": "Normal"} | extra
        tags |= {"ENCUT": encut, "ISMEAR": SMEARING[smearing], "SIGMA": smearing_width}
        tags |= {"EDIFF": ediff, "NELM": max_iterations, "NSW": 0, "IBRION": -1, "ISIF": 2}
        tags |= {"ISTART": 0, "ICHARG": 2, "LWAVE": False, "LCHARG": False, "ISYM": 0}
        tags |= {"NELECT": electrons(task) - task.charge} if task.charge else {}
        tags |= {"ISPIN": 2, "NUPDOWN": task.spin} if task.spin else {}
        (folder / "INCAR").write_text("".join(f"{name} = {_fortran(value)}\n" for name, value in tags.items()))
        (folder / "KPOINTS").write_text(f"mesh\n0\nGamma\n{mesh[0]} {mesh[1]} {mesh[2]}\n0 0 0\n")
        (folder / "POSCAR").write_text(_poscar(placed))
        elements = [symbol(int(number)) for number in sorted(set(task.numbers.tolist()))]
        (folder / "POTCAR").write_bytes(b"".join(files[element].read_bytes() for element in elements))
        finished = run(words, folder)
        (folder / "POTCAR").unlink()  # licensed: it must not lie about where a failure keeps its folder
        if reason := _objection(finished, folder, max_iterations):
            return failed(task, reason)
        result = _result(placed, folder / "vasprun.xml")
        back = np.argsort(order)
        return result._replace(force=result.force[back], stress=result.stress if periodic(task) else NO_STRESS.copy())

    def calculate(task: Task) -> Result:
        check(task)
        return in_scratch(task, "vasp", keep, lambda folder: work(task, folder))

    mesh = f"k_points={tuple(k_points)!r}" if k_points else f"k_spacing={k_spacing!r} 1/Å"
    return Backend(
        guarded(calculate),
        check,
        f"potcars={','.join(files)}:{hashes} encut={encut!r} eV {mesh} smearing={smearing} {smearing_width!r} eV "
        f"ediff={ediff!r} eV max_iterations={max_iterations!r} box={box!r} Å incar={json.dumps(extra, sort_keys=True)} "
        "spin-polarized if open-shell",
        # With an INCAR and nothing else VASP says who it is, and stops.
        "VASP " + program_version(words, r"vasp\.(\d\S*)", "SYSTEM = jaxal\n", "INCAR"),
    )


def _potcar(element: str, name: str, library: str) -> Path:
    """The file of an element. Raises LabelError where there is none."""
    root = library or os.environ.get("VASP_PP_PATH", "")
    path = Path(root).expanduser() / Path(name).expanduser()
    for file in (path / "POTCAR", path):
        if file.is_file():
            return file
    where = f"label.library {library}" if library else f"$VASP_PP_PATH ({root or 'not set'})"
    raise LabelError(f"label.potcars.{element}: no POTCAR at {path}; give a folder of {where}, such as {element}_pv")


def _valence(element: str, file: Path) -> float:
    """Valence electrons of the atom. Raises LabelError where the file is no POTCAR of one atom of this element."""
    text = file.read_text(encoding="utf-8", errors="replace")
    charges = re.findall(r"ZVAL *= *([-\d.]+)", text)
    names = re.findall(r"VRHFIN *= *([A-Z][a-z]?)", text)
    if len(charges) != 1 or names != [element]:
        what = f"{len(charges)} atoms, {', '.join(names) or 'of no element'}"
        raise LabelError(f"label.potcars.{element}: {file} holds {what}; give the POTCAR of {element} alone")
    return float(charges[0])


def _tags(incar: Mapping[str, Any]) -> dict[str, Any]:
    """`incar` with names in capitals. Raises LabelError for what VASP or this file would not understand."""
    tags = {}
    for name, value in incar.items():
        tag = str(name).strip().upper()
        if tag in OURS:
            raise LabelError(f"label.incar.{name}: it follows from the structure or another option")
        plain = isinstance(value, bool | int | float | str)
        if not plain and not (isinstance(value, list | tuple) and all(isinstance(x, int | float) for x in value)):
            raise LabelError(f"label.incar.{name}: {value!r} does not fit; give a number, a text or a list of numbers")
        if not re.fullmatch(r"[A-Z]\w*", tag) or (isinstance(value, str) and re.search(r"[\n;=]", value)):
            raise LabelError(f"label.incar.{name}: {value!r} is no value of one tag; give one line for each tag")
        tags[tag] = list(value) if isinstance(value, tuple) else value
    return tags


def _fortran(value: Any) -> str:
    if isinstance(value, bool):
        return ".TRUE." if value else ".FALSE."
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _poscar(task: Task) -> str:
    """Atoms sorted by element, in Cartesian coordinates."""
    numbers, counts = np.unique(task.numbers, return_counts=True)
    # VASP refuses a left-handed cell; the opposite vectors span the same lattice.
    cell = task.cell if np.linalg.det(task.cell) > 0 else -task.cell
    lines = ["jaxal", "1.0", *(" ".join(f"{value:.15f}" for value in row) for row in cell)]
    lines += [" ".join(symbol(int(number)) for number in numbers), " ".join(map(str, counts)), "Cartesian"]
    lines += [" ".join(f"{value:.15f}" for value in place) for place in task.position]
    return "\n".join(lines) + "\n"


def _objection(finished: Finished, folder: Path, iterations: int) -> str:
    """Why the calculation gave nothing. VASP's exit status is 0 also where the SCF did not converge."""
    outcar = folder / "OUTCAR"
    written = outcar.read_text(errors="replace") if outcar.exists() else ""
    # In a frame, below the word "error" drawn in capitals; above "I refuse to continue".
    framed = re.findall(r"^ *\| {3,}(\S.*[a-z].*?) *\|$", finished.output.partition("---->")[0], re.MULTILINE)
    cause = f"vasp: {' '.join(framed[-3:])}" if "REFUSE TO CONTINUE" in finished.output and framed else ""
    if finished.failure:
        return f"{cause} ({finished.failure})" if cause else finished.failure
    if not written:
        return cause or "vasp ended well but wrote no OUTCAR"
    if "aborting loop because EDIFF is reached" not in written:
        whole = "General timing and accounting" in written or "EDIFF was not reached" in written
        return f"the SCF did not converge in {iterations} iterations" if whole else cause or "vasp did not finish"
    return ""


def _result(task: Task, path: Path) -> Result:
    """The label in a vasprun.xml, in eV and Å; its stress is in kbar, and positive under pressure.

    The energy is that of the last `calculation`, which has all corrections in it; in its SCF steps some are missing.
    """
    if not path.exists():
        return failed(task, "vasp ended well but wrote no vasprun.xml")
    try:
        *_, last = ET.parse(path).iter("calculation")
        energy = last.findtext("energy/i[@name='e_fr_energy']")
        cell, place, force, stress = (
            np.array([(row.text or "").split() for row in last.iterfind(f"{where}/v")], float)
            for where in (
                "structure/crystal/varray[@name='basis']",
                "structure/varray[@name='positions']",
                "varray[@name='forces']",
                "varray[@name='stress']",
            )
        )
        if elsewhere(task, place @ cell):
            return failed(task, "the atoms in vasprun.xml are not where they were put")
        return answered(task, float(energy or "nan"), force, -stress * KILOBAR)
    except (ET.ParseError, ValueError) as error:  # cut off, or stars for a number that did not fit its columns
        return failed(task, f"vasprun.xml is not whole: {error}")
