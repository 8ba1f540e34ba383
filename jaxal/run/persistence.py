"""The state of a run in checkpoints and back, and what of a configuration may change in between."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jaxal.config import yaml12
from jaxal.config.loading import FILE_NAME
from jaxal.config.writing import dump
from jaxal.core import devices
from jaxal.core.types import InputError
from jaxal.data import neighbors
from jaxal.program import state as states
from jaxal.run import assembly, checkpoint, folder, grouping
from jaxal.run.session import CHECKPOINTS, Progress, Run, elapsed, walker_structures

# of the configuration, on resume: how long and how, not what is learned from what
MAY_CHANGE = (
    "executor.",
    "label.store",
    "label.timeout",
    "label.workers",
    "output.",
    "stop.",
    "task",
    "train.final_learning_rate",
    "train.final_steps",
    "validate.",
)


def newest(run: Run) -> checkpoint.Stored:
    """The newest whole checkpoint, in all processes.

    Raises InputError where there is none, and for a configuration that differs in what must not change.
    """
    now = dump(run.config, run.directory)

    def read() -> list[Any]:
        stored = checkpoint.newest(run.directory / CHECKPOINTS)
        check_changes(stored.record["host"]["config"], now, run.directory / FILE_NAME)
        return list(stored)

    return checkpoint.Stored(*devices.from_first(read))


def restored(run: Run, stored: checkpoint.Stored) -> tuple[Progress, states.State]:
    """State and memory that a checkpoint of this run holds."""
    progress = Progress(**stored.record["host"])
    state = checkpoint.fitted(stored, _example(run, progress))
    return progress, devices.laid(run.mesh, states.LAYOUT, state)


def check_changes(begun: str, now: str, source: Path) -> None:
    """Raises InputError, with the fields, where two configurations, as YAML, differ in more than `MAY_CHANGE`."""
    was, present = (dict(_fields(yaml12.parse(text, str(source)))) for text in (begun, now))
    differ = [name for name in {**was, **present} if was.get(name) != present.get(name)]
    there = {_system(name) for name in was}
    added = [name for name in differ if _system(name) not in there]
    differ = [name for name in differ if name not in added]
    if added:  # of another charge or spin: then both become an input of the potential
        differ = [name for name in differ if (name, present.get(name)) != ("potential.electrons", "on")]
    wrong = [name for name in differ if not name.startswith(MAY_CHANGE)]
    if wrong:
        changes = "; ".join(f"{name} was {was.get(name)}, is {present.get(name)}" for name in wrong)
        may = ", ".join(name + "*" * (name.endswith(".") or name == "task") for name in MAY_CHANGE)
        raise InputError(
            f"{source}: the run was begun otherwise: {changes}. Set it back, or start a new run; {may} may change, and "
            "systems may be added"
        )


def asks_otherwise(run: Run, progress: Progress) -> bool:
    """Whether the task of the run is another one than when it last went on."""
    texts = progress.config, dump(run.config, run.directory)
    was, now = ({n: v for n, v in _fields(yaml12.parse(text, "")) if n.startswith("task")} for text in texts)
    return run.config.task is not None and was != now


def _system(name: str) -> str:
    """The system that a field is of; empty for other fields."""
    return ".".join(name.split(".")[:2]) if name.startswith("systems.") else ""


def _fields(tree: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings with their dotted names."""
    if not isinstance(tree, dict):
        yield name, tree
        return
    for key, value in tree.items():
        yield from _fields(value, f"{name}.{key}" if name else key)


def _example(run: Run, progress: Progress) -> Any:
    """A state of the right structure, as shapes; what sizes it has is on disk."""
    config, structures = run.config, walker_structures(run)
    label: Any = lambda structures, wanted: None  # noqa: E731
    parts = assembly.parts_of(config, run.table, label, run.systems, run.groups, progress.exact)
    near = neighbors.plan(structures, parts.committee.potential.cutoff, assembly.SKIN)
    groups = grouping.program_groups(run.systems, run.groups, [near] * len(run.groups))
    return assembly.untrained(parts, assembly.static_of(config, run.table, groups, near), structures, 1)


def save(run: Run, progress: Progress, state: states.State) -> None:
    """Writes a checkpoint; the growing files are taken back to their present sizes if it is restored.

    All processes call it, the first one writes.
    """
    progress.elapsed = elapsed(run)
    state = devices.whole(state)
    if devices.first():
        progress.sizes = folder.sizes(run.directory)
        checkpoint.save(run.directory / CHECKPOINTS, progress.look, state, asdict(progress))
