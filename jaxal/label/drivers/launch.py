"""Drivers: a small script of ours that another Python runs, for codes that are Python packages of their own.

The driver lies in the scratch folder as `driver.py`, reads `request.json` there and writes `answer.json`; both hold
plain numbers, texts, lists and mappings. So the package needs no jaxal, jaxal needs no package, and what hangs or
crashes is a process that can be ended. Drivers are `gpaw_driver.py` and `psi4_driver.py` in this folder. They are
copied because a script's own folder comes first on its path, and here a module is named like the package it needs.
"""

import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxal.data.electrons import symbol
from jaxal.label.scratch import PATIENCE, run
from jaxal.label.task import NO_STRESS, LabelError, Result, Task, failed, one_line

DRIVER, REQUEST, ANSWER = "driver.py", "request.json", "answer.json"
_accepted: set[tuple[str, ...]] = set()


def described(task: Task) -> dict[str, Any]:
    """The structure as a driver reads it: symbols, position and cell in Å, charge in e, unpaired electrons."""
    return {
        "symbols": [symbol(int(number)) for number in task.numbers],
        "position": task.position.tolist(),
        "cell": task.cell.tolist(),
        "charge": int(task.charge),
        "spin": int(task.spin),
    }


def source(driver: str) -> str:
    """The text of a driver."""
    return Path(__file__).with_name(driver).read_text(encoding="utf-8")


def ask(
    words: Sequence[str],
    driver: str,
    request: dict[str, Any],
    folder: Path,
    after: Sequence[str] = (),
    patience: float | None = None,
) -> dict[str, Any]:
    """What the driver answers. `error` in it says in one line why it gave nothing.

    `words` starts the Python, `after` are arguments that follow the script's, `patience` is in s.
    """
    shutil.copyfile(Path(__file__).with_name(driver), folder / DRIVER)
    (folder / REQUEST).write_text(json.dumps(request), encoding="utf-8")
    finished = run([*words, DRIVER, *after], folder, patience=patience)
    answer = folder / ANSWER
    if not answer.exists():
        return {"error": finished.failure or f"{Path(words[0]).name} ended well but wrote no {ANSWER}"}
    try:
        read = json.loads(answer.read_text(encoding="utf-8"))
    except ValueError as error:
        return {"error": finished.failure or f"{ANSWER} is damaged ({one_line(error)})"}
    return read if isinstance(read, dict) else {"error": f"{ANSWER} holds no mapping"}


def check_with(words: Sequence[str], driver: str, request: dict[str, Any], after: Sequence[str] = ()) -> None:
    """Raises LabelError where the driver has an `objection`, "field: reason", to a request that calculates nothing.

    What it has once accepted it is not asked again.
    """
    key = (*words, driver, json.dumps(request, sort_keys=True))
    if key in _accepted:
        return
    with tempfile.TemporaryDirectory(prefix="jaxal-") as folder:
        answer = ask(words, driver, request, Path(folder), after, PATIENCE)
    if answer.get("objection"):
        raise LabelError(one_line(f"label.{answer['objection']}"))
    if answer.get("error"):
        raise LabelError(one_line(f"label.command: the program cannot be asked what it knows ({answer['error']})"))
    _accepted.add(key)


def result_of(task: Task, answer: dict[str, Any]) -> Result:
    """The label in a driver's answer: `energy` in eV, `force` in eV/Å, `stress` in eV/Å^3 where there is one."""
    if error := answer.get("error"):
        return failed(task, str(error))
    try:
        energy = float(answer["energy"])
        force = np.array(answer["force"], float).reshape(len(task.numbers), 3)
        stress = np.array(answer.get("stress") or NO_STRESS, float).reshape(3, 3)
    except (KeyError, TypeError, ValueError) as error:
        return failed(task, f"the driver's answer does not fit ({one_line(error)})")
    return Result(energy, force, stress, True, "", 0.0)
