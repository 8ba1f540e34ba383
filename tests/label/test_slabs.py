"""Slabs and wires at the reference methods: what each is given, what it refuses, and what of its stress counts."""

import sqlite3

import numpy as np
import pytest
from ase import Atoms
from ase.build import fcc111, molecule
from ase.calculators.emt import EMT
from label_programs import HEADS, UPF, needs, task_of, write_potcars
from store_example import entries, filled, good
from structures import plain

from jaxal.core import registry
from jaxal.core.discovery import import_parts
from jaxal.data import frames
from jaxal.label import cells
from jaxal.label.calculator import LabelCalculator
from jaxal.label.methods.ase import ase
from jaxal.label.methods.espresso import _sawtooth, espresso
from jaxal.label.methods.tblite import tblite
from jaxal.label.methods.vasp import vasp
from jaxal.label.service import label_service
from jaxal.label.store.database import SCHEMA, connect_to_read, label_key, open_store
from jaxal.label.task import LabelError, Task

import_parts()

SIDES = np.array([True, True, False])


def layers(vacuum: float = 9.0) -> Task:
    """Three atoms of silicon on top of each other, with two different sides."""
    atoms = Atoms("Si3", [[0, 0, 0], [0, 2.2, 0.6], [0, 2.2, 2.9]], cell=[[3.8, 0, 0], [1.9, 3.29, 0], [0, 0, 0]])
    atoms.cell[2, 2], atoms.pbc = 2.9 + vacuum, SIDES
    return task_of(atoms)


SLAB = layers()
HEAD = {"pseudopotentials": {"Si": HEADS / "Si.upf"}, "ecutwfc": 16.0}


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("task", "options", "reason"),
    [
        (layers(7.5), {}, "cell: the vacuum along c, which is open, is 7.5 Å from atom to next image"),
        (SLAB._replace(cell=SLAB.cell * [[1], [1], [0]]), {}, "cell: there is no lattice vector along c"),
        (SLAB, {"k_points": (2, 2, 2)}, r"label\.k_points: 2 points along c, where the structure is open; give 1"),
        (SLAB, {"input_data": {"system": {"assume_isolated": "2D"}}}, "needs a cell of at least 17.8 Å along c"),
        (
            layers(30.0)._replace(periodic=np.array([True, False, False])),
            {"dipole_correction": True},
            "the vacuum along b, which is open, is 1.1 Å",
        ),
    ],
)
def test_what_a_code_that_repeats_all_cannot_treat(task, options, reason):
    with pytest.raises(LabelError, match=reason) as caught:
        espresso(**HEAD, **options, command=["true"]).check(task)
    assert "\n" not in str(caught.value)
    if "input_data" not in options and "dipole_correction" not in options:
        with pytest.raises(LabelError, match=reason):
            cells.check_cell(task, None, options.get("k_points"))


def test_a_dipole_needs_a_slab_and_a_cut_off_potential_a_cell_along_z():
    wire = layers(30.0)._replace(cell=np.diag([3.8, 20.0, 40.0]), periodic=np.array([True, False, False]))
    with pytest.raises(LabelError, match="true does not fit a structure that is periodic in 1"):
        espresso(**HEAD, dipole_correction=True, command=["true"]).check(wire)
    two = {"input_data": {"system": {"assume_isolated": "2D"}}, "command": ["true"]}
    espresso(**HEAD, **two).check(layers(30.0))
    turned = layers(30.0)._replace(cell=np.diag([3.8, 40.0, 3.3]), periodic=np.array([True, False, True]))
    with pytest.raises(LabelError, match="2D needs a slab that is open along c"):
        espresso(**HEAD, **two).check(turned)
    with pytest.raises(LabelError, match="edir is what dipole_correction sets"):
        espresso(**HEAD, dipole_correction=True, input_data={"system": {"edir": 3}})


@pytest.mark.parametrize("name", ["xtb", "pyscf", "nwchem", "psi4", "orca", "gaussian"])
def test_codes_for_molecules_refuse_what_repeats_in_any_direction(name):
    options = {"orca": {"keywords": "HF STO-3G"}, "gaussian": {"route": "HF/STO-3G"}}.get(name, {})
    backend = registry.get("labeler", name)(**options)
    with pytest.raises(LabelError, match=f"label: {name} is for open systems, this one is periodic along a, b"):
        backend.check(SLAB)


def test_k_points_go_along_what_repeats():
    assert cells.k_mesh(SLAB.cell, 0.25, np.ones(3, bool))[2] == 3
    assert cells.k_mesh(SLAB.cell, 0.25, SIDES) == (8, 8, 1)
    assert cells.mesh_of(SLAB, None, 0.25) == (8, 8, 1) and cells.mesh_of(SLAB, (3, 3, 1), 0.25) == (3, 3, 1)


