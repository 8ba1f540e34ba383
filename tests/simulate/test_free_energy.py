"""Free energies of closed forms: every estimator within its interval, intervals that hold, what each member says."""

import ase
import numpy as np
import pytest
from closed_surfaces import FACTORS, MIDDLE, model, well_energy

from jaxal.config.loading import parse
from jaxal.config.simulation import Simulation
from jaxal.core.errors import InputError
from jaxal.core.units import BOLTZMANN
from jaxal.simulate import dynamics, free_energy, sampling

pytestmark = pytest.mark.usefixtures("surfaces")
WELLS = model("wells")
KELVIN = 600.0
THERMAL = BOLTZMANN * KELVIN
ALONG = "{name: distance, atoms: [0, 1]}"
WALL = "{name: wall, low: 1.2, high: 3.8, stiffness: 20, variables: " + ALONG + "}"
START = ase.Atoms("H2", positions=[[0, 0, 0], [1.9, 0, 0]], info={"charge": 0, "spin": 0})


def exact(radius, factor=1.0):
    """-kT ln of the density of the distance, but for a constant, eV."""
    return factor * np.asarray(well_energy(radius)) - 2 * THERMAL * np.log(radius)


def above_less_below(split, factor=1.0):
    radius = np.linspace(1.2, 3.8, 4001)
    weight = np.exp(-exact(radius, factor) / THERMAL)
    return -THERMAL * np.log(weight[radius > split].sum() / weight[radius <= split].sum())


def simulated(*overrides, starts=(START,), walkers=8, length=25.0):
    fields = [f"explore.temperature={KELVIN}", f"explore.walkers={walkers}", f"length={length}", "unsure=go"]
    more = ["explore.timestep=1.0", "explore.friction=0.05", "every=20", f"along={ALONG}"]
    simulation = parse({}, None, Simulation, [*fields, *more, *overrides])
    walkers_ = dynamics.prepared(WELLS, simulation, list(starts), "test.xyz")
    sampling.check(walkers_, simulation)
    series, kept = dynamics.run(walkers_, simulation, None, lambda text: None, sampling.OPINIONS)
    assert len(kept) * walkers <= sampling.OPINIONS + walkers
    question = sampling.Question(MIDDLE, 30, 0.2)
    return sampling.answer(walkers_, simulation, series, kept, question), series


UMBRELLA = "{name: umbrella, low: 1.5, high: 3.4, windows: 8, stiffness: 3, variables: " + ALONG + "}"
METADYNAMICS = f"{{name: metadynamics, width: 0.15, height: 0.01, pace: 50, temperature: {KELVIN}, bias_factor: 6, "
OPES = f"{{name: opes, width: 0.2, barrier: 0.3, pace: 50, temperature: {KELVIN}, "
EXCHANGED = UMBRELLA.replace("stiffness: 3", f"stiffness: 3, exchange: 25, temperature: {KELVIN}")
WAYS = {
    "none": f"bias=[{WALL}]",
    "umbrella": f"bias=[{UMBRELLA}, {WALL}]",
    "exchanged": f"bias=[{EXCHANGED}, {WALL}]",
    "metadynamics": f"bias=[{METADYNAMICS}variables: {ALONG}}}, {WALL}]",
    "opes": f"bias=[{OPES}variables: {ALONG}}}, {WALL}]",
}


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_every_estimator_gives_the_free_energy_of_two_wells(way):
    starts = [START.copy() for _ in range(12)]
    for atoms, distance in zip(starts, np.linspace(1.5, 3.4, 12), strict=True):
        atoms.set_distance(0, 1, distance, fix=0)
    answer, series = simulated(WAYS[way], starts=starts)
    between = answer.difference
    wanted = above_less_below(MIDDLE)
    assert 0 < between.error < 0.5 * THERMAL
    assert between.energy == pytest.approx(wanted, abs=max(4 * between.error, 0.01))
    radius, profile = answer.profile.axes[0], answer.profile.energy
    there = np.isfinite(profile) & (profile < 0.15) & np.isfinite(answer.profile.error)
    assert there.sum() > 10
    expected = exact(radius)
    off = (profile - expected)[there] - np.mean((profile - expected)[there])
    assert np.abs(off).max() < max(5 * answer.profile.error[there].max(), 0.02)
    assert answer.estimator == {"umbrella": "MBAR", "exchanged": "MBAR"}.get(way, "reweighted")
    if way == "exchanged":
        windows = series.report["umbrella_window"]
        assert np.all(np.sort(windows, axis=1) == np.arange(8)) and len(np.unique(windows[:, 0])) > 4
        assert 0.1 < series.report["umbrella_accepted"][-1, 0] < 0.9
    # the members are the surface times a factor: the difference changes as its slope with the factor
    slope = (above_less_below(MIDDLE, 1.01) - above_less_below(MIDDLE, 0.99)) / 0.02
    assert between.spread == pytest.approx(abs(slope) * np.std(FACTORS), abs=max(0.2 * abs(slope) * 0.03, 3e-4))
    assert series.counts.all()


