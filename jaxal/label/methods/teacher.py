"""Labels from a trained model in another process: a large committee teaches a small one, on a device of its own."""

import contextlib
import hashlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Annotated, NamedTuple

from jaxal.core import plugins
from jaxal.core.registry import register
from jaxal.core.units import Unit
from jaxal.data.electrons import listed, symbol
from jaxal.label.scratch import arguments, check_program
from jaxal.label.task import (
    Backend,
    LabelError,
    Result,
    Task,
    answered,
    check_task,
    code_version,
    failed,
    guarded,
    has_stress,
    one_line,
    packed,
    unpacked,
)

# Started, never imported: it uses JAX, which a host labeler must not, and stands above this module.
SERVER = f"{__name__.partition('.')[0]}.deploy.teacher"
FORMAT = 2  # of the messages, as there
STARTUP = 300.0  # s, to load JAX and the model
CONNECTING = 10.0  # s
LARGEST = 100_000_000  # bytes of an answer


class _Hello(NamedTuple):
    """What a teacher says of itself."""

    format: int
    digest: str  # SHA-256 of the model file
    table: list[int]  # atomic numbers
    states: list[list[int]]  # pairs of charge and spin
    version: str


class _Line(NamedTuple):
    """An open line to a teacher: one connection in both directions, or two."""

    receive: Connection
    send: Connection
    process: subprocess.Popen | None = None  # where it was started here
    errors: IO[bytes] | None = None  # what it writes to standard error


@register("labeler")
def teacher(
    *,
    model: Path | None = None,
    address: str = "",
    python: Sequence[str] = (),
    patience: Annotated[float, Unit("s", 0, True)] = 600.0,
) -> Backend:
    """A model of jaxal in another process: its committee mean, at the charges and spins it was trained at.

    `model` is the model.npz of an earlier run. The process is started once, for all labels (of each worker), and again
    should it die; it ends with this one. `python` starts another interpreter that has jaxal, on another device or
    host: [env, CUDA_VISIBLE_DEVICES=1, /opt/venv/bin/python], or [ssh, node, python3] where the file has the same path.
    Or `address` is host:port of a teacher that somebody has started with `python -m jaxal.deploy.teacher MODEL --listen
    host:port`; it asks nobody for a password. With both, the teacher there must have this very model.
    A label that takes longer than `patience` has failed; the first one compiles. The key of a label holds a hash of
    the model file.
    """
    if not model and not address:
        raise LabelError("label.model: missing; give the model.npz of a run, or label.address of a teacher at work")
    if address and python:
        raise LabelError("label.python: the teacher at label.address is at work already; leave it out")
    words = (*(arguments(python, "label.python") if python else (sys.executable,)),)
    digest = _digest(model) if model else ""
    lines: list[_Line] = []  # none, or the one that is open
    hellos: list[_Hello] = []  # of the last teacher met
    busy = threading.Lock()

    def opened() -> _Line:
        """A line whose teacher has said who it is. Raises LabelError where there is none."""
        line = _called(address) if address else _started(words, model or Path(), bool(python))
        try:
            hello = _greeting(line, address, CONNECTING if address else STARTUP)
            known = digest or (hellos[0].digest if hellos else "")
            if known and hello.digest != known:
                field = "address" if address else "model"
                raise LabelError(f"label.{field}: the teacher has another model now ({hello.digest[:16]}); start anew")
        except BaseException:
            _end(line)
            raise
        hellos[:] = [hello]
        return line

    def refuse(task: Task) -> None:
        check_task(task)
        hello = hellos[0]
        for number in sorted(set(task.numbers.tolist()) - set(hello.table)):
            known = ", ".join(map(symbol, hello.table))
            raise LabelError(f"label: the teacher does not know {symbol(number)}; its model was trained on {known}")
        known = [(charge, spin) for charge, spin in hello.states]
        if (task.charge, task.spin) not in known:
            name = "charge" if task.charge not in {charge for charge, _ in known} else "spin"
            value = getattr(task, name)
            raise LabelError(f"{name}: {value} does not fit; the teacher's model was trained at {listed(known)}")

    def check(task: Task) -> None:
        if not address:
            check_program(words, "give the interpreter of an environment with jaxal", "label.python")
        with busy:
            if not hellos:  # it is heard once, and not kept: who checks need not be who calculates
                _end(opened())
        refuse(task)

    def calculate(task: Task) -> Result:
        with busy:
            if lines and _fell(lines[0]):  # between two labels: nothing is lost
                _end(lines.pop())
            if not lines:
                lines.append(opened())
            refuse(task)
            try:
                lines[0].send.send_bytes(packed(task))
                if not lines[0].receive.poll(patience):
                    _end(lines.pop())
                    return failed(task, f"timeout: the teacher took more than {patience:g} s")
                result = Result(*unpacked(lines[0].receive.recv_bytes(LARGEST)))
            except (EOFError, OSError):
                return failed(task, _end(lines.pop()) or f"the teacher at {address} is gone")
            except BaseException:  # half an answer would be taken for that to the next question
                _end(lines.pop())
                raise
        stress = result.stress if has_stress(task) else None
        return answered(task, result.energy, result.force, stress) if result.ok else result

    weakref.finalize(calculate, _end_all, lines)
    if address:
        _end(opened())
    return Backend(
        guarded(calculate),
        check,
        f"jaxal model {(digest or hellos[0].digest)[:16]}",
        hellos[0].version if hellos else code_version("jaxal"),
    )


