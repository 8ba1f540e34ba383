"""What every registered variable promises; registering one makes these run on it, with options from `OPTIONS`."""

import functools
from typing import Any

import ase
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import molecule
from scipy.spatial.transform import Rotation

from jaxal.core import registry
from jaxal.core.discovery import import_parts
from jaxal.core.types import InputError, Structure, Variables
from jaxal.data.structure import from_atoms, species_table
from jaxal.explore.variables import ATOMS, REFERENCE, SELECTION, bound

import_parts("variable")
# An example of the options that a variable needs, for ethanol: C C O H H H H H H.
OPTIONS: dict[str, dict[str, Any]] = {
    "distance": {"atoms": (0, 2)},
    "difference": {"pairs": ((3, 2), (3, 1))},
    "linear_combination": {"pairs": ((0, 1), (0, 2), (4, 2)), "coefficients": (1.0, -0.5, 2.0)},
    "angle": {"atoms": (0, 1, 2)},
    "torsion": {"atoms": (1, 0, 2, 3)},
    "coordination": {"of": "O", "by": (0, "H")},
    "rmsd": {"atoms": ("C", "O", 3)},
}
CELL = np.array([[11.0, 0, 0], [6.0, 12.0, 0], [-5.0, 7.0, 13.0]])  # Å, skewed
every = pytest.mark.parametrize("name", registry.names("variable"))


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


@functools.cache
def ethanol(periodic: bool) -> ase.Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=1)
    if periodic:
        atoms.set_cell(CELL)
        atoms.pbc = True
    return atoms


def moved() -> np.ndarray:
    """Positions that are not those of the reference, Å."""
    return ethanol(False).positions + np.random.default_rng(2).normal(0, 0.2, (9, 3))


def example(name: str) -> dict[str, Any]:
    options = {option.name: option.default for option in registry.options("variable", name)} | OPTIONS.get(name, {})
    assert not any(value is getattr(value, "empty", ...) for value in options.values()), f"give OPTIONS one of {name}"
    return options


def structure_of(position: Any, start: ase.Atoms, dtype: Any = float, size: int | None = None) -> Structure:
    atoms = start.copy()
    atoms.positions = position
    batch = from_atoms([atoms], species_table([atoms]), size=size, dtype=np.dtype(dtype))
    return jax.tree.map(lambda x: x[0], batch)


@functools.cache
def along_of(name: str, periodic: bool) -> Variables:
    return bound([(name, example(name))], ethanol(periodic), "bias.variables")


@functools.cache
def variable(name: str, periodic: bool):
    """The values of a variable of ethanol at positions [9 3]."""
    structure = structure_of(ethanol(periodic).positions, ethanol(periodic))
    return lambda position: along_of(name, periodic).values(structure._replace(position=position))


@functools.cache
def slope_of(name: str, periodic: bool):
    return jax.jit(jax.jacrev(variable(name, periodic)))


def near(name: str, a: Any, b: Any, periodic: bool) -> None:
    """The same values, but for their period."""
    around = registry.about("variable", name, **example(name)).period
    away = np.asarray(a) - np.asarray(b)
    np.testing.assert_allclose(away - around * np.round(away / around) if around else away, 0.0, atol=1e-9)


@every
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_its_values_have_the_dtype_of_the_positions_and_padding_changes_nothing(name, dtype):
    start = ethanol(True)
    along = along_of(name, True)
    assert len(along.names) == len(along.units) == len(along.periods) and set(along.units) <= {"Å", "rad", ""}
    values = [along.values(structure_of(moved(), start, dtype, size)) for size in (9, 12)]
    assert all(x.shape == (len(along.names),) and x.dtype == dtype for x in values)
    np.testing.assert_allclose(*values, rtol=1e-6)
    np.testing.assert_allclose(values[0], variable(name, True)(moved()), rtol=3e-5, atol=3e-5)


