"""Licensed codes, which are not at hand: their input against files kept here, their output as recorded elsewhere, and
stand-ins (stub_*.py) that answer in their formats, units and signs, or go wrong."""

import ast
import importlib
import sys
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pytest
import test_label_codes as contract
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import read
from ase.units import Bohr, Hartree
from label_programs import WATER, rattled, task_of, write_potcars
from label_workers import through_workers
from test_label_codes import Case, built

from jaxal.core import registry
from jaxal.label.methods import gaussian, orca, vasp
from jaxal.label.task import OPEN, LabelError, Task

HERE = Path(__file__).parents[1]
GOLDEN = HERE / "golden"
SAMPLES = Path(ase.__file__).parent / "test"
SODIUM_CHLORIDE = task_of(rattled(bulk("NaCl", "rocksalt", 5.0)[[1, 0]] * (2, 1, 1), 0.1))  # Cl and Na in turns
ELECTRONS = {"H": 1.0, "O": 6.0, "Na": 7.0, "Cl": 7.0}


def stub(name: str, *how: str) -> list[str]:
    return [sys.executable, str(HERE / f"stub_{name}.py"), *how]


def sorted_by_element(task: Task) -> Task:
    order = np.argsort(task.numbers, kind="stable")
    return task._replace(numbers=task.numbers[order], position=task.position[order])


@pytest.fixture(scope="session")
def potcars(tmp_path_factory) -> str:
    """A library of POTCAR files that hold what is read of them."""
    return write_potcars(tmp_path_factory.mktemp("potcars"), ELECTRONS)


@pytest.fixture(autouse=True)
def library(monkeypatch, potcars):
    monkeypatch.setenv("VASP_PP_PATH", potcars)
    monkeypatch.setenv("PYTHONPATH", str(HERE))


SALT = {"potcars": {"Na": "Na", "Cl": "Cl"}, "encut": 400.0, "k_points": (2, 2, 2), "command": stub("vasp")}
BOXED = {"potcars": {"H": "H", "O": "O"}, "encut": 400.0, "box": 10.0, "command": stub("vasp")}
ORCA = {"keywords": "wB97X-D3 def2-TZVP TightSCF", "command": stub("orca")}
GAUSSIAN = {"route": "wB97XD/def2TZVP", "command": stub("gaussian")}
FEW = {"max_iterations": 2}
CASES = {
    "orca": Case("orca", ORCA, WATER, FEW, 1e-4),
    "orca, radical": Case("orca", ORCA, WATER._replace(charge=1, spin=1), FEW, 1e-4),
    "gaussian": Case("gaussian", GAUSSIAN, WATER, FEW, 1e-4),
    "gaussian, radical": Case("gaussian", GAUSSIAN, WATER._replace(charge=1, spin=1), FEW, 1e-4),
    "vasp": Case("vasp", SALT, SODIUM_CHLORIDE, FEW, 1e-4, 1e-4),
    "vasp, box": Case("vasp", BOXED, WATER._replace(charge=1, spin=1), FEW, 1e-4),
}
every = pytest.mark.parametrize("case", [pytest.param(case, id=id) for id, case in CASES.items()])
each = pytest.mark.parametrize("case", [CASES[name] for name in ("orca", "gaussian", "vasp")], ids=lambda c: c.name)


# ---------------------------------------------------------------- what every labeler promises


@every
def test_forces_and_stress_are_slopes_of_the_energy_and_nothing_is_left_behind(case, tmp_path):
    contract.test_forces_and_stress_are_slopes_of_the_energy_and_nothing_is_left_behind(case, tmp_path)


@every
def test_what_does_not_converge_fails_and_leaves_its_folder(case, tmp_path):
    contract.test_what_does_not_converge_fails_and_leaves_its_folder(case, tmp_path)
    assert not list(tmp_path.rglob("POTCAR")), "a licensed file was left behind"


@every
def test_a_missing_program_is_told_before_anything_is_written(case, tmp_path):
    contract.test_a_missing_program_is_told_before_anything_is_written(case, tmp_path)


@every
def test_impossible_electrons_are_refused(case):
    contract.test_impossible_electrons_are_refused(case)


