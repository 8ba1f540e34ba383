"""The barrier between two structures on a finished model: a band in one program, its top refined to a saddle."""

from collections.abc import Callable
from typing import NamedTuple

import ase
import numpy as np
from scipy.signal import find_peaks

from jaxal.core.errors import InputError
from jaxal.deploy import model as models
from jaxal.explore.band import band
from jaxal.explore.images import alike, between
from jaxal.simulate import vibrations
from jaxal.simulate.saddle import refined
from jaxal.simulate.surface import deviation, expander, in_double, minimized, opinions, surface
from jaxal.simulate.vibrations import Vibrations, reference_of
from jaxal.simulate.walkers import position, program

LARGE = 60  # atoms; of more no Hessian is calculated
RELAXED, RELAXATIONS = 5e-3, 500  # eV/Å and steps of the minimization of the ends
NEAR = 1.0  # Å, that an atom may go from the highest image to the saddle
GAP = 3.0  # times the median distance of neighboring images; springs keep them closer than that
DEEP = 0.005  # eV; less deep minima in between are none
EVERY = 10  # steps of the band between two frames


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
    passed: int  # minima that the path passes in between
    gap: bool  # two images are far apart: between them the path may be higher than any image


def barrier(
    model: models.Model,
    start: ase.Atoms,
    end: ase.Atoms,
    *,
    images: int = 9,
    converged: float = 0.02,
    steps: int = 2000,
    relax: bool = True,
    say: Callable[[str], None] = lambda text: None,
) -> Barrier:
    """The barrier from `start` to `end`, which are relaxed first (or with `relax` false taken as they are).

    `images` counts both ends; the band has converged where no atom is pulled by more than `converged` (eV/Å). The
    members' spread of a barrier is at the committee's own structures: to first order what each member's own path would
    give. Raises InputError for structures between which there is no path, and those that the model cannot take.
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
    begun = between(ends, images)
    relaxation = program(surface(model), band(converged=converged, climb=max(0.3, 5 * converged)), (), begun, 0, EVERY)
    state, done = relaxation.start, False
    for turn in range(max(1, steps // (10 * EVERY))):
        state, frames = relaxation.onward(state, 10)
        done = bool(frames.over.all())
        say(f"step {(turn + 1) * 10 * EVERY}: pull {float(frames.report['pull'][-1].max()):.3f} eV/Å")
        if done:
            break
    path = []
    for row, image in enumerate(begun):
        path.append(image.copy())
        path[-1].set_positions(position(relaxation, frames, -1, row), apply_constraint=False)
    double = in_double(model)
    opinion = opinions(double, path)
    mean = opinion.energy.mean(axis=1)
    top, over = int(np.argmax(mean)), opinion.energy - opinion.energy[:1]
    saddle, oscillators = _saddle(model, path[top], mean)
    highest = opinion.energy[top] if saddle is None else opinions(double, [saddle]).energy[0]
    forward, backward = highest - opinion.energy[0], highest - opinion.energy[-1]
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
        converged=done,
        saddle=saddle,
        vibrations=oscillators,
        passed=len(find_peaks(-mean, prominence=DEEP)[0]),
        gap=bool(np.max(lengths) > GAP * np.median(lengths)),
    )


def _saddle(model: models.Model, top: ase.Atoms, energies: np.ndarray) -> tuple[ase.Atoms | None, Vibrations | None]:
    """The saddle near the highest image, and its vibrations; None where there is none, or where the atoms are many."""
    if len(top) > LARGE or np.argmax(energies) in (0, len(energies) - 1):
        return None, None
    try:
        atoms, _ = refined(expander(model), top)
    except InputError:
        return None, None
    if np.linalg.norm(atoms.positions - top.positions, axis=-1).max() > NEAR:
        return None, None
    oscillators = vibrations.of(atoms, expander(model, each=True)(atoms), reference_of(model, top))
    return (atoms, oscillators) if oscillators.imaginary == 1 else (None, None)
