"""Several systems in a configuration: their names, walkers and dynamics, and the groups that they move in."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import yaml
from ase import Atoms
from ase.build import bulk, molecule
from ase.io import write

from jaxal.config.check import check
from jaxal.config.loading import load, parse
from jaxal.config.schema import Part
from jaxal.config.systems import PADDING, Population, _size, _work, grouped, populations, with_electrons
from jaxal.config.writing import dump, resolved
from jaxal.core import registry
from jaxal.core.types import InputError
from jaxal.data.frames import of_atoms

SYSTEMS = """
systems:
  complex: {file: complex.xyz, charge: -1, walkers: 5}
  chloride: {file: cl.xyz, charge: -1, walkers: 1}
  chloromethane: {file: ch3cl.xyz}
explore: {temperature: 400, friction: 0.02, walkers: 8}
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("cl.xyz", Atoms("Cl"))
    write("ch3cl.xyz", molecule("CH3Cl"))
    write("complex.xyz", molecule("CH3Cl") + Atoms("Cl", positions=[(0, 0, -4.3)]))
    (tmp_path / "config.yaml").write_text(SYSTEMS)
    return tmp_path


def test_each_has_its_structure_electrons_and_share_of_the_walkers(folder):
    config = load("config.yaml")
    assert check(config) == []
    systems = populations(config)
    assert [system.name for system in systems] == ["complex", "chloride", "chloromethane"]
    assert [system.walkers for system in systems] == [5, 1, 2]
    assert [len(system.starts[0]) for system in systems] == [6, 1, 5]
    assert [system.starts[0].info["charge"] for system in systems] == [-1, -1, 0]
    assert config.initial == 18 and load("config.yaml", ["label.initial=20"]).initial == 20
    few = load("config.yaml", ["explore.walkers=1"])
    assert list(few.walkers.values()) == [5, 1, 1]  # whoever shares has at least one


def test_a_weight_of_the_stress_is_idle_where_no_system_has_one(folder):
    (line,) = check(load("config.yaml", ["train.stress_weight=1"]))
    assert line.startswith("train.stress_weight: 1 has no effect; ") and line.count(".xyz") == 3
    write("cu.xyz", bulk("Cu", cubic=True))
    crystal = "systems.crystal={file: cu.xyz, explore: {name: npt_nose_hoover, temperature: 300}}"
    assert check(load("config.yaml", ["train.stress_weight=1", crystal])) == []


def test_its_own_dynamics_differ_in_what_it_says(folder):
    config = load("config.yaml", ["systems.chloride.explore.temperature=900"])
    own = populations(config)[1].explore
    assert (own["temperature"], own["friction"]) == (900.0, 0.02) and config.explore.part["temperature"] == 400.0
    other = load("config.yaml", ["systems.chloride.explore={name: nve}"])
    assert populations(other)[1].explore.name == "nve" and populations(other)[1].explore["temperature"] == 300.0


def test_it_is_written_and_read_again(folder):
    config = load("config.yaml", ["systems.chloride.explore.temperature=900", "systems.complex.fixed=[0]"])
    assert parse(yaml.safe_load(dump(config)), folder) == config
    moved = resolved(config, folder / "run")
    assert load(folder / "run" / "config.yaml") == moved
    assert moved.systems["chloride"].file == folder / "run" / "inputs" / "systems.chloride.file" / "cl.xyz"


