"""Extended XYZ in and out. ASE reads it; what it would pass over or believe is looked at before.

ASE 3.29 stops at a blank line between two frames, knows no stress of six numbers, leaves out columns that Properties
does not declare, and believes what a damaged file says of its size: a frame that claims a billion atoms or columns
keeps it busy for hours. The writer here keeps all digits, where ASE's rounds to 1e-8.
"""

import functools
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import ase
import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from ase.io.extxyz import key_val_str_to_dict, read_xyz
from ase.io.formats import filetype, open_with_compression

from jaxal.core.errors import InputError
from jaxal.data import frames
from jaxal.data.electrons import KEYS
from jaxal.data.frames import Frame
from jaxal.data.labels import MATRIX, tensor_of, voigt_to_matrix
from jaxal.data.lattice import letters

COLUMNS = 10_000  # of one property
SHOWN = 30  # characters of what is wrong in a message
KINDS = {"b": "L", "i": "I", "u": "I", "f": "R", "U": "S"}  # numpy's kinds of arrays as Properties names them
_COUNT = re.compile(r":[RISL]:(\d+)")
_PROPERTIES = re.compile(r"""Properties=(?:"([^"]*)"|'([^']*)'|(\S+))""")
_TENSOR = re.compile(r"""(?<!\S)(stress|virial)=("[^"]*"|'[^']*'|\{[^}]*\}|\[[^\]]*\])(?!\S)""")
_QUOTED = re.compile(r"""(?<==)("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\{[^}]*\}|\[[^\]]*\])""")
_SIX = "_of_six"
ALL: Any = slice(None)
ALIKE = {"Lattice": ("lattice", "cell", "unit_cell"), "pbc": ("periodic", "boundary")}  # in lower case
ISOTOPES = {"d": "H, with its mass of 2.014", "t": "H, with its mass of 3.016"}


class Text(NamedTuple):
    """An extended XYZ file as ASE can read it, and in which line (from 1) each of its frames begins."""

    lines: list[str]
    begins: list[int]


class Columns(NamedTuple):
    """The columns of a frame."""

    width: int | None  # values in a line; None: four or more, of which the first four count
    species: int | None  # the column of the element; None: there are atomic numbers instead
    number: int | None = None  # that of the atomic number


def is_extended(path: Path) -> bool:
    """Whether ASE takes the file for (extended) XYZ."""
    try:
        return filetype(str(path)) in ("xyz", "extxyz")
    except Exception:  # ASE's look at a file raises anything at all
        return False


def read(path: Path, labeled: bool = True) -> Iterator[ase.Atoms]:
    """The frames of an extended XYZ file, in order. Raises InputError with the number of the frame that is not good.

    Without `labeled` a stress may be what it likes.
    """
    try:
        with open_with_compression(str(path), "rt") as file:
            text = file.read()
    except (OSError, EOFError, ValueError) as error:  # ValueError: not text
        raise InputError(f"{path}: cannot be read as text ({one_line(error)})") from error
    lines, begins = checked(text.removeprefix("\ufeff").removesuffix("\n").split("\n"), path)
    number = 0
    parts = read_xyz(io.StringIO("\n".join(lines) + "\n"), ALL, properties_parser=functools.partial(_info, labeled))
    while number < len(begins):
        try:
            atoms = next(parts)
        except StopIteration:
            break
        except InputError as error:
            raise InputError(f"{path}: frame {number} (line {begins[number]}): {error}") from None
        except Exception as error:  # ASE raises what its parser happens to meet
            where = f"{path}: frame {number} (line {begins[number]})"
            raise InputError(f"{where}: ASE cannot read it ({one_line(error)})") from error
        yield atoms
        number += 1
    if number < len(begins):
        raise InputError(f"{path}: frame {number} (line {begins[number]}): ASE reads only {number} frames of the file")


