"""`jaxal status`: how a run stands, from the files in its folder."""

import fcntl
import json
import os
import subprocess
import sys
import time

import pytest
from store_example import done, mixed_store, refused

from jaxal.report import status

CONFIG = """
explore: {timestep: 0.5}
stop: {labels: 100, time: 8.0, wall: null}
"""


@pytest.fixture
def run(tmp_path):
    """A run folder in the middle of its exploration, its last line half written."""
    mixed_store(tmp_path / "labels.sqlite")
    (tmp_path / "config.yaml").write_text(CONFIG)
    lines = [{"kind": "phase", "wall": 5.0, "phase": "initial", "why": ""}]
    lines += [{"kind": "phase", "wall": 10.0, "phase": "explore", "why": ""}]
    for number in range(1, 4):
        wall = 10.0 + 10 * number
        lines.append({"kind": "label", "wall": wall, "label": number, "rmse": 0.1 * number, "ok": True})
        segment = {"kind": "segment", "wall": wall, "ps": number / 10, "labels": 20 + 10 * number, "flagged": 0.25}
        segment |= {
            "estimated": 0.2,
            "factor": 2.5,
            "threshold": 0.4,
            "coverage": 0.875,
            "unphysical": 0.02,
            "causes": {"too hot": 0.015, "in pieces": 0.005},
            "holdout_force_rmse": None,
        }
        segment |= {"busy": 9.0 * number, "idle": 1.0 * number, "worked": 12.0 * number, "slots": 2}
        lines.append({**segment, "waiting": 7, "running": 2, "dropped": 3})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "metrics.jsonl").write_text(text + '{"kind": "segment", "wall": 99')
    for number in ("20", "30", "30.orbax-checkpoint-tmp-1"):
        (tmp_path / "checkpoints" / number).mkdir(parents=True)
    os.utime(tmp_path / "checkpoints" / "30", (time.time() - 50,) * 2)
    return tmp_path


def test_status_of_a_run(capsys, run):
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    record = json.loads(done(capsys, "status", run, "--json"))
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before
    assert (record["phase"], record["elapsed"], record["ps"], record["labels"]) == ("explore", 40.0, 0.3, 50)
    assert (record["labels_budget"], record["ps_budget"], record["process"]) == (100, 8.0, {"running": False})
    assert [record["store"][name] for name in ("done", "rejected", "failed", "number")] == [2, 1, 1, 4]
    assert record["true"] == pytest.approx(0.3) and (record["factor"], record["flagged"]) == (2.5, 0.25)
    assert (record["threshold"], record["coverage"]) == (0.4, 0.875)
    assert record["causes"] == {"too hot": 0.015, "in pieces": 0.005}
    assert "2.0% of the looks (too hot 1.5%, in pieces 0.5%)" in done(capsys, "status", run)
    assert record["checkpoint"]["number"] == 30 and 49 < record["checkpoint"]["age"] < 60
    assert (record["eta"], record["by"]) == (pytest.approx(50.0), "labels")  # a label a second, 50 to go
    text = done(capsys, "status", run)
    assert (record["waiting"], record["running"], record["dropped"]) == (7, 2, 3)
    assert (record["device_idle"], record["workers_idle"]) == (pytest.approx(0.1), pytest.approx(0.4))
    queue = "7 waiting, 2 at work, 3 dropped"
    for words in (
        "not running",
        "50 of 100",
        "0.30 of 8.00 ps",
        "25.0% of the looks",
        "0:50 of exploration",
        "87.5% of the labels",
        queue,
    ):
        assert words in text


def test_status_by_another_budget_and_of_a_finished_run(capsys, run):
    (run / "config.yaml").write_text("stop: {labels: 5000, time: 0.4, wall: 1000}")
    record = status.gather(run)
    assert record["by"] == "time" and record["eta"] == pytest.approx(10.0)
    (run / "config.yaml").write_text("stop: {labels: 5000, wall: 45}")
    assert status.gather(run)["by"] == "wall" and status.gather(run)["eta"] == pytest.approx(5.0)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('\n{"kind": "phase", "wall": 41, "phase": "final training", "why": "quiet for 5 ps"}\n')
    assert status.gather(run)["eta"] is None and "final training (quiet for 5 ps)" in done(capsys, "status", run)


