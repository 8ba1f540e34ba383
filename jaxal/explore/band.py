"""Paths whose images are the walkers of a system: a nudged elastic band, and a string."""

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxal.core.precision import exact
from jaxal.core.registry import register
from jaxal.core.types import InputError, Key, Sampler, Seen, Start, Structure
from jaxal.core.units import Unit
from jaxal.data.cell import completed, inverse
from jaxal.explore import fire, rigid
from jaxal.explore.fire import Glide
from jaxal.explore.stepping import where
from jaxal.explore.walker import mobile

Force = Annotated[float, Unit("eV/Å", 0.0, exclusive=True)]
Climb = Annotated[float, Unit("eV/Å", 0.0)]
Stride = Annotated[float, Unit("Å", 0.0, exclusive=True)]
Ends = Literal["fixed", "relaxed"]


class Images(NamedTuple):
    """A band [w]; what all images share stands in every row."""

    structure: Structure
    force: Float[Array, "w n 3"]  # eV/Å, nudged
    glide: Glide
    climbs: Bool[Array, "w"]  # the highest image goes up along the path
    highest: Bool[Array, "w"]  # which one that is
    step: Int[Array, "w"]


@register("sampler")
def band(
    *,
    stiffness: Annotated[float, Unit("eV/Å^2", 0.0, exclusive=True)] = 5.0,
    climb: Climb = 0.3,
    converged: Force = 0.02,
    stride: Stride = 0.02,
    ends: Ends = "fixed",
) -> Sampler:
    """Nudged elastic band with improved tangents and a climbing image, relaxed by FIRE.

    The walkers of the system are its images: its start structures in their order, and between two of them as many more
    as there are walkers. The first and the last stand still, or with `ends` relaxed follow the force on them to their
    minima. What is periodic may be wrapped as it likes: from image to image an atom takes the shortest way. Of the
    committee's force on an image that across the path counts, of springs of `stiffness` (eV/Å^2) that along it. Once no
    atom is pulled by more than `climb` (eV/Å; 0 is never) the highest image feels no springs, and its force along the
    path is turned around: it goes to the saddle. The band is over where no atom of any image is pulled by more than
    `converged` (eV/Å). No atom goes farther than `stride` (Å) in a step. While an image is not physical all of them
    rest, and begin again from where they are. Reported is the `pull` (eV/Å) on the atom of each image that is pulled
    most.

    Henkelman and Jónsson, J. Chem. Phys. 113, 9978 (2000); Henkelman, Uberuaga and Jónsson, ibid. 9901; FIRE: Bitzek
    et al., Phys. Rev. Lett. 97, 170201 (2006). Raises InputError for less than three walkers.
    """

    def springs(ahead: Array, behind: Array) -> Array:
        return stiffness * (_length(ahead) - _length(behind))

    return _path(springs, lambda images, structure: structure, climb, converged, stride, ends)


@register("sampler")
def string(*, climb: Climb = 0.3, converged: Force = 0.02, stride: Stride = 0.02, ends: Ends = "fixed") -> Sampler:
    """A string: images under the committee's force across the path, evenly spaced along it after every step.

    As `band` in all but what holds the images apart: no springs, they are moved along the straight lines between them
    to where each has the same distance (Å, in all coordinates) from the next; from the image that climbs on either side
    of it by itself. Tangents, the climbing image, FIRE, `climb`, `converged`, `stride`, `ends` and the `pull` that is
    reported are those of `band`.

    E, Ren and Vanden-Eijnden, Phys. Rev. B 66, 052301 (2002) and J. Chem. Phys. 126, 164103 (2007). Raises InputError
    for less than three walkers.
    """

    def nothing(ahead: Array, behind: Array) -> Array:
        del behind
        return jnp.zeros_like(_length(ahead))

    def spaced(images: Images, structure: Structure) -> Structure:
        return structure._replace(position=_evenly(structure, images.climbs[0], images.highest))

    return _path(nothing, spaced, climb, converged, stride, ends)


