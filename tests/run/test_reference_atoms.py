"""The isolated atoms of a run: calculated once, kept in the store, and what the model says of fragments far apart."""

import json

import ase
import ase.io
import numpy as np
import pytest
from ase.build import molecule
from commands import SMALL
from run_example import WATER, folder, jaxal
from tblite.interface import Calculator as Tight

from jaxal.config.check import check
from jaxal.config.loading import parse
from jaxal.core import registry
from jaxal.core.errors import InputError
from jaxal.core.registry import register
from jaxal.core.units import BOHR, HARTREE
from jaxal.label.store.conversion import frame_of
from jaxal.label.store.database import open_store
from jaxal.label.task import Backend, LabelError, failed
from jaxal.run.reference_atoms import fallbacks, isolated_atoms, known

TABLE = (1, 8)
SPINS = {1: 1, 8: 2}


def of_tblite(numbers, positions, spin) -> float:
    calculator = Tight("GFN2-xTB", np.asarray(numbers), np.asarray(positions) / BOHR, uhf=spin)
    calculator.set("verbosity", 0)
    calculator.set("accuracy", 0.1)
    if spin:
        calculator.add("spin-polarization", 1.0)
    return float(calculator.singlepoint().get("energy")) * HARTREE


def config_of(tmp_path, system=None, **label):
    ase.io.write(tmp_path / "water.xyz", molecule("H2O"))
    sections = {"system": {"file": "water.xyz"} | (system or {}), "explore": {"name": "nvt_langevin"}, "label": label}
    return parse(sections | {"potential": {"channels": 2, "layers": 1}}, tmp_path)


def rows(path) -> list:
    store = open_store(path)
    try:
        return list(store.all())
    finally:
        store.close()


def test_atoms_are_calculated_once_in_their_ground_states(tmp_path):
    store = tmp_path / "labels.sqlite"
    arguments = config_of(tmp_path, name="tblite"), TABLE, [0], store
    first, again = isolated_atoms(*arguments), isolated_atoms(*arguments)
    assert [atom.stored for atom in first] == [False, False] and [atom.stored for atom in again] == [True, True]
    expected = {row: of_tblite([z], np.zeros((1, 3)), SPINS[z]) for row, z in enumerate(TABLE)}
    assert known(first, TABLE) == pytest.approx(expected, abs=1e-6) and known(again, TABLE) == known(first, TABLE)
    stored = rows(store)
    assert [(e.task.numbers.tolist(), e.task.charge, e.task.spin) for e in stored] == [([1], 0, 1), ([8], 0, 2)]
    assert all(frame_of(entry).isolated for entry in stored)  # what is trained from this store knows them, too


def test_what_leaves_an_ion_is_not_known(tmp_path):
    arguments = TABLE, [1], tmp_path / "labels.sqlite"
    assert isolated_atoms(config_of(tmp_path, name="tblite"), *arguments) == []
    assert isolated_atoms(config_of(tmp_path, name="tblite", atoms="fit"), TABLE, [0], arguments[2]) == []
    morse = isolated_atoms(config_of(tmp_path, name="morse"), *arguments)
    assert known(morse, TABLE) == {0: 0.0, 1: 0.0} and not arguments[2].exists()


def test_what_the_method_cannot_do_is_told_before_anything_is_computed(tmp_path, monkeypatch):
    monkeypatch.setitem(registry._table, "labeler", dict(registry._table["labeler"]))

    @register("labeler")
    def molecules_only() -> Backend:
        """Refuses atoms."""

        def refuse(task):
            if len(task.numbers) == 1:
                raise LabelError("structure: an atom is no molecule")

        return Backend(failed, refuse, "molecules only", "1")

    with pytest.raises(InputError, match=r"label.atoms: method does not fit systems that all have a charge.*give auto"):
        check(config_of(tmp_path, {"charge": 1, "spin": 1}, name="tblite", atoms="method"))
    with pytest.raises(InputError, match=r"label.atoms: the method cannot calculate H alone \(structure: an atom"):
        check(config_of(tmp_path, name="molecules_only", atoms="method"))
    check(config_of(tmp_path, name="molecules_only"))
    check(config_of(tmp_path, name="ase", calculator="ase.calculators.emt.EMT", atoms="method"))


