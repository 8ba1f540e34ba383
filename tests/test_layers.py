"""The import layering and the size of files, read from the source."""

import ast
from pathlib import Path

import pytest

import jaxal

ROOT = Path(jaxal.__file__).parent
LONGEST = 400  # lines
# A module imports only from rows above its own (and within its own package): parts never know each other, and
# nothing below `run` knows of a run. What stands lower than its subject suggests does so because a part needs it:
# the model file knows how to predict, so `validate` and `calculator` need no training code.
LAYERS = (
    ("errors",),
    ("units", "types", "registry", "precision", "compilation", "metrics", "data", "terminal", "jaxmd"),
    (
        *("structure", "neighbors", "buffer", "heads", "queue", "sample", "schema", "yaml12", "devices", "lock"),
        *("plugins", "weights"),
    ),
    ("potential", "committee", "acquire", "label", "fragments"),
    ("uncertainty", "ascent"),
    ("explore", "train", "model"),
    ("parts", "looks", "walk"),
    ("choose", "validate", "calculator", "config", "check", "checkpoint", "progress", "figures"),
    ("loop",),
    ("absorb", "setup", "records", "report", "store_command", "status", "teacher"),
    ("memory", "label_command"),
    ("finish", "pooled", "stop"),
    ("segments",),
    ("run", "offline", "bench", "contest"),
    ("cli",),
)
LEVEL = {name: level for level, row in enumerate(LAYERS) for name in row}
FILES = {path: path.relative_to(ROOT).with_suffix("").parts for path in sorted(ROOT.rglob("*.py"))}


def imported(path: Path) -> set[str]:
    """First names below `jaxal` of all imports in a file, also inside functions and by importlib."""
    found = set()
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
        found |= {name.split(".")[1] for name in names if name.startswith("jaxal.")}
    return found & {parts[0] for parts in FILES.values()}


def test_every_module_has_a_layer():
    assert {parts[0] for parts in FILES.values()} - {"__init__"} <= set(LEVEL), "give the new module a row in LAYERS"


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
