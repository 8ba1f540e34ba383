"""From a structure to a network of reactions: pushes between its atoms in one program, and what they lead to."""

import functools
import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

import ase
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from jaxal.acquire.score import max_force_spread
from jaxal.core.errors import InputError
from jaxal.core.types import Sampler
from jaxal.deploy import model as models
from jaxal.explore.artificial_force import Push, all_pairs, artificial_force
from jaxal.explore.bias_forces import Term, Terms
from jaxal.explore.descent import descent
from jaxal.explore.images import alike, between
from jaxal.explore.stepping import per_walker
from jaxal.program.step import PHYSICAL
from jaxal.simulate import barrier as paths
from jaxal.simulate.barrier import saddle_near
from jaxal.simulate.saddle import Saddle, joined, same
from jaxal.simulate.surface import expander, in_double, minimized, opinions, surface
from jaxal.simulate.vibrations import Vibrations, reference_of
from jaxal.simulate.walkers import position, program
from jaxal.validate.graph import bonds, fragments

STEPS, EVERY, STEP = 400, 5, 0.5  # of a push, between two of its frames, and fs that one counts as
NEIGHBORS = 6.0  # Å; atoms farther apart are not pushed together
RELAXED, RELAXATIONS = 5e-3, 500  # eV/Å and steps of a minimization
IMAGES, BAND = 9, 600  # of the band along a push, and its steps at most
CONVERGED = 0.05  # eV/Å, of that band: the saddle is refined with Hessians
DOUBTFUL = "the members differ"  # why a push ends
SHELLS = 4  # bonds from an atom that its kind in a graph knows of


class Minimum(NamedTuple):
    """A structure at rest."""

    atoms: ase.Atoms
    energy: float  # eV, total
    graph: tuple[str, ...]  # its molecules, of each the kinds of its atoms by their bonds
    supported: bool | None
    spread: float  # eV/Å, of what the members say of the force on an atom, the largest


class Step(NamedTuple):
    """A saddle, and the numbers of the minima that it joins."""

    saddle: Saddle
    sides: tuple[int, int]


class Network(NamedTuple):
    """What was discovered."""

    minima: list[Minimum]  # the first ones are those that it began with
    steps: list[Step]
    doubtful: list[ase.Atoms]  # where pushes ended because the model is not sure
    failed: dict[str, int]  # how many pushes came to nothing, by why


def network(
    model: models.Model,
    starts: Sequence[ase.Atoms],
    *,
    pushes: int = 64,
    generations: int = 2,
    collision: float = 10.0,
    ceiling: float = 6.0,
    wary: float = np.inf,
    guesses: Sequence[ase.Atoms] = (),
    seed: int = 0,
    say: Callable[[str], None] = lambda text: None,
) -> Network:
    """Minima and saddles around structures, which are relaxed first.

    From each minimum `pushes` walkers at a time are driven by artificial forces that grow to that of `collision` (eV),
    each one to make or break other bonds (`drives`), until every drive has been tried; where its bonds have come about
    a walker relaxes without the force. What comes to a new minimum is joined to where it began by a band along its way,
    whose highest image is refined to a saddle by exact Hessians; the minima on both sides of that, by the reaction
    path, make the step. New minima are begun from in the next of so many `generations`. Saddles near the structures
    `guesses` are there from the first on. Walkers that rise more than `ceiling` (eV) above the lowest minimum are left
    out, and those of which members differ by more than `wary` (eV/Å) end there. Raises InputError for structures that
    are not open, or that the model cannot take.
    """
    double = in_double(model)
    if any(atoms.pbc.any() for atoms in starts):
        raise InputError("structure: is periodic; the network of reactions is for open structures")
    if (largest := max(map(len, starts))) > paths.LARGE:
        raise InputError(f"structure: has {largest} atoms; the network of reactions is for {paths.LARGE} at most")
    for row, atoms in enumerate(starts[1:], start=1):
        alike(starts[0], atoms, f"structure {row}")
    search = _Search(model, double, [], [], [], {}, collision, ceiling, wary, seed, pushes)
    for number, atoms in enumerate(starts):
        search.minimum(minimized(double, atoms, RELAXED, RELAXATIONS, f"structure {number}"))
    for atoms in guesses:
        with suppress(InputError):  # on another surface it may be none
            search.step(*saddle_near(model, atoms))
    begun = 0
    for generation in range(generations):
        fresh = range(begun, len(search.minima))
        begun = len(search.minima)
        for number in fresh:
            search.around(number)
            there = f"{len(search.minima)} minima, {len(search.steps)} saddles"
            say(f"generation {generation + 1}, minimum {number + 1} of {begun}: {there}")
    return Network(search.minima, search.steps, search.doubtful, search.failed)


