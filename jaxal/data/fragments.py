"""Atoms without neighbors, and structures in pieces.

A model says nothing of what it does not see. An atom without a neighbor inside the cutoff feels no force in any member
of a committee, so all members agree on it, whether they were ever trained on such an atom or not: their agreement
means something only where they were.
"""

import jax
import jax.numpy as jnp
from ase.data import covalent_radii
from jaxtyping import Array, Bool, Float, Int

from jaxal.core.precision import exact
from jaxal.core.types import Neighbors, Structure
from jaxal.data import neighbors as lists
from jaxal.data.cell import completed, inverse


def isolated(cutoff: float, structure: Structure, near: Neighbors) -> Bool[Array, "n"]:
    """Atoms that have no neighbor, nor an image of their own, within the cutoff (Å); padding is none of them."""
    vector, used = lists.vectors(structure, near)
    inside = used & (jnp.sum(vector**2, axis=-1) < cutoff**2)
    return (structure.species >= 0) & ~jnp.any(inside, axis=-1)


def isolated_species(
    cutoff: float, structures: Structure, near: Neighbors, rows: Bool[Array, "b"], number: int
) -> Bool[Array, "s"]:
    """Which of `number` species have an isolated atom in one of these rows of structures [b]."""
    alone = jax.vmap(lambda s, n: isolated(cutoff, s, n))(structures, near) & rows[:, None]
    species = jnp.where(alone, structures.species, number)
    return jnp.zeros(number, bool).at[species.reshape(-1)].set(True, mode="drop")


REACH = 3.0  # of the sum of two covalent radii; farther neighbors bond nothing


def isolation(
    table: tuple[int, ...],
    cutoff: float,
    species: Int[Array, "*n"],
    neighbor: Int[Array, "*n k"],
    distance: Float[Array, "*n k"],
    used: Bool[Array, "*n k"],
) -> Float[Array, "*n"]:
    """How far atoms are from having a bond: 1 without neighbors, 0 for a bonded atom, with two continuous derivatives.

    It is max(0, 1 - 2 n)^3 for n neighbors, each counted as f(r / 3 (R + R')), with f(u) = 1 - 10 u^3 + 15 u^4 - 6 u^5
    up to u = 1, covalent radii R (ASE's, Cordero 2008), and no reach beyond the cutoff (Å). One neighbor at 1.5 times
    the sum of the radii counts 1/2: nearer than that the atom is bonded. `species` and `neighbor` are rows of `table`
    (atomic numbers), `distance` is positive, Å.
    """
    radii = jnp.asarray(covalent_radii[list(table)], distance.dtype)
    radius, other = radii[jnp.maximum(species, 0)], radii[jnp.maximum(neighbor, 0)]
    u = jnp.minimum(distance / jnp.minimum(REACH * (radius[..., None] + other), cutoff), 1.0)
    count = jnp.sum(jnp.where(used, 1.0 - u**3 * (10.0 - 15.0 * u + 6.0 * u**2), 0.0), axis=-1)
    return jnp.maximum(1.0 - 2.0 * count, 0.0) ** 3


def unknown(cutoff: float, structure: Structure, near: Neighbors, known: Bool[Array, "s"]) -> Bool[Array, ""]:
    """Whether an atom of the structure is isolated though no isolated atom of its species was trained on.

    `known` are the species of which one was. Whatever a committee's spread is, such a structure is not certain.
    """
    return jnp.any(isolated(cutoff, structure, near) & ~known[jnp.maximum(structure.species, 0)])


@exact
def gap(structure: Structure) -> Float[Array, ""]:
    """The widest gap between two parts of a structure, Å: the longest edge of its minimum spanning tree.

    Parts are closer than this to others, whichever way the atoms are divided in two. 0 for a single atom. Of what
    repeats the nearest image counts, exactly so for gaps below half of the cell's smallest height. Prim's algorithm,
    linear in the atoms for each of them (Bell Syst. Tech. J. 36, 1389, 1957). NaN where a position is not a number.
    """
    position, cell, periodic = structure.position, structure.cell, structure.periodic
    reciprocal = inverse(completed(cell, periodic))

    def distances(atom: Int[Array, ""]) -> Float[Array, "n"]:
        vector = position - position[atom]
        images = jnp.where(periodic, jnp.round(vector @ reciprocal), 0.0)
        return jnp.sqrt(jnp.sum((vector - images @ cell) ** 2, axis=-1))

    def join(_, carry: tuple[Bool[Array, "n"], Float[Array, "n"], Float[Array, ""]]):
        joined, distance, widest = carry
        atom = jnp.argmin(jnp.where(joined, jnp.inf, distance))
        widest = jnp.where(jnp.all(joined), widest, jnp.maximum(widest, distance[atom]))
        return joined.at[atom].set(True), jnp.minimum(distance, distances(atom)), widest

    first = jnp.argmax(structure.species >= 0)
    joined = (structure.species < 0).at[first].set(True)
    start = joined, distances(first), jnp.zeros((), position.dtype)
    return jax.lax.fori_loop(0, position.shape[0] - 1, join, start)[2]
