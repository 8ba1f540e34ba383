"""Reference methods: forces are the gradient of the energy, spin is explicit, nonsense is refused."""

import importlib.util
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule

from jaxal import label
from jaxal.core import registry
from jaxal.core.units import BOHR, HARTREE
from jaxal.label.acceptance import accept
from jaxal.label.drivers import launch
from jaxal.label.methods.ase import ase
from jaxal.label.methods.pyscf import pyscf
from jaxal.label.methods.tblite import tblite
from jaxal.label.pseudopotential import valence
from jaxal.label.task import (
    LabelError,
    Result,
    Task,
    answered,
    check_spin,
    code_version,
    elsewhere,
    packed,
    unpacked,
)

needs_pyscf = pytest.mark.skipif(importlib.util.find_spec("pyscf") is None, reason="PySCF is not installed")


def task_of(atoms: Atoms, charge=0, spin=0) -> Task:
    return Task(atoms.numbers, atoms.positions.copy(), np.array(atoms.cell), np.array(atoms.pbc), charge, spin)


def rattled(name: str, **electrons) -> Task:
    atoms = molecule(name)
    atoms.positions += np.random.default_rng(0).normal(size=atoms.positions.shape) * 0.05
    return task_of(atoms, **electrons)


def largest_force_error(backend, task: Task, components, h=1e-3) -> float:
    """Against central differences of the energy."""
    force = backend.calculate(task).force
    errors = []
    for atom, axis in components:
        energies = []
        for sign in (+1, -1):
            position = task.position.copy()
            position[atom, axis] += sign * h
            energies.append(backend.calculate(task._replace(position=position)).energy)
        errors.append(abs(-(energies[0] - energies[1]) / (2 * h) - force[atom, axis]))
    return max(errors)


def largest_stress_error(backend, task: Task, h=1e-4) -> float:
    """Against central differences of the energy under strain, per volume: positive under tension."""
    result = backend.calculate(task)
    assert result.ok, result.reason
    volume = abs(np.linalg.det(task.cell))
    errors = []
    for i, j in ((0, 0), (1, 2), (2, 2)):
        energies = []
        for sign in (+1, -1):
            strain = np.zeros((3, 3))
            strain[i, j] += sign * h / 2
            strain[j, i] += sign * h / 2
            stretch = np.eye(3) + strain
            energies.append(
                backend.calculate(task._replace(position=task.position @ stretch, cell=task.cell @ stretch)).energy
            )
        errors.append(abs((energies[0] - energies[1]) / (2 * h) / volume - result.stress[i, j]))
    return max(errors)


def test_the_host_side_imports_no_jax():
    modules = [module.name for module in pkgutil.walk_packages(label.__path__, "jaxal.label.")]
    own = [name for name in modules if not name.endswith(("_driver", ".broker"))]  # those run in other Pythons
    code = ";".join(f"import {name}" for name in own)
    code += ";import sys; sys.exit('jax' in sys.modules or 'pyscf' in sys.modules or 'tblite' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_backends_are_registered_with_options_and_descriptions():
    assert {"tblite", "pyscf", "ase"} <= set(registry.names("labeler"))
    for name in ("tblite", "pyscf", "ase"):
        assert registry.description("labeler", name).endswith((".", "d"))
        assert registry.options("labeler", name)


# ---------------------------------------------------------------- spin and charge


@pytest.mark.parametrize(
    ("name", "charge", "spin", "right"),
    [
        ("H2O", 0, 0, True),
        ("H2O", 1, 0, False),  # the trap: tblite would silently run a doublet
        ("H2O", 1, 1, True),
        ("O2", 0, 2, True),
        ("O2", 0, 1, False),
        ("H2O", 0, 12, False),
        ("H2O", 0, -2, False),
        ("H2O", 11, 0, False),
    ],
)
def test_impossible_electrons_are_refused_with_one_line(name, charge, spin, right):
    task = task_of(molecule(name), charge, spin)
    if right:
        check_spin(task)
    else:
        with pytest.raises(LabelError, match=r"^(spin|charge): [^\n]*$"):
            check_spin(task)


def test_every_method_refuses_the_singlet_water_cation():
    task = task_of(molecule("H2O"), charge=1, spin=0)
    backends = [tblite()] + ([pyscf(method="HF", basis="sto-3g")] if needs_pyscf.args[0] is False else [])
    for backend in backends:
        with pytest.raises(LabelError, match="9 electrons; give 1, 3, 5"):
            backend.check(task)
        result = backend.calculate(task)  # nor does it calculate when nobody has asked `check`
        assert not result.ok and result.reason.startswith("spin: 0")


