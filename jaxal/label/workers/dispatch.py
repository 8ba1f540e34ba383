"""Labels for a run that does not wait: a thread that hands tasks to an executor and commits what comes back.

A label is in the store as soon as its calculation has ended, whatever the program is doing at that moment. What is
handed in is noted before in a ledger, a file of keys: after a kill it says which labels of the store this run asked
for.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from jaxal.label.store.commit import Keeper
from jaxal.label.task import Result, Task, one_line
from jaxal.label.workers.executor import Executor

TICK = 0.05  # s at most between a task's coming in and its being handed on


class Landed(NamedTuple):
    """What became of one task."""

    ticket: int
    key: str
    result: Result
    from_store: bool  # nothing was paid


class Dispatch(NamedTuple):
    """An open dispatcher. Its functions may be called from any one thread."""

    submit: Callable[..., None]  # (ticket, task, what it carries = b""); returns at once
    landed: Callable[[float], list[Landed]]  # since the last call; waits at most so many seconds for the first one
    slots: int  # so many tasks are calculated at a time
    trouble: Callable[[], str]  # why no label can be calculated or committed any more, empty while all is well
    close: Callable[[], None]  # ends what is at work; the keys of it are in the ledger


def open_dispatch(executor: Executor, keeper: Keeper, ledger: Path) -> Dispatch:
    """Starts the thread. `executor` is closed with the dispatcher, the store of `keeper` is not."""
    inbox: list[tuple[int, Task, bytes]] = []
    outbox: list[Landed] = []
    troubles: list[str] = []
    closing, news = threading.Event(), threading.Condition()
    _mend(ledger)
    noted = set(ledger_keys(ledger))  # what a killed process had handed in is handed in again

    def submit(ticket: int, task: Task, carried: bytes = b"") -> None:
        with news:
            inbox.append((ticket, task, carried))
            news.notify_all()

    def landed(patience: float) -> list[Landed]:
        end = time.monotonic() + patience
        with news:
            while not outbox and not troubles and (left := end - time.monotonic()) > 0:
                news.wait(left)
            batch, outbox[:] = list(outbox), []
        return batch

    def finish(tickets: Iterable[int], key: str, result: Result, from_store: bool) -> None:
        with news:
            outbox.extend(Landed(ticket, key, result, from_store) for ticket in tickets)
            news.notify_all()

    def work() -> None:
        at_work: dict[int, tuple[str, Task, bytes]] = {}
        tickets: dict[str, list[int]] = {}  # of each key: two walkers may come upon the same frame
        while not closing.is_set():
            with news:
                if not inbox and not at_work:
                    news.wait(TICK)
                came, inbox[:] = list(inbox), []
            for ticket, task, carried in came:
                key = keeper.key(task)
                if (hit := keeper.known(key, task)) is not None:
                    finish([ticket], key, hit[1], True)
                elif key in tickets:
                    tickets[key].append(ticket)
                else:
                    if key not in noted:
                        _note(ledger, key)
                        noted.add(key)
                    tickets[key], at_work[ticket] = [ticket], (key, task, carried)
                    executor.submit(ticket, task)
            for ticket, result in executor.landed(TICK) if at_work else ():
                key, task, carried = at_work.pop(ticket)
                kept = keeper.committed(task, result, carried)[1]
                finish(tickets.pop(key), key, kept, False)

    def guarded() -> None:
        try:
            work()
        except Exception as error:  # a full disk, a broken executor: a label that is not committed is not a label
            if not closing.is_set():
                with news:
                    troubles.append(f"labeling failed: {one_line(error)}")
                    news.notify_all()

    thread = threading.Thread(target=guarded, name="labels", daemon=True)
    thread.start()

    def close() -> None:
        closing.set()
        executor.close()
        thread.join()

    return Dispatch(submit, landed, executor.slots, lambda: troubles[0] if troubles else "", close)


def ledger_keys(ledger: Path) -> list[str]:
    """The keys in a ledger, oldest first, each once; a line that a kill cut off is left out."""
    try:
        text = ledger.read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return []
    lines = text.splitlines(keepends=True)
    return list(dict.fromkeys(line.strip() for line in lines if line.endswith("\n") and len(line) == 65))


def _mend(ledger: Path) -> None:
    """Ends a line that a kill cut off, so that the next key has one of its own."""
    if ledger.exists() and (text := ledger.read_bytes()) and not text.endswith(b"\n"):
        with open(ledger, "ab") as file:
            file.write(b"\n")


def _note(ledger: Path, key: str) -> None:
    """Appends a key, on the disk when this returns."""
    with open(ledger, "ab") as file:
        file.write(f"{key}\n".encode())
        file.flush()
        os.fsync(file.fileno())
