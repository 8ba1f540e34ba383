"""The fast tensor algebra against e3nn-jax, path by path."""

import e3nn_jax as e3nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxal.data.neighbors import inward
from jaxal.potential import contraction

pytestmark = pytest.mark.usefixtures("double")


def irreps(degrees, channels=1):
    return e3nn.Irreps([(channels, (l, (-1) ** l)) for l in degrees])


@pytest.mark.slow
@pytest.mark.parametrize("slots, density_first", [(3, False), (40, True)])
@pytest.mark.parametrize("feature_l, l_max", [(0, 2), (2, 3)])
def test_neighbor_contraction_is_the_sum_of_tensor_products(feature_l, l_max, slots, density_first):
    rng = np.random.default_rng(0)
    number, channels, rank = 5, 4, 6
    assert contraction.density_first(slots, rank, (l_max + 1) ** 2, (feature_l + 1) ** 2) == density_first
    index, reverse = _ring(number, slots)
    harmonics = rng.normal(size=(number, slots, (l_max + 1) ** 2))
    radial = rng.normal(size=(number, slots, rank)) * (np.arange(slots) < 2)[:, None]
    combine = rng.normal(size=(rank, l_max + 1, feature_l + 1, channels))
    weight = np.einsum("nkq,qyxf->xynkf", radial, combine)  # [l1, l2, n, k, f]
    features = jnp.asarray(rng.normal(size=((feature_l + 1) ** 2, number, channels)))
    lists = inward(jnp.asarray(index), jnp.asarray(reverse))
    harmonics, radial, combine = map(jnp.asarray, (harmonics, radial, combine))
    messages = contraction.neighbor_contraction(harmonics, (radial,), lambda x: x, combine, features, *lists)
    for l3 in range(l_max + 1):
        expected = []
        for l1, l2 in contraction.paths(feature_l, l_max, l3):
            y = e3nn.IrrepsArray(irreps([l2]), jnp.asarray(harmonics[:, :2, None, l2 * l2 : (l2 + 1) ** 2]))
            sender = jnp.moveaxis(features[contraction.of_degree(l1)], 0, -1)[index[:, :2]]  # [n, k, f, 2l1+1]
            h = e3nn.IrrepsArray(irreps([l1]), sender)
            product = e3nn.tensor_product(y, h, filter_ir_out=irreps([l3])).array
            summed = jnp.sum(weight[l1, l2][:, :2, :, None] * product, axis=1)  # the others are padding
            expected.append(jnp.moveaxis(summed, -1, 0))
        np.testing.assert_allclose(messages[l3], np.concatenate(expected, -1), atol=1e-12)


def test_paths_are_all_that_natural_parity_allows():
    for l3 in range(4):
        product = e3nn.tensor_product(irreps([0, 1, 2]), irreps(range(4)), filter_ir_out=irreps([l3]))
        assert product.count(e3nn.Irrep(l3, (-1) ** l3)) == len(contraction.paths(2, 3, l3))


def test_channel_mixing_is_an_e3nn_linear():
    """values @ w on [2l+1, n, f] mixes channels as e3nn.Linear does between multiplicities, degree by degree."""
    key = jax.random.key(0)
    linear = e3nn.flax.Linear(irreps([0, 1], 3))
    x = e3nn.normal(irreps([0, 1], 5), key, (4,))
    params = linear.init(key, x)
    expected = linear.apply(params, x)
    for chunk, out, (_, w), l in zip(x.chunks, expected.chunks, sorted(params["params"].items()), (0, 1), strict=True):
        assert chunk.shape[-1] == 2 * l + 1
        mine = jnp.moveaxis(chunk, -1, 0) @ w / np.sqrt(5)
        np.testing.assert_allclose(jnp.moveaxis(mine, 0, -1), out, atol=1e-12)


