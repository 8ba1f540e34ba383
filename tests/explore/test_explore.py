"""Explorers: the split step against jax-md's own, units, initial momenta, ramps, dtypes."""

import functools
import inspect
import re

import ase.units
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from structures import plain

from jaxal.core import registry
from jaxal.core.jaxmd import energy as forms
from jaxal.core.jaxmd import simulate
from jaxal.core.types import InputError
from jaxal.core.units import BOLTZMANN, GPA, TIME_UNIT
from jaxal.explore import dynamics
from jaxal.explore.walker import degrees_of_freedom, temperature

ALL = ("nve", "nvt_langevin", "nvt_nose_hoover", "npt_nose_hoover")
MASS = np.array([1.008, 12.011, 15.999, 28.085, 1.008, 12.011, 15.999, 28.085])  # amu
CELL = np.diag([5.0, 5.2, 5.6])  # Å


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def example(dtype=np.float64, cell=CELL, fixed=(False,) * 8):
    """Eight atoms near the corners of a grid in a periodic cell."""
    grid = np.stack(np.meshgrid(*[[0.0, 0.5]] * 3, indexing="ij"), -1).reshape(-1, 3)
    position = grid @ cell + 0.1 * np.random.default_rng(0).normal(size=(8, 3))
    return plain(
        position.astype(dtype),
        np.zeros(8, np.int32),
        cell.astype(dtype),
        np.int32(0),
        np.int32(0),
        mass=MASS.astype(dtype),
        fixed=np.array(fixed),
    )


def energy(position, box, perturbation=1.0, **_):
    """Morse pairs at a smooth periodic distance, r^2 = sum of (L/pi sin(pi s))^2 over the orthorhombic directions.

    Periodic without a cutoff or a nearest image, so nothing but the integrator limits how well energy is kept.
    `perturbation` scales lengths at fixed fractional coordinates, as jax-md means it.
    """
    length = jnp.diag(box)
    fraction = (position[:, None] - position) / length
    square = jnp.sum((perturbation * length / jnp.pi * jnp.sin(jnp.pi * fraction)) ** 2, axis=-1)
    apart = ~np.eye(len(position), dtype=bool)
    r = jnp.sqrt(jnp.where(apart, square, 1.0))
    return 0.5 * jnp.sum(jnp.where(apart, forms.morse(r, 1.9, 0.3, 1.4), 0.0))


@jax.jit
def force_and_stress(structure):
    """Forces (eV/Å) and an isotropic stress with the right trace (eV/Å^3)."""
    cell = jnp.abs(structure.cell)
    force = -jax.grad(energy)(structure.position, cell)
    slope = jax.grad(lambda scale: energy(structure.position, cell, scale))(jnp.ones((), cell.dtype))
    return force, slope / jnp.prod(jnp.diag(cell)) * jnp.eye(3, dtype=cell.dtype) / 3


def step(explorer, walker):
    structure = explorer.propose(walker)
    return explorer.advance(walker, structure, *force_and_stress(structure))


@functools.partial(jax.jit, static_argnums=0)
def run(explorer, walker, steps):
    return jax.lax.fori_loop(0, steps, lambda _, walker: step(explorer, walker), walker)


@functools.cache
def explorer_of(name, **options):
    return registry.get("explorer", name)(**options)


@functools.partial(jax.jit, static_argnums=0)
def begin(explorer, key, structure, step=0):
    return explorer.init(key, structure, *force_and_stress(structure), jnp.int32(step))


def start(name, key=1, structure=None, **options):
    explorer = explorer_of(name, **options)
    return explorer, begin(explorer, jax.random.key(key), example() if structure is None else structure)


def unsplit(name, structure, timestep=0.7, temperature=400.0):
    """jax-md's own step with the true energy function."""
    dt = float(np.float32(timestep / TIME_UNIT))
    kT = BOLTZMANN * temperature

    def fixed(position, **_):
        return energy(position, box=structure.cell)

    def shift(position, change, **_):
        return position + change

    if name == "nve":
        return simulate.nve(fixed, shift, dt)[1]
    if name == "nvt_langevin":
        return simulate.nvt_langevin(fixed, shift, dt, kT, gamma=0.02 * TIME_UNIT)[1]
    if name == "nvt_nose_hoover":
        return simulate.nvt_nose_hoover(fixed, shift, dt, kT, tau=30 / TIME_UNIT, **dynamics.CHAIN)[1]
    chains = [{"tau": tau / TIME_UNIT, **dynamics.CHAIN} for tau in (400, 30)]
    return simulate.npt_nose_hoover(energy, shift, dt, 2.0 * GPA, kT, *chains)[1]


