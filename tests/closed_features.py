"""Potentials for methods of uncertainty: `POTENTIAL`, whose features are closed forms of each atom's position, with
derivatives written out in numpy, and `SHELLS`, whose features are invariants of an atom's neighbors."""

import jax
import jax.numpy as jnp
import numpy as np
from structures import plain

from jaxal.core.types import Label, Lessons, Neighbors, Potential, Structure
from jaxal.data import neighbors
from jaxal.potential.radial import envelope

FEATURES, KINDS = 5, 2
MIX = np.random.default_rng(0).normal(size=(3, FEATURES))


def features(position):
    """Features [n f] of positions [n 3], for numpy and for JAX."""
    xp = jnp if isinstance(position, jax.Array) else np
    return xp.sin(position @ MIX) + 0.3 * (position @ MIX) ** 2


def features_slope(position):
    """Their derivatives [n f 3], by hand."""
    product = position @ MIX
    return (np.cos(product) + 0.6 * product)[:, :, None] * MIX.T


def energy(params, structure, near):
    feature = jnp.where((structure.species >= 0)[:, None], features(structure.position), 0.0)
    weight = params["params"]["weight"][structure.species]
    return jnp.sum(weight * feature), feature


POTENTIAL = Potential(lambda *_: {}, energy, 1.0)


def structures_of(count, atoms, seed, kinds=KINDS, size=1.0) -> Structure:
    rng = np.random.default_rng(seed)
    zero = jnp.zeros(count, jnp.int32)
    species = jnp.asarray(np.arange(atoms) % kinds + np.zeros((count, 1)), jnp.int32)
    position = jnp.asarray(size * rng.normal(size=(count, atoms, 3)))
    return plain(position, species, jnp.zeros((count, 3, 3)), zero, zero)


def nothing_near(structures) -> Neighbors:
    """The features need none."""
    count, atoms = structures.species.shape
    slot = jnp.full((count, atoms, 1), atoms, jnp.int32)
    gap = jnp.zeros((count, atoms, 1, 3))
    return Neighbors(slot, gap, 0 * slot, structures.position, structures.cell, jnp.zeros(count, bool))


def lessons_of(structures, trained, held, seed=5) -> Lessons:
    """Labels of another linear model than the potential, with noise: residuals that are not zero."""
    rng = np.random.default_rng(seed)
    count = structures.charge.shape[0]
    label = Label(
        jnp.asarray(rng.normal(size=count)),
        jnp.asarray(rng.normal(size=structures.position.shape)),
        jnp.zeros((count, 3, 3)),
        jnp.ones(count, bool),
    )
    return Lessons(structures, nothing_near(structures), label, jnp.asarray(trained), jnp.asarray(held))


def start(method, structures):
    first = jax.tree.map(lambda x: x[0], (structures, nothing_near(structures)))
    weight = jnp.asarray(np.random.default_rng(7).normal(size=(KINDS, FEATURES)))
    return method.init(jax.random.key(0), {"params": {"weight": weight}}, *first)


def predict(method, params, structures):
    return jax.jit(method.predict)(params, structures, nothing_near(structures))


def taught(method, structures, trained=None, held=None):
    """Parameters with the posterior of the structures, all trained on where nothing else is said."""
    count = structures.charge.shape[0]
    trained = np.ones(count, bool) if trained is None else trained
    held = np.zeros(count, bool) if held is None else held
    params = start(method, structures)
    return {**params, "posterior": jax.jit(method.learn)(params, lessons_of(structures, trained, held))}


CENTERS = np.linspace(0.6, 2.4, 5)  # Å


def shells_energy(params, structure, near):
    """Linear in features that mix, by trained weights, the neighbors of each species at a few distances."""
    vector, used = neighbors.vectors(structure, near)
    distance = jnp.sqrt(jnp.sum(jnp.where(used[:, :, None], vector, 1.0) ** 2, axis=-1))
    shell = jnp.exp(-(((distance[:, :, None] - CENTERS.astype(distance.dtype)) / 0.4) ** 2))
    shell *= jnp.where(used, envelope(distance, 4.0), 0.0)[:, :, None]
    kind = jax.nn.one_hot(structure.species.at[near.index].get(mode="fill", fill_value=-1), 2, dtype=distance.dtype)
    count = jnp.einsum("nkc,nks->nsc", shell, kind).reshape(distance.shape[0], -1)
    feature = jnp.tanh(count @ params["params"]["mix"])
    weight = params["params"]["weight"][structure.species]
    return jnp.sum(jnp.where((structure.species >= 0)[:, None], weight * feature, 0.0)), feature


def shells_init(key, structure, near):
    del near
    first, second = jax.random.split(key)
    dtype = structure.position.dtype
    mix, weight = jax.random.normal(first, (10, 6), dtype), jax.random.normal(second, (2, 6), dtype)
    return {"params": {"mix": mix, "weight": weight}}


SHELLS = Potential(shells_init, shells_energy, 4.0)
