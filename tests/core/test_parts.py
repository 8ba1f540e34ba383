"""Parts from other packages: a really installed one is found, a broken one is one clear line, and so with files."""

import contextlib
import importlib
import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from label_programs import task_of
from label_workers import through_workers

from jaxal.cli.main import main
from jaxal.core import plugins, registry
from jaxal.core.discovery import import_file, import_parts, modules
from jaxal.core.plugins import GROUP
from jaxal.core.types import InputError
from jaxal.deploy import model as models
from jaxal.run import driver

SELECT = '''
import jax.numpy as jnp
from jaxal.core.registry import register

@register("select")
def {name}(key, candidates, size):
    """The last ones: a test."""
    rows = jnp.arange(candidates.score.shape[0])[::-1]
    return rows[:size].astype(jnp.int32)
'''


def installed(folder: Path, module: str, text: str) -> Path:
    """A package with an entry point, installed by pip into a folder of its own, from a wheel made here."""
    info = f"{module}_package-1.dist-info"
    contents = {
        f"{module}.py": text,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {module}-package\nVersion: 1\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[{GROUP}]\nmine = {module}\n",
    }
    contents[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in (*contents, f"{info}/RECORD"))
    wheel = folder / f"{module}_package-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        for name, content in contents.items():
            file.writestr(name, content)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", str(folder / "site")]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True, text=True)
    return folder / "site"


def listed(site: Path) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(site), *filter(None, sys.path)])
    command = [sys.executable, "-m", "jaxal", "list", "select"]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)


def test_an_installed_package_registers_its_parts(tmp_path):
    result = listed(installed(tmp_path, "mine_of_another", SELECT.format(name="last_of_another")))
    assert result.returncode == 0, result.stderr
    assert "select last_of_another\n  The last ones: a test.\n" in result.stdout and "select random\n" in result.stdout


def test_a_package_that_cannot_be_imported_is_one_line(tmp_path):
    result = listed(installed(tmp_path, "broken_of_another", "import there_is_no_such_module\n"))
    assert result.returncode == 2 and result.stderr.count("\n") == 1
    assert result.stderr.startswith(
        "jaxal: error: jaxal.parts: broken_of_another of broken_of_another-package cannot"
    ) or ("broken-of-another-package" in result.stderr)
    assert "No module named 'there_is_no_such_module'" in result.stderr


def test_every_module_of_parts_is_found_by_its_source():
    import_parts()
    for kind in registry.KINDS:
        own = {registry.get(kind, name).__module__ for name in registry.names(kind)}
        assert {module for module in own if module.startswith("jaxal.")} == set(modules()[kind])


def test_a_training_does_not_wait_for_the_explorers(tmp_path):
    code = "import sys; from jaxal.core.discovery import import_parts; "
    code += "import_parts('potential', 'uncertainty', 'select'); "
    code += "import jaxal.run.offline, jaxal.deploy.calculator, jaxal.cli.main; "
    code += "sys.exit('jax_md' in sys.modules or 'e3nn_jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=tmp_path).returncode == 0


def test_a_file_registers_its_parts(tmp_path, monkeypatch):
    import_parts()
    monkeypatch.setitem(registry._table, "select", dict(registry._table["select"]))
    path = tmp_path / "own_selection.py"
    path.write_text(SELECT.format(name="last_of_a_file"))
    import_file(path)
    assert "last_of_a_file" in registry.names("select")
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / path.name).write_text(path.read_text())
    import_file(tmp_path / "copy" / path.name)  # the same
    path.write_text(path.read_text() + "\n# another one\n")
    with pytest.raises(InputError, match="'last_of_a_file' is already there"):
        import_file(path)


def test_a_file_hides_no_module_of_its_name(tmp_path, monkeypatch):
    import_parts()
    monkeypatch.setitem(registry._table, "select", dict(registry._table["select"]))
    path = tmp_path / "random.py"
    path.write_text(SELECT.format(name="last_of_random"))
    import_file(path)
    assert "last_of_random" in registry.names("select") and not hasattr(importlib.import_module("random"), "register")


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("missing.py", None, "there is no such file"),
        ("broken.py", "def broken(:\n", "SyntaxError"),
        ("raises.py", "1 / 0\n", "ZeroDivisionError"),
        ("data.xyz", "3\n", "not a Python file"),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as caught:
        import_file(tmp_path / name)
    assert message in str(caught.value) and "\n" not in str(caught.value) and name in str(caught.value)
    assert not [module for module in sys.modules if module.startswith(f"jaxal_part_{Path(name).stem}_")]


