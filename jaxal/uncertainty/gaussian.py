"""A normal distribution of weights by a root R of its covariance R R^T, which stays positive whatever the rounding."""

import jax.numpy as jnp
from jaxtyping import Array, Float


def inverse_root(values: Float[Array, "d"], vectors: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """V diag(values^-1/2) V^T, the symmetric root: it changes as little as the matrix, whatever eigh's signs are."""
    return (vectors * values**-0.5) @ vectors.T


def updated(root: Float[Array, "d d"], rows: Float[Array, "k d"]) -> Float[Array, "d d"]:
    """The root after observations of unit variance of the products of the weights with `rows`, in any number k.

    The precision grows by rows^T rows. With M = R^T rows^T the new covariance is R (1 + M M^T)^-1 R^T, and
    (1 + M M^T)^-1/2 = 1 - M U diag(1 / (t (1 + t))) U^T M^T where M^T M = U diag(t^2 - 1) U^T: d^2 k + k^3 operations.
    Rows of zeros change nothing.
    """
    spread = root.T @ rows.T  # [d, k]
    values, vectors = jnp.linalg.eigh(spread.T @ spread)
    t = jnp.sqrt(1.0 + jnp.maximum(values, 0.0))
    turned = spread @ vectors
    return root - ((root @ turned) / (t * (1 + t))) @ turned.T