def test_the_vacuum_is_that_between_planes():
    """However the open vector leans, and wherever the atoms stand."""
    leaning = SLAB._replace(cell=SLAB.cell + np.array([[0, 0, 0], [0, 0, 0], [1.3, -2.0, 0]]))
    far = leaning._replace(position=leaning.position + np.array([0, 0, 77.0]))
    for task in (SLAB, leaning, far):
        assert cells.vacuum(task, 2) == pytest.approx(9.0)


def test_the_sawtooth_jumps_in_the_middle_of_the_vacuum():
    for shift in (0.0, 4.0, -3.0):
        values = _sawtooth(SLAB._replace(position=SLAB.position + np.array([0, 0, shift])))
        height = SLAB.cell[2, 2]
        jump = (values["emaxpos"] + values["eopreg"] / 2) * height
        distance = np.abs((SLAB.position[:, 2] + shift - jump + height / 2) % height - height / 2)
        assert values["edir"] == 3 and distance.min() == pytest.approx(4.5)


# ---------------------------------------------------------------- what is calculated


def test_an_ase_calculator_sees_the_slab_as_it_is():
    """Against EMT itself; a stress only where the cell has a volume, and of that only what lies in the slab."""
    atoms = fcc111("Cu", (2, 2, 3), vacuum=None)
    atoms.rattle(0.1, seed=0)
    assert list(atoms.pbc) == [True, True, False] and not atoms.cell.array[2].any()
    backend, task = ase(calculator="ase.calculators.emt.EMT"), task_of(atoms)
    backend.check(task)
    bare = backend.calculate(task)
    atoms.calc = EMT()
    assert bare.ok and bare.energy == atoms.get_potential_energy() and np.isnan(bare.stress).all()
    np.testing.assert_array_equal(bare.force, atoms.get_forces())
    atoms.cell[2] = [0, 0, 20.0]
    whole = backend.calculate(task_of(atoms))
    assert whole.energy == bare.energy and abs(whole.stress[2, 2]) > 1e-4
    atoms.calc = LabelCalculator(backend)
    stress = atoms.get_stress(voigt=False)
    np.testing.assert_allclose(stress[:2, :2], whole.stress[:2, :2], rtol=1e-12)
    assert not stress[2].any() and not stress[:, 2].any()


def test_the_service_gives_the_program_what_lies_in_the_slab(tmp_path):
    """A store keeps what the method said; the program learns of the directions that repeat."""
    task = task_of(fcc111("Cu", (1, 1, 3), vacuum=6.0))
    task.position[1] += 0.2
    backend = ase(calculator="ase.calculators.emt.EMT")
    batch = plain(task.position[None], np.zeros((1, 3), int), task.cell[None], [0], [0], periodic=task.periodic[None])
    service = label_service(backend, table=[29], store=tmp_path / "x.sqlite", net_force=np.inf, max_force=np.inf)
    labels = service.label(batch, np.ones(1, bool))
    service.close()
    (entry,) = entries(tmp_path / "x.sqlite")
    assert labels.ok.all() and abs(entry.result.stress[2, 2]) > 1e-4
    np.testing.assert_array_equal(entry.task.periodic, SIDES)
    assert not labels.stress[0, 2].any() and not labels.stress[0, :, 2].any()
    np.testing.assert_allclose(labels.stress[0, :2, :2], entry.result.stress[:2, :2], rtol=1e-12)


def test_forces_of_tblite_on_a_slab_are_slopes():
    sheet = Atoms("BN", [[0, 0, 0.1], [0, 1.45, 0]], cell=[[2.51, 0, 0], [1.255, 2.174, 0], [0, 0, 12]], pbc=SIDES)
    sheet = sheet.repeat((2, 2, 1))
    sheet.rattle(0.05, seed=1)
    backend, task = tblite(method="GFN1-xTB", accuracy=0.01), task_of(sheet)
    backend.check(task)
    result = backend.calculate(task)
    way = np.random.default_rng(0).normal(size=task.position.shape)
    ends = [backend.calculate(task._replace(position=task.position + step * way)).energy for step in (1e-3, -1e-3)]
    assert -np.sum(result.force * way) == pytest.approx((ends[0] - ends[1]) / 2e-3, abs=2e-3)
    with pytest.raises(LabelError, match="which is open"):
        backend.check(task._replace(cell=task.cell * [[1], [1], [0.5]]))


