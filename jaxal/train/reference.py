"""Reference energies of species, which make the program's energies small: total energy = the program's + theirs."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxal.committee.isolated_atoms import ISOLATED
from jaxal.core.types import Params, Structure


def reference_energies(
    structures: Structure, energy: Any, kinds: int, isolated: Mapping[int, float] | None = None
) -> np.ndarray:
    """Energy per species in structures, eV, float64, by row of the table. Host side.

    Least squares over the compositions of structures whose energy is known. What compositions leave undetermined gets
    the smallest norm, so a single composition shares its energy among its atoms. Of species whose isolated atoms are
    known, `isolated` (eV, by row of the table), the energy is theirs and what the atoms gain in the structures: the
    same for all such species as far as one number can say it, and by species in what is left.
    """
    species = np.asarray(structures.species)
    counts = np.stack([(species == kind).sum(-1) for kind in range(kinds)], -1).astype(float)
    energy = np.asarray(energy, float)
    reference = np.zeros(kinds)
    known = sorted(isolated or {})
    for kind in known:
        reference[kind] = (isolated or {})[kind]
    others = [kind for kind in range(kinds) if kind not in known]
    there = np.isfinite(energy)
    if not there.any():
        return reference
    if others:
        rest = (energy - counts @ reference)[there]
        reference[others] = np.linalg.lstsq(counts[there][:, others], rest, rcond=1e-8)[0]
    atoms = counts[there][:, known]
    if atoms.any():
        number, rest = atoms.sum(-1), (energy - counts @ reference)[there]
        gain = number @ rest / (number @ number)
        reference[known] += gain + np.linalg.lstsq(atoms, rest - gain * number, rcond=1e-8)[0]
    return reference


def with_isolated(params: Params, reference: np.ndarray, isolated: Mapping[int, float]) -> Params:
    """Parameters that know energies of isolated atoms, eV, by row of the table, beside the references [s] of species.

    Of a potential whose isolated atoms are not exact they are returned as they are.
    """
    own = params.get(ISOLATED)
    if own is None:
        return params
    known, energy = np.zeros(len(reference)), np.zeros(len(reference))
    for kind, value in isolated.items():
        known[kind], energy[kind] = 1.0, value - reference[kind]
    values = {"energy": energy, "known": known}
    like = {name: jnp.broadcast_to(jnp.asarray(values[name], x.dtype), x.shape) for name, x in own.items()}
    return {**params, ISOLATED: like}
