"""Reference energies of species, which make the program's energies small: total energy = the program's + theirs."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxal.committee.isolated_atoms import ISOLATED
from jaxal.core.types import Params, Structure
from jaxal.train import electrons


def reference_energies(
    structures: Structure,
    energy: Any,
    kinds: int,
    isolated: Mapping[int, float] | None = None,
    settled: Mapping[int, float] | None = None,
) -> np.ndarray:
    """Energy per species in structures, eV, float64, by row of the table. Host side.

    Least squares over the compositions of structures whose energy is known. What compositions leave undetermined gets
    the smallest norm, so a single composition shares its energy among its atoms. Of species whose isolated atoms are
    known, `isolated` (eV, by row of the table), the energy is theirs and what the atoms gain in the structures: the
    same for all such species as far as one number can say it, and by species in what is left. Neutral structures that
    are such an atom say nothing of it. Species of `settled` have that energy (eV, by row of the table), as it is.
    """
    counts = electrons.counted(structures, kinds)
    energy = np.asarray(energy, float)
    reference = np.zeros(kinds)
    fixed = dict(settled or {})
    free = {kind: value for kind, value in (isolated or {}).items() if kind not in fixed}
    for kind, value in (fixed | free).items():
        reference[kind] = value
    known = sorted(free)
    others = [kind for kind in range(kinds) if kind not in fixed and kind not in free]
    lone = (counts.sum(-1) == 1) & (counts[:, known].sum(-1) == 1) & (np.asarray(structures.charge).reshape(-1) == 0)
    there = np.isfinite(energy) & ~lone
    if not there.any():
        return reference
    counts, energy = counts[there], energy[there]
    # what charge and spin cost is not the atoms', where it can be told from them: see `electrons.offsets`
    rows: Structure = jax.tree.map(lambda x: np.asarray(x)[there], structures)
    cost = electrons.columns(rows)[1]

    def fitted(design: np.ndarray, rest: np.ndarray) -> np.ndarray:
        if not cost.size:
            return np.linalg.lstsq(design, rest, rcond=1e-8)[0]
        both = np.concatenate([design, electrons.SMALL * cost], axis=1)
        return electrons.solved(both, rest, counts)[: design.shape[1]]

    if others:
        reference[others] = fitted(counts[:, others], energy - counts @ reference)
    atoms = counts[:, known]
    if atoms.any():
        number, rest = atoms.sum(-1), energy - counts @ reference
        gain = fitted(number[:, None], rest)
        reference[known] += gain + fitted(atoms, rest - gain * number)
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
