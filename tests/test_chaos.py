"""The script that breaks runs, with few kills; what it breaks must come out as if it had not been broken."""

import subprocess
import sys
from pathlib import Path

import pytest

CHAOS = Path(__file__).parent.parent / "scripts" / "chaos.py"


def chaos(*arguments: object) -> list[str]:
    process = subprocess.run([sys.executable, CHAOS, *map(str, arguments)], capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout.splitlines()


@pytest.mark.slow
def test_killed_runs_end_as_if_they_had_not_been_killed():
    lines = chaos("--kills", 3, "--seed", 2)
    assert lines[-1].startswith("PASSED: 3 kills") and ", 0 problems" in lines[-1]


@pytest.mark.slow
def test_failing_labels_cost_nothing_but_themselves():
    lines = chaos("--labels")
    assert lines[-1].startswith("PASSED") and "0 problems" in lines[-1]
    for kind in ("unconverged", "crash", "hang", "nan", "nonsense"):
        assert any(line.startswith(f"{kind}: ") for line in lines)
