"""The programs of a run, compiled from shapes alone: a step of all walkers, a training step, the segment."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array, Bool

from jaxal.config.check import with_inputs
from jaxal.config.schema import Config
from jaxal.config.systems import Population, grouped
from jaxal.core.types import Label, Structure
from jaxal.data import neighbors
from jaxal.data.structure import Table, from_atoms
from jaxal.plan import hlo
from jaxal.program import loop
from jaxal.program import state as states
from jaxal.program.step import Walk
from jaxal.run import assembly, grouping, initial_labels
from jaxal.train import fit as training


class Compiled(NamedTuple):
    """A compiled program."""

    kernels: int  # of one run, loops of unknown length counted as one round
    bytes: int  # that its kernels read and write
    foreign: tuple[str, ...]  # calls into other libraries
    loops: int  # whose length the host is asked for in each round
    held: int  # bytes of what goes in and comes out, what is donated once
    temporary: int  # bytes besides
    trace_s: float
    compile_s: float


class Run(NamedTuple):
    """What is compiled for: the parts of a run and its state as shapes."""

    parts: states.Parts
    static: states.Static
    state: Any
    limits: Any


def run_of(config: Config, systems: Sequence[Population], table: Table, factor: int = 1, filled: bool = False) -> Run:
    """The programs of a configuration with `factor` times its walkers, on one device, as the run would build them.

    The neighbor lists are those of its first structures, the training set has the room that it begins with. Labels of
    the host, which cannot be asked for without the device, are stood in for by zeros: nothing else differs. Where it
    is `filled` the state has numbers, of random weights; else it is shapes.
    """
    config = with_inputs(config, [atoms for system in systems for atoms in system.starts])
    batch = config.label.batch or factor * sum(config.walkers.values())
    config = dataclasses.replace(config, devices=1, label=dataclasses.replace(config.label, batch=batch))
    systems = [system._replace(walkers=factor * system.walkers) for system in systems]
    dtype = assembly.dtype_of(config.precision)
    frames = initial_labels.first_of_all(systems, config.initial, config.seed)
    structures = jax.device_put(from_atoms(frames, table, dtype=dtype))
    cutoff = config.potential.bind()(table).cutoff
    groups = grouped(systems, cutoff)
    label = None if config.label.mode == "pooled" else _stand_in
    # known are isolated atoms where the method can: what that costs is in the programs
    neutral = any(not atoms.info.get("charge", 0) for system in systems for atoms in system.starts)
    exact = config.label.atoms != "fit" and neutral
    parts = assembly.parts_of(config, table, label, systems, groups, exact)
    near = grouping.neighbor_lists(systems, groups, table, structures, cutoff)
    close = neighbors.plan(structures, cutoff)
    static = assembly.static_of(config, table, grouping.program_groups(systems, groups, near), close)
    begun = grouping.walker_structures(systems, groups, table, dtype)
    rows = min(config.stop.labels, assembly.LARGEST_BUFFER)
    state = assembly.untrained(parts, static, begun, rows, filled)
    limits = jax.eval_shape(lambda: assembly.limits_of(config, config.train.learning_rate, 0.0))
    return Run(parts, static, state, limits)


def _stand_in(structures: Structure, wanted: Bool[Array, "k"]) -> Label:
    """Labels of zeros."""
    zero = jnp.zeros_like(structures.position)
    return Label(zero[:, 0, 0], zero, jnp.zeros_like(structures.cell), wanted)


def step(run: Run, device: Any) -> Compiled:
    """One step of the dynamics of all walkers: neighbors, forces of all members, what the gate reads, momenta."""
    parts, static, limits = run.parts, run.static._replace(every=1), run.limits
    walk = loop.make_walks(parts, static)

    def step(state: Any, limits: Any, walkers: Any, near: Any) -> list[Walk]:
        return walk(limits, state._replace(walkers=walkers, near=near))

    state = run.state
    return _compiled(step, device, state, limits, state.walkers, state.near, donated=3)


def train(run: Run, device: Any) -> Compiled:
    """One step of the training of all members."""
    parts, static, state, limits = run

    def fit(state: Any, buffer: Any, key: Any, limits: Any) -> Any:
        schedule = limits.steps, limits.rate, limits.final_rate
        return training.fit(parts.committee, static.recipe, static.train_near, state, buffer, key, *schedule)

    return _compiled(fit, device, state.train, state.buffer, state.key, limits, donated=0)


def segment(run: Run, device: Any) -> Compiled:
    """The whole program between two looks of the host."""
    return _compiled(loop.make_segment(run.parts, run.static), device, run.state, run.limits, donated=0)


def size(tree: Any) -> int:
    """Bytes of the arrays of a tree of shapes."""
    return sum(int(np.prod(x.shape)) * _width(x.dtype) for x in jax.tree.leaves(tree))


def _width(dtype: Any) -> int:
    return 8 if jnp.issubdtype(dtype, jax.dtypes.prng_key) else np.dtype(dtype).itemsize


def _compiled(function: Callable, device: Any, *arguments: Any, donated: int) -> Compiled:
    """`function` compiled for a device (None: the one there is); one argument's memory is reused."""
    if device is not None:
        place = SingleDeviceSharding(device)
        arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), arguments)
    began = time.perf_counter()
    lowered = jax.jit(function, donate_argnums=donated).lower(*arguments)
    traced = time.perf_counter()
    program: Any = lowered.compile()
    ended = time.perf_counter()
    text, memory = program.as_text(), program.memory_analysis()
    work = hlo.work(text)
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    return Compiled(
        work.kernels,
        work.bytes,
        hlo.foreign(text),
        work.loops,
        int(held),
        int(memory.temp_size_in_bytes + memory.generated_code_size_in_bytes),
        round(traced - began, 2),
        round(ended - traced, 2),
    )
