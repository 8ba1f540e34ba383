"""Labels from GPAW: projector augmented waves, in a Python environment that may be GPAW's own."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from jaxal.core.registry import register
from jaxal.core.units import Unit
from jaxal.label.cells import check_cell, in_box, mesh_of
from jaxal.label.drivers.launch import ask, check_with, described, result_of, source
from jaxal.label.scratch import arguments, check_program, in_scratch, program_version
from jaxal.label.task import (
    Backend,
    LabelError,
    Result,
    Task,
    check_spin,
    check_task,
    guarded,
    has_stress,
    one_line,
    periodic,
)

DRIVER = "gpaw_driver.py"
THIS_PYTHON = "{python}"
# What follows from the structure and the other options, or what the driver relies on.
OURS = {"mode", "xc", "h", "gpts", "basis", "kpts", "charge", "spinpol", "occupations", "convergence", "maxiter"}
OURS |= {"txt", "symmetry", "setups", "hund", "fixdensity", "communicator", "external", "magmoms"}


@register("labeler")
def gpaw(
    *,
    representation: Literal["pw", "lcao", "fd"] = "pw",
    xc: str = "PBE",
    ecut: Annotated[float, Unit("eV", 0, True)] = 400.0,
    h: Annotated[float, Unit("Å", 0, True)] = 0.2,
    basis: str = "dzp",
    k_spacing: Annotated[float, Unit("1/Å", 0, True)] = 0.25,
    k_points: tuple[int, int, int] | None = None,
    smearing: Literal["none", "fermi-dirac", "marzari-vanderbilt"] = "fermi-dirac",
    smearing_width: Annotated[float, Unit("eV", 0, True)] = 0.1,
    conv_energy: Annotated[float, Unit("eV", 0, True)] = 1e-6,
    conv_density: Annotated[float, Unit("", 0, True)] = 1e-6,
    max_iterations: Annotated[int, Unit("", 1)] = 200,
    box: Annotated[float | None, Unit("Å", 0, True)] = None,
    parameters: Mapping[str, Any] | None = None,
    setups: str = "",
    command: Sequence[str] = (THIS_PYTHON,),
    keep: str = "",
) -> Backend:
    """Density functional theory by GPAW; crystals, slabs and wires in plane waves, or a molecule in a box.

    `representation` is plane waves up to `ecut`, or on a grid of spacing `h` atomic orbitals (`basis`, such as "dzp")
    or finite differences. Only plane waves have a stress: a periodic structure is refused with the others. The mesh of
    k-points around Γ has at least the density `k_spacing`, or is `k_points`; symmetry is not used. The SCF ends where
    the energy changes by less than `conv_energy` for each valence electron and the density by `conv_density` electrons.
    `parameters` are further ones of the calculator, such as `{nbands: 20}`. With unpaired electrons the calculation is
    spin-polarized with that magnetization. The energy is the free energy of the smeared electrons, of which the forces
    are the gradient.

    A molecule is refused unless `box` gives the edge of a cube that it is put into, the same for all structures.
    A slab needs a vacuum of at least 8 Å in its cell and has one k-point across it; `parameters: {poissonsolver:
    {dipolelayer: xy}}` takes out the field of one with two different sides.
    On a grid (lcao, fd) the energy also depends a little on where between its points the atoms are.

    `command` starts the Python that has GPAW, `[/opt/gpaw/bin/python]`; the default `{python}` is the one that runs
    jaxal. PAW datasets come from the folder `setups`, else from where GPAW looks for them (GPAW_SETUP_PATH, its own).
    `keep` is the folder for what failed calculations leave behind.

    Source: Mortensen et al., J. Chem. Phys. 160, 092503 (2024).
    """
    words = tuple(sys.executable if word == THIS_PYTHON else word for word in arguments(command))
    folder_of_setups = str(Path(setups).expanduser().absolute()) if setups else ""
    more = _parameters(parameters or {})
    version = program_version(
        (*words, "-c", source(DRIVER), "version", folder_of_setups), r"(?m)^(GPAW \S+ datasets \w+)$"
    )
    common = {"mode": representation, "xc": xc, "ecut": ecut, "h": h, "basis": basis, "setups": folder_of_setups}

    def check(task: Task) -> None:
        check_task(task)
        check_spin(task)
        check_cell(task, box, k_points)
        if periodic(task) and representation != "pw":
            raise LabelError(f"label.representation: {representation} has no stress for a periodic structure; give pw")
        check_program(words, "install the Python that has GPAW or give its path")
        if setups and not Path(folder_of_setups).is_dir():
            raise LabelError(f"label.setups: there is no folder {folder_of_setups}; give that of the PAW datasets")
        if version == "unknown":
            raise LabelError(
                f"label.command: {words[-1]} cannot import GPAW; give a Python that can, as in [/opt/gpaw/bin/python]"
            )
        symbols = sorted(set(described(task)["symbols"]))
        check_with(words, DRIVER, common | {"action": "check", "symbols": symbols})

    def work(task: Task, folder: Path) -> Result:
        mesh = mesh_of(task, k_points, k_spacing)
        # A width of zero is a step at the Fermi level.
        occupations = {"name": "fermi-dirac" if smearing == "none" else smearing}
        occupations |= {"width": 0.0 if smearing == "none" else smearing_width}
        request = common | described(in_box(task, box)) | {"action": "calculate", "stress": has_stress(task)}
        request |= {"periodic": list(map(bool, task.periodic))}
        request |= {"mesh": list(mesh), "occupations": occupations, "parameters": more}
        request |= {"convergence": {"energy": conv_energy, "density": conv_density}, "max_iterations": max_iterations}
        return result_of(task, ask(words, DRIVER, request, folder))

    def calculate(task: Task) -> Result:
        check(task)
        return in_scratch(task, "gpaw", keep, lambda folder: work(task, folder))

    mesh = f"k_points={tuple(k_points)!r}" if k_points else f"k_spacing={k_spacing!r} 1/Å"
    return Backend(
        guarded(calculate),
        check,
        f"{one_line(xc)} mode={representation} ecut={ecut!r} eV h={h!r} Å basis={basis} {mesh} smearing={smearing} "
        f"{smearing_width!r} eV conv_energy={conv_energy!r} eV conv_density={conv_density!r} "
        f"max_iterations={max_iterations!r} box={box!r} Å parameters={json.dumps(more, sort_keys=True)} "
        f"setups={Path(folder_of_setups).name or 'default'} spin-polarized if open-shell",
        version if version != "unknown" else "GPAW unknown",
    )


def _parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """`parameters` as plain values. Raises LabelError for what would contradict the structure or another option."""
    for name in parameters:
        if name in OURS:
            raise LabelError(f"label.parameters.{name}: it follows from the structure or another option; leave it out")
    try:
        return json.loads(json.dumps(dict(parameters)))
    except (TypeError, ValueError) as error:
        raise LabelError(f"label.parameters: {one_line(error)}; give numbers, texts, lists and mappings") from error