def _path(
    springs: Callable[[Array, Array], Array],
    spaced: Callable[[Images, Structure], Structure],
    climb: float,
    converged: float,
    stride: float,
    ends: Ends,
) -> Sampler:
    """Images that relax across a path; along it `springs` of (ways ahead, behind) push and `spaced` moves them."""

    def nudged(structure: Structure, energy: Float[Array, "w"], force: Array, climbs: Bool[Array, ""]) -> Array:
        """Forces that move the images [w n 3], on the ends those of the committee or none."""
        place = structure.position
        ways = jax.vmap(_shortest)(jax.tree.map(lambda x: x[1:], structure), place[1:] - place[:-1])
        ahead, behind = ways[1:], ways[:-1]
        rise, fall = energy[2:] - energy[1:-1], energy[1:-1] - energy[:-2]
        more, less = jnp.maximum(jnp.abs(rise), jnp.abs(fall)), jnp.minimum(jnp.abs(rise), jnp.abs(fall))
        higher = energy[2:] > energy[:-2]
        # of a monotonic stretch the neighbor that is higher; around an extremum both, by their differences in energy
        up, down = (rise > 0) & (fall > 0), (rise < 0) & (fall < 0)
        more, less = (jnp.where(more > 0, each, 1.0) for each in (more, less))  # where the path is flat both alike
        forward = jnp.where(up, 1.0, jnp.where(down, 0.0, jnp.where(higher, more, less)))
        backward = jnp.where(up, 0.0, jnp.where(down, 1.0, jnp.where(higher, less, more)))
        along = _unit(forward[:, None, None] * ahead + backward[:, None, None] * behind)
        slope = jnp.sum(force[1:-1] * along, axis=(1, 2), keepdims=True)
        onto = jnp.where((_top(energy)[1:-1] & climbs)[:, None, None], -slope, springs(ahead, behind))
        outer = jnp.zeros_like(place) if ends == "fixed" else force
        return outer.at[1:-1].set(force[1:-1] - slope * along + onto * along)

    def rest(
        structure: Structure, climbs: Bool[Array, "w"], highest: Bool[Array, "w"], step: Int[Array, "w"]
    ) -> Images:
        glide = fire.at_rest(structure.position)
        return Images(structure, jnp.zeros_like(structure.position), glide, climbs, highest, step)

    def pull(images: Images) -> Float[Array, "w"]:
        return jnp.sqrt(jnp.max(jnp.sum(images.force**2, axis=-1), axis=-1))

    def over(images: Images) -> Bool[Array, "w"]:
        done = jnp.all((pull(images) < converged) & ~images.glide.rests & (images.climbs | (climb == 0)))
        return jnp.broadcast_to(done, images.climbs.shape)

    def init(keys: Key, start: Start, steps: Int[Array, "w"]) -> Images:
        del keys
        if (number := steps.shape[0]) < 3:
            raise InputError(f"explore.walkers: {number} is too small; a band has 3 images or more")
        none = jnp.zeros(number, bool)
        return rest(start.structure, none, none, steps)

    def propose(images: Images) -> Structure:
        move = images.glide.pace[:, None, None] * images.glide.velocity
        move = fire.bounded(move, jnp.sqrt(jnp.max(jnp.sum(move**2, axis=-1))), stride)
        place = jnp.where(
            jax.vmap(mobile)(images.structure)[..., None], images.structure.position + move, images.structure.position
        )
        return spaced(images, images.structure._replace(position=place))

    def advance(images: Images, structure: Structure, seen: Seen) -> Images:
        moves = jax.vmap(mobile)(structure)[..., None]
        force = jnp.where(moves, seen.force, 0.0).astype(structure.position.dtype)
        force = nudged(structure, seen.energy, force, images.climbs[0])
        force = jax.vmap(rigid.internal)(structure, force)  # springs would turn what nothing holds
        velocity, rows = images.glide.velocity, images.step.shape
        power, ratio = jnp.sum(force * velocity), _ratio(velocity, force)
        power, ratio = (jnp.broadcast_to(x, rows) for x in (power, ratio))
        glide = fire.onward(images.glide, force, power, ratio, fire.LONGEST)
        after = Images(structure, force, glide, images.climbs, _top(seen.energy), images.step + 1)
        climbs = images.climbs | (jnp.max(pull(after)) < climb)
        together = jnp.broadcast_to(jnp.all(seen.physical), seen.physical.shape)
        still = rest(images.structure, images.climbs, images.highest, images.step + 1)
        return where(together, after._replace(climbs=climbs), still)

    def rewind(keys: Key, images: Images, mask: Bool[Array, "w"], start: Start) -> Images:
        del keys
        again = rest(where(mask, start.structure, images.structure), images.climbs, images.highest, images.step)
        return where(jnp.broadcast_to(jnp.any(mask), mask.shape), again, images)

    return Sampler(
        init=init,
        propose=exact(propose),
        advance=exact(advance),
        rewind=rewind,
        walkers=lambda images: images.structure,
        steps=lambda images: images.step,
        kinetic=lambda images: jnp.zeros_like(images.glide.pace),
        degrees=lambda images: jnp.zeros_like(images.step),
        timestep=1.0,
        report=lambda images: {"pull": pull(images)},
        over=over,
        ordered=True,
        couples=True,
        relaxes=True,
    )


