"""Closed-form potentials against jax-md, matscipy, explicit sums and finite differences."""

import functools

import ase.build
import jax
import numpy as np
import pytest
from matscipy.calculators.manybody import Manybody
from matscipy.calculators.manybody.explicit_forms import StillingerWeber
from matscipy.neighbours import neighbour_list

from jaxal.committee.evaluation import evaluate
from jaxal.core import registry
from jaxal.core.jaxmd import energy as forms
from jaxal.core.types import InputError
from jaxal.data import neighbors
from jaxal.data.structure import from_atoms
from jaxal.potential import pair

ORACLES = ("lennard_jones", "morse", "stillinger_weber")


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def silicon(repeat=2, noise=0.15, strain=0.03):
    """Diamond silicon, atoms shaken, cell sheared."""
    atoms = ase.build.bulk("Si", "diamond", a=5.431, cubic=True).repeat(repeat)
    random = np.random.default_rng(0)
    atoms.positions += noise * random.normal(size=atoms.positions.shape)
    atoms.set_cell(atoms.cell.array @ (np.eye(3) + strain * random.normal(size=(3, 3))), scale_atoms=True)
    return atoms


def prepare(atoms, potential, size=None, dtype=np.float64, skin=0.3):
    structure = from_atoms(atoms, (int(atoms.numbers[0]),), size=size, dtype=dtype)
    spec = neighbors.plan(structure, potential.cutoff, skin)
    listed = neighbors.build(spec, structure)
    assert not bool(listed.overflow)
    return structure, listed


@functools.cache
def potential_of(name):
    """With a short cutoff where it is free: fewer pairs, the same code."""
    return getattr(pair, name)((14,), **({} if name == "stillinger_weber" else {"cutoff": 5.5}))


compiled = jax.jit(lambda potential, s, n: evaluate(potential, {}, s, n), static_argnums=0)


def measure(potential, structure, listed):
    """Energy, forces, stress and feature."""
    return jax.device_get(compiled(potential, structure, listed))


@pytest.mark.parametrize("name", ORACLES)
@pytest.mark.parametrize("repeat", [1, 2])  # one cubic cell is shorter than twice the cutoff
def test_forces_and_stress_are_finite_differences(name, repeat):
    potential = potential_of(name)
    atoms = silicon(repeat)
    structure, listed = prepare(atoms, potential)
    energy, force, stress, feature = measure(potential, structure, listed)
    np.testing.assert_allclose(np.sum(feature), energy, rtol=1e-12)
    assert feature.shape == (len(atoms), 1)

    def value(moved):
        return measure(potential, moved, listed)[0]

    h = 1e-5
    random = np.random.default_rng(1)
    for _ in range(3):
        direction = random.normal(size=structure.position.shape)
        ends = [value(structure._replace(position=structure.position + sign * h * direction)) for sign in (1, -1)]
        assert -(ends[0] - ends[1]) / (2 * h) == pytest.approx(np.sum(force * direction), rel=1e-6, abs=1e-6)
    for i, j in ((0, 0), (1, 2), (2, 0)):
        strain = np.zeros((3, 3))
        strain[i, j] += 0.5
        strain[j, i] += 0.5
        ends = []
        for sign in (1, -1):
            deformed = np.eye(3) + sign * h * strain
            ends.append(
                value(structure._replace(position=structure.position @ deformed, cell=structure.cell @ deformed))
            )
        slope = (ends[0] - ends[1]) / (2 * h) / atoms.get_volume()
        assert slope == pytest.approx(float(stress[i, j]), rel=1e-6, abs=1e-9)


def test_stillinger_weber_is_jax_mds():
    from jax_md import space  # here: after jaxal.core.jaxmd, which leaves out what takes long to import

    potential = potential_of("stillinger_weber")
    atoms = silicon()
    structure, listed = prepare(atoms, potential)
    displacement, _ = space.periodic_general(atoms.cell.array.T, fractional_coordinates=False)
    theirs = forms.stillinger_weber(displacement)
    energy, slope = jax.jit(jax.value_and_grad(theirs))(structure.position)
    mine, force, _, _ = measure(potential, structure, listed)
    # jax-md adds 1e-7 Å to the lengths in its cosine
    assert float(mine) == pytest.approx(float(energy), rel=1e-7)
    np.testing.assert_allclose(force, -np.asarray(slope), atol=2e-6)


