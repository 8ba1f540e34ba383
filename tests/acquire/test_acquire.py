"""Scores against numpy, gates by hand."""

import jax.numpy as jnp
import numpy as np
import pytest
from structures import plain

from jaxal.acquire import gate, score
from jaxal.core.types import Prediction

RNG = np.random.default_rng(0)
FORCE = RNG.normal(size=(4, 5, 3))  # four members, five atoms, of which the last two are padding
ENERGY = RNG.normal(size=4)
REAL = 3
PREDICTION = Prediction(
    jnp.asarray(ENERGY, jnp.float32), jnp.asarray(FORCE, jnp.float32), jnp.zeros((4, 3, 3)), jnp.zeros((5, 2))
)
STRUCTURE = plain(jnp.zeros((5, 3)), jnp.asarray([0, 0, 1, -1, -1]), jnp.zeros((3, 3)), jnp.int32(0), jnp.int32(0))


def test_scores_are_what_they_say():
    mean = FORCE.mean(axis=0)
    # the mean over members of the squared distance of an atom's force vector from the committee's
    spread = np.sqrt(np.mean([np.sum((member - mean) ** 2, axis=-1) for member in FORCE], axis=0))
    np.testing.assert_allclose(score.atom_spread(PREDICTION), spread, rtol=1e-5)
    assert float(score.max_force_spread(PREDICTION, STRUCTURE)) == pytest.approx(spread[:REAL].max(), rel=1e-5)
    rms = np.sqrt(np.mean(spread[:REAL] ** 2))
    assert float(score.mean_force_spread(PREDICTION, STRUCTURE)) == pytest.approx(rms, rel=1e-5)
    assert float(score.energy_spread(PREDICTION, STRUCTURE)) == pytest.approx(ENERGY.std() / REAL, rel=1e-5)


def test_the_worst_atom_is_found_wherever_it_is():
    for atom in range(REAL):
        force = 0.01 * FORCE
        force[:, atom] *= 100
        prediction = PREDICTION._replace(force=jnp.asarray(force, jnp.float32))
        worst = float(score.max_force_spread(prediction, STRUCTURE))
        assert worst == pytest.approx(float(score.atom_spread(prediction)[atom]))


def test_structures_of_padding_only_are_certain():
    empty = STRUCTURE._replace(species=jnp.full(5, -1))
    for each in (score.max_force_spread, score.mean_force_spread):
        assert float(each(PREDICTION, empty)) == 0
    assert np.isfinite(float(score.energy_spread(PREDICTION, empty)))


def test_the_threshold_itself_passes():
    part = gate.threshold(limit=0.5)
    _, flagged = part.step(part.init(), jnp.asarray([0.0, 0.5, 0.500001, 7.0]))
    np.testing.assert_array_equal(flagged, [False, False, True, True])
    state = part.init()
    assert part.calibrate(state, jnp.ones(3), jnp.full(3, 9.0), jnp.ones(3, bool)) is state  # it learns nothing


def test_a_conformal_gate_compares_the_estimated_error_with_its_target():
    part = gate.conformal(target_error=0.3, miss_rate=0.25)
    scores, errors = jnp.asarray([0.1, 0.1, 0.1]), jnp.asarray([0.1, 0.2, 0.3])  # ratios 1, 2, 3
    state = part.calibrate(part.init(), scores, errors, jnp.ones(3, bool))
    assert float(state.factor) == pytest.approx(3.0)
    _, flagged = part.step(state, jnp.asarray([0.05, 0.099, 0.101]))
    np.testing.assert_array_equal(flagged, [False, False, True])
    # a new target needs no new gate: it is part of the state
    _, flagged = part.step(state._replace(threshold=jnp.asarray(0.1)), jnp.asarray([0.05, 0.03]))
    np.testing.assert_array_equal(flagged, [True, False])
