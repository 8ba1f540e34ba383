"""Molecular dynamics under a bias, for walkers that have to pass a barrier that heat alone does not take them over.

The bias acts on the walkers only: scores, labels and the energies that are reported are those of the structures,
without it. A structure is worth its label wherever it comes from.
"""

from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxal.core.jaxmd import dataclasses, simulate
from jaxal.core.registry import register
from jaxal.core.types import Explorer, InputError, Key, Structure, WalkerState
from jaxal.core.units import Unit
from jaxal.data.cell import fractional
from jaxal.explore.dynamics import Femtosecond, Kelvin, nvt_langevin
from jaxal.explore.walker import explorer

Atom = Annotated[int, Unit("", 0)]
Pairs = tuple[tuple[int, int], ...]


@dataclasses.dataclass
class Steered(simulate.NVTLangevinState):
    """A state of Langevin dynamics, and where its walker is in the period of the sweep."""

    phase: Array  # rad; 0 at `low`, pi at `high`


@register("explorer")
def nvt_steered(
    *,
    coordinate: tuple[tuple[Atom, Atom], ...],
    low: Annotated[float, Unit("Å")],
    high: Annotated[float, Unit("Å")],
    period: Annotated[float, Unit("ps", 0.0, exclusive=True)] = 2.0,
    stiffness: Annotated[float, Unit("eV/Å^2", 0.0)] = 5.0,
    temperature: Kelvin = 300.0,
    timestep: Femtosecond = 0.5,
    friction: Annotated[float, Unit("1/fs", 0.0)] = 0.01,
) -> Explorer:
    """Langevin dynamics pulled to and fro along a distance, or along the difference of two.

    `coordinate` is [[i, j]] for the distance of atoms i and j, or [[i, j], [k, l]] for the distance of i and j less
    that of k and l; atoms are numbered from 0, also across a periodic boundary. A spring of `stiffness` s in eV/Å^2
    pulls the coordinate q towards a center c that goes from `low` to `high` (Å) and back within `period` (ps):

        E = s (q - c)^2 / 2,    c = (low + high)/2 - (high - low)/2 cos(2 pi t/period + phase)

    Each walker begins where it is (c = q, or the nearer end of the sweep), as many upwards as downwards, and does so
    again when it is taken back to an earlier structure. `temperature` (K), `timestep` (fs), `friction` (1/fs) and the
    integrator are those of `nvt_langevin`; a stiffness of 0 is that. Take `low` and `high` beyond the minima on either
    side of a barrier, or the walkers are held on its slopes.

    Izrailev et al., Biophys. J. 72, 1568 (1997); Park and Schulten, J. Chem. Phys. 120, 5946 (2004).
    Raises InputError for an empty range, and `init` for a coordinate that the atoms of a structure do not have.
    """
    pairs = _pairs(coordinate)
    if not low < high:
        raise InputError(f"explore.high: {high} Å is not above explore.low, {low} Å; the sweep needs a range")
    plain = nvt_langevin(temperature=temperature, timestep=timestep, friction=friction)
    middle, half = (low + high) / 2, (high - low) / 2
    turn = 2 * np.pi * timestep / (1e3 * period)  # rad in a step

    def pull(structure: Structure, phase: Float[Array, ""]) -> Float[Array, "n 3"]:
        center = middle - half * jnp.cos(phase)

        def energy(position: Float[Array, "n 3"]) -> Float[Array, ""]:
            return 0.5 * stiffness * (value(pairs, structure._replace(position=position)) - center) ** 2

        return -jax.grad(energy)(structure.position)

    def init(
        key: Key, structure: Structure, force: Float[Array, "n 3"], stress: Float[Array, "3 3"], step: Int[Array, ""]
    ) -> WalkerState:
        _refuse_other_atoms(pairs, structure.position.shape[-2])
        at = jnp.clip((middle - value(pairs, structure)) / half, -1.0, 1.0)
        upwards = jax.random.bernoulli(jax.random.fold_in(key, 1))
        phase = jnp.where(upwards, 1.0, -1.0).astype(at.dtype) * jnp.arccos(at)
        walker = plain.init(key, structure, force + pull(structure, phase), stress, step)
        engine = walker.engine
        fields = {field.name: getattr(engine, field.name) for field in dataclasses.fields(engine)}
        return walker._replace(engine=Steered(**fields, phase=phase))  # pyright: ignore[reportCallIssue]

    def advance(
        walker: WalkerState, structure: Structure, force: Float[Array, "n 3"], stress: Float[Array, "3 3"]
    ) -> WalkerState:
        phase = (walker.engine.phase + turn) % (2 * np.pi)
        walker = plain.advance(walker, structure, force + pull(structure, phase), stress)
        return walker._replace(engine=walker.engine.set(phase=phase))

    return explorer(init, plain.propose, advance, timestep, plain.bath)


def value(pairs: Pairs, structure: Structure) -> Float[Array, ""]:
    """The distance of the first pair of atoms, less that of the second where there is one, Å.

    In a cell the nearest image counts, exactly so for distances below half of the cell's smallest height.
    """
    first, *second = (_distance(structure, i, j) for i, j in pairs)
    return first - second[0] if second else first


def _distance(structure: Structure, i: int, j: int) -> Float[Array, ""]:
    vector = structure.position[j] - structure.position[i]
    images = jax.lax.stop_gradient(jnp.round(fractional(vector, structure.cell, structure.periodic)))
    vector = vector - images @ structure.cell
    square = jnp.sum(vector**2)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)


def _pairs(coordinate: tuple[tuple[int, int], ...]) -> Pairs:
    """The coordinate, checked but for which atoms there are."""
    pairs = tuple((int(i), int(j)) for i, j in coordinate)
    if len(pairs) not in (1, 2):
        what = "one pair of atoms, [[i, j]], or two, [[i, j], [k, l]]"
        raise InputError(f"explore.coordinate: {[list(x) for x in pairs]} has {len(pairs)} pairs; give {what}")
    return pairs


def _refuse_other_atoms(pairs: Pairs, atoms: int) -> None:
    for i, j in pairs:
        if not (0 <= i < atoms and 0 <= j < atoms and i != j):
            raise InputError(f"explore.coordinate: {[i, j]} does not fit; give two different atoms, 0 to {atoms - 1}")
