"""What every registered explorer, potential, oracle and labeler promises; registering a part makes these run on it."""

import functools
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import molecule
from label_programs import write_potcars
from scipy.spatial.transform import Rotation
from structures import plain

from jaxal.committee import evaluation
from jaxal.core import registry
from jaxal.core.discovery import import_parts
from jaxal.core.types import InputError, Structure
from jaxal.data import neighbors
from jaxal.data.structure import from_atoms
from jaxal.deploy import model as models
from jaxal.label.task import OPEN, LabelError, Task

import_parts()

DTYPES = [np.float32, np.float64]
# Options that make a test quick; a part without an entry is tested with its defaults.
QUICK: dict[str, dict[str, Any]] = {
    "equivariant": {"channels": 2, "l_max": 1, "radial_hidden": 4, "cutoff": 4.0},
    "lennard_jones": {"cutoff": 5.0},
}
FILES = Path(tempfile.mkdtemp(prefix="jaxal-contracts-"))  # see the fixture `files`
# What a part cannot be built without.
REQUIRED: dict[str, dict[str, Any]] = {
    "ase": {"calculator": "ase.calculators.emt.EMT"},
    "command": {"command": ["python3", "{input}", "{output}"], "method": "nothing"},
    "espresso": {"pseudopotentials": {"H": Path(__file__)}, "ecutwfc": 20.0},
    "abinit": {"pseudopotentials": {"H": Path(__file__)}, "ecut": 10.0},
    "orca": {"keywords": "PBE def2-SVP"},
    "gaussian": {"route": "PBEPBE/def2SVP"},
    "vasp": {"potcars": {"H": "H", "O": "O"}, "encut": 400.0, "library": FILES / "potcars"},
    "teacher": {"model": FILES / "model.npz"},
}
# Values of options that take no text or number of just any kind.
OTHERS: dict[tuple[str, str], Any] = {
    ("command", "files"): [Path(__file__)],
    ("espresso", "pseudopotentials"): {"O": Path(__file__)},
    ("espresso", "input_data"): {"system": {"vdw_corr": "dft-d3"}},
    ("abinit", "pseudopotentials"): {"O": Path(__file__)},
    ("cp2k", "xc"): "BLYP",
    ("cp2k", "elements"): {"H": {"basis": "TZV2P-MOLOPT-GTH"}},
    ("cp2k", "basis_files"): ["BASIS_ZIJLSTRA"],
    ("psi4", "grid"): (75, 302),
    ("pyscf", "density_fit"): False,
    ("orca", "blocks"): ["%cpcm epsilon 78.4 end"],
    ("vasp", "potcars"): {"H": "H"},
    ("vasp", "library"): FILES / "others",
    ("teacher", "model"): FILES / "other.npz",
    ("teacher", "python"): [sys.executable],
    ("teacher", "address"): "",  # one would have to be at work
}
# Options that only mean something beside others.
BESIDE: dict[tuple[str, str], dict[str, Any]] = {("pyscf", "frozen_core"): {"method": "MP2"}}
# Options of a labeler that do not change its numbers, beyond the last bits.
RESOURCES = {("pyscf", "memory"), ("pyscf", "threads"), ("pyscf", "gpu"), ("nwchem", "memory")}
RESOURCES |= {("psi4", "memory"), ("psi4", "threads"), ("command", "keep")}
RESOURCES |= {(name, option) for name in ("orca", "gaussian") for option in ("nprocs", "memory")}
RESOURCES |= {("vasp", "library"), ("teacher", "python"), ("teacher", "patience"), ("teacher", "address")}
PROGRAMS = ("xtb", "espresso", "nwchem", "cp2k", "abinit", "gpaw", "psi4", "orca", "gaussian", "vasp")
RESOURCES |= {(name, option) for name in PROGRAMS for option in ("keep", "command")}


