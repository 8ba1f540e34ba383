"""Labels from PySCF: Hartree–Fock and density functionals in Gaussian basis sets, open systems."""

from typing import Annotated, Any

import numpy as np

from jaxal.label.task import (
    Backend,
    LabelError,
    Result,
    Task,
    check_package,
    check_spin,
    check_task,
    code_version,
    failed,
    guarded,
    one_line,
    periodic,
    symbol,
)
from jaxal.registry import register
from jaxal.units import BOHR, HARTREE, Unit


@register("labeler")
def pyscf(
    *,
    method: str = "PBE0",
    basis: str = "def2-svp",
    dispersion: str = "",
    density_fit: bool = True,
    grid_level: Annotated[int, Unit("", 0)] = 3,
    conv_tol: Annotated[float, Unit("Ha", 0, True)] = 1e-9,
    max_cycle: Annotated[int, Unit("", 1)] = 50,
    memory: Annotated[int, Unit("", 1)] = 4000,
    threads: Annotated[int, Unit("", 1)] = 1,
) -> Backend:
    """Hartree–Fock or DFT by PySCF; open systems only.

    `method` is "HF" or any functional PySCF knows; `dispersion` is empty, "d3bj", "d3zero" or "d4" (functionals
    fitted with one are named as such: "wb97x-d3bj"; "wb97x-d" is not in PySCF). Effective core potentials come
    with the basis. Spin-unrestricted where electrons are unpaired, else restricted. DFT gradients include the
    response of the grid: the forces are the gradient of the energy and sum to zero, at no measurable cost.
    An SCF that does not converge in `max_cycle` is retried with the second-order solver, then fails.
    `memory` is in MB. More than one thread is faster, but no longer gives the same bits twice.

    Source: Sun et al., J. Chem. Phys. 153, 024109 (2020).
    """
    hartree_fock = method.strip().lower() == "hf"

    def check(task: Task) -> None:
        check_package("pyscf", "'jaxal[pyscf]'")
        check_task(task)
        if periodic(task):
            raise LabelError("label: pyscf is for open systems; drop the cell or use another labeler")
        check_spin(task)
        _check_method(method, dispersion, hartree_fock)
        mean_field = build(task)
        try:
            if mean_field.do_disp():
                mean_field.get_dispersion()
        except Exception as error:
            wanted = f"{method} with {dispersion}" if dispersion else method
            raise LabelError(f"label.dispersion: none for {wanted} ({one_line(error)}); give another") from error

    def build(task: Task) -> Any:
        from pyscf import dft, scf

        molecule = _molecule(task, basis, memory)
        mean_field: Any
        if hartree_fock:
            mean_field = scf.UHF(molecule) if task.spin else scf.RHF(molecule)
        else:
            mean_field = dft.UKS(molecule, xc=method) if task.spin else dft.RKS(molecule, xc=method)
            mean_field.grids.level = grid_level
        if density_fit:
            mean_field = mean_field.density_fit()
        mean_field.conv_tol = conv_tol
        mean_field.max_cycle = max_cycle
        if dispersion:
            mean_field.disp = dispersion
        return mean_field

    def calculate(task: Task) -> Result:
        check(task)
        from pyscf import lib

        lib.num_threads(threads)
        mean_field = build(task)
        mean_field.kernel()
        if not mean_field.converged:
            second_order = mean_field.newton()
            second_order.kernel(mean_field.mo_coeff, mean_field.mo_occ)
            mean_field = second_order.undo_soscf()
        # PySCF gives a gradient for an unconverged SCF without a word.
        if not mean_field.converged:
            return failed(task, f"the SCF did not converge in {max_cycle} cycles, nor with the second-order solver")
        gradient = mean_field.nuc_grad_method()
        if not hartree_fock:
            gradient.grid_response = True
        force = -np.asarray(gradient.kernel()) * (HARTREE / BOHR)
        return Result(float(mean_field.e_tot) * HARTREE, force, np.zeros((3, 3)), True, "", 0.0)

    grid = "" if hartree_fock else f" grid_level={grid_level!r} with response"
    return Backend(
        guarded(calculate),
        check,
        f"{method.strip().lower()}/{basis.strip().lower()} dispersion={dispersion or 'none'} "
        f"density_fit={density_fit!r}{grid} conv_tol={conv_tol!r} Ha max_cycle={max_cycle!r} "
        "unrestricted if open-shell",
        f"{code_version('pyscf')}, {code_version('pyscf-dispersion')}",
    )


def _check_method(method: str, dispersion: str, hartree_fock: bool) -> None:
    from pyscf import dft
    from pyscf.scf.dispersion import DISP_VERSIONS, parse_dft

    if dispersion and dispersion not in DISP_VERSIONS:
        raise LabelError(f"label.dispersion: {dispersion!r} is unknown; give one of {', '.join(DISP_VERSIONS)}")
    if hartree_fock:
        return
    try:
        functional, _, named = parse_dft(method)
        dft.libxc.parse_xc(functional)
    except Exception as error:
        raise LabelError(
            f"label.method: PySCF does not know {method!r} ({one_line(error)}); give HF or a functional such as PBE0"
        ) from error
    if named and dispersion:
        raise LabelError(f"label.dispersion: {method} has its own; leave it empty")


def _molecule(task: Task, basis: str, memory: int) -> Any:
    """PySCF's molecule with the core potentials that belong to the basis. Raises LabelError if there is no basis."""
    from pyscf import gto
    from pyscf.lib.exceptions import BasisNotFoundError

    potentials = {}
    for number in sorted({int(z) for z in task.numbers}):
        element = symbol(number)
        try:
            gto.basis.load(basis, element)
            core = gto.basis.load_ecp(basis, element)
        except (BasisNotFoundError, RuntimeError, KeyError) as error:
            raise LabelError(f"label.basis: PySCF has no {basis!r} for {element}; give another basis") from error
        if core:
            potentials[element] = core
    return gto.M(
        atom=[(symbol(int(z)), tuple(p)) for z, p in zip(task.numbers, task.position, strict=True)],
        unit="Angstrom",
        basis=basis,
        ecp=potentials,
        charge=int(task.charge),
        spin=int(task.spin),
        verbose=0,
        max_memory=memory,
    )
