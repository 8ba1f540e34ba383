"""Parts from other packages: a really installed one is found, a broken one is one clear line, and so with files."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from jaxal import registry
from jaxal.parts import GROUP, import_file, import_parts
from jaxal.types import InputError

SELECT = '''
import jax.numpy as jnp
from jaxal.registry import register

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
    command = [sys.executable, "-m", "jaxal.cli", "list", "select"]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)


def test_an_installed_package_registers_its_parts(tmp_path):
    done = listed(installed(tmp_path, "mine_of_another", SELECT.format(name="last_of_another")))
    assert done.returncode == 0, done.stderr
    assert "select last_of_another\n  The last ones: a test.\n" in done.stdout and "select random\n" in done.stdout


def test_a_package_that_cannot_be_imported_is_one_line(tmp_path):
    done = listed(installed(tmp_path, "broken_of_another", "import there_is_no_such_module\n"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(
        "jaxal: error: jaxal.parts: broken_of_another of broken_of_another-package cannot"
    ) or ("broken-of-another-package" in done.stderr)
    assert "No module named 'there_is_no_such_module'" in done.stderr


def test_a_file_registers_its_parts(tmp_path, monkeypatch):
    import_parts()
    monkeypatch.setitem(registry._table, "select", dict(registry._table["select"]))
    path = tmp_path / "own_selection.py"
    path.write_text(SELECT.format(name="last_of_a_file"))
    import_file(path)
    assert "last_of_a_file" in registry.names("select")
    with pytest.raises(InputError, match="'last_of_a_file' is already there"):
        import_file(path)


@pytest.mark.parametrize(
    "name, text, told",
    [
        ("missing.py", None, "there is no such file"),
        ("broken.py", "def broken(:\n", "SyntaxError"),
        ("raises.py", "1 / 0\n", "ZeroDivisionError"),
        ("data.xyz", "3\n", "not a Python file"),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path, name, text, told):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as caught:
        import_file(tmp_path / name)
    assert told in str(caught.value) and "\n" not in str(caught.value) and name in str(caught.value)
    assert Path(name).stem not in sys.modules
