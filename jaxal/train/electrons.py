"""The energies that charge and unpaired electrons cost as such, fitted beside those of the species. Host side."""

from typing import Any

import numpy as np
from jaxtyping import Float

from jaxal.core.types import Structure
from jaxal.data.electrons import State, states
from jaxal.potential import electrons as inputs

# Of several solutions least squares takes the shortest: what columns this small can explain as well as the others do is
# left to the others.
SMALL = 1e-2


def columns(structures: Structure) -> tuple[tuple[State, ...], Float[np.ndarray, "b t"]]:
    """Charges and spins that occur, but for those of a neutral closed shell, and a column of ones and zeros for each.

    Where all are of one charge and spin there is nothing to tell apart, and no column.
    """
    charge, spin = (np.asarray(x).reshape(-1) for x in (structures.charge, structures.spin))
    occur = states(charge, spin)
    others = tuple(state for state in occur if state != (0, 0)) if len(occur) > 1 else ()
    each = [(charge == state[0]) & (spin == state[1]) for state in others]
    return others, np.stack(each, -1).astype(float) if each else np.zeros((charge.size, 0))


def offsets(structures: Structure, energy: Any, kinds: int) -> Float[np.ndarray, "q u"]:
    """The energy of each charge and spin, eV, by `potential.electrons.row`; zero for those that do not occur.

    Least squares of the energies [b] (eV, less the reference energies of the species) over compositions, and over
    charges and spins, together. So an offset is what differs between ions and neutrals of the same atoms, an ionization
    energy, not what binds the atoms. What may be either, as where an ion's atoms are in no neutral, is the charge's.
    """
    table = np.zeros((2 * inputs.CHARGE + 1, inputs.SPIN + 1))
    others, added = columns(structures)
    energy = np.asarray(energy, float)
    there = np.isfinite(energy)
    if not others or not there.any():
        return table
    counts = counted(structures, kinds)
    design = np.concatenate([SMALL * counts, added], axis=1)
    for state, value in zip(others, solved(design, energy, counts)[kinds:], strict=True):
        table[inputs.row(*state)] = value
    return table


def counted(structures: Structure, kinds: int) -> Float[np.ndarray, "b s"]:
    """How many atoms of each species the structures have."""
    species = np.asarray(structures.species)
    return np.stack([(species == kind).sum(-1) for kind in range(kinds)], -1).astype(float)


def solved(
    design: Float[np.ndarray, "b x"], energy: Float[np.ndarray, "b"], counts: Float[np.ndarray, "b s"]
) -> Float[np.ndarray, "x"]:
    """Least squares over the known energies by the error of an atom, as the loss counts it: few small ions among many
    large structures are not left with all that the columns cannot explain.
    """
    there = np.isfinite(energy)
    weight = 1 / np.maximum(counts.sum(-1), 1)[there]
    return np.linalg.lstsq(design[there] * weight[:, None], energy[there] * weight, rcond=1e-8)[0]
