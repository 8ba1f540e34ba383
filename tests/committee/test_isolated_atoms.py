"""Exact isolated atoms: fragments add up, bonded structures are untouched, slopes are those of finite differences."""

import functools

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from commands import SMALL

from jaxal.committee import evaluation, weights
from jaxal.committee.evaluation import Committee
from jaxal.committee.isolated_atoms import exact_when_isolated, lone_atoms
from jaxal.core import registry
from jaxal.core.discovery import import_file
from jaxal.data import neighbors
from jaxal.data.structure import from_atoms
from jaxal.potential.equivariant import equivariant
from jaxal.train.reference import with_isolated
from jaxal.uncertainty.dropout import dropout

TABLE = (1, 8, 14)
OPTIONS = {"cutoff": 4.0, "channels": 3, "l_max": 1, "layers": 2, "radial": 4, "radial_hidden": 0}
RAW = weights.collected(equivariant(TABLE, **OPTIONS))
EXACT = exact_when_isolated(RAW, TABLE)
BONDED, ISOLATED = np.array([-16.0, -440.0, -100.0]), {0: -13.0, 1: -430.0}  # eV; silicon's is not known
GAIN = np.array([3.0, 10.0, np.nan])
FAR = 50.0  # Å

pytestmark = pytest.mark.usefixtures("double")


def far_apart(numbers):
    return Atoms(numbers=numbers, positions=FAR * np.arange(3 * len(numbers)).reshape(-1, 3) ** 1.1)


find = jax.jit(neighbors.find, static_argnums=0)
evaluate_batch = jax.jit(evaluation.evaluate_batch, static_argnums=0)


def asked(frames, states=None):
    structures = from_atoms(frames, TABLE, dtype=np.float64)
    if states is not None:
        charge, spin = (np.array(x, np.int32) for x in zip(*states, strict=True))
        structures = structures._replace(charge=charge, spin=spin)
    return structures, jax.device_get(find(neighbors.plan(structures, 4.0), structures))


@functools.cache
def params_of(committee, seed=0):
    """Random weights, shifts and biases too, that know the isolated atoms of hydrogen and oxygen."""
    rng = np.random.default_rng(seed)
    shapes = evaluation.shapes(committee, "float64")
    params = jax.tree.map(lambda x: rng.uniform(0.5, 1.5, x.shape), shapes)  # constants, and masks of dropout
    params["params"] = jax.tree.map(lambda x: 0.7 * rng.normal(size=x.shape), shapes["params"])
    return jax.device_get(with_isolated(params, BONDED, ISOLATED))


def single(raw=EXACT):
    return jax.tree.map(lambda x: x[0], params_of(Committee(raw, 1, species=len(TABLE))))


@pytest.mark.slow
def test_the_equivariant_potential_knows_its_isolated_atoms():
    """Without an evaluation; that of structures of one atom is the oracle."""
    params = single()
    own = {name: value for name, value in params.items() if name != "isolated"}
    energy, feature = EXACT.alone(params)
    expected = jax.jit(RAW.energies)(own, *lone_atoms(TABLE, np.float64))
    np.testing.assert_allclose(energy, expected[0], rtol=1e-12)
    np.testing.assert_allclose(feature, expected[1][:, 0], rtol=1e-12, atol=1e-14)
    assert np.all(np.abs(energy) > 1e-3)


COMMITTEES = {
    "full": Committee(EXACT, 3, species=3),
    "heads": Committee(EXACT, 4, heads=4, species=3),
    "signs": Committee(EXACT, 4, heads=4, signs=2, species=3),
    "dropout": Committee(EXACT, 1, species=3, uncertainty=dropout(EXACT, 3, samples=3)),
    "without alone": Committee(exact_when_isolated(RAW._replace(alone=None), TABLE), 2, species=3),
}


def of_bonds():
    import_file(SMALL)
    bonds = registry.get("potential", "bonds")
    return Committee(exact_when_isolated(weights.collected(bonds(TABLE)), TABLE), 2, species=3)


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("heads", "without alone")]


