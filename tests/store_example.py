"""Label stores to test with, and the command line in this process."""

from pathlib import Path

import ase
import numpy as np
from ase.calculators.singlepoint import SinglePointCalculator

from jaxal.cli.main import main
from jaxal.label.store.database import Entry, open_store
from jaxal.label.task import NO_STRESS, OPEN, Result, Task, failed

ME = "method", "code 1.0"


def water(x: float = 0.0, **changes) -> Task:
    return Task(np.array([8, 1, 1]), np.arange(9.0).reshape(3, 3) + x, *OPEN, 0, 0)._replace(**changes)


def good(energy: float, seconds: float = 0.5) -> Result:
    return Result(energy, np.full((3, 3), energy), NO_STRESS, True, "", seconds)


def filled(path: Path, *rows: tuple[Task, Result], method: tuple[str, str] = ME) -> Path:
    """A store with these rows."""
    store = open_store(path)
    for task, result in rows:
        store.put(task, result, *method)
    store.close()
    return path


def entries(path: Path) -> list[Entry]:
    store = open_store(path)
    rows = list(store.all())
    store.close()
    return rows


def done(capsys, *arguments: object) -> str:
    """What a command prints that succeeds; it may warn of the forces and stresses of these examples."""
    assert main([str(argument) for argument in arguments]) == 0
    out, err = capsys.readouterr()
    assert all(line.startswith("jaxal: warning: ") for line in err.splitlines()), err
    return out


def refused(capsys, *arguments: object) -> str:
    """The one line of a command that is refused."""
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    *warnings, line = err.splitlines()
    assert out == "" and line.startswith("jaxal: error: ")
    assert all(line.startswith("jaxal: warning: ") for line in warnings), err
    return line.removeprefix("jaxal: error: ")


def mixed_store(path: Path) -> Path:
    """A store of done, failed and rejected rows of two sizes."""
    filled(path, (water(0), good(-1.0, 1.0)), (water(1), failed(water(1), "no luck", 4.0)))
    filled(path, (water(2), good(-2.0, 3.0)), method=(*ME, b"", "a force is too large"))
    hydride = Task(np.array([1]), np.zeros((1, 3)), *OPEN, -1, 0)
    filled(path, (hydride, Result(-0.5, np.zeros((1, 3)), NO_STRESS, True, "", 0.25)), method=("other", "2"))
    return path


def labeled(atoms: ase.Atoms, **changes) -> ase.Atoms:
    results = {"energy": -1.5, "forces": np.full((len(atoms), 3), 0.25)} | changes
    atoms.calc = SinglePointCalculator(atoms, **{name: value for name, value in results.items() if value is not None})
    return atoms
