"""A finished model as an energy surface, for programs that move structures on it."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ase
import jax
import jax.numpy as jnp
import numpy as np
from ase.calculators.calculator import CalculationFailed
from ase.optimize import BFGS
from jax.sharding import Mesh
from jaxtyping import Float

from jaxal.committee import weights
from jaxal.committee.evaluation import Committee, predict
from jaxal.core.errors import InputError
from jaxal.core.placement import Placement, placement
from jaxal.core.types import Params, Structure
from jaxal.data import files, neighbors
from jaxal.data import frames as door
from jaxal.deploy import model as models
from jaxal.deploy.calculator import Calculator
from jaxal.deploy.structures import placed
from jaxal.uncertainty.bound import bounds
from jaxal.uncertainty.support import Support

ROWS = 16  # of a Hessian, that are calculated together
CLOSEST = 0.5  # of the sum of two covalent radii; what is nearer is not physical, as of `gate.closest`
MARGIN = 1.3  # room for neighbors over those of the structure


class Surface(NamedTuple):
    """A model and what programs take of it."""

    model: models.Model
    committee: Committee
    params: Params  # [r], on the device
    support: Support | None

    @property
    def double(self) -> bool:
        """Whether it is in float64."""
        return self.model.precision == "float64"

    @property
    def dtype(self) -> Any:
        """Of positions and energies."""
        return np.dtype(self.model.precision)


def surface(model: models.Model, mesh: Mesh | None = None) -> Surface:
    """The surface of a model, on a mesh of devices or on one."""
    with jax.enable_x64(model.precision == "float64"):
        params = jax.device_put(weights.collections(model.params))
        support = jax.device_put(model.support)
    return Surface(model, models.committee(model)._replace(mesh=mesh), params, support)


def in_double(model: models.Model) -> models.Model:
    """The same model in float64: for second derivatives and forces that are to vanish."""

    def cast(values: Any) -> np.ndarray:
        array = np.asarray(values)
        return array.astype(np.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array

    return model._replace(params=jax.tree.map(cast, model.params), precision="float64")


def structures(model: models.Model, path: str | Path) -> list[ase.Atoms]:
    """The structures of a file, with charge and spin, as the model can take them.

    Raises InputError, with the file, for one that cannot be read or that the model does not know.
    """
    read = []
    for number, frame in enumerate(files.read(path, labeled=False)):
        try:
            atoms = door.to_atoms(door.stripped(door.with_electrons(frame, *models.unsaid(model), "model")))
            if reason := door.overlap(atoms, CLOSEST):
                raise InputError(f"{reason}; give a structure that can be")
            placed(model, [atoms])
        except InputError as error:
            raise InputError(f"{path}: frame {number}: {str(error).removeprefix('atoms: ')}") from None
        read.append(atoms)
    return read


def minimized(model: models.Model, atoms: ase.Atoms, force: float, steps: int, name: str) -> ase.Atoms:
    """The nearest minimum, where no free atom is pulled by more than `force` (eV/Å).

    Raises InputError, for the structure `name`, where it is not reached in so many steps.
    """
    atoms = atoms.copy()
    atoms.calc = Calculator(model)
    try:
        done = BFGS(atoms, logfile=None, maxstep=0.1).run(fmax=force, steps=steps)
    except CalculationFailed as error:
        raise InputError(f"{name}: relaxes to what cannot be: {error}") from None
    if not done:
        raise InputError(f"{name}: does not relax to a minimum in {steps} steps; give another structure")
    atoms.calc = None
    return atoms


class Expansion(NamedTuple):
    """Energy, force and Hessian at a structure, of each member [m] or of their mean, m = 1; numpy, float64."""

    energy: Float[np.ndarray, "m"]  # eV, relative to the reference energies
    force: Float[np.ndarray, "m n 3"]  # eV/Å
    hessian: Float[np.ndarray, "m 3n 3n"]  # eV/Å^2


def expander(model: models.Model, each: bool = False) -> Callable[[ase.Atoms], Expansion]:
    """The function of structures that gives their `Expansion`, of `each` member or of the mean.

    The Hessian is exact: every row of it is a reverse pass over the forces. All is in float64, whatever the model's
    precision.
    """
    whole = surface(in_double(model))
    specs: dict[int, neighbors.Spec] = {}
    compiled = _hessian(whole.committee, each, placement())

    def expanded(atoms: ase.Atoms) -> Expansion:
        with jax.enable_x64(True):
            batch = placed(whole.model, [atoms], constrained=False).structure
            structure = jax.tree.map(lambda x: jnp.asarray(x[0]), batch)
            size = len(atoms)
            if size not in specs:
                specs[size] = neighbors.plan(structure, whole.committee.potential.cutoff, 0.0, MARGIN)
            *values, overflow = compiled(specs[size], whole.params, structure)
            if overflow:
                specs[size] = neighbors.larger(specs[size], structure)
                *values, _ = compiled(specs[size], whole.params, structure)
            return Expansion(*(np.asarray(value) for value in values))

    return expanded


@functools.lru_cache(models.KEPT)
def _hessian(committee: Committee, each: bool, where: Placement) -> Callable:
    """The compiled program of an expansion, of (room, parameters, structure), on this platform."""
    del where

    def of(spec: neighbors.Spec, params: Params, structure: Structure):
        near = jax.tree.map(lambda x: x[None], neighbors.build(spec, structure))

        def forces(position):
            moved = jax.tree.map(lambda x: x[None], structure._replace(position=position))
            prediction = predict(committee, params, moved, near)
            energy, force = prediction.energy[0], prediction.force[0]
            return (force, energy) if each else (force.mean(0, keepdims=True), energy.mean(0, keepdims=True))

        force, pull, energy = jax.vjp(forces, structure.position, has_aux=True)
        units = jnp.eye(force.size, dtype=force.dtype).reshape(-1, *force.shape)
        rows = -jax.lax.map(lambda unit: pull(unit)[0], units, batch_size=min(ROWS, len(units)))
        size = structure.position.size
        hessian = rows.reshape(force.shape[0], size, size)
        return energy, force, 0.5 * (hessian + jnp.swapaxes(hessian, 1, 2)), near.overflow[0]

    return jax.jit(of, static_argnums=0)


class Opinion(NamedTuple):
    """What the members say of structures [b], and whether they may be believed; numpy, float64."""

    energy: Float[np.ndarray, "b m"]  # eV, total
    spread: Float[np.ndarray, "b"]  # eV/Å, the largest of an atom's force
    error: Float[np.ndarray, "b"]  # eV/Å, a bound on the largest force error; infinite where not supported
    supported: np.ndarray | None  # [b] bool; None where the model does not know


def deviation(members: Float[np.ndarray, "m"]) -> float:
    """Standard deviation of what the members say; NaN of a single one."""
    return float(members.std()) if len(members) > 1 else float("nan")


def opinions(model: models.Model, frames: Sequence[ase.Atoms], at_once: int = 64) -> Opinion:
    """Energies by member and how sure the committee is, of structures of the same atoms."""
    predict_all = models.predictor(model)
    parts: list[tuple[np.ndarray, ...]] = []
    batch = placed(model, frames, constrained=False).structure
    for first in range(0, len(frames), at_once):
        rows = np.arange(first, first + min(at_once, len(frames))) % len(frames)  # one shape, one program
        prediction = predict_all(jax.tree.map(lambda x, rows=rows: x[rows], batch))
        energy, force = (np.asarray(x, np.float64) for x in prediction[:2])
        own = prediction.force_spread
        spread = np.sqrt(force.var(axis=1).sum(-1)) if own is None else np.asarray(own, np.float64)
        new = np.full(len(rows), np.nan) if prediction.novelty is None else np.asarray(prediction.novelty, np.float64)
        used = slice(0, min(at_once, len(frames) - first))
        parts.append((energy[used], spread.max(axis=-1)[used], new[used]))
    energy, spread, novelty = (np.concatenate(x) for x in zip(*parts, strict=True))
    known = None if model.support is None else novelty <= 1
    species = batch.species[0]
    reference = float(model.reference[species[species >= 0]].sum())
    return Opinion(energy + reference, spread, bounds(model.calibration, spread, novelty), known)