# ---------------------------------------------------------------- tblite


@pytest.mark.parametrize("method", ["GFN2-xTB", "GFN1-xTB"])
@pytest.mark.parametrize(
    ("name", "charge", "spin"),
    [("CH3CH2OH", 0, 0), ("OH", 0, 1), ("H2O", 1, 1), ("O2", 0, 2)],
)
def test_tblite_forces_are_the_gradient(method, name, charge, spin):
    backend = tblite(method=method)
    task = rattled(name, charge=charge, spin=spin)
    backend.check(task)
    result = backend.calculate(task)
    assert result.ok and result.seconds > 0
    assert largest_force_error(backend, task, [(0, 0), (1, 1), (1, 2)]) < 1e-4
    assert np.linalg.norm(result.force.sum(axis=0)) < 1e-8


def test_tblite_is_the_gradient_with_a_solvent_and_a_temperature_too():
    task = rattled("CH3CH2OH")
    plain, wet = tblite(), tblite(solvent="water", electronic_temperature=3000.0)
    assert largest_force_error(wet, task, [(0, 0), (2, 1)]) < 1e-4
    assert wet.calculate(task).energy < plain.calculate(task).energy - 0.05


def test_tblite_agrees_with_its_own_ase_calculator():
    from tblite.ase import TBLite

    atoms = molecule("CH3CH2OH")
    atoms.calc = TBLite(method="GFN2-xTB", accuracy=0.1, verbosity=0)
    result = tblite().calculate(task_of(atoms))
    assert result.energy == pytest.approx(atoms.get_potential_energy(), abs=1e-5)
    np.testing.assert_allclose(result.force, atoms.get_forces(), atol=1e-5)

    crystal = bulk("Si", "diamond", 5.4, cubic=True)
    crystal.calc = TBLite(method="GFN1-xTB", accuracy=0.1, verbosity=0)
    result = tblite(method="GFN1-xTB").calculate(task_of(crystal))
    np.testing.assert_allclose(result.stress, crystal.get_stress(voigt=False), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["GFN2-xTB", "GFN1-xTB"])
def test_tblite_periodic_forces_and_stress(method):
    crystal = bulk("NaCl", "rocksalt", 5.5, cubic=True)
    crystal.positions += np.random.default_rng(1).normal(size=(8, 3)) * 0.1
    shear = np.array([[1, 0.02, 0], [0, 1, 0.03], [0, 0, 1]])
    crystal.set_cell(crystal.cell.array @ shear, scale_atoms=True)
    backend, task = tblite(method=method, accuracy=0.01), task_of(crystal)
    backend.check(task)
    assert largest_force_error(backend, task, [(0, 0), (5, 2)]) < 3e-4  # tblite's Ewald sums
    assert largest_stress_error(backend, task) < 1e-5
    # A crystal pulled apart is under tension.
    wide = crystal.copy()
    wide.set_cell(crystal.cell.array * 1.2, scale_atoms=True)
    assert np.trace(backend.calculate(task_of(wide)).stress) > 0


def test_tblite_open_shells_are_spin_polarized():
    """Without spin polarization GFN2 puts triplet O2 above singlet O2 by 0.07 eV; nature: 0.98 eV below."""
    triplet, singlet = (tblite().calculate(task_of(molecule("O2"), spin=spin)).energy for spin in (2, 0))
    assert triplet < singlet - 0.4


def test_tblite_lanthanides_count_their_valence_electrons():
    """GFN puts f electrons into the core: Gd (Z = 64) has three electrons, so one unpaired is possible, none is not."""
    gadolinium = Atoms(numbers=[64], positions=[[0, 0, 0]])
    assert tblite().calculate(task_of(gadolinium, charge=3, spin=0)).ok
    with pytest.raises(LabelError, match="spin"):
        tblite().check(task_of(gadolinium, spin=0))


