"""A pool of worker processes that outlives its workers.

A worker that dies, by a crash of the method's code or by the system's killer of memory hogs, is replaced, its
calculation tried once more, then failed. A calculation that takes too long is ended with its worker and everything
that a calculator has started.
"""

import contextlib
import math
import threading
import time
from collections import deque
from dataclasses import dataclass
from multiprocessing.connection import wait

from jaxal.core.registry import register
from jaxal.label.task import Result, Task, failed, packed, unpacked
from jaxal.label.workers import process
from jaxal.label.workers.executor import Executor, Open, Recipe, Setting, in_process, refuse_closed

TRIES = 2  # of a calculation whose worker dies
STARTUP = 120.0  # s for a worker to import its method


@register("executor")
def local() -> Open:
    """Processes on this host, `label.workers` of them; 0 calculates in the program's own."""

    def opened(setting: Setting) -> Executor:
        if not setting.workers:
            return in_process(setting.recipe.build())
        return open_pool(setting.recipe, setting.workers, setting.timeout)

    return opened


@dataclass
class _Job:
    ticket: int
    task: Task
    tries: int = 0


@dataclass
class _Worker:
    child: process.Child
    ready: bool = False  # its backend is built
    job: _Job | None = None
    since: float = 0.0  # when it started, or got its task


def open_pool(recipe: Recipe, workers: int, timeout: float | None = None, threads: int = 1) -> Executor:
    """Starts `workers` processes; each builds the backend while this process goes on.

    `timeout` is in seconds of wall time for each calculation; None waits forever. It is looked at in `landed`,
    and an answer that is there counts, however late. `threads` are for each worker: they share the cores, and another
    number of them does not give the same bits. Raises LabelError for a labeler that another process cannot import.
    """
    greeting = recipe.greeting("label.workers", ", or give 0")

    def new() -> _Worker:
        return _Worker(process.start("jaxal.label.workers.worker", greeting, threads), since=time.monotonic())

    slots: list[_Worker | None] = [new() for _ in range(workers)]
    waiting: deque[_Job] = deque()
    finished: list[tuple[int, Result]] = []
    lock, closing = threading.Lock(), threading.Event()

    def lost(slot: int, reason: str, again: bool) -> None:
        """The worker is of no use any more; its task goes back or fails."""
        worker = slots[slot]
        assert worker is not None
        slots[slot] = None
        said = process.end(worker.child)
        if worker.job is not None and again and worker.job.tries < TRIES:
            waiting.appendleft(worker.job)
        elif worker.job is not None:
            spent = time.monotonic() - worker.since
            finished.append((worker.job.ticket, failed(worker.job.task, f"{reason}{said and f': {said}'}", spent)))

    def assign() -> None:
        for slot, worker in enumerate(slots):
            if waiting and (worker is None or worker.job is None):
                worker = slots[slot] = worker or new()
                worker.job = waiting.popleft()
                worker.job.tries += 1
                _give(worker)

    def listen(patience: float) -> None:
        """Reads what the workers say, after waiting for the first of them."""
        speakers = {
            w.child.connection: slot for slot, w in enumerate(slots) if w and (w.job is not None or not w.ready)
        }
        for connection in wait(list(speakers), None if math.isinf(patience) else patience):
            slot = speakers[connection]  # pyright: ignore[reportArgumentType]
            worker = slots[slot]
            assert worker is not None
            try:
                message = unpacked(worker.child.connection.recv_bytes())
            except (EOFError, OSError, ValueError, TypeError):
                refuse_closed(closing.is_set())
                lost(slot, f"the worker died ({process.how(worker.child)})", again=True)
                continue
            if not worker.ready and message:
                lost(slot, f"the worker cannot build {recipe.name}: {message}", again=False)
            elif not worker.ready:
                worker.ready = True
                _give(worker)
            elif worker.job is not None:
                finished.append((worker.job.ticket, Result(*message)))
                worker.job = None

    def expire() -> None:
        for slot, worker in enumerate(slots):
            if worker is None or time.monotonic() < _end_of(worker, timeout):
                continue
            if worker.ready:
                lost(slot, f"timeout: the calculation took more than {timeout:g} s", again=False)
            else:
                lost(slot, f"the worker did not start in {STARTUP:g} s", again=True)

    def submit(ticket: int, task: Task) -> None:
        with lock:
            refuse_closed(closing.is_set())
            waiting.append(_Job(ticket, task))
            assign()

    def landed(patience: float) -> list[tuple[int, Result]]:
        end = time.monotonic() + patience
        with lock:
            refuse_closed(closing.is_set())
            look(0.0)
            while not finished and any(worker and worker.job for worker in slots) and time.monotonic() < end:
                nearest = min(_end_of(worker, timeout) for worker in slots if worker)
                look(max(0.0, min(nearest, end) - time.monotonic()))
                refuse_closed(closing.is_set())  # a worker that took another's place meanwhile would not wake us
            results, finished[:] = list(finished), []
            return results

    def look(patience: float) -> None:
        # a worker whose result is not handed out yet, and so not in the store, gets nothing new: of cheap labels it
        # could calculate many before the first is committed, and a kill would lose them all
        assign()
        listen(patience)
        expire()
        if not finished:
            assign()  # what lost workers had

    def close() -> None:
        closing.set()
        for worker in tuple(slots):  # wakes a `landed` in another thread, which then gives up the lock
            if worker:
                process.kill(worker.child)
        with lock:
            waiting.clear()
            for slot, worker in enumerate(slots):
                slots[slot] = None
                if worker:
                    process.end(worker.child)

    return Executor(submit, landed, workers, close)


def _give(worker: _Worker) -> None:
    """Starts the clock; the task itself is sent once the worker is ready."""
    worker.since = time.monotonic()
    if worker.ready and worker.job is not None:
        with contextlib.suppress(OSError):  # a dead worker is noticed when it should answer
            worker.child.connection.send_bytes(packed(worker.job.task))


def _end_of(worker: _Worker, timeout: float | None) -> float:
    """When a busy worker has taken too long, on the monotonic clock; never for an idle one."""
    limit = timeout if worker.ready else STARTUP
    return math.inf if limit is None or worker.job is None else worker.since + limit
