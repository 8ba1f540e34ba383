"""Labels on a cluster, through Parsl: blocks of workers that come and go, and labels that outlive them.

Parsl runs in a process of its own, the broker (`broker`): its threads, its signals and its pickles stay out of the
process that runs JAX, and whatever ends that one, the broker sees its pipe closed and gives the blocks back.
"""

import contextlib
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from jaxal.core import plugins
from jaxal.core.registry import register
from jaxal.core.units import Unit
from jaxal.label.task import LabelError, Result, Task, check_package, packed, unpacked
from jaxal.label.workers import process
from jaxal.label.workers.executor import Executor, Open, Recipe, Setting, refuse_closed, run_all
from jaxal.label.workers.pool import open_pool

STARTUP, CLOSING = 180.0, 60.0  # s for the broker to start, and to give its blocks back
Count = Annotated[int, Unit("", 1)]
Seconds = Annotated[float, Unit("s", 0, True)]


@register("executor")
def slurm(
    *,
    partition: str = "",
    account: str = "",
    blocks: Count = 1,
    first_blocks: Annotated[int, Unit("", 0)] = 1,
    nodes: Count = 1,
    workers: Count = 1,
    cores: Count = 1,
    memory: Count | None = None,
    exclusive: bool = False,
    walltime: Annotated[float, Unit("s", 60)] = 3600.0,
    idle: Seconds = 300.0,
    lost_after: Annotated[float, Unit("s", 2)] = 20.0,
    launcher: Literal["simple", "srun"] = "simple",
    scheduler_options: Sequence[str] = (),
    worker_init: Sequence[str] = (),
    address: str = "",
    interface: str = "",
) -> Open:
    """Slurm: blocks of nodes, asked for by sbatch as there is work, through Parsl (`pip install '.[cluster]'`).

    At most `blocks` jobs at a time, `first_blocks` of them at once, each of `nodes` nodes for at most `walltime` (s);
    they are given back after `idle` (s) without a label. On every node `workers` labels at a time, `cores` cores for
    each, and `memory` (GB) for all of them. With `nodes` above 1 the launcher must be srun. `scheduler_options` are
    lines "#SBATCH ...", `worker_init` lines of shell that prepare a node ("module load orca"). The nodes reach this
    host at `address`, or at that of a network `interface`; by default all are tried. A node that has not been heard
    of for `lost_after` (s) is lost and its labels are calculated anew elsewhere.
    """
    _check("slurm", "sbatch", "squeue", "scancel")
    if nodes > 1 and launcher != "srun":
        raise LabelError(f"executor.launcher: simple starts workers on one of {nodes} nodes only; give srun")
    return _opener("slurm", dict(locals()))


@register("executor")
def parsl_local(
    *,
    workers: Count = 1,
    cores: Count = 1,
    lost_after: Annotated[float, Unit("s", 2)] = 20.0,
    worker_init: Sequence[str] = (),
) -> Open:
    """Workers on this host through Parsl, as it would be on a cluster (`pip install '.[cluster]'`).

    `workers` labels at a time, each with `cores` threads; `worker_init` and `lost_after` (s) are those of slurm.
    """
    _check("parsl_local")
    return _opener("parsl_local", dict(locals()))


@register("executor")
def parsl(*, config: Path, slots: Annotated[int, Unit("", 0)] = 0, threads: Count = 1) -> Open:
    """Any Parsl configuration: a Python file of yours that defines `config` (`pip install '.[cluster]'`).

    The file `config` is run as it stands: it is code, give only your own. `slots` labels are handed over at a time;
    0 asks the executors (blocks x nodes x workers). Each label has so many `threads`. On its workers jaxal and the
    labeler must be importable.
    """
    _check("parsl")
    return _opener("parsl", {"config": str(config), "slots": slots, "threads": threads})


