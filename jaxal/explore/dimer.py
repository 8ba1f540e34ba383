"""Dimers: pairs of walkers that turn into the softest mode and climb it to a saddle, many of them at once."""

from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxal.core.precision import exact
from jaxal.core.registry import register
from jaxal.core.types import InputError, Key, Sampler, Seen, Start, Structure
from jaxal.core.units import Unit
from jaxal.explore import fire, rigid
from jaxal.explore.fire import Glide
from jaxal.explore.stepping import where
from jaxal.explore.walker import mobile

Length = Annotated[float, Unit("Å", 0.0, exclusive=True)]
ENOUGH = 0.05  # rad; a dimer that would turn less does not
UNKNOWN = 1e3  # eV/Å, before a force is known
LONGEST = 0.5  # of the time step of the moves, sqrt(Å^2/eV)


class Pairs(NamedTuple):
    """Dimers [w]; rows 2i and 2i + 1 are the middle and one end of a dimer, what both share stands in both."""

    structure: Structure
    axis: Float[Array, "w n 3"]  # unit vector from the middle to the end
    sense: Float[Array, "w n 3"]  # unit vector across the axis, into which it turns
    curvature: Float[Array, "w"]  # eV/Å^2, along the axis
    slope: Float[Array, "w"]  # of the curvature with the angle, eV/Å^2
    angle: Float[Array, "w"]  # rad, by which it is turned on trial; 0: it is not
    force: Float[Array, "w n 3"]  # eV/Å, that moves the dimer
    glide: Glide
    pull: Float[Array, "w"]  # eV/Å, on the atom of the middle that is pulled most
    step: Int[Array, "w"]


@register("sampler")
def dimer(
    *,
    length: Length = 0.02,
    converged: Annotated[float, Unit("eV/Å", 0.0, exclusive=True)] = 0.02,
    stride: Length = 0.1,
    jolt: Annotated[float, Unit("Å", 0.0)] = 0.1,
) -> Sampler:
    """Dimers that go to saddles: two walkers each, its middle and an end `length` (Å) away, in a random direction.

    A dimer turns until its axis is the softest mode, by the force on its end and one trial angle for each turn, then it
    moves: along the axis against the force, across it with the force where the curvature is negative, by FIRE, no atom
    farther than `stride` (Å). Middles begin at the start structures of their numbers, displaced by a Gaussian of `jolt`
    (Å) per coordinate. Of open structures without fixed atoms the axis is no rotation and no translation. A dimer is
    over where no atom of its middle is pulled by more than `converged` (eV/Å) and the curvature is negative; it stands
    still then. While one of its two walkers is not physical it rests. Reported are `curvature` (eV/Å^2) and `pull`
    (eV/Å).

    Henkelman and Jónsson, J. Chem. Phys. 111, 7010 (1999); turning: Heyden, Bell and Keil, ibid. 123, 224101 (2005).
    Raises InputError for an odd number of walkers.
    """

    def init(keys: Key, start: Start, steps: Int[Array, "w"]) -> Pairs:
        if steps.shape[0] % 2:
            raise InputError(f"explore.walkers: {steps.shape[0]} is odd; a dimer is two walkers")
        middle = jax.tree.map(lambda x: _both(x[::2]), start.structure)
        noise = jolt * _both(_noise(keys, middle)[::2])
        moved = jnp.where(jax.vmap(mobile)(middle)[..., None], middle.position + noise, middle.position)
        return begun(jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys), middle._replace(position=moved), steps)

    def begun(keys: Key, structure: Structure, steps: Int[Array, "w"]) -> Pairs:
        """With random axes; the middles are those of the structures."""
        axis = _unit(_internal(structure, _both(_noise(keys, structure)[::2])))
        none, still = jnp.zeros(steps.shape, structure.position.dtype), jnp.zeros_like(axis)
        pairs = Pairs(structure, axis, still, none, none, none, still, fire.at_rest(still), none + UNKNOWN, steps)
        return pairs._replace(structure=ends_of(pairs))

    def turned_by(pairs: Pairs, angle: Float[Array, "w"]) -> Float[Array, "w n 3"]:
        """The axis, turned."""
        return _column(jnp.cos(angle)) * pairs.axis + _column(jnp.sin(angle)) * pairs.sense

    def ends_of(pairs: Pairs, move: Array | float = 0.0) -> Structure:
        """Where both walkers of each dimer are, its middle moved; fixed atoms stay."""
        middle = _both(pairs.structure.position[::2]) + move
        place = middle + _column(jnp.where(_is_end(pairs.step), length, 0.0)) * turned_by(pairs, pairs.angle)
        moves = jax.vmap(mobile)(pairs.structure)[..., None]
        return pairs.structure._replace(position=jnp.where(moves, place, pairs.structure.position))

    def over(pairs: Pairs) -> Bool[Array, "w"]:
        return (pairs.pull < converged) & (pairs.curvature < 0)

    def propose(pairs: Pairs) -> Structure:
        move = _column(pairs.glide.pace) * pairs.glide.velocity
        move = fire.bounded(move, _farthest(move), stride)
        stays = (pairs.angle != 0) | over(pairs) | pairs.glide.rests
        return ends_of(pairs, jnp.where(_column(stays), 0.0, move))

    def advance(pairs: Pairs, structure: Structure, seen: Seen) -> Pairs:
        moves = jax.vmap(mobile)(structure)[..., None]
        force = jnp.where(moves, seen.force, 0.0).astype(structure.position.dtype)
        middle, end = _both(force[::2]), _both(force[1::2])
        after = where(pairs.angle != 0, turn(pairs, structure, middle, end), look(pairs, structure, middle, end))
        glide = where(over(after), fire.at_rest(after.axis), after.glide)
        after = after._replace(glide=glide, step=pairs.step + 1)
        rests = pairs._replace(glide=fire.at_rest(pairs.axis), angle=jnp.zeros_like(pairs.angle), step=pairs.step + 1)
        both = seen.physical & _other(seen.physical)
        return where(both, after, rests._replace(structure=ends_of(rests)))

    def look(pairs: Pairs, structure: Structure, middle: Array, end: Array) -> Pairs:
        """The curvature along the axis, and where to turn: by a trial angle, or not at all and move."""
        curvature = _dot(middle - end, pairs.axis) / length
        across = _internal(structure, end - middle)
        across = across - _column(_dot(across, pairs.axis)) * pairs.axis
        slope = -2 * _norm(across) / length
        angle = 0.5 * jnp.arctan2(-slope, 2 * jnp.abs(curvature))
        turns, pull = angle > ENOUGH, _farthest(middle)
        now = pairs._replace(
            structure=structure,
            sense=_unit(across),
            curvature=curvature,
            slope=slope,
            angle=jnp.where(turns, angle, 0.0),
            pull=pull,
        )
        return where(turns, now, moved(now, middle))

    def turn(pairs: Pairs, structure: Structure, middle: Array, end: Array) -> Pairs:
        """With the axis of least curvature in the plane of axis and sense, from that at the trial angle."""
        trial = turned_by(pairs, pairs.angle)
        there = _dot(middle - end, trial) / length
        sine, drop = 0.5 * pairs.slope, 1 - jnp.cos(2 * pairs.angle)
        cosine = (pairs.curvature - there + sine * jnp.sin(2 * pairs.angle)) / jnp.maximum(drop, 1e-6)

        def beyond(angle: Float[Array, "w"]) -> Float[Array, "w"]:
            """The curvature at an angle, less its mean over all."""
            return cosine * jnp.cos(2 * angle) + sine * jnp.sin(2 * angle)

        best = 0.5 * jnp.arctan2(sine, cosine)  # an extremum
        best = jnp.where(beyond(best) > 0, best + jnp.pi / 2, best)
        axis = _unit(_internal(structure, turned_by(pairs, best)))
        least = pairs.curvature - cosine + beyond(best)
        now = pairs._replace(structure=structure, axis=axis, curvature=least, angle=jnp.zeros_like(best))
        return moved(now, middle)

    def moved(pairs: Pairs, middle: Array) -> Pairs:
        """With the force that takes the middle to the saddle."""
        along = _column(_dot(middle, pairs.axis)) * pairs.axis
        force = jnp.where(_column(pairs.curvature) < 0, middle - 2 * along, -along)
        velocity = pairs.glide.velocity
        ratio = _norm(velocity) / jnp.maximum(_norm(force), 1e-12)
        return pairs._replace(force=force, glide=fire.onward(pairs.glide, force, _dot(force, velocity), ratio, LONGEST))

    def rewind(keys: Key, pairs: Pairs, mask: Bool[Array, "w"], start: Start) -> Pairs:
        again = begun(keys, start.structure, pairs.step)._replace(structure=start.structure)
        either = mask | _other(mask)
        new = where(either, again, pairs)
        return new._replace(structure=where(mask, start.structure, pairs.structure))

    return Sampler(
        init=init,
        propose=exact(propose),
        advance=exact(advance),
        rewind=rewind,
        walkers=lambda pairs: pairs.structure,
        steps=lambda pairs: pairs.step,
        kinetic=lambda pairs: jnp.zeros_like(pairs.curvature),
        degrees=lambda pairs: jnp.zeros_like(pairs.step),
        timestep=1.0,
        report=lambda pairs: {"curvature": pairs.curvature, "pull": pairs.pull},
        over=over,
        couples=True,
        relaxes=True,
    )


