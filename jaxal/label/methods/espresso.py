"""Labels from Quantum ESPRESSO: plane waves and pseudopotentials; crystals, slabs, wires and molecules in a box."""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from ase.data import atomic_masses

from jaxal.core.registry import register
from jaxal.core.units import BOHR, HARTREE, Unit
from jaxal.data.electrons import symbol
from jaxal.label.cells import check_cell, check_cutoff, in_box, mesh_of
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

RYDBERG = HARTREE / 2  # eV
SECTIONS = ("control", "system", "electrons")
# What follows from the structure and the other options, or what this file relies on.
OURS = {
    "control": {"calculation", "tprnfor", "tstress", "pseudo_dir", "outdir", "prefix"},
    "system": {"ibrav", "nat", "ntyp", "tot_charge", "tot_magnetization", "nspin", "ecutwfc", "ecutrho"}
    | {"occupations", "smearing", "degauss"},
    "electrons": {"conv_thr", "electron_maxstep"},
}

FIELD = {"tefield", "dipfield", "edir", "emaxpos", "eopreg", "eamp"}  # of a sawtooth potential
JUMP = 0.05  # of the cell, in which a sawtooth falls back


@register("labeler")
def espresso(
    *,
    pseudopotentials: Mapping[str, Path],
    ecutwfc: Annotated[float, Unit("Ry", 0, True)],
    ecutrho: Annotated[float | None, Unit("Ry", 0, True)] = None,
    k_spacing: Annotated[float, Unit("1/Å", 0, True)] = 0.25,
    k_points: tuple[int, int, int] | None = None,
    smearing: Literal["none", "gaussian", "mp", "mv", "fd"] = "mv",
    smearing_width: Annotated[float, Unit("eV", 0, True)] = 0.1,
    conv_thr: Annotated[float, Unit("Ry", 0, True)] = 1e-9,
    max_iterations: Annotated[int, Unit("", 1)] = 100,
    box: Annotated[float | None, Unit("Å", 0, True)] = None,
    dipole_correction: bool = False,
    input_data: Mapping[str, Mapping[str, Any]] | None = None,
    command: Sequence[str] = ("pw.x",),
    keep: str = "",
) -> Backend:
    """Density functional theory by pw.x of Quantum ESPRESSO; crystals, slabs and wires, or a molecule in a box.

    `pseudopotentials` are UPF files, `{Si: pseudo/Si.upf}`; they choose the functional, and their contents are part
    of a label's key. The mesh of k-points around Γ has at least the density `k_spacing`, or is `k_points`. Cutoffs
    are in Ry, as everywhere with this program; `ecutrho` is its default, 4 `ecutwfc`, unless given (ultrasoft
    pseudopotentials need 8 to 12). `input_data` adds lines to the sections control, system and electrons, such as
    `{system: {vdw_corr: dft-d3}}`. With unpaired electrons the calculation is spin-polarized with that magnetization.
    The energy is the free energy of the smeared electrons, of which the forces are the gradient.

    A molecule is refused unless `box` gives the edge of a cube that it is put into. The edge is the same for all
    structures, or the basis set would change between them; a charged one gets the correction of
    `{system: {assume_isolated: makov-payne}}` or the like only where `input_data` says so. A slab is calculated in its
    cell, whose vacuum is of at least 8 Å, with one k-point across it. pw.x repeats it: `{system: {assume_isolated:
    2D}}` cuts the potential off in the vacuum, where the open direction is c, along z, and the cell twice as high as
    the slab and its density; `dipole_correction` takes out the field of a slab with two different sides, by a sawtooth
    that jumps in the middle of the vacuum. With that, or another field, pw.x has no stress.
    `command` is a list of arguments, such as [mpirun, -np, '4', pw.x]; `keep` is the folder for what failed
    calculations leave behind.

    Source: Giannozzi et al., J. Phys.: Condens. Matter 29, 465901 (2017).
    """
    words = arguments(command)
    files = {element: Path(file) for element, file in sorted(pseudopotentials.items())}
    hashes = contents(list(files.values()), "label.pseudopotentials")
    extra = _sections(input_data or {})
    fields = dipole_correction or any(extra.get("control", {}).get(name) for name in ("tefield", "gate"))
    if dipole_correction and (clash := FIELD & {key for values in extra.values() for key in values}):
        raise LabelError(f"label.input_data: {min(clash)} is what dipole_correction sets; leave one of them out")

    def check(task: Task) -> None:
        check_task(task)
        check_spin(task)
        for element in sorted({symbol(int(number)) for number in task.numbers}):
            if element not in files:
                raise LabelError(f"label.pseudopotentials: none for {element}; give {{{element}: FILE.upf}}")
        check_cell(task, box, k_points)
        if dipole_correction:
            _check_dipole(task)
        if str(extra.get("system", {}).get("assume_isolated", "")).lower() == "2d":
            check_cutoff(task, "label.input_data.system.assume_isolated = 2D")
            _check_flat(task)
        check_program(words, "install Quantum ESPRESSO (Debian: apt-get install quantum-espresso) or give its path")

    def work(task: Task, folder: Path) -> Result:
        placed, stressed = in_box(task, box), periodic(task) and not fields
        mesh = mesh_of(task, k_points, k_spacing)
        for element, file in files.items():
            shutil.copyfile(file, folder / f"{element}.upf")
        values: dict[str, dict[str, Any]] = {
            "control": {
                "calculation": "scf",
                "tprnfor": True,
                "tstress": stressed,
                "pseudo_dir": "./",
                "outdir": "./out",
            },
            "system": {"ibrav": 0, "nat": len(task.numbers), "ntyp": len(set(task.numbers.tolist()))}
            | {"ecutwfc": ecutwfc, "tot_charge": float(task.charge)}
            | ({} if ecutrho is None else {"ecutrho": ecutrho})
            | (_polarized(task, files) if task.spin else {})
            | _occupations(smearing, smearing_width),
            "electrons": {"conv_thr": conv_thr, "electron_maxstep": max_iterations},
        }
        if dipole_correction:
            values["control"] |= {"tefield": True, "dipfield": True}
            values["system"] |= _sawtooth(task)
        deck = _deck(placed, mesh, {name: values[name] | extra.get(name, {}) for name in SECTIONS})
        (folder / "pw.in").write_text(deck)
        finished = run([*words, "-in", "pw.in"], folder)
        shutil.rmtree(folder / "out", ignore_errors=True)  # wavefunctions
        if reason := _objection(finished, folder):
            return failed(task, reason)
        return _result(task, finished.output, stressed)

    def calculate(task: Task) -> Result:
        check(task)
        return in_scratch(task, "espresso", keep, lambda folder: work(task, folder))

    mesh = f"k_points={tuple(k_points)!r}" if k_points else f"k_spacing={k_spacing!r} 1/Å"
    return Backend(
        guarded(calculate),
        check,
        f"pw.x pseudopotentials={','.join(files)}:{hashes} ecutwfc={ecutwfc!r} Ry ecutrho={ecutrho!r} Ry {mesh} "
        f"smearing={smearing} {smearing_width!r} eV conv_thr={conv_thr!r} Ry max_iterations={max_iterations!r} "
        f"box={box!r} Å {'dipole correction ' if dipole_correction else ''}"
        f"input_data={json.dumps(extra, sort_keys=True)} spin-polarized if open-shell",
        "pw.x " + program_version(words, r"PWSCF v\.?(\S+)"),
    )