@pytest.mark.parametrize("repeat", [1, 2])
def test_stillinger_weber_is_matscipys(repeat):
    potential = potential_of("stillinger_weber")
    atoms = silicon(repeat)
    structure, listed = prepare(atoms, potential)
    parameters = {"el": "Si", "epsilon": 2.16826, "sigma": 2.0951, "costheta0": 1 / 3, "p": 4, "a": 3.77118 / 2.0951}
    parameters |= {"A": 7.049556277, "B": 0.6022245584, "lambda1": 21.0, "gamma": 1.2}
    atoms.calc = Manybody(**StillingerWeber(parameters))
    energy, force, stress, _ = measure(potential, structure, listed)
    assert float(energy) == pytest.approx(atoms.get_potential_energy(), rel=1e-9)
    np.testing.assert_allclose(force, atoms.get_forces(), atol=1e-8)
    np.testing.assert_allclose(stress, atoms.get_stress(voigt=False), atol=1e-10)


def test_stillinger_weber_of_perfect_silicon():
    """The paper's scaling: diamond silicon is bound by 2 epsilon per atom at a lattice constant of 5.4310 Å."""
    potential = potential_of("stillinger_weber")
    structure, listed = prepare(ase.build.bulk("Si", "diamond", a=5.43095, cubic=True), potential)
    energy, force, stress, _ = measure(potential, structure, listed)
    assert float(energy) / 8 == pytest.approx(-2 * 2.16826, rel=1e-5)
    np.testing.assert_allclose(force, 0, atol=1e-12)
    np.testing.assert_allclose(stress, 0, atol=2e-5)


def closed(name, r):
    """The textbook formula and its negative slope, without a cutoff."""
    if name == "lennard_jones":
        sigma, epsilon = 3.405, 0.010324
        return 4 * epsilon * ((sigma / r) ** 12 - (sigma / r) ** 6), 24 * epsilon / r * (
            2 * (sigma / r) ** 12 - (sigma / r) ** 6
        )
    sigma, depth, alpha = 2.866, 0.3429, 1.3588
    x = np.exp(-alpha * (r - sigma))
    return depth * (x**2 - 2 * x), 2 * alpha * depth * (x**2 - x)


@pytest.mark.parametrize("name", ["lennard_jones", "morse"])
def test_pairs_inside_are_the_textbook_form(name):
    potential = potential_of(name)
    for r in (2.5, 3.9):
        structure, listed = prepare(ase.Atoms("Si2", [[0, 0, 0], [r * 0.6, 0, r * 0.8]]), potential)
        energy, force, stress, _ = measure(potential, structure, listed)
        value, push = closed(name, r)
        assert float(energy) == pytest.approx(value, rel=1e-12)
        np.testing.assert_allclose(force[1], push * np.array([0.6, 0, 0.8]), rtol=1e-10)
        np.testing.assert_array_equal(stress, 0)


@pytest.mark.parametrize("name", ["lennard_jones", "morse"])
def test_pairs_of_a_crystal_are_the_sum_over_all_images(name):
    """Against a sum over matscipy's neighbors, with the switch written out, in a cell of two atoms."""
    potential = potential_of(name)
    cutoff, width = potential.cutoff, 1.5
    atoms = ase.build.bulk("Si", "hcp", a=3.1, c=5.0)
    atoms.positions += 0.1 * np.random.default_rng(2).normal(size=(2, 3))
    structure, listed = prepare(atoms, potential)
    r = neighbour_list("d", atoms, cutoff)
    x = np.clip((r - cutoff + width) / width, 0, 1)
    expected = 0.5 * np.sum(closed(name, r)[0] * (1 - 10 * x**3 + 15 * x**4 - 6 * x**5))
    assert float(measure(potential, structure, listed)[0]) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("name", ORACLES)
