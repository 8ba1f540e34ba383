"""Closed energy surfaces as finished models, for tests that ask for the fixture `surfaces`.

The members are the surface times a factor each, so what they say of a barrier or a free energy is known.
"""

import jax.numpy as jnp
import numpy as np

from jaxal.core.types import Potential
from jaxal.data import neighbors
from jaxal.deploy.model import Model

FACTORS = (0.97, 1.0, 1.03)
# London, Eyring, Polanyi and Sato for H3 (J. Chem. Phys. 23, 2465, 1955): eV, Å, 1/Å and Sato's parameter
DEPTH, LENGTH, RANGE, SATO = 4.7466, 0.7414, 1.9413, 0.18
# two wells of the distance of two atoms
HEIGHT, MIDDLE, HALF, TILT = 0.12, 2.5, 0.6, 0.05  # eV, Å, Å, eV/Å
SPRING, SPACING = 5.0, 2.5  # eV/Å^2, Å, of a chain


def _distances(structure, near):
    vector, used = neighbors.vectors(structure, near)
    square = jnp.sum(jnp.where(used[..., None], vector, 1.0) ** 2, axis=-1)
    return jnp.where(used, jnp.sqrt(square), jnp.inf), used


def _potential(cutoff, whole):
    def init(key, structure, near):
        return {"params": {"factor": jnp.ones((), structure.position.dtype)}}

    def energy(params, structure, near):
        value = params["params"]["factor"] * whole(structure, near)
        share = jnp.where(structure.species >= 0, 1.0, 0.0).astype(value.dtype)
        return value, share[:, None]

    return Potential(init, energy, cutoff)


def leps_energy(first, second, third):
    """Of the three distances, Å; eV."""
    coulomb, exchange = [], []
    for r in (first, second, third):
        x = jnp.exp(-RANGE * (jnp.minimum(r, 50.0) - LENGTH))
        singlet, triplet = DEPTH * (x**2 - 2 * x), 0.5 * DEPTH * (x**2 + 2 * x)
        ratio = (1 - SATO) / (1 + SATO)
        coulomb.append(0.5 * (singlet + ratio * triplet))
        exchange.append(0.5 * (singlet - ratio * triplet))
    a, b, c = exchange
    inside = 0.5 * ((a - b) ** 2 + (b - c) ** 2 + (c - a) ** 2)
    return sum(coulomb) - jnp.sqrt(jnp.maximum(inside, 1e-20))


def leps(table: tuple[int, ...]) -> Potential:
    """Three hydrogen atoms."""

    def whole(structure, near):
        distance, used = _distances(structure, near)
        each = [
            jnp.min(jnp.where(used[i] & (near.index[i] == j), distance[i], 50.0)) for i, j in ((0, 1), (1, 2), (0, 2))
        ]
        return leps_energy(*each)

    return _potential(8.0, whole)


def well_energy(r):
    """Two wells and a tilt; eV."""
    x = (r - MIDDLE) / HALF
    return HEIGHT * (x**2 - 1) ** 2 + TILT * (r - MIDDLE)


def wells(table: tuple[int, ...]) -> Potential:
    """Two atoms whose distance has two wells."""

    def whole(structure, near):
        distance, used = _distances(structure, near)
        return 0.5 * jnp.sum(jnp.where(used, well_energy(jnp.where(used, distance, MIDDLE)), 0.0))

    return _potential(8.0, whole)


def chain(table: tuple[int, ...]) -> Potential:
    """Atoms on a line, with springs between neighbors."""

    def whole(structure, near):
        distance, used = _distances(structure, near)
        used &= distance < 1.4 * SPACING
        return 0.25 * SPRING * jnp.sum(jnp.where(used, (jnp.where(used, distance, SPACING) - SPACING) ** 2, 0.0))

    return _potential(1.6 * SPACING, whole)


POTENTIALS = {"leps": leps, "wells": wells, "chain": chain}


def model(name: str) -> Model:
    """The surface as a model of three members."""
    params = {"params": {"factor": np.array(FACTORS, np.float32)}}
    return Model(name, (), (1,), params, np.zeros(1), "float32", ((0, 0), (0, 1)), electrons=False)
