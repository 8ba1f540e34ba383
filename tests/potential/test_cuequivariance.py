"""The contractions by cuequivariance against ours: values, gradients and second derivatives, and in a committee."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk, molecule

from jaxal.committee import evaluation
from jaxal.data import neighbors
from jaxal.data.neighbors import inward
from jaxal.data.structure import from_atoms
from jaxal.potential import contraction, cuequivariance
from jaxal.potential.equivariant import equivariant
from jaxal.run import initial_labels

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture
def works():
    if why := cuequivariance.trouble():
        pytest.skip(f"cuequivariance-jax {why}")


def alike(tree, other):
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-9, atol=1e-10)


def derivatives(function, arguments):
    """Value, gradient, and gradient of the squared gradient, in all arguments."""
    every = tuple(range(len(arguments)))
    total = lambda *inputs: sum(jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(function(*inputs)))  # noqa: E731
    slope = jax.grad(total, every)
    squared = lambda *inputs: sum(jnp.sum(x**2) for x in jax.tree.leaves(slope(*inputs)))  # noqa: E731
    return jax.jit(lambda *inputs: (function(*inputs), slope(*inputs), jax.grad(squared, every)(*inputs)))(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize("feature_l, l_max", [(0, 2), (1, 2), (2, 1)])
def test_neighbor_contraction_is_ours(works, feature_l, l_max):
    rng = np.random.default_rng(feature_l)
    number, slots, channels, rank = 5, 3, 4, 2
    index = np.full((number, slots), number)
    index[:, :2] = [[(i + 1) % number, (i - 1) % number] for i in range(number)]
    reverse = np.array([[1, 0, slots]] * number)
    lists = inward(jnp.asarray(index), jnp.asarray(reverse))
    used = jnp.asarray(index < number)[:, :, None]
    shapes = (number, slots, (l_max + 1) ** 2), (number, slots, rank), (rank, l_max + 1, feature_l + 1, channels)
    arguments = [jnp.asarray(rng.normal(size=shape)) for shape in (*shapes, ((feature_l + 1) ** 2, number, channels))]

    def by(algebra):
        def function(harmonics, radial, weight, features):
            functions = lambda radial: radial * used  # noqa: E731
            return algebra.neighbor_contraction(harmonics, (radial,), functions, weight, features, *lists)

        return function

    alike(derivatives(by(cuequivariance), arguments), derivatives(by(contraction), arguments))


@pytest.mark.parametrize("l_max, l_out, correlation", [(2, 1, 2), (1, 1, 3), (2, 0, 1)])
def test_symmetric_product_is_ours(works, l_max, l_out, correlation):
    rng = np.random.default_rng(1)
    number, channels = 3, 2
    values = jnp.asarray(rng.normal(size=((l_max + 1) ** 2, number, channels)))
    weight = {}
    for order in range(1, correlation + 1):
        for degree in range(l_out + 1):
            if count := contraction.number_of_symmetric_paths(l_max, order, degree):
                weight[order, degree] = jnp.asarray(rng.normal(size=(number, count, channels)))

    def by(algebra):
        return lambda values, weight: algebra.symmetric_product(values, weight, l_max, l_out, correlation)

    alike(derivatives(by(cuequivariance), (values, weight)), derivatives(by(contraction), (values, weight)))


@pytest.mark.parametrize(
    "atoms, layers, batching",
    [
        pytest.param(molecule("CH3CH2OH"), 1, "vmap", marks=pytest.mark.slow),
        pytest.param(bulk("Si", "diamond", 5.43, cubic=True), 2, "map", marks=pytest.mark.slow),
    ],
    ids=["molecule", "crystal"],
)
def test_a_committee_predicts_and_trains_as_with_ours(works, atoms, layers, batching):
    table = tuple(sorted(set(atoms.numbers.tolist())))
    frames = initial_labels.first_structures(atoms, 3, 0)
    structures = jax.tree.map(jnp.asarray, from_atoms(frames, table, dtype=float))
    spec = neighbors.plan(structures, 4.0, 0.0)
    near = neighbors.find(spec, structures)
    results = []
    for kernels in ("xla", "cuequivariance"):
        potential = equivariant(
            table,
            cutoff=4.0,
            channels=4,
            l_max=1,
            layers=layers,
            radial_hidden=8,
            radial_functions=4,
            kernels=kernels,
        )
        both = evaluation.Committee(potential, 2, batching)
        params = evaluation.init(both, jax.random.key(0), *jax.tree.map(lambda x: x[0], (structures, near)))

        def loss(params, both=both):
            prediction = evaluation.predict(both, params, structures, near)
            return jnp.sum(prediction.force**2) + jnp.sum(prediction.energy), prediction

        results.append(jax.jit(jax.grad(loss, has_aux=True))(params))
    alike(*results)


def test_where_it_is_not_installed_a_word_says_how(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"potential.kernels: cuequivariance needs cuequivariance-jax; give xla"):
        equivariant((1, 8), kernels="cuequivariance")


def raised(error, cause):
    def broken(*_, **__):
        raise error from cause

    return broken


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (OSError("libcublas.so.12: cannot open shared object file: No such file or directory"), None),
        (ImportError("libnvrtc.so.12: cannot open shared object file"), None),
        (ModuleNotFoundError("No module named 'cuequivariance_ops_jax'", name="cuequivariance_ops_jax"), None),
        (RuntimeError("no kernels"), OSError("libcue_ops.so: cannot open shared object file")),
    ],
)
def test_a_library_that_is_missing_is_not_blamed_on_jax(monkeypatch, error, cause):
    monkeypatch.setattr(cuequivariance, "_evaluated", raised(error, cause))
    with pytest.raises(ValueError, match=r"cannot load a library that it needs .*; give xla, or install") as caught:
        equivariant((1, 8), kernels="cuequivariance")
    assert type(error).__name__ in str(caught.value) and "does not work with jax" not in str(caught.value)


def test_the_import_itself_may_fail(monkeypatch):
    failing = OSError("libcudart.so.12: cannot open shared object file")
    monkeypatch.setattr(cuequivariance, "_library", raised(failing, None))
    cuequivariance.product_polynomial.cache_clear()
    with pytest.raises(ValueError, match=r"cannot load a library that it needs .OSError: libcudart"):
        equivariant((1, 8), kernels="cuequivariance")


def test_a_library_that_does_not_fit_jax_is_told_of(monkeypatch):
    def broken(*_, **__):
        raise TypeError("takes 2 positional arguments but 3 were given")

    monkeypatch.setattr(cuequivariance, "_evaluated", broken)
    with pytest.raises(ValueError, match=r"cuequivariance 0.* does not work with jax 0.*3 were given.*; give xla"):
        equivariant((1, 8), kernels="cuequivariance")
