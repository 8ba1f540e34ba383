"""What every label passes before anybody sees it: acceptance, and the store that keeps it."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxal.data.labels import masked
from jaxal.label.acceptance import MAX_FORCE, NET_FORCE, accept
from jaxal.label.store import conversion
from jaxal.label.store.database import Entry, Store, label_key
from jaxal.label.task import Backend, Result, Task, failed


class Keeper(NamedTuple):
    """A label store seen by one method. Its functions may be called from any thread."""

    key: Callable[[Task], str]
    known: Callable[[str, Task], tuple[int, Result] | None]  # (row, result) where nothing has to be paid
    committed: Callable[..., tuple[int, Result]]  # (task, result, carried=b""): what the store holds once it is in it
    entry: Callable[[str], Entry | None]


def keeper(
    store: Store,
    backend: Backend,
    *,
    max_force: float = MAX_FORCE,
    net_force: float = NET_FORCE,
    retry_failed: bool = False,
) -> Keeper:
    """The labels of `backend` in `store`.

    The caps, in eV/Å, are not part of a label's key: stored numbers are judged by them anew, whatever the row says, and
    the row stays as it is, for others may have other caps. With `retry_failed` what the store remembers as failed is
    not known.
    """

    def judged(task: Task, result: Result, own: bytes) -> Result:
        fresh = result._replace(ok=True, reason="")
        # forces that a program has hidden on fixed atoms leave a sum
        hidden = bool(own) and _fits(task, result) and masked(result.force, conversion.fixed_of(own, len(task.numbers)))
        return accept(task, fresh, max_force=max_force, net_force=math.inf if hidden else net_force)

    def key_of(task: Task) -> str:
        return label_key(task, backend.method, backend.version)

    def known(key: str, task: Task) -> tuple[int, Result] | None:
        entry = store.get(key)
        if entry is None or (entry.status == "failed" and retry_failed):
            return None
        if entry.status == "failed":
            return entry.row, entry.result
        return entry.row, judged(task, entry.result, entry.carried)

    def committed(task: Task, result: Result, own: bytes = b"") -> tuple[int, Result]:
        if result.ok and not _fits(task, result):
            result = failed(task, "the labeler's arrays have the wrong shape", result.seconds)
        rejected = judged(task, result, own).reason if result.ok else ""
        entry = store.put(task, result, backend.method, backend.version, own, rejected)
        verdict = known(entry.key, task) if entry.status != "failed" else None
        return verdict or (entry.row, entry.result)

    return Keeper(key_of, known, committed, store.get)


def _fits(task: Task, result: Result) -> bool:
    return (
        np.shape(result.energy) == ()
        and np.shape(result.force) == (len(task.numbers), 3)
        and np.shape(result.stress) == (3, 3)
    )
