"""ASE calculator: a learned potential and how sure its committee is, for anything that runs on ASE.

Needs a model file (or a run folder that holds one) and nothing of the program that made it.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import ase
import jax
import numpy as np
from ase.calculators import calculator as base

from jaxal import model as models
from jaxal.data.labels import matrix_to_voigt
from jaxal.structure import from_atoms
from jaxal.types import InputError, Prediction, Structure


def padded_size(atoms: int) -> int:
    """Array size for so many atoms: at most a quarter larger (at least a multiple of four).

    Sizes grow geometrically, so a changing number of atoms compiles a handful of programs, not one for each.
    """
    step = max(4, 1 << max(atoms.bit_length() - 3, 0))
    return -(-atoms // step) * step


class Calculator(base.Calculator):
    """The committee mean as ASE calculator, with its spread.

    Parameters
    ----------
    model
        A model file, a run folder holding one, or a `jaxal.model.Model`.

    `results` hold float64 numbers: energy and free_energy (eV, total), forces [n, 3] (eV/Å), stress [6] (eV/Å^3,
    ASE's sign and order, periodic structures only), force_spread [n] (committee standard deviation of each
    atom's force vector, eV/Å), energy_spread (eV) and estimated_error (eV/Å: the expected largest error of an
    atom's force, the calibrated multiple of the largest spread; infinite for a model never calibrated).

    Structures are open or periodic in all three directions. Raises InputError for anything else, for an element
    the model does not know and for a charge or spin in `atoms.info` other than the model's;
    ase.calculators.calculator.CalculationFailed where the model gives no finite number.
    """

    implemented_properties: ClassVar[list[str]] = [
        "energy",
        "free_energy",
        "forces",
        "stress",
        "force_spread",
        "energy_spread",
        "estimated_error",
    ]
    default_parameters: ClassVar[dict[str, Any]] = {}
    ignored_changes: ClassVar[set[str]] = {"initial_charges", "initial_magmoms"}

    def __init__(self, model: str | Path | models.Model) -> None:
        super().__init__()
        self.model = model if isinstance(model, models.Model) else models.load(Path(model))
        with jax.enable_x64(self.model.precision == "float64"):
            self._predict: Callable[[Structure], Prediction] = models.predictor(self.model)
        self._lock = threading.Lock()

    def share(self) -> "Calculator":
        """Another calculator with results of its own and the same compiled program, say for each image of a band."""
        other = object.__new__(type(self))
        base.Calculator.__init__(other)
        other.model, other._predict, other._lock = self.model, self._predict, self._lock
        return other

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = base.all_changes,
    ) -> None:
        """Fill `results` for the atoms; all properties come from one evaluation."""
        super().calculate(atoms, list(properties), list(system_changes))
        assert self.atoms is not None
        periodic = bool(self.atoms.pbc.all())
        if "stress" in properties and not periodic:
            raise base.PropertyNotImplementedError("stress: the structure is not periodic")
        structure = self._structure(self.atoms)
        # Locked, as the predictor grows its neighbor capacity; in the model's precision whatever JAX's default is.
        with self._lock, jax.enable_x64(self.model.precision == "float64"):
            prediction = self._predict(structure)
        count = len(self.atoms)
        energy = np.asarray(prediction.energy, np.float64)[0]  # [m]
        force = np.asarray(prediction.force, np.float64)[0, :, :count]  # [m n 3]
        stress = np.asarray(prediction.stress, np.float64)[0]  # [m 3 3]
        if not (np.isfinite(energy).all() and np.isfinite(force).all()):
            raise base.CalculationFailed("the model gives no finite energy or force; do atoms lie on each other?")
        # in closed form where the method of uncertainty has one, else that of the members
        own, each = (None if x is None else np.asarray(x, np.float64)[0] for x in prediction[4:])
        spread = np.sqrt(force.var(axis=0).sum(axis=-1)) if each is None else each[:count]
        reference = float(self.model.reference[structure.species[0, :count]].sum())
        total = float(energy.mean()) + reference
        self.results = {
            "energy": total,
            "free_energy": total,
            "forces": force.mean(axis=0),
            "force_spread": spread,
            "energy_spread": float(energy.std() if own is None else own),
            "estimated_error": float(self.model.factor * spread.max()) if spread.any() else 0.0,
        }
        if periodic:
            self.results["stress"] = matrix_to_voigt(stress.mean(axis=0))

    def _structure(self, atoms: ase.Atoms) -> Structure:
        if len(atoms) == 0:
            raise InputError("atoms: there are none; give at least one")
        if atoms.pbc.any() and not atoms.pbc.all():
            raise InputError(
                f"atoms.pbc: periodic in {int(atoms.pbc.sum())} directions; use none or three (a slab: three, with "
                "vacuum in the cell)"
            )
        for name, trained in (("charge", self.model.charge), ("spin", self.model.spin)):
            given = atoms.info.get(name, trained)
            if given != trained:
                raise InputError(f"atoms.info[{name!r}]: {given}, but the model was trained at {trained}")
        # Centered (wrapped) in float64: far from the origin float32 would lose the digits that forces need.
        near = atoms.copy()
        if atoms.pbc.all():
            near.wrap()
        else:
            near.positions -= near.positions.mean(axis=0)
        dtype = np.float64 if self.model.precision == "float64" else np.float32
        return from_atoms([near], self.model.table, self.model.charge, self.model.spin, padded_size(len(atoms)), dtype)
