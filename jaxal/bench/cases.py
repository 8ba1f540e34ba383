"""What is timed: forces of a committee, its dynamics, a segment of the on-the-fly program, training.

Each case makes a compiled program and a call of it. Weights are random: they cost what trained ones cost. All
labels come from closed forms in JAX, so no host is in any of them.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import ase
import ase.io
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxal.acquire.score import max_force_spread
from jaxal.committee import evaluation as committees
from jaxal.committee import weights
from jaxal.committee.evaluation import Committee, predict, predict_local
from jaxal.config.loading import parse
from jaxal.config.schema import Part
from jaxal.config.systems import populations
from jaxal.core import devices
from jaxal.core.devices import MEMBERS, WALKERS
from jaxal.core.types import Label, Neighbors, Params, Start, Structure
from jaxal.data import buffer as buffers
from jaxal.data import neighbors
from jaxal.data.structure import from_atoms, species_table
from jaxal.explore import stepping
from jaxal.explore.dynamics import nvt_langevin
from jaxal.program import loop
from jaxal.program import state as states
from jaxal.run import assembly, initial_labels, labeling, training_data
from jaxal.train import fit as training
from jaxal.train.loss import LossWeights
from jaxal.train.reference import reference_energies

SCALE = 0.05  # eV, of the random weights: walkers stay near where they started
SAMPLES = 100  # labeled structures in the training case
LOOKS, EVERY = 10, 10  # of a segment


class Setting(NamedTuple):
    """One point of a sweep."""

    system: str
    atoms: ase.Atoms
    potential: Part
    members: int = 4
    walkers: int = 1
    precision: str = "float32"
    batching: committees.Batching = "auto"
    steps: int = 20  # of dynamics, or of training, in one call
    batch: int = 5  # structures in a training step
    seed: int = 0
    kind: str = "full"  # of committee, full or shared
    signs: int = 0  # of a shared one
    devices: int = 1


class Program(NamedTuple):
    """A compiled case. One call does `units` units, each of `evaluations` evaluations of one atom by one member."""

    call: Callable[[], Any]
    unit: str
    units: int
    evaluations: int
    compiled: Any  # jax.stages.Compiled
    trace_s: float
    compile_s: float
    facts: dict[str, Any]


class _Model(NamedTuple):
    table: tuple[int, ...]
    committee: Committee
    params: Params  # [r]
    structures: Structure  # [w]
    spec: neighbors.Spec
    near: Neighbors  # [w]


def forces(setting: Setting) -> Program:
    """Energies and forces of all members for all walkers, neighbors given."""
    model = _model(setting)

    def evaluate(params: Params, structures: Structure, near: Neighbors):
        with jax.named_scope("forces"):
            prediction = predict(model.committee, params, structures, near)
        return prediction.energy, prediction.force

    close = jax.jit(neighbors.within, static_argnums=0)(model.spec, model.near, model.structures)
    arguments = (model.params, model.structures, close)
    compiled, trace, compile_ = _compile(evaluate, *arguments)
    facts = _facts(setting, model)
    return Program(lambda: compiled(*arguments), "call", 1, _size(setting), compiled, trace, compile_, facts)


def md(setting: Setting) -> Program:
    """Langevin dynamics under the mean force, with the largest force spread of every walker read in every step."""
    model = _model(setting)
    sampler = stepping.per_walker(nvt_langevin(temperature=300.0, timestep=0.5))

    def step(params: Params, carry, _):
        walkers, near, overflow = carry

        def push(proposed: Structure, close: Neighbors):
            with jax.named_scope("forces"):
                prediction = predict_local(model.committee, params, proposed, close)
            with jax.named_scope("gate"):
                spread = jax.vmap(max_force_spread)(prediction, proposed)
            mean = prediction.energy.mean(1), prediction.force.mean(1), prediction.stress.mean(1)
            return stepping.unjudged(*mean), spread

        step = stepping.step(sampler, model.spec, walkers, near, push)
        return (step.walkers, step.near, overflow | step.close.overflow), step.said

    def steps(params: Params, carry):
        return jax.lax.scan(lambda c, x: step(params, c, x), carry, None, length=setting.steps)

    mesh, own = model.committee.mesh, P(WALKERS)
    split = devices.split(mesh, steps, (P(MEMBERS), own), (own, P(None, WALKERS)))

    def run(params: Params, carry):
        carry, spread = split(params, carry)
        return carry, jnp.max(spread, axis=1)

    zero = jnp.zeros_like(model.structures.position), jnp.zeros_like(model.structures.cell)
    keys = jax.random.split(jax.random.key(setting.seed), setting.walkers)
    walkers = jax.jit(sampler.init)(keys, Start(model.structures, *zero), jnp.zeros(setting.walkers, jnp.int32))
    # all donated: nothing twice
    held = [devices.laid(mesh, own, (walkers, model.near, jnp.zeros_like(model.near.overflow)))]
    compiled, trace, compile_ = _compile(run, model.params, held[0], donate=(1,))

    facts = _facts(setting, model) | {"steps": setting.steps}

    def call() -> Any:
        held[0], spread = compiled(model.params, held[0])
        facts["overflow"] = bool(np.any(held[0][2]))  # then neighbors were lost, and the figure is of something else
        return spread

    return Program(call, "step", setting.steps, _size(setting), compiled, trace, compile_, facts)


def segment(setting: Setting) -> Program:
    """One segment of the on-the-fly program: 100 steps of all walkers, ten looks, one labeling with its training.

    The oracle is Stillinger-Weber for silicon and a Morse potential for everything else.
    """
    setting = setting._replace(members=max(2, setting.members))  # one member has no spread
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "system.xyz"
        ase.io.write(path, setting.atoms, format="extxyz")
        silicon = set(setting.atoms.numbers) == {14}
        raw = {
            "system": {"file": path.name},
            "potential": {"name": setting.potential.name, **dict(setting.potential.options)},
            "committee": {
                "kind": setting.kind,
                "members": setting.members,
                "batching": setting.batching,
                "signs": setting.signs,
            },
            "explore": {"name": "nvt_langevin", "temperature": 300, "walkers": setting.walkers},
            "gate": {
                "name": "threshold",
                "limit": 0.0,
                "every": EVERY,
                "implausible": 1e6,
                "closest": 0.0,
                "hottest": 1e6,
            },
            "label": {"name": "stillinger_weber" if silicon else "morse", "initial": 8, "max_force": 1e6},
            "train": {"batch": setting.batch, "steps": setting.steps},
            "seed": setting.seed,
            "precision": setting.precision,
            "devices": setting.devices,
        }
        config = parse(raw, folder)
        atoms, table = setting.atoms, species_table([setting.atoms])
        systems = populations(config)
        first = initial_labels.first_labels(config, systems, Path(folder) / "labels.sqlite")
    reference = reference_energies(first.structures, first.labels.energy, len(table))
    structures, labels = training_data.cast(first.structures, first.labels, reference, config.precision)
    dtype = assembly.dtype_of(config.precision)
    oracle = labeling.oracle_label(config, table, dtype, reference, labeling.oracle_spec(config, table, structures))
    parts = assembly.parts_of(config, table, oracle, systems, [[0]], config.label.atoms != "fit")
    near = neighbors.plan(structures, parts.committee.potential.cutoff, assembly.SKIN)
    train_near = neighbors.plan(structures, parts.committee.potential.cutoff, 0.0)
    group = states.Group(near, len(atoms), (0,) * setting.walkers)
    static = assembly.static_of(config, table, [group], train_near, LOOKS)
    keys = jax.random.split(jax.random.key(setting.seed), 3)
    members = setting.members
    params = training_data.new_params(parts.committee, keys[0], train_near, structures, labels)
    held = training_data.spread_hold(structures.charge.shape[0], config.train.holdout)
    buffer = training_data.training_set(structures, labels, held, members, 256, keys[1], 1.0)
    train = training.init(static.recipe, params)
    walkers = jax.tree.map(lambda x: jnp.stack([x[0]] * setting.walkers), structures)
    state = jax.jit(lambda *arguments: states.start(parts, static, *arguments))(train, buffer, walkers, keys[2])
    limits = assembly.limits_of(config, 1e-3, 0.0)
    # room for one labeling of all walkers, at the first look
    limits = limits._replace(budget=state.labels + setting.walkers)
    compiled, trace, compile_ = _compile(loop.make_segment(parts, static), state, limits)
    problems = int(compiled(state, limits)[0].problems)
    facts = _facts(setting, None) | {
        "edges_padded": (near.close or near.capacity) * len(atoms),
        "train_steps": setting.steps,
        "batch": setting.batch,
        # random weights hold no molecule together; to look at a walker costs the same where it is rewound
        "problems": problems & ~states.UNPHYSICAL,
    }
    size = len(atoms) * setting.walkers * members
    return Program(lambda: compiled(state, limits)[1], "step", LOOKS * EVERY, size, compiled, trace, compile_, facts)


def train(setting: Setting) -> Program:
    """Training steps of all sets of weights on slightly displaced copies of the system with a harmonic energy."""
    model = _model(setting._replace(walkers=1))
    rng = np.random.default_rng(setting.seed)
    shift = rng.normal(0, 0.05, (SAMPLES, len(setting.atoms), 3))
    frames = [setting.atoms.copy() for _ in range(SAMPLES)]
    for frame, by in zip(frames, shift, strict=True):
        frame.positions += by
    structures = jax.device_put(from_atoms(frames, model.table, dtype=np.dtype(setting.precision)))
    dtype = structures.position.dtype
    labels = Label(
        jnp.asarray(5.0 * (shift**2).sum((1, 2)), dtype),
        jnp.asarray(-10.0 * shift, dtype),
        jnp.zeros((SAMPLES, 3, 3), dtype),
        jnp.ones(SAMPLES, bool),
    )
    spec = neighbors.plan(structures, model.committee.potential.cutoff, 0.0)
    recipe = training.Recipe(batch=setting.batch, optimizer="amsgrad", weights=LossWeights(1.0, 100.0, 0.0, None))
    none = np.zeros(SAMPLES, bool)
    buffer = training_data.training_set(structures, labels, none, setting.members, SAMPLES, jax.random.key(1), 0.0)
    state = training.init(recipe, model.params)

    def fit(state: training.TrainState, buffer: buffers.Buffer):
        steps, rate = jnp.asarray(setting.steps, jnp.int32), jnp.asarray(1e-3, dtype)
        return training.fit(model.committee, recipe, spec, state, buffer, jax.random.key(2), steps, rate, rate)

    compiled, trace, compile_ = _compile(fit, state, buffer)
    facts = _facts(setting, model) | {"edges_padded": spec.capacity * len(setting.atoms), "batch": setting.batch}
    evaluations = len(setting.atoms) * model.committee.replicas
    units = setting.steps * setting.batch
    return Program(lambda: compiled(state, buffer)[1], "sample", units, evaluations, compiled, trace, compile_, facts)


CASES: dict[str, Callable[[Setting], Program]] = {"forces": forces, "md": md, "segment": segment, "train": train}


def _compile(function: Callable, *arguments: Any, donate: tuple[int, ...] = ()) -> tuple[Any, float, float]:
    """The compiled program, the seconds Python took to trace it and those XLA took to compile it."""
    began = time.perf_counter()
    lowered = jax.jit(function, donate_argnums=donate).lower(*arguments)
    traced = time.perf_counter()
    compiled = lowered.compile()
    return compiled, round(traced - began, 2), round(time.perf_counter() - traced, 2)


def _model(setting: Setting) -> _Model:
    dtype = assembly.dtype_of(setting.precision)
    table = species_table([setting.atoms])
    heads = setting.members if setting.kind == "shared" else 1
    potential = weights.collected(setting.potential.bind()(table))
    mesh = devices.mesh(setting.devices, setting.members // heads)
    committee = Committee(potential, setting.members, setting.batching, heads, setting.signs, len(table), mesh=mesh)
    # weights and positions are those of float32 in every precision, so that results can be compared
    structure = jax.device_put(from_atoms([setting.atoms], table, dtype=np.dtype(np.float32)))
    spec = neighbors.plan(structure, committee.potential.cutoff, assembly.SKIN)
    near = jax.jit(neighbors.find, static_argnums=0)(spec, structure)
    first = jax.tree.map(lambda x: np.asarray(x)[0], (structure, near))
    params = committees.init(committee, jax.random.key(setting.seed), *first)
    listed = float(np.mean(np.sum(np.asarray(near.index) < len(setting.atoms), axis=-1)))
    scale: Any = np.full(structure.position.shape, SCALE)
    params = training.normalize(
        params, Label(jnp.zeros(1), scale, jnp.zeros((1, 3, 3)), jnp.ones(1, bool)), structure, listed
    )
    cast = lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x  # noqa: E731
    params, structure, near = jax.tree.map(cast, (params, structure, near))
    alike = jax.tree.map(lambda x: np.repeat(np.asarray(x), setting.walkers, axis=0), (structure, near))
    structures, near = jax.device_put(alike)
    params = devices.laid(mesh, P(MEMBERS), params)
    structures, near = devices.laid(mesh, devices.along(mesh, WALKERS, setting.walkers), (structures, near))
    return _Model(table, committee, params, structures, spec, near)


def _size(setting: Setting) -> int:
    return len(setting.atoms) * setting.walkers * setting.members


def _facts(setting: Setting, model: _Model | None) -> dict[str, Any]:
    facts: dict[str, Any] = {"system": setting.system, "atoms": len(setting.atoms), "K": setting.members}
    facts |= {"kind": setting.kind, "signs": setting.signs}
    facts |= {"B": setting.walkers, "dtype": setting.precision, "model": setting.potential.name}
    facts |= dict(setting.potential.options)
    if model is not None:
        cutoff = model.committee.potential.cutoff
        spec = neighbors.plan(jax.tree.map(lambda x: np.asarray(x)[:1], model.structures), cutoff, 0.0, 1.0)
        vector, used = jax.vmap(neighbors.vectors)(model.structures, model.near)
        near = used & (jnp.linalg.norm(vector, axis=-1) < cutoff)
        facts |= {
            "edges": int(jnp.sum(near[0])),
            "edges_padded": (model.spec.close or model.spec.capacity) * len(setting.atoms),
        }
        facts |= {"largest_degree": spec.capacity}
        facts["params"] = sum(x.size // x.shape[0] for x in jax.tree.leaves(model.params))
    return facts
