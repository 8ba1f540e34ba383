"""Labels from tblite: the GFN tight-binding methods, 1 ms for ten atoms; molecules, crystals, slabs and wires."""

import os
from typing import Annotated, Literal

import numpy as np

from jaxal.core.registry import register
from jaxal.core.units import BOHR, BOLTZMANN, HARTREE, Unit
from jaxal.data.electrons import symbol
from jaxal.label.cells import check_cell
from jaxal.label.task import (
    NO_STRESS,
    Backend,
    LabelError,
    Result,
    Task,
    check_package,
    check_spin,
    check_task,
    code_version,
    guarded,
    periodic,
    volume,
)

HEAVIEST = 86  # radon
# GFN methods put the f electrons of the lanthanides into the core: Ce to Lu have three electrons, like La.
LANTHANIDES = range(58, 72)


@register("labeler")
def tblite(
    *,
    method: Literal["GFN2-xTB", "GFN1-xTB"] = "GFN2-xTB",
    accuracy: Annotated[float, Unit("", 0, True)] = 0.1,
    electronic_temperature: Annotated[float, Unit("K", 0)] = 300.0,
    max_iterations: Annotated[int, Unit("", 1)] = 250,
    solvent: str = "",
) -> Backend:
    """GFN2-xTB or GFN1-xTB tight binding by tblite; open or periodic (Γ point only).

    tblite repeats a periodic structure in all three directions: a slab needs a vacuum of at least 8 Å in its cell. Its
    energies and forces come to rest slowly with the vacuum (the potential of a charge has a part 1/r^3 that no Ewald
    sum holds): by GFN1-xTB CO on three layers of platinum feels 1.8 eV/Å along z with 10 Å, 2.2 with 20 and 2.6 with
    40. So compare what has the same cell.

    `accuracy` scales the SCF thresholds: at tblite's default 1 forces are off by 1e-4 eV/Å, at 0.1 by 1e-5, for
    the same time. `solvent` names an implicit ALPB solvent, such as "water", for open systems. Open shells are
    spin-polarized (without, GFN knows no spin: triplet O2 lies above the singlet). The energy is the free
    energy at the electronic temperature, of which the forces are the gradient.

    Source: Bannwarth, Ehlert, Grimme, JCTC 15, 1652 (2019); Grimme, Bannwarth, Shushkov, JCTC 13, 1989 (2017);
    spin polarization: Neugebauer et al., J. Comput. Chem. 44, 2120 (2023).
    """

    def check(task: Task) -> None:
        check_package("tblite", "tblite")
        check_task(task)
        for number in task.numbers:
            if not 1 <= number <= HEAVIEST:
                raise LabelError(f"label: {method} does not know {symbol(int(number))}; it ends at Rn (Z = {HEAVIEST})")
        # tblite silently runs H2O+ given as a singlet as a doublet, so parity is ours to check.
        check_spin(task, sum(57 if z in LANTHANIDES else int(z) for z in task.numbers))
        if periodic(task):
            check_cell(task, None)
        if solvent and periodic(task):
            raise LabelError("label.solvent: a periodic system has no implicit solvent; leave it empty")

    def calculate(task: Task) -> Result:
        check(task)
        calculator_class = _interface()
        box = {"lattice": task.cell / BOHR, "periodic": np.ones(3, bool)} if periodic(task) else {}
        # Built anew for every label: a restart from the last density would make labels depend on their order.
        calculator = calculator_class(
            method,
            np.asarray(task.numbers),
            task.position / BOHR,
            charge=float(task.charge),
            uhf=int(task.spin),
            **box,
        )
        calculator.set("verbosity", 0)
        calculator.set("accuracy", accuracy)
        calculator.set("temperature", electronic_temperature * BOLTZMANN / HARTREE)
        calculator.set("max-iter", max_iterations)
        if task.spin:
            calculator.add("spin-polarization", 1.0)
        if solvent:
            calculator.add("alpb-solvation", solvent)
        answer = calculator.singlepoint()  # raises where the SCF does not converge
        force = -np.array(answer.get("gradient")) * (HARTREE / BOHR)
        stress = NO_STRESS.copy()
        if periodic(task):
            stress = np.array(answer.get("virial")) * (HARTREE / volume(task))
        return Result(float(answer.get("energy")) * HARTREE, force, stress, True, "", 0.0)

    return Backend(
        guarded(calculate),
        check,
        f"{method} accuracy={accuracy!r} electronic_temperature={electronic_temperature!r} K "
        f"max_iterations={max_iterations!r} solvent={solvent or 'none'} spin-polarized if open-shell",
        code_version("tblite"),
    )


def _interface() -> type:
    """The calculator class of tblite, loaded so that it runs on one thread unless the user asks for more.

    With two threads the last bits of the forces change from call to call (25 different gradients in 200 runs of
    bicyclobutane), at no gain for small molecules. OpenMP reads its variable when the library is loaded.
    """
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        from tblite.interface import Calculator
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
    return Calculator
