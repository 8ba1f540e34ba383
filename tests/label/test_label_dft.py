"""CP2K, ABINIT, GPAW and Psi4: mistakes told in one line, and the same physics as other programs.

What every code promises is tested in test_label_codes.py.
"""

import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.units import Bohr, GPa, Hartree
from label_programs import (
    COPPER,
    GAUSSIANS,
    HYDROGEN,
    NORM,
    NORM_BOX,
    NORM_BOX_HEAD,
    NORM_HEAD,
    PSP8,
    SILICON,
    VALENCE,
    WATER,
    WAVES,
    needs,
    task_of,
)

from jaxal.core import registry
from jaxal.core.discovery import import_parts
from jaxal.label.drivers import launch
from jaxal.label.methods.abinit import abinit
from jaxal.label.methods.cp2k import _result as _cp2k_result
from jaxal.label.methods.cp2k import cp2k
from jaxal.label.methods.espresso import espresso
from jaxal.label.methods.gpaw import gpaw
from jaxal.label.methods.psi4 import psi4
from jaxal.label.methods.pyscf import pyscf
from jaxal.label.task import LabelError, Result, Task

import_parts()

slow = pytest.mark.slow
TRIPLET, CATION = HYDROGEN._replace(spin=2), HYDROGEN._replace(charge=1, spin=1)


def done(result: Result) -> Result:
    assert result.ok, result.reason
    return result


# ---------------------------------------------------------------- mistakes


def case(name: str, options: dict[str, Any], task: Task, what: str, program: bool = False):
    return pytest.param(name, options, task, what, marks=[needs(name)] if program else [], id=f"{name}, {what}")


