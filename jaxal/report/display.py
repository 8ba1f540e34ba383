"""What a run shows while it works: a live panel in a terminal, one line for each update elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text


class Status(NamedTuple):
    """How a run stands. What is not known yet is None."""

    phase: str
    elapsed: float  # s
    picoseconds: float = 0.0  # of dynamics, per walker
    labels: int = 0  # paid for, failed ones included
    failed: int = 0
    budget: int = 0  # labels at most; 0 = none
    gate_rate: float | None = None  # fraction of the looks at a walker that asked for a label
    estimated_error: float | None = None  # eV/Å, what the gate believes
    true_error: float | None = None  # eV/Å, what new labels showed
    eta: float | None = None  # s
    message: str = ""
    waiting: int | None = None  # structures that wait for a label, in a run that does not wait for them
    running: int | None = None  # labels at work


def clock(seconds: float) -> str:
    """A time as `m:ss`, or `h:mm:ss` from an hour on."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hour, minute = divmod(minutes, 60)
    return f"{hour}:{minute:02d}:{second:02d}" if hour else f"{minute}:{second:02d}"


def line(status: Status) -> str:
    """A status as one line of text; errors in meV/Å."""
    return "  ".join(f"{name} {value}" if name else value for name, value in _items(status))


def _items(status: Status) -> Iterator[tuple[str, str]]:
    yield "", f"{clock(status.elapsed)} {status.phase}"
    yield "ps", f"{status.picoseconds:.2f}"
    failed = f" ({status.failed} failed)" if status.failed else ""
    yield "labels", f"{status.labels}{f'/{status.budget}' if status.budget else ''}{failed}"
    if status.running is not None:
        yield "at work", f"{status.running}"
        yield "waiting", f"{status.waiting}"
    if status.gate_rate is not None:
        yield "gate", f"{100 * status.gate_rate:.1f}%"
    if status.estimated_error is not None:
        yield "estimated", f"{1e3 * status.estimated_error:.0f} meV/Å"
    if status.true_error is not None:
        yield "true", f"{1e3 * status.true_error:.0f} meV/Å"
    if status.eta is not None:
        yield "left", clock(status.eta)
    if status.message:
        yield "", status.message


def _panel(status: Status) -> Table:
    """The live picture: the line as two columns, and how much of the label budget is used."""
    table = Table.grid(padding=(0, 2))
    for name, value in _items(status):
        table.add_row(Text(name, style="dim"), Text(value, style="" if name else "bold"))
    if status.budget:
        table.add_row("", ProgressBar(total=status.budget, completed=min(status.labels, status.budget), width=40))
    return table


@contextlib.contextmanager
def display(file: TextIO | None = None, every: float = 10.0) -> Iterator[Callable[[Status], None]]:
    """Shows the progress of a run as long as the context lasts.

    Yields the function to call with each new `Status`. In a terminal the picture is redrawn in place, its clock
    goes on between updates, and the last picture stays. Elsewhere (a file, a pipe, a terminal that cannot redraw) a
    status is one line, written when the phase is new, when there is a message, or when `every` s have passed since the
    last line. `file` is standard error by default: standard output is for results.
    """
    console = Console(file=file, stderr=file is None, highlight=False)
    if not console.is_terminal or console.is_dumb_terminal:
        last: Status | None = None

        def write(status: Status) -> None:
            nonlocal last
            due = last is None or status.phase != last.phase or status.elapsed >= last.elapsed + every
            if due or status.message:
                console.print(line(status), markup=False, soft_wrap=True)
                last = status

        yield write
        return

    shown, since = Status("starting", 0.0), time.monotonic()

    def picture() -> Table:
        return _panel(shown._replace(elapsed=shown.elapsed + time.monotonic() - since))

    def show(status: Status) -> None:
        nonlocal shown, since
        shown, since = status, time.monotonic()
        live.refresh()

    with Live(console=console, get_renderable=picture, refresh_per_second=2) as live:
        yield show
