"""The tensor algebra of the equivariant model, channels last and neighbors contracted first.

Equivariant arrays of degree l and natural parity (-1)^l are [n, 2l+1, channels] in e3nn's real basis; the
coefficients come from e3nn-jax. The sum over neighbors is a batched matrix product of the spherical harmonics
with the weighted neighbor features; Clebsch-Gordan coefficients are applied once per atom afterwards, so no
[edges, channels, m] array is made and nothing is scattered.
"""

from functools import cache

import e3nn_jax as e3nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxal.neighbors import gather

Features = dict[int, Float[Array, "n _ f"]]  # degree -> [n, 2l+1, channels]


def pairs(feature_degrees: tuple[int, ...], l_max: int) -> tuple[tuple[int, int], ...]:
    """(feature degree, harmonic degree) of each radial weight the contraction takes, in order."""
    return tuple((l1, l2) for l1 in feature_degrees for l2 in range(l_max + 1))


def paths(feature_degrees: tuple[int, ...], l_max: int, degree: int) -> tuple[tuple[int, int], ...]:
    """The pairs that couple to `degree` with natural parity."""
    return tuple(
        (l1, l2)
        for l1, l2 in pairs(feature_degrees, l_max)
        if abs(l1 - l2) <= degree <= l1 + l2 and (l1 + l2 + degree) % 2 == 0
    )


@cache
def coupling(l1: int, l2: int, l3: int) -> np.ndarray:
    """Clebsch-Gordan coefficients [2l1+1, 2l2+1, 2l3+1], normalized so that unit-variance inputs keep variance."""
    return np.asarray(e3nn.clebsch_gordan(l1, l2, l3)) * np.sqrt(2 * l3 + 1)


def neighbor_contraction(
    harmonics: Float[Array, "n k h"],
    weight: dict[tuple[int, int], Float[Array, "n k f"]],
    features: Features,
    index: Int[Array, "n k"],
    reverse: Int[Array, "n k"],
    l_max: int,
) -> Features:
    """For each degree l3 <= l_max, the sum over neighbors j of the paths of Y_l2(ij) w(ij) h_l1(j) -> l3.

    `harmonics` holds degrees 0..l_max in sequence, `weight` a radial weight [n, k, channels] for each of
    `pairs`. Returns degree -> [n, 2l3+1, paths * channels]: the paths of `paths`, side by side.
    """
    degrees = tuple(features)
    number, slots = index.shape
    summed = {}
    for l1 in degrees:
        neighbor = gather(features[l1], index, reverse)  # [n, k, 2l1+1, f]
        channels = neighbor.shape[-1]
        for l2 in range(l_max + 1):
            y = harmonics[:, :, l2 * l2 : (l2 + 1) ** 2]  # [n, k, 2l2+1]
            weighted = (weight[l1, l2][:, :, None, :] * neighbor).reshape(number, slots, -1)
            product = jnp.einsum("nky,nkz->nyz", y, weighted)
            summed[l1, l2] = product.reshape(number, 2 * l2 + 1, 2 * l1 + 1, channels)
    return {
        l3: jnp.concatenate(
            [
                jnp.einsum("nyxf,xyz->nzf", summed[l1, l2], jnp.asarray(coupling(l1, l2, l3), harmonics.dtype))
                for l1, l2 in paths(degrees, l_max, l3)
            ],
            axis=-1,
        )
        for l3 in range(l_max + 1)
    }


@cache
def symmetric_basis(l_max: int, correlation: int, degree: int) -> np.ndarray:
    """Coefficients [(l_max+1)^2 ^ correlation, 2*degree+1, paths] of every symmetric coupling.

    The `correlation` factors are one natural-parity array of degrees 0..l_max; a row stands for a product of
    components, first factor slowest. From e3nn-jax; scaled so that unit-variance factors give about unit variance.
    """
    irreps = e3nn.Irreps([(1, (l, (-1) ** l)) for l in range(l_max + 1)])
    output = e3nn.Irrep(degree, (-1) ** degree)
    basis = e3nn.reduced_symmetric_tensor_product_basis(irreps, correlation, keep_ir=[output])
    size = (l_max + 1) ** 2
    full = np.asarray(basis.array).reshape(size**correlation, -1, 2 * degree + 1)
    return np.sqrt(2 * degree + 1) * np.moveaxis(full, 1, 2)


def symmetric_product(
    values: Float[Array, "n h f"], weight: dict[tuple[int, int], Float[Array, "n p f"]], l_max: int, correlation: int
) -> Features:
    """Weighted sum of all symmetric couplings of 1..correlation copies of `values`, per output degree.

    `values` holds degrees 0..l_max in sequence; `weight[order, degree]` is [n, paths, channels], one number for
    each path of `symmetric_basis` (of each atom, since weights depend on its species). The contraction of
    Batatia et al., NeurIPS 2022 (arXiv:2206.07697), eq. 10, as one matrix product with the outer products: a few
    large operations, where picking out the distinct monomials takes many small ones.
    """
    number, size, channels = values.shape
    first = jnp.moveaxis(values, 1, 0).reshape(size, -1)
    orders = [first]
    for _ in range(correlation - 1):
        orders.append((orders[-1][:, None, :] * first[None, :, :]).reshape(-1, number * channels))
    degrees = sorted({degree for _, degree in weight})
    result = {}
    for degree in degrees:
        total = jnp.zeros((number, 2 * degree + 1, channels), values.dtype)
        for order, monomials in enumerate(orders, start=1):
            basis = symmetric_basis(l_max, order, degree)
            count, components, number_of_paths = basis.shape
            if number_of_paths == 0 or (order, degree) not in weight:
                continue
            matrix = jnp.asarray(basis.reshape(count, -1).T, values.dtype)
            coupled = (matrix @ monomials).reshape(components, number_of_paths, number, channels)
            total = total + jnp.einsum("zpnf,npf->nzf", coupled, weight[order, degree])
        result[degree] = total
    return result


def number_of_symmetric_paths(l_max: int, order: int, degree: int) -> int:
    """How many symmetric couplings of `order` factors give `degree`."""
    return symmetric_basis(l_max, order, degree).shape[2]
