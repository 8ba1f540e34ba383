"""Images between structures: where a band begins. Host side, numpy and ASE."""

import itertools
import warnings
from collections.abc import Sequence
from typing import Any

import ase
import numpy as np
from ase.build import minimize_rotation_and_translation
from ase.mep import NEB
from ase.mep.neb import idpp_interpolate
from geodesic_interpolate.geodesic import Geodesic
from geodesic_interpolate.interpolation import redistribute

from jaxal.core.errors import InputError
from jaxal.data.frames import fixed_atoms, overlap

NEAREST = 0.5  # of the sum of two covalent radii; nearer than that images on a straight way are in each other's way
ASIDE = 0.2  # Å, that atoms step aside then
STEPS = 200  # of the relaxation on pair potentials
# Of a geodesic, as its authors have them: how near images are to halves of the way, Å, how near the path is to the
# shortest, its friction, the range of what counts as near, Å, and sweeps along it
HALVES, SHORTEST, FRICTION, REACH, SWEEPS = 5e-3, 2e-3, 1e-2, 3.0, 15
WHOLE, MOST = 35, 150  # atoms up to which all images of a geodesic are moved together, and of which there is one


def alike(first: ase.Atoms, second: ase.Atoms, which: str) -> None:
    """Raises InputError where there can be no path between two structures, the second of which is called `which`."""
    if len(first) != len(second) or not np.array_equal(first.numbers, second.numbers):
        raise InputError(f"{which}: its atoms are not those of the first; give the same elements in the same order")
    if not np.array_equal(first.pbc, second.pbc):
        raise InputError(f"{which}: not periodic in the same directions as the first; give both the same pbc")
    if first.pbc.any() and not np.allclose(first.cell.array, second.cell.array, atol=1e-3):
        raise InputError(f"{which}: its cell is not that of the first; give both the same")
    fixed = fixed_atoms(first)
    if not np.array_equal(fixed, fixed_atoms(second)):
        raise InputError(f"{which}: its fixed atoms are not those of the first; give both the same")
    moved = np.linalg.norm(second.positions[fixed] - first.positions[fixed], axis=-1)
    if np.any(moved > 1e-3):
        atom = int(np.flatnonzero(fixed)[np.argmax(moved)])
        raise InputError(f"{which}: its fixed atom {atom} is {moved.max():.3g} Å from where the first has it")


def between(structures: Sequence[ase.Atoms], number: int, geodesic: bool = True) -> list[ase.Atoms]:
    """So many images along structures of the same atoms, in their order, these included.

    The images of a molecule that nothing holds are turned and shifted onto each other, and those between two of them
    are on a geodesic of scaled distances (Zhu, Thompson and Martínez, J. Chem. Phys. 150, 164103, 2019;
    geodesic-interpolate). All others, and without `geodesic` these too, are made by image-dependent pair potentials
    (Smidstrup et al., J. Chem. Phys. 140, 214106, 2014; ASE). More of them are where atoms move farther. Raises
    InputError for fewer images than structures, and for structures between which there is no path.
    """
    if number < len(structures):
        raise InputError(f"images: {number} are fewer than the structures they are to pass, {len(structures)}")
    placed = [structures[0].copy()]
    loose = not structures[0].pbc.any() and not fixed_atoms(structures[0]).any()
    for row, structure in enumerate(structures[1:], start=1):
        alike(structures[0], structure, f"structure {row}")
        placed.append(structure.copy())
        if loose:
            minimize_rotation_and_translation(placed[-2], placed[-1])
    lengths = np.array([np.linalg.norm(b.positions - a.positions) for a, b in itertools.pairwise(placed)])
    images = placed[:1]
    for first, last, inner in zip(placed[:-1], placed[1:], _shares(lengths, number - len(placed)), strict=True):
        fits = geodesic and loose and 2 < len(first) <= MOST
        inside = _geodesic(first, last, inner) if fits else None
        images += [*(_idpp(first, last, inner) if inside is None else inside), last]
    for first, second in itertools.pairwise(images if loose else []):
        minimize_rotation_and_translation(first, second)
    return images


def _shares(lengths: np.ndarray, number: int) -> list[int]:
    """How many images go into each stretch, so that they are about evenly spaced."""
    counts = np.zeros(len(lengths), int)
    for _ in range(number):
        counts[np.argmax(lengths / (counts + 1))] += 1
    return counts.tolist()


def _geodesic(first: ase.Atoms, last: ase.Atoms, number: int) -> list[ase.Atoms] | None:
    """Images between two molecules along the shortest path in scaled distances; None where it does not come out."""
    if number == 0:
        return []
    symbols = first.get_chemical_symbols()
    before = np.random.get_state()  # the package draws from it
    np.random.seed(0)
    try:
        begun = redistribute(symbols, [first.positions, last.positions], number + 2, tol=HALVES)
        path = Geodesic(symbols, begun, 1.7, threshold=REACH, friction=FRICTION)
        shorten = path.smooth if len(first) <= WHOLE else path.sweep
        shorten(tol=SHORTEST, max_iter=SWEEPS)
    except (ValueError, np.linalg.LinAlgError, ZeroDivisionError):
        return None
    finally:
        np.random.set_state(before)
    images = [first.copy() for _ in range(number)]
    for image, place in zip(images, path.path[1:-1], strict=True):
        image.positions = place
        if not np.isfinite(place).all() or overlap(image, NEAREST):
            return None
    return images


def _idpp(first: ase.Atoms, last: ase.Atoms, number: int) -> list[ase.Atoms]:
    if number == 0:
        return []
    chain = [first.copy(), *(first.copy() for _ in range(number)), last.copy()]
    fixed = fixed_atoms(first)
    for image in chain:
        image.set_constraint()
    mic = bool(first.pbc.any())
    NEB(chain, method="improvedtangent").interpolate(mic=mic, apply_constraint=False)
    if any(overlap(image, NEAREST) for image in chain[1:-1]):  # on a line atoms cannot pass each other
        aside = np.random.default_rng(0).normal(0.0, ASIDE, first.positions.shape)
        for row, image in enumerate(chain):
            image.positions += np.sin(np.pi * row / (number + 1)) * aside
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # ASE warns of its own choice of tangents, which does not matter here
        nowhere: Any = None
        idpp_interpolate(chain, traj=nowhere, log=nowhere, mic=mic, steps=STEPS)
    if not all(np.isfinite(image.positions).all() for image in chain):
        raise InputError("there is no way from one structure to the other; give one in between, too")
    for image in chain[1:-1]:
        image.positions[fixed] = first.positions[fixed]
        image.set_constraint(first.constraints)
    return chain[1:-1]