def test_status_tells_a_process_at_work(capsys, run):
    (run / "lock").write_text("")  # it stays when a run has ended
    assert status.gather(run)["process"] == {"running": False}
    with open(run / "lock", "a+") as file:  # flock belongs to the opened file: this process can play two
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert status.gather(run)["process"] == {"running": True, "pid": None, "host": None}
        file.write(json.dumps({"pid": 123, "host": "node7"}))
        file.flush()
        assert "running, process 123 on node7" in done(capsys, "status", run)
    with open(run / "lock") as file:  # somebody else who looks
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        assert "not running" in done(capsys, "status", run)


def test_status_at_the_beginning_and_with_damaged_files(capsys, run):
    (run / "metrics.jsonl").unlink()
    (run / "labels.sqlite").write_text("not a database" * 100)
    record = status.gather(run)
    assert record["phase"] == "beginning" and record["labels"] is None and record["elapsed"] is None
    assert "not a label store" in done(capsys, "status", run)
    (run / "labels.sqlite").unlink()
    (run / "metrics.jsonl").write_text('[]\n{"kind": "segment"}\n{"kind": "phase", "phase": null}\n\x00\n')
    assert done(capsys, "status", run)
    (run / "config.yaml").write_text("a: [")
    assert "config.yaml: cannot be read" in refused(capsys, "status", run)
    (run / "config.yaml").write_text("- 1")
    assert "not a configuration" in refused(capsys, "status", run)


def test_status_refuses_what_is_no_run(tmp_path, capsys):
    assert "there is no such folder" in refused(capsys, "status", tmp_path / "none")
    assert "not a run folder, it holds no config.yaml" in refused(capsys, "status", tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    assert "holds a config.yaml but no run" in refused(capsys, "status", tmp_path)


def test_no_command_loads_jax(run):
    """They answer at once, also on a machine that is busy with the run."""
    code = """
import sys
from jaxal.cli.main import main
run = sys.argv[1]
words = ["status", run], ["store", "list", run], ["store", "cost", run], ["store", "export", run, run + "/out.xyz"]
statuses = [main(command) for command in words]
statuses += [main(["store", "import", run, run + "/out.xyz"]), main(["store", "merge", run + "/m.sqlite", run])]
assert main(["store", "list", "none"]) == 2
sys.exit(any(statuses) or "jax" in sys.modules)
"""
    child = subprocess.run([sys.executable, "-c", code, str(run)], capture_output=True, text=True, timeout=60)
    assert child.returncode == 0, child.stderr


def test_status_of_systems_and_of_what_is_not_known(capsys, run):
    """A part of the numbers may be missing, as in the lines of the first looks."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    label = {"kind": "label", "wall": 40.0, "label": 4, "system": "base"}
    segment = json.loads(lines[-2]) | {"systems": {"acid": None, "base": {"flagged": 0.5, "estimated": 0.1}}}
    (run / "metrics.jsonl").write_text("\n".join([*lines[:-2], json.dumps(label), json.dumps(segment), ""]))
    text = done(capsys, "status", run)
    assert "acid" in text and "0 labels\n" in text
    assert "1 labels, 50.0 % of the last looks asked for one, estimated error 100 meV/Å\n" in text


def test_a_lock_that_cannot_be_read_says_nothing(capsys, run):
    (run / "lock").symlink_to("lock")  # of itself
    assert status.gather(run)["process"] == {"running": None}
    assert "not known, the lock of the folder cannot be read" in done(capsys, "status", run)


def test_without_times_nothing_is_estimated(run):
    (run / "metrics.jsonl").write_text('{"kind": "phase", "phase": "explore"}\n{"kind": "segment", "labels": 30}\n')
    record = status.gather(run)
    assert (record["phase"], record["eta"], record["by"]) == ("explore", None, None)
