"""docs/add_your_own.md is the test: its blocks are written to files, and its command is run on tiny made data."""

import csv
import re
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest
from ase.io import write
from contest_example import frames

from jaxal.cli.main import main
from jaxal.core import registry
from jaxal.core.discovery import import_parts
from jaxal.core.types import Candidates

PAGE = (Path(__file__).parent.parent / "docs" / "add_your_own.md").read_text()
SMALLER = (
    "potential={cutoff: 3.0, channels: 2, l_max: 1, layers: 1, correlation: 1, radial: 4, radial_hidden: 0}",
    "committee.members=2",
    "train={initial_steps: 5, steps: 3, batch: 2, holdout: 0.2}",
    "budgets=[5,8]",
    "seeds=2",
    "grids=[{select: [top_k]}]",
)


def block(language: str) -> str:
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    return text


@pytest.mark.slow
def test_from_an_empty_file_to_the_leaderboard(tmp_path, monkeypatch):
    import_parts()
    monkeypatch.setitem(registry._table, "select", dict(registry._table["select"]))
    monkeypatch.chdir(tmp_path)
    code = block("python")
    assert len([line for line in code.splitlines() if line.strip()]) == 10  # what the page says
    Path("my_selection.py").write_text(code)
    Path("contest.yaml").write_text(block("yaml"))
    write("frames.xyz", frames(40, 0), format="extxyz")
    command = shlex.split(block("sh"))
    assert command[:2] == ["jaxal", "contest"]
    assert main([*command[1:], *SMALLER]) == 0
    leaders = list(csv.DictReader(Path("runs/contest/leaderboard.csv").read_text().splitlines()))
    (row,) = [row for row in leaders if row["strategy"] == "lucky"]
    assert re.fullmatch(r"-?\d+ \[-?\d+, -?\d+\]", row["labels saved, %"]) and row["baseline"] == "random"
    assert {row["strategy"] for row in leaders} == {"random", "farthest", "top_k", "lucky", "lucky_hot"}
    # and it does what its first line says
    select = registry.get("select", "lucky_dip")
    score, eligible = np.array([0.1, 0.9, 0.5, 0.9], np.float32), np.array([True, True, True, False])
    none = np.zeros((4, 1), np.float32)
    candidates = Candidates(*map(jax.numpy.asarray, (score, none, eligible, none, ~eligible)))
    drawn = [tuple(np.asarray(select(jax.random.key(i), candidates, 2)).tolist()) for i in range(200)]
    assert all(3 not in rows and len(set(rows)) == 2 for rows in drawn)
    assert sum(1 in rows for rows in drawn) > sum(0 in rows for rows in drawn)