def drives(atoms: ase.Atoms) -> Iterator[dict[tuple[int, int], int]]:
    """What a structure may be driven to: pairs of atoms that come together (1) or apart (-1).

    Every bond is broken and every other pair of near atoms bonded, alone and together with the bonds of one of its
    atoms, and of both, that are broken: migrations, additions, eliminations and exchanges. Those of like atoms are not
    told apart. Zimmerman, J. Comput. Chem. 34, 1385 (2013) has such changes of at most two bonds. An atom on one side
    of a bond is also driven towards each on the other side and away from it: the bond turns, and none need change.
    """
    graph, distance = bonds(atoms), atoms.get_all_distances()
    pairs = list(itertools.combinations(range(len(atoms)), 2))
    for pair in pairs:
        if graph[pair]:
            yield {pair: -1}
    for first, second in pairs:
        if graph[first, second] or distance[first, second] > NEIGHBORS:
            continue
        made = {(first, second): 1}
        yield made
        ends = [[_pair(atom, int(other)) for other in np.flatnonzero(graph[atom])] for atom in (first, second)]
        for broken in itertools.chain(*ends):
            yield made | {broken: -1}
        for here, there in itertools.product(*ends):
            if here != there:
                yield made | {here: -1, there: -1}
    for first, second in np.argwhere(np.triu(graph)).tolist():
        before, after = np.flatnonzero(graph[first]), np.flatnonzero(graph[second])
        for here, there in itertools.product(before[before != second][:1].tolist(), after[after != first].tolist()):
            if here != there and not graph[here, there]:
                yield {_pair(here, there): -1}
                if distance[here, there] > NEIGHBORS:
                    yield {_pair(here, there): 1}


