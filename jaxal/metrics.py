"""The records of a run's metrics.jsonl, also while it is written. Nothing here loads JAX."""

import json
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
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
