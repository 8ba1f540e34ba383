"""Well-tempered metadynamics: walkers of a system fill what they have seen with hills that they share."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxal.core.registry import register
from jaxal.core.types import Bias, Moment, Score, Structure, Variables
from jaxal.core.units import BOLTZMANN, Unit
from jaxal.explore.bias_functions import Largest, at_pace, of_variables
from jaxal.explore.kernels import Kernels, added, empty, grid, value
from jaxal.explore.levels import Level, needs_variables, widths

REACH = 0.5  # widths within which hills are merged: the sum changes by less than a hundredth of a hill


class Hills(NamedTuple):
    """What walkers have deposited; the mass of a hill is its height, eV, but for merged ones, which are wider."""

    kernels: Kernels
    steps: Int[Array, ""]  # until now


@register("bias")
def metadynamics(
    score: Score,
    variables: Variables,
    *,
    width: Level,
    height: Annotated[float, Unit("eV", 0.0, exclusive=True)] = 0.02,
    pace: Annotated[int, Unit("steps", 1)] = 100,
    temperature: Annotated[float, Unit("K", 0.0, exclusive=True)] = 300.0,
    bias_factor: Annotated[float, Unit("", 1.0, exclusive=True)] | None = 10.0,
    hills: Annotated[int, Unit("", 1)] = 2000,
    largest: Largest = None,
) -> Bias:
    """Well-tempered metadynamics with hills that the walkers of a system share.

    Every `pace` steps each walker adds a Gaussian of `width` (one for each variable, in its unit) where it is. Its
    height is `height` (eV) times exp(-V / (k T (gamma - 1))) with the bias V there, the `temperature` T of the dynamics
    and the `bias_factor` gamma, so that V tends to -(1 - 1/gamma) F of the free energy F of the variables, from which
    gamma/(1 - gamma) V is F but for a constant. Without a bias factor (null) all hills are as high, and V goes around
    -F.

    Hills that come within half a width of each other are merged to one of their sum, mean and variance, so that as many
    are kept as the space that was visited has room for. There are slots for so many `hills`; where more are needed each
    further one is merged with the nearest. Walkers that have left the physical add none; hills stay when walkers are
    taken back. `largest` (eV/Å) bounds the force on an atom; null does not.

    Barducci, Bussi and Parrinello, Phys. Rev. Lett. 100, 020603 (2008); shared hills: Raiteri et al., J. Phys. Chem. B
    110, 3533 (2006); its offset c(t): Tiwary and Parrinello, ibid. 119, 736 (2015). Raises InputError without
    variables, and for widths that do not fit them.
    """
    del score
    needs_variables(variables, "metadynamics")
    sigma = widths("width", width, variables)
    tempered = None if bias_factor is None else BOLTZMANN * temperature * (bias_factor - 1)

    def init(structure: Structure, walker: Int[Array, ""]) -> Hills:
        del walker
        return Hills(empty(hills, sigma, structure.position.dtype), jnp.int32(0))

    def deposited(state: Hills, moment: Moment) -> Hills:
        values = moment.variables  # [w v]
        heights = jnp.full(values.shape[:1], height, values.dtype)
        if tempered is not None:
            bias = jax.vmap(lambda each: value(variables, state.kernels, sigma, each))(values)
            heights = heights * jnp.exp(-bias / tempered)
        broad = jnp.broadcast_to(jnp.asarray(sigma, values.dtype), values.shape)
        new = added(variables, state.kernels, values, broad, heights, moment.physical, REACH)
        return state._replace(kernels=new)

    thermal = BOLTZMANN * temperature
    powers = (1.0, 0.0) if bias_factor is None else (bias_factor / (bias_factor - 1), 1 / (bias_factor - 1))

    def offset(state: Hills) -> Float[Array, ""]:
        """Mean of the bias as the present estimate of the free energy weighs it, on a grid over all hills; NaN for more
        than two variables.
        """
        if len(variables.names) > 2:
            return jnp.asarray(jnp.nan, state.kernels.mass.dtype)
        points = grid(variables, state.kernels)
        bias = jax.vmap(lambda each: value(variables, state.kernels, sigma, each))(points)
        whole, rest = (jax.nn.logsumexp(power * bias / thermal) for power in powers)
        return jnp.where(state.kernels.count > 0, thermal * (whole - rest), 0.0)

    return Bias(
        init,
        of_variables(lambda state, values: value(variables, state.kernels, sigma, values)),
        at_pace(pace, deposited),
        shared=True,
        largest=largest,
        temperature=temperature,
        offset=offset,
    )
