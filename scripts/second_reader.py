"""A second reader of structure files, to hold the first against: slow, plain, and of no use without it.

Extended XYZ is taken apart here by lines and columns; of other formats the oracle is ASE. Where `jaxal.data` reads a
value it must be the one that is found here, frame by frame; where it refuses, there is nothing to compare.
"""

from pathlib import Path
from typing import Any, NamedTuple

import ase.io
import numpy as np
from ase.data import atomic_masses, atomic_numbers
from ase.io.extxyz import key_val_str_to_dict

from jaxal.data import extxyz, files
from jaxal.data.frames import Frame

TYPES: dict[str, Any] = {"R": float, "I": int, "S": str, "L": lambda word: word in ("T", "True", "true", "TRUE")}


class Plain(NamedTuple):
    """A frame of extended XYZ."""

    columns: dict[str, np.ndarray]
    info: dict[str, Any]


def frames_of(path: Path) -> list[Plain]:
    """The frames of an extended XYZ file that is good."""
    lines = path.read_text().removeprefix("\ufeff").split("\n")
    frames, at = [], 0
    while at < len(lines):
        if not lines[at].strip():
            at += 1
            continue
        count = int(lines[at])
        info: dict[str, Any] = _info(lines[at + 1])
        fields = str(info.pop("Properties", "species:S:1:pos:R:3")).split(":")
        rows = [line.split() for line in lines[at + 2 : at + 2 + count]]
        columns, column = {}, 0
        for name, kind, width in zip(fields[::3], fields[1::3], map(int, fields[2::3]), strict=True):
            values = np.array([[TYPES[kind](word) for word in row[column : column + width]] for row in rows])
            columns[name] = values[:, 0] if width == 1 else values
            column += width
        frames.append(Plain(columns, info))
        at += 2 + count
        while at < len(lines) and lines[at].startswith("VEC"):
            at += 1
    return frames


def _info(line: str) -> dict[str, Any]:
    """A comment line; six numbers of a stress or virial are spelled out as nine for ASE."""
    try:
        return key_val_str_to_dict(line.strip())
    except ValueError:
        for name in ("stress", "virial"):
            head, mark, tail = line.partition(f'{name}="')
            words = tail.partition('"')[0].split()
            if mark and len(words) == 6:
                xx, yy, zz, yz, xz, xy = words
                nine = " ".join((xx, xy, xz, xy, yy, yz, xz, yz, zz))
                line = f'{head}{name}="{nine}"{tail.partition(chr(34))[2]}'
        return key_val_str_to_dict(line.strip())


def compare(path: Path) -> None:
    """Reads a file twice. Raises AssertionError where the first reader gives other numbers than the second."""
    frames = files.read(path)
    if extxyz.is_extended(path):
        second = frames_of(path)
        assert len(frames) == len(second), f"{len(frames)} frames of {len(second)}"
        for frame, plain in zip(frames, second, strict=True):
            _same(frame, plain)
        return
    atoms = ase.io.read(path, ":")
    atoms = atoms if isinstance(atoms, list) else [atoms]
    assert len(frames) == len(atoms), f"{len(frames)} frames of {len(atoms)}"
    for frame, image in zip(frames, atoms, strict=True):
        for name, mine, other in (
            ("numbers", frame.numbers, image.numbers),
            ("positions", frame.position, image.positions),
            ("cell", frame.cell, image.cell.array),
            ("masses", frame.mass, image.get_masses()),
        ):
            assert np.array_equal(mine, other), f"{name}: {mine} is not {other}"


def _same(frame: Frame, plain: Plain) -> None:
    columns, info = plain
    mass, free = columns.get("masses"), columns.get("move_mask")
    numbers = columns.get("Z", None)
    if numbers is None:
        numbers = np.array([atomic_numbers[str(symbol).capitalize()] for symbol in columns["species"]])
    checks: list[tuple[str, Any, Any]] = [
        ("numbers", frame.numbers, numbers),
        ("positions", frame.position, columns["pos"]),
        ("masses", frame.mass, atomic_masses[numbers] if mass is None else mass),
    ]
    if free is not None and free.ndim == 1:
        checks.append(("fixed atoms", frame.fixed, ~free.astype(bool)))
    reference = any(f"REF_{name}" in {**info, **columns} for name in ("energy", "free_energy", "forces", "stress"))
    prefix = "REF_" if reference else ""
    energy = info.get(f"{prefix}free_energy", info.get(f"{prefix}energy"))
    if energy is not None:
        checks.append(("energy", frame.numeric.energy, float(np.asarray(energy).reshape(()))))
    if f"{prefix}forces" in columns:
        checks.append(("forces", frame.numeric.force, columns[f"{prefix}forces"]))
    if "charge" in info:
        checks.append(("charge", frame.charge, int(info["charge"])))
    if frame.periodic.any() and (virial := info.get(f"{prefix}virial")) is not None and f"{prefix}stress" not in info:
        matrix = np.asarray(virial).reshape(3, 3)
        checks.append(("stress", frame.numeric.stress, -matrix.T / abs(np.linalg.det(frame.cell))))
    for name, mine, other in checks:
        close = np.allclose(mine, other, rtol=1e-12, atol=1e-300) if name == "stress" else np.array_equal(mine, other)
        assert close, f"{name}: {mine} is not {other}"
