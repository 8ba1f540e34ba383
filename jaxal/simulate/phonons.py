"""Phonons of a crystal on a finished model, by phonopy: dispersion, density of states, thermal properties."""

import contextlib
import io
import itertools
import warnings
from typing import Any, NamedTuple

import ase
import numpy as np
from ase import units
from ase.cell import Cell
from ase.dft.kpoints import parse_path_string
from jaxtyping import Float

from jaxal.core.errors import InputError
from jaxal.data.frames import fixed_atoms
from jaxal.deploy import model as models
from jaxal.deploy.structures import placed
from jaxal.simulate.surface import in_double, minimized

DISPLACEMENT = 0.01  # Å
POINTS, MESH = 41, 20  # wave vectors of a segment; of the density of states in each direction that repeats
RELAXED, RELAXATIONS = 1e-4, 500  # eV/Å and steps of a minimization
TEMPERATURES = np.arange(0.0, 1001.0, 10.0)  # K, and that which is asked for
EV = units.kJ / units.mol  # eV, of phonopy's kJ/mol


class Segment(NamedTuple):
    """A straight piece of the dispersion [q], of bands [b]."""

    names: tuple[str, str]  # of its ends
    distance: Float[np.ndarray, "q"]  # along the whole path, 1/Å
    frequency: Float[np.ndarray, "q b"]  # THz; imaginary ones negative
    spread: Float[np.ndarray, "q b"]  # THz, standard deviation of the members'; NaN of a single one


class Phonons(NamedTuple):
    """Phonons of a primitive cell."""

    atoms: int  # of the primitive cell
    displaced: int  # structures whose forces it took
    segments: list[Segment]
    density: Float[np.ndarray, "f 2"]  # THz, states per THz and primitive cell
    temperature: Float[np.ndarray, "t"]  # K
    free: Float[np.ndarray, "t"]  # eV per primitive cell, Helmholtz' of the vibrations
    entropy: Float[np.ndarray, "t"]  # eV/K
    capacity: Float[np.ndarray, "t"]  # eV/K, at constant volume
    lowest: float  # THz, on the path and on the mesh; negative where the structure is not stable
    force: float  # eV/Å, the largest in the structure


