"""Files of structures in and out: any format ASE reads; extended XYZ and ASE databases are written.

A file is written whole or not at all, with all digits of every number.
"""

import contextlib
import gzip
import io
import re
import sqlite3
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ase
import ase.db
import ase.io
import numpy as np
from ase.io.formats import filetype, open_with_compression

from jaxal.core.errors import InputError, InputWarning
from jaxal.data import extxyz, file_electrons, file_refusals, frames, unread
from jaxal.data.extxyz import one_line
from jaxal.data.frames import Carried, Frame

XYZ, DATABASE = (".xyz", ".extxyz", ".xyz.gz", ".extxyz.gz"), (".db",)
TYPED = ("lammps-dump-text", "lammps-dump-binary")  # formats whose atoms may have types in place of elements
CHECKED = {  # formats of which is known what their readers pass over
    *file_refusals.FORMATS,
    *file_electrons.FORMATS,
    *("xyz", "traj", "bundletrajectory", "vasp-xdatcar", "lammps-dump-binary"),
}
OTHER_QUANTITIES = re.compile(r"-(frc|vel)-\d+\.xyz$")  # names that CP2K gives to forces and velocities
RESERVED = ("Lattice", "Properties", "pbc")  # what the second line of an extended XYZ frame means something else by
ARRAYS = "arrays"  # in the data of a database row: what a frame carries for each atom


def read(path: str | Path, labeled: bool = True) -> list[Frame]:
    """All frames of a file, in order.

    Raises InputError for a missing or unreadable file, and with the number of the frame (from 0) for one that cannot be
    carried (`frames.of_atoms`). Without `labeled` energies, forces and stresses are not looked for.
    """
    path = Path(path)
    read_frames = []
    for number, atoms in enumerate(_atoms_in(path, labeled)):
        try:
            read_frames.append(frames.of_atoms(atoms, labeled))
        except InputError as error:
            raise InputError(f"{path}: frame {number}: {error}") from None
    if not read_frames:
        raise InputError(f"{path}: holds no structure")
    unread.tell(read_frames, str(path))
    return read_frames


def _atoms_in(path: Path, labeled: bool) -> Iterator[ase.Atoms]:
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; give structures in a format that ASE reads")
    if path.suffix in (".db", ".json"):
        return iter(_database(path))
    if OTHER_QUANTITIES.search(path.name):
        what = "its name is one of CP2K's for forces or velocities, which are no positions"
        raise InputError(f"{path}: {what}; give the file of positions, or rename it")
    if extxyz.is_extended(path):
        return extxyz.read(path, labeled)
    return iter(_others(path, labeled))


def _others(path: Path, labeled: bool) -> list[ase.Atoms]:
    form = ""
    try:
        form = filetype(str(path))
        if form in TYPED and not _names_elements(path):
            raise InputError(f"{path}: its atoms have types, not elements; dump them with a column `element`")
        text = _text_of(path) if form in (*file_refusals.FORMATS, *file_electrons.FORMATS) else ""
        file_refusals.refuse(path, form, text, labeled)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of readers; what matters is looked at afterwards
            own: Any = (_plain_flags(path), slice(None), form) if form == "vasp" else (path, slice(None))
            atoms = ase.io.read(*own)
    except InputError:
        raise
    except Exception as error:  # ASE's readers raise anything at all
        what = f" as {form}, by its name and content" if form else ""
        raise InputError(
            f"{path}: ASE cannot read it{what} ({one_line(error)}); mend it, or give extended XYZ"
        ) from error
    if form not in CHECKED:
        what = "charge, spin, masses, fixed atoms and units of it were not checked; extended XYZ can say them all"
        warnings.warn(f"{path}: is read as ASE reads {form}; {what}", InputWarning, stacklevel=4)
    several = atoms if isinstance(atoms, list) else [atoms]
    charge, spin = file_electrons.stated(path, form, text)
    for each in several:
        for name, value in (("charge", charge), ("spin", spin)):
            if value is not None:
                each.info.setdefault(name, value)
        if form in TYPED and each.calc is not None:
            each.calc.results.pop("energy", None)  # zero: ASE makes it up where there are forces
    return several


def _text_of(path: Path) -> str:
    with open_with_compression(str(path), "rb") as file:
        return file.read().decode("utf-8", errors="replace").replace("\r\n", "\n")


def _plain_flags(path: Path) -> io.StringIO:
    """A POSCAR whose flags of selective dynamics are T and F; ASE takes any other for T, Fortran its first letter."""
    with open_with_compression(str(path), "rt") as file:
        lines = file.read().split("\n")  # not splitlines: a form feed ends no line
    start = next((row for row in range(6, min(9, len(lines))) if lines[row].strip()[:1] in ("s", "S")), len(lines))
    for row in range(start + 2, len(lines)):
        words = lines[row].split()
        flags = [re.fullmatch(r"\.?([tTfF])\w*\.?", word) for word in words[3:6]]
        if len(flags) == 3 and all(flags):
            lines[row] = " ".join([*words[:3], *(match[1].upper() for match in flags if match), *words[6:]])
    plain: Any = io.StringIO("\n".join(lines))
    plain.name = str(path)  # beside which ASE looks for elements, where the file names none
    return plain


