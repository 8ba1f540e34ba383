"""PySCF: MP2, core potentials of heavy elements, and what happens without a GPU. More is in test_label.py."""

import sys

import numpy as np
import pytest
from ase import Atoms
from label_programs import WATER, task_of

from jaxal.core.units import HARTREE
from jaxal.label.methods.pyscf import pyscf
from jaxal.label.task import LabelError

pytest.importorskip("pyscf")

IODIDE = task_of(Atoms("HI", [[0, 0, 0], [0.3, 0.2, 1.6]]))


@pytest.mark.parametrize(
    ("options", "task"),
    [
        ({"basis": "6-31g*"}, WATER),
        ({"basis": "6-31g*", "frozen_core": True}, WATER),
        ({"basis": "6-31g*"}, WATER._replace(charge=1, spin=1)),
        ({"basis": "6-31g*", "frozen_core": True}, WATER._replace(charge=1, spin=1)),
        ({"basis": "def2-svp", "frozen_core": True}, IODIDE),
    ],
    ids=["all electrons", "frozen core", "radical", "radical, frozen core", "core potential"],
)
def test_mp2_forces_are_the_gradient(options, task):
    backend = pyscf(method="MP2", **options)
    backend.check(task)
    result = backend.calculate(task)
    assert result.ok, result.reason
    assert np.linalg.norm(result.force.sum(axis=0)) < 1e-9
    way = np.random.default_rng(2).normal(size=task.position.shape)
    way /= np.linalg.norm(way)
    moved = [backend.calculate(task._replace(position=task.position + step * way)) for step in (1e-3, -1e-3)]
    slope = (moved[0].energy - moved[1].energy) / 2e-3
    assert abs(slope) > 0.1, "the test needs a force"
    assert -np.sum(result.force * way) == pytest.approx(slope, abs=2e-4)


def test_mp2_energies_are_those_of_plain_pyscf_and_spins_are_honored():
    from pyscf import gto, mp, scf

    atom = [(symbol, tuple(place)) for symbol, place in zip("OHH", WATER.position, strict=True)]
    for spin, charge in ((0, 0), (1, 1), (2, 0)):
        molecule = gto.M(atom=atom, basis="6-31g", charge=charge, spin=spin, verbose=0)
        field = (scf.UHF if spin else scf.RHF)(molecule).run(conv_tol=1e-10)
        plain = mp.MP2(field).run().e_tot
        result = pyscf(method="mp2", basis="6-31g").calculate(WATER._replace(charge=charge, spin=spin))
        assert result.ok and result.energy == pytest.approx(plain * HARTREE, abs=1e-6), result.reason
    # Nothing else shares its labels.
    assert len({pyscf(method=m, frozen_core=f).method for m, f in (("MP2", False), ("MP2", True), ("HF", False))}) == 3


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"method": "MP2", "density_fit": True}, r"^label\.density_fit: PySCF has no gradient of density-fitted MP2"),
        ({"method": "MP2", "dispersion": "d4"}, r"^label\.dispersion: MP2 has its own"),
        ({"method": "HF", "frozen_core": True}, r"^label\.frozen_core: HF correlates no electrons"),
    ],
)
def test_what_cannot_be_is_refused(options, what):
    with pytest.raises(LabelError, match=what):
        pyscf(**options)


def test_an_unconverged_scf_gives_no_mp2():
    result = pyscf(method="MP2", basis="6-31g", max_cycle=1).calculate(WATER)
    assert not result.ok and "did not converge" in result.reason


@pytest.mark.slow
@pytest.mark.parametrize("basis", ["def2-SVP", "def2svp", "def2-tzvpp", "ma-def2-svp", "def2-mTZVP", "lanl2dz"])
def test_heavy_elements_have_their_core_potential(basis):
    """PySCF takes none by itself, and for def2-mTZVP has none: all 53 electrons of iodine in a basis for 25."""
    from pyscf import scf

    electrons = []
    kernel = scf.hf.SCF.kernel

    def noted(self, *arguments, **named):
        electrons.append(self.mol.nelectron)
        return kernel(self, *arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scf.hf.SCF, "kernel", noted)
        result = pyscf(method="HF", basis=basis, density_fit=False).calculate(IODIDE)
    assert result.ok, result.reason
    assert electrons == [54 - (46 if basis == "lanl2dz" else 28)]


def test_without_a_gpu_it_runs_on_the_processor(tmp_path, monkeypatch):
    """gpu4pyscf is there, but finds no CUDA: what an import of it then gives."""
    here = pyscf(method="HF", basis="sto-3g")
    (tmp_path / "gpu4pyscf").mkdir()
    (tmp_path / "gpu4pyscf" / "__init__.py").write_text("raise ImportError('libcuda.so.1: cannot open')\n")
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("gpu4pyscf", None)
    there = pyscf(method="HF", basis="sto-3g")
    assert there.version != here.version, "numbers of a GPU are not those of a processor, to the last digits"
    result = there.calculate(WATER)
    assert result.ok and result.energy == pytest.approx(here.calculate(WATER).energy, abs=1e-9), result.reason
    assert pyscf(method="HF", basis="sto-3g", gpu=False).version == here.version
