"""One label as a run has it calculated: by a worker process, through the label service."""

from pathlib import Path
from typing import Any

import numpy as np
from structures import plain

from jaxal.label.service import Recipe, Record, label_service
from jaxal.label.task import Task


def batch_of(task: Task) -> tuple[Any, tuple[int, ...]]:
    """The task alone as a batch of padded structures, and the table of its species."""
    table = np.unique(task.numbers)
    fields: Any = (task.position, np.searchsorted(table, task.numbers), task.cell, task.charge, task.spin)
    batch = plain(*(np.asarray(field)[None] for field in fields), periodic=task.periodic[None])  # pyright: ignore
    return batch, tuple(int(number) for number in table)


def through_workers(name: str, options: dict[str, Any], task: Task, store: Path, timeout: float = 300.0) -> Record:
    """What became of the label that a worker calculated, or was ended over."""
    batch, table = batch_of(task)
    recipe = Recipe(name, options)
    service = label_service(recipe, table=table, store=store, workers=1, timeout=timeout, max_force=np.inf)
    try:
        service.label(batch, np.ones(1, bool))
        (record,) = service.drain()
    finally:
        service.close()
    return record
