"""Systems as the program has them: walkers in groups of one padded size, each with its neighbor lists and dynamics."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxal.config.systems import Population
from jaxal.core.types import Structure
from jaxal.data import neighbors
from jaxal.data.padding import structures_to
from jaxal.data.structure import Table, from_atoms
from jaxal.program.state import Group
from jaxal.run.assembly import SKIN

Groups = Sequence[Sequence[int]]  # the numbers of the systems in each group of walkers


def walkers_of(systems: Sequence[Population], groups: Groups) -> list[int]:
    """The number of each walker's system; walkers are numbered group by group."""
    return [at for group in groups for at in group for _ in range(systems[at].walkers)]


def walker_structures(systems: Sequence[Population], groups: Groups, table: Table, dtype: Any) -> Structure:
    """A start structure for each walker, those of its system in turn; numpy, padded to the largest system."""
    frames = [
        systems[at].starts[walker % len(systems[at].starts)]
        for group in groups
        for at in group
        for walker in range(systems[at].walkers)
    ]
    return from_atoms(frames, table, size=largest(systems), dtype=dtype)


def largest(systems: Sequence[Population]) -> int:
    """Atoms of the largest system."""
    return max(len(system.starts[0]) for system in systems)


def program_groups(systems: Sequence[Population], groups: Groups, near: Sequence[neighbors.Spec]) -> list[Group]:
    """The groups of the walkers, with their neighbor lists."""
    padded_groups = []
    for group, spec in zip(groups, near, strict=True):
        own = tuple(at for at in group for _ in range(systems[at].walkers))
        padded_groups.append(Group(spec, largest([systems[at] for at in group]), own))
    return padded_groups


def neighbor_lists(
    systems: Sequence[Population], groups: Groups, table: Table, structures: Structure, cutoff: float
) -> list[neighbors.Spec]:
    """Room for the neighbors of each group of walkers, by their first structures among these [k n]."""
    species = np.asarray(structures.species)
    specs = []
    for group in groups:
        members = [from_atoms(systems[at].starts[0], table, size=species.shape[1]).species for at in group]
        rows = np.flatnonzero(np.any([(species == own).all(-1) for own in members], axis=0))
        own = jax.tree.map(lambda x, rows=rows: x[rows], structures)
        size = largest([systems[at] for at in group])
        specs.append(neighbors.plan(structures_to(own, size), cutoff, SKIN))
    return specs
