"""Run by test_devices on eight devices: committee, training and a segment on several meshes against one device."""

import sys

import jax

jax.config.update("jax_enable_x64", True)

import jax.numpy as jnp
import numpy as np
from ase.build import molecule
from jax.sharding import PartitionSpec as P

from jaxal import committee, devices, loop, neighbors, setup
from jaxal.acquire import gate as gates
from jaxal.acquire import select as selects
from jaxal.acquire.score import max_force_spread
from jaxal.explore.md import nvt_langevin
from jaxal.label.bridge import host_label
from jaxal.potential.equivariant import equivariant
from jaxal.potential.pair import morse
from jaxal.structure import from_atoms
from jaxal.train import fit as training
from jaxal.types import InputError, Label

TABLE, WALKERS, MEMBERS = (1, 8), 8, 4
ORACLE = morse(TABLE, sigma=1.2, epsilon=2.0, alpha=1.5, cutoff=4.0)
SPEC = neighbors.Spec(4.0, 0.0, 2, (0, 0, 0))
POTENTIAL = equivariant(TABLE, cutoff=4.0, channels=2, l_max=1, layers=1, radial=4, radial_hidden=0)
RECIPE = training.Recipe(batch=2)
ASKED = []


@jax.jit
def oracle(structures, wanted):
    near = neighbors.find(SPEC, structures)
    return Label(*committee.evaluate_batch(ORACLE, {}, structures, near)[:3], wanted)


def answer(structures, wanted):
    """A host labeler, numpy only: harmonic about where the walkers start."""
    ASKED.append(int(np.sum(wanted)))
    away = structures.position - structures.position.mean(axis=1, keepdims=True)
    stress = np.zeros((len(away), 3, 3), away.dtype)
    return Label(np.sum(away**2, axis=(1, 2)), -2.0 * away, stress, np.asarray(wanted))


def of(mesh):
    return committee.Committee(POTENTIAL, MEMBERS, mesh=mesh)


def start(mesh):
    """(state, static, parts, buffer) of a small run on a mesh."""
    structures = jax.tree.map(jnp.asarray, from_atoms(setup.first_structures(molecule("H2O"), 8, 0), TABLE, dtype=float))
    labels = oracle(structures, jnp.ones(8, bool))
    held = np.arange(8) % 4 == 2
    buffer = setup.training_set(structures, labels, held, MEMBERS, 64, jax.random.key(1), 1.0)
    params = setup.new_params(of(None), jax.random.key(2), SPEC, structures, labels)
    parts = loop.Parts(
        committee=of(mesh),
        explorer=nvt_langevin(jnp.asarray([15.999, 1.008, 1.008]), temperature=300.0),
        score=max_force_spread,
        gate=gates.threshold(limit=0.0),
        select=selects.top_k,
        label=lambda structures, wanted: host_label(answer, structures, wanted, mesh),
    )
    near = neighbors.Spec(4.0, 0.5, 2, (0, 0, 0))
    static = loop.Static(TABLE, near, SPEC, RECIPE, every=4, looks=3, batch=3, fold=4)
    walkers = jax.tree.map(lambda x: jnp.stack([x[0]] * WALKERS), structures)
    train = training.init(RECIPE, params)
    state = jax.jit(lambda t, b, w, k: loop.start(parts, static, t, b, w, k))(train, buffer, walkers, jax.random.key(3))
    return state, static, parts, buffer


def limits():
    given = {"implausible": 1e3, "closest": 0.1, "budget": 1000, "probe": 0.1, "holdout": 0.3, "steps": 3}
    given |= {"rate": 1e-3, "final_rate": 1e-4}
    return loop.Limits(**{n: jnp.asarray(v, jnp.int32 if n in ("budget", "steps") else float) for n, v in given.items()})


def alike(found, expected, what):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        name = f"{what}{jax.tree_util.keystr(path)}"
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=1e-7, atol=1e-9, err_msg=name)


def everything(mesh):
    """(prediction of 8 and of 3 structures, training, state after a segment, looks, labels asked for)."""
    state, static, parts, buffer = start(mesh)
    first = jax.tree.map(lambda x: x[:8], buffer.structure)
    near = neighbors.find(SPEC, first)
    params, predict = jax.device_get(state.train.average), jax.jit(lambda *given: committee.predict(of(mesh), *given))
    eight, three = (predict(params, *jax.tree.map(lambda x: x[:n], (first, near))) for n in (8, 3))
    rates = jnp.asarray(5, jnp.int32), jnp.asarray(1e-2), jnp.asarray(1e-3)
    fit = jax.jit(lambda *given: training.fit(of(mesh), RECIPE, SPEC, *given))
    trained = fit(state.train, state.buffer, jax.random.key(4), *rates)
    ASKED.clear()
    after, looks = jax.block_until_ready(jax.jit(loop.make_segment(parts, static))(state, limits()))
    jax.effects_barrier()
    return (eight, three), trained, after, looks, list(ASKED)


def rows(array):
    """Leading rows on each device, and on how many devices."""
    return {shard.data.shape[0] for shard in array.addressable_shards}, len(array.addressable_shards)


def refused(*asked):
    try:
        return devices.number(*asked)
    except InputError as error:
        return str(error)


def main():
    assert len(jax.devices()) == 8
    # (devices, walkers, members): members divide first, walkers over what is left
    assert [devices.number("auto", *given) for given in ((8, 4), (8, 3), (3, 4), (5, 5), (1, 2))] == [8, 8, 6, 5, 2]
    assert dict(devices.mesh(8, 4).shape) == {devices.WALKERS: 2, devices.MEMBERS: 4}
    assert "explore.walkers (3) does not divide over 2 rows; give 1, 2, 3, 4, 6" in refused(8, 3, 4)
    assert "devices: 9 is too large, there are 8; give 1, 2, 4, 8" in refused(9, 8, 4)
    expected = everything(None)
    assert expected[4] == [3, 3, 3]
    for walkers, members in ((8, 1), (4, 2), (2, 4)):
        there = np.array(jax.devices()[: walkers * members]).reshape(walkers, members)
        mesh = jax.sharding.Mesh(there, (devices.WALKERS, devices.MEMBERS))
        found = everything(mesh)
        for part, x, y in zip(("predict", "fit", "state", "looks"), found, expected, strict=False):
            if part == "state":  # a device renews the lists of its own walkers only, so their order may be another
                x, y = (each._replace(near=each.near.overflow) for each in (x, y))
            alike(x, y, f"{walkers}x{members} {part}")
        assert found[4] == expected[4], "each label is asked for once"
        # what is divided is divided, after the training and after the segment
        state, looks = found[2:4]
        for leaf in jax.tree.leaves((found[1][0], state.train)):
            assert rows(leaf) == ({MEMBERS // members}, there.size), (walkers, members)
        for leaf in jax.tree.leaves((state.walkers, state.trusted, state.near)):
            assert rows(leaf) == ({WALKERS // walkers}, there.size), (walkers, members)
        assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves((looks, state.buffer, state.quiet)))
        assert rows(found[0][0].force) == ({8 // walkers}, there.size)
        assert rows(found[0][1].force) == ({3}, there.size)
        print(f"{walkers}x{members} alike", flush=True)


if __name__ == "__main__":
    sys.exit(main())