def test_energy_and_two_derivatives_vanish_at_the_cutoff(name):
    potential = potential_of(name)
    cutoff = potential.cutoff
    structure, listed = prepare(ase.Atoms("Si2", [[0, 0, 0], [cutoff - 0.1, 0, 0]]), potential)

    def two(r):
        return potential.energy({}, structure._replace(position=r * np.array([[0.0, 0, 0], [1, 0, 0]])), listed)[0]

    slope = jax.grad(two)
    three = jax.jit(lambda r: (two(r), slope(r), jax.grad(slope)(r)))
    for near, beyond, well in zip(*map(three, (cutoff - 1e-5, cutoff + 1e-5, 0.8 * cutoff)), strict=True):
        assert abs(float(near)) < 1e-4 * max(abs(float(well)), 1e-2)
        assert float(beyond) == 0.0
    if name != "stillinger_weber":  # and nothing jumps where the switch begins
        onset = cutoff - 1.5
        for before, after in zip(three(onset - 1e-6), three(onset + 1e-6), strict=True):
            assert float(before) == pytest.approx(float(after), rel=1e-3)


@pytest.mark.parametrize("name", ORACLES)
def test_padding_and_order_do_not_matter(name):
    potential = potential_of(name)
    atoms = silicon(1)
    structure, listed = prepare(atoms, potential)
    energy, force, stress, feature = measure(potential, structure, listed)

    padded, _ = prepare(atoms, potential, size=11)
    padded = padded._replace(position=np.concatenate([padded.position[:8], np.arange(9.0).reshape(3, 3)]))
    listed = neighbors.build(neighbors.plan(padded, potential.cutoff, 0.5), padded)
    wide = measure(potential, padded, listed)
    assert float(wide[0]) == pytest.approx(float(energy), rel=1e-12)
    np.testing.assert_allclose(wide[1][:8], force, atol=1e-12)
    np.testing.assert_array_equal(wide[1][8:], 0)
    np.testing.assert_allclose(wide[2], stress, atol=1e-13)
    np.testing.assert_array_equal(wide[3][8:], 0)

    order = np.random.default_rng(3).permutation(8)
    shuffled, listed = prepare(atoms[order], potential)
    mixed = measure(potential, shuffled, listed)
    np.testing.assert_allclose(mixed[1], force[order], atol=1e-12)
    np.testing.assert_allclose(mixed[3], feature[order], atol=1e-12)


@pytest.mark.parametrize("name", ORACLES)
def test_float32_stays_float32_and_is_close(name):
    potential = potential_of(name)
    atoms = silicon()
    exact = measure(potential, *prepare(atoms, potential))
    rough = measure(potential, *prepare(atoms, potential, dtype=np.float32))
    assert {x.dtype for x in rough} == {np.dtype(np.float32)}
    assert float(rough[0]) == pytest.approx(float(exact[0]), rel=1e-5)
    np.testing.assert_allclose(rough[1], exact[1], atol=1e-5 * np.max(np.abs(exact[1])))


def test_what_is_refused():
    with pytest.raises(InputError, match="silicon only"):
        pair.stillinger_weber((6, 14))
    for name in ("lennard_jones", "morse"):
        with pytest.raises(InputError, match="width"):
            registry.get("oracle", name)((18,), cutoff=2.0, width=3.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ORACLES)
def test_runs_without_a_host(name):
    """No callback in the program, no parameters, vmap over walkers."""
    potential = potential_of(name)
    atoms = silicon(1)
    structure, listed = prepare(atoms, potential)
    assert potential.init(jax.random.key(0), structure, listed) == {}
    stacked = jax.tree.map(lambda x: np.stack([x, x]), (structure, listed))
    program = jax.make_jaxpr(jax.vmap(lambda s, n: evaluate(potential, {}, s, n)))(*stacked)
    assert "callback" not in str(program)
    energies = jax.jit(jax.vmap(lambda s, n: evaluate(potential, {}, s, n)[0]))(*stacked)
    assert energies[0] == energies[1]
