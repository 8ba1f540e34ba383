"""The equivariant potential: symmetries, derivatives, smoothness, independence of padding and capacity."""

import functools

import jax
import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from scipy.spatial.transform import Rotation

from jaxal.committee import evaluation
from jaxal.data import neighbors
from jaxal.data.structure import from_atoms
from jaxal.potential.equivariant import equivariant
from jaxal.potential.radial import bessel, envelope
from jaxal.potential.repulsion import zbl

pytestmark = pytest.mark.usefixtures("double")
TABLE = (1, 6, 8, 14)
VARIANTS = {
    "default": {"channels": 8},
    "third order": {"channels": 3, "correlation": 3},
    "degree three": {"channels": 2, "l_max": 3, "hidden_l": 2, "radial_hidden": 8},
    "one layer, linear radial": {"channels": 4, "layers": 1, "radial_hidden": 0, "correlation": 1, "hidden_l": 0},
}


def structure_of(atoms, table, size=None):
    return jax.tree.map(lambda x: x[0], from_atoms([atoms], table, size=size, dtype=np.float64))


@functools.cache
def initial(name):
    """A potential and random weights of it, which depend on no structure."""
    potential, spec = equivariant(TABLE, cutoff=4.0, **VARIANTS[name]), neighbors.Spec(4.0, 0.0, 4, (0, 0, 0))
    init = jax.jit(lambda key, s: potential.init(key, s, neighbors.build(spec, s)))
    return potential, init(jax.random.key(1), structure_of(molecule("CH4"), TABLE))


@functools.cache
def system(kind, name):
    """A potential with random weights, a structure and the function (structure) -> (energy, force, stress, feature)."""
    rng = np.random.default_rng(0)
    if kind == "open":
        atoms = molecule("CH3CH2OH")
    else:  # three atoms in a cell much shorter than twice the cutoff
        atoms = bulk("Si", cubic=False)
        atoms.set_cell(atoms.cell.array + rng.normal(0, 0.2, (3, 3)), scale_atoms=True)
    atoms.positions += rng.normal(0, 0.1, atoms.positions.shape)
    potential, params = initial(name)
    structure = structure_of(atoms, TABLE)
    spec = neighbors.plan(structure, 4.0)

    @jax.jit
    def evaluate(structure):
        return evaluation.evaluate(potential, params, structure, neighbors.build(spec, structure))

    return potential, params, structure, spec, lambda structure: jax.device_get(evaluate(structure))


ALIKE = ("third order", "degree three")  # of these the periodic structure runs always, the open one is slow
PAIRS = [(name, kind) for name in VARIANTS for kind in ("open", "periodic")]
EVERY = [
    pytest.param(*pair, marks=pytest.mark.slow if pair[1] == "open" and pair[0] in ALIKE else ()) for pair in PAIRS
]


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_invariance_and_equivariance(kind, name):
    *_, structure, _, evaluate = system(kind, name)
    energy, force, stress, feature = evaluate(structure)
    rng = np.random.default_rng(3)
    for mirror in (1.0, -1.0):
        q = mirror * Rotation.random(random_state=rng).as_matrix()
        turned = structure._replace(position=structure.position @ q.T + 1.7, cell=structure.cell @ q.T)
        new = evaluate(turned)
        scale = np.max(np.abs(force))
        np.testing.assert_allclose(new[0], energy, rtol=1e-10)
        np.testing.assert_allclose(new[1], force @ q.T, atol=1e-10 * scale)
        np.testing.assert_allclose(new[2], q @ stress @ q.T, atol=1e-10 * max(1, np.max(np.abs(stress))))
        np.testing.assert_allclose(new[3], feature, rtol=1e-9, atol=1e-10)
    order = rng.permutation(len(structure.species))
    swapped = structure._replace(position=structure.position[order], species=structure.species[order])
    new = evaluate(swapped)
    np.testing.assert_allclose(new[0], energy, rtol=1e-10)
    np.testing.assert_allclose(new[1], force[order], atol=1e-10 * scale)


