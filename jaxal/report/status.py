"""How a run stands, from the files of its folder, whether it is at work or not: `jaxal status`.

Nothing here loads JAX and nothing is written. A folder in which a run is at work is read as it is at the moment:
what is missing or half written is left out.
"""

import fcntl
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from jaxal.label.store.summary import STATUSES, cost
from jaxal.label.task import LabelError
from jaxal.report.display import clock
from jaxal.report.metrics import METRICS, STORE, Record, answers, read_metrics, shares, store_of

# The names belong to config, memory, records and lock, which load JAX.
CONFIG, CHECKPOINTS, LOCK = "config.yaml", "checkpoints", "lock"
BEGUN = ("versions.json", METRICS, STORE, CHECKPOINTS)  # one of them is there as soon as a run is
RECENT = 20  # segments from which the present rates are taken
WAIT = 2.0  # s for a store that another process keeps locked


def gather(directory: str | Path) -> Record:
    """What is known of a run; None for what is not known yet.

    Times are in s of wall time (`ps`: of dynamics, per walker), errors in eV/Å. `eta` is the time to the end of the
    exploration by the budget (`by`) that fills first at the present rates; the final training comes after it.
    Raises LabelError where no run is, or its configuration cannot be read.
    """
    directory = Path(directory)
    config = _config(directory)
    records = read_metrics(directory / METRICS)
    segments = [record for record in records if record.get("kind") == "segment"]
    phases = [record for record in records if record.get("kind") == "phase"]
    last: Record = segments[-1] if segments else {}
    phase = str(phases[-1].get("phase")) if phases else "beginning"
    walls = [record["wall"] for record in records if _number(record.get("wall")) is not None]
    store = _store(store_of(directory))
    budgets = {name: _number(_inside(config, "stop", name)) for name in ("labels", "time", "wall")}
    labels = _number(last.get("labels")) if segments else store["number"] if store else None
    eta, by = _eta(segments, phases, budgets) if phase == "explore" else (None, None)
    return {
        "directory": str(directory),
        "process": _process(directory / LOCK),
        "phase": phase,
        "why": str(phases[-1].get("why") or "") if phases else "",
        "elapsed": max(walls, default=None),
        "silent": _age(directory / METRICS),
        "ps": _number(last.get("ps")),
        "ps_budget": budgets["time"],
        "labels": labels,
        "labels_budget": budgets["labels"],
        "store": store,
        "flagged": _number(last.get("flagged")),
        "unphysical": _number(last.get("unphysical")),
        "causes": last.get("causes"),
        "estimated": _number(last.get("estimated")),
        "true": _last_error(records),
        "holdout_force_rmse": _number(last.get("holdout_force_rmse")),
        "factor": _number(last.get("factor")),
        "threshold": _number(last.get("threshold")),
        "coverage": _number(last.get("coverage")),
        "systems": _systems(records, last),
        "task": answers(records),
        "waiting": _number(last.get("waiting")),
        "running": _number(last.get("running")),
        "dropped": _number(last.get("dropped")),
        **shares(last),
        "checkpoint": _checkpoint(directory / CHECKPOINTS),
        "eta": eta,
        "by": by,
    }


