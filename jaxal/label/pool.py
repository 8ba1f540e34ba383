"""A pool of worker processes that outlives its workers.

A worker that dies, by a crash of the method's code or by the system's killer of memory hogs, is replaced, its
calculation tried once more, then failed. A calculation that takes too long is ended with its worker. Each
worker is a fresh interpreter in a process group of its own: no fork of a process that runs JAX, no second run
of the user's script, and Ctrl-C or an end of the calculation reaches everything a calculator has started.
"""

import contextlib
import math
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import IO, Any, NamedTuple

from jaxal import registry
from jaxal.label.task import Backend, Enough, LabelError, Result, Task, failed, one_line, packed, unpacked
from jaxal.label.worker import OUTER_PATH

TRIES = 2  # of a calculation whose worker dies
STARTUP = 120.0  # s for a worker to import its method
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Recipe(NamedTuple):
    """How to build a backend, in this process or in another: a registered labeler and its options."""

    name: str
    options: dict[str, Any]

    def build(self) -> Backend:
        """The backend. Raises LabelError (or the ValueError of the factory) for options that cannot be."""
        return registry.get("labeler", self.name)(**self.options)


class Pool(NamedTuple):
    """An open pool.

    `run(tasks, landed)` gives the results in the order of the tasks; `landed(index, result)` is called in this
    thread as soon as each is there. One caller at a time; a second one waits.
    """

    run: Callable[[Sequence[Task], Callable[[int, Result], None]], list[Result]]
    close: Callable[[], None]


@dataclass
class _Worker:
    process: subprocess.Popen
    connection: Connection
    errors: IO[bytes]  # what it writes to standard error
    ready: bool = False  # its backend is built
    job: int | None = None  # index of its task
    since: float = 0.0  # when it started, or got its task


def open_pool(
    recipe: Recipe, workers: int, timeout: float | None = None, enough: Callable[[], bool] = lambda: False
) -> Pool:
    """Starts `workers` processes; each builds the backend while this process goes on.

    `timeout` is in seconds of wall time for each calculation; None waits forever. Once `enough()` holds, no other
    calculation is begun, and `run` raises Enough when the last has landed. Raises LabelError for a labeler that
    another process cannot import.
    """
    module = registry.get("labeler", recipe.name).__module__
    if module == "__main__":
        raise LabelError(
            f"label.workers: the labeler {recipe.name} is part of a script; move it to a module, or give 0"
        )
    greeting = (module, recipe.name, dict(recipe.options))
    slots: list[_Worker | None] = [_start(greeting) for _ in range(workers)]
    lock, closing = threading.Lock(), threading.Event()

    def run(tasks: Sequence[Task], landed: Callable[[int, Result], None]) -> list[Result]:
        with lock:
            if closing.is_set():
                raise LabelError("the pool is closed")
            results: list[Result | None] = [None] * len(tasks)
            tries = [0] * len(tasks)
            waiting = deque(range(len(tasks)))

            def finish(index: int, result: Result) -> None:
                results[index] = result
                landed(index, result)

            def lost(slot: int, reason: str, again: bool) -> None:
                """The worker is of no use any more; its task goes back or fails."""
                worker = slots[slot]
                assert worker is not None
                slots[slot] = None
                said = _end(worker)
                if worker.job is not None and again and tries[worker.job] < TRIES:
                    waiting.appendleft(worker.job)
                elif worker.job is not None:
                    spent = time.monotonic() - worker.since
                    finish(worker.job, failed(tasks[worker.job], f"{reason}{said and f': {said}'}", spent))

            def assign() -> None:
                for slot, worker in enumerate(slots):
                    if waiting and (worker is None or worker.job is None):
                        worker = slots[slot] = worker or _start(greeting)
                        worker.job = waiting.popleft()
                        tries[worker.job] += 1
                        _give(worker, tasks[worker.job])

            def expire() -> None:
                for slot, worker in enumerate(slots):
                    if worker is None or worker.job is None or time.monotonic() < _end_of(worker, timeout):
                        continue
                    if worker.ready:
                        lost(slot, f"timeout: the calculation took more than {timeout:g} s", again=False)
                    else:
                        lost(slot, f"the worker did not start in {STARTUP:g} s", again=True)

            def listen() -> None:
                for slot in _speaking(slots, timeout):
                    worker = slots[slot]
                    assert worker is not None
                    try:
                        message = unpacked(worker.connection.recv_bytes())
                    except (EOFError, OSError, ValueError, TypeError):
                        if closing.is_set():
                            raise LabelError("the pool is closed") from None
                        lost(slot, f"the worker died ({_how(worker.process)})", again=True)
                        continue
                    assert worker.job is not None
                    if worker.ready:
                        index, worker.job = worker.job, None
                        finish(index, Result(*message))
                    elif message:
                        lost(slot, f"the worker cannot build {recipe.name}: {message}", again=False)
                    else:
                        worker.ready = True
                        _give(worker, tasks[worker.job])

            try:
                while waiting or any(worker and worker.job is not None for worker in slots):
                    if waiting and enough():
                        waiting.clear()
                    assign()
                    expire()
                    listen()
            finally:
                # After an exception (Ctrl-C, a closed pool) nobody wants these answers.
                for slot, worker in enumerate(slots):
                    if worker and worker.job is not None:
                        slots[slot] = None
                        _end(worker)
            if any(result is None for result in results):
                raise Enough
            return [result for result in results if result is not None]

    def close() -> None:
        closing.set()
        for worker in tuple(slots):  # wakes a `run` in another thread, which then gives up the lock
            if worker:
                _kill(worker)
        with lock:
            for slot, worker in enumerate(slots):
                slots[slot] = None
                if worker:
                    _end(worker)

    return Pool(run, close)


