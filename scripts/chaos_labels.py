"""Labelers for `chaos.py`: GFN2 that takes down what it calculates, and GFN2 that fails in every way there is."""

import hashlib
import os
import signal
import time
from pathlib import Path

import numpy as np

from jaxal.core.registry import register
from jaxal.label.methods.tblite import tblite
from jaxal.label.store.database import label_key
from jaxal.label.task import Backend, Result, Task, failed

FAILURES = ("unconverged", "crash", "hang", "nan", "nonsense")


@register("labeler")
def counted(*, log: str) -> Backend:
    """GFN2-xTB; appends the key of every finished calculation to the file `log`, apart from the store."""
    inner = tblite()
    version = inner.version

    def calculate(task: Task) -> Result:
        result = inner.calculate(task)
        line = f"{label_key(task, inner.method, version)}\n".encode()
        descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(descriptor, line)  # one write: a kill leaves all of it or nothing
        os.close(descriptor)
        return result

    return Backend(calculate, inner.check, inner.method, version)


def fate(position: np.ndarray, share: float, salt: int) -> str:
    """How the label of a structure fails, one of `FAILURES`; empty for the others, all but a `share` of them."""
    digest = hashlib.sha256(f"{salt}".encode() + np.round(position, 6).tobytes()).digest()
    fraction = int.from_bytes(digest[:8]) / 2**64
    return FAILURES[int(fraction / share * len(FAILURES))] if fraction < share else ""


@register("labeler")
def failing(*, share: float, salt: int, log: str) -> Backend:
    """GFN2-xTB of which a fixed `share` of structures fails, each in its own way (`fate`).

    The crash and the hang need `workers: 1` or more and a `timeout`. What was chosen is appended to the file `log`.
    """
    inner = tblite()

    def calculate(task: Task) -> Result:
        kind = fate(task.position, share, salt) if share else ""
        if kind:
            with Path(log).open("a") as file:
                file.write(f"{label_key(task, inner.method, inner.version)} {kind}\n")
        if kind == "unconverged":
            return failed(task, "the SCF did not converge in 250 iterations")
        if kind == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if kind == "hang":
            time.sleep(3600)
        result = inner.calculate(task)
        if kind == "nan":
            return result._replace(energy=float("nan"))
        if kind == "nonsense":  # two atoms on top of each other, calculated without complaint
            squeezed = task.position.copy()
            direction = squeezed[1] - squeezed[0]
            squeezed[1] = squeezed[0] + 0.05 * direction / np.linalg.norm(direction)
            wrong = inner.calculate(task._replace(position=squeezed))
            return wrong._replace(ok=True, reason="") if wrong.ok else wrong
        return result

    return Backend(calculate, inner.check, inner.method, inner.version)
