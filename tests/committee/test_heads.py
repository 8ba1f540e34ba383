"""Heads on a shared backbone: members are single models, estimated spreads are unbiased, a step trains one head."""

import functools

import ase
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk, molecule
from scipy.special import expit

from jaxal.committee import evaluation, heads
from jaxal.committee.evaluation import Committee
from jaxal.core.types import Label
from jaxal.data import buffer as buffers
from jaxal.data import neighbors
from jaxal.data.structure import from_atoms
from jaxal.deploy import model as models
from jaxal.deploy.calculator import Calculator
from jaxal.potential.equivariant import equivariant
from jaxal.potential.pair import morse
from jaxal.run import initial_labels, training_data
from jaxal.train import fit as training

TABLE = (1, 8, 14)
CUTOFF = 4.0
OPTIONS = {"cutoff": CUTOFF, "channels": 3, "l_max": 1, "layers": 1, "radial": 4, "radial_hidden": 0}
POTENTIAL = equivariant(TABLE, **OPTIONS)


@functools.cache
def system(periodic):
    """Three structures in double precision, their neighbors and how they are found."""
    atoms = bulk("Si") if periodic else molecule("H2O")
    frames = initial_labels.first_structures(atoms, 3, 0)
    structures = from_atoms(frames, TABLE, dtype=np.float64)
    spec = neighbors.plan(structures, CUTOFF)
    return structures, jax.device_get(find(spec, structures)), spec


def random_params(whole, seed=3):
    """Weights with every entry random, biases and shifts too; forces of order 1 eV/Å."""
    rng = np.random.default_rng(seed)
    shapes = evaluation.shapes(whole, "float64")["params"]
    constants = {"scale": np.full(whole.replicas, 1.7), "neighbors": np.full(whole.replicas, 5.0)}
    return {"params": jax.tree.map(lambda x: 0.7 * rng.normal(size=x.shape), shapes), "constants": constants}


find = jax.jit(neighbors.find, static_argnums=0)
predict = jax.jit(evaluation.predict, static_argnums=0)