def test_tblite_refusals_and_failures_are_one_line(capfd):
    heavy = task_of(Atoms(numbers=[87], positions=[[0, 0, 0]]), spin=1)
    with pytest.raises(LabelError, match="does not know Fr"):
        tblite().check(heavy)
    with pytest.raises(LabelError, match="solvent"):
        tblite(solvent="water").check(task_of(bulk("Si", cubic=True)))
    with pytest.raises(LabelError, match="no volume"):
        tblite().check(rattled("H2O")._replace(cell=np.diag([10.0, 10.0, 0.0]), periodic=np.ones(3, bool)))
    with pytest.raises(LabelError, match="not finite"):
        tblite().check(rattled("H2O")._replace(position=np.full((3, 3), np.nan)))
    result = tblite(max_iterations=2).calculate(rattled("CH3CH2OH"))
    assert not result.ok and "not converged" in result.reason and "\n" not in result.reason
    assert capfd.readouterr() == ("", "")  # the progress display is live: nobody else may write


def test_tblite_gives_the_same_bits_every_time():
    """Also where the machine would give it two threads: then the sums of the gradient change their order."""
    code = (
        "import numpy as np; from ase.build import molecule; from jaxal.label.methods.tblite import tblite;"
        "from jaxal.label.task import OPEN, Task; a = molecule('bicyclobutane'); b = tblite();"
        "t = Task(a.numbers, a.positions + np.random.default_rng(0).normal(size=(10, 3)) * 0.05,"
        " *OPEN, 0, 0); print(len({b.calculate(t).force.tobytes() for _ in range(100)}))"
    )
    environment = {k: v for k, v in __import__("os").environ.items() if k != "OMP_NUM_THREADS"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["1"]


# ---------------------------------------------------------------- PySCF


@needs_pyscf
@pytest.mark.parametrize(
    ("options", "name", "charge", "spin"),
    [
        pytest.param(
            {"method": "HF", "basis": "sto-3g", "dispersion": "d3bj"}, "CH3CH2OH", 0, 0, marks=pytest.mark.slow
        ),
        ({"method": "PBE0", "dispersion": "d3bj", "grid_level": 1}, "H2O", 0, 0),
        # The hole of OH may lie in any direction of a degenerate pair: a coarse grid would turn it with h.
        pytest.param({"method": "PBE0", "dispersion": "d4"}, "OH", 0, 1, marks=pytest.mark.slow),
        ({"method": "wb97x-d3bj", "grid_level": 1, "density_fit": False}, "OH", -1, 0),
        pytest.param({"method": "B3LYP", "basis": "6-31g*", "grid_level": 1}, "H2O", 1, 1, marks=pytest.mark.slow),
    ],
)
def test_pyscf_forces_are_the_gradient(options, name, charge, spin):
    backend, task = pyscf(**options), rattled(name, charge=charge, spin=spin)
    backend.check(task)
    result = backend.calculate(task)
    assert result.ok, result.reason
    assert largest_force_error(backend, task, [(1, 2)], h=2e-3) < 1e-3
    assert np.linalg.norm(result.force.sum(axis=0)) < 1e-6  # grid response


@needs_pyscf
def test_pyscf_agrees_with_plain_pyscf_for_a_triplet_and_a_core_potential():
    from pyscf import gto, scf

    oxygen = molecule("O2")
    plain = scf.UHF(gto.M(atom=[("O", p) for p in oxygen.positions], basis="def2-svp", spin=2, verbose=0)).run()
    result = pyscf(method="HF", density_fit=False).calculate(task_of(oxygen, spin=2))
    assert result.energy == pytest.approx(plain.e_tot * HARTREE, abs=1e-6)

    iodide = Atoms("HI", [[0, 0, 0], [0, 0, 1.6]])
    atom = [("H", (0, 0, 0)), ("I", (0, 0, 1.6))]
    plain = scf.RHF(gto.M(atom=atom, basis="def2-svp", ecp={"I": "def2-svp"}, verbose=0)).run()
    assert plain.mol.nelectron == 54 - 28  # 28 of iodine's electrons are in the potential
    result = pyscf(method="HF", density_fit=False).calculate(task_of(iodide))
    assert result.energy == pytest.approx(plain.e_tot * HARTREE, abs=1e-6)


@needs_pyscf
def test_pyscf_unconverged_is_retried_with_second_order_then_fails(monkeypatch):
    from pyscf import scf

    task = rattled("OH", spin=1)
    used = []
    newton = scf.hf.SCF.newton
    monkeypatch.setattr(scf.hf.SCF, "newton", lambda self: used.append(1) or newton(self))
    right = pyscf(method="HF").calculate(task)
    assert right.ok and not used

    rescued = pyscf(method="HF", max_cycle=4).calculate(task)
    assert used and rescued.ok, rescued.reason
    assert rescued.energy == pytest.approx(right.energy, abs=1e-6)
    np.testing.assert_allclose(rescued.force, right.force, atol=1e-3)

    # Plain PySCF would hand out a gradient here.
    lost = pyscf(method="HF", max_cycle=1).calculate(task)
    assert not lost.ok and "did not converge" in lost.reason


@needs_pyscf
@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"method": "nonsense"}, r"label\.method.*nonsense"),
        ({"method": "wb97x-d"}, r"label\.method.*wb97x-d"),
        ({"method": "wb97x-d3bj", "dispersion": "d4"}, r"label\.dispersion.*its own"),
        ({"dispersion": "d5"}, r"label\.dispersion.*d3bj"),
        ({"method": "svwn", "dispersion": "d3bj"}, r"label\.dispersion: none for svwn"),
        ({"basis": "nonsense"}, r"label\.basis.*nonsense"),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pyscf_refuses_what_it_does_not_know(options, what):
    with pytest.raises(LabelError, match=what):
        pyscf(**options).check(rattled("H2O"))