@every
def test_the_numbers_are_those_of_the_closed_form(case):
    """In eV and Å, the forces in the order of the input; charge and unpaired electrons arrive."""
    from stub_form import calculated

    task = case.task
    box = {"cell": task.cell, "pbc": True} if task.cell.any() else {}
    energy, force, stress = calculated(Atoms(task.numbers, task.position, **box), task.charge, task.spin)
    result = built(case).calculate(task)
    assert result.ok, result.reason
    assert result.energy == pytest.approx(energy, abs=1e-6)
    np.testing.assert_allclose(result.force, force, atol=1e-5)
    np.testing.assert_allclose(result.stress, stress if task.cell.any() else np.full((3, 3), np.nan), atol=1e-7)


def test_vasp_takes_a_left_handed_cell():
    left = SODIUM_CHLORIDE._replace(cell=SODIUM_CHLORIDE.cell[[1, 0, 2]])
    assert np.linalg.det(left.cell) * np.linalg.det(SODIUM_CHLORIDE.cell) < 0
    here, there = (built(CASES["vasp"]).calculate(task) for task in (SODIUM_CHLORIDE, left))
    assert there.ok, there.reason
    assert there.energy == pytest.approx(here.energy, abs=1e-6)
    np.testing.assert_allclose(there.force, here.force, atol=1e-6)
    np.testing.assert_allclose(there.stress, here.stress, atol=1e-7)


# ---------------------------------------------------------------- ways to go wrong

NOT_FINITE, TRUNCATED = "the program wrote numbers that are not finite", "is not whole: "


@pytest.mark.parametrize(
    ("name", "how", "what"),
    [
        *((name, "status", "exit status 1") for name in ("orca", "gaussian", "vasp")),
        *((name, "signal", "signal 11") for name in ("orca", "gaussian", "vasp")),
        *((name, "nan", NOT_FINITE) for name in ("orca", "gaussian", "vasp")),
        ("orca", "abort", "orca: .... aborting the run"),
        ("orca", "truncated", "orca wrote no whole orca.engrad"),
        ("orca", "empty", "orca wrote no whole orca.engrad"),
        ("orca", "missing", "orca wrote no whole orca.engrad"),
        ("orca", "turned", "the atoms in orca.engrad are not those of the input"),
        ("gaussian", "abort", "gaussian: End of file in ZSymb. ("),
        ("gaussian", "truncated", "Test.FChk " + TRUNCATED),
        ("gaussian", "empty", "Test.FChk " + TRUNCATED),
        ("gaussian", "missing", "gaussian wrote no formatted checkpoint file"),
        ("gaussian", "turned", "the atoms in Test.FChk are not where they were put"),
        ("gaussian", "zero", "Test.FChk holds no gradient"),
        ("vasp", "abort", "vasp: Error reading item ENCUT from file INCAR."),
        ("vasp", "killed", "vasp did not finish"),
        ("vasp", "truncated", "vasprun.xml " + TRUNCATED),
        ("vasp", "empty", "vasprun.xml " + TRUNCATED),
        ("vasp", "missing", "vasp ended well but wrote no vasprun.xml"),
        ("vasp", "stars", "vasprun.xml " + TRUNCATED),
        ("vasp", "turned", "the atoms in vasprun.xml are not where they were put"),
    ],
)
def test_what_goes_wrong_is_a_failed_label_of_one_line(name, how, what, tmp_path):
    case = CASES[name]
    result = built(case, command=stub(name, how), keep=str(tmp_path)).calculate(case.task)
    (folder,) = tmp_path.iterdir()
    assert not result.ok and what in result.reason and "\n" not in result.reason
    assert result.reason.endswith(f"; see {folder}")
    assert not (folder / "POTCAR").exists()