@pytest.mark.parametrize("name", ["full", "signs", "dropout", "bonds", *OTHERS])
def test_fragments_far_apart_have_the_sum_of_their_energies(name):
    """Of all members alike: of atoms what is known of them, of molecules what the members say of each alone."""
    committee = of_bonds() if name == "bonds" else COMMITTEES[name]
    params = params_of(committee)
    atoms, water = far_apart([1, 8, 8]), molecule("H2O")
    both = water + Atoms("OH", positions=[[0, 0, FAR], [0, FAR, 0]])
    said = jax.jit(lambda *batch: evaluation.predict(committee, params, *batch))(*asked([atoms, water, both]))
    energy = np.asarray(said.energy)  # [3 m]
    np.testing.assert_allclose(energy[0], GAIN[0] + 2 * GAIN[1], rtol=1e-10)
    assert np.ptp(energy[1]) > 1e-3 and not np.any(said.force[0])
    force = np.asarray(said.force)
    if committee.signs:  # other signs for each structure: their mean is that of the members
        energy, force = energy.mean(1, keepdims=True), force.mean(1, keepdims=True)
    np.testing.assert_allclose(energy[2], energy[1] + GAIN[0] + GAIN[1], rtol=1e-10)
    np.testing.assert_allclose(force[2, :, :3], force[1, :, :3], atol=1e-10)


def evaluated(potential, frames):
    return jax.device_get(evaluate_batch(potential, single(), *asked(frames)))


def test_bonded_atoms_are_as_without():
    """In molecules, hot ones too, and in a crystal; so are isolated atoms of which nothing is known."""
    hot = molecule("H2O")
    hot.rattle(0.1, seed=1)
    frames = [molecule("H2O"), hot, molecule("SiH4"), bulk("Si"), far_apart([14])]
    for a, b in zip(evaluated(RAW, frames), evaluated(EXACT, frames), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-13, atol=1e-13)


def test_forces_are_slopes_on_the_way_out():
    """Of one bond of water, through the region where its hydrogen atom becomes an isolated one."""
    step, lengths = 1e-4, np.array([1.2, 1.8, 2.3, 2.8, 3.5])

    def frame(length):
        atoms = molecule("H2O")
        atoms.set_distance(0, 1, length, fix=0)
        return atoms

    frames = [frame(length + by) for length in lengths for by in (0.0, step, -step)]
    energy, force, _, _ = evaluated(EXACT, frames)
    away = [atoms.get_distance(0, 1, vector=True) / atoms.get_distance(0, 1) for atoms in frames[::3]]
    slope = (energy[1::3] - energy[2::3]) / (2 * step)
    np.testing.assert_allclose(np.sum(force[::3, 1] * away, axis=-1), -slope, rtol=1e-5, atol=1e-6)
    assert np.all(np.abs(slope) > 1e-3)


WITH_ELECTRONS = exact_when_isolated(weights.collected(equivariant(TABLE, **OPTIONS, electrons="on")), TABLE)


@pytest.mark.parametrize("heads", [1, 3])
def test_neutral_structures_only(heads):
    """Whatever their unpaired electrons; atoms with a charge are as the model has them, without that knowledge."""
    committee = Committee(WITH_ELECTRONS, heads, heads=heads, species=3)
    params = params_of(committee)
    atoms, water = far_apart([1, 8]), molecule("H2O")
    frames = [*[atoms] * 4, far_apart([8]), far_apart([8]), water, water, water + Atoms("O", positions=[[0, 0, FAR]])]
    states = [(0, 0), (0, 2), (1, 1), (-1, 1), (0, 2), (-1, 1), (0, 2), (0, 0), (0, 2)]
    batch = asked(frames, states)
    predicted = jax.jit(lambda params: evaluation.predict(committee, params, *batch))
    energy = np.asarray(predicted(params).energy)
    np.testing.assert_allclose(energy[:2], GAIN[0] + GAIN[1], rtol=1e-10)
    np.testing.assert_allclose(energy[4], GAIN[1], rtol=1e-10)
    np.testing.assert_allclose(energy[8], energy[6] + GAIN[1], rtol=1e-10)
    assert np.all(np.abs(energy[6] - energy[7]) > 1e-3)  # bonded, they have what their electrons cost
    unknown = np.asarray(predicted(with_isolated(params, BONDED, {})).energy)
    charged = [2, 3, 5]
    np.testing.assert_array_equal(energy[charged], unknown[charged])
    assert np.all(np.abs(energy[charged] - energy[[0, 0, 4]]) > 1e-3)