def text(record: Record) -> str:
    """What `gather` found, one thing a line; errors in meV/Å."""
    store, process, point = record["store"], record["process"], record["checkpoint"]
    rows = [
        ("run", record["directory"]),
        ("process", _at_work(process)),
        ("phase", record["phase"] + (f" ({record['why']})" if record["why"] else "")),
        ("elapsed", _clock(record["elapsed"], f", last news {_span(record['silent'])} ago")),
        ("dynamics", _of(record["ps"], record["ps_budget"], ".2f", " ps")),
        ("labels", _of(record["labels"], record["labels_budget"], ".0f", "")),
    ]
    if store and "error" in store:
        rows.append(("store", store["error"]))
    elif store:
        rows.append(("store", ", ".join(f"{store[status]} {status}" for status in STATUSES)))
        if store["mean"] is not None:
            rows.append(("cost", f"{store['mean']:.3g} s a label, {store['hours']:.3g} h in all"))
    if record["running"] is not None:
        sure = f", {record['dropped']:.0f} dropped that the committee has become sure of" if record["dropped"] else ""
        rows.append(("queue", f"{record['waiting']:.0f} waiting, {record['running']:.0f} at work{sure}"))
    rows += [
        ("device idle", _scaled(record["device_idle"], 100, ".1f", "% of the exploration")),
        ("workers idle", _scaled(record["workers_idle"], 100, ".1f", "% of the exploration")),
        ("gate", _scaled(record["flagged"], 100, ".1f", "% of the looks asked for a label")),
        (
            "not physical",
            _scaled(record["unphysical"] or None, 100, ".1f", f"% of the looks{_causes(record['causes'])}"),
        ),
        ("estimated error", _scaled(record["estimated"], 1e3, ".0f", " meV/Å")),
        ("error of new labels", _scaled(record["true"], 1e3, ".0f", " meV/Å")),
        ("error of held-out labels", _scaled(record["holdout_force_rmse"], 1e3, ".0f", " meV/Å")),
        *((f"  {name}", _of_system(own)) for name, own in record["systems"].items()),
        *(
            (f"task, {name}" if len(record["task"]) > 1 else "task", _answer(own))
            for name, own in record["task"].items()
        ),
        ("factor of the gate", _scaled(record["factor"], 1, ".3g", "")),
        ("threshold of the gate", _scaled(record["threshold"], 1, ".3g", "")),
        ("realized coverage", _scaled(record["coverage"], 100, ".1f", "% of the labels within their estimated error")),
        ("checkpoint", f"{point['number']}, {_span(point['age'])} old" if point else None),
        ("left", _clock(record["eta"], f" of exploration, by the budget of {record['by']}")),
    ]
    return "\n".join(f"{name:<25}{value}" for name, value in rows if value)


def _systems(records: list[Record], last: Record) -> Record:
    """Labels so far of each of several systems, and what the last segment says of it."""
    own = last.get("systems")
    if not isinstance(own, dict) or len(own) < 2:
        return {}
    labels = [record.get("system") for record in records if record.get("kind") == "label"]
    return {name: (of if isinstance(of, dict) else {}) | {"labels": labels.count(name)} for name, of in own.items()}


def _answer(own: Record) -> str:
    """What the task of a run says of a system, in a line."""
    return f"{own['text']}; {own['labels']} labels{'' if own['satisfied'] else ', not settled'}"


def _of_system(own: Record) -> str:
    """A system in a line: labels, looks that asked for one, estimated error."""
    words = [f"{own['labels']} labels"]
    if (flagged := _number(own.get("flagged"))) is not None:
        words.append(f"{100 * flagged:.1f} % of the last looks asked for one")
    if (estimated := _number(own.get("estimated"))) is not None:
        words.append(f"estimated error {1e3 * estimated:.0f} meV/Å")
    return ", ".join(words)


