"""Matrix products in full single precision on every backend."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax

F = TypeVar("F", bound=Callable[..., Any])


def exact(function: F) -> F:
    """`function` with its matrix products, and those of its derivatives, in the precision of their arguments.

    By default JAX lets GPUs round float32 factors to TF32 (10 bits) and TPUs to bfloat16 (7 bits): a lattice vector of
    10 Å would be off by 0.01 Å.
    """

    @functools.wraps(function)
    def wrapped(*arguments: Any, **options: Any) -> Any:
        with jax.default_matmul_precision("float32"):
            return function(*arguments, **options)

    return cast(F, wrapped)
