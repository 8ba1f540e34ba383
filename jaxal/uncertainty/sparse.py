"""A sparse Gaussian process on atoms: inducing atoms and what a structure is in their terms.

With the kernel matrix K = L L^T of the inducing atoms an atom is psi(x) = L^-1 k(x), its coordinates among
orthonormal functions; k(x, x) - |psi(x)|^2 is what the inducing atoms do not tell of it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxal.core.types import Posterior

EMPTY = -2  # species of a slot without an atom, which no atom has

Kernel = Callable[[Float[Array, "... f"], Float[Array, "... f"]], Float[Array, "..."]]


class Atoms(NamedTuple):
    """Atoms by their normalized features; species -1 where there is none."""

    feature: Float[Array, "c f"]
    species: Int[Array, "c"]


def normalized(feature: Float[Array, "c f"]) -> Float[Array, "c g"]:
    """Features of length 1, with a finite gradient everywhere; an atom without any is one along an axis of its own."""
    square = jnp.sum(feature**2, axis=-1, keepdims=True)
    some = square > 0
    unit = jnp.where(some, feature / jnp.sqrt(jnp.where(some, square, 1.0)), 0.0)
    return jnp.concatenate([unit, jnp.where(some, 0.0, 1.0).astype(feature.dtype)], axis=-1)


def coordinates(kernel: Kernel, posterior: Posterior, atoms: Atoms) -> Float[Array, "c m"]:
    """Psi of each atom."""
    same = atoms.species[:, None] == posterior["species"]
    return jnp.where(same, kernel(atoms.feature, posterior["inducing"]), 0.0) @ posterior["whiten"].T


def unexplained(psi: Float[Array, "c m"], atoms: Atoms) -> Float[Array, "c"]:
    """k(x, x) - |psi|^2 of each atom, 0 where there is none."""
    return jnp.where(atoms.species >= 0, jnp.maximum(1.0 - jnp.sum(psi**2, axis=-1), 0.0), 0.0)


def resolution(dtype) -> float:
    """Of a variance: what is smaller is rounding, and does not make an inducing atom."""
    return 1e-4 if dtype == jnp.float32 else 1e-8


def grown(
    kernel: Kernel, posterior: Posterior, atoms: Atoms, most: int, psi: Float[Array, "c m"]
) -> tuple[Posterior, Float[Array, "c m"]]:
    """With up to `most` of the atoms as inducing atoms, each time that of largest variance, and psi of all of them.

    This is Cholesky's factorization with pivots; nothing is added once all slots are taken, or all variances below the
    `resolution`.
    """

    class Search(NamedTuple):
        inducing: Float[Array, "m f"]
        species: Int[Array, "m"]
        whiten: Float[Array, "m m"]
        psi: Float[Array, "c m"]
        left: Float[Array, "c"]

    slots = posterior["species"].shape[0]

    def step(_, search: Search) -> Search:
        row = jnp.argmax(search.left)
        slot = jnp.sum(search.species != EMPTY)
        accepted = (search.left[row] > resolution(psi.dtype)) & (slot < slots)
        place = jnp.where(accepted, slot, slots)  # out of range: dropped
        length = jnp.sqrt(jnp.where(accepted, search.left[row], 1.0))
        column = jnp.where(atoms.species == atoms.species[row], kernel(atoms.feature, atoms.feature[row]), 0.0)
        column = jnp.where(accepted, (column - search.psi @ search.psi[row]) / length, 0.0)
        unit = jax.nn.one_hot(place, slots, dtype=psi.dtype)
        left = jnp.maximum(search.left - column**2, 0.0)
        return Search(
            search.inducing.at[place].set(atoms.feature[row], mode="drop"),
            search.species.at[place].set(atoms.species[row], mode="drop"),
            search.whiten.at[place].set((unit - search.psi[row] @ search.whiten) / length, mode="drop"),
            search.psi.at[:, place].set(column, mode="drop"),
            left.at[row].set(jnp.where(accepted, 0.0, left[row])),
        )

    start = Search(posterior["inducing"], posterior["species"], posterior["whiten"], psi, unexplained(psi, atoms))
    end = jax.lax.fori_loop(0, most, step, start)
    return {**posterior, "inducing": end.inducing, "species": end.species, "whiten": end.whiten}, end.psi