def _config(directory: Path) -> Record:
    if not directory.is_dir():
        raise LabelError(f"{directory}: there is no such folder; give the folder of a run")
    path = directory / CONFIG
    if not path.is_file():
        raise LabelError(f"{directory}: not a run folder, it holds no {CONFIG}; `jaxal run CONFIG` starts a run")
    if not any((directory / name).exists() for name in BEGUN):
        raise LabelError(f"{directory}: holds a {CONFIG} but no run; `jaxal run {path}` starts one")
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise LabelError(f"{path}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict):
        raise LabelError(f"{path}: not a configuration; it must have sections")
    return config


def _process(path: Path) -> Record:
    """Whether a process holds the folder, and which.

    It is tried with a shared lock, given back at once: two who look at a run at once do not take each other for it.
    """
    try:
        with open(path, encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return {"running": False}
    except BlockingIOError:
        pass
    except OSError:  # a file system that cannot lock, a file that others may not read
        return {"running": None}
    else:
        return {"running": False}
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return {"running": True, "pid": holder["pid"], "host": holder["host"]}
    except (OSError, ValueError, KeyError, TypeError):  # it has the lock and has not written yet
        return {"running": True, "pid": None, "host": None}


def _at_work(process: Record) -> str:
    if process["running"] is None:
        return "not known, the lock of the folder cannot be read"
    if not process["running"]:
        return "not running"
    return f"running, process {process['pid']} on {process['host']}" if process["pid"] else "running"


def _store(path: Path) -> Record | None:
    """Rows by status, mean seconds and hours in all; None without a store, as where the reference is a closed form."""
    if not path.is_file():
        return None
    try:
        costs = cost(path, WAIT)
    except LabelError as error:
        return {"number": None, "error": str(error)}
    counts = dict.fromkeys(STATUSES, 0)
    for group in costs["methods"]:
        counts[group["status"]] += group["number"]
    return {name: costs["total"][name] for name in ("number", "mean", "hours")} | counts


def _checkpoint(directory: Path) -> Record | None:
    """Number and age of the newest checkpoint; one that is being written has another name."""
    checkpoints = []
    if directory.is_dir():
        checkpoints = [(int(entry.name), _age(entry)) for entry in directory.iterdir() if entry.name.isdecimal()]
    if not checkpoints:
        return None
    number, age = max(checkpoints, key=lambda checkpoint: checkpoint[0])
    return {"number": number, "age": age}


def _eta(segments: Sequence[Record], phases: Sequence[Record], budgets: Record) -> tuple[float | None, str | None]:
    """Seconds until the first budget is full, at the rates of the recent segments, and which budget that is."""
    began: Record = {"wall": _number(phases[-1].get("wall")), "labels": None, "ps": 0.0}
    known = [record for record in [began, *segments] if _number(record.get("wall")) is not None][-RECENT - 1 :]
    if not known:
        return None, None
    estimates = []
    for name, column in (("labels", "labels"), ("time", "ps")):
        points = [record for record in known if _number(record.get(column)) is not None]
        if budgets[name] is None or len(points) < 2:
            continue
        first, last = points[0], points[-1]
        gain, took = last[column] - first[column], last["wall"] - first["wall"]
        if gain > 0 and took > 0:
            estimates.append((max(0.0, (budgets[name] - last[column]) * took / gain), name))
    if budgets["wall"] is not None:
        estimates.append((max(0.0, budgets["wall"] - known[-1]["wall"]), "wall"))
    return min(estimates) if estimates else (None, None)


def _last_error(records: Sequence[Record]) -> float | None:
    """Mean force RMSE of the labels of the last segment that had any, before they were trained on, eV/Å."""
    good = [record for record in records if record.get("kind") == "label" and _number(record.get("rmse")) is not None]
    newest = [record["rmse"] for record in good if record.get("wall") == good[-1].get("wall")]
    return sum(newest) / len(newest) if newest else None


def _causes(causes: Any) -> str:
    """Why walkers were rewound, in words, from the fractions of the looks."""
    known = {name: _number(part) for name, part in causes.items()} if isinstance(causes, dict) else {}
    parts = [f"{name} {100 * part:.1f}%" for name, part in known.items() if part]
    return f" ({', '.join(parts)})" if parts else ""


def _age(path: Path) -> float | None:
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None


def _inside(record: Any, *names: str) -> Any:
    for name in names:
        record = record.get(name) if isinstance(record, dict) else None
    return record


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _clock(seconds: float | None, more: str) -> str | None:
    return None if seconds is None else clock(seconds) + more


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "?"
    return (
        f"{seconds:.0f} s" if seconds < 120 else clock(seconds) if seconds < 172800 else f"{seconds / 86400:.0f} days"
    )


def _of(value: float | None, budget: float | None, style: str, unit: str) -> str | None:
    if _number(value) is None:
        return None
    return f"{value:{style}}{f' of {budget:{style}}' if budget is not None else ''}{unit}"


def _scaled(value: float | None, scale: float, style: str, unit: str) -> str | None:
    known = _number(value)
    return None if known is None else f"{known * scale:{style}}{unit}"