OPTIONS = {
    "nve": {},
    "nvt_langevin": {"friction": 0.02},
    "nvt_nose_hoover": {"tau": 30.0},
    "npt_nose_hoover": {"tau": 30.0, "barostat_tau": 400.0, "pressure": 2.0},
}
USUAL = {name: {"temperature": 400.0, "timestep": 0.7, **options} for name, options in OPTIONS.items()}


@pytest.mark.parametrize("name", ALL)
def test_split_step_is_jax_mds_step(name):
    explorer, walker = start(name, **USUAL[name])
    apply = unsplit(name, walker.structure)
    reference = walker.engine
    if name == "nvt_nose_hoover":  # static in jax-md, and left out of the explorer's state
        reference = reference.set(chain=reference.chain.set(degrees_of_freedom=3 * 8 - 3))
    kT = np.asarray(BOLTZMANN * 400.0)
    reference = jax.jit(lambda s: jax.lax.fori_loop(0, 300, lambda _, s: apply(s, kT=kT), s))(reference)

    walker = run(explorer, walker, 300)

    assert int(walker.step) == 300
    moved = np.max(np.abs(np.asarray(walker.structure.position) - example().position))
    assert moved > 0.2  # 210 fs at 400 K: it went somewhere
    for mine, theirs in zip(jax.tree.leaves(walker.engine), jax.tree.leaves(reference), strict=True):
        if jnp.issubdtype(mine.dtype, jnp.floating):
            assert mine.dtype == np.float64
            np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-10)
        else:  # the key of the noise
            np.testing.assert_array_equal(*map(jax.random.key_data, (mine, theirs)))
    np.testing.assert_array_equal(walker.structure.position, walker.engine.position)
    if name == "npt_nose_hoover":
        np.testing.assert_allclose(walker.structure.cell, jax.jit(simulate.npt_box)(reference), atol=1e-10)
        assert abs(np.linalg.det(walker.structure.cell) / np.linalg.det(CELL) - 1) > 0.01


@pytest.mark.parametrize("name", ALL[1:])
def test_two_halves_cost_one_step(name):
    """Both halves run the whole jax-md step; in one program XLA merges them. (Those of NVE share next to nothing.)"""
    explorer, walker = start(name, **USUAL[name])

    def second(walker, structure):
        return explorer.advance(walker, structure, -structure.position, 1e-3 * jnp.eye(3))

    def both(walker):
        return second(walker, explorer.propose(walker))

    def costly(function, *arguments):
        """Loops, exponentials, divisions and the bit mixing of random numbers left after XLA's own merging."""
        text = jax.jit(function).lower(*arguments).compile().as_text()
        return len(re.findall(r" (?:while|exponential|divide|xor)\(", text))

    first = costly(explorer.propose, walker)
    added = costly(both, walker) - costly(second, walker, walker.structure)
    assert first > 4
    assert added < 0.5 * first  # a few scalars of the barostat remain, nothing per atom


def test_time_unit_is_ases():
    assert pytest.approx(1 / ase.units.fs, rel=1e-7) == TIME_UNIT


@pytest.mark.parametrize("name", ALL)
def test_velocity_in_angstrom_per_fs(name):
    """One free atom flies p/m: an independent check of the timestep's unit."""
    friction = {"friction": 0.0} if "langevin" in name else {}
    explorer = registry.get("explorer", name)(temperature=300.0, timestep=0.25, **friction)
    position, mass = np.array([[0.0, 0, 0], [3.0, 0, 0]]), np.array([4.0, 9.0])
    structure = plain(position, np.zeros(2, np.int32), 50.0 * np.eye(3), np.int32(0), np.int32(0), mass=mass)
    nothing = np.zeros((2, 3)), np.zeros((3, 3))
    walker = jax.jit(explorer.init)(jax.random.key(0), structure, *nothing, np.int32(0))
    momentum, mass = walker.engine.momentum, walker.engine.mass
    velocity = np.divide(momentum, mass) * ase.units.fs  # ASE: Å per its time unit -> Å/fs
    proposed = jax.jit(explorer.propose)(walker)
    tolerance = 0.02 if "hoover" in name else 1e-6  # a thermostat has already acted
    np.testing.assert_allclose((proposed.position - structure.position) / 0.25, velocity, rtol=tolerance)
    assert explorer.timestep == 0.25


