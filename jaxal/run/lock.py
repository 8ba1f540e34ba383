"""One process at a time works on a run folder: a lock that the system takes back from a process that dies."""

import errno
import fcntl
import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxal.core.types import InputError

FILE_NAME = "lock"
_UNABLE = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP}  # of a file system that cannot lock


@contextmanager
def held(directory: Path) -> Iterator[None]:
    """Holds the folder, which must be there. Raises InputError, with process and host, where another one does.

    The file stays when the lock is given back: were it removed, two processes could hold two files of one name.
    """
    path = directory / FILE_NAME
    with open(path, "a+") as file:  # whoever only tries must not empty it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{directory}: {_holder(path)} is at work on it; wait for its end, or end it") from None
        except OSError as error:
            if error.errno not in _UNABLE:
                raise
            warnings.warn(f"{directory}: this file system cannot lock: see that one process works on it", stacklevel=3)
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text())
        return f"process {int(holder['pid'])} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # it has the lock and has not written yet
        return "another process"