@pytest.mark.parametrize(
    ("name", "options", "task", "what"),
    [
        case("cp2k", {"box": None}, HYDROGEN, r"label\.box: a molecule has no"),
        case("cp2k", {"xc": "NONSENSE"}, HYDROGEN, r"label\.xc: 'NONSENSE' is unknown"),
        case("cp2k", {"xc": "GGA_X_PBE"}, HYDROGEN, r"label\.potential: none is known for GGA_X_PBE"),
        case("cp2k", {"solver": "ot", "k_points": (2, 2, 2)}, SILICON, r"label\.solver: ot has neither"),
        case("cp2k", {"elements": {"H": {"bases": "x"}}}, HYDROGEN, r"label\.elements\.H: .* does not fit"),
        case("cp2k", {"input_data": {"charge": 1}}, HYDROGEN, r"label\.input_data\.charge: it follows"),
        case("cp2k", {"input_data": {"SCF": {"EPS_SCF": 1}}}, HYDROGEN, r"SCF\.EPS_SCF: it follows"),
        case("cp2k", {"input_data": {"scf": {"ignore_convergence_failure": True}}}, HYDROGEN, "it follows"),
        case("cp2k", {"input_data": {"SCF": {"X": "1\n&END"}}}, HYDROGEN, r"SCF\.X: .* does not fit"),
        case("cp2k", {"input_data": {"&END": 1}}, HYDROGEN, r"label\.input_data\.&END: no keyword"),
        case("cp2k", {"data": "no/such"}, HYDROGEN, r"label\.data: there is no file .*no/such/BASIS_MOLOPT", True),
        case("cp2k", {"basis": "NO-SUCH"}, HYDROGEN, r"label\.basis: there is no NO-SUCH for H in BASIS_MOLOPT", True),
        case("cp2k", {"potential": "GTH-NO"}, HYDROGEN, r"label\.potential: there is no GTH-NO for H", True),
        case("cp2k", {}, HYDROGEN._replace(numbers=np.array([92, 92])), r"label\.basis: there is no .* for U", True),
        case("abinit", NORM_HEAD, COPPER, r"label\.pseudopotentials: none for Cu"),
        case("abinit", NORM_BOX_HEAD | {"box": 6.5}, HYDROGEN, "at least 6.8"),
        case("abinit", NORM | {"pseudopotentials": {"Si": Path(__file__)}}, SILICON, r"\.Si: test_label_dft\.py does"),
        case("abinit", {"pseudopotentials": {"Si": Path("no.psp8")}, "ecut": 9.0}, SILICON, "cannot read no.psp8"),
        case("abinit", NORM_HEAD | {"input_data": {"NSYM": 4}}, SILICON, r"label\.input_data\.nsym: it follows"),
        case(
            "abinit", NORM_HEAD | {"input_data": {"x": "1\nnstep 1"}}, SILICON, r"label\.input_data\.x: .* does not fit"
        ),
        case("abinit", NORM_HEAD | {"input_data": {"x y": 1}}, SILICON, r"label\.input_data\.x y: no variable"),
        case("gpaw", {"box": None}, HYDROGEN, r"label\.box: a molecule has no"),
        case("gpaw", {"representation": "fd"}, SILICON, r"label\.representation: fd has no stress"),
        case("gpaw", {"parameters": {"charge": 1}}, HYDROGEN, r"label\.parameters\.charge: it follows"),
        case("gpaw", {"command": [sys.executable, "-S", "-E"]}, SILICON, r"label\.command: .* cannot import GPAW"),
        case("gpaw", {"setups": "no/such"}, SILICON, r"label\.setups: there is no folder .*no/such"),
        case("gpaw", WAVES | {"xc": "NONSENSE"}, HYDROGEN, r"label\.xc: GPAW does not know 'NONSENSE'", True),
        case(
            "gpaw",
            WAVES | {"representation": "lcao", "basis": "zzz"},
            HYDROGEN,
            r"label\.basis: there is no H\.zzz",
            True,
        ),
        case(
            "gpaw", WAVES, HYDROGEN._replace(numbers=np.array([92, 92])), r"label\.setups: there is no .*U\.PBE", True
        ),
        case("psi4", {}, COPPER, "open systems"),
        case("psi4", {"options": {"Reference": "uhf"}}, WATER, r"label\.options\.reference: it follows"),
        case("psi4", {"options": {"fail_on_maxiter": False}}, WATER, r"label\.options\.fail_on_maxiter: it follows"),
        case("psi4", {"options": {"nonsense": 1}}, WATER, r"label\.options: Psi4 refuses them \(NONSENSE is not", True),
        case("psi4", {"method": "nonsense"}, WATER, r"label\.method: Psi4 has no gradient for 'nonsense'", True),
        case("psi4", {"basis": "nonsense"}, WATER, r"label\.basis: Psi4 has no 'nonsense' for H, O", True),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(name, options, task, what, tmp_path):
    box = {} if name == "psi4" or "box" in options else {"box": 8.0}
    with pytest.raises(LabelError, match=what) as caught:
        registry.get("labeler", name)(**box | options, keep=str(tmp_path)).check(task)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


@needs("psi4")
def test_psi4_needs_a_program_for_dispersion(monkeypatch, tmp_path):
    program = shutil.which("psi4")
    monkeypatch.setenv("PATH", str(tmp_path))  # where there is no dftd3
    with pytest.raises(
        LabelError, match=r"^label\.method: pbe0-d3bj needs the program dftd3; install it, or give pbe0$"
    ):
        psi4(method="PBE0-D3BJ", command=[program]).check(WATER)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("open('answer.json', 'w').write('{\"energy\": 1')", "answer.json is damaged"),
        ("open('answer.json', 'w').write('[1]')", "answer.json holds no mapping"),
        ("open('answer.json', 'w').write('{\"energy\": 1, \"force\": [[0, 0, 0]]}')", "does not fit"),
        ("open('answer.json', 'w').write('{\"force\": [[0, 0, 0], [0, 0, 0]]}')", "does not fit"),
        ("pass", "wrote no answer.json"),
        ("raise SystemExit('no license')", "exit status 1: no license"),
        ("import os; os.kill(os.getpid(), 9)", "signal 9"),
    ],
)
def test_a_driver_that_misbehaves_is_a_failed_label(program, reason, tmp_path):
    words = [sys.executable, "-c", program]
    answer = launch.ask(words, "gpaw_driver.py", launch.described(HYDROGEN), tmp_path)
    result = launch.result_of(HYDROGEN, answer)
    assert not result.ok and reason in result.reason


def test_a_driver_that_does_not_answer_a_check_is_ended(monkeypatch):
    monkeypatch.setattr(launch, "PATIENCE", 0.5)
    with pytest.raises(LabelError, match=r"^label\.command: the program cannot be asked .* did not end in 0\.5 s"):
        launch.check_with([sys.executable, "-c", "import time; time.sleep(60)"], "gpaw_driver.py", {})


# ---------------------------------------------------------------- the same physics


@slow
@needs("psi4")
@pytest.mark.parametrize(
    ("method", "task", "energy", "force"),
    [
        pytest.param("HF", WATER, 1e-6, 1e-4, id="HF"),
        pytest.param("HF", WATER._replace(charge=1, spin=1), 1e-6, 1e-4, id="HF, radical cation"),
        # The effective core potential of iodine comes with the basis set.
        pytest.param("HF", task_of(Atoms("HI", [[0, 0, 0], [0, 0, 1.65]])), 1e-6, 1e-4, id="HF, core potential"),
        pytest.param("PBE0", WATER, 1e-4, 5e-4, id="PBE0"),
    ],
)
def test_psi4_agrees_with_pyscf(method, task, energy, force):
    pytest.importorskip("pyscf")
    here = done(psi4(method=method, density_fit=False).calculate(task))
    there = done(pyscf(method=method, density_fit=False, grid_level=4).calculate(task))
    assert here.energy == pytest.approx(there.energy, abs=energy)
    np.testing.assert_allclose(here.force, there.force, atol=force)


