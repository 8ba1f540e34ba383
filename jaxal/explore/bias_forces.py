"""Forces and stresses of biases, and uphill in uncertainty: how it changes with positions and strain.

A bias is an energy E(q, u, x, t) of collective variables q, a measure of uncertainty u, the structure and time; its
force is -(dE/dq dq/dx + dE/dx + dE/du du/dx), and its stress the same of strain. Where the pseudo-members are models of
the energy, each with its own forces, the standard deviation of their energies E_m needs no further gradient:

    u^2 = sum_m (E_m - mean E)^2 / M,    du/dx = -sum_m (E_m - mean E) F_m / (M u),

and the same for the strain, with stresses. Anything else is differentiated as a whole, through score, committee and
neighbor vectors: one reverse pass over the forward and the reverse pass of the forces.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxal.acquire.score import root
from jaxal.committee import evaluation as committees
from jaxal.committee.evaluation import Committee
from jaxal.core import devices
from jaxal.core.devices import MEMBERS, WALKERS
from jaxal.core.precision import exact
from jaxal.core.types import Bias, Moment, Neighbors, Params, Prediction, Score, Structure, Variables

ENERGY, VALUE = "bias_", "variable_"  # what the names of energies and variables begin with, where they are written down


class Term(NamedTuple):
    """One of the biases that act on walkers, and what it is called in trajectory and metrics."""

    name: str
    bias: Bias
    variables: Variables
    labels: tuple[str, ...]  # names of the variables, each once among all terms


Terms = tuple[Term, ...]


class Rise(NamedTuple):
    """A measure u of uncertainty of structures [b] and how it changes."""

    value: Float[Array, "b"]
    position: Float[Array, "b n 3"]  # du/dx, 1/Å
    strain: Float[Array, "b 3 3"]  # du/dstrain over the volume, 1/Å^3; zero if open


class Push(NamedTuple):
    """What biases add to what drives walkers [w], and what is written down of them."""

    force: Float[Array, "w n 3"]  # eV/Å
    stress: Float[Array, "w 3 3"]  # eV/Å^3
    energy: Float[Array, "w"]  # eV
    report: dict[str, Float[Array, "w"]]  # energies, eV, and variables, by `names`


def energy_deviation(prediction: Prediction, structure: Structure) -> Float[Array, ""]:
    """Standard deviation of the energy, eV: the method's closed form, or the members'."""
    del structure
    spread = prediction.energy_spread
    return root(jnp.var(prediction.energy)) if spread is None else spread


def rise(
    committee: Committee,
    measure: Score,
    params: Params,
    structures: Structure,
    neighbors: Neighbors,
    prediction: Prediction,
) -> Rise:
    """The measure of structures [b] that `prediction` is of, and its slopes.

    Inside of `devices.split`, as `evaluation.predict_local`.
    """
    if measure is energy_deviation and committee.uncertainty is None:
        return _of_members(prediction)
    return _differentiated(committee, measure, params, structures, neighbors)


def _of_members(prediction: Prediction) -> Rise:
    energy = prediction.energy - jnp.mean(prediction.energy, axis=1, keepdims=True)
    value = root(jnp.mean(energy**2, axis=1))
    share = energy / jnp.where(value > 0, value, 1.0)[:, None] / energy.shape[1]  # all zero where all agree
    position = -jnp.einsum("bm,bmnx->bnx", share, prediction.force, precision="highest")
    return Rise(value, position, jnp.einsum("bm,bmxy->bxy", share, prediction.stress, precision="highest"))


def _differentiated(
    committee: Committee, measure: Score, params: Params, structures: Structure, neighbors: Neighbors
) -> Rise:
    def total(position: Float[Array, "b n 3"], strain: Float[Array, "b 3 3"]):
        moved = committees.deformed(structures._replace(position=position), strain)
        prediction = committees.predict_local(committee, params, moved, neighbors)
        value = jax.vmap(measure)(prediction, moved)
        return jnp.sum(value), value

    slopes, value = jax.grad(total, argnums=(0, 1), has_aux=True)(structures.position, jnp.zeros_like(structures.cell))
    mesh = committee.mesh
    if mesh is not None and mesh.shape[MEMBERS] > 1:
        # Every device's copy of the value sends its slope to the members of all: each has the share of its own members,
        # as many times as there are devices.
        slopes = jax.tree.map(lambda x: jax.lax.pmean(x, MEMBERS), slopes)
    return Rise(value, slopes[0], committees.by_volume(slopes[1], structures))


def names(terms: Terms) -> tuple[str, ...]:
    """What is written down of the terms at every frame: the energy of each, its variables and its numbers."""
    return tuple(name for term in terms for name in _names(term))


def _names(term: Term) -> tuple[str, ...]:
    own = (f"{term.name}_{name}" for name, _ in term.bias.numbers)
    return f"{ENERGY}{term.name}", *(f"{VALUE}{label}" for label in term.labels), *own


def begun(terms: Terms, structures: Structure) -> tuple[Any, ...]:
    """The states of the terms for walkers [w] that begin at these structures."""
    numbers = jnp.arange(structures.charge.shape[0])

    def begin(bias: Bias) -> Any:
        states = jax.vmap(bias.init)(structures, numbers)
        return jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), states) if bias.shared else states

    return tuple(begin(term.bias) for term in terms)


def rewound(
    terms: Terms,
    rewind: Bool[Array, "w"],
    states: tuple[Any, ...],
    trusted: tuple[Any, ...],
    structures: Structure,
    time: Float[Array, "w"],
) -> tuple[Any, ...]:
    """The states after some of the walkers were taken back to `structures` [w], where the states were `trusted`."""

    def back(bias: Bias, now: Any, then: Any) -> Any:
        if bias.rewind is None:
            again = now if bias.shared else then
        else:
            again = jax.vmap(bias.rewind)(now, then, structures, time)
        return jax.tree.map(lambda a, b: jnp.where(_column(rewind, a), a, b), again, now)

    return tuple(back(term.bias, now, then) for term, now, then in zip(terms, states, trusted, strict=True))


def _column(mask: Bool[Array, "w"], like: Array) -> Bool[Array, "w ..."]:
    return mask.reshape(mask.shape + (1,) * (like.ndim - 1))


def push(
    terms: Terms,
    committee: Committee,
    states: tuple[Any, ...],
    params: Params,
    structures: Structure,
    neighbors: Neighbors,
    prediction: Prediction,
    time: Float[Array, "w"],
    physical: Bool[Array, "w"],
) -> tuple[Push, tuple[Any, ...]]:
    """Force and stress of all biases on walkers [w], and what each has learned; inside of `devices.split`.

    Where the force of a bias on any atom exceeds its `largest`, its force and stress on that walker are scaled down
    together: the direction stays, and the sum over the atoms stays zero. A bias that is not finite is none. `time` is
    in fs.
    """
    force = jnp.where((structures.species >= 0)[..., None], prediction.force.mean(1), 0.0)
    measures = dict.fromkeys(term.bias.measure for term in terms if term.bias.measure is not None)
    up = {each: rise(committee, each, params, structures, neighbors, prediction) for each in measures}
    none = Rise(jnp.zeros_like(time), jnp.zeros_like(force), jnp.zeros_like(structures.cell))
    total, learned = Push(none.position, none.strain, none.value, {}), []
    for term, state in zip(terms, states, strict=True):
        higher = none if term.bias.measure is None else up[term.bias.measure]
        values = jax.vmap(term.variables.values)(structures)
        slope = jnp.where((structures.species >= 0)[..., None], higher.position, 0.0)
        moment = Moment(values, higher.value, slope, force, structures, time, physical)
        after = _learned(committee, term.bias, state, moment)
        pull, stress, energy, sound = jax.vmap(functools.partial(_pull, term))(after, moment, higher.strain)
        kept = jax.tree.map(lambda new, old, ok=sound: jnp.where(_column(ok, new), new, old), after, state)
        learned.append(after if term.bias.shared or term.bias.couples else kept)
        own = (jax.vmap(number)(after) for _, number in term.bias.numbers)
        report = dict(zip(_names(term), (energy, *values.T, *own), strict=True))
        total = Push(total.force + pull, total.stress + stress, total.energy + energy, total.report | report)
    return total, tuple(learned)


def _learned(committee: Committee, bias: Bias, states: Any, moment: Moment) -> Any:
    """States [w] of this device's walkers after a moment [w]; where they are shared all rows are alike, everywhere."""
    if not bias.shared and not bias.couples:
        return jax.vmap(bias.learn)(states, moment)
    together = devices.gathered(committee.mesh, WALKERS, moment)
    if bias.couples:
        after = bias.learn(devices.gathered(committee.mesh, WALKERS, states), together)
        return devices.own(committee.mesh, WALKERS, after)
    after = bias.learn(jax.tree.map(lambda x: x[0], states), together)
    return jax.tree.map(lambda x, y: jnp.broadcast_to(x, y.shape), after, states)


