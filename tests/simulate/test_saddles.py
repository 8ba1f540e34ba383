"""Barriers, saddles and vibrations on surfaces in closed form, against what these say themselves."""

import ase
import jax
import numpy as np
import pytest
from ase import units
from ase.vibrations import Vibrations as Oracle
from closed_surfaces import FACTORS, LENGTH, leps_energy, model, well_energy
from scipy.optimize import minimize_scalar

import jaxal
from jaxal.core.errors import InputError
from jaxal.explore.dimer import dimer
from jaxal.simulate import saddle, vibrations
from jaxal.simulate.barrier import Band, along, barrier
from jaxal.simulate.surface import expander, in_double, surface
from jaxal.simulate.walkers import program

pytestmark = pytest.mark.usefixtures("surfaces")
LEPS = model("leps")


def top() -> tuple[float, float]:
    """The symmetric saddle of collinear H3: its bond length, and its height over H + H2."""
    with jax.enable_x64(True):
        stretched = minimize_scalar(lambda r: float(leps_energy(r, r, 2 * r)), bounds=(0.7, 1.3), method="bounded")
        far = minimize_scalar(lambda r: float(leps_energy(r, 50.0, 50.0)), bounds=(0.6, 0.9), method="bounded")
    return float(stretched.x), float(stretched.fun - far.fun)


def reactants(distance: float, left: bool) -> ase.Atoms:
    """H2 and H on a line."""
    x = [0.0, LENGTH, LENGTH + distance] if left else [0.0, distance, distance + LENGTH]
    return ase.Atoms("H3", positions=[[each, 0.02 * row, 0.0] for row, each in enumerate(x)])


def test_a_barrier_is_that_of_the_surface_with_what_each_member_says():
    length, height = top()
    result = barrier(LEPS, reactants(2.5, True), reactants(2.5, False), images=9, converged=0.02)
    assert result.converged and result.passed == 0
    assert result.forward == pytest.approx(height, abs=2e-3)
    assert result.backward == pytest.approx(result.forward, abs=1e-3)
    assert result.forward_spread == pytest.approx(np.std(FACTORS) * height, rel=1e-2)
    assert result.saddle is not None and result.vibrations is not None
    bonds = [result.saddle.get_distance(0, 1), result.saddle.get_distance(1, 2)]
    np.testing.assert_allclose(bonds, length, atol=1e-3)
    assert result.vibrations.imaginary == 1 and result.joins
    band = Band(result.images, np.zeros(9), converged=True, rests=False)
    left = reactants(2.5, True)
    assert not along(LEPS, band, (left, left)).joins, "the other side has other bonds"
    assert np.argmax(result.energies) == 4 and result.energies[0] == 0


@pytest.mark.slow
def test_dimers_find_the_saddle_and_both_sides_of_it():
    length, height = top()
    guess = ase.Atoms("H3", positions=[[0, 0, 0], [0.85, 0.1, 0], [1.95, 0, 0.1]])
    search = saddle.search(LEPS, [guess], tries=4, steps=400)
    lowest = search.saddles[0]
    distances = np.sort(lowest.atoms.get_all_distances()[np.triu_indices(3, 1)])
    np.testing.assert_allclose(distances[:2], length, atol=1e-3)
    for side in lowest.sides:
        assert side.barrier == pytest.approx(height, abs=5e-3)
        near = np.sort(side.atoms.get_all_distances()[np.triu_indices(3, 1)])
        assert near[0] == pytest.approx(LENGTH, abs=0.01) and near[1] > 1.5
    made, broken = saddle.changes(lowest.sides[0].atoms, lowest.sides[1].atoms)
    assert len(made) == len(broken) == 1
    assert sum(search.failed.values()) + len(search.saddles) == 4


def test_the_hessian_and_the_vibrations_are_those_of_finite_differences(tmp_path):
    atoms = ase.Atoms("H3", positions=[[0, 0, 0], [0.93, 0.05, 0], [1.9, 0, 0.1]])
    shown = vibrations.vibrations(LEPS, atoms)
    other = atoms.copy()
    other.calc = jaxal.Calculator(in_double(LEPS))
    oracle = Oracle(other, name=str(tmp_path / "vib"), delta=1e-3, nfree=4)
    oracle.run()
    numeric = oracle.get_vibrations().get_hessian_2d()
    exact = expander(LEPS)(atoms).hessian[0]
    np.testing.assert_allclose(exact, numeric, atol=2e-4 * np.abs(numeric).max())
    assert len(shown.quanta) == 3
    np.testing.assert_allclose(shown.spread, np.std(np.sqrt(FACTORS)) * np.abs(shown.quanta), rtol=1e-3)


def test_a_diatomic_vibrates_as_its_curvature_says():
    wells = model("wells")
    with jax.enable_x64(True):
        low = minimize_scalar(lambda r: float(well_energy(r)), bounds=(1.6, 2.2), method="bounded").x
        curvature = float(jax.grad(jax.grad(well_energy))(low))
    atoms = vibrations.relaxed(wells, ase.Atoms("H2", positions=[[0, 0, 0], [1.8, 0, 0]]))
    assert atoms.get_distance(0, 1) == pytest.approx(low, abs=1e-3)
    shown = vibrations.vibrations(wells, atoms)
    reduced = atoms.get_masses()[0] / 2
    wanted = units._hbar * units.m * np.sqrt(curvature / reduced) / np.sqrt(units._e * units._amu)
    assert shown.quanta == pytest.approx([wanted], rel=1e-3)
    thermal = vibrations.thermochemistry(wells, atoms, shown, 300.0, 1.0, 2)
    assert thermal.zero_point == pytest.approx(wanted / 2, rel=1e-3)
    assert thermal.free < shown.energy and thermal.entropy > 0


def test_a_free_atom_has_no_vibrations_but_an_entropy():
    """That of Sackur and Tetrode, with two states of its spin."""
    atom = ase.Atoms("H", info={"spin": 1})
    shown = vibrations.vibrations(model("wells"), atom)
    assert shown.quanta.shape == (0,) and shown.modes.shape == (0, 1, 3) and shown.force == 0
    thermal = vibrations.thermochemistry(model("wells"), atom, shown, 298.15, 1.0, 1)
    assert thermal.zero_point == 0
    assert thermal.entropy / units.kB == pytest.approx(114.7 / 8.314, rel=2e-3)  # J/mol/K, NIST


def test_what_cannot_be_is_refused():
    first, second = reactants(2.0, True), reactants(2.0, False)
    with pytest.raises(InputError, match="--images: 2 is too small"):
        barrier(LEPS, first, second, images=2)
    with pytest.raises(InputError, match="--to: its atoms are not those"):
        barrier(LEPS, first, second[:2])
    second.pbc, second.cell = True, 9 * np.eye(3)
    with pytest.raises(InputError, match="not periodic in the same directions"):
        barrier(LEPS, first, second)
    with pytest.raises(InputError, match=r"explore.walkers"):
        program(surface(LEPS), dimer(), (), [first] * 3, 0, 1)
