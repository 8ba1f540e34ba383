"""Energies, forces and stresses of one model and of a committee.

Forces and stress are one gradient wrapped around the energy. Members stand on a leading axis [m] of the
parameters. How members and structures are batched is one switch: on CPUs the members are taken one after the
other (a vmap over members makes XLA's batched products lose their layout and runs 2 to 3 times slower), on
accelerators the widest batch wins.

Members may also share their weights but for a readout head each (see `heads`); then the parameters have one row for
each set of weights, [r], and m = r * heads.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from jaxal.committee import heads
from jaxal.core import devices
from jaxal.core.devices import MEMBERS, WALKERS
from jaxal.core.placement import placement
from jaxal.core.precision import exact
from jaxal.core.types import FORCE, Distribution, Key, Neighbors, Params, Potential, Prediction, Structure, Uncertainty
from jaxal.data.cell import along_periodic, determinant

Batching = Literal["auto", "map", "vmap"]
CACHED = 2**12  # neighbors


class Committee(NamedTuple):
    """What has to be static about a committee; hashable.

    Its parameters have the sets of weights on a leading axis [r], of `heads` members each: a full committee is one
    head on each of m sets, a shared one m heads on one. `signs` = 0 predicts every member; k > 0 their exact mean and
    an estimate of their spread from k random combinations of the heads, at the cost of 1 + k members instead of
    `heads`: a Prediction of 2 k pseudo-members of each set, whose population variance has the expectation of the
    members' (see `heads.combinations`).
    """

    potential: Potential
    members: int
    batching: Batching = "auto"
    heads: int = 1  # members on one set of weights; a divisor of `members`
    signs: int = 0  # random-sign combinations of the heads
    species: int = 1  # rows of the species table; heads have weights for each
    uncertainty: Uncertainty | None = None  # None: the spread of the members is all there is
    mesh: Mesh | None = None  # over which structures and sets of weights divide; None is one device

    @property
    def replicas(self) -> int:
        """Sets of weights, r."""
        return self.members // self.heads


@functools.partial(jax.jit, static_argnums=0, inline=True)  # one program where it is called outside of one
def init(committee: Committee, key: Key, structure: Structure, neighbors: Neighbors) -> Params:
    """Independent initial weights, [r] leading."""

    def replica(key):
        if committee.heads > 1:
            return heads.init(committee.potential, committee.heads, committee.species, key, structure, neighbors)
        params = committee.potential.init(key, structure, neighbors)
        if committee.uncertainty is None:
            return params
        return committee.uncertainty.init(jax.random.fold_in(key, 1), params, structure, neighbors)

    return jax.vmap(replica)(jax.random.split(key, committee.replicas))


def shapes(committee: Committee, precision: str) -> Params:
    """Shapes and dtypes of what `init` gives in a precision, float32 or float64; nothing is computed.

    Raises InputError for parameters that cannot be trained or kept, see `weights.collected`.
    """
    with jax.enable_x64(precision == "float64"):
        atoms, real = committee.species, precision

        def of(size: tuple[int, ...], dtype: str) -> Any:
            return jax.ShapeDtypeStruct(size, jnp.dtype(dtype))

        whole = of((), "int32")
        structure = Structure(
            position=of((atoms, 3), real),
            species=of((atoms,), "int32"),
            cell=of((3, 3), real),
            periodic=of((3,), "bool"),
            mass=of((atoms,), real),
            fixed=of((atoms,), "bool"),
            charge=whole,
            spin=whole,
        )
        index, shift = of((atoms, 1), "int32"), of((atoms, 1, 3), real)
        near = Neighbors(index, shift, index, structure.position, structure.cell, of((), "bool"))
        return jax.eval_shape(lambda *arguments: init(committee, jax.random.key(0), *arguments), structure, near)


def backbone(committee: Committee, params: Params) -> Params:
    """What the potential takes of one set of weights."""
    return heads.backbone(params) if committee.heads > 1 else params


def evaluate(
    potential: Potential, params: Params, structure: Structure, neighbors: Neighbors
) -> tuple[Float[Array, ""], Float[Array, "n 3"], Float[Array, "3 3"], Float[Array, "n f"]]:
    """One model on one structure: energy (eV), forces (eV/Å), stress (eV/Å^3), features.

    The stress is dE/dstrain over the volume of the cell, its vacuum included: ASE's sign, positive under tension. It
    is zero along open directions, and where the cell has no volume.
    """
    batch = evaluate_batch(potential, params, *jax.tree.map(lambda x: x[None], (structure, neighbors)))
    energy, force, stress, feature = (x[0] for x in batch)
    return energy, force, stress, feature


@exact
def evaluate_batch(
    potential: Potential, params: Params, structures: Structure, neighbors: Neighbors
) -> tuple[Float[Array, "b"], Float[Array, "b n 3"], Float[Array, "b 3 3"], Float[Array, "b n f"]]:
    """`evaluate` of a batch [b]: one gradient of the sum, since no energy depends on another structure."""
    strained = _strained(potential, params, structures, neighbors)

    def total(position, strain):
        energy, feature = strained(position, strain)
        return jnp.sum(energy), (energy, feature)

    zero = jnp.zeros_like(structures.cell)
    slopes, (energy, feature) = jax.grad(total, argnums=(0, 1), has_aux=True)(structures.position, zero)
    return energy, -slopes[0], by_volume(slopes[1], structures), feature


def _strained(potential: Potential, params: Params, structures: Structure, neighbors: Neighbors):
    """Energies and features of a batch as a function of its positions and of a strain for each, [b 3 3]."""
    energies = potential.energies or jax.vmap(potential.energy, (None, 0, 0))

    def strained(position, strain):
        return energies(params, deformed(structures._replace(position=position), strain), neighbors)

    return strained


def deformed(structures: Structure, strain: Float[Array, "b 3 3"]) -> Structure:
    """The structures under the symmetric part of a strain each."""
    deformation = jnp.eye(3, dtype=structures.position.dtype) + 0.5 * (strain + jnp.swapaxes(strain, -1, -2))
    return structures._replace(position=structures.position @ deformation, cell=structures.cell @ deformation)


def by_volume(slope: Float[Array, "*p b 3 3"], structures: Structure) -> Float[Array, "*p b 3 3"]:
    """A derivative with respect to strain over the volume of the cells; zero along what is open, and without volume."""
    volume = jnp.abs(determinant(structures.cell))[:, None, None]
    slope = along_periodic(slope, structures.cell, structures.periodic)
    return jnp.where(volume > 0, slope / jnp.where(volume > 0, volume, 1.0), 0.0)


def pullback(potential: Potential, params: Params, structures: Structure, neighbors: Neighbors):
    """Energies [b] (eV) and features [b n f] of a batch, and the function that turns slopes into forces and stresses.

    It takes the derivatives of any number with respect to these energies and features and returns what its negative
    slopes are: forces [b n 3] in eV/Å if it is an energy in eV, and the stresses [b 3 3] in eV/Å^3.
    """
    strained = _strained(potential, params, structures, neighbors)
    (energy, feature), pull = jax.vjp(strained, structures.position, jnp.zeros_like(structures.cell))

    def back(
        share: Float[Array, "b"], slope: Float[Array, "b n f"]
    ) -> tuple[Float[Array, "b n 3"], Float[Array, "b 3 3"]]:
        position, strain = pull((share, slope))
        return -position, by_volume(strain, structures)

    return energy, feature, back


@exact
def evaluate_heads(
    committee: Committee, params: Params, structures: Structure, neighbors: Neighbors
) -> tuple[Float[Array, "p b"], Float[Array, "p b n 3"], Float[Array, "p b 3 3"], Float[Array, "b n f"]]:
    """All heads of one set of weights on a batch [b], p = heads, or 2 signs pseudo-members; units as `evaluate`.

    One forward pass. The pullback through the backbone is linear in what comes from the heads, so it is mapped over
    the heads, or over their mean and its random combinations.
    """
    own = backbone(committee, params)
    energy, feature, back = pullback(heads.with_isolation(committee.potential), own, structures, neighbors)
    alone = heads.alone_of(committee.potential, own)
    added, slope = heads.evaluate(params, feature, structures.species, alone)
    share = jnp.ones_like(added)  # of the backbone's energy
    if committee.signs:
        mean = jnp.full((1, *added.shape), 1 / committee.heads, added.dtype)
        weight = jnp.concatenate([mean, heads.combinations(energy + added, committee.signs)])  # [1 + k, h, b]
        added, slope = jnp.einsum("phb,hb->pb", weight, added), jnp.einsum("phb,hbnf->pbnf", weight, slope)
        share = jnp.zeros_like(added).at[0].set(1.0)
    force, stress = over_members(back, committee.batching)(share, slope)
    energy = share * energy + added
    if committee.signs:
        energy, force, stress = (heads.antithetic(x) for x in (energy, force, stress))
    return energy, force, stress, heads.without_isolation(committee.potential, feature)


def one_by_one(batching: Batching) -> bool:
    """Whether members are mapped in sequence rather than batched, where the program will run."""
    return batching == "map" or (batching == "auto" and placement().cpu)


def over_members(function, batching: Batching):
    """`function(member's arguments...)` over the leading axis of all its arguments, by map or vmap."""
    if one_by_one(batching):
        return lambda *arguments: jax.lax.map(lambda rows: function(*rows), arguments)
    return jax.vmap(function)


def _together(batching: Batching, index: Int[Array, "b n k"]) -> int:
    """How many of a batch of structures are evaluated together: a divisor of b.

    A CPU's cache has room for so many neighbors; all at once, each of 64 walkers of aspirin took 1.3 times as long.
    """
    number, atoms, slots = index.shape
    most = max(1, CACHED // (atoms * slots)) if one_by_one(batching) else number
    return max(size for size in range(1, number + 1) if number % size == 0 and size <= most)


def predict(committee: Committee, params: Params, structures: Structure, neighbors: Neighbors) -> Prediction:
    """The committee on a batch of structures [b]: Prediction with axes [b m ...], or [b (2 r signs) ...] with signs.

    A method of uncertainty has pseudo-members of its own number. `params` has sets of weights on its leading axis [r].
    Features are those of the first. On a mesh each device
    evaluates its own sets on its own structures; structures whose number does not divide are evaluated by every row of
    it.
    """
    rows = devices.along(committee.mesh, WALKERS, structures.charge.shape[0])
    run = functools.partial(predict_local, committee)
    return devices.split(committee.mesh, run, (P(MEMBERS), rows, rows), rows)(params, structures, neighbors)


def predict_local(committee: Committee, params: Params, structures: Structure, neighbors: Neighbors) -> Prediction:
    """`predict` inside of `devices.split`: this device's structures, by the members of all devices."""

    def group(structures, neighbors) -> Distribution:
        """The sets of weights on as many structures as go together: pseudo-members [r p s ...], the rest [r s ...]."""

        def of_replica(params) -> Distribution:
            if committee.uncertainty is not None:
                return exact(committee.uncertainty.predict)(params, structures, neighbors)
            if committee.heads > 1:
                return Distribution(*evaluate_heads(committee, params, structures, neighbors))
            energy, force, stress, feature = evaluate_batch(committee.potential, params, structures, neighbors)
            return Distribution(energy[None], force[None], stress[None], feature)

        return over_members(of_replica, committee.batching)(params)

    number, size = structures.charge.shape[0], _together(committee.batching, neighbors.index)
    if size == number:
        distribution = group(structures, neighbors)
    else:
        split = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]), (structures, neighbors))
        distribution = _joined(jax.lax.map(lambda rows: group(*rows), split))
    unit = FORCE if committee.uncertainty is None else committee.uncertainty.unit
    return _of_all(devices.gathered(committee.mesh, MEMBERS, distribution), unit == FORCE)


