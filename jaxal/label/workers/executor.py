"""Where labels are calculated: one protocol for this process, worker processes and a cluster."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from jaxal.core import plugins, registry
from jaxal.label.task import Backend, Enough, LabelError, Result, Task, failed, one_line


class Recipe(NamedTuple):
    """How to build a backend, in this process or in another: a registered labeler and its options."""

    name: str
    options: dict[str, Any]

    def build(self) -> Backend:
        """The backend. Raises LabelError (or the ValueError of the factory) for options that cannot be."""
        return registry.get("labeler", self.name)(**self.options)

    def greeting(self, field: str, otherwise: str = "") -> list[Any]:
        """[module or file, name, options, files with parts]: what another process builds it from.

        Raises LabelError that names `field`, with `otherwise` as its end, where another cannot import the labeler.
        """
        module = plugins.importable("labeler", self.name)
        if module == "__main__":
            raise LabelError(f"{field}: the labeler {self.name} is part of a script; move it to a module{otherwise}")
        return [module, self.name, dict(self.options), list(map(str, plugins.files()))]


class Executor(NamedTuple):
    """Where labels are calculated. One thread calls it.

    Every task that was submitted lands once: a calculation that fails, and one whose worker is lost for good, is a
    Result with ok=False. Where nothing is at work `landed` does not wait. After `close`, which also wakes a waiting
    `landed`, both raise LabelError.
    """

    submit: Callable[[int, Task], None]  # (ticket, task); returns at once; a ticket is unique among those at work
    landed: Callable[[float], list[tuple[int, Result]]]  # finished since the last call; waits so many s for the first
    slots: int  # so many tasks it calculates at a time: more than that only wait inside it
    close: Callable[[], None]  # ends what is at work; idempotent, from any thread


class Setting(NamedTuple):
    """What a registered executor is opened with, beside its own options."""

    recipe: Recipe
    timeout: float | None  # s of wall time for one calculation
    workers: int  # label.workers
    folder: Path  # of the run: what the executor writes lies below


Open = Callable[[Setting], Executor]  # what a registered executor is: it may take a while, and raises LabelError


@contextmanager
def shared_executor(
    opener: Callable[[Recipe, float | None], Executor],
) -> Iterator[Callable[[Recipe, float | None], Executor]]:
    """Opens, for a labeler and a time limit, at most one executor, which is closed in the end.

    The first labels of a run and its exploration then share their workers: what a cluster has given is not given back
    in between. What one user has closed is closed for all once something was at work that nobody waits for.
    """
    opened: list[Executor] = []

    def shared(recipe: Recipe, timeout: float | None) -> Executor:
        if not opened:
            opened.append(opener(recipe, timeout))
        whole, at_work = opened[0], set[int]()

        def submit(ticket: int, task: Task) -> None:
            at_work.add(ticket)
            whole.submit(ticket, task)

        def landed(patience: float) -> list[tuple[int, Result]]:
            results = whole.landed(patience)
            at_work.difference_update(ticket for ticket, _ in results)
            return results

        def close() -> None:
            if at_work:
                whole.close()

        return Executor(submit, landed, whole.slots, close)

    try:
        yield shared
    finally:
        for executor in opened:
            executor.close()


def in_process(backend: Backend) -> Executor:
    """Calculates in the caller's thread, one task in each call of `landed`, whatever its patience.

    Nothing can end a calculation: a time limit needs another process.
    """
    waiting: deque[tuple[int, Task]] = deque()
    closed = []

    def submit(ticket: int, task: Task) -> None:
        refuse_closed(bool(closed))
        waiting.append((ticket, task))

    def landed(patience: float) -> list[tuple[int, Result]]:
        refuse_closed(bool(closed))
        if not waiting:
            return []
        ticket, task = waiting.popleft()
        try:
            return [(ticket, backend.calculate(task))]
        except Exception as error:  # a backend that breaks its promise must not end the program
            return [(ticket, failed(task, one_line(error)))]

    return Executor(submit, landed, 1, lambda: closed.append(True))


def refuse_closed(closed: bool) -> None:
    """Raises LabelError where an executor is used after its end."""
    if closed:
        raise LabelError("the executor is closed")


def run_all(
    executor: Executor,
    tasks: Sequence[Task],
    landed: Callable[[int, Result], None] = lambda index, result: None,
    enough: Callable[[], bool] = lambda: False,
) -> list[Result]:
    """The results in the order of the tasks, which are begun in this order; nothing else may be at work.

    `landed(index, result)` is called in this thread as soon as each is there. No more than `slots` tasks are handed
    over at a time: once `enough()` holds nothing else is begun, and Enough is raised when those begun have landed.
    After any other exception (Ctrl-C, an error of `landed`) nobody wants the answers, and the executor is closed.
    """
    results: dict[int, Result] = {}
    begun = 0
    try:
        while len(results) < len(tasks):
            stop = begun < len(tasks) and enough()
            while not stop and begun < len(tasks) and begun - len(results) < executor.slots:
                executor.submit(begun, tasks[begun])
                begun += 1
            if begun == len(results):  # told to stop, and all that was begun has landed
                break
            for index, result in executor.landed(math.inf):
                results[index] = result
                landed(index, result)
    except BaseException:
        executor.close()
        raise
    if len(results) < len(tasks):
        raise Enough
    return [results[index] for index in range(len(tasks))]
