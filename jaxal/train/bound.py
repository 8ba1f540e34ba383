"""The bound of a finished committee, from labeled structures that nothing else was learned from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxal.acquire.score import max_force_spread
from jaxal.committee.evaluation import Committee, predict
from jaxal.core.types import Label, Params, Structure
from jaxal.data import neighbors
from jaxal.train.loss import force_rmse, max_force_error
from jaxal.uncertainty.bound import Calibration, calibrated, widened
from jaxal.uncertainty.support import Support, novelty

LEVEL = 0.95  # of the structures that calibrate the bound are supported


class Measured(NamedTuple):
    """What a committee says of labeled structures [c], and how wrong it is."""

    spread: Float[Array, "c"]  # largest force spread of an atom
    error: Float[Array, "c"]  # largest force error of an atom, eV/Å
    novelty: Float[Array, "c"]
    rmse: Float[Array, ""]  # eV/Å, of the force components of all of them


class Bounded(NamedTuple):
    """What a model file carries beside its weights, and the error on the structures it comes from."""

    calibration: Calibration | None
    support: Support
    rmse: float  # eV/Å, of force components; NaN without structures


def measured(
    committee: Committee, spec: neighbors.Spec, params: Params, support: Support, structures: Structure, label: Label
) -> Measured:
    """The structures as the committee of weights `params` [r ...] sees them."""
    near = neighbors.find(spec, structures)
    prediction = predict(committee, params, structures, near)
    force, cutoff = prediction.force.mean(1), committee.potential.cutoff
    return Measured(
        jax.vmap(max_force_spread)(prediction, structures),
        max_force_error(force, structures, label),
        jax.vmap(novelty, (None, 0, 0, 0, None))(support, prediction.feature, structures, near, cutoff),
        force_rmse(force, structures, label, jnp.ones(near.overflow.shape, bool)),
    )


def bounded(
    committee: Committee, params: Params, support: Support, structures: Structure, label: Label, source: str
) -> Bounded:
    """The bound, and the support as these structures [c] limit it. Host side; `source` says what they are.

    Supported is what is no farther from the trained atoms than `LEVEL` of them, or than all where they are too few to
    tell; the others of them do not calibrate. Without any the support stays as it is, and there is no bound.
    """
    ok = np.flatnonzero(np.asarray(label.ok))
    if ok.size == 0:
        return Bounded(None, support, float("nan"))
    structures, label = jax.tree.map(lambda x: x[ok], (structures, label))
    spec = neighbors.plan(structures, committee.potential.cutoff, 0.0, 1.0)
    measurement = jax.jit(measured, static_argnums=(0, 1))(committee, spec, params, support, structures, label)
    spread, error, new, rmse = (np.asarray(x, np.float64) for x in measurement)
    finite = np.sort(new[np.isfinite(new)])
    if finite.size:
        rank = min(int(np.ceil((finite.size + 1) * LEVEL - 1e-6)), finite.size)
        share = max(finite[rank - 1], np.finfo(np.float32).tiny)
        support = support._replace(limit=support.limit * share)
        new = new / share
    inside = new <= 1 + 1e-6
    return Bounded(calibrated(widened(spread, new)[inside], error[inside], source), support, float(rmse))
