"""A nudged elastic band whose images are the walkers of a system."""

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


class Images(NamedTuple):
    """A band [w]; what all images share stands in every row."""

    structure: Structure
    force: Float[Array, "w n 3"]  # eV/Å, nudged
    glide: Glide
    climbs: Bool[Array, "w"]  # the highest image goes up along the path
    step: Int[Array, "w"]


@register("sampler")
def band(
    *,
    stiffness: Annotated[float, Unit("eV/Å^2", 0.0, exclusive=True)] = 5.0,
    climb: Annotated[float, Unit("eV/Å", 0.0)] = 0.3,
    converged: Force = 0.02,
    stride: Annotated[float, Unit("Å", 0.0, exclusive=True)] = 0.02,
    ends: Literal["fixed", "relaxed"] = "fixed",
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
        spring = stiffness * (_length(ahead) - _length(behind))
        top = jnp.arange(len(place) - 2) == jnp.argmax(energy[1:-1])
        onto = jnp.where((top & climbs)[:, None, None], -slope, spring)
        outer = jnp.zeros_like(place) if ends == "fixed" else force
        return outer.at[1:-1].set(force[1:-1] - slope * along + onto * along)

    def rest(structure: Structure, climbs: Bool[Array, "w"], step: Int[Array, "w"]) -> Images:
        return Images(structure, jnp.zeros_like(structure.position), fire.at_rest(structure.position), climbs, step)

    def pull(images: Images) -> Float[Array, "w"]:
        return jnp.sqrt(jnp.max(jnp.sum(images.force**2, axis=-1), axis=-1))

    def over(images: Images) -> Bool[Array, "w"]:
        done = jnp.all((pull(images) < converged) & ~images.glide.rests & (images.climbs | (climb == 0)))
        return jnp.broadcast_to(done, images.climbs.shape)

    def init(keys: Key, start: Start, steps: Int[Array, "w"]) -> Images:
        del keys
        if (number := steps.shape[0]) < 3:
            raise InputError(f"explore.walkers: {number} is too small; a band has 3 images or more")
        return rest(start.structure, jnp.zeros(number, bool), steps)

    def propose(images: Images) -> Structure:
        move = images.glide.pace[:, None, None] * images.glide.velocity
        move = fire.bounded(move, jnp.sqrt(jnp.max(jnp.sum(move**2, axis=-1))), stride)
        place = jnp.where(
            jax.vmap(mobile)(images.structure)[..., None], images.structure.position + move, images.structure.position
        )
        return images.structure._replace(position=place)

    def advance(images: Images, structure: Structure, seen: Seen) -> Images:
        moves = jax.vmap(mobile)(structure)[..., None]
        force = jnp.where(moves, seen.force, 0.0).astype(structure.position.dtype)
        force = nudged(structure, seen.energy, force, images.climbs[0])
        force = jax.vmap(rigid.internal)(structure, force)  # springs would turn what nothing holds
        velocity, rows = images.glide.velocity, images.step.shape
        power, ratio = jnp.sum(force * velocity), _ratio(velocity, force)
        power, ratio = (jnp.broadcast_to(x, rows) for x in (power, ratio))
        glide = fire.onward(images.glide, force, power, ratio, fire.LONGEST)
        after = Images(structure, force, glide, images.climbs, images.step + 1)
        climbs = images.climbs | (jnp.max(pull(after)) < climb)
        together = jnp.broadcast_to(jnp.all(seen.physical), seen.physical.shape)
        return where(together, after._replace(climbs=climbs), rest(images.structure, images.climbs, images.step + 1))

    def rewind(keys: Key, images: Images, mask: Bool[Array, "w"], start: Start) -> Images:
        del keys
        again = rest(where(mask, start.structure, images.structure), images.climbs, images.step)
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