def _is_end(like: Array) -> Bool[Array, "w"]:
    return jnp.arange(like.shape[0]) % 2 == 1


def _both(x: Array) -> Array:
    """Rows of the dimers [w/2 ...] for both walkers of each."""
    return jnp.repeat(x, 2, axis=0)


def _other(x: Array) -> Array:
    """The rows of the other walkers of the dimers."""
    return x.reshape(-1, 2, *x.shape[1:])[:, ::-1].reshape(x.shape)


def _noise(keys: Key, structure: Structure) -> Float[Array, "w n 3"]:
    size, dtype = structure.position.shape[1:], structure.position.dtype
    return jax.vmap(lambda key: jax.random.normal(key, size, dtype))(keys)


def _dot(a: Float[Array, "w n 3"], b: Float[Array, "w n 3"]) -> Float[Array, "w"]:
    return jnp.sum(a * b, axis=(1, 2))


def _norm(a: Float[Array, "w n 3"]) -> Float[Array, "w"]:
    return jnp.sqrt(_dot(a, a))


def _unit(a: Float[Array, "w n 3"]) -> Float[Array, "w n 3"]:
    length = _norm(a)
    return a / _column(jnp.where(length > 0, length, 1.0))


def _farthest(a: Float[Array, "w n 3"]) -> Float[Array, "w"]:
    """The longest vector of any atom; of both walkers of a dimer the same."""
    return jnp.sqrt(jnp.max(jnp.sum(a**2, axis=-1), axis=-1))


def _column(values: Float[Array, "w"]) -> Float[Array, "w 1 1"]:
    return values[:, None, None]


def _internal(structure: Structure, vectors: Float[Array, "w n 3"]) -> Float[Array, "w n 3"]:
    """Vectors without fixed atoms and padding, and without what moves the whole: translations where no atom is fixed,
    rotations where nothing is periodic, too. Both walkers of a dimer have those of its middle.
    """
    middle = jax.tree.map(lambda x: _both(x[::2]), structure)
    return jax.vmap(rigid.internal)(middle, vectors)
