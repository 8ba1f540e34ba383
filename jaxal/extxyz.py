"""A look at an extended XYZ file before ASE reads it: ASE believes what a damaged file says of its size.

A frame that claims a billion atoms or columns keeps ASE 3.29 busy for hours, or takes all memory.
"""

import re
from pathlib import Path

from ase.io.formats import filetype, open_with_compression

COLUMNS = 10_000  # of one property
_COUNT = re.compile(r":[RISL]:(\d+)")


def damage(path: Path, known: bool = False) -> str:
    """Why the file cannot be extended XYZ as it says; empty where it can, and for every other format.

    With `known` the file will be read as extended XYZ, whatever it looks like.
    """
    try:
        if not known and filetype(str(path)) not in ("xyz", "extxyz"):
            return ""
        with open_with_compression(str(path), "rt") as file:
            lines = file.read().splitlines()
    except Exception:  # ASE will say what is wrong with it
        return ""
    start = frame = 0
    while start < len(lines):
        try:
            atoms = int(lines[start])
        except ValueError:
            return ""
        if atoms < 0 or atoms > len(lines) - start - 2:
            left = max(0, len(lines) - start - 2)
            return (
                f"frame {frame} says that it has {lines[start].strip()[:30]} atoms, but {left} lines follow its second"
            )
        widths = [count for count in _COUNT.findall(lines[start + 1]) if len(count) > 9 or int(count) > COLUMNS]
        if widths:
            return f"frame {frame} says that a property has {widths[0][:30]} columns; at most {COLUMNS} can be"
        start, frame = start + atoms + 2, frame + 1
        while start < len(lines) and lines[start].startswith("VEC"):
            start += 1
    return ""
