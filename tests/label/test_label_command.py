"""A program of one's own behind `command`, and the folders and processes of all programs."""

import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import bulk
from label_programs import COPPER, EMT, WATER, rattled, script, task_of

from jaxal.config.loading import load
from jaxal.config.writing import resolved
from jaxal.label import scratch
from jaxal.label.methods.command import command, extended_xyz
from jaxal.label.methods.tblite import tblite
from jaxal.label.scratch import in_scratch
from jaxal.label.task import REASON_LENGTH, Result
from jaxal.label.workers.executor import Recipe, run_all
from jaxal.label.workers.pool import open_pool


def test_the_input_is_exact_and_knows_its_electrons(tmp_path):
    from ase.io import read

    for task in (WATER._replace(charge=-1, spin=1), COPPER):
        path = tmp_path / "x.xyz"
        path.write_text(extended_xyz(task))
        atoms: Any = read(path)
        np.testing.assert_array_equal(atoms.positions, task.position)
        np.testing.assert_array_equal(atoms.cell.array, task.cell)
        assert atoms.pbc.all() == atoms.pbc.any() == task.cell.any()
        assert (atoms.info["charge"], atoms.info["spin"]) == (task.charge, task.spin)


ANSWER = """
import sys, os, signal
import numpy as np
from ase.io import read, write
atoms = read(sys.argv[1])
atoms.info |= {"energy": -1.0}
atoms.arrays["forces"] = np.zeros((len(atoms), 3))
atoms.info["virial"] = np.diag([1.0, 2.0, 3.0])
"""