def test_fixed_atoms_are_those_of_the_file_and_of_the_configuration(folder):
    config = load("config.yaml", ["systems.complex.fixed=[0, 2]"])
    start = of_atoms(populations(config)[0].starts[0], labeled=False)
    assert start.fixed.tolist() == [True, False, True, False, False, False]
    with pytest.raises(InputError, match=r"systems.complex.fixed: 6 is too large; .* 6 atoms, 0 to 5"):
        populations(load("config.yaml", ["systems.complex.fixed=[6]"]))


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (["systems={}"], "system.file: missing; give a file, or several systems by name under `systems`"),
        (["systems={a b: {file: cl.xyz}}"], "systems.a b: a name is text of letters, digits, _ and -; give a_b"),
        (
            ["systems={1: {file: cl.xyz}}"],
            "systems.1: a name is text of letters, digits, _ and -; give such as system",
        ),
        (["systems.chloride.file=none.xyz"], "systems.chloride.file: there is no file"),
        (["systems.chloride.walkrs=2"], "systems.chloride.walkrs: unknown field; did you mean walkers?"),
        (["systems.chloride.charge=x"], "systems.chloride.charge: x does not fit; give a whole number or null"),
        (["systems.chloride.explore.temperature=-1"], "systems.chloride.explore.temperature: -1 is too small"),
        (["systems.chloride.charge=-2"], "systems.chloride"),  # an odd number of electrons, and no unpaired one
        (["systems.complex.supercell=[2, 1, 1]"], "systems.complex.supercell: [2, 1, 1] does not fit"),
        (["systems.chloride.index=1"], "systems.chloride.index: 1 does not fit"),
        (["systems.chloride.fixed=[0]"], "systems.chloride.file: all atoms of"),
        (["stop.labels=10"], "label.initial: 18 is too large; give at most stop.labels (10)"),
        (["label.initial=2"], "label.initial: 2 is too small; each of the 3 start structures is labeled first"),
    ],
)
def test_mistakes_name_the_system(folder, overrides, expected):
    with pytest.raises(InputError) as error:
        check(load("config.yaml", overrides))
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_frames_take_the_electrons_of_the_system_that_they_are_of(folder):
    config = load("config.yaml")
    bare = [of_atoms(atoms, labeled=False) for atoms in (Atoms("Cl"), molecule("CH3Cl"), molecule("H2O"))]
    frames = [with_electrons(config, populations(config), frame) for frame in bare[:2]]
    assert [(frame.charge, frame.spin) for frame in frames] == [(-1, 0), (0, 0)]
    with pytest.raises(InputError, match="it has the atoms of none of the systems; give `charge` and `spin`"):
        with_electrons(config, populations(config), bare[2])
    both = load("config.yaml", ["systems.atom={file: cl.xyz, charge: 0, spin: 1}"])
    with pytest.raises(InputError, match=r"it may be systems\.chloride or systems\.atom"):
        with_electrons(both, populations(both), bare[0])


def system(atoms, walkers=2, explore="nve"):
    kind = "explorer" if explore in registry.names("explorer") else "sampler"
    return Population("systems.any", Path("any.xyz"), [atoms], walkers, Part(kind, explore, ()))


def waste(systems, groups, cutoff=5.0):
    sizes = [_size(each, cutoff) for each in systems]
    useful = sum(_work([at], systems, sizes) for at in range(len(systems)))
    return sum(_work(group, systems, sizes) for group in groups) / useful - 1


def test_systems_close_in_size_share_a_group():
    rng = np.random.default_rng(0)
    chains = [
        Atoms(f"C{n}", rng.uniform(0, 1.5 * n ** (1 / 3), (n, 3))) for n in (3, 4, 6, 9, 10, 12, 20, 21, 40, 42, 60, 64)
    ]
    systems = [system(atoms) for atoms in chains]
    groups = grouped(systems, 5.0)
    assert sorted(itertools.chain(*groups)) == list(range(12)) and waste(systems, groups) <= PADDING
    assert len(groups) <= 5
    # one group fewer of any two that go on from each other would waste more
    for first, second in itertools.combinations(groups, 2):
        rest = [group for group in groups if group not in (first, second)]
        assert waste(systems, [*rest, first + second]) > PADDING
    assert grouped(systems[::-1], 5.0) == [sorted(11 - at for at in group) for group in groups]


def test_a_molecule_and_a_crystal_do_not_share_a_group_nor_do_different_dynamics():
    crystal, water = bulk("Si", cubic=True) * (2, 2, 2), molecule("H2O")
    assert (
        grouped([system(water), system(crystal)], 5.0) == [[0, 1]]
        or waste([system(water), system(crystal)], [[0, 1]]) > PADDING
    )
    others = [system(water, explore=name) for name in ("nve", "nvt_langevin", "nve")]
    assert grouped(others, 5.0) == [[0, 2], [1]]


def test_walkers_that_are_coupled_are_of_one_system_and_as_many_as_fit(folder):
    assert grouped([system(molecule("H2O"), explore=name) for name in ("band", "band", "nve")], 5.0) == [[0], [1], [2]]
    whole = molecule("CH3Cl") + Atoms("Cl", positions=[(0, 0, -4.3)])
    write("path.xyz", [whole] * 5)
    path = ["systems.complex.file=path.xyz", "systems.complex.index=all"]
    config = load("config.yaml", ["systems.complex.explore={name: band, stiffness: 3}", *path])
    assert check(config) == [] and populations(config)[0].sampler.couples
    with pytest.raises(InputError, match=r"explore\.walkers: 5 does not fit band, .*path.xyz gives 1 of them"):
        check(load("config.yaml", ["systems.complex.explore={name: band}", path[0]]))
    two = ["systems.complex.file=path.xyz", "systems.complex.index=[0, 4]", "systems.complex.walkers=2"]
    few = load("config.yaml", ["systems.complex.explore={name: band}", *two])
    with pytest.raises(InputError, match=r"explore\.walkers: 2 is too small; a band has 3 images or more"):
        check(few)
