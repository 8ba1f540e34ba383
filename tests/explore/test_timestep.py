"""Periods of stretches against measured wavenumbers, and which time steps are told to be too long."""

import re

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.constraints import FixAtoms
from ase.units import _c

from jaxal.explore.timestep import fastest, too_long


# harmonic wavenumbers, 1/cm: NIST, constants of diatomic molecules; the highest fundamentals of the others
@pytest.mark.parametrize(
    ("name", "wavenumber"),
    [("H2", 4401), ("HF", 4138), ("HCl", 2991), ("N2", 2359), ("CO", 2170), ("O2", 1580), ("H2O", 3756), ("CH4", 3019)],
)
def test_the_fastest_stretch(name, wavenumber):
    stretch = fastest([molecule(name)])
    assert stretch is not None
    assert stretch.period == pytest.approx(1e15 / (100 * _c * wavenumber), rel=0.12)


def test_isotopes_and_fixed_atoms_are_the_structures_own():
    light = fastest([molecule("H2")])
    heavy, held = molecule("H2"), molecule("H2")
    heavy.set_masses([2 * 1.008] * 2)
    held.set_constraint(FixAtoms([0]))
    assert light and light.elements == "H-H"
    for atoms in (heavy, held):  # a fixed partner doubles the reduced mass
        assert fastest([atoms]).period == pytest.approx(np.sqrt(2) * light.period)
    held.set_constraint(FixAtoms([0, 1]))
    assert fastest([held]) is None


@pytest.mark.parametrize(
    ("atoms", "timestep", "expected"),
    [
        (molecule("H2"), 4.0, r"4 fs is long for the H-H stretch, .* diverges beyond 2\.\d fs, give at most 0\.\d fs"),
        (molecule("H2O"), 2.0, r"2 fs is long for the O-H stretch, .* limit is 2\.\d fs, give at most 0\.9 fs"),
        (Atoms("HO", [[0, 0, 0], [0, 0, 4.0]]), 3.0, r"3 fs is long for the O-H stretch"),  # not bonded yet
        (molecule("CH3CH2OH"), 0.5, ""),
        (molecule("CH3CH2OH"), 1.0, ""),
        (Atoms("OHH", molecule("H2O").positions, masses=[15.999, 2.014, 2.014]), 2.0, ""),
        (bulk("Si", cubic=True), 2.0, ""),
        (bulk("Ar", cubic=True), 10.0, ""),  # held together by less than bonds
        (Atoms("H"), 10.0, ""),
    ],
)
def test_what_is_told_of_a_time_step(atoms, timestep, expected):
    message = too_long([atoms], timestep)
    assert bool(message) == bool(expected) and re.match(expected, message), message
