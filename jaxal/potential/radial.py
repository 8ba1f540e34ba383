"""Radial basis: Bessel functions under a polynomial envelope.

Gasteiger, Groß, Günnemann, "Directional message passing for molecular graphs", ICLR 2020, eqs. 7 and 8.
"""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def bessel(distance: Float[Array, "..."], cutoff: float, number: int) -> Float[Array, "... q"]:
    """sqrt(2/c) sin(q pi r / c) / r for q = 1..number (Å^-3/2), orthonormal on the ball of radius c (Å).

    The distance must be positive.
    """
    frequency = jnp.asarray(np.pi / cutoff * np.arange(1, number + 1), distance.dtype)
    r = distance[..., None]
    # math, not numpy: a numpy scalar would turn everything into 64 bits
    return math.sqrt(2.0 / cutoff) * jnp.sin(frequency * r) / r


def envelope(distance: Float[Array, "..."], cutoff: float, power: int = 5) -> Float[Array, "..."]:
    """Polynomial that is 1 at r = 0 and 0 from r = cutoff (Å) on, with two continuous derivatives there."""
    p = float(power)
    u = distance / cutoff
    value = (
        1.0
        - 0.5 * (p + 1.0) * (p + 2.0) * u**power
        + p * (p + 2.0) * u ** (power + 1)
        - 0.5 * p * (p + 1.0) * u ** (power + 2)
    )
    return jnp.where(u < 1.0, value, 0.0)
