"""Labels from any ASE calculator, named by its import path."""

import importlib
import importlib.metadata
import json
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxal.core.registry import register
from jaxal.label.task import (
    NO_STRESS,
    Backend,
    LabelError,
    Result,
    Task,
    check_spin,
    check_task,
    code_version,
    guarded,
    has_stress,
    one_line,
    periodic,
)


@register("labeler")
def ase(
    *,
    calculator: str,
    options: Mapping[str, Any] | None = None,
    charge_keyword: str = "",
    unpaired_keyword: str = "",
    multiplicity_keyword: str = "",
    stress: bool = True,
) -> Backend:
    """Any ASE calculator by import path, such as "ase.calculators.emt.EMT".

    `options` are the keyword arguments of the calculator; they must be plain values (they are part of the key).
    ASE has no common way to state charge and spin: a charged or open-shell structure is refused unless
    `charge_keyword`, and `unpaired_keyword` (number of unpaired electrons) or `multiplicity_keyword` (that
    number + 1), name the calculator's own keywords; they are then always passed. A calculator that writes files
    gets an empty folder of its own for every label, unless the options name a directory.
    A calculator that itself runs on JAX needs `workers: 1` or more (a host labeler must not touch JAX).
    A periodic structure needs a calculator with a stress; `stress: false` does without. Of a slab the calculator gets
    `pbc` and the cell as they are; what it makes of them is its own business.
    """
    arguments = dict(options or {})
    spin_keyword = unpaired_keyword or multiplicity_keyword
    ready: dict[tuple[int, int], Any] = {}  # (charge, spin) -> calculator: some take seconds to load
    try:
        described = json.dumps(arguments, sort_keys=True)
    except TypeError as error:
        raise LabelError(f"label.options: {one_line(error)}; give numbers, texts, lists and mappings") from error
    if unpaired_keyword and multiplicity_keyword:
        raise LabelError("label.unpaired_keyword: multiplicity_keyword is there too; give one of them")
    for keyword in filter(None, (charge_keyword, spin_keyword)):
        if keyword in arguments:
            raise LabelError(f"label.options.{keyword}: it follows from the structure; leave it out")

    def keywords(charge: int, spin: int) -> dict[str, Any]:
        values = {
            charge_keyword: int(charge),
            unpaired_keyword: int(spin),
            multiplicity_keyword: int(spin) + 1,
        }
        return arguments | {keyword: value for keyword, value in values.items() if keyword}

    def engine_of(task: Task) -> Any:
        electrons = (task.charge, task.spin)
        if electrons not in ready:
            make = _imported(calculator)
            try:
                ready[electrons] = make(**keywords(*electrons))
            except Exception as error:
                raise LabelError(f"label.options: {calculator} refuses them ({one_line(error)})") from error
        return ready[electrons]

    def check(task: Task) -> None:
        check_task(task)
        for name, value, keyword in (("charge", task.charge, charge_keyword), ("spin", task.spin, spin_keyword)):
            if value and not keyword:
                hint = "charge_keyword" if name == "charge" else "unpaired_keyword or multiplicity_keyword"
                raise LabelError(
                    f"{name}: {value} cannot be passed to {calculator}; give 0, or its keyword as label.{hint}"
                )
        if spin_keyword:
            check_spin(task)
        able = getattr(engine_of(task), "implemented_properties", ())
        for quantity in ("energy", "forces"):
            if quantity not in able:
                raise LabelError(f"label.calculator: {calculator} has no {quantity}; give one that has")
        if has_stress(task) and stress and "stress" not in able:
            raise LabelError(
                f"label.calculator: {calculator} has no stress; give label.stress=false and train without it"
            )

    def calculate(task: Task) -> Result:
        from ase import Atoms

        check(task)
        engine = engine_of(task)
        # Nothing of the last structure may leak into this one: labels must not depend on their order.
        if hasattr(engine, "reset"):
            engine.reset()
        box = {"cell": task.cell, "pbc": task.periodic} if periodic(task) else {}
        atoms = Atoms(numbers=task.numbers, positions=task.position, **box)
        with tempfile.TemporaryDirectory(prefix="jaxal-") as folder:
            if "directory" not in arguments and hasattr(engine, "directory"):
                engine.directory = folder
            atoms.calc = engine
            # Under smearing the forces are the gradient of the free energy.
            free = "free_energy" in engine.implemented_properties
            energy = float(atoms.get_potential_energy(force_consistent=free))
            force = np.array(atoms.get_forces(apply_constraint=False), dtype=float)
            tensor = NO_STRESS.copy()
            if has_stress(task) and stress:
                tensor = np.array(atoms.get_stress(voigt=False), dtype=float)
        return Result(energy, force, tensor, True, "", 0.0)

    spelled = " ".join(
        f"{name}={value}"
        for name, value in (
            ("charge_keyword", charge_keyword),
            ("unpaired_keyword", unpaired_keyword),
            ("multiplicity_keyword", multiplicity_keyword),
        )
        if value
    )
    return Backend(
        guarded(calculate),
        check,
        f"{calculator} options={described} stress={stress!r} {spelled}".strip(),
        _version(calculator),
    )


def _imported(path: str) -> Callable[..., Any]:
    """The class or function at an import path. Raises LabelError where there is none."""
    module, _, name = path.rpartition(".")
    if not module:
        raise LabelError(f"label.calculator: {path!r} is no import path; give such as ase.calculators.emt.EMT")
    try:
        return getattr(importlib.import_module(module), name)
    except ImportError as error:
        raise LabelError(f"label.calculator: cannot import {module!r} ({one_line(error)})") from error
    except AttributeError as error:
        raise LabelError(f"label.calculator: {module!r} has no {name!r}") from error


def _version(path: str) -> str:
    """Versions of ASE and of the distribution that holds the calculator."""
    top = path.partition(".")[0]
    holders = [name for name in importlib.metadata.packages_distributions().get(top, []) if name != "ase"]
    return ", ".join(code_version(name) for name in ("ase", *sorted(set(holders))))
