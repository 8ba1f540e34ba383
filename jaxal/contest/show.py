"""How a contest stands, while it works: a bar in a terminal, a line for each finished round elsewhere."""

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Show = Callable[..., None]  # (text, rounds finished since the last call, only for a terminal)


@contextlib.contextmanager
def display(total: int) -> Iterator[Show]:
    """Yields the function that shows a text and counts finished rounds, of which there are `total`."""
    console = Console(stderr=True, highlight=False)
    columns = (
        BarColumn(30),
        MofNCompleteColumn(),
        TextColumn("rounds"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(elapsed_when_finished=False),
        TextColumn("{task.description}", markup=False),
    )
    live = console.is_terminal and not console.is_dumb_terminal
    bar = Progress(*columns, console=console, disable=not live)
    with bar:
        row = bar.add_task("", total=total)
        count = 0

        def show(text: str, rounds: int = 0, fleeting: bool = False) -> None:
            nonlocal count
            count += rounds
            bar.update(row, advance=rounds, description=text)
            if not live and not fleeting:
                console.print(f"{count}/{total}  {text}", markup=False, soft_wrap=True)

        yield show
