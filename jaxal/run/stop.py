"""When the exploration of a run is over, whether it makes sense to go on, and whether it is told to end."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxal.config.loading import FILE_NAME
from jaxal.explore.timestep import too_long
from jaxal.program.step import CAUSES
from jaxal.run import assembly, session
from jaxal.run.session import RECENT, Progress, Run

# What to do where walkers are mostly rewound, by the cause that is most frequent.
REMEDIES = {
    "too uncertain": "give more label.initial, lower explore.temperature or timestep, or raise gate.implausible",
    "too close": "lower explore.timestep or explore.temperature, give more label.initial, or lower gate.closest",
    "too hot": "lower explore.timestep, give more label.initial, or raise gate.hottest",
    "in pieces": "lower explore.temperature or explore.timestep, or give more label.initial",
    "not finite": "lower explore.timestep, or give more label.initial",
}
SHOW_CURSOR = "\x1b[?25h"  # the display in a terminal hides it
TRICKLE = 0.001  # chance of a probe at each look at a walker, so that the held-out labels are not only flagged ones


class Verdict(NamedTuple):
    """Both are empty as long as the run goes on."""

    why: str  # the exploration is over, for this reason
    wrong: str  # the run cannot go on, for this mistake


def verdict(run: Run, progress: Progress, quiet: float, over: bool = False) -> Verdict:
    """What follows from `progress`, from the time, `quiet` in ps, since any walker last needed a label, and from
    whether all walkers have come to their end, `over`.
    """
    why = _why(run, progress, quiet) or ("all walkers have come to their end" if over else "")
    wrong = _wrong(run, progress, bool(why))
    return Verdict("", wrong) if wrong else Verdict(why, "")


def _wrong(run: Run, progress: Progress, over: bool) -> str:
    """What keeps a run from going on, or, where it is `over`, from having learned anything."""
    if rewound := _rewound(run, progress, over):
        return rewound
    if progress.asked >= 20 and progress.failed > 0.5 * progress.asked:
        return (
            f"label: {progress.failed} of {progress.asked} labels failed; see `reason` in {run.store} "
            "and mend the method before going on"
        )
    return ""


def _rewound(run: Run, progress: Progress, over: bool) -> str:
    """What to change where most looks at walkers were rewinds: of the latest `RECENT` segments, or of all there were
    where the run is over before so many.
    """
    if not progress.rewinds or (len(progress.rewinds) < RECENT and not over):
        return ""
    counts = np.sum(progress.rewinds, axis=0)
    looks = len(progress.rewinds) * assembly.LOOKS
    part = counts.sum() / (looks * len(run.walkers))
    if part <= 0.5:
        return ""
    order = [int(at) for at in np.argsort(-counts, kind="stable") if counts[at]]
    shares = ", ".join(f"{CAUSES[at + 1]} {100 * counts[at] / counts.sum():.0f} %" for at in order)
    heated = [system for system in run.systems if system.sampler.bath is not None]
    long = next(filter(None, (too_long(system.starts, system.sampler.timestep) for system in heated)), "")
    remedy = f"lower explore.timestep: {long}" if long else REMEDIES[CAUSES[order[0] + 1]]
    return (
        f"explore: {100 * part:.0f} % of the last {looks} looks at each walker were rewinds from frames that are not "
        f"physical ({shares}); in a new run {remedy}"
    )


def _why(run: Run, progress: Progress, quiet: float) -> str:
    stop, ps = run.config.stop, session.picoseconds(run, progress)
    if progress.asked >= stop.labels:
        return f"label budget of {stop.labels}"
    if quiet >= stop.quiet:
        return f"quiet for {stop.quiet:g} ps"
    if stop.time is not None and ps >= stop.time:
        return f"{stop.time:g} ps of dynamics"
    if stop.wall is not None and session.elapsed(run) >= stop.wall:
        return f"{stop.wall:g} s of wall time"
    if stop.error is not None:
        if len(progress.probes) >= stop.probes:
            rmse = float(np.sqrt(np.mean(progress.probes)))
            if rmse <= stop.error:
                return f"force RMSE {1e3 * rmse:.0f} meV/Å on {len(progress.probes)} fresh probe labels"
            progress.probing, progress.probes = False, []
        elif not progress.probing and progress.fold is not None:
            progress.probing = progress.fold <= stop.error
    return ""


def probe_rate(run: Run, progress: Progress) -> float:
    """Chance of each walker at each look to be a probe: a trickle, or enough for the fresh probes in two segments."""
    if not progress.probing:
        return TRICKLE
    return min(1.0, run.config.stop.probes / (2 * assembly.LOOKS * len(run.walkers)))


@contextmanager
def interruptible(directory: Path) -> Iterator[Callable[[], bool]]:
    """Yields whether this process was told to end, by Ctrl-C or SIGTERM.

    Whoever asks comes to an end in order: nothing is raised, for an exception raised while garbage is collected is
    lost, and one inside a callback ends as an error of XLA. Told again, the process ends at once, with status 130:
    what is on disk is whole at any moment. Not in the main thread, where Python hears no signals, it is never told.
    """
    event = threading.Event()

    def handler(number: int, _: Any) -> None:
        again = event.is_set()
        event.set()
        name = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
        if again:
            more = f"; `jaxal resume {directory}` continues" if (directory / FILE_NAME).exists() else ""
            _say(f"{SHOW_CURSOR if os.isatty(2) else ''}\njaxal: interrupted{more}\n")
            os._exit(130)
        _say(f"\njaxal: {name}: ends after the present segment (once more: at once)\n")

    if threading.current_thread() is not threading.main_thread():
        yield event.is_set
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield event.is_set
    finally:
        for number, what in before.items():
            signal.signal(number, what)


def _say(text: str) -> None:
    """Writes to standard error in a signal handler, where the display may be in the middle of a line."""
    with suppress(OSError):
        os.write(2, text.encode())
