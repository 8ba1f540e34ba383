"""What methods on features share: the atoms' features, the training set as they see it, the errors that scale them.

All is of one set of weights. A row of the training set that is not used holds no atoms and may have held anything.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxal.acquire.kernel import atom_features
from jaxal.committee.evaluation import evaluate_batch
from jaxal.core.types import Distribution, Key, Lessons, Neighbors, Params, Posterior, Potential, Structure
from jaxal.uncertainty.scale import likelihood_scale

TOGETHER = 32  # structures of the training set that are evaluated at a time
JUDGED = 64  # structures, the latest so many, whose errors are looked at


def width(potential: Potential, params: Params, structure: Structure, neighbors: Neighbors) -> int:
    """Features of an atom, f."""
    return jax.eval_shape(potential.energy, params, structure, neighbors)[1].shape[-1]


def projection(key: Key, size: int, limit: int, dtype) -> Float[Array, "f p"]:
    """Random orthonormal columns from `size` features to at most `limit`; as they are where there are no more."""
    if size <= limit:
        return jnp.eye(size, dtype=dtype)
    return jnp.linalg.qr(jax.random.normal(key, (size, limit), dtype))[0]


def kept(structures: Structure, neighbors: Neighbors, keep: Bool[Array, "b"]) -> tuple[Structure, Neighbors]:
    """The same structures, but for those not kept, which hold no atoms."""

    def put(x: Array, empty: int) -> Array:
        return jnp.where(keep.reshape(-1, *(1,) * (x.ndim - 1)), x, empty)

    none = dict.fromkeys(Structure._fields, 0) | {"species": -1, "mass": 1, "periodic": False, "fixed": False}
    structures = Structure(**{name: put(getattr(structures, name), empty) for name, empty in none.items()})
    slots = {"index": structures.species.shape[-1], "shift": 0, "reverse": 0, "position": 0, "cell": 0, "overflow": 0}
    return structures, Neighbors(**{name: put(getattr(neighbors, name), empty) for name, empty in slots.items()})


def each(function, *rows):
    """`function` of one structure and more, over rows [c], some at a time."""
    return jax.lax.map(lambda row: function(*row), rows, batch_size=TOGETHER)


def of_lessons(potential: Potential, params: Params, lessons: Lessons) -> Float[Array, "c n f"]:
    """Features of all atoms of the training set, zero where there is none."""

    def features_of(structure: Structure, neighbors: Neighbors) -> Float[Array, "n f"]:
        return atom_features(potential, params, *jax.tree.map(lambda x: x[None], (structure, neighbors)))[0]

    return each(features_of, *used(lessons)[:2])


def used(lessons: Lessons) -> Lessons:
    """The training set with nothing in the rows that are neither trained on nor held out."""
    structure, neighbors = kept(lessons.structure, lessons.neighbors, lessons.trained | lessons.held)
    return lessons._replace(structure=structure, neighbors=neighbors)


class Residuals(NamedTuple):
    """Errors of one set of weights on the structures that judge it."""

    row: Int[Array, "j"]  # of the training set
    valid: Bool[Array, "j"]
    real: Bool[Array, "j n"]  # atoms, of valid rows
    energy: Float[Array, "j"]  # eV, predicted less labeled; zero where there is none
    force: Float[Array, "j n 3"]  # eV/Å


def residuals(potential: Potential, params: Params, lessons: Lessons) -> Residuals:
    """Errors on the latest held-out structures; on the latest trained ones where none is held out."""
    number = lessons.held.shape[0]
    judges = jnp.where(jnp.any(lessons.held), lessons.held, lessons.trained)
    (back,) = jnp.nonzero(judges[::-1], size=min(JUDGED, number), fill_value=number)
    valid = back < number
    row = jnp.where(valid, number - 1 - back, 0)
    structures, neighbors, label = jax.tree.map(lambda x: x[row], lessons[:3])
    structures, neighbors = kept(structures, neighbors, valid)

    def evaluated(structure: Structure, neighbors: Neighbors):
        batch = evaluate_batch(potential, params, *jax.tree.map(lambda x: x[None], (structure, neighbors)))
        return batch[0][0], batch[1][0]

    energy, force = each(evaluated, structures, neighbors)
    real = structures.species >= 0
    known = real[..., None] & jnp.isfinite(label.force)
    gap = jnp.where(known, force - jnp.where(known, label.force, 0.0), 0.0)
    valid &= jnp.isfinite(label.energy)
    return Residuals(row, valid, real, jnp.where(valid, energy - label.energy, 0.0), gap)


def scales(
    errors: Residuals, energy_variance: Float[Array, "j"], atom_variance: Float[Array, "j n"]
) -> Float[Array, "2"]:
    """Most likely scales of the standard deviations of energies (to eV) and of atoms' force vectors (to eV/Å)."""
    square = jnp.sum(errors.force**2, axis=-1)
    energy = likelihood_scale(errors.energy**2, energy_variance, errors.valid)
    force = likelihood_scale(square.reshape(-1), atom_variance.reshape(-1), errors.real.reshape(-1))
    return jnp.stack([energy, force])


def closed_form(
    potential: Potential,
    params: Params,
    structures: Structure,
    neighbors: Neighbors,
    spreads,
) -> Distribution:
    """The plain model with the (energy spread [b], force spread [b n]) that `spreads(feature [b n f])` gives."""
    energy, force, stress, feature = evaluate_batch(potential, params, structures, neighbors)
    feature = jnp.where((structures.species >= 0)[..., None], feature, 0.0)
    return Distribution(energy[None], force[None], stress[None], feature, *spreads(feature))


def if_any(wanted: Bool[Array, "k"], new: Posterior, old: Posterior) -> Posterior:
    """`new` where anything was wanted, else `old` to the last bit."""
    return jax.tree.map(lambda a, b: jnp.where(jnp.any(wanted), a, b), new, old)


def directions(structure: Structure, rows: str, probes: int) -> Float[Array, "r n 3"]:
    """Unit vectors of all force components, or random signs that depend on where the atoms are; zero where padded."""
    number, dtype = structure.position.shape[0], structure.position.dtype
    real = structure.species >= 0
    if rows == "forces":
        vectors = jnp.eye(3 * number, dtype=dtype).reshape(-1, number, 3)
    else:
        bits = jax.lax.bitcast_convert_type(structure.position.astype(jnp.float32), jnp.uint32)
        odd = 2 * jnp.arange(3 * number, dtype=jnp.uint32).reshape(number, 3) + 1
        seed = jnp.sum(jnp.where(real[:, None], bits * odd, jnp.uint32(0)), dtype=jnp.uint32)
        key = jax.random.fold_in(jax.random.key(0), seed)
        vectors = jax.random.rademacher(key, (probes, number, 3), dtype)
    return jnp.where(real[:, None], vectors, 0.0)
