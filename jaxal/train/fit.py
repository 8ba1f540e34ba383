"""Training of the committee from the buffer, inside the program.

Each member draws its own batches in proportion to its bootstrap weights. Members that share a backbone draw theirs
together, pairs of a structure and a head: a step costs what it costs for one model, and every structure trains the
backbone and one head. The number of steps and the learning rate are arguments, so no training after the first
compiles anything. The dynamics use the exponential moving average of the weights.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from jaxal.committee import heads
from jaxal.committee.evaluation import Committee, evaluate_batch, over_members
from jaxal.core import devices
from jaxal.core.devices import MEMBERS
from jaxal.core.types import Distribution, Key, Label, Params, Structure
from jaxal.data import buffer as buffers
from jaxal.data import neighbors
from jaxal.train import electrons
from jaxal.train.loss import LossWeights, loss


class TrainState(NamedTuple):
    """All sets of weights and what the optimizer remembers; [r] leading everywhere, [m] in a full committee.

    Parameters are collections (see `weights`): "params" is trained, every other one stays as it is.
    """

    params: Params  # latest
    average: Params  # moving average: what predictions use
    optimizer: optax.OptState


class Recipe(NamedTuple):
    """What has to be static about training."""

    batch: int = 8
    optimizer: Literal["adamw", "amsgrad"] = "adamw"
    weight_decay: float = 0.0
    clip: float = 10.0  # largest norm of the gradient
    ema: float = 0.99
    weights: LossWeights = LossWeights(1.0, 1.0, 0.0, None)
    bootstrap: float = 1.0


def _transformation(recipe: Recipe) -> optax.GradientTransformation:
    scale = optax.scale_by_amsgrad() if recipe.optimizer == "amsgrad" else optax.scale_by_adam()
    return optax.chain(optax.clip_by_global_norm(recipe.clip), scale, optax.add_decayed_weights(recipe.weight_decay))


def init(recipe: Recipe, params: Params) -> TrainState:
    """Fresh optimizer memory for parameters `params` [r ...]."""
    return TrainState(params, params, _memory(recipe, params["params"]))


@functools.partial(jax.jit, static_argnums=0, inline=True)
def _memory(recipe: Recipe, params: Any) -> optax.OptState:
    return jax.vmap(_transformation(recipe).init)(params)


def fit(
    committee: Committee,
    recipe: Recipe,
    spec: neighbors.Spec,
    state: TrainState,
    buffer: buffers.Buffer,
    key: Key,
    steps: Int[Array, ""],
    rate: Float[Array, ""],
    final_rate: Float[Array, ""],
) -> tuple[TrainState, Float[Array, "r"]]:
    """`steps` optimizer steps of every set of weights, learning rate on a cosine from `rate` to `final_rate`.

    Returns the state and the mean loss of each over the steps. On a mesh each device trains its own sets of weights.
    """
    local = functools.partial(_fit_local, committee, recipe, spec)
    own: Any = P(MEMBERS)
    data = jax.tree.map(lambda _: P(), buffer)._replace(weight=own)
    run = devices.split(committee.mesh, local, (own, data, own, P(), P(), P()), own)
    keys = jax.random.split(key, committee.replicas)
    return run(state, buffer, keys, steps, rate, final_rate)


def _fit_local(
    committee: Committee,
    recipe: Recipe,
    spec: neighbors.Spec,
    state: TrainState,
    buffer: buffers.Buffer,
    keys: Key,
    steps: Int[Array, ""],
    rate: Float[Array, ""],
    final_rate: Float[Array, ""],
) -> tuple[TrainState, Float[Array, "r"]]:
    """`fit` of the sets of weights of one device; `keys` and the weights in `buffer` are theirs."""
    transformation = _transformation(recipe)

    method = committee.uncertainty

    def batch_loss(trained, constants, head, key, structures, labels, share):
        with jax.named_scope("neighbors"):
            near = neighbors.find(spec, structures)
        params = {**constants, "params": trained}
        potential = committee.potential if committee.heads == 1 else heads.chosen(committee.potential, head)
        if method is not None and method.potential is not None:
            potential = method.potential(key)
        energy, force, stress, feature = evaluate_batch(potential, params, structures, near)
        total = loss(recipe.weights, energy, force, stress, structures, labels, share)
        if method is not None and method.penalty is not None:
            said = Distribution(energy[None], force[None], stress[None], feature)
            total += method.penalty(params, structures, labels, said)
        return total

    def member(params, average, optimizer, weight, member_key):
        constants = {name: value for name, value in params.items() if name != "params"}

        def step(i, carry):
            trained, mean, memory, total = carry
            key = jax.random.fold_in(member_key, i)
            chosen, head = buffers.sample(key, buffer, weight, recipe.batch)
            structures, labels = buffers.rows(buffer, chosen)
            mask = jax.random.fold_in(key, 1)
            batch = structures, labels, buffer.share[chosen]
            value, slope = jax.value_and_grad(batch_loss)(trained, constants, head, mask, *batch)
            update, memory = transformation.update(slope, memory, trained)
            progress = i / jnp.maximum(steps, 1)
            now = final_rate + 0.5 * (rate - final_rate) * (1 + jnp.cos(np.pi * progress))
            trained = jax.tree.map(lambda p, u: p - (now * u).astype(p.dtype), trained, update)
            mean = jax.tree.map(lambda a, p: recipe.ema * a + (1 - recipe.ema) * p, mean, trained)
            return trained, mean, memory, total + value

        zero = jnp.zeros((), buffer.label.energy.dtype)
        carry = (params["params"], average["params"], optimizer, zero)
        trained, mean, optimizer, total = jax.lax.fori_loop(0, steps, step, carry)
        new = TrainState({**constants, "params": trained}, {**constants, "params": mean}, optimizer)
        return new, total / jnp.maximum(steps, 1)

    run = over_members(member, committee.batching)
    weight = buffer.weight.reshape(-1, committee.heads, buffers.capacity(buffer))
    return run(state.params, state.average, state.optimizer, weight, keys)


def normalize(params: Params, labels: Label, structures: Structure, mean_neighbors: float) -> Params:
    """Parameters whose scale is the root mean square force of the labels, whose messages are divided by the root of the
    mean number of neighbors, and whose offsets are those of charge and spin. Potentials without those constants are
    returned as they are.
    """
    own = params.get("constants")
    if not isinstance(own, dict):
        return params
    real = np.asarray(structures.species) >= 0
    scale = float(np.sqrt(np.nanmean(np.asarray(labels.force)[real] ** 2)))
    values: dict[str, Any] = {"scale": max(scale, 1e-3), "neighbors": max(mean_neighbors, 1.0)}
    if "offset" in own:
        kinds = int(np.max(np.asarray(structures.species))) + 1
        values["offset"] = electrons.offsets(structures, labels.energy, kinds)
    constants = {name: jnp.full_like(own[name], value) for name, value in values.items() if name in own}
    return {**params, "constants": {**own, **constants}}