def test_nve_error_falls_with_the_square_of_the_timestep():
    _, walker = start("nve", temperature=300.0)

    def error(timestep):
        explorer = explorer_of("nve", timestep=timestep)

        def body(walker, _):
            walker = step(explorer, walker)
            return walker, dynamics.conserved(walker, energy(walker.structure.position, walker.structure.cell))

        total = jax.jit(lambda w: jax.lax.scan(body, w, length=int(100 / timestep))[1])(walker)
        return np.asarray(total).std()

    coarse, fine = error(0.5), error(0.25)
    assert 3.6 < coarse / fine < 4.4
    assert fine < 1e-4  # eV, of some 0.3 eV kinetic


@pytest.mark.parametrize("name", ["nvt_nose_hoover", "npt_nose_hoover"])
def test_extended_energy_is_conserved(name):
    _, walker = start(name, temperature=300.0, **OPTIONS[name])

    def spread(timestep):
        explorer = explorer_of(name, temperature=300.0, timestep=timestep, **OPTIONS[name])
        pressure = OPTIONS[name].get("pressure", 0.0)

        def body(walker, _):
            walker = step(explorer, walker)
            potential = energy(walker.structure.position, walker.structure.cell)
            return walker, dynamics.conserved(walker, potential, temperature=300.0, pressure=pressure)

        total = np.asarray(jax.jit(lambda w: jax.lax.scan(body, w, length=int(100 / timestep))[1])(walker))
        return total.std(), total[-1] - total[0]

    (coarse, _), (fine, drift) = spread(0.5), spread(0.25)
    assert coarse / fine > 3.5
    assert fine < 1e-4
    assert abs(drift) < 2e-4


def test_langevin_conserves_nothing():
    _, walker = start("nvt_langevin", **USUAL["nvt_langevin"])
    with pytest.raises(TypeError, match="conserves nothing"):
        jax.eval_shape(dynamics.conserved, walker, np.zeros(()))


@pytest.mark.parametrize("name", ALL)
def test_initial_momenta(name):
    """Rest of the center of mass, and kT (1 - m/M) for each atom and direction, light ones too."""
    explorer, structure = explorer_of(name, temperature=500.0), example()
    keys = jax.random.split(jax.random.key(3), 4000)

    @jax.jit
    @jax.vmap
    def drawn(key):
        walker = begin(explorer, key, structure)
        return walker.engine.momentum, temperature(walker), degrees_of_freedom(walker)

    momentum, kelvin, free = map(np.asarray, drawn(keys))
    np.testing.assert_allclose(momentum.sum(axis=1), 0.0, atol=1e-10)

    kT = np.mean(momentum**2, axis=(0, 2)) / MASS
    expected = BOLTZMANN * 500.0 * (1 - MASS / MASS.sum())
    standard_error = expected * np.sqrt(2 / (3 * 4000))
    assert np.all(np.abs(kT - expected) < 4 * standard_error)

    assert np.all(free == (24 if name == "nvt_langevin" else 21))
    assert abs(np.mean(kelvin * free) / 21 - 500.0) < 4 * 500 * np.sqrt(2 / 21 / 4000)


@pytest.mark.parametrize("name", ALL)
def test_init_rewinds_to_the_same_bits(name):
    explorer, walker = start(name, key=5, **USUAL[name])
    _, again = start(name, key=5, **USUAL[name])
    _, other = start(name, key=6, **USUAL[name])

    def same(a, b):
        raw = [jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in (a, b)]
        return np.array_equal(*raw)

    assert all(jax.tree.leaves(jax.tree.map(same, walker, again)))
    assert not same(walker.engine.momentum, other.engine.momentum)
    ends = run(explorer, walker, 30), run(explorer, again, 30)
    assert all(jax.tree.leaves(jax.tree.map(same, *ends)))
    assert int(walker.step) == 0


@pytest.mark.parametrize("name", ["nvt_langevin", "npt_nose_hoover"])
def test_walkers_vmapped_are_walkers_alone(name):
    explorer, first = start(name, key=1, **USUAL[name])
    _, second = start(name, key=2, **USUAL[name])

    @jax.jit
    def together(*walkers):
        both = jax.tree.map(lambda *x: jnp.stack(x), *walkers)
        return jax.lax.fori_loop(0, 30, lambda _, w: jax.vmap(lambda x: step(explorer, x))(w), both)

    both = together(first, second).structure
    for row, walker in enumerate((first, second)):
        alone = run(explorer, walker, 30).structure
        np.testing.assert_allclose(np.asarray(both.position)[row], alone.position, atol=1e-11)
        np.testing.assert_allclose(np.asarray(both.cell)[row], alone.cell, atol=1e-11)