@exact
def _pull(
    term: Term, state: Any, moment: Moment, strain: Float[Array, "3 3"]
) -> tuple[Float[Array, "n 3"], Float[Array, "3 3"], Float[Array, ""], Bool[Array, ""]]:
    """Force, stress and energy of one bias on one walker, and whether they are finite.

    `strain` is the slope of its uncertainty with strain, over the volume.
    """
    structure, bias = moment.structure, term.bias

    def energy(position: Float[Array, "n 3"], strain: Float[Array, "3 3"], uncertainty: Float[Array, ""]):
        moved = committees.deformed(structure._replace(position=position), strain)
        return bias.energy(state, term.variables.values(moved), uncertainty, moved, moment.time)

    still = structure.position, jnp.zeros_like(structure.cell), moment.uncertainty
    value, (slope, strained, weight) = jax.value_and_grad(energy, argnums=(0, 1, 2))(*still)
    slope = jnp.where((structure.species >= 0)[:, None], slope, 0.0)
    stress = committees.by_volume(strained[None], jax.tree.map(lambda x: x[None], structure))[0]
    if bias.measure is not None:
        slope, stress = slope + weight * moment.slope, stress + weight * strain
    largest = jnp.max(root(jnp.sum(slope**2, axis=-1)))
    sound = jnp.isfinite(value) & jnp.isfinite(largest) & jnp.all(jnp.isfinite(stress))
    scale = jnp.ones_like(largest)
    if bias.largest is not None:
        scale = jnp.minimum(scale, bias.largest / jnp.where(largest > 0, largest, 1.0))
    pull, stress = (jnp.where(sound, scale * x, 0.0) for x in (-slope, stress))
    return pull, stress, jnp.where(sound, value, 0.0), sound
