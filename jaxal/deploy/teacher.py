"""A teacher: a model that labels for other processes, `python -m jaxal.deploy.teacher MODEL [--listen HOST:PORT]`.

Alone it speaks through its standard input and output with the process that started it (the labeler `teacher`), and ends
with it. With `--listen` it answers whoever connects, several at a time, one structure after the other; the host is
127.0.0.1 unless given. There is no authentication and no encryption: whoever reaches the port gets labels, so on a
shared network leave it on 127.0.0.1 and reach it through `ssh -L`. What is sent are numbers and texts, nothing that a
stranger could have executed.

On connecting it says who it is: [format, SHA-256 of the model, atomic numbers, pairs of charge and spin, version]. Then
every Task is answered by a Result (`jaxal.label.task.packed`), framed as by multiprocessing.connection.
"""

import argparse
import hashlib
import os
import queue
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from jaxal.data.labels import voigt_to_matrix
from jaxal.label.task import (
    LabelError,
    Result,
    Task,
    answered,
    check_task,
    code_version,
    failed,
    has_stress,
    one_line,
    packed,
    unpacked,
)

FORMAT = 2  # of the messages
LARGEST = 10_000_000  # bytes of a task: some 300,000 atoms


def load(path: Path, parts: Sequence[Path] = ()) -> tuple[bytes, Callable[[Task], Result]]:
    """What the teacher says of itself, and how it labels; `parts` are files that register parts of the model.

    Raises InputError where there is no such model, or no such part.
    """
    import ase

    from jaxal.core import plugins
    from jaxal.core.types import InputError
    from jaxal.deploy import model as models
    from jaxal.deploy.calculator import Calculator

    for part in parts:
        plugins.import_file(part)
    path = path / models.FILE_NAME if path.is_dir() else path
    calculator = Calculator(path)
    model = calculator.model
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    hello = [FORMAT, digest, list(model.table), [list(state) for state in model.states], code_version("jaxal")]

    def label(task: Task) -> Result:
        try:
            check_task(task)
            atoms = ase.Atoms(task.numbers, task.position, cell=task.cell, pbc=task.periodic)
            atoms.info = {"charge": task.charge, "spin": task.spin}
            calculator.calculate(atoms)
            results = calculator.results
            tensor = voigt_to_matrix(results["stress"]) if has_stress(task) else None
            return answered(task, results["energy"], results["forces"], tensor)
        except (LabelError, InputError) as error:
            return failed(task, str(error))
        except Exception as error:
            return failed(task, one_line(error))

    return packed(hello), label


def serve(receive: Callable[[], bytes], send: Callable[[bytes], None], label: Callable[[Task], Result]) -> None:
    """Answers tasks until the other end is gone, or sends what is no task."""
    while True:
        try:
            task = Task(*unpacked(receive()))
            task = task._replace(charge=int(task.charge), spin=int(task.spin))
            send(packed(label(task)))
        except (EOFError, OSError):
            return
        except Exception as error:  # a stranger's message
            print(f"jaxal.deploy.teacher: no task ({one_line(error)})", file=sys.stderr, flush=True)
            return


def over_pipes(path: Path, parts: Sequence[Path] = ()) -> None:
    """Serves the process at the other end of standard input and output; ends at once when that is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the run, which still wants its labels
    source, drain = Connection(os.dup(0), writable=False), Connection(os.dup(1), readable=False)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what a library prints must not get between the messages
    messages: queue.Queue[bytes] = queue.Queue()

    def listen() -> None:  # in a thread of its own: the end of the other process is noticed in mid-calculation
        try:
            while True:
                messages.put(source.recv_bytes(LARGEST))
        except (EOFError, OSError):
            os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    try:
        hello, label = load(path, parts)
    except Exception as error:
        drain.send_bytes(packed(one_line(error) if not isinstance(error, ValueError) else str(error)))
        return
    drain.send_bytes(hello)
    serve(messages.get, drain.send_bytes, label)


def over_network(path: Path, host: str, port: int, parts: Sequence[Path] = ()) -> None:
    """Serves everybody who connects, until it is ended."""
    hello, label = load(path, parts)
    busy = threading.Lock()

    def one_at_a_time(task: Task) -> Result:
        with busy:
            return label(task)

    def answer(client: socket.socket) -> None:
        with Connection(client.detach()) as connection:
            try:
                connection.send_bytes(hello)
            except OSError:
                return
            serve(lambda: connection.recv_bytes(LARGEST), connection.send_bytes, one_at_a_time)

    with socket.create_server((host, port)) as server:
        where = "{}:{}".format(*server.getsockname()[:2])
        print(f"jaxal.deploy.teacher: {path} answers at {where}, whoever asks", flush=True)
        while True:
            client, _ = server.accept()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            threading.Thread(target=answer, args=(client,), daemon=True).start()


def main(command_line: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 2 for a mistake of the user."""
    words = argparse.ArgumentParser(
        prog="python -m jaxal.deploy.teacher", description="Labels from a model, for others."
    )
    words.add_argument("model", type=Path, help="model file or run folder")
    words.add_argument("--listen", metavar="[HOST:]PORT", help="serve the network (host: 127.0.0.1); 0 takes any port")
    part = "Python file that registers its parts; may be given several times"
    words.add_argument("--part", type=Path, action="append", default=[], metavar="FILE", help=part)
    arguments = words.parse_args(command_line)
    if arguments.listen is None:
        over_pipes(arguments.model, arguments.part)
        return 0
    host, _, port = arguments.listen.rpartition(":")
    try:
        if not (port.isdecimal() and int(port) < 2**16):
            raise ValueError(f"--listen: {arguments.listen!r} has no port of 0 to 65535; give [HOST:]PORT")
        over_network(arguments.model, host or "127.0.0.1", int(port), arguments.part)
    except (ValueError, OSError) as error:  # InputError is a ValueError
        print(f"jaxal.deploy.teacher: error: {one_line(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