def predicted(*arguments):
    """Of a committee, on the host."""
    return jax.device_get(predict(*arguments))


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("members", "count", "signs"), [(3, 1, 0), (4, 2, 0), (4, 4, 2)])
def test_structures_in_groups_are_as_those_all_together(members, count, signs, monkeypatch):
    whole = Committee(POTENTIAL, members, "map", count, signs, len(TABLE))
    params = random_params(whole)
    four = jax.tree.map(lambda x: np.concatenate([x, x[:1]]), system(False)[:2])
    together = jax.jit(lambda *arguments: evaluation.predict(whole, *arguments))(params, *four)
    _, atoms, slots = four[1].index.shape
    monkeypatch.setattr(evaluation, "CACHED", 3 * atoms * slots)  # room for three: two divide four
    grouped = jax.jit(lambda *arguments: evaluation.predict(whole, *arguments))
    assert str(jax.make_jaxpr(grouped)(params, *four)).count("length=2") > 0
    for value, other in zip(jax.tree.leaves(grouped(params, *four)), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(value, other, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
@pytest.mark.usefixtures("double")
@pytest.mark.parametrize(("members", "count", "periodic"), [(3, 3, False), (4, 2, True)])
def test_members_are_single_models(members, count, periodic):
    """Against the slope of one head's energy at a time, and that energy against the network written out."""
    structures, near, _ = system(periodic)
    whole = Committee(POTENTIAL, members, "map", count, 0, len(TABLE))
    params = random_params(whole)
    prediction = predicted(whole, params, structures, near)
    wide = predicted(whole._replace(batching="vmap"), params, structures, near)
    for a, b in zip(jax.tree.leaves(prediction), jax.tree.leaves(wide), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10)
    assert prediction.force.shape == (3, members, *structures.position.shape[1:])

    @jax.jit
    def alone(params, head, structures, near):
        single = heads.chosen(POTENTIAL, jnp.full(3, head))
        inner = {**params, "params": params["params"]["backbone"]}
        bare = evaluation.evaluate_batch(POTENTIAL, inner, structures, near)
        return evaluation.evaluate_batch(single, params, structures, near), bare

    species = np.asarray(structures.species)
    for m in range(members):
        mine = jax.tree.map(lambda x, m=m: x[m // count], params)
        (energy, force, stress, feature), bare = alone(mine, m % count, structures, near)
        np.testing.assert_allclose(prediction.energy[:, m], energy, rtol=1e-11)
        np.testing.assert_allclose(prediction.force[:, m], force, atol=1e-11)
        np.testing.assert_allclose(prediction.stress[:, m], stress, atol=1e-12)
        weight = {name: np.asarray(x[m % count]) for name, x in mine["params"]["heads"].items()}
        hidden = np.asarray(feature) @ weight["first"] + weight["bias"]
        hidden = 1.6765 * hidden * expit(hidden)
        atom = np.einsum("bnq,bnq->bn", hidden, np.moveaxis(weight["last"], 0, 1)[species]) + weight["shift"][species]
        np.testing.assert_allclose(energy - bare[0], 1.7 * atom.sum(-1), rtol=1e-10)
    assert np.max(np.std(prediction.force[-1], axis=0)) > 1e-3


@pytest.mark.usefixtures("double")
def test_forces_and_stress_are_slopes_of_the_energies():
    structures, near, spec = system(True)
    whole = Committee(POTENTIAL, 3, "map", 3, 2, len(TABLE))  # of the members' as well, by the test above
    params = random_params(whole)
    prediction = predicted(whole, params, structures, near)
    h = 1e-5  # Å; energies move by less than the step within which signs stay the same
    evaluate = jax.jit(lambda p, s: evaluation.predict(whole, p, s, neighbors.find(spec, s)).energy)

    def slope(change):
        up, down = (np.asarray(evaluate(params, change(step))) for step in (h, -h))
        return (up - down) / (2 * h)

    axis = np.zeros_like(structures.position)
    axis[:, 1, 2] = 1.0
    moved = slope(lambda h: structures._replace(position=structures.position + h * axis))
    np.testing.assert_allclose(-moved, prediction.force[:, :, 1, 2], rtol=1e-6, atol=1e-7)
    strain = np.zeros((3, 3))
    strain[0, 1] = strain[1, 0] = 0.5

    def strained(h):
        bend = np.eye(3) + h * strain
        return structures._replace(position=structures.position @ bend, cell=structures.cell @ bend)

    volume = np.abs(np.linalg.det(structures.cell))[:, None]
    np.testing.assert_allclose(slope(strained) / volume, prediction.stress[:, :, 0, 1], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("count", [2, 5, 8])
def test_combinations_have_mean_zero_and_the_covariance_of_a_population(count):
    draws, number = 4000, 3
    energy = np.broadcast_to(np.arange(draws, dtype=np.float32), (count, draws))  # eV: each of its own signs
    weight = np.asarray(jax.jit(heads.combinations, static_argnums=1)(energy, number))
    assert weight.shape == (number, count, draws)
    np.testing.assert_allclose(weight.sum(1), 0, atol=1e-6)
    signs = (weight - weight.min(1, keepdims=True)) > 0.5 * count**-0.5  # back from the centered weights
    rebuilt = np.where(signs, 1.0, -1.0)
    rebuilt = (rebuilt - rebuilt.mean(1, keepdims=True)) * count**-0.5
    assert np.all(np.isclose(weight, rebuilt, atol=1e-6) | (np.ptp(weight, axis=1, keepdims=True) < 1e-6))
    flat = np.moveaxis(weight, 1, 0).reshape(count, -1)
    population = (np.eye(count) - 1 / count) / count
    error = 5 / np.sqrt(flat.shape[1]) / count
    np.testing.assert_allclose(flat @ flat.T / flat.shape[1], population, atol=error)
    across = weight[0] @ weight[1].T / draws  # combinations of one structure are independent
    np.testing.assert_allclose(across, 0, atol=5 / np.sqrt(draws) / count)


@pytest.mark.usefixtures("double")
def test_the_mean_is_exact_and_the_spread_is_right_on_average():
    """Shifts of the energy draw new signs and change nothing else: the variance averaged over them is the exact one."""
    structures, near, _ = system(False)
    exact = Committee(POTENTIAL, 6, "map", 3, 0, len(TABLE))
    cheap = exact._replace(signs=2)
    params = random_params(exact)
    expected = predicted(exact, params, structures, near)
    draws = 800

    @jax.jit
    def variances(shifts, params, structures, near):
        def sample(shift):
            moved = params["params"]["backbone"]
            moved = params["params"] | {"backbone": moved | {"shift": moved["shift"] + shift}}
            prediction = evaluation.predict(cheap, params | {"params": moved}, structures, near)
            means = prediction.force.mean(1), prediction.stress.mean(1)
            return means, (prediction.energy.var(1), jnp.var(prediction.force, axis=1)), prediction.force

        return jax.lax.map(sample, shifts)

    samples = variances(np.linspace(0.0, 40.0, draws), params, structures, near)
    means, (energy, force), members_of = jax.device_get(samples)
    assert members_of.shape[2] == 8, "two sets of weights, two pairs for each"
    np.testing.assert_allclose(means[0], np.broadcast_to(expected.force.mean(1), means[0].shape), atol=1e-10)
    for variance, right in ((energy, expected.energy.var(1)), (force, np.var(expected.force, axis=1))):
        error = variance.std(0) / np.sqrt(draws)
        assert np.all(np.abs(variance.mean(0) - right) <= 5 * error + 1e-12)
        scale = np.mean(error) / np.mean(right)
        assert scale < 0.06, "the test sees a bias of a few percent"
    assert len(np.unique(np.round(force[:, 1].sum((1, 2)), 12))) > 4, "signs differ between structures"


@pytest.mark.usefixtures("double")
def test_the_same_structure_gets_the_same_signs():
    structures, near, _ = system(False)
    whole = Committee(POTENTIAL, 8, "map", 8, 2, len(TABLE))
    params = random_params(whole)
    prediction = predicted(whole, params, structures, near)
    rows = np.array([1, 2, 1])
    again = predicted(whole, params, *jax.tree.map(lambda x: x[rows], (structures, near)))
    np.testing.assert_allclose(again.force, prediction.force[rows], atol=1e-11)
    repeated = predicted(whole, params, structures, near)
    np.testing.assert_array_equal(prediction.force, repeated.force)
    # a nudge well within a grain changes no sign: the estimate moves as little as the atoms
    nudged = predicted(whole, params, structures._replace(position=structures.position + 1e-7), near)
    np.testing.assert_allclose(nudged.force, prediction.force, atol=1e-5)


def training_set(members):
    """Displaced water with the forces of a Morse potential, held out the fifth; room for eight."""
    frames = initial_labels.first_structures(molecule("H2O"), 6, 0)
    structures = from_atoms(frames, TABLE)
    truth = morse(TABLE, sigma=1.2, epsilon=2.0, alpha=1.5, cutoff=CUTOFF)
    near = find(neighbors.plan(structures, CUTOFF), structures)
    values = jax.jit(lambda s, n: evaluation.evaluate_batch(truth, {}, s, n))(structures, near)
    labels = Label(*values[:3], jnp.ones(6, bool))
    held = np.arange(6) == 4
    return structures, labels, training_data.training_set(structures, labels, held, members, 8, jax.random.key(5), 1.0)


def fitted(whole, params, buffer, spec, steps, recipe):
    state = training.init(recipe, params)

    @jax.jit
    def run(state, buffer):
        count, rate = jnp.asarray(steps, jnp.int32), jnp.asarray(1e-2)
        return training.fit(whole, recipe, spec, state, buffer, jax.random.key(2), count, rate, 0.1 * rate)

    return run(state, buffer)


@pytest.mark.slow
def test_a_step_trains_the_backbone_and_the_heads_that_are_drawn():
    """With all odds on one head, training is that of a single model made of the backbone and that head."""
    structures, labels, buffer = training_set(2)
    spec = neighbors.plan(structures, CUTOFF, 0.0)
    recipe = training.Recipe(batch=3)
    whole = Committee(POTENTIAL, 2, "map", 2, 0, len(TABLE))
    params = training_data.new_params(whole, jax.random.key(1), spec, structures, labels)
    only = buffer._replace(weight=buffer.weight.at[0].set(0.0))
    state, loss = fitted(whole, params, only, spec, 5, recipe)
    single = Committee(heads.chosen(POTENTIAL, jnp.ones(3, jnp.int32)), 1, "map")
    alone, loss_alone = fitted(single, params, buffer._replace(weight=buffer.weight[1:]), spec, 5, recipe)
    assert loss.shape == (1,) and float(loss[0]) == pytest.approx(float(loss_alone[0]), rel=1e-4)
    for a, b in zip(jax.tree.leaves(state.params), jax.tree.leaves(alone.params), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4)
    before, after = params["params"]["heads"], state.params["params"]["heads"]
    for name in before:
        np.testing.assert_array_equal(after[name][:, 0], before[name][:, 0])
        assert not np.array_equal(after[name][:, 1], before[name][:, 1])
    np.testing.assert_array_equal(state.params["constants"]["scale"], params["constants"]["scale"])


@pytest.mark.slow
def test_every_member_learns():
    structures, labels, buffer = training_set(6)
    spec = neighbors.plan(structures, CUTOFF, 0.0)
    whole = Committee(POTENTIAL, 6, "map", 3, 0, len(TABLE))
    params = training_data.new_params(whole, jax.random.key(1), spec, structures, labels)
    near = find(spec, structures)

    def errors(params):
        deviation = predict(whole, params, structures, near).force - labels.force[:, None]
        return np.sqrt(np.mean(deviation[buffers.trainable(buffer)[:6]] ** 2, axis=(0, 2, 3)))

    state, _ = fitted(whole, params, buffer, spec, 1500, training.Recipe(batch=4))
    assert errors(params).shape == (6,) and np.all(errors(state.average) < 0.2 * errors(params))
    assert np.ptp(predict(whole, state.average, structures, near).force[0], axis=0).max() > 1e-3


@pytest.mark.parametrize("signs", [0, 3])
def test_a_model_file_keeps_heads_and_signs(tmp_path, signs):
    with jax.enable_x64(True):
        whole = Committee(POTENTIAL, 4, "auto", 4, signs, len(TABLE))
        params = random_params(whole)
    options = tuple(OPTIONS.items())
    model = models.Model("equivariant", options, TABLE, params, np.zeros(3), "float64", ((0, 0),), 4, signs)
    models.save(tmp_path / "model.npz", model)
    loaded = models.load(tmp_path / "model.npz")
    assert (loaded.heads, loaded.signs) == (4, signs)
    committee = models.committee(loaded)
    assert committee[1:] == whole[1:] and committee.replicas == 1
    atoms = molecule("H2O")
    atoms.positions += 0.1 * np.random.default_rng(1).normal(size=(3, 3))
    atoms.calc = Calculator(tmp_path / "model.npz")
    with jax.enable_x64(True):
        centered: ase.Atoms = atoms.copy()
        centered.positions -= centered.positions.mean(0)
        structures = from_atoms([centered], TABLE, dtype=np.float64)
        near = find(neighbors.plan(structures, CUTOFF), structures)
        direct = predicted(whole._replace(signs=0), params, structures, near)
        np.testing.assert_allclose(atoms.get_forces(), direct.force[0].mean(0), atol=1e-10)
        spread = np.sqrt(np.var(direct.force[0], axis=0).sum(-1))
    if signs:
        assert np.all(atoms.calc.results["force_spread"] < 3 * spread)
    else:
        np.testing.assert_allclose(atoms.calc.results["force_spread"], spread, atol=1e-10)
