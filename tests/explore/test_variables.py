"""Collective variables against ASE, SciPy and closed forms."""

import functools

import ase
import jax
import numpy as np
import pytest
from ase.build import molecule
from ase.io import write
from scipy.spatial.transform import Rotation
from test_contracts_variables import CELL, structure_of

from jaxal.core.types import InputError
from jaxal.explore.variables import bound

SLANTED = np.array([[5.0, 0, 0], [9.0, 6.0, 0], [7.0, -8.0, 7.0]])  # Å, far from reduced


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def values(choices, start, position=None):
    along = bound(choices, start, "bias.variables")
    return np.asarray(jax.jit(along.values)(structure_of(start.positions if position is None else position, start)))


@pytest.mark.parametrize("cell", [None, CELL, SLANTED], ids=["open", "skewed", "slanted"])
def test_distances_angles_and_torsions_are_those_of_ase(cell):
    """Atoms anywhere in a cell, whose shortest vectors are not those by rounding."""
    rng = np.random.default_rng(0)
    position = rng.uniform(-1, 2, (40, 4, 3)) @ (CELL if cell is None else cell)
    start = ase.Atoms("HOHC", position[0], cell=cell, pbc=cell is not None)
    choices = [
        ("distance", {"atoms": (0, 1)}),
        ("difference", {"pairs": ((0, 1), (2, 3))}),
        ("linear_combination", {"pairs": ((0, 1), (2, 3)), "coefficients": (2.0, 3.0)}),
        ("angle", {"atoms": (0, 1, 2)}),
        ("torsion", {"atoms": (0, 1, 2, 3)}),
    ]
    along = jax.jit(bound(choices, start, "bias.variables").values)
    for place in position:
        atoms = ase.Atoms("HOHC", place, cell=cell, pbc=cell is not None)
        first, second = (atoms.get_distance(*pair, mic=cell is not None) for pair in ((0, 1), (2, 3)))
        bend = np.radians(atoms.get_angle(0, 1, 2, mic=cell is not None))
        turn = np.radians(atoms.get_dihedral(0, 1, 2, 3, mic=cell is not None))
        expected = [first, first - second, 2 * first + 3 * second, bend, (turn + np.pi) % (2 * np.pi) - np.pi]
        np.testing.assert_allclose(along(structure_of(place, start)), expected, atol=1e-6)


def test_coordination_is_the_published_function():
    start = molecule("CH3CH2OH")
    distance = start.get_all_distances()
    x = distance[np.ix_([2], [0, 1, 3])] / 1.7
    published = np.sum((1 - x**6) / (1 - x**12))
    coordination = values([("coordination", {"of": 2, "by": (1, 0, 3), "reach": 1.7})], start)
    np.testing.assert_allclose(coordination, [published], rtol=1e-12)
    pair = ase.Atoms("OH", [[0, 0, 0], [0, 0, 1.7]])  # x = 1: the limit, a half
    np.testing.assert_allclose(
        values([("coordination", {"of": "O", "by": "H", "reach": 1.7})], pair), [0.5], rtol=1e-12
    )


def test_coordination_counts_images_also_those_of_the_atom_itself():
    """Six, twelve and eight images of the only atom of a cubic cell, and no atom itself."""
    start = ase.Atoms("Po", cell=3 * np.eye(3), pbc=True)
    x = np.sqrt([1.0, 2.0, 3.0]) * 3 / 2.5
    expected = np.sum([6, 12, 8] / (1 + x**6))
    coordination = values([("coordination", {"of": "Po", "by": 0, "reach": 2.5})], start, np.array([[7.0, -1.0, 0.2]]))
    np.testing.assert_allclose(coordination, [expected], rtol=1e-12)


SHAPES = {
    "any": np.random.default_rng(1).normal(size=(7, 3)),
    "plane": np.random.default_rng(2).normal(size=(7, 3)) * [1, 1, 0],
    "line": np.outer(np.arange(7.0), [1.0, 2.0, -1.0]),
    "square": np.array([[1.0, 0, 0], [0, 1, 0], [-1, 0, 0], [0, -1, 0], [0, 0, 0], [0, 0, 0], [0, 0, 0]]),
}