@pytest.mark.parametrize("kind", ["open", "periodic"])
def test_forces_and_stress_are_the_slope_of_the_energy(kind):
    _, _, structure, _, evaluate = system(kind, "default")
    _, force, stress, _ = evaluate(structure)
    h = 1e-5
    for atom, axis in ((0, 0), (1, 2)):
        step = np.zeros_like(structure.position)
        step[atom, axis] = h
        ahead, behind = (evaluate(structure._replace(position=structure.position + s * step))[0] for s in (1, -1))
        slope = (ahead - behind) / (2 * h)
        np.testing.assert_allclose(-slope, force[atom, axis], rtol=1e-6, atol=1e-7)
    if kind == "open":
        assert not np.any(stress)
        return
    volume = abs(np.linalg.det(structure.cell))
    for a, b in ((0, 0), (0, 1), (1, 2)):
        strain = np.zeros((3, 3))
        strain[a, b] += 0.5
        strain[b, a] += 0.5
        energies = []
        for s in (h, -h):
            f = np.eye(3) + s * strain
            energies.append(evaluate(structure._replace(position=structure.position @ f, cell=structure.cell @ f))[0])
        np.testing.assert_allclose((energies[0] - energies[1]) / (2 * h) / volume, stress[a, b], rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(stress, stress.T, atol=1e-14)


def test_padding_batch_and_capacity_do_not_matter():
    potential, params, structure, spec, evaluate = system("open", "default")
    energy, force, _, feature = evaluate(structure)
    padded = structure._replace(
        position=np.concatenate([structure.position, np.full((3, 3), 0.3)]),
        species=np.concatenate([structure.species, np.full(3, -1, np.int32)]),
        mass=np.concatenate([structure.mass, np.ones(3)]),
        fixed=np.concatenate([structure.fixed, np.zeros(3, bool)]),
    )
    roomy = spec._replace(capacity=spec.capacity + 5)
    evaluate = jax.jit(lambda s: evaluation.evaluate(potential, params, s, neighbors.build(roomy, s)))
    single = jax.device_get(evaluate(padded))
    np.testing.assert_allclose(single[0], energy, rtol=1e-12)
    np.testing.assert_allclose(single[1][:9], force, atol=1e-12)
    assert not np.any(single[1][9:]) and not np.any(single[3][9:])
    other = structure_of(molecule("CH4"), TABLE, size=12)
    batch = jax.tree.map(lambda *x: np.stack(x), padded, other, padded)
    many = jax.device_get(jax.jit(jax.vmap(evaluate))(batch))
    np.testing.assert_allclose(many[0][[0, 2]], energy, rtol=1e-12)
    np.testing.assert_allclose(many[3][0][:9], feature, rtol=1e-10, atol=1e-12)


def test_an_image_cell_has_the_same_energy_per_atom():
    potential, params, structure, _, evaluate = system("periodic", "default")
    energy, force, stress, _ = evaluate(structure)
    repeat = structure_of(bulk("Si").repeat(1), TABLE)
    doubled = repeat._replace(
        position=np.concatenate([structure.position, structure.position + structure.cell[0]]),
        species=np.concatenate([structure.species] * 2),
        cell=structure.cell * [[2.0], [1.0], [1.0]],
    )
    larger = neighbors.plan(doubled, 4.0)
    twice = jax.jit(lambda s: evaluation.evaluate(potential, params, s, neighbors.build(larger, s)))(doubled)
    np.testing.assert_allclose(twice[0], 2 * energy, rtol=1e-12)
    np.testing.assert_allclose(twice[1], np.concatenate([force, force]), atol=1e-11)
    np.testing.assert_allclose(twice[2], stress, atol=1e-12)


def test_energy_is_smooth_where_a_neighbor_crosses_the_cutoff():
    """Energy, slope and curvature of a dimer are continuous at the cutoff and zero beyond."""
    potential = equivariant((6,), cutoff=3.0, channels=4, repulsion=False)
    carbon = structure_of(Atoms("C2", [[0, 0, 0], [0, 0, 1]]), (6,))
    make = lambda r: carbon._replace(position=r * np.array([[0.0, 0, 0], [1, 0, 0]]))  # noqa: E731
    near = neighbors.build(neighbors.Spec(9.0, 0.0, 1, (0, 0, 0)), make(2.0))
    params = jax.jit(potential.init)(jax.random.key(0), make(2.0), near)
    energy = lambda r: potential.energy(params, make(r), near)[0] - potential.energy(params, make(8.0), near)[0]  # noqa: E731
    slope = jax.grad(energy)
    three = jax.jit(jax.vmap(lambda r: (energy(r), slope(r), jax.grad(slope)(r))))
    for order, values in enumerate(three(np.array([2.5, 3.0 - 1e-5, 3.0, 3.0 + 1e-5]))):
        within, inside, at, beyond = map(float, np.asarray(values))
        assert abs(within) > 1e-4
        assert abs(inside) < 1e-3 and abs(at) < 1e-8, order
        assert beyond == 0.0 if order else abs(beyond) < 1e-14  # rounding: the two energies are of two batches


def test_repulsion_keeps_atoms_apart():
    """ZBL against its published form for carbon at 0.3 Å, and none from the covalent contact on."""
    r, z = 0.3, 6.0
    a = 0.8854 * 0.529177210903 / (2 * z**0.23)
    x = r / a
    phi = 0.18175 * np.exp(-3.1998 * x) + 0.50986 * np.exp(-0.94229 * x)
    phi += 0.28022 * np.exp(-0.4029 * x) + 0.02817 * np.exp(-0.20162 * x)
    contact = 2 * 0.76
    switch = float(envelope(np.float64(r / contact), 1.0))
    species, neighbor, used = np.zeros(2, np.int32), np.zeros((2, 1), np.int32), np.ones((2, 1), bool)
    repulsion = jax.jit(lambda distance: zbl((6,), species, neighbor, distance, used))
    np.testing.assert_allclose(np.sum(repulsion(np.full((2, 1), r))), 14.399645 * z * z / r * phi * switch, rtol=1e-6)
    assert not np.any(repulsion(np.full((2, 1), contact)))


def test_bessel_functions_are_orthonormal():
    r = np.linspace(1e-4, 5.0, 20001)
    b = np.asarray(jax.jit(bessel, static_argnums=(1, 2))(r, 5.0, 4))
    overlap = np.trapezoid(b[:, :, None] * b[:, None, :] * r[:, None, None] ** 2, r, axis=0)
    np.testing.assert_allclose(overlap, np.eye(4), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("batching", ["map", "vmap"])
def test_members_of_a_committee_are_those_of_single_models(batching):
    potential, _, structure, spec, _ = system("open", "default")
    members = evaluation.Committee(potential, 3, batching)
    batch = jax.tree.map(lambda x: np.stack([x, x]), structure)
    batch = batch._replace(position=batch.position * np.array([1.0, 1.02])[:, None, None])
    near = jax.device_get(neighbors.find(spec, batch))
    first_near = jax.tree.map(lambda x: x[0], near)
    params = jax.jit(lambda key: evaluation.init(members, key, structure, first_near))(jax.random.key(5))
    prediction = jax.device_get(jax.jit(lambda p, s, n: evaluation.predict(members, p, s, n))(params, batch, near))
    params = jax.device_get(params)
    alone_of = jax.jit(lambda p, s, n: evaluation.evaluate(potential, p, s, n))
    assert prediction.force.shape == (2, 3, 9, 3) and prediction.stress.shape == (2, 3, 3, 3)
    for b in range(2):
        for m in range(3):
            member = jax.tree.map(lambda x, m=m: x[m], params)
            alone = alone_of(member, *jax.tree.map(lambda x, b=b: x[b], (batch, near)))
            np.testing.assert_allclose(prediction.energy[b, m], alone[0], rtol=1e-11)
            np.testing.assert_allclose(prediction.force[b, m], alone[1], atol=1e-11)
    assert not np.allclose(prediction.energy[:, 0], prediction.energy[:, 1])  # members start out different
