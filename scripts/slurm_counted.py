"""A labeler that notes every calculation it begins, for slurm_labels.py. Worker processes import it."""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

from jaxal.core import registry
from jaxal.core.discovery import import_own
from jaxal.core.registry import register
from jaxal.label.task import Backend, Result, Task


@register("labeler")
def counted(*, log: str, of: str, options: Mapping[str, Any]) -> Backend:
    """The labeler `of` with `options`, which notes in the file `log` when a calculation begins and when it ends."""
    import_own("labeler")
    backend = registry.get("labeler", of)(**options)

    def note(task: Task, what: str) -> None:
        name = hashlib.sha256(task.position.tobytes()).hexdigest()[:16]
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, f"{what} {name} {os.environ.get('SLURM_JOB_ID', 'none')}\n".encode())
        os.close(descriptor)

    def calculate(task: Task) -> Result:
        note(task, "begun")
        result = backend.calculate(task)
        note(task, "ended")
        return result

    return backend._replace(calculate=calculate)
