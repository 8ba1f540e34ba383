"""Another interpreter at the end of a pipe: how it is started, how it begins and how it ends.

Each is a fresh interpreter in a process group of its own: no fork of a process that runs JAX, no second run of the
user's script, and Ctrl-C reaches only the process that decides what it means.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import IO, Any, NamedTuple

from jaxal.label.task import one_line, packed

OUTER_PATH = "JAXAL_OUTER_PYTHONPATH"  # the PYTHONPATH of the user, while ours finds what this process imports
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class Child(NamedTuple):
    """A process that was started, and our end of its pipe."""

    process: subprocess.Popen
    connection: Connection
    errors: IO[bytes]  # what it writes to standard error


def start(module: str, greeting: Sequence[Any], threads: int | None = None) -> Child:
    """Starts `python -m MODULE FD PARENT`, which hears `greeting` first. It sees what this process can import."""
    ours, theirs = Pipe()
    errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
    environment = dict(os.environ)
    if threads is not None:
        environment |= dict.fromkeys(THREADS, str(threads))
    environment[OUTER_PATH] = os.environ.get(OUTER_PATH, os.environ.get("PYTHONPATH", ""))
    environment["PYTHONPATH"] = import_path()
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", module, str(theirs.fileno()), str(os.getpid())],
        pass_fds=[theirs.fileno()],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,  # it would spoil the progress display
        stderr=errors,
        start_new_session=True,
    )
    theirs.close()
    with contextlib.suppress(OSError):  # one that is dead already is noticed when it should speak
        ours.send_bytes(packed(greeting))
    return Child(process, ours, errors)


def begin() -> tuple[Connection, int]:
    """In the process that `start` started: its end of the pipe, and the process that must stay alive.

    Gives the programs that are started from here the PYTHONPATH of the user: another Python has packages of its own.
    """
    os.environ.pop("PYTHONPATH", None)
    if outer := os.environ.pop(OUTER_PATH, ""):
        os.environ["PYTHONPATH"] = outer
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    os.set_inheritable(descriptor, False)  # a child that outlives us must not hold the pipe open
    return Connection(descriptor), parent


def import_path() -> str:
    """The PYTHONPATH by which another interpreter finds what this one can import."""
    return os.pathsep.join(path or os.getcwd() for path in sys.path)


def end(child: Child) -> str:
    """Ends the process and all it has started. Returns the last line it wrote to standard error."""
    kill(child)
    child.process.wait()
    child.connection.close()
    with child.errors as errors:
        errors.seek(0)
        lines = [line for line in errors.read().decode(errors="replace").splitlines() if line.strip()]
    return one_line(lines[-1]) if lines else ""


def kill(child: Child) -> None:
    """Ends its group, which outlives a process that died by itself if a program it had started still runs."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.process.pid, signal.SIGKILL)


def how(child: Child) -> str:
    """How a process that no longer answers has ended, in words."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.process.wait(timeout=5.0)
    code = child.process.returncode
    if code is None:
        return "it closed its pipe"
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
