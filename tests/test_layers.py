"""The import layering and the size of files, read from the source."""

import ast
from pathlib import Path

import pytest

import jaxal

ROOT = Path(jaxal.__file__).parent
LONGEST = 400  # lines
# A module imports only from rooms above its own, and within its own room: parts never know each other, and nothing
# below `run` knows of a run. `deploy` knows how to predict, so who uses a model needs no training code.
LAYERS = (
    ("core",),
    ("data",),
    ("potential", "committee", "acquire", "label"),
    ("uncertainty", "explore"),
    ("train", "deploy", "config", "report"),
    ("program", "validate"),
    ("simulate",),
    ("run",),
    ("bench", "contest"),
    ("plan",),
    ("cli",),
    ("__main__",),
)
LEVEL = {name: level for level, row in enumerate(LAYERS) for name in row}
FILES = {path: path.relative_to(ROOT).with_suffix("").parts for path in sorted(ROOT.rglob("*.py"))}


def imported(path: Path) -> set[str]:
    """First names below `jaxal` of all imports in a file, also inside functions and by importlib."""
    packages = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " not in node.value:
            names = [node.value]
        else:
            continue
        packages |= {name.split(".")[1] for name in names if name.startswith("jaxal.")}
    return packages & {parts[0] for parts in FILES.values()}


def test_every_room_has_a_layer():
    assert {parts[0] for parts in FILES.values()} - {"__init__"} <= set(LEVEL), "give the new room a row in LAYERS"


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(FILES[path]))
def test_imports_point_down(path):
    own = FILES[path][0]
    if own == "__init__":  # names the public things of all layers, imports none of them
        return
    wrong = {name for name in imported(path) - {own} if LEVEL[name] >= LEVEL[own]}
    assert not wrong, f"{'/'.join(FILES[path])} must not import {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(FILES[path]))
def test_no_file_is_long(path):
    assert len(path.read_text().splitlines()) <= LONGEST