@needs_pyscf
def test_pyscf_refuses_a_cell():
    with pytest.raises(LabelError, match="open systems"):
        pyscf().check(task_of(bulk("Si", cubic=True)))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(LabelError, match=r"'pyscf' is missing; run `pip install"):
        pyscf().check(rattled("H2O"))
    with pytest.raises(LabelError, match=r"'tblite' is missing"):
        tblite().check(rattled("H2O"))


# ---------------------------------------------------------------- ASE


def test_ase_forces_and_stress():
    crystal = bulk("Cu", cubic=True)
    crystal.positions += np.random.default_rng(1).normal(size=(4, 3)) * 0.1
    backend, task = ase(calculator="ase.calculators.emt.EMT"), task_of(crystal)
    backend.check(task)
    assert largest_force_error(backend, task, [(0, 0), (3, 2)]) < 1e-6
    assert largest_stress_error(backend, task) < 1e-7


def test_ase_charge_and_spin_need_a_keyword():
    water_cation = task_of(molecule("H2O"), charge=1, spin=1)
    path = "tblite.ase.TBLite"
    for keywords, what in (({}, "charge: 1"), ({"charge_keyword": "charge"}, "spin: 1")):
        with pytest.raises(LabelError, match=what):
            ase(calculator=path, **keywords).check(water_cation)
    options = {"method": "GFN2-xTB", "verbosity": 0, "accuracy": 0.1}
    backend = ase(calculator=path, options=options, charge_keyword="charge", multiplicity_keyword="multiplicity")
    backend.check(water_cation)
    from tblite.interface import Calculator

    plain = Calculator("GFN2-xTB", water_cation.numbers, water_cation.position / BOHR, charge=1.0, uhf=1)
    plain.set("verbosity", 0)
    assert backend.calculate(water_cation).energy == pytest.approx(
        plain.singlepoint().get("energy") * HARTREE, abs=1e-4
    )
    with pytest.raises(LabelError, match="9 electrons"):
        backend.check(water_cation._replace(spin=0))


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"calculator": "EMT"}, "no import path"),
        ({"calculator": "no_such_package.Calculator"}, "cannot import"),
        ({"calculator": "ase.calculators.emt.Nothing"}, "has no 'Nothing'"),
        ({"calculator": "ase.calculators.emt.EMT", "options": {"wrong": {1, 2}}}, r"label\.options"),
        (
            {
                "calculator": "ase.calculators.morse.MorsePotential",
                "options": {"charge": 1},
                "charge_keyword": "charge",
            },
            "leave it out",
        ),
        ({"calculator": "builtins.dict"}, "has no energy"),
        ({"calculator": "builtins.int", "options": {"wrong": 1}}, r"label\.options: builtins\.int refuses them"),
        ({"calculator": "a.B", "unpaired_keyword": "u", "multiplicity_keyword": "m"}, "give one of them"),
    ],
)
def test_ase_refuses_what_cannot_be(options, what):
    with pytest.raises(LabelError, match=what):
        ase(**options).check(task_of(bulk("Cu", cubic=True)))


def test_ase_without_a_stress_must_be_asked_for():
    """MorsePotential has a stress, ASE's tip3p has none."""
    water = molecule("H2O")
    water.center(vacuum=4.0)
    water.pbc = True
    task = task_of(water[[0, 1, 2]])
    path = "ase.calculators.tip3p.TIP3P"
    with pytest.raises(LabelError, match=r"label\.stress=false"):
        ase(calculator=path).check(task)
    ase(calculator=path, stress=False).check(task)