def phonons(
    model: models.Model,
    atoms: ase.Atoms,
    supercell: tuple[int, int, int],
    relax: bool = False,
    temperature: float = 300.0,
) -> tuple[ase.Atoms, Phonons]:
    """Phonons of a crystal that repeats `supercell` times for its force constants; the structure, and what it has.

    Atoms are moved by 0.01 Å, as its symmetry needs, and each member's forces make frequencies of its own (Togo et al.,
    J. Phys. Condens. Matter 35, 353001, 2023). With `relax` the atoms go to their minimum first, in the cell as it is.
    Thermal properties are those from 0 to 1000 K and at `temperature` (K).
    Raises InputError for structures without a lattice, with fixed atoms, and where phonopy is missing.
    """
    _check(atoms, supercell)
    try:
        from phonopy import Phonopy
        from phonopy.structure.atoms import PhonopyAtoms
    except ImportError:
        raise InputError("phonons: phonopy is missing; `pip install phonopy`, or jaxal[phonons]") from None
    double = in_double(model)
    if relax:
        atoms = minimized(double, atoms, RELAXED, RELAXATIONS, "STRUCTURE")
    cell = PhonopyAtoms(
        symbols=atoms.get_chemical_symbols(),
        cell=atoms.cell.array,
        positions=atoms.positions,
        masses=atoms.get_masses(),
    )
    # the primitive cell of a slab or a wire would have its axes in another order
    primitive: Any = "auto" if atoms.pbc.all() else np.eye(3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        lattice = Phonopy(cell, np.diag(supercell), primitive_matrix=primitive)
    lattice.generate_displacements(distance=DISPLACEMENT)
    moved: Any = lattice.supercells_with_displacements
    frames = [_like(atoms, each) for each in (lattice.supercell, *moved)]
    force = _forces(double, frames)
    force, rest = force[1:], force[0]
    paths = _paths(Cell(lattice.primitive.cell), atoms.pbc)
    names = [pair for part in paths.parts for pair in itertools.pairwise(part)]
    bands = [np.linspace(paths.points[first], paths.points[last], POINTS) for first, last in names]
    force -= rest[None]
    each = [_dispersion(lattice, force[:, member], bands)[1] for member in range(force.shape[1])]
    distance, mean = _dispersion(lattice, force.mean(axis=1), bands)  # the last: the mesh is of these forces
    many = len(each) > 1
    spread = [
        np.std([one[row] for one in each], axis=0) if many else np.full_like(x, np.nan) for row, x in enumerate(mean)
    ]
    segments = [Segment(*values) for values in zip(names, distance, mean, spread, strict=True)]
    mesh = [MESH if repeats else 1 for repeats in atoms.pbc]
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a mesh of a slab, which has not the symmetry of its cell
        lattice.run_mesh(mesh)
        lattice.run_total_dos()
        lattice.run_thermal_properties(temperatures=np.union1d(TEMPERATURES, [temperature]))
    density, thermal = lattice.get_total_dos_dict(), lattice.get_thermal_properties_dict()
    everywhere: Any = lattice.get_mesh_dict()
    lowest = min(min(x.min() for x in mean), float(everywhere["frequencies"].min()))
    largest = float(np.linalg.norm(rest.mean(axis=0), axis=-1).max())
    return atoms, Phonons(
        atoms=len(lattice.primitive),
        displaced=len(moved),
        segments=segments,
        density=np.stack([density["frequency_points"], density["total_dos"]], axis=1),
        temperature=np.asarray(thermal["temperatures"]),
        free=EV * np.asarray(thermal["free_energy"]),
        entropy=1e-3 * EV * np.asarray(thermal["entropy"]),
        capacity=1e-3 * EV * np.asarray(thermal["heat_capacity"]),
        lowest=float(lowest),
        force=largest,
    )


def _check(atoms: ase.Atoms, supercell: tuple[int, int, int]) -> None:
    if not atoms.pbc.any():
        raise InputError("STRUCTURE: repeats in no direction; `jaxal vibrations` is for molecules")
    if fixed_atoms(atoms).any():
        raise InputError("STRUCTURE: has fixed atoms, which have no phonons; free them, or take `jaxal vibrations`")
    if abs(np.linalg.det(atoms.cell.array)) < 1e-6:
        raise InputError("STRUCTURE: its lattice vectors span no volume; give a vacuum along open directions")
    for number, repeats, name in zip(supercell, atoms.pbc, "abc", strict=True):
        if number < 1 or (number > 1 and not repeats):
            right = "at least 1" if repeats else "1, it is open there"
            raise InputError(f"--supercell: {number} along {name} does not fit; give {right}")


class _Path(NamedTuple):
    parts: list[list[str]]  # names of corners
    points: dict[str, np.ndarray]  # in reciprocal lattice vectors


def _paths(cell: Cell, periodic: np.ndarray) -> _Path:
    """The path along the lines of high symmetry of a primitive cell, in the directions that repeat."""
    repeats: Any = periodic
    path = cell.bandpath(pbc=repeats)
    return _Path(parse_path_string(path.path), {name: np.array(point) for name, point in path.special_points.items()})


def _like(atoms: ase.Atoms, cell: Any) -> ase.Atoms:
    """A cell of phonopy's as a structure with the charge and spin of another."""
    charge, spin = atoms.info.get("charge"), atoms.info.get("spin")
    info = {name: value for name, value in (("charge", charge), ("spin", spin)) if value is not None}
    return ase.Atoms(
        cell.symbols, positions=cell.positions, cell=cell.cell, pbc=atoms.pbc, masses=cell.masses, info=info
    )


def _forces(model: models.Model, frames: list[ase.Atoms]) -> Float[np.ndarray, "b m n 3"]:
    """Forces of each member, eV/Å."""
    predict = models.predictor(model)
    rows = [placed(model, [frame]).structure for frame in frames]
    return np.concatenate([np.asarray(predict(row)[1], np.float64) for row in rows])


def _dispersion(
    lattice: Any, force: Float[np.ndarray, "d n 3"], bands: list[np.ndarray]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Distances (1/Å) and frequencies (THz) along the path, from forces on the displaced cells."""
    with contextlib.redirect_stdout(io.StringIO()):
        lattice.forces = force
        lattice.produce_force_constants()
        lattice.symmetrize_force_constants()
        lattice.run_band_structure(bands, is_legacy_plot=False)
    result = lattice.get_band_structure_dict()
    return [np.asarray(x) for x in result["distances"]], [np.asarray(x) for x in result["frequencies"]]
