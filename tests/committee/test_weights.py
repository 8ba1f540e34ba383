"""Parameters of any pytree: a potential sees its own, training changes what is of floating point, a file keeps all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.emt import EMT
from ase.io import write
from odd_potentials import REFUSED, TREES, odd, springs

from jaxal.cli.main import main
from jaxal.committee import weights
from jaxal.committee.evaluation import Committee, init
from jaxal.config.check import check
from jaxal.config.loading import parse
from jaxal.config.schema import Offline
from jaxal.core import registry
from jaxal.core.discovery import import_parts
from jaxal.core.types import InputError, Label
from jaxal.data import neighbors
from jaxal.data.structure import from_atoms
from jaxal.deploy import model as models
from jaxal.deploy.calculator import Calculator
from jaxal.run import initial_labels, training_data
from jaxal.train import fit as training

import_parts()
TABLE = (1, 8)
QUICK = {"equivariant": {"channels": 2, "l_max": 1, "layers": 1, "radial_hidden": 4, "cutoff": 3.0}, "odd": {}}


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(registry._table["potential"], "odd", odd)


@pytest.fixture(scope="module")
def water():
    frames = initial_labels.first_structures(molecule("H2O"), 4, 0)
    structures = from_atoms(frames, TABLE)
    spec = neighbors.plan(structures, 3.0, 0.0)
    return structures, jax.device_get(jax.jit(neighbors.find, static_argnums=0)(spec, structures)), spec


def assert_same(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert (a.dtype, a.shape, np.asarray(a).tobytes()) == (b.dtype, b.shape, np.asarray(b).tobytes())


@pytest.mark.parametrize("tree", TREES)
def test_collections_give_the_potential_its_own_tree_back(tree):
    raw = jax.tree.map(jnp.asarray, TREES[tree][0]())
    params = weights.collections(raw)
    assert type(params) is dict and type(params["params"]) is dict
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(params["params"]))
    assert_same(weights.own_tree(params), raw)
    assert_same(weights.collections(params), params)  # there already
    assert_same(weights.own_tree(raw), raw)  # what a potential's author hands over


@pytest.mark.parametrize("tree", TREES)
def test_any_tree_is_trained_saved_and_loaded_bit_for_bit(registered, tmp_path, water, tree):
    structures, near, spec = water
    committee = Committee(weights.collected(springs(tree)), 2, species=len(TABLE))
    params = init(committee, jax.random.key(0), *jax.tree.map(lambda x: x[0], (structures, near)))
    zeros = (np.zeros(shape, np.float32) for shape in ((4,), structures.position.shape, (4, 3, 3)))
    labels = Label(*zeros, np.ones(4, bool))
    buffer = training_data.training_set(structures, labels, np.arange(4) == 3, 2, 4, jax.random.key(0), 1.0)
    recipe = training.Recipe(batch=2, ema=0.5)
    params = training.normalize(params, labels, structures, 2.0)
    state = training.init(recipe, params)
    fit = jax.jit(lambda *arguments: training.fit(committee, recipe, spec, *arguments)[0])
    rate = jnp.asarray(0.05)
    state = fit(state, buffer, jax.random.key(1), jnp.asarray(20), rate, rate)

    before, after = weights.own_tree(params), weights.own_tree(state.average)
    assert jax.tree.structure(before) == jax.tree.structure(after)
    each = [jax.tree.map(lambda x, row=row: x[row], jax.device_get((before, after))) for row in range(2)]
    assert all(TREES[tree][1](new) < 0.9 * TREES[tree][1](old) for old, new in each)  # the truth has none
    for name in {*params} - {"params"}:
        assert_same(state.average[name], params[name])

    model = models.Model("odd", (("tree", tree),), TABLE, state.average, np.zeros(2), "float32", ((0, 0),))
    models.save(tmp_path / "model.npz", model)
    loaded = models.load(tmp_path / "model.npz")
    assert_same(loaded.params, state.average)
    energies = [Calculator(version).get_potential_energy(molecule("H2O")) for version in (model, loaded)]
    assert energies[0] == energies[1] > 0


@pytest.mark.parametrize("tree", REFUSED)
def test_what_cannot_be_trained_or_kept_is_refused_before_the_first_label(registered, tmp_path, tree):
    (tmp_path / "water.xyz").write_text("3\n\nO 0 0 0.1\nH 0 0.76 -0.47\nH 0 -0.76 -0.47\n")
    raw = {
        "system": {"file": "water.xyz"},
        "potential": {"name": "odd", "tree": tree},
        "label": {"name": "morse", "initial": 4},
        "explore": {"temperature": 300},
    }
    with pytest.raises(InputError, match=REFUSED[tree][1]) as error:
        check(parse(raw, tmp_path))
    assert str(error.value).startswith("potential: ") and "\n" not in str(error.value)


def test_one_member_without_uncertainty_is_trained_from_a_file_and_tells_no_error(registered, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng, frames = np.random.default_rng(0), []
    for _ in range(6):
        atoms = molecule("H2O")
        atoms.positions += rng.normal(scale=0.05, size=(3, 3))
        atoms.calc = EMT()
        atoms.get_forces()
        frames.append(atoms)
    write("data.xyz", frames)
    text = "data: {file: data.xyz}\npotential: {name: odd, tree: named}\ncommittee: {members: 1}\n"
    (tmp_path / "train.yaml").write_text(text + "train: {final_steps: 10, batch: 2}\n")
    assert main(["train", "train.yaml", "--dir", "out"]) == 0
    atoms = molecule("H2O")
    atoms.calc = Calculator("out")
    atoms.get_forces()
    assert set(atoms.calc.results) == {"energy", "free_energy", "forces"}
    assert main(["validate", "out", "--data", "data.xyz"]) == 0
    assert (tmp_path / "out" / "report.html").is_file()
    with pytest.raises(InputError, match=r"committee\.members: 1 has no spread"):  # a run cannot do without
        parse({"system": {"file": "data.xyz"}, "explore": {"temperature": 300}, "committee": {"members": 1}})
    with pytest.raises(InputError, match=r"committee\.members: 1 does not fit committee\.kind = shared"):
        parse({"data": {"file": "data.xyz"}, "committee": {"members": 1, "kind": "shared"}}, cls=Offline)


@pytest.mark.parametrize("name", registry.names("potential"))
def test_every_potential_has_collections_and_a_file_keeps_them(tmp_path, name):
    options = tuple(QUICK[name].items())
    empty = models.Model(name, options, TABLE, {}, np.arange(2.0), "float32", ((0, 0),))
    shapes = models.shapes(empty, 3)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), shapes)
    models.save(tmp_path / "model.npz", empty._replace(params=params))
    assert_same(models.load(tmp_path / "model.npz").params, params)
    # of another potential, and of other options
    for other in (empty._replace(options=(("channels", 3), *options[1:])), empty._replace(table=(1, 6, 8))):
        models.save(tmp_path / "other.npz", other._replace(params=params))
        with pytest.raises(InputError, match=r"^[^\n]*other.npz: (its parameter .* is float32|holds other)[^\n]*$"):
            models.load(tmp_path / "other.npz")
    models.save(tmp_path / "fewer.npz", empty._replace(params=params | {"posterior": {"scale": np.ones(3)}}))
    with pytest.raises(InputError, match=r"holds other parameters .* differ in \['posterior'\]\['scale'\]"):
        models.load(tmp_path / "fewer.npz")


@pytest.mark.parametrize(("off", "words"), [(1, "written by a newer jaxal"), (-1, "written by an older jaxal")])
def test_a_model_of_another_format_is_refused_in_words(registered, tmp_path, monkeypatch, off, words):
    model = models.Model("odd", (), TABLE, np.ones(2, np.float32), np.zeros(2), "float32", ((0, 0),))
    reads, number = models.FORMAT, models.FORMAT + off
    monkeypatch.setattr(models, "FORMAT", number)
    models.save(tmp_path / "model.npz", model)
    monkeypatch.undo()
    with pytest.raises(
        InputError, match=rf"model.npz: {words} \(model format {number}\); this one reads format {reads}"
    ):
        models.load(tmp_path / "model.npz")
