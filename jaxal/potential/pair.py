"""Closed forms: potentials without parameters to learn, for tests and as oracles inside the program.

Each is a factory `f(table, *, options) -> Potential` under @register("oracle"). They read the dense neighbor
list, so any cell will do; forces and stress are gradients of the energy. Slots that are padding, and pairs
between cutoff and skin, contribute nothing.
"""

from collections.abc import Callable
from typing import Annotated

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxal.core.registry import register
from jaxal.core.types import InputError, Key, Neighbors, Params, Potential, Structure
from jaxal.core.units import Unit
from jaxal.data.neighbors import vectors

Length = Annotated[float, Unit("Å", 0.0, exclusive=True)]
Energy = Annotated[float, Unit("eV", 0.0)]


@register("oracle")
def lennard_jones(
    table: tuple[int, ...],
    *,
    sigma: Length = 3.405,
    epsilon: Energy = 0.010324,
    cutoff: Length = 8.5,
    width: Length = 1.5,
) -> Potential:
    """Lennard-Jones: 4 epsilon ((sigma/r)^12 - (sigma/r)^6), the same for all elements.

    `sigma` (Å) is where the energy crosses zero, `epsilon` (eV) the depth of the well; switched off smoothly
    over the last `width` Å before `cutoff` (Å). The defaults are argon's (epsilon/k_B = 119.8 K): Michels,
    Wijker and Wijker, Physica 15, 627 (1949). Raises InputError where `width` exceeds `cutoff`.
    """
    from jaxal.core.jaxmd import energy as forms  # takes seconds

    return _pair(lambda r: forms.lennard_jones(r, *_as(r, sigma, epsilon)), cutoff, width)


@register("oracle")
def morse(
    table: tuple[int, ...],
    *,
    sigma: Length = 2.866,
    epsilon: Energy = 0.3429,
    alpha: float = 1.3588,
    cutoff: Length = 7.0,
    width: Length = 1.5,
) -> Potential:
    """Morse: epsilon (1 - exp(-alpha (r - sigma)))^2 - epsilon, the same for all elements.

    `sigma` (Å) is the distance of least energy, `epsilon` (eV) the depth of the well, `alpha` in 1/Å; switched
    off smoothly over the last `width` Å before `cutoff` (Å). The defaults are copper's: Girifalco and Weizer,
    Phys. Rev. 114, 687 (1959). Raises InputError where `width` exceeds `cutoff`.
    """
    from jaxal.core.jaxmd import energy as forms  # takes seconds

    return _pair(lambda r: forms.morse(r, *_as(r, sigma, epsilon, alpha)), cutoff, width)


@register("oracle")
def stillinger_weber(
    table: tuple[int, ...],
    *,
    sigma: Length = 2.0951,
    epsilon: Energy = 2.16826,
    cutoff: Length = 3.77118,
) -> Potential:
    """Stillinger–Weber silicon: pairs, and triples that favor the tetrahedral angle.

    `sigma` (Å) and `epsilon` (eV) set the scales of length and energy; both terms and all their derivatives go
    to zero at `cutoff` (Å). Stillinger and Weber, Phys. Rev. B 31, 5262 (1985).
    Raises InputError for a table with an element other than silicon.
    """
    if tuple(table) != (14,):
        raise InputError(f"stillinger_weber: knows silicon only (atomic number 14), not {tuple(table)}")
    a_pair, b_pair, strength, gamma = 7.049556277, 0.6022245584, 21.0, 1.2

    def energy(
        params: Params, structure: Structure, neighbors: Neighbors
    ) -> tuple[Float[Array, ""], Float[Array, "n 1"]]:
        vector, distance, used = _distances(structure, neighbors)
        inside = used & (distance < cutoff)
        r = jnp.where(inside, distance, 0.5 * cutoff)  # any value inside: what follows is finite, then dropped
        gap = sigma / (r - cutoff)
        pairs = jnp.where(inside, a_pair * (b_pair * (sigma / r) ** 4 - 1.0) * jnp.exp(gap), 0.0)
        # The sum over pairs of neighbors j, k of g_j g_k (cos + 1/3)^2, cos = u_j . u_k, is a polynomial of
        # second order in the cosine: moments of u give it without a [k, k] array; j = k (cos = 1) is taken out.
        g = jnp.where(inside, jnp.exp(gamma * gap), 0.0)
        u = vector / r[..., None]
        first = jnp.einsum("nk,nkx->nx", g, u)
        second = jnp.einsum("nk,nkx,nky->nxy", g, u, u)
        triples = (
            jnp.sum(second**2, axis=(1, 2))
            + 2 / 3 * jnp.sum(first**2, axis=1)
            + 1 / 9 * jnp.sum(g, axis=1) ** 2
            - 16 / 9 * jnp.sum(g**2, axis=1)
        )
        atomic = 0.5 * epsilon * (jnp.sum(pairs, axis=1) + strength * triples)
        return jnp.sum(atomic), atomic[:, None]

    return Potential(_no_parameters, energy, cutoff)


def _pair(form: Callable[[Array], Array], cutoff: float, width: float) -> Potential:
    """The potential of a pair form (Å -> eV), times the switching function."""
    if width > cutoff:
        raise InputError(f"width: {width} Å is more than the cutoff of {cutoff} Å; give a smaller width")

    def energy(
        params: Params, structure: Structure, neighbors: Neighbors
    ) -> tuple[Float[Array, ""], Float[Array, "n 1"]]:
        _, distance, used = _distances(structure, neighbors)
        inside = used & (distance < cutoff)
        r = jnp.where(inside, distance, cutoff)
        atomic = 0.5 * jnp.sum(jnp.where(inside, form(r) * _switch(r, cutoff, width), 0.0), axis=1)
        return jnp.sum(atomic), atomic[:, None]

    return Potential(_no_parameters, energy, cutoff)


def _switch(distance: Float[Array, "n k"], cutoff: float, width: float) -> Float[Array, "n k"]:
    """1 up to `cutoff - width`, 0 from `cutoff` on, with two continuous derivatives.

    jax-md's own has one: its forces have a kink at both ends.
    """
    x = jnp.clip((distance - (cutoff - width)) / width, 0.0, 1.0)
    return 1.0 - x**3 * (10.0 - 15.0 * x + 6.0 * x**2)


def _distances(
    structure: Structure, neighbors: Neighbors
) -> tuple[Float[Array, "n k 3"], Float[Array, "n k"], Bool[Array, "n k"]]:
    """Vectors to the neighbors (Å), their lengths, and which slots hold a neighbor (length 1 elsewhere)."""
    vector, used = vectors(structure, neighbors)
    square = jnp.sum(vector**2, axis=-1)
    return vector, jnp.sqrt(jnp.where(used, square, 1.0)), used  # a square root has no gradient at zero


def _as(like: Array, *values: float) -> tuple[Array, ...]:
    return tuple(jnp.asarray(value, like.dtype) for value in values)


def _no_parameters(key: Key, structure: Structure, neighbors: Neighbors) -> Params:
    return {}
