"""Codes that read and write files: what every one of them promises, an installed program or a script of one's own."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from label_programs import (
    CASES,
    COPPER,
    EMT,
    HYDROGEN,
    PROGRAMS,
    SILICON,
    ULTRASOFT,
    ULTRASOFT_HEAD,
    VALENCE,
    VALENCE_HEAD,
    WATER,
    Case,
    missing,
    needs,
    rattled,
    script,
    task_of,
)

from jaxal.core import registry
from jaxal.core.discovery import import_parts
from jaxal.core.units import BOHR, HARTREE
from jaxal.label import scratch
from jaxal.label.methods.espresso import espresso
from jaxal.label.methods.nwchem import nwchem
from jaxal.label.methods.pyscf import pyscf
from jaxal.label.methods.tblite import tblite
from jaxal.label.methods.xtb import xtb
from jaxal.label.task import Backend, LabelError, Task

import_parts()

every = pytest.mark.parametrize(
    "case", [pytest.param(case, id=id, marks=[needs(case.name), *case.marks]) for id, case in CASES.items()]
)


def built(case: Case, **more: Any) -> Backend:
    return registry.get("labeler", case.name)(**case.options | more)


def slope(backend: Backend, moved: Callable[[float], Task], h: float) -> float:
    """Central difference of the energy."""
    results = [backend.calculate(moved(step)) for step in (h, -h)]
    assert all(result.ok for result in results), results[0].reason or results[1].reason
    return (results[0].energy - results[1].energy) / (2 * h)


# ---------------------------------------------------------------- what all of them promise


@every
def test_forces_and_stress_are_slopes_of_the_energy_and_nothing_is_left_behind(case, tmp_path):
    backend, task = built(case, keep=str(tmp_path)), case.task
    backend.check(task)
    result = backend.calculate(task)
    assert result.ok and not result.reason and result.seconds > 0, result.reason
    assert np.linalg.norm(result.force.sum(axis=0)) < 1e-2

    # One direction that has a part of every component, and feels the force.
    way = np.random.default_rng(1).normal(size=task.position.shape) * 0.3 - result.force / np.linalg.norm(result.force)
    way /= np.linalg.norm(way)
    slanted = slope(backend, lambda step: task._replace(position=task.position + step * way), 1e-3)
    assert abs(np.sum(result.force * way)) > 0.1, "the test needs a force"
    assert -np.sum(result.force * way) == pytest.approx(slanted, abs=case.tolerance)

    if case.stress:
        strain = np.array([[1.0, 0.3, 0.0], [0.3, -0.5, 0.2], [0.0, 0.2, 0.8]])

        def stretched(step: float) -> Task:
            stretch = np.eye(3) + step * strain
            return task._replace(position=task.position @ stretch, cell=task.cell @ stretch)

        tension = slope(backend, stretched, 5e-3) / abs(np.linalg.det(task.cell))
        assert abs(tension) > 5 * case.stress, "the test needs a stress"
        assert np.sum(result.stress * strain) == pytest.approx(tension, abs=case.stress)
    else:
        assert np.isnan(result.stress).all(), "an open structure has no stress"
    assert not list(tmp_path.iterdir())


@every
def test_what_does_not_converge_fails_and_leaves_its_folder(case, tmp_path):
    backend = built(case, **case.unconverged, keep=str(tmp_path))
    result = backend.calculate(case.task)
    assert not result.ok and "converge" in result.reason and "\n" not in result.reason
    (folder,) = tmp_path.iterdir()
    assert result.reason.endswith(f"; see {folder}")
    assert (folder / scratch.OUTPUT).exists() and (folder / scratch.ERRORS).exists()


@every
def test_a_missing_program_is_told_before_anything_is_written(case, tmp_path):
    backend = built(case, command=["no-such-program", "{input}"], keep=str(tmp_path))
    with pytest.raises(LabelError, match=r"^label\.command: there is no program 'no-such-program'; install "):
        backend.check(case.task)
    result = backend.calculate(case.task)
    assert not result.ok and "no-such-program" in result.reason and not list(tmp_path.iterdir())
    with pytest.raises(LabelError, match=r"label\.command: .* is no list of arguments"):
        built(case, command="program {input}")


@every
def test_impossible_electrons_are_refused(case):
    task = case.task
    with pytest.raises(LabelError, match=r"^spin: "):
        built(case).check(task._replace(spin=task.spin + 1))


@pytest.mark.parametrize(
    ("name", "options", "task", "what"),
    [
        pytest.param("xtb", {}, COPPER, "open systems", marks=needs("xtb")),
        pytest.param("nwchem", {}, COPPER, "open systems", marks=needs("nwchem")),
        pytest.param("nwchem", {"xc": "nonsense"}, WATER, "refuses nonsense/def2-svp for H, O", marks=needs("nwchem")),
        pytest.param("nwchem", {"basis": "nonsense"}, WATER, "refuses pbe0/nonsense", marks=needs("nwchem")),
        ("nwchem", {}, task_of(Atoms("HI", [[0, 0, 0], [0, 0, 1.6]])), r"label\.ecp: def2-svp needs one for I"),
        ("espresso", VALENCE_HEAD, COPPER, r"label\.pseudopotentials: none for Cu"),
        ("espresso", ULTRASOFT_HEAD | {"box": None}, HYDROGEN, r"label\.box: a molecule has no"),
        ("espresso", ULTRASOFT_HEAD | {"box": 6.5}, HYDROGEN, "at least 6.8"),
        ("espresso", VALENCE | {"pseudopotentials": {"Si": Path("no.upf")}}, SILICON, "cannot read no.upf"),
        ("espresso", {"input_data": {"cell": {}}}, SILICON, r"label\.input_data\.cell: unknown"),
        ("espresso", {"input_data": {"SYSTEM": {"nspin": 2}}}, SILICON, r"SYSTEM\.nspin: it follows"),
        ("espresso", {"input_data": {"system": {"x": [1]}}}, SILICON, r"system\.x: \[1\] does not fit"),
        ("command", script(EMT) | {"method": " "}, WATER, r"label\.method: empty"),
        ("command", script(EMT) | {"files": [Path("no.py")]}, WATER, r"label\.files: cannot read no.py"),
        ("command", script(EMT) | {"files": [Path("input.xyz")]}, WATER, r"label\.files: input.xyz"),
        ("command", script(EMT) | {"files": [Path("a/x"), Path("b/x")]}, WATER, "a name of its own"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(name, options, task, what, tmp_path):
    arguments = {"pseudopotentials": {}, "ecutwfc": 20.0} | options if name == "espresso" else options
    with pytest.raises(LabelError, match=what) as caught:
        registry.get("labeler", name)(**arguments, keep=str(tmp_path)).check(task)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------- the same method by another program


@needs("xtb")
@pytest.mark.parametrize(("method", "atol"), [("GFN2-xTB", 2e-5), ("GFN1-xTB", 2e-5)])
def test_xtb_agrees_with_tblite(method, atol):
    tasks = [task_of(rattled(molecule("CH3CH2OH"))), WATER._replace(charge=-2), WATER._replace(charge=2)]
    for task in tasks:
        here, there = xtb(method=method).calculate(task), tblite(method=method).calculate(task)
        assert here.ok and there.ok, here.reason + there.reason
        assert here.energy == pytest.approx(there.energy, abs=1e-5)
        np.testing.assert_allclose(here.force, there.force, atol=atol)


@needs("xtb")
def test_xtb_counts_unpaired_electrons():
    """Against tblite without its spin polarization, which the program does not have."""
    from tblite.interface import Calculator

    for charge, spin in ((1, 1), (0, 2), (1, 3)):
        plain = Calculator("GFN2-xTB", WATER.numbers, WATER.position / BOHR, charge=float(charge), uhf=spin)
        plain.set("verbosity", 0)
        result = xtb().calculate(WATER._replace(charge=charge, spin=spin))
        assert result.ok and result.energy == pytest.approx(plain.singlepoint().get("energy") * HARTREE, abs=1e-4)


@needs("xtb")
def test_xtb_has_a_solvent_and_says_which_it_does_not_know(tmp_path):
    dry, wet = xtb().calculate(WATER), xtb(solvent="water").calculate(WATER)
    assert wet.ok and wet.energy < dry.energy - 0.1
    result = xtb(solvent="nonsense", keep=str(tmp_path)).calculate(WATER)
    assert not result.ok and "xtb" in result.reason


@pytest.mark.slow
@needs("nwchem")
@pytest.mark.parametrize(
    ("charge", "spin", "dispersion"), [(0, 0, "d3bj"), (1, 1, "none")], ids=["with dispersion", "radical cation"]
)
def test_nwchem_agrees_with_pyscf(charge, spin, dispersion):
    pytest.importorskip("pyscf")
    task = WATER._replace(charge=charge, spin=spin)
    here = nwchem(dispersion=dispersion).calculate(task)
    there = pyscf(density_fit=False, grid_level=4, dispersion=dispersion.replace("none", "")).calculate(task)
    assert here.ok and there.ok, here.reason + there.reason
    assert here.energy == pytest.approx(there.energy, abs=1e-4)
    np.testing.assert_allclose(here.force, there.force, atol=5e-4)


@needs("nwchem")
def test_nwchem_takes_core_potentials_where_it_is_told():
    pytest.importorskip("pyscf")
    task = task_of(Atoms("HI", [[0, 0, 0], [0, 0, 1.65]]))
    here = nwchem(xc="HFexch", ecp={"I": "def2-ecp", "Br": "def2-ecp"}).calculate(task)
    there = pyscf(method="HF", density_fit=False).calculate(task)
    assert here.ok, here.reason
    assert here.energy == pytest.approx(there.energy, abs=2e-3)
    np.testing.assert_allclose(here.force, there.force, atol=2e-3)


@pytest.mark.slow
@needs("espresso")
def test_espresso_counts_charge_and_spin():
    """A hydrogen molecule with all spins up has no electron down: the hardest case for the SCF."""
    energy = {}
    for charge, spin, smearing in ((0, 0, "none"), (0, 2, "none"), (1, 1, "mv")):
        result = espresso(**ULTRASOFT | {"smearing": smearing}).calculate(HYDROGEN._replace(charge=charge, spin=spin))
        assert result.ok, result.reason
        energy[charge, spin] = result.energy
    # The vertical excitation of H2 at 0.8 Å is 10.0 eV, its ionization energy 15.6 eV; PBE in a box gives less.
    assert energy[0, 2] - energy[0, 0] == pytest.approx(9.27, abs=0.1)
    assert 12.0 < energy[1, 1] - energy[0, 0] < 16.0


@needs("espresso")
@pytest.mark.skipif(shutil.which("mpirun") is None, reason="mpirun is not installed")
def test_a_launcher_gives_the_same_numbers():
    serial, parallel = (
        espresso(**VALENCE, command=words).calculate(SILICON) for words in (["pw.x"], ["mpirun", "-np", "2", "pw.x"])
    )
    assert parallel.ok, parallel.reason
    assert parallel.energy == pytest.approx(serial.energy, abs=1e-6)
    np.testing.assert_allclose(parallel.force, serial.force, atol=1e-5)


@needs("espresso")
def test_espresso_says_what_pw_complains_about(tmp_path):
    result = espresso(**VALENCE, input_data={"system": {"no_such": 1}}, keep=str(tmp_path)).calculate(SILICON)
    assert not result.ok and result.reason.startswith("pw.x: bad line in namelist") and "no_such" in result.reason
    (folder,) = tmp_path.iterdir()
    assert not (folder / "out").exists()  # wavefunctions


@pytest.mark.parametrize("name", list(PROGRAMS))
def test_the_version_of_the_program_is_part_of_the_key(name):
    if missing(name):
        pytest.skip(missing(name))
    assert built(CASES[name]).version.split()[1][0].isdigit()
