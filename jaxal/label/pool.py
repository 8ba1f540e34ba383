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
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from typing import IO, Any

from jaxal.label.executor import Executor, Recipe, refuse_closed
from jaxal.label.task import Result, Task, failed, one_line, packed, unpacked
from jaxal.label.worker import OUTER_PATH

TRIES = 2  # of a calculation whose worker dies
STARTUP = 120.0  # s for a worker to import its method
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass
class _Job:
    ticket: int
    task: Task
    tries: int = 0


@dataclass
class _Worker:
    process: subprocess.Popen
    connection: Connection
    errors: IO[bytes]  # what it writes to standard error
    ready: bool = False  # its backend is built
    job: _Job | None = None
    since: float = 0.0  # when it started, or got its task


def open_pool(recipe: Recipe, workers: int, timeout: float | None = None) -> Executor:
    """Starts `workers` processes; each builds the backend while this process goes on.

    `timeout` is in seconds of wall time for each calculation; None waits forever. It is looked at in `submit` and
    `landed`, and an answer that is there counts, however late. Raises LabelError for a labeler that another process
    cannot import.
    """
    greeting = recipe.greeting("label.workers")
    slots: list[_Worker | None] = [_start(greeting) for _ in range(workers)]
    waiting: deque[_Job] = deque()
    finished: list[tuple[int, Result]] = []
    lock, closing = threading.Lock(), threading.Event()

    def lost(slot: int, reason: str, again: bool) -> None:
        """The worker is of no use any more; its task goes back or fails."""
        worker = slots[slot]
        assert worker is not None
        slots[slot] = None
        said = _end(worker)
        if worker.job is not None and again and worker.job.tries < TRIES:
            waiting.appendleft(worker.job)
        elif worker.job is not None:
            spent = time.monotonic() - worker.since
            finished.append((worker.job.ticket, failed(worker.job.task, f"{reason}{said and f': {said}'}", spent)))

    def assign() -> None:
        for slot, worker in enumerate(slots):
            if waiting and (worker is None or worker.job is None):
                worker = slots[slot] = worker or _start(greeting)
                worker.job = waiting.popleft()
                worker.job.tries += 1
                _give(worker)

    def listen(patience: float) -> None:
        """Reads what the workers say, after waiting for the first of them."""
        speakers = {w.connection: slot for slot, w in enumerate(slots) if w and (w.job is not None or not w.ready)}
        for connection in wait(list(speakers), None if math.isinf(patience) else patience):
            slot = speakers[connection]  # pyright: ignore[reportArgumentType]
            worker = slots[slot]
            assert worker is not None
            try:
                message = unpacked(worker.connection.recv_bytes())
            except (EOFError, OSError, ValueError, TypeError):
                refuse_closed(closing.is_set())
                lost(slot, f"the worker died ({_how(worker.process)})", again=True)
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
            look(0.0)

    def landed(patience: float) -> list[tuple[int, Result]]:
        end = time.monotonic() + patience
        with lock:
            refuse_closed(closing.is_set())
            look(0.0)
            while not finished and any(worker and worker.job for worker in slots) and time.monotonic() < end:
                nearest = min(_end_of(worker, timeout) for worker in slots if worker)
                look(max(0.0, min(nearest, end) - time.monotonic()))
                refuse_closed(closing.is_set())  # a worker that took another's place meanwhile would not wake us
            found, finished[:] = list(finished), []
            return found

    def look(patience: float) -> None:
        listen(patience)
        expire()
        assign()

    def close() -> None:
        closing.set()
        for worker in tuple(slots):  # wakes a `landed` in another thread, which then gives up the lock
            if worker:
                _kill(worker)
        with lock:
            waiting.clear()
            for slot, worker in enumerate(slots):
                slots[slot] = None
                if worker:
                    _end(worker)

    return Executor(submit, landed, workers, close)


def _start(greeting: list[Any]) -> _Worker:
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


def _give(worker: _Worker) -> None:
    """Starts the clock; the task itself is sent once the worker is ready."""
    worker.since = time.monotonic()
    if worker.ready and worker.job is not None:
        with contextlib.suppress(OSError):  # a dead worker is noticed when it should answer
            worker.connection.send_bytes(packed(worker.job.task))


def _end_of(worker: _Worker, timeout: float | None) -> float:
    """When a busy worker has taken too long, on the monotonic clock; never for an idle one."""
    limit = timeout if worker.ready else STARTUP
    return math.inf if limit is None or worker.job is None else worker.since + limit


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