def test_an_ase_calculator_with_files_starts_in_an_empty_folder_each_time(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(registry._table, "labeler", dict(registry._table["labeler"]))
    monkeypatch.delitem(sys.modules, "label_faults", raising=False)
    backend = ase(calculator="label_faults.FileCalculator")
    results = [backend.calculate(task_of(molecule(name))) for name in ("H2O", "CH4", "H2O")]
    assert [(result.ok, result.energy) for result in results] == [(True, 1.0)] * 3  # the history has one line
    assert not list(tmp_path.iterdir())


def test_an_unknown_element_is_a_failed_label_not_an_exception():
    result = ase(calculator="ase.calculators.emt.EMT").calculate(task_of(bulk("Si", cubic=True)))
    assert not result.ok and "Si" in result.reason


# ---------------------------------------------------------------- acceptance


def result_like(task: Task, **changes) -> Result:
    force = np.zeros((len(task.numbers), 3))
    return Result(-1.0, force, np.zeros((3, 3)), True, "", 0.1)._replace(**changes)


def test_hydrogen_atoms_on_top_of_each_other_are_not_accepted():
    task = task_of(Atoms("H2", [[0, 0, 0], [0, 0, 0.05]]))
    result = tblite().calculate(task)
    assert result.ok and np.abs(result.force).max() > 6000  # GFN2 has no objection
    verdict = accept(task, result)
    assert not verdict.ok and "max_force 30" in verdict.reason
    assert accept(task, result, max_force=np.inf).ok
    np.testing.assert_array_equal(verdict.force, result.force)  # the numbers are kept


def test_acceptance_of_numbers_shapes_and_net_force():
    task = task_of(molecule("H2O"))
    force = np.zeros((3, 3))
    assert accept(task, result_like(task)).ok and accept(task, result_like(task, stress=force + np.nan)).ok
    for changes, what in (
        ({"energy": float("nan")}, "energy is not finite"),
        ({"force": force + np.inf}, "force is not finite"),
        ({"stress": np.diag([np.nan, 0.0, 0.0])}, "stress is not finite"),
        ({"force": np.zeros((4, 3))}, "wrong shapes"),
        ({"stress": np.zeros(6)}, "wrong shapes"),
        ({"force": force + 0.05}, "net force of 0.26"),
    ):
        verdict = accept(task, result_like(task, **changes))
        assert not verdict.ok and what in verdict.reason
    assert accept(task, result_like(task, force=force + 0.05), net_force=np.inf).ok
    refused = result_like(task, ok=False, reason="before")
    assert accept(task, refused).reason == "before"


def test_what_is_sent_to_a_worker_comes_back_as_it_was():
    sent = {
        "path": Path("a/b"),
        "count": np.int64(3),
        "flag": np.bool_(True),
        "map": MappingProxyType({1: 2.5}),
        "words": np.array(["ab", "ä"]),
        "numbers": np.array([[1, 2]], np.int32),
        "single": np.float32([0.5]),
        "flags": np.array([True, False]),
    }
    back = unpacked(packed(sent))
    assert (back["path"], back["count"], back["flag"], back["map"]) == ("a/b", 3, True, {1: 2.5})
    for name in ("words", "numbers", "single", "flags"):
        np.testing.assert_array_equal(back[name], sent[name])
    assert back["numbers"].dtype == np.int64 and back["single"].dtype == np.float64
    with pytest.raises(TypeError, match=r"^set cannot be sent to a worker"):
        packed({1, 2})


@pytest.mark.parametrize(
    ("energy", "force", "stress", "reason"),
    [
        (1.0, np.ones((2, 3)), None, ""),
        (1.0, np.ones((3, 3)), None, r"the program wrote forces \(3, 3\) for 2 atoms"),
        (1.0, np.ones((2, 3)), np.ones(6), "the program wrote forces"),
        (np.nan, np.ones((2, 3)), None, "not finite"),
        (1.0, np.full((2, 3), np.inf), None, "not finite"),
        (1.0, np.ones((2, 3)), np.full((3, 3), np.nan), "not finite"),
    ],
)
def test_an_answer_is_of_the_atoms_that_were_asked_about(energy, force, stress, reason):
    result = answered(task_of(molecule("H2")), energy, force, stress)
    assert result.ok == (not reason) and re.search(reason, result.reason)
    assert not result.ok or np.isnan(result.stress).all()


def test_atoms_that_a_program_has_moved_are_elsewhere():
    task = task_of(bulk("Cu", cubic=True))
    assert not elsewhere(task, task.position) and not elsewhere(task, task.position + task.cell[0] - 2 * task.cell[2])
    assert elsewhere(task, task.position[:-1]) and elsewhere(task, task.position + 0.1)
    assert elsewhere(task, task.position * np.nan)
    open_ = task_of(molecule("H2"))
    assert elsewhere(open_, open_.position + np.array([9.0, 0, 0])) and not elsewhere(open_, open_.position + 1e-9)


def test_a_package_that_is_not_there_has_no_version():
    assert code_version("numpy") == f"numpy {np.__version__}"
    assert code_version("no-such-package") == "no-such-package not installed"


@pytest.mark.parametrize(
    ("text", "electrons"),
    [
        ('<PP_HEADER z_valence="  6.000E+00" />', 6.0),
        ("   4.0000    Z valence", 4.0),
        ('<atom symbol="O" Z="8" core="2" valence="6"/>', 6.0),
        ("Oxygen\n  8.0  6.0  960101  zatom, zion\n", 6.0),
        ("Oxygen\n  8.0D0  6.0D0\n", 6.0),
        ('<PP_HEADER z_valence="many" />', None),
        ("Oxygen\n no numbers\n", None),
        ("", None),
    ],
)
def test_what_a_pseudopotential_says_of_its_electrons(tmp_path, text, electrons):
    (tmp_path / "file").write_text(text)
    assert valence(tmp_path / "file") == electrons


# ---------------------------------------------------------------- drivers of other Pythons

SAYS = "import json; open('answer.json', 'w').write({!r})"


@pytest.mark.parametrize(
    ("after", "error"),
    [
        ("pass", "python ended well but wrote no answer.json"),
        ("raise SystemExit('no license')", "no license"),
        (SAYS.format("{"), "answer.json is damaged (JSONDecodeError"),
        (SAYS.format("[1]"), "answer.json holds no mapping"),
        (SAYS.format('{"energy": 1}'), None),
    ],
)
def test_a_driver_that_does_not_answer_is_a_reason(tmp_path, after, error):
    """Words that start the Python may run another program in its place."""
    python = tmp_path / "python"
    python.symlink_to(sys.executable)
    answer = launch.ask([str(python), "-c", after], "psi4_driver.py", {"task": 1}, tmp_path)
    assert answer == {"energy": 1} if error is None else error in answer["error"]
    assert json.loads((tmp_path / launch.REQUEST).read_text()) == {"task": 1}


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ('{"objection": "basis: unknown\\nbasis"}', "^label.basis: unknown basis$"),
        ('{"error": "no module"}', r"^label.command: the program cannot be asked what it knows \(no module\)$"),
    ],
)
def test_a_driver_may_object(says, message):
    with pytest.raises(LabelError, match=message):
        launch.check_with([sys.executable, "-c", SAYS.format(says)], "psi4_driver.py", {})