def _sections(input_data: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """`input_data` with lower-case names. Raises LabelError for what pw.x or this file would not understand."""
    sections: dict[str, dict[str, Any]] = {}
    for name, values in input_data.items():
        section = str(name).lower()
        if section not in SECTIONS or not isinstance(values, Mapping):
            raise LabelError(f"label.input_data.{name}: unknown; give a mapping for {', '.join(SECTIONS)}")
        sections[section] = {str(key).lower(): value for key, value in values.items()}
        for key, value in sections[section].items():
            if key in OURS[section]:
                raise LabelError(f"label.input_data.{name}.{key}: it follows from the structure or another option")
            if not isinstance(value, bool | int | float | str):
                raise LabelError(f"label.input_data.{name}.{key}: {value!r} does not fit; give a number or a text")
    return sections


def _occupations(smearing: str, width: float) -> dict[str, Any]:
    if smearing == "none":
        return {"occupations": "fixed"}
    return {"occupations": "smearing", "smearing": smearing, "degauss": width / RYDBERG}


def _check_dipole(task: Task) -> None:
    """Raises LabelError for what has no single direction out of it."""
    if int(np.sum(task.periodic)) != 2:
        what = f"a structure that is periodic in {int(np.sum(task.periodic))} directions"
        raise LabelError(f"label.dipole_correction: true does not fit {what}; it is for a slab, periodic in two")


def _check_flat(task: Task) -> None:
    """Raises LabelError where the cutoff in two dimensions is not along c and z."""
    flat = list(map(bool, task.periodic)) == [True, True, False]
    if not flat or np.abs([*task.cell[2, :2], *task.cell[:2, 2]]).max() > 1e-6:
        what = "needs a slab that is open along c, with c along z and a and b across it"
        raise LabelError(f"label.input_data.system.assume_isolated: 2D {what}; give another, or such a cell")


def _sawtooth(task: Task) -> dict[str, Any]:
    """A potential without a field of its own that jumps in the middle of the vacuum (Bengtsson, PRB 59, 12301, 1999).

    So its place follows the atoms: were it fixed, atoms that come into it would feel it.
    """
    row = int(np.flatnonzero(~np.asarray(task.periodic))[0])
    along = task.position @ np.linalg.inv(task.cell)[:, row]
    middle = (along.max() + along.min() + 1) / 2
    return {"edir": row + 1, "emaxpos": float((middle - JUMP / 2) % 1), "eopreg": JUMP, "eamp": 0.0}


def _polarized(task: Task, files: Mapping[str, Path]) -> dict[str, Any]:
    """Two kinds of electrons. From equally many of both, the SCF of a fully polarized system does not converge."""
    valences = {element: valence(file) or 4.0 for element, file in files.items()}
    count = sum(valences[symbol(int(number))] for number in task.numbers) - task.charge
    start = min(1.0, task.spin / max(count, 1.0))
    kinds = range(1, 1 + len(set(task.numbers.tolist())))
    polarized = {f"starting_magnetization({kind})": start for kind in kinds}
    return {"nspin": 2, "tot_magnetization": float(task.spin)} | polarized


def _deck(task: Task, mesh: Sequence[int], values: Mapping[str, Mapping[str, Any]]) -> str:
    """The input of pw.x for a structure that has a cell."""
    lines = []
    for section, entries in values.items():
        lines += [f"&{section}", *(f"  {key} = {_fortran(value)}" for key, value in entries.items()), "/"]
    lines.append("ATOMIC_SPECIES")
    for number in sorted(set(task.numbers.tolist())):
        lines.append(f"{symbol(number)} {atomic_masses[number]} {symbol(number)}.upf")
    lines.append("CELL_PARAMETERS bohr")
    lines += [" ".join(f"{value:.15e}" for value in row / BOHR) for row in task.cell]
    lines.append("ATOMIC_POSITIONS bohr")
    for number, place in zip(task.numbers, task.position, strict=True):
        lines.append(" ".join([symbol(int(number)), *(f"{value:.15e}" for value in place / BOHR)]))
    if tuple(mesh) == (1, 1, 1):
        lines.append("K_POINTS gamma")  # real wavefunctions: the same numbers in half the time
    else:
        lines += ["K_POINTS automatic", f"{mesh[0]} {mesh[1]} {mesh[2]} 0 0 0"]
    return "\n".join(lines) + "\n"


def _fortran(value: Any) -> str:
    if isinstance(value, bool):
        return ".true." if value else ".false."
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return repr(value)


def _objection(finished: Finished, folder: Path) -> str:
    """Why the calculation gave nothing: pw.x says so in its output, and prints JOB DONE all the same."""
    if match := re.search(r"convergence NOT achieved after +(\d+) iterations", finished.output):
        return f"the SCF did not converge in {match[1]} iterations"
    crash = folder / "CRASH"
    if crash.exists():
        said = re.findall(r"^ +([^%\s].*)$", crash.read_text(errors="replace"), re.MULTILINE)
        return one_line("pw.x: " + "; ".join(line for line in said if not line.startswith(("task #", "from "))))
    return finished.failure or ("" if "convergence has been achieved" in finished.output else "pw.x did not finish")


def _result(task: Task, output: str, stressed: bool) -> Result:
    """The label in the output of pw.x, which is in Ry and Bohr with pressure, not tension, positive."""
    n = len(task.numbers)
    energies = re.findall(r"^!.*= +(\S+) Ry", output, re.MULTILINE)
    table = output.partition("Forces acting on atoms")[2]
    forces = re.findall(r"atom +\d+ +type +\d+ +force = +(\S+) +(\S+) +(\S+)", table)[:n]
    stress = re.search(r"total +stress .*\n((?: +\S+){6}\n(?: +\S+){6}\n(?: +\S+){6})", output)
    if not energies or len(forces) < n or (stressed and not stress):
        return failed(task, "pw.x printed no energy, no forces or no stress")
    force = np.array(forces, float) * (RYDBERG / BOHR)
    tensor = NO_STRESS.copy()
    if stressed and stress:
        tensor = -np.array(stress[1].split(), float).reshape(3, 6)[:, :3] * (RYDBERG / BOHR**3)
    return Result(float(energies[-1]) * RYDBERG, force, tensor, True, "", 0.0)
