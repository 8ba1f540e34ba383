"""Counts the rooms of jaxal, their floors, and the arrows between them and between modules."""

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1] / "jaxal"
names = {path: ".".join(path.relative_to(ROOT.parent).with_suffix("").parts) for path in ROOT.rglob("*.py")}
modules = set(names.values()) - {"jaxal.__init__", "jaxal.__main__"}
arrows: set[tuple[str, str]] = set()
for path, name in names.items():
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and name in modules:
            for target in (f"{node.module}.{alias.name}" for alias in node.names):
                arrows |= {(name, full) for full in (target, str(node.module)) if full in modules}
rooms = {(a.split(".")[1], b.split(".")[1]) for a, b in arrows}


@cache
def floor(room: str) -> int:
    """One above the highest room that it imports from."""
    return 1 + max((floor(b) for a, b in rooms if a == room and b != room), default=0)


between = sum(a != b for a, b in rooms)
outward = sum(a.split(".")[1] != b.split(".")[1] for a, b in arrows)
floors = max(floor(a) for a, _ in rooms)
print(f"{len(modules)} modules, {len(arrows)} arrows between them, {outward} of them from room to room")
print(f"{len({room for pair in rooms for room in pair})} rooms on {floors} floors, {between} arrows between rooms")
