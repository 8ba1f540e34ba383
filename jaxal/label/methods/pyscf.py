"""Labels from PySCF: Hartree–Fock, MP2 and density functionals in Gaussian basis sets, open systems."""

import importlib.util
from typing import Annotated, Any

import numpy as np

from jaxal.core.registry import register
from jaxal.core.units import BOHR, HARTREE, Unit
from jaxal.data.electrons import symbol
from jaxal.label.task import (
    NO_STRESS,
    Backend,
    LabelError,
    Result,
    Task,
    check_open,
    check_package,
    check_spin,
    check_task,
    code_version,
    failed,
    guarded,
    one_line,
)

KRYPTON = 36  # the last element whose def2 basis sets hold all electrons
DEF2 = "def2-svp"  # one of them: all share their core potentials


@register("labeler")
def pyscf(
    *,
    method: str = "PBE0",
    basis: str = "def2-svp",
    dispersion: str = "",
    density_fit: bool | None = None,
    frozen_core: bool = False,
    grid_level: Annotated[int, Unit("", 0)] = 3,
    conv_tol: Annotated[float, Unit("Ha", 0, True)] = 1e-9,
    max_cycle: Annotated[int, Unit("", 1)] = 50,
    memory: Annotated[int, Unit("", 1)] = 4000,
    threads: Annotated[int, Unit("", 1)] = 1,
    gpu: bool = True,
) -> Backend:
    """Hartree–Fock, MP2 or DFT by PySCF; open systems only.

    `method` is "HF", "MP2" or any functional PySCF knows; `dispersion` is empty, "d3bj", "d3zero" or "d4" (functionals
    fitted with one are named as such: "wb97x-d3bj"; "wb97x-d" is not in PySCF). Effective core potentials come
    with the basis, those of def2 for elements beyond Kr also where PySCF would leave them out. Spin-unrestricted
    where electrons are unpaired, else restricted. DFT gradients include the
    response of the grid: the forces are the gradient of the energy and sum to zero, at no measurable cost.
    `density_fit` is on for HF and DFT unless switched off. MP2 does without, since PySCF has no gradient of the
    density-fitted one; so it is for small molecules. It correlates all electrons, or with `frozen_core` the valence
    electrons.
    Where gpu4pyscf is installed and finds a GPU, HF and DFT run there, unless `gpu` is false (untested here).
    An SCF that does not converge in `max_cycle` is retried with the second-order solver, then fails.
    `memory` is in MB. More than one thread is faster, but no longer gives the same bits twice.

    Source: Sun et al., J. Chem. Phys. 153, 024109 (2020).
    """
    name = method.strip().lower()
    mp2, hartree_fock = name == "mp2", name in ("hf", "mp2")
    fitted = not mp2 if density_fit is None else density_fit
    card = gpu and not mp2 and importlib.util.find_spec("gpu4pyscf") is not None
    if mp2 and fitted:
        raise LabelError(
            "label.density_fit: PySCF has no gradient of density-fitted MP2; leave it out, or use psi4, orca"
        )
    if mp2 and dispersion:
        raise LabelError("label.dispersion: MP2 has its own; leave it empty")
    if frozen_core and not mp2:
        raise LabelError(f"label.frozen_core: {method} correlates no electrons; leave it out, or give MP2")

    def check(task: Task) -> None:
        check_package("pyscf", "'jaxal[pyscf]'")
        check_task(task)
        check_open(task, "pyscf")
        check_spin(task)
        _check_method(method, dispersion, hartree_fock)
        mean_field = build(task)
        try:
            if mean_field.do_disp():
                mean_field.get_dispersion()
        except Exception as error:
            theory = f"{method} with {dispersion}" if dispersion else method
            raise LabelError(f"label.dispersion: none for {theory} ({one_line(error)}); give another") from error

    def build(task: Task) -> Any:
        from pyscf import dft, scf

        molecule = _molecule(task, basis, memory)
        mean_field: Any
        if hartree_fock:
            mean_field = scf.UHF(molecule) if task.spin else scf.RHF(molecule)
        else:
            mean_field = dft.UKS(molecule, xc=method) if task.spin else dft.RKS(molecule, xc=method)
            mean_field.grids.level = grid_level
        if fitted:
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
        mean_field = _on_card(build(task)) if card else build(task)
        mean_field.kernel()
        if not mean_field.converged:
            mean_field = mean_field.to_cpu() if hasattr(mean_field, "to_cpu") else mean_field
            second_order = mean_field.newton()
            second_order.kernel(mean_field.mo_coeff, mean_field.mo_occ)
            mean_field = second_order.undo_soscf()
        # PySCF gives a gradient for an unconverged SCF without a word.
        if not mean_field.converged:
            return failed(task, f"the SCF did not converge in {max_cycle} cycles, nor with the second-order solver")
        correlated = _correlated(mean_field, frozen_core) if mp2 else mean_field
        gradient = correlated.nuc_grad_method()
        if not hartree_fock:
            gradient.grid_response = True
        slope = gradient.kernel()
        slope = slope.get() if hasattr(slope, "get") else slope  # from the GPU
        force = -np.asarray(slope) * (HARTREE / BOHR)
        return Result(float(correlated.e_tot) * HARTREE, force, NO_STRESS.copy(), True, "", 0.0)

    grid = "" if hartree_fock else f" grid_level={grid_level!r} with response"
    return Backend(
        guarded(calculate),
        check,
        f"{name}/{basis.strip().lower()} dispersion={dispersion or 'none'} "
        f"density_fit={fitted!r}{' frozen_core' if frozen_core else ''}{grid} conv_tol={conv_tol!r} Ha "
        f"max_cycle={max_cycle!r} unrestricted if open-shell",
        f"{code_version('pyscf')}, {code_version('pyscf-dispersion')}{', gpu4pyscf' if card else ''}",
    )


def _correlated(mean_field: Any, frozen_core: bool) -> Any:
    """MP2 on converged orbitals, restricted or not as they are."""
    from pyscf import mp

    correlated = mp.MP2(mean_field)
    if frozen_core:
        correlated.set_frozen()
    correlated.kernel()
    return correlated


def _on_card(mean_field: Any) -> Any:
    """The same calculation on a GPU, or as it is where gpu4pyscf finds none."""
    try:
        return mean_field.to_gpu()
    except (ImportError, NotImplementedError, RuntimeError, AttributeError):
        return mean_field


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
            if not core and number > KRYPTON and basis.strip().lower().startswith("def2"):
                core = gto.basis.load_ecp(DEF2, element)  # PySCF has none for def2-mTZVP: 28 electrons too many for I
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
