"""What every registered kernel promises; registering one makes these run on it. Then what each of them is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from structures import plain

from jaxal.acquire import kernel, kernel_soap
from jaxal.core import registry
from jaxal.core.discovery import import_parts
from jaxal.core.types import InputError, Neighbors, Structure
from jaxal.data import neighbors

import_parts()

DTYPES = [np.float32, np.float64]
TABLE = (1, 6, 8)
QUICK = {"cutoff": 3.0, "channels": 2, "l_max": 1, "radial_hidden": 4, "layers": 1}
ROOM = 3  # slots beyond those that are needed


@functools.cache
def potential():
    return registry.get("potential", "equivariant")(TABLE, **QUICK)


def batch_of(dtype, periodic=False, count=3) -> Structure:
    """Six atoms each, of three elements; the periodic cell is shorter than the cutoff."""
    rng = np.random.default_rng(6)
    grid = 1.6 * np.array([(x, y, 0) for x in range(3) for y in range(2)], float)
    cell = np.array([[5.0, 0, 0], [0.4, 3.4, 0], [0, 0.3, 3.0]]) * periodic
    return plain(
        (grid + rng.normal(0, 0.2, (count, 6, 3))).astype(dtype),
        np.array([[0, 1, 2, 0, 1, 0]] * count, np.int32),
        np.array([cell] * count, dtype),
        np.zeros(count, np.int32),
        np.zeros(count, np.int32),
    )


@functools.cache
def spec() -> neighbors.Spec:
    """Of periodic structures and of open ones, which need less."""
    planned = neighbors.plan(batch_of(np.float32, periodic=True), potential().cutoff)
    return planned._replace(capacity=planned.capacity + ROOM)


def find(structures: Structure) -> Neighbors:
    return neighbors.find(spec(), structures)


@functools.cache
def params_of(dtype):
    structure, planned = jax.tree.map(lambda x: x[0], batch_of(dtype)), spec()
    init = jax.jit(lambda key, s: potential().init(key, s, neighbors.build(planned, s)))
    return init(jax.random.key(1), structure)


@functools.cache
def compiled(name: str):
    """(weights, structures) -> features; neighbors are found first."""
    planned = spec()

    def features(params, structures: Structure):
        near = neighbors.find(planned, structures)
        return registry.get("kernel", name)(potential(), params, structures, near)

    return jax.jit(features)


def padded(structures: Structure, garbage: float) -> Structure:
    """Two more rows without an atom."""
    count = structures.charge.shape[0]
    position = np.concatenate([structures.position, np.full((count, 2, 3), garbage, structures.position.dtype)], 1)
    return structures._replace(
        position=position, species=np.concatenate([structures.species, np.full((count, 2), -1, np.int32)], 1)
    )


def every(kind: str):
    return pytest.mark.parametrize("name", registry.names(kind))


@pytest.mark.usefixtures("double")
@every("kernel")
@pytest.mark.parametrize("periodic", [False, True])
def test_kernel_ignores_padding_order_orientation_and_place(name, periodic):
    structures, params = batch_of(np.float64, periodic), params_of(np.float64)

    def run(structures):
        return np.asarray(compiled(name)(params, structures))

    feature = run(structures)
    assert feature.ndim == 2 and len(feature) == 3 and np.all(np.isfinite(feature))
    size = np.linalg.norm(feature)
    apart = [np.linalg.norm(feature[a] - feature[b]) for a, b in ((0, 1), (0, 2), (1, 2))]
    assert min(apart) > 1e-4 * size, "structures are told apart"
    close = functools.partial(np.testing.assert_allclose, rtol=1e-8, atol=1e-9 * size)

    for garbage in (0.0, 0.3, 1e4, np.nan):
        close(run(padded(structures, garbage)), feature)

    order, turn = np.array([4, 0, 5, 2, 1, 3]), Rotation.random(random_state=8).as_matrix()
    mirrored = structures.position[:, order] @ turn.T * np.array([1.0, 1.0, -1.0]) + 0.7
    cell = structures.cell @ turn.T * np.array([1.0, 1.0, -1.0])
    close(run(structures._replace(position=mirrored, species=structures.species[:, order], cell=cell)), feature)
    # other elements in the same places are another structure
    other = run(structures._replace(species=structures.species[:, ::-1]))
    assert np.linalg.norm(other - feature) > 1e-3 * size


@every("kernel")
def test_kernel_of_a_batch_is_that_of_each(name):
    structures, params = batch_of(np.float32), params_of(np.float32)
    together = np.asarray(compiled(name)(params, structures))
    part = registry.get("kernel", name)

    def single(pair: tuple[Structure, Neighbors]):  # as the training set is taken, a few structures at a time
        return part(potential(), params, *jax.tree.map(lambda x: x[None], pair))[0]

    mapped = jax.jit(lambda *inputs: jax.lax.map(single, inputs, batch_size=2))(structures, find(structures))
    size = np.max(np.abs(together))
    np.testing.assert_allclose(mapped, together, rtol=1e-4, atol=1e-5 * size)


@every("kernel")
@pytest.mark.parametrize("dtype", DTYPES)
def test_kernel_keeps_the_dtype_and_has_a_finite_gradient(name, dtype):
    """Also of structures with atoms that have no neighbor, or no atoms at all."""
    with jax.enable_x64(True):
        structures, params = padded(batch_of(dtype), np.nan), params_of(dtype)
        structures.position[0, :6] *= 10.0
        structures.species[1] = -1

        def total(position):
            feature = compiled(name)(params, structures._replace(position=position))
            return jnp.sum(jnp.sin(feature)), feature

        (_, feature), slope = jax.device_get(jax.jit(jax.value_and_grad(total, has_aux=True))(structures.position))
        assert feature.dtype == slope.dtype == dtype
        assert np.all(np.isfinite(feature)) and np.all(np.isfinite(slope))
        assert np.any(slope[2]) and not np.any(slope[:, 6:]) and not np.any(slope[1])


# ---------------------------------------------------------------- what they are


def features_of(part, **options):
    structures = batch_of(np.float64)
    features = jax.jit(lambda *arguments: part(potential(), *arguments, **options))
    return np.asarray(features(params_of(np.float64), structures, find(structures)))


@pytest.mark.usefixtures("double")
def test_last_layer_gradient_is_the_gradient_of_the_readout():
    """Against the derivative of the energy with respect to the weights of that name, over their scale."""
    structures = batch_of(np.float64)
    near, params = find(structures), params_of(np.float64)

    def energies(readout):
        return potential().energies(params | {"params": params["params"] | readout}, structures, near)[0]

    names = [f"readout_{layer}" for layer in range(QUICK["layers"])]
    slopes = jax.jit(jax.jacobian(energies))({name: params["params"][name] for name in names})
    scale = params["constants"]["scale"]
    expected = np.concatenate([slopes[name] for name in names], axis=-1).reshape(3, -1) / scale
    np.testing.assert_allclose(features_of(kernel.last_layer_gradient), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("double")
def test_last_layer_gradient_of_a_potential_without_weights_has_four_blocks():
    oracle = registry.get("oracle", "morse")(TABLE, cutoff=4.0)
    structures = batch_of(np.float64)
    near = find(structures)
    features = jax.jit(lambda *atoms: kernel.last_layer_gradient(oracle, {}, *atoms))(structures, near)
    atomic = np.asarray(jax.jit(jax.vmap(lambda s, n: oracle.energy({}, s, n)[1][:, 0]))(structures, near))
    expected = np.zeros((3, 4))
    for atom, species in enumerate([0, 1, 2, 0, 1, 0]):
        expected[:, species] += atomic[:, atom]
    np.testing.assert_allclose(features, expected, rtol=1e-9)


@pytest.mark.usefixtures("double")
def test_a_sketch_keeps_the_products_of_gradients():
    structures = batch_of(np.float64)
    near, params = find(structures), params_of(np.float64)

    def energies(weights):
        return potential().energies(params | {"params": weights}, structures, near)[0]

    slopes = jax.tree.leaves(jax.jit(jax.jacobian(energies))(params["params"]))
    full = np.concatenate([np.asarray(x).reshape(3, -1) for x in slopes], axis=1)
    # every weight is there once, so with a number for each nothing is lost but the order and the signs
    exact = features_of(kernel.sketched_gradient, size=full.shape[1])
    np.testing.assert_allclose(exact @ exact.T, full @ full.T, rtol=1e-9)
    length = np.linalg.norm(full, axis=1)
    for size in (32, 128):
        sketch = features_of(kernel.sketched_gradient, size=size)
        assert sketch.shape == (3, size)
        error = (sketch @ sketch.T - full @ full.T) / np.outer(length, length)
        assert np.max(abs(error)) < 4 * size**-0.5
    oracle = registry.get("oracle", "morse")(TABLE, cutoff=4.0)
    with pytest.raises(InputError, match=r"^kernel: sketched_gradient needs weights[^\n]+$"):
        kernel.sketched_gradient(oracle, {}, structures, near)


def legendre_spectra(structures: Structure, radial: int, l_max: int, elements: int) -> np.ndarray:
    """SOAP from pairs of neighbors and Legendre polynomials of the angle between them: no harmonics."""
    cutoff = potential().cutoff
    of_neighbor, of_atom = np.random.default_rng(0).normal(size=(2, kernel_soap.ROWS, elements))
    width = cutoff / (radial + 1)
    spectra = []
    for position, species in zip(np.asarray(structures.position), np.asarray(structures.species), strict=True):
        total = 0.0
        for atom in range(6):
            others = [j for j in range(6) if j != atom and np.linalg.norm(position[j] - position[atom]) < cutoff]
            vector = position[others] - position[atom]
            r = np.linalg.norm(vector, axis=1)
            shape = np.exp(-0.5 * ((r[:, None] - width * np.arange(1, radial + 1)) / width) ** 2)
            shape *= ((1 - (r / cutoff) ** 2) ** 3)[:, None]
            weight = (of_neighbor[species[others]][:, :, None] * shape[:, None, :]).reshape(len(others), -1)
            cosine = (vector / r[:, None]) @ (vector / r[:, None]).T
            spectrum = []
            for l in range(l_max + 1):
                # sum over m of Y_lm(a) Y_lm(b) = (2 l + 1) P_l(a . b), where |Y_l|^2 = 2 l + 1
                angular = (2 * l + 1) * np.polynomial.Legendre.basis(l)(cosine)
                products = weight.T @ angular @ weight
                spectrum += products[np.triu_indices(len(products))].tolist()
            total = total + np.outer(of_atom[species[atom]], np.array(spectrum) / np.linalg.norm(spectrum))
        spectra.append(total.ravel() / np.linalg.norm(total))
    return np.array(spectra)


@pytest.mark.usefixtures("double")
def test_soap_is_the_sum_over_pairs_of_neighbors_of_legendre_polynomials():
    options = {"radial": 2, "l_max": 2, "elements": 2}
    features = features_of(kernel_soap.soap, **options)
    assert features.shape == (3, 2 * 10 * 3)
    np.testing.assert_allclose(features, legendre_spectra(batch_of(np.float64), **options), rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1.0)


@pytest.mark.slow
def test_soap_does_not_read_the_parameters():
    structures = batch_of(np.float32)
    near = find(structures)
    soap = jax.jit(lambda *arguments: kernel_soap.soap(potential(), *arguments))
    with_any = [soap(params, structures, near) for params in ({}, params_of(np.float32))]
    np.testing.assert_array_equal(*with_any)
