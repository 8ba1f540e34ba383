"""What a contest keeps in its folder: what it is about, its results so far, the states of strategies at work."""

import json
import os
from pathlib import Path
from typing import Any

from jaxal.contest.schema import Contest, Entrant, plain
from jaxal.core.types import InputError

CONTEST, RESULTS, STATES, DATA = "contest.json", "results.jsonl", "states", "data"
Records = list[dict[str, Any]]


def begin(folder: Path, contest: Contest, entered: tuple[Entrant, ...]) -> None:
    """Writes down what is contested, or compares it with what was before.

    Tasks and strategies may be added to a contest. Raises InputError, with the field, for any other change, and for a
    folder that holds something else.
    """
    now = _about(contest, entered)
    path = folder / CONTEST
    if not path.exists():
        if folder.exists() and any(entry.name != "lock" for entry in folder.iterdir()):
            raise InputError(f"{folder}: is in use and holds no {CONTEST}; give another folder with --dir")
        before: dict[str, Any] = {"all": now["all"], "tasks": {}, "strategies": {}}
    else:
        try:
            before = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read ({error}); give another folder with --dir") from None
    if (field := _difference(before["all"], now["all"], "")) is not None:
        raise InputError(_changed(folder, field, before["all"], now["all"]))
    for kind in ("tasks", "strategies"):
        for name in sorted(set(before[kind]) & set(now[kind])):
            old, new = before[kind][name], now[kind][name]
            if (field := _difference(old, new, "")) is not None:
                raise InputError(_changed(folder, field, old, new, f"{kind}.{name}."))
    merged = {"all": now["all"]} | {kind: before[kind] | now[kind] for kind in ("tasks", "strategies")}
    folder.mkdir(parents=True, exist_ok=True)
    _write(path, json.dumps(merged, indent=1) + "\n")


def read(folder: Path) -> dict[tuple[str, str], Records]:
    """The results there are, by task and strategy."""
    results: dict[tuple[str, str], Records] = {}
    if (folder / RESULTS).exists():
        for line in (folder / RESULTS).read_text().splitlines():
            record = json.loads(line)
            results.setdefault((record["task"], record["strategy"]), []).append(record)
    return results


def write(folder: Path, results: dict[tuple[str, str], Records]) -> None:
    """All results, in place of those before."""
    lines = [json.dumps(record) for records in results.values() for record in records]
    _write(folder / RESULTS, "".join(f"{line}\n" for line in lines))


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _about(contest: Contest, entered: tuple[Entrant, ...]) -> dict[str, Any]:
    """What is contested, as JSON gives it back."""
    whole = plain(contest)
    common = {name: whole[name] for name in ("seeds", "seed", "precision")}
    # what else the contest says is in the tasks and strategies it becomes
    about = {
        "all": common,
        "tasks": whole["tasks"],
        "strategies": {entrant.name: plain(entrant) for entrant in entered},
    }
    return json.loads(json.dumps(about))


def _difference(before: Any, now: Any, field: str) -> str | None:
    """Dotted name of the first field that differs, None where all are equal."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in sorted(set(before) | set(now)):
            inner = _difference(before.get(name), now.get(name), f"{field}.{name}" if field else name)
            if inner is not None:
                return inner
        return None
    return None if before == now else field


def _changed(folder: Path, field: str, before: Any, now: Any, prefix: str = "") -> str:
    def value(of: Any) -> Any:
        for name in field.split(".") if field else ():
            of = of.get(name) if isinstance(of, dict) else None
        return of

    return (
        f"{prefix}{field}: is {json.dumps(value(now))} and was {json.dumps(value(before))} when the contest in "
        f"{folder} began; leave it, or give another folder with --dir"
    )