POTENTIAL = """
import jax.numpy as jnp
from jaxal.core.registry import register
from jaxal.core.types import Potential

@register("potential")
def {name}(table, *, stiffness: float = 2.0):
    \"\"\"Springs to the origin: a test.\"\"\"

    def energy(params, structure, neighbors):
        square = jnp.sum(structure.position**2, axis=-1)
        atomic = 0.5 * params[0] * jnp.where(structure.species >= 0, square, 0.0)
        return jnp.sum(atomic), atomic[:, None]

    return Potential(lambda *_: [jnp.asarray(stiffness)], energy, 3.0)
"""
CONFIG = """
system: {{file: water.xyz}}
potential: {{name: {name}}}
committee: {{members: 2}}
explore: {{temperature: 300 K, walkers: 2}}
label: {{name: morse, initial: 4, sigma: 1.2, alpha: 2, cutoff: 4}}
train: {{steps: 2, initial_steps: 2, final_steps: 2, batch: 2, holdout: 0.3}}
stop: {{labels: 6, time: 0.02}}
"""
ASKED = """
import sys, jaxal
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
print(jaxal.Calculator(sys.argv[1]).get_potential_energy(molecule("H2O")))
"""


@pytest.fixture
def forget(monkeypatch):
    """What makes this process one that has imported no parts but jaxal's; afterwards it is as it was."""
    import_parts()
    before = {kind: dict(parts) for kind, parts in registry._table.items()}

    def forgotten():
        for kind, parts in before.items():
            monkeypatch.setitem(registry._table, kind, dict(parts))
        monkeypatch.setattr(plugins, "_files", {})

    forgotten()
    return forgotten


def here(*arguments: object) -> tuple[int, str]:
    """Status and standard error of a command in this process."""
    err = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        status = main([str(argument) for argument in arguments])
    return status, err.getvalue()


def test_a_model_of_a_package_is_loaded_wherever_the_package_is(tmp_path, monkeypatch, forget):
    site = installed(tmp_path, "springs_of_another", POTENTIAL.format(name="springs_of_another"))
    monkeypatch.syspath_prepend(str(site))
    plugins.import_packages()
    params = [np.float32([1.0, 2.0])]
    model = models.Model("springs_of_another", (), (1, 8), params, np.zeros(2), "float32", ((0, 0),))
    models.save(tmp_path / "model.npz", model)
    for there in (True, False):
        path = os.pathsep.join([*([str(site)] if there else []), *(x for x in sys.path if x and x != str(site))])
        command = [sys.executable, "-c", ASKED, "model.npz"]
        environment = os.environ | {"PYTHONPATH": path}
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert (result.returncode == 0) is there, result.stderr
        if there:
            assert float(result.stdout) > 0
        else:
            assert result.stderr.splitlines()[-1] == (
                "jaxal.core.errors.InputError: model.npz: unknown potential 'springs_of_another'; "
                "it is registered by the package springs_of_another-package 1: install it"
            )


def test_a_run_keeps_the_file_of_its_parts_and_a_model_names_it(tmp_path, monkeypatch, forget):
    monkeypatch.chdir(tmp_path)
    part = Path("my_springs.py")
    part.write_text(POTENTIAL.format(name="springs_of_a_file"))
    write("water.xyz", molecule("H2O"))
    Path("config.yaml").write_text(CONFIG.format(name="springs_of_a_file"))
    status, err = here("check", "config.yaml")
    assert status == 2 and "potential.name: unknown potential 'springs_of_a_file'" in err
    went = []
    monkeypatch.setattr(driver, "_go", lambda config, *rest: went.append(config.potential.name) is None)
    status, err = here("run", "config.yaml", "--dir", "out", "--part", part)
    assert status == 0, err
    params = [np.float32([1.0, 2.0])]
    models.save(
        "out/model.npz", models.Model("springs_of_a_file", (), (1, 8), params, np.zeros(2), "float32", ((0, 0),))
    )
    atoms = molecule("H2O")
    atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=np.zeros((3, 3)))
    write("data.xyz", [atoms, atoms])
    kept = Path("out/inputs/parts") / part
    assert kept.read_text() == part.read_text()
    part.unlink()
    forget()
    validate = ("validate", "out", "--data", "data.xyz")  # it only reads: it runs nothing of the folder's
    status, err = here(*validate)
    assert status == 2 and err == (
        "jaxal: error: out/model.npz: unknown potential 'springs_of_a_file'; it is registered by the file "
        "my_springs.py: give --part, or import it with jaxal.import_part\n"
    )
    status, err = here("check", "out/config.yaml")
    assert status == 2 and err.rstrip().endswith(f"are in the run folder: --part {kept}")
    assert here(*validate, "--part", kept)[0] == 0
    forget()
    assert here("resume", "out")[0] == 0  # it runs what the folder holds
    assert "springs_of_a_file" in registry.names("potential") and went == 2 * ["springs_of_a_file"]


