"""Labels from CP2K: density functionals in Gaussians and plane waves; crystals, slabs, wires, molecules in a box."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from jaxal.core.registry import register
from jaxal.core.units import BOHR, GPA, HARTREE, Unit
from jaxal.data.electrons import symbol
from jaxal.label.cells import check_cell, check_cutoff, in_box
from jaxal.label.scratch import Finished, arguments, check_program, contents, in_scratch, program_version, run
from jaxal.label.task import (
    NO_STRESS,
    OPEN,
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

DATA = "/usr/share/cp2k"  # of Debian's package cp2k-data
# Functionals that CP2K knows by one word, with the pseudopotentials made for them.
SHORT = {name: f"GTH-{name}" for name in ("PBE", "BLYP", "BP", "PADE", "OLYP", "HCTH120")} | {"TPSS": "GTH-PBE"}
DISPERSION = {"d3zero": "DFTD3", "d3bj": "DFTD3(BJ)"}
# What would contradict the structure, or let an unconverged energy pass for a good one.
FORBIDDEN = ("CHARGE", "MULTIPLICITY", "UKS", "LSD", "ROKS", "IGNORE_CONVERGENCE_FAILURE")
PARAMETER = "_"  # stands for what follows the name of a section


@register("labeler")
def cp2k(
    *,
    xc: str = "PBE",
    basis: str = "DZVP-MOLOPT-SR-GTH",
    potential: str = "",
    elements: Mapping[str, Mapping[str, str]] | None = None,
    cutoff: Annotated[float, Unit("Ry", 0, True)] = 600.0,
    rel_cutoff: Annotated[float, Unit("Ry", 0, True)] = 50.0,
    k_points: tuple[int, int, int] | None = None,
    electronic_temperature: Annotated[float, Unit("K", 0)] = 0.0,
    dispersion: Literal["none", "d3zero", "d3bj"] = "none",
    solver: Literal["diagonalization", "ot"] = "diagonalization",
    eps_scf: Annotated[float, Unit("", 0, True)] = 1e-8,
    max_iterations: Annotated[int, Unit("", 1)] = 100,
    box: Annotated[float | None, Unit("Å", 0, True)] = None,
    isolated: bool = False,
    input_data: Mapping[str, Any] | None = None,
    basis_files: Sequence[str] = ("BASIS_MOLOPT",),
    potential_file: str = "GTH_POTENTIALS",
    data: str = "",
    command: Sequence[str] = ("cp2k.psmp",),
    keep: str = "",
) -> Backend:
    """Density functional theory by Quickstep of CP2K; crystals, slabs and wires, or a molecule in a box.

    `xc` is PBE, BLYP, BP, PADE, OLYP, HCTH120, TPSS, or the names of libxc with a + between them, such as
    "MGGA_X_R2SCAN+MGGA_C_R2SCAN". `basis` and `potential` are families in `basis_files` and `potential_file`;
    without `potential` it is the one made for the functional. `elements` has exceptions from them,
    `{Cu: {basis: DZVP-MOLOPT-SR-GTH, potential: GTH-PBE-q11}}`. The density lives on grids of `cutoff` and
    `rel_cutoff`: too coarse ones leave a net force. `k_points` is a mesh of Monkhorst and Pack, Γ alone without.
    A positive `electronic_temperature` smears the occupations (Fermi and Dirac); the energy is then the free energy,
    of which the forces are the gradient. `solver: ot` is the orbital transformation, for large systems with a gap.
    Spin-unrestricted where electrons are unpaired.

    A molecule is refused unless `box` gives the edge of a cube that it is put into; it has no periodic images there
    (wavelet Poisson solver), also where it is charged. A slab is repeated in its cell, whose vacuum is of at least 8 Å;
    `{SURFACE_DIPOLE_CORRECTION: true, SURF_DIP_DIR: Z}` takes out the field of one with two different sides. With
    `isolated` nothing is repeated along open directions (PERIODIC XY and the analytic Poisson solver); the cell must be
    twice as high as slab and density, and there is no stress, for CP2K has none. `input_data` adds to the section DFT,
    as in `{SCF: {MIXING: {ALPHA: 0.2}}}`; `_` stands for what follows the name of a section.
    The files are looked for in `data`, else in CP2K_DATA_DIR, else in /usr/share/cp2k. `command` is a list of
    arguments, such as [mpirun, -np, '2', cp2k.psmp], `keep` the folder for what failed calculations leave behind.

    Source: Kühne et al., J. Chem. Phys. 152, 194103 (2020).
    """
    words = arguments(command)
    folder_of_data = Path(data or os.environ.get("CP2K_DATA_DIR") or DATA).expanduser().absolute()
    basis_paths, potential_path = [folder_of_data / file for file in basis_files], folder_of_data / potential_file
    own = {element: dict(kinds) for element, kinds in sorted((elements or {}).items())}
    functional = xc.strip().upper()
    family = potential or SHORT.get(functional, "")
    _check_options(functional, family, own, solver, electronic_temperature, k_points)

    def kind(element: str) -> dict[str, str]:
        return {"basis": basis, "potential": family} | own.get(element, {})

    def cut(task: Task) -> bool:
        """Whether something repeats, and is not to along the open directions."""
        return isolated and periodic(task) and not np.all(task.periodic)

    def directions(task: Task) -> str:
        """What CP2K repeats."""
        if not periodic(task):
            return "NONE"
        return "".join(name for name, repeats in zip("XYZ", task.periodic, strict=True) if repeats or not cut(task))

    def section(task: Task) -> dict[str, Any]:
        """The section DFT."""
        scf: dict[str, Any] = {"EPS_SCF": eps_scf, "MAX_SCF": max_iterations, "PRINT": {"RESTART": {PARAMETER: "OFF"}}}
        if solver == "ot":
            scf |= {"OT": {"MINIMIZER": "DIIS", "PRECONDITIONER": "FULL_SINGLE_INVERSE"}}
        if electronic_temperature:
            smear = {
                PARAMETER: "ON",
                "METHOD": "FERMI_DIRAC",
                "ELECTRONIC_TEMPERATURE": f"[K] {electronic_temperature}",
            }
            smear |= {"FIXED_MAGNETIC_MOMENT": task.spin} if task.spin else {}
            scf |= {"ADDED_MOS": " ".join(["-1"] * (2 if task.spin else 1)), "SMEAR": smear}
        short = {PARAMETER: functional} if functional in SHORT else {name: {} for name in functional.split("+")}
        exchange: dict[str, Any] = {"XC_FUNCTIONAL": short}
        if dispersion != "none":
            pair = {"TYPE": DISPERSION[dispersion], "REFERENCE_FUNCTIONAL": functional}
            pair |= {"PARAMETER_FILE_NAME": str(folder_of_data / "dftd3.dat")}
            exchange["VDW_POTENTIAL"] = {"POTENTIAL_TYPE": "PAIR_POTENTIAL", "PAIR_POTENTIAL": pair}
        ours: dict[str, Any] = {
            "BASIS_SET_FILE_NAME": [str(path) for path in basis_paths],
            "POTENTIAL_FILE_NAME": str(potential_path),
            "CHARGE": task.charge,
            "MULTIPLICITY": task.spin + 1,
            "MGRID": {"CUTOFF": f"[Ry] {cutoff}", "REL_CUTOFF": f"[Ry] {rel_cutoff}"},
            "QS": {"EPS_DEFAULT": 1e-12},
            "SCF": scf,
            "XC": exchange,
        }
        ours |= {"UKS": "T"} if task.spin else {}
        if not periodic(task):
            ours["POISSON"] = {"PERIODIC": "NONE", "POISSON_SOLVER": "WAVELET"}
        elif cut(task):
            ours["POISSON"] = {"PERIODIC": directions(task), "POISSON_SOLVER": "ANALYTIC"}
        if periodic(task) and k_points:
            ours["KPOINTS"] = {"SCHEME": "MONKHORST-PACK " + " ".join(map(str, k_points))}
        return _merged(ours, input_data or {}, "label.input_data")

    # A mistake in input_data is told before there is a structure.
    section(Task(np.ones(1, int), np.zeros((1, 3)), *OPEN, 0, 0))

    def check(task: Task) -> None:
        check_task(task)
        check_spin(task)
        check_cell(task, box, k_points)
        if cut(task):
            if int(np.sum(task.periodic)) == 1:  # CP2K 2023.1 takes PERIODIC X and calculates XYZ
                raise LabelError("label.isolated: true is for a slab, periodic in two directions; leave it out")
            check_cutoff(task, "label.isolated")
        check_program(words, "install CP2K (Debian: apt-get install cp2k) or give its path")
        for path in (*basis_paths, potential_path):
            if not path.is_file():
                raise LabelError(
                    f"label.data: there is no file {path}; give CP2K's data folder (Debian: apt-get install cp2k-data)"
                )
        electrons = 0
        for number in task.numbers:
            element = symbol(int(number))
            chosen = kind(element)
            if not any(_held(path, element, chosen["basis"]) for path in basis_paths):
                raise LabelError(
                    f"label.basis: there is no {chosen['basis']} for {element} in {', '.join(basis_files)}; "
                    f"give another, or elements={{{element}: {{basis: NAME}}}}"
                )
            entry = _held(potential_path, element, chosen["potential"])
            if not entry:
                raise LabelError(
                    f"label.potential: there is no {chosen['potential']} for {element} in {potential_file}; "
                    f"give another, or elements={{{element}: {{potential: NAME}}}}"
                )
            electrons += sum(map(int, entry.split()))
        check_spin(task, electrons)

    def work(task: Task, folder: Path) -> Result:
        placed, stressed = in_box(task, box), periodic(task) and not cut(task)
        rows = [
            " ".join([symbol(int(number)), *(f"{value:.15e}" for value in place / BOHR)])
            for number, place in zip(placed.numbers, placed.position, strict=True)
        ]
        vectors = {
            name: "[bohr] " + " ".join(f"{x:.15e}" for x in row / BOHR)
            for name, row in zip("ABC", placed.cell, strict=True)
        }
        kinds = []
        for number in sorted(set(task.numbers.tolist())):
            chosen = kind(symbol(number))
            kinds.append({PARAMETER: symbol(number), "BASIS_SET": chosen["basis"], "POTENTIAL": chosen["potential"]})
        tree = {
            "GLOBAL": {"PROJECT": "cp2k", "RUN_TYPE": "ENERGY_FORCE", "PRINT_LEVEL": "LOW"},
            "FORCE_EVAL": {"METHOD": "QUICKSTEP"}
            | ({"STRESS_TENSOR": "ANALYTICAL"} if stressed else {})
            | {
                "DFT": section(task),
                "SUBSYS": {
                    "CELL": vectors | ({} if directions(task) == "XYZ" else {"PERIODIC": directions(task)}),
                    "COORD": {"UNIT": "bohr", "": rows},
                    "KIND": kinds,
                },
                "PRINT": {"FORCES": {PARAMETER: "ON", "NDIGITS": 12}}
                | ({"STRESS_TENSOR": {PARAMETER: "ON"}} if stressed else {}),
            },
        }
        (folder / "cp2k.inp").write_text("\n".join(_lines(tree)) + "\n", encoding="utf-8")
        finished = run([*words, "cp2k.inp"], folder, variables={"CP2K_DATA_DIR": str(folder_of_data)})
        if reason := _objection(finished, max_iterations):
            return failed(task, reason)
        return _result(task, finished.output, stressed)

    def calculate(task: Task) -> Result:
        check(task)
        return in_scratch(task, "cp2k", keep, lambda folder: work(task, folder))

    paths = (*basis_paths, potential_path)
    files = [contents([path], "label.data") if path.is_file() else f"{path} is missing" for path in paths]
    return Backend(
        guarded(calculate),
        check,
        f"Quickstep {one_line(functional)} basis={basis} potential={family} elements={json.dumps(own, sort_keys=True)} "
        f"from {','.join(files)} cutoff={cutoff!r} Ry "
        f"rel_cutoff={rel_cutoff!r} Ry k_points={k_points and tuple(k_points)!r} "
        f"electronic_temperature={electronic_temperature!r} K dispersion={dispersion} solver={solver} "
        f"eps_scf={eps_scf!r} max_iterations={max_iterations!r} box={box!r} Å {'isolated ' if isolated else ''}"
        f"input_data={json.dumps(input_data or {}, sort_keys=True)} unrestricted if open-shell",
        "CP2K " + program_version((*words, "--version"), r"CP2K version (\S+)"),
    )


def _check_options(
    functional: str,
    family: str,
    own: Mapping[str, Mapping[str, str]],
    solver: str,
    electronic_temperature: float,
    k_points: Sequence[int] | None,
) -> None:
    """Raises LabelError for options that do not go together."""
    if functional not in SHORT and not re.fullmatch(r"\w+_\w+(\+\w+_\w+)*", functional):
        raise LabelError(
            f"label.xc: {functional!r} is unknown; give {', '.join(SHORT)}, or such as GGA_X_PBE+GGA_C_PBE"
        )
    if not family:
        raise LabelError(f"label.potential: none is known for {functional}; give a family such as GTH-PBE")
    for element, kinds in own.items():
        if not kinds or set(kinds) - {"basis", "potential"}:
            raise LabelError(f"label.elements.{element}: {dict(kinds)} does not fit; give basis, potential or both")
    if solver == "ot" and (electronic_temperature or k_points):
        raise LabelError("label.solver: ot has neither smearing nor k-points; give diagonalization")


def _merged(ours: Mapping[str, Any], extra: Mapping[str, Any], where: str) -> dict[str, Any]:
    """`ours` with the user's lines. Raises LabelError for one that is ours already, or no line of CP2K's input."""
    merged = dict(ours)
    for name, value in extra.items():
        key, field = str(name).upper(), f"{where}.{name}"
        if not re.fullmatch(r"[A-Z][A-Z0-9_-]*|_", key):
            raise LabelError(f"{field}: no keyword of CP2K; give letters, digits and _")
        if isinstance(value, Mapping) and isinstance(merged.get(key, {}), Mapping):
            merged[key] = _merged(merged.get(key, {}), value, field)
        elif key in merged or key in FORBIDDEN:
            raise LabelError(f"{field}: it follows from the structure or another option; leave it out")
        elif isinstance(value, bool | int | float | str) and "\n" not in str(value):
            merged[key] = value
        else:
            raise LabelError(f"{field}: {value!r} does not fit; give a number, a text of one line or a mapping")
    return merged


def _lines(tree: Mapping[str, Any], indent: str = "") -> Iterator[str]:
    """A tree of sections as CP2K's input; a list is the same keyword or section many times."""
    for key, value in tree.items():
        if key == PARAMETER:
            continue
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Mapping):
                yield f"{indent}&{key} {each.get(PARAMETER, '')}".rstrip()
                yield from _lines(each, indent + "  ")
                yield f"{indent}&END {key}"
            else:
                text = ("T" if each else "F") if isinstance(each, bool) else str(each)
                yield f"{indent}{key} {text}" if key else f"{indent}{text}"