def test_an_atom_that_fails_is_fitted_or_told(tmp_path, monkeypatch):
    monkeypatch.setitem(registry._table, "labeler", dict(registry._table["labeler"]))

    @register("labeler")
    def oxygen_fails_alone() -> Backend:
        """Hydrogen atoms have -13 eV; those of oxygen do not converge."""

        def calculate(task):
            result = failed(task, "the SCF did not converge")
            return result if task.numbers[0] == 8 else result._replace(energy=-13.0, ok=True, reason="")

        return Backend(calculate, lambda task: None, "oxygen fails alone", "1")

    store = tmp_path / "labels.sqlite"
    atoms = isolated_atoms(config_of(tmp_path, name="oxygen_fails_alone"), TABLE, [0], store)
    assert known(atoms, TABLE) == {0: -13.0}
    (line,) = fallbacks(atoms)
    assert line == (
        "label.atoms: the energies of O are fitted to the labels, those of their isolated atoms are not known: "
        "the SCF did not converge"
    )
    config = config_of(tmp_path, name="oxygen_fails_alone", atoms="method")
    with pytest.raises(InputError, match=r"label.atoms: the method fails for O alone: the SCF did not converge"):
        isolated_atoms(config, TABLE, [0], store)


@pytest.mark.slow
def test_a_learned_model_dissociates_into_what_the_method_says_of_the_pieces(tmp_path):
    """Water and its atoms, in two runs that share their store."""
    outs = [tmp_path / "first", tmp_path / "second"]
    config = folder(tmp_path, WATER.replace("final_steps: 20", "final_steps: 2000").replace("rate: 0.01", "rate: 0.05"))
    for out, labels in zip(outs, (12, 8), strict=True):
        jaxal("run", config, f"stop.labels={labels}", f"label.store={tmp_path / 'shared.sqlite'}", "--dir", out)
    lone = [entry for entry in rows(tmp_path / "shared.sqlite") if len(entry.task.numbers) == 1]
    assert [entry.task.numbers.tolist() for entry in lone] == [[1], [8]] and all(e.attempt == 1 for e in lone)
    metrics = [[json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()] for out in outs]
    for lines, stored in zip(metrics, (False, True), strict=True):
        atoms = [line for line in lines if line["kind"] == "atom"]
        assert [(a["element"], a["spin"], a["worked"] == 0) for a in atoms] == [("H", 1, stored), ("O", 2, stored)]
    assert sum(line["kind"] == "label" for line in metrics[0]) == 12 - 4  # the atoms are none of the budget
    assert "<td>O</td>" in (outs[0] / "report.html").read_text()

    import jaxal as package

    package.import_part(SMALL)
    calculator = package.Calculator(outs[0])
    far = ase.Atoms("OHH", positions=[[0, 0, 0], [40, 0, 0], [0, 50, 0]], calculator=calculator)
    atoms = sum(of_tblite([z], np.zeros((1, 3)), SPINS[z]) for z in (8, 1, 1))
    assert far.get_potential_energy() == pytest.approx(atoms, abs=1e-3) and not far.get_forces().any()
    water = molecule("H2O")
    water.calc = calculator
    bound = of_tblite(water.numbers, water.positions, 0) - atoms
    assert water.get_potential_energy() - far.get_potential_energy() == pytest.approx(bound, abs=0.3)
    both = water + ase.Atoms("OHH", positions=far.positions + 100)
    both.calc = calculator
    assert both.get_potential_energy() == pytest.approx(water.get_potential_energy() + atoms, abs=2e-3)
