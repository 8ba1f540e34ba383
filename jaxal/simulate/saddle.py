"""Saddles of a finished model: dimers from many starts, refined with exact Hessians, and the minima on both sides."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import ase
import numpy as np
from jaxtyping import Float

from jaxal.core.errors import InputError
from jaxal.deploy import model as models
from jaxal.explore.dimer import dimer
from jaxal.simulate import vibrations
from jaxal.simulate.surface import Expansion, deviation, expander, in_double, minimized, opinions, surface
from jaxal.simulate.vibrations import Vibrations, motions, reference_of
from jaxal.simulate.walkers import position, program
from jaxal.validate.graph import bonds

FLAT = 1e-3  # eV/Å, the largest force left on an atom of a refined saddle
REFINED, FARTHEST = 60, 0.1  # steps of the refinement, and Å that an atom may go in one
ARC, ARCS = 0.08, 150  # length, Å amu^(1/2), and number of the steps down from a saddle
LEAST = 0.01  # eV/Å/amu^(1/2); a path that is less steep has come down
RELAXED, RELAXATIONS = 5e-3, 500  # eV/Å and steps of the minimization that follows
SAME = 0.05  # Å, largest difference of sorted distances of what is the same structure
SAME_ENERGY = 1e-4  # eV; of what is the same structure energies differ by less


class Side(NamedTuple):
    """The minimum on one side of a saddle."""

    atoms: ase.Atoms
    energy: float  # eV, total
    barrier: float  # eV, of the saddle over it
    spread: float  # eV, standard deviation of the members' barriers at these structures
    frames: list[ase.Atoms]  # from the saddle down to the minimum


class Saddle(NamedTuple):
    """A first-order saddle: no force, one imaginary frequency."""

    atoms: ase.Atoms
    vibrations: Vibrations
    sides: tuple[Side, Side]
    supported: bool | None  # saddle and both minima, by what the model was trained on; None where it does not know
    error: float  # eV/Å, bound on the force error, the largest of the three


class Search(NamedTuple):
    """What came of a search."""

    saddles: list[Saddle]  # each once, the lowest first
    failed: dict[str, int]  # how many tries came to nothing, by why


def refined(expand: Callable[[ase.Atoms], Expansion], atoms: ase.Atoms) -> tuple[ase.Atoms, Expansion]:
    """The nearest first-order saddle: uphill along the softest mode, downhill along all others.

    Steps are those of a rational function for each of the two (Baker, J. Comput. Chem. 7, 385, 1986) with the exact
    Hessian. Raises InputError where it does not converge.
    """
    atoms = atoms.copy()
    mass = np.repeat(np.sqrt(atoms.get_masses()), 3)
    for _ in range(REFINED):
        expansion = expand(atoms)
        force, hessian = expansion.force.mean(axis=0).ravel(), expansion.hessian.mean(axis=0)
        basis, free = motions(atoms)
        if np.linalg.norm(force.reshape(-1, 3)[free], axis=-1).max() < FLAT:
            return atoms, expansion
        values, modes = np.linalg.eigh(basis.T @ (hessian / np.outer(mass, mass)) @ basis)
        slope = -(basis @ modes).T @ (force / mass)
        up = (values[0] + np.sqrt(values[0] ** 2 + 4 * slope[0] ** 2)) / 2
        down = _lowest(values[1:], slope[1:])
        move = np.empty_like(slope)
        move[0] = -slope[0] / (values[0] - up) if slope[0] else 0.0
        move[1:] = -slope[1:] / (values[1:] - down)
        step = ((basis @ modes @ move) / mass).reshape(-1, 3)
        farthest = np.linalg.norm(step, axis=-1).max()
        atoms.positions += step * min(1.0, FARTHEST / max(farthest, 1e-12))
    raise InputError(f"saddle: not converged in {REFINED} steps")


def _lowest(values: np.ndarray, slope: np.ndarray) -> float:
    """The lowest eigenvalue of [[diag(values), slope], [slope, 0]], which is below all of them and not above zero."""
    matrix = np.diag(np.append(values, 0.0))
    matrix[-1, :-1] = matrix[:-1, -1] = slope
    return float(np.linalg.eigvalsh(matrix)[0]) - 1e-12


def descent(
    expand: Callable[[ase.Atoms], Expansion], saddle: ase.Atoms, mode: Float[np.ndarray, "n 3"]
) -> list[ase.Atoms]:
    """The reaction path down from a saddle, first along a mode: steepest descent in coordinates weighted by masses.

    Each step follows the exact quadratic expansion where it is (Page and McIver, J. Chem. Phys. 88, 922, 1988). It ends
    where the slope is small.
    """
    root = np.sqrt(saddle.get_masses())[:, None]
    along = mode * root
    frames = [saddle.copy(), saddle.copy()]
    frames[1].positions += ARC * along / np.linalg.norm(along) / root
    for _ in range(ARCS):
        atoms = frames[-1]
        expansion = expand(atoms)
        basis, _ = motions(atoms)
        mass = np.repeat(root, 3)
        gradient = -(basis.T @ (expansion.force.mean(axis=0).ravel() / mass))
        if np.linalg.norm(gradient) < LEAST:
            break
        values, modes = np.linalg.eigh(basis.T @ (expansion.hessian.mean(axis=0) / np.outer(mass, mass)) @ basis)
        slope = modes.T @ gradient
        time = _time(values, slope)
        safe = np.where(np.abs(values * time) > 1e-9, values, 1.0)
        factor = np.where(np.abs(values * time) > 1e-9, np.expm1(-safe * time) / safe, -time)
        step = basis @ modes @ (slope * factor)
        frames.append(atoms.copy())
        frames[-1].positions += (step / mass).reshape(-1, 3)
    return frames


def _time(values: np.ndarray, slope: np.ndarray) -> float:
    """How long the steepest descent of a quadratic takes for an arc of length `ARC`, or until it rests."""
    step, time, length = 0.02 * ARC / np.linalg.norm(slope), 0.0, 0.0
    for _ in range(2000):
        speed = float(np.linalg.norm(slope * np.exp(-values * (time + 0.5 * step))))
        if length + speed * step > ARC or speed < 0.1 * LEAST:
            break
        time, length = time + step, length + speed * step
    return float(max(time, step))


def joined(
    model: models.Model, expand: Callable[[ase.Atoms], Expansion], atoms: ase.Atoms, oscillators: Vibrations
) -> Saddle:
    """A saddle with the minima on both sides of it."""
    double = in_double(model)
    ends, paths = [], []
    for sign in (1.0, -1.0):
        frames = descent(expand, atoms, sign * oscillators.modes[0])
        end = minimized(double, frames[-1], RELAXED, RELAXATIONS, "saddle: the structure below it")
        ends.append(end)
        paths.append([*frames, end])
    opinion = opinions(double, [atoms, *ends])
    sides = []
    for row, (end, frames) in enumerate(zip(ends, paths, strict=True), start=1):
        each = opinion.energy[0] - opinion.energy[row]
        energy = float(opinion.energy[row].mean())
        sides.append(Side(end, energy, float(each.mean()), deviation(each), frames))
    known = None if opinion.supported is None else bool(opinion.supported.all())
    return Saddle(atoms, oscillators, (sides[0], sides[1]), known, float(np.max(opinion.error)))


def search(
    model: models.Model,
    starts: Sequence[ase.Atoms],
    *,
    tries: int,
    steps: int = 600,
    jolt: float = 0.1,
    converged: float = 0.05,
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Search:
    """Saddles around structures: a dimer for each try, from them in turn, in one program; then each refined and joined.

    `steps` bounds the steps of the dimers, `jolt` (Å) displaces them, `converged` (eV/Å) ends them. Raises InputError
    for structures that the model cannot take.
    """
    begun = [starts[number % len(starts)] for number in range(tries) for _ in range(2)]
    ascent = program(surface(model), dimer(converged=converged, jolt=jolt), (), begun, seed, 10)
    state, frames = ascent.start, None
    for _ in range(max(1, steps // 50)):
        state, frames = ascent.onward(state, 5)
        over = frames.over[::2]
        say(f"{int(over.sum())} of {tries} dimers are at saddles")
        if over.all():
            break
    assert frames is not None
    expand, each = expander(model), expander(model, each=True)
    saddles: list[Saddle] = []
    failed: dict[str, int] = {}
    for number, over in enumerate(frames.over[::2]):
        guess = begun[2 * number].copy()
        guess.set_positions(position(ascent, frames, -1, 2 * number), apply_constraint=False)
        try:
            if not over:
                raise InputError("saddle: the dimer did not converge")
            atoms, _ = refined(expand, guess)
            oscillators = vibrations.of(atoms, each(atoms), reference_of(model, atoms))
            if oscillators.imaginary != 1:
                raise InputError(f"saddle: {oscillators.imaginary} imaginary frequencies")
            if any(same(atoms, other.atoms, oscillators.energy - other.vibrations.energy) for other in saddles):
                raise InputError("saddle: there already")
            saddles.append(joined(model, expand, atoms, oscillators))
        except InputError as error:
            reason = str(error).removeprefix("saddle: ")
            failed[reason] = failed.get(reason, 0) + 1
    return Search(sorted(saddles, key=lambda saddle: saddle.vibrations.energy), failed)


def same(atoms: ase.Atoms, other: ase.Atoms, apart: float = 0.0) -> bool:
    """Whether two structures of the same atoms are one but for place, orientation and the order of like atoms.

    By energies `apart` (eV) and sorted distances between each two elements, so mirror images are the same.
    """
    return abs(apart) < SAME_ENERGY and all(
        np.abs(a - b).max(initial=0.0) < SAME
        for a, b in zip(sorted_distances(atoms), sorted_distances(other), strict=True)
    )


def sorted_distances(atoms: ase.Atoms) -> list[np.ndarray]:
    """Distances between the atoms of each two elements, sorted, Å."""
    distance = atoms.get_all_distances(mic=bool(atoms.pbc.any()))
    kinds = sorted(set(atoms.numbers))
    pairs = [(a, b) for row, a in enumerate(kinds) for b in kinds[row:]]
    return [np.sort(distance[np.ix_(atoms.numbers == a, atoms.numbers == b)].ravel()) for a, b in pairs]


def changes(atoms: ase.Atoms, other: ase.Atoms) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Bonds that are made and broken from one structure to another, by the numbers of the atoms."""
    before, after = bonds(atoms), bonds(other)
    made, broken = np.argwhere(np.triu(after & ~before)), np.argwhere(np.triu(before & ~after))
    return [(int(i), int(j)) for i, j in made], [(int(i), int(j)) for i, j in broken]
