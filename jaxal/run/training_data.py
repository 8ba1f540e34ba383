"""Labels as training sets: in the program's precision, relative to references; and the first weights."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxal.committee import evaluation as committees
from jaxal.committee.evaluation import Committee
from jaxal.core.types import Key, Label, Params, Structure
from jaxal.data import buffer as buffers
from jaxal.data import neighbors
from jaxal.train import fit as training
from jaxal.train.reference import with_isolated


def cast(structures: Structure, labels: Label, reference: np.ndarray, dtype: Any) -> tuple[Structure, Label]:
    """Device arrays in the program's precision, energies relative to the references (subtracted in float64)."""
    species = np.asarray(structures.species)
    offset = np.where(species >= 0, np.asarray(reference)[species], 0.0).sum(-1)
    real: Any = partial(np.asarray, dtype=dtype)
    structures = structures._replace(position=real(structures.position), cell=real(structures.cell))
    labels = Label(real(np.asarray(labels.energy) - offset), real(labels.force), real(labels.stress), labels.ok)
    return jax.device_put((structures, labels))


def training_set(
    structures: Structure,
    labels: Label,
    held: np.ndarray,
    members: int,
    capacity: int,
    key: Key,
    bootstrap: float,
    share: np.ndarray | None = None,
) -> buffers.Buffer:
    """A buffer that holds the labels (device arrays, [b]); `held` marks those held out, `share` weighs them [b 3]."""
    number = structures.charge.shape[0]
    empty = buffers.init(jax.tree.map(lambda x: np.asarray(x)[0], structures), members, max(capacity, number))
    add = jax.jit(buffers.add, static_argnums=6)
    weights = None if share is None else np.asarray(share, empty.share.dtype)
    return add(empty, key, structures, labels, labels.ok, np.asarray(held), bootstrap, weights)[0]


def spread_hold(number: int, fraction: float, trained: int = 0) -> np.ndarray:
    """Marks `fraction` of the rows, at least one, evenly spaced and away from both ends.

    None of the first `trained` rows, as long as there are others: the only structure of a system is to be learned.
    """
    count = max(1, round(fraction * number))
    first = trained if number - trained >= count else 0
    held = np.zeros(number, bool)
    held[first + ((np.arange(count) + 0.5) * (number - first) / count).astype(int)] = True
    return held


def new_params(
    committee: Committee,
    key: Key,
    spec: neighbors.Spec,
    structures: Structure,
    labels: Label,
    reference: np.ndarray | None = None,
    isolated: Mapping[int, float] | None = None,
) -> Params:
    """Initial weights, [r] leading, with the constants taken from the data.

    The labels are relative to `reference` [s]; `isolated` are energies of isolated atoms by row of the table, eV.
    """
    near = jax.jit(neighbors.find, static_argnums=0)(spec, structures)
    species = np.asarray(structures.species)
    listed = float(np.sum(np.asarray(near.index) < species.shape[-1]) / np.sum(species >= 0))
    first = jax.tree.map(lambda x: np.asarray(x)[0], (structures, near))
    params = committees.init(committee, key, *first)
    params = training.normalize(params, labels, structures, listed)
    return params if reference is None else with_isolated(params, reference, isolated or {})