@pytest.fixture(scope="module", autouse=True)
def files():
    """What some labelers need: POTCAR files of the same and of other contents, models of jaxal for water."""
    for name in ("potcars", "others"):
        (FILES / name).mkdir(parents=True)  # tests of a module may come in two parts
        write_potcars(FILES / name, {"H": 1.0, "O": 6.0})
    potential = ("equivariant", (("cutoff", 3.0), ("channels", 2), ("l_max", 1), ("layers", 1)), (1, 8))
    empty = models.Model(*potential, {}, np.zeros(2), "float32", ((0, 0),))
    part, atoms = models.potential(empty), from_atoms([molecule("H2O")], (1, 8))
    structure = jax.tree.map(lambda x: x[0], atoms)
    near = neighbors.build(neighbors.plan(structure, part.cutoff), structure)
    init = jax.jit(jax.vmap(part.init, (0, None, None)))
    for seed, name in enumerate(("model.npz", "other.npz")):
        params = init(jax.random.split(jax.random.key(seed), 2), structure, near)
        models.save(FILES / name, empty._replace(params=params))
    yield
    shutil.rmtree(FILES)


def every(kind: str):
    return pytest.mark.parametrize("name", registry.names(kind))


# ---------------------------------------------------------------- explorers


MASS = np.array([1.008, 12.011, 15.999, 28.085])  # amu


def frame(dtype, fixed=(False,) * 4) -> Structure:
    """Four atoms in a periodic cell that no explorer refuses."""
    rng = np.random.default_rng(5)
    return plain(
        rng.uniform(0, 6, (4, 3)).astype(dtype),
        np.arange(4, dtype=np.int32),
        np.diag([6.0, 6.5, 7.0]).astype(dtype),
        np.int32(1),
        np.int32(2),
        mass=MASS.astype(dtype),
        fixed=np.array(fixed),
    )


def pull(structure: Structure):
    """Springs to the origin, so that the forces depend on where the atoms are; an isotropic stress."""
    stress = 0.01 * np.eye(3, dtype=structure.cell.dtype)
    return -0.5 * structure.position, stress


@every("explorer")
@pytest.mark.parametrize("dtype", DTYPES)
def test_explorer_keeps_shapes_and_dtypes_through_scan_and_vmap(name, dtype):
    with jax.enable_x64(True):
        explorer = registry.get("explorer", name)(**QUICK.get(name, {}))
        assert explorer.timestep > 0
        start = frame(dtype)
        keys = jax.random.split(jax.random.key(0), 2)

        def step(walker, _):
            proposed = explorer.propose(walker)
            return explorer.advance(walker, proposed, *pull(proposed)), proposed

        def run(key, start):
            begun = explorer.init(key, start, *pull(start), jnp.int32(0))
            ended, seen = jax.lax.scan(step, begun, length=4)  # refuses a state whose types change
            return begun, ended, seen

        begun, ended, seen = jax.jit(jax.vmap(run, (0, None)))(keys, start)
        floats = [np.asarray(x) for x in jax.tree.leaves(ended) if jnp.issubdtype(x.dtype, jnp.floating)]
        assert all(x.dtype == dtype for x in floats)
        np.testing.assert_array_equal(ended.step, [4, 4])
        begun, ended, seen = jax.device_get((begun.structure, ended.structure, seen))
        np.testing.assert_array_equal(begun.position[0], start.position)
        # what was proposed is where the walker stands once it has advanced
        np.testing.assert_array_equal(ended.position, seen.position[:, -1])
        for field in ("species", "charge", "spin"):
            np.testing.assert_array_equal(getattr(ended, field)[0], getattr(start, field))
        assert all(np.all(np.isfinite(x)) for x in floats)
        # other keys, other momenta; and the atoms do move
        assert not np.array_equal(ended.position[0], ended.position[1])
        assert not np.array_equal(ended.position[0], start.position)


@every("explorer")
def test_explorer_leaves_fixed_atoms_where_they_are(name):
    """To the last bit, whatever pulls at them, also where a walker begins anew; the others move."""
    explorer = registry.get("explorer", name)(**QUICK.get(name, {}))
    start = frame(np.float32, fixed=(True, False, True, False))
    held = start.fixed

    def step(walker, _):
        proposed = explorer.propose(walker)
        return explorer.advance(walker, proposed, *pull(proposed)), proposed.position

    @jax.jit
    def run(key, start):
        begun = explorer.init(key, start, *pull(start), jnp.int32(7))
        return begun, *jax.lax.scan(step, begun, length=50)

    begun, ended, seen = run(jax.random.key(1), start)
    assert int(ended.step) == 57
    position = np.asarray(ended.structure.position)
    for place in (*np.asarray(seen), position, np.asarray(ended.engine.position)):
        np.testing.assert_array_equal(place[held], start.position[held])
    for walker in (begun, ended):
        assert not np.any(np.asarray(walker.engine.momentum)[held])
    assert np.all(np.any(position != start.position, axis=1) == ~held)


