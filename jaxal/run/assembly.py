"""From a configuration to the program: its parts, what is static about it, its arguments, its devices."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxal.committee import evaluation as committees
from jaxal.committee import weights
from jaxal.committee.evaluation import Committee
from jaxal.committee.isolated_atoms import exact_when_isolated
from jaxal.config.biases import terms_of
from jaxal.config.schema import Config, Offline, Train
from jaxal.config.systems import Population
from jaxal.core import devices
from jaxal.core.types import Structure
from jaxal.data import buffer as buffers
from jaxal.data import neighbors
from jaxal.data.structure import Table
from jaxal.program import state as states
from jaxal.program.selection import arms_of
from jaxal.run.labeling import LabelFunction
from jaxal.train import fit as training
from jaxal.train.loss import LossWeights

SKIN = 0.5  # Å
FOLD = 64  # held-out labels that calibrate the gate
LOOKS = 10  # in a segment
LARGEST_BUFFER = 4096  # rows of the first allocation; it grows beyond


def dtype_of(precision: str) -> Any:
    """The float type of a precision; float64 also switches JAX to 64 bits."""
    if precision == "float64":
        jax.config.update("jax_enable_x64", True)
    return np.dtype(precision)


def recipe(train: Train) -> training.Recipe:
    """What is static about training, from its section."""
    weights = LossWeights(train.energy_weight, train.force_weight, train.stress_weight, train.huber)
    return training.Recipe(
        batch=train.batch,
        optimizer=train.optimizer,
        weight_decay=train.weight_decay,
        clip=train.clip,
        ema=train.ema,
        weights=weights,
        bootstrap=1.0 if train.bootstrap else 0.0,
    )


def committee_of(config: Config | Offline, table: Table, isolated: bool = False) -> Committee:
    """The committee of a configuration, on the devices of a run. Raises InputError where those do not fit.

    `isolated` says whether isolated atoms are exact, of those species whose energies are known.
    """
    section, mesh = config.committee, mesh_of(config) if isinstance(config, Config) else None
    heads = section.members if section.kind == "shared" else 1
    potential = weights.collected(config.potential.bind()(table))
    if isolated:
        potential = exact_when_isolated(potential, table)
    method = config.uncertainty.bind()(potential, len(table))
    return Committee(potential, section.members, section.batching, heads, section.signs, len(table), method, mesh)


def _replicas(config: Config) -> int:
    """Sets of weights, which divide over devices; the heads of one set do not."""
    return config.committee.members if config.committee.kind == "full" else 1


def devices_of(config: Config) -> int:
    """How many devices a run takes. Raises InputError where `devices` does not fit."""
    return devices.number(config.devices, math.gcd(*config.walkers.values()), _replicas(config))


def mesh_of(config: Config) -> Mesh | None:
    """The devices of a run; None for a single one."""
    return devices.mesh(devices_of(config), _replicas(config))


def static_of(
    config: Config, table: Table, groups: Sequence[states.Group], train_near: neighbors.Spec, looks: int = LOOKS
) -> states.Static:
    """What the segment is compiled for."""
    return states.Static(
        table=table,
        groups=tuple(groups),
        train_near=train_near,
        recipe=recipe(config.train),
        every=config.gate.every,
        looks=looks,
        batch=config.label.batch or sum(config.walkers.values()),
        fold=FOLD,
        queue=config.label.queue if config.label.mode == "pooled" else 0,
        sample=config.calibration,
    )


def untrained(
    parts: states.Parts, static: states.Static, structures: Structure, rows: int, filled: bool = False
) -> states.State:
    """The state of a run that has no label yet: walkers at `structures` [w], a training set with room for `rows`.

    As shapes; where it is `filled`, with random weights.
    """

    def build(structures: Any, key: Any) -> states.State:
        structure = jax.tree.map(lambda x: x[0], structures)
        params = committees.init(parts.committee, key, structure, neighbors.build(static.train_near, structure))
        buffer = buffers.init(structure, parts.committee.members, rows)
        return states.start(parts, static, training.init(static.recipe, params), buffer, structures, key)

    arguments = jax.device_put(structures), jax.random.key(0)
    return jax.jit(build)(*arguments) if filled else jax.eval_shape(build, *arguments)


def limits_of(config: Config, rate: float, probe: float) -> states.Limits:
    """The arguments of the segment. Trainings in the loop end at a tenth of their learning rate."""
    dtype = np.dtype(config.precision)
    return states.Limits(
        implausible=jnp.asarray(config.gate.implausible, dtype),
        closest=jnp.asarray(config.gate.closest, dtype),
        hottest=jnp.asarray(config.gate.hottest, dtype),
        budget=jnp.asarray(config.stop.labels, jnp.int32),
        probe=jnp.asarray(probe, dtype),
        holdout=jnp.asarray(config.train.holdout, dtype),
        steps=jnp.asarray(config.train.steps, jnp.int32),
        rate=jnp.asarray(rate, dtype),
        final_rate=jnp.asarray(0.1 * rate, dtype),
    )


def parts_of(
    config: Config,
    table: Table,
    label: LabelFunction | None,
    systems: Sequence[Population],
    groups: Sequence[Sequence[int]],
    isolated: bool = False,
) -> states.Parts:
    """The functions of the run; without a `label` what is to be labeled waits in the queue.

    `groups` are the numbers of the systems that move together. `isolated`: see `committee_of`.
    """
    dtype_of(config.precision)
    score = config.score.bind()
    first = [systems[group[0]] for group in groups]
    schedule = config.schedule.bind()()
    return states.Parts(
        committee=committee_of(config, table, isolated),
        samplers=tuple(system.sampler for system in first),
        score=score,
        gate=config.gate.part.bind()(),
        kernel=config.kernel.bind(),
        select=config.select.bind(),
        label=label,
        drive=config.explore.drive,
        biases=tuple(terms_of(system.bias, score, system.starts[0], system.bias_field) for system in first),
        schedule=schedule,
        arms=arms_of(schedule),
    )
