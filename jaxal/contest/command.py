"""`jaxal contest`: every strategy on every task, over seeds, and what the results say."""

import argparse
import sys
from pathlib import Path
from typing import Any


def add(contest: argparse.ArgumentParser) -> None:
    """The arguments of the command, besides those of a configuration."""
    contest.add_argument("--dir", type=Path, help="its folder; a contest that was begun goes on (default: runs/NAME)")
    contest.add_argument("--only", default="", metavar="NAMES", help="strategies and tasks to work on, as random,lcmd")
    contest.set_defaults(command=_contest)


def _contest(arguments: argparse.Namespace) -> None:
    from jaxal.contest import schema
    from jaxal.core import compilation
    from jaxal.run import assembly

    contest = schema.load(arguments.config, arguments.overrides)
    folder = arguments.dir or Path("runs") / arguments.config.resolve().stem
    assembly.dtype_of(contest.precision)
    compilation.keep()
    try:
        print(run(contest, folder, tuple(name for name in arguments.only.split(",") if name)))
    except KeyboardInterrupt:
        print(f"\njaxal: the same command goes on with {folder}", file=sys.stderr)
        raise


def run(contest: Any, folder: Path, only: tuple[str, ...] = ()) -> Path:
    """Holds a contest in a folder, or goes on with it; returns the path of its page.

    `only` names the strategies, and the tasks, to work on; without names all. Raises InputError for every mistake,
    before anything is computed.
    """
    from jaxal.contest import data as datas
    from jaxal.contest import page, records, schema
    from jaxal.contest.arena import arena as ready
    from jaxal.contest.show import display
    from jaxal.run import lock

    entered = schema.entrants(contest)
    tasks, chosen = _only(contest, entered, only)
    for name in tasks:
        datas.check(name, contest.tasks[name], chosen)
    if folder.exists() and not folder.is_dir():
        from jaxal.core.types import InputError

        raise InputError(f"{folder}: is no folder; give another with --dir")
    folder.mkdir(parents=True, exist_ok=True)
    with lock.held(folder):
        records.begin(folder, contest, entered)
        results = records.read(folder)
        todo = [
            (name, entrant)
            for name in tasks
            for entrant in chosen
            if not _finished(results.get((name, entrant.name), []), contest.tasks[name])
        ]
        total = sum(len(contest.tasks[name].budgets) for name, _ in todo)
        with display(total) as show:
            for name in tasks:
                mine = [entrant for task, entrant in todo if task == name]
                if not mine:
                    continue
                task = contest.tasks[name]
                show(f"{name}: preparing", 0)
                with datas.opened(name, task, folder / records.DATA / name, contest.precision) as source:
                    arena = ready(contest, name, task, source)
                    for entrant in mine:
                        _compete(arena, entrant, folder, results, show)
        return page.write(folder, contest, entered, records.read(folder))


def _finished(records: list[dict[str, Any]], task: Any) -> bool:
    return bool(records) and records[-1]["round"] == len(task.budgets) - 1


def _compete(arena: Any, entrant: Any, folder: Path, results: dict, show: Any) -> None:
    from jaxal.contest import records, rounds

    place = (arena.name, entrant.name)
    count = 0

    def report(history: list[dict[str, Any]]) -> None:
        nonlocal count
        results[place] = history
        records.write(folder, results)
        error = [r["energy_rmse"] if r.get("force_rmse") is None else r["force_rmse"] for r in history]
        last = [e for e, r in zip(error, history, strict=True) if r["round"] == history[-1]["round"]]
        unit = "meV/atom" if history[-1].get("force_rmse") is None else "meV/Å"
        number = history[-1]["round"] + 1
        text = f"{' '.join(place)}: {history[-1]['labels']} labels, {1e3 * sum(last) / len(last):.1f} {unit}"
        show(text, number - count)
        count = number

    def begun(number: int) -> None:
        show(f"{' '.join(place)}: round {number + 1} of {len(arena.task.budgets)}", 0, True)

    rounds.compete(arena, entrant, folder / records.STATES / arena.name / entrant.name, report, begun)


def _only(contest: Any, entered: tuple, only: tuple[str, ...]) -> tuple[list[str], list[Any]]:
    from jaxal.core.types import InputError

    names = [entrant.name for entrant in entered]
    for name in only:
        if name not in contest.tasks and name not in names:
            known = f"tasks are {', '.join(contest.tasks)}; strategies are {', '.join(names)}"
            raise InputError(f"--only: {name!r} is neither task nor strategy; {known}")
    tasks = [name for name in contest.tasks if name in only] or list(contest.tasks)
    return tasks, [entrant for entrant in entered if entrant.name in only] or list(entered)
