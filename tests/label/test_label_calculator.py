"""A labeler as a calculator of ASE, beside the calculator that the method brings itself."""

import numpy as np
import pytest
from ase.build import bulk, molecule
from ase.calculators.calculator import CalculationFailed, PropertyNotImplementedError
from ase.optimize import BFGS
from tblite.ase import TBLite

from jaxal.core import registry
from jaxal.core.discovery import import_parts
from jaxal.label.calculator import LabelCalculator
from jaxal.label.task import LabelError

import_parts()


def tblite(**electrons):
    return LabelCalculator(registry.get("labeler", "tblite")(), **electrons)


def test_an_ion_relaxes_as_with_the_methods_own_calculator():
    ends = []
    for calculator in (tblite(charge=1), TBLite(method="GFN2-xTB", charge=1, accuracy=0.1, verbosity=0)):
        atoms = molecule("NH3", calculator=calculator)
        atoms.append("H")
        atoms.positions[-1] = atoms.positions[0] + [0.0, 0.0, 1.1]
        assert BFGS(atoms, logfile=None).run(fmax=1e-3, steps=50)
        ends.append((atoms.get_potential_energy(), atoms.get_angle(1, 0, 4)))
    np.testing.assert_allclose(ends[0][0], ends[1][0], atol=1e-5)
    np.testing.assert_allclose(ends[0][1], ends[1][1], atol=0.1)


def test_stress_in_a_cell_and_one_label_for_each_structure():
    atoms = bulk("Si", "diamond", a=5.3)
    other = atoms.copy()
    atoms.calc, other.calc = tblite(), TBLite(method="GFN2-xTB", accuracy=0.1, verbosity=0)
    np.testing.assert_allclose(atoms.get_stress(), other.get_stress(), atol=1e-6)
    atoms.get_forces(), atoms.get_potential_energy()
    assert len(atoms.calc.seconds) == 1
    atoms.rattle(0.01)
    atoms.get_potential_energy()
    assert len(atoms.calc.seconds) == 2


def test_what_goes_wrong():
    water = molecule("H2O", calculator=tblite())
    with pytest.raises(PropertyNotImplementedError, match="no periodic cell"):
        water.get_stress()
    water.calc = tblite(spin=1)
    with pytest.raises(LabelError, match="spin: 1 unpaired"):
        water.get_potential_energy()
    backend = registry.get("labeler", "tblite")(max_iterations=1)
    water.calc = LabelCalculator(backend)
    with pytest.raises(CalculationFailed, match="converge"):
        water.get_potential_energy()
    assert water.calc.seconds == []