def _start(greeting: tuple) -> _Worker:
    ours, theirs = Pipe()
    errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the worker
    # One thread each: the workers share the cores, and more threads do not give the same bits twice.
    environment = os.environ | dict.fromkeys(THREADS, "1")
    environment[OUTER_PATH] = os.environ.get("PYTHONPATH", "")
    environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "jaxal.label.worker", str(theirs.fileno()), str(os.getpid())],
        pass_fds=[theirs.fileno()],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # it would spoil the progress display
        stderr=errors,
        start_new_session=True,
    )
    theirs.close()
    with contextlib.suppress(OSError):  # a worker that is dead already is noticed when it should speak
        ours.send_bytes(packed(greeting))
    return _Worker(process, ours, errors, since=time.monotonic())


def _give(worker: _Worker, task: Task) -> None:
    """Starts the clock; the task itself is sent once the worker is ready."""
    worker.since = time.monotonic()
    if worker.ready:
        with contextlib.suppress(OSError):  # a dead worker is noticed when it should answer
            worker.connection.send_bytes(packed(task))


def _end_of(worker: _Worker, timeout: float | None) -> float:
    """When a busy worker has taken too long, on the monotonic clock."""
    limit = timeout if worker.ready else STARTUP
    return math.inf if limit is None else worker.since + limit


def _speaking(slots: Sequence[_Worker | None], timeout: float | None) -> list[int]:
    """Slots of busy workers that have something to read (or are dead), after waiting for one or a time limit."""
    busy = {slot: worker for slot, worker in enumerate(slots) if worker and worker.job is not None}
    if not busy:
        return []
    end = min(_end_of(worker, timeout) for worker in busy.values())
    patience = None if math.isinf(end) else max(0.0, end - time.monotonic())
    readable = wait([worker.connection for worker in busy.values()], patience)
    return [slot for slot, worker in busy.items() if worker.connection in readable]


def _end(worker: _Worker) -> str:
    """Ends a worker and all it has started. Returns the last line it wrote to standard error."""
    _kill(worker)
    worker.process.wait()
    worker.connection.close()
    with worker.errors as errors:
        errors.seek(0)
        lines = [line for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
    return one_line(lines[-1]) if lines else ""


def _kill(worker: _Worker) -> None:
    # The group outlives a worker that died by itself if a program it had started still runs.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(worker.process.pid, signal.SIGKILL)


def _how(process: subprocess.Popen) -> str:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5.0)
    code = process.returncode
    if code is None:
        return "it closed its pipe"
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
