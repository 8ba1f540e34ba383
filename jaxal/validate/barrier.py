"""Reaction barriers by a climbing-image nudged elastic band, the same way for any ASE calculator.

Band: Henkelman, Uberuaga, Jónsson, J. Chem. Phys. 113, 9901 (2000) and 113, 9978 (improved tangent), started by
image-dependent pair potentials (Smidstrup et al., J. Chem. Phys. 140, 214106, 2014), all from ASE.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import ase
import numpy as np
from ase.build import minimize_rotation_and_translation
from ase.mep import NEB
from ase.optimize import BFGS, FIRE
from scipy.optimize import linear_sum_assignment
from scipy.spatial.transform import Rotation

from jaxal.core.types import InputError
from jaxal.data.frames import fixed_atoms
from jaxal.explore.images import alike
from jaxal.validate.graph import bonds


class Barrier(NamedTuple):
    """A reaction path and its barrier.

    `energies` are relative to the relaxed start, `coordinate` is the length of the path up to each image. The
    images carry no calculator.
    """

    energy: float  # eV, highest image over the relaxed start
    energies: np.ndarray  # [images] eV
    coordinate: np.ndarray  # [images] Å, along the path in the space of all atoms
    images: list[ase.Atoms]
    converged: bool


def barrier(
    calculator_factory: Callable[[], Any],
    start: ase.Atoms,
    end: ase.Atoms,
    *,
    images: int = 9,
    fmax: float = 0.02,
    steps: int = 300,
) -> Barrier:
    """Barrier from `start` to `end`, both relaxed first with the same calculator.

    Atoms held by FixAtoms stay where they are, at the ends and along the path; then nothing is turned or shifted.
    `calculator_factory` gives a calculator for each of the `images` (ends included); `fmax` (eV/Å) is the largest
    force left on any atom, `steps` the most steps each of four optimizations may take. A path that does not
    converge is returned with `converged` false. Raises InputError where the ends do not fit together.
    """
    if images < 3:
        raise InputError(f"images: {images}; a path needs at least 3")
    alike(start, end, "end")
    fixed = fixed_atoms(start)
    ends = [start.copy(), end.copy()]
    ends[1].positions[fixed] = start.positions[fixed]
    converged = True
    for atoms in ends:
        atoms.calc = calculator_factory()
        converged &= bool(BFGS(atoms, logfile=None).run(fmax=fmax / 2, steps=steps))
    open_ = not start.pbc.any()
    loose = open_ and not fixed.any()  # nothing holds it: its rotation and translation are to be taken out
    if loose:
        minimize_rotation_and_translation(ends[0], ends[1])
    band = [ends[0], *(ends[0].copy() for _ in range(images - 2)), ends[1]]
    for image in band[1:-1]:
        image.calc = calculator_factory()
    neb = NEB(
        band,
        method="improvedtangent",
        remove_rotation_and_translation=loose,
        allow_shared_calculator=True,
    )
    neb.interpolate(method="idpp", mic=not open_, apply_constraint=False)
    for image in band[1:-1]:
        image.positions[fixed] = start.positions[fixed]
    # A rough band first: an image that climbs too early can leave the path.
    # ASE annotates atoms and logfile more narrowly than its optimizers take them.
    FIRE(neb, logfile=None).run(fmax=max(0.2, 5 * fmax), steps=steps)  # pyright: ignore[reportArgumentType]
    neb.climb = True
    climb = BFGS(neb, logfile=None, maxstep=0.05)  # pyright: ignore[reportArgumentType]
    converged &= bool(climb.run(fmax=fmax, steps=steps))
    energies = np.array([image.get_potential_energy() for image in band])
    energies -= energies[0]
    moves = np.diff([image.positions for image in band], axis=0)
    coordinate = np.concatenate([[0.0], np.cumsum(np.linalg.norm(moves, axis=(1, 2)))])
    for image in band:
        image.calc = None
    return Barrier(float(energies.max()), energies, coordinate, band, converged)


def mirrored_transfer(atoms: ase.Atoms, hydrogen: int, donor: int, acceptor: int) -> ase.Atoms:
    """Product of a degenerate transfer of `hydrogen` from `donor` to `acceptor` within one molecule.

    The molecule without that hydrogen must look alike from both ends. It is mirrored (or turned by 180°) so that
    donor and acceptor change places, and its atoms are renumbered so that every other atom keeps its place as
    well as it can: the end of a path in which only the hydrogen changes its partner. Raises InputError where the
    indices or the symmetry do not fit.
    """
    count = len(atoms)
    if len({hydrogen, donor, acceptor}) != 3 or not all(0 <= i < count for i in (hydrogen, donor, acceptor)):
        raise InputError(f"hydrogen, donor, acceptor: must be three different indices from 0 to {count - 1}")
    if atoms.pbc.any():
        raise InputError("atoms: periodic; the mirrored transfer is for one open molecule")
    axis = atoms.positions[acceptor] - atoms.positions[donor]
    axis /= np.linalg.norm(axis)
    center = (atoms.positions[acceptor] + atoms.positions[donor]) / 2
    relative = atoms.positions - center
    fold = relative.mean(axis=0) - relative.mean(axis=0) @ axis * axis  # from the midpoint to the molecule's middle
    images = [relative - 2 * np.outer(relative @ axis, axis)]
    if np.linalg.norm(fold) > 1e-3:
        images.append(Rotation.from_rotvec(np.pi * fold / np.linalg.norm(fold)).apply(relative))
    bonded = bonds(atoms)
    best, least = None, np.inf
    for image in images:
        cost = np.linalg.norm(relative[:, None] - image[None], axis=-1) ** 2
        cost[atoms.numbers[:, None] != atoms.numbers[None]] = 1e6
        for row, column in ((hydrogen, hydrogen), (donor, acceptor), (acceptor, donor)):
            cost[row, :] = cost[:, column] = 1e6
            cost[row, column] = 0.0
        rows, source = linear_sum_assignment(cost)  # atom i takes the place where the image of source[i] is
        total = cost[rows, source].sum()
        rest = np.array([i for i in range(count) if i != hydrogen])
        same = bonded[np.ix_(rest, rest)] == bonded[np.ix_(source[rest], source[rest])]
        if total < least and total < 1e6 and same.all():
            best, least = image[source] + center, total
    if best is None:
        raise InputError(
            f"atoms: without hydrogen {hydrogen} the molecule does not look alike from {donor} and {acceptor}; "
            "give the product as a structure of its own"
        )
    product = atoms.copy()
    product.positions = best
    product.calc = None
    return product
