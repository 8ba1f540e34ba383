"""The posterior of a committee's method of uncertainty: learned after a training, updated by what is asked for."""

import jax.numpy as jnp
from jaxtyping import Array, Bool

from jaxal.committee.evaluation import Committee, over_members
from jaxal.core.precision import exact
from jaxal.core.types import Lessons, Params, Structure
from jaxal.data import buffer as buffers
from jaxal.data import neighbors
from jaxal.train.fit import TrainState


def learned(committee: Committee, spec: neighbors.Spec, train: TrainState, buffer: buffers.Buffer) -> TrainState:
    """The state with the posterior of its averaged weights on the training set; as it is where there is no method."""
    method = committee.uncertainty
    if method is None:
        return train
    there = jnp.arange(buffers.capacity(buffer)) < buffer.count
    near = neighbors.find(spec, buffer.structure)
    lessons = Lessons(buffer.structure, near, buffer.label, there & ~buffer.held_out, there & buffer.held_out)
    return _with(
        train, over_members(lambda params: exact(method.learn)(params, lessons), committee.batching)(train.average)
    )


def updated(
    committee: Committee, spec: neighbors.Spec, train: TrainState, structures: Structure, wanted: Bool[Array, "k"]
) -> TrainState:
    """The state with the wanted structures in the posterior, before anything is trained."""
    method = committee.uncertainty
    if method is None:
        return train
    near = neighbors.find(spec, structures)

    def posterior_of(params: Params):
        return exact(method.update)(params, structures, near, wanted)

    return _with(train, over_members(posterior_of, committee.batching)(train.average))


def _with(train: TrainState, posterior: dict[str, Array]) -> TrainState:
    now = {"posterior": posterior}
    return train._replace(params={**train.params, **now}, average={**train.average, **now})
