"""Networks of reactions: what structures are driven to, what is the same, and what comes of it on a closed form."""

import json

import ase
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.build import molecule
from closed_surfaces import model
from scipy.optimize import brentq
from scipy.spatial.transform import Rotation
from test_saddles import reactants, top
from test_task import method

from jaxal.acquire.score import max_force_spread
from jaxal.core import registry
from jaxal.core.errors import InputError
from jaxal.data.structure import from_atoms
from jaxal.explore import variables
from jaxal.explore.artificial_force import ARGON, DEPTH, Push, all_pairs, artificial_force, strength
from jaxal.simulate import atlas
from jaxal.simulate.discovery import Network, drives, graph_of, network
from jaxal.simulate.network_task import apart
from jaxal.simulate.task import Labeled, Turn

LEPS = model("leps")


@pytest.mark.parametrize("collision", [0.5, 3.0])
def test_the_force_is_the_mean_slope_of_argons_energy(collision):
    energy = lambda r: DEPTH * ((ARGON / r) ** 12 - 2 * (ARGON / r) ** 6)  # noqa: E731
    begin = brentq(energy, 0.5 * ARGON, ARGON)
    turn = brentq(lambda r: energy(r) - collision, 0.2 * ARGON, ARGON)
    assert strength(collision) == pytest.approx(collision / (begin - turn), rel=1e-6)


def test_it_pushes_together_and_pulls_apart_within_reach(double):
    pairs = all_pairs(3)
    bias = artificial_force(max_force_spread, pairs, collision=2.0, reach=4.0)
    structure = jax.tree.map(lambda x: jnp.asarray(x[0]), from_atoms([molecule("H2O")], (1, 8), dtype=np.float64))
    np.testing.assert_allclose(pairs.values(structure), molecule("H2O").get_all_distances()[np.triu_indices(3, 1)])

    def slope(sense, values, bias=bias, time=0.0):
        state = Push(jnp.asarray(sense, float))
        return jax.grad(lambda q: bias.energy(state, q, None, structure, jnp.asarray(time)))(jnp.asarray(values))

    force = strength(2.0)
    np.testing.assert_allclose(slope([1, -1, 0], [3.0, 1.0, 2.0]), [force, -force, 0.0], atol=1e-6)
    np.testing.assert_allclose(slope([1, -1, 0], [9.0, 5.5, 2.0]), [force, 0.0, 0.0], atol=1e-4)
    growing = artificial_force(max_force_spread, pairs, collision=2.0, ramp=0.1)
    assert bias.static and not growing.static
    for time, part in ((0.0, 0.0), (25.0, 0.25), (500.0, 1.0)):  # fs
        np.testing.assert_allclose(slope([1, 0, 0], [3.0, 1.0, 2.0], growing, time), [part * force, 0, 0], atol=1e-6)


def test_walkers_take_the_senses_in_turn_and_without_them_each_variable():
    two = variables.bound([("distance", {"atoms": (0, 1)}), ("distance", {"atoms": (0, 2)})], molecule("H2O"), "x")
    structure = jax.tree.map(lambda x: jnp.asarray(x[0]), from_atoms([molecule("H2O")], (1, 8)))
    own = artificial_force(max_force_spread, two)
    senses = [own.init(structure, jnp.asarray(walker)).sense.tolist() for walker in range(5)]
    assert senses == [[1, 0], [0, 1], [-1, 0], [0, -1], [1, 0]]
    both = artificial_force(max_force_spread, two, senses=((1.0, -1.0), (0.0, 2.0)))
    assert both.init(structure, jnp.asarray(3)).sense.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("names", "senses", "words"),
    [
        ((), None, "variables: missing; an artificial force needs"),
        (("angle",), None, "variables: angle is no length"),
        (("distance",), ((1.0, 2.0),), "senses: 2 numbers for 1 variables"),
        (("distance",), ((0.0,),), "senses: a list of zeros pushes nothing"),
    ],
)
def test_what_does_not_fit_is_refused(names, senses, words):
    atoms = {"angle": (0, 1, 2), "distance": (0, 1)}
    chosen = variables.bound([(name, {"atoms": atoms[name]}) for name in names], molecule("H2O"), "x")
    with pytest.raises(InputError, match=words):
        artificial_force(max_force_spread, chosen, senses=senses)


def test_structures_are_driven_to_migrations_and_eliminations():
    atoms = molecule("H2CO")  # O C H H
    every = list(drives(atoms))
    assert {(2, 3): 1, (1, 2): -1, (1, 3): -1} in every  # to H2 and CO
    assert {(0, 2): 1, (1, 2): -1} in every and {(0, 3): 1, (1, 3): -1} in every  # to HCOH
    assert [drive for drive in every if list(drive.values()) == [-1]] == [{(0, 1): -1}, {(1, 2): -1}, {(1, 3): -1}]
    apart_ = atoms + ase.Atoms("H", positions=[[9.0, 0, 0]])
    assert not any(4 in pair for drive in drives(apart_) for pair in drive)


def test_bonds_are_turned_both_ways():
    trans = ase.Atoms("COHH", positions=[[0, 0, 0], [1.31, 0, 0], [-0.23, 1.09, 0], [1.63, -0.91, 0]])
    every = list(drives(trans))
    assert {(2, 3): -1} in every and every.count(
        {(2, 3): 1}
    ) == 1  # which is bonded, if it is near, for the drive before
    ethane = list(drives(molecule("C2H6")))
    turns = [drive for drive in ethane if list(drive.values()) == [-1] and ethane.count(drive) == 1]
    assert len([drive for drive in turns if min(next(iter(drive))) > 1]) == 3, "of one hydrogen to three others"


