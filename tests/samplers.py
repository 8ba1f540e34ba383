"""Two samplers that couple their walkers, a band of images and an exchange of replicas, and small runs of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jaxal.acquire import gate as gates
from jaxal.acquire import select as selects
from jaxal.acquire.kernel import mean_feature
from jaxal.acquire.score import max_force_spread
from jaxal.committee import evaluation
from jaxal.core.types import InputError, Label, Potential, Sampler, Structure
from jaxal.core.units import BOLTZMANN, TIME_UNIT
from jaxal.data import neighbors
from jaxal.explore.stepping import where
from jaxal.explore.walker import mobile
from jaxal.program import loop
from jaxal.program import state as states
from jaxal.run import training_data
from jaxal.train import fit as training

TABLE, CUTOFF = (1,), 6.0
SPRING = 1.0  # eV/Å^2


class Images(NamedTuple):
    """A band [w]."""

    structure: Structure
    move: Float[Array, "w n 3"]  # eV/Å, what moves each image
    rests: Bool[Array, "w"]  # the band does not move in the next step
    step: Int[Array, "w"]


def band(*, stiffness: float = 2.0, rate: float = 0.03, done: float = 1e-3) -> Sampler:
    """Nudged elastic band, by steepest descent of `rate` (Å^2/eV); the first walker and the last stand still.

    Of the forces on an image that across the path counts, of the springs (eV/Å^2) that along it: Jónsson, Mills and
    Jacobsen in Classical and Quantum Dynamics in Condensed Phase Simulations (1998), p. 385. It is over where no atom
    is pulled by more than `done` (eV/Å). While an image is not physical all of them rest.
    """

    def nudged(structure: Structure, force: Float[Array, "w n 3"]) -> Float[Array, "w n 3"]:
        place = structure.position
        along = place[2:] - place[:-2]
        along = along / jnp.sqrt(jnp.sum(along**2, axis=(1, 2), keepdims=True))
        gap = jnp.sqrt(jnp.sum((place[1:] - place[:-1]) ** 2, axis=(1, 2), keepdims=True))
        across = force[1:-1] - jnp.sum(force[1:-1] * along, axis=(1, 2), keepdims=True) * along
        return jnp.zeros_like(place).at[1:-1].set(across + stiffness * (gap[1:] - gap[:-1]) * along)

    def rest(structure: Structure, step: Int[Array, "w"]) -> Images:
        return Images(structure, jnp.zeros_like(structure.position), jnp.ones(step.shape, bool), step)

    def pull(images: Images) -> Float[Array, "w"]:
        """Force on the atom of each image that is pulled most."""
        return jnp.sqrt(jnp.max(jnp.sum(images.move**2, axis=-1), axis=-1))

    def over(images: Images) -> Bool[Array, "w"]:
        converged = jnp.all((pull(images) < done) & ~images.rests)
        return jnp.broadcast_to(converged, images.rests.shape)

    def init(keys, start, steps):
        if (number := steps.shape[0]) < 3:
            raise InputError(f"explore.walkers: {number} is too small; a band has 3 images or more")
        return rest(start.structure, steps)

    def propose(images: Images) -> Structure:
        return images.structure._replace(position=images.structure.position + rate * images.move)

    def advance(images: Images, structure: Structure, seen) -> Images:
        moves = jax.vmap(mobile)(structure)[..., None]
        move = jnp.where(moves, nudged(structure, jnp.where(moves, seen.force, 0.0)), 0.0)
        after = Images(structure, move, jnp.zeros_like(images.rests), images.step + 1)
        together = jnp.broadcast_to(jnp.all(seen.physical), seen.physical.shape)
        return where(together, after, rest(images.structure, images.step + 1))

    def rewind(keys, images: Images, mask, start) -> Images:
        again = rest(where(mask, start.structure, images.structure), images.step)
        return where(jnp.broadcast_to(jnp.any(mask), mask.shape), again, images)

    return Sampler(
        init=init,
        propose=propose,
        advance=advance,
        rewind=rewind,
        walkers=lambda images: images.structure,
        steps=lambda images: images.step,
        kinetic=lambda images: jnp.zeros_like(images.move[:, 0, 0]),
        degrees=lambda images: jnp.zeros_like(images.step),
        timestep=1.0,
        report=lambda images: {"pull": pull(images)},
        over=over,
        couples=True,
    )


class Replicas(NamedTuple):
    """Replicas [w] of an exchange; momenta in sqrt(eV amu)."""

    structure: Structure
    momentum: Float[Array, "w n 3"]
    force: Float[Array, "w n 3"]
    key: Any
    rung: Int[Array, "w"]  # of the ladder of temperatures
    tries: Float[Array, "w"]  # exchanges that were tried, of the pairs whose colder replica this was
    swaps: Float[Array, "w"]  # that were accepted
    step: Int[Array, "w"]


def exchange(
    *, temperatures: tuple[float, ...], every: int = 10, timestep: float = 1.5, damping: float = 0.2
) -> Sampler:
    """Langevin dynamics of one replica at each temperature (K), whose temperatures are exchanged.

    Every `every` steps neighbors on the ladder exchange with the chance min(1, exp((b_i - b_j) (E_i - E_j))), even and
    odd pairs in turn; the momenta are scaled by the square root of the ratio of the temperatures: Sugita and Okamoto,
    Chem. Phys. Lett. 314, 141 (1999). In between a step of BAOAB, in which momenta lose the part `damping`: Leimkuhler
    and Matthews, J. Chem. Phys. 138, 174102 (2013), whose positions are exact in a harmonic well. What is not physical
    exchanges nothing.
    """
    kT = BOLTZMANN * jnp.asarray(temperatures)
    half, keep = 0.5 * timestep / TIME_UNIT, 1 - damping

    def drawn(keys, structure: Structure, rung) -> Float[Array, "w n 3"]:
        """Momenta of the temperatures of these rungs."""
        size = structure.position.shape[1:]
        noise = jax.vmap(lambda key: jax.random.normal(key, size))(keys)
        moves = jax.vmap(mobile)(structure)[..., None]
        return jnp.where(moves, jnp.sqrt(structure.mass[..., None] * kT[rung][:, None, None]) * noise, 0.0)

    def init(keys, start, steps):
        if (number := steps.shape[0]) != len(temperatures):
            raise InputError(f"explore.walkers: {number} does not fit {len(temperatures)} temperatures; give as many")
        draws, keep = jax.vmap(lambda key: tuple(jax.random.split(key)))(keys)
        rung, none = jnp.arange(number), jnp.zeros(number)
        momentum = drawn(draws, start.structure, rung)
        return Replicas(start.structure, momentum, start.force, keep, rung, none, none, steps)

    def moved(now: Replicas) -> tuple[Structure, Float[Array, "w n 3"]]:
        """Positions after the step, and momenta before its last kick."""
        structure, mass = now.structure, now.structure.mass[..., None]
        moves = jax.vmap(mobile)(structure)[..., None]
        momentum = jnp.where(moves, now.momentum + half * now.force, 0.0)
        middle = structure.position + half * momentum / mass
        keys = jax.vmap(jax.random.fold_in)(now.key, now.step)
        momentum = keep * momentum + jnp.sqrt(1 - keep**2) * drawn(keys, structure, now.rung)
        return structure._replace(position=middle + half * momentum / mass), momentum

    def advance(now: Replicas, structure: Structure, seen) -> Replicas:
        _, momentum = moved(now)
        momentum = jnp.where(jax.vmap(mobile)(structure)[..., None], momentum + half * seen.force, 0.0)
        step = now.step + 1
        number, ladder = len(temperatures), jnp.arange(len(temperatures))
        replica = jnp.argsort(now.rung)  # on each rung
        energy, physical = seen.energy[replica], seen.physical[replica]
        chance = jax.vmap(lambda key, step: jax.random.uniform(jax.random.fold_in(key, -step)))(now.key, step)[replica]
        upper = jnp.minimum(ladder + 1, number - 1)
        paired = (ladder % 2 == (step[0] // every) % 2) & (ladder < number - 1) & (step[0] % every == 0)
        paired &= physical & physical[upper]
        accepted = paired & (jnp.log(chance) < (1 / kT - 1 / kT[upper]) * (energy - energy[upper]))
        lower = jnp.maximum(ladder - 1, 0)
        to = jnp.where(accepted, upper, jnp.where((ladder > 0) & accepted[lower], lower, ladder))
        rung = to[now.rung]
        momentum = momentum * jnp.sqrt(kT[rung] / kT[now.rung])[:, None, None]
        tries, swaps = now.tries + paired[now.rung], now.swaps + accepted[now.rung]
        return Replicas(structure, momentum, seen.force, now.key, rung, tries, swaps, step)

    def rewind(keys, now: Replicas, mask, start) -> Replicas:
        momentum = drawn(keys, start.structure, now.rung)
        again = now._replace(structure=start.structure, momentum=momentum, force=start.force)
        return where(mask, again, now)

    return Sampler(
        init=init,
        propose=lambda now: moved(now)[0],
        advance=advance,
        rewind=rewind,
        walkers=lambda now: now.structure,
        steps=lambda now: now.step,
        kinetic=lambda now: 0.5 * jnp.sum(now.momentum**2 / now.structure.mass[..., None], axis=(1, 2)),
        degrees=lambda now: 3 * jnp.sum(jax.vmap(mobile)(now.structure), axis=-1),
        timestep=timestep,
        bath=lambda now: kT[now.rung] / BOLTZMANN,
        report=lambda now: {"rung": now.rung.astype(now.force.dtype), "tries": now.tries, "swaps": now.swaps},
        couples=True,
    )


def _harmonic(params, structure, near):
    vector, used = neighbors.vectors(structure, near)
    atomic = 0.25 * SPRING * jnp.sum(jnp.where(used, jnp.sum(vector**2, axis=-1), 0.0), axis=1)
    return jnp.sum(atomic), atomic[:, None]


HARMONIC = Potential(lambda *_: {}, _harmonic, CUTOFF)


def scaled(truth: Potential) -> Potential:
    """The truth times a trained factor."""

    def energy(params, structure, near):
        whole, feature = truth.energy({}, structure, near)
        return params["params"]["factor"] * whole, feature

    return Potential(truth.init, energy, truth.cutoff)


def made(sampler, truth, structures, every, looks, factors, mesh=None):
    """(state, segment) of walkers at these structures, of hydrogen, one of the two members for each factor."""
    number, atoms = structures.species.shape
    spec = neighbors.Spec(CUTOFF, 0.0, atoms - 1, (0, 0, 0))

    def label(structures, wanted):
        near = neighbors.find(spec, structures)
        energy, force, stress, _ = jax.vmap(lambda s, n: evaluation.evaluate(truth, {}, s, n))(structures, near)
        return Label(energy, force, stress, wanted)

    parts = states.Parts(
        committee=evaluation.Committee(scaled(truth), 2, mesh=mesh),
        samplers=(sampler,),
        score=max_force_spread,
        gate=gates.threshold(limit=0.0),
        kernel=mean_feature,
        select=selects.top_k,
        label=label,
    )
    group = states.Group(spec._replace(skin=0.5), atoms, (0,) * number)
    recipe = training.Recipe(batch=4, ema=0.5)
    static = states.Static(TABLE, (group,), spec, recipe, every=every, looks=looks, batch=2, fold=4)
    first = jax.tree.map(lambda x: x[:2], structures)
    labels = label(first, jnp.ones(2, bool))
    buffer = training_data.training_set(first, labels, np.array([False, True]), 2, 64, jax.random.key(1), 1.0)
    train = training.init(recipe, {"params": {"factor": jnp.asarray(factors)}})
    state = jax.jit(lambda *arguments: states.start(parts, static, *arguments))(
        train, buffer, structures, jax.random.key(3)
    )
    return state, jax.jit(loop.make_segment(parts, static))
