"""Files of a run folder that others read while it is written: metrics.jsonl, the label store. No JAX is loaded."""

import json
from pathlib import Path
from typing import Any

import yaml

METRICS, STORE = "metrics.jsonl", "labels.sqlite"
Record = dict[str, Any]


def read_metrics(path: Path) -> list[Record]:
    """The records of metrics.jsonl; lines that are not whole JSON objects, as the last of a killed run, are skipped."""
    records = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(record, dict):
                records.append(record)
    return records


def store_of(directory: Path) -> Path:
    """The label store of a run: its own, or the shared one that its configuration names."""
    try:
        config = yaml.safe_load((directory / "config.yaml").read_text(encoding="utf-8"))
        shared = config["label"]["store"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, KeyError, TypeError):
        shared = None
    return Path(shared) if shared and isinstance(shared, str) else directory / STORE


def shares(segment: Record) -> Record:
    """Of the time of exploration up to this segment, the fractions in which device and workers had nothing to do.

    The device has nothing to do while the program waits for labels, and while the host writes and decides. None where
    the record does not say.
    """
    busy, idle, worked, slots = (segment.get(name) for name in ("busy", "idle", "worked", "slots"))
    numbers = [value if isinstance(value, int | float) else None for value in (busy, idle, worked, slots)]
    if numbers[0] is None or numbers[1] is None or numbers[0] + numbers[1] <= 0:
        return {"device_idle": None, "workers_idle": None}
    time = numbers[0] + numbers[1]
    at_work = None if numbers[2] is None or not numbers[3] else numbers[2] / (numbers[3] * time)
    return {
        "device_idle": numbers[1] / time,
        "workers_idle": None if at_work is None else max(0.0, 1 - at_work),
    }


def answers(records: list[Record]) -> dict[str, Record]:
    """The last answer of a run's task to each system: a line of text, labels, whether the task is done with it."""
    last = {str(record.get("system")): record for record in records if record.get("kind") == "task"}
    return {name: {key: record.get(key) for key in ("text", "labels", "satisfied")} for name, record in last.items()}