def _digest(model: Path) -> str:
    try:
        return hashlib.sha256(Path(model).read_bytes()).hexdigest()
    except OSError as error:
        raise LabelError(f"label.model: cannot read {model} ({error.strerror}); give the model.npz of a run") from error


def _started(words: Sequence[str], model: Path, foreign: bool) -> _Line:
    """A teacher in a process of its own. Its pipes are all that holds it: it ends when this process does."""
    environment = dict(os.environ)
    if not foreign:  # the packages that this process sees
        environment["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    parts = [word for file in plugins.files() for word in ("--part", str(file))]
    errors = tempfile.TemporaryFile()  # noqa: SIM115  closed with the line
    try:
        process = subprocess.Popen(
            [*words, "-P", "-m", SERVER, str(Path(model).resolve()), *parts],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    except OSError as error:
        errors.close()
        raise LabelError(f"label.python: cannot start {words[0]} ({error.strerror})") from error
    assert process.stdin and process.stdout
    with process.stdin, process.stdout:
        send = Connection(os.dup(process.stdin.fileno()), readable=False)
        return _Line(Connection(os.dup(process.stdout.fileno()), writable=False), send, process, errors)


def _called(address: str) -> _Line:
    """A line to a teacher at host:port. Raises LabelError where nobody answers."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise LabelError(f"label.address: {address!r} is no address; give host:port, such as localhost:5005")
    try:
        caller = socket.create_connection((host, int(port)), timeout=CONNECTING)
    except (OSError, OverflowError) as error:
        raise LabelError(
            f"label.address: no teacher answers at {address} ({one_line(str(error))}); start one there with "
            "`python -m jaxal.deploy.teacher MODEL --listen host:port`"
        ) from error
    caller.settimeout(None)
    connection = Connection(caller.detach())
    return _Line(connection, connection)


def _greeting(line: _Line, address: str, seconds: float) -> _Hello:
    """What the teacher says first. Raises LabelError where it says nothing, or that it cannot."""
    field = "label.address: what answers" if address else "label.python: the teacher"
    try:
        spoke = line.receive.poll(seconds)
        said = unpacked(line.receive.recv_bytes(LARGEST)) if spoke else None
    except (EOFError, OSError, ValueError) as error:
        raise LabelError(f"{field} did not start: {_end(line) or one_line(error)}") from error
    if not spoke:
        raise LabelError(f"{field} said nothing in {seconds:g} s")
    if isinstance(said, str):
        raise LabelError(f"label.model: {said}")
    if not isinstance(said, list) or len(said) != len(_Hello._fields) or said[0] != FORMAT:
        raise LabelError(f"{field} is no teacher of this version of jaxal")
    return _Hello(*said)


def _fell(line: _Line) -> bool:
    """Whether an idle line is of no use any more: a teacher that is not asked has nothing to say but its end."""
    try:
        return line.receive.poll(0)
    except OSError:
        return True


def _end(line: _Line) -> str:
    """Closes a line, ends the process at its other end, and returns how that had ended by itself if it had."""
    if line.process is None:
        with contextlib.suppress(OSError):
            line.receive.close()
        return ""
    with contextlib.suppress(subprocess.TimeoutExpired):
        line.process.wait(0.2)  # one whose pipe has just closed is about to be gone
    code = line.process.poll()
    line.process.kill()
    line.process.wait()
    how, said = "", []
    for connection in (line.receive, line.send):
        with contextlib.suppress(OSError):
            connection.close()
    if line.errors and not line.errors.closed:
        with line.errors as errors:
            errors.seek(0)
            said = [text for text in errors.read().decode(errors="replace").splitlines() if text.strip()]
    if code is not None:
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
    return f"the teacher died ({how or 'it closed its pipe'}){f': {said[-1]}' if said else ''}"


def _end_all(lines: list[_Line]) -> None:
    while lines:
        _end(lines.pop())