@slow
@pytest.mark.parametrize(
    ("name", "options", "basis"),
    [
        pytest.param(
            "cp2k", {"basis": "TZV2P-MOLOPT-GTH", "cutoff": 200.0, "box": 8.0}, "cc-pvtz", marks=needs("cp2k")
        ),
        pytest.param("abinit", NORM_BOX | {"ecut": 30.0}, "aug-cc-pvtz", marks=needs("abinit")),
        pytest.param("gpaw", WAVES | {"ecut": 350.0, "box": 9.0}, "aug-cc-pvtz", marks=needs("gpaw")),
    ],
    ids=["cp2k", "abinit", "gpaw"],
)
def test_charge_and_spin_cost_what_they_cost_in_pyscf(name, options, basis):
    """The vertical excitation and ionization of H2 with PBE. A charge among its images, in ABINIT, is too cheap.

    The excited electron is diffuse, which plane waves can be, and functions of CP2K's cannot.
    """
    pytest.importorskip("pyscf")
    oracle = pyscf(method="PBE", basis=basis, density_fit=False)
    backend = registry.get("labeler", name)(**options)
    here, there = ([done(each.calculate(task)) for task in (HYDROGEN, TRIPLET, CATION)] for each in (backend, oracle))
    np.testing.assert_allclose(here[0].force, there[0].force, atol=0.15)
    assert here[1].energy - here[0].energy == pytest.approx(there[1].energy - there[0].energy, abs=0.25)
    ionization = there[2].energy - there[0].energy
    low = 4.0 if name == "abinit" else 0.15
    assert ionization - low < here[2].energy - here[0].energy < ionization + 0.15


@slow
@needs("abinit")
@needs("gpaw")
@needs("espresso")
def test_three_codes_agree_on_silicon():
    """The local density approximation with three kinds of pseudopotential, without and with unpaired electrons."""
    smeared = {"k_points": (2, 2, 2), "smearing_width": 0.3}
    backends = (
        espresso(**VALENCE | smeared | {"smearing": "fd"}),
        abinit(**NORM | smeared),
        gpaw(**WAVES | smeared | {"xc": "LDA", "ecut": 300.0}),
    )
    plain = [done(backend.calculate(SILICON)) for backend in backends]
    polarized = [done(backend.calculate(SILICON._replace(spin=2))) for backend in backends]
    for paired, unpaired in zip(plain[1:], polarized[1:], strict=True):
        np.testing.assert_allclose(paired.force, plain[0].force, atol=0.1)
        np.testing.assert_allclose(paired.stress, plain[0].stress, atol=0.02)
        assert unpaired.energy - paired.energy == pytest.approx(polarized[0].energy - plain[0].energy, abs=0.1)
        np.testing.assert_allclose(unpaired.force, polarized[0].force, atol=0.15)
    assert polarized[0].energy > plain[0].energy + 0.3


@slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("cp2k", {"basis": "SZV-MOLOPT-SR-GTH", "cutoff": 60.0}, marks=needs("cp2k")),
        pytest.param("abinit", NORM, marks=needs("abinit")),
        pytest.param("gpaw", WAVES | {"k_points": (2, 2, 2)}, marks=needs("gpaw")),
    ],
    ids=["cp2k", "abinit", "gpaw"],
)
def test_a_left_handed_cell_is_a_cell(name, options):
    backend = registry.get("labeler", name)(**options)
    left = SILICON._replace(cell=SILICON.cell[[1, 0, 2]])
    reference, other = (done(backend.calculate(task)) for task in (SILICON, left))
    assert np.linalg.det(SILICON.cell) * np.linalg.det(left.cell) < 0
    assert other.energy == pytest.approx(reference.energy, abs=1e-3)
    np.testing.assert_allclose(other.force, reference.force, atol=5e-3)
    np.testing.assert_allclose(other.stress, reference.stress, atol=1e-3)