def checked(lines: list[str], path: Path) -> Text:
    """The lines without blank ones between frames. Raises InputError, with the line, for what is no extended XYZ."""
    kept: list[str] = []
    begins: list[int] = []
    start = 0
    while start < len(lines):
        if not lines[start].strip():
            start += 1
            continue
        where = f"{path}: frame {len(begins)} (line {start + 1})"
        try:
            atoms = int(lines[start])
        except ValueError:
            shown = lines[start].strip()[:SHOWN]
            raise InputError(f"{where}: begins with {shown!r}, where the number of its atoms is needed") from None
        left = max(0, len(lines) - start - 2)
        if atoms < 0 or atoms > left or start + 1 >= len(lines):
            says = f"says that it has {lines[start].strip()[:SHOWN]} atoms, but {left} lines follow its second"
            raise InputError(f"{where}: {says}")
        widths = [count for count in _COUNT.findall(lines[start + 1]) if len(count) > 9 or int(count) > COLUMNS]
        if widths:
            says = f"says that a property has {widths[0][:SHOWN]} columns; at most {COLUMNS} can be"
            raise InputError(f"{where}: {says}")
        stop = start + atoms + 2
        try:
            columns = _declared(lines[start + 1])
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        for row in range(start + 2, stop):
            if reason := _odd(lines[row], columns):
                raise InputError(f"{path}: frame {len(begins)} (line {row + 1}): {reason}")
        while stop < len(lines) and lines[stop].startswith("VEC"):
            stop += 1
        begins.append(start + 1)
        kept += lines[start:stop]
        start = stop
    if not kept:
        raise InputError(f"{path}: holds no structure")
    return Text(kept, begins)


def _declared(comment: str) -> Columns:
    """The columns that a comment line declares.

    Raises InputError where atoms would have no element or no place, and for a key that stands there twice.
    """
    keys = re.findall(r"(?<!\S)([^\s=]+)=", _QUOTED.sub("quoted", comment))
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise InputError(f"{twice[0][:SHOWN]} stands there twice; which counts?")
    for name in keys:
        right = next((right for right, alike in ALIKE.items() if name.lower() in alike and name != right), None)
        if right and (right not in keys or name.lower() == right.lower()):
            raise InputError(f"{name} is not read; write {right}, as ASE does")
    properties = _PROPERTIES.search(comment)
    if properties is None:
        return Columns(None, 0)
    fields = next(filter(None, properties.groups()), "").split(":")
    names, kinds, counts = fields[::3], fields[1::3], fields[2::3]
    if len(fields) % 3 or not all(count.isdigit() for count in counts):
        raise InputError("Properties must be name:kind:columns for each property")
    places = {name: sum(map(int, counts[:place])) for place, name in enumerate(names)}
    declared = {name: (kind, int(count)) for name, kind, count in zip(names, kinds, counts, strict=True)}
    if declared.get("pos") != ("R", 3) or not {"species", "Z"} & set(declared):
        raise InputError("Properties needs pos:R:3 and species:S:1 or Z:I:1")
    if twofold := sorted({"symbols", "numbers", "positions"} & set(declared)):
        raise InputError(f"a column `{twofold[0]}` beside species, Z or pos; which counts?")
    if "move_mask" in declared and declared["move_mask"][0] not in "LI":
        raise InputError("move_mask must be of logical values (move_mask:L:1)")
    return Columns(sum(map(int, counts)), places.get("species"), places.get("Z"))


def _odd(line: str, columns: Columns) -> str:
    """What is wrong with the line of an atom; empty where nothing is."""
    values = line.split()
    if columns.width is not None and len(values) != columns.width:
        return f"{len(values)} values, where Properties declares {columns.width}"
    if columns.width is None and len(values) < 4:
        return f"{len(values)} values; an element and three coordinates are needed"
    if columns.species is None:
        return ""
    word = values[columns.species]
    if word.capitalize() in atomic_numbers:
        number = word if columns.number is None else values[columns.number]
        same = columns.number is None or number == str(atomic_numbers[word.capitalize()])
        return "" if same else f"its species is {word}, but its Z is {number[:SHOWN]}"
    if word.isdigit():
        return f"{word} is a number, where the symbol of an element is needed; types of a program are no elements"
    instead = ISOTOPES.get(word.lower(), "the symbol of an element")
    return f"{word[:SHOWN]!r} is no element; write {instead}"


def _info(labeled: bool, line: str) -> dict[str, Any]:
    """ASE's reading of a comment line, and a stress or virial of six numbers, in ASE's order, as a matrix."""

    def renamed(match: re.Match[str]) -> str:
        numbers = re.findall(r"[^\s,]+", match[2][1:-1])
        return f"{match[1]}{_SIX if len(numbers) == 6 else ''}={match[2]}"

    info = key_val_str_to_dict(_TENSOR.sub(renamed, line))
    for name in ("stress", "virial"):
        if (six := info.pop(name + _SIX, None)) is not None:
            six = np.asarray(six)
            info[name] = voigt_to_matrix(six) if six.dtype.kind in "iuf" else six
        nine = np.asarray(info.get(name))
        whole = nine.size == 9 and nine.dtype.kind in "iuf" and np.all(np.isfinite(nine))
        if labeled and whole and MATRIX not in info:
            tensor_of(name, nine)  # ASE would take six of them
    for name in [name for name, value in info.items() if value is True and name[:-1].lower() in KEYS]:
        info[name[:-1]] = info.pop(name)  # charge: -1, of which ASE makes flags; refused as such
    _check_periodicity(info)
    return info