def _shortest(structure: Structure, way: Float[Array, "n 3"]) -> Float[Array, "n 3"]:
    """Of the ways that differ by whole lattice vectors the shortest, exactly so below half of the cell's height."""
    images = jnp.round(way @ inverse(completed(structure.cell, structure.periodic)))
    return way - jnp.where(structure.periodic, images, 0.0) @ structure.cell


def _length(vectors: Float[Array, "i n 3"]) -> Float[Array, "i 1 1"]:
    return jnp.sqrt(jnp.sum(vectors**2, axis=(1, 2), keepdims=True))


def _unit(vectors: Float[Array, "i n 3"]) -> Float[Array, "i n 3"]:
    """Of length 1 each; zero where two images are the same."""
    length = _length(vectors)
    return jnp.where(length > 0, vectors / jnp.where(length > 0, length, 1.0), 0.0)


def _ratio(velocity: Array, force: Array) -> Array:
    """Of the lengths of two vectors of the whole band."""
    return jnp.sqrt(jnp.sum(velocity**2)) / jnp.maximum(jnp.sqrt(jnp.sum(force**2)), 1e-12)


def _top(energy: Float[Array, "w"]) -> Bool[Array, "w"]:
    """The highest of the images between the ends."""
    return jnp.arange(len(energy)) == 1 + jnp.argmax(energy[1:-1])


def _evenly(structure: Structure, climbs: Bool[Array, ""], highest: Bool[Array, "w"]) -> Float[Array, "w n 3"]:
    """Positions along the lines between images, as far from each other as the whole path, or the piece of it on either
    side of the image that climbs, allows.
    """
    place, last = structure.position, len(structure.position) - 1
    ways = jax.vmap(_shortest)(jax.tree.map(lambda x: x[1:], structure), place[1:] - place[:-1])
    length = jnp.concatenate([jnp.zeros(1, place.dtype), jnp.cumsum(_length(ways)[:, 0, 0])])
    middle = jnp.where(climbs, jnp.argmax(highest), last)
    row = jnp.arange(last + 1)
    first, second = row / jnp.maximum(middle, 1), (row - middle) / jnp.maximum(last - middle, 1)
    wanted = jnp.where(row <= middle, first * length[middle], length[middle] + second * (length[-1] - length[middle]))
    piece = jnp.clip(jnp.searchsorted(length, wanted, side="right") - 1, 0, last - 1)
    size = length[piece + 1] - length[piece]
    part = jnp.where(size > 0, (wanted - length[piece]) / jnp.where(size > 0, size, 1.0), 0.0)
    moved = place[piece] + part[:, None, None].astype(place.dtype) * ways[piece]
    moves = ~((row == 0) | (row == last) | (climbs & highest))[:, None] & jax.vmap(mobile)(structure)
    return jnp.where(moves[..., None], moved, place)