@slow
@needs("cp2k")
def test_cp2k_has_functionals_of_libxc_dispersion_and_a_second_solver():
    plain = done(cp2k(**GAUSSIANS).calculate(HYDROGEN))
    library = done(cp2k(**GAUSSIANS, xc="GGA_X_PBE+GGA_C_PBE", potential="GTH-PBE").calculate(HYDROGEN))
    assert library.energy == pytest.approx(plain.energy, abs=1e-3)
    orbital = done(cp2k(**GAUSSIANS, solver="ot").calculate(HYDROGEN))
    assert orbital.energy == pytest.approx(plain.energy, abs=1e-4)
    np.testing.assert_allclose(orbital.force, plain.force, atol=5e-3)

    pytest.importorskip("pyscf")
    corrected = done(cp2k(**GAUSSIANS, dispersion="d3bj").calculate(HYDROGEN))
    with_d3, without = (done(pyscf(method="PBE", dispersion=d3).calculate(HYDROGEN)) for d3 in ("d3bj", ""))
    assert corrected.energy - plain.energy == pytest.approx(with_d3.energy - without.energy, abs=1e-4)
    assert abs(with_d3.energy - without.energy) > 1e-3


@slow
@needs("cp2k")
def test_cp2k_says_what_it_complains_about(tmp_path):
    result = cp2k(**GAUSSIANS, input_data={"SCF": {"NO_SUCH": 1}}, keep=str(tmp_path)).calculate(HYDROGEN)
    assert not result.ok and result.reason.startswith("cp2k: found an unknown keyword NO_SUCH in section SCF")


@slow
@needs("abinit")
def test_abinit_says_what_it_complains_about_and_takes_paw(tmp_path):
    result = abinit(**NORM, input_data={"no_such": 1}, keep=str(tmp_path)).calculate(SILICON)
    assert not result.ok and result.reason.startswith("abinit: Found token: `NO_SUCH` in the input file")

    sets = {"pseudopotentials": {"Si": PSP8["Si"].with_suffix(".xml")}, "ecut": 8.0}
    with pytest.raises(LabelError, match=r"^label\.pawecutdg: Si\.xml is PAW, which needs a finer grid"):
        abinit(**NORM | sets).check(SILICON)
    fine = done(abinit(**NORM | sets, pawecutdg=16.0).calculate(SILICON))
    norm = done(abinit(**NORM).calculate(SILICON))
    np.testing.assert_allclose(fine.force, norm.force, atol=0.1)


BEFORE_2025 = """\
 ENERGY| Total FORCE_EVAL ( QS ) energy [a.u.]:               -7.500000000000000

 ATOMIC FORCES in [a.u.]

 # Atom   Kind   Element          X              Y              Z
      1      1      Si          0.010000000    0.020000000    0.030000000
      2      1      Si         -0.010000000   -0.020000000   -0.030000000
 SUM OF ATOMIC FORCES           0.000000000    0.000000000    0.000000000     0.000000000

 STRESS| Analytical stress tensor [GPa]
 STRESS|                        x                   y                   z
 STRESS|      x       2.0000000000        0.1000000000        0.0000000000
 STRESS|      y       0.1000000000        2.0000000000        0.0000000000
 STRESS|      z       0.0000000000        0.0000000000        3.0000000000
"""
SINCE_2025 = """\
 ENERGY| Total FORCE_EVAL ( QS ) energy [hartree]              -7.500000000000000

 FORCES| Atomic forces [hartree/bohr]
 FORCES|   Atom     x               y               z               |f|
 FORCES|      1  1.00000000E-02  2.00000000E-02  3.00000000E-02   3.74165739E-02
 FORCES|      2 -1.00000000E-02 -2.00000000E-02 -3.00000000E-02   3.74165739E-02
 FORCES| Sum     0.00000000E+00  0.00000000E+00  0.00000000E+00   0.00000000E+00

 STRESS| Analytical stress tensor [bar]
 STRESS|                        x                   y                   z
 STRESS|      x       2.00000000000E+04   1.00000000000E+03   0.00000000000E+00
 STRESS|      y       1.00000000000E+03   2.00000000000E+04   0.00000000000E+00
 STRESS|      z       0.00000000000E+00   0.00000000000E+00   3.00000000000E+04
"""


@pytest.mark.parametrize("output", [BEFORE_2025, SINCE_2025])
def test_cp2k_prints_in_one_way_until_2024_and_in_another_from_2025_on(output):
    task = SILICON._replace(numbers=SILICON.numbers[:2], position=SILICON.position[:2])
    result = _cp2k_result(task, output, True)
    assert result.ok and result.energy == pytest.approx(-7.5 * Hartree, rel=1e-8)
    np.testing.assert_allclose(result.force, np.array([[1, 2, 3], [-1, -2, -3]]) * 0.01 * Hartree / Bohr, rtol=1e-8)
    expected = -np.array([[2, 0.1, 0], [0.1, 2, 0], [0, 0, 3]]) * GPa
    np.testing.assert_allclose(result.stress, expected, rtol=1e-6, atol=1e-12)