@lru_cache
def _held(path: Path, element: str, name: str) -> str:
    """The line that follows the title of an entry in a file of CP2K's; empty where there is no such entry."""
    title = rf"^[ \t]*{element}[ \t]+(?:\S+[ \t]+)*?{re.escape(name)}(?:[ \t].*)?\n(.*)$"
    match = re.search(title, path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE | re.IGNORECASE)
    return match[1].partition("#")[0].strip() if match else ""


def _objection(finished: Finished, max_iterations: int) -> str:
    """Why the calculation gave nothing. An SCF that did not converge is no error to CP2K before its version 2024."""
    if "SCF run NOT converged" in finished.output:
        return f"the SCF did not converge in {max_iterations} iterations"
    if box := re.search(r"^ \* +\[ABORT\].*\n(?: .*\*\n)*", finished.output, re.MULTILINE):
        # The words stand to the right of a drawing.
        said = [line[11:].strip(" *") for line in box[0].splitlines()[1:]]
        return one_line("cp2k: " + " ".join(word for line in said if (word := re.sub(r"^[\\/_| O]+ {2,}", "", line))))
    return finished.failure or ("" if "PROGRAM ENDED AT" in finished.output else "cp2k did not finish")


def _result(task: Task, output: str, stressed: bool) -> Result:
    """The label in CP2K's output, in Hartree and Bohr, the stress with pressure, not tension, positive.

    From 2025 on the forces have another heading and no element, and the stress may be in bar.
    """
    n = len(task.numbers)
    energies = re.findall(r"ENERGY\| Total FORCE_EVAL.*:? +(\S+)$", output, re.MULTILINE)
    table = re.split(r"ATOMIC FORCES in \[a\.u\.\]|FORCES\| Atomic forces \[hartree/bohr\]", output, maxsplit=1)[1:]
    row = r"^ (?:FORCES\| +\d+| +\d+ +\d+ +[A-Z]\w*) +(\S+) +(\S+) +(\S+)(?: +\S+)?$"
    forces = re.findall(row, "".join(table), re.MULTILINE)[:n]
    unit = re.search(r"stress tensor \[(GPa|bar)\]", output)
    section = output[unit.end() :] if unit else ""
    tensor = re.findall(r"^ STRESS\| +[xyz] +(\S+) +(\S+) +(\S+)$", section, re.MULTILINE)
    if not energies or len(forces) < n or (stressed and len(tensor) < 3):
        return failed(task, "cp2k printed no energy, no forces or no stress")
    stress = NO_STRESS.copy()
    if stressed and unit:
        stress = -np.array(tensor[:3], float) * (GPA if unit[1] == "GPa" else 1e-4 * GPA)
    return Result(float(energies[-1]) * HARTREE, np.array(forces, float) * (HARTREE / BOHR), stress, True, "", 0.0)
