"""A moving restraint: its force and center, where walkers begin and begin again, and what it takes them over."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase import Atoms
from scipy.special import erfc
from structures import plain

from jaxal.acquire.score import max_force_spread
from jaxal.committee.evaluation import Committee
from jaxal.config.check import check
from jaxal.config.loading import load
from jaxal.config.writing import dump
from jaxal.core.types import InputError, Moment, Prediction
from jaxal.core.units import BOLTZMANN
from jaxal.explore import bias_forces, stepping
from jaxal.explore.bias_forces import Term
from jaxal.explore.dynamics import nvt_langevin
from jaxal.explore.restraint import restraint, umbrella
from jaxal.explore.variables import bound
from jaxal.explore.walker import temperature
from jaxal.potential.pair import lennard_jones

MASS = np.array([12.011, 35.45, 1.008, 35.45])  # amu
DIFFERENCE = ("difference", {"pairs": ((0, 1), (0, 3))})
BOND = ("distance", {"atoms": (0, 1)})
NOBODY = Committee(lennard_jones((6,)), 1)  # is not asked
begun_of, rewound = (jax.jit(x, static_argnums=0) for x in (bias_forces.begun, bias_forces.rewound))


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def structure(cell=0.0):
    """Four atoms; d(0, 1) - d(0, 3) is 1.9 - 2.6 Å."""
    position = np.array([[0.0, 0, 0], [0, 0, 1.9], [1.0, 0.2, 0.1], [0.3, 0, -np.sqrt(2.6**2 - 0.09)]])
    whole = np.int32(0), np.int32(0)
    return plain(position, np.zeros(4, np.int32), cell * np.eye(3), *whole, mass=MASS)


def term_of(*choices, cell=0.0, **options) -> Term:
    along = bound(choices, Atoms("CClHCl", structure().position, cell=[cell] * 3, pbc=cell > 0), "bias.variables")
    bias = restraint(max_force_spread, along, **({"low": -1.0, "high": 1.5} | options))
    return Term("restraint", bias, along, tuple(f"q{number}" for number in range(len(along.names))))


def several(start, walkers):
    return jax.tree.map(lambda x: np.stack([x] * walkers), start)


def no_field(structure):
    return jnp.zeros((4, 3)), jnp.zeros((3, 3))


@functools.partial(jax.jit, static_argnums=(0, 4))
def push(term, state, structures, time, field=no_field):
    """What moves walkers [w], in `field` (forces, stress) and under the restraint."""
    force, stress = jax.vmap(field)(structures)
    energy = jnp.zeros((len(time), 1))
    said = Prediction(energy, force[:, None], stress[:, None], jnp.zeros((len(time), 4, 1)))
    at = None, structures, None, said, time, jnp.ones(len(time), bool)
    extra, states = bias_forces.push((term,), NOBODY, (state,), *at)
    return stepping.unjudged(extra.energy, force + extra.force, stress + extra.stress), (states[0], extra.report)


@functools.partial(jax.jit, static_argnums=(0, 1, 3, 4))
def run(term, explorer, begun, steps, field=no_field):
    """Variables and center after each step, [t w], and the temperature."""
    walkers = len(begun.charge)
    state = bias_forces.begun((term,), begun)[0]
    keys = jax.random.split(jax.random.key(0), walkers)
    zero = jnp.zeros((walkers, 4, 3)), jnp.zeros((walkers, 3, 3)), jnp.zeros(walkers, jnp.int32)

    def body(walkers, _):
        proposed = jax.vmap(explorer.propose)(walkers)
        time = explorer.timestep * (walkers.step + 1.0)
        seen, (_, report) = push(term, state, proposed, time, field)
        walkers = jax.vmap(explorer.advance)(walkers, proposed, seen.force, seen.stress)
        return walkers, (report, time, jax.vmap(temperature)(walkers))

    report, time, heat = jax.lax.scan(body, jax.vmap(explorer.init)(keys, begun, *zero), length=steps)[1]
    return report, time, heat, state.phase


def center(phase, time, low=-1.0, high=1.5, period=2.0):
    return np.asarray((low + high) / 2 - (high - low) / 2 * np.cos(2 * np.pi * time / (1e3 * period) + phase))


@pytest.mark.parametrize("choice", [DIFFERENCE, ("distance", {"atoms": (2, 3)})])
@pytest.mark.parametrize("cell", [0.0, 3.0])  # in the small one the nearest images count
def test_the_force_is_the_slope_of_the_energy_and_the_energy_is_written_down(choice, cell):
    """Against finite differences of s (q - c)^2 / 2, q from plain numpy; the stress against strained cells."""
    start, pairs = structure(cell), choice[1].get("pairs", [choice[1].get("atoms")])
    term, time = term_of(choice, cell=cell, low=1.0, high=2.0, stiffness=7.0), np.full(1, 300.0)
    state = begun_of((term,), several(start, 1))[0]
    middle = center(np.asarray(state.phase), 300.0, 1.0, 2.0)

    def energy(position, deformation):
        box = cell * deformation

        def length(i, j):
            vector = (position[j] - position[i]) @ deformation
            images = np.array([vector + s @ box for s in np.array(list(np.ndindex(5, 5, 5))) - 2]) if cell else [vector]
            return np.linalg.norm(images, axis=-1).min()

        q = length(*pairs[0]) - (length(*pairs[1]) if len(pairs) > 1 else 0.0)
        return 0.5 * 7.0 * (q - middle[0]) ** 2

    moves, (_, report) = push(term, state, several(start, 1), time)
    position, h = start.position, 1e-5
    np.testing.assert_allclose(report["bias_restraint"], energy(position, np.eye(3)), rtol=1e-9)
    expected, strained = np.zeros((4, 3)), np.zeros((3, 3))
    for atom, axis in np.ndindex(4, 3):
        small = np.zeros((4, 3))
        small[atom, axis] = h
        expected[atom, axis] = (energy(position - small, np.eye(3)) - energy(position + small, np.eye(3))) / (2 * h)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(np.asarray(moves.force)[0], expected, atol=1e-7)
    for i, j in np.ndindex(3, 3):
        small = np.zeros((3, 3))
        small[i, j] = small[j, i] = 0.5 * h
        small[i, i] = h if i == j else small[i, i]
        strained[i, j] = (energy(position, np.eye(3) + small) - energy(position, np.eye(3) - small)) / (2 * h)
    np.testing.assert_allclose(np.asarray(moves.stress)[0], strained / cell**3 if cell else 0.0, atol=1e-8)


def test_the_largest_force_bounds_it():
    term = term_of(BOND, low=5.0, high=None, stiffness=10.0, largest=0.3)
    state = begun_of((term,), several(structure(), 1))[0]
    force = np.asarray(push(term, state, several(structure(), 1), np.zeros(1))[0].force)[0]
    np.testing.assert_allclose(np.linalg.norm(force, axis=-1), [0.3, 0.3, 0, 0], atol=1e-12)
    assert force[1, 2] > 0, "towards 5 Å"


def test_walkers_begin_where_they_are_and_go_both_ways():
    for low, high, first in ((-1.0, 1.5, -0.7), (0.0, 1.0, 0.0), (-3.0, -1.0, -1.0)):  # or at the nearer end
        term = term_of(DIFFERENCE, low=low, high=high, period=1.0)
        phase = np.asarray(begun_of((term,), several(structure(), 6))[0].phase)[:, None]
        time = np.linspace(0.0, 1000.0, 401)
        sweep = center(phase, time, low, high, 1.0)
        np.testing.assert_allclose(sweep[:, 0], first, atol=1e-7)
        np.testing.assert_allclose(sweep[:, -1], sweep[:, 0], atol=1e-9)
        assert np.allclose(sweep.min(1), low, atol=1e-3) and np.allclose(sweep.max(1), high, atol=1e-3)
        if first == -0.7:
            assert list(np.sign(sweep[:, 1] - sweep[:, 0])) == [1, -1] * 3


def test_a_walker_that_is_taken_back_begins_from_there_and_turns_around():
    term = term_of(DIFFERENCE, period=1.0)
    begun = begun_of((term,), several(structure(), 4))[0]
    place, time = several(structure(), 4), np.full(4, 20.0)
    place.position[:, 1, 2] = 2.6 + 0.2
    mask = np.array([True, True, False, False])
    (after,) = rewound((term,), mask, (begun,), (begun,), place, time)
    then, now = np.asarray(begun.phase), np.asarray(after.phase)
    np.testing.assert_array_equal(now[2:], then[2:])
    for walker, upwards in ((0, True), (1, False)):
        before, anew = (center(x[walker], 20.0 + np.array([0.0, 1.0]), period=1.0) for x in (then, now))
        assert anew[0] == pytest.approx(0.2, abs=1e-9)
        assert (before[1] > before[0]) == upwards and (anew[1] > anew[0]) != upwards


def test_several_variables_move_together_along_a_line():
    term = term_of(BOND, ("distance", {"atoms": (0, 3)}), low=(1.5, 3.0), high=(3.0, 1.5), stiffness=(4.0, 1.0))
    state = begun_of((term,), several(structure(), 1))[0]
    _, (_, report) = push(term, state, several(structure(), 1), np.zeros(1))
    # the nearest point of the line, by its springs: (1.5, 3) + x (1.5, -1.5) with 4 (0.4 - 1.5 x) + 0.4 - 1.5 x = 0
    nearest = np.array([1.9, 2.6])
    distance = np.array([1.9, 2.6]) - nearest
    np.testing.assert_allclose(report["bias_restraint"], 0.5 * np.sum([4.0, 1.0] * distance**2), atol=1e-12)
    high = push(term, state._replace(phase=np.full(1, np.pi)), several(structure(), 1), np.zeros(1))[1][1]
    expected = 0.5 * (4.0 * (1.9 - 3.0) ** 2 + (2.6 - 1.5) ** 2)
    np.testing.assert_allclose(high["bias_restraint"], expected, rtol=1e-9)
    np.testing.assert_allclose(np.ravel([high["variable_q0"], high["variable_q1"]]), [1.9, 2.6])


def test_a_torsion_is_pulled_the_shorter_way():
    term = term_of(("torsion", {"atoms": (1, 0, 2, 3)}), low="170 deg", high=None, stiffness=2.0)
    state = begun_of((term,), several(structure(), 1))[0]
    value = np.asarray(jax.jit(term.variables.values)(structure()))
    energy = jax.jit(functools.partial(term.bias.energy, jax.tree.map(lambda x: np.asarray(x)[0], state)))
    away = np.radians(5.0)
    at = np.zeros(()), structure(), np.zeros(())
    assert float(energy(np.array([np.radians(-175.0)]), *at)) == pytest.approx((3 * away) ** 2)
    difference = (value[0] - np.radians(170.0) + np.pi) % (2 * np.pi) - np.pi
    assert float(energy(value, *at)) == pytest.approx(difference**2)


@pytest.mark.slow
def test_the_variable_follows_the_center_with_the_width_of_its_temperature():
    """In a slow sweep q - c is that of a spring in a heat bath: its variance is kT / stiffness, its mean nothing."""
    term = term_of(BOND, low=1.6, high=2.4, period=50.0, stiffness=20.0)
    explorer = nvt_langevin(temperature=300.0)
    report, time, heat, phase = jax.device_get(run(term, explorer, several(structure(), 128), 6000))
    sweep = center(phase, time, 1.6, 2.4, 50.0)
    lag = (report["variable_q0"] - sweep)[2000::50]
    assert np.ptp(sweep) > 0.2, "the center has moved further than the width"
    width, average = BOLTZMANN * 300.0 / 20.0, lag.mean(0)
    # two free atoms on a spring come apart as r^2: <q - c> = 2 kT / (s c)
    assert abs(average.mean() - 2 * width / sweep.mean()) < 4 * average.std() / 128**0.5 + 2e-3
    assert np.mean((lag - lag.mean()) ** 2) == pytest.approx(width, rel=0.1)
    np.testing.assert_allclose(report["bias_restraint"][2000::50], 10.0 * lag**2, rtol=1e-6, atol=1e-12)
    assert np.mean(heat[2000:]) == pytest.approx(300.0, rel=0.03)


def well(structure):
    """A double well of 20 kT in one distance: minima at 1.6 and 2.4 Å."""

    def energy(position):
        r = jnp.linalg.norm(position[1] - position[0])
        return 0.5 * (((r - 2.0) / 0.4) ** 2 - 1) ** 2  # eV

    return -jax.grad(energy)(structure.position), jnp.zeros((3, 3))


def test_it_crosses_a_barrier_that_heat_does_not():
    start = several(structure(), 8)
    start.position[:, 1] = [0.0, 0.0, 1.6]
    explorer = nvt_langevin()
    for stiffness, crossed in ((0.0, False), (20.0, True)):
        term = term_of(BOND, low=1.5, high=2.5, period=1.0, stiffness=stiffness)
        seen = np.asarray(run(term, explorer, start, 2400, well)[0]["variable_q0"])
        assert np.all(seen.max(0) > 2.3) if crossed else np.all(seen.max(0) < 2.0)


@pytest.mark.parametrize(
    ("choices", "options", "expected"),
    [
        ([], {}, r"variables: missing; a restraint needs at least one"),
        ([BOND], {"low": (1.0, 2.0)}, r"low: 2 for 1 variables; give one for each"),
        ([BOND, DIFFERENCE], {"low": (1.0, 2.0), "high": (2.0, 2.0)}, r"stiffness: 1 for 2 variables"),
        ([BOND], {"high": -1.0}, r"high: the same as low"),
        ([BOND], {"low": "20 deg"}, r"low: '20 deg' does not fit: deg is a angle, needed is a length"),
        ([BOND], {"low": "far"}, r"low: 'far' does not fit; give a number in Å"),
        (
            [("coordination", {"of": "C", "by": "Cl", "reach": 2.0})],
            {"low": "1 Å"},
            r"low: '1 Å' does not fit; give a n",
        ),
    ],
)
def test_what_cannot_be_swept_is_refused(choices, options, expected):
    with pytest.raises(InputError, match=expected) as caught:
        term_of(*choices, **options)
    assert "\n" not in str(caught.value)


def test_in_a_configuration(tmp_path):
    (tmp_path / "water.xyz").write_text("3\n\nO 0 0 0.12\nH 0 0.76 -0.48\nH 0 -0.76 -0.48\n")
    (tmp_path / "config.yaml").write_text("system: {file: water.xyz}")
    path, sweep = tmp_path / "config.yaml", "low: -1, high: 0.1 nm, period: 500 fs"
    along = "variables: {name: difference, pairs: [[0, 1], [0, 2]]}"
    single = load(path, [f"bias={{name: restraint, {sweep}, {along}}}"])
    (bias,) = single.bias
    assert (bias.part["low"], bias.part["high"], bias.part["period"]) == (-1.0, "0.1 nm", 0.5)
    assert bias.variables[0]["pairs"] == ((0, 1), (0, 2))
    check(single)
    pair = load(path, [f"bias=[{{name: hyperactive}}, {{name: restraint, {sweep}, {along}}}]"])
    check(pair)
    assert [bias.part.name for bias in pair.bias] == ["hyperactive", "restraint"] and load(path).bias == ()
    for config in (single, pair, load(path)):
        (tmp_path / "again.yaml").write_text(dump(config, tmp_path))
        assert load(tmp_path / "again.yaml") == config
    both = f"{{name: restraint, {sweep}, {along}}}"
    for override, expected in (
        (
            "bias={low: 1}",
            r"bias\.name: missing; there are adversarial, artificial_force, .*, umbrella, uncertainty_driven",
        ),
        ("bias={name: restraint}", r"bias\.low: missing; restraint needs a number or text or a list"),
        ("bias={name: restraint, low: 1}", r"bias\.variables: missing; a restraint needs at least one"),
        (f"bias={both.replace('[0, 2]', '[0, 2, 1]')}", r"bias\.variables\.pairs\[1\]: .* a list of 2"),
        (f"bias={both.replace('2]]', '3]]')}", r"bias\.variables\.pairs: there is no atom 3; .* 0 to 2"),
        (f"bias={both.replace('name: diff', 'nome: diff')}", r"bias\.variables\.name: missing; there are angle, coord"),
        (f"bias=[{{name: hyperactive}}, {both.replace('2]]', '3]]')}]", r"bias\[1\]\.variables\.pairs: there is no"),
        (f"bias={both.replace('-1', '10 deg')}", r"bias\.low: '10 deg' does not fit"),
        ("bias=5", r"bias: 5 does not fit; give fields, \{name: value, ...\}, or a list of such"),
    ):
        with pytest.raises(InputError, match=expected):
            check(load(path, [override]))


def test_windows_are_exchanged_as_metropolis_says_and_each_stays_with_one_walker():
    """Values drawn from each window's own ensemble of a flat energy: exchanges keep these, and come as often as in
    closed form."""
    kelvin, stiffness, walkers, moments = 500.0, 3.0, 6, 4000
    along = bound([BOND], Atoms("CClHCl", structure().position), "bias.variables")
    bias = umbrella(max_force_spread, along, low=1.0, high=2.0, windows=walkers, stiffness=stiffness,
                    exchange=2, temperature=kelvin)  # fmt: skip
    start = several(structure(), walkers)
    begun = jax.jit(jax.vmap(bias.init))(start, np.arange(walkers))
    width = np.sqrt(BOLTZMANN * kelvin / stiffness)
    quiet = np.arange(walkers) != 3

    @jax.jit
    def drawn(state, physical, key):
        def body(state, key):
            value = state.center[:, 0] + width * jax.random.normal(key, (walkers,), jnp.float64)
            nothing = jnp.zeros(walkers)
            moment = Moment(value[:, None], nothing, start.position, start.position, start, nothing, physical)
            after = bias.learn(state, moment)
            return after, (after.number, after.center[:, 0])

        return jax.lax.scan(body, state, jax.random.split(key, moments))

    last, (number, center) = drawn(begun, np.ones(walkers, bool), jax.random.key(1))
    number, tried = np.asarray(number), np.asarray(last.tried).sum()
    assert np.all(np.sort(number, axis=1) == np.arange(walkers)), "a window was lost"
    np.testing.assert_allclose(center, 1.0 + 0.2 * number, atol=1e-12)
    assert np.all(number[0::2] == np.concatenate([np.arange(walkers)[None], number[1:-1:2]])), "between exchanges"
    assert len(np.unique(number[:, 0])) == walkers, "a walker comes everywhere"
    # of two Gaussians a apart, exchanged where both lean to the other: erfc of half their distance over the width
    assert np.asarray(last.accepted).sum() / tried == pytest.approx(erfc(0.2 / width / 2), abs=0.02)
    assert tried == moments / 2 * (3 + 2) / 2
    number = np.asarray(drawn(begun, quiet, jax.random.key(2))[1][0])
    assert np.all(number[:, 3] == 3) and not np.all(number[:, 1] == 1), "what is not physical exchanges nothing"
    assert bias.rewind(last, begun, structure(), 0.0) is last
    assert (
        bias.temperature == kelvin
        and umbrella(max_force_spread, along, low=1.0, high=2.0, windows=2).temperature is None
    )
