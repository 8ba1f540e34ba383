"""Biases of uncertainty: energies that drive walkers to where the committee is unsure, whatever moves them.

A bias is `(score, variables, *, options) -> Bias`: it gets the run's score and the collective variables that its
section names. These read no variables. Their `measure` u is the standard deviation of the committee's energy, or the
run's own score; forces and stress come from the gradient of u (`jaxal.explore.bias_forces`). What a bias may do to an
atom is bounded by `largest`: a bias that knows no energy would drive atoms into each other, where nothing was learned
yet and the spread is largest. Beside it `gate.closest` and `gate.implausible` end every walk that gets too far.
"""

from typing import Annotated, Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxal.core.registry import register
from jaxal.core.types import Bias, Moment, Score, Structure, Variables
from jaxal.core.units import BOLTZMANN, Unit
from jaxal.explore.bias_forces import energy_deviation
from jaxal.explore.bias_functions import as_before, nothing

Measure = Literal["energy", "score"]
Largest = Annotated[float, Unit("eV/Å", 0.0, exclusive=True)]
Positive = Annotated[float, Unit("", 0.0, exclusive=True)]


class Adapted(NamedTuple):
    """What the hyperactive bias has seen of one walker: running means, and how many steps they are of."""

    mean: Float[Array, ""]  # eV/Å, of the committee's mean force: RMS over the atoms
    slope: Float[Array, ""]  # of du/dx: RMS over the atoms
    count: Float[Array, ""]


@register("bias")
def uncertainty_driven(
    score: Score,
    variables: Variables,
    *,
    measure: Measure = "energy",
    height: Annotated[float, Unit("eV", 0.0)] = 1.0,
    width: Positive = 0.02,
    largest: Largest = 3.0,
) -> Bias:
    """Uncertainty-driven dynamics: a bias that saturates, E = height (exp(-u^2 / (N width^2)) - 1).

    `height` A in eV, `width` B. With `measure` energy u is the standard deviation of the committee's energy, N the
    number of atoms and B in eV: as published, A (exp(-sigma^2 / (M N B^2)) - 1), where sigma^2 = M u^2 is the sum over
    the M members; a factor before that sum is one in B. With `measure` score u is the run's score, N = 1 and B in the
    score's unit.
    `largest` (eV/Å) is the largest bias force on an atom. Periodic cells get the stress of the same energy.

    Kulichenko et al., Nat. Comput. Sci. 3, 230 (2023); bias stress: Zaverkin et al., arXiv:2312.01416.
    """
    del variables

    def energy(state: Any, _: Any, value: Float[Array, ""], structure: Structure, time: Any) -> Float[Array, ""]:
        del state, time
        atoms = jnp.maximum(jnp.sum(structure.species >= 0), 1) if measure == "energy" else 1
        return height * jnp.expm1(-(value**2) / (atoms * width**2))

    return Bias(nothing, energy, as_before, _of(measure, score), largest=largest)


@register("bias")
def hyperactive(
    score: Score,
    variables: Variables,
    *,
    measure: Measure = "energy",
    fraction: Annotated[float, Unit("", 0.0)] = 0.25,
    memory: Annotated[int, Unit("", 1)] = 200,
    largest: Largest = 3.0,
) -> Bias:
    """Hyperactive learning: a linear bias, E = -tau u, whose tau keeps it a fraction of the mean force.

    u is the standard deviation of the committee's energy (`measure` energy, eV) or the run's score (`measure` score).
    tau = `fraction` <|F|> / <|du/dx|>, both RMS over the atoms, averaged for each walker over its last `memory` steps
    (over all of them while they are fewer). `largest` (eV/Å) is the largest bias force on an atom. Periodic cells get
    the stress of the same energy.

    van der Oord, Sachs, Kovács, Ortner and Csányi, npj Comput. Mater. 9, 168 (2023).
    """
    del variables

    def init(structure: Structure, walker: Int[Array, ""]) -> Adapted:
        del walker
        zero = jnp.zeros((), structure.position.dtype)
        return Adapted(zero, zero, zero)

    def learn(state: Adapted, moment: Moment) -> Adapted:
        count = jnp.minimum(state.count + 1, memory)

        def onward(old: Float[Array, ""], vectors: Float[Array, "n 3"]) -> Float[Array, ""]:
            # padded atoms have no force: they lower both means alike, and tau is their ratio
            return old + (jnp.sqrt(jnp.mean(jnp.sum(vectors**2, axis=-1))) - old) / count

        return Adapted(onward(state.mean, moment.force), onward(state.slope, moment.slope), count)

    def energy(state: Adapted, _: Any, value: Float[Array, ""], structure: Structure, time: Any) -> Float[Array, ""]:
        del structure, time
        some = state.slope > 0
        return -jnp.where(some, fraction * state.mean / jnp.where(some, state.slope, 1.0), 0.0) * value

    return Bias(init, energy, learn, _of(measure, score), largest=largest)


@register("bias")
def adversarial(
    score: Score,
    variables: Variables,
    *,
    temperature: Annotated[float, Unit("K", 0.0, exclusive=True)] = 1000.0,
    largest: Largest = 3.0,
) -> Bias:
    """Adversarial structures: the score, squared, weighed by Boltzmann's factor, E = -kT ln u^2.

    With the mean energy beside it the walker's potential is -kT ln(exp(-E/kT) u^2): its descent (explorer `descent`) is
    gradient ascent of the published objective, p(E; kT) u^2, whose normalization is constant. The energy is bounded by
    that: from one structure to another of larger objective it rises by less than 2 kT ln(u' / u). Langevin dynamics at
    the same `temperature` (K) samples the objective instead. u is the run's score, for which `mean_force_spread` is the
    published one. `largest` (eV/Å) is the largest bias force on an atom; it acts where the score is small.

    Schwalbe-Koda, Tan and Gómez-Bombarelli, Nat. Commun. 12, 5104 (2021).
    """
    del variables

    def energy(state: Any, _: Any, value: Float[Array, ""], structure: Structure, time: Any) -> Float[Array, ""]:
        del state, structure, time
        some = value > 0
        return jnp.where(some, -2 * BOLTZMANN * temperature * jnp.log(jnp.where(some, value, 1.0)), 0.0)

    return Bias(nothing, energy, as_before, score, largest=largest)


def _of(measure: Measure, score: Score) -> Score:
    return energy_deviation if measure == "energy" else score