@each
def test_a_cut_at_any_place_is_noticed(case, tmp_path):
    """Whatever is left of an output: a failed label, never numbers of half a file."""
    parser, name, least = {
        "orca": (orca._result, "orca.engrad", 20),
        "gaussian": (gaussian._result, "Test.FChk", 20),
        "vasp": (vasp._result, "vasprun.xml", 12),
    }[case.name]
    program = stub(case.name)
    # The stub with a last act: a copy of what it wrote, for the folder of a good label is removed.
    copy = "import runpy, shutil, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__'); "
    copy += f"shutil.copy({name!r}, {str(tmp_path)!r})"
    task = sorted_by_element(case.task)
    result = built(case, command=[program[0], "-c", copy, *program[1:]]).calculate(task)
    assert result.ok, result.reason
    path = tmp_path / name
    text = path.read_text()
    whole = parser(task, path)
    assert whole.ok, whole.reason
    for size in np.random.default_rng(0).integers(0, len(text.rstrip()) - least, 60):
        path.write_text(text[:size])
        result = parser(task, path)
        assert not result.ok and result.reason, size


@pytest.mark.slow
@each
def test_a_hanging_program_is_ended_by_the_pool(case, tmp_path):
    options = case.options | {"command": stub(case.name, "hang")}
    record = through_workers(case.name, options, case.task, tmp_path / "labels.sqlite", timeout=3.0)
    assert not record.ok and record.reason.startswith("timeout: the calculation took more than 3 s")


@each
def test_the_version_is_what_the_program_says(case):
    assert (
        built(case).version
        == {"orca": "ORCA 6.0.1", "gaussian": "Gaussian ES64L-G16RevC.01", "vasp": "VASP 6.4.2"}[case.name]
    )


