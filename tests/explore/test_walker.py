"""Fixed atoms, degrees of freedom, and what is too hot, for every explorer and beside chi-square statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2
from structures import plain

from jaxal.core.units import BOLTZMANN
from jaxal.explore import dynamics
from jaxal.explore.descent import descent
from jaxal.explore.stepping import per_walker
from jaxal.explore.walker import TAIL, degrees_of_freedom, free, hottest, temperature

MASS = np.array([1.008, 12.011, 15.999, 28.085])  # amu
NOTHING = jnp.zeros((4, 3)), jnp.zeros((3, 3))
RAMP = {"temperature": 100.0, "final_temperature": 900.0, "ramp": 0.1, "timestep": 1.0}
RAMPED = {f.__name__: f(**RAMP) for f in (dynamics.nvt_langevin, dynamics.nvt_nose_hoover, dynamics.npt_nose_hoover)}


def structure(fixed=(), atoms=4, padding=0):
    """Atoms on a line in a cell, some fixed, then padding."""
    total = atoms + padding
    species = np.where(np.arange(total) < atoms, 0, -1).astype(np.int32)
    held = np.isin(np.arange(total), fixed)
    position = np.arange(total)[:, None] * np.array([1.0, 0.2, 0.1])
    mass = np.resize(MASS, total)
    arguments = (position.astype(np.float32), species, 9 * np.eye(3, dtype=np.float32))
    return jax.device_put(plain(*arguments, mass=mass.astype(np.float32), fixed=held))


@pytest.mark.parametrize(
    ("fixed", "atoms", "expected"), [((), 4, 9), ((1,), 4, 9), ((0, 3), 4, 6), ((0, 1, 2), 4, 3), ((), 1, 3)]
)
def test_degrees_of_freedom(fixed, atoms, expected):
    """3n - 3 where momentum is conserved; all of the mobile atoms' where it is not; those of a single atom."""
    for padding in (0, 2):
        assert int(free(structure(fixed, atoms, padding))) == expected
    walker = dynamics.nvt_langevin().init(jax.random.key(0), structure(fixed), *NOTHING, jnp.int32(0))
    assert int(degrees_of_freedom(walker)) == 3 * (4 - len(fixed))


@pytest.mark.parametrize("name", RAMPED)
def test_a_walker_begins_with_the_momenta_of_its_step(name):
    """Half way up a ramp from 100 to 900 K, and after it, as a walker that is rewound there does."""
    explorer = RAMPED[name]
    begin = jax.jit(jax.vmap(lambda key, step: explorer.init(key, structure(), *NOTHING, step), (0, None)))
    for step, expected in ((0, 100.0), (50, 500.0), (400, 900.0)):
        walkers = begin(jax.random.split(jax.random.key(step), 3000), jnp.int32(step))
        assert np.all(np.asarray(walkers.step) == step)
        assert float(explorer.bath(jnp.int32(step))) == pytest.approx(expected, rel=1e-5)
        # the center of mass rests: 9 momenta have the temperature of the bath
        kelvin = jnp.mean(walkers.engine.momentum**2 / walkers.engine.mass) * 12 / 9 / BOLTZMANN
        assert abs(float(kelvin) / expected - 1) < 4 * np.sqrt(2 / 9 / 3000)


def test_momenta_of_a_held_system_are_not_centered():
    """Each mobile atom has kT in each direction, whatever its mass; the fixed ones have nothing."""
    begin = jax.jit(jax.vmap(lambda key: dynamics.nve().init(key, structure((2,)), *NOTHING, jnp.int32(0))))
    walkers = begin(jax.random.split(jax.random.key(1), 4000))
    kelvin = np.mean(np.asarray(walkers.engine.momentum) ** 2, axis=(0, 2)) / MASS / BOLTZMANN
    np.testing.assert_allclose(kelvin[[0, 1, 3]], 300.0, atol=4 * 300 * np.sqrt(2 / 3 / 4000))
    assert kelvin[2] == 0.0
    measured = np.asarray(jax.vmap(temperature)(walkers))
    assert abs(measured.mean() / 300 - 1) < 4 * np.sqrt(2 / 9 / 4000)


def limit(explorer, factor, fixed=(), step=0):
    walker = explorer.init(jax.random.key(0), structure(fixed), *NOTHING, jnp.int32(step))
    walkers = jax.tree.map(lambda x: x[None], walker)
    sampler = per_walker(explorer)
    degrees = sampler.degrees(walkers)
    bath = jnp.full(1, jnp.inf) if sampler.bath is None else sampler.bath(walkers)
    return float(hottest(bath, jnp.float32(factor), degrees)[0]), int(degrees[0])


def test_no_walker_in_equilibrium_is_too_hot():
    """However small a factor is given: 2 K / kT has the chi-square distribution, whose tail there is below exp(-30)."""
    for explorer in (dynamics.nve(), dynamics.nvt_langevin()):
        for fixed in ((), (0,), (0, 1), (0, 1, 2)):
            bound, count = limit(explorer, 1.0, fixed)
            assert chi2.sf(count * bound / 300.0, count) < np.exp(-TAIL)
            # ten times the bath are more than chance gives from four atoms on
            assert limit(explorer, 10.0, fixed)[0] == pytest.approx(max(3000.0, bound))
    assert limit(dynamics.nvt_langevin(), 10.0)[0] == pytest.approx(3000.0)


def test_the_bath_is_that_of_the_step_and_walkers_at_rest_have_none():
    ramped = RAMPED["nvt_langevin"]
    assert limit(ramped, 20.0, step=50)[0] == pytest.approx(20 * 500.0, rel=1e-5)
    assert limit(ramped, 20.0)[0] == pytest.approx(20 * 300.0)  # what is no bath's heat does not scale with it
    assert limit(dynamics.nve(temperature=0.0), 20.0)[0] == pytest.approx(20 * 300.0)
    assert limit(descent(), 10.0)[0] == np.inf
