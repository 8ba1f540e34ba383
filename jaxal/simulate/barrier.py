"""The barrier between two structures on a finished model: a band in one program, its top refined to a saddle."""

import functools
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

import ase
import numpy as np
from jaxtyping import Float
from scipy.signal import find_peaks

from jaxal.core.errors import InputError
from jaxal.core.types import Sampler
from jaxal.deploy import model as models
from jaxal.explore.band import band
from jaxal.explore.images import alike, between
from jaxal.simulate import vibrations
from jaxal.simulate.saddle import descent, refined
from jaxal.simulate.surface import deviation, expander, in_double, minimized, opinions, surface
from jaxal.simulate.vibrations import Vibrations, reference_of
from jaxal.simulate.walkers import position, program
from jaxal.validate.graph import bonds

LARGE = 60  # atoms; of more no Hessian is calculated
RELAXED, RELAXATIONS = 5e-3, 500  # eV/Å and steps of the minimization of the ends
NEAR, HIGHER = 1.0, 0.1  # Å that an atom may go from the highest image to the saddle, and eV that this may be higher
GAP = 3.0  # times the median distance of neighboring images; springs keep them closer than that
DEEP = 0.005  # eV; less deep minima in between are none
EVERY = 10  # steps of the band between two frames


class Band(NamedTuple):
    """Images of a path that were relaxed."""

    images: list[ase.Atoms]
    spread: np.ndarray  # [i] eV/Å, of what the members say of the force on an atom, the largest
    converged: bool
    rests: bool  # the members differed too much


class Barrier(NamedTuple):
    """A path from one minimum to another; energies in eV, relative to the first minimum, and what the members say."""

    images: list[ase.Atoms]
    coordinate: np.ndarray  # [i] Å, length of the path
    energies: np.ndarray  # [i]
    spread: np.ndarray  # [i] standard deviation of the members
    force_error: np.ndarray  # [i] eV/Å, bound on the force error; infinite where not supported
    supported: np.ndarray | None  # [i] bool; None where the model does not know
    forward: float  # of the saddle, or the highest image where there is none
    forward_spread: float
    backward: float
    backward_spread: float
    converged: bool
    saddle: ase.Atoms | None  # refined with exact Hessians
    vibrations: Vibrations | None  # of it
    joins: bool | None  # the ways down from it lead to where the bonds are those of both ends; None without a saddle
    passed: int  # minima that the path passes in between
    gap: bool  # two images are far apart: between them the path may be higher than any image


