"""How a method calculates an isolated atom: in which spin, and a plane-wave code in which box."""

from typing import NamedTuple

import numpy as np

from jaxal.core import registry
from jaxal.data.electrons import ground_spin, symbol
from jaxal.label.task import LabelError, Task
from jaxal.label.workers.executor import Recipe

BOX = 12.0  # Å; the edge of the cube for an atom, where a method needs one and its options name none
# Methods that put the f electrons of Ce to Lu into the core leave the valence electrons of lanthanum: 5d1 6s2.
LANTHANIDES, OF_LANTHANUM = range(58, 72), 1


class Plan(NamedTuple):
    """What is to be calculated; without a task the reason why not, in one line."""

    number: int  # atomic number
    recipe: Recipe  # of the method, perhaps with a box
    task: Task | None
    reason: str = ""


def planned(recipe: Recipe, number: int, insist: bool = False) -> Plan:
    """How `recipe` calculates a neutral atom of this element in its ground state.

    Open, or in a cube where the method takes open structures only in a `box`. A method that knows no unpaired electrons
    is asked without them only where somebody insists: what a closed form says is right, a calculation of electrons that
    are all paired is not. Nothing is calculated.
    """
    ground = ground_spin(number)
    if ground is None:
        return Plan(number, recipe, None, f"the ground state of {symbol(number)} is not in the table, which ends at Rn")
    spins = [ground, *([OF_LANTHANUM] if number in LANTHANIDES else []), *([0] if insist else [])]
    reason = ""
    for variant in _variants(recipe):
        backend = variant.build()
        for spin in spins:
            task = Task(np.array([number], np.int64), np.zeros((1, 3)), np.zeros((3, 3)), np.zeros(3, bool), 0, spin)
            try:
                backend.check(task)
            except LabelError as error:
                reason = reason if spin != ground else str(error)
                continue
            return Plan(number, variant, task)
    return Plan(number, recipe, None, reason)


def _variants(recipe: Recipe) -> list[Recipe]:
    """The method, and the same with a box where it has the option and none is set."""
    has_box = any(option.name == "box" for option in registry.options("labeler", recipe.name))
    if not has_box or recipe.options.get("box") is not None:
        return [recipe]
    return [recipe, Recipe(recipe.name, {**recipe.options, "box": BOX})]
