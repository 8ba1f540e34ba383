"""The tensor algebra of the equivariant model: components first, channels last, neighbors contracted first.

Equivariant arrays are [c, n, f]: the components of degrees 0..L of natural parity (-1)^l in sequence, in e3nn's real
basis; the coefficients come from e3nn-jax. The sum over neighbors is one batched matrix product of radial functions
times spherical harmonics with the neighbors' features, as in the density of the atomic cluster expansion (Drautz,
Phys. Rev. B 99, 014104, 2019). Radial weights and Clebsch-Gordan coefficients are applied once per atom afterwards, so
no array of edges and channels is made but the features themselves, and nothing is scattered. With components first
every coupling is one matrix product with a constant, whatever the number of atoms.
"""

from collections.abc import Callable
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxal.core.placement import placement
from jaxal.data.neighbors import gather

Features = Float[Array, "c n f"]
CACHED = 2**18  # numbers of a block of atoms: 1 MiB in float32
LARGE = 12 * CACHED  # of all atoms


def of_degree(degree: int) -> slice:
    """Where the components of a degree stand among those of degrees 0, 1, ..."""
    return slice(degree * degree, (degree + 1) ** 2)


def by_degree(values: Float[Array, "..."], axis: int = 0) -> list[Float[Array, "..."]]:
    """The components of each degree 0, 1, ... along an axis.

    By `split`, whose transpose is one concatenation, where that of slices is a padded array for each of them.
    """
    top = round(values.shape[axis] ** 0.5)
    return jnp.split(values, [l * l for l in range(1, top)], axis=axis)


def pairs(feature_l: int, l_max: int) -> tuple[tuple[int, int], ...]:
    """(feature degree, harmonic degree) of each radial weight the contraction takes, in order."""
    return tuple((l1, l2) for l1 in range(feature_l + 1) for l2 in range(l_max + 1))


def paths(feature_l: int, l_max: int, degree: int) -> tuple[tuple[int, int], ...]:
    """The pairs that couple to `degree` with natural parity."""
    return tuple(
        (l1, l2)
        for l1, l2 in pairs(feature_l, l_max)
        if abs(l1 - l2) <= degree <= l1 + l2 and (l1 + l2 + degree) % 2 == 0
    )


def _degrees(top: int) -> np.ndarray:
    """The degree of each component of degrees 0..top."""
    return np.repeat(np.arange(top + 1), 2 * np.arange(top + 1) + 1)


@cache
def coupling(feature_l: int, l_max: int) -> np.ndarray:
    """Clebsch-Gordan coefficients [rows, harmonics * features] of all paths to all degrees 0..l_max.

    A column stands for a product of components, that of the harmonic slowest; rows go by degree, component and path.
    Normalized so that unit-variance inputs keep their variance.
    """
    import e3nn_jax as e3nn  # takes seconds

    harmonics, features = (l_max + 1) ** 2, (feature_l + 1) ** 2
    blocks = []
    for degree in range(l_max + 1):
        to = paths(feature_l, l_max, degree)
        block = np.zeros((2 * degree + 1, len(to), harmonics, features))
        for path, (l1, l2) in enumerate(to):
            coefficients = np.asarray(e3nn.clebsch_gordan(l1, l2, degree)) * np.sqrt(2 * degree + 1)
            block[:, path, of_degree(l2), of_degree(l1)] = np.transpose(coefficients, (2, 1, 0))
        blocks.append(block.reshape(-1, harmonics * features))
    return np.concatenate(blocks)


def _work(slots: int, functions: int, harmonics: int, size: int) -> tuple[int, int]:
    """Numbers per atom and channel on the two ways to the sum over neighbors.

    The radial weights and weighted features of its slots, for each degree of the harmonics; the density.
    """
    degrees, feature_degrees = round(harmonics**0.5), round(size**0.5)
    return slots * degrees * (feature_degrees + size), functions * harmonics * size


def density_first(slots: int, functions: int, harmonics: int, size: int) -> bool:
    """Whether the sum over neighbors comes before the radial weights: with many neighbors that is less work.

    Measured on one CPU thread, with l_max 2, hidden_l 1 and eight functions (288
    against 18 a slot): training with 8 slots is 1.3 times slower by the density, dynamics with 20 as fast, with
    33 1.4 times faster.
    """
    by_slots, by_density = _work(slots, functions, harmonics, size)
    return by_slots > by_density