def test_molecules_are_told_apart_by_their_bonds_alone():
    ether, alcohol = molecule("CH3OCH3"), molecule("CH3CH2OH")
    assert sorted(ether.symbols) == sorted(alcohol.symbols) and graph_of(ether) != graph_of(alcohol)
    order = np.random.default_rng(0).permutation(len(ether))
    turned = ether[order]
    turned.positions = turned.positions @ Rotation.random(random_state=1).as_matrix().T
    assert graph_of(turned) == graph_of(ether)
    two = molecule("H2O")
    two.extend(ase.Atoms("H2", positions=[[5, 0, 0], [5.74, 0, 0]]))
    assert atlas.molecules(graph_of(two)) == "H2 + H2O"


def test_those_least_alike_are_chosen():
    frames = [ase.Atoms("H2", positions=[[0, 0, 0], [r, 0, 0]]) for r in (1.0, 1.1, 3.0, 1.05, 2.0)]
    assert [round(atoms.get_distance(0, 1), 2) for atoms in apart(frames, 3)] == [1.0, 3.0, 2.0]
    assert apart([], 3) == [] and len(apart(frames, 9)) == 5


@pytest.fixture(scope="module")
def exchange(surfaces) -> Network:
    return network(LEPS, [reactants(2.5, True)], pushes=4, generations=1, collision=2.0)


@pytest.mark.slow
def test_an_exchange_of_atoms_is_a_step_from_a_minimum_to_itself(exchange, tmp_path):
    _, height = top()
    assert [minimum.graph for minimum in exchange.minima] == [graph_of(reactants(6.0, True))]
    (step,) = exchange.steps
    assert step.sides == (0, 0) and step.saddle.vibrations.imaginary == 1
    assert step.saddle.vibrations.energy - exchange.minima[0].energy == pytest.approx(height, abs=2e-3)
    record, text = atlas.of_network(tmp_path / "out", exchange)
    assert record == json.loads((tmp_path / "out" / "network.json").read_text())
    assert record["saddles"][0]["minima"] == [0, 0] and "1 minima and 1 saddles" in text
    assert {"minima.xyz", "saddles.xyz", "path_0.xyz", "network.svg"} <= {
        file.name for file in (tmp_path / "out").iterdir()
    }


@pytest.mark.slow
@pytest.mark.usefixtures("surfaces")
def test_of_a_doubtful_surface_pushes_end_and_are_kept():
    """The members are surfaces times 0.97 and 1.03: where it is steep they differ."""
    net = network(LEPS, [reactants(2.5, True)], pushes=4, generations=1, collision=2.0, wary=0.05)
    assert net.doubtful and net.failed["the members differ"] > 0


def test_what_repeats_is_refused():
    atoms = reactants(2.5, True)
    atoms.set_cell([9, 9, 9])
    atoms.pbc = True
    with pytest.raises(InputError, match="structure: is periodic"):
        network(LEPS, [atoms])


@pytest.mark.slow
@pytest.mark.usefixtures("surfaces")
def test_a_task_ends_with_the_methods_own_energies(tmp_path):
    """Of another surface, whose lengths are others and whose energies are the same."""
    _, height = top()
    asked: list[ase.Atoms] = []
    task = registry.get("task", "network")(pushes=4, generations=1, collision=2.0, tolerance=0.05)
    answer = task.answer(LEPS, Turn([reactants(2.5, True)], [], 20, method(asked)))
    assert len(asked) == len(answer.labels) and answer.record["saddles"] == 1
    answer.save(tmp_path)
    record = json.loads((tmp_path / "network.json").read_text())
    assert record["saddles"][0]["labeled"]["energy"] == pytest.approx(height, abs=5e-3)
    assert answer.satisfied == (record["saddles"][0]["labeled"]["error"] <= 0.05)
    # where its forces point to is labeled, too, until that is near enough
    exact = registry.get("task", "network")(pushes=4, generations=1, collision=2.0, tolerance=1e-3)
    closer = exact.answer(LEPS, Turn([reactants(2.5, True)], [], 20, method(asked)))
    assert len(closer.labels) == len(closer.structures) > len(answer.labels)
    closer.save(tmp_path / "exact")
    saddle = json.loads((tmp_path / "exact" / "network.json").read_text())["saddles"][0]["labeled"]
    assert saddle["energy"] == pytest.approx(height, abs=1e-3)
    assert saddle["error"] <= 1e-3 < record["saddles"][0]["labeled"]["error"]
    few = exact.answer(LEPS, Turn([reactants(2.5, True)], [], len(answer.labels), method(asked)))
    assert len(few.labels) == len(answer.labels), "no more labels than are left"
    # the next turn has the saddle, whatever its pushes come to, and asks for nothing that it has
    weak = registry.get("task", "network")(pushes=4, generations=1, collision=0.01, tolerance=0.05)
    known = list(zip(answer.structures, answer.labels, strict=True))
    later = weak.answer(LEPS, Turn([reactants(2.5, True)], known, 9, method([]), answer.again))
    assert later.record["saddles"] == 1 and not later.labels and later.satisfied
    assert weak.answer(LEPS, Turn([reactants(2.5, True)], known, 9, method([]))).record["saddles"] == 0


@pytest.mark.slow
@pytest.mark.usefixtures("surfaces")
def test_where_the_method_fails_it_is_not_asked_again():
    def failing(structures):
        return [Labeled(np.nan, np.full((3, 3), np.nan)) for _ in structures]

    task = registry.get("task", "network")(pushes=4, generations=1, collision=2.0)
    answer = task.answer(LEPS, Turn([reactants(2.5, True)], [], 20, failing))
    assert answer.labels and not answer.satisfied
    known = list(zip(answer.structures, answer.labels, strict=True))
    assert not task.answer(LEPS, Turn([reactants(2.5, True)], known, 18, failing, answer.again)).labels