@pytest.mark.parametrize(
    ("spoiled", "reason"),
    [
        ("print('first', file=sys.stderr); sys.exit('no license')", "ended with exit status 1: no license"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended with signal 11"),
        ("sys.exit(0)", "wrote no output"),
        ("open(sys.argv[2], 'w').close(); sys.exit(0)", "not extended XYZ"),
        ("write(sys.argv[2], atoms); s = open(sys.argv[2]).read(); open(sys.argv[2], 'w').write(s[:-30]); sys.exit(0)",
         "not extended XYZ"),
        ("atoms.info['energy'] = float('nan')", "not a finite number"),
        ("atoms.arrays['forces'][1, 2] = np.inf", "not a finite number"),
        ("atoms = atoms[:-1]", "other atoms"),
        ("atoms.numbers[0] = 1", "other atoms"),
        ("atoms.positions[:2] = atoms.positions[1::-1]", "other positions"),
        ("atoms.info['converged'] = False", "did not converge"),
        ("del atoms.arrays['forces']", "no forces"),
        ("del atoms.info['energy']", "no energy"),
        ("del atoms.info['virial']", r"no stress .* label\.stress=false"),
        ("atoms.info['virial'] = np.ones(4)", "virial"),
    ],
)  # fmt: skip
def test_an_output_that_does_not_fit_fails_with_a_reason(spoiled, reason, tmp_path):
    backend = command(**script(ANSWER + spoiled + "\nwrite(sys.argv[2], atoms)"), keep=str(tmp_path))
    result = backend.calculate(COPPER)
    assert not result.ok and "\n" not in result.reason and len(result.reason) <= REASON_LENGTH
    assert re.search(reason, result.reason), result.reason
    assert result.reason.endswith(f"; see {next(tmp_path.iterdir())}")


def test_a_virial_becomes_a_stress_and_a_wrapped_atom_is_the_same():
    text = ANSWER + "atoms.positions[1] += atoms.cell[0]\nwrite(sys.argv[2], [atoms[:1], atoms])"
    result = command(**script(text)).calculate(COPPER)
    assert result.ok, result.reason
    volume = abs(np.linalg.det(COPPER.cell))
    np.testing.assert_allclose(result.stress, -np.diag([1.0, 2.0, 3.0]) / volume)
    result = command(**script(text), stress=False).calculate(COPPER)
    assert result.ok and np.isnan(result.stress).all()


def test_files_are_copied_and_part_of_the_key(tmp_path):
    program = tmp_path / "emt.py"
    program.write_text(EMT)
    options = {"command": ["python3", "emt.py", "{input}", "{output}"], "method": "EMT", "files": [program]}
    first = command(**options | {"command": [sys.executable, *options["command"][1:]]})
    assert first.calculate(COPPER).ok
    before = command(**options)
    program.write_text(f"#!{sys.executable}\n{EMT}# another\n")
    assert command(**options).method != before.method
    program.chmod(0o755)
    own = command(**options | {"command": ["./emt.py", "{input}", "{output}"]})
    own.check(COPPER)
    assert own.calculate(COPPER).ok
    assert command(**options, version="2").version == "2"


def test_a_configuration_names_a_command_and_its_files(tmp_path):
    (tmp_path / "emt.py").write_text(EMT)
    (tmp_path / "h2o.xyz").write_text(extended_xyz(WATER))
    (tmp_path / "config.yaml").write_text(
        "system: {file: h2o.xyz}\n"
        "label: {name: command, command: [python3, emt.py, '{input}', '{output}'], files: [emt.py], method: EMT}\n"
    )
    config = load(tmp_path / "config.yaml")
    assert config.label.part["files"] == (tmp_path / "emt.py",)
    copied = resolved(config, tmp_path / "run")
    (file,) = copied.label.part["files"]
    assert file.is_relative_to(tmp_path / "run") and file.read_text() == EMT
    assert load(tmp_path / "run" / "config.yaml") == copied
    assert copied.label.part.bind()().method == config.label.part.bind()().method


def test_the_example_of_the_page_works(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "labels.md").read_text()
    example = page.partition("```python\n")[2].partition("```")[0]
    (tmp_path / "label.py").write_text(example)
    assert len(example.splitlines()) <= 12
    backend = command(
        command=[sys.executable, "label.py", "{input}", "{output}"], files=[tmp_path / "label.py"], method="GFN2-xTB"
    )
    for task in (WATER, task_of(rattled(bulk("Si", cubic=True), 0.1))):
        here, there = backend.calculate(task), tblite().calculate(task)
        assert here.ok, here.reason
        assert here.energy == pytest.approx(there.energy, abs=1e-4)
        np.testing.assert_allclose(here.force, there.force, atol=1e-3)
        np.testing.assert_allclose(here.stress, there.stress, atol=1e-4)


# ---------------------------------------------------------------- folders and processes


def test_a_worker_takes_its_program_along(tmp_path):
    """A program that takes too long is ended, and so is what it has started itself."""
    text = f"""
    import os, subprocess, time
    child = subprocess.Popen(["sleep", "600"])
    open({str(tmp_path / "pids")!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
    time.sleep(600)
    """
    pool = open_pool(Recipe("command", script(text) | {"keep": str(tmp_path / "kept")}), 1, timeout=2.0)
    try:
        (result,) = run_all(pool, [WATER])
    finally:
        pool.close()
    assert not result.ok and "timeout" in result.reason
    pids = [int(pid) for pid in (tmp_path / "pids").read_text().split()]
    end = time.monotonic() + 10
    while time.monotonic() < end and any(running(pid) for pid in pids):
        time.sleep(0.05)
    assert len(pids) == 2 and not any(running(pid) for pid in pids)


@pytest.mark.parametrize("path", ["", "/of/the/user"])
def test_a_program_of_a_worker_sees_the_python_path_of_the_user(path, tmp_path, monkeypatch):
    """A worker finds jaxal by PYTHONPATH; a script that runs in another Python must not find our packages by it."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    if path:
        monkeypatch.setenv("PYTHONPATH", path)
    seen = tmp_path / "seen"
    text = f"import os\nopen({str(seen)!r}, 'w').write(os.environ.get('PYTHONPATH', ''))"
    pool = open_pool(Recipe("command", script(text) | {"keep": str(tmp_path / "kept")}), 1)
    try:
        (result,) = run_all(pool, [WATER])
    finally:
        pool.close()
    assert "wrote no output" in result.reason and seen.read_text() == path


def running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_folder_goes_unless_the_calculation_failed(tmp_path):
    good = Result(1.0, np.zeros((3, 3)), np.zeros((3, 3)), True, "", 0.0)

    def big(folder: Path) -> Result:
        (folder / "small").write_text("x")
        (folder / "large").write_bytes(bytes(scratch.LARGE + 1))
        return good._replace(ok=False, reason="x" * 1000)

    def interrupted(folder: Path) -> Result:
        raise KeyboardInterrupt

    keep = tmp_path / "kept"
    assert in_scratch(WATER, "test", str(keep), lambda folder: good) == good
    with pytest.raises(KeyboardInterrupt):
        in_scratch(WATER, "test", str(keep), interrupted)
    assert not list(keep.iterdir())
    result = in_scratch(WATER, "test", str(keep), big)
    (folder,) = keep.iterdir()
    assert result.reason.endswith(str(folder)) and len(result.reason) == REASON_LENGTH
    assert [path.name for path in folder.iterdir()] == ["small"]


def test_a_program_gets_one_thread_unless_told_otherwise(tmp_path, monkeypatch):
    show = [sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS'], os.getcwd())"]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert scratch.run(show, tmp_path).output.split() == ["1", str(tmp_path)]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert scratch.run(show, tmp_path).output.split()[0] == "3"
    assert "OMP_NUM_THREADS" in os.environ
