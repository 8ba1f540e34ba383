"""ASE calculator: a learned potential and how sure its committee is, for anything that runs on ASE.

Needs a model file (or a run folder that holds one) and nothing of the program that made it.
"""

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import ase
import jax
import numpy as np
from ase.calculators import calculator as base

from jaxal.core import plugins
from jaxal.core.devices import ready, refuse_fork
from jaxal.core.types import InputError, Prediction, Structure
from jaxal.data import lattice
from jaxal.data.labels import matrix_to_voigt
from jaxal.deploy import model as models
from jaxal.deploy.structures import electrons_of, placed
from jaxal.uncertainty.bound import bounds

SPREADS = ("force_spread", "energy_spread", "estimated_error", "supported")  # of a model that has one


def padded_size(atoms: int) -> int:
    """Array size for so many atoms: at most a quarter larger (at least a multiple of four).

    Sizes grow geometrically, so a changing number of atoms compiles a handful of programs, not one for each.
    """
    step = max(4, 1 << max(atoms.bit_length() - 3, 0))
    return -(-atoms // step) * step


class Program:
    """A model as a function of structures, compiled when it is first called; any threads may call it.

    Copies share it. In another process it is made anew, with the same room for neighbors: the results are the same.
    """

    def __init__(self, model: models.Model) -> None:
        self.model = model
        self.specs: models.Specs = {}
        self._made()

    def _made(self, sources: Mapping[str, Any] | None = None, files: Sequence[str] = ()) -> None:
        self._sources, self._files = sources, files
        self._lock = threading.Lock()
        self._predict: Callable[[Structure], Prediction] | None = None

    def __call__(self, structure: Structure) -> Prediction:
        """The prediction for a batch of structures, see `model.predictor`. Raises InputError after a fork."""
        refuse_fork()  # before the lock, which a thread of the parent may have held
        # Locked, as the predictor grows its neighbor capacity; in the model's precision whatever JAX's default is.
        with self._lock, jax.enable_x64(self.model.precision == "float64"):
            if self._predict is None:
                for file in self._files:
                    plugins.import_module(file)
                self._predict = models.predictor(self.model, specs=self.specs, sources=self._sources)
            return self._predict(structure)

    def __deepcopy__(self, memo: dict) -> "Program":
        return self

    def __getstate__(self) -> dict[str, Any]:
        model = self.model._replace(params=jax.tree.map(np.asarray, self.model.params))
        sources = {kind: plugins.source_of(kind, getattr(model, kind)) for kind in models.KINDS}
        there = {kind: source for kind, source in sources.items() if source is not None}
        files = [plugins.importable(kind, getattr(model, kind)) for kind, source in there.items() if source.file]
        fields = {kind: source._asdict() for kind, source in there.items()}
        return {"model": model, "specs": dict(self.specs), "sources": fields or self._sources, "files": files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.model, self.specs = state["model"], state["specs"]
        self._made(state["sources"], state["files"])


class Calculator(base.Calculator):
    """The committee mean as ASE calculator, with its spread.

    Parameters
    ----------
    model
        A model file, a run folder holding one, or a `jaxal.deploy.model.Model`.

    `results` hold float64 numbers: energy and free_energy (eV, total), forces [n, 3] (eV/Å), stress [6] (eV/Å^3,
    ASE's sign and order, of what repeats in a cell that has a volume; zero along open directions), force_spread [n]
    (committee standard deviation of each atom's force vector, eV/Å), energy_spread (eV), supported (whether the
    structure is like those that the model was trained on, by its features; False where that is not known) and
    estimated_error (eV/Å): a bound on the largest error of an atom's force, kept with the probability
    `model.calibration.coverage` for structures like those that calibrated it. It is NaN where the model has no bound,
    and infinite where the structure is not supported. A model of one member without a method of uncertainty has no
    spread: the last four are absent.

    Structures repeat in any directions, as `pbc` says. Raises InputError for one that cannot be, for an element the
    model does not know, for a charge or spin in `atoms.info` that it was not trained at, for a number of electrons
    that cannot have its spin, and in a process that was forked from one that uses JAX;
    ase.calculators.calculator.CalculationFailed where the model gives no finite number. Nothing is left in `results`
    of what was refused.

    Threads may share a calculator, or have one each (`share`) for the same compiled program. It can be copied, and
    pickled to other processes that are not forked: the results are the same bits.
    """

    implemented_properties: ClassVar[list[str]] = [
        "energy",
        "free_energy",
        "forces",
        "stress",
        "force_spread",
        "energy_spread",
        "estimated_error",
        "supported",
    ]
    default_parameters: ClassVar[dict[str, Any]] = {}
    ignored_changes: ClassVar[set[str]] = {"initial_charges", "initial_magmoms"}

    def __init__(self, model: str | Path | models.Model) -> None:
        ready()
        super().__init__()
        self.model = model if isinstance(model, models.Model) else models.load(Path(model))
        self._predict: Callable[[Structure], Prediction] = Program(self.model)
        models.committee(self.model)  # what cannot be built is told of here
        self._turn = threading.RLock()
        if not models.has_spread(self.model):
            known = [name for name in type(self).implemented_properties if name not in SPREADS]
            vars(self)["implemented_properties"] = known  # of this calculator alone

    def share(self) -> "Calculator":
        """Another calculator with results of its own and the same compiled program, say for each image of a band."""
        other = copy.deepcopy(self)
        other.reset()
        return other

    def __deepcopy__(self, memo: dict) -> "Calculator":
        other = object.__new__(type(self))
        memo[id(self)] = other
        shared = ("model", "_predict")
        state = self.__getstate__()
        other.__setstate__({name: x if name in shared else copy.deepcopy(x, memo) for name, x in state.items()})
        return other

    def __getstate__(self) -> dict[str, Any]:
        state = {name: x for name, x in vars(self).items() if name not in ("_turn", "get_spin_polarized")}
        # as arrays that any process can hold; the same ones as in the program
        return state | {"model": self.model._replace(params=jax.tree.map(np.asarray, self.model.params))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        base.Calculator.__init__(self)
        vars(self).update(state)
        self._turn = threading.RLock()

    def check_state(self, atoms: ase.Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last calculation, charge and spin included, which ASE does not compare."""
        changes = list(super().check_state(atoms, tol))
        if self.atoms is not None and not changes:
            try:
                same = electrons_of(self.atoms, self.model) == electrons_of(atoms, self.model)
            except InputError:  # told of when it is calculated
                same = False
            changes += [] if same else ["initial_charges", "initial_magmoms"]
        return changes

    def get_property(self, name: str, atoms: ase.Atoms | None = None, allow_calculation: bool = True) -> Any:
        """As of every ASE calculator; threads that share this one take turns."""
        with self._turn:
            asked = self.atoms if atoms is None else atoms
            if name == "stress" and allow_calculation and asked is not None and not _has_stress(asked):
                raise base.PropertyNotImplementedError("stress: the structure has no periodic cell with a volume")
            return super().get_property(name, atoms, allow_calculation)

    def calculate(
        self,
        atoms: ase.Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = base.all_changes,
    ) -> None:
        """Fill `results` for the atoms; all properties come from one evaluation."""
        with self._turn:
            asked = self.atoms if atoms is None else atoms
            self.reset()  # nothing that is refused below keeps the results of other atoms
            if asked is None:
                raise InputError("atoms: there are none; give the structure to calculate")
            structure = placed(self.model, [asked], padded_size(len(asked)), constrained=False).structure
            results = self._results(asked, structure)
            super().calculate(asked, list(properties), list(system_changes))
            self.results = results

    def _results(self, atoms: ase.Atoms, structure: Structure) -> dict[str, Any]:
        prediction = self._predict(structure)
        count = len(atoms)
        energy = np.asarray(prediction.energy, np.float64)[0]  # [m]
        force = np.asarray(prediction.force, np.float64)[0, :, :count]  # [m n 3]
        stress = np.asarray(prediction.stress, np.float64)[0]  # [m 3 3]
        if not (np.isfinite(energy).all() and np.isfinite(force).all()):
            raise base.CalculationFailed("the model gives no finite energy or force; do atoms lie on each other?")
        reference = float(self.model.reference[structure.species[0, :count]].sum())
        total = float(energy.mean()) + reference
        results = {"energy": total, "free_energy": total, "forces": force.mean(axis=0)}
        if _has_stress(atoms):
            results["stress"] = matrix_to_voigt(stress.mean(axis=0))
        if not models.has_spread(self.model):
            return results
        # in closed form where the method of uncertainty has one, else that of the members
        known = prediction.energy_spread, prediction.force_spread, prediction.novelty
        own, each, new = (None if x is None else np.asarray(x, np.float64)[0] for x in known)
        new = np.nan if new is None else float(new)
        spread = np.sqrt(force.var(axis=0).sum(axis=-1)) if each is None else each[:count]
        return results | {
            "force_spread": spread,
            "energy_spread": float(energy.std() if own is None else own),
            "estimated_error": float(bounds(self.model.calibration, spread.max(), new)),
            "supported": bool(new <= 1),
        }


def _has_stress(atoms: ase.Atoms) -> bool:
    """Whether something repeats, in a cell that has a volume."""
    return bool(atoms.pbc.any()) and abs(np.linalg.det(atoms.cell.array)) > lattice.FLAT
