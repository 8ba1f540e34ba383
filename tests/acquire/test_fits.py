"""Which parts go together: what is refused, in one line, and what is compared with a limit in eV/Å."""

import jax.numpy as jnp
import numpy as np
import pytest
from closed_features import SHELLS

from jaxal.acquire.fits import measure_of, refuse_idle_limit, refuse_misfits, unit_of
from jaxal.acquire.gate import conformal, estimated, threshold
from jaxal.core import registry
from jaxal.core.discovery import import_parts
from jaxal.core.types import FORCE, InputError

import_parts()


def options_of(score, **more):
    return {option.name: option.default for option in registry.options("score", score)} | more


@pytest.mark.parametrize("name", registry.names("score"))
def test_every_score_says_what_it_measures(name):
    assert registry.about("score", name, **options_of(name)) is not None
    assert unit_of(measure_of(name), FORCE)


@pytest.mark.parametrize(
    ("score", "more", "gate", "spread", "biases", "message"),
    [
        ("confidence_bound", {}, conformal(), FORCE, (), r"^gate\.name: conformal .*eV per atom.*threshold"),
        ("expected_improvement", {}, conformal(), FORCE, (), r"^gate\.name: .*max_force_spread"),
        ("committee_entropy", {}, threshold(), "", (), r"^score\.name: .*d_optimality have no unit; give"),
        ("relative_force_spread", {}, conformal(), "", (), r"^score\.name: .* give one of .*energy_spread"),
        (
            "expected_improvement", {"property": "largest_force"}, threshold(), "", (),
            r"^score\.name: expected_improvement needs force spreads in eV/Å",
        ),
        ("confidence_bound", {}, threshold(), FORCE, ["hyperactive", "adversarial"], r"^bias\.name: adversarial"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_with_what_would(score, more, gate, spread, biases, message):
    method = "members" if spread else "d_optimality"
    name = "conformal" if gate.estimates else "threshold"
    with pytest.raises(InputError, match=message) as refused:
        refuse_misfits(score, options_of(score, **more), name, gate, method, spread, biases)
    assert "\n" not in str(refused.value)


def test_what_fits_is_let_through():
    refuse_misfits("committee_entropy", options_of("committee_entropy"), "conformal", conformal(), "members", FORCE)
    refuse_misfits("max_force_spread", {}, "conformal", conformal(), "d_optimality", "", ["adversarial"])
    refuse_misfits("probability_of_improvement", options_of("probability_of_improvement"), "threshold", threshold(),
                   "d_optimality", "")  # fmt: skip
    # a part of somebody else's that says nothing of itself is trusted
    assert unit_of(measure_of("max_force_spread"), "") == "without a unit"


def test_a_limit_that_is_compared_with_nothing_is_refused():
    refuse_idle_limit(2.0, 2.0, threshold(), "")
    refuse_idle_limit(10.0, 2.0, threshold(), FORCE)
    refuse_idle_limit(10.0, 2.0, conformal(), "")
    with pytest.raises(InputError, match=r"^gate\.implausible: 10 eV/Å .* gate\.ceiling"):
        refuse_idle_limit(10.0, 2.0, threshold(), "")
    with pytest.raises(ValueError, match=r"gate\.ceiling"):
        threshold(limit=2.0, ceiling=1.0)


def test_only_what_a_gate_has_learned_is_an_error():
    score = jnp.asarray([0.1, 0.2])
    assert np.isnan(estimated(conformal(), conformal().init(), score)).all(), "nothing is known before a calibration"
    assert np.isnan(estimated(threshold(), threshold().init(), score)).all()
    learned = conformal().init()._replace(factor=jnp.float32(3.0))
    np.testing.assert_allclose(estimated(conformal(), learned, score), [0.3, 0.6], rtol=1e-6)


@pytest.mark.parametrize("name", registry.names("uncertainty"))
def test_the_unit_of_a_method_is_stated(name):
    method = registry.get("uncertainty", name)(SHELLS, 2)
    assert method is None or method.unit == ("" if name == "d_optimality" else FORCE)
