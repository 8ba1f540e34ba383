"""How a method calculates an atom: its spin, a box where one is needed, and what cannot be."""

import numpy as np
import pytest

from jaxal.core import registry
from jaxal.core.discovery import import_own
from jaxal.core.registry import register
from jaxal.label.cells import check_cell
from jaxal.label.isolated_atoms import BOX, planned
from jaxal.label.task import Backend
from jaxal.label.workers.executor import Recipe

import_own("labeler")


def test_atoms_are_asked_for_in_their_ground_state():
    for number, spin in ((1, 1), (2, 0), (7, 3), (24, 6), (78, 2), (86, 0)):
        plan = planned(Recipe("tblite", {}), number)
        assert plan.task is not None and not plan.reason
        assert (plan.task.charge, plan.task.spin, plan.task.numbers.tolist()) == (0, spin, [number])
        assert not plan.task.cell.any() and plan.recipe == Recipe("tblite", {})
    # GFN has no f electrons: gadolinium has the valence electrons of lanthanum
    assert (plan := planned(Recipe("tblite", {}), 64)).task is not None and plan.task.spin == 1


def test_a_method_that_knows_no_spin_is_asked_only_where_somebody_insists():
    emt = Recipe("ase", {"calculator": "ase.calculators.emt.EMT"})
    plan = planned(emt, 29)
    assert plan.task is None and plan.reason.startswith("spin: 1 cannot be passed to ase.calculators.emt.EMT")
    plan = planned(emt, 29, insist=True)
    assert plan.task is not None and plan.task.spin == 0


def test_a_method_that_needs_a_box_gets_one(monkeypatch):
    monkeypatch.setitem(registry._table, "labeler", dict(registry._table["labeler"]))

    @register("labeler")
    def plane_waves_of_a_test(*, box: float | None = None) -> Backend:
        """Takes molecules in a box only."""
        return Backend(lambda task: None, lambda task: check_cell(task, box), f"box={box}", "1")  # pyright: ignore

    name = "plane_waves_of_a_test"
    plan = planned(Recipe(name, {"box": None}), 8)
    assert plan.task is not None and plan.recipe == Recipe(name, {"box": BOX}) and not plan.task.cell.any()
    assert planned(Recipe(name, {"box": 9.0}), 8).recipe == Recipe(name, {"box": 9.0})
    plan = planned(Recipe(name, {"box": 5.0}), 8)
    assert plan.task is None and "5 Å is too small" in plan.reason
    assert np.array_equal(planned(Recipe(name, {}), 8).recipe.options["box"], BOX)


@pytest.mark.parametrize("number", [0, 87, 118])
def test_beyond_the_table_nothing_is_planned(number):
    assert "not in the table" in planned(Recipe("tblite", {}), number).reason