@every("explorer")
def test_explorer_repeats_itself_to_the_bit_and_goes_on_from_a_state(name):
    explorer = registry.get("explorer", name)(**QUICK.get(name, {}))
    start = frame(np.float32)

    @jax.jit
    def step(walker):
        proposed = explorer.propose(walker)
        return explorer.advance(walker, proposed, *pull(proposed))

    def run(times):
        walker = jax.jit(explorer.init)(jax.random.key(3), start, *pull(start), np.int32(0))
        for _ in range(times):
            walker = step(walker)
        return walker

    def data(tree):
        leaves = jax.tree.leaves(tree)
        return [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in leaves]

    for a, b in zip(data(run(3)), data(step(run(2))), strict=True):
        np.testing.assert_array_equal(a, b)


# ---------------------------------------------------------------- potentials and oracles


def parts_with_energy():
    return [(kind, name) for kind in ("potential", "oracle") for name in registry.names(kind)]


@functools.cache
def built(kind, name):
    """The part and the table it is built for: three elements, or silicon for one that knows nothing else."""
    factory = functools.partial(registry.get(kind, name), **QUICK.get(name, {}))
    for table in ((1, 6, 8), (14,)):
        try:
            return factory(table), table
        except InputError:
            continue
    raise AssertionError(f"{name} knows neither H, C, O nor Si; give this test a table for it")


def atoms_of(table, periodic) -> Structure:
    """Six atoms on a jittered grid; the periodic cell is shorter than twice any cutoff."""
    rng = np.random.default_rng(6)
    grid = 2.0 * np.array([(x, y, z) for x in range(3) for y in range(2) for z in range(1)])
    cell = np.array([[6.0, 0, 0], [0.4, 4.0, 0], [0, 0.3, 3.0]]) * periodic
    return plain(
        grid + rng.normal(0, 0.15, grid.shape),
        (np.arange(6) % len(table)).astype(np.int32),
        cell,
        np.int32(0),
        np.int32(0),
    )


def padded(structure: Structure, by: int, garbage: float) -> Structure:
    position = np.concatenate([structure.position, garbage * np.arange(3.0 * by).reshape(by, 3)])
    species = np.concatenate([structure.species, np.full(by, -1, np.int32)])
    return structure._replace(position=position, species=species)


def padded_batch(structure: Structure) -> tuple[Structure, Structure]:
    """A batch of it with garbage in its padding, as its neighbors are found, and then with a walker gone wrong."""
    batch = jax.tree.map(lambda *x: np.stack(x), *(padded(structure, 2, garbage) for garbage in (0.0, 0.3, 1e4, 0.0)))
    position = batch.position.copy()
    position[3, 0] = np.nan
    return batch, batch._replace(position=position)