def _joined(parts: Distribution) -> Distribution:
    """Distributions of groups of structures [g r p s ...] as one of all of them [r p b ...]."""

    def joined(x: Float[Array, "g ..."], axis: int) -> Float[Array, "..."]:
        x = jnp.moveaxis(x, 0, axis)  # the groups, before the structures of each
        return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])

    energy, force, stress = (joined(x, 2) for x in parts[:3])
    spreads = (None if x is None else joined(x, 1) for x in parts[4:])
    return Distribution(energy, force, stress, joined(parts.feature, 1), *spreads)


def _of_all(distribution: Distribution, in_force: bool) -> Prediction:
    """The prediction [b m ...] of all sets of weights, from what each says [r p b ...].

    A variance in closed form is the mean of those of the sets plus the variance of the sets' means. Force spreads that
    are not `in_force` units have no common unit with that variance: the largest of the sets' counts.
    """

    def members(x: Float[Array, "r p b ..."]) -> Float[Array, "b m ..."]:
        return jnp.moveaxis(x.reshape(-1, *x.shape[2:]), 0, 1)

    def total(spread: Float[Array, "r b ..."], mean: Float[Array, "r b ..."]) -> Float[Array, "b ..."]:
        if spread.shape[0] == 1:
            return spread[0]
        variance = jnp.var(mean, axis=0)
        variance = jnp.sum(variance, -1) if variance.ndim > spread.ndim - 1 else variance
        square = jnp.mean(spread**2, axis=0) + variance
        return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)

    energy_spread, force_spread = distribution.energy_spread, distribution.force_spread
    if energy_spread is not None:
        energy_spread = total(energy_spread, distribution.energy.mean(1))
    if force_spread is not None:
        force_spread = total(force_spread, distribution.force.mean(1)) if in_force else jnp.max(force_spread, axis=0)
    return Prediction(
        energy=members(distribution.energy),
        force=members(distribution.force),
        stress=members(distribution.stress),
        feature=distribution.feature[0],
        energy_spread=energy_spread,
        force_spread=force_spread,
    )