def barrier(
    model: models.Model,
    start: ase.Atoms,
    end: ase.Atoms,
    *,
    via: Sequence[ase.Atoms] = (),
    images: int = 9,
    converged: float = 0.02,
    steps: int = 2000,
    relax: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Barrier:
    """The barrier from `start` to `end`, which are relaxed first (or with `relax` false taken as they are).

    The band begins at structures in between, `via`, where there are any; `images` counts both ends, and there are no
    fewer than structures. It has converged where no atom is pulled by more than `converged` (eV/Å). The members' spread
    of a barrier is at the committee's own structures: to first order what each member's own path would give. Raises
    InputError for structures between which there is no path, and those that the model cannot take.
    """
    if images < 3:
        raise InputError(f"--images: {images} is too small; a band has 3 images or more")
    alike(start, end, "--to")
    ends = [start.copy(), end.copy()]
    if relax:
        ends = [
            minimized(model, atoms, RELAXED, RELAXATIONS, name)
            for name, atoms in zip(("--from", "--to"), ends, strict=True)
        ]
        say("both ends are relaxed")
    begun = between([ends[0], *via, ends[1]], max(images, len(via) + 2))
    path = relaxed(model, begun, converged=converged, steps=steps, say=say)
    return along(model, path, (path.images[0], path.images[-1]))


def relaxed(
    model: models.Model,
    begun: Sequence[ase.Atoms],
    *,
    converged: float,
    steps: int = 2000,
    wary: float = np.inf,
    say: Callable[[str], None] = lambda text: None,
) -> Band:
    """A band between the first and the last of these images, relaxed until no atom is pulled by `converged` (eV/Å).

    Where the members differ by more than `wary` (eV/Å) about the force on an atom it rests at once, where it is: what
    it would come to on such a surface is nothing.
    """
    moves = _moves(converged)
    relaxation = program(surface(model), moves, (), begun, 0, EVERY)
    state, done, last = relaxation.start, False, -1
    for turn in range(max(1, steps // (10 * EVERY))):
        state, frames = relaxation.onward(state, 10)
        done = bool(frames.over.all())
        say(f"step {(turn + 1) * 10 * EVERY}: pull {float(frames.report['pull'][-1].max()):.3f} eV/Å")
        doubtful = np.flatnonzero((frames.spread > wary).any(axis=1))
        if doubtful.size:
            done, last = False, int(doubtful[0])
        if done or doubtful.size:
            break
    images = []
    for row, image in enumerate(begun):
        images.append(image.copy())
        images[-1].set_positions(position(relaxation, frames, last, row), apply_constraint=False)
    return Band(images, frames.spread[last], done, bool(doubtful.size))


@functools.lru_cache(models.KEPT)
def _moves(converged: float) -> Sampler:
    """A band; the same one for the same program."""
    return band(converged=converged, climb=max(0.3, 5 * converged))


def along(model: models.Model, band: Band, sides: tuple[ase.Atoms, ase.Atoms] | None) -> Barrier:
    """The barrier along a band, with the saddle near its highest image, which should lead to the bonds of both sides.

    Energies are over those of the `sides`, which the band need not reach. Without them no saddle is looked for, and the
    ends of the band are the sides.
    """
    double, path = in_double(model), band.images
    opinion = opinions(double, path)
    mean = opinion.energy.mean(axis=1)
    ends = opinion.energy[[0, -1]] if sides is None else opinions(double, list(sides)).energy
    top, over = highest_inside(mean), opinion.energy - ends[:1]
    saddle, oscillators, joins = None, None, None
    if sides is not None and top is not None:
        with suppress(InputError):
            saddle, oscillators = saddle_near(model, path[top])
    if saddle is not None and oscillators is not None and sides is not None:
        joins = _joins(model, saddle, oscillators, sides)
    highest = opinion.energy[np.argmax(mean)] if saddle is None else opinions(double, [saddle]).energy[0]
    forward, backward = highest - ends[0], highest - ends[1]
    moved = np.diff([image.positions for image in path], axis=0)
    lengths = np.linalg.norm(moved, axis=(1, 2))
    return Barrier(
        images=path,
        coordinate=np.concatenate([[0.0], np.cumsum(lengths)]),
        energies=over.mean(axis=1),
        spread=np.array([deviation(each) for each in over]),
        force_error=opinion.error,
        supported=opinion.supported,
        forward=float(forward.mean()),
        forward_spread=deviation(forward),
        backward=float(backward.mean()),
        backward_spread=deviation(backward),
        converged=band.converged,
        saddle=saddle,
        vibrations=oscillators,
        joins=joins,
        passed=len(find_peaks(-mean, prominence=DEEP)[0]),
        gap=bool(np.max(lengths) > GAP * np.median(lengths)),
    )


def highest_inside(energy: Float[np.ndarray, "i"]) -> int | None:
    """The highest image of a path that is no lower than its neighbors: an end of a piece of it may be higher."""
    tops = np.flatnonzero((energy[1:-1] >= energy[:-2]) & (energy[1:-1] >= energy[2:])) + 1
    return int(tops[np.argmax(energy[tops])]) if len(tops) else None


def settled(model: models.Model, end: ase.Atoms) -> ase.Atoms:
    """The minimum near the end of a band; that end where there is none near."""
    try:
        atoms = minimized(model, end, RELAXED, RELAXATIONS, "an end of the band")
    except InputError:
        return end
    return atoms if np.linalg.norm(atoms.positions - end.positions, axis=-1).max() < NEAR else end


def saddle_near(model: models.Model, guess: ase.Atoms) -> tuple[ase.Atoms, Vibrations]:
    """The saddle near a structure, such as the highest image of a band, and its vibrations.

    Raises InputError where there is none, and where the atoms are more than `LARGE`.
    """
    if len(guess) > LARGE:
        raise InputError(f"no saddle: {len(guess)} atoms are too many for a Hessian")
    expand = expander(model)
    atoms, expansion = refined(expand, guess)
    if expansion.energy[0] > expand(guess).energy[0] + HIGHER:
        raise InputError("no saddle: that of another path")
    if np.linalg.norm(atoms.positions - guess.positions, axis=-1).max() > NEAR:
        raise InputError("no saddle: none near")
    oscillators = vibrations.of(atoms, expander(model, each=True)(atoms), reference_of(model, guess))
    if oscillators.imaginary != 1:
        raise InputError(f"no saddle: {oscillators.imaginary} imaginary frequencies")
    return atoms, oscillators


def _joins(model: models.Model, saddle: ase.Atoms, oscillators: Vibrations, sides: tuple[ase.Atoms, ase.Atoms]) -> bool:
    """Whether the reaction path leads down from a saddle to the bonds of one side, and on the other hand to those of
    the other.

    It need not end there: what comes after is another step. Where the bonds are those of the saddle itself, the end of
    the path counts.
    """
    expand, wanted, begun = expander(model), [bonds(side) for side in sides], bonds(saddle)
    reached: list[set[int]] = []
    for sign in (1.0, -1.0):
        frames = descent(expand, saddle, sign * oscillators.modes[0])
        passed = [graph for graph in map(bonds, frames) if not np.array_equal(graph, begun)]
        seen = _among(wanted, passed)
        if not seen:
            try:
                last = minimized(in_double(model), frames[-1], RELAXED, RELAXATIONS, "below the saddle")
            except InputError:
                return False
            seen = _among(wanted, [bonds(last)])
        reached.append(seen)
    return any(here != there for here in reached[0] for there in reached[1])


def _among(wanted: list[np.ndarray], graphs: list[np.ndarray]) -> set[int]:
    """Which of the wanted graphs are among others."""
    return {at for at, graph in enumerate(wanted) if any(np.array_equal(graph, other) for other in graphs)}
