"""From a raw uncertainty to one in units: the scale that makes the errors seen most likely."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

FLOOR = 1e-2  # of the mean variance


def floored(variance: Float[Array, "c"], mask: Bool[Array, "c"]) -> Float[Array, "c"]:
    """Variances no smaller than `FLOOR` times their mean over the mask, and 1 outside of it.

    A variance of about zero, that of an atom of the posterior itself, would decide a likelihood alone.
    """
    mean = jnp.sum(jnp.where(mask, variance, 0.0)) / jnp.maximum(jnp.sum(mask), 1)
    low = jnp.where(mean > 0, FLOOR * mean, 1.0)
    return jnp.where(mask, jnp.maximum(variance, low), 1.0)


def likelihood_scale(
    square: Float[Array, "c"], variance: Float[Array, "c"], mask: Bool[Array, "c"]
) -> Float[Array, ""]:
    """Alpha with alpha^2 = mean(square / variance) over the mask: most likely for errors of variance alpha^2 variance.

    `square` are squared errors, of one component or summed over as many as `variance` is. 1 where nothing is masked in
    or all errors are zero. Variances are `floored`.
    """
    ratio = jnp.where(mask, square, 0.0) / floored(variance, mask)
    alpha = jnp.sum(ratio) / jnp.maximum(jnp.sum(mask), 1)
    # not `alpha > 0`: errors that are not numbers must not pass for certainty
    return jnp.sqrt(jnp.where(alpha == 0, 1.0, alpha))
