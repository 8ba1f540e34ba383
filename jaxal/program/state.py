"""What a segment is made of and what goes on from one to the next: parts, sizes, arguments, state, problems."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxal.committee import evaluation as committees
from jaxal.core import devices
from jaxal.core.devices import MEMBERS, WALKERS
from jaxal.core.types import (
    Gate,
    GateState,
    Kernel,
    Key,
    Label,
    Neighbors,
    Sampler,
    Schedule,
    Score,
    Select,
    Start,
    Structure,
)
from jaxal.data import buffer as buffers
from jaxal.data import fragments, neighbors
from jaxal.data import queue as queues
from jaxal.data import sample as samples
from jaxal.data.padding import atoms_to, structures_to
from jaxal.explore import bias_forces
from jaxal.explore.bias_forces import Terms
from jaxal.program.reports import Trusted
from jaxal.program.selection import Course
from jaxal.program.step import Drive, driving, farthest
from jaxal.train import fit as training
from jaxal.train import support as supports
from jaxal.train.calibrate import Fresh, Judge, calibrate
from jaxal.uncertainty.support import Support

NEIGHBORS_FULL, BUFFER_FULL, NOT_FINITE, UNPHYSICAL, LABEL_FAILED = 1, 2, 4, 8, 16
UNDONE = NEIGHBORS_FULL | BUFFER_FULL | NOT_FINITE  # the segment did not happen: grow or slow down, then replay
PROBLEMS = {
    NEIGHBORS_FULL: "more neighbors than slots",
    BUFFER_FULL: "more labels than rows",
    NOT_FINITE: "the committee's parameters are no longer finite",
    UNPHYSICAL: "a walker was rewound from an unphysical frame",
    LABEL_FAILED: "a label failed",
}


class Parts(NamedTuple):
    """The interchangeable functions of a run."""

    committee: committees.Committee
    samplers: tuple[Sampler, ...]  # of each group of walkers
    score: Score
    gate: Gate
    kernel: Kernel
    select: Select
    # in the program, energies relative to the references; None: what is to be labeled waits in the queue
    label: Callable[[Structure, Bool[Array, "k"]], Label] | None
    drive: Drive = "mean"  # whose force moves a walker
    biases: tuple[Terms, ...] = ((),)  # that drive the walkers of each group beside the committee's force
    schedule: Schedule | None = None  # None: `select` picks every label
    arms: tuple[Select, ...] = ()  # the selections of the schedule


class Group(NamedTuple):
    """Walkers that move together: they have one padded size, one room for neighbors, one dynamics. Hashable."""

    near: neighbors.Spec
    atoms: int  # padded
    systems: tuple[int, ...]  # the number of each walker's system


class Static(NamedTuple):
    """What has to be known to compile a segment; hashable."""

    table: tuple[int, ...]
    groups: tuple[Group, ...]  # of the walkers, whose numbers go on from group to group
    train_near: neighbors.Spec  # of the training set, without a skin
    recipe: training.Recipe
    every: int  # steps between looks
    looks: int  # looks in a segment
    batch: int  # labels at one look, at most
    fold: int  # held-out labels, the latest so many, that calibrate the gate
    queue: int = 0  # structures that can wait for a label
    sample: int = 0  # frames at random that are kept, to calibrate the bound in the end


class Limits(NamedTuple):
    """Thresholds and rates: arguments of the program, free to change between segments."""

    implausible: Float[Array, ""]  # eV/Å, estimated error above which a frame is not physical
    closest: Float[Array, ""]  # fraction of the sum of covalent radii below which a frame is not physical
    hottest: Float[Array, ""]  # multiple of the bath's temperature above which a frame is not physical
    budget: Int[Array, ""]  # labels, failed ones included, over the whole run
    probe: Float[Array, ""]  # chance of each walker at each look to be labeled whatever the gate says
    holdout: Float[Array, ""]  # fraction of the gated labels that is held out
    steps: Int[Array, ""]  # optimizer steps after a labeling
    rate: Float[Array, ""]  # learning rate
    final_rate: Float[Array, ""]  # learning rate at the end of each training


class State(NamedTuple):
    """Everything that goes on from one segment to the next."""

    walkers: tuple[PyTree, ...]  # [w], what the sampler of each group keeps of them
    trusted: Trusted  # [w] of all groups, padded to the atoms of the largest
    near: tuple[Neighbors, ...]  # [w] of each group
    quiet: Int[Array, "w"]  # steps since the gate last fired
    gate: GateState
    train: training.TrainState  # [m]
    buffer: buffers.Buffer
    queue: queues.Queue
    fresh: Fresh
    support: Support  # of the training set
    sample: samples.Sample
    key: Key
    labels: Int[Array, ""]  # asked for, failed ones included
    problems: Int[Array, ""]
    farthest: Float[Array, "w"]  # Å, gap between two parts of a structure above which a frame is not physical
    known: Bool[Array, "s"]  # species that were trained on as isolated atoms
    drift: tuple[Any, ...]  # what the biases of each group have learned of its walkers [w]
    course: Course = Course()  # of the schedule


# How a state divides over the devices of a mesh; what is not named, being small and read by all, is whole on each.
_BY_WALKER = ("walkers", "trusted", "near", "drift", "farthest")
_DIVIDED = dict.fromkeys(_BY_WALKER, P(WALKERS)) | {"train": P(MEMBERS)}
LAYOUT: Any = State._make(_DIVIDED.get(name, P()) for name in State._fields)


def judge_of(parts: Parts, static: Static) -> Judge:
    """The judge of a run."""
    return Judge(parts.committee, parts.score, parts.gate, static.train_near, static.fold)


def start(
    parts: Parts,
    static: Static,
    train: training.TrainState,
    buffer: buffers.Buffer,
    structures: Structure,
    key: Key,
    begun: Any = None,
) -> State:
    """State of a new run: walkers [w] begin at `structures`, with momenta of their own.

    `begun` [w] are the steps that they have done (default: none).
    """
    number = structures.charge.shape[0]
    key, *keys = jax.random.split(key, number + 1)
    steps = jnp.zeros(number, jnp.int32) if begun is None else jnp.asarray(begun, jnp.int32)
    walkers, moves, lists = [], [], []
    for sampler, group, rows in zip(parts.samplers, static.groups, rows_of(static.groups), strict=True):
        own = structures_to(jax.tree.map(lambda x, rows=rows: x[rows], structures), group.atoms)
        near = neighbors.find(group.near, own)
        prediction = committees.predict(parts.committee, train.average, own, near)
        force, stress = driving(parts.drive, prediction, jnp.arange(rows.start, rows.stop))
        walkers.append(sampler.init(jnp.stack(keys[rows]), Start(own, force, stress), steps[rows]))
        moves.append((atoms_to(force, structures.species.shape[1]), stress))
        lists.append(near)
    force, stress = jax.tree.map(lambda *x: jnp.concatenate(x), *moves)
    gate = calibrate(judge_of(parts, static), parts.gate.init(), train.average, buffer)[0]
    each = zip(parts.biases, parts.samplers, walkers, strict=True)
    drift = tuple(bias_forces.begun(bias, sampler.walkers(own)) for bias, sampler, own in each)
    overflow = jnp.concatenate([near.overflow for near in lists])
    state = State(
        walkers=tuple(walkers),
        trusted=Trusted(structures, force, stress, drift),
        near=tuple(lists),
        quiet=jnp.zeros(number, jnp.int32),
        gate=gate,
        train=train,
        buffer=buffer,
        queue=queues.init(jax.tree.map(lambda x: x[0], structures), static.queue),
        fresh=Fresh.empty(static.fold // 2, buffer.label.energy.dtype),
        support=supports.learned(parts.committee, static.train_near, train.average, buffer),
        sample=samples.init(jax.tree.map(lambda x: x[0], structures), static.sample),
        key=key,
        labels=buffer.count,
        problems=jnp.where(jnp.any(overflow), NEIGHBORS_FULL, 0).astype(jnp.int32),
        farthest=_farthest(static, structures).astype(force.dtype),
        known=_known(static, buffer),
        drift=drift,
        course=Course.begun(parts.schedule),
    )
    return devices.laid(parts.committee.mesh, LAYOUT, state)


def rows_of(groups: tuple[Group, ...]) -> list[slice]:
    """The numbers of the walkers of each group."""
    ends = itertools.accumulate(len(group.systems) for group in groups)
    return [slice(end - len(group.systems), end) for group, end in zip(groups, ends, strict=True)]


def _farthest(static: Static, structures: Structure) -> Float[Array, "w"]:
    """How wide a gap each walker may come to, by all the structures that its system starts from."""
    systems = np.array([system for group in static.groups for system in group.systems])
    names, of = np.unique(systems, return_inverse=True)
    own = [jax.tree.map(lambda x, rows=systems == name: x[rows], structures) for name in names]
    return jnp.stack([farthest(static.train_near.cutoff, starts) for starts in own])[of]


def _known(static: Static, buffer: buffers.Buffer) -> Bool[Array, "s"]:
    """Species that the training set holds as isolated atoms."""
    cutoff, number, trained = static.train_near.cutoff, len(static.table), buffers.trainable(buffer)

    def seen(row: Int[Array, ""], known: Bool[Array, "s"]) -> Bool[Array, "s"]:
        structure = single(jax.tree.map(lambda x: x[row], buffer.structure))
        near = neighbors.find(static.train_near, structure)
        return known | fragments.isolated_species(cutoff, structure, near, trained[row][None], number)

    return jax.lax.fori_loop(0, buffer.count, seen, jnp.zeros(number, bool))


def unless_undone(before: State, after: State) -> State:
    """`after`, or `before` with the problems of `after` where these undo it: what comes after them is wrong."""
    undone = (after.problems & UNDONE) != 0
    state = jax.tree.map(lambda old, new: jax.lax.select(undone, old, new), *_data(before, after))
    return _undata(state, before)._replace(problems=after.problems)


def _is_key(x) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _data(*trees):
    """Typed keys as their data, which `select` takes."""
    return tuple(jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree) for tree in trees)


def _undata(tree, like):
    return jax.tree.map(lambda x, y: jax.random.wrap_key_data(x) if _is_key(y) else x, tree, like)


def single(row: Any) -> Any:
    """A pytree as a batch of one."""
    return jax.tree.map(lambda x: x[None], row)