def turned(structure: Structure, order: np.ndarray, turn: np.ndarray) -> Structure:
    """With its atoms in another order, rotated and moved."""
    return structure._replace(
        position=structure.position[order] @ turn.T + 0.7,
        species=structure.species[order],
        cell=structure.cell @ turn.T,
    )


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize(("kind", "name"), parts_with_energy())
def test_energy_forces_stress_and_features(kind, name, periodic):
    part, table = built(kind, name)
    structure = atoms_of(table, periodic)
    spec = neighbors.plan(structure, part.cutoff, 0.0, 1.0)
    params = jax.jit(lambda key, s: part.init(key, s, neighbors.build(spec, s)))(jax.random.key(7), structure)

    @jax.jit
    def evaluate(structure):
        near = neighbors.build(spec, structure)
        return evaluation.evaluate(part, params, structure, near), near.overflow

    (energy, force, stress, feature), overflow = jax.device_get(evaluate(structure))
    assert not overflow and energy.shape == () and force.shape == (6, 3) and feature.shape[0] == 6
    assert all(np.all(np.isfinite(x)) for x in (energy, force, stress, feature))
    size = float(np.max(np.abs(force)))
    assert size > 1e-6, "the test structure feels nothing of this part"
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9 * max(size, 1.0))

    # atom order, rotation and translation
    order, turn = np.array([4, 0, 5, 2, 1, 3]), Rotation.random(random_state=8).as_matrix()
    new, _ = evaluate(turned(structure, order, turn))
    for value, expected in zip(
        new, (energy, force[order] @ turn.T, turn @ stress @ turn.T, feature[order]), strict=True
    ):
        close(value, expected)
    close(force.sum(axis=0), np.zeros(3))

    # padding with garbage in it, in a batch, more room for neighbors, and a walker beside that has gone wrong
    roomy = spec._replace(capacity=spec.capacity + 3)
    before, batch = padded_batch(structure)
    evaluate_batch = jax.jit(functools.partial(evaluation.evaluate_batch, part, params))
    many = jax.device_get(evaluate_batch(batch, neighbors.find(roomy, before)))
    for row in range(3):
        values = [x[row] for x in many]
        close(values[0], energy)
        close(values[1][:6], force)
        close(values[2], stress)
        close(values[3][:6], feature)
        assert not np.any(values[1][6:]), "padding has no force"
        assert not np.any(values[3][6:]), "features of padding are zero: they are summed over all rows"

    # charge and spin matter only where they are an input, see tests/potential/test_electrons.py
    (ion, pulled, *_), _ = evaluate(structure._replace(charge=np.int32(-1), spin=np.int32(1)))
    np.testing.assert_array_equal(ion, energy)
    np.testing.assert_array_equal(pulled, force)

    # nothing is felt beyond the cutoff
    far = structure._replace(position=np.arange(18.0).reshape(6, 3) * part.cutoff, cell=0 * structure.cell)
    (_, force, _, _), _ = evaluate(far)
    assert not np.any(force)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "name"), parts_with_energy())
def test_energy_keeps_the_dtype(kind, name, dtype):
    with jax.enable_x64(True):
        part, table = built(kind, name)
        structure = atoms_of(table, True)
        structure = structure._replace(position=structure.position.astype(dtype), cell=structure.cell.astype(dtype))
        spec = neighbors.plan(structure, part.cutoff)

        def evaluate(structure):
            near = neighbors.build(spec, structure)
            params = part.init(jax.random.key(0), structure, near)
            return params, evaluation.evaluate(part, params, structure, near)

        for leaf in jax.tree.leaves(jax.eval_shape(evaluate, structure)):
            assert leaf.dtype == dtype


# ---------------------------------------------------------------- committees of every potential


# members, heads on a set of weights, random combinations
COMMITTEES = {"full": (3, 1, 0), "shared": (4, 4, 0), "estimated spread": (4, 4, 2)}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("periodic", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", COMMITTEES)
@every("potential")
def test_prediction_of_a_committee(name, kind, periodic):
    part, table = built("potential", name)
    members, count, signs = COMMITTEES[kind]
    whole = evaluation.Committee(part, members, heads=count, signs=signs, species=len(table))
    structure = atoms_of(table, periodic)
    spec = neighbors.plan(structure, part.cutoff, 0.0, 1.0)
    init = jax.jit(lambda key, s: evaluation.init(whole, key, s, neighbors.build(spec, s)))
    params = init(jax.random.key(7), structure)

    @jax.jit
    def predict(batch, near):
        return evaluation.predict(whole, params, batch, near)

    def single(structure, spec):
        batch = jax.tree.map(lambda x: x[None], structure)
        return jax.tree.map(lambda x: x[0], jax.device_get(predict(batch, neighbors.find(spec, batch))))

    energy, force, stress, feature, *_ = single(structure, spec)
    rows = 2 * signs * whole.replicas or members
    assert energy.shape == (rows,) and force.shape == (rows, 6, 3) and stress.shape == (rows, 3, 3)
    size = float(np.max(np.abs(force)))
    close = functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9 * max(size, 1.0))
    assert np.max(np.std(force, axis=0)) > 1e-3 * size, "members start out different"

    # atom order, rotation and translation
    order, turn = np.array([4, 0, 5, 2, 1, 3]), Rotation.random(random_state=8).as_matrix()
    expected = (energy, force[:, order] @ turn.T, turn @ stress @ turn.T, feature[order])
    for value, right in zip(single(turned(structure, order, turn), spec)[:4], expected, strict=True):
        close(value, right)

    # padding with garbage in it, in a batch, more room for neighbors, and a walker beside that has gone wrong
    roomy = spec._replace(capacity=spec.capacity + 3)
    before, batch = padded_batch(structure)
    many = jax.device_get(predict(batch, neighbors.find(roomy, before)))
    for row in range(3):
        close(many.energy[row], energy)
        close(many.force[row, :, :6], force)
        close(many.stress[row], stress)
        close(many.feature[row, :6], feature)
        assert not np.any(many.force[row, :, 6:]), "padding has no force"