@pytest.mark.parametrize("x64, dtype", [(False, np.float32), (True, np.float32)])
@pytest.mark.parametrize("name", ALL)
def test_dtype_is_kept(name, x64, dtype):
    """Also for float32 walkers in a process that has float64 switched on, and masses in float64.

    That float64 is kept shows in the comparison with jax-md above.
    """
    options = {} if name == "nve" else {"final_temperature": 600.0, "ramp": 0.1}
    with jax.enable_x64(x64):
        explorer, walker = start(name, structure=example(dtype), temperature=300.0, **options)
        before = jax.eval_shape(lambda w: w, walker)
        after = jax.eval_shape(lambda w: step(explorer, w), walker)
        assert jax.tree.map(lambda x: (x.shape, x.dtype), before) == jax.tree.map(lambda x: (x.shape, x.dtype), after)
        floats = {x.dtype for x in jax.tree.leaves(after) if jnp.issubdtype(x.dtype, jnp.floating)}
        assert floats == {np.dtype(dtype)}
        end = run(explorer, walker, 20)
        assert np.isfinite(end.structure.position).all()
        assert end.structure.position.dtype == dtype


def test_ramp():
    """Free atoms under strong friction take the temperature of the bath at once: half way, at the end, and after."""
    explorer = registry.get("explorer", "nvt_langevin")(
        temperature=100.0, timestep=1.0, friction=1.0, final_temperature=900.0, ramp=0.1
    )
    structure, nothing = example(), (np.zeros((8, 3)), np.zeros((3, 3)))
    keys = jax.random.split(jax.random.key(0), 2000)
    walkers = jax.jit(jax.vmap(lambda key: explorer.init(key, structure, *nothing, np.int32(0))))(keys)

    def body(walkers, _):
        walkers = jax.vmap(lambda w: explorer.advance(w, explorer.propose(w), *nothing))(walkers)
        return walkers, jnp.mean(jax.vmap(temperature)(walkers))

    walkers, kelvin = jax.lax.scan(body, walkers, length=200)
    kelvin, error = np.asarray(kelvin), 4 * np.sqrt(2 / 24 / 2000)
    # the bath leads by 1/(2 friction) = 0.5 fs at 8 K/fs
    for index, expected in ((50, 500.0), (99, 892.0), (120, 900.0), (199, 900.0)):
        assert abs(kelvin[index] / expected - 1) < error + 10 / expected
    # a walker rewound to an earlier step goes on at that step's temperature
    late = walkers._replace(step=np.full(2000, 10, np.int32))
    _, kelvin = jax.lax.scan(body, late, length=20)
    assert abs(np.asarray(kelvin)[-1] / (100 + 8 * 30) - 1) < error + 0.05


@pytest.mark.parametrize("name", ALL[1:])
def test_half_a_ramp_is_refused(name):
    factory = registry.get("explorer", name)
    with pytest.raises(InputError, match="ramp"):
        factory(ramp=1.0)
    with pytest.raises(InputError, match="final_temperature"):
        factory(final_temperature=500.0)


def test_left_handed_cell():
    """A cell with negative determinant is the same crystal: mirrored, it must do the same."""
    mirror = np.diag([-1.0, 1.0, 1.0])
    explorer, right = start("npt_nose_hoover", temperature=300.0, pressure=5.0)
    structure = right.structure
    left_structure = structure._replace(cell=np.asarray(structure.cell) @ mirror)  # the same lattice, left-handed
    _, left = start("npt_nose_hoover", structure=left_structure, temperature=300.0, pressure=5.0)
    right, left = (run(explorer, walker, 100).structure for walker in (right, left))
    np.testing.assert_allclose(left.cell, np.asarray(right.cell) @ mirror, atol=1e-12)
    np.testing.assert_allclose(left.position, right.position, atol=1e-10)
    assert abs(np.linalg.det(right.cell) / np.linalg.det(CELL) - 1) > 1e-3


def test_options_are_stated_with_units():
    for name in ALL:
        assert registry.description("explorer", name)
        for option in registry.options("explorer", name):
            assert option.default is not inspect.Parameter.empty
            assert "Unit(symbol=" in repr(option.annotation), (name, option.name)
    assert [name for name in ALL if explorer_of(name).barostat] == ["npt_nose_hoover"]


def test_single_atom():
    explorer = registry.get("explorer", "nve")(temperature=100.0)
    structure = plain(np.zeros((1, 3)), np.zeros(1, np.int32), np.zeros((3, 3)), np.int32(0), np.int32(0))
    still = structure, np.zeros((1, 3)), np.zeros((3, 3)), np.int32(0)
    walker = jax.jit(explorer.init)(jax.random.key(0), *still)
    degrees, kelvin = jax.jit(lambda w: (degrees_of_freedom(w), temperature(w)))(walker)
    assert degrees == 3
    assert kelvin > 0