def test_intervals_hold_as_often_as_they_say():
    """Independent samples of two windows: the true value is within two standard errors about as often as it should."""
    rng, grid = np.random.default_rng(0), np.linspace(1.2, 3.8, 2001)
    centers, stiffness, within = np.array([1.8, 2.3, 2.8, 3.2]), 2.0, 0
    weights = [np.exp(-(exact(grid) + 0.5 * stiffness * (grid - c) ** 2) / THERMAL) for c in centers]
    for _ in range(12):
        values = np.stack([rng.choice(grid, 150, p=w / w.sum()) for w in weights], axis=1)[..., None]
        windows = 0.5 * stiffness * (values[None, ..., 0] - centers[:, None, None]) ** 2 / THERMAL
        samples = free_energy.Samples(KELVIN, values, np.zeros(values.shape[:2]), windows, np.arange(4))
        between = free_energy.difference(samples, MIDDLE, free_energy.resampled(samples))
        within += abs(between.energy - above_less_below(MIDDLE)) < 2 * between.error
    assert within >= 9


def test_walkers_in_the_same_window_are_of_one_ensemble():
    rng, stiffness = np.random.default_rng(2), 2.0
    values = rng.normal(0.0, np.sqrt(THERMAL / stiffness), (4000, 3, 1))  # of a flat energy, under a spring
    windows = 0.5 * stiffness * values[None, ..., 0] ** 2 / THERMAL
    samples = free_energy.Samples(KELVIN, values, np.zeros((4000, 3)), windows, np.zeros(3, int))
    edges = (np.linspace(-0.2, 0.2, 9),)
    assert np.ptp(free_energy.histogram(samples, edges, free_energy.weights(samples))) < 0.1 * THERMAL


def test_two_variables_have_the_free_energy_of_both():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(4000, 4, 2)) * [0.3, 0.5]
    samples = free_energy.Samples(300.0, values, np.zeros((4000, 4)))
    edges = tuple(np.linspace(-1, 1, 11) * s for s in (0.6, 1.0))
    profile = free_energy.profile(samples, edges, free_energy.resampled(samples))
    x, y = np.meshgrid(*profile.axes, indexing="ij")
    wanted = 0.5 * BOLTZMANN * 300 * ((x / 0.3) ** 2 + (y / 0.5) ** 2)
    off = (profile.energy - wanted) / np.hypot(profile.error, 1e-3)
    assert profile.error.shape == (10, 10) and np.abs(off - off.mean()).max() < 5


def test_a_walker_that_leaves_what_the_model_knows_ends_and_says_so():
    simulation = parse(
        {}, None, Simulation, ["limit=1e-9", f"along={ALONG}", "length=0.5", "explore.walkers=2", "unsure=stop"]
    )
    walkers = dynamics.prepared(WELLS, simulation, [START], "test.xyz")
    series, kept = dynamics.run(walkers, simulation, None, lambda text: None)
    record = dynamics.record(walkers, simulation, series)
    assert record["ended"] == ["estimated error above the limit"] * 2 and record["frames"] == 0 == len(kept)
    with pytest.raises(InputError, match=r"walker 0 ended at .* ps \(estimated error above the limit\); learn what"):
        sampling.answer(walkers, simulation, series, kept, sampling.Question(None, 10, 0.2))