def _check_periodicity(info: dict[str, Any]) -> None:
    """Raises InputError for a `pbc` that is not one or three flags: ASE takes any text for three true ones."""
    for name in [name for name in info if name.lower() == "pbc"]:
        flags = np.asarray(info[name])
        right = flags.dtype.kind in "biu" and flags.size in (1, 3) and bool(np.isin(flags, (0, 1)).all())
        if not right or name != "pbc":
            shown = " ".join(str(info[name]).split())[:SHOWN]
            raise InputError(f'{name}: {shown!r} is not read as the directions that repeat; give such as pbc="T T F"')


def one_line(error: BaseException) -> str:
    """What an error of a library says, short."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def text_of(frame: Frame) -> str:
    """A frame as extended XYZ, exact to the last bit: what ASE reads of it is the same frame.

    Raises InputError for something that a frame carries and text cannot.
    """
    columns: list[list[str]] = [[chemical_symbols[z] for z in frame.numbers]]
    declared = ["species:S:1"]

    def column(name: str, values: np.ndarray) -> None:
        values = np.asarray(values)
        if values.dtype.kind not in KINDS or values.ndim > 2 or not name or set(name) & set(': "='):
            raise InputError(f"{name}: {values.dtype} of shape {list(values.shape)} cannot be a column of extended XYZ")
        declared.append(f"{name}:{KINDS[values.dtype.kind]}:{1 if values.ndim == 1 else values.shape[1]}")
        for part in values.reshape(len(values), -1).T:
            columns.append([_cell(value, name) for value in part.tolist()])

    column("pos", frame.position)
    if frames.isotopes(frame):
        column("masses", frame.mass)
    if frame.fixed.any():
        column("move_mask", ~frame.fixed)
    results = frames.results_of(frame)
    if "forces" in results:
        column("forces", results["forces"])
    for name, values in frame.carried.arrays:
        column(name, values)
    words = [f'Lattice="{_numbers(frame.cell)}"'] if frame.cell.any() else []
    words.append(f"Properties={':'.join(declared)}")
    if "energy" in results:
        words.append(f"energy={float(results['energy'])!r}")
    stress = frame.numeric.stress
    if "stress" in results:
        words.append(f'stress="{_numbers(stress.T)}"')
    words += [f"{_key(key)}={_word(value, key)}" for key, value in frames.info_of(frame).items()]
    words.append(f'pbc="{" ".join(letters(frame.periodic))}"')
    rows = [" ".join(row) for row in zip(*columns, strict=True)]
    return "\n".join([str(len(frame.numbers)), " ".join(words), *rows]) + "\n"


def _numbers(array: np.ndarray) -> str:
    """All digits that a float64 needs to come back with the same bits."""
    return " ".join(repr(float(value)) for value in np.ravel(array))


def _cell(value: Any, name: str) -> str:
    if isinstance(value, bool):
        return "T" if value else "F"
    if isinstance(value, str):
        if not value or any(letter.isspace() for letter in value):
            raise InputError(f"{name}: {value!r} cannot stand in a column of extended XYZ")
        return value
    return repr(value)


def _key(key: str) -> str:
    return f'"{key}"' if set(key) & set(" =\"'{}[]") else key


def _word(value: Any, key: str) -> str:
    """A value so that ASE reads it as this very value."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool):
        return "T" if value else "F"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "iufb" and value.ndim == 1 and value.size > 1:
        return '"' + " ".join(_cell(item, key) for item in value.tolist()) + '"'
    if isinstance(value, np.ndarray):
        value = value.tolist()
    try:
        return _quoted("_JSON " + json.dumps(value))
    except (TypeError, ValueError):
        raise InputError(f"{key}: a {type(value).__name__} cannot stand in extended XYZ") from None


def _text(text: str) -> str:
    """A text so that ASE reads it as this very text: as JSON where it looks like numbers or has odd characters."""
    odd = not (text.isascii() and text.isprintable()) or text.strip() != text or set(text) & {'"', "\\"}
    if odd or all(map(_is_value, re.findall(r"[^\s,]+", text))):
        text = "_JSON " + json.dumps(text)
    return _quoted(text)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _is_value(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return word in ("T", "F", "true", "false", "True", "False", "TRUE", "FALSE")
    return True