@functools.cache
def rmsd_of(shape):
    choices = [("rmsd", {"atoms": None, "reference": None})]
    return jax.jit(bound(choices, ase.Atoms("C7", SHAPES[shape]), "bias.variables").values)


@pytest.mark.filterwarnings("ignore:Optimal rotation is not uniquely")  # of atoms in a line
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("noise", [0.0, 1e-6, 0.3])
@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_rmsd_is_that_of_the_best_rotation(shape, noise, mirror):
    """Against SciPy, whose method is a singular value decomposition; also after half a turn."""
    start = ase.Atoms("C7", SHAPES[shape])
    along = rmsd_of(shape)
    rng = np.random.default_rng(3)
    for turn in (Rotation.identity(), Rotation.from_rotvec([0, 0, np.pi]), Rotation.random(rng=4)):
        place = mirror * turn.apply(SHAPES[shape]) + rng.normal(0, noise, (7, 3)) + [5.0, 0, -3.0]
        from_center = place - place.mean(0), SHAPES[shape] - SHAPES[shape].mean(0)
        expected = Rotation.align_vectors(*from_center)[1] / np.sqrt(7)
        np.testing.assert_allclose(along(structure_of(place, start)), [expected], atol=2e-7)
        single = along(
            jax.tree.map(lambda x: x.astype(np.float32) if x.dtype == float else x, structure_of(place, start))
        )
        np.testing.assert_allclose(single, [expected], atol=3e-5)


def test_rmsd_from_a_file(tmp_path):
    start, other = molecule("H2O"), molecule("H2O")
    other.positions[1] += [0.0, 0.3, 0.1]
    write(tmp_path / "other.xyz", other)
    choices = [("rmsd", {"atoms": None, "reference": tmp_path / "other.xyz"})]
    np.testing.assert_allclose(values(choices, start, other.positions), [0.0], atol=1e-7)
    assert values(choices, start)[0] > 0.05
    write(tmp_path / "other.xyz", other[[1, 0, 2]])
    with pytest.raises(InputError, match=r"^bias\.variables\.reference: .*other\.xyz holds other atoms, or the same"):
        values(choices, start)


def test_several_variables_have_names_units_and_periods_in_order():
    start = molecule("H2O2")
    choices = [("torsion", {"atoms": (2, 0, 1, 3)}), ("distance", {"atoms": (0, 1)}), ("distance", {"atoms": (0, 2)})]
    along = bound(choices, start, "bias.variables")
    assert along.names == ("torsion", "distance", "distance") and along.units == ("rad", "Å", "Å")
    assert along.periods == (2 * np.pi, None, None)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("distance", {"atoms": (0, 3)}, r"atoms: there is no atom 3; the structure has 3 atoms, 0 to 2"),
        ("distance", {"atoms": (1, 1)}, r"atoms: \[1, 1\] names an atom twice"),
        ("difference", {"pairs": ((0, 1), (2, 2))}, r"pairs: \[2, 2\] names an atom twice"),
        ("coordination", {"of": "N", "by": "H", "reach": 1.0}, r"of: the structure has no atoms 'N'; .* of O, H"),
        ("coordination", {"of": "O", "by": ("H", 5), "reach": 1.0}, r"by: there is no atom 5"),
        ("coordination", {"of": (), "by": "H", "reach": 1.0}, r"of: an empty list names no atoms"),
        (
            "linear_combination",
            {"pairs": ((0, 1),), "coefficients": (1.0, 2.0)},
            r"coefficients: 2 for 1 pairs; give one for each pair",
        ),
    ],
)
def test_what_does_not_fit_is_refused(name, options, expected):
    with pytest.raises(InputError, match=rf"^bias\.variables\.{expected}") as caught:
        bound([(name, options)], molecule("H2O"), "bias.variables")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=rf"^bias\.variables\[1\]\.{expected}"):
        bound([("distance", {"atoms": (0, 1)}), (name, options)], molecule("H2O"), "bias.variables")
