"""Small runs of samplers that couple their walkers, in the compiled segment."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxal.acquire import gate as gates
from jaxal.acquire import select as selects
from jaxal.acquire.kernel import mean_feature
from jaxal.acquire.score import max_force_spread
from jaxal.committee import evaluation
from jaxal.core.types import Label, Potential
from jaxal.data import neighbors
from jaxal.program import loop
from jaxal.program import state as states
from jaxal.run import training_data
from jaxal.train import fit as training

TABLE, CUTOFF = (1,), 6.0
SPRING = 1.0  # eV/Å^2


def _harmonic(params, structure, near):
    vector, used = neighbors.vectors(structure, near)
    atomic = 0.25 * SPRING * jnp.sum(jnp.where(used, jnp.sum(vector**2, axis=-1), 0.0), axis=1)
    return jnp.sum(atomic), atomic[:, None]


HARMONIC = Potential(lambda *_: {}, _harmonic, CUTOFF)


def scaled(truth: Potential) -> Potential:
    """The truth times a trained factor."""

    def energy(params, structure, near):
        whole, feature = truth.energy({}, structure, near)
        return params["params"]["factor"] * whole, feature

    return Potential(truth.init, energy, truth.cutoff)


def made(sampler, truth, structures, every, looks, factors, mesh=None):
    """(state, segment) of walkers at these structures, of hydrogen, one of the two members for each factor."""
    number, atoms = structures.species.shape
    spec = neighbors.Spec(CUTOFF, 0.0, atoms - 1, (0, 0, 0))

    def label(structures, wanted):
        near = neighbors.find(spec, structures)
        energy, force, stress, _ = jax.vmap(lambda s, n: evaluation.evaluate(truth, {}, s, n))(structures, near)
        return Label(energy, force, stress, wanted)

    parts = states.Parts(
        committee=evaluation.Committee(scaled(truth), 2, mesh=mesh),
        samplers=(sampler,),
        score=max_force_spread,
        gate=gates.threshold(limit=0.0),
        kernel=mean_feature,
        select=selects.top_k,
        label=label,
    )
    group = states.Group(spec._replace(skin=0.5), atoms, (0,) * number)
    recipe = training.Recipe(batch=4, ema=0.5)
    static = states.Static(TABLE, (group,), spec, recipe, every=every, looks=looks, batch=2, fold=4)
    first = jax.tree.map(lambda x: x[:2], structures)
    labels = label(first, jnp.ones(2, bool))
    buffer = training_data.training_set(first, labels, np.array([False, True]), 2, 64, jax.random.key(1), 1.0)
    train = training.init(recipe, {"params": {"factor": jnp.asarray(factors)}})
    state = jax.jit(lambda *arguments: states.start(parts, static, *arguments))(
        train, buffer, structures, jax.random.key(3)
    )
    return state, jax.jit(loop.make_segment(parts, static))
