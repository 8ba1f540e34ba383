"""Run by test_devices on eight devices in 64 bits: committee, training and segments on meshes against one device.

With `seeking` only segments whose walkers are driven by one member each and by a bias, and whose labels by a bandit.
With `coupled` only those of walkers whose steps depend on each other.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import samplers
from ase.build import molecule
from small_potential import bonds
from structures import plain

from jaxal.acquire import gate as gates
from jaxal.acquire import select as selects
from jaxal.acquire.kernel import mean_feature
from jaxal.acquire.schedule import bandit
from jaxal.acquire.score import max_force_spread
from jaxal.committee import evaluation
from jaxal.core import devices
from jaxal.core.discovery import import_parts
from jaxal.core.types import InputError, Label
from jaxal.data import neighbors
from jaxal.data.structure import from_atoms
from jaxal.explore import variables
from jaxal.explore.bias_forces import Term
from jaxal.explore.biases import hyperactive
from jaxal.explore.dynamics import nvt_langevin
from jaxal.explore.metadynamics import metadynamics
from jaxal.explore.opes import opes
from jaxal.explore.replicas import replica_exchange
from jaxal.explore.stepping import per_walker
from jaxal.explore.variables import NONE
from jaxal.potential.pair import morse
from jaxal.program import loop
from jaxal.program import state as states
from jaxal.program.callback import host_label
from jaxal.program.selection import arms_of
from jaxal.run import initial_labels, training_data
from jaxal.train import fit as training

import_parts()
TABLE, WALKERS, MEMBERS = (1, 8), 8, 4
ORACLE = morse(TABLE, sigma=1.2, epsilon=2.0, alpha=1.5, cutoff=4.0)
SPEC = neighbors.Spec(4.0, 0.0, 2, (0, 0, 0))
POTENTIAL = bonds(TABLE)
RECIPE = training.Recipe(batch=2)
ASKED = []


@jax.jit
def oracle(structures, wanted):
    near = neighbors.find(SPEC, structures)
    return Label(*evaluation.evaluate_batch(ORACLE, {}, structures, near)[:3], wanted)


def answer(structures, wanted):
    """A host labeler, numpy only: harmonic about where the walkers start."""
    ASKED.append(int(np.sum(wanted)))
    away = structures.position - structures.position.mean(axis=1, keepdims=True)
    stress = np.zeros((len(away), 3, 3), away.dtype)
    return Label(np.sum(away**2, axis=(1, 2)), -2.0 * away, stress, np.asarray(wanted))


def of(mesh):
    return evaluation.Committee(POTENTIAL, MEMBERS, mesh=mesh)


BOND = variables.bound([("distance", {"atoms": (0, 1)})], molecule("H2O"), "bias.variables")


def seeking():
    """Parts that differ from walker to walker and learn, and such as learn from all walkers together."""
    schedule = bandit(of=("top_k", "random"), rule="ucb1")
    return {
        "drive": "member",
        "biases": (
            (
                Term("hyperactive", hyperactive(max_force_spread, NONE, measure="score"), NONE, ()),
                Term("metadynamics", metadynamics(max_force_spread, BOND, width=0.02, pace=3), BOND, ("distance",)),
                Term("opes", opes(max_force_spread, BOND, width=0.02, pace=3), BOND, ("other",)),
            ),
        ),
        "schedule": schedule,
        "arms": arms_of(schedule),
    }


def start(mesh, more):
    """(state, static, parts, buffer) of a small run on a mesh, with `more` parts."""
    frames = initial_labels.first_structures(molecule("H2O"), 8, 0)
    structures = jax.tree.map(jnp.asarray, from_atoms(frames, TABLE, dtype=float))
    labels = oracle(structures, jnp.ones(8, bool))
    held = np.arange(8) % 4 == 2
    buffer = training_data.training_set(structures, labels, held, MEMBERS, 64, jax.random.key(1), 1.0)
    params = training_data.new_params(of(None), jax.random.key(2), SPEC, structures, labels)
    parts = states.Parts(
        committee=of(mesh),
        samplers=(per_walker(nvt_langevin(temperature=300.0)),),
        score=max_force_spread,
        gate=gates.threshold(limit=0.0),
        kernel=mean_feature,
        select=selects.top_k,
        label=lambda structures, wanted: host_label(answer, structures, wanted, mesh),
        **more,
    )
    near = neighbors.Spec(4.0, 0.5, 2, (0, 0, 0))
    group = states.Group(near, 3, (0,) * WALKERS)
    static = states.Static(TABLE, (group,), SPEC, RECIPE, every=4, looks=3, batch=3, fold=4)
    walkers = jax.tree.map(lambda x: jnp.stack([x[0]] * WALKERS), structures)
    train = training.init(RECIPE, params)
    state = jax.jit(lambda t, b, w, k: states.start(parts, static, t, b, w, k))(
        train, buffer, walkers, jax.random.key(3)
    )
    return state, static, parts, buffer


def limits():
    values = {
        "implausible": 1e3,
        "closest": 0.1,
        "hottest": 1e6,
        "budget": 1000,
        "probe": 0.1,
        "holdout": 0.3,
        "steps": 3,
    }
    values |= {"rate": 1e-3, "final_rate": 1e-4}
    return states.Limits(
        **{n: jnp.asarray(v, jnp.int32 if n in ("budget", "steps") else float) for n, v in values.items()}
    )


def alike(result, expected, what):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(result), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        name = f"{what}{jax.tree_util.keystr(path)}"
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=1e-7, atol=1e-9, err_msg=name)


def models(mesh, train, buffer):
    """(prediction of 8 and of 3 structures, training) on a mesh."""
    first = jax.tree.map(lambda x: x[:8], buffer.structure)
    near = neighbors.find(SPEC, first)
    predict = jax.jit(lambda *arguments: evaluation.predict(of(mesh), *arguments))
    eight = predict(train.average, first, near)
    three = predict(train.average, *jax.tree.map(lambda x: x[:3], (first, near)))
    rates = jnp.asarray(5, jnp.int32), jnp.asarray(1e-2), jnp.asarray(1e-3)
    fit = jax.jit(lambda *arguments: training.fit(of(mesh), RECIPE, SPEC, *arguments))
    return eight, three, *fit(train, buffer, jax.random.key(4), *rates)


def segment(mesh, more):
    """(state after a segment, looks, labels asked for) on a mesh."""
    state, static, parts, _ = start(mesh, more)
    ASKED.clear()
    after, looks = jax.block_until_ready(jax.jit(loop.make_segment(parts, static))(state, limits()))
    jax.effects_barrier()
    return after, looks, list(ASKED)


def rows(array):
    """Leading rows on each device, and on how many devices."""
    return {shard.data.shape[0] for shard in array.addressable_shards}, len(array.addressable_shards)


def refused(*sizes):
    try:
        return devices.number(*sizes)
    except InputError as error:
        return str(error)


def mesh_of(walkers, members):
    there = np.array(jax.devices()).reshape(walkers, members)
    return jax.sharding.Mesh(there, (devices.WALKERS, devices.MEMBERS))


def seek():
    other, other_looks, other_requests = segment(None, seeking())
    assert other_requests == [3, 3, 3] and np.all(np.asarray(other.drift[0][0].count) == 12)
    hills = other.drift[0][1].kernels
    assert np.all(np.asarray(hills.mass).sum(-1) > 0.02 * WALKERS)
    for walkers, members in ((4, 2), (2, 4)):
        name = f"{walkers}x{members}"
        state, looks, requests = segment(mesh_of(walkers, members), seeking())
        alike(state._replace(near=()), other._replace(near=()), name)
        alike(looks, other_looks, name)
        assert requests == other_requests
        assert all(rows(leaf) == ({WALKERS // walkers}, 8) for leaf in jax.tree.leaves(state.drift))
        print(f"{name} alike", flush=True)


def coupled():
    """An exchange of replicas, whose walkers divide over devices and are gathered in every step."""
    position = jnp.zeros((4, 2, 3)).at[:, 1, 0].set(0.3)
    none, cell = jnp.zeros(4, jnp.int32), jnp.zeros((4, 3, 3))
    structures = plain(position, jnp.zeros((4, 2), jnp.int32), cell, none, none)
    sampler, ends = replica_exchange(temperature=300.0, highest=600.0, every=2), []
    for mesh in (None, mesh_of(4, 2)):
        state, run = samplers.made(sampler, samplers.HARMONIC, structures, 8, 4, [0.7, 0.9], mesh)
        ends.append(run(state, limits()._replace(closest=jnp.asarray(0.0))))
    (single, single_looks), (state, looks) = ends
    alike(state._replace(near=()), single._replace(near=()), "coupled")
    alike(looks, single_looks, "coupled")
    assert looks.ok.any() and jnp.sum(state.walkers[0].accepted) > 0
    assert all(rows(leaf) == ({1}, 8) for leaf in jax.tree.leaves(state.walkers))


def main():
    assert len(jax.devices()) == 8
    if sys.argv[1:] == ["coupled"]:
        return coupled()
    if sys.argv[1:] == ["seeking"]:
        return seek()
    # (devices, walkers, members): members divide first, walkers over what is left
    assert [devices.number("auto", *sizes) for sizes in ((8, 4), (8, 3), (3, 4), (5, 5), (1, 2))] == [8, 8, 6, 5, 2]
    assert dict(devices.mesh(8, 4).shape) == {devices.WALKERS: 2, devices.MEMBERS: 4}
    assert "explore.walkers (3) does not divide over 2 rows; give 1, 2, 3, 4, 6" in refused(8, 3, 4)
    assert "devices: 9 is too large, there are 8; give 1, 2, 4, 8" in refused(9, 8, 4)
    state, _, _, buffer = start(None, {})
    inputs = jax.device_get((state.train, buffer))
    expected = models(None, *inputs), segment(None, {})
    assert expected[1][2] == [3, 3, 3]
    segments = ((4, 2), (2, 4)) if sys.argv[1:] == ["all"] else ((4, 2),)
    for walkers, members in ((8, 1), (4, 2), (2, 4)):
        name = f"{walkers}x{members}"
        mesh = mesh_of(walkers, members)
        results = models(mesh, *inputs)
        alike(results, expected[0], name)
        # what is divided is divided
        assert rows(results[0].force) == ({8 // walkers}, 8)
        assert rows(results[1].force) == ({3}, 8)
        assert all(rows(leaf) == ({MEMBERS // members}, 8) for leaf in jax.tree.leaves(results[2]))
        if (walkers, members) in segments:
            (state, looks, requests), (other, other_looks, _) = segment(mesh, {}), expected[1]
            # a device renews the lists of its own walkers only, so their order may be another
            alike(state._replace(near=()), other._replace(near=()), name)
            alike(looks, other_looks, name)
            assert requests == [3, 3, 3], "each label is asked for once"
            own = jax.tree.leaves((state.walkers, state.trusted, state.near))
            assert all(rows(leaf) == ({WALKERS // walkers}, 8) for leaf in own)
            assert all(rows(leaf) == ({MEMBERS // members}, 8) for leaf in jax.tree.leaves(state.train))
            common = jax.tree.leaves((looks, state.buffer, state.quiet))
            assert all(leaf.sharding.is_fully_replicated for leaf in common)
        print(f"{name} alike", flush=True)


if __name__ == "__main__":
    sys.exit(main())
