"""What every registered method of uncertainty promises; registering one makes these run on it.

`members` has nothing to test here: it is the committee itself. What a method's posterior does to its spread is tested
where an update changes the posterior: else it depends on labels, by training, and no training is done here. The
potential is a small one that compiles fast; the model file has the equivariant one.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import molecule
from closed_features import SHELLS as POTENTIAL
from loop_example import SPEC, limits_of, oracle
from scipy.spatial.transform import Rotation

from jaxal.acquire import gate as gates
from jaxal.acquire import select as selects
from jaxal.acquire.kernel import mean_feature
from jaxal.committee import evaluation
from jaxal.committee.evaluation import Committee
from jaxal.core import registry
from jaxal.core.discovery import import_parts
from jaxal.core.types import Label, Lessons, Structure
from jaxal.data import neighbors
from jaxal.data.structure import from_atoms
from jaxal.deploy import model as models
from jaxal.explore.dynamics import nvt_langevin
from jaxal.explore.stepping import per_walker
from jaxal.potential.equivariant import equivariant
from jaxal.program import loop
from jaxal.program import state as states
from jaxal.run import initial_labels, training_data
from jaxal.train import fit as training

import_parts()

TABLE = (1, 8)
OPTIONS = {"cutoff": 4.0, "channels": 4, "l_max": 1, "layers": 1, "radial": 4, "radial_hidden": 0}
NEAR = neighbors.Spec(4.0, 0.0, 4, (0, 0, 0))
ATOMS = 5  # three and two of padding
NAMES = [n for n in registry.names("uncertainty") if registry.get("uncertainty", n)(POTENTIAL, len(TABLE)) is not None]
DTYPES = [jnp.float32, jnp.float64]

every = pytest.mark.parametrize("name", NAMES)
# one that takes as long as all others together
most = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n == "d_optimality" else ()) for n in NAMES]
)
both = pytest.mark.parametrize("dtype", [DTYPES[0], pytest.param(DTYPES[1], marks=pytest.mark.slow)])


@pytest.fixture(autouse=True)
def _double(double):
    """Arrays of both precisions can be made."""


def worst(prediction, structure):
    """Largest force spread of an atom, in closed form where there is one."""
    spread = prediction.force_spread
    square = jnp.sum(jnp.var(prediction.force, axis=0), axis=-1) if spread is None else spread**2
    return jnp.sqrt(jnp.max(square, where=structure.species >= 0, initial=1e-12))


def waters(count, seed, dtype=jnp.float32, stretch=1.0, atoms=ATOMS) -> Structure:
    """Distorted water molecules; what is padded holds numbers that mean nothing."""
    frames = initial_labels.first_structures(molecule("H2O"), count + 1, seed)[1:]  # the first is the molecule itself
    for frame in frames:
        frame.positions *= stretch
    structures = from_atoms(frames, TABLE, size=atoms, dtype=np.dtype(dtype))
    structures.position[:, 3:] = 7.0
    return structures


@jax.jit
def near(structures):
    return neighbors.find(NEAR, structures)


labels_of = jax.jit(oracle)
evaluate_batch = jax.jit(evaluation.evaluate_batch, static_argnums=0)


@functools.cache
def functions(name):
    """(method, learn, update, predict), compiled; `predict` gives both spreads and the whole, on the host."""
    method = registry.get("uncertainty", name)(POTENTIAL, len(TABLE))

    @jax.jit
    def predicted(params, structures, near):
        prediction = method.predict(params, structures, near)
        energy, force = prediction.energy_spread, prediction.force_spread
        energy = jnp.sqrt(jnp.var(prediction.energy, axis=0)) if energy is None else energy
        force = jnp.sqrt(jnp.sum(jnp.var(prediction.force, axis=0), axis=-1)) if force is None else force
        real = structures.species >= 0
        return {"energy": energy, "force": jnp.where(real, force, 0.0)}, prediction

    updated = jax.jit(method.update)

    def predict(params, structures):
        return jax.device_get(predicted(params, structures, near(structures)))

    def update(params, structures, wanted):
        return updated(params, structures, near(structures), wanted)

    return method, jax.jit(method.learn), update, predict


@functools.cache
def init_of(name):
    """One set of weights of a method from a key, compiled."""
    whole = Committee(POTENTIAL, 1, species=len(TABLE), uncertainty=functions(name)[0])
    return jax.jit(lambda *inputs: jax.tree.map(lambda x: x[0], evaluation.init(whole, *inputs)))


@functools.cache
def lessons(dtype) -> Lessons:
    """Five structures trained on, two held out, and two rows of garbage."""
    structures, row = waters(9, 0, dtype), np.arange(9)
    label = labels_of(structures, np.ones(9, bool))
    examples = Lessons(structures, near(structures), label, row < 5, (row >= 5) & (row < 7))

    def spoilt(x):
        x = np.array(x)
        if np.issubdtype(x.dtype, np.floating):
            x[7:] = np.nan
        return x

    return examples._replace(structure=jax.tree.map(spoilt, structures), label=jax.tree.map(spoilt, label))


def first_of(structures):
    """The first of them, with its neighbors."""
    return jax.tree.map(lambda x: x[0], jax.device_get((structures, near(structures))))


@functools.cache
def begun(name, dtype, seed=1):
    """One set of weights with the posterior it begins with."""
    return init_of(name)(jax.random.key(seed), *first_of(waters(1, 0, dtype)))


@functools.cache
def taught(name, dtype, seed=1):
    """The same with a posterior of the training set."""
    params = begun(name, dtype, seed)
    return {**params, "posterior": functions(name)[1](params, lessons(dtype))}


def types_of(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)


def finite(tree):
    return all(np.all(np.isfinite(x)) for x in jax.tree.leaves(tree))


def depends_on_structures_alone(name, dtype=jnp.float32):
    """Whether an update changes the posterior."""
    params = taught(name, dtype)
    new = functions(name)[2](params, waters(2, 3, dtype), np.ones(2, bool))
    return any(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (new, params["posterior"])), strict=True))


@every
@both
def test_types_are_kept_and_everything_is_finite(name, dtype):
    method, _, update, predict = functions(name)
    before, after = begun(name, dtype), taught(name, dtype)
    assert method.update is not None and types_of(before["posterior"]) == types_of(after["posterior"])
    assert all(x.dtype == dtype for x in jax.tree.leaves(before) if jnp.issubdtype(x.dtype, jnp.floating))
    updated = {**after, "posterior": update(after, waters(2, 3, dtype), np.ones(2, bool))}
    assert types_of(updated["posterior"]) == types_of(after["posterior"])
    for params in (before, after, updated):
        spreads, prediction = predict(params, waters(2, 3, dtype))
        leaves = jax.tree.leaves((spreads, prediction))
        assert finite(params["posterior"]) and finite(leaves) and all(x.dtype == dtype for x in leaves)
    members = prediction.energy.shape[0]
    assert prediction.energy.shape == (members, 2) and prediction.force.shape == (members, 2, ATOMS, 3)
    assert prediction.stress.shape == (members, 2, 3, 3) and prediction.feature.shape[:2] == (2, ATOMS)
    assert spreads["energy"].shape == (2,) and spreads["force"].shape == (2, ATOMS)
    sure, unsure = spreads, predict(after, waters(2, 3, dtype))[0]
    assert np.all(unsure["energy"] > 0) and np.all(unsure["force"][:, :3] > 0)
    assert np.all(sure["energy"] > 0) and np.all(sure["force"][:, :3] >= 0)  # what is in the posterior may be certain


@most
def test_the_mean_is_the_plain_model(name):
    """But where a method trains weights of its own, or at random: there only it knows what is plain."""
    method, _, _, predict = functions(name)
    params, structures = taught(name, jnp.float64), waters(2, 4, jnp.float64)
    _, prediction = predict(params, structures)
    plain = jax.eval_shape(POTENTIAL.init, jax.random.key(0), *first_of(structures))
    if method.potential is not None or types_of(plain["params"]) != types_of(params["params"]):
        inner = prediction.force[:, :, :3]
        assert np.all(np.abs(np.sum(inner.mean(0), axis=1)) < 1e-8), "at least no net force"
        return
    own = {kind: params[kind] for kind in plain}
    energy, force, stress, feature = evaluate_batch(POTENTIAL, own, structures, near(structures))
    np.testing.assert_allclose(prediction.energy.mean(0), energy, rtol=1e-10)
    np.testing.assert_allclose(prediction.force.mean(0), force, atol=1e-10)
    np.testing.assert_allclose(prediction.stress.mean(0), stress, atol=1e-10)
    np.testing.assert_allclose(prediction.feature, feature, atol=1e-10)


@every
def test_padding_order_and_orientation_do_not_matter(name):
    predict = functions(name)[3]
    params, structures = taught(name, jnp.float64), waters(2, 5, jnp.float64)
    spreads, prediction = predict(params, structures)

    for garbage in (-3.0, 1e4):
        position = structures.position.copy()
        position[:, 3:] = garbage
        again, other = predict(params, structures._replace(position=position))
        np.testing.assert_allclose(again["force"], spreads["force"], rtol=1e-6)
        np.testing.assert_allclose(again["energy"], spreads["energy"], rtol=1e-6)
        np.testing.assert_allclose(other.force[:, :, :3], prediction.force[:, :, :3], atol=1e-10)
    bare = structures._replace(position=structures.position[:, :3], species=structures.species[:, :3])
    np.testing.assert_allclose(predict(params, bare)[0]["force"], spreads["force"][:, :3], rtol=1e-6)

    order = np.array([2, 3, 0, 4, 1])
    mixed = structures._replace(position=structures.position[:, order], species=structures.species[:, order])
    again, _ = predict(params, mixed)
    np.testing.assert_allclose(again["force"], spreads["force"][:, order], rtol=1e-6)
    np.testing.assert_allclose(again["energy"], spreads["energy"], rtol=1e-6)

    turn = Rotation.random(rng=3).as_matrix()
    again, other = predict(params, structures._replace(position=structures.position @ turn.T + 0.7))
    np.testing.assert_allclose(again["force"], spreads["force"], rtol=1e-6)
    np.testing.assert_allclose(again["energy"], spreads["energy"], rtol=1e-6)
    np.testing.assert_allclose(other.force[:, :, :3], prediction.force[:, :, :3] @ turn.T, atol=1e-9)


@every
def test_forces_of_pseudo_members_are_slopes_of_their_energies(name):
    predict = functions(name)[3]
    params, structures = taught(name, jnp.float64), waters(2, 6, jnp.float64)

    def energy(shift):
        position = structures.position.copy()
        position[0, 1, 2] += shift
        return predict(params, structures._replace(position=position))[1].energy[:, 0]

    slope = (energy(1e-4) - energy(-1e-4)) / 2e-4
    np.testing.assert_allclose(predict(params, structures)[1].force[:, 0, 1, 2], -slope, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@every
def test_sets_of_weights_are_mapped_or_batched_alike(name):
    method = functions(name)[0]
    params = jax.tree.map(lambda *x: jnp.stack(x), taught(name, jnp.float64, 1), taught(name, jnp.float64, 2))
    structures = waters(2, 7, jnp.float64)
    whole = Committee(POTENTIAL, 2, "map", species=len(TABLE), uncertainty=method)
    run = jax.jit(evaluation.predict, static_argnums=0)
    mapped = run(whole, params, structures, near(structures))
    batched = run(whole._replace(batching="vmap"), params, structures, near(structures))
    for a, b in zip(jax.tree.leaves(mapped), jax.tree.leaves(batched), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-9)
    assert np.all(np.isfinite(mapped.energy)) and mapped.energy.shape[0] == 2 and mapped.energy.shape[1] % 2 == 0

    alone = taught(name, jnp.float64, 2)["posterior"]
    for key, value in jax.jit(jax.vmap(method.learn, (0, None)))(params, lessons(jnp.float64)).items():
        np.testing.assert_allclose(value[1], alone[key], rtol=1e-6, atol=1e-8, err_msg=key)


@every
def test_spreads_have_finite_gradients_also_at_a_trained_structure(name):
    method = functions(name)[0]

    def total(params, structures):
        prediction = method.predict(params, structures, near(structures))
        closed = [x for x in (prediction.energy_spread, prediction.force_spread) if x is not None]
        return (
            sum(map(jnp.sum, closed))
            + jnp.sum(jnp.var(prediction.energy, axis=0))
            + jnp.sum(jnp.var(prediction.force, axis=0))
        )

    slope = jax.jit(jax.grad(lambda position, params, s: total(params, s._replace(position=position))))
    trained = jax.tree.map(lambda x: x[:2], lessons(jnp.float32).structure)
    for params in (begun(name, jnp.float32), taught(name, jnp.float32)):
        for structures in (trained, waters(2, 8)):
            assert finite(np.asarray(slope(structures.position, params, structures))[:, :3])


@every
def test_nothing_wanted_changes_nothing(name):
    _, _, update, _ = functions(name)
    params = taught(name, jnp.float32)
    garbage = waters(2, 9)._replace(position=np.full((2, ATOMS, 3), np.nan, np.float32))
    for structures in (waters(2, 9), garbage):
        for a, b in zip(
            *map(jax.tree.leaves, (update(params, structures, np.zeros(2, bool)), params["posterior"])), strict=True
        ):
            np.testing.assert_array_equal(a, b)


@every
def test_a_trained_structure_is_no_less_certain_than_a_far_one(name):
    if not depends_on_structures_alone(name):
        return
    predict = functions(name)[3]
    params = taught(name, jnp.float32)
    trained, _ = predict(params, jax.tree.map(lambda x: x[:2], lessons(jnp.float32).structure))
    far, _ = predict(params, waters(2, 10, stretch=1.4))
    for kind in ("energy", "force"):
        assert np.max(trained[kind]) < np.min(np.max(far[kind].reshape(2, -1), axis=1)), kind


@every
def test_an_update_lowers_the_spread_of_what_it_adds_and_reads_that_alone(name):
    if not depends_on_structures_alone(name):
        return
    _, _, update, predict = functions(name)
    params, far = taught(name, jnp.float64), waters(2, 11, jnp.float64, stretch=1.4)
    before, _ = predict(params, far)
    after, _ = predict({**params, "posterior": update(params, far, np.array([True, False]))}, far)
    assert after["energy"][0] < before["energy"][0]
    assert np.max(after["force"][0]) < np.max(before["force"][0])
    spoilt = far._replace(position=far.position * np.array([1.0, np.nan])[:, None, None])
    again, _ = predict({**params, "posterior": update(params, spoilt, np.array([True, False]))}, far)
    for kind in ("energy", "force"):
        np.testing.assert_allclose(again[kind], after[kind], rtol=1e-6)


@every
def test_an_empty_training_set_is_finite(name):
    _, learn, update, predict = functions(name)
    none = lessons(jnp.float32)._replace(trained=np.zeros(9, bool), held=np.zeros(9, bool))
    params = begun(name, jnp.float32)
    params = {**params, "posterior": learn(params, none)}
    assert finite(params["posterior"]) and finite(predict(params, waters(2, 12)))
    params = {**params, "posterior": update(params, waters(2, 12), np.ones(2, bool))}
    assert finite(params["posterior"]) and finite(predict(params, waters(2, 12)))
    trained_alone = none._replace(trained=np.arange(9) < 4)
    params = {**params, "posterior": learn(params, trained_alone)}
    assert finite(params["posterior"]) and finite(predict(params, waters(2, 12)))


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "laplace" else pytest.mark.slow) for n in NAMES])
def test_a_model_file_keeps_the_method(name, tmp_path):
    """With the equivariant potential, in single precision; of structures that are new to it, since what is left of a
    variance that is almost all explained is rounding."""
    with jax.enable_x64(False):
        potential = equivariant(TABLE, **OPTIONS)
        method = registry.get("uncertainty", name)(potential, len(TABLE))
        structures, unseen = waters(4, 13, atoms=3), waters(4, 14, atoms=3)
        others = unseen, near(unseen)
        examples = Lessons(
            structures,
            near(structures),
            labels_of(structures, np.ones(4, bool)),
            np.arange(4) < 3,
            np.arange(4) == 3,
        )

        @jax.jit
        def made(key, examples, others):
            first = jax.tree.map(lambda x: x[0], examples[:2])
            params = method.init(key, potential.init(key, *first), *first)
            params = {**params, "posterior": method.learn(params, examples)}
            return params, method.predict(params, *others)

        params, direct = made(jax.random.key(0), examples, others)
    model = models.Model(
        potential="equivariant",
        options=tuple(OPTIONS.items()),
        table=TABLE,
        params=jax.tree.map(lambda x: x[None], jax.device_get(params)),
        reference=np.zeros(2),
        precision="float32",
        states=((0, 0),),
        uncertainty=name,
        uncertainty_options=(),
    )
    models.save(tmp_path / "model.npz", model)
    loaded = models.load(tmp_path / "model.npz")
    assert loaded.uncertainty == name and set(loaded.params) == set(params)
    prediction = jax.device_get(models.predictor(loaded)(unseen))
    assert prediction.force.dtype == jnp.float32
    np.testing.assert_allclose(np.moveaxis(prediction.force, 1, 0), direct.force, rtol=1e-3, atol=1e-4)
    for spread, expected in (
        (prediction.energy_spread, direct.energy_spread),
        (prediction.force_spread, direct.force_spread),
    ):
        assert (spread is None) == (expected is None)
        if spread is not None:
            np.testing.assert_allclose(spread, expected, rtol=0.05, atol=1e-3)  # a small variance has rounding in it
    assert finite(prediction)


@pytest.mark.slow
@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_one_round_on_the_fly(name, waiting):
    """Dynamics, gate, labels, training and posterior in one program; or what waits for its label in the posterior."""
    with jax.enable_x64(False):
        method = functions(name)[0]
        parts = states.Parts(
            committee=Committee(POTENTIAL, 1, species=len(TABLE), uncertainty=method),
            samplers=(per_walker(nvt_langevin(temperature=300.0)),),
            score=worst,
            gate=gates.conformal(target_error=1e-6),
            kernel=mean_feature,
            select=selects.top_k,
            label=None if waiting else oracle,
        )
        structures = waters(4, 0, atoms=3)
        labels: Label = labels_of(structures, np.ones(4, bool))
        held = np.array([False, False, True, False])
        buffer = training_data.training_set(structures, labels, held, 1, 16, jax.random.key(1), 1.0)
        params = training_data.new_params(parts.committee, jax.random.key(2), SPEC, structures, labels)
        near = neighbors.Spec(4.0, 0.5, 2, (0, 0, 0))
        group, recipe = states.Group(near, 3, (0, 0)), training.Recipe(batch=2)
        static = states.Static(TABLE, (group,), SPEC, recipe, every=2, looks=2, batch=2, fold=4, queue=8)
        walkers = waters(2, 14, stretch=1.2, atoms=3)  # where none was trained on
        train = training.init(static.recipe, params)
        state = jax.jit(lambda t, b, w: states.start(parts, static, t, b, w, jax.random.key(3)))(train, buffer, walkers)
        after, looks = jax.jit(loop.make_segment(parts, static))(state, limits_of(implausible=1e6, steps=2))
    assert int(after.problems) & states.UNDONE == 0 and not looks.unphysical.any()
    assert types_of(after.train.params) == types_of(state.train.params)
    assert np.all(np.isfinite(looks.estimate)) and np.all(looks.estimate > 0)
    before, now = state.train.average["posterior"], after.train.average["posterior"]
    changed = any(not np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (before, now)), strict=True))
    if waiting:
        assert looks.flagged.any() and changed == depends_on_structures_alone(name)
    else:
        assert int(after.buffer.count) == 8 and looks.ok.all()
        assert changed or not jax.tree.leaves(before)
