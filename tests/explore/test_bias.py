"""Steered dynamics: the spring and its center, where walkers begin, nearest images, and what is left without it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from structures import plain

from jaxal.config.check import check
from jaxal.config.loading import load
from jaxal.core import registry
from jaxal.core.types import InputError
from jaxal.core.units import BOLTZMANN
from jaxal.explore.steered import value
from jaxal.explore.walker import temperature

MASS = np.array([12.011, 35.45, 1.008, 35.45])  # amu
SPRING = {"coordinate": [(0, 1), (0, 3)], "low": -1.0, "high": 1.5}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def structure(cell=0.0, dtype=np.float64):
    """Four atoms; d(0, 1) - d(0, 3) is 1.9 - 2.6 Å."""
    position = np.array([[0.0, 0, 0], [0, 0, 1.9], [1.0, 0.2, 0.1], [0.3, 0, -np.sqrt(2.6**2 - 0.09)]])
    return plain(
        jnp.asarray(position, dtype),
        jnp.zeros(4, jnp.int32),
        cell * jnp.eye(3, dtype=dtype),
        jnp.int32(0),
        jnp.int32(0),
        mass=jnp.asarray(MASS, dtype),
    )


NOTHING = jnp.zeros((4, 3)), jnp.zeros((3, 3))


def steered(**options):
    return registry.get("explorer", "nvt_steered")(**(SPRING | options))


def begin(explorer, walkers=1, start=None):
    keys = jax.random.split(jax.random.key(0), walkers)
    start = structure() if start is None else start
    return jax.jit(jax.vmap(lambda key: explorer.init(key, start, *NOTHING, jnp.int32(0))))(keys)


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def run(explorer, walkers, steps, field=lambda structure: NOTHING):
    """All walkers after each step, in `field` (forces, stress) and the spring."""

    def one(walker):
        proposed = explorer.propose(walker)
        return explorer.advance(walker, proposed, *field(proposed))

    def body(walkers, _):
        walkers = jax.vmap(one)(walkers)
        return walkers, walkers

    return jax.lax.scan(body, walkers, length=steps)[1]


def coordinate(walkers, pairs=((0, 1), (0, 3))):
    return np.asarray(
        jnp.vectorize(lambda p, c: value(pairs, plain(p, None, c, None, None)), signature="(n,d),(d,d)->()")(
            walkers.structure.position, walkers.structure.cell
        )
    )


def center(walkers, low=-1.0, high=1.5):
    return np.asarray((low + high) / 2 - (high - low) / 2 * np.cos(walkers.engine.phase))


@pytest.mark.parametrize("pairs", [[(0, 1), (0, 3)], [(2, 3)]])
@pytest.mark.parametrize("cell", [0.0, 3.0])  # in the small one the nearest images count
def test_the_spring_is_the_slope_of_its_energy(pairs, cell):
    """The force that a walker carries in no field, against finite differences of s (q - c)^2 / 2 q from plain numpy."""
    stiffness, start = 7.0, structure(cell)
    explorer = steered(coordinate=pairs, low=1.0, high=2.0, stiffness=stiffness)
    walker = jax.tree.map(lambda x: x[0], begin(explorer, start=start))
    walker = walker._replace(engine=walker.engine.set(phase=jnp.asarray(0.9)))
    walker = explorer.advance(walker, start, *NOTHING)
    turned = 0.9 + 2 * np.pi * 0.5 / 2000
    assert float(walker.engine.phase) == pytest.approx(turned)
    middle = 1.5 - 0.5 * np.cos(turned)

    def distance(position, i, j):
        vector = position[j] - position[i]
        return np.linalg.norm(vector - cell * np.round(vector / cell) if cell else vector)

    def energy(position):
        q = distance(position, *pairs[0]) - (distance(position, *pairs[1]) if len(pairs) > 1 else 0.0)
        return 0.5 * stiffness * (q - middle) ** 2

    expected, h = np.zeros((4, 3)), 1e-5
    for atom, axis in np.ndindex(4, 3):
        step = np.zeros((4, 3))
        step[atom, axis] = h
        position = np.asarray(start.position)
        expected[atom, axis] = (energy(position - step) - energy(position + step)) / (2 * h)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(walker.engine.force, expected, atol=1e-8)
    np.testing.assert_allclose(np.sum(walker.engine.force, axis=0), 0.0, atol=1e-12)


def test_walkers_begin_where_they_are_and_go_both_ways():
    explorer = steered(period=1.0)
    walkers = begin(explorer, 64)
    np.testing.assert_allclose(center(walkers), 1.9 - 2.6, atol=1e-12)
    np.testing.assert_allclose(walkers.engine.force, 0.0, atol=1e-10)
    speed = np.sign(np.sin(walkers.engine.phase))
    assert 16 < np.sum(speed > 0) < 48, "about as many upwards as downwards"
    seen = run(explorer, walkers, 2000)
    sweep = center(seen)
    # one period: each walker's center has been at both ends, smoothly, and is back where it was
    assert np.allclose(sweep.min(0), -1.0, atol=1e-4) and np.allclose(sweep.max(0), 1.5, atol=1e-4)
    np.testing.assert_allclose(sweep[-1], center(walkers), atol=1e-9)
    assert np.abs(np.diff(sweep, axis=0)).max() <= np.pi * 2.5 * 0.5 / 1000 + 1e-9
    # beyond the sweep: the nearer end
    for low, high, end, phase in ((0.0, 1.0, 0.0, 0.0), (-3.0, -1.0, -1.0, np.pi)):
        outside = begin(steered(low=low, high=high), 8)
        np.testing.assert_allclose(np.abs(outside.engine.phase), phase, atol=1e-12)
        np.testing.assert_allclose(center(outside, low, high), end, atol=1e-12)


def test_the_coordinate_follows_the_center_with_the_width_of_its_temperature():
    """In a slow sweep q - c is that of a spring in a heat bath: its variance is kT / stiffness, its mean nothing."""
    explorer = steered(low=1.6, high=2.4, coordinate=[(0, 1)], period=50.0, stiffness=20.0, temperature=300.0)
    seen = run(explorer, begin(explorer, 256), 6000)
    lag = (coordinate(seen, ((0, 1),)) - center(seen, 1.6, 2.4))[2000::50]
    sweep = center(seen, 1.6, 2.4)
    assert np.ptp(sweep) > 0.2, "the center has moved further than the width"
    width, average = BOLTZMANN * 300.0 / 20.0, lag.mean(0)
    error = 4 * average.std() / 16
    # two free atoms on a spring come apart as r^2: <q - c> = 2 kT / (s c)
    assert abs(average.mean() - 2 * width / sweep.mean()) < error + 2e-3
    assert np.mean((lag - lag.mean()) ** 2) == pytest.approx(width, rel=0.1)
    assert np.mean(jax.vmap(jax.vmap(temperature))(seen)[2000:]) == pytest.approx(300.0, rel=0.03)


def test_it_crosses_a_barrier_that_heat_does_not():
    """A double well of 20 kT in one distance."""

    def field(structure):
        def energy(position):
            r = jnp.linalg.norm(position[1] - position[0])
            return 0.5 * (((r - 2.0) / 0.4) ** 2 - 1) ** 2  # eV; minima at 1.6 and 2.4 Å

        return -jax.grad(energy)(structure.position), jnp.zeros((3, 3))

    options = {"coordinate": [(0, 1)], "low": 1.5, "high": 2.5, "period": 1.0}
    start = structure()
    start = start._replace(position=start.position.at[1].set(jnp.asarray([0.0, 0.0, 1.6])))
    for stiffness, crossed in ((0.0, False), (20.0, True)):
        explorer = steered(**options, stiffness=stiffness)
        seen = coordinate(run(explorer, begin(explorer, 8, start), 2400, field), ((0, 1),))
        assert np.all(seen.max(0) > 2.3) if crossed else np.all(seen.max(0) < 2.0)


def test_without_a_spring_it_is_langevin_dynamics():
    """The same momenta, noise and steps; two programs may round differently."""

    def field(structure):
        return -0.3 * structure.position, jnp.zeros((3, 3))

    options = {"friction": 0.02, "temperature": 500.0}
    free, plain = steered(stiffness=0.0, **options), registry.get("explorer", "nvt_langevin")(**options)
    mine, theirs = (run(explorer, begin(explorer, 3), 50, field) for explorer in (free, plain))
    for name in ("position", "momentum"):
        np.testing.assert_allclose(getattr(mine.engine, name), getattr(theirs.engine, name), rtol=1e-11, atol=1e-13)


def test_it_goes_on_from_its_own_place_when_it_is_taken_back():
    """As the program does it: init at another structure, with the step counter of before."""
    explorer = steered(period=1.0, stiffness=10.0)
    walkers = begin(explorer, 4)
    late = jax.tree.map(lambda x: x[-1], run(explorer, walkers, 700))
    again = begin(explorer, 4)._replace(step=late.step)
    np.testing.assert_allclose(center(again), coordinate(again), atol=1e-12)
    after = run(explorer, again, 3)
    assert np.abs(center(after) - coordinate(again)).max() < 0.02


def test_a_bond_through_the_boundary_is_short():
    cell = np.array([[5.0, 0, 0], [1.0, 6.0, 0], [0.5, 0.4, 7.0]])
    position = np.array([[0.1, 0.2, 0.1], [0.2, 0.1, 0.3], [0, 0, 0], [0, 0, 0]]) @ np.eye(3)
    far = position.copy()
    far[1] += 2 * cell[0] - cell[2]
    for place in (position, far):
        given = plain(jnp.asarray(place), None, jnp.asarray(cell), None, None)
        assert float(value(((0, 1),), given)) == pytest.approx(np.linalg.norm(position[1] - position[0]))
    same = plain(jnp.zeros((4, 3)), None, jnp.asarray(cell), None, None)
    slope = jax.grad(lambda p: value(((0, 1),), same._replace(position=p)))(same.position)
    assert np.all(np.isfinite(slope)), "atoms in one place have no direction, but a finite gradient"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"coordinate": []}, r"explore\.coordinate: \[\] has 0 pairs; give one pair"),
        ({"coordinate": [(0, 1)] * 3}, r"explore\.coordinate: .* has 3 pairs; give one pair"),
        ({"coordinate": [(0, 4)]}, r"explore\.coordinate: \[0, 4\] does not fit; give two different atoms, 0 to 3"),
        ({"coordinate": [(0, 1), (2, 2)]}, r"explore\.coordinate: \[2, 2\] does not fit"),
        ({"low": 2.0}, r"explore\.high: 1.5 Å is not above explore\.low, 2.0 Å"),
    ],
)
def test_what_cannot_be_swept_is_refused(options, expected):
    with pytest.raises(InputError, match=expected) as caught:
        begin(steered(**options))
    assert "\n" not in str(caught.value)


def test_in_a_configuration(tmp_path):
    (tmp_path / "water.xyz").write_text("3\n\nO 0 0 0.12\nH 0 0.76 -0.48\nH 0 -0.76 -0.48\n")
    (tmp_path / "config.yaml").write_text("system: {file: water.xyz}")
    path, sweep = tmp_path / "config.yaml", "coordinate: [[0, 1], [0, 2]], low: -1, high: 0.1 nm, period: 500 fs"
    config = load(path, [f"explore={{name: nvt_steered, {sweep}}}"])
    part = config.explore.part
    assert (part["coordinate"], part["high"], part["period"]) == (((0, 1), (0, 2)), 1.0, 0.5)
    check(config)
    for override, expected in (
        ("explore={name: nvt_steered}", "explore.coordinate: missing; nvt_steered needs a list"),
        (
            f"explore={{name: nvt_steered, {sweep.replace('[0, 2]', '[0, 2, 1]')}}}",
            "coordinate.1.: .* a list of 2",
        ),
        (f"explore={{name: nvt_steered, {sweep.replace('2]]', '3]]')}}}", "explore.coordinate: .* 0 to 2"),
    ):
        with pytest.raises(InputError, match=expected):
            check(load(path, [override]))
