"""The systems that are timed: aspirin, ethanol, silicon of any size, or any file."""

from importlib.resources import files
from pathlib import Path

import ase
import ase.build
import ase.io

from jaxal.core.types import InputError
from jaxal.data.files import read
from jaxal.data.frames import stripped, to_atoms

RATTLE = 0.05  # Å
LATTICE = 5.431  # Å, silicon


def build(name: str, seed: int = 0) -> ase.Atoms:
    """`aspirin`, `ethanol`, `si64` (any 8 m^3 atoms), slightly displaced, or the first frame of a file.

    Aspirin is a minimum of GFN2-xTB. Raises InputError for another name.
    """
    if name == "aspirin":
        with (files("jaxal.bench") / "aspirin.xyz").open() as stream:
            atoms = ase.io.read(stream, format="xyz")
        assert isinstance(atoms, ase.Atoms)
    elif name == "ethanol":
        atoms = ase.build.molecule("CH3CH2OH")
    elif name[:2] == "si" and name[2:].isdecimal():
        atoms = _silicon(name, int(name[2:]))
    elif Path(name).is_file():
        return to_atoms(stripped(read(name, labeled=False)[0]))
    else:
        raise InputError(f"bench: --system {name!r} is none of aspirin, ethanol, si64 (8, 64, 216, ...) or a file")
    atoms.rattle(RATTLE, seed=seed)
    return atoms


def _silicon(name: str, number: int) -> ase.Atoms:
    edge = round((number / 8) ** (1 / 3))
    if edge < 1 or 8 * edge**3 != number:
        near = 8 * max(edge, 1) ** 3
        raise InputError(f"bench: --system {name}: a cube of silicon has 8 m^3 atoms, such as si{near}")
    return ase.build.bulk("Si", "diamond", a=LATTICE, cubic=True).repeat(edge)
