"""The compiled segment on a closed form: one program, one callback, gate, rewinding, overflow, determinism."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import molecule

from jaxal import buffer as buffers
from jaxal import committee, loop, neighbors, setup
from jaxal.acquire import gate as gates
from jaxal.acquire import select as selects
from jaxal.acquire.score import max_force_spread
from jaxal.explore.md import nvt_langevin
from jaxal.label.bridge import host_label
from jaxal.potential.equivariant import equivariant
from jaxal.potential.pair import morse
from jaxal.structure import from_atoms
from jaxal.train import fit as training
from jaxal.train.calibrate import find
from jaxal.types import Label

TABLE, WALKERS, MEMBERS = (1, 8), 3, 2
MASS = jnp.asarray([15.999, 1.008, 1.008])
ORACLE = morse(TABLE, sigma=1.2, epsilon=2.0, alpha=1.5, cutoff=4.0)
SPEC = neighbors.Spec(4.0, 0.0, 2, (0, 0, 0))


def oracle(structures, wanted):
    near = find(SPEC, structures)
    energy, force, stress, _ = jax.vmap(lambda s, n: committee.evaluate(ORACLE, {}, s, n))(structures, near)
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
        shape = structures.position.shape
        force = np.zeros(shape, structures.position.dtype)
        return Label(
            np.zeros(shape[0], force.dtype), force, np.zeros((shape[0], 3, 3), force.dtype), wanted & (not bad)
        )


def program(label=oracle, limit=0.05, capacity=64, near=None, looks=3, steps=3, **limits):
    """(state, segment, limits) of a small run; `limit` of a threshold gate in eV/Å."""
    atoms = molecule("H2O")
    parts = loop.Parts(
        potential=equivariant(TABLE, cutoff=4.0, channels=2, l_max=1, layers=1, radial=4, radial_hidden=0),
        explorer=nvt_langevin(MASS, temperature=300.0),
        score=max_force_spread,
        gate=gates.threshold(limit=limit),
        select=selects.top_k,
        label=label,
    )
    frames = setup.first_structures(atoms, 4, 0)
    structures = jax.tree.map(jnp.asarray, from_atoms(frames, TABLE))
    labels = oracle(structures, jnp.ones(4, bool))
    held = np.array([False, False, True, False])
    buffer = setup.training_set(structures, labels, held, MEMBERS, capacity, jax.random.key(1), 1.0)
    params = setup.new_params(parts.potential, jax.random.key(2), MEMBERS, SPEC, structures, labels)
    static = loop.Static(
        table=TABLE,
        near=near or neighbors.Spec(4.0, 0.5, 2, (0, 0, 0)),
        train_near=SPEC,
        recipe=training.Recipe(batch=2),
        every=4,
        looks=looks,
        batch=WALKERS,
        fold=4,
        batching="auto",
    )
    walkers = jax.tree.map(lambda x: jnp.stack([x[0]] * WALKERS), structures)
    state = loop.start(parts, static, training.init(static.recipe, params), buffer, walkers, jax.random.key(3))
    given = dict(
        implausible=1e3, closest=0.1, budget=1000, probe=0.0, holdout=0.3, steps=steps, rate=1e-3, final_rate=1e-4
    )
    given |= limits
    whole = ("budget", "steps")
    arrays = {n: jnp.asarray(v, jnp.int32 if n in whole else jnp.float32) for n, v in given.items()}
    return state, loop.make_segment(parts, static), loop.Limits(**arrays)


def same(a, b):
    data = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
    return all(
        np.array_equal(data(x), data(y), equal_nan=True) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    )


def callbacks(jaxpr):
    return str(jaxpr).count("io_callback[")


def test_one_program_with_one_callback_and_none_with_an_oracle_in_jax():
    state, segment, limits = program()
    assert callbacks(jax.make_jaxpr(segment)(state, limits)) == 0
    asked = Asked()
    state, segment, limits = program(label=lambda s, w: host_label(asked, s, w))
    assert callbacks(jax.make_jaxpr(segment)(state, limits)) == 1
    assert not asked.calls


def test_new_parameters_labels_and_thresholds_do_not_recompile():
    state, segment, limits = program()
    traces = []

    def counted(state, limits):
        traces.append(1)
        return segment(state, limits)

    compiled = jax.jit(counted)
    before = int(state.buffer.count)
    state, _ = compiled(state, limits)
    state = state._replace(gate=state.gate._replace(threshold=jnp.asarray(0.5, jnp.float32)))
    state, _ = compiled(state, limits._replace(rate=jnp.asarray(5e-4, jnp.float32), steps=jnp.asarray(7, jnp.int32)))
    assert int(state.buffer.count) > before and len(traces) == 1


def test_the_callback_fires_exactly_when_the_gate_fires():
    asked = Asked()
    state, segment, limits = program(label=lambda s, w: host_label(asked, s, w), looks=4)
    compiled = jax.jit(segment)
    quiet = state._replace(gate=state.gate._replace(threshold=jnp.asarray(np.inf, jnp.float32)))
    after, looks = jax.block_until_ready(compiled(quiet, limits))
    assert asked.calls == [] and not looks.flagged.any() and int(after.buffer.count) == 4
    # the walkers moved on, by the steps between the looks
    assert np.all(after.walkers.step == 16) and np.all(after.quiet == 16)

    loud = state._replace(gate=state.gate._replace(threshold=jnp.asarray(-1.0, jnp.float32)))
    after, looks = jax.block_until_ready(compiled(loud, limits))
    assert asked.calls == [WALKERS] * 4 and looks.flagged.all()
    assert int(after.buffer.count) == 4 + 4 * WALKERS and int(after.labels) == 4 + 4 * WALKERS
    assert np.all(after.quiet == 0)


def test_the_label_budget_is_never_exceeded():
    asked = Asked()
    state, segment, limits = program(label=lambda s, w: host_label(asked, s, w), limit=0.0, budget=4 + 5)
    jax.block_until_ready(jax.jit(segment)(state, limits))
    assert asked.calls == [3, 2]


@pytest.mark.parametrize("error", [False, True])
def test_failed_labels_are_skipped_and_the_run_goes_on(error):
    asked = Asked(fail={0}, error=error)
    state, segment, limits = program(label=lambda s, w: host_label(asked, s, w), limit=0.0)
    after, looks = jax.block_until_ready(jax.jit(segment)(state, limits))
    assert asked.calls == [3, 3, 3]
    assert not looks.ok[0].any() and looks.ok[1:].all()
    assert int(after.buffer.count) == 4 + 6 and int(after.labels) == 4 + 9
    assert int(after.problems) & loop.LABEL_FAILED
    assert np.all(np.isfinite(after.walkers.structure.position))


def test_unphysical_frames_are_rewound_and_never_labeled():
    asked = Asked()
    state, segment, limits = program(label=lambda s, w: host_label(asked, s, w), limit=0.0, implausible=0.0)
    after, looks = jax.block_until_ready(jax.jit(segment)(state, limits))
    assert looks.unphysical.all() and int(after.problems) & loop.UNPHYSICAL
    assert asked.calls == []
    np.testing.assert_array_equal(after.walkers.structure.position, state.trusted.structure.position)
    # with momenta of its own each time, or the walker would do the same again
    assert not np.array_equal(after.walkers.engine.momentum, state.walkers.engine.momentum)


def test_atoms_too_close_and_positions_that_are_not_numbers_are_unphysical():
    state, segment, limits = program(closest=5.0)
    assert jax.jit(segment)(state, limits)[1].unphysical.all()
    state, segment, limits = program()
    engine = state.walkers.engine
    broken = state.walkers._replace(engine=engine.set(momentum=engine.momentum.at[0].set(jnp.nan)))
    after, looks = jax.jit(segment)(state._replace(walkers=broken), limits)
    assert looks.unphysical[0, 0] and not looks.unphysical[:, 1:].any() and not looks.unphysical[1:].any()
    assert np.all(np.isfinite(after.walkers.structure.position))


def test_probes_are_labeled_whatever_the_gate_says_and_held_out():
    state, segment, limits = program(limit=np.inf, probe=1.0)
    after, looks = jax.jit(segment)(state, limits)
    new = np.asarray(after.buffer.held_out)[4 : int(after.buffer.count)]
    assert looks.probe.all() and not looks.flagged.any() and len(new) == 9 and new.all()
    # nothing was trained, for there was nothing to train on
    assert same(after.train, state.train)


def test_a_full_buffer_undoes_the_segment_and_a_larger_one_gives_what_ample_room_gives():
    state, segment, limits = program(limit=0.0, capacity=8)
    ample, segment_ample, _ = program(limit=0.0, capacity=32)
    after, _ = jax.jit(segment)(state, limits)
    assert int(after.problems) & loop.BUFFER_FULL
    assert same(after._replace(problems=state.problems), state)
    grown = after._replace(buffer=buffers.grow(after.buffer, 32))
    again, _ = jax.jit(segment)(grown, limits)
    expected, _ = jax.jit(segment_ample)(ample, limits)
    assert not int(again.problems) & loop.UNDONE
    assert same(again, expected)


def test_too_few_neighbor_slots_undo_the_segment():
    state, segment, limits = program(near=neighbors.Spec(4.0, 0.5, 1, (0, 0, 0)), limit=np.inf)
    # a list that has overflowed is rebuilt, and found full, as soon as it is stale
    moved = state.near.position + 10.0
    state = state._replace(near=state.near._replace(position=moved))
    after, _ = jax.jit(segment)(state, limits)
    assert int(after.problems) & loop.NEIGHBORS_FULL
    assert same(after._replace(problems=state.problems), state)


def test_a_diverged_training_undoes_the_segment():
    state, segment, limits = program(limit=0.0, rate=np.inf)
    after, _ = jax.jit(segment)(state, limits)
    assert int(after.problems) & loop.NOT_FINITE
    assert same(after._replace(problems=state.problems), state)


def test_the_same_seed_gives_the_same_bits():
    results = [
        jax.jit(segment)(state, limits)[0] for state, segment, limits in (program(limit=0.0), program(limit=0.0))
    ]
    assert same(*results)


def test_learning_lowers_the_error():
    state, segment, limits = program(limit=0.02, looks=10, steps=60, rate=1e-2)
    compiled = jax.jit(segment)
    errors = []
    for _ in range(4):
        state, looks = compiled(state, limits)
        errors += list(np.asarray(looks.label_rmse)[np.asarray(looks.ok)])
    assert np.mean(errors[-6:]) < 0.3 * np.mean(errors[:6])