@pytest.mark.slow
@needs("espresso")
@pytest.mark.parametrize("cell", ["repeated", "dipole", "cut"])
def test_forces_of_pw_on_a_slab_are_slopes(cell):
    """As it is repeated, with its dipole's field taken out, and with a potential that ends in the vacuum."""
    options = {
        "repeated": {},
        "dipole": {"dipole_correction": True},
        "cut": {"input_data": {"system": {"assume_isolated": "2D"}}},
    }[cell]
    common = {"pseudopotentials": {"Si": UPF["Si"]}, "ecutwfc": 12.0, "k_points": (2, 2, 1), "smearing_width": 0.3}
    backend, task = espresso(**common, **options), layers(15.5 if cell == "cut" else 9.0)
    result = backend.calculate(task)
    assert result.ok, result.reason
    assert np.isnan(result.stress).all() == (cell == "dipole")
    way = np.array([[0, 0, 0.3], [0, 0, -1.0], [0.2, 0, 0.6]])
    ends = [backend.calculate(task._replace(position=task.position + step * way)).energy for step in (5e-3, -5e-3)]
    assert -np.sum(result.force * way) == pytest.approx((ends[0] - ends[1]) / 1e-2, abs=3e-3)


def test_vasp_gets_the_cell_with_its_vacuum_and_one_point_across(tmp_path):
    script = "cp KPOINTS POSCAR INCAR " + str(tmp_path)
    library = tmp_path / "potcars"
    library.mkdir()
    backend = vasp(
        potcars={"Si": "Si"},
        library=write_potcars(library, {"Si": 4.0}),
        encut=250.0,
        incar={"LDIPOL": True, "IDIPOL": 3},
        command=["sh", "-c", script],
        keep=str(tmp_path / "kept"),
    )
    assert not backend.calculate(SLAB).ok  # nothing was calculated
    assert (tmp_path / "KPOINTS").read_text().splitlines()[3] == "8 8 1"
    rows = (tmp_path / "POSCAR").read_text().splitlines()[2:5]
    np.testing.assert_allclose(np.array([row.split() for row in rows], float), SLAB.cell, atol=1e-14)
    assert "IDIPOL = 3" in (tmp_path / "INCAR").read_text()


# ---------------------------------------------------------------- what is kept


def test_a_slab_and_the_bulk_in_its_cell_are_two_calculations():
    bulk = SLAB._replace(periodic=np.ones(3, bool))
    wire = SLAB._replace(periodic=np.array([True, False, False]))
    other = SLAB._replace(periodic=np.array([False, True, True]))
    keys = {label_key(task, "m", "1") for task in (SLAB, bulk, wire, other)}
    assert len(keys) == 4


@pytest.mark.parametrize("schema", [1, 2])
def test_stores_of_earlier_schemas_are_read_and_brought_forward(tmp_path, schema):
    """Every row keeps its key: what has a cell was periodic in all directions, what has none in none."""
    path = tmp_path / "labels.sqlite"
    bulk, water = SLAB._replace(periodic=np.ones(3, bool)), task_of(molecule("H2O"))
    filled(path, (bulk, good(-1.0)), (water, good(-2.0)))
    before = entries(path)
    with sqlite3.connect(path) as plain:
        plain.execute("ALTER TABLE label DROP COLUMN periodic")
        if schema == 1:
            plain.execute("ALTER TABLE label DROP COLUMN carried")
            plain.execute("UPDATE label SET stress = ?", (np.zeros(9).tobytes(),))
        plain.execute(f"PRAGMA user_version = {schema}")
    reading = connect_to_read(path)
    assert reading.execute("SELECT periodic FROM label ORDER BY row").fetchall() == [("TTT",), ("FFF",)]
    reading.close()
    after = entries(path)  # opened to be written
    store = open_store(path)
    for old, new in zip(before, after, strict=True):
        assert old.key == new.key == label_key(new.task, new.method, new.version)
        for mine, theirs in zip((*old.task, *old.result), (*new.task, *new.result), strict=True):
            np.testing.assert_array_equal(mine, theirs)
        assert store.get(old.key) is not None
    store.put(SLAB, good(-3.0), "m", "1")
    store.close()
    with sqlite3.connect(path) as plain:
        assert plain.execute("PRAGMA user_version").fetchone() == (SCHEMA,)
        assert plain.execute("SELECT periodic FROM label WHERE row = 3").fetchone() == ("TTF",)


def test_labels_of_a_slab_are_learned_along_it_and_written_as_they_came():
    atoms = fcc111("Cu", (1, 1, 3), vacuum=6.0)
    atoms.positions[1] += 0.1
    atoms.calc = EMT()
    atoms.get_potential_energy(), atoms.get_forces(), atoms.get_stress()
    frame = frames.of_atoms(atoms)
    np.testing.assert_array_equal(frame.numeric.stress, atoms.get_stress(voigt=False))
    assert abs(frame.numeric.stress[2, 2]) > 1e-4
    assert not frame.label.stress[2].any() and not frame.label.stress[:, 2].any()
    np.testing.assert_allclose(frame.label.stress[:2, :2], frame.numeric.stress[:2, :2], rtol=1e-12)
