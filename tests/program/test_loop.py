"""The compiled segment on a closed form: one program, one callback, gate, rewinding, overflow, determinism."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loop_example import WALKERS, Asked, Host, compiled, host, oracle, program, same

from jaxal.data import buffer as buffers
from jaxal.explore.walker import temperature
from jaxal.program import state as states
from jaxal.program.step import APART, HOT, PHYSICAL


def products(jaxpr):
    """The parameters of all matrix products of a program, those in its loops and branches too."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation.params
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from products(inner)


def test_no_matrix_product_is_left_to_the_backend_to_round():
    """GPUs would take TF32, TPUs bfloat16; in dynamics as in training, forward and backward."""
    state, _, limits = program()
    precisions = [p["precision"] for p in products(jax.make_jaxpr(compiled()[1])(state, limits).jaxpr)]
    assert len(precisions) > 50
    assert set(precisions) == {(jax.lax.Precision.HIGHEST, jax.lax.Precision.HIGHEST)}


def primitives(jaxpr):
    """Names of all operations of a program, those in its loops and branches too."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from primitives(inner)


def test_no_step_factorizes_a_matrix():
    """On a GPU each would be a call of cuSOLVER, that of a cell as that of what the training set supports."""
    state, _, limits = program()
    names = [*primitives(jax.make_jaxpr(compiled()[1])(state, limits).jaxpr)]
    factorizations = {"lu", "cholesky", "qr", "geqrf", "eigh", "svd", "triangular_solve", "custom_linear_solve"}
    assert len(names) > 1000 and not factorizations & set(names)


def callbacks(jaxpr):
    return str(jaxpr).count("io_callback[")


def test_one_program_with_one_callback_and_none_with_an_oracle_in_jax():
    for label, number in ((oracle, 0), (Host.label, 1)):
        state, _, limits = program(label)
        assert callbacks(jax.make_jaxpr(compiled(label)[1])(state, limits)) == number


@pytest.mark.slow
def test_new_parameters_labels_and_thresholds_do_not_recompile():
    state, run, limits = program()
    before = int(state.buffer.count)
    state, _ = run(state, limits)
    state = state._replace(gate=state.gate._replace(threshold=jnp.asarray(0.5, jnp.float32)))
    run(state, limits._replace(rate=jnp.asarray(5e-4, jnp.float32), steps=jnp.asarray(7, jnp.int32)))
    assert int(state.buffer.count) > before and run._cache_size() == 1


def test_the_callback_fires_exactly_when_the_gate_fires():
    labeler = Asked()
    state, run, limits = host(labeler, threshold=np.inf)
    after, looks = jax.block_until_ready(run(state, limits))
    assert labeler.calls == [] and not looks.flagged.any() and int(after.buffer.count) == 4
    # the walkers moved on, by the steps between the looks
    assert np.all(after.walkers[0].step == 12) and np.all(after.quiet == 12)

    state, run, limits = host(labeler, threshold=-1.0)
    after, looks = jax.block_until_ready(run(state, limits))
    assert labeler.calls == [WALKERS] * 3 and looks.flagged.all()
    assert int(after.buffer.count) == 4 + 3 * WALKERS and int(after.labels) == 4 + 3 * WALKERS
    assert np.all(after.quiet == 0)


def test_the_label_budget_is_never_exceeded():
    labeler = Asked()
    state, run, limits = host(labeler, threshold=-1.0, limits={"budget": 4 + 5})
    jax.block_until_ready(run(state, limits))
    assert labeler.calls == [3, 2]


@pytest.mark.parametrize("error", [False, True])
def test_failed_labels_are_skipped_and_the_run_goes_on(error):
    labeler = Asked(fail={0}, error=error)
    state, run, limits = host(labeler, threshold=-1.0)
    after, looks = jax.block_until_ready(run(state, limits))
    assert labeler.calls == [3, 3, 3]
    assert not looks.ok[0].any() and looks.ok[1:].all()
    assert int(after.buffer.count) == 4 + 6 and int(after.labels) == 4 + 9
    assert int(after.problems) & states.LABEL_FAILED
    assert np.all(np.isfinite(after.walkers[0].structure.position))


def test_unphysical_frames_are_rewound_and_never_labeled():
    labeler = Asked()
    state, run, limits = host(labeler, threshold=-1.0, limits={"implausible": -1.0})
    after, looks = jax.block_until_ready(run(state, limits))
    assert looks.unphysical.all() and int(after.problems) & states.UNPHYSICAL
    assert labeler.calls == [] and not looks.flagged.any()
    np.testing.assert_array_equal(after.walkers[0].structure.position, state.trusted.structure.position)
    # with momenta of its own each time, or the walker would do the same again
    assert not np.array_equal(after.walkers[0].engine.momentum, state.walkers[0].engine.momentum)


def test_atoms_too_close_and_positions_that_are_not_numbers_are_unphysical():
    state, run, limits = program(limits={"closest": 5.0})
    assert run(state, limits)[1].unphysical.all()
    state, run, limits = program()
    engine = state.walkers[0].engine
    broken = state.walkers[0]._replace(engine=engine.set(momentum=engine.momentum.at[0].set(jnp.nan)))
    after, looks = run(state._replace(walkers=(broken,)), limits)
    assert looks.unphysical[0, 0] and not looks.unphysical[:, 1:].any() and not looks.unphysical[1:].any()
    assert np.all(np.isfinite(after.walkers[0].structure.position))


def test_walkers_too_hot_or_in_pieces_are_rewound_and_never_labeled():
    state, run, limits = program(threshold=-1.0, limits={"hottest": 10.0})
    engine = state.walkers[0].engine
    hot = state.walkers[0]._replace(engine=engine.set(momentum=engine.momentum.at[0].multiply(10.0)))
    after, looks = run(state._replace(walkers=(hot,)), limits)
    assert looks.cause[0].tolist() == [HOT, PHYSICAL, PHYSICAL] and not looks.cause[1:].any()
    # what was asked for the others is all: there is no frame of the first walker between two looks
    assert 0 not in looks.walker[0] and 0 in looks.walker[1]
    np.testing.assert_array_equal(looks.structure.position[0, 0], state.trusted.structure.position[0])
    assert np.isnan(looks.temperature[0, 0]) and np.nanmax(looks.temperature) < 10 * 300

    after, looks = run(state._replace(farthest=jnp.full(WALKERS, 0.5, jnp.float32)), limits)
    assert np.all(looks.cause == APART) and np.all(looks.walker < 0) and int(after.labels) == int(state.labels)
    np.testing.assert_array_equal(after.walkers[0].structure.position, state.trusted.structure.position)


def test_an_isolated_atom_is_unknown_until_one_was_trained_on():
    """Its members agree that there is no force, and no gate asks for it."""
    state, run, limits = program(threshold=np.inf, limits={"holdout": 0.0})
    assert not state.known.any() and state.farthest.tolist() == pytest.approx([1.5 * 4.0] * WALKERS)
    away = state.walkers[0].structure.position.at[0, 1].set(state.walkers[0].structure.position[0, 0] + 4.5)
    engine = state.walkers[0].engine.set(position=away)
    walkers = state.walkers[0]._replace(engine=engine, structure=state.walkers[0].structure._replace(position=away))
    lost = state._replace(walkers=(walkers,), farthest=jnp.full(WALKERS, 20.0, jnp.float32))
    after, looks = run(lost, limits)
    assert looks.flagged[0].tolist() == [True, False, False] and np.isinf(looks.estimate[0, 0])
    assert (
        looks.walker[0].tolist() == [0, -1, -1]
        and looks.ok[0, 0]
        and np.isfinite(looks.label_estimate[0, 1:]).sum() == 0
    )
    assert after.known.tolist() == [True, False] and not looks.flagged[1:].any()
    assert np.all(np.isfinite(looks.score[1:])) and np.all(np.isfinite(after.fresh.score[~np.isnan(after.fresh.error)]))
    # held out it teaches nothing, and stays unknown
    after, looks = run(lost, limits._replace(holdout=jnp.float32(1.0)))
    assert not after.known.any() and looks.flagged[:, 0].all()


def test_rewound_walkers_have_the_momenta_of_their_step():
    """One that has come to the end of the ramp, at 10,000 times the temperature of its start, goes on from there."""
    state, run, limits = program(limits={"implausible": -1.0})
    late = state._replace(walkers=(state.walkers[0]._replace(step=jnp.full(WALKERS, 10**7, jnp.int32)),))
    for begun, expected in ((state, 300.0), (late, 3e6)):
        after, looks = run(begun, limits)
        assert looks.unphysical.all() and np.all(np.asarray(after.walkers[0].step - begun.walkers[0].step) == 12)
        kelvin = np.mean(np.asarray(jax.vmap(temperature)(after.walkers[0])))
        assert 0.2 < kelvin / expected < 3  # 18 momenta of three walkers, whose centers of mass rest


def test_probes_are_labeled_whatever_the_gate_says_and_held_out():
    state, run, limits = program(threshold=np.inf, limits={"probe": 1.0})
    after, looks = run(state, limits)
    new = np.asarray(after.buffer.held_out)[4 : int(after.buffer.count)]
    assert looks.probe.all() and not looks.flagged.any() and len(new) == 9 and new.all()
    # nothing was trained, for there was nothing to train on
    assert same(after.train, state.train)


def test_a_full_buffer_undoes_the_segment_and_a_larger_one_gives_what_ample_room_gives():
    state, run, limits = program(threshold=-1.0, capacity=8)
    ample, run_ample, _ = program(threshold=-1.0)
    after, looks = run(state, limits)
    assert int(after.problems) & states.BUFFER_FULL
    # the second look overflows; no label is paid for after it, for it could not be used
    assert (looks.walker[:2] >= 0).all() and (looks.walker[2] < 0).all()
    assert same(after._replace(problems=state.problems), state)
    grown = after._replace(buffer=buffers.grow(after.buffer, 64))
    again, _ = run_ample(grown, limits)
    # bootstrap weights of the first labels are drawn for the room there is, all else must be the same
    expected, _ = run_ample(ample._replace(buffer=grown.buffer), limits)
    assert not int(again.problems) & states.UNDONE
    assert same(again, expected) and int(again.buffer.count) == 13


@pytest.mark.slow
def test_too_few_neighbor_slots_undo_the_segment():
    state, run, limits = program(threshold=np.inf, slots=1)
    # a list that has overflowed is rebuilt, and found full, as soon as it is stale
    state = state._replace(near=(state.near[0]._replace(position=state.near[0].position + 10.0),))
    after, _ = run(state, limits)
    assert int(after.problems) & states.NEIGHBORS_FULL
    assert same(after._replace(problems=state.problems), state)


def test_a_diverged_training_undoes_the_segment():
    state, run, limits = program(threshold=-1.0, limits={"rate": np.inf, "holdout": 0.0})
    after, _ = run(state, limits)
    assert int(after.problems) & states.NOT_FINITE
    assert same(after._replace(problems=state.problems), state)


def test_the_same_state_gives_the_same_bits():
    state, run, limits = program(threshold=-1.0)
    assert same(run(state, limits)[0], run(state, limits)[0])


def test_learning_lowers_the_error():
    state, run, limits = program(threshold=-1.0, limits={"steps": 400, "rate": 1e-2})
    errors = []
    for _ in range(6):
        state, looks = run(state, limits)
        errors += list(np.asarray(looks.label_rmse)[np.asarray(looks.ok)])
    assert np.mean(errors[-6:]) < 0.5 * np.mean(errors[:6])
