"""When the exploration of a run is over, whether it makes sense to go on, and whether it is told to end."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxal import devices, memory, setup
from jaxal.memory import STORE, Progress, Run

STUCK = 200  # looks in a row at which no walker was physical
TRICKLE = 0.001  # chance of a probe at each look at a walker, so that the held-out labels are not only flagged ones


class Verdict(NamedTuple):
    """Both are empty as long as the run goes on."""

    why: str  # the exploration is over, for this reason
    wrong: str  # the run cannot go on, for this mistake


def verdict(run: Run, progress: Progress, quiet: float, timestep: float) -> Verdict:
    """What follows from `progress` and from the steps, `quiet`, since any walker last needed a label."""
    wrong = _wrong(run, progress)
    return Verdict("", wrong) if wrong else Verdict(_why(run, progress, quiet * timestep * 1e-3, timestep), "")


def _wrong(run: Run, progress: Progress) -> str:
    if progress.stuck >= STUCK:
        return (
            f"explore: no walker stayed physical for {progress.stuck} looks; lower explore.temperature or "
            "explore.timestep, raise gate.implausible, or give more label.initial"
        )
    if progress.asked >= 20 and progress.failed > 0.5 * progress.asked:
        return (
            f"label: {progress.failed} of {progress.asked} labels failed; see `reason` in {run.directory / STORE} "
            "and mend the method before going on"
        )
    return ""


def _why(run: Run, progress: Progress, quiet: float, timestep: float) -> str:
    stop = run.config.stop
    ps = progress.look * run.config.gate.every * timestep * 1e-3
    if progress.asked >= stop.labels:
        return f"label budget of {stop.labels}"
    if quiet >= stop.quiet:
        return f"quiet for {stop.quiet:g} ps"
    if stop.time is not None and ps >= stop.time:
        return f"{stop.time:g} ps of dynamics"
    if stop.wall is not None and memory.elapsed(run) >= stop.wall:
        return f"{stop.wall:g} s of wall time"
    if stop.error is not None:
        if len(progress.probes) >= stop.probes:
            found = float(np.sqrt(np.mean(progress.probes)))
            if found <= stop.error:
                return f"force RMSE {1e3 * found:.0f} meV/Å on {len(progress.probes)} fresh probe labels"
            progress.probing, progress.probes = False, []
        elif not progress.probing and progress.fold is not None:
            progress.probing = progress.fold <= stop.error
    return ""


def probe_rate(run: Run, progress: Progress) -> float:
    """Chance of each walker at each look to be a probe: a trickle, or enough for the fresh probes in two segments."""
    if not progress.probing:
        return TRICKLE
    return min(1.0, run.config.stop.probes / (2 * setup.LOOKS * run.config.explore.walkers))


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yields whether Ctrl-C was pressed. The exception alone can be lost: one raised while garbage is collected is.

    Several processes end together, after the segment in which the first was told to; pressed again, it ends at once.
    """
    pressed = threading.Event()
    alone = jax.process_count() == 1

    def handler(*_: Any) -> None:
        again = pressed.is_set()
        pressed.set()
        if alone or again:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return
    before = signal.signal(signal.SIGINT, handler)
    try:
        yield lambda: devices.from_first(pressed.is_set)
    except Exception:
        if pressed.is_set():  # raised inside a callback it comes back as an error of XLA
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, before)