def calculate(recipe: bytes, task: bytes) -> bytes:
    """On a worker of Parsl: one label in a process of its own, which can crash or hang without taking this one along.

    `recipe` is a greeting with timeout and threads at its end, packed, and the answer a Result. The process is kept for
    the next label of the same recipe.
    """
    if getattr(_kept, "recipe", None) != recipe:
        if hasattr(_kept, "pool"):
            _kept.pool.close()
        elif multiprocessing.parent_process() is not None:  # a child of the node's manager
            threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
        module, name, options, files, timeout, threads = unpacked(recipe)
        plugins.know(files)
        plugins.import_module(module)
        _kept.pool, _kept.recipe = open_pool(Recipe(name, options), 1, timeout, threads), recipe
    (result,) = run_all(_kept.pool, [Task(*unpacked(task))])
    return packed(result)


def _end_with(parent: int) -> None:
    """Ends this process when its parent is gone: the label is calculated elsewhere by then."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


_kept = threading.local()  # a worker of Parsl may be a thread


def _check(name: str, *programs: str) -> None:
    """Raises LabelError where Parsl or a program that it starts is missing."""
    try:
        check_package("parsl", "'.[cluster]'")
    except LabelError as error:
        raise LabelError(f"executor.name: {name}: {error}") from None
    for program in programs:
        if shutil.which(program) is None:
            raise LabelError(f"executor.name: {name}: there is no program {program!r}; run this where Slurm's are")


def _opener(kind: str, options: dict[str, Any]) -> Open:
    def opened(setting: Setting) -> Executor:
        folder = (setting.folder / "executor").resolve()
        if any(letter.isspace() for letter in str(folder)):
            raise LabelError(
                f"executor.name: {kind}: Parsl cannot do with a blank in {str(folder)!r}; use another folder"
            )
        recipe = [*setting.recipe.greeting("executor.name"), setting.timeout]
        return open_broker([kind, options, recipe, str(folder)])

    return opened


def open_broker(greeting: Sequence[Any]) -> Executor:
    """Starts the broker and waits until Parsl is up; blocks may come later.

    `greeting` is (kind, options, [*greeting of the recipe, timeout], folder). Raises LabelError with its reason where
    Parsl does not start. Once the executor can do nothing more (three blocks have failed one after another),
    `landed` raises LabelError: no label is failed by that.
    """
    child = process.start("jaxal.label.workers.broker", greeting)
    closing, sending, ending = threading.Event(), threading.Lock(), threading.Lock()
    at_work: set[int] = set()
    ended: list[str] = []

    def end() -> str:
        with ending:
            if not ended:
                ended.append(process.end(child))
            return ended[0]

    def next_message(patience: float) -> Any:
        """The next message, None if there is none in time. Raises LabelError where the broker has ended."""
        try:
            if not child.connection.poll(None if patience == float("inf") else patience):
                return None
            return unpacked(child.connection.recv_bytes())
        except (EOFError, OSError, ValueError):
            refuse_closed(closing.is_set())
            how = process.how(child)
            raise LabelError(f"executor: the broker of {greeting[0]} died ({how}): {end()}") from None

    try:
        hello = next_message(STARTUP)
        if hello is None or hello[0]:
            raise LabelError(f"executor: {hello[0] if hello else f'Parsl did not start in {STARTUP:g} s'}")
    except BaseException:
        end()
        raise

    def submit(ticket: int, task: Task) -> None:
        refuse_closed(closing.is_set())
        at_work.add(ticket)
        with sending, contextlib.suppress(OSError):  # a broker that is dead is noticed when it should answer
            child.connection.send_bytes(packed([ticket, packed(task)]))

    def landed(patience: float) -> list[tuple[int, Result]]:
        refuse_closed(closing.is_set())
        until = time.monotonic() + patience
        results: list[tuple[int, Result]] = []
        while at_work and (message := next_message(0.0 if results else max(0.0, until - time.monotonic()))) is not None:
            ticket, answer = message
            refuse_closed(closing.is_set())
            if ticket is None:
                raise LabelError(f"executor: {answer}")
            at_work.discard(ticket)
            results.append((ticket, Result(*unpacked(answer))))
        return results

    def close() -> None:
        if not closing.is_set():
            closing.set()
            with sending, contextlib.suppress(OSError):
                child.connection.send_bytes(packed(None))
        with contextlib.suppress(Exception):
            child.process.wait(CLOSING)
        end()

    return Executor(submit, landed, int(hello[1]), close)
