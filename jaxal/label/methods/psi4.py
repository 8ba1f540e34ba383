"""Labels from Psi4: Hartree–Fock, density functionals and what comes after in Gaussian basis sets, open systems."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from jaxal.core.registry import register
from jaxal.core.units import BOHR, HARTREE, Unit
from jaxal.label.drivers.launch import ask, check_with, described, result_of
from jaxal.label.scratch import arguments, check_program, in_scratch, program_version
from jaxal.label.task import (
    OPEN,
    Backend,
    LabelError,
    Result,
    Task,
    check_open,
    check_spin,
    check_task,
    guarded,
    one_line,
)

DRIVER = "psi4_driver.py"
# What follows from the structure and the other options, or would let an unconverged energy pass for a good one.
OURS = {"basis", "reference", "scf_type", "mp2_type", "e_convergence", "d_convergence", "maxiter", "freeze_core"}
OURS |= {
    "dft_spherical_points",
    "dft_radial_points",
    "fail_on_maxiter",
    "die_if_not_converged",
    "units",
    "docc",
    "socc",
}


@register("labeler")
def psi4(
    *,
    method: str = "pbe0",
    basis: str = "def2-svp",
    density_fit: bool = True,
    freeze_core: bool = False,
    grid: tuple[int, int] = (99, 590),
    e_convergence: Annotated[float, Unit("Ha", 0, True)] = 1e-8,
    d_convergence: Annotated[float, Unit("", 0, True)] = 1e-8,
    max_iterations: Annotated[int, Unit("", 1)] = 100,
    options: Mapping[str, Any] | None = None,
    memory: Annotated[int, Unit("", 1)] = 2000,
    threads: Annotated[int, Unit("", 1)] = 1,
    command: Sequence[str] = ("psi4",),
    keep: str = "",
) -> Backend:
    """Hartree–Fock, DFT, MP2 and coupled clusters by the program psi4; open systems only.

    `method` is what Psi4 calls it: "hf", "pbe0", "mp2", "ccsd"; "pbe0-d3bj" needs the program dftd3 too. Where it has
    no analytic gradient Psi4 takes differences of energies, two for every coordinate. `density_fit` holds for SCF and
    MP2, `freeze_core` for MP2 and what comes after. `grid` are the radial and the angular points of a functional
    (99, 590: its gradients are without the response of the grid). `options` are further ones of Psi4's, such as
    `{guess: sad, soscf: true}`. Spin-unrestricted where electrons are unpaired.
    `memory` is in MB. `command` is a list of arguments, `keep` the folder for what failed calculations leave behind.

    Source: Smith et al., J. Chem. Phys. 152, 184108 (2020).
    """
    words = arguments(command)
    name = method.strip().lower()
    more = _options(options or {})
    radial, angular = grid
    fixed: dict[str, Any] = {
        "basis": basis,
        "scf_type": "df" if density_fit else "pk",
        "mp2_type": "df" if density_fit else "conv",
        "freeze_core": freeze_core,
        "dft_radial_points": radial,
        "dft_spherical_points": angular,
        "e_convergence": e_convergence,
        "d_convergence": d_convergence,
        "maxiter": max_iterations,
    }
    # -k: the driver is Python as it stands. The folder of the label is also that of Psi4's own scratch files.
    start = (*words, "-k", "-n", str(threads), "-s", ".")

    def request(task: Task, action: str) -> dict[str, Any]:
        chosen = fixed | more | {"reference": "uhf" if task.spin else "rhf"}
        return described(task) | {"action": action, "method": name, "options": chosen, "memory": memory}

    def check(task: Task) -> None:
        check_task(task)
        check_spin(task)
        check_open(task, "psi4")
        check_program(words, "install Psi4 (Debian: apt-get install psi4) or give its path")
        # One of each element, far apart, with the fewest electrons that can be.
        numbers = np.unique(task.numbers)
        places = np.arange(3.0 * len(numbers)).reshape(-1, 3)
        one_each = Task(numbers, places, *OPEN, 0, int(numbers.sum() % 2))
        check_with(start, DRIVER, request(one_each, "check"), ("psi4.log",))

    def work(task: Task, folder: Path) -> Result:
        answer = ask(start, DRIVER, request(task, "calculate"), folder, ("psi4.log",))
        if "gradient" in answer:
            force = -np.array(answer["gradient"], float) * (HARTREE / BOHR)
            answer = {"energy": answer["energy"] * HARTREE, "force": force.tolist()}
        return result_of(task, answer)

    def calculate(task: Task) -> Result:
        check(task)
        return in_scratch(task, "psi4", keep, lambda folder: work(task, folder))

    return Backend(
        guarded(calculate),
        check,
        f"{one_line(name)}/{one_line(basis.lower())} density_fit={density_fit!r} freeze_core={freeze_core!r} "
        f"grid={tuple(grid)!r} e_convergence={e_convergence!r} Ha d_convergence={d_convergence!r} "
        f"max_iterations={max_iterations!r} options={json.dumps(more, sort_keys=True)} unrestricted if open-shell",
        "Psi4 " + program_version((*words, "--version"), r"(?m)^(\d\S*)\s*$"),
    )


def _options(options: Mapping[str, Any]) -> dict[str, Any]:
    """`options` in lower case. Raises LabelError for what would contradict the structure or another option."""
    lower = {str(key).lower(): value for key, value in options.items()}
    for key in lower:
        if key in OURS:
            raise LabelError(f"label.options.{key}: it follows from the structure or another option; leave it out")
    try:
        return json.loads(json.dumps(lower))
    except (TypeError, ValueError) as error:
        raise LabelError(f"label.options: {one_line(error)}; give numbers, texts, lists and mappings") from error
