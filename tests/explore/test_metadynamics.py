"""Metadynamics, OPES and walls against plain sums, and free energies of double wells that are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import bulk
from ase.io import write
from structures import plain

from jaxal.acquire.score import max_force_spread
from jaxal.config.check import check
from jaxal.config.loading import load
from jaxal.core.types import InputError, Moment, Variables
from jaxal.core.units import BOLTZMANN
from jaxal.explore.metadynamics import metadynamics
from jaxal.explore.opes import opes
from jaxal.explore.variables import NONE
from jaxal.explore.walls import confinement, wall

pytestmark = pytest.mark.usefixtures("double")
KELVIN = 300.0
KT = BOLTZMANN * KELVIN


def coordinates(number, period=None):
    """The first coordinates of the first atom."""
    names = tuple("xyz"[:number])
    return Variables(names, ("Å",) * number, (period,) * number, lambda structure: structure.position[0, :number])


def structures_of(values):
    """One atom each at these places [w v], and a padded one."""
    values = jnp.asarray(values)
    position = jnp.zeros((len(values), 2, 3)).at[:, 0, : values.shape[1]].set(values)
    species, zero = jnp.tile(jnp.asarray([0, -1], jnp.int32), (len(values), 1)), jnp.zeros(len(values), jnp.int32)
    return jax.vmap(plain)(position, species, jnp.zeros((len(values), 3, 3)), zero, zero)


def moment_of(values, physical=None):
    structures, nothing = structures_of(values), jnp.zeros(len(values))
    still = jnp.zeros_like(structures.position)
    physical = jnp.ones(len(values), bool) if physical is None else jnp.asarray(physical)
    return Moment(jnp.asarray(values), nothing, still, still, structures, nothing, physical)


def begun(bias):
    return bias.init(jax.tree.map(lambda x: x[0], structures_of(np.zeros((1, 1)))), jnp.int32(0))


def energy_of(bias, state, values):
    return bias.energy(state, jnp.asarray(values), jnp.zeros(()), None, jnp.zeros(()))


def test_hills_are_those_of_a_plain_sum():
    """Of two periodic variables, three walkers of which one has left the physical; hills come at every third step."""
    along = coordinates(2, 2.0)
    options = {"width": (0.2, 0.3), "height": 0.05, "pace": 3, "temperature": KELVIN, "bias_factor": 5.0}
    bias = metadynamics(max_force_spread, along, **options)
    learn, rng = jax.jit(bias.learn), np.random.default_rng(0)
    places = np.stack(np.meshgrid(np.arange(-1, 1, 0.25), np.arange(-1, 1, 0.4), indexing="ij"), -1).reshape(-1, 2)
    places = iter(rng.permutation(places))  # far enough from each other that none are merged
    state, hills = begun(bias), []

    def plain_sum(values):
        off = [values - center - 2.0 * np.round((values - center) / 2.0) for center, _ in hills]
        return sum(h * np.exp(-0.5 * np.sum((d / [0.2, 0.3]) ** 2)) for d, (_, h) in zip(off, hills, strict=True))

    for step in range(1, 40):
        deposit = step % 3 == 0
        values = np.array([next(places) for _ in range(3)]) if deposit else rng.uniform(-1, 1, (3, 2))
        physical = np.array([True, step % 2 == 0, True])
        state = learn(state, moment_of(values, physical))
        if deposit:
            heights = [0.05 * np.exp(-plain_sum(x) / (4.0 * KT)) for x in values]
            hills += [(x, h) for x, h, ok in zip(values, heights, physical, strict=True) if ok]
    assert int(state.kernels.count) == len(hills) == 13 * 2 + 6
    for values in rng.uniform(-1, 1, (20, 2)):
        np.testing.assert_allclose(energy_of(bias, state, values), plain_sum(values), rtol=1e-12)
    at = rng.uniform(-1, 1, 2)
    slope = jax.grad(lambda x: energy_of(bias, state, x))(jnp.asarray(at))
    steps = 1e-5 * np.eye(2)
    numeric = [(plain_sum(at + d) - plain_sum(at - d)) / 2e-5 for d in steps]
    np.testing.assert_allclose(slope, numeric, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("number", [1, 2])
def test_hills_and_their_heights_are_those_of_openmm(number):
    """The same places in the same order, in a program of its own kind: the whole bias on its grid."""
    openmm = pytest.importorskip("openmm", reason="openmm is not installed (pip install openmm)")
    from openmm import app, unit

    width, height, factor, low, high = 0.15, 0.05, 5.0, -1.0, 1.0  # Å, eV, Å
    joule = 96.48533212  # kJ/mol in eV
    system = openmm.System()
    system.addParticle(0.0)  # without a mass it stays where it is put
    axes = []
    for name in "xy"[:number]:
        along = openmm.CustomExternalForce(f"10*{name}")  # nm to Å
        along.addParticle(0)
        axes.append(app.metadynamics.BiasVariable(along, low, high, width, False, 121))
    meta = app.Metadynamics(system, axes, KELVIN * unit.kelvin, factor, height * joule, 1)
    topology = app.Topology()
    residue = topology.addResidue("X", topology.addChain())
    topology.addAtom("X", app.Element.getBySymbol("H"), residue)
    platform = openmm.Platform.getPlatformByName("Reference")
    simulation = app.Simulation(topology, system, openmm.VerletIntegrator(0.001), platform)
    rng = np.random.default_rng(0)
    places = np.clip(np.cumsum(0.25 * rng.normal(size=(60, number)), axis=0) % 2.0 - 1.0, -0.95, 0.95)
    bias = metadynamics(
        max_force_spread, coordinates(number), width=(width,) * number, height=height, pace=1, temperature=KELVIN,
        bias_factor=factor,
    )  # fmt: skip
    state, learn = begun(bias), jax.jit(bias.learn)
    for place in places:
        simulation.context.setPositions([[*(0.1 * place), *[0.0] * (3 - number)]])
        meta.step(simulation, 1)
        state = learn(state, moment_of(place[None]))
    theirs = -meta.getFreeEnergy().value_in_unit(unit.kilojoule_per_mole) * (factor - 1) / factor / joule
    grid = np.linspace(low, high, 121)
    points = np.stack(np.meshgrid(*[grid] * number, indexing="ij"), -1).reshape(-1, number)
    ours = np.asarray(jax.vmap(lambda x: energy_of(bias, state, x))(jnp.asarray(points))).reshape([121] * number)
    ours = ours.T  # their first variable is the fastest
    assert ours.max() > 2 * height
    np.testing.assert_allclose(theirs, ours, atol=0.02 * ours.max())  # hills that are near are merged here


def test_where_there_is_no_room_hills_join_the_nearest():
    bias = metadynamics(max_force_spread, coordinates(1), width=0.1, height=0.02, pace=1, bias_factor=None, hills=3)
    state = begun(bias)
    for values in ([[-1.0], [1.0]], [[0.0], [0.9]], [[0.1], [1.0]], [[5.0], [-1.0]]):
        state = bias.learn(state, moment_of(np.array(values)))
    assert int(state.kernels.count) == 3
    np.testing.assert_allclose(state.kernels.mass, [0.04, 0.08, 0.04])  # nothing is lost
    np.testing.assert_allclose(state.kernels.center[:, 0], [-1.0, np.mean([1.0, 0.9, 1.0, 5.0]), 0.05])
    spread = [np.var(members) for members in ([-1.0, -1.0], [1.0, 0.9, 1.0, 5.0], [0.0, 0.1])]
    np.testing.assert_allclose(state.kernels.width[:, 0], np.sqrt(0.1**2 + np.array(spread)))


def test_merged_hills_hardly_change_the_sum():
    rng = np.random.default_rng(2)
    bias = metadynamics(max_force_spread, coordinates(1), width=0.1, height=1.0, pace=1, bias_factor=None)
    state, places = begun(bias), rng.uniform(-1, 1, 400)
    for values in places.reshape(-1, 20, 1):
        state = jax.jit(bias.learn)(state, moment_of(values))
    assert int(state.kernels.count) < 60
    grid = np.linspace(-1.2, 1.2, 60)
    exact = np.exp(-0.5 * ((grid[:, None] - places) / 0.1) ** 2).sum(1)
    np.testing.assert_allclose([energy_of(bias, state, [x]) for x in grid], exact, atol=0.01 * exact.max())


def sampled(bias, force, starts, steps, step, every=20):
    """Overdamped Langevin dynamics of walkers [w v] in a potential and the bias: their places, energies of the bias,
    and its last state."""

    def onward(carry, key):
        values, state = carry
        state = bias.learn(state, moment_of(values))
        energy, slope = jax.vmap(jax.value_and_grad(energy_of, argnums=2), (None, None, 0))(bias, state, values)
        kick = jnp.sqrt(2 * KT * step) * jax.random.normal(key, values.shape)
        return (values + step * (force(values) - slope) + kick, state), (values, energy)

    def block(carry, key):
        carry, seen = jax.lax.scan(onward, carry, jax.random.split(key, every))
        return carry, jax.tree.map(lambda x: x[-1], seen)

    keys = jax.random.split(jax.random.key(0), steps // every)
    (_, state), (places, energies) = jax.jit(lambda *a: jax.lax.scan(block, *a))(
        (jnp.asarray(starts), begun(bias)), keys
    )
    return np.asarray(places), np.asarray(energies), state


BARRIER, TILT = 0.25, 0.05  # eV, eV/Å: wells at -1 and 1, ten kT deep, the right one higher


def well(x):
    return BARRIER * (x**2 - 1) ** 2 + TILT * x


GRID = np.linspace(-1.3, 1.3, 53)


def of_histogram(places, weights):
    """Free energies on the grid from weighted samples."""
    edges = np.append(GRID - 0.025, GRID[-1] + 0.025)
    counts, _ = np.histogram(places.ravel(), edges, weights=weights.ravel())
    return -KT * np.log(np.maximum(counts, 1e-300))


def difference(energies):
    """Free energy of the right well above the left one, and of the barrier above the left one."""
    weight = np.exp(-energies / KT)
    left, right = (-KT * np.log(weight[side].sum()) for side in (GRID < -0.3, GRID > 0.3))
    middle = -KT * np.log(weight[np.abs(GRID) < 0.1].sum())
    return np.array([right - left, middle - left])


def force_of_well(x):
    return -jax.grad(lambda x: jnp.sum(well(x)))(x)


@pytest.mark.slow
def test_metadynamics_and_opes_find_the_free_energy_of_a_double_well():
    """All eight walkers begin in the left well; from the hills, from weights, and from both biases alike."""
    starts = np.full((8, 1), -1.0)
    along, expected = coordinates(1), difference(well(GRID))
    tempered = {"width": 0.1, "height": 0.002, "pace": 100, "temperature": KELVIN, "bias_factor": 8.0, "hills": 200}
    density = {"width": 0.15, "barrier": 0.4, "pace": 100, "temperature": KELVIN, "kernels": 100}
    for name, bias, gamma, within in (
        ("metadynamics", metadynamics(max_force_spread, along, **tempered), 8.0, 0.3 * KT),
        ("opes", opes(max_force_spread, along, **density), 0.4 / KT, 0.1 * KT),
    ):
        places, energies, state = sampled(bias, force_of_well, starts, 400_000, step=2e-2)
        places, energies = places[len(places) // 2 :], energies[len(places) // 2 :]
        assert np.mean(places > 0.3) > 0.2 and np.mean(places < -0.3) > 0.2
        assert int(state.kernels.count) < 100
        final = np.asarray([energy_of(bias, state, [x]) for x in GRID])
        np.testing.assert_allclose(difference(final * gamma / (1 - gamma)), expected, atol=within, err_msg=name)
        reweighted = of_histogram(places, np.exp(energies / KT))
        np.testing.assert_allclose(difference(reweighted), expected, atol=within, err_msg=name)


def test_opes_begins_at_the_barrier_and_merges_what_is_near():
    bias = opes(max_force_spread, coordinates(1), width=0.1, barrier=0.5, pace=1, temperature=KELVIN, kernels=4)
    state = begun(bias)
    np.testing.assert_allclose(energy_of(bias, state, [0.3]), -0.5, rtol=1e-6)
    high = opes(max_force_spread, coordinates(1), width=0.1, barrier=3.0, temperature=KELVIN)
    np.testing.assert_allclose(
        energy_of(high, begun(high), [0.3]), -3.0, rtol=1e-6
    )  # exp(-116) is no number of float32
    slope = jax.grad(lambda x: energy_of(high, begun(high), x))(jnp.asarray([0.3]))
    assert not np.any(slope)
    state = bias.learn(state, moment_of([[0.0], [0.02]]))
    assert int(state.kernels.count) == 1
    np.testing.assert_allclose(state.kernels.center[0], 0.01, atol=1e-3)
    state = bias.learn(state, moment_of([[1.0], [2.0]], [True, False]))
    assert int(state.kernels.count) == 2, "a walker that has left the physical adds nothing"
    state = bias.learn(state, moment_of([[3.0], [4.0], [5.0]]))
    assert int(state.kernels.count) == 4 and np.isfinite(energy_of(bias, state, [5.0]))
    values = np.linspace(-2.0, 6.0, 100)[:, None]
    assert min(energy_of(bias, state, x) for x in values) >= -0.5 - 1e-6


@pytest.mark.parametrize(
    ("options", "values", "expected"),
    [
        ({"low": 0.5, "high": 2.0, "stiffness": 4.0}, [0.4], 0.5 * 4.0 * 0.1**2),
        ({"low": 0.5, "high": 2.0, "stiffness": 4.0}, [2.3], 0.5 * 4.0 * 0.3**2),
        ({"low": 0.5, "high": 2.0}, [1.0], 0.0),
        ({"high": 2.0, "stiffness": 4.0}, [-50.0], 0.0),
        ({"high": 2.0, "stiffness": 4.0}, [3.0], 2.0),
        ({"low": 2.0, "stiffness": 4.0}, [1.0], 2.0),
        ({"low": (0.0, -1.0), "stiffness": (1.0, 2.0)}, [-1.0, -3.0], 0.5 + 4.0),
    ],
)
def test_walls_act_outside_alone(options, values, expected):
    bias = wall(max_force_spread, coordinates(len(values)), **options)
    np.testing.assert_allclose(energy_of(bias, (), np.array(values)), expected)


def test_of_a_periodic_variable_the_nearer_wall_counts():
    bias = wall(max_force_spread, coordinates(1, 2.0), low=0.5, high=0.9, stiffness=2.0)
    np.testing.assert_allclose(
        [energy_of(bias, (), [x]) for x in (0.7, 1.0, 0.4, -1.6, -0.9)], [0, 0.01, 0.01, 0.01, 0.04]
    )


@pytest.mark.parametrize(
    ("part", "options", "reason"),
    [
        (wall, {}, "low: missing; a wall needs low, high or both"),
        (wall, {"low": 2.0, "high": 1.0}, "high: not above low"),
        (wall, {"low": (1.0, 2.0)}, "low: 2 for 1 variables"),
        (wall, {"high": 1.0, "stiffness": (1.0, 2.0)}, "stiffness: 2 for 1 variables"),
        (metadynamics, {"width": 0.0}, "width: 0 is too small"),
        (metadynamics, {"width": "10 deg"}, "width: '10 deg' does not fit"),
        (opes, {"width": 0.1, "barrier": 0.01}, "barrier: 0.01 eV is too small; give more than kT"),
        (confinement, {"radius": 3.0, "squeezed": 3.0}, "squeezed: 3 is too large"),
        (wall, {}, "low: missing; a wall needs low, high or both"),
        (wall, {"low": 2.0, "high": 2.0}, "high: not above low; leave room between the walls"),
        (confinement, {"radius": 3.0, "share": 1.0}, "share: 1 is too large"),
    ],
)
def test_what_does_not_fit_is_one_line(part, options, reason):
    with pytest.raises(InputError, match=reason):
        part(max_force_spread, coordinates(1), **options)


def test_another_temperature_than_that_of_the_dynamics_is_told(tmp_path):
    (tmp_path / "water.xyz").write_text("3\n\nO 0 0 0.12\nH 0 0.76 -0.48\nH 0 -0.76 -0.48\n")
    (tmp_path / "config.yaml").write_text("system: {file: water.xyz}\nexplore: {temperature: 500}")
    along = "variables: {name: distance, atoms: [0, 1]}, width: 0.1"
    (line,) = check(load(tmp_path / "config.yaml", [f"bias={{name: opes, {along}}}"]))
    assert line.startswith("bias: opes is made for 300 K, the dynamics has 500 K; give one temperature for both")
    hills = f"bias={{name: metadynamics, {along}, temperature: 500}}"
    assert check(load(tmp_path / "config.yaml", [hills])) == []
    exchange = "explore={name: replica_exchange, temperature: 500, highest: 700, walkers: 4}"
    (line,) = check(load(tmp_path / "config.yaml", [hills, exchange]))
    assert "the dynamics has 500 and 700 K" in line


def test_a_sphere_is_for_what_is_open(tmp_path):
    write(tmp_path / "cu.xyz", bulk("Cu", cubic=True))
    (tmp_path / "config.yaml").write_text("system: {file: cu.xyz}\nlabel: {name: lennard_jones}")
    with pytest.raises(InputError, match=r"bias\.name: confinement is for open structures, the structure is periodic"):
        check(load(tmp_path / "config.yaml", ["bias={name: confinement, radius: 5}"]))


@pytest.mark.parametrize("part", [metadynamics, opes, wall])
def test_variables_are_needed(part):
    with pytest.raises(InputError, match="variables: missing"):
        part(max_force_spread, NONE, **({"low": 1.0} if part is wall else {"width": 0.1}))


def test_a_sphere_holds_atoms_together_and_pushes_nothing_as_a_whole():
    rng = np.random.default_rng(1)
    position = jnp.asarray(rng.normal(size=(6, 3)) * 3 + 40.0)
    species = jnp.asarray([0, 1, 1, 0, 0, -1], jnp.int32)
    structure = plain(position, species, jnp.zeros((3, 3)), jnp.int32(0), jnp.int32(0))
    structure = structure._replace(mass=jnp.asarray([1.0, 16.0, 12.0, 1.0, 2.0, 1.0]))
    bias = confinement(max_force_spread, NONE, radius=2.0, squeezed=1.0, period=0.1, share=0.25, stiffness=0.5)

    def energy(position, time):
        return bias.energy((), jnp.zeros(0), jnp.zeros(()), structure._replace(position=position), jnp.asarray(time))

    center = np.average(position[:5], axis=0, weights=structure.mass[:5])
    radius = np.linalg.norm(position[:5] - center, axis=1)
    for time, edge in ((0.0, 2.0), (74.0, 2.0), (76.0, 1.0), (110.0, 2.0)):
        expected = 0.25 * np.sum(np.maximum(radius - edge, 0.0) ** 2)
        np.testing.assert_allclose(energy(position, time), expected)
    slope = jax.grad(energy)(position, 0.0)
    np.testing.assert_allclose(jnp.sum(slope, axis=0), 0.0, atol=1e-12)
    assert not np.any(slope[5]) and np.any(slope[:5])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"low": 0.5}, "high: a periodic variable needs low and high, one wall alone is passed the other way round"),
        ({"low": -1.0, "high": 1.0}, "high: a period above low; nothing is outside"),
    ],
)
def test_walls_of_a_periodic_variable_are_two_with_something_outside(options, reason):
    with pytest.raises(InputError, match=reason):
        wall(max_force_spread, coordinates(1, 2.0), **options)