# ---------------------------------------------------------------- labelers


def another(annotation: Any, value: Any) -> Any:
    """A value of the option other than `value`."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) is Literal:
        return next(choice for choice in get_args(annotation) if choice != value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, str):
        return f"{value}x" if value else "x"
    kinds = [get_origin(kind) or kind for kind in (annotation, *get_args(annotation))]
    for kind, answer in ((Mapping, {"x": 1}), (Sequence, [1]), (bool, True), (int, 1), (float, 1.0), (str, "x")):
        if any(isinstance(each, type) and issubclass(each, kind) for each in kinds):
            return answer
    raise AssertionError(f"give this test another value than {value!r} for {annotation}")


@every("labeler")
def test_method_names_every_option_that_changes_numbers(name):
    """Labels are kept under method and version: two settings that share them would be taken for one another."""
    factory = registry.get("labeler", name)
    options = REQUIRED.get(name, {})
    default = factory(**options)
    assert default.method and default.version and "\n" not in default.method + default.version
    assert factory(**options).method == default.method
    seen = {(default.method, default.version)}
    for option in registry.options("labeler", name):
        value = OTHERS.get((name, option.name))
        if value is None:
            value = another(option.annotation, options.get(option.name, option.default))
        beside = BESIDE.get((name, option.name), {})
        seen |= {(same.method, same.version) for same in [factory(**options | beside)]}
        changed = factory(**options | beside | {option.name: value})
        if (name, option.name) in RESOURCES:
            assert changed.method == default.method, f"{option.name} changes no numbers"
        else:
            assert (changed.method, changed.version) not in seen, f"{option.name} is not in the method's name"
            seen.add((changed.method, changed.version))


@every("labeler")
def test_impossible_electrons_are_refused_and_never_raise_in_a_calculation(name):
    backend = registry.get("labeler", name)(**REQUIRED.get(name, {}))
    atoms = molecule("H2O")
    for charge, spin in ((1, 0), (0, 1), (11, 0)):
        task = Task(atoms.numbers, atoms.positions, *OPEN, charge, spin)
        with pytest.raises(LabelError, match=r"^(charge|spin): [^\n]+$"):
            backend.check(task)
        result = backend.calculate(task)
        assert not result.ok and result.reason and "\n" not in result.reason
        assert result.force.shape == (3, 3) and result.stress.shape == (3, 3)


@every("labeler")
def test_broken_structures_are_refused(name):
    backend = registry.get("labeler", name)(**REQUIRED.get(name, {}))
    atoms = molecule("H2O")
    whole = Task(atoms.numbers, atoms.positions, *OPEN, 0, 0)
    broken = [
        whole._replace(position=np.full((3, 3), np.nan)),
        whole._replace(position=whole.position[:2]),
        whole._replace(numbers=whole.numbers[:0], position=whole.position[:0]),
        whole._replace(cell=np.ones((3, 3))),
    ]
    for task in broken:
        with pytest.raises(LabelError, match=r"^[^\n]+$"):
            backend.check(task)
        assert not backend.calculate(task).ok
