"""The compiled segment of a small run on a closed form, for the tests of its pieces."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from ase.build import molecule

from jaxal.acquire import gate as gates
from jaxal.acquire import select as selects
from jaxal.acquire.kernel import mean_feature
from jaxal.acquire.score import max_force_spread
from jaxal.committee import evaluation
from jaxal.core.types import Label
from jaxal.data import neighbors
from jaxal.data.structure import from_atoms
from jaxal.explore.dynamics import nvt_langevin
from jaxal.explore.stepping import per_walker
from jaxal.potential.equivariant import equivariant
from jaxal.potential.pair import morse
from jaxal.program import loop
from jaxal.program import state as states
from jaxal.program.callback import host_label
from jaxal.run import initial_labels, training_data
from jaxal.train import fit as training

TABLE, WALKERS, MEMBERS = (1, 8), 3, 2
ORACLE = morse(TABLE, sigma=1.2, epsilon=2.0, alpha=1.5, cutoff=4.0)
SPEC = neighbors.Spec(4.0, 0.0, 2, (0, 0, 0))


def oracle(structures, wanted):
    near = neighbors.find(SPEC, structures)
    energy, force, stress, _ = jax.vmap(lambda s, n: evaluation.evaluate(ORACLE, {}, s, n))(structures, near)
    return Label(energy, force, stress, wanted)


class Asked:
    """A host labeler that remembers what it was asked; `fail` marks calls (from 0) that fail or raise."""

    def __init__(self, fail=(), error=False):
        self.calls, self.fail, self.error = [], fail, error

    def __call__(self, structures, wanted):
        wanted = np.asarray(wanted)
        self.calls.append(int(wanted.sum()))
        bad = len(self.calls) - 1 in self.fail
        if bad and self.error:
            raise RuntimeError("the calculation broke")
        force = np.zeros(structures.position.shape, structures.position.dtype)
        stress = np.zeros((len(force), 3, 3), force.dtype)
        return Label(np.zeros(len(force), force.dtype), force, stress, wanted & (not bad))


class Host:
    """What the compiled program calls: whatever labeler a test puts here. So one compilation serves all of them."""

    now = Asked()

    @classmethod
    def label(cls, structures, wanted):
        return host_label(lambda *arguments: cls.now(*arguments), structures, wanted)


@functools.cache
def made(label=oracle, capacity=64, slots=2, queue=0, drive="mean", gate=None):
    """(start state, parts, static) of a small run, with a threshold gate where no other is given."""
    atoms = molecule("H2O")
    parts = states.Parts(
        committee=evaluation.Committee(
            equivariant(TABLE, cutoff=4.0, channels=2, l_max=1, layers=1, radial=4, radial_hidden=0), MEMBERS
        ),
        samplers=(per_walker(nvt_langevin(temperature=300.0, final_temperature=3e6, ramp=1000.0)),),  # 1.5 K in a step
        score=max_force_spread,
        gate=gate or gates.threshold(limit=0.0),
        kernel=mean_feature,
        select=selects.top_k,
        label=label,
        drive=drive,
    )
    frames = initial_labels.first_structures(atoms, 4, 0)
    structures = jax.device_put(from_atoms(frames, TABLE))
    labels = jax.jit(oracle)(structures, jnp.ones(4, bool))
    held = np.array([False, False, True, False])
    buffer = training_data.training_set(structures, labels, held, MEMBERS, capacity, jax.random.key(1), 1.0)
    params = training_data.new_params(parts.committee, jax.random.key(2), SPEC, structures, labels)
    static = states.Static(
        table=TABLE,
        groups=(states.Group(neighbors.Spec(4.0, 0.5, slots, (0, 0, 0)), len(atoms), (0,) * WALKERS),),
        train_near=SPEC,
        recipe=training.Recipe(batch=2),
        every=4,
        looks=3,
        batch=WALKERS,
        fold=4,
        queue=queue,
    )
    walkers = jax.tree.map(lambda x: jnp.stack([x[0]] * WALKERS), structures)
    train = training.init(static.recipe, params)
    state = jax.jit(lambda t, b, w, k: states.start(parts, static, t, b, w, k))(
        train, buffer, walkers, jax.random.key(3)
    )
    return state, parts, static


@functools.cache
def compiled(label=oracle, **shape):
    """(start state, segment, jitted segment) of that run."""
    state, parts, static = made(label, **shape)
    segment = loop.make_segment(parts, static)
    return state, segment, jax.jit(segment)


def limits_of(**limits):
    """Arguments of the programs, in their types."""
    values = {
        "implausible": 1e3,
        "closest": 0.1,
        "hottest": 1e6,
        "budget": 1000,
        "probe": 0.0,
        "holdout": 0.3,
        "steps": 3,
    }
    values |= {"rate": 1e-3, "final_rate": 1e-4} | limits
    whole = ("budget", "steps")
    return states.Limits(**{n: jnp.asarray(v, jnp.int32 if n in whole else jnp.float32) for n, v in values.items()})


def with_gate(state, threshold, limit=jnp.inf):
    """A state whose gate fires above `threshold`, eV/Å; what is beyond `limit` is not supported."""
    gate = state.gate._replace(threshold=jnp.asarray(threshold, jnp.float32))
    return state._replace(gate=gate, support=state.support._replace(limit=jnp.asarray(limit, jnp.float32)))


def program(label=oracle, threshold=0.05, limits=None, **shape):
    """(state, run, limits): a state with its gate at `threshold` (eV/Å), the compiled segment, its arguments."""
    state, _, run = compiled(label, **shape)
    return with_gate(state, threshold), run, limits_of(**limits or {})


def host(asked, **options):
    """`program` with its labels from `asked`."""
    Host.now = asked
    return program(Host.label, **options)


def same(a, b):
    data = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
    return all(
        np.array_equal(data(x), data(y), equal_nan=True) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    )
