"""Loss against its written-out form, reference energies, calibration on fresh and held-out labels, warm start."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from jaxal.acquire.gate import conformal
from jaxal.acquire.score import max_force_spread
from jaxal.committee.evaluation import Committee, evaluate
from jaxal.core.types import Label, Potential
from jaxal.data.neighbors import Spec
from jaxal.data.structure import from_atoms
from jaxal.potential.pair import morse
from jaxal.run import initial_labels, training_data
from jaxal.train import fit as training
from jaxal.train.calibrate import Fresh, Judge, calibrate
from jaxal.train.loss import LossWeights, force_rmse, loss, max_force_error
from jaxal.train.reference import reference_energies


def batch(periodic=False):
    """Two structures of three and two atoms, padded to three, with predictions a known distance from the labels."""
    rng = np.random.default_rng(0)
    structures = from_atoms([molecule("H2O"), molecule("OH")], (1, 8))
    if periodic:
        cell: Any = np.broadcast_to(2.0 * np.eye(3, dtype=np.float32), (2, 3, 3))
        structures = structures._replace(cell=cell, periodic=np.ones((2, 3), bool))  # pyright: ignore[reportArgumentType]
    label = Label(*(rng.normal(size=s).astype(np.float32) for s in ((2,), (2, 3, 3), (2, 3, 3))), np.ones(2, bool))
    guess = [x + rng.normal(size=x.shape).astype(np.float32) for x in label[:3]]
    return jax.device_put((structures, label, guess))


@pytest.mark.parametrize("huber", [None, 0.5])
def test_loss_is_the_weighted_mean_of_penalties(huber):
    structures, label, (energy, force, stress) = batch(periodic=True)
    weights = LossWeights(2.0, 3.0, 5.0, huber)
    value = loss(weights, energy, force, stress, structures, label, jnp.ones((len(energy), 3)))

    def penalty(x):
        x = np.abs(np.asarray(x, float))
        return x**2 if huber is None else np.where(x < huber, x**2, huber * (2 * x - huber))

    atoms = np.array([3, 2])
    expected = 2.0 * np.mean(penalty((energy - label.energy) / atoms))
    errors = np.concatenate([np.ravel((force - label.force)[b, :n]) for b, n in enumerate(atoms)])
    expected += 3.0 * np.mean(penalty(errors))
    expected += 5.0 * np.mean(penalty((stress - label.stress) * (8.0 / atoms)[:, None, None]))
    assert float(value) == pytest.approx(expected, rel=1e-5)


def test_padding_and_unknown_stresses_do_not_count_and_have_finite_gradients():
    structures, label, (energy, force, stress) = batch(periodic=True)
    unknown = label._replace(stress=label.stress.at[0].set(jnp.nan))
    weights = LossWeights(1.0, 1.0, 1.0, None)
    value = lambda f, s: loss(weights, energy, f, s, structures, unknown, jnp.ones((len(energy), 3)))  # noqa: E731
    garbage = force.at[1, 2].set(1e6)
    assert float(value(force, stress)) == pytest.approx(float(value(garbage, stress)))
    slopes = jax.grad(value, argnums=(0, 1))(force, stress)
    assert all(np.all(np.isfinite(s)) for s in slopes)
    assert not np.any(slopes[0][1, 2]) and not np.any(slopes[1][0])
    only = force_rmse(force, structures, label, jnp.array([False, True]))
    assert float(only) == pytest.approx(float(np.sqrt(np.mean((force - label.force)[1, :2] ** 2))), rel=1e-5)
    assert float(max_force_error(garbage, structures, label)[1]) < 1e3


def test_reference_energies_are_least_squares_over_compositions():
    frames = [molecule(name) for name in ("H2O", "H2", "O2", "H2O2")]
    structures = from_atoms(frames, (1, 8))
    energy = [2 * -13.6 - 430, 2 * -13.6, 2 * -430, 2 * -13.6 - 2 * 430]
    np.testing.assert_allclose(reference_energies(structures, energy, 2), [-13.6, -430], rtol=1e-10)
    reference = reference_energies(from_atoms([frames[0]] * 3, (1, 8)), [-30.0] * 3, 2)
    assert np.all(reference < 0) and 2 * reference[0] + reference[1] == pytest.approx(-30.0)


def test_reference_energies_know_isolated_atoms():
    """What isolated atoms leave is the same for all atoms of one composition; several say it by species."""
    frames = [molecule(name) for name in ("H2O", "H2", "O2", "H2O2")]
    structures = from_atoms(frames, (1, 8))
    energy = [2 * -13.6 - 430, 2 * -13.6, 2 * -430, 2 * -13.6 - 2 * 430]
    isolated = {0: -11.0, 1: -425.0}
    np.testing.assert_allclose(reference_energies(structures, energy, 2, isolated), [-13.6, -430], rtol=1e-10)
    water = from_atoms([frames[0]] * 3, (1, 8))
    reference = reference_energies(water, [-456.0] * 3, 2, isolated)
    np.testing.assert_allclose(reference - [-11.0, -425.0], -3.0, rtol=1e-10)
    # of an element that is not known all of what is left
    np.testing.assert_allclose(reference_energies(water, [-456.0] * 3, 2, {0: -11.0}), [-11.0, -434.0], rtol=1e-10)
    np.testing.assert_array_equal(reference_energies(water, [np.nan] * 3, 2, isolated), [-11.0, -425.0])
    # a neutral atom among the structures says nothing of bonded ones, an ion does
    both = from_atoms([frames[0], Atoms("H")], (1, 8))
    np.testing.assert_allclose(reference_energies(both, [-456.0, -11.0], 2, isolated), reference, rtol=1e-10)
    ion = both._replace(charge=np.array([0, -1], np.int32))
    assert abs(reference_energies(ion, [-456.0, -20.0], 2, isolated)[0] - reference[0]) > 1.0
    # what a run has settled stays
    np.testing.assert_allclose(reference_energies(water, [-456.0] * 3, 2, isolated, {0: -13.0}), [-13.0, -430.0])


def test_fresh_labels_keep_the_latest_in_order():
    fresh = Fresh.empty(3, jnp.float32)
    fresh = fresh.push(jnp.array([1.0, 2.0]), jnp.array([10.0, 20.0]), jnp.array([True, False]))
    np.testing.assert_array_equal(fresh.error, [np.nan, np.nan, 10.0])
    fresh = fresh.push(jnp.array([3.0, 4.0, 5.0]), jnp.array([30.0, 40.0, 50.0]), jnp.array([True, True, True]))
    np.testing.assert_array_equal(fresh.error, [30.0, 40.0, 50.0])
    np.testing.assert_array_equal(fresh.score, [3.0, 4.0, 5.0])


class Scaled:
    """A committee whose members are a closed form times a number: every error and spread is known."""

    form = morse((1, 8), sigma=1.2, epsilon=2.0, alpha=1.5, cutoff=4.0)

    @classmethod
    def energy(cls, params, structure, near):
        energy, feature = cls.form.energy({}, structure, near)
        return params * energy, feature

    potential = Potential(lambda *_: jnp.ones(()), lambda p, s, n: Scaled.energy(p, s, n), 4.0)


@pytest.mark.slow
def test_calibration_takes_held_out_and_fresh_labels():
    near = Spec(4.0, 0.0, 2, (0, 0, 0))
    frames = initial_labels.first_structures(molecule("H2O"), 8, 0)
    structures = jax.device_put(from_atoms(frames, (1, 8)))
    truth = jax.vmap(lambda s: evaluate(Scaled.potential, jnp.ones(()), s, training.neighbors.build(near, s)))
    energy, force, stress, _ = jax.jit(truth)(structures)
    labels = Label(energy, force, stress, jnp.ones(8, bool))
    held = np.arange(8) % 2 == 1
    buffer = training_data.training_set(structures, labels, held, 2, 16, jax.random.key(0), 0.0)
    gate = conformal(target_error=0.3, miss_rate=0.2)
    judge = Judge(Committee(Scaled.potential, 2, "vmap"), max_force_spread, gate, near, 6)
    params = jnp.array([1.1, 1.3])  # mean 1.2: error 0.2 |F|, spread 0.1 |F|
    learned, rmse, full = calibrate(judge, gate.init(), params, buffer)
    assert float(learned.factor) == pytest.approx(2.0, rel=1e-3) and not full
    expected = 0.2 * float(jnp.sqrt(jnp.mean(force[held] ** 2)))
    assert float(rmse) == pytest.approx(expected, rel=1e-3)
    # four held-out ratios of 2 and six fresh ones of 5: the 80 % quantile is a fresh one's
    fresh = Fresh(jnp.full(6, 0.1), jnp.full(6, 0.5))
    assert float(calibrate(judge, gate.init(), params, buffer, fresh)[0].factor) == pytest.approx(5.0, rel=1e-3)
    empty = calibrate(judge, gate.init(), params, buffer, Fresh.empty(6, jnp.float32))[0]
    assert float(empty.factor) == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["adamw", "amsgrad"])
def test_training_finds_the_known_parameter_and_goes_on_where_it_was(optimizer):
    near = Spec(4.0, 0.0, 2, (0, 0, 0))
    frames = initial_labels.first_structures(molecule("H2O"), 6, 0)
    structures = jax.device_put(from_atoms(frames, (1, 8)))

    def energy(params, structure, lists):
        return Scaled.energy(params["params"]["scale"], structure, lists)

    potential = Potential(lambda *_: None, energy, 4.0)
    truth = {"params": {"scale": jnp.asarray(0.7)}}
    evaluated = lambda s: evaluate(potential, truth, s, training.neighbors.build(near, s))  # noqa: E731
    values = jax.jit(jax.vmap(evaluated))(structures)
    labels = Label(*values[:3], jnp.ones(6, bool))
    held = np.arange(6) == 5
    buffer = training_data.training_set(structures, labels, held, 2, 6, jax.random.key(0), 1.0)
    recipe = training.Recipe(batch=3, optimizer=optimizer, ema=0.9)
    state = training.init(recipe, {"params": {"scale": jnp.asarray([1.0, 0.3])}})

    @jax.jit
    def run(state, steps, rate):
        key, last = jax.random.key(1), jnp.asarray(0.0)
        return training.fit(Committee(potential, 2), recipe, near, state, buffer, key, steps, rate, last)

    unchanged, _ = run(state, jnp.asarray(0, jnp.int32), jnp.asarray(0.05))
    np.testing.assert_array_equal(unchanged.average["params"]["scale"], np.float32([1.0, 0.3]))
    state, first = run(state, jnp.asarray(100, jnp.int32), jnp.asarray(0.05))
    state, second = run(state, jnp.asarray(100, jnp.int32), jnp.asarray(0.02))
    assert np.all(second < 0.1 * first)
    np.testing.assert_allclose(state.average["params"]["scale"], 0.7, atol=5e-3)