def test_what_a_driver_has_accepted_it_is_not_asked_again(tmp_path):
    words = [sys.executable, "-c", f"open({str(tmp_path / 'calls')!r}, 'a').write('x'); {SAYS.format('{}')}"]
    for request in ({"a": 1}, {"a": 1}, {"a": 2}):
        launch.check_with(words, "psi4_driver.py", request)
    assert (tmp_path / "calls").read_text() == "xx"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"energy": 1, "force": [0.0] * 6}, ""),
        ({"error": "did not\nconverge"}, "did not converge"),
        ({"force": [0.0] * 6}, "the driver's answer does not fit (KeyError: 'energy')"),
        ({"energy": 1, "force": [0.0] * 5}, "the driver's answer does not fit (ValueError"),
        ({"energy": None, "force": [0.0] * 6}, "the driver's answer does not fit (TypeError"),
        ({"energy": 1, "force": [0.0] * 6, "stress": [1.0]}, "the driver's answer does not fit (ValueError"),
    ],
)
def test_the_label_in_the_answer_of_a_driver(answer, reason):
    result = launch.result_of(task_of(molecule("H2")), answer)
    assert result.ok == (not reason) and result.reason.startswith(reason)
    assert not result.ok or (result.energy == 1.0 and result.force.shape == (2, 3) and np.isnan(result.stress).all())