@pytest.mark.parametrize("correlation", [1, 2, 3])
@pytest.mark.parametrize("degree", [0, 1])
def test_symmetric_product_is_the_explicit_one(correlation, degree):
    """All couplings of up to `correlation` equal factors, by nested e3nn tensor products, span the same space."""
    l_max, number, channels = 1, 30, 1
    size = (l_max + 1) ** 2
    values = jnp.asarray(np.random.default_rng(1).normal(size=(size, number, channels)))
    x = e3nn.IrrepsArray(irreps(range(l_max + 1)), values[:, :, 0].T)
    product = x
    for _ in range(correlation - 1):
        product = e3nn.tensor_product(product, x)
    explicit = product.filter(keep=irreps([degree]))
    explicit = np.asarray(explicit.array).reshape(number, -1, 2 * degree + 1)

    count = contraction.number_of_symmetric_paths(l_max, correlation, degree)
    mine = []
    for path in range(count):
        weight = {
            (order, l): jnp.zeros((number, contraction.number_of_symmetric_paths(l_max, order, l), channels))
            for order in range(1, correlation + 1)
            for l in range(degree + 1)
        }
        weight[correlation, degree] = weight[correlation, degree].at[:, path].set(1.0)
        features = contraction.symmetric_product(values, weight, l_max, degree, correlation)
        mine.append(features[contraction.of_degree(degree), :, 0].T)
    mine = np.stack(mine, 1)
    rows = lambda a: np.moveaxis(a, 1, 2).reshape(-1, a.shape[1])  # noqa: E731
    a, b = rows(mine), rows(explicit)
    assert np.linalg.matrix_rank(a, tol=1e-9) == np.linalg.matrix_rank(b, tol=1e-9) == count
    for span, other in ((a, b), (b, a)):
        residual = other - span @ np.linalg.lstsq(span, other, rcond=None)[0]
        np.testing.assert_allclose(residual, 0.0, atol=1e-10)


def test_symmetric_product_adds_orders_and_weights_atoms_apart():
    rng = np.random.default_rng(2)
    values = jnp.asarray(rng.normal(size=(9, 3, 2)))
    weight = {
        (order, degree): jnp.asarray(rng.normal(size=(3, contraction.number_of_symmetric_paths(2, order, degree), 2)))
        for order in (1, 2)
        for degree in (0, 1)
    }
    both = contraction.symmetric_product(values, weight, 2, 1, 2)
    for degree in (0, 1):
        expected = np.zeros((2 * degree + 1, 3, 2))
        for order in (1, 2):
            basis = contraction.symmetric_basis(2, order, degree).reshape((9,) * order + (2 * degree + 1, -1))
            factors = "ab"[:order]
            for n in range(3):
                for f in range(2):
                    arrays = [values[:, n, f]] * order
                    subscripts = ",".join([factors + "zp", *factors, "p"]) + "->z"
                    expected[:, n, f] += np.einsum(subscripts, basis, *arrays, weight[order, degree][n, :, f])
        np.testing.assert_allclose(both[contraction.of_degree(degree)], expected, atol=1e-12)


@pytest.mark.slow
def test_blocks_of_atoms_change_nothing(monkeypatch):
    """Values, gradients and second derivatives, also where the last block is not full."""
    rng = np.random.default_rng(3)
    number, slots, channels, rank = 11, 4, 3, 2
    lists = inward(*(jnp.asarray(x) for x in _ring(number, slots)))
    arrays = [rng.normal(size=shape) for shape in ((number, slots, 4), (number, slots, rank), (rank, 2, 2, channels))]
    harmonics, radial, weight = map(jnp.asarray, arrays)
    cut = jnp.where(jnp.arange(slots) < 2, jnp.asarray(rng.uniform(size=(number, slots))), 0.0)
    mix = jnp.asarray(rng.normal(size=(rank, rank)))
    features = jnp.asarray(rng.normal(size=(4, number, channels)))

    def total(features, weight, radial, mix):
        messages = contraction.neighbor_contraction(
            harmonics,
            (radial, cut),
            lambda radial, cut: jnp.tanh(radial @ mix) * cut[:, :, None],
            weight,
            features,
            *lists,
        )
        return sum(jnp.sum(jnp.sin(x)) for x in messages)

    def all_of():
        arguments = features, weight, radial, mix
        slope = jax.grad(total, argnums=(0, 2))
        squared = lambda *inputs: sum(jnp.sum(x**2) for x in slope(*inputs))  # noqa: E731
        return total(*arguments), slope(*arguments), jax.grad(squared, argnums=(0, 1, 2, 3))(*arguments)

    def program():
        return str(jax.make_jaxpr(lambda *inputs: total(*inputs))(features, weight, radial, mix))

    whole = all_of()
    assert "scan" not in program()
    monkeypatch.setattr(contraction, "CACHED", 4 * 64)
    assert "scan" in program() and "remat" not in program()
    blocks = all_of()
    monkeypatch.setattr(contraction, "LARGE", 0)
    assert "scan" in program() and "remat" in program()
    for expected, other, third in zip(*map(jax.tree.leaves, (whole, blocks, all_of())), strict=True):
        np.testing.assert_allclose(other, expected, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(third, expected, rtol=1e-12, atol=1e-13)


def _ring(number, slots):
    """Index and reverse of a ring in which everybody lists the two beside him; the other slots are padding."""
    index = np.full((number, slots), number)
    index[:, :2] = [[(i + 1) % number, (i - 1) % number] for i in range(number)]
    return index, np.array([[1, 0] + [slots] * (slots - 2)] * number)
