"""The nudged elastic band and the string against ASE's band, on the same potential: barrier and path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.mep import NEB
from ase.optimize import FIRE
from structures import plain

from jaxal.core.types import Start
from jaxal.explore.band import band, string
from jaxal.explore.stepping import unjudged

pytestmark = pytest.mark.usefixtures("double")
# Müller-Brown (Theor. Chim. Acta 53, 75, 1979), its energies scaled to eV
A = np.array([-200.0, -100.0, -170.0, 15.0]) * 0.01
a, b, c = np.array([-1.0, -1.0, -6.5, 0.7]), np.array([0.0, 0.0, 11.0, 0.6]), np.array([-10.0, -10.0, -6.5, 0.7])
X, Y = np.array([1.0, 0.0, -0.5, -1.0]), np.array([0.0, 0.5, 1.5, 1.0])
LEFT, RIGHT, SADDLE = (-0.558224, 1.441726), (-0.050011, 0.466694), (-0.822002, 0.624313)
BARRIER = 0.01 * (146.699517 - 40.664844)  # from the deepest minimum over the highest saddle to the middle one


def surface(xy):
    x, y = xy[0], xy[1]
    return jnp.sum(A * jnp.exp(a * (x - X) ** 2 + b * (x - X) * (y - Y) + c * (y - Y) ** 2))


slope_of = jax.jit(jax.value_and_grad(surface))


class OnSurface(Calculator):
    """One atom that moves on the surface."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        value, slope = slope_of(self.atoms.positions[0, :2])
        force = np.zeros((1, 3))
        force[0, :2] = -np.asarray(slope)
        self.results = {"energy": float(value), "forces": force}


def relaxed(images, steps, sampler=band, **options):
    """Positions [w 2] of the images after so many steps, and whether the band was over."""
    number = len(images)
    place = np.zeros((number, 2, 3))
    place[:, 0, :2] = images
    none, cell = np.zeros(number, np.int32), np.zeros((number, 3, 3))
    held = np.tile([False, True], (number, 1))  # so that nothing is free to move as a whole
    start = plain(place, np.zeros((number, 2), np.int32), cell, none, none, fixed=held)
    sampler = sampler(**options)

    def step(state, _):
        structure = sampler.propose(state)
        value, slope = jax.vmap(jax.value_and_grad(surface))(structure.position[:, 0, :2])
        force = jnp.zeros_like(place).at[:, 0, :2].set(-slope)
        state = sampler.advance(state, structure, unjudged(value, force, cell))
        return state, sampler.over(state)[0]

    @jax.jit
    def path(keys):
        begun = sampler.init(keys, Start(start, 0 * place, cell), none)
        state, over = jax.lax.scan(step, begun, length=steps)
        return sampler.walkers(state).position[:, 0, :2], over

    return jax.device_get(path(jax.random.split(jax.random.key(0), number)))


@pytest.mark.parametrize(
    ("number", "sampler", "options"), [(8, band, {"stiffness": 2.0}), (11, band, {"stiffness": 2.0}), (11, string, {})]
)
def test_barrier_and_path_are_those_of_ase(number, sampler, options):
    straight = np.linspace(LEFT, RIGHT, number)
    ours, over = relaxed(straight, 3000, sampler, converged=2e-3, climb=0.5, stride=0.1, **options)
    assert over[-1] and not over[0]
    images = [Atoms("H", positions=[[x, y, 0.0]], calculator=OnSurface()) for x, y in straight]
    chain = NEB(images, k=2.0, climb=True, method="improvedtangent")
    FIRE(chain, logfile=None).run(fmax=2e-3, steps=3000)
    theirs = np.array([image.positions[0, :2] for image in images])
    energy, other = (np.array([float(slope_of(x)[0]) for x in path]) for path in (ours, theirs))
    assert abs((energy.max() - energy[0]) - (other.max() - other[0])) < 1e-3
    assert energy.max() - energy[0] == pytest.approx(BARRIER, abs=1e-3)
    np.testing.assert_allclose(ours[np.argmax(energy)], SADDLE, atol=2e-3)
    np.testing.assert_allclose(ours, theirs, atol=0.02)
    np.testing.assert_array_equal(ours[[0, -1]], straight[[0, -1]])


@pytest.mark.parametrize(("sampler", "options"), [(band, {"stiffness": 2.0}), (string, {})])
def test_without_climbing_no_image_needs_to_be_at_the_top(sampler, options):
    ours, over = relaxed(np.linspace(LEFT, RIGHT, 8), 3000, sampler, converged=2e-3, climb=0.0, **options)
    energy = np.array([float(slope_of(x)[0]) for x in ours])
    assert over[-1] and energy.max() - energy[0] < BARRIER - 1e-3
    gaps = np.linalg.norm(np.diff(ours, axis=0), axis=1)
    np.testing.assert_allclose(gaps, gaps.mean(), rtol=0.05)


@pytest.mark.parametrize("sampler", [band, string])
def test_images_may_be_wrapped_as_they_like(sampler):
    """The forces on a band some of whose atoms were moved by lattice vectors are the same."""
    rng = np.random.default_rng(0)
    cell = np.array([[4.0, 0.0, 0.0], [1.0, 5.0, 0.0], [0.0, 0.0, 9.0]])
    path = rng.uniform(0, 4, (1, 3, 3)) + np.linspace(0, 1, 5)[:, None, None] * rng.normal(0, 0.5, (3, 3))
    moved = path + rng.integers(-2, 3, (5, 3, 3)) * [1, 1, 0] @ cell
    force, energy, none = rng.normal(size=path.shape), rng.normal(size=5), np.zeros(5, np.int32)
    cells, keys, sampler = np.tile(cell, (5, 1, 1)), jax.random.split(jax.random.key(0), 5), sampler()
    periodic = np.tile([True, True, False], (5, 1))

    @jax.jit
    def pull(place):
        start = plain(place, np.zeros((5, 3), np.int32), cells, none, none, periodic=periodic)
        state = sampler.init(keys, Start(start, force, cells), none)
        return sampler.advance(state, sampler.propose(state), unjudged(energy, force, cells)).force

    np.testing.assert_allclose(pull(moved), pull(path), atol=1e-10)