@pytest.mark.parametrize(
    ("name", "options", "task", "what"),
    [
        ("orca", {}, SODIUM_CHLORIDE, "open systems"),
        ("orca", {"keywords": " "}, WATER, r"label\.keywords: empty"),
        ("orca", {"keywords": "PBE def2-SVP Opt"}, WATER, r"label\.keywords: Opt is another kind"),
        ("orca", {"keywords": "PBE def2-SVP NumFreq"}, WATER, r"label\.keywords: NumFreq is another kind"),
        ("orca", {"blocks": ["%pal nprocs 8 end"]}, WATER, r"label\.blocks: '%pal"),
        ("orca", {"blocks": ["* xyz 0 1"]}, WATER, r"label\.blocks: "),
        ("orca", {"command": ["mpirun", "-np", "2", "orca"]}, WATER, r"label\.command: ORCA starts mpirun by itself"),
        ("gaussian", {}, SODIUM_CHLORIDE, "open systems"),
        ("gaussian", {"route": "#"}, WATER, r"label\.route: empty"),
        ("gaussian", {"route": "#P PBEPBE/def2SVP Opt=Tight"}, WATER, r"label\.route: Opt=Tight"),
        ("gaussian", {"route": "PBEPBE/def2SVP SCF=XQC"}, WATER, r"label\.route: SCF=XQC"),
        ("vasp", {}, WATER, r"label\.potcars: none for H"),
        ("vasp", BOXED | {"box": None}, WATER, r"label\.box: a molecule has no cell"),
        ("vasp", BOXED | {"box": 7.0}, WATER, r"label\.box: 7 Å is too small"),
        ("vasp", {"potcars": {"Na": "Na_pv"}}, SODIUM_CHLORIDE, r"label\.potcars\.Na: no POTCAR at .*Na_pv"),
        ("vasp", {"potcars": {"Na": "Cl"}}, SODIUM_CHLORIDE, r"label\.potcars\.Na: .* holds 1 atoms, Cl"),
        ("vasp", {"incar": {"nelect": 3}}, SODIUM_CHLORIDE, r"label\.incar\.nelect: it follows"),
        ("vasp", {"incar": {"GGA": "PE\nNSW = 9"}}, SODIUM_CHLORIDE, r"label\.incar\.GGA: "),
        ("vasp", {"incar": {"GGA": {}}}, SODIUM_CHLORIDE, r"label\.incar\.GGA: \{\} does not fit"),
        ("vasp", {}, SODIUM_CHLORIDE._replace(spin=30), r"^spin: "),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(name, options, task, what, tmp_path):
    with pytest.raises(LabelError, match=what) as caught:
        built(CASES[name], **options, keep=str(tmp_path)).check(task)
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_a_library_that_is_not_set_is_named(monkeypatch):
    monkeypatch.delenv("VASP_PP_PATH")
    with pytest.raises(LabelError, match=r"\$VASP_PP_PATH \(not set\)"):
        built(CASES["vasp"])


def test_the_contents_of_a_potcar_and_every_option_are_part_of_the_key(tmp_path, potcars):
    first = built(CASES["vasp"]).method
    (tmp_path / "Na").mkdir()
    text = (Path(potcars) / "Na" / "POTCAR").read_text()
    (tmp_path / "Na" / "POTCAR").write_text(text + " another file\n")
    assert built(CASES["vasp"], potcars={"Na": str(tmp_path / "Na"), "Cl": "Cl"}).method != first
    assert built(CASES["vasp"], library=potcars, command=["elsewhere"]).method == first
    changes: dict[str, dict[str, Any]] = {
        "orca": {"keywords": "PBE def2-SVP", "blocks": ["%cpcm epsilon 78.4 end"], "max_iterations": 9},
        "gaussian": {"route": "HF/STO-3G", "scf": ["XQC"], "max_iterations": 9, "sections": ["H 0\nSTO-3G\n****"]},
        "vasp": {"encut": 500.0, "k_points": (3, 3, 3), "smearing": "mp", "smearing_width": 0.1, "ediff": 1e-6}
        | {"max_iterations": 9, "box": 9.0, "incar": {"IVDW": 12}},
    }
    for name, options in changes.items():
        for option, value in options.items():
            assert built(CASES[name], **{option: value}).method != built(CASES[name]).method, option


def test_orca_is_called_by_the_path_of_the_file_itself(tmp_path):
    """Beside it lie the programs that it starts; a link elsewhere would hide them."""
    real, link = tmp_path / "orca_6" / "orca", tmp_path / "bin" / "orca"
    for path in (real, link):
        path.parent.mkdir()
    real.write_text(f"#!{sys.executable}\nprint(' Program Version 6.0.1 at ' + __file__)\n")
    real.chmod(0o755)
    link.symlink_to(real)
    result = built(CASES["orca"], command=[str(link)], keep=str(tmp_path / "kept")).calculate(WATER)
    (folder,) = (tmp_path / "kept").iterdir()
    assert not result.ok and (folder / "stdout.txt").read_text().strip().endswith(str(real))


# ---------------------------------------------------------------- the input that each is given

INPUTS: dict[str, tuple[str, dict[str, Any], Task]] = {  # folder: case, options, structure
    "orca/water": ("orca", {}, task_of(molecule("H2O"))),
    "orca/cation": (
        "orca",
        {"keywords": "PBE0 D3BJ def2-SVP", "blocks": ["%cpcm epsilon 78.4 end"], "nprocs": 4, "memory": 1500},
        task_of(molecule("H2O"), 1, 1),
    ),
    "gaussian/water": ("gaussian", {}, task_of(molecule("H2O"))),
    "gaussian/iodide": (
        "gaussian",
        {"route": "PBE1PBE/GenECP EmpiricalDispersion=GD3BJ", "scf": ["Tight", "XQC"], "nprocs": 4, "memory": 8000}
        | {"sections": ["H C 0\ndef2SVP\n****\nI 0\nLANL2DZ\n****", "I 0\nLANL2DZ"]},
        task_of(Atoms("CH3I", molecule("CH3Cl").positions[[0, 2, 3, 4, 1]]), -1, 1),
    ),
    "vasp/salt": ("vasp", {}, task_of(bulk("NaCl", "rocksalt", 5.64)[[1, 0]] * (2, 1, 1), -1, 1)),
    "vasp/water": (
        "vasp, box",
        {"incar": {"GGA": "PE", "IVDW": 12, "LMONO": True, "MAGMOM": [0, 0, 1]}},
        task_of(molecule("H2O")),
    ),
}


@pytest.mark.parametrize("golden", list(INPUTS))
def test_the_input_is_as_it_was_when_it_was_looked_at(golden, tmp_path):
    case, options, task = INPUTS[golden]
    name = CASES[case].name
    files = {"orca": ["orca.inp"], "gaussian": ["gaussian.com"], "vasp": ["INCAR", "KPOINTS", "POSCAR"]}[name]
    built(CASES[case], **options, command=stub(name, "status"), keep=str(tmp_path)).calculate(task)
    (folder,) = tmp_path.iterdir()
    for file in files:
        assert (folder / file).read_text() == (GOLDEN / golden / file).read_text(), file


# ---------------------------------------------------------------- output that the programs themselves once wrote


def sample(path: str, function: str, variable: str) -> str:
    """A text that stands in a function of ASE's own tests: outputs of the programs, recorded there."""
    tree = ast.parse((SAMPLES / path).read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == function]
    for node in [inner for outer in functions for inner in ast.walk(outer)]:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [variable]:
            return ast.literal_eval(node.value)
    pytest.skip(f"this ASE has no {variable} in {path}")


def test_a_recorded_engrad_of_orca(tmp_path):
    (tmp_path / "orca.engrad").write_text(sample("fio/test_orca.py", "test_read_orca_outputs", "sample_engradfile"))
    task = Task(np.array([8, 1, 1]), np.array([[0.0, 0, 0], [1, 0, 0], [0, 1, 0]]), *OPEN, 0, 0)
    result = orca._result(task, tmp_path / "orca.engrad")
    assert result.ok, result.reason
    assert result.energy == pytest.approx(-76.422436201230 * Hartree, rel=2e-8)  # constants of other years
    assert result.force[0, 0] == pytest.approx(0.047131484960 * Hartree / Bohr, rel=2e-8)
    assert result.force[2, 1] == pytest.approx(-0.025621056189 * Hartree / Bohr, rel=2e-8)
    output = sample("fio/test_orca.py", "test_read_orca_outputs", "sample_outputfile")
    assert "ORCA TERMINATED NORMALLY" in output and "SCF NOT CONVERGED" not in output


@pytest.mark.parametrize("name", ["vasprun_dfpt.xml", "vasprun_pstress.xml"])
def test_a_recorded_vasprun(name):
    path = SAMPLES / "testdata" / "vasp" / name
    if not path.exists():
        pytest.skip(f"this ASE has no {name}")
    atoms: Any = read(path)
    result = vasp._result(task_of(atoms), path)
    assert result.ok, result.reason
    np.testing.assert_allclose(result.force, atoms.get_forces(), atol=1e-8)
    np.testing.assert_allclose(result.stress, atoms.get_stress(voigt=False), atol=1e-8)
    assert abs(result.stress[0, 0]) > 0.02
    if name == "vasprun_dfpt.xml":  # under PSTRESS, which is refused, the energy is an enthalpy
        assert result.energy == pytest.approx(atoms.get_potential_energy(force_consistent=True), abs=1e-8)


@pytest.mark.parametrize(("name", "converged"), [("y_y", True), ("y_n", False), ("n_y", True)])
def test_recorded_ends_of_an_outcar(name, converged, tmp_path):
    """What ASE keeps of three runs; the second letter says whether the electrons converged."""
    from jaxal.label.scratch import Finished

    path = SAMPLES / "testdata" / "vasp" / f"convergence_OUTCAR_{name}"
    if not path.exists():
        pytest.skip(f"this ASE has no {path.name}")
    (tmp_path / "OUTCAR").write_text(path.read_text())
    assert ("converge" in vasp._objection(Finished("", ""), tmp_path, 60)) != converged
    if converged:
        assert not vasp._objection(Finished("", ""), tmp_path, 60)


def test_a_recorded_header_of_gaussian():
    """There is no formatted checkpoint file on record here: its layout is tested against the manual's only."""
    import re

    try:
        recorded = importlib.import_module("ase.test.fio.test_gaussian_out")
    except ImportError:
        pytest.skip("this ASE has no recorded output of Gaussian")
    assert re.search(r"\n *Gaussian \d+: +(\S+)", recorded.BUF_H2O)[1] == "ES64L-G16RevA.03"  # pyright: ignore


def test_all_are_registered():
    assert {"orca", "gaussian", "vasp"} <= set(registry.names("labeler"))
