"""What every sampler promises: explorers lifted to all walkers, and registered samplers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from structures import plain

from jaxal.core import registry
from jaxal.core.discovery import import_parts
from jaxal.core.types import Seen, Start, Structure
from jaxal.explore import stepping

import_parts("explorer", "sampler")
WALKERS, ATOMS = 4, 5
QUICK = {"replica_exchange": {"every": 1}}
PARTS = {
    name: functools.partial(registry.get(kind, name), **QUICK.get(name, {}))
    for kind in ("explorer", "sampler")
    for name in registry.names(kind)
}
BARRED = ("npt_nose_hoover",)  # dynamics that move every atom: no atom is fixed


def structures(fixed: bool) -> Structure:
    """Four atoms in a cell, the first of them fixed or not, and room for one more."""
    rng = np.random.default_rng(2)
    position = rng.uniform(0, 5, (WALKERS, ATOMS, 3)).astype(np.float32)
    species = jnp.asarray(np.where(np.arange(ATOMS) < 4, 0, -1) + np.zeros((WALKERS, 1), int), jnp.int32)
    cell, none = jnp.asarray(np.tile(6 * np.eye(3, dtype=np.float32), (WALKERS, 1, 1))), jnp.zeros(WALKERS, jnp.int32)
    held = jnp.asarray((np.arange(ATOMS) == 0) & fixed) & jnp.ones((WALKERS, 1), bool)
    return plain(jnp.asarray(position), species, cell, none, none, fixed=held)


def seen(structures: Structure) -> Seen:
    """Springs to the origin."""
    force = -0.1 * structures.position
    energy = 0.05 * jnp.sum(structures.position**2, axis=(1, 2))
    return stepping.unjudged(energy, force, 0.001 * jnp.broadcast_to(jnp.eye(3), structures.cell.shape))


@pytest.mark.parametrize("name", PARTS)
def test_a_sampler_moves_all_walkers_and_takes_back_whom_it_is_told_to(name):
    sampler, begin = stepping.sampler(PARTS[name]()), structures(name not in BARRED)
    first = Start(begin, *seen(begin)[1:3])
    keys = jax.random.split(jax.random.key(0), (2, WALKERS))

    @jax.jit
    def run(mask):
        def step(state, _):
            structures = sampler.propose(state)
            return sampler.advance(state, structures, seen(structures)), None

        begun = sampler.init(keys[0], first, jnp.full(WALKERS, 7, jnp.int32))
        after = jax.lax.scan(step, begun, length=5)[0]
        back = sampler.rewind(keys[1], after, mask, first)
        numbers = [
            (sampler.kinetic(s), sampler.degrees(s), sampler.steps(s), sampler.walkers(s)) for s in (after, back)
        ]
        report = {} if sampler.report is None else sampler.report(after)
        more = [f(after) for f in (sampler.bath, sampler.over) if f is not None]
        return after, back, [*numbers, sampler.walkers(begun)], report, more

    after, same, (numbers, _, first_places), report, more = run(jnp.zeros(WALKERS, bool))
    kinetic, degrees, steps, ends = numbers
    assert all(leaf.shape[0] == WALKERS for leaf in jax.tree.leaves(after)), "every array has a row for each walker"
    assert all(x.shape == (WALKERS,) for x in (kinetic, degrees, steps, *report.values(), *more))
    assert np.all(steps == 12) and np.all(kinetic >= 0)
    assert all(not jnp.issubdtype(x.dtype, jnp.floating) or bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(after))
    still = (begin.species < 0) | begin.fixed
    np.testing.assert_array_equal(ends.position[still], first_places.position[still])
    assert np.all(np.any(np.asarray(ends.position != begin.position), axis=(1, 2)) | sampler.ordered)  # whose ends rest
    for x, y in zip(jax.tree.leaves(after), jax.tree.leaves(same), strict=True):
        data = jax.random.key_data if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else np.asarray
        np.testing.assert_array_equal(data(x), data(y), err_msg="who is not told to go back goes on")

    # what is asked of some rows alone, as on a mesh, is what they have among all
    some, close = jax.tree.map(lambda x: x[1:2], after), functools.partial(np.testing.assert_allclose, rtol=1e-6)
    for ask in (sampler.kinetic, sampler.degrees, sampler.steps, sampler.walkers, sampler.bath, sampler.report):
        if ask is not None:
            jax.tree.map(close, ask(some), jax.tree.map(lambda x: x[1:2], ask(after)))

    # one is taken back, the others are where they were; the steps count on
    _, _, (_, (_, _, steps, places), _), _, _ = run(jnp.asarray([False, True, False, False]))
    np.testing.assert_array_equal(places.position[1], begin.position[1])
    np.testing.assert_array_equal(places.position[::2], ends.position[::2])
    assert np.all(steps == 12)
