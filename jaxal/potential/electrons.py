"""Total charge and number of unpaired electrons as input of a potential.

Both are numbers of the whole structure. A small network makes hidden units of them, which are zero for a neutral
closed shell, and each species has its own linear map from the units to what is added to the first features of its
atoms: so the potential of such a structure is what it would be without this input. (SpookyNet, Unke et al., Nat.
Commun. 12, 7273, 2021, adds an embedding of the same two numbers to the first features, there divided among the
atoms.)

Here every atom has the input whole, not a share that shrinks with the number of atoms: the atoms of an ion are the same
whether or not something else is in the structure, far away. What counts once for each structure, such as most of an
ionization energy, is no sum over atoms but an offset of the energy for charge and spin, fitted to the labels
(`train.electrons`): an ion and a molecule far from it have it once, as the ion alone.
"""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxal.core.errors import InputError

CHARGE, SPIN = 10, 16  # largest charge of either sign, e, and number of unpaired electrons that there is an offset for
UNITS = 16  # hidden
INPUTS = 3


def inputs(charge: Int[Array, "b"], spin: Int[Array, "b"], dtype: jnp.dtype) -> Float[Array, "b 3"]:
    """Positive charge, negative charge and unpaired electrons, each as log2(1 + number): 0, 1, 1.6, 2, ...

    Ions of both signs have inputs of their own, as electrons that are missing are not the opposite of additional ones.
    """
    numbers = jnp.stack([jnp.maximum(charge, 0), jnp.maximum(-charge, 0), spin], axis=-1)
    return jnp.log2(1 + numbers.astype(dtype))


def row(charge: Any, spin: Any) -> tuple[Any, Any]:
    """Where the offset of a charge and spin, or of arrays of them, stands in a table [2 CHARGE + 1, SPIN + 1]."""
    return charge + CHARGE, spin


def check_range(charge: int, spin: int) -> None:
    """Raises InputError for a charge or a number of unpaired electrons that there is no offset for."""
    for name, value, low, high in (("charge", charge, -CHARGE, CHARGE), ("spin", spin, 0, SPIN)):
        if not low <= value <= high:
            raise InputError(f"{name}: {value} is not among the inputs of a potential; it takes {low} to {high}")
