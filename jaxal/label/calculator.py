"""A labeler as a calculator of ASE: to relax, to climb or to run with the reference method itself."""

from typing import Any

import ase
import numpy as np
from ase.calculators.calculator import CalculationFailed, Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from jaxal.core.errors import InputError
from jaxal.data import frames
from jaxal.data.lattice import along_periodic
from jaxal.label.store import conversion
from jaxal.label.task import Backend, LabelError, has_stress


class LabelCalculator(Calculator):
    """The labels of a backend, one for each new structure: energy (eV), forces (eV/Å), and in a cell stress (eV/Å^3).

    The stress is zero along open directions.

    Raises LabelError for what the method cannot treat, and ASE's CalculationFailed, with the reason, where it fails.
    """

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012

    def __init__(self, backend: Backend, charge: int | None = None, spin: int | None = None) -> None:
        """`charge` in e, `spin` the number of unpaired electrons, of every structure; None: as the structure says."""
        super().__init__()
        self.backend, self.charge, self.spin = backend, charge, spin
        self.seconds: list[float] = []  # of each label so far

    def calculate(
        self, atoms: ase.Atoms | None = None, properties: Any = None, system_changes: Any = all_changes
    ) -> None:
        """One label."""
        super().calculate(atoms, properties, system_changes)
        frame = frames.of_atoms(self.atoms, labeled=False)  # pyright: ignore[reportArgumentType]
        try:
            frame = frames.with_electrons(frame, self.charge, self.spin, "calculator")
        except InputError as error:
            raise LabelError(str(error)) from None
        task = conversion.task_of(frame)
        if "stress" in (properties or ()) and not has_stress(task):
            raise PropertyNotImplementedError("stress: the structure has no periodic cell with a volume")
        self.backend.check(task)
        result = self.backend.calculate(task)
        if not result.ok:
            raise CalculationFailed(result.reason)
        self.seconds.append(result.seconds)
        self.results = {"energy": result.energy, "forces": result.force}
        if not np.isnan(result.stress).any():
            self.results["stress"] = full_3x3_to_voigt_6_stress(along_periodic(result.stress, task.cell, task.periodic))