def test_walkers_that_share_a_bias_end_together_and_each_says_why():
    """The second begins where members differ more; the first stops with it, though it is sure."""
    starts = [START.copy(), START.copy()]
    starts[1].set_distance(0, 1, 3.9, fix=0)
    bias = f"bias={METADYNAMICS}variables: {ALONG}}}"
    fields = [f"explore.temperature={KELVIN}", "explore.walkers=2", "length=0.01", "every=1", "limit=0.1"]
    simulation = parse({}, None, Simulation, [*fields, "unsure=stop", bias])
    walkers = dynamics.prepared(WELLS, simulation, starts, "test.xyz")
    series, _ = dynamics.run(walkers, simulation, None, lambda text: None)
    record = dynamics.record(walkers, simulation, series)
    assert series.spread[0, 1] > 0.1 > series.spread[0, 0]
    assert record["ended"] == ["another walker was unsure", "estimated error above the limit"]


def test_walkers_take_structures_in_turn_and_windows_the_nearest():
    starts = [START.copy() for _ in range(3)]
    for atoms, distance in zip(starts, (1.5, 2.4, 3.4), strict=True):
        atoms.set_distance(0, 1, distance, fix=0)

    def begun(*overrides):
        simulation = parse({}, None, Simulation, ["explore.walkers=4", f"along={ALONG}", *overrides])
        return [round(a.get_distance(0, 1), 3) for a in dynamics.prepared(WELLS, simulation, starts, "test.xyz").starts]

    assert begun() == [1.5, 2.4, 3.4, 1.5] and begun(f"bias={WALL}") == [1.5, 2.4, 3.4, 1.5]
    windows = UMBRELLA.replace("windows: 8", "windows: 4").replace("low: 1.5, high: 3.4", "low: 3.4, high: 1.5")
    assert begun(f"bias={windows}") == [3.4, 2.4, 2.4, 1.5]


def test_an_isolated_atom_is_not_certain_though_all_members_agree():
    start = START.copy()
    start.set_distance(0, 1, 9.0, fix=0)  # beyond the cutoff: no member sees a neighbor
    simulation = parse({}, None, Simulation, ["explore.walkers=1", "length=0.1", "unsure=stop"])
    walkers = dynamics.prepared(WELLS, simulation, [start], "test.xyz")
    series, _ = dynamics.run(walkers, simulation, None, lambda text: None)
    assert not series.spread.any() and not series.supported.any() and not series.counts.any()
    assert dynamics.record(walkers, simulation, series)["ended"] == ["unlike what the model was trained on"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("explore.name=nve", "explore.name: nve is no dynamics at one temperature"),
        ("bias={name: metadynamics, width: 0.1, temperature: 500, variables: " + ALONG + "}", "is made for 500 K"),
        (
            "bias={name: restraint, low: 1.5, high: 3, variables: " + ALONG + "}",
            "under restraint walkers have no ensem",
        ),
        ("bias={name: uncertainty_driven}", "under uncertainty_driven walkers have no ensemble"),
        (f"along=[{ALONG}, {ALONG}, {ALONG}]", "along: 3 variables; give one or two"),
    ],
)
def test_what_has_no_free_energy_is_refused_before_anything_moves(override, message):
    more = [] if "name=nve" in override else ["explore.temperature=300"]
    simulation = parse({}, None, Simulation, [*more, f"along={ALONG}", override])
    walkers = dynamics.prepared(WELLS, simulation, [START], "test.xyz")
    with pytest.raises(InputError, match=message):
        sampling.check(walkers, simulation)


def test_without_a_variable_there_is_no_free_energy():
    simulation = parse({}, None, Simulation, ["explore.temperature=300"])
    walkers = dynamics.prepared(WELLS, simulation, [START], "test.xyz")
    with pytest.raises(InputError, match="along: missing; give a variable, such as along="):
        sampling.check(walkers, simulation)


def test_bins_hold_all_that_was_visited_or_a_period():
    values = np.array([1.5, 2.0, 3.5])
    edges = sampling._edges(values, None, 4)
    assert len(edges) == 5 and edges[0] < 1.5 and edges[-1] > 3.5 and np.ptp(edges) == pytest.approx(2.0, rel=1e-5)
    alone = sampling._edges(np.array([1.5, 1.5]), None, 4)
    assert np.all(np.diff(alone) > 0) and alone[0] < 1.5 < alone[-1]
    np.testing.assert_allclose(sampling._edges(values, 2 * np.pi, 4), np.linspace(-np.pi, np.pi, 5))


def test_structures_of_which_none_was_kept_have_no_shifts():
    assert sampling.shifts(WELLS, []) is None
