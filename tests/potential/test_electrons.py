"""Charge and unpaired electrons as input: off they do not matter at all, on they do, and the symmetries hold."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from scipy.spatial.transform import Rotation

from jaxal.committee import evaluation
from jaxal.core.errors import InputError
from jaxal.data import neighbors
from jaxal.data.structure import from_atoms
from jaxal.potential import electrons
from jaxal.potential.equivariant import equivariant

pytestmark = pytest.mark.usefixtures("double")
TABLE = (1, 8)
SMALL = {"cutoff": 4.0, "channels": 3, "l_max": 1, "radial": 4, "radial_hidden": 0}
IONIZED = 12.5  # eV


def batch_of(*atoms, states=((0, 0),)):
    structures = from_atoms(list(atoms), TABLE, size=6, dtype=np.float64)
    charge, spin = (jnp.asarray(x, jnp.int32) for x in zip(*states, strict=True))
    return jax.device_put(structures)._replace(charge=charge, spin=spin)


def water(seed=0):
    atoms = molecule("H2O")
    atoms.rattle(0.1, seed=seed)
    return atoms


SPEC = neighbors.plan(batch_of(water()), SMALL["cutoff"])._replace(capacity=6)


@functools.cache
def learned():
    """A potential whose weights of charge and spin are as if something had been learned, compiled for batches of three.

    Of these the cation has an offset, too.
    """
    potential = equivariant(TABLE, **SMALL, electrons="on")
    structure = jax.tree.map(lambda x: x[0], batch_of(water()))
    params = jax.jit(potential.init)(jax.random.key(0), structure, neighbors.build(SPEC, structure))
    own, constants = params["params"], params["constants"]
    for number, name in enumerate(("electrons_atom", "electrons_energy")):
        assert not np.any(own[name]), "before anything is learned all surfaces are that of the neutral"
        own[name] = 0.5 * jax.random.normal(jax.random.key(number), own[name].shape)
    constants["offset"] = constants["offset"].at[electrons.row(1, 1)].set(IONIZED)

    @jax.jit
    def evaluate(structures):
        near = neighbors.find(SPEC, structures)
        return evaluation.evaluate_batch(potential, params, structures, near)

    return potential, params, evaluate


def test_off_it_is_blind_and_the_program_is_the_same():
    """A neutral closed shell has the numbers of a potential without the input, whose parameters have nothing of it."""
    _, params, evaluate = learned()
    plain = equivariant(TABLE, **SMALL)
    own = {name: value for name, value in params["params"].items() if not name.startswith("electrons")}
    constants = {name: value for name, value in params["constants"].items() if name != "offset"}
    structures = batch_of(water(), water(1), water(2), states=[(0, 0)] * 3)
    less = {"params": own, "constants": constants}
    near = neighbors.find(SPEC, structures)
    like = jax.eval_shape(plain.init, jax.random.key(0), *jax.tree.map(lambda x: x[0], (structures, near)))
    assert jax.tree.structure(like) == jax.tree.structure(less)
    blind = jax.jit(lambda s: evaluation.evaluate_batch(plain, less, s, near))
    without = blind(structures)
    for mine, other in zip(evaluate(structures), without, strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-12)
    ions = structures._replace(charge=jnp.asarray([1, -1, 2]), spin=jnp.asarray([1, 1, 0]))
    for mine, other in zip(blind(ions), without, strict=True):
        np.testing.assert_array_equal(mine, other)


def test_surfaces_differ_and_each_has_the_symmetries():
    """Three charges of one geometry in a batch; turned, reordered and with garbage in the padding."""
    *_, evaluate = learned()
    states = ((0, 0), (1, 1), (-1, 1))
    structures = batch_of(*[water()] * 3, states=states)
    energy, force, _, feature = evaluate(structures)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert abs(energy[a] - energy[b]) > 1e-2 and np.abs(force[a] - force[b]).max() > 1e-3
        assert np.abs(feature[a] - feature[b]).max() > 1e-3
    triplet = evaluate(structures._replace(spin=jnp.asarray([2, 1, 1])))[0]
    assert abs(triplet[0] - energy[0]) > 1e-2
    np.testing.assert_allclose(triplet[1:], energy[1:], rtol=1e-12)  # nobody else's

    turn = jnp.asarray(Rotation.random(random_state=1).as_matrix())
    order = jnp.asarray([2, 0, 1, 3, 4, 5])
    other = structures._replace(
        position=(structures.position[:, order] @ turn.T + 0.7).at[:, 3:].set(0.3), species=structures.species[:, order]
    )
    new = evaluate(other)
    np.testing.assert_allclose(new[0], energy, rtol=1e-11)
    np.testing.assert_allclose(new[1], force[:, order] @ turn.T, atol=1e-10)
    assert not np.any(new[1][:, 3:]) and not np.any(new[3][:, 3:])

    h = 1e-5
    moved = [structures._replace(position=structures.position.at[:, 1, 2].add(s * h)) for s in (1, -1)]
    slope = (evaluate(moved[0])[0] - evaluate(moved[1])[0]) / (2 * h)
    np.testing.assert_allclose(-slope, force[:, 1, 2], rtol=1e-6, atol=1e-7)


def test_an_ion_is_the_same_beside_something_far_away():
    """Its atoms, their forces and the offset, which counts once: the energy of the two is that of each, to rounding."""
    *_, evaluate = learned()
    both = water(1)
    alone = molecule("H2")
    far = alone.copy()
    far.translate([30.0, 0.0, 0.0])
    both += far
    states = ((1, 1),) * 3
    energy, force, *_ = evaluate(batch_of(both, water(1), alone, states=states))
    np.testing.assert_allclose(force[0, :3], force[1, :3], atol=1e-11)
    once = evaluate(batch_of(Atoms("H"), Atoms("O"), Atoms("OH", [[0, 0, 0], [0, 0, 30]]), states=states))[0]
    # what counts once is what two of anything have beyond the sum of them, with the sign turned
    whole = once[0] + once[1] - once[2]
    assert abs(whole) > IONIZED / 2
    assert float(energy[0]) == pytest.approx(float(energy[1] + energy[2] - whole), abs=1e-10)


def test_inputs_are_bounded():
    assert electrons.check_range(-10, 16) is None
    for charge, spin, words in ((11, 1, "charge: 11 is not"), (-11, 1, "it takes -10 to 10"), (0, 17, "spin: 17")):
        with pytest.raises(InputError, match=words):
            electrons.check_range(charge, spin)
