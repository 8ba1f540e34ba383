"""A worker process: `python -m jaxal.label.workers.worker FD PARENT` calculates what comes through the pipe FD.

PARENT is the id of the process that must stay alive.

It gets the greeting of a labeler's recipe and answers "" when it is built, or why not; then it answers every Task with
a Result until the pipe closes. It never imports JAX.
"""

import os
import signal
import threading
import time
from multiprocessing.connection import Connection

from jaxal.core import plugins, registry
from jaxal.label.task import Task, failed, one_line, packed, unpacked
from jaxal.label.workers.process import begin


def serve(connection: Connection) -> None:
    """Answers until the other end of the pipe is closed."""
    try:
        module, name, options, files = unpacked(connection.recv_bytes())
        try:
            plugins.know(files)
            plugins.import_module(module)
            backend = registry.get("labeler", name)(**options)
        except Exception as error:
            connection.send_bytes(packed(one_line(error)))
            return
        connection.send_bytes(packed(""))
        while True:
            task = Task(*unpacked(connection.recv_bytes()))
            try:
                answer = packed(backend.calculate(task))
            except Exception as error:  # a backend that breaks its promise
                answer = packed(failed(task, one_line(error)))
            connection.send_bytes(answer)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _watch(parent: int) -> None:
    """Ends this process and its children when the parent is gone: nobody waits for the label any more."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    connection, parent = begin()
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    serve(connection)