def test_a_teacher_that_a_worker_starts_has_the_files_of_parts(tmp_path, forget):
    part = tmp_path / "springs.py"
    part.write_text(POTENTIAL.format(name="springs_of_a_teacher"))
    import_file(part)
    model = models.Model(
        "springs_of_a_teacher", (), (1, 8), [np.float32([1.0, 3.0])], np.zeros(2), "float32", ((0, 0),)
    )
    models.save(tmp_path / "model.npz", model)
    task = task_of(molecule("H2O"))
    record = through_workers("teacher", {"model": str(tmp_path / "model.npz")}, task, tmp_path / "labels.sqlite")
    assert record.ok, record.reason


def test_a_model_never_imports_what_only_its_file_names(tmp_path, monkeypatch):
    (tmp_path / "innocent_looking.py").write_text("raise SystemExit('it was imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for source in (
        {"module": "innocent_looking"},
        {"module": "innocent_looking", "package": "innocent", "version": "1"},
        {"module": "x", "file": str(tmp_path / "innocent_looking.py")},
    ):
        with pytest.raises(InputError, match="unknown potential 'no_such'; it is registered by the"):
            plugins.part("potential", "no_such", {"potential": source}, "model")
    with pytest.raises(InputError, match="unknown potential 'no_such'; there are "):
        plugins.part("potential", "no_such", {}, "model")


def entered(folder: Path, module: str, text: str) -> None:
    """A package with an entry point, as pip would leave it."""
    (folder / f"{module}.py").write_text(text)
    info = folder / f"{module}_package-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}-package\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nmine = {module}\n")


def test_of_a_package_only_what_a_file_names_is_imported(tmp_path, monkeypatch, forget):
    entered(tmp_path, "named_by_a_file", SELECT.format(name="last_of_named"))
    entered(tmp_path, "broken_for_others", "1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    source = {"module": "named_by_a_file", "package": "named-by-a-file-package", "version": "1"}
    assert plugins.part("select", "last_of_named", {"select": source}, "model").__module__ == "named_by_a_file"
    assert plugins.source_of("select", "last_of_named") == plugins.Source(
        "named_by_a_file", "named_by_a_file-package", "1"
    )
    with pytest.raises(
        InputError, match=rf"^{GROUP}: broken_for_others of broken_for_others-package cannot be imp"
    ) as no:
        plugins.part("select", "last_of_broken", {"select": {"module": "broken_for_others"}}, "model")
    assert "ZeroDivisionError: division by zero" in str(no.value)
    with pytest.raises(InputError, match=f"^{GROUP}: broken_for_others"):
        plugins.import_packages()


@pytest.mark.parametrize(
    ("source", "right"),
    [
        ({"file": "mine.py"}, "it is registered by the file mine.py: give --part"),
        (
            {"module": "nobody", "package": "nobodys", "version": "3"},
            "it is registered by the package nobodys 3: install it",
        ),
        ({"module": "nobody"}, "it is registered by the module nobody: import it first"),
        ({}, "there are "),
    ],
)
def test_a_part_that_is_not_there_says_where_it_comes_from(source, right):
    with pytest.raises(InputError) as error:
        plugins.part("select", "last_of_nobody", {"select": source}, "model.npz")
    assert str(error.value).startswith(f"model.npz: unknown select 'last_of_nobody'; {right}")


def test_who_registered_a_part(forget):
    assert plugins.source_of("select", "random") is None and plugins.source_of("select", "nothing") is None

    @registry.register("select")
    def last_of_this_test(key, candidates, size):
        """From no file and no package."""

    assert plugins.source_of("select", "last_of_this_test") == plugins.Source(__name__)


def test_two_files_of_one_name_are_both_kept(tmp_path, monkeypatch, forget):
    paths = [tmp_path / folder / "mine.py" for folder in ("one", "two", "three")]
    for path, name in zip(paths, ("last_of_one", "last_of_two", "last_of_two"), strict=True):
        path.parent.mkdir()
        path.write_text(SELECT.format(name=name))
    for path in paths:
        import_file(path)
    for _ in range(2):
        plugins.keep(tmp_path / "inputs")
    texts = [path.read_text() for path in plugins.kept(tmp_path / "inputs")]
    assert sorted(texts) == sorted({path.read_text() for path in paths})


def test_a_worker_imports_the_module_or_the_file_of_a_part(tmp_path, monkeypatch, forget):
    (tmp_path / "part_of_a_worker.py").write_text(SELECT.format(name="last_of_worker"))
    monkeypatch.syspath_prepend(tmp_path)
    plugins.import_module("part_of_a_worker")
    assert plugins.importable("select", "last_of_worker") == "part_of_a_worker"
    (tmp_path / "file.py").write_text(SELECT.format(name="last_of_file"))
    plugins.import_module(str(tmp_path / "file.py"))
    assert plugins.importable("select", "last_of_file") == str(tmp_path / "file.py")