@every
def test_translation_and_rotation_change_nothing(name):
    turn = Rotation.from_euler("xyz", [0.3, -1.2, 2.0]).as_matrix()
    value = variable(name, False)
    near(name, value(moved() @ turn.T + np.array([3.0, -8.0, 1.0])), value(moved()), False)
    near(name, variable(name, True)(moved() + np.array([3.0, -8.0, 1.0])), variable(name, True)(moved()), True)


@every
def test_periodic_images_are_the_same_atom(name):
    shift = np.random.default_rng(3).integers(-3, 4, (9, 3)) @ CELL
    near(name, variable(name, True)(moved() + shift), variable(name, True)(moved()), True)
    value = variable(name, False)
    assert not np.allclose(value(moved() + shift), value(moved()), atol=1e-3), "an open structure has no images"


@every
@pytest.mark.parametrize("periodic", [False, True])
def test_its_gradient_is_that_of_finite_differences(name, periodic):
    value, position, step = variable(name, periodic), moved(), 1e-5
    shift = (np.random.default_rng(4).integers(-2, 3, (9, 3)) @ CELL) if periodic else np.zeros((9, 3))
    slope = np.asarray(slope_of(name, periodic)(position + shift))
    expected = np.zeros(slope.shape)
    for atom, axis in np.ndindex(9, 3):
        small = np.zeros((9, 3))
        small[atom, axis] = step
        expected[:, atom, axis] = (value(position + shift + small) - value(position + shift - small)) / (2 * step)
    assert np.abs(expected).max() > 1e-3
    np.testing.assert_allclose(slope, expected, atol=1e-7)
    np.testing.assert_allclose(slope.sum(1), 0.0, atol=1e-10)


@every
def test_its_gradient_is_finite_where_it_is_not_defined(name):
    slope = slope_of(name, False)
    line = np.outer(np.arange(9.0), [1.0, 0.0, 0.0])
    plane = moved() * [1.0, 1.0, 0.0]
    for position in (np.zeros((9, 3)), line, plane, ethanol(False).positions, np.repeat(moved()[:1], 9, 0)):
        assert np.all(np.isfinite(variable(name, False)(position))) and np.all(np.isfinite(slope(position)))


@every
def test_its_strain_derivative_is_that_of_finite_differences(name):
    """Atoms and cell are deformed together: a barostat feels the variable through its images too."""
    start = ethanol(True)
    values = along_of(name, True).values
    shifted = structure_of(moved() + np.random.default_rng(5).integers(-1, 2, (9, 3)) @ CELL, start)

    @jax.jit
    def strained(strain):
        deformation = jnp.eye(3) + strain
        return values(shifted._replace(position=shifted.position @ deformation, cell=shifted.cell @ deformation))

    slope, step = np.asarray(jax.jit(jax.jacrev(strained))(np.zeros((3, 3)))), 1e-5
    for i, j in np.ndindex(3, 3):
        small = np.zeros((3, 3))
        small[i, j] = step
        np.testing.assert_allclose(slope[:, i, j], (strained(small) - strained(-small)) / (2 * step), atol=1e-6)


@every
def test_atoms_that_are_not_there_are_refused(name):
    options, start = example(name), ethanol(False)

    def replaced(value: Any) -> Any:
        if isinstance(value, tuple):
            return (*value[:-1], replaced(value[-1]))
        return 9

    marked = [o.name for o in registry.options("variable", name) if {ATOMS, SELECTION} & set(marks(o.annotation))]
    assert marked, "a variable names its atoms"
    for option in marked:
        with pytest.raises(InputError, match=rf"^bias\.variables\.{option}: there is no atom 9; .* 9 atoms, 0 to 8"):
            bound([(name, options | {option: replaced(options[option])})], start, "bias.variables")


def marks(annotation: Any) -> list[Any]:
    inner = [mark for each in getattr(annotation, "__args__", ()) for mark in marks(each)]
    return [*(x for x in getattr(annotation, "__metadata__", ()) if x in (ATOMS, SELECTION, REFERENCE)), *inner]
