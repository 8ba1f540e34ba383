"""The contractions of `contraction` by NVIDIA's kernels for segmented polynomials (cuequivariance-jax).

The same sums with the same coefficients, told as polynomials: each coefficient is one product of segments, the channels
of a component. On an NVIDIA GPU one kernel gathers the neighbors, multiplies and adds up by atom, so that no array of
slots and components is made; elsewhere the library evaluates the same polynomials in plain JAX, slowly.

Reference: https://docs.nvidia.com/cuda/cuequivariance
"""

import importlib
import importlib.metadata
import importlib.util
import itertools
from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxal.core.placement import placement
from jaxal.potential.contraction import Features, coupling, of_degree, pairs, paths, sides, symmetric_basis


def trouble() -> str:
    """Why the library cannot be used here; nothing where it can."""
    if importlib.util.find_spec("cuequivariance_jax") is None:
        return "needs cuequivariance-jax; give xla, or install it: pip install 'jaxal[cuda]'"
    try:
        polynomial, operand = product_polynomial(0, 0, 1, 1), jnp.ones((1, 1))
        jax.eval_shape(jax.grad(lambda x: jnp.sum(_evaluated(polynomial, [x, x], 1))), operand)
    except Exception as error:
        return _blamed(error)
    return ""


def _blamed(error: BaseException) -> str:
    """What is to blame for an error of the library: something that is not installed, or the version of JAX."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    cause: BaseException | None = error
    while cause is not None:
        # a Python package, or a shared library of CUDA that such a package loads
        absent = isinstance(cause, ModuleNotFoundError | OSError) or "shared object" in str(cause)
        if absent or (isinstance(cause, ImportError) and "jax" not in str(cause.name or "")):
            right = "install what it needs: pip install 'jaxal[cuda]'"
            return f"cannot load a library that it needs ({reason}); give xla, or {right}"
        cause = cause.__cause__ or cause.__context__
    # it holds on to internals of JAX that change: 0.13 breaks with jax 0.12
    version = importlib.metadata.version("cuequivariance-jax")
    return f"{version} does not work with jax {jax.__version__} ({reason}); give xla, or an older jax"


def _library(name: str) -> Any:
    """A module of the library, which is an extra and slow to import."""
    return importlib.import_module(name)


def _evaluated(polynomial: Any, inputs: list[Array], rows: int, indices: list[Array | None] | None = None) -> Array:
    """A polynomial of arrays [.., segments * channels], as [rows, segments * channels]."""
    cuex = _library("cuequivariance_jax")
    method = "uniform_1d" if placement().platform == "gpu" else "naive"
    out = jax.ShapeDtypeStruct((rows, polynomial.outputs[0].size), inputs[0].dtype)
    return cuex.segmented_polynomial(polynomial, inputs, [out], indices, method=method)[0]


@cache
def message_polynomial(feature_l: int, l_max: int, channels: int) -> Any:
    """Radial weights [pairs] x harmonics x features of the neighbor -> rows of `coupling`."""
    cue = _library("cuequivariance")
    weights = {pair: number for number, pair in enumerate(pairs(feature_l, l_max))}
    harmonics, features = (l_max + 1) ** 2, (feature_l + 1) ** 2
    table = coupling(feature_l, l_max).reshape(-1, harmonics, features)
    product = cue.SegmentedTensorProduct.from_subscripts("u,,u,u")
    for operand, count in ((0, len(weights)), (2, features), (3, len(table))):
        product.add_segments(operand, count * [(channels,)])
    product.add_segments(1, harmonics * [()])
    first = 0
    for degree in range(l_max + 1):
        to = paths(feature_l, l_max, degree)
        for component, (path, (l1, l2)) in itertools.product(range(2 * degree + 1), enumerate(to)):
            row = first + component * len(to) + path
            block = table[row, of_degree(l2), of_degree(l1)]
            for y, x in np.argwhere(block).tolist():
                product.add_path(weights[l1, l2], l2 * l2 + y, l1 * l1 + x, row, c=float(block[y, x]))
        first += (2 * degree + 1) * len(to)
    return cue.SegmentedPolynomial.eval_last_operand(product)


def neighbor_contraction(
    harmonics: Float[Array, "n k h"],
    pair: tuple[Float[Array, "n k ..."], ...],
    functions: Callable[..., Float[Array, "n k q"]],
    weight: Float[Array, "q _ _ f"],
    features: Features,
    index: Int[Array, "n k"],
    reverse: Int[Array, "n k"],
) -> tuple[Float[Array, "_ n _"], ...]:
    """As `contraction.neighbor_contraction`."""
    size, number, channels = features.shape
    feature_l, l_max = round(size**0.5) - 1, round(harmonics.shape[-1] ** 0.5) - 1
    slots = index.shape[1]
    by_pair = jnp.swapaxes(weight, 1, 2).reshape(weight.shape[0], -1)  # in the order of `pairs`
    weights = (functions(*pair) @ by_pair).reshape(number * slots, -1)
    to = jnp.repeat(jnp.arange(number, dtype=index.dtype), slots)
    messages = _evaluated(
        message_polynomial(feature_l, l_max, channels),
        [weights, harmonics.reshape(number * slots, -1), jnp.moveaxis(features, 0, 1).reshape(number, -1)],
        number,
        [None, None, index.reshape(-1), to],
    )
    return sides(jnp.moveaxis(messages.reshape(number, -1, channels), 1, 0), feature_l, l_max)


@cache
def product_polynomial(l_max: int, l_out: int, correlation: int, channels: int) -> Any:
    """Weights [all paths] x 1..correlation times the features -> degrees 0..l_out."""
    cue = _library("cuequivariance")
    size = (l_max + 1) ** 2
    cases = list(itertools.product(range(1, correlation + 1), range(l_out + 1)))
    counts = [symmetric_basis(l_max, order, degree).shape[2] for order, degree in cases]
    segments = {0: sum(counts), 1: size, 2: (l_out + 1) ** 2}
    operations, first = [], 0
    for order in range(1, correlation + 1):
        product = cue.SegmentedTensorProduct.from_subscripts(",".join(["u"] * (order + 2)))
        buffers = [0] + [1] * order + [2]
        for operand, buffer in enumerate(buffers):
            product.add_segments(operand, segments[buffer] * [(channels,)])
        for degree in range(l_out + 1):
            basis = symmetric_basis(l_max, order, degree)
            terms: dict[tuple[int, ...], float] = {}
            for row, component, path in zip(*np.nonzero(basis), strict=True):
                factors = sorted(np.unravel_index(row, (size,) * order))  # products do not know an order
                term = (first + int(path), *map(int, factors), degree * degree + int(component))
                terms[term] = terms.get(term, 0.0) + float(basis[row, component, path])
            for term, value in terms.items():
                product.add_path(*term, c=value)
            first += basis.shape[2]
        operations.append((cue.Operation(tuple(buffers)), product))
    operands = [cue.SegmentedOperand(ndim=1, segments=number * [(channels,)]) for number in segments.values()]
    return cue.SegmentedPolynomial(operands[:2], operands[2:], operations)


def symmetric_product(
    values: Features, weight: dict[tuple[int, int], Float[Array, "n p f"]], l_max: int, l_out: int, correlation: int
) -> Features:
    """As `contraction.symmetric_product`."""
    number, channels = values.shape[1:]
    cases = itertools.product(range(1, correlation + 1), range(l_out + 1))
    weights = jnp.concatenate([weight[case] for case in cases if case in weight], axis=1)
    inputs = [weights.reshape(number, -1), jnp.moveaxis(values, 0, 1).reshape(number, -1)]
    products = _evaluated(product_polynomial(l_max, l_out, correlation, channels), inputs, number)
    return jnp.moveaxis(products.reshape(number, -1, channels), 1, 0)