def _names_elements(path: Path) -> bool:
    """Whether a dump of LAMMPS has a column of elements, or of masses, which tell them."""
    with open(path, "rb") as file:
        for line in file:
            if line.startswith(b"ITEM: ATOMS"):
                return bool({b"element", b"mass"} & set(line.split()))
    return False


def _database(path: Path) -> list[ase.Atoms]:
    """The rows of an ASE database; their data and key-value pairs are the info of a frame."""
    try:
        if path.suffix == ".db":
            with contextlib.closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as plain:
                plain.execute("SELECT 1 FROM systems")  # ASE would make its tables in any SQLite file
        rows = []
        for row in ase.db.connect(path, use_lock_file=False).select():
            atoms = row.toatoms()
            pairs = row.key_value_pairs
            # a name that ASE has a use for, such as charge, hides the value of the same name
            atoms.info |= dict(row.data) | {name: vars(row).get(name, value) for name, value in pairs.items()}
            for name, values in _pairs(atoms.info.pop(ARRAYS, None)):
                atoms.set_array(name, np.asarray(values))
            rows.append(atoms)
        return rows
    except Exception as error:  # ASE's readers raise anything at all
        raise InputError(f"{path}: ASE cannot read it ({one_line(error)})") from error


def _pairs(arrays: Any) -> Iterable[tuple[str, Any]]:
    return arrays.items() if isinstance(arrays, dict) else ()


def writable(file: str | Path, force: bool = False) -> Path:
    """Raises InputError where frames cannot go into a file of this name, or would replace it without `force`."""
    file = Path(file)
    if not file.name.lower().endswith(XYZ + DATABASE):
        raise InputError(f"{file}: unknown kind of file; give a name that ends in {', '.join(XYZ + DATABASE)}")
    if file.exists() and not force:
        raise InputError(f"{file}: is there already; --force replaces it")
    return file


def write(file: str | Path, written: Iterable[Frame], force: bool = False) -> int:
    """Writes frames as extended XYZ (also .gz) or an ASE database, by the file's name, and returns how many.

    Without any there will be no file. What a frame carries and the file cannot is left out with a warning. Raises
    InputError where the file exists (unless `force`) or cannot be written.
    """
    file = writable(file, force)
    part = file.with_name(file.name + ".part")
    to = _write_database if file.name.lower().endswith(DATABASE) else _write_xyz
    try:
        part.unlink(missing_ok=True)
        count = to(part, map(portable, written), file.name.lower())
        if count:
            part.replace(file)
    except (OSError, sqlite3.Error) as error:
        raise InputError(f"{file}: cannot be written ({one_line(error)})") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
    return count


def append(file: Path, written: Iterable[Frame]) -> None:
    """Adds frames to the end of an extended XYZ file."""
    with open(file, "a", encoding="utf-8") as end:
        end.writelines(map(extxyz.text_of, written))


def portable(frame: Frame) -> Frame:
    """The frame with plain values in its info; what no file can hold (objects of Python) is left out with a warning."""
    kept, lost = [], []
    for key, value in frame.carried.info:
        try:
            if key in RESERVED:
                raise TypeError(key)
            plain = _plain(value)
            np.array(plain)  # as who reads it does: lists of several lengths are none
            kept.append((key, plain))
        except (TypeError, ValueError):
            lost.append(key)
    arrays = [pair for pair in frame.carried.arrays if pair[1].dtype.kind in "biufU" and pair[1].ndim < 3]
    lost += sorted({name for name, _ in frame.carried.arrays} - {name for name, _ in arrays})
    if lost:
        listed = ", ".join(sorted(lost))
        warnings.warn(f"info that files cannot hold is left out: {listed}", InputWarning, stacklevel=2)
    return frame._replace(carried=Carried(tuple(kept), tuple(arrays)))


def _plain(value: Any, within: bool = False) -> Any:
    """Numbers, texts, lists, mappings and arrays of numbers, which are lists within others.

    Raises TypeError for anything else.
    """
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise TypeError("text") from None  # half of a character
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise TypeError("int")
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufU":
        return value.tolist() if within or value.dtype.kind == "U" else value
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {key: _plain(item, True) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, True) for item in value]
    raise TypeError(type(value).__name__)


def _write_xyz(path: Path, written: Iterable[Frame], name: str) -> int:
    count = 0
    with gzip.open(path, "wt", encoding="utf-8") if name.endswith(".gz") else open(path, "w", encoding="utf-8") as file:
        for frame in written:
            file.write(extxyz.text_of(frame))
            count += 1
    return count


def _write_database(path: Path, written: Iterable[Frame], name: str) -> int:
    del name
    count = 0
    connected: Any = ase.db.connect(path, type="db", use_lock_file=False)
    with connected as database:  # one transaction
        for frame in written:
            atoms = frames.to_atoms(frame)
            data: dict[str, Any] = frames.info_of(frame)
            known = {"initial_magmoms", "initial_charges", "tags", "momenta"}  # ASE has places of its own for these
            arrays = {
                key: values.tolist() if values.dtype.kind == "U" else values
                for key, values in frame.carried.arrays
                if key not in known
            }
            pairs = {"status": frame.origin.status} if frame.origin.status else {}
            database.write(atoms, data=data | ({ARRAYS: arrays} if arrays else {}), **pairs)
            count += 1
    return count
