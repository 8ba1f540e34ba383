"""What makes a Gaussian posterior of weights most likely: the strength of the prior, and a scale of all spreads."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxal.uncertainty.gaussian import inverse_root
from jaxal.uncertainty.scale import floored, likelihood_scale

STRENGTHS = 13  # of the prior that are compared


def fitted(
    rows: Float[Array, "t d"], design: Float[Array, "q d"], gap: Float[Array, "q"], there: Bool[Array, "q"]
) -> tuple[Float[Array, "d d"], Float[Array, ""]]:
    """Root of the covariance (strength + rows^T rows)^-1 and the scale of its spreads.

    `rows` are observed with unit variance. `gap` are errors, in their own units, of what the weights contribute along
    `design`, where they are `there`: strength and scale are those under which these errors, normal with variance
    scale^2 design (strength + rows^T rows)^-1 design, are most likely. Strengths reach from the smallest that rounding
    leaves to tell from nothing up to the largest eigenvalue. With nothing to judge by, strength and scale are 1.
    """
    values, vectors = jnp.linalg.eigh(rows.T @ rows)
    values = jnp.maximum(values, 0.0)
    part = (design @ vectors) ** 2
    top = jnp.where(values[-1] > 0, values[-1], 1.0)
    least = -6 if rows.dtype == jnp.float32 else -8
    strengths = top * jnp.logspace(least, 0, STRENGTHS, dtype=rows.dtype)

    def surprise(strength: Float[Array, ""]) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Twice the negative log-likelihood with the most likely scale, and that scale."""
        variance = part @ (1 / (values + strength))
        scale = likelihood_scale(gap**2, variance, there)
        log = jnp.sum(jnp.where(there, jnp.log(floored(variance, there)), 0.0))
        return log + 2 * jnp.sum(there) * jnp.log(scale), scale

    surprises, choices = jax.lax.map(surprise, strengths)
    best = jnp.argmin(surprises)
    return inverse_root(values + jnp.where(jnp.any(there), strengths[best], 1.0), vectors), choices[best]
