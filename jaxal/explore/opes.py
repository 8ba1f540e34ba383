"""On-the-fly probability enhanced sampling: a bias from the density of the variables, estimated as walkers go."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxal.core.registry import register
from jaxal.core.types import Bias, InputError, Moment, Score, Structure, Variables
from jaxal.core.units import BOLTZMANN, Unit
from jaxal.explore.bias_functions import Largest, at_pace, of_variables
from jaxal.explore.kernels import Kernels, added, empty, value
from jaxal.explore.levels import Level, needs_variables, widths

RANGE = 60.0  # of the logarithm of a weight: squares of weights that differ by more vanish in single precision


class Density(NamedTuple):
    """The weighted samples, as kernels, and their weights."""

    kernels: Kernels
    total: Float[Array, ""]  # of the weights of the samples
    squares: Float[Array, ""]
    norm: Float[Array, ""]  # Z: the density, averaged over the kernels
    steps: Int[Array, ""]


@register("bias")
def opes(
    score: Score,
    variables: Variables,
    *,
    width: Level,
    barrier: Annotated[float, Unit("eV", 0.0, exclusive=True)] = 0.5,
    pace: Annotated[int, Unit("steps", 1)] = 100,
    temperature: Annotated[float, Unit("K", 0.0, exclusive=True)] = 300.0,
    bias_factor: Annotated[float, Unit("", 1.0, exclusive=True)] | None = None,
    kernels: Annotated[int, Unit("", 2)] = 500,
    compression: Annotated[float, Unit("", 0.0)] = 1.0,
    largest: Largest = None,
) -> Bias:
    """OPES: V = (1 - 1/gamma) k T ln(P/Z + epsilon), with the density P of the variables that walkers share.

    Every `pace` steps each walker adds a kernel of weight exp(V/kT) to P: first of `width` (one for each variable, in
    its unit; about the deviation of the variables in a minimum), then narrower as N_eff^(-1/(v + 4)) of the effective
    number of samples. A new kernel within `compression` widths of another is merged with it, to one of the mass, the
    mean and the variance of both; so it is, with the nearest, when all `kernels` are taken. Z is the mean of P over the
    kernels, and epsilon = exp(-barrier/((1 - 1/gamma) kT)): the bias, never below -`barrier` (eV), does not fill what
    is higher. `temperature` T is that of the dynamics; the `bias_factor` gamma is barrier/kT by default.

    V is near its limit at once, and samples reweighted by exp(V/kT) give free energies from the beginning. Walkers that
    have left the physical add nothing; kernels stay when walkers are taken back. `largest` (eV/Å) bounds the force on
    an atom; null does not.

    Invernizzi and Parrinello, J. Phys. Chem. Lett. 11, 2731 (2020). Raises InputError without variables, for widths
    that do not fit them, and for a barrier that is not above kT.
    """
    del score
    needs_variables(variables, "opes")
    thermal = BOLTZMANN * temperature
    factor = barrier / thermal if bias_factor is None else bias_factor
    if factor <= 1:
        raise InputError(f"barrier: {barrier:g} eV is too small; give more than kT, {thermal:.3g} eV")
    size, first = len(variables.names), widths("width", width, variables)
    strength = (1 - 1 / factor) * thermal
    least = float(np.exp(-min(barrier / thermal, RANGE)))  # weight of a sample where nothing is known yet

    def density(state: Density, values: Float[Array, "v"]) -> Float[Array, ""]:
        return value(variables, state.kernels, first, values) / jnp.maximum(state.total, least)

    def bias(state: Density, values: Float[Array, "v"]) -> Float[Array, ""]:
        # ln(P/Z + epsilon), where neither P nor epsilon need be numbers that single precision has
        part = density(state, values) / state.norm
        there = part > 0
        log = jnp.log(jnp.where(there, part, 1.0))
        least_log = jnp.asarray(-barrier / strength, values.dtype)
        return strength * jnp.where(there, jnp.logaddexp(log, least_log), least_log)

    def init(structure: Structure, walker: Int[Array, ""]) -> Density:
        del walker
        dtype = structure.position.dtype
        start = jnp.asarray(least, dtype)
        return Density(empty(kernels, first, dtype), start, start**2, jnp.ones((), dtype), jnp.int32(0))

    def deposited(state: Density, moment: Moment) -> Density:
        values = moment.variables  # [w v]
        logs = jnp.maximum(jax.vmap(bias, (None, 0))(state, values) / thermal, -RANGE)
        weights = jnp.where(moment.physical, jnp.exp(logs), 0.0)
        totals, squares = state.total + jnp.cumsum(weights), state.squares + jnp.cumsum(weights**2)
        effective = (1 + totals) ** 2 / (1 + squares)
        scale = (effective * (size + 2) / 4) ** (-1 / (size + 4))
        narrow = scale[:, None] * jnp.asarray(first, values.dtype)
        new = added(variables, state.kernels, values, narrow, weights, moment.physical, compression)
        state = Density(new, totals[-1], squares[-1], state.norm, state.steps)
        there = jax.lax.map(lambda center: density(state, center), new.center)
        norm = jnp.sum(jnp.where(jnp.arange(kernels) < new.count, there, 0.0)) / jnp.maximum(new.count, 1)
        return state._replace(norm=jnp.where(new.count > 0, norm, 1.0))

    return Bias(
        init,
        of_variables(bias),
        at_pace(pace, deposited),
        shared=True,
        largest=largest,
        temperature=temperature,
    )