def _in_blocks(function: Callable[..., Array], rows: int, *arrays: Float[Array, "n ..."]) -> Float[Array, "n ..."]:
    """`function(*arrays)` over the atoms in blocks of about `rows`, one after the other."""
    number = arrays[0].shape[0]
    blocks = -(-number // rows)
    if blocks == 1:
        return function(*arrays)
    rows = -(-number // blocks)
    spare = blocks * rows - number
    cut = [jnp.pad(x, [(0, spare)] + [(0, 0)] * (x.ndim - 1)).reshape(blocks, rows, *x.shape[1:]) for x in arrays]
    outputs = jax.lax.map(lambda block: function(*block), tuple(cut))
    return outputs.reshape(blocks * rows, *outputs.shape[2:])[:number]


def _weighted_sum(
    harmonics: Float[Array, "n k h"],
    radial: Float[Array, "n k q"],
    weight: Float[Array, "q _ _ f"],
    neighbor: Float[Array, "n k c f"],
) -> Float[Array, "n h c f"]:
    """Sum over the slots k of harmonics x radial weight x neighbor, in the cheaper of two orders."""
    number, slots, size, channels = neighbor.shape
    degrees = [_degrees(round(count**0.5) - 1) for count in (harmonics.shape[-1], size)]
    if density_first(slots, radial.shape[-1], harmonics.shape[-1], size):
        edge = (harmonics[:, :, :, None] * radial[:, :, None, :]).reshape(number, slots, -1)  # [n, k, h q]
        density = jnp.einsum("nkp,nkz->npz", edge, neighbor.reshape(number, slots, -1))
        of_components = jnp.moveaxis(weight[:, degrees[0]][:, :, degrees[1]], 0, 1)  # [h, q, c, f]
        return jnp.sum(density.reshape(number, *of_components.shape[:2], size, channels) * of_components, axis=2)
    weights = (radial @ weight.reshape(radial.shape[-1], -1)).reshape(number, slots, *weight.shape[1:])
    values, sums = by_degree(neighbor, 2), []
    for l2, harmonic in enumerate(by_degree(harmonics, 2)):
        parts = [weights[:, :, l2, l1, None] * value for l1, value in enumerate(values)]
        weighted = jnp.concatenate(parts, axis=2).reshape(number, slots, -1)
        sums.append(jnp.einsum("nky,nkz->nyz", harmonic, weighted))
    return jnp.concatenate(sums, axis=1).reshape(number, -1, size, channels)


def neighbor_contraction(
    harmonics: Float[Array, "n k h"],
    pair: tuple[Float[Array, "n k ..."], ...],
    functions: Callable[..., Float[Array, "n k q"]],
    weight: Float[Array, "q _ _ f"],
    features: Features,
    index: Int[Array, "n k"],
    reverse: Int[Array, "n k"],
) -> tuple[Float[Array, "_ n _"], ...]:
    """For each degree l3 <= l_max, the sum over neighbors j of the paths of Y_l2(ij) w(ij) h_l1(j) -> l3.

    The radial weight w(ij) of the pair (l1, l2) is the sum over q of weight[q, l2, l1] times the radial functions,
    which are `functions(*pair)`: zero for padded slots. `harmonics` holds degrees 0..l_max in sequence. Returns for
    each degree [2 l3 + 1, n, paths * channels]: the paths of `paths`, side by side.
    """
    size, number, channels = features.shape
    feature_l = round(size**0.5) - 1
    l_max = round(harmonics.shape[-1] ** 0.5) - 1
    neighbor = gather(jnp.moveaxis(features, 0, 1), index, reverse)

    def block(harmonics: Array, neighbor: Array, *pair: Array) -> Array:
        return _weighted_sum(harmonics, functions(*pair), weight, neighbor)

    # On a CPU what belongs to a block of atoms stays in its cache: 1.1 times faster with 216 atoms of silicon, 1.4
    # times with 16 walkers of aspirin, 1.5 times with 4096 atoms; with eight walkers of ethanol 1.2 times slower. An
    # accelerator is faster the more it is given at once. With many atoms it is faster to compute a block twice, radial
    # functions included, than to write it to memory for the way back: 1.2 times from 512 to 4096 atoms of silicon.
    work = channels * min(_work(index.shape[1], weight.shape[0], harmonics.shape[-1], size))
    small = not placement().cpu or number * work < 4 * CACHED
    rows = number if small else max(1, CACHED // work)
    if small or number * work < LARGE:
        pair, functions = (functions(*pair),), lambda radial: radial
    else:
        block = jax.checkpoint(block, prevent_cse=False)
    mixed = _in_blocks(block, rows, harmonics, neighbor, *pair)
    stacked = jnp.moveaxis(mixed.reshape(number, -1, channels), 1, 0)  # [h c, n, f]
    matrix = jnp.asarray(coupling(feature_l, l_max), harmonics.dtype)
    return sides((matrix @ stacked.reshape(stacked.shape[0], -1)).reshape(-1, number, channels), feature_l, l_max)


def sides(coupled: Float[Array, "rows n f"], feature_l: int, l_max: int) -> tuple[Float[Array, "_ n _"], ...]:
    """The rows of `coupling` by degree, [2 l + 1, n, paths * channels]: the paths side by side."""
    number, channels = coupled.shape[1:]
    counts = [len(paths(feature_l, l_max, degree)) for degree in range(l_max + 1)]
    ends = np.cumsum([(2 * degree + 1) * count for degree, count in enumerate(counts)])
    result = []
    for degree, rows in enumerate(jnp.split(coupled, ends[:-1])):
        side = jnp.moveaxis(rows.reshape(2 * degree + 1, counts[degree], number, channels), 1, 2)
        result.append(side.reshape(2 * degree + 1, number, -1))
    return tuple(result)


@cache
def symmetric_basis(l_max: int, correlation: int, degree: int) -> np.ndarray:
    """Coefficients [(l_max+1)^2 ^ correlation, 2*degree+1, paths] of every symmetric coupling.

    The `correlation` factors are one natural-parity array of degrees 0..l_max; a row stands for a product of
    components, first factor slowest. From e3nn-jax; scaled so that unit-variance factors give about unit variance.
    """
    import e3nn_jax as e3nn  # takes seconds

    irreps = e3nn.Irreps([(1, (l, (-1) ** l)) for l in range(l_max + 1)])
    output = e3nn.Irrep(degree, (-1) ** degree)
    basis = e3nn.reduced_symmetric_tensor_product_basis(irreps, correlation, keep_ir=[output])
    size = (l_max + 1) ** 2
    full = np.asarray(basis.array).reshape(size**correlation, -1, 2 * degree + 1)
    return np.sqrt(2 * degree + 1) * np.moveaxis(full, 1, 2)


def symmetric_product(
    values: Features, weight: dict[tuple[int, int], Float[Array, "n p f"]], l_max: int, l_out: int, correlation: int
) -> Features:
    """Weighted sum of all symmetric couplings of 1..correlation copies of `values`, degrees 0..l_out in sequence.

    `values` holds degrees 0..l_max in sequence; `weight[order, degree]` is [n, paths, channels], one number for
    each path of `symmetric_basis` (of each atom, since weights depend on its species). The contraction of
    Batatia et al., NeurIPS 2022 (arXiv:2206.07697), eq. 10, as one matrix product for each order with the outer
    products: a few large operations, where picking out the distinct monomials takes many small ones.
    """
    size, number, channels = values.shape
    first = values.reshape(size, -1)
    total = jnp.zeros(((l_out + 1) ** 2, number, channels), values.dtype)
    monomials = first
    for order in range(1, correlation + 1):
        if order > 1:
            monomials = (monomials[:, None, :] * first[None, :, :]).reshape(-1, number * channels)
        bases = [symmetric_basis(l_max, order, degree) for degree in range(l_out + 1)]
        matrix = np.concatenate([basis.reshape(basis.shape[0], -1).T for basis in bases])
        coupled = jnp.asarray(matrix, values.dtype) @ monomials
        ends = np.cumsum([basis.shape[1] * basis.shape[2] for basis in bases])
        sums = []
        for degree, rows in enumerate(jnp.split(coupled, ends[:-1])):
            _, components, count = bases[degree].shape
            rows = rows.reshape(components, count, number, channels)
            if count:
                sums.append(jnp.einsum("zpnf,npf->znf", rows, weight[order, degree]))
            else:
                sums.append(jnp.zeros((components, number, channels), values.dtype))
        total = total + jnp.concatenate(sums)
    return total


def number_of_symmetric_paths(l_max: int, order: int, degree: int) -> int:
    """How many symmetric couplings of `order` factors give `degree`."""
    return symmetric_basis(l_max, order, degree).shape[2]