class _Search(NamedTuple):
    """What is known so far, and how it goes on."""

    model: models.Model
    double: models.Model
    minima: list[Minimum]
    steps: list[Step]
    doubtful: list[ase.Atoms]
    failed: dict[str, int]
    collision: float
    ceiling: float
    wary: float
    seed: int
    pushes: int

    def minimum(self, atoms: ase.Atoms) -> int:
        """The number of a minimum, which is added where it is new.

        One molecule is the same where distances and energy are; several, which turn about each other, where their bonds
        are.
        """
        opinion, kinds = opinions(self.double, [atoms]), graph_of(atoms)
        energy = float(opinion.energy[0].mean())
        for number, other in enumerate(self.minima):
            if kinds == other.graph and (len(kinds) > 1 or same(atoms, other.atoms, energy - other.energy)):
                return number
        known = None if opinion.supported is None else bool(opinion.supported[0])
        self.minima.append(Minimum(atoms, energy, kinds, known, float(opinion.spread[0])))
        return len(self.minima) - 1

    def around(self, number: int) -> None:
        """All drives of a minimum, and what follows from them."""
        start = self.minima[number]
        rows = [_sense(drive, len(start.atoms)) for drive in drives(start.atoms)]
        for first in range(0, len(rows), self.pushes):
            batch = rows[first : first + self.pushes]
            for way in self._pushed(start, batch):
                try:
                    self._joined(number, way)
                except InputError as error:
                    self._failed(str(error))

    def _pushed(self, start: Minimum, senses: Sequence[Float[np.ndarray, "v"]]) -> Iterator[list[ase.Atoms]]:
        """The ways of walkers under these forces, until their bonds have come about, and then without them; and those
        that leave them before any bond has changed, or half way to there, which lead to conformers.
        """
        size, none = len(start.atoms), np.zeros_like(senses[0])
        padded = np.array([*senses, *[none] * (self.pushes - len(senses))])  # one size, one program
        ways: list[list[ase.Atoms]] = [[start.atoms] for _ in senses]
        kept, own = [0] * len(senses), bonds(start.atoms)
        alive = np.ones(len(senses), bool)
        frames = self._moved(start, _terms(size, self.collision), [start.atoms] * self.pushes, padded)
        for walker, sense in enumerate(senses):
            wanted = np.zeros((size, size))
            wanted[np.triu_indices(size, 1)] = sense
            changes = (wanted != 0) & (own != (wanted > 0))
            for atoms, reason in frames(walker):
                graph = bonds(atoms)
                if reason:
                    alive[walker] = self._ended(reason, atoms)
                    break
                ways[walker].append(atoms)
                if np.array_equal(graph, own) and kept[walker] == len(ways[walker]) - 2:
                    kept[walker] += 1
                if changes.any() and np.all((graph == (wanted > 0))[changes]):
                    break
        lengths = [len(way) for way in ways]
        early, half = ([way[: many // part + 1] for way, many in zip(ways, kept, strict=True)] for part in (1, 2))
        for begun, lives in ((ways, alive), (early, np.array(kept) > 0), (half, np.array(kept) > 1)):
            ends = [way[-1] for way in begun] + [start.atoms] * (self.pushes - len(begun))
            frames = self._moved(start, (), ends, None)
            for walker in np.flatnonzero(lives):
                if begun is early and kept[walker] + 1 == lengths[walker] and alive[walker]:
                    continue  # it never changed its bonds
                way = list(begun[walker])
                for atoms, reason in frames(int(walker)):
                    if reason:
                        self._ended(reason, atoms)
                        break
                    way.append(atoms)
                else:
                    yield way

    def _moved(
        self, start: Minimum, terms: Terms, begun: Sequence[ase.Atoms], senses: np.ndarray | None
    ) -> Callable[[int], Iterator[tuple[ase.Atoms, str]]]:
        """Walkers from structures; of each its frames, and why it ends there if it does."""
        drift = None if senses is None else (Push(jnp.asarray(senses)),)
        moves = program(surface(self.model), _moves(), terms, begun, self.seed, EVERY, drift)
        _, frames = moves.onward(moves.start, STEPS // EVERY)
        reference = reference_of(self.model, start.atoms)
        highest = min(minimum.energy for minimum in self.minima) + self.ceiling - reference

        def of(walker: int) -> Iterator[tuple[ase.Atoms, str]]:
            for time in range(STEPS // EVERY):
                atoms, reason = start.atoms.copy(), ""
                atoms.positions = position(moves, frames, time, walker)
                if frames.cause[time, walker] != PHYSICAL:
                    reason = "is not physical"
                elif frames.energy[time, walker] > highest:
                    reason = "rises above the ceiling"
                elif frames.spread[time, walker] > self.wary:
                    reason = DOUBTFUL
                yield atoms, reason

        return of

    def _ended(self, reason: str, atoms: ase.Atoms) -> bool:
        """Notes why a push has ended; it does not go on."""
        if reason == DOUBTFUL:
            self.doubtful.append(atoms)
        self._failed(reason)
        return False

    def _failed(self, reason: str) -> None:
        self.failed[reason] = self.failed.get(reason, 0) + 1

    def _joined(self, number: int, way: Sequence[ase.Atoms]) -> None:
        """The step from a minimum to where a way leads. Raises InputError where there is no saddle."""
        end = minimized(self.double, way[-1], RELAXED, RELAXATIONS, "the end of a push")
        start, other = self.minima[number], self.minimum(end)
        if other == number and np.array_equal(bonds(end), bonds(start.atoms)):
            raise InputError("comes back")
        if any(set(step.sides) == {number, other} for step in self.steps):  # of like atoms that change places, too
            raise InputError("leads to what is joined already")
        middle = [way[row] for row in np.linspace(0, len(way) - 1, 5).astype(int)[1:-1]]
        images = between([start.atoms, *middle, end], IMAGES)
        band = paths.relaxed(self.model, images, converged=CONVERGED, steps=BAND, wary=self.wary)
        if band.rests:
            self.doubtful.append(band.images[int(np.argmax(band.spread))])
            raise InputError(f"{DOUBTFUL} along the path")
        top = int(np.argmax(opinions(self.double, band.images).energy.mean(axis=1)))
        if top in (0, len(images) - 1):
            raise InputError("no barrier")
        self.step(*saddle_near(self.model, band.images[top]))

    def step(self, atoms: ase.Atoms, oscillators: Vibrations) -> None:
        """Adds a saddle with the minima below it."""
        for step in self.steps:
            if same(atoms, step.saddle.atoms, oscillators.energy - step.saddle.vibrations.energy):
                raise InputError("the saddle is there already")
        saddle = joined(self.model, expander(self.model), atoms, oscillators)
        sides = self.minimum(saddle.sides[0].atoms), self.minimum(saddle.sides[1].atoms)
        self.steps.append(Step(saddle, sides))


@functools.lru_cache(1)
def _moves() -> Sampler:
    return per_walker(descent(rate=0.01, longest=0.05, jolt=0.02, timestep=STEP))


@functools.lru_cache(4)
def _terms(number: int, collision: float) -> Terms:
    """The force between all atoms; each walker's senses are handed over as its state."""
    pairs = all_pairs(number)
    bias = artificial_force(max_force_spread, pairs, collision=collision, ramp=1e-3 * STEP * STEPS)
    return (Term("artificial_force", bias, pairs, pairs.names),)


def _sense(drive: dict[tuple[int, int], int], number: int) -> Float[np.ndarray, "v"]:
    """A drive as numbers for all pairs."""
    matrix = np.zeros((number, number))
    for pair, sense in drive.items():
        matrix[pair] = sense
    return matrix[np.triu_indices(number, 1)]


def _pair(first: int, second: int) -> tuple[int, int]:
    return (first, second) if first < second else (second, first)


def graph_of(atoms: ase.Atoms) -> tuple[str, ...]:
    """The molecules of a structure, sorted: of each the formula, and a digest of the kinds of its atoms by their bonds.

    Atoms are told apart by their elements and their neighbors', a few bonds far (Weisfeiler and Leman, Nauchno-Tekh.
    Inf., Ser. 2, 9, 12, 1968), which hardly two graphs of small molecules have in common.
    """
    graph, kinds, molecule = bonds(atoms), list(atoms.symbols), fragments(atoms)
    for _ in range(SHELLS):
        around = [sorted(kinds[other] for other in np.flatnonzero(row)) for row in graph]
        kinds = [_digest([kind, *others]) for kind, others in zip(kinds, around, strict=True)]
    names = []
    for each in set(molecule.tolist()):
        rows = np.flatnonzero(molecule == each)
        formula = atoms[rows].get_chemical_formula()  # pyright: ignore[reportAttributeAccessIssue]
        names.append(f"{formula}:{_digest(sorted(kinds[row] for row in rows))}")
    return tuple(sorted(names))


def _digest(words: Sequence[str]) -> str:
    return hashlib.blake2b(" ".join(words).encode(), digest_size=5).hexdigest()
